//! Weights, mapped: one file or a sharded set, read tensor by tensor and widened to f32.
//!
//! A [`Checkpoint`] holds the directory of all tensors of a component and no weight: pages are read when a tensor is asked
//! for, so memory does not grow with the model. Formats are told by contents. Scales of 8-bit floats are part of a weight.

use super::float8::{self, Scale};
use super::layout::Entry;
use super::numbers::{self, first_non_finite};
use super::view::{Part, View};
use super::weight_files::{self, WeightFiles};
use super::{SourceFile, safetensors, torch};
use ::safetensors::Dtype;
use aquatint::error::{Error, Result};
use aquatint::raw::mmap::FileBytes;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// Where a tensor lies.
#[derive(Clone, Debug, PartialEq)]
struct Place {
    file: usize,
    view: View,
    /// Its name in the file, where that is another, and which elements of that tensor it is.
    source: Option<(String, Part)>,
    /// What its elements are multiplied with.
    scale: Option<Scale>,
}

/// All tensors of one component, by their names.
#[derive(Debug)]
pub struct Checkpoint {
    component: String,
    /// The file that it is a part of, where tensors have other names than in the file.
    origin: Option<String>,
    maps: Vec<Arc<FileBytes>>,
    tensors: BTreeMap<String, Place>,
    /// Objects that a tensor may be hidden in, by name: what they are.
    objects: BTreeMap<String, String>,
}

/// The index file of a sharded checkpoint.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Checkpoint {
    /// Opens the weights in `root/component`; appends every file it reads to `sources`.
    ///
    /// # Errors
    /// [`Error::Request`] if there are no weights, a file is damaged, or an index disagrees with its shards;
    /// [`Error::Io`] if a file cannot be read.
    pub fn open(root: &Path, component: &str, sources: &mut Vec<SourceFile>) -> Result<Self> {
        let dir = root.join(component);
        let mut checkpoint = Checkpoint::empty(component.to_owned());
        match weight_files::find(&dir)? {
            WeightFiles::Whole(name) => checkpoint.add_file(root, &format!("{component}/{name}"), sources)?,
            WeightFiles::Sharded(index) => checkpoint.add_shards(root, &index, sources)?,
        }
        checkpoint.attach_scales()?;
        Ok(checkpoint)
    }

    /// Opens a single file: safetensors, or what `torch.save` wrote in either of its formats. Tensors in nested dicts
    /// and lists have their keys joined by dots: `state_dict.model.diffusion_model.out.2.weight`. Messages call it
    /// by its file name.
    ///
    /// # Errors
    /// [`Error::Request`] if it is none of these or damaged; [`Error::Io`] if it cannot be read.
    pub fn open_file(path: &Path, sources: &mut Vec<SourceFile>) -> Result<Self> {
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let mut checkpoint = Checkpoint::empty(name.clone());
        checkpoint.add_file(path.parent().unwrap_or(Path::new("")), &name, sources)?;
        checkpoint.attach_scales()?;
        Ok(checkpoint)
    }

    pub(super) fn empty(component: String) -> Self {
        Checkpoint { component, origin: None, maps: Vec::new(), tensors: BTreeMap::new(), objects: BTreeMap::new() }
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
            self.add_file(root, &format!("{}/{shard}", self.component), sources)?;
        }
        for (key, place) in &self.tensors {
            let got = shards[place.file];
            match index.weight_map.get(key) {
                Some(expected) if expected == got => {}
                Some(expected) => return Err(Error::request(relative, format!("{key} in {expected}"), got)),
                None => {
                    let got = format!("none for {key} of {got}");
                    return Err(Error::request(relative, "an entry for every tensor", got));
                }
            }
        }
        match index.weight_map.keys().find(|key| !self.tensors.contains_key(*key)) {
            Some(key) => Err(Error::request(relative, format!("{key} in {}", index.weight_map[key]), "no such tensor")),
            None => Ok(()),
        }
    }

    fn add_file(&mut self, root: &Path, relative: &str, sources: &mut Vec<SourceFile>) -> Result<()> {
        let path = root.join(relative);
        let map = aquatint::raw::mmap::open(&path)?;
        let mut found = if safetensors::recognise(&map) {
            safetensors::tensors(&map, &path)?
        } else {
            let contents = torch::read(&map, &path)?;
            self.objects.extend(contents.objects);
            contents.tensors
        };
        // By name, so that what is told of several faults is the same each time.
        found.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        for (key, view) in found {
            if self.tensors.contains_key(&key) {
                return Err(Error::request(relative, "each tensor once, in one shard", format!("{key} again")));
            }
            self.tensors.insert(key, Place { file: self.maps.len(), view, source: None, scale: None });
        }
        let map = Arc::new(map);
        sources.push(SourceFile::of_weights(relative.to_owned(), map.clone()));
        self.maps.push(map);
        Ok(())
    }

    /// Makes scales part of the weights that they belong to, and leaves out what else only readers of such files need.
    fn attach_scales(&mut self) -> Result<()> {
        for (key, Place { view, file, .. }) in &self.tensors {
            let Some(layer) = float8::marked(key) else { continue };
            let format = float8::format(&view.gather(&self.maps[*file]));
            if !float8::is_float(&format) {
                let what = format!("{}: {layer}.weight", self.component);
                return Err(Error::request(what, "weights in floats, of 8 to 64 bits", format));
            }
        }
        let scales = self.tensors.keys().filter_map(|key| Some((float8::scaled(key)?, key.clone())));
        // Those of integers are for who reads integers.
        let floats = |weight: &str| self.tensors.get(weight).is_some_and(|place| place.view.dtype != Dtype::I8);
        let scales: Vec<_> = scales.filter(|(weight, _)| floats(weight)).collect();
        for (weight, key) in scales {
            let Some(Place { file, view, .. }) = self.tensors.remove(&key) else { continue };
            let rows = self.tensors[&weight].view.shape.first().copied().unwrap_or(1);
            if ![1, rows].contains(&view.len()) {
                let expected = format!("one scale, or one for each of {rows} rows of {weight}");
                return Err(Error::request(
                    format!("{}: {key}", self.component),
                    expected,
                    format!("{:?}", view.shape),
                ));
            }
            self.tensors.entry(weight).and_modify(|place| place.scale = Some(Scale { file, view }));
        }
        let weights: BTreeSet<String> = self.tensors.keys().cloned().collect();
        self.tensors.retain(|key, _| !float8::is_aside(key, &|weight| weights.contains(weight)));
        Ok(())
    }

    /// The part whose names begin with `prefix` and a dot, called by what follows: `state_dict`, `ema`. The rest is
    /// given up.
    ///
    /// # Errors
    /// [`Error::Request`] if there is no such tensor.
    pub fn below(mut self, prefix: &str) -> Result<Self> {
        let inner = |key: &str| key.strip_prefix(prefix).and_then(|k| k.strip_prefix('.')).map(str::to_owned);
        let first = self.tensors.keys().next().cloned().unwrap_or_default();
        self.tensors = self.tensors.into_iter().filter_map(|(k, p)| Some((inner(&k)?, p))).collect();
        self.objects = self.objects.into_iter().filter_map(|(k, o)| Some((inner(&k)?, o))).collect();
        if self.tensors.is_empty() {
            return Err(Error::request(self.component, format!("tensors in {prefix}"), format!("others: {first}...")));
        }
        Ok(self)
    }

    /// The same tensors with `prefix` before their names.
    pub fn under(mut self, prefix: &str) -> Self {
        self.tensors = self.tensors.into_iter().map(|(key, place)| (format!("{prefix}{key}"), place)).collect();
        self.objects = self.objects.into_iter().map(|(key, object)| (format!("{prefix}{key}"), object)).collect();
        self
    }

    /// The same tensors as `component`.
    pub fn called(self, component: &str) -> Self {
        Checkpoint { component: component.to_owned(), ..self }
    }

    /// What is called `key` and is no tensor, if anything is.
    pub fn object(&self, key: &str) -> Option<&str> {
        self.objects.get(key).map(String::as_str)
    }

    /// The tensors that make up `component`, under the names and in the shapes that `entries` give them. Nothing is read;
    /// the maps are shared. Messages name the tensors of this checkpoint.
    ///
    /// # Errors
    /// [`Error::Request`] for the first entry whose tensor is missing or has another shape than the entry says.
    pub fn renamed(&self, component: &str, entries: &[Entry]) -> Result<Self> {
        let origin = Some(self.component.clone());
        let mut renamed = Checkpoint { origin, maps: self.maps.clone(), ..Checkpoint::empty(component.to_owned()) };
        for entry in entries {
            let error = |expected: &dyn std::fmt::Display, got: &dyn std::fmt::Display| {
                let what = format!("{}: {} ({component}: {})", self.component, entry.source, entry.key);
                Error::request(what, expected, got)
            };
            let Some(place) = self.tensors.get(&entry.source) else {
                let got = self.objects.get(&entry.source).map_or("no such tensor", String::as_str);
                return Err(error(&format!("shape {:?}", entry.source_dims), &got));
            };
            if !same_shape(&place.view.shape, &entry.source_dims) {
                return Err(error(&format!("shape {:?}", entry.source_dims), &format!("shape {:?}", place.view.shape)));
            }
            let fault = |(expected, got): (String, String)| error(&expected, &got);
            let view = place.view.part(&entry.part, &entry.dims).map_err(fault)?;
            let scale = place.scale.as_ref().map(|scale| scale.part(&entry.part, &entry.dims));
            let scale = scale.transpose().map_err(fault)?;
            let place =
                Place { file: place.file, view, source: Some((entry.source.clone(), entry.part.clone())), scale };
            renamed.tensors.insert(entry.key.clone(), place);
        }
        Ok(renamed)
    }

    /// What messages call tensor `key`: `component: key`, with the file's own name where that is another.
    pub fn describe(&self, key: &str) -> String {
        let (component, place) = (&self.component, self.tensors.get(key));
        match (&self.origin, place.and_then(|p| p.source.as_ref())) {
            (Some(file), Some((source, _))) => format!("{file}: {source} ({component}: {key})"),
            (Some(file), None) => format!("{file}: {component}: {key}"),
            (None, _) => format!("{component}: {key}"),
        }
    }

    /// What tensor `key` is called in the file, and which elements of that tensor it is.
    pub fn published<'a>(&'a self, key: &'a str) -> (&'a str, &'a Part) {
        let source = self.tensors.get(key).and_then(|place| place.source.as_ref());
        source.map_or((key, &Part::Whole), |(source, part)| (source, part))
    }

    /// The component's folder name, or the name of the single file.
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
        self.tensors.get(key).map(|p| &p.view.shape[..])
    }

    /// Element type of tensor `key`, if it exists.
    pub fn dtype(&self, key: &str) -> Option<Dtype> {
        self.tensors.get(key).map(|p| p.view.dtype)
    }

    /// The elements of `key`, row-major, as f32.
    ///
    /// # Errors
    /// [`Error::Request`] naming component and tensor, if it is missing, of another type than floats of 8 to 64 bits,
    /// or holds NaN, infinity, or what f32 cannot hold.
    pub fn read(&self, key: &str) -> Result<Vec<f32>> {
        let place = self.place(key)?;
        let values = self.floats(key, place.view.dtype, &place.view.gather(&self.maps[place.file]))?;
        self.scaled(key, place, 0, values)
    }

    /// Elements `rows` of the first axis of `key`, row-major, as f32: one part of fused projections, say.
    ///
    /// # Errors
    /// As for [`read`](Self::read); [`Error::Request`] if there are no such rows.
    pub fn read_rows(&self, key: &str, rows: Range<usize>) -> Result<Vec<f32>> {
        let place = self.place(key)?;
        let count = place.view.shape.first().copied();
        if count.is_none_or(|n| rows.start > rows.end || rows.end > n) {
            return Err(self.error(key, format!("rows {rows:?}"), format!("a tensor of shape {:?}", place.view.shape)));
        }
        let values =
            self.floats(key, place.view.dtype, &place.view.gather_rows(&self.maps[place.file], rows.clone()))?;
        self.scaled(key, place, rows.start, values)
    }

    /// `values`, which are rows of `key` from row `first` on, times their scales.
    fn scaled(&self, key: &str, place: &Place, first: usize, mut values: Vec<f32>) -> Result<Vec<f32>> {
        let Some(Scale { file, view }) = &place.scale else { return Ok(values) };
        let scales = self.floats(key, view.dtype, &view.gather(&self.maps[*file]))?;
        let row = place.view.shape[1.min(place.view.shape.len())..].iter().product::<usize>().max(1);
        for (i, row) in values.chunks_exact_mut(row).enumerate() {
            let scale = if scales.len() == 1 { scales[0] } else { scales[first + i] };
            row.iter_mut().for_each(|v| *v *= scale);
        }
        self.finite(key, values)
    }

    fn floats(&self, key: &str, dtype: Dtype, bytes: &[u8]) -> Result<Vec<f32>> {
        let values = numbers::floats(dtype, bytes);
        let values = values.ok_or_else(|| self.error(key, "f8, f16, bf16, f32 or f64", format!("{dtype:?}")))?;
        self.finite(key, values)
    }

    fn finite(&self, key: &str, values: Vec<f32>) -> Result<Vec<f32>> {
        match first_non_finite(&values) {
            Some(i) => Err(self.error(key, "finite weights", format!("{} at index {i}", values[i]))),
            None => Ok(values),
        }
    }

    /// The elements of `key`, row-major, as integers.
    ///
    /// # Errors
    /// [`Error::Request`] naming component and tensor, if it is missing or holds no integers or booleans.
    pub fn read_ints(&self, key: &str) -> Result<Vec<i64>> {
        let place = self.place(key)?;
        let dtype = place.view.dtype;
        numbers::integers(dtype, &place.view.gather(&self.maps[place.file]))
            .ok_or_else(|| self.error(key, "integers", format!("{dtype:?}")))
    }

    /// Whether both tensors exist, have the same type and shape, and the very same bits.
    pub fn same(&self, a: &str, b: &str) -> bool {
        let (Some(a), Some(b)) = (self.tensors.get(a), self.tensors.get(b)) else { return false };
        let kind = |p: &Place| (p.view.dtype, p.view.shape.clone());
        let bits = |file: usize, view: &View| view.gather(&self.maps[file]).into_owned();
        let scale = |p: &Place| p.scale.as_ref().map(|s| (s.view.dtype, bits(s.file, &s.view)));
        let same = || a.view.gather(&self.maps[a.file]) == b.view.gather(&self.maps[b.file]);
        kind(a) == kind(b) && scale(a) == scale(b) && same()
    }

    /// The name under which `LitEma` keeps the running average of `key`, if it does. Samplers of latent diffusion use
    /// the average. It is called by the parameter's name inside the network, without its dots: that of
    /// `model.diffusion_model.out.2.bias` is `model_ema.diffusion_modelout2bias`, both perhaps inside `state_dict`.
    ///
    /// # Errors
    /// [`Error::Request`] if the average has another shape than `key`.
    pub fn ema(&self, key: &str) -> Result<Option<String>> {
        let Some(average) = average_name(key) else { return Ok(None) };
        let (Some(expected), Some(got)) = (self.shape(key), self.shape(&average)) else {
            return Ok(self.has(&average).then_some(average));
        };
        if expected != got {
            let expected = format!("the average of {key}, of shape {expected:?}");
            return Err(self.error(&average, expected, format!("shape {got:?}")));
        }
        Ok(Some(average))
    }

    fn place(&self, key: &str) -> Result<&Place> {
        self.tensors.get(key).ok_or_else(|| {
            let got = self.objects.get(key).map_or("none".to_owned(), |o| format!("{o}, which is not read"));
            self.error(key, "a tensor", got)
        })
    }

    fn error(&self, key: &str, expected: impl std::fmt::Display, got: impl std::fmt::Display) -> Error {
        Error::request(self.describe(key), expected, got)
    }
}

/// The name of the running average of `key`; see [`Checkpoint::ema`].
pub(super) fn average_name(key: &str) -> Option<String> {
    let (outer, inner) = key.strip_prefix("state_dict.").map_or(("", key), |inner| ("state_dict.", inner));
    Some(format!("{outer}model_ema.{}", inner.strip_prefix("model.")?.replace('.', "")))
}

/// Whether two tensors have the same axes, but for those of one element at the end.
fn same_shape(a: &[usize], b: &[usize]) -> bool {
    let n = a.len().min(b.len());
    a[..n] == b[..n] && a[n..].iter().chain(&b[n..]).all(|&d| d == 1)
}
