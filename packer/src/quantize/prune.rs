//! Pruning by size: the least weights become zeros, as `torch.nn.utils.prune` chooses them (`l1_unstructured`,
//! `global_unstructured`, and `ln_structured` with n = 2 and dim = 0).
//!
//! Of equally small weights the first become zeros; torch leaves that choice to its selection algorithm.

/// What is pruned. Fractions are above 0 and below 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pruning {
    /// This fraction of the weights of every layer, and of its bias: those of the least magnitude.
    Layer(f64),
    /// This fraction of all layers' weights together.
    Global(f64),
    /// This fraction of every layer's output channels: those of the least Euclidean norm.
    Channels(f64),
}

/// How many of `n` are the fraction that is asked for: rounded, a half to the even number.
pub fn pruned_count(fraction: f64, n: usize) -> usize {
    ((fraction * n as f64).round_ties_even() as usize).min(n)
}

/// Sets the `count` values of the least magnitude to 0.
///
/// # Panics
/// If there are fewer values.
pub fn zero_smallest(values: &mut [f32], count: usize) {
    assert!(count <= values.len(), "{count} of {} values", values.len());
    let Some(last) = count.checked_sub(1) else { return };
    let mut magnitudes: Vec<u32> = values.iter().map(|&v| magnitude(v)).collect();
    let (below, &mut at, _) = magnitudes.select_nth_unstable(last);
    let less = below.iter().filter(|&&m| m < at).count();
    zero_up_to(values, Cut { magnitude: at, equal: count - less });
}

/// Sets all values of the `count` channels of the least norm to 0; a channel is one of `channels` runs of equal length.
///
/// # Panics
/// If there are fewer channels, or the values do not fill them.
pub fn zero_channels(values: &mut [f32], channels: usize, count: usize) {
    assert!(count <= channels, "{count} of {channels} channels");
    if count == 0 || values.is_empty() {
        return;
    }
    assert_eq!(values.len() % channels, 0, "{} values in {channels} channels", values.len());
    let length = values.len() / channels;
    let square = |channel: &[f32]| channel.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>();
    let norms: Vec<f64> = values.chunks_exact(length).map(square).collect();
    let mut order: Vec<usize> = (0..channels).collect();
    // Stable: of equal norms the first are pruned.
    order.sort_by(|&a, &b| norms[a].total_cmp(&norms[b]));
    order[..count].iter().for_each(|&channel| values[channel * length..][..length].fill(0.0));
}

/// An order of magnitudes: the bits of |v|.
fn magnitude(v: f32) -> u32 {
    v.abs().to_bits()
}

/// The magnitude up to which values become zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// All values below it do.
    magnitude: u32,
    /// So many of those that equal it do.
    pub equal: usize,
}

/// Sets all values below `cut`, and the first of those that equal it, to 0.
pub fn zero_up_to(values: &mut [f32], cut: Cut) {
    let mut equal = cut.equal;
    for v in values {
        let m = magnitude(*v);
        if m < cut.magnitude || (m == cut.magnitude && equal > 0) {
            equal -= usize::from(m == cut.magnitude);
            *v = 0.0;
        }
    }
}

/// Bits of a magnitude that the first pass looks at.
const HIGH: u32 = 16;
/// Bits below them; the sign is no part of a magnitude.
const LOW: u32 = 31 - HIGH;

/// The search for the magnitude of a rank among values that are seen piece by piece, three times.
///
/// The first pass counts upper bits, the second the lower bits of values in the bin of that rank; the third tells how many
/// values of a piece equal the magnitude, which is known then.
#[derive(Clone, Debug)]
pub struct RankSearch {
    counts: Vec<u64>,
    /// The upper bits of the magnitude, once they are known.
    high: Option<u32>,
}

impl RankSearch {
    /// Before the first pass.
    pub fn new() -> Self {
        RankSearch { counts: vec![0; 1 << HIGH], high: None }
    }

    /// Sees a piece.
    pub fn see(&mut self, values: &[f32]) {
        for &v in values {
            let m = magnitude(v);
            match self.high {
                None => self.counts[(m >> LOW) as usize] += 1,
                Some(high) if m >> LOW == high => self.counts[(m & ((1 << LOW) - 1)) as usize] += 1,
                Some(_) => {}
            }
        }
    }

    /// The bin with the value of this rank, from 1 on, and the rank within it.
    fn bin(&self, mut rank: u64) -> (u32, u64) {
        for (bin, &count) in self.counts.iter().enumerate() {
            if rank <= count {
                return (bin as u32, rank);
            }
            rank -= count;
        }
        unreachable!("as many values as ranks were seen")
    }

    /// After the first pass: looks for the magnitude of this rank, from 1 to the number of values; returns the rank to ask for
    /// after the second.
    pub fn narrow(&mut self, rank: u64) -> u64 {
        let (high, rank) = self.bin(rank);
        self.high = Some(high);
        self.counts = vec![0; 1 << LOW];
        rank
    }

    /// After the second pass: the cut at the rank that [`narrow`](Self::narrow) gave.
    pub fn cut(&self, rank: u64) -> Cut {
        let (low, equal) = self.bin(rank);
        Cut { magnitude: self.high.unwrap_or(0) << LOW | low, equal: equal as usize }
    }
}

impl Default for RankSearch {
    fn default() -> Self {
        Self::new()
    }
}

impl Cut {
    /// The part of this cut that falls to a piece: takes from `equal` what the piece has.
    pub fn take(&mut self, values: &[f32]) -> Cut {
        let has = values.iter().filter(|&&v| magnitude(v) == self.magnitude).count();
        let own = Cut { magnitude: self.magnitude, equal: has.min(self.equal) };
        self.equal -= own.equal;
        own
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_round_halves_to_the_even_number() {
        for (fraction, n, count) in [(0.5, 5, 2), (0.5, 7, 4), (0.2, 10, 2), (0.05, 9, 0), (0.05, 11, 1), (0.95, 3, 3)]
        {
            assert_eq!(pruned_count(fraction, n), count, "{fraction} of {n}");
        }
    }

    #[test]
    fn a_search_over_pieces_cuts_as_one_over_all() {
        let mut state = 1u64;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            // Few digits: many are equally small.
            ((state >> 40) % 97) as f32 * 0.03125 - 1.5
        };
        let values: Vec<f32> = (0..1001).map(|_| next()).collect();
        for count in [1usize, 2, 57, 500, 1000, 1001] {
            let mut whole = values.clone();
            zero_smallest(&mut whole, count);
            let left = values.iter().filter(|v| **v != 0.0).count();
            assert!(left - whole.iter().filter(|v| **v != 0.0).count() <= count);
            let (mut search, pieces) = (RankSearch::new(), || values.chunks(13));
            pieces().for_each(|piece| search.see(piece));
            let rank = search.narrow(count as u64);
            pieces().for_each(|piece| search.see(piece));
            let mut cut = search.cut(rank);
            let pruned: Vec<f32> = pieces()
                .flat_map(|piece| {
                    let mut own = piece.to_vec();
                    zero_up_to(&mut own, cut.take(piece));
                    own
                })
                .collect();
            assert_eq!(pruned, whole, "{count}");
            assert_eq!(cut.equal, 0);
        }
    }
}
