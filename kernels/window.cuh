// Rows of an implicit convolution: 3x3 windows of a channels-last image. A linear layer is the case of one tap.
#pragma once

#include "common.cuh"

// An output pixel: its sample's first input pixel, and where the first tap lies in the (upsampled) image.
struct Pixel {
    u32 first;
    int y;
    int x;
};

DEVICE Pixel pixel_of(const Window &w, u32 row) {
    const u32 pixels = w.out_height * w.out_width;
    const u32 sample = row / pixels, in = row - sample * pixels, y = in / w.out_width;
    const int before = static_cast<int>(w.before);
    return {sample * w.height * w.width, static_cast<int>(y * w.stride) - before,
            static_cast<int>((in - y * w.out_width) * w.stride) - before};
}

// The input pixel under `tap` of an output pixel, or -1 in the padding.
DEVICE int under(const Window &w, const Pixel &p, u32 tap) {
    int y = p.y + static_cast<int>(tap / 3), x = p.x + static_cast<int>(tap % 3);
    u32 s = w.upsample;
    // What is upsampled has as many pixels as the result, whose size may be odd.
    u32 height = s == 2 ? w.out_height : w.height, width = s == 2 ? w.out_width : w.width;
    if (y < 0 || x < 0 || y >= static_cast<int>(height) || x >= static_cast<int>(width)) return -1;
    return static_cast<int>(p.first + (s == 2 ? (y >> 1) * w.width + (x >> 1) : y * w.width + x));
}
