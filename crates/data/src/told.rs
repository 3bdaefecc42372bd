//! What is logged once: a run opens its sources several times, and each time finds the same of them.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// Hashes of what was told.
static TOLD: Mutex<BTreeSet<u64>> = Mutex::new(BTreeSet::new());

/// True at the first call of this process for a fact about a source.
pub(crate) fn first_time(source: &Path, fact: impl Display) -> bool {
    let mut hasher = DefaultHasher::new();
    (source, fact.to_string()).hash(&mut hasher);
    // An insertion leaves the set whole or as it was.
    TOLD.lock().unwrap_or_else(PoisonError::into_inner).insert(hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_fact_of_a_source_is_told_once() {
        let told = |source: &str, fact: &str| first_time(Path::new(source), fact);
        assert!(told("told/a", "no index") && told("told/b", "no index") && told("told/a", "gzip"));
        assert!(!told("told/a", "no index") && !told("told/a", "gzip"));
    }
}
