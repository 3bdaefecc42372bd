//! The arithmetic of UNets, ViT and CLIP, counted from their configurations.

use crate::{ClipConfig, UNetConfig, VitConfig};

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

/// A stack of transformer blocks on `tokens` states.
struct Stack {
    tokens: usize,
    channels: usize,
    mlp_channels: usize,
    layers: usize,
}

impl Stack {
    /// Multiply-adds of one sample: queries, keys, values and the output's projection, both products of attention (of a causal one,
    /// too, all scores count), both layers of the feed-forward part.
    fn count(&self) -> u64 {
        let [tokens, channels, mlp, layers] =
            [self.tokens, self.channels, self.mlp_channels, self.layers].map(|size| size as u64);
        layers * tokens * (4 * channels * channels + 2 * tokens * channels + 2 * channels * mlp)
    }
}

/// Multiply-adds of the projection of patches, of three colours each.
fn patches(count: usize, patch: usize, channels: usize) -> u64 {
    (count * patch * patch * 3) as u64 * channels as u64
}

impl VitConfig {
    /// Floating-point operations of one forward pass, counted as [`UNetConfig::forward_flops`] does. A training step does three times as
    /// many.
    pub fn forward_flops(&self, batch: usize) -> u64 {
        let grid = (self.image_size / self.patch_size).pow(2);
        let channels = self.channels;
        let (layers, mlp_channels) = (self.layers, self.mlp_channels);
        let stack = Stack { tokens: grid + self.class_tokens, channels, mlp_channels, layers };
        let pooler = if self.pooling { channels * channels } else { 0 };
        let head = (pooler + channels * self.labels) as u64;
        2 * (patches(grid, self.patch_size, channels) + stack.count() + head) * batch as u64
    }
}

impl ClipConfig {
    /// Floating-point operations of the image tower with its projection, counted as [`UNetConfig::forward_flops`] does.
    pub fn image_flops(&self, batch: usize) -> u64 {
        let vision = &self.vision;
        let grid = (vision.image_size / vision.patch_size).pow(2);
        let (channels, layers) = (vision.channels, vision.layers);
        let mlp_channels = vision.mlp_channels.unwrap_or(4 * channels);
        let stack = Stack { tokens: grid + 1, channels, mlp_channels, layers };
        let ends = patches(grid, vision.patch_size, channels) + (channels * self.projection) as u64;
        2 * (ends + stack.count()) * batch as u64
    }

    /// The same of the text tower on rows of the whole context.
    pub fn text_flops(&self, batch: usize) -> u64 {
        let text = &self.text;
        let (channels, layers) = (text.channels, text.layers);
        let mlp_channels = text.mlp_channels.unwrap_or(4 * channels);
        let stack = Stack { tokens: text.context_length, channels, mlp_channels, layers };
        2 * (stack.count() + (channels * self.projection) as u64) * batch as u64
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

    /// The number that PyTorch 2.15's `FlopCounterMode` counts in timm's `vit_base_patch16_224` and `vit_large_patch16_224`, and in
    /// transformers 5.23's `CLIPModel` of the published sizes with 77 tokens.
    #[test]
    fn counts_of_transformers_agree_with_pytorch() {
        let vit = |name: &str, batch| VitConfig::named(name).unwrap().forward_flops(batch);
        assert_eq!((vit("B_16", 1), vit("B_16", 2)), (35_127_656_448, 70_255_312_896));
        assert_eq!(vit("L_16", 1), 123_109_425_152);
        let clip = |name: &str| {
            let config = ClipConfig::open_clip(name).unwrap();
            (config.image_flops(1), config.text_flops(1))
        };
        assert_eq!(clip("ViT-B-32"), (8_817_623_040, 5_959_540_736));
        assert_eq!(clip("ViT-L-14"), (162_025_537_536, 13_299_683_328));
        let pooled = VitConfig { pooling: true, ..VitConfig::default() };
        assert_eq!(pooled.forward_flops(1) - vit("B_16", 1), 2 * 768 * 768);
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
