//! Products of codes by panels in vectors of 256 bits: four rows by sixteen channels at a time.
//!
//! Before VNNI there is no instruction that multiplies bytes and adds them up exactly. `vpmaddubsw` multiplies bytes but sums
//! pairs in 16 bits, and saturates; `vpmaddwd` is exact and takes 16-bit factors, half as many. Which of them a product can
//! take follows from how large a code times a weight can be:
//!
//! ```text
//! largest product    exact in 16 bits    for 32 products in a vector                     Gop/s on a core of Zen 3
//! up to 32767/2n     sums of n pairs     vpmaddubsw, vpaddw, 1/n of vpmaddwd and vpaddd     260 (n = 16), 250 (8), 225 (4),
//!                                                                                         215 (2), 185 (1)
//! more               none                2 vpmaddwd, 2 vpaddd, of widened bytes             125
//! ```
//!
//! So uniform weights of up to five bits, which are small whole numbers, run at up to twice the rate of 8-bit weights and of
//! learned tables whose entries fill a byte; tables of 7 bits (`packer --codebook-bits 7`) and codes of up to seven bits
//! come between.
//!
//! `vpmaddubsw` alone, which nothing can beat here, reaches 400. Four rows by two vectors of channels leave registers for
//! weights and codes; four by three make the compiler spill, which costs a fifth. Short sums of two pairs are added up too often
//! to have registers of their own beside all sums: there one row at a time is a quarter faster than four, and of sixteen pairs a
//! fifth slower. Tried for the slowest way and no faster: panels widened to 16 bits when they are decoded, rows widened once
//! per tile, and `vpmaddubsw` of magnitudes with signs moved by `vpsignb`.

use super::super::{GROUP, MR, Tile};
use std::arch::x86_64::*;

/// How bytes of codes and weights become sums.
pub trait Dot {
    /// Eight channels' weights for four inputs each.
    type Weights: Copy;
    /// Four inputs' codes, in every lane.
    type Codes: Copy;

    /// # Safety
    /// As for [`tile`], of which this is a part.
    unsafe fn weights(bytes: __m256i) -> Self::Weights;
    /// # Safety
    /// As for [`tile`].
    unsafe fn codes(bytes: __m256i) -> Self::Codes;
    /// `sums` and the products, four to a lane.
    ///
    /// # Safety
    /// As for [`tile`].
    unsafe fn dot(sums: __m256i, codes: Self::Codes, weights: Self::Weights) -> __m256i;
}

/// Bytes widened to 16 bits, those at even and odd places apart: exact for all codes and weights.
pub struct Widened;

impl Dot for Widened {
    type Weights = [__m256i; 2];
    type Codes = [__m256i; 2];

    #[inline(always)]
    unsafe fn weights(bytes: __m256i) -> [__m256i; 2] {
        // SAFETY: the caller's.
        unsafe { [_mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(bytes)), _mm256_srai_epi16::<8>(bytes)] }
    }

    #[inline(always)]
    unsafe fn codes(bytes: __m256i) -> [__m256i; 2] {
        // SAFETY: the caller's.
        unsafe { [_mm256_and_si256(bytes, _mm256_set1_epi16(255)), _mm256_srli_epi16::<8>(bytes)] }
    }

    #[inline(always)]
    unsafe fn dot(sums: __m256i, codes: [__m256i; 2], weights: [__m256i; 2]) -> __m256i {
        // SAFETY: the caller's.
        unsafe {
            let [even, odd] = [0, 1].map(|i| _mm256_madd_epi16(codes[i], weights[i]));
            _mm256_add_epi32(sums, _mm256_add_epi32(even, odd))
        }
    }
}

/// Pairs summed in 16 bits: exact where two of the largest products are at most 32767.
pub struct Pairs;

impl Dot for Pairs {
    type Weights = __m256i;
    type Codes = __m256i;

    #[inline(always)]
    unsafe fn weights(bytes: __m256i) -> __m256i {
        bytes
    }

    #[inline(always)]
    unsafe fn codes(bytes: __m256i) -> __m256i {
        bytes
    }

    #[inline(always)]
    unsafe fn dot(sums: __m256i, codes: __m256i, weights: __m256i) -> __m256i {
        // SAFETY: the caller's.
        unsafe {
            let pairs = _mm256_maddubs_epi16(codes, weights);
            _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
        }
    }
}

/// Pairs of 16-bit numbers instead of quads of bytes: exact but for -32768, whose products with itself would make a pair wrap.
pub struct Words;

impl Dot for Words {
    type Weights = __m256i;
    type Codes = __m256i;

    #[inline(always)]
    unsafe fn weights(words: __m256i) -> __m256i {
        words
    }

    #[inline(always)]
    unsafe fn codes(words: __m256i) -> __m256i {
        words
    }

    #[inline(always)]
    unsafe fn dot(sums: __m256i, codes: __m256i, weights: __m256i) -> __m256i {
        // SAFETY: the caller's.
        unsafe { _mm256_add_epi32(sums, _mm256_madd_epi16(codes, weights)) }
    }
}

/// Four products of bytes added up in 32 bits: exact for all, where there is AVX-VNNI.
pub struct Quads;

impl Dot for Quads {
    type Weights = __m256i;
    type Codes = __m256i;

    #[inline(always)]
    unsafe fn weights(bytes: __m256i) -> __m256i {
        bytes
    }

    #[inline(always)]
    unsafe fn codes(bytes: __m256i) -> __m256i {
        bytes
    }

    #[inline(always)]
    unsafe fn dot(sums: __m256i, codes: __m256i, weights: __m256i) -> __m256i {
        // SAFETY: the caller's.
        unsafe { _mm256_dpbusd_avx_epi32(sums, codes, weights) }
    }
}

/// Rows at a time.
const ROWS: usize = 4;
/// Vectors of eight channels at a time: a group.
const VECTORS: usize = GROUP / 8;

/// Four rows' sums of a group's channels.
type Sums = [[__m256i; VECTORS]; ROWS];

/// Adds products to sums.
pub trait Products {
    /// Adds those of `quads` quads of four rows and a group's weights.
    ///
    /// # Safety
    /// As for [`tile`], of which this is a part.
    unsafe fn add(x: [*const u8; ROWS], weights: *const i8, quads: usize, sums: &mut Sums);
}

impl<D: Dot> Products for D {
    #[inline(always)]
    unsafe fn add(x: [*const u8; ROWS], weights: *const i8, quads: usize, sums: &mut Sums) {
        for q in 0..quads {
            // SAFETY: the caller's; a row has `4 * quads` bytes, and the group `64 * quads`.
            unsafe {
                let weights = load(weights.add(64 * q)).map(|w| D::weights(w));
                for (sums, x) in sums.iter_mut().zip(x) {
                    let codes = D::codes(broadcast(x.add(4 * q)));
                    for (sum, w) in sums.iter_mut().zip(weights) {
                        *sum = D::dot(*sum, codes, w);
                    }
                }
            }
        }
    }
}

/// 16-bit sums of `N` quads' pairs, of `R` rows at a time: exact where `2 N` of the largest products are at most 32767.
pub struct Runs<const N: usize, const R: usize>;

impl<const N: usize, const R: usize> Products for Runs<N, R> {
    #[inline(always)]
    unsafe fn add(x: [*const u8; ROWS], weights: *const i8, quads: usize, sums: &mut Sums) {
        const { assert!(ROWS.is_multiple_of(R), "rows are left over") };
        let whole = quads - quads % N;
        for q in (0..whole).step_by(N) {
            for (x, sums) in x.as_chunks::<R>().0.iter().zip(sums.as_chunks_mut::<R>().0) {
                // SAFETY: the caller's; a row has `4 * quads` bytes, the group `64 * quads`, and `N` quads from `q` on are there.
                unsafe {
                    let mut short = [[_mm256_setzero_si256(); VECTORS]; R];
                    for q in q..q + N {
                        let weights = load(weights.add(64 * q));
                        for (short, x) in short.iter_mut().zip(x) {
                            let codes = broadcast(x.add(4 * q));
                            for (short, w) in short.iter_mut().zip(weights) {
                                *short = _mm256_add_epi16(*short, _mm256_maddubs_epi16(codes, w));
                            }
                        }
                    }
                    for (sums, short) in sums.iter_mut().zip(short) {
                        for (sum, short) in sums.iter_mut().zip(short) {
                            *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(short, _mm256_set1_epi16(1)));
                        }
                    }
                }
            }
        }
        // SAFETY: the caller's, for the quads that are left; where `N` pairs are exact, one is.
        unsafe { <Pairs as Products>::add(x.map(|x| x.add(4 * whole)), weights.add(64 * whole), quads - whole, sums) };
    }
}

/// What [`Isa::tile_i8`](super::super::Isa::tile_i8) computes, by `P`.
///
/// # Safety
/// The processor must have AVX2 and what `P` takes; rows must hold `4 * quads` bytes, and `panel` `groups` groups of `group` bytes,
/// each of `64 * quads` bytes a tap; a largest product must be one that `P` is exact for.
#[inline(always)]
pub unsafe fn tile<P: Products>(
    rows: &[&[u8]],
    quads: usize,
    panel: &[i8],
    [groups, group]: [usize; 2],
    acc: &mut Tile<i32>,
) {
    for g in 0..groups {
        for i in (0..MR).step_by(ROWS) {
            // SAFETY: the caller's.
            let mut sums: Sums = unsafe { [[_mm256_setzero_si256(); VECTORS]; ROWS] };
            for (tap, rows) in rows.chunks_exact(MR).enumerate() {
                let x: [*const u8; ROWS] = std::array::from_fn(|r| rows[i + r].as_ptr());
                let weights = panel[g * group + tap * quads * 64..].as_ptr();
                // SAFETY: the caller's.
                unsafe { P::add(x, weights, quads, &mut sums) };
            }
            for (sums, acc) in sums.iter().zip(&mut acc[i..]) {
                for (sum, out) in sums.iter().zip(acc[g * GROUP..][..GROUP].chunks_exact_mut(8)) {
                    // SAFETY: `out` is eight numbers long.
                    unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), *sum) };
                }
            }
        }
    }
}

/// A group's weights of one quad.
///
/// # Safety
/// As for [`tile`].
#[inline(always)]
unsafe fn load(weights: *const i8) -> [__m256i; VECTORS] {
    // SAFETY: the caller's: there are 64 bytes.
    [0, 1].map(|v| unsafe { _mm256_loadu_si256(weights.add(32 * v).cast()) })
}

/// Four codes in every lane.
///
/// # Safety
/// As for [`tile`].
#[inline(always)]
unsafe fn broadcast(x: *const u8) -> __m256i {
    // SAFETY: the caller's: there are four bytes.
    unsafe { _mm256_set1_epi32(x.cast::<i32>().read_unaligned()) }
}
