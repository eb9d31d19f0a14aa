//! `packer sensitivity MODEL -o sensitivity.json`.

use super::pack::bar;
use super::shard::ShardArgs;
use super::table::{Columns, bytes, percent};
use super::{page, parse_prediction, parse_split, say, say_json, say_line};
use crate::emit::Progress;
use crate::error::Result;
use crate::pass::Split;
use crate::sensitivity::{self, Bill, Event, Record, Settings};
use crate::source::donors::Donors;
use crate::source::settings::Overrules;
use aquatint::Error;
use aquatint::error::one_line;
use aquatint::options::SamplingOptions;
use aquatint::raw::whole_file::check_targets;
use aquatint::sampler::Prediction;
use aquatint_evaluation::{Calls, Captions, Protocol};
use clap::Args;
use indicatif::ProgressBar;
use std::path::PathBuf;
use std::time::Instant;

/// Arguments of measuring what choices do.
#[derive(Debug, Args)]
pub(super) struct Sensitivity {
    /// The model, as for packing.
    #[arg(value_name = "MODEL", required_unless_present = "merge")]
    model: Option<PathBuf>,
    /// Join the files of all shards instead.
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with = "model")]
    merge: Vec<PathBuf>,
    /// Precisions that each layer is tried in, with commas between: what --q-config SPEC makes of it, which keeps 8 bits at the ends
    /// of the network and float activations before its steps
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "w2a8:kmeans,w3a8:kmeans,w4a8:kmeans,w8a8",
        value_name = "SPEC,.."
    )]
    choices: Vec<String>,
    /// Layers that are tried as the choices say even where a SPEC spares them; may be given several times
    #[arg(long, value_name = "GLOB")]
    named: Vec<String>,
    /// The precision of all other layers while one is tried: f32, or what --q-config SPEC makes of them
    #[arg(long, default_value = "f32", value_name = "SPEC")]
    environment: String,
    /// Try both halves of layers whose inputs are two values side by side, as for packing: shortcut, conv, linear
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "shortcut", value_delimiter = ',', value_name = "KIND,..", value_parser = parse_split)]
    split: Vec<Split>,
    /// Statistics of the inputs of layers, by which codes are chosen, as for packing.
    #[arg(long, value_name = "CALIB.safetensors")]
    calib: Option<PathBuf>,
    /// Try all layers that this glob matches together, too, beside each alone; may be given several times.
    #[arg(long, value_name = "GLOB")]
    group: Vec<String>,
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
    /// Images.
    #[arg(long, default_value_t = Settings::IMAGES, value_name = "N")]
    n: usize,
    /// Network calls that are looked at, by their numbers in the run from 0, such as 2,13,25 [default: 6, evenly spread]
    #[arg(long, value_delimiter = ',', value_name = "LIST")]
    at: Option<Vec<usize>>,
    /// What images show, one caption a line, in turn; for models that read texts.
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// Sampler steps [default: the model's]
    #[arg(short, long, alias = "num-inference-steps", value_name = "N")]
    steps: Option<usize>,
    /// The sampler [default: the one the model was saved with]
    #[arg(long, alias = "sampling-method", value_name = "NAME")]
    sampler: Option<String>,
    /// Guidance scale; 1 or less turns guidance off [default: the model's]
    #[arg(short = 'g', long, aliases = ["cfg_scale", "guidance-scale"], allow_negative_numbers = true, value_name = "SCALE")]
    cfg_scale: Option<f32>,
    /// Seed of the first image's noise; image k has that of seed + k.
    #[arg(long, default_value_t = Settings::SEED, value_name = "K")]
    seed: u64,
    /// Images per pass through the network; no figure depends on it [default: 26, or 4 for models of more than 100 MB]
    #[arg(short, long, alias = "batch-size", value_name = "N")]
    batch: Option<usize>,
    #[command(flatten)]
    shard: ShardArgs,
    /// The file to write. Beside it, OUT.partial holds unfinished work: the same command goes on from there.
    #[arg(short, long, value_name = "OUT.json")]
    output: PathBuf,
    /// Keep the file that holds the model in all choices: packer search and compare measure whole configurations with it
    #[arg(long, value_name = "CHOICES.aqt", conflicts_with = "merge")]
    keep: Option<PathBuf>,
    /// Write a page that shows layers, choices and calls, too.
    #[arg(long, value_name = "PAGE.html")]
    html: Option<PathBuf>,
    /// Print nothing but errors.
    #[arg(short, long)]
    quiet: bool,
    /// Print what was found as JSON.
    #[arg(long)]
    json: bool,
}

impl Sensitivity {
    /// Runs the command.
    pub(super) fn run(&self) -> Result<()> {
        if let Some(page) = &self.html {
            let inputs = self.model.iter().chain(&self.merge).chain(&self.calib).chain(&self.prompts);
            let targets: Vec<_> = [page, &self.output].into_iter().chain(&self.keep).map(PathBuf::as_path).collect();
            check_targets(&targets, &inputs.map(PathBuf::as_path).collect::<Vec<_>>())?;
        }
        let record = match &self.model {
            Some(model) => {
                let mut watch = Watch { bar: bar(self.quiet), quiet: self.quiet, begin: None };
                let record = sensitivity::sensitivity(&self.settings(model)?, &mut |event| watch.see(event));
                watch.bar.finish_and_clear();
                record?
            }
            None => sensitivity::merge(&self.merge, &self.output)?,
        };
        if let Some(page) = &self.html {
            page::write_sensitivity(&record, page)?;
        }
        if self.json {
            return say_json(&record);
        }
        if !self.quiet {
            tell(&record);
        }
        Ok(())
    }

    fn settings(&self, model: &std::path::Path) -> Result<Settings> {
        let captions = self.prompts.as_deref().map(|path| -> Result<Captions> {
            let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
            Ok(Captions::new(&path.display().to_string(), &text)?)
        });
        let settings = Settings::new(model.to_owned(), self.output.clone());
        let calls = self.at.clone().map_or(settings.protocol.calls.clone(), Calls::At);
        let protocol = Protocol {
            images: self.n,
            calls,
            batch: self.batch,
            seed: self.seed,
            captions: captions.transpose()?,
            sampling: SamplingOptions {
                steps: self.steps,
                cfg_scale: self.cfg_scale,
                sampler: self.sampler.clone(),
                ..SamplingOptions::default()
            },
            ..settings.protocol.clone()
        };
        Ok(Settings {
            refiner: self.refiner.clone(),
            donors: Donors { autoencoder: self.vae.clone(), text: self.text_encoder.clone(), without_text: false },
            overrules: Overrules { prediction: self.prediction, scheduler_config: self.scheduler_config.clone() },
            choices: self.choices.clone(),
            named: self.named.clone(),
            split: self.split.clone(),
            keep: self.keep.clone(),
            environment: self.environment.clone(),
            calibration: self.calib.clone(),
            groups: self.group.clone(),
            protocol,
            prompts: self.prompts.clone(),
            shard: self.shard.chosen(self.quiet)?,
            ..settings
        })
    }
}

/// Shows on standard error what happens.
struct Watch {
    bar: ProgressBar,
    quiet: bool,
    /// When probes began.
    begin: Option<Instant>,
}

impl Watch {
    fn say(&self, text: &str) {
        if !self.quiet {
            self.bar.suspend(|| eprintln!("{}", one_line(text)));
        }
    }

    fn see(&mut self, event: Event<'_>) -> bool {
        let (message, done, total) = match event {
            Event::Packing(Progress { name, done, total }) => (format!("in all choices: {name}"), done, total),
            Event::Reference(done, total) => ("the reference's run".to_owned(), done, total),
            Event::Done(done, total) => {
                if done == total {
                    self.told_time(total);
                }
                ("probes".to_owned(), done, total)
            }
            Event::Resumed(folder) => {
                self.say(&format!("going on with the work in {}; remove it to begin anew", folder.display()));
                return true;
            }
            Event::Bill(bill) => {
                self.begin = Some(Instant::now());
                self.bar.reset();
                self.say(&told(&bill));
                return true;
            }
            Event::Saved => return true,
        };
        self.bar.set_message(message);
        self.bar.set_length(total);
        self.bar.set_position(done);
        true
    }

    /// Says how long calls took.
    fn told_time(&self, total: u64) {
        if let Some(begin) = self.begin {
            let seconds = begin.elapsed().as_secs_f64();
            self.say(&format!("{seconds:.1} s, {:.1} ms a call of an image", 1e3 * seconds / total as f64));
        }
    }
}

/// A bill for people.
fn told(bill: &Bill) -> String {
    // What comes before a layer is computed once for its choices, which makes it less than this.
    let Bill { units, choices, probes, images, calls, operations } = *bill;
    let all = (probes * images * calls) as f64;
    format!(
        "{units} layers and groups in {choices} choices; {probes} probes of {calls} calls of {images} images: {all} calls of {:.3} \
         GFLOP, at most {:.1} TFLOP in all",
        operations / 1e9,
        operations * all / 1e12
    )
}

/// Prints the table: the root of each error, so that it is a relative error of the output.
fn tell(record: &Record) {
    let heading = ["layer", "weights"].map(str::to_owned).into_iter().chain(record.choices.iter().cloned());
    let mut table = Columns::new(heading);
    for unit in record.all() {
        let error = |mean: Option<f64>| mean.map_or_else(|| "-".to_owned(), |mean| percent(mean.sqrt()));
        let errors = unit.choices.iter().map(|probe| error(probe.mean()));
        table.row([unit.name.clone(), unit.weights.to_string()].into_iter().chain(errors));
    }
    say(table);
    let conditions = &record.conditions;
    let stored: Vec<String> = (0..record.choices.len())
        .map(|choice| {
            let all = record.units.iter().map(|unit| unit.choices[choice].bytes).sum();
            format!("{} {}", record.choices[choice], bytes(all))
        })
        .collect();
    say_line(format!(
        "relative error of the network's output with this choice alone, the others {}: root mean square of {} images at {} of {} \
         calls, {} of {} steps, guidance {}; all layers: {}",
        conditions.environment,
        conditions.images,
        conditions.calls.len(),
        conditions.calls_of_run,
        conditions.sampler,
        conditions.steps,
        conditions.guidance_scale,
        stored.join(", ")
    ));
}
