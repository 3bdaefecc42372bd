//! What is looked at while a run trains: losses and gradients that leap, updates that are not finite, and the pace.

use crate::config::{SettingError, check};
use crate::optim::OptimizerSettings;
use calotype_ops::{Peaks, Precision};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

calotype_core::names! {
    /// What becomes of an update that is not finite.
    OnNonFinite, "way to treat updates that are not finite" {
        /// The run ends, and its last checkpoint stays.
        Stop = "stop",
        /// The update is left out: weights, moments and average stay, as with PyTorch's `GradScaler`.
        Skip = "skip",
    }
}

/// `[watch]`: with this table, a run says when its loss or its gradient leaps, and logs its share of the processor's peak.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WatchSettings {
    /// Steps that a value is compared with.
    pub window: usize,
    /// A loss or a norm of the gradient that is farther above the window's median is told, in standard deviations.
    pub z_limit: f64,
    /// What becomes of an update that is not finite.
    pub on_non_finite: OnNonFinite,
    /// Updates that may be left out one behind the other; the next one ends the run.
    pub skips_in_a_row: u64,
}

impl Default for WatchSettings {
    fn default() -> Self {
        Self { window: 100, z_limit: 8.0, on_non_finite: OnNonFinite::Stop, skips_in_a_row: 3 }
    }
}

impl WatchSettings {
    pub(crate) fn validate(&self, optimizer: &OptimizerSettings) -> Result<(), SettingError> {
        check((JUDGED..=100_000).contains(&self.window), "watch.window", || {
            format!("is {}, and must be from {JUDGED} to 100000 steps", self.window)
        })?;
        check(self.z_limit > 0.0, "watch.z_limit", || format!("is {}, and must be above 0", self.z_limit))?;
        check(self.skips_in_a_row > 0, "watch.skips_in_a_row", || {
            "must be at least 1; on_non_finite = \"stop\" leaves no update out".to_owned()
        })?;
        check(
            self.on_non_finite == OnNonFinite::Stop || optimizer.in_backward != Some(true),
            "watch.on_non_finite",
            || {
                "cannot be \"skip\" with optimizer.in_backward, which changes weights before the whole gradient is known"
                .to_owned()
            },
        )
    }
}

/// Values that a window needs before another one is compared with it.
const JUDGED: usize = 16;
/// Standard deviations of a normal distribution in its median absolute deviation: one over its third quartile.
const NORMAL: f64 = 1.4826;
/// The least spread that counts, as a share of the median: values that hardly differ are no noise to compare with.
const LEAST_SPREAD: f64 = 1e-3;

/// What a run keeps of its watch in checkpoints.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Watched {
    losses: Window,
    gradient_norms: Window,
    /// Updates that were left out, in all.
    pub(super) skipped: u64,
    /// Updates that were left out since the last one that was not.
    skipped_in_a_row: u64,
}

/// A leap of a number.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Leap {
    /// What leapt.
    pub(super) what: &'static str,
    /// The name of its z-score in the logs.
    pub(super) name: &'static str,
    pub(super) value: f64,
    pub(super) median: f64,
    /// How many standard deviations it is above the median.
    pub(super) z: f64,
    /// Whether the number before it had leapt, too, so that it was said already.
    pub(super) goes_on: bool,
}

impl Watched {
    /// Compares a step's figures with those of the steps before.
    pub(super) fn look(&mut self, settings: &WatchSettings, loss: f64, norm: Option<f64>) -> Vec<Leap> {
        self.skipped_in_a_row = 0;
        let looks = [
            (Some(loss), &mut self.losses, "loss", "watch/loss_z"),
            (norm, &mut self.gradient_norms, "norm of the gradient", "watch/gradient_norm_z"),
        ];
        let leap = |(value, window, what, name): (Option<f64>, &mut Window, &'static str, &'static str)| {
            let value = value?;
            let (median, z, goes_on) = window.take(value, settings)?;
            Some(Leap { what, name, value, median, z, goes_on })
        };
        looks.into_iter().filter_map(leap).collect()
    }

    /// Counts an update that is to be left out; whether it may be.
    pub(super) fn skip(&mut self, settings: Option<&WatchSettings>) -> bool {
        let Some(settings) = settings.filter(|settings| settings.on_non_finite == OnNonFinite::Skip) else {
            return false;
        };
        self.skipped_in_a_row += 1;
        self.skipped += 1;
        self.skipped_in_a_row <= settings.skips_in_a_row
    }
}

/// The newest values of a number.
///
/// Values are compared by median and median absolute deviation, the modified z-score of Iglewicz and Hoaglin (1993, "How
/// to detect and handle outliers"): unlike mean and standard deviation, also exponentially weighted ones, they are not moved
/// by the very leaps that are looked for, as long as fewer than half of the window's values are leaps; and a loss that stays
/// at a new height is the usual one after half a window.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "VecDeque<f64>", into = "VecDeque<f64>")]
struct Window {
    values: VecDeque<f64>,
    /// Whether the newest value was a leap.
    leapt: bool,
}

impl From<VecDeque<f64>> for Window {
    fn from(values: VecDeque<f64>) -> Self {
        Self { values, leapt: false }
    }
}

impl From<Window> for VecDeque<f64> {
    fn from(window: Window) -> Self {
        window.values
    }
}

impl Window {
    /// Takes up a value; median, z-score and whether the value before had leapt, too, if the value has leapt.
    fn take(&mut self, value: f64, settings: &WatchSettings) -> Option<(f64, f64, bool)> {
        let score = self.score(value);
        self.values.push_back(value);
        while self.values.len() > settings.window {
            self.values.pop_front();
        }
        let leapt = score.is_some_and(|(_, z)| z > settings.z_limit);
        let before = std::mem::replace(&mut self.leapt, leapt);
        score.filter(|_| leapt).map(|(median, z)| (median, z, before))
    }

    /// Median, and how many standard deviations a value is above it.
    fn score(&self, value: f64) -> Option<(f64, f64)> {
        if self.values.len() < JUDGED {
            return None;
        }
        let middle = median(self.values.iter().copied().collect());
        let deviation = median(self.values.iter().map(|value| (value - middle).abs()).collect());
        let spread = (NORMAL * deviation).max(LEAST_SPREAD * middle.abs());
        (spread > 0.0).then(|| (middle, (value - middle) / spread))
    }
}

/// The median of at least one value.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let half = values.len() / 2;
    if values.len() % 2 == 1 { values[half] } else { 0.5 * (values[half - 1] + values[half]) }
}

/// Where the time of an entry of the logs went.
#[derive(Debug)]
pub(super) struct Pace {
    began: Instant,
    samples: u64,
    waited: Duration,
    stepped: Duration,
}

/// What the pace is measured by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Measure {
    /// Devices of the run.
    pub(super) devices: usize,
    /// Floating-point operations of a training step for one sample, where they are known.
    pub(super) flops: Option<f64>,
    /// The most that one device can do in a second, where it was measured.
    pub(super) peak: Option<f64>,
}

impl Pace {
    /// An entry that begins now, after `samples`.
    pub(super) fn at(samples: u64) -> Self {
        Self { began: Instant::now(), samples, waited: Duration::ZERO, stepped: Duration::ZERO }
    }

    /// Notes time that went by until the loader had a batch.
    pub(super) fn wait(&mut self, time: Duration) {
        self.waited += time;
    }

    /// Notes the time of a step.
    pub(super) fn step(&mut self, time: Duration) {
        self.stepped += time;
    }

    /// The figures of the entry that ends after `samples`; the next one begins.
    pub(super) fn take(&mut self, samples: u64, measure: Measure) -> Vec<(&'static str, f64)> {
        let Self { began, samples: before, waited, stepped } = std::mem::replace(self, Self::at(samples));
        figures(samples - before, began.elapsed(), [waited, stepped], measure)
    }
}

/// Figures of `samples` samples: of all time, those of hooks and checkpoints included, and of the time of the steps.
fn figures(
    samples: u64,
    time: Duration,
    [waited, stepped]: [Duration; 2],
    measure: Measure,
) -> Vec<(&'static str, f64)> {
    let devices = measure.devices.max(1) as f64;
    let rate = samples as f64 / time.as_secs_f64().max(1e-9);
    let steps = (waited + stepped).as_secs_f64().max(1e-9);
    let mut all = vec![
        ("images_per_second", rate),
        ("images_per_second_per_device", rate / devices),
        ("data_wait", waited.as_secs_f64() / steps),
    ];
    let flops = measure.flops.map(|flops| flops * samples as f64 / steps / devices);
    all.extend(flops.map(|flops| ("tflops", flops / 1e12)));
    all.extend(flops.zip(measure.peak).map(|(flops, peak)| ("share_of_peak", flops / peak)));
    all
}

/// Operations a second of the processor's fastest instruction for a precision, measured once by a process.
pub(super) fn peak(precision: Precision) -> f64 {
    static PEAKS: OnceLock<Peaks> = OnceLock::new();
    PEAKS.get_or_init(Peaks::measure).of(precision).flops
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(watched: &mut Watched, loss: f64) -> Vec<Leap> {
        watched.look(&WatchSettings::default(), loss, None)
    }

    fn noise(step: usize) -> f64 {
        // Values around 1, evenly spread over 0.9 to 1.1.
        0.9 + 0.2 * ((step * 37) % 101) as f64 / 100.0
    }

    #[test]
    fn medians_are_numpys() {
        // numpy 2.4.6: np.median.
        for (values, expected) in
            [(vec![3.0], 3.0), (vec![2.0, 1.0], 1.5), (vec![9.0, 1.0, 5.0], 5.0), (vec![4.0, 1.0, 3.0, 2.0], 2.5)]
        {
            assert_eq!(median(values), expected);
        }
    }

    #[test]
    fn a_leap_is_told_with_its_score_and_noise_is_not() {
        let mut watched = Watched::default();
        for step in 0..300 {
            assert!(look(&mut watched, noise(step)).is_empty(), "step {step}");
        }
        let leaps = look(&mut watched, 3.0);
        assert_eq!(leaps.len(), 1);
        let leap = &leaps[0];
        // Deviations from the median are evenly spread over 0 to 0.1, so that their median is 0.05.
        assert!((leap.z - 2.0 / (NORMAL * 0.05)).abs() < 2.0, "{leap:?}");
        assert!(leap.name == "watch/loss_z" && !leap.goes_on && (leap.median - 1.0).abs() < 0.01);
        assert!(look(&mut watched, 4.0)[0].goes_on);
        assert!(look(&mut watched, noise(300)).is_empty());
        assert!(!look(&mut watched, 3.0)[0].goes_on, "leaps do not hide others");
        // A new height is the usual one after half a window.
        let told = (0..200).filter(|step| !look(&mut watched, 2.0 + noise(*step)).is_empty()).count();
        assert!((30..=70).contains(&told), "{told}");
    }

    #[test]
    fn few_or_equal_values_say_nothing() {
        let mut watched = Watched::default();
        for step in 0..JUDGED {
            assert!(look(&mut watched, 10.0 * step as f64).is_empty());
        }
        let mut watched = Watched::default();
        (0..50).for_each(|_| drop(look(&mut watched, 0.0)));
        assert!(look(&mut watched, 1.0).is_empty(), "nothing to compare with");
    }

    #[test]
    fn a_watch_goes_on_where_its_checkpoint_was() {
        let mut watched = Watched::default();
        (0..150).for_each(|step| drop(look(&mut watched, noise(step))));
        let text = serde_json::to_string(&watched).unwrap();
        let mut again: Watched = serde_json::from_str(&text).unwrap();
        assert_eq!(again, watched);
        assert_eq!(look(&mut again, 9.0), look(&mut watched, 9.0));
    }

    #[test]
    fn so_many_updates_are_left_out_one_behind_the_other() {
        let skip = WatchSettings { on_non_finite: OnNonFinite::Skip, skips_in_a_row: 2, ..WatchSettings::default() };
        let mut watched = Watched::default();
        assert!(!watched.skip(None) && !watched.skip(Some(&WatchSettings::default())));
        assert!(watched.skip(Some(&skip)) && watched.skip(Some(&skip)));
        watched.look(&skip, 1.0, None);
        assert!(watched.skip(Some(&skip)) && watched.skip(Some(&skip)) && !watched.skip(Some(&skip)));
        assert_eq!(watched.skipped, 5);
    }

    #[test]
    fn figures_are_shares_of_their_times() {
        let (time, waited, stepped) = (Duration::from_secs(4), Duration::from_millis(500), Duration::from_millis(1500));
        let measure = Measure { devices: 2, flops: Some(1e12), peak: Some(1e13) };
        let found = figures(8, time, [waited, stepped], measure);
        assert_eq!(
            found,
            [
                ("images_per_second", 2.0),
                ("images_per_second_per_device", 1.0),
                ("data_wait", 0.25),
                ("tflops", 2.0),
                ("share_of_peak", 0.2)
            ]
        );
        let unknown = Measure { devices: 1, flops: None, peak: Some(1.0) };
        assert_eq!(figures(8, time, [waited, stepped], unknown).len(), 3);
    }

    #[test]
    fn settings_that_cannot_be_are_named() {
        let in_backward = OptimizerSettings { in_backward: Some(true), ..toml::from_str("").unwrap() };
        for (text, key) in [
            ("window = 3", "watch.window"),
            ("z_limit = 0.0", "watch.z_limit"),
            ("skips_in_a_row = 0", "watch.skips_in_a_row"),
            ("on_non_finite = \"skip\"", "watch.on_non_finite"),
        ] {
            let settings: WatchSettings = toml::from_str(text).unwrap();
            assert_eq!(settings.validate(&in_backward).unwrap_err().key, key, "{text}");
        }
        assert!(WatchSettings::default().validate(&in_backward).is_ok());
    }
}
