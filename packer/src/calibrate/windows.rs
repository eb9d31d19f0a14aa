//! What the taps of a convolution see: windows of a zero-padded plane.

use aquatint::raw::program::ConvStride;

/// Height and width of the kernels that there are.
pub const KERNEL: [usize; 2] = [3, 3];
/// Their taps.
pub const TAPS: usize = KERNEL[0] * KERNEL[1];

/// A convolution's way over a sample's plane `(h, w, c)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Windows {
    /// Input channels, `c`.
    pub channels: usize,
    /// Height and width of the input.
    pub plane: [usize; 2],
    /// Height and width of the result.
    pub out: [usize; 2],
    /// How it moves.
    pub sampling: ConvStride,
}

impl Windows {
    /// Windows of a sample: one per pixel of the result.
    pub fn count(&self) -> usize {
        self.out[0] * self.out[1]
    }

    /// Height and width of what the kernel moves over: the input, upsampled first where there is upsampling.
    pub fn walked(&self) -> [usize; 2] {
        if self.sampling.upsample() == 1 { self.plane } else { self.out }
    }

    /// The channels that the tap `[y, x]` of the window that begins at pixel `[row, column]` of the padded input sees; none
    /// where it sees padding.
    fn seen<'a>(&self, sample: &'a [f32], at: [usize; 2], tap: [usize; 2]) -> Option<&'a [f32]> {
        let walked = self.walked();
        let place = |axis: usize| {
            let place = (at[axis] + tap[axis]).checked_sub(self.sampling.before())?;
            (place < walked[axis]).then(|| place / self.sampling.upsample())
        };
        let pixel = place(0)? * self.plane[1] + place(1)?;
        Some(&sample[pixel * self.channels..][..self.channels])
    }

    /// Appends window `index` of `sample` to `rows`: taps in the order of rows and columns, the channels of each.
    pub fn append(&self, sample: &[f32], index: usize, rows: &mut Vec<f32>) {
        let at = [index / self.out[1], index % self.out[1]].map(|pixel| pixel * self.sampling.stride());
        for tap in taps() {
            match self.seen(sample, at, tap) {
                Some(channels) => rows.extend_from_slice(channels),
                None => rows.resize(rows.len() + self.channels, 0.0),
            }
        }
    }

    /// Adds to `sum` what each input, a tap and a channel, sees of `sample` in all windows.
    pub fn add_to(&self, sample: &[f32], sum: &mut [f64]) {
        self.add(sample, self.out, self.sampling.stride(), sum);
    }

    /// The same of windows at every pixel that the kernel moves over, whatever its stride.
    pub fn add_walk_to(&self, sample: &[f32], sum: &mut [f64]) {
        self.add(sample, self.walked(), 1, sum);
    }

    fn add(&self, sample: &[f32], [height, width]: [usize; 2], stride: usize, sum: &mut [f64]) {
        for (tap, sum) in taps().zip(sum.chunks_exact_mut(self.channels)) {
            for index in 0..height * width {
                if let Some(channels) = self.seen(sample, [index / width, index % width].map(|at| at * stride), tap) {
                    sum.iter_mut().zip(channels).for_each(|(sum, &v)| *sum += f64::from(v));
                }
            }
        }
    }

    /// The plane that the kernel moves over, each row followed by as many zeros as a kernel reaches to the side: so a
    /// displacement of pixels is one distance in memory, and what leaves a row meets zeros.
    pub fn padded(&self, sample: &[f32]) -> Vec<f32> {
        let [height, width] = self.walked();
        let up = self.sampling.upsample();
        let mut padded = Vec::with_capacity(height * self.pitch() * self.channels);
        for row in 0..height {
            for column in 0..width {
                let pixel = row / up * self.plane[1] + column / up;
                padded.extend_from_slice(&sample[pixel * self.channels..][..self.channels]);
            }
            padded.resize((row + 1) * self.pitch() * self.channels, 0.0);
        }
        padded
    }

    /// Pixels from one row of [`padded`](Self::padded) to the next.
    pub fn pitch(&self) -> usize {
        self.walked()[1] + KERNEL[1] - 1
    }
}

/// All taps, `[row, column]`.
fn taps() -> impl Iterator<Item = [usize; 2]> {
    (0..TAPS).map(|tap| [tap / KERNEL[1], tap % KERNEL[1]])
}

/// The displacements `(dy, dx)` from one tap to another, each once with its opposite: those that point down, or right in
/// the same row, row by row.
pub fn displacements() -> impl Iterator<Item = (usize, isize)> {
    let [height, width] = KERNEL.map(|n| n as isize);
    let all = (0..height).flat_map(move |dy| (1 - width..width).map(move |dx| (dy as usize, dx)));
    all.filter(|&(dy, dx)| dy > 0 || dx >= 0)
}
