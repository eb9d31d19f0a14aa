//! Work that is not done: a folder `OUTPUT.partial` with the file of all choices and a file per probe, so that the same command
//! goes on from there.

use super::record::CallError;
use crate::error::Result;
use aquatint::error::Error;
use aquatint::raw::whole_file;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

/// A folder of unfinished work.
pub(super) struct Partial {
    folder: PathBuf,
    /// Whether it was made for this command.
    fresh: bool,
}

/// A probe that is done.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Done {
    /// Of the work that it belongs to.
    identity: String,
    calls: Vec<CallError>,
}

impl Partial {
    /// The folder beside `output`; made if it is not there.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn open(output: &Path) -> Result<Self> {
        let mut name = output.file_name().unwrap_or_default().to_owned();
        name.push(".partial");
        let folder = output.with_file_name(name);
        let fresh = !folder.exists();
        fs::create_dir_all(&folder).map_err(Error::io("create", &folder))?;
        Ok(Partial { folder, fresh })
    }

    /// Where it is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The path of a file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The path of the file of all choices of the work called `key`.
    ///
    /// # Errors
    /// If there is one of other work.
    pub fn choices(&self, key: &str) -> Result<PathBuf> {
        let own = self.file(&format!("choices-{key}.aqt"));
        let entries = fs::read_dir(&self.folder).map_err(Error::io("read", &self.folder))?;
        let foreign = |path: &PathBuf| path != &own && path.extension().is_some_and(|kind| kind == "aqt");
        match entries.flatten().map(|entry| entry.path()).find(foreign) {
            Some(path) => Err(self.refuse(&path, OTHER)),
            None => Ok(own),
        }
    }

    fn refuse(&self, path: &Path, got: &str) -> crate::Error {
        let expected = format!("the work of this command; without {} one begins anew", self.folder.display());
        Error::request(format!("unfinished sensitivity {}", path.display()), expected, got).into()
    }

    fn path(&self, probe: &str) -> PathBuf {
        self.file(&format!("probe-{probe}.json"))
    }

    /// The probe called `probe` of the work `identity`, of so many calls, if it is done.
    ///
    /// # Errors
    /// If what is there is of other work, or damaged.
    pub fn probe(&self, probe: &str, identity: &str, calls: usize) -> Result<Option<Vec<CallError>>> {
        let path = self.path(probe);
        if !path.exists() {
            return Ok(None);
        }
        let text = fs::read(&path).map_err(Error::io("read", &path))?;
        match serde_json::from_slice::<Done>(&text) {
            Ok(done) if done.identity != identity => Err(self.refuse(&path, OTHER)),
            Ok(done) if done.calls.len() == calls => Ok(Some(done.calls)),
            _ => Err(self.refuse(&path, "something else")),
        }
    }

    /// Keeps the probe called `probe`.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn keep(&self, probe: &str, identity: &str, calls: &[CallError]) -> Result<()> {
        let done = Done { identity: identity.to_owned(), calls: calls.to_owned() };
        let text = serde_json::to_string(&done).map_err(|e| Error::request("probe", "values JSON can hold", e))?;
        Ok(whole_file::write(&self.path(probe), |file| writeln!(file, "{text}"))?)
    }

    /// Removes the folder.
    ///
    /// # Errors
    /// If that fails.
    pub fn remove(&self) -> Result<()> {
        Ok(fs::remove_dir_all(&self.folder).map_err(Error::io("remove", &self.folder))?)
    }

    /// Removes the folder if this command made it: nothing in it is worth going on with.
    pub fn remove_if_fresh(&self) {
        if self.fresh {
            // The error that led here says more than one of the clean-up.
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}

/// What other work is called.
const OTHER: &str = "that of other settings, another model or another version";
