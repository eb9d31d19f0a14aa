// Rows worked on by teams of threads: read once, held in registers, reduced, transformed and written.
//
// A team is a warp, or a whole block of four. Its threads read runs of eight columns. In rows whose length is a
// multiple of eight, a run is eight neighbours, moved in 16-byte accesses; in others, whose rows start anywhere, its
// columns lie TEAM apart, so that each access of a warp is still one piece of memory.
//
// The sums of a row depend on its length alone: the host chooses TEAM and RUNS from it.
#pragma once

#include "common.cuh"

constexpr u32 ROW_THREADS = 128;

// Modules are made for rows of up to ROW columns; 0 is any length. Short rows have a warp each.
#ifndef ROW
#define ROW 0
#endif
constexpr u32 TEAM = ROW != 0 && ROW <= 1280 ? WARP : ROW_THREADS;
constexpr u32 RUNS = ROW / TEAM / RUN;

// Blocks of a multiprocessor that registers must suffice for; left alone, the assembler spills some to fit more.
constexpr u32 ROW_BLOCKS = RUNS % 8 == 0 ? 2 : 4;

// The columns of one run, and the first column that does not exist. Of a packed run, either all columns exist or none.
struct Columns {
    u32 first;
    u32 step;
    u32 end;

    __device__ __forceinline__ u32 operator[](u32 k) const { return first + k * step; }
    __device__ __forceinline__ bool packed() const { return step == 1; }
    __device__ __forceinline__ bool any() const { return first < end; }

    // Calls `f(k)` for every column that exists, one of them at least being known to.
    template <class F>
    __device__ __forceinline__ void each(F f) const {
        if (packed()) {
#pragma unroll
            for (u32 k = 0; k < RUN; k++) f(k);
        } else {
#pragma unroll
            for (u32 k = 0; k < RUN; k++) {
                if (first + k * step < end) f(k);
            }
        }
    }
};

// A run of a row whose first element is number `base` at `at`, of which a column exists; others are 0. `aligned`:
// whether runs of neighbours start on multiples of 16 bytes.
DEVICE void load_columns(u64 at, u64 base, bool half, bool aligned, Columns c, float (&v)[RUN]) {
    if (c.packed() && aligned) {
        load_run(at, base + c.first, half, v);
    } else {
#pragma unroll
        for (u32 k = 0; k < RUN; k++) v[k] = 0.0f;
        c.each([&](u32 k) { v[k] = load(at, base + c[k], half); });
    }
}

DEVICE void store_columns(u64 at, u64 base, bool half, Columns c, const float (&v)[RUN]) {
    if (c.packed()) {
        store_run(at, base + c.first, half, v);
    } else {
        c.each([&](u32 k) { store(at, base + c[k], half, v[k]); });
    }
}

template <u32 TEAM>
DEVICE u32 team_of_thread() {
    return TEAM == WARP ? threadIdx.x / WARP : 0;
}

template <u32 TEAM>
DEVICE u32 member() {
    return threadIdx.x % TEAM;
}

// Sum over a team. A block-wide team exchanges its warps' sums in shared memory. Each SITE has its own, so one barrier
// is enough until the site is passed again; teams with several rows call `team_barrier` between them.
template <u32 TEAM, u32 SITE, class T>
DEVICE T team_sum(T v) {
    v = warp_sum(v);
    if constexpr (TEAM == WARP) {
        return v;
    } else {
        __shared__ T parts[ROW_THREADS / WARP];
        if (threadIdx.x % WARP == 0) parts[threadIdx.x / WARP] = v;
        __syncthreads();
        return (parts[0] + parts[1]) + (parts[2] + parts[3]);
    }
}

template <u32 TEAM>
DEVICE void team_barrier() {
    if constexpr (TEAM != WARP) __syncthreads();
}

// Lowest and highest of a team, in place; see `team_sum`.
template <u32 TEAM, u32 SITE>
DEVICE void team_extent(float &low, float &high) {
    low = warp_min(low);
    high = warp_max(high);
    if constexpr (TEAM != WARP) {
        __shared__ float2 parts[ROW_THREADS / WARP];
        if (threadIdx.x % WARP == 0) parts[threadIdx.x / WARP] = make_float2(low, high);
        __syncthreads();
        low = fminf(fminf(parts[0].x, parts[1].x), fminf(parts[2].x, parts[3].x));
        high = fmaxf(fmaxf(parts[0].y, parts[1].y), fmaxf(parts[2].y, parts[3].y));
    }
}

// A thread's share of a row: RUNS runs in registers, or, if RUNS is 0, none: then every pass reads again, which a row
// of any length allows. `read(v, columns)` fetches a run.
template <u32 TEAM, u32 RUNS, class Read>
struct Row {
    Read read;
    u32 cols;
    float held[RUNS == 0 ? 1 : RUNS][RUN];

    __device__ __forceinline__ Columns columns(u32 run) const {
        u32 start = run * TEAM * RUN;
        return cols % RUN == 0 ? Columns{start + member<TEAM>() * RUN, 1, cols}
                               : Columns{start + member<TEAM>(), TEAM, cols};
    }

    // Calls `f(v, columns)` for every run of which a column exists.
    template <class F>
    __device__ __forceinline__ void each(F f) {
        if constexpr (RUNS == 0) {
#pragma unroll 1
            for (u32 run = 0; run * TEAM * RUN < cols; run++) {
                Columns c = columns(run);
                if (!c.any()) break;
                float v[RUN];
                read(v, c);
                f(v, c);
            }
        } else {
#pragma unroll
            for (u32 run = 0; run < RUNS; run++) {
                Columns c = columns(run);
                if (c.any()) f(held[run], c);
            }
        }
    }

    // The thread's part of the sum of `f(v)`, pairwise within a run.
    template <class F>
    __device__ __forceinline__ float sum(F f) {
        float total = 0.0f;
        each([&](float (&v)[RUN], Columns c) {
            float t[RUN] = {};
            c.each([&](u32 k) { t[k] = f(v[k]); });
            total += ((t[0] + t[1]) + (t[2] + t[3])) + ((t[4] + t[5]) + (t[6] + t[7]));
        });
        return total;
    }

    // The row with `f(v, columns)` applied to every run.
    template <class F>
    __device__ __forceinline__ auto map(F f) {
        auto read_then_f = [read = read, f](float (&v)[RUN], Columns c) {
            read(v, c);
            f(v, c);
        };
        Row<TEAM, RUNS, decltype(read_then_f)> out{read_then_f, cols, {}};
        if constexpr (RUNS > 0) {
#pragma unroll
            for (u32 run = 0; run < RUNS; run++) {
#pragma unroll
                for (u32 k = 0; k < RUN; k++) out.held[run][k] = held[run][k];
                Columns c = columns(run);
                if (c.any()) f(out.held[run], c);
            }
        }
        return out;
    }
};

template <u32 TEAM, u32 RUNS, class Read>
DEVICE auto row_of(u32 cols, Read read) {
    Row<TEAM, RUNS, Read> row{read, cols, {}};
    if constexpr (RUNS > 0) {
#pragma unroll
        for (u32 run = 0; run < RUNS; run++) {
            Columns c = row.columns(run);
            if (c.any()) read(row.held[run], c);
        }
    }
    return row;
}
