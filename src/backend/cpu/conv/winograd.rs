//! Convolutions of codes by Winograd's minimal filtering, F(2x2, 3x3) of Lavin & Gray (arXiv 1509.09308): squares of two by two
//! pixels from patches of four by four, with 16 products for each pair of channels where the definition has 36.
//!
//! ```text
//! patches   B^T d B        sums of up to 4 codes, in 16 bits
//! weights   2G g (2G)^T    up to 9 weights, in 16 bits; doubled along both axes, which keeps halves out
//! sums      of their products over channels, one for each of 16 places
//! pixels    A^T m A / 4    the integers of the definition
//! ```
//!
//! All of it is exact, since sums in 32 bits may wrap: of the result, four times the definition's, it matters only that it fits.
//! So nothing but speed depends on which way is taken.
//!
//! Products of 16 bits are worth it where those of bytes need more than one instruction, that is, before VNNI: the 16 products of one
//! `vpmaddwd` stand for 36 of the definition's. Weights are transformed once for a tile of two thousand pixels, patches once for as many panels
//! of 48 channels as a task takes: kept for longer, they would fill four and eight times the memory of what they are made from.

use super::super::arena::{CodesView, typed_mut};
use super::super::epilogue::Epilogue;
use super::super::gemm::{Finish, RowSource, Windows, largest_product, row_step};
use super::super::scratch;
use super::super::simd::tiles::{MatrixMut, Order, TileMut, for_each_tile};
use super::super::simd::{GROUP, Isa, LARGEST_PRODUCT, MR, NR, Tile, panel_len, vectorized};
use super::super::sink::Plain;
use super::Pixels;
use crate::backend::args::{Conv2dArgs, Input};
use crate::codec::layout::PackedMatrix;
use std::ops::Range;
use zerocopy::{FromBytes, IntoBytes};

/// Places of a transformed patch.
const PLACES: usize = 16;
/// Squares at a time, side by side: their patches stay near while the weights of all places go by.
const SQUARES: usize = 16;
/// Tiles of sums that as many squares have at a place.
const BLOCKS: usize = SQUARES / MR;
/// Numbers between what lies at one place and at the next: without them all sixteen share a few lines of the nearest cache, and
/// transforming patches takes a third to a half longer (512 and 128 channels, Zen 3).
const GAP: usize = 32;
/// Fewest pixels along a line, and in all: less leaves tiles empty, or does not pay for transforming weights.
const LEAST: [usize; 2] = [16, 256];
/// Fewest output channels: less does not pay for transforming patches.
const LEAST_CHANNELS: usize = NR;

/// Whether a convolution is faster this way.
pub fn suits<I: Isa>(isa: I, pixels: &Pixels<'_, u8>, codes: &CodesView<'_>, weight: &PackedMatrix<'_>) -> bool {
    let [height, width] = pixels.window.out;
    let enough = width >= LEAST[0] && height * width >= LEAST[1] && weight.layout.rows >= LEAST_CHANNELS;
    let whole = pixels.window.stride == 1 && pixels.channels.is_multiple_of(LANES);
    // Tables are looked at only where it matters what is in them.
    if !(enough && whole && isa.multiplies_words(LARGEST_PRODUCT)) {
        return false;
    }
    let largest = largest_product(codes, weight, 0..weight.layout.rows);
    // Four times the definition's sum fits 32 bits.
    let fits = (36 * pixels.channels as u64).saturating_mul(largest.into()) <= i32::MAX as u64;
    fits && isa.multiplies_words(largest)
}

/// Bytes of private memory, if it may be done this way.
pub fn scratch_bytes<I: Isa>(isa: I, args: &Conv2dArgs) -> usize {
    match &args.x {
        Input::Codes(x) if x.cols.is_multiple_of(LANES) && isa.multiplies_words(LARGEST_PRODUCT) => {
            Sizes::new(x.cols, args.y.cols.min(most_channels(x.cols))).bytes()
        }
        _ => 0,
    }
}

/// Most bytes of transformed weights a task should hold: a thread's share of the last cache.
const NEAR: usize = 2 << 20;
/// Most panels of a task.
const MOST_PANELS: usize = 8;

/// Most output channels of a task, whole panels.
fn most_channels(len: usize) -> usize {
    (NEAR / (PLACES * NR * len * size_of::<i16>())).clamp(1, MOST_PANELS) * NR
}

/// Rows of the result and output channels of a task. Does not change any result.
fn task_sizes([m, width]: [usize; 2], n: usize, len: usize) -> [usize; 2] {
    let tasks = |rows: usize, panels: usize| m.div_ceil(rows) * n.div_ceil(panels * NR);
    let enough = 8 * rayon::current_num_threads();
    let mut rows = row_step(m, n, len, 1 << 20);
    if tasks(2 * rows, 1) >= enough {
        rows *= 2;
    }
    // Whole pairs of lines.
    let rows = rows.next_multiple_of(2 * width);
    let panels = (1..=most_channels(len) / NR).rev().find(|&panels| tasks(rows, panels) >= enough);
    [rows, panels.unwrap_or(1) * NR]
}

/// Where private memory of a task lies, in numbers of each kind.
#[derive(Clone, Copy)]
struct Sizes {
    /// A group's weights, as [`Isa::decode`] leaves them.
    panel: usize,
    /// Transformed weights at a place, in pairs.
    weights: usize,
    /// Transformed patches at a place: a row for each square.
    patches: usize,
}

impl Sizes {
    /// For `len` channels of input and `outputs` of output.
    fn new(len: usize, outputs: usize) -> Self {
        Sizes {
            panel: GROUP * panel_len(9 * len),
            weights: (outputs.next_multiple_of(GROUP) * len + GAP) / 2,
            patches: SQUARES * len + GAP,
        }
    }

    fn bytes(&self) -> usize {
        self.panel + PLACES * (self.weights * 4 + self.patches * 2 + BLOCKS * size_of::<Tile<i32>>())
    }
}

/// Private memory of a task.
struct Memory<'a> {
    sizes: Sizes,
    panel: &'a mut [i8],
    weights: &'a mut [u32],
    patches: &'a mut [i16],
    /// Sums, `BLOCKS` tiles at each place.
    sums: &'a mut [Tile<i32>],
}

impl<'a> Memory<'a> {
    fn new(bytes: &'a mut [u8], sizes: Sizes) -> Self {
        let (panel, rest) = bytes.split_at_mut(sizes.panel);
        let (weights, rest) = rest.split_at_mut(PLACES * sizes.weights * 4);
        let (patches, sums) = rest.split_at_mut(PLACES * sizes.patches * 2);
        Memory {
            sizes,
            panel: typed_mut(panel),
            weights: typed_mut(weights),
            patches: typed_mut(patches),
            sums: typed_mut(sums),
        }
    }
}

/// What [`product_i8`](super::super::gemm::product_i8) computes, for convolutions that this [`suits`].
pub fn product<I: Isa>(
    isa: I,
    pixels: &Pixels<'_, u8>,
    codes: &CodesView<'_>,
    weight: &PackedMatrix<'_>,
    epilogue: &Epilogue<'_>,
    out: MatrixMut<'_, f32>,
) {
    let (m, n, len) = (out.rows(), weight.layout.rows, pixels.channels);
    let [height, width] = pixels.window.out;
    for_each_tile(out, task_sizes([m, width], n, len), Order::ByRows, |mut tile| {
        let (first, outputs) = (tile.cols.start, tile.cols.len());
        let sizes = Sizes::new(len, outputs);
        scratch::with(sizes.bytes(), |bytes| {
            let memory = Memory::new(bytes, sizes);
            for g in 0..outputs.div_ceil(GROUP) {
                isa.decode(weight, first / GROUP + g, memory.panel);
                let to = &mut memory.weights[g * GROUP * len / 2..];
                isa.run(TransformWeights, (&*memory.panel, len / 4, sizes.weights, to));
            }
            let panels = std::array::from_fn(|i| {
                let columns = first + i * NR..(first + (i + 1) * NR).min(first + outputs);
                let taps = [pixels.taps(), len];
                (!columns.is_empty()).then(|| Finish::new(codes, weight, epilogue, Plain, taps, m, columns))
            });
            let mut task = Task { isa, pixels, memory, panels };
            let mut line = tile.rows.start / width;
            while line * width < tile.rows.end {
                // The second line of a pair, unless the picture or the tile ends.
                let second = (line + 1) % height != 0 && (line + 1) * width < tile.rows.end;
                let lines = 1 + usize::from(second);
                for x in (0..width).step_by(2 * SQUARES) {
                    task.squares([line / height, line % height, x], lines, &mut tile);
                }
                line += lines;
            }
        });
    });
}

/// A tile at work.
struct Task<'a, I> {
    isa: I,
    pixels: &'a Pixels<'a, u8>,
    memory: Memory<'a>,
    panels: [Option<Finish<'a, Plain>>; MOST_PANELS],
}

impl<I: Isa> Task<'_, I> {
    /// Makes the squares from column `x` on of one or two lines from `y` on.
    fn squares(&mut self, [sample, y, x]: [usize; 3], lines: usize, tile: &mut TileMut<'_, f32>) {
        let (isa, pixels, len) = (self.isa, self.pixels, self.pixels.channels);
        let Memory { sizes, weights, patches, sums, .. } = &mut self.memory;
        let [height, width] = pixels.window.out;
        let count = (width - x).min(2 * SQUARES);
        for square in 0..count.div_ceil(2) {
            let patch = pixels.patch(sample, y, x + 2 * square);
            isa.run(TransformPatch, (&patch, [len, square], &mut **patches));
        }
        let blocks = count.div_ceil(2 * MR);
        let mut windows = Windows::new();
        let mut acc = [[[[0; NR]; MR]; 2]; 2];
        for finish in self.panels.iter_mut().flatten() {
            let Range { start, end } = finish.channels;
            let panel = (start - tile.cols.start) * len / 2;
            let groups = (end - start).div_ceil(GROUP);
            let places = weights.chunks_exact(sizes.weights).zip(patches.chunks_exact(sizes.patches));
            for ((weights, patches), sums) in places.zip(sums.chunks_exact_mut(BLOCKS)) {
                let weights = weights[panel..][..groups * GROUP * len / 2].as_bytes();
                let weights = <[i16]>::ref_from_bytes(weights).expect("pairs of words");
                for (block, sums) in sums.iter_mut().enumerate().take(blocks) {
                    let rows = std::array::from_fn(|i| &patches[(block * MR + i) * len..][..len]);
                    isa.tile_i16(&rows, weights, groups, sums);
                }
            }
            for block in 0..blocks {
                isa.run(TransformSums, (&**sums, block, &mut acc));
                for (line, half) in (0..lines).flat_map(|line| [(line, 0), (line, 1)]) {
                    let first = x + (2 * block + half) * MR;
                    if first < width {
                        let count = (width - first).min(MR);
                        let m0 = (sample * height + y + line) * width + first;
                        pixels.fill(m0, count, &mut windows);
                        finish.run(isa, [m0, count], &windows, &acc[line][half], &mut tile.part(start..end));
                    }
                }
            }
        }
    }
}

impl Pixels<'_, u8> {
    /// The four by four pixels under the windows of the square at line `y` and column `x`.
    #[inline(always)]
    fn patch(&self, sample: usize, y: usize, x: usize) -> [&[u8]; PLACES] {
        let lines: [_; 4] = self.window.lines(sample, y);
        let columns: [_; 4] = self.window.along(x, self.window.inside[1]);
        std::array::from_fn(|place| match (lines[place / 4], columns[place % 4]) {
            (Some(line), Some(column)) => &self.data[(line + column) * self.stride..][..self.channels],
            _ => &self.zeros[..self.channels],
        })
    }
}

/// Numbers of 16 bits in a vector.
const LANES: usize = 16;
type Words = [i16; LANES];

/// `a + b` and the like, number by number. Loops, not `map` or `from_fn`, which the compiler may leave in pieces.
#[inline(always)]
fn each(a: &Words, b: &Words, f: impl Fn(i16, i16) -> i16) -> Words {
    let mut out = [0; LANES];
    for i in 0..LANES {
        out[i] = f(a[i], b[i]);
    }
    out
}

/// Codes as words.
#[inline(always)]
fn widen(bytes: &[u8; LANES]) -> Words {
    let mut out = [0; LANES];
    for i in 0..LANES {
        out[i] = bytes[i].into();
    }
    out
}

/// `B^T` of four numbers.
#[inline(always)]
fn transform([a, b, c, d]: &[Words; 4]) -> [Words; 4] {
    [each(a, c, |a, c| a - c), each(b, c, |b, c| b + c), each(c, b, |c, b| c - b), each(b, d, |b, d| b - d)]
}

vectorized! {
    /// `B^T d B` of a square's patch, into its row at each place.
    fn TransformPatch<'a, I>(patch: &'a [&'a [u8]; PLACES], at: [usize; 2], patches: &'a mut [i16]) {
        let [len, square] = at;
        let mut rows = patches.chunks_exact_mut(SQUARES * len + GAP).map(|rows| rows[square * len..][..len].as_chunks_mut().0);
        let mut to = || std::array::from_fn(|_| rows.next().expect("a row at each place"));
        let of = |line: usize| std::array::from_fn(|x| patch[4 * line + x].as_chunks().0);
        // Line by line of the result, each of two lines of the patch: no more slices at a time than registers hold.
        combine(of(0), of(2), |a, c| a - c, to());
        combine(of(1), of(2), |b, c| b + c, to());
        combine(of(2), of(1), |c, b| c - b, to());
        combine(of(1), of(3), |b, d| b - d, to());
    }
}

/// A line of a transformed patch.
#[inline(always)]
fn combine(a: [&[[u8; LANES]]; 4], b: [&[[u8; LANES]]; 4], join: impl Fn(i16, i16) -> i16, to: [&mut [Words]; 4]) {
    let n = to[0].len();
    let ([a, b], [to0, to1, to2, to3]) = ([a, b].map(|line| line.map(|codes| &codes[..n])), to.map(|to| &mut to[..n]));
    for i in 0..n {
        let mut columns = [[0; LANES]; 4];
        for x in 0..4 {
            columns[x] = each(&widen(&a[x][i]), &widen(&b[x][i]), &join);
        }
        [to0[i], to1[i], to2[i], to3[i]] = transform(&columns);
    }
}

/// Weights of a group's channels for four inputs.
const QUAD: usize = 4 * GROUP;

/// `2G` of three numbers, for all of a quad: numbers from here to there, in loops of known length that become vectors.
#[inline(always)]
fn spread<T: Copy + Into<i16>>([a, b, c]: [&[T; QUAD]; 3], [to0, to1, to2, to3]: &mut [[i16; QUAD]; 4]) {
    for i in 0..QUAD {
        let (a, b, c): (i16, i16, i16) = (a[i].into(), b[i].into(), c[i].into());
        (to0[i], to1[i], to2[i], to3[i]) = (2 * a, a + b + c, a - b + c, 2 * c);
    }
}

vectorized! {
    /// `2G g (2G)^T` of a group's weights of nine taps, `quads` each, from the order of [`Isa::tile_i8`] to that of
    /// [`Isa::tile_i16`], in pairs; places are `stride` pairs apart.
    fn TransformWeights<'a, I>(panel: &'a [i8], quads: usize, stride: usize, weights: &'a mut [u32]) {
        for quad in 0..quads {
            let tap = |tap: usize| -> &[i8; QUAD] { panel[(tap * quads + quad) * QUAD..].first_chunk().expect("nine taps") };
            let mut columns = [[[0; QUAD]; 4]; 3];
            for (x, to) in columns.iter_mut().enumerate() {
                spread([tap(x), tap(3 + x), tap(6 + x)], to);
            }
            let [a, b, c] = &columns;
            for y in 0..4 {
                let mut line = [[0; QUAD]; 4];
                spread([&a[y], &b[y], &c[y]], &mut line);
                for (x, words) in line.into_iter().enumerate() {
                    let pairs: [[u32; 2]; GROUP] = zerocopy::transmute!(words);
                    let to = &mut weights[(4 * y + x) * stride + 2 * quad * GROUP..][..2 * GROUP];
                    let (first, second) = to.split_at_mut(GROUP);
                    for (channel, pairs) in pairs.into_iter().enumerate() {
                        [first[channel], second[channel]] = pairs;
                    }
                }
            }
        }
    }
}

vectorized! {
    /// `A^T m A / 4` of the squares of a block: by line of pixels, then by eight of them.
    fn TransformSums<'a, I>(sums: &'a [Tile<i32>], block: usize, out: &'a mut [[Tile<i32>; 2]; 2]) {
        let tiles: [&Tile<i32>; PLACES] = std::array::from_fn(|place| &sums[place * BLOCKS + block]);
        for square in 0..MR {
            let m: [&[i32; NR]; PLACES] = tiles.map(|tile| &tile[square]);
            let mut pixels = [[0; NR]; 4];
            for j in 0..NR {
                let m: [i32; PLACES] = std::array::from_fn(|place| m[place][j]);
                let lines: [[i32; 4]; 2] = [
                    std::array::from_fn(|x| m[x].wrapping_add(m[4 + x]).wrapping_add(m[8 + x])),
                    std::array::from_fn(|x| m[4 + x].wrapping_sub(m[8 + x]).wrapping_sub(m[12 + x])),
                ];
                for (line, [a, b, c, d]) in lines.into_iter().enumerate() {
                    pixels[2 * line][j] = a.wrapping_add(b).wrapping_add(c) >> 2;
                    pixels[2 * line + 1][j] = b.wrapping_sub(c).wrapping_sub(d) >> 2;
                }
            }
            for (i, pixel) in pixels.into_iter().enumerate() {
                let along = 2 * square + i % 2;
                out[i / 2][along / MR][along % MR] = pixel;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Window, ZERO_CODES};
    use super::*;
    use crate::backend::cpu::Tier;
    use crate::backend::cpu::gemm::product_i8;
    use crate::codec::layout::pack;
    use crate::codec::{Bits, Grain, QuantizedMatrix, TableValues};
    use crate::program::{Act, ConvStride};
    use fastrand::Rng;
    use half::f16;

    /// A convolution of random codes by random weights, or of nothing but the largest.
    struct Layer {
        /// Samples, lines and columns of the input.
        sizes: [usize; 3],
        channels: usize,
        outputs: usize,
        sampling: ConvStride,
        largest: bool,
    }

    impl Layer {
        /// Both ways on `isa`, and whether this one would be chosen.
        fn run<I: Isa>(&self, isa: I) -> ([Vec<f32>; 2], bool) {
            let Layer { sizes: [n, height, width], channels, outputs, sampling, largest } = *self;
            let mut rng = Rng::with_seed(7);
            let matrix = QuantizedMatrix {
                bits: Bits::new(8).expect("8 bits"),
                rows: outputs,
                cols: 9 * channels,
                codes: (0..9 * outputs * channels).map(|_| if largest { 0 } else { rng.u8(..) }).collect(),
                table: TableValues::I8((i8::MIN..=i8::MAX).collect()),
                grain: Grain::Tensor,
                scale: (0..outputs).map(|_| f16::from_f32(rng.f32()).to_f32()).collect(),
                offset: (0..outputs).map(|_| f16::from_f32(rng.f32()).to_f32()).collect(),
            };
            let (layout, packed) = pack(&matrix, 9);
            let mut lines = vec![[0u64; 8]; packed.len().div_ceil(64) + 1];
            let bytes = lines.as_mut_slice().as_flattened_mut();
            let skip = bytes.as_ptr().align_offset(64);
            let bytes = zerocopy::IntoBytes::as_mut_bytes(&mut bytes[skip..]);
            bytes[..packed.len()].copy_from_slice(&packed);
            let weight = PackedMatrix::new(layout, &bytes[..packed.len()]).expect("packed");

            let rows = n * height * width;
            let data: Vec<u8> = (0..rows * channels).map(|_| if largest { 255 } else { rng.u8(..) }).collect();
            let sums: Vec<i32> = data.chunks(channels).map(|row| row.iter().map(|&q| i32::from(q)).sum()).collect();
            let [scale, zero] = [(); 2].map(|()| (0..n).map(|_| rng.f32()).collect::<Vec<_>>());
            let codes = CodesView {
                codes: &data,
                stride: channels,
                cols: channels,
                top: 255,
                scale: &scale,
                zero: &zero,
                sum: &sums,
                rows_per_group: height * width,
            };
            let out = [height, width].map(|pixels| sampling.rows(pixels).expect("few"));
            let window = Window {
                height,
                width,
                out,
                inside: if sampling == ConvStride::Up { out } else { [height, width] },
                sampling,
                stride: sampling.stride(),
                before: sampling.before(),
                shift: sampling.upsample().trailing_zeros(),
            };
            let pixels = Pixels { data: &data, stride: channels, channels, zeros: &ZERO_CODES, sums: &sums, window };
            let epilogue =
                Epilogue { bias: None, shift: None, act: Act::None, gated: false, gate: None, residual: None };
            let results = [false, true].map(|squares| {
                let mut y = vec![f32::NAN; n * out[0] * out[1] * outputs];
                let to = MatrixMut { data: &mut y, cols: outputs, stride: outputs };
                match squares {
                    true => product(isa, &pixels, &codes, &weight, &epilogue, to),
                    false => product_i8(isa, &pixels, &codes, &weight, &epilogue, Plain, to),
                }
                y
            });
            (results, suits(isa, &pixels, &codes, &weight))
        }

        fn on(&self, tier: Tier) -> ([Vec<f32>; 2], bool) {
            match tier {
                #[cfg(target_arch = "x86_64")]
                Tier::Avx512(isa) => self.run(isa),
                #[cfg(target_arch = "x86_64")]
                Tier::Avx2(isa) => self.run(isa),
                Tier::Portable(isa) => self.run(isa),
            }
        }
    }

    /// As for the tests of all ops: instructions that nobody has seen are left to those.
    fn tiers() -> impl Iterator<Item = Tier> {
        Tier::available().into_iter().filter(|tier| tier.name() != "amx")
    }

    #[test]
    fn squares_of_pixels_are_those_of_the_definition_to_the_bit() {
        let sizes = [[1, 1, 1], [1, 2, 2], [2, 3, 5], [3, 1, 17], [1, 16, 16], [2, 9, 33], [1, 4, 64], [1, 3, 70]];
        for (i, sizes) in sizes.into_iter().enumerate() {
            for sampling in [ConvStride::Same, ConvStride::Up] {
                let [channels, outputs] = [[16, 3], [32, 48], [48, 50], [16, 113]][i % 4];
                let layer = Layer { sizes, channels, outputs, sampling, largest: false };
                for tier in tiers() {
                    let ([plain, squares], _) = layer.on(tier);
                    assert!(plain == squares, "{sizes:?} {channels} to {outputs} {sampling:?} on {}", tier.name());
                }
            }
        }
    }

    #[test]
    fn the_largest_codes_and_weights_do_not_overflow_where_they_suit() {
        // 36 x 1824 x 255 x 128 is within 31 bits, 36 x 1840 x 255 x 128 is not.
        for (channels, fits) in [(1824, true), (1840, false)] {
            let sizes = [1, 16, 16];
            let layer = Layer { sizes, channels, outputs: 48, sampling: ConvStride::Same, largest: true };
            for tier in tiers() {
                let ([plain, squares], suits) = layer.on(tier);
                assert!(plain == squares || !fits, "{channels} on {}", tier.name());
                assert_eq!(suits, fits && tier.name() == "avx2", "{channels} on {}", tier.name());
            }
        }
    }
}
