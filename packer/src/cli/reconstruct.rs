//! `packer reconstruct MODEL --q-config SPEC --calib CALIB -o R.safetensors`.

use super::page::curves;
use super::table::{Table, percent};
use super::{pack, parse_prediction, say, say_json, say_line};
use crate::emit::Progress;
use crate::error::Result;
use crate::quantize::adaround::Schedule;
use crate::reconstruct::{self, Event, Learned, Report, Settings, Training, Unit};
use crate::source::donors::Donors;
use crate::source::settings::Overrules;
use aquatint::error::{Error, one_line};
use aquatint::options::parse_bytes;
use aquatint::raw::whole_file::{WholeFile, check_target};
use aquatint::sampler::Prediction;
use clap::{Args, ValueEnum};
use indicatif::ProgressBar;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Arguments of reconstructing.
#[derive(Debug, Args)]
pub(super) struct Reconstruct {
    /// The model, as for packing.
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// Quantization of the denoiser, as for packing.
    #[arg(long, alias = "q_config", value_name = "FILE|SPEC")]
    q_config: String,
    /// Statistics of the inputs of layers, made by `packer calibrate`; blocks are shown images made as it made them.
    #[arg(long, value_name = "CALIB.safetensors")]
    calib: PathBuf,
    /// The file to write, for --import. Beside it, OUT.partial holds units that are done: the same command goes on after them.
    #[arg(short, long, value_name = "OUT.safetensors")]
    output: PathBuf,
    /// What is trained together: each block of the network on samples (BRECQ), or each layer on the moments of its inputs.
    #[arg(long, value_enum, default_value = "block", value_name = "UNIT")]
    unit: UnitArg,
    /// What is learned: in which direction weights are rounded (AdaRound, of uniform levels), or levels and biases for the codes that
    /// packing with --calib chooses.
    #[arg(long, value_enum, default_value = "rounding", value_name = "WHAT")]
    learn: LearnArg,
    /// Iterations per unit; published are 20,000.
    #[arg(long, alias = "cali_iters", alias = "cali-iters", value_name = "N", default_value_t = Settings::ITERATIONS)]
    iters: usize,
    /// Rate of the optimiser [default: 20 / iterations for rounding, as far as published ones go; 0.001 for levels]
    #[arg(long, value_name = "RATE")]
    lr: Option<f32>,
    /// Weight of the regularizer that makes roundings certain.
    #[arg(long, value_name = "WEIGHT", default_value_t = Schedule::WEIGHT)]
    regularizer: f32,
    /// Samples of an iteration.
    #[arg(short, long, alias = "cali_batch_size", value_name = "N", default_value_t = Settings::BATCH)]
    batch: usize,
    /// Samples in all: of images, calls and branches of guidance.
    #[arg(long, value_name = "N", default_value_t = Settings::SAMPLES)]
    samples: usize,
    /// What images show: a file with a prompt per line, or a class by name or number [default: all classes]
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// Most memory for values of samples; with less there are fewer of them.
    #[arg(long, value_name = "BYTES", default_value = "4G", value_parser = parse_bytes)]
    memory: usize,
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
    /// Draw how the loss of every unit went.
    #[arg(long, value_name = "OUT.svg")]
    plot: Option<PathBuf>,
    /// Print nothing but errors.
    #[arg(short, long)]
    quiet: bool,
    /// Print what was done as JSON.
    #[arg(long)]
    json: bool,
}

/// What is trained together.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum UnitArg {
    /// Layers.
    Layer,
    /// Blocks.
    Block,
}

/// What is learned.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum LearnArg {
    /// Directions of rounding.
    Rounding,
    /// Levels and biases.
    #[value(alias = "scales")]
    Levels,
}

impl Reconstruct {
    /// Runs the command.
    pub(super) fn run(&self) -> Result<()> {
        let settings = self.settings();
        if let Some(plot) = &self.plot {
            check_target(plot, &[&settings.model, &settings.calibration, &settings.output])?;
        }
        let mut watch = Watch { bar: pack::bar(self.quiet), quiet: self.quiet, unit: String::new() };
        let report = reconstruct::reconstruct(&settings, &mut |event| watch.see(event));
        watch.bar.finish_and_clear();
        let report = report?;
        if let Some(plot) = &self.plot {
            let units: Vec<_> = report.record.units.iter().map(|unit| (unit.name.as_str(), &unit.curve)).collect();
            write(plot, &curves(&units))?;
        }
        if self.json {
            return say_json(&report);
        }
        if !self.quiet {
            self.tell(&report);
        }
        Ok(())
    }

    fn settings(&self) -> Settings {
        let (unit, learned) = (
            match self.unit {
                UnitArg::Layer => Unit::Layer,
                UnitArg::Block => Unit::Block,
            },
            match self.learn {
                LearnArg::Rounding => Learned::Rounding,
                LearnArg::Levels => Learned::Levels,
            },
        );
        let rate = self.lr.unwrap_or(match learned {
            Learned::Rounding => Settings::REACH / self.iters as f32,
            Learned::Levels => Settings::LEVELS_RATE,
        });
        Settings {
            donors: Donors { autoencoder: self.vae.clone(), text: self.text_encoder.clone() },
            overrules: Overrules { prediction: self.prediction, scheduler_config: self.scheduler_config.clone() },
            unit,
            learned,
            training: Training { iterations: self.iters, rate, weight: self.regularizer },
            batch: self.batch,
            samples: self.samples,
            prompts: self.prompts.clone(),
            memory: self.memory,
            ..Settings::new(self.model.clone(), self.q_config.clone(), self.calib.clone(), self.output.clone())
        }
    }

    /// Says what was done.
    fn tell(&self, report: &Report) {
        let mut table = Table::new(["unit", "layers", "loss before", "after", "left"]);
        for unit in &report.record.units {
            let curve = &unit.curve;
            let [begin, end] = [curve.begin, curve.end].map(|loss| format!("{loss:.4e}"));
            let share = if curve.begin > 0.0 { percent(curve.end / curve.begin) } else { "-".into() };
            table.row([unit.name.clone(), unit.layers.to_string(), begin, end, share]);
        }
        say(table);
        let (mut error, mut nearest, mut known) = (0.0, 0.0, 0);
        for (own, other) in report.record.layers.iter().filter_map(|l| l.output_error.zip(l.nearest_output_error)) {
            (error, nearest, known) = (error + own.sqrt(), nearest + other.sqrt(), known + 1);
        }
        let n = known as f64;
        let errors = match known {
            0 => String::new(),
            _ => format!("; mean output error of layers {} (nearest {})", percent(error / n), percent(nearest / n)),
        };
        let samples = if report.samples > 0 { format!(", {} samples", report.samples) } else { String::new() };
        say_line(format!(
            "{}: {} layers in {} units, {}{samples}; {:.1} s{errors}",
            self.output.display(),
            report.record.layers.len(),
            report.record.units.len(),
            report.record.how,
            report.seconds,
        ));
    }
}

fn write(target: &Path, text: &str) -> Result<()> {
    let mut out = WholeFile::create(target)?;
    out.write_all(text.as_bytes()).map_err(Error::io("write", target))?;
    Ok(out.commit()?)
}

/// Shows on standard error what happens.
struct Watch {
    bar: ProgressBar,
    quiet: bool,
    unit: String,
}

impl Watch {
    fn say(&self, text: &str) {
        if !self.quiet {
            self.bar.suspend(|| eprintln!("{}", one_line(text)));
        }
    }

    fn see(&mut self, event: Event<'_>) -> bool {
        match event {
            Event::Packing(Progress { name, done, total }) => self.show(done, total, format!("as f32: {name}")),
            Event::Runs(share) => self.show((1000.0 * share) as u64, 1000, "runs of the float model".into()),
            Event::Resumed(folder) => {
                self.say(&format!("going on with the work in {}; remove it to begin anew", folder.display()));
            }
            Event::Note(note) => self.say(&format!("note: {note}")),
            Event::Unit(unit, units, name) => self.unit = format!("{} of {units}: {name}", unit + 1),
            Event::Iteration(done, total) => self.show(done as u64, total as u64, self.unit.clone()),
            Event::Done(unit) => {
                let curve = &unit.curve;
                self.say(&format!("{}: loss {:.4e} -> {:.4e}", self.unit, curve.begin, curve.end));
            }
        }
        true
    }

    fn show(&self, done: u64, total: u64, message: String) {
        self.bar.set_length(total);
        self.bar.set_position(done);
        self.bar.set_message(message);
    }
}
