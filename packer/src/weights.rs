//! Writing safetensors files tensor by tensor, so that memory does not grow with the model.

use crate::error::Result;
use aquatint::error::Error;
use aquatint::raw::whole_file::WholeFile;
use half::f16;
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use std::collections::HashMap;
use std::io::Write;
use std::path::Path;
use zerocopy::IntoBytes;

/// Element type of a written tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Float {
    /// 32 bits.
    F32,
    /// 16 bits.
    F16,
}

impl Float {
    fn dtype(self) -> Dtype {
        match self {
            Float::F32 => Dtype::F32,
            Float::F16 => Dtype::F16,
        }
    }

    /// Bytes per element.
    pub fn bytes(self) -> usize {
        match self {
            Float::F32 => 4,
            Float::F16 => 2,
        }
    }
}

/// Writes `target` with `tensors` (name and axes) in their order; `values(i)` gives the elements of the `i`-th.
///
/// # Errors
/// What `values` returns; [`Error::Request`] for a value that f16 cannot hold; [`Error::Io`] if the file cannot be
/// written. In all cases an older file at `target` stays as it was.
pub fn write(
    target: &Path,
    tensors: &[(String, Vec<usize>)],
    float: Float,
    values: &mut dyn FnMut(usize) -> Result<Vec<f32>>,
) -> Result<()> {
    let tensors: Vec<_> = tensors.iter().map(|(name, dims)| (name.clone(), dims.clone(), float)).collect();
    write_as(target, &tensors, values)
}

/// As [`write`](fn@write), each tensor in a type of its own.
///
/// # Errors
/// As [`write`](fn@write).
pub fn write_as(
    target: &Path,
    tensors: &[(String, Vec<usize>, Float)],
    values: &mut dyn FnMut(usize) -> Result<Vec<f32>>,
) -> Result<()> {
    let mut end = 0;
    let infos = tensors.iter().map(|(name, dims, float)| {
        let start = end;
        end += dims.iter().product::<usize>() * float.bytes();
        (name.clone(), TensorInfo { dtype: float.dtype(), shape: dims.clone(), data_offsets: (start, end) })
    });
    let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let unsound = |e: &dyn std::fmt::Display| Error::request(target.display().to_string(), "a sound set of tensors", e);
    let metadata = Metadata::new(Some(format), infos.collect()).map_err(|e| unsound(&e))?;
    let mut header = serde_json::to_vec(&metadata).map_err(|e| unsound(&e))?;
    header.resize(header.len().next_multiple_of(8), b' ');

    let io = || Error::io("write", target);
    let mut out = WholeFile::create(target)?;
    out.write_all(&(header.len() as u64).to_le_bytes()).map_err(io())?;
    out.write_all(&header).map_err(io())?;
    for (i, (name, dims, float)) in tensors.iter().enumerate() {
        let values = values(i)?;
        assert_eq!(values.len(), dims.iter().product::<usize>(), "elements of {name}");
        match float {
            Float::F32 => out.write_all(values.as_bytes()).map_err(io())?,
            Float::F16 => out.write_all(halves(name, &values)?.as_bytes()).map_err(io())?,
        }
    }
    Ok(out.commit()?)
}

/// `values` as f16.
///
/// # Errors
/// [`Error::Request`] naming `name` and the index of the first value that is finite and f16 cannot hold.
pub fn halves(name: &str, values: &[f32]) -> Result<Vec<f16>> {
    let halves: Vec<f16> = values.iter().map(|&v| f16::from_f32(v)).collect();
    match halves.iter().position(|v| !v.is_finite()) {
        None => Ok(halves),
        Some(i) => {
            let expected = "weights within the range of f16, 65504; use f32 instead";
            Err(Error::request(name, expected, format!("{} at index {i}", values[i])).into())
        }
    }
}
