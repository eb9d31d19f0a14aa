//! Pictures as text, and back.

use crate::refusal::Refusal;
use crate::settings::Limits;
use aquatint::image::Picture;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

/// With or without padding, as clients send it.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Bytes as base64.
pub fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// The bytes of `text`: base64, or a `data:` URL of it. Nothing is ever fetched.
///
/// # Errors
/// Another URL, or no base64.
pub fn decode_bytes(field: &str, text: &str) -> Result<Vec<u8>, Refusal> {
    let text = text.trim();
    let data = match text.split_once(',') {
        Some((head, data)) if head.starts_with("data:") && head.ends_with(";base64") => data,
        _ if text.contains("://") || text.starts_with("data:") => {
            let message = "expected base64 or a data: URL of it; nothing is fetched for a client";
            return Err(Refusal::field(field, message));
        }
        _ => text,
    };
    LENIENT.decode(data).map_err(|e| Refusal::field(field, format!("expected base64: {e}")))
}

/// The picture in `text`.
///
/// # Errors
/// Those of [`decode_bytes`], and bytes that are no picture, or too large a one.
pub fn decode_picture(field: &str, text: &str, limits: &Limits) -> Result<Picture, Refusal> {
    Ok(Picture::from_bytes(&decode_bytes(field, text)?, field, limits.pixels)?)
}
