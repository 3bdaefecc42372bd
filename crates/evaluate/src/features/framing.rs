//! How a picture of any size becomes the square that a network looks at, level by level as the publishers of figures do it.

use calotype_checkpoints::{Filter as NamedFilter, ImageProcessor, Resize};
use calotype_data::image::{Filter, RgbImage};

/// Whose resizing it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Resampler {
    /// Pillow's, of 8-bit pictures.
    Pillow(Filter),
    /// torch's, of 8-bit tensors with antialiasing.
    Torch(Filter),
}

impl Resampler {
    fn resize(self, image: &RgbImage, width: usize, height: usize) -> Result<RgbImage, calotype_data::Error> {
        match self {
            // Pillow gives the picture back where it has the size already.
            _ if (image.width(), image.height()) == (width, height) => Ok(image.clone()),
            Self::Pillow(filter) => image.resize(width, height, filter),
            Self::Torch(filter) => image.resize_as_torch(width, height, filter),
        }
    }
}

impl std::fmt::Display for Resampler {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (whose, filter) = match self {
            Self::Pillow(filter) => ("Pillow", filter),
            Self::Torch(filter) => ("torch", filter),
        };
        write!(formatter, "{whose}'s {}", format!("{filter:?}").to_lowercase())
    }
}

/// Where a middle begins that cannot be centred.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Half {
    /// Half a pixel is rounded to even: torchvision's `CenterCrop`, as Python's `round` does it.
    Even,
    /// Half a pixel is left out: transformers' image processors, and the reference of CMMD.
    Down,
}

impl Half {
    fn start(self, all: usize, part: usize) -> usize {
        let spare = all.saturating_sub(part);
        match self {
            Self::Even => (spare as f64 / 2.0).round_ties_even() as usize,
            Self::Down => spare / 2,
        }
    }
}

/// What of the picture is seen, and in which size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum View {
    /// The shorter side is resized to this many pixels, the other in proportion, rounded down; the middle is cut out.
    Shorter(usize, Half),
    /// The middle square is cut out, then resized.
    MiddleSquare(Half),
    /// The whole picture is squeezed into the square.
    Whole,
}

/// A published way to make the square.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Framing {
    pub(crate) view: View,
    pub(crate) resampler: Resampler,
}

impl Framing {
    /// That of a `preprocessor_config.json`, as transformers 5 follows it; none for filters that torch does not have, and for
    /// what is not cut to a square of `side` pixels.
    pub(crate) fn of_processor(processor: &ImageProcessor, side: usize) -> Option<Self> {
        let filter = match processor.filter {
            NamedFilter::Bicubic => Filter::Bicubic,
            NamedFilter::Bilinear => Filter::Bilinear,
            _ => return None,
        };
        let view = match (processor.resize, processor.crop) {
            (Resize::ShortestEdge(shorter), Some(crop)) if crop == [side; 2] && shorter >= side => {
                View::Shorter(shorter, Half::Down)
            }
            (Resize::Exact(size), crop) if size == [side; 2] && crop.is_none_or(|crop| crop == [side; 2]) => {
                View::Whole
            }
            _ => return None,
        };
        Some(Self { view, resampler: Resampler::Torch(filter) })
    }

    /// The square of `side` x `side` pixels.
    ///
    /// # Errors
    /// Those of resizing and of cutting.
    pub(crate) fn apply(&self, image: &RgbImage, side: usize) -> Result<RgbImage, calotype_data::Error> {
        let (width, height) = (image.width(), image.height());
        let shorter = width.min(height);
        match self.view {
            View::Whole => self.resampler.resize(image, side, side),
            View::MiddleSquare(half) => {
                let square = image.crop(half.start(width, shorter), half.start(height, shorter), shorter, shorter)?;
                self.resampler.resize(&square, side, side)
            }
            View::Shorter(to, half) => {
                let scaled = |n: usize| if n == shorter { to } else { to.saturating_mul(n) / shorter };
                let resized = self.resampler.resize(image, scaled(width), scaled(height))?;
                let (x, y) = (half.start(resized.width(), side), half.start(resized.height(), side));
                resized.crop(x, y, side, side)
            }
        }
    }

    /// What is done, for fingerprints.
    pub(crate) fn describe(&self, side: usize) -> String {
        let by = self.resampler;
        let halves = |half: Half| if half == Half::Even { "to even" } else { "down" };
        match self.view {
            View::Shorter(to, half) => {
                format!("shorter side to {to} by {by}, middle {side}x{side} with halves rounded {}", halves(half))
            }
            View::MiddleSquare(half) => {
                format!("middle square with halves rounded {}, to {side}x{side} by {by}", halves(half))
            }
            View::Whole => format!("to {side}x{side} by {by}"),
        }
    }

    /// Where levels are rounded, for fingerprints.
    pub(crate) fn rounding(&self) -> String {
        "8-bit levels after each pass".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(width: usize, height: usize) -> RgbImage {
        RgbImage::new(width, height, (0..width * height * 3).map(|i| (i * 37 % 251) as u8).collect()).unwrap()
    }

    #[test]
    fn middles_that_cannot_be_centred() {
        // One pixel is over: torchvision rounds 0.5 and 2.5 to even, 1.5 up; the others begin one pixel earlier or not.
        for (spare, even, down) in [(1, 0, 0), (3, 2, 1), (5, 2, 2), (7, 4, 3), (4, 2, 2)] {
            assert_eq!((Half::Even.start(10 + spare, 10), Half::Down.start(10 + spare, 10)), (even, down), "{spare}");
        }
        let image = picture(13, 10);
        let framing = |half| Framing { view: View::Shorter(10, half), resampler: Resampler::Pillow(Filter::Bicubic) };
        assert_eq!(framing(Half::Even).apply(&image, 10).unwrap(), image.crop(2, 0, 10, 10).unwrap());
        assert_eq!(framing(Half::Down).apply(&image, 10).unwrap(), image.crop(1, 0, 10, 10).unwrap());
        let square = Framing { view: View::MiddleSquare(Half::Down), resampler: Resampler::Pillow(Filter::Bicubic) };
        assert_eq!(square.apply(&image, 10).unwrap(), image.crop(1, 0, 10, 10).unwrap());
    }

    #[test]
    fn files_of_processors_that_can_be_followed() {
        let clip = ImageProcessor::clip(32);
        let framing = Framing::of_processor(&clip, 32).unwrap();
        assert_eq!(framing.view, View::Shorter(32, Half::Down));
        assert_eq!(framing.resampler, Resampler::Torch(Filter::Bicubic));
        assert_eq!(Framing::of_processor(&ImageProcessor::vit(32), 32).unwrap().view, View::Whole);
        assert_eq!(Framing::of_processor(&clip, 16), None);
        let lanczos = ImageProcessor { filter: NamedFilter::Lanczos, ..clip };
        assert_eq!(Framing::of_processor(&lanczos, 32), None);
    }
}
