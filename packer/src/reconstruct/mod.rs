//! Reconstruction: quantized weights trained so that layers, or whole blocks, make what the float network makes.
//!
//! ```text
//! model, configuration, calibration
//!   --unit layer: moments of inputs --AdaRound on tr (W - Q) H (W - Q)^T--------------------+
//!   --unit block: float runs --values before each block, float and quantized stream--       +--> R.safetensors
//!                 AdaRound (BRECQ), or levels and biases for fixed codes, by derivatives ---+
//!                 then steps of activations, by derivatives --------------------------------+
//! ```
//!
//! Units are trained in the order in which the network runs them. In block reconstruction two streams of values go through it side
//! by side: the float one gives targets, and the quantized one, with all weights before as they have become,
//! gives inputs, as BRECQ's and Q-Diffusion's "asym" has it. A layer that is split is two products whose sum is its output;
//! both are trained together, for that.
//!
//! Where steps of activations are learned ([`Steps`]), that follows in each unit when its weights are done, and is given what the
//! float network has, as the published second stage does, which does not follow the quantized one either. Only values that later segments read are kept, in memory of which
//! there is a bound, and only one unit's weights are.
//!
//! What is done is in a folder beside the output, unit by unit; the same command goes on with it. The result is a file of the
//! codec's own matrices ([`file`](mod@file)), which `--import` packs bit for bit.

mod activations;
mod adam;
mod block;
mod curve;
pub mod file;
mod known;
pub mod layer;
mod levels;
mod network;
mod outcome;
mod partial;
mod run;
mod samples;
mod segments;
mod steps;
#[cfg(test)]
mod tests;
mod trainee;
mod walk;

pub use adam::Adam;
pub use block::Block;
pub use curve::Curve;
pub use file::Reconstruction;
pub use levels::Levels;
pub use run::{Event, Report, reconstruct};
pub use segments::{Segment, segments};
pub use steps::Steps;
pub use trainee::Trainee;

use crate::emit::ActivationRanges;
use crate::pass::Split;
use crate::quantize::adaround::Schedule;
use crate::source::donors::Donors;
use crate::source::settings::Overrules;
use std::path::PathBuf;

/// How long and how fast to train.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Training {
    /// Steps of the optimiser per unit.
    pub iterations: usize,
    /// Its rate.
    pub rate: f32,
    /// The weight of the regularizer of directions.
    pub weight: f32,
}

/// What is trained together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Each layer, by the moments of its inputs.
    Layer,
    /// Each block, by samples.
    Block,
}

/// What is learned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Learned {
    /// In which direction each weight is rounded, on uniform levels.
    Rounding,
    /// Levels and biases, for codes that error feedback chose.
    Levels,
    /// Nothing of weights: they are what packing with the calibration makes of them.
    Nothing,
}

/// How long and how fast to train steps of activations.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepTraining {
    /// Steps of the optimiser per unit.
    pub iterations: usize,
    /// Its rate, relative to the steps that there are before.
    pub rate: f32,
}

/// Ranges of activations that are learned.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Activations {
    /// What they begin as; those of the configuration if none.
    pub ranges: Option<ActivationRanges>,
    /// How.
    pub training: StepTraining,
}

/// What to reconstruct, and how.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The model, as for packing.
    pub model: PathBuf,
    /// Models that give the autoencoder and the text encoders.
    pub donors: Donors,
    /// Settings of the sampler that the model's files say otherwise.
    pub overrules: Overrules,
    /// Quantization of the denoiser: a file or a specification.
    pub q_config: String,
    /// Layers over two values side by side that are trained in halves, beside those that `q_config` splits.
    pub split: Vec<Split>,
    /// What is known of the inputs of layers, and how images are made.
    pub calibration: PathBuf,
    /// The file to write.
    pub output: PathBuf,
    /// What is trained together.
    pub unit: Unit,
    /// What is learned of weights.
    pub learned: Learned,
    /// How.
    pub training: Training,
    /// What is learned of activations, when the weights of a unit are what they become.
    pub activations: Option<Activations>,
    /// Samples of an iteration.
    pub batch: usize,
    /// Samples in all.
    pub samples: usize,
    /// A file with a prompt or class per line.
    pub prompts: Option<PathBuf>,
    /// Most bytes of values that are kept.
    pub memory: usize,
}

impl Settings {
    /// Iterations, unless the caller says otherwise. The published number is 20,000.
    pub const ITERATIONS: usize = 1000;
    /// Iterations times rate, likewise: as in the published ones, so that directions can go as far in fewer steps.
    pub const REACH: f32 = 20.0;
    /// Iterations for steps of activations, likewise. The published number is 5,000.
    pub const STEP_ITERATIONS: usize = 500;
    /// These times the rate, likewise: a step may lose half of itself.
    pub const STEP_REACH: f32 = 1.0;
    /// The rate for levels, likewise.
    pub const LEVELS_RATE: f32 = 1e-3;
    /// Samples of an iteration, likewise.
    pub const BATCH: usize = 16;
    /// Samples in all, likewise.
    pub const SAMPLES: usize = 256;
    /// Bytes, likewise.
    pub const MEMORY: usize = 4_000_000_000;

    /// The defaults.
    pub fn new(model: PathBuf, q_config: String, calibration: PathBuf, output: PathBuf) -> Self {
        let rate = Self::REACH / Self::ITERATIONS as f32;
        Settings {
            model,
            donors: Donors::default(),
            overrules: Overrules::default(),
            q_config,
            split: Vec::new(),
            calibration,
            output,
            unit: Unit::Block,
            learned: Learned::Rounding,
            training: Training { iterations: Self::ITERATIONS, rate, weight: Schedule::WEIGHT },
            activations: None,
            batch: Self::BATCH,
            samples: Self::SAMPLES,
            prompts: None,
            memory: Self::MEMORY,
        }
    }
}
