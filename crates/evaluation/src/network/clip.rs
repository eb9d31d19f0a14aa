//! CLIP (Radford et al. 2021) as transformers' `CLIPModel` has it: how well a picture fits a text.

use super::resize::bicubic_bytes;
use super::transformer::{Activation, Linear, Norm, Shape, Transformer};
use super::{Map, Weights, bytes};
use aquatint::{Error, Result};
use ndarray::{Array2, s};
use serde::Deserialize;

/// Mean and deviation of red, green and blue in 0..1 in the pictures that it was trained with.
const MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const DEVIATION: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];
/// How much longer than the other a side of a picture may be, of which only the middle is looked at.
const LONGEST: usize = 100;
/// Largest number that a configuration may have: a guard against files that claim to be enormous.
const MOST: usize = 1 << 20;

/// `config.json` of a `CLIPModel`; what is not there is as the class has it.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct ClipConfig {
    text_config: TextConfig,
    vision_config: VisionConfig,
    projection_dim: usize,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
struct TextConfig {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    max_position_embeddings: usize,
    hidden_act: Activation,
    layer_norm_eps: f32,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
struct VisionConfig {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    image_size: usize,
    patch_size: usize,
    hidden_act: Activation,
    layer_norm_eps: f32,
}

impl Default for ClipConfig {
    fn default() -> Self {
        ClipConfig { text_config: TextConfig::default(), vision_config: VisionConfig::default(), projection_dim: 512 }
    }
}

impl Default for TextConfig {
    fn default() -> Self {
        TextConfig {
            vocab_size: 49408,
            hidden_size: 512,
            intermediate_size: 2048,
            num_hidden_layers: 12,
            num_attention_heads: 8,
            max_position_embeddings: 77,
            hidden_act: Activation::QuickGelu,
            layer_norm_eps: 1e-5,
        }
    }
}

impl Default for VisionConfig {
    fn default() -> Self {
        VisionConfig {
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            image_size: 224,
            patch_size: 32,
            hidden_act: Activation::QuickGelu,
            layer_norm_eps: 1e-5,
        }
    }
}

impl ClipConfig {
    /// Refuses numbers that make no network.
    fn check(&self) -> Result<()> {
        let (text, vision) = (&self.text_config, &self.vision_config);
        let numbers = [
            ("projection_dim", self.projection_dim),
            ("text_config.vocab_size", text.vocab_size),
            ("text_config.hidden_size", text.hidden_size),
            ("text_config.intermediate_size", text.intermediate_size),
            ("text_config.num_attention_heads", text.num_attention_heads),
            ("text_config.max_position_embeddings", text.max_position_embeddings),
            ("vision_config.hidden_size", vision.hidden_size),
            ("vision_config.intermediate_size", vision.intermediate_size),
            ("vision_config.num_attention_heads", vision.num_attention_heads),
            ("vision_config.image_size", vision.image_size),
            ("vision_config.patch_size", vision.patch_size),
        ];
        if let Some((name, got)) = numbers.into_iter().find(|(_, n)| !(1..=MOST).contains(n)) {
            return Err(Error::request(format!("CLIP's config.json: {name}"), format!("1 to {MOST}"), got));
        }
        for (name, width, heads) in [
            ("text_config", text.hidden_size, text.num_attention_heads),
            ("vision_config", vision.hidden_size, vision.num_attention_heads),
        ] {
            if !width.is_multiple_of(heads) {
                let what = format!("CLIP's config.json: {name}.hidden_size");
                return Err(Error::request(what, format!("a multiple of {heads}, the heads"), width));
            }
        }
        match vision.patch_size <= vision.image_size {
            true => Ok(()),
            false => {
                let what = "CLIP's config.json: vision_config.patch_size";
                Err(Error::request(what, format!("at most {}, the picture", vision.image_size), vision.patch_size))
            }
        }
    }
}

/// The network: a tower for texts, and one for pictures.
pub struct Clip {
    tokens: Array2<f32>,
    token_places: Array2<f32>,
    text: Transformer,
    text_norm: Norm,
    text_projection: Linear,
    image_size: usize,
    patch_size: usize,
    patches: Linear,
    class: Vec<f32>,
    patch_places: Array2<f32>,
    first_norm: Norm,
    vision: Transformer,
    last_norm: Norm,
    vision_projection: Linear,
}

impl Clip {
    /// The network of these weights, by transformers' names.
    ///
    /// # Errors
    /// [`Error::Request`] if the configuration makes no network, or naming the first tensor that is missing or has other axes.
    pub fn new(config: &ClipConfig, from: &dyn Weights) -> Result<Self> {
        config.check()?;
        let (text, vision, projected) = (&config.text_config, &config.vision_config, config.projection_dim);
        let table = |name: &str, dims: [usize; 2]| -> Result<Array2<f32>> {
            Ok(Array2::from_shape_vec(dims, from.shaped(name, &dims)?).expect("these axes"))
        };
        let places = (vision.image_size / vision.patch_size).pow(2) + 1;
        let vision_norm =
            |name: &str| Norm::read(from, &format!("vision_model.{name}"), vision.hidden_size, vision.layer_norm_eps);
        let text_shape = Shape {
            width: text.hidden_size,
            inner: text.intermediate_size,
            layers: text.num_hidden_layers,
            heads: text.num_attention_heads,
            activation: text.hidden_act,
            epsilon: text.layer_norm_eps,
            causal: true,
        };
        let vision_shape = Shape {
            width: vision.hidden_size,
            inner: vision.intermediate_size,
            layers: vision.num_hidden_layers,
            heads: vision.num_attention_heads,
            activation: vision.hidden_act,
            epsilon: vision.layer_norm_eps,
            causal: false,
        };
        let patch = [vision.hidden_size, 3, vision.patch_size, vision.patch_size];
        let patches = from.shaped("vision_model.embeddings.patch_embedding.weight", &patch)?;
        Ok(Clip {
            tokens: table("text_model.embeddings.token_embedding.weight", [text.vocab_size, text.hidden_size])?,
            token_places: table(
                "text_model.embeddings.position_embedding.weight",
                [text.max_position_embeddings, text.hidden_size],
            )?,
            text: Transformer::read(from, "text_model", text_shape)?,
            text_norm: Norm::read(from, "text_model.final_layer_norm", text.hidden_size, text.layer_norm_eps)?,
            text_projection: Linear::read(from, "text_projection", [text.hidden_size, projected], false)?,
            image_size: vision.image_size,
            patch_size: vision.patch_size,
            patches: Linear::of(patches, vision.hidden_size),
            class: from.shaped("vision_model.embeddings.class_embedding", &[vision.hidden_size])?,
            patch_places: table("vision_model.embeddings.position_embedding.weight", [places, vision.hidden_size])?,
            // So spelled by its authors.
            first_norm: vision_norm("pre_layrnorm")?,
            vision: Transformer::read(from, "vision_model", vision_shape)?,
            last_norm: vision_norm("post_layernorm")?,
            vision_projection: Linear::read(from, "visual_projection", [vision.hidden_size, projected], false)?,
        })
    }

    /// Tokens that a text may have, with its beginning and end.
    pub fn most_tokens(&self) -> usize {
        self.token_places.nrows()
    }

    /// Refuses pictures that would be enormous when their shorter side fits.
    pub(crate) fn check(&self, [height, width]: [usize; 2]) -> Result<()> {
        match height.max(width) / LONGEST > height.min(width) {
            true => {
                let expected = format!("pictures whose sides are at most {LONGEST} to 1");
                Err(Error::request("CLIP", expected, format!("{width} x {height} pixels")))
            }
            false => Ok(()),
        }
    }

    /// What tells CLIPs apart.
    pub(crate) fn name(&self) -> String {
        format!("pictures of {0} x {0} in patches of {1}", self.image_size, self.patch_size)
    }

    /// The direction of a text of these tokens, the last of which ends it: a vector of length 1.
    ///
    /// # Errors
    /// [`Error::Request`] if there are none or too many, or one is not in the table.
    pub fn text(&self, tokens: &[u32]) -> Result<Vec<f32>> {
        if tokens.is_empty() || tokens.len() > self.most_tokens() {
            let expected = format!("1 to {}", self.most_tokens());
            return Err(Error::request("tokens of a text for CLIP", expected, tokens.len()));
        }
        let mut x = self.token_places.slice(s![..tokens.len(), ..]).to_owned();
        for (mut row, &token) in x.rows_mut().into_iter().zip(tokens) {
            let rows = self.tokens.nrows();
            let place = usize::try_from(token).ok().filter(|&token| token < rows);
            let place =
                place.ok_or_else(|| Error::request("tokens of a text for CLIP", format!("below {rows}"), token))?;
            row += &self.tokens.row(place);
        }
        let x = self.text_norm.apply(&self.text.apply(x));
        Ok(direction(&self.text_projection.apply(&x.slice(s![tokens.len() - 1.., ..]))))
    }

    /// The direction of a picture `(height, width, 3)` in 0..1, which is rounded to bytes first: a vector of length 1. It is resized
    /// so that its shorter side fits (Pillow's bicubic filter), and its middle is looked at.
    pub fn picture(&self, picture: &[f32], size: [usize; 2]) -> Vec<f32> {
        let x = self.middle(&Map { size, channels: 3, values: bytes(picture) });
        let (side, patch) = (self.image_size / self.patch_size, self.patch_size);
        // Weights are (channel, row, column) of a patch.
        let value = |place: usize, at: usize| {
            let (channel, row, column) = (at / (patch * patch), at / patch % patch, at % patch);
            let (y, x_at) = (place / side * patch + row, place % side * patch + column);
            let byte = x.values[(y * self.image_size + x_at) * 3 + channel];
            (byte / 255.0 - MEAN[channel]) / DEVIATION[channel]
        };
        let patches = Array2::from_shape_fn((side * side, 3 * patch * patch), |(place, at)| value(place, at));
        let mut x = self.patch_places.clone();
        x.row_mut(0).iter_mut().zip(&self.class).for_each(|(x, class)| *x += class);
        let mut others = x.slice_mut(s![1.., ..]);
        others += &self.patches.apply(&patches.view());
        let x = self.vision.apply(self.first_norm.apply(&x));
        let class = self.last_norm.apply(&x.slice(s![..1, ..]).to_owned());
        direction(&self.vision_projection.apply(&class.view()))
    }

    /// The middle square of a picture, of bytes, whose shorter side is brought to the network's.
    fn middle(&self, picture: &Map) -> Map {
        let (wanted, [height, width]) = (self.image_size, picture.size);
        let shorter = height.min(width);
        let resized = bicubic_bytes(picture, [height, width].map(|side| wanted * side / shorter));
        let [top, left] = resized.size.map(|side| (side - wanted) / 2);
        let row = |y: usize| &resized.values[((top + y) * resized.size[1] + left) * 3..][..wanted * 3];
        Map { size: [wanted; 2], channels: 3, values: (0..wanted).flat_map(row).copied().collect() }
    }
}

/// The score of a picture and a text by their directions: a hundred times their cosine, or 0 (Hessel et al. 2021, without their
/// factor of 2.5).
pub fn clip_score(picture: &[f32], text: &[f32]) -> f64 {
    let cosine: f64 = picture.iter().zip(text).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
    100.0 * cosine.max(0.0)
}

/// The only row of `x`, divided by its length.
fn direction(x: &Array2<f32>) -> Vec<f32> {
    let length = x.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
    x.iter().map(|&v| (f64::from(v) / length) as f32).collect()
}
