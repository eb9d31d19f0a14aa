//! `aquatint run`.

use super::device::{with_backend, with_threads};
use super::options::{InitArgs, PromptArgs, SamplingArgs, SizeArgs};
use super::tensors::write;
use super::{Device, model, say, say_json};
use aquatint::error::one_line;
use aquatint::image::{self, from_nhwc, grid, numbered, write_png};
use aquatint::infotext::Infotext;
use aquatint::model::Model;
use aquatint::options::{Made, NamedTensor, RequestOptions, Tensors, infotext};
use aquatint::pipeline::{Event, NoiseSource, Output, Plans, Request, Session, swap_last_axes};
use aquatint::raw::backend::Backend;
use aquatint::raw::plan::Plan;
use aquatint::raw::whole_file::check_target;
use aquatint::{Error, Result};
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use std::fs;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// The keyword of the text in a PNG that tells how it was made.
const TEXT: &str = "parameters";

#[derive(Clone, Copy, ValueEnum)]
enum Rng {
    /// One stream per image: image k is the same alone or in a batch
    Fast,
    /// torch's CPU generator, as diffusers' pipelines use it: one stream for all images
    Torch,
}

/// Make images and write them as PNG.
#[derive(Args)]
#[command(allow_negative_numbers = true)]
pub struct Run {
    /// A packed model [default: the small model of letters inside this program]
    model: Option<PathBuf>,
    #[command(flatten)]
    prompts: PromptArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Make a picture again as its text tells; options given beside it come first
    #[arg(long, value_name = "PNG")]
    from: Option<PathBuf>,
    /// Seed; -1 takes a random one. Image k is that of seed + k alone; with --rng torch all images share one stream of
    /// noise, of which --from knows the place [default: 42]
    #[arg(long, value_name = "K", value_parser = seed)]
    seed: Option<u64>,
    /// Where the noise comes from [default: fast]
    #[arg(long, value_enum)]
    rng: Option<Rng>,
    #[command(flatten)]
    size: SizeArgs,
    #[command(flatten)]
    init: InitArgs,
    /// Images per pass through the network [default: all, at most 8]
    #[arg(short, long, value_name = "N")]
    batch_size: Option<usize>,
    /// Most memory beside the weights, such as 2G or 800M: batches get smaller and images are decoded in tiles [default:
    /// as much as whole batches need, and 1.5G for decoding]
    #[arg(long, value_name = "BYTES", value_parser = aquatint::options::parse_bytes)]
    max_memory: Option<usize>,
    /// Decode tiles of N x N latents
    #[arg(long, value_name = "N")]
    vae_tile: Option<usize>,
    /// Output; with %d or %03d one file per image, otherwise all images in one sheet
    #[arg(short, long, alias = "outdir", default_value = "out.png", value_name = "PNG")]
    output: String,
    /// Replace what would be computed: safetensors with latents [n,c,h,w], class_labels [n],
    /// prompt_embeds [n,tokens,features], prompt_mask [n,tokens], pooled [n,features], and negative_ ones; `encode` makes
    /// those of prompts
    #[arg(long, value_name = "FILE")]
    inputs: Option<PathBuf>,
    /// Also write safetensors with latents [n,c,h,w], image [n,c,h,w] in 0..1, class_labels or prompt_embeds
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
        let model = Model::new(&packed)?;
        let inputs = self.inputs.as_deref().map(|path| fs::read(path).map_err(Error::io("read", path))).transpose()?;
        let from = self.from.as_deref().map(|picture| image::read_text(picture, TEXT)).transpose()?;
        let from = from.map(|text| Infotext::parse(&text));
        let options = self.options(&model, inputs.as_deref(), from.as_ref())?;
        let tensors = inputs.as_deref().zip(self.inputs.as_deref());
        let tensors = tensors.map(|(bytes, path)| Tensors::new(path.display().to_string(), bytes)).transpose()?;
        let request = options.request(&model, tensors)?;
        self.check_outputs(request.prompts.len())?;
        options.warnings().iter().for_each(|warning| self.warn(warning));
        if let Some(text) = &from {
            RequestOptions::begins_otherwise(text, &request).iter().for_each(|remark| self.warn(remark));
        }
        if !self.quiet {
            sampler_notes(&request).iter().for_each(|note| eprintln!("note: {}", one_line(note)));
        }

        let bar = self.bar();
        let mut steps = Clock::default();
        let (output, tile, device) = self.device.install(|| {
            with_backend!(choice, packed, backend => {
                let mut session = Session::new(&model, &backend);
                let plans = session.plans(&request)?;
                session.keep_at_most(plans.peak());
                if self.verbose && !self.quiet && !self.json {
                    bar.suspend(|| say(format_args!("{}, {}", with_threads(&backend), memory_line(&plans))));
                }
                let job = session.job(request.clone())?;
                for cut in job.cut() {
                    self.warn(&format!("the prompt is longer than the text encoder reads at once; cut off: {cut:?}"));
                }
                let output = job.finish_with(|_, event| steps.see(&event, &bar))?;
                Ok::<_, Error>((output, plans.tile, backend.name()))
            })
        })??;
        bar.finish_and_clear();
        let name = model::name(self.model.as_deref());
        let resize = options.init.as_ref().and_then(|init| init.resize).unwrap_or_default();
        let made = Made { model: &name, device: &device, tile, resize, inputs: inputs.as_deref() };
        let files = self.write(&model, &request, &output, &made)?;
        self.report(&model, &request, &output, &files, &steps, begin.elapsed().as_secs_f64());
        Ok(())
    }

    /// Says what was done.
    fn report<D: AsRef<[u8]>>(
        &self,
        model: &Model<'_, D>,
        request: &Request,
        output: &Output,
        files: &[String],
        steps: &Clock,
        seconds: f64,
    ) {
        let n = request.prompts.len();
        if self.json {
            say_json(&json!({
                "files": files,
                "images": n,
                "class_labels": request.prompts.classes(),
                "prompts": (0..n).map(|i| request.prompts.describe(i, model)[0].clone()).collect::<Vec<_>>(),
                "seed": request.seed,
                "steps": request.steps,
                "sampler": request.sampler.kind.name(),
                "cfg_scale": request.guidance_scale,
                "size": output.size,
                "model_hash": format!("{:032x}", model.packed().hash()),
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
                shown(files),
            ));
        }
    }

    /// The options as the library takes them, and what `from` says beside them; reads the initial image.
    fn options<D: AsRef<[u8]>>(
        &self,
        model: &Model<'_, D>,
        inputs: Option<&[u8]>,
        from: Option<&Infotext>,
    ) -> Result<RequestOptions> {
        let mut options = RequestOptions {
            prompts: self.prompts.options(),
            sampling: self.sampling.options(),
            size: self.size.options(),
            init: self.init.options()?,
            refiner_start: self.init.refiner_start,
            seed: self.seed,
            stream: None,
            noise: self.rng.map(|rng| match rng {
                Rng::Fast => NoiseSource::Fast,
                Rng::Torch => NoiseSource::Torch,
            }),
            batch_size: self.batch_size,
            max_memory: self.max_memory,
            vae_tile: self.vae_tile,
            strict: self.prompts.strict,
        };
        if let Some(text) = from {
            options.recall(text, model, inputs)?.iter().for_each(|remark| self.warn(remark));
        }
        Ok(options)
    }

    fn warn(&self, what: &str) {
        if !self.quiet {
            eprintln!("warning: {}", one_line(what));
        }
    }

    /// Refuses outputs that could not be written, before anything is computed.
    fn check_outputs(&self, n: usize) -> Result<()> {
        let inputs: Vec<&Path> = self
            .model
            .iter()
            .chain(self.init.files())
            .chain(&self.inputs)
            .chain(&self.from)
            .map(PathBuf::as_path)
            .collect();
        let sheet = !self.output.contains('%');
        let kind = Path::new(&self.output).extension().filter(|kind| {
            // What is written is a PNG; a name that says otherwise would be believed.
            ["jpg", "jpeg", "jxl", "webp", "bmp", "gif", "tif", "tiff", "avif"]
                .iter()
                .any(|k| kind.eq_ignore_ascii_case(k))
        });
        if let Some(kind) = kind {
            let (expected, got) = ("a name that ends in .png", format!(".{}", kind.display()));
            return Err(Error::request(format!("output {}", self.output), expected, got));
        }
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

    /// Writes everything asked for; gives the names of the images' files.
    fn write<D: AsRef<[u8]>>(
        &self,
        model: &Model<'_, D>,
        request: &Request,
        output: &Output,
        made: &Made<'_>,
    ) -> Result<Vec<String>> {
        let n = request.prompts.len();
        let [h, w] = output.size;
        if let Some(path) = &self.outputs {
            let [lh, lw] = request.latent_size;
            let channels = model.latents.channels;
            let image = swap_last_axes(&output.images, [n, h * w, output.channels]);
            let mut tensors = vec![
                NamedTensor { name: "latents", dims: vec![n, channels, lh, lw], values: output.latents.clone() },
                NamedTensor { name: "image", dims: vec![n, output.channels, h, w], values: image },
            ];
            tensors.extend(NamedTensor::of_prompts(&output.prompts));
            write(path, &tensors)?;
        }
        let images = from_nhwc(&output.images, n, h as u32, w as u32, output.channels)?;
        let text = |images: std::ops::Range<usize>| infotext(model, request, made, images).to_string();
        if !self.output.contains('%') {
            let sheet = grid(&images, (n as f64).sqrt().ceil() as usize)?;
            write_png(&self.output, &sheet, &[(TEXT, &text(0..n))])?;
            return Ok(vec![self.output.clone()]);
        }
        let mut files = Vec::with_capacity(n);
        for (k, image) in images.iter().enumerate() {
            let path = numbered(&self.output, k)?;
            write_png(&path, image, &[(TEXT, &text(k..k + 1))])?;
            files.push(path);
        }
        Ok(files)
    }
}

/// A seed as people write it; -1 is a random one.
fn seed(text: &str) -> std::result::Result<u64, String> {
    match text {
        "-1" => Ok(fastrand::u64(..1 << 32)),
        _ => text.parse().map_err(|_| "expected -1 or a whole number below 2^64".into()),
    }
}

/// What a person should know of the sampler that the request takes.
fn sampler_notes(request: &Request) -> Vec<String> {
    let (config, kind) = (&request.sampler, request.sampler.kind);
    let replaced = |other: &String| {
        format!("the model was saved with {other}, which is not run here; {kind} takes its place (--sampler)")
    };
    let mut notes: Vec<String> = config.replaces.iter().map(replaced).collect();
    if config.leaves_signal() {
        notes.push(format!("the model's schedule ends without signal, which {kind} does not do; ddim or euler would"));
    }
    notes
}

fn memory_line(plans: &Plans) -> String {
    let arenas = |plans: &[Plan]| plans.iter().map(|p| super::bytes(p.arena)).collect::<Vec<_>>().join(" and ");
    let [h, w] = plans.tile;
    let first = &plans.denoisers[0];
    format!(
        "memory: denoiser {} ({} of tables, {} calls a window), decoder {} for {h} x {w} latents{}",
        arenas(&plans.denoisers),
        super::bytes(first.tables),
        first.calls_per_fill,
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
    images: usize,
    last: Option<Instant>,
    steps: usize,
    seconds: f64,
    decode: f64,
}

impl Clock {
    fn see(&mut self, event: &Event, bar: &ProgressBar) {
        let now = Instant::now();
        let show = |what: &'static str, done: usize, total: usize| {
            bar.set_prefix(what);
            bar.set_length(total as u64);
            bar.set_position(done as u64);
        };
        match event {
            Event::Queued { images, .. } => self.images = *images,
            Event::Encoding => show("encode", 0, 1),
            Event::Step { done, total, .. } => {
                if *done > 1 {
                    // The first step also fills tables; it is not counted.
                    self.seconds += self.last.map_or(0.0, |t| (now - t).as_secs_f64());
                    self.steps += 1;
                }
                show("steps", *done, *total);
                bar.set_message(format!("{:.0} ms/step", self.mean() * 1e3));
            }
            Event::Decoding { index } => {
                show("decode", *index, self.images);
                bar.set_message("");
            }
            Event::Image { index } => {
                self.decode += self.last.map_or(0.0, |t| (now - t).as_secs_f64());
                show("decode", index + 1, self.images);
            }
            _ => {}
        }
        self.last = Some(now);
    }

    fn mean(&self) -> f64 {
        self.seconds / self.steps.max(1) as f64
    }
}
