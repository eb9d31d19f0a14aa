//! Tokens of a text.

use crate::error::{Error, Result};
use serde_json::Value;

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
        let mut tokenizer = Tokenizer { inner, comma: None };
        if let [token] = tokenizer.tokens(",")?[..] {
            tokenizer.comma = Some(token.id);
        }
        Ok(tokenizer)
    }

    /// The tokens of `text`, without beginning and end.
    ///
    /// # Errors
    /// [`Error::Request`] if the tokenizer cannot read the text, which CLIP's always can.
    pub fn tokens(&self, text: &str) -> Result<Vec<Token>> {
        let encoding = self
            .inner
            .encode(text, false)
            .map_err(|e| Error::request("prompt", "a text that the model's tokenizer can read", e))?;
        let tokens = encoding.get_ids().iter().zip(encoding.get_offsets());
        Ok(tokens.map(|(&id, &(start, _))| Token { id, start }).collect())
    }

    /// The token of a comma, if it is a single one.
    pub fn comma(&self) -> Option<u32> {
        self.comma
    }
}
