//! A pickle reader that can execute nothing.
//!
//! It knows the opcodes that build plain data (dict, list, tuple, text, bytes, numbers, booleans, None) in protocols 2
//! to 5, and refuses every opcode that would name or call Python code, by name and byte offset. Values live in a flat
//! arena and refer to each other by index: sharing and cycles cost nothing, depth costs no stack, and the memory used
//! is at most a constant times the file's length and never above what [`MAX_VALUES`] values take.
//!
//! A reader of checkpoints needs a few callables (tensor rebuilding); they belong in an allow-list that turns
//! `GLOBAL` and `REDUCE` into values of their own, never in anything looked up or run.

use std::{collections::HashMap, fmt};

/// Values a pickle may hold.
pub const MAX_VALUES: usize = 1 << 22;
/// Containers that may be open at once.
pub const MAX_DEPTH: usize = 64;

/// Opcodes that are refused, with the name Python's `pickletools` gives them.
const REFUSED: &[(u8, &str)] = &[
    (b'P', "PERSID"),
    (b'Q', "BINPERSID"),
    (b'R', "REDUCE"),
    (b'b', "BUILD"),
    (b'c', "GLOBAL"),
    (b'i', "INST"),
    (b'o', "OBJ"),
    (0x81, "NEWOBJ"),
    (0x82, "EXT1"),
    (0x83, "EXT2"),
    (0x84, "EXT4"),
    (0x92, "NEWOBJ_EX"),
    (0x93, "STACK_GLOBAL"),
    (0x97, "NEXT_BUFFER"),
    (0x98, "READONLY_BUFFER"),
];

/// Index of a value in its [`Pickle`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Id(u32);

/// A value; text and bytes lie in the file's own bytes.
#[derive(Clone, Debug, PartialEq)]
pub enum Value<'a> {
    /// `None`.
    None,
    /// `True` or `False`.
    Bool(bool),
    /// An integer of at most 64 bits.
    Int(i64),
    /// A double.
    Float(f64),
    /// Text.
    Str(&'a str),
    /// Bytes.
    Bytes(&'a [u8]),
    /// A list.
    List(Vec<Id>),
    /// A tuple.
    Tuple(Vec<Id>),
    /// A dict's assignments in the order they were made; of equal keys the last counts.
    Dict(Vec<(Id, Id)>),
}

/// A pickle's data.
#[derive(Clone, Debug)]
pub struct Pickle<'a> {
    values: Vec<Value<'a>>,
    root: Id,
}

impl<'a> Pickle<'a> {
    /// The value the pickle was made of.
    pub fn root(&self) -> &Value<'a> {
        self.get(self.root)
    }

    /// The value `id`, which must come from this pickle. A container may contain itself.
    pub fn get(&self, id: Id) -> &Value<'a> {
        &self.values[id.0 as usize]
    }
}

/// Why a pickle is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PickleError {
    /// Byte offset of the opcode at fault.
    pub offset: usize,
    /// What is at fault.
    pub what: &'static str,
    /// What is expected there.
    pub expected: String,
    /// What is there.
    pub got: String,
}

impl fmt::Display for PickleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "byte {}: {}: expected {}, got {}", self.offset, self.what, self.expected, self.got)
    }
}

impl std::error::Error for PickleError {}

/// Reads a pickle of plain data; nothing may follow its end.
///
/// # Errors
/// If an opcode is refused or unknown, the bytes end early or go on, text is not UTF-8, an integer exceeds 64 bits, the
/// stack does not hold what an opcode needs, or a limit is exceeded.
pub fn read(bytes: &[u8]) -> Result<Pickle<'_>, PickleError> {
    let mut reader = Reader {
        bytes,
        at: 0,
        opcode: 0,
        values: Vec::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
    };
    if bytes.first() != Some(&0x80) {
        return reader.fail("first byte", "0x80, a pickle of protocol 2 to 5", format!("{:02x?}", bytes.first()));
    }
    while !reader.step()? {}
    let root = reader.pop()?;
    if !reader.stack.is_empty() || !reader.marks.is_empty() {
        return reader.fail("end", "one value on the stack", format!("{} more", reader.stack.len()));
    }
    if reader.at != bytes.len() {
        return reader.fail("end", "no further bytes", format!("{} bytes", bytes.len() - reader.at));
    }
    Ok(Pickle { values: reader.values, root })
}

struct Reader<'a> {
    bytes: &'a [u8],
    /// The next byte to read.
    at: usize,
    /// Offset of the opcode being read.
    opcode: usize,
    values: Vec<Value<'a>>,
    stack: Vec<Id>,
    /// Heights of the stack at the open marks.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

type Outcome<T> = Result<T, PickleError>;

impl<'a> Reader<'a> {
    fn fail<T>(&self, what: &'static str, expected: impl Into<String>, got: impl Into<String>) -> Outcome<T> {
        Err(PickleError { offset: self.opcode, what, expected: expected.into(), got: got.into() })
    }

    /// The next `n` bytes; the length is compared before anything is allocated.
    fn take(&mut self, n: u64) -> Outcome<&'a [u8]> {
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

    /// A little-endian two's complement integer of any length that fits 64 bits.
    fn long(&mut self, n: u64) -> Outcome<Value<'a>> {
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

    fn push_id(&mut self, id: Id) -> Outcome<()> {
        if self.stack.len() >= MAX_VALUES {
            return self.fail("stack", format!("at most {MAX_VALUES} values"), "more");
        }
        self.stack.push(id);
        Ok(())
    }

    fn push(&mut self, value: Value<'a>) -> Outcome<()> {
        if self.values.len() >= MAX_VALUES {
            return self.fail("pickle", format!("at most {MAX_VALUES} values"), "more");
        }
        self.values.push(value);
        self.push_id(Id((self.values.len() - 1) as u32))
    }

    /// The values since the last mark, which is closed.
    fn since_mark(&mut self) -> Outcome<Vec<Id>> {
        match self.marks.pop() {
            Some(height) => Ok(self.stack.split_off(height)),
            None => self.fail("stack", "a mark", "none"),
        }
    }

    /// The topmost value above the last mark.
    fn top(&self) -> Outcome<Id> {
        match self.stack.last() {
            Some(&id) if self.stack.len() > self.marks.last().copied().unwrap_or(0) => Ok(id),
            _ => self.fail("stack", "a value", "none since the last mark"),
        }
    }

    fn pop(&mut self) -> Outcome<Id> {
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
            (Value::Dict(_), None) => self.fail("dict", "keys and values in pairs", format!("{} values", items.len())),
            _ => self.fail("stack", "a dict to assign to", "another value"),
        }
    }

    fn remember(&mut self, key: u64) -> Outcome<()> {
        let id = self.top()?;
        match u32::try_from(key) {
            Ok(key) if self.memo.len() < MAX_VALUES => {
                self.memo.insert(key, id);
                Ok(())
            }
            _ => self.fail("memo", format!("at most {MAX_VALUES} entries"), "more"),
        }
    }

    fn recall(&mut self, key: u64) -> Outcome<()> {
        match u32::try_from(key).ok().and_then(|key| self.memo.get(&key)) {
            Some(&id) => self.push_id(id),
            None => self.fail("memo", "an index stored before", key.to_string()),
        }
    }

    /// Executes one opcode; true at the end of the pickle.
    fn step(&mut self) -> Outcome<bool> {
        self.opcode = self.at;
        let op = self.take(1)?[0];
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
            b'.' => return Ok(true),
            b'(' => {
                if self.marks.len() >= MAX_DEPTH {
                    return self.fail("nesting", format!("at most {MAX_DEPTH} open containers"), "more");
                }
                self.marks.push(self.stack.len());
            }
            b'0' => drop(self.pop()?),
            b'1' => drop(self.since_mark()?),
            b'2' => self.top().and_then(|id| self.push_id(id))?,

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

            0x8c | b'U' => self.sized(1, Self::text)?,
            b'X' | b'T' => self.sized(4, Self::text)?,
            0x8d => self.sized(8, Self::text)?,
            b'C' => self.sized(1, |r, n| r.take(n).map(Value::Bytes))?,
            b'B' => self.sized(4, |r, n| r.take(n).map(Value::Bytes))?,
            0x8e => self.sized(8, |r, n| r.take(n).map(Value::Bytes))?,

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

            0x94 => self.remember(self.memo.len() as u64)?,
            b'q' => self.uint(1).and_then(|key| self.remember(key))?,
            b'r' => self.uint(4).and_then(|key| self.remember(key))?,
            b'h' => self.uint(1).and_then(|key| self.recall(key))?,
            b'j' => self.uint(4).and_then(|key| self.recall(key))?,

            other => {
                return match REFUSED.iter().find(|(code, _)| *code == other) {
                    Some((_, name)) => self.fail(
                        "opcode",
                        "plain data (dict, list, tuple, text, numbers)",
                        format!("{name} (0x{other:02x}), which runs code; this reader never does"),
                    ),
                    None => self.fail("opcode", "plain data of protocol 2 to 5", format!("0x{other:02x}")),
                };
            }
        }
        Ok(false)
    }

    /// An unsigned integer of `n` bytes.
    fn long_of_uint(&mut self, n: usize) -> Outcome<()> {
        let value = self.uint(n)?;
        self.push(Value::Int(value as i64))
    }

    /// A length of `n` bytes, and what `make` reads of that length.
    fn sized(&mut self, n: usize, make: fn(&mut Self, u64) -> Outcome<Value<'a>>) -> Outcome<()> {
        let length = self.uint(n)?;
        let value = make(self, length)?;
        self.push(value)
    }
}

fn pairs(items: &[Id]) -> Option<impl Iterator<Item = (Id, Id)>> {
    items.len().is_multiple_of(2).then(|| items.chunks_exact(2).map(|p| (p[0], p[1])))
}
