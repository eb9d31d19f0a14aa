//! From a request to pictures: prompts, initial noise, the guided step loop, decoding. Generic over the back end.
//!
//! ```text
//! texts --tokenizer, text encoders--> prompts --+
//! labels ---------------------------------------+--> conditions --+
//! seeds --rng--> noise --+--> latents ----------------------------+--> step loop --> decoder --> image in 0..1
//! image --encoder--------+                        sampler table --+    (denoiser, guidance, sampler row; refiner)
//! ```
//!
//! Image `k` of a request is the same whatever else is in the batch and whatever the batch size: its noise comes from
//! its own stream, and no op mixes samples. (With [`NoiseSource::Torch`] the noise of a request is one stream, as in
//! diffusers' pipelines; it is then the same for equal requests only.)

mod decode;
mod denoise;
mod init;
mod noise;
mod subject;
mod text;
mod tiles;

pub use init::Init;
pub use noise::NoiseSource;
pub use subject::{Encoded, Prompt, Subjects};
pub use text::Texts;

use crate::backend::{Backend, Needs};
use crate::error::{Error, Result};
use crate::exec::{Executor, table_rows};
use crate::format::meta::TextEncoderMeta;
use crate::format::{Meta, Packed};
use crate::plan::{Binding, Plan};
use crate::program::{Dims, InputKind, Program, Role};
use crate::sampler::Config;
use denoise::Stage;
use subject::Conditions;

/// Bytes of tables of timestep-dependent values, unless the caller says otherwise.
pub const TABLE_BYTES: usize = 64 << 20;
/// Share of the steps after which a refiner takes over: what its authors made it for.
pub const HANDOVER: f64 = 0.8;
/// Bytes of arena beyond which images are decoded in tiles, unless the caller says otherwise.
pub const DECODE_BYTES: usize = 1_500_000_000;

/// What to make.
#[derive(Clone, Debug)]
pub struct Request {
    /// What each image shows; their number is the number of images.
    pub subjects: Subjects,
    /// Sampler steps.
    pub steps: usize,
    /// Guidance scale; at most 1 means no guidance.
    pub guidance_scale: f32,
    /// The sampler and its noise schedule.
    pub sampler: Config,
    /// Seed of the request.
    pub seed: u64,
    /// Where noise comes from.
    pub noise: NoiseSource,
    /// Initial latents `(n, c, h, w)` instead of noise, of unit variance: samplers that start from wider ones scale
    /// them, as diffusers' pipelines do.
    pub latents: Option<Vec<f32>>,
    /// Height and width of the latents.
    pub latent_size: [usize; 2],
    /// Images per pass through the network.
    pub batch_size: usize,
    /// Most bytes of tables of timestep-dependent values.
    pub table_bytes: usize,
    /// Most bytes of arena: batches become smaller, and images are decoded in tiles, as it demands.
    pub max_memory: Option<usize>,
    /// Rows and columns of latents that are decoded at once; chosen by memory if absent.
    pub tile: Option<usize>,
    /// The picture to begin with.
    pub init: Option<Init>,
    /// Share of the training steps, from the noisy end, after which the refiner takes over, if there is one; 1 leaves it
    /// out.
    pub handover: f64,
    /// How much the guided output gets the deviation of the conditional one, 0 to 1 (Lin et al. 2023, section 3.4).
    pub guidance_rescale: f32,
}

/// What was made.
#[derive(Clone, Debug)]
pub struct Output {
    /// Final latents as the sampler left them, `(n, c, h, w)`.
    pub latents: Vec<f32>,
    /// Images `(n, h, w, 3)`, each value in 0..1.
    pub images: Vec<f32>,
    /// Height and width of an image.
    pub size: [usize; 2],
}

/// Something that a person may want to know while it happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The first `done` of `total` sampler steps of the current batch are done.
    Step {
        /// Steps done.
        done: usize,
        /// Steps in all.
        total: usize,
        /// Images of the request that are already through the loop.
        images: usize,
    },
    /// `done` images are decoded.
    Decode {
        /// Images decoded.
        done: usize,
        /// Images in all.
        total: usize,
    },
}

/// The memory plans of a request. Their arenas are there one after the other, never together.
#[derive(Clone, Debug)]
pub struct Plans {
    /// Text encoders.
    pub texts: Vec<Plan>,
    /// Denoiser, and refiner if the request reaches it.
    pub denoisers: Vec<Plan>,
    /// Encoder, if the request begins with a picture.
    pub encoder: Option<Plan>,
    /// Decoder, if there is one.
    pub decoder: Option<Plan>,
    /// Images per pass through the denoiser.
    pub batch_size: usize,
    /// Rows and columns of latents that are decoded at once.
    pub tile: [usize; 2],
    /// What the step loop does.
    stages: Vec<Stage>,
}

impl Plans {
    /// Bytes of the largest arena.
    pub fn peak(&self) -> usize {
        self.texts
            .iter()
            .chain(&self.denoisers)
            .chain(&self.encoder)
            .chain(&self.decoder)
            .map(|plan| plan.arena)
            .max()
            .unwrap_or(0)
    }
}

/// A packed model as a pipeline.
pub struct Pipeline<'m, D> {
    packed: &'m Packed<D>,
}

impl<'m, D: AsRef<[u8]>> Pipeline<'m, D> {
    /// A pipeline over `packed`.
    ///
    /// # Errors
    /// [`Error::Request`] if the file lacks a program the pipeline needs.
    pub fn new(packed: &'m Packed<D>) -> Result<Self> {
        packed.program(Role::Denoiser)?;
        let pipeline = Pipeline { packed };
        let meta = pipeline.meta();
        if !pipeline.has(Role::VaeDecoder) && (meta.pipeline.latent_channels, meta.pipeline.pixels_per_latent) != (3, 1)
        {
            // Without a decoder the latents are the picture.
            packed.program(Role::VaeDecoder)?;
        }
        if meta.pipeline.refiner.is_some() {
            packed.program(Role::Refiner)?;
        }
        pipeline.check_encoders()?;
        Ok(pipeline)
    }

    /// The model's own settings.
    pub fn meta(&self) -> &'m Meta {
        self.packed.meta()
    }

    /// Whether the file has a program of `role`. Without a decoder the latents are the picture, in -1..1.
    fn has(&self, role: Role) -> bool {
        self.packed.programs().iter().any(|p| p.role == role)
    }

    /// Whether the denoiser reads `kind`.
    fn reads(&self, kind: InputKind) -> bool {
        let reads = |p: &Program| p.role == Role::Denoiser && p.input(kind).is_some();
        self.packed.programs().iter().any(reads)
    }

    /// Whether images have classes: META says so, or the program reads them. A file whose parts disagree is refused when
    /// its classes are set, rather than run on labels that nobody wrote.
    pub fn classified(&self) -> bool {
        self.meta().pipeline.classes > 0 || self.reads(InputKind::ClassLabels)
    }

    /// Whether images have prompts.
    pub fn prompted(&self) -> bool {
        self.meta().pipeline.text.is_some() || self.reads(InputKind::Context)
    }

    /// Whether images are made of anything but noise, so that there is guidance.
    pub fn conditional(&self) -> bool {
        self.classified() || self.prompted()
    }

    /// Subjects of `n` images that differ, without content: for memory plans and timings.
    pub fn blank(&self, n: usize) -> Subjects {
        let p = &self.meta().pipeline;
        match &p.text {
            Some(text) => {
                let blank = |e: &TextEncoderMeta| Encoded {
                    features: vec![0.0; e.tokens as usize * e.features as usize],
                    pooled: vec![0.0; e.pooled as usize],
                };
                let prompt = Prompt { encoded: text.encoders.iter().map(blank).collect() };
                let tokens = text.encoders.first().map_or(1, |e| e.tokens as usize);
                Subjects::Prompts { prompts: vec![prompt; n], tokens, of_image: (0..n).map(|i| [i, 0]).collect() }
            }
            None if self.classified() => Subjects::Classes((0..n as u32).map(|i| i % p.classes.max(1)).collect()),
            None => Subjects::Any(n),
        }
    }

    /// A request for images of `subjects` with the model's own settings.
    pub fn request(&self, subjects: Subjects) -> Request {
        let p = &self.meta().pipeline;
        Request {
            batch_size: subjects.len().clamp(1, 8),
            subjects,
            steps: p.steps as usize,
            guidance_scale: p.guidance_scale,
            sampler: p.sampler.clone(),
            seed: 42,
            noise: NoiseSource::Fast,
            latents: None,
            latent_size: p.latent_size.map(|n| n as usize),
            table_bytes: TABLE_BYTES,
            max_memory: None,
            tile: None,
            init: None,
            handover: HANDOVER,
            guidance_rescale: 0.0,
        }
    }

    /// The plans of all programs that `request` runs, without running anything.
    ///
    /// # Errors
    /// [`Error::Request`] if the request does not fit the model, or not even one image the memory.
    pub fn plans<N: Needs>(&self, needs: &N, request: &Request) -> Result<Plans> {
        self.check(request)?;
        let stages = self.stages(request)?;
        let texts = if matches!(request.subjects, Subjects::Prompts { .. }) { self.text_plans(needs)? } else { vec![] };
        let batch_size = self.batch_size(needs, request, &stages)?;
        let plan_stage = |s: &Stage| Plan::of_role(needs, self.packed, s.role, &self.largest(request, s, batch_size));
        let denoisers = stages.iter().map(plan_stage).collect::<Result<_>>()?;
        let tile = self.tile(needs, request)?;
        let decoder = || Plan::of_role(needs, self.packed, Role::VaeDecoder, &decode::shape(tile));
        let decoder = self.has(Role::VaeDecoder).then(decoder).transpose()?;
        let encodes = request.init.is_some() && self.has(Role::VaeEncoder);
        let encoder = encodes.then(|| self.encoder_plan(needs, request)).transpose()?;
        Ok(Plans { texts, denoisers, encoder, decoder, batch_size, tile, stages })
    }

    /// The most images per pass that the request allows and that fit its memory.
    fn batch_size<N: Needs>(&self, needs: &N, request: &Request, stages: &[Stage]) -> Result<usize> {
        let most = request.batch_size.min(request.subjects.len());
        let Some(max_memory) = request.max_memory else { return Ok(most) };
        let mut needed = 0;
        for n in (1..=most).rev() {
            needed = 0;
            for stage in stages {
                needed =
                    needed.max(Plan::of_role(needs, self.packed, stage.role, &self.largest(request, stage, n))?.arena);
            }
            if needed <= max_memory {
                return Ok(n);
            }
        }
        Err(Error::request("memory", format!("at least {needed} bytes for one image"), max_memory))
    }

    /// The shape of the batch of `n` images that has most conditions.
    fn largest(&self, request: &Request, stage: &Stage, n: usize) -> Binding {
        let total = request.subjects.len();
        let batches = (0..total).step_by(n).map(|first| first..(first + n).min(total));
        let conditions = batches.map(|images| self.conditions(request, images).list.len()).max().unwrap_or(1);
        self.loop_shape(request, stage, n, conditions)
    }

    fn conditions(&self, request: &Request, images: std::ops::Range<usize>) -> Conditions {
        Conditions::new(&request.subjects, images, request.guidance_scale > 1.0, self.meta().pipeline.null_class)
    }

    /// Checks that the model can do what is asked.
    fn check(&self, request: &Request) -> Result<()> {
        let p = &self.meta().pipeline;
        if request.subjects.is_empty() {
            return Err(Error::request("images", "at least one", 0));
        }
        let kind = match &request.subjects {
            Subjects::Any(_) => "none",
            Subjects::Classes(_) => "classes",
            Subjects::Prompts { .. } => "prompts",
        };
        let wanted = if self.prompted() {
            "prompts"
        } else if self.classified() {
            "classes"
        } else {
            "none"
        };
        if kind != wanted {
            return Err(Error::request("conditions of images", wanted, kind));
        }
        self.check_classes(request.subjects.classes())?;
        if !self.conditional() && request.guidance_scale > 1.0 {
            return Err(Error::request("guidance scale", "1 for a model without conditions", request.guidance_scale));
        }
        if request.batch_size == 0 {
            return Err(Error::request("batch size", "at least 1", 0));
        }
        if !request.guidance_scale.is_finite() {
            return Err(Error::request("guidance scale", "a finite number", request.guidance_scale));
        }
        if !(0.0..=1.0).contains(&request.guidance_rescale) {
            return Err(Error::request("guidance rescale", "0 to 1", request.guidance_rescale));
        }
        let [h, w] = request.latent_size;
        let multiple = p.latent_multiple as usize;
        if [h, w].iter().any(|n| *n == 0 || !n.is_multiple_of(multiple)) {
            return Err(Error::request("size", format!("multiples of {multiple} latents"), format!("{h} x {w}")));
        }
        let values = request.subjects.len() * self.latent_len(request);
        if let Some(latents) = &request.latents
            && latents.len() != values
        {
            let expected = format!("{} x {} x {h} x {w} = {values} values", request.subjects.len(), p.latent_channels);
            return Err(Error::request("latents", expected, latents.len()));
        }
        self.check_init(request)
    }

    fn check_classes(&self, labels: &[u32]) -> Result<()> {
        let p = &self.meta().pipeline;
        if labels.is_empty() {
            return Ok(());
        }
        if let Some(bad) = labels.iter().find(|&&c| c >= p.classes && c != p.null_class) {
            return Err(Error::request("class label", format!("0 to {}", p.classes.saturating_sub(1)), bad));
        }
        // META and the class table come from different parts of the file; the table decides.
        let rows =
            self.packed.program(Role::Denoiser).map(|denoiser| self.rows_of(denoiser, InputKind::ClassLabels))?;
        if let Some(bad) = labels.iter().chain([&p.null_class]).find(|&&c| c as usize >= rows) {
            return Err(Error::request("class label", format!("a row of the class table, below {rows}"), bad));
        }
        Ok(())
    }

    /// Rows of the smallest table that the input of `kind` indexes; without one, any number will do.
    fn rows_of(&self, program: &Program, kind: InputKind) -> usize {
        let rows = table_rows(program, |t| self.packed.tensors()[t.0 as usize].dims[0]);
        program.input(kind).map_or(usize::MAX, |value| rows[value.0 as usize])
    }

    /// Floats of one image's latents.
    fn latent_len(&self, request: &Request) -> usize {
        let [h, w] = request.latent_size;
        h * w * self.meta().pipeline.latent_channels as usize
    }

    /// Makes the images of `request`.
    ///
    /// # Errors
    /// [`Error::Request`] if the request does not fit the model, before anything is computed.
    pub fn run<B: Backend>(&self, backend: &mut B, request: &Request, seen: &mut dyn FnMut(Event)) -> Result<Output> {
        let plans = self.plans(backend, request)?;
        let latents = self.denoised_with(backend, request, &plans, seen)?;
        let (images, size) = self.decode(backend, request, plans.tile, &latents, seen)?;
        let n = request.subjects.len();
        let [h, w] = request.latent_size;
        let channels = self.meta().pipeline.latent_channels as usize;
        Ok(Output { latents: permute(&latents, [n, h * w, channels]), images, size })
    }

    /// The final latents of `request`, `(n, h, w, c)`.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn denoised<B: Backend>(
        &self,
        backend: &mut B,
        request: &Request,
        seen: &mut dyn FnMut(Event),
    ) -> Result<Vec<f32>> {
        let plans = self.plans(backend, request)?;
        self.denoised_with(backend, request, &plans, seen)
    }

    fn denoised_with<B: Backend>(
        &self,
        backend: &mut B,
        request: &Request,
        plans: &Plans,
        seen: &mut dyn FnMut(Event),
    ) -> Result<Vec<f32>> {
        backend.fits(plans.peak())?;
        let (n, len) = (request.subjects.len(), self.latent_len(request));
        let (mut latents, given) = self.begin(backend, request, &plans.stages)?;
        for first in (0..n).step_by(plans.batch_size) {
            let images = first..(first + plans.batch_size).min(n);
            let slice = &mut latents[first * len..images.end * len];
            self.denoise(backend, request, &plans.stages, images, slice, &given, seen)?;
        }
        Ok(latents)
    }

    /// One denoiser call on `sample` `(n, c, h, w)`, without guidance or sampler; gives `(n, channels out, h, w)` and
    /// the number of its channels.
    ///
    /// # Errors
    /// [`Error::Request`] if a length is wrong or a label is out of range.
    pub fn eval<B: Backend>(
        &self,
        backend: &mut B,
        sample: &[f32],
        latent_size: [usize; 2],
        subjects: Subjects,
        timestep: f32,
    ) -> Result<(Vec<f32>, usize)> {
        let n = subjects.len();
        let mut request = self.request(subjects);
        (request.latent_size, request.steps, request.guidance_scale) = (latent_size, 1, 1.0);
        request.handover = 1.0;
        request.latents = Some(sample.to_vec());
        self.check(&request)?;
        let [height, width] = latent_size;
        let channels = self.meta().pipeline.latent_channels as usize;
        let conditions = self.conditions(&request, 0..n);
        let dims =
            Dims { batch: n, conditions: conditions.list.len(), height, width, tokens: request.subjects.tokens() };
        let shape = Binding { dims, calls: 1, table_bytes: 0, reserve: 0 };
        let mut executor = Executor::new(backend, self.packed, Role::Denoiser, shape)?;
        self.set_conditions(&mut executor, &request, Role::Denoiser, &conditions)?;
        executor.set_timesteps([timestep].into_iter())?;
        executor.write_sample(&permute(sample, [n, channels, height * width]))?;
        executor.call(0)?;
        let out = executor.plan().output;
        let mut result = vec![0.0; out.rows * out.cols];
        executor.read_output(&mut result)?;
        Ok((permute(&result, [n, height * width, out.cols]), out.cols))
    }
}

/// Swaps the last two axes of `(n, a, b)`.
pub fn permute(x: &[f32], [n, a, b]: [usize; 3]) -> Vec<f32> {
    let mut out = vec![0.0; x.len()];
    for i in 0..n {
        let (from, to) = (&x[i * a * b..][..a * b], &mut out[i * a * b..][..a * b]);
        for (r, row) in from.chunks_exact(b).enumerate() {
            for (c, &v) in row.iter().enumerate() {
                to[c * a + r] = v;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permuting_twice_is_the_identity() {
        let x: Vec<f32> = (0..2 * 3 * 5).map(|i| i as f32).collect();
        let y = permute(&x, [2, 3, 5]);
        assert_eq!(&y[..4], &[0.0, 5.0, 10.0, 1.0]);
        assert_eq!(permute(&y, [2, 5, 3]), x);
    }
}
