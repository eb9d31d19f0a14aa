//! Arguments of packing, and what they mean together.

use super::research::Research;
use super::{parse_prediction, parse_smooth, parse_split};
use crate::emit::{ActivationRanges, AttentionBits, RangeSource};
use crate::error::Result;
use crate::pass::Split;
use crate::quantize::{Pruning, RangeRule, SmoothRule};
use aquatint::raw::program::CurveAxis;
use aquatint::sampler::Prediction;
use clap::{Args, ValueEnum};
use std::path::PathBuf;

/// Arguments of packing.
#[derive(Debug, Args)]
pub(super) struct Pack {
    /// The model: a diffusers directory (with model_index.json), or a single file (.ckpt, .pt, .safetensors).
    #[arg(value_name = "MODEL")]
    pub(super) model: PathBuf,
    /// A second model for the last steps: Stable Diffusion XL's refiner.
    #[arg(long, value_name = "MODEL")]
    pub(super) refiner: Option<PathBuf>,
    /// Another model to take the autoencoder from: a diffusers directory, the folder of an autoencoder, or a single file.
    #[arg(long, value_name = "MODEL")]
    pub(super) vae: Option<PathBuf>,
    /// Another model to take the text encoders from, likewise; twice for two encoders.
    #[arg(long, alias = "text_encoder", value_name = "MODEL")]
    pub(super) text_encoder: Vec<PathBuf>,
    /// Leave the text encoders out, and read nothing but their configurations: the file then takes prompts as --inputs, which
    /// `aquatint encode` makes with a file that has them
    #[arg(long, value_enum, value_name = "NETWORK", conflicts_with = "text_encoder")]
    pub(super) without: Option<LeftOut>,
    /// Quantization of the denoiser: a file (.json .toml .yaml .pkl) or one precision for all layers, such as f32, f16,
    /// w8a16, w4a8 or w4a8:kmeans; of a file with several configurations FILE:N or FILE:best [default: f16]
    #[arg(long, alias = "q_config", value_name = "FILE|SPEC", group = "precision")]
    pub(super) q_config: Option<String>,
    /// Bits of the denoiser's weights, as research scripts have it: the same as --q-config w<BITS>a16.
    #[arg(long, alias = "weight_bit", value_name = "BITS", group = "precision", value_parser = ["2", "3", "4", "5", "6", "8"])]
    pub(super) weight_bit: Option<String>,
    /// Quantize activations too, wherever weights are. For configurations that say nothing about activations.
    #[arg(long, alias = "quant_act", requires = "precision")]
    pub(super) quant_act: bool,
    /// Bits of quantized activations.
    #[arg(long, alias = "act_bit", requires = "quant_act", default_value = "8", value_parser = ["2", "3", "4", "5", "6", "7", "8"], value_name = "BITS")]
    pub(super) act_bit: String,
    /// Types of weights by names of tensors, as stable-diffusion.cpp has it: PATTERN=TYPE,.. with regular expressions, the first
    /// that is found decides, before all configurations. Types are f32, f16, q8_0, q5_0, q4_0, q6_K .. q2_K and the like
    #[arg(long, alias = "tensor_type_rules", value_name = "RULES")]
    pub(super) tensor_type_rules: Option<String>,
    /// Quantization of the autoencoder [default: f32 if the denoiser is f32, else f16]
    #[arg(long, alias = "vae_q_config", value_name = "FILE|SPEC")]
    pub(super) vae_q_config: Option<String>,
    /// Quantization of the text encoders [default: f32 if the denoiser is f32, else f16]
    #[arg(long, alias = "text_q_config", value_name = "FILE|SPEC")]
    pub(super) text_q_config: Option<String>,
    /// Statistics of the inputs of layers, made by `packer calibrate`: codes are then chosen for what layers make of such
    /// inputs, which is worth about one bit, instead of rounding each weight to the nearest level.
    #[arg(long, value_name = "CALIB.safetensors", requires = "precision")]
    pub(super) calib: Option<PathBuf>,

    /// Where ranges of quantized activations come from: `dynamic` takes each row's own while running; the others fix one for
    /// all rows, from the calibration or the imported file [default: what --q-config says, else dynamic]
    #[arg(long, value_enum, value_name = "RULE")]
    pub(super) act_range: Option<ActRange>,

    /// Fix a range for each of so many intervals of time, of as many as --cali-st at most [default: 1]
    #[arg(long, value_name = "K")]
    pub(super) act_intervals: Option<usize>,

    /// What time is in intervals: the sampler's steps, or the timesteps that the network receives [default: step]
    #[arg(long, value_enum, value_name = "AXIS")]
    pub(super) act_axis: Option<ActAxis>,

    /// Fix ranges that reach as far on both sides of zero
    #[arg(long, alias = "a_sym", alias = "a-sym")]
    pub(super) act_sym: bool,

    /// Of TDQ's files: activations were quantized around an offset of each layer's own (ASYM was set)
    #[arg(long, conflicts_with = "act_sym")]
    pub(super) act_asym: bool,

    /// Smooth inputs of layers before they are quantized: divide channels by factors in what makes them, and multiply weights.
    /// ALPHA (0 to 1) is SmoothQuant's exponent, viditq:ALPHA that of ViDiT-Q's later code; search tries 39 and keeps the best
    #[arg(long, value_name = "ALPHA|viditq:ALPHA|search", requires = "calib", value_parser = parse_smooth)]
    pub(super) smooth: Option<SmoothRule>,

    /// Smooth inputs of layers that this glob matches, and of what reads the same, alone
    #[arg(long, value_name = "GLOB", requires = "smooth")]
    pub(super) smooth_layers: Option<String>,

    /// Rotate inputs of integer layers before they are quantized, and their weights, by Hadamard matrices of 8 to 256 channels
    /// with signs: what is large in a few channels is spread over many
    #[arg(long, requires = "precision")]
    pub(super) rotate: bool,

    /// Rotate inputs of layers that this glob matches, alone
    #[arg(long, value_name = "GLOB", requires = "rotate")]
    pub(super) rotate_layers: Option<String>,

    /// Quantized weights to be used as they are: what `packer reconstruct` or `packer multiquantizer` made, or a research
    /// project saved: Q-Diffusion's ckpt.pth, Qua2SeDiMo's *_mq.pt, ViDiT-Q's int_weight.pt or ckpt.pth, or a checkpoint of TDQ, which is MODEL, too. --q-config says how many bits they have, and by which method; activations are as it says
    #[arg(long, value_name = "FILE", visible_alias = "cali-ckpt", alias = "cali_ckpt")]
    pub(super) import: Option<PathBuf>,

    /// Make this fraction of the weights of the denoiser's layers zeros before quantizing, those of the least magnitude; they
    /// stay exactly 0. Neither size nor speed change
    #[arg(long, value_name = "FRACTION", conflicts_with = "prune_structured")]
    pub(super) prune: Option<f64>,
    /// Take the fraction of each layer (and of its bias), or of all layers together
    #[arg(long, value_enum, default_value = "layer", requires = "prune", value_name = "SCOPE")]
    pub(super) prune_scope: PruneScope,
    /// Make this fraction of every denoiser layer's output channels zeros before quantizing, those of the least norm
    #[arg(long, value_name = "FRACTION")]
    pub(super) prune_structured: Option<f64>,

    /// Quantize layers over skip connections in two halves of their inputs: shortcut, as Q-Diffusion does; conv (3x3 convolutions
    /// behind a norm, at as many inputs as outputs) and linear (behind a norm), as Qua2SeDiMo does for SDXL and Hunyuan-DiT [without a
    /// value: shortcut]
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "shortcut", value_delimiter = ',', value_name = "KIND,..", value_parser = parse_split)]
    pub(super) split: Vec<Split>,
    /// Bits of the integers in learned codebooks of up to 4-bit weights: 7 costs next to no accuracy and makes linear layers 1.4
    /// times as fast on processors without VNNI; the others do not mind
    #[arg(long, default_value_t = 8, value_name = "BITS", value_parser = clap::value_parser!(u8).range(7..=8))]
    pub(super) codebook_bits: u8,
    /// Compute the denoiser's self-attention in 8 bits wherever the layers around it have quantized activations. Faster on
    /// CPUs; changes results about as much as 8-bit activations do.
    #[arg(long)]
    pub(super) int8_attention: bool,
    /// Round the probabilities of the denoiser's attention to 8 or 16 bits, as research projects do, in steps of the highest
    /// of each query, or with --act-range import in those of the file. Queries, keys and values are rounded, too, where
    /// --quant-act is given. Slower than floats: it shows what such a quantizer does to pictures
    #[arg(long, visible_alias = "sm-abit", alias = "sm_abit", value_name = "BITS", value_parser = softmax_bits)]
    pub(super) softmax_bits: Option<u8>,
    /// Round the queries, keys and values of the denoiser's attention to so many bits: 6 or 8, in a range of each token and
    /// head, or with --act-range import 2 to 8 [default: those of --act-bit with --softmax-bits and --quant-act, else floats]
    #[arg(long, value_name = "BITS", value_parser = clap::value_parser!(u8).range(2..=8))]
    pub(super) qkv_bits: Option<u8>,
    /// What the denoiser predicts, whatever the model's files say: epsilon, v or sample [default: what metadata, marks or a
    /// .yaml beside a single file say, or the model's scheduler]
    #[arg(long, alias = "prediction-type", value_name = "NAME", value_parser = parse_prediction)]
    pub(super) prediction: Option<Prediction>,
    /// A scheduler_config.json of diffusers in place of the model's own, or for a single file [default: that of the
    /// published models of its kind]
    #[arg(long, alias = "scheduler_config", value_name = "FILE")]
    pub(super) scheduler_config: Option<PathBuf>,
    /// The file to write.
    #[arg(short, long, value_name = "OUT.aqt")]
    pub(super) output: PathBuf,
    /// Print nothing but errors.
    #[arg(short, long, conflicts_with = "verbose")]
    pub(super) quiet: bool,
    /// List for each layer which part of the configuration decided, and why it is packed otherwise, if it is.
    #[arg(short, long)]
    pub(super) verbose: bool,
    /// Print the report as JSON.
    #[arg(long)]
    pub(super) json: bool,
}

fn softmax_bits(text: &str) -> std::result::Result<u8, String> {
    match text {
        "8" => Ok(8),
        "16" => Ok(16),
        _ => Err("expected 8 or 16".into()),
    }
}

/// Of a range so far, hundredths that stay when a call is seen: Q-Diffusion's `running_stat`.
pub(super) const MOMENTUM: u8 = 95;

/// What can be left out.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum LeftOut {
    /// All text encoders.
    #[value(name = "text_encoder", alias = "text-encoder")]
    TextEncoder,
}

/// What a fraction to prune is taken of.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum PruneScope {
    /// Each layer.
    Layer,
    /// All layers together.
    Global,
}

/// Where ranges of activations come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum ActRange {
    /// Each row's own, taken while running.
    Dynamic,
    /// Fixed: the least and greatest value that calibration saw.
    #[value(alias = "minmax", alias = "max")]
    MinMax,
    /// Fixed: shrunk from there to the least error.
    Mse,
    /// Fixed: extremes of calls, averaged exponentially in the order of steps, 0.95 of what there is at each call.
    Ema,
    /// Fixed: those that the imported file has.
    Import,
}

/// What intervals of activation ranges are of.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum ActAxis {
    /// The sampler's steps.
    Step,
    /// The model's timesteps.
    Timestep,
}

impl Pack {
    /// What is pruned, if anything is.
    pub(super) fn pruning(&self) -> Option<Pruning> {
        let channels = self.prune_structured.map(Pruning::Channels);
        self.prune.map_or(channels, |fraction| {
            Some(match self.prune_scope {
                PruneScope::Layer => Pruning::Layer(fraction),
                PruneScope::Global => Pruning::Global(fraction),
            })
        })
    }

    /// The grids of attention.
    pub(super) fn attention(&self) -> AttentionBits {
        let implied = self.softmax_bits.and(self.activation_bits());
        AttentionBits { operands: self.qkv_bits.or(implied), softmax: self.softmax_bits }
    }

    /// Bits of activations, if all of them are quantized.
    pub(super) fn activation_bits(&self) -> Option<u8> {
        self.quant_act.then(|| self.act_bit.parse().expect("a number, as the parser says"))
    }

    /// The ranges of activations that are fixed, if they are.
    ///
    /// # Errors
    /// If an option would have no effect.
    pub(super) fn activation_ranges(&self, research: &Research) -> Result<Option<RangeSource>> {
        let act_range = research.act_range(self)?;
        let idle = |option: &str, rules: &str| {
            let expected = format!("--act-range {rules}, or it has no effect");
            let got = act_range.map_or("none", ActRange::name);
            Err(aquatint::error::Error::request(option, expected, got).into())
        };
        if self.act_asym && act_range != Some(ActRange::Import) {
            return idle("--act-asym", "import");
        }
        let rule = match act_range {
            Some(ActRange::MinMax | ActRange::Ema) => RangeRule::MinMax,
            Some(ActRange::Mse) => RangeRule::Mse,
            _ if self.act_intervals.is_some() => {
                return idle("--act-intervals", "min-max, mse or ema");
            }
            _ if self.act_axis.is_some() => {
                return idle("--act-axis", "min-max, mse or ema");
            }
            None | Some(ActRange::Dynamic) if self.act_sym => return idle("--act-sym", "min-max, mse, ema or import"),
            None => return Ok(None),
            Some(ActRange::Dynamic) => return Ok(Some(RangeSource::Dynamic)),
            Some(ActRange::Import) => {
                let symmetric = (self.act_sym || self.act_asym).then_some(self.act_sym);
                return Ok(Some(RangeSource::Import { symmetric }));
            }
        };
        let axis = match self.act_axis {
            Some(ActAxis::Timestep) => CurveAxis::Timestep,
            Some(ActAxis::Step) | None => CurveAxis::StepFraction,
        };
        let intervals = self.act_intervals.unwrap_or(1);
        let momentum = (act_range == Some(ActRange::Ema)).then_some(MOMENTUM);
        let ranges = ActivationRanges { rule, intervals, axis, symmetric: self.act_sym, momentum };
        Ok(Some(RangeSource::Calibration(ranges)))
    }
}

impl ActRange {
    fn name(self) -> &'static str {
        match self {
            ActRange::Dynamic => "dynamic",
            ActRange::MinMax => "min-max",
            ActRange::Mse => "mse",
            ActRange::Ema => "ema",
            ActRange::Import => "import",
        }
    }
}
