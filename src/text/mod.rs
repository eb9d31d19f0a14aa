//! From prompts to what a text encoder reads, and from its features to weighted ones.
//!
//! ```text
//! prompt --parse--> pieces with weights --Tokenizer--> tokens --> Chunks --text encoder--> features --apply_weights-->
//! ```
//!
//! CLIP reads a fixed number of tokens, 77: one begins the text, one ends it, padding follows. Longer prompts are cut into
//! [`Chunks`] of that size, whose features are put one after another. Others read one text: at its own length, or filled
//! up, and are told how long it is. Pure functions on strings and slices.

pub mod base64;
mod charsmap;
mod chunks;
mod family;
mod foreign;
mod syntax;
mod tokenizer;

pub use chunks::{COMMA_BACKTRACK, Chunks, encode};
pub use family::{CLIP_NORMALIZER, Family, SENTENCE_PIECE_PRE_TOKENIZER};
pub use foreign::{Foreign, foreign};
pub use syntax::{Piece, parse};
pub use tokenizer::{Token, Tokenizer};

/// How a prompt is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PromptStyle {
    /// Every character counts as text; what the encoder does not read at once is cut off, as diffusers' pipelines do.
    Plain,
    /// With weights and, where the encoder reads chunks, `BREAK` and any number of them; see [`parse`].
    #[default]
    Weighted,
}

/// Multiplies the features of each token by its weight, and then all of them by one number that restores their mean,
/// as AUTOMATIC1111's web UI does.
///
/// `output` is what the encoder made of one chunk, `(tokens, columns)`, of which the first `features` columns are
/// features and the others, the vector of the whole text, stay as they are. `weights` has one entry per token. If all
/// weights are 1, not a bit changes; if the weighted mean is 0, it cannot be restored and is left so.
///
/// # Panics
/// If `output` has not as many rows as there are weights, or fewer columns than `features`: a bug of the caller.
pub fn apply_weights(output: &mut [f32], features: usize, weights: &[f32]) {
    if weights.iter().all(|&w| w == 1.0) {
        return;
    }
    let columns = output.len() / weights.len();
    assert!(columns * weights.len() == output.len() && features <= columns, "{columns} columns, {features} features");
    let sum = |output: &[f32]| {
        let rows = output.chunks_exact(columns).map(|row| row[..features].iter().map(|&v| f64::from(v)).sum::<f64>());
        rows.sum::<f64>()
    };
    let before = sum(output);
    for (row, &weight) in output.chunks_exact_mut(columns).zip(weights) {
        row[..features].iter_mut().for_each(|v| *v *= weight);
    }
    // The number of features cancels out of the ratio of means.
    let after = sum(output);
    if after == 0.0 {
        return;
    }
    let restore = (before / after) as f32;
    for row in output.chunks_exact_mut(columns) {
        row[..features].iter_mut().for_each(|v| *v *= restore);
    }
}
