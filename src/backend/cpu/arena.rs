//! The CPU's arena: one allocation, viewed as disjoint typed slices.

use crate::backend::Call;
use crate::backend::args::{Codes, Floats, Slot};
use crate::error::{Error, Result};
use memmap2::MmapMut;
use std::ops::Range;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Working memory: anonymous pages, zeroed, touched when first used.
///
/// Large pages are asked for: activations are walked along columns of tiles, one row of 18 KiB after another, and with
/// 4 KiB pages every row of a tile is a page of its own.
pub struct Arena {
    pages: MmapMut,
    len: usize,
    /// The model call that ops belong to.
    pub(super) call: Call,
}

impl Arena {
    /// `len` bytes of memory.
    ///
    /// # Errors
    /// [`Error::Request`] if the system has no room for so much.
    pub fn new(len: usize) -> Result<Self> {
        let pages = MmapMut::map_anon(len.max(1))
            .map_err(|e| Error::memory("working memory", format!("room for {len} bytes"), e))?;
        // Advice may be refused, and nothing depends on it.
        #[cfg(target_os = "linux")]
        let _ = pages.advise(memmap2::Advice::HugePage);
        Ok(Arena { pages, len, call: Call::default() })
    }

    /// All bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.pages[..self.len]
    }

    /// All bytes.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.pages[..self.len]
    }

    /// Separates what an op writes, `out` and `work`, from what it may read: everything else.
    ///
    /// # Panics
    /// If the two overlap, or a later read overlaps either: the plan forbids it.
    pub fn split(&mut self, out: Range<usize>, work: Range<usize>) -> (&mut [u8], &mut [u8], Reads<'_>) {
        let call = self.call;
        let bytes = self.bytes_mut();
        let swap = work.start < out.start;
        let (a, b) = if swap { (work, out) } else { (out, work) };
        assert!(a.end <= b.start, "ranges {a:?} and {b:?} overlap");
        let (left, rest) = bytes.split_at_mut(a.start);
        let (first, rest) = rest.split_at_mut(a.len());
        let (middle, rest) = rest.split_at_mut(b.start - a.end);
        let (second, right) = rest.split_at_mut(b.len());
        let reads = Reads { parts: [left, middle, right], starts: [0, a.end, b.end], call };
        let (out, work) = if swap { (second, first) } else { (first, second) };
        (out, work, reads)
    }

    /// [`split`](Self::split) with nothing but a result.
    pub fn write(&mut self, out: Range<usize>) -> (&mut [u8], Reads<'_>) {
        let end = out.end;
        let (out, _, reads) = self.split(out, end..end);
        (out, reads)
    }

    /// The first byte of the current call's value at `slot`.
    pub fn first(&self, slot: Slot) -> usize {
        slot.of(self.call.row)
    }

    /// The common case: a float result.
    pub fn write_floats(&mut self, y: &Floats) -> (&mut [f32], Reads<'_>) {
        let at = self.first(y.slot);
        let (out, reads) = self.write(at..at + y.bytes());
        (floats_mut(out), reads)
    }
}

/// The parts of the arena that an op may read.
pub struct Reads<'a> {
    parts: [&'a [u8]; 3],
    starts: [usize; 3],
    call: Call,
}

impl<'a> Reads<'a> {
    /// `count` elements from byte `at`.
    ///
    /// # Panics
    /// If the range is not wholly readable.
    pub fn slice<T: FromBytes + Immutable>(&self, at: usize, count: usize) -> &'a [T] {
        let part = self.starts.iter().rposition(|&s| s <= at).unwrap_or(0);
        let from = at - self.starts[part];
        let bytes = &self.parts[part][from..from + count * size_of::<T>()];
        <[T]>::ref_from_bytes(bytes).expect("places in the arena are 64-byte aligned")
    }

    /// The first byte of the current call's value at `slot`.
    pub fn first(&self, slot: Slot) -> usize {
        slot.of(self.call.row)
    }

    /// The first byte at `slot` of what the sampler has once per call of the run.
    pub fn of_run(&self, slot: Slot) -> usize {
        slot.of(self.call.step)
    }

    /// A float matrix of the current call.
    pub fn floats(&self, x: &Floats) -> &'a [f32] {
        self.slice(self.first(x.slot), x.rows * x.cols)
    }

    /// A matrix of codes of the current call.
    pub fn codes(&self, x: &Codes) -> CodesView<'a> {
        let at = self.first(x.slot);
        CodesView {
            codes: self.slice(at, x.rows * x.stride()),
            stride: x.stride(),
            cols: x.cols,
            top: x.top,
            scale: self.slice(at + x.scale_at(), x.groups),
            zero: self.slice(at + x.zero_at(), x.groups),
            sum: self.slice(at + x.sum_at(), x.rows),
            rows_per_group: x.rows / x.groups,
        }
    }
}

/// Codes with their scales, to read.
#[derive(Clone, Copy)]
pub struct CodesView<'a> {
    /// `rows * stride` codes.
    pub codes: &'a [u8],
    /// Bytes from row to row.
    pub stride: usize,
    /// Features or channels.
    pub cols: usize,
    /// The highest code there can be.
    pub top: u8,
    /// Per group of rows.
    pub scale: &'a [f32],
    /// Per group of rows.
    pub zero: &'a [f32],
    /// Sum of each row's codes.
    pub sum: &'a [i32],
    /// Rows that share a scale.
    pub rows_per_group: usize,
}

/// Codes with their scales, to write.
pub struct CodesMut<'a> {
    /// `rows * stride` codes.
    pub codes: &'a mut [u8],
    /// Per group of rows.
    pub scale: &'a mut [f32],
    /// Per group of rows.
    pub zero: &'a mut [f32],
    /// Sum of each row's codes.
    pub sum: &'a mut [i32],
}

impl<'a> CodesMut<'a> {
    /// Cuts the bytes of `x` into its parts.
    pub fn new(bytes: &'a mut [u8], x: &Codes) -> Self {
        let (codes, rest) = bytes.split_at_mut(x.scale_at());
        let (scale, rest) = rest.split_at_mut(x.zero_at() - x.scale_at());
        let (zero, sum) = rest.split_at_mut(x.sum_at() - x.zero_at());
        CodesMut {
            codes: &mut codes[..x.rows * x.stride()],
            scale: floats_mut(&mut scale[..x.groups * 4]),
            zero: floats_mut(&mut zero[..x.groups * 4]),
            sum: typed_mut(&mut sum[..x.rows * 4]),
        }
    }
}

/// Bytes of the arena as floats.
pub fn floats_mut(bytes: &mut [u8]) -> &mut [f32] {
    typed_mut(bytes)
}

/// Bytes of the arena as elements.
pub fn typed_mut<T: FromBytes + IntoBytes>(bytes: &mut [u8]) -> &mut [T] {
    <[T]>::mut_from_bytes(bytes).expect("places in the arena are 64-byte aligned")
}
