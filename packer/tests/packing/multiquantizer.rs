//! Every layer by several methods, against Qua2SeDiMo's own formulas, and read back by --import.

use crate::common::{Scratch, fixture, load, load_component};
use aquatint::raw::codec::Bits;
use packer::emit::{Options, pack};
use packer::multiquantizer::{Row, Settings, multiquantize};
use packer::pass::Split;
use packer::quantize::{Method, exact};
use packer::unpack::unpack;
use packer::weights::Float;
use std::fs;

const METHODS: [Method; 3] = [Method::UAQ, Method::KMeansRow, Method::KMeansTensor];

fn settings(scratch: &Scratch, float: Float) -> Settings {
    Settings {
        model: fixture("dit/d2"),
        methods: METHODS.to_vec(),
        bits: vec![Bits::ALL[2], Bits::ALL[1]],
        float,
        split: Vec::new(),
        output: scratch.path("mq.safetensors"),
    }
}

fn squares(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum()
}

#[test]
fn parameters_weights_and_losses_are_those_of_the_project() {
    let scratch = Scratch::new("mq");
    let settings = settings(&scratch, Float::F32);
    let mut seen = Vec::new();
    let rows = multiquantize(&settings, &mut |name, done, total| seen.push((name.to_owned(), done, total))).unwrap();
    let (made, known) = (load(&settings.output), load(&fixture("multiquantizer.safetensors")));
    let source = load_component(&fixture("dit/d2/transformer"));
    let layers = seen.len();
    assert_eq!(rows.len(), 6 * layers);
    assert!(seen.windows(2).all(|pair| pair[0].1 < pair[1].1 && pair[0].2 == pair[1].2));
    let of =
        |layer: &str, method: &str| -> &Row { rows.iter().find(|r| r.layer == layer && r.method == method).unwrap() };
    let mut compared = 0;
    for (key, want) in known.iter().filter(|(key, _)| !key.ends_with(".loss")) {
        let (layer, method) = key.rsplit_once('.').unwrap();
        let weight = &source[&format!("{layer}.weight")];
        let row = of(layer, method);
        let loss = f64::from(known[&format!("{key}.loss")].values[0]);
        let got = &made[&format!("model.{layer}.weight_quantizer.quant_params.{method}")];
        let stored = &made[&format!("model.{layer}.weight_quantizer.loss_dict.{method}")];
        assert_eq!((&stored.shape[..], &got.shape), (&[1usize][..], &want.shape), "{key}");
        // Half a step of f16, and of its smallest numbers.
        let step = row.error * 2f64.powi(-11) + 2f64.powi(-25);
        assert!((f64::from(stored.values[0]) - row.error).abs() <= step, "{key}: f16");
        assert_eq!(row.fp_bytes, 2 * weight.values.len() as u64);
        if method.starts_with("mse") {
            assert_eq!(got.values, want.values, "{key}");
            assert!((row.error - loss).abs() < 1e-5 * loss, "{key}: {} {loss}", row.error);
        } else {
            // An optimum, where scikit-learn has a local one of squares; losses are of another power.
            let [ours, theirs] = [got, want].map(|q| squares(&weight.values, &q.values));
            assert!(ours <= theirs * (1.0 + 1e-5), "{key}: {ours} {theirs}");
            // Where every weight has a cluster to itself, there is nothing but the rounding of its mean.
            assert!((row.error - loss).abs() < 0.1 * loss.max(1e-12), "{key}: {} {loss}", row.error);
        }
        compared += 1;
    }
    assert_eq!(compared, 18);
    for row in &rows {
        let weight = &made[&format!("model.{}.weight", row.layer)];
        assert_eq!(weight.values, source[&format!("{}.weight", row.layer)].values);
        assert_eq!(made[&format!("model.{}.bias", row.layer)].values, source[&format!("{}.bias", row.layer)].values);
    }
    let twice = rows.iter().find(|row| row.layer.contains("timestep_embedder")).unwrap();
    assert_eq!(twice.copies, 2, "both blocks have it");
}

#[test]
fn an_import_has_the_layers_as_they_are() {
    for float in [Float::F32, Float::F16] {
        let scratch = Scratch::new("mq-import");
        let settings = settings(&scratch, float);
        multiquantize(&settings, &mut |_, _, _| ()).unwrap();
        let config = scratch.path("q.json");
        let layers =
            r#"{"*.attn1.*": "mse-4", "*.ff.net.0.proj": "kmeans-3", "*.ff.net.2": "kmeans_all-4", "*": "f16"}"#;
        fs::write(&config, layers).unwrap();
        let options = Options {
            model: settings.model.clone(),
            q_config: Some(config.display().to_string()),
            import: Some(settings.output.clone()),
            output: scratch.path("m.aqt"),
            ..Default::default()
        };
        let report = pack(&options, &mut |_| ()).unwrap();
        let imported = report
            .layers
            .iter()
            .filter(|l| l.meta.note.as_ref().is_some_and(|note| note.starts_with("imported")))
            .count();
        assert_eq!(imported, 2 * 6);
        unpack(&options.output, &scratch.path("w.safetensors"), None, Float::F32).unwrap();
        let (result, made) = (load(&scratch.path("w.safetensors")), load(&settings.output));
        for (layer, method) in [("ff.net.0.proj", "kmeans-3"), ("ff.net.2", "kmeans_all-4")] {
            let name = format!("transformer_blocks.1.{layer}");
            let want = &made[&format!("model.{name}.weight_quantizer.quant_params.{method}")];
            for (got, want) in result[&format!("{name}.weight")].values.iter().zip(&want.values) {
                // Codebooks are f16 here.
                assert!((got - want).abs() <= 6e-4 * want.abs(), "{name}: {got} {want}");
            }
        }
    }
}

#[test]
fn halves_of_split_layers_are_quantized_apart() {
    let scratch = Scratch::new("mq-split");
    let split = vec![Split::Shortcut, Split::Conv];
    let settings = Settings { model: fixture("sd/v1"), split, ..settings(&scratch, Float::F32) };
    let rows = multiquantize(&settings, &mut |_, _, _| ()).unwrap();
    let (made, source) = (load(&settings.output), load_component(&fixture("sd/v1/unet")));
    let halves: Vec<&Row> = rows.iter().filter(|row| row.layer.ends_with(".weight_quantizer_0")).collect();
    assert_eq!(halves.len(), 12 * 6, "six shortcuts over skip connections, and six convolutions");
    for second in halves {
        let path = second.layer.strip_suffix(".weight_quantizer_0").unwrap();
        let first = rows.iter().find(|row| row.layer == path && row.method == second.method).unwrap();
        let whole = &source[&format!("{path}.weight")];
        assert_eq!(made[&format!("model.{path}.weight")].values, whole.values, "whole");
        assert_eq!((first.fp_bytes + second.fp_bytes) as usize, 2 * whole.values.len());
        if second.method == "kmeans-4" {
            let part = |half| &made[&format!("model.{path}.weight_quantizer{half}.quant_params.kmeans-4")];
            let (a, b) = (part(""), part("_0"));
            let (rows, cols, at) = (whole.shape[0], whole.shape[1], a.shape[1]);
            assert_eq!(at + b.shape[1], cols);
            let taps: usize = whole.shape[2..].iter().product();
            assert!(taps == 1 || at == rows);
            for (half, inputs) in [(a, 0..at * taps), (b, at * taps..cols * taps)] {
                let part: Vec<f32> =
                    whole.values.chunks_exact(cols * taps).flat_map(|row| row[inputs.clone()].to_vec()).collect();
                let alone = exact(&part, rows, inputs.len(), Method::KMeansRow, Bits::ALL[2]);
                assert_eq!(half.values, alone.values, "{path}: inputs {inputs:?}");
            }
        }
    }
    let options = Options {
        model: settings.model.clone(),
        q_config: Some("w4a16".into()),
        import: Some(settings.output.clone()),
        output: scratch.path("m.aqt"),
        ..Default::default()
    };
    let report = pack(&options, &mut |_| ()).unwrap();
    let imported = |line: &packer::emit::LayerLine| line.meta.note.as_ref().is_some_and(|n| n.starts_with("imported"));
    assert_eq!(report.layers.iter().filter(|l| l.meta.name.ends_with("_0") && imported(l)).count(), 12);
}

#[test]
fn what_cannot_be_is_refused() {
    let scratch = Scratch::new("mq-refused");
    let settings = settings(&scratch, Float::F32);
    let refuse = |settings: Settings| multiquantize(&settings, &mut |_, _, _| ()).unwrap_err().to_string();
    for (changed, expected) in [
        (
            Settings { methods: vec![Method::Lloyd], ..settings.clone() },
            "--methods: expected mse, kmeans or kmeans_all, got lloyd",
        ),
        (Settings { methods: Vec::new(), ..settings.clone() }, "--methods: expected one at least"),
        (Settings { split: vec![Split::Shortcut], ..settings.clone() }, "--split: expected a denoiser with shortcuts"),
        (Settings { bits: vec![Bits::ALL[0]; 2], ..settings.clone() }, "--bits: expected each width once"),
        (Settings { output: scratch.path("no/where.safetensors"), ..settings.clone() }, "where.safetensors"),
        (
            Settings { model: fixture("layouts/church.ckpt"), ..settings.clone() },
            "convert the model to a diffusers directory",
        ),
    ] {
        let error = refuse(changed);
        assert!(error.contains(expected) && error.lines().count() == 1, "{expected}: {error}");
    }
    assert!(scratch.entries().is_empty());
}
