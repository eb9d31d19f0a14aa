//! What layers take of a call's time, choice by choice.

/// Seconds by layer and choice, and of all that is no layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Times {
    layers: Vec<Vec<f64>>,
    rest: f64,
}

impl Times {
    /// `layers` are seconds by layer and choice, `rest` those of a call that no layer takes.
    pub fn new(layers: Vec<Vec<f64>>, rest: f64) -> Self {
        Times { layers, rest }
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
}
