//! From an image file to the input of a model: decode, resize, crop, flip, scale.
//!
//! The result is a pure function of the settings ([`Transform`]), the file, and (seed, position): the draws of position
//! `p` are those of the stream (seed, [`Purpose::Augmentation`], `p`), in the order column, row, flip, whether they are
//! used or not. A resumed run, or one over more ranks, therefore crops and flips as an undisturbed one, and turning the
//! flip on does not move the crops.
//!
//! All that is not random equals torchvision on Pillow images byte for byte: `Resize(side)` (the longer side rounded
//! down), `CenterCrop` (half a pixel rounded to even). `RandomCrop` draws from the same corners, each as likely, but
//! from another generator. Unlike torchvision's crops, none pads: one larger than the image is an error.

use std::cell::RefCell;
use std::sync::Arc;

use calotype_core::{Purpose, Stream};
use serde::{Deserialize, Serialize};

use crate::buckets::{BucketSettings, Buckets};
use crate::image::{self, Crop, DecodeNotes, DecodeOptions, Filter, RgbImage, resample};
use crate::{Error, Result};

/// Size to which an image is brought.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resize {
    /// As it is.
    None,
    /// The shorter side to so many pixels, the longer one in proportion.
    Shorter(usize),
    /// To (width, height), whatever its shape.
    Exact(usize, usize),
    /// So that it covers the nearest of these buckets, which is then cut out of it.
    Bucket(BucketSettings),
}

/// Position of a crop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// In the middle.
    #[default]
    Center,
    /// Anywhere, by (seed, position).
    Random,
}

/// Size and position of a crop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CropSettings {
    /// Position of the rectangle.
    pub place: Place,
    /// Width and height in pixels; where absent, the square of [`Resize::Shorter`], or the bucket.
    pub size: Option<(usize, usize)>,
}

/// Order of the numbers of a tensor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// `[height, width, 3]`, as the models of this project take images.
    #[default]
    Hwc,
    /// `[3, height, width]`, as PyTorch's do.
    Chw,
}

/// Settings of an [`ImageTransform`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Transform {
    /// Limits of decoding, and what is made of orientation and transparency.
    pub decode: DecodeOptions,
    /// Size to which the image is brought.
    pub resize: Resize,
    /// Filter of the resizing.
    pub filter: Filter,
    /// Crop of the resized image; none if absent, except for buckets.
    pub crop: Option<CropSettings>,
    /// Probability of mirroring left and right.
    pub flip: f32,
    /// Values of levels 0 and 255.
    pub range: (f32, f32),
    /// Order of the numbers.
    pub layout: Layout,
}

impl Default for Transform {
    /// The MLPerf reference's: shorter side to 512 (bicubic), the middle 512 x 512, -1 to 1.
    fn default() -> Self {
        Transform {
            decode: DecodeOptions::default(),
            resize: Resize::Shorter(512),
            filter: Filter::Bicubic,
            crop: Some(CropSettings::default()),
            flip: 0.0,
            range: (-1.0, 1.0),
            layout: Layout::Hwc,
        }
    }
}

/// The numbers that SDXL is conditioned on (Podell et al., section 2.2), in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SizeConditioning {
    /// Height and width of the image before resizing (upright, if it was turned).
    pub original: (usize, usize),
    /// Row and column of the crop's upper left corner in the resized image, mirrored first where it is mirrored: as
    /// diffusers' SDXL training counts them.
    pub crop_top_left: (usize, usize),
    /// Height and width of the result.
    pub target: (usize, usize),
}

/// Sizes, rectangle and flip of one image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Geometry {
    resized: (usize, usize),
    crop: Crop,
    flip: bool,
    conditioning: SizeConditioning,
}

/// A [`Transform`] whose settings have been checked.
#[derive(Clone, Debug)]
pub struct ImageTransform {
    settings: Transform,
    buckets: Option<Buckets>,
    notes: Arc<DecodeNotes>,
}

thread_local! {
    /// The decoded and the resized image, kept for the thread's next ones.
    static SCRATCH: RefCell<(Vec<u8>, Vec<u8>)> = const { RefCell::new((Vec::new(), Vec::new())) };
}

impl Transform {
    /// Checks the settings and makes them ready.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a probability out of 0 to 1, a range that is not finite, and sizes that do not
    /// fit together.
    pub fn build(self) -> Result<ImageTransform> {
        let bad = |what: &'static str, detail: String| Err(Error::InvalidArgument { what, detail });
        if !(0.0..=1.0).contains(&self.flip) {
            return bad("flip", format!("{} is no probability", self.flip));
        }
        if !self.range.0.is_finite() || !self.range.1.is_finite() {
            return bad("range", format!("{:?}", self.range));
        }
        let cut = self.crop.and_then(|crop| crop.size);
        match (&self.resize, cut) {
            (Resize::Bucket(_), Some(size)) => {
                return bad("crop size", format!("{size:?}; of buckets they are cut out"));
            }
            (Resize::Exact(w, h), Some((width, height))) if width > *w || height > *h => {
                return bad("crop size", format!("{width}x{height} out of {w}x{h}"));
            }
            (Resize::None, None) if self.crop.is_some() => {
                return bad("crop size", "none; without resizing it has to be said".to_owned());
            }
            _ => {}
        }
        let buckets = match &self.resize {
            Resize::Bucket(settings) => Some(Buckets::new(settings)?),
            _ => None,
        };
        Ok(ImageTransform { settings: self, buckets, notes: Arc::default() })
    }
}

impl ImageTransform {
    /// The settings.
    pub fn settings(&self) -> &Transform {
        &self.settings
    }

    /// What was changed besides, in images decoded so far; clones count together.
    pub fn notes(&self) -> Vec<String> {
        self.notes.sentences(&self.settings.decode)
    }

    /// The buckets, if images go into such.
    pub fn buckets(&self) -> Option<&Buckets> {
        self.buckets.as_ref()
    }

    /// Width and height that every image comes out with, unless they differ.
    pub fn fixed_size(&self) -> Option<(usize, usize)> {
        match (&self.settings.resize, self.settings.crop) {
            (_, Some(CropSettings { size: Some(size), .. })) => Some(size),
            (Resize::Shorter(side), Some(_)) => Some((*side, *side)),
            (Resize::Exact(width, height), _) => Some((*width, *height)),
            _ => None,
        }
    }

    /// The image of `bytes`, transformed as `position` of a run with `seed` is. `key` names the sample in errors.
    ///
    /// # Errors
    /// [`Error::BadImage`], [`Error::InvalidArgument`] for a crop that the image is too small for.
    pub fn image(&self, key: &str, bytes: &[u8], seed: u64, position: u64) -> Result<(RgbImage, SizeConditioning)> {
        self.with_levels(key, bytes, seed, position, |levels, plan| {
            let mut image = RgbImage::new(plan.crop.width, plan.crop.height, std::mem::take(levels))?;
            if plan.flip {
                image.mirror();
            }
            Ok((image, plan.conditioning))
        })
    }

    /// The same as numbers, appended to `out` in the settings' range and layout.
    ///
    /// # Errors
    /// Those of [`ImageTransform::image`]; nothing is appended then.
    pub fn append(
        &self,
        key: &str,
        bytes: &[u8],
        seed: u64,
        position: u64,
        out: &mut Vec<f32>,
    ) -> Result<SizeConditioning> {
        self.with_levels(key, bytes, seed, position, |levels, plan| {
            let (width, flip) = (plan.crop.width, plan.flip);
            image::append_levels(levels, width, self.settings.range, flip, self.settings.layout, out);
            Ok(plan.conditioning)
        })
    }

    /// An image of [`ImageTransform::image`] as numbers, appended to `out` in the settings' range and layout. Images take
    /// a quarter of the memory of their numbers: threads should pass on images, and the batch be made of them at the
    /// end.
    pub fn append_image(&self, image: &RgbImage, out: &mut Vec<f32>) {
        let (range, layout) = (self.settings.range, self.settings.layout);
        image::append_levels(image.data(), image.width(), range, false, layout, out);
    }

    fn with_levels<T>(
        &self,
        key: &str,
        bytes: &[u8],
        seed: u64,
        position: u64,
        take: impl FnOnce(&mut Vec<u8>, &Geometry) -> Result<T>,
    ) -> Result<T> {
        SCRATCH.with_borrow_mut(|(decoded, cut)| {
            let found = image::decode_rgb_into(key, bytes, &self.settings.decode, decoded)?;
            self.notes.add(&found);
            let size = found.size;
            let plan = self.plan(size, &mut Stream::new(seed, Purpose::Augmentation, position))?;
            resample::resize_crop::<3>(decoded, size, plan.resized, &plan.crop, self.settings.filter, cut)?;
            let taken = take(cut, &plan);
            image::release_if_large(decoded);
            image::release_if_large(cut);
            taken
        })
    }

    fn plan(&self, size: (usize, usize), stream: &mut Stream) -> Result<Geometry> {
        let (resized, wanted) = self.sizes(size)?;
        let (width, height) = wanted;
        if width > resized.0 || height > resized.1 {
            let detail = format!("{width}x{height} out of {}x{} pixels", resized.0, resized.1);
            return Err(Error::InvalidArgument { what: "crop size", detail });
        }
        let room = (resized.0 - width, resized.1 - height);
        let drawn = (stream.below(room.0 as u64 + 1) as usize, stream.below(room.1 as u64 + 1) as usize);
        let flip = stream.uniform() < self.settings.flip;
        let middle = |room: usize| (room as f64 / 2.0).round_ties_even() as usize;
        let (x, y) = match self.settings.crop.unwrap_or_default().place {
            Place::Center => (middle(room.0), middle(room.1)),
            Place::Random => drawn,
        };
        let left = if flip { room.0 - x } else { x };
        let conditioning =
            SizeConditioning { original: (size.1, size.0), crop_top_left: (y, left), target: (height, width) };
        Ok(Geometry { resized, crop: Crop { x, y, width, height }, flip, conditioning })
    }

    /// Size after resizing, and size of the crop.
    fn sizes(&self, size: (usize, usize)) -> Result<((usize, usize), (usize, usize))> {
        let resized = match (&self.settings.resize, &self.buckets) {
            (Resize::None, _) => size,
            (Resize::Shorter(side), _) => image::shorter_to(size, *side)?,
            (Resize::Exact(width, height), _) => (*width, *height),
            (Resize::Bucket(_), Some(buckets)) => {
                let bucket = buckets.sizes()[buckets.nearest(size.0, size.1)];
                return Ok((cover(size, bucket), bucket));
            }
            (Resize::Bucket(_), None) => unreachable!("`build` makes the buckets"),
        };
        let cut = match (self.settings.crop, &self.settings.resize) {
            (Some(CropSettings { size: Some(cut), .. }), _) => cut,
            (Some(_), Resize::Shorter(side)) => (*side, *side),
            _ => resized,
        };
        Ok((resized, cut))
    }
}

/// The least size of the same shape that covers `target`, the longer side rounded to the nearest.
fn cover(size: (usize, usize), target: (usize, usize)) -> (usize, usize) {
    // In 128 bits no product of three sides overflows.
    let scaled = |side: usize, to: usize, from: usize| {
        ((2 * side as u128 * to as u128 + from as u128) / (2 * from as u128)) as usize
    };
    if size.0 as u128 * target.1 as u128 >= size.1 as u128 * target.0 as u128 {
        (scaled(size.0, target.1, size.1).max(target.0), target.1)
    } else {
        (target.0, scaled(size.1, target.0, size.0).max(target.1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::PngEffort;

    fn png(width: usize, height: usize) -> Vec<u8> {
        let data = (0..width * height * 3).map(|i| (i * i % 251) as u8).collect();
        RgbImage::new(width, height, data).unwrap().encode_png(PngEffort::Fast).unwrap()
    }

    fn random() -> Transform {
        let crop = Some(CropSettings { place: Place::Random, size: None });
        Transform { resize: Resize::Shorter(16), crop, flip: 0.5, ..Transform::default() }
    }

    #[test]
    fn draws_are_a_function_of_seed_and_position_alone() {
        let pipeline = random().build().unwrap();
        let file = png(60, 33);
        let make = |seed, position| pipeline.image("x", &file, seed, position).unwrap();
        let first: Vec<_> = (0..40).map(|p| make(5, p)).collect();
        for p in (0..40).rev() {
            assert_eq!(make(5, p), first[p as usize]);
        }
        let corners: std::collections::BTreeSet<_> = first.iter().map(|(_, c)| c.crop_top_left).collect();
        assert!(corners.len() > 5 && corners.iter().all(|(y, x)| *y == 0 && *x <= 13), "{corners:?}");
        assert_ne!(make(6, 0), make(5, 0));
        // Without flips the crops are the same ones.
        let still = Transform { flip: 0.0, ..random() }.build().unwrap();
        for (p, (image, conditioning)) in first.iter().enumerate() {
            let (plain, at) = still.image("x", &file, 5, p as u64).unwrap();
            if *image != plain {
                assert_eq!(plain.flip_horizontal(), *image);
                assert_eq!(conditioning.crop_top_left.1, 29 - 16 - at.crop_top_left.1);
            }
        }
    }

    #[test]
    fn every_step_is_that_of_the_image_type() {
        let file = png(47, 31);
        let image = RgbImage::decode("x", &file).unwrap();
        let settings = Transform { resize: Resize::Shorter(20), ..Transform::default() };
        let (found, conditioning) = settings.build().unwrap().image("x", &file, 0, 0).unwrap();
        let expected = image.resize_shorter(20, Filter::Bicubic).unwrap().center_crop(20, 20).unwrap();
        assert_eq!(found, expected);
        let expected = SizeConditioning { original: (31, 47), crop_top_left: (0, 5), target: (20, 20) };
        assert_eq!(conditioning, expected);
    }

    #[test]
    fn numbers_are_those_of_the_image_in_both_layouts() {
        let file = png(40, 50);
        for layout in [Layout::Hwc, Layout::Chw] {
            let pipeline = Transform { layout, ..random() }.build().unwrap();
            for position in 0..8 {
                let (image, _) = pipeline.image("x", &file, 1, position).unwrap();
                let mut numbers = vec![7.0];
                pipeline.append("x", &file, 1, position, &mut numbers).unwrap();
                let mut again = Vec::new();
                pipeline.append_image(&image, &mut again);
                assert_eq!(again, numbers[1..]);
                let hwc = image.to_f32_hwc(-1.0, 1.0);
                let expected: Vec<f32> = match layout {
                    Layout::Hwc => hwc,
                    Layout::Chw => (0..3).flat_map(|c| hwc[c..].iter().step_by(3).copied()).collect(),
                };
                assert_eq!((numbers[0], &numbers[1..]), (7.0, expected.as_slice()), "{layout:?} {position}");
            }
        }
    }

    #[test]
    fn buckets_are_covered_and_cut_out() {
        let settings = BucketSettings { side: 64, step: 16, shortest: 32, longest: 128 };
        let pipeline = Transform { resize: Resize::Bucket(settings), ..random() }.build().unwrap();
        for (width, height) in [(100, 100), (30, 90), (333, 10), (64, 48), (1, 1)] {
            let (image, conditioning) = pipeline.image("x", &png(width, height), 1, 1).unwrap();
            let buckets = pipeline.buckets().unwrap();
            let bucket = buckets.sizes()[buckets.nearest(width, height)];
            assert_eq!((image.width(), image.height()), bucket);
            assert_eq!(conditioning.original, (height, width));
        }
        assert_eq!(cover((640, 480), (576, 448)), (597, 448));
        assert_eq!(cover((480, 640), (448, 576)), (448, 597));
    }

    #[test]
    fn settings_are_read_and_refused_by_name() {
        let text = r#"{"resize": {"shorter": 256}, "crop": {"place": "random"}, "flip": 0.5, "filter": "lanczos"}"#;
        let read: Transform = serde_json::from_str(text).unwrap();
        assert_eq!((read.resize.clone(), read.filter), (Resize::Shorter(256), Filter::Lanczos3));
        assert_eq!(read.build().unwrap().fixed_size(), Some((256, 256)));
        let unknown = serde_json::from_str::<Transform>(r#"{"crops": 3}"#).unwrap_err().to_string();
        assert!(unknown.contains("crops") && unknown.contains("crop"), "{unknown}");
        let size = Some(CropSettings { place: Place::Center, size: Some((9, 9)) });
        let bad = [
            Transform { flip: 1.5, ..random() },
            Transform { flip: f32::NAN, ..random() },
            Transform { range: (0.0, f32::INFINITY), ..random() },
            Transform { resize: Resize::None, ..random() },
            Transform { resize: Resize::Exact(8, 20), crop: size, ..random() },
            Transform { resize: Resize::Bucket(BucketSettings::default()), crop: size, ..random() },
        ];
        for settings in bad {
            assert!(matches!(settings.clone().build(), Err(Error::InvalidArgument { .. })), "{settings:?}");
        }
        let small = Transform { resize: Resize::None, crop: size, ..random() }.build().unwrap();
        assert!(matches!(small.image("x", &png(20, 8), 0, 0), Err(Error::InvalidArgument { .. })));
    }
}
