//! One weight's elements become its bytes in the file.

use crate::error::Result;
use crate::quantize::{Measured, quantize_measured};
use crate::recipe::{Store, Treatment};
use crate::weight::Elements;
use crate::weights::halves;
use aquatint::raw::codec::layout;
use aquatint::raw::format::{TensorKind, taps};
use zerocopy::IntoBytes;

/// A weight's bytes in the file, and how far they are from it.
pub(super) struct Stored {
    /// How they are to be read.
    pub(super) kind: TensorKind,
    /// The tensor's bytes, as long as kind and axes demand.
    pub(super) bytes: Vec<u8>,
    /// `|W - Wq| / |W|` of what the runtime uses.
    pub(super) error: f64,
    /// The same before codebooks were rounded to 8 bits.
    pub(super) exact_error: f64,
}

/// Stores the weight called `name` as `treatment` says.
///
/// # Errors
/// If f16 cannot hold it.
pub(super) fn store(name: &str, weight: &Elements, treatment: Treatment) -> Result<Stored> {
    let Elements { dims, values } = weight;
    let kind = treatment.kind();
    match treatment.store {
        Store::F32 => Ok(Stored { kind, bytes: values.as_bytes().to_vec(), error: 0.0, exact_error: 0.0 }),
        Store::F16 => {
            let halves = halves(name, values)?;
            let (mut sse, mut energy) = (0.0, 0.0);
            for (&v, h) in values.iter().zip(&halves) {
                sse += f64::from(v - h.to_f32()).powi(2);
                energy += f64::from(v).powi(2);
            }
            let error = if sse == 0.0 { 0.0 } else { (sse / energy).sqrt() };
            Ok(Stored { kind, bytes: halves.as_bytes().to_vec(), error, exact_error: error })
        }
        Store::Codes(method, bits) => {
            let (rows, cols) = (dims[0], dims[1..].iter().product());
            let Measured { matrix, error, exact_error } =
                quantize_measured(values, rows, cols, method, bits, treatment.codebook);
            let (layout, bytes) = layout::pack(&matrix, taps(dims));
            let made = TensorKind::Codes { bits, grain: layout.grain, int8: layout.int8 };
            assert_eq!(made, kind, "{name}: the shape rules were told otherwise");
            Ok(Stored { kind, bytes, error, exact_error })
        }
    }
}
