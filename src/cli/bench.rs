//! `aquatint bench`: where the time goes.

use super::device::{Choice, with_backend, with_threads};
use super::{Device, model, say, say_json};
use aquatint::model::Model;
use aquatint::options::MAX_IMAGES;
use aquatint::pipeline::{Event, Prompts, Request, Session, TABLE_BYTES};
use aquatint::raw::backend::Backend;
use aquatint::raw::backend::args::{Conv2dArgs, Input, LinearArgs, OpArgs};
use aquatint::raw::backend::cuda::device::{self, WeightPath};
use aquatint::raw::backend::cuda::driver::Driver;
use aquatint::raw::exec::{Executor, PromptInputs};
use aquatint::raw::plan::Binding;
use aquatint::raw::program::{Dims, InputKind, Program, Role};
use aquatint::{Error, Result};
use clap::Args;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

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

/// Times of one program.
struct Times {
    bind: f64,
    /// The first call, which touches the weights and fills tables.
    first: f64,
    /// The other calls, fastest first.
    calls: Vec<f64>,
    /// What each kind of op took in one more call, slowest first.
    ops: Vec<(String, Work)>,
    /// What every op's time holds beside the op: the time between two marks.
    mark: f64,
}

/// What ops of a kind did together in one call.
#[derive(Clone, Copy, Default)]
struct Work {
    seconds: f64,
    /// Arithmetic operations of matrix products.
    operations: f64,
    /// Bytes of operands and results, weights not counted.
    bytes: f64,
}

impl Work {
    /// How fast that was, in the unit that bounds it.
    fn rate(&self) -> String {
        match self.operations {
            0.0 => format!("{:8.1} GB/s", self.bytes / self.seconds / 1e9),
            operations => format!("{:8.2} TOP/s", operations / self.seconds / 1e12),
        }
    }
}

impl Times {
    fn median(&self) -> f64 {
        self.calls[self.calls.len() / 2]
    }
}

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
            let show = |t: &Times| {
                let ops: BTreeMap<_, _> = t.ops.iter().map(|(op, w)| (op, w.seconds)).collect();
                let work: BTreeMap<_, _> =
                    t.ops.iter().map(|(op, w)| (op, json!({ "operations": w.operations, "bytes": w.bytes }))).collect();
                json!({
                    "bind": t.bind, "first": t.first, "median": t.median(), "best": t.calls[0],
                    "ops": ops, "work": work, "mark": t.mark,
                })
            };
            say_json(&json!({
                "device": name, "open_seconds": open, "batch": self.batch_size,
                "step_seconds": step,
                "uploads": uploads.iter().map(|(path, rate)| (format!("{path:?}"), json!(rate))).collect::<serde_json::Map<_, _>>(),
                "denoiser": show(&denoiser), "decoder": decoder.as_ref().map(show),
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
        let what = format!("denoiser call, batch {}", self.batch_size);
        for (what, t) in [(what.as_str(), Some(&denoiser)), ("decoder call, batch 1", decoder.as_ref())] {
            let Some(t) = t else { continue };
            say(format_args!(
                "{what}: median {:.2} ms, best {:.2} ms of {}; bind {:.2} ms, first call {:.2} ms",
                t.median() * 1e3,
                t.calls[0] * 1e3,
                t.calls.len(),
                t.bind * 1e3,
                t.first * 1e3
            ));
            let total: f64 = t.ops.iter().map(|(_, w)| w.seconds).sum();
            for (op, w) in &t.ops {
                let (ms, share) = (w.seconds * 1e3, 100.0 * w.seconds / total);
                say(format_args!("  {op:<22} {ms:9.3} ms  {share:5.1} %  {}", w.rate()));
            }
            if ahead > 0 {
                say(format_args!("  each op's time holds a mark's, {:.2} us", t.mark * 1e6));
            }
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
        let conditions = if model.conditional() { batch.min(2) } else { 1 };
        let tokens = model.text.as_ref().map_or(1, |text| text.encoders[0].tokens);
        let dims = Dims { batch, conditions, height, width, tokens };
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
        let [context, pooled, sizes] = [InputKind::Context, InputKind::Pooled, InputKind::Sizes].map(&mut random);
        let labels = model.classes.map_or([0; 2], |classes| [classes.count as u32 / 2, classes.null]);
        let labels = &labels[..conditions];
        executor.set_prompt(&PromptInputs {
            class_labels: program.input(InputKind::ClassLabels).map(|_| labels),
            context: context.as_deref(),
            pooled: pooled.as_deref(),
            sizes: sizes.as_deref(),
        })?;
        if let Some(tokens) = random(InputKind::Tokens) {
            executor.set_tokens(&vec![0; tokens.len()])?;
        }
        executor.set_timesteps((0..self.repeat + 1).map(|i| (999 - i * 7 % 900) as f32))?;
        if let Some(sample) = sample {
            executor.write_sample(&sample)?;
        }
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
        let mut ops: Vec<_> = by_op.into_iter().collect();
        ops.sort_by(|a, b| b.1.seconds.total_cmp(&a.1.seconds));
        Ok(Times { bind, first, calls, ops, mark })
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
