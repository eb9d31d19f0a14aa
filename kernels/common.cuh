// What kernels share: access to f16 and f32 alike, activation functions, reductions.
//
// f16 values are handled as raw 16-bit words: the toolkit's own header needs more of the toolkit than the compiler.
#pragma once

#include "args.cuh"

#define DEVICE static __device__ __forceinline__

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

// The address of a value at the current model call.
DEVICE u64 place(u64 at, u64 stride, u64 calls) {
    return stride == 0 ? at : at + stride * reinterpret_cast<const Calls *>(calls)->window;
}

// Element `i` of f16 or f32 data at `at`. `half` is the same for all threads, so the branch costs next to nothing.
DEVICE float load(u64 at, u64 i, bool half) {
    return half ? float_of(reinterpret_cast<const u16 *>(at)[i]) : reinterpret_cast<const float *>(at)[i];
}

DEVICE void store(u64 at, u64 i, bool half, float v) {
    if (half) {
        reinterpret_cast<u16 *>(at)[i] = half_of(v);
    } else {
        reinterpret_cast<float *>(at)[i] = v;
    }
}

DEVICE float silu(float x) { return x / (1.0f + __expf(-x)); }

// The tanh approximation of GELU (Hendrycks and Gimpel 2016) as x sigmoid(2 u), u = sqrt(2/pi) (x + 0.044715 x^3).
DEVICE float gelu_tanh(float x) {
    const float two_sqrt_2_pi = 1.5957691f;
    float u = x * fmaf(x * x, 0.044715f * two_sqrt_2_pi, two_sqrt_2_pi);
    return x / (1.0f + __expf(-u));
}

DEVICE float activate(u32 act, float x) {
    if (act == ACT_SILU) return silu(x);
    if (act == ACT_GELU_TANH) return gelu_tanh(x);
    return x;
}
