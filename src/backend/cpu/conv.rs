//! 3x3 convolutions as implicit matrix products over channels-last images.

use super::arena::{Arena, CodesView};
use super::gemm::{MAX_TAPS, PerRow, Rows, product_f32, product_i8};
use super::linear::epilogue;
use super::simd::{Isa, MR};
use crate::backend::args::{Conv2dArgs, Input};
use crate::format::TensorView;
use crate::program::shape::MAX_CONV_CHANNELS;
use crate::program::{Act, Sampling};

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
    sampling: Sampling,
}

impl Window {
    /// The input pixel, counted over the whole batch, under tap `tap` of output pixel `m`; `None` in the padding.
    /// Upsampling is nearest-neighbour: output coordinates are divided by the factor.
    #[inline(always)]
    fn pixel(&self, m: usize, tap: usize) -> Option<usize> {
        let ([h, w], s) = (self.out, self.sampling);
        let (sample, y, x) = (m / (h * w), m / w % h, m % w);
        let y = (y * s.stride() + tap / 3).checked_sub(s.before())? / s.upsample();
        let x = (x * s.stride() + tap % 3).checked_sub(s.before())? / s.upsample();
        if y >= self.height || x >= self.width {
            return None;
        }
        Some((sample * self.height + y) * self.width + x)
    }
}

/// Rows of an implicit convolution matrix.
struct Pixels<'a, T> {
    data: &'a [T],
    stride: usize,
    channels: usize,
    zeros: &'a [T],
    window: Window,
}

impl<T: Sync> Rows<T> for Pixels<'_, T> {
    fn taps(&self) -> usize {
        9
    }

    fn len(&self) -> usize {
        self.channels
    }

    fn fill<'a>(&'a self, first: usize, count: usize, out: &mut [&'a [T]; MAX_TAPS * MR]) {
        for i in 0..MR {
            let m = first + i.min(count - 1);
            for tap in 0..9 {
                out[tap * MR + i] = match self.window.pixel(m, tap) {
                    Some(pixel) => &self.data[pixel * self.stride..][..self.channels],
                    None => &self.zeros[..self.channels],
                };
            }
        }
    }
}

/// See [`Op::Conv2d`](crate::program::Op::Conv2d).
pub fn conv2d<I: Isa>(
    isa: I,
    arena: &mut Arena,
    call: usize,
    args: &Conv2dArgs,
    weight: &TensorView,
    bias: Option<&TensorView>,
) {
    let (out, reads) = arena.write_floats(&args.y, call);
    let mut epilogue = epilogue(&reads, call, bias, Act::None, None, args.residual);
    epilogue.shift = args.shift.map(|(shift, offset)| PerRow::new(&reads, call, &shift, offset));
    let out_axis = |n: usize| args.sampling.rows(n).unwrap_or(usize::MAX);
    let window = Window {
        height: args.height,
        width: args.width,
        out: [out_axis(args.height), out_axis(args.width)],
        sampling: args.sampling,
    };
    match (&args.x, weight) {
        (Input::Codes(x), TensorView::Codes(w)) => {
            let codes: CodesView = reads.codes(x, call);
            let rows = Pixels { data: codes.codes, stride: codes.stride, channels: x.cols, zeros: &ZERO_CODES, window };
            let sums = |m: usize| {
                (0..9).fold((0, 0), |(valid, sum), tap| match window.pixel(m, tap) {
                    Some(pixel) => (valid | 1 << tap, sum + codes.sum[pixel]),
                    None => (valid, sum),
                })
            };
            product_i8(isa, &rows, &codes, &sums, w, out, &epilogue);
        }
        (Input::Floats(x), _) => {
            let data = reads.floats(x, call);
            let rows = Pixels { data, stride: x.cols, channels: x.cols, zeros: &ZERO_FLOATS, window };
            product_f32(isa, &rows, args.y.cols, weight, out, &epilogue);
        }
        (Input::Codes(_), _) => unreachable!("the shape rules pair codes with integer weights only"),
    }
}
