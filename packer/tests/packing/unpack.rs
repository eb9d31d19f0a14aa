//! The way back: weights under diffusers' names, and made-up models of true shape.

use crate::common::{Dense, MODELS, Scratch, load, load_component, model, pack_as};
use aquatint::raw::format::Packed;
use aquatint::raw::mmap;
use packer::lower::{DENOISER, VAE, dit};
use packer::synth::Architecture;
use packer::unpack::unpack;
use packer::weight::Weights;
use packer::weights::Float;
use std::collections::BTreeMap;
use std::path::Path;

/// Tensors of a component that the packer keeps.
fn kept(folder: &Path) -> BTreeMap<String, Dense> {
    let mut tensors = load_component(folder);
    tensors.retain(|key, _| !key.starts_with("encoder.") && !key.starts_with("quant_conv."));
    tensors
}

#[test]
fn f32_comes_back_exactly() {
    let scratch = Scratch::new("exact");
    let (packed, out) = (scratch.path("m.aqt"), scratch.path("w.safetensors"));
    for name in MODELS {
        pack_as(&model(name), Some("f32"), &packed).unwrap();
        for component in [DENOISER, VAE] {
            let expected = kept(&model(name).join(component));
            let count = unpack(&packed, &out, Some(component), Float::F32).unwrap();
            assert_eq!(count, expected.len());
            assert_eq!(load(&out), expected, "{name} {component}");
        }
    }
}

#[test]
fn f16_comes_back_rounded() {
    let scratch = Scratch::new("rounded");
    let (packed, out) = (scratch.path("m.aqt"), scratch.path("w.safetensors"));
    pack_as(&model("d2"), Some("f32"), &packed).unwrap();
    unpack(&packed, &out, None, Float::F16).unwrap();
    for (key, tensor) in kept(&model("d2").join(DENOISER)) {
        let rounded = tensor.values.iter().map(|&v| half::f16::from_f32(v).to_f32());
        assert_eq!(load(&out)[&key].values, rounded.collect::<Vec<_>>(), "{key}");
    }
}

#[test]
fn quantized_layers_come_back_as_far_off_as_reported() {
    let scratch = Scratch::new("error");
    let (packed, out) = (scratch.path("m.aqt"), scratch.path("w.safetensors"));
    for spec in ["w4a8", "w3a8:kmeans", "w4a16:kmeans_a", "f16"] {
        let report = pack_as(&model("d3odd"), Some(spec), &packed).unwrap();
        for component in [DENOISER, VAE] {
            let source = kept(&model("d3odd").join(component));
            unpack(&packed, &out, Some(component), Float::F32).unwrap();
            let back = load(&out);
            assert!(back.keys().eq(source.keys()));
            for line in report.layers.iter().filter(|l| l.meta.name.starts_with(&format!("{component}/"))) {
                let key = format!("{}.weight", line.meta.name.split_once('/').unwrap().1);
                let pairs = || source[&key].values.iter().zip(&back[&key].values);
                let sse: f64 = pairs().map(|(&a, &b)| f64::from(a - b).powi(2)).sum();
                let energy: f64 = pairs().map(|(&a, _)| f64::from(a).powi(2)).sum();
                let error = (sse / energy).sqrt();
                assert!(
                    (error - line.meta.error).abs() <= 1e-5 * line.meta.error,
                    "{spec} {key}: {error} is not {}",
                    line.meta.error
                );
            }
        }
    }
}

/// The names and shapes of `tests/keys/FILE`.
fn keys(file: &str) -> BTreeMap<String, Vec<usize>> {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/keys").join(file)).unwrap();
    let parse = |line: &str| {
        let (key, shape) = line.split_once('\t').unwrap();
        let dims = shape.trim_matches(['(', ')']).split(',').filter(|s| !s.trim().is_empty());
        (key.to_owned(), dims.map(|s| s.trim().parse().unwrap()).collect())
    };
    text.lines().map(parse).collect()
}

#[test]
fn made_up_models_have_the_tensors_of_the_real_ones() {
    for size in [32, 64] {
        let model = Architecture::dit_xl_2(size);
        for (component, file) in [(DENOISER, "dit_xl_2.txt"), (VAE, "kl_f8.txt")] {
            let list = model.tensors(component).unwrap();
            let expected = keys(file);
            assert_eq!(list.len(), expected.len());
            assert_eq!(list.into_iter().collect::<BTreeMap<_, _>>(), expected);
        }
    }
}

#[test]
fn quantizable_weights_are_as_many_as_published() {
    let model = Architecture::dit_xl_2(64);
    let mut weights = Weights::new();
    let config = dit::Config::read("DiTTransformer2DModel", &model.transformer).unwrap();
    dit::lower(&config, &|_, _| true, &mut weights);
    let layers = weights.iter().filter(|w| w.quantizable());
    let bytes: usize = layers.map(|w| w.len() * (1 + w.copies.len()) * 2).sum();
    // Qua2SeDiMo's FP_SIZE of DiT-XL/2-512, which counts the 28 copies of the time embedder.
    assert_eq!(bytes, 1_433_972_736);
}

#[test]
fn a_small_made_up_model_packs() {
    let scratch = Scratch::new("synth");
    let mut small = Architecture::dit_xl_2(8);
    for (field, value) in [("num_layers", 2), ("num_attention_heads", 2), ("attention_head_dim", 20)] {
        small.transformer.insert(field.into(), value.into());
    }
    small.vae.insert("block_out_channels".into(), serde_json::json!([16, 32]));
    small.vae.insert("up_block_types".into(), serde_json::json!(vec!["UpDecoderBlock2D"; 2]));
    small.vae.insert("norm_num_groups".into(), 8.into());
    let dir = scratch.path("small");
    small.write(&dir, 7).unwrap();
    assert!(small.write(&dir, 7).unwrap_err().to_string().contains("empty"));
    small.write(&scratch.path("again"), 7).unwrap();
    let file = "transformer/diffusion_pytorch_model.safetensors";
    assert!(std::fs::read(dir.join(file)).unwrap() == std::fs::read(scratch.path("again").join(file)).unwrap());
    assert_eq!(scratch.entries(), ["again", "small"]);

    let out = scratch.path("small.aqt");
    pack_as(&dir, Some("w4a8"), &out).unwrap();
    Packed::new(mmap::open(&out).unwrap()).unwrap().verify().unwrap();
}
