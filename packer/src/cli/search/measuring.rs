//! What measuring whole configurations needs.

use super::{Calls, Rules};
use crate::cli::pack::bar;
use crate::error::Result;
use crate::search::{Found, Meter, Objective, Problem, Trials};
use crate::sensitivity::{self, Record, Settings};
use aquatint::raw::format::Packed;
use aquatint::{Cpu, Error, Model};
use aquatint_evaluation::stats::Estimate;
use aquatint_evaluation::{Captions, File, Progress, Protocol, Report, SEED, Scorer, evaluate};
use clap::Args;
use std::path::{Path, PathBuf};

/// Arguments of measuring.
#[derive(Debug, Args)]
pub(super) struct Measuring {
    /// The file of all choices that packer sensitivity --keep left.
    #[arg(long, value_name = "CHOICES.aqt")]
    choices: Option<PathBuf>,
    /// What images show, one caption a line, in turn: as for packer sensitivity.
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// Images per pass through the network; no figure depends on it
    #[arg(short, long, alias = "batch-size", value_name = "N")]
    batch: Option<usize>,
    /// Calls that count: those of the middle of a run, which decide about pictures, or all
    #[arg(long, value_enum, default_value = "middle", value_name = "CALLS")]
    pub(super) objective: Calls,
}

/// Sensitivities, and where whole configurations can be measured.
pub(super) struct Measured {
    pub(super) record: Record,
    pub(super) problem: Problem,
    objective: Objective,
    /// Everything but images and calls.
    protocol: Protocol,
    trials: Option<Trials>,
}

impl Measuring {
    /// The files that are read.
    pub(super) fn reads(&self) -> impl Iterator<Item = &PathBuf> {
        self.choices.iter().chain(&self.prompts)
    }

    /// Refuses to measure anything of `what`.
    pub(super) fn refuse(&self, what: &str) -> Result<()> {
        match &self.choices {
            Some(path) => {
                let expected = format!("none: nothing is measured of {what}");
                Err(Error::request("choices", expected, path.display()).into())
            }
            None => Ok(()),
        }
    }

    /// Opens the sensitivities in `file`, and the file of all choices if there is one.
    ///
    /// # Errors
    /// If one is not what it should be, or prompts are others than sensitivities were measured with.
    pub(super) fn open(&self, file: &Path, rules: &Rules) -> Result<Measured> {
        let record = Record::open(file)?;
        let objective = self.objective.into();
        let problem = rules.apply(Problem::new(&record, objective)?)?;
        let trials = self.choices.as_deref().map(|path| Trials::open(path, &record)).transpose()?;
        let captions = match &self.prompts {
            Some(path) => {
                let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
                Some(Captions::new(&path.display().to_string(), &text)?)
            }
            None => None,
        };
        if trials.is_some() {
            let given = self.prompts.as_deref().map(sensitivity::hash_of).transpose()?;
            if given != record.conditions.prompts {
                let words = |hash: Option<String>| hash.map_or("none".into(), |hash| format!("a file of hash {hash}"));
                let expected = format!("what sensitivities were measured with, {}", words(record.conditions.prompts));
                return Err(Error::request("prompts", expected, words(given)).into());
            }
        }
        let protocol = Protocol { captions, batch: self.batch, ..record.conditions.protocol() };
        Ok(Measured { record, problem, objective, protocol, trials })
    }
}

impl Measured {
    /// The file of all choices.
    ///
    /// # Errors
    /// If none was given.
    pub(super) fn trials(&self) -> Result<&Trials> {
        let missing = || Error::request("choices", "the file that packer sensitivity --keep left", "none");
        Ok(self.trials.as_ref().ok_or_else(missing)?)
    }

    /// What measures configurations at the images that sensitivities were measured at.
    ///
    /// # Errors
    /// If these cannot be made.
    pub(super) fn meter<'m>(&'m self, trials: &'m Trials, quiet: bool) -> Result<Meter<'m>> {
        let bar = bar(quiet);
        bar.set_message("the reference's run");
        let meter =
            Meter::new(trials, &self.problem, &self.record, self.objective, &self.protocol, &mut |done, total| {
                bar.set_length(total);
                bar.set_position(done);
            });
        bar.finish_and_clear();
        meter
    }

    /// Compares whole configurations with the float model, at images that nothing was chosen by. Sizes in the report are of layers.
    ///
    /// # Errors
    /// If the protocol does not fit.
    pub(super) fn evaluate(
        &self,
        assignments: &[(String, &[usize])],
        protocol: &Protocol,
        scorer: Option<&Scorer>,
        quiet: bool,
    ) -> Result<Report> {
        let trials = self.trials()?;
        let float = trials.float();
        let others: Vec<Packed<&[u8]>> =
            assignments.iter().map(|(_, assignment)| trials.assigned(&self.problem, assignment)).collect();
        let models = [&float].into_iter().chain(&others).map(Model::new).collect::<aquatint::Result<Vec<_>>>()?;
        let names = ["f32".to_owned()].into_iter().chain(assignments.iter().map(|(name, _)| name.clone()));
        let files: Vec<_> = names.zip(&models).map(|(name, model)| File { name, model }).collect();
        let bar = bar(quiet);
        let protocol =
            Protocol { captions: self.protocol.captions.clone(), batch: self.protocol.batch, ..protocol.clone() };
        let report = evaluate(&Cpu::best(), &files, &protocol, scorer, &mut |Progress { done, total }| {
            bar.set_length(total);
            bar.set_position(done);
        });
        bar.finish_and_clear();
        let mut report = report?;
        for (file, (_, assignment)) in report.files[1..].iter_mut().zip(assignments) {
            (file.bytes, file.average_bits) = (self.problem.bytes(assignment), Some(self.problem.bits(assignment)));
        }
        Ok(report)
    }

    /// The protocol of [`evaluate`](Self::evaluate): as sensitivities were measured, with `images` others.
    pub(super) fn of_images(&self, images: usize, scored: usize) -> Protocol {
        Protocol {
            images,
            scored,
            seed: SEED,
            calls: aquatint_evaluation::Calls::AtMost(Settings::CALLS),
            ..self.protocol.clone()
        }
    }

    /// The smallest assignment of the front whose pictures have a median signal-to-noise ratio of at least `target` dB; and that ratio.
    ///
    /// # Errors
    /// If not even the largest has.
    pub(super) fn reaching(&self, target: f64, images: usize, quiet: bool) -> Result<(Found, Estimate)> {
        let front = self.problem.front();
        let protocol = Protocol { calls: aquatint_evaluation::Calls::AtMost(1), ..self.of_images(images, 0) };
        let measure = |i: usize| -> Result<Estimate> {
            let report = self.evaluate(&[("candidate".into(), &front[i].assignment)], &protocol, None, quiet)?;
            let figure = report.files[1].figures.iter().find(|(name, _)| *name == "psnr_median");
            figure
                .map(|(_, psnr)| *psnr)
                .ok_or_else(|| Error::request("target-psnr", "a model with pictures", "none").into())
        };
        let (mut low, mut high) = (0, front.len() - 1);
        let mut reached = measure(high)?;
        if reached.value < target {
            let expected = format!("at most {:.2} dB, which the largest choices have", reached.value);
            return Err(Error::request("target-psnr", expected, target).into());
        }
        // The ratio grows along the front but for noise: the place is found by halving.
        while low < high {
            let middle = (low + high) / 2;
            let psnr = measure(middle)?;
            if psnr.value >= target {
                (high, reached) = (middle, psnr);
            } else {
                low = middle + 1;
            }
        }
        Ok((front[high].clone(), reached))
    }
}
