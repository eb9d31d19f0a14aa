//! Pictures are made again from their texts alone, bit for bit, whatever was asked for, and whoever their neighbours were.

use super::pipelines::pack;
use aquatint::image::{Picture, ResizeMode};
use aquatint::infotext::Infotext;
use aquatint::model::Model;
use aquatint::options::{InitOptions, Made, NamedTensor, PromptOptions, RequestOptions, Sigmas, Tensors, infotext};
use aquatint::pipeline::{NoiseSource, Prompts, Session};
use aquatint::raw::backend::cpu::Cpu;
use aquatint::raw::format::Packed;
use aquatint::raw::mmap::FileBytes;
use aquatint::sampler::{SamplerKind, Spacing, Variance};
use fastrand::Rng;
use safetensors::tensor::{Dtype, TensorView};
use std::path::Path;
use std::sync::OnceLock;

/// More than one chunk of tokens; words of the tiny tokenizer's vocabulary.
fn long() -> String {
    "red cat, fog, ".repeat(30)
}

fn letters() -> Packed<FileBytes> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/glyphs-w4a8.aqt");
    Packed::new(aquatint::raw::mmap::open(&path).unwrap()).unwrap()
}

fn maybe<T>(rng: &mut Rng, value: impl FnOnce(&mut Rng) -> T) -> Option<T> {
    rng.bool().then(|| value(rng))
}

/// A picture with structure, as a PNG that was read; made once for all tests of this process, which run side by side.
fn init_picture() -> Picture {
    static PICTURE: OnceLock<Picture> = OnceLock::new();
    let read = || {
        let pixels = |x, y| image::Rgb([(x * 7) as u8, (y * 9) as u8, 255 - (x * 5) as u8]);
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("recall.{}.png", std::process::id()));
        image::RgbImage::from_fn(32, 24, pixels).save(&path).unwrap();
        let picture = Picture::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        picture
    };
    PICTURE.get_or_init(read).clone()
}

/// Random options, of which the model may refuse some.
fn random(rng: &mut Rng, model: &Model<'_, FileBytes>) -> RequestOptions {
    let mut options = RequestOptions::default();
    let texts = ["a red cat", "fog, (a dog:1.3)", "", "Negative prompt: cat\n low ", "red [fog] BREAK sky"];
    let text = |rng: &mut Rng| if rng.u8(..6) == 0 { long() } else { rng.choice(texts).unwrap().to_owned() };
    let prompts = &mut options.prompts;
    if model.text.is_some() {
        prompts.prompts = (0..rng.usize(1..=3)).map(|_| text(rng)).collect();
        prompts.negatives = match rng.u8(..3) {
            0 => vec![],
            1 => vec![text(rng)],
            _ => prompts.prompts.iter().map(|_| text(rng)).collect(),
        };
        prompts.plain = rng.u8(..4) == 0;
    } else {
        prompts.class_labels = (0..rng.usize(1..=3)).map(|_| rng.u32(..26).to_string()).collect();
    }
    prompts.n_imgs = maybe(rng, |rng| rng.usize(1..=2));
    let sampling = &mut options.sampling;
    sampling.steps = Some(rng.usize(1..=4));
    sampling.cfg_scale = maybe(rng, |rng| *rng.choice(&[1.0, 1.5, 4.25]).unwrap());
    sampling.guidance_rescale = maybe(rng, |rng| rng.u8(..=10) as f32 / 10.0);
    sampling.sampler = maybe(rng, |rng| rng.choice(SamplerKind::ALL).unwrap().name().to_owned());
    sampling.eta = maybe(rng, |rng| rng.u8(..=10) as f32 / 10.0);
    sampling.timestep_spacing = maybe(rng, |rng| *rng.choice(Spacing::ALL).unwrap());
    sampling.sigmas = maybe(rng, |rng| {
        *rng.choice(&[Sigmas::Normal, Sigmas::Karras, Sigmas::Exponential, Sigmas::Beta, Sigmas::Lu]).unwrap()
    });
    sampling.variance = maybe(rng, |rng| *rng.choice(Variance::ALL).unwrap());
    sampling.clip_sample = maybe(rng, Rng::bool);
    if model.image_encoder.is_some() && rng.u8(..3) == 0 {
        let (image, strength) = (init_picture(), maybe(rng, |rng| rng.u8(2..=10) as f64 / 10.0));
        let mask = maybe(rng, |_| image.clone());
        let modes = [ResizeMode::Stretch, ResizeMode::Crop, ResizeMode::Pad];
        let resize = maybe(rng, |rng| *rng.choice(&modes).unwrap());
        options.init = Some(InitOptions { image, mask, resize, strength });
        options.size.width = maybe(rng, |rng| model.latents.pixel_multiple() * rng.usize(4..=8));
    } else {
        let multiple = model.latents.pixel_multiple();
        options.size.width = maybe(rng, |rng| multiple * rng.usize(1..=4));
        options.size.height = maybe(rng, |rng| multiple * rng.usize(1..=4));
    }
    options.refiner_start = maybe(rng, |rng| rng.u8(5..=10) as f64 / 10.0);
    options.seed = maybe(rng, |rng| rng.u64(..));
    options.noise = maybe(rng, |rng| *rng.choice(&[NoiseSource::Fast, NoiseSource::Torch]).unwrap());
    options.batch_size = maybe(rng, |rng| rng.usize(1..=4));
    options.vae_tile = maybe(rng, |rng| rng.usize(3..=12));
    options
}

/// Makes pictures of `wanted` random options that the model takes, and each picture again from its text.
fn made_again(packed: &Packed<FileBytes>, seed: u64, wanted: usize) {
    let model = Model::new(packed).unwrap();
    let cpu = Cpu::best();
    let mut session = Session::new(&model, &cpu);
    let rng = &mut Rng::with_seed(seed);
    let (mut runs, mut refused) = (0, 0);
    while runs < wanted {
        let options = random(rng, &model);
        let Some(request) = options.request(&model, None).ok().filter(|r| session.plans(r).is_ok()) else {
            refused += 1;
            assert!(refused < 300 * wanted, "options are refused too often to test anything");
            continue;
        };
        let Ok(output) = session.run(request.clone()) else { continue };
        runs += 1;
        let tile = session.plans(&request).unwrap().tile;
        let resize = options.init.as_ref().and_then(|init| init.resize).unwrap_or_default();
        let made = Made { model: "tiny, \"x\"", device: "cpu", tile, resize, inputs: None };
        let len = output.images.len() / request.prompts.len();
        for k in 0..request.prompts.len() {
            let text = infotext(&model, &request, &made, k..k + 1).to_string();
            let mut again = RequestOptions::default();
            if let Some(InitOptions { image, mask, .. }) = &options.init {
                let (image, mask) = (image.clone(), mask.clone());
                again.init = Some(InitOptions { image, mask, resize: None, strength: None });
            }
            let remarks = again.recall(&Infotext::parse(&text), &model, None).unwrap();
            assert_eq!(remarks, [""; 0], "{text}");
            let again = again.request(&model, None).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(again.sampler, request.sampler, "{text}");
            let single = session.run(again).unwrap();
            assert!(single.images == output.images[k * len..][..len], "image {k} of {options:?}\n{text}");
        }
    }
}

#[test]
fn letters_are_made_again() {
    made_again(&letters(), 1, 24);
}

#[test]
fn pictures_of_prompts_are_made_again() {
    made_again(&pack("v1", None), 2, 60);
}

#[test]
fn pictures_of_a_base_and_a_refiner_are_made_again() {
    made_again(&pack("xl", Some("refiner")), 3, 30);
}

/// A text of the web UI: its words are applied, and what is not is told.
#[test]
fn texts_of_other_programs_are_applied_and_the_rest_is_told() {
    let packed = pack("v1", None);
    let model = Model::new(&packed).unwrap();
    let text = "a cat\nNegative prompt: fog\nSteps: 7, Sampler: DPM++ 2M, CFG scale: 6.5, Seed: 9, Size: 48x32, \
                Model hash: 0123456789, Model: other, RNG: CPU, Hires upscale: 2, Lora hashes: \"x: 1, y: 2\", Version: v1.10.1";
    let mut options = RequestOptions::default();
    let remarks = options.recall(&Infotext::parse(text), &model, None).unwrap();
    let told = ["not applied: Hires upscale: 2", "not applied: Lora hashes: x: 1, y: 2"];
    assert_eq!(&remarks[..2], told);
    assert!(remarks[2].contains("made by other (0123456789)"), "{remarks:?}");
    let request = options.request(&model, None).unwrap();
    // "Automatic" is Karras' levels for this sampler.
    assert!(request.sampler.kind == SamplerKind::DpmSolverPp2M && request.sampler.use_karras_sigmas);
    assert_eq!((request.steps, request.guidance_scale, request.seed), (7, 6.5, 9));
    assert_eq!((request.noise, request.pixels(&model)), (NoiseSource::Torch, [32, 48]));
    assert_eq!(request.prompts.describe(0, &model), ["a cat", "fog"]);

    // What is given beside the text comes first.
    let mut options = RequestOptions { seed: Some(1), ..RequestOptions::default() };
    options.prompts = PromptOptions { prompts: vec!["a dog".into()], ..PromptOptions::default() };
    options.sampling.sampler = Some("euler".into());
    options.recall(&Infotext::parse(text), &model, None).unwrap();
    let request = options.request(&model, None).unwrap();
    assert_eq!((request.seed, request.sampler.kind, request.steps), (1, SamplerKind::Euler, 7));
    assert_eq!(request.prompts.describe(0, &model), ["a dog", ""]);

    let refused = |text: &str| {
        let e = RequestOptions::default().recall(&Infotext::parse(text), &model, None).expect_err(text);
        e.to_string()
    };
    assert!(refused("just words").contains("whose text tells how it was made"));
    assert!(refused("a\nSteps: x, Sampler: Euler, Seed: 1").contains("Steps"));
    assert!(refused("a\nSteps: 1, Sampler: Restart, Seed: 1").contains("one of DDIM"));
    assert!(refused("a\nSteps: 1, Seed: 1, Images: 4").contains("a sheet of 4"));
    assert!(refused("a\nSteps: 1, Seed: 1, Init image hash: 12").contains("the image that the picture began with"));
}

fn written(tensors: &[NamedTensor]) -> Tensors {
    let view = |t: &NamedTensor| {
        let bytes: Vec<u8> = t.values.iter().flat_map(|v| v.to_le_bytes()).collect();
        (t.name, t.dims.clone(), bytes)
    };
    let owned: Vec<_> = tensors.iter().map(view).collect();
    let views =
        owned.iter().map(|(name, dims, bytes)| (*name, TensorView::new(Dtype::F32, dims.clone(), bytes).unwrap()));
    Tensors::new("features", &safetensors::serialize(views, None).unwrap()).unwrap()
}

/// A prompt of several chunks makes no neighbour's context longer, and features that were written make the same images.
#[test]
fn images_do_not_depend_on_their_neighbours() {
    let packed = pack("v1", None);
    let model = Model::new(&packed).unwrap();
    let cpu = Cpu::best();
    let mut session = Session::new(&model, &cpu);
    let mut options = RequestOptions::default();
    (options.sampling.steps, options.sampling.cfg_scale) = (Some(2), Some(3.0));
    options.prompts.prompts = vec!["a red cat".into(), long(), "fog".into(), "sky".into()];
    options.prompts.negatives = vec![String::new(), String::new(), long(), String::new()];
    let request = options.request(&model, None).unwrap();
    let together = session.run(request.clone()).unwrap();
    let len = together.latents.len() / 4;
    for k in 0..4 {
        let mut alone = options.clone();
        alone.prompts.prompts = vec![options.prompts.prompts[k].clone()];
        alone.prompts.negatives = vec![options.prompts.negatives[k].clone()];
        alone.seed = Some(request.seed + k as u64);
        let alone = session.run(alone.request(&model, None).unwrap()).unwrap();
        assert!(alone.latents == together.latents[k * len..][..len], "image {k}");
    }
    let Prompts::Embeddings(features) = &together.prompts else { panic!("features") };
    let tokens: Vec<usize> = (0..4).map(|i| together.prompts.tokens(i)).collect();
    assert!(tokens[1] > tokens[0] && tokens[2] == tokens[1] && tokens[3] == tokens[0], "{tokens:?}");
    assert_eq!(features.of_image.len(), 4);

    // The tensors of `--outputs`, given as `--inputs`.
    let tensors = NamedTensor::of_prompts(&together.prompts);
    let mut from_features = RequestOptions { sampling: options.sampling.clone(), ..RequestOptions::default() };
    from_features.seed = Some(request.seed);
    let request = from_features.request(&model, Some(written(&tensors))).unwrap();
    assert!(session.run(request).unwrap().latents == together.latents);
}
