// variants: ROW=256,512,1280,2048,4096,8192,0
// Float activations to integer codes, rows of up to ROW columns.
//
// The floor is one read of the floats and one write of the codes. With a scale per row that is what happens: a team of
// threads holds its row in registers. With a scale per sample the floats are read twice, once for the extent; between
// the passes, samples of up to some ten megabytes stay in the second-level cache.
#include "quantize.cuh"

struct QuantizeArgs {
    u64 calls;
    Floats x;
    QuantizeTo y;
    u32 rows_per_team;
    u32 pad;
};
static_assert(sizeof(QuantizeArgs) == 152, "QuantizeArgs");

// Codes of rows (rows, cols). Grid: rows / (teams per block * rows_per_team), rounded up.
extern "C" __global__ void __launch_bounds__(ROW_THREADS, ROW_BLOCKS)
    quantize_rows(const __grid_constant__ QuantizeArgs args) {
    u64 x = place(args.x.at, args.x.stride, args.calls);
    bool half = args.x.half;
    Encoder<TEAM> encoder(args.y, args.calls);
    u32 teams = ROW_THREADS / TEAM;
    u32 first = (blockIdx.x * teams + team_of_thread<TEAM>()) * args.rows_per_team;
    u32 end = min(first + args.rows_per_team, args.x.rows);
    for (u32 index = first; index < end; index++) {
        u64 base = static_cast<u64>(index) * args.x.cols;
        auto row = row_of<TEAM, RUNS>(
            args.x.cols, [=](float (&v)[RUN], Columns c) { load_columns(x, base, half, true, c, v); });
        encoder.encode(row, index);
    }
}

struct TurnedArgs {
    u64 calls;
    Floats x;
    QuantizeTo y;
    u64 factors; // f32
    u32 block;
    u32 pad;
};
static_assert(sizeof(TurnedArgs) == 160, "TurnedArgs");

// A run of a row after the Hadamard transform of blocks of `block` columns, a power of two, at least RUN and at most what
// a warp holds: steps of up to RUN / 2 columns lie within the run, longer ones go to other lanes. All lanes that hold a
// column of the block call, and the row has whole blocks, so the lanes named are those that are there. Sums and
// differences are taken in the CPU's order (backend/cpu/turn.rs).
DEVICE void rotate_run(u32 block, float (&v)[RUN]) {
#pragma unroll
    for (u32 half = 1; half < RUN; half *= 2) {
#pragma unroll
        for (u32 k = 0; k < RUN; k++) {
            if ((k & half) == 0) {
                float a = v[k], b = v[k + half];
                v[k] = __fadd_rn(a, b);
                v[k + half] = __fsub_rn(a, b);
            }
        }
    }
    u32 lanes = block / RUN, lane = threadIdx.x % WARP;
    u32 named = (lanes == WARP ? ~0u : (1u << lanes) - 1) << (lane & ~(lanes - 1));
    for (u32 half = 1; half < lanes; half *= 2) {
        bool upper = (lane & half) != 0;
#pragma unroll
        for (u32 k = 0; k < RUN; k++) {
            float other = __shfl_xor_sync(named, v[k], half);
            v[k] = upper ? __fsub_rn(other, v[k]) : __fadd_rn(v[k], other);
        }
    }
}

// Codes of rows (rows, cols), each multiplied by the factors of its columns and rotated in blocks before. Grid: rows / teams
// per block, rounded up.
extern "C" __global__ void __launch_bounds__(ROW_THREADS, ROW_BLOCKS)
    quantize_turned(const __grid_constant__ TurnedArgs args) {
    u64 x = place(args.x.at, args.x.stride, args.calls), factors = args.factors;
    bool half = args.x.half;
    u32 index = blockIdx.x * (ROW_THREADS / TEAM) + team_of_thread<TEAM>(), block = args.block;
    if (index >= args.x.rows) return;
    u64 base = static_cast<u64>(index) * args.x.cols;
    auto row = row_of<TEAM, RUNS>(args.x.cols, [=](float (&v)[RUN], Columns c) {
        float f[RUN];
        load_columns(x, base, half, true, c, v);
        load_columns(factors, 0, false, true, c, f);
#pragma unroll
        for (u32 k = 0; k < RUN; k++) v[k] = __fmul_rn(v[k], f[k]);
        if (block != 0) rotate_run(block, v);
    });
    Encoder<TEAM>(args.y, args.calls).encode(row, index);
}

struct ExtentArgs {
    u64 calls;
    Floats x;
    u64 extents; // (samples, blocks) of (lowest, highest)
    u32 samples;
    u32 blocks;
};
static_assert(sizeof(ExtentArgs) == 56, "ExtentArgs");

constexpr u32 EXTENT_THREADS = 256;

// Lowest and highest value of each part of each sample, a sample being one piece of memory. Grid: samples * blocks.
extern "C" __global__ void __launch_bounds__(EXTENT_THREADS) sample_extent(const __grid_constant__ ExtentArgs args) {
    u64 x = place(args.x.at, args.x.stride, args.calls);
    bool half = args.x.half;
    u64 length = static_cast<u64>(args.x.rows / args.samples) * args.x.cols;
    u32 sample = blockIdx.x / args.blocks, block = blockIdx.x % args.blocks;
    u64 base = sample * length;
    u64 runs = (length + RUN - 1) / RUN;
    bool packed = length % RUN == 0;
    float low = __int_as_float(0x7f800000), high = -low;
    for (u64 run = block * EXTENT_THREADS + threadIdx.x; run < runs; run += args.blocks * EXTENT_THREADS) {
        if (packed) {
            float v[RUN];
            load_run(x, base + run * RUN, half, v);
#pragma unroll
            for (u32 k = 0; k < RUN; k++) {
                low = fminf(low, v[k]);
                high = fmaxf(high, v[k]);
            }
        } else {
            for (u64 i = run * RUN; i < min(run * RUN + RUN, length); i++) {
                float v = load(x, base + i, half);
                low = fminf(low, v);
                high = fmaxf(high, v);
            }
        }
    }
    __shared__ float2 parts[EXTENT_THREADS / WARP];
    low = warp_min(low);
    high = warp_max(high);
    if (threadIdx.x % WARP == 0) parts[threadIdx.x / WARP] = make_float2(low, high);
    __syncthreads();
    if (threadIdx.x == 0) {
        for (u32 i = 1; i < EXTENT_THREADS / WARP; i++) {
            low = fminf(low, parts[i].x);
            high = fmaxf(high, parts[i].y);
        }
        global<float2>(args.extents)[blockIdx.x] = make_float2(low, high);
    }
}
