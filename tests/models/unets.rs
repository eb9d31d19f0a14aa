//! Tiny `UNet2DModel` pipelines against what diffusers computed of them in f64 (`tests/fixtures/make_unets.py`).

use aquatint::pipeline::{Prompts, Request, Session, swap_last_axes};
use aquatint::raw::backend::args::Element;
use aquatint::raw::backend::cpu::{Cpu, Tier};
use aquatint::raw::backend::cuda::Cuda;
use common::emulated::Emulated;
use common::fixture::{Fixture, pack, relative};
use std::path::{Path, PathBuf};

const VARIANTS: [&str; 2] = ["asym", "sym"];

fn fixture(variant: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/unet").join(variant)
}

fn io(variant: &str) -> Fixture {
    Fixture::open(&fixture(variant).join("io.safetensors"))
}

fn cases() -> impl Iterator<Item = String> {
    let batches = [1, 2, 3].into_iter().flat_map(|b| [0, 1, 500, 999].map(|t| format!("b{b}_t{t}")));
    batches.chain(["other".into()])
}

/// Sample, size, timestep and result of a case.
fn case(io: &Fixture, name: &str) -> (Vec<f32>, [usize; 2], usize, f32, Vec<f32>) {
    let (sample, dims) = io.get(&format!("{name}.sample"));
    let t = io.get(&format!("{name}.timestep")).0[0];
    (sample, [dims[2], dims[3]], dims[0], t, io.get(&format!("{name}.out")).0)
}

#[test]
fn the_denoiser_equals_diffusers() {
    for variant in VARIANTS {
        let (packed, io) = (pack(&fixture(variant), "f32", None), io(variant));
        let model = aquatint::model::Model::new(&packed).unwrap();
        for name in cases() {
            let (sample, size, n, t, want) = case(&io, &name);
            for tier in Tier::available() {
                let labels = vec![0; n];
                let (out, _) = {
                    let cpu = Cpu::new(tier);
                    Session::new(&model, &cpu).eval(&sample, size, Prompts::Unconditional(labels.len()), t)
                }
                .unwrap();
                let error = relative(&out, &want);
                assert!(error < 1e-5, "{variant} {name} on {}: {error:e}", tier.name());
            }
        }
    }
}

/// The same network through the CUDA back end, in the emulator.
#[test]
fn the_denoiser_equals_diffusers_in_the_emulator() {
    for variant in VARIANTS {
        let (packed, io) = (pack(&fixture(variant), "f32", None), io(variant));
        let model = aquatint::model::Model::new(&packed).unwrap();
        let (sample, size, n, t, want) = case(&io, "b2_t500");
        for (narrow, most) in [(Element::F32, 1e-5), (Element::F16, 5e-3)] {
            let cuda = Cuda::new(Emulated::new(5), packed.data(), narrow);
            let (out, _) = Session::new(&model, &cuda).eval(&sample, size, Prompts::Unconditional(n), t).unwrap();
            let error = relative(&out, &want);
            println!("{variant} {narrow:?}: {error:.1e}");
            assert!(error < most, "{variant} {narrow:?}: {error:e}");
        }
    }
}

#[test]
fn the_whole_pipeline_equals_diffusers() {
    for variant in VARIANTS {
        let (packed, io) = (pack(&fixture(variant), "f32", None), io(variant));
        let model = aquatint::model::Model::new(&packed).unwrap();
        let (latents, dims) = io.get("loop.latents");
        let mut request = Request::new(&model, Prompts::Unconditional(dims[0]));
        (request.steps, request.latents) = (7, Some(latents));
        let (want, _) = io.get("loop.image");
        for tier in Tier::available() {
            let out = {
                let cpu = Cpu::new(tier);
                Session::new(&model, &cpu).run(request.clone())
            }
            .unwrap();
            assert_eq!(out.size, [dims[2], dims[3]]);
            let error = relative(&swap_last_axes(&out.images, [dims[0], dims[2] * dims[3], 3]), &want);
            assert!(error < 1e-3, "{variant} on {}: {error:e}", tier.name());
        }
    }
}

/// Pictures are of the kind that diffusers' numpy_to_pil makes.
#[test]
fn pixels_of_one_and_four_channels_are_grey_and_rgba() {
    for (variant, channels) in [("grey", 1), ("rgba", 4)] {
        let (packed, io) = (pack(&fixture(variant), "f32", None), io(variant));
        let model = aquatint::model::Model::new(&packed).unwrap();
        assert_eq!(model.picture_channels(), channels);
        let (latents, dims) = io.get("loop.latents");
        let mut request = Request::new(&model, Prompts::Unconditional(dims[0]));
        (request.steps, request.latents) = (7, Some(latents));
        let (want, shape) = io.get("loop.bytes");
        let cpu = Cpu::new(Tier::available()[0]);
        let out = Session::new(&model, &cpu).run(request).unwrap();
        assert_eq!((out.size.to_vec(), out.channels), (shape[1..3].to_vec(), shape[3]));
        let [h, w] = out.size.map(|n| n as u32);
        let pictures = aquatint::image::from_nhwc(&out.images, dims[0], h, w, channels).unwrap();
        let bytes: Vec<f32> = pictures.iter().flat_map(|p| p.bytes()).map(|&b| f32::from(b)).collect();
        assert_eq!(bytes.len(), want.len());
        // What lies between two bytes may be rounded either way.
        assert!(bytes.iter().zip(&want).all(|(a, b)| (a - b).abs() <= 1.0), "{variant}");
    }
}

/// 8-bit rounding errs by about 0.5 % a layer and 4-bit k-means by about 9 %; thirty layers with residual paths around
/// them stay within a few times that, and a wrong scale or code does not.
#[test]
fn quantized_networks_stay_near() {
    for (config, most) in [("w8a8", 0.05), ("w4a8:kmeans", 0.25)] {
        for variant in VARIANTS {
            let (packed, io) = (pack(&fixture(variant), config, None), io(variant));
            let model = aquatint::model::Model::new(&packed).unwrap();
            let (sample, size, n, t, want) = case(&io, "b2_t500");
            let tier = Tier::available()[0];
            let labels = vec![0; n];
            let (out, _) = {
                let cpu = Cpu::new(tier);
                Session::new(&model, &cpu).eval(&sample, size, Prompts::Unconditional(labels.len()), t)
            }
            .unwrap();
            let error = relative(&out, &want);
            println!("{variant} {config}: {error:.3}");
            assert!(error > 1e-4 && error < most, "{variant} {config}: {error}");
        }
    }
}

#[test]
fn guidance_needs_conditions() {
    let packed = pack(&fixture("asym"), "f16", None);
    let model = aquatint::model::Model::new(&packed).unwrap();
    let mut request = Request::new(&model, Prompts::Unconditional(1));
    request.guidance_scale = 4.0;
    let tier = Tier::available()[0];
    let e = {
        let cpu = Cpu::new(tier);
        Session::new(&model, &cpu).run(request.clone())
    }
    .unwrap_err();
    assert_eq!(e.to_string(), "guidance scale: expected 1 for a model without conditions, got 4");
}
