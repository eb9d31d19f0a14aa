//! What made a picture, as text that image tools read: the "infotext" of the Stable Diffusion web UI.
//!
//! ```text
//! <prompt>
//! Negative prompt: <negative prompt>
//! Steps: 20, Sampler: DDIM, CFG scale: 7, Seed: 1, Size: 512x512, Model hash: 0123abcd, Model: name
//! ```
//!
//! This module knows the grammar, and nothing of what the settings mean. The grammar loses some prompts (blanks around a
//! line, a line that begins like the negative prompt); then they are written once more, quoted, as the settings `Prompt`
//! and `Negative`, so that what is read is always what was written.

use std::fmt;

const NEGATIVE: &str = "Negative prompt:";
/// A last line with fewer settings belongs to the prompt.
const FEWEST: usize = 3;
/// Settings that hold prompts the lines cannot; without the second, there is no negative one.
const EXACT: [&str; 2] = ["Prompt", "Negative"];

/// What made a picture.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Infotext {
    /// The prompt; may have several lines.
    pub prompt: String,
    /// The negative prompt, if there is one; an empty one is not none.
    pub negative: Option<String>,
    /// Names of settings and their values, in order.
    pub settings: Vec<(String, String)>,
}

impl Infotext {
    /// The value of a setting.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.settings.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// Adds a setting.
    pub fn push(&mut self, name: &str, value: impl fmt::Display) {
        self.settings.push((name.to_owned(), value.to_string()));
    }

    /// Reads a text as the web UI does. Whatever is no setting is a part of the prompt.
    pub fn parse(text: &str) -> Self {
        let mut lines: Vec<&str> = text.trim().split('\n').collect();
        let mut settings = lines.last().map(|line| settings(line)).unwrap_or_default();
        if settings.len() < FEWEST {
            settings.clear();
        } else {
            lines.pop();
        }
        let (mut prompt, mut negative): (Vec<&str>, Option<Vec<&str>>) = (Vec::new(), None);
        for line in lines.into_iter().map(str::trim) {
            match (line.strip_prefix(NEGATIVE), &mut negative) {
                (Some(rest), lines) => lines.get_or_insert_default().push(rest.trim()),
                (None, Some(lines)) => lines.push(line),
                (None, None) => prompt.push(line),
            }
        }
        let mut read =
            Infotext { prompt: prompt.join("\n"), negative: negative.map(|lines| lines.join("\n")), settings };
        let mut exact = |name| {
            let at = read.settings.iter().position(|(n, _)| n == name)?;
            Some(read.settings.remove(at).1)
        };
        if let [Some(prompt), negative] = EXACT.map(&mut exact) {
            (read.prompt, read.negative) = (prompt, negative);
        }
        read
    }

    fn plain(&self) -> String {
        let mut text = format!("{}\n", self.prompt);
        if let Some(negative) = &self.negative {
            text += &format!("{NEGATIVE} {negative}\n");
        }
        let settings: Vec<_> = self.settings.iter().map(|(name, value)| format!("{name}: {}", quoted(value))).collect();
        text += &settings.join(", ");
        text.trim().to_owned()
    }
}

impl fmt::Display for Infotext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut exact = self.clone();
        let read = Infotext::parse(&self.plain());
        if (&read.prompt, &read.negative) != (&self.prompt, &self.negative) {
            exact.push(EXACT[0], &self.prompt);
            self.negative.iter().for_each(|negative| exact.push(EXACT[1], negative));
        }
        f.write_str(&exact.plain())
    }
}

/// A value as it stands in a line: a JSON string if it would not be read back as it is.
fn quoted(value: &str) -> String {
    let plain =
        !value.contains([',', ':', '\n']) && !value.starts_with('"') && value.trim() == value && !value.is_empty();
    if plain { value.to_owned() } else { serde_json::Value::from(value).to_string() }
}

/// The settings of a line: `name: value` up to a comma, where a name has at least two characters and begins with one of
/// a word, and a quoted value may hold commas. Whatever fits nowhere is passed over.
fn settings(line: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut rest = line;
    while let Some(first) = rest.chars().next() {
        match setting(rest.trim_start()) {
            Some((name, value, after)) => {
                found.push((name.to_owned(), unquoted(value)));
                rest = after;
            }
            None => rest = &rest[first.len_utf8()..],
        }
    }
    found
}

/// The name and value that `text` begins with, and what follows their comma.
fn setting(text: &str) -> Option<(&str, &str, &str)> {
    let word = |c: char| c.is_alphanumeric() || c == '_';
    let (name, after) = text.split_once(':')?;
    let mut letters = name.chars();
    let named = letters.next().is_some_and(word)
        && letters.next().is_some()
        && name.chars().all(|c| word(c) || matches!(c, ' ' | '-' | '/'));
    if !named {
        return None;
    }
    let after = after.trim_start();
    let end = quoted_end(after).or_else(|| after.find(',')).unwrap_or(after.len());
    let (value, after) = after.split_at(end);
    Some((name, value, after.strip_prefix(',').unwrap_or(after)))
}

/// Where a quoted value ends, if `text` begins with one that a comma or nothing follows.
fn quoted_end(text: &str) -> Option<usize> {
    let mut escaped = false;
    for (at, c) in text.strip_prefix('"')?.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => {
                let end = at + 2;
                return (text[end..].is_empty() || text[end..].starts_with(',')).then_some(end);
            }
            _ => {}
        }
    }
    None
}

fn unquoted(value: &str) -> String {
    let text = value.starts_with('"').then(|| serde_json::from_str(value).ok()).flatten();
    text.unwrap_or_else(|| value.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(prompt: &str, negative: Option<&str>, settings: &[(&str, &str)]) -> Infotext {
        let settings = settings.iter().map(|(n, v)| (n.to_string(), v.to_string())).collect();
        Infotext { prompt: prompt.into(), negative: negative.map(str::to_owned), settings }
    }

    const PLAIN: [(&str, &str); 3] = [("Steps", "4"), ("Sampler", "Euler a"), ("Size", "32x24")];

    #[test]
    fn a_plain_picture_reads_as_the_web_ui_writes_it() {
        let made = text("a cat,\non a roof", Some("fog"), &PLAIN);
        let written = "a cat,\non a roof\nNegative prompt: fog\nSteps: 4, Sampler: Euler a, Size: 32x24";
        assert_eq!(made.to_string(), written);
        assert_eq!(Infotext::parse(written), made);
    }

    #[test]
    fn every_text_reads_back() {
        let odd = ["", " ", "a", "a\n", "\na\n\nb ", "Negative prompt: x", "a\nNegative prompt:b\nNegative prompt: c"];
        let more = ["Steps: 3, Sampler: X, Seed: 9", "\"q\"", "\\", "日本 🐈\t\"x\" \\(y\\)", "a: b, c", "\r\n x"];
        let all = || odd.iter().chain(&more).copied();
        for prompt in all() {
            for negative in all().map(Some).chain([None]) {
                for value in all() {
                    let made = text(prompt, negative, &[&PLAIN[..], &[("Model", value), ("Eta", "0.5")]].concat());
                    assert_eq!(Infotext::parse(&made.to_string()), made, "{made}");
                }
            }
        }
    }

    /// Texts of other programs, read by the rule of the web UI's own regular expression.
    #[test]
    fn other_texts_read_as_the_web_ui_reads_them() {
        let read = Infotext::parse("cat <lora:x:1>\nSteps: 20, Lora hashes: \"x: 0123, y: 4\", , Version: v1.10.1");
        let settings = [("Steps", "20"), ("Lora hashes", "x: 0123, y: 4"), ("Version", "v1.10.1")];
        assert_eq!(read, text("cat <lora:x:1>", None, &settings));
        // Two settings are none.
        assert_eq!(Infotext::parse("a\nSteps: 20, Seed: 1"), text("a\nSteps: 20, Seed: 1", None, &[]));
        assert_eq!(Infotext::parse(""), Infotext::default());
        // A quote that does not end is a value up to the comma; a name of one letter is none.
        let read = Infotext::parse("Steps: 1, Model: \"a, x: 1, Seed: 2, Size: 8x8");
        let settings = [("Steps", "1"), ("Model", "\"a"), ("Seed", "2"), ("Size", "8x8")];
        assert_eq!(read, text("", None, &settings));
    }
}
