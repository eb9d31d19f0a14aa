//! SIMD island: the only `unsafe` code of the CPU back end.
//!
//! [`Isa`] is what an instruction set must offer: two micro-kernels, a decoder, and a way to compile ordinary Rust
//! with its features on. A value of an implementing type is the proof that the processor has the instructions: the
//! only constructors check. Everything above is generic over `I: Isa` and safe.
//!
//! Tests of all tiers against the scalar one are in `tests/ops/kernels.rs`.

#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
mod amx;
pub mod avx2;
pub mod avx512;
#[cfg(target_arch = "x86_64")]
mod hadamard;
pub mod scalar;
pub mod tiles;

use crate::codec::layout::PackedMatrix;

/// Rows of activations per micro-kernel tile.
pub const MR: usize = 8;
/// Output channels per group: one vector of 32-bit lanes on AVX-512, one row block of the file.
pub const GROUP: usize = 16;
/// Most groups per tile. 8 x 3 accumulators and 3 weight vectors fill AVX-512's 32 registers; 6 x 4 measured the same
/// on long rows and worse on short ones, where its panels fall out of the first-level cache.
pub const GROUPS: usize = 3;
/// Most output channels per tile.
pub const NR: usize = GROUP * GROUPS;

/// The largest product of a code and a weight that there can be.
pub const LARGEST_PRODUCT: u32 = u8::MAX as u32 * i8::MIN.unsigned_abs() as u32;

/// Results of one tile: rows of activations by output channels.
pub type Tile<T> = [[T; NR]; MR];

/// Inputs of a panel of integer weights, padded: codes are decoded sixteen at a time.
pub const fn panel_len(k: usize) -> usize {
    k.next_multiple_of(16)
}

/// A function that [`Isa::run`] compiles for each instruction set. Defined with `vectorized!`.
///
/// Only what is inlined into a function with an instruction set's features is compiled with them. Closures and function
/// items go through shims that the compiler declines to inline when they are large; a method marked `inline(always)` is
/// always inlined. (Measured: epilogues that were not inlined took 14 ns an element instead of 0.3.)
pub trait Vectorized {
    /// What it takes, as a tuple.
    type Arguments<'a>;
    /// What it gives.
    type Output;
    /// Does it.
    fn call<I: Isa>(arguments: Self::Arguments<'_>) -> Self::Output;
}

/// Defines a [`Vectorized`] function: `Name<'a, I>(argument: Type, ..) -> Output { .. }`, to be called as
/// `isa.run(Name, (argument, ..))`. References in the types are `'a`; `I` is the instruction set.
macro_rules! vectorized {
    ($(#[$doc:meta])* $vis:vis fn $name:ident<$life:lifetime, $isa:ident>($($arg:ident: $ty:ty),* $(,)?) $(-> $out:ty)? $body:block) => {
        $(#[$doc])*
        $vis struct $name;

        impl $crate::backend::cpu::simd::Vectorized for $name {
            type Arguments<$life> = ($($ty,)*);
            type Output = vectorized!(@output $($out)?);

            #[inline(always)]
            fn call<$isa: $crate::backend::cpu::simd::Isa>(($($arg,)*): Self::Arguments<'_>) -> Self::Output $body
        }
    };
    (@output) => { () };
    (@output $out:ty) => { $out };
}
pub(crate) use vectorized;

/// An instruction set. See the module's documentation.
pub trait Isa: Copy + Send + Sync + 'static + Into<super::Tier> {
    /// The name in reports.
    fn name(self) -> &'static str;
    /// Whether `f32::mul_add` is one instruction.
    const FMA: bool;

    /// Calls a [`Vectorized`] function compiled with this instruction set, so that its loops become this tier's vectors.
    fn run<V: Vectorized>(self, function: V, arguments: V::Arguments<'_>) -> V::Output;

    /// Asks for the lines of memory under `x`, which will be needed soon; nothing else happens.
    fn prefetch<T>(self, x: &[T]);

    /// `acc[i][n] = sum over taps t, inputs k of rows[t * MR + i][k] * panel[n, t, k]`, exact in 32 bits.
    ///
    /// `rows` holds `MR` slices per tap, each at least `4 * quads` long. `panel` holds `groups` groups, each of
    /// `panel_len(taps * 4 * quads)` inputs by 16 channels in the order (quad, channel, input in quad). No code times a
    /// weight may be more than `largest` in magnitude: there are tiers that are faster where products are small, and wrong
    /// where they are larger than was said.
    ///
    /// # Panics
    /// If a length is wrong.
    fn tile_i8(self, rows: &[&[u8]], quads: usize, panel: &[i8], groups: usize, largest: u32, acc: &mut Tile<i32>);

    /// The same of 16-bit numbers, whose sums wrap in 32 bits: `acc[i][n] = sum over inputs k of rows[i][k] * panel[n, k]`, of rows
    /// of one length, an even number. `panel` holds `groups` groups in the order (pair, channel, input in pair). No number may
    /// be -32768.
    ///
    /// # Panics
    /// If a length is wrong.
    fn tile_i16(self, rows: &[&[i16]; MR], panel: &[i16], groups: usize, acc: &mut Tile<i32>) {
        scalar::tile_i16(rows, panel, groups, acc);
    }

    /// Whether [`tile_i16`](Self::tile_i16) is at least half as fast as [`tile_i8`](Self::tile_i8) is for products of up to
    /// `largest`, at most [`LARGEST_PRODUCT`].
    fn multiplies_words(self, _largest: u32) -> bool {
        false
    }

    /// `acc[i][n] = sum over taps t, inputs k of rows[t * MR + i][k] * panel[n, t, k]` in floats: rows at least `len` long, `panel` in the order (group, tap, input, channel). Each sum is
    /// taken in ascending order of tap and input, by fused multiply-adds where the tier has them.
    ///
    /// # Panics
    /// If a length is wrong.
    fn tile_f32(self, rows: &[&[f32]], len: usize, panel: &[f32], groups: usize, acc: &mut Tile<f32>);

    /// Decodes sixteen rows of `matrix`, from row `16 * block`, into `panel` in the order of [`tile_i8`](Self::tile_i8).
    /// Inputs beyond the matrix's columns become 0.
    ///
    /// # Panics
    /// If the matrix has `f16` codebooks, the block does not exist, or `panel` is not `16 * panel_len(cols)` long.
    fn decode(self, matrix: &PackedMatrix<'_>, block: usize, panel: &mut [i8]);

    /// `y = x * factors`, then runs of `block` channels, if it is not 0, by the Hadamard matrix in Sylvester's order: sums
    /// and differences of channels 1 apart, then 2, up to `block / 2`, so that equal rows give equal numbers on every
    /// tier. `block` is a power of two, at least 8.
    ///
    /// # Panics
    /// If a length is wrong.
    fn turn(self, x: &[f32], factors: &[f32], block: usize, y: &mut [f32]);

    /// Multiplies and adds in registers alone, `rounds` times 24 vectors, and returns the number of operations
    /// (a multiply and an add count as two): this instruction set's peak, for benches to compare with.
    fn spin_i8(self, rounds: usize) -> usize;

    /// The same in floats.
    fn spin_f32(self, rounds: usize) -> usize;
}

/// Checks the lengths that the integer micro-kernels rely on; returns the number of taps and a group's bytes.
fn check_i8(rows: &[&[u8]], quads: usize, panel: &[i8], groups: usize) -> (usize, usize) {
    let taps = rows.len() / MR;
    let group = panel_len(taps * quads * 4) * GROUP;
    assert!(rows.len() == taps * MR && (1..=GROUPS).contains(&groups), "{} rows, {groups} groups", rows.len());
    assert!(rows.iter().all(|r| r.len() >= quads * 4), "a row is shorter than {quads} quads");
    assert!(panel.len() >= groups * group, "panel of {} bytes for {groups} groups of {group}", panel.len());
    (taps, group)
}

/// The same for 16-bit numbers; returns the numbers of a row and a group's.
fn check_i16(rows: &[&[i16]; MR], panel: &[i16], groups: usize) -> (usize, usize) {
    let len = rows[0].len();
    assert!(len.is_multiple_of(2) && rows.iter().all(|r| r.len() == len), "rows of unequal or odd lengths");
    assert!((1..=GROUPS).contains(&groups), "{groups} groups");
    assert!(panel.len() >= groups * len * GROUP, "panel of {} numbers for {groups} groups of {len}", panel.len());
    (len, len * GROUP)
}

/// Those of [`check_i8`] for floats; a group's length in floats.
fn check_f32(rows: &[&[f32]], len: usize, panel: &[f32], groups: usize) -> (usize, usize) {
    let taps = rows.len() / MR;
    let group = taps * len * GROUP;
    assert!(rows.len() == taps * MR && (1..=GROUPS).contains(&groups), "{} rows, {groups} groups", rows.len());
    assert!(rows.iter().all(|r| r.len() >= len), "a row is shorter than {len}");
    assert!(panel.len() >= groups * group, "panel of {} floats for {groups} groups of {group}", panel.len());
    (taps, group)
}

/// Checks the lengths that rotations rely on.
fn check_turn(x: &[f32], factors: &[f32], block: usize, y: &[f32]) {
    assert!(x.len() == y.len() && factors.len() == y.len(), "{} values, {} factors", x.len(), factors.len());
    let runs = block == 0 || block.is_power_of_two() && block >= 8 && y.len().is_multiple_of(block);
    assert!(runs, "runs of {block} in {} channels", y.len());
}

/// Checks what the decoders rely on; returns the integer codebooks.
fn check_decode<'a>(matrix: &PackedMatrix<'a>, block: usize, panel: &[i8]) -> &'a [i8] {
    let crate::codec::layout::Tables::I8(tables) = matrix.tables else {
        panic!("integer panel of a matrix with float codebooks")
    };
    assert!(block * GROUP < matrix.layout.padded_rows(), "row block {block} of {} rows", matrix.layout.rows);
    assert_eq!(panel.len(), GROUP * panel_len(matrix.layout.cols), "panel length");
    tables
}

/// Whether a codebook is the consecutive integers from -128, as that of 8-bit weights is.
fn counts_up(table: &[i8]) -> bool {
    (i8::MIN..=i8::MAX).eq(table.iter().copied())
}

/// The codebooks of sixteen rows, each padded to 64 entries (for widths up to 6 bits).
fn gather_tables(matrix: &PackedMatrix<'_>, tables: &[i8], block: usize) -> [[i8; 64]; GROUP] {
    let levels = matrix.layout.bits.levels();
    std::array::from_fn(|r| {
        let mut table = [0; 64];
        let start = matrix.table_start(block * GROUP + r);
        table[..levels].copy_from_slice(&tables[start..start + levels]);
        table
    })
}

/// Zeroes the inputs of a panel from `cols` on.
fn clear_tail(cols: usize, panel: &mut [i8]) {
    for k in cols..panel_len(cols) {
        for r in 0..GROUP {
            panel[(k / 4) * 64 + r * 4 + k % 4] = 0;
        }
    }
}
