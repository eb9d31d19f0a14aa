//! Tensors in place of what would be computed, in diffusers' layouts: `latents` `(n, c, h, w)`, `class_labels` `(n)`,
//! `prompt_embeds` `(n, tokens, features)` and more, from safetensors files.

use crate::error::{Error, Result};
use crate::model::{Model, TextEncoder, TextModel};
use crate::pipeline::{Embeddings, EncoderFeatures, PromptFeatures, Prompts};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

/// Names that a file may hold.
const NAMES: [&str; 10] = [
    "latents",
    "class_labels",
    "prompt_embeds",
    "negative_prompt_embeds",
    "prompt_embeds_2",
    "negative_prompt_embeds_2",
    "prompt_tokens",
    "negative_prompt_tokens",
    "pooled",
    "negative_pooled",
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

    /// Latents `(n, c, h, w)` with `channels` channels.
    ///
    /// # Errors
    /// [`Error::Request`] if they have other axes.
    pub fn latents(&mut self, channels: usize) -> Result<Option<([usize; 4], Vec<f32>)>> {
        let Some((dims, values)) = self.take("latents") else { return Ok(None) };
        match dims[..] {
            [n, c, h, w] if c == channels && n * h * w > 0 => Ok(Some(([n, c, h, w], values))),
            _ => {
                let what = format!("{}: latents", self.source);
                Err(Error::request(what, format!("[n, {channels}, h, w]"), format!("{dims:?}")))
            }
        }
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
        let tokens = |prompts: &[PromptFeatures]| prompts.iter().map(|p| p.tokens).collect::<Vec<_>>();
        let negatives = match self.side(text, "negative_")? {
            Some(negatives) if negatives.len() == n && (!guided || tokens(&negatives) == tokens(&prompts)) => negatives,
            Some(negatives) => {
                let expected = format!("{n} prompts of {:?} tokens", tokens(&prompts));
                let got = format!("{} of {:?}", negatives.len(), tokens(&negatives));
                return Err(Error::request("--inputs negative_prompt_embeds", expected, got));
            }
            None if text.zero_negative || !guided => prompts.iter().map(zeroed).collect(),
            None => {
                return Err(Error::request("--inputs", "negative_prompt_embeds beside prompt_embeds", "none"));
            }
        };
        prompts.extend(negatives);
        let of_image = (0..n).map(|i| [i, n + i]).collect();
        Ok(Some(Prompts::Embeddings(Embeddings { prompts, of_image })))
    }

    /// Prompts from the tensors whose names begin with `prefix`. `prompt_tokens` `(n)`, if it is there, tells how many
    /// tokens of each count; what is behind them is padding of the tensor.
    fn side(&mut self, text: &TextModel<'_>, prefix: &str) -> Result<Option<Vec<PromptFeatures>>> {
        let widths: Vec<usize> = text.encoders.iter().map(|e| e.features).collect();
        let name = format!("{prefix}prompt_embeds");
        let Some((dims, values)) = self.take(&name) else { return Ok(None) };
        let [n, tokens, d] = dims[..] else { return wrong(&name, "[n, tokens, features]", &dims) };
        if n * tokens == 0 {
            return wrong(&name, "at least one prompt and token", &dims);
        }
        let mut parts: Vec<Vec<f32>> = Vec::new();
        let all = widths.iter().sum::<usize>();
        if d == all {
            let mut first = 0;
            for &width in &widths {
                parts.push(values.chunks_exact(d).flat_map(|row| &row[first..first + width]).copied().collect());
                first += width;
            }
        } else {
            if d != widths[0] {
                return wrong(&name, format!("[n, tokens, {all} or {}]", widths[0]), &dims);
            }
            parts.push(values);
            for &width in &widths[1..] {
                parts.push(self.exactly(&format!("{name}_2"), &[n, tokens, width])?);
            }
        }
        let used = match self.take(&format!("{prefix}prompt_tokens")) {
            None => vec![tokens; n],
            Some((dims, values)) => {
                let fits = |v: &f32| v.fract() == 0.0 && (1.0..=tokens as f32).contains(v);
                if dims != [n] || !values.iter().all(fits) {
                    let expected = format!("[{n}] whole numbers, 1 to {tokens}");
                    return Err(Error::request(
                        format!("--inputs {prefix}prompt_tokens"),
                        expected,
                        format!("{dims:?} {values:?}"),
                    ));
                }
                values.into_iter().map(|v| v as usize).collect()
            }
        };
        let pooled_width = text.encoders.iter().map(|e| e.pooled).max().unwrap_or(0);
        let pooled = match pooled_width {
            0 => Vec::new(),
            width => self.exactly(&format!("{prefix}pooled"), &[n, width])?,
        };
        let prompt = |i: usize| {
            let of = |(encoder, part): (&TextEncoder, &Vec<f32>)| EncoderFeatures {
                features: part[i * tokens * encoder.features..][..used[i] * encoder.features].to_vec(),
                pooled: match encoder.pooled {
                    0 => Vec::new(),
                    _ => pooled[i * pooled_width..][..pooled_width].to_vec(),
                },
            };
            PromptFeatures { tokens: used[i], encoders: text.encoders.iter().zip(&parts).map(of).collect() }
        };
        Ok(Some((0..n).map(prompt).collect()))
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

fn zeroed(prompt: &PromptFeatures) -> PromptFeatures {
    let zeros = |x: &Vec<f32>| vec![0.0; x.len()];
    let zero = |e: &EncoderFeatures| EncoderFeatures { features: zeros(&e.features), pooled: zeros(&e.pooled) };
    PromptFeatures { tokens: prompt.tokens, encoders: prompt.encoders.iter().map(zero).collect() }
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
                let names = [
                    ["prompt_embeds", "prompt_tokens", "pooled"],
                    ["negative_prompt_embeds", "negative_prompt_tokens", "negative_pooled"],
                ];
                names.into_iter().enumerate().flat_map(|(side, names)| of_side(embeddings, side, names)).collect()
            }
        }
    }
}

/// The prompts of all images, or their negative ones; shorter ones end in zeros, and their numbers of tokens are told.
fn of_side(embeddings: &Embeddings, side: usize, [embeds, counts, pooled]: [&'static str; 3]) -> Vec<NamedTensor> {
    let of_image = || embeddings.of_image.iter().map(|pair| &embeddings.prompts[pair[side]]);
    let (n, tokens) = (embeddings.of_image.len(), of_image().map(|prompt| prompt.tokens).max().unwrap_or(1));
    let (mut values, mut vectors) = (Vec::new(), Vec::new());
    for (i, PromptFeatures { tokens: used, encoders }) in of_image().enumerate() {
        for token in 0..*used {
            for e in encoders {
                let width = e.features.len() / used;
                values.extend_from_slice(&e.features[token * width..][..width]);
            }
        }
        let width = values.len() / (i * tokens + used);
        values.resize((i + 1) * tokens * width, 0.0);
        encoders.iter().for_each(|e| vectors.extend_from_slice(&e.pooled));
    }
    let mut named = vec![NamedTensor { name: embeds, dims: vec![n, tokens, values.len() / n / tokens], values }];
    if of_image().any(|prompt| prompt.tokens != tokens) {
        let values = of_image().map(|prompt| prompt.tokens as f32).collect();
        named.push(NamedTensor { name: counts, dims: vec![n], values });
    }
    if !vectors.is_empty() {
        named.push(NamedTensor { name: pooled, dims: vec![n, vectors.len() / n], values: vectors });
    }
    named
}

fn floats(path: &str, name: &str, view: &TensorView) -> Result<Vec<f32>> {
    let data = view.data();
    let out: Vec<f32> = match view.dtype() {
        Dtype::F32 => data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        Dtype::F16 => data.chunks_exact(2).map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        Dtype::BF16 => data.chunks_exact(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        Dtype::I32 => data.chunks_exact(4).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]]) as f32).collect(),
        Dtype::I64 => {
            data.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap_or_default()) as f32).collect()
        }
        other => {
            let what = format!("{path}: tensor `{name}`");
            return Err(Error::request(what, "f32, f16, bf16, i32 or i64", format!("{other:?}")));
        }
    };
    if let Some(i) = out.iter().position(|v| !v.is_finite()) {
        return Err(Error::request(format!("{path}: tensor `{name}`"), "finite numbers", format!("{} at {i}", out[i])));
    }
    Ok(out)
}
