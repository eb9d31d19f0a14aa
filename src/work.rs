//! How much arithmetic a program is, and how much of it hoisting takes out of the step loop.
//!
//! What counts is multiply-adds of layers (linear, gated, convolutions) and of attention, as papers count; norms, activations and
//! additions do not. A FLOP is half a multiply-add.

use crate::error::Result;
use crate::hoist::rates;
use crate::program::shape::{TensorType, Type, infer};
use crate::program::{Attention, Conv2d, Dims, GatedLinear, Linear, Op, Program, Rate, Reach, Tensor, Value};

/// Multiply-adds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Macs {
    /// Of weights.
    pub layers: u64,
    /// Of queries with keys; as many again are of what they weigh with values.
    pub attention: u64,
}

impl Macs {
    /// Floating point operations, two per multiply-add.
    pub fn flops(&self) -> u64 {
        2 * (self.layers + 2 * self.attention)
    }
}

/// The weight that an op multiplies by; none for ops that multiply by none.
pub fn layer(op: &Op) -> Option<Tensor> {
    match *op {
        Op::Linear(Linear { weight, .. })
        | Op::GatedLinear(GatedLinear { weight, .. })
        | Op::Conv2d(Conv2d { weight, .. }) => Some(weight),
        Op::Attention(_)
        | Op::LayerNorm(_)
        | Op::GroupNorm(_)
        | Op::Pointwise(_)
        | Op::Add(_)
        | Op::Quantize(_)
        | Op::Embedding(_)
        | Op::TimestepEmbedding(_)
        | Op::PositionEmbedding(_)
        | Op::Patchify(_)
        | Op::Unpatchify(_)
        | Op::Concat(_)
        | Op::VectorQuantize(_)
        | Op::Resample(_)
        | Op::Parameter(_)
        | Op::Slice(_)
        | Op::Round(_)
        | Op::Multiply(_)
        | Op::RelativeBias(_)
        | Op::Rotary(_)
        | Op::PadRows(_) => None,
    }
}

/// The multiply-adds of node `node` of `program`, whose values have the types `values` when its symbolic axes are `dims`.
pub fn macs(program: &Program, node: usize, (tensors, values): (&[TensorType], &[Type]), dims: &Dims) -> Macs {
    let op = &program.nodes[node].op;
    let of = |value: Value| values[value.0 as usize].dims();
    let rows = |dims: &[usize]| dims.iter().take(dims.len().saturating_sub(1)).product::<usize>() as u64;
    let weights = layer(op).map_or(0, |tensor| tensors[tensor.0 as usize].dims.iter().product::<usize>() as u64);
    let layers = if weights == 0 { 0 } else { rows(of(program.value_of(node))) * weights };
    let mut attention = 0;
    // Where all keys count alike there is a mean, and no product.
    if let Op::Attention(Attention { q, k, reach, scale, .. }) = *op
        && scale != 0.0
    {
        let (q, k) = (of(q), of(k));
        let features = q.last().copied().unwrap_or(0) as u64;
        let keys: usize = k[1.min(k.len())..k.len().saturating_sub(1)].iter().product();
        let seen = match reach {
            Reach::Sample => keys,
            Reach::Frame => keys / dims.frames.max(1),
            Reach::Place => dims.frames,
        };
        attention = rows(q) * features * seen as u64;
    }
    Macs { layers, attention }
}

/// Nodes that run equally often and whose module paths are the same but for numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// How often they run.
    pub rate: Rate,
    /// Their module path, with `*` for every number.
    pub path: String,
    /// How many they are.
    pub ops: usize,
    /// Floating point operations of all of them when they run for one call.
    pub flops: u64,
}

/// All nodes of `program` that its result depends on, by how often they run and by what they are, in the order in which the first of
/// each stands there, when its symbolic axes are `dims`. Of phases, it is the first.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if the program cannot take these dims.
pub fn groups(program: &Program, tensors: &[TensorType], dims: &Dims) -> Result<Vec<Group>> {
    let program = &*program.in_phase(0);
    let (values, rates, needed) = (infer(program, tensors, dims)?, rates(program), program.needed());
    let mut groups: Vec<Group> = Vec::new();
    for (i, node) in program.nodes.iter().enumerate().filter(|&(i, _)| needed[i]) {
        let rate = rates[program.value_of(i).0 as usize];
        let path = without_numbers(&node.path);
        let flops = macs(program, i, (tensors, &values), dims).flops();
        match groups.iter_mut().find(|group| group.rate == rate && group.path == path) {
            Some(group) => (group.ops, group.flops) = (group.ops + 1, group.flops + flops),
            None => groups.push(Group { rate, path, ops: 1, flops }),
        }
    }
    Ok(groups)
}

/// A module path with `*` for every component that is a number.
fn without_numbers(path: &str) -> String {
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    let parts: Vec<&str> = path.split('.').map(|part| if is_number(part) { "*" } else { part }).collect();
    parts.join(".")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::{Attend, Dim, Input, InputKind, Node, Patchify, Role, TimestepEmbedding};

    fn linear(x: u32, weight: u32) -> Op {
        Op::Linear(Linear { x: Value(x), weight: Tensor(weight), ..Linear::default() })
    }

    /// A program of videos that reads timesteps and a context, with `nodes` from value 3 on, and its groups.
    fn found(nodes: Vec<(&str, Op)>, output: u32) -> Vec<Group> {
        let sample = vec![Dim::Batch, Dim::Frames, Dim::Height, Dim::Width, Dim::Fixed(8)];
        let inputs = vec![
            Input { kind: InputKind::Sample, dims: sample },
            Input { kind: InputKind::Timestep, dims: vec![Dim::Conditions] },
            Input { kind: InputKind::Context, dims: vec![Dim::Conditions, Dim::Tokens, Dim::Fixed(8)] },
        ];
        let nodes = nodes.into_iter().map(|(path, op)| Node { op, path: path.into(), wide: false }).collect();
        let program =
            Program { role: Role::Denoiser, inputs, nodes, output: Value(output), phases: Default::default() };
        let tensor = TensorType { dims: vec![8, 8], integer: false, f32: true, codes: false, bytes: false };
        let dims = Dims { batch: 2, conditions: 3, height: 4, width: 5, tokens: 7, frames: 6 };
        groups(&program, &[tensor], &dims).unwrap()
    }

    #[test]
    fn products_are_counted_where_they_are_made() {
        let attend = |x, scale, reach| {
            let (q, k, v) = (Value(x), Value(x), Value(x));
            Op::Attention(Attention { q, k, v, heads: 1, scale, reach, ..Attention::default() })
        };
        let read = Attention { q: Value(7), k: Value(4), v: Value(4), heads: 1, scale: 1.0, ..Attention::default() };
        let read = Op::Attention(Attention { attend: Attend { per_condition: true, ..Attend::default() }, ..read });
        let found = found(
            vec![
                ("patches", Patchify { x: Value(0), patch: 1 }.into()), // 3
                ("blocks.0.to_k", linear(2, 0)),                        // 4
                ("blocks.0.attn", attend(3, 1.0, Reach::Frame)),        // 5
                ("blocks.0.attn", attend(5, 1.0, Reach::Place)),        // 6
                ("blocks.1.attn", attend(6, 0.0, Reach::Sample)),       // 7
                ("blocks.2.cross", read),                               // 8
                ("unread", linear(0, 0)),                               // 9
                ("out", linear(8, 0)),                                  // 10
            ],
            10,
        );
        let rows = 2 * 6 * 4 * 5;
        let expected = [
            ("patches", Rate::Loop, 1, 0),
            ("blocks.*.to_k", Rate::Prompt, 1, 2 * 3 * 7 * 64),
            // Of frames with 20 patches each, and of places with 6 frames each; the third is a mean.
            ("blocks.*.attn", Rate::Loop, 3, 4 * rows * 8 * (20 + 6)),
            ("blocks.*.cross", Rate::Loop, 1, 4 * rows * 8 * 7),
            ("out", Rate::Loop, 1, 2 * rows * 64),
        ];
        assert_eq!(found, expected.map(|(path, rate, ops, flops)| Group { rate, path: path.into(), ops, flops }));
    }

    #[test]
    fn blocks_are_counted_together() {
        let time = TimestepEmbedding { t: Value(1), dim: 8, ..TimestepEmbedding::default() };
        let nodes = vec![("time", time.into()), ("blocks.0.m", linear(3, 0)), ("blocks.1.m", linear(4, 0))];
        let step = |path: &str, ops, flops| Group { rate: Rate::Step, path: path.into(), ops, flops };
        assert_eq!(found(nodes, 5), [step("time", 1, 0), step("blocks.*.m", 2, 2 * 2 * 3 * 64)]);
    }

    #[test]
    fn only_whole_components_are_numbers() {
        assert_eq!(without_numbers("blocks.12.ff.net.0.proj"), "blocks.*.ff.net.*.proj");
        assert_eq!(without_numbers("attn1..to_q2"), "attn1..to_q2");
    }
}
