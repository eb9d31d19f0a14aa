//! Runs PTX kernels on the processor and faults on programming errors; see the README of the crate.

mod access;
mod ast;
mod block;
mod collective;
mod convert;
mod decode;
mod execute;
mod fault;
mod float;
mod flow;
mod kernels;
mod launch;
mod lex;
mod matrix;
mod memory;
mod op;
mod order;
mod parse;
mod program;
mod shadow;
mod shared;
mod stats;
mod sums;
mod types;
mod warp;

pub use fault::{Fault, FaultKind, ParseError};
pub use launch::{Launch, Module};
pub use memory::Memory;
pub use stats::{Sectors, Stats, Wavefronts};
pub use sums::TensorCores;
