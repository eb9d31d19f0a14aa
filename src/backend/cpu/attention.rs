//! Softmax attention, tiled: scores of at most 8 queries by 288 keys exist at a time.
//!
//! A task is one head of one sample and up to 256 queries. It walks over blocks of keys; for each block it lays out
//! keys and values as panels for the float micro-kernel, and folds every query's scores into a running maximum, sum
//! and weighted value (online softmax, Milakov & Gimelshein 2018). Blocks begin at fixed keys, so a query's result
//! does not depend on batch, threads or the other queries.

mod grid;

use super::arena::{Arena, Reads, floats_mut};
use super::math::{exp, greater, greatest, sum};
use super::quantize::Fixed;
use super::scratch;
use super::simd::tiles::{MatrixMut, Order, TileMut, for_each_tile};
use super::simd::{GROUP, GROUPS, Isa, MR, NR, Tile, vectorized};
use super::sink::{self, Coded, Plain, Sink};
use crate::backend::args::{AttentionArgs, Output, SoftmaxArgs};
use grid::Grid;
use std::ops::Range;

/// Keys per block.
const KEYS: usize = 6 * NR;
/// Queries per task.
const QUERIES: usize = 256;

/// Floats of private memory by purpose, for heads of `e` features.
struct Sizes {
    keys: usize,
    values: usize,
    sums: usize,
    scores: usize,
}

impl Sizes {
    fn new(e: usize) -> Self {
        let wide = e.next_multiple_of(GROUP);
        Sizes { keys: KEYS * e, values: wide * KEYS, sums: QUERIES * (wide + 2), scores: MR * KEYS }
    }

    fn total(&self) -> usize {
        self.keys + self.values + self.sums + self.scores
    }
}

/// Bytes of private memory.
pub fn scratch_bytes(args: &AttentionArgs) -> usize {
    Sizes::new(args.q.cols / args.heads).total() * 4
}

/// See [`Op::Attention`](crate::program::Op::Attention).
pub fn attention<I: Isa>(isa: I, arena: &mut Arena, args: &AttentionArgs) {
    let at = arena.first(args.y.slot());
    let (out, reads) = arena.write(at..at + args.y.bytes());
    match &args.y {
        Output::Floats(y) => attend(isa, &reads, args, Plain, sink::floats(out, y)),
        Output::Codes(to) => {
            let ranges = Fixed::new(&reads, to.fixed, to.codes.rows);
            attend(isa, &reads, args, Coded::new(&ranges, to.codes.top), sink::codes(out, &to.codes));
            sink::complete(isa, out, &to.codes, &ranges);
        }
    }
}

fn attend<I: Isa, S: Sink>(isa: I, reads: &Reads<'_>, args: &AttentionArgs, sink: S, out: MatrixMut<'_, S::Element>) {
    let (q, k, v) = (reads.floats(&args.q), reads.floats(&args.k), reads.floats(&args.v));
    let (d, e) = (args.q.cols, args.q.cols / args.heads);
    let (tq, tk) = (args.q.rows / args.samples, args.keys);
    let masks = Masks::new(reads, args);
    let ranges = Fixed::new(reads, args.softmax.and_then(|grid| grid.fixed), args.q.rows);
    let sizes = Sizes::new(e);
    // Tiles must not straddle samples, so each sample's rows are cut on their own.
    let stride = out.stride;
    for (sample, data) in out.data.chunks_exact_mut(tq * stride).enumerate() {
        let (of_keys, seen) = masks.keys(sample, tk);
        let (q, k, v) = (&q[sample * tq * d..], &k[of_keys * tk * d..][..seen * d], &v[of_keys * tk * d..][..seen * d]);
        for_each_tile(MatrixMut { data, cols: d, stride }, [QUERIES, e], Order::ByColumns, |tile| {
            scratch::with(sizes.total() * 4, |bytes| {
                let bias = masks.bias(tile.cols.start / e, tq, tk);
                let head = Head { isa, d, e, tk: seen, scale: args.scale, causal: args.causal, q, k, v, bias };
                let to = Rows { sink, first: sample * tq, tile };
                match args.softmax {
                    None => head.run(&sizes, floats_mut(bytes), to),
                    Some(SoftmaxArgs { bits, .. }) => {
                        let grid = Grid::new(bits, ranges.get(sample * tq));
                        head.run_on_grid(grid, &sizes, floats_mut(bytes), to);
                    }
                }
            });
        });
    }
}

/// Where the results of a head go: some queries' rows of a sample.
pub(super) struct Rows<'a, S: Sink> {
    pub(super) sink: S,
    /// The sample's first row in the whole result.
    pub(super) first: usize,
    pub(super) tile: TileMut<'a, S::Element>,
}

impl<S: Sink> Rows<'_, S> {
    /// Stores what `of` makes of each feature of query `row`.
    pub(super) fn store(&mut self, row: usize, of: impl Fn(usize) -> f32) {
        for (part, out) in self.tile.row(row).chunks_mut(GROUP).enumerate() {
            let values: [f32; GROUP] = std::array::from_fn(|i| if i < out.len() { of(part * GROUP + i) } else { 0.0 });
            self.sink.store(self.first + row, &values, out);
        }
    }
}

/// What is added to scores, and which keys are seen.
pub(super) struct Masks<'a> {
    /// The condition of each sample.
    conditions: Option<&'a [u32]>,
    /// How many keys of a sample or condition are seen.
    lengths: Option<&'a [u32]>,
    /// `(heads, queries, keys)`.
    bias: Option<&'a [f32]>,
}

impl<'a> Masks<'a> {
    pub(super) fn new(reads: &Reads<'a>, args: &AttentionArgs) -> Self {
        Masks {
            conditions: args.condition.map(|slot| reads.slice(slot.at, args.samples)),
            lengths: args.lengths.map(|slot| reads.slice(slot.at, args.key_rows())),
            bias: args.bias.map(|bias| reads.floats(&bias)),
        }
    }

    /// The row of keys that `sample` sees, and how many of its `keys`.
    pub(super) fn keys(&self, sample: usize, keys: usize) -> (usize, usize) {
        let row = self.conditions.map_or(sample, |c| c[sample] as usize);
        (row, self.lengths.map_or(keys, |lengths| keys.min(lengths[row] as usize)))
    }

    /// The bias of one head.
    pub(super) fn bias(&self, head: usize, queries: usize, keys: usize) -> Option<Bias<'a>> {
        self.bias.map(|bias| Bias { rows: &bias[head * queries * keys..][..queries * keys], keys })
    }
}

/// What is added to the scores of a head, `(queries, keys)`.
#[derive(Clone, Copy)]
pub(super) struct Bias<'a> {
    rows: &'a [f32],
    keys: usize,
}

impl<'a> Bias<'a> {
    /// Of the `n` keys from key `first` against a query.
    pub(super) fn of(&self, query: usize, first: usize, n: usize) -> &'a [f32] {
        &self.rows[query * self.keys + first..][..n]
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
    k: &'a [f32],
    v: &'a [f32],
    bias: Option<Bias<'a>>,
}

impl<I: Isa> Head<'_, I> {
    /// How many of the `n` keys from key `first` a query sees.
    fn seen(&self, query: usize, first: usize, n: usize) -> usize {
        if self.causal { n.min((query + 1).saturating_sub(first)) } else { n }
    }

    fn run(&self, sizes: &Sizes, memory: &mut [f32], to: Rows<'_, impl Sink>) {
        let wide = self.e.next_multiple_of(GROUP);
        let (sums, work) = self.start(sizes, memory);
        let rows = to.tile.rows.clone();
        self.each(rows.clone(), to.tile.cols.start, work, |part| {
            let states = &mut sums[(part.q0 - rows.start) * (wide + 2)..][..part.count * (wide + 2)];
            let rows = part.scores.chunks_exact_mut(KEYS).zip(states.chunks_exact_mut(wide + 2));
            for (query, (row, state)) in (part.q0..).zip(rows) {
                let (seen, hidden) = row[..part.n].split_at_mut(self.seen(query, part.first, part.n));
                let bias = self.bias_of(query, part.first, seen.len());
                self.isa.run(Soften, (seen, self.scale, bias, state, wide));
                // A weight of 0 adds exactly nothing.
                hidden.fill(0.0);
            }
            self.weigh(part, states);
        });
        finish(to, sums, wide, |state| 1.0 / state[wide + 1]);
    }

    /// What is added to the scores of a query against the `n` keys from key `first`.
    fn bias_of(&self, query: usize, first: usize, n: usize) -> Option<&[f32]> {
        self.bias.map(|bias| bias.of(query, first, n))
    }

    /// Cuts private memory into a state per query, which is weighted values, then running maximum and sum, and room for work.
    fn start<'m>(&self, sizes: &Sizes, memory: &'m mut [f32]) -> (&'m mut [f32], Memory<'m>) {
        let wide = self.e.next_multiple_of(GROUP);
        let (keys, rest) = memory.split_at_mut(sizes.keys);
        let (values, rest) = rest.split_at_mut(sizes.values);
        let (sums, scores) = rest.split_at_mut(sizes.sums);
        for state in sums.chunks_exact_mut(wide + 2) {
            state.fill(0.0);
            state[wide] = f32::NEG_INFINITY;
        }
        (sums, Memory { keys, values, scores })
    }

    /// Shows every block of keys to every tile of queries among `rows`, with their scores.
    #[inline(always)]
    fn each(&self, rows: Range<usize>, column: usize, memory: Memory<'_>, mut see: impl FnMut(Part<'_>)) {
        let (d, e) = (self.d, self.e);
        let Memory { keys, values, scores } = memory;
        let mut acc: Tile<f32> = [[0.0; NR]; MR];
        for first in (0..self.tk).step_by(KEYS) {
            let n = self.seen(rows.end - 1, first, KEYS.min(self.tk - first));
            if n == 0 {
                break;
            }
            self.isa.run(LayOut, (self.k, self.v, [d, e, first, n, column], keys, values));
            for q0 in rows.clone().step_by(MR) {
                let count = (rows.end - q0).min(MR);
                let most = self.seen(q0 + count - 1, first, n);
                if most == 0 {
                    continue;
                }
                let queries: [&[f32]; MR] =
                    std::array::from_fn(|i| &self.q[(q0 + i.min(count - 1)) * d + column..][..e]);
                for key in (0..most).step_by(NR) {
                    let groups = (most - key).div_ceil(GROUP).min(GROUPS);
                    self.isa.tile_f32(&queries, e, &keys[key * e..][..groups * GROUP * e], groups, &mut acc);
                    for (row, acc) in scores.chunks_exact_mut(KEYS).zip(&acc) {
                        *row[key..].first_chunk_mut().expect("blocks are whole tiles") = *acc;
                    }
                }
                see(Part { first, n, q0, count, values, scores });
            }
        }
    }

    /// Adds the values of a block, by the weights that its scores have become, to the states of its queries.
    fn weigh(&self, Part { n, values, scores, .. }: Part<'_>, states: &mut [f32]) {
        let wide = self.e.next_multiple_of(GROUP);
        let mut acc: Tile<f32> = [[0.0; NR]; MR];
        let weights: [&[f32]; MR] = std::array::from_fn(|i| &scores[i * KEYS..][..n]);
        for c in (0..wide).step_by(NR) {
            let groups = ((wide - c) / GROUP).min(GROUPS);
            self.isa.tile_f32(&weights, n, &values[c * n..][..groups * GROUP * n], groups, &mut acc);
            for (state, acc) in states.chunks_exact_mut(wide + 2).zip(&acc) {
                for (s, a) in state[c..c + groups * GROUP].iter_mut().zip(acc) {
                    *s += a;
                }
            }
        }
    }
}

/// Private memory for work.
struct Memory<'m> {
    keys: &'m mut [f32],
    values: &'m mut [f32],
    scores: &'m mut [f32],
}

impl Memory<'_> {
    /// The same, for another walk.
    fn again(&mut self) -> Memory<'_> {
        Memory { keys: self.keys, values: self.values, scores: self.scores }
    }
}

/// A block of keys and a tile of queries.
struct Part<'p> {
    /// The first key, and how many there are.
    first: usize,
    n: usize,
    /// The first query, and how many there are.
    q0: usize,
    count: usize,
    /// The block's values as panels.
    values: &'p [f32],
    /// A row of [`KEYS`] per query.
    scores: &'p mut [f32],
}

/// Writes the weighted values of each query times what `factor` says of its state; zeros if it has seen no key.
fn finish(mut to: Rows<'_, impl Sink>, sums: &[f32], wide: usize, factor: impl Fn(&[f32]) -> f32) {
    for (row, state) in to.tile.rows.clone().zip(sums.chunks_exact(wide + 2)) {
        let factor = if state[wide + 1] > 0.0 { factor(state) } else { 0.0 };
        to.store(row, |feature| state[feature] * factor);
    }
}

vectorized! {
    /// Keys from `first` as panels (group of keys, feature, key); values as panels (group of features, key, feature).
    fn LayOut<'a, I>(k: &'a [f32], v: &'a [f32], sizes: [usize; 5], keys: &'a mut [f32], values: &'a mut [f32]) {
        let [d, e, first, n, column] = sizes;
        for (g, panel) in keys.chunks_exact_mut(GROUP * e).enumerate().take(n.div_ceil(GROUP)) {
            for r in 0..GROUP {
                // Keys beyond the block repeat its last one; their scores are not used.
                let key = (g * GROUP + r).min(n - 1);
                let row = &k[(first + key) * d + column..][..e];
                for (j, &x) in row.iter().enumerate() {
                    panel[j * GROUP + r] = x;
                }
            }
        }
        let wide = e.next_multiple_of(GROUP);
        for (g, panel) in values[..wide * n].chunks_exact_mut(GROUP * n).enumerate() {
            for (key, out) in panel.chunks_exact_mut(GROUP).enumerate() {
                let row = &v[(first + key) * d + column..][..e];
                let part = &row[g * GROUP..e.min((g + 1) * GROUP)];
                out[..part.len()].copy_from_slice(part);
                out[part.len()..].fill(0.0);
            }
        }
    }
}

/// Makes products of queries and keys scores: scaled, with their bias.
#[inline(always)]
fn complete(scores: &mut [f32], scale: f32, bias: Option<&[f32]>) {
    scores.iter_mut().for_each(|s| *s *= scale);
    if let Some(bias) = bias {
        scores.iter_mut().zip(bias).for_each(|(s, bias)| *s += bias);
    }
}

vectorized! {
    /// Turns a query's scores against a block of keys into weights, and brings the query's state to the new maximum.
    fn Soften<'a, I>(scores: &'a mut [f32], scale: f32, bias: Option<&'a [f32]>, state: &'a mut [f32], wide: usize) {
        complete(scores, scale, bias);
        let highest = greater(greatest(scores), state[wide]);
        let shrink = exp::<I>(state[wide] - highest);
        for s in scores.iter_mut() {
            *s = exp::<I>(*s - highest);
        }
        for s in &mut state[..wide] {
            *s *= shrink;
        }
        state[wide] = highest;
        state[wide + 1] = state[wide + 1] * shrink + sum(scores, |s| s);
    }
}
