//! Convolutions: windows laid out as rows, and a matrix product.

use super::Tape;
use super::array::{Array, Cotangents};
use super::linear::{PerSample, add_cyclic};
use super::product::{product, row_sum};
use aquatint::raw::program::{Conv2d, ConvStride};
use rayon::prelude::*;

/// Height and width of the kernel.
const KERNEL: usize = 3;

/// Where the windows of a convolution lie.
struct Windows {
    sampling: ConvStride,
    /// Height and width of the input.
    plane: [usize; 2],
    /// Of the result.
    out: [usize; 2],
    channels: usize,
}

impl Windows {
    fn new(op: &Conv2d, tape: &Tape) -> Self {
        let [_, height, width, channels] = tape.value(op.x).dims[..] else { panic!("pixels") };
        let most = [height, width].map(|n| op.sampling.rows(n).expect("a size that was inferred"));
        let out = match op.size_of.map(|value| &tape.value(value).dims[..]) {
            Some([_, height, width, _]) => [*height, *width],
            _ => most,
        };
        Windows { sampling: op.sampling, plane: [height, width], out, channels }
    }

    /// Values of a row.
    fn cols(&self) -> usize {
        KERNEL * KERNEL * self.channels
    }

    /// Calls `see` for every tap of the window of pixel (y, x) that lies inside: its first value in the row, and the first of
    /// the pixel in the plane.
    fn taps(&self, y: usize, x: usize, mut see: impl FnMut(usize, usize)) {
        let (stride, before, up) = (self.sampling.stride(), self.sampling.before(), self.sampling.upsample());
        // Nearest neighbours of an odd number of pixels are those of one more.
        let inside = |at: usize, axis: usize| {
            let limit = if up == 2 { self.out[axis] } else { self.plane[axis] };
            at.checked_sub(before).filter(|&at| at < limit).map(|at| at / up)
        };
        for tap in 0..KERNEL * KERNEL {
            let (row, col) = (inside(y * stride + tap / KERNEL, 0), inside(x * stride + tap % KERNEL, 1));
            if let (Some(row), Some(col)) = (row, col) {
                see(tap * self.channels, (row * self.plane[1] + col) * self.channels);
            }
        }
    }

    /// The windows of all pixels of the result as rows.
    fn unfold(&self, x: &Array) -> Array {
        let (n, pixels) = (x.dims[0], self.out[0] * self.out[1]);
        let mut rows = Array::zeros(&[n * pixels, self.cols()]);
        let len = self.plane[0] * self.plane[1] * self.channels;
        let of_sample = rows.values.par_chunks_mut((pixels * self.cols()).max(1)).zip(x.values.par_chunks(len.max(1)));
        of_sample.for_each(|(rows, plane)| {
            for (i, row) in rows.chunks_exact_mut(self.cols()).enumerate() {
                self.taps(i / self.out[1], i % self.out[1], |to, from| {
                    row[to..to + self.channels].copy_from_slice(&plane[from..from + self.channels]);
                });
            }
        });
        rows
    }

    /// What rows of windows give back to the planes that they are of.
    fn fold(&self, rows: &[f32], dims: &[usize]) -> Array {
        let mut x = Array::zeros(dims);
        let (pixels, len) = (self.out[0] * self.out[1], self.plane[0] * self.plane[1] * self.channels);
        let of_sample = rows.par_chunks((pixels * self.cols()).max(1)).zip(x.values.par_chunks_mut(len.max(1)));
        of_sample.for_each(|(rows, plane)| {
            for (i, row) in rows.chunks_exact(self.cols()).enumerate() {
                self.taps(i / self.out[1], i % self.out[1], |from, to| {
                    let values = row[from..from + self.channels].iter();
                    plane[to..to + self.channels].iter_mut().zip(values).for_each(|(sum, v)| *sum += v);
                });
            }
        });
        x
    }
}

pub(super) fn forward(op: &Conv2d, tape: &Tape) -> Array {
    let (windows, x, w) = (Windows::new(op, tape), tape.value(op.x), (tape.weights)(op.weight));
    let (n, o) = (x.dims[0], w.dims[0]);
    let y = product(windows.unfold(x).view(), w.weight().t());
    let mut y = Array::new(&[n, windows.out[0], windows.out[1], o], y);
    if let Some(bias) = op.bias {
        add_cyclic(&mut y.values, &(tape.weights)(bias).values);
    }
    if let Some(shift) = op.shift {
        let (columns, len) = (PerSample::new(tape, shift, n), y.values.len() / n);
        for (sample, y) in y.values.chunks_exact_mut(len).enumerate() {
            add_cyclic(y, columns.of(sample, o));
        }
    }
    if let Some(residual) = op.residual {
        add_cyclic(&mut y.values, &tape.value(residual).values);
    }
    y
}

pub(super) fn backward(op: &Conv2d, tape: &Tape, dy: Array, back: &mut Cotangents) {
    let (windows, x, w) = (Windows::new(op, tape), tape.value(op.x), (tape.weights)(op.weight));
    let (n, o) = (x.dims[0], w.dims[0]);
    if let Some(shift) = op.shift.filter(|shift| back.needs(shift.value)) {
        let columns = PerSample::new(tape, shift, n);
        back.add(shift.value, columns.gradient(&dy.values, dy.rows() / n, o));
    }
    if let Some(bias) = op.bias.filter(|&bias| back.wants(bias)) {
        back.add_tensor(bias, row_sum(&dy.values, o));
    }
    if back.wants(op.weight) {
        back.add_tensor(op.weight, product(dy.view().t(), windows.unfold(x).view()));
    }
    if back.needs(op.x) {
        back.add(op.x, windows.fold(&product(dy.view(), w.weight()), &x.dims));
    }
    if let Some(residual) = op.residual.filter(|&value| back.needs(value)) {
        let dims = tape.value(residual).dims.clone();
        back.add(residual, Array { dims, values: dy.values });
    }
}
