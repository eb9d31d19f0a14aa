// Arguments of all kernels of a group norm.
#pragma once

#include "quantize.cuh"

// x is (samples * pixels, cols).
struct GroupNormArgs {
    u64 calls;
    Floats x;
    Floats y;      // if the result is float
    QuantizeTo to; // otherwise
    u64 weight;    // f32
    u64 bias;      // f32
    u64 sums;      // (samples, blocks, groups) of (sum, sum of squares), f64
    u64 affine;    // (samples, 3, cols): means, factors, summands, f32
    PerSample modulation;
    u32 samples;
    u32 groups;
    u32 blocks; // per sample
    u32 pixels_per_block;
    u32 lanes; // threads side by side along the channels
    u32 rows_per_team;
    u32 act;
    float eps;
    u32 scale; // first columns of the modulation
    u32 shift;
};
static_assert(sizeof(GroupNormArgs) == 296, "GroupNormArgs");
