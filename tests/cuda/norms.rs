//! The CUDA kernels of norms and quantization in the emulator: lengths of rows that choose every variant, both kinds of
//! float; codes are to the bit the CPU's.

use aquatint::raw::backend::args::*;
use aquatint::raw::backend::{Backend, MemoryRules};
use aquatint::raw::format::TensorView;
use aquatint::raw::program::{Act, QuantizeGrain};
use common::one_op::{Bench, ELEMENTS, Space, close, cpu, cuda, rounded};
use common::{naive, normal, normals};
use fastrand::Rng;

/// How a result may be quantized.
#[derive(Clone, Copy, Debug)]
struct Way {
    /// The greatest code.
    top: u8,
    grain: QuantizeGrain,
    fixed: bool,
}

const WAYS: [Way; 5] = [
    Way { top: 255, grain: QuantizeGrain::Row, fixed: false },
    Way { top: 63, grain: QuantizeGrain::Row, fixed: true },
    Way { top: 63, grain: QuantizeGrain::Sample, fixed: false },
    Way { top: 252, grain: QuantizeGrain::Sample, fixed: true },
    Way { top: 12, grain: QuantizeGrain::Row, fixed: true },
];

/// Room for codes and their fixed range.
fn quantize_to(space: &mut Space, way: Way, samples: usize, rows: usize, cols: usize) -> QuantizeTo {
    let groups = if way.grain == QuantizeGrain::Row { rows } else { samples };
    let codes = space.codes(rows, cols, groups, way.top);
    let fixed = way.fixed.then(|| RangeTable { table: space.slot(rows * 8), rows_per_entry: rows / samples });
    QuantizeTo { codes, grain: way.grain, fixed }
}

/// Scales and zero points for `quantize_to`; zero points lie between codes.
fn put_fixed<B: Backend>(bench: &mut Bench<B>, to: &QuantizeTo, samples: usize) {
    if let Some(fixed) = to.fixed {
        let table: Vec<f32> = (0..samples).flat_map(|i| [0.02 + 0.01 * i as f32, 100.25 - 30.5 * i as f32]).collect();
        bench.backend.write_f32(&mut bench.arena, fixed.table.at, &table).unwrap();
    }
}

/// The CPU's codes of `data`.
fn cpu_codes(data: &[f32], way: Way, samples: usize, rows: usize, cols: usize) -> [Vec<u32>; 4] {
    let mut space = Space::default();
    let x = space.floats(rows, cols, Element::F32);
    let y = quantize_to(&mut space, way, samples, rows, cols);
    let mut cpu = cpu(&space);
    cpu.put(&x, data);
    put_fixed(&mut cpu, &y, samples);
    let args = QuantizeArgs { x, y, block: 0, workspace: Slot::default() };
    cpu.backend.prepare([OpArgs::<()>::Quantize { args, factors: None }].iter());
    cpu.backend.quantize(&mut cpu.arena, &args, None);
    cpu.codes(&y.codes)
}

/// Lengths of rows: of every variant, aligned and not.
const LENGTHS: [usize; 14] = [1, 5, 16, 33, 250, 256, 264, 512, 1152, 1279, 1288, 2049, 4104, 8200];

#[test]
fn codes_are_the_cpus() {
    let rng = &mut Rng::with_seed(1);
    for (i, cols) in LENGTHS.into_iter().enumerate() {
        for (element, way) in ELEMENTS.into_iter().flat_map(|e| WAYS.map(|w| (e, w))) {
            let (samples, rows) = if cols > 2000 { (2, 2) } else { (3, 9) };
            let (mean, spread) = [(0.0, 1.0), (500.0, 0.5), (-3e4, 40.0), (7.25, 0.0), (0.0, 0.0)][i % 5];
            let data = rounded((0..rows * cols).map(|_| mean + spread * normal(rng)).collect(), element);
            let mut space = Space::default();
            let x = space.floats(rows, cols, element);
            let y = quantize_to(&mut space, way, samples, rows, cols);
            let mut args = QuantizeArgs { x, y, block: 0, workspace: Slot::default() };
            let probe = cuda(&Space { bytes: 64 }, &[0.0]);
            args.workspace = space.slot(probe.backend.workspace(&OpArgs::<()>::Quantize { args, factors: None }));
            let mut cuda = cuda(&space, &[0.0]);
            cuda.put(&x, &data);
            put_fixed(&mut cuda, &y, samples);
            cuda.backend.quantize(&mut cuda.arena, &args, None);
            let want = cpu_codes(&data, way, samples, rows, cols);
            assert_eq!(cuda.codes(&y.codes), want, "{rows} x {cols} {element:?} {way:?}");
        }
    }
}

#[test]
fn samples_of_many_blocks_have_one_range() {
    let rng = &mut Rng::with_seed(2);
    for (rows, cols) in [(2 * 140, 72), (2 * 331, 51)] {
        let way = Way { top: 255, grain: QuantizeGrain::Sample, fixed: false };
        let data = normals(rng, rows * cols);
        let mut space = Space::default();
        let x = space.floats(rows, cols, Element::F32);
        let y = quantize_to(&mut space, way, 2, rows, cols);
        let args = QuantizeArgs { x, y, block: 0, workspace: space.slot(2 * 128 * 8) };
        let mut cuda = cuda(&space, &[0.0]);
        cuda.put(&x, &data);
        cuda.backend.quantize(&mut cuda.arena, &args, None);
        assert_eq!(cuda.codes(&y.codes), cpu_codes(&data, way, 2, rows, cols), "{rows} x {cols}");
    }
}

#[test]
fn layer_norm_is_close_and_its_codes_are_those_of_its_floats() {
    let rng = &mut Rng::with_seed(3);
    for (i, cols) in LENGTHS.into_iter().enumerate() {
        for (j, element) in ELEMENTS.into_iter().enumerate() {
            let rows = if cols > 2000 { 2 } else { 6 };
            let (samples, table_cols) = (2, 2 * cols + if i % 2 == 0 { 3 } else { 16 });
            let (scale, shift) = if i % 2 == 0 { (cols + 2, 1) } else { (8, cols.next_multiple_of(8) + 8) };
            let table_cols = table_cols.max(shift + cols);
            let (affine, modulated, rms) = ((i + j) % 3 != 0, (i + j) % 2 == 0, (i + j) % 4 == 3);
            let x_data = rounded((0..rows * cols).map(|_| 3.0 + 2.0 * normal(rng)).collect(), element);
            let table_data = rounded(normals(rng, 3 * table_cols), element);
            let weights: Vec<f32> = normals(rng, 2 * cols.next_multiple_of(16));
            let (weight, bias) = (&weights[..cols], &weights[cols.next_multiple_of(16)..][..cols]);

            let mut space = Space::default();
            let x = space.floats(rows, cols, element);
            let table = space.floats(3, table_cols, element);
            let condition = space.slot(4 * samples);
            let (wide, narrow) = (space.floats(rows, cols, Element::F32), space.floats(rows, cols, Element::F16));
            let to = [WAYS[0], WAYS[1]].map(|way| quantize_to(&mut space, way, samples, rows, cols));
            let mut cuda = cuda(&space, &weights);
            cuda.put(&x, &x_data);
            cuda.put(&table, &table_data);
            cuda.backend.write_u32(&mut cuda.arena, condition.at, &[2, 1]).unwrap();
            to.iter().for_each(|to| put_fixed(&mut cuda, to, samples));
            let tensor = |t| cuda.backend.weight(TensorView::F32(t)).unwrap();
            let (w, b) = (tensor(weight), tensor(bias));
            let modulation = PerSample { table, condition, samples, rows_per_sample: rows / samples };
            let modulation = modulated.then_some((modulation, scale, shift));
            for y in [Output::Floats(wide), Output::Floats(narrow), Output::Codes(to[0]), Output::Codes(to[1])] {
                let args = LayerNormArgs { x, y, eps: 1e-6, modulation, shift: None, rms };
                let (w, b) = (affine.then_some(&w), affine.then_some(&b));
                cuda.backend.layer_norm(&mut cuda.arena, &args, w, b);
            }
            let name = format!("layer norm {rows} x {cols} {element:?} rms {rms}");
            let mut want = Vec::new();
            for (row, x) in x_data.chunks_exact(cols).enumerate() {
                let mean = if rms { 0.0 } else { x.iter().map(|&v| f64::from(v)).sum::<f64>() / cols as f64 };
                let variance = x.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / cols as f64;
                let columns = &table_data[[2, 1][row / (rows / samples)] * table_cols..][..table_cols];
                for c in 0..cols {
                    let mut y = (f64::from(x[c]) - mean) / (variance + 1e-6).sqrt();
                    if affine {
                        y = y * f64::from(weight[c]) + f64::from(bias[c]);
                    }
                    if modulated {
                        y = y * (1.0 + f64::from(columns[scale + c])) + f64::from(columns[shift + c]);
                    }
                    want.push(y);
                }
            }
            let got = cuda.get(&wide);
            close(&name, &got, &want, 1e-5);
            if rows * cols % 2 == 0 {
                assert_eq!(cuda.get(&narrow), rounded(got.clone(), Element::F16), "{name}");
            }
            for (to, way) in to.iter().zip(WAYS) {
                assert_eq!(cuda.codes(&to.codes), cpu_codes(&got, way, samples, rows, cols), "{name} {way:?}");
            }
        }
    }
}

/// Group norm (eps 1e-6) in f64 of `(samples, pixels, cols)`.
fn group_norm(x: &[f32], [samples, pixels, cols, groups]: [usize; 4], weight: &[f32], bias: &[f32]) -> Vec<f64> {
    let per_group = cols / groups;
    let mut out = vec![0.0; x.len()];
    for (sample, group) in (0..samples).flat_map(|s| (0..groups).map(move |g| (s, g))) {
        let members: Vec<usize> = (0..pixels * per_group)
            .map(|i| (sample * pixels + i / per_group) * cols + group * per_group + i % per_group)
            .collect();
        let count = members.len() as f64;
        let mean = members.iter().map(|&i| f64::from(x[i])).sum::<f64>() / count;
        let variance = members.iter().map(|&i| (f64::from(x[i]) - mean).powi(2)).sum::<f64>() / count;
        for i in members {
            let y = (f64::from(x[i]) - mean) / (variance + 1e-6).sqrt();
            out[i] = y * f64::from(weight[i % cols]) + f64::from(bias[i % cols]);
        }
    }
    out
}

#[test]
fn group_norm_is_close_and_its_codes_are_those_of_its_floats() {
    let rng = &mut Rng::with_seed(4);
    for (samples, pixels, cols, groups) in [
        (1, 1, 4, 1),
        (2, 15, 12, 4),
        (3, 64, 32, 32),
        (2, 99, 20, 5),
        (1, 130, 64, 32),
        (2, 700, 24, 3),
        (1, 530, 33, 11),
        (2, 9, 2064, 8),
        (1, 5, 515, 5),
        (1, 3, 8200, 4),
    ] {
        for (i, element) in ELEMENTS.into_iter().enumerate() {
            let (mean, spread) = if element == Element::F32 { (1000.0, 0.05) } else { (-3.0, 2.0) };
            let act = [Act::None, Act::Silu][(i + pixels) % 2];
            let rows = samples * pixels;
            let data = rounded((0..rows * cols).map(|_| mean + spread * normal(rng)).collect(), element);
            let weights: Vec<f32> = normals(rng, 2 * cols.next_multiple_of(16));
            let (weight, bias) = (&weights[..cols], &weights[cols.next_multiple_of(16)..][..cols]);
            let modulated = (i + pixels / 2) % 2 == 0;
            let (scale, shift, table_cols) = (1, cols + 2, 2 * cols + 3);
            let table_data = rounded(normals(rng, 3 * table_cols), element);
            let condition_of = &[2, 0, 1][..samples];
            let mut space = Space::default();
            let x = space.floats(rows, cols, element);
            let (table, condition) = (space.floats(3, table_cols, element), space.slot(4 * samples));
            let (wide, narrow) = (space.floats(rows, cols, Element::F32), space.floats(rows, cols, Element::F16));
            let to = WAYS.map(|way| quantize_to(&mut space, way, samples, rows, cols));
            let modulation = PerSample { table, condition, samples, rows_per_sample: pixels };
            let modulation = modulated.then_some((modulation, scale, shift));
            let mut outputs = vec![Output::Floats(wide), Output::Floats(narrow)];
            outputs.extend(to.map(Output::Codes));
            let probe = cuda(&Space { bytes: 64 }, &[0.0]);
            let all = outputs.into_iter().map(|y| {
                let eps = 1e-6;
                let mut args =
                    GroupNormArgs { x, y, samples, groups, eps, modulation, act, workspace: Slot::default() };
                let bytes = probe.backend.workspace(&OpArgs::GroupNorm { args, weight: (), bias: () });
                args.workspace = space.slot(bytes);
                args
            });
            let all: Vec<_> = all.collect();
            let mut cuda = cuda(&space, &weights);
            cuda.put(&x, &data);
            cuda.put(&table, &table_data);
            cuda.backend.write_u32(&mut cuda.arena, condition.at, condition_of).unwrap();
            to.iter().for_each(|to| put_fixed(&mut cuda, to, samples));
            let tensor = |t| cuda.backend.weight(TensorView::F32(t)).unwrap();
            let (w, b) = (tensor(weight), tensor(bias));
            for args in &all {
                cuda.backend.group_norm(&mut cuda.arena, args, &w, &b);
            }
            let name = format!("group norm {samples} x {pixels} x {cols} / {groups} {element:?}");
            let modulate = |sample: usize, column: usize, y: f64| {
                let columns = &table_data[condition_of[sample] as usize * table_cols + column..];
                if modulated { y * (1.0 + f64::from(columns[scale])) + f64::from(columns[shift]) } else { y }
            };
            let normalized = group_norm(&data, [samples, pixels, cols, groups], weight, bias);
            let want: Vec<f64> = normalized
                .into_iter()
                .enumerate()
                .map(|(i, y)| naive::activate(act, modulate(i / cols / pixels, i % cols, y)))
                .collect();
            let got = cuda.get(&wide);
            close(&name, &got, &want, 1e-5);
            if rows * cols % 2 == 0 {
                assert_eq!(cuda.get(&narrow), rounded(got.clone(), Element::F16), "{name}");
            }
            for (to, way) in to.iter().zip(WAYS) {
                assert_eq!(cuda.codes(&to.codes), cpu_codes(&got, way, samples, rows, cols), "{name} {way:?}");
            }
        }
    }
}
