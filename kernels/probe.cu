// Measures what a device can do at most: products of matrices in registers, copies in device memory. The results are
// known in closed form, so a measurement can check that the work was done.
#include <cstdint>

// Independent accumulators per warp: enough to hide the latency of one product.
constexpr int CHAINS = 8;

struct ProbeArgs {
    uint64_t to;    // i32 or f32 per thread for the products; 16-byte units for the copy
    uint64_t from;  // the copy's source
    uint64_t n;     // rounds of the products, or 16-byte units to copy
};
static_assert(sizeof(ProbeArgs) == 24, "shared with the host");

// Rounds of CHAINS products (16 x 32) (32 x 8) of ones: every thread's sum is 4 * CHAINS * 32 * n.
extern "C" __global__ void probe_mma_i8(const ProbeArgs args) {
    const uint32_t ones = 0x01010101u;
    int c[CHAINS][4] = {};
    for (uint64_t round = 0; round < args.n; round++) {
#pragma unroll
        for (int i = 0; i < CHAINS; i++) {
            asm volatile(
                "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                "{%0, %1, %2, %3};"
                : "+r"(c[i][0]), "+r"(c[i][1]), "+r"(c[i][2]), "+r"(c[i][3])
                : "r"(ones), "r"(ones), "r"(ones), "r"(ones), "r"(ones), "r"(ones));
        }
    }
    int sum = 0;
#pragma unroll
    for (int i = 0; i < CHAINS; i++) sum += c[i][0] + c[i][1] + c[i][2] + c[i][3];
    reinterpret_cast<int*>(args.to)[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}

// Rounds of CHAINS products (16 x 16) (16 x 8) of ones: every thread's sum is 4 * CHAINS * 16 * n, exact below 2^24.
extern "C" __global__ void probe_mma_f16(const ProbeArgs args) {
    const uint32_t ones = 0x3c003c00u;
    float c[CHAINS][4] = {};
    for (uint64_t round = 0; round < args.n; round++) {
#pragma unroll
        for (int i = 0; i < CHAINS; i++) {
            asm volatile(
                "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                "{%0, %1, %2, %3};"
                : "+f"(c[i][0]), "+f"(c[i][1]), "+f"(c[i][2]), "+f"(c[i][3])
                : "r"(ones), "r"(ones), "r"(ones), "r"(ones), "r"(ones), "r"(ones));
        }
    }
    float sum = 0;
#pragma unroll
    for (int i = 0; i < CHAINS; i++) sum += (c[i][0] + c[i][1]) + (c[i][2] + c[i][3]);
    reinterpret_cast<float*>(args.to)[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}

// Copies n units of 16 bytes, four in flight per thread.
extern "C" __global__ void probe_copy(const ProbeArgs args) {
    const uint4* from = reinterpret_cast<const uint4*>(args.from);
    uint4* to = reinterpret_cast<uint4*>(args.to);
    const uint64_t stride = uint64_t(gridDim.x) * blockDim.x;
    uint64_t i = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    for (; i + 3 * stride < args.n; i += 4 * stride) {
        const uint4 a = from[i], b = from[i + stride], c = from[i + 2 * stride], d = from[i + 3 * stride];
        to[i] = a;
        to[i + stride] = b;
        to[i + 2 * stride] = c;
        to[i + 3 * stride] = d;
    }
    for (; i < args.n; i += stride) to[i] = from[i];
}
