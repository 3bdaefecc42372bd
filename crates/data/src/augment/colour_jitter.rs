//! Brightness, contrast, saturation and hue changed by random factors in random order: torchvision's `ColorJitter`.

use super::{Draws, Operation};
use crate::image::{RgbImage, Sampling};
use crate::{Error, Result};
use calotype_core::Stream;
use serde::{Deserialize, Serialize};

/// How far factors go from 1, and turns of the hue from 0; what is 0 stays as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ColourJitter {
    /// Of brightness.
    pub brightness: f64,
    /// Of contrast.
    pub contrast: f64,
    /// Of saturation.
    pub saturation: f64,
    /// Of the hue, as a share of the circle, up to 0.5.
    pub hue: f64,
}

impl ColourJitter {
    /// Checks the numbers.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming the setting.
    pub fn check(&self) -> Result<()> {
        let bad = |detail: String| Err(Error::InvalidArgument { what: "colour_jitter", detail });
        for (name, value) in
            [("brightness", self.brightness), ("contrast", self.contrast), ("saturation", self.saturation)]
        {
            if !(value >= 0.0 && value.is_finite()) {
                return bad(format!("{name} = {value}; it takes a number from 0 on, such as 0.4"));
            }
        }
        if !(0.0..=0.5).contains(&self.hue) {
            return bad(format!("hue = {}; it takes a number from 0 to 0.5", self.hue));
        }
        Ok(())
    }

    /// The image changed in a given order (of brightness 0, contrast 1, saturation 2 and hue 3) by given factors of these.
    #[must_use]
    pub fn changed(&self, image: RgbImage, order: [usize; 4], factors: [f64; 4]) -> RgbImage {
        let reach = [self.brightness, self.contrast, self.saturation, self.hue];
        order.into_iter().filter(|which| reach[*which] > 0.0).fold(image, |image, which| {
            let factor = factors[which];
            let operation = match which {
                0 => Operation::Brightness(factor),
                1 => Operation::Contrast(factor),
                2 => Operation::Colour(factor),
                _ => Operation::Hue(factor),
            };
            operation.apply(image, Sampling::Nearest, [0; 3])
        })
    }

    /// The image changed in an order and by factors that are drawn from `stream`.
    #[must_use]
    pub fn apply(&self, image: RgbImage, stream: &mut Stream) -> RgbImage {
        let mut order = [0, 1, 2, 3];
        (1..4).rev().for_each(|at| order.swap(at, Draws::below(stream, at + 1)));
        let mut around = |centre: f64, reach: f64| {
            f64::from(stream.within((centre - reach).max(centre - 1.0) as f32, (centre + reach) as f32))
        };
        let factors = [
            around(1.0, self.brightness),
            around(1.0, self.contrast),
            around(1.0, self.saturation),
            around(0.0, self.hue),
        ];
        self.changed(image, order, factors)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use calotype_core::Purpose;

    #[test]
    fn what_is_done_is_a_function_of_the_stream_and_what_is_zero_stays() {
        let image = RgbImage::new(9, 7, (0..189).map(|i| (i * i % 251) as u8).collect()).unwrap();
        let jitter = ColourJitter { brightness: 0.4, contrast: 0.4, saturation: 0.4, hue: 0.1 };
        let made = |jitter: ColourJitter, position| {
            jitter.apply(image.clone(), &mut Stream::new(3, Purpose::ColourJitter, position))
        };
        assert_eq!(made(jitter, 5), made(jitter, 5));
        assert!((0..9).all(|position| made(jitter, position) != made(jitter, position + 1)));
        assert_eq!(made(ColourJitter::default(), 5), image);
        let orders: std::collections::BTreeSet<Vec<u8>> =
            (0..200).map(|position| made(ColourJitter { contrast: 0.0, ..jitter }, position).into_data()).collect();
        assert!(orders.len() > 190);
    }

    #[test]
    fn impossible_numbers_are_refused() {
        let usual = ColourJitter::default();
        for (bad, part) in [
            (ColourJitter { brightness: -0.1, ..usual }, "brightness"),
            (ColourJitter { contrast: f64::NAN, ..usual }, "contrast"),
            (ColourJitter { saturation: f64::INFINITY, ..usual }, "saturation"),
            (ColourJitter { hue: 0.6, ..usual }, "hue"),
        ] {
            let error = bad.check().unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        usual.check().unwrap();
    }
}
