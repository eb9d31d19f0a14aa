//! Embeddings and constants: rows of tables, sinusoids of timesteps and of positions, tensors as values.

use super::numbered::numbered;
use super::op::{Operation, Tensor, Value};
use super::shape::{Kind, Rule, Type};
use super::visit::Visit;
use crate::error::Result;

/// Rows of a table: `(conditions) -> (conditions, d)`, `(n, t) -> (n, t, d)`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Embedding {
    /// Row numbers: an input, each below the number of rows of the table, which whoever sets the input checks.
    pub index: Value,
    /// `(rows, d)`, f16 or f32.
    pub table: Tensor,
}

impl Operation for Embedding {
    const CODE: u16 = 9;
    const NAME: &'static str = "embedding";

    fn visit(&mut self, v: &mut impl Visit) {
        v.value("index", &mut self.index);
        v.tensor("table", &mut self.table);
    }

    fn infer(&self, rule: &Rule<'_>) -> Result<Type> {
        let index = rule.value("index", self.index)?;
        let t = rule.tensor("table", self.table)?;
        if index.kind != Kind::Index || index.rank() > 2 {
            return rule.err("index", "(conditions) or (n, t) row numbers", (index.dims(), index.kind));
        }
        if t.dims.len() != 2 || t.codes {
            return rule.err("table", "f16 or f32 [rows, d]", &t.dims);
        }
        let dims = [index.dims(), &[t.dims[1]]].concat();
        Ok(Type::new(&dims, Kind::Float))
    }
}

/// Sinusoidal embedding of timesteps: `(conditions) -> (conditions, dim)`, frequencies
/// `exp(-ln(10000) i / (dim / 2 - shift))`; of several numbers each: `(conditions, k) -> (conditions, k * dim)`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TimestepEmbedding {
    /// Timesteps, or other numbers.
    pub t: Value,
    /// Features, even.
    pub dim: u32,
    /// Whether the cosines come first.
    pub cos_first: bool,
    /// See above.
    pub shift: f32,
}

impl Operation for TimestepEmbedding {
    const CODE: u16 = 10;
    const NAME: &'static str = "timestep_embedding";

    fn visit(&mut self, v: &mut impl Visit) {
        v.value("t", &mut self.t);
        v.number("dim", &mut self.dim);
        v.flag("cos first", &mut self.cos_first);
        v.float("shift", &mut self.shift);
    }

    fn infer(&self, rule: &Rule<'_>) -> Result<Type> {
        let TimestepEmbedding { dim, shift, .. } = *self;
        let t = rule.float("t", self.t)?;
        let (conditions, numbers) = match *t.dims() {
            [conditions] => (conditions, 1),
            [conditions, numbers] => (conditions, numbers),
            _ => return rule.err("t", "(conditions) or (conditions, k)", t.dims()),
        };
        if dim < 4 || dim % 2 != 0 || !(shift.is_finite() && shift < dim as f32 / 2.0) {
            return rule.err("dim, shift", "an even dim of at least 4 and a shift below half of it", (dim, shift));
        }
        let Some(cols) = numbers.checked_mul(dim as usize) else {
            return rule.err("dim", "fewer features", dim);
        };
        Ok(Type::new(&[conditions, cols], Kind::Float))
    }
}

numbered! {
    "Grids of positions"
    /// What rows and columns are of a grid that has positions.
    pub enum Grid: Default {
        /// Those of a frame.
        Frame = 0 "frame",
        /// Frames, and the places of each.
        Frames = 1 "frames",
        /// The same, but that one frame alone has zeros for its position.
        SeveralFrames = 2 "several frames",
    }
}

/// 2-D sin-cos position embedding of the grid of `x`: `(n, h, w, _) -> (h, w, dim)`; of f frames below each other, that of one,
/// `(h / f, w, dim)`, or that of frames: `(f, h w / f, dim)`. Depends on shapes only.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PositionEmbedding {
    /// `(n, h, w, _)`; only its shape is used.
    pub x: Value,
    /// Features, a multiple of 4.
    pub dim: u32,
    /// Grid size at which positions are `0, 1, 2, ..`; 0 if they are so at every size, of whatever ratio.
    pub base: u32,
    /// Divides the positions.
    pub interpolation: f32,
    /// Whether positions keep the ratio of sides. The longer side spans `base`; the shorter one as much less as it is shorter,
    /// in whole numbers, in the middle. Otherwise either side spans `base`.
    pub keep_ratio: bool,
    /// What its rows and columns are.
    pub grid: Grid,
}

impl PositionEmbedding {
    /// First position and span of columns and of rows of a grid, before they are divided by the interpolation: position `i`
    /// of `n` is `first + i span / n`. Numbers are rounded as Python rounds them, to even ones in the middle.
    pub fn spans(&self, [height, width]: [usize; 2]) -> [[u32; 2]; 2] {
        if self.base == 0 {
            return [width, height].map(|size| [0, size as u32]);
        }
        let base = f64::from(self.base);
        let whole = [0, self.base];
        if !self.keep_ratio || height == width {
            return [whole; 2];
        }
        let (long, short) = (height.max(width) as f64, height.min(width) as f64);
        let span = (base / long * short).round_ties_even();
        let first = ((base - span) / 2.0).round_ties_even();
        let part = [first as u32, span as u32];
        if height > width { [part, whole] } else { [whole, part] }
    }
}

impl Operation for PositionEmbedding {
    const CODE: u16 = 11;
    const NAME: &'static str = "position_embedding";

    fn visit(&mut self, v: &mut impl Visit) {
        v.shape("x", &mut self.x);
        v.number("dim", &mut self.dim);
        v.number("base", &mut self.base);
        v.float("interpolation", &mut self.interpolation);
        v.flag("keep ratio", &mut self.keep_ratio);
        v.choice("grid", &mut self.grid);
    }

    fn infer(&self, rule: &Rule<'_>) -> Result<Type> {
        let PositionEmbedding { dim, interpolation, .. } = *self;
        let (x, frames) = (rule.value("x", self.x)?, rule.dims.frames);
        let [_, h, w, _] = *x.dims() else {
            return rule.err("x", "(n, h, w, c)", x.dims());
        };
        if frames == 0 || !h.is_multiple_of(frames) {
            return rule.err("x", format!("the rows of {frames} frames"), x.dims());
        }
        if dim == 0 || dim % 4 != 0 || !(interpolation.is_finite() && interpolation > 0.0) {
            let expected = "a multiple of 4, and a positive number";
            return rule.err("dim, interpolation", expected, (dim, interpolation));
        }
        let [rows, columns] = match self.grid {
            Grid::Frame => [h / frames, w],
            Grid::Frames | Grid::SeveralFrames => [frames, h / frames * w],
        };
        Ok(Type::new(&[rows, columns, dim as usize], Kind::Float))
    }
}

/// A tensor as a value, with the tensor's axes, or as one row; or only the first of its rows.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Parameter {
    /// f16 or f32.
    pub tensor: Tensor,
    /// Whether the axes are `(1, all elements)`: a row that can be added to each of many.
    pub flat: bool,
    /// How much of the first axis is taken; 0 for all.
    pub rows: u32,
}

impl Operation for Parameter {
    const CODE: u16 = 18;
    const NAME: &'static str = "parameter";

    fn visit(&mut self, v: &mut impl Visit) {
        v.tensor("tensor", &mut self.tensor);
        v.flag("flat", &mut self.flat);
        v.number("rows", &mut self.rows);
    }

    fn infer(&self, rule: &Rule<'_>) -> Result<Type> {
        let t = rule.tensor("tensor", self.tensor)?;
        if !(1..=4).contains(&t.dims.len()) || t.codes {
            return rule.err("tensor", "f16 or f32, 1 to 4 axes", &t.dims);
        }
        let mut dims = t.dims.clone();
        match self.rows as usize {
            0 => {}
            rows if rows <= dims[0] => dims[0] = rows,
            rows => return rule.err("rows", format!("at most the {} that the tensor has", dims[0]), rows),
        }
        if !self.flat {
            return Ok(Type::new(&dims, Kind::Float));
        }
        let Some(elements) = dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d)) else {
            return rule.err("tensor", "fewer elements", &t.dims);
        };
        Ok(Type::new(&[1, elements], Kind::Float))
    }
}

/// Most buckets of a [`RelativeBias`].
pub const MAX_BUCKETS: usize = 64;

/// Additive bias of attention by how far a key is from its query: `(n, t, ..) -> (heads, t, t)`, `table[bucket(k - q), head]`.
/// Half of the buckets are for keys behind the query, half for others. In each half the first half of the buckets are
/// for one distance each; those of the second grow in proportion, up to `max_distance`, and the last has all that is further
/// away (Raffel et al., arXiv 1910.10683, §2.1; transformers' `T5Attention._relative_position_bucket`). Depends on shapes only.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RelativeBias {
    /// `(n, t)` tokens or `(n, t, d)` features; only the shape is used.
    pub x: Value,
    /// `(buckets, heads)`, f16 or f32.
    pub table: Tensor,
    /// Number of buckets, a multiple of 4.
    pub buckets: u32,
    /// The distance from which on all are in the last bucket of their half.
    pub max_distance: u32,
}

impl Operation for RelativeBias {
    const CODE: u16 = 22;
    const NAME: &'static str = "relative_bias";

    fn visit(&mut self, v: &mut impl Visit) {
        v.shape("x", &mut self.x);
        v.tensor("table", &mut self.table);
        v.number("buckets", &mut self.buckets);
        v.number("max distance", &mut self.max_distance);
    }

    fn infer(&self, rule: &Rule<'_>) -> Result<Type> {
        let RelativeBias { buckets, max_distance, .. } = *self;
        let x = rule.value("x", self.x)?;
        let tokens = match (x.kind, x.dims()) {
            (Kind::Index, &[_, tokens]) | (Kind::Float | Kind::Codes(_), &[_, tokens, _]) => tokens,
            _ => return rule.err("x", "(n, t) tokens or (n, t, d) features", (x.dims(), x.kind)),
        };
        let table = rule.tensor("table", self.table)?;
        let heads = match table.dims[..] {
            [rows, heads] if rows == buckets as usize && !table.codes => heads,
            _ => return rule.err("table", format!("f16 or f32 [{buckets} buckets, heads]"), &table.dims),
        };
        if buckets == 0 || !buckets.is_multiple_of(4) || buckets as usize > MAX_BUCKETS {
            return rule.err("buckets", format!("a multiple of 4 up to {MAX_BUCKETS}"), buckets);
        }
        if !(buckets / 4 + 1..=1 << 24).contains(&max_distance) {
            return rule.err("max distance", format!("{} to 2^24", buckets / 4 + 1), max_distance);
        }
        Ok(Type::new(&[heads, tokens, tokens], Kind::Float))
    }
}

/// The least distance of each bucket of one half of a [`RelativeBias`] of `buckets`, ascending; `u32::MAX` beyond the half.
/// A distance is in the last bucket that begins at it or before.
///
/// With `exact` buckets of one distance each, bucket `exact + i` begins at `exact (max_distance / exact)^(i / exact)`.
pub fn bucket_starts(buckets: u32, max_distance: u32) -> [u32; MAX_BUCKETS / 2] {
    let exact = (buckets / 4) as i32;
    let mut starts = [u32::MAX; MAX_BUCKETS / 2];
    for (bucket, start) in (0..2 * exact).zip(&mut starts) {
        let i = bucket - exact;
        *start = if i <= 0 {
            bucket as u32
        } else {
            let share = f64::from(i) / f64::from(exact);
            let real = f64::from(exact) * (f64::from(max_distance) / f64::from(exact)).powf(share);
            // A whole number, but for the rounding of the power.
            if (real - real.round()).abs() < real * 1e-12 { real.round() as u32 } else { real.ceil() as u32 }
        };
    }
    starts
}
