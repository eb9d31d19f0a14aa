//! What text encoders and their prompts add: norms without means, products of layers, biases by distance, and attention that
//! is told how many keys there are.

use super::cases::{Case, Check, case, dynamic, identity, linear, rng_of};
use super::{Build, CONTEXT, LABELS, SAMPLE, TIMESTEP, inputs, normal, normals};
use aquatint::raw::program::{
    Act, Add, Attend, Attention, Columns, Concat, Dim, Embedding, Input, InputKind, LayerNorm, Linear, Modulation,
    Multiply, Op, Parameter, QuantizeGrain, RelativeBias, Slice, TimestepEmbedding, Value,
};
use fastrand::Rng;

/// A model of `channels` channels that reads prompts of `features` features, if any, and with `lengths` how many of its keys
/// count: of those of each condition, or without prompts of each sample.
pub fn build(channels: usize, features: Option<usize>, lengths: bool) -> Build {
    let mut b = features.map_or_else(|| Build::new(channels), |features| Build::with_context(channels, features));
    if lengths {
        let dims = vec![if features.is_some() { Dim::Conditions } else { Dim::Batch }];
        b.program.inputs.push(Input { kind: InputKind::Lengths, dims });
    }
    b
}

/// A bias of attention, if it is `biased`, and the lengths that the model reads.
pub fn masks(
    b: &mut Build,
    rng: &mut Rng,
    [heads, queries, keys]: [usize; 3],
    biased: bool,
) -> (Option<Value>, Option<Value>) {
    let bias = biased.then(|| {
        let tensor = b.f32(&[heads, queries, keys], &normals(rng, heads * queries * keys));
        b.op(Op::Parameter(Parameter { tensor, ..Parameter::default() }))
    });
    (bias, b.program.input(InputKind::Lengths))
}

/// Attention in floats with biases and lengths: no keys, one, tails of tiles, several blocks, more than there are; causal, and
/// to prompts.
pub fn attention_masked() -> Vec<Case> {
    let mut cases = Vec::new();
    #[allow(clippy::type_complexity)] // the columns of a table
    let sizes: [(usize, [usize; 2], usize, usize, bool, Option<usize>, Option<&[u32]>, bool); 13] = [
        (1, [1, 1], 1, 4, false, None, None, true),
        (2, [1, 2], 2, 5, false, None, Some(&[1, 2]), true),
        (3, [17, 1], 3, 16, false, None, Some(&[0, 17, 6]), false),
        (2, [11, 7], 2, 64, false, None, Some(&[76, 12]), true),
        (1, [193, 1], 1, 40, false, None, None, true),
        (1, [17, 17], 1, 72, false, None, Some(&[288]), true),
        (2, [10, 31], 1, 8, false, None, Some(&[289, u32::MAX]), true),
        (2, [7, 3], 1, 165, false, None, Some(&[20, 0]), true),
        (2, [33, 3], 1, 24, true, None, Some(&[50, 99]), true),
        (3, [3, 3], 2, 40, false, Some(77), Some(&[11, 77]), false),
        (3, [3, 5], 2, 12, false, Some(301), Some(&[300, 0]), false),
        (2, [2, 9], 1, 33, false, Some(1), Some(&[1, 0]), false),
        (2, [5, 7], 2, 128, false, None, None, true),
    ];
    for (n, tokens, heads, e, causal, context, lengths, biased) in sizes {
        let name = format!("attention {n}x{tokens:?} {heads}x{e} {causal} {context:?} {lengths:?} bias {biased}");
        let rng = &mut rng_of(&name);
        let d = heads * e;
        let mut b = build(d, context.map(|_| 32), lengths.is_some());
        let (source, features) = if context.is_some() { (CONTEXT, 32) } else { (SAMPLE, d) };
        let mut mix = |b: &mut Build| {
            let numbers = normals(rng, d * features).iter().map(|v| v / (features as f32).sqrt()).collect::<Vec<_>>();
            b.f32(&[d, features], &numbers)
        };
        let (w_k, w_v) = (mix(&mut b), mix(&mut b));
        let (k, v) = (b.op(linear(source, w_k)), b.op(linear(source, w_v)));
        let keys = context.unwrap_or(tokens[0] * tokens[1]);
        let (bias, lengths_value) = masks(&mut b, rng, [heads, tokens[0] * tokens[1], keys], biased);
        let attend = Attend { causal, per_condition: context.is_some(), int8: false };
        let scale = 1.0 / (e as f32).sqrt();
        let (heads, lengths_of) = (heads as u32, lengths_value);
        b.op(Op::Attention(Attention {
            q: SAMPLE,
            k,
            v,
            heads,
            scale,
            attend,
            softmax: None,
            bias,
            lengths: lengths_of,
            ..Attention::default()
        }));
        let mut inputs = inputs([n, tokens[0], tokens[1], d], || normal(rng));
        if let Some(keys) = context {
            inputs.dims.tokens = keys;
            inputs.dims.conditions = 2;
            inputs.labels = vec![0; 2];
            inputs.context = normals(rng, 2 * keys * 32);
            inputs.conditions = (0..n as u32).map(|i| (i + 1) % 2).collect();
        }
        inputs.lengths = lengths.unwrap_or_default().to_vec();
        // Scores of unit size and biases of up to six, of which all errors grow.
        cases.push(case(name, b, inputs, Check::Close { k: d, gain: 12.0 }));
    }
    cases
}

/// Norms without means: with and without weights, modulated, as codes; of values far from zero, which have a mean.
pub fn rms_norm() -> Vec<Case> {
    let mut cases = Vec::new();
    for (i, [n, h, w, d]) in
        [[1, 1, 1, 1], [2, 1, 3, 5], [3, 4, 4, 16], [2, 5, 9, 72], [3, 1, 2, 1152]].into_iter().enumerate()
    {
        for (weighted, modulated, bits) in
            [(true, false, None), (false, true, None), (true, false, Some(8)), (true, true, Some(4))]
        {
            let name = format!("rms norm {:?} weight {weighted} modulated {modulated} {bits:?}", [n, h, w, d]);
            let rng = &mut rng_of(&name);
            let mut b = Build::new(d);
            let table = b.f32(&[4, 2 * d + 3], &normals(rng, 4 * (2 * d + 3)));
            let value = b.op(Op::Embedding(Embedding { index: LABELS, table }));
            let weight = weighted.then(|| b.f32(&[d], &normals(rng, d)));
            let y = b.op(Op::LayerNorm(LayerNorm {
                x: SAMPLE,
                weight,
                bias: None,
                eps: [1e-6, 0.5][i % 2],
                modulation: modulated.then_some(Modulation { value, scale: d as u32 + 2, shift: 1 }),
                quantize: bits.map(|bits| dynamic(bits, QuantizeGrain::Row)),
                rms: true,
                ..LayerNorm::default()
            }));
            let check = match bits {
                None => Check::Close { k: d, gain: 2.0 },
                Some(bits) => {
                    let weight = identity(&mut b, d);
                    b.op(linear(y, weight));
                    Check::Step { step: 40.0 / f64::from((1u16 << bits) - 1) }
                }
            };
            let inputs = inputs([n, h, w, d], || 1.5 + normal(rng));
            cases.push(case(name, b, inputs, check));
        }
    }
    cases
}

/// Products of values, alone and as a gated layer of two weights has them.
pub fn products() -> Vec<Case> {
    let mut cases = Vec::new();
    for (n, h, w, d) in [(1, 1, 1, 1), (2, 3, 5, 19), (3, 1, 17, 148), (2, 40, 30, 12)] {
        let name = format!("multiply {n}x{h}x{w}x{d}");
        let rng = &mut rng_of(&name);
        let mut b = Build::new(d);
        b.op(Op::Multiply(Multiply { a: SAMPLE, b: SAMPLE }));
        cases.push(case(name, b, inputs([n, h, w, d], || normal(rng)), Check::Close { k: 0, gain: 0.25 }));
        let name = format!("gated by another layer {n}x{h}x{w}x{d}");
        let mut b = Build::new(d);
        let mut layer = |b: &mut Build, act| {
            let numbers: Vec<f32> = normals(rng, 9 * d).iter().map(|v| v / (d as f32).sqrt()).collect();
            let weight = b.f32(&[9, d], &numbers);
            b.op(Op::Linear(Linear { x: SAMPLE, weight, bias: None, act, gate: None, residual: None }))
        };
        let (gate, value) = (layer(&mut b, Act::GeluTanh), layer(&mut b, Act::None));
        b.op(Op::Multiply(Multiply { a: gate, b: value }));
        // As of a gated layer of one weight: see `cases_text`.
        cases.push(case(name, b, inputs([n, h, w, d], || normal(rng)), Check::Close { k: d, gain: 26.0 }));
    }
    cases
}

/// Biases by distance, of tokens and of features: fewer tokens than buckets are exact for, one more, and far beyond the last.
pub fn relative_bias() -> Vec<Case> {
    let mut cases = Vec::new();
    for (tokens, heads, buckets, max_distance, half) in [
        (1, 1, 32, 128, false),
        (8, 3, 32, 128, true),
        (17, 2, 32, 128, false),
        (150, 2, 32, 128, false),
        (40, 5, 4, 2, true),
        (70, 1, 64, 65, false),
        (33, 4, 20, 1000, false),
    ] {
        for index in [false, true] {
            let name = format!("bias of {tokens} tokens {heads} heads {buckets} to {max_distance} {half} {index}");
            let rng = &mut rng_of(&name);
            let mut b = Build::with(4, &[(InputKind::Tokens, vec![Dim::Batch, Dim::Fixed(tokens)])]);
            let index_of = b.input(InputKind::Tokens);
            let numbers = normals(rng, buckets * heads);
            let dims = [buckets, heads];
            let table = if half { b.f16(&dims, &numbers) } else { b.f32(&dims, &numbers) };
            let rows = b.f32(&[1, 6], &normals(rng, 6));
            let features = b.op(Op::Embedding(Embedding { index: index_of, table: rows }));
            let x = if index { index_of } else { features };
            b.op(Op::RelativeBias(RelativeBias { x, table, buckets: buckets as u32, max_distance }));
            let mut inputs = inputs([2, 1, 1, 4], || 0.0);
            inputs.tokens = vec![0; 2 * tokens as usize];
            cases.push(case(name, b, inputs, Check::Exact));
        }
    }
    cases
}

/// A text encoder's block on values beyond what f16 holds, made by weights that it does hold: the residual stream is wide and
/// the rest is narrow.
pub fn wide_stream() -> Vec<Case> {
    let mut cases = Vec::new();
    for (n, t, heads, e, lengths) in [(1, 5, 1, 8, [5, 0]), (2, 19, 3, 8, [7, 19]), (2, 40, 2, 64, [40, 33])] {
        let name = format!("block of {n}x{t} {heads}x{e}");
        let rng = &mut rng_of(&name);
        let d = heads * e;
        let text = [(InputKind::Tokens, vec![Dim::Batch, Dim::Fixed(t)]), (InputKind::Lengths, vec![Dim::Batch])];
        let mut b = Build::with(d, &text);
        let table = b.f32(&[32, heads], &normals(rng, 32 * heads));
        let mut weight = |b: &mut Build, o: usize, k: usize, size: f32| {
            let numbers: Vec<f32> = normals(rng, o * k).iter().map(|v| size * v / (k as f32).sqrt()).collect();
            b.f32(&[o, k], &numbers)
        };
        let layer = |x, weight, act, residual| Op::Linear(Linear { x, weight, bias: None, act, gate: None, residual });
        let norm = |x, weight| {
            Op::LayerNorm(LayerNorm { x, weight: Some(weight), eps: 1e-6, rms: true, ..LayerNorm::default() })
        };
        let w = weight(&mut b, d, d, 3e4);
        let x = wide(&mut b, layer(SAMPLE, w, Act::None, None));
        let ones = b.f32(&[d], &vec![1.0; d]);
        let y = b.op(norm(x, ones));
        let [q, k, v] = [0; 3].map(|_| {
            let w = weight(&mut b, d, d, 1.0);
            b.op(layer(y, w, Act::None, None))
        });
        let tokens = b.input(InputKind::Tokens);
        let bias = Some(b.op(Op::RelativeBias(RelativeBias { x: tokens, table, buckets: 32, max_distance: 128 })));
        let lengths_of = b.program.input(InputKind::Lengths);
        let (heads, scale) = (heads as u32, 1.0 / (e as f32).sqrt());
        let attend = Attend::default();
        let y = b.op(Op::Attention(Attention {
            q,
            k,
            v,
            heads,
            scale,
            attend,
            softmax: None,
            bias,
            lengths: lengths_of,
            ..Attention::default()
        }));
        let w = weight(&mut b, d, d, 3e4);
        let x = wide(&mut b, layer(y, w, Act::None, Some(x)));
        let y = b.op(norm(x, ones));
        let (w_gate, w_value) = (weight(&mut b, 3 * d, d, 1.0), weight(&mut b, 3 * d, d, 3e4));
        let gate = b.op(layer(y, w_gate, Act::GeluTanh, None));
        let value = wide(&mut b, layer(y, w_value, Act::None, None));
        let y = wide(&mut b, Op::Multiply(Multiply { a: gate, b: value }));
        let w = weight(&mut b, d, 3 * d, 1.0);
        let x = wide(&mut b, layer(y, w, Act::None, Some(x)));
        b.op(norm(x, ones));
        let mut inputs = inputs([n, t as usize, 1, d], || normal(rng));
        inputs.tokens = vec![0; n * t as usize];
        inputs.lengths = lengths[..n].to_vec();
        // Three norms, each of which divides by what the layers before have rounded.
        cases.push(case(name, b, inputs, Check::Close { k: 3 * d, gain: 32.0 }));
    }
    cases
}

/// A node whose result is kept in 32 bits.
fn wide(b: &mut Build, op: Op) -> Value {
    let value = b.op(op);
    b.program.nodes.last_mut().expect("just added").wide = true;
    value
}

/// Tables of scales, shifts and gates that are added to what the timestep makes, as one row or cut: `table[6, d] + t` and
/// `table[2, d] + t` with `t` once per row.
pub fn tables_of_modulations() -> Vec<Case> {
    let mut cases = Vec::new();
    for (d, half) in [(4, false), (20, true), (36, false)] {
        let name = format!("tables of modulations {d} half {half}");
        let rng = &mut rng_of(&name);
        let mut b = Build::new(d);
        let time = Op::TimestepEmbedding(TimestepEmbedding { t: TIMESTEP, dim: d as u32, cos_first: true, shift: 0.0 });
        let t = b.op(time);
        let labels = b.f32(&[5, d], &normals(rng, 5 * d));
        let class = b.op(Op::Embedding(Embedding { index: LABELS, table: labels }));
        let t = b.op(Op::Add(Add { a: t, b: class }));
        let numbers: Vec<f32> = normals(rng, 6 * d * d).iter().map(|v| v / (d as f32).sqrt()).collect();
        let weight = b.f32(&[6 * d, d], &numbers);
        let six = b.op(linear(t, weight));
        let mut row = |b: &mut Build, rows: usize| {
            let numbers = normals(rng, rows * d);
            let tensor = if half { b.f16(&[rows, d], &numbers) } else { b.f32(&[rows, d], &numbers) };
            b.op(Op::Parameter(Parameter { tensor, flat: true, ..Parameter::default() }))
        };
        let table = row(&mut b, 6);
        let value = b.op(Op::Add(Add { a: six, b: table }));
        let columns = |i: usize| (i * d) as u32;
        let norm = |x, value, [shift, scale]: [usize; 2]| {
            let modulation = Some(Modulation { value, scale: columns(scale), shift: columns(shift) });
            Op::LayerNorm(LayerNorm { x, eps: 1e-6, modulation, ..LayerNorm::default() })
        };
        let y = b.op(norm(SAMPLE, value, [0, 1]));
        let numbers: Vec<f32> = normals(rng, d * d).iter().map(|v| v / (d as f32).sqrt()).collect();
        let weight = b.f32(&[d, d], &numbers);
        let gate = Some(Columns { value, offset: columns(5) });
        let x = b.op(Op::Linear(Linear { x: y, weight, bias: None, act: Act::None, gate, residual: Some(SAMPLE) }));
        // The last norm's table of two rows is added to the same t twice; its halves are cut out and put together again.
        let two = b.op(Op::Concat(Concat { a: t, b: t, tokens: false }));
        let numbers = normals(rng, 2 * d);
        let tensor = b.f32(&[2, d], &numbers);
        let table = b.op(Op::Parameter(Parameter { tensor, flat: true, ..Parameter::default() }));
        let value = b.op(Op::Add(Add { a: two, b: table }));
        let halves = [0, d]
            .map(|first| b.op(Op::Slice(Slice { x: value, first: first as u32, count: d as u32, tokens: false })));
        let value = b.op(Op::Concat(Concat { a: halves[0], b: halves[1], tokens: false }));
        b.op(norm(x, value, [0, 1]));
        let mut inputs = inputs([3, 2, 3, d], || normal(rng));
        inputs.dims.conditions = 2;
        inputs.labels = vec![4, 1];
        inputs.conditions = vec![1, 0, 1];
        // Angles of up to 500 are rounded by 2^-24 of themselves, and two norms magnify what is modulated by up to ten.
        cases.push(case(name, b, inputs, Check::Close { k: 4 * d, gain: 256.0 }));
    }
    cases
}
