// Float activations to the nearest of a grid. The floor is one read and one write; a warp reads its row twice, the second
// time from the first-level cache, so rows may have any length.
#include "quantize.cuh"

struct RoundArgs {
    u64 calls;
    Floats x;
    Floats y;
    Fixed fixed;
    u64 extents;       // (groups, extent_blocks) of (lowest, highest), if rows share a range that is not fixed; else 0
    u32 extent_blocks; // per group
    u32 groups;
    float top; // the greatest code
    u32 pad;
};
static_assert(sizeof(RoundArgs) == 120, "RoundArgs");

// What the codes of rows (rows, cols) stand for. Grid: rows / 4, rounded up.
extern "C" __global__ void __launch_bounds__(ROW_THREADS) round_rows(const __grid_constant__ RoundArgs args) {
    u64 x = place(args.x.at, args.x.stride, args.calls), y = place(args.y.at, args.y.stride, args.calls);
    bool half = args.x.half;
    u32 index = blockIdx.x * (ROW_THREADS / WARP) + team_of_thread<WARP>();
    if (index >= args.x.rows) return;
    u64 base = static_cast<u64>(index) * args.x.cols;
    auto row = row_of<WARP, 0>(
        args.x.cols, [=](float (&v)[RUN], Columns c) { load_columns(x, base, half, true, c, v); });
    u32 rows_per_group = args.x.rows / args.groups, of = index / rows_per_group;

    Range range;
    if (args.fixed.at != 0) {
        // A sample takes the entry of its first row.
        u64 fixed = place(args.fixed.at, args.fixed.stride, args.calls);
        float2 entry = global<const float2>(fixed)[of * rows_per_group / args.fixed.rows_per_entry];
        range = {entry.x, entry.y};
    } else {
        float low = __int_as_float(0x7f800000), high = -low;
        if (args.extents == 0) {
            row.each([&](float (&v)[RUN], Columns c) {
                c.each([&](u32 k) {
                    low = fminf(low, v[k]);
                    high = fmaxf(high, v[k]);
                });
            });
        } else {
            u64 from = args.extents + static_cast<u64>(of) * args.extent_blocks * 8;
            for (u32 i = member<WARP>(); i < args.extent_blocks; i += WARP) {
                float2 part = global<const float2>(from)[i];
                low = fminf(low, part.x);
                high = fmaxf(high, part.y);
            }
        }
        team_extent<WARP, 0>(low, high);
        range = dynamic_range(low, high, args.top);
    }

    float inverse = __fdiv_rn(1.0f, range.scale), whole = rintf(range.zero), rest = __fsub_rn(range.zero, whole);
    row.each([&](float (&v)[RUN], Columns c) {
        c.each([&](u32 k) {
            float q = __fsub_rn(__uint_as_float(biased_code(v[k], inverse, whole, rest, args.top)), ROUND);
            v[k] = __fmul_rn(range.scale, __fsub_rn(q, range.zero));
        });
        store_columns(y, base, args.y.half, c, v);
    });
}
