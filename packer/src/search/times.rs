//! What layers take of a call's time, choice by choice, measured on this machine.

use super::problem::Problem;
use super::trials::Meter;
use crate::error::Result;
use aquatint::raw::backend::Clock;

/// Seconds by layer and choice, and of all that is no layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Times {
    layers: Vec<Vec<f64>>,
    rest: f64,
}

impl Times {
    /// Times a call of one image, guidance included, with all layers in each choice, `rounds` times; of every op the least counts. What
    /// is worked out before the steps takes nothing.
    ///
    /// # Errors
    /// If a choice cannot be run.
    pub fn measure(problem: &Problem, meter: &Meter<'_>, rounds: usize, clock: Clock) -> Result<Self> {
        let count = problem.choices.len();
        let mut layers = vec![vec![0.0; count]; problem.layers.len()];
        let mut rest = 0.0;
        let Some(role) = meter.role() else { return Ok(Times { layers, rest }) };
        let of_nodes = meter.trials().layers_of_nodes(problem, role)?;
        let of_choice = |choice| meter.seconds(&meter.trials().uniform(choice), rounds, clock);
        for (choice, seconds) in (0..count).map(of_choice).enumerate() {
            for (layer, seconds) in of_nodes.iter().zip(seconds?) {
                match layer {
                    Some(layer) => layers[*layer][choice] += seconds,
                    // Norms and codes differ a little with what reads them: the mean counts.
                    None => rest += seconds / count as f64,
                }
            }
        }
        Ok(Times { layers, rest })
    }

    /// Seconds of a call that no layer takes.
    pub fn rest(&self) -> f64 {
        self.rest
    }

    /// Those of a layer.
    pub fn nanoseconds(&self, layer: usize, choice: usize) -> u64 {
        (self.layers[layer][choice] * 1e9) as u64
    }

    /// Seconds of a call.
    pub fn of(&self, assignment: &[usize]) -> f64 {
        self.rest + self.layers.iter().zip(assignment).map(|(layer, &choice)| layer[choice]).sum::<f64>()
    }

    /// The same, measured as a whole.
    ///
    /// # Errors
    /// As [`measure`](Self::measure).
    pub fn whole(
        problem: &Problem,
        meter: &Meter<'_>,
        assignment: &[usize],
        rounds: usize,
        clock: Clock,
    ) -> Result<f64> {
        let packed = meter.trials().assigned(problem, assignment);
        Ok(meter.seconds(&packed, rounds, clock)?.iter().sum())
    }
}
