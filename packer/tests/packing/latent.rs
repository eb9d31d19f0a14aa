//! Pipelines of Stable Diffusion and latent diffusion: what is refused, how their parts are quantized, and the way back.

use crate::common::{Scratch, copy_folder, edit_json, edit_weights, fixture, load, load_component};
use aquatint::raw::format::Packed;
use aquatint::raw::program::{Attend, Attention, Op, Program, Role};
use packer::emit::{Options, Report, pack};
use packer::unpack::unpack;
use packer::weights::Float;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

fn model(name: &str) -> PathBuf {
    fixture("sd").join(name)
}

fn pack_f16(model: &Path, output: &Path) -> packer::Result<Report> {
    pack(&Options { model: model.to_owned(), output: output.to_owned(), ..Default::default() }, &mut |_| ())
}

/// Packs what `break_it` makes of a model; the message must contain all of `words`.
fn refused(name: &str, break_it: impl FnOnce(&Path), words: &[&str]) {
    static COUNT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    let number = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let scratch = Scratch::new(&format!("latent-{name}-{number}"));
    let copy = scratch.path(name);
    copy_folder(&model(name), &copy);
    break_it(&copy);
    let message = pack_f16(&copy, &scratch.path("out.aqt")).expect_err(words[0]).to_string();
    for word in words {
        assert!(message.contains(word), "{name}: {word:?} is not in: {message}");
    }
    assert!(!message.contains('\n'), "{message}");
}

fn set(file: &'static str, field: &'static str, value: Value) -> impl FnOnce(&Path) {
    move |m: &Path| edit_json(&m.join(file), |c| drop(c.insert(field.into(), value)))
}

#[test]
fn settings_of_unets_are_refused_by_name() {
    let cases = [
        ("addition_embed_type", json!("image"), "text_time"),
        ("attention_head_dim", json!([2, 3, 7]), "divisor of 20"),
        ("attention_type", json!("gated"), "default"),
        ("block_out_channels", json!([12, 20, 30]), "norm_num_groups 4"),
        ("class_embed_type", json!("timestep"), "null"),
        ("conv_in_kernel", json!(5), "3"),
        ("cross_attention_dim", json!([18, 18, 20]), "one number"),
        ("cross_attention_dim", json!(24), "[18]"),
        ("down_block_types", json!(["CrossAttnDownBlock2D"]), "3 blocks"),
        ("down_block_types", json!(["CrossAttnDownBlock2D", "KDownBlock2D", "DownBlock2D"]), "KDownBlock2D"),
        ("dual_cross_attention", json!(true), "false"),
        ("in_channels", json!(9), "out_channels"),
        ("mid_block_type", json!("UNetMidBlock2D"), "UNetMidBlock2DCrossAttn"),
        ("only_cross_attention", json!([false, true, false]), "false"),
        ("resnet_time_scale_shift", json!("ada_group"), "scale_shift"),
        ("time_cond_proj_dim", json!(256), "null"),
        ("transformer_layers_per_block", json!([1, 2]), "3 levels"),
    ];
    for (field, value, word) in cases {
        refused("v1", set("unet/config.json", field, value), &["unet/config.json", field, word]);
    }
    for (field, value, word) in [
        ("addition_time_embed_dim", Value::Null, "a number"),
        ("projection_class_embeddings_input_dim", json!(47), "multiple of 6"),
        ("projection_class_embeddings_input_dim", json!(10 + 4 * 6), "5 or 6 numbers"),
    ] {
        refused("xl", set("unet/config.json", field, value), &["unet/config.json", field, word]);
    }
    for (field, value, word) in [
        ("num_attention_heads", json!(3), "divisor of 8"),
        ("attn_norm_num_groups", json!(3), "divisor of 16"),
        ("sample_size", json!(10), "multiple of 4"),
        ("upsample_type", json!("shuffle"), "conv or resnet"),
        ("up_block_types", json!(["AttnUpBlock2D", "UpBlock2D", "SkipUpBlock2D"]), "ResnetUpsampleBlock2D"),
    ] {
        refused("church", set("unet/config.json", field, value), &["unet/config.json", field, word]);
    }
}

#[test]
fn parts_must_fit_together() {
    refused("v1", set("text_encoder/config.json", "hidden_act", json!("relu")), &["hidden_act", "quick_gelu", "relu"]);
    refused("v1", set("text_encoder/config.json", "num_attention_heads", json!(4)), &["num_attention_heads", "18"]);
    let class = set("model_index.json", "text_encoder", json!(["transformers", "T5EncoderModel"]));
    refused("v1", class, &["text_encoder", "CLIPTextModel", "T5EncoderModel"]);
    let gone = |folder: &'static str| move |m: &Path| std::fs::remove_dir_all(m.join(folder)).unwrap();
    refused("v1", gone("text_encoder"), &["a folder text_encoder", "StableDiffusionPipeline"]);
    // Without the first encoder the context is too narrow.
    refused("xl", gone("text_encoder"), &["unet/config.json: cross_attention_dim", "[26]", "44"]);
    // Beside the tiny vocabulary CLIP's own tokens are too large.
    refused("v1", gone("tokenizer"), &["tokenizer", "61 tokens", "vocab_size", "49408"]);
    refused(
        "v1",
        set("tokenizer/tokenizer_config.json", "model_max_length", json!(12)),
        &["tokenizer", "11 tokens", "max_position_embeddings", "12"],
    );
    let aesthetics = set("model_index.json", "requires_aesthetics_score", json!(true));
    refused("xl", aesthetics, &["requires_aesthetics_score", "false", "true"]);
    refused(
        "ldm",
        set("vqvae/config.json", "norm_type", json!("spatial")),
        &["vqvae/config.json", "norm_type", "group"],
    );
    refused("ldm", set("vqvae/config.json", "vq_embed_dim", json!(5)), &["vq_embed_dim", "in_channels", "5"]);
    refused("ldm", gone("vqvae"), &["a folder vqvae", "LDMPipeline"]);
    let second = |m: &Path| {
        edit_weights(m, "class_embedding", |w| drop(w.insert("more.weight".into(), w["embedding.weight"].clone())))
    };
    refused("classes", second, &["class_embedding", "one table", "and more"]);
    let extra =
        |m: &Path| edit_weights(m, "unet", |w| drop(w.insert("extra.weight".into(), w["conv_in.bias"].clone())));
    refused("v1", extra, &["unet: weights", "also extra.weight"]);
    let lost = |m: &Path| edit_weights(m, "vae", |w| drop(w.remove("encoder.conv_out.bias")));
    refused("v1", lost, &["vae: encoder.conv_out.bias", "no such tensor"]);
}

#[test]
fn a_refiner_must_share_encoder_and_autoencoder() {
    let scratch = Scratch::new("latent-refiners");
    let join = |model: PathBuf, refiner: &Path| {
        let options =
            Options { model, refiner: Some(refiner.to_owned()), output: scratch.path("out.aqt"), ..Default::default() };
        pack(&options, &mut |_| ()).expect_err("two models that do not go together").to_string()
    };
    let message = join(model("v1"), &model("refiner"));
    assert!(message.contains("model with a refiner") && message.contains("StableDiffusionPipeline"), "{message}");
    let message = join(model("xl"), &model("xl"));
    assert!(message.contains("refiner: expected") && message.contains("StableDiffusionXLPipeline"), "{message}");
    let other = scratch.path("refiner");
    copy_folder(&model("refiner"), &other);
    edit_weights(&other, "vae", |w| w.get_mut("decoder.conv_out.bias").unwrap().values[1] += 1.0);
    let message = join(model("xl"), &other);
    assert!(message.contains("refiner: vae") && message.contains("the model's own"), "{message}");
    edit_json(&other.join("vae/config.json"), |c| drop(c.insert("scaling_factor".into(), json!(0.2))));
    edit_weights(&other, "vae", |w| w.get_mut("decoder.conv_out.bias").unwrap().values[1] -= 1.0);
    let message = join(model("xl"), &other);
    assert!(message.contains("scaling_factor") && message.contains("0.13025"), "{message}");
}

/// Each part of a model follows its own configuration.
#[test]
fn parts_are_quantized_apart() {
    let scratch = Scratch::new("latent-parts");
    let methods = |options: Options| {
        let output = scratch.path("out.aqt");
        let report = pack(&Options { model: model("xl"), output, ..options }, &mut |_| ()).unwrap();
        let of = |component: &str| {
            let mut list: Vec<_> = report
                .layers
                .iter()
                .filter(|l| l.meta.name.split_once('/').unwrap().0 == component && l.meta.note.is_none())
                .map(|l| format!("{}/{}", l.meta.method, l.meta.activation_bits))
                .collect();
            list.sort();
            list.dedup();
            list.join(" ")
        };
        ["unet", "vae", "text_encoder", "text_encoder_2"].map(of)
    };
    let spec = |text: &str| Some(text.to_owned());
    assert_eq!(methods(Options::default()), ["f16/32"; 4]);
    let denoiser = Options { q_config: spec("w4a8"), ..Default::default() };
    assert_eq!(methods(denoiser), ["mse-4/8", "f16/32", "f16/32", "f16/32"]);
    assert_eq!(methods(Options { q_config: spec("f32"), ..Default::default() }), ["f32/32"; 4]);
    // The encoders' own layers have few inputs, so the first one's are named.
    let file = scratch.path("text.json");
    std::fs::write(&file, json!({"*": "w8a16"}).to_string()).unwrap();
    let text = Options { text_q_config: spec(file.to_str().unwrap()), vae_q_config: spec("f32"), ..Default::default() };
    assert_eq!(methods(text), ["f16/32", "f32/32", "mse-8/32", "mse-8/32"]);

    let options = Options {
        model: model("ldm"),
        text_q_config: spec("w8a8"),
        output: scratch.path("out.aqt"),
        ..Default::default()
    };
    let message = pack(&options, &mut |_| ()).unwrap_err().to_string();
    assert!(message.contains("--text-q-config") && message.contains("no text encoder"), "{message}");
}

/// All that the programs use comes back, in the checkpoint's order of axes and rows.
#[test]
fn weights_come_back_exactly() {
    let scratch = Scratch::new("latent-exact");
    let (packed, out) = (scratch.path("m.aqt"), scratch.path("w.safetensors"));
    for (name, component, unused) in [
        ("v1", "unet", &[][..]),
        ("v1", "vae", &[]),
        ("v1", "text_encoder", &["text_model.embeddings.position_ids"]),
        ("xl", "text_encoder", &["encoder.layers.2.", "final_layer_norm."]),
        ("xl", "text_encoder_2", &[]),
        ("church", "unet", &[]),
        ("ldm", "vqvae", &["encoder.", "quant_conv."]),
        ("classes", "class_embedding", &[]),
    ] {
        let mut expected = load_component(&model(name).join(component));
        expected.retain(|key, _| !unused.iter().any(|prefix| key.starts_with(prefix)));
        pack(
            &Options { model: model(name), q_config: Some("f32".into()), output: packed.clone(), ..Default::default() },
            &mut |_| (),
        )
        .unwrap();
        let count = unpack(&packed, &out, Some(component), Float::F32).unwrap();
        assert_eq!(count, expected.len(), "{name} {component}");
        assert_eq!(load(&out), expected, "{name} {component}");
    }
    // The denoiser's, unless told otherwise.
    pack_f16(&model("v1"), &packed).unwrap();
    let count = unpack(&packed, &out, None, Float::F16).unwrap();
    assert_eq!(count, load_component(&model("v1").join("unet")).len());
}

/// Attention in 8-bit codes is for the denoiser's own keys between integer layers, is told in META, and is not the default.
#[test]
fn int8_attention_is_asked_for() {
    let scratch = Scratch::new("latent-int8-attention");
    let packed = |q_config: &str, int8_attention| -> packer::Result<_> {
        let output = scratch.path("out.aqt");
        // These layers have few inputs, so they are named.
        let file = scratch.path("q.json");
        std::fs::write(&file, json!({"*": q_config}).to_string()).unwrap();
        let (model, q_config) = (model("v1"), Some(file.to_str().unwrap().to_owned()));
        pack(&Options { model, q_config, int8_attention, output: output.clone(), ..Default::default() }, &mut |_| ())?;
        let packed = Packed::new(aquatint::raw::mmap::open(&output)?)?;
        let attends: Vec<_> = packed.programs().iter().map(|p| (p.role, attends(p))).collect();
        Ok((packed.meta().quantization.attention.clone(), attends))
    };
    let attends = |int8| {
        let (attention, programs) = packed("w8a8", int8).unwrap();
        assert_eq!(attention.as_deref(), int8.then_some("int8"));
        programs
    };
    let mut want = attends(false);
    assert!(want.iter().all(|(_, all)| all.iter().all(|a| !a.int8)), "{want:?}");
    let (role, denoiser) = &mut want[0];
    assert_eq!(*role, Role::Denoiser);
    denoiser.iter_mut().for_each(|a| a.int8 = !a.per_condition);
    assert!(denoiser.iter().any(|a| a.int8) && denoiser.iter().any(|a| !a.int8), "{denoiser:?}");
    assert_eq!(attends(true), want);
    let message = packed("w8a16", true).unwrap_err().to_string();
    assert!(message.contains("--int8-attention") && message.contains("integer activations"), "{message}");
}

fn attends(program: &Program) -> Vec<Attend> {
    let attend = |op: &Op| if let Op::Attention(Attention { attend, .. }) = op { Some(*attend) } else { None };
    program.nodes.iter().filter_map(|node| attend(&node.op)).collect()
}
