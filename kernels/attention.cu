// variants: E=32,40,64,72,80,96,128,160
// Softmax attention of narrow values, for heads of up to E features.
//
// The floor is the matrix products, 4 E operations per query and key: the tensor cores do them in f16 with f32 sums.
// The next tile of keys and values is copied to shared memory while this one is worked on. A query's result depends
// on its own sample only, and is the same whichever of a module's kernels is launched.
//
// Larger heads: attention_wide.cu. Values in f32: attention_f32.cu.
#include "softmax.cuh"

// Heads of up to E features. A warp has TILES times 16 queries, all of their features and all of their results. Grid:
// samples * heads * query_tiles of 64 TILES queries; shared memory: two tiles each of KEYS keys and values, 4 * KEYS
// rows of E (rounded up to 16) + 8 halves. KEYS depends on E alone, because results depend on it.
template <u32 TILES, u32 KEYS>
DEVICE void attention(const AttentionArgs &args) {
    constexpr u32 D = (E + 15) / 16 * 16;
    constexpr u32 TILE = KEYS * (D + 8);
    extern __shared__ __align__(16) u16 tiles[]; // (2, keys then values, KEYS, D + 8)
    Work work(args, THREADS / WARP * 16 * TILES);
    bool aligned = aligned_heads(args);
    u32 lane = threadIdx.x % WARP, first = work.query + threadIdx.x / WARP * 16 * TILES;

    auto fetch = [&](u32 tile) {
        u16 *to = tiles + tile % 2 * 2 * TILE;
        u32 key = tile * KEYS, rows = work.keys - key;
        u64 k = element(args.k, work.k_row + key, work.first), v = element(args.v, work.k_row + key, work.first);
        load_tile<KEYS, D>(to, work.k, k, args.k.cols, rows, args.e, aligned);
        load_tile<KEYS, D>(to + TILE, work.v, v, args.v.cols, rows, args.e, aligned);
        copy_commit();
    };
    u32 n_tiles = (work.keys + KEYS - 1) / KEYS;
    if (n_tiles > 0) fetch(0);

    u32 q[TILES][D / 16][4];
#pragma unroll
    for (u32 i = 0; i < TILES * D / 16 * 4; i++) {
        u32 t = i / (D / 16 * 4), step = i / 4 % (D / 16), part = i % 4;
        u32 row = first + t * 16 + lane / 4 + part % 2 * 8, column = step * 16 + lane % 4 * 2 + part / 2 * 8;
        u64 base = element(args.q, work.q_row + row, work.first);
        u32 pair = row < args.queries ? load_pair(work.q, base, column, args.e, aligned) : 0;
        q[t][step][part] = args.scale < 0.0f ? pair ^ 0x80008000 : pair;
    }
    State state[TILES];
    float o[TILES][E / 8][4] = {};

    for (u32 tile = 0; tile < n_tiles; tile++) {
        // This tile has arrived, and every warp is done with the one before, which the next one overwrites.
        copy_wait<0>();
        __syncthreads();
        if (tile + 1 < n_tiles) fetch(tile + 1);
        const u16 *k = tiles + tile % 2 * 2 * TILE, *v = k + TILE;

        Scores<KEYS> s[TILES] = {};
#pragma unroll
        for (u32 step = 0; step < D / 16; step++) {
#pragma unroll
            for (u32 n = 0; n < KEYS / 16; n++) {
                u32 b[4];
                load_matrices(b, matrix_row<D>(k, n * 16, step * 16, false));
#pragma unroll
                for (u32 t = 0; t < TILES; t++) {
                    multiply(s[t][2 * n], q[t][step], b[0], b[1]);
                    multiply(s[t][2 * n + 1], q[t][step], b[2], b[3]);
                }
            }
        }
#pragma unroll
        for (u32 t = 0; t < TILES; t++) {
            float shrink[2];
            soften<KEYS>(args, work, first + t * 16, tile * KEYS, s[t], state[t], shrink);
#pragma unroll
            for (u32 i = 0; i < E / 8 * 4; i++) o[t][i / 4][i % 4] *= shrink[i % 4 / 2];
        }
#pragma unroll
        for (u32 step = 0; step < KEYS / 16; step++) {
            u32 a[TILES][4];
#pragma unroll
            for (u32 t = 0; t < TILES; t++) weights_of<KEYS>(s[t], step, a[t]);
#pragma unroll
            for (u32 n = 0; n < D / 16; n++) {
                u32 b[4];
                load_matrices_transposed(b, matrix_row<D>(v, step * 16, n * 16, true));
#pragma unroll
                for (u32 t = 0; t < TILES; t++) {
                    multiply(o[t][2 * n], a[t], b[0], b[1]);
                    if (2 * n + 1 < E / 8) multiply(o[t][2 * n + 1], a[t], b[2], b[3]);
                }
            }
        }
    }
#pragma unroll
    for (u32 t = 0; t < TILES; t++) write_result<E>(args, work, first + t * 16, 0, state[t], o[t]);
}

// Keys of a tile: as many as leave registers for queries and results.
constexpr u32 TILE_KEYS = E <= 64 ? 64 : 32;

// Blocks of a multiprocessor that fit with the registers that 64 queries take.
constexpr u32 BLOCKS = E == 64 ? 3 : E <= 80 ? 4 : E <= 128 ? 3 : 2;

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    attention_64(const __grid_constant__ AttentionArgs args) {
    attention<1, TILE_KEYS>(args);
}

// Twice the queries halve the traffic from shared memory, where there are registers and queries enough.
#if E <= 80
extern "C" __global__ void __launch_bounds__(THREADS, 2) attention_128(const __grid_constant__ AttentionArgs args) {
    attention<2, TILE_KEYS>(args);
}
#endif
