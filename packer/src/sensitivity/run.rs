//! The work: the file of all choices, what the reference makes, then probe after probe.

use super::choices::{Choices, FLOAT, hash_of};
use super::partial::Partial;
use super::record::{Call, CallError, Conditions, ModelRecord, Record, VERSION, has};
use super::units::{self, Layers};
use super::{Bill, Event, Settings};
use crate::calibrate::operations;
use crate::error::Result;
use aquatint::error::Error;
use aquatint::raw::backend::cpu::Cpu;
use aquatint::raw::format::Packed;
use aquatint::raw::mmap::FileBytes;
use aquatint::raw::program::Program;
use aquatint::raw::whole_file::{self, check_targets};
use aquatint::shard::Shard;
use aquatint::{Model, Session};
use aquatint_evaluation::{Baseline, File, Progress};
use std::io::Write;
use std::path::PathBuf;
use xxhash_rust::xxh3::xxh3_128;

/// Measures as `settings` say and writes the file; `see` is shown what happens, and may end the work by saying false: the same
/// call goes on after the probe that was [saved](Event::Saved) last.
///
/// # Errors
/// Whatever is wrong with the model, the settings or the output, before anything appears at the output.
pub fn sensitivity(settings: &Settings, see: &mut dyn FnMut(Event<'_>) -> bool) -> Result<Record> {
    let inputs = [Some(&settings.model), settings.calibration.as_ref(), settings.prompts.as_ref()];
    let inputs: Vec<_> = inputs.into_iter().flatten().map(PathBuf::as_path).collect();
    let targets = [Some(&settings.output), settings.keep.as_ref()].into_iter().flatten();
    check_targets(&targets.map(PathBuf::as_path).collect::<Vec<_>>(), &inputs)?;
    check(settings)?;
    let choices = Choices::new(settings)?;
    let partial = Partial::open(&settings.output)?;
    let (packed, calibration) = choices.open(settings, &partial, see).inspect_err(|_| partial.remove_if_fresh())?;
    let layers = units::units(&packed, &choices);
    let groups = units::groups(&layers, &settings.groups)?;
    let float = with_programs(&packed, &|program| program.in_phase(FLOAT).into_owned());
    let (model, cpu) = (Model::new(&float)?, Cpu::best());
    let name = settings.model.display().to_string();
    let mut wanted = true;
    let baseline =
        Baseline::new(&cpu, &File { name, model: &model }, &settings.protocol, &mut |Progress { done, total }| {
            wanted &= see(Event::Reference(done, total));
        })?;
    if !wanted {
        return Err(stopped());
    }
    let record = outline(settings, &choices, (&packed, calibration), &baseline, (&layers, &groups))?;
    let identity = identity(&record)?;
    let all: Vec<&Layers> = layers.iter().chain(&groups).collect();
    let mut work = Work {
        settings,
        choices: &choices,
        partial: &partial,
        packed: &packed,
        baseline: &baseline,
        cpu,
        identity,
        see,
    };
    let record = work.run(record, &all)?;
    if let Some(keep) = &settings.keep {
        whole_file::write(keep, |file| file.write_all(packed.as_bytes()))?;
    }
    record.write(&settings.output)?;
    partial.remove()?;
    Ok(record)
}

/// Refuses shards that are none.
fn check(settings: &Settings) -> Result<()> {
    match settings.shard {
        Some(Shard { index, of }) if index >= of => {
            Err(Error::request("shard", "K/N with K below N", format!("{index}/{of}")).into())
        }
        _ => Ok(()),
    }
}

/// The file with what `make` makes of the programs that have phases.
pub(crate) fn with_programs<'p>(packed: &'p Packed<FileBytes>, make: &dyn Fn(&Program) -> Program) -> Packed<&'p [u8]> {
    let programs = packed.programs().iter().map(|program| match program.phases.count() {
        1 => program.clone(),
        _ => make(program),
    });
    packed.with_programs(programs.collect())
}

/// The record of what is to be measured.
fn outline(
    settings: &Settings,
    choices: &Choices,
    (packed, calibration): (&Packed<FileBytes>, Option<String>),
    baseline: &Baseline,
    (layers, groups): (&[Layers], &[Layers]),
) -> Result<Record> {
    let Baseline { request, calls_of_run, calls, moments, images, .. } = baseline;
    let seed = settings.protocol.seed;
    let units = |layers: &[Layers]| layers.iter().map(|layers| layers.unit.clone()).collect();
    let calls = calls.iter().zip(moments).map(|(&call, moment)| Call { call, timestep: moment.timestep });
    let meta = packed.meta();
    Ok(Record {
        aquatint_sensitivity: VERSION,
        tool: concat!("packer ", env!("CARGO_PKG_VERSION")).into(),
        model: ModelRecord {
            name: meta.pipeline.name.clone(),
            hash: format!("{:032x}", packed.hash()),
            sources: meta.sources.clone(),
        },
        conditions: Conditions {
            environment: choices.environment.clone(),
            calibration,
            images: *images,
            seeds: [seed, seed.wrapping_add(*images as u64 - 1)],
            prompts: settings.prompts.as_deref().map(hash_of).transpose()?,
            sampler: request.sampler.kind.name().to_owned(),
            sampler_config: Some(request.sampler.clone()),
            steps: request.steps,
            guidance_scale: request.guidance_scale,
            guidance_rescale: request.guidance_rescale,
            calls_of_run: *calls_of_run,
            calls: calls.collect(),
        },
        choices: choices.names.clone(),
        shard: settings.shard.map(|Shard { index, of }| [index, of]),
        environment: None,
        units: units(layers),
        groups: units(groups),
    })
}

/// What tells the probes of different work apart.
fn identity(record: &Record) -> Result<String> {
    let text = serde_json::to_vec(record).map_err(|e| Error::request("sensitivity", "values JSON can hold", e))?;
    Ok(format!("{:032x}", xxh3_128(&text)))
}

/// What ends work that [`Event`]'s reader wants no more of.
fn stopped() -> crate::Error {
    Error::request("sensitivity", "to go on", "a wish to stop; the same command goes on with it").into()
}

/// Everything that probes need.
struct Work<'a> {
    settings: &'a Settings,
    choices: &'a Choices,
    partial: &'a Partial,
    packed: &'a Packed<FileBytes>,
    baseline: &'a Baseline,
    cpu: Cpu,
    identity: String,
    see: &'a mut dyn FnMut(Event<'_>) -> bool,
}

/// How far the probes are, in calls of images.
struct Done {
    done: u64,
    total: u64,
}

impl Work<'_> {
    /// Makes all probes of this shard that are not done, and fills `record` with what was found.
    fn run(&mut self, mut record: Record, all: &[&Layers]) -> Result<Record> {
        let calls = record.conditions.calls.len();
        let choices = self.choices.names.len();
        // Whatever is there is read before anything is made: work of another command is refused at once.
        let kept = |probe: &str| self.partial.probe(probe, &self.identity, calls);
        let mut found: Vec<Option<Vec<CallError>>> =
            (0..all.len() * choices).map(|probe| kept(&number(probe))).collect::<Result<_>>()?;
        record.environment = kept(ENVIRONMENT)?;
        let environment = !self.choices.float_environment();
        let missing: Vec<usize> =
            (0..found.len()).filter(|&probe| found[probe].is_none() && has(self.settings.shard, probe)).collect();
        let resumed = found.iter().any(Option::is_some) || record.environment.is_some();
        if resumed {
            (self.see)(Event::Resumed(self.partial.folder()));
        }
        self.tell_bill(&record, missing.len())?;
        let probes = missing.len() + usize::from(environment && record.environment.is_none());
        let mut progress = Done { done: 0, total: (probes * self.baseline.work()) as u64 };
        if environment && record.environment.is_none() {
            record.environment = self.probes(&[ENVIRONMENT.to_owned()], None, &mut progress)?.pop();
        }
        // Choices of one layer are measured together: they share what comes before it.
        for probes in missing.chunk_by(|a, b| a / choices == b / choices) {
            let layers = all[probes[0] / choices];
            let same = |a: usize, b: usize| {
                let [a, b] = [a, b].map(|probe| &layers.unit.choices[probe % choices]);
                a.spec.is_some() && (&a.spec, a.bytes) == (&b.spec, b.bytes)
            };
            // Where choices make the same of a layer, one of them is measured.
            let begin = probes[0] - probes[0] % choices;
            let first = |probe: usize| {
                (begin..probe).find(|&other| same(other, probe) && (found[other].is_some() || probes.contains(&other)))
            };
            let (copies, own): (Vec<usize>, Vec<usize>) = probes.iter().partition(|&&probe| first(probe).is_some());
            let copies: Vec<(usize, usize)> =
                copies.into_iter().filter_map(|probe| Some((probe, first(probe)?))).collect();
            progress.total -= (copies.len() * self.baseline.work()) as u64;
            for together in own.chunks(TOGETHER) {
                let phases: Vec<usize> = together.iter().map(|probe| self.choices.phase(probe % choices)).collect();
                let names: Vec<String> = together.iter().map(|&probe| number(probe)).collect();
                let made = self.probes(&names, Some((layers, &phases)), &mut progress)?;
                together.iter().zip(made).for_each(|(&probe, calls)| found[probe] = Some(calls));
            }
            for (probe, other) in copies {
                found[probe] = found[other].clone();
            }
        }
        for (probe, calls) in record.probes_mut().zip(found) {
            probe.calls = calls.unwrap_or_default();
        }
        Ok(record)
    }

    fn tell_bill(&mut self, record: &Record, probes: usize) -> Result<()> {
        let request = &self.baseline.request;
        let copies = if request.guidance_scale > 1.0 { 2 } else { 1 };
        (self.see)(Event::Bill(Bill {
            units: record.all().count(),
            choices: record.choices.len(),
            probes,
            images: self.baseline.images,
            calls: record.conditions.calls.len(),
            operations: operations(self.packed, request, copies)?,
        }));
        Ok(())
    }

    /// The errors of the network in which these layers are of one phase after the other and all others of the environment; without
    /// layers, of the environment. They are kept as the probes called `names`.
    fn probes(
        &mut self,
        names: &[String],
        layers: Option<(&Layers, &[usize])>,
        progress: &mut Done,
    ) -> Result<Vec<Vec<CallError>>> {
        let environment = self.choices.environment_phase();
        let packed = with_programs(self.packed, &|program| match layers {
            Some((layers, phases)) => {
                let mixed = phases.iter().map(|&phase| program.mixed(&layers.phases(program, phase, environment)));
                Program::side_by_side(&mixed.collect::<Vec<_>>())
            }
            None => program.mixed(&vec![environment; program.nodes.len()]),
        });
        let model = Model::new(&packed)?;
        let mut session = Session::new(&model, &self.cpu);
        let see = &mut self.see;
        let errors = self.baseline.errors_of(names.len(), &mut session, &mut |images| {
            progress.done += images as u64;
            see(Event::Done(progress.done, progress.total))
        })?;
        let Some(errors) = errors else { return Err(stopped()) };
        if let Some(bad) = errors.iter().flatten().flatten().find(|error| !error.is_finite()) {
            let what = layers.map_or("the environment", |(layers, _)| &layers.unit.name);
            return Err(Error::request(format!("error of {what}"), "a finite number", bad).into());
        }
        let mut made: Vec<Vec<CallError>> = Vec::with_capacity(errors.len());
        for (name, errors) in names.iter().zip(errors) {
            made.push(errors.iter().map(|of_images| CallError::new(of_images)).collect());
            self.partial.keep(name, &self.identity, &made[made.len() - 1])?;
        }
        for _ in names {
            if !(self.see)(Event::Saved) {
                return Err(stopped());
            }
        }
        Ok(made)
    }
}

/// Most choices that are measured together: each takes memory of its own.
const TOGETHER: usize = 4;
/// What the probe of the environment is called.
const ENVIRONMENT: &str = "environment";

/// What a probe is called.
fn number(probe: usize) -> String {
    format!("{probe:06}")
}
