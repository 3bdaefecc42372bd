//! The files beside a result: user.conf, README.md, the description of the implementation, and its sources.

use super::system::told;
use super::{Judge, Listing, Subject};
use crate::inference::layout::sources;
use crate::log::ReadError;
use crate::value::Value;
use std::fs;
use std::path::Path;

/// Fields of the description, none of which may be empty.
const FIELDS: [&str; 5] =
    ["input_data_types", "retraining", "starting_weights_filename", "weight_data_types", "weight_transformations"];

impl Judge<'_> {
    /// Judges the files beside a result, and tells the types of the weights; `None` where the checkers up to v5.1 read no further.
    pub(super) fn measurements(&mut self, subject: &Subject<'_>) -> Result<Option<String>, ReadError> {
        let before = self.refusals();
        let folder = subject.place.measurements();
        if !folder.exists() {
            self.error(
                &folder,
                "there is no such folder",
                "put user.conf, README.md and the implementation's description into it",
            );
            return Ok(None);
        }
        let listing = Listing::of(&folder)?;
        for name in self.round.settings_files() {
            self.settings_file(&folder.join(name), listing.files.iter().any(|file| file == name));
        }
        let described = self.implementation(subject, &folder, &listing);
        let types = described.as_ref().and_then(|found| found.get("weight_data_types")).map(|value| match value {
            Value::Text(text) => text.clone(),
            other => other.to_string(),
        });
        Ok((self.round.by_package() || self.refusals() == before).then_some(types).flatten())
    }

    fn settings_file(&mut self, path: &Path, is_there: bool) {
        if !is_there {
            self.error(path, "it is missing", "write it, if only to say that nothing was changed");
        } else if fs::metadata(path).is_ok_and(|found| found.len() == 0) {
            self.error(path, "it is empty", "say something in it, if only that nothing was changed");
        }
    }

    fn implementation(&mut self, subject: &Subject<'_>, folder: &Path, listing: &Listing) -> Option<Value> {
        let place = &subject.place;
        let package = self.round.by_package();
        let ending = format!("_{}.json", place.scenario);
        let suits = |name: &&String| name.starts_with(place.system) && name.ends_with(".json");
        let name = match package {
            true => Some("measurements.json").filter(|name| listing.files.iter().any(|file| file == name)),
            false => listing.files.iter().find(suits).map(String::as_str),
        };
        let Some(name) = name else {
            let wanted = place.implementation("IMPLEMENTATION");
            // The checker of v4.1 breaks off: a variable of it is set nowhere else.
            let severity = if self.round == crate::inference::Round::V4_1 {
                crate::Severity::Fatal
            } else {
                crate::Severity::Error
            };
            self.add(severity, &wanted, "the description of the implementation is missing", "write it under this name");
            if package {
                self.sources(subject, "");
            }
            return None;
        };
        let path = folder.join(name);
        let described = self.json(&path)?;
        if self.round == crate::inference::Round::V5_1 && described.get("weight_data_types").is_none() {
            self.stop(&path, "it has no weight_data_types", "add it, such as \"bf16\"");
        }
        for field in FIELDS {
            match described.get(field) {
                Some(value) if value.is_true() => {}
                found => self.error(&path, format!("`{field}` is {}", told(found)), "say something of it"),
            }
        }
        let end = if name.ends_with(&ending) { ending.len() } else { ".json".len() };
        self.sources(subject, name.get(place.system.len() + 1..name.len() - end).unwrap_or_default());
        Some(described)
    }

    /// Whether there are sources: `src/`, and up to v5.1 `code/MODEL/`, which may be a file that names another model.
    fn sources(&mut self, subject: &Subject<'_>, implementation: &str) {
        let place = &subject.place;
        let folder = place.submitter.join(sources(self.round));
        let model = folder.join(place.model);
        let wanted = match self.round.by_package() {
            true => folder,
            false if model.is_file() => folder.join(fs::read_to_string(&model).unwrap_or_default().trim()),
            false => model,
        };
        if !wanted.exists() {
            let remedy = format!("put what shows the implementation{} into it", named(implementation));
            self.error(&wanted, "there are no sources", remedy);
        }
    }
}

fn named(implementation: &str) -> String {
    if implementation.is_empty() { String::new() } else { format!(" {implementation}") }
}
