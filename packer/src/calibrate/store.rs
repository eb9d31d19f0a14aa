//! Sums in safetensors files.

use super::record::{InputRecord, Second};
use super::sums::Sums;
use super::windows;
use crate::error::Result;
use crate::quantize::BINS;
use aquatint::error::Error;
use aquatint::raw::mmap;
use aquatint::raw::whole_file::WholeFile;
use safetensors::tensor::{Metadata, TensorInfo};
use safetensors::{Dtype, SafeTensors};
use serde::Serialize;
use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::Xxh3;
use zerocopy::{FromBytes, IntoBytes};

/// Numbers in `totals`: weight, rows, pixels, groups, squared ranges.
const TOTALS: usize = 5;

/// Bytes that are hashed at a time.
const PIECE: usize = 1 << 20;

/// A safetensors file that holds sums of inputs, by their numbers.
///
/// Tensors are read, not mapped: a calibration is larger than the model, and each tensor is needed once.
pub(crate) struct Store {
    path: PathBuf,
    file: File,
    /// Where tensors begin.
    data: usize,
    tensors: Metadata,
}

impl Store {
    /// Opens the file at `path`.
    ///
    /// # Errors
    /// If it cannot be read; what is wrong with it otherwise.
    pub fn open(path: &Path) -> Result<Result<Self, String>> {
        let bytes = mmap::open(path)?;
        let file = File::open(path).map_err(Error::io("open", path))?;
        Ok(match SafeTensors::read_metadata(&bytes) {
            Ok((header, tensors)) => {
                Ok(Store { path: path.to_owned(), file, data: size_of::<u64>() + header, tensors })
            }
            Err(e) => Err(e.to_string()),
        })
    }

    /// The hash of the whole file.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn hash(&self) -> Result<u128> {
        let io = Error::io("read", &self.path);
        let mut hasher = Xxh3::new();
        let mut piece = vec![0; PIECE];
        let mut file = &self.file;
        let hashed = file.seek(SeekFrom::Start(0)).and_then(|_| {
            loop {
                match file.read(&mut piece)? {
                    0 => return Ok(()),
                    n => hasher.update(&piece[..n]),
                }
            }
        });
        hashed.map_err(io)?;
        Ok(hasher.digest128())
    }

    /// What the metadata has under `key`.
    pub fn text(&self, key: &str) -> Option<&str> {
        Some(self.tensors.metadata().as_ref()?.get(key)?.as_str())
    }

    /// Checks that the tensors of `input`, number `index`, are there and of their sizes.
    ///
    /// # Errors
    /// The tensor's name, what it should be, and what there is.
    pub fn check(&self, index: usize, input: &InputRecord) -> Result<(), [String; 3]> {
        let shapes = shapes(input).ok_or([format!("input {index}"), "sizes that there are".into(), "others".into()])?;
        for (name, dtype, shape) in shapes {
            let name = format!("inputs.{index}.{name}");
            let got = self.tensors.info(&name);
            if !got.is_some_and(|info| info.dtype == dtype && info.shape == shape) {
                let got = got.map_or("none".into(), |info| format!("{:?} {:?}", info.dtype, info.shape));
                return Err([name, format!("{dtype:?} {shape:?}"), got]);
            }
        }
        Ok(())
    }

    /// The numbers of a tensor, whole ones of its type; none if there is no such tensor, or it is of another size.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn numbers<T: FromBytes + IntoBytes + Clone>(&self, name: &str) -> Result<Option<Vec<T>>> {
        let Some((start, end)) = self.tensors.info(name).map(|info| info.data_offsets) else { return Ok(None) };
        let len = (end - start) / size_of::<T>();
        if len * size_of::<T>() != end - start {
            return Ok(None);
        }
        let mut numbers = vec![T::new_zeroed(); len];
        let mut file = &self.file;
        let read = file.seek(SeekFrom::Start((self.data + start) as u64));
        read.and_then(|_| file.read_exact(numbers.as_mut_slice().as_mut_bytes()))
            .map_err(Error::io("read", &self.path))?;
        Ok(Some(numbers))
    }

    /// The sums of input `index`, which was [checked](Self::check).
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn sums(&self, index: usize) -> Result<Sums> {
        let name = |name: &str| format!("inputs.{index}.{name}");
        let doubles = |part: &str| Ok::<_, crate::Error>(self.numbers::<f64>(&name(part))?.unwrap_or_default());
        let halves = |part: &str| {
            let mut first = self.numbers::<f32>(&name(part))?.unwrap_or_default();
            let second = first.split_off(first.len() / 2);
            Ok::<_, crate::Error>((first, second))
        };
        let [weight, rows, pixels, groups, squared_ranges] = doubles("totals")?[..] else { unreachable!("checked") };
        let (low, high) = halves("range")?;
        let bins = self.numbers(&name("bins"))?.unwrap_or_default();
        let (sum, walk, second) = (doubles("sum")?, doubles("walk")?, doubles("second")?);
        Ok(Sums { weight, rows, pixels, groups, squared_ranges, sum, walk, second, low, high, bins })
    }
}

/// A tensor's name after its input's, its type and its axes.
type Shape = (&'static str, Dtype, Vec<usize>);

/// The tensors of an input in the file's order; none if they are larger than any memory.
fn shapes(input: &InputRecord) -> Option<[Shape; 6]> {
    let (k, channels) = (input.inputs()?, input.channels);
    let second = match input.second {
        Second::Dense => vec![k.checked_mul(k.checked_add(1)?)? / 2],
        Second::Toeplitz => {
            if input.kernel != Some(windows::KERNEL) {
                return None;
            }
            vec![windows::displacements().count(), channels, channels]
        }
    };
    Some([
        ("totals", Dtype::F64, vec![TOTALS]),
        ("sum", Dtype::F64, vec![k]),
        ("walk", Dtype::F64, vec![if input.second == Second::Toeplitz { k } else { 0 }]),
        ("second", Dtype::F64, second),
        ("bins", Dtype::U64, vec![input.calls, BINS]),
        ("range", Dtype::F32, vec![2, input.calls, channels]),
    ])
}

/// Writes `target`: `text` under `key` in the metadata, and the sums of `inputs` by their numbers; `sums(i)` gives those of
/// the `i`-th of `inputs` to be written with [`write_sums`].
///
/// # Errors
/// What `sums` returns, or if the file cannot be written; an older one at `target` stays as it was.
pub(super) fn write(
    target: &Path,
    (key, text): (&str, &str),
    inputs: &[(usize, &InputRecord)],
    mut sums: impl FnMut(usize, &mut WholeFile) -> Result<()>,
) -> Result<()> {
    let mut end = 0;
    let mut infos = Vec::new();
    for (index, input) in inputs {
        for (name, dtype, shape) in shapes(input).expect("sizes that were in memory") {
            let start = end;
            end += shape.iter().product::<usize>() * dtype.bitsize() / 8;
            infos.push((format!("inputs.{index}.{name}"), TensorInfo { dtype, shape, data_offsets: (start, end) }));
        }
    }
    let mut out = WholeFile::create(target)?;
    write_header(&mut out, target, (key, text), infos)?;
    for i in 0..inputs.len() {
        sums(i, &mut out)?;
    }
    Ok(out.commit()?)
}

/// `value` as JSON on one line.
pub(crate) fn json(target: &Path, value: &impl Serialize) -> Result<String> {
    let unsound = |e| Error::request(target.display().to_string(), "values JSON can hold", e);
    Ok(serde_json::to_string(value).map_err(unsound)?)
}

/// Writes what comes before the tensors of a safetensors file.
pub(crate) fn write_header(
    out: &mut WholeFile,
    target: &Path,
    (key, text): (&str, &str),
    infos: Vec<(String, TensorInfo)>,
) -> Result<()> {
    let unsound = |e: &dyn std::fmt::Display| Error::request(target.display().to_string(), "a sound set of tensors", e);
    let metadata = HashMap::from([(key.to_owned(), text.to_owned())]);
    let metadata = Metadata::new(Some(metadata), infos).map_err(|e| unsound(&e))?;
    let mut header = serde_json::to_vec(&metadata).map_err(|e| unsound(&e))?;
    header.resize(header.len().next_multiple_of(8), b' ');
    let done = out.write_all(&(header.len() as u64).to_le_bytes()).and_then(|()| out.write_all(&header));
    Ok(done.map_err(Error::io("write", target))?)
}

/// Writes the tensors of one input into `out`, which becomes `target`.
///
/// # Errors
/// If they cannot be written.
pub(super) fn write_sums(out: &mut WholeFile, target: &Path, sums: &Sums) -> Result<()> {
    let totals = [sums.weight, sums.rows, sums.pixels, sums.groups, sums.squared_ranges];
    let numbers = [&sums.sum, &sums.walk, &sums.second].map(|numbers| numbers.as_bytes());
    let parts = [totals.as_bytes()].into_iter().chain(numbers).chain([sums.bins.as_bytes()]);
    let floats = [&sums.low, &sums.high].map(|floats| floats.as_bytes());
    for bytes in parts.chain(floats) {
        out.write_all(bytes).map_err(Error::io("write", target))?;
    }
    Ok(())
}
