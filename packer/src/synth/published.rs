//! Published models, as [`known`](crate::source::layout::known) lists them.

use super::{SILU_ENERGY, WriteFile, normal, t5, tokenizer, undo_patches, write_json};
use crate::error::Result;
use crate::source::layout::{Entry, Member, Published};
use crate::source::view::Part;
use aquatint::raw::whole_file::WholeDirectory;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// Spread of a UNet's features before its last norm, about; its inverse is what that norm multiplies by.
const FEATURE_SPREAD: f32 = 1.0;
/// Spread of a transformer's tokens before its last norm, about.
const TOKEN_SPREAD: f32 = 1.6;
/// Spread of `conv_in`'s outer taps relative to the middle one: what comes from a pixel's neighbours is noise to who wants
/// the pixel back.
const OUTER_TAPS: f32 = 0.25;
/// Regression coefficient of `silu(x)` on a standard normal `x`.
const SILU_SLOPE: f32 = 0.5;

/// Writes the diffusers directory `dir`, which must not exist or be empty; weights by `files`.
pub(super) fn write_directory(published: &Published, dir: &Path, seed: u64, files: &mut WriteFile<'_>) -> Result<()> {
    let directory = WholeDirectory::create(dir)?;
    let at = directory.temporary();
    write_json(&at.join("model_index.json"), &Value::Object(published.index.clone()))?;
    write_json(&at.join("scheduler/scheduler_config.json"), &Value::Object(published.scheduler.clone()))?;
    for member in &published.members {
        let folder = at.join(member.name);
        write_json(&folder.join("config.json"), &Value::Object(member.config.clone()))?;
        let stem = if member.library == "diffusers" { "diffusion_pytorch_model" } else { "model" };
        let tensors: Vec<_> = member.entries.iter().map(|e| (e.key.clone(), e.dims.clone())).collect();
        let file = folder.join(format!("{stem}.safetensors"));
        let drawn = Drawn::new(member, seed);
        files(&file, &tensors, &mut |i| Ok(drawn.values(&tensors[i].0, &tensors[i].1)))?;
    }
    if published.index.get("text_encoder").is_some_and(|v| v[1] == "T5EncoderModel") {
        // Its text encoder is thrice as large as all the rest and the same for all, so only what it is is written.
        t5::write_configuration(&t5::xxl(), at)?;
    }
    for name in ["tokenizer", "tokenizer_2"] {
        if published.index.get(name).is_some_and(|v| v[1] == "CLIPTokenizer") {
            tokenizer::write(&at.join(name), name)?;
        }
    }
    Ok(directory.commit()?)
}

/// Writes the model to the safetensors file `path` in its authors' layout, by `files`.
pub(super) fn write_file(published: &Published, path: &Path, seed: u64, files: &mut WriteFile<'_>) -> Result<()> {
    let mut tensors = published.file();
    // Those that are whole have the values of a directory's; fused ones are drawn under their own name.
    let mut whole: BTreeMap<&str, (&Member, &Entry)> = BTreeMap::new();
    for member in &published.members {
        let own = member.entries.iter().filter(|e| e.part == Part::Whole);
        whole.extend(own.map(|entry| (&entry.source[..], (member, entry))));
    }
    // Training measures it where no codebook fixes the latents' size; Stable Diffusion has it in its code.
    let measured = published.class == "LDMPipeline";
    let vae = published.members.iter().find(|m| measured && m.class == "AutoencoderKL");
    let factor = vae.and_then(|m| m.config["scaling_factor"].as_f64());
    if factor.is_some() {
        tensors.push(("scale_factor".into(), Vec::new()));
    }
    files(path, &tensors, &mut |i| {
        let (name, dims) = &tensors[i];
        Ok(match (whole.get(&name[..]), factor) {
            (Some((member, entry)), _) => Drawn::new(member, seed).values(&entry.key, &entry.dims),
            (None, Some(factor)) if name == "scale_factor" => vec![factor as f32],
            (None, _) => {
                let mut x = normal(name, seed, dims.iter().product());
                let spread = if dims.len() == 1 { 0.02 } else { fan_in(dims).sqrt().recip() };
                x.iter_mut().for_each(|v| *v *= spread);
                x
            }
        })
    })
}

/// The values of one network's tensors.
struct Drawn<'a> {
    member: &'a Member,
    seed: u64,
    /// The last residual block of the way up and the attention after it, which hand through what `conv_in` made.
    last: Option<[String; 2]>,
}

impl<'a> Drawn<'a> {
    fn new(member: &'a Member, seed: u64) -> Self {
        let number = |key: &str, at: usize| key.split('.').nth(at).and_then(|n| n.parse::<usize>().ok());
        let up = member.entries.iter().filter(|e| e.key.starts_with("up_blocks.") && e.key.contains(".resnets."));
        let last = up.filter_map(|e| Some((number(&e.key, 1)?, number(&e.key, 3)?))).max();
        let last = last.map(|(b, i)| ["resnets", "attentions"].map(|kind| format!("up_blocks.{b}.{kind}.{i}.")));
        Drawn { member, seed, last }
    }

    fn draw(&self, key: &str, count: usize) -> Vec<f32> {
        normal(&format!("{}/{key}", self.member.name), self.seed, count)
    }

    /// The elements of `key`, which has axes `dims`.
    fn values(&self, key: &str, dims: &[usize]) -> Vec<f32> {
        let mut x = self.draw(key, dims.iter().product());
        let scaled = |mut x: Vec<f32>, spread: f32| {
            x.iter_mut().for_each(|v| *v *= spread);
            x
        };
        if dims.len() == 1 {
            if key.ends_with("weight") {
                // Norm parameters: scales near 1, shifts and biases near 0.
                x.iter_mut().for_each(|v| *v = 1.0 + 0.05 * *v);
                return x;
            }
            return scaled(x, 0.02);
        }
        let fan_in = fan_in(dims);
        let unit = fan_in.sqrt().recip();
        let after_silu = (SILU_ENERGY * fan_in).sqrt().recip();
        match (key, &self.last) {
            ("quantize.embedding.weight", _) => x,
            (key, _) if key.ends_with("position_embedding.weight") => scaled(x, 0.1),
            (key, _) if key.ends_with("embedding.weight") => scaled(x, 0.5),
            ("decoder.conv_out.weight", _) => scaled(x, 0.5 * after_silu),
            ("conv_in.weight", Some(_)) => {
                let taps = dims[2] * dims[3];
                let middle = middle_spread(dims);
                x.iter_mut().enumerate().for_each(|(i, v)| {
                    *v *= if i % taps == taps / 2 { middle } else { middle * OUTER_TAPS };
                });
                x
            }
            ("conv_out.weight", Some(_)) => self.undo_conv_in(scaled(x, 0.1 * after_silu), dims),
            (key, Some([resnet, _])) if key.strip_prefix(&resnet[..]) == Some("conv_shortcut.weight") => {
                // Its input is what came up, then what conv_in made.
                let (o, i) = (dims[0], dims[1]);
                let mut x = scaled(x, 0.2 * unit);
                (0..o).for_each(|row| x[row * i + i - o + row] += 1.0);
                x
            }
            (key, Some([resnet, _])) if key.strip_prefix(&resnet[..]) == Some("conv2.weight") => {
                scaled(x, 0.3 * after_silu)
            }
            (key, Some([_, attention])) if key.starts_with(&attention[..]) && is_output(&key[attention.len()..]) => {
                scaled(x, 0.3 * unit)
            }
            ("proj_out.weight", None) => self.undo_patches(scaled(x, 0.3 * unit), dims),
            // Modulations, and what is added without a gate: moderate, so that no block drowns what went before.
            ("adaln_single.linear.weight", _) => scaled(x, 0.5 * unit),
            (key, _) if key.ends_with("attn2.to_out.0.weight") => scaled(x, 0.3 * unit),
            // Rows in place of tokens, and positions among them.
            ("text_embedding_padding", _) => x,
            (key, _) if key.ends_with(".positional_embedding") => scaled(x, 0.1),
            (key, _) if key.ends_with(".norm1.linear.weight") => scaled(x, 0.5 * after_silu),
            (key, _) if key.ends_with("time_emb_proj.weight") => scaled(x, 0.3 * after_silu),
            (key, _) if key.ends_with(".conv1.weight") || key.ends_with(".conv2.weight") => scaled(x, after_silu),
            _ => scaled(x, unit),
        }
    }

    /// Adds to the weight of the last layer of a transformer over patches what undoes its first, which is drawn with spread
    /// 1 over the root of its inputs.
    fn undo_patches(&self, mut x: Vec<f32>, dims: &[usize]) -> Vec<f32> {
        let first = self.member.entries.iter().find(|e| e.key == "pos_embed.proj.weight");
        let Some((first, &[d, c, p, _])) = first.map(|e| (e, &e.dims[..])) else { return x };
        debug_assert_eq!(dims[1], d);
        undo_patches(&mut x, &self.draw(&first.key, d * c * p * p), [d, c, p], TOKEN_SPREAD);
        x
    }

    /// Adds to the weight of `conv_out` the transpose of `conv_in`'s middle tap. The columns of a random matrix are
    /// nearly orthogonal, so this finds the input again in the features that were handed through.
    fn undo_conv_in(&self, mut x: Vec<f32>, dims: &[usize]) -> Vec<f32> {
        let (outputs, width, taps) = (dims[0], dims[1], dims[2] * dims[3]);
        let Some(first) = self.member.entries.iter().find(|e| e.key == "conv_in.weight") else { return x };
        let inputs = first.dims[1];
        let conv_in = self.values(&first.key, &first.dims);
        let scale = FEATURE_SPREAD / (SILU_SLOPE * width as f32 * middle_spread(&first.dims).powi(2));
        for c in 0..outputs.min(inputs) {
            for j in 0..width {
                x[(c * width + j) * taps + taps / 2] += scale * conv_in[(j * inputs + c) * taps + taps / 2];
            }
        }
        x
    }
}

/// Spread of the middle tap of `conv_in`, which has axes `dims`, that gives outputs of variance 1.
fn middle_spread(dims: &[usize]) -> f32 {
    let outer = (dims[2] * dims[3] - 1) as f32 * OUTER_TAPS * OUTER_TAPS;
    (dims[1] as f32 * (1.0 + outer)).sqrt().recip()
}

/// Inputs per output.
fn fan_in(dims: &[usize]) -> f32 {
    dims[1..].iter().product::<usize>() as f32
}

/// Whether a weight of attention or of a transformer is the last before it is added to what went in.
fn is_output(rest: &str) -> bool {
    rest == "proj_out.weight" || rest == "to_out.0.weight"
}
