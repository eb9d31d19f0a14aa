//! BERT's encoder (Devlin et al. 2019): `BertModel`, without the pooler.
//!
//! ```text
//! x = norm(word[token] + position + type[0])
//! per layer: x = norm(x + W attention(x));  x = norm(x + W gelu(W x))
//! ```
//!
//! Norms come after the sums. Texts have one segment, so one row of the table of types is read. Keys that only fill a text
//! up are not seen. Checkpoints of models around it have `bert.` before every name; both are read.

use super::Fields;
use super::builder::{Builder, Linear};
use super::t5::Length;
use crate::source::diffusers::Object;
use crate::weight::Weights;
use aquatint::error::{Error, Result};
use aquatint::raw::program::{Act, Add, Attend, Attention, Op, Parameter, Program, Role, Slice, Value};
use serde_json::json;

/// The prefix that a checkpoint's names may have.
const PREFIX: &str = "bert.";

/// What the program depends on.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    component: &'static str,
    /// Rows of the token table.
    pub vocabulary: u32,
    /// Features of a token.
    pub features: u32,
    /// Most tokens of a text.
    pub positions: u32,
    types: u32,
    layers: u32,
    heads: u32,
    hidden: u32,
    eps: f32,
}

impl Config {
    /// Reads the configuration of `component`, which is of class `class`.
    ///
    /// # Errors
    /// [`Error::Request`] naming the field, what is supported and what it is.
    pub fn read(component: &'static str, class: &str, object: &Object) -> Result<Self> {
        let fields = Fields::new(component, object);
        if class != "BertModel" {
            let what = format!("{component}/config.json: class");
            return Err(Error::request(what, "BertModel", format!("{class:?}")));
        }
        fields.must_be("hidden_act", json!("gelu"), json!("gelu"))?;
        fields.must_be("position_embedding_type", json!("absolute"), json!("absolute"))?;
        fields.must_be("is_decoder", json!(false), json!(false))?;
        let config = Config {
            component,
            vocabulary: fields.count_or("vocab_size", 30522)?,
            features: fields.count_or("hidden_size", 768)?,
            positions: fields.count_or("max_position_embeddings", 512)?,
            types: fields.count_or("type_vocab_size", 2)?,
            layers: fields.count_or("num_hidden_layers", 12)?,
            heads: fields.count_or("num_attention_heads", 12)?,
            hidden: fields.count_or("intermediate_size", 3072)?,
            eps: fields.float_or("layer_norm_eps", 1e-12)? as f32,
        };
        if !config.features.is_multiple_of(config.heads) {
            let expected = format!("a divisor of hidden_size {}", config.features);
            return Err(fields.error("num_attention_heads", expected, config.heads));
        }
        Ok(config)
    }

    /// Prefixes of tensors that the checkpoint may have and the program does not use.
    pub fn unused(&self, has: &dyn Fn(&str) -> bool) -> Vec<String> {
        let prefix = prefix(has);
        // Positions 0, 1, 2.. as integers, the vector of the whole text, and what training predicts.
        vec![format!("{prefix}embeddings.position_ids"), format!("{prefix}pooler."), "cls.".into()]
    }
}

fn prefix(has: &dyn Fn(&str) -> bool) -> &'static str {
    if has(&format!("{PREFIX}embeddings.word_embeddings.weight")) { PREFIX } else { "" }
}

/// The encoder: `tokens` tokens `(n, tokens)`, of which as many count as an input says, to features
/// `(n, tokens, features)`. `has` tells whether the checkpoint holds a tensor of that name; it decides about the prefix.
///
/// # Errors
/// [`Error::Request`] if there are fewer positions than `tokens`.
pub fn lower(
    config: &Config,
    tokens: u32,
    role: Role,
    has: &dyn Fn(&str) -> bool,
    weights: &mut Weights,
) -> Result<Program> {
    let (c, prefix) = (config, prefix(has));
    if tokens > c.positions {
        let what = format!("{}/config.json: max_position_embeddings", c.component);
        return Err(Error::request(what, format!("at least the {tokens} tokens of a text"), c.positions));
    }
    let d = c.features as usize;
    let length = Length::Padded(tokens);
    let mut builder = Builder::new(role, c.component, length.inputs(), weights);
    let b = &mut builder;
    let path = format!("{prefix}embeddings");
    let words = b.embedding(&format!("{path}.word_embeddings"), Value(0), c.vocabulary as usize, d);
    let name = format!("{path}.position_embeddings");
    let tensor = b.rows(format!("{name}.weight"), [c.positions as usize, d]);
    let positions = b.push(&name, Op::Parameter(Parameter { tensor, rows: tokens, ..Parameter::default() }));
    let sum = b.push(&path, Op::Add(Add { a: words, b: positions }));
    let name = format!("{path}.token_type_embeddings");
    let types = b.flat(&name, format!("{name}.weight"), [c.types as usize, d]);
    let first = b.push(&name, Op::Slice(Slice { x: types, first: 0, count: c.features, tokens: false }));
    let sum = b.push(&path, Op::Add(Add { a: sum, b: first }));
    b.wide(sum);
    let mut x = b.layer_norm(&format!("{path}.LayerNorm"), sum, d, c.eps);
    for i in 0..c.layers {
        x = layer(b, c, &format!("{prefix}encoder.layer.{i}"), x, length.counts());
    }
    b.wide(x);
    Ok(builder.finish(x))
}

fn layer(b: &mut Builder, c: &Config, path: &str, x: Value, lengths: Option<Value>) -> Value {
    let (d, hidden) = (c.features as usize, c.hidden as usize);
    let attention = format!("{path}.attention");
    let [q, k, v] = ["query", "key", "value"]
        .map(|name| b.linear(&format!("{attention}.self.{name}"), x, &[d, d], Linear::default()));
    let scale = ((c.features / c.heads) as f32).sqrt().recip();
    let (heads, attend) = (c.heads, Attend::default());
    let attended =
        Attention { q, k, v, heads, scale, attend, softmax: None, bias: None, lengths, ..Attention::default() };
    let attended = b.push(&format!("{attention}.self"), attended.into());
    let with = |residual| Linear { residual: Some(residual), ..Linear::default() };
    let sum = b.linear(&format!("{attention}.output.dense"), attended, &[d, d], with(x));
    b.wide(sum);
    let x = b.layer_norm(&format!("{attention}.output.LayerNorm"), sum, d, c.eps);
    let act = Linear { act: Act::GeluErf, ..Linear::default() };
    let inner = b.linear(&format!("{path}.intermediate.dense"), x, &[hidden, d], act);
    let sum = b.linear(&format!("{path}.output.dense"), inner, &[d, hidden], with(x));
    b.wide(sum);
    b.layer_norm(&format!("{path}.output.LayerNorm"), sum, d, c.eps)
}
