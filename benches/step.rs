//! The embedded letter model, end to end: opening, binding, one denoiser call, one decoder call.
//!
//! For: seeing that opening and binding cost milliseconds and do not grow with the weights, and what a call costs by
//! batch. `cargo bench --bench step`; larger models: `aquatint bench MODEL.aqt`.

mod common;

use aquatint::raw::backend::cpu::{Cpu, simd::Isa};
use aquatint::raw::exec::Executor;
use aquatint::raw::format::Packed;
use aquatint::raw::plan::Binding;
use aquatint::raw::program::{Dims, Role};
use common::bench_main;
use criterion::Criterion;
use std::path::Path;

fn run<I: Isa>(isa: I, c: &mut Criterion, _: bool) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/glyphs-w4a8.aqt");
    // As in the program, files are mapped; a second tier finds it done.
    let _ = aquatint::raw::mmap::guard(|_| std::process::exit(2));
    let open = || Packed::new(aquatint::raw::mmap::open(&path).expect("the model maps")).expect("the model opens");
    let packed = open();
    packed.verify().expect("the model is sound");
    let meta = &packed.meta().pipeline;
    let [height, width] = meta.latent_size.map(|n| n as usize);
    let cpu = Cpu::new(isa);
    let shape = |batch: usize| Binding {
        dims: Dims { batch, conditions: 2, height, width, tokens: 1, ..Dims::ONE },
        calls: 50,
        table_bytes: 64 << 20,
        reserve: 0,
    };
    c.bench_function("open", |b| b.iter(open));
    c.bench_function("bind denoiser", |b| {
        b.iter(|| drop(Executor::new(&cpu, &packed, Role::Denoiser, shape(2)).expect("it binds")));
    });
    for batch in [2, 8, 16] {
        let mut executor = Executor::new(&cpu, &packed, Role::Denoiser, shape(batch)).expect("it binds");
        let mut sample = vec![0.0; batch * height * width * meta.latent_channels as usize];
        aquatint::raw::rng::FastRng::new(1).randn(&mut sample);
        executor.set_class_labels(&[0, meta.null_class]).expect("labels");
        executor.set_timesteps((0..50).map(|i| (980 - 20 * i) as f32)).expect("timesteps");
        executor.write_sample(&sample).unwrap();
        executor.call(0).unwrap();
        let mut out = vec![0.0; executor.plan().output.rows * executor.plan().output.cols];
        executor.read_output(&mut out).unwrap();
        let size = (out.iter().map(|v| f64::from(v * v)).sum::<f64>() / out.len() as f64).sqrt();
        assert!((0.1..10.0).contains(&size), "the prediction of unit noise has size {size}");
        c.bench_function(&format!("denoiser call, batch {batch}"), |b| b.iter(|| executor.call(0)));
    }
    let one = Binding {
        dims: Dims { batch: 1, conditions: 1, height, width, tokens: 1, ..Dims::ONE },
        calls: 1,
        table_bytes: 0,
        reserve: 0,
    };
    let mut decoder = Executor::new(&cpu, &packed, Role::VaeDecoder, one).expect("it binds");
    decoder.call(0).unwrap();
    c.bench_function("decoder call", |b| b.iter(|| decoder.call(0)));
}

bench_main!(run);
