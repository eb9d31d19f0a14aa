//! What tests of networks that make videos have in common.

use aquatint::Model;
use aquatint::pipeline::{
    Embeddings, EncoderFeatures, NoiseSource, PromptFeatures, Prompts, Request, Session, swap_last_axes,
};
use aquatint::raw::backend::Backend;
use aquatint::raw::backend::cpu::{Cpu, Tier};
use aquatint::raw::exec::{Executor, PromptInputs};
use aquatint::raw::format::Packed;
use aquatint::raw::mmap::FileBytes;
use aquatint::raw::plan::Binding;
use aquatint::raw::program::{Dims, Role};
use common::fixture::{Fixture, relative};

/// `(n, c, f, h, w)` as `(n, f, h, w, c)`.
pub fn channels_last((values, dims): (Vec<f32>, Vec<usize>)) -> Vec<f32> {
    swap_last_axes(&values, [dims[0], dims[1], dims[2..].iter().product()])
}

pub fn near(got: &[f32], want: &[f32], most: f64, what: &str) {
    let error = relative(got, want);
    println!("{what}: {error:.1e}");
    assert!(error < most, "{what}: {error:e}");
}

/// One call of the denoiser on what tensors `case.*` of `io` are.
pub fn denoise<B: Backend>(backend: &B, packed: &Packed<FileBytes>, io: &Fixture, case: &str) -> Vec<f32> {
    let get = |name: &str| io.get(&format!("{case}.{name}"));
    let (sample, context) = (get("sample"), get("context"));
    let [_, _, frames, height, width] = sample.1[..] else { panic!("five axes") };
    let (n, tokens) = (context.1[0], context.1[1]);
    let lengths: Vec<u32> = get("lengths").0.iter().map(|&n| n as u32).collect();
    let dims = Dims { batch: n, conditions: n, height, width, tokens, frames };
    let shape = Binding { dims, calls: 1, table_bytes: 0, reserve: 0 };
    let mut executor = Executor::new(backend, packed, Role::Denoiser, shape).unwrap();
    let prompt = PromptInputs { context: Some(&context.0), lengths: Some(&lengths), ..PromptInputs::default() };
    executor.set_prompt(&prompt).unwrap();
    executor.set_timesteps(get("timestep").0.into_iter().take(1)).unwrap();
    executor.write_sample(&channels_last(sample)).unwrap();
    executor.call(0).unwrap();
    let mut out = vec![0.0; executor.plan().output_type.len()];
    executor.read_output(&mut out).unwrap();
    out
}

/// Features `(1, tokens, d)` of a prompt and of what guidance leads away from.
pub struct Fixed {
    pub prompt: (Vec<f32>, Vec<usize>),
    pub negative: (Vec<f32>, Vec<usize>),
}

/// Makes the video of `run` on every tier, in `steps` steps of the model's own sampler: `noise` in, which torch draws of `seed`
/// if there is one, `latents` out, and `image` if it is there.
pub fn pipeline(packed: &Packed<FileBytes>, fixed: Fixed, run: &Fixture, seed: Option<u64>, steps: usize) {
    let model = Model::new(packed).unwrap();
    let features = |(features, dims): (Vec<f32>, Vec<usize>)| PromptFeatures {
        encoders: vec![EncoderFeatures { tokens: dims[1], length: dims[1], features, pooled: Vec::new() }],
    };
    let prompts = vec![features(fixed.prompt), features(fixed.negative)];
    let prompts = Prompts::Embeddings(Embeddings { prompts, of_image: vec![[0, 1]] });
    let (noise, want) = (run.get("noise"), run.get("latents"));
    for tier in Tier::available() {
        let cpu = Cpu::new(tier);
        let mut request = Request::new(&model, prompts.clone());
        (request.steps, request.noise) = (steps, NoiseSource::Torch);
        (request.frames, request.latent_size) = (noise.1[2], [noise.1[3], noise.1[4]]);
        match seed {
            Some(seed) => request.seed = seed,
            None => request.latents = Some(noise.0.clone()),
        }
        let output = Session::new(&model, &cpu).run(request).unwrap();
        assert_eq!(output.frames, noise.1[2]);
        near(&output.latents, &want.0, 1e-3, &format!("latents on {}", tier.name()));
        if let Some(image) = run.find("image") {
            near(&output.images, &channels_last(image), 1e-3, &format!("frames on {}", tier.name()));
        }
    }
}
