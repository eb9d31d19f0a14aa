//! Numpy's `.npz`: a zip archive of one stored `.npy` file, which may be larger than 4 GiB; the bytes are those of `numpy.savez`.
//!
//! Sources: numpy's `numpy.lib.format` (version 1.0); PKWARE's APPNOTE 6.3.10, sections 4.3 and 4.5.3 (Zip64).

use crate::error::{Error, Result};
use crate::whole_file::WholeFile;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

/// The array's name, as numpy gives it.
const NAME: &[u8] = b"arr_0.npy";
/// 1980-01-01, as MS-DOS wrote days: an archive of equal contents is of equal bytes.
const DATE: u16 = 1 << 5 | 1;
/// Where the checksum stands in a local header.
const CHECKSUM_AT: u64 = 14;
/// In place of a size that an extra field holds.
const ELSEWHERE: [u8; 4] = [0xff; 4];

/// Writes bytes of axes `dims`, which come in `pieces`, as the u8 array `arr_0` to `path`.
///
/// # Errors
/// Those of a piece and of writing the file.
///
/// # Panics
/// If there are not as many bytes as `dims` say.
pub(super) fn write(path: &Path, dims: &[usize], pieces: impl Iterator<Item = Result<Vec<u8>>>) -> Result<()> {
    let head = npy_header(dims);
    let len = (head.len() + dims.iter().product::<usize>()) as u64;
    let mut file = WholeFile::create(path)?;
    let io = |e| Error::io("write", path)(e);
    let mut checksum = Checksum::new();
    let mut written = 0;
    let local = local_header(len, 0);
    file.write_all(&local).map_err(io)?;
    for piece in std::iter::once(Ok(head)).chain(pieces) {
        let piece = piece?;
        checksum.add(&piece);
        written += piece.len() as u64;
        file.write_all(&piece).map_err(io)?;
    }
    assert_eq!(written, len, "bytes of an array of {dims:?}");
    let checksum = checksum.value();
    let end = end_of_archive(len, local.len() as u64 + len, checksum);
    let closed = file
        .write_all(&end)
        .and_then(|()| file.seek(SeekFrom::Start(CHECKSUM_AT)))
        .and_then(|_| file.write_all(&checksum.to_le_bytes()));
    closed.map_err(io)?;
    file.commit()
}

/// What stands before the bytes of a u8 array of two axes or more in an `.npy` file.
fn npy_header(dims: &[usize]) -> Vec<u8> {
    let axes = dims.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
    let mut text = format!("{{'descr': '|u1', 'fortran_order': False, 'shape': ({axes}), }}");
    // Magic, version, length and text are a multiple of 64 bytes, the last of them a line feed.
    const BEFORE: usize = 10;
    let whole = (BEFORE + text.len() + 1).next_multiple_of(64);
    text.extend(std::iter::repeat_n(' ', whole - BEFORE - text.len() - 1));
    text.push('\n');
    let mut header = b"\x93NUMPY\x01\x00".to_vec();
    // Eight axes of 20 digits and the rest are far below 2^16.
    header.extend((text.len() as u16).to_le_bytes());
    header.extend(text.into_bytes());
    header
}

/// Version, flags, method, time, date and checksum, which both kinds of headers have; the size is in an extra field.
fn common(checksum: u32) -> Vec<u8> {
    let mut bytes: Vec<u8> = [45u16, 0, 0, 0, DATE].iter().flat_map(|word| word.to_le_bytes()).collect();
    bytes.extend(checksum.to_le_bytes());
    bytes.extend([ELSEWHERE, ELSEWHERE].concat());
    bytes.extend((NAME.len() as u16).to_le_bytes());
    bytes
}

/// The extra field with the sizes of a stored file of `len` bytes.
fn extra(len: u64) -> Vec<u8> {
    let sizes = [len, len].map(u64::to_le_bytes);
    [&[1, 0, 16, 0], sizes.as_flattened()].concat()
}

fn local_header(len: u64, checksum: u32) -> Vec<u8> {
    let extra = extra(len);
    let mut bytes = b"PK\x03\x04".to_vec();
    bytes.extend(common(checksum));
    bytes.extend((extra.len() as u16).to_le_bytes());
    bytes.extend([NAME, &extra].concat());
    bytes
}

/// The directory of the archive, which begins at `at`, and its ends.
fn end_of_archive(len: u64, at: u64, checksum: u32) -> Vec<u8> {
    let extra = extra(len);
    // Made by version 4.5 on Unix.
    let mut directory = b"PK\x01\x02\x2d\x03".to_vec();
    directory.extend(common(checksum));
    directory.extend((extra.len() as u16).to_le_bytes());
    // No comment, first disk, a file of bytes, which its owner may read and write, at the archive's beginning.
    directory.extend([0; 6]);
    directory.extend((0o600u32 << 16).to_le_bytes());
    directory.extend([0; 4]);
    directory.extend([NAME, &extra].concat());
    let size = directory.len() as u64;

    let mut bytes = directory;
    bytes.extend(b"PK\x06\x06");
    bytes.extend(44u64.to_le_bytes());
    bytes.extend([45u16, 45].iter().flat_map(|word| word.to_le_bytes()));
    bytes.extend([0; 8]);
    bytes.extend([1, 1, size, at].iter().flat_map(|word: &u64| word.to_le_bytes()));
    bytes.extend(b"PK\x06\x07\0\0\0\0");
    bytes.extend((at + size).to_le_bytes());
    bytes.extend(1u32.to_le_bytes());
    bytes.extend(b"PK\x05\x06\0\0\0\0\x01\0\x01\0");
    // Saturated where they do not fit; what was written above then counts.
    bytes.extend([size, at].iter().flat_map(|&n| u32::try_from(n).unwrap_or(u32::MAX).to_le_bytes()));
    bytes.extend([0; 2]);
    bytes
}

/// CRC-32 as zip has it (ISO 3309), a byte at a time.
struct Checksum(u32);

impl Checksum {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut i = 0;
        while i < 256 {
            let (mut value, mut bit) = (i as u32, 0);
            while bit < 8 {
                value = (value >> 1) ^ if value & 1 == 1 { 0xedb8_8320 } else { 0 };
                bit += 1;
            }
            table[i] = value;
            i += 1;
        }
        table
    };

    fn new() -> Self {
        Checksum(!0)
    }

    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 >> 8) ^ Self::TABLE[(self.0 as u8 ^ byte) as usize];
        }
    }

    fn value(&self) -> u32 {
        !self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The check value of CRC-32/ISO-HDLC in every catalogue of checksums.
    #[test]
    fn the_checksum_is_zips() {
        let mut checksum = Checksum::new();
        checksum.add(b"12345");
        checksum.add(b"6789");
        assert_eq!(checksum.value(), 0xcbf4_3926);
    }

    #[test]
    fn archives_are_those_of_numpy() {
        let path = std::env::temp_dir().join(format!("aquatint-samples-{}.npz", std::process::id()));
        let bytes: Vec<u8> = (0..2 * 3 * 5 * 3).map(|i| (7 * i % 256) as u8).collect();
        let pieces = bytes.chunks(40).map(|piece| Ok(piece.to_vec()));
        write(&path, &[2, 3, 5, 3], pieces).unwrap();
        let written = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(written, include_bytes!("../../tests/fixtures/samples.npz"));
    }

    #[test]
    fn headers_of_arrays_are_whole_lines() {
        for dims in [&[3, 8, 8, 3][..], &[50_000, 256, 256, 3], &[1; 5]] {
            let header = npy_header(dims);
            assert!(header.len().is_multiple_of(64) && header.ends_with(b"\n"));
            assert_eq!(usize::from(u16::from_le_bytes([header[8], header[9]])), header.len() - 10);
        }
    }
}
