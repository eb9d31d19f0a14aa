//! stable-diffusion.cpp's rules for types of tensors.

use crate::common::fixture;
use packer::config::tensor_names;
use packer::emit::{LayerPlan, Options, explain};
use packer::source::diffusers::Model;

fn plan(
    model: &str,
    config: Option<&str>,
    rules: &str,
    bits: Option<u8>,
) -> packer::Result<(Vec<LayerPlan>, Vec<String>)> {
    let options = Options {
        model: fixture(model),
        q_config: config.map(str::to_owned),
        tensor_types: Some(rules.into()),
        activation_bits: bits,
        ..Default::default()
    };
    explain(&options).map(|plan| (plan.layers, plan.notes))
}

#[test]
fn names_of_a_unets_layers_are_those_of_its_authors() {
    for (file, component) in [("layouts/sd.ckpt", "unet"), ("layouts/sdxl.ckpt", "unet")] {
        let model = Model::open(&fixture(file)).unwrap();
        let weights = &model.component(component).weights;
        let layers: Vec<&str> = weights.keys().filter_map(|key| key.strip_suffix(".weight")).collect();
        assert!(layers.len() > 60, "{file}: {}", layers.len());
        for layer in &layers {
            // Norms are no layers.
            if layer.contains("norm") {
                continue;
            }
            let names = tensor_names(component, &["model.diffusion_model."], layer, &layers);
            let key = format!("{layer}.weight");
            assert_eq!(names, [format!("unet.{key}"), weights.published(&key).0.to_owned()], "{file}");
        }
    }
}

#[test]
fn rules_decide_about_every_network_and_the_first_one_wins() {
    let rules =
        r"^vae\.=f32,attn1.*to_q=q8_0,model\.diffusion_model\..*transformer_blocks\.1\..*=q4_0,ff=f32,^nothing=f16";
    let (layers, notes) = plan("dit/d2", Some("w6a8:kmeans"), rules, None).unwrap();
    let of = |name: &str| {
        let layer = layers.iter().find(|l| l.name == name).unwrap();
        (layer.method.as_str(), layer.activation_bits, layer.decided_by.clone().unwrap_or_default())
    };
    assert_eq!(of("vae/decoder.conv_in").0, "f32");
    // 32 inputs: whole blocks of 32. Layers with few inputs are named by a rule.
    assert_eq!(of("transformer/transformer_blocks.1.attn1.to_q").0, "mse-8");
    assert_eq!(of("transformer/transformer_blocks.1.attn1.to_v").0, "mse-4");
    assert_eq!(of("transformer/transformer_blocks.0.ff.net.2"), ("f32", 32, "`ff=f32`".into()));
    let (method, bits, by) = of("transformer/transformer_blocks.1.ff.net.2");
    assert_eq!((method, bits), ("mse-4", 8), "activations stay as they are");
    assert!(by.contains("transformer_blocks"), "{by}");
    assert!(notes.iter().any(|n| n == "`^nothing=f16` is found in no tensor's name of this model"), "{notes:?}");
    assert!(notes.iter().any(|n| n.contains("are never converted")), "{notes:?}");
    let (layers, _) = plan("dit/d2", None, "attn1=q8_0", None).unwrap();
    let alone = layers.iter().find(|l| l.name.ends_with("0.attn1.to_q")).unwrap();
    assert_eq!((alone.method.as_str(), alone.activation_bits), ("mse-8", 32));
}

#[test]
fn rules_without_an_effect_and_unknown_types_are_refused() {
    for (rules, expected) in [
        (
            "nothing=q4_0",
            "--tensor-type-rules: expected rules that are for layers of this model, or they have no effect",
        ),
        // Rows of fewer than 256 weights.
        ("attn1=q4_K", "or they have no effect"),
        ("attn1=iq4_nl", "`attn1=iq4_nl`: the type must be one of"),
        ("attn1", "`attn1`: PATTERN=TYPE is expected"),
    ] {
        let error = plan("dit/d2", None, rules, None).unwrap_err().to_string();
        assert!(error.contains(expected) && error.lines().count() == 1, "{rules}: {error}");
    }
}
