//! Pruning against torch, and that what is pruned is exactly 0 in the packed file.

use crate::common::{Dense, Scratch, fixture, load, load_component};
use aquatint::options::SamplingOptions;
use aquatint::raw::codec::Bits;
use packer::calibrate::{Settings, calibrate};
use packer::emit::{Options, Report, pack};
use packer::quantize::{
    CodebookType, FeedbackOptions, Method, Moments, Pruning, RankSearch, Rule, SecondMoments, pruned_count,
    quantize_calibrated, quantize_sparse, zero_channels, zero_smallest, zero_up_to,
};
use packer::unpack::unpack;
use packer::weights::Float;
use std::collections::BTreeMap;

const FRACTIONS: [&str; 4] = ["0.05", "0.2", "0.5", "0.95"];
const WEIGHTS: [&str; 3] = ["linear", "tall", "conv"];

#[test]
fn what_becomes_zero_is_what_torch_prunes() {
    let file = load(&fixture("prune.safetensors"));
    for text in FRACTIONS {
        let fraction: f64 = text.parse().unwrap();
        for name in WEIGHTS.into_iter().chain(["bias"]) {
            let mut values = file[name].values.clone();
            let count = pruned_count(fraction, values.len());
            zero_smallest(&mut values, count);
            assert_eq!(values, file[&format!("l1/{text}/{name}")].values, "{name} {text}");
        }
        for name in WEIGHTS {
            let Dense { shape, values } = &file[name];
            let mut values = values.clone();
            zero_channels(&mut values, shape[0], pruned_count(fraction, shape[0]));
            assert_eq!(values, file[&format!("ln/{text}/{name}")].values, "{name} {text}");
        }
        let pieces = || WEIGHTS.map(|name| file[name].values.clone());
        let all: usize = pieces().iter().map(Vec::len).sum();
        let mut search = RankSearch::new();
        pieces().iter().for_each(|piece| search.see(piece));
        let rank = search.narrow(pruned_count(fraction, all) as u64);
        pieces().iter().for_each(|piece| search.see(piece));
        let mut cut = search.cut(rank);
        for (name, mut piece) in WEIGHTS.into_iter().zip(pieces()) {
            let own = cut.take(&piece);
            zero_up_to(&mut piece, own);
            assert_eq!(piece, file[&format!("global/{text}/{name}")].values, "{name} {text}");
        }
    }
}

fn methods() -> impl Iterator<Item = Method> {
    let rules = Rule::ALL.into_iter().map(Method::Uniform);
    rules.chain([Method::KMeansRow, Method::KMeansTensor])
}

/// Inputs that vary together, the more the nearer they are.
fn moments(inputs: usize) -> Moments {
    let triangle = (0..inputs).flat_map(|i| (0..=i).map(move |j| 0.9f64.powi((i - j) as i32)));
    let mean = (0..inputs).map(|i| (i % 3) as f64 * 0.01).collect();
    Moments { rows: 1e4, mean, second: SecondMoments::Dense(triangle.collect::<Vec<_>>()) }
}

#[test]
fn zeros_stay_exactly_zero_by_every_method_and_width() {
    let file = load(&fixture("prune.safetensors"));
    let (rows, cols) = (21, 37);
    let mut calibrated_better = 0;
    for fraction in ["0.2", "0.95"] {
        let mut weights = file[&format!("l1/{fraction}/linear")].values.clone();
        weights[..cols].fill(0.0);
        for (method, bits, codebook) in methods()
            .flat_map(|m| Bits::ALL.map(|bits| (m, bits)))
            .flat_map(|(m, bits)| [CodebookType::Int8, CodebookType::F16].map(|c| (m, bits, c)))
        {
            let what = format!("{method}-{bits} {codebook:?} {fraction}");
            // Its own zero point may lie beyond the codes, as Q-Diffusion's code has it; see below.
            if (method, bits) == (Method::Uniform(Rule::MaxScale), Bits::ALL[5]) {
                continue;
            }
            let nearest = quantize_sparse(&weights, rows, cols, method, bits, codebook).expect(&what).matrix;
            let mut results = vec![nearest];
            for max_block in [4608, 8] {
                let options = FeedbackOptions { keep_zeros: true, max_block, ..Default::default() };
                let got = quantize_calibrated(&weights, rows, cols, method, bits, codebook, &moments(cols), &options)
                    .expect(&what);
                assert!(got.output_error <= got.nearest_output_error * 1.0001, "{what}: {got:?}");
                calibrated_better += usize::from(got.output_error < 0.9 * got.nearest_output_error);
                results.push(got.matrix);
            }
            for matrix in results {
                for (i, _) in weights.iter().enumerate().filter(|(_, w)| **w == 0.0) {
                    assert_eq!(matrix.weight(i / cols, i % cols), 0.0, "{what}: weight {i}");
                }
                let kept = (0..weights.len()).filter(|&i| matrix.weight(i / cols, i % cols) != 0.0).count();
                assert!(kept > 0, "{what}: nothing is left");
            }
        }
    }
    assert!(calibrated_better > 40, "{calibrated_better}");
    let lloyd = |bits| {
        quantize_sparse(&file["l1/0.2/linear"].values, rows, cols, Method::Lloyd, bits, CodebookType::Int8).map(|_| ())
    };
    assert!(lloyd(Bits::ALL[2]).unwrap_err().contains("lloyd-4 has no level at 0"));
    assert_eq!(lloyd(Bits::ALL[5]), Ok(()));
    let scaled = Method::Uniform(Rule::MaxScale);
    let fault = quantize_sparse(&[-1.0, -0.5, 0.0, -0.25], 1, 4, scaled, Bits::ALL[5], CodebookType::Int8).unwrap_err();
    assert!(fault.contains("max_scale-8 has no level at 0"), "{fault}");
}

fn options(scratch: &Scratch, config: &str, pruning: Pruning) -> Options {
    let path = scratch.path("q.json");
    // By name: layers with so few inputs keep f16 otherwise.
    std::fs::write(
        &path,
        format!(r#"{{"default": "f16", "layers": {{"*.attn1.*": "{config}", "*.ff.*": "{config}"}}}}"#),
    )
    .unwrap();
    Options {
        model: fixture("dit/d2"),
        q_config: Some(path.display().to_string()),
        pruning: Some(pruning),
        output: scratch.path("m.aqt"),
        ..Default::default()
    }
}

fn packed(options: &Options) -> packer::Result<(Report, BTreeMap<String, Dense>)> {
    let report = pack(options, &mut |_| ())?;
    let weights = options.output.with_extension("safetensors");
    unpack(&options.output, &weights, None, Float::F32)?;
    Ok((report, load(&weights)))
}

#[test]
fn pruned_weights_unpack_to_zero_however_they_are_packed() {
    let scratch = Scratch::new("prune");
    let source = load_component(&fixture("dit/d2/transformer"));
    let mut settings = Settings::new(fixture("dit/d2"), scratch.path("c.safetensors"));
    settings.sampling = SamplingOptions { steps: Some(4), cfg_scale: Some(3.0), ..Default::default() };
    (settings.images, settings.calls) = (3, 3);
    calibrate(&settings, &mut |_| true).unwrap();
    for (config, calibrated) in [("w4a8:kmeans", false), ("w3a8", true), ("w3a16:kmeans", true), ("f16", false)] {
        let mut options = options(&scratch, config, Pruning::Layer(0.3));
        options.calibration = calibrated.then(|| settings.output.clone());
        let (report, result) = packed(&options).unwrap();
        let mut layers = 0;
        for (name, weight) in &source {
            let Some(layer) = name.strip_suffix(".weight").filter(|_| weight.shape.len() > 1) else { continue };
            // An embedding of classes is no layer.
            let Some(line) = report.layers.iter().find(|l| l.meta.name == format!("transformer/{layer}")) else {
                continue;
            };
            let mut expected = weight.values.clone();
            zero_smallest(&mut expected, pruned_count(0.3, weight.values.len()));
            for (got, want) in result[name].values.iter().zip(&expected) {
                assert!(*want != 0.0 || *got == 0.0, "{config} {name}: {got}");
            }
            let part = pruned_count(0.3, weight.values.len()) as f64 / weight.values.len() as f64;
            assert_eq!(line.sparsity, Some(part), "{name}");
            assert!(line.meta.note.as_ref().unwrap().starts_with("pruned: "), "{:?}", line.meta.note);
            layers += 1;
            if let (Some(bias), false) = (source.get(&format!("{layer}.bias")), calibrated) {
                let mut expected = bias.values.clone();
                zero_smallest(&mut expected, pruned_count(0.3, bias.values.len()));
                assert_eq!(result[&format!("{layer}.bias")].values, expected, "{layer}");
            }
        }
        assert!(layers >= 16, "{layers}");
        assert_eq!(report.layers.iter().filter(|l| l.sparsity.is_some()).count(), layers);
        assert!(report.notes.iter().any(|n| n.contains("size and speed do not change")), "{:?}", report.notes);
    }
}

#[test]
fn a_global_fraction_is_of_all_layers_and_channels_go_whole() {
    let scratch = Scratch::new("prune-global");
    let (report, result) = packed(&options(&scratch, "w8a8", Pruning::Global(0.4))).unwrap();
    let (mut all, mut zeros) = (0.0, 0.0);
    for line in report.layers.iter().filter(|l| l.sparsity.is_some()) {
        all += line.weights as f64;
        zeros += line.weights as f64 * line.sparsity.unwrap();
    }
    assert_eq!(zeros.round(), (0.4 * all).round_ties_even());
    let shares: Vec<f64> = report.layers.iter().filter_map(|l| l.sparsity).collect();
    assert!(shares.iter().any(|s| (s - 0.4).abs() > 0.02), "not by layer: {shares:?}");
    let bias = result.iter().find(|(name, _)| name.ends_with("ff.net.2.bias")).unwrap().1;
    assert!(bias.values.iter().all(|v| *v != 0.0), "biases are left");

    let (_, result) = packed(&options(&scratch, "w4a8:kmeans", Pruning::Channels(0.25))).unwrap();
    let weight = &result["transformer_blocks.0.ff.net.0.proj.weight"];
    let (rows, cols) = (weight.shape[0], weight.shape[1]);
    let gone = (0..rows).filter(|r| weight.values[r * cols..][..cols].iter().all(|v| *v == 0.0)).count();
    assert_eq!(gone, pruned_count(0.25, rows));
}

#[test]
fn pruning_that_cannot_be_is_refused() {
    let scratch = Scratch::new("prune-refused");
    let refuse = |config: &str, pruning| packed(&options(&scratch, config, pruning)).unwrap_err().to_string();
    for (config, pruning, expected) in [
        ("w4a8", Pruning::Layer(1.5), "--prune: expected a fraction above 0 and below 1, got 1.5"),
        ("w4a8", Pruning::Layer(f64::NAN), "above 0 and below 1, got NaN"),
        ("w4a8", Pruning::Channels(0.0), "--prune-structured: expected a fraction"),
        ("w4a8", Pruning::Channels(1e-9), "no effect"),
        ("w4a8:lloyd", Pruning::Layer(0.5), "lloyd-4 has no level at 0"),
    ] {
        let error = refuse(config, pruning);
        assert!(error.contains(expected), "{error}");
        assert!(error.lines().count() == 1 && !scratch.path("m.aqt").exists());
    }
}
