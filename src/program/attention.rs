//! Attention.

use super::numbered::numbered;
use super::op::{Operation, Value};
use super::quantize::QuantizeRange;
use super::shape::{Kind, Rule, Type};
use super::visit::Visit;
use super::{Op, Program};
use crate::error::Result;
use std::collections::BTreeSet;

/// Which keys a query sees, and how exactly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Attend {
    /// A query sees the keys up to its own position only.
    pub causal: bool,
    /// `k` and `v` hold rows per condition, not per sample: those of a prompt. A value of two axes is one row each.
    pub per_condition: bool,
    /// Scores and sums may be made of 8-bit codes of `q`, `k`, `v` and of the probabilities.
    pub int8: bool,
}

numbered! {
    "Reaches of attention"
    /// Which tokens of a sample attend to each other. Tokens of a video lie frame by frame, as many of each.
    pub enum Reach: Default {
        /// All of them.
        Sample = 0 "sample",
        /// Those of one frame.
        Frame = 1 "frame",
        /// Those at one place of all frames.
        Place = 2 "place",
    }
}

/// The grid that probabilities are rounded to before they weigh values: `delta * q`, `q = round(p / delta)` in `0..2^bits`,
/// ties to even. 0 is on it, so what a query does not see stays out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SoftmaxGrid {
    /// 8 or 16.
    pub bits: u8,
    /// Where `delta` comes from: the highest probability of each query and head, as `highest / (2^bits - 1)` (Qua2SeDiMo), or
    /// the scales of a curve (Q-Diffusion, which has one per attention). Its zero points are not read.
    pub range: QuantizeRange,
}

/// Softmax attention per head, over all tokens of a sample: `softmax(q k^T * scale + bias) v`. A query that sees no key gives
/// zeros.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Attention {
    /// `(n, .., heads * e)`.
    pub q: Value,
    /// `(n, .., heads * e)`, or with conditions instead of samples.
    pub k: Value,
    /// Like `k`.
    pub v: Value,
    /// Number of heads.
    pub heads: u32,
    /// Multiplies the scores.
    pub scale: f32,
    /// Who sees whom.
    pub attend: Attend,
    /// The grid of probabilities, if they are rounded; not with [`Attend::int8`], which rounds them in its own way.
    pub softmax: Option<SoftmaxGrid>,
    /// `(heads, queries, keys)`: added to the scores of all samples after they are scaled.
    pub bias: Option<Value>,
    /// u32 per sample, or per condition if `k` holds rows per condition: keys at this place and beyond are not seen. An input;
    /// what is more than there are keys counts as all of them.
    pub lengths: Option<Value>,
    /// How far a query sees; less than its whole sample only among the tokens of the sample itself, all of which count.
    pub reach: Reach,
}

impl Operation for Attention {
    const CODE: u16 = 3;
    const NAME: &'static str = "attention";

    fn visit(&mut self, v: &mut impl Visit) {
        v.value("q", &mut self.q);
        v.value("k", &mut self.k);
        v.value("v", &mut self.v);
        v.number("heads", &mut self.heads);
        v.float("scale", &mut self.scale);
        v.flag("causal", &mut self.attend.causal);
        v.flag("per condition", &mut self.attend.per_condition);
        v.flag("int8", &mut self.attend.int8);
        v.softmax(&mut self.softmax);
        v.optional_value("bias", &mut self.bias);
        v.optional_value("lengths", &mut self.lengths);
        v.choice("reach", &mut self.reach);
    }

    fn infer(&self, rule: &Rule<'_>) -> Result<Type> {
        let Attention { heads, scale, attend, softmax, .. } = *self;
        let (q, k, v) = (rule.float("q", self.q)?, rule.float("k", self.k)?, rule.float("v", self.v)?);
        let (samples, keys_of) = (q.dims()[0], k.dims()[0]);
        let (n, rank) = if attend.per_condition { (rule.dims.conditions, 2) } else { (samples, 3) };
        let ranks_fit = q.rank() >= 3 && k.rank() >= rank;
        if !ranks_fit || v.dims() != k.dims() || k.cols() != q.cols() || keys_of != n {
            let expected = format!("q (n, .., d), k and v ({n}, .., d)");
            return rule.err("q, k, v", expected, (q.dims(), k.dims(), v.dims()));
        }
        if attend.per_condition && samples != rule.dims.batch {
            return rule.err("q", format!("{} samples", rule.dims.batch), q.dims());
        }
        if attend.causal && q.rows_per_sample() != k.rows_per_sample() {
            return rule.err("k", format!("as many rows as {:?}", q.dims()), k.dims());
        }
        if heads == 0 || !q.cols().is_multiple_of(heads as usize) {
            return rule.err("heads", format!("a divisor of {}", q.cols()), heads);
        }
        if !scale.is_finite() {
            return rule.err("scale", "a finite number", scale);
        }
        if let Some(SoftmaxGrid { bits, range }) = softmax {
            if attend.int8 {
                return rule.err("softmax bits", "none in attention by 8-bit codes", bits);
            }
            if !matches!(bits, 8 | 16) {
                return rule.err("softmax bits", "8 or 16", bits);
            }
            rule.curve(range)?;
        }
        self.masks(rule, &q, &k)?;
        self.reached(rule, &q, &k)?;
        Ok(q)
    }
}

impl Attention {
    /// Checks that tokens are whole frames, and that nothing tells keys apart of which a query sees some alone.
    fn reached(&self, rule: &Rule<'_>, q: &Type, k: &Type) -> Result<()> {
        if self.reach == Reach::Sample {
            return Ok(());
        }
        let frames = rule.dims.frames;
        if q.rows_per_sample() != k.rows_per_sample() || frames == 0 || !q.rows_per_sample().is_multiple_of(frames) {
            return rule.err("q, k", format!("the tokens of {frames} frames"), (q.dims(), k.dims()));
        }
        match self.attend.per_condition || self.bias.is_some() || self.lengths.is_some() {
            true => rule.err("reach", "sample, with keys of conditions, a bias or lengths", self.reach.name()),
            false => Ok(()),
        }
    }

    /// Checks what is added to scores and which keys are seen.
    fn masks(&self, rule: &Rule<'_>, q: &Type, k: &Type) -> Result<()> {
        if let Some(bias) = self.bias {
            let bias = rule.float("bias", bias)?;
            let wanted = [self.heads as usize, q.rows_per_sample(), k.rows_per_sample()];
            if bias.dims() != wanted {
                return rule.err("bias", format!("(heads, queries, keys) {wanted:?}"), bias.dims());
            }
        }
        if let Some(lengths) = self.lengths {
            let lengths = rule.value("lengths", lengths)?;
            if lengths.kind != Kind::Index || lengths.dims() != [k.dims()[0]] {
                return rule.err("lengths", format!("u32 [{}]", k.dims()[0]), (lengths.dims(), lengths.kind));
            }
        }
        Ok(())
    }
}

/// How the attentions of `programs` work where it is not in plain floats, in words: `int8` if any is in 8-bit codes, else the
/// bits of the grids that any is rounded to. None if all are plain.
pub fn describe_attention(programs: &[Program]) -> Option<String> {
    let (mut int8, mut operands, mut softmax) = (false, BTreeSet::new(), BTreeSet::new());
    for program in programs {
        for op in program.ops() {
            let Op::Attention(attention) = op else { continue };
            int8 |= attention.attend.int8;
            softmax.extend(attention.softmax.map(|grid| grid.bits));
            for value in [attention.q, attention.k, attention.v] {
                if let Some(Op::Round(round)) = program.node_of(value).map(|node| &program.nodes[node].op) {
                    operands.insert(round.spec.bits);
                }
            }
        }
    }
    if int8 {
        return Some("int8".into());
    }
    let list = |bits: &BTreeSet<u8>| bits.iter().map(u8::to_string).collect::<Vec<_>>().join(" and ");
    let mut words = Vec::new();
    if !operands.is_empty() {
        words.push(format!("queries, keys and values rounded to {} bits", list(&operands)));
    }
    if !softmax.is_empty() {
        words.push(format!("probabilities rounded to {} bits", list(&softmax)));
    }
    (!words.is_empty()).then(|| format!("floats, {}", words.join(", ")))
}
