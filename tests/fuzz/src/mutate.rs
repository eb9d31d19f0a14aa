//! Mutations of a file's sections: small ones that keep the structure, so that many files still open.

use aquatint::raw::format::{NodeRecord, ProgramRecord, SectionKind, TensorRecord};
use common::meta_edits::{changes, places};
use common::sealed::Sealed;
use fastrand::Rng;

/// Numbers that break arithmetic more often than others: small and largest ones, marks of symbolic axes, powers of two, and
/// the bits of floats.
const WORDS: [u32; 28] = [
    0,
    1,
    2,
    3,
    4,
    5,
    8,
    16,
    255,
    256,
    4096,
    1 << 16,
    1 << 20,
    1 << 31,
    (1 << 31) + 1,
    (1 << 31) + 2,
    (1 << 31) + 3,
    (1 << 31) + 4,
    u32::MAX,
    u32::MAX - 1,
    0x8000_0000,
    0x3f80_0000,
    0xbf80_0000,
    0x7f80_0000,
    0x7fc0_0000,
    0x7f7f_ffff,
    0x0000_0001,
    0x2f00_0000,
];

/// Sections by how often they are changed: those that say most with fewest bytes most often.
const WEIGHTS: [(SectionKind, usize); 6] = [
    (SectionKind::Meta, 6),
    (SectionKind::Nodes, 8),
    (SectionKind::Programs, 3),
    (SectionKind::Tensors, 3),
    (SectionKind::Strings, 1),
    (SectionKind::Data, 2),
];

/// A changed file, and what was changed.
pub struct Mutation {
    /// The file.
    pub file: Sealed,
    /// What was changed, in words.
    pub what: String,
}

/// Makes up to three changes of `base`, all in the section `only` if there is one.
pub fn mutate(base: &Sealed, rng: &mut Rng, only: Option<SectionKind>) -> Mutation {
    let mut file = base.clone();
    let mut what = String::new();
    for _ in 0..rng.usize(1..=3) {
        let kind = only.unwrap_or_else(|| section(rng));
        let change = match kind {
            SectionKind::Meta if rng.u8(..10) < 7 => json(&mut file, rng),
            SectionKind::Meta => digits(file.section_mut(kind), rng),
            SectionKind::Strings => letters(file.section_mut(kind), rng),
            SectionKind::Data => numbers(file.section_mut(kind), rng),
            _ => records(file.section_mut(kind), record_bytes(kind), rng),
        };
        what += &format!("{} {change}; ", kind.name());
    }
    Mutation { file, what }
}

fn section(rng: &mut Rng) -> SectionKind {
    // A section that the list above does not know is changed now and then.
    let others = SectionKind::ALL.into_iter().filter(|kind| WEIGHTS.iter().all(|(known, _)| known != kind));
    let weighted: Vec<_> = WEIGHTS.into_iter().chain(others.map(|kind| (kind, 3))).collect();
    let total: usize = weighted.iter().map(|(_, weight)| weight).sum();
    let mut pick = rng.usize(..total);
    for (kind, weight) in weighted {
        match pick.checked_sub(weight) {
            None => return kind,
            Some(rest) => pick = rest,
        }
    }
    SectionKind::Meta
}

/// Bytes of a record; sections of unknown records are tables of words.
fn record_bytes(kind: SectionKind) -> usize {
    match kind {
        SectionKind::Tensors => size_of::<TensorRecord>(),
        SectionKind::Programs => size_of::<ProgramRecord>(),
        SectionKind::Nodes => size_of::<NodeRecord>(),
        _ => size_of::<u32>(),
    }
}

/// Changes a field of a record, or makes a record a copy of another.
fn records(bytes: &mut [u8], size: usize, rng: &mut Rng) -> String {
    let n = bytes.len() / size;
    if n == 0 {
        return "is empty".into();
    }
    let (record, other) = (rng.usize(..n) * size, rng.usize(..n) * size);
    // Words that are zero in every record are reserved, and seldom worth a change.
    let used = |at: usize| (0..n).any(|i| bytes[i * size + at..][..4] != [0; 4]);
    let words: Vec<usize> = (0..size).step_by(4).filter(|&at| rng.u8(..20) == 0 || used(at)).collect();
    let field = words.get(rng.usize(..words.len().max(1))).copied().unwrap_or(0);
    let (at, byte) = (record + field, record + field + rng.usize(..4));
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
    let new = match rng.u8(..10) {
        0 => return set(bytes, byte, &[rng.u8(..12)]),
        1 => return set(bytes, byte, &[bytes[byte].wrapping_add(1)]),
        2 => return set(bytes, byte, &[bytes[byte].wrapping_sub(1)]),
        3 => return set(bytes, byte, &[bytes[byte] ^ 1 << rng.u8(..8)]),
        4 => word(other + field),
        5 => word(record + rng.usize(..size / 4) * 4),
        6 => WORDS[rng.usize(..WORDS.len())],
        7 => word(at).wrapping_add(rng.u32(..4)).wrapping_sub(2),
        8 => word(at).wrapping_mul(2),
        _ => {
            let copy = bytes[other..other + size].to_vec();
            return set(bytes, record, &copy);
        }
    };
    set(bytes, at, &new.to_le_bytes())
}

/// Writes `new` at `at` and tells so.
fn set(bytes: &mut [u8], at: usize, new: &[u8]) -> String {
    let was = bytes[at..at + new.len()].to_vec();
    bytes[at..at + new.len()].copy_from_slice(new);
    match new.len() {
        1..=4 => format!("byte {at}: {was:?} becomes {new:?}"),
        n => format!("{n} bytes from {at}"),
    }
}

/// Changes a value of META as JSON.
fn json(file: &mut Sealed, rng: &mut Rng) -> String {
    let Some(mut meta) = file.meta() else { return digits(file.section_mut(SectionKind::Meta), rng) };
    let places = places(&meta, true);
    // What a pipeline reads is small beside the report on its layers.
    let pipeline: Vec<_> = places.iter().filter(|at| at.starts_with("/pipeline")).cloned().collect();
    let places = if rng.u8(..4) > 0 && !pipeline.is_empty() { pipeline } else { places };
    let at = &places[rng.usize(..places.len())];
    let changes = changes(&meta, at);
    let change = &changes[rng.usize(..changes.len())];
    change.apply(&mut meta, at);
    file.set_meta(&meta);
    format!("{at} {change}")
}

/// Changes a byte of META, a digit most of all.
fn digits(bytes: &mut [u8], rng: &mut Rng) -> String {
    let places: Vec<usize> = (0..bytes.len()).filter(|&i| bytes[i].is_ascii_digit()).collect();
    match places.is_empty() || rng.u8(..4) == 0 {
        true if bytes.is_empty() => "is empty".into(),
        true => set(bytes, rng.usize(..bytes.len()), &[rng.u8(..)]),
        false => set(bytes, places[rng.usize(..places.len())], &[rng.u8(b'-'..=b'9')]),
    }
}

/// Changes a byte of a name.
fn letters(bytes: &mut [u8], rng: &mut Rng) -> String {
    match bytes.is_empty() {
        true => "is empty".into(),
        false => set(bytes, rng.usize(..bytes.len()), &[if rng.bool() { rng.u8(b'a'..=b'z') } else { rng.u8(..) }]),
    }
}

/// Changes a few bytes of the weights.
fn numbers(bytes: &mut [u8], rng: &mut Rng) -> String {
    if bytes.len() < 4 {
        return "is empty".into();
    }
    let at = rng.usize(..bytes.len() / 4) * 4;
    let half: [u16; 5] = [0x7c00, 0x7e00, 0x7bff, 0, 0x0001];
    match rng.u8(..4) {
        0 => set(bytes, at, &[rng.u8(..)]),
        1 => set(bytes, at, &[bytes[at] ^ 1 << rng.u8(..8)]),
        2 => set(bytes, at, &WORDS[rng.usize(..WORDS.len())].to_le_bytes()),
        _ => set(bytes, at, &half[rng.usize(..half.len())].to_le_bytes()),
    }
}
