//! 3x3 convolutions: `kernels/conv.cu` and `kernels/conv_i8.cu`.

use super::DeviceTensor;
use super::args::{Frame, Window};
use super::launch::Launch;
use super::linear::{Family, epilogue, product};
use crate::backend::args::Conv2dArgs;
use crate::program::Act;

/// See [`Op::Conv2d`](crate::program::Op::Conv2d).
pub fn conv2d(
    frame: &Frame,
    args: &Conv2dArgs,
    weight: &DeviceTensor<'_>,
    bias: Option<&DeviceTensor<'_>>,
    issue: &mut impl FnMut(Launch<'_>),
) {
    let channels = args.x.cols();
    let window = Window {
        taps: 9,
        channels: channels as u32,
        height: args.height as u32,
        width: args.width as u32,
        out_height: args.out[0] as u32,
        out_width: args.out[1] as u32,
        upsample: args.sampling.upsample() as u32,
        stride: args.sampling.stride() as u32,
        before: args.sampling.before() as u32,
        pad: 0,
    };
    let [inputs, outputs] = [(args.height, args.width), (window.out_height as usize, window.out_width as usize)]
        .map(|(height, width)| args.samples * height * width);
    assert_eq!((args.x.rows(), args.y.rows), (inputs, outputs), "pixels of a convolution");
    let mut epilogue = epilogue(frame, bias, Act::None, None, args.residual.as_ref(), &args.y, args.y.cols);
    if let Some((shift, column)) = &args.shift {
        (epilogue.shift, epilogue.shift_column) =
            (frame.per_sample(Some(shift), args.y.rows, *column + args.y.cols), *column as u32);
    }
    let weight = frame.weight(weight, args.y.cols, 9 * channels);
    product(frame, Family::Conv, &args.x, weight, &args.y, window, epilogue, issue);
}
