//! A job: one request on its way, a step at a time.

use super::conditions;
use super::init::InitLatents;
use super::noise::RunNoise;
use super::plans::{self, Plans};
use super::prompts::Prompts;
use super::request::Request;
use super::session::Session;
use super::swap_last_axes;
use super::texts::TokenizedTexts;
use crate::backend::Backend;
use crate::backend::args::{ModelInputArgs, SamplerStepArgs};
use crate::error::{Error, ErrorKind, Result};
use crate::exec::Moment;
use crate::plan::Binding;
use std::ops::Range;

/// What [`Job::next`] did, or is about to do.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The job is checked and planned; nothing has run.
    Queued {
        /// Model calls that each image takes.
        steps: usize,
        /// Images.
        images: usize,
        /// Frames of each, 1 but of videos.
        frames: usize,
    },
    /// Prompts and the initial image are encoded next.
    Encoding,
    /// A sampler step is done.
    Step {
        /// Steps of this batch that are done.
        done: usize,
        /// Steps of this batch in all.
        total: usize,
        /// Images of this batch.
        images: Range<usize>,
    },
    /// This picture, an image or a frame of a video, is decoded next.
    Decoding {
        /// Its number: frames of a video follow each other.
        index: usize,
    },
    /// This picture is done; see [`Job::image`].
    Image {
        /// Its number.
        index: usize,
    },
}

/// What was made.
#[derive(Clone, Debug)]
pub struct Output {
    /// Final latents as the sampler left them, `(n, c, h, w)`, of videos `(n, c, f, h, w)`.
    pub latents: Vec<f32>,
    /// Images `(n, h, w, c)` or videos `(n, f, h, w, c)`, each value in 0..1.
    pub images: Vec<f32>,
    /// Frames of each video; 1 for images.
    pub frames: usize,
    /// Channels of an image: 1 is grey, 3 RGB, 4 RGBA.
    pub channels: usize,
    /// Height and width of an image.
    pub size: [usize; 2],
    /// The prompts as they were read: features where there were texts.
    pub prompts: Prompts,
    /// What of the prompts did not fit the text encoders and was cut off.
    pub cut: Vec<String>,
}

/// The latents of the batch at work, to be looked at.
#[derive(Clone, Debug)]
pub struct Preview {
    /// `(n, h, w, c)`, of videos `(n, f, h, w, c)`.
    pub latents: Vec<f32>,
    /// Images of the batch.
    pub images: Range<usize>,
}

/// One request on its way.
///
/// Each call of [`next`](Self::next) does one piece of work and tells what it was. Dropping the job ends it: nothing is
/// left to be undone, and the session keeps what is bound.
///
/// The walk of a request: [`Session::job`] -> `TokenizedTexts` -> [`Plans`] -> [`next`](Self::next): text encoders ->
/// noise and image encoder -> per batch and network: bind, write, steps, read -> decoder -> [`Output`].
pub struct Job<'s, 'm, B: Backend, D> {
    session: &'s mut Session<'m, B, D>,
    request: Request,
    plans: Plans,
    texts: Option<TokenizedTexts>,
    pub(super) state: State,
    /// Latents `(n, h, w, c)` of all images: to begin with, then as the sampler left them.
    latents: Vec<f32>,
    noise: RunNoise,
    init: Option<InitLatents>,
    /// Images `(n, h, w, c)`.
    images: Vec<f32>,
}

/// What comes next.
#[derive(Clone)]
#[allow(clippy::large_enum_variant, reason = "a job has one, and a box would be allocated at every step")]
pub(super) enum State {
    New,
    /// Announced or not.
    Encode(bool),
    /// Noise, and the initial image.
    Begin,
    /// This network takes over the batch.
    Enter(Batch),
    Step(Batch, Running),
    /// This image, announced or not.
    Decode(usize, bool),
    Done,
}

/// A batch and who works on it.
#[derive(Clone)]
pub(super) struct Batch {
    images: Range<usize>,
    /// Index of the stage.
    pub(super) stage: usize,
    /// Calls of the stages before.
    pub(super) before: usize,
}

/// A network that was entered.
#[derive(Clone)]
pub(super) struct Running {
    binding: Binding,
    input: ModelInputArgs,
    step: SamplerStepArgs,
    pub(super) call: usize,
}

impl<'s, 'm, B: Backend, D: AsRef<[u8]>> Job<'s, 'm, B, D> {
    pub(super) fn new(session: &'s mut Session<'m, B, D>, mut request: Request) -> Result<Self> {
        let texts = match &request.prompts {
            Prompts::Texts(texts) => Some(TokenizedTexts::new(session.model(), texts, request.guided())?),
            _ => None,
        };
        if let Some(texts) = &texts {
            request.prompts = Prompts::Embeddings(texts.outline());
        }
        let mut plans = Plans::new(session.backend(), session.model(), &request)?;
        if texts.is_none() {
            plans = plans.without_texts();
        }
        if let Err(error) = session.check_memory(&plans) {
            return Err(match (error.kind(), session.backend().free_memory()?) {
                (ErrorKind::Memory, Some(free)) => {
                    plans::short_of_memory(session.backend(), session.model(), (&request, &plans), free, error)
                }
                _ => error,
            });
        }
        let (latents, images) = (Vec::new(), Vec::new());
        let (noise, init, state) = (RunNoise::default(), None, State::New);
        Ok(Job { session, request, plans, texts, state, latents, noise, init, images })
    }

    /// The job's memory plans.
    pub fn plans(&self) -> &Plans {
        &self.plans
    }

    /// The prompts as they are now: features once texts are encoded.
    pub fn prompts(&self) -> &Prompts {
        &self.request.prompts
    }

    /// What of the prompts does not fit the text encoders and is cut off.
    pub fn cut(&self) -> &[String] {
        self.texts.as_ref().map_or(&[], |texts| &texts.cut)
    }

    /// Does the next piece of work and tells what it was; none when all images are done.
    ///
    /// On a device that works beside the host, a step may be told one step before it is done.
    ///
    /// # Errors
    /// [`Error::Request`] or [`Error::Device`] if memory is short or the device fails. The job cannot go on then.
    #[allow(clippy::should_implement_trait, reason = "an iterator could not return errors and lend the job")]
    pub fn next(&mut self) -> Result<Option<Event>> {
        loop {
            match self.state.clone() {
                State::New => {
                    let encodes = self.texts.is_some() || self.plans.encoder.is_some();
                    self.state = if encodes { State::Encode(false) } else { State::Begin };
                    let (images, frames) = (self.request.prompts.len(), self.request.frames);
                    return Ok(Some(Event::Queued { steps: self.plans.steps(), images, frames }));
                }
                State::Encode(false) => {
                    self.state = State::Encode(true);
                    return Ok(Some(Event::Encoding));
                }
                State::Encode(true) | State::Begin => self.begin()?,
                State::Enter(batch) => {
                    let running = self.enter(&batch)?;
                    self.state = State::Step(batch, running);
                }
                State::Step(batch, running) => return self.step(batch, running).map(Some),
                State::Decode(index, false) => {
                    self.state = State::Decode(index, true);
                    return Ok(Some(Event::Decoding { index }));
                }
                State::Decode(index, true) => {
                    self.decode(index)?;
                    let last = index + 1 == self.request.pictures();
                    self.state = if last { State::Done } else { State::Decode(index + 1, false) };
                    return Ok(Some(Event::Image { index }));
                }
                State::Done => return Ok(None),
            }
        }
    }

    /// Runs to the end.
    ///
    /// # Errors
    /// Those of [`next`](Self::next).
    pub fn finish(self) -> Result<Output> {
        self.finish_with(|_, _| ())
    }

    /// Runs to the end, showing each event, and the job after it, to `see`.
    ///
    /// # Errors
    /// Those of [`next`](Self::next).
    pub fn finish_with(mut self, mut see: impl FnMut(&mut Self, Event)) -> Result<Output> {
        while let Some(event) = self.next()? {
            see(&mut self, event);
        }
        let LatentsShape { n, pixels, channels } = self.shape();
        Ok(Output {
            latents: swap_last_axes(&self.latents, [n, pixels, channels]),
            images: self.images,
            frames: self.request.frames,
            channels: self.session.model().picture_channels(),
            size: self.request.picture_pixels(self.session.model()),
            prompts: self.request.prompts,
            cut: self.texts.map(|texts| texts.cut).unwrap_or_default(),
        })
    }

    /// Final latents `(n, h, w, c)` of all images, or `(n, f, h, w, c)` of all videos, without decoding any.
    ///
    /// # Errors
    /// Those of [`next`](Self::next).
    pub fn denoise(mut self, mut see: impl FnMut(&mut Self, Event)) -> Result<Vec<f32>> {
        while !matches!(self.state, State::Decode(..) | State::Done) {
            if let Some(event) = self.next()? {
                see(&mut self, event);
            }
        }
        Ok(self.latents)
    }

    /// The latents of the batch at work, as the last step left them; none before the first batch and after the last.
    /// Costs nothing unless it is called; then it waits for the device.
    ///
    /// # Errors
    /// [`Error::Device`] if the device fails.
    pub fn preview(&mut self) -> Result<Option<Preview>> {
        let len = self.request.latents_len(self.session.model());
        match self.state.clone() {
            State::Step(batch, running) => {
                let mut latents = vec![0.0; batch.images.len() * len];
                self.read_latents(&batch, &running, &mut latents)?;
                Ok(Some(Preview { latents, images: batch.images }))
            }
            State::Enter(batch) => {
                let latents = self.latents[batch.images.start * len..batch.images.end * len].to_vec();
                Ok(Some(Preview { latents, images: batch.images }))
            }
            _ => Ok(None),
        }
    }

    /// Image or frame `index`, `(h, w, c)` in 0..1; none before its [`Event::Image`].
    pub fn image(&self, index: usize) -> Option<&[f32]> {
        let done = match self.state {
            State::Decode(next, _) => next,
            State::Done => self.request.pictures(),
            _ => 0,
        };
        let model = self.session.model();
        let len = self.request.picture_pixels(model).iter().product::<usize>() * model.picture_channels();
        (index < done).then(|| &self.images[index * len..][..len])
    }

    /// The batch that begins with image `first`.
    fn batch(&self, first: usize) -> Batch {
        let images = plans::batch(self.session.model(), &self.request.prompts, first, self.plans.batch_size);
        Batch { images, stage: 0, before: 0 }
    }

    /// What comes between the announcements and the first network: prompts, noise and the initial image.
    pub(super) fn begin(&mut self) -> Result<()> {
        if let (State::Encode(true), Some(texts)) = (&self.state, &self.texts) {
            self.request.prompts = Prompts::Embeddings(texts.encode(self.session)?);
        }
        if matches!(self.state, State::Encode(true) | State::Begin) {
            let (latents, noise, init) = super::init::begin(self.session, &self.request, &self.plans)?;
            (self.latents, self.noise, self.init) = (latents, noise, init);
            self.state = State::Enter(self.batch(0));
        }
        Ok(())
    }

    /// Readies the network of a batch's stage: conditions, timesteps, latents, the sampler's rows and noise.
    fn enter(&mut self, batch: &Batch) -> Result<Running> {
        let (model, request) = (self.session.model(), &self.request);
        let stage = &self.plans.stages[batch.stage];
        let n = batch.images.len();
        let conditions = plans::conditions(model, request, batch.images.clone()).list;
        let tokens = conditions::tokens(&conditions, &request.prompts);
        let binding = plans::loop_binding(model, request, stage, n, conditions.len(), tokens);
        let executor = self.session.executor(stage.role, binding, Some(&self.plans))?;
        executor.set_moments(
            stage.table.rows.iter().map(|row| Moment { timestep: row.timestep, fraction: row.fraction }),
        )?;
        let memory = plans::step_memory(executor.plan().reserved, model, request, &stage.table, n);
        let (input, step) = memory.ops(executor.program(), executor.plan())?;
        if stage.table.learned() && step.model.cols != 2 * step.channels {
            let expected = format!("a model with {} outputs, half of them variances", 2 * step.channels);
            return Err(Error::request("variance_type learned_range", expected, step.model.cols));
        }
        let len = request.latents_len(model);
        let part = batch.images.start * len..batch.images.end * len;
        let (backend, arena) = executor.parts();
        backend.write_f32(arena, memory.states.at, &self.latents[part.clone()])?;
        for (call, row) in stage.table.rows.iter().enumerate() {
            backend.write_f32(arena, memory.rows.of(call), &row.encode())?;
        }
        if let Some(at) = memory.noise {
            for call in 0..stage.table.rows.len() {
                // Calls without noise multiply what is there with zero.
                match self.noise.of_call(batch.before + call) {
                    Some(noise) => backend.write_f32(arena, at.of(call), &noise[part.clone()])?,
                    None => backend.write_f32(arena, at.of(call), &vec![0.0; part.len()])?,
                }
            }
        }
        if let (Some(at), Some(init)) = (memory.blend, &self.init) {
            backend.write_f32(arena, at.mask.at, &init.mask.repeat(n))?;
            backend.write_f32(arena, at.init.at, &init.clean[part.clone()])?;
            backend.write_f32(arena, at.noise.at, &init.noise[part])?;
        }
        self.session.set_conditions(stage.role, binding, request, batch.images.clone())?;
        Ok(Running { binding, input, step, call: 0 })
    }

    /// One call of the network at work; after its last, the next network, batch or the decoder follows.
    fn step(&mut self, batch: Batch, running: Running) -> Result<Event> {
        let stage = &self.plans.stages[batch.stage];
        let calls = stage.table.rows.len();
        let executor = self.session.executor(stage.role, running.binding, None)?;
        executor.step(running.call, &running.input, &running.step)?;
        let done = running.call + 1;
        let event = Event::Step { done: batch.before + done, total: self.plans.steps(), images: batch.images.clone() };
        if done < calls {
            self.state = State::Step(batch, Running { call: done, ..running });
            return Ok(event);
        }
        let len = self.request.latents_len(self.session.model());
        let mut latents = vec![0.0; batch.images.len() * len];
        self.read_latents(&batch, &running, &mut latents)?;
        self.latents[batch.images.start * len..batch.images.end * len].copy_from_slice(&latents);
        self.state = if batch.stage + 1 < self.plans.stages.len() {
            State::Enter(Batch { stage: batch.stage + 1, before: batch.before + calls, ..batch })
        } else if batch.images.end < self.request.prompts.len() {
            State::Enter(self.batch(batch.images.end))
        } else {
            State::Decode(0, false)
        };
        Ok(event)
    }

    fn read_latents(&mut self, batch: &Batch, running: &Running, to: &mut [f32]) -> Result<()> {
        let role = self.plans.stages[batch.stage].role;
        let (backend, arena) = self.session.executor(role, running.binding, None)?.parts();
        backend.read_f32(arena, running.step.states.at, to)
    }

    fn decode(&mut self, index: usize) -> Result<()> {
        let len = self.session.model().latents.len(self.request.latent_size);
        let latents = &self.latents[index * len..][..len];
        let image = super::decode::image(self.session, &self.request, &self.plans, latents)?;
        // Images come in their order.
        self.images.reserve_exact((self.request.pictures() - index) * image.len());
        self.images.extend_from_slice(&image);
        Ok(())
    }

    fn shape(&self) -> LatentsShape {
        let channels = self.session.model().latents.channels;
        LatentsShape { n: self.request.prompts.len(), pixels: self.request.latent_pixels(), channels }
    }
}

/// Axes of the latents of all images.
struct LatentsShape {
    n: usize,
    pixels: usize,
    channels: usize,
}
