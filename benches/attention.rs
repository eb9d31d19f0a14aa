//! Attention at the sizes of Stable Diffusion 1.5 at 512 x 512 and DiT-XL/2, against the peak of the float units.
//!
//! For: seeing what a sixth of Stable Diffusion's work costs, at heads of 40 to 512 features, and that short prompts do
//! not pay for the block size. `cargo bench --bench attention`; a summary with ratios to the peak measured in the same
//! run is printed first, Criterion's statistics follow. Rows "int8" are the same in 8-bit codes, with the relative error of
//! a few results: root mean squares of the differences from sums in f64, and of the results.

mod common;

use aquatint::raw::backend::args::{AttentionArgs, Element, Floats, OpArgs, Output, Slot};
use aquatint::raw::backend::{Backend, MemoryRules, cpu::Cpu, cpu::simd::Isa};
use common::{bench_main, best, peak, summary};
use criterion::{Criterion, Throughput};

/// Attention of one sample.
#[derive(Clone, Copy)]
struct Shape {
    name: &'static str,
    queries: usize,
    keys: usize,
    heads: usize,
    e: usize,
}

const SHAPES: [Shape; 7] = [
    Shape { name: "sd15 64x64", queries: 4096, keys: 4096, heads: 8, e: 40 },
    Shape { name: "sd15 32x32", queries: 1024, keys: 1024, heads: 8, e: 80 },
    Shape { name: "sd15 16x16", queries: 256, keys: 256, heads: 8, e: 160 },
    Shape { name: "sd15 64x64, prompt", queries: 4096, keys: 77, heads: 8, e: 40 },
    Shape { name: "sdxl 32x32", queries: 1024, keys: 1024, heads: 20, e: 64 },
    Shape { name: "dit-xl 512", queries: 1024, keys: 1024, heads: 16, e: 72 },
    Shape { name: "vae 64x64", queries: 4096, keys: 4096, heads: 1, e: 512 },
];

impl Shape {
    fn ops(&self) -> f64 {
        4.0 * (self.queries * self.keys * self.heads * self.e) as f64
    }

    fn args(&self, int8: bool) -> AttentionArgs {
        let d = self.heads * self.e;
        let mut end = 0;
        let mut floats = |rows: usize| {
            let slot = Slot { at: end, stride: 0 };
            end += rows * d * 4;
            Floats { slot, rows, cols: d, element: Element::F32 }
        };
        let (q, k, v, y) = (floats(self.queries), floats(self.keys), floats(self.keys), floats(self.queries));
        AttentionArgs {
            q,
            k,
            v,
            y: Output::Floats(y),
            samples: 1,
            heads: self.heads,
            scale: (self.e as f32).sqrt().recip(),
            causal: false,
            int8,
            condition: None,
            keys: self.keys,
            workspace: Slot { at: y.slot.at + y.bytes(), stride: 0 },
            softmax: None,
            bias: None,
            lengths: None,
        }
    }

    /// Standard normal values.
    fn data(&self, rows: usize, seed: u64) -> Vec<f32> {
        let mut out = vec![0.0; rows * self.heads * self.e];
        aquatint::raw::rng::FastRng::new(seed).randn(&mut out);
        out
    }

    /// A few rows of the result against plain sums in f64; returns their relative error.
    fn check(&self, out: &[f32], [q, k, v]: [&[f32]; 3], int8: bool) -> f64 {
        let (d, e) = (self.heads * self.e, self.e);
        let (mut error, mut energy) = (0.0, 0.0);
        for i in 0..CHECKED {
            let (row, head) = (i * (self.queries - 1) / (CHECKED - 1), i % self.heads);
            let part = |x: &'_ [f32], row: usize| x[row * d + head * e..][..e].to_vec();
            let query = part(q, row);
            let dot = |key: Vec<f32>| query.iter().zip(key).map(|(a, b)| f64::from(a * b)).sum::<f64>();
            let scores: Vec<f64> = (0..self.keys).map(|i| dot(part(k, i)) / (e as f64).sqrt()).collect();
            let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = scores.iter().map(|s| (s - most).exp()).sum();
            for j in 0..e {
                let weigh = |i: usize| (scores[i] - most).exp() / total * f64::from(v[i * d + head * e + j]);
                let want: f64 = (0..self.keys).map(weigh).sum();
                let got = f64::from(out[row * d + head * e + j]);
                let near = int8 || (got - want).abs() <= 1e-5;
                assert!(near, "{}: ({row}, {head}, {j}): {got} instead of {want}", self.name);
                error += (got - want).powi(2);
                energy += want.powi(2);
            }
        }
        (error / energy).sqrt()
    }
}

/// Rows that are compared with f64.
const CHECKED: usize = 32;

fn run<I: Isa>(isa: I, c: &mut Criterion, test: bool) {
    println!("{} on {} threads", isa.name(), rayon::current_num_threads());
    let mut group = c.benchmark_group("attention");
    let all = SHAPES.into_iter().flat_map(|s| [(s, false, s.name.to_owned()), (s, true, format!("{}, int8", s.name))]);
    // Criterion's filter, if it names shapes.
    let filter = std::env::args().skip(1).find(|a| all.clone().any(|(.., name)| name.contains(a.as_str())));
    for (shape, int8, name) in all.filter(|(.., name)| filter.as_ref().is_none_or(|f| name.contains(f))) {
        let cpu = Cpu::new(isa);
        let args = shape.args(int8);
        let op = OpArgs::<()>::Attention(args);
        cpu.prepare([op].iter());
        let mut arena = cpu.arena(args.workspace.at + cpu.workspace(&op), &()).expect("memory");
        let [q, k, v] = [(shape.queries, 1), (shape.keys, 2), (shape.keys, 3)].map(|(n, seed)| shape.data(n, seed));
        for (place, data) in [(args.q, &q), (args.k, &k), (args.v, &v)] {
            cpu.write_f32(&mut arena, place.slot.at, data).expect("in the arena");
        }
        cpu.attention(&mut arena, &args);
        let mut out = vec![0.0; q.len()];
        cpu.read_f32(&arena, args.y.slot().at, &mut out).expect("in the arena");
        let error = shape.check(&out, [&q, &k, &v], int8);
        assert!(error < if int8 { 0.03 } else { 1e-5 }, "{name}: error {error:.1e}");
        if !test {
            let (peak, time) = (peak(isa, int8), best(10, || cpu.attention(&mut arena, &args)));
            println!("{}  error {error:.1e}", summary(&name, time, shape.ops(), peak));
        }
        group.throughput(Throughput::Elements(shape.ops() as u64));
        group.bench_function(name, |b| b.iter(|| cpu.attention(&mut arena, &args)));
    }
    group.finish();
}

bench_main!(run);
