//! Tokenizers of T5, mT5 and BERT make the tokens that transformers makes with them. The fixtures and their maker are in
//! `tests/fixtures/tokenizers`.

use crate::common::{Scratch, fixture};
use aquatint::raw::text::{Family, Tokenizer, base64};
use flate2::read::GzDecoder;
use packer::source::tokenizer::{TokenizerFile, read};
use serde_json::{Value, json};
use std::fs;
use std::io::Read;
use std::path::Path;

const FOLDER: &str = "tokenizer";

fn unpacked(name: &str) -> Vec<u8> {
    let file = fs::File::open(fixture("tokenizers").join(format!("{name}.gz"))).expect(name);
    let mut bytes = Vec::new();
    GzDecoder::new(file).read_to_end(&mut bytes).expect(name);
    bytes
}

fn write(root: &Path, file: &str, contents: impl AsRef<[u8]>) {
    fs::create_dir_all(root.join(FOLDER)).unwrap();
    fs::write(root.join(FOLDER).join(file), contents).unwrap();
}

fn read_from(root: &Path) -> aquatint::Result<TokenizerFile> {
    read(root, FOLDER, &mut Vec::new())
}

fn ids(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    tokenizer.tokens(text).expect("every text has tokens").iter().map(|token| token.id).collect()
}

/// The name of a case's vocabulary, and the file that brings it along.
fn vocabulary_file(case: &str) -> (&'static str, &'static str) {
    match case {
        _ if case.starts_with("bert") => ("bert.txt", "vocab.txt"),
        _ if case.starts_with("mt5") => ("mt5.model", "spiece.model"),
        _ => ("t5.model", "spiece.model"),
    }
}

/// The tokenizer in a folder that has the vocabulary and these files, of which `more` are JSON.
fn published(scratch: &Scratch, case: &str, more: &Value) -> TokenizerFile {
    let (fixture, file) = vocabulary_file(case);
    write(&scratch.0, file, unpacked(fixture));
    for (file, contents) in more.as_object().expect("files") {
        write(&scratch.0, file, contents.to_string());
    }
    read_from(&scratch.0).unwrap_or_else(|e| panic!("{case}: {e}"))
}

/// What transformers saved again, with the vocabulary and charsmap of `made` put back.
fn saved(scratch: &Scratch, case: &str, more: &Value, made: &TokenizerFile) -> TokenizerFile {
    let made: Value = serde_json::from_slice(&made.json).expect("JSON");
    for (file, contents) in more.as_object().expect("files") {
        let mut contents = contents.clone();
        if file == "tokenizer.json" {
            contents["model"]["vocab"] = made["model"]["vocab"].clone();
            if contents["normalizer"]["type"] == "Precompiled" {
                contents["normalizer"] = made["normalizer"].clone();
            }
        }
        write(&scratch.0, file, contents.to_string());
    }
    read_from(&scratch.0).unwrap_or_else(|e| panic!("{case}: {e}"))
}

#[test]
fn a_thousand_texts_have_the_tokens_of_transformers() {
    let golden: Value = serde_json::from_slice(&unpacked("ids.json")).expect("JSON");
    let texts: Vec<&str> = golden["texts"].as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect();
    let cases = golden["tokenizers"].as_array().unwrap();
    assert_eq!((texts.len(), cases.len()), (1000, 12));
    let mut made = None;
    let mut expected = &Value::Null;
    for case in cases {
        let name = case["name"].as_str().unwrap();
        let scratch = Scratch::new(&format!("families-{name}"));
        let file = match made.as_ref().filter(|_| name.ends_with("-saved")) {
            None => published(&scratch, name, &case["files"]),
            Some(made) => saved(&scratch, name, &case["files"], made),
        };
        let family = if name.starts_with("bert") { Family::Bert } else { Family::SentencePiece };
        assert_eq!(file.family, family);
        assert_eq!(json!([file.begin, file.end, file.pad]), json!([case["begin"], case["end"], case["pad"]]), "{name}");
        assert_eq!(json!(file.vocabulary), case["vocabulary"], "{name}");
        assert_eq!(file.tokens, if family == Family::Bert { 77 } else { 512 }, "{name}");
        let tokenizer = Tokenizer::new(&file.json).unwrap();
        assert_eq!((tokenizer.family(), tokenizer.vocabulary()), (family, file.vocabulary as usize));
        // What is saved again makes the same tokens, and is told once.
        expected = if case["ids"].is_null() { expected } else { &case["ids"] };
        for (text, expected) in texts.iter().zip(expected.as_array().unwrap()) {
            assert_eq!(json!(ids(&tokenizer, text)), *expected, "{name}: {text:?}");
        }
        made = Some(file);
    }
}

#[test]
fn signs_without_a_piece_are_bytes_or_unknown() {
    let of = |name: &str| Tokenizer::new(&published(&Scratch::new(name), name, &json!({})).json).unwrap();
    let (t5, mt5) = (of("t5"), of("mt5"));
    let sign = "\u{10ffff}";
    let bytes: Vec<u32> = ids(&mt5, sign);
    // Behind a space, its four bytes: tokens 3 to 258 stand for bytes.
    assert_eq!(bytes[bytes.len() - 4..], [0xf4, 0x8f, 0xbf, 0xbf].map(|byte| 3 + byte));
    assert_eq!(ids(&t5, sign).last(), Some(&2));
    let starts: Vec<_> = t5.tokens("a  red cat").unwrap().iter().map(|token| token.start).collect();
    assert!(starts.is_sorted() && starts[0] == 0 && *starts.last().unwrap() >= 3, "{starts:?}");
}

#[test]
fn what_is_of_no_known_family_is_refused() {
    let refused = |name: &str, files: &[(&str, &[u8])], expected: &[&str]| {
        let scratch = Scratch::new(&format!("families-refused-{name}"));
        files.iter().for_each(|(file, contents)| write(&scratch.0, file, contents));
        let message = read_from(&scratch.0).expect_err(name).to_string();
        assert!(expected.iter().all(|part| message.contains(part)), "{name}: {message}");
        assert!(!message.contains('\n') && message.len() < 300, "{name}: {message}");
    };
    let class = |class: &str| format!(r#"{{"tokenizer_class":"{class}"}}"#).into_bytes();
    let supported = "expected CLIPTokenizer, T5Tokenizer or BertTokenizer, the supported ones, got LlamaTokenizer";
    refused("class", &[("tokenizer_config.json", &class("LlamaTokenizer"))], &["tokenizer_class", supported]);
    refused("no-model", &[("tokenizer_config.json", &class("T5Tokenizer"))], &["spiece.model or tokenizer.json"]);
    refused("no-vocab", &[("tokenizer_config.json", &class("BertTokenizerFast"))], &["vocab.txt or tokenizer.json"]);
    refused("kind", &[("tokenizer.json", br#"{"model":{"type":"WordLevel"}}"#)], &["got WordLevel"]);

    let sound = unpacked("mt5.model");
    refused("cut", &[("spiece.model", &sound[..sound.len() - 9])], &["spiece.model", "fields of protocol buffers"]);
    refused("text", &[("spiece.model", b"version https://git-lfs")], &["spiece.model", "fields of protocol buffers"]);
    refused("empty", &[("spiece.model", b"")], &["pad_token", "\"<pad>\""]);
    // A trainer whose algorithm is 2, pair encoding, behind the sound fields: the last one counts.
    refused("bpe", &[("spiece.model", &[&sound[..], b"\x12\x02\x18\x02"].concat())], &["unigram", "algorithm 2"]);
    refused("prefix", &[("spiece.model", &[&sound[..], b"\x1a\x02\x18\x00"].concat())], &["a space before texts"]);
    let far = [&sound[..], b"\x1a\x0a\x12\x08\x04\x00\x00\x00\x00\xff\xff\xff"].concat();
    refused("charsmap", &[("spiece.model", &far)], &["precompiled_charsmap", "a trie that stays within its units"]);
    let many = br#"{"extra_ids":4000000000}"#;
    refused("many", &[("spiece.model", &sound), ("tokenizer_config.json", many)], &["extra_ids", "at most 4096"]);
    let other = br#"{"added_tokens_decoder":{"5":{"content":"<x>"}}}"#;
    refused("added", &[("spiece.model", &sound), ("tokenizer_config.json", other)], &["the piece of token 5", "<x>"]);

    refused("bert", &[("vocab.txt", b"[PAD]\n[CLS]\na\n[SEP]\n")], &["unk_token", "\"[UNK]\""]);
    let mask = (b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n", br#"{"mask_token":"[MASK]"}"#);
    refused("mask", &[("vocab.txt", mask.0), ("tokenizer_config.json", mask.1)], &["mask_token"]);
}

/// A damaged file is refused or makes tokens; it does not bring the program down.
#[test]
fn damaged_tokenizers_do_no_harm() {
    let small = |case: &str| {
        let mut whole: Value = serde_json::from_slice(&published(&Scratch::new(case), case, &json!({})).json).unwrap();
        match case {
            "bert" => {
                let words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "##b", "cat", "##s"];
                whole["model"]["vocab"] = words.iter().enumerate().map(|(i, w)| (w.to_string(), json!(i))).collect();
                whole["added_tokens"] = json!([]);
            }
            _ => {
                let pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), ("a", -1.5), ("▁cat", -1e30)];
                whole["model"]["vocab"] = json!(pieces);
                whole["normalizer"] = Value::Null;
                whole["added_tokens"] = json!([whole["added_tokens"][1]]);
            }
        }
        whole.to_string().into_bytes()
    };
    let mut counts = [0, 0];
    let mut tried = |json: &[u8]| match Tokenizer::new(json) {
        Ok(tokenizer) => {
            counts[0] += 1;
            let _ = tokenizer.tokens("a cat, cats aab </s> 😀 \u{0}x");
        }
        Err(_) => counts[1] += 1,
    };
    for case in ["bert", "t5"] {
        let json = small(case);
        Tokenizer::new(&json).expect("sound");
        for at in 0..json.len() {
            for byte in [b'0', b'"', b'}', json[at] ^ 1] {
                let mut damaged = json.clone();
                damaged[at] = byte;
                tried(&damaged);
            }
        }
    }
    // Charsmaps of which a byte is another: those that pass can be followed.
    let mut whole: Value = serde_json::from_slice(&small("t5")).unwrap();
    let model: Value = serde_json::from_slice(&published(&Scratch::new("mt5"), "mt5", &json!({})).json).unwrap();
    let map = base64::decode(model["normalizer"]["precompiled_charsmap"].as_str().unwrap()).unwrap();
    for at in (0..map.len()).step_by(11) {
        let mut damaged = map.clone();
        damaged[at] ^= 1 << (at % 8);
        whole["normalizer"] = json!({ "type": "Precompiled", "precompiled_charsmap": base64::encode(&damaged) });
        tried(&whole.to_string().into_bytes());
    }
    assert!(counts[0] > 500 && counts[1] > 1000, "{counts:?}");
}
