//! `aquatint run`.

use super::device::with_backend;
use super::tensors::{Inputs, Named, write};
use super::{Device, MOST_IMAGES, Size, check_output, model, say, say_json};
use aquatint::format::meta::PipelineMeta;
use aquatint::image::{self, Recipe, from_nhwc, grid, numbered, write_png};
use aquatint::pipeline::{Event, NoiseSource, Output, Pipeline, Request, permute};
use aquatint::sampler::Kind;
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
    /// Class of an image, by name or number; may repeat, one per image
    #[arg(short, long, value_name = "TEXT")]
    prompt: Vec<String>,
    /// Classes by number or name, separated by commas; one image each
    #[arg(long, alias = "cls_id", value_name = "LIST", value_delimiter = ',')]
    class_labels: Vec<String>,
    /// Images per class
    #[arg(long, alias = "n_imgs", default_value_t = 1, value_name = "N")]
    n_imgs: usize,
    /// Sampler steps [default: the model's]
    #[arg(short, long, alias = "num-inference-steps", value_name = "N")]
    steps: Option<usize>,
    /// Guidance scale; 1 or less turns guidance off [default: the model's]
    #[arg(short = 'g', long, alias = "guidance-scale", value_name = "SCALE")]
    cfg_scale: Option<f32>,
    /// ddim, ddpm, pndm, euler, euler-a, heun, dpm++2m, dpm++2m-sde, dpm++2s, lms, unipc or lcm [default: the one the
    /// model was saved with]
    #[arg(long, alias = "sampling-method", value_name = "NAME")]
    sampler: Option<String>,
    /// Seed; image k has its own noise from seed + k
    #[arg(long, default_value_t = 42, value_name = "K")]
    seed: u64,
    /// Where the noise comes from
    #[arg(long, value_enum, default_value = "fast")]
    rng: Rng,
    #[command(flatten)]
    size: Size,
    /// Images per pass through the network [default: all, at most 8]
    #[arg(short, long, value_name = "N")]
    batch_size: Option<usize>,
    /// Output; with %d or %03d one file per image, otherwise all images in one sheet
    #[arg(short, long, alias = "outdir", default_value = "out.png", value_name = "PNG")]
    output: String,
    /// Replace what would be computed: safetensors with latents [n,c,h,w], class_labels [n]
    #[arg(long, value_name = "FILE")]
    inputs: Option<PathBuf>,
    /// Also write safetensors with latents [n,c,h,w], image [n,3,h,w] in 0..1, class_labels [n]
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
        let request = self.request(&pipeline)?;
        self.check_outputs(request.class_labels.len())?;
        let hash = format!("{:032x}", packed.hash());

        let bar = self.bar();
        let mut steps = Clock::default();
        let output = self.device.install(|| {
            with_backend!(choice, packed, backend => {
                if self.verbose && !self.quiet && !self.json {
                    let (denoiser, decoder) = pipeline.plans(&backend, &request)?;
                    let table = request.sampler.table(request.steps)?;
                    bar.suspend(|| {
                        use aquatint::backend::Backend;
                        say(format_args!("{}, {} model calls", backend.name(), table.rows.len()));
                        say(format_args!("memory: denoiser {} ({} of tables, {} calls a window), decoder {}",
                            super::bytes(denoiser.arena), super::bytes(denoiser.tables), denoiser.window, super::bytes(decoder.map_or(0, |d| d.arena))));
                    });
                }
                pipeline.run(&mut backend, &request, &mut |event| steps.see(event, &bar))
            })
        })??;
        bar.finish_and_clear();
        let files = self.write(&request, &output, &packed.meta().pipeline, &hash)?;
        let seconds = begin.elapsed().as_secs_f64();
        if self.json {
            say_json(&json!({
                "files": files,
                "images": request.class_labels.len(),
                "class_labels": request.class_labels,
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
            let n = request.class_labels.len();
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

    fn request<D: AsRef<[u8]>>(&self, pipeline: &Pipeline<'_, D>) -> Result<Request> {
        let meta = &pipeline.meta().pipeline;
        let mut inputs = match &self.inputs {
            Some(path) => Inputs::read(path, &["latents", "class_labels"])?,
            None => return self.settings(pipeline.request(self.labels(meta)?), meta),
        };
        let latents = inputs.latents(meta.latent_channels)?;
        let labels = match inputs.class_labels()? {
            Some(labels) => labels,
            None => self.labels(meta)?,
        };
        let mut request = pipeline.request(labels);
        if let Some(([n, _, h, w], values)) = latents {
            if request.class_labels.len() == 1 {
                request.class_labels = vec![request.class_labels[0]; n];
            }
            if n != request.class_labels.len() {
                let expected = format!("{} images, one per class label", request.class_labels.len());
                return Err(Error::request("--inputs latents", expected, n));
            }
            request.latent_size = [h, w];
            request.latents = Some(values);
        }
        request.batch_size = request.class_labels.len().clamp(1, 8);
        self.settings(request, meta)
    }

    /// Applies the options that change numbers.
    fn settings(&self, mut request: Request, meta: &PipelineMeta) -> Result<Request> {
        request.steps = self.steps.unwrap_or(request.steps);
        request.guidance_scale = self.cfg_scale.unwrap_or(request.guidance_scale);
        request.seed = self.seed;
        request.batch_size = self.batch_size.unwrap_or(request.batch_size);
        request.noise = match self.rng {
            Rng::Fast => NoiseSource::Fast,
            Rng::Torch => NoiseSource::Torch,
        };
        if let Some(name) = &self.sampler {
            let kind: Kind = name.parse()?;
            if kind != request.sampler.kind {
                request.sampler = request.sampler.with_kind(kind);
            }
        }
        self.size.apply(&mut request, meta)?;
        Ok(request)
    }

    /// The class of each image.
    fn labels(&self, meta: &PipelineMeta) -> Result<Vec<u32>> {
        let mut labels = Vec::new();
        for text in self.class_labels.iter().chain(&self.prompt) {
            labels.push(class_of(text, meta)?);
        }
        if labels.is_empty() {
            labels.extend(meta.class_names.keys().take(64));
        }
        if labels.is_empty() && meta.classes == 0 {
            labels.push(meta.null_class);
        }
        if labels.is_empty() {
            let expected = format!("at least one of 0 to {}", meta.classes.saturating_sub(1));
            return Err(Error::request("--class-labels", expected, "none"));
        }
        let most = MOST_IMAGES / labels.len();
        if !(1..=most).contains(&self.n_imgs) {
            return Err(Error::request("--n-imgs", format!("1 to {most}"), self.n_imgs));
        }
        Ok(labels.iter().flat_map(|&l| std::iter::repeat_n(l, self.n_imgs)).collect())
    }

    /// Refuses outputs that could not be written, before anything is computed.
    fn check_outputs(&self, n: usize) -> Result<()> {
        let sheet = !self.output.contains('%');
        for k in 0..if sheet { 1 } else { n } {
            let png = if sheet { self.output.clone() } else { numbered(&self.output, k)? };
            check_output(Path::new(&png))?;
            if self.outputs.as_deref() == Some(Path::new(&png)) {
                return Err(Error::request("--outputs", "another file than --output", png));
            }
        }
        self.outputs.as_deref().map_or(Ok(()), check_output)
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
    fn write(&self, request: &Request, output: &Output, meta: &PipelineMeta, hash: &str) -> Result<Vec<String>> {
        let n = request.class_labels.len();
        let [h, w] = output.size;
        if let Some(path) = &self.outputs {
            let [lh, lw] = request.latent_size;
            let channels = meta.latent_channels as usize;
            let image = permute(&output.images, [n, h * w, 3]);
            let labels = request.class_labels.iter().map(|&c| c as f32).collect();
            write(
                path,
                &[
                    Named { name: "latents", dims: vec![n, channels, lh, lw], values: output.latents.clone() },
                    Named { name: "image", dims: vec![n, 3, h, w], values: image },
                    Named { name: "class_labels", dims: vec![n], values: labels },
                ],
            )?;
        }
        let images = from_nhwc(&output.images, n, h as u32, w as u32)?;
        let model_name = model::name(self.model.as_deref());
        let text = |labels: &[u32], seed: u64| {
            let prompt: Vec<String> = labels.iter().map(|l| class_name(*l, meta)).collect();
            image::parameters(&Recipe {
                prompt: &prompt.join(", "),
                negative: "",
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
            write_png(&self.output, &sheet, &[("parameters", &text(&request.class_labels, request.seed))])?;
            return Ok(vec![self.output.clone()]);
        }
        let mut files = Vec::with_capacity(n);
        for (k, image) in images.iter().enumerate() {
            let path = numbered(&self.output, k)?;
            let text = text(&request.class_labels[k..=k], request.seed.wrapping_add(k as u64));
            write_png(&path, image, &[("parameters", &text)])?;
            files.push(path);
        }
        Ok(files)
    }
}

/// A class by number or name.
fn class_of(text: &str, meta: &PipelineMeta) -> Result<u32> {
    let text = text.trim();
    let named = meta.class_names.iter().find(|(_, n)| n.as_str() == text);
    let named = named.or_else(|| meta.class_names.iter().find(|(_, n)| n.eq_ignore_ascii_case(text)));
    if let Some((&class, _)) = named {
        return Ok(class);
    }
    if meta.classes == 0 {
        return Err(Error::request("class label", "none: this model has no classes", format!("`{text}`")));
    }
    let last = meta.classes.saturating_sub(1);
    match text.parse::<u32>() {
        Ok(class) if class <= last || class == meta.null_class => Ok(class),
        _ => {
            let names: Vec<_> = meta.class_names.values().take(6).cloned().collect();
            let or = if names.is_empty() { String::new() } else { format!(", or a name such as {}", names.join(", ")) };
            Err(Error::request("class label", format!("0 to {last}{or}"), format!("`{text}`")))
        }
    }
}

fn class_name(class: u32, meta: &PipelineMeta) -> String {
    meta.class_names.get(&class).cloned().unwrap_or_else(|| format!("class {class}"))
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
