//! BERT's family: WordPiece, from `vocab.txt` or `tokenizer.json`.

use super::{Added, Folder, JsonAdded, Marks, Names, TokenizerFile, check, size, tokenizer_json};
use aquatint::error::{Error, Result};
use aquatint::raw::text::Family;
use serde::Deserialize;
use serde_json::{Map, json};
use std::collections::BTreeMap;

const FAMILY: Family = Family::Bert;
/// Tokens of a text where the files name no number: what BERT was trained with.
const TOKENS: u32 = 512;

/// `tokenizer.json`, as far as it counts.
#[derive(Deserialize)]
struct JsonFile {
    model: JsonModel,
    #[serde(default)]
    added_tokens: Vec<JsonAdded>,
}

#[derive(Deserialize)]
struct JsonModel {
    vocab: BTreeMap<String, u32>,
}

/// Reads the tokenizer in `folder`. What is done with case, accents and Chinese characters is the configuration's word.
pub(super) fn read(folder: &mut Folder, names: Names) -> Result<TokenizerFile> {
    if folder.has("vocab.txt") {
        let text = folder.text("vocab.txt", "a token in each line")?;
        // Line ends alone end a line here: vocabularies hold other signs that end lines elsewhere.
        let lines = text.strip_suffix('\n').unwrap_or(&text).split('\n');
        let tokens = lines.map(|line| line.strip_suffix('\r').unwrap_or(line).to_owned());
        return build(folder.name, tokens.zip(0..).collect(), &names, BTreeMap::new());
    }
    if !folder.has("tokenizer.json") {
        let expected = "vocab.txt or tokenizer.json: a tokenizer of BERT's kind";
        return Err(Error::request(folder.path("").display().to_string(), expected, "neither"));
    }
    let file: JsonFile = folder.json("tokenizer.json")?;
    let added = file.added_tokens.into_iter().map(|token| (token.id, token.added)).collect();
    build(folder.name, file.model.vocab, &names, added)
}

/// Makes the tokenizer; `place` names it in messages.
fn build(
    place: &str,
    mut vocabulary: BTreeMap<String, u32>,
    names: &Names,
    mut added: BTreeMap<u32, Added>,
) -> Result<TokenizerFile> {
    added.extend(names.added_tokens_decoder.clone());
    for (&id, token) in &added {
        vocabulary.entry(token.content.clone()).or_insert(id);
    }
    let mut marks = Marks::new(place, &vocabulary);
    let pad = marks.find("pad_token", names.pad_token.as_ref(), "[PAD]")?;
    let unknown = marks.find("unk_token", names.unk_token.as_ref(), "[UNK]")?;
    let begin = marks.find("cls_token", names.cls_token.as_ref(), "[CLS]")?;
    let end = marks.find("sep_token", names.sep_token.as_ref(), "[SEP]")?;
    // Of no use here, but found in texts if the vocabulary has it.
    if names.mask_token.is_some() || vocabulary.contains_key("[MASK]") {
        marks.find("mask_token", names.mask_token.as_ref(), "[MASK]")?;
    }
    marks.add_to(&mut added);
    let normalizer = json!({
        "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": names.tokenize_chinese_chars.unwrap_or(true),
        "strip_accents": names.strip_accents, "lowercase": names.do_lower_case.unwrap_or(true),
    });
    let model = json!({
        "type": "WordPiece", "unk_token": added[&unknown].content, "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100,
        "vocab": vocabulary.iter().map(|(k, &v)| (k.clone(), v.into())).collect::<Map<_, _>>(),
    });
    let json = tokenizer_json(FAMILY, &normalizer, &model, &added).to_string().into_bytes();
    check(place, FAMILY, &json)?;
    let tokens = names.tokens(3, TOKENS);
    let vocabulary = size(vocabulary.values().chain(added.keys()));
    Ok(TokenizerFile { family: FAMILY, json, begin: Some(begin), end, pad, tokens, vocabulary })
}
