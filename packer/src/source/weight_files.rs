//! Which of the files in a component's folder are its weights.

use aquatint::error::{Error, Result};
use std::path::Path;

/// Names a component's weights may have, as `from_pretrained` has them: diffusers' before transformers', full precision
/// before half, and then safetensors before pickles.
const STEMS: [(&str, &[&str]); 3] =
    [("diffusion_pytorch_model", &["safetensors", "bin"]), ("model", &["safetensors"]), ("pytorch_model", &["bin"])];
/// Variants of the weights that are taken where there is no better one, best first. Other variants are taken where there
/// is only one.
const VARIANTS: [&str; 5] = ["", ".fp16", ".bf16", ".ema", ".non_ema"];

/// `(whole, index of a sharded set)`, best first. The variant comes before the last extension, also in an index.
fn files() -> impl Iterator<Item = (String, String)> {
    STEMS.into_iter().flat_map(|(stem, extensions)| {
        VARIANTS.into_iter().flat_map(move |variant| {
            extensions.iter().map(move |extension| {
                (format!("{stem}{variant}.{extension}"), format!("{stem}.{extension}.index{variant}.json"))
            })
        })
    })
}

/// The variant of a file of whole weights, if `name` is one: `.fp8` or `_bf16`, say.
fn variant(name: &str) -> Option<&str> {
    STEMS.into_iter().find_map(|(stem, extensions)| {
        let rest = name.strip_prefix(stem)?;
        let variant = extensions.iter().find_map(|extension| rest.strip_suffix(extension)?.strip_suffix('.'))?;
        (variant.starts_with(['.', '_', '-']) && !variant.contains("-of-")).then_some(variant)
    })
}

/// The weights of a component, by names of files in its folder.
pub(super) enum WeightFiles {
    /// One file.
    Whole(String),
    /// The index of several.
    Sharded(String),
}

/// The best weights in `dir`.
///
/// # Errors
/// [`Error::Request`] if there are none, or several of which none is known to be better; tells what is there.
pub(super) fn find(dir: &Path) -> Result<WeightFiles> {
    let known = files().find(|(whole, sharded)| dir.join(whole).is_file() || dir.join(sharded).is_file());
    match known {
        Some((whole, _)) if dir.join(&whole).is_file() => Ok(WeightFiles::Whole(whole)),
        Some((_, sharded)) => Ok(WeightFiles::Sharded(sharded)),
        None => only_variant(dir).map(WeightFiles::Whole),
    }
}

/// The file of weights in `dir` that is of no known variant.
///
/// # Errors
/// [`Error::Request`] if there is none, or more than one; tells what is there.
fn only_variant(dir: &Path) -> Result<String> {
    let entries = std::fs::read_dir(dir).map_err(Error::io("read", dir))?;
    let mut names: Vec<_> = entries.filter_map(|e| e.ok()?.file_name().into_string().ok()).collect();
    names.sort();
    let variants: Vec<_> = names.iter().filter(|name| variant(name).is_some()).cloned().collect();
    let refuse =
        |expected: &str, got: String| Err(Error::request(format!("weights in {}", dir.display()), expected, got));
    match &variants[..] {
        [only] => Ok(only.clone()),
        [] => {
            names.retain(|name| name != "config.json");
            let got = if names.is_empty() { "none of them".into() } else { format!("only {}", names.join(", ")) };
            refuse(
                "diffusion_pytorch_model.safetensors, model.safetensors, their .bin or .fp16 variants, or sharded sets",
                got,
            )
        }
        several => refuse("weights without a variant, or of one", several.join(", ")),
    }
}
