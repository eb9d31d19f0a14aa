//! The packed file, `.aqt`.
//!
//! Everything is little-endian. The file is a header, a section table, and sections; sections start on 4096-byte
//! boundaries and tensors on 64-byte boundaries, so a mapped file is used where it lies.
//!
//! ```text
//! offset 0     Header (64 bytes)          magic, version, required features, section count, file size, root hash
//! offset 64    SectionRecord (48 bytes)*  kind, offset, bytes, hash; each kind once, in the order below
//! ...          zeros up to 4096
//! DATA         tensors, one after another, zeros between them up to 64 bytes    (see codec::layout)
//! TENSORS      TensorRecord (64 bytes)*   name, element kind, axes, place in DATA
//! PROGRAMS     ProgramRecord (32 bytes)*  role, counts of inputs and nodes, output
//! NODES        NodeRecord (16 bytes)*     op, flags, counts of its words and of the bytes of its module path
//! ARGS         u32*                       what programs declare and what ops are given, as words
//! STRINGS      UTF-8                      names of tensors, then module paths of nodes
//! META         JSON                       pipeline and sampler settings, quantization report, provenance (see meta)
//! ```
//!
//! * Sections follow each other with no gap but the padding to 4096, in ascending order of kind; the file ends with the
//!   last section. Tensors fill DATA in table order. Strings fill STRINGS in the order in which they are used: the
//!   names of all tensors, then the paths of all nodes. Words fill ARGS likewise: of each program its inputs, then its
//!   nodes. How long a string or a run of words is stands in the record that uses it. Nothing is left over and nothing
//!   overlaps, so no byte of the file has two readings or none. Strings have no control characters.
//! * A tensor of kind *bytes* is a file that a model brings along as it is: `tokenizer/tokenizer.json` is what makes
//!   tokens of prompts ([`crate::text`]). It is found by its name, which no other has, and no program may use it.
//! * Reserved fields and padding are zero. An unknown section, feature, flag, op or number is refused.
//! * `hash` of a section is the xxh3-128 of its bytes. The **root hash** in the header is the xxh3-128 of the header
//!   (with the hash field zero) and the section table: it names the whole file and is checked when it is opened.
//! * [`Packed::new`] checks structure: header, table, every record, every word, every offset, and the hashes of all
//!   sections but DATA. It reads no weight. [`Packed::verify`] also checks the hash of DATA, that all padding is zero,
//!   all numbers are finite, all tap sums are right and every tokenizer is there, and runs the shape rules over every
//!   program.
//!
//! # Words
//!
//! *Inputs* of a program are one run of words, as many as its record says. Each input has its kind; its index among the
//! inputs of its kind, which is 0 as no program has two of a kind yet; the number of its axes; and a word for each
//! axis, outermost first: a length, or `0x80000000` and the number of a symbol, to be filled in when the program is
//! bound.
//!
//! Of a program with *phases*, words that say when they begin follow: the axis from its table, and the bits of a float per
//! phase, ascending.
//!
//! *Values* of a program are numbered: its inputs from 0, then the results of its nodes, in order. A node uses values
//! before its own only.
//!
//! *Ops* have a run of words too. What each word of an op is says the table of ops below, and what it means the op's
//! struct, of the same name and the same fields, in [`crate::program`]:
//!
//! * *value* and *tensor*: the number of a value of the program or of a tensor of the file, plus 1. Where there may be
//!   *none*, that is 0.
//! * *number*: itself. *float*: the bits of an IEEE 754 binary32. *flag*: 0 or 1.
//! * Anything else: a number from the table of this name.
//! * What belongs to something absent is 0: the first column of a gate that is not there, and grain, range, curve and top
//!   where the bits of a quantization are 0, which says that the result is not quantized.
//!
//! *Variants* follow the node that they are of in NODES: what it is in the phases whose bits they have, bit i for phase i. A
//! variant makes the same value, has words like any node, and neither flags nor a path.
//!
//! A word that is not there is 0, and zeros at the end of a run are not stored: the last word of a run is never 0, and
//! a run may be empty. So ops can be given more attributes without another version of the format, as long as 0 is what
//! the op did before: a longer run than a reader knows is refused by it, and older files mean what they meant.
//!
//! # Versions
//!
//! Readers accept exactly [`VERSION`]. A change that old readers could misread gets a new version; one that they must
//! refuse only when it is used is a new number, a longer run of words or a bit in `required_features`. Version 1 had
//! its words in the records of programs and nodes, and is no longer read: such models are packed again.
#![doc = include_str!("tables.md")]

mod header;
pub mod meta;
mod program;
mod read;
#[cfg(test)]
mod tables;
mod tensor;
mod words;
mod write;

pub use header::{Header, SectionKind, SectionRecord};
pub use meta::Meta;
pub use program::{NodeRecord, ProgramRecord};
pub use read::{Packed, TensorView};
pub use tensor::{Storage, TensorInfo, TensorKind, TensorRecord, taps};
pub use write::{TensorSpec, Writer};

/// The first eight bytes of every file. The high bit, the line ends and the end-of-file byte reveal text transfers.
pub const MAGIC: [u8; 8] = *b"\x89AQT\r\n\x1a\n";
/// The version this library reads and writes.
pub const VERSION: u32 = 2;
/// Alignment of sections.
pub const SECTION_ALIGN: u64 = 4096;
/// Most tensors in a file.
pub const MAX_TENSORS: usize = 1 << 16;
/// Most programs in a file.
pub const MAX_PROGRAMS: usize = 16;
/// Most inputs of a program.
pub const MAX_INPUTS: usize = 16;
/// Most nodes in all programs together. Planning memory takes time quadratic in it, so this also bounds what
/// a hostile file can cost; ops are coarse, and a few thousand make a large pipeline.
pub const MAX_NODES: usize = 1 << 14;
/// Most nodes of a program with phases, each counted once per phase: each phase is planned.
pub const MAX_PHASED_NODES: usize = 8 * MAX_NODES;
/// Most bytes of one name or module path.
pub const MAX_NAME: usize = 255;
/// Most bytes of META.
pub const MAX_META: usize = 64 << 20;
/// Most weights in one tensor.
pub const MAX_WEIGHTS: usize = 1 << 36;
