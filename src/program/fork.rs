//! Several networks in one: what they have in common is computed once.

use super::{Concat, Node, Op, Program, Value};

impl Program {
    /// The program whose result has, side by side along its last axis, the results of `programs`, which have the same inputs. Nodes that
    /// compute the same of the same operands are there once, so programs that differ late share what comes before.
    ///
    /// # Panics
    /// If there are none, or they have other inputs than the first, or phases.
    pub fn side_by_side(programs: &[Program]) -> Program {
        let (first, rest) = programs.split_first().expect("programs to put side by side");
        let same = |other: &Program| other.inputs == first.inputs && other.phases == first.phases;
        assert!(rest.iter().all(same) && first.phases.count() == 1, "programs of the same inputs, without phases");
        let mut nodes = first.nodes.clone();
        let mut output = first.output;
        let inputs = first.inputs.len();
        for program in rest {
            // By value of this program, the one that stands for it.
            let mut places: Vec<Value> = (0..inputs as u32).map(Value).collect();
            for node in &program.nodes {
                let mut op = node.op;
                op.renumber(|operand| places[operand.0 as usize]);
                let known = nodes.iter().position(|other| other.op == op && other.wide == node.wide);
                let at = known.unwrap_or_else(|| {
                    nodes.push(Node { op, ..node.clone() });
                    nodes.len() - 1
                });
                places.push(Value((inputs + at) as u32));
            }
            let path = "side by side".to_owned();
            let op = Op::Concat(Concat { a: output, b: places[program.output.0 as usize], tokens: false });
            let wide = first.node_of(first.output).is_none_or(|node| first.nodes[node].wide);
            nodes.push(Node { op, path, wide });
            output = Value((inputs + nodes.len() - 1) as u32);
        }
        Program { nodes, output, ..first.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::{Dim, Input, InputKind, Linear, Phases, Pointwise, Role, Tensor};

    fn linear(x: u32, weight: u32) -> Op {
        Op::Linear(Linear { x: Value(x), weight: Tensor(weight), ..Linear::default() })
    }

    fn add(x: u32) -> Op {
        Op::Pointwise(Pointwise { x: Value(x), ..Pointwise::default() })
    }

    fn program(ops: &[Op]) -> Program {
        Program {
            role: Role::Denoiser,
            inputs: vec![Input { kind: InputKind::Sample, dims: vec![Dim::Batch, Dim::Fixed(4)] }],
            nodes: ops.iter().map(|&op| Node { op, path: "n".into(), wide: false }).collect(),
            output: Value(ops.len() as u32),
            phases: Phases::default(),
        }
    }

    #[test]
    fn what_is_common_is_there_once() {
        let whole = program(&[linear(0, 1), add(1), linear(2, 2), add(3)]);
        let late = program(&[linear(0, 1), add(1), linear(2, 7), add(3)]);
        let early = program(&[linear(0, 9), add(1), linear(2, 2), add(3)]);
        let all = Program::side_by_side(&[whole.clone(), late, early]);
        let concat = |a: u32, b: u32| Op::Concat(Concat { a: Value(a), b: Value(b), tokens: false });
        let ops: Vec<Op> = all.nodes.iter().map(|node| node.op).collect();
        let first = [linear(0, 1), add(1), linear(2, 2), add(3)];
        let second = [linear(2, 7), add(5), concat(4, 6)];
        let third = [linear(0, 9), add(8), linear(9, 2), add(10), concat(7, 11)];
        assert_eq!(ops, [&first[..], &second, &third].concat());
        assert_eq!(all.output, Value(12));
        assert_eq!(Program::side_by_side(std::slice::from_ref(&whole)), whole);
    }
}
