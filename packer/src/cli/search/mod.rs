//! `packer search sensitivity.json --budget 3.5bit -o config.toml`, and what else there is to do with sensitivities.

mod archive;
mod compare;
mod insights;
mod measuring;

pub(super) use archive::Archive;
pub(super) use compare::{Compare, LATENTS, Outcome};

pub(super) use insights::{Insights, wants};

use super::table::{Table, bytes, percent};
use super::{say, say_json, say_line};
use crate::error::Result;
use crate::search::predict::Predictor;
use crate::search::{Budget, Found, Meter, Objective, Problem, Refined, Rule, Times, cache, refine};
use crate::sensitivity::Record;
use aquatint::Error;
use aquatint::options::parse_bytes;
use aquatint::raw::whole_file::check_target;
use aquatint_evaluation::stats::Estimate;
use clap::{Args, ValueEnum};
use measuring::{Measured, Measuring};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Images by which a signal-to-noise ratio is judged unless another number is asked for.
const IMAGES: usize = 32;

/// Calls of each choice that are timed: of every op the least counts.
const ROUNDS: usize = 15;

/// Arguments of a search.
#[derive(Debug, Args)]
pub(super) struct Search {
    /// What packer sensitivity measured, or configurations with their scores as packer archive and Qua2SeDiMo leave them
    /// (quant_cache.pkl).
    #[arg(value_name = "SENSITIVITY.json|CACHE.pkl")]
    file: PathBuf,
    /// The most that the layers may take: average bits of a weight as Qua2SeDiMo counts them (3.5bit), bytes in the file, codebooks
    /// and scales included (900MB), or the time of a call of one image as measured on this machine (120ms; needs --choices)
    #[arg(long, value_name = "BITS|BYTES|TIME", value_parser = parse_budget)]
    budget: Option<Budget>,
    /// The smallest configuration whose pictures are so near to those of the float model, in dB; needs --choices.
    #[arg(long, alias = "target_psnr", value_name = "DB", conflicts_with = "budget", requires = "choices")]
    target_psnr: Option<f64>,
    /// Images by which --target-psnr judges: the median counts
    #[arg(long, default_value_t = IMAGES, value_name = "N", requires = "target_psnr")]
    n: usize,
    /// List what every budget buys instead: the sizes at which a layer takes another choice.
    #[arg(long, conflicts_with_all = ["budget", "target_psnr", "output"])]
    pareto: bool,
    /// Try so many moves from what was found: configurations that are measured, not reckoned; needs --choices
    #[arg(long, default_value_t = 0, value_name = "N", requires = "choices")]
    refine: usize,
    /// Of a cache: the score to learn [default: D, else FID-GT-1k]; less is better
    #[arg(long, value_name = "NAME")]
    target: Option<String>,
    #[command(flatten)]
    rules: Rules,
    #[command(flatten)]
    measuring: Measuring,
    /// The configuration to write, for packer MODEL --q-config; a .pkl for Qua2SeDiMo.
    #[arg(short, long, value_name = "CONFIG.toml|.pkl", required_unless_present = "pareto")]
    output: Option<PathBuf>,
    /// Print nothing but errors.
    #[arg(short, long)]
    quiet: bool,
    /// Print what was found as JSON.
    #[arg(long)]
    json: bool,
}

/// What is said about layers beforehand.
#[derive(Debug, Args)]
pub(super) struct Rules {
    /// Layers that a glob matches take this choice; may be given several times.
    #[arg(long, value_name = "GLOB=SPEC", value_parser = parse_fixed)]
    fix: Vec<Rule>,
    /// Layers that a glob matches have weights of so many bits at least; may be given several times.
    #[arg(long, alias = "min-bits", value_name = "GLOB=BITS", value_parser = parse_least)]
    least: Vec<Rule>,
    /// Layers that a glob matches take one choice together; may be given several times.
    #[arg(long, value_name = "GLOB")]
    tie: Vec<String>,
}

impl Rules {
    /// `problem` with these rules.
    fn apply(&self, problem: Problem) -> Result<Problem> {
        let tied = self.tie.iter().map(|glob| Rule::Tied(glob.clone()));
        problem.with_rules(&self.fix.iter().chain(&self.least).cloned().chain(tied).collect::<Vec<_>>())
    }
}

fn parse_fixed(text: &str) -> std::result::Result<Rule, &'static str> {
    let (glob, choice) = text.split_once('=').ok_or("a glob, = and a choice such as w4a8:kmeans are expected")?;
    Ok(Rule::Fixed(glob.into(), choice.into()))
}

fn parse_least(text: &str) -> std::result::Result<Rule, &'static str> {
    let parts = text.split_once('=').and_then(|(glob, bits)| Some((glob, bits.parse().ok()?)));
    let (glob, bits) = parts.ok_or("a glob, = and a number of bits are expected")?;
    Ok(Rule::Least(glob.into(), bits))
}

fn parse_budget(text: &str) -> std::result::Result<Budget, String> {
    let unit = text.strip_suffix("ms").map(|n| (n, 1e-3)).or(text.strip_suffix('s').map(|n| (n, 1.0)));
    if let Some((Ok(number), unit)) = unit.map(|(number, unit)| (number.trim().parse::<f64>(), unit)) {
        return match number > 0.0 && number.is_finite() {
            true => Ok(Budget::Seconds(number * unit)),
            false => Err(format!("a time such as 120ms expected, not `{text}`")),
        };
    }
    let bits = text.strip_suffix("bits").or_else(|| text.strip_suffix("bit"));
    match bits.map(|bits| bits.trim().parse::<f64>()) {
        Some(Ok(bits)) if bits > 0.0 && bits <= 64.0 => Ok(Budget::Bits(bits)),
        Some(_) => Err(format!("bits a weight such as 3.5bit expected, not `{text}`")),
        None => parse_bytes(text).map(|bytes| Budget::Bytes(bytes as u64)),
    }
}

/// The problem that `file` is about. Of a cache its errors are what a predictor learned, whose rank correlation with
/// configurations that it has not seen comes with it.
fn problem(file: &Path, objective: Calls, target: Option<&str>) -> Result<(Problem, Option<Estimate>)> {
    if file.extension().is_none_or(|kind| kind != "pkl") {
        return Ok((Problem::new(&Record::open(file)?, objective.into())?, None));
    }
    let entries = cache::read(file)?;
    let target = cache::Target::new(target, &entries);
    let (problem, samples) = cache::problem(&file.display().to_string(), &entries, &target)?;
    let errors = Predictor::fit(&samples).effects(problem.choices.len());
    Ok((problem.with_errors(&errors), samples.held_out()))
}

/// What is said of a predictor.
fn learned_words(Estimate { value, low, high }: Estimate) -> String {
    format!(
        "by a predictor whose rank correlation with configurations it has not seen is {value:.3} [{low:.3}, {high:.3}]"
    )
}

/// Calls that count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Calls {
    /// From a tenth to six tenths of a run.
    Middle,
    /// All that were measured.
    All,
}

impl From<Calls> for Objective {
    fn from(calls: Calls) -> Self {
        match calls {
            Calls::Middle => Objective::Middle,
            Calls::All => Objective::All,
        }
    }
}

/// What was found beside an assignment.
#[derive(Default)]
struct Beside {
    /// The rank correlation of a predictor with scores that it had not seen.
    held_out: Option<Estimate>,
    refined: Option<Refined>,
    /// Signal-to-noise ratio of pictures.
    psnr: Option<Estimate>,
    /// Seconds of a call of one image: reckoned from those of layers, and measured.
    seconds: Option<[f64; 2]>,
}

impl Search {
    /// Runs the command.
    pub(super) fn run(&self) -> Result<()> {
        if let Some(output) = &self.output {
            let read = [&self.file].into_iter().chain(self.measuring.reads()).map(PathBuf::as_path);
            check_target(output, &read.collect::<Vec<_>>())?;
        }
        if self.budget.is_none() && self.target_psnr.is_none() && !self.pareto {
            let expected = "--budget, --target-psnr or --pareto";
            return Err(Error::request("budget", expected, "none of them").into());
        }
        let mut beside = Beside::default();
        if self.file.extension().is_some_and(|kind| kind == "pkl") {
            self.measuring.refuse("a cache")?;
            let (problem, held_out) = problem(&self.file, self.measuring.objective, self.target.as_deref())?;
            beside.held_out = held_out;
            return self.finish(&self.rules.apply(problem)?, None, beside);
        }
        let measured = self.measuring.open(&self.file, &self.rules)?;
        self.finish(&measured.problem, Some(&measured), beside)
    }

    fn finish(&self, problem: &Problem, measured: Option<&Measured>, mut beside: Beside) -> Result<()> {
        let Some(output) = &self.output else { return self.list(problem) };
        let timed = matches!(self.budget, Some(Budget::Seconds(_)));
        let meter = match measured {
            Some(measured) if timed || self.refine > 0 => Some(measured.meter(measured.trials()?, self.quiet)?),
            None if timed => return Err(Error::request("budget", "bits or bytes for a cache", "a time").into()),
            _ => None,
        };
        let times = meter.as_ref().filter(|_| timed).map(|meter| Times::measure(problem, meter, ROUNDS, Instant::now));
        let times = times.transpose()?;
        let mut found = match (self.budget, self.target_psnr, measured) {
            (Some(budget), ..) => problem.within(budget, times.as_ref())?,
            (None, Some(psnr), Some(measured)) => {
                let (found, reached) = measured.reaching(psnr, self.n, self.quiet)?;
                beside.psnr = Some(reached);
                found
            }
            _ => return Err(Error::request("target-psnr", "what packer sensitivity measured", "a cache").into()),
        };
        if let Some(meter) = meter.as_ref().filter(|_| self.refine > 0) {
            beside.refined = Some(self.refined(problem, meter, &mut found)?);
        }
        if let Some((meter, times)) = meter.as_ref().zip(times) {
            let whole = Times::whole(problem, meter, &found.assignment, ROUNDS, Instant::now)?;
            beside.seconds = Some([times.of(&found.assignment), whole]);
        }
        problem.write(&found.assignment, output)?;
        if self.json {
            return say_json(&as_json(problem, &found, &beside));
        }
        if !self.quiet {
            self.tell(problem, &found, &beside, output);
        }
        Ok(())
    }

    /// Moves `found` on by configurations that are measured.
    fn refined(&self, problem: &Problem, meter: &Meter<'_>, found: &mut Found) -> Result<Refined> {
        let bar = super::pack::bar(self.quiet);
        bar.set_length(self.refine as u64);
        bar.set_message("moves");
        let bytes = problem.bytes(&found.assignment);
        let refined =
            refine((problem, meter), &found.assignment, bytes, self.refine, &mut |n| bar.set_position(n as u64));
        bar.finish_and_clear();
        let refined = refined?;
        found.assignment.clone_from(&refined.assignment);
        found.error = problem.error(&found.assignment);
        Ok(refined)
    }

    /// Lists the front.
    fn list(&self, problem: &Problem) -> Result<()> {
        let front = problem.front();
        if self.json {
            let none = Beside::default();
            return say_json(&front.iter().map(|found| as_json(problem, found, &none)).collect::<Vec<_>>());
        }
        let mut table = Table::new(["bits a weight", "bytes", "expected error"]);
        for Found { assignment, error, .. } in &front {
            let row = [format!("{:.3}", problem.bits(assignment)), problem.bytes(assignment).to_string()];
            let [bits, bytes] = row;
            table.row([bits, bytes, percent(error.sqrt())]);
        }
        say(table);
        Ok(())
    }

    /// How many layers and bytes each choice has, and what is expected of the whole.
    fn tell(&self, problem: &Problem, found: &Found, beside: &Beside, output: &Path) {
        let mut table = Table::new(["choice", "layers", "bytes"]);
        for (choice, name) in problem.choices.iter().enumerate() {
            let of = || problem.layers.iter().zip(&found.assignment).filter(|(_, taken)| **taken == choice);
            let stored: u64 = of().map(|(layer, _)| layer.bytes[choice]).sum();
            table.row([name.clone(), of().count().to_string(), stored.to_string()]);
        }
        say(table);
        let size = format!(
            "{}: {:.3} bits a weight, {} of layers",
            output.display(),
            problem.bits(&found.assignment),
            bytes(problem.bytes(&found.assignment))
        );
        let told = match &beside.held_out {
            Some(estimate) => format!("{size}; {}", learned_words(*estimate)),
            None => format!(
                "{size}; expected relative error of the network's output {}, no assignment has less than {}",
                percent(found.error.sqrt()),
                percent(found.bound.sqrt())
            ),
        };
        say_line(told);
        if let Some(Refined { error, before, moves: [taken, tried], .. }) = &beside.refined {
            let [before, after] = [before, error].map(|error| percent(error.sqrt()));
            say_line(format!("{taken} of {tried} moves taken; measured error {before} before, {after} now"));
        }
        if let Some([reckoned, whole]) = beside.seconds {
            let [reckoned, whole] = [reckoned, whole].map(|seconds| 1e3 * seconds);
            say_line(format!("{whole:.3} ms a call of one image, {reckoned:.3} ms by the times of layers"));
        }
        if let Some(Estimate { value, low, high }) = beside.psnr {
            say_line(format!("{value:.2} dB [{low:.2}, {high:.2}], the median of {} pictures", self.n));
        }
    }
}

fn as_json(problem: &Problem, found: &Found, beside: &Beside) -> serde_json::Value {
    let layers = problem.layers.iter().zip(&found.assignment);
    let layers: serde_json::Map<_, _> =
        layers.map(|(layer, &choice)| (layer.path.clone(), json!(layer.specs[choice]))).collect();
    let mut json = json!({
        "bits": problem.bits(&found.assignment), "bytes": problem.bytes(&found.assignment), "squared_error": found.error,
        "bound": found.bound, "layers": layers,
    });
    if let Some(estimate) = beside.held_out {
        json["held_out_rank_correlation"] = json!(estimate);
    }
    if let Some(Refined { error, before, moves, .. }) = &beside.refined {
        json["refined"] = json!({ "measured_before": before, "measured": error, "moves": moves });
    }
    if let Some([reckoned, whole]) = beside.seconds {
        json["seconds"] = json!({ "reckoned": reckoned, "measured": whole });
    }
    if let Some(estimate) = beside.psnr {
        json["psnr_median"] = json!(estimate);
    }
    json
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_are_bits_or_bytes() {
        for (text, budget) in [
            ("3.5bit", Budget::Bits(3.5)),
            ("4bits", Budget::Bits(4.0)),
            ("900MB", Budget::Bytes(900_000_000)),
            ("120ms", Budget::Seconds(0.12)),
            ("2s", Budget::Seconds(2.0)),
        ] {
            assert_eq!(parse_budget(text), Ok(budget));
        }
        for text in ["bit", "-1bit", "many", "0", "0ms", "-2s"] {
            assert!(parse_budget(text).is_err(), "{text}");
        }
        assert_eq!(parse_fixed("a.*=w4a8:kmeans"), Ok(Rule::Fixed("a.*".into(), "w4a8:kmeans".into())));
        assert_eq!(parse_least("a.*=4"), Ok(Rule::Least("a.*".into(), 4)));
        assert!(parse_fixed("a.*").is_err() && parse_least("a=b").is_err());
    }
}
