//! The optimizer's part of a training recipe, and what a model is trained by.

use super::ema::EmaSettings;
use super::groups::GroupRule;
use super::lr::{Constant, Cosine, Linear, LrSchedule};
use super::position::{Position, Span};
use super::rule::UpdateRule;
use super::state::StateForm;
use super::table::read;
use crate::config::{RunSettings, SettingError};
use calotype_core::system::format_count;
use calotype_ops::packed::lean;
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use toml::{Table, Value};

/// The optimizer, its learning rate and its groups of parameters; table `optimizer` of a recipe. Without a `name` it is
/// AdamW.
///
/// ```
/// use calotype_train::optim::{LrSchedule, OptimizerSettings, UpdateRule};
/// let text = "
///     name = 'sgd'
///     learning_rate = 0.1
///     momentum = 0.9
///     accumulate = 4
///     [schedule]
///     name = 'cosine'
///     warmup = { steps = 500 }
///     [[groups]]
///     kinds = ['biases', 'norms']
///     weight_decay = 0.0
/// ";
/// let settings: OptimizerSettings = toml::from_str(text).unwrap();
/// assert!(matches!(settings.rule, UpdateRule::Sgd(_)) && matches!(settings.schedule, LrSchedule::Cosine(_)));
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct OptimizerSettings {
    /// How gradients change parameters, with weight decay.
    pub rule: UpdateRule,
    /// In what form moments are kept.
    pub state: StateForm,
    /// Peak learning rate; without meaning where there is a `base_learning_rate`.
    pub learning_rate: f64,
    /// The peak learning rate for each sample of a step's batch, as MLPerf and latent-diffusion publish it; instead of `learning_rate`.
    pub base_learning_rate: Option<f64>,
    /// Largest norm of the whole gradient; 0 does not clip.
    pub gradient_clip: f64,
    /// In how many parts the batch of a step goes through the network, one after the other; their gradients are summed.
    pub accumulate: usize,
    /// Whether each parameter is stepped during the backward pass, as soon as its gradient is complete: the gradients of
    /// a whole model are then never in memory at once. Without this setting, that is done for large models, where it can be;
    /// with `true`, weights are not packed in `bf16` either, which takes less memory and more time. The results are the same
    /// bits. Not with `gradient_clip`, which needs the norm of all gradients first, nor with `accumulate`, which needs all
    /// gradients of all parts. Devices other than the CPU step after the backward pass all the same.
    pub in_backward: Option<bool>,
    /// The learning rate as a function of the samples seen.
    pub schedule: LrSchedule,
    /// Parameters that are trained differently.
    pub groups: Vec<GroupRule>,
}

/// When parameters are stepped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stepping {
    /// All at once, behind the backward pass.
    AfterBackward,
    /// Each in the backward pass, as soon as its gradient is complete.
    InBackward {
        /// Whether weights are not packed, for the least memory.
        lean: bool,
    },
}

impl Stepping {
    /// Runs a forward or backward pass.
    pub fn pass<R>(self, pass: impl FnOnce() -> R) -> R {
        if self == (Self::InBackward { lean: true }) { lean(pass) } else { pass() }
    }
}

impl Serialize for OptimizerSettings {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        /// The keys that say something; of both learning rates the one that counts.
        #[derive(Serialize)]
        struct Written<'a> {
            #[serde(flatten)]
            rule: &'a UpdateRule,
            #[serde(skip_serializing_if = "Option::is_none")]
            state: Option<StateForm>,
            #[serde(skip_serializing_if = "Option::is_none")]
            learning_rate: Option<f64>,
            #[serde(skip_serializing_if = "Option::is_none")]
            base_learning_rate: Option<f64>,
            gradient_clip: f64,
            #[serde(skip_serializing_if = "Option::is_none")]
            accumulate: Option<usize>,
            #[serde(skip_serializing_if = "Option::is_none")]
            in_backward: Option<bool>,
            schedule: &'a LrSchedule,
            #[serde(skip_serializing_if = "Option::is_none")]
            groups: Option<&'a [GroupRule]>,
        }
        let written = Written {
            rule: &self.rule,
            state: Some(self.state).filter(|&state| state != StateForm::F32),
            learning_rate: self.base_learning_rate.is_none().then_some(self.learning_rate),
            base_learning_rate: self.base_learning_rate,
            gradient_clip: self.gradient_clip,
            accumulate: Some(self.accumulate).filter(|&parts| parts != 1),
            // Runs of earlier versions, whose recipes leave out `false`, go on with one that says it.
            in_backward: self.in_backward.filter(|&asked| asked),
            schedule: &self.schedule,
            groups: Some(self.groups.as_slice()).filter(|groups| !groups.is_empty()),
        };
        written.serialize(serializer)
    }
}

impl Default for OptimizerSettings {
    fn default() -> Self {
        Self {
            rule: UpdateRule::default(),
            state: StateForm::F32,
            learning_rate: 1e-4,
            base_learning_rate: None,
            gradient_clip: 0.0,
            accumulate: 1,
            in_backward: None,
            schedule: LrSchedule::default(),
            groups: Vec::new(),
        }
    }
}

/// The key `decay` of earlier recipes, in place of a schedule.
#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Decay {
    Constant,
    Cosine,
    Linear,
}

/// The schedule of the keys `warmup_samples` and `decay`.
fn earlier_schedule(warmup_samples: Option<u64>, decay: Option<Decay>) -> Option<LrSchedule> {
    let warmup = Span::Samples(warmup_samples.unwrap_or(0));
    let decay = decay.or(warmup_samples.map(|_| Decay::Constant))?;
    Some(match decay {
        Decay::Constant => LrSchedule::Constant(Constant { warmup }),
        Decay::Cosine => LrSchedule::Cosine(Cosine { warmup, ..Cosine::default() }),
        Decay::Linear => LrSchedule::Linear(Linear { warmup, ..Linear::default() }),
    })
}

impl<'de> Deserialize<'de> for OptimizerSettings {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Raw {
            learning_rate: Option<f64>,
            base_learning_rate: Option<f64>,
            state: Option<StateForm>,
            gradient_clip: Option<f64>,
            accumulate: Option<usize>,
            in_backward: Option<bool>,
            schedule: Option<LrSchedule>,
            warmup_samples: Option<u64>,
            decay: Option<Decay>,
            #[serde(default)]
            groups: Vec<GroupRule>,
            #[serde(flatten)]
            rule: toml::Table,
        }
        const KEYS: &[&str] = &[
            "learning_rate",
            "base_learning_rate",
            "state",
            "gradient_clip",
            "accumulate",
            "in_backward",
            "schedule",
            "groups",
        ];
        let raw = Raw::deserialize(deserializer)?;
        if raw.learning_rate.is_some() && raw.base_learning_rate.is_some() {
            return Err(D::Error::custom(
                "`base_learning_rate` times the batch is the rate, and so is `learning_rate`: remove one of them",
            ));
        }
        let schedule = match (raw.schedule, earlier_schedule(raw.warmup_samples, raw.decay)) {
            (Some(_), Some(_)) => {
                return Err(D::Error::custom(
                    "`schedule` replaces `decay` and `warmup_samples`: use schedule.name and schedule.warmup, and remove those",
                ));
            }
            (new, earlier) => new.or(earlier).unwrap_or_default(),
        };
        let usual = Self::default();
        Ok(Self {
            rule: read(raw.rule, "adamw", KEYS)?,
            learning_rate: raw.learning_rate.unwrap_or(usual.learning_rate),
            base_learning_rate: raw.base_learning_rate,
            state: raw.state.unwrap_or(usual.state),
            gradient_clip: raw.gradient_clip.unwrap_or(usual.gradient_clip),
            accumulate: raw.accumulate.unwrap_or(usual.accumulate),
            in_backward: raw.in_backward,
            schedule,
            groups: raw.groups,
        })
    }
}

impl OptimizerSettings {
    /// The learning rate of the step that ends at a position: a pure function of progress.
    pub fn learning_rate_at(&self, at: &Position) -> f64 {
        self.schedule.get().rate(self.peak(at.batch_size), at)
    }

    /// The peak learning rate in steps of `batch_size` samples.
    pub fn peak(&self, batch_size: u64) -> f64 {
        self.base_learning_rate.map_or(self.learning_rate, |base| base * batch_size as f64)
    }

    /// When the parameters of a model of so many are stepped, on the CPU and in one process.
    pub fn stepping(&self, parameters: usize) -> Stepping {
        // 256 MiB of gradients: below, there is little to save, and one pass over all parameters is faster.
        const LARGE: usize = 64 << 20;
        let possible = self.gradient_clip == 0.0 && self.accumulate == 1;
        match self.in_backward {
            Some(true) => Stepping::InBackward { lean: true },
            None if possible && parameters >= LARGE => Stepping::InBackward { lean: false },
            _ => Stepping::AfterBackward,
        }
    }

    /// Checks what the types cannot.
    ///
    /// # Errors
    /// [`SettingError`] naming the key.
    pub fn validate(&self) -> Result<(), SettingError> {
        let refuse = |key, problem| SettingError { key, problem };
        let check =
            |ok: bool, key, problem: &dyn Fn() -> String| ok.then_some(()).ok_or_else(|| refuse(key, problem()));
        check(self.learning_rate >= 0.0 && self.learning_rate.is_finite(), "optimizer.learning_rate", &|| {
            format!("{} is not a rate; use a number of at least 0", self.learning_rate)
        })?;
        check(
            self.base_learning_rate.is_none_or(|base| base >= 0.0 && base.is_finite()),
            "optimizer.base_learning_rate",
            &|| {
                let rate = self.base_learning_rate.unwrap_or_default();
                format!("{rate} is not a rate; use a number of at least 0")
            },
        )?;
        let adamw = matches!(self.rule, UpdateRule::AdamW(_));
        check(self.state == StateForm::F32 || adamw, "optimizer.state", &|| {
            format!("{} is for the moments of adamw, not for {}; leave it out", self.state, self.rule.name())
        })?;
        self.rule.get().validate().map_err(|(key, problem)| refuse(key, problem))?;
        self.schedule.get().validate()?;
        for (index, group) in self.groups.iter().enumerate() {
            let numbered = |problem| refuse("optimizer.groups", format!("number {}: {problem}", index + 1));
            group.validate().map_err(numbered)?;
        }
        check(self.gradient_clip >= 0.0, "optimizer.gradient_clip", &|| {
            format!("{} is no norm; use a number of at least 0, where 0 does not clip", self.gradient_clip)
        })?;
        check(self.accumulate > 0, "optimizer.accumulate", &|| "must be at least 1".to_owned())?;
        check(self.in_backward != Some(true) || self.gradient_clip == 0.0, "optimizer.in_backward", &|| {
            "cannot go with optimizer.gradient_clip: the norm of the whole gradient is known only after the backward \
             pass; set gradient_clip = 0 or in_backward = false"
                .to_owned()
        })?;
        check(self.in_backward != Some(true) || self.accumulate == 1, "optimizer.in_backward", &|| {
            "cannot go with optimizer.accumulate: a parameter is stepped with the gradient of the whole batch, which is \
             known only after the last part's backward pass; set accumulate = 1 or in_backward = false"
                .to_owned()
        })
    }
}

/// What a model is trained by; the part that all training recipes share.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainConfig<'a> {
    /// Length and book-keeping.
    pub run: &'a RunSettings,
    /// The optimizer.
    pub optimizer: &'a OptimizerSettings,
    /// Moving average of the weights, if any.
    pub ema: Option<&'a EmaSettings>,
    /// Groups of parameters that the task asks for; those of the recipe's optimizer come after them and win.
    pub groups: Vec<GroupRule>,
}

impl<'a> TrainConfig<'a> {
    /// With no groups of the task's own.
    pub fn new(run: &'a RunSettings, optimizer: &'a OptimizerSettings, ema: Option<&'a EmaSettings>) -> Self {
        Self { run, optimizer, ema, groups: Vec::new() }
    }

    /// Where the run is after `samples` samples.
    pub fn position(&self, samples: u64) -> Position {
        Position { samples, batch_size: self.run.batch_size as u64, total: self.run.samples }
    }

    /// Samples that go through the network at once.
    pub fn micro_batch(&self) -> usize {
        self.run.batch_size / self.optimizer.accumulate.max(1)
    }

    /// What settings that count steps, or are for each sample of a batch, are in this run, a sentence each.
    pub fn conversions(&self) -> Vec<String> {
        let batch = self.run.batch_size as u64;
        let mut found = Vec::new();
        if let Some(base) = self.optimizer.base_learning_rate {
            // Of a product, an f32 shows what was meant: 6.4e-5, and not 6.400000000000001e-5.
            let peak = self.optimizer.peak(batch) as f32;
            found.push(format!(
                "optimizer.base_learning_rate {base:e} × {} samples of a batch = a learning rate of {peak:e}",
                format_count(batch)
            ));
        }
        let tables = [
            ("optimizer.schedule", Table::try_from(&self.optimizer.schedule)),
            ("ema", self.ema.map_or_else(|| Ok(Table::new()), Table::try_from)),
        ];
        for (name, table) in tables {
            for (key, value) in table.unwrap_or_default() {
                let steps = value.get("steps").and_then(Value::as_integer).and_then(|steps| u64::try_from(steps).ok());
                let Some(steps) = steps else { continue };
                let samples = Span::Steps(steps).samples(batch);
                let [steps, batch, samples] = [steps, batch, samples].map(format_count);
                found.push(format!("{name}.{key} {steps} steps × {batch} = {samples} samples"));
            }
        }
        found
    }

    /// What of the learning rate's schedule and of the average a run that ends after `total` samples does not come to, a sentence each.
    pub fn out_of_reach(&self, total: u64) -> Vec<String> {
        let batch = self.run.batch_size as u64;
        let peak = self.optimizer.peak(batch);
        let table = Table::try_from(&self.optimizer.schedule).unwrap_or_default();
        let samples = |value: &Value| Span::deserialize(value.clone()).ok().map(|span| span.samples(batch));
        let mut found = Vec::new();
        if let Some(warmup) = table.get("warmup").and_then(samples).filter(|warmup| *warmup > total && peak > 0.0) {
            // Of a product, an f32 shows what was meant.
            let [last, peak] = [self.optimizer.learning_rate_at(&self.position(total)), peak].map(|rate| rate as f32);
            let [warmup, total] = [warmup, total].map(format_count);
            found.push(format!(
                "optimizer.schedule.warmup is {warmup} samples, and the run ends after {total}: the learning rate ends at {last:e} of \
                 {peak:e}; shorten the warm-up, or train longer"
            ));
        }
        // Places at which the rate falls.
        let listed = table.get("milestones").and_then(Value::as_array).into_iter().flatten();
        let places: Vec<u64> = listed.chain(table.get("every")).filter_map(samples).collect();
        if let Some(first) = places.iter().min().filter(|first| **first >= total) {
            let [first, total] = [*first, total].map(format_count);
            found.push(format!(
                "optimizer.schedule lowers the learning rate after {first} samples for the first time, and the run ends after {total}: \
                 it stays as it is"
            ));
        }
        if let Some(start) = self.ema.map(|ema| ema.start.samples(batch)).filter(|start| *start >= total) {
            let [start, total] = [start, total].map(format_count);
            found.push(format!(
                "ema.start is {start} samples, and the run ends after {total}: the average is the trained weights"
            ));
        }
        found
    }

    /// Checks what the types cannot.
    ///
    /// # Errors
    /// [`SettingError`] naming the key.
    pub fn validate(&self) -> Result<(), SettingError> {
        self.run.validate()?;
        self.optimizer.validate()?;
        if let Some(ema) = self.ema {
            ema.validate()?;
        }
        let (batch, parts) = (self.run.batch_size, self.optimizer.accumulate);
        if !batch.is_multiple_of(parts) {
            let problem = format!("{parts} parts do not divide run.batch_size = {batch}; use a divisor of it");
            return Err(SettingError { key: "optimizer.accumulate", problem });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::adamw::AdamW;
    use super::*;

    fn read_settings(text: &str) -> OptimizerSettings {
        toml::from_str(text).unwrap()
    }

    fn error(text: &str) -> String {
        toml::from_str::<OptimizerSettings>(text).unwrap_err().to_string()
    }

    #[test]
    fn learning_rate_is_a_function_of_samples() {
        let settings = read_settings("learning_rate = 1.0\nwarmup_samples = 100\ndecay = 'cosine'");
        let rate = |samples| settings.learning_rate_at(&Position { samples, batch_size: 10, total: 1100 });
        assert_eq!((rate(0), rate(50), rate(100)), (0.0, 0.5, 1.0));
        assert!((rate(600) - 0.5).abs() < 1e-12 && rate(1100) < 1e-12 && rate(5000) < 1e-12);
    }

    #[test]
    fn earlier_recipes_read() {
        let new = read_settings("beta2 = 0.98\nschedule = { name = 'cosine', warmup = 2000 }");
        assert_eq!(read_settings("beta2 = 0.98\nwarmup_samples = 2000\ndecay = 'cosine'"), new);
        assert_eq!(new.rule, UpdateRule::AdamW(AdamW { beta2: 0.98, ..AdamW::default() }));
        let warm = read_settings("warmup_samples = 7");
        assert_eq!(warm.schedule, LrSchedule::Constant(Constant { warmup: Span::Samples(7) }));
        let both = error("warmup_samples = 2000\nschedule = { name = 'linear' }");
        assert!(both.contains("schedule.warmup"), "{both}");
    }

    #[test]
    fn settings_read_what_they_write() {
        let text = "name = 'sgd'\nmomentum = 0.9\naccumulate = 2\n[schedule]\nname = 'multi_step'\nmilestones = [{ steps = 3 }]\n\
                    [[groups]]\nkinds = ['biases']\nweight_decay = 0.0";
        for settings in [OptimizerSettings::default(), read_settings(text), read_settings("state = '8bit'")] {
            let written = toml::to_string(&settings).unwrap();
            assert_eq!(read_settings(&written), settings, "{written}");
        }
    }

    #[test]
    fn a_rate_for_each_sample_grows_with_the_batch() {
        // MLPerf's: 1.25e-7 for each sample is 6.4e-5 for 512.
        let settings =
            read_settings("base_learning_rate = 1.25e-7\nschedule = { name = 'constant', warmup = { steps = 10 } }");
        let rate = |batch_size: u64, step: u64| {
            settings.learning_rate_at(&Position { samples: step * batch_size, batch_size, total: 1 << 30 })
        };
        assert!((rate(512, 10) - 6.4e-5).abs() < 1e-18 && (rate(2048, 99) - 2.56e-4).abs() < 1e-18);
        assert!((rate(512, 5) - 3.2e-5).abs() < 1e-18);
        let written = toml::to_string(&settings).unwrap();
        assert!(written.contains("base_learning_rate") && !written.contains("\nlearning_rate"), "{written}");
        assert_eq!(read_settings(&written), settings);
        let both = error("learning_rate = 1e-4\nbase_learning_rate = 1e-7");
        assert!(both.contains("remove one"), "{both}");
    }

    fn run(samples: u64, batch_size: usize) -> RunSettings {
        RunSettings {
            seed: 0,
            samples,
            batch_size,
            precision: Default::default(),
            log_every: 1,
            checkpoint_every: 1,
            keep_checkpoints: 1,
            keep_every: None,
        }
    }

    #[test]
    fn what_a_run_does_not_come_to_is_told() {
        let told = |schedule: &str, samples: u64| {
            let optimizer = read_settings(&format!("learning_rate = 1e-3\nschedule = {{ {schedule} }}"));
            TrainConfig::new(&run(samples, 8), &optimizer, None).out_of_reach(samples)
        };
        let warmup = told("name = 'constant', warmup = 4000", 64);
        assert_eq!(
            warmup,
            [
                "optimizer.schedule.warmup is 4,000 samples, and the run ends after 64: the learning rate ends at 1.6e-5 of 1e-3; \
              shorten the warm-up, or train longer"
            ]
        );
        assert!(told("name = 'cosine', warmup = { steps = 500 }", 64)[0].contains("warmup is 4,000 samples"));
        for name in ["constant", "cosine", "linear", "inverse_sqrt", "step", "lambda_linear", "warmup_hold"] {
            let more = if name == "step" { ", every = 32" } else { "" };
            assert!(told(&format!("name = '{name}', warmup = 64{more}"), 64).is_empty(), "{name}");
            assert_eq!(told(&format!("name = '{name}', warmup = 65{more}"), 64).len(), 1, "{name}");
        }
        let falls = "after 80 samples for the first time, and the run ends after 80";
        assert!(told("name = 'multi_step', milestones = [{ steps = 20 }, 80]", 80)[0].contains(falls));
        assert!(told("name = 'step', every = 80", 80)[0].contains(falls));
        assert!(told("name = 'multi_step', milestones = [72, { steps = 20 }]", 80).is_empty());
        let ema: EmaSettings = toml::from_str("name = 'lit_ema'\nstart = { steps = 10 }").unwrap();
        let plain = read_settings("learning_rate = 1e-3");
        let averaged = |samples| TrainConfig::new(&run(samples, 8), &plain, Some(&ema)).out_of_reach(samples);
        assert!(averaged(80)[0].contains("ema.start is 80 samples, and the run ends after 80"));
        assert!(averaged(88).is_empty());
        let still = read_settings("learning_rate = 0.0\nschedule = { name = 'constant', warmup = 4000 }");
        assert!(TrainConfig::new(&run(64, 8), &still, None).out_of_reach(64).is_empty());
    }

    #[test]
    fn published_units_are_told_as_samples_and_rates() {
        let run = run(1 << 20, 512);
        let text = "base_learning_rate = 1.25e-7\nschedule = { name = 'lambda_linear', warmup = { steps = 1000 } }";
        let optimizer = read_settings(text);
        let ema: EmaSettings = toml::from_str("name = 'lit_ema'\nstart = { steps = 10 }\ninterval = 512").unwrap();
        let told = TrainConfig::new(&run, &optimizer, Some(&ema)).conversions();
        assert_eq!(
            told,
            [
                "optimizer.base_learning_rate 1.25e-7 × 512 samples of a batch = a learning rate of 6.4e-5",
                "optimizer.schedule.warmup 1,000 steps × 512 = 512,000 samples",
                "ema.start 10 steps × 512 = 5,120 samples",
            ]
        );
        let plain = read_settings("learning_rate = 1e-4\nschedule = { name = 'cosine', warmup = 2000 }");
        assert!(TrainConfig::new(&run, &plain, None).conversions().is_empty());
    }

    #[test]
    fn keys_of_another_optimizer_are_unknown() {
        let wrong = error("name = 'sgd'\nbeta1 = 0.5");
        assert!(wrong.contains("unknown field `beta1`") && wrong.contains("`momentum`"), "{wrong}");
        let wrong = error("learning_rat = 0.5");
        assert!(wrong.contains("unknown field `learning_rat`") && wrong.contains("`learning_rate`"), "{wrong}");
        assert!(error("name = 'adam'").contains("unknown variant `adam`"));
    }

    #[test]
    fn steps_in_the_backward_pass_cannot_be_clipped_nor_accumulated() {
        let settings = OptimizerSettings { in_backward: Some(true), ..OptimizerSettings::default() };
        assert_eq!(settings.validate(), Ok(()));
        for settings in [
            OptimizerSettings { gradient_clip: 1.0, ..settings.clone() },
            OptimizerSettings { accumulate: 2, ..settings },
        ] {
            assert_eq!(settings.validate().unwrap_err().key, "optimizer.in_backward");
        }
    }

    #[test]
    fn large_models_are_stepped_in_the_backward_pass_where_that_can_be() {
        const LARGE: usize = 100 << 20;
        let usual = OptimizerSettings::default();
        let clipped = OptimizerSettings { gradient_clip: 1.0, ..usual.clone() };
        let parts = OptimizerSettings { accumulate: 2, ..usual.clone() };
        let asked = |in_backward| OptimizerSettings { in_backward: Some(in_backward), ..usual.clone() };
        for (settings, parameters, stepping) in [
            (&usual, LARGE, Stepping::InBackward { lean: false }),
            (&usual, 1000, Stepping::AfterBackward),
            (&clipped, LARGE, Stepping::AfterBackward),
            (&parts, LARGE, Stepping::AfterBackward),
            (&asked(true), 1000, Stepping::InBackward { lean: true }),
            (&asked(false), LARGE, Stepping::AfterBackward),
        ] {
            assert_eq!(settings.stepping(parameters), stepping, "{settings:?}, {parameters}");
        }
    }

    #[test]
    fn what_cannot_be_is_named() {
        for (text, key) in [
            ("learning_rate = -1", "optimizer.learning_rate"),
            ("beta2 = 1.0", "optimizer.beta2"),
            ("name = 'sgd'\nnesterov = true", "optimizer.nesterov"),
            ("weight_decay = -1", "optimizer.weight_decay"),
            ("schedule = { name = 'step', every = 0 }", "optimizer.schedule.every"),
            ("groups = [{ frozen = true }]", "optimizer.groups"),
            ("accumulate = 0", "optimizer.accumulate"),
            ("base_learning_rate = -1", "optimizer.base_learning_rate"),
            ("name = 'sgd'\nstate = '8bit'", "optimizer.state"),
        ] {
            assert_eq!(read_settings(text).validate().unwrap_err().key, key, "{text}");
        }
    }
}
