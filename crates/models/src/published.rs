//! Reading of the `config.json` files that transformers writes.

use crate::ConfigError;
use crate::transformer::HiddenActivation;
use serde_json::{Map, Value};

/// The fields of one configuration; a field that is left out or null has the library's default.
pub(crate) struct Published<'a> {
    /// None where the object is left out.
    fields: Option<&'a Map<String, Value>>,
    /// Key of the object that the fields stand in, empty for the file itself.
    part: &'static str,
}

impl<'a> Published<'a> {
    /// The file's outermost object.
    pub(crate) fn new(value: &'a Value) -> Result<Self, ConfigError> {
        let problem = || ConfigError { field: "config.json", problem: "is not a JSON object".into() };
        Ok(Self { fields: Some(value.as_object().ok_or_else(problem)?), part: "" })
    }

    /// A nested object; an empty one if it is left out.
    pub(crate) fn nested(&self, key: &'static str) -> Result<Self, ConfigError> {
        match self.get(key) {
            None => Ok(Self { fields: None, part: key }),
            Some(Value::Object(fields)) => Ok(Self { fields: Some(fields), part: key }),
            Some(other) => Err(self.error(key, format!("is {other}, not an object"))),
        }
    }

    /// An error about a field.
    pub(crate) fn error(&self, field: &'static str, problem: String) -> ConfigError {
        let place = if self.part.is_empty() { String::new() } else { format!(" (in `{}`)", self.part) };
        ConfigError { field, problem: problem + &place }
    }

    /// A field that is there and not null.
    pub(crate) fn get(&self, key: &str) -> Option<&'a Value> {
        self.fields?.get(key).filter(|value| !value.is_null())
    }

    pub(crate) fn text(&self, key: &'static str) -> Result<Option<&'a str>, ConfigError> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => {
                let text = value.as_str().ok_or_else(|| self.error(key, format!("is {value}, not a text")))?;
                Ok(Some(text))
            }
        }
    }

    /// A whole number of at least 1.
    pub(crate) fn size(&self, key: &'static str, default: usize) -> Result<usize, ConfigError> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => self.whole(key, value),
        }
    }

    fn whole(&self, key: &'static str, value: &Value) -> Result<usize, ConfigError> {
        // No size of a model comes near 2^32, and products of sizes below it do not overflow by accident.
        let size = value.as_u64().filter(|&n| n > 0 && n < 1 << 32).and_then(|n| usize::try_from(n).ok());
        size.ok_or_else(|| self.error(key, format!("is {value}, not a whole number from 1 to 2^32")))
    }

    /// The side of a square: a number, or a list of two equal ones.
    pub(crate) fn side(&self, key: &'static str, default: usize) -> Result<usize, ConfigError> {
        match self.get(key) {
            Some(Value::Array(sides)) => match sides.as_slice() {
                [a, b] if a == b => self.whole(key, a),
                _ => Err(self.error(key, format!("is {}; only squares are supported", Value::from(sides.clone())))),
            },
            _ => self.size(key, default),
        }
    }

    pub(crate) fn number(&self, key: &'static str, default: f64) -> Result<f64, ConfigError> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => value.as_f64().ok_or_else(|| self.error(key, format!("is {value}, not a number"))),
        }
    }

    pub(crate) fn flag(&self, key: &'static str, default: bool) -> Result<bool, ConfigError> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => value.as_bool().ok_or_else(|| self.error(key, format!("is {value}, not true or false"))),
        }
    }

    /// The activation of the feed-forward layers.
    pub(crate) fn activation(&self, default: HiddenActivation) -> Result<HiddenActivation, ConfigError> {
        match self.text("hidden_act")? {
            None => Ok(default),
            Some(name) => HiddenActivation::from_transformers(name).ok_or_else(|| {
                self.error("hidden_act", format!("`{name}` is not supported; quick_gelu and the variants of gelu are"))
            }),
        }
    }

    /// Whether the class that wrote the file is named, among others.
    pub(crate) fn has_architecture(&self, class: &str) -> bool {
        let named = |classes: &Vec<Value>| classes.iter().any(|name| name == class);
        self.get("architectures").and_then(Value::as_array).is_some_and(named)
    }

    /// Refuses every value of a field but the only one that is supported, which is its default.
    pub(crate) fn only(&self, key: &'static str, supported: u64) -> Result<(), ConfigError> {
        match self.get(key) {
            Some(value) if value.as_f64() != Some(supported as f64) => {
                Err(self.error(key, format!("is {value}; only {supported} is supported")))
            }
            _ => Ok(()),
        }
    }
}

/// Whether the model's type is one of `types`; files of before `model_type` say nothing.
pub(crate) fn check_type(config: &Published, types: &[&str]) -> Result<(), ConfigError> {
    match config.text("model_type")? {
        Some(found) if !types.contains(&found) => {
            Err(config.error("model_type", format!("is `{found}`; this model reads {}", types.join(", "))))
        }
        _ => Ok(()),
    }
}
