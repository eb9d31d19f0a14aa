//! Tensors in place of what would be computed, in diffusers' layouts: `latents` `(n, c, h, w)` or `(n, c, f, h, w)`, `class_labels` `(n)`,
//! `prompt_embeds` `(n, tokens, features)` and more, from safetensors files.

use crate::error::{Error, Result};
use crate::format::meta::TextLength;
use crate::model::{LatentSpace, Model, TextEncoder, TextModel};
use crate::pipeline::{Embeddings, EncoderFeatures, PromptFeatures, Prompts};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use std::ops::Range;

/// Names that a file may hold.
const NAMES: [&str; 14] = [
    "latents",
    "class_labels",
    "prompt_embeds",
    "negative_prompt_embeds",
    "prompt_embeds_2",
    "negative_prompt_embeds_2",
    "prompt_mask",
    "negative_prompt_mask",
    "prompt_mask_2",
    "negative_prompt_mask_2",
    "prompt_tokens",
    "negative_prompt_tokens",
    "pooled",
    "negative_pooled",
];
/// Names of the prompts' tensors and of the negative ones': features and masks of both encoders, and vectors.
const SIDES: [[&str; 5]; 2] = [
    ["prompt_embeds", "prompt_mask", "prompt_embeds_2", "prompt_mask_2", "pooled"],
    [
        "negative_prompt_embeds",
        "negative_prompt_mask",
        "negative_prompt_embeds_2",
        "negative_prompt_mask_2",
        "negative_pooled",
    ],
];

/// A tensor with a name.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedTensor {
    /// Its name in a file.
    pub name: &'static str,
    /// Axes, outermost first.
    pub dims: Vec<usize>,
    /// Values, row-major.
    pub values: Vec<f32>,
}

/// Tensors that replace what would be computed.
#[derive(Clone, Debug)]
pub struct Tensors {
    source: String,
    tensors: Vec<(String, Vec<usize>, Vec<f32>)>,
}

impl Tensors {
    /// Reads the bytes of a safetensors file; messages call it `source`.
    ///
    /// # Errors
    /// [`Error::Request`] if it is no such file, or holds a tensor of another name or type, or a number that is not
    /// finite.
    pub fn new(source: impl Into<String>, bytes: &[u8]) -> Result<Self> {
        let source = source.into();
        let file = SafeTensors::deserialize(bytes).map_err(|e| Error::request(&source, "a safetensors file", e))?;
        let mut tensors = Vec::new();
        for (name, view) in file.iter() {
            if !NAMES.contains(&name) {
                return Err(Error::request(format!("{source}: tensor"), NAMES.join(", "), format!("`{name}`")));
            }
            tensors.push((name.to_owned(), view.shape().to_vec(), floats(&source, name, &view)?));
        }
        Ok(Tensors { source, tensors })
    }

    /// What messages call the file.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Takes a tensor out.
    fn take(&mut self, name: &str) -> Option<(Vec<usize>, Vec<f32>)> {
        let i = self.tensors.iter().position(|t| t.0 == name)?;
        let (_, dims, values) = self.tensors.swap_remove(i);
        Some((dims, values))
    }

    /// Refuses what nobody took.
    ///
    /// # Errors
    /// [`Error::Request`] if something is left.
    pub fn finish(&self) -> Result<()> {
        match self.tensors.first() {
            None => Ok(()),
            Some((name, ..)) => {
                let expected = "only tensors that this model and request have a use for";
                Err(Error::request(self.source.as_str(), expected, format!("`{name}`")))
            }
        }
    }

    /// Latents `(n, c, h, w)`, or for a model that makes videos `(n, c, f, h, w)`, and n, c, f, h and w, 1 for f of images.
    ///
    /// # Errors
    /// [`Error::Request`] if they have other axes.
    pub fn latents<D>(&mut self, model: &Model<'_, D>) -> Result<Option<([usize; 5], Vec<f32>)>> {
        let Some((dims, values)) = self.take("latents") else { return Ok(None) };
        let LatentSpace { channels, video, .. } = model.latents;
        let axes = match dims[..] {
            [n, c, h, w] if !video => [n, c, 1, h, w],
            [n, c, f, h, w] if video => [n, c, f, h, w],
            _ => [0; 5],
        };
        if axes[1] != channels || axes.contains(&0) {
            let what = format!("{}: latents", self.source);
            let frames = if video { "frames, " } else { "" };
            return Err(Error::request(what, format!("[n, {channels}, {frames}h, w]"), format!("{dims:?}")));
        }
        Ok(Some((axes, values)))
    }

    /// The classes or prompts it holds, if any. With guidance, prompts need negative ones.
    ///
    /// # Errors
    /// [`Error::Request`] if a tensor is missing or has other axes than the model needs.
    pub fn prompts<D: AsRef<[u8]>>(&mut self, model: &Model<'_, D>, guided: bool) -> Result<Option<Prompts>> {
        if let Some(labels) = self.class_labels()? {
            return Ok(Some(Prompts::Classes(labels)));
        }
        model.text.as_ref().map_or(Ok(None), |text| self.embeddings(text, guided))
    }

    /// Class labels `(n)`.
    fn class_labels(&mut self) -> Result<Option<Vec<u32>>> {
        let Some((dims, values)) = self.take("class_labels") else { return Ok(None) };
        let whole = values.iter().all(|v| *v >= 0.0 && v.fract() == 0.0 && *v < 1e9);
        if dims.len() != 1 || values.is_empty() || !whole {
            let got = format!("{dims:?} {:?}", &values[..values.len().min(4)]);
            let what = format!("{}: class_labels", self.source);
            return Err(Error::request(what, "[n] whole numbers, n at least 1", got));
        }
        Ok(Some(values.into_iter().map(|v| v as u32).collect()))
    }

    /// The prompts it holds in place of texts: `prompt_embeds` `(n, tokens, features)` with the features of all encoders
    /// side by side, or those of the first and, as `prompt_embeds_2`, those of the second.
    fn embeddings(&mut self, text: &TextModel<'_>, guided: bool) -> Result<Option<Prompts>> {
        let Some(mut prompts) = self.side(text, "")? else { return Ok(None) };
        let n = prompts.len();
        let tokens = |prompts: &[PromptFeatures]| prompts.iter().map(PromptFeatures::tokens).collect::<Vec<_>>();
        let fits = |negatives: &[PromptFeatures]| {
            negatives.len() == n && (!guided || text.lengths || tokens(negatives) == tokens(&prompts))
        };
        let negatives = match self.side(text, "negative_")? {
            Some(negatives) if fits(&negatives) => negatives,
            Some(negatives) => {
                let expected = format!("{n} prompts of {:?} tokens", tokens(&prompts));
                let got = format!("{} of {:?}", negatives.len(), tokens(&negatives));
                return Err(Error::request("--inputs negative_prompt_embeds", expected, got));
            }
            None if text.zero_negative || !guided => prompts.iter().map(zeroed).collect(),
            None if text.null_caption.is_some() => {
                prompts.iter().map(|prompt| null(text, prompt)).collect::<Result<_>>()?
            }
            None => {
                return Err(Error::request("--inputs", "negative_prompt_embeds beside prompt_embeds", "none"));
            }
        };
        prompts.extend(negatives);
        let of_image = (0..n).map(|i| [i, n + i]).collect();
        Ok(Some(Prompts::Embeddings(Embeddings { prompts, of_image })))
    }

    /// Prompts from the tensors whose names begin with `prefix`.
    fn side(&mut self, text: &TextModel<'_>, prefix: &str) -> Result<Option<Vec<PromptFeatures>>> {
        let widths: Vec<usize> = text.encoders.iter().map(|e| e.features).collect();
        let name = format!("{prefix}prompt_embeds");
        let Some((dims, values)) = self.take(&name) else { return Ok(None) };
        let [n, tokens, d] = dims[..] else { return wrong(&name, "[n, tokens, features]", &dims) };
        if n * tokens == 0 {
            return wrong(&name, "at least one prompt and token", &dims);
        }
        let counts = self.counts(prefix, "", [n, tokens])?.unwrap_or(Counts::all([n, tokens]));
        // Features of each encoder, and which of their rows count.
        let mut parts: Vec<(Vec<f32>, Counts)> = Vec::new();
        let all = widths.iter().sum::<usize>();
        if d == all {
            let mut first = 0;
            for &width in &widths {
                let columns = values.chunks_exact(d).flat_map(|row| &row[first..first + width]).copied().collect();
                parts.push((columns, counts.clone()));
                first += width;
            }
        } else {
            if d != widths[0] {
                let features = if all == widths[0] { format!("{all}") } else { format!("{all} or {}", widths[0]) };
                return wrong(&name, format!("[n, tokens, {features}]"), &dims);
            }
            parts.push((values, counts.clone()));
            for &width in &widths[1..] {
                let name = format!("{name}_2");
                let (dims, values) = self.take(&name).unwrap_or_default();
                let tokens = match dims[..] {
                    [rows, tokens, d] if [rows, d] == [n, width] && tokens > 0 => tokens,
                    _ => return wrong(&name, format!("[{n}, tokens, {width}]"), &dims),
                };
                let of_first = || Some(&counts).filter(|counts| counts.tokens == tokens).cloned();
                let told = self.counts(prefix, "_2", [n, tokens])?.or_else(of_first);
                parts.push((values, told.unwrap_or(Counts::all([n, tokens]))));
            }
        }
        let width = text.encoders.iter().map(|e| e.pooled).max().unwrap_or(0);
        let pooled = match width {
            0 => Vec::new(),
            width => self.exactly(&format!("{prefix}pooled"), &[n, width])?,
        };
        let prompt = |i: usize| {
            let encoders = text.encoders.iter().zip(&parts).map(|(encoder, (features, counts))| {
                let pooled = if encoder.pooled == 0 { &[][..] } else { &pooled[i * width..][..width] };
                features_of(encoder, features, counts, i, pooled.to_vec())
            });
            Ok(PromptFeatures { encoders: encoders.collect::<Result<_>>()? })
        };
        (0..n).map(prompt).collect::<Result<_>>().map(Some)
    }

    /// Which tokens of each prompt count, if a tensor says so: `prompt_mask` `(n, tokens)` of ones and zeros, or
    /// `prompt_tokens` `(n)`, how many, the first ones.
    fn counts(&mut self, prefix: &str, suffix: &str, [n, tokens]: [usize; 2]) -> Result<Option<Counts>> {
        let mask = format!("{prefix}prompt_mask{suffix}");
        if let Some((dims, values)) = self.take(&mask) {
            if dims != [n, tokens] {
                return wrong(&mask, format!("[{n}, {tokens}], as the features have"), &dims);
            }
            if let Some(other) = values.iter().find(|v| ![0.0, 1.0].contains(*v)) {
                return Err(Error::request(format!("--inputs {mask}"), "1 where a token counts, else 0", other));
            }
            if let Some(row) = values.chunks_exact(tokens).position(|row| !row.contains(&1.0)) {
                let got = format!("none in row {row}");
                return Err(Error::request(format!("--inputs {mask}"), "at least one token of each prompt", got));
            }
            return Ok(Some(Counts { tokens, mask: values.into_iter().map(|v| v == 1.0).collect() }));
        }
        let name = format!("{prefix}prompt_tokens");
        let Some((dims, values)) = Some(&name).filter(|_| suffix.is_empty()).and_then(|name| self.take(name)) else {
            return Ok(None);
        };
        let fits = |v: &f32| v.fract() == 0.0 && (1.0..=tokens as f32).contains(v);
        if dims != [n] || !values.iter().all(fits) {
            let expected = format!("[{n}] whole numbers, 1 to {tokens}");
            return Err(Error::request(format!("--inputs {name}"), expected, format!("{dims:?} {values:?}")));
        }
        let mask = values.iter().flat_map(|&count| (0..tokens).map(move |i| i < count as usize)).collect();
        Ok(Some(Counts { tokens, mask }))
    }

    /// The values of a tensor that must be there and have these axes.
    fn exactly(&mut self, name: &str, axes: &[usize]) -> Result<Vec<f32>> {
        match self.take(name) {
            Some((dims, values)) if dims == axes => Ok(values),
            other => wrong(name, format!("{axes:?}"), &other.map(|o| o.0).unwrap_or_default()),
        }
    }
}

fn wrong<T>(name: &str, expected: impl std::fmt::Display, dims: &[usize]) -> Result<T> {
    Err(Error::request(format!("--inputs {name}"), expected, format!("{dims:?}")))
}

/// Which tokens count.
#[derive(Clone)]
struct Counts {
    tokens: usize,
    /// `(n, tokens)`.
    mask: Vec<bool>,
}

impl Counts {
    fn all([n, tokens]: [usize; 2]) -> Self {
        Counts { tokens, mask: vec![true; n * tokens] }
    }
}

/// Prompt `i` as `encoder` tells it. Rows that do not count are left out, but where the encoder's texts are filled up to be
/// masked, as the denoiser has them so, too.
fn features_of(
    encoder: &TextEncoder,
    features: &[f32],
    counts: &Counts,
    i: usize,
    pooled: Vec<f32>,
) -> Result<EncoderFeatures> {
    let (tokens, width) = (counts.tokens, encoder.features);
    let mask = &counts.mask[i * tokens..][..tokens];
    let rows = features[i * tokens * width..][..tokens * width].chunks_exact(width);
    let length = mask.iter().filter(|counts| **counts).count();
    if encoder.length == TextLength::Masked {
        if !mask[..length].iter().all(|&counts| counts) {
            let expected = "ones before zeros, as the text encoder's padding is behind its texts";
            return Err(Error::request("--inputs prompt_mask", expected, format!("others in prompt {i}")));
        }
        return Ok(EncoderFeatures { tokens, length, features: rows.flatten().copied().collect(), pooled });
    }
    let rows = rows.zip(mask).filter(|(_, counts)| **counts);
    let features = rows.flat_map(|(row, _)| row).copied().collect();
    Ok(EncoderFeatures { tokens: length, length, features, pooled })
}

/// What stands for no prompt beside `prompt`, as many rows as count there.
fn null(text: &TextModel<'_>, prompt: &PromptFeatures) -> Result<PromptFeatures> {
    let of = |(e, encoder): (&EncoderFeatures, &TextEncoder)| {
        let (tokens, most) = (e.length, encoder.tokens);
        match text.null_features(tokens).filter(|_| tokens <= most) {
            Some(features) => Ok(EncoderFeatures { tokens, length: tokens, features, pooled: Vec::new() }),
            None => {
                let expected = format!("at most {most} tokens, or negative_prompt_embeds");
                Err(Error::request("--inputs prompt_embeds", expected, tokens))
            }
        }
    };
    let encoders = prompt.encoders.iter().zip(&text.encoders).map(of).collect::<Result<_>>()?;
    Ok(PromptFeatures { encoders })
}

fn zeroed(prompt: &PromptFeatures) -> PromptFeatures {
    let zeros = |x: &Vec<f32>| vec![0.0; x.len()];
    let zero = |e: &EncoderFeatures| EncoderFeatures { features: zeros(&e.features), pooled: zeros(&e.pooled), ..*e };
    PromptFeatures { encoders: prompt.encoders.iter().map(zero).collect() }
}

impl NamedTensor {
    /// `prompts` as [`Tensors`] takes them.
    pub fn of_prompts(prompts: &Prompts) -> Vec<Self> {
        match prompts {
            Prompts::Unconditional(_) | Prompts::Texts(_) => Vec::new(),
            Prompts::Classes(labels) => {
                let values = labels.iter().map(|&c| c as f32).collect();
                vec![NamedTensor { name: "class_labels", dims: vec![labels.len()], values }]
            }
            Prompts::Embeddings(embeddings) => {
                SIDES.iter().enumerate().flat_map(|(side, names)| of_side(embeddings, side, *names)).collect()
            }
        }
    }
}

/// The prompts of all images, or their negative ones: features of all encoders side by side where these have as many tokens,
/// else each by itself; which of the rows count; vectors.
fn of_side(
    embeddings: &Embeddings,
    side: usize,
    [embeds, mask, embeds_2, mask_2, pooled]: [&'static str; 5],
) -> Vec<NamedTensor> {
    let prompts: Vec<_> = embeddings.of_image.iter().map(|pair| &embeddings.prompts[pair[side]]).collect();
    let encoders = prompts.first().map_or(0, |prompt| prompt.encoders.len());
    let shape = |e: &EncoderFeatures| [e.tokens, e.length];
    let alike = |prompt: &&PromptFeatures| prompt.encoders.iter().all(|e| shape(e) == shape(&prompt.encoders[0]));
    let mut named: Vec<NamedTensor> = match prompts.iter().all(alike) {
        true => features_and_mask(&prompts, 0..encoders, embeds, mask).into(),
        false => [(embeds, mask), (embeds_2, mask_2)]
            .into_iter()
            .zip(0..encoders)
            .flat_map(|((embeds, mask), i)| features_and_mask(&prompts, i..i + 1, embeds, mask))
            .collect(),
    };
    let vectors: Vec<f32> =
        prompts.iter().flat_map(|prompt| &prompt.encoders).flat_map(|e| &e.pooled).copied().collect();
    if !vectors.is_empty() {
        let dims = vec![prompts.len(), vectors.len() / prompts.len()];
        named.push(NamedTensor { name: pooled, dims, values: vectors });
    }
    named
}

/// Features of some encoders, which have as many tokens, side by side, and which rows count; shorter prompts end in zeros.
fn features_and_mask(
    prompts: &[&PromptFeatures],
    encoders: Range<usize>,
    embeds: &'static str,
    mask: &'static str,
) -> [NamedTensor; 2] {
    let of = |prompt: &'_ PromptFeatures| prompt.encoders[encoders.start].tokens;
    let (n, tokens) = (prompts.len(), prompts.iter().map(|prompt| of(prompt)).max().unwrap_or(1));
    let (mut values, mut counts) = (Vec::new(), Vec::new());
    for (i, prompt) in prompts.iter().enumerate() {
        let encoders = &prompt.encoders[encoders.clone()];
        let EncoderFeatures { tokens: rows, length, .. } = encoders[0];
        for token in 0..rows {
            for e in encoders {
                let width = e.features.len() / rows;
                values.extend_from_slice(&e.features[token * width..][..width]);
            }
        }
        let width = values.len() / (i * tokens + rows);
        values.resize((i + 1) * tokens * width, 0.0);
        counts.extend((0..tokens).map(|token| if token < length { 1.0 } else { 0.0 }));
    }
    let dims = vec![n, tokens, values.len() / n / tokens];
    [NamedTensor { name: embeds, dims, values }, NamedTensor { name: mask, dims: vec![n, tokens], values: counts }]
}

fn floats(path: &str, name: &str, view: &TensorView) -> Result<Vec<f32>> {
    let data = view.data();
    let out: Vec<f32> = match view.dtype() {
        Dtype::F32 => data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        Dtype::F16 => data.chunks_exact(2).map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        Dtype::BF16 => data.chunks_exact(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        Dtype::BOOL | Dtype::U8 => data.iter().map(|&b| f32::from(b)).collect(),
        Dtype::I32 => data.chunks_exact(4).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]]) as f32).collect(),
        Dtype::I64 => {
            data.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap_or_default()) as f32).collect()
        }
        other => {
            let what = format!("{path}: tensor `{name}`");
            return Err(Error::request(what, "f32, f16, bf16, bool, u8, i32 or i64", format!("{other:?}")));
        }
    };
    if let Some(i) = out.iter().position(|v| !v.is_finite()) {
        return Err(Error::request(format!("{path}: tensor `{name}`"), "finite numbers", format!("{} at {i}", out[i])));
    }
    Ok(out)
}
