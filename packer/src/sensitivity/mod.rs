//! Sensitivity: what each choice of precision for each layer alone does to the output of the network.
//!
//! ```text
//! model --pack--> one file, f32 and all choices as its phases --f32--> states and predictions of some calls (Baseline)
//!                      |                                                        |
//!                      +--one layer as in one phase, all others float--> the same calls --> error at the output
//! ```
//!
//! The error of a layer's own weights or outputs does not say what the network makes of it; measured at the output, errors of
//! single layers add up (methods.md §3.2: to 1 % at the letters), so what is measured here is what a search for bits needs.
//!
//! All choices lie in one packed file whose phases they are, made once (`choices`). A probe is a program of that file in which
//! the nodes of one layer are of another phase ([`Program::mixed`](aquatint::raw::program::Program::mixed)); binding it costs
//! milliseconds, so a probe costs its calls. The choices of one layer are measured together, by a program that has their
//! results side by side and what comes before the layer once ([`Program::side_by_side`](aquatint::raw::program::Program::side_by_side)):
//! over all layers that is about half of the work. Calls are made at states of the f32 model's own run, as those of `packer evaluate` are,
//! and their figures are equal.
//!
//! Every probe that is done is kept beside the output until all are (`partial`), so work goes on where it was interrupted. The
//! numbers of a probe depend on it alone: shards, threads and batches change no byte, and parts are joined by [`merge`].

mod choices;
mod merge;
mod partial;
pub mod record;
mod run;
mod units;

pub(crate) use choices::{Choices, hash_of, precision};
pub use merge::merge;
pub use record::Record;
pub use run::sensitivity;
pub(crate) use run::with_programs;
pub(crate) use units::{Layers, units as layers_of};

use crate::emit::Progress;
use crate::pass::Split;
use crate::source::donors::Donors;
use crate::source::settings::Overrules;
use aquatint::shard::Shard;
use aquatint_evaluation::{Calls, Protocol};
use std::path::{Path, PathBuf};

/// What to measure, and how.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The model, as for packing.
    pub model: PathBuf,
    /// Another one, whose denoiser does the last steps.
    pub refiner: Option<PathBuf>,
    /// Models that give the autoencoder and the text encoders.
    pub donors: Donors,
    /// Settings of the sampler that the model's files say otherwise.
    pub overrules: Overrules,
    /// Layers whose two halves are layers of their own.
    pub split: Vec<Split>,
    /// The precisions that layers are tried in, each a SPEC such as `w4a8:kmeans`. A layer is what packing with it makes of it.
    pub choices: Vec<String>,
    /// Globs of layers that are tried as an entry of a configuration has them that names them.
    pub named: Vec<String>,
    /// The SPEC of all other layers: what packing with it makes of them.
    pub environment: String,
    /// Statistics of the inputs of layers, by which codes are chosen.
    pub calibration: Option<PathBuf>,
    /// Globs of layers' paths: what one matches changes together, beside each layer alone.
    pub groups: Vec<String>,
    /// With which images, and at which calls.
    pub protocol: Protocol,
    /// The file that the protocol's captions are of.
    pub prompts: Option<PathBuf>,
    /// The part of the probes to make, those whose number is its index modulo the number of shards; all if absent.
    pub shard: Option<Shard>,
    /// Where to leave the file that holds the model in all choices: a search measures whole configurations with it.
    pub keep: Option<PathBuf>,
    /// The file to write.
    pub output: PathBuf,
}

impl Settings {
    /// Images, unless the caller says otherwise.
    pub const IMAGES: usize = 16;
    /// Calls of an image that are looked at, likewise.
    pub const CALLS: usize = 6;
    /// Seed of the first image, likewise: far from those of calibration and of evaluation, which must not judge by the images
    /// that precisions were chosen by.
    pub const SEED: u64 = 3_000_000;

    /// The defaults.
    pub fn new(model: PathBuf, output: PathBuf) -> Self {
        Settings {
            model,
            refiner: None,
            donors: Donors::default(),
            split: Vec::new(),
            overrules: Overrules::default(),
            choices: ["w2a8:kmeans", "w3a8:kmeans", "w4a8:kmeans", "w8a8"].map(str::to_owned).into(),
            named: Vec::new(),
            environment: "f32".into(),
            calibration: None,
            keep: None,
            groups: Vec::new(),
            protocol: Protocol {
                images: Self::IMAGES,
                calls: Calls::AtMost(Self::CALLS),
                seed: Self::SEED,
                ..Protocol::default()
            },
            prompts: None,
            shard: None,
            output,
        }
    }
}

/// What happens.
#[derive(Debug)]
pub enum Event<'a> {
    /// The model is packed in all choices.
    Packing(Progress<'a>),
    /// Work of an earlier, interrupted command was found and is gone on with.
    Resumed(&'a Path),
    /// The reference makes its images: calls of images that are done, and all.
    Reference(u64, u64),
    /// What is to come, before it begins.
    Bill(Bill),
    /// Calls of images that probes are done with, and all.
    Done(u64, u64),
    /// A probe was saved.
    Saved,
}

/// What the probes cost.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bill {
    /// Layers, and groups of them.
    pub units: usize,
    /// Choices of each.
    pub choices: usize,
    /// Probes of this shard that are not done.
    pub probes: usize,
    /// Images.
    pub images: usize,
    /// Calls of an image that are looked at.
    pub calls: usize,
    /// Arithmetic operations of one call of one image, guidance included.
    pub operations: f64,
}
