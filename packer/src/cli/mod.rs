//! The command line: the only place that prints, and that decides the exit code.

mod arguments;
mod calibrate;
mod config;
mod evaluate;
mod inspect;
mod multiquantizer;
mod pack;
mod page;
mod reconstruct;
mod research;
mod search;
mod sensitivity;
mod shard;
mod table;

use crate::error::Result;
use crate::pass::Split;
use crate::quantize::SmoothRule;
use crate::source::settings;
use crate::synth::{MODELS, SynthModel};
use crate::weights::Float;
use crate::{embeds, unpack};
use aquatint::error::{error_line, one_line};
use aquatint::sampler::Prediction;
use arguments::Pack;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Parser, Subcommand, ValueEnum};
use research::Research;
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
    #[command(flatten)]
    research: Research,
}

fn parse_smooth(text: &str) -> std::result::Result<SmoothRule, &'static str> {
    let alpha = |text: &str| text.parse().ok().filter(|alpha| (0.0..=1.0).contains(alpha));
    let rule = match text.strip_prefix("viditq:") {
        _ if text == "search" => Some(SmoothRule::Search),
        Some(rest) => alpha(rest).map(SmoothRule::ViditQ),
        None => alpha(text).map(SmoothRule::SmoothQuant),
    };
    rule.ok_or("a number from 0 to 1, viditq: and such a number, or search is expected")
}

fn parse_split(text: &str) -> std::result::Result<Split, &'static str> {
    Split::parse(text).ok_or("shortcut, conv or linear is expected")
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
    /// Turn features of prompts that were saved with torch.save (ViDiT-Q's text_embeds.pth, or tensors named as in diffusers'
    /// pipelines) into the file that `aquatint run --inputs` reads.
    Embeds {
        /// The saved features.
        file: PathBuf,
        /// The safetensors file to write.
        #[arg(short, long, value_name = "EMBEDS.safetensors")]
        output: PathBuf,
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
    /// latents and of images, and what a classifier, Inception, LPIPS or CLIP see in these; or folders of pictures.
    Evaluate(Box<evaluate::Evaluate>),
    /// Measure what each precision of each layer alone does to the output of the network, call by call: which layer needs which
    /// bits.
    Sensitivity(Box<sensitivity::Sensitivity>),
    /// Choose a precision for each layer from what packer sensitivity measured, so that the file fits a budget and the error of the
    /// output is least; writes a configuration for --q-config.
    Search(Box<search::Search>),
    /// Tell which kinds of layers and which depths the error of the output comes from, and which methods they want.
    Insights(search::Insights),
    /// Measure random configurations, drawn as Qua2SeDiMo draws them, and keep them as it does (quant_cache.pkl): what predictors learn
    /// from.
    Archive(Box<search::Archive>),
    /// Hold a search against other ways to spend the same bytes: uniform precision, errors of weights, the best of random
    /// configurations, a predictor that learned from such.
    Compare(Box<search::Compare>),
    /// Quantize every layer of a model's denoiser by several methods, into one file that --import reads, with what each method
    /// costs and loses: what Qua2SeDiMo calls a multiquantizer.
    Multiquantizer(multiquantizer::Multiquantizer),
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
        (Some(Command::Embeds { file, output }), _) => embeds::convert(&file, &output).map(|tensors| {
            let tensors: Vec<_> = tensors.iter().map(|(name, dims)| format!("{name} {dims:?}")).collect();
            say_line(format!("{}: {}", output.display(), tensors.join(", ")));
        }),
        (Some(Command::Calibrate(args)), _) => args.run(),
        (Some(Command::Reconstruct(args)), _) => args.run(),
        (Some(Command::Config(config)), _) => config::run(&config),
        (Some(Command::Evaluate(args)), _) => evaluate::run(&args),
        (Some(Command::Sensitivity(args)), _) => args.run(),
        (Some(Command::Search(args)), _) => args.run(),
        (Some(Command::Insights(args)), _) => args.run(),
        (Some(Command::Archive(args)), _) => args.run(),
        (Some(Command::Compare(args)), _) => args.run(),
        (Some(Command::Multiquantizer(args)), _) => args.run(),
        (Some(Command::Synth { arch, output, seed }), _) => {
            arch.write(&output, seed).map(|()| say_line(output.display()))
        }
        (None, Some(args)) => pack::pack(&args, &cli.research),
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
