//! Weight quantizers: an f32 matrix in, codes and codebooks out.
//!
//! Three methods, named after Qua2SeDiMo (quantization.md §1.1): uniform affine per output channel, and 1-D k-means per
//! output channel or per tensor. Other projects choose the step and zero point of uniform levels by other [`Rule`]s. A
//! fourth method scales one fixed table per output channel. All of them produce the one codec of
//! [`aquatint::raw::codec`], so nothing downstream knows which method made a matrix.
//!
//! [`quantize`] looks at the weights alone and rounds each to the nearest level. [`quantize_calibrated`] also knows what the
//! layer's inputs are like ([`Moments`]) and chooses codes and levels for the least error of the layer's *output*.
//! [`quantize_sparse`] keeps zeros of pruned weights ([`Pruning`]), and so does [`quantize_calibrated`] if it is asked to.
//! [`SmoothRule`] chooses factors that inputs are divided by before any of them, and [`adaround`] learns in which direction each
//! weight is rounded, for whoever trains it. Everything here is deterministic: the same weights give the same codes on any number
//! of threads, because no sum's order depends on how the work was split.
//!
//! The k-means of the paper is scikit-learn's (random starts, a local optimum); ours is the exact optimum in one
//! dimension, found by dynamic programming, so its squared error is never above the paper's.

mod accounting;
mod activation;
pub mod adaround;
mod exact;
pub mod feedback;
mod identity;
mod kmeans;
mod levels;
mod lloyd;
pub mod moments;
mod power;
mod prune;
mod rotated;
mod smooth;
mod sparse;
mod table;
mod uniform;

pub use accounting::{average_bits, is_counted, overhead_bits, quantized_bytes, raw_bytes};
pub use activation::{BINS, Intervals, MovingRange, RangeRule, SeenRange, bin};
pub use exact::{Exact, exact, power_loss};
pub use feedback::{Calibrated, FeedbackOptions, quantize_calibrated};
pub use moments::{Moments, SecondMoments};
pub use prune::{Cut, Pruning, RankSearch, pruned_count, zero_channels, zero_smallest, zero_up_to};
pub use smooth::{Searched, SmoothInput, SmoothLayer, SmoothRule, candidates, output_error, search, smooth_factors};
pub use sparse::quantize_sparse;
pub use uniform::{Rule, f16_codes};

use aquatint::raw::codec::{Bits, Grain, QuantizedMatrix};
use std::fmt;

/// How the levels of a weight matrix are chosen. Methods are written as Qua2SeDiMo spells them
/// (`qdiff/quant_layer_multi.py`, `quant_range`) and read in other spellings too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Method {
    /// Uniform levels, one step and zero point per output channel, as a published rule has them.
    Uniform(Rule),
    /// `kmeans` (K-Means-C): free levels, one codebook per output channel.
    KMeansRow,
    /// `kmeans_all` (K-Means-A): free levels, one codebook for the whole tensor.
    KMeansTensor,
    /// `lloyd`: the best levels of a normal distribution, one scale per output channel.
    Lloyd,
}

impl Method {
    /// `mse`: uniform affine by Qua2SeDiMo's rule, which is this project's own; it knows no zero that must be a level.
    pub const UAQ: Method = Method::Uniform(Rule::Mse);

    /// One method of each kind; of the uniform ones `mse`.
    pub const ALL: [Method; 4] = [Method::UAQ, Method::KMeansRow, Method::KMeansTensor, Method::Lloyd];

    /// The method called `name`, or known under it elsewhere: `uaq` is `mse`, `kmeans_c` is `kmeans`, `kmeans_a` is
    /// `kmeans_all`, `gauss` is `lloyd`.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "uaq" => Some(Method::UAQ),
            "kmeans" | "kmeans_c" => Some(Method::KMeansRow),
            "kmeans_all" | "kmeans_a" => Some(Method::KMeansTensor),
            "lloyd" | "gauss" => Some(Method::Lloyd),
            _ => Rule::ALL.into_iter().find(|rule| rule.name() == name).map(Method::Uniform),
        }
    }

    /// The one name that this project writes.
    pub fn name(self) -> &'static str {
        match self {
            Method::Uniform(rule) => rule.name(),
            Method::KMeansRow => "kmeans",
            Method::KMeansTensor => "kmeans_all",
            Method::Lloyd => "lloyd",
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
    /// The same within -63..63, for tables of up to 16 entries: sums of two products with 8-bit activations then fit 16 bits,
    /// which is what processors without VNNI add up fastest.
    Int7,
    /// Centroids rounded to f16: what layers with float activations use. (Uniform levels are integers either way.)
    F16,
}

impl CodebookType {
    /// Whether entries are integers.
    pub fn is_integer(self) -> bool {
        self.reach().is_some()
    }

    /// The greatest magnitude of entries that are integers.
    pub(crate) fn reach(self) -> Option<i32> {
        match self {
            CodebookType::Int8 => Some(127),
            CodebookType::Int7 => Some(63),
            CodebookType::F16 => None,
        }
    }

    /// How many codebooks [`quantize`] makes where this type is asked for, and the type that they really have: uniform
    /// levels are integers, and 8-bit codes over integers have one table, which holds all of them.
    pub fn of_result(self, method: Method, bits: Bits) -> (Grain, CodebookType) {
        match method {
            Method::Uniform(_) => (Grain::Tensor, CodebookType::Int8),
            Method::KMeansRow if self.is_integer() && bits.levels() == 256 => (Grain::Tensor, self),
            Method::KMeansRow => (Grain::Row, self),
            Method::KMeansTensor | Method::Lloyd => (Grain::Tensor, self),
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
    /// The same for the levels before they were rounded to table entries. For the uniform method and the fixed table, and
    /// for 8-bit codes over an integer table (where the code is the integer, whatever the method), it equals `error`.
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
        (Method::Uniform(rule), _) => uniform::quantize(weights, rows, cols, rule, bits),
        (Method::Lloyd, _) => lloyd::quantize(weights, rows, cols, bits, codebook),
        (Method::KMeansRow, table) if table.is_integer() && bits.levels() == 256 => {
            identity::rows(weights, rows, cols, bits)
        }
        (Method::KMeansTensor, table) if table.is_integer() && bits.levels() == 256 => {
            identity::tensor(weights, rows, cols, bits)
        }
        (Method::KMeansRow, _) => table::kmeans_rows(weights, rows, cols, bits, codebook).0,
        (Method::KMeansTensor, _) => table::kmeans_tensor(weights, rows, cols, bits, codebook).0,
    }
}

/// The codes of `weights`, which lie on the grid of every row already: level q of row r is `step[r] * (q - zero[r])`. Others are
/// rounded to the nearest level.
///
/// # Panics
/// If there are not as many weights as rows and columns say, or as many steps and zero points as rows.
pub fn encode(weights: &[f32], rows: usize, cols: usize, bits: Bits, step: &[f32], zero: &[f32]) -> QuantizedMatrix {
    assert_eq!((weights.len(), step.len(), zero.len()), (rows * cols, rows, rows), "a {rows} x {cols} matrix");
    if weights.is_empty() { table::empty(rows, cols, bits) } else { uniform::encode(weights, cols, bits, step, zero) }
}

/// `||W - Wq|| / ||W||` of `matrix`; 0 for an all-zero source that is reproduced.
pub fn relative_error(weights: &[f32], matrix: &QuantizedMatrix) -> f64 {
    relative(table::error_and_energy(weights, matrix))
}

/// `||W - V|| / ||W||` of `values`, as many as `weights`.
pub fn relative_distance(weights: &[f32], values: impl Iterator<Item = f32>) -> f64 {
    let (mut sse, mut energy) = (0.0, 0.0);
    for (&w, v) in weights.iter().zip(values) {
        sse += (f64::from(w) - f64::from(v)).powi(2);
        energy += f64::from(w).powi(2);
    }
    relative((sse, energy))
}

/// The root of an error's part of the energy; nothing is no part of nothing.
fn relative((sse, energy): (f64, f64)) -> f64 {
    if sse == 0.0 { 0.0 } else { (sse / energy).sqrt() }
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
    let direct = weights.is_empty() || (codebook.is_integer() && bits.levels() == 256);
    let (matrix, exact_sse) = match method {
        Method::KMeansRow if !direct => table::kmeans_rows(weights, rows, cols, bits, codebook),
        Method::KMeansTensor if !direct => table::kmeans_tensor(weights, rows, cols, bits, codebook),
        _ => (quantize(weights, rows, cols, method, bits, codebook), f64::NAN),
    };
    measured(weights, matrix, exact_sse)
}

/// `matrix` with its errors; that of exact levels is as `matrix` has it where their squared error is not a number.
fn measured(weights: &[f32], matrix: QuantizedMatrix, exact_sse: f64) -> Measured {
    let (sse, energy) = table::error_and_energy(weights, &matrix);
    let relative = |sse: f64| if sse == 0.0 { 0.0 } else { (sse / energy).sqrt() };
    let error = relative(sse);
    Measured { matrix, error, exact_error: if exact_sse.is_nan() { error } else { relative(exact_sse) } }
}
