// Weights one at a time and sixteen at a time, of any kind: what the float products read.
#pragma once

#include "common.cuh"

// Widths of the planes of a code: 3 = 2 + 1, 5 = 4 + 1, 6 = 4 + 2.
DEVICE u32 low_bits(u32 bits) { return bits == 3 ? 2 : bits == 5 || bits == 6 ? 4 : bits; }

// Columns that a unit of a plane of `bits` (1, 2, 4 or 8) holds, as a power of two.
DEVICE u32 log_columns(u32 bits) { return 7 - (31 - __clz(bits)); }

// The unit that holds column `k` of a row, in a plane of `bits`.
DEVICE u64 unit_at(u64 plane, u32 bits, u32 cols, u32 row, u32 k) {
    const u32 log = log_columns(bits), units = (cols + (1u << log) - 1) >> log;
    return plane + (static_cast<u64>(row / 16 * units + (k >> log)) * 16 + row % 16) * 16;
}

// Where the codes of columns k..k + 16 begin in each byte of their unit.
DEVICE u32 shift_of(u32 bits, u32 k) { return (k >> 4 & (8 / bits - 1)) * bits; }

// A codebook entry as a number.
DEVICE float entry(const Weight &w, u32 row, u32 code) {
    const u64 at = (w.per_row ? static_cast<u64>(row) << w.bits : 0) + code;
    if (w.kind == WEIGHT_CODES_F16) return float_of(reinterpret_cast<const u16 *>(w.table)[at]);
    return static_cast<float>(reinterpret_cast<const i8 *>(w.table)[at]);
}

// The weight of a code: scale * (entry + offset), rounded as on the CPU.
DEVICE float dequantize(const Weight &w, u32 row, u32 code) {
    const float offset = reinterpret_cast<const float *>(w.offset)[row];
    return __fmul_rn(reinterpret_cast<const float *>(w.scale)[row], __fadd_rn(entry(w, row, code), offset));
}

DEVICE u32 code_bits(u64 plane, u32 bits, u32 cols, u32 row, u32 k) {
    const u8 byte = reinterpret_cast<const u8 *>(unit_at(plane, bits, cols, row, k))[k % 16];
    return (byte >> shift_of(bits, k)) & ((1u << bits) - 1);
}

// The weight at (row, k).
DEVICE float weight_at(const Weight &w, u32 row, u32 k) {
    const u64 at = static_cast<u64>(row) * w.cols + k;
    if (w.kind == WEIGHT_F32) return reinterpret_cast<const float *>(w.plane[0])[at];
    if (w.kind == WEIGHT_F16) return float_of(reinterpret_cast<const u16 *>(w.plane[0])[at]);
    const u32 low = low_bits(w.bits);
    u32 code = code_bits(w.plane[0], low, w.cols, row, k);
    if (low < w.bits) code |= code_bits(w.plane[1], w.bits - low, w.cols, row, k) << low;
    return dequantize(w, row, code);
}

// Sixteen weights of a row before they are decoded: f16 numbers, or sixteen bytes of each plane.
struct Raw {
    uint4 part[2];
};

// Columns k..k + 16 of a row, k a multiple of 16; zeros beyond the matrix.
DEVICE Raw fetch_16(const Weight &w, u32 row, u32 k) {
    Raw raw = {make_uint4(0, 0, 0, 0), make_uint4(0, 0, 0, 0)};
    if (row >= w.rows || k >= w.cols) return raw;
    if (w.kind >= WEIGHT_CODES_I8) {
        const u32 low = low_bits(w.bits);
        raw.part[0] = *reinterpret_cast<const uint4 *>(unit_at(w.plane[0], low, w.cols, row, k));
        if (low < w.bits) raw.part[1] = *reinterpret_cast<const uint4 *>(unit_at(w.plane[1], w.bits - low, w.cols, row, k));
        return raw;
    }
    const u64 at = static_cast<u64>(row) * w.cols + k;
    if (w.kind == WEIGHT_F16 && w.cols % 8 == 0) {
        const uint4 *from = reinterpret_cast<const uint4 *>(w.plane[0] + at * 2);
        raw.part[0] = from[0];
        if (k + 8 < w.cols) raw.part[1] = from[1];
        return raw;
    }
    u32 *words = reinterpret_cast<u32 *>(raw.part);
#pragma unroll
    for (u32 i = 0; i < 16; i++) {
        if (k + i >= w.cols) break;
        const u32 h = w.kind == WEIGHT_F16 ? reinterpret_cast<const u16 *>(w.plane[0])[at + i]
                                           : half_of(reinterpret_cast<const float *>(w.plane[0])[at + i]);
        words[i / 2] |= h << (i % 2 * 16);
    }
    return raw;
}
