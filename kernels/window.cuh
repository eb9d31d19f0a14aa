// Rows of an implicit convolution: 3x3 windows of a channels-last image. A linear layer is the case of one tap.
#pragma once

#include "common.cuh"

// An output pixel: its sample's first input pixel and its place in the (upsampled) image.
struct Pixel {
    u32 first;
    int y; // before the row of taps; below 0 for rows that do not exist
    int x;
};

DEVICE Pixel pixel_of(const Window &w, u32 row) {
    u32 across = w.width * w.upsample, down = w.height * w.upsample;
    u32 sample = row / (across * down), in = row - sample * across * down;
    u32 y = in / across;
    return {sample * w.height * w.width, static_cast<int>(y), static_cast<int>(in - y * across)};
}

// The input pixel under `tap` of an output pixel, or -1 in the padding.
DEVICE int under(const Window &w, const Pixel &p, u32 tap) {
    int y = p.y + static_cast<int>(tap / 3) - 1, x = p.x + static_cast<int>(tap % 3) - 1;
    if (y < 0 || x < 0 || y >= static_cast<int>(w.height * w.upsample) || x >= static_cast<int>(w.width * w.upsample)) {
        return -1;
    }
    u32 s = w.upsample;
    return static_cast<int>(p.first + (s == 2 ? (y >> 1) * w.width + (x >> 1) : y * w.width + x));
}
