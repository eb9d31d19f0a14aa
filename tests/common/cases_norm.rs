//! Norms, with everything they fuse.

use super::cases::{Case, Check, case, dynamic, identity, linear, picking, rng_of};
use super::{Build, LABELS, SAMPLE, inputs, normal, normals};
use aquatint::raw::program::{
    Act, CurveAxis, Embedding, GroupNorm, LayerNorm, Modulation, Op, Quantize, QuantizeGrain, QuantizeRange,
    QuantizeSpec, Turn,
};

/// Quantization alone: every grain and width, constant groups, groups with a narrow range far from zero.
pub fn quantize() -> Vec<Case> {
    use QuantizeGrain::{Row, Sample};
    let mut cases = Vec::new();
    for [n, h, w, d] in [[1, 1, 1, 1], [2, 3, 1, 5], [3, 1, 7, 16], [2, 9, 9, 33]] {
        for (bits, grain) in [(8, Row), (6, Row), (4, Row), (2, Row), (8, Sample), (3, Sample)] {
            for (mean, spread) in [(0.0, 1.0), (500.0, 0.5), (-3e4, 4.0), (7.25, 0.0), (0.0, 0.0), (1e-3, 1e-7)] {
                let name = format!("quantize a{bits} {grain:?} {:?} mean {mean} spread {spread}", [n, h, w, d]);
                let rng = &mut rng_of(&name);
                let mut b = Build::new(d);
                let q = b.op(Op::Quantize(Quantize { x: SAMPLE, spec: dynamic(bits, grain), turn: None }));
                let weight = identity(&mut b, d);
                b.op(linear(q, weight));
                let inputs = inputs([n, h, w, d], || mean + spread * normal(rng));
                let levels = f64::from((1u16 << bits) - 1);
                // What an f32 resolves at this distance from zero limits the codes too.
                let step = f64::from(spread) * 12.0 / levels + f64::from(mean.abs()) * f64::from(f32::EPSILON);
                let check = if spread == 0.0 { Check::Close { k: d, gain: 1.0 } } else { Check::Step { step } };
                cases.push(case(name, b, inputs, check));
            }
        }
    }
    cases
}

/// Factors and rotations before the codes: rows of every kernel's length, tails, blocks of every size.
pub fn turned() -> Vec<Case> {
    let mut cases = Vec::new();
    let shapes = [
        (1, 0),
        (5, 0),
        (33, 0),
        (1152, 0),
        (8, 8),
        (24, 8),
        (48, 16),
        (96, 32),
        (320, 64),
        (384, 128),
        (512, 256),
        (1152, 128),
        (1536, 256),
        (2304, 256),
        (4608, 256),
        (9216, 256),
    ];
    for (i, (d, block)) in shapes.into_iter().enumerate() {
        for (j, (bits, fixed)) in [(8, false), (5, false), (8, true)].into_iter().enumerate() {
            if d > 2000 && j > 0 {
                continue;
            }
            let name = format!("turned a{bits} fixed {fixed} d {d} block {block}");
            let rng = &mut rng_of(&name);
            let mut b = Build::new(d);
            // As a rotation has them: of unit length, with signs, and smoothing of up to a factor of 4.
            let unit = 1.0 / (block.max(1) as f32).sqrt();
            let factor =
                |rng: &mut fastrand::Rng| unit * if rng.bool() { -1.0 } else { 1.0 } * (0.25 + 3.75 * rng.f32());
            let factors: Vec<f32> = (0..d).map(|_| factor(rng)).collect();
            let factors = b.f32(&[d], &factors);
            let levels = f64::from((1u16 << bits) - 1);
            let step = 40.0 / levels;
            let range = match fixed {
                true => QuantizeRange::curve(b.f32(&[1, 3], &[0.0, step as f32, 120.0]), CurveAxis::Timestep),
                false => QuantizeRange::Dynamic,
            };
            let spec = QuantizeSpec { range, ..dynamic(bits, QuantizeGrain::Row) };
            let q = b.op(Op::Quantize(Quantize { x: SAMPLE, spec, turn: Some(Turn { factors, block }) }));
            // Some columns of the result, the first and the last among them.
            let shown: Vec<usize> = (0..d.min(12)).map(|k| if k == 0 { d - 1 } else { (k - 1) * 37 % d }).collect();
            let weight = picking(&mut b, d, &shown);
            b.op(linear(q, weight));
            let [n, h, w] = [[1, 1, 1], [2, 3, 1], [3, 1, 3]][i % 3];
            cases.push(case(name, b, inputs([n, h, w, d], || normal(rng)), Check::Step { step }));
        }
    }
    cases
}

/// Layer norms: with and without weights, modulation of fewer conditions than samples, and codes.
pub fn layer_norm() -> Vec<Case> {
    let mut cases = Vec::new();
    for (i, [n, h, w, d]) in
        [[1, 1, 1, 2], [2, 1, 3, 5], [3, 4, 4, 16], [2, 5, 9, 72], [3, 1, 2, 1152]].into_iter().enumerate()
    {
        for (affine, modulated) in [(false, false), (true, false), (false, true), (true, true)] {
            for quantize in [None, Some(8), Some(4)] {
                for (mean, spread) in [(0.0, 1.0), (1000.0, 2.0)] {
                    let name = format!("layer norm {:?} {affine} {modulated} {quantize:?} mean {mean}", [n, h, w, d]);
                    let rng = &mut rng_of(&name);
                    let mut b = Build::new(d);
                    let table = b.f32(&[4, 2 * d + 3], &normals(rng, 4 * (2 * d + 3)));
                    let value = b.op(Op::Embedding(Embedding { index: LABELS, table }));
                    let norm = Op::LayerNorm(LayerNorm {
                        x: SAMPLE,
                        weight: affine.then(|| b.f32(&[d], &normals(rng, d))),
                        bias: (affine && i % 2 == 0).then(|| b.f32(&[d], &normals(rng, d))),
                        eps: 1e-6,
                        modulation: modulated.then_some(Modulation { value, scale: d as u32 + 2, shift: 1 }),
                        quantize: quantize.map(|bits| dynamic(bits, QuantizeGrain::Row)),
                        ..LayerNorm::default()
                    });
                    let y = b.op(norm);
                    let check = match quantize {
                        // Rounding of the input is magnified by mean over spread.
                        None => Check::Close { k: d, gain: 2.0 + f64::from(mean / spread) },
                        Some(bits) => {
                            let weight = identity(&mut b, d);
                            b.op(linear(y, weight));
                            Check::Step { step: 40.0 / f64::from((1u16 << bits) - 1) }
                        }
                    };
                    let mut inputs = inputs([n, h, w, d], || mean + spread * normal(rng));
                    if n == 3 {
                        inputs.dims.conditions = 2;
                        inputs.labels = vec![3, 1];
                        inputs.conditions = vec![1, 1, 0];
                    }
                    cases.push(case(name, b, inputs, check));
                }
            }
        }
    }
    cases
}

/// Group norms: any number of groups, activations, codes per pixel and per sample, a large mean.
pub fn group_norm() -> Vec<Case> {
    let mut cases = Vec::new();
    for ([n, h, w, c], groups) in
        [([1, 1, 1, 4], 1), ([2, 3, 5, 12], 4), ([3, 8, 8, 32], 32), ([2, 9, 11, 20], 5), ([1, 13, 10, 64], 32)]
    {
        for act in [Act::None, Act::Silu] {
            for grain in [None, Some(QuantizeGrain::Row), Some(QuantizeGrain::Sample)] {
                for (mean, spread, fixed) in [(0.0, 1.0, false), (1000.0, 0.05, false), (-2.0, 3.0, true)] {
                    if fixed && grain.is_none() {
                        continue;
                    }
                    let name = format!("group norm {:?}/{groups} {act:?} {grain:?} mean {mean}", [n, h, w, c]);
                    let rng = &mut rng_of(&name);
                    let mut b = Build::new(c);
                    let weight = b.f32(&[c], &normals(rng, c));
                    let bias = b.f32(&[c], &normals(rng, c));
                    let curve = b.f32(&[1, 3], &[0.0, 0.0625, 100.0]);
                    let range =
                        if fixed { QuantizeRange::curve(curve, CurveAxis::Timestep) } else { QuantizeRange::Dynamic };
                    let quantize = grain.map(|grain| QuantizeSpec { range, ..dynamic(8, grain) });
                    let y = b.op(Op::GroupNorm(GroupNorm {
                        x: SAMPLE,
                        weight,
                        bias,
                        groups,
                        eps: 1e-6,
                        modulation: None,
                        act,
                        quantize,
                    }));
                    let check = match quantize {
                        None => Check::Close { k: 1, gain: 2.0 + f64::from(mean / spread).abs() },
                        Some(_) => {
                            let weight = identity(&mut b, c);
                            b.op(linear(y, weight));
                            Check::Step { step: if fixed { 0.0625 } else { 10.0 / 255.0 } }
                        }
                    };
                    cases.push(case(name, b, inputs([n, h, w, c], || mean + spread * normal(rng)), check));
                }
            }
        }
    }
    cases
}
