// Group norm, with activation: statistics, and results as floats.
//
// Statistics are needed before the first result, so the floor is two reads and one write: sums per block of pixels; a
// mean, a factor and a summand per channel; and a pass that applies them. With a scale per sample, the result is worked
// out once more for its extent, which is cheaper than storing it as floats; norm_group_codes.cu makes the codes.
#include "norm_group.cuh"

constexpr u32 CHANNEL_THREADS = 256;

template <u32 WIDTH>
DEVICE void load_channels(u64 at, u64 i, bool half, float (&v)[WIDTH]) {
    if constexpr (WIDTH == RUN) {
        load_run(at, i, half, v);
    } else {
        v[0] = load(at, i, half);
    }
}

// How the threads of a block share its pixels: `lanes` side by side along the channels, WIDTH channels each, and as
// many rows of them as fit. A thread keeps its channels over all its pixels.
template <u32 WIDTH>
struct Share {
    u32 runs, lanes, rows, lane, row, sample, block;
    u64 first, end; // pixels of the block, counted over all samples

    __device__ __forceinline__ Share(const GroupNormArgs &args)
        : runs(args.x.cols / WIDTH), lanes(args.lanes), rows(blockDim.x / lanes), lane(threadIdx.x % lanes),
          row(threadIdx.x / lanes), sample(blockIdx.x / args.blocks), block(blockIdx.x % args.blocks) {
        u32 pixels = args.x.rows / args.samples;
        first = static_cast<u64>(sample) * pixels + block * args.pixels_per_block;
        end = static_cast<u64>(sample) * pixels + min((block + 1) * args.pixels_per_block, pixels);
    }

    // Whether the thread has work in the section of channels that begins at run `section`.
    __device__ __forceinline__ bool active(u32 section) const { return row < rows && section + lane < runs; }
};

// A large mean must not cancel, nor may every thread work in f64. So a thread sums distances from its first value, per
// channel; a group's helpers sum distances from a value near the group's mean; and one thread per group brings that to
// sums in f64, which blocks can add up.
template <u32 WIDTH>
DEVICE void group_norm_sums(const GroupNormArgs &args) {
    // Three times (rows, WIDTH, pitch): a thread's first value, its mean less that, and its squared distances from its
    // mean. An odd pitch spreads the channels of a group over the banks.
    extern __shared__ float shared[];
    Share<WIDTH> share(args);
    u32 cols = args.x.cols, pitch = share.runs | 1, size = share.rows * WIDTH * pitch;
    float *origins = shared, *means = shared + size, *squares = shared + 2 * size;
    u64 x = place(args.x.at, args.x.stride, args.calls);
    bool half = args.x.half;
    u32 pixels = static_cast<u32>(share.end - share.first), each = pixels / share.rows, over = pixels % share.rows;
    for (u32 section = 0; section < share.runs; section += share.lanes) {
        if (!share.active(section)) continue;
        u32 run = section + share.lane, count = each + (share.row < over);
        float origin[WIDTH], s1[WIDTH], s2[WIDTH];
#pragma unroll
        for (u32 k = 0; k < WIDTH; k++) origin[k] = s1[k] = s2[k] = 0.0f;
        u64 pixel = share.first + share.row;
        if (count > 0) load_channels(x, pixel * cols + run * WIDTH, half, origin);
#pragma unroll 4
        for (u32 i = 1; i < count; i++) {
            float v[WIDTH];
            load_channels(x, (pixel + static_cast<u64>(i) * share.rows) * cols + run * WIDTH, half, v);
#pragma unroll
            for (u32 k = 0; k < WIDTH; k++) {
                float d = v[k] - origin[k];
                s1[k] += d;
                s2[k] = fmaf(d, d, s2[k]);
            }
        }
        float inverse = 1.0f / max(count, 1);
#pragma unroll
        for (u32 k = 0; k < WIDTH; k++) {
            u32 at = (share.row * WIDTH + k) * pitch + run;
            float mean = s1[k] * inverse;
            origins[at] = origin[k];
            means[at] = mean;
            squares[at] = fmaxf(fmaf(-s1[k], mean, s2[k]), 0.0f);
        }
    }
    __syncthreads();
    u32 per_group = cols / args.groups;
    u32 helpers = 1; // threads per group, a power of two
    while (helpers < WARP && helpers * 2 * args.groups <= blockDim.x) helpers *= 2;
    for (u32 first = 0; first < args.groups; first += blockDim.x / helpers) {
        u32 group = first + threadIdx.x / helpers;
        auto place_of = [&](u32 row, u32 channel) { return (row * WIDTH + channel % WIDTH) * pitch + channel / WIDTH; };
        float origin = 0.0f, a = 0.0f, b = 0.0f;
        if (group < args.groups) {
            u32 at = place_of(0, group * per_group);
            origin = origins[at] + means[at];
            for (u32 row = 0; row < share.rows; row++) {
                float count = each + (row < over);
                for (u32 i = threadIdx.x % helpers; i < per_group; i += helpers) {
                    at = place_of(row, group * per_group + i);
                    float d = origins[at] - origin + means[at];
                    a = fmaf(count, d, a);
                    b += fmaf(count * d, d, squares[at]);
                }
            }
        }
        for (u32 offset = helpers / 2; offset > 0; offset /= 2) {
            a += __shfl_xor_sync(ALL_LANES, a, offset);
            b += __shfl_xor_sync(ALL_LANES, b, offset);
        }
        if (threadIdx.x % helpers == 0 && group < args.groups) {
            double count = static_cast<double>(pixels) * per_group, o = origin, d = a;
            double2 sums = make_double2(d + count * o, b + o * (2.0 * d + count * o));
            global<double2>(args.sums)[static_cast<u64>(blockIdx.x) * args.groups + group] = sums;
        }
    }
}

// Sums of each group over each block of pixels. Grid: samples * blocks; block: a multiple of 32 with room for `lanes`;
// shared memory: 12 bytes for each channel of each row of lanes, and one run more if runs are even.
extern "C" __global__ void __launch_bounds__(CHANNEL_THREADS, 3)
    group_norm_sums(const __grid_constant__ GroupNormArgs args) {
    if (args.x.cols % RUN == 0) {
        group_norm_sums<RUN>(args);
    } else {
        group_norm_sums<1>(args);
    }
}

constexpr u32 AFFINE_THREADS = 128;

// Sums to a mean, a factor and a summand per channel: y = (x - mean) * factor + summand. The mean stays apart because
// folding it into the summand would cancel where it is large. A modulation changes factors and summands only. A warp per sample and group; grid: samples * groups / 4,
// rounded up.
extern "C" __global__ void __launch_bounds__(AFFINE_THREADS)
    group_norm_affine(const __grid_constant__ GroupNormArgs args) {
    u32 which = blockIdx.x * (AFFINE_THREADS / WARP) + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (which >= args.samples * args.groups) return;
    u32 sample = which / args.groups, group = which % args.groups;
    u32 cols = args.x.cols, per_group = cols / args.groups;
    double a = 0.0, b = 0.0;
    for (u32 block = lane; block < args.blocks; block += WARP) {
        u64 at = (static_cast<u64>(sample) * args.blocks + block) * args.groups + group;
        double2 part = global<const double2>(args.sums)[at];
        a += part.x;
        b += part.y;
    }
    double count = static_cast<double>(args.x.rows / args.samples) * per_group;
    double mean = warp_sum(a) / count;
    double variance = fmax(warp_sum(b) / count - mean * mean, 0.0);
    float inverse = 1.0f / sqrtf(static_cast<float>(variance) + args.eps);
    const PerSample &modulation = args.modulation;
    u64 table = modulation.table.at, columns = 0;
    if (table != 0) {
        table = place(table, modulation.table.stride, args.calls);
        columns = static_cast<u64>(global<const u32>(modulation.condition)[sample]) * modulation.table.cols;
    }
    float *affine = global<float>(args.affine) + static_cast<u64>(sample) * 3 * cols;
    for (u32 c = group * per_group + lane; c < (group + 1) * per_group; c += WARP) {
        float factor = inverse * global<const float>(args.weight)[c];
        float rounded = static_cast<float>(mean);
        // The summand makes up for the rounding of the mean.
        float summand = fmaf(-static_cast<float>(mean - rounded), factor, global<const float>(args.bias)[c]);
        if (table != 0) {
            float scale = 1.0f + load(table, columns + args.scale + c, modulation.table.half);
            factor *= scale;
            summand = fmaf(summand, scale, load(table, columns + args.shift + c, modulation.table.half));
        }
        affine[c] = rounded;
        affine[cols + c] = factor;
        affine[2 * cols + c] = summand;
    }
}

// Calls `f(i, y)` with every run of results and the number of its first element, channels outermost.
template <u32 WIDTH, class F>
DEVICE void each_result(const GroupNormArgs &args, F f) {
    Share<WIDTH> share(args);
    u32 cols = args.x.cols;
    u64 x = place(args.x.at, args.x.stride, args.calls);
    bool half = args.x.half;
    for (u32 section = 0; section < share.runs; section += share.lanes) {
        if (!share.active(section)) continue;
        u32 channel = (section + share.lane) * WIDTH;
        u64 affine = static_cast<u64>(share.sample) * 3 * cols + channel;
        float mean[WIDTH], factor[WIDTH], summand[WIDTH];
        load_channels(args.affine, affine, false, mean);
        load_channels(args.affine, affine + cols, false, factor);
        load_channels(args.affine, affine + 2 * cols, false, summand);
#pragma unroll 4
        for (u64 pixel = share.first + share.row; pixel < share.end; pixel += share.rows) {
            float v[WIDTH];
            load_channels(x, pixel * cols + channel, half, v);
#pragma unroll
            for (u32 k = 0; k < WIDTH; k++) v[k] = activate(args.act, fmaf(v[k] - mean[k], factor[k], summand[k]));
            f(pixel * cols + channel, v);
        }
    }
}

template <u32 WIDTH>
DEVICE void group_norm_apply(const GroupNormArgs &args) {
    u64 y = place(args.y.at, args.y.stride, args.calls);
    each_result<WIDTH>(args, [&](u64 i, float (&v)[WIDTH]) {
        if constexpr (WIDTH == RUN) {
            store_run(y, i, args.y.half, v);
        } else {
            store(y, i, args.y.half, v[0]);
        }
    });
}

// Float results. Grid and block as of `group_norm_sums`.
extern "C" __global__ void __launch_bounds__(CHANNEL_THREADS, 3)
    group_norm_apply(const __grid_constant__ GroupNormArgs args) {
    if (args.x.cols % RUN == 0) {
        group_norm_apply<RUN>(args);
    } else {
        group_norm_apply<1>(args);
    }
}

template <u32 WIDTH>
DEVICE void find_extent(const GroupNormArgs &args, float &low, float &high) {
    each_result<WIDTH>(args, [&](u64, float (&v)[WIDTH]) {
#pragma unroll
        for (u32 k = 0; k < WIDTH; k++) {
            low = fminf(low, v[k]);
            high = fmaxf(high, v[k]);
        }
    });
}

// Lowest and highest result of each block of pixels. Grid and block as of `group_norm_sums`.
extern "C" __global__ void __launch_bounds__(CHANNEL_THREADS, 3)
    group_norm_extent(const __grid_constant__ GroupNormArgs args) {
    float low = __int_as_float(0x7f800000), high = -low;
    if (args.x.cols % RUN == 0) {
        find_extent<RUN>(args, low, high);
    } else {
        find_extent<1>(args, low, high);
    }
    __shared__ float2 parts[CHANNEL_THREADS / WARP];
    low = warp_min(low);
    high = warp_max(high);
    if (threadIdx.x % WARP == 0) parts[threadIdx.x / WARP] = make_float2(low, high);
    __syncthreads();
    if (threadIdx.x == 0) {
        for (u32 i = 1; i < blockDim.x / WARP; i++) {
            low = fminf(low, parts[i].x);
            high = fmaxf(high, parts[i].y);
        }
        global<float2>(args.to.extents)[blockIdx.x] = make_float2(low, high);
    }
}
