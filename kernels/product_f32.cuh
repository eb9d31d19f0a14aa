// y = epilogue(x W^T) with f32 activations and weights of any kind, in f32 throughout: for what the packer marked as
// wide and for what is computed outside the loop. No tensor cores: their tf32 keeps 10 bits.
//
// A block makes 64 rows by 64 channels with 256 threads, each 4 by 4; 16 inputs at a time pass through shared memory.
// Sums run over ascending inputs with fused multiply-adds, which gives the CPU's results to the bit.
#pragma once

#include "epilogue.cuh"
#include "weight.cuh"
#include "window.cuh"

namespace wide {

constexpr int TILE = 64;
constexpr int INPUTS = 16;
constexpr int PITCH = TILE + 4;

// Input `k` of a row.
template <bool CONV>
DEVICE float input(const FloatProductArgs &a, u64 x, u32 row, const Pixel &pixel, u32 k) {
    const u32 channels = CONV ? a.window.channels : a.x.cols;
    if (row >= a.y.rows || k >= (CONV ? 9 * channels : channels)) return 0;
    if constexpr (!CONV) return load(x, static_cast<u64>(row) * channels + k, a.x.half);
    const int at = under(a.window, pixel, k / channels);
    return at < 0 ? 0 : load(x, static_cast<u64>(at) * channels + k % channels, a.x.half);
}

// Grid: x counts tiles of rows first, then of channels.
template <bool CONV>
DEVICE void product(const FloatProductArgs &a) {
    __shared__ float xs[INPUTS][PITCH];
    __shared__ float ws[INPUTS][PITCH];
    const u32 thread = threadIdx.x;
    const u32 row_blocks = (a.y.rows + TILE - 1) / TILE;
    const u32 m0 = blockIdx.x % row_blocks * TILE, n0 = blockIdx.x / row_blocks * TILE;
    const u64 x = place(a.x.at, a.x.stride, a.calls);
    const u32 inputs = CONV ? 9 * a.window.channels : a.x.cols;

    // This thread loads input `thread % 16` of rows and channels `thread / 16 + 16 i`.
    const u32 k_of = thread % 16, at = thread / 16;
    Pixel pixels[4];
    if constexpr (CONV) {
#pragma unroll
        for (u32 i = 0; i < 4; i++) pixels[i] = pixel_of(a.window, m0 + at + 16 * i);
    }
    float acc[4][4] = {};
#pragma unroll 1
    for (u32 k0 = 0; k0 < inputs; k0 += INPUTS) {
        const u32 k = k0 + k_of;
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            xs[k_of][at + 16 * i] = input<CONV>(a, x, m0 + at + 16 * i, pixels[i], k);
            const u32 channel = n0 + at + 16 * i;
            ws[k_of][at + 16 * i] = channel < a.weight.rows && k < inputs ? weight_at(a.weight, channel, k) : 0;
        }
        __syncthreads();
#pragma unroll
        for (u32 i = 0; i < INPUTS; i++) {
            const float4 xv = *reinterpret_cast<const float4 *>(&xs[i][thread / 16 * 4]);
            const float4 wv = *reinterpret_cast<const float4 *>(&ws[i][thread % 16 * 4]);
            const float xe[4] = {xv.x, xv.y, xv.z, xv.w}, we[4] = {wv.x, wv.y, wv.z, wv.w};
#pragma unroll
            for (int r = 0; r < 4; r++) {
#pragma unroll
                for (int c = 0; c < 4; c++) acc[r][c] = fmaf(xe[r], we[c], acc[r][c]);
            }
        }
        __syncthreads();
    }
    const Finish finish = finish_of(a.epilogue, a.y, a.calls);
    const float4 bias = finish_bias(finish, n0 + thread % 16 * 4);
#pragma unroll
    for (u32 r = 0; r < 4; r++) {
        const u32 row = m0 + thread / 16 * 4 + r;
        if (row >= a.y.rows) break;
        finish_four(finish, row, finish_row(finish, row), n0 + thread % 16 * 4,
                    make_float4(acc[r][0], acc[r][1], acc[r][2], acc[r][3]), bias);
    }
}

} // namespace wide
