//! Every network of tiny pipelines of Stable Diffusion and latent diffusion against what diffusers and transformers computed
//! of it in f64 (`tests/fixtures/make_sd.py`).

use aquatint::pipeline::swap_last_axes;
use aquatint::raw::backend::Backend;
use aquatint::raw::backend::args::Element;
use aquatint::raw::backend::cpu::{Cpu, Tier};
use aquatint::raw::backend::cuda::Cuda;
use aquatint::raw::exec::{Executor, PromptInputs};
use aquatint::raw::format::Packed;
use aquatint::raw::format::meta::{Conditioning, SizeKind};
use aquatint::raw::plan::Binding;
use aquatint::raw::program::{Dims, InputKind, Role};
use common::emulated::Emulated;
use common::fixture::{Fixture, pack, pack_as, relative};
use packer::emit::Options;
use std::path::{Path, PathBuf};

const MODELS: [&str; 6] = ["v1", "xl", "refiner", "ldm", "church", "classes"];
const CASES: [&str; 3] = ["b1", "b2", "b3"];
/// What rounding to f32 may do to a network of a few dozen layers: each adds about 2^-24 of its result's size, and
/// rounding errors add up like a random walk.
const ROUNDING: f64 = 1e-5;

fn fixture(model: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/sd").join(model)
}

fn io(model: &str) -> Fixture {
    Fixture::open(&fixture(model).join("io.safetensors"))
}

/// What a program reads, in its own order of axes.
#[derive(Default)]
struct Feed {
    dims: [usize; 3],
    tokens: usize,
    sample: Vec<f32>,
    timestep: f32,
    labels: Option<Vec<u32>>,
    text: Option<Vec<u32>>,
    context: Option<Vec<f32>>,
    pooled: Option<Vec<f32>>,
    sizes: Option<Vec<f32>>,
}

impl Feed {
    /// Images `key` of the fixture.
    fn images(io: &Fixture, key: &str) -> Self {
        let (sample, dims) = io.get(key);
        let sample = swap_last_axes(&sample, [dims[0], dims[1], dims[2] * dims[3]]);
        Feed { dims: [dims[0], dims[2], dims[3]], tokens: 1, sample, ..Feed::default() }
    }

    /// What the denoiser reads in `case`.
    fn denoiser(io: &Fixture, case: &str, inputs: &[InputKind]) -> Self {
        let has = |kind| inputs.contains(&kind);
        let get = |kind, name: &str| has(kind).then(|| io.get(&format!("unet.{case}.{name}")).0);
        let tokens = if has(InputKind::Context) { io.get(&format!("unet.{case}.context")).1[1] } else { 1 };
        Feed {
            tokens,
            timestep: io.get(&format!("unet.{case}.timestep")).0[0],
            labels: has(InputKind::ClassLabels).then(|| io.labels(&format!("unet.{case}.labels"))),
            context: get(InputKind::Context, "context"),
            pooled: get(InputKind::Pooled, "pooled"),
            sizes: get(InputKind::Sizes, "sizes"),
            ..Feed::images(io, &format!("unet.{case}.sample"))
        }
    }
}

/// The result of the program of `role`; images come back in the fixture's order of axes.
fn run<B: Backend, D: AsRef<[u8]>>(backend: &B, packed: &Packed<D>, role: Role, feed: &Feed) -> Vec<f32> {
    let [batch, height, width] = feed.dims;
    let dims = Dims { batch, conditions: batch, height, width, tokens: feed.tokens, ..Dims::ONE };
    let shape = Binding { dims, calls: 1, table_bytes: 0, reserve: 0 };
    let mut executor = Executor::new(backend, packed, role, shape).unwrap();
    let program = executor.program();
    if let Some(tokens) = &feed.text {
        executor.set_tokens(tokens).unwrap();
    } else {
        executor.write_sample(&feed.sample).unwrap();
    }
    let prompt = PromptInputs {
        class_labels: feed.labels.as_deref(),
        context: feed.context.as_deref(),
        pooled: feed.pooled.as_deref(),
        sizes: feed.sizes.as_deref(),
        ..PromptInputs::default()
    };
    executor.set_prompt(&prompt).unwrap();
    if program.input(InputKind::Timestep).is_some() {
        executor.set_timesteps([feed.timestep].into_iter()).unwrap();
    }
    executor.call(0).unwrap();
    let y = executor.plan().output;
    let mut out = vec![0.0; y.rows * y.cols];
    executor.read_output(&mut out).unwrap();
    if feed.text.is_some() { out } else { swap_last_axes(&out, [batch, y.rows / batch, y.cols]) }
}

/// Checks the program of `role` on every tier.
fn check<D: AsRef<[u8]>>(packed: &Packed<D>, role: Role, feed: &Feed, want: &[f32], what: &str) {
    for tier in Tier::available() {
        let out = {
            let cpu = Cpu::new(tier);
            run(&cpu, packed, role, feed)
        };
        let error = relative(&out, want);
        println!("{what} on {}: {error:.1e}", tier.name());
        assert!(error < ROUNDING, "{what} on {}: {error:e}", tier.name());
    }
}

fn inputs<D: AsRef<[u8]>>(packed: &Packed<D>, role: Role) -> Vec<InputKind> {
    packed.program(role).unwrap().inputs.iter().map(|i| i.kind).collect()
}

#[test]
fn denoisers_equal_diffusers() {
    for model in MODELS {
        let (packed, io) = (pack(&fixture(model), "f32", None), io(model));
        for case in CASES {
            let feed = Feed::denoiser(&io, case, &inputs(&packed, Role::Denoiser));
            let (want, _) = io.get(&format!("unet.{case}.out"));
            check(&packed, Role::Denoiser, &feed, &want, &format!("{model} {case}"));
        }
    }
}

/// Sizes that levels cannot halve: each takes that of its counterpart on the way up.
#[test]
fn denoisers_of_odd_sizes_equal_diffusers() {
    for model in ["v1", "xl"] {
        let packed = pack(&fixture(model), "f32", None);
        let io = Fixture::open(&fixture(model).join("sizes.safetensors"));
        for case in ["7x9", "6x13", "10x5", "1x3"] {
            let feed = Feed::denoiser(&io, case, &inputs(&packed, Role::Denoiser));
            let (want, _) = io.get(&format!("unet.{case}.out"));
            check(&packed, Role::Denoiser, &feed, &want, &format!("{model} {case}"));
        }
    }
}

/// Samples may share conditions: here the third has the first one's.
#[test]
fn samples_find_their_conditions() {
    let (packed, io) = (pack(&fixture("xl"), "f32", None), io("xl"));
    let kinds = inputs(&packed, Role::Denoiser);
    let feed = Feed::denoiser(&io, "b2", &kinds);
    let tier = Tier::available()[0];
    let pair = {
        let cpu = Cpu::new(tier);
        run(&cpu, &packed, Role::Denoiser, &feed)
    };
    let one = pair.len() / 2;
    let three = [&feed.sample[..], &feed.sample[..one]].concat();
    let [_, height, width] = feed.dims;
    let dims = Dims { batch: 3, conditions: 2, height, width, tokens: feed.tokens, ..Dims::ONE };
    let shape = Binding { dims, calls: 1, table_bytes: 0, reserve: 0 };
    let out = {
        let cpu = Cpu::new(tier);
        let mut executor = Executor::new(&cpu, &packed, Role::Denoiser, shape).unwrap();
        let prompt = PromptInputs {
            class_labels: None,
            context: feed.context.as_deref(),
            pooled: feed.pooled.as_deref(),
            sizes: feed.sizes.as_deref(),
            ..PromptInputs::default()
        };
        executor.set_conditions(&[0, 1, 0]).unwrap();
        executor.set_prompt(&prompt).unwrap();
        executor.set_timesteps([feed.timestep].into_iter()).unwrap();
        executor.write_sample(&three).unwrap();
        executor.call(0).unwrap();
        let mut out = vec![0.0; 3 * one];
        executor.read_output(&mut out).unwrap();
        swap_last_axes(&out, [3, height * width, 4])
    };
    assert_eq!(out[..2 * one], pair);
    assert_eq!(out[2 * one..], pair[..one]);
}

#[test]
fn text_encoders_equal_transformers() {
    // Model, role, the encoder's number in the fixture, and which of its results are wanted.
    let wanted: [(&str, Role, u32, &[&str]); 3] = [
        ("v1", Role::TextEncoder, 1, &["last"]),
        ("xl", Role::TextEncoder, 1, &["penultimate"]),
        ("xl", Role::TextEncoder2, 2, &["penultimate", "pooled"]),
    ];
    for (model, role, number, parts) in wanted {
        let (packed, io) = (pack(&fixture(model), "f32", None), io(model));
        let (tokens, dims) = io.get(&format!("text.{number}.tokens"));
        let meta = &packed.meta().pipeline.text.as_ref().unwrap().encoders[number as usize - 1];
        let (n, length, features) = (dims[0], dims[1], meta.features as usize);
        assert_eq!(length, meta.tokens as usize);
        let text: Vec<u32> = tokens.iter().map(|&t| t as u32).collect();
        let feed = Feed { dims: [n, 1, 1], tokens: 1, text: Some(text.clone()), ..Feed::default() };
        for tier in Tier::available() {
            let out = {
                let cpu = Cpu::new(tier);
                run(&cpu, &packed, role, &feed)
            };
            let rows: Vec<_> = out.chunks_exact(features + meta.pooled as usize).collect();
            let hidden: Vec<f32> = rows.iter().flat_map(|row| &row[..features]).copied().collect();
            let error = relative(&hidden, &io.get(&format!("text.{number}.{}", parts[0])).0);
            assert!(error < ROUNDING, "{model} {number} on {}: {error:e}", tier.name());
            assert_eq!(meta.pooled > 0, parts.len() > 1);
            if parts.len() > 1 {
                // The whole text's vector is at its first end token.
                let ends = text.chunks_exact(length).map(|t| t.iter().position(|&t| t == meta.end).unwrap());
                let pooled: Vec<f32> =
                    ends.enumerate().flat_map(|(i, end)| &rows[i * length + end][features..]).copied().collect();
                let error = relative(&pooled, &io.get(&format!("text.{number}.pooled")).0);
                assert!(error < ROUNDING, "{model} pooled on {}: {error:e}", tier.name());
            }
        }
    }
}

#[test]
fn decoders_and_encoders_equal_diffusers() {
    for model in ["v1", "xl", "ldm", "church", "classes"] {
        let (packed, io) = (pack(&fixture(model), "f32", None), io(model));
        let feed = Feed::images(&io, "decode.latents");
        check(&packed, Role::VaeDecoder, &feed, &io.get("decode.image").0, &format!("{model} decoder"));
        let encodes = packed.meta().pipeline.encoder.is_some();
        assert_eq!(encodes, ["v1", "xl"].contains(&model), "{model}");
        if encodes {
            let feed = Feed::images(&io, "encode.image");
            check(&packed, Role::VaeEncoder, &feed, &io.get("encode.moments").0, &format!("{model} encoder"));
        }
    }
}

/// The refiner as a second denoiser of the base, which reads the second encoder only.
#[test]
fn a_refiner_joins_its_base() {
    let packed = pack_as(Options {
        model: fixture("xl"),
        refiner: Some(fixture("refiner")),
        q_config: Some("f32".into()),
        ..Default::default()
    });
    packed.verify().unwrap();
    for (role, model) in [(Role::Denoiser, "xl"), (Role::Refiner, "refiner")] {
        let io = io(model);
        let feed = Feed::denoiser(&io, "b2", &inputs(&packed, role));
        check(&packed, role, &feed, &io.get("unet.b2.out").0, model);
    }
    let pipeline = &packed.meta().pipeline;
    let refiner = pipeline.refiner.as_ref().unwrap();
    assert_eq!((&refiner.context[..], refiner.pooled, refiner.sizes.len()), (&[1][..], Some(1), 5));
    assert_eq!(refiner.sizes[4], SizeKind::AestheticScore);
    assert!(packed.meta().sources.iter().any(|s| s.file.starts_with("refiner/unet/")));
}

#[test]
fn pipelines_say_what_they_need() {
    let meta = |model| pack(&fixture(model), "f16", None).meta().pipeline.clone();
    let v1 = meta("v1");
    let text = v1.text.unwrap();
    assert_eq!((v1.steps, v1.guidance_scale, v1.pixels_per_latent, v1.latent_size), (50, 7.5, 4, [8, 8]));
    assert!(!text.zero_negative && v1.refiner.is_none());
    let encoder = &text.encoders[0];
    assert_eq!(
        (&encoder.tokenizer[..], encoder.tokens, encoder.features, encoder.pooled),
        ("tokenizer/tokenizer.json", 11, 18, 0)
    );
    assert_eq!((encoder.begin, encoder.end, encoder.pad), (Some(59), 60, 60));
    let Conditioning { context, pooled, sizes, .. } = text.denoiser;
    assert_eq!((context, pooled, sizes.len()), (vec![0], None, 0));
    let scale = v1.encoder.unwrap();
    assert_eq!((scale.scale, scale.shift), (0.18215, 0.0));

    let xl = meta("xl");
    let text = xl.text.unwrap();
    assert_eq!((xl.guidance_scale, text.zero_negative, text.encoders.len()), (5.0, true, 2));
    let second = &text.encoders[1];
    assert_eq!((&second.tokenizer[..], second.features, second.pooled), ("tokenizer_2/tokenizer.json", 26, 10));
    assert_eq!((second.begin, second.end, second.pad), (Some(71), 72, 0));
    let Conditioning { context, pooled, sizes, .. } = text.denoiser;
    assert_eq!((context, pooled, sizes.len(), sizes[5]), (vec![0, 1], Some(1), 6, SizeKind::TargetWidth));

    let alone = meta("refiner").text.unwrap();
    assert_eq!((alone.encoders.len(), alone.denoiser.context, alone.denoiser.pooled), (1, vec![0], Some(0)));
    assert_eq!(alone.encoders[0].tokenizer, "tokenizer_2/tokenizer.json");

    let classes = meta("classes");
    assert_eq!((classes.classes, classes.null_class, classes.steps, classes.guidance_scale), (7, 7, 20, 3.0));
    for model in ["ldm", "church"] {
        let plain = meta(model);
        assert_eq!((plain.classes, plain.steps, plain.guidance_scale), (0, 50, 1.0));
        assert!(plain.text.is_none() && plain.encoder.is_none());
    }
}

/// 8-bit rounding errs by about 0.5 % a layer and 4-bit k-means by about 9 %; a few dozen layers with residual paths around
/// them stay within a few times that, and a wrong scale, code or order of rows does not.
#[test]
fn quantized_networks_stay_near() {
    for (config, most) in [("w8a8", 0.05), ("w4a8:kmeans", 0.3)] {
        for model in MODELS {
            let (packed, io) = (pack(&fixture(model), config, None), io(model));
            let feed = Feed::denoiser(&io, "b2", &inputs(&packed, Role::Denoiser));
            let tier = Tier::available()[0];
            let out = {
                let cpu = Cpu::new(tier);
                run(&cpu, &packed, Role::Denoiser, &feed)
            };
            let error = relative(&out, &io.get("unet.b2.out").0);
            println!("{model} {config}: {error:.3}");
            assert!(error > 1e-4 && error < most, "{model} {config}: {error}");
        }
    }
}

/// The same networks through the CUDA back end, in the emulator.
#[test]
fn networks_equal_diffusers_in_the_emulator() {
    for model in ["v1", "xl", "church"] {
        let (packed, io) = (pack(&fixture(model), "f32", None), io(model));
        let feed = Feed::denoiser(&io, "b2", &inputs(&packed, Role::Denoiser));
        let (want, _) = io.get("unet.b2.out");
        for (narrow, most) in [(Element::F32, ROUNDING), (Element::F16, 1e-2)] {
            let cuda = Cuda::new(Emulated::new(5), packed.data(), narrow);
            let error = relative(&run(&cuda, &packed, Role::Denoiser, &feed), &want);
            println!("{model} {narrow:?}: {error:.1e}");
            assert!(error < most, "{model} {narrow:?}: {error:e}");
        }
    }
}

/// What stands around the denoiser, through the CUDA back end.
#[test]
fn encoders_and_decoders_equal_in_the_emulator() {
    let text = |io: &Fixture, number: u32| {
        let (tokens, dims) = io.get(&format!("text.{number}.tokens"));
        let text = tokens.iter().map(|&t| t as u32).collect();
        Feed { dims: [dims[0], 1, 1], tokens: 1, text: Some(text), ..Feed::default() }
    };
    let (v1, ldm) = (io("v1"), io("ldm"));
    for (model, role, feed, want) in [
        ("v1", Role::TextEncoder, text(&v1, 1), v1.get("text.1.last").0),
        ("v1", Role::VaeEncoder, Feed::images(&v1, "encode.image"), v1.get("encode.moments").0),
        ("ldm", Role::VaeDecoder, Feed::images(&ldm, "decode.latents"), ldm.get("decode.image").0),
    ] {
        let packed = pack(&fixture(model), "f32", None);
        for (narrow, most) in [(Element::F32, ROUNDING), (Element::F16, 1e-2)] {
            let cuda = Cuda::new(Emulated::new(5), packed.data(), narrow);
            let error = relative(&run(&cuda, &packed, role, &feed), &want);
            println!("{model} {} {narrow:?}: {error:.1e}", role.name());
            assert!(error < most, "{model} {} {narrow:?}: {error:e}", role.name());
        }
    }
}
