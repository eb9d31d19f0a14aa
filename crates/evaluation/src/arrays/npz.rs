//! The zip archive of `numpy.savez` and `numpy.savez_compressed`: entries `NAME.npy`, stored or deflated, also with the wide numbers
//! of zip64. Lengths and offsets are checked before they are used, contents against their check sums.

use super::Fault;
use flate2::read::DeflateDecoder;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::Read;

/// Bytes of the fixed parts of records, and their signatures.
const LOCAL: (usize, u32) = (30, 0x0403_4b50);
const CENTRAL: (usize, u32) = (46, 0x0201_4b50);
const END: (usize, u32) = (22, 0x0605_4b50);
const END_64: (usize, u32) = (56, 0x0606_4b50);
const LOCATOR_64: (usize, u32) = (20, 0x0706_4b50);
/// Bytes of the longest comment at the end.
const MOST_COMMENT: usize = 0xffff;

/// Bytes that numbers inflate to at most for each that is stored, beyond so many: a guard against small files that claim to be
/// enormous.
const MOST_RATIO: usize = 100;
const SMALL: usize = 1 << 20;

/// An archive.
pub(super) struct Npz<'a> {
    entries: BTreeMap<&'a str, Entry<'a>>,
}

struct Entry<'a> {
    packed: &'a [u8],
    deflated: bool,
    size: usize,
    check: u32,
}

impl<'a> Npz<'a> {
    /// The entries of an archive of these `bytes`; an error is what is wrong with it.
    pub fn new(bytes: &'a [u8]) -> Result<Self, String> {
        let last = bytes.len().saturating_sub(END.0);
        let ends = |&at: &usize| record(bytes, at, END).is_some();
        let end = (last.saturating_sub(MOST_COMMENT)..=last).rev().find(ends);
        let end = end.ok_or("no directory at its end; it is cut off")?;
        // Where numbers do not fit, a wider record comes before, and before this one what tells where.
        let locator = end.checked_sub(LOCATOR_64.0).and_then(|at| record(bytes, at, LOCATOR_64));
        let (count, start) = match locator {
            Some(locator) => {
                let wide =
                    record(bytes, uint(locator, 8, 8), END_64).ok_or("no zip64 directory where it is said to be")?;
                (uint(wide, 32, 8), uint(wide, 48, 8))
            }
            None => {
                let end = &bytes[end..];
                (uint(end, 10, 2), uint(end, 16, 4))
            }
        };
        let mut entries = BTreeMap::new();
        let mut at = start;
        for _ in 0..count {
            let (name, entry, next) = entry(bytes, at)?;
            entries.insert(name.strip_suffix(".npy").unwrap_or(name), entry);
            at = next;
        }
        Ok(Npz { entries })
    }

    pub fn has(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// The contents of `NAME.npy`, if there is one.
    pub fn read(&self, name: &str) -> Option<Result<Cow<'a, [u8]>, Fault>> {
        self.entries.get(name).map(Entry::contents)
    }
}

impl<'a> Entry<'a> {
    fn contents(&self) -> Result<Cow<'a, [u8]>, Fault> {
        let contents = if self.deflated { Cow::Owned(self.inflated()?) } else { Cow::Borrowed(self.packed) };
        let mut check = flate2::Crc::new();
        check.update(&contents);
        if (contents.len(), check.sum()) != (self.size, self.check) {
            let expected = format!("{} bytes of check sum {:08x}", self.size, self.check);
            return Err((expected, format!("{} of {:08x}; the file is damaged", contents.len(), check.sum())));
        }
        Ok(contents)
    }

    fn inflated(&self) -> Result<Vec<u8>, Fault> {
        if self.size > SMALL && self.size / MOST_RATIO > self.packed.len() {
            let expected = format!("at most {MOST_RATIO} bytes for each that is stored");
            return Err((expected, format!("{} for {}", self.size, self.packed.len())));
        }
        let mut contents = Vec::new();
        // One byte more than is promised is enough to see that a promise is broken.
        let most = self.size as u64 + 1;
        let read = DeflateDecoder::new(self.packed).take(most).read_to_end(&mut contents);
        read.map_err(|e| ("deflated bytes".to_owned(), e.to_string()))?;
        Ok(contents)
    }
}

/// The record of fixed length and signature `kind` at `at`, if it is there.
fn record(bytes: &[u8], at: usize, kind: (usize, u32)) -> Option<&[u8]> {
    let record = bytes.get(at..at.checked_add(kind.0)?)?;
    (record[..4] == kind.1.to_le_bytes()).then_some(record)
}

/// The little-endian number of `n <= 8` bytes at `at` of a record; more than memory has where it does not fit.
fn uint(record: &[u8], at: usize, n: usize) -> usize {
    let value = record[at..at + n].iter().rev().fold(0, |value, &b| value << 8 | u64::from(b));
    usize::try_from(value).unwrap_or(usize::MAX)
}

/// The wide numbers in an extra field, which stand for those of 32 bits that are all ones.
fn wide_numbers(mut extra: &[u8]) -> impl Iterator<Item = usize> {
    let mut found: &[u8] = &[];
    while let Some((head, rest)) = extra.split_at_checked(4) {
        let Some((field, rest)) = rest.split_at_checked(uint(head, 2, 2)) else { break };
        if uint(head, 0, 2) == 1 {
            found = field;
        }
        extra = rest;
    }
    found.chunks_exact(8).map(|number| uint(number, 0, 8))
}

/// The entry whose directory record is at `at`: its name, what it holds, and where the next record is.
fn entry(bytes: &[u8], at: usize) -> Result<(&str, Entry<'_>, usize), String> {
    let central = record(bytes, at, CENTRAL).ok_or_else(|| format!("no directory entry at byte {at}"))?;
    let name_at = at + CENTRAL.0;
    let extra_at = name_at + uint(central, 28, 2);
    let next = extra_at + uint(central, 30, 2) + uint(central, 32, 2);
    let name = bytes.get(name_at..extra_at).and_then(|name| std::str::from_utf8(name).ok());
    let name = name.ok_or_else(|| format!("no name in UTF-8 at byte {name_at}"))?;
    let wrong = |got: &str| format!("{got} in entry {}", name.escape_debug());
    if uint(central, 8, 2) & 1 != 0 {
        return Err(wrong("encrypted bytes"));
    }
    let deflated = match uint(central, 10, 2) {
        0 => false,
        8 => true,
        method => return Err(wrong(&format!("compression method {method}"))),
    };
    let mut wide = wide_numbers(bytes.get(extra_at..extra_at + uint(central, 30, 2)).unwrap_or_default());
    let mut number = |at: usize| match uint(central, at, 4) {
        0xffff_ffff => wide.next(),
        narrow => Some(narrow),
    };
    // In this order.
    let (size, packed, header) = (number(24), number(20), number(42));
    let (Some(size), Some(packed), Some(header)) = (size, packed, header) else {
        return Err(wrong("no zip64 numbers"));
    };
    let local = record(bytes, header, LOCAL).ok_or_else(|| wrong("no header"))?;
    // Its extra field is not the directory's, and tells where the contents begin.
    let data = header + LOCAL.0 + uint(local, 26, 2) + uint(local, 28, 2);
    let packed = data.checked_add(packed).and_then(|end| bytes.get(data..end)).ok_or_else(|| wrong("too few bytes"))?;
    let check = central[16..20].iter().rev().fold(0, |value, &b| value << 8 | u32::from(b));
    Ok((name, Entry { packed, deflated, size, check }, next))
}
