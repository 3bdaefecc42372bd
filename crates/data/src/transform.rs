//! From an image file to the input of a model: decode, resize, crop, flip, scale.
//!
//! The result is a pure function of the settings ([`Transform`]), the file, and (seed, position): the draws of position
//! `p` are those of the stream (seed, [`Purpose::Augmentation`], `p`), in the order column, row, flip, whether they are
//! used or not. A resumed run, or one over more ranks, therefore crops and flips as an undisturbed one, and turning the
//! flip on does not move the crops.
//!
//! All that is not random equals torchvision on Pillow images byte for byte: `Resize(side)` (the longer side rounded
//! down), `CenterCrop` (half a pixel rounded to even). `RandomCrop` draws from the same corners, each as likely, but
//! from another generator. Unlike torchvision's crops, none pads: one larger than the image is an error. With
//! [`Resize::Cropped`] the draws are those of the rectangle and then the flip. What colour jitter, AutoAugment and RandAugment
//! do is drawn from streams of their own ([`Purpose::ColourJitter`], [`Purpose::RandAugment`]), so that they move neither crops
//! nor flips.

use std::cell::RefCell;
use std::sync::Arc;

use calotype_core::{Purpose, Stream};
use serde::{Deserialize, Serialize};

use crate::augment::{AutoAugment, ColourJitter, RandAugment, ResizedCrop};
use crate::buckets::{BucketSettings, Buckets};
use crate::image::{self, Crop, DecodeNotes, DecodeOptions, Filter, LevelTable, RgbImage, resample};
use crate::{Error, Result};

/// Size to which an image is brought.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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
    /// A random rectangle of it to the square of this side.
    Cropped(usize, ResizedCrop),
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
    /// How the colours of the cut and mirrored image are jittered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub colour_jitter: Option<ColourJitter>,
    /// Whose policies AutoAugment follows then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auto_augment: Option<AutoAugment>,
    /// What RandAugment does instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rand_augment: Option<RandAugment>,
    /// Values of levels 0 and 255.
    pub range: (f32, f32),
    /// Mean and deviation of red, green and blue, by which values from 0 to 1 are moved and scaled, instead of `range`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub normalise: Option<([f32; 3], [f32; 3])>,
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
            colour_jitter: None,
            auto_augment: None,
            rand_augment: None,
            range: (-1.0, 1.0),
            normalise: None,
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
    /// What is cut out before resizing, if anything is.
    cut_first: Option<Crop>,
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
    /// Normalised numbers of all levels.
    normalised: Option<Arc<LevelTable>>,
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
        if let Some((mean, deviation)) = self.normalise
            && !(mean.iter().all(|mean| mean.is_finite()) && deviation.iter().all(|it| it.is_finite() && *it > 0.0))
        {
            return bad("normalise", format!("mean {mean:?}, deviation {deviation:?}; deviations are above 0"));
        }
        if self.auto_augment.is_some() && self.rand_augment.is_some() {
            return bad("rand_augment", "beside AutoAugment; leave one of both out".to_owned());
        }
        self.colour_jitter.as_ref().map_or(Ok(()), ColourJitter::check)?;
        self.rand_augment.as_ref().map_or(Ok(()), RandAugment::check)?;
        let cut = self.crop.and_then(|crop| crop.size);
        match (&self.resize, cut) {
            (Resize::Cropped(..), _) if self.crop.is_some() => {
                return bad("crop", "beside a random resized crop; leave one of both out".to_owned());
            }
            (Resize::Cropped(0, _), _) => return bad("random resized crop", "to a side of 0 pixels".to_owned()),
            (Resize::Cropped(_, crop), _) => crop.check()?,
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
        let normalised = self.normalise.map(level_table).map(Arc::new);
        Ok(ImageTransform { settings: self, buckets, normalised, notes: Arc::default() })
    }
}

impl Transform {
    fn changes_colours(&self) -> bool {
        self.colour_jitter.is_some() || self.auto_augment.is_some() || self.rand_augment.is_some()
    }

    /// An image that is cut and mirrored, as it is changed at a position.
    fn changed(&self, mut image: RgbImage, seed: u64, position: u64) -> RgbImage {
        let stream = |purpose| Stream::new(seed, purpose, position);
        if let Some(jitter) = &self.colour_jitter {
            image = jitter.apply(image, &mut stream(Purpose::ColourJitter));
        }
        if let Some(augment) = self.auto_augment {
            image = augment.apply(image, &mut stream(Purpose::RandAugment));
        }
        if let Some(augment) = &self.rand_augment {
            image = augment.apply(image, &mut stream(Purpose::RandAugment));
        }
        image
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
            (Resize::Cropped(side, _), _) => Some((*side, *side)),
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
            if plan.flip && self.normalised.is_some() {
                image::mirror(levels, plan.crop.width);
            }
            self.append_levels(levels, plan.crop.width, plan.flip, out);
            Ok(plan.conditioning)
        })
    }

    /// An image of [`ImageTransform::image`] as numbers, appended to `out` in the settings' range and layout. Images take
    /// a quarter of the memory of their numbers: threads should pass on images, and the batch be made of them at the
    /// end.
    pub fn append_image(&self, image: &RgbImage, out: &mut Vec<f32>) {
        self.append_levels(image.data(), image.width(), false, out);
    }

    /// Levels as numbers; those that are normalised have been mirrored already.
    fn append_levels(&self, levels: &[u8], width: usize, flip: bool, out: &mut Vec<f32>) {
        let (range, layout) = (self.settings.range, self.settings.layout);
        match &self.normalised {
            None => image::append_levels(levels, width, range, flip, layout, out),
            Some(table) => image::append_looked_up(levels, table, layout, out),
        }
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
            let mut plan = self.plan(size, &mut Stream::new(seed, Purpose::Augmentation, position))?;
            let size = match &plan.cut_first {
                None => size,
                Some(crop) => {
                    resample::copy_crop::<3>(decoded, size.0, crop, cut);
                    std::mem::swap(decoded, cut);
                    (crop.width, crop.height)
                }
            };
            resample::resize_crop::<3>(decoded, size, plan.resized, &plan.crop, self.settings.filter, cut)?;
            if self.settings.changes_colours() {
                let mut image = RgbImage::new(plan.crop.width, plan.crop.height, std::mem::take(cut))?;
                if std::mem::take(&mut plan.flip) {
                    image.mirror();
                }
                *cut = self.settings.changed(image, seed, position).into_data();
            }
            let taken = take(cut, &plan);
            image::release_if_large(decoded);
            image::release_if_large(cut);
            taken
        })
    }

    fn plan(&self, size: (usize, usize), stream: &mut Stream) -> Result<Geometry> {
        if let Resize::Cropped(side, crop) = &self.settings.resize {
            let cut = crop.choose(size, stream);
            let resized = (*side, *side);
            let conditioning =
                SizeConditioning { original: (size.1, size.0), crop_top_left: (cut.y, cut.x), target: resized };
            let flip = stream.uniform() < self.settings.flip;
            return Ok(Geometry { cut_first: Some(cut), resized, crop: Crop::all(resized), flip, conditioning });
        }
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
        Ok(Geometry { cut_first: None, resized, crop: Crop { x, y, width, height }, flip, conditioning })
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
            (Resize::Cropped(side, _), _) => (*side, *side),
        };
        let cut = match (self.settings.crop, &self.settings.resize) {
            (Some(CropSettings { size: Some(cut), .. }), _) => cut,
            (Some(_), Resize::Shorter(side)) => (*side, *side),
            _ => resized,
        };
        Ok((resized, cut))
    }
}

/// The numbers of all levels, as torchvision's `ToTensor` and `Normalize` compute them.
fn level_table((mean, deviation): ([f32; 3], [f32; 3])) -> LevelTable {
    std::array::from_fn(|channel| {
        std::array::from_fn(|level| (level as f32 / 255.0 - mean[channel]) / deviation[channel])
    })
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
    use crate::augment::TorchvisionRandAugment;
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
    fn rectangles_are_cut_out_resized_mirrored_and_changed() {
        let file = png(60, 33);
        let image = RgbImage::decode("x", &file).unwrap();
        let crop = ResizedCrop::default();
        let augment = RandAugment::Torchvision(TorchvisionRandAugment::default());
        let plain = Transform { resize: Resize::Cropped(16, crop), crop: None, flip: 0.5, ..Transform::default() };
        let jitter = ColourJitter { brightness: 0.4, contrast: 0.4, saturation: 0.4, hue: 0.1 };
        let changed = Transform { rand_augment: Some(augment), ..plain.clone() };
        let policies = Some(AutoAugment::Imagenet);
        let nemo = Transform { colour_jitter: Some(jitter), auto_augment: policies, ..plain.clone() };
        let [plain, changed, nemo] = [plain, changed, nemo].map(|settings| settings.build().unwrap());
        assert_eq!(plain.fixed_size(), Some((16, 16)));
        let (mut mirrored, mut different) = (0, 0);
        for position in 0..40 {
            let mut stream = Stream::new(9, Purpose::Augmentation, position);
            let [x, y, width, height] = crop.rectangle((60, 33), &mut stream);
            let mut expected = image.crop(x, y, width, height).unwrap().resize(16, 16, Filter::Bicubic).unwrap();
            if stream.uniform() < 0.5 {
                expected.mirror();
                mirrored += 1;
            }
            let (found, conditioning) = plain.image("x", &file, 9, position).unwrap();
            assert_eq!((&found, conditioning.crop_top_left), (&expected, (y, x)), "{position}");
            let jittered = jitter.apply(expected.clone(), &mut Stream::new(9, Purpose::ColourJitter, position));
            let as_nemo = AutoAugment::Imagenet.apply(jittered, &mut Stream::new(9, Purpose::RandAugment, position));
            assert_eq!(nemo.image("x", &file, 9, position).unwrap().0, as_nemo, "{position}");
            let expected = augment.apply(expected, &mut Stream::new(9, Purpose::RandAugment, position));
            assert_eq!(changed.image("x", &file, 9, position).unwrap().0, expected, "{position}");
            different += usize::from(expected != found);
            let mut numbers = Vec::new();
            changed.append("x", &file, 9, position, &mut numbers).unwrap();
            assert_eq!(numbers, expected.to_f32_hwc(-1.0, 1.0), "{position}");
        }
        assert!((8..32).contains(&mirrored) && different > 15, "{mirrored} {different}");
    }

    #[test]
    fn numbers_are_normalised_channel_by_channel() {
        let (mean, deviation) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);
        let file = png(20, 20);
        for layout in [Layout::Hwc, Layout::Chw] {
            let normalise = Some((mean, deviation));
            let pipeline = Transform { layout, normalise, flip: 1.0, ..random() }.build().unwrap();
            let (image, _) = pipeline.image("x", &file, 1, 2).unwrap();
            let mut numbers = Vec::new();
            pipeline.append("x", &file, 1, 2, &mut numbers).unwrap();
            let pixels = image.width() * image.height();
            for (at, level) in image.data().iter().enumerate() {
                let expected = (f32::from(*level) / 255.0 - mean[at % 3]) / deviation[at % 3];
                let place = if layout == Layout::Hwc { at } else { at % 3 * pixels + at / 3 };
                assert_eq!(numbers[place], expected, "{layout:?} {at}");
            }
        }
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
        let no_bins = TorchvisionRandAugment { bins: 0, ..TorchvisionRandAugment::default() };
        let bad = [
            Transform { flip: 1.5, ..random() },
            Transform { flip: f32::NAN, ..random() },
            Transform { normalise: Some(([0.5; 3], [0.5, 0.0, 0.5])), ..random() },
            Transform { normalise: Some(([f32::NAN; 3], [0.5; 3])), ..random() },
            Transform { resize: Resize::Cropped(8, ResizedCrop::default()), ..random() },
            Transform { resize: Resize::Cropped(0, ResizedCrop::default()), crop: None, ..random() },
            Transform { rand_augment: Some(RandAugment::Torchvision(no_bins)), ..random() },
            Transform { colour_jitter: Some(ColourJitter { hue: 1.0, ..ColourJitter::default() }), ..random() },
            Transform {
                auto_augment: Some(AutoAugment::Imagenet),
                rand_augment: Some(RandAugment::Torchvision(TorchvisionRandAugment::default())),
                ..random()
            },
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
