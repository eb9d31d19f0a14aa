// What kernels share: access to f16 and f32 alike, activation functions, reductions.
//
// f16 values are handled as raw 16-bit words: the toolkit's own header needs more of the toolkit than the compiler.
#pragma once

#include "args.cuh"

// Not `static`: names of internal linkage hold a hash of the path, and so would the kept PTX.
#define DEVICE __device__ __forceinline__

constexpr u32 WARP = 32;
constexpr u32 ALL_LANES = 0xffffffffu;

DEVICE float float_of(u16 h) {
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h));
    return f;
}

DEVICE u16 half_of(float f) {
    u16 h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(f));
    return h;
}

// Two halves in one word, `low` in the low bits.
DEVICE u32 half2_of(float low, float high) {
    u32 h;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(h) : "f"(high), "f"(low));
    return h;
}

// A pointer to device memory. The conversion tells the compiler that it is not shared memory, whose accesses differ.
template <class T>
DEVICE T *global(u64 at) {
    return static_cast<T *>(__cvta_global_to_generic(at));
}

// The address of a value at the current model call. Not through `global`: with it, nvcc 13.0 does not finish compiling
// the integer products of 2 and 3 bits.
DEVICE u64 place(u64 at, u64 stride, u64 calls) {
    return stride == 0 ? at : at + stride * reinterpret_cast<const Calls *>(calls)->window;
}

// Element `i` of f16 or f32 data at `at`. `half` is the same for all threads, so the branch costs next to nothing.
DEVICE float load(u64 at, u64 i, bool half) {
    return half ? float_of(global<const u16>(at)[i]) : global<const float>(at)[i];
}

DEVICE void store(u64 at, u64 i, bool half, float v) {
    if (half) {
        global<u16>(at)[i] = half_of(v);
    } else {
        global<float>(at)[i] = v;
    }
}

// Values are moved in runs of this many: 16 bytes of f16, 32 of f32.
constexpr u32 RUN = 8;

// `RUN` elements from element `i` of f16 or f32 data; the run starts on a multiple of 16 bytes.
DEVICE void load_run(u64 at, u64 i, bool half, float (&v)[RUN]) {
    if (half) {
        uint4 words = *global<const uint4>(at + i * 2);
        u32 pairs[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
        for (u32 k = 0; k < 4; k++) {
            v[2 * k] = float_of(static_cast<u16>(pairs[k]));
            v[2 * k + 1] = float_of(static_cast<u16>(pairs[k] >> 16));
        }
    } else {
#pragma unroll
        for (u32 k = 0; k < 2; k++) {
            float4 part = global<const float4>(at + i * 4)[k];
            v[4 * k] = part.x, v[4 * k + 1] = part.y, v[4 * k + 2] = part.z, v[4 * k + 3] = part.w;
        }
    }
}

DEVICE void store_run(u64 at, u64 i, bool half, const float (&v)[RUN]) {
    if (half) {
        *global<uint4>(at + i * 2) =
            make_uint4(half2_of(v[0], v[1]), half2_of(v[2], v[3]), half2_of(v[4], v[5]), half2_of(v[6], v[7]));
    } else {
        global<float4>(at + i * 4)[0] = make_float4(v[0], v[1], v[2], v[3]);
        global<float4>(at + i * 4)[1] = make_float4(v[4], v[5], v[6], v[7]);
    }
}

// 2^x to 2 units in the last place; 0 for minus infinity.
DEVICE float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Reductions over a warp; every lane gets the result, and the order of the sum is fixed.
template <class T>
DEVICE T warp_sum(T v) {
#pragma unroll
    for (u32 offset = WARP / 2; offset > 0; offset /= 2) v += __shfl_xor_sync(ALL_LANES, v, offset);
    return v;
}

DEVICE float warp_max(float v) {
#pragma unroll
    for (u32 offset = WARP / 2; offset > 0; offset /= 2) v = fmaxf(v, __shfl_xor_sync(ALL_LANES, v, offset));
    return v;
}

DEVICE float warp_min(float v) { return -warp_max(-v); }

// The approximate quotient is within 2 units in the last place; beyond 2^126 it is 0, which is right here too.
DEVICE float silu(float x) { return __fdividef(x, 1.0f + __expf(-x)); }

// The tanh approximation of GELU (Hendrycks and Gimpel 2016) as x sigmoid(2 u), u = sqrt(2/pi) (x + 0.044715 x^3).
DEVICE float gelu_tanh(float x) {
    const float two_sqrt_2_pi = 1.5957691f;
    float u = x * fmaf(x * x, 0.044715f * two_sqrt_2_pi, two_sqrt_2_pi);
    return __fdividef(x, 1.0f + __expf(-u));
}

// GELU itself: max(x, 0) - z Q(z), z = |x|, with the fit of the normal tail Q in src/backend/cpu/math.rs.
DEVICE float gelu_erf(float x) {
    float z = fabsf(x), t = __fdividef(1.0f, fmaf(0.275f, z, 1.0f));
    float p = fmaf(-0.113541696f, t, 0.44673272f);
    p = fmaf(p, t, -0.32262992f);
    p = fmaf(p, t, 0.32734032f);
    p = fmaf(p, t, 0.044689493f);
    p = fmaf(p, t, 0.117409114f);
    return fmaxf(x, 0.0f) - z * (p * t * __expf(-0.5f * z * z));
}

DEVICE float quick_gelu(float x) { return __fdividef(x, 1.0f + __expf(-1.702f * x)); }

DEVICE float activate(u32 act, float x) {
    if (act == ACT_SILU) return silu(x);
    if (act == ACT_GELU_TANH) return gelu_tanh(x);
    if (act == ACT_GELU_ERF) return gelu_erf(x);
    if (act == ACT_QUICK_GELU) return quick_gelu(x);
    return x;
}
