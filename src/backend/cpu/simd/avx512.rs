//! The AVX-512-VNNI tier, and that of AMX (`amx.rs`), which differs by its integer products.
#![allow(unsafe_code)]
#![allow(clippy::needless_range_loop)] // indices name registers here, and several arrays share them

#[cfg(target_arch = "x86_64")]
pub use imp::Avx512;

#[cfg(target_arch = "x86_64")]
mod imp {
    use super::super::amx::{Hardware, QUADS, multiply};
    use super::super::{
        GROUP, GROUPS, Isa, MR, Tile, Vectorized, check_decode, check_f32, check_i8, check_turn, clear_tail, counts_up,
        gather_tables, hadamard, panel_len, scalar::Scalar,
    };
    use crate::codec::layout::{PackedMatrix, UNIT_BYTES, units};
    use std::arch::x86_64::*;
    use std::hint::black_box;

    /// Proof that the processor has AVX-512 F, BW, DQ, VL and VNNI, and what the AVX2 tier needs.
    #[derive(Clone, Copy, Debug)]
    pub struct Avx512 {
        tiles: Option<Hardware>,
    }

    impl Avx512 {
        /// `None` if the processor lacks an instruction.
        pub fn new() -> Option<Self> {
            let has = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512vnni")
                && is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c");
            has.then_some(Avx512 { tiles: None })
        }

        /// The same with AMX's tiles for integer products.
        pub fn with_tiles() -> Option<Self> {
            Avx512::new()?;
            Hardware::new().map(|tiles| Avx512 { tiles: Some(tiles) })
        }
    }

    impl Isa for Avx512 {
        const FMA: bool = true;

        fn name(self) -> &'static str {
            if self.tiles.is_some() { "amx" } else { "avx512-vnni" }
        }

        fn run<V: Vectorized>(self, _: V, arguments: V::Arguments<'_>) -> V::Output {
            // SAFETY: building an `Avx512` means the features are there.
            unsafe { with_features::<V>(arguments) }
        }

        fn prefetch<T>(self, x: &[T]) {
            for line in x.chunks(64 / size_of::<T>()) {
                // SAFETY: a prefetch changes nothing but caches, whatever the address.
                unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) };
            }
        }

        fn tile_i8(self, rows: &[&[u8]], quads: usize, panel: &[i8], groups: usize, _: u32, acc: &mut Tile<i32>) {
            let (_, group) = check_i8(rows, quads, panel, groups);
            if let Some(tiles) = self.tiles.filter(|_| quads >= QUADS) {
                // SAFETY: `check_i8` proved that rows hold `4 * quads` bytes and the panel `groups` groups of `group` bytes.
                return unsafe { multiply(&mut tiles.configured(), rows, quads, panel, [groups, group], acc) };
            }
            // SAFETY: building an `Avx512` means the features are there; `check_i8` proved the lengths that
            // `tile_i8` reads, for this number of groups.
            unsafe {
                match groups {
                    1 => tile_i8::<1>(rows, quads, panel, acc),
                    2 => tile_i8::<2>(rows, quads, panel, acc),
                    _ => tile_i8::<GROUPS>(rows, quads, panel, acc),
                }
            }
        }

        fn tile_f32(self, rows: &[&[f32]], len: usize, panel: &[f32], groups: usize, acc: &mut Tile<f32>) {
            check_f32(rows, len, panel, groups);
            // SAFETY: as in `tile_i8`, with `check_f32`.
            unsafe {
                match groups {
                    1 => tile_f32::<1>(rows, len, panel, acc),
                    2 => tile_f32::<2>(rows, len, panel, acc),
                    _ => tile_f32::<GROUPS>(rows, len, panel, acc),
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
            // SAFETY: building an `Avx512` means the features are there; `check_decode` proved that the block exists
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
            // SAFETY: building an `Avx512` means that the processor has AVX2 and FMA.
            unsafe { hadamard::turn(x, factors, block, y) };
        }

        fn spin_i8(self, rounds: usize) -> usize {
            // SAFETY: building an `Avx512` means the features are there.
            unsafe { spin_i8(rounds) }
            rounds * 24 * 64 * 2
        }

        fn spin_f32(self, rounds: usize) -> usize {
            // SAFETY: building an `Avx512` means the features are there.
            unsafe { spin_f32(rounds) }
            rounds * 24 * 16 * 2
        }
    }

    /// # Safety
    /// The processor must have the features.
    #[target_feature(enable = "avx512f,avx512vnni")]
    unsafe fn spin_i8(rounds: usize) {
        let (a, b) = (black_box(_mm512_set1_epi8(1)), black_box(_mm512_set1_epi8(2)));
        let mut sums = [_mm512_setzero_si512(); 24];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, a, b);
            }
        }
        black_box(sums);
    }

    /// # Safety
    /// The processor must have the features.
    #[target_feature(enable = "avx512f")]
    unsafe fn spin_f32(rounds: usize) {
        let (a, b) = (black_box(_mm512_set1_ps(1.0)), black_box(_mm512_set1_ps(2.0)));
        let mut sums = [_mm512_setzero_ps(); 24];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(a, b, *sum);
            }
        }
        black_box(sums);
    }

    /// # Safety
    /// The processor must have the features.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
    unsafe fn with_features<V: Vectorized>(arguments: V::Arguments<'_>) -> V::Output {
        V::call::<Avx512>(arguments)
    }

    /// # Safety
    /// The processor must have the features; every row must hold `4 * quads` bytes and the panel `G` groups.
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    unsafe fn tile_i8<const G: usize>(rows: &[&[u8]], quads: usize, panel: &[i8], acc: &mut Tile<i32>) {
        let taps = rows.len() / MR;
        let group = panel_len(taps * quads * 4) * GROUP;
        let mut sums = [[_mm512_setzero_si512(); G]; MR];
        for tap in 0..taps {
            let x: [*const u8; MR] = std::array::from_fn(|i| rows[tap * MR + i].as_ptr());
            // SAFETY: group g of the panel has `group` bytes, of which this tap's are the `quads * 64` from
            // `tap * quads * 64`; each row has `4 * quads` bytes. All loads are unaligned.
            unsafe {
                let weights = panel.as_ptr().add(tap * quads * 64);
                for q in 0..quads {
                    let w: [__m512i; G] =
                        std::array::from_fn(|g| _mm512_loadu_si512(weights.add(g * group + q * 64).cast()));
                    for i in 0..MR {
                        let a = _mm512_set1_epi32(x[i].add(4 * q).cast::<i32>().read_unaligned());
                        for g in 0..G {
                            sums[i][g] = _mm512_dpbusd_epi32(sums[i][g], a, w[g]);
                        }
                    }
                }
            }
        }
        for i in 0..MR {
            for g in 0..G {
                let out = &mut acc[i][g * GROUP..][..GROUP];
                // SAFETY: `out` is 16 integers long.
                unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), sums[i][g]) };
            }
        }
    }

    /// # Safety
    /// The processor must have the features; every row must hold `len` floats and the panel `G` groups.
    #[target_feature(enable = "avx512f")]
    unsafe fn tile_f32<const G: usize>(rows: &[&[f32]], len: usize, panel: &[f32], acc: &mut Tile<f32>) {
        let taps = rows.len() / MR;
        let group = taps * len * GROUP;
        let mut sums = [[_mm512_setzero_ps(); G]; MR];
        for tap in 0..taps {
            let x: [*const f32; MR] = std::array::from_fn(|i| rows[tap * MR + i].as_ptr());
            // SAFETY: group g of the panel has `group` floats, of which this tap's are the `len * 16` from
            // `tap * len * 16`; each row has `len` floats.
            unsafe {
                let weights = panel.as_ptr().add(tap * len * GROUP);
                for k in 0..len {
                    let w: [__m512; G] = std::array::from_fn(|g| _mm512_loadu_ps(weights.add(g * group + k * GROUP)));
                    for i in 0..MR {
                        let a = _mm512_set1_ps(*x[i].add(k));
                        for g in 0..G {
                            sums[i][g] = _mm512_fmadd_ps(a, w[g], sums[i][g]);
                        }
                    }
                }
            }
        }
        for i in 0..MR {
            for g in 0..G {
                let out = &mut acc[i][g * GROUP..][..GROUP];
                // SAFETY: `out` is 16 floats long.
                unsafe { _mm512_storeu_ps(out.as_mut_ptr(), sums[i][g]) };
            }
        }
    }

    /// The first `T` runs of sixteen table entries of all rows, four rows to a vector.
    #[target_feature(enable = "avx512f,avx512bw")]
    fn load_tables<const T: usize>(tables: &[[i8; 64]; GROUP]) -> [[__m512i; 4]; 4] {
        let mut table = [[_mm512_setzero_si512(); 4]; 4];
        for (t, table) in table.iter_mut().enumerate().take(T) {
            let mut rows = [[0u8; 16]; GROUP];
            for r in 0..GROUP {
                for (to, &from) in rows[r].iter_mut().zip(&tables[r][t * 16..]) {
                    *to = from as u8;
                }
            }
            for (j, v) in table.iter_mut().enumerate() {
                // SAFETY: four rows of 16 bytes from row `4 j` of sixteen.
                *v = unsafe { _mm512_loadu_si512(rows.as_flattened().as_ptr().add(64 * j).cast()) };
            }
        }
        table
    }

    /// Decodes sixteen rows with codebooks of `16 * T` entries; `T = 0` means the 8-bit identity.
    ///
    /// A 128-bit lane is one row, so a byte shuffle looks up sixteen codes of four rows at once. Vector `j` holds rows
    /// `4 j` to `4 j + 3`, as they lie in the file; a permutation of two vectors' double words gives, for two quads of
    /// inputs, eight rows in order, and its halves are stored apart.
    ///
    /// # Safety
    /// The processor must have the features; the block must exist and the panel be `GROUP * panel_len(cols)` long.
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn decode<const T: usize>(
        matrix: &PackedMatrix<'_>,
        block: usize,
        tables: &[[i8; 64]; GROUP],
        panel: &mut [i8],
    ) {
        let cols = matrix.layout.cols;
        let table = load_tables::<T>(tables);
        let planes = matrix.layout.bits.planes();
        let masks = [0, 1].map(|p| _mm512_set1_epi8(planes.get(p).map_or(0, |&b| ((1u16 << b) - 1) as u8) as i8));
        let low_nibble = _mm512_set1_epi8(15);
        let mut base = [std::ptr::null::<u8>(); 2];
        // A unit holds 1 << halvings chunks of sixteen codes.
        let mut halvings = [0; 2];
        for (p, &bits) in planes.iter().enumerate() {
            base[p] = matrix.planes[p][block * units(cols, bits) * GROUP * UNIT_BYTES..].as_ptr();
            halvings[p] = (8 / bits).trailing_zeros();
        }
        let second = planes.len() == 2;
        let low = _mm_cvtsi32_si128(i32::from(planes[0]));
        let (bits0, bits1) = (usize::from(planes[0]), usize::from(*planes.get(1).unwrap_or(&8)));
        // Double word `r` of eight is row `r`'s, of the first quad and then of the second.
        let quads = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 1, 5, 9, 13, 17, 21, 25, 29);
        let pairs = [quads, _mm512_add_epi32(quads, _mm512_set1_epi32(2))];
        for chunk in 0..panel_len(cols) / 16 {
            // Where chunk `chunk` lies in a plane: in which unit's block of sixteen rows, and from which bit of a byte on.
            let place = |p: usize, bits: usize| {
                let unit = chunk >> halvings[p];
                (unit * GROUP * UNIT_BYTES, _mm_cvtsi32_si128(((chunk - (unit << halvings[p])) * bits) as i32))
            };
            let (unit0, shift0) = place(0, bits0);
            let (unit1, shift1) = place(1, bits1);
            let mut rows = [_mm512_setzero_si512(); 4];
            for (j, row) in rows.iter_mut().enumerate() {
                // SAFETY: chunk `c` of 16 columns lies in unit `c >> halvings`, and a row block has
                // `units * 16 rows * 16 bytes` per plane, checked when the matrix was viewed.
                let mut code = unsafe {
                    let unit = _mm512_loadu_si512(base[0].add(unit0 + 4 * j * UNIT_BYTES).cast());
                    _mm512_and_si512(_mm512_srl_epi16(unit, shift0), masks[0])
                };
                if second {
                    // SAFETY: as above.
                    let high = unsafe {
                        let unit = _mm512_loadu_si512(base[1].add(unit1 + 4 * j * UNIT_BYTES).cast());
                        _mm512_and_si512(_mm512_srl_epi16(unit, shift1), masks[1])
                    };
                    code = _mm512_or_si512(code, _mm512_sll_epi16(high, low));
                }
                *row = match T {
                    0 => _mm512_xor_si512(code, _mm512_set1_epi8(-128)),
                    1 => _mm512_shuffle_epi8(table[0][j], code),
                    _ => {
                        let index = _mm512_and_si512(code, low_nibble);
                        let mut value = _mm512_shuffle_epi8(table[0][j], index);
                        for t in 1..T {
                            let here = _mm512_srli_epi16::<4>(_mm512_andnot_si512(low_nibble, code));
                            let mask = _mm512_cmpeq_epi8_mask(here, _mm512_set1_epi8(t as i8));
                            value = _mm512_mask_shuffle_epi8(value, mask, table[t][j], index);
                        }
                        value
                    }
                };
            }
            let out = &mut panel[chunk * 256..][..256];
            for half in 0..2 {
                for (pair, &order) in pairs.iter().enumerate() {
                    let two = _mm512_permutex2var_epi32(rows[2 * half], order, rows[2 * half + 1]);
                    // SAFETY: `out` is 256 bytes long: four quads of sixteen rows' 4 bytes.
                    unsafe {
                        let out = out.as_mut_ptr().add(pair * 128 + half * 32);
                        _mm256_storeu_si256(out.cast(), _mm512_castsi512_si256(two));
                        _mm256_storeu_si256(out.add(64).cast(), _mm512_extracti64x4_epi64::<1>(two));
                    }
                }
            }
        }
    }
}
