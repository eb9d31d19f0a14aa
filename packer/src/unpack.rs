//! Packed file in, safetensors out: dequantized weights under their canonical names and in their canonical shapes, those
//! that they have in a diffusers directory.
//!
//! All tensors of a component that the file uses come back, copies that the packer stored once included, so the result
//! loads into the model that the file was made from. A model that came as one file in its authors' layout does not come
//! back in that layout: its weights load into the same network of diffusers. Quantized layers have the values the runtime
//! computes with.

use crate::error::Result;
use crate::lower::{Part, Rows};
use crate::weights::{self, Float};
use aquatint::error::Error;
use aquatint::format::{Packed, TensorInfo, TensorKind, TensorView};
use aquatint::program::{Node, Op, Tensor};
use rayon::prelude::*;
use std::collections::HashSet;
use std::path::Path;

/// Writes the tensors of `component`, or of the denoiser if none is named, to `output`; returns their number.
///
/// # Errors
/// [`Error::Request`] if the file has no such component, or a weight does not fit `float`; [`Error::Format`] if the
/// file is damaged; [`Error::Io`] if a file cannot be read or written.
pub fn unpack(file: &Path, output: &Path, component: Option<&str>, float: Float) -> Result<usize> {
    let packed = Packed::new(aquatint::mmap::map(file)?)?;
    let weights = || packed.tensors().iter().enumerate().filter(|(_, t)| t.kind != TensorKind::Bytes);
    let mut have: Vec<_> = weights().filter_map(|(_, t)| Some(t.name.split_once('/')?.0)).collect();
    have.dedup();
    let component =
        component.or(have.iter().copied().find(|&name| Part::of(name) == Part::Denoiser)).unwrap_or_default();
    let mut tensors = Vec::new();
    let mut indices = Vec::new();
    for (index, info) in weights() {
        let copies = packed.meta().aliases.get(&info.name).map_or(&[][..], Vec::as_slice);
        for name in std::iter::once(&info.name).chain(copies) {
            if let Some(key) = key_in(component, name) {
                tensors.push((key.to_owned(), original_dims(info)));
                indices.push(index);
            }
        }
    }
    if tensors.is_empty() {
        return Err(Error::request("--component", have.join(" or "), component).into());
    }
    let interleaved: HashSet<Tensor> = packed.programs().iter().flat_map(|p| &p.nodes).flat_map(gated).collect();
    weights::write(output, &tensors, float, &mut |i| {
        let index = indices[i];
        let info = &packed.tensors()[index];
        let rows = if interleaved.contains(&Tensor(index as u32)) { Rows::Interleaved } else { Rows::AsIs };
        let cols = info.dims[1..].iter().product();
        Ok(rows.restore(&values(info, packed.tensor(index)), cols).into_owned())
    })?;
    Ok(tensors.len())
}

/// The tensors of a gated linear layer, whose rows the file holds in an order of its own.
fn gated(node: &Node) -> impl Iterator<Item = Tensor> {
    matches!(node.op, Op::GatedLinear(_)).then(|| node.op.tensors()).into_iter().flatten()
}

/// The checkpoint's name of the tensor called `name` in the file, if it belongs to `component`.
fn key_in<'a>(component: &str, name: &'a str) -> Option<&'a str> {
    name.strip_prefix(component)?.strip_prefix('/')
}

/// Axes in the checkpoint: four axes turn from `(o, h, w, i)` to `(o, i, h, w)`.
fn original_dims(info: &TensorInfo) -> Vec<usize> {
    match info.dims[..] {
        [o, h, w, i] => vec![o, i, h, w],
        _ => info.dims.clone(),
    }
}

/// Elements in the checkpoint's order.
fn values(info: &TensorInfo, view: TensorView) -> Vec<f32> {
    let stored: Vec<f32> = match view {
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
    };
    let [_, h, w, i] = info.dims[..] else { return stored };
    let taps = h * w;
    let mut out = vec![0.0; stored.len()];
    out.par_chunks_exact_mut(taps * i).zip(stored.par_chunks_exact(taps * i)).for_each(|(to, from)| {
        for (tap, channels) in from.chunks_exact(i).enumerate() {
            channels.iter().enumerate().for_each(|(channel, &v)| to[channel * taps + tap] = v);
        }
    });
    out
}
