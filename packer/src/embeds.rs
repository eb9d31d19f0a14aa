//! Features of prompts that others saved with `torch.save`, as `aquatint run --inputs` reads them.
//!
//! * ViDiT-Q's `text_embeds.pth`: `y` `(n, 2, 1, tokens, features)`, of each prompt and of what guidance leads away from,
//!   and `mask` `(n, tokens)`, which its sampler takes for both.
//! * Tensors under the names that diffusers' pipelines have for them, `prompt_embeds`, `prompt_attention_mask`..

use crate::error::Result;
use crate::source::Checkpoint;
use crate::weights::{self, Float};
use aquatint::error::Error;
use aquatint::raw::whole_file::check_target;
use safetensors::Dtype;
use std::path::Path;

/// Names in diffusers' pipelines, and those that `--inputs` has.
const NAMES: [(&str, &str); 10] = [
    ("prompt_embeds", "prompt_embeds"),
    ("negative_prompt_embeds", "negative_prompt_embeds"),
    ("prompt_attention_mask", "prompt_mask"),
    ("negative_prompt_attention_mask", "negative_prompt_mask"),
    ("prompt_embeds_2", "prompt_embeds_2"),
    ("negative_prompt_embeds_2", "negative_prompt_embeds_2"),
    ("prompt_attention_mask_2", "prompt_mask_2"),
    ("negative_prompt_attention_mask_2", "negative_prompt_mask_2"),
    ("pooled_prompt_embeds", "pooled"),
    ("negative_pooled_prompt_embeds", "negative_pooled"),
];

/// A tensor to write: its name, its axes, and the values.
type Named = (String, Vec<usize>, Vec<f32>);

/// Writes the features in `input` to `output`; returns names and axes of what it wrote.
///
/// # Errors
/// [`Error::Request`] if `input` is no file of tensors or holds others; [`Error::Io`] if a file cannot be read or written.
pub fn convert(input: &Path, output: &Path) -> Result<Vec<(String, Vec<usize>)>> {
    check_target(output, &[input])?;
    let file = Checkpoint::open_file(input, &mut Vec::new())?;
    let tensors = if file.has("y") { of_viditq(&file)? } else { of_diffusers(&file)? };
    let list: Vec<_> = tensors.iter().map(|(name, dims, _)| (name.clone(), dims.clone())).collect();
    weights::write(output, &list, Float::F32, &mut |i| Ok(tensors[i].2.clone()))?;
    Ok(list)
}

/// Each prompt and its opposite, of `y`; the mask counts for both.
fn of_viditq(file: &Checkpoint) -> Result<Vec<Named>> {
    let dims = file.shape("y").unwrap_or_default();
    let &[n, 2, 1, tokens, features] = dims else {
        let expected = "[n, 2, 1, tokens, features], as ViDiT-Q saves it";
        return Err(Error::request(file.describe("y"), expected, format!("{dims:?}")).into());
    };
    let values = file.read("y")?;
    let side = |side: usize| {
        let pairs = values.chunks_exact((2 * tokens * features).max(1));
        pairs.flat_map(|pair| &pair[side * tokens * features..][..tokens * features]).copied().collect::<Vec<f32>>()
    };
    let mut tensors = vec![
        ("prompt_embeds".to_owned(), vec![n, tokens, features], side(0)),
        ("negative_prompt_embeds".to_owned(), vec![n, tokens, features], side(1)),
    ];
    if let Some(shape) = file.shape("mask") {
        if shape != [n, tokens] {
            return Err(Error::request(file.describe("mask"), format!("[{n}, {tokens}]"), format!("{shape:?}")).into());
        }
        let mask = numbers(file, "mask")?;
        tensors.push(("prompt_mask".into(), vec![n, tokens], mask.clone()));
        tensors.push(("negative_prompt_mask".into(), vec![n, tokens], mask));
    }
    Ok(tensors)
}

fn of_diffusers(file: &Checkpoint) -> Result<Vec<Named>> {
    let mut tensors = Vec::new();
    for key in file.keys() {
        let Some((_, name)) = NAMES.iter().find(|(known, name)| key == *known || key == *name) else {
            let expected = "y and mask (ViDiT-Q), or prompt_embeds, prompt_attention_mask and their like (diffusers)";
            return Err(Error::request(file.describe(key), expected, "another tensor").into());
        };
        tensors.push(((*name).to_owned(), file.shape(key).unwrap_or_default().to_vec(), numbers(file, key)?));
    }
    match tensors.iter().any(|(name, ..)| name == "prompt_embeds") {
        true => Ok(tensors),
        false => Err(Error::request(file.component(), "a tensor y or prompt_embeds", "none").into()),
    }
}

/// Values of a tensor of floats, integers or booleans.
fn numbers(file: &Checkpoint, key: &str) -> Result<Vec<f32>> {
    match file.dtype(key) {
        Some(Dtype::F16 | Dtype::BF16 | Dtype::F32 | Dtype::F64) => Ok(file.read(key)?),
        _ => Ok(file.read_ints(key)?.into_iter().map(|v| v as f32).collect()),
    }
}
