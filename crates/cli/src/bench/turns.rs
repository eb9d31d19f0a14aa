//! Several files beside each other: calls of their denoisers by turns, in one process.
//!
//! On a machine that others share, two runs of one file differ by more than two files do. Calls that follow each other meet much
//! the same machine, so what is told is the median over turns of the ratio to the first file's call of the same turn, with the
//! interval that holds the true median in 95 of 100 such runs, by order statistics: it assumes no distribution.

use super::super::device::{Choice, with_threads};
use super::super::{model, say, say_json};
use super::Bench;
use super::target::Target;
use aquatint::model::Model;
use aquatint::raw::backend::Backend;
use aquatint::raw::backend::args::Element;
use aquatint::raw::backend::cpu::Cpu;
use aquatint::raw::backend::cuda::{Cuda, device};
use aquatint::raw::format::Packed;
use aquatint::raw::program::Role;
use aquatint::{Error, Result};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// Seconds of a file's calls, turn by turn.
struct Calls<'f> {
    file: &'f Path,
    seconds: Vec<f64>,
    /// By kind of op, in one more call of every turn.
    ops: BTreeMap<String, Vec<f64>>,
}

/// A median, and the interval that holds the true one.
struct Ratio {
    median: f64,
    low: f64,
    high: f64,
}

/// Times the denoisers of all files of `bench` by turns.
///
/// # Errors
/// What opening, binding and calling refuse.
pub(super) fn run(bench: &Bench, choice: Choice) -> Result<()> {
    let packed = bench.models.iter().map(|file| model::open(Some(file))).collect::<Result<Vec<_>>>()?;
    match choice {
        Choice::Cpu(tier) => with_backends(bench, &packed, &packed.iter().map(|_| Cpu::new(tier)).collect::<Vec<_>>()),
        Choice::Cuda(index) => {
            let device = |packed| Ok(Cuda::new(device::Device::open(index)?, Packed::data(packed), Element::F16));
            with_backends(bench, &packed, &packed.iter().map(device).collect::<Result<Vec<_>>>()?)
        }
    }
}

fn with_backends<B: Backend>(bench: &Bench, packed: &[Packed<model::Bytes>], backends: &[B]) -> Result<()> {
    let models = packed.iter().map(Model::new).collect::<Result<Vec<_>>>()?;
    let mut targets = Vec::new();
    for ((backend, model), file) in backends.iter().zip(&models).zip(&bench.models) {
        let size = bench.request(model).map(|request| request.latent_size);
        let target = size
            .and_then(|size| Target::new(backend, model, (Role::Denoiser, bench.batch_size, size), bench.repeat + 1));
        targets.push(target.map_err(|e| model::named(e, file))?);
    }
    let mut files: Vec<_> =
        bench.models.iter().map(|file| Calls { file, seconds: Vec::new(), ops: BTreeMap::new() }).collect();
    for target in &mut targets {
        (0..target.shares().len()).try_for_each(|phase| target.first(phase).map(|_| ()))?;
    }
    for turn in 1..=bench.repeat {
        for i in 0..files.len() {
            let at = (i + turn) % files.len();
            files[at].take(&mut targets[at], turn, bench.json)?;
        }
    }
    let name = with_threads(&backends[0]);
    if bench.json {
        let told: Vec<Value> = files.iter().map(|calls| calls.json(&files[0])).collect();
        say_json(&json!({ "device": name, "batch": bench.batch_size, "files": told }));
        return Ok(());
    }
    say(format_args!("{name}; denoiser calls of batch {} by turns, {} of each", bench.batch_size, bench.repeat));
    let names: Vec<String> = files.iter().map(|calls| calls.file.display().to_string()).collect();
    let width = names.iter().map(|name| name.chars().count()).max().unwrap_or(0);
    say(format_args!("{:<width$}  {:>10}  {:>10}  to the first (95 of 100)", "file", "best", "median"));
    for (calls, name) in files.iter().zip(&names) {
        let (best, middle) = (calls.best() * 1e3, median(&calls.seconds) * 1e3);
        let Ratio { median, low, high } = calls.ratio(&files[0]);
        say(format_args!("{name:<width$}  {best:7.2} ms  {middle:7.2} ms  {median:.3} ({low:.3} to {high:.3})"));
    }
    Ok(())
}

impl Calls<'_> {
    /// One turn: a call in each phase, and with `ops` one more that is timed op by op. A phase counts by its share of a run.
    fn take<B: Backend>(&mut self, target: &mut Target<'_, B>, turn: usize, ops: bool) -> Result<()> {
        let mut seconds = 0.0;
        for phase in 0..target.shares().len() {
            let share = target.shares()[phase];
            // Entering a phase fills tables anew, which a run does once for many calls.
            if target.shares().len() > 1 {
                target.call(turn, phase)?;
            }
            seconds += share * target.call(turn, phase)?;
            let by_op = if ops { target.ops(turn, phase, 0)?.0 } else { BTreeMap::new() };
            for (op, work) in by_op {
                let turns = self.ops.entry(op).or_default();
                turns.resize(turn, 0.0);
                turns[turn - 1] += share * work.seconds;
            }
        }
        if seconds <= 0.0 {
            return Err(Error::request("--repeat", "calls that take time", seconds));
        }
        self.seconds.push(seconds);
        Ok(())
    }

    fn best(&self) -> f64 {
        self.seconds.iter().copied().fold(f64::INFINITY, f64::min)
    }

    fn ratio(&self, first: &Self) -> Ratio {
        let ratios: Vec<f64> = self.seconds.iter().zip(&first.seconds).map(|(mine, first)| mine / first).collect();
        interval(ratios)
    }

    fn json(&self, first: &Self) -> Value {
        let Ratio { median: ratio, low, high } = self.ratio(first);
        json!({
            "file": self.file, "best": self.best(), "median": median(&self.seconds),
            "ratio": { "median": ratio, "low": low, "high": high },
            "calls": self.seconds, "ops": self.ops,
        })
    }
}

fn median(of: &[f64]) -> f64 {
    interval(of.to_vec()).median
}

/// The median of `of`, which is not empty, and the order statistics on both sides of it between which the true median is with a
/// probability of 95 % (normal approximation of the binomial distribution, corrected for continuity); least and greatest of fewer than six.
fn interval(mut of: Vec<f64>) -> Ratio {
    of.sort_by(f64::total_cmp);
    let n = of.len();
    let below = ((n as f64 - 1.0 - 1.96 * (n as f64).sqrt()) / 2.0).floor().max(0.0) as usize;
    Ratio { median: (of[n / 2] + of[(n - 1) / 2]) / 2.0, low: of[below], high: of[n - 1 - below] }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ranks of the 95 % interval of a median, as tables of the sign test have them: 6 values, the extremes; 20, the 6th and 15th;
    /// 50, the 18th and 33rd.
    #[test]
    fn intervals_are_those_of_the_sign_test() {
        for (n, ranks) in [(1, (1, 1)), (5, (1, 5)), (6, (1, 6)), (20, (6, 15)), (50, (18, 33))] {
            let found = interval((1..=n).rev().map(f64::from).collect());
            assert_eq!(found.median, f64::from(n + 1) / 2.0);
            assert_eq!((found.low as i32, found.high as i32), ranks, "of {n}");
        }
    }
}
