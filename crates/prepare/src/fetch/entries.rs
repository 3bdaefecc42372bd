//! Checkpoints and datasets that can be fetched by name.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::LazyLock;

use serde::Deserialize;

/// An entry of `entries.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Entry {
    pub name: String,
    kind: String,
    about: String,
    licence: String,
    /// Folder to write; without one, repositories go to the cache.
    pub folder: Option<String>,
    /// Published checksums of single files, whichever source they come from.
    #[serde(default)]
    pub checks: BTreeMap<String, String>,
    /// Places that have it; the first that works is taken.
    pub source: Vec<Source>,
}

/// Exactly one of `uri`, `repository` and `files` is given.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Source {
    /// Address of a `.uri` file of MLCommons.
    pub uri: Option<String>,
    /// `models/ID` or `datasets/ID`.
    pub repository: Option<String>,
    pub revision: Option<String>,
    #[serde(default)]
    pub include: Vec<String>,
    #[serde(default)]
    pub exclude: Vec<String>,
    /// Addresses, which may hold braces.
    #[serde(default)]
    pub files: Vec<FileSource>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileSource {
    pub url: String,
    pub path: Option<String>,
    pub size: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entries {
    entry: Vec<Entry>,
}

static ENTRIES: LazyLock<Vec<Entry>> = LazyLock::new(|| {
    let entries: Entries = toml::from_str(include_str!("entries.toml")).expect("the embedded table is tested");
    entries.entry
});

/// All entries in the order of the table.
pub(super) fn entries() -> &'static [Entry] {
    &ENTRIES
}

/// Lines of a table of all entries.
pub(super) fn table() -> Vec<String> {
    let width = |text: fn(&Entry) -> &str| ENTRIES.iter().map(|entry| text(entry).len()).max().unwrap_or(0);
    let (names, kinds) = (width(|entry| &entry.name), width(|entry| &entry.kind));
    let mut lines = vec![format!("{:names$}  {:kinds$}  what it is (licence; folder)", "name", "kind")];
    for entry in ENTRIES.iter() {
        let folder = entry.folder.as_deref().unwrap_or("the cache");
        let mut line = format!("{:names$}  {:kinds$}  {}", entry.name, entry.kind, entry.about);
        // Writing to a string cannot fail.
        let _ = write!(line, " ({}; {folder})", entry.licence);
        lines.push(line);
    }
    lines
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use url::Url;

    use super::*;
    use crate::fetch::digest::{Digest, safe_path};
    use crate::fetch::hub::Repository;
    use crate::fetch::lists::expand;

    #[test]
    fn every_entry_can_be_used() {
        let endpoint = Url::parse("https://huggingface.co").unwrap();
        let mut names = HashSet::new();
        for entry in entries() {
            let name = &entry.name;
            assert!(names.insert(name), "{name} twice");
            assert!(!entry.about.is_empty() && !entry.licence.is_empty() && !entry.source.is_empty(), "{name}");
            assert!(["checkpoint", "dataset", "metadata", "statistics"].contains(&entry.kind.as_str()), "{name}");
            assert!(entry.folder.as_deref().is_none_or(|folder| safe_path(folder).is_some()), "{name}");
            assert!(entry.checks.values().all(|digest| Digest::parse(digest).is_some()), "{name}");
            for source in &entry.source {
                let kinds = [source.uri.is_some(), source.repository.is_some(), !source.files.is_empty()];
                assert_eq!(kinds.iter().filter(|given| **given).count(), 1, "{name}");
                assert!(source.repository.as_deref().is_none_or(|text| Repository::parse(text, &endpoint).is_some()));
                assert!(source.uri.as_deref().is_none_or(|uri| uri.ends_with(".uri") && Url::parse(uri).is_ok()));
                for file in &source.files {
                    assert!(expand(&file.url).unwrap().iter().all(|url| Url::parse(url).is_ok()), "{name}");
                }
                // Files without a folder would go to the present one.
                assert!(source.repository.is_some() || entry.folder.is_some(), "{name}");
            }
        }
        assert!(names.len() >= 25);
        assert_eq!(table().len(), names.len() + 1);
    }
}
