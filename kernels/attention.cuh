// What the attention kernels share: arguments, and how blocks divide the work.
#pragma once

#include "common.cuh"

struct AttentionArgs {
    u64 calls;
    Floats q; // (samples * queries, at least heads * e)
    Floats k; // (samples or conditions * keys, at least heads * e)
    Floats v;
    Floats y;
    u64 lengths; // u32 per sample, or per condition as keys lie: keys that are seen; or 0: all
    u64 bias;    // f32 (heads, queries, keys), added to the scaled scores; or 0
    u64 condition; // u32 per sample: which keys and values it sees, which then lie by conditions; or 0
    u32 heads;
    u32 e; // features of a head
    u32 queries;
    u32 keys;
    u32 query_tiles;  // blocks that share a head's queries
    u32 column_tiles; // blocks that share a head's output columns; 1 unless the kernel splits them
    u32 causal;       // query i sees keys 0 ..= i only
    float scale;
};
static_assert(sizeof(AttentionArgs) == 192, "AttentionArgs");

constexpr float LOG2_E = 1.4426950408889634f;

// What a block works on. Blocks of one head are neighbours, so that its keys and values stay in the second-level cache.
struct Work {
    u32 query;  // first query
    u32 column; // number of the tile of output columns
    u32 head;
    u32 sample;
    u32 keys;         // keys that any of the block's queries sees
    u64 q, k, v;      // addresses of the matrices
    u32 q_row, k_row; // first rows of the sample, or of its condition
    u32 first;        // column of the head in all matrices

    __device__ __forceinline__ Work(const AttentionArgs &args, u32 queries_per_block) {
        u32 rest = blockIdx.x / args.query_tiles;
        u32 tile = blockIdx.x % args.query_tiles;
        // Under a causal mask later tiles have more work: they start first.
        query = (args.causal ? args.query_tiles - 1 - tile : tile) * queries_per_block;
        column = rest % args.column_tiles;
        head = rest / args.column_tiles % args.heads;
        sample = rest / args.column_tiles / args.heads;
        keys = args.keys;
        u32 of_keys = args.condition != 0 ? global<const u32>(args.condition)[sample] : sample;
        if (args.lengths != 0) keys = min(keys, global<const u32>(args.lengths)[of_keys]);
        if (args.causal) keys = min(keys, query + queries_per_block);
        q = place(args.q.at, args.q.stride, args.calls);
        k = place(args.k.at, args.k.stride, args.calls);
        v = place(args.v.at, args.v.stride, args.calls);
        q_row = sample * args.queries;
        k_row = of_keys * args.keys;
        first = head * args.e;
    }
};

// Number of the element at `column` of row `row`.
DEVICE u64 element(const Floats &f, u32 row, u32 column) { return static_cast<u64>(row) * f.cols + column; }
