//! Block reconstruction through a whole network: two streams of values, side by side.

use super::activations;
use super::block::{self, Block};
use super::file::{ActivationRecord, Layer};
use super::known::Known;
use super::run::{Event, Work, stopped};
use super::samples::{Calls, Samples, Shapes, filled, last_readers};
use super::segments::{Segment, segments};
use super::trainee::Trainee;
use super::{Activations, Curve, Learned, Settings};
use crate::calibrate::{self, samples, states};
use crate::error::Result;
use crate::reverse::Array;
use aquatint::Model;
use aquatint::error::Error;
use aquatint::pipeline::{NoiseSource, Request, Session};
use aquatint::raw::backend::cpu::Cpu;
use aquatint::raw::format::Packed;
use aquatint::raw::mmap::FileBytes;
use aquatint::raw::program::{CurveAxis, Program, Tensor};
use std::collections::{BTreeMap, BTreeSet};

/// Trains all units; returns how many there are, and the samples that they were trained on.
///
/// # Errors
/// Those of the runs, and of ops without derivatives in what is trained.
pub(super) fn walk(
    work: &mut Work<'_>,
    packed: &Packed<FileBytes>,
    calibration: &calibrate::Settings,
) -> Result<(usize, usize)> {
    let layers: BTreeSet<Tensor> = work.coded.keys().copied().collect();
    let program = work.network.program.clone();
    let segments = segments(&program, &layers);
    let (mut float, shapes) = begin(work, packed, calibration, &segments)?;
    let mut quantized = float.clone();
    let last = last_readers(&segments);
    let (mut done, mut units) = (BTreeMap::new(), 0);
    let is_unit = |segment: &&Segment| !segment.layers.is_empty() && !shapes.is_shared(segment.output);
    let all = segments.iter().filter(is_unit).count();
    for (i, segment) in segments.iter().enumerate() {
        let mut weights = BTreeMap::new();
        for tensor in segment.nodes.iter().flat_map(|&node| program.nodes[node].op.tensors()) {
            weights.insert(tensor, work.network.array(tensor)?);
        }
        let run = |samples: &Samples, weights: &BTreeMap<Tensor, Array>| {
            let count = if shapes.is_shared(segment.output) { 1 } else { samples.count };
            let inputs = (&samples.values, &samples.shared);
            let nodes = (&segment.nodes[..], samples.frames);
            block::run(&program, nodes, segment.output, inputs, count, &|tensor| &weights[&tensor])
        };
        let target = run(&float, &weights)?;
        if is_unit(&segment) {
            if !(work.see)(Event::Unit(units, all, &segment.name)) {
                return Err(stopped().into());
            }
            let kept = work.partial.unit(units)?;
            let layers = match kept {
                Some((_, layers)) => layers,
                None => {
                    let (float, quantized, target, weights) = (&float, &quantized, &target, weights.clone());
                    let (number, program, shapes) = (units, &program, &shapes);
                    let own = Training { number, segment, program, shapes, weights, float, quantized, target };
                    unit(work, own, &done)?
                }
            };
            let own: Vec<Tensor> = segment.layers.iter().copied().filter(|t| !done.contains_key(t)).collect();
            done.extend(own.into_iter().zip(layers));
            units += 1;
        }
        for (&tensor, layer) in &done {
            replace(work, &mut weights, tensor, layer);
        }
        let result = run(&quantized, &weights)?;
        for (samples, value) in [(&mut float, target), (&mut quantized, result)] {
            samples.values.insert(segment.output, value);
            if shapes.is_shared(segment.output) {
                samples.shared.insert(segment.output);
            }
            samples.values.retain(|value, _| last.get(value).is_some_and(|&last| last > i));
        }
        // Codes are in files; what is kept of them in memory is what another segment uses again.
        let later: BTreeSet<Tensor> = segments[i + 1..].iter().flat_map(|s| &s.layers).copied().collect();
        done.retain(|tensor, _| later.contains(tensor));
    }
    Ok((units, float.count))
}

/// The samples that the walk begins with.
fn begin(
    work: &mut Work<'_>,
    packed: &Packed<FileBytes>,
    calibration: &calibrate::Settings,
    segments: &[Segment],
) -> Result<(Samples, Shapes)> {
    let settings = work.settings;
    let model = Model::new(packed)?;
    let run = &work.calibration.record().run;
    let copies = if run.guidance_scale > 1.0 { 2 } else { 1 };
    let calls = run.chosen.len();
    let of_image = (calls * copies).max(1);
    let of_run = calibrate::Settings {
        images: settings.samples.div_ceil(of_image),
        seed: run.seed,
        noise: match run.noise.as_str() {
            "torch" => NoiseSource::Torch,
            "torch-each" => NoiseSource::TorchEach,
            _ => NoiseSource::Fast,
        },
        ..calibration.clone()
    };
    let mut request = samples::request(&of_run, &model)?;
    // Images as the calibration had them.
    (request.steps, request.guidance_scale, request.sampler) = (run.steps, run.guidance_scale, run.sampler.clone());
    let cpu = Cpu::best().node_by_node();
    let mut session = Session::new(&model, &cpu);
    let (prompts, _) = states::encoded(&mut session, &request)?;
    let request = samples::with(&request, filled(prompts, &model));
    let tokens = tokens(&request)?;
    let shapes = Shapes::new(&work.network.types(), &work.network.program, &request, tokens)?;
    let count = fitting(settings, shapes.most_alive(segments), &mut work.see)?;
    let see = &mut work.see;
    let states = Calls::run(&mut session, &request, calls, &mut |share| see(Event::Runs(share)))?;
    if states.done < request.prompts.len() {
        return Err(stopped().into());
    }
    let calls = Calls { request: &request, copies, states: &states };
    let samples = calls.look(&mut session, &work.network.program, segments, &shapes, count)?;
    Ok((samples, shapes))
}

/// The number of samples that there is memory for.
fn fitting(settings: &Settings, numbers: usize, see: &mut dyn FnMut(Event<'_>) -> bool) -> Result<usize> {
    // Of both streams, and the target.
    let bytes = 3 * size_of::<f32>() * numbers;
    let most = settings.memory / bytes.max(1);
    if most == 0 {
        return Err(
            Error::request("--memory", format!("at least {bytes} bytes, for one sample"), settings.memory).into()
        );
    }
    if most < settings.samples {
        see(Event::Note(format!("{most} samples instead of {}: there is no memory for more", settings.samples)));
    }
    Ok(most.min(settings.samples))
}

/// The tokens of all prompts.
fn tokens(request: &Request) -> Result<usize> {
    let tokens = request.prompts.tokens(0);
    match (0..request.prompts.len()).map(|i| request.prompts.tokens(i)).find(|&other| other != tokens) {
        Some(other) => Err(Error::request("prompts", format!("as many tokens in all, such as {tokens}"), other).into()),
        None => Ok(tokens),
    }
}

/// A segment that is trained, and what it is given.
struct Training<'a> {
    number: usize,
    segment: &'a Segment,
    program: &'a Program,
    shapes: &'a Shapes,
    /// The float weights of its nodes, those of layers that are done as they have become.
    weights: BTreeMap<Tensor, Array>,
    float: &'a Samples,
    quantized: &'a Samples,
    /// What the float network makes of its samples.
    target: &'a Array,
}

/// Trains the layers of a segment that are not `done`, and keeps them.
fn unit(work: &mut Work<'_>, mut unit: Training<'_>, done: &BTreeMap<Tensor, Layer>) -> Result<Vec<Layer>> {
    for (&tensor, layer) in done {
        replace(work, &mut unit.weights, tensor, layer);
    }
    let tensors: Vec<Tensor> = unit.segment.layers.iter().copied().filter(|t| !done.contains_key(t)).collect();
    let (mut layers, curve) = train_weights(work, &mut unit, &tensors)?;
    let activations = train_steps(work, &unit, &tensors, &mut layers)?;
    let record = work.partial.keep(unit.number, &unit.segment.name, (curve, activations), &layers)?;
    (work.see)(Event::Done(&record));
    Ok(layers)
}

/// Trains weights of a segment, which become in `unit` what they are then.
fn train_weights(work: &mut Work<'_>, unit: &mut Training<'_>, tensors: &[Tensor]) -> Result<(Vec<Layer>, Curve)> {
    let settings = work.settings;
    let nothing = settings.learned == Learned::Nothing;
    let (mut trainees, mut known) = (BTreeMap::new(), Vec::<(Tensor, Known, Option<Vec<f32>>)>::new());
    let mut layers = Vec::new();
    for &tensor in tensors {
        let own = work.known(tensor)?;
        if nothing {
            let (matrix, gain) = work.chosen(tensor, &own);
            layers.push(work.finished(tensor, &own, matrix, gain));
        } else {
            let (trainee, gain) = work.trainee(tensor, &own)?;
            trainees.insert(tensor, trainee);
            known.push((tensor, own, gain));
        }
    }
    for (&tensor, layer) in tensors.iter().zip(&layers) {
        replace(work, &mut unit.weights, tensor, layer);
    }
    let find = |tensor: Tensor| &unit.weights[&tensor];
    let block = Block {
        program: unit.program,
        nodes: &unit.segment.nodes,
        frames: unit.quantized.frames,
        output: unit.segment.output,
        inputs: &unit.quantized.values,
        shared: &unit.quantized.shared,
        target: unit.target,
        weights: &find,
    };
    let iterations = if nothing { 0 } else { settings.training.iterations };
    let training = super::Training { iterations, ..settings.training };
    let (see, mut count) = (&mut work.see, 0);
    let mut tell = |_| {
        count += 1;
        see(Event::Iteration(count, iterations))
    };
    let mut next = |iteration: usize| batch((unit.number, iteration), unit.quantized.count, settings.batch);
    let curve: Option<Curve> = block.train(&mut trainees, &training, &mut next, &mut tell)?;
    let mut curve = curve.ok_or_else(stopped)?;
    curve.check(&unit.segment.name)?;
    if curve.is_worse() {
        trainees.values_mut().for_each(Trainee::reset);
        curve.end = curve.begin;
    }
    for (tensor, known, gain) in &known {
        let (matrix, learned) = trainees[tensor].finish();
        let bias = learned.map(|learned| {
            let before = gain.clone().unwrap_or_else(|| vec![0.0; learned.len()]);
            learned.iter().zip(before).map(|(gain, before)| gain + before).collect()
        });
        let layer = work.finished(*tensor, known, matrix, bias);
        replace(work, &mut unit.weights, *tensor, &layer);
        layers.push(layer);
    }
    Ok((layers, curve))
}

/// Trains steps of the activations of a segment, if any are to be, on the float network's samples; puts them to `layers`, those of
/// `tensors`.
fn train_steps(
    work: &mut Work<'_>,
    unit: &Training<'_>,
    tensors: &[Tensor],
    layers: &mut [Layer],
) -> Result<Option<Curve>> {
    let settings = work.settings;
    let (Some(ranges), Some(Activations { training, .. })) = (&work.ranges, &settings.activations) else {
        return Ok(None);
    };
    // Of every layer that the segment has, float ones among them.
    let of_layer = |tensor: Tensor| {
        let own = tensors.contains(&tensor).then(|| work.coded.get(&tensor)).flatten();
        own.and_then(|coded| coded.activation_bits)
    };
    let first = Tensor(work.network.types().len() as u32);
    let shared = |value| unit.shapes.is_shared(value);
    let coded = activations::coded(unit.program, unit.segment, &of_layer, &shared, first);
    if coded.is_empty() {
        return Ok(None);
    }
    let (see, mut count) = (&mut work.see, 0);
    let mut tell = |_| {
        count += 1;
        see(Event::Iteration(count, training.iterations))
    };
    let mut next = |iteration: usize| batch((unit.number, iteration), unit.float.count, settings.batch);
    let samples = (unit.float, unit.target, &unit.weights);
    let network = (unit.program, unit.segment);
    let trained = activations::train(network, &coded, (ranges, training), samples, &mut next, &mut tell)?;
    let (learned, curve) = trained.ok_or_else(stopped)?;
    curve.check(&unit.segment.name)?;
    for (&tensor, layer) in tensors.iter().zip(layers) {
        let (Some(points), Some(bits)) = (learned.get(&tensor), work.coded[&tensor].activation_bits) else { continue };
        let timesteps = ranges.axis == CurveAxis::Timestep;
        layer.record.activations = Some(ActivationRecord { bits, points: points.len(), timesteps });
        layer.activations = Some(points.clone());
    }
    Ok(Some(curve))
}

/// Puts a layer as it has become in place of the float one, where that is.
fn replace(work: &Work<'_>, weights: &mut BTreeMap<Tensor, Array>, tensor: Tensor, layer: &Layer) {
    if let Some(weight) = weights.get_mut(&tensor) {
        weight.values = block::dense(&layer.matrix);
    }
    if let (Some(bias), Some(gain)) = (work.network.bias_of(tensor), &layer.bias)
        && let Some(bias) = weights.get_mut(&bias)
    {
        bias.values.iter_mut().zip(gain).for_each(|(bias, gain)| *bias += gain);
    }
}

/// `most` of `count` samples, without repetition: the first ones of a shuffle that unit and iteration seed.
fn batch((unit, iteration): (usize, usize), count: usize, most: usize) -> Vec<usize> {
    let mut state = ((unit as u64) << 32 | iteration as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut random = |below: usize| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((u128::from(z ^ (z >> 31)) * below as u128) >> 64) as usize
    };
    let mut all: Vec<usize> = (0..count).collect();
    for i in 0..most.min(count) {
        all.swap(i, i + random(count - i));
    }
    all.truncate(most);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_are_samples_without_repetition_that_all_come_up() {
        let mut seen = BTreeSet::new();
        for iteration in 1..40 {
            let batch = batch((3, iteration), 50, 8);
            assert_eq!(batch.iter().collect::<BTreeSet<_>>().len(), 8);
            seen.extend(batch);
        }
        assert_eq!(seen, (0..50).collect());
        assert_eq!(batch((0, 1), 3, 8).iter().collect::<BTreeSet<_>>().len(), 3);
        assert_ne!(batch((0, 1), 50, 8), batch((1, 1), 50, 8));
        assert_eq!(batch((2, 5), 50, 8), batch((2, 5), 50, 8));
    }
}
