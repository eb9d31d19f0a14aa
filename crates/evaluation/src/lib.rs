//! Compares quantized models with the model they were made of.
//!
//! ```text
//! reference --run--> states at chosen calls ---> one call of both at each state --> error of the denoiser
//!     |                                                                   (calls)
//!     +--same noise, same prompts--> final latents of all ----------> error of latents
//!                                          |                          (report)
//!                                reference's decoder --> images ----> PSNR, SSIM, LPIPS
//!                                                          |          (pictures, network)
//!                     pictures in folders ----------> classifier ---> read right
//!                     (folders)                       Inception ----> Fréchet and kernel distance, Inception score
//!                                                     CLIP ---------> fit to captions
//!                                                                     (score)
//! ```
//!
//! Everything is paired: image `k` of every file has the same noise and the same prompt, so that differences between files
//! are differences of their weights. Every figure has a 95 % interval, and so has every difference of two files; figures
//! whose difference has an interval around zero are not told apart by these images.
//!
//! Text encoders and decoder are the reference's for all files: what is compared is the denoiser.
//!
//! * [`evaluate`] runs it: [`Protocol`] says with which images, [`Scorer`] who reads them, [`Report`] is what comes out;
//!   [`evaluate_folders`] does the same for pictures that were made already
//! * [`Baseline`] keeps what the reference made, for networks of which only single calls are compared
//! * [`pictures`] PSNR and SSIM; [`score`] classifier, captions, colours, distances of features
//! * [`network`] Inception, LPIPS and CLIP, with weights that the user has
//! * [`stats`] bootstrap, binomial tests and intervals, eigenvalues
//!
//! Images are not kept: a batch is made, measured and dropped; sums, features and marks stay. Statistics are computed in
//! f64, in a fixed order, and random draws are functions of counters: the report is the same for any number of threads.
#![deny(unsafe_code, missing_docs)]

mod arrays;
mod baseline;
mod batch;
mod calls;
mod figures;
mod fit;
mod folders;
mod measured;
pub mod network;
pub mod pictures;
mod protocol;
pub mod report;
mod run;
pub mod score;
pub mod stats;

pub use baseline::Baseline;
pub use folders::{Folder, evaluate_folders};
pub use protocol::{BATCH, Calls, MOST_CALLS, Protocol, SEED};
pub use report::Report;
pub use run::{File, Progress, evaluate};
pub use score::{Captions, Scorer};
