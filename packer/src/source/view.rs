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
    /// How to walk through the elements; none if they lie row by row without gaps.
    walk: Option<Walk>,
    /// Whether the second half of the rows that the walk gives comes first.
    swapped: bool,
}

/// Axes, outermost first, and the elements to step per axis. The axes have the view's elements in the view's order, but
/// may split or join its own: the rows of one head's queries are two axes of a tensor that interleaves heads.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Walk {
    axes: Vec<usize>,
    strides: Vec<usize>,
}

/// Which elements of a published tensor make a tensor of the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// All, in order.
    Whole,
    /// Rows of a tensor that stacks several: queries, keys and values.
    Rows(Range<usize>),
    /// Of rows `(heads, 3, features per head)` one of the three: queries, keys or values.
    Heads {
        /// Number of heads.
        heads: usize,
        /// 0 for queries, 1 for keys, 2 for values.
        which: usize,
    },
    /// A matrix that is multiplied from the right, turned into one that is multiplied from the left.
    Transposed,
    /// All rows, the second half of them first: scales and shifts where the file has shifts and scales.
    SwappedHalves,
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
        View { dtype, shape, bytes, walk: None, swapped: false }
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
        let walk = (count != 0 && !is_dense(&shape, &strides)).then(|| Walk { axes: shape.clone(), strides });
        Ok(View { dtype: storage.dtype, shape, bytes, walk, swapped: false })
    }

    /// `part` of this tensor, with axes `shape`; nothing is read. Axes of one element at the end do not count on either
    /// side: a 1x1 convolution is a matrix; of a whole tensor, no axis of one element does.
    ///
    /// # Errors
    /// If this tensor has no such part, or the part has not the elements that `shape` asks for.
    pub fn part(&self, part: &Part, shape: &[usize]) -> Result<Self, Fault> {
        let fault = || Err((format!("a tensor that holds one of shape {shape:?}"), format!("shape {:?}", self.shape)));
        let mut axes = trimmed(&self.shape).to_vec();
        let mut strides = match &self.walk {
            // A part of a part: nobody needs one.
            _ if self.swapped => return fault(),
            None => dense_strides(&axes),
            Some(walk) if walk.axes != self.shape => return fault(),
            Some(walk) => walk.strides[..axes.len()].to_vec(),
        };
        let mut start = 0;
        match part {
            Part::Whole => {}
            Part::Rows(rows) => match axes.first_mut() {
                Some(count) if rows.start <= rows.end && rows.end <= *count => {
                    *count = rows.len();
                    start = rows.start * strides[0];
                }
                _ => return fault(),
            },
            Part::Heads { heads, which } => {
                let count = axes.first().copied().unwrap_or(0);
                if *which >= 3 || *heads == 0 || count == 0 || !count.is_multiple_of(3 * heads) {
                    return fault();
                }
                let (features, step) = (count / (3 * heads), strides[0]);
                start = which * features * step;
                axes.splice(..1, [*heads, features]);
                strides.splice(..1, [3 * features * step, step]);
            }
            Part::Transposed => {
                if axes.len() != 2 {
                    return fault();
                }
                axes.reverse();
                strides.reverse();
            }
            Part::SwappedHalves => {
                if axes.first().is_none_or(|rows| rows % 2 != 0) {
                    return fault();
                }
            }
        }
        let fits = match part {
            Part::Heads { .. } => {
                let (rows, rest) = shape.split_first().map_or((0, shape), |(&rows, rest)| (rows, rest));
                axes[0] * axes[1] == rows && axes[2..] == *trimmed(rest)
            }
            // A kernel of one frame is that of an image.
            Part::Whole => several(&axes).eq(several(shape)),
            Part::Rows(_) | Part::Transposed | Part::SwappedHalves => trimmed(&axes) == trimmed(shape),
        };
        if !fits {
            return fault();
        }
        let size = self.dtype.bitsize() / 8;
        let count: usize = axes.iter().product();
        let last: usize = if count == 0 { 0 } else { axes.iter().zip(&strides).map(|(d, s)| (d - 1) * s).sum() };
        let start = self.bytes.start + if count == 0 { 0 } else { start * size };
        let bytes = start..if count == 0 { start } else { start + (last + 1) * size };
        let walk = (count != 0 && !is_dense(&axes, &strides)).then_some(Walk { axes, strides });
        Ok(View { dtype: self.dtype, shape: shape.to_vec(), bytes, walk, swapped: *part == Part::SwappedHalves })
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
        let mut all = match &self.walk {
            None => Cow::Borrowed(whole),
            Some(walk) => Cow::Owned(copy(whole, &walk.axes, &walk.strides, self.dtype.bitsize() / 8)),
        };
        if self.swapped {
            let half = all.len() / 2;
            all.to_mut().rotate_left(half);
        }
        all
    }

    /// The same of elements `rows` of the first axis.
    ///
    /// # Panics
    /// If there are no such rows; who calls has looked at the shape.
    pub fn gather_rows<'a>(&self, file: &'a [u8], rows: Range<usize>) -> Cow<'a, [u8]> {
        let size = self.dtype.bitsize() / 8;
        assert!(self.shape.first().is_some_and(|&n| rows.start <= rows.end && rows.end <= n), "{rows:?} of {self:?}");
        let whole = &file[self.bytes.clone()];
        let row = self.len() / self.shape[0].max(1) * size;
        match &self.walk {
            // Tensors like these are small beside the model.
            _ if self.swapped => Cow::Owned(self.gather(file)[rows.start * row..rows.end * row].to_vec()),
            None => Cow::Borrowed(&whole[rows.start * row..rows.end * row]),
            Some(walk) if walk.axes[0] == self.shape[0] => {
                let mut axes = walk.axes.clone();
                axes[0] = rows.len();
                // Of no rows, the first may lie behind the end.
                let start = if rows.is_empty() { 0 } else { rows.start * walk.strides[0] * size };
                Cow::Owned(copy(&whole[start..], &axes, &walk.strides, size))
            }
            // The first axis is split; these tensors are small, too.
            Some(walk) => {
                Cow::Owned(copy(whole, &walk.axes, &walk.strides, size)[rows.start * row..rows.end * row].to_vec())
            }
        }
    }
}

/// The axes that have more than one element.
fn several(shape: &[usize]) -> impl Iterator<Item = &usize> {
    shape.iter().filter(|&&d| d != 1)
}

/// `shape` without axes of one element at its end.
fn trimmed(shape: &[usize]) -> &[usize] {
    &shape[..shape.iter().rposition(|&d| d != 1).map_or(0, |last| last + 1)]
}

/// Strides of elements that lie row by row.
fn dense_strides(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis] * shape[axis];
    }
    strides
}

/// Whether elements `strides` apart lie row by row; strides of axes with one element do not matter.
fn is_dense(shape: &[usize], strides: &[usize]) -> bool {
    dense_axes(shape, strides).0 == 0
}

/// How many axes are left when those at the end that lie without gaps are taken together, and their elements.
fn dense_axes(shape: &[usize], strides: &[usize]) -> (usize, usize) {
    let (mut left, mut run) = (shape.len(), 1);
    while left > 0 && (shape[left - 1] == 1 || strides[left - 1] == run) {
        left -= 1;
        run *= shape[left];
    }
    (left, run)
}

/// Copies elements of `size` bytes in row-major order, in runs as long as they lie together. [`View::strided`] has
/// checked that all of them exist.
fn copy(from: &[u8], shape: &[usize], strides: &[usize], size: usize) -> Vec<u8> {
    let count = shape.iter().product::<usize>();
    let mut out = Vec::with_capacity(count * size);
    if count == 0 {
        return out;
    }
    let (outer, run) = dense_axes(shape, strides);
    let mut index = vec![0; outer];
    let mut at = 0;
    for _ in 0..count / run {
        out.extend_from_slice(&from[at * size..][..run * size]);
        for axis in (0..outer).rev() {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes 0, 1, 2... as a tensor of `shape`.
    fn bytes(shape: &[usize]) -> (Vec<u8>, View) {
        let count: usize = shape.iter().product();
        let file = (0..count as u8).collect();
        (file, View::dense(Dtype::U8, shape.to_vec(), 0..count))
    }

    #[test]
    fn parts_of_dense_and_strided_tensors() {
        let (file, fused) = bytes(&[12, 2, 1]);
        // Two heads of two features: rows q q k k v v, q q k k v v.
        let part = |which, shape: &[usize]| fused.part(&Part::Heads { heads: 2, which }, shape);
        let keys = part(1, &[4, 2]).unwrap();
        assert_eq!(*keys.gather(&file), [4, 5, 6, 7, 16, 17, 18, 19]);
        assert_eq!(*keys.gather_rows(&file, 1..3), [6, 7, 16, 17]);
        assert_eq!(*part(2, &[4, 2, 1, 1]).unwrap().gather(&file), [8, 9, 10, 11, 20, 21, 22, 23]);
        assert!(part(3, &[4, 2]).is_err() && part(0, &[4, 3]).is_err() && part(0, &[6, 2]).is_err());
        assert!(keys.part(&Part::Whole, &[4, 2]).is_err(), "a part of a part");
        let one = fused.part(&Part::Heads { heads: 1, which: 1 }, &[4, 2]).unwrap();
        assert_eq!(one, fused.part(&Part::Rows(4..8), &[4, 2]).unwrap(), "one head is not interleaved");

        let (file, matrix) = bytes(&[2, 3]);
        let turned = matrix.part(&Part::Transposed, &[3, 2]).unwrap();
        assert_eq!(*turned.gather(&file), [0, 3, 1, 4, 2, 5]);
        assert_eq!(*turned.gather_rows(&file, 2..3), [2, 5]);
        // Back again, and a part of what torch stored turned.
        assert_eq!(*turned.part(&Part::Transposed, &[2, 3]).unwrap().gather(&file), *file);
        assert_eq!(*turned.part(&Part::Rows(1..3), &[2, 2]).unwrap().gather(&file), [1, 4, 2, 5]);
        assert_eq!(matrix.part(&Part::Whole, &[2, 3, 1, 1]).unwrap().shape, [2, 3, 1, 1]);
        let swapped = matrix.part(&Part::SwappedHalves, &[2, 3]).unwrap();
        assert_eq!(*swapped.gather(&file), [3, 4, 5, 0, 1, 2]);
        assert_eq!(*swapped.gather_rows(&file, 1..2), [0, 1, 2]);
        assert!(swapped.part(&Part::Whole, &[2, 3]).is_err() && turned.part(&Part::SwappedHalves, &[3, 2]).is_err());
        assert!(matrix.part(&Part::Whole, &[3, 2]).is_err() && matrix.part(&Part::Rows(1..3), &[2, 3]).is_err());
        let none = matrix.part(&Part::Rows(2..2), &[0, 3]).unwrap();
        assert!(none.is_empty() && none.gather(&file).is_empty());
    }

    #[test]
    fn heads_of_a_vector() {
        let (file, bias) = bytes(&[12]);
        let part = bias.part(&Part::Heads { heads: 2, which: 0 }, &[4]).unwrap();
        assert_eq!(*part.gather(&file), [0, 1, 6, 7]);
    }
}
