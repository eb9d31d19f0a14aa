//! What `torch.save` writes: since torch 1.6 a zip archive, before that a sequence of pickles with raw storages.
//!
//! ```text
//! zip                                        legacy
//!   NAME/data.pkl     the object               pickle: magic number, version, system
//!   NAME/byteorder    "little"                 pickle: the object
//!   NAME/data/0       a storage                pickle: keys of the storages
//!   NAME/data/1       another                  per key: number of elements (8 bytes), elements
//! ```
//!
//! The object is read by [`read_objects`](super::pickle::read_objects), which describes calls instead of making them;
//! `tensors` understands the descriptions of tensors and leaves all others alone. Weights stay in the mapped file.

mod legacy;
mod tensors;
mod zip;

use super::pickle::PickleError;
use super::view::View;
use aquatint::error::{Error, Result};
use std::path::Path;

/// The tensors of a file.
#[derive(Debug)]
pub struct Contents {
    /// Tensors by name; every name occurs once.
    pub tensors: Vec<(String, View)>,
    /// Some of the objects that are not read, by name: what they are.
    pub objects: Vec<(String, String)>,
}

/// What is wrong with a file.
#[derive(Debug)]
struct Fault {
    /// Where: entry, byte offset, what is there.
    place: String,
    expected: String,
    got: String,
}

type Outcome<T> = Result<T, Fault>;

fn fault<T>(place: impl Into<String>, expected: impl Into<String>, got: impl Into<String>) -> Outcome<T> {
    Err(Fault { place: place.into(), expected: expected.into(), got: got.into() })
}

impl From<PickleError> for Fault {
    fn from(e: PickleError) -> Self {
        Fault { place: format!("byte {}: {}", e.offset, e.what), expected: e.expected, got: e.got }
    }
}

impl Fault {
    /// The same fault, of entry `entry`.
    fn inside(mut self, entry: &str) -> Self {
        self.place = format!("{entry}: {}", self.place);
        self
    }
}

/// All tensors in the file at `path`, whose contents are `bytes`.
///
/// # Errors
/// [`Error::Request`] naming file, place and remedy, if it is not of `torch.save`, damaged, or beyond a limit.
pub fn read(bytes: &[u8], path: &Path) -> Result<Contents> {
    let contents = if bytes.starts_with(b"PK\x03\x04") {
        zip::read(bytes)
    } else if bytes.starts_with(&legacy::MAGIC) {
        legacy::read(bytes)
    } else {
        fault("contents", "a whole safetensors file or what torch.save writes (zip or legacy)", other_kind(bytes))
    };
    contents.map_err(|e| Error::request(format!("{}: {}", path.display(), e.place), e.expected, e.got))
}

/// What a file that cannot be read seems to be.
fn other_kind(bytes: &[u8]) -> String {
    match bytes {
        [] => "an empty file".into(),
        _ if bytes.starts_with(b"version https://git-lfs") => "a Git LFS pointer; fetch the file it stands for".into(),
        _ if bytes.get(257..262) == Some(b"ustar") => {
            "a tar archive, of torch before 0.2 perhaps; load and save it with torch 1.6 or later".into()
        }
        [0x80, 2..=5, ..] => "another pickle; save the model's state_dict() with torch.save".into(),
        _ => format!("bytes {:02x?}...", &bytes[..bytes.len().min(8)]),
    }
}

/// `text` from the file, fit for one line of a message.
fn shown(text: &str) -> String {
    const LONGEST: usize = 80;
    let short: String = text.chars().take(LONGEST).collect();
    let rest = if short.len() < text.len() { "..." } else { "" };
    format!("{}{rest}", short.escape_debug())
}
