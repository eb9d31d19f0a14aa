//! Every op over odd sizes, tails, batches and codecs: models, inputs, and how close to the oracle a tier must come.

use super::naive::{Array, Inputs, distance};
use super::{Build, Codec, LABELS, SAMPLE, TIMESTEP, inputs, normal, normals};
use aquatint::raw::codec::{Bits, Grain, QuantizedMatrix, TableValues};
use aquatint::raw::program::{
    Act, Add, Attention, Columns, Concat, Conv2d, ConvStride, CurveAxis, Embedding, Linear, Op, Patchify, Pointwise,
    PositionEmbedding, Quantize, QuantizeGrain, QuantizeRange, QuantizeSpec, RangeCurve, Slice, Tensor,
    TimestepEmbedding, Unpatchify, Value,
};
use fastrand::Rng;
use half::f16;

/// Half a unit in the last place of f32, relatively.
const U: f64 = 1.0 / (1 << 24) as f64;

/// How close the result must be. `rms` is the root mean square of the oracle's result.
#[derive(Clone, Debug)]
pub enum Check {
    /// Equal: all sums are exact in f32.
    Exact,
    /// `|got - ref| <= gain * 2^-24 * (16 + 4 sqrt(k)) * (|ref| + rms)`: sums of `k` products with random rounding
    /// errors, and a dozen roundings around them. `gain` is the condition number of the op on this input.
    Close { k: usize, gain: f64 },
    /// Codes of rounded floats: a value on a tie may become the other code. Every element is within `1.3 * step`, and
    /// the root mean square of the differences within a quarter step, since ties are rare.
    Step { step: f64 },
    /// Values stored as f16: `|got - ref| <= gain * 2^-11 * (4 + sqrt(k) / 4) * (|ref| + rms) + 1.3 * step`. The terms of
    /// a sum may exceed their sum, and each brings an error of its own, but the sum is taken in f32.
    Half { k: usize, gain: f64, step: f64 },
    /// Within `allowed`, element by element; and together neither more off than `deviation` by half, nor so little that
    /// nothing can have been rounded.
    Rounded { allowed: Vec<f64>, deviation: Vec<f64> },
    /// Within `allowed`, element by element; of values stored as f16 as [`Half`](Self::Half) says.
    Within { allowed: Vec<f64>, k: usize, gain: f64, step: f64 },
    /// Rows of `table`, rounded to f16 if `half`, each beside the `d` numbers that it is nearest to. A squared distance
    /// `D` is a sum of terms without sign, each rounded at most `d + 2` times (a difference, its square, `d` sums), so
    /// in f32 it is within `g D`, `g = (d + 2) u / (1 - (d + 2) u)`. What looks nearest may therefore be as far as
    /// `(1 + g) / (1 - g)` times the least distance, and no farther.
    Nearest { table: Array, half: bool },
}

impl Check {
    /// Panics if `got` is not as close to `want` as it must be.
    pub fn compare(&self, name: &str, got: &[f32], want: &[f64]) {
        assert_eq!(got.len(), want.len(), "{name}: length");
        if let Check::Nearest { table, half } = self {
            return nearest(name, got, want, table, *half);
        }
        let rms = |x: &mut dyn Iterator<Item = f64>| (x.map(|v| v * v).sum::<f64>() / want.len() as f64).sqrt();
        let size = rms(&mut want.iter().copied());
        let difference = |i: usize| (f64::from(got[i]) - want[i]).abs();
        for i in 0..got.len() {
            let allowed = match *self {
                Check::Rounded { ref allowed, .. } | Check::Within { ref allowed, .. } => allowed[i],
                Check::Exact | Check::Nearest { .. } => 0.0,
                Check::Close { k, gain } => gain * U * (16.0 + 4.0 * (k as f64).sqrt()) * (want[i].abs() + size),
                Check::Step { step } => 1.3 * step,
                Check::Half { k, gain, step } => {
                    gain / 2048.0 * (4.0 + (k as f64).sqrt() / 4.0) * (want[i].abs() + size) + 1.3 * step
                }
            };
            let near = difference(i) <= allowed;
            assert!(near, "{name}: element {i} of {}: {} is not {} within {allowed:e}", got.len(), got[i], want[i]);
        }
        if let Check::Rounded { deviation, .. } = self {
            let [spread, expected] = [rms(&mut (0..got.len()).map(difference)), rms(&mut deviation.iter().copied())];
            println!("{name}: differences of {spread:e}, {expected:e} expected, of {size:e}");
            let near = spread <= 1.5 * expected + 1e-5 * size && spread >= 0.05 * expected;
            assert!(near, "{name}: differences of {spread:e}, {expected:e} expected");
        }
        if let Check::Step { step } = *self {
            let spread = rms(&mut (0..got.len()).map(difference));
            assert!(spread <= 0.25 * step, "{name}: differences of {spread:e}, step {step:e}");
        }
    }
}

/// See [`Check::Nearest`].
fn nearest(name: &str, got: &[f32], want: &[f64], table: &Array, half: bool) {
    let d = table.cols();
    let stored = |v: f64| if half { f16::from_f64(v).to_f32() } else { v as f32 };
    let roundings = (d + 2) as f64 * U;
    let g = roundings / (1.0 - roundings);
    for (i, (got, want)) in got.chunks_exact(2 * d).zip(want.chunks_exact(2 * d)).enumerate() {
        let (best, x) = want.split_at(d);
        assert!(got[d..].iter().zip(x).all(|(&got, &x)| f64::from(got) == x), "{name}: vector {i} is not {x:?}");
        let found = (0..table.rows()).filter(|&row| table.row(row).iter().zip(got).all(|(&t, &got)| stored(t) == got));
        let least = found.map(|row| distance(x, table.row(row))).fold(f64::INFINITY, f64::min);
        let allowed = distance(x, best) * (1.0 + g) / (1.0 - g);
        assert!(least <= allowed, "{name}: vector {i}: {:?} is at {least}, {best:?} within {allowed}", &got[..d]);
    }
}

/// One model, its inputs, and how close the result must be.
pub struct Case {
    /// For messages.
    pub name: String,
    /// The model.
    pub build: Build,
    /// Its inputs.
    pub inputs: Inputs,
    /// See [`Check`].
    pub check: Check,
}

pub fn case(name: String, build: Build, inputs: Inputs, check: Check) -> Case {
    Case { name, build, inputs, check }
}

/// A generator of its own for each case, so that cases can be added without changing others.
pub fn rng_of(name: &str) -> Rng {
    Rng::with_seed(name.bytes().fold(7, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3)))
}

/// A linear layer without epilogue.
pub fn linear(x: Value, weight: Tensor) -> Op {
    Op::Linear(Linear { x, weight, bias: None, act: Act::None, gate: None, residual: None })
}

/// Dynamic quantization.
pub fn dynamic(bits: u8, grain: QuantizeGrain) -> QuantizeSpec {
    QuantizeSpec { bits, grain, range: QuantizeRange::Dynamic }
}

/// An integer weight that gives each code's real number back, plus a sixteenth of the mean of all.
pub fn identity(b: &mut Build, d: usize) -> Tensor {
    picking(b, d, &(0..d).collect::<Vec<_>>())
}

/// The same for these of `d` codes.
pub fn picking(b: &mut Build, d: usize, picked: &[usize]) -> Tensor {
    let rows = picked.len();
    let mut matrix = QuantizedMatrix {
        bits: Bits::new(2).unwrap(),
        rows,
        cols: d,
        codes: vec![0; rows * d],
        table: TableValues::I8(vec![0, 16, 0, 0]),
        grain: Grain::Tensor,
        scale: vec![1.0 / 16.0; rows],
        offset: vec![1.0 / d as f32; rows],
    };
    picked.iter().enumerate().for_each(|(row, at)| matrix.codes[row * d + at] = 1);
    b.codes(&[rows, d], &matrix)
}

/// Numbers whose codes are known: group after group of `len`, each with a step of its own (a power of two) and a
/// zero point that may lie far outside the codes. Values stand a quarter step beside their codes, so that rounding
/// matters but nothing lies on a tie; every group contains its lowest and highest code.
pub fn coded(rng: &mut Rng, groups: usize, len: usize, bits: u8) -> Vec<f32> {
    let top = (1 << bits) - 1;
    let mut x = Vec::new();
    for _ in 0..groups {
        let (step, zero) = ([0.25, 1.0, 0.5][rng.usize(..3)], [0, 100, -300, 250][rng.usize(..4)]);
        let lowest = rng.usize(..len);
        let highest = (lowest + rng.usize(1..len.max(2))) % len;
        for i in 0..len {
            let q = match i {
                _ if i == lowest => 0.0,
                _ if i == highest => top as f32,
                _ => rng.i32(1..top) as f32 + [-0.25, 0.0, 0.25][rng.usize(..3)],
            };
            x.push(step * (q - zero as f32));
        }
    }
    x
}

/// `(rows, inputs, channels)`: each of the interesting numbers at least once, as batch, height, width.
const MATRICES: &[([usize; 3], usize, usize)] = &[
    ([1, 1, 1], 1, 1),
    ([1, 1, 2], 3, 3),
    ([3, 1, 1], 5, 16),
    ([2, 2, 1], 16, 17),
    ([1, 1, 5], 40, 47),
    ([2, 1, 3], 72, 48),
    ([1, 7, 1], 100, 49),
    ([2, 2, 2], 1152, 72),
    ([3, 3, 1], 16, 100),
    ([2, 1, 8], 40, 16),
    ([1, 17, 1], 72, 1),
    ([2, 2, 5], 5, 48),
    ([3, 10, 10], 40, 100),
];

/// Linear layers with float activations: every kind of weight.
pub fn linear_float() -> Vec<Case> {
    let mut cases = Vec::new();
    let codecs: Vec<_> = [None, None].into_iter().chain(Codec::all(false).into_iter().map(Some)).collect();
    for (which, codec) in codecs.iter().enumerate() {
        for (i, &([n, h, w], k, o)) in MATRICES.iter().enumerate() {
            if which >= 2 && (i + which) % 3 != 0 {
                continue; // Each codec sees a third of the sizes, f32 and f16 all of them.
            }
            let name = format!("linear {codec:?} #{which} {:?}x{k}x{o}", [n, h, w]);
            let rng = &mut rng_of(&name);
            let mut b = Build::new(k);
            let weight = match codec {
                Some(codec) => {
                    let matrix = codec.random(rng, o, k, false);
                    b.codes(&[o, k], &matrix)
                }
                None if which == 0 => b.f32(&[o, k], &normals(rng, o * k)),
                None => b.f16(&[o, k], &normals(rng, o * k)),
            };
            let bias = (i % 2 == 0).then(|| b.f32(&[o], &normals(rng, o)));
            let act = [Act::None, Act::Silu, Act::GeluTanh][i % 3];
            b.op(Op::Linear(Linear { x: SAMPLE, weight, bias, act, gate: None, residual: None }));
            // An activation's slope is at most 1.13; near its minimum the result is small while its argument is not.
            let inputs = inputs([n, h, w, k], || normal(rng));
            cases.push(case(name, b, inputs, Check::Close { k, gain: if act == Act::None { 1.0 } else { 4.0 } }));
        }
    }
    cases
}

/// Linear layers whose codes, scales and offsets make every f32 operation exact.
pub fn linear_exact() -> Vec<Case> {
    let mut cases = Vec::new();
    for (which, codec) in Codec::all(true).iter().enumerate() {
        for (i, &([n, h, w], k, o)) in MATRICES.iter().enumerate() {
            let (bits, fixed) = ([8, 6, 4, 2][(i + which) % 4], (i + which) % 3 == 0);
            let name = format!("exact {codec:?} a{bits} fixed {fixed} {:?}x{k}x{o}", [n, h, w]);
            let rng = &mut rng_of(&name);
            let mut b = Build::new(k);
            let range = if fixed {
                // Zero on a code, and between two; a last code, and all of them.
                let points = b.f32(&[1, 3], &[0.0, 0.5, [3.5, -300.0, 200.0][i % 3]]);
                let top = if i % 2 == 0 { 0 } else { ((1u16 << bits) - 2) as u8 };
                QuantizeRange::Curve(RangeCurve { points, axis: CurveAxis::Timestep, top })
            } else {
                QuantizeRange::Dynamic
            };
            let spec = QuantizeSpec { range, ..dynamic(bits, QuantizeGrain::Row) };
            let q = b.op(Op::Quantize(Quantize { x: SAMPLE, spec, turn: None }));
            let matrix = codec.random(rng, o, k, true);
            let weight = b.codes(&[o, k], &matrix);
            let whole: Vec<f32> = (0..o).map(|_| f32::from(rng.i8(..))).collect();
            let bias = (i % 2 == 0).then(|| b.f32(&[o], &whole));
            b.op(Op::Linear(Linear { x: q, weight, bias, act: Act::None, gate: None, residual: None }));
            let mut x = coded(rng, n * h * w, k, bits).into_iter();
            cases.push(case(name, b, inputs([n, h, w, k], || x.next().unwrap()), Check::Exact));
        }
    }
    cases
}

/// Largest magnitude of a dequantized weight times the largest activation step: what one flipped code can change.
pub fn flip(b: &Build, weight: Tensor, step: f32) -> f64 {
    f64::from(step) * b.tensors[weight.0 as usize].data.iter().fold(0.0f64, |m, w| m.max(w.abs()))
}

/// Linear layers with codes of arbitrary numbers, far from zero too, and the weight of a patch embedding.
pub fn linear_quantized() -> Vec<Case> {
    let mut cases = Vec::new();
    for (which, codec) in Codec::all(true).iter().enumerate() {
        for (bits, grain, mean) in
            [(8, QuantizeGrain::Row, 0.0), (4, QuantizeGrain::Row, 1000.0), (8, QuantizeGrain::Sample, -50.0)]
        {
            let (c, o) = ([3, 4, 20][which % 3], [7, 50, 33][which % 3]);
            let name = format!("patch linear {codec:?} a{bits} {grain:?} mean {mean} {c}x{o}");
            let rng = &mut rng_of(&name);
            let mut b = Build::new(c);
            let x = b.op(Op::Patchify(Patchify { x: SAMPLE, patch: 2 }));
            let q = b.op(Op::Quantize(Quantize { x, spec: dynamic(bits, grain), turn: None }));
            let matrix = codec.random(rng, o, 4 * c, false);
            let weight = b.codes(&[o, 2, 2, c], &matrix);
            let bias = Some(b.f32(&[o], &normals(rng, o)));
            b.op(Op::Linear(Linear { x: q, weight, bias, act: Act::None, gate: None, residual: None }));
            let step = flip(&b, weight, 12.0 / ((1 << bits) - 1) as f32);
            cases.push(case(name, b, inputs([3, 4, 6, c], || mean + normal(rng)), Check::Step { step }));
        }
    }
    cases
}

/// Gates and residuals: of fewer conditions than samples, at column offsets, of as many rows and of repeated ones.
pub fn epilogues() -> Vec<Case> {
    let mut cases = Vec::new();
    for (d, quantized) in [(4, false), (16, true), (20, false), (52, true), (100, false)] {
        for (gated, cyclic) in [(true, None), (false, Some(false)), (true, Some(true)), (false, Some(true))] {
            let name = format!("linear d {d} codes {quantized} gate {gated} residual {cyclic:?}");
            let rng = &mut rng_of(&name);
            let mut b = Build::new(d);
            let table = b.f32(&[5, d + 9], &normals(rng, 5 * (d + 9)));
            let gates = b.op(Op::Embedding(Embedding { index: LABELS, table }));
            let grid = b.op(Op::PositionEmbedding(PositionEmbedding {
                x: SAMPLE,
                dim: d as u32,
                base: 4,
                interpolation: 1.0,
                keep_ratio: false,
                grid: Default::default(),
            }));
            let (x, weight) = if quantized {
                let matrix = Codec::all(true)[5].random(rng, d, d, false);
                let q = b.op(Op::Quantize(Quantize { x: SAMPLE, spec: dynamic(8, QuantizeGrain::Row), turn: None }));
                (q, b.codes(&[d, d], &matrix))
            } else {
                (SAMPLE, b.f32(&[d, d], &normals(rng, d * d)))
            };
            let bias = b.f32(&[d], &normals(rng, d));
            b.op(Op::Linear(Linear {
                x,
                weight,
                bias: Some(bias),
                act: if gated { Act::GeluTanh } else { Act::None },
                gate: gated.then_some(Columns { value: gates, offset: 7 }),
                residual: cyclic.map(|cyclic| if cyclic { grid } else { SAMPLE }),
            }));
            let check = match quantized {
                true => Check::Step { step: 4.0 * flip(&b, weight, 12.0 / 255.0) },
                false => Check::Close { k: d, gain: 4.0 },
            };
            let mut inputs = inputs([3, 2, 5, d], || normal(rng));
            if gated {
                inputs.dims.conditions = 2;
                inputs.labels = vec![4, 2];
                inputs.conditions = vec![1, 0, 1];
            }
            cases.push(case(name, b, inputs, check));
        }
    }
    cases
}

/// Convolutions: float, exact codes, and codes of arbitrary numbers; every sampling, shifts and residuals.
pub fn conv() -> Vec<Case> {
    let images = [[1, 1, 1], [2, 1, 5], [3, 3, 3], [2, 5, 7], [1, 8, 8]];
    conv_of(&images, &[(4, 20), (8, 3), (12, 50), (20, 20), (64, 16)])
}

/// Convolutions of `(n, h, w)` images from and to so many channels.
pub fn conv_of(images: &[[usize; 3]], channels: &[(usize, usize)]) -> Vec<Case> {
    let mut cases = Vec::new();
    let int8 = Codec::all(true);
    let mut which = 0;
    for &[n, h, w] in images {
        for &(c, o) in channels {
            for sampling in ConvStride::ALL {
                if sampling == ConvStride::DownPadEnd && h.min(w) == 1 {
                    continue; // no row is left
                }
                which += 1;
                let residual = sampling == ConvStride::Same && c == o;
                let shifted = which % 2 == 0;
                for kind in ["f32", "codes", "exact", "dynamic"] {
                    let name = format!("conv {kind} {:?} c {c} o {o} {sampling:?} shift {shifted}", [n, h, w]);
                    let rng = &mut rng_of(&name);
                    let mut b = Build::new(c);
                    let codec = int8[which % int8.len()];
                    let (dims, k) = ([o, 3, 3, c], 9 * c);
                    let matrix = codec.random(rng, o, k, kind == "exact");
                    let weight = match kind {
                        "f32" => b.f32(&dims, &normals(rng, o * k)),
                        _ => b.codes(&dims, &matrix),
                    };
                    let whole = |rng: &mut Rng, n: usize| (0..n).map(|_| f32::from(rng.i8(..))).collect::<Vec<_>>();
                    let shift = shifted.then(|| {
                        let numbers = whole(rng, 5 * (o + 4));
                        let table = b.f32(&[5, o + 4], &numbers);
                        Columns { value: b.op(Op::Embedding(Embedding { index: LABELS, table })), offset: 3 }
                    });
                    let coded_input = matches!(kind, "exact" | "dynamic");
                    let spec = dynamic([8, 6, 4][which % 3], QuantizeGrain::Sample);
                    let x =
                        if coded_input { b.op(Op::Quantize(Quantize { x: SAMPLE, spec, turn: None })) } else { SAMPLE };
                    let numbers = whole(rng, o);
                    let bias = (which % 3 != 0).then(|| b.f32(&[o], &numbers));
                    let residual = residual.then_some(SAMPLE);
                    b.op(Op::Conv2d(Conv2d { x, weight, bias, sampling, shift, residual, size_of: None }));
                    let mut exact = coded(rng, n, h * w * c, spec.bits).into_iter();
                    let check = match kind {
                        "exact" => Check::Exact,
                        "dynamic" => {
                            // After upsampling, an input lies under up to four taps of a window.
                            let step = 12.0 / f32::from((1u16 << spec.bits) - 1);
                            let taps = sampling.upsample() * sampling.upsample();
                            Check::Step { step: taps as f64 * flip(&b, weight, step) }
                        }
                        _ => Check::Close { k, gain: 1.0 },
                    };
                    let mean = [0.0, 30.0, -7.0][which % 3];
                    let number = || if kind == "exact" { exact.next().unwrap() } else { mean + normal(rng) };
                    let mut inputs = inputs([n, h, w, c], number);
                    if n == 3 {
                        inputs.dims.conditions = 2;
                        inputs.labels = vec![4, 2];
                        inputs.conditions = vec![1, 0, 1];
                    }
                    cases.push(case(name, b, inputs, check));
                }
            }
        }
    }
    cases
}

/// Patches, sums, pointwise functions and embeddings.
pub fn elementwise() -> Vec<Case> {
    let mut cases = Vec::new();
    for patch in [1, 2, 3] {
        let p = patch as usize;
        let rng = &mut rng_of("patch");
        let mut b = Build::new(5);
        b.op(Op::Patchify(Patchify { x: SAMPLE, patch }));
        cases.push(case(format!("patchify {p}"), b, inputs([3, 2 * p, 3 * p, 5], || normal(rng)), Check::Exact));
        let mut b = Build::new(p * p * 5);
        b.op(Op::Unpatchify(Unpatchify { x: SAMPLE, patch }));
        cases.push(case(format!("unpatchify {p}"), b, inputs([2, 3, 2, p * p * 5], || normal(rng)), Check::Exact));
    }
    for (n, h, w, d) in [(1, 1, 1, 4), (2, 3, 5, 20), (3, 1, 17, 148), (2, 40, 30, 12)] {
        for act in [Act::None, Act::Silu, Act::GeluTanh] {
            let name = format!("pointwise {act:?} {n}x{h}x{w}x{d}");
            let rng = &mut rng_of(&name);
            let mut b = Build::new(d);
            let x = b.op(Op::Pointwise(Pointwise { x: SAMPLE, act, mul: -1.75, add: 0.5 }));
            let grid = b.op(Op::PositionEmbedding(PositionEmbedding {
                x: SAMPLE,
                dim: d as u32,
                base: 7,
                interpolation: 2.0,
                keep_ratio: false,
                grid: Default::default(),
            }));
            b.op(Op::Add(Add { a: x, b: grid }));
            cases.push(case(name, b, inputs([n, h, w, d], || 4.0 * normal(rng)), Check::Close { k: 1, gain: 1.0 }));
        }
    }
    for (n, h, w, d, e) in [(1, 1, 1, 1, 1), (2, 3, 5, 20, 7), (3, 4, 4, 8, 16), (2, 40, 30, 12, 24)] {
        let name = format!("concat {n}x{h}x{w} {d} and {e}");
        let rng = &mut rng_of(&name);
        let mut b = Build::new(d);
        let weight = b.f32(&[e, d], &normals(rng, d * e));
        let y = b.op(linear(SAMPLE, weight));
        let back = b.op(Op::Concat(Concat { a: y, b: SAMPLE, tokens: false }));
        b.op(Op::Concat(Concat { a: SAMPLE, b: back, tokens: false }));
        cases.push(case(name, b, inputs([n, h, w, d], || normal(rng)), Check::Close { k: d, gain: 1.0 }));
        // First, middle and last columns.
        for (first, count) in [(0, d.div_ceil(2)), (d / 3, d.div_ceil(3)), (d - d.min(8), d.min(8))] {
            let name = format!("slice {n}x{h}x{w}x{d} from {first}, {count}");
            let rng = &mut rng_of(&name);
            let mut b = Build::new(d);
            b.op(Op::Slice(Slice { x: SAMPLE, first: first as u32, count: count as u32, tokens: false }));
            cases.push(case(name, b, inputs([n, h, w, d], || normal(rng)), Check::Exact));
        }
    }
    for half in [false, true] {
        let rng = &mut rng_of("embedding");
        let mut b = Build::new(4);
        let numbers = normals(rng, 6 * 11);
        let table = if half { b.f16(&[6, 11], &numbers) } else { b.f32(&[6, 11], &numbers) };
        b.op(Op::Embedding(Embedding { index: LABELS, table }));
        let mut inputs = inputs([3, 1, 1, 4], || 0.0);
        inputs.labels = vec![5, 0, 3];
        cases.push(case(format!("embedding half {half}"), b, inputs, Check::Exact));
    }
    for (dim, cos_first, shift, timestep) in [(4, true, 0.0, 999.0), (256, false, 1.0, 37.0), (30, true, 1.0, 0.0)] {
        let mut b = Build::new(4);
        b.op(Op::TimestepEmbedding(TimestepEmbedding { t: TIMESTEP, dim, cos_first, shift }));
        let inputs = Inputs { timestep, ..inputs([2, 1, 1, 4], || 0.0) };
        // Angles of up to t are rounded to f32.
        let gain = 1.0 + f64::from(timestep) / 8.0;
        cases.push(case(format!("timestep embedding {dim}"), b, inputs, Check::Close { k: 1, gain }));
    }
    cases
}

/// Attention: one block of keys, several, a whole number of them; all widths of heads; large scores.
pub fn attention() -> Vec<Case> {
    let mut cases = Vec::new();
    for (n, tokens, heads, e, size) in [
        (1, [1, 1], 1, 4, 1.0),
        (2, [1, 2], 2, 5, 1.0),
        (3, [17, 1], 3, 16, 1.0),
        (1, [64, 3], 2, 24, 1.0),
        (1, [193, 1], 1, 40, 1.0),
        (1, [20, 20], 2, 72, 1.0),
        (2, [1, 193], 1, 160, 1.0),
        (1, [7, 3], 1, 512, 1.0),
        (1, [20, 20], 1, 16, 20.0),
        (2, [10, 30], 3, 40, 60.0),
    ] {
        let name = format!("attention {n}x{tokens:?} heads {heads}x{e} size {size}");
        let rng = &mut rng_of(&name);
        let d = heads * e;
        let mut b = Build::new(d);
        let table = b.f32(&[d, d], &normals(rng, d * d).iter().map(|v| v / (d as f32).sqrt()).collect::<Vec<_>>());
        let k = b.op(linear(SAMPLE, table));
        let v = b.op(Op::Pointwise(Pointwise { x: SAMPLE, act: Act::Silu, mul: 1.0 / size, add: 0.25 }));
        let scale = 1.0 / (e as f32).sqrt();
        b.op(Op::Attention(Attention {
            q: SAMPLE,
            k,
            v,
            heads: heads as u32,
            scale,
            attend: Default::default(),
            ..Attention::default()
        }));
        // A score is a sum of e products of size^2 and carries its error, absolute, into an exponential.
        let gain = f64::from(2.0 + 4.0 * size * size);
        let inputs = inputs([n, tokens[0], tokens[1], d], || size * normal(rng));
        cases.push(case(name, b, inputs, Check::Close { k: d, gain }));
    }
    for (h, w) in [(2, 4), (14, 28)] {
        let name = format!("attention of patches over pixels {h}x{w}");
        let rng = &mut rng_of(&name);
        let mut b = Build::new(6);
        let q = b.op(Op::Patchify(Patchify { x: SAMPLE, patch: 2 }));
        let weight = b.f32(&[24, 6], &normals(rng, 24 * 6));
        let k = b.op(linear(SAMPLE, weight));
        let v = b.op(Op::Pointwise(Pointwise { x: k, act: Act::Silu, mul: 1.0, add: 0.0 }));
        b.op(Op::Attention(Attention {
            q,
            k,
            v,
            heads: 3,
            scale: 0.2,
            attend: Default::default(),
            ..Attention::default()
        }));
        cases.push(case(name, b, inputs([2, h, w, 6], || normal(rng)), Check::Close { k: 24, gain: 8.0 }));
    }
    cases
}
