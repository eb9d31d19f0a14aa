//! Device memory of one bound program.

use super::args::Frame;
use super::driver::Driver;
use super::weights::Weights;
use crate::backend::Call;
use crate::backend::args::ALIGN;
use crate::error::Result;
use std::cell::Cell;
use std::rc::Rc;

/// An arena on the device, with the weights that its ops read. Behind its bytes lie the numbers of the current model call,
/// which kernels read; a step that was captured ends by counting them up.
pub struct Arena<D: Driver> {
    driver: Rc<D>,
    at: u64,
    bytes: usize,
    /// The call whose numbers the device holds.
    call: Option<Call>,
    /// Calls, of a window and of a run, that the operands of all launches have entries for.
    limit: Cell<Call>,
    /// A captured step.
    pub(super) graph: Option<D::Graph>,
    /// The ends of the newest step and of the one before: two marks, used in turn, so that a step makes none.
    pub(super) ends: Option<[D::Event; 2]>,
    /// Behind the graph, which reads them and goes first.
    weights: Rc<Weights<D>>,
}

const NO_LIMIT: Call = Call { row: usize::MAX, step: usize::MAX };

/// Bytes of device memory that an arena of `bytes` takes.
pub fn allocation(bytes: usize) -> usize {
    bytes.next_multiple_of(ALIGN) + ALIGN
}

impl<D: Driver> Arena<D> {
    /// Allocates `bytes`, uninitialised, for ops that read `weights`.
    ///
    /// # Panics
    /// If those are on another device: a bug of the caller.
    pub(super) fn new(driver: Rc<D>, bytes: usize, weights: Rc<Weights<D>>) -> Result<Self> {
        assert!(weights.are_on(&driver), "weights of another device");
        let at = driver.alloc(allocation(bytes))?;
        let (limit, graph, ends) = (Cell::new(NO_LIMIT), None, None);
        Ok(Arena { driver, at, bytes, call: None, limit, graph, ends, weights })
    }

    /// Forgets the captured step, and with it what its operands have room for.
    pub(super) fn forget(&mut self) {
        self.graph = None;
        self.limit.set(NO_LIMIT);
    }

    /// Where kernels find their operands.
    pub(super) fn frame(&self) -> Frame<'_> {
        Frame::new(self.at, self.bytes, self.calls(), self.call, &self.limit, self.weights.runs())
    }

    /// Where the numbers of the current call lie.
    fn calls(&self) -> u64 {
        self.at + self.bytes.next_multiple_of(ALIGN) as u64
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
    ///
    /// # Panics
    /// If operands of an op issued before have no entry for it: a bug of the caller.
    pub(super) fn set_call(&mut self, call: Call) -> Result<()> {
        let limit = self.limit.get();
        assert!(call.row < limit.row && call.step < limit.step, "{call:?}, but operands end before {limit:?}");
        if self.call == Some(call) {
            return Ok(());
        }
        let mut bytes = [0; 8];
        bytes[..4].copy_from_slice(&(call.row as u32).to_le_bytes());
        bytes[4..].copy_from_slice(&(call.step as u32).to_le_bytes());
        self.driver.upload(self.calls(), &bytes)?;
        self.call = Some(call);
        Ok(())
    }

    /// The device has counted the current call up.
    pub(super) fn advanced(&mut self) {
        self.call = self.call.map(|c| Call { row: c.row + 1, step: c.step + 1 });
    }
}

impl<D: Driver> Drop for Arena<D> {
    fn drop(&mut self) {
        self.driver.free(self.at);
    }
}
