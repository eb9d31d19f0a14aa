//! The levels that a row's codes may take, as the file will hold them.

use super::refit::Normal;
use crate::quantize::kmeans::{self, Clusters, Scratch};
use crate::quantize::{CodebookType, Method, Rule, identity, lloyd, sparse, table, uniform};
use aquatint::raw::codec::Bits;
use rayon::prelude::*;

/// Levels at most for which a codebook per row is refit: with more, a level has hardly a weight to itself.
const REFIT_ROWS: usize = 64;

/// What about a grid is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Freedom {
    /// Every level.
    Levels,
    /// Slope and intercept over consecutive integers.
    Affine,
    /// Slope alone, over consecutive integers about one that stands for 0.
    Slope,
    /// The scale of a fixed table.
    Scale,
    /// Nothing: a published rule has set step and zero point, and codes alone are chosen.
    None(Rule),
}

/// What grids look like for a method.
#[derive(Clone, Copy, Debug)]
pub(super) struct Form {
    pub(super) bits: Bits,
    pub(super) codebook: CodebookType,
    pub(super) freedom: Freedom,
    /// Whether all rows have one grid.
    pub(super) shared: bool,
    /// Whether weights that are 0 stay exactly 0.
    pub(super) zeros: bool,
}

/// Levels of one row (or of all): level j is `scale * (entries[j] + offset)`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Grid {
    /// Ascending.
    pub(super) entries: Vec<f32>,
    pub(super) scale: f32,
    pub(super) offset: f32,
    /// Levels before they were rounded to entries, if that was done.
    pub(super) exact: Option<Vec<f64>>,
}

impl Grid {
    /// The levels, computed as the codec does.
    pub(super) fn levels(&self) -> Vec<f64> {
        self.entries.iter().map(|e| f64::from(self.scale * (e + self.offset))).collect()
    }

    /// The first level that is 0.
    fn zero(&self) -> Option<usize> {
        self.levels().iter().position(|&level| level == 0.0)
    }

    fn of_clusters(clusters: Clusters, codebook: CodebookType, zeros: bool) -> Self {
        let fit = if zeros { table::fit_with_zero } else { table::fit };
        let table::StoredLevels { entries, scale, offset } = fit(&clusters, codebook);
        // A table that holds no more than one of them holds them exactly enough.
        let exact = (entries.len() == clusters.centroids.len()).then_some(clusters.centroids);
        Grid { entries, scale, offset, exact }
    }
}

impl Form {
    pub(super) fn new(method: Method, bits: Bits, codebook: CodebookType, zeros: bool) -> Self {
        let integers = codebook.is_integer() && bits.levels() == 256;
        let freedom = match method {
            Method::Uniform(Rule::Mse) if zeros => Freedom::Slope,
            Method::KMeansRow | Method::KMeansTensor if integers && zeros => Freedom::Slope,
            Method::Uniform(Rule::Mse) => Freedom::Affine,
            Method::Uniform(rule) => Freedom::None(rule),
            Method::Lloyd => Freedom::Scale,
            Method::KMeansRow | Method::KMeansTensor if integers => Freedom::Affine,
            Method::KMeansRow | Method::KMeansTensor => Freedom::Levels,
        };
        Form { bits, codebook, freedom, shared: method == Method::KMeansTensor, zeros }
    }

    /// How many parameters a refit has.
    pub(super) fn parameters(&self) -> usize {
        match self.freedom {
            Freedom::Levels => self.bits.levels(),
            Freedom::Affine => 2,
            Freedom::Scale | Freedom::Slope => 1,
            Freedom::None(_) => 0,
        }
    }

    /// Whether a refit is worth its while.
    pub(super) fn is_refit(&self) -> bool {
        match self.freedom {
            Freedom::Levels => self.shared || self.bits.levels() <= REFIT_ROWS,
            Freedom::Affine | Freedom::Slope | Freedom::Scale => true,
            Freedom::None(_) => false,
        }
    }

    /// Grids for rounding to the nearest level with the least squared error, every input's counted `inputs` times.
    pub(super) fn grids(&self, weights: &[f32], cols: usize, inputs: &[f64]) -> Vec<Grid> {
        match self.freedom {
            Freedom::Levels if self.shared => {
                let clusters = self.cluster(weights, inputs, &mut Scratch::default());
                vec![Grid::of_clusters(clusters, self.codebook, self.zeros)]
            }
            Freedom::Levels => {
                let grid = |scratch: &mut Scratch, row: &[f32]| {
                    Grid::of_clusters(self.cluster(row, inputs, scratch), self.codebook, self.zeros)
                };
                weights.par_chunks(cols).map_init(Scratch::default, grid).collect()
            }
            Freedom::Slope if self.shared => {
                let (scale, zero) = uniform::zero_point(uniform::range(weights), self.bits);
                let offset = (self.bits.levels() / 2) as f32 - zero;
                vec![Grid { entries: self.integers(), scale, offset, exact: None }]
            }
            Freedom::Affine if self.shared => {
                let (scale, offset) = identity::map(uniform::range(weights));
                vec![Grid { entries: self.integers(), scale, offset, exact: None }]
            }
            // The zero point of a range is an integer: one of its codes where the row has zeros.
            Freedom::Affine | Freedom::Slope => {
                // As f32 beside their mean: products with squared errors keep the range.
                let mean = inputs.iter().sum::<f64>() / inputs.len() as f64;
                let inputs: Vec<f32> = inputs.iter().map(|&v| (v / mean) as f32).collect();
                let grid = |row: &[f32]| {
                    let (scale, offset) = uniform::fit_weighted(row, &inputs, self.bits);
                    Grid { entries: self.integers(), scale, offset, exact: None }
                };
                weights.par_chunks(cols).map(grid).collect()
            }
            Freedom::None(rule) => {
                let grid = |row: &[f32]| {
                    let (scale, offset) = uniform::map(row, rule, self.bits);
                    Grid { entries: self.integers(), scale, offset, exact: None }
                };
                weights.par_chunks(cols).map(grid).collect()
            }
            Freedom::Scale => {
                let table = lloyd::Table::new(self.bits, self.codebook);
                let grid = |row: &[f32]| {
                    let (scale, offset) = table.fit(row, Some(inputs));
                    Grid { entries: table.entries.clone(), scale, offset, exact: None }
                };
                weights.par_chunks(cols).map(grid).collect()
            }
        }
    }

    /// Clusters of values, of which value i counts `inputs[i % inputs.len()]` times.
    fn cluster(&self, values: &[f32], inputs: &[f64], scratch: &mut Scratch) -> Clusters {
        match self.zeros {
            true => sparse::cluster(values, Some(inputs), self.bits, scratch),
            false => kmeans::cluster_weighted(values, inputs, self.bits.levels(), scratch),
        }
    }

    fn integers(&self) -> Vec<f32> {
        let half = self.bits.levels() as i32 / 2;
        (-half..half).map(|q| q as f32).collect()
    }

    /// The grid that suits the codes best, rounded to entries; as it was if there is nothing to gain.
    pub(super) fn refit(&self, grid: &Grid, normal: &Normal) -> Grid {
        let held = if self.zeros && self.freedom == Freedom::Levels { grid.zero() } else { None };
        let step = held.map_or_else(|| normal.solve(), |zero| normal.holding(zero).solve());
        let Some(step) = step else { return grid.clone() };
        let (scale, intercept) = (f64::from(grid.scale), f64::from(grid.scale) * f64::from(grid.offset));
        let moved = match self.freedom {
            Freedom::Levels => {
                // Levels that no code uses weigh next to nothing when entries are fitted.
                let cost = normal.diagonal();
                let least = cost.iter().fold(0f64, |m, &v| m.max(v)) * 1e-9;
                let moved = grid
                    .levels()
                    .into_iter()
                    .zip(&step)
                    .zip(cost)
                    .map(|((level, step), cost)| (level + step, cost.max(least)));
                let mut moved: Vec<(f64, f64)> = moved.collect();
                moved.sort_by(|a, b| a.0.total_cmp(&b.0));
                let (centroids, counts) = moved.into_iter().unzip();
                return Grid::of_clusters(Clusters { centroids, counts }, self.codebook, self.zeros);
            }
            Freedom::Affine => {
                let scale = scale + step[0];
                (scale as f32, ((intercept + step[1]) / scale) as f32)
            }
            Freedom::Scale | Freedom::Slope => ((scale + step[0]) as f32, grid.offset),
            Freedom::None(_) => return grid.clone(),
        };
        let (scale, offset) = moved;
        if scale.is_normal() && scale > 0.0 && offset.is_finite() {
            Grid { scale, offset, ..grid.clone() }
        } else {
            grid.clone()
        }
    }
}
