//! How pictures become the input of a classifier.

use crate::features::framing::{Framing, Half, Resampler, View};
use crate::{EvaluateError, Result};
use calotype_checkpoints::{Checkpoint, Component, ImageProcessor, Layout};
use calotype_data::image::{Filter, RgbImage};
use calotype_pipeline::encoders::ImageInput;

calotype_core::names! {
    /// How a picture becomes a classifier's input.
    #[derive(Default)]
    ClassifierInput, "preparation of pictures" {
        /// As the model's `preprocessor_config.json` says; without one as NeMo does, of its layout, as transformers' ViT (squeezed into
        /// a square by torch's bilinear, values from -1 to 1), or as EfficientNet-Lite was trained (the shorter side to 32 pixels more than the
        /// network's by Pillow's bicubic, the middle cut out, levels less 127, by 128).
        #[default]
        Checkpoint = "checkpoint",
        /// NeMo's: squeezed into the network's square by Pillow's bilinear; ImageNet's mean and deviation.
        Nemo = "nemo",
        /// torchvision's: the shorter side to 8/7 of the network's by Pillow's bilinear, and the middle cut out; ImageNet's mean and
        /// deviation.
        Torchvision = "torchvision",
    }
}

/// Mean and deviation of ImageNet's channels, as torchvision's references and NeMo have them.
const IMAGENET: ([f32; 3], [f32; 3]) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);

/// A preparation for a network of one size.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Prepared {
    framing: Framing,
    input: ImageInput,
}

impl ClassifierInput {
    /// What it does for a network of a checkpoint that takes pictures of `side` pixels.
    ///
    /// # Errors
    /// [`EvaluateError::File`] for a `preprocessor_config.json` that cannot be followed, or ends with another size.
    pub(super) fn of(self, checkpoint: &Checkpoint, component: Component, side: usize) -> Result<Prepared> {
        let imagenet = |view| {
            let (mean, deviation) = IMAGENET;
            let framing = Framing { view, resampler: Resampler::Pillow(Filter::Bilinear) };
            Prepared { framing, input: ImageInput::normalised(side, mean, deviation) }
        };
        Ok(match (self, checkpoint.image_processor()?) {
            (Self::Nemo, _) => imagenet(View::Whole),
            (Self::Checkpoint, None) if checkpoint.layout() == Layout::NemoVit => imagenet(View::Whole),
            (Self::Torchvision, _) => imagenet(View::Shorter(side * 8 / 7, Half::Even)),
            (Self::Checkpoint, Some(processor)) => followed(checkpoint, processor, side)?,
            (Self::Checkpoint, None) if component == Component::EfficientNetLite => {
                let view = View::Shorter(side + 32, Half::Even);
                let framing = Framing { view, resampler: Resampler::Pillow(Filter::Bicubic) };
                Prepared { framing, input: ImageInput::in_range(side, -127.0 / 128.0, 1.0) }
            }
            (Self::Checkpoint, None) => followed(checkpoint, ImageProcessor::vit(side), side)?,
        })
    }
}

fn followed(checkpoint: &Checkpoint, processor: ImageProcessor, side: usize) -> Result<Prepared> {
    let framing = Framing::of_processor(&processor, side).ok_or_else(|| EvaluateError::File {
        path: checkpoint.path().join(ImageProcessor::FILE),
        detail: format!(
            "gives no square of {side} pixels by bilinear or bicubic resizing, which is what can be followed; choose another \
             preparation (nemo, torchvision)"
        ),
    })?;
    let framing = if checkpoint.layout() == Layout::Timm { as_timm(framing) } else { framing };
    Ok(Prepared { framing, input: ImageInput::normalised(side, processor.mean, processor.std) })
}

/// The same by torchvision's transforms of Pillow's images, which timm takes.
fn as_timm(framing: Framing) -> Framing {
    let (Resampler::Torch(filter) | Resampler::Pillow(filter)) = framing.resampler;
    let view = match framing.view {
        View::Shorter(to, _) => View::Shorter(to, Half::Even),
        view => view,
    };
    Framing { view, resampler: Resampler::Pillow(filter) }
}

impl Prepared {
    /// A picture as `[side, side, 3]`.
    ///
    /// # Errors
    /// [`EvaluateError::Data`] for a picture that cannot be resized.
    pub(super) fn apply(&self, image: &RgbImage) -> Result<Vec<f32>> {
        let square = self.framing.apply(image, self.input.side)?;
        // The square has its size, so that nothing is left to do for a filter.
        Ok(self.input.prepare(&square, Some(Filter::Bilinear))?)
    }

    /// What is done, and where levels are rounded, for fingerprints.
    pub(super) fn describe(&self) -> (String, String) {
        let ImageInput { side, low, high } = self.input;
        let resize = format!("{}; levels from {low:?} to {high:?}", self.framing.describe(side));
        (resize, self.framing.rounding())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn preparations_are_the_published_ones() {
        let image = RgbImage::new(30, 20, (0..30 * 20 * 3).map(|at| (at * 7 % 251) as u8).collect()).unwrap();
        let pillow = Resampler::Pillow(Filter::Bilinear);
        let (mean, deviation) = IMAGENET;
        let input = ImageInput::normalised(8, mean, deviation);
        let nemo = Prepared { framing: Framing { view: View::Whole, resampler: pillow }, input };
        let values = nemo.apply(&image).unwrap();
        let levels = image.resize(8, 8, Filter::Bilinear).unwrap();
        assert_eq!(values.len(), 8 * 8 * 3);
        let expected = (f32::from(levels.data()[1]) / 255.0 - 0.456) / 0.224;
        assert!((values[1] - expected).abs() < 1e-5, "{} and {expected}", values[1]);
        // The levels of timm 1.0.31's `create_transform(input_size=(3, 8, 8), interpolation="bicubic", crop_pct=0.7)`.
        let torch = Resampler::Torch(Filter::Bicubic);
        let timm = as_timm(Framing { view: View::Shorter(11, Half::Down), resampler: torch });
        let found =
            Prepared { framing: timm, input: ImageInput::normalised(8, [0.5; 3], [0.5; 3]) }.apply(&image).unwrap();
        let levels: Vec<u32> = found.iter().map(|value| ((value * 0.5 + 0.5) * 255.0).round() as u32).collect();
        assert_eq!(levels[..9], [111, 118, 132, 160, 168, 147, 117, 126, 78]);
        assert_eq!((&levels[90..96], &levels[189..]), (&[111, 118, 125, 157, 164, 174][..], &[135, 145, 152][..]));
        assert_eq!(levels.iter().sum::<u32>(), 24_775);
        let torchvision = Framing { view: View::Shorter(224 * 8 / 7, Half::Even), resampler: pillow };
        assert!(torchvision.describe(224).starts_with("shorter side to 256 by Pillow's bilinear, middle 224x224"));
    }
}
