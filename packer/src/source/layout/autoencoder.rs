//! Autoencoders of latent diffusion: their tensors under diffusers' names, and the configuration diffusers would save.

use super::list::List;
use crate::source::diffusers::Object;
use serde_json::json;

/// An autoencoder. Everything is per level, finest first.
#[derive(Clone, Debug, PartialEq)]
pub struct Autoencoder {
    /// Channels of the image.
    pub image_channels: usize,
    /// Channels of the latents.
    pub latent_channels: usize,
    /// Channels of each level, finest first.
    pub channels: Vec<usize>,
    /// Residual blocks per level of the encoder; the decoder has one more.
    pub layers: usize,
    /// Which levels attend.
    pub attend: Vec<bool>,
    /// Vectors of the codebook and their features; none for a `AutoencoderKL`.
    pub codebook: Option<[usize; 2]>,
    /// Whether it has an encoder.
    pub encoder: bool,
    /// Height and width of the images it was made for.
    pub sample_size: usize,
    /// What latents are multiplied with when they are made, and divided by before they are decoded.
    pub scaling_factor: f64,
}

impl Autoencoder {
    /// Names and axes of all its tensors, as diffusers has them.
    pub fn tensors(&self) -> List {
        let mut list = List::default();
        // What the decoder reads; the codebook's vectors may have other features.
        let latent = self.latent_channels;
        let code = self.codebook.map_or(latent, |[_, features]| features);
        let moments = if self.codebook.is_some() { 1 } else { 2 };
        let deepest = self.channels[self.channels.len() - 1];
        if self.encoder {
            let mut width = self.channels[0];
            list.conv("encoder.conv_in", self.image_channels, width);
            for (level, &out) in self.channels.iter().enumerate() {
                let path = format!("encoder.down_blocks.{level}");
                for i in 0..self.layers {
                    list.resnet(&format!("{path}.resnets.{i}"), width, out, None);
                    if self.attend[level] {
                        list.attention(&format!("{path}.attentions.{i}"), out);
                    }
                    width = out;
                }
                if level + 1 < self.channels.len() {
                    list.conv(&format!("{path}.downsamplers.0.conv"), width, width);
                }
            }
            middle(&mut list, "encoder", width);
            list.layer("encoder.conv_norm_out", &[width]);
            list.conv("encoder.conv_out", width, moments * latent);
            list.layer("quant_conv", &[moments * code, moments * latent, 1, 1]);
        }
        if let Some(codebook) = self.codebook {
            list.weight("quantize.embedding", &codebook);
        }
        list.layer("post_quant_conv", &[latent, code, 1, 1]);
        list.conv("decoder.conv_in", latent, deepest);
        middle(&mut list, "decoder", deepest);
        let mut width = deepest;
        for (block, (&out, &attend)) in self.channels.iter().zip(&self.attend).rev().enumerate() {
            let path = format!("decoder.up_blocks.{block}");
            for i in 0..=self.layers {
                list.resnet(&format!("{path}.resnets.{i}"), width, out, None);
                if attend {
                    list.attention(&format!("{path}.attentions.{i}"), out);
                }
                width = out;
            }
            if block + 1 < self.channels.len() {
                list.conv(&format!("{path}.upsamplers.0.conv"), width, width);
            }
        }
        list.layer("decoder.conv_norm_out", &[width]);
        list.conv("decoder.conv_out", width, self.image_channels);
        list
    }

    /// Class in diffusers.
    pub fn class(&self) -> &'static str {
        if self.codebook.is_some() { "VQModel" } else { "AutoencoderKL" }
    }

    /// Folder in a diffusers directory.
    pub fn folder(&self) -> &'static str {
        if self.codebook.is_some() { "vqvae" } else { "vae" }
    }

    /// Pixels per latent, per axis.
    pub fn pixels_per_latent(&self) -> usize {
        1 << (self.channels.len() - 1)
    }

    /// What diffusers saves as `config.json`.
    pub fn config(&self) -> Object {
        let block = |way: &str, attend: bool| format!("{}{way}coderBlock2D", if attend { "Attn" } else { "" });
        let mut config = json!({
            "_class_name": self.class(),
            "act_fn": "silu",
            "block_out_channels": self.channels,
            "down_block_types": self.attend.iter().map(|&a| block("DownEn", a)).collect::<Vec<_>>(),
            "in_channels": self.image_channels,
            "latent_channels": self.latent_channels,
            "layers_per_block": self.layers,
            "norm_num_groups": 32,
            "out_channels": self.image_channels,
            "sample_size": self.sample_size,
            "scaling_factor": self.scaling_factor,
            "up_block_types": self.attend.iter().rev().map(|&a| block("UpDe", a)).collect::<Vec<_>>(),
        });
        if let Some([vectors, features]) = self.codebook {
            config["num_vq_embeddings"] = json!(vectors);
            config["vq_embed_dim"] = json!(features);
        }
        super::object(config)
    }
}

fn middle(list: &mut List, part: &str, c: usize) {
    list.resnet(&format!("{part}.mid_block.resnets.0"), c, c, None);
    list.attention(&format!("{part}.mid_block.attentions.0"), c);
    list.resnet(&format!("{part}.mid_block.resnets.1"), c, c, None);
}
