//! The step loop: denoiser, guidance, sampler; then, perhaps, the refiner for the last steps.

use super::init::Begin;
use super::subject::{Conditions, Inputs};
use super::{Event, Pipeline, Request};
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::exec::{Executor, Moment};
use crate::format::meta::Conditioning;
use crate::plan::Binding;
use crate::program::{Dims, Role};
use crate::sampler::{Span, Start, Table};
use crate::step::{Guiding, Latents, StepMemory};
use std::ops::Range;

/// A run of model calls by one network.
#[derive(Clone, Debug)]
pub(super) struct Stage {
    /// Which.
    pub role: Role,
    /// Its calls.
    pub table: Table,
}

/// What a run is given beside its initial latents.
pub(super) struct Given {
    /// Noise of all calls of all stages for all images, `(calls, n, ..)`; empty if no call adds any.
    pub noise: Vec<f32>,
    /// The picture it begins with.
    pub begin: Option<Begin>,
}

impl<'m, D: AsRef<[u8]>> Pipeline<'m, D> {
    /// The stages of `request`.
    pub(super) fn stages(&self, request: &Request) -> Result<Vec<Stage>> {
        let start = request.init.as_ref().map_or(Start::Noise, |init| Start::Strength(init.strength));
        let refined = self.meta().pipeline.refiner.is_some() && request.handover < 1.0;
        let span = Span { start, end: refined.then_some(request.handover) };
        let mut stages =
            vec![Stage { role: Role::Denoiser, table: request.sampler.table_range(request.steps, &span)? }];
        if refined {
            let span = Span { start: Start::Fraction(request.handover), end: None };
            stages.push(Stage { role: Role::Refiner, table: request.sampler.table_range(request.steps, &span)? });
        }
        Ok(stages)
    }

    /// What the network of `role` reads of prompts.
    fn conditioning(&self, role: Role) -> Option<&'m Conditioning> {
        let p = &self.meta().pipeline;
        match role {
            Role::Refiner => p.refiner.as_ref(),
            _ => p.text.as_ref().map(|text| &text.denoiser),
        }
    }

    /// Writes what `conditions` are into the inputs of `executor`.
    pub(super) fn set_conditions<B: Backend>(
        &self,
        executor: &mut Executor<'_, B>,
        request: &Request,
        role: Role,
        conditions: &Conditions,
    ) -> Result<()> {
        executor.set_conditions(&conditions.of_sample)?;
        let size = self.pixels(request);
        let inputs = Inputs::new(&conditions.list, &request.subjects, self.conditioning(role), size)?;
        executor.set_prompt(&inputs.for_program(executor.program()))
    }

    /// What the network of `stage` is bound to for a batch of `images` with so many distinct conditions.
    pub(super) fn loop_shape(&self, request: &Request, stage: &Stage, images: usize, conditions: usize) -> Binding {
        let [height, width] = request.latent_size;
        let copies = if request.guidance_scale > 1.0 { 2 } else { 1 };
        Binding {
            dims: Dims { batch: images * copies, conditions, height, width, tokens: request.subjects.tokens() },
            calls: stage.table.rows.len(),
            table_bytes: request.table_bytes,
            reserve: self.step_memory(0, request, &stage.table, images).bytes,
        }
    }

    /// The places of a batch's run from byte `at` of the arena.
    fn step_memory(&self, at: usize, request: &Request, table: &Table, images: usize) -> StepMemory {
        let [height, width] = request.latent_size;
        let channels = self.meta().pipeline.latent_channels as usize;
        let scale = (request.guidance_scale > 1.0).then_some(request.guidance_scale);
        let blend = request.init.as_ref().is_some_and(|init| init.mask.is_some());
        let guiding = Guiding { scale, rescale: request.guidance_rescale, blend };
        StepMemory::new(at, table, Latents { images, pixels: height * width, channels }, guiding)
    }

    /// Runs the step loop for the images `images`, in place on their latents `(n, h, w, c)`.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn denoise<B: Backend>(
        &self,
        backend: &mut B,
        request: &Request,
        stages: &[Stage],
        images: Range<usize>,
        latents: &mut [f32],
        given: &Given,
        seen: &mut dyn FnMut(Event),
    ) -> Result<()> {
        let total = stages.iter().map(|s| s.table.rows.len()).sum();
        let per_call = request.subjects.len() * self.latent_len(request);
        let mut first = 0;
        for stage in stages {
            let calls = stage.table.rows.len();
            let noise = given.noise.get(first * per_call..).unwrap_or(&[]);
            let mut step = |done| seen(Event::Step { done: first + done, total, images: images.start });
            self.run_stage(backend, request, stage, images.clone(), latents, (noise, &given.begin), &mut step)?;
            first += calls;
        }
        Ok(())
    }

    #[allow(clippy::too_many_arguments)]
    fn run_stage<B: Backend>(
        &self,
        backend: &mut B,
        request: &Request,
        stage: &Stage,
        images: Range<usize>,
        latents: &mut [f32],
        (noise, begin): (&[f32], &Option<Begin>),
        seen: &mut dyn FnMut(usize),
    ) -> Result<()> {
        let table = &stage.table;
        let conditions = self.conditions(request, images.clone());
        let shape = self.loop_shape(request, stage, images.len(), conditions.list.len());
        let mut executor = Executor::new(backend, self.packed, stage.role, shape)?;
        self.set_conditions(&mut executor, request, stage.role, &conditions)?;
        executor.set_moments(table.rows.iter().map(|r| Moment { timestep: r.timestep, fraction: r.fraction }))?;

        // Reserved by `loop_shape`.
        let memory = self.step_memory(executor.plan().reserved, request, table, images.len());
        let (input, step) = memory.ops(executor.program(), executor.plan())?;
        if table.learned() && step.model.cols != 2 * step.channels {
            let expected = format!("a model with {} outputs, half of them variances", 2 * step.channels);
            return Err(Error::request("variance_type learned_range", expected, step.model.cols));
        }
        {
            let (backend, arena) = executor.parts();
            backend.write_f32(arena, memory.states.at, latents)?;
            for (call, row) in table.rows.iter().enumerate() {
                backend.write_f32(arena, memory.rows.of(call), &row.encode())?;
            }
            // This batch's part of what is there for all images.
            let part = images.start * self.latent_len(request)..images.end * self.latent_len(request);
            if let Some(at) = memory.noise {
                let per_call = request.subjects.len() * self.latent_len(request);
                for (call, noise) in noise.chunks_exact(per_call).take(table.rows.len()).enumerate() {
                    backend.write_f32(arena, at.of(call), &noise[part.clone()])?;
                }
            }
            if let (Some(at), Some(begin)) = (memory.blend, begin) {
                backend.write_f32(arena, at.mask.at, &begin.mask.repeat(images.len()))?;
                backend.write_f32(arena, at.init.at, &begin.clean[part.clone()])?;
                backend.write_f32(arena, at.noise.at, &begin.noise[part])?;
            }
        }
        for call in 0..table.rows.len() {
            executor.step(call, &input, &step)?;
            seen(call + 1);
        }
        let (backend, arena) = executor.parts();
        backend.read_f32(arena, memory.states.at, latents)
    }
}
