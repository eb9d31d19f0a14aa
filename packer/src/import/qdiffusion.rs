//! Q-Diffusion's `ckpt.pth` (quantization.md §3.2, §3.6): `q = clamp(floor(w / step) + (alpha >= 0) + zero, 0, 2^b - 1)`, w the
//! original weight, which the file has, too. Widths are not in the file.

use super::{ImportedWeight, Quantizer, RowGrid};
use crate::error::Result;
use aquatint::raw::codec::Bits;

/// Weights that a wrong width cuts off: with one bit too few about half of them; with the right one a few in a hundred.
const MOST_CUT: f64 = 0.2;

/// The weight as it becomes.
pub(super) fn weight(quantizer: &Quantizer, split: Option<(u64, u64)>, bits: Bits) -> Result<Option<ImportedWeight>> {
    let (name, dims) = (&quantizer.name, quantizer.dims);
    let (step, zero) = (quantizer.rows(&format!("{name}.delta"))?, quantizer.rows(&format!("{name}.zero_point"))?);
    let alpha = quantizer.read(&format!("{name}.alpha"), dims[1])?;
    let original = original(quantizer, split)?;
    let top = (bits.levels() - 1) as f32;
    let row = alpha.len() / step.len().max(1);
    if let Some(bad) = step.iter().find(|step| **step <= 0.0) {
        return Err(quantizer.refuse("positive steps", bad).into());
    }
    let (mut cut, mut values) = (0usize, Vec::with_capacity(alpha.len()));
    for (i, (&w, &alpha)) in original.iter().zip(&alpha).enumerate() {
        let (step, zero) = (step[i / row], zero[i / row]);
        let wanted = (w / step).floor() + if alpha >= 0.0 { 1.0 } else { 0.0 } + zero;
        let q = wanted.clamp(0.0, top);
        cut += usize::from((wanted - q).abs() > 1.0);
        values.push((q - zero) * step);
    }
    if cut as f64 > MOST_CUT * alpha.len() as f64 {
        let expected = format!("steps for {bits} bits; of files for more, say so: --q-config w8a8");
        return Err(quantizer.refuse(expected, format!("{cut} of {} weights beyond the levels", alpha.len())).into());
    }
    Ok(Some(ImportedWeight { dims: dims.to_vec(), values, grid: Some(RowGrid { step, zero }) }))
}

/// The original weight, or the half of it that is meant.
pub(super) fn original(quantizer: &Quantizer, split: Option<(u64, u64)>) -> Result<Vec<f32>> {
    let Some((first, count)) = split else { return quantizer.read(&quantizer.weight, quantizer.dims[1]) };
    let whole = quantizer.file.shape(&quantizer.weight).and_then(|shape| shape.get(1).copied()).unwrap_or(0);
    let values = quantizer.read(&quantizer.weight, whole)?;
    let inner: usize = quantizer.dims[2..].iter().product();
    let (first, count) = (first as usize, count as usize);
    if first + count > whole {
        return Err(quantizer.refuse(format!("at least {} inputs", first + count), whole).into());
    }
    let half = |row: &[f32]| row[first * inner..(first + count) * inner].to_vec();
    Ok(values.chunks_exact(whole * inner).flat_map(half).collect())
}
