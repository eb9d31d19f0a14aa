//! Whole models on the integer path against a float64 simulation of the same quantization.
//!
//! The simulation is the oracle of `common::naive` run over a packed program: weights are the file's table entries,
//! scales and offsets, activations are quantized by the definition in `program::op`, everything else is f64. Globs in
//! the configurations count as explicit, so that the small layers of the fixtures are quantized as well.
//!
//! Two runs are compared with every tier, because rounding to codes is discontinuous. An activation that lies on a tie
//! but for f32's rounding may get either of two neighbouring codes; one such flip is a legitimate difference of
//! a whole step, moves the activations after it and flips more codes there (about 1e-3 to 1e-2 of the result in these
//! tiny models, whose rows have few elements). Hence:
//!
//! * *Free*: the simulation chooses its own codes. Where none flips, results agree to 1e-5, far within the 1e-3 that
//!   the integer path is held to. Where some do, nothing is asserted of the result, but most runs must be free of it.
//! * *Guided*: every quantization of the simulation is still computed, and compared code by code with the tier's:
//!   all must be equal but for rare neighbours. What follows reads the tier's codes. Then there is no excuse: results
//!   agree to 1e-5 in every run.

mod common;

use aquatint::Result;
use aquatint::backend::{Backend, args::*, cpu::Tier};
use aquatint::codec::layout::Tables;
use aquatint::exec::Executor;
use aquatint::format::TensorView;
use aquatint::plan::Shape;
use aquatint::program::{Act, Dim, Input as Declared, InputKind, Node, Op, Program, Role, Tensor, Value};
use aquatint::{sampler::Row, with_cpu};
use common::Model;
use common::naive::{self, Array, Inputs};
use std::path::Path;
use std::sync::Mutex;

/// Relative L2 error within which results agree if their codes do.
const AGREE: f64 = 1e-5;
/// Relative L2 error that the integer path is held to.
const BOUND: f64 = 1e-3;
/// Most codes of a run that may differ from the simulation's on equal input: f32 resolves ties to about 1e-4 steps.
const FLIPS: f64 = 2e-4;

const VARIANTS: [&str; 3] = ["d2", "d3odd", "d1p1"];

/// Precisions of the denoiser.
const CONFIGS: [&str; 7] = [
    r#"{"*": "w8a8"}"#,
    r#"{"*": "w4a8"}"#,
    r#"{"*": "w4a8:kmeans"}"#,
    r#"{"*": "w3a8:kmeans_all"}"#,
    r#"{"*": "w4a6"}"#,
    r#"{"*": "w6a8"}"#,
    r#"{"*": "w4a8", "*.attn1.*": "w6a6", "*.ff.net.2": "w3a8:kmeans", "*norm1*": "w8a16", "proj_out_2": "f16"}"#,
];

/// Codes that a back end made: the real numbers they stand for, and the step between codes of each.
struct Quantized {
    values: Vec<f32>,
    steps: Vec<f32>,
    cols: usize,
}

/// A back end that remembers all codes it made, in order.
struct Spy<B> {
    inner: B,
    seen: Mutex<Vec<Quantized>>,
}

impl<B: Backend> Spy<B> {
    fn remember(&self, arena: &B::Arena, call: usize, codes: &Codes) {
        let at = codes.slot.of(call);
        let floats = |offset: usize, n: usize| {
            let mut out = vec![0.0; n];
            self.inner.read_f32(arena, at + offset, &mut out);
            out
        };
        let (scale, zero) = (floats(codes.scale_at(), codes.groups), floats(codes.zero_at(), codes.groups));
        // Copied as they lie: four codes to a word.
        let words = floats(0, codes.rows * codes.stride() / 4);
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_bits().to_le_bytes()).collect();
        let group = |i: usize| i / codes.cols / (codes.rows / codes.groups);
        let code = |i: usize| f32::from(bytes[i / codes.cols * codes.stride() + i % codes.cols]);
        let all = 0..codes.rows * codes.cols;
        self.seen.lock().unwrap().push(Quantized {
            values: all.clone().map(|i| scale[group(i)] * (code(i) - zero[group(i)])).collect(),
            steps: all.map(|i| scale[group(i)]).collect(),
            cols: codes.cols,
        });
    }
}

/// Ops that only pass through, and ops whose result may be codes.
macro_rules! spied {
    ($($op:ident($args:ty $(, $tensor:ident: $ty:ty)*) => $codes:expr;)*) => {
        $(fn $op(&self, arena: &mut B::Arena, call: usize, args: &$args $(, $tensor: $ty)*) {
            self.inner.$op(arena, call, args $(, $tensor)*);
            let codes: fn(&$args) -> Option<Codes> = $codes;
            if let Some(codes) = codes(args) {
                self.remember(arena, call, &codes);
            }
        })*
    };
}

fn codes_of(y: &Output) -> Option<Codes> {
    if let Output::Codes(to) = y { Some(to.codes) } else { None }
}

impl<B: Backend> Backend for Spy<B> {
    type Arena = B::Arena;
    type Weight<'a> = B::Weight<'a>;

    fn name(&self) -> String {
        self.inner.name()
    }
    fn arena(&self, bytes: usize) -> Result<B::Arena> {
        self.inner.arena(bytes)
    }
    fn weight<'a>(&self, tensor: TensorView<'a>) -> Result<B::Weight<'a>> {
        self.inner.weight(tensor)
    }
    fn workspace(&self, op: &OpArgs) -> usize {
        self.inner.workspace(op)
    }
    fn prepare(&mut self, ops: &mut dyn Iterator<Item = &OpArgs>) {
        self.inner.prepare(ops);
    }
    fn write_f32(&self, arena: &mut B::Arena, at: usize, data: &[f32]) {
        self.inner.write_f32(arena, at, data);
    }
    fn write_u32(&self, arena: &mut B::Arena, at: usize, data: &[u32]) {
        self.inner.write_u32(arena, at, data);
    }
    fn read_f32(&self, arena: &B::Arena, at: usize, out: &mut [f32]) {
        self.inner.read_f32(arena, at, out);
    }
    fn model_input(&self, arena: &mut B::Arena, args: &ModelInputArgs) {
        self.inner.model_input(arena, args);
    }
    fn sampler_step(&self, arena: &mut B::Arena, call: usize, args: &SamplerStepArgs, row: &Row) {
        self.inner.sampler_step(arena, call, args, row);
    }
    spied! {
        linear(LinearArgs, w: &B::Weight<'_>, b: Option<&B::Weight<'_>>) => |_| None;
        conv2d(Conv2dArgs, w: &B::Weight<'_>, b: Option<&B::Weight<'_>>) => |_| None;
        attention(AttentionArgs) => |_| None;
        layer_norm(LayerNormArgs, w: Option<&B::Weight<'_>>, b: Option<&B::Weight<'_>>) => |a| codes_of(&a.y);
        group_norm(GroupNormArgs, w: &B::Weight<'_>, b: &B::Weight<'_>) => |a| codes_of(&a.y);
        pointwise(PointwiseArgs) => |_| None;
        add(AddArgs) => |_| None;
        quantize(QuantizeArgs) => |a| Some(a.y.codes);
        embedding(EmbeddingArgs, table: &B::Weight<'_>) => |_| None;
        timestep_embedding(TimestepEmbeddingArgs) => |_| None;
        position_embedding(PositionEmbeddingArgs) => |_| None;
        patch(PatchArgs) => |_| None;
    }
}

/// Packs a fixture with a configuration for each of its networks.
fn packed(variant: &str, config: &str, vae: &str) -> Model {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    (variant, config, vae).hash(&mut hasher);
    let name = format!("aquatint-integer-{}-{:x}", std::process::id(), hasher.finish());
    let at = |ending: &str| std::env::temp_dir().join(format!("{name}{ending}"));
    let (q_config, vae_q_config, output) = (at(".json"), at(".vae.json"), at(".aqt"));
    std::fs::write(&q_config, config).unwrap();
    std::fs::write(&vae_q_config, vae).unwrap();
    let options = packer::emit::Options {
        model: Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/dit").join(variant),
        q_config: Some(q_config.to_str().unwrap().into()),
        vae_q_config: Some(vae_q_config.to_str().unwrap().into()),
        output: output.clone(),
    };
    packer::emit::pack(&options, &mut |_| ()).expect("the fixture packs");
    let model = Model::new(aquatint::mmap::map(&output).unwrap()).unwrap();
    [q_config, vae_q_config, output].iter().for_each(|file| std::fs::remove_file(file).unwrap());
    model
}

/// The numbers that each tensor of the file stands for.
fn tensors(model: &Model) -> Vec<Array> {
    let array = |t: usize| {
        let info = &model.tensors()[t];
        let (view, (_, cols)) = (model.tensor(t), info.matrix());
        Array::new(&info.dims, |i| match view {
            TensorView::F32(v) => v[i].into(),
            TensorView::F16(v) => v[i].to_f64(),
            TensorView::Codes(m) => {
                let row = i / cols;
                let at = m.table_start(row) + usize::from(m.code(row, i % cols));
                let entry = match m.tables {
                    Tables::I8(t) => t[at].into(),
                    Tables::F16(t) => t[at].to_f64(),
                };
                f64::from(m.scale[row]) * (entry + f64::from(m.offset[row]))
            }
        })
    };
    (0..model.tensors().len()).map(array).collect()
}

/// The result of a call on `tier`, and the codes of each quantizing node, in the order of the program.
fn runtime(tier: Tier, model: &Model, role: Role, inputs: &Inputs) -> (Vec<f32>, Vec<Quantized>) {
    with_cpu!(tier, cpu => {
        let mut spy = Spy { inner: cpu, seen: Mutex::default() };
        let shape = Shape { dims: inputs.dims, calls: 1, table_bytes: 0, reserve: 0 };
        let mut executor = Executor::bind(&mut spy, model, role, shape).unwrap();
        if role == Role::Denoiser {
            executor.set_class_labels(&inputs.labels[..inputs.dims.conditions]).unwrap();
            executor.set_timesteps([inputs.timestep].into_iter()).unwrap();
        }
        executor.write_sample(&inputs.sample);
        executor.call(0);
        let mut out = vec![f32::NAN; executor.plan().output_type.len()];
        executor.read_output(&mut out);
        // Slower ops ran first.
        let quantizes = |&node: &usize| executor.program().nodes[node].op.quantizes().is_some();
        let order: Vec<usize> = executor.plan().ops.iter().flatten().map(|p| p.node).filter(quantizes).collect();
        drop(executor);
        let mut seen: Vec<_> = order.into_iter().zip(spy.seen.into_inner().unwrap()).collect();
        seen.sort_by_key(|s| s.0);
        (out, seen.into_iter().map(|s| s.1).collect())
    })
}

/// `program` with the codes of every quantizing node replaced by `codes` for whoever reads them; and the values that
/// those nodes themselves compute. The oracle knows no constants: they enter as rows `0, 1, ..` of embeddings.
fn guided(program: &Program, tensors: &mut Vec<Array>, codes: &[Quantized]) -> (Program, Vec<Value>) {
    let mut codes = codes.iter();
    let mut out = Program { nodes: Vec::new(), ..program.clone() };
    let quantizing = program.nodes.iter().filter(|n| n.op.quantizes().is_some()).count();
    out.inputs.extend(
        codes.clone().map(|q| Declared {
            kind: InputKind::ClassLabels,
            dims: vec![Dim::Fixed((q.values.len() / q.cols) as u32)],
        }),
    );
    assert_eq!(codes.len(), quantizing, "every quantization was seen");
    let mut numbers: Vec<Value> = (0..program.inputs.len() as u32).map(Value).collect();
    let mut own = Vec::new();
    for node in &program.nodes {
        let mut push = |op: Op| {
            out.nodes.push(Node { op, ..node.clone() });
            out.value_of(out.nodes.len() - 1)
        };
        let mut op = node.op.clone();
        op.operands_mut().for_each(|v| *v = numbers[v.0 as usize]);
        let quantizes = op.quantizes().is_some();
        let mut value = push(op);
        if quantizes {
            let q = codes.next().unwrap();
            let index = Value((program.inputs.len() + own.len()) as u32);
            let table = Tensor(tensors.len() as u32);
            tensors.push(Array::of(&[q.values.len() / q.cols, q.cols], &q.values));
            own.push(value);
            let a = push(Op::Pointwise { x: value, act: Act::None, mul: 0.0, add: 0.0 });
            let b = push(Op::Embedding { index, table });
            value = push(Op::Add { a, b });
        }
        numbers.push(value);
    }
    out.output = numbers[program.output.0 as usize];
    (out, own)
}

/// How many of `own` codes are not those of `codes`, but neighbours; others are faults.
fn flips(own: &Array, codes: &Quantized, faults: &mut usize) -> usize {
    let steps =
        own.data.iter().zip(&codes.values).zip(&codes.steps).map(|((a, &b), &s)| (a - f64::from(b)) / f64::from(s));
    steps.filter(|d| d.abs() > 0.01).inspect(|d| *faults += usize::from((d.abs() - 1.0).abs() > 0.01)).count()
}

/// `|a - b| / |b|`.
fn relative(a: &[f32], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len(), "lengths");
    let error: f64 = a.iter().zip(b).map(|(&a, b)| (f64::from(a) - b).powi(2)).sum();
    (error / b.iter().map(|b| b * b).sum::<f64>()).sqrt()
}

/// Compares every tier with both simulations; returns for each tier whether the free one agreed.
fn check(model: &Model, floating: &Model, role: Role, latent: [usize; 2], what: &str) -> Vec<bool> {
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
        let apart = relative(&float, &got.iter().map(|&v| v.into()).collect::<Vec<_>>());
        assert!(apart > 1e-3, "{what}: integer activations make a difference: {apart:e}");

        let mut faults = 0;
        let count = |values: &[Array], own: &[Value], faults: &mut usize| -> usize {
            own.iter().zip(&codes).map(|(v, q)| flips(&values[v.0 as usize], q, faults)).sum()
        };
        let free_flips = count(&free, &quantizing, &mut 0);
        let free_error = relative(&got, &free[program.output.0 as usize].data);

        let mut tensors = arrays.clone();
        let (guided, own) = guided(program, &mut tensors, &codes);
        let values = naive::run(&guided, &tensors, &inputs);
        let guided_flips = count(&values, &own, &mut faults);
        let error = relative(&got, &values[guided.output.0 as usize].data);
        let total: usize = codes.iter().map(|q| q.values.len()).sum();
        println!("{what}: free {free_error:e} ({free_flips} flips), guided {error:e} ({guided_flips} of {total})");
        assert_eq!(faults, 0, "{what}: codes that are no neighbours of the simulation's");
        assert!(guided_flips as f64 <= (total as f64 * FLIPS).max(2.0), "{what}: {guided_flips} flips of {total}");
        assert!(error < AGREE, "{what}: guided {error:e}");
        assert!(free_flips > 0 || free_error < AGREE, "{what}: free {free_error:e} without a flip");
        free_error < BOUND
    });
    agreed.collect()
}

/// At least half of the runs are free of consequential flips.
fn mostly(agreed: &[bool]) {
    let n = agreed.iter().filter(|&&a| a).count();
    println!("{n} of {} free runs within {BOUND:e}", agreed.len());
    assert!(2 * n >= agreed.len(), "{n} of {} free runs within {BOUND:e}", agreed.len());
}

#[test]
fn the_integer_denoiser_equals_its_simulation() {
    let mut agreed = Vec::new();
    for variant in VARIANTS {
        for config in CONFIGS {
            let model = packed(variant, config, r#"{"*": "f32"}"#);
            let float_config = config.replace("a8", "a16").replace("a6", "a16");
            let floating = packed(variant, &float_config, r#"{"*": "f32"}"#);
            agreed.extend(check(&model, &floating, Role::Denoiser, [6, 8], &format!("{variant} {config}")));
        }
    }
    mostly(&agreed);
}

#[test]
fn the_integer_decoder_equals_its_simulation() {
    let mut agreed = Vec::new();
    for variant in VARIANTS {
        let model = packed(variant, r#"{"*": "f32"}"#, r#"{"*": "w8a8"}"#);
        let floating = packed(variant, r#"{"*": "f32"}"#, r#"{"*": "w8a16"}"#);
        for latent in [[5, 7], [6, 6]] {
            agreed.extend(check(&model, &floating, Role::VaeDecoder, latent, variant));
        }
    }
    mostly(&agreed);
}
