//! Parts of work that several machines share.
//!
//! A shard is `k/n`: the k-th of n parts, from 0. Which one is a process's own is said by its command line, or by the
//! variables that schedulers set; this module is told their values, since the library reads no environment.

use crate::error::{Error, Result};
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

/// Number of shards where the scheduler does not say it, as `--shards` would.
pub const SHARDS: &str = "AQUATINT_SHARDS";

/// One of several parts of some work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// Which part, below `of`.
    pub index: usize,
    /// How many parts there are.
    pub of: usize,
}

impl Shard {
    /// All of the work.
    pub const WHOLE: Shard = Shard { index: 0, of: 1 };

    /// Which of `n` things belong to this shard: neighbours, as many as in any other shard or one more.
    pub fn range(self, n: usize) -> Range<usize> {
        // The quotient is at most n.
        let bound = |index: usize| (index as u128 * n as u128 / self.of as u128) as usize;
        bound(self.index)..bound(self.index + 1)
    }

    /// The shard that a scheduler started this process for, and the variable that says so; none if no scheduler did.
    /// `variable` gives the value of a variable of the environment, `shards` is the number of shards if the caller knows
    /// it, otherwise [`SHARDS`] may have it.
    ///
    /// Of a Slurm array (`SLURM_ARRAY_TASK_ID`) whose number of shards is given, tasks have the numbers of their shards, so
    /// that an array of some of them does just these; otherwise the array's first task is shard 0 and there are as many
    /// shards as tasks. An indexed Job of Kubernetes (`JOB_COMPLETION_INDEX`) does not tell its processes their number.
    ///
    /// # Errors
    /// [`Error::Request`] if a variable is not what its scheduler sets, a number of shards is needed and not known, or known
    /// and there is no scheduler's index for it.
    pub fn of_environment(
        variable: &dyn Fn(&str) -> Option<String>,
        shards: Option<usize>,
    ) -> Result<Option<(Shard, &'static str)>> {
        const SLURM: &str = "SLURM_ARRAY_TASK_ID";
        const KUBERNETES: &str = "JOB_COMPLETION_INDEX";
        let number = |name: &str| -> Result<Option<usize>> {
            let parse = |text: String| text.parse().map_err(|_| Error::request(name, "a whole number", text));
            variable(name).filter(|text| !text.is_empty()).map(parse).transpose()
        };
        let known = match shards {
            Some(shards) => Some(shards),
            None => number(SHARDS)?,
        };
        let checked = |index: usize, of: usize, name: &'static str| match index < of {
            true => Ok(Some((Shard { index, of }, name))),
            false => Err(Error::request(name, format!("a shard below the number of shards, {of}"), index)),
        };
        if let Some(id) = number(SLURM)? {
            if let Some(of) = known {
                return checked(id, of, SLURM);
            }
            let needed = |name: &str| {
                let remedy = || Error::request(name, format!("a number beside {SLURM}, or --shards"), "none");
                number(name)?.ok_or_else(remedy)
            };
            let (of, first, last) =
                (needed("SLURM_ARRAY_TASK_COUNT")?, needed("SLURM_ARRAY_TASK_MIN")?, needed("SLURM_ARRAY_TASK_MAX")?);
            // Of an array with gaps, such as 1,3,17, nothing tells the place of a task among the others.
            let whole = id >= first && last >= first && Some(last - first) == of.checked_sub(1);
            if !whole {
                let expected = "an array without gaps, or --shards, with tasks numbered as shards";
                return Err(Error::request(SLURM, expected, format!("{id} of {of} tasks from {first} to {last}")));
            }
            return checked(id - first, of, SLURM);
        }
        match (number(KUBERNETES)?, known) {
            (Some(index), Some(of)) => checked(index, of, KUBERNETES),
            (Some(index), None) => {
                Err(Error::request(KUBERNETES, format!("--shards or {SHARDS} beside it"), format!("{index} alone")))
            }
            (None, Some(of)) => {
                let expected = format!("{SLURM} or {KUBERNETES} beside it, or --shard K/{of}");
                Err(Error::request("shards", expected, "neither"))
            }
            (None, None) => Ok(None),
        }
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.of)
    }
}

impl FromStr for Shard {
    type Err = &'static str;

    /// Reads `K/N`, K from 0.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts = text.split_once('/').and_then(|(k, n)| Some(Shard { index: k.parse().ok()?, of: n.parse().ok()? }));
        parts.filter(|shard| shard.index < shard.of).ok_or("K/N is expected, K from 0 and below N")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(variables: &[(&str, &str)], shards: Option<usize>) -> Result<Option<String>, String> {
        let variable = |name: &str| variables.iter().find(|v| v.0 == name).map(|v| v.1.to_owned());
        let found = Shard::of_environment(&variable, shards).map_err(|e| e.to_string())?;
        Ok(found.map(|(shard, by)| format!("{shard} by {by}")))
    }

    fn slurm(id: &'static str) -> [(&'static str, &'static str); 4] {
        let count = ("SLURM_ARRAY_TASK_COUNT", "8");
        [("SLURM_ARRAY_TASK_ID", id), count, ("SLURM_ARRAY_TASK_MIN", "1"), ("SLURM_ARRAY_TASK_MAX", "8")]
    }

    #[test]
    fn shards_are_a_partition() {
        for n in [0, 1, 7, 26, 1000, usize::MAX] {
            for of in [1, 2, 3, 7, 30] {
                let ranges: Vec<_> = (0..of).map(|index| Shard { index, of }.range(n)).collect();
                assert_eq!((ranges[0].start, ranges[of - 1].end), (0, n));
                assert!(ranges.windows(2).all(|two| two[0].end == two[1].start));
                assert!(ranges.iter().all(|range| range.len() == n / of || range.len() == n / of + 1));
            }
        }
    }

    #[test]
    fn a_shard_is_read_as_it_is_written() {
        assert_eq!("2/10".parse(), Ok(Shard { index: 2, of: 10 }));
        assert_eq!(Shard { index: 2, of: 10 }.to_string(), "2/10");
        for text in ["", "1", "10/10", "0/0", "-1/2", "1/2/3", "a/b"] {
            assert!(text.parse::<Shard>().is_err(), "{text}");
        }
    }

    /// Variables as Slurm's manual of sbatch and Kubernetes' documentation of indexed Jobs have them.
    #[test]
    fn schedulers_say_which_shard_it_is() {
        assert_eq!(found(&[], None), Ok(None));
        assert_eq!(found(&slurm("3"), None).unwrap().unwrap(), "2/8 by SLURM_ARRAY_TASK_ID");
        // Some tasks again: their numbers are those of shards.
        assert_eq!(found(&slurm("3"), Some(20)).unwrap().unwrap(), "3/20 by SLURM_ARRAY_TASK_ID");
        let index = ("JOB_COMPLETION_INDEX", "4");
        assert_eq!(found(&[index], Some(5)).unwrap().unwrap(), "4/5 by JOB_COMPLETION_INDEX");
        assert_eq!(found(&[index, (SHARDS, "6")], None).unwrap().unwrap(), "4/6 by JOB_COMPLETION_INDEX");
        assert_eq!(found(&[index, (SHARDS, "6")], Some(7)).unwrap().unwrap(), "4/7 by JOB_COMPLETION_INDEX");
    }

    #[test]
    fn what_does_not_tell_a_shard_is_refused() {
        let refused = |variables: &[(&str, &str)], shards| found(variables, shards).unwrap_err();
        assert!(refused(&slurm("x"), None).contains("SLURM_ARRAY_TASK_ID: expected a whole number, got x"));
        assert!(refused(&slurm("8"), Some(8)).contains("below the number of shards, 8, got 8"));
        assert!(refused(&slurm("3")[..2], None).contains("SLURM_ARRAY_TASK_MIN"));
        let mut gaps = slurm("3");
        gaps[3].1 = "17";
        assert!(refused(&gaps, None).contains("3 of 8 tasks from 1 to 17"));
        assert!(refused(&[("JOB_COMPLETION_INDEX", "4")], None).contains("--shards or AQUATINT_SHARDS"));
        assert!(refused(&[("JOB_COMPLETION_INDEX", "4")], Some(4)).contains("got 4"));
        assert!(refused(&[], Some(4)).contains("shards: expected SLURM_ARRAY_TASK_ID"));
        assert!(refused(&[(SHARDS, "4")], None).contains("neither"));
    }
}
