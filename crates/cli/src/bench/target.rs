//! A program that is bound and has random inputs, ready to be timed.

use super::super::model;
use super::times::Work;
use aquatint::model::{Model, TextModel};
use aquatint::pipeline::{Plans, Prompts, Request, TABLE_BYTES};
use aquatint::raw::backend::Backend;
use aquatint::raw::backend::args::{Conv2dArgs, Input, LinearArgs, OpArgs};
use aquatint::raw::exec::{Executor, Moment, PromptInputs};
use aquatint::raw::plan::{Binding, Plan};
use aquatint::raw::program::{CurveAxis, Dims, InputKind, Phases, Program, Role};
use aquatint::raw::rng::FastRng;
use aquatint::{Error, Result};
use std::collections::BTreeMap;
use std::time::Instant;

/// Timesteps that models are trained on.
const LAST_TIMESTEP: f32 = 1000.0;

/// A bound program, called as one run would call it.
pub(super) struct Target<'m, B: Backend> {
    executor: Executor<'m, B>,
    upload: f64,
    bind: f64,
    shares: Vec<f64>,
}

impl<'m, B: Backend> Target<'m, B> {
    /// Binds the program of a role for `calls` calls of a batch of latents of so many rows and columns in each of its phases.
    ///
    /// # Errors
    /// What binding refuses.
    pub(super) fn new(
        backend: &'m B,
        model: &'m Model<'_, model::Bytes>,
        (role, batch, size): (Role, usize, [usize; 2]),
        calls: usize,
    ) -> Result<Self> {
        let dims = dims(model, role, batch, size);
        let phases = model.packed().program(role)?.phases.count();
        let shape = Binding { dims, calls: calls * phases, table_bytes: TABLE_BYTES, reserve: 0 };
        let plan = Plan::of_role(backend, model.packed(), role, &shape)?;
        let begin = Instant::now();
        let weights = plan.ready(backend, model.packed())?;
        backend.wait()?;
        let upload = begin.elapsed().as_secs_f64();
        let begin = Instant::now();
        let mut executor = Executor::bind(backend, model.packed(), plan, &weights)?;
        let bind = begin.elapsed().as_secs_f64();
        fill(&mut executor, model, dims)?;
        let phases = &executor.program().phases;
        let of_calls = (0..calls).flat_map(|i| (0..phases.count()).map(move |phase| (i, phase)));
        let moments: Vec<Moment> = of_calls.map(|(i, phase)| moment(phases, phase, i, calls)).collect();
        let shares = shares(backend, model, phases, role)?;
        executor.set_moments(moments.into_iter())?;
        Ok(Self { executor, upload, bind, shares })
    }

    /// Seconds that the weights took to get to where ops read them.
    pub(super) fn upload(&self) -> f64 {
        self.upload
    }

    /// Seconds that binding took.
    pub(super) fn bind(&self) -> f64 {
        self.bind
    }

    /// The share of a run's calls that each phase holds.
    pub(super) fn shares(&self) -> &[f64] {
        &self.shares
    }

    /// Where phase `phase` begins, on the axis of the program's phases.
    pub(super) fn from(&self, phase: usize) -> f32 {
        self.executor.program().phases.starts.get(phase).copied().unwrap_or(0.0)
    }

    /// Seconds of the first call in `phase`, which fills tables and touches weights, and whose result is looked at.
    ///
    /// # Errors
    /// [`Error::Request`] if the result is not finite, [`Error::Device`] if the device fails.
    pub(super) fn first(&mut self, phase: usize) -> Result<f64> {
        let seconds = self.call(0, phase)?;
        let mut out = vec![0.0; self.executor.plan().output.rows * self.executor.plan().output.cols];
        self.executor.read_output(&mut out)?;
        if !out.iter().all(|v| v.is_finite()) {
            return Err(Error::request("model", "finite results", "NaN or infinity; nothing was timed"));
        }
        Ok(seconds)
    }

    /// Seconds of call `i` in `phase`.
    ///
    /// # Errors
    /// [`Error::Device`] if the device fails.
    pub(super) fn call(&mut self, i: usize, phase: usize) -> Result<f64> {
        let begin = Instant::now();
        self.executor.call(i * self.shares.len() + phase)?;
        self.executor.parts().0.wait()?;
        Ok(begin.elapsed().as_secs_f64())
    }

    /// What each kind of op takes in call `i` of `phase`, and what of every op's time is the mark's. On a device, `ahead` calls are
    /// queued before.
    ///
    /// # Errors
    /// [`Error::Device`] if the device fails.
    pub(super) fn ops(&mut self, i: usize, phase: usize, ahead: usize) -> Result<(BTreeMap<String, Work>, f64)> {
        let program = self.executor.program();
        let mut by_op: BTreeMap<String, Work> = BTreeMap::new();
        let mark = self.executor.time(i * self.shares.len() + phase, ahead, Instant::now, |timed| {
            let work = by_op.entry(kind(program, timed.node, timed.op)).or_default();
            work.seconds += timed.seconds;
            work.operations += timed.op.operations();
            work.bytes += timed.op.bytes();
        })?;
        Ok((by_op, mark))
    }
}

/// Dimensions of `batch` samples; texts as long as the model reads.
fn dims(model: &Model<'_, model::Bytes>, role: Role, batch: usize, [height, width]: [usize; 2]) -> Dims {
    if let Some(encoder) = model.text.iter().flat_map(|text| &text.encoders).find(|encoder| encoder.role == role) {
        return Dims { batch, tokens: encoder.tokens, ..Dims::ONE };
    }
    let frames = if role == Role::Denoiser { model.latents.frames } else { 1 };
    let conditions = if model.conditional() { batch.min(2) } else { 1 };
    let tokens = model.text.as_ref().map_or(1, TextModel::tokens);
    Dims { batch, conditions, height, width, tokens, frames }
}

/// Random values for every input that the program has; all tokens count.
fn fill<B: Backend>(executor: &mut Executor<'_, B>, model: &Model<'_, model::Bytes>, dims: Dims) -> Result<()> {
    let mut rng = FastRng::new(1);
    let program = executor.program();
    let mut random = |kind: InputKind| {
        let input = program.inputs.iter().find(|input| input.kind == kind)?;
        let mut values = vec![0.0; input.dims.iter().map(|&d| dims.resolve(d)).product()];
        rng.randn(&mut values);
        Some(values)
    };
    let sample = random(InputKind::Sample);
    let kinds = [InputKind::Context, InputKind::Context2, InputKind::Pooled, InputKind::Sizes];
    let [context, context_2, pooled, sizes] = kinds.map(&mut random);
    let lengths = random(InputKind::Lengths).map(|lengths| vec![dims.tokens as u32; lengths.len()]);
    let second = program.inputs.iter().find(|input| input.kind == InputKind::Context2).map(|input| input.dims[1]);
    let tokens_2 = second.map_or(0, |dim| dims.resolve(dim) as u32);
    let lengths_2 = random(InputKind::Lengths2).map(|lengths| vec![tokens_2; lengths.len()]);
    let labels = model.classes.map_or([0; 2], |classes| [classes.count as u32 / 2, classes.null]);
    let labels = &labels[..dims.conditions];
    executor.set_prompt(&PromptInputs {
        class_labels: program.input(InputKind::ClassLabels).map(|_| labels),
        context: context.as_deref(),
        pooled: pooled.as_deref(),
        sizes: sizes.as_deref(),
        lengths: lengths.as_deref(),
        context_2: context_2.as_deref(),
        lengths_2: lengths_2.as_deref(),
    })?;
    if let Some(tokens) = random(InputKind::Tokens) {
        executor.set_tokens(&vec![0; tokens.len()])?;
    }
    if let Some(sample) = sample {
        executor.write_sample(&sample)?;
    }
    Ok(())
}

/// When call `i` of `calls` in `phase` is.
fn moment(phases: &Phases, phase: usize, i: usize, calls: usize) -> Moment {
    let Phases { axis, starts, .. } = phases;
    let from = starts.get(phase).copied().unwrap_or(0.0);
    let to = starts.get(phase + 1).copied().unwrap_or(LAST_TIMESTEP.max(from + 1.0));
    match (starts.len(), axis) {
        (0 | 1, _) => Moment { timestep: (999 - i * 7 % 900) as f32, fraction: i as f32 / calls as f32 },
        (_, CurveAxis::StepFraction) => Moment { timestep: (999 - i * 7 % 900) as f32, fraction: from },
        (_, CurveAxis::Timestep) => {
            let timestep = from + (to - from) * (1 + i * 7 % 900) as f32 / 1000.0;
            Moment { timestep, fraction: i as f32 / calls as f32 }
        }
    }
}

/// The share of the calls of a run, by the model's own sampler, that each phase of the program of `role` holds.
fn shares<B: Backend>(backend: &B, model: &Model<'_, model::Bytes>, phases: &Phases, role: Role) -> Result<Vec<f64>> {
    let mut shares = vec![0.0; phases.count()];
    if shares.len() == 1 {
        return Ok(vec![1.0]);
    }
    let plans = Plans::new(backend, model, &Request::new(model, Prompts::blank(model, 1)))?;
    let own: Vec<usize> =
        plans.calls().filter(|call| call.0 == role).map(|(_, moment)| phases.at(moment.on(phases.axis))).collect();
    own.iter().for_each(|&phase| shares[phase] += 1.0 / own.len() as f64);
    Ok(shares)
}

/// The op of a node, what a product multiplies, and whether it quantizes its result.
fn kind<T>(program: &Program, node: usize, op: &OpArgs<T>) -> String {
    let name = program.nodes[node].op.name();
    let of_codes = match op {
        OpArgs::Linear { args: LinearArgs { x: Input::Codes(_), .. }, .. }
        | OpArgs::Conv2d { args: Conv2dArgs { x: Input::Codes(_), .. }, .. } => " (codes)",
        _ => "",
    };
    let makes_codes = !matches!(op, OpArgs::Quantize { .. }) && matches!(op.result(), Input::Codes(_));
    format!("{name}{of_codes}{}", if makes_codes { " + quantize" } else { "" })
}
