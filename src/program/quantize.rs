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

numbered! {
    "Axes of time"
    /// What positions in time count: those of a curve, and where phases begin.
    pub enum CurveAxis: Default {
        /// The model's timestep.
        Timestep = 0 "timestep",
        /// Fraction of the sampler's calls done, 0 for the first.
        StepFraction = 1 "step fraction",
    }
}

/// Where the scale and zero point come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum QuantizeRange {
    /// From the minimum and maximum of what shares them, when it is computed.
    Dynamic,
    /// From a curve over time.
    Curve(RangeCurve),
}

impl QuantizeRange {
    /// From the curve `points`, all codes of its bits.
    pub fn curve(points: Tensor, axis: CurveAxis) -> Self {
        QuantizeRange::Curve(RangeCurve { points, axis, top: 0 })
    }
}

/// Scales and zero points over time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RangeCurve {
    /// f32, rows `(position, scale, zero)`, positions ascending. Row `i` holds from its position up to the next one's;
    /// the first row also holds before. A zero point may be any real number: 0 is then between two codes.
    pub points: Tensor,
    /// What positions count.
    pub axis: CurveAxis,
    /// The greatest code, below `2^bits`; 0 for `2^bits - 1`. Trained quantizers use an odd number of codes (TDQ §4).
    pub top: u8,
}

/// How activations become integer codes: `x = scale * (q - zero)`, `q` from 0 to [`top`](Self::top). With `zero` in its
/// whole part and what is left of at most a half, `q = clamp(round(x / scale + rest) + whole, 0, top)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct QuantizeSpec {
    /// 2 to 8; stored as bytes whatever they are.
    pub bits: u8,
    /// What shares a scale.
    pub grain: QuantizeGrain,
    /// Where the scale comes from.
    pub range: QuantizeRange,
}

impl QuantizeSpec {
    /// The greatest code.
    pub fn top(&self) -> u8 {
        match self.range {
            QuantizeRange::Curve(RangeCurve { top: top @ 1.., .. }) => top,
            QuantizeRange::Curve(_) | QuantizeRange::Dynamic => ((1u32 << self.bits.min(8)) - 1) as u8,
        }
    }
}

impl Default for QuantizeSpec {
    /// 8 bits, a scale per row, taken when it is computed.
    fn default() -> Self {
        QuantizeSpec { bits: 8, grain: QuantizeGrain::Row, range: QuantizeRange::Dynamic }
    }
}

/// Longest run of channels that a quantization mixes: what a warp of a device holds.
pub const MAX_TURN: u32 = 256;

/// Shortest run of channels that a quantization mixes: what a thread of a device holds.
pub const MIN_TURN: u32 = 8;

/// What a row goes through before it becomes codes: factors, which smooth it, and perhaps a rotation of runs of channels
/// (QuaRot §4, in blocks). The weight behind has had the inverse of both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Turn {
    /// `(d)`, what each channel is multiplied by. Signs of a rotation and what makes it one, `1 / sqrt(block)`, are among
    /// them.
    pub factors: Tensor,
    /// Channels of a run, each of which is multiplied by the Hadamard matrix of this size in Sylvester's order: a power
    /// of two from [`MIN_TURN`] to [`MAX_TURN`] that divides `d`; 0 for none.
    pub block: u32,
}

/// Float to codes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Quantize {
    /// `(n, .., d)`.
    pub x: Value,
    /// How.
    pub spec: QuantizeSpec,
    /// What comes before; only where each row has a scale.
    pub turn: Option<Turn>,
}

impl Operation for Quantize {
    const CODE: u16 = 8;
    const NAME: &'static str = "quantize";

    fn visit(&mut self, v: &mut impl Visit) {
        v.value("x", &mut self.x);
        v.quantize(&mut self.spec);
        let (mut factors, mut block) = (self.turn.map(|turn| turn.factors), self.turn.map_or(0, |turn| turn.block));
        v.optional_tensor("factors", &mut factors);
        v.number("block", &mut block);
        v.quantize_top(Some(&mut self.spec));
        self.turn = factors.map(|factors| Turn { factors, block });
    }

    fn infer(&self, rule: &Rule<'_>) -> Result<Type> {
        let x = rule.float("x", self.x)?;
        if let Some(Turn { factors, block }) = self.turn {
            rule.vector("factors", Some(factors), x.cols())?;
            let fits = block.is_power_of_two() && (MIN_TURN..=MAX_TURN).contains(&block);
            if block != 0 && !(fits && x.cols().is_multiple_of(block as usize)) {
                let expected = format!("0, or a power of two from {MIN_TURN} to {MAX_TURN} that divides {}", x.cols());
                return rule.err("block", expected, block);
            }
            if self.spec.grain != QuantizeGrain::Row {
                return rule.err("quantize grain", "one scale per row, as there are factors", self.spec.grain.name());
            }
        }
        rule.quantized(x, Some(self.spec))
    }
}
