// The online softmax on tensor cores (Milakov and Gimelshein 2018; FlashAttention, Dao et al. 2022): scores exist for
// one tile of keys at a time and never leave the registers, where they turn into weights for the values.
#pragma once

#include "attention.cuh"
#include "copy.cuh"

// Like `load_matrices`, each matrix transposed.
DEVICE void load_matrices_transposed(u32 (&r)[4], u32 from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(from)
                 : "memory");
}

// c += a b for a 16x16 tile of a and a 16x8 tile of b.
DEVICE void multiply(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

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
