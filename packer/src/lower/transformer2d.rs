//! `Transformer2DModel`: the transformer of UNets, over pixels as tokens, which also attends to a context.
//!
//! ```text
//! x + W blocks(W norm(x))
//! block: x += attention(norm(x));  x += attention(norm(x), context);  x += W (a * gelu(b)), a | b = W norm(x)
//! ```

use super::blocks::Blocks;
use super::builder::{Builder, GroupNorm, Linear};
use aquatint::raw::program::{Act, Attend, Attention, Op, Value};

/// Epsilon of the group norm before the blocks.
const ENTRY_EPS: f32 = 1e-6;
/// Epsilon of the layer norms.
const EPS: f32 = 1e-5;

/// What all transformers of a network share.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Transformer {
    /// The context, `(conditions, .., features)`.
    pub context: Value,
    /// Features of the context.
    pub features: usize,
    /// Whether the checkpoint's projections in and out are linear layers; else 1x1 convolutions, which compute the same.
    pub linear: bool,
}

impl Transformer {
    /// Appends a transformer of `layers` blocks over pixels of `d` channels.
    pub fn lower(&self, blocks: &mut Blocks, path: &str, x: Value, d: usize, layers: u32, heads: u32) -> Value {
        let entry = GroupNorm::new(blocks.groups, ENTRY_EPS);
        let b = &mut blocks.b;
        let dims: &[usize] = if self.linear { &[d, d] } else { &[d, d, 1, 1] };
        let normed = b.group_norm(&format!("{path}.norm"), x, d, entry);
        let mut hidden = b.linear(&format!("{path}.proj_in"), normed, dims, Linear::default());
        for i in 0..layers {
            hidden = self.block(b, &format!("{path}.transformer_blocks.{i}"), hidden, d, heads);
        }
        let with = Linear { residual: Some(x), ..Linear::default() };
        b.linear(&format!("{path}.proj_out"), hidden, dims, with)
    }

    fn block(&self, b: &mut Builder, path: &str, x: Value, d: usize, heads: u32) -> Value {
        let normed = b.layer_norm(&format!("{path}.norm1"), x, d, EPS);
        let x = attention(b, &format!("{path}.attn1"), x, [normed, normed], [d, d], heads, Attend::default());
        let normed = b.layer_norm(&format!("{path}.norm2"), x, d, EPS);
        let attend = Attend { per_condition: true, ..Attend::default() };
        let reads = [normed, self.context];
        let x = attention(b, &format!("{path}.attn2"), x, reads, [d, self.features], heads, attend);
        let normed = b.layer_norm(&format!("{path}.norm3"), x, d, EPS);
        let hidden = b.gated_linear(&format!("{path}.ff.net.0.proj"), normed, [d, 4 * d], Act::GeluErf);
        let with = Linear { residual: Some(x), ..Linear::default() };
        b.linear(&format!("{path}.ff.net.2"), hidden, &[d, 4 * d], with)
    }
}

/// `x` plus attention of queries from `reads[0]` of `dims[0]` features to keys and values from `reads[1]` of `dims[1]`.
fn attention(
    b: &mut Builder,
    path: &str,
    x: Value,
    reads: [Value; 2],
    dims: [usize; 2],
    heads: u32,
    attend: Attend,
) -> Value {
    let [d, features] = dims;
    let plain = Linear { bias: false, ..Linear::default() };
    let q = b.linear(&format!("{path}.to_q"), reads[0], &[d, d], plain);
    let [k, v] = ["to_k", "to_v"].map(|name| b.linear(&format!("{path}.{name}"), reads[1], &[d, features], plain));
    let scale = ((d as u32 / heads) as f32).sqrt().recip();
    let attended = b.push(path, Op::Attention(Attention { q, k, v, heads, scale, attend, ..Attention::default() }));
    let with = Linear { residual: Some(x), ..Linear::default() };
    b.linear(&format!("{path}.to_out.0"), attended, &[d, d], with)
}
