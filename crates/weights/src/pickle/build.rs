//! The result of calling a name on the list, built as plain values.

use super::PickleFault;
use super::arena::{Elements, Handle, Node, NumpyType, Span, StorageRecord, TensorRecord, Unpacked};
use super::globals::{Known, STORAGES, TORCH_DTYPES};
use super::machine::Machine;

type Outcome<T> = Result<T, PickleFault>;

/// More axes than any framework's tensors have.
const MOST_AXES: usize = 64;

impl Machine<'_> {
    /// The value of `known(*arguments)`.
    pub(super) fn build(&mut self, known: Known, arguments: &[Handle]) -> Outcome<Handle> {
        match (known, arguments) {
            (Known::Tensor, &[storage, offset, size, stride, ref rest @ ..]) => {
                self.check_metadata(known, rest.get(2))?;
                self.view(known, storage, [offset, size, stride], None)
            }
            (Known::TypedTensor, &[storage, offset, size, stride, _, _, dtype, ref rest @ ..]) => {
                self.check_metadata(known, rest.first())?;
                self.view(known, storage, [offset, size, stride], Some(dtype))
            }
            (Known::Parameter, &[tensor, ..]) => match self.get(tensor) {
                Some(Node::Tensor(_) | Node::Object(_)) => Ok(tensor),
                _ => Err(invalid(known, "something other than a tensor")),
            },
            (Known::Size, &[sizes]) if self.sequence(sizes).is_some() => Ok(sizes),
            (Known::OrderedDict, &[]) => self.node(Node::Dict(None)),
            (Known::OrderedDict, &[pairs]) => self.dict_of_pairs(pairs),
            (Known::DefaultDict, [] | [_]) => self.node(Node::Dict(None)),
            (Known::ParameterDict, &[]) => self.node(Node::Dict(None)),
            (Known::Set, &[]) => self.node(Node::Set(None)),
            (Known::Set, &[values]) if self.sequence(values).is_some() => {
                let values = self.copied(values)?;
                let items = self.boxed(values)?;
                self.node(Node::Set(items))
            }
            (Known::Encode | Known::Bytes, &[text, encoding]) => self.encode(known, text, encoding),
            (Known::Bytes, &[]) => self.empty_bytes(),
            (Known::Bytes, &[same]) if matches!(self.get(same), Some(Node::Bytes(_))) => Ok(same),
            (Known::NumpyDtype, &[code, ..]) => self.numpy_type(known, code),
            (Known::NumpyReconstruct, &[_class, ..]) => self.empty_array(),
            (Known::NumpyFromBuffer, &[bytes, dtype, shape, order]) => {
                let fortran = self.code_of(order) == Some("F");
                let record = self.array(known, [bytes, dtype, shape], fortran)?;
                self.tensor(record)
            }
            (Known::NumpyScalar, &[dtype, bytes]) => self.numpy_scalar(known, dtype, bytes),
            _ => Err(invalid(known, "arguments that it does not take")),
        }
    }

    /// Sets the state of an object: meaningful for what numpy makes in two steps and for dictionaries of parameters, dropped
    /// for other dictionaries (torch hangs version notes on them) and unknown objects.
    pub(super) fn fill(&mut self, target: Handle, state: Handle) -> Outcome<()> {
        match self.get(target) {
            Some(Node::Dict(None)) if self.holds_parameters(state) => self.adopt(target, state),
            Some(Node::Dict(_) | Node::Object(_) | Node::Class(_)) => Ok(()),
            Some(&Node::Tensor(index)) => self.fill_array(index as usize, state),
            Some(&Node::NumpyType(dtype)) => self.fill_numpy_type(target, dtype, state),
            _ => {
                let given = self.kind_of(target);
                Err(PickleFault::Operand { operation: "setting a state", needed: "an array or a dictionary", given })
            }
        }
    }

    /// True for the state of a module of torch's, where its parameters are among the first entries.
    fn holds_parameters(&self, state: Handle) -> bool {
        const FIRST: usize = 8;
        let Some(Node::Dict(Some(items))) = self.get(state) else { return false };
        items.iter().step_by(2).take(FIRST).any(|&key| self.code_of(key) == Some("_parameters"))
    }

    /// Gives an empty dictionary the content of another one.
    fn adopt(&mut self, target: Handle, state: Handle) -> Outcome<()> {
        let count = match self.get(state) {
            Some(Node::Dict(Some(items))) => items.len(),
            _ => return Ok(()),
        };
        self.charge(count.saturating_mul(size_of::<Handle>()))?;
        let items = match self.get(state) {
            Some(Node::Dict(Some(items))) => items.to_vec(),
            _ => return Ok(()),
        };
        let items = self.boxed(items)?;
        if let Unpacked::Node(index) = target.unpack() {
            self.nodes[index] = Node::Dict(items);
        }
        Ok(())
    }

    /// The storage that a persistent reference of torch's means: `("storage", class, key, device, elements)`, in the old
    /// format followed by `None` or `(key, offset, elements)` of a part of it.
    pub(super) fn persistent_storage(&mut self, reference: Handle) -> Outcome<Handle> {
        let record = self.storage_record(reference).ok_or(PickleFault::Persistent)?;
        self.storage(record)
    }

    fn storage_record(&self, reference: Handle) -> Option<StorageRecord> {
        let fields = self.sequence(reference)?;
        let &[tag, class, key, _device, elements, ref rest @ ..] = fields else { return None };
        if self.code_of(tag)? != "storage" || rest.len() > 1 {
            return None;
        }
        let Some(&Node::Known(Known::Storage(class))) = self.get(class) else { return None };
        self.code_of(key)?;
        let elements = usize::try_from(self.int_of(elements)?).ok()?;
        let view = match rest.first() {
            Some(&part) if part != Handle::NONE => self.part_of_storage(part, elements)?,
            _ => (0, elements),
        };
        Some(StorageRecord { key: self.span_of(key)?, dtype: STORAGES[class as usize].1, elements, view })
    }

    fn part_of_storage(&self, part: Handle, whole: usize) -> Option<(usize, usize)> {
        let &[_key, offset, elements] = self.sequence(part)? else { return None };
        let offset = usize::try_from(self.int_of(offset)?).ok()?;
        let elements = usize::try_from(self.int_of(elements)?).ok()?;
        (offset.checked_add(elements)? <= whole).then_some((offset, elements))
    }

    /// torch's lazy flags (negated, conjugated) would change the values; files of weights do not carry them.
    fn check_metadata(&self, known: Known, metadata: Option<&Handle>) -> Outcome<()> {
        match metadata.map(|&handle| (handle, self.get(handle))) {
            None | Some((Handle::NONE, _) | (_, Some(Node::Dict(None)))) => Ok(()),
            _ => Err(invalid(known, "a lazily negated or conjugated tensor, which is not read")),
        }
    }

    fn view(
        &mut self,
        known: Known,
        storage: Handle,
        [offset, size, stride]: [Handle; 3],
        dtype: Option<Handle>,
    ) -> Outcome<Handle> {
        let index = match self.get(storage) {
            Some(&Node::Storage(index)) => index,
            // A storage on an unknown device class is as opaque as the rest of what was skipped.
            Some(&Node::Object(class)) => return self.object(class),
            _ => return Err(invalid(known, "something other than a storage")),
        };
        let dtype = match dtype.map(|handle| self.get(handle)) {
            None => self.storages[index as usize].dtype,
            Some(Some(&Node::Known(Known::TorchDtype(row)))) => TORCH_DTYPES[row as usize].1,
            Some(_) => return Err(invalid(known, "something other than an element type")),
        };
        let offset = self.int_of(offset).and_then(|offset| usize::try_from(offset).ok());
        let offset = offset.ok_or(invalid(known, "a negative or missing offset"))?;
        let shape = self.sizes(known, size, "a shape that is no tuple of up to 64 sizes")?;
        let strides = self.sizes(known, stride, "strides that are no tuple of up to 64 non-negative numbers")?;
        if shape.len() != strides.len() {
            return Err(invalid(known, "another number of strides than of sizes"));
        }
        self.tensor(TensorRecord { dtype, shape, strides, elements: Elements::Storage { index, offset } })
    }

    fn sizes(&self, known: Known, handle: Handle, reason: &'static str) -> Outcome<Vec<usize>> {
        let fault = || invalid(known, reason);
        let values = self.sequence(handle).filter(|values| values.len() <= MOST_AXES).ok_or_else(fault)?;
        values.iter().map(|&value| usize::try_from(self.int_of(value)?).ok()).collect::<Option<_>>().ok_or_else(fault)
    }

    fn dict_of_pairs(&mut self, pairs: Handle) -> Outcome<Handle> {
        let fault = invalid(Known::OrderedDict, "something other than a list of pairs");
        if matches!(self.get(pairs), Some(Node::Dict(_))) {
            return Ok(pairs);
        }
        let pairs = if self.sequence(pairs).is_some() { self.copied(pairs)? } else { return Err(fault) };
        self.charge(pairs.len().saturating_mul(2 * size_of::<Handle>()))?;
        let mut flat = Vec::with_capacity(pairs.len() * 2);
        for pair in pairs {
            match self.sequence(pair) {
                Some(&[key, value]) => flat.extend([key, value]),
                _ => return Err(fault),
            }
        }
        let items = self.boxed(flat)?;
        self.node(Node::Dict(items))
    }

    fn empty_bytes(&mut self) -> Outcome<Handle> {
        let span = Span::of_source(0, 0).ok_or(PickleFault::Text)?;
        self.node(Node::Bytes(span))
    }

    /// Bytes that protocol 2 wrote as text in Latin-1.
    fn encode(&mut self, known: Known, text: Handle, encoding: Handle) -> Outcome<Handle> {
        let latin1 = matches!(self.code_of(encoding), Some("latin1" | "latin-1" | "iso-8859-1"));
        let (true, Some(&Node::Text(span))) = (latin1, self.get(text)) else {
            return Err(invalid(known, "something other than a text to encode as Latin-1"));
        };
        // For the copy below, and so that looking at one long text again and again comes to an end.
        self.charge(span.length())?;
        if self.bytes_of(span).is_ascii() {
            return self.node(Node::Bytes(span));
        }
        let fault = || invalid(known, "characters that Latin-1 does not have");
        // Encoded first, pooled then: the text may lie in the pool itself.
        let text = std::str::from_utf8(self.bytes_of(span)).map_err(|_| PickleFault::Text)?;
        let encoded: Vec<u8> =
            text.chars().map(|letter| u8::try_from(u32::from(letter)).ok()).collect::<Option<_>>().ok_or_else(fault)?;
        let span = self.pooled(encoded.into_iter())?;
        self.node(Node::Bytes(span))
    }

    /// `dtype("f4", …)`: kind and size; the byte order may stand in front, or comes with the state.
    fn numpy_type(&mut self, known: Known, code: Handle) -> Outcome<Handle> {
        let fault = || invalid(known, "something other than a code such as `f4`");
        let code = self.code_of(code).ok_or_else(fault)?;
        let (big_endian, code) = match code.as_bytes() {
            [b'>', rest @ ..] => (true, rest),
            [b'<' | b'=' | b'|', rest @ ..] => (false, rest),
            all => (false, all),
        };
        let (&kind, digits) = code.split_first().ok_or_else(fault)?;
        let size = match digits {
            [] => 0,
            _ => std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok()).ok_or_else(fault)?,
        };
        self.node(Node::NumpyType(NumpyType { kind, big_endian, size }))
    }

    fn fill_numpy_type(&mut self, target: Handle, dtype: NumpyType, state: Handle) -> Outcome<()> {
        let fault = || invalid(Known::NumpyDtype, "a state that is not numpy's");
        let fields = self.sequence(state).ok_or_else(fault)?;
        let &[_version, order, subtype, names, ..] = fields else { return Err(fault()) };
        let big_endian = match self.code_of(order) {
            Some(">") => true,
            Some("<" | "=" | "|") => false,
            _ => return Err(fault()),
        };
        // Fields and nested arrays make it a record, whatever the code said.
        let kind = if subtype == Handle::NONE && names == Handle::NONE { dtype.kind } else { b'V' };
        if let Unpacked::Node(index) = target.unpack() {
            self.nodes[index] = Node::NumpyType(NumpyType { kind, big_endian, ..dtype });
        }
        Ok(())
    }

    fn empty_array(&mut self) -> Outcome<Handle> {
        let bytes = Span::of_source(0, 0).ok_or(PickleFault::Text)?;
        let elements = Elements::Inline { bytes, big_endian: false };
        self.tensor(TensorRecord { dtype: Err("unfilled numpy array"), shape: vec![0], strides: vec![1], elements })
    }

    /// State of an array: `(version, shape, dtype, fortran, bytes)`.
    fn fill_array(&mut self, index: usize, state: Handle) -> Outcome<()> {
        let known = Known::NumpyReconstruct;
        let fault = || invalid(known, "a state that is not numpy's");
        let &[_version, shape, dtype, fortran, bytes] = self.sequence(state).ok_or_else(fault)? else {
            return Err(fault());
        };
        if !matches!(self.tensors[index], TensorRecord { dtype: Err("unfilled numpy array"), .. }) {
            return Err(invalid(known, "an array that already has a state"));
        }
        let fortran = self.int_of(fortran).ok_or_else(fault)? != 0;
        let record = self.array(known, [bytes, dtype, shape], fortran)?;
        self.charge((record.shape.capacity() + record.strides.capacity()) * size_of::<usize>())?;
        self.tensors[index] = record;
        Ok(())
    }

    fn array(&self, known: Known, [bytes, dtype, shape]: [Handle; 3], fortran: bool) -> Outcome<TensorRecord> {
        let Some(&Node::NumpyType(numpy)) = self.get(dtype) else {
            return Err(invalid(known, "something other than an element type"));
        };
        let shape = self.sizes(known, shape, "a shape that is no tuple of up to 64 sizes")?;
        let dtype = numpy.dtype();
        let strides = dense_strides(&shape, fortran).ok_or(invalid(known, "a shape that overflows"))?;
        let bytes = match (dtype, self.span_of(bytes)) {
            (Ok(_), None) => return Err(invalid(known, "something other than bytes as content")),
            (Ok(dtype), Some(bytes)) if dtype.bytes_of(&shape) != Some(bytes.length()) => {
                return Err(invalid(known, "another number of bytes than its shape and type need"));
            }
            (_, Some(bytes)) => bytes,
            // Arrays of objects hold a list; they are named when they are asked for.
            (Err(_), None) => Span::of_source(0, 0).ok_or(PickleFault::Text)?,
        };
        let elements = Elements::Inline { bytes, big_endian: numpy.big_endian };
        Ok(TensorRecord { dtype, shape, strides, elements })
    }

    fn numpy_scalar(&mut self, known: Known, dtype: Handle, bytes: Handle) -> Outcome<Handle> {
        let fault = || invalid(known, "something other than a number's type and bytes");
        let (Some(&Node::NumpyType(numpy)), Some(span)) = (self.get(dtype), self.span_of(bytes)) else {
            return Err(fault());
        };
        let mut bytes = [0; 8];
        let size = span.length();
        if size != numpy.size as usize || size > bytes.len() || size == 0 {
            return Err(fault());
        }
        bytes[..size].copy_from_slice(self.bytes_of(span));
        if numpy.big_endian {
            bytes[..size].reverse();
        }
        let unsigned = u64::from_le_bytes(bytes);
        let unused = 64 - 8 * size as u32;
        match (numpy.kind, size) {
            (b'f', 8) => self.node(Node::Float(f64::from_bits(unsigned))),
            (b'f', 4) => self.node(Node::Float(f64::from(f32::from_bits(unsigned as u32)))),
            (b'f', 2) => self.node(Node::Float(half::f16::from_bits(unsigned as u16).to_f64())),
            (b'b', 1) => Ok(if unsigned == 0 { Handle::FALSE } else { Handle::TRUE }),
            (b'i', _) => self.integer((unsigned << unused) as i64 >> unused),
            (b'u', _) => self.integer(i64::try_from(unsigned).map_err(|_| fault())?),
            _ => Err(fault()),
        }
    }
}

/// Strides of elements that lie densely: the last axis fastest, or the first one.
fn dense_strides(shape: &[usize], fortran: bool) -> Option<Vec<usize>> {
    let mut strides = vec![0; shape.len()];
    let mut step = 1usize;
    for position in 0..shape.len() {
        let axis = if fortran { position } else { shape.len() - 1 - position };
        strides[axis] = step;
        step = step.checked_mul(shape[axis].max(1))?;
    }
    Some(strides)
}

fn invalid(known: Known, reason: &'static str) -> PickleFault {
    PickleFault::Arguments { name: known.name(), reason }
}
