//! The calibration file: safetensors with a [`Record`] in the metadata.
//!
//! Of input `i`, in this order, f64 unless otherwise said: `inputs.i.totals` of (5), `.sum` of (K), `.walk` of (K) where
//! moments are kept by displacement and else of (0), `.second` of (K (K + 1) / 2) or (displacements, channels, channels), `.bins` of (calls, 64) u64, and `.range` of (2, calls, channels) f32,
//! the least and the greatest of each channel at each call.
//! All are sums, or extremes, over rows, so that files of different samples are added.

use super::ranges::{greatest, least};
use super::record::{ModelRecord, Record, Second, VERSION, When};
use super::store::{self, Store};
use super::sums::Sums;
use crate::error::Result;
use crate::quantize::{BINS, Moments, SecondMoments, SeenRange};
use aquatint::error::Error;
use aquatint::raw::format::meta::{CalibrationMeta, PipelineMeta, SourceMeta};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// The key of the record in the metadata.
const RECORD: &str = "aquatint_calibration";

/// What was seen of an activation at a call.
#[derive(Clone, Debug, PartialEq)]
pub struct CallRange {
    /// The call's number in the run.
    pub index: usize,
    /// The timestep that the network received.
    pub timestep: f32,
    /// The values.
    pub seen: SeenRange,
    /// Least of each channel.
    pub low: Vec<f32>,
    /// Greatest of each channel.
    pub high: Vec<f32>,
}

impl CallRange {
    /// Leaves channels `of` alone. The histogram stays that of all.
    pub(crate) fn keep(&mut self, of: Range<usize>) {
        (self.low, self.high) = (self.low[of.clone()].to_vec(), self.high[of].to_vec());
        (self.seen.low, self.seen.high) = (least(&self.low), greatest(&self.high));
    }

    /// Divides channels by `factors`, which are positive. The histogram stays that of what was before.
    pub(crate) fn divide(&mut self, factors: &[f32]) {
        for (channels, factor) in self.low.iter_mut().zip(&mut self.high).zip(factors) {
            (*channels.0, *channels.1) = (*channels.0 / factor, *channels.1 / factor);
        }
        (self.seen.low, self.seen.high) = (least(&self.low), greatest(&self.high));
    }

    /// Takes what was seen at the same call elsewhere.
    pub(crate) fn join(&mut self, other: &CallRange) {
        self.seen = self.seen.and(&other.seen);
        join(&mut self.low, &other.low, f32::min);
        join(&mut self.high, &other.high, f32::max);
    }
}

fn join(all: &mut [f32], other: &[f32], which: fn(f32, f32) -> f32) {
    all.iter_mut().zip(other).for_each(|(a, b)| *a = which(*a, *b));
}

/// The least and the greatest of each channel over all calls.
pub(super) fn extremes(sums: &Sums, channels: usize) -> (Vec<f32>, Vec<f32>) {
    let mut all = (vec![f32::INFINITY; channels], vec![f32::NEG_INFINITY; channels]);
    sums.low.chunks_exact(channels.max(1)).for_each(|low| join(&mut all.0, low, f32::min));
    sums.high.chunks_exact(channels.max(1)).for_each(|high| join(&mut all.1, high, f32::max));
    all
}

/// What was seen of the channels of an input, over all calls.
#[derive(Clone, Debug, PartialEq)]
pub struct Extremes {
    /// Least of each channel.
    pub low: Vec<f32>,
    /// Greatest of each channel.
    pub high: Vec<f32>,
    /// Mean of `(greatest - least)^2` over what has a scale of its own when scales are dynamic: rows, or samples of
    /// convolutions.
    pub squared_range: f64,
}

/// A calibration, opened. Moments are read when they are asked for.
pub struct Calibration {
    path: PathBuf,
    store: Store,
    record: Record,
}

impl Calibration {
    /// Opens the file at `path`.
    ///
    /// # Errors
    /// If it cannot be read, is no calibration of this version, or lacks anything that its record speaks of.
    pub fn open(path: &Path) -> Result<Self> {
        let refuse = |expected: &str, got: &dyn std::fmt::Display| {
            Error::request(format!("calibration {}", path.display()), expected, got)
        };
        let store = Store::open(path)?.map_err(|e| refuse("a whole safetensors file", &e))?;
        let text =
            store.text(RECORD).ok_or_else(|| refuse("a file that packer calibrate wrote", &"other safetensors"))?;
        let version = serde_json::from_str(text).ok().and_then(|v: serde_json::Value| v.get("version")?.as_u64());
        if version != Some(u64::from(VERSION)) {
            let got = version.map_or("none".into(), |v| format!("version {v}"));
            return Err(refuse(&format!("version {VERSION}, as packer calibrate makes it"), &got).into());
        }
        let record: Record = serde_json::from_str(text).map_err(|e| refuse("a sound record", &e))?;
        let calibration = Calibration { path: path.to_owned(), store, record };
        calibration.check()?;
        Ok(calibration)
    }

    /// What the file says of itself.
    pub fn record(&self) -> &Record {
        &self.record
    }

    fn refuse(&self, what: String, expected: impl std::fmt::Display, got: impl std::fmt::Display) -> Error {
        Error::request(format!("calibration {}: {what}", self.path.display()), expected, got)
    }

    /// Checks that all tensors are there as the record has them.
    fn check(&self) -> Result<()> {
        let Record { inputs, layers, shards, run, .. } = &self.record;
        if let Some((name, at)) =
            layers.iter().flat_map(|(n, at)| at.iter().map(move |i| (n, i))).find(|(_, i)| **i >= inputs.len())
        {
            return Err(self.refuse(name.clone(), format!("inputs below {}", inputs.len()), at).into());
        }
        let ascending = shards.parts.is_sorted_by(|a, b| a < b) && shards.parts.last().is_none_or(|&k| k < shards.of);
        if shards.of == 0 || !ascending || run.chosen.iter().any(|&call| call >= run.calls.len()) {
            return Err(self.refuse("record".into(), "shards and calls within their numbers", "others").into());
        }
        for (i, input) in inputs.iter().enumerate() {
            let refuse = |[what, expected, got]: [String; 3]| self.refuse(what, expected, got);
            self.store.check(i, input).map_err(refuse)?;
        }
        Ok(())
    }

    /// The sums of input `index` of the record.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn sums(&self, index: usize) -> Result<Sums> {
        self.store.sums(index)
    }

    /// Whether the file knows the inputs of the layers whose weight is called `tensor` in a packed file.
    pub fn knows(&self, tensor: &str) -> bool {
        self.record.layers.contains_key(tensor)
    }

    /// Refuses a model that this is no calibration of: one whose layers come from other weights.
    ///
    /// # Errors
    /// [`Error::Request`] that names both.
    pub fn check_model(&self, pipeline: &PipelineMeta, sources: &[SourceMeta]) -> Result<()> {
        let own = &self.record.model;
        let other = ModelRecord::of_sources(pipeline, sources, &self.record.components());
        if own.weights == other.weights {
            return Ok(());
        }
        let describe = |m: &ModelRecord| {
            let files = m.weights.iter().map(|(file, hash)| format!("{file} {}", hash.get(..8).unwrap_or(hash)));
            format!("{} ({})", m.name, files.collect::<Vec<_>>().join(", "))
        };
        let expected = format!("one of {}; packer calibrate makes it", describe(&other));
        Err(self.refuse("model".into(), expected, format!("one of {}", describe(own))).into())
    }

    /// The moments of the inputs of the layers whose weight is called `tensor` in a packed file; none if it was not
    /// looked at.
    ///
    /// # Errors
    /// If there were no rows, or numbers are not finite.
    pub fn moments(&self, tensor: &str) -> Result<Option<Moments>> {
        let Some(inputs) = self.record.layers.get(tensor) else { return Ok(None) };
        let mut total: Option<Sums> = None;
        for &input in inputs {
            let sums = self.sums(input)?;
            match &mut total {
                None => total = Some(sums),
                Some(total) if total.sum.len() == sums.sum.len() && total.second.len() == sums.second.len() => {
                    total.add_moments(&sums);
                }
                Some(total) => {
                    let (expected, got) = (total.sum.len(), sums.sum.len());
                    return Err(self.refuse(tensor.to_owned(), format!("{expected} values a row"), got).into());
                }
            }
        }
        let (Some(sums), Some(input)) = (total, inputs.first().map(|&i| &self.record.inputs[i])) else {
            return Ok(None);
        };
        let mean = sums.sum.iter().map(|v| v / sums.weight).collect();
        let second = match (input.second, input.kernel) {
            (Second::Toeplitz, Some(kernel)) => {
                let lags = sums.second.iter().map(|v| v / sums.pixels).collect();
                let centre = sums.walk.iter().map(|v| v / sums.pixels).collect();
                SecondMoments::Toeplitz { channels: input.channels, kernel, lags, centre }
            }
            _ => SecondMoments::Dense(sums.second.iter().map(|v| v / sums.weight).collect()),
        };
        let moments = Moments { rows: sums.weight, mean, second };
        moments.check().map_err(|fault| self.refuse(tensor.to_owned(), "moments of what was seen", fault))?;
        Ok(Some(moments))
    }

    /// The extremes of the inputs of the layers whose weight is called `tensor` in a packed file; none if it was not looked
    /// at.
    ///
    /// # Errors
    /// If they cannot be read, or are not finite.
    pub fn extremes(&self, tensor: &str) -> Result<Option<Extremes>> {
        let Some(inputs) = self.record.layers.get(tensor) else { return Ok(None) };
        let mut all: Option<(Extremes, f64)> = None;
        for &input in inputs {
            let sums = self.sums(input)?;
            let (low, high) = extremes(&sums, self.record.inputs[input].channels);
            let Sums { groups, squared_ranges, .. } = sums;
            let own = (Extremes { low, high, squared_range: squared_ranges }, groups);
            all = Some(match all {
                None => own,
                Some((mut all, before)) => {
                    join(&mut all.low, &own.0.low, f32::min);
                    join(&mut all.high, &own.0.high, f32::max);
                    all.squared_range += squared_ranges;
                    (all, before + groups)
                }
            });
        }
        let Some((mut extremes, groups)) = all else { return Ok(None) };
        extremes.squared_range /= groups;
        let Extremes { low, high, squared_range } = &extremes;
        if !(squared_range.is_finite() && low.iter().chain(high).all(|v| v.is_finite())) {
            return Err(self.refuse(tensor.to_owned(), "finite extremes of what was seen", "others").into());
        }
        Ok(Some(extremes))
    }

    /// What was seen of `inputs`, numbers in the record, at each call that was looked at, in order; and how many calls a run
    /// has.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn ranges(&self, inputs: &[usize]) -> Result<(Vec<CallRange>, usize)> {
        let run = &self.record.run;
        let mut calls: BTreeMap<usize, CallRange> = BTreeMap::new();
        for &input in inputs {
            let sums = self.sums(input)?;
            let channels = self.record.inputs[input].channels.max(1);
            let of_calls = sums.low.chunks_exact(channels).zip(sums.high.chunks_exact(channels));
            for (i, (low, high)) in of_calls.enumerate().filter(|(_, (low, high))| least(low) <= greatest(high)) {
                let index = match self.record.inputs[input].when {
                    When::Prompt => 0,
                    When::Call => i,
                    When::Sample => run.chosen.get(i).copied().unwrap_or(0),
                };
                let bins = std::array::from_fn(|bin| sums.bins[i * BINS + bin]);
                let timestep = run.calls.get(index).map_or(0.0, |call| call.timestep);
                let seen = SeenRange { low: least(low), high: greatest(high), bins };
                let own = CallRange { index, timestep, seen, low: low.to_vec(), high: high.to_vec() };
                calls.entry(index).and_modify(|call| call.join(&own)).or_insert(own);
            }
        }
        Ok((calls.into_values().collect(), run.calls.len()))
    }

    /// What the file was made of, for META.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn summary(&self) -> Result<CalibrationMeta> {
        let run = &self.record.run;
        Ok(CalibrationMeta {
            images: run.images as u64,
            calls: run.chosen.iter().map(|&call| call as u64).collect(),
            of_calls: run.calls.len() as u64,
            sampler: run.sampler.kind.name().to_owned(),
            guidance_scale: run.guidance_scale,
            seed: run.seed,
            xxh3: format!("{:032x}", self.store.hash()?),
        })
    }
}

impl Sums {
    /// Adds the moments of other rows.
    pub fn add_moments(&mut self, other: &Sums) {
        self.weight += other.weight;
        self.rows += other.rows;
        self.pixels += other.pixels;
        self.sum.iter_mut().zip(&other.sum).for_each(|(a, b)| *a += b);
        self.walk.iter_mut().zip(&other.walk).for_each(|(a, b)| *a += b);
        self.second.iter_mut().zip(&other.second).for_each(|(a, b)| *a += b);
    }

    /// Adds all that is known of other rows of the same calls.
    pub fn add(&mut self, other: &Sums) {
        self.add_moments(other);
        self.groups += other.groups;
        self.squared_ranges += other.squared_ranges;
        join(&mut self.low, &other.low, f32::min);
        join(&mut self.high, &other.high, f32::max);
        self.bins.iter_mut().zip(&other.bins).for_each(|(a, b)| *a = a.saturating_add(*b));
    }
}

/// Writes a calibration to `target`: `sums(i)` are those of input `i` of the record.
///
/// # Errors
/// What `sums` returns, or if the file cannot be written; an older one at `target` stays as it was.
pub fn write(target: &Path, record: &Record, mut sums: impl FnMut(usize) -> Result<Sums>) -> Result<()> {
    let inputs: Vec<_> = record.inputs.iter().enumerate().collect();
    let text = store::json(target, record)?;
    store::write(target, (RECORD, &text), &inputs, |i, out| store::write_sums(out, target, &sums(i)?))
}
