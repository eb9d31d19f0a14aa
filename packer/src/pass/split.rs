//! Splits shortcuts over skip connections, whose two inputs have ranges of their own (Q-Diffusion §4.2; in its code the
//! `nin_shortcut` and `skip_connection` of decoder blocks): one product becomes two, of which the second adds the first.

use crate::error::Result;
use crate::weight::Weights;
use aquatint::raw::format::TensorKind;
use aquatint::raw::program::shape::{self, TensorType};
use aquatint::raw::program::{Act, Concat, Dims, Linear, Node, Op, Program, Tensor, Value};
use std::collections::HashMap;

/// Splits every plain linear layer that reads two values side by side, and whose weight is `wanted`, where one value ends
/// and the other begins. The second half is called as [`SECOND_HALF`](crate::weight::SECOND_HALF) says. Returns the halves'
/// weights.
///
/// # Errors
/// If the shapes of a program do not fit.
pub fn split_shortcuts(
    programs: &mut [Program],
    weights: &mut Weights,
    dims: &Dims,
    wanted: &dyn Fn(&Weights, Tensor) -> bool,
) -> Result<Vec<[Tensor; 2]>> {
    let mut halves: HashMap<Tensor, Tensor> = HashMap::new();
    for program in programs {
        let types: Vec<TensorType> = weights.iter().map(|w| TensorKind::F32.ty(&w.dims())).collect();
        let found = shortcuts(program);
        if !found.iter().any(|&(_, weight, _)| halves.contains_key(&weight) || wanted(weights, weight)) {
            continue;
        }
        let values = shape::infer(program, &types, dims)?;
        let mut split = HashMap::new();
        for (node, weight, [a, b]) in found {
            let second = halves.get(&weight).copied().or_else(|| {
                let at = values[a.0 as usize].dims().last().copied().unwrap_or(0);
                wanted(weights, weight).then(|| weights.split(weight, at)).flatten()
            });
            if let Some(second) = second {
                halves.insert(weight, second);
                split.insert(node, (second, [a, b]));
            }
        }
        rewrite(program, &split);
    }
    let mut halves: Vec<[Tensor; 2]> = halves.into_iter().map(|(first, second)| [first, second]).collect();
    halves.sort();
    Ok(halves)
}

/// The nodes that multiply two values side by side: their numbers, weights, and the two values.
fn shortcuts(program: &Program) -> Vec<(usize, Tensor, [Value; 2])> {
    let plain = |(i, node): (usize, &Node)| match node.op {
        Op::Linear(Linear { x, weight, act: Act::None, gate: None, .. }) => {
            match program.nodes[program.node_of(x)?].op {
                Op::Concat(Concat { a, b }) => Some((i, weight, [a, b])),
                _ => None,
            }
        }
        _ => None,
    };
    program.nodes.iter().enumerate().filter_map(plain).collect()
}

/// Makes two products of each node in `split`, which has the second half's weight and the two values.
fn rewrite(program: &mut Program, split: &HashMap<usize, (Tensor, [Value; 2])>) {
    let n_inputs = program.inputs.len() as u32;
    let mut numbers: Vec<Value> = (0..n_inputs).map(Value).collect();
    let mut nodes: Vec<Node> = Vec::with_capacity(program.nodes.len() + split.len());
    for (i, mut node) in std::mem::take(&mut program.nodes).into_iter().enumerate() {
        node.op.renumber(|operand| numbers[operand.0 as usize]);
        if let (Op::Linear(second), Some(&(weight, [a, b]))) = (&mut node.op, split.get(&i)) {
            let first = Linear { x: numbers[a.0 as usize], ..*second };
            nodes.push(Node { op: Op::Linear(first), path: node.path.clone(), wide: node.wide });
            let sum = Value(n_inputs + nodes.len() as u32 - 1);
            *second = Linear { x: numbers[b.0 as usize], weight, bias: None, residual: Some(sum), ..*second };
        }
        nodes.push(node);
        numbers.push(Value(n_inputs + nodes.len() as u32 - 1));
    }
    program.nodes = nodes;
    program.output = numbers[program.output.0 as usize];
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weight::{Storage, Weight};
    use aquatint::raw::program::{Columns, Dim, Input, InputKind, Role};

    fn model(act: Act, gate: Option<Columns>) -> (Program, Weights) {
        let mut weights = Weights::new();
        weights.push(Weight::of_checkpoint("unet", "skip.weight".into(), &[6, 12, 1, 1], Storage::Linear));
        weights.push(Weight::of_checkpoint("unet", "skip.bias".into(), &[6], Storage::Vector));
        weights.push(Weight::of_checkpoint("unet", "other.weight".into(), &[4, 8], Storage::Linear));
        let inputs =
            vec![Input { kind: InputKind::Sample, dims: vec![Dim::Batch, Dim::Height, Dim::Width, Dim::Fixed(8)] }];
        let linear = |x, weight, bias, residual| {
            let op = Linear { x: Value(x), weight: Tensor(weight), bias, act, gate, residual };
            Node { op: Op::Linear(op), path: "n".into(), wide: false }
        };
        let concat = Node { op: Op::Concat(Concat { a: Value(0), b: Value(1) }), path: "c".into(), wide: false };
        // other: 8 -> 4; beside the input it makes 12 for the shortcut.
        let nodes = vec![linear(0, 2, None, None), concat, linear(2, 0, Some(Tensor(1)), None)];
        (Program { role: Role::Denoiser, inputs, nodes, output: Value(3), phases: Default::default() }, weights)
    }

    const DIMS: Dims = Dims { batch: 1, conditions: 1, height: 1, width: 1, tokens: 1 };

    #[test]
    fn a_shortcut_becomes_two_products_and_the_second_adds_the_first() {
        let (program, mut weights) = model(Act::None, None);
        let mut programs = [program];
        let halves = split_shortcuts(&mut programs, &mut weights, &DIMS, &|_, _| true).unwrap();
        assert_eq!(halves, [[Tensor(0), Tensor(3)]]);
        assert_eq!([0, 3].map(|i| weights[Tensor(i)].matrix()), [(6, 8), (6, 4)]);
        assert_eq!(weights[Tensor(3)].layer(), "skip.weight_quantizer_0");
        let [program] = programs;
        let expected = [
            Linear { x: Value(0), weight: Tensor(0), bias: Some(Tensor(1)), ..Linear::default() },
            Linear { x: Value(1), weight: Tensor(3), residual: Some(Value(3)), ..Linear::default() },
        ];
        assert_eq!(program.nodes[2..].iter().map(|n| n.op).collect::<Vec<_>>(), expected.map(Op::Linear));
        assert_eq!(program.output, Value(4));
        let types: Vec<TensorType> = weights.iter().map(|w| TensorKind::F32.ty(&w.dims())).collect();
        shape::infer(&program, &types, &DIMS).unwrap();
    }

    #[test]
    fn others_are_left_alone() {
        let gate = Some(Columns { value: Value(0), offset: 0 });
        for (act, gate, wanted) in [(Act::Silu, None, true), (Act::None, gate, true), (Act::None, None, false)] {
            let (program, mut weights) = model(act, gate);
            let mut programs = [program.clone()];
            assert!(split_shortcuts(&mut programs, &mut weights, &DIMS, &|_, _| wanted).unwrap().is_empty());
            assert_eq!((&programs[0], weights.len()), (&program, 3));
        }
    }
}
