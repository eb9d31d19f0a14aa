//! `aquatint bench`: where the time goes.

mod target;
mod times;
mod turns;

use super::device::{Choice, with_backend, with_threads};
use super::options::SizeArgs;
use super::{Device, model, say, say_json};
use aquatint::model::Model;
use aquatint::options::MAX_IMAGES;
use aquatint::pipeline::{Event, Prompts, Request, Session};
use aquatint::raw::backend::Backend;
use aquatint::raw::backend::cuda::device::{self, WeightPath};
use aquatint::raw::backend::cuda::driver::Driver;
use aquatint::raw::program::Role;
use aquatint::{Error, Result};
use clap::Args;
use serde_json::json;
use std::path::PathBuf;
use std::time::Instant;
use target::Target;
use times::{PhaseTimes, Times, slowest_first};

/// Time loading, steps and decoding, op by op.
#[derive(Args)]
#[command(allow_negative_numbers = true)]
pub struct Bench {
    /// A packed model [default: the embedded one]; of several, denoiser calls are timed by turns and compared with the
    /// first file's
    #[arg(value_name = "MODEL")]
    models: Vec<PathBuf>,
    /// Samples per denoiser call; a guided image is two
    #[arg(short, long, default_value_t = 2, value_name = "N")]
    batch_size: usize,
    #[command(flatten)]
    size: SizeArgs,
    /// Calls to time
    #[arg(long, default_value_t = 5, value_name = "N")]
    repeat: usize,
    /// Leave a run's steps out, which are timed with guidance and the sampler
    #[arg(long)]
    no_step: bool,
    /// Leave the decoder out
    #[arg(long)]
    no_decode: bool,
    /// Leave the text encoders out
    #[arg(long)]
    no_encode: bool,
    /// Print as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: Device,
}

/// Calls that are queued on a device before one whose ops are timed.
const AHEAD: usize = 3;
/// Most bytes whose way to the device is timed.
const UPLOADED: usize = 1 << 30;

impl Bench {
    /// Runs the command.
    pub fn run(&self) -> Result<()> {
        for (name, n) in [("--batch-size", self.batch_size), ("--repeat", self.repeat)] {
            if !(1..=MAX_IMAGES).contains(&n) {
                return Err(Error::request(name, format!("1 to {MAX_IMAGES}"), n));
            }
        }
        let choice = self.device.choice()?;
        if self.models.len() > 1 {
            let left_out =
                [("--no-step", self.no_step), ("--no-decode", self.no_decode), ("--no-encode", self.no_encode)];
            for (name, given) in left_out {
                if given {
                    return Err(Error::request(
                        name,
                        "one model with it; of several, denoisers alone are timed",
                        "several",
                    ));
                }
            }
            return self.device.install(|| turns::run(self, choice))?;
        }
        let begin = Instant::now();
        let packed = model::open(self.models.first().map(PathBuf::as_path))?;
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
        let request = self.request(model)?;
        let size = request.latent_size;
        let denoiser = self.time(backend, model, (Role::Denoiser, self.batch_size, size), ahead)?;
        let step = if self.no_step { None } else { Some(self.step(backend, model, request)?) };
        let undecoded = self.no_decode || !model.decoder;
        let decoder =
            if undecoded { None } else { Some(self.time(backend, model, (Role::VaeDecoder, 1, size), ahead)?) };
        let encoders = model.text.iter().flat_map(|text| &text.encoders).filter(|e| e.encodes && !self.no_encode);
        let encoders = encoders.map(|e| Ok((e, self.time(backend, model, (e.role, 1, size), ahead)?)));
        let encoders = encoders.collect::<Result<Vec<_>>>()?;
        if self.json {
            say_json(&json!({
                "device": name, "open_seconds": open, "batch": self.batch_size,
                "pixels": size.map(|latents| latents * model.latents.pixels),
                "step_seconds": step,
                "uploads": uploads.iter().map(|(path, rate)| (format!("{path:?}"), json!(rate))).collect::<serde_json::Map<_, _>>(),
                "denoiser": denoiser.json(), "decoder": decoder.as_ref().map(Times::json),
                "encoders": encoders.iter().map(|(_, times)| times.json()).collect::<Vec<_>>(),
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
        if let Some(step) = step {
            let (images, plural) = (self.images(), if self.images() == 1 { "" } else { "s" });
            let ms = step * 1e3;
            say(format_args!("step of {images} image{plural}, guidance and sampler included: median {ms:.2} ms"));
        }
        let axis = model.packed().program(Role::Denoiser)?.phases.axis.name();
        denoiser.print(&format!("denoiser call, batch {}", self.batch_size), axis, ahead > 0);
        if let Some(decoder) = &decoder {
            decoder.print("decoder call, batch 1", axis, ahead > 0);
        }
        for (encoder, times) in &encoders {
            let what = format!("{} call, {} tokens", encoder.role.name(), encoder.tokens);
            times.print(&what, axis, ahead > 0);
        }
        Ok(())
    }

    /// Images of a guided step of `batch_size` samples.
    fn images(&self) -> usize {
        self.batch_size.div_ceil(2)
    }

    /// A request of as many images, of the size that was asked for.
    fn request(&self, model: &Model<'_, model::Bytes>) -> Result<Request> {
        let mut request = Request::new(model, Prompts::blank(model, self.images()));
        self.size.options().apply(&mut request, model, None)?;
        Ok(request)
    }

    /// Seconds of a step as a run makes it: input, denoiser, guidance, sampler.
    fn step<B: Backend>(&self, backend: &B, model: &Model<'_, model::Bytes>, mut request: Request) -> Result<f64> {
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

    /// Times the program of a role for so many samples of a size.
    fn time<B: Backend>(
        &self,
        backend: &B,
        model: &Model<'_, model::Bytes>,
        of: (Role, usize, [usize; 2]),
        ahead: usize,
    ) -> Result<Times> {
        let mut target = Target::new(backend, model, of, self.repeat + 1)?;
        let phases = (0..target.shares().len()).map(|phase| self.time_phase(&mut target, phase, ahead));
        let phases = phases.collect::<Result<_>>()?;
        Ok(Times { upload: target.upload(), bind: target.bind(), phases })
    }

    /// Times calls in phase `phase`.
    fn time_phase<B: Backend>(&self, target: &mut Target<'_, B>, phase: usize, ahead: usize) -> Result<PhaseTimes> {
        let first = target.first(phase)?;
        let mut calls = (1..=self.repeat).map(|i| target.call(i, phase)).collect::<Result<Vec<_>>>()?;
        calls.sort_by(f64::total_cmp);
        let (ops, mark) = target.ops(self.repeat, phase, ahead)?;
        let (from, share) = (target.from(phase), target.shares()[phase]);
        Ok(PhaseTimes { from, share, first, calls, ops: slowest_first(ops.into_iter()), mark })
    }
}

/// Bytes per second at which a device takes weights from the mapped file, by each path: the first of `data`, because all of it
/// need not fit.
fn uploads(index: usize, data: &[u8]) -> Result<Vec<(WeightPath, f64)>> {
    let data = &data[..data.len().min(UPLOADED)];
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
