// variants: ROW=256,512,1280,2048,4096,8192,0
// The last pass of a group norm whose result is codes, row by row, of up to ROW channels: a row is a pixel.
#include "norm_group.cuh"

// Grid: rows / (teams per block * rows_per_team), rounded up.
extern "C" __global__ void __launch_bounds__(ROW_THREADS, ROW_BLOCKS)
    group_norm_codes(const __grid_constant__ GroupNormArgs args) {
    u32 cols = args.x.cols, act = args.act, pixels = args.x.rows / args.samples;
    u64 x = place(args.x.at, args.x.stride, args.calls), affine = args.affine;
    bool half = args.x.half;
    Encoder<TEAM> encoder(args.to, args.calls);
    u32 first = (blockIdx.x * (ROW_THREADS / TEAM) + team_of_thread<TEAM>()) * args.rows_per_team;
    u32 end = min(first + args.rows_per_team, args.x.rows);
    for (u32 index = first; index < end; index++) {
        u64 base = static_cast<u64>(index) * cols, of_sample = static_cast<u64>(index / pixels) * 3 * cols;
        auto row = row_of<TEAM, RUNS>(cols, [=](float (&v)[RUN], Columns c) {
            float mean[RUN], factor[RUN], summand[RUN];
            load_columns(x, base, half, true, c, v);
            load_columns(affine, of_sample, false, true, c, mean);
            load_columns(affine, of_sample + cols, false, true, c, factor);
            load_columns(affine, of_sample + 2 * cols, false, true, c, summand);
#pragma unroll
            for (u32 k = 0; k < RUN; k++) v[k] = activate(act, fmaf(v[k] - mean[k], factor[k], summand[k]));
        });
        encoder.encode(row, index);
    }
}
