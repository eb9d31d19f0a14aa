// Codes to integer table entries, straight into the B fragments of `mma.m16n8k32`, in registers.
//
// The file's layout makes this possible (src/codec/layout.rs): a 16-byte unit belongs to one row, its code k sits in
// byte k % 16 at bit (k / 16) p of a plane of p bits. Lane l of a warp needs, of row l / 4, the codes 4 (l % 4) + 0..3
// of sixteen (register b0) and of the next sixteen (b1): word l % 4 of the unit holds both, at different bits of the
// same four bytes.
//
// Up to four bits, the two codes of each byte become two nibbles ("pairs"), which is what `prmt` takes as a selector:
// one instruction looks up four codes in eight entries.
#pragma once

#include "common.cuh"

DEVICE u32 permute(u32 low, u32 high, u32 selector) { return __byte_perm(low, high, selector); }

// Planes of a code of `BITS`: low bits first.
template <int BITS>
struct Planes {
    static constexpr int low = BITS == 3 ? 2 : BITS == 5 || BITS == 6 ? 4 : BITS;
    static constexpr int high = BITS - low;
};

// Units of a plane of `bits` that hold 64 codes of a row; a unit of one-bit codes holds 128, of which 64 are used.
__host__ __device__ constexpr int units_of_64(int bits) { return bits == 0 ? 0 : bits == 8 ? 4 : bits == 4 ? 2 : 1; }

// The codes of sixteen plus sixteen columns as two words of four bytes each.
struct Pair {
    u32 b0;
    u32 b1;
};

// Two 2-bit codes per byte (bits 0-1 and 2-3) to two nibbles per byte.
DEVICE u32 spread_2(u32 x) { return (x & 0x03030303u) | ((x & 0x0c0c0c0cu) << 2); }

// Two 1-bit codes per byte (bits 0 and 1) to bit 2 of each nibble.
DEVICE u32 spread_1(u32 y) { return ((y & 0x01010101u) << 2) | ((y & 0x02020202u) << 5); }

// Undoes the interleaving of nibbles: `even` looked up bytes 0 and 1 of the pairs, `odd` bytes 2 and 3.
DEVICE Pair unzip(u32 even, u32 odd) { return {permute(even, odd, 0x6420), permute(even, odd, 0x7531)}; }

// Looks nibbles of at most three bits up in eight entries.
DEVICE Pair look_up_8(const u32 *table, u32 pairs) {
    return unzip(permute(table[0], table[1], pairs), permute(table[0], table[1], pairs >> 16));
}

// Looks nibbles up in sixteen entries: in both halves of the table, then picks by the nibble's top bit.
DEVICE Pair look_up_16(const u32 *table, u32 pairs) {
    u32 within = pairs & 0x77777777u;
    u32 pick = ((pairs >> 1) & 0x44444444u) | 0x32103210u;
    u32 even = permute(permute(table[0], table[1], within), permute(table[2], table[3], within), pick);
    within >>= 16;
    pick >>= 16;
    u32 odd = permute(permute(table[0], table[1], within), permute(table[2], table[3], within), pick);
    return unzip(even, odd);
}

// `a` where the byte of `bits` (0 or 1) is 0, `b` where it is 1.
DEVICE u32 choose(u32 a, u32 b, u32 bits) {
    u32 mask = bits * 0xffu;
    return (a & ~mask) | (b & mask);
}

// What a lane reads of the planes for 32 columns: for planes of 8 bits two words (of adjacent units), else one each.
struct Words {
    u32 low;
    u32 low_next;
    u32 high;
};

// The codes of 32 columns as bytes. `half` counts groups of 32 columns within 64; `quarter` within 128.
template <int BITS>
DEVICE Pair codes_of(const Words &w, int half, int quarter) {
    if constexpr (BITS == 8) return {w.low, w.low_next};
    u32 low = Planes<BITS>::low == 2 ? spread_2(w.low >> (4 * half)) : w.low;
    if constexpr (BITS == 3) low |= spread_1(w.high >> (2 * quarter));
    Pair p = {low & 0x0f0f0f0fu, (low >> 4) & 0x0f0f0f0fu};
    if constexpr (BITS == 5) {
        u32 y = w.high >> (2 * quarter);
        p.b0 |= (y & 0x01010101u) << 4;
        p.b1 |= (y & 0x02020202u) << 3;
    }
    if constexpr (BITS == 6) {
        u32 y = w.high >> (4 * half);
        p.b0 |= (y & 0x03030303u) << 4;
        p.b1 |= (y & 0x0c0c0c0cu) << 2;
    }
    return p;
}

// Registers that hold a row's codebook; 0 where it is too large and stays in shared memory.
__host__ __device__ constexpr int table_registers(int bits) { return bits <= 5 ? (1 << bits) / 4 : 0; }

// Table entries of 32 columns, from a codebook in registers.
template <int BITS>
DEVICE Pair entries_of(const u32 *table, const Words &w, int half, int quarter) {
    static_assert(table_registers(BITS) > 0, "larger codebooks are in shared memory");
    u32 low = Planes<BITS>::low == 2 ? spread_2(w.low >> (4 * half)) : w.low;
    if constexpr (BITS == 2) {
        return unzip(permute(table[0], table[0], low), permute(table[0], table[0], low >> 16));
    } else if constexpr (BITS == 3) {
        return look_up_8(table, low | spread_1(w.high >> (2 * quarter)));
    } else if constexpr (BITS == 4) {
        return look_up_16(table, low);
    } else {
        Pair a = look_up_16(table, low), b = look_up_16(table + 4, low);
        u32 y = w.high >> (2 * quarter);
        return {choose(a.b0, b.b0, y & 0x01010101u), choose(a.b1, b.b1, (y >> 1) & 0x01010101u)};
    }
}

// Four entries of a codebook in shared memory.
DEVICE u32 look_up_shared(const i8 *table, u32 codes) {
    u32 entries = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        entries |= static_cast<u32>(static_cast<u8>(table[(codes >> (8 * i)) & 0xff])) << (8 * i);
    }
    return entries;
}
