// Rotary position embedding. The floor is one read and one write; a thread turns the pairs of one run of eight elements, whose
// sines and cosines come from a table that fits the caches.
#include "common.cuh"

constexpr u32 THREADS = 256;

struct RotaryArgs {
    u64 calls;
    Floats x;     // (rows, heads * e)
    Floats table; // (any, e): of either half of a head the sines, then the cosines, e / 4 each; its rows repeat
    Floats y;
};
static_assert(sizeof(RotaryArgs) == 104, "RotaryArgs");

// Pairs (a, b) of neighbours to (a cos - b sin, b cos + a sin). Grid: elements / (256 * 8) if rows have multiples of 8, else
// elements / (256 * 2); rounded up.
extern "C" __global__ void __launch_bounds__(THREADS) rotary(const __grid_constant__ RotaryArgs args) {
    const u32 cols = args.y.cols, e = args.table.cols, quarter = e / 4, step = cols % RUN == 0 ? RUN : 2;
    const u64 first = (static_cast<u64>(blockIdx.x) * THREADS + threadIdx.x) * step;
    if (first >= static_cast<u64>(args.y.rows) * cols) return;
    const u64 x = place(args.x.at, args.x.stride, args.calls), y = place(args.y.at, args.y.stride, args.calls);
    const u64 table = place(args.table.at, args.table.stride, args.calls);
    const u32 row = static_cast<u32>(first / cols), column = static_cast<u32>(first % cols);
    const u64 base = static_cast<u64>(row % args.table.rows) * e;
    const bool half = args.table.half;
    auto turn = [&](float &a, float &b, u32 column) {
        const u32 pair = column % e / 2;
        const u64 at = base + pair / quarter * 2 * quarter + pair % quarter;
        const float sine = load(table, at, half), cosine = load(table, at + quarter, half);
        const float turned = __fsub_rn(__fmul_rn(a, cosine), __fmul_rn(b, sine));
        b = __fadd_rn(__fmul_rn(b, cosine), __fmul_rn(a, sine));
        a = turned;
    };
    if (step == RUN) {
        float v[RUN];
        load_run(x, first, args.x.half, v);
#pragma unroll
        for (u32 k = 0; k < RUN; k += 2) turn(v[k], v[k + 1], column + k);
        store_run(y, first, args.y.half, v);
    } else {
        float a = load(x, first, args.x.half), b = load(x, first + 1, args.x.half);
        turn(a, b, column);
        store(y, first, args.y.half, a);
        store(y, first + 1, args.y.half, b);
    }
}
