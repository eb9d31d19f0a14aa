//! Every op of the CUDA back end against the f64 oracle: in the emulator always, on a device where there is one.
//!
//! Each case of the table that the CPU's tiers share runs twice: with all values f32, as close to the oracle as the CPU
//! must come, and with narrow values, whose error is that of f16.

use aquatint::Result;
use aquatint::raw::backend::args::Element;
use aquatint::raw::backend::cuda::Cuda;
use aquatint::raw::backend::cuda::driver::Driver;
use common::cases::{Case, Check};
use common::emulated::Emulated;
use common::naive::Inputs;
use common::{Build, device, naive, run_on};
use half::f16;

/// Runs a case with values stored as `narrow` and compares it with the oracle.
fn compare<D: Driver>(driver: D, name: &str, build: &Build, inputs: &Inputs, narrow: Element, check: &Check) {
    let model = build.open([inputs.dims.height, inputs.dims.width]);
    let values = naive::run(&build.program, &build.tensors, inputs);
    let want = &values[build.program.output.0 as usize];
    let got = run_on(&Cuda::new(driver, model.data(), narrow), &model, inputs);
    match got {
        Ok(got) => check.compare(&format!("{name}, {narrow:?}"), &got, &want.data),
        Err(e) => panic!("{name}, {narrow:?}: {e}"),
    }
}

/// Runs each case with wide and with narrow values.
fn suite<D: Driver>(open: impl Fn() -> Option<D>, cases: Vec<Case>) {
    for Case { name, build, mut inputs, check } in cases {
        let Some(driver) = open() else { return };
        compare(driver, &name, &build, &inputs, Element::F32, &check);

        let exact = matches!(check, Check::Exact);
        let check = match check {
            Check::Exact => Check::Exact,
            Check::Close { k, gain } => Check::Half { k, gain, step: 0.0 },
            Check::Within { k, gain, step, .. } => Check::Half { k, gain, step },
            Check::Step { step } => Check::Half { k: 1, gain: 1.0, step },
            Check::Nearest { table, .. } => Check::Nearest { table, half: true },
            half => half,
        };
        // What f16 cannot hold of the input is no error of the op.
        inputs.sample.iter_mut().for_each(|v| *v = f16::from_f32(*v).to_f32());
        let Some(driver) = open() else { return };
        compare(driver, &name, &build.narrowed(exact), &inputs, Element::F16, &check);
    }
}

/// The emulator; every case in another order of blocks and warps.
fn emulator() -> Option<Emulated> {
    Some(Emulated::new(fastrand::u64(..)))
}

macro_rules! cuda_suite {
    ($driver:ident) => {
        cuda_suite!($driver; cases: linear_float, linear_exact, linear_quantized, epilogues, conv, attention,
            elementwise; cases_norm: quantize, turned, layer_norm, group_norm; cases_unet: group_norm_modulated,
            resample, vector_quantize, prompt; cases_text: gated_float, gated_exact,
            attention_causal, attention_per_condition, activations; cases_grid: rounded, attention_on_grid;
            cases_conv: conv_sized; cases_encoder: attention_masked, rms_norm, products, relative_bias,
            wide_stream, tables_of_modulations; cases_tokens: rotary, layer_norm_parts, layer_norm_shifted, tokens;
            cases_video: attention_within_reach, positions);
    };
    ($driver:ident; $($module:ident: $($family:ident),+);+) => {
        mod $driver {
            use super::{Cuda, Element};

            $($(#[test]
            fn $family() {
                super::suite(super::$driver, common::$module::$family());
            })+)+

            #[test]
            fn probes() {
                let Some(driver) = super::$driver() else { return };
                Cuda::new(driver, &[], Element::F16).check_probes(2 << 20).unwrap();
            }

            #[test]
            fn codes_give_the_cpus_floats_to_the_bit() {
                super::codes_give_the_cpus_floats_to_the_bit(super::$driver);
            }
        }
    };
}

cuda_suite!(emulator);
cuda_suite!(device);

/// Equal codes give equal int32 sums on every back end; with f32 values around them even the results are the same. What is
/// rounded to a grid is what codes stand for.
fn codes_give_the_cpus_floats_to_the_bit<D: Driver>(open: impl Fn() -> Option<D>) {
    let Some(isa) = common::avx2() else { return };
    let cases = common::cases::linear_quantized().into_iter().chain(common::cases::conv());
    let cases = cases.chain(common::cases_text::gated_exact()).chain(common::cases_grid::rounded());
    for Case { name, build, inputs, .. } in cases {
        let Some(driver) = open() else { return };
        let model = build.open([inputs.dims.height, inputs.dims.width]);
        let bits = |y: Result<Vec<f32>>| y.unwrap().into_iter().map(f32::to_bits).collect::<Vec<_>>();
        let cuda = Cuda::new(driver, model.data(), Element::F32);
        assert_eq!(bits(run_on(&cuda, &model, &inputs)), bits(Ok(common::run(isa, &model, &inputs))), "{name}");
    }
}
