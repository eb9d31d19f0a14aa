//! Qua2SeDiMo's configurations of PixArt-alpha, PixArt-Sigma and Hunyuan-DiT (`tests/fixtures/make_configs.py`): each layer of
//! the true networks becomes what its entry says, and all cost what the project's own formulas say.

use crate::common::{Scratch, fixture, load};
use aquatint::raw::codec::Bits;
use aquatint::raw::format::Packed;
use aquatint::raw::program::{Dims, Program};
use packer::account::accounts;
use packer::config::QConfig;
use packer::emit::{Options, average_bits, explain, pack};
use packer::lower::{hunyuan, pixart};
use packer::multiquantizer::{Settings, multiquantize};
use packer::pass::{Split, Starts, sites, split_layers};
use packer::quantize::{Method, is_counted, quantized_bytes};
use packer::recipe::{Recipe, Requests, Store};
use packer::unpack::unpack;
use packer::weight::Weights;
use packer::weights::Float;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;

/// The transformer of true size, with the names of its weights and none of their values.
fn network(name: &str) -> (Vec<Program>, Weights) {
    let mut weights = Weights::new();
    let program = match name {
        "hunyuan" => {
            let config = json!({
                "activation_fn": "gelu-approximate", "norm_type": "layer_norm", "in_channels": 4, "patch_size": 2,
                "num_layers": 40, "hidden_size": 1408, "mlp_ratio": 4.3637, "sample_size": 128,
            });
            let config = hunyuan::Config::read("HunyuanDiT2DModel", config.as_object().unwrap()).unwrap();
            hunyuan::lower(&config, &mut weights)
        }
        _ => {
            let side = if name == "alpha" { 64 } else { 128 };
            let config = json!({"caption_channels": 4096, "sample_size": side, "use_additional_conditions": false});
            let config = config.as_object().unwrap();
            let config = pixart::Config::read("PixArtTransformer2DModel", config, &|_| false).unwrap();
            pixart::lower(&config, &mut weights)
        }
    };
    (vec![program], weights)
}

#[test]
fn every_layer_is_what_the_projects_file_says_and_costs_what_it_counts() {
    let expected: Value = serde_json::from_slice(&fs::read(fixture("configs/expected.json")).unwrap()).unwrap();
    for name in ["alpha", "sigma", "hunyuan"] {
        let expected = &expected[name];
        let path = fixture(&format!("configs/{name}.pkl")).display().to_string();
        let config = QConfig::parse(&path).unwrap();
        let (mut programs, mut weights) = network(name);
        let dims = Dims { height: 16, width: 16, tokens: 4, ..Dims::ONE };
        let split = |weights: &Weights, tensor, _| config.splits(&weights[tensor].layer());
        let halves = split_layers(&mut programs, &mut weights, &dims, &split).unwrap();
        // Blocks 21 to 39 of 40 read what the first ones left.
        assert_eq!(halves.len(), if name == "hunyuan" { 19 } else { 0 });
        assert!(halves.iter().all(|halves| halves.split == Split::Linear));
        assert!(halves.iter().all(|halves| halves.weights.map(|tensor| weights[tensor].matrix()) == [(1408, 1408); 2]));

        let sites = sites(&programs, weights.len());
        let requests = Requests { denoiser: Some(&path), ..Requests::default() };
        let recipe = Recipe::new(&weights, &sites, requests).unwrap();
        let (mut layers, mut floats, mut methods) = (0, Vec::new(), BTreeMap::<String, [u64; 2]>::new());
        for (weight, decision) in weights.iter().zip(&recipe.decisions).filter(|(weight, _)| weight.quantizable()) {
            assert_eq!(
                (decision.note.as_ref(), decision.treatment.activation_bits),
                (None, None),
                "{}",
                weight.layer()
            );
            let Store::Codes(method, bits) = decision.treatment.store else {
                floats.push(weight.layer());
                continue;
            };
            let quantizer = if weight.layer().ends_with("_0") { "" } else { ".weight_quantizer" };
            let by = decision.by.as_ref().unwrap().to_string();
            assert_eq!(by, format!("`model.{}{quantizer}`", weight.layer()));
            let (rows, cols) = weight.matrix();
            let sum = methods.entry(decision.treatment.store.name()).or_default();
            *sum = [sum[0] + 1, sum[1] + quantized_bytes(rows as u64, cols as u64, method, bits, 16)];
            layers += 1;
        }
        assert_eq!(json!(layers), expected["layers"]);
        assert_eq!(json!(methods), expected["methods"], "{name}");
        let pooler = ["q_proj", "k_proj", "v_proj", "c_proj"].map(|name| format!("time_extra_emb.pooler.{name}"));
        assert_eq!(floats, if name == "hunyuan" { pooler.to_vec() } else { Vec::new() });
        assert_eq!(recipe.notes.iter().any(|note| note.contains("pooler")), name == "hunyuan", "{:?}", recipe.notes);

        let counted = weights.iter().filter(|w| w.quantizable() && is_counted(w.key()));
        assert_eq!(json!(counted.map(|w| 2 * w.len()).sum::<usize>()), expected["full_bytes"]);
        let store = |_, tensor: aquatint::raw::program::Tensor| recipe.decisions[tensor.0 as usize].treatment.store;
        let bits = average_bits(&weights, &Starts::default(), &store);
        let want = expected["average_bits"].as_f64().unwrap();
        assert!((bits - want).abs() < 1e-12 * want, "{name}: {bits} {want}");
    }
}

/// A configuration as the project has it of the tiny Hunyuan-DiT, both halves of layers over skip connections named: by turns
/// of all methods.
fn tiny(scratch: &Scratch) -> String {
    let whole =
        Options { model: fixture("transformers/hunyuan"), q_config: Some("w4a16".into()), ..Options::default() };
    let layers = explain(&whole).unwrap().layers;
    let denoiser = layers.iter().filter_map(|l| l.name.strip_prefix("transformer/"));
    let mut names = Vec::new();
    for name in denoiser.filter(|name| !name.contains(".pooler.")) {
        names.push(format!("model.{name}.weight_quantizer"));
        if name.ends_with(".skip_linear") {
            names.push(format!("model.{name}.weight_quantizer_0"));
        }
    }
    let methods = ["mse-4", "kmeans-3", "kmeans_all-4", "mse-3", "kmeans-4", "kmeans_all-3"];
    let entries = names.into_iter().enumerate().map(|(i, name)| (name, json!(methods[i % 6])));
    let path = scratch.path("hunyuan.json");
    fs::write(&path, json!(entries.collect::<serde_json::Map<_, _>>()).to_string()).unwrap();
    path.display().to_string()
}

#[test]
fn halves_of_skip_layers_are_packed_and_imported() {
    let scratch = Scratch::new("published-halves");
    let mut options = Options {
        model: fixture("transformers/hunyuan"),
        q_config: Some(tiny(&scratch)),
        output: scratch.path("m.aqt"),
        ..Options::default()
    };
    let report = pack(&options, &mut |_| ()).unwrap();
    let (mut quantized, mut full, mut halves) = (0, 0, Vec::new());
    let config: BTreeMap<String, String> =
        serde_json::from_slice(&fs::read(options.q_config.as_ref().unwrap()).unwrap()).unwrap();
    let packed = Packed::open(&options.output).unwrap();
    for line in report.layers.iter().filter(|line| line.meta.name.starts_with("transformer/")) {
        let layer = &line.meta.name["transformer/".len()..];
        let quantizer = if layer.ends_with("_0") { "" } else { ".weight_quantizer" };
        let Some(method) = config.get(&format!("model.{layer}{quantizer}")) else {
            assert!(layer.contains(".pooler.") && line.meta.method == "f16", "{layer}");
            continue;
        };
        assert_eq!((&line.meta.method, line.meta.activation_bits), (method, 32), "{layer}");
        let tensor = packed.tensors().iter().find(|t| t.name == format!("transformer/{layer}.weight")).unwrap();
        let (rows, weights) = (tensor.dims[0] as u64, tensor.dims.iter().product::<usize>() as u64);
        let (name, bits) = method.rsplit_once('-').unwrap();
        let bits = Bits::new(bits.parse().unwrap()).unwrap();
        quantized += quantized_bytes(rows, weights / rows, Method::parse(name).unwrap(), bits, 16);
        full += 2 * weights;
        halves.extend(layer.ends_with("_0").then(|| layer.to_owned()));
    }
    // Of six blocks the last two read what others left.
    assert_eq!(halves, [4, 5].map(|block| format!("blocks.{block}.skip_linear.weight_quantizer_0")));
    let size = accounts(&packed).unwrap()[0].sizes[0];
    assert_eq!((size.quantized_bytes, size.full_bytes), (quantized, full));
    assert_eq!((report.average_bits, report.average_bits), (size.average_bits, 16.0 * quantized as f64 / full as f64));

    // Q-Diffusion's kind is another, and the message tells which one there is.
    let shortcuts = Options { split: vec![Split::Shortcut], q_config: Some("w4a8".into()), ..options.clone() };
    let error = pack(&shortcuts, &mut |_| ()).unwrap_err().to_string();
    assert!(error.ends_with("got one with linear layers over norms of skip connections (--split=linear)"), "{error}");

    // What was quantized before comes out as it went in.
    let settings = Settings {
        model: options.model.clone(),
        methods: vec![Method::UAQ, Method::KMeansRow, Method::KMeansTensor],
        bits: vec![Bits::ALL[2], Bits::ALL[1]],
        float: Float::F32,
        split: vec![Split::Linear],
        output: scratch.path("mq.safetensors"),
    };
    multiquantize(&settings, &mut |_, _, _| ()).unwrap();
    options.import = Some(settings.output.clone());
    pack(&options, &mut |_| ()).unwrap();
    unpack(&options.output, &scratch.path("w.safetensors"), None, Float::F32).unwrap();
    let (result, made) = (load(&scratch.path("w.safetensors")), load(&settings.output));
    let of_half = |(name, method): &(&String, &String)| name.ends_with("_0") && method.starts_with("kmeans");
    let (second, method) = config.iter().find(of_half).expect("a half with a codebook");
    let layer = second.trim_start_matches("model.").trim_end_matches(".weight_quantizer_0");
    let whole = &result[&format!("{layer}.weight")];
    let d = whole.shape[0];
    let want = &made[&format!("{second}.quant_params.{method}")];
    assert_eq!(want.shape, [d, d]);
    let got = whole.values.chunks_exact(2 * d).flat_map(|row| &row[d..]);
    // Codebooks are f16 here.
    assert!(got.zip(&want.values).all(|(got, want)| (got - want).abs() <= 6e-4 * want.abs()), "{layer}");
}
