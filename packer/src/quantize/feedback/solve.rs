//! The search itself: rounds of feedback and refits, then descent, over tiles of rows.

use super::FeedbackOptions;
use super::block::{Block, Blocks};
use super::grid::{Form, Freedom, Grid};
use super::levels::TileLevels;
use super::refit::{Normal, gather_affine, gather_levels};
use super::rounding::{descend, feed_back};
use ndarray::linalg::general_mat_mul;
use ndarray::{Array2, Axis};
use rayon::prelude::*;

/// Rows per tile. Fixed, so that no sum depends on the number of threads.
pub(super) const TILE: usize = 64;

/// A weight to quantize.
#[derive(Clone, Copy, Debug)]
pub(super) struct Problem<'a> {
    /// (rows, cols), neither of them 0.
    pub(super) weights: &'a [f32],
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) form: Form,
    pub(super) blocks: &'a Blocks<'a>,
}

/// Codes and the levels they name.
#[derive(Clone, Debug)]
pub(super) struct Solution {
    /// One per row, or one for all.
    pub(super) grids: Vec<Grid>,
    /// (rows, cols).
    pub(super) codes: Vec<u8>,
    /// How often damping was raised in a block, at most.
    pub(super) raised: usize,
}

/// What a round of feedback made besides codes.
struct Round {
    /// `e H e^T` of every row, damped, blocks apart.
    objective: Vec<f64>,
    /// One per row, or one for all; none if they were not asked for.
    normals: Vec<Normal>,
}

impl Problem<'_> {
    /// Finds codes and levels.
    ///
    /// # Errors
    /// If a block's moments cannot be factored.
    pub(super) fn solve(&self, blocks: &Cache, options: &FeedbackOptions) -> Result<Solution, String> {
        let mut grids = self.form.grids(self.weights, self.cols, &self.blocks.weights());
        let refits = if self.form.is_refit() { options.refits } else { 0 };
        let mut codes = vec![0u8; self.weights.len()];
        let mut best: Option<(Solution, Vec<f64>)> = None;
        let mut raised = 0;
        for round in 0..=refits {
            let made = self.round(blocks, &grids, &mut codes, round < refits, &mut raised)?;
            match &mut best {
                None => {
                    let first = Solution { grids: grids.clone(), codes: codes.clone(), raised: 0 };
                    best = Some((first, made.objective));
                }
                Some((best, least)) => self.keep_better(best, least, &grids, &codes, &made.objective),
            }
            if round < refits {
                grids =
                    grids.par_iter().zip(&made.normals).map(|(grid, normal)| self.form.refit(grid, normal)).collect();
            }
        }
        let (mut best, _) = best.expect("there is at least one round");
        best.raised = raised;
        if options.sweeps > 0 {
            self.descend(blocks, &best.grids, &mut best.codes, options.sweeps)?;
        }
        Ok(best)
    }

    /// Takes over rows whose objective fell, or all of them if they share their levels and the sum fell.
    fn keep_better(&self, best: &mut Solution, least: &mut Vec<f64>, grids: &[Grid], codes: &[u8], objective: &[f64]) {
        if self.form.shared {
            if objective.iter().sum::<f64>() < least.iter().sum::<f64>() {
                best.grids.clone_from_slice(grids);
                best.codes.copy_from_slice(codes);
                least.copy_from_slice(objective);
            }
            return;
        }
        for (r, &now) in objective.iter().enumerate() {
            if now < least[r] {
                let row = r * self.cols..(r + 1) * self.cols;
                best.codes[row.clone()].copy_from_slice(&codes[row]);
                best.grids[r] = grids[r].clone();
                least[r] = now;
            }
        }
    }

    /// Rounds everything with error feedback over `grids`, and sums up what a refit needs if it is `wanted`.
    fn round(
        &self,
        blocks: &Cache,
        grids: &[Grid],
        codes: &mut [u8],
        wanted: bool,
        raised: &mut usize,
    ) -> Result<Round, String> {
        let normals = match wanted {
            true => vec![Normal::new(self.form.parameters()); grids.len()],
            false => Vec::new(),
        };
        let mut sum = Round { objective: vec![0.0; self.rows], normals };
        for b in 0..self.blocks.len() {
            blocks.with(b, |block| {
                *raised = (*raised).max(block.raised);
                let tiles = codes.par_chunks_mut(TILE * self.cols).enumerate();
                let made: Vec<Round> =
                    tiles.map(|(tile, codes)| self.tile(block, grids, tile, codes, wanted)).collect();
                for (tile, made) in made.into_iter().enumerate() {
                    let first = tile * TILE;
                    sum.objective[first..].iter_mut().zip(made.objective).for_each(|(sum, v)| *sum += v);
                    let first = if self.form.shared { 0 } else { first };
                    sum.normals.iter_mut().skip(first).zip(&made.normals).for_each(|(sum, v)| sum.add(v));
                }
            })?;
        }
        Ok(sum)
    }

    fn tile(&self, block: &Block, grids: &[Grid], tile: usize, codes: &mut [u8], wanted: bool) -> Round {
        let first = tile * TILE;
        let w = self.gather(first, codes.len() / self.cols, &block.inputs, |at| f64::from(self.weights[at]));
        let rows = w.ncols();
        let grid = |r: usize| &grids[if self.form.shared { 0 } else { first + r }];
        let levels = self.levels(grids, first, rows);
        let rounded = feed_back(&w, &levels, &block.factor);
        for (p, &input) in block.inputs.iter().enumerate() {
            (0..rows).for_each(|r| codes[r * self.cols + input] = rounded.codes[[p, r]]);
        }
        let mut normals = Vec::new();
        if wanted {
            normals = vec![Normal::new(self.form.parameters()); if self.form.shared { 1 } else { rows }];
            match self.form.freedom {
                Freedom::Levels => gather_levels(&mut normals, &rounded, &levels, &block.factor, block.second.view()),
                Freedom::Affine | Freedom::Scale => {
                    let shift = |r: usize| if self.form.freedom == Freedom::Scale { grid(r).offset } else { 0.0 };
                    let entry = |r: usize, code: u8| f64::from(grid(r).entries[usize::from(code)] + shift(r));
                    gather_affine(&mut normals, &rounded, entry, &block.factor);
                }
            }
        }
        Round { objective: block.factor.scaled_dot(&rounded.innovation, &rounded.innovation), normals }
    }

    /// Coordinate descent in every block, knowing the errors of all others.
    fn descend(&self, blocks: &Cache, grids: &[Grid], codes: &mut [u8], sweeps: usize) -> Result<(), String> {
        for b in 0..self.blocks.len() {
            let cross = self.cross(b, grids, codes);
            blocks.with(b, |block| {
                codes.par_chunks_mut(TILE * self.cols).enumerate().for_each(|(tile, codes)| {
                    let first = tile * TILE;
                    let rows = codes.len() / self.cols;
                    let levels = self.levels(grids, first, rows);
                    let w = self.gather(first, rows, &block.inputs, |at| f64::from(self.weights[at]));
                    let mut kept = Array2::from_shape_fn(w.raw_dim(), |(p, r)| codes[r * self.cols + block.inputs[p]]);
                    let mut error =
                        Array2::from_shape_fn(w.raw_dim(), |(p, r)| w[[p, r]] - levels.value(r, kept[[p, r]]));
                    descend(&w, (&mut kept, &mut error), &levels, block.second.view(), cross.get(tile), sweeps);
                    for (p, &input) in block.inputs.iter().enumerate() {
                        (0..rows).for_each(|r| codes[r * self.cols + input] = kept[[p, r]]);
                    }
                });
            })?;
        }
        Ok(())
    }

    /// What the errors of all other blocks add to the gradient of block `b`: (inputs, rows) of every tile; none if there
    /// are no others.
    fn cross(&self, b: usize, grids: &[Grid], codes: &[u8]) -> Vec<Array2<f64>> {
        if self.blocks.len() == 1 {
            return Vec::new();
        }
        let inputs = self.blocks.inputs(b);
        let tiles = codes.chunks(TILE * self.cols).map(|codes| codes.len() / self.cols);
        let mut sums: Vec<Array2<f64>> = tiles.map(|rows| Array2::zeros((inputs.len(), rows))).collect();
        for other in (0..self.blocks.len()).filter(|&other| other != b) {
            let others = self.blocks.inputs(other);
            let second = self.blocks.second(&inputs, &others);
            sums.par_iter_mut().enumerate().for_each(|(tile, sum)| {
                let first = tile * TILE;
                let levels = self.levels(grids, first, sum.ncols());
                let error = self.gather(first, sum.ncols(), &others, |at| {
                    f64::from(self.weights[at]) - levels.value(at / self.cols - first, codes[at])
                });
                general_mat_mul(1.0, &second, &error, 1.0, sum);
            });
        }
        sums
    }

    /// A tile of a matrix like the weight, (inputs, rows), from values at indices of the weight.
    pub(super) fn gather(&self, first: usize, rows: usize, inputs: &[usize], at: impl Fn(usize) -> f64) -> Array2<f64> {
        let mut tile = Array2::zeros((inputs.len(), rows));
        for (mut lanes, &input) in tile.axis_iter_mut(Axis(0)).zip(inputs) {
            lanes.iter_mut().enumerate().for_each(|(r, lane)| *lane = at((first + r) * self.cols + input));
        }
        tile
    }

    fn levels(&self, grids: &[Grid], first: usize, rows: usize) -> TileLevels {
        let level = |r: usize| grids[if self.form.shared { 0 } else { first + r }].levels();
        TileLevels::new(&(0..rows).map(level).collect::<Vec<_>>())
    }

    /// `||W - Q|| / ||W||` with levels that were not rounded to entries; NaN if there are none.
    pub(super) fn exact_error(&self, grids: &[Grid], codes: &[u8]) -> f64 {
        if grids.iter().all(|grid| grid.exact.is_none()) {
            return f64::NAN;
        }
        let rows = self.weights.par_chunks(self.cols).zip(codes.par_chunks(self.cols)).enumerate();
        let sums: Vec<(f64, f64)> = rows
            .map(|(r, (weights, codes))| {
                let grid = &grids[if self.form.shared { 0 } else { r }];
                let levels = grid.exact.clone().unwrap_or_else(|| grid.levels());
                weights.iter().zip(codes).fold((0.0, 0.0), |(error, energy), (&w, &code)| {
                    let w = f64::from(w);
                    (error + (w - levels[usize::from(code)]).powi(2), energy + w * w)
                })
            })
            .collect();
        let (error, energy) = sums.iter().fold((0.0, 0.0), |(a, b), (c, d)| (a + c, b + d));
        if error == 0.0 { 0.0 } else { (error / energy).sqrt() }
    }
}

/// Blocks, made when they are needed and kept if there is only one.
pub(super) struct Cache<'a> {
    blocks: &'a Blocks<'a>,
    only: Option<Block>,
}

impl<'a> Cache<'a> {
    pub(super) fn new(blocks: &'a Blocks<'a>) -> Result<Self, String> {
        let only = if blocks.len() == 1 { Some(blocks.block(0)?) } else { None };
        Ok(Cache { blocks, only })
    }

    pub(super) fn with<R>(&self, b: usize, act: impl FnOnce(&Block) -> R) -> Result<R, String> {
        match &self.only {
            Some(block) => Ok(act(block)),
            None => self.blocks.block(b).map(|block| act(&block)),
        }
    }
}
