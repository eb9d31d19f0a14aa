//! What packing did, for people and programs.

use super::store::Stored;
use crate::recipe::Decision;
use crate::weight::Weight;
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
    /// Average bits of the denoisers' layers as Qua2SeDiMo counts them, copies and codebooks included; phases count by their
    /// shares of a run.
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
    /// The fraction of them that is 0, if the model was pruned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sparsity: Option<f64>,
}

/// What pruning did to all layers together, and what it does not do.
pub(super) fn sparsity_note(layers: &[LayerLine]) -> Option<String> {
    let pruned = || layers.iter().filter_map(|line| Some((line.weights as f64, line.sparsity?)));
    let (all, zeros) = pruned().fold((0.0, 0.0), |(all, zeros), (n, part)| (all + n, zeros + n * part));
    (all > 0.0).then(|| {
        let part = 100.0 * zeros / all;
        format!("{part:.2} % of the denoiser's weights are 0; zeros are stored and multiplied as others, so size and speed do not change")
    })
}

/// A layer's entry in the report.
pub(super) fn line(weight: &Weight, decision: &Decision, stored: &Stored, weights: u64) -> LayerLine {
    let Decision { treatment, by, note } = decision;
    let meta = LayerMeta {
        name: format!("{}/{}", weight.component, weight.layer_in_file()),
        method: treatment.store.name(),
        decided_by: by.as_ref().map(ToString::to_string),
        note: notes(note.as_deref(), stored),
        activation_bits: treatment.activation_bits.unwrap_or(32),
        error: stored.error,
        exact_error: stored.exact_error,
        output_error: stored.calibrated.as_ref().map(|output| output.error),
        nearest_output_error: stored.calibrated.as_ref().map(|output| output.nearest),
        bytes: stored.bytes.len() as u64,
    };
    LayerLine { meta, bits: treatment.store.bits(), weights, sparsity: stored.sparsity }
}

/// What the recipe and the choice of codes have to say of a layer.
fn notes(recipe: Option<&str>, stored: &Stored) -> Option<String> {
    let all: Vec<&str> = recipe.into_iter().chain(stored.note.as_deref()).collect();
    (!all.is_empty()).then(|| all.join("; "))
}
