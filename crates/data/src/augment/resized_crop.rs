//! Random resized crop: a rectangle of random area and shape, which becomes the square that a model takes (Szegedy et al.
//! 2015, "Going deeper with convolutions", section 6).

use super::Draws;
use crate::image::Crop;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// What rectangles are drawn; torchvision's `RandomResizedCrop`, whose values are the defaults.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ResizedCrop {
    /// Least and greatest share of the image's area.
    pub scale: (f64, f64),
    /// Least and greatest quotient of width and height; logarithms of it are equally likely.
    pub ratio: (f64, f64),
    /// How often a rectangle is drawn that does not fit into the image, before the largest one in its middle is taken.
    pub tries: usize,
}

impl Default for ResizedCrop {
    fn default() -> Self {
        Self { scale: (0.08, 1.0), ratio: (3.0 / 4.0, 4.0 / 3.0), tries: 10 }
    }
}

impl ResizedCrop {
    /// Checks the numbers.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for shares outside of 0 to 1, quotients that are not above 0, and pairs whose first number
    /// is the greater one.
    pub fn check(&self) -> Result<()> {
        let bad = |detail: String| Err(Error::InvalidArgument { what: "random resized crop", detail });
        let (scale, ratio) = (self.scale, self.ratio);
        if !(0.0 < scale.0 && scale.0 <= scale.1 && scale.1 <= 1.0) {
            return bad(format!(
                "scale = {scale:?}; it takes the least and the greatest share of the area, above 0 and up to 1"
            ));
        }
        if !(0.0 < ratio.0 && ratio.0 <= ratio.1 && ratio.1.is_finite()) {
            return bad(format!("ratio = {ratio:?}; it takes the least and the greatest width / height, above 0"));
        }
        Ok(())
    }

    /// The rectangle of an image of `size`, (width, height).
    pub(crate) fn choose(&self, size: (usize, usize), draws: &mut impl Draws) -> Crop {
        let area = size.0 as f64 * size.1 as f64;
        let logarithms = [self.ratio.0, self.ratio.1].map(|ratio| (ratio as f32).ln());
        for _ in 0..self.tries {
            let wanted = area * f64::from(draws.within(self.scale.0 as f32, self.scale.1 as f32));
            let shape = f64::from(draws.within(logarithms[0], logarithms[1]).exp());
            let [width, height] =
                [wanted * shape, wanted / shape].map(|product| product.sqrt().round_ties_even() as usize);
            if (1..=size.0).contains(&width) && (1..=size.1).contains(&height) {
                let y = draws.below(size.1 - height + 1);
                return Crop { x: draws.below(size.0 - width + 1), y, width, height };
            }
        }
        self.middle(size)
    }

    /// The largest rectangle in the middle whose shape is within the bounds.
    fn middle(&self, size: (usize, usize)) -> Crop {
        let shape = size.0 as f64 / size.1 as f64;
        let side = |side: f64, all: usize| (side.round_ties_even() as usize).clamp(1, all);
        let (width, height) = match () {
            () if shape < self.ratio.0 => (size.0, side(size.0 as f64 / self.ratio.0, size.1)),
            () if shape > self.ratio.1 => (side(size.1 as f64 * self.ratio.1, size.0), size.1),
            () => size,
        };
        Crop { x: (size.0 - width) / 2, y: (size.1 - height) / 2, width, height }
    }

    /// Columns and rows of the rectangle's left upper corner, and its width and height; what a run's
    /// [`Transform`](crate::transform::Transform) takes at a position is drawn by the position's stream.
    pub fn rectangle(&self, size: (usize, usize), draws: &mut impl Draws) -> [usize; 4] {
        let Crop { x, y, width, height } = self.choose(size, draws);
        [x, y, width, height]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use calotype_core::{Purpose, Stream};

    #[test]
    fn rectangles_lie_inside_and_have_the_areas_and_shapes_that_were_asked_for() {
        let crop = ResizedCrop::default();
        let mut stream = Stream::new(1, Purpose::Augmentation, 0);
        let mut areas = Vec::new();
        for _ in 0..2000 {
            let [x, y, width, height] = crop.rectangle((200, 160), &mut stream);
            assert!(x + width <= 200 && y + height <= 160);
            assert!((0.7..1.4).contains(&(width as f64 / height as f64)), "{width}x{height}");
            areas.push(width as f64 * height as f64 / 32_000.0);
        }
        let mean = areas.iter().sum::<f64>() / 2000.0;
        assert!((0.4..0.6).contains(&mean) && areas.iter().all(|area| (0.07..=1.0).contains(area)), "{mean}");
    }

    #[test]
    fn what_never_fits_is_cut_out_of_the_middle() {
        let none = ResizedCrop { tries: 0, ..ResizedCrop::default() };
        let mut stream = Stream::new(1, Purpose::Augmentation, 0);
        for (size, expected) in
            [((10, 100), [0, 43, 10, 13]), ((100, 10), [43, 0, 13, 10]), ((9, 8), [0, 0, 9, 8]), ((1, 1), [0, 0, 1, 1])]
        {
            assert_eq!(none.rectangle(size, &mut stream), expected);
        }
    }

    #[test]
    fn impossible_numbers_are_refused() {
        let usual = ResizedCrop::default();
        for (bad, part) in [
            (ResizedCrop { scale: (0.0, 1.0), ..usual }, "scale"),
            (ResizedCrop { scale: (0.5, 0.2), ..usual }, "scale"),
            (ResizedCrop { scale: (0.5, 1.5), ..usual }, "scale"),
            (ResizedCrop { scale: (f64::NAN, 1.0), ..usual }, "scale"),
            (ResizedCrop { ratio: (0.0, 1.0), ..usual }, "ratio"),
            (ResizedCrop { ratio: (2.0, 1.0), ..usual }, "ratio"),
            (ResizedCrop { ratio: (1.0, f64::INFINITY), ..usual }, "ratio"),
        ] {
            let error = bad.check().unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        usual.check().unwrap();
    }
}
