//! Inputs of layers in codes, for a segment: where they are made, with which ranges they begin, and what becomes of those.

use super::block::{Block, chunks, part};
use super::samples::Samples;
use super::segments::Segment;
use super::steps::Steps;
use super::{Curve, StepTraining};
use crate::emit::ActivationRanges;
use crate::pass::{self, Layer, Starts, product};
use crate::quantize::{Intervals, MovingRange, SeenRange};
use crate::reverse::{Array, Tape};
use aquatint::Result;
use aquatint::raw::program::{Input, InputKind, Program, QuantizeRange, Tensor, Value};
use std::collections::BTreeMap;

/// A value that layers multiply, which becomes codes.
pub(super) struct Coded {
    /// The value in the whole program.
    x: Value,
    /// Width of a code.
    bits: u8,
    /// What the curve of its range is called.
    curve: Tensor,
    /// The weights of the layers.
    layers: Vec<Tensor>,
}

/// The values of `segment` that become codes: `bits` gives the width for the layer of a weight, `first` is the number of the
/// first curve. What all samples have in common is left out: there is one range of it, whatever the time.
pub(super) fn coded(
    program: &Program,
    segment: &Segment,
    bits: &dyn Fn(Tensor) -> Option<u8>,
    is_shared: &dyn Fn(Value) -> bool,
    Tensor(first): Tensor,
) -> Vec<Coded> {
    let mut found: Vec<Coded> = Vec::new();
    for (weight, _, x) in segment.nodes.iter().filter_map(|&node| product(&program.nodes[node].op)) {
        let known = found.iter().any(|coded| coded.layers.contains(&weight));
        let Some(bits) = bits(weight).filter(|_| !known && !is_shared(x)) else { continue };
        match found.iter_mut().find(|coded| (coded.x, coded.bits) == (x, bits)) {
            Some(coded) => coded.layers.push(weight),
            None => {
                let curve = Tensor(first + found.len() as u32);
                found.push(Coded { x, bits, curve, layers: vec![weight] });
            }
        }
    }
    found
}

/// `segment` as a program of its own, which reads its inputs in their order, and in which `coded` values become codes.
fn alone(program: &Program, segment: &Segment, coded: &[Coded], ranges: &ActivationRanges) -> Program {
    let numbers: BTreeMap<Value, Value> = (segment.inputs.iter().copied())
        .chain(segment.nodes.iter().map(|&node| program.value_of(node)))
        .enumerate()
        .map(|(i, value)| (value, Value(i as u32)))
        .collect();
    let nodes = segment.nodes.iter().map(|&node| {
        let mut node = program.nodes[node].clone();
        node.op.renumber(|value| numbers[&value]);
        node
    });
    let input = Input { kind: InputKind::Sample, dims: Vec::new() };
    let mut alone = Program {
        role: program.role,
        inputs: vec![input; segment.inputs.len()],
        nodes: nodes.collect(),
        output: numbers[&segment.output],
        phases: Default::default(),
    };
    pass::assign(&mut alone, &Starts::default(), &|_, weight| {
        let codes = coded.iter().find(|coded| coded.layers.contains(&weight));
        Layer::of(weight, codes.map(|coded| (coded.bits, QuantizeRange::curve(coded.curve, ranges.axis))))
    });
    alone
}

/// Where samples lie in time.
struct Times {
    /// Where the intervals begin that there are samples of.
    positions: Vec<f32>,
    /// Of which of these each sample is.
    of_sample: Vec<usize>,
}

impl Times {
    fn new(ranges: &ActivationRanges, samples: &Samples) -> Self {
        let time = Intervals { count: ranges.intervals, axis: ranges.axis, calls: samples.calls };
        let of = |&(index, timestep): &(usize, f32)| time.of(index, timestep);
        let all: Vec<usize> = samples.times.iter().map(of).collect();
        let mut seen = all.clone();
        seen.sort_unstable();
        seen.dedup();
        let of_sample = all.iter().map(|interval| seen.partition_point(|other| other < interval)).collect();
        Times { positions: seen.into_iter().map(|interval| time.position(interval)).collect(), of_sample }
    }
}

/// The curves that values begin with, by the rule of `ranges` over `samples`, which run through the segment.
fn begin(
    program: &Program,
    segment: &Segment,
    coded: &[Coded],
    (ranges, times): (&ActivationRanges, &Times),
    (samples, weights): (&Samples, &BTreeMap<Tensor, Array>),
) -> Result<Vec<Steps>> {
    // By value and call: a moving range follows calls in their order.
    let mut seen: Vec<BTreeMap<usize, (usize, SeenRange)>> = vec![BTreeMap::new(); coded.len()];
    let inputs = segment.inputs.iter().map(|value| (*value, samples.values[value].clone())).collect();
    for which in chunks(samples.count) {
        let inputs = part(&inputs, &samples.shared, &which.clone().collect::<Vec<_>>());
        let find = |tensor: Tensor| -> &Array { &weights[&tensor] };
        let tape = Tape::run(program, &segment.nodes, samples.frames, &inputs, &find)?;
        for (coded, seen) in coded.iter().zip(&mut seen) {
            let x = tape.value(coded.x);
            let of_sample = x.values.chunks_exact(x.values.len() / x.dims[0]);
            for (sample, own) in which.clone().zip(of_sample.filter_map(SeenRange::of)) {
                let (interval, call) = (times.of_sample[sample], samples.times[sample].0);
                let all = seen.get(&call).map_or(own.clone(), |(_, before)| before.and(&own));
                seen.insert(call, (interval, all));
            }
        }
    }
    let steps = coded.iter().zip(seen).map(|(coded, seen)| {
        let moving = MovingRange::new(ranges.rule, coded.bits, ranges.symmetric, ranges.momentum);
        let mut intervals = vec![moving; times.positions.len()];
        seen.into_values().for_each(|(interval, own)| intervals[interval].see(&own));
        let points = intervals.iter().zip(&times.positions).filter_map(|(range, &position)| {
            let (scale, zero) = range.scale_and_zero()?;
            Some([position, scale, zero])
        });
        Steps::new(coded.curve, points.collect())
    });
    Ok(steps.collect())
}

/// The curves of layers' ranges, by weight: rows of position, scale and zero point.
pub(super) type Learned = BTreeMap<Tensor, Vec<[f32; 3]>>;

/// Learns the ranges of the `coded` values of a segment whose weights are `weights`, on `samples` of the float network.
///
/// # Errors
/// Those of [`Block::train_steps`].
pub(super) fn train(
    (program, segment): (&Program, &Segment),
    coded: &[Coded],
    (ranges, training): (&ActivationRanges, &StepTraining),
    (samples, target, weights): (&Samples, &Array, &BTreeMap<Tensor, Array>),
    batch: &mut dyn FnMut(usize) -> Vec<usize>,
    see: &mut dyn FnMut(f64) -> bool,
) -> Result<Option<(Learned, Curve)>> {
    let times = Times::new(ranges, samples);
    let mut steps = begin(program, segment, coded, (ranges, &times), (samples, weights))?;
    let alone = alone(program, segment, coded, ranges);
    let own = |value: &Value| Value(segment.inputs.iter().position(|input| input == value).expect("an input") as u32);
    let inputs = segment.inputs.iter().map(|value| (own(value), samples.values[value].clone())).collect();
    let shared = segment.inputs.iter().filter(|value| samples.shared.contains(value)).map(own).collect();
    let nodes: Vec<usize> = (0..alone.nodes.len()).collect();
    let find = |tensor: Tensor| &weights[&tensor];
    let (output, inputs, shared) = (alone.output, &inputs, &shared);
    let (program, nodes, frames) = (&alone, &nodes[..], samples.frames);
    let block = Block { program, nodes, frames, output, inputs, shared, target, weights: &find };
    let Some(curve) = block.train_steps(&mut steps, &times.of_sample, training, batch, see)? else { return Ok(None) };
    let mut learned = Learned::new();
    for (coded, steps) in coded.iter().zip(&steps) {
        learned.extend(coded.layers.iter().map(|&layer| (layer, steps.finish())));
    }
    Ok(Some((learned, curve)))
}
