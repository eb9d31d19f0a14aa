//! Files that appear whole or not at all.
//!
//! A file is written beside its target under a name of its own, flushed to the disk, and renamed over the target. Until
//! then an older target stays as it was; if the work ends early, the temporary file is removed. The name says who made
//! it, `<target>.<place>-<process>-<count>.aquatint-part`, so that one that a killed process left behind is recognised and
//! removed by whoever next writes the same target. `place` stands for a boot of one machine and its numbering of
//! processes (containers have their own), in which "no such process" can be known.
//!
//! A target is never replaced if it is anything but a file, and [`check_target`] refuses one that is an input.

use crate::error::{Error, Result};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use xxhash_rust::xxh3::xxh3_64;

/// How names of temporary files end.
const MARK: &str = ".aquatint-part";
/// A temporary file of another machine, or of an earlier boot, is left behind if nothing was written to it for so long.
const ABANDONED: Duration = Duration::from_secs(24 * 60 * 60);

/// Every temporary file and directory of this process. Whoever holds the lock is the only one to make, rename or remove.
static LIVE: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

fn live() -> MutexGuard<'static, Vec<PathBuf>> {
    LIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Refuses a `target` that could not be written, before anything is computed: anything but a file or a free name in a
/// directory that exists, and each of `inputs` by whatever name or link. An input that is a directory stands for all
/// files below it.
///
/// # Errors
/// [`Error::Request`] says what `target` is.
pub fn check_target(target: &Path, inputs: &[&Path]) -> Result<()> {
    let parent = folder(target);
    let got = if target.as_os_str().is_empty() || (target.file_name().is_none() && !target.is_dir()) {
        "a path that names no file".into()
    } else if target.is_dir() || target.as_os_str().to_string_lossy().ends_with('/') {
        "a directory".into()
    } else if !parent.is_dir() {
        format!("no directory {}", parent.display())
    } else if let Some(other) = fs::metadata(target).ok().and_then(|found| kind(&found)) {
        other.into()
    } else {
        let Some(identity) = Identity::of(target) else { return Ok(()) };
        let Some(input) = inputs.iter().find_map(|input| identity.find(input)) else { return Ok(()) };
        let (what, got) = (format!("output {}", target.display()), format!("the input {}", input.display()));
        return Err(Error::request(what, "a file that is not an input", got));
    };
    Err(Error::request(format!("output {}", target.display()), "a file in a directory that exists", got))
}

/// [`check_target`] for each of several outputs, which must be different files.
///
/// # Errors
/// [`Error::Request`] says what a target is.
pub fn check_targets(targets: &[&Path], inputs: &[&Path]) -> Result<()> {
    for (i, target) in targets.iter().enumerate() {
        check_target(target, inputs)?;
        if let Some(other) = targets[..i].iter().find(|other| spot(other) == spot(target)) {
            let what = format!("output {}", target.display());
            return Err(Error::request(what, "a file of its own", format!("another output, {}", other.display())));
        }
    }
    Ok(())
}

/// What all spellings of an output have in common: the file that is there, else its name in its folder.
fn spot(target: &Path) -> (Option<Identity>, Option<(PathBuf, &OsStr)>) {
    let identity = Identity::of(target);
    let free = identity.is_none().then(|| {
        let folder = folder(target);
        let folder = fs::canonicalize(folder).unwrap_or_else(|_| folder.to_owned());
        (folder, target.file_name().unwrap_or_default())
    });
    (identity, free)
}

/// What there is if not a file.
fn kind(found: &Metadata) -> Option<&'static str> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        let kind = found.file_type();
        if kind.is_fifo() {
            return Some("a pipe");
        } else if kind.is_socket() {
            return Some("a socket");
        } else if kind.is_char_device() || kind.is_block_device() {
            return Some("a device");
        }
    }
    (!found.is_file()).then_some("no file")
}

/// What all names of one file have in common, links followed.
#[derive(PartialEq)]
struct Identity {
    #[cfg(unix)]
    device_and_inode: (u64, u64),
    #[cfg(not(unix))]
    path: PathBuf,
}

impl Identity {
    /// That of what is at `path`; none if there is nothing.
    fn of(path: &Path) -> Option<Self> {
        #[cfg(unix)]
        return fs::metadata(path).ok().map(|found| {
            use std::os::unix::fs::MetadataExt;
            Identity { device_and_inode: (found.dev(), found.ino()) }
        });
        #[cfg(not(unix))]
        return fs::canonicalize(path).ok().map(|path| Identity { path });
    }

    /// The file with this identity: `input`, or one below it. Links to directories are not followed further.
    fn find(&self, input: &Path) -> Option<PathBuf> {
        if !input.is_dir() {
            return (Identity::of(input).as_ref() == Some(self)).then(|| input.to_owned());
        }
        fs::read_dir(input).ok()?.flatten().find_map(|entry| {
            let path = entry.path();
            let linked_directory = entry.file_type().is_ok_and(|t| t.is_symlink()) && path.is_dir();
            if linked_directory { None } else { self.find(&path) }
        })
    }
}

fn folder(target: &Path) -> &Path {
    target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A file that is being written.
pub struct WholeFile {
    out: BufWriter<File>,
    temporary: Temporary,
}

impl WholeFile {
    /// Starts a file that will appear at `target`, and removes what killed processes left of earlier ones.
    ///
    /// # Errors
    /// [`Error::Request`] if `target` is not a file or free name in a directory that exists (see [`check_target`]),
    /// [`Error::Io`] if no file can be made beside it.
    pub fn create(target: &Path) -> Result<Self> {
        check_target(target, &[])?;
        let options = || File::options().read(true).write(true).create_new(true).to_owned();
        let (temporary, file) = Temporary::create(target, |path| options().open(path))?;
        Ok(WholeFile { out: BufWriter::with_capacity(1 << 20, file), temporary })
    }

    /// Where the bytes are until [`commit`](Self::commit).
    pub fn temporary(&self) -> &Path {
        &self.temporary.path
    }

    /// Writes everything to the disk.
    ///
    /// # Errors
    /// [`Error::Io`] if the disk is full or fails.
    pub fn sync(&mut self) -> Result<()> {
        let done = self.out.flush().and_then(|()| self.out.get_ref().sync_all());
        done.map_err(Error::io("write", &self.temporary.target))
    }

    /// Writes everything to the disk and puts the file in its place, over an older one.
    ///
    /// # Errors
    /// [`Error::Io`] if that fails; the target is then as it was.
    pub fn commit(mut self) -> Result<()> {
        self.sync()?;
        self.temporary.commit()
    }
}

impl Write for WholeFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write(bytes)
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl Seek for WholeFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.out.seek(to)
    }
}

/// Writes the file `target` with what `fill` gives.
///
/// # Errors
/// As those of [`WholeFile`].
pub fn write(target: &Path, fill: impl FnOnce(&mut WholeFile) -> io::Result<()>) -> Result<()> {
    let mut file = WholeFile::create(target)?;
    fill(&mut file).map_err(Error::io("write", target))?;
    file.commit()
}

/// A directory that is being filled.
pub struct WholeDirectory(Temporary);

impl WholeDirectory {
    /// Starts a directory that will appear at `target`, where there must be nothing, or an empty directory.
    ///
    /// # Errors
    /// [`Error::Request`] if there is something at `target`, or no directory around it; [`Error::Io`] if none can be made
    /// there.
    pub fn create(target: &Path) -> Result<Self> {
        let refused =
            |expected: &str, got: String| Err(Error::request(format!("output {}", target.display()), expected, got));
        if fs::read_dir(target).map_or(target.exists(), |mut entries| entries.next().is_some()) {
            return refused("a directory that does not exist or is empty", "something there".into());
        }
        if target.file_name().is_none() {
            return refused("a path that names a directory", "one that does not".into());
        }
        if !folder(target).is_dir() {
            let got = format!("no directory {}", folder(target).display());
            return refused("a directory in a directory that exists", got);
        }
        Temporary::create(target, |path| fs::create_dir(path)).map(|(temporary, ())| WholeDirectory(temporary))
    }

    /// Where the files are until [`commit`](Self::commit).
    pub fn temporary(&self) -> &Path {
        &self.0.path
    }

    /// Puts the directory in its place; the rename replaces an empty directory.
    ///
    /// # Errors
    /// [`Error::Io`] if that fails.
    pub fn commit(self) -> Result<()> {
        self.0.commit()
    }
}

/// Something beside its target that is removed when dropped.
struct Temporary {
    path: PathBuf,
    target: PathBuf,
}

impl Temporary {
    fn create<T>(target: &Path, make: impl FnOnce(&Path) -> io::Result<T>) -> Result<(Self, T)> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let mut name = target.file_name().unwrap_or_default().to_owned();
        let (process, count) = (std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        name.push(format!(".{:08x}-{process}-{count}{MARK}", place().unwrap_or(0)));
        let path = target.with_file_name(name);
        let mut live = live();
        let made = make(&path).map_err(Error::io("create", target))?;
        remove_left_behind(target, &path, &live);
        live.push(path.clone());
        Ok((Temporary { path, target: target.to_owned() }, made))
    }

    fn commit(self) -> Result<()> {
        let lock = live();
        let done = fs::rename(&self.path, &self.target).map_err(Error::io("write", &self.target));
        // Dropping `self` takes the lock again; after a rename it finds nothing to remove.
        drop(lock);
        done
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let mut live = live();
        // There is nothing to remove after a rename, and nothing to be done about a failure.
        let _ = remove(&self.path);
        live.retain(|path| *path != self.path);
    }
}

fn remove(path: &Path) -> io::Result<()> {
    if fs::symlink_metadata(path)?.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
}

/// While it lives, every thread that would make, put in place or remove a temporary file waits.
#[must_use]
pub struct Abandoned(#[allow(dead_code)] MutexGuard<'static, Vec<PathBuf>>);

/// Removes every temporary file and directory of this process: what a program does that is asked to end. It should end
/// before it drops the result.
pub fn abandon() -> Abandoned {
    let live = live();
    for path in live.iter() {
        // Other threads may still put files into a directory.
        for _ in 0..100 {
            if remove(path).is_ok() || !path.exists() {
                break;
            }
        }
    }
    Abandoned(live)
}

/// Removes what processes that are gone have left beside `target`. `fresh` was made just now; `live` are this process's
/// own. Whatever cannot be read or removed stays.
fn remove_left_behind(target: &Path, fresh: &Path, live: &[PathBuf]) {
    let Some(name) = target.file_name() else { return };
    let (Ok(now), Ok(entries)) = (fs::symlink_metadata(fresh), fs::read_dir(folder(target))) else { return };
    for entry in entries.flatten() {
        let Some((place, process)) = maker(&entry.file_name(), name) else { continue };
        let path = target.with_file_name(entry.file_name());
        if path == fresh || live.contains(&path) {
            continue;
        }
        let Ok(found) = fs::symlink_metadata(&path) else { continue };
        if same_owner(&found, &now) && left_behind(place, process, &found, &now) {
            let _ = remove(&path);
        }
    }
}

/// Place and process of whoever made `name`, if it is the name of a temporary file of `target`.
fn maker(name: &OsStr, target: &OsStr) -> Option<(u32, u32)> {
    let rest = name.as_encoded_bytes().strip_prefix(target.as_encoded_bytes())?.strip_suffix(MARK.as_bytes())?;
    let mut parts = std::str::from_utf8(rest).ok()?.strip_prefix('.')?.splitn(3, '-');
    let place = parts.next().filter(|p| p.len() == 8).and_then(|p| u32::from_str_radix(p, 16).ok())?;
    let process = parts.next()?.parse().ok()?;
    parts.next()?.parse::<u64>().ok().map(|_| (place, process))
}

/// Whether the process that made a file is known to be gone, or has not written for long, by the file system's own clock.
fn left_behind(made_at: u32, process: u32, found: &Metadata, now: &Metadata) -> bool {
    if place() == Some(made_at) {
        // Its own number was another's before, since the file is none of its own.
        return process == std::process::id() || !Path::new(&format!("/proc/{process}")).exists();
    }
    let (Ok(written), Ok(now)) = (found.modified(), now.modified()) else { return false };
    now.duration_since(written).is_ok_and(|age| age > ABANDONED)
}

#[cfg(unix)]
fn same_owner(a: &Metadata, b: &Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    a.uid() == b.uid()
}

#[cfg(not(unix))]
fn same_owner(_: &Metadata, _: &Metadata) -> bool {
    true
}

/// A number for this boot of this machine and the numbering of processes that this one sees; none where that is unknown.
fn place() -> Option<u32> {
    static PLACE: OnceLock<Option<u32>> = OnceLock::new();
    *PLACE.get_or_init(|| {
        let boot = fs::read("/proc/sys/kernel/random/boot_id").ok()?;
        let numbering: OsString = fs::read_link("/proc/self/ns/pid").ok()?.into();
        Some(xxh3_64(&[&boot, numbering.as_encoded_bytes()].concat()) as u32)
    })
}
