//! Ways to spend the same bytes: what a search is held against.

use super::archive::Archive;
use super::layer::bits_of;
use super::predict::Predictor;
use super::problem::{Budget, Problem};
use super::random::Distribution;
use super::refine::refine;
use super::trials::{Meter, Trials};
use crate::error::Result;
use aquatint::error::Error;
use serde::Serialize;

/// A way to choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// One choice for all layers; between two sizes, evenly spread layers have the larger.
    Uniform,
    /// The least sum of squared errors of the weights.
    WeightErrors,
    /// The best of random configurations of this size, by their measured errors.
    BestRandom,
    /// What a predictor that learned from random configurations of all sizes says (Qua2SeDiMo's way).
    Predictor,
    /// The least sum of measured sensitivities.
    Search,
    /// The same after measured moves.
    Refined,
}

impl Way {
    /// All of them.
    pub const ALL: [Way; 6] =
        [Way::Search, Way::Refined, Way::Uniform, Way::WeightErrors, Way::BestRandom, Way::Predictor];

    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Way::Uniform => "uniform",
            Way::WeightErrors => "weight errors",
            Way::BestRandom => "best random",
            Way::Predictor => "predictor",
            Way::Search => "search",
            Way::Refined => "refined",
        }
    }
}

/// A configuration that a way led to.
#[derive(Clone, Debug, Serialize)]
pub struct Entrant {
    /// The way.
    pub way: Way,
    /// Nominal bits: the size is that of all layers with so many.
    pub nominal_bits: f64,
    /// The choice of each layer.
    pub assignment: Vec<usize>,
    /// Bytes of all layers in the file.
    pub bytes: u64,
    /// Average bits of a weight.
    pub average_bits: f64,
    /// Squared relative error of the output, as the sum of sensitivities says.
    pub predicted: f64,
    /// The same as it was measured at the images that were searched with.
    pub measured: f64,
}

/// How much work is spent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effort {
    /// Random configurations per size.
    pub random: usize,
    /// Measured moves.
    pub moves: usize,
}

/// Everything that contestants choose by.
pub struct Contest<'a> {
    /// Layers, choices, sensitivities.
    pub problem: &'a Problem,
    /// The file of all choices.
    pub trials: &'a Trials,
    /// What measures configurations.
    pub meter: &'a Meter<'a>,
    /// Random configurations of all sizes with their errors.
    pub archive: &'a Archive,
    /// How much work is spent.
    pub effort: Effort,
}

impl Contest<'_> {
    /// Bytes of all layers with so many bits; between two widths in proportion.
    ///
    /// # Errors
    /// If the choices have none of a width that is needed.
    pub fn bytes(&self, bits: f64) -> Result<u64> {
        let at = |bits: f64| -> Result<f64> {
            let uniform = vec![self.choice(bits as u8)?; self.problem.layers.len()];
            Ok(self.problem.bytes(&uniform) as f64)
        };
        let (low, high) = (at(bits.floor())?, at(bits.ceil())?);
        Ok((low + (bits - bits.floor()) * (high - low)) as u64)
    }

    /// The first choice of weights of so many bits.
    fn choice(&self, bits: u8) -> Result<usize> {
        let found = self.problem.choices.iter().position(|choice| bits_of(choice) == bits);
        found.ok_or_else(|| {
            let expected = format!("bits that choices have: {}", self.problem.choices.join(", "));
            Error::request("at-bits", expected, bits).into()
        })
    }

    /// What each way makes of the bytes of all layers with so many bits; `see` is told of every measured configuration.
    ///
    /// # Errors
    /// If the choices lack a width, or a configuration cannot be measured.
    pub fn entrants(&self, bits: f64, see: &mut dyn FnMut()) -> Result<Vec<Entrant>> {
        let budget = self.bytes(bits)?;
        let search = self.problem.within(Budget::Bytes(budget), None)?.assignment;
        let by = |errors: &[Vec<f64>]| {
            Ok::<_, crate::Error>(self.problem.with_errors(errors).within(Budget::Bytes(budget), None)?.assignment)
        };
        let mut entrants = Vec::new();
        for way in Way::ALL {
            let assignment = match way {
                Way::Uniform => self.uniform(bits, budget)?,
                Way::WeightErrors => by(&self.trials.weight_errors(self.problem))?,
                Way::BestRandom => self.best_random(bits, budget, see)?,
                Way::Predictor if self.archive.errors.is_empty() => continue,
                Way::Predictor => {
                    by(&Predictor::fit(&self.archive.samples(self.problem)).effects(self.problem.choices.len()))?
                }
                Way::Search => search.clone(),
                Way::Refined if self.effort.moves == 0 => continue,
                Way::Refined => {
                    let parts = (self.problem, self.meter);
                    refine(parts, &search, budget, self.effort.moves, &mut |_| see())?.assignment
                }
            };
            entrants.push(Entrant {
                way,
                nominal_bits: bits,
                bytes: self.problem.bytes(&assignment),
                average_bits: self.problem.bits(&assignment),
                predicted: self.problem.error(&assignment),
                measured: self.meter.error(&assignment)?,
                assignment,
            });
            see();
        }
        Ok(entrants)
    }

    /// The smaller of two uniform choices, and the larger for layers evenly spread over the network, while it fits.
    fn uniform(&self, bits: f64, budget: u64) -> Result<Vec<usize>> {
        let (low, high) = (self.choice(bits.floor() as u8)?, self.choice(bits.ceil() as u8)?);
        let mut assignment = vec![low; self.problem.layers.len()];
        if low == high {
            return Ok(assignment);
        }
        let mut total = self.problem.bytes(&assignment);
        for at in spread(assignment.len()) {
            let grown = total - self.problem.bytes_of(at, low) + self.problem.bytes_of(at, high);
            if grown <= budget {
                (total, assignment[at]) = (grown, high);
            }
        }
        Ok(assignment)
    }

    fn best_random(&self, bits: f64, budget: u64, see: &mut dyn FnMut()) -> Result<Vec<usize>> {
        let distribution = Distribution { bounds: [0.0, 1.0], seed: bits.to_bits() };
        let mut best: Option<(f64, Vec<usize>)> = None;
        for number in 0..self.effort.random.max(1) as u64 {
            let Some(drawn) = distribution.draw_within(self.problem, budget, number) else { break };
            let error = self.meter.error(&drawn)?;
            if best.as_ref().is_none_or(|(least, _)| error < *least) {
                best = Some((error, drawn));
            }
            see();
        }
        best.map(|(_, assignment)| assignment)
            .ok_or_else(|| Error::request("at-bits", "bytes for all layers", bits).into())
    }
}

/// The numbers below `n` in an order in which any first few are evenly spread: by the fractional parts of multiples of the golden ratio.
fn spread(n: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    let place = |i: &usize| (*i as f64 * 0.618_033_988_749_894_9).fract();
    order.sort_by(|a, b| place(a).total_cmp(&place(b)));
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_numbers_of_a_spread_are_far_apart() {
        for n in [5, 20, 47] {
            let order = spread(n);
            let mut first: Vec<usize> = order[..n.div_ceil(2)].to_vec();
            first.sort_unstable();
            assert!(first.windows(2).all(|pair| pair[1] - pair[0] <= 3), "{first:?}");
        }
    }
}
