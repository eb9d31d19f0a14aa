//! ARGS: what programs declare and what ops are given, as runs of words. Encode and decode side by side.
//!
//! The fields of an op are one word each, in the order in which the op shows them ([`Op::visit`]). Decoding is strict:
//! every word must have a meaning, and encoding what was understood must give the same words.

use super::tensor::Cursor;
use crate::error::{Error, Result};
use crate::program::shape::MAX_AXES;
use crate::program::{CurveAxis, Dim, Field, Input, InputKind, Numbered, Op, Phases, Tensor, Value, Visit};
use zerocopy::little_endian::U32;

/// Marks a symbolic axis; the other bits number it.
pub const SYMBOL: u32 = 1 << 31;
/// The symbolic axes, in the order of their numbers.
pub const SYMBOLS: [Dim; 6] = [Dim::Batch, Dim::Conditions, Dim::Height, Dim::Width, Dim::Tokens, Dim::Frames];
/// What a message adds where a later version may know more.
pub const NEWER: &str = "; use a newer aquatint";

/// The words of `op`: one for each field, without the zeros at the end.
pub fn encode_op(op: &Op) -> Vec<u32> {
    let (mut op, mut words) = (*op, Vec::new());
    op.visit(&mut |_: &'static str, field: Field<'_>| words.push(word_of(&field)));
    let used = words.iter().rposition(|&word| word != 0).map_or(0, |last| last + 1);
    words.truncate(used);
    words
}

fn word_of(field: &Field<'_>) -> u32 {
    // A number that does not fit becomes an absent one, which the checks that the writer ends with refuse.
    let present = |number: u32| number.wrapping_add(1);
    match field {
        Field::Value(value) | Field::Shape(value) => present(value.0),
        Field::OptionalValue(value) | Field::OptionalShape(value) => value.map_or(0, |value| present(value.0)),
        Field::Tensor(tensor) => present(tensor.0),
        Field::OptionalTensor(tensor) => tensor.map_or(0, |tensor| present(tensor.0)),
        Field::Number(number) => **number,
        Field::Float(float) => float.to_bits(),
        Field::Flag(flag) => u32::from(**flag),
        Field::Choice { number, .. } => **number,
    }
}

/// The names of an op's words.
fn names(op: &Op) -> Vec<&'static str> {
    let (mut op, mut names) = (*op, Vec::new());
    op.visit(&mut |name: &'static str, _: Field<'_>| names.push(name));
    names
}

/// The words of one node or program, with their place in ARGS.
pub struct Run<'a> {
    words: &'a [U32],
    first: usize,
    /// Whose they are, in messages.
    of: String,
}

impl<'a> Run<'a> {
    /// Takes the next `len` words of `args`, for `of`.
    pub fn take(args: &'a [U32], len: usize, of: String, cursor: &mut Cursor) -> Result<Self> {
        let first = cursor.words;
        match first.checked_add(len).and_then(|end| args.get(first..end)) {
            Some(words) => {
                cursor.words += len;
                Ok(Run { words, first, of })
            }
            None => {
                let got = format!("a section of {} words", args.len());
                Err(Error::format("ARGS", 4 * first as u64, format!("{of} words"), format!("{len} words"), got))
            }
        }
    }

    fn err<T>(&self, word: usize, what: &str, expected: String, got: String) -> Result<T> {
        let at = 4 * (self.first + word) as u64;
        Err(Error::format("ARGS", at, format!("{} {what}", self.of), expected, got))
    }

    /// Decodes the op that `blank` is one of. Values are below `own`, tensors below `n_tensors`.
    pub fn op(&self, blank: Op, own: usize, n_tensors: usize) -> Result<Op> {
        let mut op = blank;
        let mut reader = Reader { words: self.words, next: 0, own, n_tensors, fault: None };
        op.visit(&mut reader);
        if let Some(Fault { word, name, expected, got }) = reader.fault {
            return self.err(word, name, expected, got);
        }
        let (known, len) = (reader.next, self.words.len());
        if len > known {
            return self.err(known, "words", format!("at most {known}"), format!("{len}{NEWER}"));
        }
        if self.words.last().is_some_and(|last| last.get() == 0) {
            return self.err(len - 1, "last word", "no zero".into(), "0".into());
        }
        // Fields that mean nothing beside the others were not read, so they are not written either.
        let (again, names) = (encode_op(&op), names(&op));
        for (i, name) in names.into_iter().enumerate() {
            let (want, got) = (again.get(i).copied().unwrap_or(0), self.words.get(i).map_or(0, |w| w.get()));
            if want != got {
                return self.err(i, name, want.to_string(), got.to_string());
            }
        }
        Ok(op)
    }

    /// Decodes the declarations of `n` inputs, and where `n_phases` begin; there are none of the latter where there is one
    /// phase.
    pub fn declarations(&self, n: usize, n_phases: usize) -> Result<(Vec<Input>, Phases)> {
        let mut at = 0;
        let mut next = |what: &str| match self.words.get(at) {
            Some(word) => {
                at += 1;
                Ok((at - 1, word.get()))
            }
            None => self.err(at, what, "a word".into(), "none".into()),
        };
        let mut inputs = Vec::with_capacity(n);
        for i in 0..n {
            let (word, kind) = next(&format!("input {i} kind"))?;
            let Some(kind) = InputKind::of_number(kind) else {
                let expected = format!("0 to {}", InputKind::ALL.len() - 1);
                return self.err(word, &format!("input {i} kind"), expected, format!("{kind}{NEWER}"));
            };
            let (word, index) = next(&format!("input {i} index"))?;
            if index != 0 {
                return self.err(word, &format!("input {i} index"), "0".into(), format!("{index}{NEWER}"));
            }
            let (word, rank) = next(&format!("input {i} axes"))?;
            if !(1..=MAX_AXES as u32).contains(&rank) {
                return self.err(word, &format!("input {i} axes"), format!("1 to {MAX_AXES}"), rank.to_string());
            }
            let mut dims = Vec::with_capacity(rank as usize);
            for axis in 0..rank {
                let (word, code) = next(&format!("input {i} axis {axis}"))?;
                let Some(dim) = dim_of(code) else {
                    let expected = "a length or a known symbol".into();
                    return self.err(word, &format!("input {i} axis {axis}"), expected, format!("{code:#x}{NEWER}"));
                };
                dims.push(dim);
            }
            inputs.push(Input { kind, dims });
        }
        let mut phases = Phases::default();
        if n_phases > 0 {
            let (word, axis) = next("axis of phases")?;
            let Some(axis) = CurveAxis::of_number(axis) else {
                let expected = format!("0 to {}", CurveAxis::ALL.len() - 1);
                return self.err(word, "axis of phases", expected, format!("{axis}{NEWER}"));
            };
            phases.axis = axis;
            for phase in 0..n_phases {
                let (word, bits) = next(&format!("phase {phase}"))?;
                let (start, before) = (f32::from_bits(bits), phases.starts.last().copied());
                if !start.is_finite() || before.is_some_and(|before| start <= before) {
                    let expected = before.map_or("a finite start".into(), |before| format!("a start after {before}"));
                    return self.err(word, &format!("phase {phase}"), expected, start.to_string());
                }
                phases.starts.push(start);
            }
        }
        match self.words.len() {
            len if len == at => Ok((inputs, phases)),
            len => self.err(at, "words", format!("{at}, the end of the last input or phase"), len.to_string()),
        }
    }
}

/// The words of where phases begin: the axis, and the positions; none where there is one phase.
pub fn encode_phases(axis: CurveAxis, starts: &[f32]) -> Vec<u32> {
    let head = (!starts.is_empty()).then_some(axis.number());
    head.into_iter().chain(starts.iter().map(|start| start.to_bits())).collect()
}

/// The words of declared inputs: for each its kind, its index among those of its kind, the number of its axes, and the
/// axes.
pub fn encode_inputs(inputs: &[Input]) -> Vec<u32> {
    let mut words = Vec::new();
    for input in inputs {
        words.extend([input.kind.number(), 0, input.dims.len() as u32]);
        words.extend(input.dims.iter().map(|&dim| dim_code(dim)));
    }
    words
}

fn dim_code(dim: Dim) -> u32 {
    let symbol = |dim| SYMBOLS.iter().position(|&symbol| symbol == dim).map_or(u32::MAX, |i| SYMBOL | i as u32);
    match dim {
        Dim::Fixed(n) => n,
        Dim::Batch | Dim::Conditions | Dim::Height | Dim::Width | Dim::Tokens | Dim::Frames => symbol(dim),
    }
}

fn dim_of(code: u32) -> Option<Dim> {
    if code & SYMBOL == 0 { Some(Dim::Fixed(code)) } else { SYMBOLS.get((code ^ SYMBOL) as usize).copied() }
}

/// Fills the fields of an op from words; words that are not there are 0.
struct Reader<'a> {
    words: &'a [U32],
    next: usize,
    own: usize,
    n_tensors: usize,
    /// The first field that could not be understood.
    fault: Option<Fault>,
}

struct Fault {
    word: usize,
    name: &'static str,
    expected: String,
    got: String,
}

impl Reader<'_> {
    /// The number that a word tells, if it is one below `below`.
    fn below(&self, word: u32, below: usize, what: &str) -> Result<u32, (String, String)> {
        let expected = || format!("{what} below {below}");
        match word.checked_sub(1) {
            None => Err((expected(), "none".into())),
            Some(number) if (number as usize) < below => Ok(number),
            Some(number) => Err((expected(), number.to_string())),
        }
    }

    fn read(&self, word: u32, field: Field<'_>) -> Result<(), (String, String)> {
        let value = |word| self.below(word, self.own, "a value").map(Value);
        let tensor = |word| self.below(word, self.n_tensors, "a tensor").map(Tensor);
        match field {
            Field::Value(to) | Field::Shape(to) => *to = value(word)?,
            Field::OptionalValue(to) | Field::OptionalShape(to) => {
                *to = if word == 0 { None } else { Some(value(word)?) }
            }
            Field::Tensor(to) => *to = tensor(word)?,
            Field::OptionalTensor(to) => *to = if word == 0 { None } else { Some(tensor(word)?) },
            Field::Number(to) => *to = word,
            Field::Float(to) => *to = f32::from_bits(word),
            Field::Flag(to) if word <= 1 => *to = word == 1,
            Field::Flag(_) => return Err(("0 or 1".into(), word.to_string())),
            Field::Choice { number, below, .. } if word < below => *number = word,
            Field::Choice { below, .. } => return Err((format!("0 to {}", below - 1), format!("{word}{NEWER}"))),
        }
        Ok(())
    }
}

impl Visit for Reader<'_> {
    fn field(&mut self, name: &'static str, field: Field<'_>) {
        let word = self.next;
        self.next += 1;
        let bits = self.words.get(word).map_or(0, |w| w.get());
        if let Err((expected, got)) = self.read(bits, field)
            && self.fault.is_none()
        {
            self.fault = Some(Fault { word, name, expected, got });
        }
    }
}
