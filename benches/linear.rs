//! Linear layers: int8 products by packed codes of several widths, and f32, against the machine's own peaks.
//!
//! For: seeing how much of the processor a layer of DiT-XL/2's size gets (1024 x 1152 x 4608), that a learned codebook
//! costs what a uniform one does, and that cost follows the number of rows. `cargo bench --bench linear`; a summary
//! with ratios to the peaks measured in the same run is printed first, Criterion's statistics follow.

mod common;

use aquatint::raw::backend::args::{Codes, Element, Floats, Input, LinearArgs, Output, QuantizeArgs, QuantizeTo, Slot};
use aquatint::raw::backend::{Backend, cpu::Cpu, cpu::simd::Isa};
use aquatint::raw::codec::layout::{PackedMatrix, pack};
use aquatint::raw::format::TensorView;
use aquatint::raw::program::{Act, QuantizeGrain};
use common::{bench_main, best, peak, random_matrix, summary};
use criterion::{Criterion, Throughput};
use zerocopy::{FromBytes, IntoBytes};

/// One layer, ready to run.
struct Layer {
    rows: usize,
    k: usize,
    n: usize,
    bytes: Vec<u64>,
    layout: Option<aquatint::raw::codec::layout::Layout>,
}

impl Layer {
    fn codes(rows: usize, k: usize, n: usize, bits: u32, learned: bool) -> Self {
        let (layout, packed) = pack(&random_matrix(n, k, bits, learned, 1), 1);
        Layer { rows, k, n, bytes: aligned(&packed), layout: Some(layout) }
    }

    fn floats(rows: usize, k: usize, n: usize) -> Self {
        let mut rng = fastrand::Rng::with_seed(2);
        let w: Vec<f32> = (0..n * k).map(|_| rng.f32() - 0.5).collect();
        Layer { rows, k, n, bytes: aligned(w.as_bytes()), layout: None }
    }

    fn ops(&self) -> f64 {
        2.0 * (self.rows * self.k * self.n) as f64
    }

    fn view(&self) -> TensorView<'_> {
        let bytes = self.bytes.as_bytes();
        let bytes = &bytes[bytes.as_ptr().align_offset(64)..];
        match self.layout {
            Some(layout) => {
                TensorView::Codes(PackedMatrix::new(layout, &bytes[..layout.blobs().total]).expect("packed"))
            }
            None => TensorView::F32(<[f32]>::ref_from_bytes(&bytes[..self.n * self.k * 4]).expect("aligned")),
        }
    }

    /// Binds the layer by hand; the returned closure runs it once, and yields the result when asked.
    fn bind<'a>(&'a self, cpu: &'a Cpu) -> impl FnMut(bool) -> Vec<f32> + 'a {
        let (rows, k, n) = (self.rows, self.k, self.n);
        let slot = |at| Slot { at, stride: 0 };
        let x = Floats { slot: slot(0), rows, cols: k, element: Element::F32 };
        let codes = Codes { slot: slot(x.bytes().next_multiple_of(64)), rows, cols: k, groups: rows, top: 255 };
        let y = Floats {
            slot: slot((codes.slot.at + codes.bytes()).next_multiple_of(64)),
            rows,
            cols: n,
            element: Element::F32,
        };
        let input = if self.layout.is_some() { Input::Codes(codes) } else { Input::Floats(x) };
        let args =
            LinearArgs { x: input, y: Output::Floats(y), act: Act::None, gated: false, gate: None, residual: None };
        cpu.prepare([aquatint::raw::backend::args::OpArgs::Linear { args, weight: (), bias: None }].iter());
        let mut arena = cpu.arena(y.slot.at + y.bytes(), &()).expect("memory");
        let mut rng = fastrand::Rng::with_seed(3);
        let data: Vec<f32> = (0..rows * k).map(|_| rng.f32() * 2.0 - 1.0).collect();
        cpu.write_f32(&mut arena, 0, &data).unwrap();
        let to = QuantizeTo { codes, grain: QuantizeGrain::Row, fixed: None };
        cpu.quantize(&mut arena, &QuantizeArgs { x, y: to, block: 0, workspace: slot(0) }, None);
        let weight = self.view();
        move |read| {
            cpu.linear(&mut arena, &args, &weight, None);
            let mut out = vec![0.0; if read { rows * n } else { 0 }];
            cpu.read_f32(&arena, y.slot.at, &mut out).unwrap();
            out
        }
    }

    /// A few elements of the result against a plain sum over dequantized weights; activations carry int8 error.
    fn check(&self, out: &[f32]) {
        let mut rng = fastrand::Rng::with_seed(3);
        let x: Vec<f32> = (0..self.rows * self.k).map(|_| rng.f32() * 2.0 - 1.0).collect();
        for (i, j) in [(0, 0), (self.rows / 2, self.n - 1), (self.rows - 1, self.n / 3)] {
            let w = |k: usize| match self.view() {
                TensorView::Codes(m) => m.weight(j, k),
                TensorView::F32(w) => w[j * self.k + k],
                TensorView::F16(w) => w[j * self.k + k].to_f32(),
            };
            let (mut sum, mut square) = (0.0, 0.0);
            for k in 0..self.k {
                let (x, w) = (f64::from(x[i * self.k + k]), f64::from(w(k)));
                sum += x * w;
                square += w * w;
            }
            // A code is off by at most half a step of 2/255; errors of many add up like random ones.
            let bound = if self.layout.is_some() { 6.0 * square.sqrt() / 255.0 } else { 1e-4 };
            let got = f64::from(out[i * self.n + j]);
            assert!((got - sum).abs() <= bound, "({i}, {j}): {got} instead of {sum}, beyond {bound}");
        }
    }
}

fn aligned(bytes: &[u8]) -> Vec<u64> {
    let mut out = vec![0u64; bytes.len().div_ceil(8) + 8];
    let skip = out.as_ptr().cast::<u8>().align_offset(64);
    out.as_mut_bytes()[skip..skip + bytes.len()].copy_from_slice(bytes);
    out
}

fn run<I: Isa>(isa: I, c: &mut Criterion, test: bool) {
    let (m, k, n) = (1024, 1152, 4608);
    let layers = [
        ("w8a8 uniform", Layer::codes(m, k, n, 8, false)),
        ("w4a8 uniform", Layer::codes(m, k, n, 4, false)),
        ("w4a8 kmeans", Layer::codes(m, k, n, 4, true)),
        ("w3a8 kmeans", Layer::codes(m, k, n, 3, true)),
        ("w6a8 kmeans", Layer::codes(m, k, n, 6, true)),
        ("w4a8 kmeans, 4608 -> 1152", Layer::codes(m, n, k, 4, true)),
        ("w4a8 kmeans, 512 rows", Layer::codes(512, k, n, 4, true)),
        ("w4a8 kmeans, 128 rows", Layer::codes(128, k, n, 4, true)),
        ("w4a8 kmeans, 16 rows", Layer::codes(16, k, n, 4, true)),
    ];
    println!("{} on {} threads", isa.name(), rayon::current_num_threads());
    let mut group = c.benchmark_group("linear");
    for (name, layer) in &layers {
        let cpu = Cpu::new(isa);
        let mut go = layer.bind(&cpu);
        layer.check(&go(true));
        if !test {
            let (peak, time) = (peak(isa, true), best(20, || drop(go(false))));
            println!("{}", summary(name, time, layer.ops(), peak));
        }
        group.throughput(Throughput::Elements(layer.ops() as u64));
        group.bench_function(*name, |b| b.iter(|| go(false)));
    }
    let layer = Layer::floats(m, k, n);
    let cpu = Cpu::new(isa);
    let mut go = layer.bind(&cpu);
    layer.check(&go(true));
    if !test {
        let (peak, time) = (peak(isa, false), best(10, || drop(go(false))));
        println!("{}", summary("f32", time, layer.ops(), peak));
    }
    group.throughput(Throughput::Elements(layer.ops() as u64));
    group.bench_function("f32", |b| b.iter(|| go(false)));
    group.finish();
}

bench_main!(run);
