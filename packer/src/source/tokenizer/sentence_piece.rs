//! T5's and mT5's family: a SentencePiece unigram model, from `spiece.model` or the `tokenizer.json` made of one.
//!
//! The rules are those of transformers' `T5Tokenizer`, but for one: where the vocabulary has a token for each byte, as mT5's
//! has, signs without a piece become their bytes, as SentencePiece and older classes have it, and not the unknown token.

use super::spiece::{self, PieceKind};
use super::{Added, Folder, JsonAdded, Marks, Names, TokenizerFile, check, size, tokenizer_json};
use aquatint::error::{Error, Result};
use aquatint::raw::text::{Family, base64};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;

const FAMILY: Family = Family::SentencePiece;
/// Tokens of a text where the files name no number: what T5 was trained with.
const TOKENS: u32 = 512;
/// Tokens `<extra_id_0>`, .. that T5's class adds where the files name no number.
const EXTRA_IDS: u32 = 100;
/// More of them mean that the number is none.
const MOST_EXTRA_IDS: u32 = 1 << 12;

/// What makes a tokenizer.
struct Parts {
    /// Pieces and their scores, by token.
    pieces: Vec<(String, f64)>,
    /// In base64; empty for none.
    charsmap: String,
    added: BTreeMap<u32, Added>,
}

/// Reads the tokenizer in `folder`.
pub(super) fn read(folder: &mut Folder, mut names: Names) -> Result<TokenizerFile> {
    let mut parts = match folder.has("spiece.model") {
        true => of_model(folder)?,
        false if folder.has("tokenizer.json") => of_json(folder)?,
        false => {
            let expected = "spiece.model or tokenizer.json: a tokenizer of T5's kind";
            return Err(Error::request(folder.path("").display().to_string(), expected, "neither"));
        }
    };
    parts.added.append(&mut names.added_tokens_decoder);
    let extra_ids = names.extra_ids.unwrap_or(EXTRA_IDS);
    if extra_ids > MOST_EXTRA_IDS {
        let what = folder.place("tokenizer_config.json: extra_ids");
        return Err(Error::request(what, format!("at most {MOST_EXTRA_IDS}"), extra_ids));
    }
    build(folder.name, parts, &names, extra_ids)
}

fn of_model(folder: &mut Folder) -> Result<Parts> {
    let bytes = folder.bytes("spiece.model")?;
    let wrong = |expected: String, got: &dyn std::fmt::Display| {
        Error::request(folder.path("spiece.model").display().to_string(), expected, got)
    };
    let model = spiece::Model::parse(&bytes).map_err(|expected| wrong(expected, &"none"))?;
    if let Some(other) = model.algorithm.filter(|&algorithm| algorithm != 1) {
        return Err(wrong("a unigram model (1), as T5 has".into(), &format_args!("algorithm {other}")));
    }
    if model.dummy_prefix == Some(0) {
        return Err(wrong("a space before texts, as T5 has".into(), &"none"));
    }
    let mut added = BTreeMap::new();
    for (piece, id) in model.pieces.iter().zip(0..) {
        let special = match piece.kind {
            PieceKind::Control => true,
            PieceKind::UserDefined => false,
            PieceKind::Normal | PieceKind::Unknown | PieceKind::Unused | PieceKind::Byte => continue,
        };
        added.insert(id, Added { content: piece.text.clone(), special, ..Added::default() });
    }
    let pieces = model.pieces.into_iter().map(|piece| (piece.text, piece.score.into())).collect();
    Ok(Parts { pieces, charsmap: base64::encode(&model.charsmap), added })
}

/// `tokenizer.json`, as far as it counts.
#[derive(Deserialize)]
struct JsonFile {
    model: JsonModel,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    added_tokens: Vec<JsonAdded>,
}

#[derive(Deserialize)]
struct JsonModel {
    vocab: Vec<(String, f64)>,
}

fn of_json(folder: &mut Folder) -> Result<Parts> {
    let JsonFile { model, normalizer, added_tokens } = folder.json("tokenizer.json")?;
    // Alone, or the first of several of which transformers takes no other.
    let listed = normalizer.get("normalizers").and_then(Value::as_array);
    let mut all = listed.map_or(std::slice::from_ref(&normalizer), Vec::as_slice).iter();
    let charsmap = all.find_map(|rules| rules.get("precompiled_charsmap").and_then(Value::as_str)).unwrap_or_default();
    let added = added_tokens.into_iter().map(|token| (token.id, token.added)).collect();
    Ok(Parts { pieces: model.vocab, charsmap: charsmap.to_owned(), added })
}

/// Makes the tokenizer; `place` names it in messages.
fn build(place: &str, parts: Parts, names: &Names, extra_ids: u32) -> Result<TokenizerFile> {
    let Parts { mut pieces, charsmap, mut added } = parts;
    let mut vocabulary: BTreeMap<String, u32> = pieces.iter().map(|(text, _)| text.clone()).zip(0..).collect();
    for content in (0..extra_ids).rev().map(|i| format!("<extra_id_{i}>")) {
        if !vocabulary.contains_key(&content) {
            let id = pieces.len() as u32;
            vocabulary.insert(content.clone(), id);
            pieces.push((content, 0.0));
        }
    }
    for id in (0..extra_ids).filter_map(|i| vocabulary.get(&format!("<extra_id_{i}>")).copied()) {
        let content = pieces[id as usize].0.clone();
        added.entry(id).or_insert(Added { content, special: true, ..Added::default() });
    }
    if let Some((id, token)) =
        added.iter().find(|(id, token)| pieces.get(**id as usize).is_some_and(|(text, _)| *text != token.content))
    {
        let expected = format!("{:?}, the piece of token {id}", pieces[*id as usize].0);
        return Err(Error::request(format!("{place}: added tokens"), expected, format!("{:?}", token.content)));
    }
    let mut marks = Marks::new(place, &vocabulary);
    let pad = marks.find("pad_token", names.pad_token.as_ref(), "<pad>")?;
    let end = marks.find("eos_token", names.eos_token.as_ref(), "</s>")?;
    let unknown = marks.find("unk_token", names.unk_token.as_ref(), "<unk>")?;
    marks.add_to(&mut added);
    let byte_fallback = (0..=u8::MAX).all(|byte| vocabulary.contains_key(&format!("<0x{byte:02X}>")));
    let model = json!({ "type": "Unigram", "unk_id": unknown, "byte_fallback": byte_fallback, "vocab": pieces });
    let normalizer = match charsmap.as_str() {
        "" => Value::Null,
        charsmap => json!({ "type": "Precompiled", "precompiled_charsmap": charsmap }),
    };
    let json = tokenizer_json(FAMILY, &normalizer, &model, &added).to_string().into_bytes();
    check(place, FAMILY, &json)?;
    let vocabulary = size(vocabulary.values().chain(added.keys()));
    Ok(TokenizerFile { family: FAMILY, json, begin: None, end, pad, tokens: names.tokens(2, TOKENS), vocabulary })
}
