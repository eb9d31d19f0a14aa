//! Models in their authors' layout compute what diffusers computes of them (`tests/fixtures/make_compvis.py`): heads that
//! shapes do not tell, averages instead of weights, projections taken apart.

use aquatint::pipeline::{Prompts, Request, Session};
use aquatint::raw::backend::cpu::{Cpu, Tier};
use aquatint::sampler::SamplerKind;
use common::fixture::{Fixture, pack, pack_as, relative};
use packer::emit::Options;
use packer::source::donors::Donors;
use std::path::Path;

#[test]
fn denoisers_equal_diffusers() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/layouts");
    let io = Fixture::open(&folder.join("io.safetensors"));
    for name in ["ddim", "bedroom", "church", "imagenet"] {
        let packed = pack(&folder.join(format!("{name}.ckpt")), "f32", None);
        let model = aquatint::model::Model::new(&packed).unwrap();
        let get = |key: &str| io.get(&format!("{name}.{key}"));
        let (sample, dims) = get("sample");
        let subjects = match name {
            "imagenet" => Prompts::Classes(io.labels("imagenet.labels")),
            _ => Prompts::Unconditional(dims[0]),
        };
        for tier in Tier::available() {
            let size = [dims[2], dims[3]];
            let out = {
                let cpu = Cpu::new(tier);
                Session::new(&model, &cpu).eval(&sample, size, subjects.clone(), get("timestep").0[0])
            };
            let error = relative(&out.unwrap().0, &get("out").0);
            println!("{name} on {}: {error:.1e}", tier.name());
            // As for the same networks from a directory: rounding to f32, a few dozen layers deep.
            assert!(error < 1e-5, "{name} on {}: {error:e}", tier.name());
        }
    }
}

/// DiT as its authors publish it (`tests/fixtures/make_transformers.py`): frequencies without a shift, one embedder for all
/// blocks, and guidance of three channels of four.
#[test]
fn transformers_equal_diffusers_with_their_authors_conventions() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let io = Fixture::open(&fixtures.join("transformers/io.safetensors"));
    let packed = pack_as(Options {
        model: fixtures.join("transformers/dit.pt"),
        donors: Donors { autoencoder: Some(fixtures.join("dit/d2/vae")), ..Donors::default() },
        q_config: Some("f32".into()),
        ..Options::default()
    });
    let model = aquatint::model::Model::new(&packed).unwrap();
    let get = |key: &str| io.get(&format!("dit.{key}"));
    let (sample, dims) = get("sample");
    let classes = Prompts::Classes(io.labels("dit.labels"));
    for tier in Tier::available() {
        let cpu = Cpu::new(tier);
        let (out, _) = Session::new(&model, &cpu)
            .eval(&sample, [dims[2], dims[3]], classes.clone(), get("timestep").0[0])
            .unwrap();
        let error = relative(&out, &get("out").0);
        assert!(error < 1e-5, "{}: {error:e}", tier.name());
    }

    let mut request = Request::new(&model, Prompts::Classes(io.labels("dit.loop.labels")));
    assert_eq!((request.steps, request.guidance_scale), (250, 4.0));
    (request.latents, request.steps) = (Some(get("loop.init").0), 5);
    request.sampler = request.sampler.with_kind(SamplerKind::Ddim);
    request.sampler.spacing = Some("leading".parse().unwrap());
    let cpu = Cpu::best();
    let out = Session::new(&model, &cpu).run(request).unwrap();
    let error = relative(&out.latents, &get("loop.latents").0);
    assert!(error < 1e-4, "{error:e}");
}
