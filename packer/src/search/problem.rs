//! What there is to choose, what it takes, and what it costs.

use super::knapsack::{Item, front, solve};
use super::layer::{Layer, bits_of};
use super::times::Times;
use crate::error::Result;
use crate::sensitivity::{Record, precision};
use aquatint::error::Error;
use aquatint::raw::whole_file;
use globset::Glob;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

/// The part of a run whose calls decide about pictures, as shares of its calls: the first ones are noise, and the last ones change
/// little (methods.md §3.3, 5).
const MIDDLE: [f64; 2] = [0.1, 0.6];
/// Bits of the precision that average bits are relative to.
const PRECISION: f64 = 16.0;

/// Which calls count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Objective {
    /// Those of the middle of a run, or all if none is measured there.
    #[default]
    Middle,
    /// All that were measured.
    All,
}

/// The most that a configuration may take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Budget {
    /// Bytes of all layers in the file, codebooks and scales included.
    Bytes(u64),
    /// Average bits of a weight as Qua2SeDiMo counts them, which is how packing reports them.
    Bits(f64),
    /// Seconds of a call of the network.
    Seconds(f64),
}

/// What is said about layers beforehand.
#[derive(Clone, Debug, PartialEq)]
pub enum Rule {
    /// Layers that a glob matches take this choice.
    Fixed(String, String),
    /// Layers that a glob matches have weights of so many bits at least.
    Least(String, u8),
    /// Layers that a glob matches all take the same choice.
    Tied(String),
}

/// Layers with their choices, ready to be assigned.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    /// Each path once.
    pub layers: Vec<Layer>,
    /// Names of the choices.
    pub choices: Vec<String>,
    /// Layers that take one choice together; each layer is in one class.
    classes: Vec<Vec<usize>>,
}

/// An assignment that was found.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// The choice of each layer.
    pub assignment: Vec<usize>,
    /// Expected squared relative error of the output.
    pub error: f64,
    /// What no assignment within the budget is expected to be below.
    pub bound: f64,
}

impl Problem {
    /// That of what was measured. Layers of one path in several components are one, as configurations have them.
    ///
    /// # Errors
    /// If a shard's probes are missing.
    pub fn new(record: &Record, objective: Objective) -> Result<Self> {
        let counted = counted(record, objective);
        let mut layers: Vec<Layer> = Vec::new();
        for unit in &record.units {
            let own = Layer::new(unit, &counted)?;
            match layers.iter_mut().find(|layer| layer.path == own.path) {
                Some(layer) => layer.add(&own),
                None => layers.push(own),
            }
        }
        Ok(Self::of(layers, record.choices.clone()))
    }

    /// That of `layers`, which all have these choices.
    pub fn of(layers: Vec<Layer>, choices: Vec<String>) -> Self {
        let classes = (0..layers.len()).map(|layer| vec![layer]).collect();
        Problem { layers, choices, classes }
    }

    /// The same with other errors, by layer and choice.
    #[must_use]
    pub fn with_errors(&self, errors: &[Vec<f64>]) -> Self {
        let mut problem = self.clone();
        problem.layers.iter_mut().zip(errors).for_each(|(layer, errors)| layer.errors.clone_from(errors));
        problem
    }

    /// The same with `rules` about layers.
    ///
    /// # Errors
    /// If a glob is none or matches no layer, or leaves a layer without a choice.
    pub fn with_rules(mut self, rules: &[Rule]) -> Result<Self> {
        for rule in rules {
            let (Rule::Fixed(glob, _) | Rule::Least(glob, _) | Rule::Tied(glob)) = rule;
            let members = self.matching(glob)?;
            match rule {
                Rule::Fixed(_, choice) => {
                    let choice = precision("fix", choice)?;
                    let named = self.choices.iter().position(|name| *name == choice);
                    for &member in &members {
                        let layer = &mut self.layers[member];
                        // What the choice makes of this layer, or exactly this.
                        let spec = named.map_or(choice.clone(), |named| layer.specs[named].clone());
                        layer.allow(&choice, |other| other == spec)?;
                    }
                }
                Rule::Least(_, bits) => {
                    let least = format!("{bits} bits or more");
                    for &member in &members {
                        self.layers[member].allow(&least, |spec| bits_of(spec) >= *bits)?;
                    }
                }
                Rule::Tied(_) => {
                    let (mut tied, rest): (Vec<_>, Vec<_>) =
                        self.classes.into_iter().partition(|class| class.iter().any(|layer| members.contains(layer)));
                    tied.sort();
                    self.classes = rest;
                    self.classes.push(tied.into_iter().flatten().collect());
                }
            }
        }
        Ok(self)
    }

    /// The layers that `glob` matches.
    fn matching(&self, glob: &str) -> Result<Vec<usize>> {
        let expected = "a glob of layers' paths";
        let refuse = |e: globset::Error| Error::request("layers", expected, format!("{glob}: {}", e.kind()));
        let matcher = Glob::new(glob).map_err(refuse)?.compile_matcher();
        let members: Vec<usize> = (0..self.layers.len()).filter(|&i| matcher.is_match(&self.layers[i].path)).collect();
        match members.is_empty() {
            true => Err(Error::request("layers", expected, format!("{glob}, which matches none")).into()),
            false => Ok(members),
        }
    }

    /// The classes' items, and the choice that each is of.
    fn items(&self, size: &dyn Fn(usize, usize) -> u64) -> (Vec<Vec<Item>>, Vec<Vec<usize>>) {
        let class = |class: &Vec<usize>| {
            let of = |choice: usize| Item {
                size: class.iter().map(|&layer| size(layer, choice)).sum(),
                error: class.iter().map(|&layer| self.layers[layer].errors[choice]).sum(),
            };
            let allowed = |choice: &usize| class.iter().all(|&layer| self.layers[layer].allowed.contains(choice));
            let choices: Vec<usize> = (0..self.choices.len()).filter(allowed).collect();
            (choices.iter().map(|&choice| of(choice)).collect(), choices)
        };
        self.classes.iter().map(class).unzip()
    }

    /// The choices of layers that `items` of classes are.
    fn assignment(&self, choices: &[Vec<usize>], items: &[usize]) -> Vec<usize> {
        let mut assignment = vec![0; self.layers.len()];
        for ((class, choices), &item) in self.classes.iter().zip(choices).zip(items) {
            class.iter().for_each(|&layer| assignment[layer] = choices[item]);
        }
        assignment
    }

    /// What a choice of a layer takes of a budget in bytes.
    pub fn bytes_of(&self, layer: usize, choice: usize) -> u64 {
        self.layers[layer].bytes[choice]
    }

    /// The assignment of least error within `budget`; `times` where that is a time.
    ///
    /// # Errors
    /// If not even the smallest choices fit; the message says what they take.
    ///
    /// # Panics
    /// If the budget is a time and there are no times.
    pub fn within(&self, budget: Budget, times: Option<&Times>) -> Result<Found> {
        let counted = |layer: usize, choice: usize| self.layers[layer].counted[choice];
        let full: u64 = self.layers.iter().map(|layer| layer.full).sum();
        let bits = |size: u64| PRECISION * size as f64 / full.max(1) as f64;
        match budget {
            Budget::Bytes(bytes) => {
                self.solve(&|layer, choice| self.bytes_of(layer, choice), bytes, &|size| format!("{size} bytes"))
            }
            Budget::Bits(most) => {
                let words = |size: u64| format!("{:.3} bits a weight", bits(size));
                self.solve(&counted, (most * full as f64 / PRECISION) as u64, &words)
            }
            Budget::Seconds(seconds) => {
                let times = times.expect("times of layers");
                let left = ((seconds - times.rest()) * 1e9).max(0.0) as u64;
                let words = |size: u64| format!("{:.4} s a call", times.rest() + size as f64 * 1e-9);
                self.solve(&|layer, choice| times.nanoseconds(layer, choice), left, &words)
            }
        }
    }

    fn solve(&self, size: &dyn Fn(usize, usize) -> u64, budget: u64, words: &dyn Fn(u64) -> String) -> Result<Found> {
        let (items, choices) = self.items(size);
        let solution = solve(&items, budget).ok_or_else(|| {
            let least = items.iter().filter_map(|items| items.iter().map(|item| item.size).min()).sum();
            Error::request("budget", format!("at least {}", words(least)), words(budget))
        })?;
        let assignment = self.assignment(&choices, &solution.choices);
        Ok(Found { assignment, error: solution.error, bound: solution.bound })
    }

    /// The assignments that are best for some price of a byte, from the smallest on.
    pub fn front(&self) -> Vec<Found> {
        let (items, choices) = self.items(&|layer, choice| self.bytes_of(layer, choice));
        let found = front(&items).into_iter().map(|solution| Found {
            assignment: self.assignment(&choices, &solution.choices),
            error: solution.error,
            bound: solution.bound,
        });
        found.collect()
    }

    /// Expected squared relative error of the output.
    pub fn error(&self, assignment: &[usize]) -> f64 {
        self.layers.iter().zip(assignment).map(|(layer, &choice)| layer.errors[choice]).sum()
    }

    /// Bytes in the file of all layers.
    pub fn bytes(&self, assignment: &[usize]) -> u64 {
        self.layers.iter().zip(assignment).map(|(layer, &choice)| layer.bytes[choice]).sum()
    }

    /// Average bits of a weight.
    pub fn bits(&self, assignment: &[usize]) -> f64 {
        let counted: u64 = self.layers.iter().zip(assignment).map(|(layer, &choice)| layer.counted[choice]).sum();
        PRECISION * counted as f64 / self.layers.iter().map(|layer| layer.full).sum::<u64>().max(1) as f64
    }

    /// The configuration of an assignment, which `packer --q-config` reads.
    pub fn config(&self, assignment: &[usize]) -> String {
        let mut out = format!(
            "# {:.3} bits a weight, {} bytes of layers; expected relative error of the network's output {:.3} %\n\
             default = \"f16\"\n[layers]\n",
            self.bits(assignment),
            self.bytes(assignment),
            100.0 * self.error(assignment).sqrt()
        );
        for (layer, &choice) in self.layers.iter().zip(assignment) {
            let _ = writeln!(out, "{:?} = {:?}", layer.path, layer.specs[choice]);
        }
        out
    }

    /// Writes that configuration to `path`; as Qua2SeDiMo's dictionary if that is a `.pkl`.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&self, assignment: &[usize], path: &Path) -> Result<()> {
        let bytes = match path.extension().is_some_and(|kind| kind == "pkl") {
            true => super::cache::config(self, assignment),
            false => self.config(assignment).into_bytes(),
        };
        Ok(whole_file::write(path, |file| file.write_all(&bytes))?)
    }
}

/// Which of the measured calls count.
pub(super) fn counted(record: &Record, objective: Objective) -> Vec<usize> {
    let calls = &record.conditions.calls;
    let share = |i: &usize| calls[*i].call as f64 / record.conditions.calls_of_run.max(1) as f64;
    let middle = |i: &usize| (MIDDLE[0]..=MIDDLE[1]).contains(&share(i));
    let some: Vec<usize> = (0..calls.len()).filter(middle).collect();
    match objective {
        Objective::Middle if !some.is_empty() => some,
        Objective::Middle | Objective::All => (0..calls.len()).collect(),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// So many layers of 100 weights in 2, 3 and 4 bits, each of other errors than its neighbours.
    pub fn problem(layers: usize) -> Problem {
        let layer = |i: usize| Layer {
            path: format!("blocks.{}.{}", i / 4, ["q", "k", "ff.0", "ff.2"][i % 4]),
            specs: [2, 3, 4].map(|bits| format!("w{bits}a8:kmeans")).into(),
            bytes: [2, 3, 4].map(|bits| 100 * bits / 8 + i as u64 % 3).into(),
            counted: [2, 3, 4].map(|bits| 100 * bits / 8).into(),
            full: 200,
            errors: [1.0, 0.25, 0.0625].map(|error| error * (1 + i % 7) as f64).into(),
            allowed: vec![0, 1, 2],
        };
        Problem::of(
            (0..layers).map(layer).collect(),
            ["w2a8:kmeans", "w3a8:kmeans", "w4a8:kmeans"].map(str::to_owned).into(),
        )
    }

    #[test]
    fn budgets_are_kept() {
        let problem = problem(12);
        let found = problem.within(Budget::Bits(3.0), None).unwrap();
        assert!(problem.bits(&found.assignment) <= 3.0 && found.assignment.contains(&2));
        assert!((problem.error(&found.assignment) - found.error).abs() < 1e-12 && found.bound <= found.error);
        let bytes = problem.bytes(&found.assignment);
        assert!(problem.within(Budget::Bytes(bytes), None).unwrap().error <= found.error);
        let told = problem.within(Budget::Bits(1.5), None).unwrap_err().to_string();
        assert_eq!(told, "budget: expected at least 2.000 bits a weight, got 1.500 bits a weight");
        let front = problem.front();
        assert!(front.windows(2).all(|pair| problem.bytes(&pair[0].assignment) < problem.bytes(&pair[1].assignment)));
    }

    #[test]
    fn rules_are_followed() {
        let rules = [
            Rule::Fixed("blocks.0.q".into(), "w4a8:kmeans".into()),
            Rule::Least("*.ff.2".into(), 3),
            Rule::Tied("blocks.2.[qk]".into()),
        ];
        let problem = problem(12).with_rules(&rules).unwrap();
        let least = problem.front()[0].assignment.clone();
        assert_eq!(least[0], 2);
        assert!((0..12).filter(|i| i % 4 == 3).all(|i| least[i] == 1), "{least:?}");
        for found in problem.front() {
            assert_eq!(found.assignment[8], found.assignment[9], "{found:?}");
        }
        let told = |rule: Rule| super::tests::problem(12).with_rules(&[rule]).unwrap_err().to_string();
        assert_eq!(
            told(Rule::Tied("c.*".into())),
            "layers: expected a glob of layers' paths, got c.*, which matches none"
        );
        assert_eq!(
            told(Rule::Least("blocks.1.q".into(), 5)),
            "layer blocks.1.q: expected a choice among w2a8:kmeans, w3a8:kmeans, w4a8:kmeans, got 5 bits or more"
        );
    }
}
