//! The stack machine: one operation after the other, until the end mark.

use std::collections::HashMap;

use super::arena::{Budget, Class, Handle, Items, Node, Span, StorageRecord, TensorRecord, Unpacked};
use super::globals;
use super::{Pickle, PickleError, PickleFault, ReadOptions};

type Outcome<T> = Result<T, PickleFault>;

/// The state of a pickle being read.
pub(super) struct Machine<'a> {
    source: &'a [u8],
    at: usize,
    options: ReadOptions,
    budget: Budget,
    stack: Vec<Handle>,
    /// Heights of the stack at which groups begin.
    marks: Vec<u32>,
    memo: Vec<Handle>,
    pub(super) nodes: Vec<Node>,
    pub(super) pool: Vec<u8>,
    pub(super) tensors: Vec<TensorRecord>,
    pub(super) storages: Vec<StorageRecord>,
    classes: Vec<Class>,
    class_numbers: HashMap<String, u32>,
}

impl<'a> Machine<'a> {
    pub(super) fn new(source: &'a [u8], options: ReadOptions, memory: usize) -> Self {
        Self {
            source,
            at: 0,
            options,
            budget: Budget::new(memory),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: Vec::new(),
            nodes: Vec::new(),
            pool: Vec::new(),
            tensors: Vec::new(),
            storages: Vec::new(),
            classes: Vec::new(),
            class_numbers: HashMap::new(),
        }
    }

    pub(super) fn run(mut self) -> Result<Pickle, PickleError> {
        let root = loop {
            let offset = self.at;
            match self.step() {
                Ok(None) => {}
                Ok(Some(root)) => break root,
                Err(fault) => return Err(PickleError { offset, fault }),
            }
        };
        let Self { nodes, pool, tensors, storages, classes, at, budget, .. } = self;
        Ok(Pickle { nodes, pool, tensors, storages, classes, root, length: at, memory_left: budget.left() })
    }

    /// One operation; the value of the pickle when it was the end mark.
    fn step(&mut self) -> Outcome<Option<Handle>> {
        let operation = self.byte()?;
        match operation {
            b'.' => return self.pop().map(Some),
            0x80 => self.protocol()?,
            0x95 => self.frame()?,
            b'(' => self.mark()?,
            b'0' => self.discard()?,
            b'1' => drop(self.group_start()?),
            b'2' => self.push(self.top()?)?,
            b'N' => self.push(Handle::NONE)?,
            0x88 => self.push(Handle::TRUE)?,
            0x89 => self.push(Handle::FALSE)?,
            b'I' | b'L' | b'F' => self.number_line(operation)?,
            b'J' | b'K' | b'M' | b'G' | 0x8a | 0x8b => self.binary_number(operation)?,
            b'S' | b'V' => self.text_line(operation)?,
            b'T' | b'U' | b'X' | 0x8c | 0x8d => self.binary_text(operation)?,
            b'B' | b'C' | 0x8e | 0x96 => self.binary_bytes(operation)?,
            b'p' | b'q' | b'r' | 0x94 => self.remember(operation)?,
            b'g' | b'h' | b'j' => self.recall(operation)?,
            b']' => self.push_node(Node::List(None))?,
            b'}' => self.push_node(Node::Dict(None))?,
            0x8f => self.push_node(Node::Set(None))?,
            b')' => self.push(Handle::EMPTY_TUPLE)?,
            b'l' => self.collect(Node::List)?,
            b't' => self.collect(Node::Tuple)?,
            b'd' => self.collect_dict()?,
            0x91 => self.collect(Node::Set)?,
            0x85..=0x87 => self.short_tuple(usize::from(operation - 0x84))?,
            b'a' => self.append(1)?,
            b's' => self.append(2)?,
            b'e' | 0x90 => self.extend(false)?,
            b'u' => self.extend(true)?,
            b'c' | b'i' => self.global_line(operation)?,
            0x93 => self.stack_global()?,
            b'P' => return Err(PickleFault::Persistent),
            b'Q' => self.persistent()?,
            b'R' | 0x81 => self.call()?,
            0x92 => self.call_with_names()?,
            b'o' => self.call_group()?,
            b'b' => self.set_state()?,
            0x82..=0x84 => return Err(PickleFault::Extension(self.extension(operation)?)),
            0x97 | 0x98 => return Err(PickleFault::OutOfBand),
            _ => return Err(PickleFault::Opcode(operation)),
        }
        Ok(None)
    }

    // What follows an operation in the source.

    fn take(&mut self, length: usize) -> Outcome<&'a [u8]> {
        let end = self.at.checked_add(length).ok_or(PickleFault::Truncated)?;
        let bytes = self.source.get(self.at..end).ok_or(PickleFault::Truncated)?;
        self.at = end;
        Ok(bytes)
    }

    fn byte(&mut self) -> Outcome<u8> {
        Ok(self.take(1)?[0])
    }

    /// An unsigned little-endian number of up to eight bytes.
    fn unsigned(&mut self, length: usize) -> Outcome<u64> {
        let mut bytes = [0; 8];
        bytes[..length].copy_from_slice(self.take(length)?);
        Ok(u64::from_le_bytes(bytes))
    }

    /// A length in so many bytes, and that many bytes.
    fn counted(&mut self, length_bytes: usize) -> Outcome<Span> {
        let length = usize::try_from(self.unsigned(length_bytes)?).map_err(|_| PickleFault::Truncated)?;
        let start = self.at;
        self.take(length)?;
        Span::of_source(start, length).ok_or(PickleFault::Truncated)
    }

    /// The bytes up to the end of the line.
    fn line(&mut self) -> Outcome<&'a [u8]> {
        let rest = self.source.get(self.at..).unwrap_or_default();
        let length = rest.iter().position(|&byte| byte == b'\n').ok_or(PickleFault::Truncated)?;
        self.at += length + 1;
        Ok(&rest[..length])
    }

    fn text_of_line(&mut self) -> Outcome<&'a str> {
        std::str::from_utf8(self.line()?).map_err(|_| PickleFault::Text)
    }

    // The stack.

    pub(super) fn push(&mut self, value: Handle) -> Outcome<()> {
        self.budget.push(&mut self.stack, value)
    }

    /// Takes the uppermost value, which must be of the group that was begun last.
    fn pop(&mut self) -> Outcome<Handle> {
        if self.stack.len() <= self.marks.last().map_or(0, |&mark| mark as usize) {
            return Err(PickleFault::StackUnderflow);
        }
        self.stack.pop().ok_or(PickleFault::StackUnderflow)
    }

    fn top(&self) -> Outcome<Handle> {
        let floor = self.marks.last().map_or(0, |&mark| mark as usize);
        self.stack.get(floor..).and_then(<[_]>::last).copied().ok_or(PickleFault::StackUnderflow)
    }

    fn mark(&mut self) -> Outcome<()> {
        let height = self.stack.len() as u32;
        self.budget.push(&mut self.marks, height)
    }

    /// Takes the values of the group that was begun last off the stack.
    fn group(&mut self) -> Outcome<Vec<Handle>> {
        let start = self.marks.pop().ok_or(PickleFault::NoMark)? as usize;
        let mut values = Vec::new();
        let count = self.stack.len() - start;
        self.budget.reserve(&mut values, count)?;
        values.extend(self.stack.drain(start..));
        Ok(values)
    }

    fn group_start(&mut self) -> Outcome<usize> {
        let start = self.marks.pop().ok_or(PickleFault::NoMark)? as usize;
        self.stack.truncate(start);
        Ok(start)
    }

    /// `POP` takes a value, or a mark if no value lies above it.
    fn discard(&mut self) -> Outcome<()> {
        if self.marks.last().is_some_and(|&mark| mark as usize == self.stack.len()) {
            self.marks.pop();
            return Ok(());
        }
        self.pop().map(drop)
    }

    pub(super) fn push_node(&mut self, node: Node) -> Outcome<()> {
        let handle = self.node(node)?;
        self.push(handle)
    }

    pub(super) fn node(&mut self, node: Node) -> Outcome<Handle> {
        let handle = Handle::node(self.nodes.len()).ok_or(PickleFault::Memory(u32::MAX as usize))?;
        self.budget.push(&mut self.nodes, node)?;
        Ok(handle)
    }

    pub(super) fn integer(&mut self, value: i64) -> Outcome<Handle> {
        match Handle::small(value) {
            Some(handle) => Ok(handle),
            None => self.node(Node::Int(value)),
        }
    }

    pub(super) fn charge(&mut self, bytes: usize) -> Outcome<()> {
        self.budget.charge(bytes)
    }

    pub(super) fn tensor(&mut self, record: TensorRecord) -> Outcome<Handle> {
        self.budget.charge((record.shape.capacity() + record.strides.capacity()) * size_of::<usize>())?;
        let index = self.tensors.len() as u32;
        self.budget.push(&mut self.tensors, record)?;
        self.node(Node::Tensor(index))
    }

    pub(super) fn storage(&mut self, record: StorageRecord) -> Outcome<Handle> {
        let index = self.storages.len() as u32;
        self.budget.push(&mut self.storages, record)?;
        self.node(Node::Storage(index))
    }

    /// Keeps decoded bytes.
    pub(super) fn pooled(&mut self, bytes: impl Iterator<Item = u8>) -> Outcome<Span> {
        let start = self.pool.len();
        for byte in bytes {
            self.budget.push(&mut self.pool, byte)?;
        }
        Span::of_pool(start, self.pool.len() - start).ok_or(PickleFault::Memory(u32::MAX as usize))
    }

    // Values for those who build objects.

    pub(super) fn get(&self, handle: Handle) -> Option<&Node> {
        match handle.unpack() {
            Unpacked::Node(index) => self.nodes.get(index),
            _ => None,
        }
    }

    pub(super) fn int_of(&self, handle: Handle) -> Option<i64> {
        match (handle.unpack(), self.get(handle)) {
            (Unpacked::Int(value), _) | (_, Some(&Node::Int(value))) => Some(value),
            (Unpacked::Bool(value), _) => Some(i64::from(value)),
            _ => None,
        }
    }

    /// The bytes of a text or of bytes: Python 2 made no difference.
    pub(super) fn span_of(&self, handle: Handle) -> Option<Span> {
        match self.get(handle) {
            Some(&(Node::Text(span) | Node::Bytes(span))) => Some(span),
            _ => None,
        }
    }

    pub(super) fn bytes_of(&self, span: Span) -> &[u8] {
        span.bytes(self.source, &self.pool)
    }

    /// A text that is a key or a code. Longer ones are none: looking at them again and again would take long.
    pub(super) fn code_of(&self, handle: Handle) -> Option<&str> {
        const LONGEST: usize = 1024;
        let span = self.span_of(handle).filter(|span| span.length() <= LONGEST)?;
        std::str::from_utf8(self.bytes_of(span)).ok()
    }

    /// The values of a list, tuple or set.
    pub(super) fn sequence(&self, handle: Handle) -> Option<&[Handle]> {
        match self.get(handle) {
            Some(Node::List(items) | Node::Tuple(items) | Node::Set(items)) => Some(slice(items)),
            None if handle == Handle::EMPTY_TUPLE => Some(&[]),
            _ => None,
        }
    }

    pub(super) fn kind_of(&self, handle: Handle) -> &'static str {
        match (handle.unpack(), self.get(handle)) {
            (_, Some(node)) => node.kind(),
            (Unpacked::Bool(_), _) => "a truth value",
            (Unpacked::Int(_), _) => "an integer",
            (Unpacked::EmptyTuple, _) => "an empty tuple",
            _ => "None",
        }
    }

    pub(super) fn boxed(&mut self, values: Vec<Handle>) -> Outcome<Items> {
        if values.is_empty() {
            return Ok(None);
        }
        self.budget.charge(size_of::<Vec<Handle>>())?;
        Ok(Some(Box::new(values)))
    }

    /// A copy of some values, charged.
    pub(super) fn copied(&mut self, handle: Handle) -> Outcome<Vec<Handle>> {
        let count = self.sequence(handle).map_or(0, <[_]>::len);
        let mut copy = Vec::new();
        self.budget.reserve(&mut copy, count)?;
        copy.extend_from_slice(self.sequence(handle).unwrap_or_default());
        Ok(copy)
    }

    // Protocol and framing.

    fn protocol(&mut self) -> Outcome<()> {
        match self.byte()? {
            0..=5 => Ok(()),
            newer => Err(PickleFault::Protocol(newer)),
        }
    }

    /// A frame announces how much may be read at once, which matters to readers of streams only.
    fn frame(&mut self) -> Outcome<()> {
        let length = self.unsigned(8)?;
        if length > (self.source.len() - self.at) as u64 { Err(PickleFault::Truncated) } else { Ok(()) }
    }

    fn extension(&mut self, operation: u8) -> Outcome<u32> {
        let length = [1, 2, 4][usize::from(operation - 0x82)];
        Ok(self.unsigned(length)? as u32)
    }

    // Numbers and texts.

    fn number_line(&mut self, operation: u8) -> Outcome<()> {
        let start = self.at;
        let line = self.text_of_line()?.trim_end_matches('\r');
        let value = match (operation, line) {
            (b'I', "00") => Handle::FALSE,
            (b'I', "01") => Handle::TRUE,
            (b'F', _) => {
                let value = line.trim().parse().map_err(|_| PickleFault::Number)?;
                self.node(Node::Float(value))?
            }
            _ => {
                let digits = line.trim_end_matches('L').trim();
                let unsigned = digits.strip_prefix('-').unwrap_or(digits);
                if unsigned.is_empty() || !unsigned.bytes().all(|byte| byte.is_ascii_digit()) {
                    return Err(PickleFault::Number);
                }
                match digits.parse() {
                    Ok(value) => self.integer(value)?,
                    // More digits than 64 bits hold: kept as the text that it is.
                    Err(_) => {
                        let span = Span::of_source(start, line.len()).ok_or(PickleFault::Number)?;
                        self.node(Node::Text(span))?
                    }
                }
            }
        };
        self.push(value)
    }

    fn binary_number(&mut self, operation: u8) -> Outcome<()> {
        let value = match operation {
            b'J' => self.unsigned(4)? as u32 as i32 as i64,
            b'K' => self.unsigned(1)? as i64,
            b'M' => self.unsigned(2)? as i64,
            b'G' => {
                let bits = self.unsigned(8)?.swap_bytes();
                return self.push_node(Node::Float(f64::from_bits(bits)));
            }
            _ => return self.long(if operation == 0x8a { 1 } else { 4 }),
        };
        let value = self.integer(value)?;
        self.push(value)
    }

    /// An integer in two's complement of any length.
    fn long(&mut self, length_bytes: usize) -> Outcome<()> {
        let span = self.counted(length_bytes)?;
        let bytes = self.bytes_of(span);
        if bytes.len() > 8 {
            return self.push_node(Node::BigInt(span));
        }
        let negative = bytes.last().is_some_and(|&byte| byte >= 0x80);
        let mut extended = [if negative { 0xff } else { 0 }; 8];
        extended[..bytes.len()].copy_from_slice(bytes);
        let value = self.integer(i64::from_le_bytes(extended))?;
        self.push(value)
    }

    /// A text of protocol 0: quoted as Python 2 prints byte strings, or with Unicode escapes alone.
    fn text_line(&mut self, operation: u8) -> Outcome<()> {
        let start = self.at;
        let line = self.line()?;
        let (skip, inner) = if operation == b'S' { (1, unquoted(line)?) } else { (0, line) };
        if inner.is_ascii() && !inner.contains(&b'\\') {
            let span = Span::of_source(start + skip, inner.len()).ok_or(PickleFault::Text)?;
            return self.push_node(Node::Text(span));
        }
        // Decoding at most doubles the length (Latin-1 to UTF-8), for a moment beside the copy in the pool.
        self.charge(inner.len() * 2)?;
        let decoded = if operation == b'S' { unescape_bytes(inner)? } else { unescape_text(inner)?.into_bytes() };
        let is_text = std::str::from_utf8(&decoded).is_ok();
        let span = self.pooled(decoded.into_iter())?;
        self.push_node(if is_text { Node::Text(span) } else { Node::Bytes(span) })
    }

    /// `T` and `U` are byte strings of Python 2, which are texts wherever they are valid ones.
    fn binary_text(&mut self, operation: u8) -> Outcome<()> {
        let span = self.counted(match operation {
            b'U' | 0x8c => 1,
            0x8d => 8,
            _ => 4,
        })?;
        match (std::str::from_utf8(self.bytes_of(span)), operation) {
            (Ok(_), _) => self.push_node(Node::Text(span)),
            (Err(_), b'T' | b'U') => self.push_node(Node::Bytes(span)),
            // Python writes lone surrogates too, as three bytes that UTF-8 does not have.
            (Err(_), _) => Err(PickleFault::Text),
        }
    }

    fn binary_bytes(&mut self, operation: u8) -> Outcome<()> {
        let span = self.counted(match operation {
            b'C' => 1,
            b'B' => 4,
            _ => 8,
        })?;
        self.push_node(Node::Bytes(span))
    }

    // The memo.

    fn number_of_line(&mut self) -> Outcome<u32> {
        self.text_of_line()?.trim().parse().map_err(|_| PickleFault::Number)
    }

    fn remember(&mut self, operation: u8) -> Outcome<()> {
        let index = match operation {
            b'p' => self.number_of_line()? as usize,
            b'q' => self.unsigned(1)? as usize,
            b'r' => self.unsigned(4)? as usize,
            _ => self.memo.len(),
        };
        let value = self.top()?;
        if index >= self.memo.len() {
            let more = index + 1 - self.memo.len();
            self.budget.reserve(&mut self.memo, more)?;
            self.memo.resize(index + 1, Handle::VACANT);
        }
        self.memo[index] = value;
        Ok(())
    }

    fn recall(&mut self, operation: u8) -> Outcome<()> {
        let index = match operation {
            b'g' => self.number_of_line()?,
            b'h' => self.unsigned(1)? as u32,
            _ => self.unsigned(4)? as u32,
        };
        match self.memo.get(index as usize) {
            Some(&value) if value != Handle::VACANT => self.push(value),
            _ => Err(PickleFault::Memo(index)),
        }
    }

    // Containers.

    fn collect(&mut self, make: fn(Items) -> Node) -> Outcome<()> {
        let values = self.group()?;
        let items = self.boxed(values)?;
        self.push_node(make(items))
    }

    fn collect_dict(&mut self) -> Outcome<()> {
        let values = self.group()?;
        if !values.len().is_multiple_of(2) {
            return Err(odd_pairs());
        }
        let items = self.boxed(values)?;
        self.push_node(Node::Dict(items))
    }

    fn short_tuple(&mut self, count: usize) -> Outcome<()> {
        let mut values = Vec::new();
        self.budget.reserve(&mut values, count)?;
        for _ in 0..count {
            values.push(self.pop()?);
        }
        values.reverse();
        let items = self.boxed(values)?;
        self.push_node(Node::Tuple(items))
    }

    /// `APPEND` takes one value, `SETITEM` a key and a value.
    fn append(&mut self, count: usize) -> Outcome<()> {
        let mut values = [Handle::NONE; 2];
        for slot in values[..count].iter_mut().rev() {
            *slot = self.pop()?;
        }
        self.put(count == 2, &values[..count])
    }

    fn extend(&mut self, pairs: bool) -> Outcome<()> {
        let values = self.group()?;
        if pairs && !values.len().is_multiple_of(2) {
            return Err(odd_pairs());
        }
        self.put(pairs, &values)?;
        self.budget.refund(values.capacity() * size_of::<Handle>());
        Ok(())
    }

    /// Adds values to the uppermost container, or pairs to the uppermost dictionary.
    fn put(&mut self, pairs: bool, values: &[Handle]) -> Outcome<()> {
        let target = self.top()?;
        let given = self.kind_of(target);
        let node = match target.unpack() {
            Unpacked::Node(index) => self.nodes.get_mut(index),
            _ => None,
        };
        let items = match node {
            Some(Node::Dict(items)) if pairs => items,
            Some(Node::List(items) | Node::Set(items)) if !pairs => items,
            // What an unknown object holds is dropped with the rest of it.
            Some(Node::Object(_)) => return Ok(()),
            _ => {
                let needed = if pairs { "a dictionary" } else { "a list or a set" };
                return Err(PickleFault::Operand { operation: "adding values", needed, given });
            }
        };
        if values.is_empty() {
            return Ok(());
        }
        if items.is_none() {
            self.budget.charge(size_of::<Vec<Handle>>())?;
        }
        let items = items.get_or_insert_default();
        self.budget.reserve(items, values.len())?;
        items.extend_from_slice(values);
        Ok(())
    }

    // Names.

    fn global_line(&mut self, operation: u8) -> Outcome<()> {
        let module = self.text_of_line()?.trim_end_matches('\r');
        let name = self.text_of_line()?.trim_end_matches('\r');
        let value = self.named(module, name)?;
        if operation == b'c' {
            return self.push(value);
        }
        let arguments = self.group()?;
        self.call_value(value, &arguments)
    }

    fn stack_global(&mut self) -> Outcome<()> {
        let (name, module) = (self.pop()?, self.pop()?);
        let span = |handle| match self.get(handle) {
            Some(&Node::Text(span)) => Ok(span),
            _ => {
                let given = self.kind_of(handle);
                Err(PickleFault::Operand { operation: "naming a type", needed: "two texts", given })
            }
        };
        let (module, name) = (span(module)?, span(name)?);
        // The names may lie in the pool, which the look-up must not hold on to.
        self.charge(module.length() + name.length())?;
        let module = String::from_utf8_lossy(self.bytes_of(module)).into_owned();
        let name = String::from_utf8_lossy(self.bytes_of(name)).into_owned();
        let value = self.named(&module, &name)?;
        self.push(value)
    }

    /// The value of a name: on the list, or skipped, or refused.
    fn named(&mut self, module: &str, name: &str) -> Outcome<Handle> {
        if let Some(known) = globals::lookup(module, name) {
            return self.node(Node::Known(known));
        }
        if !self.options.skip_unknown_objects {
            return Err(PickleFault::Refused(shortened(module, name)));
        }
        let full = shortened(module, name);
        let number = match self.class_numbers.get(&full) {
            Some(&number) => number,
            None => {
                self.charge(2 * full.len() + 128)?;
                let number = self.classes.len() as u32;
                self.budget.push(&mut self.classes, Class { name: full.clone(), objects: 0 })?;
                self.class_numbers.insert(full, number);
                number
            }
        };
        self.node(Node::Class(number))
    }

    /// An object of a class outside the list: a name and nothing else.
    pub(super) fn object(&mut self, class: u32) -> Outcome<Handle> {
        if let Some(class) = self.classes.get_mut(class as usize) {
            class.objects += 1;
        }
        self.node(Node::Object(class))
    }

    // Calls. None of them calls anything: `build.rs` knows what the names on the list describe.

    fn call(&mut self) -> Outcome<()> {
        let (arguments, callee) = (self.pop()?, self.pop()?);
        let Some(count) = self.sequence(arguments).map(<[_]>::len) else {
            let given = self.kind_of(arguments);
            return Err(PickleFault::Operand { operation: "a call", needed: "a tuple of arguments", given });
        };
        const MOST: usize = 8;
        let mut copy = [Handle::NONE; MOST];
        let kept = count.min(MOST);
        copy[..kept].copy_from_slice(&self.sequence(arguments).unwrap_or_default()[..kept]);
        self.call_value(callee, &copy[..kept])
    }

    fn call_with_names(&mut self) -> Outcome<()> {
        let (_names, _arguments, callee) = (self.pop()?, self.pop()?, self.pop()?);
        match self.get(callee) {
            Some(&(Node::Class(class) | Node::Object(class))) => {
                let object = self.object(class)?;
                self.push(object)
            }
            _ => {
                let given = self.kind_of(callee);
                Err(PickleFault::Operand { operation: "a call with named arguments", needed: "a class", given })
            }
        }
    }

    fn call_group(&mut self) -> Outcome<()> {
        let values = self.group()?;
        let (&callee, arguments) = values.split_first().ok_or(PickleFault::StackUnderflow)?;
        self.call_value(callee, arguments)
    }

    fn call_value(&mut self, callee: Handle, arguments: &[Handle]) -> Outcome<()> {
        let value = match self.get(callee) {
            Some(&Node::Known(known)) => self.build(known, arguments)?,
            Some(&(Node::Class(class) | Node::Object(class))) => self.object(class)?,
            _ => {
                let given = self.kind_of(callee);
                return Err(PickleFault::Operand { operation: "a call", needed: "a type or function", given });
            }
        };
        self.push(value)
    }

    fn set_state(&mut self) -> Outcome<()> {
        let state = self.pop()?;
        let target = self.top()?;
        self.fill(target, state)
    }

    fn persistent(&mut self) -> Outcome<()> {
        let reference = self.pop()?;
        let storage = self.persistent_storage(reference)?;
        self.push(storage)
    }
}

/// The values that an optional box holds.
pub(super) fn slice(items: &Items) -> &[Handle] {
    items.as_deref().map_or(&[], Vec::as_slice)
}

fn odd_pairs() -> PickleFault {
    PickleFault::Operand {
        operation: "filling a dictionary",
        needed: "keys and values in pairs",
        given: "an odd number",
    }
}

/// A name for messages: hostile ones may be as long as the file.
fn shortened(module: &str, name: &str) -> String {
    const LONGEST: usize = 120;
    let cut = |text: &str| match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    };
    format!("{}.{}", cut(module), cut(name))
}

/// Text between a pair of equal quotation marks.
fn unquoted(line: &[u8]) -> Outcome<&[u8]> {
    match line {
        [b'\'', inner @ .., b'\''] | [b'"', inner @ .., b'"'] => Ok(inner),
        _ => Err(PickleFault::Text),
    }
}

/// Decodes the escapes of a byte string as Python 2 prints it.
fn unescape_bytes(text: &[u8]) -> Outcome<Vec<u8>> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.iter().copied();
    while let Some(byte) = rest.next() {
        if byte != b'\\' {
            decoded.push(byte);
            continue;
        }
        decoded.push(match rest.next().ok_or(PickleFault::Text)? {
            b'n' => b'\n',
            b't' => b'\t',
            b'r' => b'\r',
            b'x' => {
                let digits = [rest.next(), rest.next()].map(|digit| digit.and_then(hex));
                let [Some(high), Some(low)] = digits else { return Err(PickleFault::Text) };
                (high << 4 | low) as u8
            }
            same @ (b'\\' | b'\'' | b'"') => same,
            _ => return Err(PickleFault::Text),
        });
    }
    Ok(decoded)
}

/// Decodes Latin-1 with `\u` and `\U` escapes, which protocol 0 uses for texts.
fn unescape_text(text: &[u8]) -> Outcome<String> {
    let mut decoded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, after)) = rest.split_first() {
        let digits = match (byte, after.first()) {
            (b'\\', Some(b'u')) => 4,
            (b'\\', Some(b'U')) => 8,
            _ => {
                decoded.push(char::from(byte));
                rest = after;
                continue;
            }
        };
        let code = after.get(1..1 + digits).ok_or(PickleFault::Text)?;
        let code = code.iter().try_fold(0u32, |code, &digit| Some(code.checked_mul(16)? | hex(digit)?));
        decoded.push(code.and_then(char::from_u32).ok_or(PickleFault::Text)?);
        rest = &after[1 + digits..];
    }
    Ok(decoded)
}

fn hex(digit: u8) -> Option<u32> {
    char::from(digit).to_digit(16)
}
