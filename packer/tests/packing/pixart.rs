//! What is wrong with a PixArt or its text encoder is told in one line that names it.

use crate::common::{Scratch, copy_folder, edit_json, edit_weights, fixture, pack_as};
use serde_json::json;
use std::fs;
use std::path::Path;

/// Packs what `break_it` makes of PixArt `name`; the message must contain all of `words`.
fn refused(name: &str, break_it: impl FnOnce(&Path), words: &[&str]) {
    let scratch = Scratch::new("pixart");
    let copy = scratch.path(name);
    copy_folder(&fixture("pixart").join(name), &copy);
    break_it(&copy);
    let done = pack_as(&copy, None, &scratch.path("out.aqt")).map(|_| ());
    let message = done.expect_err(words[0]).to_string();
    for word in words {
        assert!(message.contains(word), "{word:?} is not in: {message}");
    }
    assert_eq!(message.lines().count(), 1, "{message}");
    assert_eq!(scratch.entries(), [name], "something was left behind");
}

fn config(component: &'static str, field: &'static str, value: serde_json::Value) -> impl FnOnce(&Path) {
    move |model| {
        edit_json(&model.join(component).join("config.json"), |config| drop(config.insert(field.into(), value)))
    }
}

#[test]
fn configurations_that_are_not_supported_are_named() {
    for (component, field, value, words) in [
        ("transformer", "norm_type", json!("layer_norm"), r#"norm_type: expected "ada_norm_single", got "layer_norm""#),
        ("transformer", "attention_type", json!("gated"), "attention_type: expected \"default\""),
        (
            "transformer",
            "cross_attention_dim",
            json!(32),
            "cross_attention_dim: expected 24, heads times features, got 32",
        ),
        ("transformer", "caption_channels", json!(null), "caption_channels: expected a number, got none"),
        ("transformer", "interpolation_scale", json!(-1.0), "interpolation_scale: expected a positive number, got -1"),
        ("transformer", "sample_size", json!(9), "sample_size: expected a multiple of patch_size 2, got 9"),
        ("transformer", "num_layers", json!(2), "only the 57 tensors"),
        ("text_encoder", "d_model", json!(24), "d_model: expected 20, the transformer's caption_channels, got 24"),
        ("text_encoder", "feed_forward_proj", json!("relu"), r#"feed_forward_proj: expected "gated-gelu", got "relu""#),
        (
            "text_encoder",
            "relative_attention_num_buckets",
            json!(6),
            "relative_attention_num_buckets: expected a multiple of 4",
        ),
        ("text_encoder", "num_heads", json!(4), "SelfAttention"),
        (
            "text_encoder",
            "vocab_size",
            json!(20),
            "tokenizer: expected 20 tokens, the text_encoder's vocab_size, got 41",
        ),
        ("vae", "latent_channels", json!(3), "latent_channels: expected 4, the transformer's in_channels, got 3"),
    ] {
        refused("alpha", config(component, field, value), &[component, words]);
    }
}

/// Sizes are read if the weights say so, unless the configuration says it; what both say must be the same.
#[test]
fn sizes_are_what_configuration_and_weights_agree_on() {
    let scratch = Scratch::new("pixart-sizes");
    for (name, sizes) in [("alpha", 0), ("sizes", 3)] {
        let copy = scratch.path(name);
        copy_folder(&fixture("pixart").join(name), &copy);
        edit_json(&copy.join("transformer/config.json"), |config| drop(config.remove("use_additional_conditions")));
        let out = scratch.path("m.aqt");
        pack_as(&copy, None, &out).unwrap();
        let packed = aquatint::raw::format::Packed::open(&out).unwrap();
        assert_eq!(packed.meta().pipeline.text.as_ref().unwrap().denoiser.sizes.len(), sizes);
    }
    let says = |value| config("transformer", "use_additional_conditions", json!(value));
    refused("alpha", says(true), &["adaln_single.emb.resolution_embedder.linear_1.weight", "no such tensor"]);
    refused("sizes", says(false), &["also adaln_single.emb.aspect_ratio_embedder.linear_1.bias, and 7 more"]);
}

/// Old versions saved tables beside the weights, and had one class for all transformers.
#[test]
fn directories_of_old_versions_are_read() {
    let scratch = Scratch::new("pixart-old");
    let copy = scratch.path("alpha");
    copy_folder(&fixture("pixart/alpha"), &copy);
    edit_weights(&copy, "transformer", |tensors| {
        for (key, of) in
            [("pos_embed.pos_embed", "scale_shift_table"), ("caption_projection.y_embedding", "scale_shift_table")]
        {
            let tensor = tensors[of].clone();
            tensors.insert(key.into(), tensor);
        }
    });
    edit_json(&copy.join("transformer/config.json"), |config| {
        config.insert("_class_name".into(), json!("Transformer2DModel"));
    });
    pack_as(&copy, None, &scratch.path("m.aqt")).unwrap();
}

/// Text encoders come in several files, which an index names.
#[test]
fn files_of_encoders_must_be_those_of_their_index() {
    let shard = |n: usize| format!("model-0000{n}-of-00003.safetensors");
    let remove = |model: &Path| fs::remove_file(model.join("text_encoder").join(shard(2))).unwrap();
    refused("sigma", remove, &["text_encoder/model-00002-of-00003.safetensors"]);
    let swap = |model: &Path| {
        let at = |n| model.join("text_encoder").join(shard(n));
        fs::copy(at(1), at(2)).unwrap();
    };
    refused(
        "sigma",
        swap,
        &["model-00002-of-00003.safetensors: expected each tensor once, in one shard, got encoder.block.0"],
    );
    let index = |edit: fn(&mut serde_json::Map<String, serde_json::Value>)| {
        move |model: &Path| {
            edit_json(&model.join("text_encoder/model.safetensors.index.json"), |index| {
                edit(index["weight_map"].as_object_mut().unwrap());
            });
        }
    };
    let elsewhere = index(|map| drop(map.insert("shared.weight".into(), json!("model-00002-of-00003.safetensors"))));
    refused(
        "sigma",
        elsewhere,
        &["model.safetensors.index.json: expected shared.weight in model-00002-of-00003.safetensors"],
    );
    refused(
        "sigma",
        index(|map| drop(map.remove("shared.weight"))),
        &["expected an entry for every tensor, got none for shared.weight"],
    );
    let outside = index(|map| drop(map.insert("shared.weight".into(), json!("../model.safetensors"))));
    refused("sigma", outside, &["expected file names without folders"]);
}

/// A tokenizer of another family is refused by both names, in every kind of model that has one.
#[test]
fn tokenizers_must_be_of_the_encoders_family() {
    let clip = |model: &Path| {
        let folder = model.join("tokenizer");
        fs::remove_dir_all(&folder).unwrap();
        copy_folder(&fixture("sd/v1/tokenizer"), &folder);
    };
    let words = ["tokenizer: expected a tokenizer of T5's (SentencePiece) kind, got CLIP's"];
    for name in ["alpha", "sigma"] {
        refused(name, clip, &words);
    }
    let scratch = Scratch::new("families");
    let refused_of = |path: &str, other: &str, words: &str| {
        let copy = scratch.path("model");
        let _ = fs::remove_dir_all(&copy);
        copy_folder(&fixture(path), &copy);
        fs::remove_dir_all(copy.join("tokenizer")).unwrap();
        copy_folder(&fixture(other), &copy.join("tokenizer"));
        let message = pack_as(&copy, None, &scratch.path("out.aqt")).map(|_| ()).unwrap_err().to_string();
        assert!(message.contains(words) && message.lines().count() == 1, "{message}");
    };
    refused_of("latte", "sd/v1/tokenizer", words[0]);
    refused_of("sd/v1", "pixart/alpha/tokenizer", "tokenizer: expected a tokenizer of CLIP's");
}

/// A shard of another model, by its index or by what is in it.
#[test]
fn shards_of_another_model_are_refused() {
    let foreign = |model: &Path| {
        let from = fixture("sd/v1/text_encoder/model.safetensors");
        fs::copy(from, model.join("text_encoder/model-00002-of-00003.safetensors")).unwrap();
    };
    refused("sigma", foreign, &["text_encoder/", "model-00002-of-00003.safetensors"]);
    let transformer = |model: &Path| {
        let from = fixture("latte/transformer/diffusion_pytorch_model.safetensors");
        fs::copy(from, model.join("transformer/diffusion_pytorch_model.safetensors")).unwrap();
    };
    refused("alpha", transformer, &["transformer: transformer_blocks.2.scale_shift_table", "got no such tensor"]);
}
