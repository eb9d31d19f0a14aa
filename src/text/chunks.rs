//! Chunks of tokens.

use super::{Piece, PromptStyle, Token, Tokenizer, parse};
use crate::error::{Error, Result};
use crate::format::meta::TextEncoderMeta;

/// A chunk that is full ends behind its last comma if no more than this many tokens follow it, so that phrases stay
/// whole: AUTOMATIC1111's default.
pub const COMMA_BACKTRACK: usize = 20;
/// Most tokens of a chunk; what encoders read lies far below.
const MAX_TOKENS: u32 = 1 << 15;

/// A prompt as a text encoder reads it: one or more texts of equal length. Each has a token that begins it, up to
/// `tokens - 2` of the prompt, one that ends it, and padding.
#[derive(Clone, Debug, PartialEq)]
pub struct Chunks {
    /// Tokens `(chunks, tokens)`.
    pub ids: Vec<u32>,
    /// Weight of each token, for [`apply_weights`](super::apply_weights); 1 for those that are not of the prompt.
    pub weights: Vec<f32>,
    /// Where in each chunk the first end token is. The vector of a whole prompt is taken there, from the first chunk.
    pub end: Vec<usize>,
    /// What was cut off, if anything was; only plain prompts are.
    pub truncated: Option<String>,
}

/// Makes chunks of a prompt.
///
/// # Errors
/// [`Error::Request`] if a weight is too large for a number, or the encoder has no room for a token.
pub fn encode(tokenizer: &Tokenizer, encoder: &TextEncoderMeta, prompt: &str, style: PromptStyle) -> Result<Chunks> {
    if !(3..=MAX_TOKENS).contains(&encoder.tokens) {
        return Err(Error::request("tokens of a text encoder", format!("3 to {MAX_TOKENS}"), encoder.tokens));
    }
    match style {
        PromptStyle::Plain => plain(tokenizer, encoder, prompt),
        PromptStyle::Weighted => weighted(tokenizer, encoder, prompt),
    }
}

fn plain(tokenizer: &Tokenizer, encoder: &TextEncoderMeta, prompt: &str) -> Result<Chunks> {
    let tokens = tokenizer.tokens(prompt)?;
    let (kept, cut) = tokens.split_at(tokens.len().min(room(encoder)));
    let mut chunks = Chunks::none();
    let ids: Vec<u32> = kept.iter().map(|t| t.id).collect();
    chunks.push(encoder, &ids, &vec![1.0; ids.len()]);
    chunks.truncated = cut.first().map(|&Token { start, .. }| {
        let start = (0..=start).rev().find(|&at| prompt.is_char_boundary(at));
        prompt[start.unwrap_or(0)..].to_owned()
    });
    Ok(chunks)
}

fn weighted(tokenizer: &Tokenizer, encoder: &TextEncoderMeta, prompt: &str) -> Result<Chunks> {
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
        if !weight.is_finite() {
            return Err(Error::request("weight in the prompt", format!("at most {:e}", f32::MAX), weight));
        }
        for Token { id, .. } in tokenizer.tokens(&text)? {
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

/// Tokens of a prompt that fit into a chunk.
fn room(encoder: &TextEncoderMeta) -> usize {
    encoder.tokens as usize - 2
}

impl Chunks {
    fn none() -> Self {
        Chunks { ids: Vec::new(), weights: Vec::new(), end: Vec::new(), truncated: None }
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

    fn push(&mut self, encoder: &TextEncoderMeta, ids: &[u32], weights: &[f32]) {
        let (from, tokens) = (self.ids.len(), encoder.tokens as usize);
        self.ids.push(encoder.begin);
        self.ids.extend_from_slice(ids);
        self.ids.push(encoder.end);
        // A prompt may hold end tokens of its own.
        let end = self.ids[from..].iter().position(|&id| id == encoder.end);
        self.end.push(end.unwrap_or(ids.len() + 1));
        self.ids.resize(from + tokens, encoder.pad);
        self.weights.push(1.0);
        self.weights.extend_from_slice(weights);
        self.weights.resize(from + tokens, 1.0);
    }
}
