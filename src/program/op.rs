//! The op set: one list of all ops, and what holds of each of them.
//!
//! Ops are coarse: a linear layer carries its bias, activation, gate and residual; a norm carries its modulation and
//! the quantization of its result. Each op is a struct in the file of its family, beside its number and name, its
//! fields in file order and its shape rule ([`Operation`]). The list at the end of this file makes [`Op`] of them: no
//! match in it has an arm for "all others", so a new op is a compile error wherever it must be known. An op must not
//! know its model.

use super::numbered::numbered;
use super::quantize::QuantizeSpec;
use super::shape::{Rule, Type};
use super::visit::{Field, Visit};
use super::{
    Add, Attention, Concat, Conv2d, Embedding, GatedLinear, GroupNorm, LayerNorm, Linear, Multiply, PadRows, Parameter,
    Patchify, Pointwise, PositionEmbedding, Quantize, QuantizeRange, RelativeBias, Resample, Rotary, Round, Slice,
    TimestepEmbedding, Unpatchify, VectorQuantize,
};
use crate::error::Result;

/// Number of a value within its program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Value(pub u32);

/// Number of a tensor within its file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tensor(pub u32);

numbered! {
    "Activations"
    /// A pointwise activation function.
    pub enum Act: Default {
        /// The identity.
        None = 0 "none",
        /// `x * sigmoid(x)`.
        Silu = 1 "silu",
        /// The tanh approximation of GELU: `x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))) / 2`.
        GeluTanh = 2 "gelu tanh",
        /// GELU itself: `x * (1 + erf(x / sqrt(2))) / 2`.
        GeluErf = 3 "gelu erf",
        /// `x * sigmoid(1.702 x)`.
        QuickGelu = 4 "quick gelu",
    }
}

/// A run of columns of a two-dimensional value: `value[:, offset..offset + d]`, `d` known from the other operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Columns {
    /// The value, `(conditions, at least offset + d)`.
    pub value: Value,
    /// The first column.
    pub offset: u32,
}

/// What the struct of an op tells of it. Its default has every field 0, absent or the first choice, and is what a
/// reader fills in.
pub(crate) trait Operation: Copy + Default {
    /// The op's number in the file. Never given to another op.
    const CODE: u16;
    /// The op's name in listings, reports and errors.
    const NAME: &'static str;

    /// Shows every field to `v`, in the order of the file. New fields come last, and 0 must mean what was done
    /// before there was the field.
    fn visit(&mut self, v: &mut impl Visit);

    /// The type of the result; refuses operands, tensors and attributes that the op cannot take.
    fn infer(&self, rule: &Rule<'_>) -> Result<Type>;
}

macro_rules! ops {
    ($($Op:ident)+) => {
        /// An operation with its operands and attributes.
        #[derive(Clone, Copy, Debug, PartialEq)]
        pub enum Op {
            $(#[doc = concat!("See [`", stringify!($Op), "`](struct@super::", stringify!($Op), ").")] $Op($Op),)+
        }

        $(impl From<$Op> for Op {
            fn from(op: $Op) -> Op {
                Op::$Op(op)
            }
        })+

        impl Op {
            /// One of each op, in the order of their numbers, with every field 0, absent or the first choice.
            pub fn blanks() -> impl Iterator<Item = Op> {
                [$(Op::$Op($Op::default())),+].into_iter()
            }

            /// The op's number in the file.
            pub fn code(&self) -> u16 {
                match self {
                    $(Op::$Op(_) => $Op::CODE,)+
                }
            }

            /// The op's name in listings and reports.
            pub fn name(&self) -> &'static str {
                match self {
                    $(Op::$Op(_) => $Op::NAME,)+
                }
            }

            /// Shows every field to `v`, in the order of the file.
            pub fn visit(&mut self, v: &mut impl Visit) {
                match self {
                    $(Op::$Op(op) => op.visit(v),)+
                }
            }

            /// The type of the result.
            pub(super) fn infer(&self, rule: &Rule<'_>) -> Result<Type> {
                match self {
                    $(Op::$Op(op) => op.infer(rule),)+
                }
            }
        }
    };
}

// In the order of their numbers.
ops! {
    Linear Conv2d Attention LayerNorm GroupNorm Pointwise Add Quantize Embedding TimestepEmbedding PositionEmbedding
    Patchify Unpatchify Concat GatedLinear VectorQuantize Resample Parameter Slice Round Multiply RelativeBias
    Rotary PadRows
}

impl Op {
    /// The op with this number in the file, as [`blanks`](Self::blanks) gives it.
    pub fn of_code(code: u16) -> Option<Op> {
        Op::blanks().find(|op| op.code() == code)
    }

    /// The values whose *contents* the op reads. (A position embedding reads only a shape.)
    pub fn reads(&self) -> impl Iterator<Item = Value> + use<> {
        self.collect(|field| field.read()).into_iter()
    }

    /// Every operand, shapes included.
    pub fn operands(&self) -> impl Iterator<Item = Value> + use<> {
        self.collect(|field| field.operand().copied()).into_iter()
    }

    /// The tensors the op uses: weights, tables and curves.
    pub fn tensors(&self) -> impl Iterator<Item = Tensor> + use<> {
        self.collect(|field| field.tensor()).into_iter()
    }

    /// Replaces every operand, shapes included, by what `number` gives for it.
    pub fn renumber(&mut self, mut number: impl FnMut(Value) -> Value) {
        self.visit(&mut |_: &'static str, field: Field<'_>| {
            if let Some(operand) = field.operand() {
                *operand = number(*operand);
            }
        });
    }

    /// The quantization attribute, if the op's result is codes.
    pub fn quantizes(&self) -> Option<QuantizeSpec> {
        struct Quantizes(Option<QuantizeSpec>);
        impl Visit for Quantizes {
            fn field(&mut self, _: &'static str, _: Field<'_>) {}

            fn optional_quantize(&mut self, quantize: &mut Option<QuantizeSpec>) {
                self.0 = *quantize;
            }
        }
        let (mut op, mut found) = (*self, Quantizes(None));
        op.visit(&mut found);
        found.0
    }

    /// Where the scales of a grid come from that the op rounds to, if it is a curve over time.
    pub fn curve(&self) -> Option<QuantizeRange> {
        struct Curves(Option<QuantizeRange>);
        impl Visit for Curves {
            fn field(&mut self, _: &'static str, _: Field<'_>) {}

            fn range(&mut self, _: [&'static str; 2], range: &mut QuantizeRange) {
                self.0 = Some(*range).filter(|range| *range != QuantizeRange::Dynamic);
            }
        }
        let (mut op, mut found) = (*self, Curves(None));
        op.visit(&mut found);
        found.0
    }

    /// What `of` finds in the fields.
    fn collect<T>(&self, of: impl Fn(Field<'_>) -> Option<T>) -> Vec<T> {
        let (mut op, mut list) = (*self, Vec::new());
        op.visit(&mut |_: &'static str, field: Field<'_>| list.extend(of(field)));
        list
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn ops_are_listed_by_number_each_with_a_name_of_its_own() {
        let codes: Vec<u16> = Op::blanks().map(|op| op.code()).collect();
        assert_eq!(codes, (1..=codes.len() as u16).collect::<Vec<_>>());
        let names: BTreeSet<_> = Op::blanks().map(|op| op.name()).collect();
        assert_eq!(names.len(), codes.len());
        assert!(Op::blanks().all(|op| Op::of_code(op.code()) == Some(op)));
        assert_eq!(Op::of_code(0), None);
        assert_eq!(Op::of_code(codes.len() as u16 + 1), None);
    }

    #[test]
    fn shapes_are_operands_that_are_not_read() {
        let mut op = Op::from(PositionEmbedding { x: Value(3), ..Default::default() });
        assert_eq!((op.reads().count(), op.operands().collect::<Vec<_>>()), (0, vec![Value(3)]));
        op.renumber(|v| Value(v.0 + 4));
        assert_eq!(op, PositionEmbedding { x: Value(7), ..Default::default() }.into());
    }

    #[test]
    fn composed_attributes_are_seen_and_changed_as_single_fields() {
        let gate = Some(Columns { value: Value(1), offset: 8 });
        let layer = Linear { gate, weight: Tensor(5), residual: Some(Value(2)), ..Default::default() };
        let mut op = Op::from(layer);
        assert_eq!(op.reads().collect::<Vec<_>>(), [Value(0), Value(1), Value(2)]);
        op.renumber(|v| Value(v.0 + 10));
        let gate = Some(Columns { value: Value(11), offset: 8 });
        assert_eq!(op, Linear { x: Value(10), gate, residual: Some(Value(12)), ..layer }.into());
    }

    #[test]
    fn curves_are_tensors() {
        use crate::program::{CurveAxis, QuantizeRange};
        let range = QuantizeRange::curve(Tensor(9), CurveAxis::Timestep);
        let spec = QuantizeSpec { range, ..Default::default() };
        let norm =
            Op::from(GroupNorm { weight: Tensor(1), bias: Tensor(2), quantize: Some(spec), ..Default::default() });
        assert_eq!(norm.tensors().collect::<Vec<_>>(), [Tensor(1), Tensor(2), Tensor(9)]);
        assert_eq!(norm.quantizes(), Some(spec));
        assert_eq!(Op::from(Quantize { x: Value(0), spec, turn: None }).quantizes(), Some(spec));
        assert_eq!(Op::from(Linear::default()).quantizes(), None);
    }
}
