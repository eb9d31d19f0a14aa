// y = epilogue(x W^T) with integer codes on both sides, on `mma.m16n8k32`.
//
// A block makes 128 rows by 128 channels; each of its four warps makes 32 channels of all 128 rows, so a code is
// decoded exactly once per block, in registers, and its cost is shared by eight matrix instructions. Both operands
// stream through shared memory with `cp.async`, 64 inputs a stage, the weights still packed: per stage 8 KB of
// activations and 128 rows times 8 bytes per bit of weights.
//
// Floor: 2 M N K operations at the rate of `mma.sync`, about 63 % of the tensor peak on sm_90. Per 32 inputs a warp
// issues 32 matrix instructions, 8 `ldmatrix` and, at 4 bits, about 60 integer instructions.
//
// With x = s (q - z) and w = r (c + o), an element is s r (sum q c + o (sum q - z K) - z sum c), where K counts the
// inputs under valid taps; codes of padding are 0. The float part is done in the order of the CPU back end.
#pragma once

#include "copy.cuh"
#include "epilogue.cuh"
#include "unpack.cuh"
#include "window.cuh"

namespace integer {

constexpr int ROWS = 128;     // of activations, per block
constexpr int CHANNELS = 128; // per block
constexpr int THREADS = 128;
constexpr int INPUTS = 64; // per stage
constexpr int ROW_TILES = ROWS / 16;
constexpr int PITCH = CHANNELS + 8; // of the epilogue's sums: eight rows of fragments lie in different banks
constexpr int CHANNEL_TILES = CHANNELS / 8 / (THREADS / 32); // per warp

// What the epilogue needs of a row of activations.
struct RowInfo {
    float scale;
    float zero;
    float shifted; // sum q - z K
    u32 taps;      // valid ones, as bits
    FinishRow finish;
};

template <int BITS, bool TABLE>
struct Sizes {
    static constexpr int stages = BITS <= 5 ? 4 : 3;
    static constexpr int activations = ROWS * INPUTS;
    static constexpr int low = units_of_64(Planes<BITS>::low) * CHANNELS * 16;
    static constexpr int high = units_of_64(Planes<BITS>::high) * CHANNELS * 16;
    static constexpr int stage = activations + low + high;
    static constexpr bool shared_table = TABLE && table_registers(BITS) == 0;
    static constexpr int table = shared_table ? CHANNELS << BITS : 0;
    // Mirrored in src/backend/cuda/linear.rs.
    static constexpr int shared = stages * stage + table;
    static_assert(stages * stage >= ROWS / 2 * PITCH * 4 + ROWS * sizeof(RowInfo), "the epilogue's memory");
};

// What the epilogue needs of a channel.
struct ChannelInfo {
    float scale;
    float offset;
    float sum; // of table entries, all taps
};

// Sixteen inputs of a row one by one, from channel `of` under `tap`, for windows whose channels are not whole chunks.
DEVICE void gather(const IntegerProductArgs &a, u64 x, u32 row, const Pixel &pixel, u32 tap, u32 of, u8 *to) {
    const u32 channels = a.window.channels;
#pragma unroll 1
    for (u32 i = 0; i < 16; i++) {
        const int at = row < a.y.rows && tap < 9 ? under(a.window, pixel, tap) : -1;
        to[i] = at < 0 ? 0 : *reinterpret_cast<const u8 *>(x + static_cast<u64>(at) * a.x.row_bytes + of);
        if (++of == channels) {
            of = 0;
            tap++;
        }
    }
}

// Scale, zero point and sum of the codes under a row's window, and which taps are valid.
template <bool CONV>
DEVICE RowInfo row_info(const IntegerProductArgs &a, u64 x, u32 row, const Finish &finish) {
    if (row >= a.y.rows) return {};
    const int *sums = reinterpret_cast<const int *>(x + a.x.sum_at);
    int sum = 0;
    u32 taps = 0;
    if constexpr (CONV) {
        Pixel pixel = pixel_of(a.window, row);
        for (u32 tap = 0; tap < 9; tap++) {
            int at = under(a.window, pixel, tap);
            if (at >= 0) {
                taps |= 1u << tap;
                sum += sums[at];
            }
        }
    } else {
        taps = 1;
        sum = sums[row];
    }
    u32 group = row / (a.y.rows / a.x.groups);
    float scale = reinterpret_cast<const float *>(x + a.x.scale_at)[group];
    float zero = reinterpret_cast<const float *>(x + a.x.zero_at)[group];
    const u32 inputs = __popc(taps) * (CONV ? a.window.channels : a.x.cols);
    const float shifted = fmaf(-zero, static_cast<float>(inputs), static_cast<float>(sum));
    return {scale, zero, shifted, taps, finish_row(finish, row)};
}

DEVICE ChannelInfo channel_info(const Weight &w, u32 channel) {
    if (channel >= w.rows) return {0, 0, 0};
    const int *sums = reinterpret_cast<const int *>(w.tap_sums);
    int sum = 0;
    for (u32 tap = 0; tap < w.taps; tap++) sum += sums[tap * w.padded_rows + channel];
    return {reinterpret_cast<const float *>(w.scale)[channel], reinterpret_cast<const float *>(w.offset)[channel],
            static_cast<float>(sum)};
}

// Sum of a channel's table entries under the valid taps of a border pixel.
DEVICE float border_sum(const Weight &w, u32 channel, u32 taps) {
    if (channel >= w.rows) return 0;
    const int *sums = reinterpret_cast<const int *>(w.tap_sums);
    int sum = 0;
    for (u32 tap = 0; tap < 9; tap++) {
        if (taps >> tap & 1) sum += sums[tap * w.padded_rows + channel];
    }
    return static_cast<float>(sum);
}

DEVICE void multiply(int (&acc)[4], const u32 (&a)[4], const Pair &b) {
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+r"(acc[0]), "+r"(acc[1]), "+r"(acc[2]), "+r"(acc[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b.b0), "r"(b.b1));
}

// Grid: x counts tiles of rows first, then of channels, so that blocks that run together share weights.
template <int BITS, bool TABLE, bool CONV>
DEVICE void product(const IntegerProductArgs &a) {
    using S = Sizes<BITS, TABLE>;
    extern __shared__ __align__(128) u8 shared[];
    const u32 shared_at = shared_address(shared);
    i8 *const table_at = reinterpret_cast<i8 *>(shared + S::stages * S::stage);

    const u32 thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
    const u32 row_blocks = (a.y.rows + ROWS - 1) / ROWS;
    const u32 m0 = blockIdx.x % row_blocks * ROWS, n0 = blockIdx.x / row_blocks * CHANNELS;
    const u64 x = place(a.x.at, a.x.stride, a.calls);
    const Weight &w = a.weight;
    const u32 inputs = CONV ? 9 * a.window.channels : a.x.cols;
    const int n_stages = static_cast<int>((inputs + INPUTS - 1) / INPUTS);
    const bool by_chunk = !CONV || a.window.channels % 16 == 0;

    // Stages are copied in order, so everything that says where the next one lies is counted up and never worked out
    // again: index arithmetic would cost as many instructions as decoding does.
    //
    // This thread copies chunk `thread % 4` of rows `thread / 4 + 32 i`, and all units of channel `n0 + thread`. Chunks of
    // a row are permuted so that the eight rows of an 8x8 matrix lie in different banks; the rows of a thread are 32
    // apart, so their permutation is the same.
    const u32 to_x = thread / 4 * INPUTS + (thread % 4 ^ thread / 8 % 4) * 16;
    u32 slot = 0; // of the next stage, in bytes
    u32 k = thread % 4 * 16;
    u64 from_x = x + static_cast<u64>(m0 + thread / 4) * a.x.row_bytes + k;
    const u64 row_step = static_cast<u64>(a.x.row_bytes) * 32;
    u32 tap = 0, of = k;
    u32 rows = 0; // which of the four rows exist
    Pixel pixels[4];
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        rows |= (m0 + thread / 4 + 32 * i < a.y.rows ? 1u : 0u) << i;
        if constexpr (CONV) pixels[i] = pixel_of(a.window, m0 + thread / 4 + 32 * i);
    }
    int under_tap[4] = {}; // the input pixels under the tap, or -1; found anew when the tap is another
    auto advance_tap = [&](bool moved) {
        while (of >= a.window.channels) {
            of -= a.window.channels;
            tap++;
            moved = true;
        }
        if (!moved || !by_chunk) return;
#pragma unroll
        for (u32 i = 0; i < 4; i++) under_tap[i] = (rows >> i & 1) && tap < 9 ? under(a.window, pixels[i], tap) : -1;
    };
    if constexpr (CONV) advance_tap(true);

    constexpr int low_bits = Planes<BITS>::low, high_bits = Planes<BITS>::high;
    const u32 channel = n0 + thread;
    // Units that the channel still has to give, in each plane; none if there is no such channel.
    auto units_of = [&](int bits) { return (inputs + 128 / bits - 1) / (128 / bits); };
    auto first_unit = [&](u64 plane, u32 units) {
        return plane + (static_cast<u64>(channel / 16) * units * 16 + channel % 16) * 16;
    };
    const bool has_channel = channel < w.padded_rows;
    u32 low_left = has_channel ? units_of(low_bits) : 0, high_left = 0;
    u64 from_low = first_unit(w.plane[0], units_of(low_bits)), from_high = 0;
    if constexpr (high_bits > 0) {
        high_left = has_channel ? units_of(high_bits) : 0;
        from_high = first_unit(w.plane[1], units_of(high_bits));
    }
    bool odd = false; // which half of a unit of 1-bit codes the next stage needs

    auto copy_stage = [&] {
        const u32 at = shared_at + slot;
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            const u32 to = to_x + i * 32 * INPUTS;
            if constexpr (!CONV) {
                copy_async(at + to, from_x + i * row_step, (rows >> i & 1) && k < a.x.row_bytes);
            } else if (by_chunk) {
                const u32 pixel = max(under_tap[i], 0);
                copy_async(at + to, x + static_cast<u64>(pixel) * a.x.row_bytes + of, under_tap[i] >= 0);
            } else {
                gather(a, x, m0 + thread / 4 + 32 * i, pixels[i], tap, of, shared + slot + to);
            }
        }
        constexpr int low = units_of_64(low_bits), high = units_of_64(high_bits);
#pragma unroll
        for (int u = 0; u < low; u++) {
            copy_async(at + S::activations + (u * CHANNELS + thread) * 16, from_low + u * 256, u < low_left);
        }
#pragma unroll
        for (int u = 0; u < high; u++) {
            copy_async(at + S::activations + S::low + (u * CHANNELS + thread) * 16, from_high + u * 256,
                       u < high_left);
        }
        slot = slot + S::stage == S::stages * S::stage ? 0 : slot + S::stage;
        k += INPUTS;
        from_x += INPUTS;
        if constexpr (CONV) {
            of += INPUTS;
            advance_tap(false);
        }
        from_low += low * 256;
        low_left = low_left > low ? low_left - low : 0;
        if (high_bits != 1 || odd) {
            from_high += high * 256;
            high_left = high_left > high ? high_left - high : 0;
        }
        odd = !odd;
    };

    // The codebooks of the channels whose codes this lane decodes.
    constexpr int registers = TABLE ? table_registers(BITS) : 0;
    u32 table[CHANNEL_TILES][registers ? registers : 1];
    if constexpr (registers > 0) {
#pragma unroll
        for (int j = 0; j < CHANNEL_TILES; j++) {
            u32 of = min(n0 + warp * 32 + j * 8 + lane / 4, w.padded_rows - 1);
            const u32 *from = reinterpret_cast<const u32 *>(w.table) + (w.per_row ? of * registers : 0);
#pragma unroll
            for (int i = 0; i < registers; i++) table[j][i] = from[i];
        }
    }
    if constexpr (S::shared_table) {
        const u32 words = (1u << BITS) / 4;
        for (u32 i = thread; i < CHANNELS * words; i += THREADS) {
            u32 of = min(n0 + i / words, w.padded_rows - 1);
            reinterpret_cast<u32 *>(table_at)[i] =
                reinterpret_cast<const u32 *>(w.table)[(w.per_row ? of * words : 0) + i % words];
        }
    }

    int acc[ROW_TILES][CHANNEL_TILES][4] = {};
#pragma unroll 1
    for (int s = 0; s < S::stages - 1; s++) {
        if (s < n_stages) copy_stage();
        copy_commit();
    }
    u32 at = shared_at;
    const u32 row_at = lane % 16 * INPUTS, row_swizzle = lane / 2 % 4;
#pragma unroll 1
    for (int s = 0; s < n_stages; s++) {
        copy_wait<S::stages - 2>();
        __syncthreads();
        if (s + S::stages - 1 < n_stages) copy_stage();
        copy_commit();

        const u8 *packed = shared + (at - shared_at) + S::activations;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int quarter = (s & 1) * 2 + half;
            Pair b[CHANNEL_TILES];
#pragma unroll
            for (int j = 0; j < CHANNEL_TILES; j++) {
                const u32 in_block = warp * 32 + j * 8 + lane / 4;
                const u32 *low = reinterpret_cast<const u32 *>(packed) + in_block * 4 + lane % 4;
                const u32 *high = low + S::low / 4;
                Words words = {0, 0, 0};
                constexpr int unit = CHANNELS * 4; // words from unit to unit
                if constexpr (BITS == 8) {
                    words.low = low[2 * half * unit];
                    words.low_next = low[(2 * half + 1) * unit];
                } else {
                    words.low = low[Planes<BITS>::low == 4 ? half * unit : 0];
                    if constexpr (Planes<BITS>::high > 0) words.high = high[0];
                }
                if constexpr (registers > 0) {
                    b[j] = entries_of<BITS>(table[j], words, half, quarter);
                } else {
                    b[j] = codes_of<BITS>(words, half, quarter);
                    if constexpr (TABLE) {
                        const i8 *row = table_at + (in_block << BITS);
                        b[j] = {look_up_shared(row, b[j].b0), look_up_shared(row, b[j].b1)};
                    } else {
                        b[j] = {(b[j].b0 + w.low) ^ w.high, (b[j].b1 + w.low) ^ w.high};
                    }
                }
            }
#pragma unroll
            for (int i = 0; i < ROW_TILES; i++) {
                u32 fragment[4];
                load_matrices(fragment, at + row_at + ((half * 2 + lane / 16) ^ row_swizzle) * 16 + i * 16 * INPUTS);
#pragma unroll
                for (int j = 0; j < CHANNEL_TILES; j++) multiply(acc[i][j], fragment, b[j]);
            }
        }
        at = at + S::stage == shared_at + S::stages * S::stage ? shared_at : at + S::stage;
    }
    copy_wait<0>();
    __syncthreads();

    // The stages are done; their memory takes what the epilogue needs of each row and channel, and the sums, 64 rows at
    // a time, so that a warp finishes whole rows with wide accesses.
    int *const sums = reinterpret_cast<int *>(shared);
    RowInfo *const row_infos = reinterpret_cast<RowInfo *>(sums + ROWS / 2 * PITCH);
    const Finish finish = finish_of(a.epilogue, a.y, a.calls);
    row_infos[thread] = row_info<CONV>(a, x, m0 + thread, finish);
    ChannelInfo channels[4]; // of the four that this lane finishes
#pragma unroll
    for (u32 e = 0; e < 4; e++) channels[e] = channel_info(w, n0 + lane * 4 + e);
    const float4 bias = finish_bias(finish, n0 + lane * 4);
#pragma unroll
    for (int part = 0; part < 2; part++) {
        if (part > 0) __syncthreads();
#pragma unroll
        for (int i = 0; i < ROW_TILES / 2; i++) {
#pragma unroll
            for (int j = 0; j < CHANNEL_TILES; j++) {
                const int *v = acc[part * ROW_TILES / 2 + i][j];
                int *to = sums + (i * 16 + lane / 4) * PITCH + warp * 32 + j * 8 + lane % 4 * 2;
                *reinterpret_cast<int2 *>(to) = make_int2(v[0], v[1]);
                *reinterpret_cast<int2 *>(to + 8 * PITCH) = make_int2(v[2], v[3]);
            }
        }
        __syncthreads();
#pragma unroll 1
        for (u32 i = warp; i < ROWS / 2; i += THREADS / 32) {
            const u32 in_block = part * ROWS / 2 + i, row = m0 + in_block;
            if (row >= a.y.rows) break;
            const RowInfo info = row_infos[in_block];
            const bool border = CONV && info.taps != 0x1ff;
            const int4 sum = *reinterpret_cast<const int4 *>(sums + i * PITCH + lane * 4);
            const int four[4] = {sum.x, sum.y, sum.z, sum.w};
            float v[4];
#pragma unroll
            for (u32 e = 0; e < 4; e++) {
                float weight_sum = channels[e].sum;
                if (border) weight_sum = border_sum(w, n0 + lane * 4 + e, info.taps);
                const float product = fmaf(-info.zero, weight_sum, static_cast<float>(four[e]));
                v[e] = __fmul_rn(__fmul_rn(info.scale, channels[e].scale),
                                 fmaf(channels[e].offset, info.shifted, product));
            }
            finish_four(finish, row, info.finish, n0 + lane * 4, make_float4(v[0], v[1], v[2], v[3]), bias);
        }
    }
}

} // namespace integer
