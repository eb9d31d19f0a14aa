//! The file of a reconstruction: safetensors with a [`Record`] in the metadata.
//!
//! Of the layer whose weight is called `NAME` in a packed file: `NAME.codes` (rows, inputs) u8, `NAME.scale` and
//! `NAME.offset` of (rows) f32, `NAME.table` of (tables, levels) i8 or f16, and where its bias changes `NAME.bias` of (rows)
//! f32, which is added to it; where its activations have steps, `NAME.activation` of (points, 3) f32: the position in time from
//! which each point holds, scale and zero point. These are the codec's own matrices, in the order of the packed file: what is packed is bit for
//! bit what was trained, whatever the method, where steps, zero points and alphas beside the float weights, as Q-Diffusion
//! saves them, would be four times as large, know no codebooks and no biases, and have to be rounded once more.
//!
//! Unfinished work is a folder of such files, one per unit.

use super::Curve;
use crate::calibrate::record::ModelRecord;
use crate::calibrate::store::{Store, json, write_header};
use crate::error::Result;
use crate::weight::SECOND_HALF;
use aquatint::error::Error;
use aquatint::raw::codec::{Bits, Grain, QuantizedMatrix, TableValues};
use aquatint::raw::program::CurveAxis;
use aquatint::raw::whole_file::WholeFile;
use half::f16;
use safetensors::Dtype;
use safetensors::tensor::TensorInfo;
use serde::{Deserialize, Serialize};
use std::io::Write;
use std::path::{Path, PathBuf};
use zerocopy::IntoBytes;

/// The key of the record in the metadata.
const RECORD: &str = "aquatint_reconstruction";
/// The version of files that this program reads and writes.
const VERSION: u32 = 1;

/// What a file says of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The version of the format.
    pub version: u32,
    /// Name and version of the program that wrote the file.
    pub tool: String,
    /// The model.
    pub model: ModelRecord,
    /// What was done, in words.
    pub how: String,
    /// A name for all that decides about the numbers.
    pub identity: String,
    /// What was trained together, in order.
    pub units: Vec<UnitRecord>,
    /// The layers, in order.
    pub layers: Vec<LayerRecord>,
}

/// A layer or block.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnitRecord {
    /// Its module path.
    pub name: String,
    /// How many layers it has.
    pub layers: usize,
    /// The loss.
    pub curve: Curve,
    /// The loss while steps of activations were learned, if they were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activations: Option<Curve>,
}

/// A layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerRecord {
    /// Its weight's name in a packed file.
    pub name: String,
    /// Method and width, `mse-4`.
    pub method: String,
    /// Width of a code.
    pub bits: u32,
    /// Output channels.
    pub rows: usize,
    /// Inputs per output channel.
    pub cols: usize,
    /// Codebooks: 1, or as many as rows.
    pub tables: usize,
    /// Whether codebooks are integers.
    pub int8: bool,
    /// Whether its bias changes.
    pub biased: bool,
    /// What part of the power of its output the error makes, with its mean error in the bias if that changes; none if nothing is known of its
    /// inputs.
    pub output_error: Option<f64>,
    /// The same if every weight had been rounded to the nearest level.
    pub nearest_output_error: Option<f64>,
    /// The curve of its input's range, if that was learned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activations: Option<ActivationRecord>,
}

impl LayerRecord {
    /// Whether it is a half of the layer whose whole weight is called `name` and has so many inputs. The other half may have no
    /// record: one of few inputs stays float.
    fn is_half_of(&self, name: &str, inputs: usize) -> bool {
        let layer = name.strip_suffix(".weight").unwrap_or(name);
        let second = self.name.strip_prefix(layer).is_some_and(|end| end.starts_with(SECOND_HALF));
        second || self.name == name && self.cols < inputs
    }
}

/// The curve of the range of a layer's input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ActivationRecord {
    /// Width of a code.
    pub bits: u8,
    /// How many points it has.
    pub points: usize,
    /// Whether positions are timesteps, not fractions of the sampler's steps.
    pub timesteps: bool,
}

impl ActivationRecord {
    /// What positions count.
    pub fn axis(&self) -> CurveAxis {
        if self.timesteps { CurveAxis::Timestep } else { CurveAxis::StepFraction }
    }
}

/// A layer as it becomes.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    /// What is said of it.
    pub record: LayerRecord,
    /// The weight.
    pub matrix: QuantizedMatrix,
    /// What its bias gains.
    pub bias: Option<Vec<f32>>,
    /// Rows of position, scale and zero point of its input's range.
    pub activations: Option<Vec<[f32; 3]>>,
}

impl Record {
    /// That of no units yet.
    pub fn new(model: ModelRecord, how: String, identity: String) -> Self {
        let tool = concat!("packer ", env!("CARGO_PKG_VERSION")).into();
        Record { version: VERSION, tool, model, how, identity, units: Vec::new(), layers: Vec::new() }
    }
}

impl LayerRecord {
    /// The tensors of the layer, in the file's order.
    fn tensors(&self) -> Option<Vec<(String, Dtype, Vec<usize>)>> {
        let levels = Bits::new(self.bits)?.levels();
        let table = if self.int8 { Dtype::I8 } else { Dtype::F16 };
        let mut tensors = vec![
            ("codes", Dtype::U8, vec![self.rows, self.cols]),
            ("scale", Dtype::F32, vec![self.rows]),
            ("offset", Dtype::F32, vec![self.rows]),
            ("table", table, vec![self.tables, levels]),
        ];
        tensors.extend(self.biased.then(|| ("bias", Dtype::F32, vec![self.rows])));
        tensors.extend(self.activations.map(|curve| ("activation", Dtype::F32, vec![curve.points, 3])));
        Some(tensors.into_iter().map(|(part, dtype, shape)| (format!("{}.{part}", self.name), dtype, shape)).collect())
    }
}

/// A file, opened. Layers are read when they are asked for.
pub struct Reconstruction {
    path: PathBuf,
    store: Store,
    record: Record,
}

impl Reconstruction {
    /// Opens the file at `path`; none if it is not one of these.
    ///
    /// # Errors
    /// If it cannot be read, or is one that is damaged or of another version.
    pub fn open(path: &Path) -> Result<Option<Self>> {
        // What is no safetensors file is another project's.
        let Ok(store) = Store::open(path)? else { return Ok(None) };
        let Some(text) = store.text(RECORD) else { return Ok(None) };
        let refuse = |expected: String, got: &dyn std::fmt::Display| {
            Error::request(format!("reconstruction {}", path.display()), expected, got)
        };
        let version = serde_json::from_str(text).ok().and_then(|v: serde_json::Value| v.get("version")?.as_u64());
        if version != Some(u64::from(VERSION)) {
            let got = version.map_or("none".into(), |v| format!("version {v}"));
            return Err(refuse(format!("version {VERSION}, as packer reconstruct makes it"), &got).into());
        }
        let record = serde_json::from_str(text).map_err(|e| refuse("a sound record".into(), &e))?;
        Ok(Some(Reconstruction { path: path.to_owned(), store, record }))
    }

    /// What the file says of itself.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the layer whose whole weight is called `name` in a packed file, with so many inputs, was trained in halves.
    pub fn is_split(&self, name: &str, inputs: usize) -> bool {
        self.record.layers.iter().any(|record| record.is_half_of(name, inputs))
    }

    /// The layer of this record of the file.
    ///
    /// # Errors
    /// If the file does not have it whole, or codes that are none.
    pub fn layer(&self, record: &LayerRecord) -> Result<Layer> {
        let refuse = |expected: &str, got: &dyn std::fmt::Display| {
            Error::request(format!("{} of reconstruction {}", record.name, self.path.display()), expected, got)
        };
        let sound = record.tables == 1 || record.tables == record.rows;
        let bits = Bits::new(record.bits);
        let entries = bits.and_then(|bits| record.tables.checked_mul(bits.levels()));
        let size = record.rows.checked_mul(record.cols);
        let (Some(bits), Some(size), Some(entries), true) = (bits, size, entries, sound) else {
            return Err(refuse("rows, codes and codebooks that there are", &"others").into());
        };
        let codes = self.numbers::<u8>(record, "codes", size)?;
        if let Some(code) = codes.iter().find(|&&code| usize::from(code) >= bits.levels()) {
            return Err(refuse(&format!("codes below {}", bits.levels()), code).into());
        }
        let table = match record.int8 {
            true => TableValues::I8(self.numbers(record, "table", entries)?),
            false => TableValues::F16(
                self.numbers::<u16>(record, "table", entries)?.into_iter().map(f16::from_bits).collect(),
            ),
        };
        let scale = self.numbers::<f32>(record, "scale", record.rows)?;
        let offset = self.numbers::<f32>(record, "offset", record.rows)?;
        let bias = record.biased.then(|| self.numbers::<f32>(record, "bias", record.rows)).transpose()?;
        let activations = self.activations(record)?;
        let floats = scale.iter().chain(&offset).chain(bias.iter().flatten());
        let halves = match &table {
            TableValues::F16(entries) => entries.iter().find(|v| !v.is_finite()).map(|v| v.to_f32()),
            TableValues::I8(_) => None,
        };
        if let Some(fault) = floats.copied().find(|v| !v.is_finite()).or(halves) {
            return Err(refuse("finite numbers", &fault).into());
        }
        let grain = if record.tables == 1 { Grain::Tensor } else { Grain::Row };
        let (rows, cols) = (record.rows, record.cols);
        let matrix = QuantizedMatrix { bits, rows, cols, codes, table, grain, scale, offset };
        Ok(Layer { record: record.clone(), matrix, bias, activations })
    }

    /// The curve of the range of the input of the layer of this record, if it has one.
    ///
    /// # Errors
    /// If it is none that codes can have.
    pub fn activations(&self, record: &LayerRecord) -> Result<Option<Vec<[f32; 3]>>> {
        let Some(ActivationRecord { bits, points, timesteps }) = record.activations else { return Ok(None) };
        let numbers = self.numbers::<f32>(record, "activation", points.saturating_mul(3))?;
        let points: Vec<[f32; 3]> = numbers.chunks_exact(3).map(|point| [point[0], point[1], point[2]]).collect();
        let most = if timesteps { f32::INFINITY } else { 1.0 };
        let sound = |&[position, scale, zero]: &[f32; 3]| {
            (0.0..=most).contains(&position)
                && position.is_finite()
                && scale > 0.0
                && scale.is_finite()
                && zero.is_finite()
        };
        let ascending = points.windows(2).all(|pair| pair[0][0] < pair[1][0]);
        if points.is_empty() || !points.iter().all(sound) || !ascending || !(2..=8).contains(&bits) {
            let subject = format!("{}.activation of reconstruction {}", record.name, self.path.display());
            return Err(Error::request(
                subject,
                "ascending positions with a positive step each",
                format!("{points:?}"),
            )
            .into());
        }
        Ok(Some(points))
    }

    fn numbers<T: zerocopy::FromBytes + IntoBytes + Clone>(
        &self,
        record: &LayerRecord,
        part: &str,
        count: usize,
    ) -> Result<Vec<T>> {
        let name = format!("{}.{part}", record.name);
        let numbers = self.store.numbers::<T>(&name)?;
        let got = numbers.as_ref().map_or("none".into(), |numbers| numbers.len().to_string());
        numbers.filter(|numbers| numbers.len() == count).ok_or_else(|| {
            Error::request(format!("{name} of reconstruction {}", self.path.display()), format!("{count} numbers"), got)
                .into()
        })
    }
}

/// Writes `target`: `record` and its layers, which `layer` gives one after the other.
///
/// # Errors
/// What `layer` returns, or if the file cannot be written; an older one at `target` stays as it was.
pub fn write(target: &Path, record: &Record, mut layer: impl FnMut(usize) -> Result<Layer>) -> Result<()> {
    let mut end = 0;
    let mut infos = Vec::new();
    for (name, dtype, shape) in record.layers.iter().flat_map(|layer| layer.tensors().expect("a width of codes")) {
        let start = end;
        end += shape.iter().product::<usize>() * dtype.bitsize() / 8;
        infos.push((name, TensorInfo { dtype, shape, data_offsets: (start, end) }));
    }
    let mut out = WholeFile::create(target)?;
    write_header(&mut out, target, (RECORD, &json(target, record)?), infos)?;
    for i in 0..record.layers.len() {
        let Layer { matrix, bias, activations, .. } = layer(i)?;
        let halves: Vec<u16>;
        let table = match &matrix.table {
            TableValues::I8(entries) => entries.as_bytes(),
            TableValues::F16(entries) => {
                halves = entries.iter().map(|entry| entry.to_bits()).collect();
                halves.as_bytes()
            }
        };
        let parts = [matrix.codes.as_bytes(), matrix.scale.as_bytes(), matrix.offset.as_bytes(), table];
        let more = [bias.as_ref().map(|bias| bias.as_bytes()), activations.as_ref().map(|points| points.as_bytes())];
        for bytes in parts.into_iter().chain(more.into_iter().flatten()) {
            out.write_all(bytes).map_err(Error::io("write", target))?;
        }
    }
    Ok(out.commit()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn either_half_tells_that_its_layer_is_split() {
        let record = |name: &str, cols| LayerRecord {
            name: name.into(),
            method: "mse-4".into(),
            bits: 4,
            rows: 8,
            cols,
            tables: 1,
            int8: true,
            biased: false,
            output_error: None,
            nearest_output_error: None,
            activations: None,
        };
        let whole = "unet/a.conv_shortcut.weight";
        assert!(record("unet/a.conv_shortcut.weight_quantizer_0.weight", 32).is_half_of(whole, 96));
        assert!(record(whole, 64).is_half_of(whole, 96));
        assert!(!record(whole, 96).is_half_of(whole, 96));
        assert!(!record("unet/ba.conv_shortcut.weight", 64).is_half_of(whole, 96));
    }
}
