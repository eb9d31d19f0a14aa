// variants: ROW=256,512,1280,2048,4096,8192,0
// Layer norm, with modulation and quantization fused, of rows of up to ROW columns.
//
// The floor is one read and one write: a team of threads holds its row in registers between them.
#include "quantize.cuh"

struct LayerNormArgs {
    u64 calls;
    Floats x;
    Floats y;      // unless `quantize`
    QuantizeTo to; // if `quantize`
    u64 weight;    // f32, or 0
    u64 bias;      // f32, or 0
    PerSample modulation;
    u32 scale; // first columns of the modulation
    u32 shift;
    float eps;
    u32 quantize;
    u32 rms;     // whether no mean is taken off
    u32 shifted; // whether the modulation is a shift alone
};
static_assert(sizeof(LayerNormArgs) == 264, "LayerNormArgs");

// Rows (rows, cols), one per team. Grid: rows / teams per block, rounded up.
extern "C" __global__ void __launch_bounds__(ROW_THREADS, ROW_BLOCKS)
    layer_norm(const __grid_constant__ LayerNormArgs args) {
    u32 index = blockIdx.x * (ROW_THREADS / TEAM) + team_of_thread<TEAM>();
    if (index >= args.x.rows) return;
    u32 cols = args.x.cols;
    u64 x = place(args.x.at, args.x.stride, args.calls), base = static_cast<u64>(index) * cols;
    bool half = args.x.half;
    auto row = row_of<TEAM, RUNS>(
        cols, [=](float (&v)[RUN], Columns c) { load_columns(x, base, half, true, c, v); });
    float mean = args.rms ? 0.0f : team_sum<TEAM, 0>(row.sum([](float v) { return v; })) / cols;
    float variance = team_sum<TEAM, 1>(row.sum([=](float v) { return (v - mean) * (v - mean); })) / cols;
    float inverse = 1.0f / sqrtf(variance + args.eps);

    const PerSample &modulation = args.modulation;
    u64 table = modulation.table.at, scale_base = 0, shift_base = 0;
    bool table_half = modulation.table.half, aligned = false;
    if (table != 0) {
        table = place(table, modulation.table.stride, args.calls);
        u32 condition = global<const u32>(modulation.condition)[index / modulation.rows_per_sample];
        scale_base = static_cast<u64>(condition) * modulation.table.cols + args.scale;
        shift_base = static_cast<u64>(condition) * modulation.table.cols + args.shift;
        aligned = (modulation.table.cols | args.scale | args.shift) % RUN == 0;
    }
    u64 weight = args.weight, bias = args.bias;
    bool scaled = !args.shifted;
    auto result = row.map([=](float (&v)[RUN], Columns c) {
        float w[RUN];
#pragma unroll
        for (u32 k = 0; k < RUN; k++) v[k] = (v[k] - mean) * inverse;
        if (weight != 0) {
            load_columns(weight, 0, false, true, c, w);
#pragma unroll
            for (u32 k = 0; k < RUN; k++) v[k] *= w[k];
        }
        if (bias != 0) {
            load_columns(bias, 0, false, true, c, w);
#pragma unroll
            for (u32 k = 0; k < RUN; k++) v[k] += w[k];
        }
        if (table != 0) {
            float shift[RUN];
            load_columns(table, shift_base, table_half, aligned, c, shift);
#pragma unroll
            for (u32 k = 0; k < RUN; k++) w[k] = 0.0f;
            if (scaled) load_columns(table, scale_base, table_half, aligned, c, w);
#pragma unroll
            for (u32 k = 0; k < RUN; k++) v[k] = fmaf(v[k], 1.0f + w[k], shift[k]);
        }
    });
    if (args.quantize) {
        Encoder<TEAM>(args.to, args.calls).encode(result, index);
        return;
    }
    u64 y = place(args.y.at, args.y.stride, args.calls);
    result.each([&](float (&v)[RUN], Columns c) { store_columns(y, base, args.y.half, c, v); });
}
