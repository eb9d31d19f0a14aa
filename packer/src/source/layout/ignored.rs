//! Tensors of a file that are no weights of its model.

use super::Tensors;
use super::pipeline::SCALE_FACTOR;
use crate::source::settings::MARKS;

/// Tensors beside a model's weights: tables that follow from the schedule, counters, and what only training needs.
const IGNORED: [&str; 23] = [
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
    "lvlb_weights",
    "logvar",
    SCALE_FACTOR,
    "model_ema.decay",
    "model_ema.num_updates",
    "cond_stage_model.logit_scale",
    // Of the text's whole vector, which only later models read.
    "cond_stage_model.transformer.text_projection.weight",
    "denoiser.sigmas",
    // Of transformers: it follows from the size.
    "pos_embed",
    "pos_embed_temporal",
    "temp_embed",
];
/// The same, by how names begin.
const IGNORED_PREFIXES: [&str; 6] =
    ["loss.", "first_stage_model.loss.", "optimizer_states.", "callbacks.", "ddim_", "embedding_manager."];
/// The same, by how names end.
const IGNORED_SUFFIXES: [&str; 3] = [".position_ids", ".logit_scale", ".attn_mask"];

/// Whether a tensor of this name is left alone.
pub(super) fn ignored(key: &str) -> bool {
    IGNORED.contains(&key)
        || MARKS.contains(&key)
        || IGNORED_PREFIXES.iter().any(|prefix| key.starts_with(prefix))
        || IGNORED_SUFFIXES.iter().any(|suffix| key.ends_with(suffix))
}

/// Whether a tensor of this name belongs to a quantizer that a network was trained with (TDQ): number of levels and step of a
/// layer's weight, and all of the quantizers of activations.
pub(super) fn quantizes(tensors: &dyn Tensors, key: &str) -> bool {
    let of_layer = |layer: &str| tensors.shape(&format!("{layer}.n_lv")).is_some();
    let of_weight = [".s", ".n_lv"].iter().any(|end| key.strip_suffix(end).is_some_and(of_layer));
    of_weight || key.contains(".act_func.") || key.contains(".qsym.")
}
