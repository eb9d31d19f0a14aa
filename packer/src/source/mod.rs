//! Reading models as others publish them: directories, weights, configurations.
//!
//! [`layout`] knows how published files name the tensors of a network, so that nothing after it needs to; what a network
//! computes is known to [`crate::lower`] only. Every file that is read is recorded, for its size and hash.

pub mod checkpoint;
pub mod diffusers;
pub mod donors;
mod float8;
pub mod layout;
mod numbers;
pub mod pickle;
pub mod safetensors;
pub mod settings;
pub mod text;
pub mod tokenizer;
pub mod torch;
pub mod view;
mod weight_files;

pub use checkpoint::Checkpoint;
pub use numbers::first_non_finite;

use aquatint::error::{Error, Result};
use aquatint::raw::format::meta::SourceMeta;
use aquatint::raw::mmap::FileBytes;
use serde::de::DeserializeOwned;
use std::path::Path;
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_128;

/// A file that was read.
#[derive(Clone, Debug)]
pub struct SourceFile {
    /// Path below the model directory.
    pub file: String,
    /// Size.
    pub bytes: u64,
    /// Whether it holds weights.
    pub weights: bool,
    hash: Hash,
}

/// The hash of a file, or what it is of.
#[derive(Clone, Debug)]
enum Hash {
    Known(u128),
    Of(Arc<FileBytes>),
}

impl SourceFile {
    /// The record of a file without weights whose contents are `bytes`; `file` is its path below the model directory.
    pub fn of(file: String, bytes: &[u8]) -> Self {
        SourceFile { file, bytes: bytes.len() as u64, weights: false, hash: Hash::Known(xxh3_128(bytes)) }
    }

    /// The record of a mapped file of weights. They are not read before [`meta`](Self::meta) wants their hash, so that what is
    /// wrong with a model is told at once.
    pub fn of_weights(file: String, map: Arc<FileBytes>) -> Self {
        SourceFile { file, bytes: map.len() as u64, weights: true, hash: Hash::Of(map) }
    }

    /// Path, size and hash, for which all of the file is read.
    pub fn meta(&self) -> SourceMeta {
        let hash = match &self.hash {
            Hash::Known(hash) => *hash,
            Hash::Of(map) => xxh3_128(map),
        };
        SourceMeta { file: self.file.clone(), bytes: self.bytes, xxh3: format!("{hash:032x}") }
    }
}

/// Opens a checkpoint that is one file (`.ckpt`, `.pth`, `.pt`, `.bin`, `.safetensors`), whatever it is called; appends
/// it to `sources`.
///
/// # Errors
/// As for [`Checkpoint::open_file`]: if the file cannot be read, or is of no known format.
pub fn open_checkpoint(path: &Path, sources: &mut Vec<SourceFile>) -> Result<Checkpoint> {
    Checkpoint::open_file(path, sources)
}

/// Reads `root/relative` as JSON and records it.
///
/// # Errors
/// [`Error::Io`] if it cannot be read; [`Error::Request`] if it is not JSON of the right form.
pub fn read_json<T: DeserializeOwned>(root: &Path, relative: &str, sources: &mut Vec<SourceFile>) -> Result<T> {
    let path = root.join(relative);
    let bytes = std::fs::read(&path).map_err(Error::io("read", &path))?;
    let place = || path.display().to_string();
    let text = text::decode(&bytes).map_err(|e| Error::request(place(), "a JSON object", e))?;
    let value = text::json(&text).map_err(|e| Error::request(place(), "a JSON object", e))?;
    sources.push(SourceFile::of(relative.to_owned(), &bytes));
    Ok(value)
}
