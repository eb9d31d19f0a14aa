//! Safetensors files: their directory of tensors.

use super::view::View;
use aquatint::error::{Error, Result};
use safetensors::SafeTensors;
use std::path::Path;

/// Bytes of the length field before a safetensors header.
const LENGTH_BYTES: usize = 8;

/// Whether `bytes` begin as such a file does: a length, then a JSON object.
pub fn recognise(bytes: &[u8]) -> bool {
    bytes.get(LENGTH_BYTES) == Some(&b'{')
}

/// All tensors in the file at `path`, whose contents are `bytes`.
///
/// # Errors
/// [`Error::Request`] if the file is damaged.
pub fn tensors(bytes: &[u8], path: &Path) -> Result<Vec<(String, View)>> {
    let (header_bytes, metadata) = SafeTensors::read_metadata(bytes)
        .map_err(|e| Error::request(path.display().to_string(), "a whole safetensors file", e))?;
    let data = LENGTH_BYTES + header_bytes;
    let views = metadata.tensors().into_iter().map(|(key, info)| {
        let (start, end) = info.data_offsets;
        (key, View::dense(info.dtype, info.shape.clone(), data + start..data + end))
    });
    Ok(views.collect())
}
