//! 3x3 convolutions as implicit matrix products over channels-last images.

mod winograd;

use super::arena::{Arena, CodesView};
use super::epilogue::PerRow;
use super::gemm::{self, RowSource, Windows, product_f32, product_i8};
use super::linear::epilogue;
use super::simd::tiles::MatrixMut;
use super::simd::{Isa, MR};
use super::sink::Plain;
use crate::backend::args::{Conv2dArgs, Input};
use crate::format::TensorView;
use crate::program::shape::MAX_CONV_CHANNELS;
use crate::program::{Act, ConvStride};

/// What taps outside the image read: raw code 0, or 0.0.
static ZERO_CODES: [u8; MAX_CONV_CHANNELS] = [0; MAX_CONV_CHANNELS];
static ZERO_FLOATS: [f32; MAX_CONV_CHANNELS] = [0.0; MAX_CONV_CHANNELS];

/// Where the nine taps of an output pixel lie in the input.
#[derive(Clone, Copy)]
struct Window {
    height: usize,
    width: usize,
    /// Rows and columns of the output.
    out: [usize; 2],
    /// Rows and columns that are not padding, after upsampling.
    inside: [usize; 2],
    sampling: ConvStride,
    /// Of `sampling`: pixels from one window to the next, lines of zeros above, and the factor of upsampling, as a shift.
    stride: usize,
    before: usize,
    shift: u32,
}

impl Window {
    /// What output place `at` reads under taps `0..N` along an axis of `len` pixels after upsampling; `None` in the padding.
    /// Upsampling is nearest-neighbour: output coordinates are divided by the factor.
    #[inline(always)]
    fn along<const N: usize>(&self, at: usize, len: usize) -> [Option<usize>; N] {
        std::array::from_fn(|tap| {
            let place = (at * self.stride + tap).checked_sub(self.before)?;
            (place < len).then_some(place >> self.shift)
        })
    }

    /// The first pixels of the lines under taps `0..N` of output line `y`, counted over the whole batch.
    #[inline(always)]
    fn lines<const N: usize>(&self, sample: usize, y: usize) -> [Option<usize>; N] {
        self.along(y, self.inside[0]).map(|line| Some((sample * self.height + line?) * self.width))
    }
}

/// Rows of an implicit convolution matrix.
struct Pixels<'a, T> {
    data: &'a [T],
    stride: usize,
    channels: usize,
    zeros: &'a [T],
    /// Sum of each pixel's codes; empty for floats.
    sums: &'a [i32],
    window: Window,
}

impl<T: Sync> RowSource<T> for Pixels<'_, T> {
    fn taps(&self) -> usize {
        9
    }

    fn len(&self) -> usize {
        self.channels
    }

    fn fill<'a>(&'a self, first: usize, count: usize, out: &mut Windows<'a, T>) {
        let window = &self.window;
        let [height, width] = window.out;
        // Divided once for the tile; from there pixels follow one another.
        let (line, mut x) = (first / width, first % width);
        let (mut sample, mut y) = (line / height, line % height);
        let mut lines = window.lines(sample, y);
        if window.sampling == ConvStride::Same && count == MR && x > 0 && x + MR < width {
            return self.fill_inside(lines, x, out);
        }
        for i in 0..MR {
            if 0 < i && i < count {
                x += 1;
                if x == width {
                    (x, y) = (0, y + 1);
                    if y == height {
                        (y, sample) = (0, sample + 1);
                    }
                    lines = window.lines(sample, y);
                }
            }
            let columns: [_; 3] = window.along(x, window.inside[1]);
            let (mut valid, mut sum) = (0, 0);
            for tap in 0..9 {
                out.slices[tap * MR + i] = match (lines[tap / 3], columns[tap % 3]) {
                    (Some(line), Some(column)) => {
                        let pixel = line + column;
                        valid |= 1 << tap;
                        sum += self.sums.get(pixel).copied().unwrap_or(0);
                        &self.data[pixel * self.stride..][..self.channels]
                    }
                    _ => &self.zeros[..self.channels],
                };
            }
            (out.valid[i], out.sum[i]) = (valid, sum);
        }
    }
}

impl<T: Sync> Pixels<'_, T> {
    /// `MR` neighbours that lie within a line, from `x` on, none at its ends: their windows share all but two pixels a
    /// line, and each is looked up once.
    #[inline(always)]
    fn fill_inside<'a>(&'a self, lines: [Option<usize>; 3], x: usize, out: &mut Windows<'a, T>) {
        let mut columns = [0; MR + 2];
        let mut valid = 0;
        for (row, line) in lines.into_iter().enumerate() {
            let taps = &mut out.slices[row * 3 * MR..][..3 * MR];
            let Some(line) = line else {
                taps.fill(&self.zeros[..self.channels]);
                continue;
            };
            let first = line + x - 1;
            valid |= 0b111 << (3 * row);
            if let Some(sums) = self.sums[first.min(self.sums.len())..].first_chunk::<{ MR + 2 }>() {
                columns.iter_mut().zip(sums).for_each(|(column, sum)| *column += sum);
            }
            let line = &self.data[first * self.stride..][..(MR + 1) * self.stride + self.channels];
            for place in 0..MR + 2 {
                let pixel = &line[place * self.stride..][..self.channels];
                for tap in place.saturating_sub(MR - 1)..=place.min(2) {
                    taps[tap * MR + place - tap] = pixel;
                }
            }
        }
        out.valid = [valid; MR];
        for (i, sum) in out.sum.iter_mut().enumerate() {
            *sum = columns[i] + columns[i + 1] + columns[i + 2];
        }
    }
}

/// Bytes of private memory that a convolution needs, whichever way it is done.
pub fn scratch_bytes<I: Isa>(isa: I, args: &Conv2dArgs) -> usize {
    gemm::scratch_bytes(&args.x, 9).max(winograd::scratch_bytes(isa, args))
}

/// See [`Op::Conv2d`](crate::program::Op::Conv2d).
pub fn conv2d<I: Isa>(isa: I, arena: &mut Arena, args: &Conv2dArgs, weight: &TensorView, bias: Option<&TensorView>) {
    let (out, reads) = arena.write_floats(&args.y);
    let out = MatrixMut { data: out, cols: args.y.cols, stride: args.y.cols };
    let mut epilogue = epilogue(&reads, bias, Act::None, None, args.residual);
    epilogue.shift = args.shift.map(|(shift, offset)| PerRow::new(&reads, &shift, offset));
    let window = Window {
        height: args.height,
        width: args.width,
        out: args.out,
        // What is upsampled has as many pixels as the result, whose size may be odd.
        inside: if args.sampling == ConvStride::Up { args.out } else { [args.height, args.width] },
        sampling: args.sampling,
        stride: args.sampling.stride(),
        before: args.sampling.before(),
        shift: args.sampling.upsample().trailing_zeros(),
    };
    match (&args.x, weight) {
        (Input::Codes(x), TensorView::Codes(w)) => {
            let codes: CodesView = reads.codes(x);
            let rows = Pixels {
                data: codes.codes,
                stride: codes.stride,
                channels: x.cols,
                zeros: &ZERO_CODES,
                sums: codes.sum,
                window,
            };
            match winograd::suits(isa, &rows, &codes, w) {
                true => winograd::product(isa, &rows, &codes, w, &epilogue, out),
                false => product_i8(isa, &rows, &codes, w, &epilogue, Plain, out),
            }
        }
        (Input::Floats(x), _) => {
            let data = reads.floats(x);
            let rows = Pixels { data, stride: x.cols, channels: x.cols, zeros: &ZERO_FLOATS, sums: &[], window };
            product_f32(isa, &rows, weight, &epilogue, Plain, out);
        }
        (Input::Codes(_), _) => unreachable!("the shape rules pair codes with integer weights only"),
    }
}
