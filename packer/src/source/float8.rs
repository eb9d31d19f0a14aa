//! Weights in floats of 8 bits, and the scales that some files keep beside them.
//!
//! ```text
//! LAYER.weight          the weights, over their scale
//! LAYER.scale_weight    their scale; later files call it weight_scale: one number, or one per row
//! LAYER.scale_input     (input_scale) of activations, for those who compute in 8 bits; not used here
//! scaled_fp8            says that the file is one of these; in later files LAYER.comfy_quant
//! ```
//!
//! Files without scales hold the weights themselves, cast. Others of these files hold codes that are no floats; what
//! `comfy_quant` calls otherwise is refused.

use super::view::{Fault, Part, View};
use half::f16;

/// The numbers that a weight is multiplied with: one, or one per row.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Scale {
    /// The file that they are in.
    pub file: usize,
    pub view: View,
}

impl Scale {
    /// Those of a part of the weight, which has axes `shape`.
    ///
    /// # Errors
    /// If the part has not whole rows.
    pub fn part(&self, part: &Part, shape: &[usize]) -> Result<Self, Fault> {
        let view = match part {
            Part::Whole => self.view.clone(),
            _ if self.view.len() == 1 => self.view.clone(),
            Part::Transposed => return Err(("one scale for all rows".into(), format!("{:?}", self.view.shape))),
            part => self.view.part(part, &shape[..1])?,
        };
        Ok(Scale { file: self.file, view })
    }
}

/// The name of the weight that the tensor called `key` scales, if it is named as a scale.
pub(super) fn scaled(key: &str) -> Option<String> {
    let layer = [".scale_weight", ".weight_scale"].iter().find_map(|end| key.strip_suffix(end))?;
    Some(format!("{layer}.weight"))
}

/// Whether the tensor called `key` only tells readers of such files how to compute; `has` knows the weights there are.
pub(super) fn is_aside(key: &str, has: &dyn Fn(&str) -> bool) -> bool {
    let of_layer = [".scale_input", ".input_scale", ".comfy_quant"].iter().find_map(|end| key.strip_suffix(end));
    of_layer.is_some_and(|layer| has(&format!("{layer}.weight"))) || key.rsplit('.').next() == Some("scaled_fp8")
}

/// The layer whose weights the tensor called `key` tells the format of, if it does.
pub(super) fn marked(key: &str) -> Option<&str> {
    key.strip_suffix(".comfy_quant")
}

/// The format that such a tensor tells; its `bytes` are JSON.
pub(super) fn format(bytes: &[u8]) -> String {
    let said: Option<serde_json::Value> = serde_json::from_slice(bytes).ok();
    said.as_ref().and_then(|said| said.get("format")?.as_str()).unwrap_or("of no format").to_owned()
}

/// Whether weights of this format are floats over a scale.
pub(super) fn is_float(format: &str) -> bool {
    matches!(format, "float8_e4m3fn" | "float8_e5m2")
}

/// 4 bits of exponent, biased by 7, and 3 of mantissa; no infinity, and one NaN per sign (`float8_e4m3fn`).
pub(super) fn e4m3(bits: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(bits >> 3 & 15), f32::from(bits & 7));
    let magnitude = match exponent {
        15 if bits & 7 == 7 => f32::NAN,
        0 => mantissa * 2f32.powi(-9),
        _ => (8.0 + mantissa) * 2f32.powi(exponent - 10),
    };
    if bits & 0x80 == 0 { magnitude } else { -magnitude }
}

/// 5 bits of exponent and 2 of mantissa: the upper half of an f16 (`float8_e5m2`).
pub(super) fn e5m2(bits: u8) -> f32 {
    f16::from_bits(u16::from(bits) << 8).to_f32()
}
