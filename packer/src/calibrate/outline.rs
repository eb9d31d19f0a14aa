//! What is known of a calibration before any image is made: images, inputs, groups of them, the bill, and the record that
//! the file will have.

use super::Settings;
use super::hash::share;
use super::inputs::{Inputs, LayerInput, is_text};
use super::partial::call_record;
use super::record::{InputRecord, ModelRecord, Record, RunRecord, Second, Shards, VERSION, When};
use super::samples::{self, conditions};
use super::states::{States, choose};
use super::sums::{Rows, Sums, kernel};
use super::texts::{self, EncoderTexts};
use crate::error::Result;
use aquatint::Model;
use aquatint::error::Error;
use aquatint::pipeline::{NoiseSource, Prompts, Request, Session};
use aquatint::raw::backend::cpu::Cpu;
use aquatint::raw::format::Packed;
use aquatint::raw::mmap::FileBytes;
use aquatint::raw::plan::{Binding, Plan};
use aquatint::raw::program::{Dims, Rate, Role};
use aquatint::shard::Shard;
use serde::Serialize;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use xxhash_rust::xxh3::xxh3_128;

/// Rows of an input: as many per value of a row, and at least so many, are kept.
const ROWS: [u64; 2] = [32, 32_768];
/// Rows per value of a row below which second moments are poor.
pub const ENOUGH: f64 = 8.0;

/// What a calibration will cost.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Bill {
    /// Images to be looked at.
    pub images: usize,
    /// Calls of a whole run of an image.
    pub run_calls: usize,
    /// Calls of an image that are looked at, in each replay.
    pub calls: usize,
    /// How often they are made: once per group of inputs.
    pub replays: usize,
    /// Arithmetic operations of one call of one image, guidance included.
    pub operations: f64,
    /// Bytes of the sums of the largest group.
    pub memory: usize,
    /// Bytes that the networks work in.
    pub arena: usize,
    /// Bytes of the file.
    pub file_bytes: usize,
}

/// What is known before the work.
pub struct Outline<'a, 'm> {
    settings: &'a Settings,
    model: &'m Model<'m, FileBytes>,
    /// All images, as they were asked for.
    pub asked: Request,
    /// The same, with features where there were texts.
    pub request: Request,
    /// The numbers of the images of this shard.
    pub images: Vec<usize>,
    /// What the values are looked at for that depend on conditions alone, and the numbers of its images of this shard.
    pub tables: (Request, Vec<usize>),
    /// Samples of an image in a call.
    pub copies: usize,
    /// The class of none.
    pub null: u32,
    /// The texts that encoders read.
    pub texts: Vec<EncoderTexts>,
    /// The inputs of layers.
    pub inputs: Inputs,
    /// The inputs that are looked at in one replay.
    pub groups: Vec<Range<usize>>,
    /// The packed file whose own run gives the states.
    pub trajectory: Option<Packed<FileBytes>>,
    /// What all of it will cost.
    pub bill: Bill,
}

impl<'a, 'm> Outline<'a, 'm> {
    /// That of images that were `asked` for, with features `prompts` where there were texts.
    ///
    /// # Errors
    /// If the model cannot make them, or the file of the trajectory is of another model.
    pub fn new(
        settings: &'a Settings,
        model: &'m Model<'m, FileBytes>,
        asked: Request,
        prompts: Prompts,
    ) -> Result<Self> {
        let (request, copies) = (samples::with(&asked, prompts), if asked.guidance_scale > 1.0 { 2 } else { 1 });
        let shard = settings.shard.unwrap_or(Shard { index: 0, of: 1 });
        let images: Vec<usize> = (shard.index..settings.images).step_by(shard.of).collect();
        let texts = texts::read(model, &asked, &images, copies)?;
        let tokens = (0..settings.images).map(|i| request.prompts.tokens(i)).max().unwrap_or(1);
        let ([height, width], frames) = (request.latent_size, request.frames);
        let inputs = Inputs::new(model.packed(), Dims { height, width, tokens, frames, ..Dims::ONE }, settings.dense)?;
        let plans = Session::new(model, &Cpu::best()).plans(&request)?;
        let run_calls = plans.steps();
        let calls = choose(run_calls, settings.calls).len();
        let bytes = |input: &LayerInput| Sums::bytes(&input.rows, calls_of(input, run_calls, calls));
        let sizes: Vec<usize> = inputs.list.iter().map(bytes).collect();
        let groups = groups(&sizes, settings.memory);
        let trajectory = settings.trajectory.as_deref().map(|path| trajectory(path, model.packed())).transpose()?;
        let bill = Bill {
            images: images.len(),
            run_calls,
            calls,
            replays: groups.len(),
            operations: operations(model.packed(), &request, copies)?,
            memory: groups.iter().map(|group| sizes[group.clone()].iter().sum()).max().unwrap_or(0),
            arena: plans.denoisers.iter().chain(&plans.texts).map(|plan| plan.arena).max().unwrap_or(0),
            file_bytes: sizes.iter().sum(),
        };
        let null = model.classes.as_ref().map_or(0, |classes| classes.null);
        let widest =
            inputs.list.iter().filter(|input| when(input) == When::Call).map(|input| input.rows.inputs()).max();
        let wanted = (ENOUGH as usize * widest.unwrap_or(0)).div_ceil(run_calls);
        let conditions = samples::conditions_of(settings, model, &request.prompts, wanted);
        let of_shard = (shard.index..conditions.len()).step_by(shard.of).collect();
        let tables = (samples::with(&request, conditions), of_shard);
        Ok(Outline {
            settings,
            model,
            asked,
            request,
            images,
            tables,
            copies,
            null,
            texts,
            inputs,
            groups,
            trajectory,
            bill,
        })
    }

    /// The record of the file.
    pub fn record(&self, states: &States) -> Record {
        let shard = self.settings.shard.unwrap_or(Shard { index: 0, of: 1 });
        let request = &self.asked;
        let inputs = self.inputs.list.iter().map(|input| self.input(input, states)).collect();
        let mut record = Record {
            version: VERSION,
            tool: concat!("packer ", env!("CARGO_PKG_VERSION")).into(),
            model: ModelRecord::new(self.model.meta(), &[]),
            run: RunRecord {
                images: self.settings.images,
                steps: request.steps,
                sampler: request.sampler.clone(),
                guidance_scale: request.guidance_scale,
                seed: request.seed,
                noise: noise(request.noise).into(),
                prompts: (0..self.settings.images)
                    .map(|i| request.prompts.describe(i, self.model)[0].clone())
                    .collect(),
                conditions: self.tables.0.prompts.len(),
                trajectory: self.trajectory.as_ref().map(|packed| format!("{:032x}", packed.hash())),
                calls: states.calls.iter().map(call_record).collect(),
                chosen: states.chosen.clone(),
            },
            shards: Shards { of: shard.of, parts: vec![shard.index] },
            inputs,
            layers: self.inputs.layers.clone(),
        };
        record.model = ModelRecord::new(self.model.meta(), &record.components());
        record
    }

    fn input(&self, input: &LayerInput, states: &States) -> InputRecord {
        let when = when(input);
        let looks = match when {
            When::Prompt => 1,
            When::Call => states.calls.iter().filter(|call| call.role == input.role).count(),
            When::Sample => states.chosen.iter().filter(|&&call| states.calls[call].role == input.role).count(),
        };
        let units = match when {
            _ if is_text(input.role) => 0,
            When::Sample => self.settings.images * self.copies,
            When::Prompt | When::Call => self.conditions(0..self.tables.0.prompts.len()).len(),
        };
        let texts = self.texts.iter().filter(|texts| texts.role == input.role);
        let of_texts: usize = texts.flat_map(|texts| texts.chunks().map(|chunk| chunk.rows(input.unit_rows))).sum();
        let rows = (looks * units * input.unit_rows + of_texts) as u64;
        let k = input.rows.inputs() as u64;
        let most = (ROWS[0] * k).max(ROWS[1]);
        let toeplitz = matches!(input.rows, Rows::Displacements(_));
        InputRecord {
            role: input.role.name().into(),
            value: input.value.0,
            when,
            channels: input.rows.channels(),
            kernel: kernel(&input.rows),
            second: if toeplitz { Second::Toeplitz } else { Second::Dense },
            calls: calls_of(input, states.calls.len(), states.chosen.len()),
            share: if toeplitz { None } else { share(rows, most) },
        }
    }

    /// How many of the images `images` of [`tables`](Self::tables) have each condition.
    pub fn conditions(&self, images: impl Iterator<Item = usize>) -> BTreeMap<usize, f32> {
        let mut counts = BTreeMap::new();
        for i in images {
            let conditions = conditions(&self.tables.0.prompts, i, self.null);
            conditions[..self.copies].iter().for_each(|&key| *counts.entry(key).or_default() += 1.0);
        }
        counts
    }

    /// A name for all that decides about the numbers.
    pub fn identity(&self) -> String {
        let (settings, request) = (self.settings, &self.asked);
        let numbers = [settings.calls, settings.images, settings.memory, settings.dense, request.steps];
        let shard = settings.shard.map(|shard| [shard.index, shard.of]);
        let all = format!(
            "{} {VERSION} {:032x} {:?} {numbers:?} {shard:?} {} {} {} {:?} {:?} {:?}",
            env!("CARGO_PKG_VERSION"),
            self.model.packed().hash(),
            self.trajectory.as_ref().map(Packed::hash),
            request.guidance_scale,
            request.seed,
            noise(request.noise),
            request.sampler,
            request.latent_size,
            request.prompts,
        );
        format!("{:032x}", xxh3_128(all.as_bytes()))
    }
}

/// When an input is looked at.
fn when(input: &LayerInput) -> When {
    match input.rate {
        _ if is_text(input.role) => When::Prompt,
        Rate::Loop => When::Sample,
        Rate::Step => When::Call,
        Rate::Bind | Rate::Prompt => When::Prompt,
    }
}

/// Calls that an input's ranges are of, in runs of `run` calls of which `chosen` are looked at.
fn calls_of(input: &LayerInput, run: usize, chosen: usize) -> usize {
    match when(input) {
        When::Prompt => 1,
        When::Call => run,
        When::Sample => chosen,
    }
}

/// The name of a source of noise.
fn noise(source: NoiseSource) -> &'static str {
    match source {
        NoiseSource::Fast => "fast",
        NoiseSource::Torch => "torch",
        NoiseSource::TorchEach => "torch-each",
    }
}

/// Runs of inputs whose sums have at most `memory` bytes together, or one input each.
fn groups(sizes: &[usize], memory: usize) -> Vec<Range<usize>> {
    let mut groups = Vec::new();
    let (mut first, mut bytes) = (0, 0usize);
    for (i, size) in sizes.iter().enumerate() {
        if i > first && bytes + size > memory {
            groups.push(first..i);
            (first, bytes) = (i, 0);
        }
        bytes += size;
    }
    groups.push(first..sizes.len());
    groups
}

/// Opens the packed file whose own run gives the states: one of the same model as `float`.
fn trajectory(path: &Path, float: &Packed<FileBytes>) -> Result<Packed<FileBytes>> {
    let packed = aquatint::open(path)?;
    let components: Vec<&str> =
        float.meta().quantization.layers.iter().filter_map(|l| Some(l.name.split_once('/')?.0)).collect();
    let [own, other] = [float, &packed].map(|packed| ModelRecord::new(packed.meta(), &components).weights);
    if own != other {
        let expected = format!("a file packed from the weights of {}", float.meta().pipeline.name);
        let got = format!("one of {} from others", packed.meta().pipeline.name);
        return Err(Error::request(format!("--trajectory {}", path.display()), expected, got).into());
    }
    Ok(packed)
}

/// Arithmetic operations of one call of one image by the denoiser, in its first phase.
pub(crate) fn operations(packed: &Packed<FileBytes>, request: &Request, copies: usize) -> Result<f64> {
    let ([height, width], frames) = (request.latent_size, request.frames);
    let tokens = request.prompts.tokens(0);
    let dims = Dims { batch: copies, conditions: copies, height, width, tokens, frames };
    let plan =
        Plan::of_role(&Cpu::best(), packed, Role::Denoiser, &Binding { dims, calls: 1, table_bytes: 0, reserve: 0 })?;
    Ok(plan.phases[0].ops[Rate::Loop as usize].iter().map(|planned| planned.op.operations()).sum())
}
