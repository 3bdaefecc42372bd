//! The table `[data]`.

use super::{SettingError, check, is_no, is_usual};
use crate::captions::CaptionSettings;
use crate::precache::ResizeFilter;
use calotype_checkpoints::{CLIP_MEAN, CLIP_STD};
use calotype_data::augment::{AutoAugment, ColourJitter, RandAugment, ResizedCrop};
use calotype_data::image::{Background, DecodeOptions};
use calotype_data::source::SampleFilter;
use calotype_data::source::folder::IMAGE_EXTENSIONS;
use calotype_data::transform::Place;
use calotype_data::{OnError, OrderConfig, Shuffle, SourceOptions};
use serde::{Deserialize, Serialize};

/// Decoding threads at most: more than the largest machines have processors for, and less than what systems refuse.
const MOST_THREADS: usize = 512;

/// One source of a mixture.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WeightedSource {
    /// As `path` of the data's settings.
    pub path: String,
    /// How often its samples are seen, in proportion to the other sources' weights.
    #[serde(default = "weight")]
    pub weight: f64,
}

fn weight() -> f64 {
    1.0
}

/// Source of the samples and how they are read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSettings {
    /// Source of the samples: a folder of shards, images or parquet files, a pattern or list of shards
    /// (`data/{00000..00831}.tar`), here or on other machines (`https://`, `s3://`, `gs://`, `az://`).
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub path: String,
    /// Several of these instead, each with a weight.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<WeightedSource>,
    /// How they are read: kind, columns, cache of shards on other machines, whether samples of `quarantine.json` are
    /// left out.
    #[serde(default, skip_serializing_if = "is_usual")]
    pub source: SourceOptions,
    /// Which samples are taken, by the size of their images and by figures of their metadata.
    #[serde(default, skip_serializing_if = "is_usual")]
    pub filter: SampleFilter,
    /// How samples are mixed: `full`, `sequential`, or `shards = { buffer = N }`, which reads shards one after the other.
    #[serde(default, skip_serializing_if = "is_usual")]
    pub shuffle: Shuffle,
    /// Whether epochs draw samples with replacement, as `resampled = True` of the `webdataset` library.
    #[serde(default, skip_serializing_if = "is_no")]
    pub resampled: bool,
    /// Extensions of the image's part, for tasks that read images; the first one that a sample has is taken.
    #[serde(default = "image_parts", skip_serializing_if = "are_image_parts")]
    pub images: Vec<String>,
    /// Whether images are turned upright, as their EXIF orientation says, for tasks that read images.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub orient: bool,
    /// What stands behind transparent pixels: `white`, `black`, `grey`, a colour such as `#c0ffee`, or `keep hidden colours`.
    #[serde(default, skip_serializing_if = "is_usual")]
    pub background: Background,
    /// How images become squares, for tasks that read images.
    #[serde(default, skip_serializing_if = "is_usual")]
    pub augment: Augment,
    /// Extension of the caption's part, for tasks that read captions; or a sentence with names in braces, such as
    /// `a photo of {class}` ([`CaptionReader::new`](crate::captions::CaptionReader::new)).
    #[serde(default = "caption_part", skip_serializing_if = "is_caption_part")]
    pub caption: String,
    /// What is made of it.
    #[serde(default, skip_serializing_if = "is_usual")]
    pub captions: CaptionSettings,
    /// Decoding threads.
    #[serde(default = "one")]
    pub threads: usize,
    /// Policy for a corrupt sample: `fail`, or `skip` (counted and reported).
    #[serde(default)]
    pub on_error: CorruptSample,
    /// Whether all shards are read and compared with their checksums before training starts. Damaged numbers, unlike
    /// damaged images, look like any others. Only sets too large to be read at every start should go without.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub verify: bool,
    /// Beginning of the identity of the encoders that made the dataset, or of the hash of one encoder's weights, as the
    /// dataset's index tells them; with another one, training does not start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub require_encoder: Option<String>,
}

impl DataSettings {
    /// All sources with their weights.
    pub fn specs(&self) -> Vec<(&str, f64)> {
        match self.path.as_str() {
            "" => self.sources.iter().map(|source| (source.path.as_str(), source.weight)).collect(),
            path => vec![(path, 1.0)],
        }
    }

    /// How images are decoded.
    pub fn decode(&self) -> DecodeOptions {
        DecodeOptions { orient: self.orient, background: self.background, ..DecodeOptions::default() }
    }

    /// The order in which a run of this seed sees the samples.
    pub fn order(&self, seed: u64) -> OrderConfig {
        OrderConfig { seed, shuffle: self.shuffle, resampled: self.resampled }
    }

    pub(crate) fn validate(&self) -> Result<(), SettingError> {
        check(!self.path.is_empty() || !self.sources.is_empty(), "data.path", || {
            "is not set, and neither is `data.sources`: add data.path=FOLDER, or data.sources=[{ path = \"FOLDER\" }, …]"
                .to_owned()
        })?;
        check(self.path.is_empty() || self.sources.is_empty(), "data.path", || {
            format!("is `{}`, and `data.sources` names {} sources: remove one of both", self.path, self.sources.len())
        })?;
        let bad = self.sources.iter().find(|source| !(source.weight > 0.0 && source.weight.is_finite()));
        check(bad.is_none(), "data.sources", || {
            let [path, weight] = bad.map_or_else(Default::default, |s| [s.path.clone(), s.weight.to_string()]);
            format!("the weight of `{path}` is {weight}; it takes a number above 0, such as 0.5")
        })?;
        self.filter.validate().map_err(|(key, problem)| SettingError {
            key: if key == "at_least" { "data.filter.at_least" } else { "data.filter.at_most" },
            problem,
        })?;
        check((1..=MOST_THREADS).contains(&self.threads), "data.threads", || {
            format!("is {}; it takes 1 to {MOST_THREADS} threads that decode samples", self.threads)
        })?;
        self.captions.validate()?;
        let augment = &self.augment;
        check((0.0..=1.0).contains(&augment.flip), "data.augment.flip", || {
            format!("{} is no probability; use 0 to 1", augment.flip)
        })?;
        augment.check_more()?;
        let plain = *augment == Augment { filter: augment.filter, ..Augment::default() };
        check(augment.filter != ResizeFilter::TorchBicubic || plain, "data.augment.filter", || {
            "torch_bicubic cuts out the middle and mirrors nothing: use crop = \"center\" and flip = 0, or filter = \"bicubic\""
                .to_owned()
        })
    }
}

calotype_core::names! {
    /// By which mean and deviation of red, green and blue pixels are normalised, as shares of the greatest level.
    Normalise, "normalisation" {
        /// By one half: to -1..1.
        Half = "half",
        /// Of ImageNet's images, as torchvision's models take them.
        Imagenet = "imagenet",
        /// Of the images that OpenAI's CLIP was trained with.
        Clip = "clip",
    }
}

/// Mean of ImageNet's images (torchvision, `references/classification/presets.py`).
const IMAGENET_MEAN: [f32; 3] = [0.485, 0.456, 0.406];
/// Their deviation.
const IMAGENET_STD: [f32; 3] = [0.229, 0.224, 0.225];

impl Normalise {
    /// Mean and deviation.
    pub fn mean_and_deviation(self) -> ([f32; 3], [f32; 3]) {
        match self {
            Self::Half => ([0.5; 3], [0.5; 3]),
            Self::Imagenet => (IMAGENET_MEAN, IMAGENET_STD),
            Self::Clip => (CLIP_MEAN, CLIP_STD),
        }
    }
}

fn is_half(normalise: &Normalise) -> bool {
    *normalise == Normalise::Half
}

/// How images become squares: the shorter side is resized, a square is cut out, and some are mirrored. What is random
/// is a function of the run's seed and the sample's position.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Augment {
    /// Where the square is cut out: `center` or `random`.
    pub crop: Place,
    /// Probability of mirroring left and right.
    pub flip: f32,
    /// Filter of resizing: `nearest`, `box`, `bilinear`, `bicubic` or `lanczos`, each as Pillow's; or `torch_bicubic`, in
    /// floats as torchvision resizes tensors, which takes the middle and mirrors nothing.
    pub filter: ResizeFilter,
    /// How pixels are normalised, for networks that are trained on pictures themselves (`clip`, `vit`).
    #[serde(skip_serializing_if = "is_half")]
    pub normalise: Normalise,
    /// A rectangle of random area and shape that is resized to the square, instead of `crop`: torchvision's `RandomResizedCrop`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resized_crop: Option<ResizedCrop>,
    /// Jitter of brightness, contrast, saturation and hue, behind crop and flip: torchvision's `ColorJitter`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub colour_jitter: Option<ColourJitter>,
    /// AutoAugment's policies for a dataset (`imagenet`), behind the jitter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auto_augment: Option<AutoAugment>,
    /// RandAugment by torchvision's table or timm's, instead of these policies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rand_augment: Option<RandAugment>,
}

impl Default for Augment {
    fn default() -> Self {
        Self {
            crop: Place::Center,
            flip: 0.0,
            filter: ResizeFilter::Bicubic,
            normalise: Normalise::Half,
            resized_crop: None,
            colour_jitter: None,
            auto_augment: None,
            rand_augment: None,
        }
    }
}

impl Augment {
    /// The same without anything random: the middle of each image, as evaluations see it.
    #[must_use]
    pub fn without_chance(&self) -> Self {
        Self { filter: self.filter, normalise: self.normalise, ..Self::default() }
    }

    fn check_more(&self) -> Result<(), SettingError> {
        let place = |key| move |error: calotype_data::Error| SettingError { key, problem: error.to_string() };
        let both = self.resized_crop.is_some() && self.crop != Place::Center;
        check(!both, "data.augment.crop", || {
            "data.augment.resized_crop says what is cut out already: leave one of both out".to_owned()
        })?;
        self.resized_crop.map_or(Ok(()), |crop| crop.check()).map_err(place("data.augment.resized_crop"))?;
        self.colour_jitter.map_or(Ok(()), |jitter| jitter.check()).map_err(place("data.augment.colour_jitter"))?;
        check(self.auto_augment.is_none() || self.rand_augment.is_none(), "data.augment.rand_augment", || {
            "data.augment.auto_augment says what is done already: leave one of both out".to_owned()
        })?;
        self.rand_augment.map_or(Ok(()), |augment| augment.check()).map_err(place("data.augment.rand_augment"))
    }

    /// Refuses a normalisation that a task has no use for: its network takes pictures from -1 to 1.
    pub(crate) fn check_range(&self) -> Result<(), SettingError> {
        check(self.normalise == Normalise::Half, "data.augment.normalise", || {
            format!("is {}, and autoencoders take pictures from -1 to 1: leave it out", self.normalise)
        })
    }
}

/// Extensions of images, in the order in which they are looked for.
pub(crate) fn image_parts() -> Vec<String> {
    IMAGE_EXTENSIONS.map(str::to_owned).to_vec()
}

pub(crate) fn caption_part() -> String {
    "txt".to_owned()
}

fn are_image_parts(parts: &[String]) -> bool {
    parts == image_parts()
}

fn is_caption_part(part: &str) -> bool {
    part == caption_part()
}

fn one() -> usize {
    1
}

pub(crate) fn yes() -> bool {
    true
}

fn is_yes(value: &bool) -> bool {
    *value
}

/// Policy for a corrupt sample.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CorruptSample {
    /// The run ends with an error that names the sample.
    #[default]
    Fail,
    /// The sample is replaced by the next one, counted and reported.
    Skip,
}

impl From<CorruptSample> for OnError {
    fn from(policy: CorruptSample) -> Self {
        match policy {
            CorruptSample::Fail => OnError::Fail,
            CorruptSample::Skip => OnError::Skip,
        }
    }
}
