//! Everything that is wrong with an input is told in one line that names it, and leaves no file behind.

use crate::common::{Scratch, copy_folder, edit_json, edit_weights, fixture, model, pack_as};
use serde_json::json;
use std::fs;
use std::path::Path;
use std::process::Command;

const QUERY: &str = "transformer_blocks.1.attn1.to_q.weight";

/// Packs the model that `break_it` makes of `d2`; the message must contain all of `words`.
fn refused(test: &str, config: Option<&str>, break_it: impl FnOnce(&Path), words: &[&str]) {
    let scratch = Scratch::new(test);
    let copy = scratch.copy_of("d2");
    break_it(&copy);
    let out = scratch.path("out.aqt");
    fs::write(&out, "an older file").unwrap();
    let message = pack_as(&copy, config, &out).expect_err(test).to_string();
    for word in words {
        assert!(message.contains(word), "{test}: {word:?} is not in: {message}");
    }
    assert!(!message.contains('\n'), "{test}: {message}");
    assert_eq!(fs::read_to_string(&out).unwrap(), "an older file", "{test}");
    assert_eq!(scratch.entries(), ["d2", "out.aqt"], "{test}: something was left behind");
}

/// Pixels that no picture has are refused before anything is read of the weights.
#[test]
fn pixels_are_grey_rgb_or_rgba() {
    let scratch = Scratch::new("channels");
    let copy = scratch.path("grey");
    copy_folder(&fixture("unet/grey"), &copy);
    for channels in [2, 5] {
        edit_json(&copy.join("unet/config.json"), |config| {
            config.insert("in_channels".into(), json!(channels));
            config.insert("out_channels".into(), json!(channels));
        });
        let message = pack_as(&copy, None, &scratch.path("out.aqt")).expect_err("refused").to_string();
        let expected = "unet/config.json: in_channels: expected 1, 3 or 4 for pixels that are grey, RGB or RGBA";
        assert_eq!(message, format!("{expected}, got {channels}"));
    }
    assert_eq!(scratch.entries(), ["grey"]);
}

#[test]
fn weights_must_be_those_of_the_model() {
    let weights = |edit: fn(&mut std::collections::BTreeMap<String, crate::common::Dense>)| {
        move |m: &Path| edit_weights(m, "transformer", edit)
    };
    refused(
        "missing",
        None,
        weights(|w| drop(w.remove(QUERY))),
        &["transformer", QUERY, "shape [32, 32]", "no such tensor"],
    );
    refused(
        "extra",
        None,
        weights(|w| drop(w.insert("surplus.weight".into(), w[QUERY].clone()))),
        &["transformer", "also surplus.weight"],
    );
    refused(
        "misshaped",
        None,
        weights(|w| w.get_mut(QUERY).unwrap().shape = vec![64, 16]),
        &["transformer", QUERY, "shape [32, 32]", "shape [64, 16]"],
    );
    refused(
        "nan",
        None,
        weights(|w| w.get_mut(QUERY).unwrap().values[77] = f32::NAN),
        &["transformer", QUERY, "finite", "NaN at index 77"],
    );
    refused(
        "infinite",
        Some("w4a8"),
        weights(|w| w.get_mut("proj_out_2.bias").unwrap().values[3] = f32::NEG_INFINITY),
        &["proj_out_2.bias", "-inf at index 3"],
    );
    refused(
        "too_large",
        None,
        weights(|w| w.get_mut(QUERY).unwrap().values[5] = 1e6),
        &[QUERY, "65504", "f32", "1000000 at index 5"],
    );
}

#[test]
fn configurations_must_be_supported_ones() {
    let set = |file: &'static str, field: &'static str, value: serde_json::Value| {
        move |m: &Path| edit_json(&m.join(file), |c| drop(c.insert(field.into(), value)))
    };
    let (transformer, vae) = ("transformer/config.json", "vae/config.json");
    refused(
        "pipeline",
        None,
        set("model_index.json", "_class_name", json!("KandinskyPipeline")),
        &["_class_name", "DiTPipeline", "StableDiffusionXLPipeline", "\"KandinskyPipeline\""],
    );
    refused(
        "class",
        None,
        set(transformer, "_class_name", json!("PixArtTransformer2DModel")),
        &["transformer/config.json", "DiTTransformer2DModel", "PixArtTransformer2DModel"],
    );
    refused(
        "activation",
        None,
        set(transformer, "activation_fn", json!("geglu")),
        &["activation_fn", "gelu-approximate", "geglu"],
    );
    refused(
        "norm",
        None,
        set(transformer, "norm_type", json!("ada_norm_single")),
        &["norm_type", "ada_norm_zero", "ada_norm_single"],
    );
    refused(
        "affine",
        None,
        set(transformer, "norm_elementwise_affine", json!(true)),
        &["norm_elementwise_affine", "false", "true"],
    );
    refused("layers", None, set(transformer, "num_layers", json!("two")), &["num_layers", "whole number", "two"]);
    refused(
        "sample",
        None,
        set(transformer, "sample_size", json!(9)),
        &["sample_size", "multiple of patch_size 2", "9"],
    );
    refused(
        "vae_class",
        None,
        set(vae, "_class_name", json!("AutoencoderTiny")),
        &["vae/config.json", "AutoencoderKL", "AutoencoderTiny"],
    );
    refused("vae_act", None, set(vae, "act_fn", json!("relu")), &["act_fn", "silu", "relu"]);
    refused(
        "vae_blocks",
        None,
        set(vae, "up_block_types", json!(["UpDecoderBlock2D", "AttnUpDecoderBlock2D"])),
        &["up_block_types", "UpDecoderBlock2D", "AttnUpDecoderBlock2D"],
    );
    refused("vae_mean", None, set(vae, "latents_mean", json!([0.0])), &["latents_mean", "null"]);
    refused(
        "scheduler",
        None,
        set("scheduler/scheduler_config.json", "_class_name", json!("")),
        &["got none", "DDIMScheduler"],
    );
    refused("labels", None, set("model_index.json", "id2label", json!({"cat": 3})), &["id2label"]);
}

#[test]
fn quantization_must_fit_the_model() {
    let unchanged = |_: &Path| ();
    refused("bits", Some("w7a8"), unchanged, &["w7a8", "weight bits", "2, 3, 4, 5, 6 or 8", "7"]);
    refused("method", Some("w4a8:median"), unchanged, &["median", "kmeans"]);
    refused("no_file", Some("absent.json"), unchanged, &["absent.json", "no file of that name"]);
    let config = |text: &str| {
        let scratch = Scratch::new("configs");
        let file = scratch.path("q.json");
        fs::write(&file, text).unwrap();
        (file.to_str().unwrap().to_owned(), scratch)
    };
    let (file, _keep) = config(r#"{"default": "w4a8", "layers": {"transformer_blocks.0.attn1.to_w": "w8a8"}}"#);
    refused("unknown", Some(&file), unchanged, &["to_w", "matches no layer", "nearest", "attn1.to_q"]);
    let (file, _keep) = config(r#"{"proj_out_1": "kmeans-4"}"#);
    refused("unmatched", Some(&file), unchanged, &["pos_embed.proj", "more", "default"]);
}

#[test]
fn directories_must_be_whole() {
    refused("index", None, |m| fs::remove_file(m.join("model_index.json")).unwrap(), &["model_index.json"]);
    refused(
        "broken_index",
        None,
        |m| fs::write(m.join("model_index.json"), "{").unwrap(),
        &["model_index.json", "JSON"],
    );
    refused("folder", None, |m| fs::remove_dir_all(m.join("vae")).unwrap(), &["folder vae"]);
    let file = "vae/diffusion_pytorch_model.safetensors";
    refused(
        "weights",
        None,
        |m| fs::remove_file(m.join(file)).unwrap(),
        &["vae", "diffusion_pytorch_model.safetensors"],
    );
    refused(
        "bin",
        None,
        |m| {
            fs::remove_file(m.join(file)).unwrap();
            fs::write(m.join("vae/diffusion_pytorch_model.bin"), "no pickle").unwrap();
        },
        &["vae/diffusion_pytorch_model.bin", "torch.save"],
    );
    for len in [0, 5, 100, 5000] {
        refused(
            "cut",
            None,
            |m| {
                let bytes = fs::read(m.join(file)).unwrap();
                fs::write(m.join(file), &bytes[..len]).unwrap();
            },
            &["vae/diffusion_pytorch_model.safetensors"],
        );
    }
}

#[test]
fn shards_must_agree_with_their_index() {
    let scratch = Scratch::new("shards");
    let copy = scratch.copy_of("d1p1");
    let out = scratch.path("out.aqt");
    let index = copy.join("transformer/diffusion_pytorch_model.safetensors.index.json");
    let original = fs::read_to_string(&index).unwrap();
    let message = |from: &str, to: &str| {
        assert!(original.contains(from));
        fs::write(&index, original.replacen(from, to, 1)).unwrap();
        pack_as(&copy, None, &out).expect_err(from).to_string()
    };
    let shard = |n| format!("diffusion_pytorch_model-0000{n}-of-00004.safetensors");
    let key = "transformer_blocks.0.norm1.linear.bias";
    let entry = |n| format!("\"{key}\": \"{}\"", shard(n));
    assert!(message(&entry(2), &entry(1)).contains(&format!("{key} in {}", shard(1))));
    assert!(message(&format!("\"{key}\""), "\"other\"").contains(&format!("none for {key}")));
    assert!(message(&entry(2), &format!("{}, \"other\": \"{}\"", entry(2), shard(2))).contains("other in"));
    assert!(message(&entry(2), &format!("\"{key}\": \"../x.safetensors\"")).contains("without folders"));
    assert!(message(&entry(2), &format!("\"{key}\": \"x.safetensors\"")).contains("x.safetensors"));
    assert_eq!(scratch.entries(), ["d1p1"]);
}

#[test]
fn the_command_line_exits_with_2_and_one_line() {
    let scratch = Scratch::new("cli");
    let run = |args: &[&str]| {
        let done = Command::new(env!("CARGO_BIN_EXE_packer")).args(args).current_dir(&scratch.0).output().unwrap();
        (done.status.code(), String::from_utf8(done.stdout).unwrap(), String::from_utf8(done.stderr).unwrap())
    };
    let d2 = model("d2");
    let d2 = d2.to_str().unwrap();
    fs::create_dir(scratch.path("folder")).unwrap();
    for (args, word) in [
        (vec!["no-such-model", "-o", "x.aqt"], "no such file or directory"),
        (vec![d2, "-o", "absent/x.aqt"], "absent/x.aqt"),
        (vec![d2, "-o", "folder"], "folder"),
        (vec![d2, "--q_config", "w9a9", "-o", "x.aqt"], "w9a9"),
        (vec![d2, "--vae-q-config", "w9a9", "-o", "x.aqt"], "vae"),
        (vec!["verify", "no-such.aqt"], "no-such.aqt"),
        (vec!["inspect", d2], "cannot"),
        (vec!["unpack", "no-such.aqt", "-o", "w.safetensors"], "no-such.aqt"),
    ] {
        let (code, stdout, stderr) = run(&args);
        assert_eq!(code, Some(2), "{args:?}: {stderr}");
        assert!(stderr.starts_with("error: ") && stderr.contains(word), "{args:?}: {stderr}");
        assert_eq!(stderr.trim_end().lines().count(), 1, "{args:?}: {stderr}");
        assert!(stdout.is_empty(), "{stdout}");
    }
    assert_eq!(run(&[]).0, Some(2));
    assert_eq!(run(&[d2]).0, Some(2), "no output named");
    assert_eq!(scratch.entries(), ["folder"]);

    let config = fixture("qua2sedimo.pkl");
    let (code, stdout, stderr) = run(&[d2, "--q_config", config.to_str().unwrap(), "-o", "x.aqt"]);
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    assert!(stdout.contains("transformer/proj_out_2") && stdout.contains("average bits 4.75"), "{stdout}");
    let (code, stdout, _) = run(&[d2, "--json", "-o", "x.aqt"]);
    let report: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((code, report["average_bits"].as_f64()), (Some(0), Some(16.0)));
    assert_eq!(run(&[d2, "-q", "-o", "x.aqt"]), (Some(0), String::new(), String::new()));
    assert!(run(&["verify", "x.aqt"]).1.contains("sound"));
    assert!(run(&["inspect", "x.aqt"]).1.contains("vae/decoder.conv_out"));
    let (_, stdout, _) = run(&["inspect", "x.aqt", "--json"]);
    let shown: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(shown["programs"][0]["role"], "denoiser");
    let (code, _, stderr) = run(&["unpack", "x.aqt", "--component", "text_encoder", "-o", "w.safetensors"]);
    assert_eq!(code, Some(2));
    assert!(stderr.contains("transformer or vae"), "{stderr}");
    assert_eq!(scratch.entries(), ["folder", "x.aqt"]);

    // A damaged file is told from a sound one.
    let mut bytes = fs::read(scratch.path("x.aqt")).unwrap();
    bytes[5000] ^= 1;
    fs::write(scratch.path("x.aqt"), bytes).unwrap();
    let (code, _, stderr) = run(&["verify", "x.aqt"]);
    assert_eq!(code, Some(2));
    assert!(stderr.contains("DATA"), "{stderr}");
}

#[test]
fn names_with_line_breaks_stay_on_one_line() {
    let scratch = Scratch::new("one-line");
    let run = |args: &[&str]| {
        let done = Command::new(env!("CARGO_BIN_EXE_packer")).args(args).current_dir(&scratch.0).output().unwrap();
        (done.status.code(), String::from_utf8(done.stdout).unwrap(), String::from_utf8(done.stderr).unwrap())
    };
    let evil = scratch.copy_of("d2");
    crate::common::edit_weights(&evil, "transformer", |weights| {
        let tensor = weights["proj_out_2.bias"].clone();
        weights.insert("evil\nname".into(), tensor);
    });
    let config = scratch.path("q.json");
    fs::write(&config, r#"{"default": "f16", "evil\nkey": "w4a8"}"#).unwrap();
    fs::write(scratch.path("evil\nfile.json"), r#"{"default": "f17"}"#).unwrap();
    let d2 = model("d2");
    let (d2, evil, config) = (d2.to_str().unwrap(), evil.to_str().unwrap(), config.to_str().unwrap());
    for (args, word) in [
        (vec![evil, "-o", "x.aqt"], r"evil\nname"),
        (vec![d2, "--q-config", config, "-o", "x.aqt"], r"evil\nkey"),
        (vec![d2, "--q-config", "evil\nfile.json", "-o", "x.aqt"], r"evil\nfile.json"),
        (vec!["no such\nmodel", "-o", "x.aqt"], r"no such\nmodel"),
        (vec![d2, "-o", "absent\nfolder/x.aqt"], r"absent\nfolder"),
        (vec!["verify", "no such\r\nfile"], r"no such\r\nfile"),
    ] {
        let (code, stdout, stderr) = run(&args);
        assert_eq!((code, stdout.as_str()), (Some(2), ""), "{args:?}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{args:?}: {stderr}");
        assert!(stderr.starts_with("error: ") && stderr.contains(word), "{args:?}: {stderr}");
    }

    // What goes well says so on one line, and in one row per layer, too.
    let key = scratch.path("glob.json");
    fs::write(&key, r#"{"default": "f16", "{proj_out_2,evil\nglob}": "w4a8"}"#).unwrap();
    let (code, stdout, stderr) = run(&[d2, "-v", "--q-config", key.to_str().unwrap(), "-o", "evil\nfile.aqt"]);
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    let row = stdout.lines().find(|line| line.starts_with("transformer/proj_out_2 ")).unwrap();
    assert!(row.ends_with(r"`{proj_out_2,evil\nglob}`"), "{row}");
    assert!(stdout.lines().last().unwrap().starts_with(r"evil\nfile.aqt: "), "{stdout}");
    let (_, stdout, _) = run(&["inspect", "evil\nfile.aqt"]);
    assert!(stdout.starts_with(r"evil\nfile.aqt  "), "{stdout}");
    let row = stdout.lines().find(|line| line.starts_with("transformer/proj_out_2 ")).unwrap();
    assert!(row.ends_with(r"`{proj_out_2,evil\nglob}`"), "{row}");
    assert!(stdout.contains("to file order"), "{stdout}");
}

#[test]
fn an_error_line_has_at_most_300_characters_and_both_ends() {
    let scratch = Scratch::new("long");
    let copy = scratch.copy_of("d2");
    let trained: Vec<f64> = (0..1000).map(|i| 1e-4 + 2e-5 * f64::from(i)).collect();
    edit_json(&copy.join("scheduler/scheduler_config.json"), |c| drop(c.insert("_class_name".into(), json!(trained))));
    let (sound, name) = (model("d2"), "n".repeat(200));
    for (args, ends) in [
        (vec![copy.to_str().unwrap(), "-o", "x.aqt"], ["scheduler _class_name: expected", "expected a string)"]),
        (vec![&name[..], "-o", "x.aqt"], ["model nnn", "got no such file or directory"]),
        (
            vec![sound.to_str().unwrap(), "--q-config", &format!("{name}{name}"), "-o", "x.aqt"],
            ["--q-config", "nnn..."],
        ),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_packer")).args(&args).current_dir(&scratch.0).output().unwrap();
        let line = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), line.lines().count()), (Some(2), 1), "{line}");
        assert!(line.trim_end().chars().count() <= 300, "{line}");
        assert!(line.starts_with("error: ") && ends.iter().all(|end| line.contains(end)), "{line}");
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_system_that_starts_no_threads_is_an_error() {
    let scratch = Scratch::new("threads");
    // Twenty thousand stacks do not fit the address space that is granted.
    let mut shell = Command::new("sh");
    shell.args(["-c", "ulimit -v 2000000; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_packer")]);
    shell.arg(model("d2")).args(["-o", "x.aqt"]).env("RAYON_NUM_THREADS", "20000").current_dir(&scratch.0);
    let output = shell.output().unwrap();
    let line = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), line.lines().count()), (Some(2), 1), "{line}");
    assert!(line.starts_with("error: threads: expected ") && line.contains("RAYON_NUM_THREADS"), "{line}");
    assert!(scratch.entries().is_empty());
}

#[test]
fn the_vector_of_a_text_is_that_of_the_end_its_tokenizer_writes() {
    let scratch = Scratch::new("end");
    let copy = scratch.path("xl");
    crate::common::copy_folder(&fixture("sd/xl"), &copy);
    let packed = |end: serde_json::Value| {
        edit_json(&copy.join("text_encoder_2/config.json"), |c| drop(c.insert("eos_token_id".into(), end)));
        pack_as(&copy, None, &scratch.path("m.aqt")).map(|_| ()).map_err(|e| e.to_string())
    };
    let message = packed(json!(7)).unwrap_err();
    let end = message.split("expected ").nth(1).and_then(|rest| rest.split(',').next()).unwrap();
    assert!(message.contains("text_encoder_2/config.json: eos_token_id") && message.ends_with("got 7"), "{message}");
    // The tokenizer's own, the 2 of old files, and none.
    for end in [json!(end.parse::<u32>().unwrap()), json!(2), json!(null)] {
        assert_eq!(packed(end), Ok(()));
    }
}

#[test]
fn an_encoder_must_mirror_the_decoder() {
    let scratch = Scratch::new("encoder");
    for (field, value) in
        [("down_block_types", json!(["DownEncoderBlock2D", "AttnDownEncoderBlock2D"])), ("in_channels", json!(4))]
    {
        let copy = scratch.path("v1");
        let _ = fs::remove_dir_all(&copy);
        crate::common::copy_folder(&fixture("sd/v1"), &copy);
        edit_json(&copy.join("vae/config.json"), |c| drop(c.insert(field.into(), value.clone())));
        let message = pack_as(&copy, None, &scratch.path("m.aqt")).unwrap_err().to_string();
        assert!(message.starts_with(&format!("vae/config.json: {field}: expected")), "{message}");
        assert!(message.ends_with(&value.to_string()), "{message}");
    }
}
