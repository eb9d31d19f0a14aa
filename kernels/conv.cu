// 3x3 convolutions with float activations, as implicit matrix products. Grid: x = tiles of rows times tiles of channels, 128 by 128 (f16) or 64 by 64
// (f32); 256 threads.
#include "product_f16.cuh"
#include "product_f32.cuh"

extern "C" __global__ void __launch_bounds__(256) conv_f16(const __grid_constant__ FloatProductArgs args) {
    half::product<true>(args);
}

extern "C" __global__ void __launch_bounds__(256) conv_f32(const __grid_constant__ FloatProductArgs args) {
    wide::product<true>(args);
}
