//! Sizes by the paper's accounting.

use crate::lower::Part;
use crate::quantize::{average_bits, quantized_bytes, raw_bytes};
use crate::recipe::Store;
use crate::weight::Weight;

/// Bits per weight of the precision that average bits are relative to; the published sizes count 16.
const PRECISION: u64 = 16;

/// Bytes of the denoisers' layers by the paper's accounting, after and before.
#[derive(Default)]
pub(super) struct PaperBytes {
    quantized: u64,
    raw: u64,
}

impl PaperBytes {
    /// Counts a layer, as often as the checkpoint has it; a weight that is stored again for another phase counts as a layer.
    pub(super) fn add(&mut self, weight: &Weight, store: Store) {
        if Part::of(weight.component) == Part::Denoiser {
            let copies = 1 + weight.copies.len() as u64;
            self.quantized += copies * paper_bytes(weight, store);
            self.raw += copies * raw_bytes(weight.len() as u64, PRECISION);
        }
    }

    /// 16 for layers that are as they were.
    pub(super) fn average_bits(&self) -> f64 {
        average_bits(self.quantized, self.raw, PRECISION)
    }
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
