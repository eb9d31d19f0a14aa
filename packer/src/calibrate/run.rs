//! The work of a calibration: states first, then sums, group by group.

use super::file;
use super::hash::share;
use super::inputs::{Inputs, LayerInput};
use super::look::{Group, Scene};
use super::model::FloatModel;
use super::partial::{Partial, call_record};
use super::record::{InputRecord, ModelRecord, Record, RunRecord, Second, Shards, VERSION, When};
use super::samples::{self, conditions};
use super::states::{self, States, choose};
use super::sums::{Accumulator, Rows, Sums, kernel};
use super::{Settings, Shard};
use crate::emit::Progress;
use crate::error::Result;
use aquatint::error::Error;
use aquatint::pipeline::{NoiseSource, Request, Session};
use aquatint::raw::backend::cpu::Cpu;
use aquatint::raw::format::Packed;
use aquatint::raw::mmap::FileBytes;
use aquatint::raw::plan::{Binding, Plan};
use aquatint::raw::program::{Dims, Rate, Role};
use aquatint::raw::whole_file::check_target;
use aquatint::{Model, open};
use serde::Serialize;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::time::Instant;
use xxhash_rust::xxh3::xxh3_128;

/// Bytes of rows that wait to be added at most.
pub(super) const PENDING: usize = 256 << 20;
/// Rows of an input: as many per value of a row, and at least so many, are kept.
const ROWS: [u64; 2] = [32, 32_768];
/// Rows per value of a row below which second moments are poor.
const ENOUGH: f64 = 8.0;

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
    /// Bytes of the file.
    pub file_bytes: usize,
}

/// What happens.
#[derive(Debug)]
pub enum Event<'a> {
    /// The model is packed as f32.
    Packing(Progress<'a>),
    /// What is to come, before it begins.
    Bill(Bill),
    /// Work of an earlier, interrupted command was found and is gone on with.
    Resumed(&'a Path),
    /// Something that a person should know.
    Note(String),
    /// Calls of images that are done, and all.
    Done(f64, f64),
    /// Work was saved.
    Saved,
}

/// What was done.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The file.
    pub bill: Bill,
    /// Inputs of layers.
    pub inputs: usize,
    /// Layers.
    pub layers: usize,
    /// Layers whose inputs had fewer rows than second moments need.
    pub starved: Vec<String>,
    /// Seconds in all.
    pub seconds: f64,
    /// Seconds of the runs.
    pub run_seconds: f64,
    /// Seconds of the calls that were looked at, and of sums.
    pub sum_seconds: f64,
}

/// Calibrates as `settings` say; `see` is shown what happens, and may end the work by saying false: the same call goes on
/// where it was [saved](Event::Saved) last.
///
/// # Errors
/// Whatever is wrong with the model, the settings or the output, before anything appears at the output.
pub fn calibrate(settings: &Settings, see: &mut dyn FnMut(Event<'_>) -> bool) -> Result<Report> {
    let begin = Instant::now();
    let inputs = [Some(&settings.model), settings.prompts.as_ref(), settings.trajectory.as_ref()];
    let inputs: Vec<&Path> = inputs.into_iter().flatten().map(|path| path.as_path()).collect();
    check_target(&settings.output, &inputs)?;
    check(settings)?;
    let float = FloatModel::open(settings, &mut |progress| {
        see(Event::Packing(progress));
    })?;
    let model = Model::new(&float.packed)?;
    let request = samples::request(settings, &model)?;
    let cpu = Cpu::best();
    let mut work = Work::new(settings, &model, &cpu, request, see)?;
    let states = work.states()?;
    let run_seconds = begin.elapsed().as_secs_f64();
    let mut report = work.sum(states)?;
    report.seconds = begin.elapsed().as_secs_f64();
    (report.run_seconds, report.sum_seconds) = (run_seconds, report.seconds - run_seconds);
    Ok(report)
}

/// Refuses numbers that mean nothing.
fn check(settings: &Settings) -> Result<()> {
    let numbers = [
        ("cali-st", settings.calls),
        ("cali-n", settings.images),
        ("cali-batch", settings.batch),
        ("cali-memory", settings.memory),
    ];
    if let Some((option, _)) = numbers.iter().find(|(_, n)| *n == 0) {
        return Err(Error::request(*option, "at least 1", 0).into());
    }
    if let Some(Shard { index, of }) = settings.shard {
        let n = settings.images;
        if index >= of || of > n {
            let expected = format!("K/N with K below N, and N at most the {n} images");
            return Err(Error::request("shard", expected, format!("{index}/{of}")).into());
        }
    }
    Ok(())
}

/// Everything that the work needs.
struct Work<'a, 'm> {
    settings: &'a Settings,
    model: &'m Model<'m, FileBytes>,
    session: Session<'m, Cpu, FileBytes>,
    /// All images, as they were asked for.
    asked: Request,
    /// The same, with features where there were texts.
    request: Request,
    /// The numbers of the images of this shard.
    images: Vec<usize>,
    inputs: Inputs,
    /// The inputs that are looked at in one replay.
    groups: Vec<Range<usize>>,
    /// The packed file whose own run gives the states.
    trajectory: Option<Packed<FileBytes>>,
    partial: Partial,
    bill: Bill,
    saved: Instant,
    see: &'a mut dyn FnMut(Event<'_>) -> bool,
}

impl<'a, 'm> Work<'a, 'm> {
    /// Works out all that comes, and says so.
    fn new(
        settings: &'a Settings,
        model: &'m Model<'m, FileBytes>,
        cpu: &'m Cpu,
        asked: Request,
        see: &'a mut dyn FnMut(Event<'_>) -> bool,
    ) -> Result<Self> {
        let (prompts, cut) = states::encoded(&mut Session::new(model, cpu), &asked)?;
        for part in cut {
            see(Event::Note(format!("a prompt is longer than the text encoder reads at once; cut off: {part:?}")));
        }
        let request = samples::with(&asked, prompts);
        let shard = settings.shard.unwrap_or(Shard { index: 0, of: 1 });
        let images: Vec<usize> = (shard.index..settings.images).step_by(shard.of).collect();
        let tokens = (0..settings.images).map(|i| request.prompts.tokens(i)).max().unwrap_or(1);
        let inputs = Inputs::new(model.packed(), request.latent_size, tokens, settings.dense)?;
        let session = Session::new(model, cpu);
        let one = samples::with(&request, samples::part(&request.prompts, &images[..1]));
        let run_calls = session.plans(&one)?.steps();
        let sizes: Vec<usize> = inputs.list.iter().map(|input| Sums::bytes(&input.rows, run_calls)).collect();
        let groups = groups(&sizes, settings.memory);
        let trajectory = settings.trajectory.as_deref().map(|path| trajectory(path, model.packed())).transpose()?;
        let bill = Bill {
            images: images.len(),
            run_calls,
            calls: choose(run_calls, settings.calls).len(),
            replays: groups.len(),
            operations: operations(model.packed(), &request)?,
            memory: groups.iter().map(|group| sizes[group.clone()].iter().sum()).max().unwrap_or(0),
            file_bytes: sizes.iter().sum(),
        };
        let identity = identity(settings, model.packed(), &asked, trajectory.as_ref());
        let partial = Partial::open(&settings.output, identity)?;
        if partial.resumed {
            see(Event::Resumed(partial.folder()));
        }
        see(Event::Bill(bill));
        let saved = Instant::now();
        Ok(Work {
            settings,
            model,
            session,
            asked,
            request,
            images,
            inputs,
            groups,
            trajectory,
            partial,
            bill,
            saved,
            see,
        })
    }

    /// Runs the images and keeps the states before the calls that are looked at.
    fn states(&mut self) -> Result<States> {
        let chosen = choose(self.bill.run_calls, self.settings.calls);
        let len = self.model.latents.len(self.request.latent_size);
        let mut states = States { samples: vec![Vec::new(); chosen.len()], chosen, ..States::default() };
        self.partial.read_states(&mut states, len)?;
        let (calls, all, n) = (self.bill.run_calls as f64, total(&self.bill), self.images.len());
        let (partial, see, saved, every) = (&self.partial, &mut self.see, &mut self.saved, self.settings.save_every);
        let mut tell = |states: &States, done: f64, whole: bool| {
            if whole && (states.done == n || saved.elapsed() >= every) {
                partial.write_states(states, len)?;
                *saved = Instant::now();
                if !see(Event::Saved) {
                    return Ok(false);
                }
            }
            Ok(see(Event::Done(done * calls, all)))
        };
        match &self.trajectory {
            Some(packed) => {
                let (model, cpu) = (Model::new(packed)?, *self.session.backend());
                states::follow(&mut Session::new(&model, &cpu), &self.asked, &self.images, &mut states, &mut tell)?;
            }
            None => states::follow(&mut self.session, &self.request, &self.images, &mut states, &mut tell)?,
        }
        if states.done < n { Err(stopped().into()) } else { Ok(states) }
    }

    /// Looks at the calls whose states there are, and writes the file.
    fn sum(mut self, states: States) -> Result<Report> {
        let record = self.record(&states)?;
        let mut last = Vec::new();
        for group in 0..self.groups.len() {
            last = self.group(group, &states, &record)?;
        }
        let single = self.groups.len() == 1;
        let mut rows = vec![0.0; record.inputs.len()];
        let mut constant = 0;
        file::write(&self.settings.output, &record, |index| {
            let sums = match single {
                true => std::mem::replace(&mut last[index], Sums::new(&Rows::Own(0), 0)),
                false => self.partial.sums(self.groups.iter().position(|g| g.contains(&index)).unwrap_or(0), index)?,
            };
            let name = || self.inputs.names(index).next().unwrap_or_default().to_owned();
            if sums.rows == 0.0 {
                let what = format!("calibration of {}", name());
                return Err(Error::request(what, "at least one row: more of --cali-st or --cali-n", 0).into());
            }
            if let Some(fault) = sums.sum.iter().chain(&sums.second).find(|v| !v.is_finite()) {
                return Err(Error::request(format!("calibration of {}", name()), "finite sums", fault).into());
            }
            rows[index] = sums.rows;
            constant += usize::from(sums.low.iter().zip(&sums.high).any(|(low, high)| low == high));
            Ok(sums)
        })?;
        if constant > 0 {
            (self.see)(Event::Note(format!("{constant} inputs have channels that never change")));
        }
        let enough = |inputs: &Vec<usize>| {
            let inputs = inputs.iter().map(|&i| (rows[i], self.inputs.list[i].rows.inputs()));
            inputs.fold((0.0, 0), |sum, (rows, k)| (sum.0 + rows, k))
        };
        let poor = self.inputs.layers.iter().filter(|(_, inputs)| {
            let (rows, k) = enough(inputs);
            rows < ENOUGH * k as f64
        });
        let starved = poor.map(|(name, _)| name.clone()).collect();
        self.partial.remove()?;
        Ok(Report {
            bill: self.bill,
            inputs: record.inputs.len(),
            layers: record.layers.len(),
            starved,
            seconds: 0.0,
            run_seconds: 0.0,
            sum_seconds: 0.0,
        })
    }

    /// The record of the file.
    fn record(&self, states: &States) -> Result<Record> {
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
                trajectory: self.trajectory.as_ref().map(|packed| format!("{:032x}", packed.hash())),
                calls: states.calls.iter().map(call_record).collect(),
                chosen: states.chosen.clone(),
            },
            shards: Shards { of: shard.of, parts: vec![shard.index] },
            inputs,
            layers: self.inputs.layers.clone(),
        };
        record.model = ModelRecord::new(self.model.meta(), &record.components());
        Ok(record)
    }

    fn input(&self, input: &LayerInput, states: &States) -> InputRecord {
        let when = when(input);
        let (calls, looks) = match when {
            When::Prompt => (1, 1),
            When::Call => (states.calls.len(), states.calls.iter().filter(|call| call.role == input.role).count()),
            When::Sample => (
                states.chosen.len(),
                states.chosen.iter().filter(|&&call| states.calls[call].role == input.role).count(),
            ),
        };
        let units = match when {
            When::Sample => self.settings.images * copies(&self.request),
            When::Prompt | When::Call => self.conditions(0..self.settings.images).len(),
        };
        let rows = (looks * units) as u64 * input.unit_rows as u64;
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
            calls,
            share: if toeplitz { None } else { share(rows, most) },
        }
    }

    /// The sums of group `group`: looks at what was not looked at yet.
    fn group(&mut self, group: usize, states: &States, record: &Record) -> Result<Vec<Sums>> {
        let range = self.groups[group].clone();
        let records: Vec<(usize, &InputRecord)> = range.clone().map(|i| (i, &record.inputs[i])).collect();
        let (single, passes) = (self.groups.len() == 1, 1 + states.chosen.len());
        let (sums, mut done) = match self.partial.read_sums(group, &records)? {
            Some(read) => read,
            None => (range.clone().map(|i| Sums::new(&self.inputs.list[i].rows, record.inputs[i].calls)).collect(), 0),
        };
        let inputs = range
            .clone()
            .map(|i| (self.inputs.list[i].clone(), self.inputs.names(i).next().unwrap_or_default().to_owned()));
        let sums = range
            .clone()
            .zip(sums)
            .map(|(i, sums)| Accumulator::new(self.inputs.list[i].rows, record.inputs[i].share, sums));
        let mut looked = Group::new(inputs.collect(), sums.collect());
        while done < passes {
            self.pass(&mut looked, group, done, states)?;
            done += 1;
            let last = done == passes && !single;
            if last || self.saved.elapsed() >= self.settings.save_every {
                self.partial.write_sums(group, &records, done, |i| &looked.sums[i].sums)?;
                self.saved = Instant::now();
                if !(self.see)(Event::Saved) {
                    return Err(stopped().into());
                }
            }
        }
        Ok(if single { looked.sums.into_iter().map(|a| a.sums).collect() } else { Vec::new() })
    }

    /// Pass 0 looks at what does not depend on samples, the others at one call each.
    fn pass(&mut self, looked: &mut Group, group: usize, pass: usize, states: &States) -> Result<()> {
        let scene = |index: usize| Scene {
            request: &self.request,
            null: null(self.model),
            images: &self.images,
            copies: copies(&self.request),
            call: states.calls[index],
            index,
        };
        let Some(place) = pass.checked_sub(1) else {
            let counts = self.conditions(self.images.iter().copied());
            let mut roles = Vec::new();
            let calls = if looked.has_tables() { states.calls.len() } else { 0 };
            for index in 0..calls {
                let first = !roles.contains(&states.calls[index].role);
                roles.push(states.calls[index].role);
                looked.look_at_tables(&mut self.session, scene(index), &counts, first)?;
            }
            return Ok(());
        };
        let (n, all) = (self.images.len(), total(&self.bill));
        let before = n * (self.bill.run_calls + group * self.bill.calls + place);
        let see = &mut self.see;
        let mut tell = |done: usize| see(Event::Done((before + done) as f64, all));
        match looked.look(&mut self.session, scene(states.chosen[place]), place, &states.samples[place], &mut tell)? {
            true => Ok(()),
            false => Err(stopped().into()),
        }
    }

    /// How many of `images` have each condition.
    fn conditions(&self, images: impl Iterator<Item = usize>) -> BTreeMap<usize, f32> {
        let mut counts = BTreeMap::new();
        for i in images {
            let conditions = conditions(&self.request.prompts, i, null(self.model));
            conditions[..copies(&self.request)].iter().for_each(|&key| *counts.entry(key).or_default() += 1.0);
        }
        counts
    }
}

/// When an input is looked at.
fn when(input: &LayerInput) -> When {
    match (input.rate, input.unit) {
        (Rate::Loop, _) => When::Sample,
        (Rate::Step, _) => When::Call,
        (Rate::Bind | Rate::Prompt, _) => When::Prompt,
    }
}

/// Samples of an image in a call.
fn copies(request: &Request) -> usize {
    if request.guidance_scale > 1.0 { 2 } else { 1 }
}

/// The name of a source of noise.
fn noise(source: NoiseSource) -> &'static str {
    match source {
        NoiseSource::Fast => "fast",
        NoiseSource::Torch => "torch",
    }
}

/// The class of none.
fn null<D>(model: &Model<'_, D>) -> u32 {
    model.classes.as_ref().map_or(0, |classes| classes.null)
}

/// What ends work that [`Event`]'s reader wants no more of.
fn stopped() -> Error {
    Error::request("calibration", "to go on", "a wish to stop; the same command goes on with it")
}

/// Calls of images in all.
fn total(bill: &Bill) -> f64 {
    bill.images as f64 * (bill.run_calls + bill.replays * bill.calls) as f64
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
    let packed = open(path)?;
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

/// Arithmetic operations of one call of one image by the denoiser.
fn operations(packed: &Packed<FileBytes>, request: &Request) -> Result<f64> {
    let [height, width] = request.latent_size;
    let dims =
        Dims { batch: copies(request), conditions: copies(request), height, width, tokens: request.prompts.tokens(0) };
    let plan =
        Plan::of_role(&Cpu::best(), packed, Role::Denoiser, &Binding { dims, calls: 1, table_bytes: 0, reserve: 0 })?;
    Ok(plan.ops[Rate::Loop as usize].iter().map(|planned| planned.op.operations()).sum())
}

/// A name for all that decides about a calibration's numbers.
fn identity(
    settings: &Settings,
    packed: &Packed<FileBytes>,
    request: &Request,
    trajectory: Option<&Packed<FileBytes>>,
) -> String {
    let numbers = [settings.calls, settings.images, settings.memory, settings.dense, request.steps];
    let shard = settings.shard.map(|shard| [shard.index, shard.of]);
    let all = format!(
        "{} {VERSION} {:032x} {:?} {numbers:?} {shard:?} {} {} {} {:?} {:?} {:?}",
        env!("CARGO_PKG_VERSION"),
        packed.hash(),
        trajectory.map(Packed::hash),
        request.guidance_scale,
        request.seed,
        noise(request.noise),
        request.sampler,
        request.latent_size,
        request.prompts,
    );
    format!("{:032x}", xxh3_128(all.as_bytes()))
}
