//! `--outputs`: safetensors files in diffusers' layouts.

use aquatint::options::NamedTensor;
use aquatint::{Error, Result, raw::whole_file};
use safetensors::tensor::{Dtype, TensorView};
use std::io::Write;
use std::path::Path;

/// Writes `tensors` to `path`, whole or not at all.
pub fn write(path: &Path, tensors: &[NamedTensor]) -> Result<()> {
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
