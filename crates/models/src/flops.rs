//! The arithmetic of a UNet, counted from its configuration.

use crate::UNetConfig;

/// Counts while the walk goes over the layers. All counts are of multiply-adds.
struct Walk<'a> {
    config: &'a UNetConfig,
    /// Multiply-adds of one sample so far.
    count: u64,
}

impl Walk<'_> {
    /// A linear layer on `rows` rows.
    fn linear(&mut self, rows: usize, inputs: usize, outputs: usize) {
        self.count += rows as u64 * inputs as u64 * outputs as u64;
    }

    /// A 3x3 convolution that gives `pixels` pixels.
    fn conv3x3(&mut self, pixels: usize, inputs: usize, outputs: usize) {
        self.linear(pixels, 9 * inputs, outputs);
    }

    fn resnet(&mut self, pixels: usize, inputs: usize, outputs: usize) {
        self.conv3x3(pixels, inputs, outputs);
        self.conv3x3(pixels, outputs, outputs);
        self.linear(1, self.time_channels(), outputs);
        if inputs != outputs {
            self.linear(pixels, inputs, outputs);
        }
    }

    /// Queries, keys and values, both products of attention, and the projection of the output.
    fn attention(&mut self, pixels: usize, channels: usize, keys: usize, context: usize) {
        self.linear(pixels, channels, channels);
        self.linear(keys, context, 2 * channels);
        self.linear(pixels, 2 * keys, channels);
        self.linear(pixels, channels, channels);
    }

    /// A spatial transformer of one level.
    fn transformer(&mut self, level: usize, pixels: usize, tokens: usize) {
        let channels = self.config.block_out_channels[level];
        self.linear(pixels, channels, 2 * channels);
        for _ in 0..self.config.transformer_depth.at(level) {
            self.attention(pixels, channels, pixels, channels);
            self.attention(pixels, channels, tokens, self.config.context_channels);
            // The doubled projection into GEGLU, and the one back.
            self.linear(pixels, channels, 12 * channels);
        }
    }

    fn time_channels(&self) -> usize {
        4 * self.config.block_out_channels[0]
    }
}

impl UNetConfig {
    /// Floating-point operations of one forward pass: two for every multiply-add of the convolutions, linear layers
    /// and attention products. Norms, activations, sums and the softmax, under a hundredth of the whole in the
    /// published networks, do not count. A training step does three times as many.
    ///
    /// # Shapes
    /// `[height, width]` of the latent, multiples of [`UNetConfig::size_multiple`]; `tokens` text states.
    pub fn forward_flops(&self, batch: usize, [height, width]: [usize; 2], tokens: usize) -> u64 {
        let channels = &self.block_out_channels;
        let (Some(&first), Some(&last)) = (channels.first(), channels.last()) else { return 0 };
        let pixels = |level: usize| (height >> level) * (width >> level);
        let mut walk = Walk { config: self, count: 0 };
        let time = walk.time_channels();
        walk.linear(1, first, time);
        walk.linear(1, time, time);
        if let Some(added) = &self.added {
            walk.linear(1, added.input_channels, time);
            walk.linear(1, time, time);
        }
        walk.conv3x3(pixels(0), self.in_channels, first);
        let mut current = first;
        let mut skips = vec![first];
        for (level, &out) in channels.iter().enumerate() {
            for _ in 0..self.layers_per_block {
                walk.resnet(pixels(level), current, out);
                if self.attention_levels[level] {
                    walk.transformer(level, pixels(level), tokens);
                }
                current = out;
                skips.push(out);
            }
            if level + 1 < channels.len() {
                walk.conv3x3(pixels(level + 1), out, out);
                skips.push(out);
            }
        }
        let lowest = pixels(channels.len() - 1);
        walk.resnet(lowest, last, last);
        walk.transformer(channels.len() - 1, lowest, tokens);
        walk.resnet(lowest, last, last);
        for (level, &out) in channels.iter().enumerate().rev() {
            for _ in 0..=self.layers_per_block {
                walk.resnet(pixels(level), current + skips.pop().unwrap_or(0), out);
                if self.attention_levels[level] {
                    walk.transformer(level, pixels(level), tokens);
                }
                current = out;
            }
            if level > 0 {
                walk.conv3x3(pixels(level - 1), out, out);
            }
        }
        walk.conv3x3(pixels(0), first, self.out_channels);
        2 * walk.count * batch as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The number that PyTorch 2.15's `FlopCounterMode` counts in diffusers 0.42's `UNet2DConditionModel` of the same
    /// configurations with 77 text states.
    #[test]
    fn counts_agree_with_pytorch() {
        let flops = |config: UNetConfig, batch, side| config.forward_flops(batch, [side, side], 77);
        assert_eq!(flops(UNetConfig::stable_diffusion_2(), 1, 64), 804_257_464_320);
        assert_eq!(flops(UNetConfig::stable_diffusion_2(), 4, 32), 724_361_871_360);
        assert_eq!(flops(UNetConfig::stable_diffusion_1(), 1, 64), 803_273_441_280);
        assert_eq!(flops(UNetConfig::tiny(), 1, 32), 2_052_222_976);
        let pix2pix = UNetConfig { in_channels: 8, ..UNetConfig::stable_diffusion_1() };
        assert_eq!(flops(pix2pix, 1, 64), 803_367_813_120);
        assert_eq!(flops(UNetConfig::stable_diffusion_xl(), 1, 128), 6_761_236_398_080);
        assert_eq!(flops(UNetConfig::stable_diffusion_xl_refiner(), 1, 128), 7_286_010_937_344);
    }

    /// The published networks have as many parameters as diffusers' of the same configurations.
    #[test]
    fn parameters_of_the_published_networks() {
        let device = burn::tensor::Device::flex();
        for (config, expected) in [
            (UNetConfig::stable_diffusion_1(), 859_520_964),
            (UNetConfig::stable_diffusion_2(), 865_910_724),
            (UNetConfig::mlperf_stable_diffusion_2(), 865_910_724),
            (UNetConfig::stable_diffusion_xl(), 2_567_463_684),
            (UNetConfig::stable_diffusion_xl_refiner(), 2_259_526_660),
        ] {
            let unet = config.init(&mut crate::Init::placeholders(&device)).unwrap();
            let count: usize =
                crate::state::layout(&unet).iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
            assert_eq!(count, expected);
        }
    }
}
