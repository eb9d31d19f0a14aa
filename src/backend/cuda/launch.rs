//! What an op hands to the driver, and the one place where it does.
//!
//! A kernel trusts the addresses and lengths that it is given. They are made in this folder only: places in the arena by
//! [`Frame`](super::args::Frame), which asserts every extent, and finds a tensor in the weights that the arena holds or
//! panics. What a kernel reads as an index (classes, tokens, conditions) was checked when it was written into the arena.
#![allow(unsafe_code)]

use super::driver::Driver;
use crate::error::Result;

/// A kernel: an entry of a compiled module of `kernels/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Kernel {
    /// The module's name.
    pub module: &'static str,
    /// The entry's name.
    pub entry: &'static str,
}

/// One kernel launch.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// What runs.
    pub kernel: Kernel,
    /// Blocks along x, y, z; none may be 0.
    pub grid: [u32; 3],
    /// Threads per block.
    pub block: u32,
    /// Bytes of dynamic shared memory.
    pub shared: usize,
    /// The kernel's argument struct.
    pub args: &'a [u8],
}

impl Launch<'_> {
    /// Hands the kernel to `driver`, as `function`.
    pub(super) fn hand_to<D: Driver>(&self, driver: &D, function: D::Function) -> Result<()> {
        // SAFETY: all launches are made in this folder, from addresses that are proved to lie in live allocations of the
        // same back end (see above): the arena holds the graph that is captured over it and the weights that it reads, and
        // freeing waits for queued work.
        unsafe { driver.launch(function, self.grid, self.block, self.shared, self.args) }
    }
}
