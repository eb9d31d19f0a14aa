//! Tokens of a text.

use super::Family;
use crate::error::{Error, Result};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// A token and where it comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    /// Its number in the vocabulary.
    pub id: u32,
    /// Byte of the text at which it begins.
    pub start: usize,
}

/// What makes tokens of texts, read from a `tokenizer.json` of the `tokenizers` library.
///
/// That of CLIP normalizes to NFC, collapses white space, turns to lower case, splits into words, digits and runs of
/// signs, and merges the bytes of each by rank (byte-level BPE, Sennrich et al. 2016), the last one marked `</w>`.
/// Since it starts from bytes, no text has an unknown token. For the others see [`Family`].
pub struct Tokenizer {
    family: Family,
    inner: tokenizers::Tokenizer,
    comma: Option<u32>,
    /// The further vectors of an embedding that has several, by the token of its first.
    vectors: BTreeMap<u32, Vec<u32>>,
}

impl Tokenizer {
    /// Reads the contents of a `tokenizer.json`. Its rules for padding, cutting off, beginning and end are not used:
    /// [`encode`](super::encode) has its own. Nor is the way back from tokens to text.
    ///
    /// # Errors
    /// [`Error::Request`] if it is not one.
    pub fn new(json: &[u8]) -> Result<Self> {
        let wrong = |e: &dyn std::fmt::Display| Error::request("tokenizer", "the contents of a tokenizer.json", e);
        let mut value: Value = serde_json::from_slice(json).map_err(|e| wrong(&e))?;
        let Some(fields) = value.as_object_mut() else { return Err(wrong(&"no JSON object")) };
        // Nothing here decodes, and beginning and end are put elsewhere.
        for unused in ["decoder", "post_processor"] {
            fields.insert(unused.into(), Value::Null);
        }
        let family = Family::of(fields).map_err(|e| wrong(&e))?;
        if family == Family::SentencePiece {
            exact_scores(fields);
        }
        let mut inner: tokenizers::Tokenizer = serde_json::from_value(value).map_err(|e| wrong(&e))?;
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| Error::request("tokenizer", "one that can leave texts whole", e))?;
        let vectors = further_vectors(&inner);
        let mut tokenizer = Tokenizer { family, inner, comma: None, vectors };
        if let [token] = tokenizer.tokens(",")?[..] {
            tokenizer.comma = Some(token.id);
        }
        Ok(tokenizer)
    }

    /// The tokens of `text`, without beginning and end.
    ///
    /// An embedding of several vectors is saved as tokens `<name>`, `<name>_1`, `<name>_2`..; in a text its name stands for
    /// all of them, as in diffusers' pipelines.
    ///
    /// # Errors
    /// [`Error::Request`] if the tokenizer cannot read the text, which those of sound models always can.
    pub fn tokens(&self, text: &str) -> Result<Vec<Token>> {
        let encoding = self
            .inner
            .encode(text, false)
            .map_err(|e| Error::request("prompt", "a text that the model's tokenizer can read", e))?;
        let tokens = encoding.get_ids().iter().zip(encoding.get_offsets());
        let all = tokens.flat_map(|(&id, &(start, _))| {
            let further = self.vectors.get(&id).into_iter().flatten().copied();
            std::iter::once(id).chain(further).map(move |id| Token { id, start })
        });
        Ok(all.collect())
    }

    /// What kind of tokenizer it is.
    pub fn family(&self) -> Family {
        self.family
    }

    /// One more than the largest token: rows that an encoder's table must have.
    pub fn vocabulary(&self) -> usize {
        self.inner.get_vocab(true).into_values().max().map_or(0, |largest| largest as usize + 1)
    }

    /// The token of a comma, if it is a single one.
    pub fn comma(&self) -> Option<u32> {
        self.comma
    }
}

/// Makes the scores of pieces the 32-bit numbers that they are in every model: what reads decimals may miss them by the last
/// of 64 bits, and sums that are equal would then not be.
fn exact_scores(fields: &mut Map<String, Value>) {
    let pieces = fields.get_mut("model").and_then(|model| model.get_mut("vocab")).and_then(Value::as_array_mut);
    for score in pieces.into_iter().flatten().filter_map(|piece| piece.get_mut(1)) {
        if let Some(value) = score.as_f64() {
            *score = f64::from(value as f32).into();
        }
    }
}

/// The tokens that were added as `name_1`, `name_2`.. without a gap, by the added token called `name`.
fn further_vectors(tokenizer: &tokenizers::Tokenizer) -> BTreeMap<u32, Vec<u32>> {
    let added = tokenizer.get_added_tokens_decoder();
    let ids: BTreeMap<&str, u32> = added.iter().map(|(&id, token)| (token.content.as_str(), id)).collect();
    let further = |name: &str| -> Vec<u32> { (1..).map_while(|i| ids.get(&*format!("{name}_{i}")).copied()).collect() };
    ids.iter().map(|(&name, &id)| (id, further(name))).filter(|(_, further)| !further.is_empty()).collect()
}
