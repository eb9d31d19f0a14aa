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

mod codes;
mod softmax;

use super::arena::{Arena, Reads, floats_mut, typed_mut};
use super::attention::{Bias, Masks, Rows};
use super::math::{LANES, fma, greater};
use super::quantize::Fixed;
use super::scratch;
use super::simd::tiles::{MatrixMut, Order, for_each_tile};
use super::simd::{GROUP, GROUPS, Isa, MR, NR, Tile, panel_len, vectorized};
use super::sink::{self, Coded, Plain, Sink};
use crate::backend::args::{AttentionArgs, Output};
use codes::{Codes, CodesMut, EncodeKeys, EncodeQueries, EncodeValues, Sizes};
use rayon::prelude::*;
use softmax::{Weigh, Weighing};
use zerocopy::IntoBytes;

/// Keys per block. Sums of `KEYS` products of codes are integers that f32 holds.
const KEYS: usize = 6 * NR;
const _: () = assert!(KEYS * 255 * 127 < 1 << 24);
/// The largest product of codes: of queries or weights, up to 255, by keys or values.
const LARGEST: u32 = 255 * 127;
/// Queries per task.
const QUERIES: usize = 256;
// Blocks and tiles begin at multiples of MR, so that of eight queries all see a key of a block, or none; and one that sees
// whole tiles only is the last of its eight, or sees what that one sees.
const _: () = assert!(KEYS.is_multiple_of(MR) && QUERIES.is_multiple_of(MR) && NR.is_multiple_of(MR));

/// Bytes of workspace: the codes of one sample's keys and values.
pub fn workspace(args: &AttentionArgs) -> usize {
    args.heads * Sizes::new(args.q.cols / args.heads, args.keys).head()
}

/// Bytes of private memory.
pub fn scratch_bytes(args: &AttentionArgs) -> usize {
    Sizes::new(args.q.cols / args.heads, args.keys).private()
}

/// See [`Op::Attention`](crate::program::Op::Attention).
pub fn attention<I: Isa>(isa: I, arena: &mut Arena, args: &AttentionArgs) {
    let (y, w) = (arena.first(args.y.slot()), arena.first(args.workspace));
    let (out, work, reads) = arena.split(y..y + args.y.bytes(), w..w + workspace(args));
    match &args.y {
        Output::Floats(y) => attend(isa, &reads, args, work, Plain, sink::floats(out, y)),
        Output::Codes(to) => {
            let ranges = Fixed::new(&reads, to.fixed, to.codes.rows);
            attend(isa, &reads, args, work, Coded::new(&ranges, to.codes.top), sink::codes(out, &to.codes));
            sink::complete(isa, out, &to.codes, &ranges);
        }
    }
}

fn attend<I: Isa, S: Sink>(
    isa: I,
    reads: &Reads<'_>,
    args: &AttentionArgs,
    work: &mut [u8],
    sink: S,
    out: MatrixMut<'_, S::Element>,
) {
    let (q, k, v) = (reads.floats(&args.q), reads.floats(&args.k), reads.floats(&args.v));
    let (d, e) = (args.q.cols, args.q.cols / args.heads);
    let (tq, tk) = (args.q.rows / args.samples, args.keys);
    let masks = Masks::new(reads, args);
    let sizes = Sizes::new(e, tk);
    let stride = out.stride;
    for (sample, data) in out.data.chunks_exact_mut(tq * stride).enumerate() {
        let (of_keys, seen) = masks.keys(sample, tk);
        let q = &q[sample * tq * d..];
        let [k, v] = [k, v].map(|x| &x[of_keys * tk * d..][..seen * d]);
        if seen > 0 {
            work.par_chunks_exact_mut(sizes.head()).enumerate().with_max_len(1).for_each(|(head, bytes)| {
                let place = [d, e, seen, head * e];
                let codes = CodesMut::new(bytes, &sizes);
                isa.run(EncodeKeys, (k, place, codes.keys, codes.scales, codes.offsets, codes.mean));
                isa.run(EncodeValues, (v, place, codes.values, codes.middle, codes.steps));
            });
        }
        let work = &*work;
        for_each_tile(MatrixMut { data, cols: d, stride }, [QUERIES, e], Order::ByColumns, |tile| {
            let mut to = Rows { sink, first: sample * tq, tile };
            if seen == 0 {
                return to.tile.rows.clone().for_each(|row| to.store(row, |_| 0.0));
            }
            let codes = Codes::new(&work[to.tile.cols.start / e * sizes.head()..][..sizes.head()], &sizes);
            scratch::with(sizes.private(), |bytes| {
                let bias = masks.bias(to.tile.cols.start / e, tq, tk);
                Head { isa, d, e, tk: seen, scale: args.scale, causal: args.causal, q, codes, sizes, bias }
                    .run(bytes, to);
            });
        });
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
    bias: Option<Bias<'a>>,
}

impl<I: Isa> Head<'_, I> {
    /// How many of the `n` keys from key `first` a query sees.
    fn seen(&self, query: usize, first: usize, n: usize) -> usize {
        if self.causal { n.min((query + 1).saturating_sub(first)) } else { n }
    }

    fn run(&self, memory: &mut [u8], mut to: Rows<'_, impl Sink>) {
        let Sizes { key, wide, .. } = self.sizes;
        let Codes { keys, values, scales, offsets, middle, steps } = self.codes;
        let (queries, rest) = memory.split_at_mut(QUERIES * key);
        let (weights, rest) = rest.split_at_mut(MR * KEYS);
        let (scores, rest) = floats_mut(rest).split_at_mut(MR * KEYS);
        let scores: &mut [Tile<f32>] = typed_mut(scores.as_mut_bytes());
        let (sums, rest) = rest.split_at_mut(QUERIES * wide);
        let (slopes, rest) = rest.split_at_mut(QUERIES);
        let (highest, totals) = rest.split_at_mut(QUERIES);
        let rows = to.tile.rows.clone();
        let count = rows.len();
        let q = &self.q[rows.start * self.d..][..count * self.d];
        self.isa.run(EncodeQueries, (q, [self.d, self.e, to.tile.cols.start, key], self.scale, queries, slopes));
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
                    self.isa.tile_i8(&queries, self.e.div_ceil(4), panel, groups, LARGEST, &mut acc);
                    let keys = [scales, offsets].map(|x| x[first + at..].first_chunk().expect("whole tiles"));
                    self.isa.run(Scale, (&acc, keys, scores, &mut most));
                }
                let mut own: [f32; MR] = *slopes[q0..].first_chunk().expect("whole tiles");
                if let Some(bias) = &self.bias {
                    // Rows that fill the last tile up repeat its last query.
                    let rows =
                        std::array::from_fn(|i| bias.of(rows.start + (q0 + i).min(count - 1), first, seen[MR - 1]));
                    most = self.isa.run(AddBias, (&mut *scores, &rows, &own));
                    own = [1.0; MR];
                }
                let state = Weighing {
                    slopes: &own,
                    highest: highest[q0..].first_chunk_mut().expect("whole tiles"),
                    totals: totals[q0..].first_chunk_mut().expect("whole tiles"),
                };
                let factors = self.isa.run(Weigh, (&mut *scores, &most, &seen, state, weights));
                let weights: [&[u8]; MR] = std::array::from_fn(|i| &weights[i * KEYS..][..KEYS]);
                let sums = &mut sums[q0 * wide..][..MR * wide];
                for c in (0..wide).step_by(NR) {
                    let groups = ((wide - c) / GROUP).min(GROUPS);
                    let panel = &values[c * panel_len(n)..][..groups * GROUP * panel_len(n)];
                    self.isa.tile_i8(&weights, n.div_ceil(4), panel, groups, LARGEST, &mut acc);
                    self.isa.run(Join, (&acc, &factors, [wide, c, groups * GROUP], sums));
                }
            }
        }
        for (i, row) in rows.enumerate() {
            let inverse = 1.0 / totals[i];
            let sums = &sums[i * wide..][..wide];
            to.store(row, |feature| middle[feature] + steps[feature] * (sums[feature] * inverse));
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

vectorized! {
    /// Scores as powers of 2, with their bias, which ends with the keys that anybody sees. Returns the highest as
    /// [`Scale`] does.
    fn AddBias<'a, I>(
        scores: &'a mut [Tile<f32>], bias: &'a [&'a [f32]; MR], slopes: &'a [f32; MR],
    ) -> [[f32; LANES]; MR] {
        let mut most = [[f32::NEG_INFINITY; LANES]; MR];
        for i in 0..MR {
            for (tile, bias) in scores.iter_mut().zip(bias[i].chunks(NR)) {
                let mut own = [0.0; NR];
                own[..bias.len()].copy_from_slice(bias);
                let (scores, own) = (tile[i].as_chunks_mut::<LANES>().0, own.as_chunks::<LANES>().0);
                for (scores, bias) in scores.iter_mut().zip(own) {
                    for j in 0..LANES {
                        scores[j] = fma::<I>(scores[j], slopes[i], bias[j] * std::f32::consts::LOG2_E);
                        most[i][j] = greater(most[i][j], scores[j]);
                    }
                }
            }
        }
        most
    }
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
