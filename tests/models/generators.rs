//! Jobs of several shards with torch's noise against diffusers' pipelines with a list of generators, one for each image
//! (`fixtures/make_generators.py`).

use super::pipelines::pack;
use aquatint::Model;
use aquatint::image::{Image, Picture, write_png};
use aquatint::options::{InitOptions, PromptOptions, RequestOptions, SamplingOptions, SizeOptions};
use aquatint::pipeline::{NoiseSource, Session};
use aquatint::raw::backend::cpu::{Cpu, Tier};
use aquatint::samples::{Kept, Merge, SampleJob, SampleOptions, Tensor, make};
use aquatint::shard::Shard;
use common::fixture::{Fixture, relative};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Run {
    prompts: Vec<String>,
    guidance: f32,
    steps: usize,
    seed: u64,
    strength: Option<f64>,
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// An empty folder.
fn folder(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("generators").join(name);
    let _ = fs::remove_dir_all(&path);
    fs::create_dir_all(&path).unwrap();
    path
}

/// What diffusers made, `(n, c, h, w)` of pictures as `(n, h, w, c)`.
fn channels_last(values: &[f32], [n, c, h, w]: [usize; 4]) -> Vec<f32> {
    aquatint::pipeline::swap_last_axes(values, [n, c, h * w])
}

fn options(run: &str, settings: &Run, picture: Option<Picture>) -> SampleOptions {
    let request = RequestOptions {
        prompts: PromptOptions { prompts: settings.prompts.clone(), plain: true, ..PromptOptions::default() },
        sampling: SamplingOptions {
            steps: Some(settings.steps),
            cfg_scale: Some(settings.guidance),
            sampler: (run == "ancestral").then(|| "euler-a".into()),
            ..SamplingOptions::default()
        },
        size: SizeOptions { width: Some(40), height: Some(24), ..SizeOptions::default() },
        init: picture.map(|image| InitOptions { image, mask: None, resize: None, strength: settings.strength }),
        seed: Some(settings.seed),
        noise: Some(NoiseSource::Torch),
        batch_size: Some(2),
        ..RequestOptions::default()
    };
    SampleOptions { request, images: None, kept: Kept::Both }
}

/// The bounds are those of `pipelines.rs`, whose runs have the same noise from one generator; bytes are off by half a step more.
#[test]
fn a_generator_for_each_image_makes_the_pictures_of_diffusers() {
    let runs: BTreeMap<String, Run> = serde_json::from_slice(&fs::read(fixture("generators.json")).unwrap()).unwrap();
    let tensors = Fixture::open(&fixture("generators.safetensors"));
    let packed = pack("v1", None);
    let model = Model::new(&packed).unwrap();
    for (run, settings) in &runs {
        let folder = folder(run);
        let picture = tensors.find(&format!("{run}.picture")).map(|(values, dims)| {
            let values = channels_last(&values, dims[..].try_into().unwrap());
            let bytes = values.iter().map(|v| (v * 255.0).round() as u8).collect();
            let path = folder.join("picture.png");
            write_png(&path, &Image::new(dims[3] as u32, dims[2] as u32, 3, bytes), &[]).unwrap();
            Picture::read(&path).unwrap()
        });
        let cpu = Cpu::new(Tier::available()[0]);
        let mut session = Session::new(&model, &cpu);
        let job = SampleJob::new(&session, &options(run, settings, picture), None, "v1").unwrap();
        for index in [1, 0] {
            make(&mut session, &job, Shard { index, of: 2 }, &folder, &mut |_| ()).unwrap();
        }
        let merge = Merge::open(&folder, false).unwrap();
        let (mut latents, mut pictures) = (Vec::new(), Vec::new());
        for file in merge.files() {
            let file = file.unwrap();
            let (four, _) = file.bytes(Tensor::Latents).as_chunks::<4>();
            latents.extend(four.iter().map(|&bytes| f32::from_le_bytes(bytes)));
            pictures.extend(file.bytes(Tensor::Images).iter().map(|&byte| f32::from(byte) / 255.0));
        }
        let latents = relative(&latents, &tensors.get(&format!("{run}.latents")).0);
        assert!(latents < 1e-3, "{run}: {latents:e}");
        let (image, dims) = tensors.get(&format!("{run}.image"));
        let want = channels_last(&image, dims[..].try_into().unwrap());
        let far = pictures.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(far < 0.5 / 255.0 + 1e-3, "{run}: {far}");
    }
}
