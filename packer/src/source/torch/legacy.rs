//! The format of torch before 1.6 (`_use_new_zipfile_serialization=False`).

use super::super::pickle::{self, Pickle, Value};
use super::super::view::Storage;
use super::tensors::{self, StorageId};
use super::{Contents, Outcome, fault, shown};
use std::collections::HashMap;
use std::ops::Range;

/// The first pickle: protocol 2, the number 0x1950a86a20f9469cfc6c.
pub(super) const MAGIC: [u8; 15] =
    [0x80, 0x02, 0x8a, 0x0a, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19, b'.'];
/// Version of the format.
const VERSION: i64 = 1001;

/// A storage: what the pickle says of it, and where its elements lie once that is known.
struct Stored<'a> {
    id: StorageId<'a>,
    bytes: Option<Range<usize>>,
}

pub(super) fn read(bytes: &[u8]) -> Outcome<Contents> {
    let at = MAGIC.len();
    let (version, at) = pickle::read_objects(bytes, at)?;
    if *version.root() != Value::Int(VERSION) {
        return fault("format", format!("version {VERSION}"), kind(version.root()));
    }
    let (system, at) = pickle::read_objects(bytes, at)?;
    if field(&system, "little_endian") != Some(&Value::Bool(true)) {
        return fault("system", "little_endian: True; save the file again on such a machine", "something else");
    }
    let start = at;
    let (object, at) = pickle::read_objects(bytes, start)?;
    let length = at - start;
    let (keys, at) = pickle::read_objects(bytes, at)?;

    let ids = tensors::storage_ids(&object)?;
    let mut stored: HashMap<&str, Stored<'_>> = HashMap::new();
    for (_, id) in &ids {
        let first = &stored.entry(id.key).or_insert(Stored { id: *id, bytes: None }).id;
        if (first.dtype, first.count) != (id.dtype, id.count) {
            let got = format!("{:?} of {} and {:?} of {}", first.dtype, first.count, id.dtype, id.count);
            return fault(format!("storage {}", shown(id.key)), "one type and length", got);
        }
    }
    locate(bytes, at, &keys, &mut stored)?;
    let storages = ids.into_iter().map(|(value, id)| {
        let place = || format!("storage {}", shown(id.key));
        let Some(whole) = stored[id.key].bytes.clone() else {
            return fault(place(), "its elements after the pickles", "none");
        };
        let bytes = match id.part {
            None => whole,
            Some((offset, count)) => {
                let start = offset.checked_mul(id.size).and_then(|n| n.checked_add(whole.start));
                let end = count.checked_mul(id.size).and_then(|n| n.checked_add(start?));
                match (start, end) {
                    (Some(start), Some(end)) if end <= whole.end => start..end,
                    _ => {
                        return fault(
                            place(),
                            format!("a part of {} elements", id.count),
                            format!("{count} from {offset}"),
                        );
                    }
                }
            }
        };
        Ok((value, Storage { dtype: id.dtype, size: id.size, bytes }))
    });
    tensors::tensors(&object, &storages.collect::<Outcome<_>>()?, length)
}

/// Finds the elements of every storage: they follow each other in the order of `keys`, each after its length.
fn locate<'a>(bytes: &[u8], start: usize, keys: &Pickle<'a>, stored: &mut HashMap<&'a str, Stored<'_>>) -> Outcome<()> {
    let Value::List(list) = keys.root() else {
        return fault(format!("byte {start}: keys of storages"), "a list", kind(keys.root()));
    };
    let mut at = start;
    for key in list {
        let place = |what: &str| format!("byte {at}: {what}");
        let Value::Str(key) = keys.get(*key) else {
            return fault(place("key of a storage"), "text", kind(keys.get(*key)));
        };
        let Some(storage) = stored.get_mut(key) else {
            return fault(place("key of a storage"), "one that a tensor has", shown(key));
        };
        if storage.bytes.is_some() {
            return fault(place("key of a storage"), "every key once", shown(key));
        }
        let Some(count) = bytes.get(at..).and_then(|rest| rest.first_chunk()).map(|b| u64::from_le_bytes(*b)) else {
            return fault(place("length of a storage"), "8 bytes", format!("{} to the end", bytes.len() - at));
        };
        if count != storage.id.count as u64 {
            let got = format!("{count}; the file is damaged");
            return fault(place("length of a storage"), format!("{} elements", storage.id.count), got);
        }
        let data = at + 8;
        let length = storage.id.count.checked_mul(storage.id.size).filter(|n| *n <= bytes.len() - data);
        let Some(length) = length else {
            let expected = format!("{count} elements of {} bytes", storage.id.size);
            return fault(place("storage"), expected, format!("{} bytes to the end", bytes.len() - data));
        };
        storage.bytes = Some(data..data + length);
        at = data + length;
    }
    match bytes.len() - at {
        0 => Ok(()),
        left => fault(format!("byte {at}: end"), "no further bytes", format!("{left} bytes")),
    }
}

fn field<'p, 'a>(pickle: &'p Pickle<'a>, name: &str) -> Option<&'p Value<'a>> {
    let Value::Dict(items) = pickle.root() else { return None };
    let found = items.iter().rev().find(|(key, _)| *pickle.get(*key) == Value::Str(name));
    found.map(|(_, value)| pickle.get(*value))
}

/// A value's kind, for messages.
fn kind(value: &Value<'_>) -> String {
    match value {
        Value::Int(n) => n.to_string(),
        _ => "another value".into(),
    }
}
