//! What packing did, for people and programs.

use aquatint::raw::format::meta::LayerMeta;
use serde::Serialize;

/// How far the work is.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// Name of the weight that comes next.
    pub name: &'a str,
    /// Weights done, in elements.
    pub done: u64,
    /// All weights, in elements.
    pub total: u64,
}

/// What was done.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// One entry per quantizable layer, in program order.
    pub layers: Vec<LayerLine>,
    /// What a person should know of the model as it was packed.
    pub notes: Vec<String>,
    /// Bytes of the packed file.
    pub file_bytes: u64,
    /// Bytes of the weight files it was made from, whatever is not used of them included.
    pub source_bytes: u64,
    /// `file_bytes / source_bytes`.
    pub ratio: f64,
    /// Average bits of the denoisers' layers as Qua2SeDiMo counts them: copies and codebooks included.
    pub average_bits: f64,
}

/// A layer's entry in the report: its record in META, and what META leaves to the tensor's own record.
#[derive(Clone, Debug, Serialize)]
pub struct LayerLine {
    /// The record, named `component/module path`.
    #[serde(flatten)]
    pub meta: LayerMeta,
    /// Bits per weight, codebooks apart.
    pub bits: u8,
    /// Number of weights.
    pub weights: u64,
}
