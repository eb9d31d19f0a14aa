//! The portable tier, and the definition of what the others must compute.

use super::{
    GROUP, Isa, MR, NR, Tile, Vectorized, check_decode, check_f32, check_i8, check_i16, check_turn, clear_tail,
    panel_len,
};
use crate::codec::layout::PackedMatrix;
use std::hint::black_box;

/// Plain Rust; runs everywhere.
#[derive(Clone, Copy, Debug, Default)]
pub struct Scalar;

impl Isa for Scalar {
    const FMA: bool = false;

    fn name(self) -> &'static str {
        "portable"
    }

    fn run<V: Vectorized>(self, _: V, arguments: V::Arguments<'_>) -> V::Output {
        V::call::<Scalar>(arguments)
    }

    fn prefetch<T>(self, _: &[T]) {}

    fn tile_i8(self, rows: &[&[u8]], quads: usize, panel: &[i8], groups: usize, _: u32, acc: &mut Tile<i32>) {
        let (taps, group) = check_i8(rows, quads, panel, groups);
        *acc = [[0; NR]; MR];
        for g in 0..groups {
            for i in 0..MR {
                let sums = &mut acc[i][g * GROUP..][..GROUP];
                for tap in 0..taps {
                    let row = rows[tap * MR + i];
                    for q in 0..quads {
                        let weights = &panel[g * group + (tap * quads + q) * 64..][..64];
                        let x: [i32; 4] = std::array::from_fn(|j| i32::from(row[4 * q + j]));
                        for (sum, w) in sums.iter_mut().zip(weights.chunks_exact(4)) {
                            *sum += (0..4).map(|j| x[j] * i32::from(w[j])).sum::<i32>();
                        }
                    }
                }
            }
        }
    }

    fn tile_f32(self, rows: &[&[f32]], len: usize, panel: &[f32], groups: usize, acc: &mut Tile<f32>) {
        let (taps, group) = check_f32(rows, len, panel, groups);
        *acc = [[0.0; NR]; MR];
        for g in 0..groups {
            for i in 0..MR {
                let sums = &mut acc[i][g * GROUP..][..GROUP];
                for tap in 0..taps {
                    for (k, &x) in rows[tap * MR + i][..len].iter().enumerate() {
                        let weights = &panel[g * group + (tap * len + k) * GROUP..][..GROUP];
                        for (sum, w) in sums.iter_mut().zip(weights) {
                            *sum += x * w;
                        }
                    }
                }
            }
        }
    }

    fn decode(self, matrix: &PackedMatrix<'_>, block: usize, panel: &mut [i8]) {
        let tables = check_decode(matrix, block, panel);
        let cols = matrix.layout.cols;
        for r in 0..GROUP {
            let start = matrix.table_start(block * GROUP + r);
            for k in 0..cols {
                let code = matrix.code(block * GROUP + r, k);
                panel[(k / 4) * 64 + r * 4 + k % 4] = tables[start + usize::from(code)];
            }
        }
        debug_assert_eq!(panel.len(), GROUP * panel_len(cols));
        clear_tail(cols, panel);
    }

    fn turn(self, x: &[f32], factors: &[f32], block: usize, y: &mut [f32]) {
        check_turn(x, factors, block, y);
        for ((y, x), f) in y.iter_mut().zip(x).zip(factors) {
            *y = x * f;
        }
        let mut half = 1;
        while half < block {
            for pair in y.chunks_exact_mut(2 * half) {
                let (low, high) = pair.split_at_mut(half);
                for (a, b) in low.iter_mut().zip(high) {
                    (*a, *b) = (*a + *b, *a - *b);
                }
            }
            half *= 2;
        }
    }

    fn spin_i8(self, rounds: usize) -> usize {
        let (a, b) = black_box(([1u8; 64], [2i8; 64]));
        let mut sums = [0i32; 16];
        for _ in 0..rounds {
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum += (0..4).map(|j| i32::from(a[4 * i + j]) * i32::from(b[4 * i + j])).sum::<i32>();
            }
            black_box(&mut sums);
        }
        rounds * 64 * 2
    }

    fn spin_f32(self, rounds: usize) -> usize {
        let (a, b) = black_box(([1f32; 32], [2f32; 32]));
        let mut sums = [0f32; 32];
        for _ in 0..rounds {
            for ((sum, a), b) in sums.iter_mut().zip(&a).zip(&b) {
                *sum += a * b;
            }
            black_box(&mut sums);
        }
        rounds * 32 * 2
    }
}

/// [`Isa::tile_i16`] in plain Rust.
pub(super) fn tile_i16(rows: &[&[i16]; MR], panel: &[i16], groups: usize, acc: &mut Tile<i32>) {
    let (_, group) = check_i16(rows, panel, groups);
    *acc = [[0; NR]; MR];
    for (g, panel) in panel.chunks_exact(group.max(1)).enumerate().take(groups) {
        for (row, sums) in rows.iter().zip(acc.iter_mut()) {
            let sums = &mut sums[g * GROUP..][..GROUP];
            for (x, weights) in row.as_chunks::<2>().0.iter().zip(panel.as_chunks::<{ 2 * GROUP }>().0) {
                for (sum, w) in sums.iter_mut().zip(weights.as_chunks::<2>().0) {
                    let product = |i: usize| i32::from(x[i]) * i32::from(w[i]);
                    *sum = sum.wrapping_add(product(0).wrapping_add(product(1)));
                }
            }
        }
    }
}
