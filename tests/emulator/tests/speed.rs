//! Speed of the emulator, printed by `cargo test --test speed -- --ignored --nocapture`.

mod common;

use common::{kernel, parse};
use ptx_emulator::{Launch, Memory};

/// Nanoseconds per warp instruction of a loop of 16 copies of `body`, run by one warp.
fn time(declare: &str, body: &str) -> f64 {
    let text = kernel(&format!(
        "{declare} .reg .pred loop; .reg .b32 n; mov.u32 n, 0;\n\
         again: {} add.u32 n, n, 1; setp.lt.u32 loop, n, 2000; @loop bra again;",
        body.repeat(16)
    ));
    let module = parse(&text);
    let mut memory = Memory::new();
    let address = memory.alloc(4096);
    memory.fill(address, 4096, 0).unwrap();
    let params = address.to_le_bytes();
    let run = Launch { entry: "k", grid: [1; 3], block: [32, 1, 1], dynamic_shared: 0, params: &params, seed: 1 };
    let start = std::time::Instant::now();
    let stats = module.launch(&mut memory, &run).unwrap_or_else(|fault| panic!("{fault}"));
    start.elapsed().as_nanos() as f64 / stats.total_instructions as f64
}

#[test]
#[ignore = "prints timings"]
fn speed() {
    let matrix = ".shared .align 16 .b8 tile[4096]; .reg .b32 a<8>; .reg .b32 at; shl.b32 at, %r0, 4;
        mov.u32 a1, 0x3c003800; mov.u32 a2, a1; mov.u32 a3, a1; mov.u32 a4, a1; mov.u32 a5, 0; mov.u32 a6, 0; mov.u32 a7, 0;
        mov.u32 a0, a1; st.shared.v4.u32 [at], {a1, a2, a3, a4}; bar.sync 0;";
    for (name, declare, body) in [
        ("add.u32", "mov.u32 %r1, 1;", "add.u32 %r1, %r1, %r0;"),
        ("mad.lo", "mov.u32 %r1, 1;", "mad.lo.u32 %r1, %r1, %r0, %r0;"),
        ("add.u64", "mov.u64 %rd1, 1;", "add.u64 %rd1, %rd1, %rd1;"),
        ("fma.f32", "mov.f32 %f1, 0f3F800000;", "fma.rn.f32 %f2, %f1, %f1, %f1;"),
        ("fma.ftz.f32", "mov.f32 %f1, 0f3F800000;", "fma.rn.ftz.f32 %f2, %f1, %f1, %f1;"),
        ("fma.f64", "mov.f64 %fd1, 0d3FF0000000000000;", "fma.rn.f64 %fd2, %fd1, %fd1, %fd1;"),
        ("ex2.f32", "mov.f32 %f1, 0f3F800000;", "ex2.approx.f32 %f2, %f1;"),
        ("hfma2", "mov.u32 %r1, 0x3c003800;", "fma.rn.f16x2 %r2, %r1, %r1, %r1;"),
        ("cvt.f16.f32", "mov.f32 %f1, 0f3F800000;", "cvt.rn.f16.f32 %rs1, %f1;"),
        ("setp", "", "setp.lt.s32 %p1, %r0, 16;"),
        ("selp", "setp.lt.s32 %p1, %r0, 16;", "selp.b32 %r1, %r0, 3, %p1;"),
        ("guarded add", "mov.u32 %r1, 1; setp.lt.s32 %p1, %r0, 16;", "@%p1 add.u32 %r1, %r1, %r0;"),
        ("shfl", "", "shfl.sync.bfly.b32 %r1, %r0, 16, 31, -1;"),
        ("ld.global.u32", "mad.wide.u32 %rd1, %r0, 4, %out;", "ld.global.u32 %r1, [%rd1];"),
        ("ld.global.v4", "mad.wide.u32 %rd1, %r0, 16, %out;", "ld.global.v4.u32 {%r1, %r2, %r3, %r4}, [%rd1];"),
        ("st.global.u32", "mad.wide.u32 %rd1, %r0, 4, %out;", "st.global.u32 [%rd1], %r0;"),
        ("st.shared.u32", matrix, "st.shared.u32 [at], a1;"),
        ("ld.shared.v4", matrix, "ld.shared.v4.u32 {%r1, %r2, %r3, %r4}, [at];"),
        ("ldmatrix.x4", matrix, "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {a0, a1, a2, a3}, [at];"),
        (
            "mma int8",
            matrix,
            "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {a4, a5, a6, a7}, {a0, a1, a2, a3}, {a0, a1}, {a4, a5, a6, a7};",
        ),
        (
            "mma f16",
            matrix,
            "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {a4, a5, a6, a7}, {a0, a1, a2, a3}, {a0, a1}, {a4, a5, a6, a7};",
        ),
    ] {
        println!("{name:15} {:8.1} ns", time(declare, body));
    }
}
