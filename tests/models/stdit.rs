//! STDiT of Open-Sora 1.0 against its description in torch: a tiny network in its authors' layout, and as ViDiT-Q splits it
//! (`tests/fixtures/make_stdit.py`), with the other networks of a tiny PixArt.

use super::video::{Fixed, channels_last, denoise, near, pipeline};
use aquatint::Model;
use aquatint::pipeline::{NoiseSource, Prompts, Request, Session, Texts};
use aquatint::raw::backend::args::Element;
use aquatint::raw::backend::cpu::{Cpu, Tier};
use aquatint::raw::backend::cuda::Cuda;
use aquatint::raw::format::Packed;
use aquatint::raw::mmap::FileBytes;
use aquatint::raw::plan::{Binding, Plan};
use aquatint::raw::program::{Dims, Rate, Role};
use common::emulated::Emulated;
use common::fixture::{Fixture, pack_as};
use packer::emit::Options;
use packer::source::donors::Donors;
use std::path::{Path, PathBuf};

/// Two dozen layers of f32 whose errors add up like a random walk.
const ROUNDING: f64 = 1e-5;

fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(path)
}

fn pack(name: &str, config: &str) -> Packed<FileBytes> {
    let donor = fixture("pixart/alpha");
    pack_as(Options {
        model: fixture("stdit").join(name),
        donors: Donors { autoencoder: Some(donor.join("vae")), text: vec![donor], ..Donors::default() },
        q_config: Some(config.into()),
        ..Options::default()
    })
}

fn io() -> Fixture {
    Fixture::open(&fixture("stdit/io.safetensors"))
}

#[test]
fn the_denoiser_is_the_described_one() {
    let (packed, io) = (pack("stdit.pth", "f32"), io());
    for case in ["b1", "b2"] {
        let want = channels_last(io.get(&format!("{case}.out")));
        for tier in Tier::available() {
            near(&denoise(&Cpu::new(tier), &packed, &io, case), &want, ROUNDING, &format!("{case} on {}", tier.name()));
        }
    }
}

/// Matrices of their own for queries, keys and values change nothing; without tables of positions, they are those of the
/// authors' first configuration, which this network was not made with.
#[test]
fn split_matrices_are_the_same() {
    let [whole, split] = ["stdit.pth", "split.pth"].map(|name| pack(name, "f32"));
    let weights = |packed: &Packed<FileBytes>| {
        let named = packed
            .tensors()
            .iter()
            .map(|t| (t.name.clone(), t.dims.clone(), packed.data()[t.offset..][..t.bytes].to_vec()));
        named.collect::<Vec<_>>()
    };
    assert!(weights(&whole) == weights(&split));
    let [own, first] = [&whole, &split].map(|packed| &packed.meta().pipeline);
    assert_eq!((own.frames, own.latent_size), (3, [8, 8]));
    assert_eq!((first.frames, first.latent_size), (16, [64, 64]));
}

/// The same through the CUDA back end, in the emulator. In halves, each of some thirty layers rounds by 2^-11, and the residual
/// stream adds such errors up.
#[test]
fn the_denoiser_equals_in_the_emulator() {
    let (packed, io) = (pack("stdit.pth", "f32"), io());
    let want = channels_last(io.get("b1.out"));
    for (narrow, most) in [(Element::F32, ROUNDING), (Element::F16, 1e-2)] {
        let cuda = Cuda::new(Emulated::new(5), packed.data(), narrow);
        near(&denoise(&cuda, &packed, &io, "b1"), &want, most, &format!("{narrow:?}"));
    }
}

/// Ancestral steps of learned variance, guidance of three channels of four away from the learned caption.
#[test]
fn the_sampler_is_the_authors() {
    let (packed, io) = (pack("stdit.pth", "f32"), io());
    let null = Model::new(&packed).unwrap().text.unwrap().null_features(4).unwrap();
    assert_eq!(null.len(), 4 * 20);
    let prompt = io.get("prompt");
    let negative = (null, prompt.1.clone());
    pipeline(&packed, Fixed { prompt, negative }, &io, Some(5), 5);
}

/// A text without a negative one is led away from the learned caption, of which as many rows count as the text has tokens.
#[test]
fn texts_are_led_away_from_the_learned_caption() {
    let packed = pack("stdit.pth", "f32");
    let model = Model::new(&packed).unwrap();
    let cpu = Cpu::best();
    let mut session = Session::new(&model, &cpu);
    let texts = Texts { prompts: vec!["a red cat".into(), "fog".into()], ..Texts::default() };
    let (embeddings, cut) = session.encode(&texts, true).unwrap();
    assert!(cut.is_empty());
    for [prompt, negative] in embeddings.of_image.clone() {
        let [prompt, negative] = [prompt, negative].map(|index| &embeddings.prompts[index].encoders[0]);
        assert_eq!((prompt.tokens, prompt.length), (negative.tokens, negative.length));
        assert_eq!(negative.features, model.text.as_ref().unwrap().null_features(prompt.tokens).unwrap());
    }
    let mut request = Request::new(&model, Prompts::Texts(texts));
    (request.steps, request.frames, request.noise) = (2, 2, NoiseSource::Fast);
    let output = session.run(request).unwrap();
    assert_eq!(output.images.len(), 2 * 2 * 32 * 32 * 3);
    assert!(output.images.iter().all(|value| value.is_finite()));
}

/// Who asks for more frames than the memory holds is told how many it does hold, and those it does.
#[test]
fn frames_that_do_not_fit_are_refused_with_what_does() {
    let packed = pack("stdit.pth", "f16");
    let model = Model::new(&packed).unwrap();
    let cpu = Cpu::best();
    let plans = |frames: usize, max_memory: Option<usize>| {
        let mut request = Request::new(&model, Prompts::blank(&model, 1));
        (request.frames, request.max_memory) = (frames, max_memory);
        Session::new(&model, &cpu).plans(&request)
    };
    let most = plans(12, None).unwrap().denoisers[0].arena;
    let error = plans(64, Some(most)).unwrap_err().to_string();
    assert!(error.contains("or --frames 12 or -W 8 -H 8, which fits"), "{error}");
    assert!(plans(13, Some(most)).is_err() && plans(12, Some(most)).is_ok());
    assert!(plans(0, None).unwrap_err().to_string().contains("frames"));
}

#[test]
fn the_pipeline_says_what_it_needs() {
    let packed = pack("stdit.pth", "f16");
    let meta = &packed.meta().pipeline;
    assert_eq!((meta.steps, meta.guidance_scale, meta.guided_channels), (100, 7.0, Some(3)));
    assert!(meta.sampler.kind.name().contains("ddpm"));
}

/// What depends on the timestep, the caption and the shape alone is not in the loop.
#[test]
fn conditions_are_out_of_the_loop() {
    let packed = pack("stdit.pth", "f32");
    let dims = Dims { batch: 2, conditions: 2, height: 8, width: 8, tokens: 5, frames: 3 };
    let binding = Binding { dims, calls: 4, table_bytes: 1 << 20, reserve: 0 };
    let plan = Plan::of_role(&Cpu::best(), &packed, Role::Denoiser, &binding).unwrap();
    let program = packed.program(Role::Denoiser).unwrap();
    let count = |rate: Rate, name: &str| {
        let nodes = plan.phases[0].ops[rate as usize].iter();
        nodes.filter(|planned| program.nodes[planned.node].op.name() == name).count()
    };
    // Per block: twice queries, keys, values and result; queries and result; the MLP. And the patches and the result.
    assert_eq!(count(Rate::Loop, "linear"), 2 * (4 + 4 + 2 + 2) + 2);
    assert_eq!(count(Rate::Prompt, "linear"), 2 + 2 * 2, "the caption, and its keys and values");
    assert_eq!(count(Rate::Step, "linear"), 3);
    assert_eq!(count(Rate::Loop, "add"), 1, "positions of frames");
    assert_eq!(count(Rate::Bind, "position_embedding"), 2);
    assert_eq!(count(Rate::Loop, "attention"), 2 * 3);
}
