//! Whole pipelines against diffusers': prompts in, pictures out, on tiny models (`fixtures/make_pipelines.py`).

use aquatint::model::Model;
use aquatint::pipeline::{
    Embeddings, EncoderFeatures, InitImage, NoiseSource, Output, PromptFeatures, Prompts, Request, Session, Texts,
    swap_last_axes,
};
use aquatint::raw::backend::args::Element;
use aquatint::raw::backend::cpu::simd::scalar::Scalar;
use aquatint::raw::backend::cpu::{Cpu, Tier};
use aquatint::raw::backend::cuda::Cuda;
use aquatint::raw::format::Packed;
use aquatint::raw::mmap::FileBytes;
use aquatint::raw::text::PromptStyle;
use aquatint::sampler::SamplerKind;
use common::emulated::Emulated;
use common::fixture::{Fixture, pack_as, relative};
use packer::emit::Options;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A run of a diffusers pipeline.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Run {
    #[serde(default)]
    prompts: Vec<String>,
    #[serde(default)]
    negative: String,
    /// One per prompt.
    #[serde(default)]
    negatives: Vec<String>,
    guidance: f32,
    steps: usize,
    rescale: Option<f32>,
    strength: Option<f64>,
    seed: Option<u64>,
    refiner: Option<f64>,
    images: Option<usize>,
}

fn model(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/sd").join(name)
}

pub fn pack(name: &str, refiner: Option<&str>) -> Packed<FileBytes> {
    let f32 = || Some("f32".to_owned());
    pack_as(Options {
        model: model(name),
        refiner: refiner.map(model),
        q_config: f32(),
        vae_q_config: f32(),
        text_q_config: model(name).join("text_encoder").is_dir().then(|| "f32".into()),
        ..Options::default()
    })
}

/// `(n, c, h, w)` as `(n, h, w, c)`.
fn channels_last(dims: &[usize], values: &[f32]) -> Vec<f32> {
    swap_last_axes(values, [dims[0], dims[1], dims[2] * dims[3]])
}

fn make(packed: &Packed<FileBytes>, tier: Tier, name: &str, run: &Run, tensors: &Fixture) -> Output {
    let model = Model::new(packed).unwrap();
    {
        let cpu = Cpu::new(tier);
        let subjects = match run.images {
            Some(images) => Prompts::Unconditional(images),
            None => {
                let one = Some(run.negative.clone()).filter(|text| !text.is_empty());
                let negatives = one.into_iter().chain(run.negatives.clone()).map(Some).collect();
                Prompts::Texts(Texts { prompts: run.prompts.clone(), negatives, style: PromptStyle::Plain })
            }
        };
        let mut request = Request::new(&model, subjects);
        request.steps = run.steps;
        request.guidance_scale = run.guidance;
        request.guidance_rescale = run.rescale.unwrap_or(0.0);
        request.refiner_start = run.refiner.unwrap_or(1.0);
        request.seed = run.seed.unwrap_or(0);
        request.noise = NoiseSource::Torch;
        let dims = tensors.get(&format!("{name}.latents")).1;
        request.latent_size = [dims[2], dims[3]];
        request.latents = tensors.find(&format!("{name}.noise")).map(|t| t.0);
        if let Some((picture, dims)) = tensors.find(&format!("{name}.picture")) {
            let pictures = channels_last(&dims, &picture);
            let mask = tensors.find(&format!("{name}.mask")).map(|t| t.0);
            request.init = Some(InitImage { pictures, strength: run.strength.unwrap(), mask });
        }
        Session::new(&model, &cpu).run(request.clone()).unwrap()
    }
}

fn check(name: &str, refiner: Option<&str>, runs: impl Fn(&str) -> bool) {
    let root = model(name);
    let all: BTreeMap<String, Run> = serde_json::from_slice(&std::fs::read(root.join("runs.json")).unwrap()).unwrap();
    let tensors = Fixture::open(&root.join("runs.safetensors"));
    let packed = pack(name, refiner);
    let mut seen = 0;
    for (run, settings) in all.iter().filter(|(run, _)| runs(run)) {
        for tier in Tier::available() {
            let output = make(&packed, tier, run, settings, &tensors);
            let (image, dims) = tensors.get(&format!("{run}.image"));
            let want = channels_last(&dims, &image);
            let latents = relative(&output.latents, &tensors.get(&format!("{run}.latents")).0);
            let image = relative(&output.images, &want);
            assert!(latents < 1e-3 && image < 1e-3, "{name} {run} {}: {latents:e}, {image:e}", tier.name());
            seen += 1;
        }
    }
    assert!(seen > 0);
}

#[test]
fn stable_diffusion_equals_diffusers() {
    check("v1", None, |_| true);
}

#[test]
fn stable_diffusion_xl_equals_diffusers() {
    check("xl", None, |run| run != "refined");
}

#[test]
fn a_refiner_ends_what_its_base_began() {
    check("xl", Some("refiner"), |run| run == "refined");
}

#[test]
fn latent_diffusion_equals_diffusers() {
    check("ldm", None, |_| true);
}

/// Texts that images show and do not show.
fn texts(prompts: &[&str], negatives: &[&str], style: PromptStyle) -> Texts {
    let prompts = prompts.iter().map(|&t| t.to_owned()).collect();
    let negatives = negatives.iter().map(|&t| Some(t.to_owned())).collect();
    Texts { prompts, negatives, style }
}

/// A request for `prompts`, with noise of its own.
fn request(model: &Model<'_, FileBytes>, prompts: &[&str], not: &[&str]) -> Request {
    let prompts = Prompts::Texts(texts(prompts, not, PromptStyle::Weighted));
    let mut request = Request::new(model, prompts);
    (request.steps, request.latent_size) = (3, [8, 12]);
    request
}

#[test]
fn an_image_is_the_same_alone_and_in_a_batch() {
    let packed = pack("xl", Some("refiner"));
    let model = Model::new(&packed).unwrap();
    let cpu = &Cpu::new(Scalar);
    let texts = ["a red cat", "fog", "(the sky:1.4), a dog"];
    let mut all = request(&model, &texts, &["low"]);
    let make = |request: &Request| Session::new(&model, cpu).run(request.clone()).unwrap();
    let together = make(&all);
    let len = together.images.len() / 3;
    for batch_size in [1, 2] {
        all.batch_size = batch_size;
        assert!(make(&all).images == together.images, "batches of {batch_size}");
    }
    let first = request(&model, &texts[..1], &["low"]);
    assert!(make(&first).images == together.images[..len], "alone");
    assert!(together.images[..len] != together.images[len..2 * len]);
}

#[test]
fn long_prompts_take_more_chunks_and_plain_ones_do_not() {
    let packed = pack("v1", None);
    let model = Model::new(&packed).unwrap();
    let cpu = &Cpu::new(Scalar);
    let long = "a red cat on the sky, a dog in the fog, low on the sky";
    let mut session = Session::new(&model, cpu);
    let mut tokens = |prompts: Texts| {
        let mut request = request(&model, &[""], &[]);
        request.prompts = Prompts::Texts(prompts);
        let output = session.run(request).unwrap();
        let Prompts::Embeddings(Embeddings { prompts, of_image }) = output.prompts else { panic!("texts are encoded") };
        assert!(prompts.iter().all(|p| p.encoders[0].features.len() == p.tokens() * 18));
        let tokens: Vec<_> = of_image.iter().map(|pair| pair.map(|i| prompts[i].tokens())).collect();
        (tokens, output.cut)
    };
    let weighted = |prompts: &[&str]| texts(prompts, &["fog"], PromptStyle::Weighted);
    // Nine tokens of text fit into a chunk, which ends with its phrase: 9 + 4, 9 + 1, 9 + 2 in six of them.
    // The negative text is as long as its image's prompt, and no prompt as long as its neighbour's.
    assert_eq!(tokens(weighted(&["a red cat", long])).0, [[11, 11], [66, 66]]);
    let (plain, cut) = tokens(texts(&[long], &[], PromptStyle::Plain));
    assert_eq!((&plain[..], cut.len()), (&[[11, 11]][..], 1));
    assert!(long.ends_with(&cut[0]) || cut[0].contains("the sky"), "{cut:?}");
}

#[test]
fn sizes_are_multiples_of_what_a_network_halves() {
    let packed = pack_as(Options { model: model("ldm"), ..Options::default() });
    let model = Model::new(&packed).unwrap();
    let mut bad = Request::new(&model, Prompts::Unconditional(1));
    bad.latent_size = [8, 9];
    let message = Session::new(&model, &Cpu::new(Scalar)).plans(&bad).unwrap_err().to_string();
    assert_eq!(message, "size: expected multiples of 2 latents, got 8 x 9");
}

#[test]
fn requests_that_do_not_fit_the_model_are_refused() {
    let packed = pack("v1", None);
    let model = Model::new(&packed).unwrap();
    let cpu = Cpu::new(Scalar);
    let session = Session::new(&model, &cpu);
    let good = request(&model, &["a cat", "a dog"], &[]);
    let refused = |change: &dyn Fn(&mut Request)| {
        let mut bad = good.clone();
        change(&mut bad);
        session.plans(&bad).unwrap_err().to_string()
    };
    let message = refused(&|r| r.prompts = Prompts::Classes(vec![1]));
    assert_eq!(message, "conditions of images: expected prompts, got classes");
    for (tokens, index, wrong) in [
        ([0, 0], 0, "tokens of a prompt: expected 1 to 1048576, of which at least 1 counts, got 0, of which 0 count"),
        ([11, 22], 1, "tokens of a prompt and its negative one: expected as many, got 11 and 22"),
        ([11, 11], 2, "prompts: expected prompts below 2, got 2"),
        ([11, 11], usize::MAX, "prompts: expected prompts below 2"),
    ] {
        let encoder = |tokens| EncoderFeatures { tokens, length: tokens, ..Default::default() };
        let prompts = tokens.map(|tokens| PromptFeatures { encoders: vec![encoder(tokens)] }).to_vec();
        let embeddings = Embeddings { prompts, of_image: vec![[0, index]] };
        let message = refused(&|r| r.prompts = Prompts::Embeddings(embeddings.clone()));
        assert!(message.starts_with(wrong), "{message}");
    }
    let message = refused(&|r| r.latent_size = [0, 8]);
    assert_eq!(message, "size: expected at least 1 latent, got 0 x 8");
    let message = refused(&|r| r.init = Some(InitImage { pictures: vec![0.5; 7], strength: 0.5, mask: None }));
    assert!(message.starts_with("initial picture: expected 1 or 2 of 32 x 48 pixels"), "{message}");
    let picture = vec![0.5; 32 * 48 * 3];
    let message =
        refused(&|r| r.init = Some(InitImage { pictures: picture.clone(), strength: 0.5, mask: Some(vec![1.0; 5]) }));
    assert!(message.starts_with("mask: expected 32 x 48 pixels"), "{message}");
    let message = refused(&|r| {
        r.sampler = r.sampler.with_kind(SamplerKind::Ddim);
        r.init = Some(InitImage { pictures: picture.clone(), strength: 0.1, mask: None });
    });
    assert!(
        message.starts_with("steps: expected enough that one falls into what strength 0.1 makes anew"),
        "{message}"
    );
    let message = refused(&|r| r.max_memory = Some(1000));
    assert!(message.starts_with("memory: expected at least"), "{message}");
    let message = refused(&|r| r.prompts = Prompts::Texts(texts(&["a"; 3], &["b"; 2], PromptStyle::Plain)));
    assert_eq!(message, "negative prompts: expected none, 1, or 3: one per image, got 2");
}

/// Memory shrinks batches and cuts images into tiles, and what is planned is enough.
#[test]
fn memory_bounds_what_is_made_at_once() {
    let packed = pack("v1", None);
    let model = Model::new(&packed).unwrap();
    let cpu = &Cpu::new(Scalar);
    let mut session = Session::new(&model, cpu);
    let mut request = request(&model, &["a cat", "a dog", "fog"], &[]);
    request.latent_size = [32, 24];
    let whole = session.plans(&request).unwrap();
    assert_eq!((whole.batch_size, whole.tile), (3, [32, 24]));
    let made = session.run(request.clone()).unwrap();
    request.batch_size = 1;
    request.max_memory = Some(session.plans(&request).unwrap().denoisers[0].arena);
    request.batch_size = 3;
    let bounded = session.plans(&request).unwrap();
    assert_eq!(bounded.batch_size, 1);
    let images = |output: &Output| output.images.clone();
    let in_batches = session.run(request.clone()).unwrap();
    assert!(in_batches.latents == made.latents);
    if bounded.tile == whole.tile {
        assert!(images(&in_batches) == images(&made));
    }

    let arena = whole.decoder.unwrap().arena;
    request.max_memory = None;
    request.tile = Some(16);
    let tiled = session.plans(&request).unwrap();
    assert_eq!(tiled.tile, [16, 16]);
    assert!(tiled.decoder.unwrap().arena < arena / 2);
    let tiled = session.run(request.clone()).unwrap();
    // Norms of random weights see one tile at a time, so pictures differ; but nothing is left out.
    assert!(tiled.images.iter().all(|v| v.is_finite()) && tiled.latents == made.latents);
}

/// Text encoders, prompts, a guided loop and the decoder through the CUDA host code.
#[test]
fn the_emulated_device_makes_the_cpus_pictures() {
    let packed = pack("v1", None);
    let model = Model::new(&packed).unwrap();
    let cpu = &Cpu::new(Scalar);
    let mut here = request(&model, &["a red cat"], &["fog"]);
    here.steps = 2;
    let want = Session::new(&model, cpu).run(here.clone()).unwrap();
    let cuda = Cuda::new(Emulated::new(3), packed.data(), Element::F32);
    let got = Session::new(&model, &cuda).run(here).unwrap();
    let (latents, images) = (relative(&got.latents, &want.latents), relative(&got.images, &want.images));
    // As diffusers' pipelines are compared with: rounding to f32, through a guided loop.
    assert!(latents < 1e-3 && images < 1e-3, "{latents:e}, {images:e}");
}
