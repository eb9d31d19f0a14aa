//! Work that is not done: what a calibration leaves beside its output, so that the same command goes on from there.
//!
//! A folder `OUTPUT.partial` holds the states so far and the sums of each group of inputs, each in a file that is replaced
//! whole. All tell which calibration they belong to, and how far they are.

use super::record::{CallRecord, InputRecord};
use super::states::{Call, States};
use super::store::{self, Store};
use super::sums::Sums;
use crate::error::Result;
use aquatint::error::Error;
use aquatint::raw::exec::Moment;
use aquatint::raw::program::Role;
use aquatint::raw::whole_file::WholeFile;
use safetensors::{Dtype, tensor::TensorInfo};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use zerocopy::IntoBytes;

/// The key of [`Mark`]s in metadata.
const MARK: &str = "aquatint_calibration_part";
const STATES: &str = "states.safetensors";

/// What a part says of itself.
#[derive(Serialize, Deserialize)]
struct Mark {
    /// Of the calibration.
    identity: String,
    /// Images or calls done.
    done: usize,
    /// Of states: all calls.
    #[serde(default)]
    calls: Vec<CallRecord>,
}

/// A folder of unfinished work.
pub struct Partial {
    folder: PathBuf,
    identity: String,
    /// Whether there was work to go on from.
    pub resumed: bool,
}

impl Partial {
    /// The folder of the calibration `identity` of `output`.
    ///
    /// # Errors
    /// [`Error::Request`] if there is one of another calibration, [`Error::Io`] if none can be made.
    pub fn open(output: &Path, identity: String) -> Result<Self> {
        let mut name = output.file_name().unwrap_or_default().to_owned();
        name.push(".partial");
        let mut partial = Partial { folder: output.with_file_name(name), identity, resumed: false };
        fs::create_dir_all(&partial.folder).map_err(Error::io("create", &partial.folder))?;
        let entries = fs::read_dir(&partial.folder).map_err(Error::io("read", &partial.folder))?;
        let mut parts: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        parts.retain(|path| path.extension().is_some_and(|kind| kind == "safetensors"));
        parts.sort();
        for path in parts {
            partial.resumed |= partial.part(&path)?.is_some();
        }
        Ok(partial)
    }

    /// The part at `path`, if there is one.
    fn part(&self, path: &Path) -> Result<Option<(Store, Mark)>> {
        if !path.exists() {
            return Ok(None);
        }
        let refuse = |got: &str| {
            let expected = format!(
                "the work of this command; the same command as then goes on with it, without {} one begins anew",
                self.folder.display()
            );
            Error::request(format!("unfinished calibration {}", path.display()), expected, got)
        };
        let store = Store::open(path)?.map_err(|e| refuse(&e))?;
        let mark: Option<Mark> = store.text(MARK).and_then(|text| serde_json::from_str(text).ok());
        match mark {
            Some(mark) if mark.identity == self.identity => Ok(Some((store, mark))),
            Some(_) => Err(refuse("that of other settings, another model or another version").into()),
            None => Err(refuse("something else").into()),
        }
    }

    /// Fills `states`, which know their chosen calls, with what was done, samples of `len` numbers.
    ///
    /// # Errors
    /// If what is there cannot be used.
    pub fn read_states(&self, states: &mut States, len: usize) -> Result<()> {
        let path = self.folder.join(STATES);
        let Some((store, mark)) = self.part(&path)? else { return Ok(()) };
        let unsound =
            || Error::request(path.display().to_string(), "states of whole images; remove it to begin anew", "others");
        let calls: Option<Vec<Call>> = mark.calls.iter().map(call).collect();
        states.calls = calls.ok_or_else(unsound)?;
        states.done = mark.done;
        for (i, samples) in states.samples.iter_mut().enumerate() {
            *samples = store.numbers(&format!("states.{i}"))?.ok_or_else(unsound)?;
            if Some(samples.len()) != mark.done.checked_mul(len) {
                return Err(unsound().into());
            }
        }
        Ok(())
    }

    /// Saves the states of the images that are done, samples of `len` numbers.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn write_states(&self, states: &States, len: usize) -> Result<()> {
        let target = self.folder.join(STATES);
        let calls = states.calls.iter().map(call_record).collect();
        let mark = Mark { identity: self.identity.clone(), done: states.done, calls };
        let mut infos = Vec::new();
        for i in 0..states.samples.len() {
            let bytes = 4 * states.done * len;
            let info = TensorInfo {
                dtype: Dtype::F32,
                shape: vec![states.done, len],
                data_offsets: (i * bytes, (i + 1) * bytes),
            };
            infos.push((format!("states.{i}"), info));
        }
        let mut out = WholeFile::create(&target)?;
        store::write_header(&mut out, &target, (MARK, &store::json(&target, &mark)?), infos)?;
        for samples in &states.samples {
            out.write_all(samples[..states.done * len].as_bytes()).map_err(Error::io("write", &target))?;
        }
        Ok(out.commit()?)
    }

    fn group(&self, group: usize) -> PathBuf {
        self.folder.join(format!("sums-{group:04}.safetensors"))
    }

    /// The sums of the inputs of group `group` so far, and the passes that are in them; none if there are none.
    ///
    /// # Errors
    /// If what is there cannot be used.
    pub fn read_sums(&self, group: usize, inputs: &[(usize, &InputRecord)]) -> Result<Option<(Vec<Sums>, usize)>> {
        let path = self.group(group);
        let Some((store, mark)) = self.part(&path)? else { return Ok(None) };
        let refuse = |[what, expected, got]: [String; 3]| {
            Error::request(
                format!("unfinished calibration {}: {what}", path.display()),
                format!("{expected}; remove it to begin anew"),
                got,
            )
        };
        let sums = inputs.iter().map(|&(index, input)| {
            store.check(index, input).map_err(refuse)?;
            store.sums(index)
        });
        Ok(Some((sums.collect::<Result<_>>()?, mark.done)))
    }

    /// Saves the sums of group `group` after `done` passes.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn write_sums<'a>(
        &self,
        group: usize,
        inputs: &[(usize, &InputRecord)],
        done: usize,
        sums: impl Fn(usize) -> &'a Sums,
    ) -> Result<()> {
        let target = self.group(group);
        let mark = Mark { identity: self.identity.clone(), done, calls: Vec::new() };
        let text = store::json(&target, &mark)?;
        store::write(&target, (MARK, &text), inputs, |i, out| store::write_sums(out, &target, sums(i)))
    }

    /// The sums of input `index`, which is of the finished group `group`.
    ///
    /// # Errors
    /// If they are not there.
    pub fn sums(&self, group: usize, index: usize) -> Result<Sums> {
        let path = self.group(group);
        match self.part(&path)? {
            Some((store, _)) => store.sums(index),
            None => Err(Error::request(path.display().to_string(), "the sums of a group", "none").into()),
        }
    }

    /// Where it is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Removes the folder: the work is done.
    ///
    /// # Errors
    /// [`Error::Io`] if that fails.
    pub fn remove(self) -> Result<()> {
        Ok(fs::remove_dir_all(&self.folder).map_err(Error::io("remove", &self.folder))?)
    }
}

/// A call as records have it.
pub fn call_record(call: &Call) -> CallRecord {
    let Moment { timestep, fraction } = call.moment;
    CallRecord { role: call.role.name().to_owned(), timestep, fraction }
}

fn call(record: &CallRecord) -> Option<Call> {
    let role = [Role::Denoiser, Role::Refiner].into_iter().find(|role| role.name() == record.role)?;
    Some(Call { role, moment: Moment { timestep: record.timestep, fraction: record.fraction } })
}
