//! What transformers need that turn queries by positions and read two texts: rotary embedding, norms of heads and norms that
//! only shift, tokens joined and cut out, rows in place of padding.

use super::cases::{Case, Check, case, dynamic, identity, linear, rng_of};
use super::naive::Inputs;
use super::{Build, LABELS, SAMPLE, inputs, normal, normals};
use aquatint::raw::program::{
    Act, Add, Attention, Columns, Concat, Dim, Embedding, InputKind, LayerNorm, Op, PadRows, Parameter, Pointwise,
    PositionEmbedding, QuantizeGrain, Rotary, Slice, Value,
};

/// Positions that keep the ratio of sides, and heads turned by them: squares, lines, sides whose spans are rounded up and down
/// and to 0, odd numbers of pairs, tails; a table that repeats for every sample.
pub fn rotary() -> Vec<Case> {
    let mut cases = Vec::new();
    for (n, h, w, heads, e, base) in [
        (1, 1, 1, 1, 4, 32),
        (3, 3, 3, 2, 12, 32),
        (2, 2, 5, 3, 8, 32),
        (1, 7, 3, 1, 20, 32),
        (2, 64, 48, 2, 88, 32),
        (1, 1, 40, 2, 4, 16),
        (3, 40, 1, 1, 12, 7),
        (1, 3, 200, 1, 8, 32),
    ] {
        for (keep_ratio, interpolation) in [(true, 1.0), (false, 1.0), (true, 0.5)] {
            let name = format!("rotary {n}x{h}x{w}x{heads}x{e} base {base} ratio {keep_ratio} / {interpolation}");
            let rng = &mut rng_of(&name);
            let mut b = Build::new(heads * e);
            let grid = PositionEmbedding {
                x: SAMPLE,
                dim: e as u32,
                base,
                interpolation,
                keep_ratio,
                grid: Default::default(),
            };
            let table = b.op(Op::PositionEmbedding(grid));
            b.op(Op::Rotary(Rotary { x: SAMPLE, table, heads: heads as u32 }));
            // Two products and a sum of numbers of about the same size.
            let inputs = inputs([n, h, w, heads * e], || normal(rng));
            cases.push(case(name, b, inputs, Check::Close { k: 2, gain: 1.0 }));
        }
    }
    cases
}

/// Norms of heads: every kernel's length of a part, tails, with and without means and weights.
pub fn layer_norm_parts() -> Vec<Case> {
    let mut cases = Vec::new();
    for (i, (n, h, w, parts, e)) in
        [(1, 1, 1, 1, 4), (2, 1, 3, 2, 5), (3, 4, 4, 3, 16), (1, 5, 9, 16, 88), (2, 1, 2, 2, 577)]
            .into_iter()
            .enumerate()
    {
        for (affine, rms, mean) in [(true, false, 0.0), (false, false, 100.0), (true, true, 1.0)] {
            let name = format!("layer norm of {parts} parts of {e}, {n}x{h}x{w} {affine} {rms} mean {mean}");
            let rng = &mut rng_of(&name);
            let d = parts * e;
            let mut b = Build::new(d);
            let weight = affine.then(|| b.f32(&[e], &normals(rng, e)));
            let bias = (affine && !rms && i != 1).then(|| b.f32(&[e], &normals(rng, e)));
            b.op(Op::LayerNorm(LayerNorm {
                x: SAMPLE,
                weight,
                bias,
                eps: 1e-6,
                rms,
                parts: parts as u32,
                ..LayerNorm::default()
            }));
            let inputs = inputs([n, h, w, d], || mean + normal(rng));
            cases.push(case(name, b, inputs, Check::Close { k: e, gain: 2.0 + f64::from(mean) }));
        }
    }
    cases
}

/// Norms that only shift: of fewer conditions than samples, floats and codes, rows and columns that are aligned and that are not.
pub fn layer_norm_shifted() -> Vec<Case> {
    let mut cases = Vec::new();
    for ([n, h, w, d], offset, spare) in [
        ([1, 1, 1, 2], 0, 0),
        ([2, 1, 3, 5], 3, 1),
        ([3, 4, 4, 16], 8, 8),
        ([2, 5, 9, 72], 1, 4),
        ([3, 1, 2, 1408], 0, 0),
    ] {
        for (affine, quantize) in [(true, None), (false, None), (true, Some(8)), (false, Some(4))] {
            let name = format!("shifted layer norm {:?} from {offset} {affine} {quantize:?}", [n, h, w, d]);
            let rng = &mut rng_of(&name);
            let mut b = Build::new(d);
            let cols = offset + d + spare;
            let table = b.f32(&[4, cols], &normals(rng, 4 * cols));
            let value = b.op(Op::Embedding(Embedding { index: LABELS, table }));
            let weight = affine.then(|| b.f32(&[d], &normals(rng, d)));
            let bias = affine.then(|| b.f32(&[d], &normals(rng, d)));
            let y = b.op(Op::LayerNorm(LayerNorm {
                x: SAMPLE,
                weight,
                bias,
                eps: 1e-6,
                shift: Some(Columns { value, offset: offset as u32 }),
                quantize: quantize.map(|bits| dynamic(bits, QuantizeGrain::Row)),
                ..LayerNorm::default()
            }));
            let check = match quantize {
                None => Check::Close { k: d, gain: 2.0 },
                Some(bits) => {
                    let weight = identity(&mut b, d);
                    b.op(linear(y, weight));
                    Check::Step { step: 40.0 / f64::from((1u16 << bits) - 1) }
                }
            };
            let mut inputs = inputs([n, h, w, d], || normal(rng));
            if n == 3 {
                inputs.dims.conditions = 2;
                inputs.labels = vec![3, 1];
                inputs.conditions = vec![1, 1, 0];
            }
            cases.push(case(name, b, inputs, check));
        }
    }
    cases
}

/// Inputs of two texts: `texts` of `tokens` of `d` features each, and how many of them count.
fn texts(b: &mut Build, rng: &mut fastrand::Rng, n: usize, [t, u]: [usize; 2], d: usize) -> ([Value; 4], Inputs) {
    let [context, context_2, lengths, lengths_2] =
        [InputKind::Context, InputKind::Context2, InputKind::Lengths, InputKind::Lengths2].map(|kind| b.input(kind));
    let mut inputs = inputs([n, 1, 1, 4], || 0.0);
    inputs.dims.tokens = t;
    inputs.context = normals(rng, n * t * d);
    inputs.context_2 = normals(rng, n * u * d);
    // None, some, all.
    inputs.lengths = (0..n).map(|i| (i * t / 2) as u32).collect();
    inputs.lengths_2 = (0..n).map(|i| ((n - 1 - i) * u / 2) as u32).collect();
    ([context, context_2, lengths, lengths_2], inputs)
}

fn with_texts([t, u]: [usize; 2], d: usize) -> Build {
    let features = |tokens: usize| vec![Dim::Conditions, Dim::Fixed(tokens as u32), Dim::Fixed(d as u32)];
    Build::with(
        4,
        &[
            (InputKind::Context, features(t)),
            (InputKind::Context2, features(u)),
            (InputKind::Lengths, vec![Dim::Conditions]),
            (InputKind::Lengths2, vec![Dim::Conditions]),
        ],
    )
}

/// Tokens of two texts, one after the other, and some of them; rows in place of what does not count; rows of one value beside
/// those of another that has more; and the mean of all tokens.
pub fn tokens() -> Vec<Case> {
    let mut cases = Vec::new();
    for (n, [t, u], d) in [(1, [1, 1], 1), (3, [5, 7], 12), (3, [7, 2], 16), (2, [6, 9], 33)] {
        let name = format!("texts {n} x {t} and {u} x {d}");
        let rng = &mut rng_of(&name);
        let mut b = with_texts([t, u], d);
        let ([first, second, ..], inputs) = texts(&mut b, rng, n, [t, u], d);
        b.op(Op::Concat(Concat { a: first, b: second, tokens: true }));
        cases.push(case(format!("{name}: joined"), b, inputs, Check::Exact));
        for (from, count) in [(0, 1), (t / 2, (t + u).div_ceil(2)), (t + u - 1, 1)] {
            let mut b = with_texts([t, u], d);
            let ([first, second, ..], inputs) = texts(&mut b, rng, n, [t, u], d);
            let all = b.op(Op::Concat(Concat { a: first, b: second, tokens: true }));
            b.op(Op::Slice(Slice { x: all, first: from as u32, count: count as u32, tokens: true }));
            cases.push(case(format!("{name}: {count} from {from}"), b, inputs, Check::Exact));
        }
        for half in [false, true] {
            for is_second in [false, true] {
                let mut b = with_texts([t, u], d);
                let ([first, second, lengths, lengths_2], inputs) = texts(&mut b, rng, n, [t, u], d);
                let numbers = normals(rng, (t + u + 1) * d);
                let table = if half { b.f16(&[t + u + 1, d], &numbers) } else { b.f32(&[t + u + 1, d], &numbers) };
                let (x, lengths, first) = if is_second { (second, lengths_2, t as u32) } else { (first, lengths, 1) };
                b.op(Op::PadRows(PadRows { x, lengths, table, first }));
                cases.push(case(format!("{name}: padded {is_second} half {half}"), b, inputs, Check::Exact));
            }
        }
        let mut b = with_texts([t, u], d);
        let ([_, second, ..], inputs) = texts(&mut b, rng, n, [t, u], d);
        let row = b.f32(&[1, 3], &normals(rng, 3));
        let row = b.op(Op::Parameter(Parameter { tensor: row, ..Parameter::default() }));
        b.op(Op::Concat(Concat { a: second, b: row, tokens: false }));
        cases.push(case(format!("{name}: a row beside all"), b, inputs, Check::Exact));

        let mut b = with_texts([t, u], d);
        let ([_, second, ..], inputs) = texts(&mut b, rng, n, [t, u], d);
        let q = b.op(Op::Slice(Slice { x: second, first: 0, count: 1, tokens: true }));
        let mean =
            b.op(Op::Attention(Attention { q, k: second, v: second, heads: 1, scale: 0.0, ..Attention::default() }));
        b.op(Op::Add(Add { a: mean, b: mean }));
        cases.push(case(format!("{name}: mean"), b, inputs, Check::Close { k: u, gain: 2.0 }));
    }
    // In the loop, where values may be narrow: pixels are tokens of a sample.
    for (n, h, w, d) in [(1, 1, 2, 3), (3, 2, 5, 8), (2, 4, 3, 20)] {
        let name = format!("rows beside pixels {n}x{h}x{w}x{d}");
        let rng = &mut rng_of(&name);
        let mut b = Build::new(d);
        let grid = PositionEmbedding {
            x: SAMPLE,
            dim: 4,
            base: 5,
            interpolation: 1.0,
            keep_ratio: false,
            grid: Default::default(),
        };
        let grid = b.op(Op::PositionEmbedding(grid));
        let x = b.op(Op::Pointwise(Pointwise { x: SAMPLE, act: Act::None, mul: 2.0, add: 0.0 }));
        b.op(Op::Concat(Concat { a: x, b: grid, tokens: false }));
        cases.push(case(name, b, inputs([n, h, w, d], || normal(rng)), Check::Close { k: 1, gain: 1.0 }));
    }
    cases
}
