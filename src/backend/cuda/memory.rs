//! Device memory of one bound program.

use super::args::Frame;
use super::driver::Driver;
use crate::backend::Call;
use crate::codec::layout::round_up;
use crate::error::Result;
use crate::plan::ALIGN;
use std::rc::Rc;

/// An arena on the device. Behind its bytes lie the numbers of the current model call, which kernels read; a step that
/// was captured ends by counting them up.
pub struct Arena<D: Driver> {
    driver: Rc<D>,
    at: u64,
    bytes: usize,
    /// The call whose numbers the device holds.
    call: Option<Call>,
    /// A captured step.
    pub(super) graph: Option<D::Graph>,
    /// The ends of the newest step and of the one before: two marks, used in turn, so that a step makes none.
    pub(super) ends: Option<[D::Event; 2]>,
}

/// Bytes of device memory that an arena of `bytes` takes.
pub fn allocation(bytes: usize) -> usize {
    round_up(bytes, ALIGN) + ALIGN
}

impl<D: Driver> Arena<D> {
    /// Allocates `bytes`, uninitialised.
    pub(super) fn new(driver: Rc<D>, bytes: usize) -> Result<Self> {
        let at = driver.alloc(allocation(bytes))?;
        Ok(Arena { driver, at, bytes, call: None, graph: None, ends: None })
    }

    /// Where kernels find their operands.
    pub(super) fn frame(&self) -> Frame {
        Frame { arena: self.at, calls: self.at + round_up(self.bytes, ALIGN) as u64 }
    }

    /// The device address of bytes `at..at + len`.
    ///
    /// # Panics
    /// If they are not all inside: a bug of the caller.
    pub(super) fn place(&self, at: usize, len: usize) -> u64 {
        assert!(at.checked_add(len).is_some_and(|end| end <= self.bytes), "{len} bytes at {at} of {}", self.bytes);
        self.at + at as u64
    }

    /// Lets the device know the current call.
    pub(super) fn set_call(&mut self, call: Call) -> Result<()> {
        if self.call == Some(call) {
            return Ok(());
        }
        let mut bytes = [0; 8];
        bytes[..4].copy_from_slice(&(call.window as u32).to_le_bytes());
        bytes[4..].copy_from_slice(&(call.run as u32).to_le_bytes());
        self.driver.upload(self.frame().calls, &bytes)?;
        self.call = Some(call);
        Ok(())
    }

    /// The device has counted the current call up.
    pub(super) fn advanced(&mut self) {
        self.call = self.call.map(|c| Call { window: c.window + 1, run: c.run + 1 });
    }
}

impl<D: Driver> Drop for Arena<D> {
    fn drop(&mut self) {
        self.driver.free(self.at);
    }
}
