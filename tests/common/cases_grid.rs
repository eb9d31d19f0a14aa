//! What is rounded to grids and stays floats: activations, and the probabilities of attention.

use super::cases::{Case, Check, case, dynamic, linear, rng_of};
use super::cases_encoder::{build, masks};
use super::naive::{self, Array};
use super::naive_attention::Masks;
use super::{Build, CONTEXT, SAMPLE, inputs, normal, normals};
use aquatint::raw::program::{
    Attend, Attention, CurveAxis, Op, Pointwise, QuantizeGrain, QuantizeRange, QuantizeSpec, Round, SoftmaxGrid,
};

/// Half a unit in the last place of f32, relatively.
const U: f64 = 1.0 / (1 << 24) as f64;

/// Rounding: every grain and width, runs of columns with ranges of their own, ranges of curves, groups without a range.
pub fn rounded() -> Vec<Case> {
    let mut cases = Vec::new();
    for [n, h, w, d, parts] in [[1, 1, 1, 1, 0], [2, 3, 1, 5, 0], [3, 1, 7, 16, 2], [2, 9, 9, 33, 3], [2, 1, 3, 320, 8]]
    {
        for (bits, grain) in [(8, QuantizeGrain::Row), (6, QuantizeGrain::Row), (8, QuantizeGrain::Sample)] {
            for (mean, spread) in [(0.0, 1.0), (500.0, 0.5), (7.25, 0.0), (0.0, 0.0)] {
                let parts = if grain == QuantizeGrain::Row { parts } else { 0 };
                let name = format!("round a{bits} {grain:?} {:?} in {parts} mean {mean} spread {spread}", [n, h, w, d]);
                let rng = &mut rng_of(&name);
                let mut b = Build::new(d);
                b.op(Op::Round(Round { x: SAMPLE, spec: dynamic(bits, grain), parts: parts as u32 }));
                let inputs = inputs([n, h, w, d], || mean + spread * normal(rng));
                let levels = f64::from((1u16 << bits) - 1);
                let step = f64::from(spread) * 12.0 / levels + f64::from(mean.abs()) * f64::from(f32::EPSILON);
                let check = if spread == 0.0 { Check::Close { k: 1, gain: 1.0 } } else { Check::Step { step } };
                cases.push(case(name, b, inputs, check));
            }
        }
        for bits in [2, 5, 8] {
            let name = format!("round by a curve a{bits} {:?} in {parts}", [n, h, w, d]);
            let rng = &mut rng_of(&name);
            let mut b = Build::new(d);
            let step = 8.0 / f64::from((1u16 << bits) - 1);
            let zero = f32::from((1u16 << bits) / 2);
            // The row that holds at the timestep of the inputs, and one that does not.
            let curve = b.f32(&[2, 3], &[0.0, step as f32, zero, 1e6, 77.0, 3.0]);
            let range = QuantizeRange::curve(curve, CurveAxis::Timestep);
            let spec = QuantizeSpec { bits, grain: QuantizeGrain::Row, range };
            b.op(Op::Round(Round { x: SAMPLE, spec, parts: parts as u32 }));
            cases.push(case(name, b, inputs([n, h, w, d], || normal(rng)), Check::Step { step }));
        }
    }
    cases
}

/// How far a result may be off, element by element: what f32 makes of scores, weights and sums, and a step for each code that
/// lies so near to a tie that this may move it.
struct Bound<'a> {
    operands: [&'a Array; 3],
    heads: usize,
    scale: f64,
    masks: &'a Masks<'a>,
    top: f64,
    delta: Option<f64>,
}

impl Bound<'_> {
    fn allowed(&self) -> Vec<f64> {
        let [q, k, v] = self.operands;
        let (d, e) = (q.cols(), q.cols() / self.heads);
        let (tq, tk) = (q.rows() / q.dims[0], k.rows() / k.dims[0]);
        let sums = |n: usize| (16.0 + 4.0 * (n as f64).sqrt()) * U;
        let mut allowed = vec![0.0; q.data.len()];
        for (row, head) in (0..q.rows()).flat_map(|row| (0..self.heads).map(move |head| (row, head))) {
            let columns = head * e..(head + 1) * e;
            let (first, seen) = self.masks.keys(row / tq, row % tq, tk);
            let bias = |j: usize| self.masks.bias(head, row % tq, j);
            let products = |j: usize, f: fn(f64) -> f64| -> f64 {
                let pairs = q.row(row)[columns.clone()].iter().zip(&k.row(first + j)[columns.clone()]);
                self.scale * pairs.map(|(a, b)| f(a * b)).sum::<f64>()
            };
            let scores: Vec<f64> = (0..seen).map(|j| products(j, |x| x) + bias(j)).collect();
            let largest = (0..seen).map(|j| products(j, f64::abs) + bias(j).abs()).fold(0.0, f64::max);
            let highest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|s| (s - highest).exp()).collect();
            let total: f64 = weights.iter().sum();
            // Relatively: two scores, the exponential, and sums of as many weights as there are keys.
            let off = 2.0 * largest * sums(e) + 8.0 * U + sums(seen);
            let unit = self.delta.unwrap_or(1.0 / (total * self.top));
            let code = |j: usize| weights[j] / total / unit;
            let on_tie = |j: usize| ((code(j) - code(j).floor()) - 0.5).abs() <= code(j) * off + 1e-9;
            for c in columns.clone() {
                let value = |j: usize| v.row(first + j)[c].abs();
                let moved: f64 = (0..seen).filter(|&j| on_tie(j)).map(|j| unit * value(j)).sum();
                let all: f64 = (0..seen).map(|j| unit * code(j).round().min(self.top) * value(j)).sum();
                allowed[row * d + c] = moved + all * (off + sums(seen));
            }
        }
        allowed
    }
}

/// One key to several blocks of them, tails of every tile, flat and peaked softmaxes; steps of the data and of a curve, among
/// them one that the highest probabilities are beyond.
pub fn attention_on_grid() -> Vec<Case> {
    let mut cases = Vec::new();
    #[allow(clippy::type_complexity)] // the columns of a table
    let sizes: [(usize, [usize; 2], usize, usize, f32, bool, Option<usize>, Option<&[u32]>, bool); 15] = [
        (1, [1, 1], 1, 1, 1.0, false, None, None, false),
        (2, [1, 2], 2, 5, 1.0, false, None, None, false),
        (3, [17, 1], 3, 16, 1.0, false, None, None, false),
        (2, [11, 7], 2, 64, 1.0, false, None, None, false),
        (1, [193, 1], 1, 40, 2.0, false, None, None, false),
        (1, [31, 10], 1, 72, 0.1, false, None, None, false),
        (1, [7, 3], 1, 300, 1.0, false, None, None, false),
        (1, [33, 9], 1, 24, 1.0, true, None, None, false),
        (2, [19, 1], 2, 20, 2.0, true, None, None, false),
        (3, [5, 4], 2, 40, 1.0, false, Some(77), None, false),
        (2, [2, 9], 1, 33, 1.0, false, Some(301), None, false),
        (2, [11, 3], 2, 5, 1.0, false, None, None, true),
        (3, [5, 4], 2, 40, 1.0, false, Some(77), Some(&[33, 0]), false),
        (2, [19, 1], 2, 20, 1.0, true, None, Some(&[7, 20]), true),
        (2, [2, 9], 1, 33, 1.0, false, Some(301), Some(&[288, 5]), false),
    ];
    for (n, tokens, heads, e, size, causal, context, lengths, biased) in sizes {
        for (bits, fixed) in
            [(8u8, None), (16, None), (8, Some(1.0 / 255.0)), (8, Some(1.0 / 2000.0)), (16, Some(1.0 / 65535.0))]
        {
            let masked =
                if lengths.is_some() || biased { format!(" {lengths:?} bias {biased}") } else { String::new() };
            let name = format!(
                "attention on {bits} bits {fixed:?} {n}x{tokens:?} {heads}x{e} size {size} {causal} {context:?}{masked}"
            );
            let rng = &mut rng_of(&name);
            let d = heads * e;
            let mut b = build(d, context.map(|_| d), lengths.is_some());
            let of_keys = if context.is_some() { CONTEXT } else { SAMPLE };
            let numbers: Vec<f32> = normals(rng, d * d).iter().map(|v| v / (d as f32).sqrt()).collect();
            let weight = b.f32(&[d, d], &numbers);
            let k = b.op(linear(of_keys, weight));
            let v = b.op(Op::Pointwise(Pointwise { x: of_keys, mul: 1.0 / size, add: 0.25, ..Default::default() }));
            let range = fixed.map_or(QuantizeRange::Dynamic, |delta| {
                QuantizeRange::curve(b.f32(&[2, 3], &[0.0, delta, 0.0, 1e6, 0.5, 0.0]), CurveAxis::Timestep)
            });
            let (scale, softmax) = (1.0 / (e as f32).sqrt(), Some(SoftmaxGrid { bits, range }));
            let attend = Attend { causal, per_condition: context.is_some(), int8: false };
            let keys = context.unwrap_or(tokens[0] * tokens[1]);
            let sizes = [heads, tokens[0] * tokens[1], keys];
            let (bias, seen) = masks(&mut b, rng, sizes, biased);
            let attention = Attention {
                q: SAMPLE,
                k,
                v,
                heads: heads as u32,
                scale,
                attend,
                softmax,
                bias,
                lengths: seen,
                ..Attention::default()
            };
            b.op(Op::Attention(attention));
            let mut inputs = inputs([n, tokens[0], tokens[1], d], || size * normal(rng));
            if let Some(keys) = context {
                inputs.dims.tokens = keys;
                inputs.dims.conditions = 2;
                inputs.labels = vec![0; 2];
                inputs.context = normals(rng, 2 * keys * d).iter().map(|x| size * x).collect();
                inputs.conditions = (0..n as u32).map(|i| (i + 1) % 2).collect();
            }
            inputs.lengths = lengths.unwrap_or_default().to_vec();
            let values = naive::run(&b.program, &b.tensors, &inputs);
            let operands = [SAMPLE, k, v].map(|x| &values[x.0 as usize]);
            let top = f64::from((1u32 << bits) - 1);
            let (masks, delta) = (&Masks::new(&attention, &values, &inputs), fixed.map(f64::from));
            let allowed = Bound { operands, heads, scale: scale.into(), masks, top, delta }.allowed();
            // Narrow scores move codes by more than a tie is near; a few of them meet in one element.
            let most = operands[2].data.iter().fold(0.0f64, |m, x| m.max(x.abs()));
            let step = 3.0 * most * fixed.map_or(1.0, f64::from).min(1.0 / 255.0).max(1.0 / top);
            let gain = f64::from(4.0 + 8.0 * size * size);
            cases.push(case(name, b, inputs, Check::Within { allowed, k: d, gain, step }));
        }
    }
    cases
}
