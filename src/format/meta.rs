//! META: what a person or the pipeline wants to know and no kernel does. Stored as JSON.

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
    /// Pixels of the image per latent pixel, per axis.
    pub pixels_per_latent: u32,
    /// Number of classes; class labels are `0..classes`.
    pub classes: u32,
    /// The class number that means "no class".
    pub null_class: u32,
    /// Names of classes, by number.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub class_names: BTreeMap<u32, String>,
    /// The sampler the model was saved with.
    pub sampler: sampler::Config,
    /// Steps when none are asked for.
    pub steps: u32,
    /// Guidance scale when none is asked for.
    pub guidance_scale: f32,
}

/// How the weights were quantized.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuantizationMeta {
    /// The configuration as it was given, for people.
    pub config: String,
    /// Average bits of the quantizable weights, counted as Qua2SeDiMo does (codebooks included, 16-bit precision).
    pub average_bits: f64,
    /// One entry per quantizable layer.
    pub layers: Vec<LayerMeta>,
}

/// One layer's quantization.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerMeta {
    /// Module path in the source model.
    pub name: String,
    /// `f32`, `f16`, or a method: `mse-4`, `kmeans-3`, `kmeans_all-4`...
    pub method: String,
    /// Bits of the activations it multiplies; 32 for float.
    pub activation_bits: u8,
    /// `|W - Wq| / |W|` of the weights the runtime uses.
    pub error: f64,
    /// The same for exact centroids, before they became 8-bit table entries.
    pub exact_error: f64,
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
