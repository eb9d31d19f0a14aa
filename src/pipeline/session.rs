//! A model and a back end with what is bound: the place where programs stay warm from job to job.

use super::conditions::{self, Inputs, PixelSizes};
use super::job::{Job, Output};
use super::plans::{self, Plans};
use super::prompts::{Embeddings, Prompts};
use super::request::Request;
use super::swap_last_axes;
use super::texts::{Texts, TokenizedTexts};
use crate::backend::{Backend, Footprint};
use crate::error::{Error, Result};
use crate::exec::{Executor, Moment};
use crate::model::Model;
use crate::plan::{Binding, Plan};
use crate::program::{Dims, Role};

/// A model on a back end.
///
/// Programs are bound when a job needs them and stay bound, by role and shape, so that the next batch and the next job of
/// the same shape begin at once. On a device, their weights stay as well, those of text encoders until something else needs
/// the memory: where there is little, a job takes no more at a time than its largest program, and copies the weights of the
/// others when it comes to them. Use it from one thread; a job borrows it, so there is one at a time.
pub struct Session<'m, B: Backend, D> {
    model: &'m Model<'m, D>,
    backend: &'m B,
    /// Bound programs, the one used last at the end.
    bound: Vec<Executor<'m, B>>,
    /// Weights of the programs that are bound, and of some that were.
    weights: Vec<Ready<B>>,
    /// Most bytes of memory that are kept while a program is bound, its own included.
    keep: usize,
    binds: usize,
}

/// The weights of a program, for all that is bound of it.
struct Ready<B: Backend> {
    role: Role,
    bytes: usize,
    weights: B::Weights,
}

impl<'m, B: Backend, D: AsRef<[u8]>> Session<'m, B, D> {
    /// A session in which nothing is bound.
    pub fn new(model: &'m Model<'m, D>, backend: &'m B) -> Self {
        Session { model, backend, bound: Vec::new(), weights: Vec::new(), keep: usize::MAX, binds: 0 }
    }

    /// Keeps at most `bytes` of memory, which on a device are those of weights as well: before a program is bound that would
    /// exceed it, those go that were not used for longest. With [`Plans::peak`] of a request, a job takes no more than the
    /// largest of its programs needs. Without this call, all are kept that there is memory for.
    pub fn keep_at_most(&mut self, bytes: usize) {
        self.keep = bytes;
    }

    /// The model.
    pub fn model(&self) -> &'m Model<'m, D> {
        self.model
    }

    /// The back end.
    pub fn backend(&self) -> &'m B {
        self.backend
    }

    /// How often a program was bound so far.
    pub fn binds(&self) -> usize {
        self.binds
    }

    /// The memory plans of `request`, without running anything.
    ///
    /// # Errors
    /// [`Error::Request`] if the request does not fit the model, or not even one image the memory.
    pub fn plans(&self, request: &Request) -> Result<Plans> {
        Plans::of(self.backend, self.model, request)
    }

    /// A job that makes the images of `request`. Nothing is computed yet, but everything is checked.
    ///
    /// # Errors
    /// Those of [`plans`](Self::plans), and [`Error::Device`] if the device has not the memory for it.
    pub fn job(&mut self, request: Request) -> Result<Job<'_, 'm, B, D>> {
        Job::new(self, request)
    }

    /// Features of `texts`, as a job makes them. Negative texts count where `guided`; where there is none, they are what the
    /// model reads instead.
    ///
    /// # Errors
    /// [`Error::Request`] if the model reads no texts or lacks a text encoder, those of binding and running a program.
    pub fn encode(&mut self, texts: &Texts, guided: bool) -> Result<(Embeddings, Vec<String>)> {
        let tokenized = TokenizedTexts::new(self.model, texts, guided)?;
        let embeddings = tokenized.encode(self)?;
        Ok((embeddings, tokenized.cut))
    }

    /// Makes the images of `request`.
    ///
    /// # Errors
    /// Those of [`job`](Self::job) and [`Job::next`].
    pub fn run(&mut self, request: Request) -> Result<Output> {
        self.job(request)?.finish()
    }

    /// One denoiser call on `sample` `(n, c, h, w)`, of videos `(n, c, f, h, w)`, without guidance or sampler; gives
    /// the same with other channels, and their number.
    ///
    /// # Errors
    /// [`Error::Request`] if a length is wrong or a class is none.
    pub fn eval(
        &mut self,
        sample: &[f32],
        latent_size: [usize; 2],
        prompts: Prompts,
        timestep: f32,
    ) -> Result<(Vec<f32>, usize)> {
        let n = prompts.len();
        let mut request = Request::new(self.model, prompts);
        (request.latent_size, request.steps, request.guidance_scale) = (latent_size, 1, 1.0);
        request.latents = Some(sample.to_vec());
        if self.model.latents.video {
            // A length that is of no whole frames is refused below.
            request.frames = sample.len() / (n * self.model.latents.len(latent_size)).max(1);
        }
        request.check(self.model)?;
        if matches!(request.prompts, Prompts::Texts(_)) {
            return Err(Error::request("prompt", "ready features for a single call", "texts"));
        }
        let [height, width] = latent_size;
        let channels = self.model.latents.channels;
        plans::check_together(self.model, &request.prompts, 0..n)?;
        let conditions = plans::conditions(self.model, &request, 0..n).list;
        let (tokens, conditions) = (conditions::tokens(&conditions, &request.prompts), conditions.len());
        let (frames, pixels) = (request.frames, request.latent_pixels());
        let dims = Dims { batch: n, conditions, height, width, tokens, frames };
        let binding = Binding { dims, calls: 1, table_bytes: 0, reserve: 0 };
        let executor = self.executor(Role::Denoiser, binding, None)?;
        // That it does at the model's own size is proven.
        let made = executor.plan().output_type;
        if made.dims()[..made.dims().len() - 1] != [n, frames * height, width] {
            let expected = format!("[{n}, {}, {width}, channels]", frames * height);
            return Err(Error::shape(Role::Denoiser.name(), "result", expected, format!("{:?}", made.dims())));
        }
        executor.set_moments([Moment { timestep, fraction: 0.0 }].into_iter())?;
        executor.write_sample(&swap_last_axes(sample, [n, channels, pixels]))?;
        self.set_conditions(Role::Denoiser, binding, &request, 0..n)?;
        let executor = self.executor(Role::Denoiser, binding, None)?;
        executor.call(0)?;
        let out = executor.plan().output;
        let mut result = vec![0.0; out.rows * out.cols];
        executor.read_output(&mut result)?;
        Ok((swap_last_axes(&result, [n, pixels, out.cols]), out.cols))
    }

    /// Writes what the images `images` of `request` are conditioned on into the denoiser of `role`, which is bound.
    pub(super) fn set_conditions(
        &mut self,
        role: Role,
        binding: Binding,
        request: &Request,
        images: std::ops::Range<usize>,
    ) -> Result<()> {
        let model = self.model;
        let conditions = plans::conditions(model, request, images);
        let own = model.latents.size.map(|side| side * model.latents.pixels);
        let sizes = PixelSizes { images: request.pixels(model), model: own };
        let inputs = Inputs::new(&conditions.list, &request.prompts, model.conditioning(role), sizes)?;
        let executor = self.executor(role, binding, None)?;
        executor.set_conditions(&conditions.of_sample)?;
        executor.set_prompt(&inputs.for_program(executor.program()))
    }

    /// The program of `role`, bound to `binding`: as it is if it still is, else anew, with one of `plans` if it is for it.
    pub(super) fn executor(
        &mut self,
        role: Role,
        binding: Binding,
        plans: Option<&Plans>,
    ) -> Result<&mut Executor<'m, B>> {
        let fits = |plan: &Plan| plan.role == role && plan.binding == binding;
        match self.bound.iter().position(|executor| fits(executor.plan())) {
            Some(at) if at + 1 == self.bound.len() => {}
            Some(at) => self.bound[at..].rotate_left(1),
            None => {
                let ready = plans.and_then(|plans| plans.all().find(|plan| fits(plan))).cloned();
                let plan = match ready {
                    Some(plan) => plan,
                    None => Plan::of_role(self.backend, self.model.packed(), role, &binding)?,
                };
                self.make_room(&plan)?;
                let weights = self.ready_weights(&plan)?;
                self.bound.push(Executor::bind(self.backend, self.model.packed(), plan, &weights)?);
                self.binds += 1;
            }
        }
        Ok(self.bound.last_mut().expect("one was found or pushed"))
    }

    /// The weights of the program of `plan`: as they are if they still are there.
    fn ready_weights(&mut self, plan: &Plan) -> Result<B::Weights> {
        if let Some(ready) = self.weights.iter().find(|ready| ready.role == plan.role) {
            return Ok(ready.weights.clone());
        }
        let weights = plan.ready(self.backend, self.model.packed())?;
        self.weights.push(Ready { role: plan.role, bytes: plan.footprint.weights, weights: weights.clone() });
        Ok(weights)
    }

    /// Lets go of what is bound of `role`, but not of its weights.
    pub(super) fn release(&mut self, role: Role) {
        self.bound.retain(|executor| executor.plan().role != role);
    }

    /// Refuses plans of which one does not fit the memory, before anything is bound.
    pub(super) fn check_memory(&mut self, plans: &Plans) -> Result<()> {
        for plan in plans.all() {
            let bound = |e: &Executor<'m, B>| e.plan().role == plan.role && e.plan().binding == plan.binding;
            if !self.bound.iter().any(bound) {
                self.make_room(plan)?;
            }
        }
        Ok(())
    }

    /// Lets go of programs and weights until that of `plan` may be bound.
    fn make_room(&mut self, plan: &Plan) -> Result<()> {
        while self.taken().saturating_add(self.lacking(plan)) > self.keep && self.let_go(plan.role) {}
        loop {
            let needed = self.lacking(plan);
            match self.backend.free_memory()? {
                Some(free) if free < needed => {
                    if !self.let_go(plan.role) {
                        return Err(short_of_memory(plan, free));
                    }
                }
                _ => return Ok(()),
            }
        }
    }

    /// Bytes of all that is bound and ready.
    fn taken(&self) -> usize {
        let arenas = self.bound.iter().map(|executor| executor.plan().footprint.arena);
        arenas.chain(self.weights.iter().map(|ready| ready.bytes)).sum()
    }

    /// Bytes that the program of `plan` takes beside those.
    fn lacking(&self, plan: &Plan) -> usize {
        let ready = self.weights.iter().any(|ready| ready.role == plan.role);
        plan.footprint.arena + if ready { 0 } else { plan.footprint.weights }
    }

    /// Lets go of something: weights of which nothing is bound, else the program that was not used for longest, the weights
    /// of `role` at last. Tells whether there was anything.
    fn let_go(&mut self, role: Role) -> bool {
        let bound = |role: Role| self.bound.iter().any(|executor| executor.plan().role == role);
        if let Some(at) = self.weights.iter().position(|ready| ready.role != role && !bound(ready.role)) {
            self.weights.remove(at);
            true
        } else if !self.bound.is_empty() {
            self.bound.remove(0);
            true
        } else {
            self.weights.pop().is_some()
        }
    }
}

/// The error that a device has not the memory for the program of `plan`, with nothing else on it.
fn short_of_memory(plan: &Plan, free: usize) -> Error {
    let remedy = match plan.role {
        Role::TextEncoder | Role::TextEncoder2 => {
            "encode the prompts on the CPU (encode --device cpu) and run with --inputs"
        }
        Role::Denoiser | Role::Refiner => "make fewer images at a time, or smaller ones",
        Role::VaeDecoder | Role::VaeEncoder => "make smaller images, or allow less memory for tiles (--max-memory)",
    };
    let Footprint { arena, weights } = plan.footprint;
    let expected = format!("{} bytes free, {weights} of them for weights; {remedy}", arena + weights);
    Error::device_memory(format!("device memory for the {}", plan.role.name()), expected, format!("{free} bytes"))
}
