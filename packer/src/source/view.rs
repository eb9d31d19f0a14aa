//! Where a tensor's elements lie in a file, and how to bring them into row-major order.

use safetensors::Dtype;
use std::borrow::Cow;
use std::ops::Range;

/// Axes a tensor may have, as in torch.
pub const MAX_RANK: usize = 64;
/// Elements that a tensor may have beyond those of its storage, which it then repeats (`expand`).
pub const MAX_REPEATED: usize = 1 << 20;

/// A tensor in a mapped file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// Type of the elements, which are little-endian.
    pub dtype: Dtype,
    /// Axes, outermost first.
    pub shape: Vec<usize>,
    /// From the first to the last element, in bytes of the file.
    bytes: Range<usize>,
    /// Elements to step per axis; none if they lie row by row without gaps.
    strides: Option<Vec<usize>>,
}

/// A stretch of a file that holds elements of one type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Storage {
    /// Type of the elements.
    pub dtype: Dtype,
    /// Bytes of one.
    pub size: usize,
    /// Where they lie in the file.
    pub bytes: Range<usize>,
}

/// What is wrong with a view: expected, got.
pub type Fault = (String, String);

impl View {
    /// A tensor whose elements fill `bytes` in order.
    pub fn dense(dtype: Dtype, shape: Vec<usize>, bytes: Range<usize>) -> Self {
        View { dtype, shape, bytes, strides: None }
    }

    /// The elements of `storage` from `offset` on, `strides` apart.
    ///
    /// # Errors
    /// If an axis is negative, the tensor leaves its storage, or it repeats elements beyond [`MAX_REPEATED`].
    pub fn strided(storage: &Storage, offset: i64, shape: &[i64], strides: &[i64]) -> Result<Self, Fault> {
        let fault = |expected: &str, got: String| Err((expected.to_owned(), got));
        if shape.len() != strides.len() || shape.len() > MAX_RANK {
            let got = format!("{} sizes and {} strides", shape.len(), strides.len());
            return fault("as many strides as sizes, at most 64", got);
        }
        let whole = |values: &[i64]| values.iter().map(|&v| usize::try_from(v).ok()).collect::<Option<Vec<_>>>();
        let (Ok(offset), Some(shape), Some(mut strides)) = (usize::try_from(offset), whole(shape), whole(strides))
        else {
            let got = format!("offset {offset}, sizes {shape:?}, strides {strides:?}");
            return fault("no negative offset, size or stride", got);
        };
        let held = storage.bytes.len() / storage.size;
        let inside = format!("a tensor inside its storage of {held} elements");
        let Some(count) = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)) else {
            return fault(&inside, format!("sizes {shape:?}"));
        };
        // Where the last element lies, relative to the storage; an empty tensor has none and ends where it begins.
        let steps = shape.iter().zip(&strides).try_fold(0usize, |sum, (&d, &s)| {
            d.saturating_sub(1).checked_mul(s).and_then(|step| sum.checked_add(step))
        });
        let end = if count == 0 { Some(offset) } else { steps.and_then(|n| n.checked_add(offset)?.checked_add(1)) };
        let Some(end) = end.filter(|&end| end <= held) else {
            return fault(&inside, format!("offset {offset}, sizes {shape:?}, strides {strides:?}"));
        };
        if count > held.max(MAX_REPEATED) {
            return fault(&format!("a tensor of at most {} elements", held.max(MAX_REPEATED)), count.to_string());
        }
        let bytes = storage.bytes.start + offset * storage.size..storage.bytes.start + end * storage.size;
        // Strides of axes with one element say nothing.
        strides.iter_mut().zip(&shape).filter(|(_, d)| **d == 1).for_each(|(s, _)| *s = 0);
        let strides = (count != 0 && !is_dense(&shape, &strides)).then_some(strides);
        Ok(View { dtype: storage.dtype, shape, bytes, strides })
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes of all elements, row-major; `file` is the one that the view was made for.
    pub fn gather<'a>(&self, file: &'a [u8]) -> Cow<'a, [u8]> {
        let whole = &file[self.bytes.clone()];
        match &self.strides {
            None => Cow::Borrowed(whole),
            Some(strides) => Cow::Owned(copy(whole, &self.shape, strides, self.dtype.bitsize() / 8)),
        }
    }

    /// The same of elements `rows` of the first axis.
    ///
    /// # Panics
    /// If there are no such rows; who calls has looked at the shape.
    pub fn gather_rows<'a>(&self, file: &'a [u8], rows: Range<usize>) -> Cow<'a, [u8]> {
        let size = self.dtype.bitsize() / 8;
        assert!(self.shape.first().is_some_and(|&n| rows.start <= rows.end && rows.end <= n), "{rows:?} of {self:?}");
        let whole = &file[self.bytes.clone()];
        match &self.strides {
            None => {
                let row = whole.len() / self.shape[0].max(1);
                Cow::Borrowed(&whole[rows.start * row..rows.end * row])
            }
            Some(strides) => {
                let mut shape = self.shape.clone();
                shape[0] = rows.len();
                // Of no rows, the first may lie behind the end.
                let start = if rows.is_empty() { 0 } else { rows.start * strides[0] * size };
                Cow::Owned(copy(&whole[start..], &shape, strides, size))
            }
        }
    }
}

/// Whether elements `strides` apart lie row by row; strides of axes with one element do not matter.
fn is_dense(shape: &[usize], strides: &[usize]) -> bool {
    let mut expected = 1;
    shape.iter().zip(strides).rev().all(|(&d, &s)| {
        let fits = d == 1 || s == expected;
        expected *= d;
        fits
    })
}

/// Copies elements of `size` bytes in row-major order. [`View::strided`] has checked that all of them exist.
fn copy(from: &[u8], shape: &[usize], strides: &[usize], size: usize) -> Vec<u8> {
    let count = shape.iter().product::<usize>();
    let mut out = Vec::with_capacity(count * size);
    let mut index = vec![0; shape.len()];
    let mut at = 0;
    for _ in 0..count {
        out.extend_from_slice(&from[at * size..][..size]);
        for axis in (0..shape.len()).rev() {
            index[axis] += 1;
            at += strides[axis];
            if index[axis] < shape[axis] {
                break;
            }
            at -= strides[axis] * shape[axis];
            index[axis] = 0;
        }
    }
    out
}
