//! Threads that play the processes of a run.

use std::time::Duration;

use calotype_collective::{Group, Memory, Payload};

/// Runs a function as every process of a run, and returns what each returns, by rank.
pub fn as_ranks<T: Send>(world: usize, payload: Payload, body: impl Fn(&Group) -> T + Sync) -> Vec<T> {
    let groups: Vec<Group> = groups(world, payload, Duration::from_secs(30));
    std::thread::scope(|scope| {
        let body = &body;
        let threads: Vec<_> = groups.into_iter().map(|group| scope.spawn(move || body(&group))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

pub fn groups(world: usize, payload: Payload, patience: Duration) -> Vec<Group> {
    Memory::members(world, patience).into_iter().map(|member| Group::new(member, payload)).collect()
}

/// A value whose sums depend on their order.
pub fn value(seed: usize, i: usize) -> f32 {
    ((seed * 131 + i) as f32 * 0.37).sin() * 2f32.powi((i % 13) as i32)
}

/// The sum in the order of the tree: neighbours, then neighbouring pairs, and so on.
pub fn tree_sum(values: &[f32]) -> f32 {
    match values {
        [] => 0.0,
        [one] => *one,
        more => {
            let (left, right) = more.split_at(more.len().next_power_of_two() / 2);
            tree_sum(left) + tree_sum(right)
        }
    }
}

/// All processes of a run have the same.
pub fn same<T: PartialEq + std::fmt::Debug>(mut all: Vec<T>) -> T {
    let last = all.pop().unwrap();
    all.iter().for_each(|one| assert!(*one == last, "processes differ"));
    last
}

/// The message of the call of each that failed.
pub fn text<T: std::fmt::Debug>(result: Result<T, calotype_collective::CollectiveError>) -> String {
    result.unwrap_err().to_string()
}
