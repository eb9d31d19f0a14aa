// Tensors and rows of them as values; embeddings of timesteps and positions, biases of distances. None of them runs in the
// step loop, so they are written for accuracy: sines of f64 angles, rounded once.
#include "common.cuh"

constexpr u32 THREADS = 128;

struct EmbeddingArgs {
    u64 calls;
    Floats y;
    u64 table; // (any, y.cols), f16 or f32
    u64 index; // u32 per row of y
    u64 index_stride;
    u32 table_half;
    u32 pad;
};
static_assert(sizeof(EmbeddingArgs) == 72, "EmbeddingArgs");

// Rows of a table. Grid: elements of y / 128, rounded up.
extern "C" __global__ void __launch_bounds__(THREADS) embedding(const __grid_constant__ EmbeddingArgs args) {
    u32 cols = args.y.cols;
    u64 i = static_cast<u64>(blockIdx.x) * THREADS + threadIdx.x;
    if (i >= static_cast<u64>(args.y.rows) * cols) return;
    u32 row = global<const u32>(place(args.index, args.index_stride, args.calls))[i / cols];
    float v = load(args.table, static_cast<u64>(row) * cols + i % cols, args.table_half);
    store(place(args.y.at, args.y.stride, args.calls), i, args.y.half, v);
}

struct ParameterArgs {
    u64 calls;
    Floats y;
    u64 tensor; // as many elements as y, f16 or f32
    u32 tensor_half;
    u32 pad;
};
static_assert(sizeof(ParameterArgs) == 56, "ParameterArgs");

// A tensor's elements. Grid: elements of y / 128, rounded up.
extern "C" __global__ void __launch_bounds__(THREADS) parameter(const __grid_constant__ ParameterArgs args) {
    u64 i = static_cast<u64>(blockIdx.x) * THREADS + threadIdx.x;
    if (i >= static_cast<u64>(args.y.rows) * args.y.cols) return;
    store(place(args.y.at, args.y.stride, args.calls), i, args.y.half, load(args.tensor, i, args.tensor_half));
}

// The sine of x, or its cosine: to 1e-13 for angles up to 1e5. The library's own works for any angle, for which it
// needs a table and a stack frame.
DEVICE double wave(double x, bool cosine) {
    double n = rint(x * 0.6366197723675814); // quarter turns
    // pi / 2 in three parts.
    double r = fma(-n, 1.5707963267948966, x);
    r = fma(-n, 6.123233995736766e-17, r);
    r = fma(-n, -1.4973849048591833e-33, r);
    double z = r * r;
    double s = 1.0 / 1307674368000.0, c = 1.0 / 20922789888000.0;
    s = fma(-s, z, 1.0 / 6227020800.0), c = fma(-c, z, 1.0 / 87178291200.0);
    s = fma(-s, z, 1.0 / 39916800.0), c = fma(-c, z, 1.0 / 479001600.0);
    s = fma(-s, z, 1.0 / 362880.0), c = fma(-c, z, 1.0 / 3628800.0);
    s = fma(-s, z, 1.0 / 5040.0), c = fma(-c, z, 1.0 / 40320.0);
    s = fma(-s, z, 1.0 / 120.0), c = fma(-c, z, 1.0 / 720.0);
    s = fma(-s, z, 1.0 / 6.0), c = fma(-c, z, 1.0 / 24.0);
    s = fma(-s, z, 1.0), c = fma(-c, z, 0.5);
    s *= r, c = fma(-c, z, 1.0);
    // sin(x) for quarter 0 is s, then c, -s, -c; a cosine is a quarter ahead.
    u32 quarter = static_cast<u32>(static_cast<i32>(n)) + (cosine ? 1 : 0);
    double v = quarter % 2 == 0 ? s : c;
    return quarter / 2 % 2 == 0 ? v : -v;
}

struct TimestepEmbeddingArgs {
    u64 calls;
    Floats y; // a row per number
    u64 t;    // f32
    u64 t_stride;
    u32 cos_first;
    float shift;
};
static_assert(sizeof(TimestepEmbeddingArgs) == 64, "TimestepEmbeddingArgs");

// Sinusoids of timesteps. Frequencies and angles are rounded to f32 where diffusers rounds them. Grid: elements of y /
// 128, rounded up.
extern "C" __global__ void __launch_bounds__(THREADS)
    timestep_embedding(const __grid_constant__ TimestepEmbeddingArgs args) {
    u32 cols = args.y.cols, half = cols / 2;
    u64 i = static_cast<u64>(blockIdx.x) * THREADS + threadIdx.x;
    if (i >= static_cast<u64>(args.y.rows) * cols) return;
    u32 column = static_cast<u32>(i % cols), feature = column % half;
    const float log_10000 = 9.210340371976184f;
    float exponent = __fdiv_rn(__fmul_rn(-log_10000, static_cast<float>(feature)),
                               __fsub_rn(static_cast<float>(half), args.shift));
    float t = global<const float>(place(args.t, args.t_stride, args.calls))[i / cols];
    float angle = __fmul_rn(t, static_cast<float>(exp(static_cast<double>(exponent))));
    float v = static_cast<float>(wave(angle, (column < half) == (args.cos_first != 0)));
    store(place(args.y.at, args.y.stride, args.calls), i, args.y.half, v);
}

struct PositionEmbeddingArgs {
    u64 calls;
    Floats y; // (height * width, cols)
    u32 height;
    u32 width;
    u32 first[2]; // positions of the first column and of the first row
    u32 span[2];  // what the positions of columns, and of rows, span
    float interpolation;
    u32 pad;
};
static_assert(sizeof(PositionEmbeddingArgs) == 72, "PositionEmbeddingArgs");

// Sinusoids of grid positions: first half of the features columns, second half rows; each sines, then cosines. Grid:
// elements of y / 128, rounded up.
extern "C" __global__ void __launch_bounds__(THREADS)
    position_embedding(const __grid_constant__ PositionEmbeddingArgs args) {
    u32 cols = args.y.cols, quarter = cols / 4;
    u64 i = static_cast<u64>(blockIdx.x) * THREADS + threadIdx.x;
    if (i >= static_cast<u64>(args.y.rows) * cols) return;
    u32 token = static_cast<u32>(i / cols), feature = static_cast<u32>(i % cols);
    bool of_column = feature < 2 * quarter;
    u32 at = of_column ? token % args.width : token / args.width;
    double size = of_column ? args.width : args.height;
    double first = of_column ? args.first[0] : args.first[1], span = of_column ? args.span[0] : args.span[1];
    double position = (first + at / (size / span)) / args.interpolation;
    const double log_10000 = 9.210340371976184;
    double angle = position * exp(-log_10000 * (feature % quarter) / quarter);
    float v = static_cast<float>(wave(angle, feature / quarter % 2 == 1));
    store(place(args.y.at, args.y.stride, args.calls), i, args.y.half, v);
}

constexpr u32 HALF_BUCKETS = 32; // most buckets of one half

struct RelativeBiasArgs {
    u64 calls;
    Floats y;  // (heads * t, t)
    u64 table; // (2 half_buckets, heads), f16 or f32
    u32 table_half;
    u32 half_buckets;
    u32 starts[HALF_BUCKETS]; // the least distance of each bucket of a half
};
static_assert(sizeof(RelativeBiasArgs) == 184, "RelativeBiasArgs");

// Biases of attention by distance: a key's bucket is the last that begins at its distance from the query or before; the
// second half of the buckets is for keys behind the query. Grid: elements of y / 128, rounded up.
extern "C" __global__ void __launch_bounds__(THREADS) relative_bias(const __grid_constant__ RelativeBiasArgs args) {
    u32 tokens = args.y.cols, heads = args.y.rows / tokens;
    u64 i = static_cast<u64>(blockIdx.x) * THREADS + threadIdx.x;
    if (i >= static_cast<u64>(args.y.rows) * tokens) return;
    u32 row = static_cast<u32>(i / tokens), key = static_cast<u32>(i % tokens), query = row % tokens;
    u32 distance = key > query ? key - query : query - key;
    u32 bucket = key > query ? args.half_buckets : 0;
#pragma unroll
    for (u32 k = 1; k < HALF_BUCKETS; k++) bucket += args.starts[k] <= distance ? 1 : 0;
    float v = load(args.table, static_cast<u64>(bucket) * heads + row / tokens, args.table_half);
    store(place(args.y.at, args.y.stride, args.calls), i, args.y.half, v);
}
