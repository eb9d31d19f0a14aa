//! Whole models against diffusers: tiny DiT pipelines packed from genuine directories, their denoiser, its depths, the
//! decoder and guided loops compared with what diffusers computed in f64 (`tests/fixtures/make_fixtures.py`).

use aquatint::pipeline::{Prompts, Request, Session, swap_last_axes};
use aquatint::raw::backend::cpu::{Cpu, Tier};
use aquatint::raw::exec::Executor;
use aquatint::raw::format::Packed;
use aquatint::raw::plan::Binding;
use aquatint::raw::program::{Dims, Role};
use aquatint::sampler::SamplerKind;
use common::fixture::{Fixture, pack, relative};
use std::path::{Path, PathBuf};

/// Blocks of the last have embedders of their own, some of them equal.
const VARIANTS: [&str; 4] = ["d2", "d3odd", "d1p1", "d4own"];

fn fixture(variant: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/dit").join(variant)
}

fn packed(variant: &str, config: &str, vae: &str) -> Packed<aquatint::raw::mmap::FileBytes> {
    pack(&fixture(variant), config, Some(vae))
}

/// A file of a fixture.
fn file(variant: &str, name: &str) -> Fixture {
    Fixture::open(&fixture(variant).join(name))
}

fn eval(packed: &Packed<aquatint::raw::mmap::FileBytes>, io: &Fixture, case: &str, tier: Tier) -> f64 {
    let (sample, dims) = io.get(&format!("{case}.sample"));
    let labels = io.labels(&format!("{case}.class_labels"));
    let t = io.get(&format!("{case}.timestep")).0[0];
    let model = aquatint::model::Model::new(packed).expect("a model");
    let (out, _) = {
        let cpu = Cpu::new(tier);
        Session::new(&model, &cpu).eval(&sample, [dims[2], dims[3]], Prompts::Classes(labels.clone()), t)
    }
    .expect("it runs");
    relative(&out, &io.get(&format!("{case}.out")).0)
}

fn cases() -> impl Iterator<Item = String> {
    let batches = [1, 2, 3].into_iter().flat_map(|b| [0, 1, 500, 999].map(|t| format!("b{b}_t{t}")));
    batches.chain(["other".into()])
}

#[test]
fn the_f32_denoiser_equals_diffusers() {
    for variant in VARIANTS {
        let (packed, io) = (packed(variant, "f32", "f32"), file(variant, "io.safetensors"));
        for case in cases() {
            for tier in Tier::available() {
                let error = eval(&packed, &io, &case, tier);
                assert!(error < 1e-5, "{variant} {case} on {}: {error:e}", tier.name());
            }
        }
    }
}

#[test]
fn the_f16_denoiser_is_within_rounding_of_its_weights() {
    for variant in VARIANTS {
        let (packed, io) = (packed(variant, "f16", "f16"), file(variant, "io.safetensors"));
        for case in cases() {
            let error = eval(&packed, &io, &case, Tier::available()[0]);
            assert!(error < 2e-3, "{variant} {case}: {error:e}");
        }
    }
}

#[test]
fn every_depth_of_the_denoiser_equals_diffusers() {
    for variant in VARIANTS {
        let (packed, io) = (packed(variant, "f32", "f32"), file(variant, "io.safetensors"));
        let (sample, dims) = io.get("b2_t500.sample");
        let [n, channels, height, width] = dims[..] else { panic!("{dims:?}") };
        // The program, cut short after each block: the output becomes an inner node.
        let ends: Vec<String> = (0..)
            .map(|i| format!("transformer_blocks.{i}.ff.net.2"))
            .take_while(|p| packed.program(Role::Denoiser).unwrap().nodes.iter().any(|n| n.path == *p))
            .collect();
        assert!(!ends.is_empty(), "block ends are found by path");
        let cpu = Cpu::new(aquatint::raw::backend::cpu::simd::scalar::Scalar);
        let dims = Dims { batch: n, conditions: n, height, width, tokens: 1, ..Dims::ONE };
        let shape = Binding { dims, calls: 1, table_bytes: 0, reserve: 0 };
        let mut executor = Executor::new(&cpu, &packed, Role::Denoiser, shape).expect("it binds");
        executor.set_class_labels(&io.labels("b2_t500.class_labels")).expect("labels");
        executor.set_timesteps([500.0].into_iter()).expect("timesteps");
        executor.write_sample(&swap_last_axes(&sample, [n, channels, height * width])).unwrap();
        let depths: Vec<(String, &str)> = std::iter::once(("embed".to_owned(), "pos_embed.proj"))
            .chain(ends.iter().enumerate().map(|(i, p)| (format!("hidden.{i}"), p.as_str())))
            .collect();
        // A path may name several nodes; the last of them is the module's result.
        let mut results = std::collections::BTreeMap::new();
        let program = executor.program();
        executor
            .observe(0, |seen| {
                let path = program.nodes[seen.node].path.as_str();
                if depths.iter().any(|(_, end)| *end == path) {
                    results.insert(path, seen.values(&seen.op.result())?);
                }
                Ok(())
            })
            .unwrap();
        for (depth, end) in depths {
            let (want, _) = io.get(&format!("b2_t500.{depth}"));
            let error = relative(&results[end], &want);
            assert!(error < 1e-5, "{variant} {depth}: {error:e}");
        }
    }
}

#[test]
fn the_f32_decoder_equals_diffusers() {
    for variant in VARIANTS {
        let (packed, io) = (packed(variant, "f32", "f32"), file(variant, "io.safetensors"));
        for case in ["vae", "vae_odd"] {
            let (latent, dims) = io.get(&format!("{case}.latent"));
            let [n, channels, height, width] = dims[..] else { panic!("{dims:?}") };
            let shape = Binding {
                dims: Dims { batch: n, conditions: 1, height, width, tokens: 1, ..Dims::ONE },
                calls: 1,
                table_bytes: 0,
                reserve: 0,
            };
            let (want, image) = io.get(&format!("{case}.image"));
            for tier in Tier::available() {
                let got = {
                    let cpu = Cpu::new(tier);
                    let mut executor = Executor::new(&cpu, &packed, Role::VaeDecoder, shape).expect("it binds");
                    executor.write_sample(&swap_last_axes(&latent, [n, channels, height * width])).unwrap();
                    executor.call(0).unwrap();
                    let mut out = vec![0.0; want.len()];
                    executor.read_output(&mut out).unwrap();
                    swap_last_axes(&out, [n, image[2] * image[3], 3])
                };
                let error = relative(&got, &want);
                assert!(error < 1e-5, "{variant} {case} on {}: {error:e}", tier.name());
            }
        }
    }
}

/// The runs of `loop.safetensors`: name, guidance, sampler, steps, changes to the sampler's configuration.
fn loops() -> Vec<(&'static str, f32, SamplerKind, usize, Option<&'static str>)> {
    vec![
        ("g4.ddim10", 4.0, SamplerKind::Ddim, 10, None),
        ("g1.ddim10", 1.0, SamplerKind::Ddim, 10, None),
        ("g4.ddim7_trailing", 4.0, SamplerKind::Ddim, 7, Some("trailing")),
        ("g4.dpm8", 4.0, SamplerKind::DpmSolverPp2M, 8, None),
        ("g1.dpm8", 1.0, SamplerKind::DpmSolverPp2M, 8, None),
        ("g4.dpm15", 4.0, SamplerKind::DpmSolverPp2M, 15, None),
        ("g4.dpm8_linspace", 4.0, SamplerKind::DpmSolverPp2M, 8, Some("linspace")),
    ]
}

fn run_loop(
    packed: &Packed<aquatint::raw::mmap::FileBytes>,
    fixture: &Fixture,
    name: &str,
    change: &dyn Fn(&mut Request),
) -> [f64; 2] {
    let (_, guidance, kind, steps, spacing) = *loops().iter().find(|l| l.0 == name).expect("a run");
    let model = aquatint::model::Model::new(packed).expect("a model");
    let mut request = Request::new(&model, Prompts::Classes(fixture.labels("class_labels")));
    request.latents = Some(fixture.get("init").0);
    request.guidance_scale = guidance;
    request.steps = steps;
    request.sampler = request.sampler.with_kind(kind);
    if let Some(spacing) = spacing {
        request.sampler.spacing = Some(spacing.parse().expect("a spacing"));
    }
    change(&mut request);
    let out = {
        let cpu = Cpu::best();
        Session::new(&model, &cpu).run(request.clone())
    }
    .expect("it runs");
    let (want, dims) = fixture.get(&format!("{name}.image"));
    let images = swap_last_axes(&out.images, [dims[0], dims[2] * dims[3], 3]);
    [relative(&out.latents, &fixture.get(&format!("{name}.latents")).0), relative(&images, &want)]
}

#[test]
fn guided_f32_loops_equal_diffusers() {
    for variant in VARIANTS {
        let (packed, fixture) = (packed(variant, "f32", "f32"), file(variant, "loop.safetensors"));
        for (name, ..) in loops() {
            let [latents, image] = run_loop(&packed, &fixture, name, &|_| ());
            assert!(latents < 1e-4 && image < 1e-4, "{variant} {name}: latents {latents:e}, image {image:e}");
        }
    }
}

#[test]
fn a_batch_gives_what_its_images_give_alone() {
    let (packed, fixture) = (packed("d2", "w4a8", "w8a8"), file("d2", "loop.safetensors"));
    let model = aquatint::model::Model::new(&packed).expect("a model");
    let labels = [3, 1, 3, 7, 0];
    let run = |labels: &[u32], seed: u64, batch_size: usize, table_bytes: usize, threads: usize| {
        let mut request = Request::new(&model, Prompts::Classes(labels.to_vec()));
        (request.seed, request.batch_size, request.table_bytes, request.steps) = (seed, batch_size, table_bytes, 6);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
        let out = pool.install(|| {
            let cpu = Cpu::best();
            Session::new(&model, &cpu).run(request.clone())
        });
        let out = out.expect("it runs");
        (out.latents, out.images)
    };
    let all = run(&labels, 5, 5, 1 << 20, 1);
    assert_eq!(all, run(&labels, 5, 5, 1 << 20, 2), "threads");
    assert_eq!(all, run(&labels, 5, 2, 1 << 20, 2), "batch size");
    assert_eq!(all, run(&labels, 5, 5, 0, 2), "window of the tables");
    for (k, &label) in labels.iter().enumerate() {
        let alone = run(&[label], 5 + k as u64, 1, 1 << 20, 2);
        let (l, i) = (alone.0.len(), alone.1.len());
        assert_eq!(alone.0, all.0[k * l..(k + 1) * l], "latents of image {k}");
        assert_eq!(alone.1, all.1[k * i..(k + 1) * i], "image {k}");
    }
    drop(fixture);
}
