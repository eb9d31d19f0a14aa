//! Figures and statistics against scipy, scikit-image and numpy; see fixtures/make_metrics.py.

use aquatint_evaluation::pictures::{mean_square, psnr, ssim};
use aquatint_evaluation::score::{Attributes, COLOURS, Captions, Classifier, Gaussian, Reference, bias, read_colours};
use aquatint_evaluation::stats::{
    Bootstrapped, Estimate, Figure, Z95, bootstrap, draw, eigenvalues, mcnemar, newcombe, quantile, symmetric, wilson,
};
use safetensors::SafeTensors;
use serde_json::Value;
use std::path::{Path, PathBuf};

fn here() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn numbers() -> Value {
    let text = std::fs::read_to_string(here().join("metrics.json")).expect("the fixture");
    serde_json::from_str(&text).expect("JSON")
}

/// The bytes of a tensor of the fixture, and its axes.
fn bytes(name: &str) -> (Vec<u8>, Vec<usize>) {
    let file = std::fs::read(here().join("metrics.safetensors")).expect("the fixture");
    let tensors = SafeTensors::deserialize(&file).expect("safetensors");
    let view = tensors.tensor(name).expect("a tensor of the fixture");
    (view.data().to_vec(), view.shape().to_vec())
}

fn floats(name: &str) -> (Vec<f32>, Vec<usize>) {
    let (bytes, dims) = bytes(name);
    (bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(), dims)
}

fn list(value: &Value) -> Vec<f64> {
    value.as_array().expect("a list").iter().map(|v| v.as_f64().expect("a number")).collect()
}

fn model(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/glyphs").join(name);
    std::fs::read(path).expect("a file of the letter model")
}

#[track_caller]
fn close(got: f64, expected: f64, tolerance: f64) {
    assert!((got - expected).abs() <= tolerance * expected.abs().max(1.0), "{got} is not {expected}");
}

#[test]
fn pictures_differ_as_scikit_image_says() {
    for (i, row) in numbers()["pictures"].as_array().expect("rows").iter().enumerate() {
        let (a, dims) = floats(&format!("picture_{i}_a"));
        let (b, _) = floats(&format!("picture_{i}_b"));
        let got = ssim(&a, &b, [dims[0], dims[1]], dims[2]).expect("no smaller than a window");
        close(got, row["ssim"].as_f64().expect("a number"), 1e-9);
        let ratio = psnr(mean_square(&a, &b), 1.0);
        match row["psnr"].as_f64() {
            Some(expected) => close(ratio, expected, 1e-9),
            None => assert_eq!((ratio, got), (f64::INFINITY, 1.0), "pictures that are the same"),
        }
    }
    assert_eq!(ssim(&[0.0; 110], &[0.0; 110], [11, 10], 1), None, "smaller than a window");
}

#[test]
fn shares_have_the_intervals_and_tests_of_scipy() {
    let numbers = numbers();
    close(Z95, numbers["normal_quantile"].as_f64().expect("a number"), 1e-15);
    for row in numbers["wilson"].as_array().expect("rows") {
        let [hits, n, low, high] = list(row)[..] else { panic!("four numbers") };
        let got = wilson(hits as usize, n as usize);
        close(got.low, low, 1e-12);
        close(got.high, high, 1e-12);
    }
    for row in numbers["mcnemar"].as_array().expect("rows") {
        let [lost, won, p] = list(row)[..] else { panic!("three numbers") };
        let got = mcnemar(lost as usize, won as usize);
        assert!((got - p).abs() <= 1e-10 * p, "{lost} lost, {won} won: {got} is not {p}");
    }
}

/// The worked example of Newcombe 1998, table III, method 10: of 50 pairs 36 both, 12 and 2 one alone: 0.0569 to 0.3404.
#[test]
fn paired_shares_have_newcombes_interval() {
    let got = newcombe([[0, 2], [12, 36]]);
    close(got.value, -0.2, 1e-12);
    assert_eq!([got.low, got.high].map(|v| (v * 1e4).round() / 1e4), [-0.3404, -0.0569]);
    let turned = newcombe([[0, 12], [2, 36]]);
    close(turned.low, -got.high, 1e-12);
    close(turned.high, -got.low, 1e-12);
    let same = newcombe([[3, 0], [0, 97]]);
    assert_eq!(same.value, 0.0);
    assert!(same.holds_zero() && same.high < 0.05, "{same:?}");
}

#[test]
fn quantiles_are_numpys() {
    let numbers = numbers();
    let mut values = list(&numbers["quantiles"]["values"]);
    for row in numbers["quantiles"]["of"].as_array().expect("rows") {
        let [share, expected] = list(row)[..] else { panic!("two numbers") };
        close(quantile(&mut values, share), expected, 1e-14);
    }
    assert_eq!(quantile(&mut [f64::INFINITY; 2], 0.3), f64::INFINITY, "and no NaN");
}

#[test]
fn eigenvalues_are_lapacks_and_vectors_belong_to_them() {
    for (name, case) in numbers()["eigen"].as_object().expect("matrices") {
        let (matrix, expected) = (list(&case["matrix"]), list(&case["values"]));
        let n = expected.len();
        let eigen = symmetric(matrix.clone(), n);
        let mut values = eigen.values.clone();
        values.sort_by(f64::total_cmp);
        let scale = expected.iter().fold(0.0f64, |m, v| m.max(v.abs()));
        for (got, expected) in values.iter().zip(&expected) {
            assert!((got - expected).abs() <= 1e-12 * scale, "{name}: {got} is not {expected}");
        }
        let mut alone = eigenvalues(matrix.clone(), n);
        alone.sort_by(f64::total_cmp);
        assert_eq!(alone, values, "{name}: the same without vectors");
        for (value, vector) in eigen.values.iter().zip(eigen.vectors.chunks_exact(n)) {
            close(vector.iter().map(|v| v * v).sum(), 1.0, 1e-12);
            for (row, v) in matrix.chunks_exact(n).zip(vector) {
                let product: f64 = row.iter().zip(vector).map(|(a, b)| a * b).sum();
                assert!((product - value * v).abs() <= 1e-11 * scale, "{name}: a vector of {value}");
            }
        }
    }
}

#[test]
fn distances_of_distributions_are_scipys() {
    let expected = &numbers()["frechet"];
    let of = |name: &str| expected[name].as_f64().expect("a number");
    let (features, dims) = floats("features");
    let wide = |name: &str| floats(name).0.iter().map(|&v| f64::from(v)).collect::<Vec<_>>();
    let gaussian = Gaussian::of(wide("mean"), &wide("covariance"));
    let features: Vec<f64> = features.iter().map(|&v| f64::from(v)).collect();
    let spread = gaussian.spread(&features, 200);
    let Figure::Bootstrap(distance) = &spread.distance else { panic!("small matrices are bootstrapped") };
    close(distance.value, of("features"), 1e-9);
    assert_eq!(dims, [150, 12]);
    // Half of resamples would be below the value if resampling did not add the bias a second time.
    let above = distance.resampled.iter().filter(|&&v| v > distance.value).count();
    assert!(above > 110, "{above} of 200 are above {}", distance.value);
    let corrected = spread.corrected();
    assert!(corrected.low < corrected.value && corrected.value < corrected.high, "{corrected:?}");

    let letters = model("reference.safetensors");
    let tensors = SafeTensors::deserialize(&letters).expect("safetensors");
    let stored = |name: &str| -> Vec<f64> {
        let data = tensors.tensor(name).expect(name).data().to_vec();
        data.chunks_exact(4).map(|b| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]]))).collect()
    };
    let (mean, mut covariance) = (stored("mean"), stored("covariance"));
    let reference = Reference::new("reference", &letters, 96).expect("the letters' features");
    let gaussian = reference.gaussian();
    close(gaussian.distance(&mean, &covariance), 0.0, 1e-6);
    let shifted: Vec<f64> = mean.iter().map(|v| v + 0.25).collect();
    covariance.iter_mut().for_each(|v| *v *= 1.3);
    (0..96).for_each(|i| covariance[i * 97] += i as f64 * 0.05);
    close(gaussian.distance(&shifted, &covariance), of("letters"), 1e-6);
}

/// The first order of the bias against the mean of 4000 samples' distances from the distribution they are drawn from.
#[test]
fn the_bias_of_distances_is_that_of_samples() {
    let numbers = numbers();
    let simulated = &numbers["frechet"]["bias"];
    let of = |name: &str| simulated[name].as_f64().expect("a number");
    let (features, _) = floats("features");
    let rows: Vec<Vec<f64>> = features.chunks_exact(12).map(|r| r.iter().map(|&v| f64::from(v)).collect()).collect();
    let mean: Vec<f64> = (0..12).map(|i| rows.iter().map(|r| r[i]).sum::<f64>() / 150.0).collect();
    let element = |i: usize, j: usize| rows.iter().map(|r| (r[i] - mean[i]) * (r[j] - mean[j])).sum::<f64>() / 149.0;
    let covariance = (0..144).map(|at| element(at / 12, at % 12)).collect();
    let got = bias(&symmetric(covariance, 12).values, of("n") as usize);
    let tolerance = 4.0 * of("error");
    assert!((got - of("mean")).abs() < tolerance, "{got} is not {} within {tolerance}", of("mean"));
}

#[test]
fn letters_and_colours_are_read_as_numpy_reads_them() {
    let (pixels, dims) = bytes("letters");
    let classifier = Classifier::new("classifier", &model("classifier.safetensors")).expect("the letters' classifier");
    assert_eq!((classifier.features(), classifier.outputs()), (96, 26));
    let expected = [floats("letter_features").0, floats("letter_logits").0];
    let numbers = numbers();
    let colours = ["ink", "background"].map(|name| list(&numbers["letters"][name]));
    for (i, picture) in pixels.chunks_exact(48 * 48 * 3).enumerate() {
        let picture: Vec<f32> = picture.iter().map(|&v| f32::from(v) / 255.0).collect();
        let (features, logits) = classifier.read(&picture, [48, 48]);
        for (got, expected) in [features, logits].iter().zip(&expected) {
            let expected = &expected[i * got.len()..][..got.len()];
            let scale = expected.iter().fold(0.0f32, |m, v| m.max(v.abs()));
            let off = got.iter().zip(expected).fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
            assert!(off <= 1e-5 * scale, "letter {i}: {off} off, of {scale}");
        }
        let seen = read_colours(&picture, [48, 48]);
        assert_eq!([seen.ink as f64, seen.background as f64], [colours[0][i], colours[1][i]], "letter {i}");
    }
    assert_eq!(dims, [6, 48, 48, 3]);
}

#[test]
fn classifiers_of_wrong_shapes_are_named() {
    use safetensors::{Dtype, tensor::TensorView};
    let file = |shapes: &[(&str, Vec<usize>)]| {
        let zeros = vec![0u8; 1 << 16];
        let views = shapes.iter().map(|(name, dims)| {
            let bytes = 4 * dims.iter().product::<usize>();
            (*name, TensorView::new(Dtype::F32, dims.clone(), &zeros[..bytes]).expect("a view"))
        });
        safetensors::serialize(views, None).expect("a file")
    };
    let sound = [
        ("conv1.weight", vec![4, 3, 3, 3]),
        ("conv1.bias", vec![4]),
        ("fc1.weight", vec![6, 16]),
        ("fc1.bias", vec![6]),
        ("fc2.weight", vec![26, 6]),
        ("fc2.bias", vec![26]),
    ];
    assert!(Classifier::new("c", &file(&sound)).is_ok());
    for (at, dims) in
        [(0, vec![4, 3, 5, 5]), (1, vec![5]), (2, vec![6, 15]), (3, vec![1]), (4, vec![26, 7]), (5, vec![6])]
    {
        let mut shapes = sound.clone();
        shapes[at].1 = dims;
        let Err(error) = Classifier::new("c", &file(&shapes)) else { panic!("{} is refused", sound[at].0) };
        assert!(error.to_string().starts_with(&format!("c: tensor `{}`: expected", sound[at].0)), "{error}");
        let without: Vec<_> = sound.iter().filter(|(name, _)| *name != sound[at].0).cloned().collect();
        let Err(error) = Classifier::new("c", &file(&without)) else { panic!("{} is missed", sound[at].0) };
        assert_eq!(error.to_string(), format!("c: expected a tensor `{}`, got none", sound[at].0));
    }
    assert!(Classifier::new("c", b"no file").is_err());
    let features = file(&[("mean", vec![6]), ("covariance", vec![6, 5])]);
    let Err(error) = Reference::new("f", &features, 6) else { panic!("no square") };
    assert_eq!(error.to_string(), "f: tensor `covariance`: expected [6, 6], got [6, 5]");
    assert!(Reference::new("f", &features, 7).is_err(), "of another classifier");
}

#[test]
fn captions_say_letter_colours_and_style() {
    let colour = |name: &str| COLOURS.iter().position(|(n, _)| *n == name).expect("a colour");
    for (caption, letter, ink, background, style) in [
        ("a bold red A on blue, italic", 'A', "red", "blue", 1),
        ("Q, white on a black background", 'Q', "white", "black", 0),
        ("the letter Z, italic, in pink on a purple background", 'Z', "pink", "purple", 2),
        ("on green: a yellow B", 'B', "yellow", "green", 0),
    ] {
        let seen = Attributes::of(caption).unwrap_or_else(|| panic!("{caption} says it"));
        assert_eq!(seen.letter, letter as usize - 'A' as usize, "{caption}");
        assert_eq!((seen.colours.ink, seen.colours.background), (colour(ink), colour(background)), "{caption}");
        assert_eq!(seen.style, style, "{caption}");
    }
    for caption in [
        "a bold red letter on blue",
        "a red A B on blue",
        "a red A",
        "a red A on mauve",
        "an A on blue",
        "a red green A on blue",
        "A red Apple on blue",
    ] {
        // The last names a letter, the article, where no letter is meant; nobody can know.
        let seen = Attributes::of(caption);
        assert_eq!(seen.is_some(), caption.starts_with("A red"), "{caption}");
    }
    let captions = Captions::new("f", "a red A on blue\n\n  a blue B on red \n").expect("two captions");
    assert_eq!((captions.count(), captions.of(0), captions.of(3)), (2, "a red A on blue", "a blue B on red"));
    assert_eq!(
        Captions::new("f", "\n \n").expect_err("none").to_string(),
        "f: expected at least one caption, got none"
    );
}

/// Resamples draw all images about as often, and the same ones whatever the number of threads.
#[test]
fn resamples_are_fair_and_fixed() {
    let mut counts = [0u32; 26];
    (0..1000).for_each(|resample| (0..26).for_each(|place| counts[draw(resample, place, 26)] += 1));
    // Chi square of 25 degrees of freedom: 52.6 is passed once in 1000 times.
    let chi2: f64 = counts.iter().map(|&c| (f64::from(c) - 1000.0).powi(2) / 1000.0).sum();
    assert!(chi2 < 52.6, "{counts:?}");
    let values: Vec<f64> = (0..100).map(f64::from).collect();
    let run = || bootstrap(100, 300, |images| [images.iter().map(|&i| values[i]).sum::<f64>() / 100.0]);
    let threads = |n| rayon::ThreadPoolBuilder::new().num_threads(n).build().expect("threads").install(run);
    let ([one], [three]) = (threads(1), threads(3));
    assert_eq!(one, three);
    // The standard error of the mean is 28.87 / 10, and 95 % are 1.96 of it to either side.
    let Estimate { value, low, high } = one.percentile();
    assert_eq!(value, 49.5);
    assert!((high - low - 2.0 * 1.96 * 2.887).abs() < 1.5, "{low} to {high}");
}

#[test]
fn differences_are_paired() {
    let of = |value, resampled: &[f64]| Bootstrapped { value, resampled: resampled.to_vec() };
    let a = of(1.0, &[1.0, 5.0, 9.0]);
    let b = of(0.5, &[0.5, 4.5, 8.5]);
    let difference = a.minus(&b).percentile();
    assert_eq!(difference, Estimate { value: 0.5, low: 0.5, high: 0.5 });
    assert!(!difference.holds_zero(), "though both intervals are wide");
    let infinite = of(f64::INFINITY, &[f64::INFINITY; 3]);
    assert_eq!(infinite.minus(&infinite).percentile(), Estimate { value: 0.0, low: 0.0, high: 0.0 });
    let biased = of(3.0, &[3.5, 4.0, 4.5]);
    let basic = biased.basic(1.0);
    assert_eq!(basic.value, 2.0);
    assert!(basic.low < 2.0 && 2.0 < basic.high, "{basic:?} is around the value without bias");
}
