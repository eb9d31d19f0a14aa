//! The driver's answers, as errors of this library. `cust` asks the driver for texts, and without one there are none; so
//! these are ours.

use crate::error::{Error, Result};
use cust::error::CudaResult;
use cust::sys::CUresult;

pub const OUT_OF_MEMORY: u32 = 2;
pub const STUB_LIBRARY: u32 = 34;
pub const NO_DEVICE: u32 = 100;
pub const INVALID_PTX: u32 = 218;
pub const UNSUPPORTED_PTX: u32 = 222;
pub const DRIVER_MISMATCH: u32 = 803;

/// A driver's answer, to be turned into a result.
pub trait Answer<T> {
    /// The value, or the error of doing `what`.
    fn or_fault<W: Into<String>>(self, what: W) -> Result<T>;
}

impl<T> Answer<T> for CudaResult<T> {
    fn or_fault<W: Into<String>>(self, what: W) -> Result<T> {
        self.map_err(|e| fault(what, e as u32))
    }
}

impl Answer<()> for CUresult {
    fn or_fault<W: Into<String>>(self, what: W) -> Result<()> {
        if self == CUresult::CUDA_SUCCESS { Ok(()) } else { Err(fault(what, self as u32)) }
    }
}

/// The error of doing `what`, to which the driver answered `code`.
pub fn fault(what: impl Into<String>, code: u32) -> Error {
    const ANEW: &str = "a sound kernel before it; the device is lost to this process, which must be started anew";
    let (expected, got) = match code {
        OUT_OF_MEMORY => ("enough device memory; choose a smaller batch or size, or end its other users", "too little"),
        3 | 4 => ("a running driver", "one that is not initialized, or shutting down"),
        STUB_LIBRARY => ("an NVIDIA driver; take the toolkit's stubs off the library path", "a stub of libcuda"),
        46 => ("a device that is free; end its other users", "a device in use"),
        NO_DEVICE => ("an NVIDIA GPU that the driver can use, or the CPU instead", "none"),
        101 => ("a device of this machine", "none of that number"),
        201 | 709 => ("the context of this device", "another, or one that was destroyed"),
        209 => ("kernels for this device", "none that the driver can take"),
        214 | 220 => ("a device in order; restart it", "a hardware error"),
        INVALID_PTX => ("kernels that the driver can compile; update the driver", "an error in the text of the module"),
        221 | 223 => ("a driver that compiles kernels; install it whole", "one without its compiler"),
        UNSUPPORTED_PTX => ("kernels that the driver can compile; update the driver", "kernels newer than the driver"),
        500 => ("a driver or module that has this entry; update the driver", "no such entry"),
        700 => (ANEW, "an access outside memory"),
        701 => ("few enough threads, registers and shared memory for this device", "a launch beyond its resources"),
        702 => ("short kernels on a device that drives a display", "a kernel stopped by the watchdog"),
        714 => (ANEW, "a stack error"),
        715 => (ANEW, "an illegal instruction"),
        716 => (ANEW, "a misaligned access"),
        717 | 718 => (ANEW, "an access to a wrong address space"),
        719 => (ANEW, "a kernel that failed"),
        802 => ("a system that is ready; start NVIDIA's fabric manager", "one that is still starting"),
        DRIVER_MISMATCH => ("one version of driver and kernel module; restart the machine", "two"),
        900..=908 => ("work that can be captured", "work that cannot"),
        _ => ("success", "an error"),
    };
    Error::device(what, expected, format!("{got} (CUDA error {code})"))
}
