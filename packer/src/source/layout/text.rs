//! CLIP's text encoders: their tensors under transformers' names, and the configuration transformers would save.

use super::list::List;
use crate::source::diffusers::Object;
use serde_json::json;

/// Features per head of every published CLIP.
const HEAD: usize = 64;

/// A text encoder of CLIP.
#[derive(Clone, Debug, PartialEq)]
pub struct TextEncoder {
    /// Tokens there are.
    pub vocabulary: usize,
    /// Tokens in a text.
    pub tokens: usize,
    /// Features of a token.
    pub features: usize,
    /// Features inside the MLPs.
    pub inner: usize,
    /// Number of transformer blocks.
    pub layers: usize,
    /// Features of the whole text's vector, if it is projected.
    pub projection: Option<usize>,
    /// The MLPs' activation in transformers' terms: `quick_gelu` of OpenAI's models, `gelu` of OpenCLIP's.
    pub activation: &'static str,
}

impl TextEncoder {
    /// Names and axes of all its tensors, as transformers has them.
    pub fn tensors(&self) -> List {
        let mut list = List::default();
        let d = self.features;
        list.weight("text_model.embeddings.token_embedding", &[self.vocabulary, d]);
        list.weight("text_model.embeddings.position_embedding", &[self.tokens, d]);
        for layer in 0..self.layers {
            let path = format!("text_model.encoder.layers.{layer}");
            for name in ["q_proj", "k_proj", "v_proj", "out_proj"] {
                list.layer(&format!("{path}.self_attn.{name}"), &[d, d]);
            }
            list.layer(&format!("{path}.layer_norm1"), &[d]);
            list.layer(&format!("{path}.mlp.fc1"), &[self.inner, d]);
            list.layer(&format!("{path}.mlp.fc2"), &[d, self.inner]);
            list.layer(&format!("{path}.layer_norm2"), &[d]);
        }
        list.layer("text_model.final_layer_norm", &[d]);
        if let Some(features) = self.projection {
            list.weight("text_projection", &[features, d]);
        }
        list
    }

    /// Class in transformers.
    pub fn class(&self) -> &'static str {
        if self.projection.is_some() { "CLIPTextModelWithProjection" } else { "CLIPTextModel" }
    }

    /// What transformers saves as `config.json`.
    pub fn config(&self) -> Object {
        super::object(json!({
            "architectures": [self.class()],
            "bos_token_id": 0,
            // Files say so, and readers take it as: the token of the highest number, which is the end's.
            "eos_token_id": 2,
            "hidden_act": self.activation,
            "hidden_size": self.features,
            "intermediate_size": self.inner,
            "layer_norm_eps": 1e-5,
            "max_position_embeddings": self.tokens,
            "model_type": "clip_text_model",
            "num_attention_heads": self.features / HEAD,
            "num_hidden_layers": self.layers,
            "pad_token_id": 1,
            "projection_dim": self.projection.unwrap_or(self.features),
            "vocab_size": self.vocabulary,
        }))
    }
}
