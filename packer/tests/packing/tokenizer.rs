//! Tokenizers that models bring along make the tokens that transformers makes with them. The fixtures and their maker
//! are in `tests/fixtures/text`.

use crate::common::{Scratch, fixture};
use aquatint::raw::text::Tokenizer;
use packer::source::tokenizer::{END, PAD_XL, TokenizerFile, clip, read};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

const FOLDER: &str = "tokenizer";

fn write(root: &Path, file: &str, contents: impl AsRef<[u8]>) {
    fs::create_dir_all(root.join(FOLDER)).unwrap();
    fs::write(root.join(FOLDER).join(file), contents).unwrap();
}

/// CLIP's vocabulary and merges.
fn model() -> (Value, Value) {
    let mut whole: Value = serde_json::from_slice(&clip(END).json).unwrap();
    (whole["model"]["vocab"].take(), whole["model"]["merges"].take())
}

fn lines(merges: &Value) -> String {
    let line = |m: &Value| format!("{} {}\n", m[0].as_str().unwrap(), m[1].as_str().unwrap());
    "#version: 0.2\n".to_owned() + &merges.as_array().unwrap().iter().map(line).collect::<String>()
}

fn read_from(root: &Path) -> aquatint::Result<TokenizerFile> {
    read(root, FOLDER, &mut Vec::new())
}

#[test]
fn published_and_saved_tokenizers_make_the_tokens_of_transformers() {
    let golden: Value = serde_json::from_slice(&fs::read(fixture("text/clip.json")).unwrap()).unwrap();
    let (vocabulary, merges) = model();
    let cases = golden["tokenizers"].as_array().unwrap();
    assert_eq!(cases.len(), 8);
    for case in cases {
        let name = case["name"].as_str().unwrap();
        let scratch = Scratch::new(&format!("tokenizer-{name}"));
        for (file, contents) in case["files"].as_object().unwrap() {
            let mut contents = contents.clone();
            if file == "tokenizer.json" {
                contents["model"]["vocab"] = vocabulary.clone();
                contents["model"]["merges"] = merges.clone();
            }
            write(&scratch.0, file, contents.to_string());
        }
        if !name.ends_with("-saved") {
            write(&scratch.0, "vocab.json", vocabulary.to_string());
            write(&scratch.0, "merges.txt", lines(&merges));
        }
        let mut sources = Vec::new();
        let file = read(&scratch.0, FOLDER, &mut sources).unwrap();
        assert_eq!(json!([file.begin, file.end, file.pad]), json!([case["begin"], case["end"], case["pad"]]), "{name}");
        assert_eq!(file.tokens, 77);
        let added = if name.starts_with("textual") { 2 } else { 0 };
        assert_eq!(file.vocabulary, 49408 + added, "{name}");
        let files = fs::read_dir(scratch.0.join(FOLDER)).unwrap().count();
        assert_eq!(sources.len(), files, "{name}: every file is on record");
        assert!(sources.iter().all(|s| s.file.starts_with("tokenizer/") && !s.weights));
        let tokenizer = Tokenizer::new(&file.json).unwrap();
        for pair in case["ids"].as_array().unwrap() {
            let text = pair[0].as_str().unwrap();
            let ids: Vec<_> = tokenizer.tokens(text).unwrap().iter().map(|t| t.id).collect();
            assert_eq!(json!(ids), pair[1], "{name}: {text}");
        }
        // CLIP's own are those that were published with the models, to the byte.
        match name {
            "stable-diffusion" => assert!(file.json == clip(END).json),
            "stable-diffusion-xl-2" => assert!(file.json == clip(PAD_XL).json),
            _ => {}
        }
    }
}

#[test]
fn embeddings_of_several_vectors_are_those_of_diffusers() {
    let golden: Value = serde_json::from_slice(&fs::read(fixture("text/words.json")).unwrap()).unwrap();
    let (vocabulary, merges) = model();
    let scratch = Scratch::new("tokenizer-vectors");
    write(&scratch.0, "vocab.json", vocabulary.to_string());
    write(&scratch.0, "merges.txt", lines(&merges));
    write(&scratch.0, "added_tokens.json", golden["added"].to_string());
    let tokenizer = Tokenizer::new(&read_from(&scratch.0).unwrap().json).unwrap();
    for pair in golden["ids"].as_array().unwrap() {
        let text = pair[0].as_str().unwrap();
        let ids: Vec<_> = tokenizer.tokens(text).unwrap().iter().map(|t| t.id).collect();
        assert_eq!(json!(ids), pair[1], "{text}");
    }
}

#[test]
fn lengths_and_old_merges_are_understood() {
    let scratch = Scratch::new("tokenizer-old");
    let (vocabulary, merges) = model();
    let old: Vec<_> = lines(&merges).lines().skip(1).map(str::to_owned).collect();
    let model = json!({ "type": "BPE", "end_of_word_suffix": "</w>", "vocab": vocabulary, "merges": old });
    write(&scratch.0, "tokenizer.json", json!({ "model": model }).to_string());
    for (length, tokens) in [(json!(16), 16), (json!(1e30), 77), (json!(2), 77), (Value::Null, 77)] {
        write(&scratch.0, "tokenizer_config.json", json!({ "model_max_length": length }).to_string());
        let file = read_from(&scratch.0).unwrap();
        assert_eq!(file.tokens, tokens, "{length}");
        assert_eq!((file.begin, file.end, file.pad), (Some(49406), 49407, 49407));
    }
}

#[test]
fn what_is_not_clips_is_refused() {
    let refused = |name: &str, files: &[(&str, &str)], expected: &[&str]| {
        let scratch = Scratch::new(&format!("tokenizer-refused-{name}"));
        fs::create_dir_all(scratch.0.join(FOLDER)).unwrap();
        files.iter().for_each(|(file, contents)| write(&scratch.0, file, contents));
        let message = read_from(&scratch.0).expect_err(name).to_string();
        assert!(expected.iter().all(|part| message.contains(part)), "{name}: {message}");
        assert!(!message.contains('\n'), "{name}: {message}");
    };
    refused("empty", &[], &["tokenizer.json, vocab.json and merges.txt, spiece.model, or vocab.txt", "none of them"]);
    let small = r#"{"a":0,"b":1,"ab":2,"<|startoftext|>":3,"<|endoftext|>":4}"#;
    refused("half", &[("vocab.json", small)], &["got no merges.txt"]);
    refused(
        "line",
        &[("vocab.json", small), ("merges.txt", "#version\na b\nab\n")],
        &["merges.txt", "\"ab\" in line 3"],
    );
    refused("merge", &[("vocab.json", small), ("merges.txt", "a x\n")], &["a tokenizer of CLIP's kind"]);
    let nameless = r#"{"a":0,"<|startoftext|>":3}"#;
    refused("end", &[("vocab.json", nameless), ("merges.txt", "")], &["eos_token", "\"<|endoftext|>\""]);
    let pad = ("tokenizer_config.json", r#"{"pad_token":"?"}"#);
    refused(
        "pad",
        &[("vocab.json", small), ("merges.txt", ""), pad],
        &["pad_token", "a token of the vocabulary", "\"?\""],
    );
    let unigram = r#"{"model":{"type":"Unigram","vocab":[["a",-1.0]]}}"#;
    let class = ("tokenizer_config.json", r#"{"tokenizer_class":"CLIPTokenizer"}"#);
    refused("unigram", &[class, ("tokenizer.json", unigram)], &["tokenizer.json", "expected a JSON object"]);
    let words = format!(r#"{{"model":{{"type":"BPE","vocab":{small},"merges":[]}}}}"#);
    refused("suffix", &[("tokenizer.json", &words)], &["byte-level pair encoding whose words end in </w>"]);
    refused("json", &[("tokenizer.json", "{")], &["tokenizer.json"]);
}
