//! The ops between model calls: the CPU against the scalar reference in f64 and diffusers' rescaled guidance, and the
//! CUDA kernels in the emulator against the CPU, bit for bit.

use aquatint::pipeline::swap_last_axes;
use aquatint::raw::backend::args::ALIGN;
use aquatint::raw::backend::args::*;
use aquatint::raw::backend::{Backend, Call};
use aquatint::raw::step::{Guiding, Latents, StepMemory};
use aquatint::sampler::{COLUMNS, MAX_STATES, NOISE, OUTPUT, ROW_FLOATS, Row, Table, Threshold, X0};
use common::normals;
use common::one_op::{Bench, ELEMENTS, Space, cpu, cuda, rounded};
use fastrand::Rng;
use serde_json::Value;

/// Half a unit in the last place of an f32 near 1.
const HALF_UNIT: f64 = 1.0 / (1 << 24) as f64;

/// One step of a batch.
#[derive(Clone)]
struct Case {
    table: Table,
    call: usize,
    latents: Latents,
    guiding: Guiding,
    /// Columns of the model's output.
    cols: usize,
    element: Element,
    /// The states but those that the row does not read.
    states: Vec<f32>,
    output: Vec<f32>,
    noise: Vec<f32>,
    mask: Vec<f32>,
    init: Vec<f32>,
    init_noise: Vec<f32>,
}

impl Case {
    fn copies(&self) -> usize {
        if self.guiding.guidance.is_some() { 2 } else { 1 }
    }

    /// The model's input and the states afterwards, as bits.
    fn run<B: Backend>(&self, bench: impl Fn(&Space) -> Bench<B>) -> [Vec<u32>; 2] {
        let memory = StepMemory::new(ALIGN, &self.table, self.latents, self.guiding);
        let mut space = Space { bytes: ALIGN + memory.bytes };
        let (floats, rows) = (self.latents.floats(), self.latents.images * self.latents.pixels * self.copies());
        let sample = space.slot(self.copies() * floats * 4);
        let model = space.floats(rows, self.cols, self.element);
        let mut bench = bench(&space);
        bench.backend.begin(&mut bench.arena, Call { row: 0, step: self.call }).unwrap();
        let put = |bench: &mut Bench<B>, at: usize, data: &[f32]| {
            bench.backend.write_f32(&mut bench.arena, at, data).unwrap();
        };
        put(&mut bench, memory.rows.of(self.call), &self.table.rows[self.call].encode());
        put(&mut bench, memory.states.at, &self.states);
        bench.put(&model, &self.output);
        if let Some(noise) = memory.noise {
            put(&mut bench, noise.of(self.call), &self.noise);
        }
        if let Some(blend) = memory.blend {
            put(&mut bench, blend.mask.at, &self.mask);
            put(&mut bench, blend.init.at, &self.init);
            put(&mut bench, blend.noise.at, &self.init_noise);
        }
        bench.backend.model_input(&mut bench.arena, &memory.input(sample));
        bench.backend.sampler_step(&mut bench.arena, &memory.step(model));
        [bench.words(sample.at, self.copies() * floats), bench.words(memory.states.at, self.table.states * floats)]
    }

    /// The states afterwards by the scalar reference, and for each the sum of the magnitudes of its terms.
    fn reference(&self) -> Vec<(f64, f64)> {
        let (n, channels, cols) = (self.latents.floats(), self.latents.channels, self.cols);
        let wide = |x: &[f32]| -> Vec<f64> { x.iter().map(|&v| v.into()).collect() };
        let at = |i: usize| i / channels * cols + i % channels;
        let pick = |first: usize| (0..n).map(|i| f64::from(self.output[first + at(i)])).collect::<Vec<f64>>();
        let cond = pick(0);
        let (mut out, mut size) = (cond.clone(), cond.iter().map(|c| c.abs()).collect::<Vec<f64>>());
        if let Some(guidance) = self.guiding.guidance {
            let scale = f64::from(guidance.scale);
            let uncond = pick(n / channels * cols);
            for i in (0..n).filter(|i| i % channels < guidance.channels) {
                out[i] = uncond[i] + scale * (cond[i] - uncond[i]);
                size[i] = uncond[i].abs() + scale * (cond[i].abs() + uncond[i].abs());
            }
            let share = f64::from(self.guiding.rescale);
            let per_image = n / self.latents.images;
            for image in (0..n).step_by(per_image).map(|first| first..first + per_image) {
                let factor = share * (deviation(&cond[image.clone()]) / deviation(&out[image.clone()])) + 1.0 - share;
                out[image.clone()].iter_mut().chain(&mut size[image]).for_each(|v| *v *= factor);
            }
        }
        if self.table.rows[self.call].gain.is_some() {
            let variance = pick(channels);
            out.extend(&variance);
            size.extend(&variance); // of the gain, which is no term
        }
        let mut mask = wide(&self.mask);
        mask = (0..n).map(|i| mask.get(i / channels).copied().unwrap_or(1.0)).collect();
        let states = || {
            let mut states = wide(&self.states);
            states.resize(self.table.states * n, f64::NAN);
            states
        };
        let finish = |table: &Table, mut states: Vec<f64>, out: &[f64], abs: fn(f64) -> f64| {
            let of = |x: &[f32]| wide(x).into_iter().map(abs).collect::<Vec<f64>>();
            states.iter_mut().for_each(|v| *v = abs(*v));
            table.step(self.call, &mut states, out, &of(&self.noise));
            if self.guiding.blend {
                table.blend(self.call, &mut states[..n], &mask, &of(&self.init), &of(&self.init_noise));
            }
            states
        };
        let mut sizes = Table { threshold: None, ..self.table.clone() };
        for row in &mut sizes.rows {
            let magnitudes = row.x0.iter_mut().chain(&mut row.keep).chain(row.next.iter_mut().flatten());
            magnitudes.for_each(|c| *c = c.abs());
            row.clamp = None;
        }
        let values = finish(&self.table, states(), &out, |v| v);
        values.into_iter().zip(finish(&sizes, states(), &size, f64::abs)).collect()
    }

    /// The same for one image of it.
    fn alone(&self, image: usize) -> Case {
        let n = self.latents.floats() / self.latents.images;
        let per = |x: &[f32], n: usize| -> Vec<f32> {
            x.chunks_exact(n * self.latents.images).flat_map(|x| x[image * n..][..n].to_vec()).collect()
        };
        Case {
            latents: Latents { images: 1, ..self.latents },
            states: per(&self.states, n),
            output: per(&self.output, self.latents.pixels * self.cols),
            noise: per(&self.noise, n),
            mask: per(&self.mask, self.latents.pixels),
            init: per(&self.init, n),
            init_noise: per(&self.init_noise, n),
            ..self.clone()
        }
    }
}

/// As numpy's `std` with one degree of freedom less.
fn deviation(x: &[f64]) -> f64 {
    let mean = x.iter().sum::<f64>() / x.len() as f64;
    (x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (x.len() - 1) as f64).sqrt()
}

/// A case of random numbers; the last of several states is not set yet.
fn case(
    rng: &mut Rng,
    [n_states, channels, images, pixels]: [usize; 4],
    learned: bool,
    noise: bool,
    guiding: Guiding,
) -> Case {
    let latents = Latents { images, pixels, channels };
    let cols = channels * if learned { 2 } else { rng.usize(1..3) };
    let (calls, n) = (3, latents.floats());
    let mut row = |call: usize| {
        let mut next = [[0.0; COLUMNS]; MAX_STATES];
        for next in &mut next[..n_states] {
            next.copy_from_slice(&normals(rng, COLUMNS));
            next.iter_mut().for_each(|c| *c = if rng.u8(..4) == 0 { 0.0 } else { *c });
            next[n_states.max(2) - 1..OUTPUT].fill(0.0);
            next[NOISE] = if noise { next[NOISE] } else { 0.0 };
        }
        let numbers = normals(rng, 8);
        Row {
            fraction: 0.0,
            timestep: 10.0 * call as f32,
            input_scale: numbers[0],
            x0: [numbers[1], numbers[2]],
            clamp: rng.bool().then_some(0.5),
            level: [numbers[3], numbers[4]],
            keep: [numbers[4], numbers[5]],
            gain: learned.then_some([numbers[6], numbers[7]]),
            next,
        }
    };
    let rows: Vec<Row> = (0..calls).map(&mut row).collect();
    let noise = rows.iter().any(Row::noise);
    let mut mask = normals(rng, images * pixels);
    mask.iter_mut().for_each(|m| *m = m.clamp(0.0, 1.0));
    let copies = if guiding.guidance.is_some() { 2 } else { 1 };
    Case {
        table: Table { rows, states: n_states, init_scale: 1.0, threshold: None, noise },
        call: rng.usize(..calls),
        latents,
        guiding,
        cols,
        element: Element::F32,
        states: normals(rng, (n_states - 1).max(1) * n),
        output: normals(rng, copies * images * pixels * cols).iter().map(|v| 3.0 * v + 0.5).collect(),
        noise: if noise { normals(rng, n) } else { vec![] },
        mask: if guiding.blend { mask } else { vec![] },
        init: normals(rng, n),
        init_noise: normals(rng, n),
    }
}

/// Steps of every kind: with and without guidance, rescaling, noise, learned variance and a mask; batches of 1 to 3.
fn cases() -> Vec<Case> {
    let rng = &mut Rng::with_seed(10);
    let mut all = Vec::new();
    for (shape, guided, rescale, blend, learned, noise) in [
        ([1, 4, 1, 100], false, 0.0, false, false, false),
        ([3, 4, 2, 35], true, 0.0, false, false, true),
        ([7, 3, 3, 11], true, 0.0, true, false, true),
        ([2, 1, 1, 257], false, 0.0, true, false, true),
        ([1, 3, 3, 131], true, 0.7, false, false, false),
        ([4, 4, 2, 64], true, 1.0, true, false, true),
        ([2, 4, 3, 9], true, 0.25, true, true, true),
        ([1, 3, 1, 5], false, 0.5, false, true, true),
        ([2, 2, 2, 1], true, 0.5, false, true, true),
        ([1, 4, 1, 300], true, 0.9, false, true, true),
    ] {
        let most: usize = shape[1];
        for channels in most - 1..=most {
            let guidance = guided.then_some(Guidance { scale: 4.5, channels });
            all.push(case(rng, shape, learned, noise, Guiding { guidance, rescale, blend }));
        }
    }
    all
}

#[test]
fn the_cpu_is_the_reference() {
    for (k, case) in cases().iter().enumerate() {
        let [input, got] = case.run(cpu);
        let n = case.latents.floats();
        let mut want = vec![0.0; n];
        case.table.input(case.call, &case.states[..n], &mut want);
        assert!(input.chunks_exact(n).all(|copy| copy.iter().zip(&want).all(|(a, b)| *a == b.to_bits())), "case {k}");
        for (i, (got, (want, size))) in got.iter().zip(case.reference()).enumerate() {
            // Each of at most twelve terms is rounded as often as it is added to; the factor of rescaled guidance and
            // the gain of learned noise are good to ten units each.
            let error = (f64::from(f32::from_bits(*got)) - want).abs();
            assert!(error <= 48.0 * HALF_UNIT * size, "case {k} value {i}: {} for {want}", f32::from_bits(*got));
        }
    }
}

/// A threshold is each image's own; what it divides by is the same in f32 and f64 but for the rounding of x0.
#[test]
fn thresholds_are_each_images_own() {
    let mut rng = Rng::with_seed(11);
    for (ratio, most) in [(0.995, 1.5), (0.5, 10.0), (0.9, 2.0)] {
        let guiding = Guiding { guidance: Some(Guidance { scale: 3.0, channels: 3 }), rescale: 0.0, blend: false };
        let mut case = case(&mut rng, [2, 3, 3, 43], false, true, guiding);
        case.table.threshold = Some(Threshold { ratio, most });
        case.table.rows.iter_mut().for_each(|row| row.clamp = None);
        let together = case.run(cpu)[1].clone();
        let (n, images) = (case.latents.floats(), case.latents.images);
        for image in 0..images {
            let alone = case.alone(image);
            let whole = together.chunks_exact(n).flat_map(|state| state[image * n / images..][..n / images].to_vec());
            let whole: Vec<u32> = whole.collect();
            assert_eq!(alone.run(cpu)[1], whole, "image {image}");
            let plain = Case { table: Table { threshold: None, ..alone.table.clone() }, ..alone.clone() };
            assert_ne!(plain.run(cpu)[1], whole, "image {image}: the threshold has no effect");
            for (i, (got, (want, size))) in whole.iter().zip(alone.reference()).enumerate() {
                let error = (f64::from(f32::from_bits(*got)) - want).abs();
                assert!(error <= 96.0 * HALF_UNIT * size.max(1.0), "image {image} value {i}: {error}, of {size}");
            }
        }
    }
}

#[test]
fn images_do_not_mix() {
    for (k, case) in cases().iter().enumerate() {
        let (together, n) = (case.run(cpu)[1].clone(), case.latents.floats());
        let per_image = n / case.latents.images;
        for image in 0..case.latents.images {
            let alone = case.alone(image);
            let whole = together.chunks_exact(n).flat_map(|state| state[image * per_image..][..per_image].to_vec());
            let whole: Vec<u32> = whole.collect();
            assert_eq!(alone.run(cpu)[1], whole, "case {k} image {image} on the CPU");
            assert_eq!(alone.run(|space| cuda(space, &[0.0]))[1], whole, "case {k} image {image} on CUDA");
        }
    }
}

#[test]
fn cuda_is_the_cpu() {
    for (k, case) in cases().into_iter().enumerate() {
        for element in ELEMENTS {
            let output = rounded(case.output.clone(), element);
            let wide = Case { output: output.clone(), ..case.clone() };
            let case = Case { element, output, ..case.clone() };
            assert_eq!(case.run(|space| cuda(space, &[0.0])), wide.run(cpu), "case {k} {element:?}");
        }
    }
}

#[test]
fn rescaled_guidance_is_diffusers() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/guidance_rescale.json");
    let fixture: Value = serde_json::from_str(&std::fs::read_to_string(path).expect(path)).expect(path);
    for entry in fixture.as_array().expect("entries") {
        let numbers = |name: &str| -> Vec<f64> {
            entry[name].as_array().expect(name).iter().map(|v| v.as_f64().expect("a number")).collect()
        };
        let shape: Vec<usize> = numbers("shape").iter().map(|&n| n as usize).collect();
        let (images, channels, pixels) = (shape[0], shape[1], shape[2] * shape[3]);
        let last = |name: &str| -> Vec<f32> {
            let values: Vec<f32> = numbers(name).iter().map(|&v| v as f32).collect();
            swap_last_axes(&values, [images, channels, pixels])
        };
        let mut next = [[0.0; COLUMNS]; MAX_STATES];
        next[0][OUTPUT] = 1.0;
        let row = Row {
            fraction: 0.0,
            timestep: 1.0,
            input_scale: 1.0,
            x0: [0.0; 2],
            clamp: None,
            level: [1.0, 0.0],
            keep: [1.0, 0.0],
            gain: None,
            next,
        };
        let latents = Latents { images, pixels, channels };
        let (scale, share) = (entry["scale"].as_f64().expect("scale"), entry["phi"].as_f64().expect("phi"));
        let case = Case {
            table: Table { rows: vec![row], states: 1, init_scale: 1.0, threshold: None, noise: false },
            call: 0,
            latents,
            guiding: Guiding {
                guidance: Some(Guidance { scale: scale as f32, channels: latents.channels }),
                rescale: share as f32,
                blend: false,
            },
            cols: channels,
            element: Element::F32,
            states: vec![0.0; latents.floats()],
            output: [last("cond"), last("uncond")].concat(),
            noise: vec![],
            mask: vec![],
            init: vec![],
            init_noise: vec![],
        };
        let want = last("out");
        let sizes = case.output[..want.len()].iter().zip(&case.output[want.len()..]);
        let sizes: Vec<f64> = sizes.map(|(&c, &u)| f64::from(u.abs()) + scale * f64::from(c.abs() + u.abs())).collect();
        let [_, got] = case.run(cpu);
        for ((got, want), size) in got.iter().zip(&want).zip(sizes) {
            let got = f32::from_bits(*got);
            // Guidance rounds three times, the factor is good to ten units, and the wanted value is rounded too.
            assert!(f64::from((got - want).abs()) <= 24.0 * HALF_UNIT * size, "{shape:?}: {got} for {want}");
        }
        assert_eq!(case.run(|space| cuda(space, &[0.0]))[1], got, "{shape:?} on CUDA");
    }
}

#[test]
fn rows_lie_where_the_kernels_look() {
    let cases = cases();
    let learned = |case: &&Case| case.table.states == 2 && case.table.rows[0].gain.is_some();
    let case = cases.iter().find(learned).expect("one of learned variance and two states");
    let row = &case.table.rows[0];
    let encoded = row.encode();
    assert_eq!((ROW_FLOATS, (ROW_FLOATS * 4).next_multiple_of(ALIGN)), (80, 320));
    assert_eq!((encoded[4..6].to_vec(), encoded[6..8].to_vec()), (row.keep.to_vec(), row.gain.unwrap().to_vec()));
    assert_eq!((encoded[8 + X0], encoded[8 + COLUMNS + NOISE]), (row.next[0][X0], row.next[1][NOISE]));
}
