//! The prompt syntax of AUTOMATIC1111's web UI.

/// Factor of a pair of round brackets; square ones divide by it.
const EMPHASIS: f64 = 1.1;

/// A part of a prompt.
#[derive(Clone, Debug, PartialEq)]
pub enum Piece {
    /// Text of one weight.
    Text {
        /// The text, escapes resolved.
        text: String,
        /// What its features are multiplied with.
        weight: f32,
    },
    /// What follows begins a new chunk.
    Break,
}

/// Splits a prompt by weight.
///
/// * `(word)` weighs 1.1, `[word]` 1 / 1.1, `(word:1.3)` 1.3; nested brackets multiply.
/// * `\(`, `\)`, `\[`, `\]`, `\\` are the signs themselves; any other backslash disappears.
/// * `BREAK`, in capitals and as a word of its own, begins a new chunk, also within brackets.
/// * A bracket that is never closed reaches to the end; one that was never opened is text, and so is a weight outside of
///   round brackets or one that is no number. Round and square brackets need not be nested in each other.
///
/// Neighbours of equal weight are one piece, so a prompt without syntax comes back whole. An empty prompt is one empty
/// piece.
pub fn parse(prompt: &str) -> Vec<Piece> {
    let mut parts = Parts::default();
    let mut rest = prompt;
    while let Some(first) = rest.chars().next() {
        let mut used = first.len_utf8();
        match first {
            '\\' => {
                let escaped = rest[1..].chars().next().filter(|c| "()[]\\".contains(*c));
                used += escaped.map_or(0, char::len_utf8);
                parts.text(&rest[1..used]);
            }
            '(' => parts.round.push(parts.list.len()),
            '[' => parts.square.push(parts.list.len()),
            ')' if !parts.round.is_empty() => parts.close_round(EMPHASIS),
            ']' if !parts.square.is_empty() => parts.close_square(),
            ':' if !parts.round.is_empty() => match weight(rest) {
                Some((weight, bytes)) => {
                    parts.close_round(weight);
                    used = bytes;
                }
                None => parts.text(":"),
            },
            ')' | ']' | ':' => parts.text(&rest[..1]),
            _ => {
                used = rest.find(['\\', '(', ')', '[', ']', ':']).unwrap_or(rest.len());
                parts.words(&rest[..used]);
            }
        }
        rest = &rest[used..];
    }
    parts.finish()
}

/// Reads `: 1.3 )`: the number and the bytes of all of it.
fn weight(text: &str) -> Option<(f64, usize)> {
    let (number, _) = text.strip_prefix(':')?.split_once(')')?;
    let trimmed = number.trim();
    let digits = trimmed.strip_prefix(['+', '-']).unwrap_or(trimmed);
    // `parse` would also take exponents and the names of what is no number.
    if !digits.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        return None;
    }
    Some((trimmed.parse().ok()?, number.len() + 2))
}

/// Text and weight, or a break.
type Part = Option<(String, f64)>;

#[derive(Default)]
struct Parts {
    list: Vec<Part>,
    /// First part within each bracket that is open.
    round: Vec<usize>,
    square: Vec<usize>,
}

impl Parts {
    fn text(&mut self, text: &str) {
        self.list.push(Some((text.to_owned(), 1.0)));
    }

    /// Adds text that may hold breaks.
    fn words(&mut self, text: &str) {
        const BREAK: &str = "BREAK";
        let word = |c: char| c.is_alphanumeric() || c == '_';
        let (mut from, mut at) = (0, 0);
        while let Some(found) = text[at..].find(BREAK) {
            let (start, end) = (at + found, at + found + BREAK.len());
            if !text[..start].ends_with(word) && !text[end..].starts_with(word) {
                self.text(text[from..start].trim_end());
                self.list.push(None);
                from = end;
            }
            at = end;
        }
        self.text(if from == 0 { text } else { text[from..].trim_start() });
    }

    fn multiply(&mut self, from: usize, factor: f64) {
        for (_, weight) in self.list[from..].iter_mut().flatten() {
            *weight *= factor;
        }
    }

    fn close_round(&mut self, factor: f64) {
        if let Some(from) = self.round.pop() {
            self.multiply(from, factor);
        }
    }

    fn close_square(&mut self) {
        if let Some(from) = self.square.pop() {
            self.multiply(from, 1.0 / EMPHASIS);
        }
    }

    fn finish(mut self) -> Vec<Piece> {
        while !self.round.is_empty() {
            self.close_round(EMPHASIS);
        }
        while !self.square.is_empty() {
            self.close_square();
        }
        let mut merged: Vec<Part> = Vec::new();
        for part in self.list {
            match (merged.last_mut(), part) {
                (Some(Some((text, weight))), Some((more, same))) if *weight == same => text.push_str(&more),
                (_, part) => merged.push(part),
            }
        }
        if merged.is_empty() {
            merged.push(Some((String::new(), 1.0)));
        }
        let piece = |part: Part| match part {
            Some((text, weight)) => Piece::Text { text, weight: weight as f32 },
            None => Piece::Break,
        };
        merged.into_iter().map(piece).collect()
    }
}
