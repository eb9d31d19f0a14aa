//! Networks that a file need not hold, because another model gives them.

use super::Tensors;
use super::pipeline::{FIRST_STAGE, TEXTS};
use aquatint::error::{Error, Result};

/// Which networks are not to be read from the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Elsewhere {
    /// The autoencoder.
    pub autoencoder: bool,
    /// All text encoders.
    pub text: bool,
}

/// What `read` gives, unless the network is `elsewhere`.
///
/// # Errors
/// [`Error::Request`] if it is not, and no tensor of the file has a name that begins with one of `prefixes`.
pub(super) fn own<T>(
    tensors: &dyn Tensors,
    elsewhere: bool,
    (prefixes, what, option): (&[&str], &str, &str),
    read: impl FnOnce() -> Result<T>,
) -> Result<Option<T>> {
    if elsewhere {
        return Ok(None);
    }
    if !tensors.keys().iter().any(|key| prefixes.iter().any(|prefix| key.starts_with(prefix))) {
        let expected = format!("{what} in the file, or another model's by {option} MODEL");
        return Err(Error::request(format!("model {}", tensors.name()), expected, "none"));
    }
    read().map(Some)
}

/// The autoencoder's names, and what else to say of it; see [`own`].
pub(super) const AUTOENCODER: (&[&str], &str, &str) = (&[FIRST_STAGE], "an autoencoder", "--vae");
/// The same of text encoders.
pub(super) const ENCODER: (&[&str], &str, &str) = (&TEXTS, "a text encoder", "--text-encoder");
