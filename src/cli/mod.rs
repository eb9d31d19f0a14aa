//! The command line: the only place that names a concrete back end, prints, reads the clock, or exits.

mod bench;
mod eval;
mod info;
mod model;
mod run;
mod tensors;
mod verify;

use aquatint::backend::cpu::Tier;
use aquatint::{Error, Result};
use clap::{Args, Parser, Subcommand};
use std::io::Write;
use std::process::ExitCode;

/// Runs quantized diffusion models from one memory-mapped file.
#[derive(Parser)]
#[command(name = "aquatint", version, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make images and write them as PNG.
    Run(run::Run),
    /// Run the denoiser once: no guidance, no sampler.
    Eval(eval::Eval),
    /// Time loading, steps and decoding, op by op.
    Bench(bench::Bench),
    /// Show what a file holds and how much memory it needs.
    Info(info::Info),
    /// Check every byte of a file.
    Verify(verify::Verify),
}

/// Where to compute.
#[derive(Args, Clone)]
struct Device {
    /// auto, cpu (CUDA devices are not supported by this version)
    #[arg(long, default_value = "auto", value_name = "DEVICE")]
    device: String,
    /// Threads [default: all processors]
    #[arg(short = 't', long, value_name = "N")]
    threads: Option<usize>,
    /// Instruction set [default: the best this processor has]
    #[arg(long, value_name = "NAME")]
    isa: Option<String>,
}

impl Device {
    /// The instruction set to use.
    fn tier(&self) -> Result<Tier> {
        if !matches!(self.device.as_str(), "auto" | "cpu") {
            return Err(Error::request(
                "--device",
                "auto or cpu",
                format!("`{}`; this version has no CUDA back end", self.device),
            ));
        }
        let tiers = Tier::available();
        let Some(name) = &self.isa else { return Ok(tiers[0]) };
        let names: Vec<_> = tiers.iter().map(Tier::name).collect();
        tiers
            .iter()
            .find(|t| t.name() == name)
            .copied()
            .ok_or_else(|| Error::request("--isa", format!("one of this processor's: {}", names.join(", ")), name))
    }

    /// Calls `f` on a pool of the threads asked for.
    fn install<R: Send>(&self, f: impl FnOnce() -> R + Send) -> Result<R> {
        if self.threads == Some(0) {
            return Err(Error::request("--threads", "at least 1", 0));
        }
        let pool = rayon::ThreadPoolBuilder::new().num_threads(self.threads.unwrap_or(0)).build();
        let pool = pool.map_err(|e| Error::request("--threads", "a number the system can start", e))?;
        Ok(pool.install(f))
    }
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(run) => run.run(),
        Command::Eval(eval) => eval.run(),
        Command::Bench(bench) => bench.run(),
        Command::Info(info) => info.run(),
        Command::Verify(verify) => verify.run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            let _ = writeln!(std::io::stderr(), "error: {e}");
            ExitCode::from(2)
        }
    }
}

/// Prints a line; a closed pipe is not an error.
fn say(line: impl std::fmt::Display) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// Prints JSON.
fn say_json(value: &serde_json::Value) {
    say(format_args!("{value:#}"));
}

/// Bytes for people.
fn bytes(n: usize) -> String {
    match n {
        0..1024 => format!("{n} B"),
        1024..1_048_576 => format!("{:.1} KiB", n as f64 / 1024.0),
        1_048_576..1_073_741_824 => format!("{:.1} MiB", n as f64 / 1_048_576.0),
        _ => format!("{:.2} GiB", n as f64 / 1_073_741_824.0),
    }
}
