//! Tokenizers: from the files that models bring along to the one that the runtime reads.
//!
//! Three families are known, see [`Family`]. Each is made from its vocabulary (and merges, or charsmap) alone, whatever
//! else its files say, with the rules of transformers' `CLIPTokenizer`, `T5Tokenizer` or `BertTokenizer`.

mod bert;
mod clip;
mod sentence_piece;
mod spiece;

pub use clip::{BEGIN, END, PAD_XL, clip};

use crate::source::{SourceFile, read_json};
use aquatint::error::{Error, Result};
use aquatint::raw::text::{Family, Tokenizer};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// More tokens than this mean that there is no limit.
const MOST_TOKENS: f64 = 32768.0;

/// A tokenizer as a packed file holds it, and what META says of it.
#[derive(Clone, Debug)]
pub struct TokenizerFile {
    /// Its kind.
    pub family: Family,
    /// Contents of a `tokenizer.json`.
    pub json: Vec<u8>,
    /// Token that begins a text, if one does.
    pub begin: Option<u32>,
    /// Token that ends a text.
    pub end: u32,
    /// Token that fills up what is left.
    pub pad: u32,
    /// Tokens of a text with its beginning, end and padding.
    pub tokens: u32,
    /// One more than the largest token: rows that the encoder's table must have.
    pub vocabulary: u32,
}

/// Reads the tokenizer in `root/folder`, as transformers writes it: `tokenizer.json`, `vocab.json` and `merges.txt`,
/// `spiece.model`, or `vocab.txt`, beside `tokenizer_config.json` and `special_tokens_map.json`; appends what was read to
/// `sources`.
///
/// # Errors
/// [`Error::Request`] if it is not a tokenizer of a known family or is malformed; [`Error::Io`] if a file cannot be read.
pub fn read(root: &Path, folder: &str, sources: &mut Vec<SourceFile>) -> Result<TokenizerFile> {
    let mut folder = Folder { root, name: folder, sources };
    let mut names = Names::default();
    if folder.has("tokenizer_config.json") {
        names = folder.json("tokenizer_config.json")?;
    }
    if folder.has("special_tokens_map.json") {
        names.complete(folder.json("special_tokens_map.json")?);
    }
    match family(&mut folder, names.tokenizer_class.as_deref())? {
        Family::Clip => clip::read(&mut folder, names),
        Family::SentencePiece => sentence_piece::read(&mut folder, names),
        Family::Bert => bert::read(&mut folder, names),
    }
}

/// The family that the configuration names or, where it names none, that the files are of.
fn family(folder: &mut Folder, class: Option<&str>) -> Result<Family> {
    // The classes of transformers that read any tokenizer.json.
    let any = ["PreTrainedTokenizerFast", "TokenizersBackend"];
    if let Some(class) = class.filter(|class| !any.contains(class)) {
        return match class.strip_suffix("Fast").unwrap_or(class) {
            "CLIPTokenizer" => Ok(Family::Clip),
            "T5Tokenizer" | "MT5Tokenizer" => Ok(Family::SentencePiece),
            "BertTokenizer" => Ok(Family::Bert),
            _ => {
                let what = folder.place("tokenizer_config.json: tokenizer_class");
                Err(Error::request(what, "CLIPTokenizer, T5Tokenizer or BertTokenizer, the supported ones", class))
            }
        };
    }
    for (file, family) in
        [("spiece.model", Family::SentencePiece), ("vocab.txt", Family::Bert), ("vocab.json", Family::Clip)]
    {
        if folder.has(file) {
            return Ok(family);
        }
    }
    if !folder.has("tokenizer.json") {
        let expected = "tokenizer.json, vocab.json and merges.txt, spiece.model, or vocab.txt";
        return Err(Error::request(folder.path("").display().to_string(), expected, "none of them"));
    }
    let file: KindFile = read_json(folder.root, &folder.place("tokenizer.json"), &mut Vec::new())?;
    match file.model.kind.as_deref() {
        // Older files do not name the only model that there was.
        Some("BPE") | None => Ok(Family::Clip),
        Some("Unigram") => Ok(Family::SentencePiece),
        Some("WordPiece") => Ok(Family::Bert),
        Some(other) => {
            let what = folder.place("tokenizer.json: model");
            Err(Error::request(what, "BPE, Unigram or WordPiece, the supported ones", other))
        }
    }
}

/// A folder of a model directory whose files are read and recorded.
struct Folder<'a> {
    root: &'a Path,
    name: &'a str,
    sources: &'a mut Vec<SourceFile>,
}

impl Folder<'_> {
    /// A file of it, for messages and records.
    fn place(&self, file: &str) -> String {
        format!("{}/{file}", self.name)
    }

    fn path(&self, file: &str) -> std::path::PathBuf {
        self.root.join(self.name).join(file)
    }

    fn has(&self, file: &str) -> bool {
        self.path(file).is_file()
    }

    fn json<T: serde::de::DeserializeOwned>(&mut self, file: &str) -> Result<T> {
        read_json(self.root, &self.place(file), self.sources)
    }

    fn bytes(&mut self, file: &str) -> Result<Vec<u8>> {
        let path = self.path(file);
        let bytes = std::fs::read(&path).map_err(Error::io("read", &path))?;
        self.sources.push(SourceFile::of(self.place(file), &bytes));
        Ok(bytes)
    }

    /// The text of a file of lines; `expected` says what these are.
    fn text(&mut self, file: &str, expected: &str) -> Result<String> {
        let bytes = self.bytes(file)?;
        let text = super::text::decode(&bytes);
        let text = text.map_err(|e| Error::request(self.path(file).display().to_string(), expected, e))?;
        Ok(text.into_owned())
    }
}

/// The kind of model in a `tokenizer.json`.
#[derive(Deserialize)]
struct KindFile {
    model: Kind,
}

#[derive(Deserialize)]
struct Kind {
    #[serde(rename = "type")]
    kind: Option<String>,
}

/// `tokenizer_config.json` or `special_tokens_map.json`, as far as they count. A token is its content alone or an object
/// with more about it.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Names {
    tokenizer_class: Option<String>,
    model_max_length: Option<f64>,
    bos_token: Option<Value>,
    eos_token: Option<Value>,
    unk_token: Option<Value>,
    pad_token: Option<Value>,
    cls_token: Option<Value>,
    sep_token: Option<Value>,
    mask_token: Option<Value>,
    added_tokens_decoder: BTreeMap<u32, Added>,
    /// T5: tokens `<extra_id_0>`, .. behind the others, the last one first.
    extra_ids: Option<u32>,
    // BERT.
    do_lower_case: Option<bool>,
    tokenize_chinese_chars: Option<bool>,
    strip_accents: Option<bool>,
}

impl Names {
    /// Takes from `other` what is missing.
    fn complete(&mut self, other: Names) {
        self.bos_token = self.bos_token.take().or(other.bos_token);
        self.eos_token = self.eos_token.take().or(other.eos_token);
        self.unk_token = self.unk_token.take().or(other.unk_token);
        self.pad_token = self.pad_token.take().or(other.pad_token);
        self.cls_token = self.cls_token.take().or(other.cls_token);
        self.sep_token = self.sep_token.take().or(other.sep_token);
        self.mask_token = self.mask_token.take().or(other.mask_token);
    }

    /// Tokens of a text, `default` where the files name no number.
    fn tokens(&self, least: u32, default: u32) -> u32 {
        let named = self.model_max_length.filter(|n| (f64::from(least)..=MOST_TOKENS).contains(n));
        named.map_or(default, |n| n as u32)
    }
}

/// A token that is found in a text before it is split.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Added {
    content: String,
    single_word: bool,
    lstrip: bool,
    rstrip: bool,
    /// Whether it is sought in the normalized text, and thus in any case.
    normalized: bool,
    special: bool,
}

/// An added token as a `tokenizer.json` lists it.
#[derive(Deserialize)]
struct JsonAdded {
    id: u32,
    #[serde(flatten)]
    added: Added,
}

/// Special tokens by their number, as they are looked up.
struct Marks<'a> {
    /// What messages call the tokenizer.
    place: &'a str,
    vocabulary: &'a BTreeMap<String, u32>,
    found: BTreeMap<u32, Added>,
}

impl<'a> Marks<'a> {
    fn new(place: &'a str, vocabulary: &'a BTreeMap<String, u32>) -> Self {
        Marks { place, vocabulary, found: BTreeMap::new() }
    }

    /// The number of the token that the files call `what`; `default` if they do not. A later one has the last word on
    /// what they share.
    fn find(&mut self, what: &str, token: Option<&Value>, default: &str) -> Result<u32> {
        let place = self.place;
        let wrong =
            |got: &dyn std::fmt::Display| Error::request(format!("{place}: {what}"), "a token of the vocabulary", got);
        let mark = match token {
            None | Some(Value::Null) => Added { content: default.to_owned(), ..Added::default() },
            Some(Value::String(content)) => Added { content: content.clone(), ..Added::default() },
            Some(object) => serde_json::from_value(object.clone()).map_err(|e| wrong(&e))?,
        };
        let mark = Added { special: true, ..mark };
        let Some(&id) = self.vocabulary.get(&mark.content) else { return Err(wrong(&format!("{:?}", mark.content))) };
        self.found.insert(id, mark);
        Ok(id)
    }

    /// Adds them to `added`, where what the files say of them counts.
    fn add_to(self, added: &mut BTreeMap<u32, Added>) {
        for (id, mark) in self.found {
            added.entry(id).or_insert(mark);
        }
    }
}

/// A `tokenizer.json` of the family's rules.
fn tokenizer_json(family: Family, normalizer: &Value, model: &Value, added: &BTreeMap<u32, Added>) -> Value {
    let added_tokens = added.iter().map(|(id, t)| {
        json!({
            "id": id, "content": t.content, "single_word": t.single_word, "lstrip": t.lstrip, "rstrip": t.rstrip,
            "normalized": t.normalized, "special": t.special,
        })
    });
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added_tokens.collect::<Vec<_>>(),
        "normalizer": normalizer,
        "pre_tokenizer": rules(family.pre_tokenizer()),
        "post_processor": null,
        "decoder": null,
        "model": model,
    })
}

/// Rules that the library says as JSON.
fn rules(rules: &str) -> Value {
    serde_json::from_str(rules).expect("the library's own JSON")
}

/// Reads a tokenizer as the runtime will, so that what is wrong with it is found here.
fn check(place: &str, family: Family, json: &[u8]) -> Result<()> {
    let expected = format!("a tokenizer of {} kind", family.name());
    Tokenizer::new(json).map(|_| ()).map_err(|e| Error::request(place, expected, e))
}

/// One more than the largest of the tokens.
fn size<'a>(tokens: impl Iterator<Item = &'a u32>) -> u32 {
    tokens.max().copied().unwrap_or(0).saturating_add(1)
}
