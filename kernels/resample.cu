// More or fewer pixels: one write of every element of the result, in 16-byte accesses where channels allow it.
#include "common.cuh"

constexpr u32 THREADS = 256;

struct ResampleArgs {
    u64 calls;
    Floats x;
    Floats y;
    u32 height; // of x
    u32 width;
    u32 out_height;
    u32 out_width;
    u32 mean; // 2x2 means; else each pixel becomes four
    u32 pad;
};
static_assert(sizeof(ResampleArgs) == 96, "ResampleArgs");

// Pixels (samples, height, width, cols) to twice as many per axis, or half. Grid: elements of y / 256, or elements /
// (256 * 8) if cols is a multiple of 8; rounded up.
extern "C" __global__ void __launch_bounds__(THREADS) resample(const __grid_constant__ ResampleArgs args) {
    u32 cols = args.y.cols, step = cols % RUN == 0 ? RUN : 1;
    u64 to = (static_cast<u64>(blockIdx.x) * THREADS + threadIdx.x) * step;
    if (to >= static_cast<u64>(args.y.rows) * cols) return;
    u32 pixel = static_cast<u32>(to / cols), channel = static_cast<u32>(to % cols);
    u32 column = pixel % args.out_width, line = pixel / args.out_width;
    u32 row = line % args.out_height, sample = line / args.out_height;
    u64 x = place(args.x.at, args.x.stride, args.calls), y = place(args.y.at, args.y.stride, args.calls);
    row = args.mean ? row * 2 : row / 2;
    column = args.mean ? column * 2 : column / 2;
    u64 from = ((static_cast<u64>(sample) * args.height + row) * args.width + column) * cols + channel;
    u64 below = from + static_cast<u64>(args.width) * cols;
    bool half = args.x.half;
    if (step == RUN) {
        float a[RUN];
        load_run(x, from, half, a);
        if (args.mean) {
            float b[RUN], c[RUN], d[RUN];
            load_run(x, from + cols, half, b);
            load_run(x, below, half, c);
            load_run(x, below + cols, half, d);
#pragma unroll
            for (u32 k = 0; k < RUN; k++) a[k] = ((a[k] + b[k]) + (c[k] + d[k])) * 0.25f;
        }
        store_run(y, to, args.y.half, a);
        return;
    }
    float a = load(x, from, half);
    if (args.mean) {
        a = ((a + load(x, from + cols, half)) + (load(x, below, half) + load(x, below + cols, half))) * 0.25f;
    }
    store(y, to, args.y.half, a);
}
