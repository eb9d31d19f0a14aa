//! ViDiT-Q's files (quantization.md §4).
//!
//! Its later code saves `int_weight.pt`: of each layer int8 codes, a step and a zero point per row, `w = (q + zp) step`. Its first
//! code saves `ckpt.pth`: of each quantizer two dicts, buffers and parameters; the weights themselves are the model's, and
//! `delta_list` has a step per width that was asked for, 4, 6 and 8 bits if there are three.
//!
//! Neither says how weights were smoothed or rotated before (a rotation is drawn anew at each run, and not saved). Such
//! layers are refused: by the factors that the first code keeps, and where nothing tells, because they are far from the
//! model's own.

use super::{ImportedWeight, Quantizer, RowGrid};
use crate::error::Result;
use crate::source::view::Part;
use aquatint::raw::codec::Bits;

/// Widths of `delta_list` where there are several.
const WIDTHS: [u8; 3] = [4, 6, 8];
/// How far, relative to a weight, rounding to 4 bits moves it at most; another basis moves it by more than 1.
const FURTHEST: f64 = 0.5;

/// The weight of an `int_weight.pt`; `own` is the model's.
pub(super) fn integers(quantizer: &Quantizer, own: &[f32], bits: Bits) -> Result<ImportedWeight> {
    let file = quantizer.file;
    let rows = whole(quantizer)?;
    let name = |what: &str| format!("{}.{what}_weight", quantizer.layer);
    let codes = file.read_ints(&quantizer.weight)?;
    let (steps, zeros) = (file.read(&name("scale"))?, file.read_ints(&name("zp"))?);
    if (codes.len(), steps.len(), zeros.len()) != (own.len(), rows, rows) {
        let expected = format!("{} codes, {rows} steps and zero points", own.len());
        let got = format!("{}, {} and {}", codes.len(), steps.len(), zeros.len());
        return Err(quantizer.refuse(expected, got).into());
    }
    // Codes begin at 0 here.
    let half = (bits.levels() / 2) as i64;
    if let Some(code) = codes.iter().find(|code| !(-half..half).contains(*code)) {
        let expected = format!("codes of {bits} bits; of files with more, say so: --q-config w8a8");
        return Err(quantizer.refuse(expected, code).into());
    }
    let step = positive(quantizer, steps)?;
    let grid = RowGrid { zero: zeros.iter().map(|zp| (half - zp) as f32).collect(), step };
    let row = codes.len() / rows.max(1);
    let value = |(i, code): (usize, &i64)| (code + zeros[i / row]) as f32 * grid.step[i / row];
    let values: Vec<f32> = codes.iter().enumerate().map(value).collect();
    near(quantizer, own, &values)?;
    Ok(ImportedWeight { dims: quantizer.dims.to_vec(), values, grid: Some(grid) })
}

/// The weight of a layer of a `ckpt.pth`; `own` is the model's.
pub(super) fn steps(quantizer: &Quantizer, own: &[f32], bits: Bits) -> Result<ImportedWeight> {
    let (file, name) = (quantizer.file, &quantizer.name);
    let rows = whole(quantizer)?;
    let smoothed = |key: &&str| key.starts_with(&format!("{}.", quantizer.layer)) && key.ends_with(".act_scale");
    if let Some(key) = file.keys().find(smoothed) {
        let expected = "a layer that was not smoothed; --smooth and --smooth-layers choose such factors anew";
        return Err(quantizer.refuse(expected, key).into());
    }
    let list = |what: &str| -> Result<Vec<f32>> {
        let key = format!("{name}.0.{what}_list");
        let shape = file.shape(&key).unwrap_or(&[]).to_vec();
        let at = match shape[..] {
            [1, 1, ..] => Some(0),
            [3, 1, ..] => WIDTHS.iter().position(|&width| width == bits.get()),
            _ => None,
        };
        let values = file.read(&key)?;
        match at.and_then(|at| values.get(at * rows..(at + 1) * rows)) {
            Some(own) if values.len() == rows * shape[0] => Ok(own.to_vec()),
            _ => {
                let expected = format!("{what}_list of (1, 1, {rows}), or of 4, 6 and 8 bits (3, 1, {rows})");
                Err(quantizer.refuse(expected, format!("{shape:?} for {bits} bits")).into())
            }
        }
    };
    let (step, zero) = (positive(quantizer, list("delta")?)?, list("zero_point")?);
    let learned = format!("{name}.0.alpha");
    let alpha = if file.has(&learned) { Some(file.read(&learned)?) } else { None };
    if alpha.as_ref().is_some_and(|alpha| alpha.len() != own.len()) {
        return Err(quantizer.refuse(format!("alpha of {} weights", own.len()), "another number").into());
    }
    let (row, top) = (own.len() / rows.max(1), (bits.levels() - 1) as f32);
    let value = |(i, &w): (usize, &f32)| {
        let (step, zero) = (step[i / row], zero[i / row]);
        let rounded = match &alpha {
            None => (w / step).round_ties_even(),
            Some(alpha) => (w / step).floor() + if alpha[i] >= 0.0 { 1.0 } else { 0.0 },
        };
        ((rounded + zero).clamp(0.0, top) - zero) * step
    };
    let values: Vec<f32> = own.iter().enumerate().map(value).collect();
    near(quantizer, own, &values)?;
    Ok(ImportedWeight { dims: quantizer.dims.to_vec(), values, grid: Some(RowGrid { step, zero }) })
}

/// The rows of the layer, which must be one of its own.
fn whole(quantizer: &Quantizer) -> Result<usize> {
    match quantizer.part {
        Part::Whole => Ok(quantizer.dims[0]),
        part => Err(quantizer.refuse("a layer of its own, as diffusers has it", format!("{part:?} of another")).into()),
    }
}

fn positive(quantizer: &Quantizer, steps: Vec<f32>) -> Result<Vec<f32>> {
    match steps.iter().find(|step| **step <= 0.0) {
        Some(bad) => Err(quantizer.refuse("positive steps", bad).into()),
        None => Ok(steps),
    }
}

/// Refuses values that are no rounding of the model's weight.
fn near(quantizer: &Quantizer, own: &[f32], values: &[f32]) -> Result<()> {
    let square = |of: &mut dyn Iterator<Item = f32>| of.map(|v| f64::from(v).powi(2)).sum::<f64>();
    let off = square(&mut own.iter().zip(values).map(|(a, b)| a - b));
    let all = square(&mut own.iter().copied());
    if off <= FURTHEST * FURTHEST * all {
        return Ok(());
    }
    let expected = "this model's weights, neither smoothed nor rotated before: the file does not say how to undo that";
    Err(quantizer.refuse(expected, format!("others, {:.0} % off", 100.0 * (off / all).sqrt())).into())
}
