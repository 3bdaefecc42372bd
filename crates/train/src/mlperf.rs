//! Training as a run of an MLPerf benchmark: the table `[mlperf]`, and what the run's log says of its settings.
//!
//! The log is written by a tracker ([`crate::trackers`]), evaluations come from the hook `[hooks.benchmark]` ([`crate::hooks`]);
//! what logs and rules are, `calotype_mlperf` knows.

use crate::config::{SettingError, check, is_no, is_usual};
use crate::hooks::HookSettings;
use crate::optim::{LrSchedule, Span, TrainConfig, UpdateRule};
use crate::trainer::RECIPE;
use calotype_mlperf::{AdamW, Benchmark, Disclosure, Metric, PerMetric, Settings, Submission};
use calotype_ops::Precision;
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};
use std::fmt::Display;

/// Name of the log in a run's folder.
pub const LOG: &str = "mlperf_compliance.log";

/// `[mlperf]`: who submits what, and what the recipe does not say elsewhere.
///
/// ```
/// use calotype_train::mlperf::MlperfSettings;
/// let text = "
///     benchmark = 'stable_diffusion'
///     division = 'closed'
///     org = 'org'
///     platform = 'box'
///     status = 'onprem'
///     targets = { fid = 120.0 }
/// ";
/// let settings: MlperfSettings = toml::from_str(text).unwrap();
/// assert!(settings.enabled && settings.targets.fid == Some(120.0));
/// let error = toml::from_str::<MlperfSettings>(&format!("{text}\norgg = 'x'")).unwrap_err().to_string();
/// assert!(error.contains("unknown field `orgg`"));
/// ```
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MlperfSettings {
    /// Whether the log is written. A table without this key asks for it.
    pub enabled: bool,
    /// Who submits what: `benchmark`, `division`, `org`, `platform`, `status`, `poc_name`, `poc_email`.
    #[serde(flatten)]
    pub submission: Submission,
    /// Whether the system's caches were cleared before the run. A launcher that clears them may log that itself, in front.
    #[serde(skip_serializing_if = "is_no")]
    pub cache_cleared: bool,
    /// Samples of the training set, where the rules want another number than the dataset's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub train_samples: Option<u64>,
    /// Samples of an evaluation; by default the benchmark's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval_samples: Option<u64>,
    /// What an evaluation has to reach in place of the rules' targets.
    #[serde(skip_serializing_if = "is_usual")]
    pub targets: PerMetric<f64>,
}

impl<'de> Deserialize<'de> for MlperfSettings {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Raw {
            enabled: Option<bool>,
            #[serde(default)]
            cache_cleared: bool,
            train_samples: Option<u64>,
            eval_samples: Option<u64>,
            #[serde(default)]
            targets: PerMetric<f64>,
            /// Read by itself: behind a flattened type, keys that nobody knows would be lost.
            #[serde(flatten)]
            submission: toml::Table,
        }
        let raw = Raw::deserialize(deserializer)?;
        let submission = toml::Value::Table(raw.submission).try_into();
        let submission = submission.map_err(|error: toml::de::Error| D::Error::custom(own_keys(error.message())))?;
        Ok(Self {
            enabled: raw.enabled.unwrap_or(true),
            submission,
            cache_cleared: raw.cache_cleared,
            train_samples: raw.train_samples,
            eval_samples: raw.eval_samples,
            targets: raw.targets,
        })
    }
}

/// The message about a key that nobody knows, with the keys that stand beside the submission's.
fn own_keys(message: &str) -> String {
    let message = message.trim();
    match message.starts_with("unknown field") {
        true => format!("{message}, `enabled`, `cache_cleared`, `train_samples`, `eval_samples`, `targets`"),
        false => message.to_owned(),
    }
}

impl MlperfSettings {
    /// Checks the table with those that it goes with.
    fn validate(&self, config: &TrainConfig<'_>) -> Result<(), SettingError> {
        for (key, samples) in [("mlperf.train_samples", self.train_samples), ("mlperf.eval_samples", self.eval_samples)]
        {
            check(samples != Some(0), key, || "must be at least 1".to_owned())?;
        }
        let impossible = self.targets.impossible();
        check(impossible.is_none(), "mlperf.targets", || impossible.unwrap_or_default())?;
        if !self.enabled {
            return Ok(());
        }
        let empty = self.submission.empty_field();
        let key = if empty == Some("platform") { "mlperf.platform" } else { "mlperf.org" };
        check(empty.is_none(), key, || "is empty; the rules ask for a name".to_owned())?;
        let names = [("mlperf.org", &self.submission.org), ("mlperf.platform", &self.submission.platform)];
        for (key, name) in names {
            check(!name.contains(['/', '\\', ' ']), key, || {
                format!("`{name}` becomes the name of a folder in a submission: leave out spaces and slashes")
            })?;
        }
        check(matches!(config.optimizer.rule, UpdateRule::AdamW(_)), "mlperf.enabled", || {
            let name = config.optimizer.rule.name();
            format!("the rules know AdamW alone, and optimizer.name is `{name}`; use adamw, or leave [mlperf] out")
        })
    }

    /// Samples between two evaluations as the rules have it, for optimizer steps of `batch` samples.
    pub(crate) fn interval(&self, batch: u64) -> u64 {
        self.submission.benchmark.evaluation_interval(batch)
    }

    /// Whether results reach the targets: those of the recipe, and of the rules where it has none.
    pub fn reached(&self, results: &[(Metric, f64)]) -> bool {
        self.targets.reached(self.submission.benchmark, results)
    }

    /// What the log says of a run on `dataset` samples by `world` processes, whose activations are of `precision`.
    pub(crate) fn settings(
        &self,
        config: &TrainConfig<'_>,
        dataset: usize,
        world: usize,
        precision: Precision,
    ) -> Option<Settings> {
        let UpdateRule::AdamW(adamw) = &config.optimizer.rule else { return None };
        let (benchmark, batch) = (self.submission.benchmark, config.run.batch_size as u64);
        let flux = benchmark == Benchmark::Flux1;
        Some(Settings {
            seed: config.run.seed,
            train_samples: self.train_samples.unwrap_or(dataset as u64),
            eval_samples: self.eval_samples.unwrap_or(benchmark.evaluation_samples()),
            gradient_accumulation_steps: config.optimizer.accumulate as u64,
            global_batch_size: batch,
            optimizer: AdamW {
                beta_1: decimal(adamw.beta1),
                beta_2: decimal(adamw.beta2),
                epsilon: decimal(adamw.eps),
                weight_decay: decimal(adamw.weight_decay),
                base_learning_rate: config.optimizer.peak(batch),
                warmup_steps: warmup_steps(&config.optimizer.schedule, batch),
                gradient_clip_norm: flux.then_some(decimal(config.optimizer.gradient_clip)),
            },
            disclosure: flux.then(|| disclosure(config, world, precision)),
        })
    }
}

/// The number that a setting was written as: 0.9 in `f32` is another number than 0.9, and the rules compare with the latter.
fn decimal<T: Display + Copy + Into<f64>>(value: T) -> f64 {
    value.to_string().parse().unwrap_or_else(|_| value.into())
}

/// Steps over which a schedule's rate rises: its key `warmup`, which all schedules have that warm up.
fn warmup_steps(schedule: &LrSchedule, batch: u64) -> u64 {
    let settings = toml::Table::try_from(schedule).unwrap_or_default();
    let warmup = settings.get("warmup").and_then(|length| length.clone().try_into::<Span>().ok());
    warmup.unwrap_or(Span::ZERO).samples(batch).div_ceil(batch.max(1))
}

/// What rounds from 6.0 on want to be told: only batches are split here, and gradients are sent as they are.
fn disclosure(config: &TrainConfig<'_>, world: usize, precision: Precision) -> Disclosure {
    let activations = if precision == Precision::Bf16 { "bfloat16" } else { "fp32" };
    Disclosure {
        linear_precision: activations.to_owned(),
        attention_precision: activations.to_owned(),
        communication_precision: "fp32".to_owned(),
        tensor_parallelism: 1,
        pipeline_parallelism: 1,
        context_parallelism: 1,
        expert_parallelism: 1,
        micro_batch_size: (config.micro_batch() / world.max(1)) as u64,
        config_filename: RECIPE.to_owned(),
    }
}

/// Checks `[mlperf]` and `[hooks.benchmark]`.
pub(crate) fn check_tables(
    mlperf: Option<&MlperfSettings>,
    config: &TrainConfig<'_>,
    hooks: &HookSettings,
) -> Result<(), SettingError> {
    if let Some(mlperf) = mlperf {
        mlperf.validate(config)?;
    }
    let Some(hook) = &hooks.benchmark else { return Ok(()) };
    let Some(mlperf) = mlperf else {
        let problem = "needs the table [mlperf], which names the benchmark; mlperf.enabled = false writes no log";
        return Err(SettingError { key: "hooks.benchmark", problem: problem.to_owned() });
    };
    hook.check_results(mlperf.submission.benchmark)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{OptimizerSettings, RunSettings};

    const TABLE: &str =
        "benchmark = 'stable_diffusion'\ndivision = 'closed'\norg = 'org'\nplatform = 'box'\nstatus = 'onprem'\n";
    const RUN: &str = "seed = 7\nsamples = 4096\nbatch_size = 512\nlog_every = 512\ncheckpoint_every = 512\n";

    fn read(more: &str) -> MlperfSettings {
        toml::from_str(&format!("{TABLE}{more}")).unwrap()
    }

    fn settings(mlperf: &MlperfSettings, optimizer: &str) -> Settings {
        let (run, optimizer): (RunSettings, OptimizerSettings) =
            (toml::from_str(RUN).unwrap(), toml::from_str(optimizer).unwrap());
        mlperf.settings(&TrainConfig::new(&run, &optimizer, None), 1694, 2, Precision::Bf16).unwrap()
    }

    #[test]
    fn settings_read_what_they_write() {
        for more in [
            "",
            "enabled = false\ntargets = { clip = 0.1 }\ncache_cleared = true\npoc_name = 'me'\ntrain_samples = 5\n",
        ] {
            let settings = read(more);
            let text = toml::to_string(&settings).unwrap();
            assert_eq!(toml::from_str::<MlperfSettings>(&text).unwrap(), settings, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_is_named() {
        for (text, part) in [
            (TABLE.replace("org = 'org'\n", ""), "missing field `org`"),
            (TABLE.replace("closed", "shut"), "unknown variant `shut`"),
            (format!("{TABLE}targets = {{ FID = 3 }}"), "unknown field `FID`"),
            (format!("{TABLE}enable = true"), "`enabled`"),
        ] {
            let error = toml::from_str::<MlperfSettings>(&text).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        let (run, adamw): (RunSettings, OptimizerSettings) =
            (toml::from_str(RUN).unwrap(), OptimizerSettings::default());
        let sgd: OptimizerSettings = toml::from_str("name = 'sgd'").unwrap();
        let [adamw, sgd] = [&adamw, &sgd].map(|optimizer| TrainConfig::new(&run, optimizer, None));
        let key =
            |settings: &MlperfSettings, config: &TrainConfig<'_>| settings.validate(config).map_err(|error| error.key);
        assert_eq!(key(&read(""), &adamw), Ok(()));
        assert_eq!(key(&read(""), &sgd), Err("mlperf.enabled"));
        assert_eq!(key(&read("enabled = false"), &sgd), Ok(()));
        assert_eq!(key(&read("eval_samples = 0"), &adamw), Err("mlperf.eval_samples"));
        assert_eq!(key(&read("targets = { fid = nan }"), &adamw), Err("mlperf.targets"));
        for (table, wanted) in [("org", "mlperf.org"), ("box", "mlperf.platform")] {
            let nameless: MlperfSettings = toml::from_str(&TABLE.replace(&format!("'{table}'"), "''")).unwrap();
            assert_eq!(key(&nameless, &adamw), Err(wanted));
            let spaced: MlperfSettings = toml::from_str(&TABLE.replace(&format!("'{table}'"), "'my name'")).unwrap();
            assert_eq!(key(&spaced, &adamw), Err(wanted));
        }
        let hooks: HookSettings =
            toml::from_str("benchmark = { figures = [{ samples = 1, fid = 1, clip = 1 }] }").unwrap();
        let check = |mlperf| check_tables(mlperf, &adamw, &hooks).map_err(|error| error.key);
        assert_eq!((check(Some(&read(""))), check(None)), (Ok(()), Err("hooks.benchmark")));
    }

    /// Numbers of the rules, which are no `f32`.
    #[test]
    fn settings_are_those_of_the_recipe() {
        let text =
            "learning_rate = 1.1776e-4\naccumulate = 4\n[schedule]\nname = 'lambda_linear'\nwarmup = { steps = 1000 }";
        let found = settings(&read(""), text);
        let for_each_sample =
            settings(&read(""), &text.replace("learning_rate = 1.1776e-4", "base_learning_rate = 2.3e-7"));
        assert!((for_each_sample.optimizer.base_learning_rate / 1.1776e-4 - 1.0).abs() < 1e-12);
        assert_eq!(
            found,
            Settings {
                seed: 7,
                train_samples: 1694,
                eval_samples: 30_000,
                gradient_accumulation_steps: 4,
                global_batch_size: 512,
                optimizer: AdamW {
                    beta_1: 0.9,
                    beta_2: 0.999,
                    epsilon: 1e-8,
                    weight_decay: 0.01,
                    base_learning_rate: 1.1776e-4,
                    warmup_steps: 1000,
                    gradient_clip_norm: None,
                },
                disclosure: None,
            }
        );
        let found = settings(&read("train_samples = 6513144\neval_samples = 10"), "warmup_samples = 513");
        assert_eq!((found.train_samples, found.eval_samples, found.optimizer.warmup_steps), (6_513_144, 10, 2));
        assert_eq!(settings(&read(""), "").optimizer.warmup_steps, 0);
        let flux: MlperfSettings = toml::from_str(&TABLE.replace("stable_diffusion", "flux1")).unwrap();
        let found = settings(&flux, "gradient_clip = 1.0\naccumulate = 2");
        assert_eq!((found.eval_samples, found.optimizer.gradient_clip_norm), (29_696, Some(1.0)));
        let disclosed = found.disclosure.unwrap();
        assert_eq!((disclosed.micro_batch_size, disclosed.linear_precision.as_str()), (128, "bfloat16"));
    }

    #[test]
    fn targets_of_the_recipe_take_the_place_of_the_rules() {
        let reached = |more: &str, fid, clip| read(more).reached(&[(Metric::Fid, fid), (Metric::Clip, clip)]);
        assert!(reached("", 90.0, 0.15) && !reached("", 90.1, 0.15) && !reached("", f64::NAN, 0.15));
        let easier = "targets = { fid = 300.0 }";
        assert!(reached(easier, 300.0, 0.15) && !reached(easier, 300.1, 0.15) && !reached(easier, 300.0, 0.14));
        assert!(reached("targets = { fid = 300, clip = -1 }", 20.0, -0.5));
        assert!(!read("").reached(&[(Metric::Fid, 1.0)]));
    }
}
