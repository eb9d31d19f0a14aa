//! CLIP's text encoders in single files: under transformers' names, or OpenCLIP's.

use super::text::TextEncoder;
use super::{Entry, Network};
use crate::source::view::Part;
use aquatint::error::Result;

/// What follows the prefix where a file has the names of transformers before version 5.
const MODEL: &str = "text_model.";

/// The structure of an encoder under transformers' names, with or without [`MODEL`] before them: OpenAI's CLIP.
///
/// # Errors
/// [`Error::Request`](aquatint::Error::Request) for the first tensor that is missing or has too few axes.
pub(super) fn read_transformers(net: Network) -> Result<(TextEncoder, String)> {
    let bare = net.has("embeddings.token_embedding.weight");
    let prefix = format!("{}{}", net.prefix, if bare { "" } else { MODEL });
    let net = Network { prefix: &prefix, ..net };
    let encoder = TextEncoder {
        vocabulary: net.dim("embeddings.token_embedding.weight", 0)?,
        tokens: net.dim("embeddings.position_embedding.weight", 0)?,
        features: net.dim("embeddings.token_embedding.weight", 1)?,
        inner: net.dim("encoder.layers.0.mlp.fc1.weight", 0)?,
        layers: net.count(|i| format!("encoder.layers.{i}.mlp.fc1.weight")),
        projection: None,
        activation: "quick_gelu",
    };
    Ok((encoder, prefix))
}

/// Where a file has the tensors of `encoder` under transformers' names; `prefix` includes [`MODEL`] if the file has it.
pub(super) fn transformers_entries(encoder: &TextEncoder, prefix: &str) -> Vec<Entry> {
    let entry = |(key, dims): (String, Vec<usize>)| {
        // The projection is no part of the model that it follows.
        let prefix = if key.starts_with(MODEL) { prefix } else { prefix.strip_suffix(MODEL).unwrap_or(prefix) };
        let source = format!("{prefix}{}", key.strip_prefix(MODEL).unwrap_or(&key));
        Entry { source, key, source_dims: dims.clone(), dims, part: Part::Whole }
    };
    encoder.tensors().0.into_iter().map(entry).collect()
}

/// The structure of an encoder under OpenCLIP's names.
///
/// # Errors
/// [`Error::Request`](aquatint::Error::Request) for the first tensor that is missing or has too few axes.
pub(super) fn read_openclip(net: Network) -> Result<TextEncoder> {
    Ok(TextEncoder {
        vocabulary: net.dim("token_embedding.weight", 0)?,
        tokens: net.dim("positional_embedding", 0)?,
        features: net.dim("token_embedding.weight", 1)?,
        inner: net.dim("transformer.resblocks.0.mlp.c_fc.weight", 0)?,
        layers: net.count(|i| format!("transformer.resblocks.{i}.mlp.c_fc.weight")),
        projection: Some(net.dim("text_projection", 1)?),
        activation: "gelu",
    })
}

/// Where a file whose names begin with `prefix` has the tensors of `encoder` under OpenCLIP's names.
pub(super) fn openclip_entries(encoder: &TextEncoder, prefix: &str) -> Vec<Entry> {
    let entry = |(key, dims): (String, Vec<usize>)| {
        let (name, part) = name(&key, dims[0]);
        let mut source_dims = dims.clone();
        match part {
            Part::Transposed => source_dims.reverse(),
            Part::Rows(_) => source_dims[0] *= 3,
            _ => {}
        }
        Entry { source: format!("{prefix}{name}"), key, dims, source_dims, part }
    };
    encoder.tensors().0.into_iter().map(entry).collect()
}

/// The name of the tensor called `key`, which has so many rows, and which part of it is meant.
fn name(key: &str, rows: usize) -> (String, Part) {
    let parts: Vec<&str> = key.strip_prefix(MODEL).unwrap_or(key).split('.').collect();
    let whole = |name: String| (name, Part::Whole);
    match &parts[..] {
        ["embeddings", "token_embedding", last] => whole(format!("token_embedding.{last}")),
        ["embeddings", "position_embedding", _] => whole("positional_embedding".into()),
        ["final_layer_norm", last] => whole(format!("ln_final.{last}")),
        // A vector is multiplied with it from the left there.
        ["text_projection", _] => ("text_projection".into(), Part::Transposed),
        ["encoder", "layers", layer, rest @ ..] => {
            let block = format!("transformer.resblocks.{layer}");
            let fused = |which: usize, last: &str| {
                (format!("{block}.attn.in_proj_{last}"), Part::Rows(which * rows..(which + 1) * rows))
            };
            match rest {
                ["self_attn", "q_proj", last] => fused(0, last),
                ["self_attn", "k_proj", last] => fused(1, last),
                ["self_attn", "v_proj", last] => fused(2, last),
                ["self_attn", name, last] => whole(format!("{block}.attn.{name}.{last}")),
                ["layer_norm1", last] => whole(format!("{block}.ln_1.{last}")),
                ["layer_norm2", last] => whole(format!("{block}.ln_2.{last}")),
                ["mlp", "fc1", last] => whole(format!("{block}.mlp.c_fc.{last}")),
                ["mlp", "fc2", last] => whole(format!("{block}.mlp.c_proj.{last}")),
                _ => unreachable!("{key}: a tensor of a layer of CLIP"),
            }
        }
        _ => unreachable!("{key}: a tensor of CLIP"),
    }
}
