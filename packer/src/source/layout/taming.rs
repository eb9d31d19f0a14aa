//! The UNet of DDIM (Song et al. 2021), and autoencoders as taming-transformers and latent diffusion name them after it.
//!
//! Levels are counted from the finest on, also on the way up; diffusers counts the way up from the deepest.

use super::autoencoder::Autoencoder;
use super::unet::{Attention, Conventions, Heads, Unet};
use super::{Entry, Network};
use crate::source::view::Part;
use aquatint::error::Result;

/// Where every configuration of DDIM attends: where the image has this height and width.
const ATTENDED_SIZE: usize = 16;

/// The structure of the UNet with these names.
///
/// # Errors
/// [`Error::Request`](aquatint::Error::Request) for the first tensor that is missing or has too few axes.
pub(super) fn read_unet(net: Network) -> Result<Unet> {
    let in_channels = net.dim("conv_in.weight", 1)?;
    net.dim("down.0.block.0.norm2.weight", 0)?;
    let levels = net.count(|i| format!("down.{i}.block.0.norm2.weight"));
    let level = |i: usize| net.dim(&format!("down.{i}.block.0.norm2.weight"), 0);
    let channels = (0..levels).map(level).collect::<Result<Vec<_>>>()?;
    let depths: Vec<_> = (0..levels).map(|i| usize::from(net.has(&format!("down.{i}.attn.0.norm.weight")))).collect();
    let attended = depths.iter().position(|&d| d > 0);
    Ok(Unet {
        sample_size: ATTENDED_SIZE << attended.unwrap_or(levels - 1),
        in_channels,
        out_channels: net.dim("conv_out.weight", 0)?,
        channels,
        layers: net.count(|i| format!("down.0.block.{i}.norm1.weight")),
        attention: Attention::Pixels(Heads::Count(1)),
        depths,
        mid_depth: usize::from(net.has("mid.attn_1.norm.weight")),
        scale_shift: false,
        resnet_resampling: false,
        added: None,
        conventions: Conventions::Ddim,
    })
}

/// Where a file whose names begin with `prefix` has the tensors of `unet`.
pub(super) fn unet_entries(unet: &Unet, prefix: &str) -> Vec<Entry> {
    unet.tensors().0.into_iter().map(|(key, dims)| entry(unet.levels(), prefix, key, dims)).collect()
}

/// What an autoencoder's tensors do not tell.
#[derive(Clone, Copy, Debug)]
pub(super) struct Untold {
    pub sample_size: usize,
    pub scaling_factor: f64,
}

/// The structure of the autoencoder with these names.
///
/// # Errors
/// [`Error::Request`](aquatint::Error::Request) for the first tensor that is missing or has too few axes.
pub(super) fn read_autoencoder(net: Network, untold: Untold) -> Result<Autoencoder> {
    let image_channels = net.dim("decoder.conv_out.weight", 0)?;
    let latent_channels = net.dim("decoder.conv_in.weight", 1)?;
    net.dim("decoder.up.0.block.0.norm2.weight", 0)?;
    let levels = net.count(|i| format!("decoder.up.{i}.block.0.norm2.weight"));
    let level = |i: usize| net.dim(&format!("decoder.up.{i}.block.0.norm2.weight"), 0);
    let codebook = "quantize.embedding.weight";
    Ok(Autoencoder {
        image_channels,
        latent_channels,
        channels: (0..levels).map(level).collect::<Result<_>>()?,
        layers: net.count(|i| format!("decoder.up.0.block.{i}.norm1.weight")).saturating_sub(1),
        attend: (0..levels).map(|i| net.has(&format!("decoder.up.{i}.attn.0.norm.weight"))).collect(),
        codebook: if net.has(codebook) { Some([net.dim(codebook, 0)?, net.dim(codebook, 1)?]) } else { None },
        // Those who need the decoder only may have cut it off.
        encoder: net.has("encoder.conv_in.weight") || net.has("quant_conv.weight"),
        sample_size: untold.sample_size,
        scaling_factor: untold.scaling_factor,
    })
}

/// Where a file whose names begin with `prefix` has the tensors of `vae`.
pub(super) fn autoencoder_entries(vae: &Autoencoder, prefix: &str) -> Vec<Entry> {
    vae.tensors().0.into_iter().map(|(key, dims)| entry(vae.channels.len(), prefix, key, dims)).collect()
}

fn entry(levels: usize, prefix: &str, key: String, dims: Vec<usize>) -> Entry {
    let (half, inner) = match key.split_once('.') {
        Some((half @ ("encoder" | "decoder"), inner)) => (format!("{half}."), inner),
        _ => (String::new(), &key[..]),
    };
    let source = format!("{prefix}{half}{}", name(levels, inner));
    let mut source_dims = dims.clone();
    if dims.len() == 2 && key.contains(".attentions.") {
        source_dims.extend([1, 1]);
    }
    Entry { source, key, dims, source_dims, part: Part::Whole }
}

/// The name of the tensor called `key` in a network of so many levels.
fn name(levels: usize, key: &str) -> String {
    let parts: Vec<&str> = key.split('.').collect();
    let number = |at: usize| parts[at].parse::<usize>().unwrap_or_else(|_| unreachable!("{key}: a number at {at}"));
    match &parts[..] {
        ["time_embedding", "linear_1", last] => format!("temb.dense.0.{last}"),
        ["time_embedding", "linear_2", last] => format!("temb.dense.1.{last}"),
        ["conv_norm_out", last] => format!("norm_out.{last}"),
        ["mid_block", "attentions", "0", rest @ ..] => format!("mid.attn_1.{}", layer(rest)),
        ["mid_block", "resnets", _, rest @ ..] => format!("mid.block_{}.{}", number(2) + 1, layer(rest)),
        [way @ ("down_blocks" | "up_blocks"), _, kind, _, rest @ ..] => {
            let (way, level) = match *way {
                "down_blocks" => ("down", number(1)),
                _ => ("up", levels - 1 - number(1)),
            };
            match *kind {
                "resnets" => format!("{way}.{level}.block.{}.{}", number(3), layer(rest)),
                "attentions" => format!("{way}.{level}.attn.{}.{}", number(3), layer(rest)),
                _ => format!("{way}.{level}.{way}sample.{}", rest.join(".")),
            }
        }
        _ => key.to_owned(),
    }
}

/// The name of a layer of a residual block or of attention.
fn layer(rest: &[&str]) -> String {
    let (name, last) = match rest {
        ["to_out", "0", last] => ("proj_out", last),
        [name, last] => (*name, last),
        _ => unreachable!("{rest:?}: a layer and a tensor"),
    };
    let name = match name {
        "time_emb_proj" => "temb_proj",
        "conv_shortcut" => "nin_shortcut",
        "group_norm" => "norm",
        "to_q" => "q",
        "to_k" => "k",
        "to_v" => "v",
        other => other,
    };
    format!("{name}.{last}")
}
