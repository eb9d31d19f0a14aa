//! A layer: what each of its choices takes, and what it costs.

use crate::error::Result;
use crate::sensitivity::record::{Probe, Unit};
use aquatint::error::Error;

/// A layer with its choices.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    /// Module path.
    pub path: String,
    /// The SPEC of each choice, as an entry of a configuration has it.
    pub specs: Vec<String>,
    /// Bytes in the file.
    pub bytes: Vec<u64>,
    /// Bytes by Qua2SeDiMo's accounting.
    pub counted: Vec<u64>,
    /// The same at 16 bits; 0 if the layer does not count.
    pub full: u64,
    /// What each adds to the squared relative error of the output.
    pub errors: Vec<f64>,
    /// Choices that may be taken: the first of those that make the same of the layer.
    pub allowed: Vec<usize>,
}

impl Layer {
    /// That of `unit`, whose errors are means over the calls `counted`.
    ///
    /// # Errors
    /// If a shard's probes are missing.
    pub(super) fn new(unit: &Unit, counted: &[usize]) -> Result<Self> {
        let error = |probe: &Probe| -> Result<f64> {
            if probe.calls.is_empty() {
                let expected = "the file of a whole measurement, or of shards joined by packer sensitivity --merge";
                return Err(Error::request(format!("errors of {}", unit.name), expected, "a part").into());
            }
            Ok(counted.iter().map(|&call| probe.calls[call].error).sum::<f64>() / counted.len().max(1) as f64)
        };
        let spec = |choice: usize| &unit.choices[choice].spec;
        let first = |&choice: &usize| (0..choice).all(|other| spec(other) != spec(choice));
        Ok(Layer {
            path: unit.layers[0].clone(),
            specs: unit.choices.iter().map(|probe| probe.spec.clone().unwrap_or_default()).collect(),
            bytes: unit.choices.iter().map(|probe| probe.bytes).collect(),
            counted: unit.choices.iter().map(|probe| probe.counted_bytes).collect(),
            full: unit.full_bytes,
            errors: unit.choices.iter().map(error).collect::<Result<_>>()?,
            allowed: (0..unit.choices.len()).filter(first).collect(),
        })
    }

    /// Adds what a layer of the same path in another component takes and costs.
    pub(super) fn add(&mut self, other: &Layer) {
        let add = |to: &mut [u64], from: &[u64]| to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
        add(&mut self.bytes, &other.bytes);
        add(&mut self.counted, &other.counted);
        self.full += other.full;
        self.errors.iter_mut().zip(&other.errors).for_each(|(to, from)| *to += from);
    }

    /// Leaves the choices whose SPEC `wanted` admits.
    ///
    /// # Errors
    /// If that is none.
    pub(super) fn allow(&mut self, words: &str, wanted: impl Fn(&str) -> bool) -> Result<()> {
        let specs = &self.specs;
        let left: Vec<usize> = self.allowed.iter().copied().filter(|&choice| wanted(&specs[choice])).collect();
        if left.is_empty() {
            let allowed: Vec<&str> = self.allowed.iter().map(|&choice| &*specs[choice]).collect();
            let expected = format!("a choice among {}", allowed.join(", "));
            return Err(Error::request(format!("layer {}", self.path), expected, words).into());
        }
        self.allowed = left;
        Ok(())
    }
}

/// Bits of the weights of a SPEC.
pub(super) fn bits_of(spec: &str) -> u8 {
    if let Some((_, bits)) = spec.rsplit_once('-') {
        return bits.parse().unwrap_or(0);
    }
    let widths = spec.strip_prefix('w').and_then(|rest| rest.split_once('a'));
    let bits = widths.map(|(bits, _)| bits).or(spec.strip_prefix('f'));
    bits.and_then(|bits| bits.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_of_every_spelling() {
        assert_eq!(["w3a8:kmeans", "kmeans_all-4", "f16", "f32", "w2a16:mse"].map(bits_of), [3, 4, 16, 32, 2]);
    }
}
