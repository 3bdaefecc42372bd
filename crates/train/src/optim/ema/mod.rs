//! Forms of the moving average of the weights, one file each: pure functions of progress.

mod constant;
mod diffusers;
mod half_life;
mod lit_ema;
mod post_hoc;
mod power_function;

pub use constant::Constant;
pub use diffusers::Diffusers;
pub use half_life::HalfLife;
pub use lit_ema::LitEma;
pub use post_hoc::PostHoc;
pub use power_function::{Fit, PowerFunction, Snapshot, fit};

use super::position::{Position, Span};
use super::table::{read, table};
use crate::config::{SettingError, check};
use serde::{Deserialize, Deserializer, Serialize};

/// Where in the run an average is updated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AverageProgress {
    /// Samples seen since the average began.
    pub samples: u64,
    /// Samples between two updates.
    pub interval: u64,
    /// Number of this update, counted from 1.
    pub updates: u64,
}

/// The decay of a moving average.
pub trait AverageForm {
    /// The decay of an update, 0 to 1: the new average is the old one times this, plus the weights times the rest.
    fn decay(&self, at: &AverageProgress) -> f64;

    /// Further averages that are kept beside the one of [`AverageForm::decay`].
    fn beside(&self) -> Vec<PowerFunction> {
        Vec::new()
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// [`SettingError`] naming the key.
    fn validate(&self) -> Result<(), SettingError>;
}

table! {
    /// The form of a moving average; `ema.name` of a recipe.
    EmaForm: dyn AverageForm {
        /// A half-life in samples that ramps up.
        HalfLife(HalfLife) = "half_life",
        /// The same decay in every update.
        Constant(Constant) = "constant",
        /// Latent-diffusion's.
        LitEma(LitEma) = "lit_ema",
        /// `EMAModel` of diffusers.
        Diffusers(Diffusers) = "diffusers",
        /// Powers of time, out of which others are rebuilt.
        PostHoc(PostHoc) = "post_hoc",
    }
}

/// The moving average of the weights; table `ema` of a recipe. Without a `name` it is [`HalfLife`].
///
/// ```
/// use calotype_train::optim::{EmaSettings, Position};
/// let ema: EmaSettings = toml::from_str("name = 'constant'\ndecay = 0.9\nstart = { steps = 2 }\ninterval = { steps = 3 }").unwrap();
/// let decay = |step: u64| ema.decay(&Position { samples: 8 * step, batch_size: 8, total: 80 });
/// // It follows the weights for two steps, and then takes up every third of them.
/// assert_eq!([1, 2, 3, 4, 5, 6].map(decay), [0.0, 0.0, 1.0, 1.0, 0.9, 1.0]);
/// ```
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EmaSettings {
    /// Which decay each update has.
    #[serde(flatten)]
    pub form: EmaForm,
    /// Until then, the average is a copy of the weights.
    #[serde(skip_serializing_if = "Span::is_zero")]
    pub start: Span,
    /// Interval between updates; by default every step updates.
    #[serde(skip_serializing_if = "is_each_step")]
    pub interval: Span,
}

/// One update a step.
const EACH_STEP: Span = Span::Steps(1);

fn each_step() -> Span {
    EACH_STEP
}

fn is_each_step(span: &Span) -> bool {
    *span == EACH_STEP
}

impl EmaSettings {
    /// A form from the first step on, with an update in each.
    pub fn new(form: EmaForm) -> Self {
        Self { form, start: Span::ZERO, interval: EACH_STEP }
    }

    /// The decay of the step that ends at a position; 1 in a step without an update.
    pub fn decay(&self, at: &Position) -> f32 {
        self.progress(at).map_or_else(|fixed| fixed, |progress| self.form.get().decay(&progress) as f32)
    }

    /// The decays of the averages that are kept beside it, in the step that ends at a position.
    pub fn beside(&self, at: &Position) -> Vec<f32> {
        let decay = |profile: &PowerFunction| match self.progress(at) {
            Ok(progress) => profile.decay(progress.samples, progress.interval) as f32,
            Err(fixed) => fixed,
        };
        self.form.get().beside().iter().map(decay).collect()
    }

    /// Where the average is updated, or the decay of a step without an update.
    fn progress(&self, at: &Position) -> Result<AverageProgress, f32> {
        let start = self.start.samples(at.batch_size);
        let Some(samples) = at.samples.checked_sub(start).filter(|&since| since > 0) else { return Err(0.0) };
        // A shorter interval than a step is a step.
        let interval = self.interval.samples(at.batch_size).max(at.batch_size).max(1);
        let before = samples.saturating_sub(at.batch_size);
        if samples / interval == before / interval {
            return Err(1.0);
        }
        Ok(AverageProgress { samples, interval, updates: samples / interval })
    }

    /// Samples between two snapshots of the averages, if they are kept.
    pub fn snapshot_every(&self) -> Option<u64> {
        match &self.form {
            EmaForm::PostHoc(form) => Some(form.snapshot_every),
            _ => None,
        }
    }

    /// Checks what the types cannot.
    ///
    /// # Errors
    /// [`SettingError`] naming the key.
    pub fn validate(&self) -> Result<(), SettingError> {
        check(!self.interval.is_zero(), "ema.interval", || "must not be empty".to_owned())?;
        let whole_run = self.start.is_zero() && is_each_step(&self.interval);
        let key = if self.start.is_zero() { "ema.interval" } else { "ema.start" };
        check(whole_run || !matches!(self.form, EmaForm::PostHoc(_)), key, || {
            "cannot go with name = \"post_hoc\", which weights every step by its time; leave it out".to_owned()
        })?;
        self.form.get().validate()
    }
}

impl<'de> Deserialize<'de> for EmaSettings {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Raw {
            #[serde(default)]
            start: Span,
            #[serde(default = "each_step")]
            interval: Span,
            #[serde(flatten)]
            form: toml::Table,
        }
        let Raw { start, interval, form } = Raw::deserialize(deserializer)?;
        Ok(Self { form: read(form, "half_life", &["start", "interval"])?, start, interval })
    }
}

fn check_decay(key: &'static str, decay: f64) -> Result<(), SettingError> {
    check((0.0..=1.0).contains(&decay), key, || format!("{decay} is not in 0..=1"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The decays of updates that come with every step.
    pub(super) fn decays(form: &dyn AverageForm, updates: &[u64]) -> Vec<f64> {
        let at = |&updates: &u64| AverageProgress { samples: 8 * updates, interval: 8, updates };
        updates.iter().map(|update| form.decay(&at(update))).collect()
    }

    pub(super) fn near(got: &[f64], want: &[f64]) {
        let close = got.iter().zip(want).all(|(got, want)| (got - want).abs() < 1e-12);
        assert!(got.len() == want.len() && close, "{got:?} instead of {want:?}");
    }

    #[test]
    fn every_form_reads_what_it_writes() {
        for form in EmaForm::all() {
            assert!(EmaForm::NAMES.contains(&form.name()));
            assert_eq!(form.get().validate(), Ok(()));
            let settings = EmaSettings { start: Span::Samples(7), interval: Span::Steps(2), form };
            let text = toml::to_string(&settings).unwrap();
            assert_eq!(toml::from_str::<EmaSettings>(&text).unwrap(), settings, "{text}");
            assert!(decays(settings.form.get(), &[1, 2, 10, 1000, 1 << 40]).iter().all(|d| (0.0..=1.0).contains(d)));
        }
    }

    #[test]
    fn a_table_without_a_name_is_a_half_life() {
        let settings: EmaSettings = toml::from_str("half_life = 1000\nrampup = 0.1").unwrap();
        assert_eq!(settings, EmaSettings::new(EmaForm::HalfLife(HalfLife { half_life: 1000, rampup: 0.1 })));
        let error = toml::from_str::<EmaSettings>("half_life = 1000\nrampupp = 0.1").unwrap_err().to_string();
        assert!(error.contains("unknown field `rampupp`") && error.contains("`interval`"), "{error}");
        let error = toml::from_str::<EmaSettings>("name = 'constnt'").unwrap_err().to_string();
        assert!(error.contains("unknown variant `constnt`"), "{error}");
    }

    #[test]
    fn updates_come_at_their_interval_in_samples_too() {
        let form = EmaForm::LitEma(LitEma { decay: 0.9999 });
        let settings = EmaSettings { interval: Span::Samples(20), ..EmaSettings::new(form) };
        let decay = |step: u64| settings.decay(&Position { samples: 8 * step, batch_size: 8, total: 800 });
        // 24, 40 and 64 samples pass a multiple of 20.
        let [first, second, third] = [1, 2, 3].map(|n| ((1.0 + n as f64) / (10.0 + n as f64)) as f32);
        assert_eq!([1, 2, 3, 4, 5, 6, 7, 8].map(decay), [1.0, 1.0, first, 1.0, second, 1.0, 1.0, third]);
    }
}
