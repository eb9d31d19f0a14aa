//! Softmax attention in 8-bit codes: exact integer sums of codes, softmax in floats between them.
//!
//! Keys and values of a head are turned into panels of codes once, by a first parallel pass, in the op's workspace. Then a
//! task is one head and up to 256 queries, as in the float kernel:
//!
//! ```text
//! scores   u8 codes of q (zero 128) by i8 codes of k       a scale per query, a scale per key
//! weights  2^(score - the block's highest), 255 levels     exact sums of the codes are the denominators
//! result   u8 weights by i8 codes of v                     a scale per feature
//! blocks   joined in floats, as online softmax joins them  (Milakov & Gimelshein 2018)
//! ```
//!
//! Weights are relative to the highest of their own block of keys, not of the whole row: where thousands of keys weigh
//! about the same, or one of another block outweighs them all, they keep their eight bits. Half a code is rounded by a
//! threshold that changes from key to key, so that a long tail of weights below half a code keeps its mass.
//!
//! Two shifts cost nothing, because weights sum to 1: the mean of the keys leaves the softmax as it is (Zhang et al.,
//! SageAttention, arXiv 2410.02367), and the middle of a feature's values, added again at the end, makes symmetric codes
//! cover any range.
//!
//! Blocks begin at fixed keys and a query is quantized alone, so a result depends neither on batch nor threads nor tiles.

use super::arena::{Arena, floats_mut, typed_mut};
use super::math::{LANES, exp, fma, greater, greatest, least, lesser};
use super::scratch;
use super::simd::tiles::{Order, TileMut, for_each_tile};
use super::simd::{GROUP, GROUPS, Isa, MR, NR, Tile, panel_len, vectorized};
use crate::backend::args::AttentionArgs;
use rayon::prelude::*;
use zerocopy::{FromBytes, IntoBytes};

/// Keys per block. Sums of `KEYS` products of codes are integers that f32 holds.
const KEYS: usize = 6 * NR;
const _: () = assert!(KEYS * 255 * 127 < 1 << 24);
/// Queries per task.
const QUERIES: usize = 256;
/// The code of 0 in queries.
const ZERO: u8 = 128;
/// Highest code of queries, keys and values.
const TOP: f32 = 127.0;
/// Adding and subtracting this rounds to an integer, ties to even, for magnitudes below 2^22.
const ROUND: f32 = 12_582_912.0;

/// Bytes of one head's codes, all of them multiples of 64.
#[derive(Clone, Copy)]
struct Sizes {
    /// Bytes of a key's codes.
    key: usize,
    /// Features, in whole groups.
    wide: usize,
    /// Keys, in whole groups.
    keys: usize,
    /// Keys, in whole tiles: so many numbers there are per key.
    numbers: usize,
}

impl Sizes {
    fn new(e: usize, tk: usize) -> Self {
        Sizes {
            key: panel_len(e),
            wide: e.next_multiple_of(GROUP),
            keys: tk.next_multiple_of(GROUP),
            numbers: tk.next_multiple_of(NR),
        }
    }

    /// Bytes of a head in the workspace.
    fn head(&self) -> usize {
        self.keys * (self.key + self.wide) + self.numbers * 8 + self.wide * 12
    }

    /// Bytes of private memory.
    fn private(&self) -> usize {
        QUERIES * (self.key + self.wide * 4 + 12) + MR * KEYS * 5
    }
}

/// Bytes of workspace: the codes of one sample's keys and values.
pub fn workspace(args: &AttentionArgs) -> usize {
    args.heads * Sizes::new(args.q.cols / args.heads, args.keys).head()
}

/// Bytes of private memory.
pub fn scratch_bytes(args: &AttentionArgs) -> usize {
    Sizes::new(args.q.cols / args.heads, args.keys).private()
}

/// See [`Op::Attention`](crate::program::Op::Attention).
pub fn attention<I: Isa>(isa: I, arena: &mut Arena, call: usize, args: &AttentionArgs) {
    let (y, w) = (args.y.slot.of(call), args.workspace.of(call));
    let (out, work, reads) = arena.split(y..y + args.y.bytes(), w..w + workspace(args));
    let (q, k, v) = (reads.floats(&args.q, call), reads.floats(&args.k, call), reads.floats(&args.v, call));
    let (d, e) = (args.q.cols, args.q.cols / args.heads);
    let (tq, tk) = (args.q.rows / args.samples, args.keys);
    let conditions: Option<&[u32]> = args.condition.map(|slot| reads.slice(slot.at, args.samples));
    let sizes = Sizes::new(e, tk);
    for (sample, out) in floats_mut(out).chunks_exact_mut(tq * d).enumerate() {
        let of_keys = conditions.map_or(sample, |c| c[sample] as usize);
        let (q, k, v) = (&q[sample * tq * d..], &k[of_keys * tk * d..][..tk * d], &v[of_keys * tk * d..][..tk * d]);
        work.par_chunks_exact_mut(sizes.head()).enumerate().with_max_len(1).for_each(|(head, bytes)| {
            let place = [d, e, tk, head * e];
            let codes = CodesMut::new(bytes, &sizes);
            isa.run(EncodeKeys, (k, place, codes.keys, codes.scales, codes.offsets, codes.mean));
            isa.run(EncodeValues, (v, place, codes.values, codes.middle, codes.steps));
        });
        let work = &*work;
        for_each_tile(floats_mut(out.as_mut_bytes()), d, [QUERIES, e], Order::ByColumns, |tile| {
            let codes = Codes::new(&work[tile.cols.start / e * sizes.head()..][..sizes.head()], &sizes);
            scratch::with(sizes.private(), |bytes| {
                Head { isa, d, e, tk, scale: args.scale, causal: args.causal, q, codes, sizes }.run(bytes, tile);
            });
        });
    }
}

/// A head's keys and values, to write.
struct CodesMut<'a> {
    keys: &'a mut [u32],
    values: &'a mut [u32],
    scales: &'a mut [f32],
    offsets: &'a mut [f32],
    mean: &'a mut [f32],
    middle: &'a mut [f32],
    steps: &'a mut [f32],
}

impl<'a> CodesMut<'a> {
    fn new(bytes: &'a mut [u8], sizes: &Sizes) -> Self {
        let (keys, rest) = bytes.split_at_mut(sizes.keys * sizes.key);
        let (values, rest) = rest.split_at_mut(sizes.keys * sizes.wide);
        let (scales, rest) = floats_mut(rest).split_at_mut(sizes.numbers);
        let (offsets, rest) = rest.split_at_mut(sizes.numbers);
        let (mean, rest) = rest.split_at_mut(sizes.wide);
        let (middle, steps) = rest.split_at_mut(sizes.wide);
        CodesMut { keys: typed_mut(keys), values: typed_mut(values), scales, offsets, mean, middle, steps }
    }
}

/// A head's keys and values.
struct Codes<'a> {
    /// Panels of 16 keys, in the order of [`Isa::tile_i8`].
    keys: &'a [i8],
    /// Per block of keys, panels of 16 features.
    values: &'a [i8],
    /// Step of each key's codes.
    scales: &'a [f32],
    /// What a score has too much, because queries are coded with zero 128: to be added.
    offsets: &'a [f32],
    /// The middle of each feature's values.
    middle: &'a [f32],
    /// Step of each feature's codes.
    steps: &'a [f32],
}

impl<'a> Codes<'a> {
    fn new(bytes: &'a [u8], sizes: &Sizes) -> Self {
        let (keys, rest) = bytes.split_at(sizes.keys * sizes.key);
        let (values, rest) = rest.split_at(sizes.keys * sizes.wide);
        let floats = <[f32]>::ref_from_bytes(rest).expect("parts of a head are multiples of 64 bytes");
        let (scales, rest) = floats.split_at(sizes.numbers);
        let (offsets, rest) = rest.split_at(sizes.numbers);
        let (middle, steps) = rest[sizes.wide..].split_at(sizes.wide);
        let [keys, values] = [keys, values].map(|b| <[i8]>::ref_from_bytes(b).expect("bytes"));
        Codes { keys, values, scales, offsets, middle, steps }
    }
}

/// One head of one sample.
struct Head<'a, I: Isa> {
    isa: I,
    d: usize,
    e: usize,
    tk: usize,
    scale: f32,
    causal: bool,
    q: &'a [f32],
    codes: Codes<'a>,
    sizes: Sizes,
}

impl<I: Isa> Head<'_, I> {
    /// How many of the `n` keys from key `first` a query sees.
    fn seen(&self, query: usize, first: usize, n: usize) -> usize {
        if self.causal { n.min((query + 1).saturating_sub(first)) } else { n }
    }

    fn run(&self, memory: &mut [u8], mut tile: TileMut) {
        let Sizes { key, wide, .. } = self.sizes;
        let Codes { keys, values, scales, offsets, middle, steps } = self.codes;
        let (queries, rest) = memory.split_at_mut(QUERIES * key);
        let (weights, rest) = rest.split_at_mut(MR * KEYS);
        let (scores, rest) = floats_mut(rest).split_at_mut(MR * KEYS);
        let scores: &mut [Tile<f32>] = typed_mut(scores.as_mut_bytes());
        let (sums, rest) = rest.split_at_mut(QUERIES * wide);
        let (slopes, rest) = rest.split_at_mut(QUERIES);
        let (highest, totals) = rest.split_at_mut(QUERIES);
        let rows = tile.rows.clone();
        let count = rows.len();
        let q = &self.q[rows.start * self.d..][..count * self.d];
        self.isa.run(EncodeQueries, (q, [self.d, self.e, tile.cols.start, key], self.scale, queries, slopes));
        // Rows that fill the last tile up: any codes will do.
        slopes[count..].fill(1.0);
        sums.fill(0.0);
        totals.fill(0.0);
        highest.fill(f32::NEG_INFINITY);
        let mut acc: Tile<i32> = [[0; NR]; MR];
        for first in (0..self.tk).step_by(KEYS) {
            let n = KEYS.min(self.tk - first);
            if self.seen(rows.end - 1, first, n) == 0 {
                break;
            }
            let values = &values[first * wide..][..panel_len(n) * wide];
            for q0 in (0..count).step_by(MR) {
                let seen: [usize; MR] = std::array::from_fn(|i| self.seen(rows.start + q0 + i, first, n));
                if seen[MR - 1] == 0 {
                    continue;
                }
                let queries: [&[u8]; MR] = std::array::from_fn(|i| &queries[(q0 + i) * key..][..key]);
                let mut most = [[f32::NEG_INFINITY; LANES]; MR];
                for (at, scores) in (0..seen[MR - 1]).step_by(NR).zip(scores.iter_mut()) {
                    let groups = (n - at).div_ceil(GROUP).min(GROUPS);
                    let panel = &keys[(first + at) * key..][..groups * GROUP * key];
                    self.isa.tile_i8(&queries, self.e.div_ceil(4), panel, groups, &mut acc);
                    let keys = [scales, offsets].map(|x| x[first + at..].first_chunk().expect("whole tiles"));
                    self.isa.run(Scale, (&acc, keys, scores, &mut most));
                }
                let state = Rows {
                    slopes: slopes[q0..].first_chunk().expect("whole tiles"),
                    highest: highest[q0..].first_chunk_mut().expect("whole tiles"),
                    totals: totals[q0..].first_chunk_mut().expect("whole tiles"),
                };
                let factors = self.isa.run(Weigh, (&mut *scores, &most, &seen, state, weights));
                let weights: [&[u8]; MR] = std::array::from_fn(|i| &weights[i * KEYS..][..KEYS]);
                let sums = &mut sums[q0 * wide..][..MR * wide];
                for c in (0..wide).step_by(NR) {
                    let groups = ((wide - c) / GROUP).min(GROUPS);
                    let panel = &values[c * panel_len(n)..][..groups * GROUP * panel_len(n)];
                    self.isa.tile_i8(&weights, n.div_ceil(4), panel, groups, &mut acc);
                    self.isa.run(Join, (&acc, &factors, [wide, c, groups * GROUP], sums));
                }
            }
        }
        for (i, row) in rows.enumerate() {
            let inverse = 1.0 / totals[i];
            let features = middle.iter().zip(steps).zip(&sums[i * wide..]);
            for (out, ((middle, step), sum)) in tile.row(row).iter_mut().zip(features) {
                *out = middle + step * (sum * inverse);
            }
        }
    }
}

/// The symmetric code of `x`, whose step is `1 / inverse`.
#[inline(always)]
fn code(x: f32, inverse: f32) -> i32 {
    (greater(lesser(x * inverse, TOP), -TOP) + ROUND).to_bits() as i32 - ROUND.to_bits() as i32
}

/// Step of symmetric codes for magnitudes up to `most`, and its inverse. What is too small to divide by has codes 0.
#[inline(always)]
fn step(most: f32) -> (f32, f32) {
    if most > 1e-30 { (most / TOP, TOP / most) } else { (0.0, 0.0) }
}

/// Four codes as they lie in a panel.
#[inline(always)]
fn quad(codes: [i32; 4]) -> u32 {
    u32::from_le_bytes(codes.map(|c| c as u8))
}

vectorized! {
    /// Queries as codes with zero 128, `stride` bytes each, and the factor that brings their scores to powers of 2.
    fn EncodeQueries<'a, I>(
        q: &'a [f32], sizes: [usize; 4], scale: f32, codes: &'a mut [u8], slopes: &'a mut [f32],
    ) {
        let [d, e, column, stride] = sizes;
        for ((row, codes), slope) in q.chunks_exact(d).zip(codes.chunks_exact_mut(stride)).zip(slopes) {
            let row = &row[column..][..e];
            let most = greater(greatest(row), -least(row)) * scale.abs();
            let (size, inverse) = step(most);
            for (code_at, &x) in codes.iter_mut().zip(row) {
                *code_at = (code(x * scale, inverse) + i32::from(ZERO)) as u8;
            }
            codes[e..].fill(ZERO);
            // Not 0, which is no factor for an infinite distance.
            *slope = greater(size * std::f32::consts::LOG2_E, f32::MIN_POSITIVE);
        }
    }
}

/// The greatest `|x - y|`.
#[inline(always)]
fn furthest(x: &[f32], y: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    let ((x, x_rest), (y, y_rest)) = (x.as_chunks::<LANES>(), y.as_chunks::<LANES>());
    for (x, y) in x.iter().zip(y) {
        for i in 0..LANES {
            lanes[i] = greater(lanes[i], (x[i] - y[i]).abs());
        }
    }
    for (lane, (x, y)) in lanes.iter_mut().zip(x_rest.iter().zip(y_rest)) {
        *lane = greater(*lane, (x - y).abs());
    }
    greatest(&lanes)
}

vectorized! {
    /// Keys less their mean as codes, in panels; their steps, and what scores need added.
    fn EncodeKeys<'a, I>(
        k: &'a [f32], place: [usize; 4], codes: &'a mut [u32], scales: &'a mut [f32], offsets: &'a mut [f32],
        mean: &'a mut [f32],
    ) {
        let [d, e, tk, column] = place;
        let row = |key: usize| &k[key * d + column..][..e];
        mean.fill(0.0);
        for key in 0..tk {
            for (mean, x) in mean.iter_mut().zip(row(key)) {
                *mean += x;
            }
        }
        for mean in mean.iter_mut() {
            *mean /= tk as f32;
        }
        // Spare keys have codes, steps and offsets 0; nobody looks at their scores.
        let whole = panel_len(e) / 4 * GROUP;
        if !tk.is_multiple_of(GROUP) {
            codes[tk / GROUP * whole..].fill(0);
        }
        scales[tk..].fill(0.0);
        offsets[tk..].fill(0.0);
        for key in 0..tk {
            let row = row(key);
            let (size, inverse) = step(furthest(row, &mean[..e]));
            let panel = &mut codes[key / GROUP * whole..][..whole];
            let words = panel.iter_mut().skip(key % GROUP).step_by(GROUP);
            let (row, row_rest) = row.as_chunks::<4>();
            let (mean, mean_rest) = mean[..e].as_chunks::<4>();
            let mut last = [0.0; 4];
            last.iter_mut().zip(row_rest.iter().zip(mean_rest)).for_each(|(d, (x, mean))| *d = x - mean);
            let differences = row.iter().zip(mean).map(|(x, mean)| [0, 1, 2, 3].map(|i| x[i] - mean[i]));
            let mut total = 0;
            // Words beyond the key's codes, up to a whole panel, meet no codes of a query.
            for (word, x) in words.zip(differences.chain([last])) {
                let four = x.map(|x| code(x, inverse));
                total += four.iter().sum::<i32>();
                *word = quad(four);
            }
            scales[key] = size;
            offsets[key] = -(total * i32::from(ZERO)) as f32 * size;
        }
    }
}

vectorized! {
    /// Values less their feature's middle as codes: blocks of keys, in each panels of features; middles and steps.
    fn EncodeValues<'a, I>(
        v: &'a [f32], place: [usize; 4], codes: &'a mut [u32], middle: &'a mut [f32], steps: &'a mut [f32],
    ) {
        let [d, e, tk, column] = place;
        let row = |key: usize| &v[key * d + column..][..e];
        let (least, most) = (&mut *middle, &mut *steps);
        least.fill(0.0);
        most.fill(0.0);
        least[..e].copy_from_slice(row(0));
        most[..e].copy_from_slice(row(0));
        for key in 1..tk {
            for ((least, most), &x) in least.iter_mut().zip(most.iter_mut()).zip(row(key)) {
                *least = lesser(*least, x);
                *most = greater(*most, x);
            }
        }
        for (least, most) in least.iter_mut().zip(most.iter_mut()) {
            let half = 0.5 * (*most - *least);
            *least += half;
            *most = half;
        }
        let wide = middle.len();
        let blocks = (0..tk).step_by(KEYS).zip(codes.chunks_mut(KEYS * wide / 4));
        for (first, block) in blocks {
            let n = KEYS.min(tk - first);
            for (g, panel) in block.chunks_exact_mut(panel_len(n) * GROUP / 4).enumerate() {
                let features = g * GROUP..e.min((g + 1) * GROUP);
                let inverse: [f32; GROUP] = std::array::from_fn(|f| step(steps[g * GROUP + f]).1);
                let centre: [f32; GROUP] = std::array::from_fn(|f| middle[g * GROUP + f]);
                for (q, words) in panel.chunks_exact_mut(GROUP).enumerate() {
                    // Keys and features that fill up are at the middle: code 0.
                    let mut x = [centre; 4];
                    for (i, x) in x.iter_mut().enumerate().take(n.saturating_sub(4 * q)) {
                        x[..features.len()].copy_from_slice(&row(first + 4 * q + i)[features.clone()]);
                    }
                    for f in 0..GROUP {
                        words[f] = quad([0, 1, 2, 3].map(|i| code(x[i][f] - centre[f], inverse[f])));
                    }
                }
            }
        }
        for most in steps {
            *most = step(*most).0;
        }
    }
}

vectorized! {
    /// Integer sums as scores against the keys, still without the query's factor, in tiles like theirs; and the highest
    /// of each query, lane by lane, spare keys included.
    fn Scale<'a, I>(
        acc: &'a Tile<i32>, keys: [&'a [f32; NR]; 2], scores: &'a mut Tile<f32>, most: &'a mut [[f32; LANES]; MR],
    ) {
        let [scales, offsets] = keys.map(|x| x.as_chunks::<LANES>().0);
        for i in 0..MR {
            let (acc, scores) = (acc[i].as_chunks::<LANES>().0, scores[i].as_chunks_mut::<LANES>().0);
            let mut highest = most[i];
            for g in 0..NR / LANES {
                // Whole arrays, lest the compiler fear that they overlap.
                let mut out = [0.0; LANES];
                for j in 0..LANES {
                    out[j] = fma::<I>(acc[g][j] as f32, scales[g][j], offsets[g][j]);
                }
                scores[g] = out;
                for j in 0..LANES {
                    highest[j] = greater(highest[j], out[j]);
                }
            }
            most[i] = highest;
        }
    }
}

/// What is kept of eight queries from block to block: the factor of their scores, the highest score times it, and the
/// sum of weights relative to that.
struct Rows<'a> {
    slopes: &'a [f32; MR],
    highest: &'a mut [f32; MR],
    totals: &'a mut [f32; MR],
}

/// Thresholds of rounding by key: the sixteenths, in an order that spreads any few neighbours evenly.
const THRESHOLDS: [f32; LANES] = {
    let mut all = [0.0; LANES];
    let mut i = 0;
    while i < LANES {
        all[i] = ((i * 11 % LANES) as f32 + 0.5) / LANES as f32;
        i += 1;
    }
    all
};

vectorized! {
    /// Turns the scores of eight queries, whose highest are in `lanes`, against the first `seen` keys of a block into
    /// codes of weights, 0 for the others; returns the factors of what was summed up before and of what this block adds.
    fn Weigh<'a, I>(
        scores: &'a mut [Tile<f32>], lanes: &'a [[f32; LANES]; MR], seen: &'a [usize; MR], rows: Rows<'a>, weights: &'a mut [u8],
    ) -> [[f32; MR]; 2] {
        let Rows { slopes, highest, totals } = rows;
        let mut most = [0.0; MR];
        for i in 0..MR {
            most[i] = if seen[i].is_multiple_of(NR) { join_lanes(lanes[i]) } else { hide(scores, i, seen[i]) };
        }
        let mut counts = [0.0; MR];
        for (i, weights) in weights.chunks_exact_mut(KEYS).enumerate() {
            let (codes, rest) = weights.split_at_mut(seen[i].next_multiple_of(NR));
            counts[i] = encode_weights::<I>(scores, i, most[i], slopes[i], codes) as f32;
            rest.fill(0);
        }
        let (mut shrink, mut grow) = ([0.0; MR], [0.0; MR]);
        for i in 0..MR {
            let here = most[i] * slopes[i];
            let new = greater(here, highest[i]);
            shrink[i] = exp::<I>((highest[i] - new) * std::f32::consts::LN_2);
            grow[i] = exp::<I>((here - new) * std::f32::consts::LN_2);
            highest[i] = new;
            totals[i] = fma::<I>(totals[i], shrink[i], counts[i] * grow[i]);
        }
        [shrink, grow]
    }
}

/// The highest of all lanes.
#[inline(always)]
fn join_lanes(mut lanes: [f32; LANES]) -> f32 {
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            lanes[i] = greater(lanes[i], lanes[i + half]);
        }
    }
    lanes[0]
}

/// Makes the scores of query `i` from key `seen` on the lowest there are, up to the end of its tile; returns the highest
/// of the others.
#[inline(always)]
fn hide(tiles: &mut [Tile<f32>], i: usize, seen: usize) -> f32 {
    tiles[seen / NR][i][seen % NR..].fill(f32::NEG_INFINITY);
    let mut most = [f32::NEG_INFINITY; LANES];
    for tile in &tiles[..=seen / NR] {
        for scores in tile[i].as_chunks::<LANES>().0 {
            for j in 0..LANES {
                most[j] = greater(most[j], scores[j]);
            }
        }
    }
    join_lanes(most)
}

/// `255 * 2^(slope * (score - most))` as codes, for whole tiles of keys; returns their sum.
///
/// `2^x = 2^n 2^f` with `f` in -1/2 to 1/2 and `2^f` by a minimax polynomial of our own, 7.5e-5 off: a fiftieth of a code.
/// Adding 1.5 * 2^23 + 127 rounds to `n` and leaves the exponent of `2^n` in the low bits. The same is done with the code:
/// adding 2^15 leaves its integer part in the bits above the lowest eight.
#[inline(always)]
fn encode_weights<I: Isa>(tiles: &[Tile<f32>], i: usize, most: f32, slope: f32, codes: &mut [u8]) -> u32 {
    const EXPONENT: f32 = ROUND + 127.0;
    const WHOLE: f32 = 32_768.0;
    const POLYNOMIAL: [f32; 4] = [255.0 * 0.055_171_67, 255.0 * 0.242_611_12, 255.0 * 0.693_260_99, 255.0 * 0.999_928];
    // Below 2^-9 of a code nothing is left; the exponent stays normal.
    let lowest = -17.0 / slope;
    let mut sums = [0u32; LANES];
    for (codes, tile) in codes.as_chunks_mut::<NR>().0.iter_mut().zip(tiles) {
        let (codes, scores) = (codes.as_chunks_mut::<LANES>().0, tile[i].as_chunks::<LANES>().0);
        for g in 0..NR / LANES {
            let mut bits = [0; LANES];
            for j in 0..LANES {
                let distance = greater(scores[g][j] - most, lowest);
                let shifted = fma::<I>(distance, slope, EXPONENT);
                let f = fma::<I>(distance, slope, EXPONENT - shifted);
                let [c3, c2, c1, c0] = POLYNOMIAL;
                let p = fma::<I>(fma::<I>(fma::<I>(c3, f, c2), f, c1), f, c0);
                let power = f32::from_bits(shifted.to_bits() << 23);
                bits[j] = fma::<I>(p, power, WHOLE + THRESHOLDS[j]).to_bits() >> 8;
            }
            for j in 0..LANES {
                sums[j] = sums[j].wrapping_add(bits[j]);
            }
            codes[g] = bits.map(|b| b as u8);
        }
    }
    // Every term is the code plus the bits of `WHOLE`.
    let excess = (WHOLE.to_bits() >> 8).wrapping_mul(codes.len() as u32);
    sums.iter().fold(0u32, |sum, s| sum.wrapping_add(*s)).wrapping_sub(excess)
}

vectorized! {
    /// Adds a block's weighted values to what was summed up before.
    fn Join<'a, I>(acc: &'a Tile<i32>, factors: &'a [[f32; MR]; 2], sizes: [usize; 3], sums: &'a mut [f32]) {
        let [wide, first, n] = sizes;
        let [shrink, grow] = factors;
        for (i, sums) in sums.chunks_exact_mut(wide).enumerate() {
            let (shrink, grow) = (shrink[i], grow[i]);
            let sums = sums[first..first + n].as_chunks_mut::<GROUP>().0;
            for (sums, acc) in sums.iter_mut().zip(acc[i].as_chunks::<GROUP>().0) {
                let mut out = [0.0; GROUP];
                for j in 0..GROUP {
                    out[j] = fma::<I>(sums[j], shrink, acc[j] as f32 * grow);
                }
                *sums = out;
            }
        }
    }
}
