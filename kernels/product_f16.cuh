// y = epilogue(x W^T) with f16 activations and weights of any kind, on `mma.m16n8k16` with f32 sums.
//
// A block makes 128 rows by 128 channels with 256 threads; a warp makes 64 by 32. Activations stream through shared
// memory with `cp.async`, 32 inputs a stage. Weights are fetched packed into registers one stage ahead, decoded once
// per block to f16, and kept in shared memory for two stages: a codebook of at most 6 bits is first turned into the
// row's f16 weights, so decoding is one look-up; 8-bit codes look their entry up in global memory.
//
// Floor: 2 M N K operations at the rate of `mma.sync`; decoding 4096 weights a stage costs about as many issue slots
// as the stage's 128 matrix instructions take tensor cycles, and overlaps with them.
#pragma once

#include "copy.cuh"
#include "epilogue.cuh"
#include "weight.cuh"
#include "window.cuh"

namespace half {

constexpr int ROWS = 128;
constexpr int CHANNELS = 128;
constexpr int THREADS = 256;
constexpr int INPUTS = 32; // per stage
constexpr int STAGES = 3;
constexpr int TILE = ROWS * INPUTS * 2; // bytes of either operand's stage
constexpr int PITCH = CHANNELS + 8;
// Mirrored in src/backend/cuda/linear.rs; codebooks come on top, two bytes an entry.
constexpr int SHARED = (STAGES + 2) * TILE;
static_assert(SHARED >= ROWS / 2 * (PITCH * 4 + 8), "the epilogue's memory");

// Largest codes whose rows of weights are tabulated.
constexpr u32 TABULATED = 6;

// Eight inputs of a row one by one, from channel `of` under `tap`, for rows that do not start on 16-byte boundaries.
template <bool CONV>
DEVICE void gather(const FloatProductArgs &a, u64 x, u32 row, const Pixel &pixel, u32 tap, u32 of, u16 *to) {
    const u32 channels = CONV ? a.window.channels : a.x.cols, taps = CONV ? 9 : 1;
#pragma unroll 1
    for (u32 i = 0; i < 8; i++) {
        int at = -1;
        if (row < a.y.rows && tap < taps) at = CONV ? under(a.window, pixel, tap) : static_cast<int>(row);
        to[i] = at < 0 ? 0 : reinterpret_cast<const u16 *>(x)[static_cast<u64>(at) * channels + of];
        if (++of == channels) {
            of = 0;
            tap++;
        }
    }
}

// Decodes sixteen weights of a row to f16. `table` holds the row's weights by code where those are tabulated.
DEVICE void decode_16(const Weight &w, u32 row, u32 k, const Raw &raw, const u16 *table, u32 (&to)[8]) {
    const u32 *low_words = reinterpret_cast<const u32 *>(&raw.part[0]);
    const u32 *high_words = reinterpret_cast<const u32 *>(&raw.part[1]);
    if (w.kind < WEIGHT_CODES_I8) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            to[i] = low_words[i];
            to[4 + i] = high_words[i];
        }
        return;
    }
    const u32 low = low_bits(w.bits), high = w.bits - low;
    const u32 low_shift = shift_of(low, k), low_mask = (1u << low) - 1;
    const u32 high_shift = high ? shift_of(high, k) : 0, high_mask = (1u << high) - 1;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        u32 pair = 0;
#pragma unroll
        for (int e = 0; e < 2; e++) {
            const int byte = 2 * i + e;
            u32 code = low_words[byte / 4] >> (byte % 4 * 8 + low_shift) & low_mask;
            code |= (high_words[byte / 4] >> (byte % 4 * 8 + high_shift) & high_mask) << low;
            u32 h = 0;
            if (row < w.rows && k + byte < w.cols) {
                h = w.bits <= TABULATED ? table[code] : half_of(dequantize(w, row, code));
            }
            pair |= h << (16 * e);
        }
        to[i] = pair;
    }
}

DEVICE void multiply(float (&acc)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Grid: x counts tiles of rows first, then of channels.
template <bool CONV>
DEVICE void product(const FloatProductArgs &a) {
    extern __shared__ __align__(128) u8 shared[];
    u8 *const weights = shared + STAGES * TILE;
    u16 *const tables = reinterpret_cast<u16 *>(shared + SHARED);
    const u32 shared_at = shared_address(shared);

    const u32 thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
    const u32 row_blocks = (a.y.rows + ROWS - 1) / ROWS;
    const u32 m0 = blockIdx.x % row_blocks * ROWS, n0 = blockIdx.x / row_blocks * CHANNELS;
    const u64 x = place(a.x.at, a.x.stride, a.calls);
    const Weight &w = a.weight;
    const u32 channels = CONV ? a.window.channels : a.x.cols;
    const u32 inputs = CONV ? 9 * channels : channels;
    const int n_stages = static_cast<int>((inputs + INPUTS - 1) / INPUTS);
    const bool by_chunk = channels % 8 == 0;
    const bool tabulated = w.kind >= WEIGHT_CODES_I8 && w.bits <= TABULATED;

    // This thread copies chunk `thread % 4` of rows `thread / 4` and 64 more, and decodes sixteen inputs of channel
    // `thread / 2`. Stages are copied in order, so places are counted up. Rows of either operand are 64 bytes; their
    // chunks are permuted so that eight rows lie in different banks.
    auto swizzled = [](u32 row, u32 part) { return row * 64 + (part ^ (row / 2 % 4)) * 16; };
    const u32 to_x = swizzled(thread / 4, thread % 4);
    u32 slot = 0, k = thread % 4 * 8, tap = 0, of = k, rows = 0;
    u64 from_x = x + (static_cast<u64>(m0 + thread / 4) * channels + k) * 2;
    const u64 row_step = static_cast<u64>(channels) * 128;
    Pixel pixels[2];
#pragma unroll
    for (u32 i = 0; i < 2; i++) {
        rows |= (m0 + thread / 4 + 64 * i < a.y.rows ? 1u : 0u) << i;
        if constexpr (CONV) pixels[i] = pixel_of(a.window, m0 + thread / 4 + 64 * i);
    }
    int under_tap[2] = {}; // the input pixels under the tap, or -1; found anew when the tap is another
    auto advance_tap = [&](bool moved) {
        while (of >= channels) {
            of -= channels;
            tap++;
            moved = true;
        }
        if constexpr (CONV) {
            if (!moved || !by_chunk) return;
#pragma unroll
            for (u32 i = 0; i < 2; i++) under_tap[i] = (rows >> i & 1) && tap < 9 ? under(a.window, pixels[i], tap) : -1;
        }
    };
    advance_tap(true);
    const u32 channel = thread / 2;
    const u16 *table = tables + (channel << w.bits);

    auto copy_stage = [&] {
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            const u32 to = slot + to_x + i * 64 * 64;
            if (!by_chunk) {
                gather<CONV>(a, x, m0 + thread / 4 + 64 * i, pixels[i], tap, of, reinterpret_cast<u16 *>(shared + to));
            } else if constexpr (CONV) {
                const u32 pixel = max(under_tap[i], 0);
                copy_async(shared_at + to, x + (static_cast<u64>(pixel) * channels + of) * 2, under_tap[i] >= 0);
            } else {
                copy_async(shared_at + to, from_x + i * row_step, (rows >> i & 1) && k < channels);
            }
        }
        slot = slot == (STAGES - 1) * TILE ? 0 : slot + TILE;
        k += INPUTS;
        of += INPUTS;
        from_x += INPUTS * 2;
        if (CONV || !by_chunk) advance_tap(false);
    };
    auto fetch = [&](int stage) { return fetch_16(w, n0 + channel, stage * INPUTS + thread % 2 * 16); };
    auto decode_stage = [&](int stage, const Raw &raw) {
        u32 to[8];
        decode_16(w, n0 + channel, stage * INPUTS + thread % 2 * 16, raw, table, to);
        u8 *at = weights + stage % 2 * TILE;
        const u32 part = thread % 2 * 2;
        *reinterpret_cast<uint4 *>(at + swizzled(channel, part)) = make_uint4(to[0], to[1], to[2], to[3]);
        *reinterpret_cast<uint4 *>(at + swizzled(channel, part + 1)) = make_uint4(to[4], to[5], to[6], to[7]);
    };

    if (tabulated) {
        for (u32 i = thread; i < CHANNELS << w.bits; i += THREADS) {
            const u32 row = n0 + (i >> w.bits);
            tables[i] = row < w.rows ? half_of(dequantize(w, row, i & ((1u << w.bits) - 1))) : 0;
        }
        __syncthreads();
    }
#pragma unroll 1
    for (int s = 0; s < STAGES - 1; s++) {
        if (s < n_stages) copy_stage();
        copy_commit();
    }
    decode_stage(0, fetch(0));
    Raw raw = fetch(1);

    // Two warps share the rows, four the channels.
    const u32 m_warp = warp / 4 * 64, n_warp = warp % 4 * 32;
    const u32 x_row = (m_warp + lane % 16) * 64, w_row = (n_warp + lane / 16 * 8 + lane % 8) * 64;
    const u32 x_swizzle = lane / 2 % 4;
    u32 x_at = shared_at;
    float acc[4][4][4] = {};
#pragma unroll 1
    for (int s = 0; s < n_stages; s++) {
        copy_wait<STAGES - 2>();
        __syncthreads();
        if (s + STAGES - 1 < n_stages) copy_stage();
        copy_commit();
        if (s + 1 < n_stages) {
            decode_stage(s + 1, raw);
            raw = fetch(s + 2);
        }
        const u32 w_at = shared_at + (STAGES + (s & 1)) * TILE;
#pragma unroll
        for (u32 step = 0; step < 2; step++) {
            u32 b[2][4];
#pragma unroll
            for (u32 j = 0; j < 2; j++) {
                load_matrices(b[j], w_at + w_row + ((step * 2 + lane / 8 % 2) ^ x_swizzle) * 16 + j * 16 * 64);
            }
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                u32 fragment[4];
                load_matrices(fragment, x_at + x_row + ((step * 2 + lane / 16) ^ x_swizzle) * 16 + i * 16 * 64);
#pragma unroll
                for (u32 j = 0; j < 4; j++) multiply(acc[i][j], fragment, b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
            }
        }
        x_at = x_at == shared_at + (STAGES - 1) * TILE ? shared_at : x_at + TILE;
    }
    copy_wait<0>();

    // The sums go through shared memory, 64 rows at a time, so that a warp finishes whole rows with wide accesses.
    float *const sums = reinterpret_cast<float *>(shared);
    const Finish finish = finish_of(a.epilogue, a.y, a.calls);
    FinishRow *const finish_rows = reinterpret_cast<FinishRow *>(sums + ROWS / 2 * PITCH);
    const float4 bias = finish_bias(finish, n0 + lane * 4);
#pragma unroll 1
    for (u32 part = 0; part < 2; part++) {
        __syncthreads();
        if (thread < ROWS / 2) {
            const u32 row = m0 + part * ROWS / 2 + thread;
            if (row < a.y.rows) finish_rows[thread] = finish_row(finish, row);
        }
        if (warp / 4 == part) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    float *to = sums + (i * 16 + lane / 4) * PITCH + n_warp + j * 8 + lane % 4 * 2;
                    *reinterpret_cast<float2 *>(to) = make_float2(acc[i][j][0], acc[i][j][1]);
                    *reinterpret_cast<float2 *>(to + 8 * PITCH) = make_float2(acc[i][j][2], acc[i][j][3]);
                }
            }
        }
        __syncthreads();
#pragma unroll 1
        for (u32 i = warp; i < ROWS / 2; i += THREADS / 32) {
            const u32 row = m0 + part * ROWS / 2 + i;
            if (row >= a.y.rows) break;
            const float4 v = *reinterpret_cast<const float4 *>(sums + i * PITCH + lane * 4);
            finish_four(finish, row, finish_rows[i], n0 + lane * 4, v, bias);
        }
    }
}

} // namespace half
