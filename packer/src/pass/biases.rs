//! Gives layers a bias to correct.

use super::product;
use crate::weight::Weights;
use aquatint::raw::program::{Conv2d, GatedLinear, Linear, Op, Program, Tensor};

/// Gives every op that multiplies by a weight of which `wanted` holds a bias: one of zeros, made here, where it has none.
/// Returns, per weight, the bias that belongs to it alone, if there is one.
pub fn give_biases(
    programs: &mut [Program],
    weights: &mut Weights,
    wanted: &dyn Fn(Tensor) -> bool,
) -> Vec<Option<Tensor>> {
    let count = weights.len();
    let mut made: Vec<Option<Tensor>> = vec![None; count];
    for op in programs.iter_mut().flat_map(|p| &mut p.nodes).map(|node| &mut node.op) {
        let Some((weight, None, _)) = product(op).filter(|&(weight, ..)| wanted(weight)) else { continue };
        let bias = *made[weight.0 as usize].get_or_insert_with(|| {
            let (layer, rows) = (&weights[weight], weights[weight].matrix().0);
            let (component, key) = (layer.component, format!("{}.bias", layer.layer()));
            weights.make(component, key, &[rows], vec![0.0; rows])
        });
        if let Op::Linear(Linear { bias: to, .. })
        | Op::GatedLinear(GatedLinear { bias: to, .. })
        | Op::Conv2d(Conv2d { bias: to, .. }) = op
        {
            *to = Some(bias);
        }
    }
    // A bias that serves two weights, or a weight that has two biases, cannot be corrected for one product alone.
    let mut bias_of: Vec<Option<Tensor>> = vec![None; count];
    let mut weight_of: Vec<Option<Tensor>> = vec![None; weights.len()];
    let mut shared = vec![false; count];
    for op in programs.iter().flat_map(|p| &p.nodes).map(|node| &node.op) {
        let Some((weight, Some(bias), _)) = product(op) else { continue };
        let other = weight_of[bias.0 as usize].replace(weight).filter(|&other| other != weight);
        let second = bias_of[weight.0 as usize].replace(bias).is_some_and(|before| before != bias);
        for weight in other.into_iter().chain((second || other.is_some()).then_some(weight)) {
            shared[weight.0 as usize] = true;
        }
    }
    for (bias, (i, shared)) in bias_of.iter_mut().zip(shared.into_iter().enumerate()) {
        if shared || !wanted(Tensor(i as u32)) {
            *bias = None;
        }
    }
    bias_of
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weight::{Storage, Weight};
    use aquatint::raw::program::{Dim, Input, InputKind, Node, Role, Value};

    #[test]
    fn layers_get_biases_of_their_own() {
        let mut weights = Weights::new();
        for name in ["a", "b", "c", "d", "e"] {
            weights.push(Weight::of_checkpoint("unet", format!("{name}.weight"), &[3, 5], Storage::Linear));
        }
        let bias = weights.push(Weight::of_checkpoint("unet", "b.bias".into(), &[3], Storage::Vector));
        let linear = |weight, bias| {
            let op = Op::Linear(Linear { x: Value(0), weight: Tensor(weight), bias, ..Linear::default() });
            Node { op, path: "n".into(), wide: false }
        };
        // `a` has none, and is used twice; `b` has one; `c` and `d` share one; `e` is not wanted.
        let nodes = vec![
            linear(0, None),
            linear(0, None),
            linear(1, Some(bias)),
            linear(2, Some(Tensor(9))),
            linear(3, Some(Tensor(9))),
            linear(4, None),
        ];
        for name in ["x", "y", "z", "shared.bias"] {
            weights.push(Weight::of_checkpoint("unet", name.into(), &[3], Storage::Vector));
        }
        let inputs = vec![Input { kind: InputKind::Sample, dims: vec![Dim::Batch, Dim::Fixed(5)] }];
        let mut programs =
            vec![Program { role: Role::Denoiser, inputs, nodes, output: Value(6), phases: Default::default() }];
        let biases = give_biases(&mut programs, &mut weights, &|tensor| tensor.0 < 4);
        let own = Some(Tensor(10));
        assert_eq!(biases[..5], [own, Some(bias), None, None, None]);
        assert_eq!(weights.len(), 11);
        assert_eq!((weights[Tensor(10)].name(), weights[Tensor(10)].is_made()), ("unet/a.bias".into(), true));
        let given: Vec<_> = programs[0].nodes.iter().map(|node| product(&node.op).unwrap().1).collect();
        assert_eq!(given, [own, own, Some(bias), Some(Tensor(9)), Some(Tensor(9)), None]);
    }
}
