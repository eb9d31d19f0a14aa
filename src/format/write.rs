//! The streaming writer: tensors pass through to a temporary file; the target appears, whole, at the end.

use super::header::{self, HEAD_BYTES, N_SECTIONS, align_section};
use super::program::{encode_node, encode_program};
use super::tensor::{TensorInfo, TensorKind};
use super::{MAX_NAME, MAX_NODES, MAX_TENSORS, Meta, Packed};
use crate::codec::layout::BLOB_ALIGN;
use crate::error::{Error, Result};
use crate::program::Program;
use crate::whole_file::WholeFile;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::{Xxh3, xxh3_128};
use zerocopy::IntoBytes;

/// What a tensor is, before its place is known.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorSpec {
    /// The source checkpoint's name.
    pub name: String,
    /// Axes, outermost first.
    pub dims: Vec<usize>,
    /// Storage.
    pub kind: TensorKind,
}

/// Writes one packed file. Nothing appears at the target path before [`finish`](Self::finish) has succeeded; if the
/// writer is dropped earlier, for whatever reason, its temporary file is removed and an older target stays untouched.
pub struct Writer {
    out: WholeFile,
    target: PathBuf,
    tensors: Vec<TensorInfo>,
    data_bytes: usize,
    data_hash: Xxh3,
}

impl Writer {
    /// Starts a file that will appear at `target`.
    ///
    /// # Errors
    /// As those of [`WholeFile::create`].
    pub fn create(target: &Path) -> Result<Self> {
        let mut writer = Writer {
            out: WholeFile::create(target)?,
            target: target.to_owned(),
            tensors: Vec::new(),
            data_bytes: 0,
            data_hash: Xxh3::new(),
        };
        let start = align_section(HEAD_BYTES as u64).unwrap_or_default();
        writer.write_zeros(start as usize)?;
        Ok(writer)
    }

    /// Appends a tensor; returns its number.
    ///
    /// # Errors
    /// [`Error::Io`] if the disk is full or fails.
    ///
    /// # Panics
    /// If `bytes` is not as long as the kind and axes demand, or a limit of the format is passed: a bug of the caller.
    pub fn tensor(&mut self, spec: TensorSpec, bytes: &[u8]) -> Result<u32> {
        assert!(self.tensors.len() < MAX_TENSORS, "too many tensors");
        assert!((1..=MAX_NAME).contains(&spec.name.len()), "name of {} bytes", spec.name.len());
        let pad = self.data_bytes.next_multiple_of(BLOB_ALIGN) - self.data_bytes;
        let zeros = [0; BLOB_ALIGN];
        self.data(&zeros[..pad])?;
        let TensorSpec { name, dims, kind } = spec;
        let info = TensorInfo { name, dims, kind, offset: self.data_bytes, bytes: bytes.len() };
        assert_eq!(info.expected_bytes(), bytes.len(), "bytes of {}", info.name);
        self.data(bytes)?;
        self.tensors.push(info);
        Ok(self.tensors.len() as u32 - 1)
    }

    /// Appends a file that holds no weights, to be found with [`Packed::bytes`]; returns its number.
    ///
    /// # Errors
    /// [`Error::Io`] if the disk is full or fails.
    ///
    /// # Panics
    /// If there are no bytes, or a limit of the format is passed: a bug of the caller.
    pub fn bytes(&mut self, name: &str, bytes: &[u8]) -> Result<u32> {
        let spec = TensorSpec { name: name.to_owned(), dims: vec![bytes.len()], kind: TensorKind::Bytes };
        self.tensor(spec, bytes)
    }

    fn data(&mut self, bytes: &[u8]) -> Result<()> {
        self.write(bytes)?;
        self.data_hash.update(bytes);
        self.data_bytes += bytes.len();
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).map_err(Error::io("write", &self.target))
    }

    fn write_zeros(&mut self, n: usize) -> Result<()> {
        let zeros = [0; 4096];
        debug_assert!(n <= zeros.len());
        self.write(&zeros[..n])
    }

    /// Writes the tables, checks the whole file with the reader's own eyes, and moves it to its place.
    ///
    /// # Errors
    /// [`Error::Io`] if the disk is full or fails; [`Error::Shape`] or [`Error::Format`] if the programs are unsound.
    pub fn finish(self, programs: &[Program], meta: &Meta) -> Result<()> {
        self.finish_with(programs, meta, |_| Ok(()))
    }

    /// [`finish`](Self::finish) of a file that `prove` must find good, too, before it appears.
    ///
    /// # Errors
    /// Those of `finish` and of `prove`.
    pub fn finish_with(
        mut self,
        programs: &[Program],
        meta: &Meta,
        prove: impl FnOnce(&Packed<memmap2::Mmap>) -> Result<()>,
    ) -> Result<()> {
        let n_nodes: usize = programs.iter().map(|p| p.nodes.len() + p.phases.variants.len()).sum();
        assert!(n_nodes <= MAX_NODES, "{n_nodes} nodes");
        let mut strings = Vec::new();
        let mut tensors = Vec::new();
        for info in &self.tensors {
            tensors.extend_from_slice(info.encode().as_bytes());
            strings.extend_from_slice(info.name.as_bytes());
        }
        let (mut records, mut nodes, mut args) = (Vec::new(), Vec::new(), Vec::new());
        let mut push_args = |words: Vec<u32>| args.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        let mut first_node = 0;
        for program in programs {
            let (record, words) = encode_program(program, first_node);
            records.extend_from_slice(record.as_bytes());
            push_args(words);
            first_node += program.nodes.len() + program.phases.variants.len();
            for (i, node) in program.nodes.iter().enumerate() {
                for (record, words) in encode_node(program, i) {
                    nodes.extend_from_slice(record.as_bytes());
                    push_args(words);
                }
                strings.extend_from_slice(node.path.as_bytes());
            }
        }
        let json =
            serde_json::to_vec(meta).map_err(|e| Error::format("META", 0u64, "JSON", "values JSON can hold", e))?;

        let start = align_section(HEAD_BYTES as u64).unwrap_or_default();
        let mut at = start + self.data_bytes as u64;
        let mut sections: [_; N_SECTIONS] = std::array::from_fn(|_| (0..0, 0));
        sections[0] = (start..at, self.data_hash.digest128());
        for (i, bytes) in [tensors, records, nodes, args, strings, json].iter().enumerate() {
            let next = align_section(at).unwrap_or_default();
            self.write_zeros((next - at) as usize)?;
            self.write(bytes)?;
            at = next + bytes.len() as u64;
            sections[i + 1] = (next..at, xxh3_128(bytes));
        }
        let io = |e| Error::io("write", &self.target)(e);
        self.out.seek(SeekFrom::Start(0)).map_err(io)?;
        self.out.write_all(&header::encode(&sections)).map_err(io)?;
        self.out.sync()?;
        let packed = Packed::new(crate::mmap::map_own(self.out.temporary())?)?;
        packed.verify()?;
        prove(&packed)?;
        drop(packed);
        self.out.commit()
    }
}
