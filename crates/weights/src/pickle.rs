//! Pickles read as data: an interpreter that builds plain values and can call nothing.
//!
//! Python's pickle format is a program for a small stack machine (opcodes of protocols 0 to 5 as documented in
//! CPython's `Lib/pickletools.py`; PEP 307, PEP 3154, PEP 574). Its `GLOBAL` and `REDUCE` operations import any function
//! and call it, which is why loading a foreign pickle in Python can run foreign code. Here a global is only a name. A fixed
//! table (`globals.rs`) says which names stand for data (torch tensors and storages, numpy arrays, ordered dictionaries,
//! and the like) and what a call of them builds; every other name is refused, or, on request, becomes a
//! [`Kind::Object`] that remembers its name and has no content.
//!
//! Values live in one arena and refer to each other by number. Neither deep nesting nor values that contain themselves nor
//! a few values shared exponentially often cost recursion or memory, and all memory is charged to a budget
//! ([`memory_limit`]) that grows with the file's length.

mod arena;
mod build;
mod globals;
mod machine;
mod value;

pub use value::{Kind, Value};

pub(crate) use arena::{Elements, Span, TensorRecord};

use arena::{Handle, Node};

/// How a pickle is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadOptions {
    /// Objects of classes outside the list become [`Kind::Object`] instead of an error. Nothing of them is executed or kept but
    /// the name; [`Pickle::skipped`] counts them.
    pub skip_unknown_objects: bool,
}

/// Bytes of memory that reading a pickle out of a file of `file_bytes` may take.
pub fn memory_limit(file_bytes: usize) -> usize {
    const SMALL_FILES: usize = 512 << 10;
    file_bytes.saturating_mul(3).saturating_add(SMALL_FILES)
}

/// Reads the pickle at the start of `source`, which may be longer, with at most `memory` bytes for its values.
///
/// # Errors
/// [`PickleError`], with the offset of the operation at fault.
pub fn read(source: &[u8], options: ReadOptions, memory: usize) -> Result<Pickle, PickleError> {
    machine::Machine::new(source, options, memory).run()
}

/// A pickle that was read. Texts and bytes stay in the source, which [`root`](Self::root) therefore asks for again.
#[derive(Debug)]
pub struct Pickle {
    nodes: Vec<Node>,
    /// Decoded bytes that do not stand in the source as such.
    pool: Vec<u8>,
    tensors: Vec<TensorRecord>,
    storages: Vec<arena::StorageRecord>,
    classes: Vec<arena::Class>,
    root: Handle,
    length: usize,
    memory_left: usize,
}

impl Pickle {
    /// The value that the pickle describes. `source` must be the bytes that it was read from: with others, texts and bytes
    /// are wrong or empty.
    pub fn root<'a>(&'a self, source: &'a [u8]) -> Value<'a> {
        Value { pickle: self, source, handle: self.root }
    }

    /// Bytes of the source that the pickle takes, its end mark included.
    pub fn length(&self) -> usize {
        self.length
    }

    /// What is left of the memory that it was read with, for the next pickle of the same file.
    pub(crate) fn memory_left(&self) -> usize {
        self.memory_left
    }

    /// Names of the classes outside the list, with the number of their objects (0: only the class itself is mentioned).
    /// Empty unless [`ReadOptions::skip_unknown_objects`] was set.
    pub fn skipped(&self) -> impl ExactSizeIterator<Item = (&str, usize)> {
        self.classes.iter().map(|class| (class.name.as_str(), class.objects))
    }
}

/// What is wrong with a pickle, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("at byte {offset}: {fault}")]
pub struct PickleError {
    /// Offset of the operation in the pickle.
    pub offset: usize,
    /// What is wrong with it.
    pub fault: PickleFault,
}

/// What can be wrong with a pickle.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PickleFault {
    /// It names a function or class that is not on the list of data types.
    #[error(
        "it names `{0}`, which is not on the list of data types: refused, nothing was executed; if the file is from a \
         source you trust, save its tensors alone, or allow unknown objects to be skipped"
    )]
    Refused(String),
    /// The end came before the end mark, or before the end of an operand.
    #[error("the pickle is truncated; copy or download the file again")]
    Truncated,
    /// A byte that is no operation.
    #[error("0x{0:02x} is not a pickle operation; this is not a pickle, or it is damaged")]
    Opcode(u8),
    /// A protocol newer than those known.
    #[error("it is of pickle protocol {0}; protocols 0 to 5 are read")]
    Protocol(u8),
    /// An operation of the extension registry, whose names are not in the file.
    #[error("it uses entry {0} of Python's extension registry, which is refused")]
    Extension(u32),
    /// An operation that takes data from outside the file.
    #[error("it refers to buffers outside the file, which is refused")]
    OutOfBand,
    /// An operation takes more values than there are.
    #[error("an operation takes a value where there is none; the pickle is damaged")]
    StackUnderflow,
    /// An operation looks for a mark that was never set.
    #[error("an operation ends a group that was never begun; the pickle is damaged")]
    NoMark,
    /// A reference to a value that was never kept.
    #[error("it refers to value number {0}, which was not kept; the pickle is damaged")]
    Memo(u32),
    /// Text that is not UTF-8, or whose escapes are malformed.
    #[error("a text is not valid; the pickle is damaged")]
    Text,
    /// Digits that make no number.
    #[error("a number is not valid; the pickle is damaged")]
    Number,
    /// The operands of an operation are of the wrong kind.
    #[error("{operation} needs {needed}, and is given {given}")]
    Operand {
        /// The operation, or the name that is called.
        operation: &'static str,
        /// What it works on.
        needed: &'static str,
        /// What is there.
        given: &'static str,
    },
    /// A call of a known name with arguments that describe nothing valid.
    #[error("`{name}` is called with {reason}")]
    Arguments {
        /// The name.
        name: &'static str,
        /// What is wrong with its arguments.
        reason: &'static str,
    },
    /// A reference to something stored outside the pickle that is not a storage of torch's.
    #[error("a persistent reference is not a torch storage, which is the only kind that is read")]
    Persistent,
    /// The values would take more memory than a file of this length may ask for.
    #[error("its values take more than the {0} bytes of memory that a file of this length may ask for; refused")]
    Memory(usize),
}
