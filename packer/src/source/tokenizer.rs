//! Tokenizers: from the files that models bring along to the one that the runtime reads.
//!
//! Only CLIP's kind is known: byte-level pair encoding whose words end in `</w>`. It is made from vocabulary and merges
//! alone, whatever else its files say, with the rules of transformers' `CLIPTokenizer`.

use crate::source::{SourceFile, read_json};
use aquatint::error::{Error, Result};
use aquatint::raw::text::{CLIP_NORMALIZER, CLIP_PRE_TOKENIZER, Tokenizer};
use flate2::read::GzDecoder;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

/// The token that begins a text of CLIP's.
pub const BEGIN: &str = "<|startoftext|>";
/// The token that ends one, and fills up the rest in Stable Diffusion.
pub const END: &str = "<|endoftext|>";
/// The token that fills up the rest for the second text encoder of Stable Diffusion XL.
pub const PAD_XL: &str = "!";
/// Tokens of a text where the files name no number.
const TOKENS: u32 = 77;
/// More tokens than this mean that there is no limit.
const MOST_TOKENS: f64 = 32768.0;

static CLIP_MERGES: &[u8] = include_bytes!("../../assets/clip_merges.txt.gz");

/// A tokenizer as a packed file holds it, and what META says of it.
#[derive(Clone, Debug)]
pub struct TokenizerFile {
    /// Contents of a `tokenizer.json`.
    pub json: Vec<u8>,
    /// Token that begins a text.
    pub begin: u32,
    /// Token that ends a text.
    pub end: u32,
    /// Token that fills up what is left.
    pub pad: u32,
    /// Tokens of a text with its beginning, end and padding.
    pub tokens: u32,
    /// One more than the largest token: rows that the encoder's table must have.
    pub vocabulary: u32,
}

/// CLIP's own tokenizer, for checkpoints that bring none along; texts are filled up with the token `pad`.
///
/// # Panics
/// If CLIP has no such token: a bug of the caller.
pub fn clip(pad: &str) -> TokenizerFile {
    let proof = "CLIP's tokenizer is sound";
    let mut merges = String::new();
    GzDecoder::new(CLIP_MERGES).read_to_string(&mut merges).expect(proof);
    let merges: Vec<_> = merges.lines().filter_map(|l| l.split_once(' ')).collect();
    // Ids count bytes, bytes that end a word, and what the merges make, in this order.
    let bytes = byte_signs();
    let signs = bytes.iter().map(char::to_string);
    let ends = bytes.iter().map(|c| format!("{c}</w>"));
    let merged = merges.iter().map(|(a, b)| format!("{a}{b}"));
    let names = signs.chain(ends).chain(merged).chain([BEGIN.to_owned(), END.to_owned()]);
    let vocabulary = names.zip(0..).collect();
    let merges = merges.into_iter().map(|(a, b)| (a.to_owned(), b.to_owned())).collect();
    // As the models of CLIP were published.
    let mark = |content: &str| json!({ "content": content, "normalized": true });
    let names = Names {
        bos_token: Some(mark(BEGIN)),
        eos_token: Some(mark(END)),
        unk_token: Some(mark(END)),
        pad_token: Some(pad.into()),
        ..Names::default()
    };
    build("CLIP", vocabulary, merges, names, BTreeMap::new()).expect(proof)
}

/// Reads the tokenizer in `root/folder`, as transformers writes it: `tokenizer.json`, or `vocab.json` and `merges.txt`,
/// beside `tokenizer_config.json` and `special_tokens_map.json`; appends what was read to `sources`.
///
/// # Errors
/// [`Error::Request`] if it is not a tokenizer of CLIP's kind or is malformed; [`Error::Io`] if a file cannot be read.
pub fn read(root: &Path, folder: &str, sources: &mut Vec<SourceFile>) -> Result<TokenizerFile> {
    let place = |file: &str| format!("{folder}/{file}");
    let exists = |file: &str| root.join(place(file)).is_file();
    let mut names = Names::default();
    if exists("tokenizer_config.json") {
        names = read_json(root, &place("tokenizer_config.json"), sources)?;
    }
    let clip = |class: &str| ["CLIPTokenizer", "CLIPTokenizerFast"].contains(&class);
    if let Some(class) = names.tokenizer_class.as_deref().filter(|class| !clip(class)) {
        let what = place("tokenizer_config.json: tokenizer_class");
        return Err(Error::request(what, "CLIPTokenizer, the only supported one", class));
    }
    if exists("special_tokens_map.json") {
        let map: Names = read_json(root, &place("special_tokens_map.json"), sources)?;
        names.complete(map);
    }

    if exists("tokenizer.json") {
        let file: JsonFile = read_json(root, &place("tokenizer.json"), sources)?;
        let merges = file.model.merges.into_iter().map(Merge::pair).collect::<Option<_>>();
        let (Some(merges), Some("</w>")) = (merges, file.model.end_of_word_suffix.as_deref()) else {
            let expected = "byte-level pair encoding whose words end in </w>";
            return Err(Error::request(place("tokenizer.json: model"), expected, "another"));
        };
        let added = file.added_tokens.into_iter().map(|t| (t.id, t.added)).collect();
        return build(folder, file.model.vocab, merges, names, added);
    }
    for file in ["vocab.json", "merges.txt"] {
        if !exists(file) {
            let expected = "tokenizer.json, or vocab.json and merges.txt: a tokenizer of CLIP's kind";
            return Err(Error::request(root.join(folder).display().to_string(), expected, format!("no {file}")));
        }
    }
    let vocabulary = read_json(root, &place("vocab.json"), sources)?;
    let merges = read_merges(root, &place("merges.txt"), sources)?;
    let mut added = BTreeMap::new();
    if exists("added_tokens.json") {
        let more: BTreeMap<String, u32> = read_json(root, &place("added_tokens.json"), sources)?;
        for (content, id) in more {
            added.insert(id, Added { content, normalized: true, special: false, ..Added::default() });
        }
    }
    build(folder, vocabulary, merges, names, added)
}

/// Reads lines of two tokens each, by rank, after a line with the version.
fn read_merges(root: &Path, file: &str, sources: &mut Vec<SourceFile>) -> Result<Vec<(String, String)>> {
    let path = root.join(file);
    let bytes = std::fs::read(&path).map_err(Error::io("read", &path))?;
    let wrong = |got: &str| Error::request(path.display().to_string(), "lines of two tokens", got);
    let text = super::text::decode(&bytes).map_err(|e| wrong(&e))?;
    let pair = |line: &str| {
        let (a, b) = line.split_once(' ')?;
        (!a.is_empty() && !b.is_empty() && !b.contains(' ')).then(|| (a.to_owned(), b.to_owned()))
    };
    let version = |(i, line): &(usize, &str)| *i == 0 && line.starts_with("#version");
    let lines = text.lines().enumerate().filter(|line| !line.1.is_empty() && !version(line));
    let merges = lines.map(|(i, line)| pair(line).ok_or_else(|| wrong(&format!("{line:?} in line {}", i + 1))));
    let merges = merges.collect::<Result<_>>()?;
    sources.push(SourceFile::of(file.to_owned(), &bytes, false));
    Ok(merges)
}

/// `tokenizer.json`, as far as it counts.
#[derive(Deserialize)]
struct JsonFile {
    model: JsonModel,
    #[serde(default)]
    added_tokens: Vec<JsonAdded>,
}

#[derive(Deserialize)]
struct JsonModel {
    // Unigram models have a list here.
    vocab: BTreeMap<String, u32>,
    #[serde(default)]
    merges: Vec<Merge>,
    #[serde(default)]
    end_of_word_suffix: Option<String>,
}

#[derive(Deserialize)]
struct JsonAdded {
    id: u32,
    #[serde(flatten)]
    added: Added,
}

/// A merge as new and as old versions write it.
#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Pair(String, String),
    Line(String),
}

impl Merge {
    fn pair(self) -> Option<(String, String)> {
        match self {
            Merge::Pair(a, b) => Some((a, b)),
            Merge::Line(line) => line.split_once(' ').map(|(a, b)| (a.to_owned(), b.to_owned())),
        }
    }
}

/// `tokenizer_config.json` or `special_tokens_map.json`, as far as they count. A token is its content alone or an object
/// with more about it.
#[derive(Default, Deserialize)]
struct Names {
    tokenizer_class: Option<String>,
    model_max_length: Option<f64>,
    bos_token: Option<Value>,
    eos_token: Option<Value>,
    unk_token: Option<Value>,
    pad_token: Option<Value>,
    #[serde(default)]
    added_tokens_decoder: BTreeMap<u32, Added>,
}

impl Names {
    /// Takes from `other` what is missing.
    fn complete(&mut self, other: Names) {
        self.bos_token = self.bos_token.take().or(other.bos_token);
        self.eos_token = self.eos_token.take().or(other.eos_token);
        self.unk_token = self.unk_token.take().or(other.unk_token);
        self.pad_token = self.pad_token.take().or(other.pad_token);
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

/// Makes the tokenizer; `place` names it in messages.
fn build(
    place: &str,
    mut vocabulary: BTreeMap<String, u32>,
    merges: Vec<(String, String)>,
    names: Names,
    mut added: BTreeMap<u32, Added>,
) -> Result<TokenizerFile> {
    added.extend(names.added_tokens_decoder);
    for (&id, token) in &added {
        vocabulary.entry(token.content.clone()).or_insert(id);
    }
    let mut marks = BTreeMap::new();
    let mut id = |what: &str, token: Option<&Value>, default: &str| {
        let wrong =
            |got: &dyn std::fmt::Display| Error::request(format!("{place}: {what}"), "a token of the vocabulary", got);
        let mark = match token {
            None | Some(Value::Null) => Added { content: default.to_owned(), ..Added::default() },
            Some(Value::String(content)) => Added { content: content.clone(), ..Added::default() },
            Some(object) => serde_json::from_value(object.clone()).map_err(|e| wrong(&e))?,
        };
        let mark = Added { special: true, ..mark };
        let Some(&id) = vocabulary.get(&mark.content) else { return Err(wrong(&format!("{:?}", mark.content))) };
        marks.insert(id, mark);
        Ok(id)
    };
    // A later one has the last word on what they share: transformers adds them in this order.
    let begin = id("bos_token", names.bos_token.as_ref(), BEGIN)?;
    let end = id("eos_token", names.eos_token.as_ref(), END)?;
    let unknown = id("unk_token", names.unk_token.as_ref(), END)?;
    let pad = id("pad_token", names.pad_token.as_ref(), END)?;
    for (id, mark) in marks {
        added.entry(id).or_insert(mark);
    }
    let content = |id: u32| added[&id].content.as_str();
    let added_tokens = added.iter().map(|(id, t)| {
        json!({
            "id": id, "content": t.content, "single_word": t.single_word, "lstrip": t.lstrip, "rstrip": t.rstrip,
            "normalized": t.normalized, "special": t.special,
        })
    });
    let rules = |rules: &str| -> Value { serde_json::from_str(rules).expect("the library's own JSON") };
    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added_tokens.collect::<Vec<_>>(),
        "normalizer": rules(CLIP_NORMALIZER),
        "pre_tokenizer": rules(CLIP_PRE_TOKENIZER),
        "post_processor": {
            "type": "RobertaProcessing", "sep": [content(end), end], "cls": [content(begin), begin],
            "trim_offsets": false, "add_prefix_space": false,
        },
        "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
        "model": {
            "type": "BPE", "dropout": null, "unk_token": content(unknown), "continuing_subword_prefix": "",
            "end_of_word_suffix": "</w>", "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocabulary.iter().map(|(k, &v)| (k.clone(), v.into())).collect::<Map<_, _>>(),
            "merges": merges,
        },
    });
    let json = tokenizer.to_string().into_bytes();
    // The runtime reads it as it will be: merges without tokens are found here.
    Tokenizer::new(&json).map_err(|e| Error::request(place, "a tokenizer of CLIP's kind", e))?;
    let tokens = names.model_max_length.filter(|n| (3.0..=MOST_TOKENS).contains(n)).map_or(TOKENS, |n| n as u32);
    let largest = vocabulary.values().chain(added.keys()).max().copied().unwrap_or(0);
    Ok(TokenizerFile { json, begin, end, pad, tokens, vocabulary: largest.saturating_add(1) })
}

/// The signs that stand for bytes, in the order of CLIP's ids: bytes that can be printed stand for themselves and come
/// first, the others for the letters from U+0100.
fn byte_signs() -> Vec<char> {
    let printed = |b: &u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let others = (0..=u8::MAX).filter(|b| !printed(b)).count() as u32;
    let letters = (0x100..0x100 + others).filter_map(char::from_u32);
    (0..=u8::MAX).filter(printed).map(char::from).chain(letters).collect()
}
