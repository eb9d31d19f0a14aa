//! Linear layers: `kernels/linear.cu` and `kernels/linear_i8.cu`.

use super::DeviceTensor;
use super::args::{
    self, Epilogue, FloatProductArgs, Frame, IntegerProductArgs, PerSample as PerSampleArgs, Weight, WeightKind, Window,
};
use super::launch::{Kernel, Launch};
use crate::backend::args::{Element, Floats, Input, LinearArgs, PerSample};
use crate::program::Act;
use zerocopy::{FromZeros, IntoBytes};

/// See [`Op::Linear`](crate::program::Op::Linear) and [`Op::GatedLinear`](crate::program::Op::GatedLinear).
pub fn linear(
    frame: &Frame,
    args: &LinearArgs,
    weight: &DeviceTensor<'_>,
    bias: Option<&DeviceTensor<'_>>,
    issue: &mut impl FnMut(Launch<'_>),
) {
    let inputs = args.x.cols();
    let window = Window { taps: 1, channels: inputs as u32, ..Window::new_zeroed() };
    let y = args.y.floats();
    let mut epilogue = epilogue(frame, bias, args.act, args.gate, args.residual.as_ref(), &y, args.channels());
    assert_eq!(args.x.rows(), y.rows, "rows of a linear layer");
    epilogue.gated = u32::from(args.gated);
    let weight = frame.weight(weight, args.channels(), inputs);
    product(frame, Family::Linear, &args.x, weight, &y, window, epilogue, issue);
}

/// Resolves what comes after a product of `channels` that ends as `y`.
pub fn epilogue(
    frame: &Frame,
    bias: Option<&DeviceTensor<'_>>,
    act: Act,
    gate: Option<(PerSample, usize)>,
    residual: Option<&Floats>,
    y: &Floats,
    channels: usize,
) -> Epilogue {
    if let Some(residual) = residual {
        // Its rows repeat; the kernel takes row `i % rows`.
        let repeats = residual.rows > 0 && y.rows.is_multiple_of(residual.rows);
        assert!(repeats && residual.cols == y.cols, "shape of a residual: {residual:?} for {y:?}");
    }
    Epilogue {
        bias: bias.map_or(0, |b| frame.elements(b, channels)),
        residual: frame.optional(residual),
        shift: PerSampleArgs::new_zeroed(),
        shift_column: 0,
        gate: frame.per_sample(gate.as_ref().map(|g| &g.0), y.rows, gate.map_or(0, |g| g.1 + y.cols)),
        gate_column: gate.map_or(0, |g| g.1 as u32),
        act: args::act(act),
        gated: 0,
    }
}

/// How the rows of a product are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// One after another.
    Linear,
    /// By windows of an image.
    Conv,
}

/// Launches the kernel for a product: by codes on the integer path, by narrow floats on the f16 path, else in f32.
#[allow(clippy::too_many_arguments)]
pub fn product(
    frame: &Frame,
    family: Family,
    x: &Input,
    weight: Weight,
    y: &Floats,
    window: Window,
    epilogue: Epilogue,
    issue: &mut impl FnMut(Launch<'_>),
) {
    let calls = frame.calls;
    let y_args = frame.floats(y);
    let blocks = |tile: usize| [(y.rows.div_ceil(tile) * (weight.rows as usize).div_ceil(tile)) as u32, 1, 1];
    match x {
        Input::Codes(codes) => {
            let kernel = integer_kernel(family, &weight);
            let shared = integer_shared(weight.bits, weight.consecutive == 0);
            let args = IntegerProductArgs { calls, x: frame.codes(codes), weight, y: y_args, window, epilogue };
            issue(Launch { kernel, grid: blocks(128), block: 128, shared, args: args.as_bytes() });
        }
        Input::Floats(floats) => {
            let narrow = floats.element == Element::F16;
            let args = FloatProductArgs { calls, x: frame.floats(floats), weight, y: y_args, window, epilogue };
            let (grid, shared) = if narrow { (blocks(128), half_shared(&weight)) } else { (blocks(64), 0) };
            issue(Launch { kernel: float_kernel(family, narrow), grid, block: 256, shared, args: args.as_bytes() });
        }
    }
}

fn float_kernel(family: Family, narrow: bool) -> Kernel {
    match (family, narrow) {
        (Family::Linear, true) => Kernel { module: "linear", entry: "linear_f16" },
        (Family::Linear, false) => Kernel { module: "linear", entry: "linear_f32" },
        (Family::Conv, true) => Kernel { module: "conv", entry: "conv_f16" },
        (Family::Conv, false) => Kernel { module: "conv", entry: "conv_f32" },
    }
}

fn integer_kernel(family: Family, weight: &Weight) -> Kernel {
    const MODULES: [[&str; 2]; 6] = [
        ["linear_i8.w2", "conv_i8.w2"],
        ["linear_i8.w3", "conv_i8.w3"],
        ["linear_i8.w4", "conv_i8.w4"],
        ["linear_i8.w5", "conv_i8.w5"],
        ["linear_i8.w6", "conv_i8.w6"],
        ["linear_i8.w8", "conv_i8.w8"],
    ];
    let entry = match (family, weight.consecutive == 1) {
        (Family::Linear, false) => "linear_i8_table",
        (Family::Linear, true) => "linear_i8_consecutive",
        (Family::Conv, false) => "conv_i8_table",
        (Family::Conv, true) => "conv_i8_consecutive",
    };
    let width = if weight.bits == 8 { 5 } else { weight.bits as usize - 2 };
    Kernel { module: MODULES[width][family as usize], entry }
}

/// Dynamic shared memory of the integer kernels: `Sizes` in `kernels/product_i8.cuh`.
pub fn integer_shared(bits: u32, table: bool) -> usize {
    let (low, high) = match bits {
        3 => (2, 1),
        5 => (4, 1),
        6 => (4, 2),
        bits => (bits, 0),
    };
    let units = |plane: u32| [0, 1, 1, 0, 2, 0, 0, 0, 4][plane as usize];
    let stage = 128 * 64 + (units(low) + units(high)) * 128 * 16;
    let codebooks = if table && bits > 5 { 128 << bits } else { 0 };
    if bits <= 5 { 4 * stage } else { 3 * stage + codebooks }
}

/// Dynamic shared memory of the f16 kernels: `kernels/product_f16.cuh`.
pub fn half_shared(weight: &Weight) -> usize {
    let tabulated = weight.kind >= WeightKind::CodesI8 as u32 && weight.bits <= 6;
    5 * 128 * 32 * 2 + if tabulated { (128 << weight.bits) * 2 } else { 0 }
}
