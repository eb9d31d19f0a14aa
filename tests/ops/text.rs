//! Prompts: tokens as transformers makes them, syntax, chunks and weights as AUTOMATIC1111's web UI has them. The
//! fixtures and their maker are in `tests/fixtures/text`.

use aquatint::raw::format::meta::{TextEncoderMeta, TextLength};
use aquatint::raw::text::{COMMA_BACKTRACK, Chunks, Piece, PromptStyle, Tokenizer, apply_weights, encode, parse};
use packer::source::tokenizer::{self, END, PAD_XL};
use serde_json::{Value, json};
use std::sync::OnceLock;

const CAT: u32 = 2368;
const BEGIN_ID: u32 = 49406;
const END_ID: u32 = 49407;

fn clip() -> &'static Tokenizer {
    static CLIP: OnceLock<Tokenizer> = OnceLock::new();
    CLIP.get_or_init(|| Tokenizer::new(&tokenizer::clip(END).json).expect("CLIP's tokenizer"))
}

fn encoder(tokens: u32, pad: u32) -> TextEncoderMeta {
    let tokenizer = "tokenizer/tokenizer.json".into();
    TextEncoderMeta {
        tokenizer,
        tokens,
        length: TextLength::Padded,
        lower_case: false,
        begin: Some(BEGIN_ID),
        end: END_ID,
        pad,
        features: 768,
        pooled: 0,
    }
}

fn fixture(name: &str) -> Value {
    let path = format!("{}/tests/fixtures/text/{name}", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_slice(&std::fs::read(&path).expect(&path)).expect(&path)
}

fn list(value: &Value) -> &[Value] {
    value.as_array().expect("a list")
}

fn text(value: &Value) -> &str {
    value.as_str().expect("a text")
}

fn ids(text: &str) -> Vec<u32> {
    clip().tokens(text).expect("every text has tokens").iter().map(|t| t.id).collect()
}

fn made(tokens: u32, pad: u32, prompt: &str, style: PromptStyle) -> Chunks {
    let chunks = encode(clip(), &encoder(tokens, pad), prompt, style).expect("a sound prompt");
    assert_eq!((chunks.ids.len(), chunks.weights.len()), (chunks.len() * tokens as usize, chunks.ids.len()));
    chunks
}

#[test]
fn a_thousand_texts_have_the_tokens_of_transformers() {
    let fixture = fixture("clip.json");
    let texts = list(&fixture["texts"]);
    assert_eq!(texts.len(), 1000);
    for pair in texts {
        let expected: Vec<u32> = serde_json::from_value(pair[1].clone()).expect("ids");
        assert_eq!(ids(text(&pair[0])), expected, "{:?}", pair[0]);
    }
}

#[test]
fn tokens_know_where_they_begin() {
    let prompt = "A  Photo, caf\u{e9}😀 of";
    let starts: Vec<_> = clip().tokens(prompt).expect("tokens").iter().map(|t| &prompt[t.start..]).collect();
    let expected =
        ["A  Photo, caf\u{e9}😀 of", "Photo, caf\u{e9}😀 of", ", caf\u{e9}😀 of", "caf\u{e9}😀 of", "😀 of", "of"];
    assert_eq!(starts, expected);
    assert_eq!(clip().comma(), Some(267));
}

#[test]
fn prompts_are_split_as_the_web_ui_splits_them() {
    let fixture = fixture("prompts.json");
    let prompts = list(&fixture["parse"]);
    assert!(prompts.len() > 200, "{}", prompts.len());
    for pair in prompts {
        let piece = |part: &Value| match (text(&part[0]), part[1].as_f64().expect("a weight")) {
            ("BREAK", -1.0) => Piece::Break,
            (text, weight) => Piece::Text { text: text.into(), weight: weight as f32 },
        };
        let expected: Vec<_> = list(&pair[1]).iter().map(piece).collect();
        assert_eq!(parse(text(&pair[0])), expected, "{:?}", pair[0]);
    }
}

#[test]
fn breaks_count_within_brackets() {
    let text = |text: &str, weight| Piece::Text { text: text.into(), weight };
    assert_eq!(parse("(a BREAK b:1.5)"), [text("a", 1.5), Piece::Break, text("b", 1.5)]);
    // What is no number is text; the bracket is an ordinary one.
    assert_eq!(parse("(a:1.2.3)"), [text("a:1.2.3", 1.1)]);
    assert_eq!(parse("(a:1e3)"), [text("a:1e3", 1.1)]);
    assert_eq!(parse("(a:inf)"), [text("a:inf", 1.1)]);
}

/// Values from runs of `[value, length]`.
fn runs(value: &Value) -> Vec<f64> {
    let run = |run: &Value| {
        let n = run[1].as_u64().expect("a length") as usize;
        vec![run[0].as_f64().expect("a number"); n]
    };
    list(value).iter().flat_map(run).collect()
}

#[test]
fn prompts_are_cut_into_the_chunks_of_the_web_ui() {
    let fixture = fixture("prompts.json");
    let (mut most, mut weighted) = (0, 0);
    for case in list(&fixture["chunks"]) {
        let prompt = text(&case[0]);
        let chunks = made(77, END_ID, prompt, PromptStyle::Weighted);
        let ids: Vec<u32> = list(&case[1]).iter().flat_map(runs).map(|id| id as u32).collect();
        let weights: Vec<f32> = list(&case[2]).iter().flat_map(runs).map(|w| w as f32).collect();
        assert_eq!(chunks.ids, ids, "{prompt}");
        assert_eq!(chunks.weights, weights, "{prompt}");
        assert_eq!(chunks.truncated, None);
        most = most.max(chunks.len());
        weighted += usize::from(weights.iter().any(|&w| w != 1.0));
    }
    assert!(most >= 4 && weighted >= 30, "{most} {weighted}");
    assert_eq!(COMMA_BACKTRACK, 20);
}

/// The reference adds up n numbers in f32, of which each sum may be off by n eps of the sum of magnitudes; the ratio of
/// two such sums and four roundings more make the bound.
#[test]
fn features_are_weighted_as_the_web_ui_weighs_them() {
    for case in list(&fixture("prompts.json")["weighted"]) {
        let numbers = |key: &str| -> Vec<f32> { serde_json::from_value(case[key].clone()).expect("numbers") };
        let (weights, before, after) = (numbers("weights"), numbers("before"), numbers("after"));
        let n = before.len();
        let multiplied: Vec<f64> = before
            .iter()
            .enumerate()
            .map(|(i, &v)| f64::from(v) * f64::from(weights[i / (n / weights.len())]))
            .collect();
        let condition = |values: &[f64]| values.iter().map(|v| v.abs()).sum::<f64>() / values.iter().sum::<f64>().abs();
        let conditions = condition(&multiplied) + condition(&before.iter().map(|&v| v.into()).collect::<Vec<_>>());
        let bound = f64::from(f32::EPSILON) * (n as f64 * conditions + 4.0);
        let mut got = before.clone();
        apply_weights(&mut got, n / weights.len(), &weights);
        for (got, expected) in got.iter().zip(&after) {
            let (got, expected) = (f64::from(*got), f64::from(*expected));
            assert!((got - expected).abs() <= bound * expected.abs(), "{got} {expected} {bound} {weights:?}");
        }
    }
}

#[test]
fn weights_leave_the_vector_of_the_text_alone() {
    let before = [1.0f32, 2.0, 9.0, 3.0, 4.0, 9.0];
    let mut output = before;
    apply_weights(&mut output, 2, &[1.0, 1.0]);
    assert_eq!(output, before);
    // Sums: 10 before, 1 + 2 + 6 + 8 = 17 after.
    apply_weights(&mut output, 2, &[1.0, 2.0]);
    let restore = 10.0f32 / 17.0;
    assert_eq!(output, [restore, 2.0 * restore, 9.0, 6.0 * restore, 8.0 * restore, 9.0]);
    let mut output = [1.0f32, 1.0];
    apply_weights(&mut output, 1, &[1.0, -1.0]);
    assert_eq!(output, [1.0, -1.0]);
}

#[test]
fn without_syntax_both_styles_agree() {
    let fixture = fixture("clip.json");
    let plain = list(&fixture["texts"]).iter().map(|pair| text(&pair[0]));
    let syntax = |t: &str| t.contains(['(', ')', '[', ']', '\\']) || t.contains("BREAK");
    let short = plain.filter(|t| !syntax(t) && ids(t).len() <= 75);
    let mut tried = 0;
    for prompt in short {
        let [plain, weighted] = [PromptStyle::Plain, PromptStyle::Weighted].map(|style| made(77, 0, prompt, style));
        assert_eq!(plain, weighted, "{prompt:?}");
        assert_eq!((plain.len(), plain.truncated), (1, None));
        tried += 1;
    }
    assert!(tried > 600, "{tried}");
    assert_eq!(PromptStyle::default(), PromptStyle::Weighted);
}

#[test]
fn plain_prompts_are_cut_off() {
    let cats = |n: usize| vec!["cat"; n].join(" ");
    for (n, cut) in [(0, None), (74, None), (75, None), (76, Some("cat")), (78, Some("cat cat cat"))] {
        let chunks = made(77, 0, &cats(n), PromptStyle::Plain);
        let kept = n.min(75);
        let mut expected = vec![BEGIN_ID];
        expected.extend(vec![CAT; kept]);
        expected.push(END_ID);
        expected.resize(77, 0);
        assert_eq!((chunks.ids, chunks.end), (expected, vec![kept + 1]), "{n}");
        assert_eq!(chunks.truncated.as_deref(), cut, "{n}");
        assert!(chunks.weights.iter().all(|&w| w == 1.0));
    }
    // Syntax counts as text, and a cut within the bytes of a sign keeps all of it.
    assert_eq!(made(8, 0, "(a:1.3)", PromptStyle::Plain).ids[1..7], ids("(a:1.3)")[..6]);
    let (prompt, tokens) = ("𐀀", ids("𐀀").len() as u32);
    assert!(tokens > 1);
    assert_eq!(made(2 + tokens - 1, 0, prompt, PromptStyle::Plain).truncated.as_deref(), Some(prompt));
}

#[test]
fn chunks_are_filled_up() {
    let mut chunks = made(5, 0, "cat BREAK cat cat", PromptStyle::Weighted);
    assert_eq!(chunks.ids, [BEGIN_ID, CAT, END_ID, 0, 0, BEGIN_ID, CAT, CAT, END_ID, 0]);
    assert_eq!(chunks.end, [2, 3]);
    chunks.pad_chunks(&encoder(5, 0), 1);
    assert_eq!(chunks.len(), 2);
    chunks.pad_chunks(&encoder(5, 0), 4);
    assert_eq!((&chunks.end[..], &chunks.ids[10..]), (&[2, 3, 1, 1][..], &[BEGIN_ID, END_ID, 0, 0, 0].repeat(2)[..]));
    assert_eq!(chunks.weights, [1.0; 20]);
    // An end that is part of the prompt is the first one.
    assert_eq!(made(6, 0, "cat <|endoftext|> cat", PromptStyle::Weighted).end, [2]);
    assert_eq!(made(3, 7, "cat", PromptStyle::Plain).ids, [BEGIN_ID, CAT, END_ID]);
}

#[test]
fn the_second_tokenizer_of_sdxl_has_its_own_padding() {
    let file = tokenizer::clip(PAD_XL);
    assert_eq!((file.begin, file.end, file.pad, file.tokens, file.vocabulary), (Some(BEGIN_ID), END_ID, 0, 77, 49408));
    let tokenizer = Tokenizer::new(&file.json).expect("CLIP's tokenizer");
    let tokens: Vec<_> = tokenizer.tokens("cat!").expect("tokens").iter().map(|t| t.id).collect();
    assert_eq!((tokens, ids("cat!")), (vec![CAT, 0], vec![CAT, 256]));
}

#[test]
fn faults_are_named() {
    let message = |prompt: &str, tokens| {
        encode(clip(), &encoder(tokens, 0), prompt, PromptStyle::Weighted).expect_err(prompt).to_string()
    };
    assert_eq!(message("a", 2), "tokens of a text encoder: expected 3 to 32768, got 2");
    assert_eq!(message("a", u32::MAX), "tokens of a text encoder: expected 3 to 32768, got 4294967295");
    let vast = format!("(a:{})", "9".repeat(40));
    assert_eq!(message(&vast, 77), "weight in the prompt: expected at most 3.4028235e38, got inf");
    for json in [&b""[..], b"{}", b"[1]", b"\xff"] {
        let message = Tokenizer::new(json).err().expect("refused").to_string();
        assert!(message.starts_with("tokenizer: expected the contents of a tokenizer.json, got "), "{message}");
    }
    let whole: Value = serde_json::from_slice(&tokenizer::clip(END).json).expect("JSON");
    let other = [
        ("/normalizer", json!({ "type": "Lowercase" }), "another normalizer than CLIP's"),
        ("/normalizer/normalizers/1/content", json!(""), "another normalizer than CLIP's"),
        ("/pre_tokenizer", Value::Null, "another pre_tokenizer than CLIP's"),
        ("/model/dropout", json!(0.5), "one that drops merges at random"),
    ];
    for (field, value, expected) in other {
        let mut changed = whole.clone();
        *changed.pointer_mut(field).expect(field) = value;
        let message = Tokenizer::new(changed.to_string().as_bytes()).err().expect(field).to_string();
        assert!(message.contains(expected), "{message}");
    }
}

/// A damaged tokenizer is refused or makes tokens; it does not bring the program down.
#[test]
fn damaged_tokenizers_do_no_harm() {
    let mut whole: Value = serde_json::from_slice(&tokenizer::clip(END).json).expect("JSON");
    let signs = ["a", "b", "a</w>", "b</w>", "ab", "ab</w>", "!", ",</w>", "<|startoftext|>", "<|endoftext|>"];
    whole["model"]["vocab"] = signs.iter().enumerate().map(|(i, s)| (s.to_string(), json!(i))).collect();
    whole["model"]["merges"] = json!([["a", "b"], ["a", "b</w>"]]);
    let json = whole.to_string().into_bytes();
    Tokenizer::new(&json).expect("sound");
    let (mut read, mut refused) = (0, 0);
    for at in 0..json.len() {
        for byte in [b'0', b'"', b'}', json[at] ^ 1] {
            let mut damaged = json.clone();
            damaged[at] = byte;
            match Tokenizer::new(&damaged) {
                Ok(tokenizer) => {
                    read += 1;
                    let _ = tokenizer.tokens("ab abab, <|endoftext|> 😀 x");
                }
                Err(_) => refused += 1,
            }
        }
    }
    assert!(read > 100 && refused > 1000, "{read} {refused}");
}
