// Softmax attention whose probabilities are rounded to a grid, in f32 whatever the operands are: what a research project
// computes, to look at its pictures, so it is written to be right and not to be fast. A code needs the total of all weights
// before the first is rounded, so keys are walked over twice; see src/backend/cpu/attention/grid.rs.
#include "attention.cuh"

struct GridArgs {
    AttentionArgs attention;
    Fixed fixed; // pairs whose first number is the grid's step; or none: a part of the highest probability
    float top;   // the highest code
    u32 pad;
};
static_assert(sizeof(GridArgs) == 224, "GridArgs");

constexpr u32 THREADS = 128;
constexpr u32 QUERIES = 32;
constexpr u32 KEYS = 32;
constexpr u32 DEPTH = 32;    // features at a time
constexpr u32 COLUMNS = 128; // of the result, per block
constexpr float MINUS_INFINITY = -__builtin_huge_valf();

// Heads of any size; operands f16 or f32. Scores: a thread has queries 2 i, 2 i + 1 and keys j + 8 l; weights: four threads
// have a query, eight keys each; results: a thread has eight queries and four columns. Grid: samples * heads * column_tiles
// of 128 columns * query_tiles of 32 queries.
extern "C" __global__ void __launch_bounds__(THREADS, 4) attention_grid(const __grid_constant__ GridArgs grid) {
    __shared__ float q[QUERIES][DEPTH + 1], k[KEYS][DEPTH + 1];
    __shared__ float weights[QUERIES][KEYS + 1];
    __shared__ float v[KEYS][COLUMNS];
    __shared__ float units[QUERIES];
    const AttentionArgs &args = grid.attention;
    Work work(args, QUERIES);
    u32 thread = threadIdx.x, first_column = work.column * COLUMNS;
    float scale = args.scale * LOG2_E;
    float *mine = &weights[thread / 4][thread % 4 * 8];

    // The scores of all queries against the keys from `key`, times log2 e; minus infinity where a query sees none.
    auto scores = [&](u32 key) {
        float s[2][4] = {};
        for (u32 feature = 0; feature < args.e; feature += DEPTH) {
            __syncthreads(); // the piece before has been used
            for (u32 i = thread; i < QUERIES * DEPTH; i += THREADS) {
                u32 row = i / DEPTH, column = feature + i % DEPTH;
                u64 q_at = element(args.q, work.q_row + work.query + row, work.first + column);
                u64 k_at = element(args.k, work.k_row + key + row, work.first + column);
                bool q_valid = column < args.e && work.query + row < args.queries;
                bool k_valid = column < args.e && key + row < work.keys;
                q[row][i % DEPTH] = q_valid ? load(work.q, q_at, args.q.half) : 0.0f;
                k[row][i % DEPTH] = k_valid ? load(work.k, k_at, args.k.half) : 0.0f;
            }
            __syncthreads();
#pragma unroll 8
            for (u32 j = 0; j < DEPTH; j++) {
                float a[2] = {q[thread / 8 * 2][j], q[thread / 8 * 2 + 1][j]};
#pragma unroll
                for (u32 l = 0; l < 4; l++) {
                    float b = k[thread % 8 + l * 8][j];
                    s[0][l] = fmaf(a[0], b, s[0][l]);
                    s[1][l] = fmaf(a[1], b, s[1][l]);
                }
            }
        }
#pragma unroll
        for (u32 i = 0; i < 8; i++) {
            u32 row = thread / 8 * 2 + i / 4, column = thread % 8 + i % 4 * 8;
            u32 query = work.query + row, at_key = key + column;
            bool valid = query < args.queries && at_key < work.keys && !(args.causal && at_key > query);
            float score = s[i / 4][i % 4] * scale;
            if (valid && args.bias != 0) {
                u64 at = (static_cast<u64>(work.head) * args.queries + query) * args.keys + at_key;
                score = fmaf(global<const float>(args.bias)[at], LOG2_E, score);
            }
            weights[row][column] = valid ? score : MINUS_INFINITY;
        }
    };

    float highest = MINUS_INFINITY, total = 0.0f;
    for (u32 key = 0; key < work.keys; key += KEYS) {
        scores(key);
        __syncthreads();
        float before = highest;
#pragma unroll
        for (u32 i = 0; i < 8; i++) highest = fmaxf(highest, mine[i]);
        highest = fmaxf(highest, __shfl_xor_sync(ALL_LANES, highest, 1));
        highest = fmaxf(highest, __shfl_xor_sync(ALL_LANES, highest, 2));
        float origin = highest == MINUS_INFINITY ? 0.0f : highest, sum = 0.0f;
#pragma unroll
        for (u32 i = 0; i < 8; i++) sum += exp2_fast(mine[i] - origin);
        total = fmaf(total, exp2_fast(before - origin), sum);
    }
    total += __shfl_xor_sync(ALL_LANES, total, 1);
    total += __shfl_xor_sync(ALL_LANES, total, 2);

    // A weight has the code round(weight * factor), which is worth `unit`.
    float origin = highest == MINUS_INFINITY ? 0.0f : highest, factor = grid.top;
    float unit = total > 0.0f ? __fdiv_rn(1.0f, total * grid.top) : 0.0f;
    if (grid.fixed.at != 0) {
        u64 at = place(grid.fixed.at, grid.fixed.stride, args.calls);
        unit = global<const float2>(at)[work.q_row / grid.fixed.rows_per_entry].x;
        factor = total > 0.0f ? __fdiv_rn(1.0f, total * unit) : 0.0f;
    }
    if (thread % 4 == 0) units[thread / 4] = unit;
    __syncthreads(); // the loop has barriers, but where no key is seen it does not run

    float o[8][4] = {};
    for (u32 key = 0; key < work.keys; key += KEYS) {
        scores(key);
        for (u32 i = thread; i < KEYS * COLUMNS; i += THREADS) {
            u32 row = i / COLUMNS, column = first_column + i % COLUMNS;
            u64 at = element(args.v, work.k_row + key + row, work.first + column);
            bool valid = key + row < work.keys && column < args.e;
            v[row][i % COLUMNS] = valid ? load(work.v, at, args.v.half) : 0.0f;
        }
        __syncthreads();
#pragma unroll
        for (u32 i = 0; i < 8; i++) mine[i] = rintf(fminf(exp2_fast(mine[i] - origin) * factor, grid.top));
        __syncthreads();
        u32 row = thread / WARP * 8, column = thread % WARP * 4;
#pragma unroll 4
        for (u32 j = 0; j < KEYS; j++) {
            float4 b = *reinterpret_cast<const float4 *>(&v[j][column]);
#pragma unroll
            for (u32 i = 0; i < 8; i++) {
                float a = weights[row + i][j];
                o[i][0] = fmaf(a, b.x, o[i][0]);
                o[i][1] = fmaf(a, b.y, o[i][1]);
                o[i][2] = fmaf(a, b.z, o[i][2]);
                o[i][3] = fmaf(a, b.w, o[i][3]);
            }
        }
    }
    u64 y = place(args.y.at, args.y.stride, args.calls);
#pragma unroll
    for (u32 i = 0; i < 8 * 4; i++) {
        u32 row = thread / WARP * 8 + i / 4, column = first_column + thread % WARP * 4 + i % 4;
        if (work.query + row >= args.queries || column >= args.e) continue;
        u64 at = element(args.y, work.q_row + work.query + row, work.first + column);
        store(y, at, args.y.half, o[i / 4][i % 4] * units[row]);
    }
}
