// Softmax attention, tiled, with an online softmax (Milakov and Gimelshein 2018; FlashAttention, Dao et al. 2022):
// scores exist for one tile of keys at a time and never leave the registers.
//
// The floor is the matrix products, 4 e operations per query and key: the tensor cores do them in f16 with f32 sums. The
// next tile of keys and values is copied to shared memory while this one is worked on. A query's result depends on its
// own sample only, and is the same in every kernel that may be launched for a given size of head.
//
// Three designs: heads of up to 160 features keep a query's features and its result in registers; larger heads are
// fed through shared memory in pieces, and their output columns are split over blocks, each of which works the scores
// out again; values in f32 are multiplied as such, without tensor cores.
#include "attention.cuh"

constexpr u32 THREADS = 128;
constexpr float MINUS_INFINITY = -__builtin_huge_valf();

// Copies a tile of a matrix of halves into shared memory, padded with zeros: `rows` and `columns` exist, of ROWS and
// COLUMNS. Rows in shared memory are 16 bytes longer than the tile's, an odd number of 16-byte units, so that the eight
// rows of an 8x8 matrix lie in different banks. If rows are not `aligned`, the copy is done by element.
template <u32 ROWS, u32 COLUMNS>
DEVICE void load_tile(u16 *to, u64 at, u64 first, u32 stride, u32 rows, u32 columns, bool aligned) {
    constexpr u32 UNITS = COLUMNS / 8, PASS = THREADS / UNITS; // rows at a time; threads may be left over
    u32 row = threadIdx.x / UNITS, column = threadIdx.x % UNITS * 8;
    if (row >= PASS) return;
    to += row * (COLUMNS + 8) + column;
    u64 from = at + (first + static_cast<u64>(row) * stride + column) * 2;
    if (aligned) {
        u32 unit = shared_address(to);
        bool valid = column < columns;
#pragma unroll
        for (u32 i = 0; i < (ROWS + PASS - 1) / PASS; i++) {
            if (ROWS % PASS == 0 || row + i * PASS < ROWS) {
                bool there = valid && row + i * PASS < rows;
                copy_async(unit + i * PASS * (COLUMNS + 8) * 2, there ? from : at, there);
                from += static_cast<u64>(PASS * 2) * stride;
            }
        }
        return;
    }
#pragma unroll 1
    for (; row < ROWS; row += PASS) {
#pragma unroll 1
        for (u32 k = 0; k < 8; k++) {
            to[k] = row < rows && column + k < columns ? global<const u16>(from)[k] : 0;
        }
        to += PASS * (COLUMNS + 8);
        from += static_cast<u64>(PASS * 2) * stride;
    }
}

// Address of this lane's row for `load_matrices` of a 16x16 tile at (row, column): matrices 1 and 2 are the ones below
// and beside the first if `down`, else the ones beside and below.
template <u32 COLUMNS>
DEVICE u32 matrix_row(const u16 *tile, u32 row, u32 column, bool down) {
    u32 lane = threadIdx.x % WARP, matrix = lane / 8;
    u32 below = down ? matrix % 2 : matrix / 2, beside = down ? matrix / 2 : matrix % 2;
    return shared_address(tile + (row + lane % 8 + below * 8) * (COLUMNS + 8) + column + beside * 8);
}

// Scores of 16 queries and KEYS keys in the layout of the tensor cores' results: s[n][i] belongs to query
// lane / 4 + 8 (i / 2) and key 8 n + 2 (lane % 4) + i % 2.
template <u32 KEYS>
using Scores = float[KEYS / 8][4];

// A query's softmax so far: the highest score in units of log 2, and this lane's part of the sum of weights.
struct State {
    float highest[2] = {MINUS_INFINITY, MINUS_INFINITY};
    float total[2] = {0.0f, 0.0f};
};

// Scores to weights exp(score * scale + bias - highest), in place. Returns by what earlier results shrink.
template <u32 KEYS>
DEVICE void soften(const AttentionArgs &args, const Work &work, u32 query, u32 key, Scores<KEYS> &s, State &state,
                   float (&shrink)[2]) {
    u32 lane = threadIdx.x % WARP;
    // A scale of 0 would turn minus infinity into NaN; this one is as good.
    float scale = fmaxf(fabsf(args.scale) * LOG2_E, 1e-30f);
    // Relative to this lane's first key, so that what is compared with `limit` below are constants.
    query += lane / 4;
    key += lane % 4 * 2;
    if (args.bias != 0) {
#pragma unroll
        for (u32 r = 0; r < 2; r++) {
            u32 row = query + 8 * r;
            u64 from = args.bias + ((static_cast<u64>(work.head) * args.queries + row) * args.keys + key) * 4;
            i32 limit = row < args.queries ? static_cast<i32>(work.keys - key) : 0;
#pragma unroll
            for (u32 i = 0; i < KEYS / 8 * 2; i++) {
                i32 at = i / 2 * 8 + i % 2;
                float bias = at < limit ? global<const float>(from)[at] * LOG2_E : 0.0f;
                s[i / 2][2 * r + i % 2] = fmaf(s[i / 2][2 * r + i % 2], scale, bias);
            }
        }
        scale = 1.0f;
    }
    if (key + KEYS > work.keys || args.causal) {
#pragma unroll
        for (u32 r = 0; r < 2; r++) {
            u32 end = args.causal ? min(work.keys, query + 8 * r + 1) : work.keys;
            i32 limit = static_cast<i32>(end - key);
#pragma unroll
            for (u32 i = 0; i < KEYS / 8 * 2; i++) {
                i32 at = i / 2 * 8 + i % 2;
                if (at >= limit) s[i / 2][2 * r + i % 2] = MINUS_INFINITY;
            }
        }
    }
#pragma unroll
    for (u32 r = 0; r < 2; r++) {
        float highest = MINUS_INFINITY;
#pragma unroll
        for (u32 n = 0; n < KEYS / 8; n++) highest = fmaxf(highest, fmaxf(s[n][2 * r], s[n][2 * r + 1]));
        highest = fmaxf(highest, __shfl_xor_sync(ALL_LANES, highest, 1));
        highest = fmaxf(highest, __shfl_xor_sync(ALL_LANES, highest, 2));
        highest = fmaxf(highest * scale, state.highest[r]);
        // Where nothing has been seen yet, any finite number will do.
        float origin = highest == MINUS_INFINITY ? 0.0f : highest;
        shrink[r] = exp2_fast(state.highest[r] - origin);
        state.highest[r] = highest;
        float total = 0.0f;
#pragma unroll
        for (u32 n = 0; n < KEYS / 8; n++) {
            s[n][2 * r] = exp2_fast(fmaf(s[n][2 * r], scale, -origin));
            s[n][2 * r + 1] = exp2_fast(fmaf(s[n][2 * r + 1], scale, -origin));
            total += s[n][2 * r] + s[n][2 * r + 1];
        }
        state.total[r] = fmaf(state.total[r], shrink[r], total);
    }
}

// Weights of 16 queries and 16 keys as a tensor core's left operand.
template <u32 KEYS>
DEVICE void weights_of(const Scores<KEYS> &s, u32 step, u32 (&a)[4]) {
    a[0] = half2_of(s[2 * step][0], s[2 * step][1]);
    a[1] = half2_of(s[2 * step][2], s[2 * step][3]);
    a[2] = half2_of(s[2 * step + 1][0], s[2 * step + 1][1]);
    a[3] = half2_of(s[2 * step + 1][2], s[2 * step + 1][3]);
}

// Divides 16 queries' results by their sums of weights and stores the columns below `e`.
template <u32 COLUMNS>
DEVICE void write_result(const AttentionArgs &args, const Work &work, u32 query, u32 first, const State &state,
                         const float (&o)[COLUMNS / 8][4]) {
    u32 lane = threadIdx.x % WARP;
    u64 y = place(args.y.at, args.y.stride, args.calls);
    bool half = args.y.half;
#pragma unroll
    for (u32 r = 0; r < 2; r++) {
        float total = state.total[r];
        total += __shfl_xor_sync(ALL_LANES, total, 1);
        total += __shfl_xor_sync(ALL_LANES, total, 2);
        float inverse = total > 0.0f ? 1.0f / total : 0.0f;
        u32 row = query + lane / 4 + 8 * r;
        if (row >= args.queries) continue;
        u64 base = element(args.y, work.q_row + row, work.first);
        bool pairs = half && (args.y.cols | args.e) % 2 == 0;
#pragma unroll
        for (u32 n = 0; n < COLUMNS / 8; n++) {
            u32 column = first + n * 8 + lane % 4 * 2;
            float low = o[n][2 * r] * inverse, high = o[n][2 * r + 1] * inverse;
            if (pairs && column < args.e) {
                *global<u32>(y + (base + column) * 2) = half2_of(low, high);
            } else {
                if (column < args.e) store(y, base + column, half, low);
                if (column + 1 < args.e) store(y, base + column + 1, half, high);
            }
        }
    }
}

// 16-byte copies need rows and heads that start on multiples of eight elements.
DEVICE bool aligned_heads(const AttentionArgs &args) {
    return (args.q.cols | args.k.cols | args.v.cols | args.e) % 8 == 0;
}

// Two neighbours of a query's features, 0 where there are none.
DEVICE u32 load_pair(u64 at, u64 base, u32 column, u32 end, bool aligned) {
    if (aligned) return column < end ? *global<const u32>(at + (base + column) * 2) : 0;
    u32 low = column < end ? global<const u16>(at)[base + column] : 0;
    u32 high = column + 1 < end ? global<const u16>(at)[base + column + 1] : 0;
    return low | high << 16;
}

// Heads of up to E features, E a multiple of 8. A warp has TILES times 16 queries, all of their features and all of
// their results. Grid: samples * heads * query_tiles of 64 TILES queries; shared memory: two tiles each of KEYS keys and
// values, 4 * KEYS rows of E (rounded up to 16) + 8 halves. KEYS depends on E alone, because results depend on it.
template <u32 E, u32 TILES, u32 KEYS>
DEVICE void attention(const AttentionArgs &args) {
    constexpr u32 D = (E + 15) / 16 * 16;
    constexpr u32 TILE = KEYS * (D + 8);
    extern __shared__ __align__(16) u16 tiles[]; // (2, keys then values, KEYS, D + 8)
    Work work(args, THREADS / WARP * 16 * TILES);
    bool aligned = aligned_heads(args);
    u32 lane = threadIdx.x % WARP, first = work.query + threadIdx.x / WARP * 16 * TILES;

    auto fetch = [&](u32 tile) {
        u16 *to = tiles + tile % 2 * 2 * TILE;
        u32 key = tile * KEYS, rows = work.keys - key;
        u64 k = element(args.k, work.k_row + key, work.first), v = element(args.v, work.k_row + key, work.first);
        load_tile<KEYS, D>(to, work.k, k, args.k.cols, rows, args.e, aligned);
        load_tile<KEYS, D>(to + TILE, work.v, v, args.v.cols, rows, args.e, aligned);
        copy_commit();
    };
    u32 n_tiles = (work.keys + KEYS - 1) / KEYS;
    if (n_tiles > 0) fetch(0);

    u32 q[TILES][D / 16][4];
#pragma unroll
    for (u32 i = 0; i < TILES * D / 16 * 4; i++) {
        u32 t = i / (D / 16 * 4), step = i / 4 % (D / 16), part = i % 4;
        u32 row = first + t * 16 + lane / 4 + part % 2 * 8, column = step * 16 + lane % 4 * 2 + part / 2 * 8;
        u64 base = element(args.q, work.q_row + row, work.first);
        u32 pair = row < args.queries ? load_pair(work.q, base, column, args.e, aligned) : 0;
        q[t][step][part] = args.scale < 0.0f ? pair ^ 0x80008000 : pair;
    }
    State state[TILES];
    float o[TILES][E / 8][4] = {};

    for (u32 tile = 0; tile < n_tiles; tile++) {
        // This tile has arrived, and every warp is done with the one before, which the next one overwrites.
        copy_wait_all();
        __syncthreads();
        if (tile + 1 < n_tiles) fetch(tile + 1);
        const u16 *k = tiles + tile % 2 * 2 * TILE, *v = k + TILE;

        Scores<KEYS> s[TILES] = {};
#pragma unroll
        for (u32 step = 0; step < D / 16; step++) {
#pragma unroll
            for (u32 n = 0; n < KEYS / 16; n++) {
                u32 b[4];
                load_matrices(b, matrix_row<D>(k, n * 16, step * 16, false));
#pragma unroll
                for (u32 t = 0; t < TILES; t++) {
                    multiply(s[t][2 * n], q[t][step], b[0], b[1]);
                    multiply(s[t][2 * n + 1], q[t][step], b[2], b[3]);
                }
            }
        }
#pragma unroll
        for (u32 t = 0; t < TILES; t++) {
            float shrink[2];
            soften<KEYS>(args, work, first + t * 16, tile * KEYS, s[t], state[t], shrink);
#pragma unroll
            for (u32 i = 0; i < E / 8 * 4; i++) o[t][i / 4][i % 4] *= shrink[i % 4 / 2];
        }
#pragma unroll
        for (u32 step = 0; step < KEYS / 16; step++) {
            u32 a[TILES][4];
#pragma unroll
            for (u32 t = 0; t < TILES; t++) weights_of<KEYS>(s[t], step, a[t]);
#pragma unroll
            for (u32 n = 0; n < D / 16; n++) {
                u32 b[4];
                load_matrices_transposed(b, matrix_row<D>(v, step * 16, n * 16, true));
#pragma unroll
                for (u32 t = 0; t < TILES; t++) {
                    multiply(o[t][2 * n], a[t], b[0], b[1]);
                    if (2 * n + 1 < E / 8) multiply(o[t][2 * n + 1], a[t], b[2], b[3]);
                }
            }
        }
    }
#pragma unroll
    for (u32 t = 0; t < TILES; t++) write_result<E>(args, work, first + t * 16, 0, state[t], o[t]);
}

// attention_E_QUERIES: QUERIES of a block. Twice the queries halve the traffic from shared memory, where there are
// registers and queries enough. BLOCKS of a multiprocessor fit with the registers that these tiles take.
#define ATTENTION(E, QUERIES, KEYS, BLOCKS)                                                                         \
    extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)                                                   \
        attention_##E##_##QUERIES(const __grid_constant__ AttentionArgs args) {                                     \
        attention<E, QUERIES / 64, KEYS>(args);                                                                     \
    }
ATTENTION(32, 64, 64, 4)
ATTENTION(40, 64, 64, 4)
ATTENTION(64, 64, 64, 3)
ATTENTION(72, 64, 32, 4)
ATTENTION(80, 64, 32, 4)
ATTENTION(96, 64, 32, 3)
ATTENTION(128, 64, 32, 3)
ATTENTION(160, 64, 32, 2)
ATTENTION(32, 128, 64, 2)
ATTENTION(40, 128, 64, 2)
ATTENTION(64, 128, 64, 2)
ATTENTION(72, 128, 32, 2)
ATTENTION(80, 128, 32, 2)

constexpr u32 WIDE_COLUMNS = 128; // of the result, per block
constexpr u32 WIDE_DEPTH = 64;    // features per piece of queries and keys

// Heads of any size. A warp has 16 queries and 128 columns of their results. Grid: samples * heads * column_tiles of 128
// columns * query_tiles of 64 queries.
extern "C" __global__ void __launch_bounds__(THREADS, 3)
    attention_wide(const __grid_constant__ AttentionArgs args) {
    constexpr u32 KEYS = 64, PIECE = KEYS * (WIDE_DEPTH + 8);
    // Twice: a piece of queries, then one of keys; or a tile of values.
    __shared__ __align__(16) u16 pieces[2][2 * PIECE];
    static_assert(KEYS * (WIDE_COLUMNS + 8) <= 2 * PIECE, "a tile of values");
    Work work(args, THREADS / WARP * 16);
    bool aligned = aligned_heads(args);
    u32 warp = threadIdx.x / WARP, column = work.column * WIDE_COLUMNS;
    // The products of a tile of keys take `steps` pieces of features; then come its values.
    u32 steps = (args.e + WIDE_DEPTH - 1) / WIDE_DEPTH;
    u32 stages = (work.keys + KEYS - 1) / KEYS * (steps + 1);

    auto fetch = [&](u32 stage) {
        u16 *to = pieces[stage % 2];
        u32 key = stage / (steps + 1) * KEYS, step = stage % (steps + 1), rows = work.keys - key;
        if (step < steps) {
            u32 feature = step * WIDE_DEPTH, left = args.e - feature;
            u64 q = element(args.q, work.q_row + work.query, work.first + feature);
            u64 k = element(args.k, work.k_row + key, work.first + feature);
            load_tile<KEYS, WIDE_DEPTH>(to, work.q, q, args.q.cols, args.queries - work.query, left, aligned);
            load_tile<KEYS, WIDE_DEPTH>(to + PIECE, work.k, k, args.k.cols, rows, left, aligned);
        } else {
            u64 v = element(args.v, work.k_row + key, work.first + column);
            load_tile<KEYS, WIDE_COLUMNS>(to, work.v, v, args.v.cols, rows, args.e - column, aligned);
        }
        copy_commit();
    };
    if (stages > 0) fetch(0);

    State state;
    float o[WIDE_COLUMNS / 8][4] = {};
    Scores<KEYS> s = {};
    for (u32 stage = 0; stage < stages; stage++) {
        copy_wait_all();
        __syncthreads();
        if (stage + 1 < stages) fetch(stage + 1);
        const u16 *piece = pieces[stage % 2];
        if (stage % (steps + 1) < steps) {
#pragma unroll
            for (u32 step = 0; step < WIDE_DEPTH / 16; step++) {
                u32 a[4];
                load_matrices(a, matrix_row<WIDE_DEPTH>(piece, warp * 16, step * 16, true));
                if (args.scale < 0.0f) {
#pragma unroll
                    for (u32 i = 0; i < 4; i++) a[i] ^= 0x80008000;
                }
#pragma unroll
                for (u32 n = 0; n < KEYS / 16; n++) {
                    u32 b[4];
                    load_matrices(b, matrix_row<WIDE_DEPTH>(piece + PIECE, n * 16, step * 16, false));
                    multiply(s[2 * n], a, b[0], b[1]);
                    multiply(s[2 * n + 1], a, b[2], b[3]);
                }
            }
            continue;
        }
        float shrink[2];
        soften<KEYS>(args, work, work.query + warp * 16, stage / (steps + 1) * KEYS, s, state, shrink);
#pragma unroll
        for (u32 i = 0; i < WIDE_COLUMNS / 8 * 4; i++) o[i / 4][i % 4] *= shrink[i % 4 / 2];
#pragma unroll
        for (u32 step = 0; step < KEYS / 16; step++) {
            u32 a[4];
            weights_of<KEYS>(s, step, a);
#pragma unroll
            for (u32 n = 0; n < WIDE_COLUMNS / 16; n++) {
                u32 b[4];
                load_matrices_transposed(b, matrix_row<WIDE_COLUMNS>(piece, step * 16, n * 16, true));
                multiply(o[2 * n], a, b[0], b[1]);
                multiply(o[2 * n + 1], a, b[2], b[3]);
            }
        }
#pragma unroll
        for (u32 i = 0; i < KEYS / 8 * 4; i++) s[i / 4][i % 4] = 0.0f;
    }
    write_result<WIDE_COLUMNS>(args, work, work.query + warp * 16, column, state, o);
}
