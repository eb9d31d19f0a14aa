//! CLIP's text encoder (Radford et al. 2021), as transformers saves it: `CLIPTextModel`, and
//! `CLIPTextModelWithProjection`.
//!
//! ```text
//! x = table[token] + position        per layer: x += attention(norm(x)), causal; x += W act(W norm(x))
//! ```
//!
//! What a pipeline takes of it differs; see [`Output`]. Checkpoints of transformers before version 5 have `text_model.`
//! before every name; both are read.

use super::Fields;
use super::builder::{Builder, Linear};
use crate::source::diffusers::Object;
use crate::weight::Weights;
use aquatint::error::{Error, Result};
use aquatint::raw::program::{Act, Add, Attend, Attention, Concat, Dim, Input, InputKind, Op, Program, Role, Value};
use serde_json::{Value as Json, json};

/// The prefix that a checkpoint's names may have.
const PREFIX: &str = "text_model.";

/// Which values are the result, `(n, tokens, features + pooled)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// The last layer's, after the final norm: Stable Diffusion.
    Normed,
    /// The last but one layer's, as they are: SDXL's first encoder.
    Penultimate,
    /// Those, and the projection of every token's [`Output::Normed`] beside them, of which the end token's is the vector
    /// of the whole text: SDXL's second encoder.
    PenultimateAndPooled,
}

/// What the program depends on.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    component: &'static str,
    /// Rows of the token table.
    pub vocabulary: u32,
    /// Tokens of a text with its beginning, end and padding.
    pub tokens: u32,
    /// Features of a token.
    pub features: u32,
    /// The token whose features the whole text's vector is made of. None means the one of the highest number, as files
    /// older than transformers 4.31 say by a 2.
    pub end: Option<u64>,
    /// Features of the vector of the whole text; none without projection.
    pub projection: Option<u32>,
    layers: u32,
    heads: u32,
    hidden: u32,
    act: Act,
    eps: f32,
}

impl Config {
    /// Reads the configuration of `component`, which is of class `class`.
    ///
    /// # Errors
    /// [`Error::Request`] naming the field, what is supported and what it is.
    pub fn read(component: &'static str, class: &str, object: &Object) -> Result<Self> {
        let fields = Fields::new(component, object);
        let projection = match class {
            "CLIPTextModel" => None,
            "CLIPTextModelWithProjection" => Some(fields.count_or("projection_dim", 512)?),
            other => {
                let expected = "CLIPTextModel or CLIPTextModelWithProjection";
                return Err(Error::request(format!("{component}/config.json: class"), expected, format!("{other:?}")));
            }
        };
        let config = Config {
            component,
            vocabulary: fields.count_or("vocab_size", 49408)?,
            tokens: fields.count_or("max_position_embeddings", 77)?,
            features: fields.count_or("hidden_size", 512)?,
            end: object.get("eos_token_id").and_then(Json::as_u64).filter(|&end| end != 2),
            projection,
            layers: fields.count_or("num_hidden_layers", 12)?,
            heads: fields.count_or("num_attention_heads", 8)?,
            hidden: fields.count_or("intermediate_size", 2048)?,
            act: match fields.text_or("hidden_act", "quick_gelu")? {
                "quick_gelu" => Act::QuickGelu,
                "gelu" => Act::GeluErf,
                other => return Err(fields.error("hidden_act", "quick_gelu or gelu", other)),
            },
            eps: fields.float_or("layer_norm_eps", 1e-5)? as f32,
        };
        fields.must_be("model_type", json!("clip_text_model"), json!("clip_text_model"))?;
        if !config.features.is_multiple_of(config.heads) {
            let expected = format!("a divisor of hidden_size {}", config.features);
            return Err(fields.error("num_attention_heads", expected, config.heads));
        }
        if config.layers < 2 {
            return Err(fields.error("num_hidden_layers", "at least 2", config.layers));
        }
        Ok(config)
    }

    /// Prefixes of tensors that the checkpoint has and the program does not use.
    pub fn unused(&self, output: Output, has: &dyn Fn(&str) -> bool) -> Vec<String> {
        let prefix = prefix(has);
        // Positions 0, 1, 2.. as integers; old versions saved them.
        let mut unused = vec![format!("{prefix}embeddings.position_ids")];
        if output == Output::Penultimate {
            unused.push(format!("{prefix}encoder.layers.{}.", self.layers - 1));
            unused.push(format!("{prefix}final_layer_norm."));
        }
        unused
    }
}

fn prefix(has: &dyn Fn(&str) -> bool) -> &'static str {
    if has(&format!("{PREFIX}embeddings.token_embedding.weight")) { PREFIX } else { "" }
}

/// The encoder: tokens `(n, tokens)` to features, see [`Output`]. `has` tells whether the checkpoint holds a tensor of
/// that name; it decides about the prefix.
///
/// # Panics
/// If `output` wants a projection and the model has none: a bug, since the pipeline's class decides about both.
pub fn lower(
    config: &Config,
    output: Output,
    role: Role,
    has: &dyn Fn(&str) -> bool,
    weights: &mut Weights,
) -> Program {
    let c = config;
    let prefix = prefix(has);
    let (d, tokens) = (c.features as usize, c.tokens as usize);
    let inputs = vec![Input { kind: InputKind::Tokens, dims: vec![Dim::Batch, Dim::Fixed(c.tokens)] }];
    let mut builder = Builder::new(role, c.component, inputs, weights);
    let b = &mut builder;
    let path = format!("{prefix}embeddings");
    let embedded = b.embedding(&format!("{path}.token_embedding"), Value(0), c.vocabulary as usize, d);
    let position = b.table(&format!("{path}.position_embedding"), tokens, d);
    let mut x = b.push(&path, Op::Add(Add { a: embedded, b: position }));
    b.wide(x);
    let last = c.layers - 1;
    let mut penultimate = x;
    for i in 0..c.layers {
        if i == last {
            penultimate = x;
            if output == Output::Penultimate {
                return builder.finish(x);
            }
        }
        x = layer(b, c, &format!("{prefix}encoder.layers.{i}"), x);
    }
    let normed = b.layer_norm(&format!("{prefix}final_layer_norm"), x, d, c.eps);
    if output == Output::Normed {
        b.wide(normed);
        return builder.finish(normed);
    }
    let Some(projection) = c.projection else { panic!("a model with projection") };
    let with = Linear { bias: false, ..Linear::default() };
    let pooled = b.linear("text_projection", normed, &[projection as usize, d], with);
    b.wide(pooled);
    let both = b.push("hidden_states", Op::Concat(Concat { a: penultimate, b: pooled, tokens: false }));
    b.wide(both);
    builder.finish(both)
}

/// A layer; its result is wide, as the residual stream is.
fn layer(b: &mut Builder, c: &Config, path: &str, x: Value) -> Value {
    let (d, hidden) = (c.features as usize, c.hidden as usize);
    let normed = b.layer_norm(&format!("{path}.layer_norm1"), x, d, c.eps);
    let [q, k, v] = ["q_proj", "k_proj", "v_proj"]
        .map(|name| b.linear(&format!("{path}.self_attn.{name}"), normed, &[d, d], Linear::default()));
    let scale = ((c.features / c.heads) as f32).sqrt().recip();
    let attend = Attend { causal: true, ..Attend::default() };
    let attended = b.push(
        &format!("{path}.self_attn"),
        Op::Attention(Attention { q, k, v, heads: c.heads, scale, attend, ..Attention::default() }),
    );
    let with = Linear { residual: Some(x), ..Linear::default() };
    let x = b.linear(&format!("{path}.self_attn.out_proj"), attended, &[d, d], with);
    b.wide(x);
    let normed = b.layer_norm(&format!("{path}.layer_norm2"), x, d, c.eps);
    let act = Linear { act: c.act, ..Linear::default() };
    let inner = b.linear(&format!("{path}.mlp.fc1"), normed, &[hidden, d], act);
    let with = Linear { residual: Some(x), ..Linear::default() };
    let x = b.linear(&format!("{path}.mlp.fc2"), inner, &[d, hidden], with);
    b.wide(x)
}
