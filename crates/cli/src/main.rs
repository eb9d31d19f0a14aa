//! The program `aquatint`: the only place of the runtime that names a concrete back end, prints, reads the clock, or exits.
#![deny(unsafe_code)]

mod bench;
mod clock;
mod device;
mod encode;
mod eval;
mod frames;
mod info;
mod merge;
mod model;
mod options;
mod run;
mod sample;
mod serve;
mod tensors;
mod verify;
mod work;

use aquatint::error::error_line;
use aquatint::{Error, Result};
use clap::{CommandFactory, Parser, Subcommand};
use device::Device;
use std::io::Write;
use std::process::ExitCode;

/// Runs quantized diffusion models from one memory-mapped file.
#[derive(Parser)]
#[command(name = "aquatint", version, max_term_width = 110)]
#[command(arg_required_else_help = true, args_conflicts_with_subcommands = true)]
struct Cli {
    /// List the devices of this machine
    #[arg(long)]
    list_devices: bool,
    /// List them as JSON
    #[arg(long, requires = "list_devices")]
    json: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Make images and write them as PNG.
    Run(Box<run::Run>),
    /// Make a part of many images, for several machines.
    Sample(Box<sample::Sample>),
    /// Put the parts that sample made together.
    Merge(merge::MergeArgs),
    /// Run the denoiser once: no guidance, no sampler.
    Eval(eval::Eval),
    /// Run the text encoders once, and write what `run --inputs` reads in place of prompts.
    Encode(encode::Encode),
    /// Time loading, steps and decoding, op by op.
    Bench(bench::Bench),
    /// Serve models over HTTP: OpenAI's image API, the Stable Diffusion web UI's, and jobs that tell their steps.
    Serve(Box<serve::Serve>),
    /// Show what a file holds and how much memory it needs.
    Info(info::Info),
    /// Check every byte of a file.
    Verify(verify::Verify),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = guard().and_then(|()| match cli.command {
        None => {
            device::list(cli.json);
            Ok(())
        }
        Some(Command::Run(run)) => run.run(),
        Some(Command::Sample(sample)) => sample.run(),
        Some(Command::Merge(merge)) => merge.run(),
        Some(Command::Eval(eval)) => eval.run(),
        Some(Command::Encode(encode)) => encode.run(),
        Some(Command::Bench(bench)) => bench.run(),
        Some(Command::Serve(serve)) => serve.run(),
        Some(Command::Info(info)) => info.run(),
        Some(Command::Verify(verify)) => verify.run(),
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            let _ = writeln!(std::io::stderr(), "{}", error_line(&spelled(e)));
            ExitCode::from(2)
        }
    }
}

/// Lets model files be mapped, and signals end the program in order.
fn guard() -> Result<()> {
    #[cfg(unix)]
    aquatint::raw::mmap::guard(end)?;
    Ok(())
}

/// `e`, with an option that it is about spelled as on the command line.
fn spelled(e: Error) -> Error {
    match e {
        Error::Request { kind, what, expected, got } => {
            let command = Cli::command();
            let mut arguments = command.get_subcommands().flat_map(|sub| sub.get_arguments());
            let option = arguments.any(|argument| argument.get_long() == Some(&what));
            Error::Request { kind, what: if option { format!("--{what}") } else { what }, expected, got }
        }
        other => other,
    }
}

/// Ends the program as a signal asks, with nothing half-written left behind, and tells of a model file that shrank.
#[cfg(unix)]
fn end(interrupt: aquatint::raw::mmap::Interrupt) {
    if let aquatint::raw::mmap::Interrupt::Signal(_) = interrupt {
        serve::stop();
    }
    let _abandoned = aquatint::raw::whole_file::abandon();
    if let aquatint::raw::mmap::Interrupt::Shortened(_) = interrupt {
        let _ = writeln!(std::io::stderr(), "{}", error_line(&interrupt));
    }
    std::process::exit(interrupt.exit_code());
}

/// Prints a line; a closed pipe is not an error, a full disk is.
fn say(line: impl std::fmt::Display) {
    if let Err(e) = writeln!(std::io::stdout(), "{line}")
        && e.kind() != std::io::ErrorKind::BrokenPipe
    {
        let _ = writeln!(std::io::stderr(), "error: cannot write standard output: {e}");
        std::process::exit(2);
    }
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
