//! What the programs say of a weight, before anything is quantized: how often it multiplies, and whether it stands at an
//! end of its network.

use aquatint::raw::hoist::rates;
use aquatint::raw::program::{Conv2d, GatedLinear, InputKind, Linear, Op, Program, Rate, Tensor, Value};

/// Where a weight is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Site {
    /// Whether all that it multiplies depends on the timestep, and on no latents: it is worked out for many calls at
    /// once, outside the step loop.
    pub hoisted: bool,
    /// The end of the network that it is, if it is one.
    pub end: Option<End>,
    /// Whether others have quantized it; the program does not say.
    pub imported: bool,
    /// Whether those who quantized others of the network left it in floats.
    pub left: bool,
}

/// An end of a network from latents or pixels to latents or pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The layer that reads the network's input.
    First,
    /// The layer that makes its output.
    Last,
}

/// Weight and bias of an op that multiplies by a weight, and what it multiplies.
pub fn product(op: &Op) -> Option<(Tensor, Option<Tensor>, Value)> {
    match *op {
        Op::Linear(Linear { x, weight, bias, .. })
        | Op::GatedLinear(GatedLinear { x, weight, bias, .. })
        | Op::Conv2d(Conv2d { x, weight, bias, .. }) => Some((weight, bias, x)),
        _ => None,
    }
}

/// The site of each of `weights` weights in `programs`.
pub fn sites(programs: &[Program], weights: usize) -> Vec<Site> {
    let mut sites = vec![Site::default(); weights];
    let mut used = vec![false; weights];
    for program in programs {
        let rates = rates(program);
        for (i, node) in program.nodes.iter().enumerate() {
            let Some((weight, ..)) = product(&node.op) else { continue };
            let hoisted = rates[program.value_of(i).0 as usize] == Rate::Step;
            let site = &mut sites[weight.0 as usize];
            site.hoisted = hoisted && (site.hoisted || !used[weight.0 as usize]);
            used[weight.0 as usize] = true;
        }
        for (weight, end) in ends(program) {
            sites[weight.0 as usize].end = Some(end);
        }
    }
    sites
}

/// The layers at the ends of `program`; of a program that reads tokens, there are none.
fn ends(program: &Program) -> Vec<(Tensor, End)> {
    let Some(sample) = program.input(InputKind::Sample) else { return Vec::new() };
    let mut found = Vec::new();
    // What is the network's input, laid out one way or another.
    let mut input = vec![false; program.n_values()];
    input[sample.0 as usize] = true;
    for (i, node) in program.nodes.iter().enumerate() {
        match product(&node.op) {
            Some((weight, _, x)) if input[x.0 as usize] => found.push((weight, End::First)),
            Some(_) => {}
            None => input[program.value_of(i).0 as usize] = lays_out(&node.op).is_some_and(|x| input[x.0 as usize]),
        }
    }
    let mut value = program.output;
    while let Some(node) = program.node_of(value).map(|i| &program.nodes[i]) {
        match (product(&node.op), lays_out(&node.op)) {
            (Some((weight, ..)), _) => {
                found.push((weight, End::Last));
                break;
            }
            (None, Some(x)) => value = x,
            (None, None) => break,
        }
    }
    found
}

/// The operand of an op that only puts its elements elsewhere.
fn lays_out(op: &Op) -> Option<Value> {
    match op {
        Op::Patchify(op) => Some(op.x),
        Op::Unpatchify(op) => Some(op.x),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aquatint::raw::program::{
        Act, Dim, Input, LayerNorm, Node, Patchify, Pointwise, Role, TimestepEmbedding, Unpatchify,
    };

    fn node(op: Op) -> Node {
        Node { op, path: "n".into(), wide: false }
    }

    fn linear(x: u32, weight: u32) -> Node {
        node(Op::Linear(Linear { x: Value(x), weight: Tensor(weight), ..Linear::default() }))
    }

    #[test]
    fn ends_and_what_is_hoisted_are_told() {
        let inputs = vec![
            Input { kind: InputKind::Sample, dims: vec![Dim::Batch, Dim::Height, Dim::Width, Dim::Fixed(4)] },
            Input { kind: InputKind::Timestep, dims: vec![Dim::Conditions] },
        ];
        let nodes = vec![
            node(Op::Patchify(Patchify { x: Value(0), ..Patchify::default() })), // 2
            linear(2, 0),                                                        // 3: first
            node(Op::TimestepEmbedding(TimestepEmbedding { t: Value(1), ..TimestepEmbedding::default() })), // 4
            linear(4, 1),                                                        // 5: hoisted
            node(Op::Pointwise(Pointwise { x: Value(5), act: Act::Silu, ..Pointwise::default() })), // 6
            linear(6, 2),                                                        // 7: hoisted
            node(Op::LayerNorm(LayerNorm { x: Value(3), ..LayerNorm::default() })), // 8
            linear(8, 3),                                                        // 9
            linear(8, 2),                                                        // 10: so 2 is not hoisted alone
            linear(9, 4),                                                        // 11: last
            node(Op::Unpatchify(Unpatchify { x: Value(11), ..Unpatchify::default() })), // 12
        ];
        let program = Program { role: Role::Denoiser, inputs, nodes, output: Value(12), phases: Default::default() };
        let site = |hoisted, end| Site { hoisted, end, ..Site::default() };
        let expected = [
            site(false, Some(End::First)),
            site(true, None),
            site(false, None),
            site(false, None),
            site(false, Some(End::Last)),
            site(false, None),
        ];
        assert_eq!(sites(std::slice::from_ref(&program), 6), expected);

        let mut tokens = program;
        tokens.inputs[0].kind = InputKind::Tokens;
        assert!(sites(&[tokens], 6).iter().all(|site| site.end.is_none()));
    }
}
