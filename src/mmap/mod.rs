//! The one place that maps files into memory.
//!
//! A mapped file is not this process's own: another may shorten it, and then reading the lost pages ends the process
//! with SIGBUS, or rewrite it in place, and then weights change under us. There are three ways to live with that:
//!
//! | | cost | if the file shrinks | if it is rewritten in place |
//! |---|---|---|---|
//! | [`open`], before [`guard`] | reads and keeps a copy: seconds and gigabytes for a large model | nothing | nothing |
//! | [`open`], after [`guard`] | none; pages are read when first used and shared by processes | the function given to `guard` ends the process with a message | other numbers |
//! | [`map`] | none | SIGBUS; the caller promised that it does not happen | as promised, it is not |
//!
//! Whoever replaces model files should do it by renaming, as [`WholeFile`](crate::whole_file::WholeFile) does: maps then
//! keep the old file.
#![allow(unsafe_code)]

#[cfg(unix)]
mod guard;
#[cfg(unix)]
mod ranges;

#[cfg(unix)]
pub use guard::{Interrupt, guard};

use crate::error::{Error, Result};
use memmap2::Mmap;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::ops::Deref;
use std::path::Path;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Where copies begin: at a multiple of this many bytes, as the format demands.
const ALIGN: usize = 64;

/// The bytes of a file, readable for as long as this lives. They begin on a 64-byte boundary.
pub struct FileBytes(Bytes);

enum Bytes {
    #[cfg(unix)]
    Mapped(Guarded),
    Copied(Copied),
}

/// A map that the signal handler knows.
#[cfg(unix)]
struct Guarded {
    // Unregistered before it is unmapped: fields drop in order.
    _registered: ranges::Registered,
    map: Mmap,
}

/// A copy of a file.
struct Copied {
    blocks: Vec<Block>,
    len: usize,
}

#[derive(Clone, FromBytes, IntoBytes, Immutable)]
#[repr(C, align(64))]
struct Block([u8; ALIGN]);

/// The bytes of the file at `path`: mapped read-only in a process that called [`guard`], a copy otherwise.
///
/// # Errors
/// [`Error::Io`] if the file cannot be opened, read or mapped.
pub fn open(path: &Path) -> Result<FileBytes> {
    #[cfg(unix)]
    if guard::active() {
        let file = File::open(path).map_err(Error::io("open", path))?;
        // SAFETY: the map is private to this process and read-only. If the file shrinks, the thread that reads a lost
        // page never goes on (`guard`). If it is rewritten in place, numbers change: every element type that is viewed
        // in a map is valid for any bits, and lengths, offsets and names were copied out and checked when it was
        // opened, so no reference's validity depends on the contents.
        let map = unsafe { Mmap::map(&file) }.map_err(Error::io("map", path))?;
        let registered = ranges::register(map.as_ptr().addr(), map.len(), path);
        return Ok(FileBytes(Bytes::Mapped(Guarded { _registered: registered, map })));
    }
    copy(path).map(|copy| FileBytes(Bytes::Copied(copy))).map_err(Error::io("read", path))
}

/// Maps the file at `path` read-only.
///
/// # Errors
/// [`Error::Io`] if the file cannot be opened or mapped.
///
/// # Safety
/// While the map lives, no process shortens the file or writes into it; renaming another file over it and removing it
/// are harmless.
pub unsafe fn map(path: &Path) -> Result<Mmap> {
    let file = File::open(path).map_err(Error::io("open", path))?;
    // SAFETY: the caller promises that nobody changes what is mapped.
    unsafe { Mmap::map(&file) }.map_err(Error::io("map", path))
}

/// Maps a file that this process has just made, under a name that it gave to nobody.
pub(crate) fn map_own(path: &Path) -> Result<Mmap> {
    // SAFETY: nobody else knows the file, and this process does not change it while it is mapped.
    unsafe { map(path) }
}

/// A file's bytes at the time of the call, whatever happens to it later.
fn copy(path: &Path) -> std::io::Result<Copied> {
    let mut file = File::open(path)?;
    let expected = usize::try_from(file.metadata()?.len()).map_err(std::io::Error::other)?;
    let mut blocks = vec![Block([0; ALIGN]); expected.div_ceil(ALIGN)];
    let mut len = 0;
    loop {
        let rest = &mut blocks.as_mut_slice().as_mut_bytes()[len..];
        if rest.is_empty() {
            // The file may have grown, or be one that does not tell its length.
            let mut more = [0; ALIGN];
            match file.read(&mut more)? {
                0 => return Ok(Copied { blocks, len }),
                n => {
                    blocks.push(Block(more));
                    len += n;
                }
            }
            continue;
        }
        match file.read(rest)? {
            0 => return Ok(Copied { blocks, len }),
            n => len += n,
        }
    }
}

impl Deref for FileBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            #[cfg(unix)]
            Bytes::Mapped(guarded) => &guarded.map,
            Bytes::Copied(copied) => &copied.blocks.as_slice().as_bytes()[..copied.len],
        }
    }
}

impl fmt::Debug for FileBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = match &self.0 {
            #[cfg(unix)]
            Bytes::Mapped(_) => "mapped",
            Bytes::Copied(_) => "copied",
        };
        write!(f, "{} bytes, {how}", self.len())
    }
}

impl AsRef<[u8]> for FileBytes {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_whole_and_aligned() {
        let path = std::env::temp_dir().join(format!("aquatint-copy-{}", std::process::id()));
        for len in [0, 1, 63, 64, 65, 100_000] {
            let bytes: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
            std::fs::write(&path, &bytes).expect("a temporary file");
            let read = open(&path).expect("the file");
            assert_eq!(*read, bytes);
            assert_eq!(read.as_ptr().addr() % ALIGN, 0);
            // A copy does not follow its file.
            std::fs::write(&path, b"shorter").expect("a temporary file");
            assert_eq!(*read, bytes);
        }
        std::fs::remove_file(&path).expect("it is there");
        // What does not tell its length is read to its end.
        assert!(open("/proc/self/status".as_ref()).is_ok_and(|read| read.is_empty() || read.len() > 100));
        assert!(open(&path).is_err());
    }
}
