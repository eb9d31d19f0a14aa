//! Shape rules: the type of every value of a program, given the symbolic axes.
//!
//! The one place that knows which operands an op accepts. The packer runs it before it writes a file, `verify` runs it
//! over a file, and `bind` runs it with the caller's dims; a back end may therefore trust every length it is given.

use super::{Dims, Input, InputKind, Op, Program, Quantize, QuantizeGrain, QuantizeRange, Resampling, Tensor, Value};
use crate::error::{Error, Result};

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
    Codes(Quantize),
}

/// The type of a value: 1 to 4 axes and an element kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Type {
    dims: [usize; 4],
    rank: usize,
    /// What the elements are.
    pub kind: Kind,
}

impl Type {
    /// A type with axes `dims`.
    ///
    /// # Panics
    /// If there are no axes or more than four: a bug, since callers check ranks first.
    pub fn new(dims: &[usize], kind: Kind) -> Self {
        assert!((1..=4).contains(&dims.len()), "{} axes", dims.len());
        let mut padded = [1; 4];
        padded[..dims.len()].copy_from_slice(dims);
        Type { dims: padded, rank: dims.len(), kind }
    }

    /// The axes, outermost first.
    pub fn dims(&self) -> &[usize] {
        &self.dims[..self.rank]
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

/// Types of all values of `program` when its symbolic axes are `dims`.
///
/// `tensors` describes the file's tensors. Errors name the node's module path, the operand, and both shapes.
pub fn infer(program: &Program, tensors: &[TensorType], dims: &Dims) -> Result<Vec<Type>> {
    let mut types: Vec<Type> = Vec::with_capacity(program.n_values());
    for (i, input) in program.inputs.iter().enumerate() {
        types.push(declared(program, i, input, dims)?);
    }
    for (i, node) in program.nodes.iter().enumerate() {
        let rule = Rule { path: &node.path, types: &types, tensors, dims };
        let ty = rule.apply(&node.op).map_err(|e| match e {
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
    let Dims { batch, conditions, height, width, tokens } = *dims;
    let (kind, fits) = match input.kind {
        InputKind::Sample => (Kind::Float, matches!(axes[..], [n, h, w, _] if [n, h, w] == [batch, height, width])),
        InputKind::Timestep => (Kind::Float, axes == [conditions]),
        InputKind::ClassLabels => (Kind::Index, axes == [conditions]),
        // A text encoder is made for a fixed number of tokens; what reads features takes any.
        InputKind::Tokens => (Kind::Index, matches!(axes[..], [n, _] if n == batch)),
        InputKind::Context => (Kind::Float, matches!(axes[..], [n, t, _] if [n, t] == [conditions, tokens])),
        InputKind::Pooled | InputKind::Sizes => (Kind::Float, matches!(axes[..], [n, _] if n == conditions)),
    };
    if !fits {
        let expected = match input.kind {
            InputKind::Sample => format!("[{batch}, {height}, {width}, channels]"),
            InputKind::Tokens => format!("[{batch}, tokens]"),
            InputKind::Context => format!("[{conditions}, {tokens}, features]"),
            InputKind::Pooled | InputKind::Sizes => format!("[{conditions}, features]"),
            _ => format!("[{conditions}]"),
        };
        return Err(Error::shape(path(), "axes", expected, format!("{axes:?}")));
    }
    check_size(Type::new(&axes, kind), &path())
}

fn check_size(ty: Type, path: &str) -> Result<Type> {
    let elements = ty.dims().iter().try_fold(1usize, |n, &d| n.checked_mul(d));
    match elements {
        Some(n) if (1..=MAX_ELEMENTS).contains(&n) => Ok(ty),
        _ => Err(Error::shape(path, "number of elements", "1 to 2^36", format!("shape {:?}", ty.dims()))),
    }
}

/// The rules, with what they look at.
struct Rule<'a> {
    path: &'a str,
    types: &'a [Type],
    tensors: &'a [TensorType],
    dims: &'a Dims,
}

impl Rule<'_> {
    fn err<T>(&self, what: &str, expected: impl std::fmt::Display, got: impl std::fmt::Debug) -> Result<T> {
        Err(Error::shape(self.path, what, expected, format!("{got:?}")))
    }

    fn value(&self, what: &str, value: Value) -> Result<Type> {
        match self.types.get(value.0 as usize) {
            Some(ty) => Ok(*ty),
            None => self.err(what, format!("a value below {}", self.types.len()), value.0),
        }
    }

    fn float(&self, what: &str, value: Value) -> Result<Type> {
        let ty = self.value(what, value)?;
        if ty.kind != Kind::Float {
            return self.err(what, "float elements", ty.kind);
        }
        Ok(ty)
    }

    fn float_image(&self, what: &str, value: Value) -> Result<Type> {
        let ty = self.float(what, value)?;
        if ty.rank != 4 {
            return self.err(what, "(n, h, w, c)", ty.dims());
        }
        Ok(ty)
    }

    fn tensor(&self, what: &str, tensor: Tensor) -> Result<&TensorType> {
        match self.tensors.get(tensor.0 as usize) {
            Some(t) if t.bytes => self.err(what, "a tensor of weights", format_args!("a file of bytes")),
            Some(t) => Ok(t),
            None => self.err(what, format!("a tensor below {}", self.tensors.len()), tensor.0),
        }
    }

    /// A plain f32 vector of length `n`.
    fn vector(&self, what: &str, tensor: Option<Tensor>, n: usize) -> Result<()> {
        let Some(tensor) = tensor else { return Ok(()) };
        let t = self.tensor(what, tensor)?;
        if !t.f32 || t.dims != [n] {
            return self.err(what, format!("f32 [{n}]"), (&t.dims, if t.f32 { "f32" } else { "not f32" }));
        }
        Ok(())
    }

    /// Checks that codes meet an integer weight, and that sums of `k` of their products fit 32 bits.
    fn matched(&self, x: &Type, weight: &TensorType, k: usize) -> Result<()> {
        match x.kind {
            Kind::Float => Ok(()),
            Kind::Codes(_) if weight.integer && k > MAX_INTEGER_PRODUCTS => {
                self.err("x", format!("codes summed over at most {MAX_INTEGER_PRODUCTS} products"), k)
            }
            Kind::Codes(_) if weight.integer => Ok(()),
            _ => self.err("x", "float elements, or codes and a weight with an integer codebook", x.kind),
        }
    }

    fn residual(&self, residual: Option<Value>, y: &Type, cyclic: bool) -> Result<()> {
        let Some(residual) = residual else { return Ok(()) };
        let r = self.float("residual", residual)?;
        let rows_fit = if cyclic { y.rows().is_multiple_of(r.rows()) } else { r.rows() == y.rows() };
        if r.cols() != y.cols() || !rows_fit {
            return self.err("residual", format!("rows dividing those of {:?}", y.dims()), r.dims());
        }
        Ok(())
    }

    /// As many columns as `y` has, from `offset` of a value with a row per condition, for the samples of `y`.
    fn columns(&self, what: &str, value: Value, offset: u32, y: &Type) -> Result<()> {
        let ty = self.float(what, value)?;
        let end = offset as usize + y.cols();
        let Dims { batch, conditions, .. } = *self.dims;
        if ty.rank != 2 || ty.dims[0] != conditions || end > ty.cols() {
            return self.err(what, format!("({conditions} conditions, at least {end})"), ty.dims());
        }
        if y.rank < 2 || y.dims[0] != batch {
            return self.err(what, format!("a result for each of the {batch} samples"), y.dims());
        }
        Ok(())
    }

    fn quantized(&self, y: Type, quantize: Option<Quantize>) -> Result<Type> {
        let Some(spec) = quantize else { return Ok(y) };
        if !matches!(spec.bits, 6 | 8) {
            return self.err("quantize bits", "6 or 8", spec.bits);
        }
        if spec.grain == QuantizeGrain::Sample && y.rank < 2 {
            return self.err("quantize grain", "a value with samples", y.dims());
        }
        if let QuantizeRange::Curve(tensor, _) = spec.range {
            let t = self.tensor("curve", tensor)?;
            if !t.f32 || t.dims.len() != 2 || t.dims[1] != 3 || t.dims[0] == 0 {
                return self.err("curve", "f32 [points, 3]", &t.dims);
            }
        }
        Ok(Type { kind: Kind::Codes(spec), ..y })
    }

    fn apply(&self, op: &Op) -> Result<Type> {
        match *op {
            Op::Linear { x, weight, bias, gate, residual, .. } => {
                let x = self.value("x", x)?;
                let w = self.tensor("weight", weight)?;
                let (o, k) = match w.dims[..] {
                    [o, k] => (o, k),
                    [o, h, w, i] => (o, h * w * i),
                    _ => return self.err("weight", "[o, k]", &w.dims),
                };
                if x.cols() != k {
                    return self.err("x", format!("{k} features, as weight {:?}", w.dims), x.dims());
                }
                self.matched(&x, w, k)?;
                self.vector("bias", bias, o)?;
                let mut y = Type { kind: Kind::Float, ..x };
                y.dims[y.rank - 1] = o;
                if let Some(gate) = gate {
                    self.columns("gate", gate.value, gate.offset, &y)?;
                }
                self.residual(residual, &y, true)?;
                Ok(y)
            }
            Op::GatedLinear { x, weight, bias, act: _ } => {
                let x = self.value("x", x)?;
                let w = self.tensor("weight", weight)?;
                let (rows, k) = match w.dims[..] {
                    [rows, k] if rows > 0 && rows % 2 == 0 => (rows, k),
                    _ => return self.err("weight", "[2 o, k]", &w.dims),
                };
                if x.cols() != k {
                    return self.err("x", format!("{k} features, as weight {:?}", w.dims), x.dims());
                }
                self.matched(&x, w, k)?;
                self.vector("bias", bias, rows)?;
                let mut y = Type { kind: Kind::Float, ..x };
                y.dims[y.rank - 1] = rows / 2;
                Ok(y)
            }
            Op::Conv2d { x, weight, bias, sampling, shift, residual } => {
                let x = self.value("x", x)?;
                let w = self.tensor("weight", weight)?;
                let [n, h, wd, c] = x.dims;
                if x.rank != 4 {
                    return self.err("x", "(n, h, w, c)", x.dims());
                }
                if c > MAX_CONV_CHANNELS {
                    return self.err("x", format!("at most {MAX_CONV_CHANNELS} channels"), c);
                }
                let o = match w.dims[..] {
                    [o, 3, 3, i] if i == c => o,
                    _ => return self.err("weight", format!("[o, 3, 3, {c}]"), &w.dims),
                };
                self.matched(&x, w, 9 * c)?;
                if let Kind::Codes(spec) = x.kind {
                    if spec.grain != QuantizeGrain::Sample {
                        return self.err("x", "codes with one scale per sample", spec.grain);
                    }
                    if c % 4 != 0 {
                        return self.err("x", "codes with a multiple of 4 channels", c);
                    }
                }
                self.vector("bias", bias, o)?;
                let (Some(h), Some(wd)) = (sampling.rows(h), sampling.rows(wd)) else {
                    return self.err("x", "fewer pixels", x.dims());
                };
                let y = check_size(Type::new(&[n, h, wd, o], Kind::Float), self.path)?;
                if let Some(shift) = shift {
                    self.columns("shift", shift.value, shift.offset, &y)?;
                }
                self.residual(residual, &y, false)?;
                Ok(y)
            }
            Op::Attention { q, k, v, heads, scale, attend } => {
                let (q, k, v) = (self.float("q", q)?, self.float("k", k)?, self.float("v", v)?);
                let (n, rank) = if attend.per_condition { (self.dims.conditions, 2) } else { (q.dims[0], 3) };
                if q.rank < 3 || k.rank < rank || v.dims() != k.dims() || k.cols() != q.cols() || k.dims[0] != n {
                    let expected = format!("q (n, .., d), k and v ({n}, .., d)");
                    return self.err("q, k, v", expected, (q.dims(), k.dims(), v.dims()));
                }
                if attend.per_condition && q.dims[0] != self.dims.batch {
                    return self.err("q", format!("{} samples", self.dims.batch), q.dims());
                }
                if attend.causal && q.rows_per_sample() != k.rows_per_sample() {
                    return self.err("k", format!("as many rows as {:?}", q.dims()), k.dims());
                }
                if heads == 0 || q.cols() % heads as usize != 0 {
                    return self.err("heads", format!("a divisor of {}", q.cols()), heads);
                }
                if !scale.is_finite() {
                    return self.err("scale", "a finite number", scale);
                }
                Ok(q)
            }
            Op::LayerNorm { x, weight, bias, eps, modulation, quantize } => {
                let x = self.float("x", x)?;
                self.vector("weight", weight, x.cols())?;
                self.vector("bias", bias, x.cols())?;
                self.eps(eps)?;
                if let Some(m) = modulation {
                    self.columns("scale", m.value, m.scale, &x)?;
                    self.columns("shift", m.value, m.shift, &x)?;
                }
                if quantize.is_some_and(|q| q.grain != QuantizeGrain::Row) {
                    return self.err("quantize grain", "one scale per row", quantize);
                }
                self.quantized(x, quantize)
            }
            Op::GroupNorm { x, weight, bias, groups, eps, modulation, quantize, .. } => {
                let x = self.float_image("x", x)?;
                self.vector("weight", Some(weight), x.cols())?;
                self.vector("bias", Some(bias), x.cols())?;
                self.eps(eps)?;
                if groups == 0 || x.cols() % groups as usize != 0 {
                    return self.err("groups", format!("a divisor of {}", x.cols()), groups);
                }
                if let Some(m) = modulation {
                    self.columns("scale", m.value, m.scale, &x)?;
                    self.columns("shift", m.value, m.shift, &x)?;
                }
                self.quantized(x, quantize)
            }
            Op::Pointwise { x, .. } => self.float("x", x),
            Op::Add { a, b } => {
                let a = self.float("a", a)?;
                self.residual(Some(b), &a, true)?;
                Ok(a)
            }
            Op::Concat { a, b } => {
                let (a, b) = (self.float("a", a)?, self.float("b", b)?);
                let last = a.rank - 1;
                if a.rank != b.rank || a.dims[..last] != b.dims[..last] {
                    return self.err("b", format!("the axes of {:?} but for the last", a.dims()), b.dims());
                }
                let Some(cols) = a.cols().checked_add(b.cols()) else {
                    return self.err("b", "fewer columns", b.dims());
                };
                let mut y = a;
                y.dims[last] = cols;
                Ok(y)
            }
            Op::Quantize { x, spec } => {
                let x = self.float("x", x)?;
                self.quantized(x, Some(spec))
            }
            Op::VectorQuantize { x, table } => {
                let x = self.float("x", x)?;
                let t = self.tensor("table", table)?;
                match t.dims[..] {
                    [rows, d] if t.f32 && rows > 0 && d == x.cols() => Ok(x),
                    _ => self.err("table", format!("f32 [rows, {}]", x.cols()), &t.dims),
                }
            }
            Op::Resample { x, how } => {
                let x = self.float_image("x", x)?;
                let [n, h, w, c] = x.dims;
                let sizes = match how {
                    Resampling::Nearest => (h.checked_mul(2), w.checked_mul(2)),
                    Resampling::Mean => (Some(h / 2), Some(w / 2)),
                };
                let (Some(h), Some(w)) = sizes else {
                    return self.err("x", "fewer pixels", x.dims());
                };
                Ok(Type::new(&[n, h, w, c], Kind::Float))
            }
            Op::Parameter { tensor } => {
                let t = self.tensor("tensor", tensor)?;
                if !(1..=4).contains(&t.dims.len()) || t.codes {
                    return self.err("tensor", "f16 or f32, 1 to 4 axes", &t.dims);
                }
                Ok(Type::new(&t.dims, Kind::Float))
            }
            Op::Embedding { index, table } => {
                let index = self.value("index", index)?;
                let t = self.tensor("table", table)?;
                if index.kind != Kind::Index || index.rank > 2 {
                    return self.err("index", "(conditions) or (n, t) row numbers", (index.dims(), index.kind));
                }
                if t.dims.len() != 2 || t.codes {
                    return self.err("table", "f16 or f32 [rows, d]", &t.dims);
                }
                let dims = [index.dims(), &[t.dims[1]]].concat();
                Ok(Type::new(&dims, Kind::Float))
            }
            Op::TimestepEmbedding { t, dim, shift, .. } => {
                let t = self.float("t", t)?;
                if t.rank > 2 {
                    return self.err("t", "(conditions) or (conditions, k)", t.dims());
                }
                if dim < 4 || dim % 2 != 0 || !(shift.is_finite() && shift < dim as f32 / 2.0) {
                    return self.err(
                        "dim, shift",
                        "an even dim of at least 4 and a shift below half of it",
                        (dim, shift),
                    );
                }
                let Some(cols) = t.dims[1].checked_mul(dim as usize) else {
                    return self.err("dim", "fewer features", dim);
                };
                Ok(Type::new(&[t.dims[0], cols], Kind::Float))
            }
            Op::PositionEmbedding { x, dim, base, interpolation } => {
                let x = self.value("x", x)?;
                if x.rank != 4 {
                    return self.err("x", "(n, h, w, c)", x.dims());
                }
                if dim == 0 || dim % 4 != 0 || base == 0 || !(interpolation.is_finite() && interpolation > 0.0) {
                    return self.err(
                        "dim, base, interpolation",
                        "a multiple of 4, and two positive numbers",
                        (dim, base, interpolation),
                    );
                }
                Ok(Type::new(&[x.dims[1], x.dims[2], dim as usize], Kind::Float))
            }
            Op::Patchify { x, patch } => {
                let x = self.float_image("x", x)?;
                let p = patch as usize;
                let [n, h, w, c] = x.dims;
                if p == 0 || h % p != 0 || w % p != 0 {
                    return self.err("x", format!("height and width in multiples of the patch size {p}"), x.dims());
                }
                Ok(Type::new(&[n, h / p, w / p, p * p * c], Kind::Float))
            }
            Op::Unpatchify { x, patch } => {
                let x = self.float_image("x", x)?;
                let p = patch as usize;
                let [n, h, w, f] = x.dims;
                let fits = p != 0 && p <= 1 << 12 && f % (p * p) == 0;
                if !fits {
                    return self.err("x", format!("features in multiples of {p} x {p}"), x.dims());
                }
                Ok(Type::new(&[n, h * p, w * p, f / (p * p)], Kind::Float))
            }
        }
    }

    fn eps(&self, eps: f32) -> Result<()> {
        if eps.is_finite() && eps >= 0.0 { Ok(()) } else { self.err("eps", "a finite number, not negative", eps) }
    }
}
