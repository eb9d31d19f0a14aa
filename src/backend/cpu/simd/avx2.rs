//! The AVX2 tier.
//!
//! Its byte multiply-add (`vpmaddubsw`) saturates at 16 bits and would be wrong for 8-bit codes, so bytes are widened
//! to 16 bits and multiplied pairwise into 32: half the rate, and exact.
#![allow(unsafe_code)]
#![allow(clippy::needless_range_loop)] // indices name registers here, and several arrays share them

#[cfg(target_arch = "x86_64")]
pub use imp::Avx2;

#[cfg(target_arch = "x86_64")]
mod imp {
    use super::super::{
        GROUP, Isa, MR, NR, Tile, Vectorized, check_decode, check_f32, check_i8, check_turn, clear_tail, gather_tables,
        hadamard, panel_len, scalar::Scalar,
    };
    use crate::codec::layout::{PackedMatrix, UNIT_BYTES, units};
    use std::arch::x86_64::*;
    use std::hint::black_box;

    /// Proof that the processor has AVX2, FMA and F16C.
    #[derive(Clone, Copy, Debug)]
    pub struct Avx2(());

    impl Avx2 {
        /// `None` if the processor lacks an instruction.
        pub fn new() -> Option<Self> {
            let has =
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
            has.then_some(Avx2(()))
        }
    }

    impl Isa for Avx2 {
        const NAME: &'static str = "avx2";
        const FMA: bool = true;

        fn run<V: Vectorized>(self, _: V, arguments: V::Arguments<'_>) -> V::Output {
            // SAFETY: building an `Avx2` means the features are there.
            unsafe { with_features::<V>(arguments) }
        }

        fn prefetch(self, x: &[f32]) {
            for line in x.chunks(16) {
                // SAFETY: a prefetch changes nothing but caches, whatever the address.
                unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) };
            }
        }

        fn tile_i8(self, rows: &[&[u8]], quads: usize, panel: &[i8], groups: usize, acc: &mut Tile<i32>) {
            let (_, group) = check_i8(rows, quads, panel, groups);
            *acc = [[0; NR]; MR];
            for g in 0..groups {
                for i in (0..MR).step_by(2) {
                    // SAFETY: building an `Avx2` means the features are there; `check_i8` proved that rows hold
                    // `4 * quads` bytes and the panel `groups` groups of `group` bytes.
                    unsafe { pair_i8(rows, i, quads, &panel[g * group..][..group], g, acc) };
                }
            }
        }

        fn tile_f32(self, rows: &[&[f32]], len: usize, panel: &[f32], groups: usize, acc: &mut Tile<f32>) {
            let (_, group) = check_f32(rows, len, panel, groups);
            *acc = [[0.0; NR]; MR];
            for g in 0..groups {
                for i in (0..MR).step_by(4) {
                    // SAFETY: as in `tile_i8`, with `check_f32`.
                    unsafe { four_f32(rows, i, len, &panel[g * group..][..group], g, acc) };
                }
            }
        }

        fn decode(self, matrix: &PackedMatrix<'_>, block: usize, panel: &mut [i8]) {
            let tables = check_decode(matrix, block, panel);
            if matrix.layout.bits.get() == 8 {
                return Scalar.decode(matrix, block, panel);
            }
            let tables = gather_tables(matrix, tables, block);
            // SAFETY: building an `Avx2` means the features are there; `check_decode` proved that the block exists
            // and the panel is `GROUP * panel_len(cols)` long.
            unsafe { decode(matrix, block, &tables, panel) };
            clear_tail(matrix.layout.cols, panel);
        }

        fn turn(self, x: &[f32], factors: &[f32], block: usize, y: &mut [f32]) {
            check_turn(x, factors, block, y);
            // SAFETY: building an `Avx2` means that the processor has AVX2 and FMA.
            unsafe { hadamard::turn(x, factors, block, y) };
        }

        fn spin_i8(self, rounds: usize) -> usize {
            // SAFETY: building an `Avx2` means the features are there.
            unsafe { spin_i8(rounds) }
            rounds * 8 * 16 * 2
        }

        fn spin_f32(self, rounds: usize) -> usize {
            // SAFETY: building an `Avx2` means the features are there.
            unsafe { spin_f32(rounds) }
            rounds * 12 * 8 * 2
        }
    }

    /// # Safety
    /// The processor must have the features.
    #[target_feature(enable = "avx2")]
    unsafe fn spin_i8(rounds: usize) {
        let (a, b) = (black_box(_mm256_set1_epi16(1)), black_box(_mm256_set1_epi16(2)));
        let mut sums = [_mm256_setzero_si256(); 8];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(a, black_box(b)));
            }
        }
        black_box(sums);
    }

    /// # Safety
    /// The processor must have the features.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn spin_f32(rounds: usize) {
        let (a, b) = (black_box(_mm256_set1_ps(1.0)), black_box(_mm256_set1_ps(2.0)));
        let mut sums = [_mm256_setzero_ps(); 12];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(a, b, *sum);
            }
        }
        black_box(sums);
    }

    /// # Safety
    /// The processor must have the features.
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn with_features<V: Vectorized>(arguments: V::Arguments<'_>) -> V::Output {
        V::call::<Avx2>(arguments)
    }

    /// Two rows of activations by one group.
    ///
    /// # Safety
    /// The processor must have the features; rows must hold `4 * quads` bytes, `panel` this group's bytes.
    #[target_feature(enable = "avx2")]
    unsafe fn pair_i8(rows: &[&[u8]], i: usize, quads: usize, panel: &[i8], g: usize, acc: &mut Tile<i32>) {
        // Sum [r][v] holds channels 4v to 4v + 3, two partial sums each.
        let mut sums = [[_mm256_setzero_si256(); 4]; 2];
        for tap in 0..rows.len() / MR {
            let x = [rows[tap * MR + i].as_ptr(), rows[tap * MR + i + 1].as_ptr()];
            for q in 0..quads {
                // SAFETY: each row has `4 * quads` bytes; this tap's part of the panel is `quads * 64` bytes from
                // `tap * quads * 64`.
                unsafe {
                    let a = x.map(|x| {
                        let bytes = _mm_cvtsi32_si128(x.add(4 * q).cast::<i32>().read_unaligned());
                        _mm256_broadcastq_epi64(_mm_cvtepu8_epi16(bytes))
                    });
                    let weights = panel.as_ptr().add((tap * quads + q) * 64);
                    for v in 0..4 {
                        let w = _mm256_cvtepi8_epi16(_mm_loadu_si128(weights.add(16 * v).cast()));
                        for r in 0..2 {
                            sums[r][v] = _mm256_add_epi32(sums[r][v], _mm256_madd_epi16(a[r], w));
                        }
                    }
                }
            }
        }
        for r in 0..2 {
            for v in 0..4 {
                let mut pairs = [0i32; 8];
                // SAFETY: `pairs` is 32 bytes long.
                unsafe { _mm256_storeu_si256(pairs.as_mut_ptr().cast(), sums[r][v]) };
                for c in 0..4 {
                    acc[i + r][g * GROUP + 4 * v + c] = pairs[2 * c] + pairs[2 * c + 1];
                }
            }
        }
    }

    /// Four rows of activations by one group.
    ///
    /// # Safety
    /// The processor must have the features; rows must hold `len` floats, `panel` this group's floats.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn four_f32(rows: &[&[f32]], i: usize, len: usize, panel: &[f32], g: usize, acc: &mut Tile<f32>) {
        let mut sums = [[_mm256_setzero_ps(); 2]; 4];
        for tap in 0..rows.len() / MR {
            let x: [*const f32; 4] = std::array::from_fn(|r| rows[tap * MR + i + r].as_ptr());
            for k in 0..len {
                // SAFETY: each row has `len` floats; this tap's part of the panel is `len * 16` floats from
                // `tap * len * 16`.
                unsafe {
                    let weights = panel.as_ptr().add((tap * len + k) * GROUP);
                    let w = [_mm256_loadu_ps(weights), _mm256_loadu_ps(weights.add(8))];
                    for r in 0..4 {
                        let a = _mm256_set1_ps(*x[r].add(k));
                        sums[r][0] = _mm256_fmadd_ps(a, w[0], sums[r][0]);
                        sums[r][1] = _mm256_fmadd_ps(a, w[1], sums[r][1]);
                    }
                }
            }
        }
        for r in 0..4 {
            for h in 0..2 {
                let out = &mut acc[i + r][g * GROUP + 8 * h..][..8];
                // SAFETY: `out` is 8 floats long.
                unsafe { _mm256_storeu_ps(out.as_mut_ptr(), sums[r][h]) };
            }
        }
    }

    /// Decodes sixteen rows of up to 6-bit codes, one row at a time: a byte shuffle looks up sixteen codes.
    ///
    /// # Safety
    /// The processor must have the features; the block must exist and the panel be `GROUP * panel_len(cols)` long.
    #[target_feature(enable = "avx2")]
    unsafe fn decode(matrix: &PackedMatrix<'_>, block: usize, tables: &[[i8; 64]; GROUP], panel: &mut [i8]) {
        let cols = matrix.layout.cols;
        let planes = matrix.layout.bits.planes();
        let subtables = matrix.layout.bits.levels().div_ceil(16);
        let low_nibble = _mm_set1_epi8(15);
        for (r, table) in tables.iter().enumerate() {
            for chunk in 0..panel_len(cols) / 16 {
                let mut code = _mm_setzero_si128();
                let mut low = 0;
                for (p, &bits) in planes.iter().enumerate() {
                    let per_unit = 8 / usize::from(bits);
                    let at = ((block * units(cols, bits) + chunk / per_unit) * GROUP + r) * UNIT_BYTES;
                    let unit = &matrix.planes[p][at..at + UNIT_BYTES];
                    let shift = _mm_cvtsi32_si128((chunk % per_unit * usize::from(bits)) as i32);
                    let mask = _mm_set1_epi8(((1u16 << bits) - 1) as i8);
                    // SAFETY: `unit` is 16 bytes long.
                    let bytes = unsafe { _mm_loadu_si128(unit.as_ptr().cast()) };
                    let part = _mm_and_si128(_mm_srl_epi16(bytes, shift), mask);
                    code = _mm_or_si128(code, _mm_sll_epi16(part, _mm_cvtsi32_si128(low)));
                    low += i32::from(bits);
                }
                let index = _mm_and_si128(code, low_nibble);
                let high = _mm_srli_epi16::<4>(_mm_andnot_si128(low_nibble, code));
                let mut value = _mm_setzero_si128();
                for (t, entries) in table.chunks_exact(16).enumerate().take(subtables) {
                    // SAFETY: `entries` is 16 bytes long.
                    let entries = unsafe { _mm_loadu_si128(entries.as_ptr().cast()) };
                    let here = _mm_cmpeq_epi8(high, _mm_set1_epi8(t as i8));
                    value = _mm_or_si128(value, _mm_and_si128(here, _mm_shuffle_epi8(entries, index)));
                }
                let mut bytes = [0i8; 16];
                // SAFETY: `bytes` is 16 bytes long.
                unsafe { _mm_storeu_si128(bytes.as_mut_ptr().cast(), value) };
                for (q, quad) in bytes.chunks_exact(4).enumerate() {
                    panel[(chunk * 4 + q) * 64 + r * 4..][..4].copy_from_slice(quad);
                }
            }
        }
    }
}
