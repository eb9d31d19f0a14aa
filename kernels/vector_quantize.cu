// Vector quantization: the nearest row of a table. A table of 8192 rows of 4 floats stays in the second-level cache, and
// much of it in the first; the floor is a difference and a fused multiply-add per vector and element of the table.
#include "common.cuh"

constexpr u32 THREADS = 128;

struct VectorQuantizeArgs {
    u64 calls;
    Floats x;
    Floats y;
    u64 table; // f32 (table_rows, x.cols)
    u32 table_rows;
    u32 pad;
};
static_assert(sizeof(VectorQuantizeArgs) == 88, "VectorQuantizeArgs");

// The row of the table at the least squared distance from each row of x, the first among equals. A warp per row of x,
// whose lanes take rows of the table by turns. Grid: rows / 4, rounded up.
extern "C" __global__ void __launch_bounds__(THREADS)
    vector_quantize(const __grid_constant__ VectorQuantizeArgs args) {
    u32 row = blockIdx.x * (THREADS / WARP) + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (row >= args.x.rows) return;
    u32 cols = args.x.cols;
    u64 x = place(args.x.at, args.x.stride, args.calls), base = static_cast<u64>(row) * cols;
    bool half = args.x.half;
    // Without a distance below infinity, row 0.
    float least = __int_as_float(0x7f800000);
    u32 nearest = 0;
    for (u64 i = lane; i < args.table_rows; i += WARP) {
        const float *candidate = global<const float>(args.table) + i * cols;
        float distance = 0.0f;
        for (u32 k = 0; k < cols; k++) {
            float apart = load(x, base + k, half) - candidate[k];
            distance = fmaf(apart, apart, distance);
        }
        if (distance < least) {
            least = distance;
            nearest = static_cast<u32>(i);
        }
    }
#pragma unroll
    for (u32 offset = WARP / 2; offset > 0; offset /= 2) {
        float distance = __shfl_xor_sync(ALL_LANES, least, offset);
        u32 other = __shfl_xor_sync(ALL_LANES, nearest, offset);
        if (distance < least || (distance == least && other < nearest)) {
            least = distance;
            nearest = other;
        }
    }
    u64 y = place(args.y.at, args.y.stride, args.calls);
    const float *found = global<const float>(args.table) + static_cast<u64>(nearest) * cols;
    for (u32 k = lane; k < cols; k += WARP) store(y, base + k, args.y.half, found[k]);
}
