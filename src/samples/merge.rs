//! All shards of a job, put together.

use super::file::{Header, SampleFile, Shapes, Tensor};
use super::job::{difference, id};
use super::make::{join, name, shards_in};
use super::npz;
use super::statistics::Statistics;
use crate::error::{Error, Result};
use crate::shard::Shard;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// The shards of a job, complete and sound.
pub struct Merge {
    header: Header,
    shapes: Shapes,
    /// The files of all shards, in order.
    files: Vec<PathBuf>,
    devices: Vec<String>,
}

impl Merge {
    /// The shards in `folder`, every byte of them checked. They must be of one device and instruction set, unless they may be
    /// `mixed`.
    ///
    /// # Errors
    /// [`Error::Request`] that names the file that does not belong to the others and what differs, or the shards and images
    /// that are not there; [`Error::Io`] if one cannot be read.
    pub fn open(folder: &Path, mixed: bool) -> Result<Self> {
        let shards = shards_in(folder)?;
        let path = |shard: &Shard| folder.join(name(*shard));
        let Some(first) = shards.first().map(path) else {
            let expected = "files of shards, shard-K-of-N.safetensors";
            return Err(Error::request(folder.display().to_string(), expected, "none"));
        };
        let open = SampleFile::open(&first)?;
        let header = Header { shard: [0, 1], images: [0, open.header().total], ..open.header().clone() };
        let shapes = Shapes { texts: 0, ..open.shapes().clone() };
        let mut merge = Merge { header, shapes, files: shards.iter().map(path).collect(), devices: Vec::new() };
        let of = open.header().shard().of;
        for (shard, path) in shards.iter().zip(&merge.files) {
            let file = SampleFile::open(path)?;
            merge.check(*shard, of, &file)?;
            file.verify()?;
            if !merge.devices.contains(&file.header().device) {
                merge.devices.push(file.header().device.clone());
            }
            if let ([one, _, ..], false) = (&merge.devices[..], mixed) {
                let expected = format!("{one}, as {} has, or --allow-mixed-isa", first.display());
                let what = format!("device of {}", path.display());
                return Err(Error::request(what, expected, &file.header().device));
            }
        }
        merge.header.device = merge.devices.join(" and ");
        let missing = (0..of).filter(|&index| shards.iter().all(|shard| shard.index != index));
        match missing.collect::<Vec<_>>() {
            none if none.is_empty() => Ok(merge),
            missing => Err(merge.refuse_missing(folder, of, &missing)),
        }
    }

    /// Refuses a file that is not the one that its name and the first one say.
    fn check(&self, shard: Shard, of: usize, file: &SampleFile) -> Result<()> {
        let (header, first) = (file.header(), self.files[0].display());
        let what = || file.path().display().to_string();
        let images = |range: Range<usize>| format!("images {}:{}", range.start, range.end);
        if let Some((setting, [ours, theirs])) = difference(&header.job, &self.header.job) {
            let expected = format!("{theirs}, as {first} has");
            return Err(Error::request(format!("{setting} of {}", what()), expected, ours));
        }
        if shard.of != of {
            let expected = format!("one of {of} shards, as {first} is");
            let got = format!("{shard} with {}, which others have too", images(file.range()));
            return Err(Error::request(what(), expected, got));
        }
        let range = shard.range(self.header.total);
        if header.shard() != shard || file.range() != range || header.total != self.header.total {
            let expected = format!("shard {shard} with {}", images(range));
            let got = format!("shard {} with {} of {}", header.shard(), images(file.range()), header.total);
            return Err(Error::request(what(), expected, got));
        }
        if (&file.shapes().latents, &file.shapes().images) != (&self.shapes.latents, &self.shapes.images) {
            let sizes = |shapes: &Shapes| format!("latents {:?}, images {:?}", shapes.latents, shapes.images);
            return Err(Error::request(what(), sizes(&self.shapes), sizes(file.shapes())));
        }
        Ok(())
    }

    /// What is missing: numbers of shards as lists of tasks have them, and images.
    fn refuse_missing(&self, folder: &Path, of: usize, missing: &[usize]) -> Error {
        let images = missing.chunk_by(|a, b| a + 1 == *b).map(|run| {
            let [first, last] = [run[0], run[run.len() - 1]].map(|index| Shard { index, of }.range(self.header.total));
            format!("{}:{}", first.start, last.end)
        });
        let (numbers, images) = (runs(missing), images.collect::<Vec<_>>().join(","));
        let what = format!("shards in {}", folder.display());
        let got = format!("{}, without {numbers} (images {images})", of - missing.len());
        Error::request(what, format!("all {of}"), got)
    }

    /// What tells the job from others.
    ///
    /// # Errors
    /// Never in practice: if a setting cannot be JSON.
    pub fn id(&self) -> Result<String> {
        id(&self.header.job)
    }

    /// The settings of the job, by name.
    pub fn settings(&self) -> impl Iterator<Item = (&str, &str)> {
        self.header.job.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Images.
    pub fn images(&self) -> usize {
        self.header.total
    }

    /// Number of shards.
    pub fn shards(&self) -> usize {
        self.files.len()
    }

    /// What computed them: one, unless they are mixed.
    pub fn devices(&self) -> &[String] {
        &self.devices
    }

    /// Whether the shards hold pictures.
    pub fn has_pictures(&self) -> bool {
        self.shapes.images.is_some()
    }

    /// The shards' files in order, each opened when it is its turn.
    pub fn files(&self) -> impl Iterator<Item = Result<SampleFile>> {
        self.files.iter().map(|path| SampleFile::open(path))
    }

    /// Everything that the shards hold, in one file: the very bytes that shard 0/1 has.
    ///
    /// # Errors
    /// Those of reading and writing files.
    pub fn write_samples(&self, path: &Path) -> Result<()> {
        join(path, &self.header, &self.shapes, &self.files)
    }

    /// The pictures as numpy has them, `arr_0` u8 `(n, h, w, c)`, of videos `(n, f, h, w, c)`: the file that the evaluation
    /// of ADM (Dhariwal and Nichol 2021) and its successors read.
    ///
    /// # Errors
    /// [`Error::Request`] if the shards hold none, those of reading and writing files.
    pub fn write_npz(&self, path: &Path) -> Result<()> {
        let dims = self.shapes.dims(Tensor::Images, self.images()).ok_or_else(|| no_pictures(path))?;
        npz::write(path, &dims, self.files().map(|file| Ok(file?.bytes(Tensor::Images).to_vec())))
    }

    /// What the pictures are like; none if there are none.
    ///
    /// # Errors
    /// Those of reading files.
    pub fn statistics(&self) -> Result<Option<Statistics>> {
        let Some(dims) = &self.shapes.images else { return Ok(None) };
        let channels = dims.last().copied().unwrap_or(1);
        let mut all = Statistics::new(channels);
        for file in self.files() {
            all.add(file?.bytes(Tensor::Images), dims.iter().product());
        }
        Ok(Some(all))
    }
}

/// What an output of pictures is told where shards hold latents alone.
fn no_pictures(path: &Path) -> Error {
    let expected = "a name that ends in .safetensors, since the shards hold latents alone";
    Error::request(format!("output {}", path.display()), expected, "pictures")
}

/// Ascending numbers as lists of tasks have them: `3,7-9`.
fn runs(numbers: &[usize]) -> String {
    let run = |run: &[usize]| match run {
        [one] => one.to_string(),
        run => format!("{}-{}", run[0], run[run.len() - 1]),
    };
    numbers.chunk_by(|a, b| a + 1 == *b).map(run).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_shards_are_a_list_of_tasks() {
        assert_eq!(runs(&[3, 7, 8, 9, 11, 12]), "3,7-9,11-12");
        assert_eq!(runs(&[0]), "0");
    }
}
