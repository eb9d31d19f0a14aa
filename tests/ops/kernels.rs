//! The micro-kernels and decoders of every tier against the portable ones, and those against their definitions.

use aquatint::raw::backend::cpu::simd::{GROUP, Isa, MR, NR, Tile, panel_len, scalar::Scalar};
use aquatint::raw::codec::layout::{PackedMatrix, pack};
use aquatint::raw::codec::{Bits, Grain};
use common::{Codec, amx, avx_vnni, avx2, avx512, normals};
use fastrand::Rng;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Sixty-four bytes on a boundary of as many, as tensors lie in a file.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Calls `f` with `bytes` on such a boundary.
fn aligned<R>(bytes: &[u8], f: impl FnOnce(&[u8]) -> R) -> R {
    let mut lines = vec![Line([0; 64]); bytes.len().div_ceil(64)];
    let copy = &mut lines.as_mut_bytes()[..bytes.len()];
    copy.copy_from_slice(bytes);
    f(copy)
}

/// Sizes of integer tiles: (taps, quads). One tap may end within a chunk of 16 inputs; so may all nine together.
const TILES: [(usize, usize); 9] = [(1, 1), (1, 3), (1, 4), (1, 7), (1, 1152), (9, 1), (9, 2), (9, 5), (4, 3)];

/// Most of codes and of weights' magnitudes, for each way that a tier may take.
const LARGEST: [(u8, i8); 10] =
    [(255, 127), (255, 65), (255, 64), (255, 32), (255, 16), (255, 8), (255, 4), (127, 127), (15, 127), (3, 127)];

/// Rows of activations that lie apart, as pixels do.
fn rows<T: Copy>(data: &[T], taps: usize, len: usize) -> Vec<&[T]> {
    (0..taps * MR).map(|i| &data[(i * 7 % (taps * MR)) * len..][..len]).collect()
}

fn integers<I: Isa>(isa: I) {
    let mut rng = Rng::with_seed(1);
    for (taps, quads) in TILES {
        let len = 4 * quads;
        let group = GROUP * panel_len(taps * len);
        for groups in 1..=3 {
            // The largest codes and magnitudes: all there are, and those where sums of 1, 2, 4, 8 or 16 pairs are as large as
            // 16 bits hold, or just too large.
            for (top, most) in LARGEST {
                let low = if most == 127 { i8::MIN } else { -most };
                for extreme in [None, Some((top, low)), Some((top, most)), Some((0, low))] {
                    let x: Vec<u8> =
                        (0..taps * MR * len).map(|_| extreme.map_or_else(|| rng.u8(..=top), |e| e.0)).collect();
                    let w: Vec<i8> =
                        (0..groups * group).map(|_| extreme.map_or_else(|| rng.i8(low..=most), |e| e.1)).collect();
                    let largest = u32::from(top) * u32::from(low.unsigned_abs());
                    let rows = rows(&x, taps, len);
                    let mut got: Tile<i32> = [[i32::MAX; NR]; MR];
                    isa.tile_i8(&rows, quads, &w, groups, largest, &mut got);
                    for i in 0..MR {
                        #[allow(clippy::needless_range_loop)] // two tiles share the index
                        for n in 0..groups * GROUP {
                            let at = |t: usize, k: usize| {
                                (n / GROUP) * group + (t * quads + k / 4) * 64 + n % GROUP * 4 + k % 4
                            };
                            let product = |t: usize, k: usize| i64::from(rows[t * MR + i][k]) * i64::from(w[at(t, k)]);
                            let want: i64 =
                                (0..taps).flat_map(|t| (0..len).map(move |k| (t, k))).map(|(t, k)| product(t, k)).sum();
                            let name = isa.name();
                            assert_eq!(
                                i64::from(got[i][n]),
                                want,
                                "{name}: taps {taps} quads {quads} groups {groups} to {top} by {most} ({i}, {n})"
                            );
                        }
                    }
                }
            }
        }
    }
}

/// Products of 16-bit numbers, whose sums may wrap.
fn words<I: Isa>(isa: I) {
    let mut rng = Rng::with_seed(6);
    for len in [2, 6, 16, 80, 4000] {
        for groups in 1..=3 {
            for (most_x, most_w) in [(1020, 1152), (i16::MAX, i16::MAX)] {
                for largest in [false, true] {
                    let mut numbers = |n: usize, most: i16| -> Vec<i16> {
                        (0..n).map(|_| if largest { most } else { rng.i16(-most..=most) }).collect()
                    };
                    let (x, w) = (numbers(MR * len, most_x), numbers(groups * GROUP * len, most_w));
                    let rows: [&[i16]; MR] = std::array::from_fn(|i| &x[i * len..][..len]);
                    let mut got: Tile<i32> = [[i32::MAX; NR]; MR];
                    isa.tile_i16(&rows, &w, groups, &mut got);
                    for (i, n) in (0..MR).flat_map(|i| (0..groups * GROUP).map(move |n| (i, n))) {
                        let at = |k: usize| n / GROUP * GROUP * len + k / 2 * 2 * GROUP + n % GROUP * 2 + k % 2;
                        let want: i64 = (0..len).map(|k| i64::from(rows[i][k]) * i64::from(w[at(k)])).sum();
                        let name = isa.name();
                        assert_eq!(got[i][n], want as i32, "{name}: {len}, {groups} groups to {most_x} ({i}, {n})");
                    }
                }
            }
        }
    }
}

fn floats<I: Isa>(isa: I) {
    let mut rng = Rng::with_seed(2);
    for (taps, len) in [(1, 1), (1, 3), (1, 72), (1, 501), (9, 5), (9, 16)] {
        let group = GROUP * taps * len;
        for groups in 1..=3 {
            let (x, w) = (normals(&mut rng, taps * MR * len), normals(&mut rng, groups * group));
            let rows = rows(&x, taps, len);
            let mut got: Tile<f32> = [[f32::NAN; NR]; MR];
            isa.tile_f32(&rows, len, &w, groups, &mut got);
            for i in 0..MR {
                for n in 0..groups * GROUP {
                    // The definition: in ascending order of tap and input, fused where the tier fuses.
                    let mut want = 0.0f32;
                    for (t, k) in (0..taps).flat_map(|t| (0..len).map(move |k| (t, k))) {
                        let (x, w) = (rows[t * MR + i][k], w[n / GROUP * group + (t * len + k) * GROUP + n % GROUP]);
                        want = if I::FMA { x.mul_add(w, want) } else { want + x * w };
                    }
                    let name = isa.name();
                    assert_eq!(
                        got[i][n].to_bits(),
                        want.to_bits(),
                        "{name}: {taps} x {len}, {groups} groups ({i}, {n})"
                    );
                }
            }
        }
    }
}

fn decoders<I: Isa>(isa: I) {
    let mut rng = Rng::with_seed(3);
    for codec in Codec::all(true) {
        for cols in [1, 4, 15, 16, 17, 31, 64, 127, 128, 129, 300] {
            for rows in [1, 16, 37] {
                let matrix = codec.random(&mut rng, rows, cols, false);
                let (layout, bytes) = pack(&matrix, 1);
                aligned(&bytes, |bytes| {
                    let packed = PackedMatrix::new(layout, bytes).unwrap();
                    for block in 0..rows.div_ceil(GROUP) {
                        let mut got = vec![99i8; GROUP * panel_len(cols)];
                        isa.decode(&packed, block, &mut got);
                        for r in 0..GROUP.min(rows - block * GROUP) {
                            for k in 0..panel_len(cols) {
                                let row = block * GROUP + r;
                                let code = |k: usize| matrix.codes[row * cols + k];
                                let want = if k < cols { matrix.entry(row, code(k)) } else { 0.0 };
                                let got = f32::from(got[k / 4 * 64 + r * 4 + k % 4]);
                                assert_eq!(got, want, "{}: {codec:?} {rows}x{cols} ({row}, {k})", isa.name());
                            }
                        }
                    }
                });
            }
        }
    }
}

fn rotations<I: Isa>(isa: I) {
    let mut rng = Rng::with_seed(5);
    for (block, cols) in [(0, 5), (8, 8), (8, 24), (16, 48), (32, 32), (64, 192), (128, 1152), (256, 512), (512, 512)] {
        // Small integers, so that sums are exact in any order.
        let whole = |rng: &mut Rng| f32::from(rng.i8(-9..9));
        let (x, f): (Vec<f32>, Vec<f32>) = (0..cols).map(|_| (whole(&mut rng), whole(&mut rng))).unzip();
        let mut y = vec![f32::NAN; cols];
        isa.turn(&x, &f, block, &mut y);
        for (i, &y) in y.iter().enumerate() {
            let run = i.checked_div(block).map_or(i..i + 1, |run| run * block..(run + 1) * block);
            let sign = |j: usize| if (j & (i - run.start)).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
            let expected: f32 = run.clone().enumerate().map(|(j, at)| sign(j) * x[at] * f[at]).sum();
            assert_eq!(y, expected, "{} {block} {cols} {i}", isa.name());
        }
        let (x, f) = (normals(&mut rng, cols), normals(&mut rng, cols));
        let (mut got, mut want) = (vec![0.0; cols], vec![0.0; cols]);
        isa.turn(&x, &f, block, &mut got);
        Scalar.turn(&x, &f, block, &mut want);
        assert_eq!(got, want, "{}: sums in another order for {block}", isa.name());
    }
}

macro_rules! kernel_suite {
    ($tier:ident, $isa:expr) => {
        mod $tier {
            use super::*;

            #[test]
            fn integer_tiles_are_exact() {
                $isa.into_iter().for_each(integers);
            }

            #[test]
            fn tiles_of_words_wrap() {
                $isa.into_iter().for_each(words);
            }

            #[test]
            fn float_tiles_sum_in_order() {
                $isa.into_iter().for_each(floats);
            }

            #[test]
            fn decoders_look_up_every_code() {
                $isa.into_iter().for_each(decoders);
            }

            #[test]
            fn rotations_are_products_with_the_matrix() {
                $isa.into_iter().for_each(rotations);
            }

            #[test]
            fn wrong_lengths_panic() {
                $isa.into_iter().for_each(super::wrong_lengths_panic);
            }
        }
    };
}

kernel_suite!(portable, Some(Scalar));
kernel_suite!(avx2, super::avx2());
kernel_suite!(avx_vnni, super::avx_vnni());
kernel_suite!(avx512, super::avx512());
kernel_suite!(amx, super::amx());

/// The checks that the unsafe kernels rely on, one wrong length at a time.
fn wrong_lengths_panic<I: Isa>(isa: I) {
    let panics = |f: &dyn Fn()| std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)).is_err();
    let (x, w) = ([1u8; 16], [1i8; 3 * GROUP * 16]);
    let tile = |rows: usize, len: usize, quads: usize, panel: usize, groups: usize| {
        panics(&|| isa.tile_i8(&vec![&x[..len]; rows], quads, &w[..panel], groups, 1, &mut [[0; NR]; MR]))
    };
    assert!(!tile(MR, 16, 4, 3 * 256, 3), "right lengths");
    assert!(tile(MR - 1, 16, 4, 3 * 256, 3), "rows missing");
    assert!(tile(MR, 15, 4, 3 * 256, 3), "rows too short");
    assert!(tile(MR, 16, 4, 3 * 256 - 1, 3), "panel too short");
    assert!(tile(MR, 16, 4, 3 * 256, 4) && tile(MR, 16, 4, 3 * 256, 0), "groups");
    let (x, w) = ([1i16; 8], [1i16; 3 * GROUP * 8]);
    let tile = |len: usize, first: usize, panel: usize, groups: usize| {
        let rows = std::array::from_fn(|i| if i == 0 { &x[..first] } else { &x[..len] });
        panics(&|| isa.tile_i16(&rows, &w[..panel], groups, &mut [[0; NR]; MR]))
    };
    assert!(!tile(8, 8, 3 * 128, 3), "right lengths");
    assert!(tile(8, 6, 3 * 128, 3) && tile(6, 8, 3 * 128, 3), "rows of two lengths");
    assert!(tile(7, 7, 3 * 128, 3), "half a pair");
    assert!(tile(8, 8, 3 * 128 - 1, 3), "panel too short");
    assert!(tile(8, 8, 3 * 128, 4) && tile(8, 8, 3 * 128, 0), "groups");
    let (x, w) = ([1f32; 5], [1f32; 2 * GROUP * 5]);
    let tile = |rows: usize, len: usize, panel: usize, groups: usize| {
        panics(&|| isa.tile_f32(&vec![&x[..len]; rows], 5, &w[..panel], groups, &mut [[0.0; NR]; MR]))
    };
    assert!(!tile(MR, 5, 160, 2), "right lengths");
    assert!(tile(MR + 1, 5, 160, 2) && tile(MR, 4, 160, 2) && tile(MR, 5, 159, 2) && tile(MR, 5, 160, 3));

    let turn = |x: usize, factors: usize, block: usize, y: usize| {
        let ones = [1f32; 32];
        panics(&|| isa.turn(&ones[..x], &ones[..factors], block, &mut [0.0; 32][..y]))
    };
    assert!(!turn(32, 32, 16, 32) && !turn(5, 5, 0, 5), "right lengths");
    assert!(turn(31, 32, 16, 32) && turn(32, 31, 16, 32) && turn(32, 32, 16, 16), "lengths that differ");
    assert!(turn(24, 24, 16, 24) && turn(24, 24, 12, 24) && turn(24, 24, 4, 24), "runs");

    let codec = Codec { bits: Bits::new(4).unwrap(), grain: Grain::Row, int8: true, identity: false };
    let mut rng = Rng::with_seed(4);
    for int8 in [true, false] {
        let (layout, bytes) = pack(&Codec { int8, ..codec }.random(&mut rng, 20, 30, false), 1);
        aligned(&bytes, |bytes| {
            let packed = PackedMatrix::new(layout, bytes).unwrap();
            let decode = |block: usize, len: usize| panics(&|| isa.decode(&packed, block, &mut vec![0; len]));
            assert_eq!(decode(1, GROUP * 32), !int8, "float codebooks have no integers");
            assert!(decode(2, GROUP * 32), "no such block");
            assert!(decode(0, GROUP * 32 - 1) && decode(0, GROUP * 48), "panel length");
        });
    }
}
