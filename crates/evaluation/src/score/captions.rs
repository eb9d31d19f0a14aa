//! Captions of pictures of letters, one a line.

use super::colours::{COLOURS, Colours};
use aquatint::{Error, Result};

/// Styles that captions name; one that names none means the first.
pub const STYLES: [&str; 3] = ["plain", "bold", "italic"];

/// What a caption asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// The letter, A = 0.
    pub letter: usize,
    /// The two colours.
    pub colours: Colours,
    /// One of [`STYLES`].
    pub style: usize,
}

/// A file of captions.
#[derive(Clone, Debug)]
pub struct Captions {
    source: String,
    /// Line numbers, from 1, and what they say; empty lines left out.
    lines: Vec<(usize, String)>,
    /// What they ask for; none of a caption that does not say.
    attributes: Vec<Option<Attributes>>,
}

impl Captions {
    /// The captions of a text; messages call it `source`.
    ///
    /// # Errors
    /// [`Error::Request`] if there are none.
    pub fn new(source: &str, text: &str) -> Result<Self> {
        let lines = text.lines().enumerate().map(|(i, line)| (i + 1, line.trim().to_owned()));
        let lines: Vec<_> = lines.filter(|(_, line)| !line.is_empty()).collect();
        if lines.is_empty() {
            return Err(Error::request(source, "at least one caption", "none"));
        }
        let attributes = lines.iter().map(|(_, line)| Attributes::of(line)).collect();
        Ok(Captions { source: source.to_owned(), lines, attributes })
    }

    /// Captions.
    pub fn count(&self) -> usize {
        self.lines.len()
    }

    /// The caption of an image: the first again after the last.
    pub fn of(&self, image: usize) -> &str {
        &self.lines[image % self.lines.len()].1
    }

    /// What is asked for of an image whose caption says so.
    pub(crate) fn asked(&self, image: usize) -> Attributes {
        self.attributes[image % self.lines.len()].expect("captions are checked before images are scored")
    }

    /// Refuses captions that do not say what there is to see.
    pub(crate) fn check(&self) -> Result<()> {
        match self.lines.iter().zip(&self.attributes).find(|(_, attributes)| attributes.is_none()) {
            None => Ok(()),
            Some(((number, line), _)) => {
                let expected = "a letter A to Z alone, a colour, and another colour after \"on\"; or --score-n 0";
                Err(Error::request(format!("{}:{number}", self.source), expected, format!("\"{line}\"")))
            }
        }
    }
}

impl Attributes {
    /// What `caption` asks for: the one capital that stands alone, the colour after "on" or "on a" as background, and the
    /// other colour of two as ink; none if it does not say that.
    pub fn of(caption: &str) -> Option<Self> {
        let words: Vec<&str> = caption.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).collect();
        let colour = |word: &str| COLOURS.iter().position(|(name, _)| *name == word);
        let letter = only(words.iter().filter_map(|word| match word.as_bytes() {
            [letter @ b'A'..=b'Z'] => Some(usize::from(letter - b'A')),
            _ => None,
        }))?;
        let after = |at: usize| words.get(if words.get(at + 1) == Some(&"a") { at + 2 } else { at + 1 });
        let on = words.iter().enumerate().filter(|(_, word)| **word == "on");
        let background = colour(only(on.filter_map(|(at, _)| after(at)))?)?;
        let [first, second] = words.iter().filter_map(|word| colour(word)).collect::<Vec<_>>()[..] else { return None };
        let ink = if first == background { second } else { first };
        let style = STYLES.iter().position(|style| words.contains(style)).unwrap_or(0);
        (first == background || second == background).then_some(Attributes {
            letter,
            colours: Colours { ink, background },
            style,
        })
    }
}

/// The item of an iterator that has one alone.
fn only<T>(mut items: impl Iterator<Item = T>) -> Option<T> {
    items.next().filter(|_| items.next().is_none())
}
