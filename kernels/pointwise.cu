// Elementwise ops. The floor is one read of each operand and one write; a thread moves one run of eight elements in
// 16-byte accesses. Values have no gaps, so rows do not matter here.
#include "common.cuh"

constexpr u32 THREADS = 256;

// The elements of a thread: eight neighbours, or, at the end of a value, whatever is left of them.
struct Elements {
    u64 first;
    u64 end;

    __device__ __forceinline__ Elements(u64 length)
        : first((static_cast<u64>(blockIdx.x) * THREADS + threadIdx.x) * RUN), end(min(first + RUN, length)) {}
    __device__ __forceinline__ bool none() const { return first >= end; }
    __device__ __forceinline__ bool whole() const { return end - first == RUN; }
};

struct PointwiseArgs {
    u64 calls;
    Floats x;
    Floats y;
    u32 act;
    float mul;
    float add;
    u32 pad;
};
static_assert(sizeof(PointwiseArgs) == 88, "PointwiseArgs");

// y = act(x) * mul + add. Grid: elements / (256 * 8), rounded up.
extern "C" __global__ void __launch_bounds__(THREADS) pointwise(const __grid_constant__ PointwiseArgs args) {
    Elements mine(static_cast<u64>(args.y.rows) * args.y.cols);
    if (mine.none()) return;
    u64 x = place(args.x.at, args.x.stride, args.calls), y = place(args.y.at, args.y.stride, args.calls);
    auto f = [&](float v) { return fmaf(activate(args.act, v), args.mul, args.add); };
    if (mine.whole()) {
        float v[RUN];
        load_run(x, mine.first, args.x.half, v);
#pragma unroll
        for (u32 k = 0; k < RUN; k++) v[k] = f(v[k]);
        store_run(y, mine.first, args.y.half, v);
        return;
    }
    for (u64 i = mine.first; i < mine.end; i++) store(y, i, args.y.half, f(load(x, i, args.x.half)));
}

struct PairArgs {
    u64 calls;
    Floats a;
    Floats b; // its rows repeat
    Floats y;
};
static_assert(sizeof(PairArgs) == 104, "PairArgs");

// Makes every element of y of one of a and one of b.
template <class F>
DEVICE void pair(const PairArgs &args, F f) {
    Elements mine(static_cast<u64>(args.y.rows) * args.y.cols);
    if (mine.none()) return;
    u64 a = place(args.a.at, args.a.stride, args.calls), b = place(args.b.at, args.b.stride, args.calls);
    u64 y = place(args.y.at, args.y.stride, args.calls);
    u64 period = static_cast<u64>(args.b.rows) * args.b.cols;
    if (mine.whole() && period % RUN == 0) {
        // Runs in u32: a value has fewer than 2^32 of them, and a 64-bit remainder is slow.
        u32 run = static_cast<u32>(mine.first / RUN) % static_cast<u32>(period / RUN);
        float v[RUN], w[RUN];
        load_run(a, mine.first, args.a.half, v);
        load_run(b, static_cast<u64>(run) * RUN, args.b.half, w);
#pragma unroll
        for (u32 k = 0; k < RUN; k++) v[k] = f(v[k], w[k]);
        store_run(y, mine.first, args.y.half, v);
        return;
    }
    for (u64 i = mine.first; i < mine.end; i++) {
        store(y, i, args.y.half, f(load(a, i, args.a.half), load(b, i % period, args.b.half)));
    }
}

// y = a + b. Grid: elements / (256 * 8), rounded up.
extern "C" __global__ void __launch_bounds__(THREADS) add(const __grid_constant__ PairArgs args) {
    pair(args, [](float a, float b) { return a + b; });
}

// y = a * b. Grid: as above.
extern "C" __global__ void __launch_bounds__(THREADS) multiply(const __grid_constant__ PairArgs args) {
    pair(args, [](float a, float b) { return a * b; });
}
