//! The search itself: rounds of feedback and refits, then descent, over tiles of rows.

use super::FeedbackOptions;
use super::block::{Block, Blocks};
use super::grid::{Form, Freedom, Grid};
use super::levels::TileLevels;
use super::refit::{Normal, Pair, dot, gather_affine, gather_affine_of_pair, gather_levels, gather_levels_of_pair};
use super::rounding::{Pins, Rounded, descend, feed_back};
use super::tile;
use ndarray::Array2;
use ndarray::linalg::general_mat_mul;
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

/// Where a round's codes come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Error feedback.
    FeedBack,
    /// They are there.
    Keep,
}

/// What a round found besides codes.
pub(super) struct Round {
    /// `e H e^T` of every row, damped.
    pub(super) objective: Vec<f64>,
    /// One per row, or one for all; none if they were not asked for.
    pub(super) normals: Vec<Normal>,
    /// How often damping was raised in a block, at most.
    raised: usize,
}

impl Round {
    /// Adds what a tile makes. Normal equations that come first are the sum as they are.
    fn add(&mut self, tile: usize, made: Round, shared: bool) {
        let first = tile * TILE;
        self.objective[first..].iter_mut().zip(made.objective).for_each(|(sum, v)| *sum += v);
        let first = if shared { 0 } else { first };
        let known = self.normals.len().saturating_sub(first);
        self.normals.iter_mut().skip(first).zip(&made.normals).for_each(|(sum, v)| sum.add(v));
        self.normals.extend(made.normals.into_iter().skip(known));
    }
}

impl Problem<'_> {
    /// Finds codes and levels.
    ///
    /// # Errors
    /// If a block's moments cannot be factored.
    pub(super) fn solve(&self, blocks: &Cache, options: &FeedbackOptions) -> Result<Solution, String> {
        let mut grids = self.form.grids(self.weights, self.cols, &self.blocks.weights());
        let refits = if self.form.is_refit() { options.refits } else { 0 };
        // One of them follows descent, and with it descent comes again.
        let late = usize::from(refits > 0 && options.sweeps > 0);
        let early = refits - late;
        let mut codes = vec![0u8; self.weights.len()];
        let mut made = self.round(blocks, &grids, &mut codes, Way::FeedBack, early > 0)?;
        let mut least = std::mem::take(&mut made.objective);
        let mut best = Solution { grids: grids.clone(), codes: codes.clone(), raised: made.raised };
        for round in 0..early {
            grids = self.refit(&grids, &made.normals);
            made = self.round(blocks, &grids, &mut codes, Way::FeedBack, round + 1 < early)?;
            self.keep_better(&mut best, &mut least, &grids, &codes, &made.objective);
        }
        if options.sweeps > 0 {
            self.descend(blocks, &best.grids, &mut best.codes, options.sweeps)?;
        }
        for _ in 0..late {
            let mut before = self.survey(blocks, &best.grids, &mut best.codes, true)?;
            grids = self.refit(&best.grids, &before.normals);
            codes.copy_from_slice(&best.codes);
            self.descend(blocks, &grids, &mut codes, options.sweeps)?;
            let after = self.survey(blocks, &grids, &mut codes, false)?;
            self.keep_better(&mut best, &mut before.objective, &grids, &codes, &after.objective);
        }
        Ok(best)
    }

    fn refit(&self, grids: &[Grid], normals: &[Normal]) -> Vec<Grid> {
        grids.par_iter().zip(normals).map(|(grid, normal)| self.form.refit(grid, normal)).collect()
    }

    /// Takes over rows whose objective fell, or all of them if they share their levels and the sum fell.
    fn keep_better(&self, best: &mut Solution, least: &mut [f64], grids: &[Grid], codes: &[u8], objective: &[f64]) {
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

    /// Makes (or keeps) codes over `grids`, and sums up what a refit needs if it is `wanted`; blocks know nothing of each
    /// other.
    fn round(&self, blocks: &Cache, grids: &[Grid], codes: &mut [u8], way: Way, wanted: bool) -> Result<Round, String> {
        let mut sum = Round { objective: vec![0.0; self.rows], normals: Vec::new(), raised: 0 };
        for b in 0..self.blocks.len() {
            blocks.with(b, |block| {
                sum.raised = sum.raised.max(block.raised);
                let tiles = codes.par_chunks_mut(TILE * self.cols).enumerate();
                let made: Vec<Round> =
                    tiles.map(|(tile, codes)| self.round_tile(block, grids, tile, codes, way, wanted)).collect();
                made.into_iter().enumerate().for_each(|(tile, made)| sum.add(tile, made, self.form.shared));
            })?;
        }
        Ok(sum)
    }

    fn round_tile(
        &self,
        block: &Block,
        grids: &[Grid],
        tile: usize,
        codes: &mut [u8],
        way: Way,
        wanted: bool,
    ) -> Round {
        let first = tile * TILE;
        let w = self.weight_tile(first, codes.len() / self.cols, &block.inputs);
        let rows = w.ncols();
        let levels = self.levels(grids, first, rows);
        let rounded = match way {
            Way::FeedBack => {
                let pins = self.pins(first, rows, &block.inputs, &levels);
                feed_back(&w, &levels, &block.factor, pins.as_ref())
            }
            Way::Keep => {
                let codes = tile::gather(rows, &block.inputs, |r, input| codes[r * self.cols + input]);
                let error = tile::error(&w, &codes, &levels);
                Rounded { innovation: block.factor.transposed_product(error.view()), codes }
            }
        };
        tile::scatter(codes, self.cols, &block.inputs, &rounded.codes);
        let mut normals = self.normals(wanted, rows);
        if wanted {
            match self.form.freedom {
                Freedom::Levels => gather_levels(&mut normals, &rounded, &block.factor, block.second.view()),
                Freedom::Affine | Freedom::Slope | Freedom::Scale | Freedom::None(_) => {
                    gather_affine(&mut normals, &rounded, |r, code| self.entry(grids, first + r, code), &block.factor);
                }
            }
        }
        let objective = block.factor.scaled_dot(&rounded.innovation, &rounded.innovation);
        Round { objective, normals, raised: block.raised }
    }

    /// Empty normal equations of a tile.
    fn normals(&self, wanted: bool, rows: usize) -> Vec<Normal> {
        let rows = if self.form.shared { 1 } else { rows };
        vec![Normal::new(self.form.parameters()); if wanted { rows } else { 0 }]
    }

    /// What the slope of a row's levels is multiplied by in the level of `code`.
    fn entry(&self, grids: &[Grid], row: usize, code: u8) -> f32 {
        let grid = &grids[if self.form.shared { 0 } else { row }];
        let shift = if self.form.parameters() == 1 { grid.offset } else { 0.0 };
        grid.entries[usize::from(code)] + shift
    }

    /// What a round finds of codes as they are, all blocks taken together.
    pub(super) fn survey(
        &self,
        blocks: &Cache,
        grids: &[Grid],
        codes: &mut [u8],
        wanted: bool,
    ) -> Result<Round, String> {
        let mut sum = self.round(blocks, grids, codes, Way::Keep, wanted)?;
        for (one, other) in (0..self.blocks.len()).flat_map(|one| (0..one).map(move |other| (one, other))) {
            let inputs = [self.blocks.inputs(one), self.blocks.inputs(other)];
            let second = self.blocks.second(&inputs[0], &inputs[1]);
            let tiles = codes.par_chunks(TILE * self.cols).enumerate();
            let made: Vec<Round> =
                tiles.map(|(tile, codes)| self.pair(&inputs, &second, grids, tile, codes, wanted)).collect();
            made.into_iter().enumerate().for_each(|(tile, made)| sum.add(tile, made, self.form.shared));
        }
        Ok(sum)
    }

    /// What a pair of blocks adds to a survey, for a tile.
    fn pair(
        &self,
        inputs: &[Vec<usize>; 2],
        second: &Array2<f32>,
        grids: &[Grid],
        tile: usize,
        codes: &[u8],
        wanted: bool,
    ) -> Round {
        let (first, rows) = (tile * TILE, codes.len() / self.cols);
        let levels = self.levels(grids, first, rows);
        let codes = [0, 1].map(|block| tile::gather(rows, &inputs[block], |r, input| codes[r * self.cols + input]));
        let errors =
            [0, 1].map(|block| tile::error(&self.weight_tile(first, rows, &inputs[block]), &codes[block], &levels));
        let pull = second.dot(&errors[1]);
        let objective = dot(&errors[0], &pull).into_iter().map(|product| 2.0 * product).collect();
        let mut normals = self.normals(wanted, rows);
        if wanted {
            let pair = Pair { codes: [&codes[0], &codes[1]], errors: [&errors[0], &errors[1]], pull };
            match self.form.freedom {
                Freedom::Levels => gather_levels_of_pair(&mut normals, &pair, second.view()),
                Freedom::Affine | Freedom::Slope | Freedom::Scale | Freedom::None(_) => {
                    let entry = |r: usize, code: u8| self.entry(grids, first + r, code);
                    gather_affine_of_pair(&mut normals, &pair, entry, second.view());
                }
            }
        }
        Round { objective, normals, raised: 0 }
    }

    /// Coordinate descent in every block, knowing the errors of all others. Where there are others, another round of
    /// feedback, which makes up for their errors, comes first.
    fn descend(&self, blocks: &Cache, grids: &[Grid], codes: &mut [u8], sweeps: usize) -> Result<(), String> {
        for b in 0..self.blocks.len() {
            let cross = self.cross(b, grids, codes);
            blocks.with(b, |block| {
                codes.par_chunks_mut(TILE * self.cols).enumerate().for_each(|(tile, codes)| {
                    let first = tile * TILE;
                    let rows = codes.len() / self.cols;
                    let levels = self.levels(grids, first, rows);
                    let w = self.weight_tile(first, rows, &block.inputs);
                    let mut kept = tile::gather(rows, &block.inputs, |r, input| codes[r * self.cols + input]);
                    let pins = self.pins(first, rows, &block.inputs, &levels);
                    if let Some(pins) = &pins {
                        pins.settle(&mut kept);
                    }
                    let cross = cross.get(tile);
                    if let Some(cross) = cross {
                        again(&w, &mut kept, &levels, block, cross, pins.as_ref());
                    }
                    let mut error = tile::error(&w, &kept, &levels);
                    let mut gradient = block.second.dot(&error);
                    if let Some(cross) = cross {
                        gradient += cross;
                    }
                    let (second, how) = (block.second.view(), (sweeps, pins.as_ref()));
                    descend(&w, (&mut kept, &mut error), &levels, second, gradient, how);
                    tile::scatter(codes, self.cols, &block.inputs, &kept);
                });
            })?;
        }
        Ok(())
    }

    /// What the errors of all other blocks add to the gradient of block `b`: (inputs, rows) of every tile; none if there
    /// are no others.
    fn cross(&self, b: usize, grids: &[Grid], codes: &[u8]) -> Vec<Array2<f32>> {
        if self.blocks.len() == 1 {
            return Vec::new();
        }
        let inputs = self.blocks.inputs(b);
        let tiles = codes.chunks(TILE * self.cols).map(|codes| codes.len() / self.cols);
        let mut sums: Vec<Array2<f32>> = tiles.map(|rows| Array2::zeros((inputs.len(), rows))).collect();
        for other in (0..self.blocks.len()).filter(|&other| other != b) {
            let others = self.blocks.inputs(other);
            let second = self.blocks.second(&inputs, &others);
            sums.par_iter_mut().enumerate().for_each(|(tile, sum)| {
                let first = tile * TILE;
                let levels = self.levels(grids, first, sum.ncols());
                let error = tile::gather(sum.ncols(), &others, |r, input| {
                    let at = (first + r) * self.cols + input;
                    self.weights[at] - levels.value(r, codes[at])
                });
                general_mat_mul(1.0, &second, &error, 1.0, sum);
            });
        }
        sums
    }

    /// A tile of the weight.
    fn weight_tile(&self, first: usize, rows: usize, inputs: &[usize]) -> Array2<f32> {
        tile::gather(rows, inputs, |r, input| self.weights[(first + r) * self.cols + input])
    }

    /// Which weights of a tile stay 0, if any must.
    fn pins(&self, first: usize, rows: usize, inputs: &[usize], levels: &TileLevels) -> Option<Pins> {
        let is_zero = |r, input| self.weights[(first + r) * self.cols + input] == 0.0;
        self.form.zeros.then(|| Pins::new(tile::gather(rows, inputs, is_zero), levels))
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

/// Rounds a tile of a block again, given what the errors of other blocks add to its gradient, and takes over the rows
/// that are better for it.
///
/// With the gradient g of the others the objective is `(e + g H^-1) H (e + g H^-1)^T` and a constant: that of a weight
/// which is shifted.
fn again(
    w: &Array2<f32>,
    codes: &mut Array2<u8>,
    levels: &TileLevels,
    block: &Block,
    cross: &Array2<f32>,
    pins: Option<&Pins>,
) {
    let shifted = w + &block.factor.solve(cross.clone());
    let error = tile::error(&shifted, codes, levels);
    let innovation = block.factor.transposed_product(error.view());
    let now = block.factor.scaled_dot(&innovation, &innovation);
    let rounded = feed_back(&shifted, levels, &block.factor, pins);
    let then = block.factor.scaled_dot(&rounded.innovation, &rounded.innovation);
    for (r, _) in now.iter().zip(&then).enumerate().filter(|(_, (now, then))| then < now) {
        codes.column_mut(r).assign(&rounded.codes.column(r));
    }
}

/// Bytes of blocks that are kept; more are made again whenever they are needed.
const KEPT: usize = 1 << 30;

/// The blocks, factored.
pub(super) struct Cache<'a> {
    blocks: &'a Blocks<'a>,
    kept: Vec<Block>,
}

impl<'a> Cache<'a> {
    /// Factors the blocks if there is room for all of them.
    ///
    /// # Errors
    /// If one of them cannot be factored.
    pub(super) fn new(blocks: &'a Blocks<'a>) -> Result<Self, String> {
        let bytes: usize = (0..blocks.len()).map(|b| blocks.bytes(b)).sum();
        let kept = if bytes <= KEPT { 0..blocks.len() } else { 0..0 };
        Ok(Cache { blocks, kept: kept.map(|b| blocks.block(b)).collect::<Result<_, _>>()? })
    }

    /// What `act` makes of block `b`.
    ///
    /// # Errors
    /// If it cannot be factored.
    pub(super) fn with<R>(&self, b: usize, act: impl FnOnce(&Block) -> R) -> Result<R, String> {
        match self.kept.get(b) {
            Some(block) => Ok(act(block)),
            None => self.blocks.block(b).map(|block| act(&block)),
        }
    }
}
