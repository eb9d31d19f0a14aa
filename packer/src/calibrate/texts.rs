//! What text encoders read: the tokens of each distinct text, and how many samples have it.

use crate::error::Result;
use aquatint::Model;
use aquatint::pipeline::{Prompts, Request};
use aquatint::raw::format::meta::TextLength;
use aquatint::raw::program::Role;
use aquatint::raw::text::{self, Tokenizer};

/// The texts of one encoder.
pub struct EncoderTexts {
    /// Its program.
    pub role: Role,
    /// Tokens of a chunk.
    pub tokens: usize,
    /// Every text of the calibration.
    pub texts: Vec<Tokens>,
}

/// A text.
pub struct Tokens {
    /// `(chunks, tokens)`.
    pub ids: Vec<u32>,
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
    let mut distinct: Vec<(&str, f32)> = Vec::new();
    for i in 0..texts.prompts.len() {
        // Where there is no negative text, the denoiser reads zeros or an empty one.
        let negative = texts.negative(i).or((!meta.zero_negative).then_some(""));
        let both = [Some(texts.prompts[i].as_str()), negative];
        for text in both.into_iter().take(copies).flatten() {
            let at = distinct.iter().position(|(known, _)| *known == text).unwrap_or_else(|| {
                distinct.push((text, 0.0));
                distinct.len() - 1
            });
            distinct[at].1 += if images.binary_search(&i).is_ok() { 1.0 } else { 0.0 };
        }
    }
    let mut encoders = Vec::new();
    for encoder in &meta.encoders {
        // Of texts that are not all as long, nothing is looked at: what is not known is rounded to the nearest level.
        if encoder.length != TextLength::Padded {
            continue;
        }
        let Some(json) = encoder.tokenizer else { continue };
        let tokenizer = Tokenizer::new(json)?;
        let tokens = |&(text, weight): &(&str, f32)| {
            let ids = text::encode(&tokenizer, encoder.special, text, texts.style)?.ids;
            Ok(Tokens { ids, weight })
        };
        let texts = distinct.iter().map(tokens).collect::<aquatint::Result<_>>()?;
        encoders.push(EncoderTexts { role: encoder.role, tokens: encoder.tokens, texts });
    }
    Ok(encoders)
}

impl EncoderTexts {
    /// All chunks: their tokens, the number of their text, and its weight.
    pub fn chunks(&self) -> impl Iterator<Item = (&[u32], usize, f32)> {
        self.texts
            .iter()
            .enumerate()
            .flat_map(|(i, text)| text.ids.chunks_exact(self.tokens).map(move |ids| (ids, i, text.weight)))
    }
}
