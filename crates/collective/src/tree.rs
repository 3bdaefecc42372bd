//! The order in which gradients are summed: one binary tree over the micro-batches of a global batch. It depends on
//! their number alone, so that a sum has the same bits whoever computes which part of it.

use std::collections::HashMap;
use std::ops::Range;

/// A sum over neighbouring micro-batches.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Part {
    /// First micro-batch and the one behind the last.
    pub slots: Range<usize>,
    pub values: Vec<f32>,
}

/// A binary tree over `slots` leaves, and who has which leaves.
///
/// A node over `n` leaves, of which the first `2^k < n <= 2^(k+1)` form its left child: pairs of neighbours, pairs of
/// pairs, and so on, with what is left over joining last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotTree {
    slots: usize,
    world: usize,
}

impl SlotTree {
    /// A tree over micro-batches that are shared out to processes, as evenly as their numbers allow and in order.
    /// `None` if there are fewer micro-batches than processes, or none.
    pub fn new(slots: usize, world: usize) -> Option<Self> {
        (world > 0 && slots >= world).then_some(Self { slots, world })
    }

    /// The number of micro-batches.
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// The micro-batches of a process: `slots * rank / world ..`, so that one of half as many processes has those of two.
    pub fn slots_of(&self, rank: usize) -> Range<usize> {
        self.slots * rank / self.world..self.slots * (rank + 1) / self.world
    }

    /// The largest nodes of the tree that one process can compute alone, in order.
    pub(crate) fn parts_of(&self, rank: usize) -> Vec<Range<usize>> {
        fn collect(node: Range<usize>, own: &Range<usize>, into: &mut Vec<Range<usize>>) {
            if node.end <= own.start || own.end <= node.start {
                return;
            }
            if own.start <= node.start && node.end <= own.end {
                return into.push(node);
            }
            let middle = middle(&node);
            collect(node.start..middle, own, into);
            collect(middle..node.end, own, into);
        }
        let mut parts = Vec::new();
        collect(0..self.slots, &self.slots_of(rank), &mut parts);
        parts
    }

    /// Whether two neighbouring nodes are the children of one node.
    fn are_siblings(&self, left: &Range<usize>, right: &Range<usize>) -> bool {
        let mut node = 0..self.slots;
        while node.len() > 1 && (node.start, node.end) != (left.start, right.end) {
            let middle = middle(&node);
            node = if right.end <= middle { node.start..middle } else { middle..node.end };
            if left.start < node.start || right.end > node.end {
                return false;
            }
        }
        node.len() > 1 && middle(&node) == right.start
    }

    /// The sum over all micro-batches. `parts` make up the whole tree; `read` gives values of a part, by its number, from a
    /// place on. Returns whether no part is missing. Values are summed block by block, so that what is between stays in
    /// the nearest cache.
    pub(crate) fn sum(&self, parts: &[Range<usize>], read: &Read<'_>, into: &mut [f32]) -> bool {
        let numbers = parts.iter().enumerate().map(|(number, slots)| (slots.clone(), number)).collect();
        let Some(node) = Node::of(0..self.slots, &numbers) else { return false };
        let mut spare = vec![0.0; node.depth() * BLOCK];
        for (number, block) in into.chunks_mut(BLOCK).enumerate() {
            node.sum(read, number * BLOCK, block, &mut spare);
        }
        true
    }
}

/// Gives values of a part, from a place on.
pub(crate) type Read<'a> = dyn Fn(usize, usize, &mut [f32]) + 'a;

/// Values that are summed at once: 4 KiB.
const BLOCK: usize = 1024;

/// How parts are summed.
enum Node {
    Part(usize),
    Sum(Box<[Node; 2]>),
}

impl Node {
    fn of(slots: Range<usize>, numbers: &HashMap<Range<usize>, usize>) -> Option<Self> {
        if let Some(number) = numbers.get(&slots) {
            return Some(Self::Part(*number));
        }
        if slots.len() < 2 {
            return None;
        }
        let middle = middle(&slots);
        let (left, right) = (Self::of(slots.start..middle, numbers)?, Self::of(middle..slots.end, numbers)?);
        Some(Self::Sum(Box::new([left, right])))
    }

    fn depth(&self) -> usize {
        match self {
            Self::Part(_) => 0,
            Self::Sum(children) => 1 + children[0].depth().max(children[1].depth()),
        }
    }

    fn sum(&self, read: &Read<'_>, at: usize, into: &mut [f32], spare: &mut [f32]) {
        match self {
            Self::Part(number) => read(*number, at, into),
            Self::Sum(children) => {
                children[0].sum(read, at, into, spare);
                let (right, spare) = spare.split_at_mut(BLOCK);
                let right = &mut right[..into.len()];
                children[1].sum(read, at, right, spare);
                add(into, right);
            }
        }
    }
}

/// Where the right child of a node begins.
fn middle(node: &Range<usize>) -> usize {
    node.start + node.len().next_power_of_two() / 2
}

fn add(sum: &mut [f32], values: &[f32]) {
    sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
}

/// The sum of the micro-batches of one process while they come: never more parts in memory than the tree is deep.
#[derive(Clone, Debug)]
pub(crate) struct SlotSum {
    tree: SlotTree,
    next: usize,
    parts: Vec<Part>,
}

impl SlotSum {
    pub(crate) fn new(tree: SlotTree, rank: usize) -> Self {
        Self { tree, next: tree.slots_of(rank).start, parts: Vec::new() }
    }

    /// Takes the next micro-batch, and sums what belongs together.
    pub(crate) fn push(&mut self, values: Vec<f32>) {
        self.parts.push(Part { slots: self.next..self.next + 1, values });
        self.next += 1;
        while let [.., left, right] = &mut self.parts[..] {
            if !self.tree.are_siblings(&left.slots, &right.slots) {
                break;
            }
            add(&mut left.values, &right.values);
            left.slots.end = right.slots.end;
            self.parts.pop();
        }
    }

    /// The sums of [`SlotTree::parts_of`], once all micro-batches have come.
    pub(crate) fn into_parts(self) -> Vec<Part> {
        self.parts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sum of parts of any lengths.
    fn sum(tree: &SlotTree, parts: &[Part]) -> Option<Vec<f32>> {
        let slots: Vec<_> = parts.iter().map(|part| part.slots.clone()).collect();
        let read = |number: usize, at: usize, into: &mut [f32]| {
            into.copy_from_slice(&parts[number].values[at..at + into.len()]);
        };
        let mut sum = vec![f32::NAN; parts.first()?.values.len()];
        tree.sum(&slots, &read, &mut sum).then_some(sum)
    }

    #[test]
    fn leaves_join_as_drawn() {
        let tree = |slots, world| SlotTree::new(slots, world).unwrap();
        assert_eq!(tree(7, 2).parts_of(1), [3..4, 4..7]);
        assert_eq!(tree(6, 2).parts_of(0), [0..2, 2..3]);
        assert_eq!(tree(6, 2).parts_of(1), [3..4, 4..6]);
        assert_eq!(tree(5, 2).slots_of(1), 2..5);
        assert_eq!(tree(5, 2).parts_of(1), [2..4, 4..5]);
        assert_eq!((tree(3, 1).parts_of(0).len(), tree(4, 2).parts_of(1).len()), (1, 1));
        assert!(SlotTree::new(3, 4).is_none() && SlotTree::new(0, 0).is_none());
    }

    #[test]
    fn sums_while_they_come_are_the_parts() {
        // More than a block, and not a multiple of it.
        let values = |slot: usize| -> Vec<f32> { (0..BLOCK + 3).map(|i| ((slot * 31 + i) as f32).sin()).collect() };
        for slots in 1..20 {
            for world in 1..=slots {
                let tree = SlotTree::new(slots, world).unwrap();
                let mut all = Vec::new();
                for rank in 0..world {
                    let mut own = SlotSum::new(tree, rank);
                    tree.slots_of(rank).for_each(|slot| own.push(values(slot)));
                    let parts = own.into_parts();
                    let slots: Vec<_> = parts.iter().map(|part| part.slots.clone()).collect();
                    assert_eq!(slots, tree.parts_of(rank));
                    all.extend(parts);
                }
                let leaves: Vec<_> =
                    (0..slots).map(|slot| Part { slots: slot..slot + 1, values: values(slot) }).collect();
                let whole = sum(&tree, &leaves).unwrap();
                assert_eq!(sum(&tree, &all), Some(whole), "{slots} micro-batches, {world} processes");
            }
        }
    }

    #[test]
    fn four_are_summed_by_pairs() {
        let leaves = [1e8f32, 1.0, -1e8, 1.0];
        let part = |(slot, value): (usize, &f32)| Part { slots: slot..slot + 1, values: vec![*value] };
        let parts: Vec<Part> = leaves.iter().enumerate().map(part).collect();
        let tree = SlotTree::new(4, 1).unwrap();
        assert_eq!(sum(&tree, &parts), Some(vec![(1e8 + 1.0) + (-1e8 + 1.0)]));
        assert_eq!(sum(&tree, &parts[1..]), None);
    }
}
