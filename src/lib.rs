//! Aquatint.
#![deny(unsafe_code, unsafe_op_in_unsafe_fn, missing_docs, clippy::undocumented_unsafe_blocks)]

pub mod codec;
pub mod error;
pub mod format;
pub mod image;
pub mod mmap;
pub mod program;
pub mod rng;
pub mod sampler;

pub use error::{Error, Result};
