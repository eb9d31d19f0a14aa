//! `--inputs` and `--outputs`: safetensors files in diffusers' layouts.

use aquatint::{Error, Result, whole_file};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use std::io::Write;
use std::path::Path;

/// A tensor by name: values and axes.
pub struct Named {
    /// Its name in the file.
    pub name: &'static str,
    /// Axes, outermost first.
    pub dims: Vec<usize>,
    /// Values, row-major.
    pub values: Vec<f32>,
}

/// The tensors of an input file.
pub struct Inputs {
    path: String,
    tensors: Vec<(String, Vec<usize>, Vec<f32>)>,
}

impl Inputs {
    /// Reads `path`; every tensor must be one of `known`.
    pub fn read(path: &Path, known: &[&str]) -> Result<Self> {
        let shown = path.display().to_string();
        let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
        let file =
            SafeTensors::deserialize(&bytes).map_err(|e| Error::request(shown.as_str(), "a safetensors file", e))?;
        let mut tensors = Vec::new();
        for (name, view) in file.iter() {
            if !known.contains(&name) {
                return Err(Error::request(format!("{shown}: tensor"), known.join(", "), format!("`{name}`")));
            }
            tensors.push((name.to_owned(), view.shape().to_vec(), floats(&shown, name, &view)?));
        }
        Ok(Inputs { path: shown, tensors })
    }

    /// Takes a tensor out.
    pub fn take(&mut self, name: &str) -> Option<(Vec<usize>, Vec<f32>)> {
        let i = self.tensors.iter().position(|t| t.0 == name)?;
        let (_, dims, values) = self.tensors.swap_remove(i);
        Some((dims, values))
    }

    /// Refuses what nobody took.
    pub fn finish(&self) -> Result<()> {
        match self.tensors.first() {
            None => Ok(()),
            Some((name, ..)) => {
                let expected = "only tensors that this model and request have a use for";
                Err(Error::request(self.path.as_str(), expected, format!("`{name}`")))
            }
        }
    }

    /// Latents `(n, c, h, w)` with `channels` channels.
    pub fn latents(&mut self, channels: u32) -> Result<Option<([usize; 4], Vec<f32>)>> {
        let Some((dims, values)) = self.take("latents") else { return Ok(None) };
        match dims[..] {
            [n, c, h, w] if c == channels as usize && n * h * w > 0 => Ok(Some(([n, c, h, w], values))),
            _ => Err(Error::request(
                format!("{}: latents", self.path),
                format!("[n, {channels}, h, w]"),
                format!("{dims:?}"),
            )),
        }
    }

    /// Class labels `(n)`.
    pub fn class_labels(&mut self) -> Result<Option<Vec<u32>>> {
        let Some((dims, values)) = self.take("class_labels") else { return Ok(None) };
        let whole = values.iter().all(|v| *v >= 0.0 && v.fract() == 0.0 && *v < 1e9);
        if dims.len() != 1 || values.is_empty() || !whole {
            let got = format!("{dims:?} {:?}", &values[..values.len().min(4)]);
            return Err(Error::request(format!("{}: class_labels", self.path), "[n] whole numbers, n at least 1", got));
        }
        Ok(Some(values.into_iter().map(|v| v as u32).collect()))
    }
}

fn floats(path: &str, name: &str, view: &TensorView) -> Result<Vec<f32>> {
    let data = view.data();
    let out: Vec<f32> = match view.dtype() {
        Dtype::F32 => data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        Dtype::F16 => data.chunks_exact(2).map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        Dtype::BF16 => data.chunks_exact(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        Dtype::I32 => data.chunks_exact(4).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]]) as f32).collect(),
        Dtype::I64 => {
            data.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap_or_default()) as f32).collect()
        }
        other => {
            let what = format!("{path}: tensor `{name}`");
            return Err(Error::request(what, "f32, f16, bf16, i32 or i64", format!("{other:?}")));
        }
    };
    if let Some(i) = out.iter().position(|v| !v.is_finite()) {
        return Err(Error::request(format!("{path}: tensor `{name}`"), "finite numbers", format!("{} at {i}", out[i])));
    }
    Ok(out)
}

/// Writes `tensors` to `path`, whole or not at all.
pub fn write(path: &Path, tensors: &[Named]) -> Result<()> {
    use zerocopy::IntoBytes;
    let mut views = Vec::new();
    for t in tensors {
        let view = TensorView::new(Dtype::F32, t.dims.clone(), t.values.as_bytes())
            .map_err(|e| Error::request(t.name, "as many values as its shape says", e))?;
        views.push((t.name, view));
    }
    let bytes = safetensors::serialize(views, None).map_err(|e| Error::request("--outputs", "tensors", e))?;
    whole_file::write(path, |file| file.write_all(&bytes))
}
