//! Whole models on the integer path against a float64 simulation of the same quantization.
//!
//! The simulation is the oracle of `common::naive` run over a packed program: weights are the file's table entries,
//! scales and offsets, activations are quantized by the definition in `program::op`, everything else is f64. Globs in
//! the configurations count as explicit, so that the small layers of the fixtures are quantized as well.
//!
//! Rounding to codes is discontinuous: an activation on a tie may get either of two neighbouring codes in f32 and f64.
//! One such flip is a legitimate difference of a whole step and flips more codes after it, up to 1e-2 of the result in
//! these tiny models. Hence every tier is compared with two runs of the simulation:
//!
//! * *Free*: it chooses its own codes. Where none flips, results agree to 1e-5, far within the 1e-3 that the integer
//!   path is held to. Where some do, nothing is asserted of the result, but at least half of the runs must be within 1e-3.
//! * *Guided*: it computes every quantization, but goes on with the tier's codes. All codes must be equal but for rare
//!   neighbours, and results agree to 1e-5 in every run.

use aquatint::raw::backend::args::*;
use aquatint::raw::backend::cpu::{Cpu, Tier};
use aquatint::raw::codec::layout::Tables;
use aquatint::raw::program::{
    Act, Add, Dim, Embedding, Input as Declared, InputKind, Node, Op, Pointwise, Program, Role, Tensor, Value,
};
use aquatint::{raw::exec::Executor, raw::format::TensorView, raw::plan::Binding};
use common::Model;
use common::naive::{self, Array, Inputs};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Relative L2 error within which results agree if their codes do.
const AGREE: f64 = 1e-5;
/// Relative L2 error that the integer path is held to.
const BOUND: f64 = 1e-3;
/// Most codes of a run that may differ from the simulation's on equal input: f32 resolves ties to about 1e-4 steps.
const FLIPS: f64 = 2e-4;
const VARIANTS: [&str; 3] = ["d2", "d3odd", "d1p1"];
const CONFIGS: [&str; 8] = [
    r#"{"*": "w8a8"}"#,
    r#"{"*": "w4a8"}"#,
    r#"{"*": "w4a8:kmeans"}"#,
    r#"{"*": "w3a8:kmeans_all"}"#,
    r#"{"*": "w4a6"}"#,
    r#"{"*": "w8a4"}"#,
    r#"{"*": "w6a8"}"#,
    r#"{"*": "w4a8", "*.attn1.*": "w6a6", "*.ff.net.2": "w3a8:kmeans", "*norm1*": "w8a16", "proj_out_2": "f16"}"#,
];

/// Codes that a back end made: the real numbers they stand for, and the step between codes of each.
struct Quantized {
    values: Array,
    steps: Vec<f64>,
}

/// Packs a fixture with a configuration for each of its networks.
fn packed(variant: &str, config: &str, vae: &str) -> Model {
    static FILES: AtomicUsize = AtomicUsize::new(0);
    let name = format!("aquatint-integer-{}-{}", std::process::id(), FILES.fetch_add(1, Ordering::Relaxed));
    let at = |ending: &str| std::env::temp_dir().join(format!("{name}{ending}"));
    let (q_config, vae_q_config, output) = (at(".json"), at(".vae.json"), at(".aqt"));
    [(&q_config, config), (&vae_q_config, vae)].iter().for_each(|(file, text)| std::fs::write(file, text).unwrap());
    let options = packer::emit::Options {
        model: Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/dit").join(variant),
        q_config: Some(q_config.to_str().unwrap().into()),
        vae_q_config: Some(vae_q_config.to_str().unwrap().into()),
        output: output.clone(),
        ..Default::default()
    };
    packer::emit::pack(&options, &mut |_| ()).expect("the fixture packs");
    let model = Model::new(aquatint::raw::mmap::open(&output).unwrap()).unwrap();
    [q_config, vae_q_config, output].iter().for_each(|file| std::fs::remove_file(file).unwrap());
    model
}

/// The numbers that each tensor of the file stands for.
fn tensors(model: &Model) -> Vec<Array> {
    let array = |t| {
        let info = &model.tensors()[t];
        let (view, (_, cols)) = (model.tensor(t), info.matrix());
        Array::new(&info.dims, |i| match view {
            TensorView::F32(v) => v[i].into(),
            TensorView::F16(v) => v[i].to_f64(),
            TensorView::Codes(m) => {
                let row = i / cols;
                let at = m.table_start(row) + usize::from(m.code(row, i % cols));
                let entry = if let Tables::I8(t) = m.tables { f64::from(t[at]) } else { panic!("a float codebook") };
                f64::from(m.scale[row]) * (entry + f64::from(m.offset[row]))
            }
        })
    };
    (0..model.tensors().len()).map(array).collect()
}

/// The result of a call on `tier`, and the codes of each quantizing node, in the order of the program.
fn runtime(tier: Tier, model: &Model, role: Role, inputs: &Inputs) -> (Vec<f32>, Vec<Quantized>) {
    {
        let cpu = Cpu::new(tier).node_by_node();
        let shape = Binding { dims: inputs.dims, calls: 1, table_bytes: 0, reserve: 0 };
        let mut executor = Executor::new(&cpu, model, role, shape).unwrap();
        if role == Role::Denoiser {
            executor.set_class_labels(&inputs.labels[..inputs.dims.conditions]).unwrap();
            executor.set_timesteps([inputs.timestep].into_iter()).unwrap();
        }
        executor.write_sample(&inputs.sample).unwrap();
        let mut quantized = Vec::new();
        executor
            .observe(0, |seen| {
                if let Input::Codes(codes) = seen.op.result() {
                    let made = seen.codes(&codes)?;
                    let group = |i: usize| i / codes.cols / (codes.rows / codes.groups);
                    let steps: Vec<f64> = (0..made.codes.len()).map(|i| made.scale[group(i)].into()).collect();
                    let value = |i: usize| steps[i] * (f64::from(made.codes[i]) - f64::from(made.zero[group(i)]));
                    let values = Array::new(&[codes.rows, codes.cols], value);
                    quantized.push((seen.node, Quantized { values, steps }));
                }
                Ok(())
            })
            .unwrap();
        let mut out = vec![f32::NAN; executor.plan().output_type.len()];
        executor.read_output(&mut out).unwrap();
        // Slower ops ran first.
        quantized.sort_by_key(|(node, _)| *node);
        (out, quantized.into_iter().map(|(_, codes)| codes).collect())
    }
}

/// `program` with the codes of every quantizing node replaced by `codes` for whoever reads them; and the values that
/// those nodes themselves compute. The oracle knows no constants: they enter as rows `0, 1, ..` of embeddings.
fn guided(program: &Program, tensors: &mut Vec<Array>, codes: &[Quantized]) -> (Program, Vec<Value>) {
    let mut out = Program { nodes: Vec::new(), ..program.clone() };
    let index = |q: &Quantized| vec![Dim::Fixed(q.values.rows() as u32)];
    out.inputs.extend(codes.iter().map(|q| Declared { kind: InputKind::ClassLabels, dims: index(q) }));
    let mut numbers: Vec<Value> = (0..program.inputs.len() as u32).map(Value).collect();
    let mut own = Vec::new();
    for node in &program.nodes {
        let mut push = |op: Op| {
            out.nodes.push(Node { op, ..node.clone() });
            out.value_of(out.nodes.len() - 1)
        };
        let mut op = node.op;
        op.renumber(|v| numbers[v.0 as usize]);
        let mut value = push(op);
        if node.op.quantizes().is_some() {
            let index = Value((program.inputs.len() + own.len()) as u32);
            let table = Tensor(tensors.len() as u32);
            tensors.push(codes[own.len()].values.clone());
            own.push(value);
            let a = push(Op::Pointwise(Pointwise { x: value, act: Act::None, mul: 0.0, add: 0.0 }));
            let b = push(Op::Embedding(Embedding { index, table }));
            value = push(Op::Add(Add { a, b }));
        }
        numbers.push(value);
    }
    out.output = numbers[program.output.0 as usize];
    (out, own)
}

/// How many of `own` codes are not those of `codes`, and how many of them are not even neighbours.
fn flips(own: &Array, codes: &Quantized) -> [usize; 2] {
    let pairs = own.data.iter().zip(&codes.values.data).zip(&codes.steps);
    let steps: Vec<f64> = pairs.map(|((a, b), step)| ((a - b) / step).abs()).collect();
    let count = |wrong: fn(f64) -> bool| steps.iter().filter(|&&d| wrong(d)).count();
    [count(|d| d > 0.01), count(|d| d > 0.01 && (d - 1.0).abs() > 0.01)]
}

/// `|a - b| / |b|`.
fn relative(a: &[f32], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len(), "lengths");
    let error: f64 = a.iter().zip(b).map(|(&a, b)| (f64::from(a) - b).powi(2)).sum();
    (error / b.iter().map(|b| b * b).sum::<f64>()).sqrt()
}

/// The mean of `agreed`.
fn share(agreed: impl Iterator<Item = f64>) -> f64 {
    let agreed: Vec<f64> = agreed.collect();
    agreed.iter().sum::<f64>() / agreed.len() as f64
}

/// Compares every tier with both simulations; returns the share of tiers with which the free one agreed.
fn check(model: &Model, floating: &Model, role: Role, latent: [usize; 2], what: &str) -> f64 {
    let program = model.program(role).unwrap();
    let Dim::Fixed(channels) = program.inputs[0].dims[3] else { panic!("channels are fixed") };
    let mut rng = fastrand::Rng::with_seed(7);
    let mut inputs = common::inputs([2, latent[0], latent[1], channels as usize], || common::normal(&mut rng));
    inputs.labels = (0..1 << 16).collect();
    let arrays = tensors(model);
    let free = naive::run(program, &arrays, &inputs);
    let quantizing = (0..program.nodes.len()).filter(|&i| program.nodes[i].op.quantizes().is_some());
    let quantizing: Vec<Value> = quantizing.map(|i| program.value_of(i)).collect();
    assert!(!quantizing.is_empty(), "{what}: there are integer layers");
    let (float, none) = runtime(Tier::available()[0], floating, role, &inputs);
    assert!(none.is_empty(), "{what}: no integer layers without integer activations");
    let agreed = Tier::available().into_iter().map(|tier| {
        let what = format!("{what} {role:?} on {}", tier.name());
        let (got, codes) = runtime(tier, model, role, &inputs);
        let apart = relative(&float, &Array::of(&[got.len()], &got).data);
        assert!(apart > 1e-3, "{what}: integer activations make a difference: {apart:e}");

        assert_eq!(codes.len(), quantizing.len(), "{what}: every quantization was seen");
        let count = |values: &[Array], own: &[Value]| {
            let each = own.iter().zip(&codes).map(|(v, q)| flips(&values[v.0 as usize], q));
            each.fold([0; 2], |sum, n| [sum[0] + n[0], sum[1] + n[1]])
        };
        let [free_flips, _] = count(&free, &quantizing);
        let free_error = relative(&got, &free[program.output.0 as usize].data);
        let mut tensors = arrays.clone();
        let (guided, own) = guided(program, &mut tensors, &codes);
        let values = naive::run(&guided, &tensors, &inputs);
        let [guided_flips, faults] = count(&values, &own);
        let error = relative(&got, &values[guided.output.0 as usize].data);
        let total: usize = codes.iter().map(|q| q.steps.len()).sum();
        println!("{what}: free {free_error:e} ({free_flips} flips), guided {error:e} ({guided_flips} of {total})");
        assert_eq!(faults, 0, "{what}: codes that are no neighbours of the simulation's");
        assert!(guided_flips as f64 <= (total as f64 * FLIPS).max(2.0), "{what}: {guided_flips} flips of {total}");
        assert!(error < AGREE, "{what}: guided {error:e}");
        assert!(free_flips > 0 || free_error < AGREE, "{what}: free {free_error:e} without a flip");
        free_error < BOUND
    });
    share(agreed.map(|a| f64::from(u8::from(a))))
}

#[test]
fn the_integer_denoiser_equals_its_simulation() {
    let agreed = VARIANTS.into_iter().flat_map(|variant| CONFIGS.map(|config| (variant, config)));
    let agreed = agreed.map(|(variant, config)| {
        let [model, floating] =
            [config, &["a8", "a6", "a4"].iter().fold(config.to_owned(), |all, bits| all.replace(bits, "a16"))]
                .map(|config| packed(variant, config, r#"{"*": "f32"}"#));
        check(&model, &floating, Role::Denoiser, [6, 8], &format!("{variant} {config}"))
    });
    assert!(share(agreed) >= 0.5, "half of the free runs are within {BOUND:e}");
}

#[test]
fn the_integer_decoder_equals_its_simulation() {
    let agreed = VARIANTS.into_iter().flat_map(|variant| {
        let [model, floating] =
            [r#"{"*": "w8a8"}"#, r#"{"*": "w8a16"}"#].map(|config| packed(variant, r#"{"*": "f32"}"#, config));
        [[5, 7], [6, 6]].map(|latent| check(&model, &floating, Role::VaeDecoder, latent, variant))
    });
    assert!(share(agreed) >= 0.5, "half of the free runs are within {BOUND:e}");
}
