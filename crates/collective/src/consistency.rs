//! Whether all processes have the same weights.

use xxhash_rust::xxh3::{Xxh3, xxh3_128};

use crate::{Collective, CollectiveError};

/// Processes whose tensors differ.
#[derive(Debug, thiserror::Error)]
pub enum ConsistencyError {
    /// The first tensor that is not the same everywhere.
    #[error(
        "the processes have different weights: `{tensor}` of {ranks} is not that of the others ({tensors} of {of} tensors differ); restart from the last checkpoint"
    )]
    Differs {
        /// Its name.
        tensor: String,
        /// Those that differ from most, or where there is no majority, from the first.
        ranks: String,
        /// The number of tensors that differ.
        tensors: usize,
        /// The number of tensors.
        of: usize,
    },
    /// Processes that have other tensors.
    #[error(
        "the processes have different tensors: {ranks} has others than most, from number {position} on (here `{tensor}`)"
    )]
    OtherTensors {
        /// Those that differ from most.
        ranks: String,
        /// Where the lists begin to differ, from 0.
        position: usize,
        /// The tensor of this process there.
        tensor: String,
    },
    /// A process is gone.
    #[error(transparent)]
    Collective(#[from] CollectiveError),
}

/// Hashes of a tensor: of name and length, and of content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Digest {
    name: u128,
    content: u128,
}

const DIGEST: usize = size_of::<u128>() * 2;

/// Hashes of the tensors of one process, taken one after the other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fingerprint {
    names: Vec<String>,
    digests: Vec<Digest>,
}

impl Fingerprint {
    /// Adds a tensor. All processes add the same ones in the same order.
    pub fn add(&mut self, name: &str, bytes: &[u8]) {
        let mut about = Xxh3::new();
        about.update(&(bytes.len() as u64).to_le_bytes());
        about.update(name.as_bytes());
        self.names.push(name.to_owned());
        self.digests.push(Digest { name: about.digest128(), content: xxh3_128(bytes) });
    }

    /// Compares the tensors of all processes. One hash travels where all is well.
    ///
    /// # Errors
    /// [`ConsistencyError`], the same at all processes: the first tensor that differs, and who has another.
    pub fn check_same(&self, collective: &dyn Collective) -> Result<(), ConsistencyError> {
        let digests = self.digests.iter().flat_map(|digest| [digest.name, digest.content]);
        let own: Vec<u8> = digests.flat_map(u128::to_le_bytes).collect();
        let wholes = everywhere(collective, &xxh3_128(&own).to_le_bytes())?;
        if wholes.windows(2).all(|pair| pair[0] == pair[1]) {
            return Ok(());
        }
        compare(&self.names, &everywhere(collective, &own)?, &|rank| collective.in_run(rank))
    }
}

/// Everybody's bytes.
fn everywhere(collective: &dyn Collective, own: &[u8]) -> Result<Vec<Vec<u8>>, CollectiveError> {
    let gathered = collective.gather_bytes(0, own)?;
    let mut all = Vec::new();
    for bytes in gathered {
        all.extend((bytes.len() as u64).to_le_bytes());
        all.extend(bytes);
    }
    collective.broadcast(0, &mut all)?;
    let (mut rest, mut parts) = (&all[..], Vec::new());
    while let Some((length, behind)) = rest.split_first_chunk() {
        let length = (u64::from_le_bytes(*length) as usize).min(behind.len());
        parts.push(behind[..length].to_vec());
        rest = &behind[length..];
    }
    Ok(parts)
}

/// Finds what is different; processes are named by what `in_run` gives for them.
fn compare(names: &[String], all: &[Vec<u8>], in_run: &dyn Fn(usize) -> usize) -> Result<(), ConsistencyError> {
    let listed = |ranks: &[usize]| listed(&ranks.iter().map(|rank| in_run(*rank)).collect::<Vec<_>>());
    let longest = all.iter().map(|own| own.len() / DIGEST).max().unwrap_or(0);
    let half = size_of::<u128>();
    let part = |own: &Vec<u8>, from: usize| own.get(from..from + half).map(<[u8]>::to_vec);
    let name_at = |position: usize| names.get(position).map_or("no tensor", String::as_str).to_owned();
    for position in 0..longest {
        let ranks = minority(&all.iter().map(|own| part(own, position * DIGEST)).collect::<Vec<_>>());
        if !ranks.is_empty() {
            return Err(ConsistencyError::OtherTensors { ranks: listed(&ranks), position, tensor: name_at(position) });
        }
    }
    let minorities: Vec<(usize, Vec<usize>)> = (0..longest)
        .map(|position| (position, all.iter().map(|own| part(own, position * DIGEST + half)).collect::<Vec<_>>()))
        .map(|(position, contents)| (position, minority(&contents)))
        .filter(|(_, ranks)| !ranks.is_empty())
        .collect();
    match minorities.first() {
        None => Ok(()),
        Some((position, ranks)) => Err(ConsistencyError::Differs {
            tensor: name_at(*position),
            ranks: listed(ranks),
            tensors: minorities.len(),
            of: longest,
        }),
    }
}

/// Who has another value than most. Of values that as many have, the lowest rank's counts.
fn minority<T: PartialEq>(values: &[T]) -> Vec<usize> {
    let votes = |value: &T| values.iter().filter(|other| *other == value).count();
    let Some(best) = values.iter().map(votes).max() else { return Vec::new() };
    let Some(common) = values.iter().find(|value| votes(value) == best) else { return Vec::new() };
    (0..values.len()).filter(|rank| values[*rank] != *common).collect()
}

fn listed(ranks: &[usize]) -> String {
    let numbers: Vec<String> = ranks.iter().map(ToString::to_string).collect();
    format!("rank{} {}", if ranks.len() == 1 { "" } else { "s" }, numbers.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn most_are_right() {
        assert_eq!(minority(&[1, 1, 2, 1]), [2]);
        assert_eq!(minority(&[2, 1, 1, 3]), [0, 3]);
        assert_eq!(minority(&[1, 2]), [1]);
        assert_eq!(minority(&[4, 4]), [0usize; 0]);
        assert_eq!(minority::<u8>(&[]), [0usize; 0]);
        assert_eq!((listed(&[1]), listed(&[1, 3])), ("rank 1".to_owned(), "ranks 1, 3".to_owned()));
    }
}
