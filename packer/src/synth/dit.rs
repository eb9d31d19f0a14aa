//! DiT pipelines.

use super::{SILU_ENERGY, WriteFile, class, normal, object, undo_patches, write_halves, write_json};
use crate::error::Result;
use crate::lower::{DENOISER, VAE, dit, vae};
use crate::source::diffusers::Object;
use crate::weight::Weights;
use aquatint::raw::whole_file::WholeDirectory;
use serde_json::{Value, json};
use std::path::Path;

/// Spread of a token entering the last norm, about; its inverse is what that norm multiplies by.
const TOKEN_SPREAD: f32 = 1.45;

/// A model to make.
#[derive(Clone, Debug)]
pub struct Architecture {
    /// What `transformer/config.json` holds.
    pub transformer: Object,
    /// What `vae/config.json` holds.
    pub vae: Object,
}

/// A tensor to write.
struct Tensor {
    key: String,
    dims: Vec<usize>,
    /// The name that decides its values: its own, or that of the tensor it is a copy of.
    of: String,
}

impl Architecture {
    /// DiT-XL/2 for latents of `sample_size` (32 for 256 pixels, 64 for 512), with the KL-f8 autoencoder.
    pub fn dit_xl_2(sample_size: u32) -> Self {
        let transformer = json!({
            "_class_name": "DiTTransformer2DModel",
            "activation_fn": "gelu-approximate",
            "attention_bias": true,
            "attention_head_dim": 72,
            "dropout": 0.0,
            "in_channels": 4,
            "norm_elementwise_affine": false,
            "norm_eps": 1e-5,
            "norm_num_groups": 32,
            "norm_type": "ada_norm_zero",
            "num_attention_heads": 16,
            "num_embeds_ada_norm": 1000,
            "num_layers": 28,
            "out_channels": 8,
            "patch_size": 2,
            "sample_size": sample_size,
            "upcast_attention": false,
        });
        let vae = json!({
            "_class_name": "AutoencoderKL",
            "act_fn": "silu",
            "block_out_channels": [128, 256, 512, 512],
            "down_block_types": vec!["DownEncoderBlock2D"; 4],
            "in_channels": 3,
            "latent_channels": 4,
            "layers_per_block": 2,
            "norm_num_groups": 32,
            "out_channels": 3,
            "sample_size": sample_size * 8,
            "scaling_factor": 0.18215,
            "up_block_types": vec!["UpDecoderBlock2D"; 4],
        });
        Architecture { transformer: object(transformer), vae: object(vae) }
    }

    /// Names and axes of all tensors of `component`, in the order they are written.
    ///
    /// # Errors
    /// [`Error::Request`](aquatint::Error::Request) if a configuration is not one that the packer supports.
    pub fn tensors(&self, component: &str) -> Result<Vec<(String, Vec<usize>)>> {
        Ok(self.list(component)?.into_iter().map(|t| (t.key, t.dims)).collect())
    }

    fn list(&self, component: &str) -> Result<Vec<Tensor>> {
        let mut weights = Weights::new();
        let mut tensors = Vec::new();
        if component == DENOISER {
            // As in the published models, the embedders of all blocks are the same.
            dit::lower(&dit::Config::read(class(&self.transformer), &self.transformer)?, &|_, _| true, &mut weights);
        } else {
            let config = vae::Config::read(VAE, class(&self.vae), &self.vae)?;
            encoder(&config, &mut |key, dims: &[usize]| {
                tensors.push(Tensor { of: key.clone(), key, dims: dims.to_vec() });
            });
            vae::lower(&config, &|_| false, &mut weights);
        }
        for weight in weights.iter() {
            let tensor = |key: &str| Tensor {
                key: key.to_owned(),
                dims: weight.source_dims().to_vec(),
                of: weight.key().to_owned(),
            };
            tensors.extend(weight.copies.iter().map(|copy| tensor(copy)));
            tensors.push(tensor(weight.key()));
        }
        Ok(tensors)
    }

    /// Writes the model directory at `dir`, which must not exist or be empty. Weights are f16.
    ///
    /// # Errors
    /// As those of [`WholeDirectory`], and what the system says about writing. Nothing is left behind.
    pub fn write(&self, dir: &Path, seed: u64) -> Result<()> {
        self.write_with(dir, seed, &mut write_halves)
    }

    /// The same, but for who writes the weights.
    pub(super) fn write_with(&self, dir: &Path, seed: u64, files: &mut WriteFile<'_>) -> Result<()> {
        let directory = WholeDirectory::create(dir)?;
        let at = directory.temporary();
        let index = json!({
            "_class_name": "DiTPipeline",
            "_diffusers_version": "0.30.0",
            "scheduler": ["diffusers", "DDIMScheduler"],
            "transformer": ["diffusers", class(&self.transformer)],
            "vae": ["diffusers", class(&self.vae)],
        });
        let scheduler = json!({
            "_class_name": "DDIMScheduler",
            "beta_end": 0.02,
            "beta_schedule": "linear",
            "beta_start": 0.0001,
            "clip_sample": false,
            "num_train_timesteps": 1000,
            "prediction_type": "epsilon",
            "set_alpha_to_one": true,
            "steps_offset": 0,
            "timestep_spacing": "leading",
        });
        write_json(&at.join("model_index.json"), &index)?;
        write_json(&at.join("scheduler/scheduler_config.json"), &scheduler)?;
        for (component, config) in [(DENOISER, &self.transformer), (VAE, &self.vae)] {
            let folder = at.join(component);
            write_json(&folder.join("config.json"), &Value::Object(config.clone()))?;
            let list = self.list(component)?;
            let names: Vec<_> = list.iter().map(|t| (t.key.clone(), t.dims.clone())).collect();
            let file = folder.join("diffusion_pytorch_model.safetensors");
            files(&file, &names, &mut |i| Ok(self.values(component, &list[i], seed)))?;
        }
        Ok(directory.commit()?)
    }

    fn values(&self, component: &str, tensor: &Tensor, seed: u64) -> Vec<f32> {
        let count = tensor.dims.iter().product();
        let fan_in: usize = tensor.dims[1..].iter().product();
        let normal = |name: &str, count| normal(name, seed, count);
        let mut x = normal(&format!("{component}/{}", tensor.of), count);
        let spread = match (component, tensor.of.as_str(), tensor.dims.len()) {
            // Norm parameters: scales near 1, shifts and biases near 0.
            (_, key, 1) if key.ends_with("weight") => {
                x.iter_mut().for_each(|v| *v = 1.0 + 0.05 * *v);
                return x;
            }
            (_, _, 1) => 0.02,
            (_, key, _) if key.ends_with("embedding_table.weight") => 0.5,
            (DENOISER, "proj_out_2.weight", _) => {
                let patches = &self.transformer["patch_size"];
                let p = patches.as_u64().unwrap_or(1) as usize;
                let c = self.transformer["in_channels"].as_u64().unwrap_or(1) as usize;
                let d = tensor.dims[1];
                let embed = normal(&format!("{component}/pos_embed.proj.weight"), d * c * p * p);
                x.iter_mut().for_each(|v| *v *= 0.3 / (d as f32).sqrt());
                undo_patches(&mut x, &embed, [d, c, p], TOKEN_SPREAD);
                return x;
            }
            // Modulations and gates: moderate, so that no block drowns what went before.
            (DENOISER, key, _) if key.ends_with("norm1.linear.weight") => 0.5 / (fan_in as f32).sqrt(),
            (DENOISER, "proj_out_1.weight", _) => 0.3 / (fan_in as f32).sqrt(),
            (VAE, "decoder.conv_out.weight", _) => 0.5 / (SILU_ENERGY * fan_in as f32).sqrt(),
            (VAE, key, 4) if key.contains(".resnets.") && !key.contains("shortcut") => {
                (SILU_ENERGY * fan_in as f32).sqrt().recip()
            }
            _ => (fan_in as f32).sqrt().recip(),
        };
        x.iter_mut().for_each(|v| *v *= spread);
        x
    }
}

/// The encoder's tensors, which the packer ignores and diffusers does not.
fn encoder(config: &vae::Config, add: &mut dyn FnMut(String, &[usize])) {
    let mut layer = |path: &str, dims: &[usize]| {
        add(format!("{path}.weight"), dims);
        add(format!("{path}.bias"), &dims[..1]);
    };
    let resnet = |layer: &mut dyn FnMut(&str, &[usize]), path: &str, i: usize, o: usize| {
        layer(&format!("{path}.norm1"), &[i]);
        layer(&format!("{path}.conv1"), &[o, i, 3, 3]);
        layer(&format!("{path}.norm2"), &[o]);
        layer(&format!("{path}.conv2"), &[o, o, 3, 3]);
        if i != o {
            layer(&format!("{path}.conv_shortcut"), &[o, i, 1, 1]);
        }
    };
    let latents = 2 * config.latent_channels as usize;
    let levels: Vec<usize> = config.channels.iter().map(|&c| c as usize).collect();
    let mut width = levels[0];
    layer("encoder.conv_in", &[width, 3, 3, 3]);
    for (level, &channels) in levels.iter().enumerate() {
        let path = format!("encoder.down_blocks.{level}");
        for i in 0..config.layers {
            resnet(&mut layer, &format!("{path}.resnets.{i}"), width, channels);
            width = channels;
        }
        if level + 1 < levels.len() {
            layer(&format!("{path}.downsamplers.0.conv"), &[width, width, 3, 3]);
        }
    }
    if config.mid_attention {
        let path = "encoder.mid_block.attentions.0";
        layer(&format!("{path}.group_norm"), &[width]);
        for name in ["to_q", "to_k", "to_v", "to_out.0"] {
            layer(&format!("{path}.{name}"), &[width, width]);
        }
    }
    for i in 0..2 {
        resnet(&mut layer, &format!("encoder.mid_block.resnets.{i}"), width, width);
    }
    layer("encoder.conv_norm_out", &[width]);
    layer("encoder.conv_out", &[latents, width, 3, 3]);
    layer("quant_conv", &[latents, latents, 1, 1]);
}
