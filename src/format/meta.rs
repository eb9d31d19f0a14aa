//! META: what a person or the pipeline wants to know and no kernel does. Stored as JSON.

use crate::error::one_line;
use crate::sampler;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The META section.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Meta {
    /// Name and version of the program that wrote the file.
    pub tool: String,
    /// Which pipeline the programs form.
    pub pipeline: PipelineMeta,
    /// How the weights were quantized, layer by layer.
    pub quantization: QuantizationMeta,
    /// Where the weights came from.
    pub sources: Vec<SourceMeta>,
    /// Names under which the source stored further copies of a tensor, by the name of the copy that was kept.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub aliases: BTreeMap<String, Vec<String>>,
    /// What was done to a tensor between its source and this file, by the tensor's name, in the order it was done. A
    /// tensor without an entry lies here as it lay there.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub steps: BTreeMap<String, Vec<Step>>,
    /// Names of tensors that no source holds: the packer made them, parameters of steps for example.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub made: Vec<String>,
}

/// One thing done to a weight on its way from the source into the file. The record holds all that the inverse needs:
/// numbers here, and the names of tensors in the same file.
///
/// Channels are counted in the file's order of axes: the outputs of a weight `(o, i)` or `(o, h, w, i)` are its first
/// axis, its inputs the last. The outputs of a vector `(o)`, such as a bias, are its only axis.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Step {
    /// Axes `(o, i, h, w)` became `(o, h, w, i)`.
    ToFileOrder,
    /// Two halves of outputs became one of each by turns, `0, o, 1, o + 1, ..`, as
    /// [`GatedLinear`](crate::program::Op::GatedLinear) reads them.
    Interleave,
    /// Each channel was multiplied by a factor of its own.
    Scale {
        /// Which channels.
        channels: Channels,
        /// Name of the f32 tensor `(channels)` that holds the factors; none is zero.
        by: String,
        /// Whether channels were divided by the factors instead.
        #[serde(default, skip_serializing_if = "is_false")]
        divide: bool,
    },
    /// Each run of `n` channels, read as a row vector `v`, became `v R`, `R` an orthogonal matrix `(n, n)`.
    Rotate {
        /// Which channels; their number is a multiple of `n`.
        channels: Channels,
        /// The matrix.
        by: Rotation,
    },
    /// Only the inputs `first..first + count` were kept; other tensors hold the others.
    Split {
        /// Name that the whole weight would have in this file.
        whole: String,
        /// The first input kept.
        first: u64,
        /// How many inputs were kept.
        count: u64,
    },
}

impl Step {
    /// The step's name in listings.
    pub fn name(&self) -> &'static str {
        match self {
            Step::ToFileOrder => "to file order",
            Step::Interleave => "interleave",
            Step::Scale { .. } => "scale",
            Step::Rotate { .. } => "rotate",
            Step::Split { .. } => "split",
        }
    }
}

/// The channels of a weight that a [`Step`] works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Channels {
    /// Inputs: the last axis of a weight of two or four axes.
    Input,
    /// Outputs: the first axis.
    Output,
}

/// An orthogonal matrix.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Rotation {
    /// The f32 tensor `(n, n)` of this name.
    Tensor(String),
    /// `D H / sqrt(size)`: `H` is the Hadamard matrix in Sylvester's order, `H[i][j] = (-1)^popcount(i & j)`, and `D` a
    /// diagonal of signs. Sign `i` is the top bit (1 for -1) of the number that splitmix64 started at `seed` yields
    /// after `i` others.
    Hadamard {
        /// Rows and columns, a power of two.
        size: u64,
        /// Chooses the signs.
        seed: u64,
    },
}

/// What the pipeline needs beside the programs.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PipelineMeta {
    /// Name of the model, for people.
    pub name: String,
    /// The source pipeline's class, `DiTPipeline`...
    pub class: String,
    /// Channels of the latents.
    pub latent_channels: u32,
    /// Height and width of the latents the model was made for.
    pub latent_size: [u32; 2],
    /// Frames of the videos that the model was made for; 1 for images.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub frames: u32,
    /// Pixels of the image per latent pixel, per axis.
    pub pixels_per_latent: u32,
    /// Height and width of latents are multiples of this.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub latent_multiple: u32,
    /// Sizes that the model was made for beside its own, of which the one that is nearest in its ratio may be made in place of
    /// any that is asked for; empty if there are no such.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub size_bins: Vec<SizeBin>,
    /// Number of classes; class labels are `0..classes`.
    pub classes: u32,
    /// The class number that means "no class".
    pub null_class: u32,
    /// Names of classes, by number.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub class_names: BTreeMap<u32, String>,
    /// The sampler the model was saved with.
    pub sampler: sampler::Config,
    /// Who decided about it, for people, by diffusers' name of the setting; `scheduler` stands for the rest. Empty if all
    /// is as [`OWN_SCHEDULER`] has it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub decided_by: BTreeMap<String, String>,
    /// Steps when none are asked for.
    pub steps: u32,
    /// Guidance scale when none is asked for.
    pub guidance_scale: f32,
    /// How many channels of the latents guidance leads, the first ones: 3 in the first samplers of DiT and its kin, whose
    /// fourth is the conditional output. None for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guided_channels: Option<u32>,
    /// How prompts become what the denoiser reads; none for models without text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<TextMeta>,
    /// What the encoder's latents are multiplied with; none without an encoder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoder: Option<EncoderMeta>,
    /// The denoiser of the last steps, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refiner: Option<Conditioning>,
}

/// The file of a model directory that says which sampler the model has.
pub const OWN_SCHEDULER: &str = "scheduler/scheduler_config.json";

impl PipelineMeta {
    /// The sampler in lines for people: what the model was saved with, what the denoiser predicts, and who says so.
    pub fn sampler_lines(&self) -> Vec<String> {
        let whole = self.decided_by.get("scheduler").map_or(OWN_SCHEDULER, String::as_str);
        let by = |setting: &str| self.decided_by.get(setting).map_or(whole, String::as_str);
        let config = &self.sampler;
        let mut lines =
            vec![format!("{}, {} steps, guidance {} ({whole})", config.kind, self.steps, self.guidance_scale)];
        if let Some(other) = &config.replaces {
            lines.push(format!("in place of {other}, which is not run here"));
        }
        lines.push(format!("predicts {} ({})", config.prediction, by("prediction_type")));
        if config.rescale_betas_zero_snr {
            lines.push(format!("schedule rescaled to end without signal ({})", by("rescale_betas_zero_snr")));
        }
        lines.iter().map(|line| one_line(line)).collect()
    }
}

fn one() -> u32 {
    1
}

fn is_one(n: &u32) -> bool {
    *n == 1
}

fn is_false(flag: &bool) -> bool {
    !flag
}

/// A size that a model was made for.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SizeBin {
    /// Height over width, as the size is found by it: rounded, perhaps.
    pub ratio: f64,
    /// Height and width in pixels.
    pub size: [u32; 2],
}

/// How prompts become what the denoiser reads.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextMeta {
    /// The programs `TextEncoder` and `TextEncoder2`, one entry each.
    pub encoders: Vec<TextEncoderMeta>,
    /// Whether an empty negative prompt is zeros instead of the features of an empty text.
    pub zero_negative: bool,
    /// Name in the file of the features that stand for no negative prompt, f32 `(tokens, features)`, of which the first rows
    /// are read, as many as the prompt has tokens. None where an empty text stands for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub null_caption: Option<String>,
    /// Whether a negative prompt has as many tokens as its prompt: it is cut off, or filled up with padding, which the text encoder
    /// is told not to look at and the denoiser reads. Of one encoder of texts at their own length.
    #[serde(default, skip_serializing_if = "is_false")]
    pub negative_as_long: bool,
    /// What the denoiser reads.
    pub denoiser: Conditioning,
}

/// A text encoder: tokens `(n, tokens)` to `(n, tokens, features + pooled)`. The file may lack its program; prompts are
/// then given as features.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextEncoderMeta {
    /// Name of its tokenizer in the file, `tokenizer/tokenizer.json`; empty if there is none.
    pub tokenizer: String,
    /// Tokens of a text with its beginning, end and padding; the most, where texts have a length of their own.
    pub tokens: u32,
    /// How long the texts are that it reads.
    #[serde(default, skip_serializing_if = "TextLength::is_padded")]
    pub length: TextLength,
    /// Whether texts are turned to lower case first.
    #[serde(default, skip_serializing_if = "is_false")]
    pub lower_case: bool,
    /// Token that begins a text, if one does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub begin: Option<u32>,
    /// Token that ends a text.
    pub end: u32,
    /// Token that fills up what is left.
    pub pad: u32,
    /// Columns of the result that are features of the token.
    pub features: u32,
    /// Columns after them: the vector of the whole text, to be taken at the first end token; 0 if there is none.
    pub pooled: u32,
}

impl TextEncoderMeta {
    /// Tokens of a text that are not its own: those that begin and end it.
    pub fn marks(&self) -> usize {
        usize::from(self.begin.is_some()) + 1
    }
}

/// How long the texts are that a text encoder reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TextLength {
    /// Filled up, and all tokens count; longer texts are several, one after another (CLIP).
    #[default]
    Padded,
    /// Filled up, and the encoder and the denoiser are told how many tokens count; longer texts are cut off.
    Masked,
    /// A text's own, and the denoiser is told how long each is; longer ones are cut off. As an encoder sees no padding where
    /// it is masked, this is `Masked` without the rows that do not count.
    Own,
}

impl TextLength {
    fn is_padded(&self) -> bool {
        *self == TextLength::Padded
    }
}

/// What a denoiser reads beside latents and timestep.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Conditioning {
    /// Indices of the text encoders whose features are its context, side by side.
    pub context: Vec<u32>,
    /// Index of the text encoder whose features are its second context, which has tokens of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context_2: Option<u32>,
    /// Index of the text encoder whose vector it reads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pooled: Option<u32>,
    /// The numbers it reads.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sizes: Vec<SizeKind>,
}

/// A number beside the prompt; sizes count pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum SizeKind {
    OriginalHeight,
    OriginalWidth,
    CropTop,
    CropLeft,
    TargetHeight,
    TargetWidth,
    /// Height and width of the pictures that the model was made for, whatever size is asked for.
    ModelHeight,
    ModelWidth,
    /// Height over width.
    AspectRatio,
    /// 6 for what is wanted, 2.5 for what is not.
    AestheticScore,
}

/// How an encoder's result becomes latents: `(mean + deviation * noise - shift) * scale`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EncoderMeta {
    /// Factor.
    pub scale: f32,
    /// Subtracted first.
    pub shift: f32,
}

/// How the weights were quantized.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuantizationMeta {
    /// The configuration as it was given, for people.
    pub config: String,
    /// Average bits of the quantizable weights, counted as Qua2SeDiMo does (codebooks included, 16-bit precision).
    pub average_bits: f64,
    /// `int8` if the denoisers' attentions between integer layers work in 8-bit codes; in words which grids they are rounded
    /// to, if they are; none if all work in floats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attention: Option<String>,
    /// What was known of the layers' inputs when codes were chosen; none if nothing was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<CalibrationMeta>,
    /// One entry per quantizable layer.
    pub layers: Vec<LayerMeta>,
}

/// A run of the model in floats, in which the inputs of its layers were looked at.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CalibrationMeta {
    /// Images.
    pub images: u64,
    /// Calls of each that were looked at, counted from 0.
    pub calls: Vec<u64>,
    /// Calls of a run.
    pub of_calls: u64,
    /// The sampler's name.
    pub sampler: String,
    /// Guidance scale.
    pub guidance_scale: f32,
    /// Seed.
    pub seed: u64,
    /// xxh3-128 of the file of statistics, hexadecimal.
    pub xxh3: String,
}

/// One layer's quantization.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerMeta {
    /// Module path in the source model.
    pub name: String,
    /// `f32`, `f16`, or a method: `mse-4`, `kmeans-3`, `kmeans_all-4`...
    pub method: String,
    /// What in the configuration decided that, for people: the key of an entry, `default`, or the specification; none
    /// where no configuration was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decided_by: Option<String>,
    /// Why the layer is not what that asks for, if it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// Bits of the activations it multiplies; 32 for float.
    pub activation_bits: u8,
    /// `|W - Wq| / |W|` of the weights the runtime uses.
    pub error: f64,
    /// The same for exact centroids, before they became 8-bit table entries.
    pub exact_error: f64,
    /// `tr(dW H dW^T) / tr(W H W^T)`, `H` the second moments of the layer's inputs in the calibration: the squared error of
    /// its output over the output's square, `dW x` being what is left when its mean is in the bias. None where the
    /// calibration knows no inputs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_error: Option<f64>,
    /// The same if every weight had been rounded to the nearest level.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nearest_output_error: Option<f64>,
    /// Bytes in the file, codebooks and scales included.
    pub bytes: u64,
}

/// A source file.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceMeta {
    /// Path within the model directory.
    pub file: String,
    /// Size.
    pub bytes: u64,
    /// xxh3-128, hexadecimal.
    pub xxh3: String,
}
