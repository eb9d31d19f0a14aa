//! What the tests share: building small models, running them on a tier, and the oracle they are compared with.

pub mod cases;
pub mod cases_attention;
pub mod cases_conv;
pub mod cases_encoder;
pub mod cases_grid;
pub mod cases_norm;
pub mod cases_text;
pub mod cases_tokens;
pub mod cases_unet;
pub mod cases_video;
pub mod documented;
pub mod drive;
pub mod emulated;
pub mod fixture;
pub mod meta_edits;
pub mod naive;
pub mod naive_attention;
pub mod networks;
pub mod one_op;
pub mod sealed;
pub mod tiny;

use aquatint::Result;
use aquatint::raw::backend::Backend;
use aquatint::raw::backend::cpu::Cpu;
use aquatint::raw::backend::cpu::simd::{Isa, avx2::Avx2, avx512::Avx512};
use aquatint::raw::backend::cuda::MODULES;
use aquatint::raw::backend::cuda::device::Device;
use aquatint::raw::backend::cuda::driver::Driver;
use aquatint::raw::codec::layout::pack;
use aquatint::raw::codec::{Bits, Grain, QuantizedMatrix, TableValues};
use aquatint::raw::exec::{Executor, PromptInputs};
use aquatint::raw::format::meta::{PipelineMeta, QuantizationMeta};
use aquatint::raw::format::{Meta, Packed, TensorKind, TensorSpec, Writer};
use aquatint::raw::plan::Binding;
use aquatint::raw::program::{Act, Dim, Dims, Input, InputKind, Node, Op, Pointwise, Program, Role, Tensor, Value};
use fastrand::Rng;
use half::f16;
use naive::{Array, Inputs};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Once, OnceLock};
use zerocopy::IntoBytes;

/// The sample input of every model built here.
pub const SAMPLE: Value = Value(0);
/// The timestep input.
pub const TIMESTEP: Value = Value(1);
/// The class labels.
pub const LABELS: Value = Value(2);

/// Features of a prompt's tokens, where [`Build::with_context`] declared them.
pub const CONTEXT: Value = Value(3);

/// An opened model.
pub type Model = Packed<aquatint::raw::mmap::FileBytes>;

/// A small model under construction: one program with the three inputs above, and perhaps more.
pub struct Build {
    /// The program so far; its output is the last node.
    pub program: Program,
    /// The tensors as the oracle sees them.
    pub tensors: Vec<Array>,
    stored: Vec<(TensorSpec, Vec<u8>)>,
}

impl Build {
    /// A model whose sample has `channels` channels.
    pub fn new(channels: usize) -> Self {
        Self::with(channels, &[])
    }

    /// The same with further inputs.
    pub fn with(channels: usize, more: &[(InputKind, Vec<Dim>)]) -> Self {
        let sample = vec![Dim::Batch, Dim::Height, Dim::Width, Dim::Fixed(channels as u32)];
        let mut inputs = vec![
            (InputKind::Sample, sample),
            (InputKind::Timestep, vec![Dim::Conditions]),
            (InputKind::ClassLabels, vec![Dim::Conditions]),
        ];
        inputs.extend_from_slice(more);
        Self::of(inputs)
    }

    /// A model with these inputs.
    pub fn of(inputs: Vec<(InputKind, Vec<Dim>)>) -> Self {
        let inputs = inputs.into_iter().map(|(kind, dims)| Input { kind, dims }).collect();
        let program =
            Program { role: Role::Denoiser, inputs, nodes: Vec::new(), output: Value(0), phases: Default::default() };
        Build { program, tensors: Vec::new(), stored: Vec::new() }
    }

    /// The input of this kind.
    pub fn input(&self, kind: InputKind) -> Value {
        self.program.input(kind).unwrap()
    }

    /// The same with a fourth input: `features` features per token of each condition's prompt.
    pub fn with_context(channels: usize, features: usize) -> Self {
        let mut build = Build::new(channels);
        let dims = vec![Dim::Conditions, Dim::Tokens, Dim::Fixed(features as u32)];
        build.program.inputs.push(Input { kind: InputKind::Context, dims });
        build
    }

    fn store(&mut self, array: Array, kind: TensorKind, bytes: Vec<u8>) -> Tensor {
        let name = format!("tensor.{}", self.tensors.len());
        self.stored.push((TensorSpec { name, dims: array.dims.clone(), kind }, bytes));
        self.tensors.push(array);
        Tensor(self.tensors.len() as u32 - 1)
    }

    /// Adds an f32 tensor.
    pub fn f32(&mut self, dims: &[usize], data: &[f32]) -> Tensor {
        self.store(Array::of(dims, data), TensorKind::F32, data.as_bytes().to_vec())
    }

    /// Adds an f16 tensor of the same numbers, rounded.
    pub fn f16(&mut self, dims: &[usize], data: &[f32]) -> Tensor {
        let data: Vec<f16> = data.iter().map(|&v| f16::from_f32(v)).collect();
        let array = Array::new(dims, |i| data[i].into());
        self.store(array, TensorKind::F16, data.as_bytes().to_vec())
    }

    /// Adds a tensor of codes.
    pub fn codes(&mut self, dims: &[usize], matrix: &QuantizedMatrix) -> Tensor {
        let taps = if dims.len() == 4 { dims[1] * dims[2] } else { 1 };
        let (layout, bytes) = pack(matrix, taps);
        let kind = TensorKind::Codes { bits: layout.bits, grain: layout.grain, int8: layout.int8 };
        self.store(Array::dequantized(dims, matrix), kind, bytes)
    }

    /// Adds a node; its result becomes the program's output.
    pub fn op(&mut self, op: Op) -> Value {
        let path = format!("node.{}", self.program.nodes.len());
        self.program.nodes.push(Node { op, path, wide: false });
        self.program.output = self.program.value_of(self.program.nodes.len() - 1);
        self.program.output
    }

    /// The same network on narrow values: its sample passes through a node of the loop before anything reads it, and so
    /// does its result before it leaves, unless `keep_result`.
    pub fn narrowed(mut self, keep_result: bool) -> Self {
        let identity = |x| Op::Pointwise(Pointwise { x, act: Act::None, mul: 1.0, add: 0.0 });
        let first = self.program.value_of(0);
        assert_eq!(self.program.inputs[0].kind, InputKind::Sample);
        for node in &mut self.program.nodes {
            node.op.renumber(|v| match v {
                SAMPLE => first,
                _ if v >= first => Value(v.0 + 1),
                _ => v,
            });
        }
        self.program.nodes.insert(0, Node { op: identity(SAMPLE), path: "narrow".into(), wide: false });
        self.program.output = self.program.value_of(self.program.nodes.len() - 1);
        if !keep_result {
            self.op(identity(self.program.output));
        }
        self
    }

    /// Writes the model and opens it. `latent` is the size at which the file is verified.
    pub fn open(&self, latent: [usize; 2]) -> Model {
        static FILES: AtomicUsize = AtomicUsize::new(0);
        let name = format!("aquatint-{}-{}.aqt", std::process::id(), FILES.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        let mut writer = Writer::create(&path).unwrap();
        for (spec, bytes) in &self.stored {
            writer.tensor(spec.clone(), bytes).unwrap();
        }
        writer.finish(std::slice::from_ref(&self.program), &meta(latent)).unwrap();
        let model = Packed::new(aquatint::raw::mmap::open(&path).unwrap()).unwrap();
        std::fs::remove_file(&path).unwrap();
        model
    }
}

/// META of a model for latents of this height and width.
pub fn meta(latent: [usize; 2]) -> Meta {
    let pipeline = PipelineMeta {
        name: "test".into(),
        class: "Test".into(),
        latent_channels: 1,
        latent_size: latent.map(|n| n as u32),
        frames: 1,
        pixels_per_latent: 8,
        latent_multiple: 1,
        size_bins: Vec::new(),
        classes: 1,
        null_class: 1,
        class_names: Default::default(),
        sampler: Default::default(),
        decided_by: Default::default(),
        steps: 1,
        guidance_scale: 1.0,
        guided_channels: None,
        text: None,
        encoder: None,
        refiner: None,
    };
    let quantization = QuantizationMeta::default();
    let (aliases, steps) = Default::default();
    Meta { tool: "test".into(), pipeline, quantization, sources: Vec::new(), aliases, steps, made: Vec::new() }
}

/// Runs one model call of `model` on `isa`.
pub fn run<I: Isa>(isa: I, model: &Model, inputs: &Inputs) -> Vec<f32> {
    run_on(&Cpu::new(isa), model, inputs).unwrap()
}

/// Runs one model call of `model` on `backend`.
pub fn run_on<B: Backend>(backend: &B, model: &Model, inputs: &Inputs) -> Result<Vec<f32>> {
    let shape = Binding { dims: inputs.dims, calls: 1, table_bytes: 1 << 20, reserve: 0 };
    let mut executor = Executor::new(backend, model, Role::Denoiser, shape)?;
    executor.set_conditions(&inputs.conditions)?;
    if executor.program().input(InputKind::Tokens).is_some() {
        executor.set_tokens(&inputs.tokens)?;
    }
    executor.set_prompt(&prompt(executor.program(), inputs))?;
    executor.set_timesteps([inputs.timestep].into_iter())?;
    executor.write_sample(&inputs.sample)?;
    executor.call(0)?;
    let mut out = vec![f32::NAN; executor.plan().output_type.len()];
    executor.read_output(&mut out)?;
    Ok(out)
}

/// What of `inputs` the program takes with a prompt.
pub fn prompt<'a>(program: &Program, inputs: &'a Inputs) -> PromptInputs<'a> {
    let has = |kind| program.input(kind).is_some();
    PromptInputs {
        class_labels: has(InputKind::ClassLabels).then_some(&inputs.labels),
        context: has(InputKind::Context).then_some(&inputs.context),
        pooled: has(InputKind::Pooled).then_some(&inputs.pooled),
        sizes: has(InputKind::Sizes).then_some(&inputs.sizes),
        lengths: has(InputKind::Lengths).then_some(&inputs.lengths),
        context_2: has(InputKind::Context2).then_some(&inputs.context_2),
        lengths_2: has(InputKind::Lengths2).then_some(&inputs.lengths_2),
    }
}

/// Inputs of `n` samples of `h * w * c` numbers each, with a condition per sample.
pub fn inputs([n, h, w, c]: [usize; 4], sample: impl FnMut() -> f32) -> Inputs {
    let sample: Vec<f32> = std::iter::repeat_with(sample).take(n * h * w * c).collect();
    let dims = Dims { batch: n, conditions: n, height: h, width: w, tokens: 1, ..Dims::ONE };
    let numbers: Vec<u32> = (0..n as u32).collect();
    Inputs {
        dims,
        sample,
        timestep: 500.0,
        fraction: 0.0,
        labels: numbers.clone(),
        conditions: numbers,
        tokens: Vec::new(),
        context: Vec::new(),
        pooled: Vec::new(),
        sizes: Vec::new(),
        lengths: Vec::new(),
        context_2: Vec::new(),
        lengths_2: Vec::new(),
    }
}

/// A normal-like number: mean 0, variance 1, bounded by 6.
pub fn normal(rng: &mut Rng) -> f32 {
    (0..12).map(|_| rng.f32()).sum::<f32>() - 6.0
}

/// `n` of them.
pub fn normals(rng: &mut Rng, n: usize) -> Vec<f32> {
    (0..n).map(|_| normal(rng)).collect()
}

/// A way to store quantized weights.
#[derive(Clone, Copy, Debug)]
pub struct Codec {
    /// Bits per code.
    pub bits: Bits,
    /// Codebooks.
    pub grain: Grain,
    /// Whether codebooks hold integers.
    pub int8: bool,
    /// Whether the codebook of 8-bit codes is the identity, which has a path of its own.
    pub identity: bool,
}

impl Codec {
    /// All of them, or those with integer codebooks.
    pub fn all(int8_only: bool) -> Vec<Codec> {
        let mut all = Vec::new();
        for bits in Bits::ALL {
            for (grain, int8) in
                [(Grain::Tensor, true), (Grain::Row, true), (Grain::Tensor, false), (Grain::Row, false)]
            {
                let codec = Codec { bits, grain, int8, identity: false };
                all.extend((int8 || !int8_only).then_some(codec));
            }
        }
        all.push(Codec { bits: Bits::new(8).unwrap(), grain: Grain::Tensor, int8: true, identity: true });
        all
    }

    /// A random matrix. With `exact`, scales are powers of two and offsets multiples of 1/2, so that sums of products
    /// with integers are exact in f32 as long as they stay below 2^23.
    pub fn random(&self, rng: &mut Rng, rows: usize, cols: usize, exact: bool) -> QuantizedMatrix {
        let Codec { bits, grain, int8, identity } = *self;
        let entries = bits.levels() * if grain == Grain::Row { rows } else { 1 };
        let table = match (int8, identity) {
            (true, true) => TableValues::I8((-128..=127).collect()),
            // Pairs of opposite numbers, lest sums of many grow beyond what is exact.
            (true, false) => {
                let pairs = (0..entries / 2).flat_map(|_| {
                    let e = rng.i8(-127..=127);
                    [e, -e]
                });
                TableValues::I8(pairs.collect())
            }
            _ => TableValues::F16((0..entries).map(|_| f16::from_f32(normal(rng))).collect()),
        };
        let size = if int8 { 1.0 / 64.0 } else { 1.0 };
        let number = |rng: &mut Rng, exact_value: f32, value: f32| if exact { exact_value } else { value * rng.f32() };
        let scale = |rng: &mut Rng| {
            let power = [0.25, 0.5, 1.0][rng.usize(..3)];
            number(rng, power, 2.0 * size)
        };
        let offset = |rng: &mut Rng| {
            let half = [0.0, -3.5, 2.0][rng.usize(..3)];
            number(rng, half, 0.1 / size)
        };
        QuantizedMatrix {
            bits,
            rows,
            cols,
            codes: (0..rows * cols).map(|_| rng.u8(..) & (bits.levels() - 1) as u8).collect(),
            table,
            grain,
            scale: (0..rows).map(|_| scale(rng)).collect(),
            offset: (0..rows).map(|_| offset(rng)).collect(),
        }
    }
}

/// AVX-512 if this processor has it.
pub fn avx512() -> Option<Avx512> {
    tier("avx512", Avx512::new())
}

/// AVX-VNNI if this processor has it.
pub fn avx_vnni() -> Option<Avx2> {
    tier("avx-vnni", Avx2::with_vnni())
}

/// AMX if this processor has it.
pub fn amx() -> Option<Avx512> {
    tier("amx", Avx512::with_tiles())
}

/// AVX2 if this processor has it.
pub fn avx2() -> Option<Avx2> {
    tier("avx2", Avx2::new())
}

/// CUDA device 0. A missing one is skipped aloud, or fails where `REQUIRE_CUDA=1` promises it.
///
/// The first that a process opens stays open, with every module loaded: with the last one would go its context and all
/// that the driver compiled, and be made anew for each of a thousand cases.
pub fn device() -> Option<Device> {
    static KEPT: Once = Once::new();
    KEPT.call_once(|| {
        if let Ok(device) = Device::open(0)
            && device.load_all(MODULES).is_ok()
        {
            std::mem::forget(device);
        }
    });
    match Device::open(0) {
        Ok(device) => Some(device),
        Err(e) => {
            assert!(std::env::var("REQUIRE_CUDA").as_deref() != Ok("1"), "{e}");
            println!("skipped: {e}");
            None
        }
    }
}

/// A path of this repository: where it was built, or where `AQUATINT_ROOT` says that it is now.
pub fn repository(path: &str) -> PathBuf {
    let built = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    std::env::var_os("AQUATINT_ROOT").map_or_else(built, PathBuf::from).join(path)
}

/// A folder within `scratch` with a driver of our own (`tests/fake`) as `libcuda.so.1`, the same for a whole process; `None`, said aloud,
/// without a C compiler.
pub fn fake_driver(scratch: &Path) -> Option<&'static Path> {
    static FOLDER: OnceLock<Option<PathBuf>> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let folder = scratch.join("fake-driver");
        std::fs::create_dir_all(&folder).expect("a folder");
        let mut cc = Command::new("cc");
        cc.args(["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-o"]);
        let output = cc.arg(folder.join("libcuda.so.1")).arg(repository("tests/fake/libcuda.c")).output().ok()?;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Some(folder)
    });
    if folder.is_none() {
        eprintln!("skipped: no C compiler to build a driver with");
    }
    folder.as_deref()
}

/// A tier that is missing is skipped aloud, or fails where `REQUIRE_TIERS=1` promises it.
fn tier<I>(name: &str, isa: Option<I>) -> Option<I> {
    if isa.is_none() {
        assert!(std::env::var("REQUIRE_TIERS").as_deref() != Ok("1"), "this processor lacks {name}");
        println!("skipped: no {name}");
    }
    isa
}
