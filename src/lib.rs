//! Aquatint runs quantized diffusion models from one memory-mapped file.
//!
//! ```text
//! model directory --packer--> model.aqt --open--> Packed --prove--> Model --bind--> Session --job--> images
//! ```
//!
//! A packed file holds *programs* (networks as flat lists of coarse ops), tensors as bit-packed codes with codebooks and
//! scales, and the settings of its pipeline. Opening it reads no weight. Binding a program to a batch and size works out
//! an exact memory plan; after that nothing is allocated. Products of 8-bit activations by 2- to 8-bit weights run in
//! integers, where the weights lie.
//!
//! Open a file (here the model inside the library), prove that it is a model, and make images:
//!
//! ```
//! use aquatint::{Cpu, Model, Prompts, Request, Session};
//!
//! let packed = aquatint::letters();           // or aquatint::open("model.aqt")?
//! let model = Model::new(&packed)?;
//! let cpu = Cpu::best();
//! let mut session = Session::new(&model, &cpu);
//!
//! let a = model.classes.as_ref().expect("letters are classes").label("A")?;
//! let mut request = Request::new(&model, Prompts::Classes(vec![a]));
//! request.steps = 2;
//! let output = session.run(request)?;
//! let [height, width] = output.size;
//! assert_eq!(output.images.len(), height * width * 3);
//! # Ok::<(), aquatint::Error>(())
//! ```
//!
//! A request from what a person asks, as a command line or a server has it, and a job that is watched:
//!
//! ```
//! use aquatint::options::RequestOptions;
//! use aquatint::{Cpu, Event, Model, Session};
//!
//! let packed = aquatint::letters();
//! let model = Model::new(&packed)?;
//! let cpu = Cpu::best();
//! let mut session = Session::new(&model, &cpu);
//!
//! let mut options = RequestOptions::default();
//! options.prompts.class_labels = vec!["Q".into()];
//! options.sampling.steps = Some(3);
//! options.sampling.sampler = Some("dpm++2m".into());
//! let mut job = session.job(options.request(&model, None)?)?;
//! while let Some(event) = job.next()? {
//!     if let Event::Step { done, total, .. } = event {
//!         println!("{done} of {total}");
//!         if done == 2 {
//!             let preview = job.preview()?.expect("a batch is at work");
//!             println!("latents of images {:?}: {} numbers", preview.images, preview.latents.len());
//!         }
//!     }
//! }
//! let output = job.finish()?;                 // dropping the job instead would have cancelled it
//! # assert_eq!(output.images.len(), output.size[0] * output.size[1] * 3);
//! # Ok::<(), aquatint::Error>(())
//! ```
//!
//! * [`open`], [`Packed`], [`Model`]: a file, and the proof that it is a model
//! * [`Cpu`], and [`raw::backend::cuda`] with the feature `cuda`: where to compute
//! * [`Session`], [`Request`], [`Job`], [`Event`], [`Output`]: from a request to images; see [`pipeline`]
//! * [`options`]: from what a person asks to a request; [`image`](mod@image): PNG files with the text that tells how
//!   they were made; [`sampler`]: samplers as tables of coefficients
//! * [`samples`]: many images, made in parts by several machines and put together; [`shard`]: which part is a process's own
//! * [`Error`], [`ErrorKind`]: messages for people, kinds for programs
//! * [`raw`]: the workshop below
//!
//! The library never prints, exits, or reads the environment or the clock. `unsafe` code is confined to [`raw::mmap`],
//! `raw::backend::cpu::simd`, and `launch` and `device` of [`raw::backend::cuda`]; the last is there with the feature
//! `cuda` only.
#![deny(unsafe_code, unsafe_op_in_unsafe_fn, missing_docs, clippy::undocumented_unsafe_blocks)]

pub mod error;
pub mod image;
pub mod infotext;
mod letters;
pub mod model;
pub mod options;
pub mod pipeline;
pub mod raw;
pub mod sampler;
pub mod samples;
pub mod shard;

pub use error::{Error, ErrorKind, Result};
pub use letters::letters;
pub use model::Model;
pub use pipeline::{Event, Job, Output, Plans, Preview, Prompts, Request, Session, Texts};
pub use raw::backend::cpu::{Cpu, Tier};
pub use raw::format::Packed;
// Inside the crate the workshop has no door.
use raw::{backend, codec, exec, format, hoist, mmap, plan, program, rng, step, text, whole_file};

/// Opens the packed file at `path`: maps it in a program that called [`raw::mmap::guard`], reads a copy otherwise, which
/// costs its size in memory.
///
/// # Errors
/// [`Error::Io`] if it cannot be read, [`Error::Format`] if it is not sound.
pub fn open(path: impl AsRef<std::path::Path>) -> Result<Packed<raw::mmap::FileBytes>> {
    Packed::open(path)
}
