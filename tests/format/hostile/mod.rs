//! Hostile files: whatever the bytes are, opening them gives a sound model or an error that names the fault. It never
//! panics, never hangs, and never allocates more than a small multiple of the file.
//!
//! A damaged file is tried twice: raw, when hashes tell on it, and *resealed*, with all hashes made right again, when
//! only the structure can.

mod damage;
mod faults;
mod meta;
mod phases;
mod runs;

use aquatint::Error;
use aquatint::raw::backend::args::Element;
use aquatint::raw::backend::cpu::{Cpu, simd::scalar::Scalar};
use aquatint::raw::exec::Executor;
use aquatint::raw::format::{Packed, SectionKind};
use aquatint::raw::plan::{Binding, Plan, Rules};
use aquatint::raw::program::{Dims, InputKind, Role};
use common::tiny::{
    self, AlignedBytes, HEAD, Noise, build, first_word, reseal, reseal_root, reseal_section, sections, split,
};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;

/// Counts the bytes that each thread asks for.
struct Counting;

thread_local! {
    static ASKED: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call goes to the system allocator unchanged; counting touches a constant-initialised thread-local of
// a type without a destructor, which allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = ASKED.try_with(|n| n.set(n.get() + layout.size()));
        // SAFETY: the caller's promise about `layout` is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: `ptr` came from `System` with this `layout`, as the caller promises.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let _ = ASKED.try_with(|n| n.set(n.get() + size));
        // SAFETY: as for `dealloc`, and `size` is the caller's.
        unsafe { System.realloc(ptr, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const DATA: usize = 0;
const TENSORS: usize = 1;
const PROGRAMS: usize = 2;
const NODES: usize = 3;
const ARGS: usize = 4;
const STRINGS: usize = 5;
const META: usize = 6;
const TENSOR: usize = 64;
const PROGRAM: usize = 32;
const NODE: usize = 16;

/// The sound file that all others are made from.
fn sound() -> AlignedBytes {
    static FILE: OnceLock<AlignedBytes> = OnceLock::new();
    FILE.get_or_init(tiny::bytes).clone()
}

/// First byte of section `i` in the sound file.
fn start(i: usize) -> usize {
    sections(sound().as_ref())[i].0 as usize
}

/// The place and the message of a format error.
#[track_caller]
fn fault<T>(result: aquatint::Result<T>, case: &str) -> (&'static str, u64, String) {
    match result {
        Ok(_) => panic!("{case}: accepted"),
        Err(ref e @ Error::Format { section, offset, .. }) => (section, offset, e.to_string()),
        Err(other) => panic!("{case}: {other}"),
    }
}

/// Asserts that opening `file` fails at `offset` of `section` with a message that has `text`.
#[track_caller]
fn refused(file: &AlignedBytes, section: &str, offset: u64, text: &str) {
    let (got_section, got_offset, message) = fault(Packed::new(file), text);
    assert_eq!((got_section, got_offset), (section, offset), "{text}: {message}");
    assert!(message.contains(text), "{text}: {message}");
}

/// The same of a file that opens and fails when verified.
#[track_caller]
fn unverified(file: &AlignedBytes, section: &str, offset: u64, text: &str) {
    let packed = Packed::new(file).expect(text);
    let (got_section, got_offset, message) = fault(packed.verify(), text);
    assert_eq!((got_section, got_offset), (section, offset), "{text}: {message}");
    assert!(message.contains(text), "{text}: {message}");
}

/// The sound file with `bytes` at `at`.
fn with(at: usize, bytes: &[u8]) -> AlignedBytes {
    let mut file = sound();
    file.as_mut()[at..at + bytes.len()].copy_from_slice(bytes);
    file
}

/// The same, resealed.
fn sealed(at: usize, bytes: &[u8]) -> AlignedBytes {
    let mut file = with(at, bytes);
    reseal(file.as_mut());
    file
}

fn le(n: u32) -> [u8; 4] {
    n.to_le_bytes()
}

const SHAPE: Binding = Binding {
    dims: Dims { batch: 2, conditions: 2, height: 4, width: 6, tokens: 1, ..Dims::ONE },
    calls: 3,
    table_bytes: 1 << 12,
    reserve: 64,
};

/// Bytes that a file of `len` bytes may make a single operation ask for, all its allocations added up.
fn most_asked(len: usize) -> usize {
    4 * len + (64 << 10)
}

/// Opens, verifies and plans `file`; returns whether it opened. Fails with `case` on a panic or a great allocation.
fn survive(file: &AlignedBytes, case: impl Fn() -> String) -> bool {
    let most = most_asked(file.as_ref().len());
    let step = |name: &str, before: usize| {
        let asked = ASKED.get() - before;
        assert!(asked <= most, "{}: {name} asked for {asked} bytes", case());
    };
    let tried = catch_unwind(AssertUnwindSafe(|| {
        let before = ASKED.get();
        let opened = Packed::new(file);
        step("opening", before);
        let Ok(packed) = opened else { return false };
        let before = ASKED.get();
        // Either outcome is fine: a resealed file may be another sound one.
        let _ = packed.verify();
        step("verifying", before);
        for role in [Role::Denoiser, Role::VaeDecoder] {
            let before = ASKED.get();
            let _ = Plan::of_role(&Cpu::new(Scalar), &packed, role, &SHAPE);
            step("planning", before);
        }
        true
    }));
    tried.unwrap_or_else(|_| panic!("{}", case()))
}

#[test]
fn the_file_that_all_damage_starts_from_is_sound() {
    let file = sound();
    assert!(survive(&file, || "sound".into()));
    Packed::new(&file).expect("sound").verify().expect("sound");
    let mut resealed = sound();
    reseal(resealed.as_mut());
    assert!(resealed.as_ref() == file.as_ref());
}

/// A view of `bytes` under another address or length.
struct View<'a>(&'a [u8]);

impl AsRef<[u8]> for View<'_> {
    fn as_ref(&self) -> &[u8] {
        self.0
    }
}

/// Header and tables, as (section to seal again, range of the file); the header has no section.
fn structure() -> Vec<(Option<usize>, std::ops::Range<usize>)> {
    let table = sections(sound().as_ref());
    let tables = (TENSORS..=META).map(|i| (Some(i), table[i].0 as usize..(table[i].0 + table[i].1) as usize));
    [(None, 0..HEAD)].into_iter().chain(tables).collect()
}

/// Makes the hashes agree with a change in `section`.
fn seal(file: &mut AlignedBytes, section: Option<usize>) {
    if let Some(i) = section {
        reseal_section(file.as_mut(), i);
    }
    reseal_root(file.as_mut());
}
