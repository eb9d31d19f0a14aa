//! 3x3 convolutions at the sizes of Stable Diffusion 1.5 at 512 x 512, its UNet in W4A8 and its decoder in W8A8, against
//! the machine's own int8 peak.
//!
//! For: seeing what images of 8 x 8 to 512 x 512 pixels and 128 to 2560 channels cost: small ones pay for decoding the
//! weights, large ones for finding windows and storing floats. `cargo bench --bench conv`; a summary with ratios to the
//! peak measured in the same run is printed first, Criterion's statistics follow.

mod common;

use aquatint::raw::backend::args::{Codes, Conv2dArgs, Element, Floats, Input, OpArgs, QuantizeArgs, QuantizeTo, Slot};
use aquatint::raw::backend::{Backend, cpu::Cpu, cpu::simd::Isa};
use aquatint::raw::codec::layout::{Layout, PackedMatrix, pack};
use aquatint::raw::format::TensorView;
use aquatint::raw::program::{ConvStride, QuantizeGrain};
use common::{bench_main, best, peak, random_matrix, summary};
use criterion::{Criterion, Throughput};
use zerocopy::IntoBytes;

/// A convolution of one square image.
#[derive(Clone, Copy)]
struct Shape {
    name: &'static str,
    /// Pixels of a side of the input.
    side: usize,
    inputs: usize,
    outputs: usize,
    bits: u32,
    sampling: ConvStride,
}

impl Shape {
    const fn same(name: &'static str, side: usize, [inputs, outputs]: [usize; 2], bits: u32) -> Self {
        Shape { name, side, inputs, outputs, bits, sampling: ConvStride::Same }
    }
}

const SHAPES: [Shape; 10] = [
    Shape::same("unet 64x64, 320 to 320", 64, [320, 320], 4),
    Shape::same("unet 64x64, 960 to 320", 64, [960, 320], 4),
    Shape { sampling: ConvStride::Down, ..Shape::same("unet 64x64 down, 320", 64, [320, 320], 4) },
    Shape::same("unet 32x32, 640 to 640", 32, [640, 640], 4),
    Shape::same("unet 16x16, 1280 to 1280", 16, [1280, 1280], 4),
    Shape::same("unet 8x8, 2560 to 1280", 8, [2560, 1280], 4),
    Shape::same("vae 64x64, 512 to 512", 64, [512, 512], 8),
    Shape { sampling: ConvStride::Up, ..Shape::same("vae 64x64 up, 512", 64, [512, 512], 8) },
    Shape::same("vae 256x256, 256 to 256", 256, [256, 256], 8),
    Shape::same("vae 512x512, 128 to 128", 512, [128, 128], 8),
];

/// One convolution, ready to run.
struct Layer {
    shape: Shape,
    layout: Layout,
    bytes: Vec<u64>,
}

impl Layer {
    fn new(shape: Shape) -> Self {
        let matrix = random_matrix(shape.outputs, 9 * shape.inputs, shape.bits, shape.bits < 8, 1);
        let (layout, packed) = pack(&matrix, 9);
        let mut bytes = vec![0u64; packed.len().div_ceil(8) + 8];
        let skip = bytes.as_ptr().cast::<u8>().align_offset(64);
        bytes.as_mut_bytes()[skip..skip + packed.len()].copy_from_slice(&packed);
        Layer { shape, layout, bytes }
    }

    fn weight(&self) -> PackedMatrix<'_> {
        let bytes = self.bytes.as_bytes();
        let bytes = &bytes[bytes.as_ptr().align_offset(64)..];
        PackedMatrix::new(self.layout, &bytes[..self.layout.blobs().total]).expect("packed")
    }

    /// Pixels of a side of the result.
    fn side(&self) -> usize {
        self.shape.sampling.rows(self.shape.side).expect("a few pixels")
    }

    fn ops(&self) -> f64 {
        2.0 * (self.side().pow(2) * 9 * self.shape.inputs * self.shape.outputs) as f64
    }

    /// Values from -1 to 1.
    fn data(&self) -> Vec<f32> {
        let mut rng = fastrand::Rng::with_seed(3);
        (0..self.shape.side.pow(2) * self.shape.inputs).map(|_| rng.f32() * 2.0 - 1.0).collect()
    }

    /// Binds the layer by hand; the returned closure runs it once, and yields the result when asked.
    fn bind<'a>(&'a self, cpu: &'a Cpu) -> impl FnMut(bool) -> Vec<f32> + 'a {
        let Shape { side, inputs, outputs, sampling, .. } = self.shape;
        let (rows, results) = (side.pow(2), self.side().pow(2));
        let slot = |at| Slot { at, stride: 0 };
        let x = Floats { slot: slot(0), rows, cols: inputs, element: Element::F32 };
        let codes = Codes { slot: slot(x.bytes().next_multiple_of(64)), rows, cols: inputs, groups: 1, top: 255 };
        let y_at = (codes.slot.at + codes.bytes()).next_multiple_of(64);
        let y = Floats { slot: slot(y_at), rows: results, cols: outputs, element: Element::F32 };
        let args = Conv2dArgs {
            x: Input::Codes(codes),
            y,
            samples: 1,
            height: side,
            width: side,
            out: [self.side(); 2],
            sampling,
            shift: None,
            residual: None,
        };
        cpu.prepare([OpArgs::Conv2d { args, weight: (), bias: None }].iter());
        let mut arena = cpu.arena(y_at + y.bytes(), &()).expect("memory");
        cpu.write_f32(&mut arena, 0, &self.data()).expect("in the arena");
        let to = QuantizeTo { codes, grain: QuantizeGrain::Sample, fixed: None };
        cpu.quantize(&mut arena, &QuantizeArgs { x, y: to, block: 0, workspace: slot(0) }, None);
        let weight = TensorView::Codes(self.weight());
        move |read| {
            cpu.conv2d(&mut arena, &args, &weight, None);
            let mut out = vec![0.0; if read { results * outputs } else { 0 }];
            cpu.read_f32(&arena, y_at, &mut out).expect("in the arena");
            out
        }
    }

    /// A few elements of the result, corners among them, against a plain sum over dequantized weights; activations
    /// carry int8 error.
    fn check(&self, out: &[f32]) {
        let Shape { side, inputs, outputs, sampling, name, .. } = self.shape;
        let (data, weight, last) = (self.data(), self.weight(), self.side() - 1);
        for (y, x, n) in [(0, 0, 0), (0, last, 1), (last, last, outputs - 1), (last / 2, last / 3, outputs / 3)] {
            let (mut sum, mut square) = (0.0, 0.0);
            for tap in 0..9 {
                let along = |at: usize, tap: usize| {
                    let at = (at * sampling.stride() + tap).checked_sub(sampling.before())? / sampling.upsample();
                    (at < side).then_some(at)
                };
                let (Some(y), Some(x)) = (along(y, tap / 3), along(x, tap % 3)) else { continue };
                for c in 0..inputs {
                    let w = f64::from(weight.weight(n, tap * inputs + c));
                    sum += f64::from(data[(y * side + x) * inputs + c]) * w;
                    square += w * w;
                }
            }
            // A code is off by at most half a step of 2/255; errors of many add up like random ones.
            let bound = 6.0 * f64::sqrt(square) / 255.0;
            let got = f64::from(out[(y * (last + 1) + x) * outputs + n]);
            assert!((got - sum).abs() <= bound, "{name}: ({y}, {x}, {n}): {got} instead of {sum}, beyond {bound}");
        }
    }
}

fn run<I: Isa>(isa: I, c: &mut Criterion, test: bool) {
    println!("{} on {} threads", isa.name(), rayon::current_num_threads());
    let mut group = c.benchmark_group("conv");
    for shape in SHAPES {
        let layer = Layer::new(shape);
        let cpu = Cpu::new(isa);
        let mut go = layer.bind(&cpu);
        layer.check(&go(true));
        if !test {
            let (peak, time) = (peak(isa, true), best(20, || drop(go(false))));
            println!("{}", summary(shape.name, time, layer.ops(), peak));
        }
        group.throughput(Throughput::Elements(layer.ops() as u64));
        group.bench_function(shape.name, |b| b.iter(|| go(false)));
    }
    group.finish();
}

bench_main!(run);
