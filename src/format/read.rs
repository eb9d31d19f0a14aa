//! The reader: [`Packed::new`] for structure, [`Packed::verify`] for everything.

use super::header::{self, HEAD_BYTES, N_SECTIONS, SectionKind};
use super::program::{NodeRecord, ProgramRecord, decode_node, decode_program};
use super::tensor::{Cursor, TensorInfo, TensorKind, TensorRecord};
use super::{MAX_META, MAX_NODES, MAX_PROGRAMS, MAX_TENSORS, Meta};
use crate::codec::layout::{PackedMatrix, fault};
use crate::error::{Error, Result};
use crate::mmap::{self, FileBytes};
use crate::program::{Dims, Program, Role, shape};
use half::f16;
use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;
use xxhash_rust::xxh3::xxh3_128;
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned, little_endian::U32};

/// A packed model over bytes that live wherever `D` keeps them: a map, a `static`, an aligned buffer.
pub struct Packed<D> {
    bytes: D,
    data: Range<usize>,
    data_hash: u128,
    ranges: [Range<usize>; N_SECTIONS],
    root_hash: u128,
    tensors: Vec<TensorInfo>,
    programs: Vec<Program>,
    meta: Meta,
}

/// A tensor's elements, borrowed from the file.
#[derive(Clone, Copy, Debug)]
pub enum TensorView<'a> {
    /// Plain 32-bit floats.
    F32(&'a [f32]),
    /// Plain 16-bit floats.
    F16(&'a [f16]),
    /// Codes, codebooks and scales.
    Codes(PackedMatrix<'a>),
}

impl Packed<FileBytes> {
    /// Opens the packed model in the file `path` ([`mmap::open`] says at what cost).
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read; those of [`new`](Self::new), which then name the file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Packed::new(mmap::open(path)?).map_err(|e| match e {
            Error::Format { section, offset, what, expected, got } => {
                Error::Format { section, offset, what: format!("{}: {what}", path.display()), expected, got }
            }
            other => other,
        })
    }
}

impl<D: AsRef<[u8]>> Packed<D> {
    /// Opens a packed model: reads and checks header, tables, programs and META, and their hashes. Touches no weight,
    /// so the cost does not grow with the size of the model. Allocates no more than a small multiple of the tables.
    ///
    /// # Errors
    /// [`Error::Format`] names the first unsound field. The bytes must start on a 64-byte boundary.
    pub fn new(bytes: D) -> Result<Self> {
        let file = bytes.as_ref();
        if file.as_ptr().addr() % 64 != 0 {
            return Err(Error::format("header", 0u64, "address in memory", "a multiple of 64", "another"));
        }
        let sections = header::decode(file)?;
        for (i, kind) in SectionKind::ALL.into_iter().enumerate().skip(1) {
            let got = xxh3_128(&file[sections.ranges[i].clone()]);
            if got != sections.hashes[i] {
                let expected = format!("{:032x}", sections.hashes[i]);
                return Err(Error::format(
                    kind.name(),
                    0u64,
                    "hash",
                    expected,
                    format!("{got:032x}; the file is damaged"),
                ));
            }
        }
        let section = |kind: SectionKind| &file[sections.ranges[kind as usize - 1].clone()];
        let strings = section(SectionKind::Strings);
        let data = sections.ranges[0].clone();

        let records: &[TensorRecord] = table(section(SectionKind::Tensors), "TENSORS", MAX_TENSORS)?;
        let mut cursor = Cursor::default();
        let mut tensors = Vec::with_capacity(records.len());
        for (i, record) in records.iter().enumerate() {
            tensors.push(cursor.tensor(i, record, strings, data.len())?);
        }
        if cursor.data != data.len() as u64 {
            let expected = format!("{} bytes, the end of the last tensor", cursor.data);
            return Err(Error::format("DATA", cursor.data, "size", expected, data.len()));
        }

        let records: &[ProgramRecord] = table(section(SectionKind::Programs), "PROGRAMS", MAX_PROGRAMS)?;
        let nodes: &[NodeRecord] = table(section(SectionKind::Nodes), "NODES", MAX_NODES)?;
        let args: &[U32] = table(section(SectionKind::Args), "ARGS", usize::MAX)?;
        let programs = programs(records, nodes, (args, strings), tensors.len(), &mut cursor)?;
        if cursor.words != args.len() {
            return Err(Error::format("ARGS", 4 * cursor.words as u64, "word count", cursor.words, args.len()));
        }
        if cursor.strings != strings.len() {
            return Err(Error::format("STRINGS", cursor.strings as u64, "size", cursor.strings, strings.len()));
        }

        let json = section(SectionKind::Meta);
        if json.len() > MAX_META {
            return Err(Error::format("META", 0u64, "size", format!("at most {MAX_META}"), json.len()));
        }
        let meta: Meta = serde_json::from_slice(json)
            .map_err(|e| Error::format("META", at_line(json, &e), "JSON", "the fields of this version", e))?;
        let (ranges, data_hash, root_hash) = (sections.ranges, sections.hashes[0], sections.root_hash);
        Ok(Packed { bytes, data, data_hash, ranges, root_hash, tensors, programs, meta })
    }

    /// Checks everything that [`new`](Self::new) took on trust: the hash of every weight, that all padding is zero,
    /// that all numbers are finite, that tap sums are those of their codes, that files of bytes have names of their own
    /// and every tokenizer is one of them, and that every program obeys the shape rules at the model's own size.
    pub fn verify(&self) -> Result<()> {
        let file = self.bytes.as_ref();
        let got = xxh3_128(&file[self.data.clone()]);
        if got != self.data_hash {
            let expected = format!("{:032x}", self.data_hash);
            return Err(Error::format("DATA", 0u64, "hash", expected, format!("{got:032x}; the file is damaged")));
        }
        let mut end = HEAD_BYTES;
        for range in &self.ranges {
            if let Some(i) = file[end..range.start].iter().position(|&b| b != 0) {
                return Err(Error::format("padding", (end + i) as u64, "byte between sections", 0, file[end + i]));
            }
            end = range.end;
        }
        let data = &file[self.data.clone()];
        let mut end = 0;
        for info in &self.tensors {
            if let Some(i) = data[end..info.offset].iter().position(|&b| b != 0) {
                return Err(Error::format("DATA", (end + i) as u64, "byte between tensors", 0, data[end + i]));
            }
            end = info.offset + info.bytes;
            if info.kind == TensorKind::Bytes {
                continue;
            }
            let expected = match self.view(info) {
                TensorView::F32(x) => x.iter().any(|v| !v.is_finite()).then_some("finite numbers"),
                TensorView::F16(x) => x.iter().any(|v| !v.is_finite()).then_some("finite numbers"),
                TensorView::Codes(m) => fault(m.layout, &data[info.offset..end]),
            };
            if let Some(expected) = expected {
                return Err(Error::format("DATA", info.offset as u64, info.name.as_str(), expected, "others"));
            }
        }
        self.verify_files()?;
        let types: Vec<_> = self.tensors.iter().map(TensorInfo::ty).collect();
        let [height, width] = self.meta.pipeline.latent_size.map(|n| n as usize);
        let dims = Dims { height, width, frames: self.meta.pipeline.frames as usize, ..Dims::ONE };
        for program in &self.programs {
            shape::infer(program, &types, &dims)?;
        }
        Ok(())
    }

    /// Checks that each file of bytes can be told by its name, and that META names no tokenizer that is not there.
    fn verify_files(&self) -> Result<()> {
        let mut names = BTreeSet::new();
        for info in self.tensors.iter().filter(|t| t.kind == TensorKind::Bytes) {
            if !names.insert(info.name.as_str()) {
                let (what, offset) = (info.name.as_str(), info.offset as u64);
                return Err(Error::format("DATA", offset, what, "a file of bytes once", "another of that name"));
            }
        }
        let encoders = self.meta.pipeline.text.iter().flat_map(|text| &text.encoders);
        match encoders.map(|e| e.tokenizer.as_str()).find(|&name| !name.is_empty() && !names.contains(name)) {
            Some(name) => Err(Error::format("META", 0u64, "tokenizer", "a file of bytes in DATA", format!("{name:?}"))),
            None => Ok(()),
        }
    }

    /// Tensors, in file order.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// Elements of tensor `index`.
    ///
    /// # Panics
    /// If there is no such tensor, or it is [`TensorKind::Bytes`]. Programs of an opened file name only tensors that
    /// exist, and the shape rules refuse those that use bytes.
    pub fn tensor(&self, index: usize) -> TensorView<'_> {
        self.view(&self.tensors[index])
    }

    /// The file called `name` that the model brings along, such as `tokenizer/tokenizer.json`; none if there is no
    /// tensor of this name, or if it holds weights.
    pub fn bytes(&self, name: &str) -> Option<&[u8]> {
        let info = self.tensors.iter().find(|t| t.kind == TensorKind::Bytes && t.name == name)?;
        Some(self.stored(info))
    }

    fn stored(&self, info: &TensorInfo) -> &[u8] {
        &self.data()[info.offset..info.offset + info.bytes]
    }

    fn view(&self, info: &TensorInfo) -> TensorView<'_> {
        let bytes = self.stored(info);
        // `new` proved the length against the kind and axes, and the alignment: DATA starts on 4096, tensors on 64.
        let proof = "checked when opened";
        match info.kind {
            TensorKind::F32 => TensorView::F32(<[f32]>::ref_from_bytes(bytes).expect(proof)),
            TensorKind::F16 => TensorView::F16(<[f16]>::ref_from_bytes(bytes).expect(proof)),
            TensorKind::Codes { .. } => {
                let layout = info.layout().expect(proof);
                TensorView::Codes(PackedMatrix::new(layout, bytes).expect(proof))
            }
            TensorKind::Bytes => panic!("{} holds no weights", info.name),
        }
    }

    /// Programs.
    pub fn programs(&self) -> &[Program] {
        &self.programs
    }

    /// The program of `role`.
    ///
    /// # Errors
    /// [`Error::Request`] if the file has none.
    pub fn program(&self, role: Role) -> Result<&Program> {
        self.programs.iter().find(|p| p.role == role).ok_or_else(|| {
            let have: Vec<_> = self.programs.iter().map(|p| p.role.name()).collect();
            Error::request("this file", format!("a {} program", role.name()), have.join(", "))
        })
    }

    /// The same file with `programs` in place of its own, for tools that run what no file holds. Their tensors must be the file's;
    /// META and the hash stay what they are.
    pub fn with_programs(&self, programs: Vec<Program>) -> Packed<&[u8]> {
        Packed {
            bytes: self.bytes.as_ref(),
            data: self.data.clone(),
            data_hash: self.data_hash,
            ranges: self.ranges.clone(),
            root_hash: self.root_hash,
            tensors: self.tensors.clone(),
            programs,
            meta: self.meta.clone(),
        }
    }

    /// META.
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// The root hash: xxh3-128 of header and section table, which hold the hashes of everything else.
    pub fn hash(&self) -> u128 {
        self.root_hash
    }

    /// Bytes of all tensors.
    pub fn data_bytes(&self) -> usize {
        self.data.len()
    }

    /// The section that holds all tensors.
    pub fn data(&self) -> &[u8] {
        &self.bytes.as_ref()[self.data.clone()]
    }

    /// Gives back the bytes that it was opened over.
    pub fn into_bytes(self) -> D {
        self.bytes
    }

    /// The file itself.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.as_ref()
    }
}

/// Byte offset of a fault in `json`, which is told as a line and a column.
fn at_line(json: &[u8], e: &serde_json::Error) -> u64 {
    let lines = json.split_inclusive(|&b| b == b'\n').take(e.line().saturating_sub(1));
    (lines.map(<[u8]>::len).sum::<usize>() + e.column().saturating_sub(1)) as u64
}

/// Decodes all programs: their nodes follow each other in NODES, and each role is there once.
fn programs(
    records: &[ProgramRecord],
    nodes: &[NodeRecord],
    (args, strings): (&[U32], &[u8]),
    n_tensors: usize,
    cursor: &mut Cursor,
) -> Result<Vec<Program>> {
    let mut programs: Vec<Program> = Vec::with_capacity(records.len());
    let mut next_node = 0;
    for (i, record) in records.iter().enumerate() {
        let at = (i * size_of::<ProgramRecord>()) as u64;
        let (mut program, run) = decode_program(i, record, args, cursor)?;
        if run.start != next_node || run.end > nodes.len() {
            let expected = format!("nodes from {next_node}, at most {}", nodes.len());
            return Err(Error::format("PROGRAMS", at + 12, "node range", expected, format!("{run:?}")));
        }
        if programs.iter().any(|p| p.role == program.role) {
            return Err(Error::format("PROGRAMS", at, "role", "each role once", program.role.name()));
        }
        next_node = run.end;
        for index in run {
            decode_node(index, &nodes[index], &mut program, n_tensors, (args, strings), cursor)?;
        }
        if program.output.0 as usize >= program.n_values() {
            let got = format!("{} of {}", program.output.0, program.n_values());
            return Err(Error::format("PROGRAMS", at + 20, format!("program {i} output"), "one of its values", got));
        }
        programs.push(program);
    }
    if next_node != nodes.len() {
        let at = (next_node * size_of::<NodeRecord>()) as u64;
        return Err(Error::format("NODES", at, "node count", next_node, nodes.len()));
    }
    Ok(programs)
}

/// A section as a table of records.
fn table<'a, T: FromBytes + Immutable + KnownLayout + Unaligned>(
    bytes: &'a [u8],
    section: &'static str,
    max: usize,
) -> Result<&'a [T]> {
    let Ok(records) = <[T]>::ref_from_bytes(bytes) else {
        let expected = format!("a multiple of {}", size_of::<T>());
        return Err(Error::format(section, 0u64, "size", expected, bytes.len()));
    };
    if records.len() > max {
        return Err(Error::format(section, 0u64, "record count", format!("at most {max}"), records.len()));
    }
    Ok(records)
}
