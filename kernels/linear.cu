// Linear layers with float activations. Grid: x = tiles of rows times tiles of channels, 128 by 128 (f16) or 64 by 64
// (f32); 256 threads.
#include "product_f16.cuh"
#include "product_f32.cuh"

extern "C" __global__ void __launch_bounds__(256) linear_f16(const __grid_constant__ FloatProductArgs args) {
    half::product<false>(args);
}

extern "C" __global__ void __launch_bounds__(256) linear_f32(const __grid_constant__ FloatProductArgs args) {
    wide::product<false>(args);
}
