//! The work of a calibration: states first, then sums, group by group.

use super::Settings;
use super::file;
use super::look::{Group, Scene};
use super::model::FloatModel;
use super::outline::{Bill, ENOUGH, Outline};
use super::partial::Partial;
use super::record::{InputRecord, Record};
use super::samples;
use super::states::{self, States, choose};
use super::sums::{Accumulator, Rows, Sums};
use crate::emit::Progress;
use crate::error::Result;
use aquatint::Model;
use aquatint::error::Error;
use aquatint::pipeline::Session;
use aquatint::raw::backend::cpu::Cpu;
use aquatint::raw::mmap::FileBytes;
use aquatint::raw::whole_file::check_target;
use aquatint::shard::Shard;
use serde::Serialize;
use std::path::Path;
use std::time::{Duration, Instant};

/// Bytes of rows that wait to be added at most.
pub(super) const PENDING: usize = 64 << 20;

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
    let cpu = Cpu::best().node_by_node();
    let (prompts, cut) = states::encoded(&mut Session::new(&model, &cpu), &request)?;
    for part in cut {
        see(Event::Note(format!("a prompt is longer than the text encoder reads at once; cut off: {part:?}")));
    }
    let outline = Outline::new(settings, &model, request, prompts)?;
    let partial = Partial::open(&settings.output, outline.identity())?;
    if partial.resumed {
        see(Event::Resumed(partial.folder()));
    }
    see(Event::Bill(outline.bill));
    let mut session = Session::new(&model, &cpu);
    // What one call is bound to serves the next; batches of other sizes are not worth their memory.
    session.keep_at_most(outline.bill.arena);
    let mut work = Work { settings, model: &model, session, outline, partial, due: begin + settings.save_every, see };
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

/// When to save again after a save that began at `began` and is done: not before `every` has passed, and not so soon that
/// saving would take more than a twentieth of the time. The sums of a large model are gigabytes, and a disk may be slow.
fn next_save(began: Instant, every: Duration) -> Instant {
    let took = began.elapsed();
    let wait = if every.is_zero() { every } else { every.max(took * 20) };
    began + took + wait
}

/// Everything that the work needs.
struct Work<'a, 'm> {
    settings: &'a Settings,
    model: &'m Model<'m, FileBytes>,
    session: Session<'m, Cpu, FileBytes>,
    outline: Outline<'a, 'm>,
    partial: Partial,
    /// When work is saved next.
    due: Instant,
    see: &'a mut dyn FnMut(Event<'_>) -> bool,
}

impl<'m> Work<'_, 'm> {
    /// Runs the images and keeps the states before the calls that are looked at.
    fn states(&mut self) -> Result<States> {
        let chosen = choose(self.outline.bill.run_calls, self.settings.calls);
        let len = self.outline.request.latents_len(self.model);
        let mut states = States { samples: vec![Vec::new(); chosen.len()], chosen, ..States::default() };
        self.partial.read_states(&mut states, len)?;
        let (calls, all, n) =
            (self.outline.bill.run_calls as f64, total(&self.outline.bill), self.outline.images.len());
        let (partial, see, due, every) = (&self.partial, &mut self.see, &mut self.due, self.settings.save_every);
        let mut tell = |states: &States, done: f64, whole: bool| {
            if whole && (states.done == n || Instant::now() >= *due) {
                let began = Instant::now();
                partial.write_states(states, len)?;
                *due = next_save(began, every);
                if !see(Event::Saved) {
                    return Ok(false);
                }
            }
            Ok(see(Event::Done(done * calls, all)))
        };
        match &self.outline.trajectory {
            Some(packed) => {
                let (model, cpu) = (Model::new(packed)?, *self.session.backend());
                states::follow(
                    &mut Session::new(&model, &cpu),
                    &self.outline.asked,
                    &self.outline.images,
                    &mut states,
                    &mut tell,
                )?;
            }
            None => {
                states::follow(&mut self.session, &self.outline.request, &self.outline.images, &mut states, &mut tell)?
            }
        }
        if states.done < n { Err(stopped().into()) } else { Ok(states) }
    }

    /// Looks at the calls whose states there are, and writes the file.
    fn sum(mut self, states: States) -> Result<Report> {
        let record = self.outline.record(&states);
        let mut last = Vec::new();
        for group in 0..self.outline.groups.len() {
            last = self.group(group, &states, &record)?;
        }
        let single = self.outline.groups.len() == 1;
        let mut rows = vec![0.0; record.inputs.len()];
        let mut constant = 0;
        file::write(&self.settings.output, &record, |index| {
            let sums = match single {
                true => std::mem::replace(&mut last[index], Sums::new(&Rows::Own(0), 0)),
                false => self
                    .partial
                    .sums(self.outline.groups.iter().position(|g| g.contains(&index)).unwrap_or(0), index)?,
            };
            let name = || self.outline.inputs.names(index).next().unwrap_or_default().to_owned();
            if sums.rows == 0.0 {
                let what = format!("calibration of {}", name());
                return Err(Error::request(what, "at least one row: more of --cali-st or --cali-n", 0).into());
            }
            if let Some(fault) = sums.sum.iter().chain(&sums.second).find(|v| !v.is_finite()) {
                return Err(Error::request(format!("calibration of {}", name()), "finite sums", fault).into());
            }
            rows[index] = sums.rows;
            let (low, high) = file::extremes(&sums, self.outline.inputs.list[index].rows.channels());
            constant += usize::from(low.iter().zip(&high).any(|(low, high)| low == high));
            Ok(sums)
        })?;
        if constant > 0 {
            (self.see)(Event::Note(format!("{constant} inputs have channels that never change")));
        }
        let enough = |inputs: &Vec<usize>| {
            let inputs = inputs.iter().map(|&i| (rows[i], self.outline.inputs.list[i].rows.inputs()));
            inputs.fold((0.0, 0), |sum, (rows, k)| (sum.0 + rows, k))
        };
        let poor = self.outline.inputs.layers.iter().filter(|(_, inputs)| {
            let (rows, k) = enough(inputs);
            rows < ENOUGH * k as f64
        });
        let starved = poor.map(|(name, _)| name.clone()).collect();
        self.partial.remove()?;
        Ok(Report {
            bill: self.outline.bill,
            inputs: record.inputs.len(),
            layers: record.layers.len(),
            starved,
            seconds: 0.0,
            run_seconds: 0.0,
            sum_seconds: 0.0,
        })
    }

    /// The sums of group `group`: looks at what was not looked at yet.
    fn group(&mut self, group: usize, states: &States, record: &Record) -> Result<Vec<Sums>> {
        let range = self.outline.groups[group].clone();
        let records: Vec<(usize, &InputRecord)> = range.clone().map(|i| (i, &record.inputs[i])).collect();
        let (single, passes) = (self.outline.groups.len() == 1, 1 + states.chosen.len());
        let (sums, mut done) = match self.partial.read_sums(group, &records)? {
            Some(read) => read,
            None => (
                range.clone().map(|i| Sums::new(&self.outline.inputs.list[i].rows, record.inputs[i].calls)).collect(),
                0,
            ),
        };
        let inputs = range.clone().map(|i| {
            (self.outline.inputs.list[i].clone(), self.outline.inputs.names(i).next().unwrap_or_default().to_owned())
        });
        let sums = range
            .clone()
            .zip(sums)
            .map(|(i, sums)| Accumulator::new(self.outline.inputs.list[i].rows, record.inputs[i].share, sums));
        let mut looked = Group::new(inputs.collect(), sums.collect());
        while done < passes {
            self.pass(&mut looked, group, done, states)?;
            done += 1;
            let last = done == passes && !single;
            if last || Instant::now() >= self.due {
                let began = Instant::now();
                self.partial.write_sums(group, &records, done, |i| &looked.sums[i].sums)?;
                self.due = next_save(began, self.settings.save_every);
                if !(self.see)(Event::Saved) {
                    return Err(stopped().into());
                }
            }
        }
        Ok(if single { looked.sums.into_iter().map(|a| a.sums).collect() } else { Vec::new() })
    }

    /// Pass 0 looks at what does not depend on samples, the others at one call each.
    fn pass(&mut self, looked: &mut Group, group: usize, pass: usize, states: &States) -> Result<()> {
        let outline = &self.outline;
        let scene = |request, images, index: usize| {
            let (null, copies, call) = (outline.null, outline.copies, states.calls[index]);
            Scene { request, null, images, copies, call, index }
        };
        let Some(place) = pass.checked_sub(1) else {
            for texts in &outline.texts {
                looked.look_at_texts(self.session.backend(), self.model.packed(), texts, self.settings.batch)?;
            }
            let (request, images) = &outline.tables;
            let counts = outline.conditions(images.iter().copied());
            let mut roles = Vec::new();
            let calls = if looked.has_tables() { states.calls.len() } else { 0 };
            for index in 0..calls {
                let first = !roles.contains(&states.calls[index].role);
                roles.push(states.calls[index].role);
                looked.look_at_tables(&mut self.session, scene(request, images, index), &counts, first)?;
            }
            return Ok(());
        };
        let (n, all) = (self.outline.images.len(), total(&self.outline.bill));
        let before = n * (self.outline.bill.run_calls + group * self.outline.bill.calls + place);
        let see = &mut self.see;
        let mut tell = |done: usize| see(Event::Done((before + done) as f64, all));
        match looked.look(
            &mut self.session,
            scene(&outline.request, &outline.images, states.chosen[place]),
            place,
            &states.samples[place],
            &mut tell,
        )? {
            true => Ok(()),
            false => Err(stopped().into()),
        }
    }
}

/// What ends work that [`Event`]'s reader wants no more of.
fn stopped() -> Error {
    Error::request("calibration", "to go on", "a wish to stop; the same command goes on with it")
}

/// Calls of images in all.
fn total(bill: &Bill) -> f64 {
    bill.images as f64 * (bill.run_calls + bill.replays * bill.calls) as f64
}
