//! The command line: the only place that prints, and that decides the exit code.

mod calibrate;
mod config;
mod evaluate;
mod inspect;
mod pack;
mod page;
mod reconstruct;
mod table;

use crate::emit::{ActivationRanges, RangeSource};
use crate::error::Result;
use crate::quantize::RangeRule;
use crate::source::settings;
use crate::synth::{MODELS, SynthModel};
use crate::unpack;
use crate::weights::Float;
use aquatint::error::{error_line, one_line};
use aquatint::raw::program::CurveAxis;
use aquatint::sampler::Prediction;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;
use std::process::ExitCode;

/// Packs a diffusion model into one quantized file.
///
/// MODEL is a diffusers model directory, or a checkpoint in its authors' layout (DDIM, latent diffusion, Stable Diffusion
/// 1.x, SDXL). The result is one .aqt file with the networks, their weights and everything else needed to run them.
#[derive(Debug, Parser)]
#[command(name = "packer", version, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    pack: Option<Pack>,
}

/// Arguments of packing.
#[derive(Debug, Args)]
struct Pack {
    /// The model: a diffusers directory (with model_index.json), or a single file (.ckpt, .pt, .safetensors).
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// A second model for the last steps: Stable Diffusion XL's refiner.
    #[arg(long, value_name = "MODEL")]
    refiner: Option<PathBuf>,
    /// Another model to take the autoencoder from: a diffusers directory, the folder of an autoencoder, or a single file.
    #[arg(long, value_name = "MODEL")]
    vae: Option<PathBuf>,
    /// Another model to take the text encoders from, likewise; twice for two encoders.
    #[arg(long, alias = "text_encoder", value_name = "MODEL")]
    text_encoder: Vec<PathBuf>,
    /// Quantization of the denoiser: a file (.json .toml .yaml .pkl) or one precision for all layers, such as f32, f16,
    /// w8a16, w4a8 or w4a8:kmeans; of a file with several configurations FILE:N or FILE:best [default: f16]
    #[arg(long, alias = "q_config", value_name = "FILE|SPEC", group = "precision")]
    q_config: Option<String>,
    /// Bits of the denoiser's weights, as research scripts have it: the same as --q-config w<BITS>a16.
    #[arg(long, alias = "weight_bit", value_name = "BITS", group = "precision", value_parser = ["2", "3", "4", "5", "6", "8"])]
    weight_bit: Option<String>,
    /// Quantize activations too, wherever weights are. For configurations that say nothing about activations.
    #[arg(long, alias = "quant_act", requires = "precision")]
    quant_act: bool,
    /// Bits of quantized activations.
    #[arg(long, alias = "act_bit", requires = "quant_act", default_value = "8", value_parser = ["6", "8"], value_name = "BITS")]
    act_bit: String,
    /// Quantization of the autoencoder [default: f32 if the denoiser is f32, else f16]
    #[arg(long, alias = "vae_q_config", value_name = "FILE|SPEC")]
    vae_q_config: Option<String>,
    /// Quantization of the text encoders [default: f32 if the denoiser is f32, else f16]
    #[arg(long, alias = "text_q_config", value_name = "FILE|SPEC")]
    text_q_config: Option<String>,
    /// Statistics of the inputs of layers, made by `packer calibrate`: codes are then chosen for what layers make of such
    /// inputs, which is worth about one bit, instead of rounding each weight to the nearest level.
    #[arg(long, value_name = "CALIB.safetensors", requires = "precision")]
    calib: Option<PathBuf>,

    /// Where ranges of quantized activations come from: `dynamic` takes each row's own while running; the others fix one for
    /// all rows, from the calibration or the imported file
    #[arg(long, value_enum, default_value = "dynamic", value_name = "RULE")]
    act_range: ActRange,

    /// Fix a range for each of so many intervals of time, of as many as --cali-st at most [default: 1]
    #[arg(long, value_name = "K")]
    act_intervals: Option<usize>,

    /// What time is in intervals: the sampler's steps, or the timesteps that the network receives [default: step]
    #[arg(long, value_enum, value_name = "AXIS")]
    act_axis: Option<ActAxis>,

    /// Fix ranges that reach as far on both sides of zero
    #[arg(long, alias = "a_sym", alias = "a-sym")]
    act_sym: bool,

    /// Quantized weights to be used as they are: what `packer reconstruct` made, or a research project saved, Q-Diffusion's
    /// ckpt.pth or Qua2SeDiMo's *_mq.pt. --q-config says how many bits they have, and by which method; activations are as it says
    #[arg(long, value_name = "FILE", visible_alias = "cali-ckpt", alias = "cali_ckpt")]
    import: Option<PathBuf>,

    /// Quantize the two inputs of shortcuts over skip connections apart, as Q-Diffusion does
    #[arg(long)]
    split: bool,
    /// Compute the denoiser's self-attention in 8 bits wherever the layers around it have quantized activations. Faster on
    /// CPUs; changes results about as much as 8-bit activations do.
    #[arg(long)]
    int8_attention: bool,
    /// What the denoiser predicts, whatever the model's files say: epsilon, v or sample [default: what metadata, marks or a
    /// .yaml beside a single file say, or the model's scheduler]
    #[arg(long, alias = "prediction-type", value_name = "NAME", value_parser = parse_prediction)]
    prediction: Option<Prediction>,
    /// A scheduler_config.json of diffusers in place of the model's own, or for a single file [default: that of the
    /// published models of its kind]
    #[arg(long, alias = "scheduler_config", value_name = "FILE")]
    scheduler_config: Option<PathBuf>,
    /// The file to write.
    #[arg(short, long, value_name = "OUT.aqt")]
    output: PathBuf,
    /// Print nothing but errors.
    #[arg(short, long, conflicts_with = "verbose")]
    quiet: bool,
    /// List for each layer which part of the configuration decided, and why it is packed otherwise, if it is.
    #[arg(short, long)]
    verbose: bool,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
}

/// Where ranges of activations come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ActRange {
    /// Each row's own, taken while running.
    Dynamic,
    /// Fixed: the least and greatest value that calibration saw.
    #[value(alias = "minmax", alias = "max")]
    MinMax,
    /// Fixed: shrunk from there to the least error.
    Mse,
    /// Fixed: those that the imported file has.
    Import,
}

/// What intervals of activation ranges are of.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum ActAxis {
    /// The sampler's steps.
    Step,
    /// The model's timesteps.
    Timestep,
}

impl Pack {
    /// The ranges of activations that are fixed, if they are.
    ///
    /// # Errors
    /// If an option would have no effect.
    fn activation_ranges(&self) -> Result<Option<RangeSource>> {
        let idle = |option: &str, rules: &str| {
            let expected = format!("--act-range {rules}, or it has no effect");
            Err(aquatint::error::Error::request(option, expected, self.act_range.name()).into())
        };
        let rule = match self.act_range {
            ActRange::MinMax => RangeRule::MinMax,
            ActRange::Mse => RangeRule::Mse,
            ActRange::Dynamic | ActRange::Import if self.act_intervals.is_some() => {
                return idle("--act-intervals", "min-max or mse");
            }
            ActRange::Dynamic | ActRange::Import if self.act_axis.is_some() => {
                return idle("--act-axis", "min-max or mse");
            }
            ActRange::Dynamic if self.act_sym => return idle("--act-sym", "min-max, mse or import"),
            ActRange::Dynamic => return Ok(None),
            ActRange::Import => return Ok(Some(RangeSource::Import { symmetric: self.act_sym })),
        };
        let axis = match self.act_axis {
            Some(ActAxis::Timestep) => CurveAxis::Timestep,
            Some(ActAxis::Step) | None => CurveAxis::StepFraction,
        };
        let intervals = self.act_intervals.unwrap_or(1);
        let ranges = ActivationRanges { rule, intervals, axis, symmetric: self.act_sym };
        Ok(Some(RangeSource::Calibration(ranges)))
    }
}

impl ActRange {
    fn name(self) -> &'static str {
        match self {
            ActRange::Dynamic => "dynamic",
            ActRange::MinMax => "min-max",
            ActRange::Mse => "mse",
            ActRange::Import => "import",
        }
    }
}

fn parse_prediction(text: &str) -> std::result::Result<Prediction, &'static str> {
    settings::prediction(text).ok_or("epsilon, v or sample is expected")
}

/// What the program does beside packing.
#[derive(Debug, Subcommand)]
enum Command {
    /// Show what a packed file holds: model, quantization of each layer, tensors.
    Inspect {
        /// The packed file.
        file: PathBuf,
        /// Print everything as JSON, programs included.
        #[arg(long)]
        json: bool,
        /// Write a page that shows layers, bits, errors and sizes, instead of printing.
        #[arg(long, value_name = "PAGE.html", conflicts_with = "json")]
        html: Option<PathBuf>,
    },
    /// Check every byte of a packed file.
    Verify {
        /// The packed file.
        file: PathBuf,
    },
    /// Write the dequantized weights to a safetensors file, with the names and shapes that diffusers gives them.
    Unpack {
        /// The packed file.
        file: PathBuf,
        /// The safetensors file to write.
        #[arg(short, long, value_name = "W.safetensors")]
        output: PathBuf,
        /// The component to write: a folder of the model directory [default: the denoiser's]
        #[arg(long, value_name = "FOLDER")]
        component: Option<String>,
        /// Type of the written numbers.
        #[arg(long, value_enum, default_value = "f32")]
        dtype: Dtype,
    },
    /// See what the inputs of a model's layers are like while the model makes images, so that it can be quantized for them.
    Calibrate(Box<calibrate::Calibrate>),
    /// Train quantized weights so that blocks of the network, or single layers, make what they made before; packing takes them
    /// with --import.
    Reconstruct(Box<reconstruct::Reconstruct>),
    /// Configurations: what one makes of a model, and what they may hold.
    #[command(subcommand)]
    Config(config::Config),
    /// Compare packed files of one model with the one that holds floats, on the same noise: error of the network's calls, of
    /// latents and of images, and how many images a classifier reads right.
    Evaluate(Box<evaluate::Evaluate>),
    /// Make a model of true size with random weights, to try things on: a diffusers directory, or for ldm4, church and
    /// cin256 one file in their authors' layout.
    Synth {
        /// The architecture.
        #[arg(value_parser = PossibleValuesParser::new(MODELS.map(|(name, _)| name)).map(synth_model))]
        arch: SynthModel,
        /// The directory or file to write.
        #[arg(short, long, value_name = "DIR|FILE")]
        output: PathBuf,
        /// Seed of the random weights.
        #[arg(long, default_value_t = 0)]
        seed: u64,
    },
}

/// The model called `name`, one of those that the parser admits.
fn synth_model(name: String) -> SynthModel {
    let found = MODELS.iter().find(|(n, _)| *n == name);
    found.map_or_else(|| unreachable!("{name}: a possible value"), |(_, model)| *model)
}

/// Element types of unpacked weights.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Dtype {
    /// 32-bit floats.
    F32,
    /// 16-bit floats.
    F16,
}

impl From<Dtype> for Float {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Float::F32,
            Dtype::F16 => Float::F16,
        }
    }
}

/// Runs the command line; 0 if all is well, 2 after an error.
pub fn main() -> ExitCode {
    // clap itself exits with 2 on wrong arguments.
    let cli = Cli::parse();
    let done = guard().and_then(|()| threads()).and_then(|()| match (cli.command, cli.pack) {
        (Some(Command::Inspect { file, json, html }), _) => inspect::inspect(&file, json, html.as_deref()),
        (Some(Command::Verify { file }), _) => inspect::verify(&file),
        (Some(Command::Unpack { file, output, component, dtype }), _) => {
            unpack::unpack(&file, &output, component.as_deref(), dtype.into())
                .map(|count| say_line(format!("{}: {count} tensors", output.display())))
        }
        (Some(Command::Calibrate(args)), _) => args.run(),
        (Some(Command::Reconstruct(args)), _) => args.run(),
        (Some(Command::Config(config)), _) => config::run(&config),
        (Some(Command::Evaluate(args)), _) => evaluate::run(&args),
        (Some(Command::Synth { arch, output, seed }), _) => {
            arch.write(&output, seed).map(|()| say_line(output.display()))
        }
        (None, Some(args)) => pack::pack(&args),
        (None, None) => Ok(()),
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}", error_line(&error));
            ExitCode::from(2)
        }
    }
}

/// Lets files be mapped, and signals end the program in order.
fn guard() -> Result<()> {
    #[cfg(unix)]
    aquatint::raw::mmap::guard(end)?;
    Ok(())
}

/// Starts the threads that all work is shared among.
fn threads() -> Result<()> {
    let started = rayon::ThreadPoolBuilder::new().build_global();
    let expected = "a number that the system can start; RAYON_NUM_THREADS sets it";
    Ok(started.map_err(|e| aquatint::Error::request("threads", expected, e))?)
}

/// Ends the program as a signal asks, with nothing half-written left behind, and tells of a file that shrank.
#[cfg(unix)]
fn end(interrupt: aquatint::raw::mmap::Interrupt) {
    let _abandoned = aquatint::raw::whole_file::abandon();
    if let aquatint::raw::mmap::Interrupt::Shortened(_) = interrupt {
        eprintln!("{}", error_line(&interrupt));
    }
    std::process::exit(interrupt.exit_code());
}

/// Prints `text` and a line end to standard output; a reader that has gone away is no error.
fn say(text: impl std::fmt::Display) {
    use std::io::Write;
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// Prints `text` as one line, whatever characters the names in it have.
fn say_line(text: impl std::fmt::Display) {
    say(one_line(&text.to_string()));
}

/// Prints `value` as indented JSON.
fn say_json(value: &impl serde::Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|e| aquatint::Error::request("report", "values JSON can hold", e))?;
    say(text);
    Ok(())
}
