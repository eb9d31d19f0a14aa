//! Chunks of tokens.

use super::{Piece, PromptStyle, Token, Tokenizer, parse};
use crate::error::{Error, Result};
use crate::format::meta::{TextEncoderMeta, TextLength};
use std::borrow::Cow;

/// A chunk that is full ends behind its last comma if no more than this many tokens follow it, so that phrases stay
/// whole: AUTOMATIC1111's default.
pub const COMMA_BACKTRACK: usize = 20;
/// Most tokens of a chunk; what encoders read lies far below.
const MAX_TOKENS: u32 = 1 << 15;

/// A prompt as a text encoder reads it: one or more texts of equal length. Each has a token that begins it, if the
/// encoder has one, as many of the prompt as there is room for, one that ends it, and padding. There are several only of
/// an encoder whose texts are [`TextLength::Padded`], and there is no padding if they have a length of their own.
#[derive(Clone, Debug, PartialEq)]
pub struct Chunks {
    /// Tokens `(chunks, tokens)`.
    pub ids: Vec<u32>,
    /// Weight of each token, for [`apply_weights`](super::apply_weights); 1 for those that are not of the prompt.
    pub weights: Vec<f32>,
    /// How many tokens of each chunk are no padding.
    pub lengths: Vec<usize>,
    /// Where in each chunk the first end token is. The vector of a whole prompt is taken there, from the first chunk.
    pub end: Vec<usize>,
    /// What was cut off, if anything was: of plain prompts, and of encoders that read one text.
    pub truncated: Option<String>,
}

/// Makes chunks of a prompt.
///
/// # Errors
/// [`Error::Request`] if a weight is too large for a number, or the encoder has no room for a token.
pub fn encode(tokenizer: &Tokenizer, encoder: &TextEncoderMeta, prompt: &str, style: PromptStyle) -> Result<Chunks> {
    let least = encoder.marks() as u32 + 1;
    if !(least..=MAX_TOKENS).contains(&encoder.tokens) {
        let expected = format!("{least} to {MAX_TOKENS}");
        return Err(Error::request("tokens of a text encoder", expected, encoder.tokens));
    }
    match (style, encoder.length) {
        (PromptStyle::Plain, _) => one(tokenizer, encoder, [(prompt, 1.0)].into_iter()),
        (PromptStyle::Weighted, TextLength::Padded) => several(tokenizer, encoder, prompt),
        (PromptStyle::Weighted, TextLength::Masked | TextLength::Own) => {
            let pieces = parse(prompt);
            // `BREAK` parts words, and that is all.
            let texts = pieces.iter().filter_map(|piece| match piece {
                Piece::Text { text, weight } => Some((text.as_str(), *weight)),
                Piece::Break => None,
            });
            one(tokenizer, encoder, texts)
        }
    }
}

/// One text of pieces with weights; what there is no room for is cut off.
fn one<'p>(
    tokenizer: &Tokenizer,
    encoder: &TextEncoderMeta,
    pieces: impl Iterator<Item = (&'p str, f32)>,
) -> Result<Chunks> {
    let room = room(encoder);
    let (mut ids, mut weights): (Vec<u32>, Vec<f32>) = (Vec::new(), Vec::new());
    let mut cut = String::new();
    for (text, weight) in pieces {
        let (text, tokens) = tokens(tokenizer, encoder, text, weight)?;
        let (kept, rest) = tokens.split_at(tokens.len().min(room - ids.len()));
        ids.extend(kept.iter().map(|token| token.id));
        weights.extend(kept.iter().map(|_| weight));
        if let Some(&Token { start, .. }) = rest.first() {
            // A sign may be several tokens, and of a piece without a token kept all is cut off.
            let start = (0..=start).rev().find(|&at| text.is_char_boundary(at));
            cut.push_str(&text[start.filter(|_| !kept.is_empty()).unwrap_or(0)..]);
        }
    }
    let mut chunks = Chunks::none();
    chunks.push(encoder, &ids, &weights);
    chunks.truncated = Some(cut).filter(|cut| !cut.is_empty());
    Ok(chunks)
}

/// As many texts as it takes.
fn several(tokenizer: &Tokenizer, encoder: &TextEncoderMeta, prompt: &str) -> Result<Chunks> {
    let room = room(encoder);
    let mut chunks = Chunks::none();
    let (mut ids, mut weights): (Vec<u32>, Vec<f32>) = (Vec::new(), Vec::new());
    // Tokens of the open chunk up to and with its last comma.
    let mut phrases = None;
    for piece in parse(prompt) {
        let Piece::Text { text, weight } = piece else {
            chunks.push(encoder, &ids, &weights);
            ids.clear();
            weights.clear();
            phrases = None;
            continue;
        };
        for Token { id, .. } in tokens(tokenizer, encoder, &text, weight)?.1 {
            let comma = tokenizer.comma() == Some(id);
            if ids.len() == room {
                // A comma belongs to the phrase before it, so there is nothing to keep together when one comes next.
                let back = phrases.filter(|&n| !comma && room - n < COMMA_BACKTRACK);
                let at = back.unwrap_or(room);
                chunks.push(encoder, &ids[..at], &weights[..at]);
                ids.drain(..at);
                weights.drain(..at);
                phrases = None;
            }
            ids.push(id);
            weights.push(weight);
            if comma {
                phrases = Some(ids.len());
            }
        }
    }
    if !ids.is_empty() || chunks.is_empty() {
        chunks.push(encoder, &ids, &weights);
    }
    Ok(chunks)
}

/// The tokens of a piece of a prompt, and the text that they begin in.
fn tokens<'p>(
    tokenizer: &Tokenizer,
    encoder: &TextEncoderMeta,
    text: &'p str,
    weight: f32,
) -> Result<(Cow<'p, str>, Vec<Token>)> {
    if !weight.is_finite() {
        return Err(Error::request("weight in the prompt", format!("at most {:e}", f32::MAX), weight));
    }
    let text = if encoder.lower_case { Cow::Owned(text.to_lowercase()) } else { Cow::Borrowed(text) };
    let tokens = tokenizer.tokens(&text)?;
    Ok((text, tokens))
}

/// Tokens of a prompt that fit into a chunk.
fn room(encoder: &TextEncoderMeta) -> usize {
    encoder.tokens as usize - encoder.marks()
}

impl Chunks {
    fn none() -> Self {
        Chunks { ids: Vec::new(), weights: Vec::new(), lengths: Vec::new(), end: Vec::new(), truncated: None }
    }

    /// Number of chunks.
    pub fn len(&self) -> usize {
        self.end.len()
    }

    /// Whether there are none; never true of an encoded prompt.
    pub fn is_empty(&self) -> bool {
        self.end.is_empty()
    }

    /// Adds empty chunks up to a number of `chunks`. What is wanted and what is not must have equally many, and so must
    /// the prompts of one model's encoders.
    pub fn pad_chunks(&mut self, encoder: &TextEncoderMeta, chunks: usize) {
        while self.len() < chunks {
            self.push(encoder, &[], &[]);
        }
    }

    /// Fills up a single text to so many `tokens`, if it has fewer.
    pub fn fill(&mut self, encoder: &TextEncoderMeta, tokens: usize) {
        let tokens = tokens.max(self.ids.len());
        self.ids.resize(tokens, encoder.pad);
        self.weights.resize(tokens, 1.0);
    }

    fn push(&mut self, encoder: &TextEncoderMeta, ids: &[u32], weights: &[f32]) {
        let from = self.ids.len();
        self.ids.extend(encoder.begin);
        self.weights.extend(encoder.begin.map(|_| 1.0));
        self.ids.extend_from_slice(ids);
        self.weights.extend_from_slice(weights);
        self.ids.push(encoder.end);
        let length = self.ids.len() - from;
        self.lengths.push(length);
        // A prompt may hold end tokens of its own.
        let end = self.ids[from..].iter().position(|&id| id == encoder.end);
        self.end.push(end.unwrap_or(length - 1));
        let tokens = match encoder.length {
            TextLength::Padded | TextLength::Masked => encoder.tokens as usize,
            TextLength::Own => length,
        };
        self.ids.resize(from + tokens, encoder.pad);
        self.weights.resize(from + tokens, 1.0);
    }
}
