//! `packer archive sensitivity.json --choices choices.aqt --num-archs 500 -o quant_cache.pkl`.

use super::Rules;
use super::measuring::Measuring;
use crate::cli::pack::bar;
use crate::cli::say_line;
use crate::error::Result;
use crate::search::cache;
use crate::search::contest::{self, Additivity};
use crate::search::random::Distribution;
use aquatint::Error;
use aquatint::raw::whole_file::{self, check_target};
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
        check_target(&self.output, &[&self.file])?;
        if !(0.0..=self.a_u).contains(&self.a_l) || self.a_u > 1.0 {
            let expected = "two shares from 0 to 1, the first at most the second";
            return Err(Error::request("a-l and a-u", expected, format!("{} and {}", self.a_l, self.a_u)).into());
        }
        let measured = self.measuring.open(&self.file, &self.rules)?;
        let (trials, problem) = (measured.trials()?, &measured.problem);
        let distribution = Distribution { bounds: [self.a_l, self.a_u], seed: self.seed };
        let mut archive = contest::Archive::default();
        if self.output.exists() {
            let origin = self.output.display().to_string();
            archive = contest::Archive::of(&origin, &cache::read(&self.output)?, problem)?;
            let drawn = |(i, assignment): (usize, &Vec<usize>)| distribution.draw(problem, i as u64) == *assignment;
            if let Some(number) = archive.assignments.iter().enumerate().position(|known| !drawn(known)) {
                let expected = "configurations of this seed and these bounds; without the file one begins anew";
                return Err(Error::request(origin, expected, format!("others, number {number} first")).into());
            }
        }
        let meter = measured.meter(trials, self.quiet)?;
        let errors = trials.weight_errors(problem);
        let bar = bar(self.quiet);
        bar.set_length(self.num_archs as u64);
        bar.set_message("configurations");
        let filled = archive.fill((problem, &meter), distribution, self.num_archs, &mut |archive| {
            bar.set_position(archive.errors.len() as u64);
            let bytes = cache::encode(&archive.entries(problem, &errors));
            Ok(whole_file::write(&self.output, |file| file.write_all(&bytes))?)
        });
        bar.finish_and_clear();
        filled?;
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
}
