//! A tokenizer of CLIP's size and kind that joins letters to pairs and knows no language.

use super::write_json;
use crate::error::Result;
use aquatint::error::Error;
use serde_json::{Map, Value, json};
use std::fs;
use std::path::Path;

/// Pairs that are joined; with bytes, bytes at the end of a word and two special tokens, CLIP's 49408 tokens.
const MERGES: usize = 48894;

/// Writes the files of transformers' `CLIPTokenizer` to `folder`, that of tokenizer `name`.
pub(super) fn write(folder: &Path, name: &str) -> Result<()> {
    let bytes = bytes();
    let ends: Vec<String> = bytes.iter().map(|b| format!("{b}</w>")).collect();
    let pairs = bytes.iter().flat_map(|a| bytes.iter().chain(&ends).map(move |b| (a, b))).take(MERGES);
    let mut merges = "#version: 0.2\n".to_owned();
    let mut tokens: Vec<String> = bytes.iter().chain(&ends).cloned().collect();
    for (a, b) in pairs {
        merges.push_str(&format!("{a} {b}\n"));
        tokens.push(format!("{a}{b}"));
    }
    tokens.extend(["<|startoftext|>", "<|endoftext|>"].map(String::from));
    let vocabulary: Map<String, Value> = tokens.into_iter().enumerate().map(|(i, t)| (t, json!(i))).collect();
    // SDXL's second fills up with the first token.
    let pad = if name == "tokenizer_2" { "!" } else { "<|endoftext|>" };
    let special = json!({
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": pad,
        "unk_token": "<|endoftext|>",
    });
    let mut config = special.clone();
    config["tokenizer_class"] = json!("CLIPTokenizer");
    config["model_max_length"] = json!(77);
    config["do_lower_case"] = json!(true);
    write_json(&folder.join("vocab.json"), &Value::Object(vocabulary))?;
    write_json(&folder.join("special_tokens_map.json"), &special)?;
    write_json(&folder.join("tokenizer_config.json"), &config)?;
    let file = folder.join("merges.txt");
    fs::write(&file, merges).map_err(Error::io("write", &file))?;
    Ok(())
}

/// The characters that stand for bytes, in the order of GPT-2's vocabulary: visible ones first, as themselves; the others
/// as characters from 256 on.
fn bytes() -> Vec<String> {
    let visible = |b: &u32| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let hidden = (0..256).filter(|b| !visible(b)).count() as u32;
    (0..256).filter(visible).chain(256..256 + hidden).filter_map(char::from_u32).map(String::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_has_as_many_tokens_as_clip() {
        let folder = std::env::temp_dir().join(format!("synth-tokenizer-{}", std::process::id()));
        write(&folder, "tokenizer_2").unwrap();
        let read = |name: &str| fs::read_to_string(folder.join(name)).unwrap();
        let vocabulary: Map<String, Value> = serde_json::from_str(&read("vocab.json")).unwrap();
        let merges = read("merges.txt");
        let map: Value = serde_json::from_str(&read("special_tokens_map.json")).unwrap();
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(vocabulary.len(), 49408, "no token twice");
        assert_eq!(merges.lines().count(), 1 + MERGES);
        for (token, number) in
            [("!", 0), ("a", 64), ("!</w>", 256), ("<|startoftext|>", 49406), ("<|endoftext|>", 49407)]
        {
            assert_eq!(vocabulary[token], number, "{token}");
        }
        assert_eq!(map["pad_token"], "!");
        let joined = |line: &str| vocabulary.contains_key(&line.replace(' ', ""));
        assert!(merges.lines().skip(1).all(joined));
    }
}
