//! Units that are done, each in a file of a folder `OUTPUT.partial`.

use super::Curve;
use super::file::{self, Layer, Reconstruction, Record, UnitRecord};
use crate::error::Result;
use aquatint::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

/// A folder of units.
pub(super) struct Partial {
    folder: PathBuf,
    /// What every file says of itself; no units.
    record: Record,
}

impl Partial {
    /// The folder of the reconstruction of `output` that is `record`'s.
    ///
    /// # Errors
    /// If there is work of another one.
    pub(super) fn open(output: &Path, record: Record) -> Result<Self> {
        let mut name = output.file_name().unwrap_or_default().to_owned();
        name.push(".partial");
        let partial = Partial { folder: output.with_file_name(name), record };
        partial.unit(0)?;
        Ok(partial)
    }

    /// Where it is.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    fn path(&self, unit: usize) -> PathBuf {
        self.folder.join(format!("unit-{unit:04}.safetensors"))
    }

    /// Unit `unit`, if it is done.
    ///
    /// # Errors
    /// If what is there is of another reconstruction, or damaged.
    pub(super) fn unit(&self, unit: usize) -> Result<Option<(UnitRecord, Vec<Layer>)>> {
        let path = self.path(unit);
        if !path.exists() {
            return Ok(None);
        }
        let refuse = |got: &str| {
            let expected = format!("the work of this command; without {} one begins anew", self.folder.display());
            Error::request(format!("unfinished reconstruction {}", path.display()), expected, got)
        };
        let file = Reconstruction::open(&path)?.ok_or_else(|| refuse("something else"))?;
        let record = file.record();
        if record.identity != self.record.identity {
            return Err(refuse("that of other settings, another model or another version").into());
        }
        let [unit] = &record.units[..] else { return Err(refuse("other than one unit").into()) };
        let layers = record.layers.iter().map(|layer| file.layer(layer)).collect::<Result<_>>()?;
        Ok(Some((unit.clone(), layers)))
    }

    /// Keeps unit `unit`.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(super) fn keep(
        &self,
        unit: usize,
        name: &str,
        (curve, activations): (Curve, Option<Curve>),
        layers: &[Layer],
    ) -> Result<UnitRecord> {
        fs::create_dir_all(&self.folder).map_err(Error::io("create", &self.folder))?;
        let done = UnitRecord { name: name.to_owned(), layers: layers.len(), curve, activations };
        let mut record = self.record.clone();
        record.units = vec![done.clone()];
        record.layers = layers.iter().map(|layer| layer.record.clone()).collect();
        file::write(&self.path(unit), &record, |i| Ok(layers[i].clone()))?;
        Ok(done)
    }

    /// Writes all of `units` units to `output` and removes the folder.
    ///
    /// # Errors
    /// If one is not there, or the file cannot be written.
    pub(super) fn finish(self, units: usize, output: &Path) -> Result<Record> {
        let mut record = self.record.clone();
        let mut places = Vec::new();
        for unit in 0..units {
            let missing = || Error::request(self.path(unit).display().to_string(), "a unit that is done", "none");
            let (done, layers) = self.unit(unit)?.ok_or_else(missing)?;
            record.units.push(done);
            places.extend((0..layers.len()).map(|layer| (unit, layer)));
            record.layers.extend(layers.into_iter().map(|layer| layer.record));
        }
        // One unit is in memory at a time.
        let mut held: Option<(usize, Vec<Layer>)> = None;
        file::write(output, &record, |i| {
            let (unit, layer) = places[i];
            if held.as_ref().is_none_or(|(number, _)| *number != unit) {
                held = self.unit(unit)?.map(|(_, layers)| (unit, layers));
            }
            Ok(held.as_ref().expect("read a moment ago").1[layer].clone())
        })?;
        fs::remove_dir_all(&self.folder).map_err(Error::io("remove", &self.folder))?;
        Ok(record)
    }
}
