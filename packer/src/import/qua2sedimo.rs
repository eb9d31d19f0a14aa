//! Qua2SeDiMo's `*_mq.pt` (quantization.md §1.4): per layer the original weight, for `mse-B` steps and zero points, for
//! `kmeans-B` and `kmeans_all-B` the weights as they become. The configuration says which of them a layer has.

use super::qdiffusion::original;
use super::{ImportedWeight, Quantizer, RowGrid};
use crate::error::Result;
use crate::quantize::{Method, Rule, f16_codes};
use aquatint::raw::codec::Bits;
use safetensors::Dtype;

/// The weight as it becomes; none if the file does not have it by this method at this width.
pub(super) fn weight(
    quantizer: &Quantizer,
    split: Option<(u64, u64)>,
    method: Method,
    bits: Bits,
) -> Result<Option<ImportedWeight>> {
    let (name, dims) = (&quantizer.name, quantizer.dims.to_vec());
    let method = if method == Method::Uniform(Rule::MseHalf) { Method::UAQ } else { method };
    let key = format!("{name}.quant_params.{method}-{bits}");
    if quantizer.file.shape(&key).is_none() {
        return Ok(None);
    }
    if method != Method::UAQ {
        return Ok(Some(ImportedWeight { values: quantizer.read(&key, dims[1])?, dims, grid: None }));
    }
    let (step, zero) = both(quantizer, &key)?;
    let original = original(quantizer, split)?;
    let row = original.len() / step.len().max(1);
    let half = quantizer.file.dtype(&quantizer.weight) == Some(Dtype::F16);
    let mut values = Vec::with_capacity(original.len());
    for ((weights, &step), &zero) in original.chunks_exact(row.max(1)).zip(&step).zip(&zero) {
        if step <= 0.0 {
            return Err(quantizer.refuse("positive steps", step).into());
        }
        let top = (bits.levels() - 1) as f32;
        let q = |w: f32| ((w / step).round_ties_even() + zero).clamp(0.0, top);
        match half {
            true => values.extend(f16_codes(weights, step, zero, bits).map(|q| (q - zero) * step)),
            false => values.extend(weights.iter().map(|&w| (q(w) - zero) * step)),
        }
    }
    Ok(Some(ImportedWeight { dims, values, grid: Some(RowGrid { step, zero }) }))
}

/// Steps and zero points of the rows that are meant: a tensor (2, rows, 1, ..).
fn both(quantizer: &Quantizer, key: &str) -> Result<(Vec<f32>, Vec<f32>)> {
    let shape = quantizer.file.shape(key).unwrap_or_default();
    let rows = shape.get(1).copied().unwrap_or(0);
    if shape.first() != Some(&2) || rows != quantizer.dims[0] {
        let expected = format!("steps and zero points of {} rows, (2, {0}, 1, ..)", quantizer.dims[0]);
        return Err(quantizer.refuse(expected, format!("shape {shape:?}")).into());
    }
    let mut step = quantizer.file.read(key)?;
    let zero = step.split_off(rows);
    Ok((step, zero))
}
