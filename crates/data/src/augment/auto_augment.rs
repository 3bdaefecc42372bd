//! AutoAugment (Cubuk et al. 2019): two changes of an image, by one of the policies that were found for a dataset.

use super::{Draws, Operation};
use crate::image::{RgbImage, Sampling};
use calotype_core::Stream;

calotype_core::names! {
    /// The dataset whose policies are followed.
    AutoAugment, "policy of AutoAugment" {
        /// ImageNet: the paper's table 9, as DeepVoltaire's AutoAugment and after it NeMo carry it out.
        Imagenet = "imagenet",
    }
}

use Change::{AutoContrast, Colour, Contrast, Equalize, Invert, Posterize, Rotate, Sharpness, ShearX, Solarize};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    ShearX,
    Rotate,
    Colour,
    Posterize,
    Solarize,
    Contrast,
    Sharpness,
    AutoContrast,
    Equalize,
    Invert,
}

/// A change, the probability that it is made, and its magnitude of 0 to 10.
type Step = (Change, f64, u8);

/// Cubuk et al. 2019, table 9; some policies stand there twice.
const IMAGENET: [[Step; 2]; 25] = [
    [(Posterize, 0.4, 8), (Rotate, 0.6, 9)],
    [(Solarize, 0.6, 5), (AutoContrast, 0.6, 5)],
    [(Equalize, 0.8, 8), (Equalize, 0.6, 3)],
    [(Posterize, 0.6, 7), (Posterize, 0.6, 6)],
    [(Equalize, 0.4, 7), (Solarize, 0.2, 4)],
    [(Equalize, 0.4, 4), (Rotate, 0.8, 8)],
    [(Solarize, 0.6, 3), (Equalize, 0.6, 7)],
    [(Posterize, 0.8, 5), (Equalize, 1.0, 2)],
    [(Rotate, 0.2, 3), (Solarize, 0.6, 8)],
    [(Equalize, 0.6, 8), (Posterize, 0.4, 6)],
    [(Rotate, 0.8, 8), (Colour, 0.4, 0)],
    [(Rotate, 0.4, 9), (Equalize, 0.6, 2)],
    [(Equalize, 0.0, 7), (Equalize, 0.8, 8)],
    [(Invert, 0.6, 4), (Equalize, 1.0, 8)],
    [(Colour, 0.6, 4), (Contrast, 1.0, 8)],
    [(Rotate, 0.8, 8), (Colour, 1.0, 2)],
    [(Colour, 0.8, 8), (Solarize, 0.8, 7)],
    [(Sharpness, 0.4, 7), (Invert, 0.6, 8)],
    [(ShearX, 0.6, 5), (Equalize, 1.0, 9)],
    [(Colour, 0.4, 0), (Equalize, 0.6, 3)],
    [(Equalize, 0.4, 7), (Solarize, 0.2, 4)],
    [(Solarize, 0.6, 5), (AutoContrast, 0.6, 5)],
    [(Invert, 0.6, 4), (Equalize, 1.0, 8)],
    [(Colour, 0.6, 4), (Contrast, 1.0, 8)],
    [(Equalize, 0.8, 8), (Equalize, 0.6, 3)],
];

/// What lies outside of moved images.
const GREY: [u8; 3] = [128; 3];

impl AutoAugment {
    /// The image changed by the policy of a number below 25: both of its changes that `made` says, with the sign that `negative` says
    /// where there are two.
    #[must_use]
    pub fn changed(self, image: RgbImage, policy: usize, made: [bool; 2], negative: [bool; 2]) -> RgbImage {
        let Self::Imagenet = self;
        let Some(steps) = IMAGENET.get(policy) else { return image };
        let steps = steps.iter().zip(made).zip(negative).filter(|((_, made), _)| *made);
        steps.fold(image, |image, (((change, _, magnitude), _), negative)| {
            let (operation, sampling) = operation(*change, *magnitude, negative);
            operation.apply(image, sampling, GREY)
        })
    }

    /// The image changed by what is drawn from `stream`.
    #[must_use]
    pub fn apply(self, image: RgbImage, stream: &mut Stream) -> RgbImage {
        let policy = Draws::below(stream, IMAGENET.len());
        let (mut made, mut negative) = ([false; 2], [false; 2]);
        for (at, (_, probability, _)) in IMAGENET[policy].iter().enumerate() {
            made[at] = stream.uniform_f64() < *probability;
            negative[at] = stream.below(2) == 1;
        }
        self.changed(image, policy, made, negative)
    }
}

/// What NeMo's `SubPolicy` does for a change; of rotations the sign is not drawn.
fn operation(change: Change, magnitude: u8, negative: bool) -> (Operation, Sampling) {
    let step = f64::from(magnitude);
    let signed = |value: f64| if negative { -value } else { value };
    let factor = || 1.0 + signed(step * 0.09);
    let operation = match change {
        ShearX => return (Operation::Affine([1.0, signed(step * 0.03), 0.0, 0.0, 1.0, 0.0]), Sampling::Bicubic),
        Rotate => Operation::Rotate(step * 3.0),
        Colour => Operation::Colour(factor()),
        Contrast => Operation::Contrast(factor()),
        Sharpness => Operation::Sharpness(factor()),
        Posterize => Operation::Posterize((8.0 - step * 0.4).round_ties_even() as u32),
        Solarize => Operation::Solarize(256.0 - step * 25.6),
        AutoContrast => Operation::AutoContrast,
        Equalize => Operation::Equalize,
        Invert => Operation::Invert,
    };
    (operation, Sampling::Nearest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use calotype_core::Purpose;

    #[test]
    fn what_is_done_is_a_function_of_the_stream() {
        let image = RgbImage::new(24, 20, (0..24 * 20 * 3).map(|i| (i * i % 251) as u8).collect()).unwrap();
        let made =
            |position| AutoAugment::Imagenet.apply(image.clone(), &mut Stream::new(3, Purpose::RandAugment, position));
        let changed = (0..60).filter(|position| made(*position) != image).count();
        assert!((35..60).contains(&changed), "{changed}");
        assert_eq!(made(7), made(7));
        assert_eq!(AutoAugment::Imagenet.changed(image.clone(), 25, [true; 2], [false; 2]), image);
    }
}
