//! Derivatives of programs: a run of nodes forward in f32, and the products of its Jacobian with a vector back.
//!
//! ```text
//! inputs, weights --run--> Tape (every value) --backward(d loss / d outputs)--> d loss / d weights, biases, inputs
//! ```
//!
//! A [`Tape`] holds what the nodes of one run made; [`Tape::backward`] goes through them the other way (reverse-mode
//! differentiation: Griewank & Walther, Evaluating Derivatives, chapter 3). Each op's rules stand in the file of its family,
//! forward and backward side by side. The ops that have rules are those that stand between the weights of a network's
//! blocks; of others there are none, and a program that has them is refused. How many tokens of a prompt count is a number per
//! sample. Codes are floats again at once, and have rules where
//! their range is fixed: the curve's tensor is, in a run, (samples, 2), the scale and zero point at the time of each sample.
//!
//! Everything is f32, as in the training that this serves; sums over rows that could lose digits are of f64. No result
//! depends on the number of threads: work is cut into pieces of fixed size, and partial sums are added in their order.

mod act;
mod array;
mod attention;
mod conv;
mod layout;
mod linear;
mod norm;
mod product;
mod quantize;
mod rotary;
mod rows;

pub use array::{Array, Cotangents, Values};
pub(crate) use product::product;

use aquatint::error::{Error, Result};
use aquatint::raw::program::{Op, Program, Tensor, Value};
use std::collections::{BTreeMap, BTreeSet};

/// Where a run gets its weights from.
pub type Weights<'a> = &'a dyn Fn(Tensor) -> &'a Array;

/// What derivatives are asked for.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Weights, biases and parameters of norms.
    pub tensors: BTreeSet<Tensor>,
    /// Values that the run was given.
    pub values: BTreeSet<Value>,
}

/// What a run of nodes made, kept for the way back.
pub struct Tape<'a> {
    program: &'a Program,
    nodes: &'a [usize],
    /// Frames of a sample.
    frames: usize,
    inputs: &'a Values,
    weights: Weights<'a>,
    made: Values,
    /// By node, what its op made before its activation, where it has one or is scaled after it.
    before: BTreeMap<usize, Array>,
}

impl<'a> Tape<'a> {
    /// Runs `nodes` of `program`, ascending, on `inputs`: every value that they read and do not make. Values have the axes of
    /// the program, of samples of so many `frames`; what depends on conditions has a row per sample, each sample being its own
    /// condition.
    ///
    /// # Errors
    /// [`Error::Request`] naming the node if it is an op without a rule, or reads a value that there is not.
    ///
    /// # Panics
    /// If a value or weight has other axes than the program's shape rules say.
    pub fn run(
        program: &'a Program,
        nodes: &'a [usize],
        frames: usize,
        inputs: &'a Values,
        weights: Weights<'a>,
    ) -> Result<Self> {
        let (made, before) = (Values::new(), BTreeMap::new());
        let mut tape = Tape { program, nodes, frames, inputs, weights, made, before };
        for &node in nodes {
            if let Some(missing) = program.nodes[node].op.operands().find(|value| tape.find(*value).is_none()) {
                let what = format!("{} (node {node})", program.nodes[node].path);
                return Err(Error::request(what, "values that were given or made before", format!("{missing:?}")));
            }
            let result = tape.forward(node)?;
            tape.made.insert(program.value_of(node), result);
        }
        Ok(tape)
    }

    /// A value that was given or made.
    ///
    /// # Panics
    /// If it was neither.
    pub fn value(&self, value: Value) -> &Array {
        self.find(value).expect("a value of the run")
    }

    fn find(&self, value: Value) -> Option<&Array> {
        self.made.get(&value).or_else(|| self.inputs.get(&value))
    }

    /// What was made, all of it.
    pub fn into_values(self) -> Values {
        self.made
    }

    fn forward(&mut self, node: usize) -> Result<Array> {
        let y = match &self.program.nodes[node].op {
            Op::Linear(op) => linear::forward(op, self),
            Op::GatedLinear(op) => linear::forward_gated(op, self),
            Op::Conv2d(op) => (conv::forward(op, self), None),
            Op::Attention(op) if attention::has_rule(op) => (attention::forward(op, self), None),
            Op::LayerNorm(op) if norm::has_rule(op) => norm::forward(&norm::Norm::of_layer(op), self),
            Op::GroupNorm(op) if op.quantize.is_none() => norm::forward(&norm::Norm::of_group(op), self),
            Op::Pointwise(op) => (layout::pointwise(op, self), None),
            Op::Add(op) => (layout::add(op, self), None),
            Op::Multiply(op) => (layout::multiply(op, self), None),
            Op::Concat(op) => (layout::concat(op, self), None),
            Op::Slice(op) => (layout::slice(op, self), None),
            Op::PadRows(op) => (rows::pad(op, self), None),
            Op::Rotary(op) => (rotary::forward(op, self), None),
            Op::Parameter(op) => (rows::parameter(op, self), None),
            Op::Patchify(op) => (layout::patchify(self.value(op.x), op.patch as usize), None),
            Op::Unpatchify(op) => (layout::unpatchify(self.value(op.x), op.patch as usize), None),
            Op::Resample(op) => (layout::resample(op, self), None),
            Op::Quantize(op) => match quantize::curve(op) {
                Some(tensor) => (quantize::forward(op, tensor, self), None),
                None => return Err(no_rule(self.program, node)),
            },
            Op::LayerNorm(_)
            | Op::GroupNorm(_)
            | Op::Attention(_)
            | Op::Round(_)
            | Op::Embedding(_)
            | Op::TimestepEmbedding(_)
            | Op::PositionEmbedding(_)
            | Op::RelativeBias(_)
            | Op::VectorQuantize(_) => return Err(no_rule(self.program, node)),
        };
        let (y, before) = y;
        self.before.extend(before.map(|before| (node, before)));
        Ok(y)
    }

    /// The derivatives of a loss, given those with respect to values that were made, `seeds`.
    ///
    /// # Panics
    /// If a seed is of another size than its value.
    pub fn backward(&self, seeds: Values, wanted: &Wanted) -> Cotangents {
        let needed = self.needed(wanted);
        let mut back = Cotangents::new(seeds, needed, wanted.tensors.clone());
        for &node in self.nodes.iter().rev() {
            let Some(dy) = back.take(self.program.value_of(node)) else { continue };
            assert_eq!(
                dy.values.len(),
                self.value(self.program.value_of(node)).values.len(),
                "a derivative per element"
            );
            let before = self.before.get(&node);
            match &self.program.nodes[node].op {
                Op::Linear(op) => linear::backward(op, self, before, dy, &mut back),
                Op::GatedLinear(op) => linear::backward_gated(op, self, before, dy, &mut back),
                Op::Conv2d(op) => conv::backward(op, self, dy, &mut back),
                Op::Attention(op) => attention::backward(op, self, dy, &mut back),
                Op::LayerNorm(op) => norm::backward(&norm::Norm::of_layer(op), self, before, dy, &mut back),
                Op::GroupNorm(op) => norm::backward(&norm::Norm::of_group(op), self, before, dy, &mut back),
                Op::Pointwise(op) => layout::pointwise_backward(op, self, dy, &mut back),
                Op::Add(op) => layout::add_backward(op, self, dy, &mut back),
                Op::Multiply(op) => layout::multiply_backward(op, self, dy, &mut back),
                Op::Concat(op) => layout::concat_backward(op, self, dy, &mut back),
                Op::Slice(op) => layout::slice_backward(op, self, dy, &mut back),
                Op::PadRows(op) => rows::pad_backward(op, self, dy, &mut back),
                Op::Rotary(op) => rotary::backward(op, self, dy, &mut back),
                Op::Parameter(op) => rows::parameter_backward(op, self, dy, &mut back),
                Op::Patchify(op) => layout::patchify_backward(op, self, &dy, &mut back),
                Op::Unpatchify(op) => back.add(op.x, layout::patchify(&dy, op.patch as usize)),
                Op::Resample(op) => layout::resample_backward(op, self, dy, &mut back),
                Op::Quantize(op) => {
                    let tensor = quantize::curve(op).expect("refused on the way forward");
                    quantize::backward(op, tensor, self, dy, &mut back);
                }
                Op::Round(_)
                | Op::Embedding(_)
                | Op::TimestepEmbedding(_)
                | Op::PositionEmbedding(_)
                | Op::RelativeBias(_)
                | Op::VectorQuantize(_) => unreachable!("refused on the way forward"),
            }
        }
        back
    }

    /// The values whose derivatives are needed on the way to what is `wanted`: those that depend on any of it.
    fn needed(&self, wanted: &Wanted) -> BTreeSet<Value> {
        let mut needed = wanted.values.clone();
        for &node in self.nodes {
            let op = &self.program.nodes[node].op;
            let depends = op.tensors().any(|t| wanted.tensors.contains(&t)) || op.reads().any(|v| needed.contains(&v));
            if depends {
                needed.insert(self.program.value_of(node));
            }
        }
        needed
    }
}

/// Whether op has rules.
pub fn has_rule(op: &Op) -> bool {
    match op {
        Op::Linear(_)
        | Op::GatedLinear(_)
        | Op::Conv2d(_)
        | Op::Pointwise(_)
        | Op::Add(_)
        | Op::Multiply(_)
        | Op::Concat(_)
        | Op::Slice(_)
        | Op::PadRows(_)
        | Op::Rotary(_)
        | Op::Parameter(_)
        | Op::Patchify(_)
        | Op::Unpatchify(_)
        | Op::Resample(_) => true,
        Op::LayerNorm(op) => norm::has_rule(op),
        Op::GroupNorm(op) => op.quantize.is_none(),
        Op::Attention(op) => attention::has_rule(op),
        Op::Quantize(op) => quantize::curve(op).is_some(),
        Op::Round(_)
        | Op::Embedding(_)
        | Op::TimestepEmbedding(_)
        | Op::PositionEmbedding(_)
        | Op::RelativeBias(_)
        | Op::VectorQuantize(_) => false,
    }
}

fn no_rule(program: &Program, node: usize) -> Error {
    let what = format!("{} (node {node})", program.nodes[node].path);
    Error::request(what, "an op of floats that has a derivative", program.nodes[node].op.name())
}
