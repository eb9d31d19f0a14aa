//! Products that write codes themselves, where ranges are known beforehand: the same bits as floats that are quantized
//! afterwards, from one op less.

use aquatint::Result;
use aquatint::raw::backend::cpu::{Cpu, Tier};
use aquatint::raw::codec::{Bits, Grain};
use aquatint::raw::plan::{Binding, Plan};
use aquatint::raw::program::{CurveAxis, Op, Quantize, QuantizeGrain, QuantizeRange, QuantizeSpec, RangeCurve, Role};
use common::cases::{Case, linear};
use common::naive::Inputs;
use common::{Codec, Model, cases, cases_attention, cases_encoder, cases_grid, cases_text};
use fastrand::Rng;

/// The result of a call; the number of ops, and the bytes of the arena.
fn call(cpu: &Cpu, model: &Model, inputs: &Inputs) -> Result<(Vec<u32>, usize, usize)> {
    let binding = Binding { dims: inputs.dims, calls: 1, table_bytes: 1 << 20, reserve: 0 };
    let plan = Plan::of_role(cpu, model, Role::Denoiser, &binding)?;
    let (ops, arena) = (plan.ops().count(), plan.arena);
    let out = common::run_on(cpu, model, inputs)?;
    Ok((out.into_iter().map(f32::to_bits).collect(), ops, arena))
}

/// Puts a quantization in a fixed range behind what `case` ends with, and a layer that reads the codes, their scales and their
/// sums; returns in how many cases the two became one.
fn compare(number: usize, case: Case, tier: Tier) -> usize {
    let Case { name, mut build, inputs, .. } = case;
    let cpu = Cpu::new(tier);
    let latent = [inputs.dims.height, inputs.dims.width];
    let made = build.program.output;
    let plain = build.open(latent);
    let binding = Binding { dims: inputs.dims, calls: 1, table_bytes: 1 << 20, reserve: 0 };
    let cols = Plan::of_role(&cpu, &plain, Role::Denoiser, &binding).expect("it is planned").output.cols;
    let floats = common::run_on(&cpu, &plain, &inputs).expect("it runs");
    let [low, high] =
        [f32::min, f32::max].map(|join: fn(f32, f32) -> f32| floats.iter().copied().reduce(join).unwrap());
    // A tenth of the range is beyond the codes; the zero point lies between two.
    let bits = [8, 6, 4][number % 3];
    let top = if number % 4 == 3 { ((1u16 << bits) - 2) as u8 } else { 0 };
    let step = (0.9 * (high - low)).max(1e-3) / f32::from((1u16 << bits) - 1);
    let points = build.f32(&[2, 3], &[0.0, step, -low / step, 1e6, 1.0, 0.0]);
    let range = QuantizeRange::Curve(RangeCurve { points, axis: CurveAxis::Timestep, top });
    let grain = [QuantizeGrain::Row, QuantizeGrain::Sample][number / 3 % 2];
    let spec = QuantizeSpec { bits, grain, range };
    let q = build.op(Op::Quantize(Quantize { x: made, spec, turn: None }));
    let codec = Codec { bits: Bits::new(4).unwrap(), grain: Grain::Row, int8: true, identity: false };
    let weight = codec.random(&mut Rng::with_seed(number as u64), 5, cols, false);
    let weight = build.codes(&[5, cols], &weight);
    build.op(linear(q, weight));
    let model = build.open(latent);
    let (want, ops, arena) = call(&cpu.node_by_node(), &model, &inputs).expect("it runs");
    let (got, fewer, less) = call(&cpu, &model, &inputs).expect("it runs");
    assert_eq!(got, want, "{name} in codes of {bits} bits per {} on {}", grain.name(), tier.name());
    // Scales, zero points and sums outweigh the codes of short rows.
    assert!(less <= arena || cols < 64, "{name}: {less} bytes of {arena}");
    ops - fewer
}

fn coded(cases: impl IntoIterator<Item = Case>) {
    let mut all: Vec<_> = cases.into_iter().filter(product).collect();
    assert!(all.len() > 8, "{} cases", all.len());
    let tiers = Tier::available();
    let became = all.drain(..).enumerate().map(|(i, case)| compare(i, case, tiers[i % tiers.len()])).sum::<usize>();
    assert!(became > 8, "{became} cases");
}

/// Whether a case ends with what can write codes, of a sample's rows.
fn product(case: &Case) -> bool {
    let program = &case.build.program;
    let last = program.nodes.last().expect("a case has nodes");
    matches!(last.op, Op::Linear(_) | Op::GatedLinear(_) | Op::Attention(_))
}

#[test]
fn linear_layers() {
    coded(cases::linear_float().into_iter().chain(cases::linear_exact()).chain(cases::linear_quantized()));
}

#[test]
fn epilogues() {
    coded(cases::epilogues());
}

#[test]
fn gated_layers() {
    coded(cases_text::gated_float().into_iter().chain(cases_text::gated_exact()));
}

#[test]
fn attention() {
    let plain = cases::attention().into_iter().chain(cases_text::attention_causal());
    let masked = cases_text::attention_per_condition().into_iter().chain(cases_encoder::attention_masked());
    coded(plain.chain(masked).chain(cases_grid::attention_on_grid()));
}

#[test]
fn attention_in_codes() {
    coded(cases_attention::attention_int8());
}
