//! The CUDA kernels of elementwise ops, layouts, embeddings and the sampler in the emulator.

mod common;

use aquatint::backend::args::*;
use aquatint::backend::{Backend, Call};
use aquatint::format::TensorView;
use aquatint::program::Act;
use common::one_op::{Bench, ELEMENTS, Space, close, cpu, cuda, rounded};
use common::{naive, normal, normals};
use fastrand::Rng;

#[test]
fn elementwise_ops_take_any_floats() {
    let rng = &mut Rng::with_seed(7);
    for (rows, cols, cycle) in [(1, 2, 1), (6, 5, 3), (4, 16, 2), (6, 7, 2), (12, 33, 4), (64, 40, 64), (30, 12, 5)] {
        for (from, to) in ELEMENTS.into_iter().flat_map(|a| ELEMENTS.map(|b| (a, b))) {
            let data = rounded((0..rows * cols).map(|_| 5.0 * normal(rng)).collect(), from);
            let cyclic_data = rounded(normals(rng, cycle * cols), to);
            let mut space = Space::default();
            let (x, cyclic) = (space.floats(rows, cols, from), space.floats(cycle, cols, to));
            let (y, sum) = (space.floats(rows, cols, to), space.floats(rows, cols, to));
            let mut cuda = cuda(&space, &[0.0]);
            cuda.put(&x, &data);
            cuda.put(&cyclic, &cyclic_data);
            let name = format!("{rows} x {cols} {from:?} to {to:?}");
            for act in [Act::None, Act::Silu, Act::GeluTanh] {
                cuda.backend.pointwise(&mut cuda.arena, 0, &PointwiseArgs { x, y, act, mul: -1.75, add: 0.5 });
                let f = |v: &f32| -1.75 * naive::activate(act, f64::from(*v)) + 0.5;
                let want: Vec<f64> = data.iter().map(f).collect();
                close(&name, &cuda.get(&y), &want, if to == Element::F16 { 1.0 / 1024.0 } else { 2e-6 });
            }
            cuda.backend.add(&mut cuda.arena, 0, &AddArgs { a: x, b: cyclic, y: sum });
            let want = data.iter().enumerate().map(|(i, v)| v + cyclic_data[i % (cycle * cols)]).collect();
            assert_eq!(cuda.get(&sum), rounded(want, to), "add {name}");
        }
    }
}

#[test]
fn patches_go_where_the_cpu_puts_them() {
    let rng = &mut Rng::with_seed(8);
    for (patch, channels, inverse) in
        [(1, 6, false), (2, 5, false), (2, 5, true), (3, 4, true), (2, 12, false), (2, 4, true)]
    {
        for (from, to) in ELEMENTS.into_iter().flat_map(|a| ELEMENTS.map(|b| (a, b))) {
            let (samples, height, width) = (2, 3 * patch, 4 * patch);
            let len = samples * height * width * channels;
            let data = rounded(normals(rng, len), from);
            let (rows, cols) = (samples * 12, patch * patch * channels);
            let mut space = Space::default();
            let (x, y) = (space.floats(rows, cols, from), space.floats(rows, cols, to));
            let mut cuda = cuda(&space, &[0.0]);
            cuda.put(&x, &data);
            let args = PatchArgs { x, y, samples, height, width, channels, patch, inverse };
            cuda.backend.patch(&mut cuda.arena, 0, &args);
            let mut space = Space::default();
            let args = PatchArgs {
                x: space.floats(rows, cols, Element::F32),
                y: space.floats(rows, cols, Element::F32),
                ..args
            };
            let mut cpu = cpu(&space);
            cpu.put(&args.x, &data);
            cpu.backend.patch(&mut cpu.arena, 0, &args);
            assert_eq!(cuda.get(&y), rounded(cpu.get(&args.y), to), "patch {patch} {channels} {inverse}");
        }
    }
}

#[test]
fn embeddings_are_the_cpus() {
    let rng = &mut Rng::with_seed(9);
    let mut space = Space::default();
    let (index, t) = (space.slot(12), space.slot(16));
    let embedded = space.floats(3, 11, Element::F32);
    let times = [(4, true, 0.0), (256, false, 1.0), (30, true, 1.0)]
        .map(|(dim, cos_first, shift)| (space.floats(4, dim, Element::F32), cos_first, shift));
    let positions = [(5, 7, 148, 16, 1.0), (64, 64, 32, 64, 2.0), (1, 1, 4, 4, 1.0)]
        .map(|(h, w, dim, base, scale)| (space.floats(h * w, dim, Element::F32), h, w, base, scale));
    let table = normals(rng, 6 * 11);
    let run = |bench: &mut dyn FnMut(Op)| {
        bench(Op::Embedding(EmbeddingArgs { index, y: embedded }));
        for (y, cos_first, shift) in times {
            bench(Op::Time(TimestepEmbeddingArgs { t, y, cos_first, shift }));
        }
        for (y, height, width, base, interpolation) in positions {
            bench(Op::Position(PositionEmbeddingArgs { y, height, width, base, interpolation }));
        }
    };
    enum Op {
        Embedding(EmbeddingArgs),
        Time(TimestepEmbeddingArgs),
        Position(PositionEmbeddingArgs),
    }
    fn apply<B: Backend>(bench: &mut Bench<B>, op: Op, table: &B::Weight<'_>) {
        match op {
            Op::Embedding(a) => bench.backend.embedding(&mut bench.arena, 0, &a, table),
            Op::Time(a) => bench.backend.timestep_embedding(&mut bench.arena, 0, &a),
            Op::Position(a) => bench.backend.position_embedding(&mut bench.arena, 0, &a),
        }
    }
    fn fill<B: Backend>(bench: &mut Bench<B>, index: Slot, t: Slot) {
        bench.backend.write_u32(&mut bench.arena, index.at, &[5, 0, 3]).unwrap();
        bench.backend.write_f32(&mut bench.arena, t.at, &[0.0, 1.0, 37.0, 999.0]).unwrap();
    }
    let (mut cuda, mut cpu) = (cuda(&space, &table), cpu(&space));
    fill(&mut cuda, index, t);
    fill(&mut cpu, index, t);
    let on_device = cuda.backend.weight(TensorView::F32(&table)).unwrap();
    run(&mut |op| apply(&mut cuda, op, &on_device));
    run(&mut |op| apply(&mut cpu, op, &TensorView::F32(&table)));
    assert_eq!(cuda.get(&embedded), cpu.get(&embedded));
    for y in times.map(|t| t.0).iter().chain(&positions.map(|p| p.0)) {
        for (got, want) in cuda.get(y).iter().zip(cpu.get(y)) {
            assert!(got.to_bits().abs_diff(want.to_bits()) <= 1, "{got} is not {want}");
        }
    }
}

#[test]
fn the_sampler_is_the_cpus() {
    let rng = &mut Rng::with_seed(10);
    for (states, channels, cols, guidance, noise, run) in [
        (1, 4, 4, None, false, 0),
        (3, 4, 8, Some(4.5), true, 2),
        (7, 3, 3, Some(1.5), true, 1),
        (2, 1, 2, None, true, 0),
    ] {
        let pixels = 100;
        let (len, copies) = (pixels * channels, if guidance.is_some() { 2 } else { 1 });
        let mut space = Space::default();
        let rows = Slot { at: space.slot(3 * 320).at, stride: 320 };
        let noise = noise.then(|| Slot { at: space.slot(3 * len * 4).at, stride: len * 4 });
        let old = space.slot(states * len * 4);
        let sample = space.slot(copies * len * 4);
        let model = space.floats(copies * pixels, cols, Element::F32);
        let mut table = normals(rng, 3 * 80);
        for row in table.chunks_exact_mut(80) {
            row[3] = if rng.bool() { f32::INFINITY } else { 0.5 };
            row[8..].iter_mut().for_each(|c| *c = if rng.u8(..4) == 0 { 0.0 } else { *c });
            // The last state is not set yet.
            (0..states).filter(|_| states > 1).for_each(|s| row[8 + s * 10 + states - 1] = 0.0);
        }
        let numbers = normals(rng, (states + copies) * len * 8);
        let output = normals(rng, copies * pixels * cols);
        let input = ModelInputArgs { rows, state: old, len, copies, sample };
        let step = SamplerStepArgs { rows, states: old, n_states: states, len, channels, model, guidance, noise };
        fn go<B: Backend>(
            mut bench: Bench<B>,
            (input, step, run): (&ModelInputArgs, &SamplerStepArgs, usize),
            (table, numbers, output): (&[f32], &[f32], &[f32]),
        ) -> [Vec<u32>; 2] {
            let (len, set) = (step.len, (step.n_states - 1).max(1));
            bench.backend.begin(&mut bench.arena, Call { window: 0, run }).unwrap();
            bench.backend.write_f32(&mut bench.arena, step.rows.at, table).unwrap();
            bench.backend.write_f32(&mut bench.arena, step.states.at, &numbers[..set * len]).unwrap();
            bench.put(&step.model, output);
            if let Some(noise) = step.noise {
                bench.backend.write_f32(&mut bench.arena, noise.at, &numbers[len..][..3 * len]).unwrap();
            }
            bench.backend.model_input(&mut bench.arena, run, input);
            bench.backend.sampler_step(&mut bench.arena, run, step);
            [bench.words(input.sample.at, input.copies * len), bench.words(step.states.at, step.n_states * len)]
        }
        let (args, data) = ((&input, &step, run), (&table[..], &numbers[..], &output[..]));
        assert_eq!(go(cuda(&space, &[0.0]), args, data), go(cpu(&space), args, data), "{states} states");
    }
}
