//! The values of a pickle: nodes in one vector, referred to by number.

use super::PickleFault;
use super::globals::Known;
use crate::tensor_file::Dtype;

/// A value: a small integer or a constant in the number itself, or the number of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Handle(u32);

/// Meaning of a [`Handle`].
pub(super) enum Unpacked {
    None,
    Bool(bool),
    EmptyTuple,
    Int(i64),
    Node(usize),
}

impl Handle {
    pub(super) const NONE: Self = Self(0xffff_fff0);
    pub(super) const FALSE: Self = Self(0xffff_fff1);
    pub(super) const TRUE: Self = Self(0xffff_fff2);
    pub(super) const EMPTY_TUPLE: Self = Self(0xffff_fff3);
    /// A slot of the memo that holds nothing.
    pub(super) const VACANT: Self = Self(0xffff_fff4);

    const INT: u32 = 0x8000_0000;
    const CONSTANT: u32 = 0xc000_0000;
    const INT_BIAS: i64 = 1 << 29;

    /// The integer in place, if it is small.
    pub(super) fn small(value: i64) -> Option<Self> {
        let biased = value.checked_add(Self::INT_BIAS)?;
        (0..1 << 30).contains(&biased).then_some(Self(Self::INT | biased as u32))
    }

    pub(super) fn node(index: usize) -> Option<Self> {
        u32::try_from(index).ok().filter(|&index| index < Self::INT).map(Self)
    }

    pub(super) fn unpack(self) -> Unpacked {
        match self {
            Self::NONE | Self::VACANT => Unpacked::None,
            Self::FALSE => Unpacked::Bool(false),
            Self::TRUE => Unpacked::Bool(true),
            Self::EMPTY_TUPLE => Unpacked::EmptyTuple,
            Self(bits) if bits < Self::INT => Unpacked::Node(bits as usize),
            Self(bits) => Unpacked::Int(i64::from(bits & !Self::CONSTANT) - Self::INT_BIAS),
        }
    }
}

/// A piece of the source or of the pool, in twelve bytes so that a node takes sixteen.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    low: u32,
    /// The upper bits of the start; the top one tells the pool from the source.
    high: u32,
    length: u32,
}

impl Span {
    const POOL: u32 = 1 << 31;

    /// `None` for pieces of 4 GiB and more.
    pub(super) fn of_source(start: usize, length: usize) -> Option<Self> {
        let (start, length) = (start as u64, u32::try_from(length).ok()?);
        Some(Self { low: start as u32, high: (start >> 32) as u32, length })
    }

    pub(super) fn of_pool(start: usize, length: usize) -> Option<Self> {
        Self::of_source(start, length).map(|span| Self { high: span.high | Self::POOL, ..span })
    }

    pub(crate) fn length(self) -> usize {
        self.length as usize
    }

    /// The bytes in the source, as a range; `None` for a piece of the pool.
    pub(crate) fn source_range(self) -> Option<std::ops::Range<usize>> {
        (self.high & Self::POOL == 0).then(|| {
            let start = self.start();
            start..start + self.length as usize
        })
    }

    fn start(self) -> usize {
        (u64::from(self.high & !Self::POOL) << 32 | u64::from(self.low)) as usize
    }

    pub(crate) fn bytes<'a>(self, source: &'a [u8], pool: &'a [u8]) -> &'a [u8] {
        let from = if self.high & Self::POOL == 0 { source } else { pool };
        let start = self.start();
        from.get(start..start + self.length as usize).unwrap_or_default()
    }
}

/// The values of a list, tuple, set, or (keys and values in turn) dictionary. Empty ones take no memory of their own.
pub(super) type Items = Option<Box<Vec<Handle>>>;

/// A value that does not fit a [`Handle`].
#[derive(Debug)]
pub(super) enum Node {
    Int(i64),
    /// Little-endian two's complement of more than eight bytes.
    BigInt(Span),
    Float(f64),
    Text(Span),
    Bytes(Span),
    List(Items),
    Tuple(Items),
    Set(Items),
    Dict(Items),
    Known(Known),
    /// A class outside the list, by number.
    Class(u32),
    /// An object of such a class.
    Object(u32),
    Storage(u32),
    Tensor(u32),
    NumpyType(NumpyType),
}

const _: () = assert!(std::mem::size_of::<Node>() == 16);

impl Node {
    /// Name in messages.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Int(_) | Self::BigInt(_) => "an integer",
            Self::Float(_) => "a float",
            Self::Text(_) => "a text",
            Self::Bytes(_) => "bytes",
            Self::List(_) => "a list",
            Self::Tuple(_) => "a tuple",
            Self::Set(_) => "a set",
            Self::Dict(_) => "a dictionary",
            Self::Known(_) | Self::Class(_) => "a type or function",
            Self::Object(_) => "an object",
            Self::Storage(_) => "a storage",
            Self::Tensor(_) => "a tensor",
            Self::NumpyType(_) => "a numpy type",
        }
    }
}

/// A numpy element type: kind and bytes as in `<f4`.
#[derive(Clone, Copy, Debug)]
pub(super) struct NumpyType {
    pub(super) kind: u8,
    pub(super) big_endian: bool,
    pub(super) size: u32,
}

impl NumpyType {
    /// The element type, or the kind's name where it is none that tensors have.
    pub(super) fn dtype(self) -> Result<Dtype, &'static str> {
        let table = [
            (b'f', 8, Dtype::F64),
            (b'f', 4, Dtype::F32),
            (b'f', 2, Dtype::F16),
            (b'i', 8, Dtype::I64),
            (b'i', 4, Dtype::I32),
            (b'i', 2, Dtype::I16),
            (b'i', 1, Dtype::I8),
            (b'u', 8, Dtype::U64),
            (b'u', 4, Dtype::U32),
            (b'u', 2, Dtype::U16),
            (b'u', 1, Dtype::U8),
            (b'b', 1, Dtype::Bool),
        ];
        let row = table.iter().find(|row| row.0 == self.kind && row.1 == self.size);
        row.map(|row| row.2).ok_or(match self.kind {
            b'O' => "numpy object",
            b'U' | b'S' | b'T' => "numpy text",
            b'c' => "numpy complex",
            b'M' | b'm' => "numpy time",
            b'V' => "numpy record",
            _ => "an unusual numpy type",
        })
    }
}

/// A storage that the pickle refers to: a run of elements elsewhere in the file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StorageRecord {
    /// The name of the storage in the file.
    pub(crate) key: Span,
    /// Element type, or the name of one that is not read.
    pub(crate) dtype: Result<Dtype, &'static str>,
    /// Elements of the whole storage.
    pub(crate) elements: usize,
    /// First element and number of elements of the part that is meant (torch before 0.4 stored such views).
    pub(crate) view: (usize, usize),
}

/// Place of the elements of a tensor.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Elements {
    /// In a storage, from the given element on.
    Storage {
        /// Number of the storage record.
        index: u32,
        /// The tensor's first element.
        offset: usize,
    },
    /// In the pickle itself, as numpy arrays are.
    Inline {
        /// The bytes.
        bytes: Span,
        /// True if they are big-endian.
        big_endian: bool,
    },
}

/// A tensor as the pickle describes it; nothing of it was compared with the storages yet.
#[derive(Clone, Debug)]
pub(crate) struct TensorRecord {
    /// Element type, or the name of one that is not read.
    pub(crate) dtype: Result<Dtype, &'static str>,
    /// Size of each axis.
    pub(crate) shape: Vec<usize>,
    /// Elements from one index of each axis to the next.
    pub(crate) strides: Vec<usize>,
    /// Place of the elements.
    pub(crate) elements: Elements,
}

/// A class or function outside the list.
#[derive(Debug)]
pub(super) struct Class {
    pub(super) name: String,
    pub(super) objects: usize,
}

/// Memory that may still be taken.
#[derive(Debug)]
pub(super) struct Budget {
    limit: usize,
    left: usize,
}

impl Budget {
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, left: limit }
    }

    pub(super) fn left(&self) -> usize {
        self.left
    }

    /// Takes `bytes` from the budget.
    pub(super) fn charge(&mut self, bytes: usize) -> Result<(), PickleFault> {
        self.left = self.left.checked_sub(bytes).ok_or(PickleFault::Memory(self.limit))?;
        Ok(())
    }

    /// Gives back what was charged for memory that is freed.
    pub(super) fn refund(&mut self, bytes: usize) {
        self.left = self.left.saturating_add(bytes).min(self.limit);
    }

    /// Makes room for `more` elements, charging what the vector grows by.
    pub(super) fn reserve<T>(&mut self, vector: &mut Vec<T>, more: usize) -> Result<(), PickleFault> {
        let needed = vector.len().checked_add(more).ok_or(PickleFault::Memory(self.limit))?;
        if needed <= vector.capacity() {
            return Ok(());
        }
        // Doubling what is there keeps appending cheap; an exact first fit keeps short lists small.
        let grown = needed.max(vector.capacity().saturating_mul(2));
        self.charge((grown - vector.capacity()).saturating_mul(size_of::<T>()))?;
        vector.reserve_exact(grown - vector.len());
        Ok(())
    }

    /// Appends one element.
    pub(super) fn push<T>(&mut self, vector: &mut Vec<T>, element: T) -> Result<(), PickleFault> {
        self.reserve(vector, 1)?;
        vector.push(element);
        Ok(())
    }
}
