//! The packed file, `.aqt`.
//!
//! Everything is little-endian. The file is a header, a section table, and sections; sections start on 4096-byte
//! boundaries and tensors on 64-byte boundaries, so a mapped file is used where it lies.
//!
//! ```text
//! offset 0     Header (64 bytes)          magic, version, required features, section count, file size, root hash
//! offset 64    SectionRecord (48 bytes)*  kind, offset, bytes, hash; in the order below, each kind at most once
//! ...          zeros up to 4096
//! DATA         tensors, one after another, zeros between them up to 64 bytes    (see codec::layout)
//! TENSORS      TensorRecord (64 bytes)*   name, element kind, axes, place in DATA
//! PROGRAMS     ProgramRecord (128 bytes)*  role, declared inputs, run of nodes, output
//! NODES        NodeRecord (80 bytes)*     op, operands, tensors, attributes, module path
//! STRINGS      UTF-8, every name and path in the order of the records that use it
//! META         JSON: pipeline and sampler settings, quantization report, provenance (see meta)
//! ```
//!
//! * Sections follow each other with no gap but the padding to 4096, in ascending order of kind; the file ends with
//!   the last section. Tensors fill DATA in table order, strings fill STRINGS in use order. Nothing is left over and
//!   nothing overlaps, so no byte of the file has two readings or none.
//! * A tensor of kind *bytes* is a file that a model brings along as it is: `tokenizer/tokenizer.json` is what makes
//!   tokens of prompts ([`crate::text`]). It is found by its name, which no other has, and no program may use it.
//! * Reserved fields and padding are zero. An unknown section, feature, op or enum value is refused.
//! * `hash` of a section is the xxh3-128 of its bytes. The **root hash** in the header is the xxh3-128 of the header
//!   (with the hash field zero) and the section table: it names the whole file and is checked when it is opened.
//! * [`Packed::new`] checks structure: header, table, every record, every offset, and the hashes of all sections but
//!   DATA. It reads no weight. [`Packed::verify`] also checks the hash of DATA, that all padding is zero, all numbers
//!   are finite, all tap sums are right and every tokenizer is there, and runs the shape rules over every program.
//!
//! Versions: readers accept exactly [`VERSION`]. A change that old readers could misread gets a new version; one that
//! they must refuse only when it is used gets a bit in `required_features`.

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
pub use tensor::{Storage, TensorInfo, TensorKind, TensorRecord};
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
/// Most bytes of one name or module path.
pub const MAX_NAME: usize = 255;
/// Most bytes of META.
pub const MAX_META: usize = 64 << 20;
/// Most weights in one tensor.
pub const MAX_WEIGHTS: usize = 1 << 36;
