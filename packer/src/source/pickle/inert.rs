//! Names and calls that stand for data, as an explicit list: what `collections`, `numpy` and Python's own bytes look like
//! in a pickle. Nothing is imported or called. A name that is not on the list is refused where it stands, whether or not
//! anything uses it, and so is a call with other arguments than the writer of that data gives.
//!
//! ```text
//! np.float64(93.2)    numpy._core.multiarray.scalar(numpy.dtype('f8', ..), 8 bytes)
//! np.array([1, 2])    numpy._core.multiarray._reconstruct(numpy.ndarray, ..), then shape, dtype and bytes as its state
//! b'ab'               _codecs.encode('ab', 'latin1'), before protocol 3
//! ```

use super::machine::{Outcome, Reader};
use super::{Id, Pickle, Value};
use std::borrow::Cow;

/// Bytes of the largest element that is looked at: a text of 1024 characters.
const MAX_ELEMENT: usize = 4096;
/// Bytes of the longest number that is written as text.
const MAX_NUMBER: usize = 64;

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Inert {
    /// A type that is named and not called: of a default, of an array.
    Type,
    /// `collections.OrderedDict`.
    Dict,
    /// `collections.defaultdict`.
    DefaultDict,
    /// Text to bytes.
    Encode,
    /// Bytes of bytes.
    Bytes,
    /// The type of numpy's elements.
    Dtype,
    /// A number or text of numpy.
    Scalar,
    /// An array of numpy, which gets its contents as its state.
    Array,
    /// An array of numpy in protocol 5.
    Buffer,
}

/// The list.
fn inert(module: &str, name: &str) -> Option<Inert> {
    Some(match (module, name) {
        ("collections", "OrderedDict") => Inert::Dict,
        ("collections", "defaultdict") => Inert::DefaultDict,
        ("_codecs", "encode") => Inert::Encode,
        ("builtins" | "__builtin__", "bytes" | "bytearray") => Inert::Bytes,
        ("builtins" | "__builtin__", "dict" | "float" | "int" | "list" | "str" | "tuple") => Inert::Type,
        ("numpy", "ndarray") => Inert::Type,
        ("numpy", "dtype") => Inert::Dtype,
        ("numpy._core.multiarray" | "numpy.core.multiarray", "scalar") => Inert::Scalar,
        ("numpy._core.multiarray" | "numpy.core.multiarray", "_reconstruct") => Inert::Array,
        ("numpy._core.numeric" | "numpy.core.numeric", "_frombuffer") => Inert::Buffer,
        _ => return None,
    })
}

/// What is accepted, for messages.
const EXPECTED: &str = "plain data, dicts of collections, or numbers of numpy";

impl<'a> Reader<'a> {
    /// Executes an opcode that plain data does not need, if it makes data.
    pub(super) fn inert(&mut self, op: u8) -> Outcome<()> {
        match op {
            b'c' | 0x93 => {
                let (module, name) = self.name(op)?;
                if inert(module, name).is_none() {
                    let shown: String = format!("{module}.{name}").chars().take(60).collect();
                    return self.fail("name", EXPECTED, format!("{shown}, which runs code; this reader never does"));
                }
                self.push(Value::Global { module, name })
            }
            b'R' => {
                let (args, callee) = (self.pop()?, self.pop()?);
                self.call(callee, args)
            }
            b'b' => {
                let state = self.pop()?;
                let top = self.top()?;
                let stateful = matches!(self.called(top), Some(Inert::Dtype | Inert::Array));
                let tuple = matches!(self.values[state.0 as usize], Value::Tuple(_));
                match &mut self.values[top.0 as usize] {
                    Value::Call { plain: plain @ true, state: of, .. } if stateful && tuple => {
                        (*plain, *of) = (false, Some(state));
                        Ok(())
                    }
                    _ => self.fail("BUILD", "an array or a type of numpy without a state", "another value"),
                }
            }
            0x96 => self.sized(8, |r, n| r.take(n).map(Value::Bytes)),
            other => self.unknown(other),
        }
    }

    /// Opcodes of protocol 0 whose argument is a line. False if `op` is none of them.
    pub(super) fn line_leaf(&mut self, op: u8) -> Outcome<bool> {
        match op {
            b'I' | b'L' => {
                let text = self.line("integer", MAX_NUMBER)?;
                let value = match text {
                    "00" | "01" if op == b'I' => Some(Value::Bool(text == "01")),
                    _ => text.strip_suffix('L').unwrap_or(text).parse().ok().map(Value::Int),
                };
                match value {
                    Some(value) => self.push(value)?,
                    None => return self.fail("integer", "digits of at most 64 bits", "another line"),
                }
            }
            b'F' => match self.line("number", MAX_NUMBER)?.parse() {
                Ok(value) => self.push(Value::Float(value))?,
                Err(_) => return self.fail("number", "digits", "another line"),
            },
            b'S' => {
                let text = self.line("text", usize::MAX)?;
                let inner = ['\'', '"'].iter().find_map(|&quote| text.strip_prefix(quote)?.strip_suffix(quote));
                match inner.filter(|inner| !inner.contains('\\')) {
                    Some(inner) => self.push(Value::Str(inner))?,
                    None => return self.fail("text", "quotes and no escapes", "another line"),
                }
            }
            b'V' => {
                let value = match self.line_bytes("text", usize::MAX)? {
                    plain if plain.is_ascii() && !plain.contains(&b'\\') => {
                        Value::Str(std::str::from_utf8(plain).unwrap_or_default())
                    }
                    other => match unescape(other) {
                        Some(text) => Value::Text(text),
                        None => return self.fail("text", "escapes of characters", "others"),
                    },
                };
                self.push(value)?;
            }
            b'p' | b'g' => match self.line("memo", MAX_NUMBER)?.parse() {
                Ok(key) if op == b'p' => self.remember(key)?,
                Ok(key) => self.recall(key)?,
                Err(_) => return self.fail("memo", "a number", "another line"),
            },
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// What the name stands for that made `id`, if a call did.
    fn called(&self, id: Id) -> Option<Inert> {
        match self.values[id.0 as usize] {
            Value::Call { callee, .. } => self.named(callee),
            _ => None,
        }
    }

    fn named(&self, id: Id) -> Option<Inert> {
        match self.values[id.0 as usize] {
            Value::Global { module, name } => inert(module, name),
            _ => None,
        }
    }

    fn call(&mut self, callee: Id, args: Id) -> Outcome<()> {
        let value = |id: Id| &self.values[id.0 as usize];
        let Value::Tuple(items) = value(args) else {
            return self.fail("call", "a tuple of arguments", "another value");
        };
        let is = |id: &Id, what: Inert| self.called(*id) == Some(what);
        let bytes = |id: &Id| matches!(value(*id), Value::Bytes(_) | Value::Str(_)) || is(id, Inert::Encode);
        let text = |id: &Id| matches!(value(*id), Value::Str(_) | Value::Text(_));
        let tuple = |id: &Id| matches!(value(*id), Value::Tuple(_));
        let latin = |id: &Id| matches!(value(*id), Value::Str("latin1" | "latin-1"));
        let described = Value::Call { callee, args, plain: true, state: None, offset: self.opcode };
        let made = match (self.named(callee), &items[..]) {
            (Some(Inert::Dict | Inert::DefaultDict), []) => Some(Value::Dict(Vec::new())),
            (Some(Inert::DefaultDict), [of]) if self.named(*of) == Some(Inert::Type) || *value(*of) == Value::None => {
                Some(Value::Dict(Vec::new()))
            }
            (Some(Inert::Encode | Inert::Bytes), [from, encoding]) if text(from) && latin(encoding) => Some(described),
            (Some(Inert::Bytes), []) => Some(Value::Bytes(&[])),
            (Some(Inert::Bytes), [of]) if bytes(of) => {
                let of = *of;
                return self.push_id(of);
            }
            (Some(Inert::Dtype), [name, ..]) if items.len() <= 3 && text(name) => Some(described),
            (Some(Inert::Scalar), [of, from]) if is(of, Inert::Dtype) && bytes(from) => Some(described),
            (Some(Inert::Array), [of, shape, code])
                if self.named(*of) == Some(Inert::Type) && tuple(shape) && bytes(code) =>
            {
                Some(described)
            }
            (Some(Inert::Buffer), [from, of, shape, order])
                if bytes(from) && is(of, Inert::Dtype) && tuple(shape) && text(order) =>
            {
                Some(described)
            }
            _ => None,
        };
        match made {
            Some(made) => self.push(made),
            None => self.fail("call", EXPECTED, "another call, which runs code; this reader never does"),
        }
    }
}

/// The text that `raw-unicode-escape` writes as `bytes`: Latin-1, and `\u` and `\U` with the number of a character.
fn unescape(bytes: &[u8]) -> Option<String> {
    let mut text = String::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((&first, after)) = rest.split_first() {
        let digits = match (first, after.first()) {
            (b'\\', Some(b'u')) => 4,
            (b'\\', Some(b'U')) => 8,
            _ => 0,
        };
        if digits == 0 {
            text.push(char::from(first));
            rest = after;
            continue;
        }
        let number = std::str::from_utf8(after.get(1..=digits)?).ok()?;
        text.push(u32::from_str_radix(number, 16).ok().and_then(char::from_u32)?);
        rest = &after[digits + 1..];
    }
    Some(text)
}

/// Reading numpy's values; of arrays no more than the first element.
impl<'a> Pickle<'a> {
    /// The number or text of numpy that `id` is: a scalar, or an array without axes.
    pub fn scalar(&self, id: Id) -> Option<Value<'a>> {
        let Array { axes, element } = self.array(id)?;
        (axes == 0).then_some(element)
    }

    /// The first element, if `id` is a list, a tuple or an array of numpy.
    pub fn first(&self, id: Id) -> Option<Value<'a>> {
        match self.get(id) {
            Value::List(items) | Value::Tuple(items) => {
                let &first = items.first()?;
                Some(self.scalar(first).unwrap_or_else(|| self.get(first).clone()))
            }
            _ => self.array(id).filter(|array| array.axes > 0).map(|array| array.element),
        }
    }

    fn array(&self, id: Id) -> Option<Array<'a>> {
        let &Value::Call { callee, args, state, .. } = self.get(id) else { return None };
        let (module, name) = self.global(callee)?;
        let args = self.tuple(args)?;
        let (axes, dtype, elements) = match (inert(module, name)?, args, state) {
            (Inert::Scalar, &[dtype, bytes], _) => (0, dtype, bytes),
            (Inert::Buffer, &[bytes, dtype, shape, _], _) => (self.tuple(shape)?.len(), dtype, bytes),
            (Inert::Array, _, Some(state)) => match *self.tuple(state)? {
                [_, shape, dtype, _, elements] => (self.tuple(shape)?.len(), dtype, elements),
                _ => return None,
            },
            _ => return None,
        };
        // Arrays of objects have a list of them.
        if let Value::List(items) = self.get(elements) {
            let &first = items.first()?;
            return Some(Array { axes, element: self.get(first).clone() });
        }
        Some(Array { axes, element: self.element(dtype, elements)? })
    }

    /// The first element of type `dtype` in `bytes`.
    fn element(&self, dtype: Id, bytes: Id) -> Option<Value<'a>> {
        let &Value::Call { args, state, .. } = self.get(dtype) else { return None };
        let code = self.text(*self.tuple(args)?.first()?)?;
        let code = code.trim_start_matches(['<', '>', '=', '|']);
        let order = state.and_then(|state| self.text(*self.tuple(state)?.get(1)?)).unwrap_or("<");
        let (kind, size) = code.split_at_checked(1)?;
        let size = size.parse::<usize>().ok()?.checked_mul(if kind == "U" { 4 } else { 1 })?;
        if size > MAX_ELEMENT {
            return None;
        }
        let mut bytes = self.bytes(bytes, size)?.into_owned();
        if kind == "U" {
            let number = |b: &[u8; 4]| if order == ">" { u32::from_be_bytes(*b) } else { u32::from_le_bytes(*b) };
            let characters = bytes.as_chunks().0.iter().map(|b| char::from_u32(number(b)));
            let text: String = characters.collect::<Option<_>>()?;
            return Some(Value::Text(text.trim_end_matches('\0').to_owned()));
        }
        if order == ">" {
            bytes.reverse();
        }
        let integer = |bytes: &[u8]| bytes.iter().rev().fold(0u64, |value, &b| value << 8 | u64::from(b));
        let sign = |value: u64| (value << (64 - 8 * size) as u32) as i64 >> (64 - 8 * size) as u32;
        Some(match (kind, &bytes[..]) {
            ("f", &[a, b]) => Value::Float(half::f16::from_le_bytes([a, b]).to_f64()),
            ("f", &[a, b, c, d]) => Value::Float(f32::from_le_bytes([a, b, c, d]).into()),
            ("f", bytes) => Value::Float(f64::from_le_bytes(bytes.try_into().ok()?)),
            ("b", &[bit]) => Value::Bool(bit != 0),
            ("i", bytes) if (1..=8).contains(&size) => Value::Int(sign(integer(bytes))),
            ("u", bytes) if (1..=8).contains(&size) => Value::Int(integer(bytes).try_into().ok()?),
            _ => return None,
        })
    }

    /// The first `count` of the bytes that `id` is.
    fn bytes(&self, id: Id, count: usize) -> Option<Cow<'a, [u8]>> {
        match self.get(id) {
            Value::Bytes(bytes) => bytes.get(..count).map(Cow::Borrowed),
            // Before protocol 3 Python 2 wrote bytes as text.
            Value::Str(text) => text.as_bytes().get(..count).map(Cow::Borrowed),
            // `_codecs.encode`: one byte per character.
            &Value::Call { args, .. } => {
                let characters = self.text(*self.tuple(args)?.first()?)?.chars().take(count);
                let bytes: Vec<u8> = characters.map(|c| u8::try_from(c).ok()).collect::<Option<_>>()?;
                (bytes.len() == count).then_some(Cow::Owned(bytes))
            }
            _ => None,
        }
    }
}

/// What is known of an array.
struct Array<'a> {
    axes: usize,
    /// The first element.
    element: Value<'a>,
}
