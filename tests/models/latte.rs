//! Latte against diffusers: a tiny model packed from a genuine directory (`tests/fixtures/make_latte.py`).

use super::video::{Fixed, channels_last, denoise, near, pipeline};
use aquatint::raw::backend::args::Element;
use aquatint::raw::backend::cpu::{Cpu, Tier};
use aquatint::raw::backend::cuda::Cuda;
use aquatint::raw::format::Packed;
use aquatint::raw::format::meta::TextLength;
use aquatint::raw::mmap::FileBytes;
use aquatint::raw::plan::Binding;
use aquatint::raw::program::{Dims, Rate, Role};
use common::emulated::Emulated;
use common::fixture::{Fixture, pack_as};
use packer::emit::Options;
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
        let cuda = Cuda::new(Emulated::new(5), packed.data(), narrow).unwrap();
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
