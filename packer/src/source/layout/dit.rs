//! DiT in its authors' layout (Peebles & Xie, arXiv 2212.09748), and the Latte that makes videos of classes (Ma et al., arXiv
//! 2401.03048), which has the same tensors and a table of positions of frames: one MLP of the timestep and one table of classes for all
//! blocks, and queries, keys and values in one matrix.
//!
//! Two conventions are those of the authors' code and not of diffusers: the frequencies of the timestep's embedding, and the
//! epsilon of the norm before the MLP.

use super::{Entry, List, Network, object};
use crate::source::diffusers::Object;
use crate::source::view::Part;
use aquatint::error::Result;
use serde_json::json;

/// Features of the sinusoids of a timestep.
const TIME_FEATURES: usize = 256;
/// Features of a head of XL, and of the smaller ones.
const HEADS: [usize; 2] = [72, 64];

/// The transformer of a DiT.
#[derive(Clone, Debug, PartialEq)]
pub struct Dit {
    /// Channels of the latents.
    pub in_channels: usize,
    /// Channels of the result: with a learned variance twice as many.
    pub out_channels: usize,
    /// Features of a token.
    pub features: usize,
    /// Number of transformer blocks.
    pub layers: usize,
    /// Height and width of a patch.
    pub patch: usize,
    /// Classes, without the row for none.
    pub classes: usize,
    /// Height and width of the latents it was trained on.
    pub sample_size: usize,
    /// Frames it was trained on, if it makes videos.
    pub frames: Option<usize>,
}

/// Positions of frames; they follow from their number.
const FRAMES: &str = "temp_embed";

/// The structure of the transformer whose tensors `net` are.
///
/// # Errors
/// [`Error::Request`](aquatint::Error::Request) for the first tensor that is missing or has too few axes, or one whose axes
/// are none of a DiT's.
pub(super) fn read(net: Network) -> Result<Dit> {
    let patch = net.dim("x_embedder.proj.weight", 2)?;
    let rows = net.dim("y_embedder.embedding_table.weight", 0)?;
    let outputs = net.dim("final_layer.linear.weight", 0)?;
    let features = net.dim("x_embedder.proj.weight", 0)?;
    if !HEADS.iter().any(|head| features.is_multiple_of(*head)) {
        let expected = format!("heads of {} or {} features", HEADS[0], HEADS[1]);
        return Err(net.error("x_embedder.proj.weight", expected, format!("{features} features")));
    }
    // The table of positions follows from the size and may have been left out; then the size is the smaller published one.
    let tokens = if net.has("pos_embed") { net.dim("pos_embed", 1)? } else { (32 / patch).pow(2) };
    let side = tokens.isqrt();
    if side * side != tokens {
        return Err(net.error("pos_embed", "a square of patches", tokens));
    }
    if !outputs.is_multiple_of(patch * patch) || rows < 2 {
        let got = format!("{outputs} outputs for patches of {patch} x {patch}, and {rows} classes");
        return Err(net.error(
            "final_layer.linear.weight",
            "whole patches, and a row of the class table for none",
            got,
        ));
    }
    Ok(Dit {
        in_channels: net.dim("x_embedder.proj.weight", 1)?,
        out_channels: outputs / (patch * patch),
        features,
        layers: net.count(|i| format!("blocks.{i}.attn.qkv.weight")),
        patch,
        classes: rows - 1,
        sample_size: side * patch,
        frames: net.has(FRAMES).then(|| net.dim(FRAMES, 1)).transpose()?,
    })
}

impl Dit {
    /// Names and axes of all its tensors as diffusers has them, which stores what is one here once for each block.
    fn tensors(&self) -> List {
        let mut list = List::default();
        let d = self.features;
        list.layer("pos_embed.proj", &[d, self.in_channels, self.patch, self.patch]);
        for block in 0..self.layers {
            let path = format!("transformer_blocks.{block}");
            list.layer(&format!("{path}.norm1.emb.timestep_embedder.linear_1"), &[d, TIME_FEATURES]);
            list.layer(&format!("{path}.norm1.emb.timestep_embedder.linear_2"), &[d, d]);
            list.weight(&format!("{path}.norm1.emb.class_embedder.embedding_table"), &[self.classes + 1, d]);
            list.layer(&format!("{path}.norm1.linear"), &[6 * d, d]);
            for name in ["to_q", "to_k", "to_v", "to_out.0"] {
                list.layer(&format!("{path}.attn1.{name}"), &[d, d]);
            }
            list.layer(&format!("{path}.ff.net.0.proj"), &[4 * d, d]);
            list.layer(&format!("{path}.ff.net.2"), &[d, 4 * d]);
        }
        list.layer("proj_out_1", &[2 * d, d]);
        list.layer("proj_out_2", &[self.out_channels * self.patch * self.patch, d]);
        list
    }

    /// Where a file has its tensors.
    pub(super) fn entries(&self) -> Vec<Entry> {
        let entry = |(key, dims): (String, Vec<usize>)| {
            let (source, part) = name(&key, dims[0]);
            let mut source_dims = dims.clone();
            if let Part::Rows(_) = part {
                source_dims[0] *= 3;
            }
            Entry { key, dims, source, source_dims, part }
        };
        self.tensors().0.into_iter().map(entry).collect()
    }

    /// What diffusers would save as `config.json`, and `freq_shift`, which it has no word for; nor has it a class of videos.
    pub(super) fn config(&self) -> Object {
        let head = HEADS.into_iter().find(|head| self.features.is_multiple_of(*head)).unwrap_or(HEADS[1]);
        let mut config = object(json!({
            "_class_name": self.class(),
            "attention_head_dim": head,
            "freq_shift": 0.0,
            "in_channels": self.in_channels,
            "norm_eps": 1e-6,
            "num_attention_heads": self.features / head,
            "num_embeds_ada_norm": self.classes,
            "num_layers": self.layers,
            "out_channels": self.out_channels,
            "patch_size": self.patch,
            "sample_size": self.sample_size,
        }));
        if let Some(frames) = self.frames {
            config.insert("video_length".into(), frames.into());
        }
        config
    }

    /// The class that its configuration names.
    pub(super) fn class(&self) -> &'static str {
        if self.frames.is_some() { crate::lower::dit::VIDEO_CLASS } else { "DiTTransformer2DModel" }
    }
}

/// The name in a file of the tensor called `key`, which has so many rows, and which part of it is meant.
fn name(key: &str, rows: usize) -> (String, Part) {
    let whole = |name: String| (name, Part::Whole);
    match key.split('.').collect::<Vec<_>>()[..] {
        ["pos_embed", "proj", last] => whole(format!("x_embedder.proj.{last}")),
        ["proj_out_1", last] => whole(format!("final_layer.adaLN_modulation.1.{last}")),
        ["proj_out_2", last] => whole(format!("final_layer.linear.{last}")),
        [_, _, "norm1", "emb", "timestep_embedder", "linear_1", last] => whole(format!("t_embedder.mlp.0.{last}")),
        [_, _, "norm1", "emb", "timestep_embedder", "linear_2", last] => whole(format!("t_embedder.mlp.2.{last}")),
        [_, _, "norm1", "emb", "class_embedder", table, last] => whole(format!("y_embedder.{table}.{last}")),
        [_, block, "norm1", "linear", last] => whole(format!("blocks.{block}.adaLN_modulation.1.{last}")),
        [_, block, "attn1", "to_out", "0", last] => whole(format!("blocks.{block}.attn.proj.{last}")),
        [_, block, "attn1", which, last] => {
            let at = ["to_q", "to_k", "to_v"].iter().position(|name| *name == which).unwrap_or(0);
            (format!("blocks.{block}.attn.qkv.{last}"), Part::Rows(at * rows..(at + 1) * rows))
        }
        [_, block, "ff", "net", "0", "proj", last] => whole(format!("blocks.{block}.mlp.fc1.{last}")),
        [_, block, "ff", "net", "2", last] => whole(format!("blocks.{block}.mlp.fc2.{last}")),
        _ => unreachable!("{key} is no tensor of a DiT"),
    }
}
