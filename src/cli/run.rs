//! `aquatint run`.

use super::ask::{self, Ask, Wishes};
use super::begin::Begin;
use super::device::with_backend;
use super::sampling::Sampling;
use super::tensors::{Inputs, Named, write};
use super::{Device, Size, model, say, say_json};
use aquatint::format::meta::PipelineMeta;
use aquatint::image::{self, Recipe, from_nhwc, grid, numbered, write_png};
use aquatint::pipeline::{Event, NoiseSource, Output, Pipeline, Plans, Request, permute};
use aquatint::plan::Plan;
use aquatint::whole_file::check_target;
use aquatint::{Error, Result};
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::Instant;

#[derive(Clone, Copy, ValueEnum)]
enum Rng {
    /// One stream per image: image k is the same alone or in a batch
    Fast,
    /// torch's CPU generator, as diffusers' pipelines use it
    Torch,
}

/// Make images and write them as PNG.
#[derive(Args)]
pub struct Run {
    /// A packed model [default: the small model of letters inside this program]
    model: Option<PathBuf>,
    #[command(flatten)]
    wishes: Wishes,
    /// Sampler steps [default: the model's]
    #[arg(short, long, alias = "num-inference-steps", value_name = "N")]
    steps: Option<usize>,
    /// Guidance scale; 1 or less turns guidance off [default: the model's]
    #[arg(short = 'g', long, alias = "guidance-scale", value_name = "SCALE")]
    cfg_scale: Option<f32>,
    #[command(flatten)]
    sampling: Sampling,
    /// Seed; image k has its own noise from seed + k
    #[arg(long, default_value_t = 42, value_name = "K")]
    seed: u64,
    /// Where the noise comes from
    #[arg(long, value_enum, default_value = "fast")]
    rng: Rng,
    #[command(flatten)]
    size: Size,
    #[command(flatten)]
    begin: Begin,
    /// Images per pass through the network [default: all, at most 8]
    #[arg(short, long, value_name = "N")]
    batch_size: Option<usize>,
    /// Most memory beside the weights, such as 2G or 800M: batches get smaller and images are decoded in tiles [default:
    /// as much as whole batches need, and 1.5G for decoding]
    #[arg(long, value_name = "BYTES", value_parser = super::parse_bytes)]
    max_memory: Option<usize>,
    /// Decode tiles of N x N latents
    #[arg(long, value_name = "N")]
    vae_tile: Option<usize>,
    /// Output; with %d or %03d one file per image, otherwise all images in one sheet
    #[arg(short, long, alias = "outdir", default_value = "out.png", value_name = "PNG")]
    output: String,
    /// Replace what would be computed: safetensors with latents [n,c,h,w], class_labels [n],
    /// prompt_embeds [n,tokens,features], pooled [n,features], and negative_ ones
    #[arg(long, value_name = "FILE")]
    inputs: Option<PathBuf>,
    /// Also write safetensors with latents [n,c,h,w], image [n,3,h,w] in 0..1, class_labels or prompt_embeds
    #[arg(long, value_name = "FILE")]
    outputs: Option<PathBuf>,
    /// Print what was done as JSON
    #[arg(long)]
    json: bool,
    /// Print nothing but errors
    #[arg(short, long)]
    quiet: bool,
    /// Print the plan before running
    #[arg(short, long)]
    verbose: bool,
    #[command(flatten)]
    device: Device,
}

impl Run {
    /// Runs the command.
    pub fn run(&self) -> Result<()> {
        let begin = Instant::now();
        let choice = self.device.choice()?;
        let packed = model::open(self.model.as_deref())?;
        let pipeline = Pipeline::new(&packed)?;
        let meta = &packed.meta().pipeline;
        let (ask, latents) = self.ask(&pipeline)?;
        let n = ask.len();
        let subjects = ask.ready().cloned().unwrap_or_else(|| pipeline.blank(n));
        let mut request = self.settings(pipeline.request(subjects), latents, meta)?;
        self.check_outputs(n)?;
        let hash = format!("{:032x}", packed.hash());

        let bar = self.bar();
        let mut steps = Clock::default();
        let output = self.device.install(|| {
            with_backend!(choice, packed, backend => {
                if let Some(texts) = ask.texts() {
                    // What is wrong with the rest is told before anything is computed.
                    pipeline.plans(&backend, &request)?;
                    let (subjects, cuts) = pipeline.encode(&mut backend, &texts)?;
                    cuts.iter().for_each(|cut| self.warn(cut));
                    request.subjects = subjects;
                }
                if self.verbose && !self.quiet && !self.json {
                    let plans = pipeline.plans(&backend, &request)?;
                    bar.suspend(|| {
                        use aquatint::backend::Backend;
                        say(format_args!("{}, {}", backend.name(), told(&plans)));
                    });
                }
                pipeline.run(&mut backend, &request, &mut |event| steps.see(event, &bar))
            })
        })??;
        bar.finish_and_clear();
        let files = self.write(&ask, &request, &output, meta, &hash)?;
        let seconds = begin.elapsed().as_secs_f64();
        if self.json {
            say_json(&json!({
                "files": files,
                "images": n,
                "class_labels": request.subjects.classes(),
                "prompts": (0..n).map(|i| ask.told(i, meta)[0].clone()).collect::<Vec<_>>(),
                "seed": request.seed,
                "steps": request.steps,
                "sampler": request.sampler.kind.name(),
                "cfg_scale": request.guidance_scale,
                "size": output.size,
                "model_hash": hash,
                "step_seconds": steps.mean(),
                "decode_seconds": steps.decode,
                "seconds": seconds,
            }));
        } else if !self.quiet {
            say(format_args!(
                "{n} image{}, {} steps of {:.1} ms, {seconds:.2} s in all: {}",
                if n == 1 { "" } else { "s" },
                request.steps,
                steps.mean() * 1e3,
                shown(&files),
            ));
        }
        Ok(())
    }

    /// What is asked for, and the latents to start from.
    fn ask<D: AsRef<[u8]>>(&self, pipeline: &Pipeline<'_, D>) -> Result<(Ask, Option<Latents>)> {
        let Some(path) = &self.inputs else { return Ok((self.wishes.ask(pipeline, None, true)?, None)) };
        let mut inputs = Inputs::read(path, &[&["latents"][..], &ask::NAMES].concat())?;
        let latents = inputs.latents(pipeline.meta().pipeline.latent_channels)?;
        let guided = self.cfg_scale.unwrap_or(pipeline.meta().pipeline.guidance_scale) > 1.0;
        let mut ask = self.wishes.ask(pipeline, Some(&mut inputs), guided)?;
        inputs.finish()?;
        if let Some(([n, ..], _)) = &latents {
            ask.repeat(*n, "--inputs latents")?;
        }
        Ok((ask, latents))
    }

    /// Applies the options that change numbers.
    fn settings(&self, mut request: Request, latents: Option<Latents>, meta: &PipelineMeta) -> Result<Request> {
        if let Some(([_, _, h, w], values)) = latents {
            request.latent_size = [h, w];
            request.latents = Some(values);
        }
        request.steps = self.steps.unwrap_or(request.steps);
        request.guidance_scale = self.cfg_scale.unwrap_or(request.guidance_scale);
        request.seed = self.seed;
        request.batch_size = self.batch_size.unwrap_or(request.batch_size);
        request.max_memory = self.max_memory;
        request.tile = self.vae_tile;
        request.noise = match self.rng {
            Rng::Fast => NoiseSource::Fast,
            Rng::Torch => NoiseSource::Torch,
        };
        self.sampling.apply(&mut request)?;
        self.size.apply(&mut request, meta)?;
        self.begin.apply(&mut request, meta, self.size.given())?;
        Ok(request)
    }

    /// Tells what of a prompt the text encoder did not read.
    fn warn(&self, cut: &str) {
        if !self.quiet {
            eprintln!("warning: the prompt is longer than the text encoder reads at once; cut off: {cut:?}");
        }
    }

    /// Refuses outputs that could not be written, before anything is computed.
    fn check_outputs(&self, n: usize) -> Result<()> {
        let inputs: Vec<&Path> =
            self.model.iter().chain(self.begin.files()).chain(&self.inputs).map(PathBuf::as_path).collect();
        let sheet = !self.output.contains('%');
        for k in 0..if sheet { 1 } else { n } {
            let png = if sheet { self.output.clone() } else { numbered(&self.output, k)? };
            check_target(Path::new(&png), &inputs)?;
            if self.outputs.as_deref() == Some(Path::new(&png)) {
                return Err(Error::request("--outputs", "another file than --output", png));
            }
        }
        self.outputs.as_deref().map_or(Ok(()), |path| check_target(path, &inputs))
    }

    fn bar(&self) -> ProgressBar {
        if self.quiet || self.json || !std::io::stderr().is_terminal() {
            return ProgressBar::hidden();
        }
        let style = ProgressStyle::with_template("{prefix:>8} {bar:32} {pos}/{len} {msg} {eta} left");
        let bar = ProgressBar::new(0);
        if let Ok(style) = style {
            bar.set_style(style.progress_chars("=> "));
        }
        bar
    }

    /// Writes everything asked for; gives the names of the pictures.
    fn write(
        &self,
        ask: &Ask,
        request: &Request,
        output: &Output,
        meta: &PipelineMeta,
        hash: &str,
    ) -> Result<Vec<String>> {
        let n = request.subjects.len();
        let [h, w] = output.size;
        if let Some(path) = &self.outputs {
            let [lh, lw] = request.latent_size;
            let channels = meta.latent_channels as usize;
            let image = permute(&output.images, [n, h * w, 3]);
            let mut tensors = vec![
                Named { name: "latents", dims: vec![n, channels, lh, lw], values: output.latents.clone() },
                Named { name: "image", dims: vec![n, 3, h, w], values: image },
            ];
            tensors.extend(ask::features(&request.subjects));
            write(path, &tensors)?;
        }
        let images = from_nhwc(&output.images, n, h as u32, w as u32)?;
        let model_name = model::name(self.model.as_deref());
        let text = |images: std::ops::Range<usize>, seed: u64| {
            let mut told: Vec<[String; 2]> = images.map(|i| ask.told(i, meta)).collect();
            told.dedup();
            let joined = |side: usize| told.iter().map(|t| t[side].as_str()).collect::<Vec<_>>().join(", ");
            image::parameters(&Recipe {
                prompt: &joined(0),
                negative: &joined(1),
                steps: request.steps,
                sampler: request.sampler.kind.title(),
                cfg_scale: request.guidance_scale,
                seed,
                width: w as u32,
                height: h as u32,
                model_hash: &hash[..10],
                model: &model_name,
            })
        };
        if !self.output.contains('%') {
            let sheet = grid(&images, (n as f64).sqrt().ceil() as usize)?;
            write_png(&self.output, &sheet, &[("parameters", &text(0..n, request.seed))])?;
            return Ok(vec![self.output.clone()]);
        }
        let mut files = Vec::with_capacity(n);
        for (k, image) in images.iter().enumerate() {
            let path = numbered(&self.output, k)?;
            let text = text(k..k + 1, request.seed.wrapping_add(k as u64));
            write_png(&path, image, &[("parameters", &text)])?;
            files.push(path);
        }
        Ok(files)
    }
}

/// Latents `(n, c, h, w)`.
type Latents = ([usize; 4], Vec<f32>);

fn told(plans: &Plans) -> String {
    let arenas = |plans: &[Plan]| plans.iter().map(|p| super::bytes(p.arena)).collect::<Vec<_>>().join(" and ");
    let [h, w] = plans.tile;
    let first = &plans.denoisers[0];
    format!(
        "memory: denoiser {} ({} of tables, {} calls a window), decoder {} for {h} x {w} latents{}",
        arenas(&plans.denoisers),
        super::bytes(first.tables),
        first.window,
        super::bytes(plans.decoder.as_ref().map_or(0, |d| d.arena)),
        if plans.texts.is_empty() { String::new() } else { format!(", text {}", arenas(&plans.texts)) },
    )
}

fn shown(files: &[String]) -> String {
    match files {
        [] => String::new(),
        [one] => one.clone(),
        [first, .., last] => format!("{first} to {last}"),
    }
}

/// Times of steps and decoding, seen through events.
#[derive(Default)]
struct Clock {
    last: Option<Instant>,
    steps: usize,
    seconds: f64,
    decode: f64,
}

impl Clock {
    fn see(&mut self, event: Event, bar: &ProgressBar) {
        let now = Instant::now();
        match event {
            Event::Step { done, total, .. } => {
                if done > 1 {
                    // The first step also fills tables; it is not counted.
                    self.seconds += self.last.map_or(0.0, |t| (now - t).as_secs_f64());
                    self.steps += 1;
                }
                bar.set_prefix("steps");
                bar.set_length(total as u64);
                bar.set_position(done as u64);
                bar.set_message(format!("{:.0} ms/step", self.mean() * 1e3));
            }
            Event::Decode { done, total } => {
                self.decode += self.last.map_or(0.0, |t| (now - t).as_secs_f64());
                bar.set_prefix("decode");
                bar.set_length(total as u64);
                bar.set_position(done as u64);
                bar.set_message("");
            }
        }
        self.last = Some(now);
    }

    fn mean(&self) -> f64 {
        self.seconds / self.steps.max(1) as f64
    }
}
