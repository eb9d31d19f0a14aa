// Floats to codes, as kernels that quantize their results do it. Every rounding is the CPU's (backend/cpu/quantize.rs):
// equal floats give equal codes.
#pragma once

#include "rows.cuh"

// Adding and subtracting this rounds to an integer, ties to even, for magnitudes below 2^22.
constexpr float ROUND = 12582912.0f;

// How many steps from 0 a value may lie.
constexpr float FURTHEST = 4e6f;

// Scale and zero point: x = scale * (q - zero).
struct Range {
    float scale;
    float zero;
};

// The range of values from `low` to `high`. Equal values are their own scale; a step finer than f32 resolves at this
// distance from 0 would push the zero point beyond what `code_of` rounds exactly.
DEVICE Range dynamic_range(float low, float high, float top) {
    float scale;
    if (high == low) {
        scale = high == 0.0f ? 1.0f : fabsf(high);
    } else {
        float step = __fdiv_rn(__fsub_rn(high, low), top);
        scale = fmaxf(step, __fdiv_rn(fmaxf(fabsf(high), fabsf(low)), FURTHEST));
    }
    return {scale, rintf(__fdiv_rn(-low, scale))};
}

// The code of `v`, plus CODE_BIAS; the zero point is `whole + rest`. Two roundings, as in the definition: first the value,
// then the sum, which is exact within the clamp.
DEVICE u32 biased_code(float v, float inverse, float whole, float rest, float top) {
    float q = __fadd_rn(fmaxf(fminf(__fmul_rn(v, inverse), FURTHEST), -FURTHEST), rest);
    q = __fadd_rn(__fsub_rn(__fadd_rn(q, ROUND), ROUND), whole);
    return __float_as_uint(__fadd_rn(fmaxf(fminf(q, top), 0.0f), ROUND));
}
constexpr u32 CODE_BIAS = 0x4b400000; // ROUND's bits

// Four biased codes as bytes: sums take the place of masks.
DEVICE u32 pack_codes(u32 a, u32 b, u32 c, u32 d) {
    return a + (b << 8) + (c << 16) + (d << 24) - CODE_BIAS * 0x01010101u;
}

// Blocks per sample in a pass that finds the extent of samples, at most.
constexpr u32 EXTENT_BLOCKS = 128;

// Where a quantized result goes and what shares a scale; `to` and `fixed` as bound.
struct QuantizeTo {
    Codes to;
    Fixed fixed;
    u64 extents;       // (groups, extent_blocks) of (lowest, highest), if a sample's values share a scale; else 0
    u32 extent_blocks; // per group
    u32 pad;
};
static_assert(sizeof(QuantizeTo) == 104, "QuantizeTo");

// Writes rows of codes. A team that writes several rows keeps the range while its sample lasts.
template <u32 TEAM>
struct Encoder {
    const QuantizeTo &args;
    u64 codes;
    u64 fixed;
    u32 group;
    Range range;

    __device__ __forceinline__ Encoder(const QuantizeTo &args, u64 calls)
        : args(args), codes(place(args.to.at, args.to.stride, calls)),
          fixed(place(args.fixed.at, args.fixed.stride, calls)), group(~0u), range{} {}

    // Encodes `row`, number `index`. The whole team calls.
    template <class R>
    __device__ __forceinline__ void encode(R &row, u32 index) {
        team_barrier<TEAM>();
        const Codes &to = args.to;
        u32 rows_per_group = to.rows / to.groups;
        u32 of = index / rows_per_group;
        if (args.fixed.at != 0) {
            // A sample takes the entry of its first row.
            float2 entry = global<const float2>(fixed)[of * rows_per_group / args.fixed.rows_per_entry];
            range = {entry.x, entry.y};
        } else if (args.extents == 0 || of != group) {
            float low = __int_as_float(0x7f800000), high = -low;
            if (args.extents == 0) {
                row.each([&](float (&v)[RUN], Columns c) {
                    c.each([&](u32 k) {
                        low = fminf(low, v[k]);
                        high = fmaxf(high, v[k]);
                    });
                });
            } else {
                u64 from = args.extents + static_cast<u64>(of) * args.extent_blocks * 8;
                for (u32 i = member<TEAM>(); i < args.extent_blocks; i += TEAM) {
                    float2 part = global<const float2>(from)[i];
                    low = fminf(low, part.x);
                    high = fmaxf(high, part.y);
                }
            }
            team_extent<TEAM, 10>(low, high);
            range = dynamic_range(low, high, static_cast<float>(to.top));
        }
        group = of;
        if (member<TEAM>() == 0 && index % rows_per_group == 0) {
            global<float>(codes + to.scale_at)[of] = range.scale;
            global<float>(codes + to.zero_at)[of] = range.zero;
        }

        float inverse = __fdiv_rn(1.0f, range.scale), top = static_cast<float>(to.top);
        float whole = rintf(range.zero), rest = __fsub_rn(range.zero, whole);
        u64 at = codes + static_cast<u64>(index) * to.row_bytes;
        i32 sum = 0;
        row.each([&](float (&v)[RUN], Columns c) {
            u32 q[RUN];
            c.each([&](u32 k) {
                q[k] = biased_code(v[k], inverse, whole, rest, top);
                sum += static_cast<i32>(q[k] - CODE_BIAS);
            });
            if (c.packed()) {
                *global<uint2>(at + c.first) =
                    make_uint2(pack_codes(q[0], q[1], q[2], q[3]), pack_codes(q[4], q[5], q[6], q[7]));
            } else {
                c.each([&](u32 k) { global<u8>(at)[c[k]] = static_cast<u8>(q[k]); });
            }
        });
        // Spare bytes, fewer than 16, are 0.
        u32 spare = to.cols + member<TEAM>();
        if (spare < to.row_bytes) global<u8>(at)[spare] = 0;
        sum = team_sum<TEAM, 11>(sum);
        if (member<TEAM>() == 0) global<i32>(codes + to.sum_at)[index] = sum;
    }
};
