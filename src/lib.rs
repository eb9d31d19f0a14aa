//! Aquatint.
#![deny(unsafe_code, unsafe_op_in_unsafe_fn, missing_docs, clippy::undocumented_unsafe_blocks)]

pub mod backend;
pub mod codec;
pub mod error;
pub mod exec;
pub mod format;
mod hoist;
pub mod image;
pub mod mmap;
pub mod pipeline;
pub mod plan;
pub mod program;
pub mod rng;
pub mod sampler;

pub use error::{Error, Result};
