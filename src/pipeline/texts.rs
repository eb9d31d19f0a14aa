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
    /// One per image, one for all images, or none. An absent text and an empty one are two things: models such as
    /// SDXL read zeros where there is none.
    pub negatives: Vec<Option<String>>,
    /// Whether brackets and `BREAK` mean something.
    pub style: PromptStyle,
}

impl Texts {
    /// The negative text of image `i`.
    pub fn negative(&self, i: usize) -> Option<&str> {
        let index = if self.negatives.len() == 1 { 0 } else { i };
        self.negatives.get(index)?.as_deref()
    }
}

/// Tokens of the distinct texts of a request.
///
/// The two texts of an image are filled up with empty chunks to the longer one's number of them, because samples of one
/// call have equally many; those of other images are not.
#[derive(Clone, Debug)]
pub(super) struct TokenizedTexts {
    /// Distinct prompts: which text, none for zeros, and the number of chunks it is filled up to.
    prompts: Vec<(Option<usize>, usize)>,
    /// Per text encoder, the chunks of each prompt that has a text.
    chunks: Vec<Vec<Chunks>>,
    /// Tokens of a chunk.
    chunk: usize,
    /// Per image: index of its prompt and of its negative prompt.
    of_image: Vec<[usize; 2]>,
    /// What of the texts does not fit the encoders and was cut off.
    pub cut: Vec<String>,
}

/// The index of `item`, which is added if it is not there.
fn number<T: PartialEq>(items: &mut Vec<T>, item: T) -> usize {
    items.iter().position(|known| *known == item).unwrap_or_else(|| {
        items.push(item);
        items.len() - 1
    })
}

impl TokenizedTexts {
    /// Makes tokens of `texts`, of which negative ones count only if the request is `guided`.
    ///
    /// # Errors
    /// [`Error::Request`] if the model does not read texts, or there are as many negative texts as no rule explains.
    pub fn new<D: AsRef<[u8]>>(model: &Model<'_, D>, texts: &Texts, guided: bool) -> Result<Self> {
        let Some(meta) = &model.text else {
            let expected = "a model with a text encoder, or --inputs with prompt_embeds";
            return Err(Error::request("prompt", expected, "none"));
        };
        let (n, negatives) = (texts.prompts.len(), texts.negatives.len());
        if negatives > 1 && negatives != n {
            return Err(Error::request("negative prompts", format!("none, 1, or {n}: one per image"), negatives));
        }
        // Per image, its text and its negative text; no text where the model reads zeros.
        let mut distinct: Vec<&str> = Vec::new();
        let pairs: Vec<[Option<usize>; 2]> = (0..n)
            .map(|i| {
                let prompt = number(&mut distinct, texts.prompts[i].as_str());
                let negative = texts.negative(i).or((!meta.zero_negative).then_some(""));
                [Some(prompt), negative.map(|text| number(&mut distinct, text))]
            })
            .collect();
        let encoded = meta.encoders.iter().map(|e| encode(e, &distinct, texts.style)).collect::<Result<Vec<_>>>()?;
        let mut cut: Vec<String> = Vec::new();
        for part in encoded.iter().flatten().filter_map(|text| text.truncated.clone()) {
            number(&mut cut, part);
        }

        let length = |text: Option<usize>| {
            text.and_then(|text| encoded.iter().map(|texts| texts[text].len()).max()).unwrap_or(1)
        };
        let mut prompts = Vec::new();
        let mut of_image = Vec::with_capacity(n);
        for pair in pairs {
            let longer = length(pair[0]).max(length(pair[1]));
            of_image.push(pair.map(|text| number(&mut prompts, (text, if guided { longer } else { length(text) }))));
        }
        let filled = |(encoder, texts): (&TextEncoder, Vec<Chunks>)| {
            let with_text = prompts.iter().filter_map(|&(text, chunks)| Some((text?, chunks)));
            let fill = |(index, chunks): (usize, usize)| {
                let mut text = texts[index].clone();
                text.pad_chunks(encoder.special, chunks);
                text
            };
            with_text.map(fill).collect()
        };
        let chunks = meta.encoders.iter().zip(encoded).map(filled).collect();
        Ok(TokenizedTexts { prompts, chunks, chunk: meta.encoders[0].tokens, of_image, cut })
    }

    /// What the features will be, without them: enough to plan with.
    pub fn outline(&self) -> Embeddings {
        let prompt = |&(_, chunks): &_| PromptFeatures { tokens: chunks * self.chunk, encoders: Vec::new() };
        Embeddings { prompts: self.prompts.iter().map(prompt).collect(), of_image: self.of_image.clone() }
    }

    /// Runs the text encoders.
    ///
    /// # Errors
    /// Those of binding and running a program.
    pub fn encode<B: Backend, D: AsRef<[u8]>>(&self, session: &mut Session<'_, B, D>) -> Result<Embeddings> {
        let mut embeddings = self.outline();
        let model = session.model();
        for (encoder, chunks) in model.text.iter().flat_map(|text| &text.encoders).zip(&self.chunks) {
            let mut texts = run_encoder(session, encoder, chunks)?.into_iter();
            for (&(text, chunks), prompt) in self.prompts.iter().zip(&mut embeddings.prompts) {
                let zeros = || EncoderFeatures {
                    features: vec![0.0; chunks * encoder.tokens * encoder.features],
                    pooled: vec![0.0; encoder.pooled],
                };
                prompt.encoders.push(text.and_then(|_| texts.next()).unwrap_or_else(zeros));
            }
        }
        Ok(embeddings)
    }
}

/// The chunks of each of `texts`, as `encoder` reads them.
fn encode(encoder: &TextEncoder, texts: &[&str], style: PromptStyle) -> Result<Vec<Chunks>> {
    let missing = || Error::request("tokenizer", "a file that brings one along, or ready features", "none");
    let tokenizer = Tokenizer::new(encoder.tokenizer.ok_or_else(missing)?)?;
    texts.iter().map(|text| text::encode(&tokenizer, encoder.special, text, style)).collect()
}

/// Features of `texts`.
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
