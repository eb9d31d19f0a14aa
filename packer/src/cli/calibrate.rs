//! `packer calibrate MODEL -o calib.safetensors`.

use super::shard::ShardArgs;
use super::table::bytes;
use super::{parse_prediction, say_json, say_line};
use crate::calibrate::{self, Bill, Event, Report, Settings};
use crate::emit::Progress;
use crate::error::Result;
use crate::source::donors::Donors;
use crate::source::settings::Overrules;
use aquatint::error::one_line;
use aquatint::options::{SamplingOptions, parse_bytes};
use aquatint::pipeline::NoiseSource;
use aquatint::sampler::Prediction;
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::path::PathBuf;
use std::time::Instant;

/// Arguments of calibrating.
#[derive(Debug, Args)]
pub(super) struct Calibrate {
    /// The model, as for packing; or a packed file of it with --q-config f32.
    #[arg(value_name = "MODEL", required_unless_present = "merge")]
    model: Option<PathBuf>,
    /// Add the calibrations of all shards instead.
    #[arg(long, value_name = "FILE", num_args = 2.., conflicts_with = "model")]
    merge: Vec<PathBuf>,
    /// A second model for the last steps: Stable Diffusion XL's refiner.
    #[arg(long, value_name = "MODEL")]
    refiner: Option<PathBuf>,
    /// Another model to take the autoencoder from.
    #[arg(long, value_name = "MODEL")]
    vae: Option<PathBuf>,
    /// Another model to take the text encoders from; twice for two encoders.
    #[arg(long, alias = "text_encoder", value_name = "MODEL")]
    text_encoder: Vec<PathBuf>,
    /// What the denoiser predicts, whatever the model's files say: epsilon, v or sample.
    #[arg(long, alias = "prediction-type", value_name = "NAME", value_parser = parse_prediction)]
    prediction: Option<Prediction>,
    /// A scheduler_config.json of diffusers in place of the model's own.
    #[arg(long, alias = "scheduler_config", value_name = "FILE")]
    scheduler_config: Option<PathBuf>,
    /// The file to write. Beside it, OUT.partial holds unfinished work: the same command goes on from there.
    #[arg(short, long, value_name = "OUT.safetensors")]
    output: PathBuf,
    /// Model calls of an image that are looked at, spread over its run.
    #[arg(long, alias = "cali_st", value_name = "N", default_value_t = Settings::CALLS)]
    cali_st: usize,
    /// Images.
    #[arg(long, alias = "cali_n", value_name = "N", default_value_t = Settings::IMAGES)]
    cali_n: usize,
    /// Sampler steps [default: the model's]
    #[arg(short, long, alias = "num-inference-steps", value_name = "N")]
    steps: Option<usize>,
    /// The sampler [default: the one the model was saved with]
    #[arg(long, alias = "sampling-method", value_name = "NAME")]
    sampler: Option<String>,
    /// Guidance scale; 1 or less turns guidance off [default: the model's]
    #[arg(short = 'g', long, alias = "guidance-scale", value_name = "SCALE")]
    cfg_scale: Option<f32>,
    /// Seed of the first image; image k is that of seed + k.
    #[arg(long, value_name = "K", default_value_t = Settings::SEED)]
    seed: u64,
    /// Where noise comes from.
    #[arg(long, value_enum, default_value = "fast", value_name = "NAME")]
    rng: Rng,
    /// What images show: a file with a prompt per line, or a class by name or number [default: all classes]
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// Most memory for sums; with less, calls are made again for each group of layers.
    #[arg(long, alias = "cali_memory", value_name = "BYTES", default_value = "4G", value_parser = parse_bytes)]
    cali_memory: usize,
    /// Images per pass through the network. Changes no number.
    #[arg(long, alias = "cali_batch", value_name = "N", default_value_t = Settings::BATCH)]
    cali_batch: usize,
    #[command(flatten)]
    shard: ShardArgs,
    /// A packed file of this model: latents are those that its quantized networks make on their way.
    #[arg(long, value_name = "FILE.aqt", conflicts_with = "merge")]
    trajectory: Option<PathBuf>,
    /// Print nothing but errors.
    #[arg(short, long)]
    quiet: bool,
    /// Print what was done as JSON.
    #[arg(long)]
    json: bool,
}

/// Sources of noise.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Rng {
    /// One stream per image.
    Fast,
    /// torch's CPU generator, as diffusers' pipelines use it: one stream for all images.
    Torch,
}

impl Calibrate {
    /// Runs the command.
    pub(super) fn run(&self) -> Result<()> {
        let Some(model) = &self.model else { return self.merge() };
        let settings = Settings {
            refiner: self.refiner.clone(),
            donors: Donors { autoencoder: self.vae.clone(), text: self.text_encoder.clone(), without_text: false },
            overrules: Overrules { prediction: self.prediction, scheduler_config: self.scheduler_config.clone() },
            calls: self.cali_st,
            images: self.cali_n,
            sampling: SamplingOptions {
                steps: self.steps,
                cfg_scale: self.cfg_scale,
                sampler: self.sampler.clone(),
                ..SamplingOptions::default()
            },
            seed: self.seed,
            noise: match self.rng {
                Rng::Fast => NoiseSource::Fast,
                Rng::Torch => NoiseSource::Torch,
            },
            prompts: self.prompts.clone(),
            memory: self.cali_memory,
            batch: self.cali_batch,
            shard: self.shard.chosen(self.quiet)?,
            trajectory: self.trajectory.clone(),
            ..Settings::new(model.clone(), self.output.clone())
        };
        let mut watch = Watch::new(self.quiet);
        let report = calibrate::calibrate(&settings, &mut |event| watch.see(event));
        watch.bar.finish_and_clear();
        let report = report?;
        let summary = calibrate::Calibration::open(&self.output)?.summary()?;
        if self.json {
            return say_json(&serde_json::json!({ "file": self.output, "summary": summary, "report": report }));
        }
        if !self.quiet {
            self.tell(&report);
        }
        Ok(())
    }

    /// Says what was done.
    fn tell(&self, report: &Report) {
        let Bill { images, calls, run_calls, .. } = report.bill;
        if !report.starved.is_empty() {
            let (n, first) = (report.starved.len(), &report.starved[0]);
            let layers = if n == 1 { format!("layer {first}") } else { format!("{n} layers, {first} among them,") };
            eprintln!(
                "warning: {}",
                one_line(&format!(
                    "{layers} saw fewer than 8 rows per input; more of --cali-n or --cali-st would tell more of them"
                ))
            );
        }
        say_line(format!(
            "{}: {}, {} inputs of {} layers, {images} images, {calls} of {run_calls} calls; {:.1} s, {:.1} s of them runs",
            self.output.display(),
            bytes(report.bill.file_bytes as u64),
            report.inputs,
            report.layers,
            report.seconds,
            report.run_seconds,
        ));
    }

    fn merge(&self) -> Result<()> {
        let shards = calibrate::merge(&self.merge, &self.output)?;
        let rest: Vec<String> =
            (0..shards.of).filter(|k| !shards.parts.contains(k)).map(|k| format!("{k}/{}", shards.of)).collect();
        if self.json {
            return say_json(&serde_json::json!({ "file": self.output, "shards": shards }));
        }
        if !self.quiet {
            let lacks = if rest.is_empty() { String::new() } else { format!("; without {}", rest.join(", ")) };
            say_line(format!("{}: {} of {} shards{lacks}", self.output.display(), shards.parts.len(), shards.of));
        }
        Ok(())
    }
}

/// Shows on standard error what happens.
struct Watch {
    bar: ProgressBar,
    quiet: bool,
    /// When calls began to be made, and how many were done then.
    begin: Option<(Instant, f64)>,
    told: bool,
}

impl Watch {
    fn new(quiet: bool) -> Self {
        let target = if quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let bar = ProgressBar::with_draw_target(None, target);
        let style = ProgressStyle::with_template("{bar:30} {percent:>3}% {eta:>4} left  {wide_msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Watch { bar, quiet, begin: None, told: false }
    }

    fn say(&self, text: &str) {
        if !self.quiet {
            self.bar.suspend(|| eprintln!("{}", one_line(text)));
        }
    }

    fn see(&mut self, event: Event<'_>) -> bool {
        match event {
            Event::Packing(Progress { name, done, total }) => {
                self.bar.set_length(total);
                self.bar.set_position(done);
                self.bar.set_message(format!("as f32: {name}"));
            }
            Event::Bill(bill) => {
                self.bar.reset();
                self.bar.set_message("calls");
                self.say(&told(&bill));
            }
            Event::Resumed(folder) => {
                self.say(&format!("going on with the work in {}; remove it to begin anew", folder.display()));
            }
            Event::Note(note) => self.say(&format!("note: {note}")),
            Event::Done(done, total) => self.done(done, total),
            Event::Saved => {}
        }
        true
    }

    fn done(&mut self, done: f64, total: f64) {
        let (begin, before) = *self.begin.get_or_insert((Instant::now(), done));
        self.bar.set_length(total as u64);
        self.bar.set_position(done as u64);
        let seconds = begin.elapsed().as_secs_f64();
        // Once, when it is known well enough and there is long to wait.
        if !self.told && seconds > 5.0 && done > before {
            self.told = true;
            let each = seconds / (done - before);
            let rest = each * (total - done);
            if rest > 60.0 {
                self.say(&format!("{:.2} s a call of an image: about {:.0} minutes more", each, rest / 60.0));
            }
        }
    }
}

/// A bill for people.
fn told(bill: &Bill) -> String {
    let Bill { images, run_calls, calls, replays, operations, memory, arena, file_bytes } = *bill;
    let all = images as f64 * (run_calls + replays * calls) as f64;
    let times = if replays == 1 { "once".into() } else { format!("{replays} times") };
    format!(
        "{images} images of {run_calls} calls, of which {calls} are looked at {times}: {all} calls of {:.3} GFLOP, {:.1} TFLOP in all; \
         memory: {} of sums, {} for the networks; the file: {}",
        operations / 1e9,
        operations * all / 1e12,
        bytes(memory as u64),
        bytes(arena as u64),
        bytes(file_bytes as u64),
    )
}
