//! Private memory of each worker thread, sized when a program is bound so that ops allocate nothing.

use std::cell::RefCell;
use zerocopy::{FromBytes, IntoBytes};

/// Scratch is kept in units that align every element type in use.
#[derive(Clone, Copy, FromBytes, IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout)]
#[repr(C, align(64))]
struct Line([u8; 64]);

thread_local! {
    static SCRATCH: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
}

fn grow(bytes: usize) {
    SCRATCH.with_borrow_mut(|s| {
        let lines = bytes.div_ceil(64);
        if s.len() < lines {
            s.resize(lines, Line([0; 64]));
        }
    });
}

/// Gives every thread of the current pool, and the caller, at least `bytes` of scratch.
pub fn reserve(bytes: usize) {
    grow(bytes);
    rayon::broadcast(|_| grow(bytes));
}

/// Calls `f` with `bytes` of this thread's scratch; the contents are whatever was left there.
///
/// Must not be nested: an op holds its thread's scratch from start to end, and runs nothing in parallel meanwhile.
pub fn with<R>(bytes: usize, f: impl FnOnce(&mut [u8]) -> R) -> R {
    SCRATCH.with_borrow_mut(|s| {
        let lines = bytes.div_ceil(64);
        if s.len() < lines {
            // Only reached when an op runs outside a bound program, as in tests.
            s.resize(lines, Line([0; 64]));
        }
        f(&mut s.as_mut_slice().as_mut_bytes()[..bytes])
    })
}
