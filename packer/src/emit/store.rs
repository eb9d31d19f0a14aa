//! One weight's elements become its bytes in the file.

use crate::error::Result;
use crate::import::RowGrid;
use crate::quantize::{
    Calibrated, FeedbackOptions, Measured, Method, Moments, encode, quantize_calibrated, quantize_measured,
    quantize_sparse, relative_distance, relative_error,
};
use crate::recipe::{Store, Treatment};
use crate::weight::Elements;
use crate::weights::halves;
use aquatint::error::Error;
use aquatint::raw::codec::{QuantizedMatrix, layout};
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
    /// What a calibration says of it.
    pub(super) calibrated: Option<OutputError>,
    /// The fraction of a pruned weight that is 0.
    pub(super) sparsity: Option<f64>,
    /// What a person should know of it.
    pub(super) note: Option<String>,
}

/// What became of a layer's output over a calibration.
pub(super) struct OutputError {
    /// `tr(dW H dW^T) / tr(W H W^T)`.
    pub(super) error: f64,
    /// The same if every weight had been rounded to the nearest level.
    pub(super) nearest: f64,
    /// What the layer's bias must take up, per output.
    pub(super) bias: Vec<f64>,
}

impl Stored {
    /// The bytes of a weight that is `error` off, without anything known of its inputs.
    fn plain(kind: TensorKind, bytes: Vec<u8>, error: f64) -> Self {
        Stored { kind, bytes, error, exact_error: error, calibrated: None, sparsity: None, note: None }
    }
}

/// Stores the weight called `name` as `treatment` says; codes are chosen by the moments of its inputs where they are known. The
/// zeros of a `sparse` weight stay exactly 0.
///
/// # Errors
/// If f16 cannot hold it, the moments do not fit it, or the method has no level at 0 for a sparse one.
pub(super) fn store(
    name: &str,
    weight: &Elements,
    treatment: Treatment,
    moments: Option<&Moments>,
    sparse: bool,
) -> Result<Stored> {
    let mut stored = stored(name, weight, treatment, moments, sparse)?;
    if sparse {
        let zeros = weight.values.iter().filter(|v| **v == 0.0).count() as f64;
        let part = zeros / weight.values.len().max(1) as f64;
        stored.sparsity = Some(part);
        let pruned = format!("pruned: {:.2} % of its weights are 0", 100.0 * part);
        stored.note = Some(stored.note.map_or(pruned.clone(), |note| format!("{pruned}; {note}")));
    }
    Ok(stored)
}

fn stored(
    name: &str,
    weight: &Elements,
    treatment: Treatment,
    moments: Option<&Moments>,
    sparse: bool,
) -> Result<Stored> {
    let Elements { dims, values } = weight;
    let kind = treatment.kind();
    match treatment.store {
        Store::F32 => Ok(Stored::plain(kind, values.as_bytes().to_vec(), 0.0)),
        Store::F16 => {
            let halves = halves(name, values)?;
            let error = relative_distance(values, halves.iter().map(|half| half.to_f32()));
            Ok(Stored::plain(kind, halves.as_bytes().to_vec(), error))
        }
        Store::Codes(method, bits) => {
            let (rows, cols) = (dims[0], dims[1..].iter().product());
            let codebook = treatment.codebook;
            let (measured, calibrated, note) = match moments {
                None if sparse => {
                    let misfit =
                        |fault| Error::request(format!("--prune of {name}"), "a method that keeps zeros", fault);
                    (quantize_sparse(values, rows, cols, method, bits, codebook).map_err(misfit)?, None, None)
                }
                None => (quantize_measured(values, rows, cols, method, bits, codebook), None, None),
                Some(moments) => {
                    let options = FeedbackOptions { keep_zeros: sparse, ..Default::default() };
                    let chosen = quantize_calibrated(values, rows, cols, method, bits, codebook, moments, &options);
                    let misfit = |fault| {
                        Error::request(format!("--calib for {name}"), "moments and a method that suit it", fault)
                    };
                    let Calibrated { matrix, error, exact_error, output_error, nearest_output_error, bias, note } =
                        chosen.map_err(misfit)?;
                    let output = OutputError { error: output_error, nearest: nearest_output_error, bias };
                    (Measured { matrix, error, exact_error }, Some(output), note)
                }
            };
            Ok(Stored { calibrated, note, ..pack(name, dims, measured, kind) })
        }
    }
}

/// Stores the weight called `name`, which becomes `imported`, on a grid of rows where there is one.
///
/// # Errors
/// If `treatment` asks for levels that are not those of the grid.
pub(super) fn store_imported(
    name: &str,
    weight: &Elements,
    (imported, grid): (Elements, Option<RowGrid>),
    treatment: Treatment,
) -> Result<Stored> {
    let (Elements { dims, values }, kind) = (&imported, treatment.kind());
    let Store::Codes(method, bits) = treatment.store else { unreachable!("codes are imported") };
    let (rows, cols) = (dims[0], dims[1..].iter().product());
    let matrix = match (grid, method) {
        (Some(RowGrid { step, zero }), Method::Uniform(_)) => encode(values, rows, cols, bits, &step, &zero),
        (Some(_), _) => {
            let expected = format!("a configuration of uniform levels, such as w{bits}a8, as the file has them");
            return Err(Error::request(format!("--import for {name}"), expected, method).into());
        }
        (None, _) => quantize_measured(values, rows, cols, method, bits, treatment.codebook).matrix,
    };
    let moved = relative_error(values, &matrix);
    let error = relative_error(&weight.values, &matrix);
    let note = (moved > 1e-6).then(|| {
        let entries = if treatment.codebook.is_integer() { "integers" } else { "16-bit floats" };
        format!("imported; its levels are stored as {entries}, which moves weights by {:.2} %", 100.0 * moved)
    });
    let exact_error = relative_distance(&weight.values, values.iter().copied());
    let stored = pack(name, dims, Measured { matrix, error, exact_error }, kind);
    Ok(Stored { note: note.or_else(|| Some("imported".into())), ..stored })
}

/// Stores the weight called `name` as `matrix`, of which it is known what part of its output's power the error makes, and
/// that of the nearest levels.
pub(super) fn store_trained(
    name: &str,
    weight: &Elements,
    matrix: QuantizedMatrix,
    kind: TensorKind,
    errors: Option<(f64, f64)>,
) -> Stored {
    let error = relative_error(&weight.values, &matrix);
    let calibrated = errors.map(|(error, nearest)| OutputError { error, nearest, bias: Vec::new() });
    let stored = pack(name, &weight.dims, Measured { matrix, error, exact_error: error }, kind);
    Stored { calibrated, note: Some("reconstructed".into()), ..stored }
}

/// The bytes of a quantized matrix, which the shape rules were told is of this kind.
fn pack(name: &str, dims: &[usize], measured: Measured, kind: TensorKind) -> Stored {
    let Measured { matrix, error, exact_error } = measured;
    let (layout, bytes) = layout::pack(&matrix, taps(dims));
    let made = TensorKind::Codes { bits: matrix.bits, grain: layout.grain, int8: layout.int8 };
    assert_eq!(made, kind, "{name}: the shape rules were told otherwise");
    Stored { kind, bytes, error, exact_error, calibrated: None, sparsity: None, note: None }
}
