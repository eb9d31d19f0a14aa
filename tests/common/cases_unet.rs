//! What text-guided UNets and their decoders need beyond other networks: modulated group norms, resampling, vector
//! quantization, tensors as values, tokens, and embeddings of several numbers.

use super::cases::{Case, Check, case, dynamic, identity, linear, rng_of};
use super::naive::{Array, Inputs};
use super::{Build, LABELS, SAMPLE, inputs, normal, normals};
use aquatint::raw::program::{
    Act, Add, Concat, CurveAxis, Dim, Embedding, GroupNorm, InputKind, Linear, Modulation, Op, Parameter,
    QuantizeGrain, QuantizeRange, QuantizeSpec, Resample, Resampling, TimestepEmbedding, VectorQuantize,
};

/// Modulated group norms: of fewer conditions than samples, floats and codes, a large mean.
pub fn group_norm_modulated() -> Vec<Case> {
    let mut cases = Vec::new();
    for (i, ([n, h, w, c], groups)) in
        [([1, 1, 1, 4], 1), ([2, 3, 5, 12], 4), ([3, 8, 8, 32], 32), ([3, 9, 11, 20], 5), ([1, 13, 10, 64], 32)]
            .into_iter()
            .enumerate()
    {
        for grain in [None, Some(QuantizeGrain::Row), Some(QuantizeGrain::Sample)] {
            for (mean, spread, fixed) in [(0.0, 1.0, false), (1000.0, 0.05, false), (-2.0, 3.0, true)] {
                if fixed && grain.is_none() {
                    continue;
                }
                let name = format!("modulated group norm {:?}/{groups} {grain:?} mean {mean}", [n, h, w, c]);
                let rng = &mut rng_of(&name);
                let mut b = Build::new(c);
                let (weight, bias) = (b.f32(&[c], &normals(rng, c)), b.f32(&[c], &normals(rng, c)));
                let table = b.f32(&[4, 2 * c + 3], &normals(rng, 4 * (2 * c + 3)));
                let value = b.op(Op::Embedding(Embedding { index: LABELS, table }));
                let curve = b.f32(&[1, 3], &[0.0, 0.0625, 100.0]);
                let range =
                    if fixed { QuantizeRange::curve(curve, CurveAxis::Timestep) } else { QuantizeRange::Dynamic };
                let quantize = grain.map(|grain| QuantizeSpec { range, ..dynamic(8, grain) });
                // Scale before shift, and shift before scale.
                let (scale, shift) = if i % 2 == 0 { (1, c as u32 + 3) } else { (c as u32 + 2, 0) };
                let y = b.op(Op::GroupNorm(GroupNorm {
                    x: SAMPLE,
                    weight,
                    bias,
                    groups,
                    eps: 1e-6,
                    modulation: Some(Modulation { value, scale, shift }),
                    act: [Act::Silu, Act::None][i % 2],
                    quantize,
                }));
                let check = match quantize {
                    None => Check::Close { k: 1, gain: 2.0 + f64::from(mean / spread).abs() },
                    Some(_) => {
                        let weight = identity(&mut b, c);
                        b.op(linear(y, weight));
                        Check::Step { step: if fixed { 0.0625 } else { 40.0 / 255.0 } }
                    }
                };
                let mut inputs = inputs([n, h, w, c], || mean + spread * normal(rng));
                if n == 3 {
                    inputs.dims.conditions = 2;
                    inputs.labels = vec![3, 1];
                    inputs.conditions = vec![1, 1, 0];
                }
                cases.push(case(name, b, inputs, check));
            }
        }
    }
    cases
}

/// More pixels and fewer; odd ones at the end have no mean.
pub fn resample() -> Vec<Case> {
    let mut cases = Vec::new();
    for [n, h, w, c] in [[1, 1, 1, 3], [1, 2, 2, 1], [2, 3, 5, 12], [3, 8, 6, 32], [2, 9, 11, 20], [1, 4, 3, 64]] {
        for how in [Resampling::Nearest, Resampling::Mean] {
            if how == Resampling::Mean && h.min(w) == 1 {
                continue; // no pixel is left
            }
            let name = format!("resample {how:?} {:?}", [n, h, w, c]);
            let rng = &mut rng_of(&name);
            let mut b = Build::new(c);
            b.op(Op::Resample(Resample { x: SAMPLE, how }));
            let check = if how == Resampling::Nearest { Check::Exact } else { Check::Close { k: 4, gain: 1.0 } };
            cases.push(case(name, b, inputs([n, h, w, c], || normal(rng)), check));
        }
    }
    cases
}

/// Nearest rows: any number of rows and columns, exact ties, and distances that rounding alone tells apart.
pub fn vector_quantize() -> Vec<Case> {
    let mut cases = Vec::new();
    for ([n, h, w], d, rows) in [
        ([1, 1, 1], 1, 1),
        ([2, 3, 5], 3, 7),
        ([3, 4, 4], 4, 129),
        ([1, 9, 9], 8, 256),
        ([2, 5, 7], 3, 1000),
        ([1, 8, 8], 16, 33),
        ([3, 1, 1], 100, 130),
    ] {
        for (kind, spread) in [("normal", 1.0), ("sphere", 1e-8)] {
            let name = format!("vector quantize {kind} {:?} x {d}, {rows} rows", [n, h, w]);
            let rng = &mut rng_of(&name);
            let mut b = Build::new(d);
            let mut numbers = normals(rng, rows * d);
            if kind == "sphere" {
                // All rows are as far from 0, up to rounding.
                for row in numbers.chunks_exact_mut(d) {
                    let length = row.iter().map(|v| v * v).sum::<f32>().sqrt();
                    row.iter_mut().for_each(|v| *v /= length);
                }
            }
            let table = b.f32(&[rows, d], &numbers);
            let nearest = b.op(Op::VectorQuantize(VectorQuantize { x: SAMPLE, table }));
            b.op(Op::Concat(Concat { a: nearest, b: SAMPLE, tokens: false }));
            let check = Check::Nearest { table: Array::of(&[rows, d], &numbers), half: false };
            cases.push(case(name, b, inputs([n, h, w, d], || spread * normal(rng)), check));
        }
    }
    for (d, rows) in [(1, 40), (2, 17), (3, 300)] {
        let name = format!("vector quantize ties {d} {rows}");
        let rng = &mut rng_of(&name);
        let mut b = Build::new(d);
        // Halves between few whole numbers: many rows are equally near, and all distances are exact.
        let numbers: Vec<f32> = (0..rows * d).map(|_| f32::from(rng.i8(-2..=2))).collect();
        let table = b.f32(&[rows, d], &numbers);
        b.op(Op::VectorQuantize(VectorQuantize { x: SAMPLE, table }));
        cases.push(case(name, b, inputs([2, 7, 11, d], || f32::from(rng.i8(-5..=5)) / 2.0), Check::Exact));
    }
    cases
}

/// Tensors as values, rows of tables per token, several numbers embedded side by side, and all that a prompt gives.
pub fn prompt() -> Vec<Case> {
    let mut cases = Vec::new();
    for (i, dims) in [&[7][..], &[3, 11], &[2, 3, 5], &[2, 1, 4, 16]].into_iter().enumerate() {
        for (half, rows) in [(false, 0), (true, 0), (false, 2), (true, 1)] {
            let rng = &mut rng_of("parameter");
            let mut b = Build::new(4);
            let numbers = normals(rng, dims.iter().product());
            let tensor = if half { b.f16(dims, &numbers) } else { b.f32(dims, &numbers) };
            b.op(Op::Parameter(Parameter { tensor, rows, ..Parameter::default() }));
            let inputs = inputs([1 + i % 3, 1, 1, 4], || 0.0);
            cases.push(case(format!("parameter {dims:?} half {half} rows {rows}"), b, inputs, Check::Exact));
        }
    }
    for (n, t, d, half) in [(1, 1, 1, false), (2, 5, 12, true), (3, 7, 33, false), (2, 77, 8, true)] {
        let name = format!("tokens {n}x{t}x{d} half {half}");
        let rng = &mut rng_of(&name);
        for positions in [false, true] {
            let mut b = Build::with(4, &[(InputKind::Tokens, vec![Dim::Batch, Dim::Fixed(t as u32)])]);
            let index = b.input(InputKind::Tokens);
            let numbers = normals(rng, 50 * d);
            let table = if half { b.f16(&[50, d], &numbers) } else { b.f32(&[50, d], &numbers) };
            let rows = b.op(Op::Embedding(Embedding { index, table }));
            if positions {
                let tensor = b.f32(&[t, d], &normals(rng, t * d));
                let grid = b.op(Op::Parameter(Parameter { tensor, ..Parameter::default() }));
                b.op(Op::Add(Add { a: rows, b: grid }));
            }
            let mut inputs = inputs([n, 1, 1, 4], || 0.0);
            inputs.tokens = (0..n * t).map(|i| [49, 0, rng.u32(..50)][i % 3]).collect();
            let check = if positions { Check::Close { k: 1, gain: 1.0 } } else { Check::Exact };
            cases.push(case(format!("{name} positions {positions}"), b, inputs, check));
        }
    }
    for (conditions, k, dim, cos_first, shift) in
        [(1, 1, 4, true, 0.0), (2, 6, 256, true, 0.0), (3, 5, 30, false, 1.0), (1, 2, 16, true, 1.0)]
    {
        let name = format!("embedding of {conditions}x{k} numbers in {dim}");
        let rng = &mut rng_of(&name);
        let mut b = Build::with(4, &[(InputKind::Sizes, vec![Dim::Conditions, Dim::Fixed(k as u32)])]);
        let t = b.input(InputKind::Sizes);
        b.op(Op::TimestepEmbedding(TimestepEmbedding { t, dim, cos_first, shift }));
        let mut inputs = inputs([conditions, 1, 1, 4], || 0.0);
        inputs.sizes = (0..conditions * k).map(|i| [1024.0, 0.0, 6.0, 2.5, 768.0 * rng.f32()][i % 5]).collect();
        // Angles of up to 1024 are rounded to f32.
        cases.push(case(name, b, inputs, Check::Close { k: 1, gain: 1.0 + 1024.0 / 8.0 }));
    }
    for conditions in [1, 2, 3] {
        let name = format!("context and pooled vectors of {conditions} conditions");
        let rng = &mut rng_of(&name);
        let (tokens, d, e) = (5, 12, 7);
        let mut b = Build::with(
            4,
            &[
                (InputKind::Context, vec![Dim::Conditions, Dim::Tokens, Dim::Fixed(d)]),
                (InputKind::Pooled, vec![Dim::Conditions, Dim::Fixed(e)]),
            ],
        );
        let (context, pooled) = (b.input(InputKind::Context), b.input(InputKind::Pooled));
        let (d, e) = (d as usize, e as usize);
        let weight = b.f32(&[d, d], &normals(rng, d * d));
        let x = b.op(linear(context, weight));
        let weight = b.f32(&[4, e], &normals(rng, 4 * e));
        let y = b.op(linear(pooled, weight));
        // Every row of the result sees the whole context of its condition, and of the others what repeats.
        let columns = b.f32(&[4, d], &normals(rng, 4 * d));
        b.op(Op::Linear(Linear { x, weight: columns, bias: None, act: Act::None, gate: None, residual: Some(y) }));
        let numbers = |rng: &mut fastrand::Rng, n: usize| normals(rng, n);
        let sample = inputs([conditions, 1, 1, 4], || 0.0);
        let dims = aquatint::raw::program::Dims { tokens, ..sample.dims };
        let context = numbers(rng, conditions * tokens * d);
        let pooled = numbers(rng, conditions * e);
        let inputs = Inputs { dims, context, pooled, ..sample };
        cases.push(case(name, b, inputs, Check::Close { k: d * d, gain: 4.0 }));
    }
    cases
}
