//! Latte against diffusers: a tiny model packed from a genuine directory (`tests/fixtures/make_latte.py`).

use super::video::{Fixed, channels_last, denoise, near, pipeline};
use aquatint::Model;
use aquatint::pipeline::{Prompts, Request, Session, Texts};
use aquatint::raw::backend::args::Element;
use aquatint::raw::backend::cpu::{Cpu, Tier};
use aquatint::raw::backend::cuda::Cuda;
use aquatint::raw::exec::{Executor, PromptInputs};
use aquatint::raw::format::Packed;
use aquatint::raw::format::meta::TextLength;
use aquatint::raw::mmap::FileBytes;
use aquatint::raw::plan::Binding;
use aquatint::raw::program::{Dims, Rate, Role};
use aquatint::raw::text::PromptStyle;
use common::emulated::Emulated;
use common::fixture::{Fixture, pack_as};
use packer::emit::Options;
use packer::source::donors::Donors;
use std::path::{Path, PathBuf};

/// Two dozen layers of f32 whose errors add up like a random walk.
const ROUNDING: f64 = 1e-5;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/latte")
}

fn pack(config: &str) -> Packed<FileBytes> {
    pack_as(Options { model: root(), q_config: Some(config.into()), ..Options::default() })
}

#[test]
fn the_denoiser_equals_diffusers() {
    let (packed, io) = (pack("f32"), Fixture::open(&root().join("io.safetensors")));
    for case in ["b1", "b2"] {
        let want = channels_last(io.get(&format!("{case}.out")));
        for tier in Tier::available() {
            let got = denoise(&Cpu::new(tier), &packed, &io, case);
            near(&got, &want, ROUNDING, &format!("{case} on {}", tier.name()));
        }
    }
}

/// The same through the CUDA back end, in the emulator. In halves, each of some thirty layers rounds by 2^-11, and the residual
/// stream adds such errors up.
#[test]
fn the_denoiser_equals_in_the_emulator() {
    let (packed, io) = (pack("f32"), Fixture::open(&root().join("io.safetensors")));
    let want = channels_last(io.get("b2.out"));
    for (narrow, most) in [(Element::F32, ROUNDING), (Element::F16, 1e-2)] {
        let cuda = Cuda::new(Emulated::new(5), packed.data(), narrow);
        near(&denoise(&cuda, &packed, &io, "b2"), &want, most, &format!("{narrow:?}"));
    }
}

#[test]
fn the_pipeline_equals_diffusers() {
    let (packed, run) = (pack("f32"), Fixture::open(&root().join("runs.safetensors")));
    let of = |name: &str| run.get(name);
    pipeline(&packed, Fixed { prompt: of("prompt_embeds"), negative: of("negative_prompt_embeds") }, &run, None, 7);
}

#[test]
fn the_pipeline_says_what_it_needs() {
    let packed = pack("f16");
    let meta = &packed.meta().pipeline;
    assert_eq!((meta.steps, meta.guidance_scale, meta.latent_size, meta.frames), (50, 7.5, [8, 8], 3));
    let [encoder] = &meta.text.as_ref().unwrap().encoders[..] else { panic!("one encoder") };
    assert_eq!((encoder.tokens, encoder.length, encoder.features), (120, TextLength::Own, 20));
}

/// What depends on the timestep, the caption and the shape alone is not in the loop: of each pair of blocks only the products of
/// tokens are, of the caption's attention those of queries and of the result.
#[test]
fn conditions_are_out_of_the_loop() {
    let packed = pack("f32");
    let dims = Dims { batch: 2, conditions: 2, height: 8, width: 8, tokens: 5, frames: 3 };
    let binding = Binding { dims, calls: 4, table_bytes: 1 << 20, reserve: 0 };
    let plan = aquatint::raw::plan::Plan::of_role(&Cpu::best(), &packed, Role::Denoiser, &binding).unwrap();
    let program = packed.program(Role::Denoiser).unwrap();
    let count = |rate: Rate, name: &str| {
        let nodes = plan.phases[0].ops[rate as usize].iter();
        nodes.filter(|planned| program.nodes[planned.node].op.name() == name).count()
    };
    // Per pair: 4 + 2 + 2 of the spatial block, 4 + 2 of the temporal one; and the patches and the result.
    assert_eq!(count(Rate::Loop, "linear"), 2 * (4 + 2 + 2 + 4 + 2) + 2);
    assert_eq!(count(Rate::Prompt, "linear"), 2 + 2 * 2, "the caption, and its keys and values");
    assert_eq!(count(Rate::Step, "linear"), 3);
    assert_eq!(count(Rate::Loop, "add"), 1, "positions of frames");
    assert_eq!(count(Rate::Bind, "position_embedding"), 2);
    assert_eq!(count(Rate::Loop, "attention"), 2 * 3);
}

/// Of texts, each with its negative one: the empty one is filled up to its prompt's length with padding, which the denoiser reads,
/// and a longer one cut off there, as the pipeline has it.
#[test]
fn negative_prompts_are_as_long_as_prompts() {
    let packed = pack_everywhere_in_floats();
    let run = Fixture::open(&root().join("texts.safetensors"));
    let model = Model::new(&packed).unwrap();
    for (name, prompt, negative) in
        [("empty", "a red cat on the sky", None), ("long", "fog", Some("low red fog, a dog in the low sky"))]
    {
        let of = |part: &str| run.get(&format!("{name}.{part}"));
        let negatives = negative.map(|text| Some(text.to_owned())).into_iter().collect();
        let texts = Texts { prompts: vec![prompt.to_owned()], negatives, style: PromptStyle::Plain };
        for tier in Tier::available() {
            let cpu = Cpu::new(tier);
            let (embeddings, _) = Session::new(&model, &cpu).encode(&texts, true).unwrap();
            for (side, part) in ["prompt_embeds", "negative_prompt_embeds"].into_iter().enumerate() {
                let (want, dims) = of(part);
                let got = &embeddings.prompts[embeddings.of_image[0][side]].encoders[0];
                assert_eq!((got.tokens, got.length), (dims[1], dims[1]), "{name} {part}");
                near(&got.features, &want, ROUNDING, &format!("{name} {part} on {}", tier.name()));
            }
            let noise = of("noise");
            let mut request = Request::new(&model, Prompts::Texts(texts.clone()));
            (request.steps, request.latents, request.latent_size) = (4, Some(noise.0), [noise.1[3], noise.1[4]]);
            let mut session = Session::new(&model, &cpu);
            let planned = session.plans(&request).unwrap();
            session.keep_at_most(planned.peak());
            let output = session.run(request).unwrap();
            near(&output.latents, &of("latents").0, 1e-3, &format!("{name} on {}", tier.name()));
        }
    }
}

/// Text encoders in f32 too.
fn pack_everywhere_in_floats() -> Packed<FileBytes> {
    let f32 = || Some("f32".to_owned());
    let (model, q_config) = (root(), f32());
    pack_as(Options { model, q_config, vae_q_config: f32(), text_q_config: f32(), ..Options::default() })
}

/// A frame alone is not told that it is the first.
#[test]
fn one_frame_has_no_position() {
    let (packed, io) = (pack("f32"), Fixture::open(&root().join("alone.safetensors")));
    let want = channels_last(io.get("one.out"));
    for tier in Tier::available() {
        near(&denoise(&Cpu::new(tier), &packed, &io, "one"), &want, ROUNDING, tier.name());
    }
    let cuda = Cuda::new(Emulated::new(5), packed.data(), Element::F32);
    near(&denoise(&cuda, &packed, &io, "one"), &want, ROUNDING, "the emulator");
}

/// Videos of classes, packed from the authors' checkpoint of averages.
#[test]
fn the_denoiser_of_classes_is_the_described_one() {
    let packed = pack_as(Options {
        model: root().join("class.pt"),
        donors: Donors { autoencoder: Some(root().join("vae")), ..Donors::default() },
        q_config: Some("f32".into()),
        ..Options::default()
    });
    let model = Model::new(&packed).unwrap();
    assert_eq!((model.steps, model.guidance_scale, model.guided_channels), (250, 7.0, 4));
    assert_eq!((model.latents.frames, model.latents.size, model.latents.video), (3, [8, 8], true));
    let classes = model.classes.unwrap();
    assert_eq!((classes.count, classes.null), (5, 5));
    let io = Fixture::open(&root().join("class.safetensors"));
    for case in ["b1", "b2"] {
        let of = |name: &str| io.get(&format!("{case}.{name}"));
        let (sample, want) = (of("sample"), of("out"));
        let [n, _, frames, height, width] = sample.1[..] else { panic!("five axes") };
        let labels = io.labels(&format!("{case}.labels"));
        let dims = Dims { batch: n, conditions: n, height, width, tokens: 1, frames };
        for tier in Tier::available() {
            let cpu = Cpu::new(tier);
            let binding = Binding { dims, calls: 1, table_bytes: 0, reserve: 0 };
            let mut executor = Executor::new(&cpu, &packed, Role::Denoiser, binding).unwrap();
            executor.set_prompt(&PromptInputs { class_labels: Some(&labels), ..Default::default() }).unwrap();
            executor.set_timesteps(of("timestep").0.into_iter().take(1)).unwrap();
            executor.write_sample(&channels_last(sample.clone())).unwrap();
            executor.call(0).unwrap();
            let mut out = vec![0.0; executor.plan().output_type.len()];
            executor.read_output(&mut out).unwrap();
            near(&out, &channels_last(want.clone()), ROUNDING, &format!("{case} on {}", tier.name()));
        }
    }
    // Guided, by its own sampler, of learned variance: it runs to the end, and a frame is a picture.
    let cpu = Cpu::best();
    let mut request = Request::new(&model, Prompts::Classes(vec![3]));
    request.steps = 2;
    let output = Session::new(&model, &cpu).run(request).unwrap();
    assert_eq!((output.frames, output.size), (3, [32, 32]));
    assert!(output.images.iter().all(|value| value.is_finite()));
}
