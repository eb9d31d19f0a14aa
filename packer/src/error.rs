//! The packer's errors: the library's, and those of quantization configurations.

use crate::config::ConfigError;
use std::fmt;

/// Shorthand for results of the packer.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Anything that can stop the packer.
#[derive(Debug)]
pub enum Error {
    /// The model, the packed file or the system is at fault.
    Core(aquatint::Error),
    /// A quantization configuration is at fault.
    Config {
        /// The component that it is for.
        component: &'static str,
        /// What is wrong.
        source: Box<ConfigError>,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Core(e) => e.fmt(f),
            Error::Config { component, source } => write!(f, "quantization of the {component}: {source}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Core(e) => e.source(),
            Error::Config { source, .. } => source.source(),
        }
    }
}

impl From<aquatint::Error> for Error {
    fn from(e: aquatint::Error) -> Self {
        Error::Core(e)
    }
}
