//! The stack machine: one opcode after the other, into an arena of values.

use super::{Id, MAX_DEPTH, MAX_VALUES, PickleError, Value};
use std::collections::HashMap;

pub(super) struct Reader<'a> {
    pub(super) bytes: &'a [u8],
    /// Whether all objects are described; otherwise only those that are data.
    pub(super) objects: bool,
    /// The next byte to read.
    pub(super) at: usize,
    /// Offset of the opcode being read.
    pub(super) opcode: usize,
    pub(super) values: Vec<Value<'a>>,
    stack: Vec<Id>,
    /// Heights of the stack at the open marks.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

pub(super) type Outcome<T> = Result<T, PickleError>;

impl<'a> Reader<'a> {
    /// A machine about to read `bytes` from `start` on.
    pub(super) fn new(bytes: &'a [u8], start: usize, objects: bool) -> Self {
        Reader {
            bytes,
            objects,
            at: start.min(bytes.len()),
            opcode: start,
            values: Vec::new(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
        }
    }

    /// Reads to the end of the pickle: all values, and the one that it was made of.
    pub(super) fn run(&mut self) -> Outcome<(Vec<Value<'a>>, Id)> {
        let first = self.bytes.get(self.at);
        // Protocols 0 and 1 begin with whatever they hold.
        if first.is_none_or(|&first| self.objects && first != 0x80) {
            return self.fail("first byte", "0x80, a pickle of protocol 2 to 5", format!("{first:02x?}"));
        }
        while !self.step()? {}
        let root = self.pop()?;
        if !self.stack.is_empty() || !self.marks.is_empty() {
            return self.fail("end", "one value on the stack", format!("{} more", self.stack.len()));
        }
        Ok((std::mem::take(&mut self.values), root))
    }

    pub(super) fn fail<T>(
        &self,
        what: &'static str,
        expected: impl Into<String>,
        got: impl Into<String>,
    ) -> Outcome<T> {
        Err(PickleError { offset: self.opcode, what, expected: expected.into(), got: got.into() })
    }

    /// The next `n` bytes; the length is compared before anything is allocated.
    pub(super) fn take(&mut self, n: u64) -> Outcome<&'a [u8]> {
        let left = self.bytes.len() - self.at;
        match usize::try_from(n) {
            Ok(n) if n <= left => {
                self.at += n;
                Ok(&self.bytes[self.at - n..self.at])
            }
            _ => self.fail("argument", format!("{n} bytes"), format!("{left} to the end of the file")),
        }
    }

    /// A little-endian unsigned integer of `n <= 8` bytes.
    fn uint(&mut self, n: usize) -> Outcome<u64> {
        Ok(self.take(n as u64)?.iter().rev().fold(0, |value, &b| value << 8 | u64::from(b)))
    }

    /// A little-endian two's complement integer; of plain data, one that fits 64 bits.
    fn long(&mut self, n: u64) -> Outcome<Value<'a>> {
        if n > 8 && self.objects {
            return self.take(n).map(Value::Long);
        }
        if n > 8 {
            return self.fail("integer", "at most 8 bytes", format!("{n} bytes"));
        }
        let raw = self.uint(n as usize)?;
        // Moves the sign bit to the top and back.
        let unused = 64 - 8 * n as u32;
        Ok(Value::Int(if n == 0 { 0 } else { ((raw << unused) as i64) >> unused }))
    }

    fn text(&mut self, n: u64) -> Outcome<Value<'a>> {
        match std::str::from_utf8(self.take(n)?) {
            Ok(text) => Ok(Value::Str(text)),
            Err(e) => self.fail("text", "UTF-8", e.to_string()),
        }
    }

    /// What Python 2 called `str`: text mostly, but any bytes.
    fn old_text(&mut self, n: u64) -> Outcome<Value<'a>> {
        let start = self.at;
        let bytes = self.take(n)?;
        if self.objects && std::str::from_utf8(bytes).is_err() {
            return Ok(Value::Bytes(bytes));
        }
        self.at = start;
        self.text(n)
    }

    pub(super) fn push_id(&mut self, id: Id) -> Outcome<()> {
        if self.stack.len() >= MAX_VALUES {
            return self.fail("stack", format!("at most {MAX_VALUES} values"), "more");
        }
        self.stack.push(id);
        Ok(())
    }

    pub(super) fn push(&mut self, value: Value<'a>) -> Outcome<()> {
        if self.values.len() >= MAX_VALUES {
            return self.fail("pickle", format!("at most {MAX_VALUES} values"), "more");
        }
        self.values.push(value);
        self.push_id(Id((self.values.len() - 1) as u32))
    }

    /// The values since the last mark, which is closed.
    pub(super) fn since_mark(&mut self) -> Outcome<Vec<Id>> {
        match self.marks.pop() {
            Some(height) => Ok(self.stack.split_off(height)),
            None => self.fail("stack", "a mark", "none"),
        }
    }

    /// The topmost value above the last mark.
    pub(super) fn top(&self) -> Outcome<Id> {
        match self.stack.last() {
            Some(&id) if self.stack.len() > self.marks.last().copied().unwrap_or(0) => Ok(id),
            _ => self.fail("stack", "a value", "none since the last mark"),
        }
    }

    pub(super) fn pop(&mut self) -> Outcome<Id> {
        let id = self.top()?;
        self.stack.pop();
        Ok(id)
    }

    fn tuple(&mut self, n: usize) -> Outcome<()> {
        let mut items = Vec::with_capacity(n);
        for _ in 0..n {
            items.push(self.pop()?);
        }
        items.reverse();
        self.push(Value::Tuple(items))
    }

    fn extend_list(&mut self, items: &[Id]) -> Outcome<()> {
        let top = self.top()?;
        match &mut self.values[top.0 as usize] {
            Value::List(list) => {
                list.extend_from_slice(items);
                Ok(())
            }
            // The contents of an object are its own affair.
            Value::Call { plain, .. } if self.objects => {
                *plain = false;
                Ok(())
            }
            _ => self.fail("stack", "a list to append to", "another value"),
        }
    }

    fn extend_dict(&mut self, items: &[Id]) -> Outcome<()> {
        let pairs = pairs(items);
        let top = self.top()?;
        match (&mut self.values[top.0 as usize], pairs) {
            (Value::Dict(dict), Some(pairs)) => {
                dict.extend(pairs);
                Ok(())
            }
            (Value::Call { plain, .. }, Some(_)) if self.objects => {
                *plain = false;
                Ok(())
            }
            (Value::Dict(_), None) => self.fail("dict", "keys and values in pairs", format!("{} values", items.len())),
            _ => self.fail("stack", "a dict to assign to", "another value"),
        }
    }

    pub(super) fn remember(&mut self, key: u64) -> Outcome<()> {
        let id = self.top()?;
        match u32::try_from(key) {
            Ok(key) if self.memo.len() < MAX_VALUES => {
                self.memo.insert(key, id);
                Ok(())
            }
            _ => self.fail("memo", format!("at most {MAX_VALUES} entries"), "more"),
        }
    }

    pub(super) fn recall(&mut self, key: u64) -> Outcome<()> {
        match u32::try_from(key).ok().and_then(|key| self.memo.get(&key)) {
            Some(&id) => self.push_id(id),
            None => self.fail("memo", "an index stored before", key.to_string()),
        }
    }

    /// Executes one opcode; true at the end of the pickle.
    fn step(&mut self) -> Outcome<bool> {
        self.opcode = self.at;
        let op = self.take(1)?[0];
        if op == b'.' {
            return Ok(true);
        }
        let lines = !self.objects && self.line_leaf(op)?;
        if !(lines || self.control(op)? || self.leaf(op)? || self.container(op)?) {
            match self.objects {
                true => self.object(op)?,
                false => self.inert(op)?,
            }
        }
        Ok(false)
    }

    /// Opcodes that make no value: headers, stack and memo. False if `op` is none of them.
    fn control(&mut self, op: u8) -> Outcome<bool> {
        match op {
            0x80 => {
                let protocol = self.uint(1)?;
                if !(2..=5).contains(&protocol) {
                    return self.fail("protocol", "2 to 5", protocol.to_string());
                }
            }
            // A frame only groups bytes for reading; its length must fit the file.
            0x95 => {
                let length = self.uint(8)?;
                let left = (self.bytes.len() - self.at) as u64;
                if length > left {
                    return self.fail("frame", format!("at most {left} bytes"), length.to_string());
                }
            }
            b'(' => {
                if self.marks.len() >= MAX_DEPTH {
                    return self.fail("nesting", format!("at most {MAX_DEPTH} open containers"), "more");
                }
                self.marks.push(self.stack.len());
            }
            b'0' => drop(self.pop()?),
            b'1' => drop(self.since_mark()?),
            b'2' => self.top().and_then(|id| self.push_id(id))?,

            0x94 => self.remember(self.memo.len() as u64)?,
            b'q' => self.uint(1).and_then(|key| self.remember(key))?,
            b'r' => self.uint(4).and_then(|key| self.remember(key))?,
            b'h' => self.uint(1).and_then(|key| self.recall(key))?,
            b'j' => self.uint(4).and_then(|key| self.recall(key))?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Opcodes that make a value of nothing but their argument: numbers and text. False if `op` is none of them.
    fn leaf(&mut self, op: u8) -> Outcome<bool> {
        match op {
            b'N' => self.push(Value::None)?,
            0x88 => self.push(Value::Bool(true))?,
            0x89 => self.push(Value::Bool(false))?,
            b'K' => self.long_of_uint(1)?,
            b'M' => self.long_of_uint(2)?,
            b'J' => self.long(4).and_then(|v| self.push(v))?,
            0x8a => self.sized(1, Self::long)?,
            0x8b => self.sized(4, Self::long)?,
            b'G' => {
                let raw = self.take(8)?.iter().fold(0u64, |value, &b| value << 8 | u64::from(b));
                self.push(Value::Float(f64::from_bits(raw)))?;
            }

            0x8c => self.sized(1, Self::text)?,
            b'X' => self.sized(4, Self::text)?,
            b'U' => self.sized(1, Self::old_text)?,
            b'T' => self.sized(4, Self::old_text)?,
            0x8d => self.sized(8, Self::text)?,
            b'C' => self.sized(1, |r, n| r.take(n).map(Value::Bytes))?,
            b'B' => self.sized(4, |r, n| r.take(n).map(Value::Bytes))?,
            0x8e => self.sized(8, |r, n| r.take(n).map(Value::Bytes))?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Opcodes that make or fill a container. False if `op` is none of them.
    fn container(&mut self, op: u8) -> Outcome<bool> {
        match op {
            b']' => self.push(Value::List(Vec::new()))?,
            b'l' => self.since_mark().and_then(|items| self.push(Value::List(items)))?,
            b'a' => {
                let item = self.pop()?;
                self.extend_list(&[item])?;
            }
            b'e' => self.since_mark().and_then(|items| self.extend_list(&items))?,
            b')' => self.push(Value::Tuple(Vec::new()))?,
            b't' => self.since_mark().and_then(|items| self.push(Value::Tuple(items)))?,
            0x85 => self.tuple(1)?,
            0x86 => self.tuple(2)?,
            0x87 => self.tuple(3)?,
            b'}' => self.push(Value::Dict(Vec::new()))?,
            b'd' => {
                let items = self.since_mark()?;
                self.push(Value::Dict(Vec::new()))?;
                self.extend_dict(&items)?;
            }
            b's' => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.extend_dict(&[key, value])?;
            }
            b'u' => self.since_mark().and_then(|items| self.extend_dict(&items))?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// An unsigned integer of `n` bytes.
    fn long_of_uint(&mut self, n: usize) -> Outcome<()> {
        let value = self.uint(n)?;
        self.push(Value::Int(value as i64))
    }

    /// A length of `n` bytes, and what `make` reads of that length.
    pub(super) fn sized(&mut self, n: usize, make: fn(&mut Self, u64) -> Outcome<Value<'a>>) -> Outcome<()> {
        let length = self.uint(n)?;
        let value = make(self, length)?;
        self.push(value)
    }
}

fn pairs(items: &[Id]) -> Option<impl Iterator<Item = (Id, Id)>> {
    items.len().is_multiple_of(2).then(|| items.chunks_exact(2).map(|p| (p[0], p[1])))
}
