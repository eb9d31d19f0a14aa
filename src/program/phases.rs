//! Phases: stretches of time in which a program's nodes are other ops.
//!
//! Timestep-wise mixed precision (ViDiT-Q §3.4) is the use: in one stretch a layer multiplies its 4-bit weights, in another
//! its 8-bit ones. Between phases nothing but ops changes. Values keep their numbers, so what a phase computes is again
//! a program ([`Program::in_phase`]), and all rules hold of each of them.

use super::{CurveAxis, Op, Program};
use std::borrow::Cow;

/// Timesteps that models are trained on.
const TIMESTEPS: f32 = 1000.0;

/// Most phases of a program: each has a bit in a node's record.
pub const MAX_PHASES: usize = 32;

/// When phases begin, and what is other in them than in the first, which the program's nodes are.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Phases {
    /// What positions count.
    pub axis: CurveAxis,
    /// Where each begins, ascending; it ends where the next one begins, and the first also holds before. Empty where
    /// there is one phase.
    pub starts: Vec<f32>,
    /// By node, and of one node in the order of the first phase.
    pub variants: Vec<Variant>,
}

/// What a node is in some phases.
#[derive(Clone, Debug, PartialEq)]
pub struct Variant {
    /// The node.
    pub node: usize,
    /// The phases as bits: never the first, and none that another variant of the node has.
    pub phases: u32,
    /// What it computes then: an op of the same name.
    pub op: Op,
}

impl Phases {
    /// How many there are.
    pub fn count(&self) -> usize {
        self.starts.len().max(1)
    }

    /// In words: `3 phases by timestep, from 0, 250 and 500 on; 12 nodes vary`; none where there is one.
    pub fn describe(&self) -> Option<String> {
        let (last, first) = self.starts.split_last()?;
        let first: Vec<String> = first.iter().map(f32::to_string).collect();
        let mut nodes: Vec<usize> = self.variants.iter().map(|variant| variant.node).collect();
        nodes.dedup();
        let (count, axis) = (self.starts.len(), self.axis.name());
        Some(format!("{count} phases by {axis}, from {} and {last} on; {} nodes vary", first.join(", "), nodes.len()))
    }

    /// The share of a run that each holds: of its steps, or of the timesteps that models are trained on, of which samplers take
    /// about as many everywhere.
    pub fn shares(&self) -> Vec<f64> {
        let end = match self.axis {
            CurveAxis::StepFraction => 1.0,
            CurveAxis::Timestep => TIMESTEPS,
        };
        if self.starts.len() < 2 {
            return vec![1.0];
        }
        let within: Vec<f32> = self.starts.iter().map(|start| start.clamp(0.0, end)).collect();
        // The first also holds before its start.
        let from = |i: usize| if i == 0 { 0.0 } else { within[i] };
        let to = |i: usize| within.get(i + 1).copied().unwrap_or(end);
        (0..within.len()).map(|i| f64::from(to(i) - from(i)) / f64::from(end)).collect()
    }

    /// The phase at a position on the axis.
    pub fn at(&self, position: f32) -> usize {
        self.starts.iter().take_while(|&&start| start <= position).count().saturating_sub(1)
    }
}

impl Program {
    /// The program as it is in one phase, which has no phases any more.
    pub fn in_phase(&self, phase: usize) -> Cow<'_, Program> {
        if self.phases.starts.is_empty() {
            return Cow::Borrowed(self);
        }
        let mut program = Program { phases: Phases::default(), ..self.clone() };
        for Variant { node, op, .. } in self.phases.variants.iter().filter(|v| v.phases >> phase & 1 == 1) {
            program.nodes[*node].op = *op;
        }
        Cow::Owned(program)
    }

    /// The ops of all nodes in all phases.
    pub fn ops(&self) -> impl Iterator<Item = &Op> {
        self.nodes.iter().map(|node| &node.op).chain(self.phases.variants.iter().map(|variant| &variant.op))
    }

    /// Which nodes the result depends on. In a phase whose layers take floats, codes that others make of them are for
    /// nobody.
    pub fn needed(&self) -> Vec<bool> {
        let mut needed = vec![false; self.nodes.len()];
        let mark = |needed: &mut Vec<bool>, value| {
            if let Some(node) = self.node_of(value) {
                needed[node] = true;
            }
        };
        mark(&mut needed, self.output);
        for node in (0..self.nodes.len()).rev() {
            if needed[node] {
                self.nodes[node].op.reads().for_each(|value| mark(&mut needed, value));
            }
        }
        needed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::{Act, Dim, Input, InputKind, Node, Pointwise, Role, Value};

    fn pointwise(x: u32, act: Act) -> Op {
        Op::Pointwise(Pointwise { x: Value(x), act, ..Default::default() })
    }

    #[test]
    fn a_phase_is_a_program_of_its_own() {
        let node = |op| Node { op, path: "n".into(), wide: false };
        let program = Program {
            role: Role::Denoiser,
            inputs: vec![Input { kind: InputKind::Sample, dims: vec![Dim::Batch, Dim::Fixed(4)] }],
            nodes: vec![node(pointwise(0, Act::Silu)), node(pointwise(1, Act::Silu))],
            output: Value(2),
            phases: Phases {
                axis: CurveAxis::Timestep,
                starts: vec![0.0, 250.0, 500.0],
                variants: vec![
                    Variant { node: 1, phases: 0b010, op: pointwise(0, Act::QuickGelu) },
                    Variant { node: 1, phases: 0b100, op: pointwise(1, Act::GeluErf) },
                ],
            },
        };
        let phases = &program.phases;
        assert_eq!([-1.0, 0.0, 249.9, 250.0, 499.0, 500.0, 999.0].map(|t| phases.at(t)), [0, 0, 0, 1, 1, 2, 2]);
        let last = |phase| program.in_phase(phase).nodes[1].op;
        let expected = [pointwise(1, Act::Silu), pointwise(0, Act::QuickGelu), pointwise(1, Act::GeluErf)];
        assert_eq!([0, 1, 2].map(last), expected);
        assert_eq!([0, 1, 2].map(|p| program.in_phase(p).needed()), [[true, true], [false, true], [true, true]]);
        assert_eq!(phases.shares(), [0.25, 0.25, 0.5]);
        let far = Phases { starts: vec![0.0, 900.0, 1200.0], ..phases.clone() };
        assert!(
            far.shares().iter().zip([0.9, 0.1, 0.0]).all(|(got, want)| (got - want).abs() < 1e-7),
            "a run ends sooner"
        );
        let steps = Phases { axis: CurveAxis::StepFraction, starts: vec![0.0, 0.25], variants: Vec::new() };
        assert_eq!((steps.shares(), Phases::default().shares()), (vec![0.25, 0.75], vec![1.0]));
        let told = phases.describe().unwrap();
        assert_eq!(told, "3 phases by timestep, from 0, 250 and 500 on; 1 nodes vary");
        assert_eq!((program.ops().count(), program.in_phase(2).phases.count(), phases.count()), (4, 1, 3));
    }
}
