//! Open-Sora 1.0's STDiT in its authors' layout (`.pth`): as PixArt's, with a second attention per block; a patch is a kernel of
//! one frame. ViDiT-Q's copies have queries, keys and values of both attentions in matrices of their own.
//!
//! The authors' three configurations differ in what positions are divided by. Files tell it by their tables of positions, which
//! may have been left out, or by their names.

use super::list::List;
use super::pixart::{self, Pixart};
use super::{Entry, Network, object};
use crate::source::diffusers::Object;
use crate::source::view::Part;
use aquatint::error::Result;
use serde_json::json;

/// Latents on a side, frames, and what their positions are divided by, in the authors' configurations.
const CONFIGURATIONS: [(&str, usize, usize, f64, f64); 3] =
    [("16x512x512", 64, 16, 1.0, 1.0), ("16x256x256", 32, 16, 0.5, 1.0), ("64x512x512", 64, 64, 1.0, 2.0 / 3.0)];
/// How far what a table of positions in f32 says may be from what it was made with.
const ROUNDING: f64 = 1e-4;

/// The transformer of an Open-Sora 1.0.
#[derive(Clone, Debug, PartialEq)]
pub struct Stdit {
    /// What it has in common with PixArt.
    pub frame: Pixart,
    /// Frames it was trained on.
    pub frames: usize,
    /// What rows and columns of patches are divided by for their positions.
    pub space_scale: f64,
    /// What frames are divided by.
    pub time_scale: f64,
    /// Whether queries, keys and values of attention among tokens have matrices of their own.
    pub split: bool,
}

/// The structure of the transformer whose tensors `net` are.
///
/// # Errors
/// [`Error::Request`](aquatint::Error::Request) for the first tensor that is missing or has too few axes, or one whose axes
/// are none of an STDiT's.
pub(super) fn read(net: Network) -> Result<Stdit> {
    let patch = net.dim("x_embedder.proj.weight", 3)?;
    let name = net.tensors.name();
    let named = CONFIGURATIONS.iter().find(|(words, ..)| name.contains(words)).unwrap_or(&CONFIGURATIONS[0]);
    let (mut side, mut frames, mut space_scale, mut time_scale) = (named.1, named.2, named.3, named.4);
    if net.has("pos_embed") {
        let patches = net.dim("pos_embed", 1)?;
        side = patches.isqrt() * patch;
        space_scale = scale(net, "pos_embed", 4)?;
    }
    if net.has("pos_embed_temporal") {
        frames = net.dim("pos_embed_temporal", 1)?;
        time_scale = scale(net, "pos_embed_temporal", 2)?;
    }
    let frame = pixart::structure(net, patch, side)?;
    let split = net.has("blocks.0.attn.q.weight");
    Ok(Stdit { frame, frames, space_scale, time_scale, split })
}

/// What positions of the table called `key` were divided by: the lowest frequency is 1, so the sine and the cosine of the second
/// position are those of 1 / scale. A row has the cosines of an axis after one `parts`-th for its sines.
fn scale(net: Network, key: &str, parts: usize) -> Result<f64> {
    let (rows, features) = (net.dim(key, 1)?, net.dim(key, 2)?);
    let table = net.tensors.values(&format!("{}{key}", net.prefix))?;
    let at = |feature: usize| table.get(features + feature).copied().map(f64::from);
    let (Some(sine), Some(cosine), true) = (at(0), at(features / parts), rows > 1) else {
        return Err(net.error(key, "at least two positions", format!("{rows}")));
    };
    let position = sine.atan2(cosine);
    if position <= 0.0 || (sine.hypot(cosine) - 1.0).abs() > ROUNDING {
        return Err(net.error(key, "sines and cosines of positions", format!("{sine} and {cosine}")));
    }
    // What f32 has rounded is one of the authors' numbers.
    let scale = position.recip();
    let known = CONFIGURATIONS.iter().flat_map(|c| [c.3, c.4]).find(|known| (known / scale - 1.0).abs() < ROUNDING);
    Ok(known.unwrap_or(scale))
}

impl Stdit {
    /// Names and axes of all its tensors in diffusers' manner, and of the caption for none.
    fn tensors(&self) -> List {
        let mut list = self.frame.tensors();
        let d = self.frame.features;
        for block in 0..self.frame.layers {
            for name in ["to_q", "to_k", "to_v", "to_out.0"] {
                list.layer(&format!("transformer_blocks.{block}.attn_temp.{name}"), &[d, d]);
            }
        }
        list
    }

    /// Where a file has its tensors.
    pub(super) fn entries(&self) -> Vec<Entry> {
        self.tensors().0.into_iter().map(|(key, dims)| self.entry(key, dims)).collect()
    }

    fn entry(&self, key: String, dims: Vec<usize>) -> Entry {
        let mut entry = pixart::entry((key, dims));
        if self.split
            && let Some((module, last)) = entry.source.split_once(".qkv.")
            && let Part::Rows(rows) = &entry.part
        {
            let which = pixart::QKV[(rows.start / self.frame.features).min(2)];
            entry.source = format!("{module}.{which}.{last}");
            (entry.source_dims, entry.part) = (entry.dims.clone(), Part::Whole);
        }
        if entry.key == "pos_embed.proj.weight" {
            // A kernel of one frame.
            entry.source_dims.insert(2, 1);
        }
        entry
    }

    /// What diffusers would save as `config.json`, if it had this network.
    pub(super) fn config(&self) -> Object {
        let mut config = self.frame.config();
        config.extend(object(json!({
            "_class_name": crate::lower::stdit::CLASS,
            "space_scale": self.space_scale,
            "time_scale": self.time_scale,
            "video_length": self.frames,
        })));
        config
    }
}
