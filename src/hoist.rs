//! Sorts a program's nodes by how often they must run: once per bind, per prompt, per timestep, or in the loop.
//!
//! What depends on the timestep alone (and the prompt) is not computed in the loop but for a window of model calls at
//! once, as a table with one row per (call, condition): one matrix product with many rows instead of many with one.
//! In DiT this takes a third of all weights out of the loop.

use crate::program::{Op, Program, QuantizeGrain, Rate, Value};

/// The rate of every value of `program`, inputs first.
///
/// A node runs as often as its fastest operand changes; shapes alone never change. A node that depends on the timestep
/// but cannot be computed for many calls at once runs in the loop instead.
pub fn rates(program: &Program) -> Vec<Rate> {
    let mut in_loop = vec![false; program.n_values()];
    loop {
        let rates = assign(program, &in_loop);
        // Codes keep their scales beside them, so one call's rows cannot be cut out of a table of codes: a table that
        // the loop reads must be float. And it is no bias of attention, whose rows are not those of conditions.
        let cut = program.nodes.iter().enumerate().find_map(|(i, node)| {
            let reader = program.value_of(i).0 as usize;
            let whole = |v: Value| makes_codes(program, v) || is_bias(program, &node.op, v);
            (rates[reader] == Rate::Loop)
                .then(|| node.op.reads().find(|v| rates[v.0 as usize] == Rate::Step && whole(*v)))
                .flatten()
        });
        match cut {
            Some(value) => in_loop[value.0 as usize] = true,
            None => return rates,
        }
    }
}

fn makes_codes(program: &Program, value: Value) -> bool {
    program.node_of(value).is_some_and(|n| program.nodes[n].op.quantizes().is_some())
}

fn is_bias(program: &Program, op: &Op, value: Value) -> bool {
    let reads = matches!(op, Op::Attention(attention) if attention.bias == Some(value));
    reads && program.node_of(value).is_some()
}

fn assign(program: &Program, in_loop: &[bool]) -> Vec<Rate> {
    let mut rates: Vec<Rate> = program.inputs.iter().map(|i| i.kind.rate()).collect();
    for (i, node) in program.nodes.iter().enumerate() {
        let mut rate = node.op.reads().map(|v| rates[v.0 as usize]).max().unwrap_or(Rate::Bind);
        if node.op.curve().is_some() {
            // The scale changes with time, whatever it scales.
            rate = rate.max(Rate::Step);
        }
        let forced = in_loop[program.value_of(i).0 as usize];
        let demote = rate == Rate::Step && (forced || !tabulates(&node.op, &rates));
        rates.push(if demote { Rate::Loop } else { rate });
    }
    rates
}

/// Whether `op` gives the same rows when the rows of many calls are stacked: it must work row by row, and its first
/// operand must already be a table (a second one may repeat per call).
fn tabulates(op: &Op, rates: &[Rate]) -> bool {
    let table = |v: Value| rates[v.0 as usize] == Rate::Step;
    match op {
        Op::Linear(op) => table(op.x) && op.gate.is_none(),
        Op::GatedLinear(op) => table(op.x),
        Op::VectorQuantize(op) => table(op.x),
        Op::LayerNorm(op) => table(op.x) && op.modulation.is_none() && op.shift.is_none(),
        Op::Quantize(op) => table(op.x) && op.spec.grain == QuantizeGrain::Row,
        Op::Round(op) => table(op.x) && op.spec.grain == QuantizeGrain::Row,
        Op::Pointwise(op) => table(op.x),
        Op::Slice(op) => !op.tokens && table(op.x),
        Op::Add(op) => table(op.a),
        Op::Multiply(op) => table(op.a),
        Op::Embedding(op) => table(op.index),
        Op::TimestepEmbedding(op) => table(op.t),
        // What repeats per call would have to be repeated first.
        Op::Concat(op) => !op.tokens && table(op.a) && table(op.b),
        // These look at the axes of a sample, or at several of its rows.
        Op::Conv2d(_) | Op::Attention(_) | Op::GroupNorm(_) | Op::Patchify(_) | Op::Unpatchify(_) | Op::Resample(_) => {
            false
        }
        // These depend on no timestep.
        Op::PositionEmbedding(_) | Op::Parameter(_) | Op::RelativeBias(_) | Op::Rotary(_) | Op::PadRows(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::{
        Act, Add, Attention, Concat, Dim, Embedding, GatedLinear, Input, InputKind, Linear, Multiply, Node, Parameter,
        PositionEmbedding, Quantize, QuantizeRange, QuantizeSpec, RelativeBias, Role, Tensor, TimestepEmbedding,
    };

    fn node(op: Op) -> Node {
        Node { op, path: "n".into(), wide: false }
    }

    /// Inputs: sample 0, timestep 1, labels 2.
    fn program(ops: Vec<Op>) -> Program {
        let input = |kind, dims| Input { kind, dims };
        Program {
            role: Role::Denoiser,
            inputs: vec![
                input(InputKind::Sample, vec![Dim::Batch, Dim::Height, Dim::Width, Dim::Fixed(4)]),
                input(InputKind::Timestep, vec![Dim::Conditions]),
                input(InputKind::ClassLabels, vec![Dim::Conditions]),
            ],
            output: Value(2 + ops.len() as u32),
            nodes: ops.into_iter().map(node).collect(),
            phases: Default::default(),
        }
    }

    fn linear(x: u32) -> Op {
        Op::Linear(Linear { x: Value(x), weight: Tensor(0), bias: None, act: Act::None, gate: None, residual: None })
    }

    #[test]
    fn rates_follow_the_fastest_operand() {
        let p = program(vec![
            Op::TimestepEmbedding(TimestepEmbedding { t: Value(1), dim: 8, cos_first: true, shift: 0.0 }), // 3: step
            Op::Embedding(Embedding { index: Value(2), table: Tensor(0) }),                                // 4: prompt
            Op::Add(Add { a: Value(3), b: Value(4) }),                                                     // 5: step
            Op::PositionEmbedding(PositionEmbedding {
                x: Value(0),
                dim: 8,
                base: 2,
                interpolation: 1.0,
                keep_ratio: false,
                grid: Default::default(),
            }), // 6: bind
            linear(0),                                                                                     // 7: loop
            Op::Add(Add { a: Value(7), b: Value(6) }),                                                     // 8: loop
        ]);
        use Rate::*;
        assert_eq!(rates(&p), [Loop, Step, Prompt, Step, Prompt, Step, Bind, Loop, Loop]);
    }

    #[test]
    fn an_untabulated_node_falls_into_the_loop_with_all_that_follows() {
        let p = program(vec![
            Op::Embedding(Embedding { index: Value(2), table: Tensor(0) }), // 3: prompt
            Op::TimestepEmbedding(TimestepEmbedding { t: Value(1), dim: 8, cos_first: true, shift: 0.0 }), // 4: step
            Op::Add(Add { a: Value(3), b: Value(4) }),                      // 5: a is not a table
            linear(5),                                                      // 6
        ]);
        use Rate::*;
        assert_eq!(rates(&p)[3..], [Prompt, Step, Loop, Loop]);
    }

    #[test]
    fn a_scale_that_changes_with_time_keeps_its_node_from_the_prompt() {
        use crate::program::CurveAxis;
        let range = QuantizeRange::curve(Tensor(1), CurveAxis::StepFraction);
        let spec = QuantizeSpec { bits: 8, grain: QuantizeGrain::Row, range };
        let p = program(vec![
            Op::Embedding(Embedding { index: Value(2), table: Tensor(0) }), // 3: prompt
            Op::Quantize(Quantize { x: Value(3), spec, turn: None }),       // 4: no table to begin with, so the loop
            linear(4),                                                      // 5
        ]);
        use Rate::*;
        assert_eq!(rates(&p)[3..], [Prompt, Loop, Loop]);
    }

    #[test]
    fn a_gated_linear_layer_is_tabulated_and_hoisted() {
        let gated = |x| Op::GatedLinear(GatedLinear { x: Value(x), weight: Tensor(0), bias: None, act: Act::GeluErf });
        let p = program(vec![
            Op::Embedding(Embedding { index: Value(2), table: Tensor(0) }), // 3: prompt
            gated(3),                                                       // 4: prompt
            Op::TimestepEmbedding(TimestepEmbedding { t: Value(1), dim: 8, cos_first: true, shift: 0.0 }), // 5: step
            gated(5),                                                       // 6: step
            gated(0),                                                       // 7: loop
        ]);
        use Rate::*;
        assert_eq!(rates(&p)[3..], [Prompt, Prompt, Step, Step, Loop]);
    }

    #[test]
    fn keys_of_a_prompt_are_made_once_and_read_in_the_loop() {
        let attend = crate::program::Attend { per_condition: true, ..Default::default() };
        let attention = |q, k| {
            Op::Attention(Attention {
                q: Value(q),
                k: Value(k),
                v: Value(k),
                heads: 1,
                scale: 1.0,
                attend,
                ..Attention::default()
            })
        };
        let p = program(vec![
            Op::Embedding(Embedding { index: Value(2), table: Tensor(0) }), // 3: prompt
            attention(0, 3),                                                // 4: loop
            Op::TimestepEmbedding(TimestepEmbedding { t: Value(1), dim: 8, cos_first: true, shift: 0.0 }), // 5: step
            attention(5, 5),                                                // 6: rows of a table see each other: loop
        ]);
        use Rate::*;
        assert_eq!(rates(&p)[3..], [Prompt, Loop, Step, Loop]);
    }

    #[test]
    fn tables_of_scales_stay_out_of_the_loop() {
        let parameter = Parameter { tensor: Tensor(0), flat: true, ..Parameter::default() };
        let p = program(vec![
            Op::TimestepEmbedding(TimestepEmbedding { t: Value(1), dim: 8, cos_first: true, shift: 0.0 }), // 3: step
            Op::Parameter(parameter),                                                                      // 4: bind
            Op::Concat(Concat { a: Value(3), b: Value(3), tokens: false }),                                // 5: step
            Op::Add(Add { a: Value(5), b: Value(4) }),                                                     // 6: step
            Op::Multiply(Multiply { a: Value(6), b: Value(5) }),                                           // 7: step
            Op::Embedding(Embedding { index: Value(2), table: Tensor(0) }),                                // 8: prompt
            Op::Concat(Concat { a: Value(3), b: Value(8), tokens: false }), // 9: repeats per call, so the loop
        ]);
        use Rate::*;
        assert_eq!(rates(&p)[3..], [Step, Bind, Step, Step, Step, Prompt, Loop]);
    }

    #[test]
    fn a_bias_of_attention_is_no_table() {
        let attention = |bias| {
            let x = Value(0);
            Op::Attention(Attention { q: x, k: x, v: x, heads: 1, bias: Some(Value(bias)), ..Attention::default() })
        };
        let p = program(vec![
            Op::RelativeBias(RelativeBias { x: Value(0), ..RelativeBias::default() }), // 3: bind
            attention(3),                                                              // 4: loop
            Op::TimestepEmbedding(TimestepEmbedding { t: Value(1), dim: 8, cos_first: true, shift: 0.0 }), // 5
            attention(5),                                                              // 6: loop, and so is 5
        ]);
        use Rate::*;
        assert_eq!(rates(&p)[3..], [Bind, Loop, Loop, Loop]);
    }

    #[test]
    fn codes_read_by_the_loop_are_made_in_the_loop() {
        let spec = QuantizeSpec { bits: 8, grain: QuantizeGrain::Row, range: QuantizeRange::Dynamic };
        let gated = |x| {
            Op::Linear(Linear {
                x: Value(x),
                weight: Tensor(0),
                bias: None,
                act: Act::None,
                gate: Some(crate::program::Columns { value: Value(3), offset: 0 }),
                residual: None,
            })
        };
        let p = program(vec![
            Op::TimestepEmbedding(TimestepEmbedding { t: Value(1), dim: 8, cos_first: true, shift: 0.0 }), // 3: step
            Op::Quantize(Quantize { x: Value(3), spec, turn: None }), // 4: read by 5 and 6
            linear(4),                                                // 5
            gated(4),                                                 // 6: gates need the loop
        ]);
        use Rate::*;
        assert_eq!(rates(&p)[3..], [Step, Loop, Loop, Loop]);
    }
}
