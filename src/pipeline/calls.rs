//! Model calls of a run, apart from it: what the network was given, and one such call made again.
//!
//! A run of a reference gives the states ([`Job::upcoming`]); [`Session::predict`] makes a call at such a state with any
//! model of the same programs, and [`Session::observe`] shows every op of it. So models are compared and calibrated at
//! equal inputs, whatever their errors would have made of the run.

use super::conditions;
use super::job::{Job, State};
use super::plans;
use super::prompts::Prompts;
use super::request::Request;
use super::session::Session;
use crate::backend::{Backend, Clock};
use crate::error::{Error, Result};
use crate::exec::{Executor, Moment, Seen, Timed};
use crate::plan::Binding;
use crate::program::{Dims, Role};
use std::ops::Range;

/// A model call that a run is about to make.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelCall {
    /// The network that is called.
    pub role: Role,
    /// The call's number in the run of an image, over all its networks.
    pub index: usize,
    /// When it happens.
    pub moment: Moment,
    /// The images of the batch.
    pub images: Range<usize>,
    /// The latents as the network reads them, `(n, h, w, c)`, scaled as the sampler demands; once per image, whatever guidance
    /// adds to the call.
    pub sample: Vec<f32>,
}

/// What a network made of a [`ModelCall`].
#[derive(Clone, Debug, PartialEq)]
pub struct Predicted {
    /// `(samples, h, w, c)`: those of the images first, then, with guidance, what it leads away from.
    pub values: Vec<f32>,
    /// Channels of a pixel: those of the latents, and behind them what else the network makes.
    pub channels: usize,
    /// Samples.
    pub samples: usize,
}

/// A model call of a batch.
struct Place {
    /// Index of the stage.
    stage: usize,
    /// Calls of the stages before.
    before: usize,
    /// The call's number in its stage.
    call: usize,
}

impl<'m, B: Backend, D: AsRef<[u8]>> Job<'_, 'm, B, D> {
    /// The model call that [`next`](Self::next) makes next; none if an event comes before it: after [`Event::Queued`](super::Event::Queued) or,
    /// where there is something to encode, [`Event::Encoding`](super::Event::Encoding) it is the first. Costs nothing unless it is called; then it
    /// does the work that comes before the call, and waits for the device.
    ///
    /// # Errors
    /// Those of [`next`](Self::next).
    pub fn upcoming(&mut self) -> Result<Option<ModelCall>> {
        self.begin()?;
        let Some(at) = self.place() else { return Ok(None) };
        let Some(preview) = self.preview()? else { return Ok(None) };
        let row = &self.plans().stages[at.stage].table.rows[at.call];
        let moment = Moment { timestep: row.timestep, fraction: row.fraction };
        let sample = preview.latents.iter().map(|v| v * row.input_scale).collect();
        let role = self.plans().stages[at.stage].role;
        Ok(Some(ModelCall { role, index: at.before + at.call, moment, images: preview.images, sample }))
    }

    /// The call that comes next, if the next piece of work is one.
    fn place(&self) -> Option<Place> {
        match &self.state {
            State::Enter(batch) => Some(Place { stage: batch.stage, before: batch.before, call: 0 }),
            State::Step(batch, running) => Some(Place { stage: batch.stage, before: batch.before, call: running.call }),
            _ => None,
        }
    }
}

impl<'m, B: Backend, D: AsRef<[u8]>> Session<'m, B, D> {
    /// What the network makes of `call`, a call of a run of `request`, whose prompts must be ready features if they are
    /// texts (see [`Job::prompts`]). The images of the call may be any part of a batch, as long as their prompts have as
    /// many tokens.
    ///
    /// # Errors
    /// [`Error::Request`] if the call does not fit the request or the model, and those of [`job`](Self::job).
    pub fn predict(&mut self, request: &Request, call: &ModelCall) -> Result<Predicted> {
        let executor = self.ready(request, call)?;
        executor.call(0)?;
        result(executor)
    }

    /// [`predict`](Self::predict), showing every op to `see` as [`Executor::observe`] does.
    ///
    /// # Errors
    /// Those of [`predict`](Self::predict), and those of `see`, which end the call.
    pub fn observe(
        &mut self,
        request: &Request,
        call: &ModelCall,
        see: impl FnMut(Seen<'_, 'm, B>) -> Result<()>,
    ) -> Result<Predicted> {
        let executor = self.ready(request, call)?;
        executor.observe(0, see)?;
        result(executor)
    }

    /// How long each op of `call` takes, shown to `see` as [`Executor::time`] does, after one call that is not timed.
    ///
    /// # Errors
    /// Those of [`predict`](Self::predict).
    pub fn time(
        &mut self,
        request: &Request,
        call: &ModelCall,
        clock: Clock,
        see: impl FnMut(Timed<'_, 'm, B>),
    ) -> Result<()> {
        let executor = self.ready(request, call)?;
        executor.call(0)?;
        executor.time(0, 0, clock, see)?;
        Ok(())
    }

    /// The network of `call`, bound for this call alone, with all its inputs.
    fn ready(&mut self, request: &Request, call: &ModelCall) -> Result<&mut Executor<'m, B>> {
        request.check(self.model())?;
        let (images, n) = (call.images.clone(), call.images.len());
        if matches!(request.prompts, Prompts::Texts(_)) {
            return Err(Error::request("prompt", "ready features for a single call", "texts"));
        }
        if n == 0 || images.end > request.prompts.len() {
            let expected = format!("some of {}", request.prompts.len());
            return Err(Error::request("images of a call", expected, format!("{images:?}")));
        }
        plans::check_together(self.model(), &request.prompts, images.clone())?;
        let [height, width] = request.latent_size;
        let conditions = plans::conditions(self.model(), request, images.clone()).list;
        let (tokens, conditions) = (conditions::tokens(&conditions, &request.prompts), conditions.len());
        let dims = Dims { batch: n * request.copies(), conditions, height, width, tokens, frames: request.frames };
        // A table of one call, so that what is shown of it belongs to this call.
        let binding = Binding { dims, calls: 1, table_bytes: 0, reserve: 0 };
        self.executor(call.role, binding, None)?;
        self.set_conditions(call.role, binding, request, images)?;
        let executor = self.executor(call.role, binding, None)?;
        executor.set_moments([call.moment].into_iter())?;
        executor.write_sample(&call.sample.repeat(request.copies()))?;
        Ok(executor)
    }
}

/// Reads the result of the call that was made.
fn result<B: Backend>(executor: &Executor<'_, B>) -> Result<Predicted> {
    let (out, samples) = (executor.plan().output, executor.plan().binding.dims.batch);
    let mut values = vec![0.0; out.rows * out.cols];
    executor.read_output(&mut values)?;
    Ok(Predicted { values, channels: out.cols, samples })
}
