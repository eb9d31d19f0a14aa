//! What quantization costs by the paper's accounting.

use super::Method;
use aquatint::raw::codec::Bits;

/// Whether the paper counts the layer with this path or weight: projections of a pooler, which one function of attention takes
/// as they are, are no layers there.
/// Source: quantization.md §1.2 (Hunyuan-DiT).
pub fn is_counted(layer: &str) -> bool {
    !layer.contains(".pooler.")
}

/// Bytes of `weights` weights before quantization, in a type of `precision` bits (16; 32 for Stable Diffusion 1.5).
/// Source: quantization.md §1.6 (`fp_bytes`).
pub fn raw_bytes(weights: u64, precision: u64) -> u64 {
    weights * precision / 8
}

/// What a method stores besides the codes, in bits: step and zero point per channel, or a codebook per channel, or one
/// codebook; of the fixed table, which the paper does not have, that one codebook and a scale per channel.
/// Source: quantization.md §1.6 (`overhead_bits`).
pub fn overhead_bits(rows: u64, method: Method, bits: Bits, precision: u64) -> u64 {
    match method {
        Method::Uniform(rule) if rule.is_symmetric() => precision * rows,
        Method::Uniform(_) => 2 * precision * rows,
        Method::KMeansRow => bits.levels() as u64 * precision * rows,
        Method::KMeansTensor => bits.levels() as u64 * precision,
        Method::Lloyd => (bits.levels() as u64 + rows) * precision,
    }
}

/// Bytes of a (rows, cols) layer as the paper counts them. The halves of a split layer count separately, each with its
/// own rows. This is not the size in the file, but what published average bits are made of.
/// Source: quantization.md §1.6 (`q_bytes`).
pub fn quantized_bytes(rows: u64, cols: u64, method: Method, bits: Bits, precision: u64) -> u64 {
    rows * cols * u64::from(bits.get()) / 8 + overhead_bits(rows, method, bits, precision) / 8
}

/// Average bits per weight: `precision * quantized / raw`, both in bytes, summed over layers; 0 for no layers.
/// Source: quantization.md §1.6 (`avg_bits`).
pub fn average_bits(quantized: u64, raw: u64, precision: u64) -> f64 {
    if raw == 0 { 0.0 } else { precision as f64 * quantized as f64 / raw as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    const THREE: Bits = Bits::ALL[1];
    const FOUR: Bits = Bits::ALL[2];

    #[test]
    fn overhead_per_weight_is_the_published_one() {
        // quantization.md §1.6, K = 1152 at 16 bits, and Stable Diffusion 1.5's K = 320 at 32 bits.
        let per_weight =
            |k: u64, method, bits, precision| overhead_bits(640, method, bits, precision) as f64 / (640 * k) as f64;
        for (got, expected, digits) in [
            (per_weight(1152, Method::UAQ, FOUR, 16), 0.028, 1e3),
            (per_weight(1152, Method::UAQ, THREE, 16), 0.028, 1e3),
            (per_weight(1152, Method::KMeansRow, THREE, 16), 0.111, 1e3),
            (per_weight(1152, Method::KMeansRow, FOUR, 16), 0.222, 1e3),
            (per_weight(320, Method::KMeansRow, FOUR, 32), 1.6, 1e1),
        ] {
            assert_eq!((got * digits).round() / digits, expected);
        }
        assert_eq!(overhead_bits(640, Method::KMeansTensor, FOUR, 16), 256);
        assert_eq!(overhead_bits(640, Method::Lloyd, FOUR, 16), 256 + 640 * 16);
    }

    #[test]
    fn bytes_are_those_of_the_published_cache() {
        // quantization.md §1.5: ['mse-3', 589824, 115200, _], ['kmeans-4', 589824, 184320, _]. 589824 bytes are
        // 256 x 1152 weights; 1152 rows of 256 give the two sizes.
        assert_eq!(raw_bytes(256 * 1152, 16), 589_824);
        assert_eq!(quantized_bytes(1152, 256, Method::UAQ, THREE, 16), 115_200);
        assert_eq!(quantized_bytes(1152, 256, Method::KMeansRow, FOUR, 16), 184_320);
        assert_eq!(average_bits(184_320, 589_824, 16), 5.0);
        assert_eq!(average_bits(0, 0, 16), 0.0);
    }
}
