//! Shape rules: the type of every value of a program, given the symbolic axes.
//!
//! The one place that knows which operands an op accepts. The packer runs it before it writes a file, `verify` runs it
//! over a file, and `bind` runs it with the caller's dims; a back end may therefore trust every length it is given.

use super::{
    Dims, Input, InputKind, Modulation, Program, QuantizeGrain, QuantizeRange, QuantizeSpec, RangeCurve, Tensor, Value,
};
use crate::error::{Error, Result};

/// Most axes of a value: `(n, f, h, w, c)`, frames of video among them. Ops that compute take at most four: networks
/// flatten the axes that they do not tell apart.
pub const MAX_AXES: usize = 5;

/// Largest number of elements of one value; keeps every later product of a few factors within 64 bits.
pub const MAX_ELEMENTS: usize = 1 << 36;

/// Most input channels of a convolution: what back ends keep zeros for, to pad with.
pub const MAX_CONV_CHANNELS: usize = 1 << 14;
/// Most products of 8-bit codes and table entries in one sum: the largest that cannot leave 32 bits.
pub const MAX_INTEGER_PRODUCTS: usize = i32::MAX as usize / (255 * 128);

/// What a value's elements are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Real numbers.
    Float,
    /// Row numbers, u32.
    Index,
    /// Integer codes with scales and zero points.
    Codes(QuantizeSpec),
}

/// The type of a value: 1 to [`MAX_AXES`] axes and an element kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Type {
    dims: [usize; MAX_AXES],
    rank: usize,
    /// What the elements are.
    pub kind: Kind,
}

impl Type {
    /// A type with axes `dims`.
    ///
    /// # Panics
    /// If there are no axes or more than [`MAX_AXES`]: a bug, since callers check ranks first.
    pub fn new(dims: &[usize], kind: Kind) -> Self {
        assert!((1..=MAX_AXES).contains(&dims.len()), "{} axes", dims.len());
        let mut padded = [1; MAX_AXES];
        padded[..dims.len()].copy_from_slice(dims);
        Type { dims: padded, rank: dims.len(), kind }
    }

    /// The axes, outermost first.
    pub fn dims(&self) -> &[usize] {
        &self.dims[..self.rank]
    }

    /// Number of axes.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// The same axes but for the last, which has length `cols`, of floats.
    pub(super) fn with_cols(mut self, cols: usize) -> Self {
        self.dims[self.rank - 1] = cols;
        Type { kind: Kind::Float, ..self }
    }

    /// Length of the last axis.
    pub fn cols(&self) -> usize {
        self.dims[self.rank - 1]
    }

    /// Product of all axes but the last.
    pub fn rows(&self) -> usize {
        self.dims[..self.rank - 1].iter().product()
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.rows() * self.cols()
    }

    /// Whether some axis is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Rows per sample: the product of the axes between the first and the last.
    pub fn rows_per_sample(&self) -> usize {
        self.dims[1.min(self.rank - 1)..self.rank - 1].iter().product()
    }
}

/// What the rules need to know of a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorType {
    /// Axes, outermost first.
    pub dims: Vec<usize>,
    /// Whether integer activations can multiply it: a quantized tensor with integer codebooks.
    pub integer: bool,
    /// Whether it is stored as plain f32.
    pub f32: bool,
    /// Whether it is stored as codes.
    pub codes: bool,
    /// Whether it is a file that holds no weights, which no op may use.
    pub bytes: bool,
}

/// Types of all values of `program` when its symbolic axes are `dims`, in its first phase; they are inferred in every other
/// one, too, where the result must have the same type.
///
/// `tensors` describes the file's tensors. Errors name the node's module path, the operand, and both shapes.
pub fn infer(program: &Program, tensors: &[TensorType], dims: &Dims) -> Result<Vec<Type>> {
    let types = infer_nodes(program, tensors, dims)?;
    let output = program.output.0 as usize;
    for phase in 1..program.phases.count() {
        let got = infer_nodes(&program.in_phase(phase), tensors, dims)?[output];
        if got != types[output] {
            let what = format!("output in phase {phase}");
            return Err(Error::shape(program.role.name(), what, format!("{:?}", types[output]), format!("{got:?}")));
        }
    }
    Ok(types)
}

/// Types of all values, whatever other phases there are.
fn infer_nodes(program: &Program, tensors: &[TensorType], dims: &Dims) -> Result<Vec<Type>> {
    let dims = &program.dims(*dims);
    let mut types: Vec<Type> = Vec::with_capacity(program.n_values());
    for (i, input) in program.inputs.iter().enumerate() {
        types.push(declared(program, i, input, dims)?);
    }
    for (i, node) in program.nodes.iter().enumerate() {
        let rule = Rule { path: &node.path, types: &types, tensors, dims };
        let ty = node.op.infer(&rule).map_err(|e| match e {
            Error::Shape { path, what, expected, got } => Error::Shape {
                path: format!("{path} ({} node {i}, {})", program.role.name(), node.op.name()),
                what,
                expected,
                got,
            },
            other => other,
        })?;
        types.push(check_size(ty, &node.path)?);
    }
    let role = program.role.name();
    match types.get(program.output.0 as usize) {
        None => Err(Error::shape(role, "output", format!("a value below {}", types.len()), program.output.0)),
        Some(ty) if ty.kind != Kind::Float => {
            Err(Error::shape(role, "output", "float elements", format!("{:?}", ty.kind)))
        }
        Some(_) => Ok(types),
    }
}

/// The type of input `index`: the axes that its kind has, since whoever fills the input knows nothing of the file.
fn declared(program: &Program, index: usize, input: &Input, dims: &Dims) -> Result<Type> {
    let path = || format!("{} input {:?}", program.role.name(), input.kind);
    if program.inputs[..index].iter().any(|i| i.kind == input.kind) {
        return Err(Error::shape(path(), "input", "each kind once", "a second one"));
    }
    let axes: Vec<usize> = input.dims.iter().map(|&d| dims.resolve(d)).collect();
    let Dims { batch, conditions, height, width, tokens, frames } = *dims;
    let (kind, fits) = match input.kind {
        InputKind::Sample => {
            let image = matches!(axes[..], [n, h, w, _] if [n, h, w] == [batch, height, width]);
            let video = matches!(axes[..], [n, f, h, w, _] if [n, f, h, w] == [batch, frames, height, width]);
            (Kind::Float, image || video)
        }
        InputKind::Timestep => (Kind::Float, axes == [conditions]),
        InputKind::ClassLabels => (Kind::Index, axes == [conditions]),
        // A text encoder is made for a fixed number of tokens; what reads features takes any.
        InputKind::Tokens => (Kind::Index, matches!(axes[..], [n, _] if n == batch)),
        // Made for a fixed number of tokens, or for any.
        InputKind::Context => {
            let fixed = matches!(input.dims.get(1), Some(super::Dim::Fixed(_)));
            (Kind::Float, matches!(axes[..], [n, t, _] if n == conditions && (fixed || t == tokens)))
        }
        InputKind::Pooled | InputKind::Sizes => (Kind::Float, matches!(axes[..], [n, _] if n == conditions)),
        InputKind::Lengths => (Kind::Index, axes == [conditions] || axes == [batch]),
        // Made for a fixed number of tokens, which are not those of the context.
        InputKind::Context2 => (Kind::Float, matches!(axes[..], [n, _, _] if n == conditions)),
        InputKind::Lengths2 => (Kind::Index, axes == [conditions]),
    };
    if !fits {
        let expected = match input.kind {
            InputKind::Sample if frames == 1 => format!("[{batch}, {height}, {width}, channels]"),
            InputKind::Sample => format!("[{batch}, {frames} frames, {height}, {width}, channels]"),
            InputKind::Tokens => format!("[{batch}, tokens]"),
            InputKind::Context => format!("[{conditions}, {tokens}, features]"),
            InputKind::Pooled | InputKind::Sizes => format!("[{conditions}, features]"),
            InputKind::Timestep | InputKind::ClassLabels | InputKind::Lengths2 => format!("[{conditions}]"),
            InputKind::Context2 => format!("[{conditions}, tokens, features]"),
            InputKind::Lengths => format!("[{conditions}] or [{batch}]"),
        };
        return Err(Error::shape(path(), "axes", expected, format!("{axes:?}")));
    }
    check_size(Type::new(&axes, kind), &path())
}

/// Refuses values without elements or with more than [`MAX_ELEMENTS`].
pub(super) fn check_size(ty: Type, path: &str) -> Result<Type> {
    let elements = ty.dims().iter().try_fold(1usize, |n, &d| n.checked_mul(d));
    match elements {
        Some(n) if (1..=MAX_ELEMENTS).contains(&n) => Ok(ty),
        _ => Err(Error::shape(path, "number of elements", "1 to 2^36", format!("shape {:?}", ty.dims()))),
    }
}

/// What the shape rule of a node looks at, and checks that several rules share. Errors name the node.
pub(super) struct Rule<'a> {
    /// The node's module path.
    pub path: &'a str,
    /// Types of the values before the node's own.
    types: &'a [Type],
    /// The file's tensors.
    tensors: &'a [TensorType],
    /// The symbolic axes.
    pub dims: &'a Dims,
}

impl Rule<'_> {
    /// The node's error: `what` is not as `expected`.
    pub fn err<T>(&self, what: &str, expected: impl std::fmt::Display, got: impl std::fmt::Debug) -> Result<T> {
        Err(Error::shape(self.path, what, expected, format!("{got:?}")))
    }

    /// The type of an operand.
    pub fn value(&self, what: &str, value: Value) -> Result<Type> {
        match self.types.get(value.0 as usize) {
            Some(ty) => Ok(*ty),
            None => self.err(what, format!("a value below {}", self.types.len()), value.0),
        }
    }

    /// The type of an operand that must be float.
    pub fn float(&self, what: &str, value: Value) -> Result<Type> {
        let ty = self.value(what, value)?;
        if ty.kind != Kind::Float {
            return self.err(what, "float elements", ty.kind);
        }
        Ok(ty)
    }

    /// The type and axes of an operand that must be float and pixels, `(n, h, w, c)`.
    pub fn float_image(&self, what: &str, value: Value) -> Result<(Type, [usize; 4])> {
        let ty = self.float(what, value)?;
        match *ty.dims() {
            [n, h, w, c] => Ok((ty, [n, h, w, c])),
            _ => self.err(what, "(n, h, w, c)", ty.dims()),
        }
    }

    /// A tensor of weights.
    pub fn tensor(&self, what: &str, tensor: Tensor) -> Result<&TensorType> {
        match self.tensors.get(tensor.0 as usize) {
            Some(t) if t.bytes => self.err(what, "a tensor of weights", format_args!("a file of bytes")),
            Some(t) => Ok(t),
            None => self.err(what, format!("a tensor below {}", self.tensors.len()), tensor.0),
        }
    }

    /// Checks that a tensor, if there is one, is a plain f32 vector of length `n`.
    pub fn vector(&self, what: &str, tensor: Option<Tensor>, n: usize) -> Result<()> {
        let Some(tensor) = tensor else { return Ok(()) };
        let t = self.tensor(what, tensor)?;
        if !t.f32 || t.dims != [n] {
            return self.err(what, format!("f32 [{n}]"), (&t.dims, if t.f32 { "f32" } else { "not f32" }));
        }
        Ok(())
    }

    /// Checks that rows of `x` can be multiplied by rows of `k` elements of a weight.
    pub fn product(&self, x: &Type, weight: &TensorType, k: usize) -> Result<()> {
        if x.cols() != k {
            return self.err("x", format!("{k} features, as weight {:?}", weight.dims), x.dims());
        }
        self.matched(x, weight, k)
    }

    /// Checks that codes meet an integer weight, and that sums of `k` of their products fit 32 bits.
    pub fn matched(&self, x: &Type, weight: &TensorType, k: usize) -> Result<()> {
        match x.kind {
            Kind::Float => Ok(()),
            Kind::Codes(_) if weight.integer && k > MAX_INTEGER_PRODUCTS => {
                self.err("x", format!("codes summed over at most {MAX_INTEGER_PRODUCTS} products"), k)
            }
            Kind::Codes(_) if weight.integer => Ok(()),
            _ => self.err("x", "float elements, or codes and a weight with an integer codebook", x.kind),
        }
    }

    /// Checks a value, if there is one, that is added to `y`: of as many columns, and of as many rows, or if `cyclic`
    /// of a number of rows that divides theirs.
    pub fn residual(&self, residual: Option<Value>, y: &Type, cyclic: bool) -> Result<()> {
        let Some(residual) = residual else { return Ok(()) };
        let r = self.float("residual", residual)?;
        let rows_fit = if cyclic { y.rows().is_multiple_of(r.rows()) } else { r.rows() == y.rows() };
        if r.cols() != y.cols() || !rows_fit {
            return self.err("residual", format!("rows dividing those of {:?}", y.dims()), r.dims());
        }
        Ok(())
    }

    /// Checks that there are as many columns as `y` has, from `offset` of a value with a row per condition, for the
    /// samples of `y`.
    pub fn columns(&self, what: &str, value: Value, offset: u32, y: &Type) -> Result<()> {
        let ty = self.float(what, value)?;
        let end = offset as usize + y.cols();
        let Dims { batch, conditions, .. } = *self.dims;
        if ty.rank() != 2 || ty.dims()[0] != conditions || end > ty.cols() {
            return self.err(what, format!("({conditions} conditions, at least {end})"), ty.dims());
        }
        if y.rank() < 2 || y.dims()[0] != batch {
            return self.err(what, format!("a result for each of the {batch} samples"), y.dims());
        }
        Ok(())
    }

    /// Checks both runs of columns of a modulation of `y`, if there is one.
    pub fn modulation(&self, modulation: Option<Modulation>, y: &Type) -> Result<()> {
        let Some(m) = modulation else { return Ok(()) };
        self.columns("scale", m.value, m.scale, y)?;
        self.columns("shift", m.value, m.shift, y)
    }

    /// The type of `y` once it is quantized, if it is.
    pub fn quantized(&self, y: Type, quantize: Option<QuantizeSpec>) -> Result<Type> {
        let Some(spec) = quantize else { return Ok(y) };
        self.grid(&y, spec)?;
        Ok(Type { kind: Kind::Codes(spec), ..y })
    }

    /// Checks a grid that `y` is to be put on.
    pub fn grid(&self, y: &Type, spec: QuantizeSpec) -> Result<()> {
        if !(2..=8).contains(&spec.bits) {
            return self.err("quantize bits", "2 to 8", spec.bits);
        }
        if spec.grain == QuantizeGrain::Sample && y.rank() < 2 {
            return self.err("quantize grain", "a value with samples", y.dims());
        }
        if let QuantizeRange::Curve(RangeCurve { top, .. }) = spec.range
            && u32::from(top) >= 1 << spec.bits
        {
            return self.err("quantize top", format!("a code of {} bits", spec.bits), top);
        }
        self.curve(spec.range)
    }

    /// Checks the curve of a range, if it has one.
    pub fn curve(&self, range: QuantizeRange) -> Result<()> {
        let QuantizeRange::Curve(RangeCurve { points, .. }) = range else { return Ok(()) };
        let t = self.tensor("curve", points)?;
        if !t.f32 || t.dims.len() != 2 || t.dims[1] != 3 || t.dims[0] == 0 {
            return self.err("curve", "f32 [points, 3]", &t.dims);
        }
        Ok(())
    }

    /// Checks what is added to a variance.
    pub fn eps(&self, eps: f32) -> Result<()> {
        if eps.is_finite() && eps >= 0.0 { Ok(()) } else { self.err("eps", "a finite number, not negative", eps) }
    }
}
