//! Clusterings against their definition, by other programs, and beside the exact optimum.

use super::*;

fn random(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut next = move || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    (0..n).map(|_| (0..6).map(|_| next()).sum::<f32>() * 0.03).collect()
}

fn sse(values: &[f32], clusters: &Clusters) -> f64 {
    let nearest = |&v: &f32| clusters.centroids.iter().map(|c| (c - f64::from(v)).powi(2)).fold(f64::MAX, f64::min);
    values.iter().map(nearest).sum()
}

/// Every way of cutting sorted values into k runs, by the textbook recurrence in O(k n^2), two-pass variances.
fn by_definition(values: &[f32], k: usize) -> f64 {
    let mut sorted: Vec<f64> = values.iter().map(|&v| f64::from(v)).collect();
    sorted.sort_by(f64::total_cmp);
    let cost = |run: &[f64]| {
        let mean = run.iter().sum::<f64>() / run.len() as f64;
        run.iter().map(|v| (v - mean).powi(2)).sum::<f64>()
    };
    let n = sorted.len();
    let mut best: Vec<f64> = (0..=n).map(|i| if i == 0 { 0.0 } else { cost(&sorted[..i]) }).collect();
    for _ in 1..k {
        best = (0..=n).map(|i| (0..i).map(|j| best[j] + cost(&sorted[j..i])).fold(best[i], f64::min)).collect();
    }
    best[n]
}

#[test]
fn matches_the_quadratic_recurrence() {
    let mut cases: Vec<Vec<f32>> = (1..40).map(|n| random(n, n as u64)).collect();
    cases.push(random(120, 3));
    cases.push(random(90, 4).iter().map(|v| (v * 200.0).round() / 200.0).collect()); // many ties
    cases.push(random(90, 5).iter().map(|v| v * v * v * 1e3 + 7.0).collect());
    cases.push([random(60, 6), vec![50.0, -30.0]].concat()); // outliers of a thousand sigma
    for values in &cases {
        for k in [1, 2, 3, 4, 8, 16] {
            let clusters = cluster(values, k, &mut Scratch::default());
            let (got, expected) = (sse(values, &clusters), by_definition(values, k));
            let slack = expected * 1e-9 + 1e-13;
            assert!((got - expected).abs() <= slack, "n {} k {k}: {got:e}, expected {expected:e}", values.len());
            assert!(clusters.centroids.is_sorted() && clusters.centroids.len() <= k);
            assert_eq!(clusters.counts.iter().sum::<f64>(), values.len() as f64);
        }
    }
}

#[test]
fn few_distinct_values_become_the_centroids() {
    let clusters = cluster(&[0.25, -0.0, 0.25, 0.0, -3.5], 8, &mut Scratch::default());
    assert_eq!(clusters, Clusters { centroids: vec![-3.5, 0.0, 0.25], counts: vec![1.0, 2.0, 2.0] });
}

#[test]
fn scratch_of_a_larger_row_does_not_leak_into_a_smaller_one() {
    let mut scratch = Scratch::default();
    for n in [700, 20, 300, 5, 299] {
        let values = random(n, n as u64);
        for k in [16, 4] {
            assert_eq!(cluster(&values, k, &mut scratch), cluster(&values, k, &mut Scratch::default()));
        }
    }
}

#[test]
fn binning_stays_close_to_the_exact_optimum() {
    let base = random(30_000, 11);
    let change = |f: &dyn Fn(usize, f32) -> f32| base.iter().enumerate().map(|(i, &v)| f(i, v)).collect::<Vec<f32>>();
    for (name, values) in [
        ("normal", change(&|_, v| v)),
        ("heavy tails", change(&|_, v| v * v * v * 500.0)),
        ("far from zero", change(&|_, v| v + 9.0)),
        ("outliers", change(&|i, v| if i % 1000 == 0 { v * 2e3 } else { v })),
        ("pruned", change(&|i, v| if i % 3 > 0 { 0.0 } else { v })),
        ("wide and narrow", change(&|i, v| if i % 5 < 3 { v * 1e-3 } else { v })),
        ("three narrow spikes", change(&|i, v| (i % 3) as f32 - 1.0 + v * 1e-4)),
    ] {
        for k in [4, 8, 16, 64, 256] {
            let best = sse(&values, &exact(&values, k, &mut Scratch::default()));
            let got = sse(&values, &binned(&values, k, &mut Scratch::default()));
            let limit = if k <= 16 { 1e-5 } else { 1e-3 };
            assert!(got >= best * (1.0 - 1e-7), "{name} {k}: below the optimum, {got:e} < {best:e}");
            assert!(got <= best * (1.0 + limit), "{name} {k}: {got:e}, exact {best:e}, {:e}", got / best - 1.0);
        }
    }
}

#[test]
fn binning_keeps_few_distinct_values_exact() {
    let values: Vec<f32> = (0..100_000).map(|i| ((i * 7919) % 13) as f32 * 0.037 - 0.2).collect();
    assert!(sse(&values, &cluster(&values, 16, &mut Scratch::default())) < 1e-12);
}

fn weighted_sse(values: &[f32], weights: &[f64], clusters: &Clusters) -> f64 {
    let nearest = |v: f32| clusters.centroids.iter().map(|c| (c - f64::from(v)).powi(2)).fold(f64::MAX, f64::min);
    values.iter().zip(weights).map(|(&v, w)| w * nearest(v)).sum()
}

#[test]
fn weighted_clusters_are_the_best_of_all_ways_to_cut() {
    for n in 1..=9usize {
        for seed in 0..20 {
            let values = random(n, seed);
            let weights: Vec<f64> = random(n, seed + 99).iter().map(|v| f64::from(*v * 40.0).exp()).collect();
            let mut order: Vec<usize> = (0..n).collect();
            order.sort_by(|&i, &j| values[i].total_cmp(&values[j]));
            for k in 1..=4usize.min(n) {
                // Every set of k - 1 cuts among the n - 1 places between neighbours.
                let mut best = f64::INFINITY;
                for cuts in (0u32..1 << (n - 1)).filter(|c| c.count_ones() as usize == k - 1) {
                    let (mut cost, mut first) = (0.0, 0);
                    for last in 0..n {
                        if last + 1 < n && cuts >> last & 1 == 0 {
                            continue;
                        }
                        let run = &order[first..=last];
                        let total: f64 = run.iter().map(|&i| weights[i]).sum();
                        let mean = run.iter().map(|&i| weights[i] * f64::from(values[i])).sum::<f64>() / total;
                        cost += run.iter().map(|&i| weights[i] * (f64::from(values[i]) - mean).powi(2)).sum::<f64>();
                        first = last + 1;
                    }
                    best = best.min(cost);
                }
                let clusters = cluster_weighted(&values, &weights, k, &mut Scratch::default());
                let got = weighted_sse(&values, &weights, &clusters);
                assert!((got - best).abs() <= 1e-9 * best + 1e-15, "n {n} k {k}: {got:e}, expected {best:e}");
            }
        }
    }
}

#[test]
fn integer_weights_are_repetitions_bit_for_bit() {
    for (n, seed) in [(1, 1), (2, 2), (7, 3), (60, 4), (301, 5)] {
        // Some values twice, and some without any weight.
        let values: Vec<f32> = random(n, seed).iter().map(|v| (v * 400.0).round() / 400.0).collect();
        let times = |i: usize| (i * 7 + seed as usize) % 4 + usize::from(i == 0);
        let weights: Vec<f64> = (0..n).map(|i| times(i) as f64).collect();
        let repeated: Vec<f32> = (0..n).flat_map(|i| std::iter::repeat_n(values[i], times(i))).collect();
        for k in [1, 2, 4, 16] {
            let expected = cluster(&repeated, k, &mut Scratch::default());
            assert_eq!(cluster_weighted(&values, &weights, k, &mut Scratch::default()), expected, "{n} {k}");
        }
    }
}

#[test]
fn weights_of_columns_count_in_every_row() {
    let (values, weights) = (random(60, 8), [0.5, 3.0, 0.0, 1.25, 9.0]);
    let all: Vec<f64> = weights.iter().copied().cycle().take(60).collect();
    let got = cluster_weighted(&values, &weights, 8, &mut Scratch::default());
    assert_eq!(got, cluster_weighted(&values, &all, 8, &mut Scratch::default()));
    assert_ne!(got, cluster(&values, 8, &mut Scratch::default()));
}

#[test]
fn binning_with_weights_stays_close_to_the_exact_optimum() {
    let values = random(30_000, 12);
    let weights: Vec<f64> = random(300, 13).iter().map(|v| f64::from(*v * 60.0).exp()).collect();
    let all: Vec<f64> = weights.iter().copied().cycle().take(values.len()).collect();
    for k in [4, 16, 256] {
        let mut scratch = Scratch::default();
        gather_weighted(&values, &weights, &mut scratch);
        let best = weighted_sse(&values, &all, &program(k, &mut scratch));
        fill_bins(&values, all.iter().copied(), &mut scratch);
        let got = weighted_sse(&values, &all, &coarse_program(k, &mut scratch));
        let limit = if k <= 16 { 1e-5 } else { 1e-3 };
        assert!(got >= best * (1.0 - 1e-9) && got <= best * (1.0 + limit), "{k}: {got:e}, exact {best:e}");
    }
}

#[test]
fn weighted_clusters_are_never_worse_than_twenty_starts_of_scikit_learn() {
    let bytes = include_bytes!("../../../tests/fixtures/feedback.safetensors");
    let fixture = safetensors::SafeTensors::deserialize(bytes).unwrap();
    let data = |name: &str| fixture.tensor(name).unwrap().data().to_vec();
    let doubles = |name: &str| -> Vec<f64> {
        data(name).chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect()
    };
    let values: Vec<f32> =
        data("kmeans.values").chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    let (weights, inertia) = (doubles("kmeans.weights"), doubles("kmeans.inertia"));
    assert_eq!((values.len(), inertia.len()), (900, 12));
    for (case, &inertia) in inertia.iter().enumerate() {
        let (row, k) = (case / 4, [2, 4, 8, 16][case % 4]);
        let (values, weights) = (&values[row * 300..][..300], &weights[row * 300..][..300]);
        let got = weighted_sse(values, weights, &cluster_weighted(values, weights, k, &mut Scratch::default()));
        assert!(got <= inertia * (1.0 + 1e-9), "{row} k={k}: {got:e}, scikit-learn {inertia:e}");
        assert!(got > inertia * 0.5, "{row} k={k}: {got:e} cannot be, scikit-learn {inertia:e}");
    }
}

#[test]
fn halving_keeps_totals() {
    for n in [1usize, 2, 5, 8] {
        let mut atoms = Atoms::default();
        atoms.clear(0.0);
        (0..n).for_each(|i| atoms.push(i as f64, 2.0));
        atoms.halve();
        assert_eq!(atoms.len(), n.div_ceil(2));
        assert_eq!(atoms.count.last(), Some(&(2.0 * n as f64)));
        assert_eq!(atoms.sum.last(), Some(&((n * (n - 1) / 2) as f64)));
    }
}
