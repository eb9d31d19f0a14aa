//! Packed weights as panels, in vectors of 256 bits: rows `r` and `r + 4` share one.

use super::super::{GROUP, panel_len};
use crate::codec::layout::{PackedMatrix, UNIT_BYTES, units};
use std::arch::x86_64::*;

/// Decodes sixteen rows, from row `16 * block`. `T` is the number of subtables of 16 entries that the codebooks have, or 0 for
/// consecutive integers from -128.
///
/// # Safety
/// The processor must have AVX2; the block must exist, `panel` be `GROUP * panel_len(cols)` long, and `T` that of the matrix.
#[target_feature(enable = "avx2")]
pub unsafe fn decode<const T: usize>(
    matrix: &PackedMatrix<'_>,
    block: usize,
    tables: &[[i8; 64]; GROUP],
    panel: &mut [i8],
) {
    let cols = matrix.layout.cols;
    let planes = matrix.layout.bits.planes();
    let low_nibble = _mm256_set1_epi8(15);
    let mut base = [std::ptr::null::<u8>(); 2];
    let mut masks = [_mm256_setzero_si256(); 2];
    for (p, &bits) in planes.iter().enumerate() {
        base[p] = matrix.planes[p][block * units(cols, bits) * GROUP * UNIT_BYTES..].as_ptr();
        masks[p] = _mm256_set1_epi8(((1u16 << bits) - 1) as i8);
    }
    let low_bits = _mm_cvtsi32_si128(i32::from(planes[0]));
    for eight in 0..2 {
        let table = |t: usize, j: usize| {
            let rows = [0, 4].map(|r| tables[8 * eight + j + r][16 * t..].as_ptr());
            // SAFETY: a table has 64 entries.
            unsafe { pair(rows[0].cast(), rows[1].cast()) }
        };
        let table: [[__m256i; T]; 4] = std::array::from_fn(|j| std::array::from_fn(|t| table(t, j)));
        for chunk in 0..panel_len(cols) / 16 {
            let mut rows = [_mm256_setzero_si256(); 4];
            for (j, row) in rows.iter_mut().enumerate() {
                let mut code = _mm256_setzero_si256();
                for (p, &bits) in planes.iter().enumerate() {
                    let per_unit = 8 / usize::from(bits);
                    let unit = chunk / per_unit * GROUP * UNIT_BYTES + (8 * eight + j) * UNIT_BYTES;
                    let shift = _mm_cvtsi32_si128((chunk % per_unit * usize::from(bits)) as i32);
                    // SAFETY: chunk `c` of 16 columns lies in unit `c / per_unit`, and a row block has
                    // `units * 16 rows * 16 bytes` per plane, checked when the matrix was viewed.
                    let bytes = unsafe { pair(base[p].add(unit), base[p].add(unit + 4 * UNIT_BYTES)) };
                    let part = _mm256_and_si256(_mm256_srl_epi16(bytes, shift), masks[p]);
                    code = if p == 0 { part } else { _mm256_or_si256(code, _mm256_sll_epi16(part, low_bits)) };
                }
                *row = match T {
                    0 => _mm256_xor_si256(code, _mm256_set1_epi8(-128)),
                    1 => _mm256_shuffle_epi8(table[j][0], code),
                    _ => {
                        let index = _mm256_and_si256(code, low_nibble);
                        let high = _mm256_srli_epi16::<4>(_mm256_andnot_si256(low_nibble, code));
                        let mut value = _mm256_setzero_si256();
                        for t in 0..T {
                            let here = _mm256_cmpeq_epi8(high, _mm256_set1_epi8(t as i8));
                            value =
                                _mm256_or_si256(value, _mm256_and_si256(here, _mm256_shuffle_epi8(table[j][t], index)));
                        }
                        value
                    }
                };
            }
            // Four quads of four rows in each half become four rows of each quad.
            let low = [(0, 1), (2, 3)].map(|(a, b)| _mm256_unpacklo_epi32(rows[a], rows[b]));
            let high = [(0, 1), (2, 3)].map(|(a, b)| _mm256_unpackhi_epi32(rows[a], rows[b]));
            let quads = [
                _mm256_unpacklo_epi64(low[0], low[1]),
                _mm256_unpackhi_epi64(low[0], low[1]),
                _mm256_unpacklo_epi64(high[0], high[1]),
                _mm256_unpackhi_epi64(high[0], high[1]),
            ];
            for (quad, out) in quads.iter().zip(panel[chunk * 256..][..256].chunks_exact_mut(64)) {
                let out = &mut out[32 * eight..][..32];
                // SAFETY: `out` is 32 bytes long.
                unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), *quad) };
            }
        }
    }
}

/// Sixteen bytes from each of two places.
///
/// # Safety
/// The processor must have AVX2, and both places sixteen bytes.
#[target_feature(enable = "avx2")]
unsafe fn pair(low: *const u8, high: *const u8) -> __m256i {
    // SAFETY: the caller's.
    let [low, high] = [low, high].map(|at| unsafe { _mm_loadu_si128(at.cast()) });
    _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(low), high)
}
