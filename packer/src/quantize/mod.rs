//! Weight quantizers: an f32 matrix in, codes and codebooks out.
//!
//! Three methods, named after Qua2SeDiMo (quantization.md §1.1): uniform affine per output channel, and 1-D k-means per
//! output channel or per tensor. All of them produce the one codec of [`aquatint::codec`], so nothing downstream knows
//! which method made a matrix. Everything here is deterministic: the same weights give the same codes on any number
//! of threads, because no sum's order depends on how the work was split.
//!
//! The k-means of the paper is scikit-learn's (random starts, a local optimum); ours is the exact optimum in one
//! dimension, found by dynamic programming, so its squared error is never above the paper's.

mod identity;
mod kmeans;
mod levels;
mod power;
mod report;
mod table;
mod uniform;

pub use report::{LayerReport, average_bits, overhead_bits, quantized_bytes, raw_bytes};

use aquatint::codec::{Bits, QuantizedMatrix};
use serde::{Deserialize, Serialize};
use std::fmt;

/// How the levels of a weight matrix are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Method {
    /// Uniform affine, one step and zero point per output channel ("mse" in Qua2SeDiMo's files).
    #[serde(rename = "uaq", alias = "mse")]
    Uaq,
    /// K-Means-C: free levels, one codebook per output channel ("kmeans").
    #[serde(rename = "kmeans_c", alias = "kmeans")]
    KMeansRow,
    /// K-Means-A: free levels, one codebook for the whole tensor ("kmeans_all").
    #[serde(rename = "kmeans_a", alias = "kmeans_all")]
    KMeansTensor,
}

impl Method {
    /// Every method.
    pub const ALL: [Method; 3] = [Method::Uaq, Method::KMeansRow, Method::KMeansTensor];

    /// The method called `name`, in either spelling: `uaq` or `mse`, `kmeans_c` or `kmeans`, `kmeans_a` or
    /// `kmeans_all`.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|m| name == m.name() || name == m.upstream_name())
    }

    /// The name this project writes.
    pub fn name(self) -> &'static str {
        match self {
            Method::Uaq => "uaq",
            Method::KMeansRow => "kmeans_c",
            Method::KMeansTensor => "kmeans_a",
        }
    }

    /// The name in Qua2SeDiMo's configurations (`qdiff/quant_layer_multi.py`, `quant_range`).
    pub fn upstream_name(self) -> &'static str {
        match self {
            Method::Uaq => "mse",
            Method::KMeansRow => "kmeans",
            Method::KMeansTensor => "kmeans_all",
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What the entries of a codebook may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tables {
    /// 8-bit integers times a scale: what layers with integer activations need.
    Int8,
    /// Centroids rounded to f16: what layers with float activations use. (Uniform levels are integers either way.)
    Exact,
}

/// A quantized matrix and how far it is from its source.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    /// What the runtime will use.
    pub matrix: QuantizedMatrix,
    /// `||W - Wq|| / ||W||` of `matrix`, table rounding included; 0 for an all-zero source that is reproduced.
    pub error: f64,
    /// The same for the levels before they were rounded to table entries. For the uniform method, and for 8-bit codes
    /// over an integer table (where the code is the integer, whatever the method), it equals `error`.
    pub exact_error: f64,
}

/// Quantizes `weights`, (rows, cols) row-major, one row per output channel.
///
/// The weights must be finite ([`first_non_finite`] finds the first that is not, for the caller's message); with
/// others the codes are unspecified.
///
/// # Panics
/// If `weights.len() != rows * cols`.
pub fn quantize(
    weights: &[f32],
    rows: usize,
    cols: usize,
    method: Method,
    bits: Bits,
    tables: Tables,
) -> QuantizedMatrix {
    assert_eq!(weights.len(), rows * cols, "a {rows} x {cols} matrix of {} weights", weights.len());
    match (method, tables) {
        _ if weights.is_empty() => table::empty(rows, cols, bits),
        (Method::Uaq, _) => uniform::quantize(weights, rows, cols, bits),
        (Method::KMeansRow, Tables::Int8) if bits.levels() == 256 => identity::rows(weights, rows, cols, bits),
        (Method::KMeansTensor, Tables::Int8) if bits.levels() == 256 => identity::tensor(weights, rows, cols, bits),
        (Method::KMeansRow, _) => table::kmeans_rows(weights, rows, cols, bits, tables).0,
        (Method::KMeansTensor, _) => table::kmeans_tensor(weights, rows, cols, bits, tables).0,
    }
}

/// As [`quantize`], with the errors of the result.
///
/// # Panics
/// If `weights.len() != rows * cols`.
pub fn quantize_measured(
    weights: &[f32],
    rows: usize,
    cols: usize,
    method: Method,
    bits: Bits,
    tables: Tables,
) -> Measured {
    assert_eq!(weights.len(), rows * cols, "a {rows} x {cols} matrix of {} weights", weights.len());
    let direct = weights.is_empty() || (tables == Tables::Int8 && bits.levels() == 256);
    let (matrix, exact_sse) = match method {
        Method::KMeansRow if !direct => table::kmeans_rows(weights, rows, cols, bits, tables),
        Method::KMeansTensor if !direct => table::kmeans_tensor(weights, rows, cols, bits, tables),
        _ => (quantize(weights, rows, cols, method, bits, tables), f64::NAN),
    };
    let (sse, energy) = table::error_and_energy(weights, &matrix);
    let relative = |sse: f64| if sse == 0.0 { 0.0 } else { (sse / energy).sqrt() };
    let error = relative(sse);
    Measured { matrix, error, exact_error: if exact_sse.is_nan() { error } else { relative(exact_sse) } }
}

/// Index of the first weight that is infinite or not a number.
pub fn first_non_finite(weights: &[f32]) -> Option<usize> {
    // Whole blocks are tested without a branch per element; the block that fails is then searched.
    const BLOCK: usize = 1024;
    let clean = |w: &[f32]| w.iter().fold(true, |ok, v| ok & v.is_finite());
    let block = weights.chunks(BLOCK).position(|w| !clean(w))?;
    weights[block * BLOCK..].iter().position(|v| !v.is_finite()).map(|i| block * BLOCK + i)
}
