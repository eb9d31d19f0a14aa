//! Integer, logic and comparison instructions against values worked out by hand from the ISA.

mod common;

use common::words;

/// Runs `instruction` on operands in `%r1`, `%r2`, `%r3`, `%r4` and returns `%r9`.
fn w(instruction: &str, operands: &[u32]) -> u32 {
    let moves: String =
        operands.iter().enumerate().map(|(i, value)| format!("mov.u32 %r{}, {value:#x};\n", i + 1)).collect();
    words(&format!("{moves}{instruction}\nst.global.u32 [%out], %r9;"), 1, 1)[0]
}

/// The same with 64-bit operands `%rd1`... and `%rd9`; `%r1` is also set to the low word of the last operand.
fn d(instruction: &str, operands: &[u64]) -> u64 {
    let mut moves: String =
        operands.iter().enumerate().map(|(i, value)| format!("mov.u64 %rd{}, {value:#x};\n", i + 1)).collect();
    moves += &format!("cvt.u32.u64 %r1, %rd{};", operands.len());
    let out = words(&format!("{moves}{instruction}\nst.global.u64 [%out], %rd9;"), 1, 2);
    u64::from(out[0]) | u64::from(out[1]) << 32
}

fn check(cases: &[(&str, &[u32], u32)]) {
    for (instruction, operands, want) in cases {
        let got = w(instruction, operands);
        assert_eq!(got, *want, "{instruction} of {operands:x?}: {got:#x} instead of {want:#x}");
    }
}

fn check64(cases: &[(&str, &[u64], u64)]) {
    for (instruction, operands, want) in cases {
        let got = d(instruction, operands);
        assert_eq!(got, *want, "{instruction} of {operands:x?}: {got:#x} instead of {want:#x}");
    }
}

const MIN: u32 = 0x8000_0000;
const ALL: u32 = 0xffff_ffff;

#[test]
fn arithmetic() {
    check(&[
        ("add.s32 %r9, %r1, %r2;", &[ALL, 3], 2),
        ("add.sat.s32 %r9, %r1, %r2;", &[0x7fff_ffff, 3], 0x7fff_ffff),
        ("sub.sat.s32 %r9, %r1, %r2;", &[MIN, 3], MIN),
        ("sub.u32 %r9, %r1, 5;", &[3], ALL - 1),
        ("mul.lo.s32 %r9, %r1, %r2;", &[0x10001, 0x10001], 0x20001),
        ("mul.hi.u32 %r9, %r1, %r2;", &[ALL, ALL], ALL - 1),
        ("mul.hi.s32 %r9, %r1, %r2;", &[ALL, 7], ALL),
        ("mul.hi.s32 %r9, %r1, %r2;", &[MIN, MIN], 0x4000_0000),
        ("mad.lo.u32 %r9, %r1, %r2, %r3;", &[3, 5, 7], 22),
        ("mad.hi.u32 %r9, %r1, %r2, %r3;", &[MIN, 6, 7], 10),
        ("mad.hi.s32 %r9, %r1, %r2, %r3;", &[ALL, 2, 1], 0),
        ("div.s32 %r9, %r1, %r2;", &[-7i32 as u32, 2], -3i32 as u32),
        ("rem.s32 %r9, %r1, %r2;", &[-7i32 as u32, 2], ALL),
        ("div.u32 %r9, %r1, %r2;", &[ALL, 16], 0x0fff_ffff),
        ("rem.u32 %r9, %r1, 10;", &[ALL], 5),
        ("abs.s32 %r9, %r1;", &[-5i32 as u32], 5),
        ("neg.s32 %r9, %r1;", &[5], -5i32 as u32),
        ("min.s32 %r9, %r1, %r2;", &[ALL, 1], ALL),
        ("min.u32 %r9, %r1, %r2;", &[ALL, 1], 1),
        ("max.s32 %r9, %r1, %r2;", &[ALL, 1], 1),
        ("max.u32 %r9, %r1, %r2;", &[ALL, 1], ALL),
        ("sad.s32 %r9, %r1, %r2, %r3;", &[-3i32 as u32, 4, 10], 17),
        ("sad.u32 %r9, %r1, %r2, %r3;", &[9, 4, 10], 15),
        ("cvt.u16.u32 %rs1, %r1; mul.wide.s16 %r9, %rs1, %rs1;", &[0xfffe], 4),
        ("cvt.u16.u32 %rs1, %r1; mul.wide.u16 %r9, %rs1, %rs1;", &[0xfffe], 0xfffc_0004),
        ("cvt.u16.u32 %rs1, %r1; mul.hi.s16 %rs2, %rs1, %rs1; cvt.u32.u16 %r9, %rs2;", &[0x8000], 0x4000),
        ("cvt.u16.u32 %rs1, %r1; add.s16 %rs2, %rs1, 1; cvt.s32.s16 %r9, %rs2;", &[0x7fff], 0xffff_8000),
        ("cvt.u16.u32 %rs1, %r1; shr.s16 %rs2, %rs1, 4; cvt.u32.u16 %r9, %rs2;", &[0x8000], 0xf800),
        (
            "cvt.u16.u32 %rs1, %r1; mad.lo.s16 %rs2, %rs1, %rs1, %rs1; cvt.u32.u16 %r9, %rs2;",
            &[300],
            (300 * 301) & 0xffff,
        ),
    ]);
    check64(&[
        ("add.s64 %rd9, %rd1, %rd2;", &[u64::MAX, 2], 1),
        ("mul.lo.s64 %rd9, %rd1, %rd2;", &[1 << 33, 5], 5 << 33),
        ("mul.hi.u64 %rd9, %rd1, %rd2;", &[u64::MAX, u64::MAX], u64::MAX - 1),
        ("mul.hi.s64 %rd9, %rd1, %rd2;", &[u64::MAX, 3], u64::MAX),
        ("mad.lo.s64 %rd9, %rd1, %rd2, %rd2;", &[3, 5], 20),
        ("mad.hi.u64 %rd9, %rd1, %rd2, %rd2;", &[1 << 63, 4], 6),
        ("mul.wide.s32 %rd9, %r1, -2;", &[3], -6i64 as u64),
        ("mul.wide.u32 %rd9, %r1, %r1;", &[0xffff_ffff], 0xffff_fffe_0000_0001),
        ("mad.wide.s32 %rd9, %r1, -2, %rd1;", &[10, 3], 4),
        ("mad.wide.u32 %rd9, %r1, 4, %rd1;", &[1 << 40, 3], (1 << 40) + 12),
        ("div.s64 %rd9, %rd1, %rd2;", &[-9i64 as u64, 2], -4i64 as u64),
        ("rem.u64 %rd9, %rd1, %rd2;", &[u64::MAX, 10], 5),
        ("min.s64 %rd9, %rd1, %rd2;", &[u64::MAX, 2], u64::MAX),
        ("max.u64 %rd9, %rd1, %rd2;", &[u64::MAX, 2], u64::MAX),
        ("neg.s64 %rd9, %rd1;", &[1], u64::MAX),
    ]);
}

#[test]
fn carries() {
    check(&[
        ("add.cc.u32 %r8, %r1, 1; addc.u32 %r9, %r2, %r2;", &[ALL, 5], 11),
        ("add.cc.u32 %r8, %r1, 1; addc.cc.u32 %r8, %r2, 0; addc.u32 %r9, 0, 0;", &[ALL, ALL], 1),
        ("sub.cc.u32 %r8, %r1, %r2; subc.u32 %r9, 10, 0;", &[1, 2], 9),
        ("sub.cc.u32 %r8, %r1, %r2; subc.u32 %r9, 10, 0;", &[2, 2], 10),
        ("mad.lo.cc.u32 %r8, %r1, %r2, %r3; madc.hi.u32 %r9, %r1, %r2, 0;", &[ALL, ALL, ALL], ALL),
        ("mad.lo.cc.u32 %r8, %r1, %r2, %r3; madc.lo.u32 %r9, %r2, 1, 0;", &[ALL, 2, 2], 3),
    ]);
    check64(&[("add.cc.u64 %rd8, %rd1, %rd2; addc.u64 %rd9, 0, 0;", &[u64::MAX, 1], 1)]);
}

#[test]
fn bits_and_shifts() {
    check(&[
        ("and.b32 %r9, %r1, %r2;", &[0xff00, 0x0ff0], 0x0f00),
        ("or.b32 %r9, %r1, %r2;", &[0xff00, 0x0ff0], 0xfff0),
        ("xor.b32 %r9, %r1, %r2;", &[0xff00, 0x0ff0], 0xf0f0),
        ("not.b32 %r9, %r1;", &[0xff00], 0xffff_00ff),
        ("cnot.b32 %r9, %r1;", &[0], 1),
        ("shl.b32 %r9, %r1, %r2;", &[3, 31], MIN),
        ("shl.b32 %r9, %r1, %r2;", &[3, 32], 0),
        ("shl.b32 %r9, %r1, %r2;", &[3, ALL], 0),
        ("shr.u32 %r9, %r1, %r2;", &[MIN, 31], 1),
        ("shr.u32 %r9, %r1, %r2;", &[MIN, 40], 0),
        ("shr.s32 %r9, %r1, %r2;", &[MIN, 40], ALL),
        ("shr.s32 %r9, %r1, 4;", &[MIN], 0xf800_0000),
        ("shf.l.wrap.b32 %r9, %r1, %r2, %r3;", &[0x8765_4321, 0x1234_5678, 36], 0x2345_6788),
        ("shf.l.clamp.b32 %r9, %r1, %r2, %r3;", &[0x8765_4321, 0x1234_5678, 36], 0x8765_4321),
        ("shf.r.wrap.b32 %r9, %r1, %r2, %r3;", &[0x8765_4321, 0x1234_5678, 36], 0x8876_5432),
        ("shf.r.clamp.b32 %r9, %r1, %r2, %r3;", &[0x8765_4321, 0x1234_5678, 36], 0x1234_5678),
        ("shf.l.wrap.b32 %r9, %r1, %r2, 0;", &[1, 2], 2),
        ("bfe.u32 %r9, %r1, %r2, %r3;", &[0xabcd_1234, 8, 8], 0x12),
        ("bfe.s32 %r9, %r1, %r2, %r3;", &[0xabcd_1234, 24, 8], 0xffff_ffab),
        ("bfe.s32 %r9, %r1, %r2, %r3;", &[0xabcd_1234, 28, 16], 0xffff_fffa),
        ("bfe.u32 %r9, %r1, %r2, %r3;", &[0xabcd_1234, 28, 16], 0xa),
        ("bfe.s32 %r9, %r1, %r2, %r3;", &[0xabcd_1234, 40, 8], ALL),
        ("bfe.u32 %r9, %r1, %r2, %r3;", &[0xabcd_1234, 0, 0], 0),
        ("bfe.u32 %r9, %r1, %r2, %r3;", &[0xabcd_1234, 0, 255], 0xabcd_1234),
        ("bfi.b32 %r9, %r1, %r2, %r3, %r4;", &[0xabc, 0, 4, 8], 0xbc0),
        ("bfi.b32 %r9, %r1, %r2, %r3, %r4;", &[0, ALL, 4, 8], 0xffff_f00f),
        ("bfi.b32 %r9, %r1, %r2, %r3, %r4;", &[0xabc, 5, 32, 8], 5),
        ("bfi.b32 %r9, %r1, %r2, %r3, %r4;", &[ALL, 0, 28, 60], 0xf000_0000),
        ("brev.b32 %r9, %r1;", &[0x8000_0001 << 1], 0x4000_0000),
        ("clz.b32 %r9, %r1;", &[0x0001_0000], 15),
        ("clz.b32 %r9, %r1;", &[0], 32),
        ("popc.b32 %r9, %r1;", &[0xf0f0_0001], 9),
        ("bfind.u32 %r9, %r1;", &[0x0001_0000], 16),
        ("bfind.s32 %r9, %r1;", &[-2i32 as u32], 0),
        ("bfind.u32 %r9, %r1;", &[0], ALL),
        ("bfind.shiftamt.u32 %r9, %r1;", &[0x0001_0000], 15),
        ("lop3.b32 %r9, %r1, %r2, %r3, 0x80;", &[0xff00, 0x0ff0, 0xfff], 0x0f00),
        ("lop3.b32 %r9, %r1, %r2, %r3, 0xea;", &[0xff00, 0x0ff0, 1], 0x0f01),
        ("lop3.b32 %r9, %r1, %r2, %r3, 0xca;", &[0xff00, 0x1234, 0x5678], 0x1278),
        ("lop3.b32 %r9, %r1, %r2, %r3, 0x96;", &[0xff00, 0x0ff0, 0xff], 0xf00f),
        ("lop3.b32 %r9, %r1, %r2, %r3, 0x01;", &[0xff00, 0x0ff0, 1], 0xffff_000e),
    ]);
    check64(&[
        ("shl.b64 %rd9, %rd1, %r1;", &[1, 40], 1 << 40),
        ("shl.b64 %rd9, %rd1, %r1;", &[1, 64], 0),
        ("shr.u64 %rd9, %rd1, %r1;", &[1 << 63, 63], 1),
        ("shr.s64 %rd9, %rd1, %r1;", &[1 << 63, 99], u64::MAX),
        ("bfe.u64 %rd9, %rd1, 8, 40;", &[0x1234_5678_9abc_def0], 0x78_9abc_def0 >> 8 | 0x56 << 32),
        ("bfe.s64 %rd9, %rd1, 60, 10;", &[0xa234_5678_9abc_def0], 0xffff_ffff_ffff_fffa),
        ("bfi.b64 %rd9, %rd1, %rd2, 32, 16;", &[0xabcde, 1], 0xbcde_0000_0001),
        ("brev.b64 %rd9, %rd1;", &[1], 1 << 63),
        ("popc.b64 %r2, %rd1; cvt.u64.u32 %rd9, %r2;", &[u64::MAX], 64),
        ("clz.b64 %r2, %rd1; cvt.u64.u32 %rd9, %r2;", &[1], 63),
        ("not.b64 %rd9, %rd1;", &[1], !1),
    ]);
}

#[test]
fn permutes() {
    let (a, b) = (0x8877_6655, 0x4433_2211);
    check(&[
        ("prmt.b32 %r9, %r1, %r2, 0x3210;", &[a, b], a),
        ("prmt.b32 %r9, %r1, %r2, 0x7654;", &[a, b], b),
        ("prmt.b32 %r9, %r1, %r2, 0x0426;", &[a, b], 0x5511_7733),
        // The sign of byte 3 (0x88) is set, that of byte 2 (0x77) is not.
        ("prmt.b32 %r9, %r1, %r2, 0xba98;", &[a, b], 0xff00_0000),
        ("prmt.b32 %r9, %r1, %r2, %r3;", &[a, b, 0xffff_3b10], 0x88ff_6655),
        ("prmt.b32.f4e %r9, %r1, %r2, %r3;", &[a, b, 1], 0x1188_7766),
        ("prmt.b32.b4e %r9, %r1, %r2, %r3;", &[a, b, 1], 0x3344_5566),
        ("prmt.b32.rc8 %r9, %r1, %r2, %r3;", &[a, b, 2], 0x7777_7777),
        ("prmt.b32.ecl %r9, %r1, %r2, %r3;", &[a, b, 2], 0x8877_7777),
        ("prmt.b32.ecr %r9, %r1, %r2, %r3;", &[a, b, 1], 0x6666_6655),
        ("prmt.b32.rc16 %r9, %r1, %r2, %r3;", &[a, b, 1], 0x8877_8877),
    ]);
}

#[test]
fn dot_products() {
    let (a, b) = (0xff02_0304, 0x0102_fe7f);
    check(&[
        ("dp4a.u32.u32 %r9, %r1, %r2, %r3;", &[a, b, 10], 255 + 4 + 3 * 254 + 4 * 127 + 10),
        ("dp4a.s32.s32 %r9, %r1, %r2, %r3;", &[a, b, 10], (-1i32 + 4 - 6 + 508 + 10) as u32),
        ("dp4a.s32.u32 %r9, %r1, %r2, %r3;", &[a, b, 10], (-1i32 + 4 + 762 + 508 + 10) as u32),
        ("dp4a.u32.s32 %r9, %r1, %r2, %r3;", &[a, b, 10], (255i32 + 4 - 6 + 508 + 10) as u32),
        ("dp4a.s32.s32 %r9, %r1, %r2, %r3;", &[0x7f, 0x7f, 0x7fff_ffff], 0x8000_3f00),
    ]);
}

#[test]
fn selections_and_tests() {
    let set = |test: &str| format!("{test} selp.u32 %r9, 1, 0, %p1;");
    let nan = 0x7fc0_0000;
    let one = 1f32.to_bits();
    let two = 2f32.to_bits();
    for (test, operands, want) in [
        ("setp.lt.s32 %p1, %r1, %r2;", vec![ALL, 1], true),
        ("setp.lt.u32 %p1, %r1, %r2;", vec![ALL, 1], false),
        ("setp.lo.u32 %p1, %r1, %r2;", vec![1, ALL], true),
        ("setp.ls.u32 %p1, %r1, %r2;", vec![1, 1], true),
        ("setp.hi.u32 %p1, %r1, %r2;", vec![1, 1], false),
        ("setp.hs.u32 %p1, %r1, %r2;", vec![1, 1], true),
        ("setp.ge.s32 %p1, %r1, %r2;", vec![MIN, 1], false),
        ("setp.eq.b32 %p1, %r1, %r2;", vec![7, 7], true),
        ("setp.ne.s32 %p1, %r1, %r2;", vec![7, 7], false),
        ("setp.eq.f32 %p1, %r1, %r2;", vec![one, one], true),
        ("setp.eq.f32 %p1, %r1, %r2;", vec![nan, nan], false),
        ("setp.ne.f32 %p1, %r1, %r2;", vec![nan, one], false),
        ("setp.neu.f32 %p1, %r1, %r2;", vec![nan, one], true),
        ("setp.equ.f32 %p1, %r1, %r2;", vec![nan, one], true),
        ("setp.equ.f32 %p1, %r1, %r2;", vec![two, one], false),
        ("setp.lt.f32 %p1, %r1, %r2;", vec![nan, one], false),
        ("setp.ltu.f32 %p1, %r1, %r2;", vec![nan, one], true),
        ("setp.ltu.f32 %p1, %r1, %r2;", vec![two, one], false),
        ("setp.gtu.f32 %p1, %r1, %r2;", vec![two, one], true),
        ("setp.leu.f32 %p1, %r1, %r2;", vec![two, one], false),
        ("setp.geu.f32 %p1, %r1, %r2;", vec![one, one], true),
        ("setp.num.f32 %p1, %r1, %r2;", vec![one, nan], false),
        ("setp.nan.f32 %p1, %r1, %r2;", vec![one, nan], true),
        ("setp.gt.ftz.f32 %p1, %r1, %r2;", vec![1, 0], false),
        ("setp.gt.f32 %p1, %r1, %r2;", vec![1, 0], true),
        ("setp.eq.f32 %p1, %r1, %r2;", vec![MIN, 0], true),
        ("setp.lt.s32 %p2, %r1, 9; setp.lt.and.s32 %p1, %r1, %r2, %p2;", vec![3, 4], true),
        ("setp.lt.s32 %p2, %r1, 9; setp.lt.and.s32 %p1, %r1, %r2, !%p2;", vec![3, 4], false),
        ("setp.lt.s32 %p2, %r1, 9; setp.gt.or.s32 %p1, %r1, %r2, %p2;", vec![3, 4], true),
        ("setp.lt.s32 %p2, %r1, 9; setp.lt.xor.s32 %p1, %r1, %r2, %p2;", vec![3, 4], false),
        ("setp.lt.s32 %p2|%p1, %r1, %r2;", vec![3, 4], false),
        ("setp.lt.f32 %p2|%p1, %r1, %r2;", vec![nan, one], true),
        ("setp.lt.s32 %p2, %r1, 9; setp.lt.and.s32 %p3|%p1, %r1, %r2, %p2;", vec![5, 4], true),
        ("setp.lt.s32 %p2, %r1, 9; not.pred %p1, %p2;", vec![3], false),
        ("setp.lt.s32 %p2, %r1, 9; mov.pred %p3, 0; or.pred %p1, %p2, %p3;", vec![3], true),
        ("testp.infinite.f32 %p1, %r1;", vec![0xff80_0000], true),
        ("testp.notanumber.f32 %p1, %r1;", vec![nan], true),
        ("testp.subnormal.f32 %p1, %r1;", vec![1], true),
        ("testp.finite.f32 %p1, %r1;", vec![0x7f80_0000], false),
        ("testp.normal.f32 %p1, %r1;", vec![one], true),
        ("testp.number.f32 %p1, %r1;", vec![one], true),
        ("cvt.u16.u32 %rs1, %r1; setp.lt.s16 %p1, %rs1, 0;", vec![0x8000], true),
        ("cvt.u16.u32 %rs1, %r1; setp.lt.u16 %p1, %rs1, 1;", vec![0x8000], false),
        ("cvt.u16.u32 %rs1, %r1; cvt.u16.u32 %rs2, %r2; setp.lt.f16 %p1, %rs1, %rs2;", vec![0xbc00, 0x3c00], true),
        ("setp.lt.f16x2 %p2|%p1, %r1, %r2;", vec![0x4000_3c00, 0x3c00_4000], false),
        ("setp.lt.f16x2 %p1|%p2, %r1, %r2;", vec![0x4000_3c00, 0x3c00_4000], true),
    ] {
        assert_eq!(w(&set(test), &operands), u32::from(want), "{test} of {operands:x?}");
    }
    check(&[
        ("set.lt.u32.s32 %r9, %r1, %r2;", &[ALL, 1], ALL),
        ("set.gt.u32.s32 %r9, %r1, %r2;", &[ALL, 1], 0),
        ("set.lt.f32.f32 %r9, %r1, %r2;", &[one, two], one),
        ("slct.u32.s32 %r9, 5, 6, %r1;", &[0], 5),
        ("slct.u32.s32 %r9, 5, 6, %r1;", &[ALL], 6),
        ("slct.f32.f32 %r9, %r1, %r2, %r3;", &[one, two, MIN], one),
        ("slct.f32.f32 %r9, %r1, %r2, %r3;", &[one, two, nan], two),
    ]);
    check64(&[
        ("setp.lt.s64 %p1, %rd1, %rd2; selp.b64 %rd9, %rd1, %rd2, %p1;", &[u64::MAX, 5], u64::MAX),
        ("setp.lt.u64 %p1, %rd1, %rd2; selp.b64 %rd9, %rd1, %rd2, %p1;", &[u64::MAX, 5], 5),
        ("setp.gt.f64 %p1, %rd1, %rd2; selp.b64 %rd9, 1, 2, %p1;", &[2f64.to_bits(), 1f64.to_bits()], 1),
    ]);
}

#[test]
fn packing() {
    check(&[
        ("mov.b32 {%rs1, %rs2}, %r1; mov.b32 %r9, {%rs2, %rs1};", &[0x1234_5678], 0x5678_1234),
        ("mov.b64 %rd1, {%r1, %r2}; mov.b64 {%r8, %r9}, %rd1;", &[1, 2], 2),
        ("mov.b64 %rd1, {%r1, %r2}; mov.b64 {%r9, _}, %rd1;", &[1, 2], 1),
        ("mov.b64 %rd1, {%r1, %r2}; mov.b64 {%rs1, %rs2, %rs3, %rs4}, %rd1; cvt.u32.u16 %r9, %rs3;", &[1, 0x30002], 2),
        ("{ .reg .b32 %temp; mov.b32 %temp, %r1; add.u32 %r9, %temp, 1; }", &[1], 2),
        ("mov.u32 %r9, WARP_SZ;", &[], 32),
        ("{ .reg .pred q; setp.eq.u32 q, %r1, 1; @q bra done; mov.u32 %r1, 9; done: mov.u32 %r9, %r1; }", &[1], 1),
    ]);
}

#[test]
fn unknown_text_is_refused() {
    for body in [
        "frob.b32 %r1, %r2;",
        "add.u32.wide %r1, %r2, %r3;",
        "add.u32 %r1, %r2;",
        "add.u32 %r1, %rd1, %r3;",
        "add.u32 %r1, %undeclared, %r3;",
        "add.f16.ftz %rs1, %rs2, %rs3;",
        "ld.global.L9::hot.u32 %r1, [%out];",
        "ld.acquire.gpu.global.u32 %r1, [%out];",
        "bra nowhere;",
        "mma.sync.aligned.m8n8k4.row.col.f32.f16.f16.f32 {%r1}, {%r1}, {%r1}, {%r1};",
        "cvt.f16.f32 %rs1, %f1;",
        "cvt.rn.f32.f16 %f1, %rs1;",
        "fma.f32 %f1, %f2, %f3, %f4;",
        "lop3.b32 %r1, %r2, %r3, %r4, 300;",
        "cp.async.cg.shared.global [%r1], [%out], 4;",
        "mov.u32 %r1, %tid.w;",
        "wgmma.fence.sync.aligned;",
        "call.uni unknown, ();",
        ".reg .b32 %r1;",
        ".surprise 3;",
    ] {
        let text = common::kernel(body);
        assert!(ptx_emulator::Module::parse(&text).is_err(), "accepted: {body}");
    }
    let error = ptx_emulator::Module::parse(&common::kernel("\n\nfrob.b32 %r1;")).err().unwrap();
    assert_eq!(error.line, 14, "{error}");
}
