//! Calibration: what the inputs of a model's layers are like while it makes images.
//!
//! ```text
//! model --pack as f32--> runs --states of some calls--> the same calls, looked at --sums per input--> calib.safetensors
//! ```
//!
//! [`calibrate`] runs the float model as it would be run, with its own sampler and guidance, and keeps the latents before
//! some of the calls (`states`). These calls are then made again, and the inputs of quantizable layers looked at
//! (`look`): of each, the mean, second moments and ranges of its rows are kept as sums ([`Sums`]), in a file that
//! [`Calibration`] reads. Layers that read the same value share its sums. Where memory does not hold the sums of all
//! inputs, the calls are made again for each group of them.
//!
//! Rows are those of what is asked for: of a prompt that is shorter than others of its call, its own tokens alone; of a text that
//! is filled up and masked, what an encoder makes of its own tokens; of a video, those of all its frames.
//!
//! Every sum has a fixed order, so a file depends neither on threads nor on batches, and one that was interrupted and
//! continued is the same as one that was not (`partial`). Files of different samples are added ([`merge`]).

pub mod file;
mod hash;
mod inputs;
mod look;
mod merge;
pub(crate) mod model;
mod outline;
mod partial;
mod ranges;
pub mod record;
mod run;
pub(crate) mod samples;
pub(crate) mod states;
pub(crate) mod store;
mod sums;
mod texts;
mod windows;

pub use file::{Calibration, CallRange, Extremes};
pub use merge::merge;
pub use outline::Bill;
pub(crate) use outline::operations;
pub use run::{Event, Report, calibrate};
pub use sums::Sums;

use crate::source::donors::Donors;
use crate::source::settings::Overrules;
use aquatint::options::SamplingOptions;
use aquatint::pipeline::NoiseSource;
use aquatint::shard::Shard;
use std::path::PathBuf;
use std::time::Duration;

/// What to calibrate, and how.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The model, as for packing; or a packed file of f32.
    pub model: PathBuf,
    /// Another one, whose denoiser does the last steps.
    pub refiner: Option<PathBuf>,
    /// Models that give the autoencoder and the text encoders.
    pub donors: Donors,
    /// Settings of the sampler that the model's files say otherwise.
    pub overrules: Overrules,
    /// The file to write.
    pub output: PathBuf,
    /// Calls of an image that are looked at: the middles of as many equal parts of the run.
    pub calls: usize,
    /// Images.
    pub images: usize,
    /// Steps, guidance and sampler; what is absent is as the model was saved.
    pub sampling: SamplingOptions,
    /// Seed of the first image.
    pub seed: u64,
    /// Where noise comes from.
    pub noise: NoiseSource,
    /// A file with a prompt or class per line.
    pub prompts: Option<PathBuf>,
    /// Most bytes of sums at a time.
    pub memory: usize,
    /// Images per pass through the network.
    pub batch: usize,
    /// The part of the images to look at, those whose number is its index modulo the number of shards; all if absent.
    pub shard: Option<Shard>,
    /// A packed file whose own run gives the states.
    pub trajectory: Option<PathBuf>,
    /// Most values of a window of a convolution whose second moments are kept in full.
    pub dense: usize,
    /// How often work is saved at most.
    pub save_every: Duration,
}

impl Settings {
    /// Calls of an image that are looked at, unless the caller says otherwise.
    pub const CALLS: usize = 10;
    /// Images, likewise.
    pub const IMAGES: usize = 64;
    /// The seed, likewise: far from what runs are made with, so that what is measured on those was not calibrated on.
    pub const SEED: u64 = 1_000_000;
    /// Bytes of sums, likewise.
    pub const MEMORY: usize = 4_000_000_000;
    /// Images per pass, likewise.
    pub const BATCH: usize = 8;
    /// Values of a window, likewise.
    pub const DENSE: usize = 2304;

    /// The defaults.
    pub fn new(model: PathBuf, output: PathBuf) -> Self {
        Settings {
            model,
            refiner: None,
            donors: Donors::default(),
            overrules: Overrules::default(),
            output,
            calls: Self::CALLS,
            images: Self::IMAGES,
            sampling: SamplingOptions::default(),
            seed: Self::SEED,
            noise: NoiseSource::Fast,
            prompts: None,
            memory: Self::MEMORY,
            batch: Self::BATCH,
            shard: None,
            trajectory: None,
            dense: Self::DENSE,
            save_every: Duration::from_secs(30),
        }
    }
}
