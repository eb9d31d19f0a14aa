//! AdaRound: for every weight of a uniform grid, whether it goes down or up, learned (Nagel et al. 2020, section 3.2), as
//! Q-Diffusion has it (quantization.md §3.2).
//!
//! ```text
//! q = clamp(floor(w / step) + h + zero, 0, 2^bits - 1)       h = clamp(1.2 sigmoid(alpha) - 0.1, 0, 1), at last (alpha >= 0)
//! loss = (error of outputs) + 0.01 sum(1 - |2 h - 1|^b)      b from 20 down to 2; in the first fifth without this term
//! ```
//!
//! Steps and zero points stay as they are. A zero point need not be an integer here: levels are then those of
//! `floor(w / step + its fraction)`, which is the same where it is one.

use aquatint::raw::codec::{Bits, Grain, QuantizedMatrix, TableValues};
use rayon::prelude::*;

/// Ends of the stretched sigmoid.
const GAMMA: f32 = -0.1;
const ZETA: f32 = 1.1;
/// Elements that are worked on together.
const PIECE: usize = 1 << 12;

/// A weight whose directions of rounding are being learned.
#[derive(Clone, Debug, PartialEq)]
pub struct Rounding {
    /// Steps, zero points and width; its codes mean nothing until [`harden`](Self::harden).
    grid: QuantizedMatrix,
    /// `floor(w / step) + zero`, the zero point's fraction apart.
    floor: Vec<f32>,
    /// What is learned, a number per weight.
    pub alpha: Vec<f32>,
}

/// How the regularizer grows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// Iterations in all.
    pub iterations: usize,
    /// The weight of the regularizer.
    pub weight: f32,
}

impl Schedule {
    /// The published weight of the regularizer.
    pub const WEIGHT: f32 = 0.01;
    /// The share of the iterations before it begins.
    const WARMUP: f32 = 0.2;
    /// Its exponent then, and at the end.
    const EXPONENTS: [f32; 2] = [20.0, 2.0];

    /// The regularizer's exponent in iteration `count`, from 1; none before it begins.
    pub fn exponent(&self, count: usize) -> Option<f32> {
        let (total, count) = (self.iterations as f32, count as f32);
        let start = total * Self::WARMUP;
        let [from, to] = Self::EXPONENTS;
        let done = (count - start) / (total - start);
        (count >= start).then(|| to + (from - to) * (1.0 - done).max(0.0))
    }
}

impl Rounding {
    /// Begins with the directions in which `weights` lie between the levels of `grid`, whose codes are not looked at.
    ///
    /// # Panics
    /// If the grid is not of consecutive integers, or there are not as many weights as it has codes.
    pub fn new(weights: &[f32], grid: QuantizedMatrix) -> Self {
        assert!(is_uniform(&grid) && weights.len() == grid.codes.len(), "{} weights on a uniform grid", weights.len());
        let mut rounding = Rounding { floor: vec![0.0; weights.len()], alpha: vec![0.0; weights.len()], grid };
        let Rounding { grid, floor, alpha } = &mut rounding;
        let cols = grid.cols.max(1);
        let rows = (floor.par_chunks_mut(cols), alpha.par_chunks_mut(cols), weights.par_chunks(cols));
        rows.into_par_iter().enumerate().for_each(|(row, (floor, alpha, weights))| {
            let (step, zero) = (grid.scale[row], zero(grid, row));
            let whole = zero.floor();
            for ((floor, alpha), &w) in floor.iter_mut().zip(alpha).zip(weights) {
                let at = w / step + (zero - whole);
                let rest = at - at.floor();
                *floor = at.floor() + whole;
                *alpha = -((ZETA - GAMMA) / (rest - GAMMA) - 1.0).ln();
            }
        });
        rounding
    }

    /// Number of weights.
    pub fn len(&self) -> usize {
        self.alpha.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.alpha.is_empty()
    }

    /// The weights as they are while directions are soft.
    pub fn soft(&self) -> Vec<f32> {
        let mut weights = vec![0f32; self.len()];
        self.by_piece(&mut weights, |at, weight, [step, zero], top| {
            let q = (self.floor[at] + share(self.alpha[at])).clamp(0.0, top);
            *weight = (q - zero) * step;
        });
        weights
    }

    /// The derivative of a loss with respect to alpha, given that with respect to the [soft](Self::soft) weights; with that
    /// of the regularizer of this weight and exponent, if there is one.
    pub fn gradient(&self, of_weights: &[f32], regularizer: Option<(f32, f32)>) -> Vec<f32> {
        let mut gradient = of_weights.to_vec();
        self.by_piece(&mut gradient, |at, gradient, [step, _], top| {
            let gate = 1.0 / (1.0 + (-self.alpha[at]).exp());
            let free = gate * (ZETA - GAMMA) + GAMMA;
            let h = free.clamp(0.0, 1.0);
            let q = self.floor[at] + h;
            let slope = if (0.0..=1.0).contains(&free) { (ZETA - GAMMA) * gate * (1.0 - gate) } else { 0.0 };
            let inside = if (0.0..=top).contains(&q) { step } else { 0.0 };
            let mut by_share = *gradient * inside;
            if let Some((weight, exponent)) = regularizer {
                let far = 2.0 * h - 1.0;
                by_share -= 2.0 * weight * exponent * far.abs().powf(exponent - 1.0) * sign(far);
            }
            *gradient = by_share * slope;
        });
        gradient
    }

    /// The weights as they become: every direction as it leans.
    pub fn harden(&self) -> QuantizedMatrix {
        let mut matrix = self.grid.clone();
        let top = (matrix.bits.levels() - 1) as f32;
        for (code, (&floor, &alpha)) in matrix.codes.iter_mut().zip(self.floor.iter().zip(&self.alpha)) {
            let up = if alpha >= 0.0 { 1.0 } else { 0.0 };
            *code = (floor + up).clamp(0.0, top) as u8;
        }
        matrix
    }

    /// Calls `change` for every element with its number, its row's step and zero point, and the greatest code.
    fn by_piece(&self, of: &mut [f32], change: impl Fn(usize, &mut f32, [f32; 2], f32) + Sync) {
        let (cols, top) = (self.grid.cols.max(1), (self.grid.bits.levels() - 1) as f32);
        of.par_chunks_mut(PIECE).enumerate().for_each(|(piece, of)| {
            let (mut row, mut map) = (usize::MAX, [0.0; 2]);
            for (i, of) in of.iter_mut().enumerate() {
                let at = piece * PIECE + i;
                if at / cols != row {
                    row = at / cols;
                    map = [self.grid.scale[row], zero(&self.grid, row)];
                }
                change(at, of, map, top);
            }
        });
    }
}

/// Whether levels are consecutive integers, scaled and shifted by row.
pub fn is_uniform(grid: &QuantizedMatrix) -> bool {
    let lowest = lowest(grid.bits);
    let TableValues::I8(table) = &grid.table else { return false };
    grid.grain == Grain::Tensor && table.iter().enumerate().all(|(i, &entry)| i32::from(entry) == lowest + i as i32)
}

fn lowest(bits: Bits) -> i32 {
    -(bits.levels() as i32 / 2)
}

/// The zero point of a row: what the code 0 lies below zero, in steps.
fn zero(grid: &QuantizedMatrix, row: usize) -> f32 {
    -lowest(grid.bits) as f32 - grid.offset[row]
}

/// How far up a weight goes.
fn share(alpha: f32) -> f32 {
    ((ZETA - GAMMA) / (1.0 + (-alpha).exp()) + GAMMA).clamp(0.0, 1.0)
}

fn sign(v: f32) -> f32 {
    if v == 0.0 { 0.0 } else { v.signum() }
}
