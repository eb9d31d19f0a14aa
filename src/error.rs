//! The one error type of the library.
//!
//! Every variant says what was wrong, where, what was expected and what was found; the message of a
//! request error also names the remedy. The library never prints and never exits: that is the command line's duty.

use std::{fmt, io, path::PathBuf};

/// Shorthand for results of this library.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What an error is about, for programs that must tell errors apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The file is damaged, of another version, or no `.aqt` file.
    Format,
    /// A network cannot take these dims.
    Shape,
    /// There is too little memory; a smaller request may fit.
    Memory,
    /// The model has no such class.
    Class,
    /// Another option or input does not fit the model.
    Request,
    /// The device or its driver.
    Device,
    /// A file cannot be read or written.
    Io,
}

/// Anything that can go wrong between a file on disk and a picture.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The bytes are not a sound `.aqt` file.
    Format {
        /// The section (or `header`) in which the fault lies.
        section: &'static str,
        /// Byte offset of the fault from the start of that section.
        offset: u64,
        /// The field or record that is at fault.
        what: String,
        /// What a sound file has there.
        expected: String,
        /// What this file has there.
        got: String,
    },
    /// A program cannot be bound: an operand's shape or type breaks a rule of its op.
    Shape {
        /// Module path of the node, as the source model names it.
        path: String,
        /// The operand or attribute at fault.
        what: String,
        /// What the shape rule asks for.
        expected: String,
        /// What the operand has.
        got: String,
    },
    /// The caller asked for something this model or machine cannot do.
    Request {
        /// What it is about: [`ErrorKind::Memory`], [`ErrorKind::Class`] or [`ErrorKind::Request`].
        kind: ErrorKind,
        /// The option or input at fault.
        what: String,
        /// What would be accepted.
        expected: String,
        /// What was asked for.
        got: String,
    },
    /// A device or its driver cannot do what is needed, or failed at it.
    Device {
        /// What it is about: [`ErrorKind::Memory`] or [`ErrorKind::Device`].
        kind: ErrorKind,
        /// What was being done, or what is lacking.
        what: String,
        /// What would work; names the remedy.
        expected: String,
        /// What there is, or what the driver answered.
        got: String,
    },
    /// The operating system refused an operation on a file.
    Io {
        /// What was being done, as a verb phrase: `read`, `write`, `map`.
        action: &'static str,
        /// The file it was done to.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

impl Error {
    /// A format error; `offset` counts bytes from the start of `section`.
    pub fn format(
        section: &'static str,
        offset: impl TryInto<u64>,
        what: impl Into<String>,
        expected: impl fmt::Display,
        got: impl fmt::Display,
    ) -> Self {
        Error::Format {
            section,
            offset: offset.try_into().unwrap_or(u64::MAX),
            what: what.into(),
            expected: expected.to_string(),
            got: got.to_string(),
        }
    }

    /// A shape error of the node at module path `path`.
    pub fn shape(
        path: impl Into<String>,
        what: impl Into<String>,
        expected: impl fmt::Display,
        got: impl fmt::Display,
    ) -> Self {
        Error::Shape { path: path.into(), what: what.into(), expected: expected.to_string(), got: got.to_string() }
    }

    /// A request error.
    pub fn request(what: impl Into<String>, expected: impl fmt::Display, got: impl fmt::Display) -> Self {
        let (expected, got) = (expected.to_string(), got.to_string());
        Error::Request { kind: ErrorKind::Request, what: what.into(), expected, got }
    }

    /// The request error that there is no such class.
    pub fn class(expected: impl fmt::Display, got: impl fmt::Display) -> Self {
        let (what, expected, got) = ("class label".into(), expected.to_string(), got.to_string());
        Error::Request { kind: ErrorKind::Class, what, expected, got }
    }

    /// The request error that `what` does not fit the memory.
    pub fn memory(what: impl Into<String>, expected: impl fmt::Display, got: impl fmt::Display) -> Self {
        let (expected, got) = (expected.to_string(), got.to_string());
        Error::Request { kind: ErrorKind::Memory, what: what.into(), expected, got }
    }

    /// A device error.
    pub fn device(what: impl Into<String>, expected: impl fmt::Display, got: impl fmt::Display) -> Self {
        let (expected, got) = (expected.to_string(), got.to_string());
        Error::Device { kind: ErrorKind::Device, what: what.into(), expected, got }
    }

    /// The device error that `what` does not fit the device's memory.
    pub fn device_memory(what: impl Into<String>, expected: impl fmt::Display, got: impl fmt::Display) -> Self {
        let (expected, got) = (expected.to_string(), got.to_string());
        Error::Device { kind: ErrorKind::Memory, what: what.into(), expected, got }
    }

    /// What the error is about.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::Format { .. } => ErrorKind::Format,
            Error::Shape { .. } => ErrorKind::Shape,
            Error::Request { kind, .. } | Error::Device { kind, .. } => *kind,
            Error::Io { .. } => ErrorKind::Io,
        }
    }

    /// An I/O error on `path`; for use with `map_err`.
    pub fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Error::Io { action, path, source }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Format { section, offset, what, expected, got } => {
                write!(
                    f,
                    "not a sound .aqt file: {section} section, byte {offset}: {what}: expected {expected}, got {got}"
                )
            }
            Error::Shape { path, what, expected, got } => write!(f, "{path}: {what}: expected {expected}, got {got}"),
            Error::Request { what, expected, got, .. } | Error::Device { what, expected, got, .. } => {
                write!(f, "{what}: expected {expected}, got {got}")
            }
            Error::Io { action, path, source } => write!(f, "cannot {action} {}: {source}", path.display()),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}

/// Characters of the longest line that a program says an error in.
pub const LONGEST_LINE: usize = 300;
/// Of these, those that are kept of a longer message's end, which says what was found.
const TAIL: usize = 120;

/// `error` as a program says it: `error: `, then [`one_line`] of at most [`LONGEST_LINE`] characters in all. Of a longer
/// message the middle is left out.
///
/// ```
/// let line = aquatint::error::error_line(&format!("a list: expected {}, got\nnone", "0.1, ".repeat(999)));
/// assert!(line.starts_with("error: a list: expected 0.1, ") && line.ends_with(r"0.1, , got\nnone"));
/// assert_eq!(line.chars().count(), aquatint::error::LONGEST_LINE);
/// ```
pub fn error_line(error: &dyn fmt::Display) -> String {
    let line = one_line(&format!("error: {error}"));
    let count = line.chars().count();
    if count <= LONGEST_LINE {
        return line;
    }
    let gap = " ... ";
    let head = LONGEST_LINE - TAIL - gap.len();
    line.chars().take(head).chain(gap.chars()).chain(line.chars().skip(count - TAIL)).collect()
}

/// `text` on one line: control characters are escaped as Rust would write them, `\n` for a line end. Messages quote names
/// of files, tensors and classes, which may hold any character; programs pass what they print through this.
///
/// ```
/// assert_eq!(aquatint::error::one_line("évil\n\u{2028}name"), r"évil\n\u{2028}name");
/// ```
pub fn one_line(text: &str) -> String {
    let separates = |c: char| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}');
    text.chars().flat_map(|c| if separates(c) { c.escape_default().collect() } else { vec![c] }).collect()
}
