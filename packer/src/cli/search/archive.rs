//! `packer archive sensitivity.json --choices choices.aqt --num-archs 500 -o quant_cache.pkl`.

use super::Rules;
use super::measuring::{Measured, Measuring};
use crate::cli::pack::bar;
use crate::cli::say_line;
use crate::cli::shard::ShardArgs;
use crate::error::Result;
use crate::search::archive::{self, Additivity};
use crate::search::random::Distribution;
use crate::search::{Problem, cache};
use aquatint::Error;
use aquatint::raw::whole_file::{self, check_target};
use aquatint::shard::Shard;
use aquatint_evaluation::stats::Estimate;
use clap::Args;
use std::io::Write;
use std::path::PathBuf;

/// Arguments of measuring random configurations.
#[derive(Debug, Args)]
pub(in crate::cli) struct Archive {
    /// What packer sensitivity measured.
    #[arg(value_name = "SENSITIVITY.json")]
    file: PathBuf,
    /// Configurations.
    #[arg(long, alias = "num_archs", default_value_t = 500, value_name = "N")]
    num_archs: usize,
    /// Least share of layers with the fewer bits: each configuration has a share drawn evenly between both bounds
    #[arg(long, alias = "a_l", default_value_t = 0.0, value_name = "SHARE")]
    a_l: f64,
    /// Largest share of layers with the fewer bits.
    #[arg(long, alias = "a_u", default_value_t = 1.0, value_name = "SHARE")]
    a_u: f64,
    /// Tells the sequence of configurations apart from others.
    #[arg(long, default_value_t = 42, value_name = "K")]
    seed: u64,
    #[command(flatten)]
    rules: Rules,
    #[command(flatten)]
    measuring: Measuring,
    #[command(flatten)]
    shard: ShardArgs,
    /// Join the caches of all parts instead.
    #[arg(long, value_name = "CACHE.pkl", num_args = 1.., conflicts_with = "choices")]
    merge: Vec<PathBuf>,
    /// The cache to write, after every configuration; what is in it already is not measured again.
    #[arg(short, long, value_name = "quant_cache.pkl")]
    output: PathBuf,
    /// Print nothing but errors.
    #[arg(short, long)]
    quiet: bool,
}

impl Archive {
    /// Runs the command.
    pub(in crate::cli) fn run(&self) -> Result<()> {
        let read = [&self.file].into_iter().chain(self.measuring.reads()).map(PathBuf::as_path);
        check_target(&self.output, &read.collect::<Vec<_>>())?;
        if !(0.0..=self.a_u).contains(&self.a_l) || self.a_u > 1.0 {
            let expected = "two shares from 0 to 1, the first at most the second";
            return Err(Error::request("a-l and a-u", expected, format!("{} and {}", self.a_l, self.a_u)).into());
        }
        let measured = self.measuring.open(&self.file, &self.rules)?;
        let problem = &measured.problem;
        let distribution = Distribution { bounds: [self.a_l, self.a_u], seed: self.seed };
        let archive = match self.merge.is_empty() {
            true => self.measure(&measured, distribution)?,
            false => self.join(problem, distribution)?,
        };
        if !self.quiet {
            say_line(format!("{}: {} configurations", self.output.display(), archive.errors.len()));
            if let Some(Additivity { rank_correlation, median_ratio, .. }) = Additivity::new(problem, &archive) {
                let Estimate { value, low, high } = rank_correlation;
                say_line(format!(
                    "sums of sensitivities: rank correlation {value:.4} [{low:.4}, {high:.4}] with measured errors, which are \
                     {median_ratio:.3} of them at the median"
                ));
            }
        }
        Ok(())
    }

    /// Measures what is not there yet.
    fn measure(&self, measured: &Measured, distribution: Distribution) -> Result<archive::Archive> {
        let (trials, problem) = (measured.trials()?, &measured.problem);
        let shard = self.shard.chosen(self.quiet)?.unwrap_or(Shard::WHOLE);
        let numbers = shard.range(self.num_archs);
        let mut archive = archive::Archive::default();
        if self.output.exists() {
            let origin = self.output.display().to_string();
            archive = archive::Archive::of(&origin, &cache::read(&self.output)?, problem)?;
            archive.check(&origin, problem, distribution, shard.range(self.num_archs.max(archive.numbers.len())))?;
        }
        let meter = measured.meter(trials, self.quiet)?;
        let errors = trials.weight_errors(problem);
        let bar = bar(self.quiet);
        bar.set_length(numbers.len() as u64);
        bar.set_message("configurations");
        let filled = archive.fill((problem, &meter), distribution, numbers, &mut |archive| {
            bar.set_position(archive.errors.len() as u64);
            let bytes = cache::encode(&archive.entries(problem, &errors));
            Ok(whole_file::write(&self.output, |file| file.write_all(&bytes))?)
        });
        bar.finish_and_clear();
        filled.map(|()| archive)
    }

    /// Joins the caches of all parts: the entries as they are.
    fn join(&self, problem: &Problem, distribution: Distribution) -> Result<archive::Archive> {
        let (mut parts, mut entries) = (Vec::new(), Vec::new());
        for path in &self.merge {
            let (origin, own) = (path.display().to_string(), cache::read(path)?);
            let part = archive::Archive::of(&origin, &own, problem)?;
            let first = part.numbers.first().copied().unwrap_or(0);
            part.check(&origin, problem, distribution, first..first + part.numbers.len())?;
            entries.extend(part.numbers.iter().copied().zip(own));
            parts.push(part);
        }
        let archive = archive::Archive::join(parts, self.num_archs)?;
        entries.sort_by_key(|(number, _)| *number);
        let entries: Vec<_> = entries.into_iter().map(|(_, entry)| entry).collect();
        whole_file::write(&self.output, |file| file.write_all(&cache::encode(&entries)))?;
        Ok(archive)
    }
}
