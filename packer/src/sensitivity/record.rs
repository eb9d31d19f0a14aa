//! What was measured, as its JSON has it.

use crate::error::Result;
use aquatint::error::Error;
use aquatint::options::SamplingOptions;
use aquatint::raw::format::meta::SourceMeta;
use aquatint::raw::whole_file;
use aquatint::sampler;
use aquatint::shard::Shard;
use aquatint_evaluation::{Calls, Protocol};
use serde::{Deserialize, Serialize};
use std::io::Write;
use std::path::Path;

/// The version of the format.
pub const VERSION: u32 = 2;

/// Everything that was measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The version of the format, [`VERSION`].
    pub aquatint_sensitivity: u32,
    /// What wrote it.
    pub tool: String,
    /// The model.
    pub model: ModelRecord,
    /// With which images and calls.
    pub conditions: Conditions,
    /// The precisions that layers were tried in.
    pub choices: Vec<String>,
    /// The part of the probes that was made: which, and of how many; none if all were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shard: Option<[usize; 2]>,
    /// The error of the environment itself, by call; none where it is f32.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<Vec<CallError>>,
    /// Layers, in the order of the networks.
    pub units: Vec<Unit>,
    /// Groups of layers, as they were asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<Unit>,
}

/// The model that was measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelRecord {
    /// Its name.
    pub name: String,
    /// Hash of the file that holds it in all choices.
    pub hash: String,
    /// The files that it was made from.
    pub sources: Vec<SourceMeta>,
}

/// With which images and calls.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Conditions {
    /// The precision of layers that are not tried.
    pub environment: String,
    /// Hash of the calibration by which codes were chosen.
    pub calibration: Option<String>,
    /// Images.
    pub images: usize,
    /// Seeds of the first and the last image's noise.
    pub seeds: [u64; 2],
    /// Hash of the file of prompts.
    pub prompts: Option<String>,
    /// The sampler's name.
    pub sampler: String,
    /// The sampler in all its settings, its schedule among them; records of before there was this have the name alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sampler_config: Option<sampler::Config>,
    /// Its steps.
    pub steps: usize,
    /// Guidance scale.
    pub guidance_scale: f32,
    /// How much of the contrast that guidance adds is taken back.
    #[serde(default)]
    pub guidance_rescale: f32,
    /// Calls of a run.
    pub calls_of_run: usize,
    /// Those that were looked at.
    pub calls: Vec<Call>,
}

/// A call that was looked at.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Call {
    /// Its number in the run.
    pub call: usize,
    /// Its timestep.
    pub timestep: f32,
}

/// A layer, or layers that change together.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unit {
    /// Component and module path; of a group its glob.
    pub name: String,
    /// The paths of its layers in their component: one, or those of a group.
    pub layers: Vec<String>,
    /// Number of weights.
    pub weights: u64,
    /// Bytes at 16 bits by Qua2SeDiMo's accounting; 0 of layers that it does not count.
    pub full_bytes: u64,
    /// What was found, by choice.
    pub choices: Vec<Probe>,
}

/// What a choice makes of a unit.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Probe {
    /// Bytes of its weights in the file, codebooks and scales included.
    pub bytes: u64,
    /// Bytes by Qua2SeDiMo's accounting, which average bits are of.
    pub counted_bytes: u64,
    /// |W - Wq| / |W| of the weights; of groups none.
    pub weight_error: Option<f64>,
    /// The SPEC that makes this of a layer that a configuration names; none of groups whose layers have several.
    pub spec: Option<String>,
    /// The errors by call; none where another shard made them.
    pub calls: Vec<CallError>,
}

/// The error of a call at the network's output.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CallError {
    /// Mean over images of `|eps_q - eps_f|^2 / |eps_f|^2`, of the combination that guidance makes.
    pub error: f64,
    /// The standard error of that mean; none of a single image.
    pub standard_error: Option<f64>,
}

impl Conditions {
    /// The images and calls that were looked at, for models that read no texts.
    pub fn protocol(&self) -> Protocol {
        let sampling = SamplingOptions {
            steps: Some(self.steps),
            cfg_scale: Some(self.guidance_scale),
            guidance_rescale: Some(self.guidance_rescale),
            config: self.sampler_config.clone(),
            sampler: self.sampler_config.is_none().then(|| self.sampler.clone()),
            ..SamplingOptions::default()
        };
        let calls = Calls::At(self.calls.iter().map(|call| call.call).collect());
        Protocol { images: self.images, seed: self.seeds[0], calls, sampling, ..Protocol::default() }
    }
}

impl CallError {
    /// That of images with these errors.
    pub fn new(of_images: &[f64]) -> Self {
        let n = of_images.len() as f64;
        let mean = of_images.iter().sum::<f64>() / n;
        let variance = of_images.iter().map(|e| (e - mean).powi(2)).sum::<f64>() / (n - 1.0);
        let standard_error = (n > 1.0).then(|| legible((variance / n).sqrt()));
        CallError { error: legible(mean), standard_error }
    }
}

/// `x` to six digits, and no finer than 1e-22: digits and power of ten are then exact in an f64, so that a reader of JSON gets the
/// very number that was written, and writing it again gives the same text.
fn legible(x: f64) -> f64 {
    let text = if x.abs() >= 1e-16 { format!("{x:.5e}") } else { format!("{x:.22}") };
    text.parse().unwrap_or(x)
}

impl Probe {
    /// The mean of the error over calls; none where another shard made it.
    pub fn mean(&self) -> Option<f64> {
        let n = self.calls.len();
        (n > 0).then(|| self.calls.iter().map(|call| call.error).sum::<f64>() / n as f64)
    }
}

impl Record {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read, [`Error::Request`] if it is not what this version writes.
    pub fn open(path: &Path) -> Result<Self> {
        let text = std::fs::read(path).map_err(Error::io("read", path))?;
        let refuse = |got: String| Error::request(path.display().to_string(), "what packer sensitivity writes", got);
        let record: Record = serde_json::from_slice(&text).map_err(|e| refuse(e.to_string()))?;
        if record.aquatint_sensitivity != VERSION {
            return Err(refuse(format!("version {}, not {VERSION}", record.aquatint_sensitivity)).into());
        }
        let calls = record.conditions.calls.len();
        let whole = |probe: &Probe| probe.calls.is_empty() || probe.calls.len() == calls;
        let sound = |unit: &&Unit| unit.choices.len() == record.choices.len() && unit.choices.iter().all(whole);
        if let Some(unit) = record.all().find(|unit| !sound(unit)) {
            return Err(refuse(format!("{} without its choices and calls", unit.name)).into());
        }
        Ok(record)
    }

    /// Writes it to `path`.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text =
            serde_json::to_string_pretty(self).map_err(|e| Error::request("sensitivity", "values JSON can hold", e))?;
        Ok(whole_file::write(path, |file| writeln!(file, "{text}"))?)
    }

    /// Units, then groups.
    pub fn all(&self) -> impl Iterator<Item = &Unit> {
        self.units.iter().chain(&self.groups)
    }

    /// The probes of units and groups in their order, by choice: the order in which shards take them in turn.
    pub fn probes_mut(&mut self) -> impl Iterator<Item = &mut Probe> {
        self.units.iter_mut().chain(&mut self.groups).flat_map(|unit| &mut unit.choices)
    }

    /// The same without what was found: two of the same work are equal.
    pub fn outline(&self) -> Record {
        let mut outline = Record { shard: None, ..self.clone() };
        outline.probes_mut().for_each(|probe| probe.calls.clear());
        outline
    }
}

/// Whether a shard has the probe of this number.
pub(super) fn has(shard: Option<Shard>, probe: usize) -> bool {
    shard.is_none_or(|Shard { index, of }| probe % of == index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_they_were_written() {
        let mut x = 0.123_456_789_012_345_f64;
        for _ in 0..4000 {
            x = (x * 997.123_457).fract();
            for scale in [1.0, 1e3, 1e-4, 1e-9, 1e-14, 1e-17, 1e-20, 1e-24] {
                let value = legible(x * scale);
                let text = serde_json::to_string(&value).unwrap();
                let read: f64 = serde_json::from_str(&text).unwrap();
                assert_eq!(read.to_bits(), value.to_bits(), "{text}");
                assert!((value - x * scale).abs() <= (5.1e-6 * x * scale).max(0.51e-22), "{value} for {}", x * scale);
            }
        }
        assert_eq!(legible(0.0), 0.0);
    }

    #[test]
    fn means_have_their_standard_errors() {
        let three = CallError::new(&[1.0, 2.0, 6.0]);
        // Deviations -2, -1, 3: variance 14 / 2, of the mean 7 / 3.
        assert_eq!((three.error, three.standard_error), (3.0, Some(1.52753)));
        assert_eq!(CallError::new(&[0.5]), CallError { error: 0.5, standard_error: None });
    }

    #[test]
    fn shards_take_probes_in_turn() {
        let third = Some(Shard { index: 1, of: 3 });
        assert_eq!((0..7).filter(|&probe| has(third, probe)).collect::<Vec<_>>(), [1, 4]);
        assert!((0..7).all(|probe| has(None, probe)));
    }
}
