//! The packer turns a full-precision diffusion model into one quantized, memory-mapped file, on a build machine.
//!
//! ```text
//! model directory                                     quantization configuration
//!        |                                                          |
//!     source  ->  lower  ->  weight                             config
//!        |      (programs)  (origin, steps)                         |
//!        |          |           |                                   |
//!        |        pass     ->   |         rework programs and weights of floats
//!        |          |         recipe  <-----------------------------+
//!        |          |      (per weight)
//!        |        pass          |         assign and fuse activation quantizers
//!        |          |           |
//!        +------>  emit  <---- quantize  weight by weight
//!                   |
//!               model.aqt
//! ```
//!
//! * [`source`] reads models as others publish them; it knows no network.
//! * [`lower`] turns a configuration into programs and a list of weights; it knows no quantization.
//! * [`weight`] says where each weight comes from and what is done to it on the way; it can undo that, too.
//! * [`config`] reads what to quantize how; [`recipe`] joins it with the model's layers.
//! * [`pass`] rewrites programs and appends steps to weights; it knows no model.
//! * [`quantize`] turns a matrix into codes; it knows neither.
//! * [`source::tokenizer`] reads what makes tokens of prompts.
//! * [`emit`] runs all of it. [`unpack`] goes the other way, and [`synth`] makes models of true size to try it on;
//!   both write through [`weights`].
//! * [`import`] reads weights that others have quantized, and [`multiquantizer`] writes such a file.
//! * [`calibrate`] runs the float model, to know what the inputs of its layers are like.
//! * [`reverse`] knows the derivatives of programs; [`reconstruct`] trains quantized weights with them.
//! * [`sensitivity`] measures what each precision of each layer does to the output; [`search`] chooses by it within a budget.
//! * [`embeds`] reads features of prompts that others saved.
//! * [`account`] works out the numbers that papers publish.
//! * [`cli`] is the command line: `packer MODEL --q-config w4a8 -o model.aqt`.
#![deny(unsafe_code, missing_docs)]

pub mod account;
pub mod calibrate;
pub mod cli;
pub mod config;
pub mod embeds;
pub mod emit;
pub mod error;
pub mod import;
pub mod lower;
pub mod multiquantizer;
pub mod pass;
pub mod quantize;
pub mod recipe;
pub mod reconstruct;
pub mod reverse;
pub mod search;
pub mod sensitivity;
pub mod source;
pub mod synth;
pub mod unpack;
pub mod weight;
pub mod weights;

pub use error::{Error, Result};
