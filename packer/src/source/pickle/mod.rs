//! A pickle reader that can execute nothing.
//!
//! [`read`] knows the opcodes that build plain data (dict, list, tuple, text, bytes, numbers, booleans, None) in
//! protocols 0 to 5, and a short list of names that stand for data too: numbers and arrays of numpy, ordered dicts, dicts
//! with defaults (`inert`). It refuses every other name and call, by name and byte offset.
//! [`read_objects`], which checkpoints are read with, also accepts the opcodes with which they name and call code, and answers them with
//! *descriptions*: [`Value::Global`] is two words, [`Value::Call`] says that something would have been called with
//! something. There is no table in which a name could be looked up and no function that could be called; who reads the
//! result decides which descriptions it understands, and the rest stays inert.
//!
//! Values live in a flat arena and refer to each other by index: sharing and cycles cost nothing, depth costs no stack,
//! and the memory used is at most a constant times the file's length and never above what [`MAX_VALUES`] values take.

mod inert;
mod machine;
mod objects;

use machine::Reader;
use std::fmt;

/// Values a pickle may hold.
pub const MAX_VALUES: usize = 1 << 22;
/// Containers that may be open at once.
pub const MAX_DEPTH: usize = 64;

/// Index of a value in its [`Pickle`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Id(u32);

/// A value; text and bytes lie in the file's own bytes. [`Global`](Value::Global) and [`Call`](Value::Call) that come
/// from [`read`] are of data, the other variants from [`Long`](Value::Long) on come from [`read_objects`] only.
#[derive(Clone, Debug, PartialEq)]
pub enum Value<'a> {
    /// Python's `None`.
    None,
    /// `True` or `False`.
    Bool(bool),
    /// An integer of at most 64 bits.
    Int(i64),
    /// A 64-bit float.
    Float(f64),
    /// UTF-8 text.
    Str(&'a str),
    /// Text that is written otherwise in the file: protocol 0 escapes it. See [`Pickle::text`].
    Text(String),
    /// Bytes that need not be text.
    Bytes(&'a [u8]),
    /// The items of a list, in order.
    List(Vec<Id>),
    /// The items of a tuple, in order.
    Tuple(Vec<Id>),
    /// A dict's assignments in the order they were made; of equal keys the last counts. Also an `OrderedDict`.
    Dict(Vec<(Id, Id)>),
    /// An integer of more than 64 bits: little-endian two's complement.
    Long(&'a [u8]),
    /// The name of a class or function.
    Global {
        /// Module it would be imported from.
        module: &'a str,
        /// Name in the module.
        name: &'a str,
    },
    /// What a call would have returned.
    Call {
        /// What would have been called.
        callee: Id,
        /// The tuple of arguments.
        args: Id,
        /// Whether that is all: a call of a function, and nothing put into its result afterwards.
        plain: bool,
        /// What it was then told to be, in the data that [`read`] takes.
        state: Option<Id>,
        /// Byte offset of the opcode.
        offset: usize,
    },
    /// What the file's owner stores outside of the pickle under this id.
    Persistent(Id),
    /// A set; its elements are not kept.
    Set,
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

    /// The index of [`root`](Self::root).
    pub fn root_id(&self) -> Id {
        self.root
    }

    /// The value `id`, which must come from this pickle. A container may contain itself.
    pub fn get(&self, id: Id) -> &Value<'a> {
        &self.values[id.0 as usize]
    }

    /// All values, in the order they were made; also those that the root does not lead to.
    pub fn values(&self) -> impl Iterator<Item = (Id, &Value<'a>)> {
        self.values.iter().enumerate().map(|(i, value)| (Id(i as u32), value))
    }

    /// Module and name, if `id` is a [`Value::Global`].
    pub fn global(&self, id: Id) -> Option<(&'a str, &'a str)> {
        match self.get(id) {
            Value::Global { module, name } => Some((module, name)),
            _ => None,
        }
    }

    /// The text, if `id` is one.
    pub fn text(&self, id: Id) -> Option<&str> {
        match self.get(id) {
            Value::Str(text) => Some(text),
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The elements, if `id` is a tuple.
    pub fn tuple(&self, id: Id) -> Option<&[Id]> {
        match self.get(id) {
            Value::Tuple(items) => Some(items),
            _ => None,
        }
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

/// Reads a pickle of data; nothing may follow its end.
///
/// # Errors
/// If a name, a call or an opcode is refused or unknown, the bytes end early or go on, text is not UTF-8, an integer exceeds 64 bits, the
/// stack does not hold what an opcode needs, or a limit is exceeded.
pub fn read(bytes: &[u8]) -> Result<Pickle<'_>, PickleError> {
    let mut reader = Reader::new(bytes, 0, false);
    let (values, root) = reader.run()?;
    match bytes.len() - reader.at {
        0 => Ok(Pickle { values, root }),
        left => reader.fail("end", "no further bytes", format!("{left} bytes")),
    }
}

/// Reads the pickle that begins at byte `start`, with descriptions of objects; also gives the offset of the first byte
/// after it. Offsets count from the start of `bytes`.
///
/// # Errors
/// As for [`read`], except that calls, names, persistent ids, sets and long integers are described.
pub fn read_objects(bytes: &[u8], start: usize) -> Result<(Pickle<'_>, usize), PickleError> {
    let mut reader = Reader::new(bytes, start, true);
    let (values, root) = reader.run()?;
    Ok((Pickle { values, root }, reader.at))
}
