//! Where factors can be folded.

use super::{Fold, Obstacle, Rows, Smoothable};
use crate::error::Result;
use crate::pass::product;
use crate::weight::Weights;
use aquatint::raw::format::TensorKind;
use aquatint::raw::program::shape::{self, TensorType, Type};
use aquatint::raw::program::{
    Act, Attention, Columns, Conv2d, Dims, GatedLinear, GroupNorm, LayerNorm, Linear, Modulation, Op, Program, Tensor,
    Value,
};
use std::ops::Range;

/// All values that layers multiply by their weights, in the programs' order.
///
/// # Errors
/// If the shapes of a program do not fit.
pub fn smoothables(programs: &[Program], weights: &Weights, dims: &Dims) -> Result<Vec<Smoothable>> {
    let mut uses = vec![0; weights.len()];
    for op in programs.iter().flat_map(|p| &p.nodes).map(|node| &node.op) {
        op.tensors().for_each(|tensor| uses[tensor.0 as usize] += 1);
    }
    let tensors: Vec<TensorType> = weights.iter().map(|w| TensorKind::F32.ty(&w.dims())).collect();
    let mut found = Vec::new();
    for (number, program) in programs.iter().enumerate() {
        let types = shape::infer(program, &tensors, dims)?;
        let graph = Graph::new(program, weights, &uses, &types);
        for value in (0..program.n_values() as u32).map(Value) {
            let (layers, channels) = (graph.layers(value), graph.channels(value));
            if layers.is_empty() {
                continue;
            }
            let fold = graph.readers_agree(value, &layers, channels).and_then(|()| graph.place(value, channels));
            found.push(Smoothable { program: number, value, channels, layers, fold });
        }
    }
    Ok(found)
}

/// A program, who reads what in it, and how often all programs use each weight.
struct Graph<'a> {
    program: &'a Program,
    weights: &'a Weights,
    uses: &'a [usize],
    /// Per value, its shape.
    types: &'a [Type],
    /// Per value, the nodes that read it, one as often as it does.
    readers: Vec<Vec<usize>>,
}

impl<'a> Graph<'a> {
    fn new(program: &'a Program, weights: &'a Weights, uses: &'a [usize], types: &'a [Type]) -> Self {
        let mut readers = vec![Vec::new(); program.n_values()];
        for (i, node) in program.nodes.iter().enumerate() {
            node.op.reads().for_each(|value| readers[value.0 as usize].push(i));
        }
        Graph { program, weights, uses, types, readers }
    }

    fn channels(&self, value: Value) -> usize {
        self.types[value.0 as usize].cols()
    }

    fn op(&self, node: usize) -> &Op {
        &self.program.nodes[node].op
    }

    fn readers(&self, value: Value) -> &[usize] {
        &self.readers[value.0 as usize]
    }

    /// The weights that `value` is multiplied by, each once.
    fn layers(&self, value: Value) -> Vec<Tensor> {
        let of = |&node: &usize| product(self.op(node)).filter(|&(.., x)| x == value);
        let mut layers: Vec<Tensor> = Vec::new();
        for (weight, ..) in self.readers(value).iter().filter_map(of) {
            if !layers.contains(&weight) {
                layers.push(weight);
            }
        }
        layers
    }

    /// Whether nothing but `layers` reads `value`, and each can take a factor per channel.
    fn readers_agree(&self, value: Value, layers: &[Tensor], channels: usize) -> std::result::Result<(), Obstacle> {
        if self.program.output == value {
            return Err(Obstacle::Reader("the caller"));
        }
        let mut used = vec![0; layers.len()];
        for &node in self.readers(value) {
            let op = self.op(node);
            let alone = op.reads().filter(|&read| read == value).count() == 1;
            let Some((weight, ..)) = product(op).filter(|&(.., x)| x == value && alone) else {
                return Err(Obstacle::Reader(op.name()));
            };
            // A linear layer may have the kernel of a convolution, whose windows are its rows.
            if self.weights[weight].dims().last() != Some(&channels) {
                return Err(Obstacle::Reader(op.name()));
            }
            layers.iter().zip(&mut used).filter(|(layer, _)| **layer == weight).for_each(|(_, used)| *used += 1);
        }
        let all = |(layer, &used): (&Tensor, &usize)| self.uses[layer.0 as usize] == used;
        if layers.iter().zip(&used).all(all) { Ok(()) } else { Err(Obstacle::Shared) }
    }

    /// What `value` can be divided in.
    fn place(&self, value: Value, channels: usize) -> std::result::Result<Fold, Obstacle> {
        let Some(node) = self.program.node_of(value) else { return Err(Obstacle::Producer("the input")) };
        let op = self.op(node);
        match *op {
            Op::LayerNorm(LayerNorm { weight, bias, modulation, shift, parts: 0 | 1, .. }) => {
                self.norm(node, [weight, bias], shift_of(modulation).or(shift), channels)
            }
            Op::GroupNorm(GroupNorm { weight, bias, modulation, act: Act::None, .. }) => {
                self.norm(node, [Some(weight), Some(bias)], shift_of(modulation), channels)
            }
            Op::GatedLinear(GatedLinear { weight, bias, .. }) => self.rows(weight, bias).map(Fold::EvenRows),
            Op::Linear(_) => self.plain(node).map(Fold::Rows),
            Op::Attention(Attention { q, k, v, .. }) => {
                let alone = self.readers(v) == [node] && v != q && v != k && v != self.program.output;
                match self.program.node_of(v) {
                    Some(made_by) if alone => self.plain(made_by).map(Fold::Rows),
                    _ => Err(Obstacle::Reader("another op")),
                }
            }
            _ => Err(Obstacle::Producer(op.name())),
        }
    }

    /// The rows of the linear layer at `node`, if it does nothing after its product.
    fn plain(&self, node: usize) -> std::result::Result<Rows, Obstacle> {
        match *self.op(node) {
            Op::Linear(Linear { weight, bias, act: Act::None, gate: None, residual: None, .. }) => {
                self.rows(weight, bias)
            }
            Op::Linear(Linear { act, .. }) if act != Act::None => Err(Obstacle::Producer("an activation")),
            ref op => Err(Obstacle::Producer(op.name())),
        }
    }

    /// The rows of a layer, if they are used once.
    fn rows(&self, weight: Tensor, bias: Option<Tensor>) -> std::result::Result<Rows, Obstacle> {
        let once = |tensor: Tensor| self.uses[tensor.0 as usize] == 1;
        if once(weight) && bias.is_none_or(once) { Ok(Rows { weight, bias }) } else { Err(Obstacle::Shared) }
    }

    fn norm(
        &self,
        node: usize,
        affine: [Option<Tensor>; 2],
        shift: Option<Columns>,
        channels: usize,
    ) -> std::result::Result<Fold, Obstacle> {
        if affine.into_iter().flatten().any(|tensor| self.uses[tensor.0 as usize] != 1) {
            return Err(Obstacle::Shared);
        }
        let Some(Columns { value, offset }) = shift else { return Ok(Fold::Norm { node, shift: None }) };
        let first = offset as usize;
        self.only_shifts(node, value, first..first + channels)?;
        let Some(made_by) = self.program.node_of(value) else { return Err(Obstacle::Producer("the input")) };
        Ok(Fold::Norm { node, shift: Some((self.plain(made_by)?, first)) })
    }

    /// Checks that no op but the norm at `node`, and that as its shift alone, reads columns `shift` of `value`.
    fn only_shifts(&self, node: usize, value: Value, shift: Range<usize>) -> std::result::Result<(), Obstacle> {
        let overlaps = |first: u32, count: usize| (first as usize) < shift.end && shift.start < first as usize + count;
        if self.program.output == value {
            return Err(Obstacle::Reader("the caller"));
        }
        for &reader in self.readers(value) {
            let op = self.op(reader);
            let once = op.reads().filter(|&read| read == value).count() == 1;
            let width = self.channels(self.program.value_of(reader));
            let apart = once
                && match *op {
                    Op::LayerNorm(LayerNorm { modulation: Some(m), .. })
                    | Op::GroupNorm(GroupNorm { modulation: Some(m), .. }) => {
                        m.value == value && !overlaps(m.scale, width) && (reader == node || !overlaps(m.shift, width))
                    }
                    Op::LayerNorm(LayerNorm { shift: Some(Columns { value: read, offset }), .. }) => {
                        read == value && (reader == node || !overlaps(offset, width))
                    }
                    Op::Linear(Linear { gate: Some(Columns { value: read, offset }), .. })
                    | Op::Conv2d(Conv2d { shift: Some(Columns { value: read, offset }), .. }) => {
                        read == value && !overlaps(offset, width)
                    }
                    _ => false,
                };
            if !apart {
                return Err(Obstacle::Reader(op.name()));
            }
        }
        Ok(())
    }
}

/// The columns that a modulation adds.
fn shift_of(modulation: Option<Modulation>) -> Option<Columns> {
    modulation.map(|m| Columns { value: m.value, offset: m.shift })
}
