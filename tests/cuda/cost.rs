//! What the hot kernels cost, as far as it can be counted without a device: bank conflicts of shared memory, sectors of
//! global memory, and instructions beside the matrix products.

use aquatint::raw::backend::args::Element;
use aquatint::raw::backend::cuda::Cuda;
use aquatint::raw::codec::{Bits, Grain};
use aquatint::raw::program::{Conv2d, ConvStride, Linear, Op, Quantize, QuantizeGrain};
use common::cases::{dynamic, linear, rng_of};
use common::emulated::Emulated;
use common::{Build, Codec, SAMPLE, inputs, normal, normals, run_on};
use ptx_emulator::{Sectors, Stats, Wavefronts};

/// What `kernel` did in one call of `build` on 256 rows of `cols`.
fn stats(build: Build, cols: usize, narrow: Element, kernel: &str) -> Stats {
    let build = build.narrowed(false);
    let model = build.open([16, 16]);
    let rng = &mut rng_of("cost");
    let inputs = inputs([1, 16, 16, cols], || normal(rng));
    let cuda = Cuda::new(Emulated::new(3), model.data(), narrow);
    run_on(&cuda, &model, &inputs).unwrap();
    let stats = cuda.driver().stats.borrow();
    stats.get(kernel).unwrap_or_else(|| panic!("{kernel} did not run, but {:?}", stats.keys())).clone()
}

fn waste(w: Wavefronts) -> f64 {
    w.actual as f64 / w.ideal.max(1) as f64
}

fn spread(s: Sectors) -> f64 {
    s.touched as f64 / s.minimum.max(1) as f64
}

/// Warp instructions, and how many of them are matrix products.
fn instructions(s: &Stats) -> [f64; 2] {
    let products: u64 = s.instructions.iter().filter(|(op, _)| op.starts_with("mma")).map(|(_, n)| n).sum();
    [s.total_instructions as f64, products as f64]
}

/// Prints what a product costs and checks it against the most allowed. `of(k)` runs it on `k` inputs; from two runs
/// follow the instructions per matrix instruction of the loop, and those of the rest for each element of the result.
fn judge(name: &str, of: impl Fn(usize) -> Stats, sectors: f64, per_product: f64, per_element: f64) {
    let (short, long) = (of(256), of(512));
    let ([all, products], [all_long, products_long]) = (instructions(&short), instructions(&long));
    let per = (all_long - all) / (products_long - products) - 1.0;
    let rest = (all - products * (1.0 + per)) * 32.0 / (256.0 * 256.0);
    let (loads, stores, matrices) = (waste(long.shared_loads), waste(long.shared_stores), waste(long.matrix_loads));
    let (read, written) = (spread(long.global_loads), spread(long.global_stores));
    println!(
        "{name:<30} shared loads {loads:.2} stores {stores:.2} ldmatrix {matrices:.2}; sectors read {read:.2} \
         written {written:.2}; per mma {per:.2} other instructions, per element {rest:.1}"
    );
    if std::env::var("VERBOSE").is_ok() {
        for (op, n) in &long.instructions {
            let before = short.instructions.get(op).copied().unwrap_or(0);
            if n - before > 0 {
                println!("    {:7.3} {op}", (n - before) as f64 / (products_long - products));
            }
        }
    }
    assert!(matrices == 1.0 && loads == 1.0, "{name}: bank conflicts of loads {loads}, ldmatrix {matrices}");
    assert!(stores < 1.05, "{name}: bank conflicts of stores {stores}");
    assert!(read <= sectors && written <= 1.0, "{name}: sectors read {read}, written {written}");
    assert!(per <= per_product, "{name}: {per} other instructions per mma");
    assert!(rest <= per_element, "{name}: {rest} instructions per element");
}

/// What the integer product does with `bits`-bit weights of 256 outputs and `k` inputs.
fn integer_product(bits: u32, grain: Grain, identity: bool, bias: bool, k: usize) -> Stats {
    let (rng, o) = (&mut rng_of("integer"), 256);
    let mut b = Build::new(k);
    let codec = Codec { bits: Bits::new(bits).unwrap(), grain, int8: true, identity };
    let weight = b.codes(&[o, k], &codec.random(rng, o, k, false));
    let bias = bias.then(|| b.f32(&[o], &normals(rng, o)));
    let q = b.op(Op::Quantize(Quantize { x: SAMPLE, spec: dynamic(8, QuantizeGrain::Row), turn: None }));
    b.op(Op::Linear(Linear { x: q, weight, bias, ..Linear::default() }));
    stats(b, k, Element::F16, if identity { "linear_i8_consecutive" } else { "linear_i8_table" })
}

#[test]
fn integer_products() {
    for (bits, grain, most) in [
        (2, Grain::Row, 5.5),
        (3, Grain::Row, 5.5),
        (4, Grain::Row, 5.0),
        (4, Grain::Tensor, 5.0),
        (5, Grain::Row, 7.5),
        (8, Grain::Tensor, 5.0),
    ] {
        let run = |k: usize| integer_product(bits, grain, bits == 8, false, k);
        judge(&format!("linear_i8 w{bits} {grain:?}"), run, 1.5, most, 25.0);
    }
}

/// What a packer chooses costs nothing when it is run: one table for all rows as much as one per row, and a bias that takes
/// up an error no more than none.
#[test]
fn methods_of_one_width_cost_alike() {
    for bits in [2, 3, 4] {
        let of = |grain, bias| instructions(&integer_product(bits, grain, false, bias, 1152))[0];
        let plain = of(Grain::Row, false);
        for (name, grain, bias) in
            [("one table", Grain::Tensor, false), ("a bias", Grain::Row, true), ("both", Grain::Tensor, true)]
        {
            let ratio = of(grain, bias) / plain;
            println!("w{bits}, {name}: {ratio:.4} of the instructions of a table per row without a bias");
            assert!((0.9..=1.02).contains(&ratio), "w{bits}, {name}: {ratio}");
        }
    }
    let [table, uniform] =
        [false, true].map(|identity| instructions(&integer_product(4, Grain::Tensor, identity, false, 1152))[0]);
    println!("w4: a table takes {:.4} of the instructions of consecutive levels", table / uniform);
}

/// A 3 x 3 convolution works out where its inputs lie, at each tap.
#[test]
fn integer_convolutions() {
    let run = |channels: usize| {
        let (rng, o) = (&mut rng_of("integer"), 256);
        let mut b = Build::new(channels);
        let codec = Codec { bits: Bits::new(4).unwrap(), grain: Grain::Row, int8: true, identity: false };
        let weight = b.codes(&[o, 3, 3, channels], &codec.random(rng, o, 9 * channels, false));
        let x = b.op(Op::Quantize(Quantize { x: SAMPLE, spec: dynamic(8, QuantizeGrain::Sample), turn: None }));
        let sampling = ConvStride::Same;
        b.op(Op::Conv2d(Conv2d { x, weight, bias: None, sampling, shift: None, residual: None, size_of: None }));
        stats(b, channels, Element::F16, "conv_i8_table")
    };
    judge("conv_i8_table w4", run, 1.5, 5.5, 58.0);
}

#[test]
fn float_products() {
    let run = |k: usize| {
        let (rng, o) = (&mut rng_of("float"), 256);
        let mut b = Build::new(k);
        let weight = b.f16(&[o, k], &normals(rng, o * k));
        b.op(linear(SAMPLE, weight));
        stats(b, k, Element::F16, "linear_f16")
    };
    judge("linear_f16", run, 1.5, 6.5, 20.0);
}
