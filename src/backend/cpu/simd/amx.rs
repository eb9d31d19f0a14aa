//! Products in AMX's tile registers (Intel, since Sapphire Rapids): eight rows by sixteen channels by sixty-four inputs in
//! one instruction.
//!
//! A panel is already what `tdpbusd` wants of its second factor: a row of a tile holds four inputs of sixteen channels.
//!
//! **It has never run on hardware.** [`multiply`] is tested on an emulated [`Unit`] that does what Intel's manual says of the
//! instructions; the instructions themselves stand in [`Hardware`], and nobody who wrote them had a processor with them. So the
//! tier is never chosen by itself: `--isa amx` asks for it.
#![allow(unsafe_code)]

use super::{GROUP, MR, NR, Tile};

/// Quads of a tile of weights: sixteen rows of 64 bytes.
pub const QUADS: usize = 16;
/// Bytes of a row of a tile.
const ROW: usize = 64;
/// The tile of codes; those of sums come before it, those of weights behind it, one for each group.
const CODES: usize = 3;

/// Eight tile registers, of which 0 to 2 are sums and 3 is codes, of eight rows each, and 4 to 6 are weights, of sixteen.
pub trait Unit {
    /// Makes a tile of sums zeros.
    fn zero(&mut self, tile: usize);

    /// Loads the rows of a tile, 64 bytes from each of the places `at`, `at + stride`, ..
    ///
    /// # Safety
    /// All those bytes must be readable.
    unsafe fn load(&mut self, tile: usize, at: *const u8, stride: usize);

    /// Adds products of the codes and a group's weights to its sums.
    fn dot(&mut self, group: usize);

    /// Stores the rows of a tile of sums, sixteen numbers to each of the places `at`, `at + stride` bytes, ..
    ///
    /// # Safety
    /// All those bytes must be writable.
    unsafe fn store(&self, tile: usize, at: *mut i32, stride: usize);
}

/// What [`Isa::tile_i8`](super::Isa::tile_i8) computes, on `unit`.
///
/// # Safety
/// `rows` must hold `4 * quads` bytes each, and `panel` `groups` groups of `group` bytes, each of `64 * quads` bytes a tap.
pub unsafe fn multiply(
    unit: &mut impl Unit,
    rows: &[&[u8]],
    quads: usize,
    panel: &[i8],
    [groups, group]: [usize; 2],
    acc: &mut Tile<i32>,
) {
    (0..groups).for_each(|g| unit.zero(g));
    // What a tile is copied to that would reach beyond its tap, or whose rows lie unevenly; zeros behind what there is.
    let mut codes = [[0u8; ROW]; MR];
    let mut weights = [[0i8; ROW]; QUADS];
    for (tap, rows) in rows.chunks_exact(MR).enumerate() {
        let stride = even_stride(rows);
        for first in (0..quads).step_by(QUADS) {
            let n = QUADS.min(quads - first);
            if let (Some(stride), QUADS) = (stride, n) {
                // SAFETY: the caller's: every row has 64 bytes more from here.
                unsafe { unit.load(CODES, rows[0][4 * first..].as_ptr(), stride) };
            } else {
                for (to, row) in codes.iter_mut().zip(rows) {
                    to[..4 * n].copy_from_slice(&row[4 * first..][..4 * n]);
                    to[4 * n..].fill(0);
                }
                // SAFETY: there are eight rows of 64 bytes.
                unsafe { unit.load(CODES, codes.as_ptr().cast(), ROW) };
            }
            for g in 0..groups {
                let panel = &panel[g * group + (tap * quads + first) * ROW..][..n * ROW];
                let at = if n == QUADS {
                    panel.as_ptr()
                } else {
                    // Codes behind the last quad are 0, so what is left here of another group changes nothing.
                    weights.as_flattened_mut()[..n * ROW].copy_from_slice(panel);
                    weights.as_ptr().cast()
                };
                // SAFETY: there are sixteen rows of 64 bytes, one after another.
                unsafe { unit.load(CODES + 1 + g, at.cast(), ROW) };
                unit.dot(g);
            }
        }
    }
    for g in 0..groups {
        let at = acc.as_flattened_mut()[g * GROUP..].as_mut_ptr();
        // SAFETY: rows of the tile are `NR` numbers apart, and each has a group's sixteen from here.
        unsafe { unit.store(g, at, NR * size_of::<i32>()) };
    }
}

/// Bytes from row to row, if it is the same for all.
fn even_stride(rows: &[&[u8]]) -> Option<usize> {
    let apart = |pair: &[&[u8]]| pair[1].as_ptr().addr().wrapping_sub(pair[0].as_ptr().addr());
    let stride = apart(&rows[..2]);
    rows.windows(2).all(|pair| apart(pair) == stride).then_some(stride)
}

#[cfg(target_arch = "x86_64")]
pub use hardware::Hardware;

#[cfg(target_arch = "x86_64")]
mod hardware {
    use super::{CODES, MR, QUADS, ROW, Unit};
    use std::arch::asm;
    use std::arch::x86_64::__cpuid_count;
    use std::cell::Cell;
    use std::sync::OnceLock;

    /// The registers of this thread. A value is proof that the processor has them and the system lets this process use them.
    #[derive(Clone, Copy, Debug)]
    pub struct Hardware(());

    impl Hardware {
        /// `None` if the processor has no integer tiles, or the system does not let this process use them.
        pub fn new() -> Option<Self> {
            static ALLOWED: OnceLock<bool> = OnceLock::new();
            ALLOWED.get_or_init(|| has_integer_tiles() && ask_permission()).then_some(Hardware(()))
        }

        /// The registers in the shapes that [`Unit`] wants, in this thread.
        pub fn configured(self) -> Self {
            thread_local! {
                static DONE: Cell<bool> = const { Cell::new(false) };
            }
            if !DONE.replace(true) {
                configure();
            }
            self
        }
    }

    /// CPUID leaf 7: EDX bit 24 is AMX-TILE, bit 25 AMX-INT8.
    fn has_integer_tiles() -> bool {
        let features = __cpuid_count(7, 0).edx;
        features >> 24 & 0b11 == 0b11
    }

    /// Linux keeps the registers of a process only if that has asked: `arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)`.
    #[cfg(target_os = "linux")]
    fn ask_permission() -> bool {
        const ARCH_PRCTL: i64 = 158;
        const REQUEST: i64 = 0x1023;
        const TILE_DATA: i64 = 18;
        let result: i64;
        // SAFETY: the call changes nothing but what is kept of registers when threads are switched; `syscall` overwrites rcx
        // and r11.
        unsafe {
            asm!("syscall", inlateout("rax") ARCH_PRCTL => result, in("rdi") REQUEST, in("rsi") TILE_DATA,
                out("rcx") _, out("r11") _, options(nostack));
        }
        result == 0
    }

    #[cfg(not(target_os = "linux"))]
    fn ask_permission() -> bool {
        false
    }

    /// Bytes of a tile configuration: the palette, then a row's bytes and the number of rows of each tile.
    fn shapes() -> [u8; 64] {
        let mut bytes = [0; 64];
        bytes[0] = 1;
        for tile in 0..CODES + 4 {
            bytes[16 + 2 * tile] = ROW as u8;
            bytes[48 + tile] = if tile <= CODES { MR } else { QUADS } as u8;
        }
        bytes
    }

    fn configure() {
        let shapes = shapes();
        // SAFETY: a `Hardware` exists, so the instruction does; it reads 64 bytes.
        unsafe { asm!("ldtilecfg [{at}]", at = in(reg) shapes.as_ptr(), options(nostack, readonly)) };
    }

    /// Calls `$call::<N>` for tile number `$tile`, which is below 7.
    macro_rules! numbered {
        ($tile:expr, $call:ident($($arg:expr),*)) => {
            match $tile {
                0 => $call::<0>($($arg),*),
                1 => $call::<1>($($arg),*),
                2 => $call::<2>($($arg),*),
                3 => $call::<3>($($arg),*),
                4 => $call::<4>($($arg),*),
                5 => $call::<5>($($arg),*),
                6 => $call::<6>($($arg),*),
                other => unreachable!("tile {other}"),
            }
        };
    }

    // No code but this module's touches tile registers, so what is in them lasts from one instruction to the next.
    impl Unit for Hardware {
        #[inline(always)]
        fn zero(&mut self, tile: usize) {
            // SAFETY: a `Hardware` exists, so the instruction does, and the registers are configured.
            unsafe { numbered!(tile, zero()) }
        }

        #[inline(always)]
        unsafe fn load(&mut self, tile: usize, at: *const u8, stride: usize) {
            // SAFETY: as in `zero`; the caller's bytes.
            unsafe { numbered!(tile, load(at, stride)) }
        }

        #[inline(always)]
        fn dot(&mut self, group: usize) {
            // SAFETY: as in `zero`.
            unsafe {
                match group {
                    0 => asm!("tdpbusd tmm0, tmm3, tmm4", options(nomem, nostack)),
                    1 => asm!("tdpbusd tmm1, tmm3, tmm5", options(nomem, nostack)),
                    _ => asm!("tdpbusd tmm2, tmm3, tmm6", options(nomem, nostack)),
                }
            }
        }

        #[inline(always)]
        unsafe fn store(&self, tile: usize, at: *mut i32, stride: usize) {
            // SAFETY: as in `zero`; the caller's bytes.
            unsafe { numbered!(tile, store(at, stride)) }
        }
    }

    /// # Safety
    /// The processor must have the instruction, and its tiles be configured.
    #[inline(always)]
    unsafe fn zero<const T: u8>() {
        // SAFETY: the caller's.
        unsafe { asm!("tilezero tmm{t}", t = const T, options(nomem, nostack)) }
    }

    /// # Safety
    /// As for [`zero`]; the rows from `at` must be readable.
    #[inline(always)]
    unsafe fn load<const T: u8>(at: *const u8, stride: usize) {
        // SAFETY: the caller's.
        unsafe {
            asm!("tileloadd tmm{t}, [{at} + {stride}]", t = const T, at = in(reg) at, stride = in(reg) stride,
                options(nostack, readonly));
        }
    }

    /// # Safety
    /// As for [`zero`]; the rows from `at` must be writable.
    #[inline(always)]
    unsafe fn store<const T: u8>(at: *mut i32, stride: usize) {
        // SAFETY: the caller's.
        unsafe {
            asm!("tilestored [{at} + {stride}], tmm{t}", t = const T, at = in(reg) at, stride = in(reg) stride,
                options(nostack));
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn tiles_have_the_shapes_that_the_kernel_takes() {
            let bytes = shapes();
            let shape =
                |tile: usize| (bytes[48 + tile], u16::from_le_bytes([bytes[16 + 2 * tile], bytes[17 + 2 * tile]]));
            assert_eq!((0..4).map(shape).collect::<Vec<_>>(), [(8, 64); 4]);
            assert_eq!((4..7).map(shape).collect::<Vec<_>>(), [(16, 64); 3]);
            assert_eq!((bytes[0], shape(7)), (1, (0, 0)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::scalar::Scalar;
    use super::super::{Isa, panel_len};
    use super::*;

    /// Registers that do what the manual says of the instructions, one byte after the other.
    struct Emulated([[[u8; ROW]; 16]; 7]);

    impl Emulated {
        fn rows(tile: usize) -> usize {
            if tile <= CODES { 8 } else { 16 }
        }

        fn sum(&self, tile: usize, m: usize, n: usize) -> i32 {
            i32::from_le_bytes(*self.0[tile][m][4 * n..].first_chunk().unwrap())
        }
    }

    impl Unit for Emulated {
        fn zero(&mut self, tile: usize) {
            self.0[tile] = [[0; ROW]; 16];
        }

        unsafe fn load(&mut self, tile: usize, at: *const u8, stride: usize) {
            for row in 0..Emulated::rows(tile) {
                // SAFETY: the caller's.
                self.0[tile][row] = unsafe { at.wrapping_add(row.wrapping_mul(stride)).cast::<[u8; ROW]>().read() };
            }
        }

        /// TDPBUSD: for each row m, quad k and channel n, four products of unsigned by signed bytes.
        #[allow(clippy::needless_range_loop)] // as the manual has it
        fn dot(&mut self, group: usize) {
            let (codes, weights) = (self.0[CODES], self.0[CODES + 1 + group]);
            for m in 0..8 {
                for k in 0..16 {
                    for n in 0..16 {
                        let product =
                            |j: usize| i32::from(codes[m][4 * k + j]) * i32::from(weights[k][4 * n + j] as i8);
                        let sum = self.sum(group, m, n) + (0..4).map(product).sum::<i32>();
                        self.0[group][m][4 * n..][..4].copy_from_slice(&sum.to_le_bytes());
                    }
                }
            }
        }

        unsafe fn store(&self, tile: usize, at: *mut i32, stride: usize) {
            for row in 0..Emulated::rows(tile) {
                for n in 0..16 {
                    let sum = self.sum(tile, row, n);
                    // SAFETY: the caller's.
                    unsafe { at.byte_add(row * stride).add(n).write(sum) };
                }
            }
        }
    }

    #[test]
    fn emulated_tiles_give_the_portable_sums() {
        let mut rng = fastrand::Rng::with_seed(1);
        for (taps, quads) in [(1, 16), (1, 17), (1, 31), (1, 48), (1, 3), (9, 16), (9, 20), (9, 5), (4, 80)] {
            let (len, group) = (4 * quads, GROUP * panel_len(taps * 4 * quads));
            for groups in 1..=3 {
                for even in [true, false] {
                    let x: Vec<u8> = (0..taps * MR * (len + 3)).map(|_| rng.u8(..)).collect();
                    let w: Vec<i8> = (0..groups * group).map(|_| rng.i8(..)).collect();
                    // Rows that follow one another, perhaps backwards, or lie anywhere.
                    let place = |i: usize| {
                        if even { (taps * MR - 1 - i) * (len + 3) } else { (i * 7 + i / 2) % (taps * MR) * len }
                    };
                    let rows: Vec<&[u8]> = (0..taps * MR).map(|i| &x[place(i)..][..len]).collect();
                    assert_eq!(even_stride(&rows[..MR]).is_some(), even);
                    let (mut want, mut got) = ([[1; NR]; MR], [[2; NR]; MR]);
                    Scalar.tile_i8(&rows, quads, &w, groups, 255 * 128, &mut want);
                    let mut unit = Emulated([[[99; ROW]; 16]; 7]);
                    // SAFETY: rows are `4 * quads` long, and the panel has `groups` groups of `group` bytes.
                    unsafe { multiply(&mut unit, &rows, quads, &w, [groups, group], &mut got) };
                    for (want, got) in want.iter().zip(&got) {
                        assert_eq!(want[..groups * GROUP], got[..groups * GROUP], "{taps} x {quads}, {groups} groups");
                    }
                }
            }
        }
    }
}
