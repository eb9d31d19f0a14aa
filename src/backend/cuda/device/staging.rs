//! Copies from host memory that the device cannot read as it lies: through page-locked memory, or by locking its pages.

use super::fault::Answer;
use crate::error::Result;
use cust::event::{Event, EventFlags};
use cust::memory::LockedBuffer;
use cust::stream::Stream;
use cust::sys;
use rayon::prelude::*;
use std::collections::VecDeque;
use std::ffi::c_void;

/// Copies above this many bytes are worth locking pages for.
const WORTH_LOCKING: usize = 4 << 20;
/// Bytes whose pages are locked at once, and the boundary at which one lock ends and the next begins: a multiple of any
/// page size.
const LOCKED: usize = 256 << 20;
const PAGES: usize = 64 << 10;
/// Pieces in which threads copy into page-locked memory.
const PIECE: usize = 4 << 20;

/// How weights get to the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightPath {
    /// Through a ring of page-locked buffers.
    Ring,
    /// Straight from the pages of the file, locked while they are read.
    Locked,
}

/// The first driver whose pages, locked to be read only, are not marked as written when they are let go: up to CUDA 12.7
/// (driver 565) the kernel module marks every one, so that the system writes the whole model file back to disk, and some
/// file systems of older kernels stop at such a page.
const LOCKS_CLEANLY: (i32, i32) = (12, 8);

/// The best way for weights with a driver of this CUDA version, on a device that `locks` pages to read only or does not.
pub(super) fn best_path(driver: (i32, i32), locks: bool) -> WeightPath {
    if locks && driver >= LOCKS_CLEANLY { WeightPath::Locked } else { WeightPath::Ring }
}

/// Page-locked buffers, used in turn.
pub(super) struct Ring {
    slots: Vec<Slot>,
    next: usize,
}

struct Slot {
    bytes: LockedBuffer<u8>,
    /// The device has read the buffer.
    read: Event,
}

impl Ring {
    pub fn new(slots: usize, bytes: usize) -> Result<Self> {
        let slot = |_| {
            let bytes = LockedBuffer::new(&0, bytes).or_fault("page-locked memory for copies")?;
            Ok(Slot { bytes, read: Event::new(EventFlags::DISABLE_TIMING).or_fault("an event")? })
        };
        Ok(Ring { slots: (0..slots).map(slot).collect::<Result<_>>()?, next: 0 })
    }

    /// Queues a copy of `from`, whose bytes are in the ring or on the device when this returns.
    pub fn send(&mut self, stream: &Stream, mut to: u64, mut from: &[u8]) -> Result<()> {
        while !from.is_empty() {
            let at = self.next;
            self.next = (at + 1) % self.slots.len();
            let slot = &mut self.slots[at];
            slot.read.synchronize().or_fault("copy to the device")?;
            let (piece, rest) = from.split_at(from.len().min(slot.bytes.len()));
            let bytes = &mut slot.bytes[..piece.len()];
            if piece.len() <= PIECE {
                bytes.copy_from_slice(piece);
            } else {
                bytes
                    .par_chunks_mut(PIECE)
                    .zip(piece.par_chunks(PIECE))
                    .for_each(|(to, from)| to.copy_from_slice(from));
            }
            // SAFETY: the caller owns the device bytes from `to` on; the buffer is not written or freed before `read`.
            let answer = unsafe { copy(stream, to, bytes) };
            // Recorded even after a failure: it must not seem that the buffer is free.
            slot.read.record(stream).or_fault("copy to the device")?;
            answer.or_fault("copy to the device")?;
            to += piece.len() as u64;
            from = rest;
        }
        Ok(())
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        for slot in &self.slots {
            // A lost device reads nothing.
            let _ = slot.read.synchronize();
        }
    }
}

/// Pages that the device may read until this is dropped.
struct Lock<'a> {
    bytes: &'a [u8],
    read: Event,
}

impl<'a> Lock<'a> {
    /// Locks the pages of `bytes`; `None` if the system refuses.
    fn new(bytes: &'a [u8]) -> Result<Option<Self>> {
        let read = Event::new(EventFlags::DISABLE_TIMING).or_fault("an event")?;
        let at = bytes.as_ptr() as *mut c_void;
        // SAFETY: the pages hold a live slice, and are only read; dropping this unlocks them while the slice still lives.
        let answer = unsafe { sys::cuMemHostRegister_v2(at, bytes.len(), sys::CU_MEMHOSTREGISTER_READ_ONLY) };
        Ok((answer == sys::CUresult::CUDA_SUCCESS).then(|| Lock { bytes, read }))
    }
}

impl Drop for Lock<'_> {
    fn drop(&mut self) {
        let _ = self.read.synchronize();
        // SAFETY: `new` registered this address, and the device has read what was queued.
        unsafe { sys::cuMemHostUnregister(self.bytes.as_ptr() as *mut c_void) };
    }
}

/// Copies `from` by locking its pages, and returns what the device has read. Returns the bytes that are left if the
/// system refuses to lock them, or if they are too few to be worth it.
pub(super) fn send_locked<'a>(stream: &Stream, mut to: u64, mut from: &'a [u8]) -> Result<&'a [u8]> {
    let mut reading = VecDeque::new();
    while from.len() > WORTH_LOCKING {
        let end = from.as_ptr() as usize + LOCKED;
        let (piece, rest) = from.split_at((LOCKED - end % PAGES).min(from.len()));
        let Some(lock) = Lock::new(piece)? else { break };
        // SAFETY: the caller owns the device bytes from `to` on; the pages stay locked until the mark has passed.
        let answer = unsafe { copy(stream, to, piece) };
        lock.read.record(stream).or_fault("copy to the device")?;
        answer.or_fault("copy to the device")?;
        to += piece.len() as u64;
        from = rest;
        reading.push_back(lock);
        if reading.len() > 2 {
            // The pages of one are locked while the device reads the two before.
            reading.pop_front();
        }
    }
    for lock in &reading {
        lock.read.synchronize().or_fault("copy to the device")?;
    }
    Ok(from)
}

/// Queues a copy.
///
/// # Safety
/// `from` must stay as it is until the stream has passed, and the device bytes must be the caller's.
unsafe fn copy(stream: &Stream, to: u64, from: &[u8]) -> sys::CUresult {
    // SAFETY: as this function's.
    unsafe { sys::cuMemcpyHtoDAsync_v2(to, from.as_ptr().cast(), from.len(), stream.as_inner()) }
}
