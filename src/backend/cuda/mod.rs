//! The CUDA back end: kernels as PTX text, and what it takes to run them.
//!
//! * [`driver`] what the back end needs of a driver
//! * [`device`] a device behind the driver of this machine
//! * [`MODULES`] the kernels; the driver compiles them for the device it has

pub mod device;
pub mod driver;

mod modules {
    include!(concat!(env!("OUT_DIR"), "/modules.rs"));
}

pub use modules::MODULES;
