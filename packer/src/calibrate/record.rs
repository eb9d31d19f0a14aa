//! What a calibration file says of itself, as JSON in its metadata.

use aquatint::raw::format::Meta;
use aquatint::raw::format::meta::{PipelineMeta, SourceMeta};
use aquatint::sampler;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The version of files that this program reads and writes.
pub const VERSION: u32 = 3;

/// How weights' files are named.
const WEIGHTS: [&str; 5] = ["safetensors", "bin", "pt", "pth", "ckpt"];

/// All but the numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// [`VERSION`].
    pub version: u32,
    /// Name and version of the program that wrote the file.
    pub tool: String,
    /// The model.
    pub model: ModelRecord,
    /// The runs that it was seen in.
    pub run: RunRecord,
    /// The samples.
    pub shards: Shards,
    /// The inputs that were seen.
    pub inputs: Vec<InputRecord>,
    /// By a weight's name in a packed file, the inputs of its layers.
    pub layers: BTreeMap<String, Vec<usize>>,
}

/// A model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelRecord {
    /// Its name, for people.
    pub name: String,
    /// Its pipeline's class.
    pub class: String,
    /// The files that the calibrated components' weights are in, with their hashes.
    pub weights: BTreeMap<String, String>,
}

/// How images were made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunRecord {
    /// Images in all.
    pub images: usize,
    /// Sampler steps.
    pub steps: usize,
    /// The sampler.
    pub sampler: sampler::Config,
    /// Guidance scale.
    pub guidance_scale: f32,
    /// Seed of the first image.
    pub seed: u64,
    /// Where noise comes from: `fast` or `torch`.
    pub noise: String,
    /// What each image shows.
    pub prompts: Vec<String>,
    /// As many conditions, the images' own or more classes, gave what depends on conditions and timesteps alone.
    pub conditions: usize,
    /// The root hash of the packed file whose own run gave the states; none if the float model's did.
    pub trajectory: Option<String>,
    /// All calls of an image.
    pub calls: Vec<CallRecord>,
    /// The calls that were looked at.
    pub chosen: Vec<usize>,
}

/// A model call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CallRecord {
    /// Its network.
    pub role: String,
    /// The timestep that the network receives.
    pub timestep: f32,
    /// The share of the run that lies before.
    pub fraction: f32,
}

/// Which samples a file has: image i is part of shard `i % of`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shards {
    /// How many there are.
    pub of: usize,
    /// Those that the file has, ascending.
    pub parts: Vec<usize>,
}

/// How an input's second moments are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Second {
    /// All of them.
    Dense,
    /// By displacement.
    Toeplitz,
}

/// When an input is seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum When {
    /// Once per condition.
    Prompt,
    /// At each call of the run, once per condition.
    Call,
    /// At the chosen calls, for each sample.
    Sample,
}

/// A layer's input.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InputRecord {
    /// The program that has it.
    pub role: String,
    /// The value's number there.
    pub value: u32,
    /// When it is seen.
    pub when: When,
    /// Its channels.
    pub channels: usize,
    /// Height and width of the kernel that looks at it, if one does.
    pub kernel: Option<[usize; 2]>,
    /// How second moments are kept.
    pub second: Second,
    /// Calls that ranges and histograms are of.
    pub calls: usize,
    /// The share of rows that was kept, in units of 2^-64; none if all were.
    pub share: Option<u64>,
}

impl InputRecord {
    /// Values of a row, `K`; none if that is no number.
    pub fn inputs(&self) -> Option<usize> {
        let taps = self.kernel.map_or(Some(1), |[h, w]| h.checked_mul(w))?;
        self.channels.checked_mul(taps)
    }
}

impl ModelRecord {
    /// The model of a packed file, as far as weights in `components` make it.
    pub fn new(meta: &Meta, components: &[&str]) -> Self {
        Self::of_sources(&meta.pipeline, &meta.sources, components)
    }

    /// The model that is made from `sources`, as far as weights in `components` make it.
    pub fn of_sources(pipeline: &PipelineMeta, sources: &[SourceMeta], components: &[&str]) -> Self {
        let of = |file: &str| match file.split_once('/') {
            Some((component, _)) => components.contains(&component),
            // One file with everything.
            None => true,
        };
        let is_weights = |file: &str| file.rsplit_once('.').is_some_and(|(_, kind)| WEIGHTS.contains(&kind));
        let weights = sources.iter().filter(|s| of(&s.file) && is_weights(&s.file));
        let weights = weights.map(|SourceMeta { file, xxh3, .. }| (file.clone(), xxh3.clone())).collect();
        ModelRecord { name: pipeline.name.clone(), class: pipeline.class.clone(), weights }
    }
}

impl Record {
    /// The components that the layers belong to.
    pub fn components(&self) -> Vec<&str> {
        let mut components: Vec<&str> = self.layers.keys().filter_map(|name| Some(name.split_once('/')?.0)).collect();
        components.dedup();
        components
    }

    /// What must be equal in files that are parts of one calibration.
    pub fn common(&self) -> Self {
        Record { shards: Shards { of: self.shards.of, parts: Vec::new() }, ..self.clone() }
    }
}
