//! The workshop: everything below [`Model`](crate::Model) and [`Session`](crate::Session), for tools that make files, run
//! single programs, or look inside. What is here follows the file format and changes with it.
//!
//! * [`format`](mod@format) the `.aqt` file: its specification, reader, verifier and writer; [`mmap`] maps it,
//!   [`whole_file`] writes it
//! * [`codec`] the one weight codec: code -> codebook -> scale
//! * [`program`] ops, shapes; [`hoist`] how often each must run; [`work`] how much arithmetic that is; [`plan`] memory; [`exec`] the executor
//! * [`backend`] one method per op; [`backend::cpu`] AVX-512-VNNI, AVX-VNNI, AVX2 and portable code; [`backend::cuda`] CUDA devices
//! * [`text`] prompts to tokens and weights; [`rng`] torch's and our own noise; [`step`] the places of a sampling run

#[path = "backend/mod.rs"]
pub mod backend;
#[path = "codec/mod.rs"]
pub mod codec;
#[path = "exec/mod.rs"]
pub mod exec;
#[path = "format/mod.rs"]
pub mod format;
#[path = "hoist.rs"]
pub mod hoist;
#[path = "mmap/mod.rs"]
pub mod mmap;
#[path = "plan/mod.rs"]
pub mod plan;
#[path = "program/mod.rs"]
pub mod program;
#[path = "rng.rs"]
pub mod rng;
#[path = "step.rs"]
pub mod step;
#[path = "text/mod.rs"]
pub mod text;
#[path = "whole_file.rs"]
pub mod whole_file;
#[path = "work.rs"]
pub mod work;
