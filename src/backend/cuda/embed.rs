//! Tensors and rows of them as values, embeddings, biases of distances: `kernels/embed.cu`.

use super::DeviceTensor;
use super::args::{Floats, Frame, structs};
use super::launch::{Kernel, Launch};
use super::pointwise::pointwise;
use crate::backend::args;
use crate::format::TensorView;
use crate::program::{Act, MAX_BUCKETS, bucket_starts};
use zerocopy::{FromZeros, Immutable, IntoBytes};

structs! {
    /// Rows of a table.
    EmbeddingArgs, 72 { calls: u64, y: Floats, table: u64, index: u64, index_stride: u64, table_half: u32, pad: u32 }

    /// A tensor's elements.
    ParameterArgs, 56 { calls: u64, y: Floats, tensor: u64, tensor_half: u32, pad: u32 }

    /// Sinusoids of timesteps.
    TimestepEmbeddingArgs, 64 { calls: u64, y: Floats, t: u64, t_stride: u64, cos_first: u32, shift: f32 }

    /// Sinusoids of grid positions.
    PositionEmbeddingArgs, 72 {
        calls: u64, y: Floats, height: u32, width: u32, first: [u32; 2], span: [u32; 2], interpolation: f32, pad: u32,
    }

    /// A bias by distance.
    RelativeBiasArgs, 184 {
        calls: u64, y: Floats, table: u64, table_half: u32, half_buckets: u32, starts: [u32; MAX_BUCKETS / 2],
    }
}

/// Threads per block; each has one element.
const BLOCK: u32 = 128;

fn launch(entry: &'static str, y: &args::Floats, args: &[u8], issue: &mut impl FnMut(Launch<'_>)) {
    let grid = [(y.rows * y.cols).div_ceil(BLOCK as usize) as u32, 1, 1];
    issue(Launch { kernel: Kernel { module: "embed", entry }, grid, block: BLOCK, shared: 0, args });
}

/// See [`Op::Embedding`](crate::program::Op::Embedding).
pub fn embedding(
    frame: &Frame,
    args: &args::EmbeddingArgs,
    table: &DeviceTensor<'_>,
    issue: &mut impl FnMut(Launch<'_>),
) {
    let kernel_args = EmbeddingArgs {
        calls: frame.calls,
        y: frame.floats(&args.y),
        table: frame.elements(table, args.y.cols),
        index: frame.place(args.index, args.y.rows * 4),
        index_stride: args.index.stride as u64,
        table_half: u32::from(matches!(table.view, TensorView::F16(_))),
        pad: 0,
    };
    launch("embedding", &args.y, kernel_args.as_bytes(), issue);
}

/// See [`Op::Parameter`](crate::program::Op::Parameter).
pub fn parameter(
    frame: &Frame,
    args: &args::ParameterArgs,
    tensor: &DeviceTensor<'_>,
    issue: &mut impl FnMut(Launch<'_>),
) {
    let kernel_args = ParameterArgs {
        calls: frame.calls,
        y: frame.floats(&args.y),
        tensor: frame.elements(tensor, args.y.rows * args.y.cols),
        tensor_half: u32::from(matches!(tensor.view, TensorView::F16(_))),
        pad: 0,
    };
    launch("parameter", &args.y, kernel_args.as_bytes(), issue);
}

/// See [`Op::TimestepEmbedding`](crate::program::Op::TimestepEmbedding). To the kernel, every number has a row of its
/// own: values have no gaps, so rows that lie side by side are rows one after another.
pub fn timestep_embedding(frame: &Frame, args: &args::TimestepEmbeddingArgs, issue: &mut impl FnMut(Launch<'_>)) {
    let each = args::Floats { rows: args.y.rows * args.numbers, cols: args.y.cols / args.numbers, ..args.y };
    let kernel_args = TimestepEmbeddingArgs {
        calls: frame.calls,
        y: frame.floats(&each),
        t: frame.place(args.t, each.rows * 4),
        t_stride: args.t.stride as u64,
        cos_first: u32::from(args.cos_first),
        shift: args.shift,
    };
    launch("timestep_embedding", &args.y, kernel_args.as_bytes(), issue);
}

/// See [`Op::PositionEmbedding`](crate::program::Op::PositionEmbedding).
pub fn position_embedding(frame: &Frame, args: &args::PositionEmbeddingArgs, issue: &mut impl FnMut(Launch<'_>)) {
    let kernel_args = PositionEmbeddingArgs {
        calls: frame.calls,
        y: frame.floats(&args.y),
        height: args.height as u32,
        width: args.width as u32,
        first: args.spans.map(|[first, _]| first),
        span: args.spans.map(|[_, span]| span),
        interpolation: args.interpolation,
        pad: 0,
    };
    launch("position_embedding", &args.y, kernel_args.as_bytes(), issue);
    if args.zero {
        // Once per bind, so nothing is gained by a kernel of its own.
        let args::PositionEmbeddingArgs { y, .. } = *args;
        pointwise(frame, &args::PointwiseArgs { x: y, y, act: Act::None, mul: 0.0, add: 0.0 }, issue);
    }
}

/// See [`Op::RelativeBias`](crate::program::Op::RelativeBias).
pub fn relative_bias(
    frame: &Frame,
    args: &args::RelativeBiasArgs,
    table: &DeviceTensor<'_>,
    issue: &mut impl FnMut(Launch<'_>),
) {
    let kernel_args = RelativeBiasArgs {
        calls: frame.calls,
        y: frame.floats(&args.y),
        table: frame.elements(table, args.buckets as usize * args.heads()),
        table_half: u32::from(matches!(table.view, TensorView::F16(_))),
        half_buckets: args.buckets / 2,
        starts: bucket_starts(args.buckets, args.max_distance),
    };
    launch("relative_bias", &args.y, kernel_args.as_bytes(), issue);
}
