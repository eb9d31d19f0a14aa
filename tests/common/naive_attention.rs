//! The oracle of attention, and who sees which keys.

use super::naive::{Array, Inputs};
use aquatint::raw::program::{Attention, Reach};

/// Which keys are seen, and what is added to scores.
pub struct Masks<'a> {
    causal: bool,
    /// The sample or else the condition whose keys each sample sees.
    of_keys: Vec<usize>,
    /// How many keys of each may be seen.
    lengths: Vec<usize>,
    /// `(heads, queries, keys)`.
    bias: Option<&'a Array>,
    reach: Reach,
    /// Tokens of a frame.
    places: usize,
}

impl<'a> Masks<'a> {
    /// Those of `op`, whose operands are among `values`.
    pub fn new(op: &Attention, values: &'a [Array], inputs: &Inputs) -> Self {
        let value = |v: aquatint::raw::program::Value| &values[v.0 as usize];
        let [q, k] = [op.q, op.k].map(value);
        let keys = k.rows() / k.dims[0];
        Masks {
            causal: op.attend.causal,
            of_keys: match op.attend.per_condition {
                true => inputs.conditions.iter().map(|&c| c as usize).collect(),
                false => (0..q.dims[0]).collect(),
            },
            lengths: match op.lengths {
                Some(lengths) => value(lengths).data.iter().map(|&n| keys.min(n as usize)).collect(),
                None => vec![keys; k.dims[0]],
            },
            bias: op.bias.map(value),
            reach: op.reach,
            places: keys / inputs.dims.frames,
        }
    }

    /// The first row of the keys of `sample`, of which each has `keys`, and how many of them its query number `query` sees.
    pub fn keys(&self, sample: usize, query: usize, keys: usize) -> (usize, usize) {
        let of_keys = self.of_keys[sample];
        let seen = self.lengths[of_keys];
        (of_keys * keys, if self.causal { seen.min(query + 1) } else { seen })
    }

    /// How many of the keys of `sample` any query sees that is not causal.
    pub fn length(&self, sample: usize) -> usize {
        self.lengths[self.of_keys[sample]]
    }

    /// Whether a key is within the reach of a query.
    pub fn reaches(&self, query: usize, key: usize) -> bool {
        match self.reach {
            Reach::Sample => true,
            Reach::Frame => query / self.places == key / self.places,
            Reach::Place => query % self.places == key % self.places,
        }
    }

    /// What is added to a score of `head`.
    pub fn bias(&self, head: usize, query: usize, key: usize) -> f64 {
        self.bias.map_or(0.0, |bias| bias.row(head * bias.dims[1] + query)[key])
    }
}

/// `softmax(q k^T * scale + bias) v` per sample and head, over the keys that `masks` show; zeros where they show none. With a
/// `grid` of so many bits, probabilities are rounded to steps of the highest of their row, or of what it says.
pub(super) fn attention(
    [q, k, v]: [&Array; 3],
    heads: usize,
    scale: f64,
    masks: &Masks<'_>,
    grid: Option<(u8, Option<f64>)>,
) -> Array {
    let (n, d) = (q.dims[0], q.cols());
    let (e, queries, keys) = (d / heads, q.rows() / n, k.rows() / k.dims[0]);
    let mut out = Array::new(&q.dims, |_| 0.0);
    for (row, head) in (0..q.rows()).flat_map(|row| (0..heads).map(move |head| (row, head))) {
        let columns = head * e..(head + 1) * e;
        let query = row % queries;
        let (first, seen) = masks.keys(row / queries, query, keys);
        let score = |key: usize| -> f64 {
            if !masks.reaches(query, key) {
                return f64::NEG_INFINITY;
            }
            let products = q.row(row)[columns.clone()].iter().zip(&k.row(first + key)[columns.clone()]);
            products.map(|(a, b)| a * b).sum::<f64>() * scale + masks.bias(head, query, key)
        };
        let scores: Vec<f64> = (0..seen).map(score).collect();
        let highest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|s| (s - highest).exp()).collect();
        let total: f64 = weights.iter().sum();
        let mut shares: Vec<f64> = weights.iter().map(|weight| weight / total).collect();
        if let Some((bits, delta)) = grid {
            let top = f64::from((1u32 << bits) - 1);
            let most = shares.iter().copied().fold(0.0, f64::max);
            let delta = delta.unwrap_or(most / top);
            shares.iter_mut().for_each(|share| *share = delta * (*share / delta).round_ties_even().clamp(0.0, top));
        }
        for c in columns {
            out.data[row * d + c] = (0..seen).map(|key| shares[key] * v.row(first + key)[c]).sum();
        }
    }
    out
}
