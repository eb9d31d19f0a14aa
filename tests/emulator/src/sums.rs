//! How tensor cores add products of floats: not as a sum in f32 would.
//!
//! The products of a group and the accumulator are exact. All are aligned to the largest exponent among them, cut off
//! (towards zero) some bits below it, and added exactly; the sum is cut off to f32. The exponent of a product is the sum
//! of its factors', so a product may be twice as large as its exponent says. Groups and bits differ between generations;
//! this is what MMA-Sim (arXiv 2511.10909) found to equal them bit for bit.

use crate::float::narrow;
use crate::types::Round;

/// A generation of tensor cores.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum TensorCores {
    /// Compute capability 8.0 to 8.9: groups of 8 products of f16 or 4 of tf32, cut off 24 bits below the largest.
    #[default]
    Ampere,
    /// Compute capability 9.0: all products of an instruction at once, cut off 25 bits below the largest.
    Hopper,
}

/// The exponent that hardware aligns a zero by.
const OF_ZERO: i16 = -126;
/// Products whose aligned values are added in 32 bits.
const NARROW: usize = 8;

/// The exponent of a finite value whose type has none below `least`.
fn exponent(value: f32, least: i16) -> i16 {
    let biased = (value.to_bits() >> 23 & 0xff) as i16;
    if value == 0.0 { OF_ZERO } else { (biased.max(1) - 127).max(least) }
}

/// `2^exponent` for exponents of normal numbers.
fn power(exponent: i32) -> f64 {
    f64::from_bits(((1023 + exponent) as u64) << 52)
}

/// A sum in units of `2^(largest - fraction)` as an f32, cut off.
fn cut_off(sum: i64, largest: i16, fraction: i32) -> f32 {
    let value = sum as f64 * power(i32::from(largest) - fraction);
    if value.abs() >= power(128) { (value.signum() * f64::INFINITY) as f32 } else { narrow(value, Round::Zero) }
}

/// Factors of a matrix product by k, then by row or column, with their exponents.
struct Factors<const N: usize> {
    values: [[f32; N]; 16],
    exponents: [[i16; N]; 16],
    finite: bool,
}

impl<const N: usize> Factors<N> {
    fn new(lines: &[[f32; 16]; N], least: i16) -> Self {
        let values: [[f32; N]; 16] = std::array::from_fn(|k| std::array::from_fn(|line| lines[line][k]));
        let finite = lines.iter().flatten().all(|v| v.is_finite());
        Factors { values, exponents: values.map(|line| line.map(|v| exponent(v, least))), finite }
    }
}

/// Adds the products of `a` (rows of k) and `b` (columns of k), whose exponents are not below `least`, to `sums`.
pub(crate) fn multiply(
    cores: TensorCores,
    group: usize,
    least: i16,
    [a, b]: [&[[f32; 16]]; 2],
    k: usize,
    sums: &mut [[f32; 8]; 16],
) {
    let (fraction, group) = match cores {
        TensorCores::Ampere => (24, group),
        TensorCores::Hopper => (25, k),
    };
    let a = Factors::<16>::new(a.first_chunk().expect("16 rows"), least);
    let b = Factors::<8>::new(b.first_chunk().expect("8 columns"), least);
    for (row, sums) in sums.iter_mut().enumerate() {
        for first in (0..k).step_by(group) {
            let ks = first..k.min(first + group);
            let mut largest = sums.map(|c| exponent(c, OF_ZERO));
            for k in ks.clone() {
                for (largest, &b) in largest.iter_mut().zip(&b.exponents[k]) {
                    *largest = (*largest).max(a.exponents[k][row] + b);
                }
            }
            // Of f32, the products of halves are exact, and so are they times a power of two that an f32 can hold.
            let common = least > OF_ZERO && a.finite && b.finite && sums.iter().all(|c| c.is_finite());
            if common && largest.iter().all(|largest| (-100..=126).contains(largest)) {
                let scale = largest.map(|largest| power(fraction - i32::from(largest)) as f32);
                let mut totals: [i64; 8] = std::array::from_fn(|column| (sums[column] * scale[column]) as i64);
                for start in ks.clone().step_by(NARROW) {
                    let mut part = [0i32; 8];
                    for k in start..ks.end.min(start + NARROW) {
                        for column in 0..8 {
                            part[column] += (a.values[k][row] * b.values[k][column] * scale[column]) as i32;
                        }
                    }
                    totals.iter_mut().zip(part).for_each(|(total, part)| *total += i64::from(part));
                }
                *sums = std::array::from_fn(|column| cut_off(totals[column], largest[column], fraction));
            } else {
                *sums = std::array::from_fn(|column| {
                    let product = |k: usize| f64::from(a.values[k][row]) * f64::from(b.values[k][column]);
                    one(ks.clone().map(product), sums[column], largest[column], fraction)
                });
            }
        }
    }
}

/// One sum of any terms.
fn one(products: impl Iterator<Item = f64> + Clone, c: f32, largest: i16, fraction: i32) -> f32 {
    let plain = products.clone().sum::<f64>() + f64::from(c);
    if !plain.is_finite() {
        return plain as f32;
    }
    let aligned = |value: f64| (value * power(fraction - i32::from(largest))) as i64;
    cut_off(products.map(aligned).sum::<i64>() + aligned(c.into()), largest, fraction)
}
