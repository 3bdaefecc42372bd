//! The variables of the environment that the program reads: a wrong one is an error, not a default.

use crate::commands::Usage;
use crate::ranks;
use anyhow::Result;
use calotype_core::numbers::count;
use tracing_subscriber::EnvFilter;

/// What a variable takes.
enum Takes {
    OneOf(&'static [&'static str]),
    Count,
    Number,
    Rank,
    Filter,
    Anything,
}

/// All of them, with what they take.
const VARIABLES: &[(&str, Takes)] = &[
    ("CALOTYPE_ISA", Takes::OneOf(&calotype_kernels::ISA_LEVELS)),
    ("CALOTYPE_CONV", Takes::OneOf(&["direct"])),
    ("CALOTYPE_THREADS", Takes::Count),
    ("CALOTYPE_LOG", Takes::Filter),
    ("CALOTYPE_CACHE", Takes::Anything),
    // How the processes of a run find each other; launchers have variables of their own.
    ("CALOTYPE_RANK", Takes::Rank),
    ("CALOTYPE_WORLD_SIZE", Takes::Count),
    ("CALOTYPE_LOCAL_RANK", Takes::Rank),
    ("CALOTYPE_LOCAL_SIZE", Takes::Count),
    ("CALOTYPE_RENDEZVOUS", Takes::Anything),
    ("CALOTYPE_HOST", Takes::Anything),
    ("CALOTYPE_JOB", Takes::Anything),
    (ranks::TRANSPORT, Takes::OneOf(&["tcp", "mpi"])),
    ("MIMALLOC_PURGE_DELAY", Takes::Number),
];

/// Similarity (1 is equal) from which a known name is suggested for an unknown one.
const ALIKE: f64 = 0.75;

/// Checks all variables that are set. Empty ones count as not set.
///
/// # Errors
/// [`Usage`], which names the variable and what it takes.
pub(crate) fn check() -> Result<()> {
    for (name, takes) in VARIABLES {
        let Some(value) = std::env::var_os(name).filter(|value| !value.is_empty()) else { continue };
        let value = value.to_string_lossy();
        if let Some(problem) = problem(takes, value.trim()) {
            return Err(Usage(format!("the variable {name} is `{value}`; {problem}, or unset it")).into());
        }
    }
    if ranks::is_mute() {
        return Ok(());
    }
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if let Some(known) = probably_meant(&name) {
            eprintln!("warning: the variable {name} has no meaning; did you mean {known}?");
        }
    }
    Ok(())
}

fn problem(takes: &Takes, value: &str) -> Option<String> {
    match takes {
        Takes::OneOf(names) => (!names.contains(&value)).then(|| format!("it takes {}", names.join(", "))),
        Takes::Count => count::<usize>(value).err(),
        Takes::Number => value.parse::<i64>().is_err().then(|| "it takes a whole number of milliseconds".to_owned()),
        Takes::Rank => value.parse::<usize>().is_err().then(|| "it takes a whole number from 0".to_owned()),
        Takes::Filter => {
            let error = EnvFilter::builder().parse(value).err()?;
            Some(format!("it takes filters of tracing, such as calotype=debug ({error})"))
        }
        Takes::Anything => None,
    }
}

/// The variable that an unknown one of ours was probably meant to be.
fn probably_meant(name: &str) -> Option<&'static str> {
    if !name.starts_with("CALOTYPE_") || VARIABLES.iter().any(|(known, _)| *known == name) {
        return None;
    }
    let scored = VARIABLES.iter().map(|(known, _)| (strsim::normalized_damerau_levenshtein(name, known), *known));
    scored.filter(|(score, _)| *score >= ALIKE).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, known)| known)
}
