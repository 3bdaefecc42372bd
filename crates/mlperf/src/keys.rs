//! Names of log lines and of their metadata, as MLCommons' `mllog` has them.

pub(crate) const CACHE_CLEAR: &str = "cache_clear";
pub(crate) const INIT_START: &str = "init_start";
pub(crate) const INIT_STOP: &str = "init_stop";
pub(crate) const RUN_START: &str = "run_start";
pub(crate) const RUN_STOP: &str = "run_stop";
pub(crate) const BLOCK_START: &str = "block_start";
pub(crate) const BLOCK_STOP: &str = "block_stop";
pub(crate) const EPOCH_START: &str = "epoch_start";
pub(crate) const EPOCH_STOP: &str = "epoch_stop";
pub(crate) const EVAL_START: &str = "eval_start";
pub(crate) const EVAL_STOP: &str = "eval_stop";
pub(crate) const EVAL_ACCURACY: &str = "eval_accuracy";
/// An older name of the same.
pub(crate) const EVAL_ERROR: &str = "eval_error";
/// What an open submission of Flux.1 logs instead.
pub(crate) const AVERAGED_VALIDATION_LOSS: &str = "averaged_validation_loss";
/// A Stable Diffusion evaluation's lines together, by their sample count; not a line of its own.
pub(crate) const AGGREGATED_EVAL_ACCURACY: &str = "aggregated_eval_accuracy";

pub(crate) const SUBMISSION_BENCHMARK: &str = "submission_benchmark";
pub(crate) const SUBMISSION_DIVISION: &str = "submission_division";
pub(crate) const SUBMISSION_ORG: &str = "submission_org";
pub(crate) const SUBMISSION_PLATFORM: &str = "submission_platform";
pub(crate) const SUBMISSION_STATUS: &str = "submission_status";
pub(crate) const SUBMISSION_POC_NAME: &str = "submission_poc_name";
pub(crate) const SUBMISSION_POC_EMAIL: &str = "submission_poc_email";
/// Of keys with this in their name, only the first line is checked.
pub(crate) const SUBMISSION: &str = "submission_";

pub(crate) const SEED: &str = "seed";
pub(crate) const TRAIN_SAMPLES: &str = "train_samples";
pub(crate) const EVAL_SAMPLES: &str = "eval_samples";
pub(crate) const GLOBAL_BATCH_SIZE: &str = "global_batch_size";
pub(crate) const GRADIENT_ACCUMULATION_STEPS: &str = "gradient_accumulation_steps";
pub(crate) const EVALUATION_FREQUENCY: &str = "evaluation_frequency";
pub(crate) const OPT_NAME: &str = "opt_name";
pub(crate) const OPT_ADAMW_BETA_1: &str = "opt_adamw_beta_1";
pub(crate) const OPT_ADAMW_BETA_2: &str = "opt_adamw_beta_2";
pub(crate) const OPT_ADAMW_EPSILON: &str = "opt_adamw_epsilon";
pub(crate) const OPT_ADAMW_WEIGHT_DECAY: &str = "opt_adamw_weight_decay";
pub(crate) const OPT_BASE_LEARNING_RATE: &str = "opt_base_learning_rate";
pub(crate) const OPT_LEARNING_RATE_WARMUP_STEPS: &str = "opt_learning_rate_warmup_steps";
pub(crate) const OPT_GRADIENT_CLIP_NORM: &str = "opt_gradient_clip_norm";

pub(crate) const PRECISION_IN_LINEAR: &str = "lowest_numerical_precision_in_linear";
pub(crate) const PRECISION_IN_ATTENTION: &str = "lowest_numerical_precision_in_attn";
pub(crate) const PRECISION_IN_COMMUNICATION: &str = "lowest_numerical_precision_in_comm";
pub(crate) const TENSOR_PARALLELISM: &str = "tensor_parallelism";
pub(crate) const PIPELINE_PARALLELISM: &str = "pipeline_parallelism";
pub(crate) const CONTEXT_PARALLELISM: &str = "context_parallelism";
pub(crate) const EXPERT_PARALLELISM: &str = "expert_parallelism";
pub(crate) const MICRO_BATCH_SIZE: &str = "micro_batch_size";
pub(crate) const CONFIG_FILENAME: &str = "config_filename";

pub(crate) const LOSS: &str = "loss";
pub(crate) const LEARNING_RATE: &str = "lr_abs";

/// Of metadata.
pub(crate) const SAMPLES_COUNT: &str = "samples_count";
pub(crate) const EPOCH_NUM: &str = "epoch_num";
pub(crate) const EPOCH_COUNT: &str = "epoch_count";
pub(crate) const FIRST_EPOCH_NUM: &str = "first_epoch_num";
pub(crate) const METRIC: &str = "metric";
pub(crate) const STATUS: &str = "status";
pub(crate) const FILE: &str = "file";
pub(crate) const LINENO: &str = "lineno";
