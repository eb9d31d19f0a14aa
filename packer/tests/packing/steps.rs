//! Passes that rework weights: what runs afterwards computes the same, and `unpack` gives back what went in.

use crate::common::{Scratch, fixture, load, load_component};
use aquatint::raw::backend::Backend;
use aquatint::raw::backend::cpu::{Cpu, Tier};
use aquatint::raw::exec::{Executor, PromptInputs};
use aquatint::raw::format::{Meta, Packed, TensorSpec, TensorView, Writer};
use aquatint::raw::plan::Binding;
use aquatint::raw::program::{Act, Attention, Dims, GatedLinear, LayerNorm, Linear, Op, Program, Role, Tensor, Value};
use packer::emit::{Options, Packing};
use packer::lower::UNET;
use packer::pass::{Split, split_layers};
use packer::unpack::unpack;
use packer::weight::{Channels, Rotation, Step, Weights};
use packer::weights::Float;
use std::collections::BTreeMap;
use zerocopy::IntoBytes;

type Pass<'a> = &'a dyn Fn(&mut Program, &mut Weights);

/// What is left of a tiny UNet of Stable Diffusion in f32 after `pass` on its denoiser.
struct Outcome {
    /// What the denoiser computes of some latents and a prompt.
    sample: Vec<f32>,
    /// What `unpack` makes of the file.
    weights: BTreeMap<String, crate::common::Dense>,
    /// Steps by tensor.
    steps: BTreeMap<String, Vec<Step>>,
    made: Vec<String>,
}

fn outcome(name: &str, pass: Pass) -> Outcome {
    let scratch = Scratch::new(name);
    let (file, back) = (scratch.path("m.aqt"), scratch.path("w.safetensors"));
    let options = Options {
        model: fixture("sd").join("v1"),
        q_config: Some("f32".into()),
        output: file.clone(),
        ..Default::default()
    };
    let mut packing = Packing::open(&options).unwrap();
    let denoiser = packing.programs.iter_mut().find(|p| p.role == Role::Denoiser).unwrap();
    pass(denoiser, &mut packing.weights);
    packing.write(&mut |_| ()).unwrap();
    let packed = Packed::new(aquatint::raw::mmap::open(&file).unwrap()).unwrap();
    packed.verify().unwrap();
    let count = unpack(&file, &back, Some(UNET), Float::F32).unwrap();
    let weights = load(&back);
    assert_eq!(count, weights.len());
    let meta = packed.meta();
    Outcome { sample: run_all(&packed), weights, steps: meta.steps.clone(), made: meta.made.clone() }
}

/// What one call of the denoiser on fixed inputs gives, on each tier.
fn run_all<D: AsRef<[u8]>>(packed: &Packed<D>) -> Vec<f32> {
    Tier::available().into_iter().flat_map(|tier| run(&Cpu::new(tier), packed)).collect()
}

fn run<B: Backend, D: AsRef<[u8]>>(backend: &B, packed: &Packed<D>) -> Vec<f32> {
    let wave = |n: usize| (0..n).map(|i| (i as f32 * 0.37).sin()).collect::<Vec<_>>();
    let (tokens, features) = (7, 18);
    let dims = Dims { batch: 1, conditions: 1, height: 8, width: 8, tokens, ..Dims::ONE };
    let shape = Binding { dims, calls: 1, table_bytes: 0, reserve: 0 };
    let mut executor = Executor::new(backend, packed, Role::Denoiser, shape).unwrap();
    let context = wave(tokens * features);
    executor.write_sample(&wave(8 * 8 * 4)).unwrap();
    executor.set_prompt(&PromptInputs { context: Some(&context), ..Default::default() }).unwrap();
    executor.set_timesteps([371.0].into_iter()).unwrap();
    executor.call(0).unwrap();
    let mut out = vec![0.0; executor.plan().output_type.len()];
    executor.read_output(&mut out).unwrap();
    out
}

/// The weights as the checkpoint has them.
fn source() -> BTreeMap<String, crate::common::Dense> {
    load_component(&fixture("sd").join("v1").join(UNET))
}

/// The most units in the last place between two sets of weights of equal names and shapes.
fn units(a: &BTreeMap<String, crate::common::Dense>, b: &BTreeMap<String, crate::common::Dense>) -> u32 {
    assert!(a.iter().map(|(k, t)| (k, &t.shape)).eq(b.iter().map(|(k, t)| (k, &t.shape))));
    let pairs = a.values().zip(b.values()).flat_map(|(a, b)| a.values.iter().zip(&b.values));
    pairs.map(|(a, b)| a.to_bits().abs_diff(b.to_bits())).max().unwrap()
}

/// `|a - b| / |b|`.
fn relative(a: &[f32], b: &[f32]) -> f64 {
    let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|x| x * x).sum::<f64>().sqrt();
    let difference = norm(&mut a.iter().zip(b).map(|(a, b)| f64::from(a - b)));
    difference / norm(&mut b.iter().map(|&b| f64::from(b)))
}

/// What rounding to f32 in other places may do to a network of a few dozen layers.
const ROUNDING: f64 = 1e-5;

/// Divides what each layer norm makes by `factor(channel)` and multiplies the inputs of the layers that read it; returns
/// how many norms that were.
fn smooth(program: &mut Program, weights: &mut Weights, factor: &dyn Fn(usize) -> f32) -> usize {
    let mut count = 0;
    for (i, node) in program.nodes.iter().enumerate() {
        let Op::LayerNorm(LayerNorm { weight: Some(norm), bias: Some(bias), .. }) = node.op else { continue };
        let value = program.value_of(i);
        let readers = program.nodes.iter().filter(|n| n.op.reads().any(|v| v == value));
        let layers: Option<Vec<Tensor>> = readers.map(|n| n.op).map(layer_of(value)).collect();
        let Some(layers) = layers.filter(|layers| !layers.is_empty()) else { continue };
        let d = weights[norm].len();
        let key = format!("{}.smoothing", node.path);
        let by = weights.make(UNET, key, &[d], (0..d).map(factor).collect());
        let by = weights[by].name();
        for tensor in [norm, bias] {
            let step = Step::Scale { channels: Channels::Output, by: by.clone(), divide: true };
            weights[tensor].steps.push(step);
        }
        for tensor in layers {
            weights[tensor].steps.push(Step::Scale { channels: Channels::Input, by: by.clone(), divide: false });
        }
        count += 1;
    }
    count
}

/// The weight of a linear layer that reads `value` and nothing else of it; `None` for other ops.
fn layer_of(value: Value) -> impl Fn(Op) -> Option<Tensor> {
    move |op| match op {
        Op::Linear(Linear { x, weight, residual, .. }) if x == value && residual != Some(value) => Some(weight),
        Op::GatedLinear(GatedLinear { x, weight, .. }) if x == value => Some(weight),
        _ => None,
    }
}

#[test]
fn nothing_done_is_the_model_itself() {
    let plain = outcome("steps-plain", &|_, _| ());
    assert_eq!(units(&plain.weights, &source()), 0);
    assert!(plain.made.is_empty());
    let kinds: Vec<_> = plain.steps.values().flatten().collect();
    assert!(kinds.contains(&&Step::ToFileOrder) && kinds.contains(&&Step::Interleave));
    assert!(kinds.iter().all(|step| matches!(step, Step::ToFileOrder | Step::Interleave)));
}

#[test]
fn smoothing_by_powers_of_two_changes_no_bit() {
    let plain = outcome("smooth-none", &|_, _| ());
    let smoothed = outcome("smooth-two", &|program, weights| {
        let norms = smooth(program, weights, &|channel| 2f32.powi((channel % 7) as i32 - 3));
        assert_eq!(norms, 21, "three norms in each of seven transformers");
    });
    assert_eq!(smoothed.sample, plain.sample);
    assert_eq!(units(&smoothed.weights, &source()), 0);
    assert_eq!(smoothed.made.len(), 21);
    let gated = smoothed.steps.iter().find(|(name, _)| name.ends_with("ff.net.0.proj.weight")).unwrap().1;
    assert!(matches!(gated[..], [Step::Interleave, Step::Scale { channels: Channels::Input, .. }]), "{gated:?}");
}

#[test]
fn smoothing_by_any_factors_rounds_and_comes_back_within_one_unit() {
    let plain = outcome("smooth-plain", &|_, _| ());
    let smoothed = outcome("smooth-any", &|program, weights| {
        smooth(program, weights, &|channel| 0.3 + channel as f32 * 0.77);
    });
    assert_ne!(smoothed.sample, plain.sample, "the factors went in");
    let error = relative(&smoothed.sample, &plain.sample);
    assert!(error < ROUNDING, "{error:e}");
    assert_eq!(units(&smoothed.weights, &source()), 1);
}

/// Rotates the values of each attention, within heads, and the layer after it back; returns how many that were.
fn rotate(program: &mut Program, weights: &mut Weights) -> usize {
    let mut count = 0;
    for (i, node) in program.nodes.iter().enumerate() {
        let Op::Attention(Attention { v, heads, .. }) = node.op else { continue };
        let op = |node: usize| program.nodes[node].op;
        let values = program.node_of(v).map(op);
        let Some(Op::Linear(Linear { weight: values, bias: None, act: Act::None, gate: None, residual: None, .. })) =
            values
        else {
            continue;
        };
        let attended = program.value_of(i);
        let Some(after) = program.nodes.iter().map(|n| n.op).find_map(layer_of(attended)) else { continue };
        // A reflection across all channels of a head, and a Hadamard matrix for every two of them, by turns.
        let e = weights[values].matrix().0 / heads as usize;
        let by = if count % 2 == 0 {
            let reflect = |i: usize, j: usize| f32::from(u8::from(i == j)) - 2.0 / e as f32;
            let matrix = (0..e * e).map(|i| reflect(i / e, i % e)).collect();
            let tensor = weights.make(UNET, format!("{}.rotation", node.path), &[e, e], matrix);
            Rotation::Tensor(weights[tensor].name())
        } else {
            Rotation::Hadamard { size: 2, seed: i as u64 }
        };
        weights[values].steps.push(Step::Rotate { channels: Channels::Output, by: by.clone() });
        weights[after].steps.push(Step::Rotate { channels: Channels::Input, by });
        count += 1;
    }
    count
}

#[test]
fn rotations_cancel_and_come_back() {
    let plain = outcome("rotate-none", &|_, _| ());
    let rotated = outcome("rotate", &|program, weights| {
        assert_eq!(rotate(program, weights), 14, "two attentions in each of seven transformers");
    });
    assert_ne!(rotated.sample, plain.sample, "the rotations went in");
    let error = relative(&rotated.sample, &plain.sample);
    assert!(error < ROUNDING, "{error:e}");
    for (key, want) in source() {
        let error = relative(&rotated.weights[&key].values, &want.values);
        assert!(error < 2f64.powi(-22), "{key}: {error:e}");
    }
}

#[test]
fn a_layer_over_two_values_may_be_split_and_is_joined_again() {
    let plain = outcome("split-none", &|_, _| ());
    for (kind, layer) in [(Split::Shortcut, "conv_shortcut"), (Split::Conv, "conv1")] {
        let halves = outcome(&format!("split-{kind}"), &|program, weights| {
            let dims = Dims { batch: 1, conditions: 1, height: 8, width: 8, tokens: 7, ..Dims::ONE };
            let wanted = |_: &Weights, _, split| split == kind;
            let split = split_layers(std::slice::from_mut(program), weights, &dims, &wanted).unwrap();
            assert_eq!(split.len(), 6, "two blocks in each of three levels");
        });
        let second = format!("{layer}.weight_quantizer_0.weight");
        assert!(halves.steps.keys().any(|name| name.ends_with(&second)));
        let error = relative(&halves.sample, &plain.sample);
        assert!(error < ROUNDING, "{kind}: {error:e}");
        assert_eq!(units(&halves.weights, &source()), 0);
    }
}

#[test]
fn steps_that_do_not_fit_stop_the_packer() {
    let scratch = Scratch::new("misfit");
    let options = Options { model: fixture("sd").join("v1"), output: scratch.path("m.aqt"), ..Default::default() };
    for step in [
        Step::Scale { channels: Channels::Input, by: "unet/nothing".into(), divide: false },
        Step::Rotate { channels: Channels::Output, by: Rotation::Hadamard { size: 3, seed: 0 } },
    ] {
        let mut packing = Packing::open(&options).unwrap();
        let tensor = packing.weights.iter().position(|w| w.name().ends_with("attn1.to_q.weight")).unwrap();
        packing.weights[Tensor(tensor as u32)].steps.push(step);
        let error = packing.write(&mut |_| ()).unwrap_err().to_string();
        assert!(error.contains("steps of unet/") && error.contains("attn1.to_q.weight"), "{error}");
        assert!(scratch.entries().is_empty());
    }
}

/// The file at `from` with another META, written anew to `to`.
fn rewrite(from: &std::path::Path, to: &std::path::Path, edit: &dyn Fn(&mut Meta)) {
    let packed = Packed::new(aquatint::raw::mmap::open(from).unwrap()).unwrap();
    let mut writer = Writer::create(to).unwrap();
    for (i, info) in packed.tensors().iter().enumerate() {
        let TensorView::F32(values) = packed.tensor(i) else { panic!("{} is f32", info.name) };
        let spec = TensorSpec { name: info.name.clone(), dims: info.dims.clone(), kind: info.kind };
        writer.tensor(spec, values.as_bytes()).unwrap();
    }
    let mut meta = packed.meta().clone();
    edit(&mut meta);
    writer.finish(packed.programs(), &meta).unwrap();
}

/// What takes its size from a value makes the same of every even size as what doubles its pixels.
#[test]
fn taking_sizes_from_values_changes_no_bit_of_even_sizes() {
    let told = outcome("sizes-told", &|_, _| ());
    let count = std::cell::Cell::new(0);
    let doubled = outcome("sizes-doubled", &|program, _| {
        for node in &mut program.nodes {
            if let Op::Conv2d(conv) = &mut node.op
                && conv.size_of.take().is_some()
            {
                count.set(count.get() + 1);
            }
        }
    });
    assert_eq!(count.get(), 2, "levels on the way up");
    assert!(told.sample == doubled.sample);
}

#[test]
fn records_that_do_not_fit_their_tensors_are_told_and_nothing_is_written() {
    let scratch = Scratch::new("records");
    let (file, bad, out) = (scratch.path("m.aqt"), scratch.path("bad.aqt"), scratch.path("w.safetensors"));
    crate::common::pack_as(&crate::common::model("d2"), Some("f32"), &file).unwrap();
    rewrite(&file, &bad, &|_| ());
    unpack(&bad, &out, None, Float::F32).unwrap();
    std::fs::remove_file(&out).unwrap();

    let path = "transformer/transformer_blocks.0.attn1.to_q.weight";
    let bias = "transformer/transformer_blocks.0.attn1.to_q.bias";
    let scale = |by: &str| Step::Scale { channels: Channels::Input, by: by.into(), divide: false };
    let part = |whole: &str, first, count| Step::Split { whole: whole.into(), first, count };
    for (steps, word) in [
        (vec![(path, vec![Step::ToFileOrder])], "to_file_order"),
        (vec![(path, vec![scale("transformer/nothing")])], "parameter"),
        (vec![(path, vec![scale("transformer/transformer_blocks.0.ff.net.0.proj.bias")])], "32 factors"),
        (vec![(bias, vec![scale(bias)])], "such channels"),
        (
            vec![(path, vec![Step::Rotate { channels: Channels::Output, by: Rotation::Tensor(path.into()) }])],
            "orthogonal",
        ),
        (vec![(path, vec![part("transformer/whole", 1, 32)])], "without gaps"),
        (vec![(path, vec![part("transformer/whole", 0, 31)])], "without gaps"),
        (vec![(path, vec![part("transformer/whole", 0, 32), part("transformer/whole", 0, 32)])], "one split"),
        (vec![(path, vec![part(bias, 0, 32)])], "parts of it"),
        (vec![(path, vec![part("transformer/w", 0, 32)]), (bias, vec![part("transformer/w", 32, 32)])], "without gaps"),
    ] {
        rewrite(&file, &bad, &|meta| {
            meta.steps.extend(steps.iter().map(|(name, steps)| (name.to_string(), steps.clone())));
        });
        let error = unpack(&bad, &out, None, Float::F32).unwrap_err().to_string();
        assert!(error.contains("META") && error.contains("steps of") && error.contains(word), "{steps:?}: {error}");
        assert_eq!(scratch.entries(), ["bad.aqt", "m.aqt"]);
    }
}
