//! Shards become one file.

use super::record::{Probe, Record, has};
use crate::error::Result;
use aquatint::error::Error;
use aquatint::raw::whole_file::check_target;
use aquatint::shard::Shard;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Joins the files of all shards of one command into `output`, which is then as if there had been no shards.
///
/// # Errors
/// If one cannot be read, is not of the same work as the first, or one is missing.
pub fn merge(parts: &[PathBuf], output: &Path) -> Result<Record> {
    check_target(output, &parts.iter().map(PathBuf::as_path).collect::<Vec<_>>())?;
    let records = parts.iter().map(|path| Record::open(path)).collect::<Result<Vec<_>>>()?;
    let Some(first) = records.first() else { return Err(Error::request("merge", "files of shards", "none").into()) };
    let mut found: Vec<Shard> = Vec::new();
    for (path, record) in parts.iter().zip(&records) {
        let what = || path.display().to_string();
        let Some([index, of]) = record.shard else {
            return Err(Error::request(what(), "a part that --shard made", "a whole").into());
        };
        if index >= of || found.iter().any(|other| other.index == index || other.of != of) {
            let expected = "another shard of the same number of shards";
            return Err(Error::request(what(), expected, format!("{index}/{of}")).into());
        }
        if let Some(field) = difference(&first.outline(), &record.outline())? {
            let expected = format!("the {field} of {}", parts[0].display());
            return Err(Error::request(what(), expected, "another").into());
        }
        found.push(Shard { index, of });
    }
    let there = |index: &usize| found.iter().any(|shard| shard.index == *index);
    let missing: Vec<String> = (0..found[0].of).filter(|index| !there(index)).map(|index| index.to_string()).collect();
    if !missing.is_empty() {
        let got = format!("none of {}", missing.join(", "));
        return Err(Error::request("merge", format!("all {} shards", found[0].of), got).into());
    }
    let mut merged = first.outline();
    for (mut record, shard) in records.into_iter().zip(found) {
        for (number, (to, from)) in merged.probes_mut().zip(record.probes_mut()).enumerate() {
            if has(Some(shard), number) {
                *to = taken(from, number)?;
            }
        }
    }
    merged.write(output)?;
    Ok(merged)
}

/// What the shard found that has the probe.
fn taken(probe: &Probe, number: usize) -> Result<Probe> {
    match probe.calls.is_empty() {
        true => Err(Error::request(format!("probe {number}"), "the errors of its calls", "none").into()),
        false => Ok(probe.clone()),
    }
}

/// The first field in which two records differ.
fn difference(a: &Record, b: &Record) -> Result<Option<String>> {
    let value = |record: &Record| {
        serde_json::to_value(record).map_err(|e| Error::request("sensitivity", "values JSON can hold", e))
    };
    let (Value::Object(a), Value::Object(b)) = (value(a)?, value(b)?) else { return Ok(None) };
    let differs = |field: &&String| a.get(*field) != b.get(*field);
    Ok(a.keys().chain(b.keys()).find(differs).cloned())
}
