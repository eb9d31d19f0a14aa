// Softmax attention of narrow values, for heads of more features than registers hold: queries and keys pass through
// shared memory in pieces, and the result's columns are split over blocks, each of which works the scores out again.
// With n blocks that is (1 + n) / 2 times the floor of attention.cu.
#include "softmax.cuh"

constexpr u32 COLUMNS = 128; // of the result, per block
constexpr u32 DEPTH = 64;    // features per piece of queries and keys

// Heads of any size. A warp has 16 queries and 128 columns of their results. Grid: samples * heads * column_tiles of
// 128 columns * query_tiles of 64 queries.
extern "C" __global__ void __launch_bounds__(THREADS, 3)
    attention_wide(const __grid_constant__ AttentionArgs args) {
    constexpr u32 KEYS = 64, PIECE = KEYS * (DEPTH + 8);
    // Twice: a piece of queries, then one of keys; or a tile of values.
    __shared__ __align__(16) u16 pieces[2][2 * PIECE];
    static_assert(KEYS * (COLUMNS + 8) <= 2 * PIECE, "a tile of values");
    Work work(args, THREADS / WARP * 16);
    bool aligned = aligned_heads(args);
    u32 warp = threadIdx.x / WARP, column = work.column * COLUMNS;
    // The products of a tile of keys take `steps` pieces of features; then come its values.
    u32 steps = (args.e + DEPTH - 1) / DEPTH;
    u32 stages = (work.keys + KEYS - 1) / KEYS * (steps + 1);

    auto fetch = [&](u32 stage) {
        u16 *to = pieces[stage % 2];
        u32 key = stage / (steps + 1) * KEYS, step = stage % (steps + 1), rows = work.keys - key;
        if (step < steps) {
            u32 feature = step * DEPTH, left = args.e - feature;
            u64 q = element(args.q, work.q_row + work.query, work.first + feature);
            u64 k = element(args.k, work.k_row + key, work.first + feature);
            load_tile<KEYS, DEPTH>(to, work.q, q, args.q.cols, args.queries - work.query, left, aligned);
            load_tile<KEYS, DEPTH>(to + PIECE, work.k, k, args.k.cols, rows, left, aligned);
        } else {
            u64 v = element(args.v, work.k_row + key, work.first + column);
            load_tile<KEYS, COLUMNS>(to, work.v, v, args.v.cols, rows, args.e - column, aligned);
        }
        copy_commit();
    };
    if (stages > 0) fetch(0);

    State state;
    float o[COLUMNS / 8][4] = {};
    Scores<KEYS> s = {};
    for (u32 stage = 0; stage < stages; stage++) {
        copy_wait<0>();
        __syncthreads();
        if (stage + 1 < stages) fetch(stage + 1);
        const u16 *piece = pieces[stage % 2];
        if (stage % (steps + 1) < steps) {
#pragma unroll
            for (u32 step = 0; step < DEPTH / 16; step++) {
                u32 a[4];
                load_matrices(a, matrix_row<DEPTH>(piece, warp * 16, step * 16, true));
                if (args.scale < 0.0f) {
#pragma unroll
                    for (u32 i = 0; i < 4; i++) a[i] ^= 0x80008000;
                }
#pragma unroll
                for (u32 n = 0; n < KEYS / 16; n++) {
                    u32 b[4];
                    load_matrices(b, matrix_row<DEPTH>(piece + PIECE, n * 16, step * 16, false));
                    multiply(s[2 * n], a, b[0], b[1]);
                    multiply(s[2 * n + 1], a, b[2], b[3]);
                }
            }
            continue;
        }
        float shrink[2];
        soften<KEYS>(args, work, work.query + warp * 16, stage / (steps + 1) * KEYS, s, state, shrink);
#pragma unroll
        for (u32 i = 0; i < COLUMNS / 8 * 4; i++) o[i / 4][i % 4] *= shrink[i % 4 / 2];
#pragma unroll
        for (u32 step = 0; step < KEYS / 16; step++) {
            u32 a[4];
            weights_of<KEYS>(s, step, a);
#pragma unroll
            for (u32 n = 0; n < COLUMNS / 16; n++) {
                u32 b[4];
                load_matrices_transposed(b, matrix_row<COLUMNS>(piece, step * 16, n * 16, true));
                multiply(o[2 * n], a, b[0], b[1]);
                multiply(o[2 * n + 1], a, b[2], b[3]);
            }
        }
#pragma unroll
        for (u32 i = 0; i < KEYS / 8 * 4; i++) s[i / 4][i % 4] = 0.0f;
    }
    write_result<COLUMNS>(args, work, work.query + warp * 16, column, state, o);
}
