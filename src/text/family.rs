//! Kinds of tokenizers, and the rules that a `tokenizer.json` of each must have.
//!
//! The library that reads the file takes any rules from anywhere and panics on some, so it is given none but these.

use super::{base64, charsmap};
use serde_json::{Map, Value};

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
/// How T5 splits a text into words, each behind the sign for a space.
pub const SENTENCE_PIECE_PRE_TOKENIZER: &str = r#"{"type": "Sequence", "pretokenizers": [
    {"type": "WhitespaceSplit"}, {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true}
]}"#;
/// How BERT splits a text into words and signs of punctuation.
pub const BERT_PRE_TOKENIZER: &str = r#"{"type": "BertPreTokenizer"}"#;

/// A kind of tokenizer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// CLIP's: byte-level pair encoding (Sennrich et al. 2016) whose words end in `</w>`.
    Clip,
    /// T5's and mT5's: pieces of the greatest sum of scores (Kudo 2018), after the model's own normalization. Signs without
    /// a piece are their bytes if the vocabulary has a token for each, else unknown.
    SentencePiece,
    /// BERT's: the longest pieces first (WordPiece, Schuster & Nakajima 2012).
    Bert,
}

impl Family {
    const ALL: [Family; 3] = [Family::Clip, Family::SentencePiece, Family::Bert];

    /// Whose it is, for people.
    pub fn name(self) -> &'static str {
        match self {
            Family::Clip => "CLIP's",
            Family::SentencePiece => "T5's (SentencePiece)",
            Family::Bert => "BERT's",
        }
    }

    /// Its rules for splitting texts, as a `tokenizer.json` says them.
    pub fn pre_tokenizer(self) -> &'static str {
        match self {
            Family::Clip => CLIP_PRE_TOKENIZER,
            Family::SentencePiece => SENTENCE_PIECE_PRE_TOKENIZER,
            Family::Bert => BERT_PRE_TOKENIZER,
        }
    }

    /// The family of a `tokenizer.json`, all of whose rules are that family's.
    ///
    /// # Errors
    /// What was found instead.
    pub(super) fn of(fields: &Map<String, Value>) -> Result<Self, String> {
        let is = |field: &str, rules: &str| fields.get(field) == serde_json::from_str(rules).ok().as_ref();
        let Some(family) = Self::ALL.into_iter().find(|family| is("pre_tokenizer", family.pre_tokenizer())) else {
            return Err("another pre_tokenizer than CLIP's, T5's or BERT's, the only ones that are supported".into());
        };
        let normalizer = fields.get("normalizer").unwrap_or(&Value::Null);
        let normalizes = match family {
            Family::Clip => is("normalizer", CLIP_NORMALIZER),
            Family::SentencePiece => sentence_piece_normalizer(normalizer)?,
            Family::Bert => bert_normalizer(normalizer),
        };
        if !normalizes {
            return Err(format!("another normalizer than {}, the only one that is supported there", family.name()));
        }
        family.check_model(fields.get("model").unwrap_or(&Value::Null))?;
        Ok(family)
    }

    fn check_model(self, model: &Value) -> Result<(), String> {
        let text = |field: &str| model.get(field).and_then(Value::as_str);
        let kind = match self {
            Family::Clip => "BPE",
            Family::SentencePiece => "Unigram",
            Family::Bert => "WordPiece",
        };
        if text("type") != Some(kind) {
            return Err(format!("another model than {}, {kind}", self.name()));
        }
        match self {
            Family::Clip if model.get("dropout").is_some_and(|d| !d.is_null()) => {
                Err("one that drops merges at random".into())
            }
            Family::SentencePiece if model.get("unk_id").and_then(Value::as_u64).is_none() => {
                Err("no token for what is unknown".into())
            }
            Family::Bert if text("continuing_subword_prefix") != Some("##") => {
                Err("another mark of pieces within a word than ##".into())
            }
            Family::Bert if !unknown_is_a_token(model) => Err("no token for what is unknown".into()),
            Family::Clip | Family::SentencePiece | Family::Bert => Ok(()),
        }
    }
}

fn unknown_is_a_token(model: &Value) -> bool {
    let unknown = model.get("unk_token").and_then(Value::as_str);
    unknown.is_some_and(|unknown| model.get("vocab").is_some_and(|vocabulary| vocabulary.get(unknown).is_some()))
}

/// Whether these are a SentencePiece model's rules: its charsmap, or none.
fn sentence_piece_normalizer(rules: &Value) -> Result<bool, String> {
    let Some(fields) = rules.as_object() else { return Ok(rules.is_null()) };
    let text = |field: &str| fields.get(field).and_then(Value::as_str);
    let (Some("Precompiled"), Some(map), 2) = (text("type"), text("precompiled_charsmap"), fields.len()) else {
        return Ok(false);
    };
    let bytes = base64::decode(map).ok_or("a precompiled_charsmap that is no base64")?;
    charsmap::check(&bytes).map_err(|expected| format!("a precompiled_charsmap without {expected}"))?;
    Ok(true)
}

/// Whether these are BERT's rules, whatever it does with case, accents and Chinese characters.
fn bert_normalizer(rules: &Value) -> bool {
    let Some(fields) = rules.as_object() else { return false };
    let flag = |field: &str| fields.get(field).is_some_and(Value::is_boolean);
    fields.len() == 5
        && fields.get("type").is_some_and(|kind| kind == "BertNormalizer")
        && fields.get("clean_text") == Some(&Value::Bool(true))
        && flag("handle_chinese_chars")
        && flag("lowercase")
        && (flag("strip_accents") || fields.get("strip_accents") == Some(&Value::Null))
}
