//! Flags of the research scripts (Q-Diffusion's, above all), which packing understands as far as they mean something here.
//!
//! One that means nothing here is told so in a note; one that asks for what packing cannot do is refused, with the remedy.

use super::arguments::{ActRange, Pack};
use crate::error::Result;
use aquatint::error::Error;
use clap::Args;
use std::path::PathBuf;

/// Flags by the scripts' names.
#[derive(Debug, Args)]
pub(super) struct Research {
    /// Packing is quantization after training.
    #[arg(long, hide = true)]
    ptq: bool,
    /// Whose rule uniform levels follow, with --weight_bit.
    #[arg(long, alias = "quant_mode", hide = true, requires = "weight_bit", value_parser = ["qdiff"])]
    quant_mode: Option<String>,
    /// Ranges of activations by extremes.
    #[arg(long, alias = "a_min_max", hide = true, conflicts_with_all = ["act_range", "running_stat"])]
    a_min_max: bool,
    /// Ranges of activations by extremes that are averaged over calls.
    #[arg(long, alias = "running_stat", hide = true, conflicts_with = "act_range")]
    running_stat: bool,
    /// The same of softmax alone.
    #[arg(long, alias = "rs_sm_only", hide = true)]
    rs_sm_only: bool,
    /// Weights, and ranges of activations, as the imported file has them.
    #[arg(long, hide = true, requires = "import", conflicts_with = "resume_w")]
    resume: bool,
    /// Weights as the imported file has them.
    #[arg(long, alias = "resume_w", hide = true, requires = "import")]
    resume_w: bool,
    /// Samples to calibrate with.
    #[arg(long, alias = "cali_data_path", hide = true, value_name = "FILE")]
    cali_data_path: Option<PathBuf>,
    /// Calls to calibrate with.
    #[arg(long, alias = "cali_st", hide = true, value_name = "N")]
    cali_st: Option<usize>,
    /// Images to calibrate with.
    #[arg(long, alias = "cali_n", hide = true, value_name = "N")]
    cali_n: Option<usize>,
    /// Samples per pass when calibrating.
    #[arg(long, alias = "cali_batch_size", hide = true, value_name = "N")]
    cali_batch_size: Option<usize>,
    /// Iterations of learned rounding.
    #[arg(long, alias = "cali_iters", hide = true, value_name = "N")]
    cali_iters: Option<usize>,
}

impl Research {
    /// The rule of --act-range that the flags mean, if they mean one.
    ///
    /// # Errors
    /// If a flag asks for what packing cannot do.
    pub(super) fn act_range(&self, pack: &Pack) -> Result<Option<ActRange>> {
        self.refuse()?;
        Ok(match self {
            Research { a_min_max: true, .. } => Some(ActRange::MinMax),
            Research { running_stat: true, .. } => Some(ActRange::Ema),
            Research { resume: true, .. } if pack.quant_act => pack.act_range.or(Some(ActRange::Import)),
            _ => pack.act_range,
        })
    }

    /// The specification that `--weight_bit` means with these flags.
    pub(super) fn spec(&self, bits: &str) -> String {
        // The rule of Q-Diffusion's scripts for latent diffusion and Stable Diffusion.
        let method = if self.quant_mode.is_some() { ":mse_80" } else { "" };
        format!("w{bits}a16{method}")
    }

    /// Refuses what packing cannot do.
    fn refuse(&self) -> Result<()> {
        let refuse = |flag: &str, expected: &str, got: String| Err(Error::request(flag, expected, got).into());
        let calibrates = [
            ("--cali_st", "packer calibrate MODEL --cali-st N, which makes the file for --calib", self.cali_st),
            ("--cali_n", "packer calibrate MODEL --cali-n N, which makes the file for --calib", self.cali_n),
            (
                "--cali_batch_size",
                "packer calibrate MODEL --cali-batch N, which makes the file for --calib",
                self.cali_batch_size,
            ),
            ("--cali_iters", "no iterations: --calib chooses codes in closed form, without training", self.cali_iters),
        ];
        if let Some((flag, expected, Some(n))) = calibrates.into_iter().find(|(.., n)| n.is_some()) {
            return refuse(flag, expected, n.to_string());
        }
        if let Some(path) = &self.cali_data_path {
            let expected = "--calib FILE by packer calibrate, which makes its own samples";
            return refuse("--cali_data_path", expected, path.display().to_string());
        }
        if self.rs_sm_only {
            let expected =
                "not that flag: softmax has steps of each query's own, or with --act-range import the file's";
            return refuse("--rs_sm_only", expected, "it".into());
        }
        Ok(())
    }

    /// What flags do not change.
    pub(super) fn notes(&self, quant_act: bool) -> Vec<&'static str> {
        let idle = [
            (self.ptq, "--ptq changes nothing: packing is quantization after training"),
            (
                self.resume_w,
                "--resume_w changes nothing: --import takes weights alone, unless --act-range import is given",
            ),
            (
                self.resume && !quant_act,
                "--resume takes weights alone: without --quant_act there are no ranges to take",
            ),
        ];
        idle.into_iter().filter(|(on, _)| *on).map(|(_, note)| note).collect()
    }
}
