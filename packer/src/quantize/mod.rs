//! Weight quantizers: an f32 matrix in, codes and codebooks out.
//!
//! Three methods, named after Qua2SeDiMo (quantization.md §1.1): uniform affine per output channel, and 1-D k-means per
//! output channel or per tensor. All of them produce the one codec of [`aquatint::raw::codec`], so nothing downstream knows
//! which method made a matrix. Everything here is deterministic: the same weights give the same codes on any number
//! of threads, because no sum's order depends on how the work was split.
//!
//! The k-means of the paper is scikit-learn's (random starts, a local optimum); ours is the exact optimum in one
//! dimension, found by dynamic programming, so its squared error is never above the paper's.

mod accounting;
mod identity;
mod kmeans;
mod levels;
pub mod moments;
mod power;
mod table;
mod uniform;

pub use accounting::{average_bits, overhead_bits, quantized_bytes, raw_bytes};

pub use moments::{Moments, SecondMoments};

use aquatint::raw::codec::{Bits, Grain, QuantizedMatrix};
use std::fmt;

/// How the levels of a weight matrix are chosen. Methods are written as Qua2SeDiMo spells them
/// (`qdiff/quant_layer_multi.py`, `quant_range`) and read in other spellings too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Method {
    /// `mse`: uniform affine, one step and zero point per output channel.
    Uaq,
    /// `kmeans` (K-Means-C): free levels, one codebook per output channel.
    KMeansRow,
    /// `kmeans_all` (K-Means-A): free levels, one codebook for the whole tensor.
    KMeansTensor,
}

impl Method {
    /// All methods there are.
    pub const ALL: [Method; 3] = [Method::Uaq, Method::KMeansRow, Method::KMeansTensor];

    /// The method called `name`, or known under it elsewhere: `uaq` is `mse`, `kmeans_c` is `kmeans`, `kmeans_a` is
    /// `kmeans_all`.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "mse" | "uaq" => Some(Method::Uaq),
            "kmeans" | "kmeans_c" => Some(Method::KMeansRow),
            "kmeans_all" | "kmeans_a" => Some(Method::KMeansTensor),
            _ => None,
        }
    }

    /// The one name that this project writes.
    pub fn name(self) -> &'static str {
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
pub enum CodebookType {
    /// 8-bit integers times a scale: what layers with integer activations need.
    Int8,
    /// Centroids rounded to f16: what layers with float activations use. (Uniform levels are integers either way.)
    F16,
}

impl CodebookType {
    /// How many codebooks [`quantize`] makes where this type is asked for, and the type that they really have: uniform
    /// levels are integers, and 8-bit codes over integers have one table, which holds all of them.
    pub fn of_result(self, method: Method, bits: Bits) -> (Grain, CodebookType) {
        match method {
            Method::Uaq => (Grain::Tensor, CodebookType::Int8),
            Method::KMeansRow if self == CodebookType::Int8 && bits.levels() == 256 => (Grain::Tensor, self),
            Method::KMeansRow => (Grain::Row, self),
            Method::KMeansTensor => (Grain::Tensor, self),
        }
    }
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
/// The weights must be finite; with others the codes are unspecified.
///
/// # Panics
/// If `weights.len() != rows * cols`.
pub fn quantize(
    weights: &[f32],
    rows: usize,
    cols: usize,
    method: Method,
    bits: Bits,
    codebook: CodebookType,
) -> QuantizedMatrix {
    assert_eq!(weights.len(), rows * cols, "a {rows} x {cols} matrix of {} weights", weights.len());
    match (method, codebook) {
        _ if weights.is_empty() => table::empty(rows, cols, bits),
        (Method::Uaq, _) => uniform::quantize(weights, rows, cols, bits),
        (Method::KMeansRow, CodebookType::Int8) if bits.levels() == 256 => identity::rows(weights, rows, cols, bits),
        (Method::KMeansTensor, CodebookType::Int8) if bits.levels() == 256 => {
            identity::tensor(weights, rows, cols, bits)
        }
        (Method::KMeansRow, _) => table::kmeans_rows(weights, rows, cols, bits, codebook).0,
        (Method::KMeansTensor, _) => table::kmeans_tensor(weights, rows, cols, bits, codebook).0,
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
    codebook: CodebookType,
) -> Measured {
    assert_eq!(weights.len(), rows * cols, "a {rows} x {cols} matrix of {} weights", weights.len());
    let direct = weights.is_empty() || (codebook == CodebookType::Int8 && bits.levels() == 256);
    let (matrix, exact_sse) = match method {
        Method::KMeansRow if !direct => table::kmeans_rows(weights, rows, cols, bits, codebook),
        Method::KMeansTensor if !direct => table::kmeans_tensor(weights, rows, cols, bits, codebook),
        _ => (quantize(weights, rows, cols, method, bits, codebook), f64::NAN),
    };
    let (sse, energy) = table::error_and_energy(weights, &matrix);
    let relative = |sse: f64| if sse == 0.0 { 0.0 } else { (sse / energy).sqrt() };
    let error = relative(sse);
    Measured { matrix, error, exact_error: if exact_sse.is_nan() { error } else { relative(exact_sse) } }
}
