// Measures what a device can do at most: products of matrices in registers, copies in device memory. Operands are any
// that the host gives, because a device runs faster and cooler on zeros or ones than on what models hold; it knows the
// results, so a measurement can check that the work was done.
#include <cstdint>

// Independent accumulators per warp: enough to hide the latency of one product.
constexpr int CHAINS = 8;
constexpr int BLOCK = 256;

struct ProbeArgs {
    uint64_t to;    // i32 or f32 per thread for the products; 16-byte units for the copy
    uint64_t from;  // operands of a warp, a register of all lanes after another: 4 of A, 2 of each chain's B; or the copy's source
    uint64_t n;     // rounds of the products, or 16-byte units to copy
};
static_assert(sizeof(ProbeArgs) == 24, "shared with the host");

// The operands of this lane.
struct Operands {
    uint32_t a[4];
    uint32_t b[CHAINS][2];

    __device__ explicit Operands(uint64_t from) {
        const uint32_t* words = reinterpret_cast<const uint32_t*>(from) + threadIdx.x % 32;
#pragma unroll
        for (int i = 0; i < 4; i++) a[i] = words[32 * i];
#pragma unroll
        for (int i = 0; i < 2 * CHAINS; i++) b[i / 2][i % 2] = words[32 * (4 + i)];
    }
};

// Rounds of CHAINS products (16 x 32) (32 x 8). Every thread stores the sum of what it holds of the results, modulo 2^32.
extern "C" __global__ void __launch_bounds__(BLOCK) probe_mma_i8(const ProbeArgs args) {
    const Operands with(args.from);
    int c[CHAINS][4] = {};
    for (uint64_t round = 0; round < args.n; round++) {
#pragma unroll
        for (int i = 0; i < CHAINS; i++) {
            asm volatile(
                "mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                "{%0, %1, %2, %3};"
                : "+r"(c[i][0]), "+r"(c[i][1]), "+r"(c[i][2]), "+r"(c[i][3])
                : "r"(with.a[0]), "r"(with.a[1]), "r"(with.a[2]), "r"(with.a[3]), "r"(with.b[i][0]), "r"(with.b[i][1]));
        }
    }
    uint32_t sum = 0;
#pragma unroll
    for (int i = 0; i < CHAINS; i++) sum += uint32_t(c[i][0]) + uint32_t(c[i][1]) + uint32_t(c[i][2]) + uint32_t(c[i][3]);
    reinterpret_cast<uint32_t*>(args.to)[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}

// The same with (16 x 16) (16 x 8) of f16, and sums in f32.
extern "C" __global__ void __launch_bounds__(BLOCK) probe_mma_f16(const ProbeArgs args) {
    const Operands with(args.from);
    float c[CHAINS][4] = {};
    for (uint64_t round = 0; round < args.n; round++) {
#pragma unroll
        for (int i = 0; i < CHAINS; i++) {
            asm volatile(
                "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                "{%0, %1, %2, %3};"
                : "+f"(c[i][0]), "+f"(c[i][1]), "+f"(c[i][2]), "+f"(c[i][3])
                : "r"(with.a[0]), "r"(with.a[1]), "r"(with.a[2]), "r"(with.a[3]), "r"(with.b[i][0]), "r"(with.b[i][1]));
        }
    }
    float sum = 0;
#pragma unroll
    for (int i = 0; i < CHAINS; i++) sum += (c[i][0] + c[i][1]) + (c[i][2] + c[i][3]);
    reinterpret_cast<float*>(args.to)[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}

// Copies n units of 16 bytes, four in flight per thread.
extern "C" __global__ void __launch_bounds__(BLOCK) probe_copy(const ProbeArgs args) {
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
