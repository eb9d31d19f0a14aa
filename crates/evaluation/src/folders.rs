//! Pictures in folders, whoever made them.

use crate::measured::{Measured, PictureError};
use crate::protocol::Protocol;
use crate::report::{self, Compared, Conditions, Report, Subject};
use crate::run::Progress;
use crate::score::{Mark, Reference, Scorer};
use aquatint::image::{Picture, ResizeMode};
use aquatint::{Error, Result};
use rayon::prelude::*;
use std::cmp::Ordering;
use std::path::{Path, PathBuf};

/// Endings of the files that are pictures.
const ENDINGS: [&str; 5] = ["png", "jpg", "jpeg", "webp", "bmp"];
/// Pictures that are read and measured at a time.
const BATCH: usize = 32;

/// A folder of pictures.
#[derive(Clone, Debug)]
pub struct Folder {
    /// What the report calls it.
    pub name: String,
    /// Its pictures: first those whose names have smaller numbers where others have larger ones.
    pictures: Vec<PathBuf>,
}

/// A picture of red, green and blue.
struct Read {
    size: [usize; 2],
    values: Vec<f32>,
}

impl Folder {
    /// The PNG, JPEG, WebP and BMP files of the folder `path`, not those in folders within it.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read; [`Error::Request`] if there are none.
    pub fn new(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let is_picture = |path: &PathBuf| {
            let ending = path.extension().and_then(|ending| ending.to_str()).map(str::to_ascii_lowercase);
            ending.is_some_and(|ending| ENDINGS.contains(&ending.as_str())) && path.is_file()
        };
        let mut pictures = Vec::new();
        for entry in std::fs::read_dir(path).map_err(Error::io("read", path))? {
            pictures.push(entry.map_err(Error::io("read", path))?.path());
        }
        pictures.retain(is_picture);
        if pictures.is_empty() {
            return Err(Error::request(name, "a folder with PNG, JPEG, WebP or BMP pictures", "none"));
        }
        pictures.sort_by(|a, b| natural(&file_name(a), &file_name(b)));
        Ok(Folder { name, pictures })
    }

    /// Names of the pictures, in order.
    pub fn names(&self) -> impl Iterator<Item = String> {
        self.pictures.iter().map(|path| file_name(path))
    }

    /// Features of all pictures `(n, d)`, which are at least two.
    pub(crate) fn features(&self, scorer: &Scorer) -> Result<Vec<f64>> {
        self.check_several()?;
        let extract = |i: usize| {
            let Read { size, values } = self.read(i)?;
            let features = scorer.extract(&values, size).map_err(|e| at(&self.pictures[i], e))?;
            Ok(features.into_iter().map(f64::from).collect())
        };
        let features: Vec<Vec<f64>> = (0..self.pictures.len()).into_par_iter().map(extract).collect::<Result<_>>()?;
        Ok(features.concat())
    }

    /// Refuses a folder of one picture, whose features have no spread.
    fn check_several(&self) -> Result<()> {
        match self.pictures.len() {
            1 => Err(Error::request(self.name.as_str(), "at least 2 pictures for the spread of their features", 1)),
            _ => Ok(()),
        }
    }

    fn bytes(&self) -> Result<u64> {
        let size = |path: &PathBuf| Ok(std::fs::metadata(path).map_err(Error::io("read", path))?.len());
        self.pictures.iter().map(size).sum()
    }

    /// Picture number `i`.
    fn read(&self, i: usize) -> Result<Read> {
        let picture = Picture::read(&self.pictures[i])?;
        let size = picture.size();
        Ok(Read { size, values: picture.values(size, ResizeMode::Stretch, 3) })
    }
}

/// The name of a file, as text.
fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// The order of people: numbers in names count as numbers, so that 2.png comes before 10.png.
fn natural(a: &str, b: &str) -> Ordering {
    let digits = |text: &str| text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (mut left, mut right) = (a, b);
    loop {
        let (n, m) = (digits(left), digits(right));
        if n > 0 && m > 0 {
            let number = |text: &str| text.trim_start_matches('0').to_owned();
            let (x, y) = (number(&left[..n]), number(&right[..m]));
            // Of numbers without leading zeros, the longer one is larger.
            match x.len().cmp(&y.len()).then(x.cmp(&y)) {
                Ordering::Equal => (left, right) = (&left[n..], &right[m..]),
                order => return order,
            }
            continue;
        }
        let (mut x, mut y) = (left.chars(), right.chars());
        match (x.next(), y.next()) {
            (Some(c), Some(d)) if c == d => (left, right) = (x.as_str(), y.as_str()),
            (c, d) => return c.cmp(&d).then(a.cmp(b)),
        }
    }
}

/// Compares the pictures of `folders` with those of the first, one by one where names are the same; `see` is told how far it is.
/// `scorer` reads the pictures; where it knows no features of true ones and there are several folders, those of the first are taken
/// for true.
///
/// # Errors
/// [`Error::Request`] if there is nothing to compare, or a picture cannot be read or not by these networks, or two of a name have
/// different sizes; [`Error::Io`] if a file cannot be read.
pub fn evaluate_folders(
    folders: &[Folder],
    protocol: &Protocol,
    mut scorer: Scorer,
    see: &mut dyn FnMut(Progress),
) -> Result<Report> {
    let Some(reference) = folders.first() else { return Err(Error::request("folders", "at least one", 0)) };
    let pairs = folders.iter().all(|folder| folder.names().eq(reference.names()));
    if folders.len() == 1 && !scorer.reads() {
        let expected = "another to compare it with, or a network to read its pictures (--inception, --clip)";
        return Err(Error::request("folders", expected, "one and none"));
    }
    if scorer.features().is_some() {
        folders.iter().try_for_each(Folder::check_several)?;
    }
    let total = folders.iter().map(|folder| folder.pictures.len() as u64).sum();
    let mut done = 0;
    let mut measured = Vec::with_capacity(folders.len());
    for (k, folder) in folders.iter().enumerate() {
        let mut found = Measured::default();
        let numbers: Vec<usize> = (0..folder.pictures.len()).collect();
        for batch in numbers.chunks(BATCH) {
            let against = (k > 0 && pairs).then_some(reference);
            let looked = batch.par_iter().map(|&i| look(folder, against, i, &scorer));
            for (mark, error) in looked.collect::<Result<Vec<_>>>()? {
                found.marks.push(mark);
                found.pictures.extend(error);
            }
            done += batch.len() as u64;
            see(Progress { done, total });
        }
        measured.push(found);
    }
    let own = scorer.reference.is_none() && folders.len() > 1;
    if let Some(d) = scorer.features().filter(|_| own) {
        // Its own distance from these would tell nothing.
        let features = measured[0].marks.iter_mut().flat_map(|mark| std::mem::take(&mut mark.features));
        let features = features.map(f64::from).collect();
        scorer.reference = Some(Reference::of_features(&reference.name, features, d));
    }
    let protocol = Protocol { images: reference.pictures.len(), scored: reference.pictures.len(), ..protocol.clone() };
    let subjects = folders
        .iter()
        .map(|folder| Ok(Subject { name: folder.name.clone(), bytes: folder.bytes()?, average_bits: None }));
    let conditions = Conditions::new(&reference.name, &protocol, Some(&scorer), None);
    let compared = Compared { subjects: subjects.collect::<Result<_>>()?, measured, pairs };
    let mut report = report::report(compared, conditions, Some(&scorer), &protocol);
    if !pairs {
        report.notes.push("names of pictures differ between folders: they are not compared one by one".into());
    }
    if own && scorer.reference.is_some() {
        report.notes.push(format!("distances are from the pictures in {}", reference.name));
    }
    Ok(report)
}

/// What is read in picture number `i` of a folder, and how it differs from that of another.
fn look(folder: &Folder, against: Option<&Folder>, i: usize, scorer: &Scorer) -> Result<(Mark, Option<PictureError>)> {
    let Read { size, values } = folder.read(i)?;
    scorer.check_pictures(size, 3).map_err(|e| at(&folder.pictures[i], e))?;
    let mark = scorer.mark(i, &values, size, None)?;
    let Some(other) = against else { return Ok((mark, None)) };
    let theirs = other.read(i)?;
    if theirs.size != size {
        let [expected, got] = [theirs.size, size].map(|[height, width]| format!("{width} x {height} pixels"));
        let what = folder.pictures[i].display().to_string();
        return Err(Error::request(what, format!("{expected}, as in {}", other.name), got));
    }
    Ok((mark, Some(PictureError::new(&theirs.values, &values, size, 3, scorer.lpips.as_ref()))))
}

/// The same error, of the picture at `path`.
fn at(path: &Path, error: Error) -> Error {
    match error {
        Error::Request { kind, what, expected, got } => {
            Error::Request { kind, what: format!("{}: {what}", path.display()), expected, got }
        }
        other => other,
    }
}
