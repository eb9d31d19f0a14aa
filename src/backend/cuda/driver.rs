//! What the CUDA back end needs of a driver: memory by address, modules, one stream of work, graphs, events.
//!
//! Device addresses are plain numbers; whoever launches a kernel promises that it stays within what
//! was allocated, which the back end proves. A driver
//! is used from one thread. Calls that queue work return at once, and a fault of that work is reported by a later call.

use crate::error::{Error, Result};

/// A device and its stream of work.
pub trait Driver {
    /// A loaded module. Its functions stay valid while the driver lives.
    type Module;
    /// A kernel, ready to launch.
    type Function: Copy;
    /// Captured work, ready to replay.
    type Graph;
    /// A point in the stream.
    type Event;

    /// The device, for reports: `NVIDIA A100, sm_80`.
    fn name(&self) -> String;

    /// The device's memory.
    fn memory(&self) -> Result<MemoryInfo>;

    /// Multiprocessors of the device.
    fn processors(&self) -> usize;

    /// Allocates device memory, aligned to 256 bytes. No bytes have the address 0.
    fn alloc(&self, bytes: usize) -> Result<u64>;

    /// Gives memory back, once the work queued so far is done with it. Panics for an address that is not allocated.
    fn free(&self, at: u64);

    /// Compiles a module for the device. `name` is for reports.
    fn load(&self, name: &str, ptx: &str) -> Result<Self::Module>;

    /// [`load`](Self::load) of several modules, names and texts; side by side where the driver can.
    fn load_all(&self, texts: &[(&str, &str)]) -> Result<Vec<Self::Module>> {
        texts.iter().map(|(name, ptx)| self.load(name, ptx)).collect()
    }

    /// The kernel `name` of `module`, to be launched with at most `dynamic_shared` bytes of dynamic shared memory.
    fn function(&self, module: &Self::Module, name: &str, dynamic_shared: usize) -> Result<Self::Function>;

    /// Queues a copy to the device. `from` may be reused on return. Not to be captured.
    fn upload(&self, to: u64, from: &[u8]) -> Result<()>;

    /// Queues a copy of many bytes that lie in a mapped file. `from` may be unmapped on return; the copy is done when
    /// the stream has passed. Not to be captured.
    fn upload_weights(&self, to: u64, from: &[u8]) -> Result<()>;

    /// Copies from the device and waits for it. Not to be captured.
    fn download(&self, from: u64, to: &mut [u8]) -> Result<()>;

    /// Queues setting bytes.
    fn fill(&self, at: u64, byte: u8, bytes: usize) -> Result<()>;

    /// Queues a kernel that takes one structure by value, whose bytes are `args`.
    ///
    /// # Safety
    /// Every address that the kernel works out from `args`, at this launch or at any replay of a capture that holds it,
    /// lies in memory that [`alloc`](Self::alloc) of this driver gave and that is not freed before the kernel is done.
    #[allow(unsafe_code)] // It is declared here and called in `launch`.
    unsafe fn launch(
        &self,
        function: Self::Function,
        grid: [u32; 3],
        block: u32,
        dynamic_shared: usize,
        args: &[u8],
    ) -> Result<()>;

    /// Records what `body` queues, without running it.
    fn capture(&self, body: impl FnOnce() -> Result<()>) -> Result<Self::Graph>;

    /// Queues captured work.
    fn replay(&self, graph: &Self::Graph) -> Result<()>;

    /// Marks the end of the work queued so far, to wait for.
    fn mark(&self) -> Result<Self::Event>;

    /// Moves a mark to the end of the work queued so far; a timed one stays timed.
    fn move_mark(&self, event: &Self::Event) -> Result<()>;

    /// Marks the end of the work queued so far, to take the time of.
    fn mark_time(&self) -> Result<Self::Event>;

    /// Waits until the stream has passed a mark.
    fn wait_for(&self, event: &Self::Event) -> Result<()>;

    /// Seconds from one timed mark to a later one; waits for the later.
    fn elapsed(&self, from: &Self::Event, to: &Self::Event) -> Result<f64>;

    /// Waits for all queued work.
    fn wait(&self) -> Result<()>;
}

/// The memory of a device, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryInfo {
    /// What can still be allocated, by any process.
    pub free: usize,
    /// What the device has.
    pub total: usize,
}

/// The bytes of the one structure that the kernel `name` takes by value, from its module's text.
pub fn args_bytes(ptx: &str, name: &str) -> Result<usize> {
    let entry = ptx.match_indices(".entry ").map(|(at, word)| ptx[at + word.len()..].trim_start());
    let list = entry.filter_map(|rest| rest.strip_prefix(name)?.trim_start().strip_prefix('(')).next();
    let list = list.ok_or_else(|| Error::device(format!("kernel {name}"), "an entry of its module", "none"))?;
    let list = &list[..list.find(')').unwrap_or(0)];
    let bytes = match list.split(".param").collect::<Vec<_>>()[..] {
        [_, one] => one.rsplit_once('[').and_then(|(_, size)| size.trim().trim_end_matches(']').parse().ok()),
        _ => None,
    };
    bytes.ok_or_else(|| Error::device(format!("kernel {name}"), "one structure by value", list.trim()))
}

/// The ISA version that a module's text claims, as written; empty if it claims none.
pub fn isa_version(ptx: &str) -> &str {
    ptx.lines().find_map(|line| line.strip_prefix(".version ")).unwrap_or("").trim()
}

/// The latest PTX ISA version that a driver of CUDA `major.minor` compiles.
pub fn isa_of_driver(major: i32, minor: i32) -> String {
    match (major, minor) {
        (11, minor) => format!("7.{minor}"),
        (12, minor @ 0..=5) => format!("8.{minor}"),
        // CUDA 12.7 added no version of its own.
        (12, 6) => "8.5".into(),
        (12, 7) => "8.6".into(),
        (12, minor) => format!("8.{}", minor - 1),
        (major, minor) => format!("{}.{minor}", major - 4),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PTX: &str = "//\n.version 7.4\n.target sm_80\n.visible .entry one(\n\t.param .align 8 .b8 one_param_0[24]\n)\n\
                       {\n}\n.visible .entry two(\n\t.param .u64 two_param_0,\n\t.param .u32 two_param_1\n)\n{\n}\n";

    #[test]
    fn args_of_entries() {
        assert_eq!(args_bytes(PTX, "one").unwrap(), 24);
        let e = args_bytes(PTX, "two").unwrap_err().to_string();
        assert!(e.starts_with("kernel two: expected one structure by value"), "{e}");
        assert_eq!(
            args_bytes(PTX, "on").unwrap_err().to_string(),
            "kernel on: expected an entry of its module, got none"
        );
    }

    #[test]
    fn every_shipped_kernel_takes_one_structure() {
        for (module, ptx) in super::super::MODULES {
            let entries = ptx.match_indices(".entry ").map(|(at, word)| &ptx[at + word.len()..]);
            for name in entries.filter_map(|rest| rest.split(['(', '\n']).next()) {
                let bytes = args_bytes(ptx, name.trim()).unwrap_or_else(|e| panic!("{module}: {e}"));
                assert!(bytes > 0, "{module}: {name}");
            }
        }
    }

    #[test]
    fn isa_versions() {
        assert_eq!(isa_version(PTX), "7.4");
        let versions = [(11, 4, "7.4"), (11, 8, "7.8"), (12, 0, "8.0"), (12, 2, "8.2"), (12, 4, "8.4"), (13, 0, "9.0")];
        for (major, minor, isa) in versions {
            assert_eq!(isa_of_driver(major, minor), isa);
        }
    }
}
