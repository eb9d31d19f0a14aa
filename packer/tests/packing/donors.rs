//! Networks that a model takes from another, and which of several files of weights counts.

use crate::common::{Dense, Scratch, copy_folder, fixture, save};
use aquatint::raw::text::Family;
use packer::lower::lower;
use packer::source::diffusers::Model;
use packer::source::donors::Donors;
use packer::source::layout::open_file;
use packer::source::settings::Overrules;
use packer::source::{Checkpoint, tokenizer::TokenizerFile};
use safetensors::{Dtype, tensor::TensorView};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

fn open_with(root: &Path, donors: &Donors) -> aquatint::Result<Model> {
    Model::open_with(root, donors, &Overrules::default())
}

fn donors(autoencoder: Option<PathBuf>, text: &[PathBuf]) -> Donors {
    Donors { autoencoder, text: text.to_vec(), ..Donors::default() }
}

/// Every tensor of every network, and what is packed of them.
fn contents(mut model: Model) -> (BTreeMap<String, Vec<f32>>, Vec<String>) {
    let mut tensors = BTreeMap::new();
    for c in &model.components {
        let values = |key: &str| c.weights.read(key).unwrap_or_default();
        tensors.extend(c.weights.keys().map(|key| (format!("{} {} {key}", c.name, c.class), values(key))));
    }
    // The tiny encoders of single files know few tokens; true ones have CLIP's own.
    if model.tokenizers.is_empty() {
        let tokens = model.find("text_encoder").or(model.find("text_encoder_2"));
        let tokens = tokens.map_or(77, |c| c.config["max_position_embeddings"].as_u64().unwrap() as u32);
        let family = Family::Clip;
        let file =
            TokenizerFile { family, json: Vec::new(), begin: Some(59), end: 60, pad: 60, tokens, vocabulary: 61 };
        model.tokenizers = ["tokenizer", "tokenizer_2"].map(|name| (name.to_owned(), file.clone())).into();
    }
    let lowered = lower(&model).unwrap_or_else(|e| panic!("{e}"));
    let mut meta = lowered.pipeline;
    meta.name = String::new();
    let programs = lowered.programs.iter().map(|program| format!("{program:?}"));
    (tensors, programs.chain([format!("{meta:?}")]).collect())
}

#[track_caller]
fn refused(result: Result<Model, aquatint::Error>, words: &[&str]) {
    let message = result.map(|m| m.name).expect_err("refused").to_string();
    for word in words {
        assert!(message.contains(word), "{word:?} is not in: {message}");
    }
    assert!(message.len() < 300, "{message}");
}

#[test]
fn a_directory_takes_what_it_lacks_from_another() {
    let scratch = Scratch::new("donors");
    for (name, text) in [("v1", vec!["text_encoder"]), ("xl", vec!["text_encoder", "text_encoder_2"])] {
        let whole = fixture("sd").join(name);
        let expected = contents(Model::open(&whole).unwrap());
        let lacking = |folders: &[&str]| {
            let copy = scratch.path(name);
            let _ = fs::remove_dir_all(&copy);
            copy_folder(&whole, &copy);
            folders.iter().for_each(|folder| fs::remove_dir_all(copy.join(folder)).unwrap());
            copy
        };
        let copy = lacking(&["vae"]);
        refused(Model::open(&copy), &["a folder vae", "or another model's by --vae MODEL", "got none"]);
        for donor in ["", "vae", "vae/diffusion_pytorch_model.safetensors"].map(|d| whole.join(d)) {
            let model = open_with(&copy, &donors(Some(donor.clone()), &[])).unwrap_or_else(|e| panic!("{e}"));
            let files: Vec<_> = model.sources.iter().map(|s| s.file.clone()).collect();
            assert!(files.contains(&"vae/config.json".into()), "{files:?}");
            assert!(files.contains(&"vae/diffusion_pytorch_model.safetensors".into()), "{files:?}");
            assert!(contents(model) == expected, "{donor:?}");
        }
        let copy = lacking(&text);
        refused(Model::open(&copy), &[text[text.len() - 1], "--text-encoder MODEL"]);
        for donors in [
            donors(None, std::slice::from_ref(&whole)),
            donors(None, &text.iter().map(|folder| whole.join(folder)).collect::<Vec<_>>()),
            donors(
                Some(whole.clone()),
                &text.iter().map(|f| whole.join(f).join("model.safetensors")).collect::<Vec<_>>(),
            ),
        ] {
            assert!(contents(open_with(&copy, &donors).unwrap()) == expected, "{donors:?}");
        }
    }
}

#[test]
fn a_donor_s_network_counts_before_the_model_s_own() {
    let scratch = Scratch::new("donors");
    let other = scratch.path("other");
    copy_folder(&fixture("sd/v1"), &other);
    crate::common::edit_weights(&other, "vae", |w| w.get_mut("decoder.conv_out.bias").unwrap().values.fill(0.25));
    let model = open_with(&fixture("sd/v1"), &donors(Some(other), &[])).unwrap();
    assert!(model.component("vae").weights.read("decoder.conv_out.bias").unwrap().iter().all(|&v| v == 0.25));
    assert_eq!(model.components.iter().filter(|c| c.name == "vae").count(), 1);
}

/// The tensors of a tiny single file.
fn layout(name: &str) -> BTreeMap<String, Dense> {
    let file = open_file(&fixture(&format!("layouts/{name}.ckpt")), &mut Vec::new()).unwrap();
    let dense = |key: &str| Dense { shape: file.shape(key).unwrap().to_vec(), values: file.read(key).unwrap() };
    let floats: Vec<_> = file.keys().filter(|key| file.read(key).is_ok()).collect();
    floats.into_iter().map(|key| (key.to_owned(), dense(key))).collect()
}

/// Writes the tensors that `name` keeps a name for.
fn write(path: &Path, tensors: &BTreeMap<String, Dense>, name: impl Fn(&str) -> Option<String>) -> PathBuf {
    save(path, &tensors.iter().filter_map(|(key, tensor)| Some((name(key)?, tensor.clone()))).collect());
    path.to_owned()
}

#[test]
fn a_single_file_takes_what_it_lacks_from_another() {
    let scratch = Scratch::new("donors");
    for name in ["sd", "sdxl", "refiner"] {
        let all = layout(name);
        let file = |part: &str| scratch.path(&format!("{name}-{part}.safetensors"));
        let text = |key: &str| key.starts_with("cond_stage_model.") || key.starts_with("conditioner.");
        let keep = |keep: &dyn Fn(&str) -> bool, key: &str| keep(key).then(|| key.to_owned());
        let whole = write(&file("whole"), &all, |key| Some(key.to_owned()));
        let expected = contents(Model::open(&whole).unwrap());

        let no_vae = write(&file("novae"), &all, |key| keep(&|key| !key.starts_with("first_stage_model."), key));
        refused(Model::open(&no_vae), &["novae.safetensors", "an autoencoder in the file", "--vae MODEL", "got none"]);
        let bare = write(&file("vae"), &all, |key| key.strip_prefix("first_stage_model.").map(str::to_owned));
        for donor in [&whole, &bare] {
            let model = open_with(&no_vae, &donors(Some(donor.clone()), &[])).unwrap();
            assert!(contents(model) == expected, "{name} {donor:?}");
        }
        refused(open_with(&no_vae, &donors(Some(no_vae.clone()), &[])), &["--vae", "a model with a vae", "none"]);

        let no_text = write(&file("notext"), &all, |key| keep(&|key| !text(key), key));
        refused(Model::open(&no_text), &["notext.safetensors", "a text encoder in the file", "--text-encoder MODEL"]);
        if name == "sd" {
            let prefix = "cond_stage_model.transformer.";
            let bare = write(&file("clip"), &all, |key| key.strip_prefix(prefix).map(str::to_owned));
            for donor in [&whole, &bare] {
                let model = open_with(&no_text, &donors(None, std::slice::from_ref(donor))).unwrap();
                assert!(contents(model) == expected, "{donor:?}");
            }
            // The denoiser alone, with and without the prefix of its names.
            let denoiser = |bare: bool| {
                write(&file("unet"), &all, |key| {
                    let inner = key.strip_prefix("model.diffusion_model.")?;
                    Some(if bare { inner } else { key }.to_owned())
                })
            };
            for bare in [false, true] {
                let model =
                    open_with(&denoiser(bare), &donors(Some(whole.clone()), std::slice::from_ref(&whole))).unwrap();
                assert!(contents(model) == expected, "{bare}");
            }
            let both = donors(None, &[whole.clone(), whole.clone()]);
            refused(open_with(&whole, &both), &["--text-encoder", "each network once"]);
        }
    }
    // The factor that training measured goes with the autoencoder.
    let church = fixture("layouts/church.ckpt");
    let model = open_with(&church, &donors(Some(church.clone()), &[])).unwrap();
    assert!(contents(model) == contents(Model::open(&church).unwrap()));
    let pixels = fixture("layouts/ddim.ckpt");
    refused(open_with(&pixels, &donors(Some(pixels.clone()), &[])), &["--vae", "a DDIMPipeline has no vae"]);
    let absent = donors(Some(scratch.path("absent")), &[]);
    refused(open_with(&fixture("sd/v1"), &absent), &["absent", "no such file or directory"]);
}

#[test]
fn variants_are_taken_where_they_are_the_only_ones() {
    let scratch = Scratch::new("variants");
    let open = |names: &[&str]| {
        let folder = scratch.path("vae");
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("config.json"), "{}").unwrap();
        for (i, name) in names.iter().enumerate() {
            let tensor = Dense { shape: vec![1], values: vec![i as f32] };
            save(&folder.join(name), &BTreeMap::from([("a".into(), tensor)]));
        }
        let opened = Checkpoint::open(&scratch.0, "vae", &mut Vec::new());
        opened.and_then(|checkpoint| checkpoint.read("a")).map(|values| values[0]).map_err(|e| e.to_string())
    };
    for name in [
        "diffusion_pytorch_model.bf16.safetensors",
        "diffusion_pytorch_model.ema.safetensors",
        "diffusion_pytorch_model.non_ema.safetensors",
        "diffusion_pytorch_model_bf16.safetensors",
        "diffusion_pytorch_model-ema.bin",
        "model.fp8_e4m3fn.safetensors",
        "pytorch_model.bf16.bin",
    ] {
        assert_eq!(open(&[name]), Ok(0.0), "{name}");
        assert_eq!(open(&[name, "diffusion_pytorch_model.safetensors"]), Ok(1.0), "{name}");
    }
    let [a, b] = ["diffusion_pytorch_model.bf16.safetensors", "diffusion_pytorch_model.ema.safetensors"];
    assert_eq!((open(&[a, b]), open(&[b, a])), (Ok(0.0), Ok(1.0)));
    let two = open(&["model.a.safetensors", "model.b.safetensors"]).unwrap_err();
    assert!(two.contains("of one, got model.a.safetensors, model.b.safetensors"), "{two}");
    let none = open(&["flax_model.msgpack", "model-00001-of-00002.safetensors"]).unwrap_err();
    assert!(none.contains("got only flax_model.msgpack, model-00001-of-00002.safetensors"), "{none}");
    assert!(open(&[]).unwrap_err().ends_with("got none of them"));
}

#[test]
fn a_refiner_in_half_precision_is_of_the_same_model() {
    let scratch = Scratch::new("refiner");
    let refiner = scratch.path("refiner");
    copy_folder(&fixture("sd/xl"), &refiner);
    crate::common::edit_json(&refiner.join("model_index.json"), |index| {
        index.insert("_class_name".into(), "StableDiffusionXLImg2ImgPipeline".into());
    });
    let file = refiner.join("vae/diffusion_pytorch_model.safetensors");
    let tensors = crate::common::load(&file);
    let both = || Model::open(&fixture("sd/xl")).unwrap().with_refiner(Model::open(&refiner).unwrap());
    let write = |dtype, round: &dyn Fn(f32) -> u16| {
        let bytes = |t: &Dense| t.values.iter().flat_map(|&v| round(v).to_le_bytes()).collect::<Vec<u8>>();
        let owned: Vec<_> = tensors.iter().map(|(key, t)| (key, t.shape.clone(), bytes(t))).collect();
        let views = owned.iter().map(|(key, shape, b)| (key, TensorView::new(dtype, shape.clone(), b).unwrap()));
        fs::write(&file, safetensors::serialize(views, None).unwrap()).unwrap();
    };
    write(Dtype::F16, &|v| half::f16::from_f32(v).to_bits());
    assert!(both().is_ok());
    write(Dtype::BF16, &|v| half::bf16::from_f32(v).to_bits());
    assert!(both().is_ok());
    write(Dtype::F16, &|v| half::f16::from_f32(1.01 * v).to_bits());
    refused(both(), &["refiner: vae", "the model's own vae", "another"]);
}
