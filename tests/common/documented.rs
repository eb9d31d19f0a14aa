//! The commands that the documentation shows, so that tests can hold it to them.
//!
//! They are taken from unindented lines of fenced blocks and from code spans in the text, as a shell would read them:
//! lists at `&&` and `;`, settings of the environment before a command, quotes, and comments.

use std::ops::Range;
use std::path::{Path, PathBuf};

/// Folders that have documentation.
const FOLDERS: [&str; 6] = ["", "kernels", "packer", "tests", "tests/emulator", "tools"];

/// One command.
#[derive(Clone, Debug, PartialEq)]
pub struct Command {
    /// File and line.
    pub place: String,
    /// Name of the program, then its arguments.
    pub words: Vec<String>,
    /// Whether the text only speaks of it: a program and no more than the name of a subcommand, within a sentence.
    pub mention: bool,
}

impl Command {
    /// The program.
    pub fn program(&self) -> &str {
        &self.words[0]
    }

    /// Its arguments.
    pub fn args(&self) -> &[String] {
        &self.words[1..]
    }

    /// The argument after one of `names`.
    pub fn option(&self, names: &[&str]) -> Option<&str> {
        let at = self.words.iter().position(|word| names.contains(&word.as_str()))?;
        self.words.get(at + 1).map(String::as_str)
    }
}

/// The top of the sources.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Every command of the documentation in the order of its text, each once. What `cargo run` starts is a command of its
/// own, after it.
pub fn commands() -> Vec<Command> {
    let mut all: Vec<Command> = Vec::new();
    for folder in FOLDERS {
        let entries = std::fs::read_dir(root().join(folder)).into_iter().flatten();
        let mut files: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
        files.retain(|path| path.extension().is_some_and(|e| e == "md"));
        files.sort();
        for file in files {
            let text = std::fs::read_to_string(&file).expect("text");
            let name = Path::new(folder).join(file.file_name().expect("a file"));
            for command in of(&name.display().to_string(), &text) {
                if !all.iter().any(|other| other.words == command.words) {
                    all.push(command);
                }
            }
        }
    }
    all
}

/// The commands of one text.
pub fn of(file: &str, text: &str) -> Vec<Command> {
    let mut all = Vec::new();
    for (range, fenced) in code(text) {
        let place = format!("{file}:{}", text[..range.start].matches('\n').count() + 1);
        for words in split(&text[range]) {
            let mention = !fenced && words.len() <= 2;
            let inner = inner(&words);
            if known(&words) {
                all.push(Command { place: place.clone(), words, mention });
            }
            all.extend(inner.map(|words| Command { place: place.clone(), words, mention: false }));
        }
    }
    all
}

/// Whether `words` begin with a program that the documentation has to get right, and say more than its name.
fn known(words: &[String]) -> bool {
    let program = words.first().map_or("", String::as_str);
    // `aquatint = { .. }` is a line of a Cargo.toml.
    program.starts_with(".ci/")
        || words.len() > 1 && words[1] != "=" && ["aquatint", "cargo", "packer", "python", "python3"].contains(&program)
}

/// What `cargo run` starts.
fn inner(words: &[String]) -> Option<Vec<String>> {
    let end = words.iter().position(|word| word == "--")?;
    if !words.starts_with(&["cargo".into(), "run".into()]) {
        return None;
    }
    let package = words[..end].windows(2).find(|pair| pair[0] == "-p").map(|pair| pair[1].as_str());
    let program = match package {
        None => "aquatint",
        Some("packer") => "packer",
        Some(_) => return None,
    };
    Some([program.to_owned()].into_iter().chain(words[end + 1..].iter().cloned()).collect())
}

/// Lines of fenced blocks that are not indented, and code spans elsewhere, in order; and which they are.
fn code(text: &str) -> Vec<(Range<usize>, bool)> {
    let (mut all, mut fenced, mut open) = (Vec::new(), false, None);
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        if line.starts_with("```") {
            (fenced, open) = (!fenced, None);
        } else if fenced && !line.starts_with(char::is_whitespace) {
            all.push((at..at + line.len(), true));
        } else if !fenced {
            if line.trim().is_empty() {
                open = None; // A span ends with its paragraph.
            }
            for (i, _) in line.match_indices('`') {
                match open.take() {
                    Some(start) => all.push((start..at + i, false)),
                    None => open = Some(at + i + 1),
                }
            }
        }
        at += line.len();
    }
    all
}

/// The commands of a line as words, without settings of the environment.
pub fn split(line: &str) -> Vec<Vec<String>> {
    let mut commands = vec![Vec::new()];
    let (mut word, mut quote) = (None::<String>, None);
    let mut chars = line.chars().peekable();
    let end = |word: &mut Option<String>, commands: &mut Vec<Vec<String>>| {
        let words = commands.last_mut().expect("never empty");
        // A prompt, or a setting before the command.
        words.extend(word.take().filter(|word| !words.is_empty() || (word != "$" && !is_setting(word))));
    };
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some(q), _) if c == q => quote = None,
            (None, '"' | '\'') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, '#') if word.is_none() => break,
            (None, ';' | '|') => {
                end(&mut word, &mut commands);
                commands.push(Vec::new());
            }
            (None, '&') if chars.next_if_eq(&'&').is_some() => {
                end(&mut word, &mut commands);
                commands.push(Vec::new());
            }
            (None, _) if c.is_whitespace() => end(&mut word, &mut commands),
            _ => word.get_or_insert_default().push(c),
        }
    }
    end(&mut word, &mut commands);
    commands.retain(|words| !words.is_empty());
    commands
}

fn is_setting(word: &str) -> bool {
    let name = word.split_once('=').map_or("", |(name, _)| name);
    !name.is_empty() && name.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_')
}
