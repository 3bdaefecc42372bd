//! What a log says about a run before it starts.

use crate::keys;
use crate::ruleset::{Benchmark, Division, SubmissionStatus};
use crate::value::Value;
use serde::{Deserialize, Serialize};

/// Who submits what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Submission {
    /// The benchmark.
    pub benchmark: Benchmark,
    /// The division.
    pub division: Division,
    /// The submitting organisation's name; not empty.
    pub org: String,
    /// The system's name; not empty.
    pub platform: String,
    /// How the system can be had.
    pub status: SubmissionStatus,
    /// Whom to ask.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub poc_name: Option<String>,
    /// At which address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub poc_email: Option<String>,
}

impl Submission {
    /// The lines, in the reference's order.
    pub(crate) fn lines(&self) -> Vec<(&'static str, Value)> {
        let mut lines = vec![
            (keys::SUBMISSION_BENCHMARK, Value::from(self.benchmark.name())),
            (keys::SUBMISSION_DIVISION, Value::from(self.division.name())),
            (keys::SUBMISSION_ORG, Value::from(self.org.as_str())),
            (keys::SUBMISSION_PLATFORM, Value::from(self.platform.as_str())),
        ];
        let contact = [(keys::SUBMISSION_POC_NAME, &self.poc_name), (keys::SUBMISSION_POC_EMAIL, &self.poc_email)];
        lines.extend(contact.into_iter().filter_map(|(key, text)| Some((key, Value::from(text.as_deref()?)))));
        lines.push((keys::SUBMISSION_STATUS, Value::from(self.status.name())));
        lines
    }

    /// The field that is empty and must not be.
    pub fn empty_field(&self) -> Option<&'static str> {
        let fields = [("org", &self.org), ("platform", &self.platform)];
        fields.into_iter().find(|(_, text)| text.is_empty()).map(|(name, _)| name)
    }
}

/// Hyperparameters and sizes of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The seed that everything random of the run follows from.
    pub seed: u64,
    /// Samples of the training set.
    pub train_samples: u64,
    /// Samples of an evaluation.
    pub eval_samples: u64,
    /// Parts of a batch that follow each other; at least 1.
    pub gradient_accumulation_steps: u64,
    /// Samples of an optimizer step.
    pub global_batch_size: u64,
    /// The optimizer.
    pub optimizer: AdamW,
    /// What rounds from 6.0 on want to be told.
    pub disclosure: Option<Disclosure>,
}

/// Hyperparameters of AdamW.
#[derive(Clone, Debug, PartialEq)]
pub struct AdamW {
    /// Decay of the first moments.
    pub beta_1: f64,
    /// Decay of the second moments.
    pub beta_2: f64,
    /// Added to the root of the second moments.
    pub epsilon: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Learning rate behind the warm-up, times the batch where the recipe scales it.
    pub base_learning_rate: f64,
    /// Steps over which the learning rate rises.
    pub warmup_steps: u64,
    /// Norm that gradients are clipped at; Flux.1 logs it.
    pub gradient_clip_norm: Option<f64>,
}

/// How a run was computed: precisions by the rules' names (`fp32`, `tf32`, `bfloat16`, `fp8`, …), and degrees of parallelism, 1 where
/// nothing is split.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disclosure {
    /// Lowest precision in linear layers.
    pub linear_precision: String,
    /// Lowest precision in attention.
    pub attention_precision: String,
    /// Lowest precision of what is sent.
    pub communication_precision: String,
    /// Parts of a layer.
    pub tensor_parallelism: u64,
    /// Parts of the stack of layers.
    pub pipeline_parallelism: u64,
    /// Parts of a sequence.
    pub context_parallelism: u64,
    /// Parts of the experts.
    pub expert_parallelism: u64,
    /// Samples that a device computes at once.
    pub micro_batch_size: u64,
    /// Name of the run's configuration file.
    pub config_filename: String,
}

impl Settings {
    /// The lines in front of `init_stop`, in the reference's order.
    pub(crate) fn before_init_stop(&self, benchmark: Benchmark) -> Vec<(&'static str, Value)> {
        let mut lines = vec![
            (keys::SEED, Value::from(self.seed)),
            (keys::TRAIN_SAMPLES, Value::from(self.train_samples)),
            (keys::EVAL_SAMPLES, Value::from(self.eval_samples)),
            (keys::GRADIENT_ACCUMULATION_STEPS, Value::from(self.gradient_accumulation_steps)),
            (keys::GLOBAL_BATCH_SIZE, Value::from(self.global_batch_size)),
        ];
        if benchmark == Benchmark::Flux1 {
            let interval = benchmark.evaluation_interval(self.global_batch_size);
            lines.push((keys::EVALUATION_FREQUENCY, Value::from(interval)));
        }
        lines.extend(self.disclosure.iter().flat_map(Disclosure::lines));
        lines
    }

    /// The lines behind it.
    pub(crate) fn behind_init_stop(&self) -> Vec<(&'static str, Value)> {
        let AdamW { beta_1, beta_2, epsilon, weight_decay, base_learning_rate, warmup_steps, gradient_clip_norm } =
            self.optimizer;
        let mut lines = vec![
            (keys::OPT_NAME, Value::from("adamw")),
            (keys::OPT_ADAMW_BETA_1, Value::from(beta_1)),
            (keys::OPT_ADAMW_BETA_2, Value::from(beta_2)),
            (keys::OPT_ADAMW_EPSILON, Value::from(epsilon)),
            (keys::OPT_ADAMW_WEIGHT_DECAY, Value::from(weight_decay)),
            (keys::OPT_BASE_LEARNING_RATE, Value::from(base_learning_rate)),
            (keys::OPT_LEARNING_RATE_WARMUP_STEPS, Value::from(warmup_steps)),
        ];
        lines.extend(gradient_clip_norm.map(|norm| (keys::OPT_GRADIENT_CLIP_NORM, Value::from(norm))));
        lines
    }
}

impl Disclosure {
    fn lines(&self) -> Vec<(&'static str, Value)> {
        vec![
            (keys::PRECISION_IN_LINEAR, Value::from(self.linear_precision.as_str())),
            (keys::PRECISION_IN_ATTENTION, Value::from(self.attention_precision.as_str())),
            (keys::PRECISION_IN_COMMUNICATION, Value::from(self.communication_precision.as_str())),
            (keys::TENSOR_PARALLELISM, Value::from(self.tensor_parallelism)),
            (keys::PIPELINE_PARALLELISM, Value::from(self.pipeline_parallelism)),
            (keys::CONTEXT_PARALLELISM, Value::from(self.context_parallelism)),
            (keys::EXPERT_PARALLELISM, Value::from(self.expert_parallelism)),
            (keys::MICRO_BATCH_SIZE, Value::from(self.micro_batch_size)),
            (keys::CONFIG_FILENAME, Value::from(self.config_filename.as_str())),
        ]
    }
}
