// What happens to the latents between model calls, and the counter of calls. A step's coefficients are a row of a table
// on the device, chosen by that counter, so a step is the same launches every time.
//
// All of it is elementwise over the latents and rounds as the CPU does (backend/cpu/sampler.rs): no fused
// multiply-adds, and terms in the order of the columns.
#include "common.cuh"

constexpr u32 THREADS = 256;
constexpr u32 MAX_STATES = 7;

// One row of the sampler's table; see src/sampler/mod.rs.
struct Row {
    float input_scale;
    float x0[2];
    float clamp; // infinity: none
    float zero[4];
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

struct SamplerStepArgs {
    u64 calls;
    u64 rows;   // the table
    u64 states; // f32, (n_states, len)
    u64 noise;  // f32, len per call, or 0
    u64 noise_stride;
    Floats model; // with guidance, conditional samples first and unconditional ones after
    u32 len;
    u32 n_states;
    u32 channels; // of the latents; the model's output may have more, which are skipped
    u32 guided;
    float guidance;
    u32 pad;
};
static_assert(sizeof(SamplerStepArgs) == 96, "SamplerStepArgs");

// Guidance and one row of the table, in place. What only a coefficient of 0 would multiply is not read: a state may be
// unset before its first use. Grid: len / 256, rounded up.
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
    if (args.guided) {
        u64 unconditional = static_cast<u64>(args.len / args.channels) * args.model.cols;
        float u = load(model, unconditional + at, args.model.half);
        output = __fadd_rn(u, __fmul_rn(args.guidance, __fsub_rn(output, u)));
    }
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
            u64 noise = args.noise + args.noise_stride * call;
            v = __fadd_rn(v, __fmul_rn(next[NOISE], global<const float>(noise)[i]));
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
