//! Attention: `kernels/attention.cu`, `kernels/attention_wide.cu`, `kernels/attention_f32.cu` and `kernels/attention_grid.cu`.

use super::args::{Fixed, Floats, Frame, structs};
use super::launch::{Kernel, Launch};
use crate::backend::args::{self, Element};
use zerocopy::{FromZeros, Immutable, IntoBytes};

structs! {
    /// Softmax attention.
    AttentionArgs, 192 {
        calls: u64, q: Floats, k: Floats, v: Floats, y: Floats, lengths: u64, bias: u64,
        condition: u64,
        heads: u32, e: u32, queries: u32, keys: u32, query_tiles: u32, column_tiles: u32, causal: u32, scale: f32,
    }

    /// The same with probabilities rounded to a grid.
    GridArgs, 224 { attention: AttentionArgs, fixed: Fixed, top: f32, pad: u32 }
}

/// Threads per block, of all kernels.
const THREADS: u32 = 128;

/// Modules by the largest head they take.
const MODULES: [(usize, &str); 8] = [
    (32, "attention.e32"),
    (40, "attention.e40"),
    (64, "attention.e64"),
    (72, "attention.e72"),
    (80, "attention.e80"),
    (96, "attention.e96"),
    (128, "attention.e128"),
    (160, "attention.e160"),
];

/// Largest head with a kernel for 128 queries.
const TALL: usize = 80;

/// Blocks that keep a device busy; with fewer, blocks are made smaller.
const BUSY: usize = 256;

/// A kernel, and how it divides the work.
struct Choice {
    kernel: Kernel,
    queries: usize,
    /// Output columns of a block.
    columns: usize,
    shared: usize,
}

impl Choice {
    /// For probabilities on a grid, whatever the sizes.
    fn on_grid() -> Self {
        let kernel = Kernel { module: "attention_grid", entry: "attention_grid" };
        Choice { kernel, queries: 32, columns: 128, shared: 0 }
    }

    /// For heads of `e` features; `pairs` heads and samples, each of so many queries.
    fn new(narrow: bool, e: usize, pairs: usize, queries: usize) -> Self {
        let kernel = |module, entry| Kernel { module, entry };
        if !narrow {
            return Choice { kernel: kernel("attention_f32", "attention_f32"), queries: 32, columns: 128, shared: 0 };
        }
        let Some(&(padded, module)) = MODULES.iter().find(|(most, _)| e <= *most) else {
            return Choice { kernel: kernel("attention_wide", "attention_wide"), queries: 64, columns: 128, shared: 0 };
        };
        let keys = if padded <= 64 { 64 } else { 32 };
        let shared = 4 * keys * (padded.next_multiple_of(16) + 8) * 2;
        // Both compute the same; the choice may depend on the batch.
        let tall = padded <= TALL && pairs * queries.div_ceil(128) >= BUSY;
        let (entry, queries) = if tall { ("attention_128", 128) } else { ("attention_64", 64) };
        Choice { kernel: kernel(module, entry), queries, columns: e, shared }
    }
}

/// See [`Op::Attention`](crate::program::Op::Attention). `args.int8` allows 8-bit codes and asks for none: these kernels
/// make scores and sums in f16 with f32 sums (or in f32), which is more exact, and ignore it.
pub fn attention(frame: &Frame, args: &args::AttentionArgs, issue: &mut impl FnMut(Launch<'_>)) {
    let (e, pairs) = (args.q.cols / args.heads, args.samples * args.heads);
    let (queries, keys) = (args.q.rows / args.samples, args.keys);
    let narrow = [&args.q, &args.k, &args.v].iter().all(|f| f.element == Element::F16);
    let choice = args.softmax.map_or_else(|| Choice::new(narrow, e, pairs, queries), |_| Choice::on_grid());
    let (query_tiles, column_tiles) = (queries.div_ceil(choice.queries), e.div_ceil(choice.columns));
    let softmax = args.softmax.map(|to| (frame.fixed(to.fixed.as_ref(), args.q.rows), ((1u32 << to.bits) - 1) as f32));
    assert!(args.bias.is_none_or(|bias| bias.element == Element::F32 && bias.slot.stride == 0), "{:?}", args.bias);
    let args = AttentionArgs {
        calls: frame.calls,
        q: frame.floats(&args.q),
        k: frame.floats(&args.k),
        v: frame.floats(&args.v),
        y: frame.floats(&args.y.floats()),
        lengths: args.lengths.map_or(0, |slot| frame.place(slot, args.key_rows() * 4)),
        bias: args.bias.map_or(0, |bias| frame.floats(&bias).at),
        condition: args.condition.map_or(0, |slot| frame.place(slot, args.samples * 4)),
        heads: args.heads as u32,
        e: e as u32,
        queries: queries as u32,
        keys: keys as u32,
        query_tiles: query_tiles as u32,
        column_tiles: column_tiles as u32,
        causal: u32::from(args.causal),
        scale: args.scale,
    };
    let grid = [(pairs * column_tiles * query_tiles) as u32, 1, 1];
    let on_grid = softmax.map(|(fixed, top)| GridArgs { attention: args, fixed, top, pad: 0 });
    let args = on_grid.as_ref().map_or_else(|| args.as_bytes(), |args| args.as_bytes());
    issue(Launch { kernel: choice.kernel, grid, block: THREADS, shared: choice.shared, args });
}
