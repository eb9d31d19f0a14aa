//! Tensors of safetensors files as floats.

use aquatint::{Error, Result};
use half::f16;
use safetensors::{Dtype, SafeTensors};

/// A file's tensors, under the name that messages call it by.
pub(super) struct Tensors<'a> {
    source: &'a str,
    file: SafeTensors<'a>,
}

/// A tensor's axes and values.
pub(super) struct Tensor {
    /// Axes, outermost first.
    pub dims: Vec<usize>,
    /// Values, row-major.
    pub values: Vec<f32>,
}

impl<'a> Tensors<'a> {
    /// The tensors of a file with these `bytes`.
    pub fn new(source: &'a str, bytes: &'a [u8]) -> Result<Self> {
        let file = SafeTensors::deserialize(bytes).map_err(|e| Error::request(source, "a safetensors file", e))?;
        Ok(Tensors { source, file })
    }

    /// Whether there is a tensor of this name.
    pub fn has(&self, name: &str) -> bool {
        self.file.tensor(name).is_ok()
    }

    /// The tensor of this name.
    pub fn get(&self, name: &str) -> Result<Tensor> {
        let missing = |_| Error::request(self.source, format!("a tensor `{name}`"), "none");
        let view = self.file.tensor(name).map_err(missing)?;
        let halves = |b: &[u8]| f16::from_le_bytes([b[0], b[1]]).to_f32();
        let singles = |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
        let values: Vec<f32> = match view.dtype() {
            Dtype::F16 => view.data().chunks_exact(2).map(halves).collect(),
            Dtype::F32 => view.data().chunks_exact(4).map(singles).collect(),
            other => return Err(self.wrong(name, "f16 or f32", format!("{other:?}"))),
        };
        if let Some(bad) = values.iter().find(|v| !v.is_finite()) {
            return Err(self.wrong(name, "finite numbers", bad));
        }
        Ok(Tensor { dims: view.shape().to_vec(), values })
    }

    /// The tensor of this name, which must have these axes.
    pub fn shaped(&self, name: &str, dims: &[usize]) -> Result<Vec<f32>> {
        let tensor = self.get(name)?;
        match tensor.dims == dims {
            true => Ok(tensor.values),
            false => Err(self.wrong(name, &format!("{dims:?}"), format!("{:?}", tensor.dims))),
        }
    }

    /// The error that a tensor is not what is expected.
    pub fn wrong(&self, name: &str, expected: &str, got: impl std::fmt::Display) -> Error {
        Error::request(format!("{}: tensor `{name}`", self.source), expected, got)
    }
}
