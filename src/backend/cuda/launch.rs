//! What an op hands to the driver.

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
