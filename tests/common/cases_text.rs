//! What text-guided networks add: gated linear layers, causal masks, and attention over the tokens of a prompt.

use super::cases::{Case, Check, case, coded, dynamic, linear, rng_of};
use super::{Build, CONTEXT, Codec, LABELS, SAMPLE, inputs, normal, normals};
use aquatint::raw::program::{
    Act, Attend, Attention, Embedding, GatedLinear, Linear, Op, Pointwise, Quantize, QuantizeGrain, Tensor,
};
use fastrand::Rng;

/// `(rows, inputs, results)`: tails of every tile, on either side of its middle.
const GATED: &[([usize; 3], usize, usize)] = &[
    ([1, 1, 1], 1, 1),
    ([1, 1, 2], 3, 3),
    ([3, 1, 1], 5, 8),
    ([2, 2, 1], 16, 9),
    ([1, 1, 5], 40, 23),
    ([2, 1, 3], 72, 24),
    ([1, 7, 1], 100, 25),
    ([2, 2, 2], 577, 33),
    ([3, 3, 1], 16, 65),
    ([1, 17, 1], 72, 1),
    ([3, 10, 10], 40, 50),
];

/// How close a gated result must be. Each factor may be as far off as a linear layer's result, relative to itself and to
/// its own root mean square; the other factor, at most six times its root mean square, multiplies that. With slopes of
/// at most 1.13 this makes `(2.13 |y| + 13 rms)` where a linear layer has `(|y| + rms)`, and activations halve the rms.
const GAIN: f64 = 26.0;

/// Gated linear layers on floats: every kind of weight and of activation.
pub fn gated_float() -> Vec<Case> {
    let mut cases = Vec::new();
    let codecs: Vec<_> = [None, None].into_iter().chain(Codec::all(false).into_iter().map(Some)).collect();
    let acts = [Act::GeluErf, Act::None, Act::QuickGelu, Act::GeluTanh, Act::Silu];
    for (which, codec) in codecs.iter().enumerate() {
        for (i, &([n, h, w], k, o)) in GATED.iter().enumerate() {
            if which >= 2 && (i + which) % 4 != 0 {
                continue; // Each codec sees a quarter of the sizes, f32 and f16 all of them.
            }
            // A single number is its own root mean square, and the tail of an activation is exact only absolutely.
            let act = if i == 0 { Act::None } else { acts[(i + which) % acts.len()] };
            let name = format!("gated {codec:?} #{which} {act:?} {:?}x{k}x{o}", [n, h, w]);
            let rng = &mut rng_of(&name);
            let mut b = Build::new(k);
            // Products of unit size, where the gate bends.
            let numbers: Vec<f32> = normals(rng, 2 * o * k).iter().map(|v| v / (k as f32).sqrt()).collect();
            let weight = match codec {
                Some(codec) => {
                    let matrix = codec.random(rng, 2 * o, k, false);
                    b.codes(&[2 * o, k], &matrix)
                }
                None if which == 0 => b.f32(&[2 * o, k], &numbers),
                None => b.f16(&[2 * o, k], &numbers),
            };
            let bias = (i % 3 != 0).then(|| b.f32(&[2 * o], &normals(rng, 2 * o)));
            b.op(Op::GatedLinear(GatedLinear { x: SAMPLE, weight, bias, act }));
            let inputs = inputs([n, h, w, k], || normal(rng));
            cases.push(case(name, b, inputs, Check::Close { k, gain: GAIN }));
        }
    }
    cases
}

/// Gated linear layers on codes, chosen so that value and gate are exact and only their product is rounded.
pub fn gated_exact() -> Vec<Case> {
    let mut cases = Vec::new();
    for (which, codec) in Codec::all(true).iter().enumerate() {
        for (i, &([n, h, w], k, o)) in GATED.iter().enumerate() {
            if (i + which) % 2 != 0 {
                continue;
            }
            let bits = [8, 6, 4][(i / 2 + which) % 3];
            let name = format!("gated exact {codec:?} a{bits} {:?}x{k}x{o}", [n, h, w]);
            let rng = &mut rng_of(&name);
            let mut b = Build::new(k);
            let q = b.op(Op::Quantize(Quantize { x: SAMPLE, spec: dynamic(bits, QuantizeGrain::Row), turn: None }));
            let mut matrix = codec.random(rng, 2 * o, k, true);
            // Sums of some tens, so that products of two are f16 but not subnormal.
            let size = 1.0 / f32::from(1u16 << (9 + k.ilog2().div_ceil(2)));
            matrix.scale.iter_mut().for_each(|s| *s *= size);
            let weight = b.codes(&[2 * o, k], &matrix);
            let whole: Vec<f32> = (0..2 * o).map(|_| size * f32::from(rng.i8(..))).collect();
            let bias = (i % 4 < 2).then(|| b.f32(&[2 * o], &whole));
            b.op(Op::GatedLinear(GatedLinear { x: q, weight, bias, act: Act::None }));
            let mut x = coded(rng, n * h * w, k, bits).into_iter();
            let inputs = inputs([n, h, w, k], || x.next().unwrap());
            // One rounding, to f32 or to f16; a wrong code is far beyond it.
            cases.push(case(name, b, inputs, Check::Close { k: 0, gain: 0.25 }));
        }
    }
    cases
}

/// A linear layer that keeps the size of what it is given.
fn mix(b: &mut Build, rng: &mut Rng, from: usize, to: usize) -> Tensor {
    let numbers: Vec<f32> = normals(rng, from * to).iter().map(|v| v / (from as f32).sqrt()).collect();
    b.f32(&[to, from], &numbers)
}

/// A query sees no later key: one row, tails of tiles, several blocks of keys.
pub fn attention_causal() -> Vec<Case> {
    let mut cases = Vec::new();
    for (n, tokens, heads, e, size) in [
        (1, [1, 1], 1, 4, 1.0),
        (2, [1, 2], 2, 5, 1.0),
        (3, [17, 1], 3, 16, 1.0),
        (2, [11, 7], 2, 64, 1.0),
        (1, [193, 1], 1, 40, 1.0),
        (1, [33, 9], 1, 72, 1.0),
        (1, [1, 65], 1, 160, 1.0),
        (1, [7, 3], 1, 512, 1.0),
        (2, [10, 31], 1, 24, 12.0),
    ] {
        let name = format!("causal attention {n}x{tokens:?} heads {heads}x{e} size {size}");
        let rng = &mut rng_of(&name);
        let d = heads * e;
        let mut b = Build::new(d);
        let (w_k, w_v) = (mix(&mut b, rng, d, d), mix(&mut b, rng, d, d));
        let (k, v) = (b.op(linear(SAMPLE, w_k)), b.op(linear(SAMPLE, w_v)));
        let scale = 1.0 / (e as f32).sqrt();
        let attend = Attend { causal: true, ..Attend::default() };
        b.op(Op::Attention(Attention { q: SAMPLE, k, v, heads: heads as u32, scale, attend, ..Attention::default() }));
        let gain = f64::from(2.0 + 4.0 * size * size);
        let inputs = inputs([n, tokens[0], tokens[1], d], || size * normal(rng));
        cases.push(case(name, b, inputs, Check::Close { k: d, gain }));
    }
    cases
}

/// Keys and values per condition: more samples than conditions, in another order; one key, and as many as prompts have.
pub fn attention_per_condition() -> Vec<Case> {
    let mut cases = Vec::new();
    for (conditions, tokens, heads, e) in [
        (vec![0], 77, 2, 40),
        (vec![1, 0], 77, 1, 64),
        (vec![1, 0, 1], 154, 2, 24),
        (vec![1, 1, 0], 5, 3, 12),
        (vec![0, 1, 0], 300, 1, 8),
        (vec![1, 0, 1], 9, 1, 164),
        (vec![2, 0], 1, 1, 16),
    ] {
        let name = format!("attention of samples to conditions {conditions:?}, {tokens} keys, heads {heads}x{e}");
        let rng = &mut rng_of(&name);
        let d = heads * e;
        let mut b = Build::with_context(d, 32);
        let (w_k, w_v) = (mix(&mut b, rng, 32, d), mix(&mut b, rng, 32, d));
        let (k, v) = (b.op(linear(CONTEXT, w_k)), b.op(linear(CONTEXT, w_v)));
        let attend = Attend { per_condition: true, ..Attend::default() };
        b.op(Op::Attention(Attention {
            q: SAMPLE,
            k,
            v,
            heads: heads as u32,
            scale: 1.0 / (e as f32).sqrt(),
            attend,
            ..Attention::default()
        }));
        let mut inputs = inputs([conditions.len(), 3, 11, d], || normal(rng));
        inputs.dims.tokens = tokens;
        inputs.dims.conditions = 1 + *conditions.iter().max().unwrap();
        inputs.labels = vec![0; inputs.dims.conditions];
        inputs.context = normals(rng, inputs.dims.conditions * tokens * 32);
        inputs.conditions = conditions.iter().map(|&c| c as u32).collect();
        cases.push(case(name, b, inputs, Check::Close { k: d, gain: 6.0 }));
    }
    for (heads, e) in [(1, 4), (2, 40)] {
        let name = format!("attention to one key per condition, heads {heads}x{e}");
        let rng = &mut rng_of(&name);
        let d = heads * e;
        let mut b = Build::new(d);
        let tables = [b.f32(&[5, d], &normals(rng, 5 * d)), b.f32(&[5, d], &normals(rng, 5 * d))];
        let [k, v] = tables.map(|table| b.op(Op::Embedding(Embedding { index: LABELS, table })));
        let attend = Attend { per_condition: true, ..Attend::default() };
        b.op(Op::Attention(Attention {
            q: SAMPLE,
            k,
            v,
            heads: heads as u32,
            scale: 0.3,
            attend,
            ..Attention::default()
        }));
        let mut inputs = inputs([3, 2, 5, d], || normal(rng));
        inputs.dims.conditions = 2;
        inputs.labels = vec![4, 2];
        inputs.conditions = vec![1, 0, 1];
        // The softmax of one score is 1.
        cases.push(case(name, b, inputs, Check::Close { k: 0, gain: 0.25 }));
    }
    cases
}

/// The activations of text encoders, on their own: everywhere between the tails.
pub fn activations() -> Vec<Case> {
    let mut cases = Vec::new();
    for act in [Act::GeluErf, Act::QuickGelu] {
        for (n, h, w, d) in [(1, 1, 1, 1), (2, 3, 5, 19), (3, 1, 17, 148)] {
            let name = format!("pointwise {act:?} {n}x{h}x{w}x{d}");
            let rng = &mut rng_of(&name);
            let mut b = Build::new(d);
            b.op(Op::Pointwise(Pointwise { x: SAMPLE, act, mul: -1.75, add: 0.5 }));
            cases.push(case(name, b, inputs([n, h, w, d], || 2.0 * normal(rng)), Check::Close { k: 0, gain: 1.0 }));
        }
        let name = format!("linear then {act:?}");
        let rng = &mut rng_of(&name);
        let mut b = Build::new(40);
        let weight = mix(&mut b, rng, 40, 51);
        let bias = Some(b.f32(&[51], &normals(rng, 51)));
        b.op(Op::Linear(Linear { x: SAMPLE, weight, bias, act, gate: None, residual: None }));
        cases.push(case(name, b, inputs([2, 3, 3, 40], || normal(rng)), Check::Close { k: 40, gain: 4.0 }));
    }
    cases
}
