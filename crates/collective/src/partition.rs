//! Optimizer state that is shared out to the processes: ZeRO, stage 1 (Rajbhandari et al. 2020, section 5.1).

use std::cmp::Reverse;

use crate::{BUCKET_BYTES, BucketPlan, Collective, CollectiveError};

/// Who keeps the optimizer's state of which parameter, and steps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    lengths: Vec<usize>,
    owners: Vec<usize>,
    world: usize,
}

impl Partition {
    /// Shares out parameters of these numbers of values: the largest first, each to the process that has least; of equals,
    /// the parameter that comes first, to the lowest rank. So the result depends on lengths and `world` alone.
    pub fn by_size(lengths: &[usize], world: usize) -> Self {
        let world = world.max(1);
        let mut order: Vec<usize> = (0..lengths.len()).collect();
        order.sort_by_key(|parameter| (Reverse(lengths[*parameter]), *parameter));
        let (mut loads, mut owners) = (vec![0; world], vec![0; lengths.len()]);
        for parameter in order {
            let owner = (0..world).min_by_key(|rank| (loads[*rank], *rank)).unwrap_or(0);
            owners[parameter] = owner;
            loads[owner] += lengths[parameter];
        }
        Self { lengths: lengths.to_vec(), owners, world }
    }

    /// The process that steps a parameter. `None` if there is no such parameter.
    pub fn owner(&self, parameter: usize) -> Option<usize> {
        self.owners.get(parameter).copied()
    }

    /// The parameters of a process, in order.
    pub fn of(&self, rank: usize) -> impl Iterator<Item = usize> {
        self.owners.iter().enumerate().filter(move |(_, owner)| **owner == rank).map(|(parameter, _)| parameter)
    }

    /// The number of values that a process keeps.
    pub fn load(&self, rank: usize) -> usize {
        self.of(rank).map(|parameter| self.lengths[parameter]).sum()
    }

    /// After a step: gives everybody what each process has changed. `read` gives the values of one of our own parameters, `write`
    /// takes those of a parameter of another process. A few megabytes of each process are on their way at a time, or one
    /// parameter.
    ///
    /// # Errors
    /// [`CollectiveError`] if a process is gone, or gives another number of values than the partition says.
    pub fn share(
        &self,
        collective: &dyn Collective,
        mut read: impl FnMut(usize) -> Vec<f32>,
        mut write: impl FnMut(usize, &[f32]),
    ) -> Result<(), CollectiveError> {
        let (rank, world) = (collective.rank(), collective.world());
        let error = |problem: String| CollectiveError { rank, world, operation: "share", problem };
        if world != self.world {
            return Err(error(format!("the partition is of {} processes", self.world)));
        }
        let rounds: Vec<Vec<Vec<usize>>> = (0..world).map(|rank| self.rounds(rank)).collect();
        for round in 0..rounds.iter().map(Vec::len).max().unwrap_or(0) {
            let of = |rank: usize| rounds[rank].get(round).map_or(&[][..], Vec::as_slice);
            let own: Vec<f32> = of(rank).iter().flat_map(|parameter| read(*parameter)).collect();
            for (other, values) in collective.all_gather(&own)?.iter().enumerate() {
                let expected: usize = of(other).iter().map(|parameter| self.lengths[*parameter]).sum();
                if values.len() != expected {
                    return Err(error(format!("rank {other} gave {} values instead of {expected}", values.len())));
                }
                let mut rest = &values[..];
                for parameter in of(other).iter().filter(|_| other != rank) {
                    let (next, behind) = rest.split_at(self.lengths[*parameter]);
                    write(*parameter, next);
                    rest = behind;
                }
            }
        }
        Ok(())
    }

    /// The parameters of a process in groups of about [`BUCKET_BYTES`].
    fn rounds(&self, rank: usize) -> Vec<Vec<usize>> {
        let own: Vec<usize> = self.of(rank).collect();
        let lengths: Vec<usize> = own.iter().map(|parameter| self.lengths[*parameter]).collect();
        let plan = BucketPlan::new(&lengths, BUCKET_BYTES);
        plan.groups().map(|group| own[group].to_vec()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_first_to_who_has_least() {
        let partition = Partition::by_size(&[3, 10, 3, 4, 0, 3], 2);
        assert_eq!(partition.owners, [1, 0, 1, 1, 1, 0]);
        assert_eq!((partition.load(0), partition.load(1)), (13, 10));
        assert_eq!(partition.of(1).collect::<Vec<_>>(), [0, 2, 3, 4]);
        assert_eq!((partition.owner(1), partition.owner(6)), (Some(0), None));
        assert_eq!(Partition::by_size(&[], 3).load(2), 0);
        assert_eq!(Partition::by_size(&[5], 0).owner(0), Some(0));
    }
}
