//! Distances of sets of features against scipy and torch-fidelity, and files of statistics as numpy writes them; see
//! fixtures/make_distances.py.

use aquatint_evaluation::score::{Gaussian, KernelReference, Probabilities, Reference};
use aquatint_evaluation::stats::{Figure, Shuffle, draw, eigenvalues, symmetric};
use serde_json::Value;
use std::path::Path;

/// Features of a picture in the fixtures.
const D: usize = 23;

fn file(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    std::fs::read(path).unwrap_or_else(|e| panic!("{name}: {e}"))
}

fn numbers() -> Value {
    serde_json::from_slice(&file("distances.json")).expect("JSON")
}

fn list(value: &Value) -> Vec<f64> {
    value.as_array().expect("a list").iter().map(|v| v.as_f64().expect("a number")).collect()
}

/// An array of features.npz, whose deflated entries flate2 reads here without this library.
fn array(name: &str) -> Vec<f32> {
    let bytes = file("features.npz");
    let entry = format!("{name}.npy");
    let at = bytes.windows(entry.len()).position(|w| w == entry.as_bytes()).expect("an entry") - 30;
    let length = |at: usize| usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
    let data = at + 30 + length(at + 26) + length(at + 28);
    let mut npy = Vec::new();
    std::io::Read::read_to_end(&mut flate2::read::DeflateDecoder::new(&bytes[data..]), &mut npy).expect("deflated");
    let header = 10 + usize::from(u16::from_le_bytes([npy[8], npy[9]]));
    npy[header..].as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| v.into()).collect()
}

#[track_caller]
fn close(got: f64, expected: f64, tolerance: f64) {
    assert!((got - expected).abs() <= tolerance * expected.abs(), "{got} is not {expected}");
}

/// Of whole rank within rounding of f64; of fewer pictures than features the root of a product is less exact, in scipy too:
/// 1e-6 is what two references may differ by.
#[test]
fn distances_are_scipys_for_many_pictures_and_few() {
    let numbers = numbers();
    let (made, stored) = (wide(&array("made")), file("stored.npz"));
    let reference = Reference::new("stored.npz", &stored, D).expect("statistics");
    assert!(reference.note().is_none() && reference.kernel().is_none());
    for (name, features, tolerance) in [("made", &made[..], 1e-10), ("few", &made[..15 * D], 1e-6)] {
        let spread = reference.gaussian().spread(features, 50);
        for by in ["sqrtm", "torch_fidelity"] {
            close(spread.distance.value(), numbers[name][by].as_f64().expect("a number"), tolerance);
        }
        assert!(matches!(spread.distance, Figure::Bootstrap(_)) && spread.bias > 0.0);
    }
    // Features give the same as their statistics.
    let of_features = Reference::new("features.npz", &file("features.npz"), D).expect("features");
    let distance = of_features.gaussian().spread(&made, 50).distance.value();
    close(distance, numbers["made"]["sqrtm"].as_f64().expect("a number"), 1e-10);
    // f32 keeps 2^-24 of each element, and the trace is some hundred times the distance's smallest parts.
    for name in ["deflated.npz", "wide.npz"] {
        let reference = Reference::new(name, &file(name), D).expect("statistics");
        close(reference.gaussian().spread(&made, 50).distance.value(), distance, 1e-5);
    }
}

/// Of fewer pictures than features the factor comes from products of pictures.
#[test]
fn few_pictures_have_the_distribution_of_their_statistics() {
    let made = wide(&array("made"));
    let few = Gaussian::of_features(&made[..15 * D], D);
    assert_eq!((few.rank(), few.features()), (14, D));
    let stored = Reference::new("singular.npz", &file("singular.npz"), D).expect("statistics");
    let [a, b] = [&few, stored.gaussian()].map(|gaussian| gaussian.spread(&made, 2).distance.value());
    close(a, b, 1e-6);
}

#[test]
fn kernel_distances_are_torch_fidelitys() {
    let numbers = numbers();
    let (made, reference) = (wide(&array("made")), KernelReference::new(wide(&array("features")), D));
    let [mean, deviation] = reference.subsets(&made, 7, 50).expect("117 and 160 pictures");
    let expected = list(&numbers["kid"]);
    close(mean, expected[0], 1e-10);
    close(deviation, expected[1], 1e-10);
    assert!(reference.subsets(&made, 7, 118).is_none(), "more than there are");
    let all = reference.distance(&made);
    close(all.value, numbers["mmd"].as_f64().expect("a number"), 1e-10);
    let without = list(&numbers["mmd_without"]);
    close(all.without[0], without[0], 1e-10);
    close(all.without[9], without[1], 1e-10);
    let estimate = all.interval(0.0);
    assert!(estimate.low < estimate.value && estimate.value < estimate.high, "{estimate:?}");
}

#[test]
fn inception_scores_are_torch_fidelitys() {
    let numbers = numbers();
    let probabilities = Probabilities::new(&array("logits"), 31);
    let [mean, deviation] = probabilities.splits().expect("45 pictures");
    let expected = list(&numbers["inception_score"]);
    close(mean, expected[0], 1e-12);
    close(deviation, expected[1], 1e-12);
    let all = probabilities.score();
    assert!(all.value > mean && all.error() > 0.0, "parts see fewer classes: {all:?}");
    let order: Vec<f64> = Shuffle::new(2020).permutation(77).into_iter().map(|i| i as f64).collect();
    assert_eq!(order, list(&numbers["permutation"]));
}

#[test]
fn statistics_that_say_nothing_are_told_in_one_line() {
    let singular = Reference::new("singular.npz", &file("singular.npz"), D).expect("statistics of 15 pictures");
    let note = singular.note().expect("a note");
    assert!(note.starts_with("singular.npz: the covariance of 23 features is singular, of rank 14: "), "{note}");
    let wrong = |bytes: &[u8], d: usize| match Reference::new("f", bytes, d) {
        Err(error) => error.to_string(),
        Ok(_) => panic!("it is refused"),
    };
    let stored = file("stored.npz");
    assert_eq!(wrong(&stored, 2048), "f: tensor `mu`: expected [2048], got [23]");
    assert_eq!(wrong(&file("features.npz"), 24), "f: tensor `features`: expected (n, 24), n at least 2, got [160, 23]");
    assert_eq!(wrong(b"PK\x03\x04", 23), "f: expected a whole .npz file, got no directory at its end; it is cut off");
    assert_eq!(
        wrong(&file("metrics.safetensors"), D),
        "f: tensor `features`: expected (n, 23), n at least 2, got [150, 12]"
    );
    assert_eq!(wrong(&file("inception.safetensors"), D), "f: expected a tensor `mean` or `mu`, got none");
    let mut broken = stored.clone();
    let at = stored.windows(8).position(|w| w == b"mu.npy\x01\x00").map_or(300, |at| at + 300);
    broken[at] ^= 1;
    assert!(wrong(&broken, D).contains("; the file is damaged"), "{}", wrong(&broken, D));
}

/// Every length of a cut-off archive, and every changed byte of its directory and headers, is refused or read, without a panic.
#[test]
fn archives_from_anywhere_are_allegations() {
    for name in ["deflated.npz", "wide.npz"] {
        attack(&file(name));
    }
}

fn attack(whole: &[u8]) {
    for length in 0..whole.len() {
        assert!(Reference::new("f", &whole[..length], D).is_err(), "{length} bytes of {}", whole.len());
    }
    for at in 0..whole.len() {
        for flip in [0x01, 0x80, 0xff] {
            let mut changed = whole.to_vec();
            changed[at] ^= flip;
            let _ = Reference::new("f", &changed, D);
        }
    }
}

/// A matrix of many columns, made of a few waves: `q L q'` with known values, and a large part of equal ones.
#[test]
fn large_matrices_have_their_eigenvalues() {
    let n = 300;
    // The type II cosine transform is orthogonal.
    let q = |k: usize, i: usize| {
        let scale = if k == 0 { (1.0 / n as f64).sqrt() } else { (2.0 / n as f64).sqrt() };
        scale * (std::f64::consts::PI / n as f64 * (i as f64 + 0.5) * k as f64).cos()
    };
    let value = |k: usize| if k < 200 { (k / 3 + 1) as f64 * 0.01 } else { 1.5f64.powi(k as i32 / 10 - 20) };
    let element = |i: usize, j: usize| (0..n).map(|k| value(k) * q(k, i) * q(k, j)).sum::<f64>();
    let matrix: Vec<f64> = (0..n * n).map(|at| element(at / n, at % n)).collect();
    let mut expected: Vec<f64> = (0..n).map(value).collect();
    expected.sort_by(f64::total_cmp);
    let mut got = eigenvalues(matrix.clone(), n);
    got.sort_by(f64::total_cmp);
    let largest = expected[n - 1];
    assert!(got.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-13 * n as f64 * largest));
    let eigen = symmetric(matrix.clone(), n);
    for (value, vector) in eigen.values.iter().zip(eigen.vectors.chunks_exact(n)) {
        for (row, v) in matrix.chunks_exact(n).zip(vector) {
            let product: f64 = row.iter().zip(vector).map(|(a, b)| a * b).sum();
            assert!((product - value * v).abs() < 1e-13 * n as f64 * largest, "a vector of {value}");
        }
    }
    // Large enough for the jackknife.
    let gaussian = Gaussian::of(vec![0.0; n], &matrix);
    let features: Vec<f64> = (0..400 * n).map(|at| draw(0, at, 10_007) as f64 / 5003.0 - 1.0).collect();
    let spread = gaussian.spread(&features, 100);
    let Figure::Jackknife(distance) = &spread.distance else { panic!("large matrices take the jackknife") };
    let own = Gaussian::of_features(&features, n);
    // The same by statistics in place of rows.
    let columns: Vec<f64> = (0..n).map(|i| features.iter().skip(i).step_by(n).sum::<f64>() / 400.0).collect();
    let covariance: Vec<f64> = (0..n * n)
        .map(|at| {
            let pair = |row: &[f64]| (row[at / n] - columns[at / n]) * (row[at % n] - columns[at % n]);
            features.chunks_exact(n).map(pair).sum::<f64>() / 399.0
        })
        .collect();
    close(distance.value, gaussian.distance(&columns, &covariance), 1e-9);
    close(own.distance(&columns, &covariance).abs() + 1.0, 1.0, 1e-6);
}
