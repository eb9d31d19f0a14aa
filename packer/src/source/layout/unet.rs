//! UNets: their tensors under diffusers' names, and the configuration that diffusers would save.

use super::list::List;
use crate::source::diffusers::Object;
use serde_json::{Value, json};

/// A UNet. Everything is per level, finest first.
#[derive(Clone, Debug, PartialEq)]
pub struct Unet {
    /// Height and width of the samples it was made for.
    pub sample_size: usize,
    /// Channels of a sample.
    pub in_channels: usize,
    /// Channels of the result.
    pub out_channels: usize,
    /// Channels of each level, finest first.
    pub channels: Vec<usize>,
    /// Residual blocks on the way down; there is one more on the way up.
    pub layers: usize,
    /// What pixels attend to, where they do.
    pub attention: Attention,
    /// Blocks of attention after every residual block; 0 for none.
    pub depths: Vec<usize>,
    /// Blocks of attention in the middle.
    pub mid_depth: usize,
    /// Whether the timestep scales and shifts the second norm of a residual block, instead of shifting its input.
    pub scale_shift: bool,
    /// Whether residual blocks halve and double the image, instead of convolutions.
    pub resnet_resampling: bool,
    /// What is embedded and added to the timestep's embedding.
    pub added: Option<Added>,
    /// Whose conventions it follows.
    pub conventions: Conventions,
}

/// A text's vector, and numbers as sinusoids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Added {
    /// Features in all.
    pub features: usize,
    /// Features per number.
    pub per_number: usize,
}

/// What attends to what.
#[derive(Clone, Debug, PartialEq)]
pub enum Attention {
    /// Pixels to pixels.
    Pixels(Heads),
    /// Transformers over pixels that also read a context.
    Context {
        /// Features of the context.
        features: usize,
        /// Whether the transformers' projections are matrices.
        linear: bool,
        /// How features are split.
        heads: Heads,
    },
}

/// How the features of attention are split among heads; shapes do not tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heads {
    /// So many heads.
    Count(usize),
    /// Heads of so many features.
    Features(usize),
}

impl Heads {
    /// Heads for `channels`.
    pub fn of(self, channels: usize) -> usize {
        match self {
            Heads::Count(n) => n,
            Heads::Features(n) => channels / n,
        }
    }
}

/// What tensors do not tell and authors' code has in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conventions {
    /// Ho et al. 2020 and Song et al. 2021: sine before cosine, frequencies end at 1/10000, epsilon 1e-6, padding after
    /// the image.
    Ddim,
    /// Rombach et al. 2022 and later: cosine first, epsilon 1e-5, padding around the image.
    Latent,
}

impl Unet {
    /// Number of levels: resolutions at which the network works.
    pub fn levels(&self) -> usize {
        self.channels.len()
    }

    /// Names and axes of all its tensors, as diffusers has them.
    pub fn tensors(&self) -> List {
        let mut list = List::default();
        let (first, time) = (self.channels[0], 4 * self.channels[0]);
        list.conv("conv_in", self.in_channels, first);
        list.layer("time_embedding.linear_1", &[time, first]);
        list.layer("time_embedding.linear_2", &[time, time]);
        if let Some(Added { features, .. }) = self.added {
            list.layer("add_embedding.linear_1", &[time, features]);
            list.layer("add_embedding.linear_2", &[time, time]);
        }
        let mut skips = vec![first];
        let mut width = first;
        for (level, &out) in self.channels.iter().enumerate() {
            let path = format!("down_blocks.{level}");
            for i in 0..self.layers {
                self.resnet(&mut list, &format!("{path}.resnets.{i}"), width, out);
                self.attend(&mut list, &format!("{path}.attentions.{i}"), out, self.depths[level]);
                width = out;
                skips.push(width);
            }
            if level + 1 < self.levels() {
                self.resample(&mut list, &format!("{path}.downsamplers.0"), width);
                skips.push(width);
            }
        }
        self.resnet(&mut list, "mid_block.resnets.0", width, width);
        self.attend(&mut list, "mid_block.attentions.0", width, self.mid_depth);
        self.resnet(&mut list, "mid_block.resnets.1", width, width);
        for (block, (&out, &depth)) in self.channels.iter().zip(&self.depths).rev().enumerate() {
            let path = format!("up_blocks.{block}");
            for i in 0..=self.layers {
                let skip = skips.pop().unwrap_or(0);
                self.resnet(&mut list, &format!("{path}.resnets.{i}"), width + skip, out);
                self.attend(&mut list, &format!("{path}.attentions.{i}"), out, depth);
                width = out;
            }
            if block + 1 < self.levels() {
                self.resample(&mut list, &format!("{path}.upsamplers.0"), width);
            }
        }
        list.layer("conv_norm_out", &[width]);
        list.conv("conv_out", width, self.out_channels);
        list
    }

    fn resnet(&self, list: &mut List, path: &str, i: usize, o: usize) {
        let rows = if self.scale_shift { 2 * o } else { o };
        list.resnet(path, i, o, Some([rows, 4 * self.channels[0]]));
    }

    fn attend(&self, list: &mut List, path: &str, c: usize, depth: usize) {
        match &self.attention {
            _ if depth == 0 => {}
            Attention::Pixels(_) => list.attention(path, c),
            Attention::Context { features, linear, .. } => list.transformer(path, c, depth, *features, *linear),
        }
    }

    fn resample(&self, list: &mut List, path: &str, c: usize) {
        if self.resnet_resampling {
            self.resnet(list, path, c, c);
        } else {
            list.conv(&format!("{path}.conv"), c, c);
        }
    }

    /// Class in diffusers.
    pub fn class(&self) -> &'static str {
        match self.attention {
            Attention::Pixels(_) => "UNet2DModel",
            Attention::Context { .. } => "UNet2DConditionModel",
        }
    }

    /// What diffusers saves as `config.json`. A `UNet2DModel` of diffusers knows features per head only; where the
    /// number of heads is fixed instead, a field `num_attention_heads` says so.
    pub fn config(&self) -> Object {
        let ddim = self.conventions == Conventions::Ddim;
        let mut config = json!({
            "_class_name": self.class(),
            "act_fn": "silu",
            "block_out_channels": self.channels,
            "center_input_sample": false,
            "downsample_padding": if ddim { 0 } else { 1 },
            "flip_sin_to_cos": !ddim,
            "freq_shift": if ddim { 1 } else { 0 },
            "in_channels": self.in_channels,
            "layers_per_block": self.layers,
            "mid_block_scale_factor": 1,
            "norm_eps": if ddim { 1e-6 } else { 1e-5 },
            "norm_num_groups": 32,
            "out_channels": self.out_channels,
            "sample_size": self.sample_size,
        });
        let mut set = |field: &str, value: Value| config[field] = value;
        set("resnet_time_scale_shift", json!(if self.scale_shift { "scale_shift" } else { "default" }));
        match self.attention {
            Attention::Pixels(heads) => {
                let kind = if self.resnet_resampling { "resnet" } else { "conv" };
                set("downsample_type", json!(kind));
                set("upsample_type", json!(kind));
                set("add_attention", json!(self.mid_depth > 0));
                set("time_embedding_type", json!("positional"));
                // Without it, the middle's attention would have no norm where others scale and shift.
                set("attn_norm_num_groups", if self.scale_shift { json!(32) } else { Value::Null });
                match heads {
                    // One head: as many features as there are.
                    Heads::Count(1) => set("attention_head_dim", Value::Null),
                    Heads::Features(n) => set("attention_head_dim", json!(n)),
                    Heads::Count(n) => {
                        set("attention_head_dim", Value::Null);
                        set("num_attention_heads", json!(n));
                    }
                }
            }
            Attention::Context { features, linear, heads } => {
                set("cross_attention_dim", json!(features));
                set("use_linear_projection", json!(linear));
                // The field is called so and counts heads.
                set(
                    "attention_head_dim",
                    match heads {
                        Heads::Count(n) => json!(n),
                        Heads::Features(_) => self.channels.iter().map(|&c| heads.of(c)).collect(),
                    },
                );
                // Of a level without attention, the depth does not matter; diffusers writes 1.
                let mut depths: Vec<_> = self.depths.iter().map(|&d| d.max(1)).collect();
                if let Some(last) = depths.last_mut() {
                    *last = self.mid_depth;
                }
                let same = depths.iter().all(|d| *d == depths[0]);
                set("transformer_layers_per_block", if same { json!(depths[0]) } else { json!(depths) });
                if let Some(Added { features, per_number }) = self.added {
                    set("addition_embed_type", json!("text_time"));
                    set("addition_time_embed_dim", json!(per_number));
                    set("projection_class_embeddings_input_dim", json!(features));
                }
            }
        }
        set("down_block_types", self.depths.iter().map(|&d| self.block("Down", d)).collect());
        set("up_block_types", self.depths.iter().rev().map(|&d| self.block("Up", d)).collect());
        super::object(config)
    }

    /// Class of a block with or without attention.
    fn block(&self, way: &str, depth: usize) -> String {
        match (&self.attention, depth > 0) {
            (_, false) if self.resnet_resampling => format!("Resnet{way}sampleBlock2D"),
            (_, false) => format!("{way}Block2D"),
            (Attention::Pixels(_), true) => format!("Attn{way}Block2D"),
            (Attention::Context { .. }, true) => format!("CrossAttn{way}Block2D"),
        }
    }
}
