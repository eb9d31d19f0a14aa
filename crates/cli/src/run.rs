//! `aquatint run`.

use super::clock::{Clock, bar};
use super::device::{with_backend, with_threads};
use super::frames::{Target, pattern, write_video};
use super::options::{CountArgs, RequestArgs, Rng, TEXT};
use super::tensors::write;
use super::{Device, model, say, say_json};
use aquatint::error::one_line;
use aquatint::image::{self, FRAME_RATES, from_nhwc, grid, numbered, write_png};
use aquatint::infotext::Infotext;
use aquatint::model::Model;
use aquatint::options::{Made, NamedTensor, RequestOptions, Tensors, infotext};
use aquatint::pipeline::{Output, Plans, Request, Session, swap_last_axes};
use aquatint::raw::backend::Backend;
use aquatint::raw::plan::Plan;
use aquatint::raw::whole_file::check_targets;
use aquatint::{Error, Result};
use clap::Args;
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Frames a second, unless the caller says otherwise: what the models were trained on.
const FPS: u32 = 8;

/// Make images and write them as PNG.
#[derive(Args)]
#[command(allow_negative_numbers = true)]
pub struct Run {
    /// A packed model [default: the small model of letters inside this program]
    model: Option<PathBuf>,
    #[command(flatten)]
    request: RequestArgs,
    #[command(flatten)]
    count: CountArgs,
    /// Make a picture again as its text tells; options given beside it come first
    #[arg(long, value_name = "PNG")]
    from: Option<PathBuf>,
    /// Seed; -1 takes a random one. Image k is that of seed + k alone; with --rng torch all images share one stream of
    /// noise, of which --from knows the place [default: 42]
    #[arg(long, value_name = "K", value_parser = seed)]
    seed: Option<u64>,
    /// Where the noise comes from; torch: one stream for all images [default: fast]
    #[arg(long, value_enum)]
    rng: Option<Rng>,
    /// Frames per second of a video [default: 8]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(i64::from(*FRAME_RATES.start())..=i64::from(*FRAME_RATES.end())))]
    fps: Option<u32>,
    /// Output; with %d or %03d one file per image, otherwise all images in one sheet. Of videos, the same for frames, a row of
    /// the sheet for each; or a video by its ending, .gif, .webp or, where there is ffmpeg, .mp4; or a folder, which ends in /
    #[arg(short, long, alias = "outdir", default_value = "out.png", value_name = "FILE")]
    output: String,
    /// Replace what would be computed: safetensors with latents [n,c,h,w] ([n,c,frames,h,w] of videos), class_labels [n],
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
        let target = self.check_outputs(&model, &request)?;
        options.warnings().iter().for_each(|warning| self.warn(warning));
        if let Some(text) = &from {
            RequestOptions::begins_otherwise(text, &request).iter().for_each(|remark| self.warn(remark));
        }
        if !self.quiet {
            let notes = sampler_notes(&request).into_iter().chain(frames_note(&model, &request));
            notes.for_each(|note| eprintln!("note: {}", one_line(&note)));
        }

        let bar = bar(self.quiet || self.json);
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
        let files = self.write(&model, &request, &output, (target, &made))?;
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
                "frames": request.frames,
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
            let what = if model.latents.video { "video" } else { "image" };
            say(format_args!(
                "{n} {what}{}, {} steps of {:.1} ms, {seconds:.2} s in all: {}",
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
        let mut options = self.request.options()?;
        options.prompts.n_imgs = self.count.n_imgs;
        (options.seed, options.noise) = (self.seed, self.rng.map(Rng::source));
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
    fn check_outputs<D>(&self, model: &Model<'_, D>, request: &Request) -> Result<Target> {
        let video = model.latents.video;
        if self.fps.is_some() && !video {
            return Err(Error::request("fps", "a model that makes videos", "one that makes images"));
        }
        let inputs: Vec<&Path> = self
            .model
            .iter()
            .chain(self.request.init.files())
            .chain(&self.inputs)
            .chain(&self.from)
            .map(PathBuf::as_path)
            .collect();
        let target = Target::of(&self.output, video)?;
        if self.fps.is_some() && !matches!(target, Target::Video(_)) {
            return Err(Error::request("fps", "an output that ends in .gif, .webp or .mp4", &self.output));
        }
        let output = self.pattern(video)?;
        let files: Vec<String> = match target {
            Target::Sheet if !output.contains('%') => vec![output],
            Target::Sheet | Target::Pictures => {
                (0..request.pictures()).map(|k| numbered(&output, k)).collect::<Result<_>>()?
            }
            Target::Video(_) => (0..request.prompts.len()).map(|k| numbered(&output, k)).collect::<Result<_>>()?,
        };
        let targets: Vec<&Path> = files.iter().map(Path::new).chain(self.outputs.as_deref()).collect();
        check_targets(&targets, &inputs)?;
        Ok(if output_is_folder(&self.output, video) { Target::Pictures } else { target })
    }

    /// The pattern of names that the output stands for; makes the folder that it names, if it does.
    fn pattern(&self, video: bool) -> Result<String> {
        let folder = Path::new(&self.output);
        if output_is_folder(&self.output, video) && !folder.is_dir() {
            fs::create_dir(folder).map_err(Error::io("make", folder))?;
        }
        Ok(pattern(&self.output, video))
    }

    /// Writes everything asked for; gives the names of the images' files.
    fn write<D: AsRef<[u8]>>(
        &self,
        model: &Model<'_, D>,
        request: &Request,
        output: &Output,
        (target, made): (Target, &Made<'_>),
    ) -> Result<Vec<String>> {
        let (n, f) = (request.prompts.len(), output.frames);
        let [h, w] = output.size;
        if let Some(path) = &self.outputs {
            let [lh, lw] = request.latent_size;
            let channels = model.latents.channels;
            let image = swap_last_axes(&output.images, [n, f * h * w, output.channels]);
            let [latents, pictures] = [[n, channels, f, lh, lw], [n, output.channels, f, h, w]];
            let [latents, pictures] = [latents, pictures].map(|axes| model.latents.axes(axes));
            let mut tensors = vec![
                NamedTensor { name: "latents", dims: latents, values: output.latents.clone() },
                NamedTensor { name: "image", dims: pictures, values: image },
            ];
            tensors.extend(NamedTensor::of_prompts(&output.prompts));
            write(path, &tensors)?;
        }
        let images = from_nhwc(&output.images, n * f, h as u32, w as u32, output.channels)?;
        let text = |images: std::ops::Range<usize>| infotext(model, request, made, images).to_string();
        let name = self.pattern(model.latents.video)?;
        match target {
            Target::Sheet => {
                let columns = if f > 1 { f } else { (n as f64).sqrt().ceil() as usize };
                write_png(&name, &grid(&images, columns)?, &[(TEXT, &text(0..n))])?;
                Ok(vec![name])
            }
            Target::Pictures => {
                let files = (0..n * f).map(|k| numbered(&name, k)).collect::<Result<Vec<_>>>()?;
                for (k, (path, image)) in files.iter().zip(&images).enumerate() {
                    write_png(path, image, &[(TEXT, &text(k / f..k / f + 1))])?;
                }
                Ok(files)
            }
            Target::Video(format) => {
                let files = (0..n).map(|k| numbered(&name, k)).collect::<Result<Vec<_>>>()?;
                for (path, frames) in files.iter().zip(images.chunks_exact(f)) {
                    write_video(format, Path::new(path), frames, self.fps.unwrap_or(FPS))?;
                }
                Ok(files)
            }
        }
    }
}

/// Whether `output` names a folder of frames.
fn output_is_folder(output: &str, video: bool) -> bool {
    pattern(output, video) != output
}

/// What a person should know of a number of frames that the model was not made for.
fn frames_note<D>(model: &Model<'_, D>, request: &Request) -> Option<String> {
    let made = model.latents.frames;
    (request.frames != made).then(|| format!("the model was made for {made} frames, not for {}", request.frames))
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
