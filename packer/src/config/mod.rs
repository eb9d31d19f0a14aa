//! Which layer gets which precision: `--q-config FILE|SPEC`.
//!
//! A SPEC is one precision for every layer: `f32`, `f16`, or `w<bits>a<bits>` with an optional method, as in `w4a8`,
//! `w3a16` or `w4a8:kmeans`; the method is `mse` if none is named. Activations have 2 to 8 bits, or are floats (16).
//!
//! A FILE is JSON, TOML, YAML or a pickle (by extension), either the map from layers to values itself, or:
//!
//! ```toml
//! default = "w4a8"            # for layers that nothing else names
//! activations = "a8"          # for values that do not say; 16 (floating point) if absent
//! [layers]
//! "*.ff.*" = "kmeans-4"       # method-bits, as Qua2SeDiMo writes it
//! proj_out_2 = "f16"
//! ```
//!
//! A key is a module path, or a glob over module paths (`*` crosses dots). Nested maps spell a path in pieces. Paths are
//! diffusers'; those that the authors of DiT, PixArt and Open-Sora give to layers are understood as well (`blocks.3.mlp.fc1`),
//! and ViDiT-Q's for parts of their matrices (`blocks.3.attn.q`).
//! Qua2SeDiMo's decorations, `model.` before and `.weight_quantizer` behind, may be left on. **An exact name beats every
//! glob; among globs the one with more literal characters wins, and an equally literal one with another value is an
//! error**, so the order of a map never matters. A layer that nothing matches is an error, and so is a key that matches
//! no layer.
//!
//! A file may also be a list of such maps with what was measured (`quant_cache.pkl`); then `FILE:17` takes one by its
//! number, from 0 on, and `FILE:best` the one of the lowest FID. A list of one needs neither. The recipes of Apple's mixed-bit
//! palettization (`*_palettization_recipe.json`) are such a list, with names: `FILE:recipe_4.50_bit_mixedpalette`. Their
//! bits are of one codebook per tensor, `kmeans_all`; layers that a recipe lacks stay f16.
//!
//! Layers may be other in other stretches of time (ViDiT-Q's timestep-wise mixed precision): a file's `phases` say from when on,
//! by the share of the steps that are done (`from`) or by the model's timestep (`from_timestep`, which falls as steps go
//! by), and which layers; all others stay as they are before the first. Each weight is stored once in every precision
//! that it has.
//!
//! ```toml
//! default = "w4a8"
//! [[phases]]
//! from = 0.5
//! layers = { "*.ff.*" = "w8a8" }
//! ```
//! Configuration files of ViDiT-Q (both generations) and of the course project are understood as they are, told apart by
//! their keys; what of them is taken otherwise or not at all, [`QConfig::notes`] tells.
//!
//! In a split layer the second half is called by its path with `.weight_quantizer_0` behind, and follows the first half
//! unless the configuration names it. A configuration that names it has the layer split.

mod cache;
mod entries;
mod error;
mod foreign;
mod phases;
mod pickled;
mod resolve;
mod rules;
mod schema;
mod spec;
mod transforms;
mod types;

pub use error::{ConfigError, SpecFault};
pub use phases::{Phase, Phases};
pub(crate) use rules::has_components;
pub use schema::schema;
pub use transforms::{Smoothing, SmoothingRule, Transforms};
pub use types::{TensorTypes, tensor_names};

use crate::quantize::{Method, RangeRule};
use crate::weight::SECOND_HALF;
use aquatint::raw::codec::Bits;
use aquatint::raw::program::CurveAxis;
use std::{fmt, path::Path};

/// What a layer's weights become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weights {
    /// Kept, or widened to, f32.
    F32,
    /// Rounded to f16.
    F16,
    /// Quantized to codes.
    Codes {
        /// How the levels are chosen.
        method: Method,
        /// Width of a code.
        bits: Bits,
    },
}

/// What a layer's input becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activations {
    /// Stays floating point (`a16`).
    Float,
    /// Quantized while running to integers of 2 to 8 bits.
    Int(u8),
}

/// The precision of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerSpec {
    /// Precision of the weights.
    pub weights: Weights,
    /// Precision of the input; [`Activations::Float`] wherever the weights are floating point.
    pub activations: Activations,
}

impl fmt::Display for LayerSpec {
    /// Writes the SPEC that parses to this value; the method is always written.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let activations = match self.activations {
            Activations::Float => 16,
            Activations::Int(bits) => bits,
        };
        match self.weights {
            Weights::F32 => f.write_str("f32"),
            Weights::F16 => f.write_str("f16"),
            Weights::Codes { method, bits } => write!(f, "w{bits}a{activations}:{method}"),
        }
    }
}

/// What layers keep that a project does not quantize.
pub const FLOAT: LayerSpec = LayerSpec { weights: Weights::F16, activations: Activations::Float };

/// What a configuration asks for one layer, and what in it says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The precision that is asked for.
    pub spec: LayerSpec,
    /// The part of the configuration that decided.
    pub by: Decider,
}

/// What in a configuration decides about a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decider {
    /// The SPEC, which is for every layer.
    Spec,
    /// The `default` of a file.
    Default,
    /// The entry with this key: a name, or a glob.
    Entry(String),
}

impl fmt::Display for Decider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Decider::Spec => f.write_str("specification"),
            Decider::Default => f.write_str("default"),
            Decider::Entry(key) => write!(f, "`{}`", spec::shorten(key)),
        }
    }
}

/// How a calibration gives ranges of activations that are fixed when packing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ActivationRanges {
    /// How a range follows from the values that were seen.
    pub rule: RangeRule,
    /// Intervals of time, each with a range of its own: 1 for one range over the whole run.
    pub intervals: usize,
    /// What time is: the sampler's steps in equal parts, as the course project has it, or the model's timesteps, as
    /// ViDiT-Q has it.
    pub axis: CurveAxis,
    /// Whether both signs reach as far.
    pub symmetric: bool,
    /// Hundredths of the range so far that stay when the next call's own is seen, in the order of steps; none to apply the rule
    /// to all values of an interval together.
    pub momentum: Option<u8>,
}

/// A parsed quantization configuration, not yet matched against a model.
#[derive(Clone, Debug)]
pub struct QConfig {
    /// The file, or the SPEC, for messages.
    origin: String,
    /// What decides about layers that no entry names, and the precision they get.
    default: Option<Choice>,
    entries: Vec<(String, LayerSpec)>,
    phases: Phases,
    /// What decides after entries: the first that matches.
    rules: Vec<rules::Rule>,
    /// Whether convolutions are left alone.
    linear_only: bool,
    ranges: Option<ActivationRanges>,
    transforms: Transforms,
    notes: Vec<String>,
}

impl QConfig {
    /// Parses the argument of `--q-config`: a SPEC if it reads as one, else the path of a file, with `:N` or `:best` behind
    /// it if it holds several configurations.
    ///
    /// # Errors
    /// If it is neither; if the file cannot be read, is not what its extension says, or holds a value that is not a
    /// precision.
    pub fn parse(arg: &str) -> Result<QConfig, ConfigError> {
        let fault = match spec::parse(arg) {
            Ok(layer) => return Ok(QConfig::uniform(layer)),
            Err(fault) => fault,
        };
        match cache::locate(arg) {
            Some((file, wanted)) => entries::read(file, wanted),
            None => Err(ConfigError::Argument { got: arg.into(), fault: fault.into() }),
        }
    }

    /// The file that the argument of `--q-config` names, if it names one.
    pub fn file(arg: &str) -> Option<&Path> {
        cache::locate(arg).map(|(file, _)| file)
    }

    /// A configuration that says nothing, of the file or SPEC called `origin`.
    fn empty(origin: String) -> QConfig {
        QConfig {
            origin,
            default: None,
            entries: Vec::new(),
            rules: Vec::new(),
            linear_only: false,
            ranges: None,
            transforms: Transforms::default(),
            phases: Phases::default(),
            notes: Vec::new(),
        }
    }

    /// One precision for every layer.
    pub fn uniform(layer: LayerSpec) -> QConfig {
        let default = Some(Choice { spec: layer, by: Decider::Spec });
        QConfig { default, ..QConfig::empty(layer.to_string()) }
    }

    /// Reads a JSON, TOML, YAML or pickle file, by its extension.
    ///
    /// # Errors
    /// As [`QConfig::parse`].
    pub fn from_file(path: &Path) -> Result<QConfig, ConfigError> {
        entries::read(path, cache::Wanted::Only)
    }

    /// The same with other activations in every layer whose weights are codes (`--act_bit` on the command line).
    #[must_use]
    pub fn with_activations(mut self, activations: Activations) -> QConfig {
        let change = |default: &mut Option<Choice>, entries: &mut [(String, LayerSpec)], rules: &mut [rules::Rule]| {
            let default = default.iter_mut().map(|choice| &mut choice.spec);
            let entries = entries.iter_mut().map(|(_, layer)| layer);
            for layer in default.chain(entries).chain(rules.iter_mut().map(|rule| &mut rule.spec)) {
                if matches!(layer.weights, Weights::Codes { .. }) {
                    layer.activations = activations;
                }
            }
        };
        change(&mut self.default, &mut self.entries, &mut self.rules);
        for Phase { default, entries, rules, .. } in &mut self.phases.later {
            change(default, entries, rules);
        }
        self
    }

    /// What is other from some time of a run on.
    pub fn phases(&self) -> &Phases {
        &self.phases
    }

    /// What layers get that no entry names: the SPEC, or the file's `default`, if it has one.
    pub fn default(&self) -> Option<LayerSpec> {
        self.default.as_ref().map(|choice| choice.spec)
    }

    /// Ranges of activations that another project's file fixes.
    pub fn activation_ranges(&self) -> Option<ActivationRanges> {
        self.ranges
    }

    /// Whether another project's file is about linear layers alone.
    pub fn linear_only(&self) -> bool {
        self.linear_only
    }

    /// What another project's file asks to be done before quantization.
    pub fn transforms(&self) -> &Transforms {
        &self.transforms
    }

    /// What of another project's file is taken otherwise or not at all, a sentence each; rules that are for none of `layers`
    /// among it.
    pub fn notes(&self, layers: &[&str]) -> Vec<String> {
        let of_rule = |rule: &rules::Rule| {
            let used = rule.is_rest() || layers.iter().any(|layer| rule.matches(layer));
            match (used, rule.note) {
                (true, note) => note.map(str::to_owned),
                (false, None) => Some(format!("`{}` matches no layer of this model", spec::shorten(&rule.key))),
                (false, Some(_)) => None,
            }
        };
        let mut notes = self.notes.clone();
        for note in self.rules.iter().filter_map(of_rule) {
            if !notes.contains(&note) {
                notes.push(note);
            }
        }
        notes
    }

    /// Whether an entry, and no glob, is for the second half of `layer`: it must be split then.
    pub fn splits(&self, layer: &str) -> bool {
        let half = format!("{layer}{SECOND_HALF}");
        self.entries.iter().any(|(key, _)| resolve::readings(key).any(|name| name == half))
    }

    /// The precision of each of `layers`, in their order, and what decided it: `layers` are the names of all quantizable
    /// layers of a model. Of phases, it is the first.
    ///
    /// `aliases` are (duplicate, canonical) names of layers that a configuration may list again though they are one
    /// and the same, as Qua2SeDiMo's do for the timestep embedders of DiT blocks 1 to 27; canonical names are among
    /// `layers`. The canonical's own entry wins over its duplicates', as upstream copies block 0's choice to all
    /// others; without one, the first duplicate that has an entry decides.
    ///
    /// # Errors
    /// If a layer is matched by nothing, a key matches no layer, two keys name the same layer with different values,
    /// or two equally literal globs disagree about a layer; if the file asks for what cannot be honoured.
    pub fn resolve(&self, layers: &[&str], aliases: &[(&str, &str)]) -> Result<Vec<Choice>, ConfigError> {
        resolve::resolve(self, layers, aliases, None)
    }

    /// [`resolve`](Self::resolve) in each phase. What a phase does not name is as in the first.
    ///
    /// # Errors
    /// As there.
    pub fn resolve_phases(&self, layers: &[&str], aliases: &[(&str, &str)]) -> Result<Vec<Vec<Choice>>, ConfigError> {
        let first = self.resolve(layers, aliases)?;
        let mut phases = Vec::with_capacity(1 + self.phases.later.len());
        for Phase { default, entries, rules, start } in &self.phases.later {
            let origin = format!("{} from {start} on", self.origin);
            let (default, entries, rules) = (default.clone(), entries.clone(), rules.clone());
            let phase = QConfig { default, entries, rules, ..QConfig::empty(origin) };
            phases.push(resolve::resolve(&phase, layers, aliases, Some(&first))?);
        }
        phases.insert(0, first);
        Ok(phases)
    }
}
