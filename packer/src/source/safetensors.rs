//! Safetensors weights, mapped: one file or a sharded set, read tensor by tensor and widened to f32.
//!
//! A [`Checkpoint`] holds the directory of all tensors of a component and no weight: pages are read when a tensor is
//! asked for, and nothing is kept, so memory does not grow with the model. Other element types than f16, bf16 and f32
//! are refused.

use super::SourceFile;
use crate::quantize::first_non_finite;
use aquatint::error::{Error, Result};
use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

/// Bytes of the length field before a safetensors header.
const LENGTH_BYTES: usize = 8;

/// Where a tensor lies.
#[derive(Debug)]
struct Place {
    file: usize,
    bytes: Range<usize>,
    dtype: Dtype,
    shape: Vec<usize>,
}

/// All tensors of one component, by their names.
#[derive(Debug)]
pub struct Checkpoint {
    component: String,
    maps: Vec<Mmap>,
    tensors: BTreeMap<String, Place>,
}

/// The index file of a sharded checkpoint.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Names a component's weights may have, best first: full precision before half, as `from_pretrained` has it.
const WHOLE: [&str; 2] = ["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"];
/// The same for the index of a sharded set; the variant comes before the last extension.
const SHARDED: [&str; 2] =
    ["diffusion_pytorch_model.safetensors.index.json", "diffusion_pytorch_model.safetensors.index.fp16.json"];

impl Checkpoint {
    /// Opens the weights in `root/component`; appends every file it reads to `sources`.
    ///
    /// # Errors
    /// [`Error::Request`] if there are no safetensors weights, a file is damaged, or an index disagrees with its
    /// shards; [`Error::Io`] if a file cannot be read.
    pub fn open(root: &Path, component: &str, sources: &mut Vec<SourceFile>) -> Result<Self> {
        let dir = root.join(component);
        let mut checkpoint = Checkpoint { component: component.to_owned(), maps: Vec::new(), tensors: BTreeMap::new() };
        for (whole, sharded) in WHOLE.into_iter().zip(SHARDED) {
            if dir.join(whole).is_file() {
                checkpoint.add_file(root, whole, sources)?;
                return Ok(checkpoint);
            }
            if dir.join(sharded).is_file() {
                checkpoint.add_shards(root, sharded, sources)?;
                return Ok(checkpoint);
            }
        }
        let got = if dir.join("diffusion_pytorch_model.bin").is_file() {
            "only diffusion_pytorch_model.bin; save the model again with safe_serialization=True"
        } else {
            "none of them"
        };
        Err(Error::request(
            format!("weights in {}", dir.display()),
            format!("{}, {} or a sharded {}", WHOLE[0], WHOLE[1], SHARDED[0]),
            got,
        ))
    }

    fn add_shards(&mut self, root: &Path, index_name: &str, sources: &mut Vec<SourceFile>) -> Result<()> {
        let relative = format!("{}/{index_name}", self.component);
        let index: Index = super::read_json(root, &relative, sources)?;
        let mut shards: Vec<&str> = index.weight_map.values().map(String::as_str).collect();
        shards.sort_unstable();
        shards.dedup();
        for shard in &shards {
            // Shards lie beside their index; a path that leaves the folder is not one that diffusers writes.
            if Path::new(shard).file_name().is_none_or(|name| name != *shard) {
                return Err(Error::request(relative, "file names without folders", format!("{shard:?}")));
            }
            self.add_file(root, shard, sources)?;
        }
        for (key, place) in &self.tensors {
            let got = shards[place.file];
            match index.weight_map.get(key) {
                Some(expected) if expected == got => {}
                Some(expected) => return Err(Error::request(relative, format!("{key} in {expected}"), got)),
                None => return Err(Error::request(relative, "an entry for every tensor", format!("none for {key}"))),
            }
        }
        match index.weight_map.keys().find(|key| !self.tensors.contains_key(*key)) {
            Some(key) => Err(Error::request(relative, format!("{key} in {}", index.weight_map[key]), "no such tensor")),
            None => Ok(()),
        }
    }

    fn add_file(&mut self, root: &Path, name: &str, sources: &mut Vec<SourceFile>) -> Result<()> {
        let relative = format!("{}/{name}", self.component);
        let path = root.join(&relative);
        let map = aquatint::mmap::map(&path)?;
        let (header_bytes, metadata) = SafeTensors::read_metadata(&map)
            .map_err(|e| Error::request(path.display().to_string(), "a whole safetensors file", e))?;
        let data = LENGTH_BYTES + header_bytes;
        for (key, info) in metadata.tensors() {
            let (start, end) = info.data_offsets;
            let place = Place {
                file: self.maps.len(),
                bytes: data + start..data + end,
                dtype: info.dtype,
                shape: info.shape.clone(),
            };
            if self.tensors.insert(key.clone(), place).is_some() {
                return Err(Error::request(relative, "each tensor in one shard", format!("{key} again")));
            }
        }
        sources.push(SourceFile::of(relative, &map, true));
        self.maps.push(map);
        Ok(())
    }

    /// The component's folder name.
    pub fn component(&self) -> &str {
        &self.component
    }

    /// Names of all tensors, sorted.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Whether there is a tensor called `key`.
    pub fn has(&self, key: &str) -> bool {
        self.tensors.contains_key(key)
    }

    /// Axes of tensor `key`, if it exists.
    pub fn shape(&self, key: &str) -> Option<&[usize]> {
        self.tensors.get(key).map(|p| &p.shape[..])
    }

    /// The elements of `key`, row-major, as f32.
    ///
    /// # Errors
    /// [`Error::Request`] naming component and tensor, if it is missing, of another type than f16, bf16 or f32, or
    /// holds NaN or infinity.
    pub fn read(&self, key: &str) -> Result<Vec<f32>> {
        let place = self.place(key)?;
        let bytes = &self.maps[place.file][place.bytes.clone()];
        let values: Vec<f32> = match place.dtype {
            Dtype::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            Dtype::F16 => bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            Dtype::BF16 => bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            other => return Err(self.error(key, "f16, bf16 or f32", format!("{other:?}"))),
        };
        match first_non_finite(&values) {
            Some(i) => Err(self.error(key, "finite weights", format!("{} at index {i}", values[i]))),
            None => Ok(values),
        }
    }

    /// Checks that `copy` has the very bits of `key`.
    ///
    /// # Errors
    /// [`Error::Request`] naming both and the first difference.
    pub fn same_bits(&self, key: &str, copy: &str) -> Result<()> {
        let (a, b) = (self.place(key)?, self.place(copy)?);
        let expected = || format!("the same values as {key}, of which it is a copy");
        if (a.dtype, &a.shape) != (b.dtype, &b.shape) {
            let got = format!("{:?} {:?} instead of {:?} {:?}", b.dtype, b.shape, a.dtype, a.shape);
            return Err(self.error(copy, expected(), got));
        }
        let (x, y) = (&self.maps[a.file][a.bytes.clone()], &self.maps[b.file][b.bytes.clone()]);
        if x == y {
            return Ok(());
        }
        let first = x.iter().zip(y).position(|(x, y)| x != y).unwrap_or_default();
        let index = first * a.shape.iter().product::<usize>() / x.len().max(1);
        Err(self.error(copy, expected(), format!("another value at index {index}")))
    }

    fn place(&self, key: &str) -> Result<&Place> {
        self.tensors.get(key).ok_or_else(|| self.error(key, "a tensor", "none"))
    }

    fn error(&self, key: &str, expected: impl std::fmt::Display, got: impl std::fmt::Display) -> Error {
        Error::request(format!("{}: {key}", self.component), expected, got)
    }
}
