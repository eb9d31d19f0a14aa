//! From a request to pictures: initial noise, the guided step loop, decoding. Generic over the back end.
//!
//! ```text
//! seeds --rng--> latents --+                       +--> decoder --> image in 0..1
//! labels --> conditions ---+--> step loop ---------+
//! sampler table -----------+    (denoiser, guidance, sampler row)
//! ```
//!
//! Image `k` of a request is the same whatever else is in the batch and whatever the batch size: its noise comes from
//! its own stream, and no op mixes samples. (With [`NoiseSource::Torch`] the noise of a request is one stream, as in
//! diffusers' pipelines; it is then the same for equal requests only.)

use crate::backend::args::{ModelInputArgs, SamplerStepArgs, Slot};
use crate::backend::{Backend, Needs};
use crate::codec::layout::round_up;
use crate::error::{Error, Result};
use crate::exec::{Executor, plan};
use crate::format::{Meta, Packed};
use crate::plan::{ALIGN, Plan, Shape};
use crate::program::{Dims, InputKind, Op, Program, Role};
use crate::rng::{FastRng, TorchRng};
use crate::sampler::{Config, ROW_FLOATS, Table};

/// Bytes of tables of timestep-dependent values, unless the caller says otherwise.
pub const TABLE_BYTES: usize = 64 << 20;

/// Which generator makes the noise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoiseSource {
    /// One stream per image, from its own seed.
    Fast,
    /// torch's CPU generator, one stream per request.
    Torch,
}

/// What to make.
#[derive(Clone, Debug)]
pub struct Request {
    /// The class of each image; their number is the number of images.
    pub class_labels: Vec<u32>,
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
        if !pipeline.decodes() && (meta.pipeline.latent_channels, meta.pipeline.pixels_per_latent) != (3, 1) {
            // Without a decoder the latents are the picture.
            packed.program(Role::VaeDecoder)?;
        }
        Ok(pipeline)
    }

    /// The model's own settings.
    pub fn meta(&self) -> &'m Meta {
        self.packed.meta()
    }

    /// Whether latents pass through a decoder; else they are the picture, in -1..1.
    fn decodes(&self) -> bool {
        self.packed.programs().iter().any(|p| p.role == Role::VaeDecoder)
    }

    /// Whether images have classes: META says so, or the program reads them. A file whose parts disagree is refused when
    /// its classes are set, rather than run on labels that nobody wrote.
    pub fn conditional(&self) -> bool {
        let reads = |p: &Program| p.role == Role::Denoiser && p.input(InputKind::ClassLabels).is_some();
        self.meta().pipeline.classes > 0 || self.packed.programs().iter().any(reads)
    }

    /// A request for images of `class_labels` with the model's own settings.
    pub fn request(&self, class_labels: Vec<u32>) -> Request {
        let p = &self.meta().pipeline;
        Request {
            batch_size: class_labels.len().clamp(1, 8),
            class_labels,
            steps: p.steps as usize,
            guidance_scale: p.guidance_scale,
            sampler: p.sampler.clone(),
            seed: 42,
            noise: NoiseSource::Fast,
            latents: None,
            latent_size: p.latent_size.map(|n| n as usize),
            table_bytes: TABLE_BYTES,
        }
    }

    /// The plans of denoiser and, if there is one, decoder for `request`, without running anything; they are alive one
    /// after the other.
    pub fn plans<N: Needs>(&self, needs: &N, request: &Request) -> Result<(Plan, Option<Plan>)> {
        let table = self.check(request)?;
        let n = request.class_labels.len().min(request.batch_size);
        let shape = self.loop_shape(request, &table, n, Conditions::new(request, self.null_class()).most(request));
        let decoder = || plan(needs, self.packed, Role::VaeDecoder, &self.decode_shape(request));
        let decoder = self.decodes().then(decoder).transpose()?;
        Ok((plan(needs, self.packed, Role::Denoiser, &shape)?, decoder))
    }

    fn null_class(&self) -> u32 {
        self.meta().pipeline.null_class
    }

    fn check(&self, request: &Request) -> Result<Table> {
        let p = &self.meta().pipeline;
        if request.class_labels.is_empty() {
            return Err(Error::request("class labels", "at least one", "none"));
        }
        if let Some(bad) = request.class_labels.iter().find(|&&c| c >= p.classes && c != p.null_class) {
            return Err(Error::request("class label", format!("0 to {}", p.classes.saturating_sub(1)), bad));
        }
        // META and the class table come from different parts of the file; the table decides.
        let rows = self.class_rows()?;
        if let Some(bad) = request.class_labels.iter().chain([&p.null_class]).find(|&&c| c as usize >= rows) {
            return Err(Error::request("class label", format!("a row of the class table, below {rows}"), bad));
        }
        if !self.conditional() && request.guidance_scale > 1.0 {
            return Err(Error::request("guidance scale", "1 for a model without conditions", request.guidance_scale));
        }
        if request.batch_size == 0 {
            return Err(Error::request("batch size", "at least 1", 0));
        }
        if !request.guidance_scale.is_finite() {
            return Err(Error::request("guidance scale", "a finite number", request.guidance_scale));
        }
        let [h, w] = request.latent_size;
        let values = request.class_labels.len() * self.latent_len(request);
        if let Some(latents) = &request.latents
            && latents.len() != values
        {
            let expected =
                format!("{} x {} x {h} x {w} = {values} values", request.class_labels.len(), p.latent_channels);
            return Err(Error::request("latents", expected, latents.len()));
        }
        request.sampler.table(request.steps)
    }

    /// Rows of the smallest table that class labels index; without one, any label will do.
    fn class_rows(&self) -> Result<usize> {
        let program = self.packed.program(Role::Denoiser)?;
        let labels = program.input(InputKind::ClassLabels);
        let tables = program.nodes.iter().filter_map(|node| match node.op {
            Op::Embedding { index, table } if Some(index) == labels => Some(table.0 as usize),
            _ => None,
        });
        Ok(tables.map(|t| self.packed.tensors()[t].dims[0]).min().unwrap_or(usize::MAX))
    }

    /// Floats of one image's latents.
    fn latent_len(&self, request: &Request) -> usize {
        let [h, w] = request.latent_size;
        h * w * self.meta().pipeline.latent_channels as usize
    }

    fn loop_shape(&self, request: &Request, table: &Table, images: usize, conditions: usize) -> Shape {
        let [height, width] = request.latent_size;
        let copies = if request.guidance_scale > 1.0 { 2 } else { 1 };
        let len = images * self.latent_len(request) * 4;
        let noise = if table.noise { table.rows.len() * round_up(len, ALIGN) } else { 0 };
        Shape {
            dims: Dims { batch: images * copies, conditions, height, width },
            calls: table.rows.len(),
            table_bytes: request.table_bytes,
            reserve: table.rows.len() * ROW_FLOATS * 4 + round_up(table.states * len, ALIGN) + noise,
        }
    }

    fn decode_shape(&self, request: &Request) -> Shape {
        let [height, width] = request.latent_size;
        Shape { dims: Dims { batch: 1, conditions: 1, height, width }, calls: 1, table_bytes: 0, reserve: 0 }
    }

    /// Makes the images of `request`.
    ///
    /// # Errors
    /// [`Error::Request`] if the request does not fit the model, before anything is computed.
    pub fn run<B: Backend>(&self, backend: &mut B, request: &Request, seen: &mut dyn FnMut(Event)) -> Result<Output> {
        let latents = self.denoised(backend, request, seen)?;
        let (images, size) = self.decode(backend, request, &latents, seen)?;
        let n = request.class_labels.len();
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
        let table = self.check(request)?;
        let (denoiser, decoder) = self.plans(backend, request)?;
        backend.fits(denoiser.arena.max(decoder.map_or(0, |plan| plan.arena)))?;
        let n = request.class_labels.len();
        let len = self.latent_len(request);
        let (mut latents, noise) = self.noise(request, &table);
        for first in (0..n).step_by(request.batch_size) {
            let images = first..(first + request.batch_size).min(n);
            let slice = &mut latents[first * len..images.end * len];
            self.denoise(backend, request, &table, images, slice, &noise, seen)?;
        }
        Ok(latents)
    }

    /// Initial latents `(n, h, w, c)`, scaled for the sampler, and the noise of each call and image, `(calls, n, ..)`.
    fn noise(&self, request: &Request, table: &Table) -> (Vec<f32>, Vec<f32>) {
        let n = request.class_labels.len();
        let len = self.latent_len(request);
        let calls = if table.noise { table.rows.len() } else { 0 };
        let mut latents = vec![0.0; n * len];
        let mut noise = vec![0.0; calls * n * len];
        match request.noise {
            NoiseSource::Torch => {
                let mut rng = TorchRng::new(request.seed);
                if request.latents.is_none() {
                    rng.randn(&mut latents);
                }
                for (call, noise) in noise.chunks_exact_mut((n * len).max(1)).enumerate() {
                    if table.rows[call].noise() {
                        rng.randn(noise);
                    }
                }
            }
            NoiseSource::Fast => {
                for (k, latents) in latents.chunks_exact_mut(len).enumerate() {
                    let mut rng = FastRng::for_image(request.seed, k as u64);
                    rng.randn(latents);
                    for call in 0..calls {
                        rng.randn(&mut noise[(call * n + k) * len..][..len]);
                    }
                }
            }
        }
        if let Some(given) = &request.latents {
            latents.copy_from_slice(given);
        }
        latents.iter_mut().for_each(|x| *x *= table.init_scale);
        // Generators and callers speak (n, c, h, w); the loop is channels-last.
        let [h, w] = request.latent_size;
        let channels = self.meta().pipeline.latent_channels as usize;
        (permute(&latents, [n, channels, h * w]), permute(&noise, [calls * n, channels, h * w]))
    }

    /// Runs the step loop for the images `images`, in place on their latents.
    #[allow(clippy::too_many_arguments)]
    fn denoise<B: Backend>(
        &self,
        backend: &mut B,
        request: &Request,
        table: &Table,
        images: std::ops::Range<usize>,
        latents: &mut [f32],
        noise: &[f32],
        seen: &mut dyn FnMut(Event),
    ) -> Result<()> {
        let conditions = Conditions::new_for(request, &images, self.null_class());
        let shape = self.loop_shape(request, table, images.len(), conditions.classes.len());
        let mut executor = Executor::bind(backend, self.packed, Role::Denoiser, shape)?;
        executor.set_conditions(&conditions.of_sample)?;
        if self.conditional() {
            executor.set_class_labels(&conditions.classes)?;
        }
        executor.set_timesteps(table.rows.iter().map(|r| r.timestep))?;

        let len = latents.len();
        let channels = self.meta().pipeline.latent_channels as usize;
        // Reserved by `loop_shape`: the sampler's rows, its states, the noise of each call.
        let rows = Slot { at: executor.plan().reserved, stride: ROW_FLOATS * 4 };
        let states = Slot { at: rows.of(table.rows.len()), stride: 0 };
        let noise_at =
            Slot { at: states.at + round_up(table.states * len * 4, ALIGN), stride: round_up(len * 4, ALIGN) };
        let copies = if request.guidance_scale > 1.0 { 2 } else { 1 };
        let input = ModelInputArgs { rows, state: states, len, copies, sample: executor.sample() };
        let sampler = SamplerStepArgs {
            rows,
            states,
            n_states: table.states,
            len,
            channels,
            model: executor.plan().output,
            guidance: (copies == 2).then_some(request.guidance_scale),
            noise: table.noise.then_some(noise_at),
        };
        {
            let (backend, arena) = executor.parts();
            backend.write_f32(arena, states.at, latents)?;
            for (call, row) in table.rows.iter().enumerate() {
                backend.write_f32(arena, rows.of(call), &row.encode())?;
            }
            let per_call = request.class_labels.len() * self.latent_len(request);
            for (call, noise) in noise.chunks_exact(per_call.max(1)).enumerate() {
                let first = images.start * self.latent_len(request);
                backend.write_f32(arena, noise_at.of(call), &noise[first..first + len])?;
            }
        }
        for call in 0..table.rows.len() {
            executor.step(call, &input, &sampler)?;
            seen(Event::Step { done: call + 1, total: table.rows.len(), images: images.start });
        }
        let (backend, arena) = executor.parts();
        backend.read_f32(arena, states.at, latents)
    }

    /// Decodes latents `(n, h, w, c)` to images `(n, h, w, 3)` in 0..1, one at a time: an image is work enough for all
    /// threads, and memory does not grow with the batch.
    fn decode<B: Backend>(
        &self,
        backend: &mut B,
        request: &Request,
        latents: &[f32],
        seen: &mut dyn FnMut(Event),
    ) -> Result<(Vec<f32>, [usize; 2])> {
        if !self.decodes() {
            let images = latents.iter().map(|x| (x / 2.0 + 0.5).clamp(0.0, 1.0)).collect();
            return Ok((images, request.latent_size));
        }
        let mut executor = Executor::bind(backend, self.packed, Role::VaeDecoder, self.decode_shape(request))?;
        let &[_, height, width, channels] = executor.plan().output_type.dims() else {
            return Err(Error::request("vae decoder", "a result (n, h, w, c)", "another shape"));
        };
        if channels != 3 {
            return Err(Error::request("vae decoder", "3 colour channels", channels));
        }
        let len = height * width * channels;
        let total = request.class_labels.len();
        let mut images = vec![0.0; total * len];
        for (i, (latents, image)) in
            latents.chunks_exact(self.latent_len(request)).zip(images.chunks_exact_mut(len)).enumerate()
        {
            executor.write_sample(latents)?;
            executor.call(0)?;
            executor.read_output(image)?;
            image.iter_mut().for_each(|x| *x = (*x / 2.0 + 0.5).clamp(0.0, 1.0));
            seen(Event::Decode { done: i + 1, total });
        }
        Ok((images, [height, width]))
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
        class_labels: &[u32],
        timestep: f32,
    ) -> Result<(Vec<f32>, usize)> {
        let n = class_labels.len();
        let mut request = self.request(class_labels.to_vec());
        (request.latent_size, request.steps) = (latent_size, 1);
        request.latents = Some(sample.to_vec());
        self.check(&request)?;
        let [height, width] = latent_size;
        let channels = self.meta().pipeline.latent_channels as usize;
        let shape =
            Shape { dims: Dims { batch: n, conditions: n, height, width }, calls: 1, table_bytes: 0, reserve: 0 };
        let mut executor = Executor::bind(backend, self.packed, Role::Denoiser, shape)?;
        if self.conditional() {
            executor.set_class_labels(class_labels)?;
        }
        executor.set_timesteps([timestep].into_iter())?;
        executor.write_sample(&permute(sample, [n, channels, height * width]))?;
        executor.call(0)?;
        let out = executor.plan().output;
        let mut result = vec![0.0; out.rows * out.cols];
        executor.read_output(&mut result)?;
        Ok((permute(&result, [n, height * width, out.cols]), out.cols))
    }
}

/// The distinct conditions of a batch.
struct Conditions {
    /// Class of each condition.
    classes: Vec<u32>,
    /// Condition of each sample: conditional samples first, then the unconditional ones.
    of_sample: Vec<u32>,
}

impl Conditions {
    fn new(request: &Request, null_class: u32) -> Self {
        Self::new_for(request, &(0..request.class_labels.len()), null_class)
    }

    fn new_for(request: &Request, images: &std::ops::Range<usize>, null_class: u32) -> Self {
        let labels = &request.class_labels[images.clone()];
        let guided = request.guidance_scale > 1.0;
        let mut classes: Vec<u32> = Vec::new();
        let mut number = |class: u32| {
            let found = classes.iter().position(|&c| c == class);
            found.unwrap_or_else(|| {
                classes.push(class);
                classes.len() - 1
            }) as u32
        };
        let mut of_sample: Vec<u32> = labels.iter().map(|&c| number(c)).collect();
        if guided {
            let null = number(null_class);
            of_sample.extend(labels.iter().map(|_| null));
        }
        Conditions { classes, of_sample }
    }

    /// Most conditions in any batch of the request.
    fn most(&self, request: &Request) -> usize {
        let copies = usize::from(request.guidance_scale > 1.0);
        self.classes.len().min(request.batch_size + copies)
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
