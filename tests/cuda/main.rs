//! The CUDA back end: kernels in the PTX emulator and on a device if there is one, and the driver's stand-in.

mod attention;
mod cost;
mod elementwise;
mod extents;
mod gpu_check;
mod kept;
mod modules;
mod norms;
mod ops;
mod pipeline;
#[path = "../../kernels/ptx.rs"]
mod ptx;
mod residence;
#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
mod shim;
