//! `packer compare sensitivity.json --choices choices.aqt --at-bits 2.5,3,3.5,4`.

use super::Rules;
use super::measuring::{Measured, Measuring};
use crate::cli::pack::bar;
use crate::cli::table::{Columns, bytes, percent};
use crate::cli::{page, say, say_json, say_line};
use crate::error::Result;
use crate::search::archive::{Additivity, Archive};
use crate::search::cache;
use crate::search::contest::{Contest, Effort, Entrant, Way};
use aquatint::Error;
use aquatint::raw::whole_file::{self, check_targets};
use aquatint_evaluation::report::{Difference, FileReport};
use aquatint_evaluation::stats::Estimate;
use aquatint_evaluation::{Report, Scorer};
use clap::Args;
use serde::Serialize;
use std::io::Write;
use std::path::PathBuf;

/// What latents are judged by.
pub(in crate::cli) const LATENTS: &str = "latents_median";

/// Arguments of a contest.
#[derive(Debug, Args)]
pub(in crate::cli) struct Compare {
    /// What packer sensitivity measured.
    #[arg(value_name = "SENSITIVITY.json")]
    file: PathBuf,
    /// Sizes: each is that of all layers in so many bits, between two widths in proportion
    #[arg(long, value_delimiter = ',', default_value = "2.5,3,3.5,4", value_name = "BITS,..")]
    at_bits: Vec<f64>,
    /// Random configurations of all sizes, as packer archive leaves them: what the predictor learns from, and by which additivity is
    /// tested.
    #[arg(long, value_name = "quant_cache.pkl")]
    archive: Option<PathBuf>,
    /// Random configurations of each size, of which the best competes [default: as many as sensitivities took probes]
    #[arg(long, value_name = "N")]
    random: Option<usize>,
    /// Measured moves from what the search finds; 0 for none
    #[arg(long, default_value_t = 80, value_name = "N")]
    moves: usize,
    /// Images whose calls, latents and pixels are compared: none that anything was chosen by
    #[arg(long, default_value_t = 128, value_name = "N")]
    n: usize,
    /// Images that are scored by the classifier
    #[arg(long, alias = "score_n", default_value_t = 520, requires = "classifier", value_name = "N")]
    score_n: usize,
    /// What reads images, as for packer evaluate.
    #[arg(long, value_name = "FILE")]
    classifier: Option<PathBuf>,
    /// Mean and covariance of the classifier's features of true images, for the Fréchet distance.
    #[arg(long, alias = "reference_features", requires = "classifier", value_name = "FILE")]
    reference_features: Option<PathBuf>,
    #[command(flatten)]
    rules: Rules,
    #[command(flatten)]
    measuring: Measuring,
    /// Write everything as JSON.
    #[arg(short, long, value_name = "OUT.json")]
    output: Option<PathBuf>,
    /// Write a page with plots.
    #[arg(long, value_name = "PAGE.html")]
    html: Option<PathBuf>,
    /// Print nothing but errors.
    #[arg(short, long)]
    quiet: bool,
    /// Print everything as JSON in place of tables.
    #[arg(long)]
    json: bool,
}

/// A contest and its outcome.
#[derive(Debug, Serialize)]
pub(in crate::cli) struct Outcome {
    /// Name of the model.
    pub model: String,
    /// Names of the choices.
    pub choices: Vec<String>,
    /// Probes that sensitivities took.
    pub probes: usize,
    /// Random configurations of each size, and moves.
    pub effort: [usize; 2],
    /// Configurations in the archive.
    pub archive: usize,
    /// Rank correlation of the predictor with configurations that it had not seen.
    pub predictor: Option<Estimate>,
    /// Predicted against measured errors of the archive.
    pub additivity: Option<Additivity>,
    /// Who competed, size after size.
    pub entrants: Vec<Entrant>,
    /// What was found of them; the first file is the float model.
    pub report: Report,
}

impl Compare {
    /// Runs the command.
    pub(in crate::cli) fn run(&self) -> Result<()> {
        let targets: Vec<_> = self.output.iter().chain(&self.html).map(PathBuf::as_path).collect();
        let own = [&self.archive, &self.classifier, &self.reference_features].into_iter().flatten();
        let read: Vec<_> = [&self.file].into_iter().chain(own).chain(self.measuring.reads()).collect();
        check_targets(&targets, &read.into_iter().map(PathBuf::as_path).collect::<Vec<_>>())?;
        if let Some(bad) = self.at_bits.iter().find(|bits| !(1.0..=16.0).contains(*bits)) {
            return Err(Error::request("at-bits", "bits from 1 to 16", bad).into());
        }
        let scorer = self.classifier.as_deref().map(|path| Scorer::open(path, self.reference_features.as_deref()));
        let scorer = scorer.transpose()?;
        let measured = self.measuring.open(&self.file, &self.rules)?;
        let trials = measured.trials()?;
        let archive = match &self.archive {
            Some(path) => Archive::of(&path.display().to_string(), &cache::read(path)?, &measured.problem)?,
            None => Archive::default(),
        };
        let meter = measured.meter(trials, self.quiet)?;
        let probes = measured.record.units.len() * measured.record.choices.len();
        let effort = Effort { random: self.random.unwrap_or(probes), moves: self.moves };
        let contest = Contest { problem: &measured.problem, trials, meter: &meter, archive: &archive, effort };
        let bar = bar(self.quiet);
        bar.set_length((self.at_bits.len() * (effort.random + effort.moves + Way::ALL.len())) as u64);
        bar.set_message("configurations");
        let entrants: Result<Vec<Vec<Entrant>>> =
            self.at_bits.iter().map(|&bits| contest.entrants(bits, &mut || bar.inc(1))).collect();
        bar.finish_and_clear();
        let entrants: Vec<Entrant> = entrants?.into_iter().flatten().collect();
        let outcome = Outcome {
            model: measured.record.model.name.clone(),
            choices: measured.record.choices.clone(),
            probes,
            effort: [effort.random, effort.moves],
            archive: archive.errors.len(),
            predictor: archive.samples(&measured.problem).held_out(),
            additivity: Additivity::new(&measured.problem, &archive),
            report: self.judged(&measured, &entrants, scorer.as_ref())?,
            entrants,
        };
        self.deliver(&outcome)
    }

    /// What evaluation finds of `entrants`, each beside the search of its size.
    fn judged(&self, measured: &Measured, entrants: &[Entrant], scorer: Option<&Scorer>) -> Result<Report> {
        let names = entrants.iter().map(|entrant| format!("{} bits, {}", entrant.nominal_bits, entrant.way.name()));
        let files: Vec<(String, &[usize])> =
            names.zip(entrants).map(|(name, entrant)| (name, &*entrant.assignment)).collect();
        let mut protocol = measured.of_images(self.n, if scorer.is_some() { self.score_n } else { 0 });
        protocol.pairs = (0..entrants.len()).filter_map(|i| Some([i + 1, search_of(entrants, i)? + 1])).collect();
        measured.evaluate(&files, &protocol, scorer, self.quiet)
    }

    fn deliver(&self, outcome: &Outcome) -> Result<()> {
        let text =
            serde_json::to_string_pretty(outcome).map_err(|e| Error::request("report", "values JSON can hold", e))?;
        if let Some(path) = &self.output {
            whole_file::write(path, |file| writeln!(file, "{text}"))?;
        }
        if let Some(path) = &self.html {
            page::write_contest(outcome, path)?;
        }
        if self.json {
            return say_json(outcome);
        }
        if !self.quiet {
            say(table(outcome));
            legend(outcome).into_iter().for_each(say_line);
        }
        Ok(())
    }
}

/// The number of the search that has the size of entrant `i`, another one.
fn search_of(entrants: &[Entrant], i: usize) -> Option<usize> {
    let search = |other: &Entrant| other.way == Way::Search && other.nominal_bits == entrants[i].nominal_bits;
    entrants.iter().position(search).filter(|&search| search != i)
}

impl Outcome {
    /// What was found of entrant `i`.
    pub(in crate::cli) fn file(&self, i: usize) -> &FileReport {
        &self.report.files[i + 1]
    }

    /// The difference of a figure of entrant `i` from that of the search of its size.
    pub(in crate::cli) fn beside_search(&self, i: usize, figure: &str) -> Option<Difference> {
        let search = &self.file(search_of(&self.entrants, i)?).name;
        let comparison = self.file(i).comparisons.iter().rev().find(|comparison| comparison.with == *search)?;
        comparison.figures.iter().find(|(name, _)| *name == figure).map(|&(_, difference)| difference)
    }
}

/// One row per entrant.
fn table(outcome: &Outcome) -> Columns {
    let scored = !outcome.report.files[0].reads.is_empty();
    let frechet = outcome.report.files[0].frechet.is_some();
    let mut heading =
        vec!["configuration", "layers", "bits", "predicted", "measured", "calls", "latents [95 %]", "less search"];
    if scored {
        heading.push("read right [95 %]");
    }
    if frechet {
        heading.push("Fréchet [95 %]");
    }
    let mut table = Columns::new(heading.into_iter().map(str::to_owned));
    for (i, entrant) in outcome.entrants.iter().enumerate() {
        let file = outcome.file(i);
        let figure =
            |name: &str| file.figures.iter().find(|(figure, _)| *figure == name).map(|&(_, estimate)| estimate);
        let interval = |Estimate { value, low, high }: Estimate| format!("{value:.4} [{low:.4}, {high:.4}]");
        let mut row = vec![
            file.name.clone(),
            bytes(entrant.bytes),
            format!("{:.2}", entrant.average_bits),
            percent(entrant.predicted.sqrt()),
            percent(entrant.measured.sqrt()),
            figure("eps").map_or("-".into(), |eps| format!("{:.4}", eps.value)),
            figure(LATENTS).map_or("-".into(), interval),
            outcome.beside_search(i, LATENTS).map_or("-".into(), verdict),
        ];
        if scored {
            row.push(file.reads.iter().find(|(name, _)| ["class", "all"].contains(name)).map_or(
                "-".into(),
                |(_, share)| {
                    let [value, low, high] = [share.share.value, share.share.low, share.share.high].map(|v| 100.0 * v);
                    format!("{value:.1} % [{low:.1}, {high:.1}]")
                },
            ));
        }
        if frechet {
            row.push(file.frechet.map_or("-".into(), |f| {
                format!("{:.1} [{:.1}, {:.1}]", f.corrected.value, f.corrected.low, f.corrected.high)
            }));
        }
        table.row(row);
    }
    table
}

/// A difference from the search, and whether the search is better.
fn verdict(Difference { estimate: Estimate { value, low, high }, noise }: Difference) -> String {
    let word = match (noise, value > 0.0) {
        (true, _) => "~",
        (false, true) => "worse",
        (false, false) => "better",
    };
    format!("{value:+.4} [{low:+.4}, {high:+.4}] {word}")
}

fn legend(outcome: &Outcome) -> Vec<String> {
    let mut lines = vec![
        format!("layers       bytes of all layers in the file; sizes are those of uniform precision. {} images judge", outcome.report.conditions.images),
        "predicted    relative error of the network's output as the sum of sensitivities has it; measured the same at these images".into(),
        "calls        relative error of the network's calls at images that nothing was chosen by; latents that of the median image".into(),
        "less search  the difference of latents from the search of this size, paired; ~ its 95 % interval holds zero".into(),
    ];
    let correlation = |Estimate { value, low, high }: Estimate| format!("{value:.4} [{low:.4}, {high:.4}]");
    if let Some(Additivity { rank_correlation, median_ratio, .. }) = &outcome.additivity {
        lines.push(format!(
            "additivity   of {} random configurations: rank correlation {} of predicted and measured errors, median ratio {median_ratio:.3}",
            outcome.archive,
            correlation(*rank_correlation)
        ));
    }
    if let Some(predictor) = outcome.predictor {
        lines.push(format!(
            "predictor    learned from {} configurations; rank correlation with those it had not seen {}",
            outcome.archive,
            correlation(predictor)
        ));
    }
    lines.push(format!(
        "effort       {} probes for sensitivities; {} random configurations of each size; up to {} moves",
        outcome.probes, outcome.effort[0], outcome.effort[1]
    ));
    lines
}
