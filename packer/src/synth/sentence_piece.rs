//! A SentencePiece model of T5's size and kind that joins letters to triples and knows no language.

use super::write_json;
use crate::error::Result;
use aquatint::error::Error;
use serde_json::json;
use std::fs;
use std::path::Path;

/// Pieces of T5's model; 100 more tokens stand for what pretraining left out, and 28 rows of its table for nothing.
const PIECES: usize = 32000;
/// Begins a word.
const SPACE: char = '\u{2581}';

/// What a piece is for, as `sentencepiece_model.proto` numbers it.
#[derive(Clone, Copy)]
enum Kind {
    Normal = 1,
    Unknown = 2,
    Control = 3,
}

/// Writes the files of transformers' `T5Tokenizer` to `folder`.
pub(super) fn write(folder: &Path) -> Result<()> {
    let special = json!({"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"});
    let mut config = special.clone();
    config["extra_ids"] = json!(100);
    config["model_max_length"] = json!(512);
    config["tokenizer_class"] = json!("T5Tokenizer");
    write_json(&folder.join("special_tokens_map.json"), &special)?;
    write_json(&folder.join("tokenizer_config.json"), &config)?;
    let file = folder.join("spiece.model");
    fs::write(&file, model()).map_err(Error::io("write", &file))?;
    Ok(())
}

/// The contents of `spiece.model`.
fn model() -> Vec<u8> {
    let mut out = Vec::new();
    let marks = [("<pad>", Kind::Control), ("</s>", Kind::Control), ("<unk>", Kind::Unknown)];
    for (text, kind) in marks {
        bytes(&mut out, 1, &piece(text, 0.0, kind));
    }
    for text in texts().take(PIECES - marks.len()) {
        // The more letters in one piece, the likelier they are.
        let score = -4.0 - 2.0 * text.chars().count() as f32;
        bytes(&mut out, 1, &piece(&text, score, Kind::Normal));
    }
    // The trainer's settings: unigram. The normalizer's: none, and a space before a text.
    bytes(&mut out, 2, &integer_field(3, 1));
    let mut normalizer = Vec::new();
    bytes(&mut normalizer, 1, b"identity");
    normalizer.extend(integer_field(3, 1));
    bytes(&mut out, 3, &normalizer);
    out
}

/// Texts of pieces, no text twice: all signs, and letters in ones, twos and threes, each with and without a space before it.
fn texts() -> impl Iterator<Item = String> {
    let spaced = |words: String| format!("{SPACE}{words}");
    let signs = ('!'..='~').map(String::from);
    let more = (1..=3).flat_map(move |n| {
        let plain = (n > 1).then(|| words(n)).into_iter().flatten();
        plain.chain(words(n).map(spaced))
    });
    [SPACE.to_string()].into_iter().chain(signs).chain(more)
}

/// All words of `n` letters.
fn words(n: u32) -> impl Iterator<Item = String> {
    let letter = |i: u32| char::from(b'a' + (i % 26) as u8);
    (0..26u32.pow(n)).map(move |i| (0..n).rev().map(|at| letter(i / 26u32.pow(at))).collect())
}

fn piece(text: &str, score: f32, kind: Kind) -> Vec<u8> {
    let mut out = Vec::new();
    bytes(&mut out, 1, text.as_bytes());
    out.push(2 << 3 | 5);
    out.extend(score.to_le_bytes());
    out.extend(integer_field(3, kind as u64));
    out
}

/// Appends field `number`, of bytes.
fn bytes(out: &mut Vec<u8>, number: u8, contents: &[u8]) {
    out.push(number << 3 | 2);
    integer(out, contents.len() as u64);
    out.extend_from_slice(contents);
}

fn integer_field(number: u8, value: u64) -> Vec<u8> {
    let mut out = vec![number << 3];
    integer(&mut out, value);
    out
}

/// Seven bits per byte, the lowest first; the top bit says that there is more.
fn integer(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::tokenizer;
    use std::collections::BTreeSet;

    #[test]
    fn it_has_as_many_tokens_as_t5_and_reads_words() {
        let distinct: BTreeSet<String> = texts().take(PIECES - 3).collect();
        assert_eq!(distinct.len(), PIECES - 3, "no piece twice");
        let folder = std::env::temp_dir().join(format!("synth-pieces-{}", std::process::id()));
        write(&folder.join("tokenizer")).unwrap();
        let file = tokenizer::read(&folder, "tokenizer", &mut Vec::new()).unwrap();
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!((file.vocabulary, file.tokens, file.begin, file.end, file.pad), (32100, 512, None, 1, 0));
    }
}
