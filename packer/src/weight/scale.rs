//! A factor for each channel.
//!
//! Products and quotients are worked out in f64 and rounded once. The way back is exact where factors are powers of two
//! (and nothing underflows), and otherwise at most one unit in the last place off: each way rounds by half a unit.

use super::Misfit;

/// Multiplies each channel of `values` by its factor, or divides by it. `inner` is the number of elements from one
/// channel to the next.
pub(super) fn scale(values: &mut [f32], factors: &[f32], inner: usize, divide: bool) -> Result<(), Misfit> {
    if let Some(bad) = factors.iter().find(|f| !f.is_normal()) {
        return Err(Misfit::new("factors that are neither zero, subnormal, infinite nor NaN", bad));
    }
    for block in values.chunks_exact_mut(factors.len() * inner) {
        for (channel, &factor) in block.chunks_exact_mut(inner).zip(factors) {
            let factor = f64::from(factor);
            for v in channel {
                let x = f64::from(*v);
                *v = if divide { x / factor } else { x * factor } as f32;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers of many sizes and both signs.
    fn numbers(n: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 % 1013) as f32 - 506.0) * 1.000_123f32.powi(i as i32 % 3000) * 0.013).collect()
    }

    #[test]
    fn channels_have_their_own_factors() {
        let mut inputs = vec![1., 2., 3., 4., 5., 6.];
        scale(&mut inputs, &[1., 10., 100.], 1, false).unwrap();
        assert_eq!(inputs, [1., 20., 300., 4., 50., 600.]);
        let mut outputs = vec![1., 2., 3., 4., 5., 6.];
        scale(&mut outputs, &[2., 4.], 3, true).unwrap();
        assert_eq!(outputs, [0.5, 1., 1.5, 1., 1.25, 1.5]);
        for bad in [0.0, f32::NAN, f32::INFINITY, f32::from_bits(1)] {
            assert!(scale(&mut outputs, &[bad, 1.0], 3, false).is_err());
        }
    }

    #[test]
    fn powers_of_two_come_back_to_the_bit_and_others_within_one_unit() {
        let source = numbers(30_000);
        for (factors, most) in [([0.25f32, 8.0, 1024.0], 0), ([0.3, 1.7, 19.0], 1)] {
            for divide in [false, true] {
                let mut back = source.clone();
                scale(&mut back, &factors, 1, divide).unwrap();
                assert_ne!(back, source);
                scale(&mut back, &factors, 1, !divide).unwrap();
                let off = source.iter().zip(&back).map(|(a, b)| a.to_bits().abs_diff(b.to_bits())).max();
                assert!(off <= Some(most), "{factors:?}: {off:?} units");
            }
        }
    }
}
