//! Attention in 8-bit codes: what its rounding may cost, worked out from the exact operands.

use super::cases::{Case, Check, case, linear, rng_of};
use super::cases_encoder::{build, masks};
use super::naive::{self, Array};
use super::naive_attention::Masks;
use super::{Build, CONTEXT, SAMPLE, inputs, normal, normals};
use aquatint::raw::program::{Attend, Attention, Op, Tensor};
use fastrand::Rng;

/// Keys whose weights share a highest code.
const BLOCK: usize = 288;

/// Deviation of a rounding error, in steps: uniform on a step.
const UNIFORM: f64 = 0.288_675_134_594_812_9;

/// How far a result may be off, element by element, and what its deviation is.
///
/// With weights `w` (summing to 1) and result `o = sum w v`, scores off by `x_j` and values off by `y_j` move it by
/// `sum w_j (x_j (v_j - o) + y_j)` to first order. Rounding errors are uniform on a step:
///
/// - of `q`: one error vector for all keys, so at most the sum of the deviations of `w_j x_j (v_j - o)`;
/// - of `k` (and its product with that of `q`): independent from key to key, so squares add up;
/// - of `v`, likewise;
/// - of weights: thresholds spread evenly over a code, so a code `c + f` is off with a variance of `f (1 - f) <= 1/4`; a
///   code is the 255th part of the highest weight of its block. The exponential is 7.5e-5 off.
///
/// Six deviations are allowed; to second order and beyond, `|e^x - 1| <= |x| e^|x|` for the weights and once more for
/// their sum. Sums of f32 come on top as elsewhere.
fn tolerance([q, k, v]: [&Array; 3], heads: usize, scale: f64, masks: &Masks<'_>) -> [Vec<f64>; 2] {
    let (d, e) = (q.cols(), q.cols() / heads);
    let (tq, tk) = (q.rows() / q.dims[0], k.rows() / k.dims[0]);
    let norm = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>().sqrt();
    let step = |x: &[f64]| x.iter().fold(0.0f64, |m, x| m.max(x.abs())) / 127.0;
    let (mut allowed, mut deviation) = (vec![0.0; q.data.len()], vec![0.0; q.data.len()]);
    for (row, head) in (0..q.rows()).flat_map(|row| (0..heads).map(move |head| (row, head))) {
        let columns = head * e..(head + 1) * e;
        let (first, seen) = masks.keys(row / tq, row % tq, tk);
        let tk = masks.length(row / tq);
        let query = &q.row(row)[columns.clone()];
        let mean: Vec<f64> =
            columns.clone().map(|c| (0..tk).map(|j| k.row(first + j)[c]).sum::<f64>() / tk as f64).collect();
        let keys: Vec<Vec<f64>> = (0..seen)
            .map(|j| k.row(first + j)[columns.clone()].iter().zip(&mean).map(|(k, mean)| k - mean).collect())
            .collect();
        let product = |k: &[f64]| scale * k.iter().zip(query).map(|(a, b)| a * b).sum::<f64>();
        let scores: Vec<f64> =
            keys.iter().enumerate().map(|(j, k)| product(k) + masks.bias(head, row % tq, j)).collect();
        let highest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|s| (s - highest).exp()).collect();
        let total: f64 = weights.iter().sum();
        let weights: Vec<f64> = weights.iter().map(|w| w / total).collect();
        let of_q: Vec<f64> = keys.iter().map(|k| scale * UNIFORM * step(query) * norm(k)).collect();
        let of_k: Vec<f64> = keys
            .iter()
            .map(|k| {
                let both = (e as f64).sqrt() * UNIFORM * step(query);
                scale * UNIFORM * step(k) * norm(&[norm(query), both])
            })
            .collect();
        let most = of_q.iter().zip(&of_k).map(|(a, b)| 6.0 * norm(&[*a, *b])).fold(0.0, f64::max);
        let code = |j: usize| weights[j / BLOCK * BLOCK..].iter().take(BLOCK).copied().fold(0.0, f64::max) / 255.0;
        let codes: Vec<f64> = (0..seen).map(code).collect();
        for c in columns {
            let values: Vec<f64> = (0..seen).map(|j| v.row(first + j)[c]).collect();
            let o: f64 = weights.iter().zip(&values).map(|(w, v)| w * v).sum();
            let far: Vec<f64> = values.iter().map(|v| (v - o).abs()).collect();
            let all = (0..tk).map(|j| v.row(first + j)[c]);
            let [low, high] = [f64::min, f64::max].map(|f| all.clone().reduce(f).unwrap());
            let value = UNIFORM * (high - low) / 254.0;
            let sum = |f: &dyn Fn(usize) -> f64| (0..seen).map(f).sum::<f64>();
            let shared = sum(&|j| weights[j] * of_q[j] * far[j]);
            let own = sum(&|j| {
                (weights[j] * of_k[j] * far[j]).powi(2)
                    + (weights[j] * value).powi(2)
                    + (0.5 * codes[j] * far[j]).powi(2)
            });
            let one = norm(&[shared, own.sqrt()]);
            deviation[row * d + c] = one;
            allowed[row * d + c] = 6.0 * one * (2.0 * most).exp() + 7.5e-5 * sum(&|j| weights[j] * far[j]);
        }
    }
    [allowed, deviation]
}

/// A linear layer that keeps the size of what it is given.
fn mix(b: &mut Build, rng: &mut Rng, d: usize) -> Tensor {
    let numbers: Vec<f32> = normals(rng, d * d).iter().map(|v| v / (d as f32).sqrt()).collect();
    b.f32(&[d, d], &numbers)
}

/// One key to several blocks of them, tails of every tile, flat and peaked softmaxes, keys and values far from zero.
pub fn attention_int8() -> Vec<Case> {
    let mut cases = Vec::new();
    #[allow(clippy::type_complexity)] // the columns of a table
    let sizes: [(usize, [usize; 2], usize, usize, f32, f32, bool, Option<usize>, Option<&[u32]>, bool); 21] = [
        (1, [1, 1], 1, 1, 1.0, 0.0, false, None, None, false),
        (2, [1, 2], 2, 5, 1.0, 0.0, false, None, None, false),
        (3, [17, 1], 3, 16, 1.0, 3.0, false, None, None, false),
        (2, [11, 7], 2, 64, 1.0, 0.0, false, None, None, false),
        (1, [193, 1], 1, 40, 3.0, 0.0, false, None, None, false),
        (1, [17, 17], 2, 40, 0.1, 0.0, false, None, None, false),
        (1, [31, 10], 1, 72, 2.0, -5.0, false, None, None, false),
        (3, [1, 65], 1, 160, 1.0, 0.0, false, None, None, false),
        (1, [7, 3], 1, 509, 1.0, 0.0, false, None, None, false),
        (1, [26, 24], 1, 8, 3.0, 0.0, false, None, None, false),
        (1, [33, 9], 1, 24, 1.0, 0.0, true, None, None, false),
        (2, [19, 1], 2, 20, 2.0, 0.0, true, None, None, false),
        (3, [5, 4], 2, 40, 1.0, 1.0, false, Some(77), None, false),
        (2, [3, 3], 1, 12, 1.0, 0.0, false, Some(1), None, false),
        (2, [2, 9], 1, 33, 1.0, 0.0, false, Some(301), None, false),
        (2, [19, 1], 2, 20, 1.0, 0.0, false, None, None, true),
        (3, [33, 9], 1, 24, 1.0, 0.0, true, None, None, true),
        (3, [17, 17], 1, 16, 1.0, 0.0, false, None, Some(&[289, 1, 288]), false),
        (3, [5, 4], 2, 40, 1.0, 1.0, false, Some(77), Some(&[33, 64]), false),
        (2, [2, 9], 1, 33, 1.0, 0.0, false, Some(301), Some(&[300, 5]), false),
        (2, [19, 1], 2, 20, 2.0, 0.0, true, None, Some(&[7, 19]), true),
    ];
    for (n, tokens, heads, e, size, mean, causal, context, lengths, biased) in sizes {
        let masked = if lengths.is_some() || biased { format!(" {lengths:?} bias {biased}") } else { String::new() };
        let name = format!(
            "int8 attention {n}x{tokens:?} heads {heads}x{e} size {size} mean {mean} causal {causal} {context:?}{masked}"
        );
        let rng = &mut rng_of(&name);
        let d = heads * e;
        let mut b = build(d, context.map(|_| d), lengths.is_some());
        let of_keys = if context.is_some() { CONTEXT } else { SAMPLE };
        let (w_k, w_v) = (mix(&mut b, rng, d), mix(&mut b, rng, d));
        let (k, v) = (b.op(linear(of_keys, w_k)), b.op(linear(of_keys, w_v)));
        let scale = 1.0 / (e as f32).sqrt();
        let attend = Attend { causal, per_condition: context.is_some(), int8: true };
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
            bias,
            lengths: seen,
            ..Attention::default()
        };
        let y = b.op(Op::Attention(attention));
        let mut inputs = inputs([n, tokens[0], tokens[1], d], || mean + size * normal(rng));
        if let Some(keys) = context {
            inputs.dims.tokens = keys;
            inputs.dims.conditions = 2;
            inputs.labels = vec![0; 2];
            inputs.context = normals(rng, 2 * keys * d).iter().map(|x| mean + size * x).collect();
            inputs.conditions = (0..n as u32).map(|i| (i + 1) % 2).collect();
        }
        inputs.lengths = lengths.unwrap_or_default().to_vec();
        let values = naive::run(&b.program, &b.tensors, &inputs);
        let operands = [SAMPLE, k, v].map(|x| &values[x.0 as usize]);
        let masks = Masks::new(&attention, &values, &inputs);
        let [mut allowed, deviation] = tolerance(operands, heads, scale.into(), &masks);
        let want = &values[y.0 as usize].data;
        let rms = (want.iter().map(|x| x * x).sum::<f64>() / want.len() as f64).sqrt();
        let largest = operands[1].data.iter().fold(0.0f64, |m, x| m.max(x.abs()));
        // Biases are at most 6, and are added to scores that f32 holds.
        let added = if biased { 6.0 } else { 0.0 };
        let floats = (2.0 + added + 4.0 * largest * f64::from(mean.abs() + size)) * (16.0 + 4.0 * (d as f64).sqrt());
        allowed.iter_mut().zip(want).for_each(|(a, w)| *a += floats * (w.abs() + rms) / f64::from(1 << 24));
        cases.push(case(name, b, inputs, Check::Rounded { allowed, deviation }));
    }
    cases
}
