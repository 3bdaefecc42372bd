//! Is it better than the baseline, and by more than chance?

use super::tables::same_label;
use super::{Baseline, Evaluation, Setting, digits, interval_of_mean, signed};
use crate::{EvaluateError, Figure, Result, differences};
use calotype_metrics::Interval;
use calotype_metrics::report::{Outcome, Verdict};

/// A figure beside the baseline's.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Change {
    pub(super) figure: Figure,
    pub(super) of_baseline: Figure,
    /// The interval of the difference, if both spreads are known.
    pub(super) interval: Option<Interval>,
    pub(super) outcome: Outcome,
}

/// How a setting compares with one of a baseline.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Comparison {
    /// Label of the baseline's setting.
    pub(super) setting: String,
    /// Its number.
    pub(super) number: usize,
    pub(super) changes: Vec<Change>,
    /// Why figures of both do not compare, in words.
    pub(super) unlike: Vec<String>,
}

impl Change {
    fn difference(&self) -> f64 {
        self.figure.value - self.of_baseline.value
    }

    /// The difference in words.
    pub(super) fn verdict(&self) -> Verdict {
        let difference = signed(self.difference());
        let spread = match self.interval {
            Some(Interval { low, high }) => format!("[{}, {}]", signed(low), signed(high)),
            None => "(spread not measured)".into(),
        };
        Verdict { outcome: self.outcome, text: format!("{difference} {spread}") }
    }

    fn in_words(&self) -> String {
        let chance = match (self.outcome, self.interval) {
            (Outcome::Open, Some(_)) => ", no more than chance",
            (_, None) => ", of a spread that was not measured",
            _ => "",
        };
        let (name, now, then) = (self.figure.title(), digits(self.figure.value), digits(self.of_baseline.value));
        format!("{name} {now} instead of {then} ({}{chance})", signed(self.difference()))
    }
}

impl Comparison {
    /// The answer: better or worse where all figures that tell say so.
    pub(super) fn verdict(&self, baseline: &str) -> Verdict {
        let told = |outcome| self.changes.iter().filter(|change| change.outcome == outcome).collect::<Vec<_>>();
        let (better, worse) = (told(Outcome::Better), told(Outcome::Worse));
        let (outcome, answer) = match (better.is_empty(), worse.is_empty()) {
            (false, true) => (Outcome::Better, format!("Better than {baseline}")),
            (true, false) => (Outcome::Worse, format!("Worse than {baseline}")),
            (false, false) => (Outcome::Open, format!("Better in some and worse in other ways than {baseline}")),
            (true, true) if self.changes.is_empty() => (Outcome::Open, format!("No figure compares with {baseline}")),
            (true, true) => (Outcome::Open, format!("No different from {baseline} by more than chance")),
        };
        let reasons: Vec<_> = self.told().map(Change::in_words).chain(self.unlike.first().cloned()).collect();
        let text = if reasons.is_empty() { format!("{answer}.") } else { format!("{answer}: {}.", reasons.join("; ")) };
        Verdict { outcome, text }
    }

    /// The first change of each metric: its other variants say the same.
    fn told(&self) -> impl Iterator<Item = &Change> {
        let first = |index: usize, change: &Change| {
            self.changes[..index].iter().all(|before| before.figure.metric != change.figure.metric)
        };
        self.changes.iter().enumerate().filter(move |(index, change)| first(*index, change)).map(|(_, change)| change)
    }

    pub(super) fn change(&self, figure: &Figure) -> Option<&Change> {
        self.changes.iter().find(|change| change.figure == *figure)
    }
}

/// Compares a setting with that of the baseline with the same label, or else with the baseline's best one.
pub(super) fn compare(evaluation: &Evaluation, number: usize, baseline: &Baseline, seed: u64) -> Result<Comparison> {
    let other = baseline.evaluation.with_intervals(seed)?;
    let (Some(ours), false) = (evaluation.settings.get(number), other.settings.is_empty()) else {
        return Ok(Comparison::default());
    };
    let same = other.settings.iter().position(|theirs| same_label(&theirs.label, &ours.label));
    let at = same.unwrap_or_else(|| other.best());
    let theirs = &other.settings[at];
    let mut found = Comparison { setting: theirs.label.clone(), number: at, ..Comparison::default() };
    let paired = match evaluation.captions == other.captions {
        true => paired_interval(ours, theirs, seed)?,
        false => None,
    };
    for figure in ours.figures.iter().filter(|figure| figure.lower_is_better().is_some()) {
        let of_kind = |other: &&Figure| other.metric == figure.metric && other.variant == figure.variant;
        let Some(of_baseline) = theirs.figures.iter().find(of_kind) else { continue };
        let unlike = differences(figure, of_baseline);
        if unlike.is_empty() {
            found.changes.push(change(figure, of_baseline, paired));
        } else {
            let fields: Vec<_> = unlike.iter().map(|difference| difference.field.as_str()).collect();
            found.unlike.push(format!("{} does not compare, it differs in {}", figure.full_title(), fields.join(", ")));
        }
    }
    Ok(found)
}

/// The interval of the mean difference of CLIP scores of the same captions.
fn paired_interval(ours: &Setting, theirs: &Setting, seed: u64) -> Result<Option<Interval>> {
    let pairs = ours.clip_scores.iter().zip(&theirs.clip_scores);
    let differences: Vec<f64> = pairs.map(|(a, b)| f64::from(*a) - f64::from(*b)).filter(|d| d.is_finite()).collect();
    if differences.is_empty() || ours.clip_scores.len() != theirs.clip_scores.len() {
        return Ok(None);
    }
    let interval = interval_of_mean(&differences, seed);
    interval.map(Some).map_err(EvaluateError::metric("difference of CLIP scores"))
}

fn change(figure: &Figure, of_baseline: &Figure, paired: Option<Interval>) -> Change {
    let difference = figure.value - of_baseline.value;
    // The scores by picture are cosines; what counts in hundredths has an interval that is not of them.
    let is_cosine = figure.is_clip_score() && figure.value.abs() <= 1.0;
    let interval =
        paired.filter(|_| is_cosine).or_else(|| independent(difference, figure.interval?, of_baseline.interval?));
    let better = if figure.lower_is_better() == Some(true) { difference < 0.0 } else { difference > 0.0 };
    let outcome = match interval {
        Some(Interval { low, high }) if low > 0.0 || high < 0.0 => {
            if better {
                Outcome::Better
            } else {
                Outcome::Worse
            }
        }
        _ => Outcome::Open,
    };
    Change { figure: figure.clone(), of_baseline: of_baseline.clone(), interval, outcome }
}

/// The interval of the difference of two independent figures.
fn independent(difference: f64, a: [f64; 2], b: [f64; 2]) -> Option<Interval> {
    let half = ((a[1] - a[0]) / 2.0).hypot((b[1] - b[0]) / 2.0);
    half.is_finite().then_some(Interval { low: difference - half, high: difference + half })
}
