//! The Inception score (Salimans et al. 2016): how sure a classifier is of each picture, and how many classes it sees in all.

use crate::stats::{GROUPS, Jackknifed, Shuffle, group};

/// Parts that torch-fidelity splits pictures into, and the seed of their order.
const SPLITS: usize = 10;
const SEED: u32 = 2020;

/// The probabilities that a classifier gives `c` classes, in f64.
pub struct Probabilities {
    /// `(n, c)`.
    shares: Vec<f64>,
    classes: usize,
    /// Of each picture the sum over classes of `p log p`.
    certainty: Vec<f64>,
}

impl Probabilities {
    /// The probabilities of `logits` `(n, c)`.
    pub fn new(logits: &[f32], classes: usize) -> Self {
        let mut shares = Vec::with_capacity(logits.len());
        let mut certainty = Vec::with_capacity(logits.len() / classes);
        for row in logits.chunks_exact(classes) {
            let most = row.iter().fold(f64::NEG_INFINITY, |most, &v| most.max(v.into()));
            let sum: f64 = row.iter().map(|&v| (f64::from(v) - most).exp()).sum();
            let logs = row.iter().map(|&v| f64::from(v) - most - sum.ln());
            shares.extend(logs.clone().map(f64::exp));
            certainty.push(logs.map(|log| log.exp() * log).sum());
        }
        Probabilities { shares, classes, certainty }
    }

    /// The score of all pictures together, with the jackknife over them.
    pub fn score(&self) -> Jackknifed {
        let n = self.certainty.len();
        let parts: Vec<Sums> = (0..GROUPS).map(|g| self.sums(group(g, n))).collect();
        let all = Sums::total(&parts, None);
        let without = std::array::from_fn(|g| Sums::total(&parts, Some(g)).score());
        Jackknifed { value: all.score(), without }
    }

    /// Mean and deviation over ten parts of the pictures, in the order that torch-fidelity has; none of fewer than ten.
    pub fn splits(&self) -> Option<[f64; 2]> {
        let n = self.certainty.len();
        if n < SPLITS {
            return None;
        }
        let order = Shuffle::new(SEED).permutation(n);
        let scores = [(); SPLITS]
            .iter()
            .enumerate()
            .map(|(i, ())| self.sums(order[i * n / SPLITS..(i + 1) * n / SPLITS].iter().copied()).score());
        let scores: Vec<f64> = scores.collect();
        let mean = scores.iter().sum::<f64>() / SPLITS as f64;
        let variance = scores.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / SPLITS as f64;
        Some([mean, variance.sqrt()])
    }

    fn sums(&self, images: impl Iterator<Item = usize>) -> Sums {
        let mut sums = Sums { images: 0.0, certainty: 0.0, shares: vec![0.0; self.classes] };
        for image in images {
            sums.images += 1.0;
            sums.certainty += self.certainty[image];
            let shares = &self.shares[image * self.classes..][..self.classes];
            sums.shares.iter_mut().zip(shares).for_each(|(sum, v)| *sum += v);
        }
        sums
    }
}

/// Sums over pictures.
struct Sums {
    images: f64,
    certainty: f64,
    shares: Vec<f64>,
}

impl Sums {
    /// All parts but one together.
    fn total(parts: &[Sums], without: Option<usize>) -> Sums {
        let mut total = Sums { images: 0.0, certainty: 0.0, shares: vec![0.0; parts[0].shares.len()] };
        for (_, part) in parts.iter().enumerate().filter(|(g, _)| Some(*g) != without) {
            total.images += part.images;
            total.certainty += part.certainty;
            total.shares.iter_mut().zip(&part.shares).for_each(|(sum, v)| *sum += v);
        }
        total
    }

    /// `exp` of the mean of `sum p (log p - log q)`, q being the mean of p.
    fn score(&self) -> f64 {
        let means = self.shares.iter().map(|sum| sum / self.images);
        let spread: f64 = means.filter(|&q| q > 0.0).map(|q| q * q.ln()).sum();
        (self.certainty / self.images - spread).exp()
    }
}
