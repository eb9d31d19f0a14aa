//! The CUDA kernels of elementwise ops, layouts and embeddings in the emulator.

use aquatint::raw::backend::Backend;
use aquatint::raw::backend::args::*;
use aquatint::raw::format::TensorView;
use aquatint::raw::program::{Act, Resampling};
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
                cuda.backend.pointwise(&mut cuda.arena, &PointwiseArgs { x, y, act, mul: -1.75, add: 0.5 });
                let f = |v: &f32| -1.75 * naive::activate(act, f64::from(*v)) + 0.5;
                let want: Vec<f64> = data.iter().map(f).collect();
                close(&name, &cuda.get(&y), &want, if to == Element::F16 { 1.0 / 1024.0 } else { 2e-6 });
            }
            cuda.backend.add(&mut cuda.arena, &PairArgs { a: x, b: cyclic, y: sum });
            let want = data.iter().enumerate().map(|(i, v)| v + cyclic_data[i % (cycle * cols)]).collect();
            assert_eq!(cuda.get(&sum), rounded(want, to), "add {name}");
            cuda.backend.multiply(&mut cuda.arena, &PairArgs { a: x, b: cyclic, y: sum });
            let want = data.iter().enumerate().map(|(i, v)| v * cyclic_data[i % (cycle * cols)]).collect();
            assert_eq!(cuda.get(&sum), rounded(want, to), "multiply {name}");
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
            cuda.backend.patch(&mut cuda.arena, &args);
            let mut space = Space::default();
            let args = PatchArgs {
                x: space.floats(rows, cols, Element::F32),
                y: space.floats(rows, cols, Element::F32),
                ..args
            };
            let mut cpu = cpu(&space);
            cpu.put(&args.x, &data);
            cpu.backend.patch(&mut cpu.arena, &args);
            assert_eq!(cuda.get(&y), rounded(cpu.get(&args.y), to), "patch {patch} {channels} {inverse}");
        }
    }
}

#[test]
fn columns_are_those_that_are_asked_for() {
    let rng = &mut Rng::with_seed(13);
    for (rows, cols, first, count) in [(2, 2, 1, 1), (4, 7, 2, 5), (5, 48, 16, 24), (5, 48, 4, 8), (10, 130, 65, 65)] {
        for (from, to) in ELEMENTS.into_iter().flat_map(|a| ELEMENTS.map(|b| (a, b))) {
            let data = rounded(normals(rng, rows * cols), from);
            let mut space = Space::default();
            let (x, y) = (space.floats(rows, cols, from), space.floats(rows, count, to));
            let mut cuda = cuda(&space, &[0.0]);
            cuda.put(&x, &data);
            cuda.backend.slice(&mut cuda.arena, &SliceArgs { x, y, first });
            let want = data.chunks(cols).flat_map(|row| &row[first..first + count]).copied().collect();
            assert_eq!(cuda.get(&y), rounded(want, to), "{rows} x {cols} {from:?}, {count} from {first} as {to:?}");
        }
    }
}

#[test]
fn embeddings_are_the_cpus() {
    let rng = &mut Rng::with_seed(9);
    let mut space = Space::default();
    let (index, t) = (space.slot(12), space.slot(16));
    let embedded = space.floats(3, 11, Element::F32);
    let times = [(1, 4, true, 0.0), (1, 256, false, 1.0), (1, 30, true, 1.0), (2, 30, true, 1.0), (4, 64, false, 0.0)]
        .map(|(numbers, dim, cos_first, shift)| {
            (space.floats(4 / numbers, numbers * dim, Element::F32), numbers, cos_first, shift)
        });
    let positions = [(5, 7, 148, 16, 1.0), (64, 64, 32, 64, 2.0), (1, 1, 4, 4, 1.0)]
        .map(|(h, w, dim, base, scale)| (space.floats(h * w, dim, Element::F32), h, w, base, scale));
    let table = normals(rng, 6 * 11);
    let run = |bench: &mut dyn FnMut(Op)| {
        bench(Op::Embedding(EmbeddingArgs { index, y: embedded }));
        for (y, numbers, cos_first, shift) in times {
            bench(Op::Time(TimestepEmbeddingArgs { t, numbers, y, cos_first, shift }));
        }
        for (y, height, width, base, interpolation) in positions {
            bench(Op::Position(PositionEmbeddingArgs {
                y,
                height,
                width,
                spans: [[0, base]; 2],
                interpolation,
                zero: false,
            }));
        }
    };
    enum Op {
        Embedding(EmbeddingArgs),
        Time(TimestepEmbeddingArgs),
        Position(PositionEmbeddingArgs),
    }
    fn apply<B: Backend>(bench: &mut Bench<B>, op: Op, table: &B::Weight<'_>) {
        match op {
            Op::Embedding(a) => bench.backend.embedding(&mut bench.arena, &a, table),
            Op::Time(a) => bench.backend.timestep_embedding(&mut bench.arena, &a),
            Op::Position(a) => bench.backend.position_embedding(&mut bench.arena, &a),
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
fn parameters_are_the_tensors() {
    let rng = &mut Rng::with_seed(11);
    for (rows, cols) in [(1, 2), (3, 10), (77, 8), (2, 129)] {
        let tensor = normals(rng, rows * cols);
        for element in ELEMENTS {
            let mut space = Space::default();
            let y = space.floats(rows, cols, element);
            let mut cuda = cuda(&space, &tensor);
            let on_device = cuda.backend.weight(TensorView::F32(&tensor)).unwrap();
            cuda.backend.parameter(&mut cuda.arena, &ParameterArgs { y }, &on_device);
            assert_eq!(cuda.get(&y), rounded(tensor.clone(), element), "{rows} x {cols} {element:?}");
        }
    }
}

#[test]
fn resampling_is_the_cpus() {
    let rng = &mut Rng::with_seed(12);
    for (samples, height, width, c) in [(1, 2, 2, 2), (2, 3, 5, 6), (3, 4, 7, 8), (1, 9, 6, 40), (2, 2, 3, 33)] {
        for how in [Resampling::Nearest, Resampling::Mean] {
            let pixels = match how {
                Resampling::Nearest => 4 * height * width,
                Resampling::Mean => (height / 2) * (width / 2),
            };
            for (from, to) in ELEMENTS.into_iter().flat_map(|a| ELEMENTS.map(|b| (a, b))) {
                let data = rounded(normals(rng, samples * height * width * c), from);
                let args = |space: &mut Space, from, to| ResampleArgs {
                    x: space.floats(samples * height * width, c, from),
                    y: space.floats(samples * pixels, c, to),
                    samples,
                    height,
                    width,
                    how,
                };
                let mut space = Space::default();
                let on_device = args(&mut space, from, to);
                let mut cuda = cuda(&space, &[0.0]);
                cuda.put(&on_device.x, &data);
                cuda.backend.resample(&mut cuda.arena, &on_device);
                let mut space = Space::default();
                let here = args(&mut space, Element::F32, Element::F32);
                let mut cpu = cpu(&space);
                cpu.put(&here.x, &data);
                cpu.backend.resample(&mut cpu.arena, &here);
                let name = format!("{how:?} {samples} x {height} x {width} x {c} {from:?} to {to:?}");
                assert_eq!(cuda.get(&on_device.y), rounded(cpu.get(&here.y), to), "{name}");
            }
        }
    }
}

/// Distances of whole numbers are exact, so that even ties must go as on the CPU; so must what has no distance.
#[test]
fn nearest_rows_are_the_cpus() {
    let rng = &mut Rng::with_seed(13);
    for (vectors, d, rows) in [(2, 1, 1), (6, 3, 31), (130, 4, 300), (5, 40, 65), (2, 8, 32)] {
        let table: Vec<f32> = (0..rows * d).map(|_| f32::from(rng.i8(-2..=2))).collect();
        let mut data: Vec<f32> = (0..vectors * d).map(|_| f32::from(rng.i8(-5..=5)) / 2.0).collect();
        data[0] = f32::NAN;
        data[d] = f32::INFINITY;
        for (from, to) in ELEMENTS.into_iter().flat_map(|a| ELEMENTS.map(|b| (a, b))) {
            let args = |space: &mut Space, from, to| VectorQuantizeArgs {
                x: space.floats(vectors, d, from),
                y: space.floats(vectors, d, to),
            };
            let mut space = Space::default();
            let on_device = args(&mut space, from, to);
            let mut cuda = cuda(&space, &table);
            cuda.put(&on_device.x, &data);
            let weight = cuda.backend.weight(TensorView::F32(&table)).unwrap();
            cuda.backend.vector_quantize(&mut cuda.arena, &on_device, &weight);
            let mut space = Space::default();
            let here = args(&mut space, Element::F32, Element::F32);
            let mut cpu = cpu(&space);
            cpu.put(&here.x, &data);
            cpu.backend.vector_quantize(&mut cpu.arena, &here, &TensorView::F32(&table));
            let name = format!("{vectors} x {d}, {rows} rows, {from:?} to {to:?}");
            let got = cuda.get(&on_device.y);
            assert_eq!(got, cpu.get(&here.y), "{name}");
            assert!(got[..d] == table[..d] && got[d..2 * d] == table[..d], "{name}: nothing is near");
        }
    }
}
