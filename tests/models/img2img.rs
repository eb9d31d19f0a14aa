//! Pictures that begin with pictures, and those in sizes of a model's list, of PixArt and Hunyuan-DiT, against diffusers' parts
//! (`tests/fixtures/make_img2img.py`).

use aquatint::model::Model;
use aquatint::options::{PromptOptions, RequestOptions, SamplingOptions, SizeOptions, Tensors};
use aquatint::pipeline::{InitImage, NoiseSource, Prompts, Request, Session, Texts, swap_last_axes};
use aquatint::raw::backend::cpu::{Cpu, Tier};
use aquatint::raw::format::Packed;
use aquatint::raw::mmap::FileBytes;
use aquatint::raw::text::PromptStyle;
use common::fixture::{Fixture, pack_as, relative};
use packer::emit::Options;
use safetensors::tensor::{Dtype, TensorView};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A run of the reference.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Run {
    model: String,
    #[serde(default)]
    prompts: Vec<String>,
    #[serde(default)]
    negative: String,
    guidance: f32,
    steps: usize,
    seed: u64,
    #[serde(default)]
    strength: f64,
    size: Option<[usize; 2]>,
}

fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(path)
}

fn runs() -> (BTreeMap<String, Run>, Fixture) {
    let runs = serde_json::from_slice(&std::fs::read(fixture("img2img.json")).unwrap()).unwrap();
    (runs, Fixture::open(&fixture("img2img.safetensors")))
}

/// A directory packed in f32, the autoencoder too.
fn pack(model: PathBuf, texts: bool) -> Packed<FileBytes> {
    let f32 = || Some("f32".to_owned());
    let text_q_config = texts.then(|| "f32".into());
    pack_as(Options { model, q_config: f32(), vae_q_config: f32(), text_q_config, ..Options::default() })
}

/// `(n, c, h, w)` as `(n, h, w, c)`.
fn channels_last((values, dims): (Vec<f32>, Vec<usize>)) -> Vec<f32> {
    swap_last_axes(&values, [dims[0], dims[1], dims[2] * dims[3]])
}

fn near(got: &[f32], want: &[f32], what: &str) {
    let error = relative(got, want);
    println!("{what}: {error:.1e}");
    assert!(error < 1e-3, "{what}: {error:e}");
}

/// Makes what `run` made of its picture, on every tier.
fn check(packed: &Packed<FileBytes>, name: &str, run: &Run, prompts: &Prompts, tensors: &Fixture) {
    let model = Model::new(packed).unwrap();
    let of = |part: &str| tensors.get(&format!("{name}.{part}"));
    let latents = of("latents");
    for tier in Tier::available() {
        let cpu = Cpu::new(tier);
        let mut request = Request::new(&model, prompts.clone());
        (request.steps, request.guidance_scale) = (run.steps, run.guidance);
        (request.seed, request.noise) = (run.seed, NoiseSource::Torch);
        request.latent_size = [latents.1[2], latents.1[3]];
        let mask = tensors.find(&format!("{name}.mask")).map(|mask| mask.0);
        let pictures = channels_last(of("picture"));
        request.init = Some(InitImage { pictures, strength: run.strength, mask });
        let output = Session::new(&model, &cpu).run(request).unwrap();
        near(&output.latents, &latents.0, &format!("{name} on {}, latents", tier.name()));
        near(&output.images, &channels_last(of("image")), &format!("{name} on {}, image", tier.name()));
    }
}

#[test]
fn pixart_begins_with_pictures_as_diffusers_does() {
    let (runs, tensors) = runs();
    let mut seen = 0;
    for (name, run) in runs.iter().filter(|(_, run)| run.size.is_none() && run.model != "hunyuan") {
        let packed = pack(fixture("pixart").join(&run.model), true);
        let (prompts, negatives) = (run.prompts.clone(), vec![Some(run.negative.clone())]);
        let prompts = Prompts::Texts(Texts { prompts, negatives, style: PromptStyle::Plain });
        check(&packed, name, run, &prompts, &tensors);
        seen += 1;
    }
    assert_eq!(seen, 3);
}

/// Its own sampler adds noise at each step, from the generator that drew the picture's latents.
#[test]
fn hunyuan_begins_with_pictures_as_diffusers_does() {
    let (runs, tensors) = runs();
    let name = "hunyuan picture";
    let packed = pack(fixture("transformers/hunyuan"), false);
    let given: Vec<(String, Vec<usize>, Vec<u8>)> = tensors
        .names()
        .iter()
        .filter_map(|key| Some((key, key.strip_prefix(name)?.strip_prefix('.')?)))
        .filter(|(_, part)| part.contains("prompt_"))
        .map(|(key, part)| {
            let (values, dims) = tensors.get(key);
            (part.to_owned(), dims, values.iter().flat_map(|v| v.to_le_bytes()).collect())
        })
        .collect();
    assert_eq!(given.len(), 8);
    let views =
        given.iter().map(|(name, dims, bytes)| (name, TensorView::new(Dtype::F32, dims.clone(), bytes).unwrap()));
    let bytes = safetensors::serialize(views, None).unwrap();
    let model = Model::new(&packed).unwrap();
    let prompts = Tensors::new("inputs", &bytes).unwrap().prompts(&model, true).unwrap().unwrap();
    check(&packed, name, &runs[name], &prompts, &tensors);
}

/// A directory of the tiny alpha that says it is one of 256 pixels, which has a list of sizes.
fn alpha_of_256() -> Packed<FileBytes> {
    let root = std::env::temp_dir().join(format!("aquatint-binned-{}", std::process::id()));
    let alpha = fixture("pixart/alpha");
    for entry in std::fs::read_dir(&alpha).unwrap().map(|entry| entry.unwrap().path()) {
        let to = root.join(entry.file_name().unwrap());
        let files = match entry.is_dir() {
            true => std::fs::read_dir(&entry).unwrap().map(|file| file.unwrap().path()).collect(),
            false => vec![entry.clone()],
        };
        for file in files {
            let to = if entry.is_dir() { to.join(file.file_name().unwrap()) } else { to.clone() };
            std::fs::create_dir_all(to.parent().unwrap()).unwrap();
            std::fs::copy(&file, &to).unwrap();
        }
    }
    let config = root.join("transformer/config.json");
    let told = std::fs::read_to_string(&config).unwrap();
    let changed = told.replace("\"sample_size\": 8,", "\"sample_size\": 32,");
    assert_ne!(told, changed);
    std::fs::write(&config, changed).unwrap();
    let packed = pack(root.clone(), true);
    std::fs::remove_dir_all(&root).unwrap();
    packed
}

#[test]
fn sizes_of_the_models_list_are_made_and_cut_as_diffusers_does() {
    let (runs, tensors) = runs();
    let packed = alpha_of_256();
    let model = Model::new(&packed).unwrap();
    let cpu = Cpu::best();
    let mut seen = 0;
    for (name, run, [height, width]) in runs.iter().filter_map(|(name, run)| Some((name, run, run.size?))) {
        let options = RequestOptions {
            prompts: PromptOptions { prompts: run.prompts.clone(), plain: true, ..Default::default() },
            sampling: SamplingOptions { steps: Some(run.steps), cfg_scale: Some(run.guidance), ..Default::default() },
            size: SizeOptions { width: Some(width), height: Some(height), binning: true },
            seed: Some(run.seed),
            noise: Some(NoiseSource::Torch),
            ..Default::default()
        };
        let request = options.request(&model, None).unwrap();
        assert_eq!(request.picture_size, Some([height, width]));
        let output = Session::new(&model, &cpu).run(request).unwrap();
        assert_eq!(output.size, [height, width]);
        near(&output.images, &channels_last(tensors.get(&format!("{name}.image"))), name);
        seen += 1;
    }
    assert_eq!(seen, 2);
}

/// The lists of all four sizes of PixArt, as its packer writes them and the runtime finds in them.
#[test]
fn sizes_are_found_as_diffusers_finds_them() {
    #[derive(Deserialize)]
    struct Sizes {
        asked: Vec<[usize; 2]>,
        #[serde(flatten)]
        found: BTreeMap<String, Vec<[usize; 2]>>,
    }
    let sizes: Sizes = serde_json::from_slice(&std::fs::read(fixture("size_bins.json")).unwrap()).unwrap();
    assert_eq!(sizes.found.len(), 4);
    for (side, found) in &sizes.found {
        let bins = packer::lower::pipeline::size_bins(side.parse().unwrap(), 16);
        for (asked, found) in sizes.asked.iter().zip(found) {
            assert_eq!(aquatint::model::nearest_bin(&bins, *asked), Some(*found), "{side}: {asked:?}");
        }
    }
    assert!(packer::lower::pipeline::size_bins(96, 16).is_empty(), "nobody published such");
    assert!(packer::lower::pipeline::size_bins(32, 32).is_empty(), "not whole latents");
}

#[test]
fn sizes_that_no_list_is_for_are_refused() {
    let packed = pack(fixture("pixart/alpha"), true);
    let model = Model::new(&packed).unwrap();
    let refused = |model: &Model<'_, FileBytes>, width: usize| {
        let size = SizeOptions { width: Some(width), height: Some(64), binning: true };
        RequestOptions { size, ..Default::default() }.blank(model, 1).unwrap_err().to_string()
    };
    assert_eq!(
        refused(&model, 64),
        "resolution-binning: expected a model with a list of the sizes that it was made for, got one without"
    );
    let packed = alpha_of_256();
    let model = Model::new(&packed).unwrap();
    assert_eq!(refused(&model, 0), "width: expected 1 to 16384 pixels, got 0");
    // On a size of the list nothing is left to be cut.
    let size = SizeOptions { width: Some(256), height: Some(256), binning: true };
    let request = RequestOptions { size, ..Default::default() }.blank(&model, 1).unwrap();
    assert_eq!((request.picture_size, request.latent_size), (None, [64, 64]));
}
