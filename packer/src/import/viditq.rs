//! ViDiT-Q's files (quantization.md §4).
//!
//! Its later code saves `int_weight.pt`: of each layer int8 codes, a step and a zero point per row, `w = (q + zp) step`, and
//! `quant_params.pth`, which has steps and zero points alone; activations have the range of each row there. Its first code saves `ckpt.pth`: of each quantizer two dicts, buffers and parameters; the weights themselves are the model's, and
//! `delta_list` has a step per width that was asked for, 4, 6 and 8 bits if there are three. Of activations in fixed ranges it
//! has one number, or one for each of a thousand timesteps.
//!
//! Neither says how weights were smoothed or rotated before (a rotation is drawn anew at each run, and not saved). Such
//! layers are refused: by the factors that the first code keeps, and where nothing tells, because they are far from the
//! model's own.

use super::{ImportedRange, ImportedWeight, Quantizer, RowGrid};
use crate::error::Result;
use crate::source::Checkpoint;
use crate::source::view::Part;
use aquatint::error::Error;
use aquatint::raw::codec::Bits;
use aquatint::raw::program::CurveAxis;

/// Widths of `delta_list` where there are several.
const WIDTHS: [u8; 3] = [4, 6, 8];
/// Timesteps that ranges may be of.
const TIMESTEPS: usize = 1000;
/// How far, relative to it, a step in half precision is from that of a row's extremes at most.
const SLACK: f32 = 2e-3;
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

/// The weight of a layer of a `quant_params.pth`; `own` is the model's.
///
/// Its steps are those of the extremes of what they were made of, so weights of another basis are found out by them.
pub(super) fn params(quantizer: &Quantizer, own: &[f32], bits: Bits) -> Result<ImportedWeight> {
    let (file, name) = (quantizer.file, format!("{}.w_quantizer", quantizer.layer));
    let rows = whole(quantizer)?;
    let (steps, zeros) = (file.read(&format!("{name}.delta"))?, file.read(&format!("{name}.zero_point"))?);
    if (steps.len(), zeros.len()) != (rows, rows) {
        let expected = format!("{rows} steps and zero points, of one width");
        return Err(quantizer.refuse(expected, format!("{} and {}", steps.len(), zeros.len())).into());
    }
    let (step, row, top) = (positive(quantizer, steps)?, own.len() / rows.max(1), (bits.levels() - 1) as f32);
    for (values, step) in own.chunks_exact(row.max(1)).zip(&step) {
        let (low, high) = values.iter().fold((0f32, 0f32), |(low, high), &v| (low.min(v), high.max(v)));
        if ((high - low) / top / step - 1.0).abs() > SLACK {
            let expected = format!(
                "steps of this model's rows in {bits} bits, neither smoothed nor rotated before: the file does not say \
                 how to undo that"
            );
            return Err(quantizer.refuse(expected, format!("{step} for {}", (high - low) / top)).into());
        }
    }
    let half = (bits.levels() / 2) as f32;
    let grid = RowGrid { zero: zeros.iter().map(|zp| half - zp).collect(), step };
    let value = |(i, &w): (usize, &f32)| {
        let (step, zero) = (grid.step[i / row], grid.zero[i / row]);
        (((w / step).round_ties_even() + zero).clamp(0.0, top) - zero) * step
    };
    let values = own.iter().enumerate().map(value).collect();
    Ok(ImportedWeight { dims: quantizer.dims.to_vec(), values, grid: Some(grid) })
}

/// The range of the input of `layer` in a `ckpt.pth`, `bits` of which are asked for; none if it is not fixed, or not one
/// number. A quantizer counts from the `middle` of the codes, or does not, which the file does not say.
///
/// # Errors
/// If steps are not positive, or of other times than all.
pub(super) fn range(file: &Checkpoint, layer: &str, bits: u8, middle: bool) -> Result<Option<ImportedRange>> {
    let name = format!("{layer}.act_quantizer.0");
    let refuse = |what: &str, expected: String, got: String| {
        Error::request(format!("{name}.{what} of {}", file.component()), expected, got)
    };
    let list = |what: &str| -> Result<Option<Vec<f32>>> {
        let key = format!("{name}.{what}");
        let (widths, times) = match file.shape(&key) {
            Some(&[widths, times, ref rest @ ..]) if rest.iter().product::<usize>() == 1 => (widths, times),
            _ => return Ok(None),
        };
        let at = if widths == 1 { Some(0) } else { WIDTHS.iter().position(|&width| width == bits) };
        let at = at.filter(|_| widths == 1 || widths == WIDTHS.len()).ok_or_else(|| {
            refuse(what, "one width, or 4, 6 and 8 bits".into(), format!("{widths} widths for {bits} bits"))
        })?;
        if times != 1 && times != TIMESTEPS {
            return Err(refuse(what, format!("one time, or {TIMESTEPS} timesteps"), times.to_string()).into());
        }
        Ok(file.read(&key)?.get(at * times..(at + 1) * times).map(<[f32]>::to_vec))
    };
    let Some(steps) = list("delta_list")? else { return Ok(None) };
    let zeros = list("zero_point_list")?.filter(|zeros| zeros.len() == steps.len());
    let mut points: Vec<[f32; 3]> = Vec::new();
    for (timestep, &step) in steps.iter().enumerate() {
        if step <= 0.0 {
            return Err(refuse("delta_list", "positive steps".into(), step.to_string()).into());
        }
        let zero = match (middle, &zeros) {
            (true, _) => f32::from(1u16 << (bits - 1)),
            (false, zeros) => zeros.as_ref().map_or(0.0, |zeros| zeros[timestep]),
        };
        if points.last().is_none_or(|before| before[1..] != [step, zero]) {
            points.push([timestep as f32, step, zero]);
        }
    }
    Ok(Some(ImportedRange { bits, axis: CurveAxis::Timestep, points, top: 0 }))
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
