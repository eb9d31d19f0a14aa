//! The one place that maps a file into memory.
#![allow(unsafe_code)]

use crate::error::{Error, Result};
use memmap2::Mmap;
use std::fs::File;
use std::path::Path;

/// Maps `path` read-only.
///
/// If another process shortens the file while it is mapped, reading the lost pages ends this process with SIGBUS, and
/// if it rewrites the file in place, weights change under us: replace model files by renaming, as the packer does.
///
/// # Errors
/// [`Error::Io`] if the file cannot be opened or mapped.
pub fn map(path: &Path) -> Result<Mmap> {
    let file = File::open(path).map_err(Error::io("open", path))?;
    // SAFETY: the map is private to this process and read-only. Every element type that is later viewed in it
    // (integers and floats) is valid for any bits, so a concurrent change can give wrong numbers but no invalid value;
    // no reference's validity depends on the contents, since every length was copied out and checked when opened.
    unsafe { Mmap::map(&file) }.map_err(Error::io("map", path))
}
