// Ops that only move data: one read and one write of every element, in 16-byte accesses where rows of pixels allow it.
#include "common.cuh"

constexpr u32 THREADS = 256;

struct PatchArgs {
    u64 calls;
    Floats x;
    Floats y;
    u32 height; // of the image, in pixels
    u32 width;
    u32 channels;
    u32 patch;
    u32 inverse; // from patches to pixels
    u32 pad;
};
static_assert(sizeof(PatchArgs) == 96, "PatchArgs");

// Pixels (samples, height, width, channels) to patches (samples, height / p, width / p, p * p * channels), or back.
// Both are made of stretches of p * channels elements: one row of one patch. Grid: elements / 256, or elements / (256
// * 8) if p * channels is a multiple of 8; rounded up.
extern "C" __global__ void __launch_bounds__(THREADS) patch(const __grid_constant__ PatchArgs args) {
    u32 p = args.patch, length = p * args.channels, across = args.width / p;
    u32 step = length % RUN == 0 ? RUN : 1;
    u64 total = static_cast<u64>(args.y.rows) * args.y.cols;
    u64 to = (static_cast<u64>(blockIdx.x) * THREADS + threadIdx.x) * step;
    if (to >= total) return;
    u64 stretch = to / length;
    u32 offset = static_cast<u32>(to % length);
    u64 from;
    if (args.inverse) {
        // `stretch` counts (sample and row of pixels, patch across).
        u64 row = stretch / across, j = stretch % across;
        from = ((row / p * across + j) * p + row % p) * length + offset;
    } else {
        // `stretch` counts (sample and row of patches, patch across, row within the patch).
        u64 row = stretch % p, patch = stretch / p;
        from = ((patch / across * p + row) * across + patch % across) * length + offset;
    }
    u64 x = place(args.x.at, args.x.stride, args.calls), y = place(args.y.at, args.y.stride, args.calls);
    if (step == RUN) {
        float v[RUN];
        load_run(x, from, args.x.half, v);
        store_run(y, to, args.y.half, v);
    } else {
        store(y, to, args.y.half, load(x, from, args.x.half));
    }
}

struct ConcatArgs {
    u64 calls;
    Floats a;
    Floats b; // its rows repeat
    Floats y;
};
static_assert(sizeof(ConcatArgs) == 104, "ConcatArgs");

// Columns of a, then of b, whose rows repeat. Grid: elements / 256, or elements / (256 * 8) if both have multiples of 8 columns;
// rounded up.
extern "C" __global__ void __launch_bounds__(THREADS) concat(const __grid_constant__ ConcatArgs args) {
    const u32 cols = args.y.cols, of_a = args.a.cols;
    const u32 step = (of_a | args.b.cols) % RUN == 0 ? RUN : 1;
    const u64 to = (static_cast<u64>(blockIdx.x) * THREADS + threadIdx.x) * step;
    if (to >= static_cast<u64>(args.y.rows) * cols) return;
    const u64 row = to / cols;
    const u32 col = static_cast<u32>(to % cols);
    const bool first = col < of_a;
    const Floats &x = first ? args.a : args.b;
    const u64 from = first ? row * of_a + col : row % args.b.rows * args.b.cols + (col - of_a);
    const u64 x_at = place(x.at, x.stride, args.calls), y_at = place(args.y.at, args.y.stride, args.calls);
    if (step == RUN) {
        float v[RUN];
        load_run(x_at, from, x.half, v);
        store_run(y_at, to, args.y.half, v);
    } else {
        store(y_at, to, args.y.half, load(x_at, from, x.half));
    }
}

struct SliceArgs {
    u64 calls;
    Floats x;
    Floats y;
    u32 first; // column of x
    u32 pad;
};
static_assert(sizeof(SliceArgs) == 80, "SliceArgs");

// Columns of x from `first` on, as many as y has. Grid: elements of y / 256, or elements / (256 * 8) if all three numbers
// of columns are multiples of 8; rounded up.
extern "C" __global__ void __launch_bounds__(THREADS) slice(const __grid_constant__ SliceArgs args) {
    const u32 cols = args.y.cols, step = (args.x.cols | cols | args.first) % RUN == 0 ? RUN : 1;
    const u64 to = (static_cast<u64>(blockIdx.x) * THREADS + threadIdx.x) * step;
    if (to >= static_cast<u64>(args.y.rows) * cols) return;
    const u64 from = to / cols * args.x.cols + args.first + to % cols;
    const u64 x = place(args.x.at, args.x.stride, args.calls), y = place(args.y.at, args.y.stride, args.calls);
    if (step == RUN) {
        float v[RUN];
        load_run(x, from, args.x.half, v);
        store_run(y, to, args.y.half, v);
    } else {
        store(y, to, args.y.half, load(x, from, args.x.half));
    }
}

struct PadRowsArgs {
    u64 calls;
    Floats x;
    Floats y;
    u64 table;   // (at least first + tokens, cols), f16 or f32
    u64 lengths; // u32 per run of `tokens` rows
    u32 table_half;
    u32 tokens;
    u32 first; // the row of the table for the first of a run
    u32 pad;
};
static_assert(sizeof(PadRowsArgs) == 104, "PadRowsArgs");

// Rows of a table in place of those of x behind the first `lengths` of each run. Not in the step loop. Grid: elements / 256,
// rounded up.
extern "C" __global__ void __launch_bounds__(THREADS) pad_rows(const __grid_constant__ PadRowsArgs args) {
    const u32 cols = args.y.cols;
    const u64 i = static_cast<u64>(blockIdx.x) * THREADS + threadIdx.x;
    if (i >= static_cast<u64>(args.y.rows) * cols) return;
    const u32 row = static_cast<u32>(i / cols), token = row % args.tokens;
    const bool own = token < global<const u32>(args.lengths)[row / args.tokens];
    const u64 of_table = static_cast<u64>(args.first + token) * cols + i % cols;
    const float v = own ? load(place(args.x.at, args.x.stride, args.calls), i, args.x.half)
                        : load(args.table, of_table, args.table_half);
    store(place(args.y.at, args.y.stride, args.calls), i, args.y.half, v);
}
