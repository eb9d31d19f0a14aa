//! Tokens of a text.

use crate::error::{Error, Result};
use serde_json::Value;
use std::collections::BTreeMap;

/// How CLIP normalizes a text, as a `tokenizer.json` says it.
pub const CLIP_NORMALIZER: &str = r#"{"type": "Sequence", "normalizers": [
    {"type": "NFC"}, {"type": "Replace", "pattern": {"Regex": "\\s+"}, "content": " "}, {"type": "Lowercase"}
]}"#;
/// How CLIP splits a text into words and these into bytes.
pub const CLIP_PRE_TOKENIZER: &str = r#"{"type": "Sequence", "pretokenizers": [
    {"type": "Split", "behavior": "Removed", "invert": true, "pattern": {"Regex":
        "<\\|startoftext\\|>|<\\|endoftext\\|>|'s|'t|'re|'ve|'m|'ll|'d|[\\p{L}]+|[\\p{N}]|[^\\s\\p{L}\\p{N}]+"}},
    {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}
]}"#;

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
/// Since it starts from bytes, no text has an unknown token.
pub struct Tokenizer {
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
        // The library takes any rules from anywhere and panics on some, so the only ones it gets are those that are
        // known. Nothing here decodes, and beginning and end are put elsewhere.
        for unused in ["decoder", "post_processor"] {
            fields.insert(unused.into(), Value::Null);
        }
        for (field, rules) in [("normalizer", CLIP_NORMALIZER), ("pre_tokenizer", CLIP_PRE_TOKENIZER)] {
            let known: Value = serde_json::from_str(rules).map_err(|e| wrong(&e))?;
            if fields.get(field) != Some(&known) {
                return Err(wrong(&format!("another {field} than CLIP's, the only one that is supported")));
            }
        }
        if fields.get("model").and_then(|m| m.get("dropout")).is_some_and(|d| !d.is_null()) {
            return Err(wrong(&"one that drops merges at random"));
        }
        let mut inner: tokenizers::Tokenizer = serde_json::from_value(value).map_err(|e| wrong(&e))?;
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| Error::request("tokenizer", "one that can leave texts whole", e))?;
        let vectors = further_vectors(&inner);
        let mut tokenizer = Tokenizer { inner, comma: None, vectors };
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
    /// [`Error::Request`] if the tokenizer cannot read the text, which CLIP's always can.
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

    /// The token of a comma, if it is a single one.
    pub fn comma(&self) -> Option<u32> {
        self.comma
    }
}

/// The tokens that were added as `name_1`, `name_2`.. without a gap, by the added token called `name`.
fn further_vectors(tokenizer: &tokenizers::Tokenizer) -> BTreeMap<u32, Vec<u32>> {
    let added = tokenizer.get_added_tokens_decoder();
    let ids: BTreeMap<&str, u32> = added.iter().map(|(&id, token)| (token.content.as_str(), id)).collect();
    let further = |name: &str| -> Vec<u32> { (1..).map_while(|i| ids.get(&*format!("{name}_{i}")).copied()).collect() };
    ids.iter().map(|(&name, &id)| (id, further(name))).filter(|(_, further)| !further.is_empty()).collect()
}
