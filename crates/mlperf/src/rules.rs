//! The rules for log files, as tables: for each round, division and benchmark, the keys of a log, how often each has to be
//! there, and what its lines have to say.
//!
//! Source: `compliance_checker/training_*/` of mlcommons/logging (PyPI `mlperf-logging` 4.1.68). A rule of a benchmark takes
//! the place of the common rule of the same key.

use crate::keys;
use crate::ruleset::{Benchmark, Division, Ruleset};

/// How often a key is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Count {
    /// Once. Repetitions with the same value are a warning.
    Once,
    /// So often, or more.
    AtLeast(usize),
    /// Once or more, or else the other key is.
    OrElse(&'static str),
    /// As it likes.
    Any,
}

/// Milestones of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mark {
    InitStart,
    InitStop,
    RunStart,
}

impl Mark {
    pub(crate) fn key(self) -> &'static str {
        match self {
            Self::InitStart => keys::INIT_START,
            Self::InitStop => keys::INIT_STOP,
            Self::RunStart => keys::RUN_START,
        }
    }
}

/// What a line has to say.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Check {
    /// The number.
    Number(f64),
    /// One of the texts.
    OneOf(&'static [&'static str]),
    /// Anything but an empty text.
    NotEmpty,
    /// A number from here on.
    AtLeast(f64),
    /// A larger number.
    Above(f64),
    /// A whole number.
    Whole,
    /// One of these in the metadata.
    Metadata(&'static [&'static str]),
    /// In the metadata, sample counts from 0, or epoch counts from 1 with the number of the first.
    BlockCounts,
    /// No such line in front.
    Before(Mark),
    /// A line of this kind in front.
    After(Mark),
    /// No later after the first `init_start` than the division allows.
    InitTime,
    /// The distance of evaluations in whole batches of the `global_batch_size` in front.
    EvaluationInterval,
}

/// The rule for a key.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KeyRule {
    pub key: &'static str,
    pub count: Count,
    pub checks: &'static [Check],
    /// What to do where it is broken.
    pub remedy: &'static str,
}

const fn rule(key: &'static str, count: Count, checks: &'static [Check], remedy: &'static str) -> KeyRule {
    KeyRule { key, count, checks, remedy }
}

/// What one evaluation of a log has to reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// FID and CLIP score of Stable Diffusion's closed division, at the same sample count.
    FidAndClip,
    /// Any FID from 0 on and CLIP score up to 1, at the same sample count.
    AnyFidAndClip,
    /// A validation loss, under this key.
    Loss(&'static str),
}

/// The rules for a log.
#[derive(Debug)]
pub(crate) struct LogRules {
    pub keys: Vec<&'static KeyRule>,
    pub target: Option<Target>,
}

impl LogRules {
    /// Those of a round; of the benchmark in its division only where both are known.
    pub(crate) fn of(ruleset: Ruleset, division: Option<Division>, benchmark: Option<Benchmark>) -> Self {
        let mut rules = Self { keys: Vec::new(), target: None };
        for table in common(ruleset) {
            rules.extend(table);
        }
        if let Some(division) = division {
            rules.extend(division_rules(division));
            if let Some(benchmark) = benchmark.filter(|benchmark| benchmark.rulesets().contains(&ruleset)) {
                benchmark_rules(ruleset, division, benchmark).into_iter().for_each(|table| rules.extend(table));
                rules.target = Some(target(division, benchmark));
            }
        }
        rules
    }

    /// Adds rules, in place of those of the same keys.
    fn extend(&mut self, table: &'static [KeyRule]) {
        for rule in table {
            self.keys.retain(|earlier| earlier.key != rule.key);
            self.keys.push(rule);
        }
    }
}

/// Minutes that may pass between the first `init_start` and `init_stop`.
pub(crate) fn init_minutes(division: &str) -> f64 {
    if division == Division::Open.name() { 240.0 } else { 30.0 }
}

const SAMPLES_OR_EPOCH: &[Check] = &[Check::Metadata(&[keys::EPOCH_NUM, keys::SAMPLES_COUNT])];
const SAY_SAMPLES: &str = "log it with the samples seen as `samples_count` in its metadata";

const COMMON: &[KeyRule] = &[
    // Which names there are is looked at before everything else: the division decides which rules hold.
    rule(keys::SUBMISSION_DIVISION, Count::Once, &[], "log the division, closed or open, before init_stop"),
    rule(keys::CACHE_CLEAR, Count::AtLeast(1), &[], "clear the system's caches before the run and log it"),
    rule(
        keys::INIT_START,
        Count::AtLeast(1),
        &[Check::Before(Mark::InitStop), Check::Before(Mark::RunStart)],
        "log it when the process starts, in front of init_stop and run_start",
    ),
    rule(
        keys::INIT_STOP,
        Count::Once,
        &[Check::After(Mark::InitStart), Check::Before(Mark::RunStart), Check::InitTime],
        "log it once, when everything is ready, before data is touched",
    ),
    rule(keys::RUN_START, Count::Once, &[Check::After(Mark::InitStop)], "log it once, behind init_stop"),
    rule(
        keys::RUN_STOP,
        Count::Once,
        &[Check::After(Mark::RunStart), Check::Metadata(&[keys::STATUS])],
        "log it once, behind run_start, with `status` (success or aborted) in its metadata",
    ),
    rule(
        keys::BLOCK_START,
        Count::OrElse(keys::EPOCH_START),
        &[Check::After(Mark::RunStart), Check::BlockCounts],
        "log it behind run_start with the samples seen as `samples_count` in its metadata",
    ),
    rule(
        keys::BLOCK_STOP,
        Count::OrElse(keys::EPOCH_STOP),
        &[Check::Metadata(&[keys::FIRST_EPOCH_NUM, keys::SAMPLES_COUNT])],
        SAY_SAMPLES,
    ),
    rule(keys::EVAL_START, Count::OrElse(keys::BLOCK_START), SAMPLES_OR_EPOCH, SAY_SAMPLES),
    rule(keys::EVAL_STOP, Count::OrElse(keys::BLOCK_STOP), SAMPLES_OR_EPOCH, SAY_SAMPLES),
    rule(keys::EVAL_ACCURACY, Count::AtLeast(1), SAMPLES_OR_EPOCH, SAY_SAMPLES),
    rule(keys::TRAIN_SAMPLES, Count::Once, &[Check::NotEmpty], "log the number of training samples once"),
    rule(keys::EVAL_SAMPLES, Count::Once, &[Check::NotEmpty], "log the number of evaluation samples once"),
];

/// Rounds 4.0 and 4.1. That there are epochs or blocks, the rules of blocks ask already.
const EPOCHS_BY_NUMBER: &[KeyRule] = &[
    rule(
        keys::EPOCH_START,
        Count::Any,
        &[Check::Metadata(&[keys::EPOCH_NUM])],
        "log it with `epoch_num` in its metadata, or log blocks instead",
    ),
    rule(
        keys::EPOCH_STOP,
        Count::Any,
        &[Check::Metadata(&[keys::EPOCH_NUM])],
        "log it with `epoch_num` in its metadata, or log blocks instead",
    ),
];

/// Rounds from 5.0 on.
const EPOCHS_BY_SAMPLES: &[KeyRule] = &[
    rule(keys::EPOCH_START, Count::Any, SAMPLES_OR_EPOCH, SAY_SAMPLES),
    rule(keys::EPOCH_STOP, Count::Any, SAMPLES_OR_EPOCH, SAY_SAMPLES),
];

/// All rounds but 5.0.
const SUBMITTER: &[KeyRule] = &[
    rule(keys::SUBMISSION_ORG, Count::Once, &[Check::NotEmpty], "log the submitting organisation's name once"),
    rule(keys::SUBMISSION_PLATFORM, Count::Once, &[Check::NotEmpty], "log the system's name once"),
];

/// Round 4.0.
const AVAILABILITY: &[KeyRule] = &[rule(
    keys::SUBMISSION_STATUS,
    Count::Once,
    &[Check::OneOf(&["cloud", "onprem", "preview", "research"])],
    "log once how the system can be had",
)];

/// Round 6.0.
const PRECISIONS_6_0: &[Check] = &[Check::OneOf(&[
    "fp64",
    "fp32",
    "tf32",
    "fp16",
    "fp8",
    "nvfp4",
    "mxfp4",
    "bfloat16",
    "Graphcore FLOAT 16.16",
    "int8",
    "uint8",
    "int4",
    "uint4",
])];
const TAKE_PRECISION: &str = "log the format's name as the rules spell it";
const TAKE_DEGREE: &str = "log the number of parts, 1 where nothing is split";
const DISCLOSED_IF_AT_ALL: &[KeyRule] = &[
    rule(keys::PRECISION_IN_LINEAR, Count::Any, PRECISIONS_6_0, TAKE_PRECISION),
    rule(keys::PRECISION_IN_ATTENTION, Count::Any, PRECISIONS_6_0, TAKE_PRECISION),
    rule(keys::PRECISION_IN_COMMUNICATION, Count::Any, PRECISIONS_6_0, TAKE_PRECISION),
    rule(keys::TENSOR_PARALLELISM, Count::Any, &[Check::Whole], TAKE_DEGREE),
    rule(keys::PIPELINE_PARALLELISM, Count::Any, &[Check::Whole], TAKE_DEGREE),
    rule(keys::CONTEXT_PARALLELISM, Count::Any, &[Check::Whole], TAKE_DEGREE),
    rule(keys::EXPERT_PARALLELISM, Count::Any, &[Check::Whole], TAKE_DEGREE),
    rule(keys::MICRO_BATCH_SIZE, Count::Any, &[Check::Whole], "log the samples that a device computes at once"),
];

/// Round 6.1.
const PRECISIONS_6_1: &[Check] = &[Check::OneOf(&[
    "fp64",
    "fp32",
    "tf32",
    "fp16",
    "fp8",
    "mxfp6",
    "nvfp4",
    "mxfp4",
    "bfloat16",
    "Graphcore FLOAT 16.16",
    "int8",
    "uint8",
    "int4",
    "uint4",
])];
const FROM_ONE: &[Check] = &[Check::Whole, Check::AtLeast(1.0)];
const DISCLOSED: &[KeyRule] = &[
    rule(keys::PRECISION_IN_LINEAR, Count::Once, PRECISIONS_6_1, TAKE_PRECISION),
    rule(keys::PRECISION_IN_ATTENTION, Count::Once, PRECISIONS_6_1, TAKE_PRECISION),
    rule(keys::PRECISION_IN_COMMUNICATION, Count::Once, PRECISIONS_6_1, TAKE_PRECISION),
    rule(keys::TENSOR_PARALLELISM, Count::Once, FROM_ONE, TAKE_DEGREE),
    rule(keys::PIPELINE_PARALLELISM, Count::Once, FROM_ONE, TAKE_DEGREE),
    rule(keys::CONTEXT_PARALLELISM, Count::Once, FROM_ONE, TAKE_DEGREE),
    rule(keys::EXPERT_PARALLELISM, Count::Once, FROM_ONE, TAKE_DEGREE),
    rule(keys::MICRO_BATCH_SIZE, Count::Once, FROM_ONE, "log the samples that a device computes at once"),
    rule(keys::CONFIG_FILENAME, Count::Once, &[Check::NotEmpty], "log the name of the run's configuration file once"),
];

fn common(ruleset: Ruleset) -> Vec<&'static [KeyRule]> {
    let mut tables = vec![COMMON];
    tables.push(match ruleset {
        Ruleset::V4_0 | Ruleset::V4_1 => EPOCHS_BY_NUMBER,
        _ => EPOCHS_BY_SAMPLES,
    });
    if ruleset != Ruleset::V5_0 {
        tables.push(SUBMITTER);
    }
    match ruleset {
        Ruleset::V4_0 => tables.push(AVAILABILITY),
        Ruleset::V6_0 => tables.push(DISCLOSED_IF_AT_ALL),
        Ruleset::V6_1 => tables.push(DISCLOSED),
        _ => {}
    }
    tables
}

const BENCHMARK: KeyRule = rule(keys::SUBMISSION_BENCHMARK, Count::Once, &[], "log the benchmark's name once");

const OPEN: &[KeyRule] = &[BENCHMARK];
const CLOSED: &[KeyRule] = &[
    BENCHMARK,
    rule(
        keys::GRADIENT_ACCUMULATION_STEPS,
        Count::Once,
        &[Check::Above(0.0)],
        "log once how many parts of a batch follow each other, 1 where it is whole",
    ),
];

fn division_rules(division: Division) -> &'static [KeyRule] {
    match division {
        Division::Open => OPEN,
        Division::Closed => CLOSED,
    }
}

const BATCH: &str = "log the samples of one optimizer step over all devices";
const RATE: &str = "log once the learning rate behind the warm-up, times the batch where the recipe scales it";
const WARMUP: &str = "log once over how many steps the learning rate rises, 0 if it does not";
const FIXED: &str = "the closed division fixes it: train with the value of the rules and log that once";
const ADAMW: &[Check] = &[Check::OneOf(&["adamw"])];

const CLOSED_STABLE_DIFFUSION: &[KeyRule] = &[
    rule(keys::GLOBAL_BATCH_SIZE, Count::AtLeast(1), &[Check::AtLeast(0.0)], BATCH),
    rule(keys::OPT_NAME, Count::Once, ADAMW, FIXED),
    rule(keys::OPT_ADAMW_BETA_1, Count::Once, &[Check::Number(0.9)], FIXED),
    rule(keys::OPT_ADAMW_BETA_2, Count::Once, &[Check::Number(0.999)], FIXED),
    rule(keys::OPT_ADAMW_EPSILON, Count::Once, &[Check::Number(1e-8)], FIXED),
    rule(keys::OPT_ADAMW_WEIGHT_DECAY, Count::Once, &[Check::Number(0.01)], FIXED),
    rule(keys::OPT_BASE_LEARNING_RATE, Count::Once, &[Check::AtLeast(0.0)], RATE),
    rule(keys::OPT_LEARNING_RATE_WARMUP_STEPS, Count::Once, &[Check::AtLeast(0.0)], WARMUP),
    AGGREGATED,
];

const OPEN_STABLE_DIFFUSION: &[KeyRule] = &[AGGREGATED];

/// Both divisions want two evaluations that are complete.
const AGGREGATED: KeyRule = rule(
    keys::AGGREGATED_EVAL_ACCURACY,
    Count::AtLeast(2),
    &[],
    "evaluate at two sample counts or more, and log FID and CLIP of each with the same `samples_count`",
);

const CLOSED_FLUX: &[KeyRule] = &[
    rule(keys::GLOBAL_BATCH_SIZE, Count::AtLeast(1), &[Check::AtLeast(0.0)], BATCH),
    rule(
        keys::EVALUATION_FREQUENCY,
        Count::Once,
        &[Check::Number(262_144.0)],
        "evaluate after every 262144 samples and log that once",
    ),
    rule(keys::OPT_NAME, Count::Once, ADAMW, FIXED),
    rule(keys::OPT_ADAMW_BETA_1, Count::Once, &[Check::Number(0.9)], FIXED),
    rule(keys::OPT_ADAMW_BETA_2, Count::Once, &[Check::Number(0.95)], FIXED),
    rule(keys::OPT_ADAMW_EPSILON, Count::Once, &[Check::Number(1e-8)], FIXED),
    rule(keys::OPT_ADAMW_WEIGHT_DECAY, Count::Once, &[Check::Number(0.1)], FIXED),
    rule(keys::OPT_BASE_LEARNING_RATE, Count::Once, &[Check::AtLeast(0.0)], RATE),
    rule(keys::OPT_LEARNING_RATE_WARMUP_STEPS, Count::Once, &[Check::AtLeast(0.0)], WARMUP),
    rule(keys::OPT_GRADIENT_CLIP_NORM, Count::Once, &[Check::Number(1.0)], FIXED),
    rule(keys::EVAL_ACCURACY, Count::AtLeast(1), &[Check::Metadata(&[keys::SAMPLES_COUNT])], SAY_SAMPLES),
];

/// Round 6.1, in place of the rules above: evaluations lie whole batches apart.
const CLOSED_FLUX_6_1: &[KeyRule] = &[
    rule(keys::GLOBAL_BATCH_SIZE, Count::AtLeast(1), &[Check::Above(0.0)], BATCH),
    rule(
        keys::EVALUATION_FREQUENCY,
        Count::Once,
        &[Check::EvaluationInterval],
        "evaluate after every 262144 samples, rounded up to whole batches, and log that once, behind global_batch_size",
    ),
];

const OPEN_FLUX: &[KeyRule] = &[rule(
    keys::AVERAGED_VALIDATION_LOSS,
    Count::AtLeast(1),
    &[Check::Metadata(&[keys::SAMPLES_COUNT])],
    "log the validation loss under this key, too, with `samples_count` in its metadata",
)];

fn benchmark_rules(ruleset: Ruleset, division: Division, benchmark: Benchmark) -> Vec<&'static [KeyRule]> {
    match (benchmark, division) {
        (Benchmark::StableDiffusion, Division::Closed) => vec![CLOSED_STABLE_DIFFUSION],
        (Benchmark::StableDiffusion, Division::Open) => vec![OPEN_STABLE_DIFFUSION],
        (Benchmark::Flux1, Division::Open) => vec![OPEN_FLUX],
        (Benchmark::Flux1, Division::Closed) if ruleset == Ruleset::V6_1 => vec![CLOSED_FLUX, CLOSED_FLUX_6_1],
        (Benchmark::Flux1, Division::Closed) => vec![CLOSED_FLUX],
    }
}

fn target(division: Division, benchmark: Benchmark) -> Target {
    match (benchmark, division) {
        (Benchmark::StableDiffusion, Division::Closed) => Target::FidAndClip,
        (Benchmark::StableDiffusion, Division::Open) => Target::AnyFidAndClip,
        (Benchmark::Flux1, Division::Closed) => Target::Loss(keys::EVAL_ACCURACY),
        (Benchmark::Flux1, Division::Open) => Target::Loss(keys::AVERAGED_VALIDATION_LOSS),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_hold_what_the_rules_ask() {
        // Numbers of keys of common.yaml, closed_common.yaml and the benchmark's file, counted in mlperf-logging 4.1.68; Flux.1
        // and common rules share eval_accuracy. Round 6.0 has a 26th key, config_filename, of which it asks nothing.
        for (ruleset, benchmark, closed, open) in [
            (Ruleset::V4_0, Benchmark::StableDiffusion, 18 + 2 + 9, 18 + 1 + 1),
            (Ruleset::V4_1, Benchmark::StableDiffusion, 17 + 2 + 9, 17 + 1 + 1),
            (Ruleset::V5_0, Benchmark::StableDiffusion, 15 + 2 + 9, 15 + 1 + 1),
            (Ruleset::V5_1, Benchmark::Flux1, 17 + 2 + 11 - 1, 17 + 1 + 1),
            (Ruleset::V6_0, Benchmark::Flux1, 25 + 2 + 11 - 1, 25 + 1 + 1),
            (Ruleset::V6_1, Benchmark::Flux1, 26 + 2 + 11 - 1, 26 + 1 + 1),
        ] {
            let count = |division| LogRules::of(ruleset, Some(division), Some(benchmark)).keys.len();
            assert_eq!((count(Division::Closed), count(Division::Open)), (closed, open), "{ruleset}");
            let common = LogRules::of(ruleset, None, Some(benchmark));
            assert!(common.target.is_none() && common.keys.iter().all(|rule| rule.key != keys::SUBMISSION_BENCHMARK));
        }
        let other = LogRules::of(Ruleset::V5_1, Some(Division::Closed), Some(Benchmark::StableDiffusion));
        assert!(other.target.is_none() && other.keys.len() == 19);
    }
}
