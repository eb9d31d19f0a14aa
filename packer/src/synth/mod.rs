//! Models of true size with random weights, to try the packer and runtime on: genuine diffusers directories, or single
//! files in their authors' layout.
//!
//! The tensors are those of the real checkpoints, copies included. Weights are drawn so that activations stay near unit
//! size at every depth and the denoiser predicts roughly its input, as a trained one does at high noise; otherwise the
//! sampler, which divides by alpha, would amplify noise a hundredfold and the decoder would see nothing like latents.
//! A tensor depends on the seed and its name alone, so the same command writes the same bytes.

mod dit;
mod published;
mod sentence_piece;
mod t5;
mod tokenizer;

pub use dit::Architecture;

use crate::error::Result;
use crate::source::diffusers::Object;
use crate::source::layout::{Published, known};
use crate::weights::{self, Float};
use aquatint::error::Error;
use rayon::prelude::*;
use serde_json::Value;
use std::fs;
use std::path::Path;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Elements drawn by one task.
const CHUNK: usize = 1 << 16;
/// Second moment of `silu(x)` for a standard normal `x`.
const SILU_ENERGY: f32 = 0.36;

/// How a model is made and written.
#[derive(Clone, Copy, Debug)]
pub enum SynthModel {
    /// DiT-XL/2 for latents of this height and width, as a directory.
    Dit(u32),
    /// A published model, as a directory.
    Directory(fn() -> Published),
    /// A published model, as one file in its authors' layout.
    File(fn() -> Published),
    /// T5-XXL's encoder with a tokenizer, for [`Donors::text`](crate::source::donors::Donors::text).
    T5Xxl,
}

/// Models that can be made up, by name.
pub const MODELS: [(&str, SynthModel); 16] = [
    ("dit-xl-2-256", SynthModel::Dit(32)),
    ("dit-xl-2-512", SynthModel::Dit(64)),
    ("sd15", SynthModel::Directory(known::sd1)),
    ("sdxl", SynthModel::Directory(known::sdxl)),
    ("sdxl-refiner", SynthModel::Directory(known::sdxl_refiner)),
    ("hunyuan-1.1", SynthModel::Directory(known::hunyuan_1_1_directory)),
    ("hunyuan-1.2", SynthModel::Directory(known::hunyuan_1_2_directory)),
    ("cifar", SynthModel::Directory(known::ddim_cifar10)),
    ("ldm4", SynthModel::File(known::ldm4)),
    ("church", SynthModel::File(known::church)),
    ("cin256", SynthModel::File(known::cin256_v2)),
    ("pixart-alpha-512", SynthModel::Directory(known::pixart_alpha_512_directory)),
    ("pixart-sigma-1024", SynthModel::Directory(known::pixart_sigma_1024_directory)),
    ("opensora-16x512", SynthModel::File(known::open_sora_16_512)),
    ("latte", SynthModel::Directory(known::latte_directory)),
    ("t5-xxl", SynthModel::T5Xxl),
];

impl SynthModel {
    /// Writes the model to `output`: a directory, which must not exist or be empty, or a safetensors file.
    ///
    /// # Errors
    /// [`Error::Request`] if there is something at `output`; [`Error::Io`] if it cannot be written. Nothing is left
    /// behind.
    pub fn write(self, output: &Path, seed: u64) -> Result<()> {
        self.write_with(output, seed, &mut write_halves)
    }

    /// The same, but for who writes the weights.
    fn write_with(self, output: &Path, seed: u64, files: &mut WriteFile<'_>) -> Result<()> {
        match self {
            SynthModel::Dit(size) => Architecture::dit_xl_2(size).write_with(output, seed, files),
            SynthModel::Directory(published) => published::write_directory(&published(), output, seed, files),
            SynthModel::File(published) => published::write_file(&published(), output, seed, files),
            SynthModel::T5Xxl => t5::write(&t5::xxl(), output, seed, files),
        }
    }
}

/// Writes a file of weights: names and axes, and who gives the elements of each by its number.
type WriteFile<'a> =
    dyn FnMut(&Path, &[(String, Vec<usize>)], &mut dyn FnMut(usize) -> Result<Vec<f32>>) -> Result<()> + 'a;

/// Writes weights as f16.
fn write_halves(
    file: &Path,
    tensors: &[(String, Vec<usize>)],
    values: &mut dyn FnMut(usize) -> Result<Vec<f32>>,
) -> Result<()> {
    weights::write(file, tensors, Float::F16, values)
}

/// `count` nearly normal numbers of mean 0 and variance 1, by name and seed: sums of four 16-bit uniforms, each taken
/// from one step of splitmix64, so any chunk can be drawn on its own.
fn normal(name: &str, seed: u64, count: usize) -> Vec<f32> {
    let start = xxh3_64_with_seed(name.as_bytes(), seed);
    let mut out = vec![0.0; count];
    out.par_chunks_mut(CHUNK).enumerate().for_each(|(chunk, to)| {
        for (i, v) in to.iter_mut().enumerate() {
            let n = (chunk * CHUNK + i) as u64 + 1;
            let mut z = start.wrapping_add(n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^= z >> 31;
            let sum = (z & 0xffff) + (z >> 16 & 0xffff) + (z >> 32 & 0xffff) + (z >> 48);
            // Four uniforms have mean 2 and variance 1/3; half a unit each centres the 16-bit steps.
            *v = ((sum as f32 + 2.0) / 65536.0 - 2.0) * 1.732_050_8;
        }
    });
    out
}

/// Adds to `last`, the weight of a layer from `d` features to patches of `p` by `p` pixels of some channels, what undoes
/// `first`, `(d, c, p, p)`, that made features of patches of `c` channels; `spread` is that of a token before the last norm.
///
/// `first` has `W^T W = d / (c p p)`, nearly, since its columns are random, so this is its inverse from the left.
fn undo_patches(last: &mut [f32], first: &[f32], [d, c, p]: [usize; 3], spread: f32) {
    let inputs = c * p * p;
    let scale = spread * (inputs as f32).sqrt() / d as f32;
    let per_pixel = last.len() / d / (p * p);
    for (row, to) in last.chunks_exact_mut(d).enumerate() {
        let (pixel, channel) = (row / per_pixel, row % per_pixel);
        if channel < c {
            let column = first[channel * p * p + pixel..].iter().step_by(inputs);
            to.iter_mut().zip(column).for_each(|(v, w)| *v += scale * w);
        }
    }
}

fn object(value: Value) -> Object {
    match value {
        Value::Object(object) => object,
        _ => Object::new(),
    }
}

fn class(config: &Object) -> &str {
    config.get("_class_name").and_then(Value::as_str).unwrap_or_default()
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    let folder = path.parent().unwrap_or(path);
    fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    let mut text = format!("{value:#}");
    text.push('\n');
    fs::write(path, text).map_err(Error::io("write", path))?;
    Ok(())
}

#[cfg(all(test, unix))]
mod hollow;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_normal_enough_and_follow_name_and_seed() {
        let x = normal("a", 1, 200_000);
        let moment = |k| x.iter().map(|&v| f64::from(v).powi(k)).sum::<f64>() / x.len() as f64;
        assert!(moment(1).abs() < 0.01, "mean {}", moment(1));
        assert!((moment(2) - 1.0).abs() < 0.01, "variance {}", moment(2));
        assert!((moment(4) - 2.7).abs() < 0.05, "fourth moment {}", moment(4));
        assert_eq!(x[..100], normal("a", 1, 100)[..]);
        assert_ne!(x[..100], normal("b", 1, 100)[..]);
        assert_ne!(x[..100], normal("a", 2, 100)[..]);
    }
}
