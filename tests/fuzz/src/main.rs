//! Changes sealed files at random and uses what is still called sound.
//!
//! ```text
//! cargo run -p aquatint-fuzz -- [FILES] [--seed N] [--count M] [--seconds S] [--only SECTION]
//! ```
//!
//! Each mutation has a seed of its own: `--seed N` tries the seeds from N on, so a finding at seed X comes again with
//! `--seed X --count 1` and the same files. A mutation changes up to three places of a file's sections and makes all hashes
//! right again. What opens is planned for the CPU and for CUDA devices and used: an image, an image from an image, and one
//! call of the denoiser, on a random tier of the CPU and now and then on the emulated device.
//!
//! A panic is a fault of the library, and so is a *hole*: META alone was changed, where it must agree with the programs, the
//! file is called sound, and makes another picture or none. With either, the program ends with status 1. A mutation that
//! takes more than [`SLOW`] is told; one that takes more than [`HANGS`] ends the program.

mod examine;
mod mutate;
mod report;
mod subjects;

use aquatint::raw::format::SectionKind;
use clap::Parser;
use fastrand::Rng;
use report::{Panics, Report};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use subjects::Subject;

/// Longest time that a mutation should take.
const SLOW: Duration = Duration::from_secs(5);
/// Time after which a mutation is taken to be endless.
const HANGS: Duration = Duration::from_secs(120);

/// Changes sealed files at random and uses what is still called sound.
#[derive(Parser)]
struct Args {
    /// Packed files; without any, one of each kind is packed from the fixtures.
    files: Vec<PathBuf>,
    /// Seed of the first mutation; the next has the next.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Mutations to try.
    #[arg(long)]
    count: Option<u64>,
    /// Seconds after which no more is tried; without `--count`, 20 if absent.
    #[arg(long)]
    seconds: Option<u64>,
    /// Change this section only, such as META.
    #[arg(long, value_parser = section)]
    only: Option<SectionKind>,
}

fn section(name: &str) -> Result<SectionKind, String> {
    let names = || SectionKind::ALL.map(SectionKind::name).join(", ");
    SectionKind::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(|| format!("one of {}", names()))
}

/// The mutation at work, for the watch: its seed, what it is, and when it began.
type Current = Arc<Mutex<Option<(u64, String, Instant)>>>;

fn main() -> ExitCode {
    let args = Args::parse();
    let subjects = match args.files.is_empty() {
        true => subjects::all(),
        false => args.files.iter().map(|path| Subject::read(path)).collect(),
    };
    let seconds = args.seconds.or(args.count.is_none().then_some(20)).map(Duration::from_secs);
    let panics = Panics::catch();
    let current = Current::default();
    watch(current.clone());
    let start = Instant::now();
    let mut report = Report::default();
    let seeds = (args.seed..).take(args.count.unwrap_or(u64::MAX).try_into().unwrap_or(usize::MAX));
    for seed in seeds.take_while(|_| seconds.is_none_or(|most| start.elapsed() < most)) {
        let mut rng = Rng::with_seed(seed);
        let subject = &subjects[rng.usize(..subjects.len())];
        let mutation = mutate::mutate(&subject.file, &mut rng, args.only);
        let what = format!("--seed {seed}: {}: {}", subject.name, mutation.what);
        let began = Instant::now();
        *current.lock().expect("no panic holds it") = Some((seed, what.clone(), began));
        let outcome = catch_unwind(AssertUnwindSafe(|| examine::examine(subject, &mutation.file, &mut rng)));
        *current.lock().expect("no panic holds it") = None;
        report.add(outcome.ok(), began.elapsed(), &what, &panics);
    }
    println!("{}", report.line(args.seed, start.elapsed()));
    report.details().iter().for_each(|line| println!("{line}"));
    if report.faults() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Ends the program when a mutation does not end.
fn watch(current: Current) {
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(Duration::from_secs(1));
            if let Some((_, what, began)) = &*current.lock().expect("no panic holds it")
                && began.elapsed() > HANGS
            {
                println!("does not end: {what}");
                std::process::exit(1);
            }
        }
    });
}
