//! PixArt against diffusers, and the text encoders that it and its kin read against transformers: tiny models packed from genuine
//! directories and from files in the authors' layout (`tests/fixtures/make_pixart.py`, `make_transformers.py`).

use aquatint::Model;
use aquatint::pipeline::{
    Embeddings, EncoderFeatures, NoiseSource, PromptFeatures, Prompts, Request, Session, Texts, swap_last_axes,
};
use aquatint::raw::backend::Backend;
use aquatint::raw::backend::args::Element;
use aquatint::raw::backend::cpu::{Cpu, Tier};
use aquatint::raw::backend::cuda::Cuda;
use aquatint::raw::exec::{Executor, PromptInputs};
use aquatint::raw::format::meta::{SizeKind, TextLength};
use aquatint::raw::format::{Packed, TensorKind, TensorSpec, Writer};
use aquatint::raw::mmap::FileBytes;
use aquatint::raw::plan::Binding;
use aquatint::raw::program::{Dims, InputKind, Program, Role};
use aquatint::raw::text::PromptStyle;
use common::emulated::Emulated;
use common::fixture::{Fixture, pack_as, relative};
use packer::emit::Options;
use packer::lower::{TEXT_ENCODERS, bert, t5};
use packer::source::Checkpoint;
use packer::source::donors::Donors;
use packer::weight::Weights;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use zerocopy::IntoBytes;

const MODELS: [&str; 3] = ["alpha", "sizes", "sigma"];
/// Two dozen layers of f32 whose errors add up like a random walk.
const ROUNDING: f64 = 1e-5;

fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(path)
}

fn model(name: &str) -> PathBuf {
    fixture("pixart").join(name)
}

fn pack(name: &str, config: &str) -> Packed<FileBytes> {
    pack_as(Options { model: model(name), q_config: Some(config.into()), ..Options::default() })
}

/// A PixArt in its authors' layout, with the other networks of a directory.
fn pack_file(name: &str) -> Packed<FileBytes> {
    pack_as(Options {
        model: fixture("transformers").join(format!("{name}.pth")),
        donors: Donors {
            autoencoder: Some(model("alpha").join("vae")),
            text: vec![model("alpha")],
            ..Donors::default()
        },
        q_config: Some("f32".into()),
        ..Options::default()
    })
}

/// `(n, c, h, w)` as `(n, h, w, c)`.
fn channels_last((values, dims): (Vec<f32>, Vec<usize>)) -> Vec<f32> {
    swap_last_axes(&values, [dims[0], dims[1], dims[2] * dims[3]])
}

/// The result of the program of `role` at `dims`, which `set` gives its inputs.
fn run<'m, B: Backend>(
    backend: &'m B,
    packed: &'m Packed<FileBytes>,
    role: Role,
    dims: Dims,
    set: impl FnOnce(&mut Executor<'m, B>),
) -> Vec<f32> {
    let shape = Binding { dims, calls: 1, table_bytes: 0, reserve: 0 };
    let mut executor = Executor::new(backend, packed, role, shape).unwrap();
    set(&mut executor);
    executor.call(0).unwrap();
    let mut out = vec![0.0; executor.plan().output_type.len()];
    executor.read_output(&mut out).unwrap();
    out
}

/// One call of the denoiser, on what tensors `case.*` of `io` are.
fn denoise<B: Backend>(backend: &B, packed: &Packed<FileBytes>, io: &Fixture, case: &str) -> Vec<f32> {
    let get = |name: &str| io.get(&format!("{case}.{name}"));
    let (sample, context) = (get("sample"), get("context"));
    let (n, tokens) = (context.1[0], context.1[1]);
    let dims = Dims { batch: n, conditions: n, height: sample.1[2], width: sample.1[3], tokens, ..Dims::ONE };
    let lengths: Vec<u32> = get("lengths").0.iter().map(|&n| n as u32).collect();
    let sizes = io.find(&format!("{case}.sizes")).map(|(sizes, _)| sizes);
    run(backend, packed, Role::Denoiser, dims, |executor| {
        let prompt = PromptInputs {
            context: Some(&context.0),
            lengths: Some(&lengths),
            sizes: sizes.as_deref(),
            ..PromptInputs::default()
        };
        executor.set_prompt(&prompt).unwrap();
        executor.set_timesteps(get("timestep").0.into_iter().take(1)).unwrap();
        executor.write_sample(&channels_last(sample)).unwrap();
    })
}

/// What a text encoder makes of `tokens` `(n, t)`, of which `lengths` count, if it is told.
fn encode<B: Backend>(
    backend: &B,
    packed: &Packed<FileBytes>,
    (tokens, dims): &(Vec<f32>, Vec<usize>),
    lengths: Option<&[u32]>,
) -> Vec<f32> {
    let tokens: Vec<u32> = tokens.iter().map(|&t| t as u32).collect();
    let dims = Dims { batch: dims[0], conditions: dims[0], height: 1, width: 1, tokens: dims[1], ..Dims::ONE };
    run(backend, packed, Role::TextEncoder, dims, |executor| {
        executor.set_tokens(&tokens).unwrap();
        executor.set_prompt(&PromptInputs { lengths, ..PromptInputs::default() }).unwrap();
    })
}

fn near(got: &[f32], want: &[f32], most: f64, what: &str) {
    let error = relative(got, want);
    println!("{what}: {error:.1e}");
    assert!(error < most, "{what}: {error:e}");
}

#[test]
fn denoisers_equal_diffusers() {
    for name in MODELS {
        let (packed, io) = (pack(name, "f32"), Fixture::open(&model(name).join("io.safetensors")));
        for case in ["b1", "b2", "b3"] {
            let case = format!("denoiser.{case}");
            let want = channels_last(io.get(&format!("{case}.out")));
            for tier in Tier::available() {
                let what = format!("{name} {case} on {}", tier.name());
                near(&denoise(&Cpu::new(tier), &packed, &io, &case), &want, ROUNDING, &what);
            }
        }
    }
}

/// What fills a caption up is not looked at, and how much there is of it changes nothing.
#[test]
fn tokens_that_do_not_count_are_not_seen() {
    let (packed, io) = (pack("alpha", "f32"), Fixture::open(&model("alpha").join("io.safetensors")));
    let (sample, context) = (io.get("denoiser.b3.sample"), io.get("denoiser.b3.context").0);
    let lengths: Vec<u32> = io.labels("denoiser.b3.lengths");
    let (n, width) = (3, context.len() / 27);
    let run = |tokens: usize, context: &[f32]| {
        let dims = Dims { batch: n, conditions: n, height: sample.1[2], width: sample.1[3], tokens, ..Dims::ONE };
        let cpu = Cpu::best();
        run(&cpu, &packed, Role::Denoiser, dims, |executor| {
            let prompt = PromptInputs { context: Some(context), lengths: Some(&lengths), ..PromptInputs::default() };
            executor.set_prompt(&prompt).unwrap();
            executor.set_timesteps([500.0].into_iter()).unwrap();
            executor.write_sample(&channels_last(sample.clone())).unwrap();
        })
    };
    let filled = |tokens: usize, with: f32| -> Vec<f32> {
        let token = |row: usize, t: usize| {
            let at = (row * 9 + t) * width;
            if t < lengths[row] as usize { context[at..at + width].to_vec() } else { vec![with; width] }
        };
        (0..n).flat_map(|row| (0..tokens).flat_map(move |t| token(row, t)).collect::<Vec<_>>()).collect()
    };
    let plain = run(9, &context);
    assert_eq!(plain, run(9, &filled(9, 1e4)));
    assert_eq!(plain, run(14, &filled(14, -3.0)), "whatever a caption is filled up to");
    let (packed_tokens, dims) = (
        packed.program(Role::Denoiser).unwrap(),
        Dims { batch: 1, conditions: 1, height: 4, width: 4, tokens: 2, ..Dims::ONE },
    );
    assert!(packed_tokens.input(InputKind::Lengths).is_some());
    let shape = Binding { dims, calls: 1, table_bytes: 0, reserve: 0 };
    let cpu = Cpu::best();
    let mut executor = Executor::new(&cpu, &packed, Role::Denoiser, shape).unwrap();
    let prompt = PromptInputs { context: Some(&context[..2 * width]), lengths: Some(&[3]), ..PromptInputs::default() };
    assert!(executor.set_prompt(&prompt).unwrap_err().to_string().contains("at most 2 tokens"));
}

#[test]
fn the_authors_files_compute_what_diffusers_does() {
    let io = Fixture::open(&fixture("transformers/io.safetensors"));
    for name in ["pixart", "pixart_sizes"] {
        let packed = pack_file(name);
        let want = channels_last(io.get(&format!("{name}.out")));
        for tier in Tier::available() {
            near(&denoise(&Cpu::new(tier), &packed, &io, name), &want, ROUNDING, &format!("{name} on {}", tier.name()));
        }
    }
}

#[test]
fn encoders_of_pipelines_equal_transformers_at_any_length() {
    for name in MODELS {
        let (packed, io) = (pack(name, "f32"), Fixture::open(&model(name).join("io.safetensors")));
        for case in ["one", "short", "long"] {
            let (tokens, want) = (io.get(&format!("text.{case}.tokens")), io.get(&format!("text.{case}.out")).0);
            for tier in Tier::available() {
                let what = format!("{name} {case} on {}", tier.name());
                near(&encode(&Cpu::new(tier), &packed, &tokens, None), &want, ROUNDING, &what);
            }
        }
    }
}

/// Without a negative text, the authors' alpha is led away from a learned caption, of which as many rows count as the text has
/// tokens; who names a negative text gets that.
#[test]
fn the_authors_alpha_is_led_away_from_its_learned_caption() {
    let packed = pack_file("pixart");
    let model = Model::new(&packed).unwrap();
    let file = Checkpoint::open_file(&fixture("transformers/pixart.pth"), &mut Vec::new()).unwrap();
    let learned = file.read("state_dict.y_embedder.y_embedding").unwrap();
    let cpu = Cpu::best();
    let texts = Texts { prompts: vec!["a red cat".into(), "fog".into()], ..Texts::default() };
    let (embeddings, _) = Session::new(&model, &cpu).encode(&texts, true).unwrap();
    for [prompt, negative] in embeddings.of_image {
        let [prompt, negative] = [prompt, negative].map(|index| &embeddings.prompts[index].encoders[0]);
        assert_eq!((prompt.tokens, prompt.length), (negative.tokens, negative.length));
        assert_eq!(negative.features, learned[..prompt.features.len()]);
    }
    let named = Texts { negatives: vec![Some(String::new())], ..texts };
    let (embeddings, _) = Session::new(&model, &cpu).encode(&named, true).unwrap();
    let negative = &embeddings.prompts[embeddings.of_image[0][1]].encoders[0];
    assert_ne!(negative.features, learned[..negative.features.len()]);
    assert!(Model::new(&pack("alpha", "f32")).unwrap().text.unwrap().null_caption.is_none());
}

/// A packed file of one program whose checkpoint is in `folder`, in f32.
fn alone(folder: &Path, lower: impl FnOnce(&Checkpoint, &mut Weights) -> Program) -> Packed<FileBytes> {
    let checkpoint = Checkpoint::open(folder, ".", &mut Vec::new()).unwrap();
    let mut weights = Weights::new();
    let program = lower(&checkpoint, &mut weights);
    let path =
        std::env::temp_dir().join(format!("aquatint-{}-{}", std::process::id(), folder.file_name().unwrap().display()));
    let mut writer = Writer::create(&path).unwrap();
    for weight in weights.iter() {
        assert!(weight.steps.is_empty(), "{}", weight.key());
        let spec = TensorSpec { name: weight.name(), dims: weight.dims(), kind: TensorKind::F32 };
        writer.tensor(spec, checkpoint.read(weight.key()).unwrap().as_bytes()).unwrap();
    }
    writer.finish(&[program], &common::meta([1, 1])).unwrap();
    let packed = Packed::new(aquatint::raw::mmap::open(&path).unwrap()).unwrap();
    std::fs::remove_file(&path).unwrap();
    packed
}

fn encoder(name: &str) -> (Packed<FileBytes>, Fixture) {
    let folder = fixture("encoders").join(name);
    let config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap();
    let (class, config) = (config["architectures"][0].as_str().unwrap(), config.as_object().unwrap());
    let io = Fixture::open(&folder.join("io.safetensors"));
    let tokens = io.get("b3.tokens").1[1] as u32;
    let (component, _) = TEXT_ENCODERS[0];
    let packed = alone(&folder, |checkpoint, weights| {
        let has = |key: &str| checkpoint.has(key);
        if class == "BertModel" {
            let config = bert::Config::read(component, class, config).unwrap();
            return bert::lower(&config, tokens, Role::TextEncoder, &has, weights).unwrap();
        }
        let config = t5::Config::read(component, class, config).unwrap();
        let length = t5::Length::Padded(tokens);
        t5::lower(&config, length, Role::TextEncoder, &has, &|a, b| a == b, weights).unwrap()
    });
    (packed, io)
}

/// T5 and mT5 with filled up texts, and BERT; batches of 1 and 3, texts of one token to all.
#[test]
fn encoders_of_filled_up_texts_equal_transformers() {
    for name in ["t5", "mt5", "bert"] {
        let (packed, io) = encoder(name);
        for case in ["b1", "b3"] {
            let (tokens, want) = (io.get(&format!("{case}.tokens")), io.get(&format!("{case}.out")).0);
            let lengths = io.labels(&format!("{case}.lengths"));
            for tier in Tier::available() {
                let what = format!("{name} {case} on {}", tier.name());
                near(&encode(&Cpu::new(tier), &packed, &tokens, Some(&lengths)), &want, ROUNDING, &what);
            }
        }
    }
}

#[test]
fn decoders_equal_diffusers() {
    for name in MODELS {
        let (packed, io) = (pack(name, "f32"), Fixture::open(&model(name).join("io.safetensors")));
        let (latents, want) = (io.get("decode.latents"), channels_last(io.get("decode.image")));
        let dims = Dims {
            batch: latents.1[0],
            conditions: 1,
            height: latents.1[2],
            width: latents.1[3],
            tokens: 1,
            ..Dims::ONE
        };
        for tier in Tier::available() {
            let cpu = Cpu::new(tier);
            let out = run(&cpu, &packed, Role::VaeDecoder, dims, |executor| {
                executor.write_sample(&channels_last(latents.clone())).unwrap();
            });
            near(&out, &want, ROUNDING, &format!("{name} decoder on {}", tier.name()));
        }
    }
}

/// The same through the CUDA back end, in the emulator. In halves, each of some fifty layers rounds by 2^-11, and the residual
/// stream adds such errors up.
#[test]
fn networks_equal_in_the_emulator() {
    let (packed, io) = (pack("sizes", "f32"), Fixture::open(&model("sizes").join("io.safetensors")));
    let want = channels_last(io.get("denoiser.b2.out"));
    let (tokens, features) = (io.get("text.short.tokens"), io.get("text.short.out").0);
    for (narrow, most) in [(Element::F32, ROUNDING), (Element::F16, 1e-2)] {
        let cuda = Cuda::new(Emulated::new(5), packed.data(), narrow);
        near(&denoise(&cuda, &packed, &io, "denoiser.b2"), &want, most, &format!("denoiser {narrow:?}"));
        near(&encode(&cuda, &packed, &tokens, None), &features, most, &format!("T5 {narrow:?}"));
    }
    let (packed, io) = encoder("bert");
    let (tokens, want) = (io.get("b3.tokens"), io.get("b3.out").0);
    for (narrow, most) in [(Element::F32, ROUNDING), (Element::F16, 1e-2)] {
        let cuda = Cuda::new(Emulated::new(5), packed.data(), narrow);
        let out = encode(&cuda, &packed, &tokens, Some(&io.labels("b3.lengths")));
        near(&out, &want, most, &format!("BERT {narrow:?}"));
    }
}

/// A run of a diffusers pipeline.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Run {
    prompts: Vec<String>,
    negative: String,
    guidance: f32,
    steps: usize,
}

fn runs(name: &str) -> (BTreeMap<String, Run>, Fixture) {
    let root = model(name);
    let runs = serde_json::from_slice(&std::fs::read(root.join("runs.json")).unwrap()).unwrap();
    (runs, Fixture::open(&root.join("runs.safetensors")))
}

/// Makes what `run` made, of `prompts`, on every tier.
fn check(name: &str, packed: &Packed<FileBytes>, run: &str, settings: &Run, prompts: &Prompts, tensors: &Fixture) {
    let loaded = Model::new(packed).unwrap();
    let (want, image) = (tensors.get(&format!("{run}.latents")), tensors.get(&format!("{run}.image")));
    for tier in Tier::available() {
        let cpu = Cpu::new(tier);
        let mut request = Request::new(&loaded, prompts.clone());
        (request.steps, request.guidance_scale, request.noise) =
            (settings.steps, settings.guidance, NoiseSource::Torch);
        request.latent_size = [want.1[2], want.1[3]];
        request.latents = Some(tensors.get(&format!("{run}.noise")).0);
        let output = Session::new(&loaded, &cpu).run(request).unwrap();
        let what = format!("{name} {run} on {}", tier.name());
        near(&output.latents, &want.0, 1e-3, &format!("{what}, latents"));
        near(&output.images, &channels_last(image.clone()), 1e-3, &format!("{what}, image"));
    }
}

/// Captions in, pictures out.
#[test]
fn pipelines_equal_diffusers() {
    for name in MODELS {
        let (packed, (runs, tensors)) = (pack(name, "f32"), runs(name));
        assert_eq!(runs.len(), 2);
        for (run, settings) in &runs {
            let negatives = Some(settings.negative.clone()).filter(|text| !text.is_empty());
            let prompts = Prompts::Texts(Texts {
                prompts: settings.prompts.clone(),
                negatives: negatives.into_iter().map(Some).collect(),
                style: PromptStyle::Plain,
            });
            check(name, &packed, run, settings, &prompts, &tensors);
        }
    }
}

/// Ready features, each of its own length.
#[test]
fn pipelines_of_features_equal_diffusers() {
    let (name, (runs, tensors)) = ("sizes", runs("sizes"));
    let packed = pack(name, "f32");
    for (run, settings) in &runs {
        let rows = |kind: &str| -> Vec<PromptFeatures> {
            let (embeds, dims) = tensors.get(&format!("{run}.{kind}_embeds"));
            let (mask, _) = tensors.get(&format!("{run}.{kind}_mask"));
            let row = dims[1] * dims[2];
            let prompt = |(embeds, mask): (&[f32], &[f32])| {
                let tokens = mask.iter().filter(|&&m| m > 0.0).count();
                let features = embeds[..tokens * dims[2]].to_vec();
                let pooled = Vec::new();
                PromptFeatures { encoders: vec![EncoderFeatures { tokens, length: tokens, features, pooled }] }
            };
            embeds.chunks_exact(row).zip(mask.chunks_exact(dims[1])).map(prompt).collect()
        };
        let prompts = [rows("prompt"), rows("negative_prompt")].concat();
        let of_image = vec![[0, 2], [1, 3]];
        check(name, &packed, run, settings, &Prompts::Embeddings(Embeddings { prompts, of_image }), &tensors);
    }
}

#[test]
fn pipelines_say_what_they_need() {
    for (name, tokens, sizes, size) in [("alpha", 120, 0, 8), ("sizes", 120, 3, 128), ("sigma", 300, 0, 128)] {
        let meta = pack(name, "f16").meta().pipeline.clone();
        assert_eq!((meta.steps, meta.guidance_scale, meta.latent_size, meta.latent_multiple), (20, 4.5, [size; 2], 2));
        let text = meta.text.unwrap();
        let [encoder] = &text.encoders[..] else { panic!("one encoder") };
        assert_eq!(
            (encoder.tokens, encoder.length, encoder.features, encoder.pooled),
            (tokens, TextLength::Own, 20, 0)
        );
        assert_eq!((encoder.begin, encoder.end, encoder.pad), (None, 1, 0));
        assert!(encoder.lower_case && !text.zero_negative);
        assert_eq!((text.denoiser.context, text.denoiser.pooled), (vec![0], None));
        assert_eq!(text.denoiser.sizes.len(), sizes);
        assert!(text.denoiser.sizes.last().is_none_or(|kind| *kind == SizeKind::AspectRatio));
    }
}

/// 8-bit rounding errs by about 0.5 % a layer; two dozen layers with residual paths around them stay within a few times that.
#[test]
fn quantized_transformers_stay_near() {
    for (config, most) in [("w8a8", 0.05), ("w4a8:kmeans", 0.3)] {
        let io = Fixture::open(&model("sizes").join("io.safetensors"));
        let packed = common::fixture::pack_everywhere(config, Options { model: model("sizes"), ..Options::default() });
        let error =
            relative(&denoise(&Cpu::best(), &packed, &io, "denoiser.b2"), &channels_last(io.get("denoiser.b2.out")));
        println!("{config}: {error:.3}");
        assert!(error > 1e-4 && error < most, "{config}: {error}");
    }
}
