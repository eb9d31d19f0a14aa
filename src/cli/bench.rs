//! `aquatint bench`: where the time goes.

mod times;

use super::device::{Choice, with_backend, with_threads};
use super::{Device, model, say, say_json};
use aquatint::model::{Model, TextModel};
use aquatint::options::MAX_IMAGES;
use aquatint::pipeline::{Event, Plans, Prompts, Request, Session, TABLE_BYTES};
use aquatint::raw::backend::Backend;
use aquatint::raw::backend::args::{Conv2dArgs, Input, LinearArgs, OpArgs};
use aquatint::raw::backend::cuda::device::{self, WeightPath};
use aquatint::raw::backend::cuda::driver::Driver;
use aquatint::raw::exec::{Executor, Moment, PromptInputs};
use aquatint::raw::plan::Binding;
use aquatint::raw::program::{CurveAxis, Dims, InputKind, Phases, Program, Role};
use aquatint::{Error, Result};
use clap::Args;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;
use times::{PhaseTimes, Times, Work, slowest_first};

/// Time loading, steps and decoding, op by op.
#[derive(Args)]
#[command(allow_negative_numbers = true)]
pub struct Bench {
    /// A packed model [default: the embedded one]
    model: Option<PathBuf>,
    /// Samples per denoiser call; a guided image is two
    #[arg(short, long, default_value_t = 2, value_name = "N")]
    batch_size: usize,
    /// Calls to time
    #[arg(long, default_value_t = 5, value_name = "N")]
    repeat: usize,
    /// Leave the decoder out
    #[arg(long)]
    no_decode: bool,
    /// Print as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: Device,
}

/// Calls that are queued on a device before one whose ops are timed.
const AHEAD: usize = 3;

/// Timesteps that models are trained on.
const LAST_TIMESTEP: f32 = 1000.0;

impl Bench {
    /// Runs the command.
    pub fn run(&self) -> Result<()> {
        for (name, n) in [("--batch-size", self.batch_size), ("--repeat", self.repeat)] {
            if !(1..=MAX_IMAGES).contains(&n) {
                return Err(Error::request(name, format!("1 to {MAX_IMAGES}"), n));
            }
        }
        let choice = self.device.choice()?;
        let begin = Instant::now();
        let packed = model::open(self.model.as_deref())?;
        let model = Model::new(&packed)?;
        let open = begin.elapsed().as_secs_f64();
        let uploads = match choice {
            Choice::Cpu(_) => Vec::new(),
            Choice::Cuda(index) => uploads(index, packed.data())?,
        };
        let uploads = &uploads;
        self.device
            .install(|| with_backend!(choice, packed, backend => self.measure(&backend, &model, open, uploads)))?
    }

    fn measure<B: Backend>(
        &self,
        backend: &B,
        model: &Model<'_, model::Bytes>,
        open: f64,
        uploads: &[(WeightPath, f64)],
    ) -> Result<()> {
        let name = with_threads(backend);
        // A device is kept busy while an op is timed; the processor has nothing queued.
        let ahead = if uploads.is_empty() { 0 } else { AHEAD };
        let ceilings = backend.ceilings()?;
        let denoiser = self.time(backend, model, Role::Denoiser, self.batch_size, ahead)?;
        let step = self.step(backend, model)?;
        let undecoded = self.no_decode || !model.decoder;
        let decoder = if undecoded { None } else { Some(self.time(backend, model, Role::VaeDecoder, 1, ahead)?) };
        if self.json {
            say_json(&json!({
                "device": name, "open_seconds": open, "batch": self.batch_size,
                "step_seconds": step,
                "uploads": uploads.iter().map(|(path, rate)| (format!("{path:?}"), json!(rate))).collect::<serde_json::Map<_, _>>(),
                "denoiser": denoiser.json(), "decoder": decoder.as_ref().map(Times::json),
                "ceilings": ceilings.map(|c| json!({ "int8": c.int8, "f16": c.f16, "bandwidth": c.bandwidth })),
            }));
            return Ok(());
        }
        say(format_args!("{name}; open {:.2} ms", open * 1e3));
        if let Some(c) = ceilings {
            let (int8, f16, copied) = (c.int8 / 1e12, c.f16 / 1e12, c.bandwidth / 1e9);
            say(format_args!("measured ceilings: int8 {int8:.0} TOP/s, f16 {f16:.0} TOP/s, copy {copied:.0} GB/s"));
        }
        for (path, rate) in uploads {
            say(format_args!("weights to the device, {path:?}: {:.2} GB/s", rate / 1e9));
        }
        say(format_args!(
            "step of {} image{}, guidance and sampler included: median {:.2} ms",
            self.images(),
            if self.images() == 1 { "" } else { "s" },
            step * 1e3
        ));
        let axis = model.packed().program(Role::Denoiser)?.phases.axis.name();
        denoiser.print(&format!("denoiser call, batch {}", self.batch_size), axis, ahead > 0);
        if let Some(decoder) = &decoder {
            decoder.print("decoder call, batch 1", axis, ahead > 0);
        }
        Ok(())
    }

    /// Images of a guided step of `batch_size` samples.
    fn images(&self) -> usize {
        self.batch_size.div_ceil(2)
    }

    /// Seconds of a step as a run makes it: input, denoiser, guidance, sampler.
    fn step<B: Backend>(&self, backend: &B, model: &Model<'_, model::Bytes>) -> Result<f64> {
        let mut request = Request::new(model, Prompts::blank(model, self.images()));
        (request.steps, request.batch_size) = (self.repeat + 2, self.images());
        let mut ends = Vec::new();
        Session::new(model, backend).job(request)?.denoise(|_, event| {
            if let Event::Step { .. } = event {
                ends.push(Instant::now());
            }
        })?;
        // The first step fills tables, and the device lags a step behind what the host is told: neither counts.
        let mut steps: Vec<f64> = ends.windows(2).skip(1).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect();
        steps.sort_by(f64::total_cmp);
        Ok(steps.get(steps.len() / 2).copied().unwrap_or(f64::NAN))
    }

    fn time<B: Backend>(
        &self,
        backend: &B,
        model: &Model<'_, model::Bytes>,
        role: Role,
        batch: usize,
        ahead: usize,
    ) -> Result<Times> {
        let [height, width] = model.latents.size;
        let frames = if role == Role::Denoiser { model.latents.frames } else { 1 };
        let conditions = if model.conditional() { batch.min(2) } else { 1 };
        let tokens = model.text.as_ref().map_or(1, TextModel::tokens);
        let dims = Dims { batch, conditions, height, width, tokens, frames };
        let shape = Binding { dims, calls: self.repeat + 1, table_bytes: TABLE_BYTES, reserve: 0 };
        let begin = Instant::now();
        let mut executor = Executor::new(backend, model.packed(), role, shape)?;
        let bind = begin.elapsed().as_secs_f64();
        let mut rng = aquatint::raw::rng::FastRng::new(1);
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
        // All tokens count.
        let lengths = random(InputKind::Lengths).map(|lengths| vec![tokens as u32; lengths.len()]);
        let second = program.inputs.iter().find(|input| input.kind == InputKind::Context2).map(|input| input.dims[1]);
        let tokens_2 = second.map_or(0, |dim| dims.resolve(dim) as u32);
        let lengths_2 = random(InputKind::Lengths2).map(|lengths| vec![tokens_2; lengths.len()]);
        let labels = model.classes.map_or([0; 2], |classes| [classes.count as u32 / 2, classes.null]);
        let labels = &labels[..conditions];
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
        let shares = self.shares(backend, model, &executor.program().phases, role)?;
        let phases = shares.into_iter().enumerate().map(|(i, share)| self.time_phase(&mut executor, (i, share), ahead));
        Ok(Times { bind, phases: phases.collect::<Result<_>>()? })
    }

    /// The share of the calls of a run, by the model's own sampler, that each phase of the program of `role` holds.
    fn shares<B: Backend>(
        &self,
        backend: &B,
        model: &Model<'_, model::Bytes>,
        phases: &Phases,
        role: Role,
    ) -> Result<Vec<f64>> {
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

    /// Times calls in phase `phase`, which holds `share` of a run's.
    fn time_phase<B: Backend>(
        &self,
        executor: &mut Executor<'_, B>,
        (phase, share): (usize, f64),
        ahead: usize,
    ) -> Result<PhaseTimes> {
        let Phases { axis, starts, .. } = &executor.program().phases;
        let from = starts.get(phase).copied().unwrap_or(0.0);
        let to = starts.get(phase + 1).copied().unwrap_or(LAST_TIMESTEP.max(from + 1.0));
        let calls = self.repeat + 1;
        let moment = |i: usize| match (starts.len(), axis) {
            (0 | 1, _) => Moment { timestep: (999 - i * 7 % 900) as f32, fraction: i as f32 / calls as f32 },
            (_, CurveAxis::StepFraction) => Moment { timestep: (999 - i * 7 % 900) as f32, fraction: from },
            (_, CurveAxis::Timestep) => {
                let timestep = from + (to - from) * (1 + i * 7 % 900) as f32 / 1000.0;
                Moment { timestep, fraction: i as f32 / calls as f32 }
            }
        };
        let moments: Vec<Moment> = (0..calls).map(moment).collect();
        executor.set_moments(moments.into_iter())?;
        let begin = Instant::now();
        executor.call(0)?;
        executor.parts().0.wait()?;
        let first = begin.elapsed().as_secs_f64();
        let mut out = vec![0.0; executor.plan().output.rows * executor.plan().output.cols];
        executor.read_output(&mut out)?;
        if !out.iter().all(|v| v.is_finite()) {
            return Err(Error::request("model", "finite results", "NaN or infinity; nothing was timed"));
        }
        let mut calls = Vec::with_capacity(self.repeat);
        for i in 1..=self.repeat {
            let begin = Instant::now();
            executor.call(i)?;
            executor.parts().0.wait()?;
            calls.push(begin.elapsed().as_secs_f64());
        }
        calls.sort_by(f64::total_cmp);
        let program = executor.program();
        let mut by_op: BTreeMap<String, Work> = BTreeMap::new();
        let mark = executor.time(self.repeat, ahead, Instant::now, |timed| {
            let work = by_op.entry(kind(program, timed.node, timed.op)).or_default();
            work.seconds += timed.seconds;
            work.operations += timed.op.operations();
            work.bytes += timed.op.bytes();
        })?;
        Ok(PhaseTimes { from, share, first, calls, ops: slowest_first(by_op.into_iter()), mark })
    }
}

/// Bytes per second at which a device takes `data` from the mapped file, by each path.
fn uploads(index: usize, data: &[u8]) -> Result<Vec<(WeightPath, f64)>> {
    let device = device::Device::open(index)?;
    let at = device.alloc(data.len().max(1))?;
    // Once untimed, for the file to be in memory.
    device.upload_weights(at, data)?;
    device.wait()?;
    let mut rates = Vec::new();
    for &path in device.weight_paths() {
        device.set_weight_path(path)?;
        let begin = Instant::now();
        device.upload_weights(at, data)?;
        device.wait()?;
        rates.push((path, data.len() as f64 / begin.elapsed().as_secs_f64()));
    }
    device.free(at);
    Ok(rates)
}

/// The op of a node, what a product multiplies, and whether a norm quantizes.
fn kind<T>(program: &Program, node: usize, op: &OpArgs<T>) -> String {
    let name = program.nodes[node].op.name();
    match op {
        OpArgs::Linear { args: LinearArgs { x: Input::Codes(_), .. }, .. }
        | OpArgs::Conv2d { args: Conv2dArgs { x: Input::Codes(_), .. }, .. } => format!("{name} (codes)"),
        OpArgs::LayerNorm { .. } | OpArgs::GroupNorm { .. } if matches!(op.result(), Input::Codes(_)) => {
            format!("{name} + quantize")
        }
        _ => name.into(),
    }
}
