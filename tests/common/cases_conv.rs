//! Convolutions to a size that another value tells, as UNets need on the way up from sizes that were odd on the way down.

use super::cases::{Case, Check, case, coded, conv_of, dynamic, flip, rng_of};
use super::{Build, Codec, SAMPLE, inputs, normal, normals};
use aquatint::raw::program::{Conv2d, ConvStride, Op, Quantize, QuantizeGrain};

/// Convolutions of images large enough for squares of pixels to be made together: whole squares and halves of them, one line
/// more than pairs, and lines longer than a task has.
pub fn conv_large() -> Vec<Case> {
    conv_of(&[[1, 16, 16], [3, 17, 18], [2, 15, 35]], &[(16, 48), (32, 50)])
}

/// Convolutions that upsample to the size of a value, odd or even per axis, after one that halved it.
pub fn conv_sized() -> Vec<Case> {
    let mut cases = Vec::new();
    let int8 = Codec::all(true);
    for (i, &[n, h, w]) in [[1, 1, 1], [2, 3, 5], [3, 4, 7], [1, 9, 8], [2, 5, 17]].iter().enumerate() {
        for (c, o) in [(4, 20), (12, 50), (16, 16)] {
            for kind in ["f32", "exact", "dynamic"] {
                let name = format!("conv sized {kind} {:?} c {c} o {o}", [n, h, w]);
                let rng = &mut rng_of(&name);
                let mut b = Build::new(c);
                // Every second pixel of the sample.
                let kernel: Vec<f32> = (0..c * 9 * c).map(|i| f32::from(i % (9 * c) == 4 * c + i / (9 * c))).collect();
                let kernel = b.f32(&[c, 3, 3, c], &kernel);
                let down = Conv2d { x: SAMPLE, weight: kernel, sampling: ConvStride::Down, ..Conv2d::default() };
                let mut x = b.op(Op::Conv2d(down));
                let spec = dynamic([8, 6, 3][i % 3], QuantizeGrain::Sample);
                if kind != "f32" {
                    x = b.op(Op::Quantize(Quantize { x, spec, turn: None }));
                }
                let (dims, k) = ([o, 3, 3, c], 9 * c);
                let weight = match kind {
                    "f32" => b.f32(&dims, &normals(rng, o * k)),
                    _ => {
                        let matrix = int8[(i + c) % int8.len()].random(rng, o, k, kind == "exact");
                        b.codes(&dims, &matrix)
                    }
                };
                let (sampling, size_of) = (ConvStride::Up, Some(SAMPLE));
                b.op(Op::Conv2d(Conv2d { x, weight, sampling, size_of, ..Conv2d::default() }));
                let check = match kind {
                    "exact" => Check::Exact,
                    "dynamic" => {
                        // An input lies under up to four taps of a window.
                        let step = 12.0 / f32::from((1u16 << spec.bits) - 1);
                        Check::Step { step: 4.0 * flip(&b, weight, step) }
                    }
                    _ => Check::Close { k, gain: 1.0 },
                };
                // Codes whose extremes are among the pixels that are left.
                let mut exact = coded(rng, n, h.div_ceil(2) * w.div_ceil(2) * c, spec.bits).into_iter();
                let mut place = 0;
                let number = || {
                    let (row, column) = (place / c / w % h, place / c % w);
                    place += 1;
                    let left = row % 2 == 0 && column % 2 == 0;
                    if kind == "exact" && left { exact.next().unwrap() } else { normal(rng) }
                };
                cases.push(case(name, b, inputs([n, h, w, c], number), check));
            }
        }
    }
    cases
}
