//! A predictor of a configuration's score from those of others: kernel ridge regression on the choices of layers, and of pairs of
//! layers of one block.
//!
//! Qua2SeDiMo trains a graph network on a few hundred configurations (quantization.md §2). What it reads out is a score per layer,
//! or per module, and choice; this is the strongest simple model of that form. With one-hot choices `x` and pairs `p` of a block,
//! `y = b + w'x + v'p` with a penalty on `w` and `v`. Written with the kernel `k(a, b) = layers that agree + gamma * pairs of a block
//! that agree`, both are as many numbers as there are configurations, so pairs cost nothing. Penalty and weight of pairs are those of the
//! least leave-one-out error, which the inverse of the kernel matrix gives at once.

use aquatint_evaluation::stats::{Estimate, bootstrap, spearman};

/// Penalties that are tried, as shares of the kernel's mean diagonal.
const PENALTIES: [f64; 7] = [1e-5, 1e-4, 1e-3, 1e-2, 3e-2, 1e-1, 1.0];
/// Weights of pairs that are tried.
const PAIRS: [f64; 3] = [0.0, 0.1, 1.0];
/// Parts of which each is held out once.
const FOLDS: usize = 5;
/// Resamples of the interval of a rank correlation.
const RESAMPLES: usize = 1000;

/// Configurations that a predictor learns from.
#[derive(Clone, Debug, Default)]
pub struct Samples {
    /// By configuration, the choice of each layer.
    pub choices: Vec<Vec<usize>>,
    /// Their scores; lower is better.
    pub scores: Vec<f64>,
    /// The block of each layer; layers of one block have terms of pairs.
    pub blocks: Vec<usize>,
}

/// A fitted predictor.
#[derive(Clone, Debug)]
pub struct Predictor {
    samples: Samples,
    /// One weight per configuration.
    weights: Vec<f64>,
    mean: f64,
    pairs: f64,
}

impl Samples {
    /// The kernel of two configurations.
    fn kernel(&self, a: &[usize], b: &[usize], pairs: f64) -> f64 {
        let count = self.blocks.iter().max().map_or(0, |last| last + 1);
        let mut agree = vec![0.0; count];
        for ((block, a), b) in self.blocks.iter().zip(a).zip(b) {
            agree[*block] += f64::from(a == b);
        }
        agree.iter().map(|&n: &f64| n + pairs * n * (n - 1.0) / 2.0).sum()
    }

    /// Those of these numbers.
    fn some(&self, numbers: &[usize]) -> Samples {
        Samples {
            choices: numbers.iter().map(|&i| self.choices[i].clone()).collect(),
            scores: numbers.iter().map(|&i| self.scores[i]).collect(),
            blocks: self.blocks.clone(),
        }
    }

    /// The rank correlation of true scores with those predicted from the other parts, of five parts by turns; none of less than
    /// twice as many configurations.
    pub fn held_out(&self) -> Option<Estimate> {
        let n = self.scores.len();
        if n < 2 * FOLDS {
            return None;
        }
        let mut predicted = vec![0.0; n];
        for fold in 0..FOLDS {
            let (out, rest): (Vec<usize>, Vec<usize>) = (0..n).partition(|i| i % FOLDS == fold);
            let predictor = Predictor::fit(&self.some(&rest));
            out.into_iter().for_each(|i| predicted[i] = predictor.predict(&self.choices[i]));
        }
        Some(correlation(&predicted, &self.scores))
    }
}

/// Spearman's rank correlation with a bootstrap interval over pairs.
pub fn correlation(a: &[f64], b: &[f64]) -> Estimate {
    let [ranks] = bootstrap(a.len(), RESAMPLES, |drawn| {
        let pick = |of: &[f64]| drawn.iter().map(|&i| of[i]).collect::<Vec<_>>();
        [spearman(&pick(a), &pick(b))]
    });
    ranks.percentile()
}

impl Predictor {
    /// Fits to `samples`.
    ///
    /// # Panics
    /// If there are none.
    pub fn fit(samples: &Samples) -> Self {
        let n = samples.scores.len();
        assert!(n > 0, "configurations to learn from");
        let mean = samples.scores.iter().sum::<f64>() / n as f64;
        let centred: Vec<f64> = samples.scores.iter().map(|y| y - mean).collect();
        let mut best: Option<(f64, f64, Vec<f64>)> = None;
        for pairs in PAIRS {
            let kernel = centre(&matrix(samples, pairs), n);
            let scale = (0..n).map(|i| kernel[i * n + i]).sum::<f64>() / n as f64;
            for penalty in PENALTIES {
                let mut own = kernel.clone();
                (0..n).for_each(|i| own[i * n + i] += penalty * scale.max(f64::MIN_POSITIVE));
                let Some(inverse) = inverse(own, n) else { continue };
                let weights: Vec<f64> = inverse.chunks_exact(n).map(|row| dot(row, &centred)).collect();
                // Left out, a configuration is missed by its weight over its place of the inverse's diagonal.
                let missed = (0..n).map(|i| (weights[i] / inverse[i * n + i]).powi(2)).sum::<f64>();
                if best.as_ref().is_none_or(|(least, ..)| missed < *least) {
                    best = Some((missed, pairs, weights));
                }
            }
        }
        let (_, pairs, weights) = best.unwrap_or((0.0, 0.0, vec![0.0; n]));
        // Of a centred kernel, weights sum to zero up to rounding; the rest is centred once more.
        let sum = weights.iter().sum::<f64>() / n as f64;
        let weights = weights.iter().map(|w| w - sum).collect();
        let mut predictor = Predictor { samples: samples.clone(), weights, mean: 0.0, pairs };
        let fitted: f64 = samples.choices.iter().map(|choices| predictor.predict(choices)).sum();
        predictor.mean = mean - fitted / n as f64;
        predictor
    }

    /// The score of a configuration.
    pub fn predict(&self, choices: &[usize]) -> f64 {
        let kernel = self.samples.choices.iter().map(|other| self.samples.kernel(choices, other, self.pairs));
        self.mean + kernel.zip(&self.weights).map(|(k, w)| k * w).sum::<f64>()
    }

    /// What each choice of each layer adds, `(layers, choices)`, up to a constant of the layer: the mean over the samples' other
    /// layers. The least is 0.
    pub fn effects(&self, choices: usize) -> Vec<Vec<f64>> {
        let effect = |layer: usize| {
            // A mean over samples of the score with this one layer changed.
            let mean = |choice: usize| {
                let own = self.samples.choices.iter();
                own.map(|own| self.changed(own, layer, choice)).sum::<f64>() / self.samples.choices.len() as f64
            };
            let sums: Vec<f64> = (0..choices).map(mean).collect();
            let least = sums.iter().copied().fold(f64::INFINITY, f64::min);
            sums.iter().map(|sum| sum - least).collect()
        };
        (0..self.samples.blocks.len()).map(effect).collect()
    }

    /// What the terms of `layer` are in the score of a sample in which its choice is another one.
    fn changed(&self, own: &[usize], layer: usize, choice: usize) -> f64 {
        let block = self.samples.blocks[layer];
        let others = self.samples.choices.iter().zip(&self.weights).filter(|(other, _)| other[layer] == choice);
        let term = |other: &[usize]| {
            if self.pairs == 0.0 {
                return 1.0;
            }
            let beside =
                (0..own.len()).filter(|&i| i != layer && self.samples.blocks[i] == block && own[i] == other[i]);
            1.0 + self.pairs * beside.count() as f64
        };
        others.map(|(other, weight)| weight * term(other)).sum()
    }
}

fn matrix(samples: &Samples, pairs: f64) -> Vec<f64> {
    let choices = &samples.choices;
    choices.iter().flat_map(|a| choices.iter().map(move |b| samples.kernel(a, b, pairs))).collect()
}

/// `kernel` of features from which their means are taken.
fn centre(kernel: &[f64], n: usize) -> Vec<f64> {
    let means: Vec<f64> = kernel.chunks_exact(n).map(|row| row.iter().sum::<f64>() / n as f64).collect();
    let all = means.iter().sum::<f64>() / n as f64;
    (0..n * n).map(|at| kernel[at] - means[at / n] - means[at % n] + all).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The inverse of a symmetric positive definite matrix by Cholesky's factors; none if it is not positive definite.
fn inverse(mut a: Vec<f64>, n: usize) -> Option<Vec<f64>> {
    for j in 0..n {
        for i in j..n {
            let (row, pivot) = (&a[i * n..i * n + j], &a[j * n..j * n + j]);
            let value = a[i * n + j] - dot(row, pivot);
            a[i * n + j] = match i == j {
                true if value > 0.0 => value.sqrt(),
                true => return None,
                false => value / a[j * n + j],
            };
        }
    }
    // Columns of the inverse: forward, then backward.
    let mut out = vec![0.0; n * n];
    for (column, x) in out.chunks_exact_mut(n).enumerate() {
        x[column] = 1.0;
        for i in column..n {
            x[i] = (x[i] - dot(&a[i * n + column..i * n + i], &x[column..i])) / a[i * n + i];
        }
        for i in (0..n).rev() {
            x[i] /= a[i * n + i];
            let value = x[i];
            (0..i).for_each(|j| x[j] -= a[i * n + j] * value);
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use fastrand::Rng;

    /// Layers in blocks of three, with effects of choices and of one pair per block.
    fn samples(count: usize, pair: f64, noise: f64) -> Samples {
        let mut rng = Rng::with_seed(5);
        let effects: Vec<[f64; 3]> = (0..9).map(|_| [rng.f64(), rng.f64(), rng.f64()]).collect();
        let mut samples = Samples { blocks: (0..9).map(|layer| layer / 3).collect(), ..Samples::default() };
        for _ in 0..count {
            let choices: Vec<usize> = (0..9).map(|_| rng.usize(..3)).collect();
            let own: f64 = choices.iter().zip(&effects).map(|(&choice, effects)| effects[choice]).sum();
            let both = (0..3).filter(|block| choices[3 * block] == 1 && choices[3 * block + 1] == 2).count();
            samples.scores.push(own + pair * both as f64 + noise * (rng.f64() - 0.5));
            samples.choices.push(choices);
        }
        samples
    }

    #[test]
    fn additive_scores_are_learned() {
        let all = samples(200, 0.0, 0.0);
        let predictor = Predictor::fit(&all.some(&(0..150).collect::<Vec<_>>()));
        for i in 150..200 {
            let (got, expected) = (predictor.predict(&all.choices[i]), all.scores[i]);
            assert!((got - expected).abs() < 0.01, "{got} for {expected}");
        }
        let effects = predictor.effects(3);
        let best: Vec<usize> = effects.iter().map(|e| (0..3).find(|&c| e[c] == 0.0).unwrap()).collect();
        let least = all.scores.iter().copied().fold(f64::INFINITY, f64::min);
        assert!(predictor.predict(&best) <= least + 0.02, "the best of each layer is the best of all");
    }

    #[test]
    fn pairs_and_noise_are_told() {
        let held_out = |pair, noise| samples(300, pair, noise).held_out().unwrap();
        assert!(held_out(0.0, 0.0).value > 0.999);
        assert!(held_out(1.0, 0.0).value > 0.95, "{:?}", held_out(1.0, 0.0));
        let noisy = held_out(0.0, 4.0);
        assert!(noisy.value < 0.9 && noisy.low < noisy.value && noisy.value < noisy.high, "{noisy:?}");
        // Scores without any order.
        let mut none = samples(100, 0.0, 0.0);
        let mut rng = Rng::with_seed(9);
        none.scores.iter_mut().for_each(|score| *score = rng.f64());
        let none = none.held_out().unwrap();
        assert!(none.low < 0.2 && none.value.abs() < 0.35, "{none:?}");
        assert!(samples(9, 0.0, 0.0).held_out().is_none());
    }

    #[test]
    fn an_inverse_is_one() {
        let a = [4.0, 1.0, 0.5, 1.0, 3.0, -0.25, 0.5, -0.25, 2.0];
        let inverse = inverse(a.to_vec(), 3).unwrap();
        for i in 0..3 {
            for j in 0..3 {
                let product: f64 = (0..3).map(|k| a[i * 3 + k] * inverse[k * 3 + j]).sum();
                assert!((product - f64::from(i == j)).abs() < 1e-12);
            }
        }
        assert!(super::inverse(vec![1.0, 2.0, 2.0, 1.0], 2).is_none());
    }
}
