//! Hunyuan-DiT in its authors' layout (`pytorch_model_ema.pt`; Li et al., arXiv 2405.08748): queries, keys and values in one
//! matrix, keys and values of texts in another.
//!
//! Three things are called otherwise than in diffusers: the second and the third norm of a block are each other's, and of the
//! last modulation the shifts come first.

use super::{Entry, List, Network, object};
use crate::source::diffusers::Object;
use crate::source::view::Part;
use aquatint::error::Result;
use serde_json::json;

/// Features of the sinusoids of a timestep and of a size.
const SINUSOIDS: usize = 256;
/// Numbers beside the prompt in versions up to 1.1.
const SIZES: usize = 6;
/// Height and width of the latents that all versions were published for, which no tensor tells.
const SAMPLE_SIZE: usize = 128;

/// The transformer of a Hunyuan-DiT.
#[derive(Clone, Debug, PartialEq)]
pub struct Hunyuan {
    /// Channels of the latents; the result has twice as many.
    pub in_channels: usize,
    /// Features of a token.
    pub features: usize,
    /// Features of a head.
    pub head: usize,
    /// Features inside the MLPs.
    pub inner: usize,
    /// Number of transformer blocks, even.
    pub layers: usize,
    /// Height and width of a patch.
    pub patch: usize,
    /// Tokens of the first and of the second text encoder.
    pub tokens: [usize; 2],
    /// Features of a token of either.
    pub text_features: [usize; 2],
    /// Features of the vector that is made of the second one's tokens.
    pub pooled: usize,
    /// Whether it reads a style and sizes, as versions up to 1.1 do.
    pub styled: bool,
}

/// The structure of the transformer whose tensors `net` are.
///
/// # Errors
/// [`Error::Request`](aquatint::Error::Request) for the first tensor that is missing or has too few axes, or one whose axes
/// are none of a Hunyuan-DiT's.
pub(super) fn read(net: Network) -> Result<Hunyuan> {
    let patch = net.dim("x_embedder.proj.weight", 2)?;
    let features = net.dim("x_embedder.proj.weight", 0)?;
    let head = net.dim("blocks.0.attn1.q_norm.weight", 0)?;
    if !features.is_multiple_of(head) {
        let expected = format!("heads of {head} features, as x_embedder has {features}");
        return Err(net.error("blocks.0.attn1.q_norm.weight", expected, "a remainder"));
    }
    let in_channels = net.dim("x_embedder.proj.weight", 1)?;
    let (outputs, wanted) = (net.dim("final_layer.linear.weight", 0)?, 2 * in_channels * patch * patch);
    if outputs != wanted {
        let expected = format!("{wanted} outputs: predictions and variances of whole patches");
        return Err(net.error("final_layer.linear.weight", expected, outputs));
    }
    // The first row of the positions is the mean's.
    let second = net.dim("pooler.positional_embedding", 0)? - 1;
    let both = net.dim("text_embedding_padding", 0)?;
    let Some(first) = both.checked_sub(second).filter(|&first| first > 0 && second > 0) else {
        let expected = format!("more rows than the {second} tokens of the second text encoder, of which there is one");
        return Err(net.error("text_embedding_padding", expected, both));
    };
    let layers = net.count(|i| format!("blocks.{i}.attn1.Wqkv.weight"));
    if !layers.is_multiple_of(2) {
        return Err(net.error(
            "blocks",
            "an even number, each of the second half of which reads one of the first",
            layers,
        ));
    }
    Ok(Hunyuan {
        in_channels,
        features,
        head,
        inner: net.dim("blocks.0.mlp.fc1.weight", 0)?,
        layers,
        patch,
        tokens: [first, second],
        text_features: [net.dim("text_embedding_padding", 1)?, net.dim("mlp_t5.0.weight", 1)?],
        pooled: net.dim("pooler.c_proj.weight", 0)?,
        styled: net.has("style_embedder.weight"),
    })
}

impl Hunyuan {
    /// Names and axes of all its tensors as diffusers has them.
    fn tensors(&self) -> List {
        let mut list = List::default();
        let (d, [context, context_2]) = (self.features, self.text_features);
        list.0.push(("text_embedding_padding".into(), vec![self.tokens[0] + self.tokens[1], context]));
        list.layer("text_embedder.linear_1", &[4 * context_2, context_2]);
        list.layer("text_embedder.linear_2", &[context, 4 * context_2]);
        list.layer("pos_embed.proj", &[d, self.in_channels, self.patch, self.patch]);
        let path = "time_extra_emb";
        list.layer(&format!("{path}.timestep_embedder.linear_1"), &[d, SINUSOIDS]);
        list.layer(&format!("{path}.timestep_embedder.linear_2"), &[d, d]);
        list.0.push((format!("{path}.pooler.positional_embedding"), vec![self.tokens[1] + 1, context_2]));
        for name in ["k_proj", "q_proj", "v_proj"] {
            list.layer(&format!("{path}.pooler.{name}"), &[context_2, context_2]);
        }
        list.layer(&format!("{path}.pooler.c_proj"), &[self.pooled, context_2]);
        let beside = if self.styled { SIZES * SINUSOIDS + d } else { 0 };
        if self.styled {
            list.weight(&format!("{path}.style_embedder"), &[1, d]);
        }
        list.layer(&format!("{path}.extra_embedder.linear_1"), &[4 * d, self.pooled + beside]);
        list.layer(&format!("{path}.extra_embedder.linear_2"), &[d, 4 * d]);
        for block in 0..self.layers {
            self.block(&mut list, block);
        }
        list.layer("norm_out.linear", &[2 * d, d]);
        list.layer("proj_out", &[2 * self.in_channels * self.patch * self.patch, d]);
        list
    }

    /// Adds the tensors of a block.
    fn block(&self, list: &mut List, block: usize) {
        let (path, d) = (format!("blocks.{block}"), self.features);
        list.layer(&format!("{path}.norm1.linear"), &[d, d]);
        for name in ["norm1.norm", "norm2", "norm3"] {
            list.layer(&format!("{path}.{name}"), &[d]);
        }
        for (attention, context) in [("attn1", d), ("attn2", self.text_features[0])] {
            for name in ["norm_q", "norm_k"] {
                list.layer(&format!("{path}.{attention}.{name}"), &[self.head]);
            }
            for (name, inputs) in [("to_q", d), ("to_k", context), ("to_v", context), ("to_out.0", d)] {
                list.layer(&format!("{path}.{attention}.{name}"), &[d, inputs]);
            }
        }
        list.layer(&format!("{path}.ff.net.0.proj"), &[self.inner, d]);
        list.layer(&format!("{path}.ff.net.2"), &[d, self.inner]);
        if block > self.layers / 2 {
            list.layer(&format!("{path}.skip_norm"), &[2 * d]);
            list.layer(&format!("{path}.skip_linear"), &[d, 2 * d]);
        }
    }

    /// Where a file has its tensors.
    pub(super) fn entries(&self) -> Vec<Entry> {
        let entry = |(key, dims): (String, Vec<usize>)| {
            let (source, part) = name(&key, dims[0]);
            let mut source_dims = dims.clone();
            if let Part::Rows(_) = part {
                source_dims[0] *= if source.contains(".Wqkv.") { 3 } else { 2 };
            }
            Entry { key, dims, source, source_dims, part }
        };
        self.tensors().0.into_iter().map(entry).collect()
    }

    /// What diffusers would save as `config.json`.
    pub(super) fn config(&self) -> Object {
        object(json!({
            "_class_name": "HunyuanDiT2DModel",
            "activation_fn": "gelu-approximate",
            "attention_head_dim": self.head,
            "cross_attention_dim": self.text_features[0],
            "cross_attention_dim_t5": self.text_features[1],
            "hidden_size": self.features,
            "in_channels": self.in_channels,
            "learn_sigma": true,
            // Of which the whole part of the product with the features is taken.
            "mlp_ratio": (self.inner as f64 + 0.5) / self.features as f64,
            "norm_type": "layer_norm",
            "num_attention_heads": self.features / self.head,
            "num_layers": self.layers,
            "patch_size": self.patch,
            "pooled_projection_dim": self.pooled,
            "sample_size": SAMPLE_SIZE,
            "text_len": self.tokens[0],
            "text_len_t5": self.tokens[1],
            "use_style_cond_and_image_meta_size": self.styled,
        }))
    }
}

/// The name in a file of the tensor called `key`, which has so many rows, and which part of it is meant.
fn name(key: &str, rows: usize) -> (String, Part) {
    let whole = |name: String| (name, Part::Whole);
    // Those of a fused matrix, of which `key` is number `at`.
    let rows = |at: usize| Part::Rows(at * rows..(at + 1) * rows);
    match key.split('.').collect::<Vec<_>>()[..] {
        ["text_embedding_padding"] => whole(key.into()),
        ["time_extra_emb", "pooler", last] => whole(format!("pooler.{last}")),
        ["time_extra_emb", "pooler", layer, last] => whole(format!("pooler.{layer}.{last}")),
        ["time_extra_emb", "style_embedder", last] => whole(format!("style_embedder.{last}")),
        ["time_extra_emb", "timestep_embedder", layer, last] => whole(format!("t_embedder.mlp.{}.{last}", step(layer))),
        ["time_extra_emb", "extra_embedder", layer, last] => whole(format!("extra_embedder.{}.{last}", step(layer))),
        ["text_embedder", layer, last] => whole(format!("mlp_t5.{}.{last}", step(layer))),
        ["pos_embed", "proj", last] => whole(format!("x_embedder.proj.{last}")),
        ["norm_out", "linear", last] => (format!("final_layer.adaLN_modulation.1.{last}"), Part::SwappedHalves),
        ["proj_out", last] => whole(format!("final_layer.linear.{last}")),
        [_, block, "norm1", "linear", last] => whole(format!("blocks.{block}.default_modulation.1.{last}")),
        [_, block, "norm1", "norm", last] => whole(format!("blocks.{block}.norm1.{last}")),
        [_, block, "norm2", last] => whole(format!("blocks.{block}.norm3.{last}")),
        [_, block, "norm3", last] => whole(format!("blocks.{block}.norm2.{last}")),
        [_, block, attention, "norm_q", last] => whole(format!("blocks.{block}.{attention}.q_norm.{last}")),
        [_, block, attention, "norm_k", last] => whole(format!("blocks.{block}.{attention}.k_norm.{last}")),
        [_, block, attention, "to_out", "0", last] => whole(format!("blocks.{block}.{attention}.out_proj.{last}")),
        [_, block, "attn2", "to_q", last] => whole(format!("blocks.{block}.attn2.q_proj.{last}")),
        [_, block, "attn2", which, last] => {
            (format!("blocks.{block}.attn2.kv_proj.{last}"), rows(usize::from(which == "to_v")))
        }
        [_, block, "attn1", which, last] => {
            let at = ["to_q", "to_k", "to_v"].iter().position(|name| *name == which).unwrap_or(0);
            (format!("blocks.{block}.attn1.Wqkv.{last}"), rows(at))
        }
        [_, block, "ff", "net", "0", "proj", last] => whole(format!("blocks.{block}.mlp.fc1.{last}")),
        [_, block, "ff", "net", "2", last] => whole(format!("blocks.{block}.mlp.fc2.{last}")),
        [_, block, skip, last] => whole(format!("blocks.{block}.{skip}.{last}")),
        _ => unreachable!("{key} is no tensor of a Hunyuan-DiT"),
    }
}

/// The place of `layer`, `linear_1` or `linear_2`, in a sequence whose second step is the activation between them.
fn step(layer: &str) -> usize {
    if layer == "linear_1" { 0 } else { 2 }
}
