//! The AVX2 tier, and that of AVX-VNNI, which differs by one instruction: `vpdpbusd`, which Intel's laptops and desktops have had since
//! 2021, makes byte products exact. No processor that it was written on had it; the loop, the panels and all else are AVX2's.
#![allow(unsafe_code)]
#![allow(clippy::needless_range_loop)] // indices name registers here, and several arrays share them

#[cfg(target_arch = "x86_64")]
pub(super) mod decode;
#[cfg(target_arch = "x86_64")]
pub(super) mod products;

#[cfg(target_arch = "x86_64")]
pub use imp::Avx2;

#[cfg(target_arch = "x86_64")]
mod imp {
    use super::super::{
        GROUP, Isa, MR, NR, Tile, Vectorized, check_decode, check_f32, check_i8, check_i16, check_turn, clear_tail,
        counts_up, gather_tables, hadamard, scalar::Scalar,
    };
    use super::decode::decode;
    use super::products::{Pairs, Products, Quads, Runs, Widened, Words, tile};
    use crate::codec::layout::PackedMatrix;
    use std::arch::x86_64::*;
    use std::hint::black_box;
    use zerocopy::{FromBytes, IntoBytes};

    /// Proof that the processor has AVX2, FMA and F16C, and AVX-VNNI if that is to be used.
    #[derive(Clone, Copy, Debug)]
    pub struct Avx2 {
        vnni: bool,
    }

    impl Avx2 {
        /// `None` if the processor lacks an instruction.
        pub fn new() -> Option<Self> {
            let has =
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
            has.then_some(Avx2 { vnni: false })
        }

        /// The same with AVX-VNNI.
        pub fn with_vnni() -> Option<Self> {
            Avx2::new().filter(|_| is_x86_feature_detected!("avxvnni")).map(|_| Avx2 { vnni: true })
        }
    }

    /// How many pairs of products of up to `largest` a sum of 16 bits holds.
    fn pairs(largest: u32) -> u32 {
        (i16::MAX as u32).checked_div(2 * largest).unwrap_or(u32::MAX)
    }

    impl Isa for Avx2 {
        const FMA: bool = true;

        fn name(self) -> &'static str {
            if self.vnni { "avx-vnni" } else { "avx2" }
        }

        fn run<V: Vectorized>(self, _: V, arguments: V::Arguments<'_>) -> V::Output {
            // SAFETY: building an `Avx2` means the features are there.
            unsafe { with_features::<V>(arguments) }
        }

        fn prefetch<T>(self, x: &[T]) {
            for line in x.chunks(64 / size_of::<T>()) {
                // SAFETY: a prefetch changes nothing but caches, whatever the address.
                unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) };
            }
        }

        fn tile_i8(self, rows: &[&[u8]], quads: usize, panel: &[i8], groups: usize, largest: u32, acc: &mut Tile<i32>) {
            let (_, group) = check_i8(rows, quads, panel, groups);
            let pairs = pairs(largest);
            let groups = [groups, group];
            // SAFETY: building an `Avx2` means the features are there; `check_i8` proved that rows hold `4 * quads` bytes
            // and the panel `groups` groups of `group` bytes; pairs of the largest products were counted.
            unsafe {
                match pairs {
                    _ if self.vnni => tile_quads(rows, quads, panel, groups, acc),
                    0 => tile_i8::<Widened>(rows, quads, panel, groups, acc),
                    1 => tile_i8::<Pairs>(rows, quads, panel, groups, acc),
                    2..4 => tile_i8::<Runs<2, 1>>(rows, quads, panel, groups, acc),
                    4..8 => tile_i8::<Runs<4, 1>>(rows, quads, panel, groups, acc),
                    8..16 => tile_i8::<Runs<8, 4>>(rows, quads, panel, groups, acc),
                    _ => tile_i8::<Runs<16, 4>>(rows, quads, panel, groups, acc),
                }
            }
        }

        fn tile_i16(self, rows: &[&[i16]; MR], panel: &[i16], groups: usize, acc: &mut Tile<i32>) {
            let (len, group) = check_i16(rows, panel, groups);
            let panel = <[i8]>::ref_from_bytes(panel.as_bytes()).expect("bytes");
            // SAFETY: building an `Avx2` means the features are there; a pair of 16-bit numbers lies where a quad of bytes
            // would, and `check_i16` proved that rows hold `len / 2` of them and the panel `groups` groups of as many times 64
            // bytes.
            unsafe { tile_i8::<Words>(&rows.map(|row| row.as_bytes()), len / 2, panel, [groups, 2 * group], acc) };
        }

        fn multiplies_words(self, largest: u32) -> bool {
            !self.vnni && pairs(largest) < 4
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
            let bits = matrix.layout.bits.get();
            if bits == 8 && !counts_up(tables) {
                // 256 arbitrary entries do not fit a byte shuffle; the packer writes consecutive integers for 8 bits.
                return Scalar.decode(matrix, block, panel);
            }
            let tables = if bits == 8 { [[0; 64]; GROUP] } else { gather_tables(matrix, tables, block) };
            // SAFETY: building an `Avx2` means the features are there; `check_decode` proved that the block exists
            // and the panel is `GROUP * panel_len(cols)` long.
            unsafe {
                match bits {
                    2..=4 => decode::<1>(matrix, block, &tables, panel),
                    5 => decode::<2>(matrix, block, &tables, panel),
                    6 => decode::<4>(matrix, block, &tables, panel),
                    _ => decode::<0>(matrix, block, &tables, panel),
                }
            }
            clear_tail(matrix.layout.cols, panel);
        }

        fn turn(self, x: &[f32], factors: &[f32], block: usize, y: &mut [f32]) {
            check_turn(x, factors, block, y);
            // SAFETY: building an `Avx2` means that the processor has AVX2 and FMA.
            unsafe { hadamard::turn(x, factors, block, y) };
        }

        fn spin_i8(self, rounds: usize) -> usize {
            // SAFETY: building an `Avx2` means the features are there.
            unsafe {
                match self.vnni {
                    true => spin_quads(rounds),
                    false => spin_i8(rounds),
                }
            }
            rounds * if self.vnni { 12 * 32 * 2 } else { 8 * 16 * 2 }
        }

        fn spin_f32(self, rounds: usize) -> usize {
            // SAFETY: building an `Avx2` means the features are there.
            unsafe { spin_f32(rounds) }
            rounds * 12 * 8 * 2
        }
    }

    /// Eight different products a round, so that the compiler leaves none out; of 16-bit factors, since those are exact for all
    /// codes and weights.
    ///
    /// # Safety
    /// The processor must have the features.
    #[target_feature(enable = "avx2")]
    unsafe fn spin_i8(rounds: usize) {
        let a: [__m256i; 4] = black_box([1, 2, 3, 4].map(|x| _mm256_set1_epi16(x)));
        let b = [5, 6].map(|x| _mm256_set1_epi16(x));
        let mut sums = [_mm256_setzero_si256(); 8];
        for _ in 0..rounds {
            let b = b.map(black_box);
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(a[i % 4], b[i / 4]));
            }
        }
        black_box(sums);
    }

    /// # Safety
    /// The processor must have the features.
    #[target_feature(enable = "avx2,avxvnni")]
    unsafe fn spin_quads(rounds: usize) {
        let (a, b) = (black_box(_mm256_set1_epi8(1)), black_box(_mm256_set1_epi8(2)));
        let mut sums = [_mm256_setzero_si256(); 12];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm256_dpbusd_avx_epi32(*sum, a, b);
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

    /// # Safety
    /// As for [`tile`].
    #[target_feature(enable = "avx2")]
    unsafe fn tile_i8<P: Products>(
        rows: &[&[u8]],
        quads: usize,
        panel: &[i8],
        groups: [usize; 2],
        acc: &mut Tile<i32>,
    ) {
        // SAFETY: the caller's.
        unsafe { tile::<P>(rows, quads, panel, groups, acc) };
    }

    /// # Safety
    /// As for [`tile`].
    #[target_feature(enable = "avx2,avxvnni")]
    unsafe fn tile_quads(rows: &[&[u8]], quads: usize, panel: &[i8], groups: [usize; 2], acc: &mut Tile<i32>) {
        // SAFETY: the caller's.
        unsafe { tile::<Quads>(rows, quads, panel, groups, acc) };
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
}
