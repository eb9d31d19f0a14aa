//! Calibrations of different samples of one run become one.

use super::file::{self, Calibration};
use super::record::{Record, Shards};
use crate::error::Result;
use aquatint::error::Error;
use aquatint::raw::whole_file::check_target;
use std::path::{Path, PathBuf};

/// Adds the calibrations `parts` into `output`; returns what it then is.
///
/// # Errors
/// [`Error::Request`] if there are fewer than two, if they are not of one model, run and set of shards, or if samples are
/// in two of them.
pub fn merge(parts: &[PathBuf], output: &Path) -> Result<Shards> {
    let inputs: Vec<&Path> = parts.iter().map(PathBuf::as_path).collect();
    check_target(output, &inputs)?;
    let opened = parts.iter().map(|path| Calibration::open(path)).collect::<Result<Vec<_>>>()?;
    let Some((first, rest)) = opened.split_first().filter(|(_, rest)| !rest.is_empty()) else {
        return Err(Error::request("--merge", "at least two calibrations", parts.len()).into());
    };
    let mut shards = first.record().shards.clone();
    for (other, path) in rest.iter().zip(&parts[1..]) {
        let what = format!("calibration {}", path.display());
        if let Some(difference) = difference(first.record(), other.record()) {
            let expected = format!("another part of the calibration that {} is of", parts[0].display());
            return Err(Error::request(what, expected, difference).into());
        }
        let own = &other.record().shards.parts;
        if let Some(twice) = own.iter().find(|part| shards.parts.contains(part)) {
            let expected = "samples that no other file has";
            return Err(
                Error::request(what, expected, format!("shard {twice}/{}, which is there twice", shards.of)).into()
            );
        }
        shards.parts.extend(own);
    }
    shards.parts.sort_unstable();
    let record = Record { shards: shards.clone(), ..first.record().clone() };
    // In the order of their samples, whatever the order of arguments.
    let mut ordered: Vec<&Calibration> = opened.iter().collect();
    ordered.sort_by_key(|c| c.record().shards.parts.first().copied());
    file::write(output, &record, |index| {
        let mut sums = ordered[0].sums(index)?;
        for other in &ordered[1..] {
            sums.add(&other.sums(index)?);
        }
        Ok(sums)
    })?;
    Ok(shards)
}

/// In what two files differ that should not.
fn difference(a: &Record, b: &Record) -> Option<&'static str> {
    let checks = [
        (a.model != b.model, "one of another model"),
        (a.shards.of != b.shards.of, "one in another number of shards"),
        (a.run != b.run, "one of other runs: steps, sampler, guidance, seed, prompts or calls differ"),
        (a.inputs != b.inputs || a.layers != b.layers, "one whose inputs were kept in other ways"),
        (a.version != b.version || a.tool != b.tool, "one by another version of this program"),
    ];
    checks.iter().find(|(differs, _)| *differs).map(|(_, how)| *how)
}
