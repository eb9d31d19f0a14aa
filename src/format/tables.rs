//! The specification's tables of numbers, printed from the code into `tables.md`.

use super::header::SectionKind;
use super::program::WIDE;
use super::tensor::Storage;
use super::words::{SYMBOL, SYMBOLS};
use super::{MAX_INPUTS, MAX_META, MAX_NAME, MAX_NODES, MAX_PHASED_NODES, MAX_PROGRAMS, MAX_TENSORS, MAX_WEIGHTS};
use crate::codec::Grain;
use crate::program::{
    Act, ConvStride, CurveAxis, Dim, Field, Grid, InputKind, MAX_PHASES, Numbered, Op, QuantizeGrain, Range, Reach,
    Resampling, Role, shape::MAX_AXES,
};
use std::fmt::Write;

/// A table of everything that a number can mean.
fn numbers<T: Numbered>() -> String {
    let mut text = format!("## {}\n\n| number | name | meaning |\n|---|---|---|\n", T::TITLE);
    for &item in T::LIST {
        let meaning = item.meaning().trim().replace('|', "\\|");
        // Links of the source mean nothing outside of it.
        let meaning = meaning.replace(['[', ']'], "");
        writeln!(text, "| {} | {} | {meaning} |", item.number(), item.name()).unwrap();
    }
    text + "\n"
}

fn limits() -> String {
    let rows = [
        (MAX_TENSORS, "tensors in a file"),
        (MAX_WEIGHTS, "elements of a tensor"),
        (MAX_PROGRAMS, "programs in a file"),
        (MAX_INPUTS, "inputs of a program"),
        (MAX_AXES, "axes of an input or a tensor"),
        (MAX_NODES, "nodes of all programs together, variants included"),
        (MAX_PHASES, "phases of a program"),
        (MAX_PHASED_NODES, "nodes of a program with phases, each counted once per phase"),
        (MAX_NAME, "bytes of a name or module path, at least 1"),
        (MAX_META, "bytes of META"),
    ];
    let mut text = "## Limits\n\n| most | what |\n|---|---|\n".to_owned();
    for (most, what) in rows {
        writeln!(text, "| {most} | {what} |").unwrap();
    }
    text + "\n"
}

fn symbols() -> String {
    let mut text = "## Symbolic axes\n\n| word | axis |\n|---|---|\n".to_owned();
    for (i, dim) in SYMBOLS.into_iter().enumerate() {
        let meaning = match dim {
            Dim::Batch => "samples in the batch",
            Dim::Conditions => "distinct conditions (prompts or classes) in the batch",
            Dim::Height => "rows of the latents",
            Dim::Width => "columns of the latents",
            Dim::Tokens => "tokens of a prompt",
            Dim::Frames => "frames of a video",
            Dim::Fixed(_) => unreachable!("a length is no symbol"),
        };
        writeln!(text, "| {:#x} | {meaning} |", SYMBOL + i as u32).unwrap();
    }
    text + "\n"
}

/// What a word of an op holds.
fn kind(field: &Field<'_>) -> String {
    match field {
        Field::Value(_) => "value".into(),
        Field::OptionalValue(_) => "value or none".into(),
        Field::Shape(_) => "value, for its shape".into(),
        Field::OptionalShape(_) => "value, for its shape, or none".into(),
        Field::Tensor(_) => "tensor".into(),
        Field::OptionalTensor(_) => "tensor or none".into(),
        Field::Number(_) => "number".into(),
        Field::Float(_) => "float".into(),
        Field::Flag(_) => "flag".into(),
        Field::Choice { title, .. } => title.to_string(),
    }
}

fn ops() -> String {
    let mut text = "## Ops\n\n| number | op | words, in order |\n|---|---|---|\n".to_owned();
    for mut op in Op::blanks() {
        let (code, name) = (op.code(), op.name());
        let mut words = Vec::new();
        op.visit(&mut |name: &'static str, field: Field<'_>| words.push(format!("*{name}*: {}", kind(&field))));
        writeln!(text, "| {code} | {name} | {} |", words.join("; ")).unwrap();
    }
    text + "\n"
}

fn flags() -> String {
    format!(
        "## Flags of a node\n\n| bit | meaning |\n|---|---|\n| {WIDE:#x} | wide: the result is kept in 32 bits |\n\n"
    )
}

fn text() -> String {
    let mut text = "<!-- Printed from the code: see tables.rs. -->\n\n".to_owned();
    text += &limits();
    text += &numbers::<SectionKind>();
    text += &numbers::<Storage>();
    text += &numbers::<Grain>();
    text += &numbers::<Role>();
    text += &numbers::<InputKind>();
    text += &symbols();
    text += &flags();
    text += &ops();
    text += &numbers::<Act>();
    text += &numbers::<ConvStride>();
    text += &numbers::<Resampling>();
    text += &numbers::<QuantizeGrain>();
    text += &numbers::<Range>();
    text += &numbers::<Reach>();
    text += &numbers::<Grid>();
    text += &numbers::<CurveAxis>();
    text.trim_end().to_owned() + "\n"
}

#[test]
fn the_specification_has_the_numbers_of_the_code() {
    let (kept, wanted) = (include_str!("tables.md"), text());
    if kept == wanted {
        return;
    }
    let path = std::env::temp_dir().join("aquatint-tables.md");
    std::fs::write(&path, &wanted).expect("the temporary directory takes files");
    let line = kept.lines().zip(wanted.lines()).position(|(kept, wanted)| kept != wanted);
    let line = line.unwrap_or(kept.lines().count().min(wanted.lines().count())) + 1;
    panic!("src/format/tables.md differs from line {line}; if that is meant, copy {} over it", path.display());
}

#[test]
fn numbers_are_those_of_their_places() {
    fn check<T: Numbered + PartialEq + std::fmt::Debug>(first: u32) {
        for (i, &item) in T::LIST.iter().enumerate() {
            assert_eq!((item.number(), T::of_number(item.number())), (first + i as u32, Some(item)), "{}", T::TITLE);
        }
        assert_eq!(T::of_number(first + T::LIST.len() as u32), None);
    }
    check::<SectionKind>(1);
    check::<Storage>(0);
    check::<Grain>(0);
    check::<Role>(0);
    check::<InputKind>(0);
    // The numbers of choices of ops are checked by their count.
    check::<Act>(0);
    check::<ConvStride>(0);
    check::<Resampling>(0);
    check::<QuantizeGrain>(0);
    check::<Range>(0);
    check::<Reach>(0);
    check::<Grid>(0);
    check::<CurveAxis>(0);
}
