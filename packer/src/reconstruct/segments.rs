//! A network cut into what is trained together: blocks, single layers, and what lies between them.
//!
//! A block is what a module of the source model holds that BRECQ and Q-Diffusion reconstruct as one: a residual block, a
//! transformer block, an attention over pixels. What a block makes for others beside its result (an embedding of the
//! timestep that all blocks read) is no part of it, so that every segment has one result.

use aquatint::raw::program::{Op, Program, Tensor, Value};
use std::collections::{BTreeMap, BTreeSet};

/// Modules whose numbered members are blocks.
const BLOCKS: [&str; 4] = ["transformer_blocks", "temporal_transformer_blocks", "resnets", "blocks"];
/// Likewise, where there are no transformer blocks in them.
const ATTENTIONS: &str = "attentions";

/// Nodes with one result that others read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The module path.
    pub name: String,
    /// The nodes, ascending.
    pub nodes: Vec<usize>,
    /// What they read and do not make.
    pub inputs: Vec<Value>,
    /// The result.
    pub output: Value,
    /// The weights among `layers` that they use.
    pub layers: Vec<Tensor>,
}

/// Cuts `program` into segments, in an order in which each reads only results of those before it and `sources`; these and what
/// nobody reads are left out. Blocks and single layers are trained as far as they use weights of `layers`.
pub fn segments(program: &Program, layers: &BTreeSet<Tensor>) -> Vec<Segment> {
    let readers = readers(program);
    let mut blocks: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (i, node) in program.nodes.iter().enumerate().filter(|(_, node)| !is_source(&node.op)) {
        if let Some(block) = block_of(program, &node.path) {
            blocks.entry(block.to_owned()).or_default().push(i);
        }
    }
    let mut segments = Vec::new();
    let mut in_block = BTreeSet::new();
    for (name, nodes) in blocks {
        let nodes = with_one_result(program, &readers, nodes);
        if nodes.iter().any(|&node| uses(program, node, layers).next().is_some()) {
            in_block.extend(nodes.iter().copied());
            segments.push(segment(program, name, nodes, layers));
        }
    }
    for (i, node) in program.nodes.iter().enumerate() {
        let is_read = readers.contains_key(&program.value_of(i)) || program.value_of(i) == program.output;
        if !in_block.contains(&i) && !is_source(&node.op) && is_read {
            segments.push(segment(program, node.path.clone(), vec![i], layers));
        }
    }
    segments.sort_by_key(|segment| segment.nodes.last().copied());
    segments
}

/// Whether an op's result is looked at while the float network runs, rather than computed here: it reads no values, or
/// numbers that are no floats and no counts.
pub fn is_source(op: &Op) -> bool {
    matches!(
        op,
        Op::Embedding(_) | Op::TimestepEmbedding(_) | Op::PositionEmbedding(_) | Op::RelativeBias(_) | Op::Parameter(_)
    )
}

/// The nodes that read each value.
pub fn readers(program: &Program) -> BTreeMap<Value, Vec<usize>> {
    let mut readers: BTreeMap<Value, Vec<usize>> = BTreeMap::new();
    for (i, node) in program.nodes.iter().enumerate() {
        node.op.operands().for_each(|value| readers.entry(value).or_default().push(i));
    }
    readers
}

/// The module path of the block that a module is in.
fn block_of<'p>(program: &Program, path: &'p str) -> Option<&'p str> {
    let numbered = |modules: &[&str]| {
        let mut end = None;
        let mut at = 0;
        let parts: Vec<&str> = path.split('.').collect();
        for pair in parts.windows(2) {
            at += pair[0].len() + 1;
            if modules.contains(&pair[0]) && pair[1].parse::<usize>().is_ok() {
                end = Some(at + pair[1].len());
            }
        }
        end.map(|end| &path[..end])
    };
    numbered(&BLOCKS).or_else(|| {
        let attention = numbered(&[ATTENTIONS])?;
        let inner = format!("{attention}.{}.", BLOCKS[0]);
        (!program.nodes.iter().any(|node| node.path.starts_with(&inner))).then_some(attention)
    })
}

/// Those of `nodes` that are left without what makes a result for others beside the last one.
fn with_one_result(program: &Program, readers: &BTreeMap<Value, Vec<usize>>, nodes: Vec<usize>) -> Vec<usize> {
    let own: BTreeSet<usize> = nodes.iter().copied().collect();
    let escapes = |node: &usize| {
        let value = program.value_of(*node);
        value == program.output || readers.get(&value).is_some_and(|by| by.iter().any(|reader| !own.contains(reader)))
    };
    let mut results: Vec<usize> = nodes.iter().copied().filter(escapes).collect();
    results.pop();
    let mut apart = BTreeSet::new();
    while let Some(node) = results.pop() {
        if own.contains(&node) && apart.insert(node) {
            results.extend(program.nodes[node].op.operands().filter_map(|value| program.node_of(value)));
        }
    }
    nodes.into_iter().filter(|node| !apart.contains(node)).collect()
}

fn uses<'a>(program: &'a Program, node: usize, layers: &'a BTreeSet<Tensor>) -> impl Iterator<Item = Tensor> + 'a {
    program.nodes[node].op.tensors().filter(|tensor| layers.contains(tensor))
}

fn segment(program: &Program, name: String, nodes: Vec<usize>, layers: &BTreeSet<Tensor>) -> Segment {
    let made: BTreeSet<Value> = nodes.iter().map(|&node| program.value_of(node)).collect();
    let read: BTreeSet<Value> = nodes.iter().flat_map(|&node| program.nodes[node].op.operands()).collect();
    let own: BTreeSet<Tensor> = nodes.iter().flat_map(|&node| uses(program, node, layers)).collect();
    Segment {
        name,
        output: program.value_of(nodes[nodes.len() - 1]),
        inputs: read.difference(&made).copied().collect(),
        layers: own.into_iter().collect(),
        nodes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aquatint::raw::program::{Add, Dim, Input, InputKind, Linear, Node, Parameter, Pointwise, Role};

    fn program() -> Program {
        let linear = |x, weight| Op::Linear(Linear { x: Value(x), weight: Tensor(weight), ..Linear::default() });
        let pointwise = |x| Op::Pointwise(Pointwise { x: Value(x), ..Pointwise::default() });
        let nodes = [
            ("table", Op::Parameter(Parameter { tensor: Tensor(0), ..Parameter::default() })), // 1
            ("transformer_blocks.0.emb", linear(1, 1)),                                        // 2, read by both blocks
            ("transformer_blocks.0.norm.linear", linear(2, 2)),                                // 3
            ("transformer_blocks.0.ff", linear(0, 3)),                                         // 4
            ("transformer_blocks.0.out", Op::Add(Add { a: Value(4), b: Value(3) })),           // 5
            ("between", pointwise(5)),                                                         // 6
            ("down.0.attentions.0.transformer_blocks.1.ff", Op::Add(Add { a: Value(6), b: Value(2) })), // 7
            ("down.0.attentions.0.proj_out", linear(7, 4)),                                    // 8
            ("nobody", pointwise(8)),                                                          // 9
            ("mid.attentions.0.to_q", linear(8, 5)),                                           // 10
            ("mid.attentions.0.to_out.0", linear(10, 6)),                                      // 11
        ];
        let nodes = nodes.map(|(path, op)| Node { op, path: path.into(), wide: false }).into();
        let inputs = vec![Input { kind: InputKind::Sample, dims: vec![Dim::Batch] }];
        Program { role: Role::Denoiser, inputs, nodes, output: Value(11), phases: Default::default() }
    }

    #[test]
    fn blocks_have_one_result_and_all_that_is_read_is_in_order() {
        let program = program();
        let segments = segments(&program, &(1..=6).map(Tensor).collect());
        let shown: Vec<_> = segments
            .iter()
            .map(|s| (s.name.as_str(), s.nodes.clone(), s.layers.iter().map(|t| t.0).collect::<Vec<_>>(), s.output.0))
            .collect();
        assert_eq!(
            shown,
            [
                ("transformer_blocks.0.emb", vec![1], vec![1], 2),
                ("transformer_blocks.0", vec![2, 3, 4], vec![2, 3], 5),
                ("between", vec![5], vec![], 6),
                ("down.0.attentions.0.transformer_blocks.1.ff", vec![6], vec![], 7),
                ("down.0.attentions.0.proj_out", vec![7], vec![4], 8),
                ("mid.attentions.0", vec![9, 10], vec![5, 6], 11),
            ]
        );
        let mut known: BTreeSet<Value> = [Value(0), Value(1)].into();
        for segment in &segments {
            assert!(segment.inputs.iter().all(|value| known.contains(value)), "{}", segment.name);
            known.insert(segment.output);
        }
        // Without weights to train there are no blocks, only nodes.
        assert!(super::segments(&program, &BTreeSet::new()).iter().all(|s| s.nodes.len() == 1 && s.layers.is_empty()));
    }
}
