//! Every op on every instruction set, against the f64 oracle: one suite, a module per tier.

use aquatint::raw::backend::cpu::simd::{Isa, scalar::Scalar};
use aquatint::raw::program::Dim;
use common::cases::Case;
use common::{amx, avx_vnni, avx2, avx512, naive, run};

/// Runs `cases` on `isa` and compares each with the oracle.
fn suite<I: Isa>(isa: Option<I>, cases: Vec<Case>) {
    let Some(isa) = isa else { return };
    for Case { name, build, inputs, check } in &cases {
        let latent = [inputs.dims.height, inputs.dims.width];
        let values = naive::run(&build.program, &build.tensors, inputs);
        let want = &values[build.program.output.0 as usize];
        check.compare(&format!("{} on {}", name, isa.name()), &run(isa, &build.open(latent), inputs), &want.data);
    }
}

macro_rules! op_suite {
    ($tier:ident, $isa:expr) => {
        op_suite!($tier, $isa; cases: linear_float, linear_exact, linear_quantized, epilogues, conv, attention,
            elementwise; cases_norm: quantize, turned, layer_norm, group_norm; cases_unet: group_norm_modulated,
            resample, vector_quantize, prompt; cases_text: gated_float, gated_exact,
            attention_causal, attention_per_condition, activations; cases_attention: attention_int8;
            cases_grid: rounded, attention_on_grid;
            cases_conv: conv_sized, conv_large; cases_encoder: attention_masked, rms_norm, products, relative_bias,
            wide_stream, tables_of_modulations; cases_tokens: rotary, layer_norm_parts, layer_norm_shifted, tokens;
            cases_video: attention_within_reach, positions);
    };
    ($tier:ident, $isa:expr; $($module:ident: $($family:ident),+);+) => {
        mod $tier {
            use super::*;
            $($(#[test]
            fn $family() {
                suite($isa, common::$module::$family());
            })+)+
        }
    };
}

op_suite!(portable, Some(Scalar));
op_suite!(avx2, super::avx2());
op_suite!(avx_vnni, super::avx_vnni());
op_suite!(avx512, super::avx512());
op_suite!(amx, super::amx());

/// Both tiers fuse, and both sum in the same order, so their floats are the same to the bit.
#[test]
fn avx2_and_avx512_agree_to_the_bit() {
    let (Some(avx2), Some(avx512)) = (avx2(), avx512()) else { return };
    for Case { name, build, inputs, .. } in common::cases::linear_float() {
        let model = build.open([inputs.dims.height, inputs.dims.width]);
        let bits = |y: Vec<f32>| y.into_iter().map(f32::to_bits).collect::<Vec<_>>();
        assert_eq!(bits(run(avx2, &model, &inputs)), bits(run(avx512, &model, &inputs)), "{name}");
    }
}

/// A sample's attention in codes or on grids is the same to the bit in any batch and on any number of threads.
#[test]
fn rounded_attention_depends_on_the_sample_alone() {
    let alone = |threads: usize| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    let cases = || common::cases_attention::attention_int8().into_iter().chain(common::cases_grid::attention_on_grid());
    for Case { name, build, inputs, .. } in cases().filter(|c| c.inputs.dims.batch == 3) {
        let model = build.open([inputs.dims.height, inputs.dims.width]);
        let together = alone(3).install(|| run(Scalar, &model, &inputs));
        let (sample, result) = (inputs.sample.len() / 3, together.len() / 3);
        for i in 0..3 {
            let mut inputs = inputs.clone();
            inputs.dims.batch = 1;
            inputs.sample = inputs.sample[i * sample..][..sample].to_vec();
            inputs.conditions = vec![inputs.conditions[i]; 1];
            if build.program.inputs.last().is_some_and(|input| input.dims == [Dim::Batch]) {
                inputs.lengths = vec![inputs.lengths[i]];
            }
            let got = alone(1).install(|| run(Scalar, &model, &inputs));
            assert!(got == together[i * result..][..result], "{name}: sample {i}");
        }
    }
}
