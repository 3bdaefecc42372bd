//! The key `init_from`: where a run's initial weights come from.

use super::{SettingError, check};
use calotype_checkpoints::{Family, OpenOptions, Prediction};
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

/// Initial weights of a run: `"PATH"`, or a table ([`InitSettings`]).
#[derive(Clone, Debug, PartialEq)]
pub struct InitFrom(pub InitSettings);

/// Initial weights from checkpoints of any layout.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct InitSettings {
    /// Checkpoint of the whole network; absent where only `parts` are taken and the rest is random.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Checkpoints of parts of the network, by the beginning of their parameters' keys, such as `text_model` or
    /// `down_blocks.0`; the longest beginning that fits a key decides.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub parts: BTreeMap<String, String>,
    /// Take the averaged weights of a single file instead of the others.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub ema: bool,
    /// Family of the checkpoint, where its contents do not show it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub family: Option<Family>,
    /// Prediction type of the checkpoint, where it does not say it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prediction: Option<Prediction>,
    /// Variant of the weights in a diffusers folder, such as `fp16`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// Whether a UNet may have been trained with another autoencoder than the one that made the dataset.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub other_encoders: bool,
    /// Whether parameters that the checkpoints lack keep their random weights; otherwise they are an error.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub allow_missing: bool,
    /// Whether tensors of the checkpoints that the network has no place for are left out; otherwise they are an error.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub allow_unused: bool,
}

impl InitSettings {
    /// How the checkpoints are opened.
    pub fn options(&self) -> OpenOptions {
        OpenOptions {
            ema: self.ema,
            family: self.family,
            prediction: self.prediction,
            variant: self.variant.clone(),
            ..OpenOptions::default()
        }
    }

    pub(crate) fn validate(&self) -> Result<(), SettingError> {
        check(self.path.is_some() || !self.parts.is_empty(), "init_from", || {
            "names no checkpoint: set `path`, or `parts`".to_owned()
        })
    }
}

impl InitFrom {
    /// A checkpoint of the whole network.
    pub fn path(path: &Path) -> Self {
        Self(only_path(&path.display().to_string()))
    }
}

impl Serialize for InitFrom {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0 {
            InitSettings { path: Some(path), .. } if self.0 == only_path(path) => serializer.serialize_str(path),
            settings => settings.serialize(serializer),
        }
    }
}

fn only_path(path: &str) -> InitSettings {
    InitSettings { path: Some(path.to_owned()), ..InitSettings::default() }
}

impl<'de> Deserialize<'de> for InitFrom {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PathOrTable;

        impl<'de> Visitor<'de> for PathOrTable {
            type Value = InitFrom;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("the path of a checkpoint, or a table with `path` or `parts`")
            }

            fn visit_str<E>(self, path: &str) -> Result<InitFrom, E> {
                Ok(InitFrom(only_path(path)))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<InitFrom, A::Error> {
                InitSettings::deserialize(MapAccessDeserializer::new(map)).map(InitFrom)
            }
        }

        deserializer.deserialize_any(PathOrTable)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Recipe {
        init_from: InitFrom,
    }

    #[test]
    fn a_path_and_a_table_come_back_as_they_were() {
        let path: Recipe = toml::from_str("init_from = \"a/b\"").unwrap();
        assert_eq!(path.init_from.0.path.as_deref(), Some("a/b"));
        assert_eq!(toml::to_string(&path).unwrap(), "init_from = \"a/b\"\n");
        let text = "[init_from]\nema = true\nprediction = \"v_prediction\"\nparts = { text_model = \"c\" }\n";
        let table: Recipe = toml::from_str(text).unwrap();
        assert_eq!(table.init_from.0.parts["text_model"], "c");
        assert!(table.init_from.0.options().ema);
        let again: Recipe = toml::from_str(&toml::to_string(&table).unwrap()).unwrap();
        assert_eq!(again, table);
    }

    #[test]
    fn what_cannot_be_is_named() {
        let error = toml::from_str::<Recipe>("init_from = 3").unwrap_err().to_string();
        assert!(error.contains("the path of a checkpoint, or a table"), "{error}");
        let error = toml::from_str::<Recipe>("init_from = { pth = \"x\" }").unwrap_err().to_string();
        assert!(error.contains("`pth`") && error.contains("`path`"), "{error}");
        assert!(InitSettings::default().validate().unwrap_err().to_string().contains("`init_from`"));
    }
}
