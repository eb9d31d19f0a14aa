// What happens to the latents between model calls, and the counter of calls. A step's coefficients are a row of a table
// on the device, chosen by that counter, so a step is the same launches every time.
//
// All of it rounds as the CPU does (backend/cpu/sampler.rs): no fused multiply-adds, and terms in the order of the
// columns and of the lanes.
#include "common.cuh"

constexpr u32 THREADS = 256;
constexpr u32 MAX_STATES = 7;

// One row of the sampler's table; see src/sampler/mod.rs.
struct Row {
    float input_scale;
    float x0[2];
    float clamp; // infinity: none
    float keep[2]; // of clean latents and of their noise, where a mask keeps them
    float gain[2]; // noise times exp(gain[0] + gain[1] v); zeros: none
    float next[MAX_STATES][MAX_STATES + 3]; // columns: states, output, x0, noise
    float spare[2];
};
static_assert(sizeof(Row) == 320, "Row");

constexpr u32 OUTPUT = MAX_STATES, X0 = MAX_STATES + 1, NOISE = MAX_STATES + 2;

struct ModelInputArgs {
    u64 calls;
    u64 rows;      // the table
    u64 state;     // f32
    Floats sample; // copies * len elements
    u32 len;
    u32 copies;
};
static_assert(sizeof(ModelInputArgs) == 64, "ModelInputArgs");

// Scaled copies of the latents. Grid: len / 256, rounded up.
extern "C" __global__ void __launch_bounds__(THREADS) model_input(const __grid_constant__ ModelInputArgs args) {
    u32 i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= args.len) return;
    u32 call = global<const Calls>(args.calls)->run;
    float v = __fmul_rn(global<const Row>(args.rows)[call].input_scale, global<const float>(args.state)[i]);
    u64 sample = place(args.sample.at, args.sample.stride, args.calls);
    for (u32 copy = 0; copy < args.copies; copy++) {
        store(sample, static_cast<u64>(copy) * args.len + i, args.sample.half, v);
    }
}

DEVICE float guide(float c, float u, float scale) { return __fadd_rn(u, __fmul_rn(scale, __fsub_rn(c, u))); }

// The sum of the lanes' values, folded in halves.
DEVICE float block_sum(float v, float (&lanes)[THREADS]) {
    __syncthreads(); // who still reads the last sum
    lanes[threadIdx.x] = v;
#pragma unroll
    for (u32 half = THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) lanes[threadIdx.x] = __fadd_rn(lanes[threadIdx.x], lanes[threadIdx.x + half]);
    }
    __syncthreads();
    return lanes[0];
}

struct GuidanceFactorsArgs {
    u64 calls;
    u64 factors;  // f32, one per image
    Floats model; // conditional samples first and unconditional ones after
    u32 per_image; // elements of the latents
    u32 channels;
    u32 guided; // the first channels, which are guided
    float guidance;
    float share;
    u32 pad;
};
static_assert(sizeof(GuidanceFactorsArgs) == 72, "GuidanceFactorsArgs");

// What the guided output of each image is multiplied with, so that it is as wide as the conditional one. Grid: images.
extern "C" __global__ void __launch_bounds__(THREADS)
guidance_factors(const __grid_constant__ GuidanceFactorsArgs args) {
    __shared__ float lanes[THREADS];
    u64 model = place(args.model.at, args.model.stride, args.calls);
    u64 unconditional = static_cast<u64>(gridDim.x) * (args.per_image / args.channels) * args.model.cols;
    u64 first = static_cast<u64>(blockIdx.x) * args.per_image;
    float sums[2] = {0.0f, 0.0f}; // of the conditional and of the guided output, then of the squares of what is off the mean
    float mean[2] = {0.0f, 0.0f};
    for (u32 pass = 0; pass < 2; pass++) {
        float parts[2] = {0.0f, 0.0f};
        for (u32 k = threadIdx.x; k < args.per_image; k += THREADS) {
            u64 i = first + k;
            u64 at = i / args.channels * args.model.cols + i % args.channels;
            float c = load(model, at, args.model.half);
            float v[2] = {c, c};
            if (i % args.channels < args.guided) {
                v[1] = guide(c, load(model, unconditional + at, args.model.half), args.guidance);
            }
#pragma unroll
            for (u32 n = 0; n < 2; n++) {
                float off = __fsub_rn(v[n], mean[n]);
                parts[n] = __fadd_rn(parts[n], pass == 0 ? v[n] : __fmul_rn(off, off));
            }
        }
#pragma unroll
        for (u32 n = 0; n < 2; n++) {
            sums[n] = block_sum(parts[n], lanes);
            if (pass == 0) mean[n] = __fdiv_rn(sums[n], static_cast<float>(args.per_image));
        }
    }
    if (threadIdx.x == 0) {
        float ratio = sums[1] > 0.0f ? __fsqrt_rn(__fdiv_rn(sums[0], sums[1])) : 1.0f;
        float factor = __fadd_rn(__fmul_rn(args.share, ratio), __fsub_rn(1.0f, args.share));
        global<float>(args.factors)[blockIdx.x] = factor;
    }
}

// e^x as the CPU's portable tier has it, see backend/cpu/math.rs.
DEVICE float exp_portable(float x) {
    const float round = 12582912.0f, ln2_high = 0.6933594f, ln2_low = -2.1219444e-4f, log2_e = 1.44269504f;
    x = x < 88.0f ? x : 88.0f;
    x = x > -87.0f ? x : -87.0f;
    float shifted = __fadd_rn(__fmul_rn(x, log2_e), round);
    float n = __fsub_rn(shifted, round);
    float r = __fadd_rn(__fmul_rn(n, -ln2_low), __fadd_rn(__fmul_rn(n, -ln2_high), x));
    const float terms[7] = {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
    float p = 1.0f / 5040;
#pragma unroll
    for (u32 k = 0; k < 7; k++) p = __fadd_rn(__fmul_rn(p, r), terms[k]);
    return __fmul_rn(p, __uint_as_float((__float_as_uint(shifted) << 23) + (127u << 23)));
}

struct SamplerStepArgs {
    u64 calls;
    u64 rows;   // the table
    u64 states; // f32, (n_states, len)
    u64 noise;  // f32, len per call, or 0
    u64 noise_stride;
    u64 factors;    // f32, one per image, or 0
    u64 mask;       // f32, one per pixel, or 0
    u64 init;       // f32, len; only with a mask
    u64 init_noise; // f32, len; only with a mask
    Floats model; // with guidance, conditional samples first and unconditional ones after
    u32 len;
    u32 n_states;
    u32 channels; // of the latents; the model's output may have more: skipped, or the variance where a row has a gain
    u32 guided; // the first channels, which are guided; 0 without guidance
    float guidance;
    u32 per_image; // elements of the latents; only with factors
};
static_assert(sizeof(SamplerStepArgs) == 128, "SamplerStepArgs");

// Guidance and one row of the table, in place, and blending. What only a coefficient of 0 would multiply is not read: a
// state may be unset before its first use. Grid: len / 256, rounded up.
extern "C" __global__ void __launch_bounds__(THREADS) sampler_step(const __grid_constant__ SamplerStepArgs args) {
    __shared__ Row row;
    __shared__ u32 needed[MAX_STATES];
    u32 call = global<const Calls>(args.calls)->run;
    if (threadIdx.x < sizeof(Row) / 4) {
        float v = global<const float>(args.rows + static_cast<u64>(call) * sizeof(Row))[threadIdx.x];
        reinterpret_cast<float *>(&row)[threadIdx.x] = v;
    }
    __syncthreads();
    if (threadIdx.x < MAX_STATES) {
        u32 any = threadIdx.x == 0; // state 0, the latents, is always set
        for (u32 s = 0; s < args.n_states; s++) any |= row.next[s][threadIdx.x] != 0.0f;
        needed[threadIdx.x] = any;
    }
    __syncthreads();
    u32 i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= args.len) return;

    u64 model = place(args.model.at, args.model.stride, args.calls);
    u64 at = static_cast<u64>(i / args.channels) * args.model.cols + i % args.channels;
    float output = load(model, at, args.model.half);
    if (i % args.channels < args.guided) {
        u64 unconditional = static_cast<u64>(args.len / args.channels) * args.model.cols;
        float u = load(model, unconditional + at, args.model.half);
        output = guide(output, u, args.guidance);
    }
    if (args.factors != 0) output = __fmul_rn(output, global<const float>(args.factors)[i / args.per_image]);
    float *states = global<float>(args.states);
    float old[MAX_STATES];
#pragma unroll
    for (u32 s = 0; s < MAX_STATES; s++) {
        old[s] = s < args.n_states && needed[s] ? states[static_cast<u64>(s) * args.len + i] : 0.0f;
    }
    float x0 = __fadd_rn(__fmul_rn(row.x0[0], old[0]), __fmul_rn(row.x0[1], output));
    x0 = x0 < -row.clamp ? -row.clamp : x0 > row.clamp ? row.clamp : x0;
    for (u32 s = 0; s < args.n_states; s++) {
        const float *next = row.next[s];
        float v = __fadd_rn(__fmul_rn(next[OUTPUT], output), __fmul_rn(next[X0], x0));
#pragma unroll
        for (u32 c = 0; c < MAX_STATES; c++) {
            if (c < args.n_states) v = __fadd_rn(v, next[c] == 0.0f ? 0.0f : __fmul_rn(next[c], old[c]));
        }
        if (args.noise != 0 && next[NOISE] != 0.0f) {
            float noise = global<const float>(args.noise + args.noise_stride * call)[i];
            if (row.gain[0] != 0.0f || row.gain[1] != 0.0f) {
                float variance = load(model, at + args.channels, args.model.half);
                noise = __fmul_rn(exp_portable(__fadd_rn(row.gain[0], __fmul_rn(row.gain[1], variance))), noise);
            }
            v = __fadd_rn(v, __fmul_rn(next[NOISE], noise));
        }
        if (args.mask != 0 && s == 0) {
            float inside = global<const float>(args.mask)[i / args.channels];
            float clean = __fmul_rn(row.keep[0], global<const float>(args.init)[i]);
            float noisy = __fmul_rn(row.keep[1], global<const float>(args.init_noise)[i]);
            float kept = __fmul_rn(__fsub_rn(1.0f, inside), __fadd_rn(clean, noisy));
            v = __fadd_rn(kept, __fmul_rn(inside, v));
        }
        states[static_cast<u64>(s) * args.len + i] = v;
    }
}

struct AdvanceArgs {
    u64 calls;
};
static_assert(sizeof(AdvanceArgs) == 8, "AdvanceArgs");

// On to the next call. One thread.
extern "C" __global__ void __launch_bounds__(1) advance(const __grid_constant__ AdvanceArgs args) {
    Calls *calls = global<Calls>(args.calls);
    calls->window += 1;
    calls->run += 1;
}
