// What happens to a product before it is stored: act(product + bias + shift) * gate + residual, or, of pairs of channels,
// value * act(gate).
#pragma once

#include "common.cuh"

// The parts of an epilogue that are the same for a whole launch.
struct Finish {
    u64 y;
    u64 bias;
    u64 residual;
    u64 shift;
    u64 gate;
    u64 condition; // of the gate and the shift
    u32 cols; // of y and the residual
    u32 channels; // of the product
    u32 residual_rows;
    u32 shift_cols;
    u32 gate_cols;
    u32 rows_per_sample;
    u32 act;
    bool y_half;
    bool residual_half;
    bool shift_half;
    bool gate_half;
};

DEVICE Finish finish_of(const Epilogue &e, const Floats &y, u64 calls) {
    Finish f;
    f.y = place(y.at, y.stride, calls);
    f.bias = e.bias;
    f.residual = e.residual.at ? place(e.residual.at, e.residual.stride, calls) : 0;
    f.gate = e.gate.table.at ? place(e.gate.table.at, e.gate.table.stride, calls) : 0;
    f.shift = e.shift.table.at ? place(e.shift.table.at, e.shift.table.stride, calls) : 0;
    f.condition = f.gate ? e.gate.condition : e.shift.condition;
    f.cols = y.cols;
    f.channels = e.gated ? 2 * y.cols : y.cols;
    f.residual_rows = e.residual.rows;
    f.shift_cols = e.shift.table.cols;
    f.gate_cols = e.gate.table.cols;
    f.rows_per_sample = f.gate ? e.gate.rows_per_sample : e.shift.rows_per_sample;
    f.act = e.act;
    f.y_half = y.half;
    f.residual_half = e.residual.half;
    f.shift_half = e.shift.table.half;
    f.gate_half = e.gate.table.half;
    // The first column belongs to channel 0.
    if (f.gate) f.gate += static_cast<u64>(e.gate_column) * (f.gate_half ? 2 : 4);
    if (f.shift) f.shift += static_cast<u64>(e.shift_column) * (f.shift_half ? 2 : 4);
    return f;
}

// Where a row finds its gate and its residual. Working that out divides, so kernels do it once per row, not per element.
struct FinishRow {
    u32 condition;
    u32 residual;
};

DEVICE FinishRow finish_row(const Finish &f, u32 row) {
    FinishRow r = {0, row};
    if (f.gate || f.shift) r.condition = reinterpret_cast<const u32 *>(f.condition)[row / f.rows_per_sample];
    if (f.residual && row >= f.residual_rows) r.residual = row % f.residual_rows;
    return r;
}

// Bias of the channels `col` (a multiple of 4) up to `col + 3`, as far as they exist; zeros if there is none.
DEVICE float4 finish_bias(const Finish &f, u32 col) {
    float4 v = make_float4(0, 0, 0, 0);
    if (!f.bias || col >= f.channels) return v;
    const float *bias = reinterpret_cast<const float *>(f.bias) + col;
    v.x = bias[0];
    if (col + 1 < f.channels) v.y = bias[1];
    if (col + 2 < f.channels) v.z = bias[2];
    if (col + 3 < f.channels) v.w = bias[3];
    return v;
}

// Four elements of f16 or f32 data; `i` is a multiple of 4 and so is every row's length.
DEVICE float4 load_four(u64 at, u64 i, bool half) {
    if (!half) return reinterpret_cast<const float4 *>(at)[i / 4];
    const uint2 h = reinterpret_cast<const uint2 *>(at)[i / 4];
    return make_float4(float_of(h.x & 0xffff), float_of(h.x >> 16), float_of(h.y & 0xffff), float_of(h.y >> 16));
}

DEVICE void store_four(u64 at, u64 i, bool half, float4 v) {
    if (half) {
        reinterpret_cast<uint2 *>(at)[i / 4] = make_uint2(half2_of(v.x, v.y), half2_of(v.z, v.w));
    } else {
        reinterpret_cast<float4 *>(at)[i / 4] = v;
    }
}

// Stores the two products of values and gates that four channels make, as far as they exist.
DEVICE void finish_gated(const Finish &f, u32 row, u32 col, const float (&e)[4]) {
    const float low = __fmul_rn(e[0], activate(f.act, e[1])), high = __fmul_rn(e[2], activate(f.act, e[3]));
    const u64 y = static_cast<u64>(row) * f.cols + col / 2;
    if (f.cols % 2 != 0) {
        store(f.y, y, f.y_half, low);
        if (col + 2 < f.channels) store(f.y, y + 1, f.y_half, high);
    } else if (f.y_half) {
        reinterpret_cast<u32 *>(f.y)[y / 2] = half2_of(low, high);
    } else {
        reinterpret_cast<float2 *>(f.y)[y / 2] = make_float2(low, high);
    }
}

// Finishes and stores channels `col` (a multiple of 4) up to `col + 3` of row `row`, as far as they exist. Nothing is
// contracted: on f32 values the results are the CPU's, activations apart.
DEVICE void finish_four(const Finish &f, u32 row, const FinishRow &r, u32 col, float4 v, float4 bias) {
    if (col >= f.channels) return;
    float e[4] = {v.x, v.y, v.z, v.w};
    const u64 y = static_cast<u64>(row) * f.cols + col;
    const bool whole = f.cols % 4 == 0;
    if (f.bias) {
        const float b[4] = {bias.x, bias.y, bias.z, bias.w};
#pragma unroll
        for (int i = 0; i < 4; i++) e[i] = __fadd_rn(e[i], b[i]);
    }
    if (f.channels != f.cols) {
        finish_gated(f, row, col, e);
        return;
    }
    if (f.shift) {
        const u64 shift = static_cast<u64>(r.condition) * f.shift_cols + col;
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            if (whole || col + i < f.cols) e[i] = __fadd_rn(e[i], load(f.shift, shift + i, f.shift_half));
        }
    }
    if (f.act != ACT_NONE) {
#pragma unroll
        for (int i = 0; i < 4; i++) e[i] = activate(f.act, e[i]);
    }
    if (f.gate) {
        const u64 gate = static_cast<u64>(r.condition) * f.gate_cols + col;
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            if (whole || col + i < f.cols) e[i] = __fmul_rn(e[i], load(f.gate, gate + i, f.gate_half));
        }
    }
    const u64 residual = static_cast<u64>(r.residual) * f.cols + col;
    if (whole) {
        if (f.residual) {
            const float4 a = load_four(f.residual, residual, f.residual_half);
            const float added[4] = {a.x, a.y, a.z, a.w};
#pragma unroll
            for (int i = 0; i < 4; i++) e[i] = __fadd_rn(e[i], added[i]);
        }
        store_four(f.y, y, f.y_half, make_float4(e[0], e[1], e[2], e[3]));
        return;
    }
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        if (col + i >= f.cols) break;
        if (f.residual) e[i] = __fadd_rn(e[i], load(f.residual, residual + i, f.residual_half));
        store(f.y, y + i, f.y_half, e[i]);
    }
}
