//! Texts to features: tokens first, which costs nothing and tells the sizes of everything, then the encoders.

use super::prompts::{Embeddings, EncoderFeatures, PromptFeatures};
use super::session::Session;
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::model::{Model, TextEncoder};
use crate::plan::Binding;
use crate::program::Dims;
use crate::text::{self, Chunks, PromptStyle, Tokenizer};

/// Chunks of text per pass through an encoder.
pub(super) const BATCH: usize = 4;

/// Texts that images show, and texts that guidance leads away from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Texts {
    /// One per image.
    pub prompts: Vec<String>,
    /// One per image, one for all images, or none, which is an empty text.
    pub negatives: Vec<String>,
    /// Whether brackets and `BREAK` mean something.
    pub style: PromptStyle,
}

impl Texts {
    /// The negative text of image `i`.
    pub(super) fn negative(&self, i: usize) -> &str {
        let index = if self.negatives.len() == 1 { 0 } else { i };
        self.negatives.get(index).map_or("", String::as_str)
    }
}

/// Tokens of the distinct texts of a request.
///
/// All are filled up to the longest one's number of chunks.
#[derive(Clone, Debug)]
pub(super) struct TokenizedTexts {
    /// Per text encoder, the chunks of each text.
    chunks: Vec<Vec<Chunks>>,
    /// Chunks of each text.
    per_text: usize,
    /// Tokens of each text.
    pub tokens: usize,
    /// Per image: index of its text and of its negative text; one behind the last text is zeros.
    pub of_image: Vec<[usize; 2]>,
    /// What of the texts does not fit the encoders and was cut off.
    pub cut: Vec<String>,
}

impl TokenizedTexts {
    /// Makes tokens of `texts`.
    ///
    /// # Errors
    /// [`Error::Request`] if the model does not read texts, or there are as many negative texts as no rule explains.
    pub fn new<D: AsRef<[u8]>>(model: &Model<'_, D>, texts: &Texts) -> Result<Self> {
        let Some(meta) = &model.text else {
            let expected = "a model with a text encoder, or --inputs with prompt_embeds";
            return Err(Error::request("prompt", expected, "none"));
        };
        let (n, negatives) = (texts.prompts.len(), texts.negatives.len());
        if negatives > 1 && negatives != n {
            return Err(Error::request("negative prompts", format!("none, 1, or {n}: one per image"), negatives));
        }
        let mut distinct: Vec<&str> = Vec::new();
        let mut number = |text| {
            distinct.iter().position(|&t| t == text).unwrap_or_else(|| {
                distinct.push(text);
                distinct.len() - 1
            })
        };
        let zeros = |text: &str| meta.zero_negative && text.is_empty();
        let of_image: Vec<[Option<usize>; 2]> = (0..n)
            .map(|i| {
                let prompt = number(texts.prompts[i].as_str());
                [Some(prompt), (!zeros(texts.negative(i))).then(|| number(texts.negative(i)))]
            })
            .collect();
        let zero = distinct.len();
        let of_image = of_image.into_iter().map(|pair| pair.map(|i| i.unwrap_or(zero))).collect();

        let mut cut = Vec::new();
        let mut chunks: Vec<Vec<Chunks>> = Vec::new();
        for encoder in &meta.encoders {
            let missing = || Error::request("tokenizer", "a file that brings one along, or ready features", "none");
            let tokenizer = Tokenizer::new(encoder.tokenizer.ok_or_else(missing)?)?;
            let encode = |text: &&str| text::encode(&tokenizer, encoder.special, text, texts.style);
            let made = distinct.iter().map(encode).collect::<Result<Vec<_>>>()?;
            for part in made.iter().filter_map(|m| m.truncated.as_ref()) {
                if !cut.contains(part) {
                    cut.push(part.clone());
                }
            }
            chunks.push(made);
        }
        let per_text = chunks.iter().flatten().map(Chunks::len).max().unwrap_or(1);
        for (encoder, chunks) in meta.encoders.iter().zip(&mut chunks) {
            chunks.iter_mut().for_each(|c| c.pad_chunks(encoder.special, per_text));
        }
        let tokens = per_text * meta.encoders[0].tokens;
        Ok(TokenizedTexts { chunks, per_text, tokens, of_image, cut })
    }

    /// What the features will be, without them: enough to plan with.
    pub fn outline(&self) -> Embeddings {
        let texts = self.chunks.first().map_or(0, Vec::len);
        let prompts = vec![PromptFeatures::default(); texts + 1];
        Embeddings { prompts, tokens: self.tokens, of_image: self.of_image.clone() }
    }

    /// Runs the text encoders.
    ///
    /// # Errors
    /// Those of binding and running a program.
    pub fn encode<B: Backend, D: AsRef<[u8]>>(&self, session: &mut Session<'_, B, D>) -> Result<Embeddings> {
        let mut embeddings = self.outline();
        let model = session.model();
        for (encoder, chunks) in model.text.iter().flat_map(|text| &text.encoders).zip(&self.chunks) {
            let zeros = EncoderFeatures {
                features: vec![0.0; self.per_text * encoder.tokens * encoder.features],
                pooled: vec![0.0; encoder.pooled],
            };
            let features = run_encoder(session, encoder, chunks)?.into_iter().chain([zeros]);
            embeddings.prompts.iter_mut().zip(features).for_each(|(prompt, f)| prompt.encoders.push(f));
        }
        Ok(embeddings)
    }
}

/// Features of `texts`, each of equally many chunks.
fn run_encoder<B: Backend, D: AsRef<[u8]>>(
    session: &mut Session<'_, B, D>,
    encoder: &TextEncoder,
    texts: &[Chunks],
) -> Result<Vec<EncoderFeatures>> {
    let TextEncoder { tokens, features, pooled, .. } = *encoder;
    let cols = features + pooled;
    let mut ids: Vec<u32> = texts.iter().flat_map(|t| t.ids.iter().copied()).collect();
    let rows = ids.len() / tokens;
    let batch = rows.min(BATCH);
    ids.resize(rows.next_multiple_of(batch) * tokens, encoder.special.pad);
    let executor = session.executor(encoder.role, binding(batch), None)?;
    let mut result = vec![0.0; ids.len() * cols];
    for (ids, result) in ids.chunks_exact(batch * tokens).zip(result.chunks_exact_mut(batch * tokens * cols)) {
        executor.set_tokens(ids)?;
        executor.call(0)?;
        executor.read_output(result)?;
    }
    let mut rows = result.chunks_exact(cols);
    let encode = |text: &Chunks| {
        let first: Vec<&[f32]> = rows.by_ref().take(text.ids.len()).collect();
        let mut encoded: Vec<f32> = first.iter().flat_map(|row| &row[..features]).copied().collect();
        let chunks = encoded.chunks_exact_mut(tokens * features).zip(text.weights.chunks_exact(tokens));
        chunks.for_each(|(chunk, weights)| text::apply_weights(chunk, features, weights));
        EncoderFeatures { features: encoded, pooled: first[text.end[0]][features..].to_vec() }
    };
    Ok(texts.iter().map(encode).collect())
}

/// What a text encoder is bound to for so many chunks.
pub(super) fn binding(batch: usize) -> Binding {
    let dims = Dims { batch, conditions: 1, height: 1, width: 1, tokens: 1 };
    Binding { dims, calls: 1, table_bytes: 0, reserve: 0 }
}
