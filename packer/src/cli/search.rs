//! `packer search sensitivity.json --budget 3.5bit -o config.toml`.

use super::table::{Table, bytes, percent};
use super::{say, say_json, say_line};
use crate::error::Result;
use crate::search::{Budget, Objective, Problem, Solution, front};
use crate::sensitivity::Record;
use aquatint::options::parse_bytes;
use aquatint::raw::whole_file::check_target;
use clap::{Args, ValueEnum};
use serde_json::json;
use std::path::PathBuf;

/// Arguments of a search.
#[derive(Debug, Args)]
pub(super) struct Search {
    /// What packer sensitivity measured.
    #[arg(value_name = "SENSITIVITY.json")]
    file: PathBuf,
    /// The most that all layers may take, codebooks and scales included: bits a weight (3.5bit) or bytes (900MB)
    #[arg(long, value_name = "BITS|BYTES", value_parser = parse_budget, required_unless_present = "pareto")]
    budget: Option<Budget>,
    /// List what every budget buys instead: the sizes at which a layer takes another choice.
    #[arg(long, conflicts_with_all = ["budget", "output"])]
    pareto: bool,
    /// Calls that count: those of the middle of a run, which decide about pictures, or all
    #[arg(long, value_enum, default_value = "middle", value_name = "CALLS")]
    objective: Calls,
    /// The configuration to write, for packer MODEL --q-config.
    #[arg(short, long, value_name = "CONFIG.toml", required_unless_present = "pareto")]
    output: Option<PathBuf>,
    /// Print nothing but errors.
    #[arg(short, long)]
    quiet: bool,
    /// Print what was found as JSON.
    #[arg(long)]
    json: bool,
}

/// Calls that count.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Calls {
    /// From a tenth to six tenths of a run.
    Middle,
    /// All that were measured.
    All,
}

fn parse_budget(text: &str) -> std::result::Result<Budget, String> {
    let bits = text.strip_suffix("bits").or_else(|| text.strip_suffix("bit"));
    match bits.map(|bits| bits.trim().parse::<f64>()) {
        Some(Ok(bits)) if bits > 0.0 && bits <= 64.0 => Ok(Budget::Bits(bits)),
        Some(_) => Err(format!("bits a weight such as 3.5bit expected, not `{text}`")),
        None => parse_bytes(text).map(|bytes| Budget::Bytes(bytes as u64)),
    }
}

impl Search {
    /// Runs the command.
    pub(super) fn run(&self) -> Result<()> {
        if let Some(output) = &self.output {
            check_target(output, &[&self.file])?;
        }
        let objective = match self.objective {
            Calls::Middle => Objective::Middle,
            Calls::All => Objective::All,
        };
        let problem = Problem::new(&Record::open(&self.file)?, objective)?;
        let (Some(budget), Some(output)) = (self.budget, &self.output) else { return self.list(&problem) };
        let solution = problem.within(budget)?;
        problem.write(&solution, output)?;
        if self.json {
            return say_json(&as_json(&problem, &solution));
        }
        if !self.quiet {
            tell(&problem, &solution);
            say_line(format!(
                "{}: {:.3} bits a weight, {} of layers; expected relative error of the network's output {}, no assignment has less \
                 than {}",
                output.display(),
                problem.bits(solution.bytes),
                bytes(solution.bytes),
                percent(solution.error.sqrt()),
                percent(solution.bound.sqrt())
            ));
        }
        Ok(())
    }

    /// Lists the front.
    fn list(&self, problem: &Problem) -> Result<()> {
        let front = front(&problem.items);
        if self.json {
            return say_json(&front.iter().map(|solution| as_json(problem, solution)).collect::<Vec<_>>());
        }
        let mut table = Table::new(["bits a weight", "bytes", "expected error"]);
        for Solution { bytes, error, .. } in &front {
            table.row([format!("{:.3}", problem.bits(*bytes)), bytes.to_string(), percent(error.sqrt())]);
        }
        say(table);
        Ok(())
    }
}

/// How many layers and bytes each choice has.
fn tell(problem: &Problem, solution: &Solution) {
    let mut table = Table::new(["choice", "layers", "bytes"]);
    for (choice, name) in problem.choices.iter().enumerate() {
        let of = || solution.choices.iter().zip(&problem.items).filter(|(taken, _)| **taken == choice);
        let stored: u64 = of().map(|(_, items)| items[choice].bytes).sum();
        table.row([name.clone(), of().count().to_string(), stored.to_string()]);
    }
    say(table);
}

fn as_json(problem: &Problem, solution: &Solution) -> serde_json::Value {
    let layers = problem.layers.iter().zip(&solution.choices);
    let layers: serde_json::Map<_, _> =
        layers.map(|(layer, &choice)| (layer.clone(), json!(problem.choices[choice]))).collect();
    json!({
        "bits": problem.bits(solution.bytes), "bytes": solution.bytes, "squared_error": solution.error,
        "bound": solution.bound, "layers": layers,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_are_bits_or_bytes() {
        for (text, budget) in
            [("3.5bit", Budget::Bits(3.5)), ("4bits", Budget::Bits(4.0)), ("900MB", Budget::Bytes(900_000_000))]
        {
            assert_eq!(parse_budget(text), Ok(budget));
        }
        for text in ["bit", "-1bit", "many", "0"] {
            assert!(parse_budget(text).is_err(), "{text}");
        }
    }
}
