//! What a network is given: calls of the float model, and the values in them that blocks begin with.

use super::segments::{Segment, is_source, readers};
use crate::calibrate::samples;
use crate::calibrate::states::{self, States};
use crate::error::Result;
use crate::reverse::{Array, Values};
use aquatint::Model;
use aquatint::error::Error;
use aquatint::pipeline::{ModelCall, Prompts, Request, Session};
use aquatint::raw::backend::cpu::Cpu;
use aquatint::raw::exec::Seen;
use aquatint::raw::mmap::FileBytes;
use aquatint::raw::program::shape::{self, TensorType, Type};
use aquatint::raw::program::{Dims, InputKind, Program, Role, Value};
use std::collections::{BTreeMap, BTreeSet};

/// Values of samples: of each value all samples, but for what they have in common.
#[derive(Clone, Debug, Default)]
pub struct Samples {
    /// How many there are.
    pub count: usize,
    /// The values.
    pub values: Values,
    /// Those that all samples have in common.
    pub shared: BTreeSet<Value>,
    /// Of which call each sample is: its number in the run, and the timestep that the network received.
    pub times: Vec<(usize, f32)>,
    /// Calls of the run.
    pub calls: usize,
    /// Frames of a sample.
    pub frames: usize,
}

/// The axes of values of one sample, and which of them all samples have in common.
pub struct Shapes {
    one: Vec<Type>,
    shared: BTreeSet<Value>,
}

impl Shapes {
    /// Those of `program`, whose tensors are of these types, for what `request` asks for, with prompts of `tokens`.
    ///
    /// # Errors
    /// If the program cannot take this size.
    pub fn new(types: &[TensorType], program: &Program, request: &Request, tokens: usize) -> Result<Self> {
        let of = |n| {
            let ([height, width], frames) = (request.latent_size, request.frames);
            shape::infer(program, types, &Dims { batch: n, conditions: n, height, width, tokens, frames })
        };
        let (one, two) = (of(1)?, of(2)?);
        let alike = (0..one.len()).filter(|&i| one[i].dims() == two[i].dims());
        Ok(Shapes { shared: alike.map(|i| Value(i as u32)).collect(), one })
    }

    /// The axes of `value`.
    pub fn dims(&self, value: Value) -> &[usize] {
        self.one[value.0 as usize].dims()
    }

    /// Whether all samples have `value` in common.
    pub fn is_shared(&self, value: Value) -> bool {
        self.shared.contains(&value)
    }

    /// Numbers of a sample of all values that are alive at once at most, while `segments` run one after the other.
    pub fn most_alive(&self, segments: &[Segment]) -> usize {
        let len = |value: &Value| self.one[value.0 as usize].len();
        let last = last_readers(segments);
        let mut alive: BTreeSet<Value> = segments.iter().flat_map(|s| &s.inputs).copied().collect();
        let made: BTreeSet<Value> = segments.iter().map(|segment| segment.output).collect();
        alive.retain(|value| !made.contains(value));
        let mut most = 0;
        for (i, segment) in segments.iter().enumerate() {
            alive.insert(segment.output);
            most = most.max(alive.iter().map(len).sum());
            alive.retain(|value| last.get(value).is_none_or(|&last| last > i));
        }
        most
    }
}

/// The last of `segments` that reads each value.
pub fn last_readers(segments: &[Segment]) -> BTreeMap<Value, usize> {
    let reads = segments.iter().enumerate().flat_map(|(i, segment)| segment.inputs.iter().map(move |&v| (v, i)));
    reads.collect()
}

/// Calls of the denoiser in runs of the float model.
pub struct Calls<'a> {
    /// The images, with features where there were texts.
    pub request: &'a Request,
    /// Samples of an image in a call.
    pub copies: usize,
    /// Their states.
    pub states: &'a States,
}

impl Calls<'_> {
    /// Runs images of `request` until the chosen calls of all of them are known; `see` is told the share that is done, and
    /// may end the work by saying false.
    ///
    /// # Errors
    /// Those of the runs; none if `see` ended them, with [`States::done`] less than all.
    pub fn run(
        session: &mut Session<'_, Cpu, FileBytes>,
        request: &Request,
        chosen: usize,
        see: &mut dyn FnMut(f64) -> bool,
    ) -> Result<States> {
        let chosen = states::choose(session.plans(request)?.steps(), chosen);
        let mut states = States { samples: vec![Vec::new(); chosen.len()], chosen, ..States::default() };
        let n = request.prompts.len();
        let images: Vec<usize> = (0..n).collect();
        states::follow(session, request, &images, &mut states, &mut |_, done, _| Ok(see(done / n as f64)))?;
        Ok(states)
    }

    /// Looks at the values that `segments` read and do not make, in the first `count` samples of all calls of the denoiser: image
    /// after image, of each its calls, of each call what the image shows and what guidance leads away from.
    ///
    /// # Errors
    /// Those of the calls; a value that no node reads first.
    pub fn look(
        &self,
        session: &mut Session<'_, Cpu, FileBytes>,
        program: &Program,
        segments: &[Segment],
        shapes: &Shapes,
        count: usize,
    ) -> Result<Samples> {
        let (places, counts) = (places(program, segments)?, counts(program, segments));
        let (calls, frames) = (self.states.calls.len(), self.request.frames);
        let mut samples = Samples { calls, frames, ..Samples::default() };
        for image in 0..self.request.prompts.len() {
            for (place, &index) in self.states.chosen.iter().enumerate() {
                let call = self.states.calls[index];
                let wanted = self.copies.min(count - samples.count);
                if call.role != Role::Denoiser || wanted == 0 {
                    continue;
                }
                let len = self.states.samples[place].len() / self.request.prompts.len();
                let sample = self.states.samples[place][image * len..(image + 1) * len].to_vec();
                let one = samples::with(self.request, self.request.prompts.of_images(&[image]));
                let call = ModelCall { role: call.role, index, moment: call.moment, images: 0..1, sample };
                session.observe(&one, &call, |seen| {
                    for (value, is_result) in places.get(&seen.node).into_iter().flatten() {
                        samples.push(*value, &look(&seen, *is_result)?, wanted, shapes);
                    }
                    Ok(())
                })?;
                for &(value, kind) in &counts {
                    samples.push(value, &self.counts(session.model(), kind, image)?, wanted, shapes);
                }
                samples.count += wanted;
                samples.times.extend(std::iter::repeat_n((index, call.moment.timestep), wanted));
            }
        }
        if samples.count == 0 {
            return Err(Error::request("--samples", "calls of the denoiser", "none").into());
        }
        Ok(samples)
    }

    /// How many tokens count of what an image shows, and of what guidance leads away from, as the input of `kind` tells.
    fn counts<D: AsRef<[u8]>>(&self, model: &Model<'_, D>, kind: InputKind, image: usize) -> Result<Vec<f32>> {
        let missing = || Error::request("prompts", "features of the text encoder that the denoiser reads", "none");
        let reads = model.conditioning(Role::Denoiser).ok_or_else(missing)?;
        let encoder = match kind {
            InputKind::Lengths2 => reads.context_2,
            _ => reads.context.first().copied(),
        };
        let (Some(encoder), Prompts::Embeddings(embeddings)) = (encoder, &self.request.prompts) else {
            return Err(missing().into());
        };
        let of = |prompt: &usize| embeddings.prompts[*prompt].encoders.get(encoder as usize).map(|e| e.length as f32);
        embeddings.of_image[image].iter().map(|prompt| of(prompt).ok_or_else(|| missing().into())).collect()
    }
}

/// `prompts` with as many tokens in all, behind which zeros are put that do not count, where `model` is told what counts: so samples
/// have the same axes.
pub fn filled<D>(prompts: Prompts, model: &Model<'_, D>) -> Prompts {
    let Prompts::Embeddings(mut embeddings) = prompts else { return prompts };
    if model.text.as_ref().is_some_and(|text| text.lengths) {
        let encoders = embeddings.prompts.first().map_or(0, |prompt| prompt.encoders.len());
        for index in 0..encoders {
            let most = embeddings.prompts.iter().map(|prompt| prompt.encoders[index].tokens).max().unwrap_or(0);
            for told in embeddings.prompts.iter_mut().map(|prompt| &mut prompt.encoders[index]) {
                told.features.resize(told.features.len() / told.tokens.max(1) * most, 0.0);
                told.tokens = most;
            }
        }
    }
    Prompts::Embeddings(embeddings)
}

/// The inputs that `segments` read which tell how many tokens of a prompt count.
fn counts(program: &Program, segments: &[Segment]) -> Vec<(Value, InputKind)> {
    let reads = |value: &Value| segments.iter().any(|segment| segment.inputs.contains(value));
    let all = program.inputs.iter().enumerate().map(|(i, input)| (Value(i as u32), input.kind));
    all.filter(|(value, kind)| is_count(*kind) && reads(value)).collect()
}

fn is_count(kind: InputKind) -> bool {
    matches!(kind, InputKind::Lengths | InputKind::Lengths2)
}

/// By node, the values to be looked at when it has run, and whether they are its result or what it reads first.
type Places = BTreeMap<usize, Vec<(Value, bool)>>;

fn places(program: &Program, segments: &[Segment]) -> Result<Places> {
    let made: BTreeSet<Value> = segments.iter().map(|segment| segment.output).collect();
    let read: BTreeSet<Value> = segments.iter().flat_map(|segment| &segment.inputs).copied().collect();
    let (readers, mut places) = (readers(program), Places::new());
    let count = |value: &Value| program.inputs.get(value.0 as usize).is_some_and(|input| is_count(input.kind));
    for &value in read.difference(&made).filter(|value| !count(value)) {
        let place = match program.node_of(value) {
            Some(node) if is_source(&program.nodes[node].op) => Some((node, true)),
            _ => {
                let first = |node: &&usize| program.nodes[**node].op.reads().next() == Some(value);
                readers.get(&value).and_then(|nodes| nodes.iter().find(first)).map(|&node| (node, false))
            }
        };
        let Some((node, is_result)) = place else {
            return Err(
                Error::request(format!("{value:?}"), "an input that a layer reads", "one that none does").into()
            );
        };
        places.entry(node).or_default().push((value, is_result));
    }
    Ok(places)
}

fn look(seen: &Seen<'_, '_, Cpu>, is_result: bool) -> aquatint::Result<Vec<f32>> {
    let of = if is_result { Some(seen.op.result()) } else { seen.op.operands().next() };
    of.map_or(Ok(Vec::new()), |of| seen.values(&of))
}

impl Samples {
    /// Adds what a call of one image showed: a part for each of its samples, or one for all.
    fn push(&mut self, value: Value, seen: &[f32], wanted: usize, shapes: &Shapes) {
        let dims = shapes.dims(value);
        if shapes.shared.contains(&value) {
            self.shared.insert(value);
            self.values.entry(value).or_insert_with(|| Array::new(dims, seen.to_vec()));
            return;
        }
        let len: usize = dims.iter().product();
        let empty = || Array { dims: [&[0], &dims[1..]].concat(), values: Vec::new() };
        let array = self.values.entry(value).or_insert_with(empty);
        for sample in 0..wanted {
            // A sample of the same condition as the one before has that one's row.
            let part = sample.min(seen.len() / len - 1);
            array.values.extend_from_slice(&seen[part * len..(part + 1) * len]);
        }
        array.dims[0] += wanted;
    }
}
