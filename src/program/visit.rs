//! The fields of an op, one after another, in the order in which the file keeps them.
//!
//! Each op lists its fields once, in its `visit`. What must walk over operands, tensors or attributes is a [`Visit`]:
//! the iterators of [`Op`](super::Op), the encoder and decoder of the file, and the specification's table of ops.

use super::numbered::numbered;
use super::{
    Columns, CurveAxis, Modulation, Numbered, QuantizeRange, QuantizeSpec, RangeCurve, SoftmaxGrid, Tensor, Value,
};

/// One field of an op: one word of the file.
#[derive(Debug)]
pub enum Field<'a> {
    /// An operand that the op reads.
    Value(&'a mut Value),
    /// An operand that may be absent.
    OptionalValue(&'a mut Option<Value>),
    /// An operand that gives its shape and nothing else.
    Shape(&'a mut Value),
    /// An operand that gives its shape and nothing else, and may be absent.
    OptionalShape(&'a mut Option<Value>),
    /// A tensor.
    Tensor(&'a mut Tensor),
    /// A tensor that may be absent.
    OptionalTensor(&'a mut Option<Tensor>),
    /// A count, size or place.
    Number(&'a mut u32),
    /// A real number.
    Float(&'a mut f32),
    /// Yes or no.
    Flag(&'a mut bool),
    /// One of several.
    Choice {
        /// The chosen one's number.
        number: &'a mut u32,
        /// Numbers from 0 to below this one have a meaning.
        below: u32,
        /// The title of their table.
        title: &'static str,
    },
}

impl<'a> Field<'a> {
    /// The value whose contents are read here.
    pub fn read(&self) -> Option<Value> {
        match self {
            Field::Value(value) => Some(**value),
            Field::OptionalValue(value) => **value,
            Field::Shape(_)
            | Field::OptionalShape(_)
            | Field::Tensor(_)
            | Field::OptionalTensor(_)
            | Field::Number(_)
            | Field::Float(_)
            | Field::Flag(_)
            | Field::Choice { .. } => None,
        }
    }

    /// The value that is used here, if only for its shape.
    pub fn operand(self) -> Option<&'a mut Value> {
        match self {
            Field::Value(value) | Field::Shape(value) => Some(value),
            Field::OptionalValue(value) | Field::OptionalShape(value) => value.as_mut(),
            Field::Tensor(_)
            | Field::OptionalTensor(_)
            | Field::Number(_)
            | Field::Float(_)
            | Field::Flag(_)
            | Field::Choice { .. } => None,
        }
    }

    /// The tensor that is used here.
    pub fn tensor(&self) -> Option<Tensor> {
        match self {
            Field::Tensor(tensor) => Some(**tensor),
            Field::OptionalTensor(tensor) => **tensor,
            Field::Value(_)
            | Field::OptionalValue(_)
            | Field::Shape(_)
            | Field::OptionalShape(_)
            | Field::Number(_)
            | Field::Float(_)
            | Field::Flag(_)
            | Field::Choice { .. } => None,
        }
    }
}

/// Sees the fields of an op and may change them. [`field`](Self::field) is all there is to write; the other methods
/// are what an op's `visit` calls, and what has several fields in the file is taken apart and put together by them.
/// A closure over names and fields is a visitor.
pub trait Visit {
    /// Sees the next field.
    fn field(&mut self, name: &'static str, field: Field<'_>);

    /// An operand that the op reads.
    fn value(&mut self, name: &'static str, value: &mut Value) {
        self.field(name, Field::Value(value));
    }

    /// An operand that may be absent.
    fn optional_value(&mut self, name: &'static str, value: &mut Option<Value>) {
        self.field(name, Field::OptionalValue(value));
    }

    /// An operand that gives its shape and nothing else.
    fn shape(&mut self, name: &'static str, value: &mut Value) {
        self.field(name, Field::Shape(value));
    }

    /// An operand that gives its shape and nothing else, and may be absent.
    fn optional_shape(&mut self, name: &'static str, value: &mut Option<Value>) {
        self.field(name, Field::OptionalShape(value));
    }

    /// A tensor.
    fn tensor(&mut self, name: &'static str, tensor: &mut Tensor) {
        self.field(name, Field::Tensor(tensor));
    }

    /// A tensor that may be absent.
    fn optional_tensor(&mut self, name: &'static str, tensor: &mut Option<Tensor>) {
        self.field(name, Field::OptionalTensor(tensor));
    }

    /// A count, size or place.
    fn number(&mut self, name: &'static str, number: &mut u32) {
        self.field(name, Field::Number(number));
    }

    /// A real number.
    fn float(&mut self, name: &'static str, float: &mut f32) {
        self.field(name, Field::Float(float));
    }

    /// Yes or no.
    fn flag(&mut self, name: &'static str, flag: &mut bool) {
        self.field(name, Field::Flag(flag));
    }

    /// One of several.
    fn choice<T: Numbered>(&mut self, name: &'static str, choice: &mut T) {
        let mut number = choice.number();
        self.field(name, Field::Choice { number: &mut number, below: T::LIST.len() as u32, title: T::TITLE });
        *choice = T::of_number(number).unwrap_or(*choice);
    }

    /// A run of columns that may be absent: the value and its first column. `names` are those of the two fields.
    fn columns(&mut self, names: [&'static str; 2], columns: &mut Option<Columns>) {
        let mut value = columns.map(|c| c.value);
        let mut offset = columns.map_or(0, |c| c.offset);
        self.optional_value(names[0], &mut value);
        self.number(names[1], &mut offset);
        *columns = value.map(|value| Columns { value, offset });
    }

    /// A modulation that may be absent: the value and the first columns of scale and shift.
    fn modulation(&mut self, modulation: &mut Option<Modulation>) {
        let mut value = modulation.map(|m| m.value);
        let [mut scale, mut shift] = modulation.map_or([0, 0], |m| [m.scale, m.shift]);
        self.optional_value("modulation", &mut value);
        self.number("first column of scale", &mut scale);
        self.number("first column of shift", &mut shift);
        *modulation = value.map(|value| Modulation { value, scale, shift });
    }

    /// How the result is quantized, if it is: bits, grain, range and curve.
    fn optional_quantize(&mut self, quantize: &mut Option<QuantizeSpec>) {
        let mut spec = quantize.unwrap_or(QuantizeSpec { bits: 0, ..QuantizeSpec::default() });
        self.spec(&mut spec);
        *quantize = (spec.bits != 0).then_some(spec);
    }

    /// The greatest code of a result that is quantized in the range of a curve; 0 is read and shown elsewhere.
    fn quantize_top(&mut self, quantize: Option<&mut QuantizeSpec>) {
        let curve = quantize.and_then(|spec| match &mut spec.range {
            QuantizeRange::Curve(curve) => Some(curve),
            QuantizeRange::Dynamic => None,
        });
        let mut top = curve.as_ref().map_or(0, |curve| u32::from(curve.top));
        self.number("quantize top", &mut top);
        if let Some(curve) = curve {
            curve.top = u8::try_from(top).unwrap_or(u8::MAX);
        }
    }

    /// How the result is quantized. 0 bits are read as the default ones.
    fn quantize(&mut self, spec: &mut QuantizeSpec) {
        let mut quantize = Some(*spec);
        self.optional_quantize(&mut quantize);
        *spec = quantize.unwrap_or_default();
    }

    /// A grid of codes, of a result that may be codes or floats.
    fn spec(&mut self, spec: &mut QuantizeSpec) {
        self.bits("quantize bits", &mut spec.bits);
        self.choice("quantize grain", &mut spec.grain);
        self.range(["quantize range", "quantize curve"], &mut spec.range);
    }

    /// The grid of probabilities, if they have one: bits, range and curve.
    fn softmax(&mut self, softmax: &mut Option<SoftmaxGrid>) {
        let mut grid = softmax.unwrap_or(SoftmaxGrid { bits: 0, range: QuantizeRange::Dynamic });
        self.bits("softmax bits", &mut grid.bits);
        self.range(["softmax range", "softmax curve"], &mut grid.range);
        *softmax = (grid.bits != 0).then_some(grid);
    }

    /// A width of codes.
    fn bits(&mut self, name: &'static str, bits: &mut u8) {
        let mut number = u32::from(*bits);
        self.number(name, &mut number);
        *bits = u8::try_from(number).unwrap_or(u8::MAX);
    }

    /// Where scales come from: the choice and its curve. `names` are those of the two fields.
    fn range(&mut self, names: [&'static str; 2], range: &mut QuantizeRange) {
        let (mut choice, mut curve) = match *range {
            QuantizeRange::Dynamic => (Range::Dynamic, None),
            QuantizeRange::Curve(RangeCurve { points, axis, .. }) => match axis {
                CurveAxis::Timestep => (Range::TimestepCurve, Some(points)),
                CurveAxis::StepFraction => (Range::StepFractionCurve, Some(points)),
            },
        };
        self.choice(names[0], &mut choice);
        self.optional_tensor(names[1], &mut curve);
        // A range without its curve becomes another one, which a strict reader finds out when it writes again.
        let top = match *range {
            QuantizeRange::Curve(RangeCurve { top, .. }) => top,
            QuantizeRange::Dynamic => 0,
        };
        let of = |points, axis| QuantizeRange::Curve(RangeCurve { points, axis, top });
        *range = match (choice, curve) {
            (Range::TimestepCurve, Some(points)) => of(points, CurveAxis::Timestep),
            (Range::StepFractionCurve, Some(points)) => of(points, CurveAxis::StepFraction),
            (Range::Dynamic, _) | (_, None) => QuantizeRange::Dynamic,
        };
    }
}

impl<F: FnMut(&'static str, Field<'_>)> Visit for F {
    fn field(&mut self, name: &'static str, field: Field<'_>) {
        self(name, field);
    }
}

numbered! {
    "Ranges of a quantization"
    /// [`QuantizeRange`] without its tensor.
    pub enum Range {
        /// From the extremes of the data, when it is computed.
        Dynamic = 0 "dynamic",
        /// From the curve, over timesteps.
        TimestepCurve = 1 "timestep curve",
        /// From the curve, over the fraction of the sampler's calls that are done.
        StepFractionCurve = 2 "step fraction curve",
    }
}
