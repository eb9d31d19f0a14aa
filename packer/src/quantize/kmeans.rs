//! Optimal 1-D k-means, deterministic.
//!
//! In one dimension an optimal clustering cuts the sorted values into k runs, so dynamic programming finds it: layer q
//! holds, for every prefix, the best cost with q runs. The cost has the Monge property, so the start of the last run
//! never moves left as the prefix grows, nor as q grows; divide and conquer over prefixes then costs
//! O(k n log n) (Grønlund et al., "Fast exact k-means, k-medians and Bregman divergence clustering in 1D", 2017).
//! Looking from the longest prefix down, between the starts of the layer before and of the next longer prefix, gives the same
//! starts in 0.8 of the time at 256 clusters of 1280 to 2880 values, and no sooner at 16 or 32: each start waits for another.
//!
//! Minimising squared error is maximising the sum over runs of (sum of values)^2 / (number of values), so two prefix
//! sums suffice. They are f64 and centred on the median, which keeps cancellation small even with outliers. With weights
//! the sums are weighted, and nothing else changes: the cost keeps the Monge property.
//!
//! Above [`EXACT`] cells (whole tensors) the values are first gathered into fine bins, each kept as its count and sum,
//! and the same program runs on the bins. A cut inside a bin is missed by less than a bin, which costs its square;
//! codes are then given to the nearest centroid as always. Tests hold the squared error within 1e-5 of the exact
//! one at up to 16 clusters and 1e-3 at up to 256. (Lloyd passes over the values afterwards gained nothing there.)

/// Values x clusters up to which the exact program runs; above, values are binned first.
const EXACT: usize = 1 << 20;
/// Bins x clusters at most in the binned program; bins are merged in pairs until they fit.
const BINNED: usize = 1 << 23;
/// Occupied bins per cluster below which bins are too coarse.
const FEW_BINS: usize = 16;
/// Bins per unit of spread next to the median, as a power of two; half as many in each further octave.
const BIN_BITS: u32 = 11;
/// Bins on each side of the median that a finite or infinite f32 distance can reach, `BIN_BITS` per octave above 1.
const BINS: usize = ((0x7f80_0000 - 0x3f80_0000) >> (23 - BIN_BITS)) + 1;

/// Clusters in ascending order: at most the number asked for, at least one.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Clusters {
    /// The (weighted) mean of each cluster, ascending.
    pub(super) centroids: Vec<f64>,
    /// Number of values in each, or the sum of their weights.
    pub(super) counts: Vec<f64>,
}

/// Buffers that are kept from row to row.
#[derive(Default)]
pub(super) struct Scratch {
    sorted: Vec<i32>,
    /// Values as integers that sort alike, above the weight's index.
    pairs: Vec<u64>,
    atoms: Atoms,
    layer: [Vec<f64>; 2],
    starts: Vec<u32>,
}

/// Distinct values (or bins) in ascending order, as prefix sums with a leading 0. Where values have weights, the sum is
/// of weighted values and the number is the sum of weights.
#[derive(Default)]
struct Atoms {
    center: f64,
    /// Sums of (value - center).
    sum: Vec<f64>,
    /// Numbers of values; strictly increasing.
    count: Vec<f64>,
}

impl Atoms {
    fn clear(&mut self, center: f64) {
        self.center = center;
        for v in [&mut self.sum, &mut self.count] {
            v.clear();
            v.push(0.0);
        }
    }

    /// Appends an atom, unless its weight vanishes beside what stands before it.
    fn push(&mut self, sum: f64, count: f64) {
        let n = self.len();
        if self.count[n] + count > self.count[n] {
            self.sum.push(self.sum[n] + sum);
            self.count.push(self.count[n] + count);
        }
    }

    fn len(&self) -> usize {
        self.sum.len() - 1
    }

    /// Joins neighbours two by two.
    fn halve(&mut self) {
        let n = self.len();
        for v in [&mut self.sum, &mut self.count] {
            for i in 0..n.div_ceil(2) {
                v[i + 1] = v[(2 * i + 2).min(n)];
            }
            v.truncate(n.div_ceil(2) + 1);
        }
    }
}

/// The best clustering of `values` (not empty, finite) into at most `k` clusters, 1 <= k <= 256; fewer only if there
/// are fewer distinct values.
pub(super) fn cluster(values: &[f32], k: usize, scratch: &mut Scratch) -> Clusters {
    if values.len().saturating_mul(k) <= EXACT { exact(values, k, scratch) } else { binned(values, k, scratch) }
}

/// [`cluster`] without binning, whatever the size.
fn exact(values: &[f32], k: usize, scratch: &mut Scratch) -> Clusters {
    gather(values, scratch);
    program(k, scratch)
}

/// The best clustering of `values` (not empty, finite) into at most `k` clusters where value i has the weight
/// `weights[i % weights.len()]`: the columns of a row, or of all rows of a matrix.
///
/// Weights are finite and not negative, and one at least is positive; values without weight do not count. Weights that
/// are integers give what values repeated as often give, bit for bit where no bins are used.
pub(super) fn cluster_weighted(values: &[f32], weights: &[f64], k: usize, scratch: &mut Scratch) -> Clusters {
    debug_assert_eq!(values.len() % weights.len(), 0);
    if values.len().saturating_mul(k) <= EXACT {
        gather_weighted(values, weights, scratch);
        program(k, scratch)
    } else {
        fill_bins(values, weights.iter().copied().cycle(), scratch);
        if scratch.atoms.len() < FEW_BINS * k {
            gather_weighted(values, weights, scratch);
        }
        coarse_program(k, scratch)
    }
}

/// An integer that sorts as the float does, and the float of it; sorting integers is branch-free.
fn key(value: f32) -> i32 {
    flip((value + 0.0).to_bits() as i32)
}

fn value(key: i32) -> f64 {
    f64::from(f32::from_bits(flip(key) as u32))
}

fn flip(b: i32) -> i32 {
    b ^ (((b >> 31) as u32) >> 1) as i32
}

/// Makes an atom of every distinct value that has weight.
fn gather_weighted(values: &[f32], weights: &[f64], scratch: &mut Scratch) {
    let weight = |pair: u64| weights[pair as u32 as usize];
    // The sign bit of the key is turned over: pairs are unsigned.
    let pair = |(i, &v): (usize, &f32)| u64::from(key(v) as u32 ^ 1 << 31) << 32 | (i % weights.len()) as u64;
    let value = |pair: u64| value(((pair >> 32) as u32 ^ 1 << 31) as i32);
    scratch.pairs.clear();
    scratch.pairs.extend(values.iter().enumerate().map(pair).filter(|&pair| weight(pair) > 0.0));
    scratch.pairs.sort_unstable();
    let half = scratch.pairs.iter().map(|&pair| weight(pair)).sum::<f64>() / 2.0;
    let mut below = 0.0;
    let median = scratch.pairs.iter().find(|&&pair| {
        below += weight(pair);
        below > half
    });
    let center = median.or(scratch.pairs.last()).map_or(0.0, |&pair| value(pair));
    scratch.atoms.clear(center);
    for run in scratch.pairs.chunk_by(|a, b| a >> 32 == b >> 32) {
        let count = run.iter().map(|&pair| weight(pair)).sum();
        scratch.atoms.push((value(run[0]) - center) * count, count);
    }
}

/// Makes an atom of every distinct value.
fn gather(values: &[f32], scratch: &mut Scratch) {
    scratch.sorted.clear();
    scratch.sorted.extend(values.iter().map(|&v| key(v)));
    scratch.sorted.sort_unstable();
    let center = value(scratch.sorted[scratch.sorted.len() / 2]);
    scratch.atoms.clear(center);
    for run in scratch.sorted.chunk_by(|a, b| a == b) {
        let count = run.len() as f64;
        scratch.atoms.push((value(run[0]) - center) * count, count);
    }
}

/// [`cluster`] by binning.
fn binned(values: &[f32], k: usize, scratch: &mut Scratch) -> Clusters {
    fill_bins(values, std::iter::repeat(1.0), scratch);
    if scratch.atoms.len() < FEW_BINS * k {
        // A few narrow spikes, or few values: bins cannot tell them apart, so sort after all.
        gather(values, scratch);
    }
    coarse_program(k, scratch)
}

/// Makes an atom of every bin that holds weight.
fn fill_bins(values: &[f32], weights: impl Iterator<Item = f64>, scratch: &mut Scratch) {
    let (median, spread) = location(values);
    let mut bins = vec![(0f64, 0f64); 2 * BINS];
    let per_spread = (1.0 / spread) as f32;
    for (&v, weight) in values.iter().zip(weights) {
        let distance = v - median;
        // Adding 1 makes bins equally wide up to one spread, then relative to the distance: fine where the values
        // are, and never too many.
        let octave = ((distance * per_spread).abs() + 1.0).to_bits().min(0x7f80_0000) - 0x3f80_0000;
        let bin = (octave >> (23 - BIN_BITS)) as usize;
        let bin = &mut bins[if distance < 0.0 { BINS - 1 - bin } else { BINS + bin }];
        bin.0 += (f64::from(v) - f64::from(median)) * weight;
        bin.1 += weight;
    }
    scratch.atoms.clear(f64::from(median));
    for (sum, count) in bins {
        if count > 0.0 {
            scratch.atoms.push(sum, count);
        }
    }
}

/// The program over atoms that are joined until they are few enough.
fn coarse_program(k: usize, scratch: &mut Scratch) -> Clusters {
    while scratch.atoms.len() * k > BINNED {
        scratch.atoms.halve();
    }
    program(k, scratch)
}

/// Median of a sample and the median distance from it: a centre and a scale that outliers do not move.
fn location(values: &[f32]) -> (f32, f64) {
    let mut sample: Vec<f32> = values.iter().copied().step_by((values.len() / 4096).max(1)).collect();
    sample.sort_unstable_by(f32::total_cmp);
    let median = sample[sample.len() / 2];
    let mut distances: Vec<f64> = sample.iter().map(|&v| (f64::from(v) - f64::from(median)).abs()).collect();
    distances.sort_unstable_by(f64::total_cmp);
    let typical = distances[distances.len() / 2];
    if typical > 1e-30 {
        return (median, typical);
    }
    // More than half the sample is one value (pruned weights): fall back to the mean distance of all.
    let total: f64 = values.iter().map(|&v| (f64::from(v) - f64::from(median)).abs()).sum();
    (median, (total / values.len() as f64).max(1e-30))
}

/// The dynamic program over `scratch.atoms`.
fn program(k: usize, scratch: &mut Scratch) -> Clusters {
    let Scratch { atoms, layer: [prev, next], starts, .. } = scratch;
    let n = atoms.len();
    let k = k.min(n);
    let width = n + 1;
    // starts[q * width + i]: where the last of q + 1 runs over the first i atoms begins.
    starts.clear();
    starts.resize(k * width, 0);
    prev.clear();
    prev.extend(atoms.sum.iter().zip(&atoms.count).map(|(s, c)| if *c > 0.0 { s * s / c } else { 0.0 }));
    next.clear();
    next.resize(width, 0.0);
    for q in 1..k {
        let (before, after) = starts.split_at_mut(q * width);
        let mut pass = Pass {
            atoms,
            prev,
            next,
            floor: &before[(q - 1) * width..],
            start: &mut after[..width],
            q,
            // A prefix that leaves too few atoms for the remaining runs is of no use.
            last: n - (k - 1 - q),
        };
        // The last layer is needed for the whole only.
        let first = if q + 1 == k { n } else { q + 1 };
        pass.fill(first, pass.last, q, n);
        std::mem::swap(prev, next);
    }
    let mut ends = vec![n];
    for q in (1..k).rev() {
        ends.push(starts[q * width + ends[ends.len() - 1]] as usize);
    }
    ends.push(0);
    ends.reverse();
    let (mut centroids, mut counts) = (Vec::with_capacity(k), Vec::with_capacity(k));
    for run in ends.windows(2) {
        let count = atoms.count[run[1]] - atoms.count[run[0]];
        centroids.push(atoms.center + (atoms.sum[run[1]] - atoms.sum[run[0]]) / count);
        counts.push(count);
    }
    Clusters { centroids, counts }
}

/// One layer of the program: `next[i]` = max over j of `prev[j]` + gain of the run j..i.
struct Pass<'a> {
    atoms: &'a Atoms,
    prev: &'a [f64],
    next: &'a mut [f64],
    /// The starts of the layer before, a lower bound on this one's.
    floor: &'a [u32],
    start: &'a mut [u32],
    /// Runs before the last one.
    q: usize,
    /// The longest prefix of use.
    last: usize,
}

impl Pass<'_> {
    /// Fills `from..=to`, whose starts lie in `low..=high`.
    fn fill(&mut self, from: usize, to: usize, low: usize, high: usize) {
        if from > to {
            return;
        }
        let i = from + (to - from) / 2;
        // The layer before stopped one prefix earlier.
        let floor = if i < self.last { self.floor[i] as usize } else { 0 };
        let lo = low.max(floor).max(self.q);
        let hi = high.min(i - 1).max(lo);
        let (gain, j) = self.best(i, lo, hi);
        self.next[i] = gain;
        self.start[i] = j as u32;
        self.fill(from, i - 1, low, j);
        self.fill(i + 1, to, j, high);
    }

    /// The leftmost best start of the last run in `lo..=hi`, and its value.
    #[inline]
    fn best(&self, i: usize, lo: usize, hi: usize) -> (f64, usize) {
        const LANES: usize = 8;
        let atoms = self.atoms;
        let (sum_i, count_i) = (atoms.sum[i], atoms.count[i]);
        let gain =
            |j: usize| self.prev[j] + (sum_i - atoms.sum[j]) * (sum_i - atoms.sum[j]) / (count_i - atoms.count[j]);
        let (mut best, mut at) = (f64::NEG_INFINITY, lo);
        let mut base = lo;
        while base <= hi {
            if base + LANES > i {
                // Too near the end of the prefix for a whole block.
                for j in base..=hi {
                    let g = gain(j);
                    (best, at) = if g > best { (g, j) } else { (best, at) };
                }
                break;
            }
            // A block may reach past `hi`: those starts are as valid, and a loop without a tail is predictable.
            let (prev, sum, count) =
                (&self.prev[base..base + LANES], &atoms.sum[base..base + LANES], &atoms.count[base..base + LANES]);
            let mut gains = [0f64; LANES];
            for l in 0..LANES {
                gains[l] = prev[l] + (sum_i - sum[l]) * (sum_i - sum[l]) / (count_i - count[l]);
            }
            let max = |a: f64, b: f64| if a > b { a } else { b };
            let mut top = [0f64; LANES / 2];
            for l in 0..LANES / 2 {
                top[l] = max(gains[l], gains[l + LANES / 2]);
            }
            let top = max(max(top[0], top[2]), max(top[1], top[3]));
            if top > best {
                let hits = gains.iter().enumerate().fold(0u32, |hits, (l, &g)| hits | u32::from(g == top) << l);
                (best, at) = (top, base + hits.trailing_zeros() as usize);
            }
            base += LANES;
        }
        (best, at)
    }
}

#[cfg(test)]
mod tests;
