//! Shuffles, votes, atomics and control flow against naive models.

mod common;

use common::{download, kernel, parse, words};
use ptx_emulator::{Launch, Memory};

/// Runs a body on one warp; each lane stores `%r9`.
fn lanes(body: &str) -> [u32; 32] {
    let out = words(&format!("{body}\nmad.wide.u32 %rd1, %r0, 4, %out; st.global.u32 [%rd1], %r9;"), 32, 32);
    out.try_into().unwrap()
}

fn expect(body: &str, want: impl Fn(u32) -> u32) {
    let got = lanes(body);
    for (lane, &got) in got.iter().enumerate() {
        assert_eq!(got, want(lane as u32), "lane {lane} of {body}");
    }
}

#[test]
fn shuffles() {
    let from = |mode: &str, b: &str, c: &str| {
        format!(
            "mov.u32 %r9, 99; shfl.sync.{mode}.b32 %r1|%p1, %r0, {b}, {c}, -1; selp.u32 %r2, 100, 0, %p1; add.u32 %r9, %r1, %r2;"
        )
    };
    expect(&from("up", "1", "0"), |lane| if lane >= 1 { lane - 1 + 100 } else { 0 });
    expect(&from("down", "3", "31"), |lane| if lane + 3 < 32 { lane + 3 + 100 } else { lane });
    expect(&from("bfly", "5", "31"), |lane| (lane ^ 5) + 100);
    expect(&from("idx", "7", "31"), |_| 107);
    expect(&from("idx", "%r0", "31"), |lane| lane + 100);
    // Segments of 8 lanes: c = (32 - 8) << 8 | clamp.
    expect(&from("up", "2", "0x1800"), |lane| if lane % 8 >= 2 { lane - 2 + 100 } else { lane });
    expect(&from("down", "2", "0x181f"), |lane| if lane % 8 < 6 { lane + 2 + 100 } else { lane });
    expect(&from("idx", "9", "0x181f"), |lane| lane / 8 * 8 + 1 + 100);
    expect(&from("bfly", "8", "0x181f"), |lane| if lane ^ 8 <= lane / 8 * 8 + 7 { (lane ^ 8) + 100 } else { lane });
    // Two halves of a warp in one instruction, each under its own mask.
    expect(
        "setp.lt.u32 %p1, %r0, 16; selp.b32 %r1, 0xffff, 0xffff0000, %p1; shfl.sync.idx.b32 %r9, %r0, 3, 0x100f, %r1;",
        |lane| lane / 16 * 16 + 3,
    );
}

#[test]
fn votes_and_reductions() {
    let low = "setp.lt.u32 %p1, %r0, 5;";
    expect(&format!("{low} vote.sync.ballot.b32 %r9, %p1, -1;"), |_| 31);
    expect(&format!("{low} vote.sync.ballot.b32 %r9, !%p1, -1;"), |_| !31);
    let vote = |mode: &str, p: &str| format!("{low} vote.sync.{mode}.pred %p2, {p}, -1; selp.u32 %r9, 1, 0, %p2;");
    expect(&vote("all", "%p1"), |_| 0);
    expect(&vote("any", "%p1"), |_| 1);
    expect(&vote("uni", "%p1"), |_| 0);
    expect("setp.lt.u32 %p1, %r0, 32; vote.sync.all.pred %p2, %p1, -1; selp.u32 %r9, 1, 0, %p2;", |_| 1);
    expect("setp.gt.u32 %p1, %r0, 32; vote.sync.uni.pred %p2, %p1, -1; selp.u32 %r9, 1, 0, %p2;", |_| 1);
    expect("and.b32 %r1, %r0, 1; match.any.sync.b32 %r9, %r1, -1;", |lane| 0x5555_5555 << (lane & 1));
    expect("mov.u32 %r1, 6; match.all.sync.b32 %r9|%p1, %r1, -1;", |_| u32::MAX);
    expect("match.all.sync.b32 %r9|%p1, %r0, -1; selp.u32 %r9, 5, %r9, %p1;", |_| 0);
    expect("cvt.u64.u32 %rd2, %r0; match.any.sync.b64 %r9, %rd2, -1;", |lane| 1 << lane);
    expect("redux.sync.add.u32 %r9, %r0, -1;", |_| 31 * 16);
    expect("sub.s32 %r1, %r0, 9; redux.sync.min.s32 %r9, %r1, -1;", |_| -9i32 as u32);
    expect("sub.s32 %r1, %r0, 9; redux.sync.max.u32 %r9, %r1, -1;", |_| u32::MAX);
    expect("redux.sync.xor.b32 %r9, %r0, -1;", |_| 0);
    expect("redux.sync.or.b32 %r9, %r0, -1;", |_| 31);
    expect("activemask.b32 %r9;", |_| u32::MAX);
    expect(&format!("{low} activemask.b32 %r9; @%p1 activemask.b32 %r9;"), |lane| if lane < 5 { 31 } else { u32::MAX });
    expect("mov.u32 %r9, %lanemask_lt;", |lane| (1 << lane) - 1);
    expect("mov.u32 %r9, %laneid;", |lane| lane);
    expect("setp.lt.u32 %p1, %r0, 7; bar.red.popc.u32 %r9, 0, %p1;", |_| 7);
    expect("setp.lt.u32 %p1, %r0, 7; bar.red.or.pred %p2, 0, %p1; selp.u32 %r9, 1, 0, %p2;", |_| 1);
    expect("setp.lt.u32 %p1, %r0, 7; bar.red.and.pred %p2, 0, !%p1; selp.u32 %r9, 1, 0, %p2;", |_| 0);
}

#[test]
fn divergence() {
    // Lanes leave a loop one after another and meet behind it.
    expect(
        "mov.u32 %r9, 0; again: add.u32 %r9, %r9, 1; setp.lt.u32 %p1, %r9, %r0; @%p1 bra again;
         activemask.b32 %r1; popc.b32 %r1, %r1; mad.lo.u32 %r9, %r1, 100, %r9;",
        |lane| 3200 + lane.max(1),
    );
    // Sides of a branch laid out backwards still meet before what follows.
    expect(
        "setp.lt.u32 %p1, %r0, 9; bra start; side: mov.u32 %r9, 5; bra join; start: @%p1 bra side; mov.u32 %r9, 6;
         join: activemask.b32 %r1; popc.b32 %r1, %r1; mad.lo.u32 %r9, %r1, 100, %r9;",
        |lane| 3200 + if lane < 9 { 5 } else { 6 },
    );
    expect(
        "and.b32 %r1, %r0, 3; table: .branchtargets a, b, c, a; brx.idx %r1, table;
         a: mov.u32 %r9, 10; bra join; b: mov.u32 %r9, 20; bra join; c: mov.u32 %r9, 30; join: add.u32 %r9, %r9, %r0;",
        |lane| [10, 20, 30, 10][lane as usize % 4] + lane,
    );
}

#[test]
fn calls() {
    let text = ".func (.param .b32 result) twice(.param .b32 value, .param .align 4 .b8 more[8])
         { .reg .b32 %r<4>; .reg .b64 %rd<2>; .reg .pred %p<2>; ld.param.u32 %r1, [value]; mov.b64 %rd1, more; ld.param.u32 %r2, [%rd1+4];
            setp.lt.u32 %p1, %r1, 4; @%p1 bra small; mad.lo.u32 %r3, %r1, 2, %r2; st.param.b32 [result], %r3; ret;
            small: st.param.b32 [result], 7; ret; }";
    let body = "{ .param .b32 v; .param .align 4 .b8 m[8]; .param .b32 back; st.param.b32 [v], %r0;
         st.param.b32 [m], 1; st.param.b32 [m+4], 1000; call.uni (back), twice, (v, m); ld.param.b32 %r9, [back]; }
         activemask.b32 %r1; popc.b32 %r1, %r1; mad.lo.u32 %r9, %r1, 10000, %r9;
         mad.wide.u32 %rd1, %r0, 4, %out; st.global.u32 [%rd1], %r9;";
    let bytes = common::run_text(&common::kernel_with(text, body), 1, 32, 128, 0).unwrap_or_else(|f| panic!("{f}"));
    for (lane, word) in bytes.chunks(4).enumerate() {
        let want = 320_000 + if lane < 4 { 7 } else { lane as u32 * 2 + 1000 };
        assert_eq!(u32::from_le_bytes(word.try_into().unwrap()), want);
    }
}

#[test]
fn atomics() {
    let run = |start: u32, op: &str| {
        words(&format!("setp.eq.u32 %p1, %r0, 0; @%p1 st.global.u32 [%out], {start}; bar.sync 0; {op}"), 32, 1)[0]
    };
    assert_eq!(run(5, "red.global.add.u32 [%out], %r0;"), 5 + 31 * 16);
    assert_eq!(run(5, "atom.global.add.u32 %r1, [%out], 1;"), 37);
    assert_eq!(run(50, "red.global.min.u32 [%out], %r0;"), 0);
    assert_eq!(run(5, "red.global.max.u32 [%out], %r0;"), 31);
    assert_eq!(run(u32::MAX, "red.global.max.s32 [%out], %r0;"), 31);
    assert_eq!(run(5, "red.global.or.b32 [%out], %r0;"), 31);
    assert_eq!(run(8, "atom.global.inc.u32 %r1, [%out], 9;"), (8 + 32) % 10);
    assert_eq!(run(3, "atom.global.cas.b32 %r1, [%out], %r0, 77;"), 77);
    assert_eq!(run(0, "cvt.rn.f32.u32 %f1, %r0; atom.global.add.f32 %f2, [%out], %f1;"), 496f32.to_bits());
    let exchanged = words(
        "setp.eq.u32 %p1, %r0, 0; @%p1 st.global.u32 [%out], 99; bar.sync 0; atom.global.exch.b32 %r1, [%out], %r0;
         mad.wide.u32 %rd1, %r0, 4, %out; st.global.u32 [%rd1+4], %r1;",
        32,
        33,
    );
    let mut all = exchanged.clone();
    all.sort_unstable();
    assert_eq!(all, (0..32).chain([99]).collect::<Vec<_>>());
}

#[test]
fn threads_and_blocks() {
    let text = kernel(
        "mov.u32 %r1, %tid.y; mov.u32 %r2, %tid.z; mov.u32 %r3, %ntid.x; mov.u32 %r4, %ntid.y; mov.u32 %r5, %ctaid.y;
         mov.u32 %r6, %nctaid.x; mov.u32 %r7, %ctaid.x; mad.lo.u32 %r1, %r2, %r4, %r1; mad.lo.u32 %r1, %r1, %r3, %r0;
         mad.lo.u32 %r2, %r5, %r6, %r7; mad.lo.u32 %r2, %r2, 30, %r1; mad.wide.u32 %rd1, %r2, 4, %out;
         st.global.u32 [%rd1], %r2;",
    );
    let module = parse(&text);
    let mut memory = Memory::new();
    let address = memory.alloc(30 * 6 * 4);
    let params = address.to_le_bytes();
    let launch = Launch { entry: "k", grid: [3, 2, 1], block: [5, 3, 2], dynamic_shared: 0, params: &params, seed: 4 };
    let stats = module.launch(&mut memory, &launch).unwrap_or_else(|fault| panic!("{fault}"));
    assert_eq!(download(&memory, address, 180, u32::from_le_bytes), (0..180).collect::<Vec<_>>());
    assert_eq!(stats.instructions["st.global.u32"], 6);
}

#[test]
fn module_variables() {
    let text = common::kernel_with(
        ".global .align 4 .u32 table[4] = {10, 20, 30, 40}; .const .align 8 .b8 bytes[8] = {1, 2, 3}; .global .u32 count;",
        "mad.wide.u32 %rd2, %r0, 4, 0; mov.u64 %rd3, table; add.u64 %rd3, %rd3, %rd2; ld.global.nc.u32 %r1, [%rd3];
         ld.const.u8 %r2, [bytes+2]; add.u32 %r1, %r1, %r2; cvta.const.u64 %rd4, 0; ld.u8 %r3, [%rd4+1];
         add.u32 %r1, %r1, %r3; red.global.add.u32 [count], 1; mad.wide.u32 %rd1, %r0, 4, %out; st.global.u32 [%rd1], %r1;
         bar.sync 0; ld.global.u32 %r4, [count]; setp.eq.u32 %p1, %r0, 0; @%p1 st.global.u32 [%out+16], %r4;",
    );
    let module = parse(&text);
    let mut memory = Memory::new();
    let address = memory.alloc(20);
    let params = address.to_le_bytes();
    for round in 1..3 {
        let launch = Launch { entry: "k", grid: [1; 3], block: [4, 1, 1], dynamic_shared: 0, params: &params, seed: 0 };
        module.launch(&mut memory, &launch).unwrap_or_else(|fault| panic!("{fault}"));
        assert_eq!(download(&memory, address, 5, u32::from_le_bytes), [15, 25, 35, 45, 4 * round]);
    }
}
