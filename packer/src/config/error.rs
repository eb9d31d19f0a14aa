//! What can be wrong with a quantization configuration.

use std::{fmt, io, path::PathBuf};

/// Why a configuration is refused. Every message names where, what, and the remedy.
#[derive(Debug)]
pub enum ConfigError {
    /// The argument is neither a SPEC nor an existing file.
    Argument {
        /// What was given.
        got: String,
        /// Why it is not a SPEC.
        fault: Box<SpecFault>,
    },
    /// The file cannot be read.
    Io {
        /// The file that cannot be read.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The file is not of its format, or not of the expected structure.
    Syntax {
        /// The configuration: a file, or a SPEC.
        origin: String,
        /// What is wrong, with the position where the format's reader gives one.
        reason: String,
    },
    /// A key has a value that is not a precision.
    Value {
        /// The configuration: a file, or a SPEC.
        origin: String,
        /// The layer, glob, or option.
        key: String,
        /// What it was set to.
        value: String,
        /// What is wrong with it, and what is accepted.
        fault: Box<SpecFault>,
    },
    /// Layers that neither a key nor a default covers.
    Unmatched {
        /// The configuration: a file, or a SPEC.
        origin: String,
        /// The first few of them.
        layers: Vec<String>,
        /// How many there are.
        count: usize,
    },
    /// Keys that match no layer of the model.
    Unknown {
        /// The configuration: a file, or a SPEC.
        origin: String,
        /// The first of them.
        key: String,
        /// Layers with similar names, nearest first.
        nearest: Vec<String>,
        /// How many such keys there are.
        count: usize,
    },
    /// Two keys of equal rank that disagree about a layer.
    Conflict {
        /// The configuration: a file, or a SPEC.
        origin: String,
        /// The layer that both are about.
        layer: String,
        /// Both keys, each with its value.
        keys: [String; 2],
    },
}

/// What is wrong with a precision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpecFault {
    /// The part at fault.
    pub what: &'static str,
    /// What that part may be.
    pub expected: &'static str,
    /// What it is.
    pub got: String,
}

impl fmt::Display for SpecFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: expected {}, got `{}`", self.what, self.expected, self.got)
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConfigError::Argument { got, fault } => write!(
                f,
                "--q-config `{got}`: no file of that name, and not a precision such as w4a8 or w4a8:kmeans: {fault}"
            ),
            ConfigError::Io { path, source } => write!(f, "cannot read {}: {source}", path.display()),
            ConfigError::Syntax { origin, reason } => write!(f, "{origin}: {reason}"),
            ConfigError::Value { origin, key, value, fault } => write!(f, "{origin}: `{key}` = `{value}`: {fault}"),
            ConfigError::Unmatched { origin, layers, count } => {
                let more = count.saturating_sub(layers.len());
                let tail = if more > 0 { format!(" and {more} more") } else { String::new() };
                write!(
                    f,
                    "{origin}: no entry for {count} of the model's layers: {}{tail}; add them, or a `default`",
                    layers.join(", ")
                )
            }
            ConfigError::Unknown { origin, key, nearest, count } => {
                let others = if *count > 1 { format!(" (and {} other keys)", count - 1) } else { String::new() };
                write!(f, "{origin}: `{key}`{others} matches no layer of this model; nearest: {}", nearest.join(", "))
            }
            ConfigError::Conflict { origin, layer, keys: [a, b] } => {
                write!(f, "{origin}: {layer} is set twice: {a} and {b}; remove one, or name the layer itself")
            }
        }
    }
}

impl std::error::Error for ConfigError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            ConfigError::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}
