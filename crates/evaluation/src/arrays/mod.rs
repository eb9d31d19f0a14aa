//! Arrays of numbers from files: what `numpy.savez` writes, and safetensors.

mod npy;
mod npz;

use aquatint::{Error, Result};
use half::f16;
use npz::Npz;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

/// A file's arrays, under the name that messages call it by.
pub(crate) struct Arrays<'a> {
    source: &'a str,
    file: File<'a>,
}

enum File<'a> {
    Npz(Npz<'a>),
    Safetensors(SafeTensors<'a>),
}

/// An array's axes, outermost first, and its values, row-major.
#[derive(Debug, PartialEq)]
pub(crate) struct Array {
    pub dims: Vec<usize>,
    pub values: Vec<f64>,
}

impl<'a> Arrays<'a> {
    /// The arrays of a file with these `bytes`; what kind it is, they tell.
    ///
    /// # Errors
    /// [`Error::Request`] if it is neither kind, or damaged.
    pub fn new(source: &'a str, bytes: &'a [u8]) -> Result<Self> {
        let wrong = |expected: &str, got: String| Error::request(source, expected, got);
        let file = if bytes.starts_with(b"PK") {
            File::Npz(Npz::new(bytes).map_err(|got| wrong("a whole .npz file", got))?)
        } else {
            let file = SafeTensors::deserialize(bytes);
            File::Safetensors(file.map_err(|e| wrong("an .npz or safetensors file", e.to_string()))?)
        };
        Ok(Arrays { source, file })
    }

    /// Whether there is an array of this name.
    pub fn has(&self, name: &str) -> bool {
        match &self.file {
            File::Npz(npz) => npz.has(name),
            File::Safetensors(file) => file.tensor(name).is_ok(),
        }
    }

    /// The first of `names` that the file has an array of.
    pub fn first<'n>(&self, names: &[&'n str]) -> Option<&'n str> {
        names.iter().copied().find(|name| self.has(name))
    }

    /// The array of this name, all of whose numbers are finite.
    ///
    /// # Errors
    /// [`Error::Request`] if there is none, or it is damaged or of other numbers than floats.
    pub fn get(&self, name: &str) -> Result<Array> {
        let array = match &self.file {
            File::Npz(npz) => npz.read(name).map(|bytes| npy::read(&bytes?)),
            File::Safetensors(file) => file.tensor(name).ok().map(|view| tensor(&view)),
        };
        let array = array.ok_or_else(|| Error::request(self.source, format!("a tensor `{name}`"), "none"))?;
        let array = array.map_err(|(expected, got)| self.wrong(name, expected, got))?;
        match array.values.iter().find(|v| !v.is_finite()) {
            Some(bad) => Err(self.wrong(name, "finite numbers", bad)),
            None => Ok(array),
        }
    }

    /// The values of the array of this name, which must have these axes.
    ///
    /// # Errors
    /// As [`get`](Self::get); [`Error::Request`] if it has others.
    pub fn shaped(&self, name: &str, dims: &[usize]) -> Result<Vec<f64>> {
        let array = self.get(name)?;
        match array.dims == dims {
            true => Ok(array.values),
            false => Err(self.wrong(name, format!("{dims:?}"), format!("{:?}", array.dims))),
        }
    }

    /// The error that an array is not what is expected.
    pub fn wrong(&self, name: &str, expected: impl std::fmt::Display, got: impl std::fmt::Display) -> Error {
        Error::request(format!("{}: tensor `{name}`", self.source), expected, got)
    }
}

/// What was expected, and what there is instead.
type Fault = (String, String);

fn tensor(view: &TensorView<'_>) -> Result<Array, Fault> {
    let data = view.data();
    let values = match view.dtype() {
        Dtype::F64 => data.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect(),
        Dtype::F32 => data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b).into()).collect(),
        Dtype::F16 => data.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).into()).collect(),
        other => return Err(("f16, f32 or f64".into(), format!("{other:?}"))),
    };
    Ok(Array { dims: view.shape().to_vec(), values })
}
