//! What a single line has to say.

use crate::keys;
use crate::log::{Line, shortened};
use crate::rules::{Check, Mark, init_minutes};
use crate::value::Value;

/// What the lines so far have said.
#[derive(Debug, Default)]
pub(super) struct State {
    marks: Vec<Mark>,
    first_init_start: Option<f64>,
    division: Option<String>,
    pub(super) batch: Option<f64>,
}

impl State {
    pub(super) fn note(&mut self, line: &Line) {
        for mark in [Mark::InitStart, Mark::InitStop, Mark::RunStart] {
            if mark.key() == line.key && !self.marks.contains(&mark) {
                self.marks.push(mark);
            }
        }
        match line.key.as_str() {
            keys::INIT_START => {
                self.first_init_start = Some(self.first_init_start.map_or(line.time_ms, |time| time.min(line.time_ms)));
            }
            keys::SUBMISSION_DIVISION if self.division.is_none() => {
                self.division = Some(line.value.text().unwrap_or_default().to_owned());
            }
            keys::GLOBAL_BATCH_SIZE => self.batch = line.value.number(),
            _ => {}
        }
    }
}

/// What is wrong with a line by one check; `None` if nothing is.
pub(super) fn broken(check: &Check, line: &Line, state: &State) -> Option<String> {
    let key = &line.key;
    let value = &line.value;
    let number = value.number();
    let shown = shortened(&value.to_string());
    let is_whole = |number: f64| number.is_finite() && (number.round() - number).abs() < 1e-5;
    match *check {
        Check::Number(wanted) => {
            (number != Some(wanted)).then(|| format!("`{key}` is {shown}, where the rules have {wanted:?}"))
        }
        Check::OneOf(names) => {
            let found = value.text().is_some_and(|text| names.contains(&text));
            (!found).then(|| format!("`{key}` is {shown}, where the rules have {}", names.join(", ")))
        }
        Check::NotEmpty => (value.text() == Some("")).then(|| format!("`{key}` is empty")),
        Check::AtLeast(least) => (!number.is_some_and(|number| number >= least))
            .then(|| format!("`{key}` is {shown}, where a number of at least {least} is needed")),
        Check::Above(bound) => (!number.is_some_and(|number| number > bound))
            .then(|| format!("`{key}` is {shown}, where a number above {bound} is needed")),
        Check::Whole => {
            (!number.is_some_and(is_whole)).then(|| format!("`{key}` is {shown}, where a whole number is needed"))
        }
        Check::Metadata(names) => {
            let found = names.iter().map(|name| line.metadata.holds(name)).collect::<Option<Vec<_>>>();
            (!found.is_some_and(|found| found.contains(&true)))
                .then(|| format!("the metadata of `{key}` has no `{}`", names.join("` and no `")))
        }
        Check::BlockCounts => block_counts(&line.metadata).map(|problem| format!("the metadata of `{key}` {problem}")),
        Check::Before(mark) => state.marks.contains(&mark).then(|| format!("`{key}` comes behind `{}`", mark.key())),
        Check::After(mark) => {
            (!state.marks.contains(&mark)).then(|| format!("`{key}` comes before any `{}`", mark.key()))
        }
        Check::InitTime => init_time(line, state),
        Check::EvaluationInterval => evaluation_interval(line, state),
    }
}

fn block_counts(metadata: &Value) -> Option<String> {
    let (Some(epochs), Some(samples)) = (metadata.holds(keys::EPOCH_COUNT), metadata.holds(keys::SAMPLES_COUNT)) else {
        return Some("is no object".to_owned());
    };
    let number = |name| metadata.get(name).and_then(Value::number);
    if !epochs && !samples {
        return Some("has no `samples_count` and no `epoch_count`".to_owned());
    }
    if epochs && metadata.holds(keys::FIRST_EPOCH_NUM) != Some(true) {
        return Some("has an `epoch_count`, but no `first_epoch_num`".to_owned());
    }
    if epochs && !number(keys::EPOCH_COUNT).is_some_and(|count| count > 0.0) {
        return Some("has an `epoch_count` that is no number above 0".to_owned());
    }
    (samples && !number(keys::SAMPLES_COUNT).is_some_and(|count| count >= 0.0))
        .then(|| "has a `samples_count` that is no number of at least 0".to_owned())
}

fn init_time(line: &Line, state: &State) -> Option<String> {
    // Without an init_start in front, that is what is wrong.
    let start = state.first_init_start?;
    let Some(division) = &state.division else {
        return Some("`init_stop` comes before `submission_division`, so that no time is allowed for it".to_owned());
    };
    let allowed = init_minutes(division);
    let minutes = (line.time_ms - start) / 60_000.0;
    let in_time = line.time_ms - start < allowed * 60_000.0;
    (!in_time).then(|| {
        format!("`init_stop` comes {minutes:.1} minutes behind the first `init_start`, where fewer than {allowed} are allowed")
    })
}

fn evaluation_interval(line: &Line, state: &State) -> Option<String> {
    let Some(batch) = state.batch.filter(|batch| *batch > 0.0) else {
        return Some(format!("`{}` comes before any usable `global_batch_size`", line.key));
    };
    let wanted = (262_144.0 / batch).ceil() * batch;
    (line.value.number() != Some(wanted))
        .then(|| format!("`{}` is {}, where batches of {batch} make it {wanted}", line.key, line.value))
}
