//! Convolutions as products of matrices: the pixels under a kernel are a row (im2col), some lines of the picture at a time.

use super::{Map, Weights};
use aquatint::Result;
use ndarray::linalg::general_mat_mul;
use ndarray::{ArrayView2, ArrayViewMut2};

/// Values under kernels that are written down at a time, about: 1 MiB.
const BAND: usize = 1 << 18;
/// What keeps the quotient of Inception's normalisation from small denominators.
const EPSILON: f64 = 0.001;

/// How a kernel goes over a picture: zeros lie around it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Grid {
    pub kernel: [usize; 2],
    pub stride: usize,
    pub pad: [usize; 2],
}

impl Grid {
    /// A kernel that leaves the size as it is.
    pub fn same(kernel: [usize; 2]) -> Self {
        Grid { kernel, stride: 1, pad: kernel.map(|n| n / 2) }
    }

    /// A kernel within the picture.
    pub fn within(kernel: [usize; 2], stride: usize) -> Self {
        Grid { kernel, stride, pad: [0, 0] }
    }

    /// What it makes of a size; 0 where the kernel is larger than the picture.
    pub fn size(&self, size: [usize; 2]) -> [usize; 2] {
        std::array::from_fn(|axis| {
            (size[axis] + 2 * self.pad[axis]).checked_sub(self.kernel[axis]).map_or(0, |rest| rest / self.stride + 1)
        })
    }

    /// The places of `size` under the kernel at `[row, column]`, and their numbers in the kernel.
    pub fn under(&self, [row, column]: [usize; 2], size: [usize; 2]) -> impl Iterator<Item = (usize, usize)> {
        let [height, width] = self.kernel;
        let (top, left) = (row * self.stride, column * self.stride);
        let pad = self.pad;
        (0..height).flat_map(move |i| {
            let y = (top + i).checked_sub(pad[0]).filter(|&y| y < size[0]);
            (0..width).filter_map(move |j| {
                let x = (left + j).checked_sub(pad[1]).filter(|&x| x < size[1])?;
                Some((y? * size[1] + x, i * width + j))
            })
        })
    }
}

/// A convolution with a ReLU behind it.
pub(super) struct Conv {
    grid: Grid,
    inputs: usize,
    /// `(kernel rows, kernel columns, inputs, outputs)`.
    weights: Vec<f32>,
    bias: Vec<f32>,
}

impl Conv {
    /// The convolution `NAME.weight` `(outputs, inputs, rows, columns)` with `NAME.bias`.
    pub fn biased(from: &dyn Weights, name: &str, [inputs, outputs]: [usize; 2], grid: Grid) -> Result<Self> {
        let bias = from.shaped(&format!("{name}.bias"), &[outputs])?;
        let weights = from.shaped(&format!("{name}.weight"), &[outputs, inputs, grid.kernel[0], grid.kernel[1]])?;
        Ok(Self::new(&weights, bias, inputs, grid))
    }

    /// The convolution `NAME.conv.weight` without bias, and the normalisation `NAME.bn` that follows it, as one.
    pub fn normalised(from: &dyn Weights, name: &str, [inputs, outputs]: [usize; 2], grid: Grid) -> Result<Self> {
        let dims = [outputs, inputs, grid.kernel[0], grid.kernel[1]];
        let mut weights = from.shaped(&format!("{name}.conv.weight"), &dims)?;
        let of = |what: &str| from.shaped(&format!("{name}.bn.{what}"), &[outputs]);
        let [gain, mut bias, mean, variance] = [of("weight")?, of("bias")?, of("running_mean")?, of("running_var")?];
        for (o, row) in weights.chunks_exact_mut(inputs * grid.kernel[0] * grid.kernel[1]).enumerate() {
            let scale = f64::from(gain[o]) / (f64::from(variance[o]) + EPSILON).sqrt();
            row.iter_mut().for_each(|w| *w = (f64::from(*w) * scale) as f32);
            bias[o] = (f64::from(bias[o]) - f64::from(mean[o]) * scale) as f32;
        }
        Ok(Self::new(&weights, bias, inputs, grid))
    }

    /// `weights` are `(outputs, inputs, kernel rows, kernel columns)`.
    fn new(weights: &[f32], bias: Vec<f32>, inputs: usize, grid: Grid) -> Self {
        let (outputs, taps) = (bias.len(), grid.kernel[0] * grid.kernel[1]);
        let mut turned = vec![0.0; weights.len()];
        for (o, row) in weights.chunks_exact(inputs * taps).enumerate() {
            row.iter().enumerate().for_each(|(i, &w)| turned[(i % taps * inputs + i / taps) * outputs + o] = w);
        }
        Conv { grid, inputs, weights: turned, bias }
    }

    /// Channels of the result.
    pub fn outputs(&self) -> usize {
        self.bias.len()
    }

    /// How the kernel goes over pictures.
    pub fn grid(&self) -> &Grid {
        &self.grid
    }

    pub fn apply(&self, x: &Map) -> Map {
        assert_eq!(x.channels, self.inputs, "channels of a convolution");
        let [rows, columns] = self.grid.size(x.size);
        let (outputs, under) = (self.outputs(), self.weights.len() / self.outputs());
        let weights = ArrayView2::from_shape((under, outputs), &self.weights).expect("whole rows");
        let mut values = self.bias.repeat(rows * columns);
        let point = under == self.inputs && self.grid.stride == 1 && self.grid.pad == [0, 0];
        // A kernel of one place takes pixels as they lie.
        let lines = if point { rows } else { (BAND / (columns * under).max(1)).clamp(1, rows.max(1)) };
        let mut patches = Vec::new();
        for (band, out) in values.chunks_mut((lines * columns * outputs).max(1)).enumerate() {
            let places = out.len() / outputs;
            let left = if point {
                &x.values
            } else {
                self.write(x, band * lines * columns, places, &mut patches);
                &patches
            };
            let left = ArrayView2::from_shape((places, under), left).expect("as many rows as places");
            let mut out = ArrayViewMut2::from_shape((places, outputs), out).expect("whole rows");
            general_mat_mul(1.0, &left, &weights, 1.0, &mut out);
        }
        values.iter_mut().for_each(|v| *v = v.max(0.0));
        Map { size: [rows, columns], channels: outputs, values }
    }

    /// Writes down what is under the kernel at so many places from `first` on.
    fn write(&self, x: &Map, first: usize, places: usize, patches: &mut Vec<f32>) {
        let (under, columns) = (self.weights.len() / self.outputs(), self.grid.size(x.size)[1]);
        patches.clear();
        patches.resize(places * under, 0.0);
        for (i, patch) in patches.chunks_exact_mut(under).enumerate() {
            let place = first + i;
            for (from, tap) in self.grid.under([place / columns, place % columns], x.size) {
                let pixel = &x.values[from * x.channels..][..x.channels];
                patch[tap * x.channels..][..x.channels].copy_from_slice(pixel);
            }
        }
    }
}
