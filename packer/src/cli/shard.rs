//! `--shard`: which part of the work is this process's own.

use crate::error::Result;
use aquatint::error::one_line;
use aquatint::shard::Shard;
use clap::Args;

/// Which part of the work to do.
#[derive(Debug, Args)]
pub(super) struct ShardArgs {
    /// Do a part of the work, K of N, K from 0; --merge joins the parts [default: what SLURM_ARRAY_TASK_ID or
    /// JOB_COMPLETION_INDEX says, else all of it]
    #[arg(long, value_name = "K/N", conflicts_with = "merge")]
    shard: Option<Shard>,
    /// The number of parts, where the scheduler says only which one it is; AQUATINT_SHARDS may have it, too
    #[arg(long, value_name = "N", conflicts_with_all = ["merge", "shard"])]
    shards: Option<usize>,
}

impl ShardArgs {
    /// The part to do, if not all of it; says so where the environment decides it, unless `quiet`.
    ///
    /// # Errors
    /// Those of [`Shard::of_environment`].
    pub(super) fn chosen(&self, quiet: bool) -> Result<Option<Shard>> {
        if self.shard.is_some() {
            return Ok(self.shard);
        }
        let variable = |name: &str| std::env::var(name).ok();
        let Some((shard, by)) = Shard::of_environment(&variable, self.shards)? else { return Ok(None) };
        if !quiet {
            eprintln!("{}", one_line(&format!("note: shard {shard}, as {by} says")));
        }
        Ok(Some(shard))
    }
}
