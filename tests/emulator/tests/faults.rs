//! Kernels that commit each programming error, beside near-identical ones that do not.

mod common;

use common::{expect_clean, expect_fault, kernel, kernel_with, run_text};
use ptx_emulator::{FaultKind, Launch, Memory, Module};

/// `wrong` must fault in this way, `right` must not; one block of 64 threads.
fn pair(kind: FaultKind, wrong: &str, right: &str) {
    expect_fault(&kernel(wrong), 1, 64, kind);
    expect_clean(&kernel(right), 1, 64);
}

const SHARED: &str = ".shared .align 16 .b8 s[512]; .reg .b32 at, next, v, m; .reg .b64 g;
    shl.b32 at, %r0, 2; mov.u32 m, s; add.u32 at, at, m;
    xor.b32 next, %r0, 1; shl.b32 next, next, 2; add.u32 next, next, m;
    mad.wide.u32 g, %r0, 4, %out;\n";

fn shared(kind: FaultKind, wrong: &str, right: &str) {
    pair(kind, &format!("{SHARED}{wrong}"), &format!("{SHARED}{right}"));
}

#[test]
fn out_of_bounds() {
    let kind = FaultKind::OutOfBounds;
    pair(kind, "st.global.u32 [%out+4096], 1;", "setp.eq.u32 %p1, %r0, 0; @%p1 st.global.u32 [%out+4092], 1;");
    pair(kind, "ld.global.u32 %r1, [%out+-4];", "ld.global.u32 %r1, [%out];");
    pair(
        kind,
        "ld.global.v4.u32 {%r1, %r2, %r3, %r4}, [%out+4096];",
        "ld.global.v4.u32 {%r1, %r2, %r3, %r4}, [%out+4080];",
    );
    pair(kind, "mov.u64 %rd1, 64; ld.global.u32 %r1, [%rd1];", "mov.u64 %rd1, 64; ld.param.u64 %rd2, [k_param_0];");
    shared(kind, "st.shared.u32 [at+260], 1;", "st.shared.u32 [at+256], 1;");
    shared(kind, "sub.u32 at, at, 4; st.shared.u32 [at], 1;", "st.shared.u32 [at], 1;");
    pair(kind, "ld.param.u64 %rd1, [k_param_0+8];", "ld.param.u32 %r1, [k_param_0+4];");
    let local = |offset| format!(".local .align 4 .b8 l[8]; st.local.u32 [l+{offset}], 1;");
    pair(kind, &local(8), &local(4));
    // An unguarded last thread, as in a kernel that forgets its bounds check.
    let store = "mad.wide.u32 %rd1, %r0, 64, %out;";
    pair(
        kind,
        &format!("{store} st.global.u32 [%rd1+64], 1;"),
        &format!("{store} setp.lt.u32 %p1, %r0, 63; @%p1 st.global.u32 [%rd1+64], 1;"),
    );
}

#[test]
fn freed_memory() {
    let module = common::parse(&kernel("ld.global.u32 %r1, [%out];"));
    let mut memory = Memory::new();
    let address = common::upload(&mut memory, &[1u32; 64]);
    let params = address.to_le_bytes();
    let launch = Launch { entry: "k", grid: [1; 3], block: [32, 1, 1], dynamic_shared: 0, params: &params, seed: 0 };
    assert!(module.launch(&mut memory, &launch).is_ok());
    memory.free(address).unwrap();
    assert_eq!(memory.bytes_in_use(), 0);
    assert_eq!(memory.peak(), 256);
    assert_eq!(module.launch(&mut memory, &launch).unwrap_err().kind, FaultKind::UseAfterFree);
    assert_eq!(memory.free(address).unwrap_err().kind, FaultKind::UseAfterFree);
    assert_eq!(memory.free(address + 256).unwrap_err().kind, FaultKind::OutOfBounds);
}

#[test]
fn host_access() {
    let mut memory = Memory::new();
    let address = memory.alloc(8);
    assert_eq!(address % 256, 0);
    memory.write(address, &[1; 4]).unwrap();
    let mut bytes = [0; 8];
    assert_eq!(memory.read(address, &mut bytes).unwrap_err().kind, FaultKind::UninitialisedMemory);
    memory.read(address, &mut bytes[..4]).unwrap();
    assert_eq!(memory.write(address + 4, &[0; 5]).unwrap_err().kind, FaultKind::OutOfBounds);
    memory.fill(address, 8, 3).unwrap();
    assert!(memory.is_written(address, 8).unwrap());
    memory.forget(address + 2, 1).unwrap();
    assert!(!memory.is_written(address, 8).unwrap());
    assert!(memory.is_written(address + 3, 5).unwrap());
}

#[test]
fn misaligned() {
    let kind = FaultKind::Misaligned;
    pair(kind, "ld.global.u32 %r1, [%out+2];", "ld.global.u16 %rs1, [%out+2];");
    pair(kind, "ld.global.v2.u32 {%r1, %r2}, [%out+4];", "ld.global.v2.u32 {%r1, %r2}, [%out+8];");
    pair(kind, "ld.global.v4.u32 {%r1, %r2, %r3, %r4}, [%out+8];", "ld.global.v4.u32 {%r1, %r2, %r3, %r4}, [%out+16];");
    shared(kind, "st.shared.u32 [at+1], 1;", "st.shared.u32 [at+4], 1;");
    shared(
        kind,
        "mov.u64 %rd1, 0; st.shared.u64 [at], %rd1;",
        "add.u32 at, at, at; sub.u32 at, at, m; mov.u64 %rd1, 0; st.shared.u64 [at], %rd1;",
    );
}

#[test]
fn uninitialised_memory() {
    let kind = FaultKind::UninitialisedMemory;
    shared(kind, "ld.shared.u32 v, [at];", "st.shared.u32 [at], 1; ld.shared.u32 v, [at];");
    shared(
        kind,
        "st.shared.u8 [at], 1; ld.shared.u16 %rs1, [at];",
        "st.shared.u16 [at], 1; ld.shared.u8 %rs1, [at+1];",
    );
    let local = ".local .align 8 .b8 l[16]; st.local.u32 [l], 1;";
    pair(kind, &format!("{local} ld.local.u64 %rd1, [l];"), &format!("{local} ld.local.u32 %r1, [l];"));
    let fresh = common::parse(&kernel("ld.global.v2.u32 {%r1, %r2}, [%out+8];"));
    let mut memory = Memory::new();
    let address = memory.alloc(16);
    memory.fill(address, 12, 0).unwrap();
    let params = address.to_le_bytes();
    let launch = Launch { entry: "k", grid: [1; 3], block: [32, 1, 1], dynamic_shared: 0, params: &params, seed: 0 };
    assert_eq!(fresh.launch(&mut memory, &launch).unwrap_err().kind, kind);
    memory.fill(address, 16, 0).unwrap();
    assert!(fresh.launch(&mut memory, &launch).is_ok());
}

#[test]
fn uninitialised_registers() {
    let kind = FaultKind::UninitialisedRegister;
    pair(kind, "add.u32 %r2, %r1, 1;", "add.u32 %r2, %r0, 1;");
    pair(kind, "@%p1 add.u32 %r2, %r0, 1;", "setp.eq.u32 %p1, %r0, 1; @%p1 add.u32 %r2, %r0, 1;");
    // Written on some lanes only.
    pair(
        kind,
        "setp.lt.u32 %p1, %r0, 8; @%p1 mov.u32 %r1, 1; add.u32 %r2, %r1, 1;",
        "setp.lt.u32 %p1, %r0, 8; @%p1 mov.u32 %r1, 1; @%p1 add.u32 %r2, %r1, 1;",
    );
    pair(kind, "st.global.u32 [%out+%r0], 1;".replace("+%r0", "").replace("1;", "%r7;").as_str(), "mov.u32 %r7, 1;");
    pair(kind, "addc.u32 %r1, %r0, 1;", "add.cc.u32 %r1, %r0, 1; addc.u32 %r1, %r0, 1;");
    // A shuffle from a lane outside the member mask gives nothing that may be used.
    let half = "setp.lt.u32 %p1, %r0, 16; @!%p1 bra done; shfl.sync.down.b32 %r1, %r0, 8, 31, 0xffff;";
    pair(
        kind,
        &format!("{half} add.u32 %r2, %r1, 1; done:"),
        &format!("{half} setp.lt.u32 %p2, %r0, 8; @%p2 add.u32 %r2, %r1, 1; done:"),
    );
}

#[test]
fn shared_races() {
    let kind = FaultKind::SharedRace;
    let (write, read) = ("st.shared.u32 [at], %r0;", "ld.shared.u32 v, [next];");
    let exchange = |between: &str| format!("{write} {between} {read} st.global.u32 [g], v;");
    shared(kind, &exchange(""), &exchange("bar.sync 0;"));
    // Neighbours share a warp: a warp barrier is enough, but a shuffle or a vote orders nothing.
    shared(kind, &exchange("shfl.sync.idx.b32 v, %r0, 0, 31, -1;"), &exchange("bar.warp.sync -1;"));
    shared(kind, &exchange("setp.eq.u32 %p1, %r0, 0; vote.sync.any.pred %p2, %p1, -1;"), &exchange("bar.sync 0, 64;"));
    shared(kind, &exchange("membar.cta;"), &exchange("barrier.sync 0;"));
    // Reading first, then writing: the order must be kept as well.
    let over = |between: &str| format!("{write} bar.sync 0; {read} {between} {write}");
    shared(kind, &over(""), &over("bar.sync 0;"));
    shared(kind, &over(""), &over("bar.warp.sync -1;"));
    // A warp barrier does not order the other warp.
    let far =
        |between: &str| format!("{write} bar.sync 0; {write} {between} xor.b32 at, at, 128; ld.shared.u32 v, [at];");
    shared(kind, &far("bar.warp.sync -1;"), &far("bar.sync 0;"));
    // The same value by two threads, in one instruction.
    shared(kind, "st.shared.u32 [m], 7;", "setp.eq.u32 %p1, %r0, 0; @%p1 st.shared.u32 [m], 7;");
    // Bytes of one word are told apart.
    let bytes = |shift: u32| {
        format!("shl.b32 v, %r0, {shift}; add.u32 m, m, v; cvt.u16.u32 %rs1, %r0; st.shared.u16 [m], %rs1;")
    };
    shared(kind, &format!("shr.u32 %r0, %r0, 1; {}", bytes(1)), &bytes(1));
    // Atomics do not race with each other, but with plain accesses.
    let zero = "setp.eq.u32 %p1, %r0, 0; @%p1 st.shared.u32 [m], 0; bar.sync 0;";
    let count = "atom.shared.add.u32 v, [m], 1;";
    shared(
        kind,
        &format!("{zero} {count} ld.shared.u32 v, [m];"),
        &format!("{zero} {count} bar.sync 0; ld.shared.u32 v, [m];"),
    );
    shared(kind, count.replace("atom", "st.shared.u32 [m], 0; atom").as_str(), &format!("{zero} {count}"));
    // Only the lanes that a warp barrier names are ordered.
    let partial = |mask: &str| {
        format!("setp.lt.u32 %p1, %r0, 4; @!%p1 bra done; {write} bar.warp.sync {mask}; {read} done: bar.sync 0;")
    };
    shared(kind, &partial("0xf").replace("bar.warp.sync 0xf;", "activemask.b32 v;"), &partial("0xf"));
}

#[test]
fn named_barriers() {
    // Two pairs of warps exchange values with a barrier of their own.
    let text = |id: &str| {
        kernel(&format!(
            ".shared .align 4 .b8 s[512]; .reg .b32 at, other, v, b, m; mov.u32 m, s;
             mad.lo.u32 at, %r0, 4, m; xor.b32 other, %r0, 32; mad.lo.u32 other, other, 4, m;
             st.shared.u32 [at], 0; bar.sync 0;
             st.shared.u32 [at], %r0; shr.u32 b, %r0, 6; add.u32 b, b, 1; {id} ld.shared.u32 v, [other];"
        ))
    };
    expect_clean(&text("bar.sync b, 64;"), 1, 128);
    expect_fault(&text(""), 1, 128, FaultKind::SharedRace);
    // Pairing the wrong warps orders the wrong data.
    expect_fault(
        &text("and.b32 b, %r0, 32; shr.u32 b, b, 5; add.u32 b, b, 1; bar.sync b, 64;"),
        1,
        128,
        FaultKind::SharedRace,
    );
    // A producer only arrives.
    let produce = |arrive: &str, wait: &str| {
        kernel(&format!(
            ".shared .align 4 .b8 s[128]; .reg .b32 at, v, m; mov.u32 m, s; and.b32 at, %r0, 31; mad.lo.u32 at, at, 4, m;
             setp.lt.u32 %p1, %r0, 32; @%p1 st.shared.u32 [at], 0; bar.sync 0; @!%p1 bra consumer;
             st.shared.u32 [at], 1; {arrive} bra.uni done;
             consumer: {wait} ld.shared.u32 v, [at]; done:"
        ))
    };
    expect_clean(&produce("bar.arrive 1, 64;", "bar.sync 1, 64;"), 1, 64);
    expect_fault(
        &produce("st.shared.u32 [at], 2; bar.arrive 1, 64; st.shared.u32 [at], 3;", "bar.sync 1, 64;"),
        1,
        64,
        FaultKind::SharedRace,
    );
}

#[test]
fn asynchronous_copies() {
    let kind = FaultKind::AsyncInFlight;
    let copy = "cp.async.ca.shared.global [at], [g], 4; cp.async.commit_group;";
    let late = |wait: &str| format!("{copy} {wait} ld.shared.u32 v, [at]; st.global.u32 [g], v;");
    shared(kind, &late(""), &late("cp.async.wait_group 0;"));
    shared(kind, &late("cp.async.wait_group 1;"), &late("cp.async.wait_all;"));
    shared(kind, &late("bar.sync 0;"), &late("cp.async.wait_all; bar.sync 0;"));
    shared(
        kind,
        &format!("{copy} st.shared.u32 [at], 1;"),
        &format!("{copy} cp.async.wait_all; st.shared.u32 [at], 1;"),
    );
    // The other thread needs a barrier after the wait, not before it.
    let other = |between: &str| format!("{copy} {between} ld.shared.u32 v, [next];");
    shared(FaultKind::SharedRace, &other("cp.async.wait_all;"), &other("cp.async.wait_all; bar.sync 0;"));
    shared(kind, &other("bar.sync 0; cp.async.wait_group 1;"), &other("cp.async.wait_group 0; bar.sync 0;"));
    // The first of two groups is complete, the second is not.
    let two =
        format!("{copy} cp.async.ca.shared.global [at+256], [g], 4; cp.async.commit_group; cp.async.wait_group 1;");
    shared(kind, &format!("{two} ld.shared.u32 v, [at+256];"), &format!("{two} ld.shared.u32 v, [at];"));
    // Copying over what was read needs a barrier.
    let again = |between: &str| format!("st.shared.u32 [at], 1; bar.sync 0; ld.shared.u32 v, [next]; {between} {copy}");
    shared(FaultKind::SharedRace, &again(""), &again("bar.sync 0;"));
    // Source bytes beyond the source size are neither read nor copied.
    let tail = "cvt.u64.u32 %rd1, %r0; add.u64 %rd1, %out, 4092;";
    let sized = |size: u32| {
        format!(
            "{tail} and.b64 %rd1, %rd1, -16; add.u64 %rd1, %rd1, 16; mad.lo.u32 at, %r0, 4, m; and.b32 at, at, -16; setp.lt.u32 %p1, %r0, 1; @%p1 cp.async.cg.shared.global [at], [%rd1], 16, {size};"
        )
    };
    shared(FaultKind::OutOfBounds, &sized(4), &sized(0));
}

#[test]
fn zero_filled_copy() {
    let bytes = run_text(
        &kernel(
            ".shared .align 16 .b8 s[16]; .reg .b32 m, v; mov.u32 m, s; mov.u32 v, 0x01020304;
             st.global.u32 [%out], v; st.global.u32 [%out+4], v;
             cp.async.cg.shared.global [m], [%out], 16, 6; cp.async.wait_all;
             ld.shared.v4.u32 {%r1, %r2, %r3, %r4}, [m]; st.global.v4.u32 [%out+16], {%r1, %r2, %r3, %r4};",
        ),
        1,
        1,
        32,
        0,
    )
    .unwrap();
    assert_eq!(bytes[16..], [4, 3, 2, 1, 4, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn global_races() {
    let kind = FaultKind::GlobalRace;
    let own = "mad.wide.u32 %rd1, %r0, 4, %out; mov.u32 %r1, %ctaid.x; mad.wide.u32 %rd2, %r1, 256, %rd1;";
    let blocks = |wrong: &str, right: &str| {
        expect_fault(&kernel(&format!("{own}{wrong}")), 2, 64, kind);
        expect_clean(&kernel(&format!("{own}{right}")), 2, 64);
    };
    blocks("st.global.u32 [%rd1], 1;", "st.global.u32 [%rd2], 1;");
    blocks(
        "ld.global.u32 %r2, [%rd1]; st.global.u32 [%rd1], 1;",
        "ld.global.u32 %r2, [%rd2]; st.global.u32 [%rd2], 1;",
    );
    blocks(
        "setp.eq.u32 %p1, %r1, 0; @%p1 st.global.u32 [%rd1], 1; ld.global.u32 %r2, [%rd1];",
        "ld.global.u32 %r2, [%rd1];",
    );
    blocks("red.global.add.u32 [%out], 1; ld.global.u32 %r2, [%out];", "red.global.add.u32 [%out], 1;");
    blocks(
        "setp.eq.u32 %p1, %r1, 0; @%p1 st.global.u32 [%rd1], 1; @!%p1 red.global.add.u32 [%rd1], 1;",
        "atom.global.add.u32 %r2, [%rd1], 1;",
    );
    // Within a block, a barrier orders global memory too.
    let exchange = |between: &str| {
        format!(
            "{own} st.global.u32 [%rd1], 1; {between} xor.b32 %r2, %r0, 33; mad.wide.u32 %rd3, %r2, 4, %out; ld.global.u32 %r3, [%rd3];"
        )
    };
    pair(kind, &exchange(""), &exchange("bar.sync 0;"));
    // A non-coherent load of what the launch wrote.
    let nc = |op: &str| format!("{own} st.global.u32 [%rd1], 1; {op} %r2, [%rd1];");
    pair(FaultKind::NonCoherent, &nc("ld.global.nc.u32"), &nc("ld.global.u32"));
}

#[test]
fn barrier_divergence() {
    let kind = FaultKind::BarrierDivergence;
    let low = "setp.lt.u32 %p1, %r0, 16;";
    pair(
        kind,
        &format!("{low} @%p1 bra skip; bar.sync 0; skip:"),
        &format!("{low} @%p1 bra skip; mov.u32 %r1, 0; skip: bar.sync 0;"),
    );
    pair(kind, &format!("{low} @%p1 bar.sync 0;"), &format!("{low} bar.sync 0; @%p1 mov.u32 %r1, 0;"));
    // Both sides of a branch have a barrier, but not the same one.
    pair(
        kind,
        &format!("{low} @%p1 bra left; bar.sync 0; bra join; left: bar.sync 0; join:"),
        "setp.lt.u32 %p1, %r0, 32; @%p1 bra left; bar.sync 0; bra join; left: bar.sync 0; join:",
    );
    // A warp that leaves while the other waits for all.
    let warp = "setp.lt.u32 %p1, %r0, 32;";
    pair(
        kind,
        &format!("{warp} @%p1 bra skip; bar.sync 0; skip:"),
        &format!("{warp} @%p1 bra skip; bar.sync 0, 32; skip:"),
    );
    pair(kind, &format!("{low} @%p1 exit; bar.sync 0;"), &format!("bar.sync 0; {low} @%p1 exit;"));
    pair(kind, &format!("{warp} selp.u32 %r1, 0, 1, %p1; bar.sync %r1;"), "mov.u32 %r1, 1; bar.sync %r1;");
    pair(kind, "and.b32 %r1, %r0, 1; bar.sync %r1;", "shr.u32 %r1, %r0, 5; bar.sync %r1, 32;");
    pair(kind, "bar.sync 0, 96;", "bar.sync 0, 64;");
    pair(kind, "bar.sync 0, 33;", "bar.sync 15, 64;");
    pair(kind, "mov.u32 %r1, 16; bar.sync %r1;", "mov.u32 %r1, 15; bar.sync %r1;");
}

#[test]
fn warp_synchronisation() {
    let kind = FaultKind::WarpSync;
    let low = "setp.lt.u32 %p1, %r0, 16; and.b32 %r9, %r0, 31; setp.lt.u32 %p2, %r9, 16;";
    let shuffle = |mask: &str| format!("shfl.sync.idx.b32 %r1, %r0, 0, 31, {mask};");
    let half = |mask: &str| format!("{low} @!%p2 bra done; {} done:", shuffle(mask));
    pair(kind, &half("-1"), &half("0xffff"));
    pair(
        kind,
        &format!("{low} {}", shuffle("0xffff")),
        &format!("{low} selp.b32 %r2, 0xffff, 0xffff0000, %p2; {}", shuffle("%r2")),
    );
    pair(kind, &format!("{low} @%p1 exit; {}", shuffle("-1")), &format!("{} {low} @%p1 exit;", shuffle("-1")));
    pair(kind, &format!("{low} @%p2 bar.warp.sync -1;"), &format!("{low} @%p2 bar.warp.sync 0xffff;"));
    // The sides of a branch may meet at different warp barriers.
    pair(
        kind,
        &format!("{low} @%p2 bra left; {} bra join; left: {} join:", shuffle("-1"), shuffle("-1")),
        &format!("{low} @%p2 bra left; bar.warp.sync -1; bra join; left: bar.warp.sync -1; join:"),
    );
    let matrix = ".reg .b32 a<4>; mov.u32 a0, 0; mov.u32 a1, 0; mov.u32 a2, 0; mov.u32 a3, 0;";
    let mma = "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%r1, %r2, %r3, %r4}, {a0, a1, a2, a3}, {a0, a1}, {a0, a1, a2, a3};";
    pair(FaultKind::PartialWarp, &format!("{matrix} {low} @%p2 {mma}"), &format!("{matrix} {mma} {low}"));
    pair(
        FaultKind::PartialWarp,
        &format!("{matrix} {low} @%p2 bra done; {mma} done:"),
        &format!("{matrix} {low} @%p2 bra done; mov.u32 %r1, 0; done: {mma}"),
    );
    expect_fault(&kernel(&format!("{matrix} {mma}")), 1, 48, FaultKind::PartialWarp);
    expect_fault(&kernel(&shuffle("-1")), 1, 48, kind);
}

#[test]
fn endless_loops_and_traps() {
    pair(FaultKind::Budget, "again: bra again;", "again:");
    pair(FaultKind::Trap, "setp.eq.u32 %p1, %r0, 40; @%p1 trap;", "setp.eq.u32 %p1, %r0, 64; @%p1 trap;");
}

#[test]
fn launches() {
    let text = kernel_with(".extern .shared .align 16 .b8 dyn[];", "mov.u32 %r1, dyn; st.shared.u32 [%r1+60], 1;")
        .replace("k_param_0[8])\n", "k_param_0[8])\n.maxntid 64, 1, 1\n");
    let module = Module::parse(&text).unwrap();
    assert_eq!(module.entries().collect::<Vec<_>>(), ["k"]);
    assert_eq!((module.param_bytes("k"), module.param_bytes("x")), (Some(8), None));
    let mut memory = Memory::new();
    let params = memory.alloc(16).to_le_bytes();
    let right = Launch { entry: "k", grid: [1; 3], block: [1; 3], dynamic_shared: 64, params: &params, seed: 0 };
    assert!(module.launch(&mut memory, &right).is_ok());
    for (wrong, kind) in [
        (Launch { entry: "x", ..right }, FaultKind::Launch),
        (Launch { block: [65, 1, 1], ..right }, FaultKind::Launch),
        (Launch { block: [0, 1, 1], ..right }, FaultKind::Launch),
        (Launch { grid: [1, 70000, 1], ..right }, FaultKind::Launch),
        (Launch { params: &params[..4], ..right }, FaultKind::Launch),
        (Launch { dynamic_shared: 1 << 20, ..right }, FaultKind::Launch),
        (Launch { dynamic_shared: 60, ..right }, FaultKind::OutOfBounds),
    ] {
        assert_eq!(module.launch(&mut memory, &wrong).unwrap_err().kind, kind);
    }
}

#[test]
fn faults_tell_where() {
    let text = kernel("setp.eq.u32 %p1, %r0, 37;\n@%p1 st.global.u32 [%out+4096], 1;");
    let fault = run_text(&text, 1, 64, 4096, 0).unwrap_err();
    assert_eq!((fault.line, fault.threads.as_slice(), &*fault.entry), (13, &[37][..], "k"));
    assert_eq!(&*fault.instruction, "@%p1 st.global.u32 [%out+4096], 1;");
    assert!(fault.address.is_some());
    assert!(fault.to_string().contains("offset 4096 of the allocation of 4096 bytes"), "{fault}");
}
