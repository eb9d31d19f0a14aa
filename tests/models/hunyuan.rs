//! Hunyuan-DiT against diffusers (`tests/fixtures/make_hunyuan.py`): version 1.2 from a directory and 1.1 from its authors'
//! layout, single calls of odd sizes, and guided runs from given features; and a whole pipeline from prompts to pictures, with
//! BERT, mT5 and both tokenizers (`tests/fixtures/make_hunyuan_texts.py`).

use aquatint::model::Model;
use aquatint::options::Tensors;
use aquatint::pipeline::{NoiseSource, Prompts, Request, Session, Texts, swap_last_axes};
use aquatint::raw::backend::cpu::{Cpu, Tier};
use aquatint::raw::exec::{Executor, PromptInputs};
use aquatint::raw::format::Packed;
use aquatint::raw::format::meta::TextLength;
use aquatint::raw::mmap::FileBytes;
use aquatint::raw::plan::Binding;
use aquatint::raw::program::{Dims, Rate, Role};
use aquatint::raw::text::{PromptStyle, Tokenizer, encode};
use aquatint::sampler::SamplerKind;
use common::fixture::{Fixture, pack_as, relative};
use packer::emit::Options;
use packer::source::donors::Donors;
use safetensors::tensor::{Dtype, TensorView};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const VERSIONS: [&str; 2] = ["v11", "v12"];
/// Tokens of the first text.
const TOKENS: usize = 5;
const CASES: [&str; 4] = ["square", "wide", "tall", "row"];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/transformers").join(name)
}

fn io() -> Fixture {
    Fixture::open(&fixture("hunyuan.safetensors"))
}

fn packed(version: &str, config: &str) -> Packed<FileBytes> {
    let of_file = Donors { autoencoder: Some(fixture("hunyuan/vae")), ..Donors::default() };
    let (model, donors) = match version {
        "v11" => (fixture("hunyuan.pt"), of_file),
        _ => (fixture("hunyuan"), Donors::default()),
    };
    let precision = Some(config.to_owned());
    pack_as(Options { model, donors, q_config: precision.clone(), vae_q_config: precision, ..Options::default() })
}

/// What one call of the denoiser is given.
struct Feed {
    sample: Vec<f32>,
    /// Axes of the sample, `(n, c, h, w)`.
    dims: [usize; 4],
    timestep: f32,
    contexts: [Vec<f32>; 2],
    lengths: [Vec<u32>; 2],
    sizes: Option<Vec<f32>>,
}

impl Feed {
    fn new(io: &Fixture, case: &str) -> Self {
        let get = |key: &str| io.get(&format!("{case}.{key}"));
        let (sample, dims) = get("sample");
        Feed {
            sample,
            dims: dims.try_into().expect("four axes"),
            timestep: get("timestep").0[0],
            contexts: ["context", "context_2"].map(|key| get(key).0),
            lengths: ["lengths", "lengths_2"].map(|key| io.labels(&format!("{case}.{key}"))),
            sizes: io.find(&format!("{case}.sizes")).map(|sizes| sizes.0),
        }
    }

    /// What the denoiser makes of it, `(n, c, h, w)`.
    fn run(&self, packed: &Packed<FileBytes>, tier: Tier) -> Vec<f32> {
        let [n, channels, height, width] = self.dims;
        let shape = Binding {
            dims: Dims { batch: n, conditions: n, height, width, tokens: TOKENS, ..Dims::ONE },
            calls: 1,
            table_bytes: 0,
            reserve: 0,
        };
        let cpu = Cpu::new(tier);
        let mut executor = Executor::new(&cpu, packed, Role::Denoiser, shape).expect("it binds");
        let prompt = PromptInputs {
            context: Some(&self.contexts[0]),
            context_2: Some(&self.contexts[1]),
            lengths: Some(&self.lengths[0]),
            lengths_2: Some(&self.lengths[1]),
            sizes: self.sizes.as_deref(),
            ..PromptInputs::default()
        };
        executor.set_prompt(&prompt).expect("a prompt");
        executor.set_timesteps([self.timestep].into_iter()).expect("a timestep");
        executor.write_sample(&swap_last_axes(&self.sample, [n, channels, height * width])).expect("a sample");
        executor.call(0).expect("it runs");
        let out = executor.plan().output;
        let mut result = vec![0.0; out.rows * out.cols];
        executor.read_output(&mut result).expect("a result");
        swap_last_axes(&result, [n, height * width, out.cols])
    }
}

#[test]
fn denoisers_of_both_versions_equal_diffusers() {
    let io = io();
    for version in VERSIONS {
        let packed = packed(version, "f32");
        for case in CASES.map(|case| format!("{version}.{case}")) {
            for tier in Tier::available() {
                let error = relative(&Feed::new(&io, &case).run(&packed, tier), &io.get(&format!("{case}.out")).0);
                println!("{case} on {}: {error:.1e}", tier.name());
                assert!(error < 1e-5, "{case} on {}: {error:e}", tier.name());
            }
        }
    }
}

/// The comparison could fail: all that a prompt gives reaches the result, padding of the second text too, as the vector of it is
/// made of all its tokens; but no padding of the first does, for which rows are learned.
#[test]
fn all_of_a_prompt_matters_but_padding_of_the_first_text() {
    let io = io();
    let packed = packed("v11", "f32");
    let run = |edit: &dyn Fn(&mut Feed)| {
        let mut feed = Feed::new(&io, "v11.square");
        edit(&mut feed);
        feed.run(&packed, Tier::best())
    };
    let whole = run(&|_| ());
    let last = |feed: &mut Feed, text: usize| *feed.contexts[text].last_mut().expect("features") += 30.0;
    assert_eq!(whole, run(&|feed| last(feed, 0)), "the first text's padding");
    type Edit<'a> = (&'a str, &'a dyn Fn(&mut Feed));
    let edits: [Edit<'_>; 6] = [
        ("the second text's padding", &|feed| last(feed, 1)),
        ("a token of the first text", &|feed| feed.contexts[0][0] += 1.0),
        ("a token of the second text", &|feed| feed.contexts[1][0] += 1.0),
        ("length of the first text", &|feed| feed.lengths[0][0] -= 1),
        ("length of the second text", &|feed| feed.lengths[1][0] += 1),
        ("a size", &|feed| feed.sizes.as_mut().expect("sizes")[5] += 64.0),
    ];
    for (what, edit) in edits {
        let apart = relative(&run(edit), &whole);
        println!("{what}: {apart:.1e}");
        assert!(apart > 1e-4, "{what}: {apart:e}");
    }
}

#[test]
fn what_follows_from_prompt_and_timestep_is_worked_out_before_the_loop() {
    let packed = packed("v12", "f32");
    let program = packed.program(Role::Denoiser).expect("a denoiser");
    let rates = aquatint::raw::hoist::rates(program);
    let mut seen = [0; 2];
    for (i, node) in program.nodes.iter().enumerate() {
        let in_loop = rates[program.value_of(i).0 as usize] == Rate::Loop;
        let text = ["to_k", "to_v", "norm_k"].iter().any(|name| node.path.ends_with(&format!("attn2.{name}")));
        let before = text
            || ["norm1.linear", "norm_out.linear", "image_rotary_emb"].iter().any(|end| node.path.ends_with(end))
            || ["text_embed", "time_extra_emb"].iter().any(|start| node.path.starts_with(start));
        let of_images = ["to_q", "attn1.to_k", "norm_q", "rotary", "skip_linear", "ff.net.2", "proj_out"];
        let within = of_images.iter().any(|end| node.path.ends_with(end));
        assert!(!before || !in_loop, "{} is in the loop", node.path);
        assert!(!within || in_loop, "{} is before the loop", node.path);
        seen[usize::from(in_loop)] += usize::from(before || within);
    }
    println!("{seen:?} nodes before the loop and in it");
    assert!(seen[0] > 40 && seen[1] > 40, "{seen:?}");
}

/// What `--inputs` would hold for a run of the fixture: the features of both encoders and their masks, `shorter` tokens less of each.
fn inputs(io: &Fixture, run: &str, shorter: usize) -> Tensors {
    let mut names = Vec::new();
    for side in ["", "negative_"] {
        for end in ["", "_2"] {
            names.extend(["prompt_embeds", "prompt_mask"].map(|name| format!("{side}{name}{end}")));
        }
    }
    let data: Vec<(String, Vec<usize>, Vec<u8>)> = names
        .into_iter()
        .map(|name| {
            let (values, mut dims) = io.get(&format!("{run}.{name}"));
            let (tokens, width) = (dims[1], dims.get(2).copied().unwrap_or(1));
            dims[1] -= shorter;
            let rows = values.chunks_exact(tokens * width).flat_map(|row| &row[..dims[1] * width]);
            let values: Vec<f32> = rows.copied().collect();
            (name, dims, values.iter().flat_map(|v| v.to_le_bytes()).collect())
        })
        .collect();
    let views =
        data.iter().map(|(name, dims, bytes)| (name, TensorView::new(Dtype::F32, dims.clone(), bytes).unwrap()));
    let bytes = safetensors::serialize(views, None).expect("tensors");
    Tensors::new("inputs", &bytes).expect("names that are known")
}

#[test]
fn guided_runs_from_given_features_equal_diffusers() {
    let io = io();
    for version in VERSIONS {
        let packed = packed(version, "f32");
        let model = Model::new(&packed).expect("a model");
        for run in ["square", "wide"].map(|name| format!("{version}.loop.{name}")) {
            let (init, dims) = io.get(&format!("{run}.init"));
            let prompts = inputs(&io, &run, 0).prompts(&model, true).expect("prompts").expect("some");
            let mut request = Request::new(&model, prompts);
            assert_eq!((request.steps, request.guidance_scale), (50, 5.0));
            (request.latents, request.steps, request.latent_size) = (Some(init), 5, [dims[2], dims[3]]);
            request.sampler = request.sampler.with_kind(SamplerKind::Ddim);
            let cpu = Cpu::best();
            let latents = Session::new(&model, &cpu).job(request).expect("a job").denoise(|_, _| ()).expect("it runs");
            let latents = swap_last_axes(&latents, [dims[0], dims[2] * dims[3], dims[1]]);
            let error = relative(&latents, &io.get(&format!("{run}.latents")).0);
            println!("{run}: {error:.1e}");
            assert!(error < 1e-3, "{run}: {error:e}");
        }
    }
}

/// A directory with both text encoders and their tokenizers.
fn whole() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/hunyuan")
}

fn pack_whole() -> Packed<FileBytes> {
    let precision = Some("f32".to_owned());
    pack_as(Options {
        model: whole(),
        q_config: precision.clone(),
        text_q_config: precision.clone(),
        vae_q_config: precision,
        ..Options::default()
    })
}

/// The texts of the fixture's encoders, in its order.
const TEXTS: [&str; 4] = ["a red cat on the low sky", "雾 山水画", "Foggy, a dog in the RIVER", ""];

#[test]
fn both_encoders_read_texts_as_transformers_does() {
    let (packed, io) = (pack_whole(), Fixture::open(&whole().join("io.safetensors")));
    let model = Model::new(&packed).expect("a model");
    let encoders = &model.text.as_ref().expect("texts").encoders;
    assert!(encoders.iter().all(|encoder| encoder.length == TextLength::Masked));
    for tier in Tier::available() {
        let cpu = Cpu::new(tier);
        let texts = TEXTS.map(str::to_owned).to_vec();
        let texts = Texts { prompts: texts, style: PromptStyle::Plain, ..Texts::default() };
        let (embeddings, cut) = Session::new(&model, &cpu).encode(&texts, false).expect("they run");
        assert!(cut.is_empty());
        for (i, name) in ["bert", "mt5"].into_iter().enumerate() {
            let (tokens, (want, dims)) = (io.labels(&format!("{name}.tokens")), io.get(&format!("{name}.out")));
            let (lengths, rows) = (io.labels(&format!("{name}.lengths")), dims[1]);
            let tokenizer = Tokenizer::new(encoders[i].tokenizer.expect("a tokenizer")).expect("it is read");
            for (text, prompt) in TEXTS.into_iter().enumerate() {
                let what = format!("{name}, {text:?} on {}", tier.name());
                let ids = encode(&tokenizer, encoders[i].special, TEXTS[text], PromptStyle::Plain).expect("tokens").ids;
                assert_eq!(ids, tokens[text * rows..(text + 1) * rows], "{what}");
                let features = &embeddings.prompts[embeddings.of_image[text][0]].encoders[i];
                assert_eq!((features.tokens, features.length), (rows, lengths[text] as usize), "{what}");
                let error = relative(&features.features, &want[text * rows * dims[2]..][..rows * dims[2]]);
                println!("{what} {prompt:?}: {error:.1e}");
                assert!(error < 1e-5, "{what}: {error:e}");
            }
        }
    }
}

/// A run of the fixture's pipeline.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Run {
    prompts: Vec<String>,
    negative: String,
    sampler: String,
    seed: u64,
    guidance: f32,
    steps: usize,
}

/// Prompts in, pictures out: ancestral steps by the saved scheduler, and DDIM led away from a text, with torch's noise.
#[test]
fn prompts_become_the_pictures_of_diffusers() {
    let packed = pack_whole();
    let model = Model::new(&packed).expect("a model");
    let json = std::fs::read(whole().join("runs.json")).expect("runs");
    let runs: BTreeMap<String, Run> = serde_json::from_slice(&json).expect("runs");
    let tensors = Fixture::open(&whole().join("runs.safetensors"));
    assert_eq!(runs.len(), 2);
    for (name, run) in &runs {
        let get = |what: &str| tensors.get(&format!("{name}.{what}"));
        let ((latents, dims), (image, picture)) = (get("latents"), get("image"));
        let negatives = Some(run.negative.clone()).filter(|text| !text.is_empty()).map(Some);
        let prompts = Prompts::Texts(Texts {
            prompts: run.prompts.clone(),
            negatives: negatives.into_iter().collect(),
            style: PromptStyle::Plain,
        });
        let mut request = Request::new(&model, prompts);
        (request.steps, request.guidance_scale) = (run.steps, run.guidance);
        (request.seed, request.noise, request.latent_size) = (run.seed, NoiseSource::Torch, [dims[2], dims[3]]);
        let kind: SamplerKind = if run.sampler == "ddim" { SamplerKind::Ddim } else { request.sampler.kind };
        assert_eq!(kind.name(), run.sampler);
        request.sampler = request.sampler.with_kind(kind);
        for tier in Tier::available() {
            let cpu = Cpu::new(tier);
            let made = Session::new(&model, &cpu).run(request.clone()).expect("it runs");
            let image = swap_last_axes(&image, [picture[0], picture[1], picture[2] * picture[3]]);
            for (what, got, want) in [("latents", &made.latents, &latents), ("image", &made.images, &image)] {
                let error = relative(got, want);
                println!("{name} {what} on {}: {error:.1e}", tier.name());
                assert!(error < 1e-3, "{name} {what} on {}: {error:e}", tier.name());
            }
        }
    }
}

/// Features of fewer tokens than the model's texts are filled up to.
#[test]
fn features_of_another_length_are_refused() {
    let packed = packed("v12", "f32");
    let model = Model::new(&packed).expect("a model");
    let prompts = inputs(&io(), "v12.loop.square", 1).prompts(&model, true).expect("prompts").expect("some");
    let cpu = Cpu::best();
    let error = Session::new(&model, &cpu).plans(&Request::new(&model, prompts)).expect_err("too few").to_string();
    assert_eq!(error, "tokens of a prompt: expected 5, with padding, got 4");
}
