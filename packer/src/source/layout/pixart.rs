//! PixArt in its authors' layout (`.pth`): queries, keys and values in one matrix, keys and values of captions in another, and
//! the caption that stands for none among the weights.
//!
//! Positions are scaled so that those of 512 pixels are whole numbers, whatever the size a model was trained on.

use super::{Entry, List, Network, object};
use crate::source::diffusers::Object;
use crate::source::view::Part;
use aquatint::error::Result;
use serde_json::json;

/// Features of the sinusoids of a timestep and of a size.
const SINUSOIDS: usize = 256;
/// Features of a head.
const HEAD: usize = 72;
/// Latents on a side of an image at which positions are whole numbers.
const WHOLE_POSITIONS: usize = 64;
/// Tokens of a caption in the second version, Sigma; the first has 120.
const SIGMA_TOKENS: usize = 300;
/// Name, in diffusers' terms, of the caption for none, which its first versions had too and its pipelines never read.
pub const NULL_CAPTION: &str = "caption_projection.y_embedding";

/// What ViDiT-Q calls the three parts of a matrix of queries, keys and values.
pub(super) const QKV: [&str; 3] = ["q", "k", "v"];

/// The transformer of a PixArt.
#[derive(Clone, Debug, PartialEq)]
pub struct Pixart {
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
    /// Features of a caption's token.
    pub caption_features: usize,
    /// Tokens of a caption.
    pub tokens: usize,
    /// Height and width of the latents it was trained on.
    pub sample_size: usize,
    /// Whether it reads the size of the image.
    pub sizes: bool,
}

/// The structure of the transformer whose tensors `net` are.
///
/// # Errors
/// [`Error::Request`](aquatint::Error::Request) for the first tensor that is missing or has too few axes, one whose axes
/// are none of a PixArt's, or one of the variant that attends to fewer keys, which is not supported.
pub(super) fn read(net: Network) -> Result<Pixart> {
    let layers = net.count(|i| format!("blocks.{i}.attn.qkv.weight"));
    if let Some(block) = (0..layers).find(|block| net.has(&format!("blocks.{block}.attn.sr.weight"))) {
        let expected = "a PixArt whose blocks attend to all tokens: key and value compression is not supported";
        return Err(net.error(&format!("blocks.{block}.attn.sr.weight"), expected, "such a layer"));
    }
    let patch = net.dim("x_embedder.proj.weight", 2)?;
    let tokens = net.dim("y_embedder.y_embedding", 0)?;
    let sizes = net.has("csize_embedder.mlp.0.weight");
    // The table of positions follows from the size and may have been left out; then the size is what published models of the
    // kind have.
    let published = if sizes || tokens == SIGMA_TOKENS { 128 } else { 64 };
    let patches = if net.has("pos_embed") { net.dim("pos_embed", 1)? } else { (published / patch.max(1)).pow(2) };
    let side = patches.isqrt();
    if side * side != patches {
        return Err(net.error("pos_embed", "a square of patches", patches));
    }
    structure(net, patch, side * patch)
}

/// The structure of the transformer whose tensors `net` are, with patches of `patch` latents, trained on `sample_size` on a side.
///
/// # Errors
/// As [`read`].
pub(super) fn structure(net: Network, patch: usize, sample_size: usize) -> Result<Pixart> {
    let layers = net.count(|i| format!("blocks.{i}.scale_shift_table"));
    let outputs = net.dim("final_layer.linear.weight", 0)?;
    let features = net.dim("x_embedder.proj.weight", 0)?;
    if !features.is_multiple_of(HEAD) {
        let expected = format!("heads of {HEAD} features");
        return Err(net.error("x_embedder.proj.weight", expected, format!("{features} features")));
    }
    if patch == 0 || !outputs.is_multiple_of(patch * patch) {
        let got = format!("{outputs} outputs for patches of {patch} x {patch}");
        return Err(net.error("final_layer.linear.weight", "whole patches", got));
    }
    Ok(Pixart {
        in_channels: net.dim("x_embedder.proj.weight", 1)?,
        out_channels: outputs / (patch * patch),
        features,
        layers,
        patch,
        caption_features: net.dim("y_embedder.y_proj.fc1.weight", 1)?,
        tokens: net.dim("y_embedder.y_embedding", 0)?,
        sample_size,
        sizes: net.has("csize_embedder.mlp.0.weight"),
    })
}

impl Pixart {
    /// Names and axes of all its tensors as diffusers has them, and of the caption for none.
    pub(super) fn tensors(&self) -> List {
        let mut list = List::default();
        let d = self.features;
        list.layer("pos_embed.proj", &[d, self.in_channels, self.patch, self.patch]);
        let mut mlp = |path: &str, k: usize, d: usize| {
            list.layer(&format!("{path}.linear_1"), &[d, k]);
            list.layer(&format!("{path}.linear_2"), &[d, d]);
        };
        mlp("adaln_single.emb.timestep_embedder", SINUSOIDS, d);
        if self.sizes {
            mlp("adaln_single.emb.resolution_embedder", SINUSOIDS, d / 3);
            mlp("adaln_single.emb.aspect_ratio_embedder", SINUSOIDS, d / 3);
        }
        mlp("caption_projection", self.caption_features, d);
        list.layer("adaln_single.linear", &[6 * d, d]);
        list.0.push((NULL_CAPTION.into(), vec![self.tokens, self.caption_features]));
        for block in 0..self.layers {
            let path = format!("transformer_blocks.{block}");
            list.0.push((format!("{path}.scale_shift_table"), vec![6, d]));
            for attention in ["attn1", "attn2"] {
                for name in ["to_q", "to_k", "to_v", "to_out.0"] {
                    list.layer(&format!("{path}.{attention}.{name}"), &[d, d]);
                }
            }
            list.layer(&format!("{path}.ff.net.0.proj"), &[4 * d, d]);
            list.layer(&format!("{path}.ff.net.2"), &[d, 4 * d]);
        }
        list.0.push(("scale_shift_table".into(), vec![2, d]));
        list.layer("proj_out", &[self.out_channels * self.patch * self.patch, d]);
        list
    }

    /// Where a file has its tensors.
    pub(super) fn entries(&self) -> Vec<Entry> {
        self.tensors().0.into_iter().map(entry).collect()
    }

    /// Whether it is of the second version, Sigma, whose captions are longer.
    pub fn is_sigma(&self) -> bool {
        self.tokens == SIGMA_TOKENS
    }

    /// What diffusers would save as `config.json`.
    pub(super) fn config(&self) -> Object {
        object(json!({
            "_class_name": "PixArtTransformer2DModel",
            "attention_head_dim": HEAD,
            "caption_channels": self.caption_features,
            "cross_attention_dim": self.features,
            "in_channels": self.in_channels,
            "interpolation_scale": self.sample_size as f64 / WHOLE_POSITIONS as f64,
            "num_attention_heads": self.features / HEAD,
            "num_layers": self.layers,
            "out_channels": self.out_channels,
            "patch_size": self.patch,
            "sample_size": self.sample_size,
            "use_additional_conditions": self.sizes,
        }))
    }
}

/// Where a file has the tensor that diffusers calls `key`.
pub(super) fn entry((key, dims): (String, Vec<usize>)) -> Entry {
    let Some(Place { source, part: [at, parts] }) = place(&key) else { unreachable!("{key} is no tensor of a PixArt") };
    let mut source_dims = dims.clone();
    source_dims[0] *= parts;
    let part = if parts == 1 { Part::Whole } else { Part::Rows(at * dims[0]..(at + 1) * dims[0]) };
    Entry { key, dims, source, source_dims, part }
}

/// Where a file has a tensor: its name there, and which of how many equal parts of that one's rows.
struct Place {
    source: String,
    part: [usize; 2],
}

/// The paths that the authors of DiT, PixArt and Open-Sora give to the layer that diffusers calls `layer`, for configurations in
/// their words; none if it is no layer of such a transformer. Of queries, keys and values the one that ViDiT-Q splits matrices
/// into comes before that of the whole matrix.
pub fn authors_paths(layer: &str) -> Vec<String> {
    let Some(Place { source, part: [at, _] }) = place(&format!("{layer}.weight")) else { return Vec::new() };
    let whole = source.trim_end_matches(".weight").to_owned();
    let own = whole.strip_suffix(".qkv").map(|module| format!("{module}.{}", QKV[at]));
    own.into_iter().chain([whole]).collect()
}

/// The place of the tensor that diffusers calls `key`; none if it is no tensor of such a transformer.
fn place(key: &str) -> Option<Place> {
    let whole = |source: String| Place { source, part: [0, 1] };
    let layer = |name: &str| match name {
        "linear_1" => 0,
        _ => 2,
    };
    Some(match key.split('.').collect::<Vec<_>>()[..] {
        _ if key == NULL_CAPTION => whole("y_embedder.y_embedding".into()),
        ["scale_shift_table"] => whole("final_layer.scale_shift_table".into()),
        ["pos_embed", "proj", last] => whole(format!("x_embedder.proj.{last}")),
        ["proj_out", last] => whole(format!("final_layer.linear.{last}")),
        ["adaln_single", "linear", last] => whole(format!("t_block.1.{last}")),
        ["adaln_single", "emb", which, name, last] => {
            let to = match which {
                "resolution_embedder" => "csize_embedder",
                "aspect_ratio_embedder" => "ar_embedder",
                _ => "t_embedder",
            };
            whole(format!("{to}.mlp.{}.{last}", layer(name)))
        }
        ["caption_projection", name, last] => {
            whole(format!("y_embedder.y_proj.fc{}.{last}", if name == "linear_1" { 1 } else { 2 }))
        }
        ["transformer_blocks", block, ref rest @ ..] => in_block(block, rest)?,
        _ => return None,
    })
}

/// The place of a tensor of a block.
fn in_block(block: &str, name: &[&str]) -> Option<Place> {
    let whole = |source: String| Place { source: format!("blocks.{block}.{source}"), part: [0, 1] };
    Some(match name {
        ["scale_shift_table"] => whole("scale_shift_table".into()),
        ["attn1", "to_out", _, last] => whole(format!("attn.proj.{last}")),
        ["attn_temp", "to_out", _, last] => whole(format!("attn_temp.proj.{last}")),
        ["attn2", "to_out", _, last] => whole(format!("cross_attn.proj.{last}")),
        ["attn2", "to_q", last] => whole(format!("cross_attn.q_linear.{last}")),
        [attention, which, last] => {
            // All three in one matrix, or keys and values in one.
            let (source, names): (_, &[&str]) = match *attention {
                "attn1" => ("attn.qkv", &["to_q", "to_k", "to_v"]),
                // Of Open-Sora, which has PixArt's blocks and more.
                "attn_temp" => ("attn_temp.qkv", &["to_q", "to_k", "to_v"]),
                "attn2" => ("cross_attn.kv_linear", &["to_k", "to_v"]),
                _ => return None,
            };
            let at = names.iter().position(|name| name == which)?;
            Place { source: format!("blocks.{block}.{source}.{last}"), part: [at, names.len()] }
        }
        ["ff", "net", "0", "proj", last] => whole(format!("mlp.fc1.{last}")),
        ["ff", "net", "2", last] => whole(format!("mlp.fc2.{last}")),
        _ => return None,
    })
}
