//! Texts to features: tokens first, which costs nothing and tells the sizes of everything, then the encoders.

use super::prompts::{Embeddings, EncoderFeatures, PromptFeatures, Prompts};
use super::session::Session;
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::exec::{Executor, PromptInputs};
use crate::format::meta::TextLength;
use crate::model::{Model, TextEncoder};
use crate::plan::Binding;
use crate::program::{Dims, InputKind, Role};
use crate::text::{self, Chunks, PromptStyle, Tokenizer};

/// Chunks of text per pass through an encoder; of those that have a length of their own, each has its pass.
const BATCH: usize = 4;

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
/// Where encoders read chunks, the two texts of an image are filled up with empty ones to the longer one's number of them,
/// because samples of one call have equally many; those of other images are not.
#[derive(Clone, Debug)]
pub(super) struct TokenizedTexts {
    /// Distinct prompts: which text, none for zeros, and the number of chunks it is filled up to; of models whose negative prompts
    /// are as long as prompts, the number of tokens that it is filled up or cut off to.
    prompts: Vec<(Option<usize>, usize)>,
    /// Per text encoder, the chunks of each prompt that has a text.
    chunks: Vec<Vec<Chunks>>,
    /// Per text encoder, rows of features of a chunk that stands for no text.
    chunk: Vec<usize>,
    /// Per image: index of its prompt and of its negative prompt.
    of_image: Vec<[usize; 2]>,
    /// Whether negative prompts are as long as prompts.
    as_long: bool,
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
        let encoders = meta.encoders()?;
        // Per image, its text and its negative text; no text where the model reads zeros.
        let mut distinct: Vec<&str> = Vec::new();
        let pairs: Vec<[Option<usize>; 2]> = (0..n)
            .map(|i| {
                let prompt = number(&mut distinct, texts.prompts[i].as_str());
                let negative = texts.negative(i).or((!meta.zero_negative && meta.null_caption.is_none()).then_some(""));
                [Some(prompt), negative.map(|text| number(&mut distinct, text))]
            })
            .collect();
        let encoded = encoders.iter().map(|e| encode(e, &distinct, texts.style)).collect::<Result<Vec<_>>>()?;
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
            let chunks = |text: Option<usize>| match (text, pair[0]) {
                // As many rows of the learned caption as the prompt has tokens.
                (None, Some(prompt)) if meta.null_caption.is_some() => encoded[0][prompt].ids.len(),
                (_, Some(prompt)) if meta.negative_as_long => encoded[0][prompt].ids.len(),
                _ if guided => longer,
                _ => length(text),
            };
            of_image.push(pair.map(|text| number(&mut prompts, (text, chunks(text)))));
        }
        let filled = |(encoder, texts): (&TextEncoder, Vec<Chunks>)| {
            let with_text = prompts.iter().filter_map(|&(text, chunks)| Some((text?, chunks)));
            let fill = |(index, chunks): (usize, usize)| {
                let mut text = texts[index].clone();
                match encoder.length {
                    TextLength::Padded => text.pad_chunks(encoder.special, chunks),
                    TextLength::Own if meta.negative_as_long => text.fill(encoder.special, chunks),
                    TextLength::Own | TextLength::Masked => {}
                }
                text
            };
            with_text.map(fill).collect()
        };
        let chunks = encoders.iter().zip(encoded).map(filled).collect();
        let rows = |encoder: &TextEncoder| if meta.null_caption.is_some() { 1 } else { encoder.tokens };
        let chunk = encoders.iter().map(rows).collect();
        Ok(TokenizedTexts { prompts, chunks, chunk, of_image, as_long: meta.negative_as_long, cut })
    }

    /// What the features will be, without them: enough to plan with.
    pub fn outline(&self) -> Embeddings {
        let mut prompts = vec![PromptFeatures::default(); self.prompts.len()];
        for (texts, chunk) in self.chunks.iter().zip(&self.chunk) {
            let mut texts = texts.iter().map(outline);
            for (&(text, chunks), prompt) in self.prompts.iter().zip(&mut prompts) {
                let zeros = || EncoderFeatures::outline(chunks * chunk, chunks * chunk);
                let told = text.and_then(|_| texts.next()).unwrap_or_else(zeros);
                let most = if self.as_long { chunks } else { told.tokens };
                prompt.encoders.push(EncoderFeatures::outline(told.tokens.min(most), told.length.min(most)));
            }
        }
        Embeddings { prompts, of_image: self.of_image.clone() }
    }

    /// Runs the text encoders.
    ///
    /// # Errors
    /// Those of binding and running a program.
    pub fn encode<B: Backend, D: AsRef<[u8]>>(&self, session: &mut Session<'_, B, D>) -> Result<Embeddings> {
        let mut embeddings = self.outline();
        let model = session.model();
        let encoders = model.text.iter().flat_map(|text| &text.encoders).zip(&self.chunks).enumerate();
        for (index, (encoder, chunks)) in encoders {
            let mut texts = run_encoder(session, encoder, chunks)?.into_iter();
            for (&(text, most), prompt) in self.prompts.iter().zip(&mut embeddings.prompts) {
                let place = &mut prompt.encoders[index];
                match text.and_then(|_| texts.next()) {
                    Some(features) if self.as_long => *place = features.first(most),
                    Some(features) => *place = features,
                    None => {
                        let null = model.text.as_ref().and_then(|text| text.null_features(place.tokens));
                        place.features = null.unwrap_or_else(|| vec![0.0; place.tokens * encoder.features]);
                        place.pooled = vec![0.0; encoder.pooled];
                    }
                }
            }
        }
        Ok(embeddings)
    }
}

/// What the features of a text will be, without them. Of padding that is not masked all rows count.
fn outline(text: &Chunks) -> EncoderFeatures {
    let tokens = text.ids.len();
    EncoderFeatures::outline(tokens, tokens)
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
    if texts.is_empty() {
        return Ok(Vec::new());
    }
    let cols = encoder.features + encoder.pooled;
    let mut result = Vec::new();
    if encoder.length == TextLength::Own {
        for text in texts {
            let executor = session.executor(encoder.role, binding(1, text.ids.len()), None)?;
            let from = result.len();
            result.resize(from + text.ids.len() * cols, 0.0);
            let told = executor.program().input(InputKind::Lengths).is_some();
            let lengths = [text.lengths[0] as u32];
            pass(executor, &text.ids, told.then_some(&lengths), &mut result[from..])?;
            // The next text is of another length, as a rule, and the loop wants the memory; the weights are kept while they may.
            session.release(encoder.role);
        }
    } else {
        let tokens = encoder.tokens;
        let mut ids: Vec<u32> = texts.iter().flat_map(|t| t.ids.iter().copied()).collect();
        let mut lengths: Vec<u32> = texts.iter().flat_map(|t| t.lengths.iter().map(|&n| n as u32)).collect();
        let rows = lengths.len();
        let batch = rows.min(BATCH);
        ids.resize(rows.next_multiple_of(batch) * tokens, encoder.special.pad);
        lengths.resize(rows.next_multiple_of(batch), tokens as u32);
        result.resize(ids.len() * cols, 0.0);
        let executor = session.executor(encoder.role, binding(batch, tokens), None)?;
        let passes = ids.chunks_exact(batch * tokens).zip(lengths.chunks_exact(batch));
        for ((ids, lengths), result) in passes.zip(result.chunks_exact_mut(batch * tokens * cols)) {
            let lengths = (encoder.length == TextLength::Masked).then_some(lengths);
            pass(executor, ids, lengths, result)?;
        }
    }
    let mut rows = result.chunks_exact(cols);
    let encode = |text: &Chunks| {
        let first: Vec<&[f32]> = rows.by_ref().take(text.ids.len()).collect();
        features(encoder, text, &first)
    };
    Ok(texts.iter().map(encode).collect())
}

/// One pass of texts through an encoder.
fn pass<B: Backend>(
    executor: &mut Executor<'_, B>,
    ids: &[u32],
    lengths: Option<&[u32]>,
    to: &mut [f32],
) -> Result<()> {
    if lengths.is_some() {
        executor.set_prompt(&PromptInputs { lengths, ..Default::default() })?;
    }
    executor.set_tokens(ids)?;
    executor.call(0)?;
    executor.read_output(to)
}

/// The features of `text`, of whose tokens the encoder made `rows`.
fn features(encoder: &TextEncoder, text: &Chunks, rows: &[&[f32]]) -> EncoderFeatures {
    let width = encoder.features;
    let chunk = text.ids.len() / text.len();
    let mut encoded: Vec<f32> = rows.iter().flat_map(|row| &row[..width]).copied().collect();
    let chunks = encoded.chunks_exact_mut(chunk * width).zip(text.weights.chunks_exact(chunk));
    // Padding that is masked counts for nothing, also in the mean that weights keep.
    let counting = match encoder.length {
        TextLength::Masked | TextLength::Own => text.lengths[0],
        TextLength::Padded => chunk,
    };
    chunks.for_each(|(features, weights)| {
        text::apply_weights(&mut features[..counting * width], width, &weights[..counting]);
    });
    let length = if encoder.length == TextLength::Masked { counting } else { rows.len() };
    EncoderFeatures { tokens: rows.len(), length, features: encoded, pooled: rows[text.end[0]][width..].to_vec() }
}

/// The text encoders that a request with `prompts` runs, and what they are bound to at most: for memory plans.
pub(super) fn bindings<D>(model: &Model<'_, D>, prompts: &Prompts) -> Vec<(Role, Binding)> {
    let encoders = model.text.iter().flat_map(|text| &text.encoders).enumerate();
    // A negative text that is longer than its prompt is read as a whole and then cut off.
    let any_length = model.text.as_ref().is_some_and(|text| text.negative_as_long);
    let bound = encoders.filter(|(_, encoder)| encoder.encodes).map(|(index, encoder)| {
        let longest = || match prompts {
            _ if any_length => encoder.tokens,
            Prompts::Embeddings(embeddings) => {
                let tokens = embeddings.prompts.iter().filter_map(|prompt| Some(prompt.encoders.get(index)?.tokens));
                tokens.max().unwrap_or(encoder.tokens).min(encoder.tokens)
            }
            _ => encoder.tokens,
        };
        let binding = match encoder.length {
            TextLength::Own => binding(1, longest()),
            TextLength::Padded | TextLength::Masked => binding(BATCH, encoder.tokens),
        };
        (encoder.role, binding)
    });
    bound.collect()
}

/// What a text encoder is bound to for so many texts of so many tokens.
fn binding(batch: usize, tokens: usize) -> Binding {
    let dims = Dims { batch, tokens, ..Dims::ONE };
    Binding { dims, calls: 1, table_bytes: 0, reserve: 0 }
}
