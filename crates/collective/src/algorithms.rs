//! Operations of all processes, made of messages. Their order is fixed by the number of processes and the sizes alone.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use std::time::Instant;

use half::bf16;
use half::slice::HalfFloatSliceExt;

use crate::counters::Counting;
use crate::failure::{Cause, Failure};
use crate::members::Members;
use crate::transport::{Channel, Transport};
use crate::tree::{Part, SlotTree};

/// How numbers travel when they are summed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Payload {
    /// As they are.
    #[default]
    F32,
    /// Rounded to `bf16`, half the bytes: what a process gives, and the sum. Sums are made in `f32`.
    Bf16,
}

/// What a message belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Barrier = 1,
    Broadcast = 2,
    AllGather = 3,
    GatherBytes = 4,
    AllReduceSum = 5,
    Reduction = 6,
}

impl Operation {
    const ALL: [Self; 6] =
        [Self::Barrier, Self::Broadcast, Self::AllGather, Self::GatherBytes, Self::AllReduceSum, Self::Reduction];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Barrier => "barrier",
            Self::Broadcast => "broadcast",
            Self::AllGather => "all_gather",
            Self::GatherBytes => "gather_bytes",
            Self::AllReduceSum => "all_reduce_sum",
            Self::Reduction => "reduction",
        }
    }
}

/// What stands before the content of every message: operation, number of the call, and length of what is summed.
const HEAD: usize = 16;
/// Numbers in all up to which every process sums for itself, which takes one round of messages instead of two.
pub(crate) const SMALL: usize = 16_384;

/// A transport with what is counted. What a run has once, its groups share.
#[derive(Debug)]
pub(crate) struct Wire {
    pub transport: Arc<dyn Transport>,
    pub counting: Arc<Counting>,
    pub payload: Payload,
    /// Calls so far, by channel. All processes make the same ones.
    calls: [AtomicU32; Channel::ALL.len()],
    /// Which group of the run this is, and how many were split off it.
    group: u8,
    groups: Arc<AtomicU8>,
    /// Whether a reduction is being made.
    pub reducing: Arc<AtomicBool>,
    /// Whether one was given up, for which the others wait.
    pub dropped: Arc<AtomicBool>,
}

impl Wire {
    pub(crate) fn new(transport: Box<dyn Transport>, payload: Payload) -> Self {
        Self {
            transport: Arc::from(transport),
            counting: Arc::default(),
            payload,
            calls: Default::default(),
            group: 0,
            groups: Arc::default(),
            reducing: Arc::default(),
            dropped: Arc::default(),
        }
    }

    /// The same between some of the processes.
    pub(crate) fn split(&self, members: &[usize]) -> Result<Self, String> {
        let transport = Arc::new(Members::of(&self.transport, members)?);
        // Every process splits off the same number of groups, one after the other.
        let group = self.groups.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        Ok(Self {
            transport,
            counting: Arc::clone(&self.counting),
            payload: self.payload,
            calls: Default::default(),
            group,
            groups: Arc::clone(&self.groups),
            reducing: Arc::clone(&self.reducing),
            dropped: Arc::clone(&self.dropped),
        })
    }

    /// Ends the run because of this process.
    pub(crate) fn give_up(&self, message: &str) -> Failure {
        let transport = &self.transport;
        transport.raise(transport.failure_of(transport.rank(), Cause::Aborted, message.to_owned()))
    }

    /// Makes a call and counts it. `length` is the number of values that are summed, which all must agree on.
    pub(crate) fn call<T>(
        &self,
        channel: Channel,
        operation: Operation,
        length: usize,
        body: impl FnOnce(&Call<'_>) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        if self.dropped.load(Ordering::SeqCst) {
            return Err(self.give_up("a reduction was dropped before its end"));
        }
        let started = Instant::now();
        let number = self.calls[channel as usize].fetch_add(1, Ordering::Relaxed);
        let result = body(&Call { wire: self, channel, operation, number, length });
        self.counting.called(started, channel == Channel::Calls);
        result
    }
}

/// One call of all processes.
pub(crate) struct Call<'a> {
    wire: &'a Wire,
    channel: Channel,
    operation: Operation,
    number: u32,
    length: usize,
}

impl Call<'_> {
    fn rank(&self) -> usize {
        self.wire.transport.rank()
    }

    fn world(&self) -> usize {
        self.wire.transport.world()
    }

    /// The others, nearest first, so that not all begin with the same one.
    fn others(&self) -> impl Iterator<Item = (usize, usize)> {
        let (rank, world) = (self.rank(), self.world());
        (1..world).map(move |step| ((rank + step) % world, (rank + world - step) % world))
    }

    fn head(&self) -> [u8; HEAD] {
        let mut head = [0; HEAD];
        (head[0], head[1]) = (self.operation as u8, self.wire.group);
        head[4..8].copy_from_slice(&self.number.to_le_bytes());
        head[8..].copy_from_slice(&(self.length as u64).to_le_bytes());
        head
    }

    /// A message to anybody, whose content is written behind the head.
    fn message(&self, bytes: usize, write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut message = self.wire.transport.buffer(HEAD + bytes);
        message.extend(self.head());
        write(&mut message);
        message
    }

    fn send(&self, to: usize, message: Vec<u8>) -> Result<(), Failure> {
        self.wire.counting.sent(message.len());
        self.wire.transport.send(to, self.channel, message)
    }

    fn send_bytes(&self, to: usize, bytes: &[u8]) -> Result<(), Failure> {
        self.send(to, self.message(bytes.len(), |message| message.extend_from_slice(bytes)))
    }

    fn recycle(&self, contents: impl IntoIterator<Item = Content>) {
        contents.into_iter().for_each(|content| self.wire.transport.recycle(content.0));
    }

    fn receive(&self, from: usize) -> Result<Content, Failure> {
        let message = self.wire.transport.receive(from, self.channel)?;
        self.wire.counting.received(message.len());
        if message.get(..HEAD) == Some(&self.head()) {
            return Ok(Content(message));
        }
        let group = of_group(self.wire.group);
        let own = format!("{} of {} values as call {}{group}", self.operation.name(), self.length, self.number);
        let rank = self.wire.transport.in_run(self.rank());
        Err(self.disagrees(from, &format!("{}, where rank {rank} makes {own}", told(&message))))
    }

    fn disagrees(&self, rank: usize, detail: &str) -> Failure {
        let transport = &self.wire.transport;
        transport.raise(transport.failure_of(rank, Cause::Disagrees, detail.to_owned()))
    }

    /// Waits until all are here. Dissemination (Hensgen, Finkel and Manber 1988): after round k everybody has heard, at
    /// second hand, of `2^k` others.
    pub(crate) fn barrier(&self) -> Result<(), Failure> {
        let (rank, world) = (self.rank(), self.world());
        let mut distance = 1;
        while distance < world {
            self.send_bytes((rank + distance) % world, &[])?;
            self.receive((rank + world - distance) % world)?;
            distance *= 2;
        }
        Ok(())
    }

    /// Replaces bytes by those of `root`, along a binomial tree.
    pub(crate) fn broadcast(&self, root: usize, bytes: &mut Vec<u8>) -> Result<(), Failure> {
        let world = self.world();
        let place = (self.rank() + world - root) % world;
        let absolute = |place: usize| (place + root) % world;
        // Those whose highest bit of the place is lower have it already when we get it from one of them.
        let mut distance = 1;
        while distance < world {
            if (distance..2 * distance).contains(&place) {
                *bytes = self.receive(absolute(place - distance))?.bytes().to_vec();
            } else if place < distance && place + distance < world {
                self.send_bytes(absolute(place + distance), bytes)?;
            }
            distance *= 2;
        }
        Ok(())
    }

    /// Room for everybody's content, with our own.
    fn contents(&self, own: Vec<u8>) -> Vec<Content> {
        let mut all: Vec<Content> = (0..self.world()).map(|_| Content(Vec::new())).collect();
        all[self.rank()] = Content(own);
        all
    }

    /// Everybody's bytes at everybody.
    fn all_gather_bytes(&self, own: &[u8]) -> Result<Vec<Content>, Failure> {
        let mut all = self.contents(self.message(own.len(), |message| message.extend_from_slice(own)));
        for (to, from) in self.others() {
            self.send_bytes(to, own)?;
            all[from] = self.receive(from)?;
        }
        Ok(all)
    }

    /// Everybody's values, whose numbers may differ.
    pub(crate) fn all_gather(&self, own: &[f32]) -> Result<Vec<Vec<f32>>, Failure> {
        let all = self.all_gather_bytes(bytemuck::cast_slice(own))?;
        all.into_iter().enumerate().map(|(from, content)| self.floats(from, &content)).collect()
    }

    /// Everybody's bytes at `root`, nothing at the others.
    pub(crate) fn gather_bytes(&self, root: usize, own: &[u8]) -> Result<Vec<Vec<u8>>, Failure> {
        if self.rank() != root {
            self.send_bytes(root, own)?;
            return Ok(Vec::new());
        }
        let of = |rank| if rank == root { Ok(own.to_vec()) } else { Ok(self.receive(rank)?.bytes().to_vec()) };
        (0..self.world()).map(of).collect()
    }

    /// Sums over all micro-batches, of this process's parts of the tree, at everybody. The length of a call is that of a
    /// part.
    pub(crate) fn all_reduce(&self, mut parts: Vec<Part>, tree: &SlotTree) -> Result<Vec<f32>, Failure> {
        if self.world() == 1 {
            return Ok(parts.pop().map(|part| part.values).unwrap_or_default());
        }
        match self.length * self.world() <= SMALL {
            true => self.all_reduce_gathered(parts, tree),
            false => self.all_reduce_scattered(parts, tree),
        }
    }

    /// The readable way: everybody gets all parts and sums them.
    pub(crate) fn all_reduce_gathered(&self, parts: Vec<Part>, tree: &SlotTree) -> Result<Vec<f32>, Failure> {
        let (payload, mut own) = (self.wire.payload, Vec::new());
        parts.iter().for_each(|part| encode(&part.values, payload, &mut own));
        let all = self.all_gather_bytes(&own)?;
        let mut sum = vec![0.0; self.length];
        self.sum(&all, &[], tree, &mut sum)?;
        round(&mut sum, payload);
        Ok(sum)
    }

    /// The fast way: everybody sums one piece and sends it to all. Two times the bytes of the values are sent by
    /// everybody, whatever the number of processes.
    pub(crate) fn all_reduce_scattered(&self, parts: Vec<Part>, tree: &SlotTree) -> Result<Vec<f32>, Failure> {
        let (payload, rank, world) = (self.wire.payload, self.rank(), self.world());
        let piece = |rank: usize| values_of_rank(self.length, rank, world);
        let piece_of_all = |to: usize| {
            let bytes = parts.len() * piece(to).len() * payload.bytes();
            self.message(bytes, |message| {
                parts.iter().for_each(|part| encode(&part.values[piece(to)], payload, message));
            })
        };
        let mut all = self.contents(Vec::new());
        for (to, from) in self.others() {
            self.send(to, piece_of_all(to))?;
            all[from] = self.receive(from)?;
        }
        let mut own = vec![0.0; piece(rank).len()];
        let kept: Vec<&[f32]> = parts.iter().map(|part| &part.values[piece(rank)]).collect();
        self.sum(&all, &kept, tree, &mut own)?;
        self.recycle(all);
        round(&mut own, payload);
        // Parts are sent; the first one's memory is that of the sum.
        let mut sum = parts.into_iter().next().map(|part| part.values).unwrap_or_default();
        sum[piece(rank)].copy_from_slice(&own);
        for (to, from) in self.others() {
            self.send(to, self.message(own.len() * payload.bytes(), |message| encode(&own, payload, message)))?;
            let content = self.receive(from)?;
            self.check_size(from, &content, piece(from).len() * payload.bytes())?;
            decode(content.bytes(), payload, &mut sum[piece(from)]);
            self.recycle([content]);
        }
        Ok(sum)
    }

    /// Replaces values by their sums over all processes, whose bits are those of [`Call::all_reduce`], in the memory that they have.
    /// Everybody sums one piece and sends it to all; what is sent and summed is rounded to the type of the values.
    pub(crate) fn sum_in_place<E: Number>(&self, values: &mut [E], tree: &SlotTree) -> Result<(), Failure> {
        let (rank, world) = (self.rank(), self.world());
        let piece = |rank: usize| values_of_rank(self.length, rank, world);
        let mut all = self.contents(Vec::new());
        for (to, from) in self.others() {
            self.send_bytes(to, bytemuck::cast_slice(&values[piece(to)]))?;
            all[from] = self.receive(from)?;
        }
        let own = piece(rank);
        for from in (0..world).filter(|from| *from != rank) {
            self.check_size(from, &all[from], size_of_val(&values[own.clone()]))?;
        }
        let parts: Vec<Range<usize>> = (0..world).flat_map(|rank| tree.parts_of(rank)).collect();
        let mut sum = vec![0.0; own.len()];
        let read = |number: usize, at: usize, block: &mut [f32]| match number == rank {
            true => widen(&values[own.clone()][at..at + block.len()], block),
            false => {
                let bytes = at * size_of::<E>()..(at + block.len()) * size_of::<E>();
                let sent = all[number].bytes()[bytes].chunks_exact(size_of::<E>());
                block.iter_mut().zip(sent).for_each(|(value, bytes)| *value = E::read(bytes));
            }
        };
        if !tree.sum(&parts, &read, &mut sum) {
            return Err(self.disagrees(rank, "its values are incomplete"));
        }
        self.recycle(all);
        values[own.clone()].iter_mut().zip(&sum).for_each(|(value, sum)| *value = E::narrow(*sum));
        for (to, from) in self.others() {
            self.send_bytes(to, bytemuck::cast_slice(&values[own.clone()]))?;
            let content = self.receive(from)?;
            let into = bytemuck::cast_slice_mut(&mut values[piece(from)]);
            self.check_size(from, &content, into.len())?;
            into.copy_from_slice(content.bytes());
            self.recycle([content]);
        }
        Ok(())
    }

    /// The sum of the parts of all processes, each of which sent its own one behind the other. Our own are `kept`, unless they are
    /// among what was sent.
    fn sum(&self, all: &[Content], kept: &[&[f32]], tree: &SlotTree, into: &mut [f32]) -> Result<(), Failure> {
        let (payload, bytes) = (self.wire.payload, into.len() * self.wire.payload.bytes());
        let (mut parts, mut places) = (Vec::new(), Vec::new());
        for (rank, content) in all.iter().enumerate() {
            let own = tree.parts_of(rank);
            if rank == self.rank() && !kept.is_empty() {
                places.extend(kept.iter().map(|values| Place::Kept(values)));
            } else {
                self.check_size(rank, content, own.len() * bytes)?;
                let sent = |number: usize| &content.bytes()[number * bytes..(number + 1) * bytes];
                places.extend((0..own.len()).map(|number| Place::Sent(sent(number))));
            }
            parts.extend(own);
        }
        let read = |number: usize, at: usize, block: &mut [f32]| match places[number] {
            Place::Sent(sent) => decode(&sent[at * payload.bytes()..], payload, block),
            Place::Kept(values) => {
                block.copy_from_slice(&values[at..at + block.len()]);
                round(block, payload);
            }
        };
        match tree.sum(&parts, &read, into) {
            true => Ok(()),
            false => Err(self.disagrees(self.rank(), "its micro-batches are incomplete")),
        }
    }

    /// Whether a process sent as many bytes as it should.
    fn check_size(&self, from: usize, content: &Content, bytes: usize) -> Result<(), Failure> {
        let found = content.bytes().len();
        match found == bytes {
            true => Ok(()),
            false => Err(self.disagrees(from, &format!("{} with {found} bytes for {bytes}", self.operation.name()))),
        }
    }

    fn floats(&self, from: usize, content: &Content) -> Result<Vec<f32>, Failure> {
        let (numbers, rest) = content.bytes().as_chunks();
        match rest {
            [] => Ok(numbers.iter().map(|bytes| f32::from_ne_bytes(*bytes)).collect()),
            _ => Err(self.disagrees(from, &format!("{} bytes are no numbers", content.bytes().len()))),
        }
    }
}

/// The piece of so many values that a process sums.
fn values_of_rank(length: usize, rank: usize, world: usize) -> Range<usize> {
    length * rank / world..length * (rank + 1) / world
}

/// A type of numbers that are summed in `f32`.
pub(crate) trait Number: bytemuck::Pod {
    fn wide(self) -> f32;
    fn narrow(value: f32) -> Self;
    /// Of the bytes of one number in a message.
    fn read(bytes: &[u8]) -> f32;
}

impl Number for f32 {
    #[inline]
    fn wide(self) -> f32 {
        self
    }
    #[inline]
    fn narrow(value: f32) -> Self {
        value
    }
    #[inline]
    fn read(bytes: &[u8]) -> f32 {
        bytes.try_into().map_or(0.0, f32::from_ne_bytes)
    }
}

impl Number for bf16 {
    #[inline]
    fn wide(self) -> f32 {
        self.to_f32()
    }
    #[inline]
    fn narrow(value: f32) -> Self {
        Self::from_f32(value)
    }
    #[inline]
    fn read(bytes: &[u8]) -> f32 {
        bytes.try_into().map_or(0.0, |bytes| Self::from_ne_bytes(bytes).to_f32())
    }
}

fn widen<E: Number>(values: &[E], into: &mut [f32]) {
    into.iter_mut().zip(values).for_each(|(into, value)| *into = value.wide());
}

/// What a message of another call says of itself.
fn told(message: &[u8]) -> String {
    let operation = message.first().and_then(|first| Operation::ALL.into_iter().find(|known| *known as u8 == *first));
    let number = message.get(4..8).and_then(|bytes| bytes.try_into().ok()).map(u32::from_le_bytes);
    let length = message.get(8..HEAD).and_then(|bytes| bytes.try_into().ok()).map(u64::from_le_bytes);
    match (operation, number, length) {
        (Some(operation), Some(number), Some(length)) => {
            let group = of_group(message.get(1).copied().unwrap_or(0));
            format!("{} of {length} values as call {number}{group}", operation.name())
        }
        _ => "something unknown".to_owned(),
    }
}

/// Which group of the run a call is of, where it is not the whole.
fn of_group(group: u8) -> String {
    if group == 0 { String::new() } else { format!(" of group {group}") }
}

/// Where a part is.
#[derive(Clone, Copy)]
enum Place<'a> {
    /// In a message.
    Sent(&'a [u8]),
    /// Still in our own memory, not yet rounded to what travels.
    Kept(&'a [f32]),
}

/// A message, with its head.
struct Content(Vec<u8>);

impl Content {
    fn bytes(&self) -> &[u8] {
        self.0.get(HEAD..).unwrap_or_default()
    }
}

impl Payload {
    /// Bytes of one number.
    fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }
}

fn encode(values: &[f32], payload: Payload, into: &mut Vec<u8>) {
    match payload {
        Payload::F32 => into.extend_from_slice(bytemuck::cast_slice(values)),
        Payload::Bf16 => {
            let mut rounded = vec![bf16::ZERO; values.len()];
            rounded.convert_from_f32_slice(values);
            rounded.iter().for_each(|value| into.extend_from_slice(&value.to_ne_bytes()));
        }
    }
}

/// Of at least as many bytes as the values take.
fn decode(bytes: &[u8], payload: Payload, into: &mut [f32]) {
    match payload {
        Payload::F32 => {
            let (numbers, _) = bytes.as_chunks();
            into.iter_mut().zip(numbers).for_each(|(value, bytes)| *value = f32::from_ne_bytes(*bytes));
        }
        Payload::Bf16 => {
            let (numbers, _) = bytes.as_chunks();
            into.iter_mut().zip(numbers).for_each(|(value, bytes)| *value = bf16::from_ne_bytes(*bytes).to_f32());
        }
    }
}

/// What would arrive of the values.
fn round(values: &mut [f32], payload: Payload) {
    if payload == Payload::Bf16 {
        values.iter_mut().for_each(|value| *value = bf16::from_f32(*value).to_f32());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Memory;
    use std::time::Duration;

    /// What all ranks get of both ways, for a number of parts each.
    fn both_ways(slots: usize, world: usize, length: usize, payload: Payload) -> Vec<[Vec<f32>; 2]> {
        let tree = SlotTree::new(slots, world).unwrap();
        let members = Memory::members(world, Duration::from_secs(20));
        std::thread::scope(|scope| {
            let threads: Vec<_> = members
                .into_iter()
                .map(|member| {
                    scope.spawn(move || {
                        let rank = member.rank();
                        let wire = Wire::new(Box::new(member), payload);
                        let value =
                            |slots: usize, i: usize| ((slots * 37 + i) as f32 * 0.7).sin() * 3f32.powi(i as i32 % 9);
                        let parts: Vec<Part> = tree
                            .parts_of(rank)
                            .into_iter()
                            .map(|slots| Part { values: (0..length).map(|i| value(slots.start, i)).collect(), slots })
                            .collect();
                        let way = |fast: bool| {
                            let parts = parts.clone();
                            wire.call(Channel::Calls, Operation::AllReduceSum, length, |call| match fast {
                                true => call.all_reduce_scattered(parts, &tree),
                                false => call.all_reduce_gathered(parts, &tree),
                            })
                        };
                        [way(false).unwrap(), way(true).unwrap()]
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    #[test]
    fn both_ways_of_summing_give_the_same_bits() {
        for (slots, world, length) in [(2, 2, 5), (3, 3, 7), (4, 4, 1), (5, 2, 9), (7, 3, 4), (8, 5, 33), (5, 5, 0)] {
            for payload in [Payload::F32, Payload::Bf16] {
                let all = both_ways(slots, world, length, payload);
                for ways in &all {
                    assert_eq!(ways[0], ways[1], "{slots} parts, {world} processes, {length} values");
                    assert_eq!(ways[0], all[0][0]);
                    assert_eq!(ways[0].len(), length);
                }
            }
        }
    }

    #[test]
    fn bf16_rounds_what_travels() {
        let mut bytes = Vec::new();
        let values = [1.0, 1.0 + 1.0 / 512.0, -3.1406, f32::INFINITY];
        encode(&values, Payload::Bf16, &mut bytes);
        let mut decoded = [0.0; 4];
        decode(&bytes, Payload::Bf16, &mut decoded);
        let mut rounded = values;
        round(&mut rounded, Payload::Bf16);
        assert_eq!((decoded, bytes.len()), (rounded, 8));
        assert_eq!(decoded, [1.0, 1.0, -3.140625, f32::INFINITY]);
    }
}
