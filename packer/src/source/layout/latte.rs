//! Latte as diffusers has it: its authors publish it so, in a directory.

use super::pixart::{NULL_CAPTION, Pixart};
use super::{Entry, object};
use crate::source::diffusers::Object;
use crate::source::view::Part;
use serde_json::json;

/// The transformer of a Latte that reads captions.
#[derive(Clone, Debug, PartialEq)]
pub struct Latte {
    /// What its spatial blocks have in common with PixArt's; temporal ones are the same without captions.
    pub frame: Pixart,
    /// Frames it was trained on.
    pub frames: usize,
}

impl Latte {
    /// All its tensors.
    pub(super) fn entries(&self) -> Vec<Entry> {
        let spatial = self.frame.tensors().0;
        let temporal =
            spatial.iter().filter(|(key, _)| key.starts_with("transformer_blocks.") && !key.contains(".attn2."));
        let temporal: Vec<_> = temporal.map(|(key, dims)| (format!("temporal_{key}"), dims.clone())).collect();
        let all = spatial.into_iter().filter(|(key, _)| key != NULL_CAPTION).chain(temporal);
        all.map(|(key, dims)| Entry { source: key.clone(), source_dims: dims.clone(), key, dims, part: Part::Whole })
            .collect()
    }

    /// What diffusers saves as `config.json`.
    pub(super) fn config(&self) -> Object {
        let mut config = self.frame.config();
        config.remove("interpolation_scale");
        config.remove("use_additional_conditions");
        config.extend(object(json!({
            "_class_name": "LatteTransformer3DModel",
            "activation_fn": "gelu-approximate",
            "attention_bias": true,
            "norm_elementwise_affine": false,
            "norm_eps": 1e-6,
            "norm_type": "ada_norm_single",
            "video_length": self.frames,
        })));
        config
    }
}
