//! CLIP's family: byte-level pair encoding whose words end in `</w>`, from `vocab.json` and `merges.txt`.

use super::{Added, Folder, JsonAdded, Marks, Names, TokenizerFile, check, rules, size, tokenizer_json};
use aquatint::error::{Error, Result};
use aquatint::raw::text::{CLIP_NORMALIZER, Family};
use flate2::read::GzDecoder;
use serde::Deserialize;
use serde_json::{Map, json};
use std::collections::BTreeMap;
use std::io::Read;

/// The token that begins a text of CLIP's.
pub const BEGIN: &str = "<|startoftext|>";
/// The token that ends one, and fills up the rest in Stable Diffusion.
pub const END: &str = "<|endoftext|>";
/// The token that fills up the rest for the second text encoder of Stable Diffusion XL.
pub const PAD_XL: &str = "!";
/// Tokens of a text where the files name no number.
const TOKENS: u32 = 77;

static CLIP_MERGES: &[u8] = include_bytes!("../../../assets/clip_merges.txt.gz");

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

/// Reads the tokenizer in `folder`.
pub(super) fn read(folder: &mut Folder, names: Names) -> Result<TokenizerFile> {
    if folder.has("tokenizer.json") {
        let file: JsonFile = folder.json("tokenizer.json")?;
        let merges = file.model.merges.into_iter().map(Merge::pair).collect::<Option<_>>();
        let (Some(merges), Some("</w>")) = (merges, file.model.end_of_word_suffix.as_deref()) else {
            let expected = "byte-level pair encoding whose words end in </w>";
            return Err(Error::request(folder.place("tokenizer.json: model"), expected, "another"));
        };
        let added = file.added_tokens.into_iter().map(|t| (t.id, t.added)).collect();
        return build(folder.name, file.model.vocab, merges, names, added);
    }
    for file in ["vocab.json", "merges.txt"] {
        if !folder.has(file) {
            let expected = "tokenizer.json, or vocab.json and merges.txt: a tokenizer of CLIP's kind";
            return Err(Error::request(folder.path("").display().to_string(), expected, format!("no {file}")));
        }
    }
    let vocabulary = folder.json("vocab.json")?;
    let merges = read_merges(folder)?;
    let mut added = BTreeMap::new();
    if folder.has("added_tokens.json") {
        let more: BTreeMap<String, u32> = folder.json("added_tokens.json")?;
        for (content, id) in more {
            added.insert(id, Added { content, normalized: true, special: false, ..Added::default() });
        }
    }
    build(folder.name, vocabulary, merges, names, added)
}

/// Reads lines of two tokens each, by rank, after a line with the version.
fn read_merges(folder: &mut Folder) -> Result<Vec<(String, String)>> {
    let (file, expected) = ("merges.txt", "lines of two tokens");
    let text = folder.text(file, expected)?;
    let wrong = |got: &str| Error::request(folder.path(file).display().to_string(), expected, got);
    let pair = |line: &str| {
        let (a, b) = line.split_once(' ')?;
        (!a.is_empty() && !b.is_empty() && !b.contains(' ')).then(|| (a.to_owned(), b.to_owned()))
    };
    let version = |(i, line): &(usize, &str)| *i == 0 && line.starts_with("#version");
    let lines = text.lines().enumerate().filter(|line| !line.1.is_empty() && !version(line));
    let merges = lines.map(|(i, line)| pair(line).ok_or_else(|| wrong(&format!("{line:?} in line {}", i + 1))));
    merges.collect()
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

/// Makes the tokenizer; `place` names it in messages.
fn build(
    place: &str,
    mut vocabulary: BTreeMap<String, u32>,
    merges: Vec<(String, String)>,
    names: Names,
    mut added: BTreeMap<u32, Added>,
) -> Result<TokenizerFile> {
    let tokens = names.tokens(3, TOKENS);
    added.extend(names.added_tokens_decoder);
    for (&id, token) in &added {
        vocabulary.entry(token.content.clone()).or_insert(id);
    }
    let mut marks = Marks::new(place, &vocabulary);
    // transformers adds them in this order.
    let begin = marks.find("bos_token", names.bos_token.as_ref(), BEGIN)?;
    let end = marks.find("eos_token", names.eos_token.as_ref(), END)?;
    let unknown = marks.find("unk_token", names.unk_token.as_ref(), END)?;
    let pad = marks.find("pad_token", names.pad_token.as_ref(), END)?;
    marks.add_to(&mut added);
    let content = |id: u32| added[&id].content.as_str();
    let model = json!({
        "type": "BPE", "dropout": null, "unk_token": content(unknown), "continuing_subword_prefix": "",
        "end_of_word_suffix": "</w>", "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
        "vocab": vocabulary.iter().map(|(k, &v)| (k.clone(), v.into())).collect::<Map<_, _>>(),
        "merges": merges,
    });
    let mut tokenizer = tokenizer_json(Family::Clip, &rules(CLIP_NORMALIZER), &model, &added);
    tokenizer["post_processor"] = json!({
        "type": "RobertaProcessing", "sep": [content(end), end], "cls": [content(begin), begin],
        "trim_offsets": false, "add_prefix_space": false,
    });
    tokenizer["decoder"] =
        json!({ "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true });
    let json = tokenizer.to_string().into_bytes();
    check(place, Family::Clip, &json)?;
    Ok(TokenizerFile {
        family: Family::Clip,
        json,
        begin: Some(begin),
        end,
        pad,
        tokens,
        vocabulary: size(vocabulary.values().chain(added.keys())),
    })
}

/// The signs that stand for bytes, in the order of CLIP's ids: bytes that can be printed stand for themselves and come
/// first, the others for the letters from U+0100.
fn byte_signs() -> Vec<char> {
    let printed = |b: &u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let others = (0..=u8::MAX).filter(|b| !printed(b)).count() as u32;
    let letters = (0x100..0x100 + others).filter_map(char::from_u32);
    (0..=u8::MAX).filter(printed).map(char::from).chain(letters).collect()
}
