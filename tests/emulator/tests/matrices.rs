//! Matrix instructions against naive models, and against tensor cores.

mod common;

use common::{Params, download, kernel, parse, upload, words};
use ptx_emulator::{Launch, Memory, TensorCores};

#[test]
fn matrix_loads() {
    // Element (matrix, row, column) of the tile holds its own number.
    for (count, trans) in [(1, false), (2, false), (4, false), (1, true), (2, true), (4, true)] {
        let list = ["%r10", "%r11", "%r12", "%r13"][..count].join(", ");
        let trans_name = if trans { ".trans" } else { "" };
        let stores: String = (0..count).map(|i| format!("st.global.u32 [%rd1+{}], %r{};\n", i * 4, 10 + i)).collect();
        let body = format!(
            ".shared .align 16 .b8 s[512]; .reg .b32 at, m, v; mov.u32 m, s; shl.b32 at, %r0, 4; add.u32 at, at, m;
             shl.b32 v, %r0, 3; shl.b32 %r1, v, 16; or.b32 v, v, %r1; add.u32 %r2, v, 0x10000; add.u32 %r3, v, 0x30002;
             add.u32 %r4, v, 0x50004; add.u32 %r5, v, 0x70006; st.shared.v4.u32 [at], {{%r2, %r3, %r4, %r5}}; bar.sync 0;
             ldmatrix.sync.aligned.m8n8.x{count}{trans_name}.shared.b16 {{{list}}}, [at];
             mad.wide.u32 %rd1, %r0, 16, %out; {stores}"
        );
        let out = words(&body, 32, 128);
        for lane in 0..32 {
            for matrix in 0..count {
                let element = |i: usize| {
                    let (row, column) = (lane / 4, lane % 4 * 2 + i);
                    let (row, column) = if trans { (column, row) } else { (row, column) };
                    (matrix * 64 + row * 8 + column) as u32
                };
                assert_eq!(out[lane * 4 + matrix], element(0) | element(1) << 16, "x{count}{trans_name}, lane {lane}");
            }
        }
    }
}

/// Row and column of element `i` of the A fragment of a lane, from the tables of the ISA for each shape.
fn a_place(shape: &str, lane: usize, i: usize) -> (usize, usize) {
    let (group, thread) = (lane / 4, lane % 4);
    match shape {
        // "row = groupID for ai where 0 <= i < 2 || 4 <= i < 6, else groupID + 8; col = threadID * 2 + (i & 1), + 8
        // for i >= 4".
        "f16 16" => (group + if i % 4 < 2 { 0 } else { 8 }, thread * 2 + i % 2 + if i < 4 { 0 } else { 8 }),
        "f16 8" => (group + if i < 2 { 0 } else { 8 }, thread * 2 + i % 2),
        "tf32 8" => (group + i % 2 * 8, thread + if i < 2 { 0 } else { 4 }),
        "tf32 4" => (group + if i == 0 { 0 } else { 8 }, thread),
        "int 16" => (group + if i < 4 { 0 } else { 8 }, thread * 4 + i % 4),
        "int 32" => (group + if i % 8 < 4 { 0 } else { 8 }, thread * 4 + i % 4 + if i < 8 { 0 } else { 16 }),
        _ => unreachable!(),
    }
}

/// The same for B: row (k) and column.
fn b_place(shape: &str, lane: usize, i: usize) -> (usize, usize) {
    let (group, thread) = (lane / 4, lane % 4);
    match shape {
        "f16 16" => (thread * 2 + i % 2 + if i < 2 { 0 } else { 8 }, group),
        "f16 8" => (thread * 2 + i, group),
        "tf32 8" => (thread + if i == 0 { 0 } else { 4 }, group),
        "tf32 4" => (thread, group),
        "int 16" => (thread * 4 + i, group),
        "int 32" => (thread * 4 + i % 4 + if i < 4 { 0 } else { 16 }, group),
        _ => unreachable!(),
    }
}

/// Bits of a small integer in the element type, as the shape names it.
fn encode(shape: &str, value: i32) -> u32 {
    match &shape[..3] {
        "f16" => {
            let (sign, size) = (u32::from(value < 0) << 15, value.unsigned_abs());
            if size == 0 {
                return 0;
            }
            let exponent = size.ilog2();
            sign | (exponent + 15) << 10 | (size << (10 - exponent) & 0x3ff)
        }
        "tf3" => (value as f32).to_bits() | 0x1fff, // the low bits must not count
        _ => value as u32 & 0xff,
    }
}

/// What `mma` of this shape and these types makes of A, B and C, given as bits, on these tensor cores.
fn product(
    (shape, types, k, bits): (&str, &str, usize, usize),
    [a, b, c]: [&dyn Fn(usize, usize) -> u32; 3],
    cores: TensorCores,
) -> [[u32; 8]; 16] {
    let (na, nb, per) = (16 * k / 32 * bits / 32, 8 * k / 32 * bits / 32, 32 / bits);
    let mut input = Vec::new();
    for lane in 0..32 {
        let mut words = vec![0u32; na + nb];
        for i in 0..na * per {
            let (row, column) = a_place(shape, lane, i);
            words[i / per] |= a(row, column) << (i % per * bits);
        }
        for i in 0..nb * per {
            let (row, column) = b_place(shape, lane, i);
            words[na + i / per] |= b(row, column) << (i % per * bits);
        }
        words.extend((0..4).map(|i| c(lane / 4 + i / 2 * 8, lane % 4 * 2 + i % 2)));
        input.extend(words);
    }
    let per_lane = na + nb + 4;
    let list = |start: usize, count: usize| {
        (start..start + count).map(|i| format!("%r{}", 10 + i)).collect::<Vec<_>>().join(", ")
    };
    let loads: String = (0..per_lane).map(|i| format!("ld.global.u32 %r{}, [%rd1+{}];\n", 10 + i, i * 4)).collect();
    let acc = list(na + nb, 4);
    let text = kernel(&format!(
        "ld.global.u64 %rd2, [%out+8]; ld.global.u64 %out, [%out]; mad.wide.u32 %rd1, %r0, {}, %out; {loads}
         mma.sync.aligned.m16n8k{k}.row.col.{types} {{{acc}}}, {{{}}}, {{{}}}, {{{acc}}};
         mad.wide.u32 %rd1, %r0, 16, %rd2; st.global.v4.u32 [%rd1], {{{acc}}};",
        per_lane * 4,
        list(0, na),
        list(na, nb),
    ));
    let mut memory = Memory::new();
    let (from, to) = (upload(&mut memory, &input), memory.alloc(512));
    let pointers = upload(&mut memory, &Params::default().pointer(from).pointer(to).0);
    let params = pointers.to_le_bytes();
    let launch = Launch { entry: "k", grid: [1; 3], block: [32, 1, 1], dynamic_shared: 0, params: &params, seed: 0 };
    let mut module = parse(&text);
    module.set_tensor_cores(cores);
    module.launch(&mut memory, &launch).unwrap_or_else(|fault| panic!("{fault}"));
    let out = download(&memory, to, 128, u32::from_le_bytes);
    let mut d = [[0; 8]; 16];
    for (at, &word) in out.iter().enumerate() {
        let (lane, i) = (at / 4, at % 4);
        d[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2] = word;
    }
    d
}

/// Small integers, of which all sums are exact in every type.
#[test]
fn matrix_products() {
    let mut rng = fastrand::Rng::with_seed(11);
    for format @ (shape, types, k, _) in [
        ("f16 16", "f32.f16.f16.f32", 16, 16),
        ("f16 8", "f32.f16.f16.f32", 8, 16),
        ("tf32 8", "f32.tf32.tf32.f32", 8, 32),
        ("tf32 4", "f32.tf32.tf32.f32", 4, 32),
        ("int 32", "s32.s8.s8.s32", 32, 8),
        ("int 32", "s32.u8.s8.s32", 32, 8),
        ("int 32", "s32.s8.u8.s32", 32, 8),
        ("int 32", "s32.u8.u8.s32", 32, 8),
        ("int 16", "s32.s8.s8.s32", 16, 8),
        ("int 16", "s32.u8.u8.s32", 16, 8),
    ] {
        let unsigned: Vec<bool> = types.split('.').map(|ty| ty == "u8").collect();
        let mut draw = |rows: usize, columns: usize, unsigned: bool| -> Vec<Vec<i32>> {
            let range = if unsigned { 0..256 } else { -128..128 };
            (0..rows).map(|_| (0..columns).map(|_| rng.i32(range.clone())).collect()).collect()
        };
        let (a, b, c) = (draw(16, k, unsigned[1]), draw(k, 8, unsigned[2]), draw(16, 8, false));
        let integer = shape.starts_with("int");
        let bits = |value: i32| if integer { value as u32 } else { (value as f32).to_bits() };
        let d = product(
            format,
            [&|i, j| encode(shape, a[i][j]), &|i, j| encode(shape, b[i][j]), &|i, j| bits(c[i][j])],
            TensorCores::Ampere,
        );
        for (row, column) in (0..128).map(|i| (i / 8, i % 8)) {
            let sum: i32 = c[row][column] + (0..k).map(|i| a[row][i] * b[i][column]).sum::<i32>();
            assert_eq!(d[row][column], bits(sum), "{shape} {types}, row {row}, column {column}");
        }
    }
}

/// Floats of any size, against a model that equals chips bit for bit (`fixtures/make_mma.py`).
#[test]
fn floats_are_added_as_tensor_cores_add_them() {
    let mut file = &include_bytes!("fixtures/mma.bin")[..];
    let mut take = |count: usize, bytes: usize| -> Vec<u32> {
        let (words, rest) = file.split_at(count * bytes);
        file = rest;
        let word = |chunk: &[u8]| chunk.iter().rev().fold(0, |word, &byte| word << 8 | u32::from(byte));
        words.chunks_exact(bytes).map(word).collect()
    };
    let (mut cases, mut differing) = (0, 0);
    for (shape, types, bits) in [
        ("f16 16", "f32.f16.f16.f32", 16),
        ("f16 8", "f32.f16.f16.f32", 16),
        ("tf32 8", "f32.tf32.tf32.f32", 32),
        ("tf32 4", "f32.tf32.tf32.f32", 32),
    ] {
        for case in 0..4 {
            let k = take(1, 4)[0] as usize;
            assert!(shape.ends_with(&format!(" {k}")), "{shape}");
            let (a, b, c) = (take(16 * k, bits / 8), take(k * 8, bits / 8), take(128, 4));
            let wanted = [take(128, 4), take(128, 4)];
            for (cores, want) in [TensorCores::Ampere, TensorCores::Hopper].into_iter().zip(&wanted) {
                let d = product(
                    (shape, types, k, bits),
                    [&|i, j| a[i * k + j], &|i, j| b[i * 8 + j], &|i, j| c[i * 8 + j]],
                    cores,
                );
                for (i, (&got, &want)) in d.iter().flatten().zip(want).enumerate() {
                    let (got, want) = (f32::from_bits(got), f32::from_bits(want));
                    let same = got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan();
                    assert!(same, "{shape}, case {case}, {cores:?}, element {i}: {got:e} is not {want:e}");
                }
            }
            cases += 1;
            differing += usize::from(wanted[0] != wanted[1]);
        }
    }
    assert!(cases == 16 && differing > 8, "{differing} of {cases} cases tell the generations apart");
}
