//! What images are asked for: prompts, classes, or ready features from a file.

use super::MOST_IMAGES;
use super::tensors::{Inputs, Named};
use aquatint::format::meta::{PipelineMeta, TextMeta};
use aquatint::pipeline::{Encoded, Pipeline, Prompt, Subjects, Texts};
use aquatint::text::PromptStyle;
use aquatint::{Error, Result};
use clap::Args;

/// What the images show.
#[derive(Args, Clone)]
pub struct Wishes {
    /// What an image shows: a text, or of models with classes a class by name or number; may repeat
    #[arg(short, long, value_name = "TEXT")]
    pub prompt: Vec<String>,
    /// What images do not show; once for all images, or once per image
    #[arg(short, long, alias = "negative-prompt", alias = "negative_prompt", value_name = "TEXT")]
    pub negative: Vec<String>,
    /// Take prompts literally: no (weights:1.3), no BREAK, and nothing beyond what the text encoder reads at once
    #[arg(long)]
    pub plain_prompt: bool,
    /// Classes by number or name, separated by commas; one image each
    #[arg(long, alias = "cls_id", value_name = "LIST", value_delimiter = ',')]
    pub class_labels: Vec<String>,
    /// Images per prompt or class
    #[arg(long, alias = "n_imgs", default_value_t = 1, value_name = "N")]
    pub n_imgs: usize,
}

/// Names of tensors that `--inputs` may hold instead of prompts and classes.
pub const NAMES: [&str; 7] = [
    "class_labels",
    "prompt_embeds",
    "negative_prompt_embeds",
    "prompt_embeds_2",
    "negative_prompt_embeds_2",
    "pooled",
    "negative_pooled",
];

/// What was asked for.
pub enum Ask {
    /// Subjects as the pipeline takes them.
    Ready(Subjects),
    /// Texts that a text encoder must read first, one per image.
    Texts {
        /// What images show.
        wanted: Vec<String>,
        /// What they do not; none, one, or one per image.
        unwanted: Vec<String>,
        /// How texts are read.
        style: PromptStyle,
    },
}

impl Ask {
    /// Number of images.
    pub fn len(&self) -> usize {
        match self {
            Ask::Ready(subjects) => subjects.len(),
            Ask::Texts { wanted, .. } => wanted.len(),
        }
    }

    /// The same for `n` images, if it is for one.
    ///
    /// # Errors
    /// [`Error::Request`] if it is for another number of images; `what` has `n` of them.
    pub fn repeat(&mut self, n: usize, what: &str) -> Result<()> {
        if self.len() == 1 {
            match self {
                Ask::Ready(Subjects::Any(count)) => *count = n,
                Ask::Ready(Subjects::Classes(labels)) => *labels = vec![labels[0]; n],
                Ask::Ready(Subjects::Prompts { of_image, .. }) => *of_image = vec![of_image[0]; n],
                Ask::Texts { wanted, .. } => *wanted = vec![wanted[0].clone(); n],
            }
        }
        if self.len() != n {
            return Err(Error::request(what, format!("{} images, one per prompt or class", self.len()), n));
        }
        Ok(())
    }

    /// The subjects, if no text has to be read first.
    pub fn ready(&self) -> Option<&Subjects> {
        if let Ask::Ready(subjects) = self { Some(subjects) } else { None }
    }

    /// The texts to be read first.
    pub fn texts(&self) -> Option<Texts<'_>> {
        match self {
            Ask::Ready(_) => None,
            Ask::Texts { wanted, unwanted, style } => Some(Texts { wanted, unwanted, style: *style }),
        }
    }

    /// What image `i` shows and what not, for people.
    pub fn told(&self, i: usize, meta: &PipelineMeta) -> [String; 2] {
        match self {
            Ask::Ready(Subjects::Classes(labels)) => [class_name(labels[i], meta), String::new()],
            Ask::Ready(_) => Default::default(),
            Ask::Texts { wanted, unwanted, .. } => {
                let not = unwanted.get(if unwanted.len() == 1 { 0 } else { i });
                [wanted[i].clone(), not.cloned().unwrap_or_default()]
            }
        }
    }
}

impl Wishes {
    /// What is asked of a model; tensors of `inputs` come first. With guidance, prompts need negative ones.
    pub fn ask<D: AsRef<[u8]>>(
        &self,
        pipeline: &Pipeline<'_, D>,
        inputs: Option<&mut Inputs>,
        guided: bool,
    ) -> Result<Ask> {
        let meta = &pipeline.meta().pipeline;
        if let Some(inputs) = inputs
            && let Some(subjects) = ready(pipeline, inputs, guided)?
        {
            return Ok(Ask::Ready(subjects));
        }
        if !pipeline.prompted() && !self.negative.is_empty() {
            return Err(Error::request("--negative", "a model that reads prompts", "one that does not"));
        }
        let times = |n: usize| {
            let most = MOST_IMAGES / n.max(1);
            if (1..=most).contains(&self.n_imgs) {
                Ok(self.n_imgs)
            } else {
                Err(Error::request("--n-imgs", format!("1 to {most}"), self.n_imgs))
            }
        };
        if pipeline.prompted() {
            if let Some(class) = self.class_labels.first() {
                return Err(Error::request("--class-labels", "none: this model reads prompts", format!("`{class}`")));
            }
            if self.prompt.is_empty() {
                return Err(Error::request("--prompt", "what the images show", "none"));
            }
            let repeat = |texts: &[String]| -> Result<Vec<String>> {
                let n = times(texts.len())?;
                Ok(texts.iter().flat_map(|t| std::iter::repeat_n(t.clone(), n)).collect())
            };
            let unwanted = if self.negative.len() > 1 { repeat(&self.negative)? } else { self.negative.clone() };
            let style = if self.plain_prompt { PromptStyle::Plain } else { PromptStyle::Weighted };
            return Ok(Ask::Texts { wanted: repeat(&self.prompt)?, unwanted, style });
        }
        let mut labels = Vec::new();
        for text in self.class_labels.iter().chain(&self.prompt) {
            labels.push(class_of(text, meta)?);
        }
        if !pipeline.classified() {
            return Ok(Ask::Ready(Subjects::Any(times(1)?)));
        }
        if labels.is_empty() {
            labels.extend(meta.class_names.keys().take(64));
        }
        if labels.is_empty() {
            let expected = format!("at least one of 0 to {}", meta.classes.saturating_sub(1));
            return Err(Error::request("--class-labels", expected, "none"));
        }
        let n = times(labels.len())?;
        Ok(Ask::Ready(Subjects::Classes(labels.iter().flat_map(|&l| std::iter::repeat_n(l, n)).collect())))
    }
}

/// What `inputs` hold of classes or prompts.
pub fn ready<D: AsRef<[u8]>>(
    pipeline: &Pipeline<'_, D>,
    inputs: &mut Inputs,
    guided: bool,
) -> Result<Option<Subjects>> {
    if let Some(labels) = inputs.class_labels()? {
        return Ok(Some(Subjects::Classes(labels)));
    }
    pipeline.meta().pipeline.text.as_ref().map_or(Ok(None), |text| prompts(inputs, text, guided))
}

/// The prompts that `inputs` hold in place of texts: `prompt_embeds` `(n, tokens, features)` with the features of all
/// encoders side by side, or those of the first and, as `prompt_embeds_2`, those of the second.
fn prompts(inputs: &mut Inputs, meta: &TextMeta, guided: bool) -> Result<Option<Subjects>> {
    let Some(wanted) = side(inputs, meta, "")? else { return Ok(None) };
    let unwanted = side(inputs, meta, "negative_")?;
    let (n, tokens) = (wanted.0.len(), wanted.1);
    let negatives = match unwanted {
        Some((negatives, t)) if negatives.len() == n && t == tokens => negatives,
        Some((negatives, t)) => {
            let got = format!("{} of {t}", negatives.len());
            return Err(Error::request(
                "--inputs negative_prompt_embeds",
                format!("{n} prompts of {tokens} tokens"),
                got,
            ));
        }
        None if meta.zero_negative || !guided => wanted.0.iter().map(zeroed).collect(),
        None => return Err(Error::request("--inputs", "negative_prompt_embeds beside prompt_embeds", "none")),
    };
    let of_image = (0..n).map(|i| [i, n + i]).collect();
    Ok(Some(Subjects::Prompts { prompts: [wanted.0, negatives].concat(), tokens, of_image }))
}

fn zeroed(prompt: &Prompt) -> Prompt {
    let zeros = |x: &Vec<f32>| vec![0.0; x.len()];
    let encoded = prompt.encoded.iter().map(|e| Encoded { features: zeros(&e.features), pooled: zeros(&e.pooled) });
    Prompt { encoded: encoded.collect() }
}

/// Prompts and their number of tokens, from the tensors whose names begin with `prefix`.
fn side(inputs: &mut Inputs, meta: &TextMeta, prefix: &str) -> Result<Option<(Vec<Prompt>, usize)>> {
    let widths: Vec<usize> = meta.encoders.iter().map(|e| e.features as usize).collect();
    let name = format!("{prefix}prompt_embeds");
    let Some((dims, values)) = inputs.take(&name) else { return Ok(None) };
    let wrong = |name: &str, expected: String, dims: &[usize]| {
        Err(Error::request(format!("--inputs {name}"), expected, format!("{dims:?}")))
    };
    let [n, tokens, d] = dims[..] else { return wrong(&name, "[n, tokens, features]".into(), &dims) };
    if n * tokens == 0 {
        return wrong(&name, "at least one prompt and token".into(), &dims);
    }
    let mut parts: Vec<Vec<f32>> = Vec::new();
    if d == widths.iter().sum::<usize>() {
        let mut first = 0;
        for &width in &widths {
            parts.push(values.chunks_exact(d).flat_map(|row| &row[first..first + width]).copied().collect());
            first += width;
        }
    } else {
        if d != widths[0] {
            return wrong(&name, format!("[n, tokens, {} or {}]", widths.iter().sum::<usize>(), widths[0]), &dims);
        }
        parts.push(values);
        for width in &widths[1..] {
            let name = format!("{name}_2");
            match inputs.take(&name) {
                Some((dims, values)) if dims == [n, tokens, *width] => parts.push(values),
                other => {
                    let dims = other.map(|o| o.0).unwrap_or_default();
                    return wrong(&name, format!("{:?}", [n, tokens, *width]), &dims);
                }
            }
        }
    }
    let pooled_width = meta.encoders.iter().map(|e| e.pooled as usize).max().unwrap_or(0);
    let mut pooled = vec![0.0; n * pooled_width];
    if pooled_width > 0 {
        let name = format!("{prefix}pooled");
        match inputs.take(&name) {
            Some((dims, values)) if dims == [n, pooled_width] => pooled = values,
            other => {
                let dims = other.map(|o| o.0).unwrap_or_default();
                return wrong(&name, format!("{:?}", [n, pooled_width]), &dims);
            }
        }
    }
    let encoded = |i: usize| {
        let parts = meta.encoders.iter().zip(&parts).zip(&widths).map(|((encoder, part), width)| Encoded {
            features: part[i * tokens * width..][..tokens * width].to_vec(),
            pooled: if encoder.pooled == 0 { vec![] } else { pooled[i * pooled_width..][..pooled_width].to_vec() },
        });
        Prompt { encoded: parts.collect() }
    };
    Ok(Some(((0..n).map(encoded).collect(), tokens)))
}

/// The features of `subjects` as `--inputs` takes them.
pub fn features(subjects: &Subjects) -> Vec<Named> {
    match subjects {
        Subjects::Any(_) => Vec::new(),
        Subjects::Classes(labels) => {
            let values = labels.iter().map(|&c| c as f32).collect();
            vec![Named { name: "class_labels", dims: vec![labels.len()], values }]
        }
        Subjects::Prompts { prompts, tokens, of_image } => {
            let mut named = Vec::new();
            for (side, [embeds, pooled]) in
                [["prompt_embeds", "pooled"], ["negative_prompt_embeds", "negative_pooled"]].into_iter().enumerate()
            {
                let mut values = Vec::new();
                let mut vectors = Vec::new();
                for encoded in of_image.iter().map(|pair| &prompts[pair[side]].encoded) {
                    for token in 0..*tokens {
                        for e in encoded {
                            let width = e.features.len() / tokens;
                            values.extend_from_slice(&e.features[token * width..][..width]);
                        }
                    }
                    encoded.iter().for_each(|e| vectors.extend_from_slice(&e.pooled));
                }
                let n = of_image.len();
                let dims = |len: usize| len / n;
                named.push(Named { name: embeds, dims: vec![n, *tokens, dims(values.len()) / tokens], values });
                if !vectors.is_empty() {
                    named.push(Named { name: pooled, dims: vec![n, dims(vectors.len())], values: vectors });
                }
            }
            named
        }
    }
}

/// A class by number or name.
fn class_of(text: &str, meta: &PipelineMeta) -> Result<u32> {
    let text = text.trim();
    let named = meta.class_names.iter().find(|(_, n)| n.as_str() == text);
    let named = named.or_else(|| meta.class_names.iter().find(|(_, n)| n.eq_ignore_ascii_case(text)));
    if let Some((&class, _)) = named {
        return Ok(class);
    }
    if meta.classes == 0 {
        return Err(Error::request("class label", "none: this model has no classes", format!("`{text}`")));
    }
    let last = meta.classes.saturating_sub(1);
    match text.parse::<u32>() {
        Ok(class) if class <= last || class == meta.null_class => Ok(class),
        _ => {
            let names: Vec<_> = meta.class_names.values().take(6).cloned().collect();
            let or = if names.is_empty() { String::new() } else { format!(", or a name such as {}", names.join(", ")) };
            Err(Error::request("class label", format!("0 to {last}{or}"), format!("`{text}`")))
        }
    }
}

fn class_name(class: u32, meta: &PipelineMeta) -> String {
    meta.class_names.get(&class).cloned().unwrap_or_else(|| format!("class {class}"))
}
