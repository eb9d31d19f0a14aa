//! The memory plans of a request: everything it will run, worked out once before anything runs.

use super::conditions::{self, Conditions};
use super::prompts::Prompts;
use super::request::{DECODE_BYTES, Request, Stage};
use super::texts::{self, TokenizedTexts};
use super::{init, tiles};
use crate::backend::MemoryRules;
use crate::backend::args::Guidance;
use crate::error::{Error, Result};
use crate::exec::Moment;
use crate::model::Model;
use crate::plan::{Binding, Plan};
use crate::program::{Dims, Role};
use crate::sampler::Table;
use crate::step::{Guiding, Latents, StepMemory};
use std::ops::Range;

/// The memory plans of a request.
#[derive(Clone, Debug)]
pub struct Plans {
    /// Text encoders, for as many chunks as they read at once at most.
    pub texts: Vec<Plan>,
    /// Denoiser, and refiner if the request reaches it.
    pub denoisers: Vec<Plan>,
    /// Image encoder, if the request begins with an image.
    pub encoder: Option<Plan>,
    /// Decoder, if there is one.
    pub decoder: Option<Plan>,
    /// Images per pass through the denoiser.
    pub batch_size: usize,
    /// Rows and columns of latents that are decoded at once.
    pub tile: [usize; 2],
    /// Rows and columns of latents that are encoded at once.
    pub(super) encoder_tile: [usize; 2],
    /// What the step loop does.
    pub(super) stages: Vec<Stage>,
}

impl Plans {
    /// The calls of the step loop in order: the network, and when it is called.
    pub fn calls(&self) -> impl Iterator<Item = (Role, Moment)> {
        let rows = self.stages.iter().flat_map(|stage| stage.table.rows.iter().map(|row| (stage.role, row)));
        rows.map(|(role, row)| (role, Moment { timestep: row.timestep, fraction: row.fraction }))
    }

    /// The plans of all programs that `request` runs, without running anything; of a model that reads texts, the text encoders
    /// among them.
    ///
    /// # Errors
    /// [`Error::Request`] if the request does not fit the model, or not even one image the memory.
    pub fn new<N: MemoryRules, D: AsRef<[u8]>>(rules: &N, model: &Model<'_, D>, request: &Request) -> Result<Self> {
        request.check(model)?;
        let stages = request.stages(model)?;
        if !rules.thresholds() && stages.iter().any(|stage| stage.table.threshold.is_some()) {
            let expected = "the CPU (--device cpu), which alone has it, or another sampler";
            return Err(Error::request("thresholding", expected, "a CUDA device"));
        }
        let plan = |role: Role, binding: &Binding| Plan::of_role(rules, model.packed(), role, binding);
        let texts = texts::bindings(model, &request.prompts);
        let texts = texts.iter().map(|(role, binding)| plan(*role, binding)).collect::<Result<_>>()?;
        let (batch_size, denoisers) = largest_batch(model, request, &stages, &plan)?;
        for (stage, plan) in stages.iter().zip(&denoisers) {
            let images = plan.binding.dims.batch / request.copies();
            let memory = step_memory(plan.reserved, model, request, &stage.table, images);
            memory.ops(model.packed().program(stage.role)?, plan)?;
        }

        let most = request.max_memory.unwrap_or(DECODE_BYTES);
        let size = request.latent_size;
        let tile = match request.tile {
            _ if !model.decoder => size,
            Some(tile) => size.map(|n| n.min(tile)),
            None => tiles::largest(size, most, &|tile| Ok(plan(Role::VaeDecoder, &decoder_binding(tile))?.arena))?,
        };
        let decoder = model.decoder.then(|| plan(Role::VaeDecoder, &decoder_binding(tile))).transpose()?;
        if let Some(decoder) = &decoder {
            let scale = model.latents.pixels;
            makes(decoder, [1, tile[0] * scale, tile[1] * scale, model.picture_channels()])?;
        }
        let scale = model.latents.pixels;
        let encodes = request.init.is_some() && model.image_encoder.is_some();
        let encoder_plan = |tile| plan(Role::VaeEncoder, &init::binding(tile, scale));
        let encoder_tile = match encodes {
            true => tiles::largest(size, most, &|tile| Ok(encoder_plan(tile)?.arena))?,
            false => size,
        };
        let encoder = encodes.then(|| encoder_plan(encoder_tile)).transpose()?;
        if let Some(encoder) = &encoder {
            makes(encoder, [1, encoder_tile[0], encoder_tile[1], 2 * model.latents.channels])?;
        }
        Ok(Plans { texts, denoisers, encoder, decoder, batch_size, tile, encoder_tile, stages })
    }

    /// The plans of what a job of `request` runs: [`new`](Self::new), with as many tokens as its texts have, and without text encoders
    /// where features are given.
    ///
    /// # Errors
    /// Those of [`new`](Self::new).
    pub fn of<N: MemoryRules, D: AsRef<[u8]>>(rules: &N, model: &Model<'_, D>, request: &Request) -> Result<Self> {
        match &request.prompts {
            Prompts::Texts(texts) => {
                let prompts = Prompts::Embeddings(TokenizedTexts::new(model, texts, request.guided())?.outline());
                Plans::new(rules, model, &Request { prompts, ..request.clone() })
            }
            _ => Plans::new(rules, model, request).map(Plans::without_texts),
        }
    }

    /// The same for prompts that are features already.
    pub(super) fn without_texts(self) -> Self {
        Plans { texts: Vec::new(), ..self }
    }

    /// The plan of the program that takes the most memory, which is all that a run takes at a time
    /// ([`Session::keep_at_most`](super::Session::keep_at_most)).
    pub fn largest(&self) -> &Plan {
        self.all().max_by_key(|plan| plan.footprint.total()).unwrap_or(&self.denoisers[0])
    }

    /// Bytes of memory that [the largest](Self::largest) takes: of its arena and, on a device, of its weights.
    pub fn peak(&self) -> usize {
        self.largest().footprint.total()
    }

    /// Bytes of the largest arena.
    pub fn arena(&self) -> usize {
        self.all().map(|plan| plan.arena).max().unwrap_or(0)
    }

    /// Bytes of all arenas together.
    pub fn total(&self) -> usize {
        self.all().map(|plan| plan.arena).sum()
    }

    /// All plans.
    pub(super) fn all(&self) -> impl Iterator<Item = &Plan> {
        self.texts.iter().chain(&self.denoisers).chain(&self.encoder).chain(&self.decoder)
    }

    /// Model calls of an image, by all networks.
    pub fn steps(&self) -> usize {
        self.stages.iter().map(|stage| stage.table.rows.len()).sum()
    }
}

/// Refuses a program that does not make `dims` at this size; that it does at the model's own is proven when it is opened.
fn makes(plan: &Plan, dims: [usize; 4]) -> Result<()> {
    match plan.output_type.dims() == dims {
        true => Ok(()),
        false => {
            let (path, got) = (plan.role.name(), format!("{:?}", plan.output_type.dims()));
            Err(Error::shape(path, "result", format!("{dims:?}"), got))
        }
    }
}

/// The most images per pass that the request allows and that fit its memory, and the plans for them.
fn largest_batch<D: AsRef<[u8]>>(
    model: &Model<'_, D>,
    request: &Request,
    stages: &[Stage],
    plan: &impl Fn(Role, &Binding) -> Result<Plan>,
) -> Result<(usize, Vec<Plan>)> {
    let total = request.prompts.len();
    let most = request.batch_size.min(total);
    let mut needed = 0;
    for n in (1..=most).rev() {
        let mut plans = Vec::new();
        for [tokens, images, conditions] in batch_sizes(model, request, n) {
            let binding = |stage| loop_binding(model, request, stage, images, conditions, tokens);
            let these = stages.iter().map(|stage| plan(stage.role, &binding(stage))).collect::<Result<Vec<_>>>()?;
            if largest(&these) > largest(&plans) {
                plans = these;
            }
        }
        needed = largest(&plans);
        if request.max_memory.is_none_or(|most| needed <= most) {
            return Ok((n, plans));
        }
    }
    let most = request.max_memory.unwrap_or_default();
    let needed = needed.max(largest(&smallest_tiles(model, request, plan)?));
    let fits = |plan: &Plan| plan.arena <= most;
    let instead = [
        most_frames(model, request, stages, plan, &fits)?.map(|frames| format!("--frames {frames}")),
        largest_size(model, request, stages, plan, &fits)?.map(|[h, w]| format!("-W {w} -H {h}")),
    ];
    let instead: Vec<String> = instead.into_iter().flatten().collect();
    let one = match request.frames {
        1 => "one image".to_owned(),
        frames => format!("a video of {frames} frames"),
    };
    let expected = match instead.is_empty() {
        true => format!("at least {needed} bytes for {one}"),
        false => format!("at least {needed} bytes for {one}, or {}, which fits", instead.join(" or ")),
    };
    Err(Error::memory("memory", expected, most))
}

/// The plans for the smallest tiles of what `request` encodes and decodes: less than they take is never enough.
fn smallest_tiles<D: AsRef<[u8]>>(
    model: &Model<'_, D>,
    request: &Request,
    plan: &impl Fn(Role, &Binding) -> Result<Plan>,
) -> Result<Vec<Plan>> {
    let tile = request.latent_size.map(|side| side.min(request.tile.unwrap_or(tiles::STEP)));
    let decodes = model.decoder.then(|| (Role::VaeDecoder, decoder_binding(tile)));
    let encodes = request.init.is_some() && model.image_encoder.is_some();
    let encodes = encodes.then(|| (Role::VaeEncoder, init::binding(tile, model.latents.pixels)));
    decodes.iter().chain(&encodes).map(|(role, binding)| plan(*role, binding)).collect()
}

/// Whether one image or video of `request` fits: its loop, and its decoder with the smallest tiles.
fn one_fits<D: AsRef<[u8]>>(
    model: &Model<'_, D>,
    request: &Request,
    stages: &[Stage],
    plan: &impl Fn(Role, &Binding) -> Result<Plan>,
    fits: &dyn Fn(&Plan) -> bool,
) -> Result<bool> {
    let mut all = smallest_tiles(model, request, plan)?.iter().all(fits);
    for [tokens, images, conditions] in batch_sizes(model, request, 1) {
        for stage in stages {
            let binding = loop_binding(model, request, stage, images, conditions, tokens);
            all = all && fits(&plan(stage.role, &binding)?);
        }
    }
    Ok(all)
}

/// The largest number from 1 to below `all` that `fits`, which holds of all numbers below one of which it does; none if not even 1
/// does.
fn largest_fit(all: usize, fits: impl Fn(usize) -> Result<bool>) -> Result<Option<usize>> {
    let (mut fit, mut too_many) = (0, all);
    while fit + 1 < too_many {
        let middle = fit.midpoint(too_many);
        match fits(middle)? {
            true => fit = middle,
            false => too_many = middle,
        }
    }
    Ok((fit > 0).then_some(fit))
}

/// The most frames, fewer than those of `request`, of which one video `fits`; none if not even one frame does.
fn most_frames<D: AsRef<[u8]>>(
    model: &Model<'_, D>,
    request: &Request,
    stages: &[Stage],
    plan: &impl Fn(Role, &Binding) -> Result<Plan>,
    fits: &dyn Fn(&Plan) -> bool,
) -> Result<Option<usize>> {
    let of = |frames| Request { frames, latents: None, ..request.clone() };
    largest_fit(request.frames, |frames| one_fits(model, &of(frames), stages, plan, fits))
}

/// Height and width in pixels of the largest images or videos, smaller than those of `request` and of about the same ratio, of
/// which one `fits`; none if no size does, or the size is not free.
fn largest_size<D: AsRef<[u8]>>(
    model: &Model<'_, D>,
    request: &Request,
    stages: &[Stage],
    plan: &impl Fn(Role, &Binding) -> Result<Plan>,
    fits: &dyn Fn(&Plan) -> bool,
) -> Result<Option<[usize; 2]>> {
    if request.latents.is_some() || request.init.is_some() || request.picture_size.is_some() {
        return Ok(None);
    }
    let multiple = model.latents.multiple;
    let longest = request.latent_size[0].max(request.latent_size[1]) / multiple;
    let scaled = |n: usize| request.latent_size.map(|side| (side * n / longest / multiple).max(1) * multiple);
    let of = |n| Request { latent_size: scaled(n), ..request.clone() };
    let found = largest_fit(longest, |n| one_fits(model, &of(n), stages, plan, fits))?;
    Ok(found.map(|n| scaled(n).map(|side| side * model.latents.pixels)))
}

/// The `error` that the device, which has `free` bytes, has not the memory for `request`; with what would fit if it is of videos,
/// unless its texts fit as little.
pub(super) fn short_of_memory<N: MemoryRules, D: AsRef<[u8]>>(
    rules: &N,
    model: &Model<'_, D>,
    (request, plans): (&Request, &Plans),
    free: usize,
    error: Error,
) -> Error {
    let fits = |plan: &Plan| plan.footprint.total() <= free;
    let plan = |role: Role, binding: &Binding| Plan::of_role(rules, model.packed(), role, binding);
    if !plans.texts.iter().all(fits) {
        return error;
    }
    match most_frames(model, request, &plans.stages, &plan, &fits) {
        Ok(Some(fit)) => {
            let what = format!("memory for {} frames", request.frames);
            Error::memory(what, format!("no more than --frames {fit}"), error)
        }
        _ => error,
    }
}

fn largest(plans: &[Plan]) -> usize {
    plans.iter().map(|plan| plan.arena).max().unwrap_or(0)
}

/// The batch of at most `most` images that begins with image `first`: those that follow it and, unless the denoiser is told
/// how long prompts are, have prompts of as many tokens, since all samples of a call have as many.
pub(super) fn batch<D>(model: &Model<'_, D>, prompts: &Prompts, first: usize, most: usize) -> Range<usize> {
    let end = (first + most).min(prompts.len());
    if model.text.as_ref().is_some_and(|text| text.lengths) {
        return first..end;
    }
    let other = (first + 1..end).find(|&i| prompts.tokens(i) != prompts.tokens(first));
    first..other.unwrap_or(end)
}

/// Refuses images whose prompts cannot be read by one call.
pub(super) fn check_together<D>(model: &Model<'_, D>, prompts: &Prompts, images: Range<usize>) -> Result<()> {
    let other = batch(model, prompts, images.start, images.len()).end;
    if other == images.end {
        return Ok(());
    }
    let expected = format!("as many tokens in all, such as {}", prompts.tokens(images.start));
    Err(Error::request("prompts", expected, prompts.tokens(other)))
}

/// For each number of tokens: the tokens, and the most images and distinct conditions of batches of at most `most` images.
fn batch_sizes<D>(model: &Model<'_, D>, request: &Request, most: usize) -> Vec<[usize; 3]> {
    let mut sizes: Vec<[usize; 3]> = Vec::new();
    let mut first = 0;
    while first < request.prompts.len() {
        let images = batch(model, &request.prompts, first, most);
        first = images.end;
        let n = images.len();
        let list = conditions(model, request, images).list;
        let (tokens, conditions) = (conditions::tokens(&list, &request.prompts), list.len());
        match sizes.iter_mut().find(|size| size[0] == tokens) {
            Some(size) => *size = [tokens, size[1].max(n), size[2].max(conditions)],
            None => sizes.push([tokens, n, conditions]),
        }
    }
    sizes
}

/// The distinct conditions of a batch.
pub(super) fn conditions<D>(model: &Model<'_, D>, request: &Request, images: std::ops::Range<usize>) -> Conditions {
    let null_class = model.classes.as_ref().map_or(0, |classes| classes.null);
    Conditions::new(&request.prompts, images, request.guided(), null_class)
}

/// What the network of `stage` is bound to for a batch of `images` with so many distinct conditions of so many tokens.
pub(super) fn loop_binding<D>(
    model: &Model<'_, D>,
    request: &Request,
    stage: &Stage,
    images: usize,
    conditions: usize,
    tokens: usize,
) -> Binding {
    let [height, width] = request.latent_size;
    Binding {
        dims: Dims { batch: images * request.copies(), conditions, height, width, tokens, frames: request.frames },
        calls: stage.table.rows.len(),
        table_bytes: request.table_bytes,
        reserve: step_memory(0, model, request, &stage.table, images).bytes,
    }
}

/// The places of a batch's run from byte `at` of the arena.
pub(super) fn step_memory<D>(
    at: usize,
    model: &Model<'_, D>,
    request: &Request,
    table: &Table,
    images: usize,
) -> StepMemory {
    let blend = request.init.as_ref().is_some_and(|init| init.mask.is_some());
    let channels = model.guided_channels;
    let guidance = request.guided().then_some(Guidance { scale: request.guidance_scale, channels });
    let guiding = Guiding { guidance, rescale: request.guidance_rescale, blend };
    let latents = Latents { images, pixels: request.latent_pixels(), channels: model.latents.channels };
    StepMemory::new(at, table, latents, guiding)
}

/// What a decoder is bound to for one tile of latents.
pub(super) fn decoder_binding([height, width]: [usize; 2]) -> Binding {
    let dims = Dims { height, width, ..Dims::ONE };
    Binding { dims, calls: 1, table_bytes: 0, reserve: 0 }
}
