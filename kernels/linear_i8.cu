// variants: WEIGHT_BITS=2,3,4,5,6,8
//
// Linear layers with integer codes on both sides. Grid: x = tiles of 128 rows times tiles of 128 channels; 128 threads.
#include "product_i8.cuh"

// Any codebook, one per row or one for all.
extern "C" __global__ void __launch_bounds__(128)
linear_i8_table(const __grid_constant__ IntegerProductArgs args) {
    integer::product<WEIGHT_BITS, true, false>(args);
}

// A codebook of consecutive integers: uniform quantization.
extern "C" __global__ void __launch_bounds__(128)
linear_i8_consecutive(const __grid_constant__ IntegerProductArgs args) {
    integer::product<WEIGHT_BITS, false, false>(args);
}
