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

pub(crate) use globals::storage_class;
pub use value::{Array, ArrayFault, Kind, Value};

pub(crate) use arena::{Elements, Span, TensorRecord};

use arena::{Handle, Node};

/// Settings for reading a pickle.
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

    /// The rest of the memory that it was read with, for the next pickle of the same file.
    pub(crate) fn memory_left(&self) -> usize {
        self.memory_left
    }

    /// Names of the classes outside the list, with the number of their objects (0: only the class itself is mentioned).
    /// Empty unless [`ReadOptions::skip_unknown_objects`] was set.
    pub fn skipped(&self) -> impl ExactSizeIterator<Item = (&str, usize)> {
        self.classes.iter().map(|class| (class.name.as_str(), class.objects))
    }
}

/// A fault of a pickle, with its place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("at byte {offset}: {fault}")]
pub struct PickleError {
    /// Offset of the operation in the pickle.
    pub offset: usize,
    /// The fault.
    pub fault: PickleFault,
}

/// A fault of a pickle.
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
        /// Kind of value that it works on.
        needed: &'static str,
        /// Kind of value that is there.
        given: &'static str,
    },
    /// A call of a known name with arguments that describe nothing valid.
    #[error("`{name}` is called with {reason}")]
    Arguments {
        /// The name.
        name: &'static str,
        /// The fault of its arguments.
        reason: &'static str,
    },
    /// A reference to something stored outside the pickle that is not a storage of torch's.
    #[error("a persistent reference is not a torch storage, which is the only kind that is read")]
    Persistent,
    /// The values would take more memory than a file of this length may ask for.
    #[error("its values take more than the {0} bytes of memory that a file of this length may ask for; refused")]
    Memory(usize),
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A value in a notation like Python's.
    fn shown(value: Value<'_>) -> String {
        let items = |open: &str, close: &str| {
            let items: Vec<String> = value.items().map(shown).collect();
            format!("{open}{}{close}", items.join(" "))
        };
        match value.kind() {
            Kind::Int(value) => value.to_string(),
            Kind::Float(value) => format!("{value:?}"),
            Kind::Text(text) => format!("{text:?}"),
            Kind::List => items("[", "]"),
            Kind::Tuple => items("(", ")"),
            Kind::Set => items("<", ">"),
            Kind::Dict => {
                let pairs: Vec<String> =
                    value.pairs().map(|(key, value)| format!("{}:{}", shown(key), shown(value))).collect();
                format!("{{{}}}", pairs.join(" "))
            }
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn operations_of_all_protocols() {
        let table: [(&[u8], &str); 41] = [
            (b"I01\n.", "Bool(true)"),
            (b"I-5\n.", "-5"),
            (b"L123L\n.", "123"),
            (b"L119547037146038801333356L\n.", "\"119547037146038801333356L\""),
            (b"F1.5\n.", "1.5"),
            (b"S'a\\n\\x41'\n.", "\"a\\nA\""),
            (b"S\"plain\"\n.", "\"plain\""),
            (b"S'\\xff'\n.", "Bytes([255])"),
            (b"Vh\\u00e9\xe9\n.", "\"héé\""),
            (b"N.", "None"),
            (b"(I1\nI2\nt.", "(1 2)"),
            (b"(lp0\nI1\na.", "[1]"),
            (b"(dp0\nS'a'\nI1\ns.", "{\"a\":1}"),
            (b"(S'a'\nI1\nd.", "{\"a\":1}"),
            (b"(lp7\n0g7\n.", "[]"),
            (b"K\x05.", "5"),
            (b"M\x01\x02.", "513"),
            (b"J\xff\xff\xff\xff.", "-1"),
            (b"J\xff\xff\xff\x7f.", "2147483647"),
            (b"T\x02\0\0\0ab.", "\"ab\""),
            (b"U\x01\xff.", "Bytes([255])"),
            (b"X\x01\0\0\0a.", "\"a\""),
            (b"](K\x01K\x02e.", "[1 2]"),
            (b"}(K\x01NK\x02)u.", "{1:None 2:()}"),
            (b"G?\xf8\0\0\0\0\0\0.", "1.5"),
            (b"K\x01q\x07h\x07\x86.", "(1 1)"),
            (b"K\x01r\x07\x01\0\0j\x07\x01\0\0\x86.", "(1 1)"),
            (b"K\x012\x86.", "(1 1)"),
            (b"K\x01(K\x02K\x031.", "1"),
            (b"(0K\x01.", "1"),
            (b"\x80\x02\x8a\x00.", "0"),
            (b"\x80\x02\x8a\x02\xff\0.", "255"),
            (b"\x80\x02\x8b\x01\0\0\0\xff.", "-1"),
            (b"\x80\x02\x89\x88K\x03\x87.", "(Bool(false) Bool(true) 3)"),
            (b"\x80\x02c__builtin__\nset\n](K\x01K\x02e\x85R.", "<1 2>"),
            (b"\x80\x02ccollections\nOrderedDict\n]]K\x01aK\x02aa\x85R.", "{1:2}"),
            (b"\x80\x03C\x02ab.", "Bytes([97, 98])"),
            (b"\x80\x04\x95\x02\0\0\0\0\0\0\0}.", "{}"),
            (b"\x80\x04(K\x01\x91.", "<1>"),
            (b"\x80\x04\x8f\x94(K\x01\x90.", "<1>"),
            (b"\x80\x05\x96\x01\0\0\0\0\0\0\0a.", "Bytes([97])"),
        ];
        for (source, expected) in table {
            let pickle = read(source, ReadOptions::default(), memory_limit(source.len())).unwrap();
            assert_eq!(pickle.length(), source.len());
            assert_eq!(shown(pickle.root(source)), expected);
        }
    }

    #[test]
    fn skipped_objects_take_their_content_with_them() {
        let source = b"\x80\x02}(K\x01cevil\nThing\nK\x02\x85R}K\x03K\x04sbK\x05cevil\nThing\n)\x81K\x06K\x07su.";
        let error = read(source, ReadOptions::default(), 1 << 20).unwrap_err();
        assert_eq!(error.fault, PickleFault::Refused("evil.Thing".to_owned()));
        let skipping = ReadOptions { skip_unknown_objects: true };
        let pickle = read(source, skipping, 1 << 20).unwrap();
        assert_eq!(shown(pickle.root(source)), "{1:Object(\"evil.Thing\") 5:Object(\"evil.Thing\")}");
        assert_eq!(pickle.skipped().collect::<Vec<_>>(), [("evil.Thing", 2)]);
    }

    #[test]
    fn memory_has_a_limit() {
        let source = [b"](".as_slice(), &b"K\x01".repeat(1000), b"e."].concat();
        assert!(read(&source, ReadOptions::default(), 1 << 20).is_ok());
        let error = read(&source, ReadOptions::default(), 1 << 10).unwrap_err();
        assert_eq!(error.fault, PickleFault::Memory(1 << 10));
    }
}
