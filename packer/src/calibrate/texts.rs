//! What text encoders read: the tokens of each distinct text, and how many samples have it.

use crate::error::Result;
use aquatint::Model;
use aquatint::pipeline::{Prompts, Request};
use aquatint::raw::format::meta::TextLength;
use aquatint::raw::program::Role;
use aquatint::raw::text::{self, Chunks, Tokenizer};

/// The texts of one encoder.
pub struct EncoderTexts {
    /// Its program.
    pub role: Role,
    /// How long its texts are.
    pub length: TextLength,
    /// Every text of the calibration.
    texts: Vec<Text>,
}

/// A text.
struct Text {
    chunks: Chunks,
    /// Samples that have it.
    weight: f32,
}

/// What an encoder reads at once.
#[derive(Clone, Copy)]
pub struct Chunk<'a> {
    /// Its tokens.
    pub ids: &'a [u32],
    /// How many of them, the first ones, attention sees.
    pub seen: usize,
    /// How many of them, the first ones, are looked at: all that something is made of.
    pub length: usize,
    /// The number of its text.
    pub text: usize,
    /// Samples that have it.
    pub weight: f32,
}

/// The texts of `request`, each once for each encoder, with the weight of those of `images`. `copies` is 2 if negative
/// texts count.
///
/// # Errors
/// If there is no tokenizer, or a text cannot be read.
pub fn read<D: AsRef<[u8]>>(
    model: &Model<'_, D>,
    request: &Request,
    images: &[usize],
    copies: usize,
) -> Result<Vec<EncoderTexts>> {
    let (Some(meta), Prompts::Texts(texts)) = (&model.text, &request.prompts) else { return Ok(Vec::new()) };
    // Texts, and the prompts that they are as long as where that is asked for.
    let mut distinct: Vec<(&str, Option<&str>, f32)> = Vec::new();
    for i in 0..texts.prompts.len() {
        // Where there is no negative text, the denoiser reads zeros, what it has learned, or an empty one.
        let empty = !meta.zero_negative && meta.null_caption.is_none();
        let (prompt, negative) = (texts.prompts[i].as_str(), texts.negative(i).or(empty.then_some("")));
        let both = [Some((prompt, None)), negative.map(|text| (text, meta.negative_as_long.then_some(prompt)))];
        for (text, as_long_as) in both.into_iter().take(copies).flatten() {
            let known = |&(other, long, _): &(&str, Option<&str>, f32)| (other, long) == (text, as_long_as);
            let at = distinct.iter().position(known).unwrap_or_else(|| {
                distinct.push((text, as_long_as, 0.0));
                distinct.len() - 1
            });
            distinct[at].2 += if images.binary_search(&i).is_ok() { 1.0 } else { 0.0 };
        }
    }
    let mut encoders = Vec::new();
    for encoder in &meta.encoders {
        let Some(json) = encoder.tokenizer else { continue };
        let tokenizer = Tokenizer::new(json)?;
        let encode = |text: &str| text::encode(&tokenizer, encoder.special, text, texts.style);
        let tokens = |&(text, as_long_as, weight): &(&str, Option<&str>, f32)| {
            let mut chunks = encode(text)?;
            if let Some(prompt) = as_long_as {
                chunks.fill(encoder.special, encode(prompt)?.ids.len());
            }
            Ok(Text { chunks, weight })
        };
        let texts = distinct.iter().map(tokens).collect::<aquatint::Result<_>>()?;
        encoders.push(EncoderTexts { role: encoder.role, length: encoder.length, texts });
    }
    Ok(encoders)
}

impl EncoderTexts {
    /// All chunks.
    pub fn chunks(&self) -> impl Iterator<Item = Chunk<'_>> {
        self.texts.iter().enumerate().flat_map(move |(i, text)| {
            let lengths = &text.chunks.lengths;
            let all = text.chunks.ids.chunks_exact(text.chunks.ids.len() / lengths.len());
            all.zip(lengths).map(move |(ids, &seen)| {
                // Padding that is read counts as all tokens do.
                let length = if self.length == TextLength::Masked { seen } else { ids.len() };
                Chunk { ids, seen, length, text: i, weight: text.weight }
            })
        })
    }
}

impl Chunk<'_> {
    /// Rows that are looked at of an input that has `unit_rows`, if all count: those of its tokens if it has as many, or, of texts of
    /// their own length, as many for each token.
    pub fn rows(&self, unit_rows: usize) -> usize {
        if unit_rows == self.ids.len() || unit_rows == 1 { self.length } else { unit_rows }
    }
}
