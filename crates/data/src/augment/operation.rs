//! One change of an image, with all its numbers.

use crate::image::{Matrix, RgbImage, Sampling};

/// A change of an image.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Operation {
    /// None.
    Identity,
    /// Sheared or moved ([`RgbImage::affine`]).
    Affine(Matrix),
    /// Turned counter-clockwise by so many degrees.
    Rotate(f64),
    /// Brightness by a factor.
    Brightness(f64),
    /// Saturation by a factor.
    Colour(f64),
    /// Hues turned by a share of the circle.
    Hue(f64),
    /// Contrast by a factor.
    Contrast(f64),
    /// Sharpness by a factor.
    Sharpness(f64),
    /// So many bits of each level are kept.
    Posterize(u32),
    /// Levels from this one on are inverted.
    Solarize(f64),
    /// Levels below 128 become brighter by this.
    SolarizeAdd(u8),
    /// Each channel is spread over all levels.
    AutoContrast,
    /// The levels of each channel become about equally frequent.
    Equalize,
    /// Levels are inverted.
    Invert,
}

impl Operation {
    /// Shifts by columns and rows: what lies at `(x, y)` is taken from `(x + columns, y + rows)`.
    pub(super) fn shift(columns: f64, rows: f64) -> Self {
        Self::Affine([1.0, 0.0, columns, 0.0, 1.0, rows])
    }

    /// The changed image. `sampling` and `fill` are of those that move pixels: how they are read, and what lies outside.
    #[must_use]
    pub fn apply(&self, image: RgbImage, sampling: Sampling, fill: [u8; 3]) -> RgbImage {
        match self {
            Self::Identity => image,
            Self::Affine(matrix) => image.affine(matrix, sampling, fill),
            Self::Rotate(degrees) => image.rotate(*degrees, sampling, fill),
            Self::Brightness(factor) => image.with_brightness(*factor),
            Self::Colour(factor) => image.with_colour(*factor),
            Self::Hue(turn) => image.with_hue(*turn),
            Self::Contrast(factor) => image.with_contrast(*factor),
            Self::Sharpness(factor) => image.with_sharpness(*factor),
            Self::Posterize(bits) => image.posterized(*bits),
            Self::Solarize(threshold) => image.solarized(*threshold),
            Self::SolarizeAdd(add) => image.solarize_added(*add),
            Self::AutoContrast => image.with_full_contrast(),
            Self::Equalize => image.equalized(),
            Self::Invert => image.inverted(),
        }
    }
}
