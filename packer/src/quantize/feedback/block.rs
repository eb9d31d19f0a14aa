//! The inputs of a layer in blocks small enough to factor, each with its damped second moments.

use super::factor::{Factor, factor};
use crate::quantize::moments::Moments;
use ndarray::Array2;

/// Added to the damping, relative to the mean of the diagonal, as often as the factorisation fails.
const MORE_DAMPING: f64 = 0.001;
/// How often that is tried.
const ATTEMPTS: usize = 250;
/// A variance below this part of the mean square is what rounding leaves of a constant.
const CONSTANT: f64 = 1e-10;

/// How a layer's inputs are cut into blocks, and what their moments are once the mean is folded into the bias.
#[derive(Debug)]
pub(super) struct Blocks<'a> {
    moments: &'a Moments,
    /// The variance of every input; 0 of those that are constant.
    pub(super) variance: Vec<f64>,
    /// The mean variance: what second moments and errors are in units of, whatever the size of inputs.
    pub(super) unit: f64,
    /// Inputs of each block, ascending.
    sets: Vec<Vec<usize>>,
    damping: f64,
}

/// One block of inputs.
#[derive(Debug)]
pub(super) struct Block {
    /// The inputs, from the least variance to the largest: rounding goes the other way.
    pub(super) inputs: Vec<usize>,
    /// Damped centred second moments in that order.
    pub(super) second: Array2<f32>,
    /// Their factors.
    pub(super) factor: Factor,
    /// What was added to the diagonal.
    pub(super) ridge: f64,
    /// How many times more than asked for had to be added.
    pub(super) raised: usize,
}

impl<'a> Blocks<'a> {
    /// Cuts the inputs into blocks of at most `max_block` of them: runs, or in a convolution all taps of a run of
    /// channels, one channel at least.
    pub(super) fn new(moments: &'a Moments, damping: f64, max_block: usize) -> Self {
        let constant = |square: f64, mean: f64| square - mean * mean <= CONSTANT * square;
        let squares = moments.diagonal().into_iter().zip(moments.centre());
        let variance: Vec<f64> =
            squares.map(|(square, &mean)| if constant(square, mean) { 0.0 } else { square - mean * mean }).collect();
        let unit = match variance.iter().sum::<f64>() / variance.len() as f64 {
            mean if mean > 0.0 => mean,
            _ => 1.0,
        };
        let taps = moments.taps();
        let channels = moments.inputs() / taps;
        let blocks = channels.div_ceil((max_block / taps).max(1)).max(1);
        let set = |b: usize| {
            let run = channels * b / blocks..channels * (b + 1) / blocks;
            (0..taps).flat_map(|tap| run.clone().map(move |c| tap * channels + c)).collect()
        };
        Blocks { moments, variance, unit, sets: (0..blocks).map(set).collect(), damping }
    }

    /// How many blocks there are.
    pub(super) fn len(&self) -> usize {
        self.sets.len()
    }

    /// Inputs that never changed over the calibration.
    pub(super) fn constants(&self) -> usize {
        self.variance.iter().filter(|&&v| v == 0.0).count()
    }

    /// What each input's own error weighs: its damped variance.
    pub(super) fn weights(&self) -> Vec<f64> {
        let ridge = self.damping * self.variance.iter().sum::<f64>() / self.variance.len() as f64;
        self.variance.iter().map(|v| v + ridge).collect()
    }

    /// The inputs of block `b` in its order.
    pub(super) fn inputs(&self, b: usize) -> Vec<usize> {
        let mut inputs = self.sets[b].clone();
        inputs.sort_by(|&i, &j| self.variance[j].total_cmp(&self.variance[i]));
        inputs.reverse();
        inputs
    }

    /// Centred second moments of inputs `rows` with inputs `cols`, not damped. A constant input has none, so that any code of
    /// its weights is as good; damping then picks the nearest, which is best if it should vary after all.
    pub(super) fn second(&self, rows: &[usize], cols: &[usize]) -> Array2<f32> {
        self.covariance(rows, cols).mapv(|v| v as f32)
    }

    /// What a block takes to keep.
    pub(super) fn bytes(&self, b: usize) -> usize {
        2 * size_of::<f32>() * self.sets[b].len().pow(2)
    }

    fn covariance(&self, rows: &[usize], cols: &[usize]) -> Array2<f64> {
        let mut second = self.moments.block(rows, cols, true);
        second /= self.unit;
        for (i, mut row) in rows.iter().zip(second.rows_mut()) {
            if self.variance[*i] == 0.0 {
                row.fill(0.0);
            }
        }
        for (j, mut column) in cols.iter().zip(second.columns_mut()) {
            if self.variance[*j] == 0.0 {
                column.fill(0.0);
            }
        }
        second
    }

    /// Damps and factors block `b`.
    ///
    /// # Errors
    /// If no damping that is tried makes the moments positive definite.
    pub(super) fn block(&self, b: usize) -> Result<Block, String> {
        let inputs = self.inputs(b);
        let mut second = self.covariance(&inputs, &inputs);
        let mean = second.diag().sum() / inputs.len() as f64;
        // Inputs that are all constant: nearest levels, whatever the ridge.
        let unit = if mean > 0.0 { mean } else { 1.0 };
        let first = if mean > 0.0 { self.damping * mean } else { 1.0 };
        let mut ridge = 0.0;
        for raised in 0..=ATTEMPTS {
            let wanted = first + MORE_DAMPING * unit * raised as f64;
            second.diag_mut().iter_mut().for_each(|v| *v += wanted - ridge);
            ridge = wanted;
            if let Some(factor) = factor(second.clone()) {
                return Ok(Block { inputs, second: second.mapv(|v| v as f32), factor, ridge, raised });
            }
        }
        Err(format!(
            "second moments of {} inputs are not positive definite, even with {ridge:e} added to a mean of {mean:e}: \
             expected moments of one set of inputs, mean and squares over the same rows",
            inputs.len()
        ))
    }
}
