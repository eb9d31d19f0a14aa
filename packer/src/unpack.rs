//! Packed file in, safetensors out: dequantized weights under their canonical names and in their canonical shapes, those
//! that they have in a diffusers directory.
//!
//! The steps that META records are undone, the last first. All tensors of a component that the file uses come back, copies
//! that the packer stored once included, and what the packer made itself left out, so the result loads into the model that the file was made from. A model that came as one file in its authors' layout does not come
//! back in that layout: its weights load into the same network of diffusers. Quantized layers have the values the runtime
//! computes with.

use crate::error::Result;
use crate::lower::Part;
use crate::weight::step::{self, Elements, Misfit};
use crate::weights::{self, Float};
use aquatint::error::Error;
use aquatint::raw::format::meta::Step;
use aquatint::raw::format::{Packed, TensorInfo, TensorKind, TensorView};
use aquatint::raw::whole_file::check_target;
use rayon::prelude::*;
use std::collections::HashMap;
use std::path::Path;

/// Writes the tensors of `component`, or of the denoiser if none is named, to `output`; returns their number.
///
/// # Errors
/// [`Error::Request`] if the file has no such component, or a weight does not fit `float`; [`Error::Format`] if the
/// file is damaged, or its weights do not fit the steps that META records; [`Error::Io`] if a file cannot be read or
/// written.
pub fn unpack(file: &Path, output: &Path, component: Option<&str>, float: Float) -> Result<usize> {
    check_target(output, &[file])?;
    let packed = Packed::open(file)?;
    let wholes = wholes(&packed);
    let mut have: Vec<_> = wholes.iter().filter_map(|whole| Some(whole.name.split_once('/')?.0)).collect();
    have.dedup();
    let component =
        component.or(have.iter().copied().find(|&name| Part::of(name) == Part::Denoiser)).unwrap_or_default();
    let mut tensors = Vec::new();
    let mut sources = Vec::new();
    for whole in &wholes {
        let copies = packed.meta().aliases.get(whole.name).map_or(&[][..], Vec::as_slice);
        let keys = std::iter::once(whole.name).chain(copies.iter().map(String::as_str));
        for key in keys.filter_map(|name| key_in(component, name)) {
            tensors.push((key.to_owned(), whole.dims(&packed)?));
            sources.push(whole);
        }
    }
    if tensors.is_empty() {
        return Err(Error::request("--component", have.join(" or "), component).into());
    }
    weights::write(output, &tensors, float, &mut |i| sources[i].read(&packed))?;
    Ok(tensors.len())
}

/// A weight as it was before any step, and the tensors that it was stored as.
struct Whole<'a> {
    /// Its name in the file, or the one it would have were it not split.
    name: &'a str,
    parts: Vec<usize>,
}

/// All weights of the file that a checkpoint held, in the order of their first parts.
fn wholes<D: AsRef<[u8]>>(packed: &Packed<D>) -> Vec<Whole<'_>> {
    let meta = packed.meta();
    let mut wholes: Vec<Whole> = Vec::new();
    let mut places = HashMap::new();
    let weights = packed.tensors().iter().enumerate().filter(|(_, t)| t.kind != TensorKind::Bytes);
    for (index, info) in weights.filter(|(_, t)| !meta.made.contains(&t.name)) {
        let name = step::whole_name(&info.name, steps(packed, info));
        let place = *places.entry(name).or_insert(wholes.len());
        match wholes.get_mut(place) {
            Some(whole) => whole.parts.push(index),
            None => wholes.push(Whole { name, parts: vec![index] }),
        }
    }
    wholes
}

/// What was done to the tensor `info`.
fn steps<'a, D: AsRef<[u8]>>(packed: &'a Packed<D>, info: &TensorInfo) -> &'a [Step] {
    packed.meta().steps.get(&info.name).map_or(&[], Vec::as_slice)
}

impl Whole<'_> {
    /// Its axes in the checkpoint.
    fn dims<D: AsRef<[u8]>>(&self, packed: &Packed<D>) -> Result<Vec<usize>> {
        let infos = self.parts.iter().map(|&part| &packed.tensors()[part]);
        let parts: Vec<_> = infos.map(|info| (steps(packed, info), &info.dims[..])).collect();
        Ok(step::source_dims(&parts).map_err(|misfit| self.error(misfit))?)
    }

    /// Its elements in the checkpoint's order.
    fn read<D: AsRef<[u8]>>(&self, packed: &Packed<D>) -> Result<Vec<f32>> {
        let stored = |&part: &usize| {
            let info = &packed.tensors()[part];
            (steps(packed, info), Elements { dims: info.dims.clone(), values: values(info, packed.tensor(part)) })
        };
        let parts = self.parts.iter().map(stored).collect();
        let restored = step::restore(parts, &|name| parameter(packed, name));
        Ok(restored.map_err(|misfit| self.error(misfit))?.values)
    }

    fn error(&self, Misfit { expected, got }: Misfit) -> Error {
        Error::format("META", 0u64, format!("steps of {}", self.name), expected, got)
    }
}

/// The f32 tensor called `name`.
fn parameter<D: AsRef<[u8]>>(packed: &Packed<D>, name: &str) -> Result<Elements, Misfit> {
    let index = packed.tensors().iter().position(|t| t.name == name);
    match index.map(|index| (packed.tensor(index), &packed.tensors()[index].dims)) {
        Some((TensorView::F32(values), dims)) => Ok(Elements { dims: dims.clone(), values: values.to_vec() }),
        _ => Err(Misfit::new("an f32 tensor as its parameter", name)),
    }
}

/// The checkpoint's name of the tensor called `name` in the file, if it belongs to `component`.
fn key_in<'a>(component: &str, name: &'a str) -> Option<&'a str> {
    name.strip_prefix(component)?.strip_prefix('/')
}

/// A tensor's elements as the runtime computes with them.
fn values(info: &TensorInfo, view: TensorView) -> Vec<f32> {
    match view {
        TensorView::F32(x) => x.to_vec(),
        TensorView::F16(x) => x.iter().map(|v| v.to_f32()).collect(),
        TensorView::Codes(matrix) => {
            let (rows, cols) = info.matrix();
            let mut out = vec![0.0; rows * cols];
            out.par_chunks_exact_mut(cols).enumerate().for_each(|(row, to)| {
                to.iter_mut().enumerate().for_each(|(col, v)| *v = matrix.weight(row, col));
            });
            out
        }
    }
}
