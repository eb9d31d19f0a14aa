//! What the benches share: one-op programs from random weights, and the machine's peaks.
//!
//! Every bench checks its answer against a plain computation before it times anything.
#![allow(dead_code)] // each bench uses its part

use aquatint::raw::backend::cpu::simd::Isa;
use aquatint::raw::codec::{Bits, Grain, QuantizedMatrix, TableValues};
use std::time::Instant;

/// Random codes with either one table of consecutive integers or a table of arbitrary entries per row.
pub fn random_matrix(rows: usize, cols: usize, bits: u32, learned: bool, seed: u64) -> QuantizedMatrix {
    let mut rng = fastrand::Rng::with_seed(seed);
    let bits = Bits::new(bits).expect("a width of the codec");
    let levels = bits.levels();
    let half = (levels / 2) as i32;
    let table = if learned {
        (0..rows * levels).map(|_| rng.i8(-127..=127)).collect()
    } else {
        (0..levels as i32).map(|c| (c - half) as i8).collect()
    };
    QuantizedMatrix {
        bits,
        rows,
        cols,
        codes: (0..rows * cols).map(|_| rng.u8(..) & (levels - 1) as u8).collect(),
        table: TableValues::I8(table),
        grain: if learned { Grain::Row } else { Grain::Tensor },
        scale: (0..rows).map(|_| 0.01 * rng.f32()).collect(),
        offset: (0..rows).map(|_| rng.f32() - 0.5).collect(),
    }
}

/// The best rate of a register-only loop on all threads of the pool, in operations per second.
pub fn peak<I: Isa>(isa: I, int8: bool) -> f64 {
    let run = |rounds: usize| {
        let begin = Instant::now();
        let ops: usize =
            rayon::broadcast(|_| if int8 { isa.spin_i8(rounds) } else { isa.spin_f32(rounds) }).iter().sum();
        ops as f64 / begin.elapsed().as_secs_f64()
    };
    (0..20).map(|_| run(400_000)).fold(0.0, f64::max)
}

/// The best of `repeats` runs, in seconds.
pub fn best(repeats: usize, mut f: impl FnMut()) -> f64 {
    (0..repeats)
        .map(|_| {
            let begin = Instant::now();
            f();
            begin.elapsed().as_secs_f64()
        })
        .fold(f64::INFINITY, f64::min)
}

/// A line of a summary: `name`, the time of `ops` operations, their rate, and its share of `peak`.
pub fn summary(name: &str, time: f64, ops: f64, peak: f64) -> String {
    let rate = ops / time;
    let share = 100.0 * rate / peak;
    format!("{name:<28} {:8.2} ms  {:6.0} Gop/s  {share:4.0} % of {:.0}", time * 1e3, rate / 1e9, peak / 1e9)
}

/// `main` of a bench of ops: calls `$run(isa, criterion, test)` for the best instruction set there is; `test` asks for the
/// checks without the timings.
macro_rules! bench_main {
    ($run:ident) => {
        fn main() {
            use aquatint::raw::backend::cpu::Tier;
            let test = std::env::args().any(|a| a == "--test");
            let mut c = criterion::Criterion::default().sample_size(10).configure_from_args();
            match Tier::available()[0] {
                #[cfg(target_arch = "x86_64")]
                Tier::Avx512(isa) => $run(isa, &mut c, test),
                #[cfg(target_arch = "x86_64")]
                Tier::Avx2(isa) => $run(isa, &mut c, test),
                Tier::Portable(isa) => $run(isa, &mut c, test),
            }
            c.final_summary();
        }
    };
}
pub(crate) use bench_main;
