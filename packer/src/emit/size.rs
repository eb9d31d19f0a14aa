//! Sizes by the paper's accounting.

use crate::lower::Part;
use crate::pass::Starts;
use crate::quantize::{self, is_counted, quantized_bytes, raw_bytes};
use crate::recipe::Store;
use crate::weight::{Weight, Weights};
use aquatint::raw::program::{Phases, Tensor};

/// Bits per weight of the precision that average bits are relative to; the published sizes count 16.
const PRECISION: u64 = 16;

/// Average bits of the denoisers' layers as Qua2SeDiMo counts them, 16 where they are as they were. Each layer counts as often as
/// the checkpoint has it, in each phase in the precision that `store` says it has there; phases count by their shares of a run.
pub fn average_bits(weights: &Weights, starts: &Starts, store: &dyn Fn(usize, Tensor) -> Store) -> f64 {
    let phases = Phases { axis: starts.axis, starts: starts.positions.clone(), variants: Vec::new() };
    let in_phase = |phase: usize| {
        let (mut quantized, mut raw) = (0, 0);
        let own = |weight: &Weight| weight.quantizable() && weight.phase.is_none() && is_counted(weight.key());
        for (i, weight) in weights.iter().enumerate().filter(|(_, weight)| own(weight)) {
            if Part::of(weight.component) == Part::Denoiser {
                let copies = 1 + weight.copies.len() as u64;
                quantized += copies * paper_bytes(weight, store(phase, Tensor(i as u32)));
                raw += copies * raw_bytes(weight.len() as u64, PRECISION);
            }
        }
        quantize::average_bits(quantized, raw, PRECISION)
    };
    phases.shares().into_iter().enumerate().map(|(phase, share)| share * in_phase(phase)).sum()
}

/// Bytes of one copy of a layer by the paper's accounting.
fn paper_bytes(weight: &Weight, store: Store) -> u64 {
    let (rows, cols) = weight.matrix();
    let (rows, cols) = (rows as u64, cols as u64);
    match store {
        Store::F32 => raw_bytes(rows * cols, 32),
        Store::F16 => raw_bytes(rows * cols, 16),
        Store::Codes(method, bits) => quantized_bytes(rows, cols, method, bits, PRECISION),
    }
}
