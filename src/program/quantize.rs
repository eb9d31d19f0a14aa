//! Quantization of activations: the op, and the attribute that norms share with it.

use super::numbered::numbered;
use super::op::{Operation, Tensor, Value};
use super::shape::{Rule, Type};
use super::visit::Visit;
use crate::error::Result;

numbered! {
    "Grains of a quantization"
    /// Which activations share one scale and zero point.
    pub enum QuantizeGrain: Default {
        /// Each row: a token, or a pixel.
        Row = 0 "row",
        /// Each sample of the batch.
        Sample = 1 "sample",
    }
}

/// What a curve's position counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CurveAxis {
    /// The model's timestep.
    Timestep,
    /// Fraction of the sampler's calls done, 0 for the first.
    StepFraction,
}

/// Where the scale and zero point come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum QuantizeRange {
    /// From the minimum and maximum of what shares them, when it is computed.
    Dynamic,
    /// From a curve over time: an f32 tensor of rows `(position, scale, zero)`, positions ascending. Row `i` holds
    /// from its position up to the next one's; the first row also holds before.
    Curve(Tensor, CurveAxis),
}

/// How activations become integer codes: `x = scale * (q - zero)`, `q` in `0..2^bits`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct QuantizeSpec {
    /// 8 or 6, in the range of a curve 2 to 8; stored as bytes either way.
    pub bits: u8,
    /// What shares a scale.
    pub grain: QuantizeGrain,
    /// Where the scale comes from.
    pub range: QuantizeRange,
}

impl Default for QuantizeSpec {
    /// 8 bits, a scale per row, taken when it is computed.
    fn default() -> Self {
        QuantizeSpec { bits: 8, grain: QuantizeGrain::Row, range: QuantizeRange::Dynamic }
    }
}

/// Float to codes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Quantize {
    /// `(n, .., d)`.
    pub x: Value,
    /// How.
    pub spec: QuantizeSpec,
}

impl Operation for Quantize {
    const CODE: u16 = 8;
    const NAME: &'static str = "quantize";

    fn visit(&mut self, v: &mut impl Visit) {
        v.value("x", &mut self.x);
        v.quantize(&mut self.spec);
    }

    fn infer(&self, rule: &Rule<'_>) -> Result<Type> {
        let x = rule.float("x", self.x)?;
        rule.quantized(x, Some(self.spec))
    }
}
