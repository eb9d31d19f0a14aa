//! What a configuration asks to be done to layers before they are quantized.

/// Changes of layers that leave the network what it is and suit quantization better.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Transforms {
    /// Factors between activations and weights.
    pub smooth: Vec<Smoothing>,
    /// Layers, as regular expressions on their paths, whose inputs are rotated by a Hadamard matrix with random signs.
    pub rotate: Vec<String>,
}

/// How factors are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SmoothingRule {
    /// `act^a / weight^(1 - a)`; inputs are divided by it.
    Activations,
    /// `weight^a / act^(1 - a)`; inputs are multiplied with it.
    Weights,
}

/// Factors per input channel for some layers.
#[derive(Clone, Debug, PartialEq)]
pub struct Smoothing {
    /// How they are chosen.
    pub rule: SmoothingRule,
    /// The exponent, and the timesteps, first and last, where it is used; one for all if there is no range.
    pub alphas: Vec<(f64, Option<[u32; 2]>)>,
    /// Layers, by names or as regular expressions; all if there are none.
    pub layers: Vec<String>,
}

impl Smoothing {
    /// Whether there are several ranges of timesteps, each with greatest magnitudes of its own.
    pub fn is_timed(&self) -> bool {
        self.alphas.len() > 1 && self.alphas.iter().any(|(_, range)| range.is_some())
    }
}
