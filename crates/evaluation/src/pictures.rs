//! How much two pictures differ. Pictures are `(height, width, channels)`, in 0..1.

/// Rows and columns of the window of [`ssim`].
pub const WINDOW: usize = 11;
/// Deviation of its Gaussian.
const SIGMA: f64 = 1.5;
/// Constants that keep the quotients of [`ssim`] from small denominators: `(K L)^2` with K .01 and .03, L 1.
const C: [f64; 2] = [0.01 * 0.01, 0.03 * 0.03];

/// Mean of the squared differences.
pub fn mean_square(a: &[f32], b: &[f32]) -> f64 {
    let sum: f64 = a.iter().zip(b).map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2)).sum();
    sum / a.len() as f64
}

/// Peak signal-to-noise ratio in dB, of values whose range is `range`; infinite if nothing differs.
pub fn psnr(mean_square: f64, range: f64) -> f64 {
    10.0 * (range * range / mean_square).log10()
}

/// Structural similarity (Wang et al. 2004): Gaussian windows of 11 x 11 and deviation 1.5 that lie within the picture,
/// variances of the population, the mean over windows and channels. None if a picture is smaller than a window.
///
/// # Panics
/// If `a` or `b` has not `height * width * channels` values.
pub fn ssim(a: &[f32], b: &[f32], [height, width]: [usize; 2], channels: usize) -> Option<f64> {
    assert_eq!([a.len(), b.len()], [height * width * channels; 2], "values of pictures");
    if height < WINDOW || width < WINDOW {
        return None;
    }
    let kernel = gaussian();
    let blur = |plane: Vec<f64>| blur(&plane, [height, width], &kernel);
    let per_channel = (0..channels).map(|channel| {
        let plane = |x: &[f32]| x.iter().skip(channel).step_by(channels).map(|&v| f64::from(v)).collect::<Vec<_>>();
        let product = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).collect();
        let (x, y) = (plane(a), plane(b));
        let [xx, yy, xy] = [product(&x, &x), product(&y, &y), product(&x, &y)].map(&blur);
        let [mx, my] = [x, y].map(&blur);
        let similarity = |i: usize| {
            let (vx, vy, vxy) = (xx[i] - mx[i] * mx[i], yy[i] - my[i] * my[i], xy[i] - mx[i] * my[i]);
            let luminance = (2.0 * mx[i] * my[i] + C[0]) / (mx[i] * mx[i] + my[i] * my[i] + C[0]);
            luminance * (2.0 * vxy + C[1]) / (vx + vy + C[1])
        };
        (0..mx.len()).map(similarity).sum::<f64>() / mx.len() as f64
    });
    Some(per_channel.sum::<f64>() / channels as f64)
}

/// One axis of the window.
fn gaussian() -> [f64; WINDOW] {
    let at = |i: usize| i as f64 - (WINDOW / 2) as f64;
    let kernel: [f64; WINDOW] = std::array::from_fn(|i| (-at(i).powi(2) / (2.0 * SIGMA * SIGMA)).exp());
    let sum: f64 = kernel.iter().sum();
    kernel.map(|v| v / sum)
}

/// The weighted means of `plane` in all windows within it.
fn blur(plane: &[f64], [height, width]: [usize; 2], kernel: &[f64; WINDOW]) -> Vec<f64> {
    let (rows, columns) = (height + 1 - WINDOW, width + 1 - WINDOW);
    let along = |row: usize| {
        let row = &plane[row * width..][..width];
        row.windows(WINDOW).map(|window| window.iter().zip(kernel).map(|(v, k)| v * k).sum::<f64>())
    };
    let narrow: Vec<f64> = (0..height).flat_map(along).collect();
    let mut out = vec![0.0; rows * columns];
    for (row, out) in out.chunks_exact_mut(columns).enumerate() {
        for (k, weight) in kernel.iter().enumerate() {
            let from = &narrow[(row + k) * columns..][..columns];
            out.iter_mut().zip(from).for_each(|(out, v)| *out += weight * v);
        }
    }
    out
}
