// What every kernel's arguments are made of. A kernel takes one struct by value; src/backend/cuda/args.rs holds the
// same structs again, and both sides assert every size, so a field that moves on one side only does not compile.
#pragma once

typedef unsigned char u8;
typedef signed char i8;
typedef int i32;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

// The call that the loop is at, in device memory; a replayed graph reads it, so that nothing else changes from step to
// step. Values that hold one entry per model call lie `stride` bytes apart.
struct Calls {
    u32 window; // counted from the first call of the tables' window
    u32 run;    // counted from the first call of the run
};

// A float matrix, row-major, without gaps; f16 if `half`, else f32. An address of 0 means that there is none.
struct Floats {
    u64 at;
    u64 stride; // bytes from one model call's value to the next one's; 0 if all calls share it
    u32 rows;
    u32 cols;
    u32 half;
    u32 pad;
};
static_assert(sizeof(Floats) == 32, "Floats");

// Activation codes: x = scale * (q - zero). Offsets count bytes from the first code. `groups` scales and zero points
// (f32), each for rows / groups rows; then the i32 sum of each row's codes. Bytes beyond `cols` of a row are 0.
struct Codes {
    u64 at;
    u64 stride;
    u64 scale_at;
    u64 zero_at;
    u64 sum_at;
    u32 rows;
    u32 cols;
    u32 row_bytes; // a multiple of 16
    u32 groups;
    u32 top; // the greatest code
    u32 pad;
};
static_assert(sizeof(Codes) == 64, "Codes");

// Where an op's codes get their scale: from the data, or from a table of (scale, zero) pairs, one pair per
// `rows_per_entry` rows.
struct Fixed {
    u64 at; // 0: from the data
    u64 stride;
    u32 rows_per_entry;
    u32 pad;
};
static_assert(sizeof(Fixed) == 24, "Fixed");

// Columns of a per-condition matrix, looked up per sample.
struct PerSample {
    Floats table;
    u64 condition; // u32 per sample
    u32 rows_per_sample;
    u32 pad;
};
static_assert(sizeof(PerSample) == 48, "PerSample");

// A weight matrix as it lies in the file (src/codec/layout.rs). `cols` counts all taps together.
struct Weight {
    u64 plane[2]; // bit planes of the codes, low bits first; or the numbers themselves
    u64 table;    // codebooks
    u64 scale;    // f32 per padded row
    u64 offset;   // f32 per padded row
    u64 tap_sums; // i32 (taps, padded rows): sums of table entries
    u32 kind;
    u32 bits;
    u32 rows;
    u32 padded_rows;
    u32 cols;
    u32 taps;
    u32 per_row; // whether each row has a codebook of its own
    // A codebook of consecutive integers is arithmetic: entry = (code + low) ^ high, bytewise and without carries, the
    // first entry being high | low with high its sign bit. Four times the same byte.
    u32 consecutive;
    u32 low;
    u32 high;
};
static_assert(sizeof(Weight) == 88, "Weight");

enum WeightKind : u32 { WEIGHT_F32 = 0, WEIGHT_F16 = 1, WEIGHT_CODES_I8 = 2, WEIGHT_CODES_F16 = 3 };

// How a row of activations is found. One tap: row by row. Nine taps: 3x3 windows over (samples, height, width,
// channels), `stride` pixels apart, after nearest-neighbour upsampling, with `before` zeros above and to the left.
struct Window {
    u32 taps;
    u32 channels;
    u32 height; // of the input
    u32 width;
    u32 out_height;
    u32 out_width;
    u32 upsample; // 1 or 2
    u32 stride;   // 1 or 2
    u32 before;   // 0 or 1
    u32 pad;
};
static_assert(sizeof(Window) == 40, "Window");

// What happens to a product: act(product + bias + shift) * gate + residual, each part optional (address 0).
struct Epilogue {
    u64 bias; // f32 per channel
    Floats residual; // its rows repeat
    PerSample shift;
    PerSample gate; // of as many rows per sample as the shift
    u32 shift_column;
    u32 gate_column;
    u32 act;
    u32 gated; // channels are values and gates by turns: value * act(gate); then neither gate nor shift nor residual
};
static_assert(sizeof(Epilogue) == 152, "Epilogue");

// y = epilogue(x W^T), integer codes on both sides.
struct IntegerProductArgs {
    u64 calls;
    Codes x;
    Weight weight;
    Floats y;
    Window window;
    Epilogue epilogue;
};
static_assert(sizeof(IntegerProductArgs) == 384, "IntegerProductArgs");

// y = epilogue(x W^T), float activations and any kind of weight.
struct FloatProductArgs {
    u64 calls;
    Floats x;
    Weight weight;
    Floats y;
    Window window;
    Epilogue epilogue;
};
static_assert(sizeof(FloatProductArgs) == 352, "FloatProductArgs");

// Activation functions; numbered as in src/backend/cuda/args.rs.
enum Act : u32 { ACT_NONE = 0, ACT_SILU = 1, ACT_GELU_TANH = 2, ACT_GELU_ERF = 3, ACT_QUICK_GELU = 4 };
