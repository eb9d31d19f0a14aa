//! What an op sees of the values of its program, and the arguments that it makes of that.

use super::places::Places;
use super::values::{Values, codes_of};
use crate::backend::args::{Floats, Input, OpArgs, Output, PerSample, QuantizeTo, RangeTable, Slot};
use crate::program::shape::{Kind, Type};
use crate::program::{Columns, Modulation, Op, QuantizeRange, QuantizeSpec, Rate, Tensor, Value};

/// How an op of a program becomes arguments of a back end's method; each is in the file of its family.
pub trait Arguments {
    /// The arguments of the op at `at`.
    fn args(&self, at: &Site<'_>) -> OpArgs<Tensor>;
}

/// The arguments of any op.
pub fn args(op: &Op, at: &Site<'_>) -> OpArgs<Tensor> {
    match op {
        Op::Linear(op) => op.args(at),
        Op::GatedLinear(op) => op.args(at),
        Op::Conv2d(op) => op.args(at),
        Op::Attention(op) => op.args(at),
        Op::LayerNorm(op) => op.args(at),
        Op::GroupNorm(op) => op.args(at),
        Op::Pointwise(op) => op.args(at),
        Op::Add(op) => op.args(at),
        Op::Multiply(op) => op.args(at),
        Op::Quantize(op) => op.args(at),
        Op::Round(op) => op.args(at),
        Op::VectorQuantize(op) => op.args(at),
        Op::Resample(op) => op.args(at),
        Op::Embedding(op) => op.args(at),
        Op::TimestepEmbedding(op) => op.args(at),
        Op::PositionEmbedding(op) => op.args(at),
        Op::Parameter(op) => op.args(at),
        Op::RelativeBias(op) => op.args(at),
        Op::Patchify(op) => op.args(at),
        Op::Unpatchify(op) => op.args(at),
        Op::Concat(op) => op.args(at),
        Op::Slice(op) => op.args(at),
        Op::Rotary(op) => op.args(at),
        Op::PadRows(op) => op.args(at),
    }
}

/// A node among the values: types and places as the list of ops that it is in sees them.
pub struct Site<'a> {
    values: &'a Values<'a>,
    places: &'a Places,
    node: usize,
    /// The rate of the node.
    rate: Rate,
    own: Value,
    /// The type of the result.
    pub ty: Type,
    /// Where the node's own scratch lies.
    pub workspace: Slot,
}

impl<'a> Site<'a> {
    /// The site of `node`, with scratch at `workspace`.
    pub fn new(values: &'a Values<'a>, places: &'a Places, node: usize, workspace: usize) -> Self {
        let (own, rate) = (values.program.value_of(node), values.node_rate(node));
        let (ty, workspace) = (*values.seen(own, rate), Slot { at: workspace, stride: 0 });
        Site { values, places, node, rate, own, ty, workspace }
    }

    /// The type of an operand.
    pub fn shape(&self, value: Value) -> &Type {
        self.values.seen(value, self.rate)
    }

    /// The place of an operand.
    pub fn slot(&self, value: Value) -> Slot {
        self.places.slot(self.values, value, self.rate)
    }

    /// An operand that is float.
    pub fn floats(&self, value: Value) -> Floats {
        self.places.floats(self.values, value, self.rate)
    }

    /// An operand that is float or codes.
    pub fn input(&self, value: Value) -> Input {
        let ty = self.shape(value);
        match ty.kind {
            Kind::Codes(q) => Input::Codes(codes_of(ty, &q, self.slot(value))),
            Kind::Float | Kind::Index => Input::Floats(self.floats(value)),
        }
    }

    /// Rows and columns of pixels of an operand `(n, h, w, c)`.
    pub fn pixels(&self, value: Value) -> (usize, usize) {
        let ty = self.shape(value);
        (ty.dims()[1], ty.dims()[2])
    }

    /// The result, if it is float.
    pub fn y(&self) -> Floats {
        self.floats(self.own)
    }

    /// Frames of a sample.
    pub fn frames(&self) -> usize {
        self.values.frames
    }

    /// Samples of the result.
    pub fn samples(&self) -> usize {
        self.ty.dims()[0]
    }

    /// The condition of each sample.
    pub fn condition(&self) -> Slot {
        self.places.condition
    }

    fn per_sample(&self, value: Value) -> PerSample {
        PerSample {
            table: self.floats(value),
            condition: self.condition(),
            samples: self.samples(),
            rows_per_sample: self.ty.rows_per_sample(),
        }
    }

    /// Columns for each sample, and the first one.
    pub fn columns(&self, columns: Columns) -> (PerSample, usize) {
        (self.per_sample(columns.value), columns.offset as usize)
    }

    /// A modulation, and the first columns of its scale and shift.
    pub fn modulation(&self, m: Modulation) -> (PerSample, usize, usize) {
        (self.per_sample(m.value), m.scale as usize, m.shift as usize)
    }

    /// The scales of the node's grid, if they come from a curve.
    pub fn fixed(&self, range: QuantizeRange) -> Option<RangeTable> {
        let at = self.places.curves[self.node];
        match (range, self.rate) {
            (QuantizeRange::Dynamic, _) => None,
            (QuantizeRange::Curve(..), Rate::Step) => {
                Some(RangeTable { table: Slot { at, stride: 0 }, rows_per_entry: self.values.conditions })
            }
            (QuantizeRange::Curve(..), Rate::Bind | Rate::Prompt | Rate::Loop) => {
                Some(RangeTable { table: Slot { at, stride: 8 }, rows_per_entry: self.ty.rows() })
            }
        }
    }

    /// The result as codes.
    pub fn codes(&self, q: QuantizeSpec) -> QuantizeTo {
        let codes = codes_of(&self.ty, &q, self.slot(self.own));
        QuantizeTo { codes, grain: q.grain, fixed: self.fixed(q.range) }
    }

    /// The result of a product: floats, or the codes that its only reader would make of them.
    pub fn product(&self) -> Output {
        match self.values.coded[self.node] {
            Some((reader, spec)) => Output::Codes(Site::new(self.values, self.places, reader, 0).codes(spec)),
            None => Output::Floats(self.y()),
        }
    }

    /// The result, as codes if `quantize` says so.
    pub fn output(&self, quantize: Option<QuantizeSpec>) -> Output {
        quantize.map_or(Output::Floats(self.y()), |q| Output::Codes(self.codes(q)))
    }
}
