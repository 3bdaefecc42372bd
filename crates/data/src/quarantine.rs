//! The list of samples that a check found unfit, and that sources leave out.
//!
//! `quarantine.json` lies beside a dataset's index. It is a list of records:
//!
//! ```json
//! [
//!   { "shard": "train-000003.tar", "key": "000030012", "reason": "image `jpg` is truncated" }
//! ]
//! ```
//!
//! `shard` is the name of the file that holds the sample, relative to the folder; for a folder of images it is the
//! image's own name. A sample with several faults has several records. The file may be written by hand.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use calotype_core::decode_text;
use serde::{Deserialize, Serialize};

use crate::files::{read_json, write_json};
use crate::{Error, Result};

/// Name of the file.
pub const QUARANTINE_FILE: &str = "quarantine.json";

/// One record: a sample that is to be left out, and the reason.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quarantined {
    /// File that holds the sample, relative to the dataset's folder.
    pub shard: String,
    /// Key of the sample.
    pub key: String,
    /// Reason for which it is left out, for people.
    pub reason: String,
}

type Reasons = BTreeSet<String>;

/// The samples of a dataset that are to be left out. Its order, and so its file, does not depend on the order of
/// insertion.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Quarantine {
    shards: BTreeMap<String, BTreeMap<String, Reasons>>,
}

impl Quarantine {
    /// An empty list.
    pub fn new() -> Self {
        Quarantine::default()
    }

    /// Reads the list of the dataset in `dir`; empty if there is no file.
    ///
    /// # Errors
    /// [`Error::BadIndex`] if the file is no list of records, [`Error::Io`] if it cannot be read.
    pub fn read(dir: &Path) -> Result<Self> {
        let records: Option<Vec<Quarantined>> = read_json(&dir.join(QUARANTINE_FILE))?;
        Ok(records.unwrap_or_default().into_iter().collect())
    }

    /// Reads a list from the bytes of its file; `path` is for messages.
    ///
    /// # Errors
    /// [`Error::BadIndex`] if they are no list of records.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        let bad = |detail: String| Error::BadIndex { path: path.to_path_buf(), detail };
        let text = decode_text(bytes).map_err(|fault| bad(fault.to_string()))?;
        let records: Vec<Quarantined> = serde_json::from_str(&text).map_err(|e| bad(e.to_string()))?;
        Ok(records.into_iter().collect())
    }

    /// Writes the list into `dir`, atomically. An empty list is written too: it tells that a check found nothing.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be written.
    pub fn write(&self, dir: &Path) -> Result<()> {
        write_json(&dir.join(QUARANTINE_FILE), &self.records().collect::<Vec<_>>())
    }

    /// Adds a reason to leave out sample `key` of `shard`.
    pub fn insert(&mut self, shard: impl Into<String>, key: impl Into<String>, reason: impl Into<String>) {
        let keys = self.shards.entry(shard.into()).or_default();
        keys.entry(key.into()).or_default().insert(reason.into());
    }

    /// True if sample `key` of `shard` is to be left out.
    pub fn contains(&self, shard: &str, key: &str) -> bool {
        self.shards.get(shard).is_some_and(|keys| keys.contains_key(key))
    }

    /// Number of samples of `shard` that the list names.
    pub fn len_of(&self, shard: &str) -> usize {
        self.shards.get(shard).map_or(0, BTreeMap::len)
    }

    /// Names of the files that hold listed samples, sorted.
    pub fn shards(&self) -> impl Iterator<Item = &str> {
        self.shards.keys().map(String::as_str)
    }

    /// All records, sorted by shard, key and reason.
    pub fn records(&self) -> impl Iterator<Item = Quarantined> {
        self.shards.iter().flat_map(|(shard, keys)| {
            keys.iter().flat_map(move |(key, reasons)| {
                reasons.iter().map(move |reason| Quarantined {
                    shard: shard.clone(),
                    key: key.clone(),
                    reason: reason.clone(),
                })
            })
        })
    }

    /// Number of samples.
    pub fn len(&self) -> usize {
        self.shards.values().map(BTreeMap::len).sum()
    }

    /// True if nothing is to be left out.
    pub fn is_empty(&self) -> bool {
        self.shards.is_empty()
    }

    /// A checksum of the samples that are left out, not of the reasons: runs that saw different samples differ in it.
    pub fn digest(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        for (shard, keys) in &self.shards {
            for key in keys.keys() {
                hasher.update(format!("{}\t{shard}\t{}\t{key}\n", shard.len(), key.len()).as_bytes());
            }
        }
        hasher.finalize().to_hex().to_string()
    }
}

impl FromIterator<Quarantined> for Quarantine {
    fn from_iter<I: IntoIterator<Item = Quarantined>>(records: I) -> Self {
        let mut list = Quarantine::new();
        for record in records {
            list.insert(record.shard, record.key, record.reason);
        }
        list
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_come_back_whatever_the_order_of_insertion() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Quarantine::read(dir.path()).unwrap().is_empty());
        let records = [("b.tar", "2", "empty caption"), ("a.tar", "1", "truncated"), ("b.tar", "2", "NaN")];
        let mut list = Quarantine::new();
        records.iter().for_each(|(shard, key, reason)| list.insert(*shard, *key, *reason));
        let mut reversed = Quarantine::new();
        records.iter().rev().for_each(|(shard, key, reason)| reversed.insert(*shard, *key, *reason));
        assert_eq!(list, reversed);
        assert_eq!((list.len(), list.records().count(), list.len_of("b.tar"), list.len_of("c.tar")), (2, 3, 1, 0));
        list.write(dir.path()).unwrap();
        assert_eq!(Quarantine::read(dir.path()).unwrap(), list);
        assert!(list.contains("a.tar", "1") && !list.contains("a.tar", "2"));
    }

    #[test]
    fn the_digest_is_of_the_samples() {
        let list = |records: &[(&str, &str, &str)]| {
            let mut list = Quarantine::new();
            records.iter().for_each(|(shard, key, reason)| list.insert(*shard, *key, *reason));
            list.digest()
        };
        assert_eq!(list(&[("a", "1", "x")]), list(&[("a", "1", "y"), ("a", "1", "z")]));
        assert_ne!(list(&[("a", "1", "x")]), list(&[("a", "2", "x")]));
        assert_ne!(list(&[("a", "1", "x")]), list(&[]));
    }

    #[test]
    fn malformed_lists_are_named() {
        let path = Path::new("data/quarantine.json");
        for (text, part) in [
            ("", "EOF"),
            ("{}", "expected a sequence"),
            ("[{\"shard\": \"a.tar\", \"key\": \"1\"}]", "reason"),
            ("[{\"shard\": \"a.tar\", \"key\": 1, \"reason\": \"\"}]", "string"),
            ("[{\"shard\": \"a.tar\", \"key\": \"1\", \"reason\": \"\", \"why\": 1}]", "why"),
            ("[{\"shard\": \"a.tar\", \"key\": \"1\", \"reason\": \"\"}] x", "trailing"),
        ] {
            let error = Quarantine::parse(path, text.as_bytes()).unwrap_err();
            assert!(matches!(error, Error::BadIndex { .. }), "{text}");
            assert!(error.to_string().contains("data/quarantine.json") && error.to_string().contains(part), "{error}");
        }
    }
}
