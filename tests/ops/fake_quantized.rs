//! Attention rounded to grids is what research projects simulate: against PyTorch, which runs their formulas. The fixture and
//! its maker are `tests/fixtures/attention.safetensors` and `make_attention.py`.

use aquatint::raw::backend::cpu::simd::{Isa, scalar::Scalar};
use aquatint::raw::program::{
    Attend, Attention, CurveAxis, Op, QuantizeGrain, QuantizeRange, QuantizeSpec, Round, SoftmaxGrid,
};
use common::cases::linear;
use common::{Build, CONTEXT, SAMPLE, avx2, avx512, inputs, run};
use safetensors::SafeTensors;

const HEADS: u32 = 2;

/// Shape and elements of a tensor, if there is one of this name.
fn tensor(file: &SafeTensors, name: &str) -> Option<(Vec<usize>, Vec<f32>)> {
    let tensor = file.tensor(name).ok()?;
    let values = tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    Some((tensor.shape().to_vec(), values))
}

fn check<I: Isa>(isa: Option<I>, file: &SafeTensors, name: &str) {
    let Some(isa) = isa else { return };
    let get = |key: &str| tensor(file, &format!("{name}/{key}"));
    let (shape, q_data) = get("q").unwrap();
    let (of_keys, k_data) = get("k").unwrap();
    let (v_data, want, scale) = (get("v").unwrap().1, get("y").unwrap().1, get("scale").unwrap().1[0]);
    let (steps, delta) = (get("steps").map(|s| s.1), get("delta").map(|s| s.1[0]));
    let [n, queries, d] = shape[..] else { panic!("{shape:?}") };

    // Keys and values side by side are the features of a prompt, one per sample.
    let mut b = Build::with_context(d, 2 * d);
    let pick = |first: usize| (0..2 * d * d).map(|i| f32::from(i % (2 * d) == first + i / (2 * d))).collect::<Vec<_>>();
    let [k, v] = [0, d].map(|first| {
        let weight = b.f32(&[d, 2 * d], &pick(first));
        b.op(linear(CONTEXT, weight))
    });
    let mut curve =
        |step: f32, zero: f32| QuantizeRange::curve(b.f32(&[1, 3], &[0.0, step, zero]), CurveAxis::StepFraction);
    let ranges: Vec<QuantizeRange> = match &steps {
        Some(steps) => steps.chunks_exact(2).map(|s| curve(s[0], s[1])).collect(),
        None => vec![QuantizeRange::Dynamic; 3],
    };
    let range = delta.map_or(QuantizeRange::Dynamic, |delta| curve(delta, 0.0));
    let rounded: Vec<_> = [SAMPLE, k, v]
        .into_iter()
        .zip(ranges)
        .map(|(x, range)| {
            let spec = QuantizeSpec { bits: 8, grain: QuantizeGrain::Row, range };
            b.op(Op::Round(Round { x, spec, parts: HEADS }))
        })
        .collect();
    let softmax = Some(SoftmaxGrid { bits: name.split('.').next().unwrap().parse().unwrap(), range });
    let attend = Attend { per_condition: true, ..Attend::default() };
    let [q, k, v] = rounded[..] else { panic!("three operands") };
    b.op(Op::Attention(Attention { q, k, v, heads: HEADS, scale, attend, softmax, ..Attention::default() }));

    let mut numbers = q_data.into_iter();
    let mut inputs = inputs([n, 1, queries, d], || numbers.next().unwrap());
    inputs.dims.tokens = of_keys[1];
    inputs.dims.conditions = n;
    inputs.labels = vec![0; n];
    inputs.conditions = (0..n as u32).collect();
    inputs.context = k_data.chunks_exact(d).zip(v_data.chunks_exact(d)).flat_map(|(k, v)| [k, v].concat()).collect();
    let got = run(isa, &b.open([1, queries]), &inputs);
    let rms = (want.iter().map(|x| x * x).sum::<f32>() / want.len() as f32).sqrt();
    assert_eq!(got.len(), want.len());
    for (i, (got, want)) in got.iter().zip(&want).enumerate() {
        let off = (got - want).abs();
        assert!(off <= 2e-6 * want.abs().max(rms), "{name} on {}: element {i}: {got} is not {want}", isa.name());
    }
}

#[test]
fn attention_on_grids_is_that_of_torch() {
    let bytes = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/attention.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut names: Vec<String> =
        file.names().iter().filter_map(|name| Some(name.strip_suffix("/q")?.to_owned())).collect();
    names.sort();
    assert_eq!(names.len(), 8, "{names:?}");
    for name in &names {
        check(Some(Scalar), &file, name);
        check(avx2(), &file, name);
        check(avx512(), &file, name);
    }
}
