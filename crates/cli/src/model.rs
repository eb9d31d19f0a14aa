//! Finding the model: a file, or the one inside the binary.

use aquatint::raw::format::Packed;
use aquatint::raw::mmap::{self, FileBytes};
use aquatint::{Error, Result};
use std::path::Path;

/// Where the bytes of a model are.
pub enum Bytes {
    /// In a file.
    File(FileBytes),
    /// In the binary.
    Embedded(&'static [u8]),
}

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        match self {
            Bytes::File(bytes) => bytes,
            Bytes::Embedded(bytes) => bytes,
        }
    }
}

/// Opens the model at `path`, or the embedded one.
pub fn open(path: Option<&Path>) -> Result<Packed<Bytes>> {
    let Some(path) = path else { return Packed::new(Bytes::Embedded(aquatint::letters().into_bytes())) };
    if path.is_dir() {
        let expected = "a packed .aqt file";
        let got = format!("the directory {}; pack it first: packer {} -o model.aqt", path.display(), path.display());
        return Err(Error::request("model", expected, got));
    }
    Packed::new(Bytes::File(mmap::open(path)?)).map_err(|e| named(e, path))
}

/// `e` with the name of the file it is about.
pub fn named(e: Error, path: &Path) -> Error {
    match e {
        Error::Format { section, offset, what, expected, got } => {
            Error::Format { section, offset, what: format!("{}: {what}", path.display()), expected, got }
        }
        other => other,
    }
}

/// A name for the model, for people.
pub fn name(path: Option<&Path>) -> String {
    path.and_then(|p| p.file_stem()).map_or("glyphs (embedded)".into(), |s| s.to_string_lossy().into_owned())
}
