//! The first token of a text, a hundred times as large as the others in CLIP's features: why MixDQ (§3.2) treats it apart, and
//! why a scale per token needs nothing of the kind.

use aquatint::raw::backend::cpu::simd::scalar::Scalar;
use aquatint::raw::codec::{Bits, Grain};
use aquatint::raw::program::{Op, Quantize, QuantizeGrain};
use common::cases::{dynamic, linear, rng_of};
use common::{Build, Codec, SAMPLE, inputs, normal, run};

/// Of two texts; rows are tokens, as a cross-attention's keys and values read them.
const SAMPLES: usize = 2;
const TOKENS: usize = 77;
const FEATURES: usize = 52;
const RESULTS: usize = 40;

/// What a W8 layer makes of `texts`, whose activations become 8-bit codes with what `grain` shares a scale, or stay floats.
fn keys(texts: &[f32], grain: Option<QuantizeGrain>) -> Vec<f32> {
    let rng = &mut rng_of("keys");
    let mut b = Build::new(FEATURES);
    let x =
        grain.map_or(SAMPLE, |grain| b.op(Op::Quantize(Quantize { x: SAMPLE, spec: dynamic(8, grain), turn: None })));
    let codec = Codec::all(true).into_iter().find(|c| c.bits == Bits::ALL[5] && c.grain == Grain::Row);
    let matrix = codec.expect("8 bits").random(rng, RESULTS, FEATURES, false);
    let weight = b.codes(&[RESULTS, FEATURES], &matrix);
    b.op(linear(x, weight));
    let mut values = texts.iter().copied();
    let inputs = inputs([SAMPLES, 1, TOKENS, FEATURES], || values.next().unwrap());
    run(Scalar, &b.open([1, TOKENS]), &inputs)
}

/// `|a - b| / |b|` over all tokens but the first of each text.
fn error(texts: &[f32], grain: QuantizeGrain) -> f64 {
    let (got, want) = (keys(texts, Some(grain)), keys(texts, None));
    let others = |values: &[f32]| -> Vec<f64> {
        values.chunks_exact(TOKENS * RESULTS).flat_map(|text| &text[RESULTS..]).map(|&v| f64::from(v)).collect()
    };
    let (got, want) = (others(&got), others(&want));
    assert_eq!(want.len(), SAMPLES * (TOKENS - 1) * RESULTS);
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    norm(&mut got.iter().zip(&want).map(|(a, b)| a - b)) / norm(&mut want.into_iter())
}

#[test]
fn a_scale_per_token_spares_others_a_large_first_token() {
    let rng = &mut rng_of("texts");
    let plain: Vec<f32> = (0..SAMPLES * TOKENS * FEATURES).map(|_| normal(rng)).collect();
    let mut large = plain.clone();
    large.chunks_exact_mut(TOKENS * FEATURES).for_each(|text| text[..FEATURES].iter_mut().for_each(|v| *v *= 100.0));
    let [row, sample] =
        [QuantizeGrain::Row, QuantizeGrain::Sample].map(|grain| [&plain, &large].map(|x| error(x, grain)));
    assert!(row[0] > 1e-4 && row[0] < 0.02, "{row:?}");
    assert_eq!(row[0], row[1], "the others do not notice");
    assert!(sample[0] < 0.03 && sample[1] > 20.0 * sample[0], "{sample:?}");
}
