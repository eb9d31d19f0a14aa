//! T5's encoder and its tokenizer alone, as pipelines have them.

use super::{WriteFile, normal, object, sentence_piece, write_json};
use crate::error::Result;
use crate::lower::{TEXT_ENCODERS, t5};
use crate::source::diffusers::Object;
use crate::weight::Weights;
use aquatint::raw::program::Role;
use aquatint::raw::whole_file::WholeDirectory;
use serde_json::{Value, json};
use std::path::Path;

/// What `config.json` of T5 v1.1 XXL holds.
pub(super) fn xxl() -> Object {
    object(json!({
        "architectures": ["T5EncoderModel"],
        "d_ff": 10240,
        "d_kv": 64,
        "d_model": 4096,
        "feed_forward_proj": "gated-gelu",
        "layer_norm_epsilon": 1e-6,
        "model_type": "t5",
        "num_heads": 64,
        "num_layers": 24,
        "relative_attention_max_distance": 128,
        "relative_attention_num_buckets": 32,
        "vocab_size": 32128,
    }))
}

/// Names and axes of all tensors, the table of tokens by both of its names, and the name that decides about values.
fn list(config: &Object) -> Result<Vec<(String, Vec<usize>, String)>> {
    let [(folder, _), _] = TEXT_ENCODERS;
    let mut weights = Weights::new();
    let read = t5::Config::read(folder, "T5EncoderModel", config)?;
    t5::lower(&read, t5::Length::Own, Role::TextEncoder, &|_| true, &|_, _| true, &mut weights)?;
    let named = weights.iter().flat_map(|weight| {
        let keys = std::iter::once(weight.key()).chain(weight.copies.iter().map(String::as_str));
        keys.map(|key| (key.to_owned(), weight.source_dims().to_vec(), weight.key().to_owned()))
    });
    Ok(named.collect())
}

/// Writes to the pipeline `at` what the encoder's configuration is, and a tokenizer.
pub(super) fn write_configuration(config: &Object, at: &Path) -> Result<()> {
    let [(folder, tokenizer), _] = TEXT_ENCODERS;
    write_json(&at.join(folder).join("config.json"), &Value::Object(config.clone()))?;
    sentence_piece::write(&at.join(tokenizer))
}

/// Writes a directory of the encoder alone to `dir`, which must not exist or be empty; weights by `files`.
///
/// # Errors
/// As those of [`WholeDirectory`], and what the system says about writing. Nothing is left behind.
pub(super) fn write(config: &Object, dir: &Path, seed: u64, files: &mut WriteFile<'_>) -> Result<()> {
    let directory = WholeDirectory::create(dir)?;
    let at = directory.temporary();
    let [(folder, tokenizer), _] = TEXT_ENCODERS;
    let index = json!({folder: ["transformers", "T5EncoderModel"], tokenizer: ["transformers", "T5Tokenizer"]});
    write_json(&at.join("model_index.json"), &index)?;
    write_configuration(config, at)?;
    let list = list(config)?;
    let tensors: Vec<_> = list.iter().map(|(key, dims, _)| (key.clone(), dims.clone())).collect();
    let head = config["d_kv"].as_f64().unwrap_or(1.0) as f32;
    files(&at.join(folder).join("model.safetensors"), &tensors, &mut |i| {
        let (_, dims, key) = &list[i];
        let mut x = normal(key, seed, dims.iter().product());
        let unit = (dims[1..].iter().product::<usize>() as f32).sqrt().recip();
        let spread = match &key[..] {
            _ if dims.len() == 1 => {
                x.iter_mut().for_each(|v| *v = 1.0 + 0.05 * *v);
                return Ok(x);
            }
            "shared.weight" => 1.0,
            // Scores are not scaled.
            key if key.ends_with(".q.weight") => unit / head.sqrt(),
            key if key.ends_with("relative_attention_bias.weight") => 1.0,
            _ => unit,
        };
        x.iter_mut().for_each(|v| *v *= spread);
        Ok(x)
    })?;
    Ok(directory.commit()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names and shapes of `T5EncoderModel` of transformers, made from the published configuration.
    #[test]
    fn it_has_the_tensors_of_the_published_encoder() {
        let list = list(&xxl()).unwrap();
        let total: usize =
            list.iter().filter(|(key, _, of)| key == of).map(|(_, dims, _)| dims.iter().product::<usize>()).sum();
        assert_eq!((list.len(), total), (220, 4_762_310_656));
        let copies: Vec<_> = list.iter().filter(|(key, _, of)| key != of).map(|(key, ..)| &key[..]).collect();
        assert_eq!(copies, ["encoder.embed_tokens.weight"]);
    }
}
