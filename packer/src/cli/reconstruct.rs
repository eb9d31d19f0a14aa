//! `packer reconstruct MODEL --q-config SPEC --calib CALIB -o R.safetensors`.

use super::arguments::{ActAxis, MOMENTUM};
use super::page::curves;
use super::table::{Table, percent};
use super::{pack, parse_prediction, parse_split, say, say_json, say_line};
use crate::emit::{ActivationRanges, Progress};
use crate::error::Result;
use crate::pass::Split;
use crate::quantize::RangeRule;
use crate::quantize::adaround::Schedule;
use crate::reconstruct::file::UnitRecord;
use crate::reconstruct::{self, Activations, Curve, Event, Learned, Report, Settings, StepTraining, Training, Unit};
use crate::source::donors::Donors;
use crate::source::settings::Overrules;
use aquatint::error::{Error, one_line};
use aquatint::options::parse_bytes;
use aquatint::raw::program::CurveAxis;
use aquatint::raw::whole_file::{WholeFile, check_targets};
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
    /// Train layers over skip connections in two halves of their inputs, as packing has --split: shortcut, conv, linear [without a
    /// value: shortcut]
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "shortcut", value_delimiter = ',', value_name = "KIND,..", value_parser = parse_split)]
    split: Vec<Split>,
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
    /// packing with --calib chooses; and activations, steps of fixed ranges, after that, or alone for the weights that --calib
    /// chooses.
    #[arg(long, value_enum, default_value = "rounding", value_delimiter = ',', value_name = "WHAT,..")]
    learn: Vec<LearnArg>,
    /// Iterations per unit; published are 20,000.
    #[arg(long, alias = "cali_iters", alias = "cali-iters", value_name = "N", default_value_t = Settings::ITERATIONS)]
    iters: usize,
    /// Rate of the optimiser [default: 20 / iterations for rounding, as far as published ones go; 0.001 for levels]
    #[arg(long, value_name = "RATE")]
    lr: Option<f32>,
    /// Weight of the regularizer that makes roundings certain.
    #[arg(long, value_name = "WEIGHT", default_value_t = Schedule::WEIGHT)]
    regularizer: f32,
    /// Iterations per unit for activations; published are 5,000 [default: 500]
    #[arg(long, alias = "cali_iters_a", alias = "cali-iters-a", value_name = "N")]
    act_iters: Option<usize>,
    /// Rate of the optimiser for activations, relative to their steps [default: 1 / iterations]
    #[arg(long, value_name = "RATE")]
    act_lr: Option<f32>,
    /// What ranges of activations begin as [default: what --q-config says, else min-max]
    #[arg(long, value_enum, value_name = "RULE")]
    act_range: Option<RangeArg>,
    /// Learn a range for each of so many intervals of time, of as many as --cali-st of the calibration at most [default: 1]
    #[arg(long, requires = "act_range", value_name = "K")]
    act_intervals: Option<usize>,
    /// What time is in intervals: the sampler's steps, or the timesteps that the network receives [default: step]
    #[arg(long, value_enum, requires = "act_range", value_name = "AXIS")]
    act_axis: Option<ActAxis>,
    /// Learn ranges that reach as far on both sides of zero
    #[arg(long, alias = "a_sym", alias = "a-sym", requires = "act_range")]
    act_sym: bool,
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LearnArg {
    /// Directions of rounding.
    Rounding,
    /// Levels and biases.
    #[value(alias = "scales")]
    Levels,
    /// Steps of activations.
    Activations,
}

/// What ranges begin as.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum RangeArg {
    /// The least and greatest value of the samples.
    #[value(alias = "minmax", alias = "max")]
    MinMax,
    /// Of the ranges that are smaller, the one with the least error.
    Mse,
    /// Extremes averaged over calls.
    Ema,
}

impl Reconstruct {
    /// Runs the command.
    pub(super) fn run(&self) -> Result<()> {
        let settings = self.settings()?;
        if let Some(plot) = &self.plot {
            check_targets(&[&settings.output, plot], &[&settings.model, &settings.calibration])?;
        }
        let mut watch = Watch { bar: pack::bar(self.quiet), quiet: self.quiet, unit: String::new() };
        let report = reconstruct::reconstruct(&settings, &mut |event| watch.see(event));
        watch.bar.finish_and_clear();
        let report = report?;
        if let Some(plot) = &self.plot {
            let trained = trained(&report.record.units);
            let units: Vec<_> = trained.iter().map(|(name, _, curve)| (name.as_str(), *curve)).collect();
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

    fn settings(&self) -> Result<Settings> {
        let unit = match self.unit {
            UnitArg::Layer => Unit::Layer,
            UnitArg::Block => Unit::Block,
        };
        let learned = self.learned()?;
        let rate = self.lr.unwrap_or(match learned {
            Learned::Rounding | Learned::Nothing => Settings::REACH / self.iters as f32,
            Learned::Levels => Settings::LEVELS_RATE,
        });
        Ok(Settings {
            donors: Donors { autoencoder: self.vae.clone(), text: self.text_encoder.clone(), without_text: false },
            overrules: Overrules { prediction: self.prediction, scheduler_config: self.scheduler_config.clone() },
            split: self.split.clone(),
            unit,
            learned,
            training: Training { iterations: self.iters, rate, weight: self.regularizer },
            activations: self.activations()?,
            batch: self.batch,
            samples: self.samples,
            prompts: self.prompts.clone(),
            memory: self.memory,
            ..Settings::new(self.model.clone(), self.q_config.clone(), self.calib.clone(), self.output.clone())
        })
    }

    /// What is learned of weights.
    fn learned(&self) -> Result<Learned> {
        let has = |what| self.learn.contains(&what);
        match (has(LearnArg::Rounding), has(LearnArg::Levels)) {
            (true, true) => Err(Error::request("--learn", "rounding or levels, one of them", "both").into()),
            (true, false) => Ok(Learned::Rounding),
            (false, true) => Ok(Learned::Levels),
            (false, false) => Ok(Learned::Nothing),
        }
    }

    /// What is learned of activations.
    fn activations(&self) -> Result<Option<Activations>> {
        let options = [
            ("--act-range", self.act_range.is_some()),
            ("--act-iters", self.act_iters.is_some()),
            ("--act-lr", self.act_lr.is_some()),
        ];
        if !self.learn.contains(&LearnArg::Activations) {
            return match options.iter().find(|(_, given)| *given) {
                Some((option, _)) => {
                    let expected = "--learn rounding,activations, or it has no effect";
                    Err(Error::request(*option, expected, "activations as floats").into())
                }
                None => Ok(None),
            };
        }
        let ranges = self.act_range.map(|range| ActivationRanges {
            rule: if matches!(range, RangeArg::Mse) { RangeRule::Mse } else { RangeRule::MinMax },
            intervals: self.act_intervals.unwrap_or(1),
            axis: match self.act_axis {
                Some(ActAxis::Timestep) => CurveAxis::Timestep,
                Some(ActAxis::Step) | None => CurveAxis::StepFraction,
            },
            symmetric: self.act_sym,
            momentum: matches!(range, RangeArg::Ema).then_some(MOMENTUM),
        });
        let iterations = self.act_iters.unwrap_or(Settings::STEP_ITERATIONS);
        let rate = self.act_lr.unwrap_or(Settings::STEP_REACH / iterations as f32);
        Ok(Some(Activations { ranges, training: StepTraining { iterations, rate } }))
    }

    /// Says what was done.
    fn tell(&self, report: &Report) {
        let mut table = Table::new(["unit", "layers", "loss before", "after", "left"]);
        for (name, layers, curve) in trained(&report.record.units) {
            let [begin, end] = [curve.begin, curve.end].map(|loss| format!("{loss:.4e}"));
            let share = if curve.begin > 0.0 { percent(curve.end / curve.begin) } else { "-".into() };
            table.row([name, layers.to_string(), begin, end, share]);
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

/// Names, layers and losses of what was trained of units: weights, then steps of activations.
fn trained(units: &[UnitRecord]) -> Vec<(String, usize, &Curve)> {
    let mut all = Vec::new();
    for UnitRecord { name, layers, curve, activations } in units {
        // Where nothing of weights was learned there are no iterations.
        all.extend((!curve.points.is_empty()).then(|| (name.clone(), *layers, curve)));
        all.extend(activations.as_ref().map(|curve| (format!("{name}, activations"), *layers, curve)));
    }
    all
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
                for (name, _, curve) in trained(std::slice::from_ref(unit)) {
                    let what = if name == unit.name { "" } else { ", activations" };
                    self.say(&format!("{}{what}: loss {:.4e} -> {:.4e}", self.unit, curve.begin, curve.end));
                }
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
