//! Aquatint runs quantized diffusion models from one memory-mapped file.
//!
//! ```text
//! model directory --packer--> model.aqt --map--> Packed --bind--> Executor --step loop--> latents --decode--> image
//! ```
//!
//! A packed file holds *programs* (networks as flat lists of coarse ops), tensors as bit-packed codes with codebooks and
//! scales, and the settings of its pipeline. Opening it reads no weight. Binding a program to a batch and size works out
//! an exact memory plan; after that nothing is allocated. Products of 8-bit activations by 2- to 8-bit weights run in
//! integers, where the weights lie.
//!
//! ```no_run
//! use aquatint::{backend::cpu::Tier, format::Packed, mmap::map, pipeline::{Pipeline, Subjects}, with_cpu};
//!
//! let packed = Packed::new(map("model.aqt".as_ref())?)?;
//! let pipeline = Pipeline::new(&packed)?;
//! let request = pipeline.request(Subjects::Classes(vec![0, 1, 2]));
//! let output = { let cpu = aquatint::backend::cpu::Cpu::new(Tier::available()[0]); pipeline.run(&cpu, &request, &mut |_| ()) }?;
//! assert_eq!(output.images.len(), 3 * output.size[0] * output.size[1] * 3);
//! # Ok::<(), aquatint::Error>(())
//! ```
//!
//! From the file upwards:
//!
//! * [`format`](mod@format) the `.aqt` file: its specification, reader, verifier and writer; [`mmap`] maps it,
//!   [`whole_file`] writes it
//! * [`codec`] the one weight codec: code -> codebook -> scale
//! * [`program`] ops, shapes, rates; [`plan`] memory; [`exec`] the executor
//! * [`backend`] one method per op; [`backend::cpu`] AVX-512-VNNI, AVX2 and portable code; [`backend::cuda`] CUDA devices
//! * [`text`] prompts to tokens and weights
//! * [`sampler`] samplers as tables of coefficients; [`rng`] torch's and our own noise; [`image`](mod@image) PNG
//! * [`step`] the places of a sampling run; [`pipeline`] from a request to pictures
//!
//! The library never prints, exits, or reads the environment or the clock. `unsafe` code is confined to [`mmap`],
//! `backend::cpu::simd`, and `launch` and `device` of [`backend::cuda`]; the last is there with the feature `cuda` only.
#![deny(unsafe_code, unsafe_op_in_unsafe_fn, missing_docs, clippy::undocumented_unsafe_blocks)]

pub mod backend;
pub mod codec;
pub mod error;
pub mod exec;
pub mod format;
mod hoist;
pub mod image;
pub mod mmap;
pub mod model;
pub mod options;
pub mod pipeline;
pub mod plan;
pub mod program;
pub mod rng;
pub mod sampler;
pub mod step;
pub mod text;
pub mod whole_file;

pub use error::{Error, Result};
