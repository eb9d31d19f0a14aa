//! Models in one file: names, shapes and values against diffusers' converters, configurations against its classes, and what
//! is said of files that hold something else. The script beside `tests/fixtures/layouts` made what is compared with.

use crate::common::{Scratch, fixture, pack_as};
use aquatint::raw::format::Packed;
use aquatint::raw::program::Role;
use aquatint::raw::text::Family;
use packer::lower::lower;
use packer::source::Checkpoint;
use packer::source::diffusers::{Model, Object};
use packer::source::donors::Donors;
use packer::source::layout::{Elsewhere, Entry, LEARNED_NULL, Published, Tensors, known, recognise, recognise_without};
use packer::source::settings::Overrules;
use packer::source::tokenizer::TokenizerFile;
use packer::synth::{MODELS, SynthModel};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use xxhash_rust::xxh3::xxh3_64;

const FILES: [&str; 7] = ["ddim", "bedroom", "church", "imagenet", "sd", "sdxl", "refiner"];

fn expected() -> Value {
    json_file("layouts/expected.json")
}

/// The same of transformers.
fn expected_transformers() -> Value {
    json_file("transformers/expected.json")
}

/// The same of Hunyuan-DiT.
fn expected_hunyuan() -> Value {
    json_file("transformers/hunyuan.json")
}

fn json_file(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(fixture(name)).unwrap()).unwrap()
}

fn open(name: &str) -> Model {
    Model::open(&fixture(&format!("layouts/{name}.ckpt"))).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// As Python prints a tuple.
fn tuple(shape: &[usize]) -> String {
    match shape {
        [n] => format!("({n},)"),
        _ => format!("({})", shape.iter().map(|n| n.to_string()).collect::<Vec<_>>().join(", ")),
    }
}

/// Number and hash of lines, as the script counts them.
fn digest(mut lines: Vec<String>) -> Value {
    lines.sort();
    json!([lines.len(), format!("{:016x}", xxh3_64(lines.join("\n").as_bytes()))])
}

fn shapes<'a>(list: impl Iterator<Item = (&'a str, &'a [usize])>) -> Value {
    digest(list.map(|(name, shape)| format!("{name}\t{}", tuple(shape))).collect())
}

/// What every tensor of `weights` is, values included.
fn values(weights: &Checkpoint) -> Value {
    let line = |key: &str| {
        let bytes: Vec<u8> = weights.read(key).unwrap().iter().flat_map(|v| v.to_le_bytes()).collect();
        format!("{key}\t{}\t{:016x}", tuple(weights.shape(key).unwrap()), xxh3_64(&bytes))
    };
    digest(weights.keys().map(line).collect())
}

#[test]
fn tiny_files_hold_what_diffusers_converts_them_to() {
    let expected = expected();
    let (expected, defaults) = (&expected["files"], &expected["defaults"]);
    for name in FILES {
        let model = open(name);
        let networks = expected[name].as_object().unwrap();
        assert_eq!(model.components.len(), networks.len(), "{name}");
        assert_eq!((&model.name[..], model.sources.len()), (name, 1));
        for component in &model.components {
            let network = &networks[&component.name];
            let what = format!("{name}/{}", component.name);
            assert_eq!(network["class"], component.class, "{what}");
            assert_eq!(network["values"], values(&component.weights), "{what}");
            same_config(&what, &component.config, network, &defaults[&component.class]);
        }
    }
}

/// A transformer's file as its training leaves it: the averages are read, under diffusers' names, and no autoencoder is there.
#[test]
fn transformers_hold_what_diffusers_has_of_them() {
    let path = fixture("transformers/dit.pt");
    let donors = Donors { autoencoder: Some(fixture("dit/d2/vae")), ..Donors::default() };
    let model = Model::open_with(&path, &donors, &Overrules::default()).unwrap();
    let transformer = model.component("transformer");
    assert_eq!(values(&transformer.weights), expected_transformers()["files"]["dit"]);
    let config = &transformer.config;
    let numbers = ["num_attention_heads", "attention_head_dim", "num_layers", "sample_size", "num_embeds_ada_norm"];
    assert_eq!(numbers.map(|field| config[field].as_u64().unwrap()), [2, 72, 2, 8, 6]);
    let pipeline = lower(&model).unwrap().pipeline;
    assert_eq!((pipeline.steps, pipeline.guidance_scale, pipeline.guided_channels), (250, 4.0, Some(3)));
    assert_eq!(pipeline.sampler, pipeline.sampler.named("iddpm").unwrap());

    let message = Model::open(&path).err().unwrap().to_string();
    assert!(message.ends_with("an autoencoder in the file, or another model's by --vae MODEL, got none"), "{message}");
}

/// Version 1.1 in its authors' layout, where norms and halves of a modulation have each other's names, and 1.2 as diffusers
/// saves it.
#[test]
fn hunyuan_dit_holds_what_diffusers_has_of_it() {
    let expected = &expected_hunyuan()["files"];
    let path = fixture("transformers/hunyuan.pt");
    let donors = Donors { autoencoder: Some(fixture("transformers/hunyuan/vae")), ..Donors::default() };
    let model = Model::open_with(&path, &donors, &Overrules::default()).unwrap();
    let saved = Model::open(&fixture("transformers/hunyuan")).unwrap();
    assert_eq!(values(&model.component("transformer").weights), expected["v11"]);
    assert_eq!(values(&saved.component("transformer").weights), expected["v12"]);
    // What the shapes tell is what diffusers says, but for what differs between the two models.
    let [read, said] = [&model, &saved].map(|model| model.component("transformer").config.clone());
    for (field, value) in said.iter().filter(|(field, _)| !field.starts_with("_diffusers")) {
        match field.as_str() {
            "attention_head_dim" => assert_eq!((&read[field], value), (&json!(12), &json!(8))),
            "hidden_size" => assert_eq!((&read[field], value), (&json!(24), &json!(16))),
            "num_layers" => assert_eq!((&read[field], value), (&json!(4), &json!(6))),
            "use_style_cond_and_image_meta_size" => assert_eq!((&read[field], value), (&json!(true), &json!(false))),
            "mlp_ratio" => assert_eq!((24.0 * read[field].as_f64().unwrap()) as usize, (24.0 * 4.3637) as usize),
            _ => assert_eq!(&read[field], value, "{field}"),
        }
    }
    // The last beta tells the versions apart; all else of the schedulers is the same.
    for (model, last_beta) in [(&model, 0.03), (&saved, 0.018)] {
        let pipeline = lower(model).unwrap().pipeline;
        let scheduler = json!({
            "_class_name": "DDPMScheduler", "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": last_beta,
            "num_train_timesteps": 1000, "prediction_type": "v_prediction", "clip_sample": false, "steps_offset": 1,
            "timestep_spacing": "leading", "variance_type": "fixed_small",
        });
        assert_eq!(pipeline.sampler, aquatint::sampler::Config::from_diffusers(&scheduler).unwrap());
        assert_eq!((pipeline.steps, pipeline.guidance_scale, pipeline.latent_multiple), (50, 5.0, 2));
        assert_eq!(pipeline.latent_size, [128, 128]);
    }
    let message = Model::open(&path).err().unwrap().to_string();
    assert!(message.ends_with("an autoencoder in the file, or another model's by --vae MODEL, got none"), "{message}");
}

/// PixArt's files, with and without the layers that read sizes.
#[test]
fn transformers_of_captions_hold_what_diffusers_has_of_them() {
    let vae = fixture("pixart/alpha/vae");
    for (name, sizes) in [("pixart", false), ("pixart_sizes", true)] {
        let path = fixture(&format!("transformers/{name}.pth"));
        let text = vec![fixture("pixart/alpha")];
        let donors = Donors { autoencoder: Some(vae.clone()), text, ..Donors::default() };
        let model = Model::open_with(&path, &donors, &Overrules::default()).unwrap();
        assert_eq!(model.class, "PixArtAlphaPipeline");
        let transformer = model.component("transformer");
        assert_eq!(values(&transformer.weights), expected_transformers()["files"][name]);
        let config = &transformer.config;
        let numbers = ["num_attention_heads", "attention_head_dim", "num_layers", "sample_size", "caption_channels"];
        assert_eq!(numbers.map(|field| config[field].as_u64().unwrap()), [1, 72, 2, 8, 20]);
        assert_eq!(
            (&config["interpolation_scale"], &config["use_additional_conditions"]),
            (&json!(0.125), &json!(sizes))
        );
        let pipeline = lower(&model).unwrap().pipeline;
        assert_eq!((pipeline.steps, pipeline.guidance_scale, pipeline.guided_channels), (20, 4.5, None));
        assert_eq!(pipeline.text.unwrap().denoiser.sizes.len(), if sizes { 3 } else { 0 });

        let lacks = |donors| Model::open_with(&path, &donors, &Overrules::default()).err().unwrap().to_string();
        let message = lacks(Donors::default());
        assert!(
            message.ends_with("an autoencoder in the file, or another model's by --vae MODEL, got none"),
            "{message}"
        );
        let message = lacks(Donors { autoencoder: Some(vae.clone()), ..Donors::default() });
        assert!(
            message.contains("a text encoder in the file, or another model's by --text-encoder MODEL"),
            "{message}"
        );
    }
}

/// The variant whose later blocks attend to fewer keys, by names as its authors' code makes them.
#[test]
fn compressed_keys_are_refused_by_name() {
    let mut names = Names::of(&known::pixart_sigma_1024());
    for (name, dims) in [("sr.weight", vec![1152, 1, 2, 2]), ("sr.bias", vec![1152]), ("norm.weight", vec![1152])] {
        names.0.insert(format!("blocks.14.attn.{name}"), dims);
    }
    let elsewhere = Elsewhere { autoencoder: true, text: true };
    let message = recognise_without(&names, elsewhere).unwrap_err().to_string();
    assert_eq!(
        message,
        "some.ckpt: blocks.14.attn.sr.weight (transformer): expected a PixArt whose blocks attend to all tokens: key and value \
         compression is not supported, got such a layer"
    );
}

/// Everything that the configurations say alike, and what only one of them says.
fn same_config(what: &str, ours: &Object, network: &Value, defaults: &Value) {
    let (theirs, theirs_class) = (network["config"].as_object().unwrap(), network["class"].as_str().unwrap());
    for (field, value) in ours {
        let same = match theirs.get(field) {
            // The class, and the number of heads of churches, which diffusers' class cannot say.
            _ if field == "architectures" => *value == json!([theirs_class]),
            None if field == "_class_name" => value == theirs_class,
            None if field == "num_attention_heads" => what == "church/unet",
            Some(Value::Null) if field == "num_attention_heads" => what == "church/unet",
            // A number may be written as an integer, and one head count for all levels as a list.
            Some(Value::Array(all)) if !value.is_array() => all.iter().all(|v| v == value),
            Some(other) => value == other || value.as_f64().is_some_and(|v| other.as_f64() == Some(v)),
            None => false,
        };
        assert!(same, "{what}: {field}: {value}, and {:?}", theirs.get(field));
    }
    // What is not said is what diffusers' classes default to; those of transformers have much that concerns training only.
    let Some(defaults) = defaults.as_object().filter(|d| !d.is_empty()) else { return };
    for (field, value) in theirs.iter().filter(|(field, _)| !ours.contains_key(*field)) {
        assert_eq!(Some(value), defaults.get(field), "{what}: {field}");
    }
}

#[test]
fn pipelines_and_schedulers_are_those_of_the_published_models() {
    let ddim = |end: f64| ("DDIMScheduler", "scaled_linear", 0.0015, end, 1, json!(false));
    for (name, class, scheduler) in [
        ("ddim", "DDIMPipeline", ("DDIMScheduler", "linear", 1e-4, 0.02, 0, json!(true))),
        ("bedroom", "LDMPipeline", ddim(0.0195)),
        ("church", "LDMPipeline", ddim(0.0155)),
        ("imagenet", "LDMClassToImagePipeline", ddim(0.0195)),
        ("sd", "StableDiffusionPipeline", ("PNDMScheduler", "scaled_linear", 0.00085, 0.012, 1, json!(false))),
        (
            "sdxl",
            "StableDiffusionXLPipeline",
            ("EulerDiscreteScheduler", "scaled_linear", 0.00085, 0.012, 1, Value::Null),
        ),
        (
            "refiner",
            "StableDiffusionXLImg2ImgPipeline",
            ("EulerDiscreteScheduler", "scaled_linear", 0.00085, 0.012, 1, Value::Null),
        ),
    ] {
        let model = open(name);
        assert_eq!(model.class, class);
        assert_eq!(model.index["_class_name"], class);
        let s = &model.scheduler;
        let got = (
            s["_class_name"].as_str().unwrap(),
            s["beta_schedule"].as_str().unwrap(),
            s["beta_start"].as_f64().unwrap(),
            s["beta_end"].as_f64().unwrap(),
            s["steps_offset"].as_i64().unwrap(),
            s["set_alpha_to_one"].clone(),
        );
        assert_eq!(got, scheduler, "{name}");
        aquatint::sampler::Config::from_diffusers(s).unwrap_or_else(|e| panic!("{name}: {e}"));
    }
    assert_eq!(open("church").component("vae").config["scaling_factor"], 0.5);
    assert_eq!(open("bedroom").component("vqvae").config["scaling_factor"], 1.0);
    assert_eq!(open("church").component("unet").config["num_attention_heads"], 8);
    assert_eq!(open("sdxl").index["force_zeros_for_empty_prompt"], true);
    assert_eq!(open("refiner").index["requires_aesthetics_score"], true);
}

/// Names and shapes of a true-size model; values of schedules are not needed.
struct Names(BTreeMap<String, Vec<usize>>);

impl Names {
    fn of(published: &Published) -> Self {
        Names(published.file().into_iter().collect())
    }

    fn refusal(&self) -> String {
        let message = recognise(self).unwrap_err().to_string();
        assert_eq!(message.lines().count(), 1, "{message}");
        message
    }
}

impl Tensors for Names {
    fn name(&self) -> &str {
        "some.ckpt"
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(String::as_str).collect()
    }

    fn shape(&self, key: &str) -> Option<&[usize]> {
        self.0.get(key).map(|s| &s[..])
    }

    fn values(&self, key: &str) -> aquatint::Result<Vec<f32>> {
        // The measured factor of churches.
        if key == "scale_factor" {
            Ok(vec![0.2458])
        } else {
            Err(aquatint::Error::request(key, "values", "names only"))
        }
    }
}

fn canonical(entries: &[Entry]) -> Value {
    shapes(entries.iter().map(|e| (&e.key[..], &e.dims[..])))
}

#[test]
fn published_models_have_the_tensors_of_diffusers_and_of_their_authors() {
    let expected = [expected(), expected_transformers(), expected_hunyuan(), json_file("stdit/expected.json")];
    let expected = expected.map(|file| file["lists"].as_object().unwrap().clone());
    let expected: BTreeMap<String, Value> = expected.into_iter().flatten().collect();
    for (label, published) in known::ALL {
        let (published, expected) = (published(), expected[label].as_object().unwrap());
        assert_eq!(expected.len(), published.members.len() + 1, "{label}");
        for member in &published.members {
            assert_eq!(canonical(&member.entries), expected[member.name], "{label}: {}", member.name);
        }
        let file = published.file();
        assert_eq!(shapes(file.iter().map(|(name, dims)| (&name[..], &dims[..]))), expected["file"], "{label}");
    }
}

/// Lists of names and shapes taken from the authors' own code and from diffusers, tensor by tensor: number and hash.
#[test]
fn the_authors_code_makes_these_tensors() {
    let unet = "model.diffusion_model.";
    let vae = "first_stage_model.";
    for (published, prefix, count, hash) in [
        (known::ddim_cifar10(), "", 328, 0x66a4e709397c365e_u64),
        (known::ldm4(), unet, 368, 0x27d097a7157dc725),
        (known::church(), unet, 520, 0x2bc36beaf59ce008),
        (known::cin256_v2(), unet, 688, 0xa0c2aaf24fe10cd6),
        (known::cin256_f8(), unet, 626, 0x8022b17422a5068d),
        (known::sd1(), unet, 686, 0x227fb89d7b1493db),
        (known::sd1(), vae, 248, 0xaa395cd9233df631),
        (known::ldm4(), vae, 204, 0xd9e42792a4ac9380),
        (known::cin256_f8(), vae, 298, 0x903ee20efc183eac),
        // Without the table of positions.
        (known::pixart_alpha_512(), "", 436, 0x3ebd60c3a15a7835),
        (known::pixart_alpha_1024(), "", 444, 0x3317d5272a58063f),
        (known::pixart_sigma_1024(), "", 436, 0x416b7312deb57206),
        (known::open_sora_16_512(), "", 548, 0x74670f4aac176ce2),
    ] {
        let file = published.file();
        let own = file.iter().filter_map(|(name, dims)| Some((name.strip_prefix(prefix)?, &dims[..])));
        // The lists were made without codebooks.
        let own = own.filter(|(name, _)| !name.starts_with("quantize."));
        assert_eq!(shapes(own), json!([count, format!("{hash:016x}")]), "{} {prefix}", published.label);
    }
    let member = |published: Published, name: &str| {
        let found = published.members.into_iter().find(|m| m.name == name);
        found.unwrap().entries
    };
    for (entries, count, hash) in [
        (member(known::ddim_cifar10(), "unet"), 328, 0x743a54bf0ecb6469_u64),
        (member(known::sd1(), "unet"), 686, 0x5cf6f279a9ffbae7),
        (member(known::sd1(), "vae"), 248, 0xc150854edf694d48),
        (member(known::sdxl(), "unet"), 1680, 0x07304cf5ef9ef542),
        (member(known::sdxl(), "text_encoder_2"), 517, 0x4b8328c03c5966a4),
        (member(known::pixart_alpha_512_directory(), "transformer"), 603, 0x0ea90eb8035c6066),
        (member(known::pixart_sigma_1024_directory(), "transformer"), 603, 0x0ea90eb8035c6066),
        (member(known::latte_directory(), "transformer"), 967, 0x9b23429db9a97cdb),
        (member(known::pixart_sigma_1024_directory(), "vae"), 248, 0xc150854edf694d48),
    ] {
        assert_eq!(canonical(&entries), json!([count, format!("{hash:016x}")]));
    }
    // diffusers leads away from an empty caption: it leaves the learned one out, so nothing may ask for that.
    for published in [known::pixart_alpha_512_directory(), known::pixart_sigma_1024_directory()] {
        assert!(!published.index.contains_key(LEARNED_NULL), "{}", published.label);
    }
    // Newer files of transformers leave the prefix out.
    let bare = member(known::sd1(), "text_encoder");
    let bare = bare.iter().map(|e| (e.key.strip_prefix("text_model.").unwrap(), &e.dims[..]));
    assert_eq!(shapes(bare), json!([196, "bf3fad2f036bd7bc"]));
}

#[test]
fn structures_are_read_back_from_shapes() {
    for (label, published) in known::ALL {
        let published = published();
        let mut names = Names::of(&published);
        if label.contains("churches") {
            names.0.insert("scale_factor".into(), vec![]);
        }
        // Transformers never bring an autoencoder along, nor a text encoder.
        let transformer = published.members[0].name == "transformer";
        let elsewhere = Elsewhere { autoencoder: transformer, text: transformer };
        let mut read = recognise_without(&names, elsewhere).unwrap_or_else(|e| panic!("{label}: {e}"));
        if label.contains("churches") {
            // The factor is in f32 there.
            let factor = read.members[1].config["scaling_factor"].as_f64().unwrap();
            assert_eq!(factor as f32, 0.2458);
            read.members[1].config.insert("scaling_factor".into(), json!(0.2458));
        }
        assert_eq!(read, published, "{label}");
    }
}

#[test]
fn a_denoiser_alone_is_told_from_its_shapes() {
    let elsewhere = Elsewhere { autoencoder: true, text: true };
    for published in [known::sd1(), known::sdxl(), known::sdxl_refiner()] {
        let mut names = Names::of(&published);
        // With what is not looked at, and without.
        for bare in [false, true] {
            names.0.retain(|name, _| !bare || name.starts_with("model.diffusion_model."));
            let read = recognise_without(&names, elsewhere).unwrap_or_else(|e| panic!("{}: {e}", published.label));
            assert_eq!((read.label, read.class, read.members.len()), (published.label, published.class, 1));
            assert_eq!((&read.members[0], &read.scheduler), (&published.members[0], &published.scheduler));
        }
        let lacks = |elsewhere| recognise_without(&names, elsewhere).unwrap_err().to_string();
        let message = lacks(Elsewhere { text: false, ..elsewhere });
        assert!(message.ends_with("a text encoder in the file, or another model's by --text-encoder MODEL, got none"));
        let message = lacks(Elsewhere::default());
        assert!(
            message.ends_with("an autoencoder in the file, or another model's by --vae MODEL, got none"),
            "{message}"
        );
    }
}

#[test]
fn averages_are_preferred_and_must_be_whole() {
    let published = known::sd1();
    let mut names = Names::of(&published);
    let raw: Vec<_> =
        names.0.iter().filter(|(n, _)| n.starts_with("model.")).map(|(n, s)| (n.clone(), s.clone())).collect();
    for (name, shape) in raw {
        names.0.insert(format!("model_ema.{}", name["model.".len()..].replace('.', "")), shape);
    }
    for key in ["model_ema.decay", "model_ema.num_updates", "betas_of_others"] {
        names.0.insert(key.into(), vec![]);
    }
    assert!(names.refusal().contains("also betas_of_others"));
    names.0.remove("betas_of_others");
    let read = recognise(&names).unwrap();
    let source = |i: usize, key: &str| read.members[i].entries.iter().find(|e| e.key == key).unwrap().source.clone();
    assert_eq!(source(0, "conv_out.bias"), "model_ema.diffusion_modelout2bias");
    assert_eq!(source(1, "decoder.conv_out.bias"), "first_stage_model.decoder.conv_out.bias");
    // And no weight but the average is read: those of the fixture are not even numbers.
    let model = open("bedroom");
    assert!(
        model
            .component("unet")
            .weights
            .describe("conv_out.bias")
            .contains("model_ema.diffusion_modelout2bias (unet: conv_out.bias)")
    );
}

#[test]
fn junk_of_training_is_ignored_by_name_only() {
    let mut names = Names::of(&known::sd1());
    for key in [
        "alphas_cumprod",
        "first_stage_model.loss.discriminator.main.0.weight",
        "cond_stage_model.transformer.text_model.embeddings.position_ids",
        "optimizer_states.0.state.0.exp_avg",
        "callbacks.keeper",
    ] {
        names.0.insert(key.into(), vec![2]);
        recognise(&names).unwrap_or_else(|e| panic!("{key}: {e}"));
    }
    // Where nothing is, nothing is left out.
    names.0.insert("v_empty".into(), vec![0, 3]);
    names.0.insert("cond_stage_model.transformer.text_projection.weight".into(), vec![768, 768]);
    recognise(&names).unwrap_or_else(|e| panic!("{e}"));
    names.0.insert("control_model.zero_convs.0.weight".into(), vec![2]);
    names.0.insert("model.diffusion_model.extra".into(), vec![2]);
    let message = names.refusal();
    assert!(message.contains("only the 1130 tensors of Stable Diffusion 1.x"), "{message}");
    assert!(message.contains("also control_model.zero_convs.0.weight, and 1 more"), "{message}");
}

#[test]
fn what_is_missing_is_named() {
    let without = |prefix: &str| {
        let mut names = Names::of(&known::sd1());
        names.0.retain(|name, _| !name.starts_with(prefix));
        names.refusal()
    };
    let message = without("first_stage_model.");
    assert!(
        message.contains("some.ckpt: expected an autoencoder in the file, or another model's by --vae"),
        "{message}"
    );
    let message = without("first_stage_model.decoder.conv_out.");
    assert!(message.contains("some.ckpt: first_stage_model.decoder.conv_out.weight (vae)"), "{message}");
    let message = without("cond_stage_model.");
    assert!(
        message.contains("some.ckpt: expected a text encoder in the file, or another model's by --text"),
        "{message}"
    );
    let message = without("cond_stage_model.transformer.text_model.embeddings.");
    assert!(
        message.contains("cond_stage_model.transformer.text_model.embeddings.token_embedding.weight (text_encoder)"),
        "{message}"
    );
    let message = without("model.diffusion_model.out");
    assert!(message.contains("model.diffusion_model.out.2.weight (unet)"), "{message}");
    // Without a denoiser it could be anything; this is nearest.
    let message = without("model.");
    assert!(message.contains("39 % in common with Stable Diffusion 1.x, no model.diffusion_model."), "{message}");
}

#[test]
fn a_gap_in_a_file_is_named_by_the_files_own_name() {
    let mut file =
        Checkpoint::open_file(&fixture("layouts/sd.ckpt"), &mut Vec::new()).unwrap().below("state_dict").unwrap();
    let published = recognise(&file).unwrap();
    let mut entries = published.members[0].entries.clone();
    let gap = entries.iter().position(|e| e.key == "mid_block.attentions.0.proj_in.weight").unwrap();
    entries[gap].source.push('x');
    let message = file.renamed("unet", &entries).unwrap_err().to_string();
    assert_eq!(
        message,
        "sd.ckpt: model.diffusion_model.middle_block.1.proj_in.weightx (unet: mid_block.attentions.0.proj_in.weight): \
         expected shape [64, 64, 1, 1], got no such tensor"
    );
    entries[gap].source.pop();
    entries[gap].source_dims[1] = 65;
    let message = file.renamed("unet", &entries).unwrap_err().to_string();
    assert!(message.ends_with("expected shape [64, 65, 1, 1], got shape [64, 64, 1, 1]"), "{message}");
    // Reading goes on speaking of the file.
    entries[gap].source_dims[1] = 64;
    file = file.renamed("unet", &entries).unwrap();
    let message = file.read_rows("conv_out.bias", 3..9).unwrap_err().to_string();
    assert!(message.starts_with("sd.ckpt: model.diffusion_model.out.2.bias (unet: conv_out.bias): "), "{message}");
    assert!(file.read("nothing").unwrap_err().to_string().starts_with("sd.ckpt: unet: nothing: "));
}

#[test]
fn other_files_are_compared_with_what_is_known() {
    let named = |names: &[&str]| Names(names.iter().map(|n| (n.to_string(), vec![2])).collect());
    let message = named(&["layers.0.attn.qkv.weight", "embedder.proj.weight"]).refusal();
    assert!(message.contains("DDIM CIFAR-10, LDM-4"), "{message}");
    assert!(message.ends_with("got 2 tensors of none of them: embedder.proj.weight..."), "{message}");
    // Stable Diffusion 2: another text encoder.
    let mut names = Names::of(&known::sd1());
    let text: Vec<_> = names.0.keys().filter(|k| k.starts_with("cond_stage_model.")).cloned().collect();
    for key in text {
        let shape = names.0.remove(&key).unwrap();
        names.0.insert(key.replace("transformer.text_model", "model"), shape);
    }
    let message = names.refusal();
    assert!(
        message.contains("70 % in common with Stable Diffusion 1.x, no cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"),
        "{message}"
    );
}

#[test]
fn schedules_are_read_from_the_file() {
    struct With(Names, Vec<f32>);
    impl Tensors for With {
        fn name(&self) -> &str {
            self.0.name()
        }
        fn keys(&self) -> Vec<&str> {
            self.0.keys()
        }
        fn shape(&self, key: &str) -> Option<&[usize]> {
            self.0.shape(key)
        }
        fn values(&self, _: &str) -> aquatint::Result<Vec<f32>> {
            Ok(self.1.clone())
        }
    }
    let with = |betas: Vec<f32>| {
        let mut names = Names::of(&known::ldm4());
        names.0.insert("betas".into(), vec![betas.len()]);
        recognise(&With(names, betas)).map(|p| p.scheduler)
    };
    let linear: Vec<f32> = (0..500).map(|i| (0.001 + 0.029 * f64::from(i) / 499.0) as f32).collect();
    let scheduler = with(linear.clone()).unwrap();
    assert_eq!((&scheduler["beta_schedule"], &scheduler["num_train_timesteps"]), (&json!("linear"), &json!(500)));
    assert_eq!((&scheduler["beta_start"], &scheduler["beta_end"]), (&json!(0.001), &json!(0.03)));
    let cubes: Vec<f32> = linear.iter().map(|b| b * b * b).collect();
    let scheduler = with(cubes.clone()).unwrap();
    assert_eq!((&scheduler["trained_betas"], &scheduler["num_train_timesteps"]), (&json!(cubes), &json!(500)));
    for wrong in [vec![], vec![0.1], vec![0.0; 9], vec![0.5, 1.5, 0.5]] {
        let message = with(wrong).unwrap_err().to_string();
        assert!(message.contains("some.ckpt: betas: expected a table"), "{message}");
    }
}

/// Made-up models have the tensors of the one they are made after, and open again as the same.
#[test]
fn made_up_files_open_as_what_they_were_made_after() {
    fn published(name: &str) -> Published {
        let file = Checkpoint::open_file(&fixture(&format!("layouts/{name}.ckpt")), &mut Vec::new()).unwrap();
        let nested = file.keys().any(|k| k.starts_with("state_dict."));
        recognise(&if nested { file.below("state_dict").unwrap() } else { file }).unwrap()
    }
    let scratch = Scratch::new("made-up");
    let recipes: [(&str, SynthModel); 4] = [
        ("ddim", SynthModel::Directory(|| published("ddim"))),
        ("church", SynthModel::File(|| published("church"))),
        ("imagenet", SynthModel::File(|| published("imagenet"))),
        ("sd", SynthModel::File(|| published("sd"))),
    ];
    for (name, recipe) in recipes {
        let path = scratch.path(name);
        recipe.write(&path, 3).unwrap();
        let (made, after) = (Model::open(&path).unwrap_or_else(|e| panic!("{name}: {e}")), open(name));
        assert_eq!(
            (&made.class, &made.index, made.components.len()),
            (&after.class, &after.index, after.components.len())
        );
        for (a, b) in made.components.iter().zip(&after.components) {
            assert_eq!((&a.name, &a.class, &a.config), (&b.name, &b.class, &b.config), "{name}");
            let list = |w: &Checkpoint| shapes(w.keys().map(|k| (k, w.shape(k).unwrap())));
            assert_eq!(list(&a.weights), list(&b.weights), "{name}/{}", a.name);
            let norm = a.weights.keys().find(|k| k.ends_with("norm1.weight"));
            let values = norm.map(|k| a.weights.read(k).unwrap());
            assert!(values.is_none_or(|v| v.iter().all(|x| (x - 1.0).abs() < 0.3)), "{name}: a norm's scale");
        }
    }
    let again = scratch.path("again");
    SynthModel::File(|| published("church")).write(&again, 3).unwrap();
    assert!(std::fs::read(&again).unwrap() == std::fs::read(scratch.path("church")).unwrap(), "same seed, same bytes");
    let all: Vec<_> = MODELS.iter().map(|(name, _)| *name).collect();
    assert!(
        ["sd15", "sdxl", "sdxl-refiner", "ldm4", "church", "cifar", "pixart-alpha-512", "t5-xxl"]
            .iter()
            .all(|name| all.contains(name))
    );
}

/// What was read lowers as a diffusers directory would: the builders find every tensor, in their shapes, and no other.
#[test]
fn files_lower_and_pack() {
    let scratch = Scratch::new("layouts-pack");
    for name in FILES {
        let mut model = open(name);
        // The tiny encoders know few tokens; true ones have CLIP's own.
        let tokens = model.find("text_encoder").or(model.find("text_encoder_2"));
        let tokens = tokens.map_or(77, |c| c.config["max_position_embeddings"].as_u64().unwrap() as u32);
        let family = Family::Clip;
        let file =
            TokenizerFile { family, json: Vec::new(), begin: Some(59), end: 60, pad: 60, tokens, vocabulary: 61 };
        model.tokenizers = ["tokenizer", "tokenizer_2"].map(|name| (name.to_owned(), file.clone())).into();
        let lowered = lower(&model).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(lowered.programs[0].role, Role::Denoiser);
        let text = lowered.pipeline.text.map_or(0, |t| t.encoders.len());
        assert_eq!(
            text,
            match name {
                "sdxl" => 2,
                "sd" | "refiner" => 1,
                _ => 0,
            },
            "{name}"
        );
        if text > 0 {
            continue;
        }
        let out = scratch.path(&format!("{name}.aqt"));
        pack_as(&fixture(&format!("layouts/{name}.ckpt")), Some("w8a8"), &out).unwrap();
        let packed = Packed::new(aquatint::raw::mmap::open(&out).unwrap()).unwrap();
        packed.verify().unwrap();
        assert_eq!(packed.meta().sources.len(), 1);
        assert_eq!(packed.meta().sources[0].file, format!("{name}.ckpt"));
    }
    let both = open("sdxl").with_refiner(open("refiner")).map(|m| m.sources.len());
    // Their autoencoders differ here, as two seeds made them.
    assert!(both.is_err_and(|e| e.to_string().contains("refiner: ")));
}

/// What training on several devices puts before names, and what newer versions of transformers leave out.
#[test]
fn prefixes_come_and_go() {
    let renamed = |published: Published, change: &dyn Fn(&str) -> String| {
        Names(published.file().into_iter().map(|(name, dims)| (change(&name), dims)).collect())
    };
    let sources =
        |p: &Published| p.members.iter().flat_map(|m| &m.entries).map(|e| e.source.clone()).collect::<Vec<_>>();
    let read = recognise(&renamed(known::ddim_cifar10(), &|name| format!("module.{name}"))).unwrap();
    assert!(sources(&read).iter().all(|s| s.starts_with("module.")));
    assert_eq!(canonical(&read.members[0].entries), canonical(&known::ddim_cifar10().members[0].entries));
    for published in [known::sd1, known::sdxl] {
        let read =
            recognise(&renamed(published(), &|name| name.replace("transformer.text_model.", "transformer."))).unwrap();
        assert!(!sources(&read).iter().any(|s| s.contains("transformer.text_model.")));
        for (read, known) in read.members.iter().zip(&published().members) {
            assert_eq!((canonical(&read.entries), &read.config), (canonical(&known.entries), &known.config));
        }
    }
}
