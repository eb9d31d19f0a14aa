//! UNets as the code of latent diffusion, Stable Diffusion and SDXL names them (`openaimodel.py`).
//!
//! Blocks are counted through all levels: with `n` residual blocks per level, level `b` has input blocks
//! `b (n + 1) + 1..` and, from the deepest on, output blocks `b (n + 1)..`; the block between two levels halves the
//! image, and what doubles it is the last layer of a level's last output block. In a block, layer 0 is residual and
//! layer 1 attends.

use super::unet::{Added, Attention, Conventions, Heads, Unet};
use super::{Entry, Network};
use crate::source::view::Part;
use aquatint::error::Result;

/// What a UNet's tensors do not tell.
#[derive(Clone, Copy, Debug)]
pub(super) struct Untold {
    pub sample_size: usize,
    pub heads: Heads,
    /// Features of the added text's vector, and how many numbers follow it.
    pub added: Option<[usize; 2]>,
}

/// The structure of a network with these names.
///
/// # Errors
/// [`Error::Request`](aquatint::Error::Request) for the first tensor that is missing or has too few axes.
pub(super) fn read_unet(net: Network, untold: impl FnOnce(&Unet) -> Untold) -> Result<Unet> {
    let resnet = |path: &str| net.has(&format!("{path}.in_layers.0.weight"));
    let upsampler = |i: usize| {
        let layer = |l: usize| {
            let path = format!("output_blocks.{i}.{l}");
            net.has(&format!("{path}.conv.weight")) || resnet(&path)
        };
        layer(1) || layer(2)
    };
    let out_channels = net.dim("out.2.weight", 0)?;
    net.dim("output_blocks.0.0.in_layers.0.weight", 0)?;
    let blocks = net.count(|i| format!("output_blocks.{i}.0.in_layers.0.weight"));
    // Without an upsampler there is one level.
    let period = (0..blocks).find(|&i| upsampler(i)).map_or(blocks, |last| last + 1);
    let levels = blocks.div_ceil(period);
    let (layers, mut channels, mut depths) = (period - 1, Vec::new(), Vec::new());
    let depth = |path: &str| match net.has(&format!("{path}.qkv.weight")) {
        true => 1,
        false => net.count(|i| format!("{path}.transformer_blocks.{i}.norm1.weight")),
    };
    for level in 0..levels {
        let path = format!("input_blocks.{}", level * period + 1);
        channels.push(net.dim(&format!("{path}.0.out_layers.0.weight"), 0)?);
        depths.push(depth(&format!("{path}.1")));
    }
    let mid_depth = depth("middle_block.1");
    let attention = attention(net, period, &depths, mid_depth)?;
    let rows = net.dim("input_blocks.1.0.emb_layers.1.weight", 0)?;
    let mut unet = Unet {
        sample_size: 0,
        in_channels: net.dim("input_blocks.0.0.weight", 1)?,
        out_channels,
        layers,
        attention,
        depths,
        mid_depth,
        scale_shift: rows == 2 * channels[0],
        resnet_resampling: levels > 1 && resnet(&format!("input_blocks.{period}.0")),
        added: None,
        conventions: Conventions::Latent,
        channels,
    };
    let untold = untold(&unet);
    unet.sample_size = untold.sample_size;
    unet.added = untold.added.map(|sizes| added(net, sizes)).transpose()?;
    match &mut unet.attention {
        Attention::Pixels(heads) | Attention::Context { heads, .. } => *heads = untold.heads,
    }
    check_heads(net, &unet, &untold.heads)?;
    Ok(unet)
}

/// What the blocks with `depths` transformers per level, and `mid_depth` in the middle, attend to. The number of heads is
/// not in the tensors; 1 stands for it.
fn attention(net: Network, period: usize, depths: &[usize], mid_depth: usize) -> Result<Attention> {
    let context = (0..depths.len())
        .filter(|&level| depths[level] > 0)
        .map(|level| format!("input_blocks.{}.1", level * period + 1))
        .chain((mid_depth > 0).then(|| "middle_block.1".into()))
        .find(|path| !net.has(&format!("{path}.qkv.weight")));
    let heads = Heads::Count(1);
    Ok(match context {
        None => Attention::Pixels(heads),
        Some(path) => Attention::Context {
            features: net.dim(&format!("{path}.transformer_blocks.0.attn2.to_k.weight"), 1)?,
            linear: net.shape(&format!("{path}.proj_in.weight")).is_some_and(|s| s.len() == 2),
            heads,
        },
    })
}

/// What the embedding of `vector` features of the text and of `numbers` numbers is made of.
fn added(net: Network, [vector, numbers]: [usize; 2]) -> Result<Added> {
    let key = "label_emb.0.0.weight";
    let features = net.dim(key, 1)?;
    let Some(sinusoids) = features.checked_sub(vector).filter(|n| *n > 0 && n.is_multiple_of(2 * numbers)) else {
        let expected = format!("columns for {vector} features of the text and the sinusoids of {numbers} numbers");
        return Err(net.error(key, expected, features));
    };
    Ok(Added { features, per_number: sinusoids / numbers })
}

/// Refuses channels that attend and do not split into `heads`.
fn check_heads(net: Network, unet: &Unet, heads: &Heads) -> Result<()> {
    let attended = unet.channels.iter().zip(&unet.depths).filter(|(_, d)| **d > 0).map(|(c, _)| c);
    let middle = unet.channels.last().filter(|_| unet.mid_depth > 0);
    for &channels in attended.chain(middle) {
        let count = heads.of(channels);
        if count == 0
            || !channels.is_multiple_of(count)
            || matches!(heads, Heads::Features(n) if !channels.is_multiple_of(*n))
        {
            let expected = format!("channels that can be split as {heads:?}, as the published models of this kind");
            return Err(net.error("middle_block.1.norm.weight", expected, channels));
        }
    }
    Ok(())
}

/// Where a file whose names begin with `prefix` has the tensors of `unet`.
pub(super) fn unet_entries(unet: &Unet, prefix: &str) -> Vec<Entry> {
    unet.tensors().0.into_iter().map(|(key, dims)| entry(unet, prefix, key, dims)).collect()
}

fn entry(unet: &Unet, prefix: &str, key: String, dims: Vec<usize>) -> Entry {
    let (name, part) = name(unet, &key, &dims);
    let mut source_dims = dims.clone();
    if part != Part::Whole {
        source_dims[0] *= 3;
    }
    // Attention over pixels is made of convolutions of one axis.
    if matches!(unet.attention, Attention::Pixels(_)) && dims.len() == 2 && key.contains(".attentions.") {
        source_dims.push(1);
    }
    Entry { source: format!("{prefix}{name}"), key, dims, source_dims, part }
}

/// The name of the tensor called `key`, and which part of it is meant.
fn name(unet: &Unet, key: &str, dims: &[usize]) -> (String, Part) {
    let period = unet.layers + 1;
    let parts: Vec<&str> = key.split('.').collect();
    let number = |at: usize| parts[at].parse::<usize>().unwrap_or_else(|_| unreachable!("{key}: a number at {at}"));
    let whole = |name: String| (name, Part::Whole);
    let within = |block: String, rest: &[&str]| match rest {
        ["conv", last] => whole(format!("{block}.conv.{last}")),
        ["group_norm", last] => whole(format!("{block}.norm.{last}")),
        [to @ ("to_q" | "to_k" | "to_v"), last] => {
            let heads = match unet.attention {
                Attention::Pixels(heads) | Attention::Context { heads, .. } => heads.of(dims[0]),
            };
            let which = ["to_q", "to_k", "to_v"].iter().position(|name| name == to).unwrap_or_default();
            (format!("{block}.qkv.{last}"), Part::Heads { heads, which })
        }
        ["to_out", "0", last] => whole(format!("{block}.proj_out.{last}")),
        [layer, last] if let Some(layer) = resnet_layer(layer) => whole(format!("{block}.{layer}.{last}")),
        rest => whole(format!("{block}.{}", rest.join("."))),
    };
    match &parts[..] {
        ["conv_in", last] => whole(format!("input_blocks.0.0.{last}")),
        ["conv_norm_out", last] => whole(format!("out.0.{last}")),
        ["conv_out", last] => whole(format!("out.2.{last}")),
        ["time_embedding", "linear_1", last] => whole(format!("time_embed.0.{last}")),
        ["time_embedding", "linear_2", last] => whole(format!("time_embed.2.{last}")),
        ["add_embedding", "linear_1", last] => whole(format!("label_emb.0.0.{last}")),
        ["add_embedding", "linear_2", last] => whole(format!("label_emb.0.2.{last}")),
        ["mid_block", "attentions", "0", rest @ ..] => within("middle_block.1".into(), rest),
        ["mid_block", "resnets", _, rest @ ..] => within(format!("middle_block.{}", 2 * number(2)), rest),
        ["down_blocks", _, "downsamplers", "0", "conv", last] => {
            whole(format!("input_blocks.{}.0.op.{last}", (number(1) + 1) * period))
        }
        ["down_blocks", _, "downsamplers", "0", rest @ ..] => {
            within(format!("input_blocks.{}.0", (number(1) + 1) * period), rest)
        }
        ["up_blocks", _, "upsamplers", "0", rest @ ..] => {
            let level = unet.levels() - 1 - number(1);
            let layer = if unet.depths[level] > 0 { 2 } else { 1 };
            within(format!("output_blocks.{}.{layer}", number(1) * period + unet.layers), rest)
        }
        [way, _, kind, _, rest @ ..] => {
            let block = number(1) * period + number(3);
            let layer = if *kind == "resnets" { 0 } else { 1 };
            match *way {
                "down_blocks" => within(format!("input_blocks.{}.{layer}", block + 1), rest),
                _ => within(format!("output_blocks.{block}.{layer}"), rest),
            }
        }
        _ => unreachable!("{key}: a tensor of a UNet"),
    }
}

fn resnet_layer(layer: &str) -> Option<&'static str> {
    Some(match layer {
        "norm1" => "in_layers.0",
        "conv1" => "in_layers.2",
        "time_emb_proj" => "emb_layers.1",
        "norm2" => "out_layers.0",
        "conv2" => "out_layers.3",
        "conv_shortcut" => "skip_connection",
        _ => return None,
    })
}
