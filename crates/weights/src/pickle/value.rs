//! Looking at the values of a pickle.

use std::borrow::Cow;

use super::Pickle;
use super::arena::{Elements, Handle, Items, Node, StorageRecord, TensorRecord, Unpacked};
use super::machine::slice;
use crate::tensor_file::Dtype;
use crate::torch_file::{gather, is_dense};

/// One value of a [`Pickle`]. Values may contain themselves or be shared: walk them with [`identity`](Self::identity) in mind.
#[derive(Clone, Copy)]
pub struct Value<'a> {
    pub(super) pickle: &'a Pickle,
    pub(super) source: &'a [u8],
    pub(super) handle: Handle,
}

/// Kind of a value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind<'a> {
    /// `None`.
    None,
    /// A truth value.
    Bool(bool),
    /// An integer of up to 64 bits.
    Int(i64),
    /// A longer integer: two's complement, little-endian.
    BigInt(&'a [u8]),
    /// A float.
    Float(f64),
    /// A text.
    Text(&'a str),
    /// Bytes.
    Bytes(&'a [u8]),
    /// A list; its values are [`Value::items`].
    List,
    /// A tuple; its values are [`Value::items`].
    Tuple,
    /// A set; its values are [`Value::items`].
    Set,
    /// A dictionary, ordered or not; its content is [`Value::pairs`].
    Dict,
    /// A tensor, parameter or numpy array.
    Tensor,
    /// A storage of torch's.
    Storage,
    /// A type on the list of data types that is mentioned, not made.
    Type(&'a str),
    /// A class outside the list that is mentioned, by its full name. Only with
    /// [`skip_unknown_objects`](super::ReadOptions::skip_unknown_objects).
    Class(&'a str),
    /// An object of a class outside the list, by the full name of the class. Only with
    /// [`skip_unknown_objects`](super::ReadOptions::skip_unknown_objects).
    Object(&'a str),
}

/// A numpy array that lies in the pickle itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Array<'a> {
    /// Element type.
    pub dtype: Dtype,
    /// Size of each axis; none for a single element.
    pub shape: Vec<usize>,
    /// The elements in C order, little-endian.
    pub data: Cow<'a, [u8]>,
}

/// The reason for which the elements of an array cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArrayFault {
    /// Elements of a type that is not read, by its name.
    #[error("holds elements of type {0}, which is not read")]
    Dtype(&'static str),
    /// A tensor of torch's, whose elements are beside the pickle.
    #[error("is a torch tensor, whose elements are not in the pickle")]
    Elsewhere,
}

impl std::fmt::Debug for Value<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Not the content: it may contain itself.
        formatter.debug_tuple("Value").field(&self.kind()).finish()
    }
}

impl<'a> Value<'a> {
    /// Kind of the value.
    pub fn kind(self) -> Kind<'a> {
        let class = |number: u32| self.pickle.classes.get(number as usize).map_or("", |class| class.name.as_str());
        match (self.handle.unpack(), self.node()) {
            (_, Some(node)) => match node {
                Node::Int(value) => Kind::Int(*value),
                Node::BigInt(span) => Kind::BigInt(span.bytes(self.source, &self.pickle.pool)),
                Node::Float(value) => Kind::Float(*value),
                Node::Text(span) => {
                    let bytes = span.bytes(self.source, &self.pickle.pool);
                    std::str::from_utf8(bytes).map_or(Kind::Bytes(bytes), Kind::Text)
                }
                Node::Bytes(span) => Kind::Bytes(span.bytes(self.source, &self.pickle.pool)),
                Node::List(_) => Kind::List,
                Node::Tuple(_) => Kind::Tuple,
                Node::Set(_) => Kind::Set,
                Node::Dict(_) => Kind::Dict,
                Node::Known(known) => Kind::Type(known.name()),
                Node::Class(number) => Kind::Class(class(*number)),
                Node::Object(number) => Kind::Object(class(*number)),
                Node::Storage(_) => Kind::Storage,
                Node::Tensor(_) => Kind::Tensor,
                Node::NumpyType(_) => Kind::Type("dtype"),
            },
            (Unpacked::Bool(value), _) => Kind::Bool(value),
            (Unpacked::Int(value), _) => Kind::Int(value),
            (Unpacked::EmptyTuple, _) => Kind::Tuple,
            _ => Kind::None,
        }
    }

    /// The text, if it is one.
    pub fn as_str(self) -> Option<&'a str> {
        match self.kind() {
            Kind::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The integer, if it is one of up to 64 bits.
    pub fn as_i64(self) -> Option<i64> {
        match self.kind() {
            Kind::Int(value) => Some(value),
            _ => None,
        }
    }

    /// The number, if it is a float or an integer.
    pub fn as_f64(self) -> Option<f64> {
        match self.kind() {
            Kind::Int(value) => Some(value as f64),
            Kind::Float(value) => Some(value),
            _ => None,
        }
    }

    /// The truth value, if it is one.
    pub fn as_bool(self) -> Option<bool> {
        match self.kind() {
            Kind::Bool(value) => Some(value),
            _ => None,
        }
    }

    /// The values of a list, tuple or set; none of anything else.
    pub fn items(self) -> impl ExactSizeIterator<Item = Value<'a>> {
        let items = match self.node() {
            Some(Node::List(items) | Node::Tuple(items) | Node::Set(items)) => slice(items),
            _ => &[],
        };
        items.iter().map(move |&handle| Value { handle, ..self })
    }

    /// Keys and values of a dictionary, in the order of the file; none of anything else. A key may repeat in damaged files.
    pub fn pairs(self) -> impl ExactSizeIterator<Item = (Value<'a>, Value<'a>)> {
        let pairs = self.dict().map_or(&[][..], |items| slice(items).as_chunks::<2>().0);
        pairs.iter().map(move |&[key, value]| (Value { handle: key, ..self }, Value { handle: value, ..self }))
    }

    /// The value under a text key of a dictionary; the last one, as in Python, if the key repeats.
    pub fn get(self, key: &str) -> Option<Value<'a>> {
        self.pairs().filter(|(known, _)| known.as_str() == Some(key)).last().map(|(_, value)| value)
    }

    /// A number that two values share exactly if they are one and the same list, dictionary or other compound.
    pub fn identity(self) -> Option<usize> {
        match self.handle.unpack() {
            Unpacked::Node(index) => Some(index),
            _ => None,
        }
    }

    /// The numpy array, if it is one; arrays in Fortran order and big-endian ones are converted. `None` for anything
    /// else. A converted copy takes as many bytes as the pickle itself has of the array.
    ///
    /// # Errors
    /// [`ArrayFault`] if it is an array whose elements cannot be had.
    pub fn array(self) -> Option<Result<Array<'a>, ArrayFault>> {
        let record = self.pickle.tensor(self.tensor()?)?;
        let Elements::Inline { bytes, big_endian } = record.elements else { return Some(Err(ArrayFault::Elsewhere)) };
        let dtype = match record.dtype {
            Ok(dtype) => dtype,
            Err(name) => return Some(Err(ArrayFault::Dtype(name))),
        };
        // That the bytes are as many as shape and type need was checked when the array was built.
        let bytes = self.pickle.bytes(bytes, self.source);
        let mut data = match is_dense(record) {
            true => Cow::Borrowed(bytes),
            false => Cow::Owned(gather(bytes, dtype.size(), &record.shape, &record.strides)),
        };
        if big_endian && dtype.size() > 1 {
            data.to_mut().chunks_exact_mut(dtype.size()).for_each(<[u8]>::reverse);
        }
        Some(Ok(Array { dtype, shape: record.shape.clone(), data }))
    }

    /// The number of the tensor (see [`Pickle::tensor`]), if it is one.
    pub(crate) fn tensor(self) -> Option<u32> {
        match self.node() {
            Some(&Node::Tensor(index)) => Some(index),
            _ => None,
        }
    }

    fn node(self) -> Option<&'a Node> {
        match self.handle.unpack() {
            Unpacked::Node(index) => self.pickle.nodes.get(index),
            _ => None,
        }
    }

    fn dict(self) -> Option<&'a Items> {
        match self.node() {
            Some(Node::Dict(items)) => Some(items),
            _ => None,
        }
    }
}

impl Pickle {
    /// The value of an [`identity`](Value::identity); `None` for numbers that are none.
    pub(crate) fn value<'a>(&'a self, identity: usize, source: &'a [u8]) -> Option<Value<'a>> {
        let handle = Handle::node(identity).filter(|_| identity < self.nodes.len())?;
        Some(Value { pickle: self, source, handle })
    }

    /// Number of values that have an identity.
    pub(crate) fn identities(&self) -> usize {
        self.nodes.len()
    }

    /// A tensor by its number.
    pub(crate) fn tensor(&self, number: u32) -> Option<&TensorRecord> {
        self.tensors.get(number as usize)
    }

    /// A storage by the number in a tensor record.
    pub(crate) fn storage(&self, index: u32) -> Option<&StorageRecord> {
        self.storages.get(index as usize)
    }

    pub(crate) fn storages(&self) -> &[StorageRecord] {
        &self.storages
    }

    /// The bytes of a piece of text or data.
    pub(crate) fn bytes<'a>(&'a self, span: super::arena::Span, source: &'a [u8]) -> &'a [u8] {
        span.bytes(source, &self.pool)
    }
}
