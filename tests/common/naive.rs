//! The oracle: every op in plain f64, straight from its definition in `src/program/op.rs`. Slow and obvious.
//!
//! Codes are dequantized before use (`x = scale * (q - zero)`, `w = scale * (entry + offset)`): what the integer kernels
//! do in a roundabout way is, by definition, the product of these real numbers. The oracle is tested on hand-computed
//! cases in `tests/ops/oracle.rs`.

use super::naive_attention::{Masks, attention};
use aquatint::raw::codec::QuantizedMatrix;
use aquatint::raw::program::{
    Act, Add, Attention, Concat, Conv2d, ConvStride, CurveAxis, Dims, Embedding, GatedLinear, Grid, GroupNorm,
    InputKind, LayerNorm, Linear, Multiply, Op, PadRows, Parameter, Patchify, Pointwise, PositionEmbedding, Program,
    Quantize, QuantizeGrain, QuantizeRange, QuantizeSpec, RangeCurve, RelativeBias, Resample, Resampling, Rotary,
    Round, Slice, Tensor, TimestepEmbedding, Turn, Unpatchify, Value, VectorQuantize,
};

/// A dense array of real numbers, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    /// Axes, outermost first.
    pub dims: Vec<usize>,
    /// Elements.
    pub data: Vec<f64>,
}

impl Array {
    /// An array whose element number `i` is `f(i)`.
    pub fn new(dims: &[usize], f: impl FnMut(usize) -> f64) -> Self {
        Array { dims: dims.to_vec(), data: (0..dims.iter().product()).map(f).collect() }
    }

    /// The same numbers in f64.
    pub fn of(dims: &[usize], data: &[f32]) -> Self {
        assert_eq!(dims.iter().product::<usize>(), data.len());
        Array::new(dims, |i| data[i].into())
    }

    /// The real numbers that the codes of `matrix` stand for.
    pub fn dequantized(dims: &[usize], matrix: &QuantizedMatrix) -> Self {
        Array::new(dims, |i| {
            let row = i / matrix.cols;
            let entry = f64::from(matrix.entry(row, matrix.codes[i]));
            f64::from(matrix.scale[row]) * (entry + f64::from(matrix.offset[row]))
        })
    }

    /// Length of the last axis.
    pub fn cols(&self) -> usize {
        self.dims[self.dims.len() - 1]
    }

    /// Product of the other axes.
    pub fn rows(&self) -> usize {
        self.data.len() / self.cols()
    }

    /// Row `i`; rows beyond the last repeat cyclically.
    pub fn row(&self, i: usize) -> &[f64] {
        &self.data[i % self.rows() * self.cols()..][..self.cols()]
    }

    fn map(&self, f: impl Fn(f64) -> f64) -> Self {
        Array { dims: self.dims.clone(), data: self.data.iter().map(|&v| f(v)).collect() }
    }

    fn with_cols(&self, cols: usize, f: impl FnMut(usize) -> f64) -> Self {
        let mut dims = self.dims.clone();
        *dims.last_mut().unwrap() = cols;
        Array::new(&dims, f)
    }
}

/// What a run is given.
#[derive(Clone)]
pub struct Inputs {
    /// Axes.
    pub dims: Dims,
    /// The sample.
    pub sample: Vec<f32>,
    /// The timestep of this call.
    pub timestep: f32,
    /// The fraction of calls done.
    pub fraction: f32,
    /// A class per condition.
    pub labels: Vec<u32>,
    /// A condition per sample.
    pub conditions: Vec<u32>,
    /// Tokens of a text.
    pub tokens: Vec<u32>,
    /// Features of a prompt's tokens.
    pub context: Vec<f32>,
    /// A vector per condition.
    pub pooled: Vec<f32>,
    /// Numbers beside the prompt.
    pub sizes: Vec<f32>,
    /// How many tokens count.
    pub lengths: Vec<u32>,
    /// Features of the tokens of a second context.
    pub context_2: Vec<f32>,
    /// How many of those count.
    pub lengths_2: Vec<u32>,
}

/// Every value of `program`, in order. Codes appear as the real numbers they stand for.
pub fn run(program: &Program, tensors: &[Array], inputs: &Inputs) -> Vec<Array> {
    let mut values: Vec<Array> = Vec::new();
    for input in &program.inputs {
        let dims: Vec<usize> = input.dims.iter().map(|&d| inputs.dims.resolve(d)).collect();
        values.push(match input.kind {
            InputKind::Sample => Array::of(&dims, &inputs.sample),
            InputKind::Timestep => Array::new(&dims, |_| inputs.timestep.into()),
            InputKind::ClassLabels => Array::new(&dims, |i| inputs.labels[i].into()),
            InputKind::Tokens => {
                assert_eq!(inputs.tokens.len(), dims.iter().product::<usize>());
                Array::new(&dims, |i| inputs.tokens[i].into())
            }
            InputKind::Context => Array::of(&dims, &inputs.context),
            InputKind::Pooled => Array::of(&dims, &inputs.pooled),
            InputKind::Sizes => Array::of(&dims, &inputs.sizes),
            InputKind::Lengths => Array::new(&dims, |i| inputs.lengths[i].into()),
            InputKind::Context2 => Array::of(&dims, &inputs.context_2),
            InputKind::Lengths2 => Array::new(&dims, |i| inputs.lengths_2[i].into()),
        });
    }
    let position = match program.phases.axis {
        CurveAxis::Timestep => inputs.timestep,
        CurveAxis::StepFraction => inputs.fraction,
    };
    let starts = &program.phases.starts;
    let phase = (0..starts.len()).rev().find(|&phase| starts[phase] <= position).unwrap_or(0);
    for (i, node) in program.nodes.iter().enumerate() {
        let mut variants = program.phases.variants.iter();
        let variant = variants.find(|variant| variant.node == i && variant.phases & (1 << phase) != 0);
        let op = variant.map_or(&node.op, |variant| &variant.op);
        let value = Scope { values: &values, tensors, inputs }.apply(op);
        values.push(value);
    }
    values
}

/// What the ops of a program see.
struct Scope<'a> {
    values: &'a [Array],
    tensors: &'a [Array],
    inputs: &'a Inputs,
}

impl Scope<'_> {
    fn value(&self, v: Value) -> &Array {
        &self.values[v.0 as usize]
    }

    fn tensor(&self, t: Tensor) -> &Array {
        &self.tensors[t.0 as usize]
    }

    /// The row of a per-condition value that belongs to the sample of row `row` of `x`.
    fn of_sample(&self, x: &Array, table: Value, row: usize) -> &[f64] {
        let rows_per_sample = x.rows() / x.dims[0];
        self.value(table).row(self.inputs.conditions[row / rows_per_sample] as usize)
    }

    fn quantized(&self, y: Array, spec: Option<QuantizeSpec>) -> Array {
        let Some(spec) = spec else { return y };
        quantize(&y, spec.top(), spec.grain, self.fixed(spec.range))
    }

    /// Scale and zero point now, if a curve gives them.
    fn fixed(&self, range: QuantizeRange) -> Option<(f64, f64)> {
        let QuantizeRange::Curve(RangeCurve { points, axis, .. }) = range else { return None };
        let at = if axis == CurveAxis::Timestep { self.inputs.timestep } else { self.inputs.fraction };
        Some(curve(self.tensor(points), at.into()))
    }

    fn apply(&self, op: &Op) -> Array {
        match *op {
            Op::Linear(op) => self.linear(op),
            Op::GatedLinear(op) => self.gated_linear(op),
            Op::Conv2d(op) => self.conv2d(op),
            Op::Attention(op) => self.attention(op),
            Op::LayerNorm(op) => self.layer_norm(op),
            Op::GroupNorm(op) => self.group_norm(op),
            Op::Pointwise(Pointwise { x, act, mul, add }) => {
                self.value(x).map(|v| activate(act, v) * f64::from(mul) + f64::from(add))
            }
            Op::Add(Add { a, b }) => {
                let (a, b) = (self.value(a), self.value(b));
                let d = a.cols();
                Array::new(&a.dims, |i| a.data[i] + b.row(i / d)[i % d])
            }
            Op::Multiply(Multiply { a, b }) => {
                let (a, b) = (self.value(a), self.value(b));
                Array::new(&a.dims, |i| a.data[i] * b.data[i])
            }
            Op::Concat(Concat { a, b, tokens: true }) => {
                let (a, b) = (self.value(a), self.value(b));
                let (of_a, of_b) = (a.dims[1], b.dims[1]);
                let [n, t, d] = [a.dims[0], of_a + of_b, a.cols()];
                Array::new(&[n, t, d], |i| {
                    let (text, token) = (i / d / t, i / d % t);
                    match token.checked_sub(of_a) {
                        None => a.row(text * of_a + token)[i % d],
                        Some(token) => b.row(text * of_b + token)[i % d],
                    }
                })
            }
            Op::Concat(Concat { a, b, tokens: false }) => {
                let (a, b) = (self.value(a), self.value(b));
                let (d, mut dims) = (a.cols() + b.cols(), a.dims.clone());
                *dims.last_mut().expect("axes") = d;
                Array::new(
                    &dims,
                    |i| if i % d < a.cols() { a.row(i / d)[i % d] } else { b.row(i / d)[i % d - a.cols()] },
                )
            }
            Op::Slice(Slice { x, first, count, tokens: true }) => {
                let (x, first, count) = (self.value(x), first as usize, count as usize);
                let [n, t, d] = x.dims[..] else { panic!("no tokens: {:?}", x.dims) };
                Array::new(&[n, count, d], |i| x.row(i / d / count * t + first + i / d % count)[i % d])
            }
            Op::PadRows(PadRows { x, lengths, table, first }) => {
                let (x, lengths, table) = (self.value(x), self.value(lengths), self.tensor(table));
                let (t, d) = (x.dims[1], x.cols());
                Array::new(&x.dims, |i| {
                    let (text, token) = (i / d / t, i / d % t);
                    let own = (token as f64) < lengths.data[text];
                    if own { x.data[i] } else { table.row(first as usize + token)[i % d] }
                })
            }
            Op::Rotary(Rotary { x, table, heads }) => {
                let (x, table) = (self.value(x), self.value(table));
                let (d, e) = (x.cols(), x.cols() / heads as usize);
                Array::new(&x.dims, |i| {
                    let (row, feature) = (i / d, i % e);
                    let (half, pair) = (feature / (e / 2), feature % (e / 2) / 2);
                    let angles = &table.row(row)[half * e / 2..][..e / 2];
                    let (sin, cos) = (angles[pair], angles[e / 4 + pair]);
                    // The first of a pair, then the second.
                    if feature % 2 == 0 {
                        x.data[i] * cos - x.data[i + 1] * sin
                    } else {
                        x.data[i] * cos + x.data[i - 1] * sin
                    }
                })
            }
            Op::Slice(Slice { x, first, count, tokens: false }) => {
                let (x, first, count) = (self.value(x), first as usize, count as usize);
                let mut dims = x.dims.clone();
                *dims.last_mut().expect("axes") = count;
                Array::new(&dims, |i| x.row(i / count)[first + i % count])
            }
            Op::Quantize(Quantize { x, spec, turn }) => {
                let mut x = self.value(x).clone();
                if let Some(Turn { factors, block }) = turn {
                    turned(&mut x, self.tensor(factors), block as usize);
                }
                self.quantized(x, Some(spec))
            }
            Op::Round(Round { x, spec, parts }) => {
                let x = self.value(x);
                let parts = parts.max(1) as usize;
                let runs = Array { dims: vec![x.rows() * parts, x.cols() / parts], data: x.data.clone() };
                let by_row = spec.grain == QuantizeGrain::Row;
                let y = self.quantized(if by_row { runs } else { x.clone() }, Some(spec));
                Array { dims: x.dims.clone(), data: y.data }
            }
            Op::VectorQuantize(VectorQuantize { x, table }) => {
                let (x, table) = (self.value(x), self.tensor(table));
                let nearest: Vec<&[f64]> = (0..x.rows()).map(|row| table.row(nearest_row(x.row(row), table))).collect();
                Array::new(&x.dims, |i| nearest[i / x.cols()][i % x.cols()])
            }
            Op::Resample(Resample { x, how }) => resample(self.value(x), how),
            Op::Parameter(Parameter { tensor: t, flat, rows }) => {
                let t = self.tensor(t);
                let mut dims = t.dims.clone();
                dims[0] = if rows == 0 { dims[0] } else { rows as usize };
                let dims = if flat { vec![1, dims.iter().product()] } else { dims };
                Array::new(&dims, |i| t.data[i])
            }
            Op::Embedding(Embedding { index, table }) => {
                let (index, table) = (self.value(index), self.tensor(table));
                let d = table.cols();
                Array::new(&[&index.dims[..], &[d]].concat(), |i| table.row(index.data[i / d] as usize)[i % d])
            }
            Op::TimestepEmbedding(op) => self.timestep_embedding(op),
            Op::PositionEmbedding(op) => self.position_embedding(op),
            Op::RelativeBias(op) => self.relative_bias(op),
            Op::Patchify(Patchify { x, patch }) => patchify(self.value(x), patch as usize),
            Op::Unpatchify(Unpatchify { x, patch }) => unpatchify(self.value(x), patch as usize),
        }
    }

    fn linear(&self, op: Linear) -> Array {
        let Linear { x, weight, bias, act, gate, residual } = op;
        let (x, w) = (self.value(x), self.tensor(weight));
        let o = w.dims[0];
        let k = w.data.len() / o;
        x.with_cols(o, |i| {
            let (row, channel) = (i / o, i % o);
            let mut y: f64 = (0..k).map(|j| x.row(row)[j] * w.data[channel * k + j]).sum();
            y = activate(act, y + bias.map_or(0.0, |b| self.tensor(b).data[channel]));
            y *= gate.map_or(1.0, |g| self.of_sample(x, g.value, row)[g.offset as usize + channel]);
            y + residual.map_or(0.0, |r| self.value(r).row(row)[channel])
        })
    }

    fn gated_linear(&self, op: GatedLinear) -> Array {
        let GatedLinear { x, weight, bias, act } = op;
        let (x, w) = (self.value(x), self.tensor(weight));
        let (o, k) = (w.dims[0] / 2, w.dims[1]);
        x.with_cols(o, |i| {
            let (row, column) = (i / o, i % o);
            let product = |channel: usize| -> f64 {
                let y: f64 = (0..k).map(|j| x.row(row)[j] * w.data[channel * k + j]).sum();
                y + bias.map_or(0.0, |b| self.tensor(b).data[channel])
            };
            product(2 * column) * activate(act, product(2 * column + 1))
        })
    }

    fn conv2d(&self, op: Conv2d) -> Array {
        let Conv2d { x, weight, bias, sampling, shift, residual, size_of } = op;
        let size = size_of.map(|like| [self.value(like).dims[1], self.value(like).dims[2]]);
        let y = conv3x3(self.value(x), self.tensor(weight), sampling, size);
        let o = y.cols();
        Array::new(&y.dims, |i| {
            let shift = shift.map_or(0.0, |s| self.of_sample(&y, s.value, i / o)[s.offset as usize + i % o]);
            let bias = bias.map_or(0.0, |b| self.tensor(b).data[i % o]);
            y.data[i] + bias + shift + residual.map_or(0.0, |r| self.value(r).data[i])
        })
    }

    fn attention(&self, op: Attention) -> Array {
        let Attention { q, k, v, heads, scale, softmax, .. } = op;
        let grid = softmax.map(|grid| (grid.bits, self.fixed(grid.range).map(|(delta, _)| delta)));
        let masks = Masks::new(&op, self.values, self.inputs);
        attention([self.value(q), self.value(k), self.value(v)], heads as usize, scale.into(), &masks, grid)
    }

    fn layer_norm(&self, op: LayerNorm) -> Array {
        let LayerNorm { x, weight, bias, eps, modulation, quantize, rms, shift, parts } = op;
        let whole = self.value(x);
        // Each part is a row of its own.
        let d = whole.cols() / parts.max(1) as usize;
        let x = &if parts > 1 {
            Array { dims: vec![whole.data.len() / d, d], data: whole.data.clone() }
        } else {
            whole.clone()
        };
        let stats: Vec<_> = (0..x.rows()).map(|row| statistics(x.row(row))).collect();
        let y = Array::new(&x.dims, |i| {
            let (row, c) = (i / d, i % d);
            let (mean, variance) = stats[row];
            let mut y = match rms {
                false => (x.data[i] - mean) / (variance + f64::from(eps)).sqrt(),
                true => x.data[i] / (x.row(row).iter().map(|v| v * v).sum::<f64>() / d as f64 + f64::from(eps)).sqrt(),
            };
            y = y * weight.map_or(1.0, |w| self.tensor(w).data[c]) + bias.map_or(0.0, |b| self.tensor(b).data[c]);
            if let Some(m) = modulation {
                let columns = self.of_sample(x, m.value, row);
                y = y * (1.0 + columns[m.scale as usize + c]) + columns[m.shift as usize + c];
            }
            y + shift.map_or(0.0, |s| self.of_sample(x, s.value, row)[s.offset as usize + c])
        });
        self.quantized(Array { dims: whole.dims.clone(), data: y.data }, quantize)
    }

    fn group_norm(&self, op: GroupNorm) -> Array {
        let GroupNorm { x, weight, bias, groups, eps, modulation, act, quantize } = op;
        let (x, w, b) = (self.value(x), self.tensor(weight), self.tensor(bias));
        let (n, c) = (x.dims[0], x.cols());
        let (pixels, per_group) = (x.rows() / n, c / groups as usize);
        let group_of = |i: usize| (i / c / pixels, i % c / per_group);
        let mut members = vec![vec![Vec::new(); groups as usize]; n];
        for (i, &v) in x.data.iter().enumerate() {
            let (sample, group) = group_of(i);
            members[sample][group].push(v);
        }
        let stats: Vec<Vec<_>> = members.iter().map(|s| s.iter().map(|g| statistics(g)).collect()).collect();
        let y = Array::new(&x.dims, |i| {
            let (sample, group) = group_of(i);
            let (mean, variance) = stats[sample][group];
            let mut y = (x.data[i] - mean) / (variance + f64::from(eps)).sqrt();
            y = y * w.data[i % c] + b.data[i % c];
            if let Some(m) = modulation {
                let columns = self.of_sample(x, m.value, i / c);
                y = y * (1.0 + columns[m.scale as usize + i % c]) + columns[m.shift as usize + i % c];
            }
            activate(act, y)
        });
        self.quantized(y, quantize)
    }

    fn relative_bias(&self, op: RelativeBias) -> Array {
        let RelativeBias { x, table, buckets, max_distance } = op;
        let (tokens, table) = (self.value(x).dims[1], self.tensor(table));
        let bucket = |query: usize, key: usize| {
            let (half, exact) = (buckets as usize / 2, buckets as usize / 4);
            let distance = query.abs_diff(key);
            let far = (distance as f64 / exact as f64).ln() / (f64::from(max_distance) / exact as f64).ln();
            let within = match distance < exact {
                true => distance,
                false => (exact + (far * exact as f64 + 1e-9).floor() as usize).min(half - 1),
            };
            within + if key > query { half } else { 0 }
        };
        Array::new(&[table.cols(), tokens, tokens], |i| {
            table.row(bucket(i / tokens % tokens, i % tokens))[i / tokens / tokens]
        })
    }

    fn timestep_embedding(&self, op: TimestepEmbedding) -> Array {
        let TimestepEmbedding { t, dim, cos_first, shift } = op;
        let (t, dim) = (self.value(t), dim as usize);
        let half = dim / 2;
        let rows = t.dims[0];
        Array::new(&[rows, t.data.len() / rows * dim], |i| {
            // The embeddings of a row's numbers lie side by side.
            let (number, column) = (i / dim, i % dim);
            let frequency = (-(10_000f64.ln()) * (column % half) as f64 / (half as f64 - f64::from(shift))).exp();
            let angle = t.data[number] * frequency;
            if (column < half) == cos_first { angle.cos() } else { angle.sin() }
        })
    }

    fn position_embedding(&self, op: PositionEmbedding) -> Array {
        let PositionEmbedding { x, dim, base, interpolation, keep_ratio, grid } = op;
        let (rows, columns, dim) = (self.value(x).dims[1], self.value(x).dims[2], dim as usize);
        let one_frame = rows / self.inputs.dims.frames;
        let (h, w) = match grid {
            Grid::Frame => (one_frame, columns),
            Grid::Frames | Grid::SeveralFrames => (self.inputs.dims.frames, one_frame * columns),
        };
        if grid == Grid::SeveralFrames && h == 1 {
            return Array::new(&[h, w, dim], |_| 0.0);
        }
        let quarter = dim / 4;
        Array::new(&[h, w, dim], |i| {
            let (row, column, feature) = (i / dim / w, i / dim % w, i % dim);
            let (at, size) = if feature < 2 * quarter { (column, w) } else { (row, h) };
            let (first, span) = match base {
                0 => (0.0, size as f64),
                _ if keep_ratio => fitted(size, h.max(w), base),
                _ => (0.0, f64::from(base)),
            };
            let position = (first + at as f64 * span / size as f64) / f64::from(interpolation);
            let angle = position / 10_000f64.powf((feature % quarter) as f64 / quarter as f64);
            if feature / quarter % 2 == 0 { angle.sin() } else { angle.cos() }
        })
    }
}

/// Where the positions of a side of `size`, of which the longer is `longest`, begin in a square of `base`, and how many there
/// are: scaled so that the longer side fills the square, and in its middle.
fn fitted(size: usize, longest: usize, base: u32) -> (f64, f64) {
    let span = (f64::from(base) / longest as f64 * size as f64).round_ties_even();
    (((f64::from(base) - span) / 2.0).round_ties_even(), span)
}

/// The activation functions.
pub fn activate(act: Act, x: f64) -> f64 {
    match act {
        Act::None => x,
        Act::Silu => x / (1.0 + (-x).exp()),
        Act::GeluTanh => 0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh()),
        Act::QuickGelu => x / (1.0 + (-1.702 * x).exp()),
        Act::GeluErf => 0.5 * x * (1.0 + erf(x / std::f64::consts::SQRT_2)),
    }
}

/// The error function, by its series with positive terms only: `2 / sqrt(pi) e^(-x^2) sum of 2^n x^(2 n + 1) / (2 n + 1)!!`.
pub fn erf(x: f64) -> f64 {
    if x.abs() > 6.5 {
        return x.signum(); // nearer than f64 can tell
    }
    let (mut sum, mut term) = (0.0, x);
    for n in 0..200 {
        sum += term;
        term *= 2.0 * x * x / f64::from(2 * n + 3);
    }
    2.0 / std::f64::consts::PI.sqrt() * (-x * x).exp() * sum
}

/// Mean and (biased) variance.
fn statistics(x: &[f64]) -> (f64, f64) {
    let n = x.len() as f64;
    let mean = x.iter().sum::<f64>() / n;
    (mean, x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n)
}

/// `x` with `size` pixels, each the nearest as torch's `interpolate` has it.
fn nearest(x: &Array, size: [usize; 2]) -> Array {
    let [n, h, w, c] = x.dims[..] else { panic!("not an image: {:?}", x.dims) };
    let [down, across] = size;
    Array::new(&[n, down, across, c], |i| {
        let (sample, row, column, channel) = (i / c / across / down, i / c / across % down, i / c % across, i % c);
        x.data[((sample * h + row * h / down) * w + column * w / across) * c + channel]
    })
}

/// 3x3 convolution with zero padding, after nearest-neighbour upsampling to `size`, or to twice the pixels.
fn conv3x3(x: &Array, weight: &Array, sampling: ConvStride, size: Option<[usize; 2]>) -> Array {
    let [n, h, w, c] = x.dims[..] else { panic!("not an image: {:?}", x.dims) };
    let (stride, before) = match sampling {
        ConvStride::Same => (1, 1),
        ConvStride::Up => return conv3x3(&nearest(x, size.unwrap_or([2 * h, 2 * w])), weight, ConvStride::Same, None),
        ConvStride::Down => (2, 1),
        ConvStride::DownPadEnd => (2, 0),
    };
    // With a row of zeros after the image and `before` of them ahead of it, as many windows as fit.
    let (down, across, o) = ((h + before + 1 - 3) / stride + 1, (w + before + 1 - 3) / stride + 1, weight.dims[0]);
    Array::new(&[n, down, across, o], |i| {
        let (sample, y, x_, out) = (i / o / across / down, i / o / across % down, i / o % across, i % o);
        let mut sum = 0.0;
        for (ky, kx) in (0..9).map(|tap| (tap / 3, tap % 3)) {
            // Position in the image with its rows and columns of zeros ahead.
            let (row, column) = (y * stride + ky, x_ * stride + kx);
            let inside = (before..h + before).contains(&row) && (before..w + before).contains(&column);
            for channel in (0..c).filter(|_| inside) {
                let pixel = x.data[((sample * h + row - before) * w + column - before) * c + channel];
                sum += weight.data[((out * 3 + ky) * 3 + kx) * c + channel] * pixel;
            }
        }
        sum
    })
}

/// The row of `table` at the least squared distance from `x`; the first if there are several.
fn nearest_row(x: &[f64], table: &Array) -> usize {
    let mut best = 0;
    for row in 1..table.rows() {
        if distance(x, table.row(row)) < distance(x, table.row(best)) {
            best = row;
        }
    }
    best
}

/// Squared distance.
pub fn distance(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum()
}

/// Twice as many pixels per axis, or half as many.
fn resample(x: &Array, how: Resampling) -> Array {
    let [n, h, w, c] = x.dims[..] else { panic!("not an image: {:?}", x.dims) };
    let pixel = |sample: usize, row: usize, column: usize, i: usize| x.data[((sample * h + row) * w + column) * c + i];
    let (down, across) = match how {
        Resampling::Nearest => (2 * h, 2 * w),
        Resampling::Mean => (h / 2, w / 2),
    };
    Array::new(&[n, down, across, c], |i| {
        let (sample, row, column, i) = (i / c / across / down, i / c / across % down, i / c % across, i % c);
        match how {
            Resampling::Nearest => pixel(sample, row / 2, column / 2, i),
            Resampling::Mean => {
                let four = [(0, 0), (0, 1), (1, 0), (1, 1)];
                four.iter().map(|(y, x)| pixel(sample, 2 * row + y, 2 * column + x, i)).sum::<f64>() / 4.0
            }
        }
    })
}

/// Real numbers to codes and back: `delta = (max - min) / top`, `zero = round(-min / delta)`,
/// `q = clamp(round(x / delta) + zero, 0, top)`. A group of equal values is represented exactly. With `fixed`, delta and zero
/// are given; of a zero between whole numbers, what is beside the nearest is added before rounding.
pub fn quantize(x: &Array, top: u8, grain: QuantizeGrain, fixed: Option<(f64, f64)>) -> Array {
    let group = match grain {
        QuantizeGrain::Row => x.cols(),
        QuantizeGrain::Sample => x.data.len() / x.dims[0],
    };
    let top = f64::from(top);
    let mut y = x.clone();
    for group in y.data.chunks_exact_mut(group) {
        let low = group.iter().copied().fold(f64::INFINITY, f64::min);
        let high = group.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        if low == high && fixed.is_none() {
            continue;
        }
        let delta = (high - low) / top;
        let (delta, zero) = fixed.unwrap_or((delta, (-low / delta).round_ties_even()));
        for v in group {
            let whole = zero.round_ties_even();
            let q = ((*v / delta + (zero - whole)).round_ties_even() + whole).clamp(0.0, top);
            *v = delta * (q - zero);
        }
    }
    y
}

/// Each row times the factors of its columns, and then, if `block` is not 0, runs of `block` columns times the matrix of
/// `(-1)^popcount(i & j)`.
fn turned(x: &mut Array, factors: &Array, block: usize) {
    let cols = x.cols();
    for row in x.data.chunks_exact_mut(cols) {
        row.iter_mut().zip(&factors.data).for_each(|(v, f)| *v *= f);
        if block == 0 {
            continue;
        }
        for run in row.chunks_exact_mut(block) {
            let before = run.to_vec();
            for (i, v) in run.iter_mut().enumerate() {
                let sign = |j: usize| if (i & j).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
                *v = before.iter().enumerate().map(|(j, b)| sign(j) * b).sum();
            }
        }
    }
}

/// Scale and zero point at `position`: those of the last point not after it, or of the first.
fn curve(points: &Array, position: f64) -> (f64, f64) {
    let mut found = points.row(0);
    for i in 0..points.rows() {
        if points.row(i)[0] <= position {
            found = points.row(i);
        }
    }
    (found[1], found[2])
}

/// `(n, h, w, c) -> (n, h / p, w / p, p * p * c)`.
fn patchify(x: &Array, p: usize) -> Array {
    // Frames lie below each other.
    let [n, h, w, c] = match x.dims[..] {
        [n, f, h, w, c] => [n, f * h, w, c],
        [n, h, w, c] => [n, h, w, c],
        _ => panic!("neither image nor video: {:?}", x.dims),
    };
    let mut out = Array::new(&[n, h / p, w / p, p * p * c], |_| 0.0);
    each_pixel(&[n, h, w, c], p, |pixel, patch| out.data[patch] = x.data[pixel]);
    out
}

/// `(n, h, w, p * p * c) -> (n, h * p, w * p, c)`.
fn unpatchify(x: &Array, p: usize) -> Array {
    let [n, h, w, f] = x.dims[..] else { panic!("not an image: {:?}", x.dims) };
    let mut out = Array::new(&[n, h * p, w * p, f / p / p], |_| 0.0);
    let dims = out.dims.clone();
    each_pixel(&dims, p, |pixel, patch| out.data[pixel] = x.data[patch]);
    out
}

/// Pairs the place of each element of an image with its place among patches.
fn each_pixel(dims: &[usize], p: usize, mut f: impl FnMut(usize, usize)) {
    let [n, h, w, c] = *dims else { panic!("not an image: {dims:?}") };
    for i in 0..n * h * w * c {
        let (sample, y, x, channel) = (i / c / w / h, i / c / w % h, i / c % w, i % c);
        let patch = (sample * (h / p) + y / p) * (w / p) + x / p;
        f(i, ((patch * p + y % p) * p + x % p) * c + channel);
    }
}
