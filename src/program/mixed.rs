//! Programs whose nodes are of several phases at once: what one layer's precision does to a network that is otherwise as in
//! another phase.

use super::{Node, Op, Phases, Program, Value};

impl Program {
    /// The program in which node `i` is as in phase `phases[i]`; it has no phases any more. A node that makes codes is as those
    /// that read it are: where these are of phases in which it is another op, it is there once for each.
    ///
    /// # Panics
    /// If there are not as many `phases` as nodes.
    pub fn mixed(&self, phases: &[usize]) -> Program {
        assert_eq!(phases.len(), self.nodes.len(), "a phase per node");
        let asked = self.asked(phases);
        let mut nodes: Vec<Node> = Vec::with_capacity(self.nodes.len());
        // Of every value, what stands for it by the phases of its readers, as bits.
        let inputs = (0..self.inputs.len() as u32).map(|input| vec![(u32::MAX, Value(input))]);
        let mut places: Vec<Vec<(u32, Value)>> = inputs.collect();
        for (i, node) in self.nodes.iter().enumerate() {
            let mut own: Vec<(u32, Value)> = Vec::new();
            for (of, mut op) in self.copies(i, phases[i], asked[i]) {
                let phase = if self.makes_codes(i) { of.trailing_zeros() as usize } else { phases[i] };
                op.renumber(|operand| place(&places, operand, phase));
                own.push((of, Value((self.inputs.len() + nodes.len()) as u32)));
                nodes.push(Node { op, ..node.clone() });
            }
            places.push(own);
        }
        let last = self.node_of(self.output).map_or(0, |node| phases[node]);
        let output = place(&places, self.output, last);
        Program { nodes, output, phases: Phases::default(), ..self.clone() }
    }

    /// By node, the phases of those that read it, as bits: what makes codes reads as its own readers do.
    fn asked(&self, phases: &[usize]) -> Vec<u32> {
        let mut asked = vec![0u32; self.nodes.len()];
        if let Some(node) = self.node_of(self.output) {
            asked[node] = 1 << phases[node];
        }
        for i in (0..self.nodes.len()).rev() {
            let of = if self.makes_codes(i) { asked[i] } else { 1 << phases[i] };
            for phase in bits(of) {
                for node in self.op_in(i, phase).operands().filter_map(|value| self.node_of(value)) {
                    asked[node] |= 1 << phase;
                }
            }
        }
        asked
    }

    /// The ops that stand for node `i`, each with the phases of the readers that it is for.
    fn copies(&self, i: usize, phase: usize, asked: u32) -> Vec<(u32, Op)> {
        if !self.makes_codes(i) {
            return vec![(u32::MAX, self.op_in(i, phase))];
        }
        let mut copies: Vec<(u32, Op)> = Vec::new();
        for phase in bits(asked) {
            let op = self.op_in(i, phase);
            match copies.iter_mut().find(|(_, other)| *other == op) {
                Some((of, _)) => *of |= 1 << phase,
                None => copies.push((1 << phase, op)),
            }
        }
        copies
    }

    /// What node `i` computes in a phase.
    fn op_in(&self, i: usize, phase: usize) -> Op {
        let variants = &self.phases.variants;
        // They are in the order of nodes.
        let first = variants.partition_point(|variant| variant.node < i);
        let own = variants[first..].iter().take_while(|variant| variant.node == i);
        own.into_iter().find(|variant| variant.phases >> phase & 1 == 1).map_or(self.nodes[i].op, |variant| variant.op)
    }

    fn makes_codes(&self, i: usize) -> bool {
        self.nodes[i].op.quantizes().is_some()
    }
}

/// The numbers of the bits that are set.
fn bits(of: u32) -> impl Iterator<Item = usize> {
    (0..u32::BITS as usize).filter(move |bit| of >> bit & 1 == 1)
}

/// What stands for `value` where a node of `phase` reads it.
fn place(places: &[Vec<(u32, Value)>], value: Value, phase: usize) -> Value {
    let found = places[value.0 as usize].iter().find(|(of, _)| of >> phase & 1 == 1);
    found.expect("all that is read was asked for").1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::{
        Dim, Input, InputKind, LayerNorm, Linear, Pointwise, Quantize, QuantizeGrain, QuantizeRange, QuantizeSpec,
        Role, Tensor, Variant,
    };

    fn codes(bits: u8) -> QuantizeSpec {
        QuantizeSpec { bits, grain: QuantizeGrain::Row, range: QuantizeRange::Dynamic }
    }

    fn quantize(x: u32, bits: u8) -> Op {
        Op::Quantize(Quantize { x: Value(x), spec: codes(bits), turn: None })
    }

    fn norm(x: u32, bits: u8) -> Op {
        Op::LayerNorm(LayerNorm { x: Value(x), quantize: Some(codes(bits)), ..LayerNorm::default() })
    }

    fn linear(x: u32, weight: u32, residual: Option<u32>) -> Op {
        let residual = residual.map(Value);
        Op::Linear(Linear { x: Value(x), weight: Tensor(weight), residual, ..Linear::default() })
    }

    fn add(x: u32) -> Op {
        Op::Pointwise(Pointwise { x: Value(x), ..Pointwise::default() })
    }

    /// Two layers share codes that are made in phases 1 (8 bits), 2 (6 bits) and 3 (8 bits, other weights); in phase 0 both
    /// take floats. A third reads codes of a norm, in all phases, of 8 bits but for phase 2.
    fn program() -> Program {
        let nodes = [add(0), quantize(1, 8), linear(1, 0, None), linear(1, 1, Some(3)), norm(4, 8), linear(5, 2, None)];
        let variant = |node, phases, op| Variant { node, phases, op };
        let variants = vec![
            variant(1, 0b0100, quantize(1, 6)),
            variant(2, 0b0110, linear(2, 10, None)),
            variant(2, 0b1000, linear(2, 20, None)),
            variant(3, 0b0110, linear(2, 11, Some(3))),
            variant(3, 0b1000, linear(2, 21, Some(3))),
            variant(4, 0b0100, norm(4, 6)),
            variant(5, 0b1110, linear(5, 12, None)),
        ];
        Program {
            role: Role::Denoiser,
            inputs: vec![Input { kind: InputKind::Sample, dims: vec![Dim::Batch, Dim::Fixed(4)] }],
            nodes: nodes.map(|op| Node { op, path: "n".into(), wide: false }).into(),
            output: Value(6),
            phases: Phases { starts: vec![0.0, 0.25, 0.5, 0.75], variants, ..Phases::default() },
        }
    }

    /// The ops of the nodes that the result depends on, numbered anew.
    fn used(program: &Program) -> Vec<Op> {
        let needed = program.needed();
        let mut numbers: Vec<Value> = (0..program.inputs.len() as u32).map(Value).collect();
        let mut ops = Vec::new();
        for (node, needed) in program.nodes.iter().zip(needed) {
            let mut op = node.op;
            op.renumber(|operand| numbers[operand.0 as usize]);
            numbers.push(Value((program.inputs.len() + ops.len()) as u32));
            if needed {
                ops.push(op);
            }
        }
        ops
    }

    #[test]
    fn one_phase_for_all_is_that_phase() {
        let program = program();
        for phase in 0..4 {
            assert_eq!(used(&program.mixed(&[phase; 6])), used(&program.in_phase(phase)), "phase {phase}");
        }
    }

    #[test]
    fn codes_are_made_for_each_that_reads_them() {
        let program = program();
        // One layer takes codes and its neighbour floats.
        let one = program.mixed(&[0, 0, 1, 0, 0, 0]);
        let expected =
            [add(0), quantize(1, 8), linear(2, 10, None), linear(1, 1, Some(3)), norm(4, 8), linear(5, 2, None)];
        assert_eq!(used(&one), expected);
        // Neighbours of 8 and 6 bits have codes of their own, neighbours of 8 and 8 share them.
        let apart = [add(0), quantize(1, 6), quantize(1, 8), linear(3, 20, None), linear(2, 11, Some(4))];
        assert_eq!(used(&program.mixed(&[0, 0, 3, 2, 0, 0]))[..5], apart);
        let together = [add(0), quantize(1, 8), linear(2, 20, None), linear(2, 11, Some(3))];
        assert_eq!(used(&program.mixed(&[0, 0, 3, 1, 0, 0]))[..4], together);
        // A norm's codes are as their reader takes them, whatever phase the norm is in.
        assert_eq!(used(&program.mixed(&[0, 0, 0, 0, 0, 2]))[3..], [norm(3, 6), linear(4, 12, None)]);
        assert_eq!(used(&program.mixed(&[0, 0, 0, 0, 2, 0]))[3..], [norm(3, 8), linear(4, 2, None)]);
        assert_eq!(program.mixed(&[0; 6]).phases, Phases::default());
    }
}
