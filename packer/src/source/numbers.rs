//! Bytes of tensors as numbers.

use super::float8;
use ::safetensors::Dtype;
use half::{bf16, f16};

/// The floats of 8 to 64 bits that `bytes` are, as f32; none for other types.
pub(super) fn floats(dtype: Dtype, bytes: &[u8]) -> Option<Vec<f32>> {
    Some(match dtype {
        Dtype::F64 => words(bytes).map(|b| f64::from_le_bytes(b) as f32).collect(),
        Dtype::F32 => words(bytes).map(f32::from_le_bytes).collect(),
        Dtype::F16 => words(bytes).map(|b| f16::from_le_bytes(b).to_f32()).collect(),
        Dtype::BF16 => words(bytes).map(|b| bf16::from_le_bytes(b).to_f32()).collect(),
        Dtype::F8_E4M3 => bytes.iter().map(|&b| float8::e4m3(b)).collect(),
        Dtype::F8_E5M2 => bytes.iter().map(|&b| float8::e5m2(b)).collect(),
        _ => return None,
    })
}

/// The integers or booleans that `bytes` are; none for other types.
pub(super) fn integers(dtype: Dtype, bytes: &[u8]) -> Option<Vec<i64>> {
    Some(match dtype {
        Dtype::I64 => words(bytes).map(i64::from_le_bytes).collect(),
        Dtype::I32 => words(bytes).map(|b| i32::from_le_bytes(b).into()).collect(),
        Dtype::I16 => words(bytes).map(|b| i16::from_le_bytes(b).into()).collect(),
        Dtype::I8 => words(bytes).map(|b| i8::from_le_bytes(b).into()).collect(),
        Dtype::U8 => bytes.iter().map(|&b| b.into()).collect(),
        Dtype::BOOL => bytes.iter().map(|&b| (b != 0).into()).collect(),
        _ => return None,
    })
}

/// Index of the first value that is infinite or not a number.
pub fn first_non_finite(values: &[f32]) -> Option<usize> {
    const BLOCK: usize = 1024; // without a branch per element; the block that fails is then searched
    let clean = |w: &[f32]| w.iter().fold(true, |ok, v| ok & v.is_finite());
    let block = values.chunks(BLOCK).position(|w| !clean(w))?;
    values[block * BLOCK..].iter().position(|v| !v.is_finite()).map(|i| block * BLOCK + i)
}

/// `bytes` in words of `N`.
fn words<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> {
    bytes.as_chunks().0.iter().copied()
}
