//! The typed content of training recipes.

use crate::encoders::TextSettings;
use crate::inputs::InputSettings;
use crate::precache::{caption_part, picture_parts};
use burn::tensor::{DType, Device};
use calotype_data::image::Filter;
use calotype_data::transform::Place;
use calotype_data::{OnError, OrderConfig, Shuffle, SourceOptions};
use calotype_diffusion::{Prediction, ScheduleConfig};
use calotype_kernels::multiplies_bf16;
use calotype_models::{AutoencoderConfig, ClipConfig, UNetConfig};
use serde::{Deserialize, Serialize};

/// What a training recipe trains; the key `kind` of every training recipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Text and picture towers ([`ClipRecipe`]).
    Clip,
    /// The KL autoencoder ([`AutoencoderRecipe`]).
    Autoencoder,
    /// The UNet on precached latents and text states ([`DiffusionRecipe`]).
    Diffusion,
}

/// A setting that cannot be, naming its key.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("recipe key `{key}`: {problem}")]
pub struct SettingError {
    /// Dotted key.
    pub key: &'static str,
    /// What is wrong and what would be right.
    pub problem: String,
}

fn check(ok: bool, key: &'static str, problem: impl FnOnce() -> String) -> Result<(), SettingError> {
    if ok { Ok(()) } else { Err(SettingError { key, problem: problem() }) }
}

/// Precision of activations and their gradients; weights and optimizer state are always `f32`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// Everything in `f32`.
    #[default]
    F32,
    /// Activations in `bf16`.
    Bf16,
    /// `bf16` on a CPU with instructions that multiply it, `f32` elsewhere.
    Auto,
}

impl Precision {
    /// The dtype of activations on a device.
    pub fn dtype(self, device: &Device) -> DType {
        match self {
            Precision::F32 => DType::F32,
            Precision::Bf16 => DType::BF16,
            Precision::Auto if calotype_ops::uses_kernels(device) && multiplies_bf16() => DType::BF16,
            Precision::Auto => DType::F32,
        }
    }
}

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

pub(crate) fn is_usual<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Where samples come from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSettings {
    /// What is read: a folder of shards, pictures or parquet files, a pattern or list of shards
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
    /// How samples are mixed: `full`, `sequential`, or `shards = { buffer = N }`, which reads shards one after the other.
    #[serde(default, skip_serializing_if = "is_usual")]
    pub shuffle: Shuffle,
    /// Whether epochs draw samples with replacement, as `resampled = True` of the `webdataset` library.
    #[serde(default, skip_serializing_if = "is_no")]
    pub resampled: bool,
    /// Extensions of the picture's part, for stages that read pictures; the first one that a sample has is taken.
    #[serde(default = "picture_parts", skip_serializing_if = "are_picture_parts")]
    pub pictures: Vec<String>,
    /// How pictures become squares, for stages that read pictures.
    #[serde(default, skip_serializing_if = "is_usual")]
    pub augment: Augment,
    /// Extension of the caption's part, for stages that read captions.
    #[serde(default = "caption_part", skip_serializing_if = "is_caption_part")]
    pub caption: String,
    /// Decoding threads.
    #[serde(default = "one")]
    pub threads: usize,
    /// What happens at a corrupt sample: `fail`, or `skip` (counted and reported).
    #[serde(default)]
    pub on_error: CorruptSample,
    /// Whether all shards are read and compared with their checksums before training starts. Damaged numbers, unlike
    /// damaged pictures, look like any others. Only sets too large to be read at every start should go without.
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

    /// The order in which a run of this seed sees the samples.
    pub fn order(&self, seed: u64) -> OrderConfig {
        OrderConfig { seed, shuffle: self.shuffle, resampled: self.resampled }
    }

    fn validate(&self) -> Result<(), SettingError> {
        let one = self.path.is_empty() != self.sources.is_empty();
        check(one, "data.path", || {
            "or `data.sources` has to name what is read, and not both: add `data.path=FOLDER`".to_owned()
        })?;
        check((0.0..=1.0).contains(&self.augment.flip), "data.augment.flip", || {
            format!("{} is no probability; use 0 to 1", self.augment.flip)
        })
    }
}

/// How pictures become squares: the shorter side is resized, a square is cut out, and some are mirrored. What is random
/// is a function of the run's seed and the sample's position.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Augment {
    /// Where the square is cut out: `center` or `random`.
    pub crop: Place,
    /// Probability of mirroring left and right.
    pub flip: f32,
    /// Filter of resizing: `nearest`, `box`, `bilinear`, `bicubic` or `lanczos`, each as Pillow's.
    pub filter: Filter,
}

impl Default for Augment {
    fn default() -> Self {
        Self { crop: Place::Center, flip: 0.0, filter: Filter::Bicubic }
    }
}

fn are_picture_parts(parts: &[String]) -> bool {
    parts == picture_parts()
}

fn is_caption_part(part: &str) -> bool {
    part == caption_part()
}

fn one() -> usize {
    1
}

fn yes() -> bool {
    true
}

fn is_yes(value: &bool) -> bool {
    *value
}

fn is_no(value: &bool) -> bool {
    !*value
}

/// What happens at a corrupt sample.
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

/// The course of the learning rate after warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decay {
    /// Stays at its peak.
    #[default]
    Constant,
    /// Half a cosine from the peak to zero at the last sample.
    Cosine,
    /// A straight line from the peak to zero at the last sample.
    Linear,
}

/// AdamW and its learning rate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OptimizerSettings {
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Samples of linear warm-up from zero.
    pub warmup_samples: u64,
    /// What follows the warm-up.
    pub decay: Decay,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Decoupled weight decay.
    pub weight_decay: f32,
    /// Largest norm of the whole gradient; 0 does not clip.
    pub gradient_clip: f64,
    /// Whether each parameter is stepped during the backward pass, as soon as its gradient is complete: the gradients of
    /// a whole model are then never in memory at once, nor are its weights packed in `bf16`. The results are the same
    /// bits. Not with `gradient_clip`, which needs the norm of all gradients first. Devices other than the CPU step
    /// after the backward pass all the same.
    #[serde(skip_serializing_if = "is_no")]
    pub in_backward: bool,
}

impl Default for OptimizerSettings {
    fn default() -> Self {
        Self {
            learning_rate: 1e-4,
            warmup_samples: 0,
            decay: Decay::Constant,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.01,
            gradient_clip: 0.0,
            in_backward: false,
        }
    }
}

impl OptimizerSettings {
    /// The learning rate after `samples` of `total` samples seen: a pure function of progress.
    pub fn learning_rate_at(&self, samples: u64, total: u64) -> f64 {
        if samples < self.warmup_samples {
            return self.learning_rate * samples as f64 / self.warmup_samples as f64;
        }
        let rest = total.saturating_sub(self.warmup_samples).max(1);
        let done = ((samples - self.warmup_samples) as f64 / rest as f64).min(1.0);
        self.learning_rate
            * match self.decay {
                Decay::Constant => 1.0,
                Decay::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * done).cos()),
                Decay::Linear => 1.0 - done,
            }
    }

    fn validate(&self) -> Result<(), SettingError> {
        check(self.learning_rate >= 0.0 && self.learning_rate.is_finite(), "optimizer.learning_rate", || {
            format!("{} is not a rate; use a number of at least 0", self.learning_rate)
        })?;
        for (key, beta) in [("optimizer.beta1", self.beta1), ("optimizer.beta2", self.beta2)] {
            check((0.0..1.0).contains(&beta), key, || format!("{beta} is not in 0..1"))?;
        }
        check(self.gradient_clip >= 0.0, "optimizer.gradient_clip", || "is negative; 0 does not clip".to_owned())?;
        check(!self.in_backward || self.gradient_clip == 0.0, "optimizer.in_backward", || {
            "cannot go with optimizer.gradient_clip: the norm of the whole gradient is known only after the backward \
             pass; set gradient_clip = 0 or in_backward = false"
                .to_owned()
        })
    }
}

/// What a network with many activations keeps of them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MemorySettings {
    /// Whether the forward pass keeps only the inputs of the network's blocks; the backward pass computes the rest
    /// again, for about a third more time. The results are the same bits. Devices other than the CPU keep everything.
    pub recompute_blocks: bool,
}

impl MemorySettings {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Length, seed and book-keeping of a run. All counts are in samples.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunSettings {
    /// Seed of everything random in the run.
    pub seed: u64,
    /// Samples to train on in all; the last batch is not shortened.
    pub samples: u64,
    /// Samples of one optimizer step.
    pub batch_size: usize,
    /// Precision of activations.
    #[serde(default)]
    pub precision: Precision,
    /// Samples between two entries in the logs.
    pub log_every: u64,
    /// Samples between two checkpoints.
    pub checkpoint_every: u64,
    /// Checkpoints that are kept.
    #[serde(default = "two")]
    pub keep_checkpoints: usize,
}

fn two() -> usize {
    2
}

impl RunSettings {
    /// Optimizer steps of the whole run.
    pub fn steps(&self) -> u64 {
        self.samples.div_ceil(self.batch_size as u64)
    }

    fn validate(&self) -> Result<(), SettingError> {
        check(self.batch_size > 0, "run.batch_size", || "must be at least 1".to_owned())?;
        check(self.samples > 0, "run.samples", || "must be at least 1".to_owned())?;
        check(self.log_every > 0, "run.log_every", || "must be at least 1".to_owned())?;
        check(self.checkpoint_every > 0, "run.checkpoint_every", || "must be at least 1".to_owned())?;
        check(self.keep_checkpoints > 0, "run.keep_checkpoints", || "must be at least 1".to_owned())
    }
}

/// Exponential moving average of the weights, in samples (Karras et al. 2024, section 3).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EmaSettings {
    /// Samples after which a weight's share has halved.
    pub half_life: u64,
    /// The half-life is at most this share of the samples seen, so that the average forgets the random start.
    #[serde(default = "ema_rampup")]
    pub rampup: f64,
}

fn ema_rampup() -> f64 {
    0.05
}

impl EmaSettings {
    /// The decay of one step of `batch` samples that ends at `samples` seen.
    pub fn decay(&self, samples: u64, batch: usize) -> f32 {
        let half_life = (self.half_life as f64).min(samples as f64 * self.rampup).max(1e-9);
        0.5f64.powf(batch as f64 / half_life) as f32
    }
}

/// What a model is trained by; the part that all training recipes share.
#[derive(Clone, Debug, PartialEq)]
pub struct Course<'a> {
    /// Length and book-keeping.
    pub run: &'a RunSettings,
    /// AdamW.
    pub optimizer: &'a OptimizerSettings,
    /// Moving average of the weights, if any.
    pub ema: Option<&'a EmaSettings>,
}

/// Contrastive training of both CLIP towers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClipRecipe {
    /// Always `clip`.
    pub kind: Kind,
    /// Pictures with captions.
    pub data: DataSettings,
    /// Both towers.
    pub model: ClipConfig,
    /// AdamW.
    pub optimizer: OptimizerSettings,
    /// Length and book-keeping.
    pub run: RunSettings,
}

/// How the autoencoder's reconstruction is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reconstruction {
    /// Mean absolute difference.
    L1,
    /// Mean squared difference.
    L2,
}

/// The autoencoder's loss.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AutoencoderObjective {
    /// Side of the square pictures in pixels.
    pub resolution: usize,
    /// Distance of picture and reconstruction.
    pub reconstruction: Reconstruction,
    /// Weight of the divergence (nats per latent element) from the standard normal.
    pub kl_weight: f64,
}

/// Training of the KL autoencoder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AutoencoderRecipe {
    /// Always `autoencoder`.
    pub kind: Kind,
    /// Pictures.
    pub data: DataSettings,
    /// The autoencoder.
    pub model: AutoencoderConfig,
    /// Its loss.
    pub objective: AutoencoderObjective,
    /// AdamW.
    pub optimizer: OptimizerSettings,
    /// Moving average of the weights; what is saved at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ema: Option<EmaSettings>,
    /// Length and book-keeping.
    pub run: RunSettings,
}

/// The diffusion loss.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiffusionObjective {
    /// What the UNet predicts.
    pub prediction: Prediction,
    /// Share of samples whose caption is replaced by the empty one, for guidance.
    pub caption_dropout: f64,
    /// What latents are multiplied by; by default what the dataset's encoder says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale_factor: Option<f64>,
}

/// Training of the UNet on precached latents and text states.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiffusionRecipe {
    /// Always `diffusion`.
    pub kind: Kind,
    /// Precached moments, with text states or captions.
    pub data: DataSettings,
    /// Where they are in a sample.
    #[serde(default, skip_serializing_if = "InputSettings::is_default")]
    pub inputs: InputSettings,
    /// The text encoder, where captions are encoded during training.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<TextSettings>,
    /// The UNet.
    pub model: UNetConfig,
    /// The noise schedule.
    pub schedule: ScheduleConfig,
    /// The loss.
    pub objective: DiffusionObjective,
    /// AdamW.
    pub optimizer: OptimizerSettings,
    /// Moving average of the weights; what is sampled from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ema: Option<EmaSettings>,
    /// Time for memory.
    #[serde(default, skip_serializing_if = "MemorySettings::is_default")]
    pub memory: MemorySettings,
    /// Length and book-keeping.
    pub run: RunSettings,
}

impl ClipRecipe {
    /// What it is trained by.
    pub fn course(&self) -> Course<'_> {
        Course { run: &self.run, optimizer: &self.optimizer, ema: None }
    }

    /// Checks what the types cannot.
    ///
    /// # Errors
    /// [`SettingError`] naming the key.
    pub fn validate(&self) -> Result<(), SettingError> {
        self.data.validate()?;
        self.course().validate()?;
        check(self.run.batch_size >= 2, "run.batch_size", || {
            "contrastive training needs at least 2 samples to tell apart".to_owned()
        })
    }
}

impl AutoencoderRecipe {
    /// What it is trained by.
    pub fn course(&self) -> Course<'_> {
        Course { run: &self.run, optimizer: &self.optimizer, ema: self.ema.as_ref() }
    }

    /// Checks what the types cannot.
    ///
    /// # Errors
    /// [`SettingError`] naming the key.
    pub fn validate(&self) -> Result<(), SettingError> {
        self.data.validate()?;
        self.course().validate()?;
        let (side, multiple) = (self.objective.resolution, self.model.downscale());
        check(side > 0 && side.is_multiple_of(multiple), "objective.resolution", || {
            format!("{side} is not a multiple of {multiple}, by which this model shrinks pictures")
        })?;
        check(self.objective.kl_weight >= 0.0, "objective.kl_weight", || "is negative".to_owned())
    }
}

impl DiffusionRecipe {
    /// What it is trained by.
    pub fn course(&self) -> Course<'_> {
        Course { run: &self.run, optimizer: &self.optimizer, ema: self.ema.as_ref() }
    }

    /// Checks what the types cannot.
    ///
    /// # Errors
    /// [`SettingError`] naming the key.
    pub fn validate(&self) -> Result<(), SettingError> {
        self.data.validate()?;
        self.course().validate()?;
        let p = self.objective.caption_dropout;
        check((0.0..=1.0).contains(&p), "objective.caption_dropout", || format!("{p} is not a share in 0..1"))?;
        let scale = self.objective.scale_factor;
        check(scale.is_none_or(|scale| scale > 0.0 && scale.is_finite()), "objective.scale_factor", || {
            "must be a positive number".to_owned()
        })
    }
}

impl Course<'_> {
    fn validate(&self) -> Result<(), SettingError> {
        self.run.validate()?;
        self.optimizer.validate()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn learning_rate_is_a_function_of_samples() {
        let settings = OptimizerSettings {
            learning_rate: 1.0,
            warmup_samples: 100,
            decay: Decay::Cosine,
            ..OptimizerSettings::default()
        };
        let rate = |samples| settings.learning_rate_at(samples, 1100);
        assert_eq!((rate(0), rate(50), rate(100)), (0.0, 0.5, 1.0));
        assert!((rate(600) - 0.5).abs() < 1e-12 && rate(1100) < 1e-12 && rate(5000) < 1e-12);
    }

    #[test]
    fn steps_in_the_backward_pass_cannot_be_clipped() {
        let settings = OptimizerSettings { in_backward: true, ..OptimizerSettings::default() };
        assert_eq!(settings.validate(), Ok(()));
        let error = OptimizerSettings { gradient_clip: 1.0, ..settings }.validate().unwrap_err();
        assert_eq!(error.key, "optimizer.in_backward");
    }

    #[test]
    fn average_halves_at_its_half_life() {
        let ema = EmaSettings { half_life: 1000, rampup: 0.05 };
        let decay = ema.decay(1_000_000, 100);
        assert!((decay.powi(10) - 0.5).abs() < 1e-6);
        assert!(ema.decay(100, 100) < 1e-5, "early on the average follows the weights");
    }
}
