//! The devices of this machine, and whether they can be used.

use super::fault::{Answer, NO_DEVICE, STUB_LIBRARY, fault};
use crate::error::{Error, Result};
use cust::device::{Device as Handle, DeviceAttribute};
use cust::{CudaApiVersion, sys};

/// The oldest driver that has every entry used here, as (major, minor) of its CUDA version.
pub const OLDEST_DRIVER: (i32, i32) = (11, 4);
/// The least compute capability that the kernels run on.
pub const LEAST_CAPABILITY: (i32, i32) = (8, 0);

/// What can be said of a device without using it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Its number, as the driver counts.
    pub index: usize,
    /// Its product name.
    pub name: String,
    /// Its compute capability: (9, 0) is `sm_90`.
    pub capability: (i32, i32),
    /// Its memory in bytes.
    pub memory: usize,
    /// The CUDA version of the driver.
    pub driver: (i32, i32),
}

impl DeviceInfo {
    /// Refuses a device that cannot run the kernels.
    pub fn check(&self) -> Result<()> {
        let what = || format!("CUDA device {} ({})", self.index, self.name);
        if self.driver < OLDEST_DRIVER {
            let (major, minor) = OLDEST_DRIVER;
            let expected = format!("a driver of CUDA {major}.{minor} or later; update it");
            return Err(Error::device(what(), expected, format!("{}.{}", self.driver.0, self.driver.1)));
        }
        if self.capability < LEAST_CAPABILITY {
            let (major, minor) = LEAST_CAPABILITY;
            let expected = format!("compute capability {major}.{minor} or later; use another device, or the CPU");
            return Err(Error::device(what(), expected, format!("{}.{}", self.capability.0, self.capability.1)));
        }
        Ok(())
    }
}

/// The devices of this machine that answer; empty without a driver.
pub fn devices() -> Vec<DeviceInfo> {
    find_devices().unwrap_or_default().into_iter().flatten().collect()
}

/// The devices of this machine by number, each with what is known of it or why it does not answer; or why there are
/// none: no driver, no device, a driver that fails.
pub fn find_devices() -> Result<Vec<Result<DeviceInfo>>> {
    let driver = start()?;
    let count = Handle::num_devices().or_fault("counting CUDA devices")? as usize;
    Ok((0..count).map(|i| describe(i, driver)).collect())
}

/// What is known of the device `index`, which must be fit for use.
pub fn inspect(index: usize) -> Result<DeviceInfo> {
    choose(index).map(|(_, info)| info)
}

/// The device `index`, which must be fit for use.
pub(super) fn choose(index: usize) -> Result<(Handle, DeviceInfo)> {
    let what = format!("CUDA device {index}");
    let driver = start()?;
    let count = Handle::num_devices().or_fault(&what)? as usize;
    if index >= count {
        let expected = if count == 1 { "0, the only one".into() } else { format!("one of the {count}, from 0") };
        return Err(Error::device("CUDA device", expected, index));
    }
    let info = describe(index, driver)?;
    info.check()?;
    Ok((Handle::get_device(index as u32).or_fault(what)?, info))
}

/// Starts the driver and returns its CUDA version.
fn start() -> Result<(i32, i32)> {
    let none = || Error::device("CUDA", "an NVIDIA driver (libcuda.so.1); install it, or use the CPU", "none");
    let version = CudaApiVersion::get().map_err(|_| none())?;
    // Not through `cust`, whose errors lack the codes that tell a driver's troubles apart.
    // SAFETY: may be called at any time, and more than once.
    match unsafe { sys::cuInit(0) } as u32 {
        0 => Ok((version.major(), version.minor())),
        code @ (STUB_LIBRARY | NO_DEVICE) => Err(fault("CUDA", code)),
        code => Err(fault("starting the NVIDIA driver", code)),
    }
}

fn describe(index: usize, driver: (i32, i32)) -> Result<DeviceInfo> {
    let what = || format!("CUDA device {index}");
    let handle = Handle::get_device(index as u32).or_fault(what())?;
    let number = |attribute| handle.get_attribute(attribute).or_fault(what());
    let major = number(DeviceAttribute::ComputeCapabilityMajor)?;
    let minor = number(DeviceAttribute::ComputeCapabilityMinor)?;
    Ok(DeviceInfo {
        index,
        name: handle.name().or_fault(what())?,
        capability: (major, minor),
        memory: handle.total_memory().or_fault(what())?,
        driver,
    })
}
