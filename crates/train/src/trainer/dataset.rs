//! A run goes on with the samples that it was begun with: what its sources are known by is kept beside it.

use super::{CHECKPOINTS, TrainError};
use crate::checkpoint::saved_in;
use calotype_core::durable;
use calotype_core::system::counted;
use calotype_data::Source;
use calotype_data::source::Member;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// File name of the record.
pub(super) const DATA: &str = "data.json";

/// The sources of a run, in the order of its recipe.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct DataRecord {
    sources: Vec<Member>,
}

/// Compares the samples with those that a folder's run has been trained on. A run without a checkpoint has seen none that count, and
/// one of an earlier program has no record.
///
/// # Errors
/// [`TrainError::OtherData`]; [`TrainError::Io`] or [`TrainError::Checkpoint`] if the run's files cannot be read.
pub(super) fn check(folder: &Path, dataset: &dyn Source) -> Result<(), TrainError> {
    let Some(begun) = read(folder)? else { return Ok(()) };
    let checkpoints = folder.join(CHECKPOINTS);
    if !checkpoints.is_dir() || saved_in(&checkpoints)?.is_empty() {
        return Ok(());
    }
    match difference(&begun.sources, &dataset.members()) {
        None => Ok(()),
        Some(difference) => Err(TrainError::OtherData { folder: folder.to_owned(), difference }),
    }
}

/// Writes beside a run what its samples are known by.
///
/// # Errors
/// [`TrainError::Io`].
pub(super) fn record(folder: &Path, dataset: &dyn Source) -> Result<(), TrainError> {
    let now = DataRecord { sources: dataset.members() };
    if read(folder)?.as_ref() == Some(&now) {
        return Ok(());
    }
    let path = folder.join(DATA);
    durable::write_json(&path, &now).map_err(|source| TrainError::Io { path, source })
}

fn read(folder: &Path) -> Result<Option<DataRecord>, TrainError> {
    let path = folder.join(DATA);
    durable::read_json(&path).map_err(|source| TrainError::Io { path, source })
}

/// The first source that differs, and how. Names are not compared: folders move.
fn difference(begun: &[Member], now: &[Member]) -> Option<String> {
    if begun.len() != now.len() {
        return Some(format!("they came from {}, and now from {}", sources(begun), sources(now)));
    }
    let differs = |(begun, now): &(&Member, &Member)| (begun.samples, &begun.digest) != (now.samples, &now.digest);
    let (begun, now) = begun.iter().zip(now).find(differs)?;
    let count = |member: &Member| counted(member.samples as u64, "sample");
    Some(match begun.samples == now.samples {
        true => format!(
            "{} holds as many, {}, but not the same (names, lengths or checksums of its files differ)",
            now.name,
            count(now)
        ),
        false => format!("{} held {}, and now holds {}", now.name, count(begun), count(now)),
    })
}

fn sources(members: &[Member]) -> String {
    counted(members.len() as u64, "source")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str, samples: usize, digest: &str) -> Member {
        Member { name: name.to_owned(), samples, digest: digest.to_owned() }
    }

    #[test]
    fn the_source_that_differs_is_named() {
        let begun = [member("a", 3, "x"), member("b", 44, "y")];
        let with = |second: Member| difference(&begun, &[member("moved/a", 3, "x"), second]);
        assert_eq!(with(member("moved/b", 44, "y")), None);
        assert_eq!(with(member("b", 41, "z")).unwrap(), "b held 44 samples, and now holds 41 samples");
        assert!(with(member("b", 44, "z")).unwrap().starts_with("b holds as many, 44 samples, but not the same"));
        let fewer = difference(&begun, &begun[..1]).unwrap();
        assert_eq!(fewer, "they came from 2 sources, and now from 1 source");
    }
}
