//! The tensors of a checkpoint that several processes have: moments that are shared out (`sharding.rs`), parts of the network
//! (`grid.rs`). The first process writes them, and asks for each when it comes to it.

use super::grid::Grid;
use crate::checkpoint::LazyTensor;
use calotype_collective::CollectiveError;
use calotype_weights::Dtype;
use std::cell::RefCell;
use std::collections::BTreeMap;

/// A checkpoint in the making.
pub(super) struct Gathering<'a> {
    grid: &'a Grid<'a>,
    /// Why a tensor of another process did not come.
    failed: RefCell<Option<CollectiveError>>,
}

/// A tensor of a process: name, type and shape.
type Entry = (String, String, Vec<usize>);

/// A tensor, or a part of it.
enum Piece<'s> {
    /// Of this process.
    Own(LazyTensor<'s>),
    /// Of another one, by its place among that one's tensors.
    Of { rank: usize, number: usize },
}

/// A tensor with its parts in the order of their processes.
struct Whole<'s> {
    dtype: Dtype,
    shape: Vec<usize>,
    pieces: Vec<Piece<'s>>,
}

impl<'a> Gathering<'a> {
    pub(super) fn new(grid: &'a Grid<'a>) -> Self {
        Self { grid, failed: RefCell::new(None) }
    }

    /// At the first process, the whole tensors of all, of which it has its own; others send theirs tensor by tensor when they are
    /// written, until [`Gathering::end`]. The others send until then, and have nothing.
    ///
    /// # Errors
    /// [`CollectiveError`] if a process is gone.
    pub(super) fn all<'s>(&'s self, own: Vec<LazyTensor<'s>>) -> Result<Vec<LazyTensor<'s>>, CollectiveError> {
        let entry = |tensor: &LazyTensor<'_>| -> Entry {
            let info = tensor.info();
            (info.name.clone(), info.dtype.name().to_owned(), info.shape.clone())
        };
        let listed = serde_json::to_vec(&own.iter().map(entry).collect::<Vec<_>>());
        let listed = listed.map_err(|problem| self.error(problem.to_string()))?;
        let lists = self.grid.run().gather_bytes(0, &listed)?;
        let mut own: Vec<_> = own.into_iter().map(Some).collect();
        if !self.grid.run().is_first() {
            self.send(&mut own)?;
            return Ok(Vec::new());
        }
        let mut found: BTreeMap<String, Whole<'s>> = BTreeMap::new();
        for (rank, list) in lists.iter().enumerate() {
            let entries: Vec<Entry> =
                serde_json::from_slice(list).map_err(|problem| self.error(problem.to_string()))?;
            for (number, (name, dtype, shape)) in entries.into_iter().enumerate() {
                let dtype = Dtype::from_name(&dtype).ok_or_else(|| self.error(format!("no type is {dtype}")))?;
                let here = if rank == 0 { own.get_mut(number).and_then(Option::take) } else { None };
                let piece = here.map_or(Piece::Of { rank, number }, Piece::Own);
                let whole = found.entry(name).or_insert_with(|| Whole { dtype, shape, pieces: Vec::new() });
                whole.pieces.push(piece);
            }
        }
        Ok(found.into_iter().map(|(name, whole)| self.joined(name, whole)).collect())
    }

    /// The tensor, which is put together when it is written.
    fn joined<'s>(&'s self, name: String, whole: Whole<'s>) -> LazyTensor<'s> {
        let Whole { dtype, shape, mut pieces } = whole;
        let cut = self.grid.cut_of(&name);
        match (cut, pieces.pop()) {
            (None, Some(Piece::Own(tensor))) => tensor,
            (None, Some(piece)) => LazyTensor::new(name, dtype, shape, move || self.bytes_of(piece)),
            (cut, last) => {
                pieces.extend(last);
                let shape = cut.map_or(shape, |cut| cut.shape.clone());
                LazyTensor::new(name, dtype, shape, move || {
                    let parts: Vec<Vec<u8>> = pieces.into_iter().map(|piece| self.bytes_of(piece)).collect();
                    cut.map_or_else(|| parts.concat(), |cut| cut.joined(&parts))
                })
            }
        }
    }

    /// Without its bytes, a tensor cannot be written.
    fn bytes_of(&self, piece: Piece<'_>) -> Vec<u8> {
        match piece {
            Piece::Own(tensor) => tensor.into_bytes(),
            Piece::Of { rank, number } => self.fetched(rank, number).unwrap_or_else(|error| {
                self.failed.borrow_mut().get_or_insert(error);
                Vec::new()
            }),
        }
    }

    fn fetched(&self, rank: usize, number: usize) -> Result<Vec<u8>, CollectiveError> {
        let mut request = [rank as u64, number as u64].map(u64::to_le_bytes).concat();
        self.grid.run().broadcast(0, &mut request)?;
        Ok(self.grid.run().gather_bytes(0, &[])?.into_iter().nth(rank).unwrap_or_default())
    }

    /// Sends the tensors that the first process asks for, each once.
    fn send(&self, own: &mut [Option<LazyTensor<'_>>]) -> Result<(), CollectiveError> {
        let run = self.grid.run();
        loop {
            let mut request = Vec::new();
            run.broadcast(0, &mut request)?;
            let Some((rank, number)) = request_of(&request) else { return Ok(()) };
            let asked = own.get_mut(number).filter(|_| rank == run.rank()).and_then(Option::take);
            run.gather_bytes(0, &asked.map_or_else(Vec::new, LazyTensor::into_bytes))?;
        }
    }

    /// At the first process: no more tensors are asked for.
    ///
    /// # Errors
    /// [`CollectiveError`] if a process is gone, now or when a tensor was asked for.
    pub(super) fn end(&self) -> Result<(), CollectiveError> {
        match self.failed.take() {
            Some(error) => Err(error),
            None => self.grid.run().broadcast(0, &mut Vec::new()),
        }
    }

    fn error(&self, problem: String) -> CollectiveError {
        let (rank, world) = (self.grid.run().rank(), self.grid.run().world());
        CollectiveError { rank, world, operation: "gathering a checkpoint", problem }
    }
}

/// Which process is asked for which of its tensors.
fn request_of(bytes: &[u8]) -> Option<(usize, usize)> {
    let (rank, rest) = bytes.split_first_chunk()?;
    let (number, _) = rest.split_first_chunk()?;
    Some((u64::from_le_bytes(*rank) as usize, u64::from_le_bytes(*number) as usize))
}
