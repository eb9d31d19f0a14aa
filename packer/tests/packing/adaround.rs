//! AdaRound and block reconstruction, against torch step by step.

use crate::common::{Dense, load};
use crate::reverse::dit;
use aquatint::raw::codec::{Bits, QuantizedMatrix};
use aquatint::raw::program::{Dim, Input, InputKind, Node, Program, Role, Tensor, Value};
use packer::quantize::adaround::{Rounding, Schedule};
use packer::quantize::{Moments, SecondMoments, encode};
use packer::reconstruct::{Block, Curve, Trainee, Training, layer};
use packer::reverse::{Array, Values};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

type Tensors = BTreeMap<String, Dense>;

fn fixture() -> Tensors {
    load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/adaround.safetensors"))
}

/// The grid of these steps and zero points.
fn grid(weights: &Dense, bits: u32, step: &Dense, zero: &Dense) -> QuantizedMatrix {
    let rows = weights.shape[0];
    let bits = Bits::new(bits).unwrap();
    encode(&weights.values, rows, weights.values.len() / rows, bits, &step.values, &zero.values)
}

/// Moments of samples, (n, inputs).
fn moments(x: &Dense) -> Moments {
    let (n, inputs) = (x.shape[0], x.shape[1]);
    let mean = |f: &dyn Fn(&[f32]) -> f64| x.values.chunks_exact(inputs).map(f).sum::<f64>() / n as f64;
    let entries = (0..inputs).flat_map(|i| (0..=i).map(move |j| (i, j)));
    let second = entries.map(|(i, j)| mean(&|row| f64::from(row[i]) * f64::from(row[j]))).collect();
    let mean = (0..inputs).map(|i| mean(&|row| f64::from(row[i]))).collect();
    Moments { rows: n as f64, mean, second: SecondMoments::Dense(second) }
}

/// Trains a layer that is one product.
fn train(
    weights: &Dense,
    grid: &QuantizedMatrix,
    moments: &Moments,
    training: &Training,
    see: &mut dyn FnMut(f64) -> bool,
) -> Result<Option<(Rounding, Curve)>, String> {
    let part = layer::Part { weights: &weights.values, grid: grid.clone(), inputs: (0..moments.inputs()).collect() };
    let trained = layer::train(vec![part], moments, training, see)?;
    Ok(trained.map(|(mut roundings, curve)| (roundings.remove(0), curve)))
}

/// Alphas move by a rate per step, so that is what errors of theirs are measured in: where a derivative is nearly 0, a step
/// goes anywhere. What is asked for is that all but a few end within half a step.
fn assert_alphas(got: &[f32], expected: &[f32], rate: f32, what: &str) {
    let far = |(got, expected): &(&f32, &f32)| (*got - *expected).abs() > 0.5 * rate;
    let off = got.iter().zip(expected).filter(far).count();
    assert!(got.len() == expected.len() && off * 50 <= got.len(), "{what}: {off} of {} alphas", got.len());
}

/// Codes are equal but for weights in doubt.
fn assert_codes(got: &[u8], expected: &Dense, alpha: &[f32], rate: f32, what: &str) {
    for ((i, &got), &expected) in got.iter().enumerate().zip(&expected.values) {
        let sure = alpha[i].abs() > rate;
        assert!(f32::from(got) == expected || !sure, "{what} {i}: {got}, torch has {expected} at alpha {}", alpha[i]);
    }
}

#[test]
fn directions_of_layers_are_those_of_torch() {
    let all = fixture();
    for (name, bits) in [("a", 3), ("b", 2), ("c", 4)] {
        let at = |key: &str| &all[&format!("layer/{name}/{key}")];
        let weights = at("w");
        for (which, rate, iterations) in [("slow", 1e-3, 60), ("fast", 2e-2, 150)] {
            let what = format!("layer {name}, {which}");
            let of = |key: &str| at(&format!("{which}/{key}"));
            let training = Training { iterations, rate, weight: Schedule::WEIGHT };
            let mut losses = Vec::new();
            let grid = grid(weights, bits, at("step"), at("zero"));
            let mut see = |loss| {
                losses.push(loss);
                true
            };
            let (rounding, curve) = train(weights, &grid, &moments(at("x")), &training, &mut see).unwrap().unwrap();
            for (i, (&got, &expected)) in losses.iter().zip(&of("losses").values).enumerate() {
                let expected = f64::from(expected);
                assert!((got - expected).abs() <= 2e-3 * expected + 1e-9, "{what}, {i}: {got}, torch has {expected}");
            }
            assert_alphas(&rounding.alpha, &of("alpha").values, rate, &what);
            assert_codes(&rounding.harden().codes, of("codes"), &of("alpha").values, rate, &what);
            assert_eq!(curve, Curve::new(curve.begin, &losses, curve.end));
        }
    }
}

#[test]
fn a_layer_objective_is_the_error_of_outputs() {
    let all = fixture();
    let at = |key: &str| &all[&format!("layer/a/{key}")];
    let (weights, x) = (at("w"), at("x"));
    let nearest = grid(weights, 3, at("step"), at("zero"));
    let error = |matrix: &QuantizedMatrix| -> f64 {
        let outputs = x.values.chunks_exact(matrix.cols).flat_map(|x| {
            (0..matrix.rows).map(move |r| {
                let error = |(k, &x): (usize, &f32)| {
                    f64::from(weights.values[r * matrix.cols + k] - matrix.weight(r, k)) * f64::from(x)
                };
                x.iter().enumerate().map(error).sum::<f64>().powi(2)
            })
        });
        outputs.sum::<f64>() / x.shape[0] as f64
    };
    let training = Training { iterations: 400, rate: 2e-2, weight: Schedule::WEIGHT };
    let trained = train(weights, &nearest, &moments(x), &training, &mut |_| true).unwrap().unwrap();
    let (rounding, curve) = trained;
    let near = |got: f64, expected: f64| assert!((got - expected).abs() < 1e-4 * expected, "{got} {expected}");
    near(curve.begin, error(&nearest));
    near(curve.end, error(&rounding.harden()));
    assert!(curve.end < 0.8 * curve.begin, "{} {}", curve.begin, curve.end);
    // It is the regularizer that makes directions certain.
    let undecided = |weight: f32| {
        let training = Training { weight, ..training };
        let trained = train(weights, &nearest, &moments(x), &training, &mut |_| true);
        let (rounding, _) = trained.unwrap().unwrap();
        // Where the stretched sigmoid is neither 0 nor 1.
        rounding.alpha.iter().filter(|alpha| alpha.abs() < 11f32.ln()).count()
    };
    let [strong, none] = [undecided(1.0), undecided(0.0)];
    assert!(10 * strong < none, "{strong} {none}");
    // Work ends when it should, and what does not fit is told.
    let ended = train(weights, &nearest, &moments(x), &training, &mut |_| false);
    assert!(ended.unwrap().is_none());
    let other = moments(&all["layer/b/x"]);
    let error = train(weights, &nearest, &other, &training, &mut |_| true).unwrap_err();
    assert_eq!(error, "moments of 9 inputs for 91 weights of 7 outputs");
}

#[test]
fn halves_are_trained_for_their_sum() {
    let all = fixture();
    let (weights, x) = (&all["layer/a/w"], &all["layer/a/x"]);
    let whole = grid(weights, 3, &all["layer/a/step"], &all["layer/a/zero"]);
    let training = Training { iterations: 60, rate: 2e-2, weight: Schedule::WEIGHT };
    let (rounding, curve) = train(weights, &whole, &moments(x), &training, &mut |_| true).unwrap().unwrap();
    // The same weights on the same levels, in two products of inputs that lie anywhere.
    let halves = [vec![1, 2, 5, 9], vec![0, 3, 4, 6, 7, 8, 10, 11, 12]];
    let of = |row: &[f32], inputs: &[usize]| inputs.iter().map(|&i| row[i]).collect::<Vec<f32>>();
    let columns = |values: &[f32], inputs: &[usize]| -> Vec<f32> {
        values.chunks_exact(whole.cols).flat_map(|row| of(row, inputs)).collect()
    };
    let values = halves.each_ref().map(|inputs| columns(&weights.values, inputs));
    let parts = halves.iter().zip(&values).map(|(inputs, weights)| {
        let codes = vec![0; weights.len()];
        layer::Part {
            weights,
            grid: QuantizedMatrix { cols: inputs.len(), codes, ..whole.clone() },
            inputs: inputs.clone(),
        }
    });
    let (parts, own) = layer::train(parts.collect(), &moments(x), &training, &mut |_| true).unwrap().unwrap();
    assert!((own.begin - curve.begin).abs() < 1e-5 * curve.begin && (own.end - curve.end).abs() < 1e-2 * curve.end);
    for (part, inputs) in parts.iter().zip(&halves) {
        assert_alphas(&part.alpha, &columns(&rounding.alpha, inputs), training.rate, "halves");
    }
    // Each for itself would be another thing.
    let alone = layer::Part {
        weights: &values[0],
        grid: QuantizedMatrix { cols: 4, codes: vec![0; 28], ..whole.clone() },
        inputs: halves[0].clone(),
    };
    let (alone, _) = layer::train(vec![alone], &moments(x), &training, &mut |_| true).unwrap().unwrap();
    let far = alone[0].alpha.iter().zip(&parts[0].alpha).filter(|(a, b)| (**a - **b).abs() > training.rate).count();
    assert!(far * 5 > alone[0].len(), "{far}");
}

/// The block of the fixture.
struct Setting {
    program: Program,
    nodes: Vec<usize>,
    values: Values,
    tensors: BTreeMap<Tensor, Array>,
    target: Array,
    batches: Vec<Vec<usize>>,
}

fn setting(all: &Tensors) -> Setting {
    let array = |key: &str| Array::new(&all[key].shape, all[key].values.clone());
    let input = Input { kind: InputKind::Sample, dims: vec![Dim::Batch] };
    let nodes = dit(6).into_iter().map(|op| Node { op, path: "block".into(), wide: false }).collect::<Vec<_>>();
    let count = nodes.len();
    let output = Value(2 + count as u32 - 1);
    let program = Program { role: Role::Denoiser, inputs: vec![input; 2], nodes, output, phases: Default::default() };
    let numbered = |prefix: &str| {
        let of = |key: &String| key.strip_prefix(&format!("block/{prefix}."))?.parse().ok();
        let all = all.keys().filter_map(|key| Some((of(key)?, array(key))));
        all.collect::<BTreeMap<u32, Array>>()
    };
    let batches = &all["block/batches"];
    Setting {
        program,
        nodes: (0..count).collect(),
        values: numbered("v").into_iter().map(|(i, array)| (Value(i), array)).collect(),
        tensors: numbered("t").into_iter().map(|(i, array)| (Tensor(i), array)).collect(),
        target: array("block/target"),
        batches: batches
            .values
            .chunks_exact(batches.shape[1])
            .map(|which| which.iter().map(|&i| i as usize).collect())
            .collect(),
    }
}

impl Setting {
    fn train(
        &self,
        trainees: &mut BTreeMap<Tensor, Trainee>,
        training: &Training,
        see: &mut dyn FnMut(f64) -> bool,
    ) -> Option<Curve> {
        let (weights, shared) = (|tensor: Tensor| &self.tensors[&tensor], BTreeSet::new());
        let block = Block {
            program: &self.program,
            nodes: &self.nodes,
            frames: 1,
            output: self.program.output,
            inputs: &self.values,
            shared: &shared,
            target: &self.target,
            weights: &weights,
        };
        let mut batch = |count: usize| self.batches[(count - 1) % self.batches.len()].clone();
        block.train(trainees, training, &mut batch, see).unwrap()
    }
}

#[test]
fn directions_of_a_block_are_those_of_torch() {
    let all = fixture();
    let setting = setting(&all);
    let at = |key: &str, tensor: Tensor| &all[&format!("block/{key}.{}", tensor.0)];
    let matrices = || setting.tensors.iter().filter(|(_, array)| array.dims.len() == 2);
    let mut trainees: BTreeMap<Tensor, Trainee> = matrices()
        .map(|(&t, array)| {
            let grid = grid(at("t", t), 3, at("step", t), at("zero", t));
            (t, Trainee::rounding(t, array, grid))
        })
        .collect();
    let training = Training { iterations: setting.batches.len(), rate: 1e-2, weight: Schedule::WEIGHT };
    let mut losses = Vec::new();
    let curve = setting.train(&mut trainees, &training, &mut |loss| {
        losses.push(loss);
        true
    });
    assert!(curve.is_some());
    for (i, (&got, &expected)) in losses.iter().zip(&all["block/losses"].values).enumerate() {
        let expected = f64::from(expected);
        assert!((got - expected).abs() < 1e-3 * expected, "{i}: {got}, torch has {expected}");
    }
    assert_eq!(trainees.len(), 7);
    for (&t, trainee) in &trainees {
        let what = format!("weight {}", t.0);
        assert_alphas(&trainee.directions().unwrap().alpha, &at("alpha", t).values, training.rate, &what);
        assert_codes(&trainee.finish().0.codes, at("codes", t), &at("alpha", t).values, training.rate, &what);
    }
}

#[test]
fn zero_points_between_integers_have_the_same_levels() {
    // Weights at their levels stay there, whichever grid: of step 0.5 and zero points that are no integers.
    let (rows, cols, bits) = (3, 16, Bits::new(4).unwrap());
    let zero = [2.0f32, 5.25, 7.75];
    let weights: Vec<f32> = (0..rows * cols).map(|i| ((i % cols) as f32 - zero[i / cols]) * 0.5).collect();
    let matrix = encode(&weights, rows, cols, bits, &[0.5; 3], &zero);
    let back = Rounding::new(&weights, matrix.clone());
    for (got, expected) in back.soft().iter().zip(&weights) {
        assert!((got - expected).abs() < 1e-6, "{got} {expected}");
    }
    // A little above a level, the nearer of the two directions is down, and far above it is up.
    for (by, up) in [(0.1, 0), (0.4, 1)] {
        let moved: Vec<f32> = weights.iter().map(|w| w + by).collect();
        let codes = Rounding::new(&moved, matrix.clone()).harden().codes;
        let expected = (0..rows * cols).map(|i| (i % cols + up).min(15) as u8);
        assert!(codes.iter().copied().eq(expected), "{by}");
    }
}
