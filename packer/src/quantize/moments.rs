//! What a layer's inputs were like over a calibration: their mean and second moments.

use ndarray::Array2;
use rayon::prelude::*;
use std::ops::Range;

/// First and second moments of the inputs of one layer.
///
/// An input is what one output is made from: `K` numbers, in a convolution `taps * channels` of them, tap-major as the
/// file's O·H·W·I rows are.
#[derive(Clone, Debug, PartialEq)]
pub struct Moments {
    /// The weight of the input rows seen: their number, if each counted once.
    pub rows: f64,
    /// `E[x]`, `K` values.
    pub mean: Vec<f64>,
    /// `E[x x^T]`, the mean not subtracted.
    pub second: SecondMoments,
}

/// `E[x x^T]` of `K` inputs.
#[derive(Clone, Debug, PartialEq)]
pub enum SecondMoments {
    /// The lower triangle, row-major: `K (K + 1) / 2` values, entry (i, j <= i) at `i (i + 1) / 2 + j`.
    Dense(Vec<f64>),
    /// Of a convolution, by displacement: the mean, per pixel of the output, over all positions p of the zero-padded
    /// plane of `x[p, a] x[p + d, b]`.
    Toeplitz {
        /// Input channels.
        channels: usize,
        /// Height and width of the kernel.
        kernel: [usize; 2],
        /// (displacement, channels a, channels b). Displacements d = (dy, dx) run over dy in `0..height` and dx in
        /// `-(width - 1)..width`, in that order, without those of dy = 0 and dx < 0. What tap s sees of channel a and
        /// tap t of channel b is entry \[a\]\[b\] of `t - s`; of a displacement that is not listed it is entry \[b\]\[a\] of its
        /// opposite.
        lags: Vec<f64>,
        /// The mean over those same windows, at every pixel, `K` values: what lags are centred with. Under a convolution
        /// of stride 2 it is another than the mean of its inputs, and where means are large beside deviations no inputs
        /// could have that one and these lags.
        centre: Vec<f64>,
    },
}

/// How many displacements a kernel of this height and width has, each counted with its opposite.
pub fn displacements([height, width]: [usize; 2]) -> usize {
    (2 * height * width + 1).saturating_sub(height + width)
}

/// The place of the displacement (dy, dx) in the list, and whether it stands there as its opposite.
fn displacement(dy: isize, dx: isize, width: usize) -> (usize, bool) {
    let opposite = dy < 0 || (dy == 0 && dx < 0);
    let (dy, dx) = if opposite { (-dy, -dx) } else { (dy, dx) };
    let width = width as isize;
    let at = if dy == 0 { dx } else { width + (dy - 1) * (2 * width - 1) + dx + width - 1 };
    (at as usize, opposite)
}

impl Moments {
    /// Inputs per output, `K`.
    pub fn inputs(&self) -> usize {
        self.mean.len()
    }

    /// Kernel taps, as far as the moments know: 1 unless they are kept by displacement.
    pub fn taps(&self) -> usize {
        match self.second {
            SecondMoments::Dense(_) => 1,
            SecondMoments::Toeplitz { kernel: [height, width], .. } => height * width,
        }
    }

    /// Checks sizes and values.
    ///
    /// # Errors
    /// What is wrong: no rows, a number of values that does not fit the inputs, a value that is not finite, or a
    /// negative mean of squares.
    pub fn check(&self) -> Result<(), String> {
        let inputs = self.inputs();
        if !(self.rows.is_finite() && self.rows > 0.0) {
            return Err(format!("moments over {} rows: expected a positive number of them", self.rows));
        }
        let (values, expected) = match &self.second {
            SecondMoments::Dense(triangle) => (triangle, inputs * (inputs + 1) / 2),
            SecondMoments::Toeplitz { channels, kernel, lags, .. } => {
                let [height, width] = *kernel;
                if height * width == 0 || height * width * channels != inputs {
                    return Err(format!(
                        "moments of {inputs} inputs: expected {height} x {width} taps of {channels} channels"
                    ));
                }
                (lags, displacements(*kernel) * channels * channels)
            }
        };
        if self.centre().len() != inputs {
            return Err(format!("the mean of {inputs} inputs at every pixel: got {} values", self.centre().len()));
        }
        if values.len() != expected {
            return Err(format!("second moments of {inputs} inputs: expected {expected} values, got {}", values.len()));
        }
        if let Some(at) = self.mean.iter().zip(self.centre()).position(|(v, c)| !(v.is_finite() && c.is_finite())) {
            return Err(format!("the mean of input {at} is {}: expected a finite number", self.mean[at]));
        }
        if let Some(at) = values.iter().position(|v| !v.is_finite()) {
            return Err(format!("value {at} of the second moments is {}: expected a finite number", values[at]));
        }
        match self.diagonal().iter().position(|&v| v < 0.0) {
            Some(at) => Err(format!("the mean square of input {at} is {}: expected no negative one", self.at(at, at))),
            None => Ok(()),
        }
    }

    /// `E[x_i x_j]`.
    pub fn at(&self, i: usize, j: usize) -> f64 {
        match &self.second {
            SecondMoments::Dense(triangle) => {
                let (i, j) = (i.max(j), i.min(j));
                triangle[i * (i + 1) / 2 + j]
            }
            SecondMoments::Toeplitz { channels, kernel: [_, width], lags, .. } => {
                let place = |input: usize| {
                    let tap = input / channels;
                    ((tap / width) as isize, (tap % width) as isize, input % channels)
                };
                let ((sy, sx, a), (ty, tx, b)) = (place(i), place(j));
                let (lag, opposite) = displacement(ty - sy, tx - sx, *width);
                let (a, b) = if opposite { (b, a) } else { (a, b) };
                lags[(lag * channels + a) * channels + b]
            }
        }
    }

    /// The mean that second moments are centred with.
    pub fn centre(&self) -> &[f64] {
        match &self.second {
            SecondMoments::Dense(_) => &self.mean,
            SecondMoments::Toeplitz { centre, .. } => centre,
        }
    }

    /// The moments of these of `of` channels alone.
    ///
    /// # Panics
    /// If inputs are no whole number of times as many as channels, or there are no such channels.
    #[must_use]
    pub fn part(&self, channels: Range<usize>, of: usize) -> Moments {
        assert!(of > 0 && self.inputs().is_multiple_of(of), "{of} channels of {} inputs", self.inputs());
        let taps = 0..self.inputs() / of;
        let inputs: Vec<usize> = taps.flat_map(|tap| channels.clone().map(move |c| tap * of + c)).collect();
        let these = |means: &[f64]| inputs.iter().map(|&i| means[i]).collect();
        let second = match &self.second {
            SecondMoments::Dense(_) => {
                let entries = (0..inputs.len()).flat_map(|i| (0..=i).map(move |j| (i, j)));
                SecondMoments::Dense(entries.map(|(i, j)| self.at(inputs[i], inputs[j])).collect())
            }
            SecondMoments::Toeplitz { channels: all, kernel, lags, centre } => {
                assert_eq!(of, *all, "as many channels");
                let pairs =
                    lags.chunks_exact(of * of).flat_map(|lag| channels.clone().map(move |a| &lag[a * of..][..of]));
                let lags = pairs.flat_map(|row| &row[channels.clone()]).copied().collect();
                SecondMoments::Toeplitz { channels: channels.len(), kernel: *kernel, lags, centre: these(centre) }
            }
        };
        Moments { rows: self.rows, mean: these(&self.mean), second }
    }

    /// The moments of the same inputs divided by factors, one per channel: an input of a convolution has that of its channel.
    ///
    /// # Panics
    /// If inputs are no whole number of times as many as factors, or factors are not as many as channels.
    #[must_use]
    pub fn divided(&self, factors: &[f32]) -> Moments {
        let n = factors.len();
        assert!(n > 0 && self.inputs().is_multiple_of(n), "{n} factors of {} inputs", self.inputs());
        let factor = |input: usize| f64::from(factors[input % n]);
        let all = |means: &[f64]| means.iter().enumerate().map(|(i, v)| v / factor(i)).collect();
        let second = match &self.second {
            SecondMoments::Dense(triangle) => {
                let pairs = (0..self.inputs()).flat_map(|i| (0..=i).map(move |j| (i, j)));
                SecondMoments::Dense(
                    triangle.iter().zip(pairs).map(|(v, (i, j))| v / (factor(i) * factor(j))).collect(),
                )
            }
            SecondMoments::Toeplitz { channels, kernel, lags, centre } => {
                assert_eq!(n, *channels, "factors of as many channels");
                let lag = |(at, v): (usize, &f64)| v / (factor(at / n) * factor(at));
                let lags = lags.iter().enumerate().map(lag).collect();
                SecondMoments::Toeplitz { channels: n, kernel: *kernel, lags, centre: all(centre) }
            }
        };
        Moments { rows: self.rows, mean: all(&self.mean), second }
    }

    /// `E[x_j^2]` of every input.
    pub fn diagonal(&self) -> Vec<f64> {
        (0..self.inputs()).map(|j| self.at(j, j)).collect()
    }

    /// `E[x_i x_j]`, i in `rows` and j in `cols`; of deviations from the mean if `centred`.
    pub fn block(&self, rows: &[usize], cols: &[usize], centred: bool) -> Array2<f64> {
        let (mut values, centre) = (vec![0f64; rows.len() * cols.len()], self.centre());
        values.par_chunks_mut(cols.len().max(1)).zip(rows).for_each(|(values, &i)| {
            for (value, &j) in values.iter_mut().zip(cols) {
                *value = self.at(i, j) - if centred { centre[i] * centre[j] } else { 0.0 };
            }
        });
        Array2::from_shape_vec((rows.len(), cols.len()), values).expect("as many values as entries")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A plane (height, width, channels) of small integers, so that sums are exact.
    fn plane(height: usize, width: usize, channels: usize) -> impl Fn(isize, isize, usize) -> f64 {
        move |y, x, c| {
            let inside = (0..height as isize).contains(&y) && (0..width as isize).contains(&x) && c < channels;
            if inside { ((y * 31 + x * 17 + c as isize * 7 + y * x * 5) % 11 - 4) as f64 } else { 0.0 }
        }
    }

    /// Moments by displacement, from the definition.
    fn toeplitz(
        at: &impl Fn(isize, isize, usize) -> f64,
        reach: isize,
        channels: usize,
        kernel: [usize; 2],
    ) -> Moments {
        let [height, width] = kernel.map(|n| n as isize);
        let mut lags = Vec::new();
        for (dy, dx) in (0..height).flat_map(|dy| (1 - width..width).map(move |dx| (dy, dx))) {
            if dy == 0 && dx < 0 {
                continue;
            }
            for (a, b) in (0..channels).flat_map(|a| (0..channels).map(move |b| (a, b))) {
                let positions = (-reach..reach).flat_map(|y| (-reach..reach).map(move |x| (y, x)));
                lags.push(positions.map(|(y, x)| at(y, x, a) * at(y + dy, x + dx, b)).sum());
            }
        }
        let (mean, centre) = (vec![0.0; channels * kernel[0] * kernel[1]], vec![0.0; channels * kernel[0] * kernel[1]]);
        Moments { rows: 1.0, mean, second: SecondMoments::Toeplitz { channels, kernel, lags, centre } }
    }

    #[test]
    fn displacements_give_the_moments_of_the_unfolded_plane() {
        for (kernel, channels) in [([3, 3], 2), ([1, 1], 3), ([2, 3], 2), ([3, 1], 2)] {
            let at = plane(5, 6, channels);
            let moments = toeplitz(&at, 12, channels, kernel);
            assert_eq!(moments.check(), Ok(()));
            let all: Vec<usize> = (0..moments.inputs()).collect();
            let got = moments.block(&all, &all, false);
            // Every window that touches the plane, unfolded tap-major.
            let [height, width] = kernel.map(|n| n as isize);
            let mut expected = Array2::<f64>::zeros((all.len(), all.len()));
            for (y, x) in (-8..12).flat_map(|y| (-8..12).map(move |x| (y, x))) {
                let taps = (0..height).flat_map(|dy| (0..width).map(move |dx| (dy, dx)));
                let window: Vec<f64> = taps
                    .flat_map(|(dy, dx)| (0..channels).map(move |c| (dy, dx, c)))
                    .map(|(dy, dx, c)| at(y + dy, x + dx, c))
                    .collect();
                for (i, j) in all.iter().flat_map(|&i| all.iter().map(move |&j| (i, j))) {
                    expected[[i, j]] += window[i] * window[j];
                }
            }
            assert_eq!(got, expected, "{kernel:?}");
            assert!(expected.iter().any(|&v| v != 0.0));
        }
    }

    #[test]
    fn channels_alone_have_their_moments() {
        for channels in [0..2, 1..3, 2..3] {
            let at = plane(5, 6, 3);
            let all = toeplitz(&at, 12, 3, [3, 2]);
            let first = channels.start;
            let own = toeplitz(&|y, x, c| at(y, x, c + first), 12, channels.len(), [3, 2]);
            assert_eq!(all.part(channels.clone(), 3), own);
            // The same of all pairs of inputs.
            let inputs: Vec<usize> = (0..18).collect();
            let whole = all.block(&inputs, &inputs, false);
            let triangle = (0..18).flat_map(|i| (0..=i).map(move |j| (i, j))).map(|at| whole[at]).collect();
            let mean: Vec<f64> = (0..18).map(f64::from).collect();
            let dense = Moments { rows: 1.0, mean, second: SecondMoments::Dense(triangle) }.part(channels.clone(), 3);
            let own: Vec<usize> = (0..own.inputs()).collect();
            assert_eq!(dense.block(&own, &own, false), all.part(channels.clone(), 3).block(&own, &own, false));
            assert_eq!(dense.mean[..channels.len()], [0.0, 1.0, 2.0][channels.clone()]);
            assert_eq!(dense.mean[channels.len()], 3.0 + first as f64);
        }
    }

    #[test]
    fn blocks_of_a_triangle_are_centred_on_request() {
        let moments = Moments {
            rows: 4.0,
            mean: vec![1.0, -2.0, 3.0],
            second: SecondMoments::Dense(vec![10.0, 20.0, 30.0, 40.0, 50.0, 60.0]),
        };
        assert_eq!(moments.diagonal(), [10.0, 30.0, 60.0]);
        assert_eq!(moments.block(&[2, 0], &[0, 1], false), ndarray::arr2(&[[40.0, 50.0], [10.0, 20.0]]));
        assert_eq!(moments.block(&[2, 0], &[0, 1], true), ndarray::arr2(&[[37.0, 56.0], [9.0, 22.0]]));
    }

    #[test]
    fn what_cannot_be_moments_is_refused() {
        let good = Moments { rows: 4.0, mean: vec![1.0, 2.0], second: SecondMoments::Dense(vec![1.0, 0.0, 4.0]) };
        assert_eq!(good.check(), Ok(()));
        let conv = |kernel, channels, values| Moments {
            rows: 1.0,
            mean: vec![0.0; 18],
            second: SecondMoments::Toeplitz { channels, kernel, lags: vec![1.0; values], centre: vec![0.0; 18] },
        };
        assert_eq!(conv([3, 3], 2, 13 * 4).check(), Ok(()));
        for (bad, told) in [
            (Moments { rows: 0.0, ..good.clone() }, "0 rows"),
            (Moments { rows: f64::NAN, ..good.clone() }, "NaN rows"),
            (Moments { mean: vec![1.0; 3], ..good.clone() }, "expected 6 values, got 3"),
            (Moments { mean: vec![1.0, f64::INFINITY], ..good.clone() }, "input 1 is inf"),
            (Moments { second: SecondMoments::Dense(vec![1.0, f64::NAN, 4.0]), ..good.clone() }, "value 1"),
            (Moments { second: SecondMoments::Dense(vec![1.0, 0.0, -4.0]), ..good.clone() }, "input 1 is -4"),
            (conv([3, 3], 2, 13 * 4 - 1), "expected 52 values, got 51"),
            (conv([3, 3], 3, 13 * 9), "3 x 3 taps of 3"),
            (conv([0, 3], 2, 0), "0 x 3 taps"),
        ] {
            let fault = bad.check().unwrap_err();
            assert!(fault.contains(told), "{fault}");
        }
    }
}
