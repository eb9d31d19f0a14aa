//! Tensors and rows of them as values; embeddings of timesteps and positions, and biases of distances. None of them runs in the step loop.

use super::arena::Arena;
use crate::backend::args::{
    EmbeddingArgs, ParameterArgs, PositionEmbeddingArgs, RelativeBiasArgs, TimestepEmbeddingArgs,
};
use crate::format::TensorView;
use crate::program::bucket_starts;

/// See [`Op::Embedding`](crate::program::Op::Embedding).
pub fn embedding(arena: &mut Arena, args: &EmbeddingArgs, table: &TensorView) {
    let (out, reads) = arena.write_floats(&args.y);
    let index: &[u32] = reads.slice(reads.first(args.index), args.y.rows);
    let cols = args.y.cols;
    for (out, &i) in out.chunks_exact_mut(cols).zip(index) {
        copy(table, i as usize * cols, out);
    }
}

/// See [`Op::Parameter`](crate::program::Op::Parameter).
pub fn parameter(arena: &mut Arena, args: &ParameterArgs, tensor: &TensorView) {
    copy(tensor, 0, arena.write_floats(&args.y).0);
}

/// The elements of `tensor` from element `at`, as many as `out` takes.
pub(super) fn copy(tensor: &TensorView, at: usize, out: &mut [f32]) {
    match tensor {
        TensorView::F32(t) => out.copy_from_slice(&t[at..at + out.len()]),
        TensorView::F16(t) => t[at..at + out.len()].iter().zip(out).for_each(|(v, out)| *out = v.to_f32()),
        TensorView::Codes(_) => unreachable!("the shape rules keep what is copied uncoded"),
    }
}

/// See [`Op::TimestepEmbedding`](crate::program::Op::TimestepEmbedding). Frequencies and angles are rounded to f32
/// where diffusers' `get_timestep_embedding` rounds them; sines are taken in f64.
pub fn timestep_embedding(arena: &mut Arena, args: &TimestepEmbeddingArgs) {
    let (out, reads) = arena.write_floats(&args.y);
    let t: &[f32] = reads.slice(reads.first(args.t), args.y.rows * args.numbers);
    let dim = args.y.cols / args.numbers;
    let half = dim / 2;
    for (out, &t) in out.chunks_exact_mut(dim).zip(t) {
        let (first, second) = out.split_at_mut(half);
        let (cos, sin) = if args.cos_first { (first, second) } else { (second, first) };
        for i in 0..half {
            let exponent = -(10_000f32.ln()) * i as f32 / (half as f32 - args.shift);
            let angle = t * (f64::from(exponent).exp() as f32);
            (sin[i], cos[i]) = (f64::from(angle).sin() as f32, f64::from(angle).cos() as f32);
        }
    }
}

/// See [`Op::PositionEmbedding`](crate::program::Op::PositionEmbedding). First half of the features: columns; second
/// half: rows; each sines then cosines; all in f64, as diffusers' `get_2d_sincos_pos_embed`.
pub fn position_embedding(arena: &mut Arena, args: &PositionEmbeddingArgs) {
    let (out, _) = arena.write_floats(&args.y);
    if args.zero {
        return out.fill(0.0);
    }
    let (half, quarter) = (args.y.cols / 2, args.y.cols / 4);
    // Each axis has few positions, which many tokens have in common.
    let axis = |size: usize, [first, span]: [u32; 2]| -> Vec<f32> {
        let mut table = vec![0.0; size * half];
        for (i, row) in table.chunks_exact_mut(half).enumerate() {
            let p = (f64::from(first) + i as f64 / (size as f64 / f64::from(span))) / f64::from(args.interpolation);
            for k in 0..quarter {
                let angle = p / 10_000f64.powf(k as f64 / quarter as f64);
                row[k] = angle.sin() as f32;
                row[quarter + k] = angle.cos() as f32;
            }
        }
        table
    };
    let (columns, rows) = (axis(args.width, args.spans[0]), axis(args.height, args.spans[1]));
    for (token, out) in out.chunks_exact_mut(args.y.cols).enumerate() {
        out[..half].copy_from_slice(&columns[token % args.width * half..][..half]);
        out[half..].copy_from_slice(&rows[token / args.width * half..][..half]);
    }
}

/// See [`Op::RelativeBias`](crate::program::Op::RelativeBias).
pub fn relative_bias(arena: &mut Arena, args: &RelativeBiasArgs, table: &TensorView) {
    let (out, _) = arena.write_floats(&args.y);
    let (tokens, heads) = (args.y.cols, args.heads());
    let starts = bucket_starts(args.buckets, args.max_distance);
    for (row, out) in out.chunks_exact_mut(tokens).enumerate() {
        let (head, query) = (row / tokens, row % tokens);
        for (key, out) in out.iter_mut().enumerate() {
            let distance = query.abs_diff(key);
            let behind = if key > query { args.buckets as usize / 2 } else { 0 };
            let bucket = behind + starts.partition_point(|&start| start as usize <= distance) - 1;
            copy(table, bucket * heads + head, std::slice::from_mut(out));
        }
    }
}
