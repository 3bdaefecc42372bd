//! Lines as MLCommons' `mllog` writes them.

use crate::keys;
use crate::ruleset::{Division, Metric};
use crate::value::Value;
use std::fmt;
use std::panic::Location;
use std::time::{SystemTime, UNIX_EPOCH};

/// What a line marks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    Point,
    Start,
    End,
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Point => "POINT_IN_TIME",
            Self::Start => "INTERVAL_START",
            Self::End => "INTERVAL_END",
        })
    }
}

/// A line and its line break, as `mllog` writes it.
pub(crate) fn log_line(
    time_ms: i64,
    event: Event,
    key: &str,
    value: &Value,
    metadata: &[(&str, Value)],
    place: &Location<'_>,
) -> String {
    let place = [(keys::FILE, Value::from(place.file())), (keys::LINENO, Value::from(u64::from(place.line())))];
    let metadata = place.iter().chain(metadata).map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    format!(
        ":::MLLOG {{\"namespace\": \"\", \"time_ms\": {time_ms}, \"event_type\": \"{event}\", \"key\": {}, \"value\": {value}, \
         \"metadata\": {}}}\n",
        Value::from(key),
        Value::Object(metadata)
    )
}

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// The lines of a result: key and metadata of each.
pub(crate) fn result_lines(
    metric: Metric,
    samples: u64,
    division: Division,
) -> Vec<(&'static str, Vec<(&'static str, Value)>)> {
    match (metric, division) {
        (Metric::Fid | Metric::Clip, _) => {
            vec![(keys::EVAL_ACCURACY, vec![samples_count(samples), (keys::METRIC, Value::from(metric.name()))])]
        }
        (Metric::ValidationLoss, Division::Closed) => vec![(keys::EVAL_ACCURACY, vec![samples_count(samples)])],
        (Metric::ValidationLoss, Division::Open) => {
            [keys::EVAL_ACCURACY, keys::AVERAGED_VALIDATION_LOSS].map(|key| (key, vec![samples_count(samples)])).into()
        }
    }
}

pub(crate) fn epoch_num(epoch: u64, samples: u64) -> [(&'static str, Value); 2] {
    [(keys::EPOCH_NUM, Value::from(epoch)), samples_count(samples)]
}

pub(crate) fn samples_count(samples: u64) -> (&'static str, Value) {
    (keys::SAMPLES_COUNT, Value::from(samples))
}
