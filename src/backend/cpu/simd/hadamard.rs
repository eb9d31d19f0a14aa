//! Rotations of rows, for the tiers that have AVX2.
//!
//! The compiler makes a gather of every butterfly within a vector (1.4 to 2.3 ns an element instead of 0.2 to 0.4), so
//! shuffles are named here.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

/// Channels in a vector.
const LANES: usize = 8;
/// Most vectors of a run that stay in registers.
const HELD: usize = 8;

/// See [`Isa::turn`](super::Isa::turn).
#[target_feature(enable = "avx2,fma")]
pub fn turn(x: &[f32], factors: &[f32], block: usize, y: &mut [f32]) {
    if block == 0 {
        y.iter_mut().zip(x).zip(factors).for_each(|((y, x), f)| *y = x * f);
        return;
    }
    let ((x, _), (factors, _), (y, _)) = (x.as_chunks(), factors.as_chunks(), y.as_chunks_mut());
    match block / LANES {
        1 => runs::<1>(x, factors, y),
        2 => runs::<2>(x, factors, y),
        4 => runs::<4>(x, factors, y),
        _ => runs::<HELD>(x, factors, y),
    }
    if block <= HELD * LANES {
        return;
    }
    for run in y.chunks_exact_mut(block / LANES) {
        let mut half = HELD;
        while half < run.len() {
            for pair in run.chunks_exact_mut(2 * half) {
                let (low, high) = pair.split_at_mut(half);
                for (low, high) in low.iter_mut().zip(high) {
                    let (a, b) = (load(low), load(high));
                    store(low, _mm256_add_ps(a, b));
                    store(high, _mm256_sub_ps(a, b));
                }
            }
            half *= 2;
        }
    }
}

/// Runs of `V` vectors, times their factors.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn runs<const V: usize>(x: &[[f32; LANES]], factors: &[[f32; LANES]], y: &mut [[f32; LANES]]) {
    for ((y, x), factors) in y.chunks_exact_mut(V).zip(x.chunks_exact(V)).zip(factors.chunks_exact(V)) {
        let mut v = [_mm256_setzero_ps(); V];
        for ((v, x), factors) in v.iter_mut().zip(x).zip(factors) {
            *v = within(_mm256_mul_ps(load(x), load(factors)));
        }
        let mut half = 1;
        while half < V {
            for i in (0..V).filter(|i| i & half == 0) {
                (v[i], v[i + half]) = (_mm256_add_ps(v[i], v[i + half]), _mm256_sub_ps(v[i], v[i + half]));
            }
            half *= 2;
        }
        y.iter_mut().zip(v).for_each(|(y, v)| store(y, v));
    }
}

/// Sums and differences of lanes 1, 2 and 4 apart. Each is the partner plus or minus the lane, and a product with a sign is
/// exact, so a fused multiply-add rounds as a sum does.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn within(v: __m256) -> __m256 {
    let signs = [
        _mm256_setr_ps(1.0, -1.0, 1.0, -1.0, 1.0, -1.0, 1.0, -1.0),
        _mm256_setr_ps(1.0, 1.0, -1.0, -1.0, 1.0, 1.0, -1.0, -1.0),
        _mm256_setr_ps(1.0, 1.0, 1.0, 1.0, -1.0, -1.0, -1.0, -1.0),
    ];
    let v = _mm256_fmadd_ps(v, signs[0], _mm256_permute_ps::<0b10_11_00_01>(v));
    let v = _mm256_fmadd_ps(v, signs[1], _mm256_permute_ps::<0b01_00_11_10>(v));
    _mm256_fmadd_ps(v, signs[2], _mm256_permute2f128_ps::<1>(v, v))
}

#[inline]
#[target_feature(enable = "avx2")]
fn load(x: &[f32; LANES]) -> __m256 {
    // SAFETY: eight floats are what an unaligned load reads.
    unsafe { _mm256_loadu_ps(x.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn store(x: &mut [f32; LANES], v: __m256) {
    // SAFETY: eight floats are what an unaligned store writes.
    unsafe { _mm256_storeu_ps(x.as_mut_ptr(), v) }
}
