//! The recipe of a run: what is drawn, how it is served, and what LoadGen is asked for.

use crate::benchmark::Variant;
use crate::error::InferenceError;
use calotype_checkpoints::OpenOptions;
use calotype_core::names;
use calotype_diffusion::Spacing;
use calotype_mlperf::inference::Round;
use calotype_ops::Precision;
use calotype_pipeline::random_checkpoint::RandomFamily;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The value of `kind` in these recipes.
pub const KIND: &str = "mlperf_inference";

/// A run of the benchmark.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// [`KIND`].
    pub kind: String,
    /// A checkpoint in any layout.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Where no `model` is given: the form of a checkpoint of random weights, which is made in the output folder, for trials.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub random: Option<RandomFamily>,
    /// The round whose seeds hold.
    #[serde(default)]
    pub round: Round,
    /// How much of the benchmark is run.
    #[serde(default)]
    pub variant: Variant,
    /// Width of the pictures in pixels.
    pub width: usize,
    /// Height of the pictures in pixels.
    pub height: usize,
    /// Steps of the sampler.
    pub steps: usize,
    /// Scale of the guidance.
    pub guidance: f32,
    /// What the pictures should not show.
    pub negative: String,
    /// Precision of the networks.
    #[serde(default)]
    pub precision: Precision,
    /// Whether the autoencoder decodes in tiles: less memory, and other pixels near the seams.
    #[serde(default)]
    pub tiled: bool,
    /// The captions.
    #[serde(default)]
    pub captions: CaptionSettings,
    /// The sampler.
    #[serde(default)]
    pub sampler: SamplerSettings,
    /// The latent that all pictures begin with.
    #[serde(default)]
    pub latents: LatentSettings,
    /// How samples are served.
    #[serde(default)]
    pub serve: ServeSettings,
    /// The processes of the run.
    #[serde(default)]
    pub processes: ProcessSettings,
    /// What LoadGen is asked for, for every scenario that has such a value; what is absent is user.conf's or LoadGen's own.
    #[serde(default)]
    pub load: LoadSettings,
    /// Knowledge about the checkpoint that it does not hold.
    #[serde(default, skip_serializing_if = "is_usual")]
    pub open: OpenOptions,
}

fn is_usual(options: &OpenOptions) -> bool {
    *options == OpenOptions::default()
}

/// Where captions are.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CaptionSettings {
    /// A table of `calotype data coco --list sdxl`, a text file with a caption on each line, or whatever else holds captions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Take made-up captions instead, for trials.
    pub made_up: bool,
    /// The column of the captions in tables; the usual names if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub column: Option<String>,
    /// Captions that are taken, from the first on; what the variant says, or for captions of one's own all, if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<usize>,
}

/// The sampler, on the checkpoint's schedule.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SamplerSettings {
    /// Our name or diffusers'; the checkpoint's own if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The timesteps that are visited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spacing: Option<Spacing>,
    /// Added to the timesteps of the leading spacing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps_offset: Option<usize>,
}

/// The latent that all pictures begin with.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LatentSettings {
    /// A NumPy file of `[1, channels, height, width]`; the seed's latent if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Seed of PyTorch's generator of the CPU.
    pub seed: u64,
}

/// How samples are served. Pictures do not depend on it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServeSettings {
    /// Pictures that go through the UNet together, at most.
    pub batch_size: usize,
    /// Pictures that go through the autoencoder together, at most.
    pub decode_batch: usize,
    /// Threads that draw batches side by side. They share the networks and the cores.
    pub workers: usize,
    /// Milliseconds for which a batch that is not full waits for more samples, while there may come some.
    pub batch_wait_ms: u64,
    /// Pictures that are drawn before the run, and not measured.
    pub warmup: usize,
    /// Steps of these pictures; as many as the others' if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warmup_steps: Option<usize>,
}

impl Default for ServeSettings {
    fn default() -> Self {
        let warmup = crate::benchmark::WARM_UP;
        Self { batch_size: 1, decode_batch: 1, workers: 1, batch_wait_ms: 0, warmup, warmup_steps: None }
    }
}

names! {
    /// What becomes of the samples of a process that is gone.
    #[derive(Default)]
    LostWorker, "value of lost_worker" {
        /// Others draw them.
        #[default]
        Resend = "resend",
        /// The run fails.
        Fail = "fail",
    }
}

/// The processes of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProcessSettings {
    /// What becomes of the samples of a process that is gone.
    pub lost_worker: LostWorker,
    /// Seconds without a word after which a process is gone. One that computes says that it lives every second.
    pub silence_seconds: f64,
    /// Seconds for which the others are waited for at the beginning.
    pub start_seconds: f64,
    /// Seconds for which LoadGen is waited for after a failure.
    pub grace_seconds: f64,
}

impl Default for ProcessSettings {
    fn default() -> Self {
        Self { lost_worker: LostWorker::default(), silence_seconds: 15.0, start_seconds: 600.0, grace_seconds: 10.0 }
    }
}

impl ProcessSettings {
    pub(crate) fn silence(&self) -> Duration {
        Duration::from_secs_f64(self.silence_seconds)
    }

    pub(crate) fn start(&self) -> Duration {
        Duration::from_secs_f64(self.start_seconds)
    }
}

/// What LoadGen is asked for; every value is one of user.conf.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoadSettings {
    /// Server and offline: samples per second, as load or as what is expected.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_qps: Option<f64>,
    /// Milliseconds: the server's bound, or what a stream's query is expected to take.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_latency_ms: Option<f64>,
    /// Least duration in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_duration_ms: Option<u64>,
    /// Longest duration in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_duration_ms: Option<u64>,
    /// Least number of queries; offline: of samples.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_query_count: Option<u64>,
    /// Largest number of queries.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_query_count: Option<u64>,
    /// Multi-stream: samples of a query.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub samples_per_query: Option<u64>,
    /// Samples that performance runs take.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub performance_sample_count: Option<u64>,
    /// Whether LoadGen writes its trace, which grows with every query.
    pub trace: bool,
}

impl Recipe {
    /// Checks what can be checked without a file.
    ///
    /// # Errors
    /// [`InferenceError::Setting`] naming the key.
    pub fn validate(&self) -> Result<(), InferenceError> {
        let fault = |problem: String| Err(InferenceError::Setting(problem));
        if self.kind != KIND {
            return fault(format!("`kind` is `{}`; recipes of this command have kind = \"{KIND}\"", self.kind));
        }
        let counts = [
            ("width", self.width),
            ("height", self.height),
            ("steps", self.steps),
            ("serve.batch_size", self.serve.batch_size),
            ("serve.decode_batch", self.serve.decode_batch),
            ("captions.count", self.captions.count.unwrap_or(1)),
            ("serve.warmup_steps", self.serve.warmup_steps.unwrap_or(1)),
        ];
        if let Some((key, _)) = counts.into_iter().find(|(_, count)| *count == 0) {
            return fault(format!("`{key}` is 0; it takes a whole number of at least 1"));
        }
        if !self.guidance.is_finite() {
            return fault(format!("`guidance` is {}; it takes a number, such as 8.0", self.guidance));
        }
        let ProcessSettings { silence_seconds, start_seconds, grace_seconds, .. } = self.processes;
        let seconds =
            [("silence_seconds", silence_seconds), ("start_seconds", start_seconds), ("grace_seconds", grace_seconds)];
        if let Some((key, value)) = seconds.into_iter().find(|(_, value)| !(0.1..=1e6).contains(value)) {
            return fault(format!("`processes.{key}` is {value}; it takes seconds from 0.1 to 1000000"));
        }
        let rates = [("target_qps", self.load.target_qps), ("target_latency_ms", self.load.target_latency_ms)];
        let bad = |value: f64| !(value > 0.0 && value.is_finite());
        if let Some((key, value)) = rates.into_iter().find_map(|(key, value)| Some((key, value.filter(|v| bad(*v))?))) {
            return fault(format!("`load.{key}` is {value}; it takes a number above 0"));
        }
        match (self.variant.samples(), self.captions.count) {
            (Some(samples), Some(count)) if count != samples => fault(format!(
                "`captions.count` is {count}, but the variant {} has {samples} samples; take variant = \"custom\"",
                self.variant
            )),
            _ => Ok(()),
        }
    }
}
