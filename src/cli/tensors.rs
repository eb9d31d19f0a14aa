//! `--outputs`: safetensors files in diffusers' layouts.

use aquatint::options::NamedTensor;
use aquatint::{Error, Result};
use safetensors::tensor::{Dtype, TensorView};
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
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = path.with_file_name(name);
    let done = std::fs::write(&temporary, bytes).and_then(|()| std::fs::rename(&temporary, path));
    done.map_err(|e| {
        let _ = std::fs::remove_file(&temporary);
        Error::io("write", path)(e)
    })
}
