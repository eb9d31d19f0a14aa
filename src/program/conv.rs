//! Convolutions.

use super::numbered::numbered;
use super::op::{Columns, Operation, Tensor, Value};
use super::quantize::QuantizeGrain;
use super::shape::{Kind, MAX_CONV_CHANNELS, Rule, Type, check_size};
use super::visit::Visit;
use crate::error::Result;

numbered! {
    "Convolution strides"
    /// How a convolution moves over its input.
    pub enum ConvStride: Default {
        /// As many pixels out as in: stride 1, zero padding 1.
        Same = 0 "same",
        /// Nearest-neighbour upsampling by 2, less the last row or column where *size of* says so, before a convolution of
        /// stride 1 and zero padding 1.
        Up = 1 "up",
        /// Stride 2, zero padding 1: `ceil(h / 2)` rows out.
        Down = 2 "down",
        /// Stride 2, zero padding 1 below and to the right only: `floor(h / 2)` rows out.
        DownPadEnd = 3 "down, padded at the end",
    }
}

impl ConvStride {
    /// Factor by which the input is upsampled first.
    pub fn upsample(self) -> usize {
        if self == ConvStride::Up { 2 } else { 1 }
    }

    /// Pixels from one window to the next.
    pub fn stride(self) -> usize {
        if matches!(self, ConvStride::Down | ConvStride::DownPadEnd) { 2 } else { 1 }
    }

    /// Rows of zeros above the input.
    pub fn before(self) -> usize {
        usize::from(self != ConvStride::DownPadEnd)
    }

    /// Rows of the result for `rows` of input; `None` if it does not fit a number.
    pub fn rows(self, rows: usize) -> Option<usize> {
        match self {
            ConvStride::Same => Some(rows),
            ConvStride::Up => rows.checked_mul(2),
            ConvStride::Down => Some(rows.div_ceil(2)),
            ConvStride::DownPadEnd => Some(rows / 2),
        }
    }
}

/// 3x3 convolution, `(n, h, w, c) -> (n, h', w', o)`: `y = conv(x) + bias + shift + residual`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Conv2d {
    /// `(n, h, w, c)`, float or codes with one scale per sample.
    pub x: Value,
    /// `(o, 3, 3, c)`.
    pub weight: Tensor,
    /// `(o)`.
    pub bias: Option<Tensor>,
    /// How many pixels come out.
    pub sampling: ConvStride,
    /// Added per sample and output channel, as time embeddings are.
    pub shift: Option<Columns>,
    /// Added last; same shape as the result.
    pub residual: Option<Value>,
    /// `(n, h', w', _)`, only with [`ConvStride::Up`]: the result has as many rows and columns as this value, which may be
    /// one less than twice those of `x`. Nearest neighbours of an odd number of pixels are those of one more: pixel `i`
    /// of `2 h - 1` is pixel `floor(i h / (2 h - 1)) = floor(i / 2)` of `h`.
    pub size_of: Option<Value>,
}

impl Operation for Conv2d {
    const CODE: u16 = 2;
    const NAME: &'static str = "conv2d";

    fn visit(&mut self, v: &mut impl Visit) {
        v.value("x", &mut self.x);
        v.tensor("weight", &mut self.weight);
        v.optional_tensor("bias", &mut self.bias);
        v.choice("sampling", &mut self.sampling);
        v.columns(["shift", "first column of shift"], &mut self.shift);
        v.optional_value("residual", &mut self.residual);
        v.optional_shape("size of", &mut self.size_of);
    }

    fn infer(&self, rule: &Rule<'_>) -> Result<Type> {
        let x = rule.value("x", self.x)?;
        let w = rule.tensor("weight", self.weight)?;
        let [n, h, wd, c] = *x.dims() else {
            return rule.err("x", "(n, h, w, c)", x.dims());
        };
        if c > MAX_CONV_CHANNELS {
            return rule.err("x", format!("at most {MAX_CONV_CHANNELS} channels"), c);
        }
        let o = match w.dims[..] {
            [o, 3, 3, i] if i == c => o,
            _ => return rule.err("weight", format!("[o, 3, 3, {c}]"), &w.dims),
        };
        rule.matched(&x, w, 9 * c)?;
        if let Kind::Codes(spec) = x.kind {
            if spec.grain != QuantizeGrain::Sample {
                return rule.err("x", "codes with one scale per sample", spec.grain);
            }
            if c % 4 != 0 {
                return rule.err("x", "codes with a multiple of 4 channels", c);
            }
        }
        rule.vector("bias", self.bias, o)?;
        let (Some(h), Some(wd)) = (self.sampling.rows(h), self.sampling.rows(wd)) else {
            return rule.err("x", "fewer pixels", x.dims());
        };
        let [h, wd] = self.sized(rule, [h, wd])?;
        let y = check_size(Type::new(&[n, h, wd, o], Kind::Float), rule.path)?;
        if let Some(shift) = self.shift {
            rule.columns("shift", shift.value, shift.offset, &y)?;
        }
        rule.residual(self.residual, &y, false)?;
        Ok(y)
    }
}

impl Conv2d {
    /// Rows and columns of the result, where all that `sampling` makes are `most`.
    fn sized(&self, rule: &Rule<'_>, most: [usize; 2]) -> Result<[usize; 2]> {
        let Some(value) = self.size_of else { return Ok(most) };
        if self.sampling != ConvStride::Up {
            return rule.err("size of", "none without upsampling", self.sampling);
        }
        let like = rule.value("size of", value)?;
        match *like.dims() {
            [_, h, w, _] if most.iter().zip([h, w]).all(|(&most, n)| n == most || n + 1 == most) => Ok([h, w]),
            _ => rule.err("size of", format!("(_, h, w, _) of {most:?} pixels, or one less"), like.dims()),
        }
    }
}
