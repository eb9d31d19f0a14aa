//! Lets attentions between integer layers work in 8-bit codes.

use aquatint::raw::program::{Attention, Linear, Op, Program, Value};

/// Sets [`Attend::int8`](aquatint::raw::program::Attend::int8) where queries, keys and values come from linear layers with
/// integer activations and keys are not per condition; returns how many attentions that were. Goes after
/// [`assign`](super::assign).
pub fn attend_in_codes(program: &mut Program) -> usize {
    let made_by = |program: &Program, value: Value| {
        let node = (value.0 as usize).checked_sub(program.inputs.len())?;
        Some(program.nodes[node].op)
    };
    let integer = |program: &Program, value: Value| match made_by(program, value) {
        Some(Op::Linear(Linear { x, .. })) => {
            // In every phase: one that takes floats reads another value.
            let node = (value.0 as usize).checked_sub(program.inputs.len());
            let mut others = program.phases.variants.iter().filter(|v| Some(v.node) == node);
            made_by(program, x).is_some_and(|op| op.quantizes().is_some())
                && others.all(|v| matches!(v.op, Op::Linear(Linear { x: other, .. }) if other == x))
        }
        _ => false,
    };
    let fit: Vec<bool> = program
        .nodes
        .iter()
        .map(|node| match node.op {
            Op::Attention(Attention { q, k, v, attend, .. }) => {
                !attend.per_condition && [q, k, v].into_iter().all(|value| integer(program, value))
            }
            _ => false,
        })
        .collect();
    for (node, _) in program.nodes.iter_mut().zip(&fit).filter(|(_, fit)| **fit) {
        let Op::Attention(Attention { attend, .. }) = &mut node.op else { unreachable!("only attentions fit") };
        attend.int8 = true;
    }
    fit.into_iter().filter(|fit| *fit).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pass::{Layer, Starts, assign};
    use aquatint::raw::program::{Act, Attend, Dim, Input, InputKind, Node, QuantizeRange, Role, Tensor};

    /// Three linear layers of weights 0, 1 and 2, and an attention to them.
    fn program(attend: Attend) -> Program {
        let inputs = vec![Input { kind: InputKind::Sample, dims: vec![Dim::Batch, Dim::Height, Dim::Fixed(8)] }];
        let linear = |weight| {
            Op::Linear(Linear {
                x: Value(0),
                weight: Tensor(weight),
                bias: None,
                act: Act::None,
                gate: None,
                residual: None,
            })
        };
        let attention = Op::Attention(Attention {
            q: Value(1),
            k: Value(2),
            v: Value(3),
            heads: 1,
            scale: 1.0,
            attend,
            ..Attention::default()
        });
        let ops = [linear(0), linear(1), linear(2), attention];
        let nodes = ops.map(|op| Node { op, path: "p".into(), wide: false }).to_vec();
        Program { role: Role::Denoiser, inputs, nodes, output: Value(4), phases: Default::default() }
    }

    #[test]
    fn all_three_operands_must_be_of_integer_layers_and_keys_the_samples_own() {
        let shared = Attend { per_condition: true, ..Attend::default() };
        for (floats, attend, want) in [
            (None, Attend::default(), 1),
            (Some(0), Attend::default(), 0),
            (Some(2), Attend::default(), 0),
            (None, shared, 0),
        ] {
            let mut p = program(attend);
            let codes = |t: Tensor| (Some(t.0) != floats).then_some((8, QuantizeRange::Dynamic));
            assign(&mut p, &Starts::default(), &|_, t| Layer::of(t, codes(t)));
            assert_eq!(attend_in_codes(&mut p), want, "{floats:?} {attend:?}");
            let Some(Op::Attention(Attention { attend: got, .. })) = p.nodes.last().map(|n| &n.op) else {
                panic!("attention")
            };
            assert_eq!(*got, Attend { int8: want == 1, ..attend });
        }
    }
}
