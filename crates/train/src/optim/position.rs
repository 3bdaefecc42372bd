//! Places in a run, and lengths of it.

use serde::de::{self, Deserializer, MapAccess, Visitor};
use serde::ser::{SerializeMap, Serializer};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Where a run is at the end of a step: all that schedules and averages are functions of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Samples seen, those of the step included.
    pub samples: u64,
    /// Samples of one optimizer step.
    pub batch_size: u64,
    /// Samples of the whole run.
    pub total: u64,
}

/// A length of training. In recipes: `2000` or `{ samples = 2000 }`, or `{ steps = 500 }` for optimizer steps.
///
/// ```
/// use calotype_train::optim::Span;
/// assert_eq!(Span::Steps(10).samples(64), 640);
/// assert_eq!(Span::Samples(1000).samples(64), 1000);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Span {
    /// In samples.
    Samples(u64),
    /// In optimizer steps.
    Steps(u64),
}

impl Span {
    /// None.
    pub const ZERO: Self = Self::Samples(0);

    /// Its length in samples, for optimizer steps of `batch_size` samples.
    pub fn samples(self, batch_size: u64) -> u64 {
        match self {
            Self::Samples(samples) => samples,
            Self::Steps(steps) => steps.saturating_mul(batch_size),
        }
    }

    /// Whether its length is zero.
    pub fn is_zero(&self) -> bool {
        matches!(self, Self::Samples(0) | Self::Steps(0))
    }
}

impl Default for Span {
    fn default() -> Self {
        Self::ZERO
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match *self {
            Self::Samples(samples) => serializer.serialize_u64(samples),
            Self::Steps(steps) => {
                let mut map = serializer.serialize_map(Some(1))?;
                map.serialize_entry("steps", &steps)?;
                map.end()
            }
        }
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = Span;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a number of samples, `{ samples = N }` or `{ steps = N }`")
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Span, E> {
                Ok(Span::Samples(value))
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Span, E> {
                u64::try_from(value)
                    .map(Span::Samples)
                    .map_err(|_| E::invalid_value(de::Unexpected::Signed(value), &self))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Span, A::Error> {
                let Some((unit, length)) = map.next_entry::<String, u64>()? else {
                    return Err(de::Error::invalid_length(0, &self));
                };
                let span = match unit.as_str() {
                    "samples" => Span::Samples(length),
                    "steps" => Span::Steps(length),
                    other => return Err(de::Error::unknown_field(other, &["samples", "steps"])),
                };
                match map.next_key::<String>()? {
                    Some(_) => Err(de::Error::custom("a length is either of samples or of steps; remove one of them")),
                    None => Ok(span),
                }
            }
        }
        deserializer.deserialize_any(Read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Holder {
        span: Span,
    }

    #[test]
    fn spans_are_numbers_or_have_a_unit() {
        let read = |text: &str| toml::from_str::<Holder>(text).map(|holder| holder.span);
        assert_eq!(read("span = 7"), Ok(Span::Samples(7)));
        assert_eq!(read("span = { samples = 7 }"), Ok(Span::Samples(7)));
        assert_eq!(read("span = { steps = 7 }"), Ok(Span::Steps(7)));
        for span in [Span::Samples(3), Span::Steps(4)] {
            assert_eq!(read(&toml::to_string(&Holder { span }).unwrap()), Ok(span));
        }
        for (text, part) in [
            ("span = -1", "a number of samples"),
            ("span = { epochs = 1 }", "unknown field `epochs`"),
            ("span = { steps = 1, samples = 2 }", "remove one"),
            ("span = {}", "invalid length 0"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
