//! Norms: `kernels/norm_layer.cu`, `kernels/norm_group.cu` and `kernels/norm_group_codes.cu`.

use super::DeviceTensor;
use super::args::{Floats, Frame, PerSample, act, structs};
use super::launch::{Kernel, Launch};
use super::quantize::{
    QuantizeTo, ROW_THREADS, ROWS, needs_extents, quantize_to, row_modules, row_variant, rows_per_team,
};
use crate::backend::args::{self, Output};
use zerocopy::{FromZeros, Immutable, IntoBytes};

structs! {
    /// Layer norm.
    LayerNormArgs, 264 {
        calls: u64, x: Floats, y: Floats, to: QuantizeTo, weight: u64, bias: u64, modulation: PerSample,
        scale: u32, shift: u32, eps: f32, quantize: u32, rms: u32, shifted: u32,
    }

    /// All kernels of a group norm.
    GroupNormArgs, 296 {
        calls: u64, x: Floats, y: Floats, to: QuantizeTo, weight: u64, bias: u64, sums: u64, affine: u64,
        modulation: PerSample, samples: u32, groups: u32, blocks: u32, pixels_per_block: u32, lanes: u32,
        rows_per_team: u32, act: u32, eps: f32, scale: u32, shift: u32,
    }
}

/// See [`Op::LayerNorm`](crate::program::Op::LayerNorm).
pub fn layer_norm(
    frame: &Frame,
    args: &args::LayerNormArgs,
    weight: Option<&DeviceTensor<'_>>,
    bias: Option<&DeviceTensor<'_>>,
    issue: &mut impl FnMut(Launch<'_>),
) {
    const MODULES: [&str; ROWS.len()] = row_modules!("norm_layer");
    let (y, to) = output(frame, &args.x, &args.y, None);
    // A shift alone is a modulation whose scale is not read.
    let shifted = args.shift.map(|(columns, shift)| (columns, shift, shift));
    let (modulation, [scale, shift]) = modulation(frame, &args.x, &args.modulation.or(shifted));
    let (variant, teams) = row_variant(args.x.cols);
    let kernel = Kernel { module: MODULES[variant], entry: "layer_norm" };
    let grid = [args.x.rows.div_ceil(teams) as u32, 1, 1];
    let args = LayerNormArgs {
        calls: frame.calls,
        x: frame.floats(&args.x),
        y,
        to,
        weight: weight.map_or(0, |w| frame.elements(w, args.x.cols)),
        bias: bias.map_or(0, |b| frame.elements(b, args.x.cols)),
        modulation,
        scale,
        shift,
        eps: args.eps,
        quantize: u32::from(matches!(args.y, Output::Codes(_))),
        rms: u32::from(args.rms),
        shifted: u32::from(shifted.is_some()),
    };
    issue(Launch { kernel, grid, block: ROW_THREADS, shared: 0, args: args.as_bytes() });
}

/// A modulation of `x`, or none, and the first columns of scale and shift.
fn modulation(frame: &Frame, x: &args::Floats, m: &Option<(args::PerSample, usize, usize)>) -> (PerSample, [u32; 2]) {
    let columns = m.map_or([0, 0], |(_, scale, shift)| [scale, shift]);
    let end = columns[0].max(columns[1]) + x.cols;
    (frame.per_sample(m.as_ref().map(|m| &m.0), x.rows, end), columns.map(|column| column as u32))
}

/// A result as floats or as codes; the other one is none.
fn output(frame: &Frame, x: &args::Floats, y: &Output, extents: Option<(u64, usize)>) -> (Floats, QuantizeTo) {
    let (rows, cols) = match y {
        Output::Floats(y) => (y.rows, y.cols),
        Output::Codes(to) => (to.codes.rows, to.codes.cols),
    };
    assert_eq!((rows, cols), (x.rows, x.cols), "shape of a norm");
    match y {
        Output::Floats(y) => (frame.floats(y), QuantizeTo::new_zeroed()),
        Output::Codes(to) => (Floats::new_zeroed(), quantize_to(frame, to, extents)),
    }
}

/// How a group norm is divided; depends on a sample's size only, because the order of sums follows from it.
struct Division {
    blocks: usize,
    pixels_per_block: usize,
    /// Threads side by side along the channels, and rows of them.
    lanes: usize,
    rows: usize,
    /// Bytes of shared memory for sums.
    shared: usize,
}

impl Division {
    /// Elements that are worth a block, and how many blocks a sample is worth.
    const ELEMENTS: usize = 8192;
    const BLOCKS: usize = 256;
    const THREADS: usize = 256;

    fn of(args: &args::GroupNormArgs) -> Self {
        let (pixels, cols) = (args.x.rows / args.samples, args.x.cols);
        let wanted = (pixels * cols).div_ceil(Self::ELEMENTS).clamp(1, Self::BLOCKS);
        let pixels_per_block = pixels.div_ceil(wanted);
        // A thread has eight channels, or one where rows are not aligned; channels beyond the threads come in turns.
        let width = if cols % 8 == 0 { 8 } else { 1 };
        let runs = cols / width;
        let lanes = runs.div_ceil(runs.div_ceil(Self::THREADS));
        let (blocks, rows) = (pixels.div_ceil(pixels_per_block), Self::THREADS / lanes);
        Division { blocks, pixels_per_block, lanes, rows, shared: rows * width * (runs | 1) * 12 }
    }

    fn threads(&self) -> u32 {
        (self.lanes * self.rows).next_multiple_of(32) as u32
    }
}

/// Where a group norm's workspace holds sums, affine maps and extents, and its length.
fn workspace(args: &args::GroupNormArgs) -> [usize; 4] {
    let blocks = Division::of(args).blocks;
    let affine = args.samples * blocks * args.groups * 16;
    let extents = affine + (args.samples * args.x.cols * 12).next_multiple_of(16);
    let extent_bytes = match &args.y {
        Output::Codes(to) if needs_extents(to) => args.samples * blocks * 8,
        _ => 0,
    };
    [0, affine, extents, extents + extent_bytes]
}

/// Bytes of arena: sums per sample, block and group; means, factors and summands per sample and channel; extents per
/// sample and block.
pub fn group_norm_workspace(args: &args::GroupNormArgs) -> usize {
    workspace(args)[3]
}

/// See [`Op::GroupNorm`](crate::program::Op::GroupNorm).
pub fn group_norm(
    frame: &Frame,
    args: &args::GroupNormArgs,
    weight: &DeviceTensor<'_>,
    bias: &DeviceTensor<'_>,
    issue: &mut impl FnMut(Launch<'_>),
) {
    const MODULES: [&str; ROWS.len()] = row_modules!("norm_group_codes");
    let division = Division::of(args);
    let [sums, affine, extents, end] = workspace(args);
    let workspace = frame.place(args.workspace, end);
    let [sums, affine, extents] = [sums, affine, extents].map(|at| workspace + at as u64);
    let extents = matches!(&args.y, Output::Codes(to) if needs_extents(to)).then_some((extents, division.blocks));
    let (y, to) = output(frame, &args.x, &args.y, extents);
    let each = rows_per_team(args.x.rows);
    let (modulation, [scale, shift]) = modulation(frame, &args.x, &args.modulation);
    let kernel_args = GroupNormArgs {
        calls: frame.calls,
        x: frame.floats(&args.x),
        y,
        to,
        weight: frame.elements(weight, args.x.cols),
        bias: frame.elements(bias, args.x.cols),
        sums,
        affine,
        modulation,
        samples: args.samples as u32,
        groups: args.groups as u32,
        blocks: division.blocks as u32,
        pixels_per_block: division.pixels_per_block as u32,
        lanes: division.lanes as u32,
        rows_per_team: each as u32,
        act: act(args.act),
        eps: args.eps,
        scale,
        shift,
    };
    let mut launch = |module, entry, blocks: usize, block, shared| {
        let grid = [blocks as u32, 1, 1];
        issue(Launch { kernel: Kernel { module, entry }, grid, block, shared, args: kernel_args.as_bytes() });
    };
    let (blocks, threads) = (args.samples * division.blocks, division.threads());
    launch("norm_group", "group_norm_sums", blocks, threads, division.shared);
    launch("norm_group", "group_norm_affine", (args.samples * args.groups).div_ceil(4), 128, 0);
    if let Output::Floats(_) = args.y {
        return launch("norm_group", "group_norm_apply", blocks, threads, 0);
    }
    if extents.is_some() {
        launch("norm_group", "group_norm_extent", blocks, threads, 0);
    }
    let (variant, teams) = row_variant(args.x.cols);
    launch(MODULES[variant], "group_norm_codes", args.x.rows.div_ceil(teams * each), ROW_THREADS, 0);
}
