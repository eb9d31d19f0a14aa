//! The command line: the only place that prints, and that decides the exit code.

mod inspect;
mod pack;
mod table;

use crate::error::Result;
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

/// Packs a diffusion model into one quantized file.
///
/// MODEL is a diffusers model directory. The result is one .aqt file, which holds the networks, their weights and all
/// that is needed to run them.
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
    /// The model: a diffusers directory (with model_index.json).
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// Quantization of the denoiser: a file (.json .toml .yaml .pkl) or a specification such as f32, f16, w8a16, w4a8
    /// or w4a8:kmeans. Without it, f16.
    #[arg(long, alias = "q_config", value_name = "FILE|SPEC")]
    q_config: Option<String>,
    /// The same for the image decoder. Without it f16, or f32 if the denoiser is f32.
    #[arg(long, alias = "vae_q_config", value_name = "FILE|SPEC")]
    vae_q_config: Option<String>,
    /// The file to write.
    #[arg(short, long, value_name = "OUT.aqt")]
    output: PathBuf,
    /// Print nothing but errors.
    #[arg(short, long, conflicts_with = "verbose")]
    quiet: bool,
    /// Also list source files and the reasons of exceptions.
    #[arg(short, long)]
    verbose: bool,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
}

/// Other things to do than packing.
#[derive(Debug, Subcommand)]
enum Command {
    /// Show what is in a packed file.
    Inspect {
        /// The packed file.
        file: PathBuf,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Check every byte of a packed file.
    Verify {
        /// The packed file.
        file: PathBuf,
    },
}

/// Runs the command line; 0 if all is well, 2 after an error.
pub fn main() -> ExitCode {
    // clap itself exits with 2 on wrong arguments.
    let cli = Cli::parse();
    let done = match (cli.command, cli.pack) {
        (Some(Command::Inspect { file, json }), _) => inspect::inspect(&file, json),
        (Some(Command::Verify { file }), _) => inspect::verify(&file),
        (None, Some(args)) => pack::pack(&args),
        (None, None) => Ok(()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

/// Prints `text` and a line end to standard output; a reader that has gone away is no error.
fn say(text: impl std::fmt::Display) {
    use std::io::Write;
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// Prints `value` as indented JSON.
fn say_json(value: &impl serde::Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|e| aquatint::Error::request("report", "values JSON can hold", e))?;
    say(text);
    Ok(())
}
