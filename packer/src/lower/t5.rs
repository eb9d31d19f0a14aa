//! T5's encoder (Raffel et al. 2020) in version 1.1, and mT5's, which is the same: `T5EncoderModel`, `MT5EncoderModel`.
//!
//! ```text
//! x = table[token]        per layer: x += W attention(norm(x));  x += W (gelu(norm(x) W0) * (norm(x) W1))
//! out: norm(x)
//! ```
//!
//! Norms divide by the root of the mean square and have no bias. Scores are not scaled, and get one number per head and
//! distance of query and key, from a table that only the first block's checkpoint has and all blocks read. Layers have no
//! biases. The residual stream reaches thousands, and the products of the gated layer leave the range of f16 in the published
//! weights: both are wide.

use super::Fields;
use super::builder::{Builder, Linear};
use crate::source::diffusers::Object;
use crate::weight::Weights;
use aquatint::error::{Error, Result};
use aquatint::raw::program::{
    Act, Attend, Attention, Dim, Input, InputKind, Multiply, Op, Program, RelativeBias, Role, Value,
};
use serde_json::{Value as Json, json};

/// The token table by its two names; checkpoints have either or both.
const TABLES: [&str; 2] = ["shared", "encoder.embed_tokens"];

/// What the program depends on.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    component: &'static str,
    /// Rows of the token table.
    pub vocabulary: u32,
    /// Features of a token.
    pub features: u32,
    heads: u32,
    head_dim: u32,
    hidden: u32,
    layers: u32,
    buckets: u32,
    max_distance: u32,
    eps: f32,
}

/// Whose tokens a text's are, and how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// As many as the text has: nothing is filled up, and every token counts.
    Own,
    /// As many as are given; how many of them count is an input.
    Told,
    /// So many; how many of them count is an input.
    Padded(u32),
}

impl Length {
    /// The inputs of an encoder of texts: tokens, and how many of them count where not all do.
    pub(super) fn inputs(self) -> Vec<Input> {
        let tokens = |dim| Input { kind: InputKind::Tokens, dims: vec![Dim::Batch, dim] };
        let lengths = || Input { kind: InputKind::Lengths, dims: vec![Dim::Batch] };
        match self {
            Length::Own => vec![tokens(Dim::Tokens)],
            Length::Told => vec![tokens(Dim::Tokens), lengths()],
            Length::Padded(count) => vec![tokens(Dim::Fixed(count)), lengths()],
        }
    }

    /// The input that says how many tokens count.
    pub(super) fn counts(self) -> Option<Value> {
        (self != Length::Own).then_some(Value(1))
    }
}

impl Config {
    /// Reads the configuration of `component`, which is of class `class`.
    ///
    /// # Errors
    /// [`Error::Request`] naming the field, what is supported and what it is.
    pub fn read(component: &'static str, class: &str, object: &Object) -> Result<Self> {
        let fields = Fields::new(component, object);
        if !["T5EncoderModel", "MT5EncoderModel"].contains(&class) {
            let what = format!("{component}/config.json: class");
            return Err(Error::request(what, "T5EncoderModel or MT5EncoderModel", format!("{class:?}")));
        }
        // The classes of configurations differ in their defaults.
        let multilingual = object.get("model_type").and_then(Json::as_str) == Some("mt5") || class == "MT5EncoderModel";
        let default = |t5: u32, mt5: u32| if multilingual { mt5 } else { t5 };
        let act = if multilingual { "gated-gelu" } else { "relu" };
        fields.must_be("feed_forward_proj", json!(act), json!("gated-gelu"))?;
        let config = Config {
            component,
            vocabulary: table_rows(&fields, object, default(32128, 250112))?,
            features: fields.count_or("d_model", 512)?,
            heads: fields.count_or("num_heads", default(8, 6))?,
            head_dim: fields.count_or("d_kv", 64)?,
            hidden: fields.count_or("d_ff", default(2048, 1024))?,
            layers: fields.count_or("num_layers", default(6, 8))?,
            buckets: fields.count_or("relative_attention_num_buckets", 32)?,
            max_distance: fields.count_or("relative_attention_max_distance", 128)?,
            eps: fields.float_or("layer_norm_epsilon", 1e-6)? as f32,
        };
        // Half of the buckets are for keys behind the query, and half of those for exact distances.
        if !config.buckets.is_multiple_of(4) || config.max_distance <= config.buckets / 4 {
            let expected = "a multiple of 4 below four times relative_attention_max_distance";
            return Err(fields.error("relative_attention_num_buckets", expected, config.buckets));
        }
        Ok(config)
    }
}

/// Tokens of a vocabulary, of which there may be more than a configuration may otherwise name of anything.
fn table_rows(fields: &Fields, object: &Object, default: u32) -> Result<u32> {
    match object.get("vocab_size").filter(|v| !v.is_null()) {
        None => Ok(default),
        Some(value) => match value.as_u64() {
            Some(rows @ 1..=MAX_VOCABULARY) => Ok(rows as u32),
            _ => Err(fields.error("vocab_size", format!("a whole number from 1 to {MAX_VOCABULARY}"), value)),
        },
    }
}

/// Most tokens of a vocabulary; mT5 has a quarter of it.
const MAX_VOCABULARY: u64 = 1 << 20;

/// The encoder: tokens `(n, tokens)` to features `(n, tokens, features)`. `has` tells whether the checkpoint holds a tensor
/// of that name, `same` whether two of them are equal.
///
/// # Errors
/// [`Error::Request`] if the checkpoint has two tables of tokens that differ.
pub fn lower<'a>(
    config: &Config,
    length: Length,
    role: Role,
    has: &dyn Fn(&str) -> bool,
    same: &'a dyn Fn(&str, &str) -> bool,
    weights: &'a mut Weights,
) -> Result<Program> {
    let c = config;
    let (d, rows) = (c.features as usize, c.vocabulary as usize);
    let mut builder = Builder::new(role, c.component, length.inputs(), weights);
    let b = &mut builder;
    let names = TABLES.map(|table| format!("{table}.weight"));
    let mut x = match names.each_ref().map(|name| has(name)) {
        [true, true] if !same(&names[0], &names[1]) => {
            let expected = format!("what {} is, which it stands for", names[0]);
            return Err(Error::request(format!("{}: {}", c.component, names[1]), expected, "another table"));
        }
        // One table, stored once.
        [true, true] => b.sharing(same, |b| TABLES.map(|table| b.embedding(table, Value(0), rows, d))[0]),
        [false, true] => b.embedding(TABLES[1], Value(0), rows, d),
        [_, false] => b.embedding(TABLES[0], Value(0), rows, d),
    };
    b.wide(x);
    let path = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias";
    let table = b.rows(format!("{path}.weight"), [c.buckets as usize, c.heads as usize]);
    let bias = RelativeBias { x, table, buckets: c.buckets, max_distance: c.max_distance };
    let bias = b.push(path, bias.into());
    for i in 0..c.layers {
        x = layer(b, c, &format!("encoder.block.{i}.layer"), x, bias, length.counts());
    }
    let out = b.rms_norm("encoder.final_layer_norm", x, d, c.eps);
    b.wide(out);
    Ok(builder.finish(out))
}

/// A layer; its result is wide, as the residual stream is.
fn layer(b: &mut Builder, c: &Config, path: &str, x: Value, bias: Value, lengths: Option<Value>) -> Value {
    let (d, inner, hidden) = (c.features as usize, (c.heads * c.head_dim) as usize, c.hidden as usize);
    let plain = Linear { bias: false, ..Linear::default() };
    let normed = b.rms_norm(&format!("{path}.0.layer_norm"), x, d, c.eps);
    let attention = format!("{path}.0.SelfAttention");
    let [q, k, v] = ["q", "k", "v"].map(|name| b.linear(&format!("{attention}.{name}"), normed, &[inner, d], plain));
    let (heads, attend) = (c.heads, Attend::default());
    let attended = Attention {
        q,
        k,
        v,
        heads,
        scale: 1.0,
        attend,
        softmax: None,
        bias: Some(bias),
        lengths,
        ..Attention::default()
    };
    let attended = b.push(&attention, attended.into());
    let x = b.linear(&format!("{attention}.o"), attended, &[d, inner], Linear { residual: Some(x), ..plain });
    b.wide(x);

    let normed = b.rms_norm(&format!("{path}.1.layer_norm"), x, d, c.eps);
    let mlp = format!("{path}.1.DenseReluDense");
    let gate = b.linear(&format!("{mlp}.wi_0"), normed, &[hidden, d], Linear { act: Act::GeluTanh, ..plain });
    let value = b.linear(&format!("{mlp}.wi_1"), normed, &[hidden, d], plain);
    let product = b.push(&mlp, Op::Multiply(Multiply { a: gate, b: value }));
    b.wide(product);
    let x = b.linear(&format!("{mlp}.wo"), product, &[d, hidden], Linear { residual: Some(x), ..plain });
    b.wide(x)
}
