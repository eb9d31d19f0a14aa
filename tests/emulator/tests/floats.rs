//! Floating-point instructions and conversions, bit by bit.

mod common;

use common::words;

/// Runs an instruction on word operands `%r1`... and returns `%r9`.
fn w(instruction: &str, operands: &[u32]) -> u32 {
    let moves: String =
        operands.iter().enumerate().map(|(i, value)| format!("mov.u32 %r{}, {value:#x};\n", i + 1)).collect();
    words(&format!("{moves}{instruction}\nst.global.u32 [%out], %r9;"), 1, 1)[0]
}

/// Runs an instruction on 64-bit operands `%rd1`... and returns `%rd9`.
fn d(instruction: &str, operands: &[u64]) -> u64 {
    let moves: String =
        operands.iter().enumerate().map(|(i, value)| format!("mov.u64 %rd{}, {value:#x};\n", i + 1)).collect();
    let out = words(&format!("{moves}{instruction}\nst.global.u64 [%out], %rd9;"), 1, 2);
    u64::from(out[0]) | u64::from(out[1]) << 32
}

fn check(cases: &[(&str, &[u32], u32)]) {
    for (instruction, operands, want) in cases {
        let got = w(instruction, operands);
        assert_eq!(got, *want, "{instruction} of {operands:x?}: {got:#x} instead of {want:#x}");
    }
}

/// Cases over f32 values.
fn check32(cases: &[(&str, &[f32], f32)]) {
    for (instruction, operands, want) in cases {
        let bits: Vec<u32> = operands.iter().map(|value| value.to_bits()).collect();
        let got = f32::from_bits(w(instruction, &bits));
        let same = got.to_bits() == want.to_bits() || got.to_bits() == 0x7fff_ffff && want.is_nan();
        assert!(same, "{instruction} of {operands:?}: {got:e} instead of {want:e}");
    }
}

const INF: f32 = f32::INFINITY;
const NAN: f32 = f32::NAN;
const TINY: f32 = f32::from_bits(1);

#[test]
fn single() {
    let up = 1f32.next_up();
    check32(&[
        ("add.f32 %r9, %r1, %r2;", &[1.5, 2.25], 3.75),
        ("add.rn.f32 %r9, %r1, %r2;", &[1.0, 5.9604645e-8], 1.0),
        ("add.rp.f32 %r9, %r1, %r2;", &[1.0, TINY], up),
        ("add.rz.f32 %r9, %r1, %r2;", &[-1.0, -TINY], -1.0),
        ("add.rm.f32 %r9, %r1, %r2;", &[-1.0, -TINY], -up),
        ("add.ftz.f32 %r9, %r1, %r2;", &[TINY, TINY], 0.0),
        ("add.f32 %r9, %r1, %r2;", &[TINY, TINY], f32::from_bits(2)),
        ("add.sat.f32 %r9, %r1, %r2;", &[1.0, 2.0], 1.0),
        ("add.sat.f32 %r9, %r1, %r2;", &[-1.0, -2.0], 0.0),
        ("add.sat.f32 %r9, %r1, %r2;", &[NAN, 1.0], 0.0),
        ("add.f32 %r9, %r1, %r2;", &[INF, -INF], NAN),
        ("sub.f32 %r9, %r1, %r2;", &[1.0, 3.0], -2.0),
        ("sub.rm.f32 %r9, %r1, %r2;", &[1.0, 1.0], -0.0),
        ("mul.f32 %r9, %r1, %r2;", &[1e30, 1e30], INF),
        ("mul.rz.f32 %r9, %r1, %r2;", &[1e30, 1e30], f32::MAX),
        ("mul.rn.f32 %r9, %r1, %r2;", &[up, up], 1.0 + 2.0 * f32::EPSILON),
        ("mul.rp.f32 %r9, %r1, %r2;", &[up, up], (1.0 + 2.0 * f32::EPSILON).next_up()),
        ("mul.rp.f32 %r9, %r1, %r2;", &[TINY, TINY], TINY),
        ("mul.ftz.f32 %r9, %r1, %r2;", &[1e-20, -1e-20], -0.0),
        ("fma.rn.f32 %r9, %r1, %r2, %r3;", &[up, up, -(1.0 + 2.0 * f32::EPSILON)], 1.4210855e-14),
        ("fma.rm.f32 %r9, %r1, %r2, %r3;", &[1.0, 1.0, -1.0], -0.0),
        ("fma.rz.f32 %r9, %r1, %r2, %r3;", &[1.0, 1.0, -TINY], 1f32.next_down()),
        ("fma.rn.ftz.f32 %r9, %r1, %r2, %r3;", &[TINY, 1e38, 1.0], 1.0),
        ("mad.rn.sat.f32 %r9, %r1, %r2, %r3;", &[1.0, 1.0, 1.0], 1.0),
        ("div.rn.f32 %r9, %r1, %r2;", &[1.0, 3.0], 1.0 / 3.0),
        ("div.rz.f32 %r9, %r1, %r2;", &[1.0, 3.0], (1f32 / 3.0).next_down()),
        ("div.full.f32 %r9, %r1, %r2;", &[6.0, 3.0], 2.0),
        ("div.approx.ftz.f32 %r9, %r1, %r2;", &[1.0, 0.0], INF),
        ("rcp.rn.f32 %r9, %r1;", &[-0.0], -INF),
        ("rcp.approx.ftz.f32 %r9, %r1;", &[TINY], INF),
        ("sqrt.rn.f32 %r9, %r1;", &[2.0], std::f32::consts::SQRT_2),
        ("sqrt.rp.f32 %r9, %r1;", &[2.0], std::f32::consts::SQRT_2.next_up()),
        ("sqrt.approx.f32 %r9, %r1;", &[-1.0], NAN),
        ("rsqrt.approx.f32 %r9, %r1;", &[4.0], 0.5),
        ("ex2.approx.f32 %r9, %r1;", &[-3.0], 0.125),
        ("ex2.approx.ftz.f32 %r9, %r1;", &[-140.0], 0.0),
        ("lg2.approx.f32 %r9, %r1;", &[8.0], 3.0),
        ("sin.approx.f32 %r9, %r1;", &[0.0], 0.0),
        ("cos.approx.f32 %r9, %r1;", &[0.0], 1.0),
        ("tanh.approx.f32 %r9, %r1;", &[100.0], 1.0),
        ("min.f32 %r9, %r1, %r2;", &[NAN, 1.0], 1.0),
        ("min.NaN.f32 %r9, %r1, %r2;", &[NAN, 1.0], NAN),
        ("min.f32 %r9, %r1, %r2;", &[0.0, -0.0], -0.0),
        ("max.f32 %r9, %r1, %r2;", &[-0.0, 0.0], 0.0),
        ("max.f32 %r9, %r1, %r2;", &[NAN, NAN], NAN),
        ("max.NaN.f32 %r9, %r1, %r2;", &[1.0, NAN], NAN),
        ("abs.f32 %r9, %r1;", &[-2.0], 2.0),
        ("abs.ftz.f32 %r9, %r1;", &[-TINY], 0.0),
        ("neg.f32 %r9, %r1;", &[2.0], -2.0),
        ("copysign.f32 %r9, %r1, %r2;", &[-0.0, 3.0], -3.0),
    ]);
}

#[test]
fn double() {
    let f = f64::to_bits;
    for (instruction, operands, want) in [
        ("add.f64 %rd9, %rd1, %rd2;", vec![1.0, 2.0], 3.0),
        ("add.rz.f64 %rd9, %rd1, %rd2;", vec![1.0, -1e-30], 1f64.next_down()),
        ("mul.rp.f64 %rd9, %rd1, %rd2;", vec![0.1, 0.1], 0.010000000000000002),
        ("fma.rn.f64 %rd9, %rd1, %rd2, %rd3;", vec![0.1, 10.0, -1.0], 0.1f64.mul_add(10.0, -1.0)),
        ("div.rn.f64 %rd9, %rd1, %rd2;", vec![1.0, 3.0], 1.0 / 3.0),
        ("sqrt.rn.f64 %rd9, %rd1;", vec![2.0], 2f64.sqrt()),
        ("rcp.rn.f64 %rd9, %rd1;", vec![3.0], 1.0 / 3.0),
        ("rcp.approx.ftz.f64 %rd9, %rd1;", vec![2.0], 0.5),
        ("min.f64 %rd9, %rd1, %rd2;", vec![f64::NAN, 1.0], 1.0),
        ("abs.f64 %rd9, %rd1;", vec![-1.0], 1.0),
        ("neg.f64 %rd9, %rd1;", vec![1.0], -1.0),
        ("copysign.f64 %rd9, %rd1, %rd2;", vec![-1.0, 2.0], -2.0),
        ("cvt.rzi.f64.f64 %rd9, %rd1;", vec![-2.7], -2.0),
        ("cvt.rni.f64.f64 %rd9, %rd1;", vec![2.5], 2.0),
        ("cvt.rn.f32.f64 %r1, %rd1; cvt.f64.f32 %rd9, %r1;", vec![0.1], f64::from(0.1f32)),
        ("cvt.rp.f32.f64 %r1, %rd1; cvt.f64.f32 %rd9, %r1;", vec![0.1], f64::from(0.1f32)),
        ("cvt.rm.f32.f64 %r1, %rd1; cvt.f64.f32 %rd9, %r1;", vec![0.1], f64::from(0.1f32.next_down())),
        ("cvt.rzi.s64.f64 %rd2, %rd1; cvt.rn.f64.s64 %rd9, %rd2;", vec![-1e15 - 0.5], -1e15),
    ] {
        let bits: Vec<u64> = operands.iter().map(|&value| f(value)).collect();
        let got = f64::from_bits(d(instruction, &bits));
        assert_eq!(got.to_bits(), want.to_bits(), "{instruction} of {operands:?}: {got:e} instead of {want:e}");
    }
}

#[test]
fn halves() {
    let (one, two, max, inf, nan) = (0x3c00, 0x4000, 0x7bff, 0x7c00, 0x7fff);
    let h = |instruction: &str, operands: [u32; 3]| {
        let text = format!(
            "cvt.u16.u32 %rs1, %r1; cvt.u16.u32 %rs2, %r2; cvt.u16.u32 %rs3, %r3; {instruction} cvt.u32.u16 %r9, %rs9;"
        );
        w(&text, &operands)
    };
    for (instruction, operands, want) in [
        ("add.f16 %rs9, %rs1, %rs2;", [one, one, 0], two),
        ("add.rn.f16 %rs9, %rs1, %rs2;", [one, 0x1000, 0], one), // half a unit: tie to even
        ("add.f16 %rs9, %rs1, %rs2;", [one, 0x1001, 0], 0x3c01),
        ("add.f16 %rs9, %rs1, %rs2;", [max, max, 0], inf),
        ("add.sat.f16 %rs9, %rs1, %rs2;", [one, one, 0], one),
        ("add.f16 %rs9, %rs1, %rs2;", [1, 1, 0], 2),
        ("sub.f16 %rs9, %rs1, %rs2;", [inf, inf, 0], nan),
        ("mul.f16 %rs9, %rs1, %rs2;", [0x0400, 0x3800, 0], 0x0200),
        ("mul.f16 %rs9, %rs1, %rs2;", [1, 0x3800, 0], 0),
        ("fma.rn.f16 %rs9, %rs1, %rs2, %rs3;", [0x3c01, 0x3c01, 0xbc02], 0x0010),
        ("min.f16 %rs9, %rs1, %rs2;", [nan, one, 0], one),
        ("max.NaN.f16 %rs9, %rs1, %rs2;", [nan, one, 0], nan),
        ("neg.f16 %rs9, %rs1;", [one, 0, 0], 0xbc00),
        ("abs.f16 %rs9, %rs1;", [0xbc00, 0, 0], one),
        ("ex2.approx.f16 %rs9, %rs1;", [two, 0, 0], 0x4400),
        ("tanh.approx.f16 %rs9, %rs1;", [0x5000, 0, 0], one),
    ] {
        let got = h(instruction, operands);
        assert_eq!(got, want, "{instruction} of {operands:x?}: {got:#x}");
    }
    check(&[
        ("add.f16x2 %r9, %r1, %r2;", &[0x3c00_4000, 0x4000_3c00], 0x4200_4200),
        ("fma.rn.f16x2 %r9, %r1, %r2, %r3;", &[0x3c00_4000, 0x4000_3c00, 0x3c00_0000], 0x4200_4000),
        ("mul.f16x2 %r9, %r1, %r2;", &[0x3c00_4000, 0xbc00_bc00], 0xbc00_c000),
        ("max.f16x2 %r9, %r1, %r2;", &[0x3c00_4000, 0x4000_3c00], 0x4000_4000),
        ("neg.f16x2 %r9, %r1;", &[0x3c00_4000], 0xbc00_c000),
        ("ex2.approx.f16x2 %r9, %r1;", &[0x0000_3c00], 0x3c00_4000),
        ("cvt.rn.f16x2.f32 %r9, %r1, %r2;", &[1f32.to_bits(), 2f32.to_bits()], 0x3c00_4000),
    ]);
}

#[test]
fn float_conversions() {
    let f = f32::to_bits;
    let half = |cvt: &str| format!("{cvt} cvt.u32.u16 %r9, %rs1;");
    for (cvt, value, want) in [
        ("cvt.rn.f16.f32 %rs1, %r1;", 65519.0, 0x7bff),
        ("cvt.rn.f16.f32 %rs1, %r1;", 65520.0, 0x7c00),
        ("cvt.rz.f16.f32 %rs1, %r1;", 1e6, 0x7bff),
        ("cvt.rn.sat.f16.f32 %rs1, %r1;", 3.0, 0x3c00),
        ("cvt.rn.f16.f32 %rs1, %r1;", -2.980_232_2e-8, 0x8000),
        ("cvt.rn.f16.f32 %rs1, %r1;", NAN, 0x7fff),
        ("cvt.rm.f16.f32 %rs1, %r1;", -1e-10, 0x8001),
        ("cvt.rni.u16.f32 %rs1, %r1;", 70000.0, 0xffff),
        ("cvt.rzi.s16.f32 %rs1, %r1;", -40000.0, 0x8000),
    ] {
        assert_eq!(w(&half(cvt), &[f(value)]), want, "{cvt} of {value}");
    }
    check(&[
        ("cvt.u16.u32 %rs1, %r1; cvt.f32.f16 %r9, %rs1;", &[0x3555], f(0.33325195)),
        ("cvt.u16.u32 %rs1, %r1; cvt.f32.f16 %r9, %rs1;", &[0x8001], f(-5.9604645e-8)),
        ("cvt.rni.s32.f32 %r9, %r1;", &[f(2.5)], 2),
        ("cvt.rni.s32.f32 %r9, %r1;", &[f(-3.5)], -4i32 as u32),
        ("cvt.rzi.s32.f32 %r9, %r1;", &[f(-3.9)], -3i32 as u32),
        ("cvt.rmi.s32.f32 %r9, %r1;", &[f(-3.1)], -4i32 as u32),
        ("cvt.rpi.s32.f32 %r9, %r1;", &[f(3.1)], 4),
        ("cvt.rni.s32.f32 %r9, %r1;", &[f(3e9)], i32::MAX as u32),
        ("cvt.rni.s32.f32 %r9, %r1;", &[f(-INF)], i32::MIN as u32),
        ("cvt.rni.s32.f32 %r9, %r1;", &[f(NAN)], 0),
        ("cvt.rzi.u32.f32 %r9, %r1;", &[f(-5.0)], 0),
        ("cvt.rzi.u32.f32 %r9, %r1;", &[f(4294967040.0)], 4294967040),
        ("cvt.rzi.u32.f32 %r9, %r1;", &[f(5e9)], u32::MAX),
        ("cvt.rzi.s8.f32 %r9, %r1;", &[f(-200.0)], -128i32 as u32),
        ("cvt.rzi.u8.f32 %r9, %r1;", &[f(300.0)], 255),
        ("cvt.rzi.u64.f32 %rd1, %r1; cvt.u32.u64 %r9, %rd1;", &[f(3e10)], (30_000_001_024u64 & 0xffff_ffff) as u32),
        ("cvt.rzi.s64.f32 %rd1, %r1; mov.b64 {_, %r9}, %rd1;", &[f(NAN)], 0x8000_0000),
        ("cvt.f64.f32 %rd1, %r1; cvt.rzi.s32.f64 %r9, %rd1;", &[f(NAN)], 0x8000_0000),
        ("cvt.rmi.f32.f32 %r9, %r1;", &[f(-0.5)], f(-1.0)),
        ("cvt.rni.f32.f32 %r9, %r1;", &[f(-0.5)], f(-0.0)),
        ("cvt.sat.f32.f32 %r9, %r1;", &[f(1.5)], f(1.0)),
        ("cvt.sat.f32.f32 %r9, %r1;", &[f(NAN)], 0),
        ("cvt.ftz.f32.f32 %r9, %r1;", &[1], 0),
        ("cvt.rn.f32.s32 %r9, %r1;", &[0x0100_0001], f(16777216.0)),
        ("cvt.rp.f32.s32 %r9, %r1;", &[0x0100_0001], f(16777218.0)),
        ("cvt.rn.f32.u32 %r9, %r1;", &[u32::MAX], f(4294967296.0)),
        ("cvt.rz.f32.u32 %r9, %r1;", &[u32::MAX], f(4294967040.0)),
        ("cvt.rn.f32.s8 %r9, %r1;", &[0x180], f(-128.0)),
        (
            "cvt.s64.s32 %rd1, %r1; shl.b64 %rd1, %rd1, 38; add.s64 %rd1, %rd1, 1; cvt.rn.f32.s64 %r9, %rd1;",
            &[0x0100_0001],
            f(4.6116863e18),
        ),
    ]);
}

#[test]
fn integer_conversions() {
    check(&[
        ("cvt.s32.s8 %r9, %r1;", &[0x1ff], u32::MAX),
        ("cvt.u32.u8 %r9, %r1;", &[0x1ff], 255),
        ("cvt.s32.u8 %r9, %r1;", &[0x1ff], 255),
        ("cvt.u32.s8 %r9, %r1;", &[0x80], 0xffff_ff80),
        ("cvt.s8.s32 %r9, %r1;", &[0x180], 0xffff_ff80),
        ("cvt.sat.s8.s32 %r9, %r1;", &[1000], 127),
        ("cvt.sat.s8.s32 %r9, %r1;", &[-1000i32 as u32], -128i32 as u32),
        ("cvt.sat.u8.s32 %r9, %r1;", &[-1000i32 as u32], 0),
        ("cvt.sat.u8.u32 %r9, %r1;", &[1000], 255),
        ("cvt.sat.s32.u32 %r9, %r1;", &[u32::MAX], i32::MAX as u32),
        ("cvt.u16.u32 %rs1, %r1; cvt.s32.s16 %r9, %rs1;", &[0xffff], u32::MAX),
        ("cvt.s8.s32 %rs1, %r1; cvt.u32.u16 %r9, %rs1;", &[0x80], 0xff80),
        ("cvt.s64.s32 %rd1, %r1; mov.b64 {_, %r9}, %rd1;", &[0x8000_0000], u32::MAX),
        ("cvt.u64.u32 %rd1, %r1; mov.b64 {_, %r9}, %rd1;", &[0x8000_0000], 0),
        ("cvt.pack.sat.s8.s32.b32 %r9, %r1, %r2, %r3;", &[300, -300i32 as u32, 0x1234], 0x1234_7f80),
        ("cvt.pack.sat.u8.s32.b32 %r9, %r1, %r2, %r3;", &[300, -300i32 as u32, 0x1234], 0x1234_ff00),
        ("cvt.pack.sat.s16.s32 %r9, %r1, %r2;", &[40000, -40000i32 as u32], 0x7fff_8000),
    ]);
}

#[test]
fn loads_extend() {
    check(&[
        ("st.global.u32 [%out], %r1; ld.global.s8 %r9, [%out];", &[0x80], 0xffff_ff80),
        ("st.global.u32 [%out], %r1; ld.global.u8 %r9, [%out];", &[0x80], 0x80),
        ("st.global.u32 [%out], %r1; ld.global.s16 %r9, [%out+2];", &[0x8000_0000], 0xffff_8000),
        ("st.global.u32 [%out], %r1; ld.global.s8 %rs1, [%out]; cvt.u32.u16 %r9, %rs1;", &[0x80], 0xff80),
        ("st.global.u32 [%out], %r1; ld.global.s8 %rd1, [%out]; mov.b64 {_, %r9}, %rd1;", &[0x80], u32::MAX),
        (
            "mov.u32 %r9, 7; st.global.u32 [%out], %r9; st.global.u8 [%out], %r1; ld.global.u32 %r9, [%out];",
            &[0x1234],
            0x34,
        ),
    ]);
}
