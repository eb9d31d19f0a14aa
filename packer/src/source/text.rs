//! Text files as editors and Python leave them: one reader for all configurations.
//!
//! A byte-order mark says UTF-8 or UTF-16 and is no part of the text. Python's `json` writes numbers that JSON does not
//! have, `Infinity`, `-Infinity` and `NaN`; they become the texts of these words, so that who expects a number refuses
//! them by name, and who knows them can take them.

use serde::de::DeserializeOwned;
use std::borrow::Cow;

/// Numbers of Python's that JSON does not have; the longer word first.
const NUMBERS: [&str; 3] = ["-Infinity", "Infinity", "NaN"];

/// The text that `bytes` are.
///
/// # Errors
/// If they are no text in UTF-8 or UTF-16; says what they are.
pub fn decode(bytes: &[u8]) -> Result<Cow<'_, str>, String> {
    match bytes {
        [0xff, 0xfe, 0, 0, ..] | [0, 0, 0xfe, 0xff, ..] => Err(refusal("UTF-32")),
        [0xff, 0xfe, rest @ ..] => utf16(rest, u16::from_le_bytes).map(Cow::Owned),
        [0xfe, 0xff, rest @ ..] => utf16(rest, u16::from_be_bytes).map(Cow::Owned),
        // Text begins with a letter, a brace, a comment: with ASCII.
        [1..=0x7f, 0, 1..=0xff, ..] => utf16(bytes, u16::from_le_bytes).map(Cow::Owned),
        [0, 1..=0x7f, 0, ..] => utf16(bytes, u16::from_be_bytes).map(Cow::Owned),
        [0x1f, 0x8b, ..] => Err(refusal("a gzip file")),
        [b'P', b'K', 3, 4, ..] => Err(refusal("a zip archive")),
        _ => {
            let rest = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
            let text = std::str::from_utf8(rest).map_err(|e| {
                let at = e.valid_up_to();
                refusal(&format!("byte 0x{:02x} at {}, of another encoding", rest[at], at + bytes.len() - rest.len()))
            })?;
            Ok(Cow::Borrowed(text))
        }
    }
}

fn refusal(got: &str) -> String {
    format!("text in UTF-8 is expected, got {got}")
}

fn utf16(bytes: &[u8], number: fn([u8; 2]) -> u16) -> Result<String, String> {
    let (pairs, rest) = bytes.as_chunks();
    let text: Option<String> = char::decode_utf16(pairs.iter().map(|&pair| number(pair))).map(Result::ok).collect();
    text.filter(|_| rest.is_empty()).ok_or_else(|| refusal("damaged UTF-16"))
}

/// Parses JSON, Python's numbers included.
///
/// # Errors
/// As serde's; positions count in the text.
pub fn json<T: DeserializeOwned>(text: &str) -> serde_json::Result<T> {
    serde_json::from_str(&quoted_numbers(text))
}

/// `text` with [`NUMBERS`] in quotes, wherever they stand outside of a text.
fn quoted_numbers(text: &str) -> Cow<'_, str> {
    if !NUMBERS[1..].iter().any(|word| text.contains(word)) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 64);
    let (mut quoted, mut at) = (false, 0);
    while let Some(next) = text[at..].chars().next() {
        let word = NUMBERS.iter().find(|word| !quoted && text[at..].starts_with(**word));
        let length = match (word, next) {
            (Some(word), _) => {
                out.extend(["\"", word, "\""]);
                at += word.len();
                continue;
            }
            // What is escaped does not end the text.
            (None, '\\') if quoted => 1 + text[at + 1..].chars().next().map_or(0, char::len_utf8),
            (None, '"') => {
                quoted = !quoted;
                1
            }
            (None, other) => other.len_utf8(),
        };
        out.push_str(&text[at..at + length]);
        at += length;
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn marks_and_encodings() {
        let text = "{\"a\": \"é😀\"}\r\n";
        let units = || text.encode_utf16();
        let le: Vec<u8> = units().flat_map(u16::to_le_bytes).collect();
        let be: Vec<u8> = units().flat_map(u16::to_be_bytes).collect();
        let marked = |mark: &[u8], bytes: &[u8]| [mark, bytes].concat();
        for bytes in [
            text.as_bytes().to_vec(),
            marked(b"\xef\xbb\xbf", text.as_bytes()),
            marked(b"\xff\xfe", &le),
            marked(b"\xfe\xff", &be),
            le.clone(),
            be.clone(),
        ] {
            assert_eq!(decode(&bytes).unwrap(), text, "{bytes:x?}");
        }
        assert_eq!(decode(b"").unwrap(), "");
        for (bytes, got) in [
            (&b"\xff\xfe\0\0{\0\0\0"[..], "UTF-32"),
            (b"\xff\xfe{", "damaged UTF-16"),
            (b"\xff\xfe\x00\xd8{\0", "damaged UTF-16"),
            (b"caf\xe9", "byte 0xe9 at 3"),
            (b"\xef\xbb\xbfcaf\xe9", "byte 0xe9 at 6"),
            (b"\x1f\x8b\x08", "a gzip file"),
        ] {
            assert!(decode(bytes).unwrap_err().contains(got), "{bytes:x?}");
        }
    }

    #[test]
    fn numbers_of_python() {
        let read = |text: &str| json::<Value>(text).unwrap();
        assert_eq!(read(r#"{"a":-Infinity,"b":[NaN,Infinity]}"#), json!({"a": "-Infinity", "b": ["NaN", "Infinity"]}));
        let kept = r#"{"Infinity": "a \" NaN \\", "é": "-Infinity", "x": 1}"#;
        assert_eq!(read(kept), serde_json::from_str::<Value>(kept).unwrap());
        assert!(json::<Value>(r#"{"a": Infinit}"#).is_err() && json::<Value>("NaN \"\\").is_err());
    }
}
