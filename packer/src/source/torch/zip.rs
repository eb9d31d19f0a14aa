//! The zip archive of torch since 1.6: stored entries only, which are used where they lie.

use super::super::pickle;
use super::super::view::Storage;
use super::{Contents, Fault, Outcome, fault, shown, tensors};
use std::collections::HashMap;
use std::ops::Range;

/// Bytes of the fixed parts of records, and their signatures.
const LOCAL: (usize, u32) = (30, 0x0403_4b50);
const CENTRAL: (usize, u32) = (46, 0x0201_4b50);
const END: (usize, u32) = (22, 0x0605_4b50);
const END_64: (usize, u32) = (56, 0x0606_4b50);
const LOCATOR_64: (usize, u32) = (20, 0x0706_4b50);
/// Bytes of the longest comment at the end.
const MAX_COMMENT: usize = 0xffff;

/// A file's bytes, read with every bound checked.
#[derive(Clone, Copy)]
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn get(self, range: Range<usize>) -> Option<&'a [u8]> {
        self.0.get(range)
    }

    /// The little-endian integer of `n <= 8` bytes at `at`.
    fn uint(self, at: usize, n: usize) -> Option<u64> {
        let bytes = self.get(at..at.checked_add(n)?)?;
        Some(bytes.iter().rev().fold(0, |value, &b| value << 8 | u64::from(b)))
    }

    /// The record at `at` of fixed length and signature `kind`.
    fn record(self, at: usize, kind: (usize, u32), what: &str) -> Outcome<Bytes<'a>> {
        match at.checked_add(kind.0).and_then(|end| self.get(at..end)) {
            Some(record) if Bytes(record).field(0, 4) == u64::from(kind.1) => Ok(Bytes(record)),
            _ => {
                fault(format!("byte {at}"), format!("{what} of a zip archive"), "none; the file is damaged or cut off")
            }
        }
    }

    /// The integer of `n` bytes at `at` of a record, which is long enough.
    fn field(self, at: usize, n: usize) -> u64 {
        self.uint(at, n).unwrap_or_default()
    }
}

/// Where the central directory lies.
struct Directory {
    entries: u64,
    bytes: Range<usize>,
}

/// Entries by name: where their contents lie.
type Entries<'a> = HashMap<&'a str, Range<usize>>;

pub(super) fn read(bytes: &[u8]) -> Outcome<Contents> {
    let entries = entries(Bytes(bytes))?;
    let mut roots = entries.keys().filter_map(|name| name.strip_suffix("/data.pkl")).filter(|root| !root.contains('/'));
    let Some(root) = roots.next() else {
        return fault("archive", "data.pkl, as torch.save writes", "another zip archive");
    };
    if roots.next().is_some() {
        return fault("archive", "one data.pkl", "several");
    }
    let entry = |name: &str| entries.get(&format!("{root}/{name}")[..]).cloned();
    if entry("constants.pkl").is_some() {
        let expected = "a checkpoint; load this with torch.jit.load and torch.save its state_dict()";
        return fault("archive", expected, "a TorchScript program (constants.pkl)");
    }
    if let Some(order) = entry("byteorder").map(|range| &bytes[range]).filter(|order| *order != b"little") {
        let got = shown(&String::from_utf8_lossy(&order[..order.len().min(80)]));
        return fault("byteorder", "little; save the file again on such a machine", got);
    }

    let data = entry("data.pkl").unwrap_or_default();
    let inside = |e: Fault| e.inside("data.pkl");
    let (object, end) = pickle::read_objects(&bytes[data.clone()], 0).map_err(|e| inside(e.into()))?;
    if end != data.len() {
        return fault(format!("data.pkl: byte {end}"), "no further bytes", format!("{} bytes", data.len() - end));
    }
    let storages = tensors::storage_ids(&object).map_err(inside)?.into_iter().map(|(value, id)| {
        let place = || format!("entry data/{}", shown(id.key));
        let Some(range) = entry(&format!("data/{}", id.key)) else {
            return fault(place(), "the elements of a storage", "no such entry");
        };
        if id.part.is_some() {
            return fault(place(), "a whole storage", "a part");
        }
        if id.count.checked_mul(id.size) != Some(range.len()) {
            let expected = format!("{} elements of {} bytes", id.count, id.size);
            return fault(place(), expected, format!("{} bytes", range.len()));
        }
        Ok((value, Storage { dtype: id.dtype, size: id.size, bytes: range }))
    });
    tensors::tensors(&object, &storages.collect::<Outcome<_>>()?, end).map_err(inside)
}

/// All entries of the archive, which do not overlap.
fn entries(file: Bytes<'_>) -> Outcome<Entries<'_>> {
    let directory = directory(file)?;
    let mut entries = Entries::new();
    let mut taken: Vec<(Range<usize>, &str)> = Vec::new();
    let mut at = directory.bytes.start;
    // Every entry takes bytes of the directory, so a false number ends this soon.
    for _ in 0..directory.entries {
        let (name, header, data, next) = entry(file, at, &directory)?;
        if entries.insert(name, data.clone()).is_some() {
            return fault(format!("entry {}", shown(name)), "every name once", "another entry of this name");
        }
        taken.push((header..data.end, name));
        at = next;
    }
    if at != directory.bytes.end {
        let expected = format!("{} entries to the end of the directory", directory.entries);
        return fault(format!("byte {at}"), expected, format!("{} bytes more", directory.bytes.end - at));
    }
    taken.sort_unstable_by_key(|(range, _)| (range.start, range.end));
    match taken.windows(2).find(|pair| pair[1].0.start < pair[0].0.end) {
        Some(pair) => {
            fault(format!("entry {}", shown(pair[1].1)), "bytes of its own", format!("those of {}", shown(pair[0].1)))
        }
        None => Ok(entries),
    }
}

/// The entry whose directory record is at `at`: name, where its header begins, where its contents lie, and where the
/// next record begins.
fn entry<'a>(file: Bytes<'a>, at: usize, directory: &Directory) -> Outcome<(&'a str, usize, Range<usize>, usize)> {
    let record = file.record(at, CENTRAL, "an entry of the directory")?;
    let name_at = at + CENTRAL.0;
    let extra_at = name_at + record.field(28, 2) as usize;
    let extra_end = extra_at + record.field(30, 2) as usize;
    let next = extra_end + record.field(32, 2) as usize;
    let name = file.get(name_at..extra_at).filter(|_| next <= directory.bytes.end);
    let Some(name) = name.and_then(|name| std::str::from_utf8(name).ok()) else {
        return fault(format!("byte {at}"), "a name in UTF-8 inside the directory", "another");
    };
    let place = || format!("entry {}", shown(name));
    let (flags, method) = (record.field(8, 2), record.field(10, 2));
    if flags & 1 != 0 {
        return fault(place(), "no encryption", "an encrypted entry");
    }
    if method != 0 {
        let expected = "stored entries, as torch.save writes; load the file and save it again";
        return fault(place(), expected, format!("compression method {method}"));
    }
    // Sizes and offset that do not fit 32 bits are in the extra field, in this order.
    let mut wide = extra_64(file, extra_at..extra_end);
    let mut number = |at: usize| match record.field(at, 4) {
        0xffff_ffff => wide.by_ref().next(),
        narrow => Some(narrow),
    };
    let (size, packed, offset) = (number(24), number(20), number(42));
    let (Some(size), Some(packed), Some(offset)) = (size, packed, offset) else {
        return fault(place(), "a zip64 field with its sizes", "none");
    };
    if size != packed {
        return fault(place(), format!("{size} stored bytes"), packed.to_string());
    }
    let (Ok(header), Ok(length)) = (usize::try_from(offset), usize::try_from(size)) else {
        return fault(place(), "an offset and a size in memory", format!("{offset} and {size}"));
    };
    let local = file.record(header, LOCAL, "an entry's header").map_err(|e| e.inside(&place()))?;
    let local_name = header + LOCAL.0;
    let local_extra = local_name + local.field(26, 2) as usize;
    let start = local_extra + local.field(28, 2) as usize;
    if file.get(local_name..local_extra) != Some(name.as_bytes()) || local.field(8, 2) != 0 {
        return fault(place(), "the same name and method in its header", "others");
    }
    // Bit 3: the sizes follow the contents.
    let size_again = local.field(22, 4);
    if flags & 8 == 0 && size_again != 0xffff_ffff && size_again != size {
        return fault(place(), format!("{size} bytes in its header too"), size_again.to_string());
    }
    match start.checked_add(length).filter(|end| *end <= directory.bytes.start) {
        Some(end) => Ok((name, header, start..end, next)),
        None => {
            let expected = format!("{length} bytes from {start} before the directory");
            fault(place(), expected, format!("a directory at {}", directory.bytes.start))
        }
    }
}

/// The 64-bit numbers in the zip64 field of an extra field.
fn extra_64(file: Bytes<'_>, extra: Range<usize>) -> impl Iterator<Item = u64> {
    let mut at = extra.start;
    let mut found = 0..0;
    while let (Some(tag), Some(length)) = (file.uint(at, 2), file.uint(at + 2, 2)) {
        let end = at + 4 + length as usize;
        if end > extra.end {
            break;
        }
        if tag == 1 {
            found = at + 4..end;
            break;
        }
        at = end;
    }
    let end = found.end;
    found.step_by(8).filter(move |at| at + 8 <= end).filter_map(move |at| file.uint(at, 8))
}

/// Finds the central directory by the record that ends the file.
fn directory(file: Bytes<'_>) -> Outcome<Directory> {
    let last = file.0.len().saturating_sub(END.0);
    let mut candidates = (last.saturating_sub(MAX_COMMENT)..=last).rev();
    let ends = |&at: &usize| {
        let comment = file.uint(at + 20, 2);
        file.uint(at, 4) == Some(END.1.into()) && comment == Some((file.0.len().saturating_sub(at + END.0)) as u64)
    };
    let Some(at) = candidates.find(ends) else {
        return fault("archive", "a directory at its end", "none; the file is damaged or cut off");
    };
    let end = file.record(at, END, "the end")?;
    let mut numbers = [end.field(8, 2), end.field(10, 2), end.field(12, 4), end.field(16, 4)];
    let mut disks = [end.field(4, 2), end.field(6, 2)];
    let mut limit = at;
    if let Some(locator) = at.checked_sub(LOCATOR_64.0).filter(|at| file.uint(*at, 4) == Some(LOCATOR_64.1.into())) {
        let at = usize::try_from(file.uint(locator + 8, 8).unwrap_or_default()).unwrap_or(usize::MAX);
        let wide = file.record(at, END_64, "the zip64 end")?;
        let full = [wide.field(24, 8), wide.field(32, 8), wide.field(40, 8), wide.field(48, 8)];
        for ((number, full), most) in
            numbers.iter_mut().zip(full).zip([0xffff, 0xffff, u32::MAX.into(), u32::MAX.into()])
        {
            if *number != most && *number != full {
                return fault(format!("byte {at}"), format!("{number} in the zip64 record too"), full.to_string());
            }
            *number = full;
        }
        // Numbers of disks are 0; the narrow record may say that the wide one has them.
        for (disk, full) in disks.iter_mut().zip([wide.field(16, 4), wide.field(20, 4)]) {
            *disk = if *disk == 0xffff { full } else { *disk | full };
        }
        limit = at;
    }
    let [here, entries, size, start] = numbers;
    if disks != [0, 0] || here != entries {
        return fault(format!("byte {at}"), "an archive in one file", "a part of one");
    }
    let range = usize::try_from(start).ok().zip(usize::try_from(size).ok());
    match range.and_then(|(start, size)| Some((start, start.checked_add(size)?))) {
        Some((start, end)) if end <= limit => Ok(Directory { entries, bytes: start..end }),
        _ => {
            fault(format!("byte {at}"), format!("a directory before byte {limit}"), format!("{size} bytes at {start}"))
        }
    }
}
