//! The spellings of one precision.

use super::{Activations, LayerSpec, Weights, error::SpecFault};
use crate::quantize::Method;
use aquatint::raw::codec::Bits;

const FORM: &str = "f32, f16, or w<bits>a<bits> with an optional :<method>";
const VALUE: &str = "f32, f16, <method>-<bits> such as kmeans-4, or w<bits>a<bits>[:<method>]";
const BITS: &str = "2, 3, 4, 5, 6 or 8";
const METHOD: &str = "mse (or uaq), kmeans (or kmeans_c), kmeans_all (or kmeans_a), lloyd (or gauss), or another \
                      project's mse_f16, mse_80, max, max_scale, min_max, sym_max, sym_max_scale, sym_mse";
const ACTIVATIONS: &str = "2 to 8, or 16 for floating point";

fn fault(what: &'static str, expected: &'static str, got: &str) -> SpecFault {
    // A value may be any text of the file: keep the message readable.
    SpecFault { what, expected, got: shorten(got) }
}

/// At most 80 characters of `text`.
pub(super) fn shorten(text: &str) -> String {
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.into(),
    }
}

fn number<T>(
    what: &'static str,
    expected: &'static str,
    text: &str,
    make: fn(u32) -> Option<T>,
) -> Result<T, SpecFault> {
    // `parse` would also take a sign and leading zeros.
    let plain = !text.starts_with('0') && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|_| plain).and_then(make).ok_or_else(|| fault(what, expected, text))
}

fn weight_bits(text: &str) -> Result<Bits, SpecFault> {
    number("weight bits", BITS, text, Bits::new)
}

/// `2` to `8` or `16`, without or with an `a` before it.
pub(super) fn activations(text: &str) -> Result<Activations, SpecFault> {
    let make = |bits| match bits {
        2..=8 => Some(Activations::Int(bits as u8)),
        16 => Some(Activations::Float),
        _ => None,
    };
    number("activation bits", ACTIVATIONS, text.strip_prefix('a').unwrap_or(text), make)
}

fn method(text: &str) -> Result<Method, SpecFault> {
    Method::parse(text).ok_or_else(|| fault("method", METHOD, text))
}

/// Parses a SPEC: `f32`, `f16`, `w4a8`, `w4a8:kmeans`.
pub(super) fn parse(text: &str) -> Result<LayerSpec, SpecFault> {
    let float = |weights| Ok(LayerSpec { weights, activations: Activations::Float });
    match text {
        "f32" => return float(Weights::F32),
        "f16" => return float(Weights::F16),
        _ => {}
    }
    let (widths, name) = text.split_once(':').unwrap_or((text, Method::UAQ.name()));
    let (bits, acts) =
        widths.strip_prefix('w').and_then(|rest| rest.split_once('a')).ok_or_else(|| fault("precision", FORM, text))?;
    if acts.starts_with('a') {
        return Err(fault("precision", FORM, text));
    }
    let weights = Weights::Codes { method: method(name)?, bits: weight_bits(bits)? };
    Ok(LayerSpec { weights, activations: activations(acts)? })
}

/// Parses a layer's value in a file: a SPEC, or `<method>-<bits>`, which takes the file's activations.
pub(super) fn parse_value(text: &str, activations: Activations) -> Result<LayerSpec, SpecFault> {
    if let Some((name, bits)) = text.rsplit_once('-') {
        let weights = Weights::Codes { method: method(name)?, bits: weight_bits(bits)? };
        return Ok(LayerSpec { weights, activations });
    }
    parse(text).map_err(|f| if f.what == "precision" { fault("precision", VALUE, text) } else { f })
}
