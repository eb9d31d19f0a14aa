//! Search: which choice for which layer, so that the file fits a budget and the error at the output is least.
//!
//! Errors of single layers add up at the output (methods.md §3.2), so what [`sensitivity`](crate::sensitivity) measured makes this
//! a knapsack: one choice per layer, the sum of bytes within the budget, the sum of errors least. It is solved twice (`knapsack`):
//! by prices per byte, which give the front of all budgets at once and a bound that no assignment is below, and by a table over
//! sizes, which fills what is left of a budget. How far the result may be from the best one is part of it.

mod knapsack;

pub use knapsack::{Item, Solution, front, solve};

use crate::error::Result;
use crate::sensitivity::Record;
use crate::sensitivity::record::{Probe, Unit};
use aquatint::error::Error;
use aquatint::raw::whole_file;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

/// The part of a run whose calls decide about pictures, as shares of its calls: the first ones are noise, and the last ones change
/// little (methods.md §3.3, 5).
const MIDDLE: [f64; 2] = [0.1, 0.6];

/// Which calls count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Objective {
    /// Those of the middle of a run, or all if none is measured there.
    #[default]
    Middle,
    /// All that were measured.
    All,
}

/// The most that a file's layers may take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Budget {
    /// Bytes of all layers, codebooks and scales included.
    Bytes(u64),
    /// The same per weight, in bits.
    Bits(f64),
}

/// Layers with their choices, ready to be assigned.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    /// Module paths, each once.
    pub layers: Vec<String>,
    /// The choices, as configurations spell them.
    pub choices: Vec<String>,
    /// By layer and choice.
    pub items: Vec<Vec<Item>>,
    /// Number of weights.
    pub weights: u64,
}

impl Problem {
    /// That of what was measured. Layers of one path in several components are one, as configurations have them.
    ///
    /// # Errors
    /// If a shard's probes are missing.
    pub fn new(record: &Record, objective: Objective) -> Result<Self> {
        let counted = counted(record, objective);
        let (mut layers, mut items): (Vec<String>, Vec<Vec<Item>>) = Default::default();
        for unit in &record.units {
            let own = unit.choices.iter().map(|probe| item(unit, probe, &counted)).collect::<Result<Vec<_>>>()?;
            match layers.iter().position(|layer| *layer == unit.layers[0]) {
                Some(at) => items[at].iter_mut().zip(own).for_each(|(item, other)| {
                    item.bytes += other.bytes;
                    item.error += other.error;
                }),
                None => {
                    layers.push(unit.layers[0].clone());
                    items.push(own);
                }
            }
        }
        let weights = record.units.iter().map(|unit| unit.weights).sum();
        Ok(Problem { layers, choices: record.choices.clone(), items, weights })
    }

    /// The assignment of least error within `budget`.
    ///
    /// # Errors
    /// If not even the smallest choices fit; the message says what they take.
    pub fn within(&self, budget: Budget) -> Result<Solution> {
        let bytes = match budget {
            Budget::Bytes(bytes) => bytes,
            Budget::Bits(bits) => (bits * self.weights as f64 / 8.0) as u64,
        };
        solve(&self.items, bytes).ok_or_else(|| {
            let least: u64 = self.items.iter().filter_map(|items| items.iter().map(|item| item.bytes).min()).sum();
            let expected = format!("at least {least} bytes, {:.3} bits a weight", self.bits(least));
            Error::request("budget", expected, format!("{bytes} bytes, {:.3} bits", self.bits(bytes))).into()
        })
    }

    /// Bits a weight of so many bytes.
    pub fn bits(&self, bytes: u64) -> f64 {
        8.0 * bytes as f64 / self.weights.max(1) as f64
    }

    /// The configuration of an assignment, which `packer --q-config` reads.
    pub fn config(&self, solution: &Solution) -> String {
        let mut out = format!(
            "# {:.3} bits a weight, {} bytes of layers; expected relative error of the network's output {:.3} %\n\
             default = \"f16\"\n[layers]\n",
            self.bits(solution.bytes),
            solution.bytes,
            100.0 * solution.error.sqrt()
        );
        for (layer, &choice) in self.layers.iter().zip(&solution.choices) {
            let _ = writeln!(out, "{layer:?} = {:?}", self.choices[choice]);
        }
        out
    }

    /// Writes that configuration to `path`.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&self, solution: &Solution, path: &Path) -> Result<()> {
        Ok(whole_file::write(path, |file| file.write_all(self.config(solution).as_bytes()))?)
    }
}

/// Which of the measured calls count.
fn counted(record: &Record, objective: Objective) -> Vec<usize> {
    let calls = &record.conditions.calls;
    let share = |i: &usize| calls[*i].call as f64 / record.conditions.calls_of_run.max(1) as f64;
    let middle = |i: &usize| (MIDDLE[0]..=MIDDLE[1]).contains(&share(i));
    let some: Vec<usize> = (0..calls.len()).filter(middle).collect();
    match objective {
        Objective::Middle if !some.is_empty() => some,
        Objective::Middle | Objective::All => (0..calls.len()).collect(),
    }
}

fn item(unit: &Unit, probe: &Probe, counted: &[usize]) -> Result<Item> {
    if probe.calls.is_empty() {
        let expected = "the file of a whole measurement, or of shards joined by packer sensitivity --merge";
        return Err(Error::request(format!("errors of {}", unit.name), expected, "a part").into());
    }
    let error = counted.iter().map(|&call| probe.calls[call].error).sum::<f64>() / counted.len().max(1) as f64;
    Ok(Item { bytes: probe.bytes, error })
}
