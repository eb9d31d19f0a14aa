//! A packed file of a few dozen kilobytes that has one of everything: both programs, every op, every kind of tensor
//! and every code width, curves over both axes.
//!
//! Also what hostile files need: bytes at an aligned address, and a second writer of headers, made from the layout in
//! the documentation of `aquatint::raw::format` and not from the library's code.

use aquatint::raw::codec::layout::pack;
use aquatint::raw::codec::{Bits, Grain, QuantizedMatrix, TableValues};
use aquatint::raw::format::meta::{CalibrationMeta, LayerMeta, PipelineMeta, QuantizationMeta, SourceMeta};
use aquatint::raw::format::{Meta, TensorKind, TensorSpec, Writer};
use aquatint::raw::program::{
    Act, Add, Attention, Columns, Conv2d, ConvStride, CurveAxis, Dim, Embedding, GroupNorm, Input, InputKind,
    LayerNorm, Linear, Modulation, Node, Op, Patchify, Pointwise, PositionEmbedding, Program, Quantize, QuantizeGrain,
    QuantizeRange, QuantizeSpec, Role, Tensor, TimestepEmbedding, Unpatchify, Value,
};
use half::f16;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use xxhash_rust::xxh3::xxh3_128;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(64))]
struct Chunk([u8; 64]);

/// Owned bytes whose first one lies on a 64-byte boundary, as a map's does.
#[derive(Clone)]
pub struct AlignedBytes {
    chunks: Vec<Chunk>,
    len: usize,
}

impl AlignedBytes {
    /// A copy of `bytes`.
    pub fn new(bytes: &[u8]) -> Self {
        let mut copy = Self::zeros(bytes.len());
        copy.as_mut().copy_from_slice(bytes);
        copy
    }

    /// So many zeros.
    pub fn zeros(len: usize) -> Self {
        AlignedBytes { chunks: vec![Chunk::new_zeroed(); len.div_ceil(64)], len }
    }
}

impl AsMut<[u8]> for AlignedBytes {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.chunks.as_mut_bytes()[..self.len]
    }
}

impl AsRef<[u8]> for AlignedBytes {
    fn as_ref(&self) -> &[u8] {
        &self.chunks.as_bytes()[..self.len]
    }
}

/// How many sections a file has.
pub const SECTIONS: usize = 7;
/// Bytes of header and section table.
pub const HEAD: usize = 64 + 48 * SECTIONS;

/// Offset and size of each section as the section table tells them.
pub fn sections(file: &[u8]) -> [(u64, u64); SECTIONS] {
    let number = |at: usize| u64::from_le_bytes(file[at..at + 8].try_into().expect("eight bytes"));
    std::array::from_fn(|i| (number(64 + 48 * i + 8), number(64 + 48 * i + 16)))
}

/// The first word of node `node` of all nodes, in words from the start of ARGS.
pub fn first_word(file: &[u8], node: usize) -> usize {
    let sections = split(file);
    let number = |section: usize, at: usize| {
        u32::from_le_bytes(sections[section][at..at + 4].try_into().expect("four bytes")) as usize
    };
    let (mut at, mut next) = (0, 0);
    for program in 0..sections[2].len() / 32 {
        at += number(2, 32 * program + 8);
        for _ in 0..number(2, 32 * program + 16) {
            if next == node {
                return at;
            }
            at += number(3, 16 * next + 4);
            next += 1;
        }
    }
    panic!("{next} nodes")
}

/// The bytes of each section of a sound file.
pub fn split(file: &[u8]) -> [Vec<u8>; SECTIONS] {
    sections(file).map(|(at, len)| file[at as usize..(at + len) as usize].to_vec())
}

/// Writes the hash of section `i` into the section table, if the table tells of bytes that exist.
pub fn reseal_section(file: &mut [u8], i: usize) {
    let (at, len) = sections(file)[i];
    let end = at.saturating_add(len).min(file.len() as u64) as usize;
    let hash = xxh3_128(&file[end.min(at as usize)..end]);
    file[64 + 48 * i + 24..][..16].copy_from_slice(&hash.to_le_bytes());
}

/// Writes the root hash into the header.
pub fn reseal_root(file: &mut [u8]) {
    file[32..48].fill(0);
    let hash = xxh3_128(&file[..HEAD]);
    file[32..48].copy_from_slice(&hash.to_le_bytes());
}

/// Makes all hashes of a damaged file agree with its bytes, so that only the damage itself can be found.
pub fn reseal(file: &mut [u8]) {
    for i in 0..SECTIONS {
        reseal_section(file, i);
    }
    reseal_root(file);
}

/// A file of the given sections, with a header that agrees with them.
pub fn build(sections: &[Vec<u8>; SECTIONS]) -> AlignedBytes {
    let mut file = vec![0; HEAD];
    file[..8].copy_from_slice(b"\x89AQT\r\n\x1a\n");
    file[8..12].copy_from_slice(&2u32.to_le_bytes());
    file[12..16].copy_from_slice(&(SECTIONS as u32).to_le_bytes());
    for (i, section) in sections.iter().enumerate() {
        file.resize(file.len().next_multiple_of(4096), 0);
        let record = 64 + 48 * i;
        file[record..record + 4].copy_from_slice(&(i as u32 + 1).to_le_bytes());
        let at = file.len() as u64;
        file[record + 8..record + 16].copy_from_slice(&at.to_le_bytes());
        file[record + 16..record + 24].copy_from_slice(&(section.len() as u64).to_le_bytes());
        file.extend_from_slice(section);
    }
    let len = file.len() as u64;
    file[24..32].copy_from_slice(&len.to_le_bytes());
    reseal(&mut file);
    AlignedBytes::new(&file)
}

/// SplitMix64: numbers that stay the same for as long as the golden file does.
pub struct Noise(pub u64);

impl Noise {
    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    /// A multiple of 1/64 in -1..1, exact in f16.
    pub fn real(&mut self) -> f32 {
        (self.below(128) as f32 - 64.0) / 64.0
    }

    /// A quantized matrix.
    pub fn matrix(&mut self, bits: Bits, grain: Grain, int8: bool, rows: usize, cols: usize) -> QuantizedMatrix {
        let entries = bits.levels() * if grain == Grain::Row { rows } else { 1 };
        let table = match int8 {
            true => TableValues::I8((0..entries).map(|_| self.below(256) as u8 as i8).collect()),
            false => TableValues::F16((0..entries).map(|_| f16::from_f32(self.real())).collect()),
        };
        QuantizedMatrix {
            bits,
            rows,
            cols,
            codes: (0..rows * cols).map(|_| self.below(bits.levels()) as u8).collect(),
            table,
            grain,
            scale: (0..rows).map(|_| self.real() / 8.0).collect(),
            offset: (0..rows).map(|_| self.real()).collect(),
        }
    }
}

/// The widths, codebook grains and entry types of every kind of coded tensor.
pub fn codecs() -> impl Iterator<Item = (Bits, Grain, bool)> {
    let of_width = |bits| {
        [Grain::Tensor, Grain::Row].into_iter().flat_map(move |grain| [(bits, grain, true), (bits, grain, false)])
    };
    Bits::ALL.into_iter().flat_map(of_width)
}

/// Adds tensors to a writer and nodes to a program.
struct Builder<'w> {
    writer: &'w mut Writer,
    noise: Noise,
    program: Program,
    prefix: &'static str,
}

impl Builder<'_> {
    fn push(&mut self, name: &str, dims: &[usize], kind: TensorKind, bytes: &[u8]) -> Tensor {
        let spec = TensorSpec { name: format!("{}.{name}", self.prefix), dims: dims.to_vec(), kind };
        Tensor(self.writer.tensor(spec, bytes).expect("the temporary directory takes files"))
    }

    fn f32(&mut self, name: &str, dims: &[usize]) -> Tensor {
        let data: Vec<f32> = (0..dims.iter().product()).map(|_| self.noise.real()).collect();
        self.push(name, dims, TensorKind::F32, data.as_bytes())
    }

    fn f16(&mut self, name: &str, dims: &[usize]) -> Tensor {
        let data: Vec<f16> = (0..dims.iter().product()).map(|_| f16::from_f32(self.noise.real())).collect();
        self.push(name, dims, TensorKind::F16, data.as_bytes())
    }

    fn codes(&mut self, name: &str, dims: &[usize], codec: (Bits, Grain, bool)) -> Tensor {
        let (bits, grain, int8) = codec;
        let matrix = self.noise.matrix(bits, grain, int8, dims[0], dims[1..].iter().product());
        let taps = if dims.len() == 4 { dims[1] * dims[2] } else { 1 };
        self.push(name, dims, TensorKind::Codes { bits, grain, int8 }, &pack(&matrix, taps).1)
    }

    /// A curve of two points.
    fn curve(&mut self, name: &str, positions: [f32; 2]) -> Tensor {
        let points = [positions[0], 0.03125, 128.0, positions[1], 0.0625, 100.0];
        self.push(name, &[2, 3], TensorKind::F32, points.as_bytes())
    }

    fn op(&mut self, path: &str, op: Op) -> Value {
        self.program.nodes.push(Node { op, path: path.into(), wide: false });
        self.program.output = self.program.value_of(self.program.nodes.len() - 1);
        self.program.output
    }

    fn linear(&mut self, path: &str, x: Value, weight: Tensor) -> Value {
        self.op(path, Op::Linear(Linear { x, weight, bias: None, act: Act::None, gate: None, residual: None }))
    }
}

fn width(bits: u32) -> Bits {
    Bits::new(bits).expect("a width of the codec")
}

fn denoiser(writer: &mut Writer) -> Program {
    let input = |kind, dims| Input { kind, dims };
    let inputs = vec![
        input(InputKind::Sample, vec![Dim::Batch, Dim::Height, Dim::Width, Dim::Fixed(4)]),
        input(InputKind::Timestep, vec![Dim::Conditions]),
        input(InputKind::ClassLabels, vec![Dim::Conditions]),
    ];
    let program =
        Program { role: Role::Denoiser, inputs, nodes: Vec::new(), output: Value(0), phases: Default::default() };
    let mut b = Builder { writer, noise: Noise(1), program, prefix: "transformer" };
    let [sample, t, labels] = [Value(0), Value(1), Value(2)];

    let e = b.op("time", Op::TimestepEmbedding(TimestepEmbedding { t, dim: 8, cos_first: true, shift: 1.0 }));
    let (weight, bias) = (b.f32("time.weight", &[8, 8]), Some(b.f32("time.bias", &[8])));
    let e = b.op("time.1", Op::Linear(Linear { x: e, weight, bias, act: Act::Silu, gate: None, residual: None }));
    let table = b.f16("classes", &[4, 8]);
    let c = b.op("classes", Op::Embedding(Embedding { index: labels, table }));
    let e = b.op("time.2", Op::Add(Add { a: e, b: c }));
    let e = b.op("time.3", Op::Pointwise(Pointwise { x: e, act: Act::Silu, mul: 1.0, add: 0.0 }));
    let weight = b.codes("adaln.weight", &[24, 8], (width(4), Grain::Row, false));
    let table = b.linear("adaln", e, weight);

    let x = b.op("patches", Op::Patchify(Patchify { x: sample, patch: 2 }));
    let position = b.op(
        "position",
        Op::PositionEmbedding(PositionEmbedding {
            x,
            dim: 8,
            base: 2,
            interpolation: 1.0,
            keep_ratio: false,
            grid: Default::default(),
        }),
    );
    let weight = b.f16("proj.weight", &[8, 16]);
    let residual = Some(position);
    let x = b.op("proj", Op::Linear(Linear { x, weight, bias: None, act: Act::None, gate: None, residual }));

    let rows = QuantizeSpec { bits: 8, grain: QuantizeGrain::Row, range: QuantizeRange::Dynamic };
    let modulation = Some(Modulation { value: table, scale: 0, shift: 8 });
    let norm = Op::LayerNorm(LayerNorm {
        x,
        weight: None,
        bias: None,
        eps: 1e-6,
        modulation,
        quantize: Some(rows),
        ..LayerNorm::default()
    });
    let h = b.op("block.norm1", norm);
    let [q, k, v] = [("q", 8), ("k", 6), ("v", 5)].map(|(name, bits)| {
        let weight = b.codes(&format!("block.{name}.weight"), &[8, 8], (width(bits), Grain::Tensor, true));
        b.linear(&format!("block.{name}"), h, weight)
    });
    let a = b.op(
        "block.attention",
        Op::Attention(Attention { q, k, v, heads: 2, scale: 0.5, attend: Default::default(), ..Attention::default() }),
    );
    let weight = b.f32("block.out.weight", &[8, 8]);
    let gate = Some(Columns { value: table, offset: 16 });
    let x = b.op("block.out", Op::Linear(Linear { x: a, weight, bias: None, act: Act::None, gate, residual: Some(x) }));
    b.program.nodes.last_mut().expect("one was just made").wide = true;

    let range = QuantizeRange::curve(b.curve("block.norm2.curve", [0.0, 500.0]), CurveAxis::Timestep);
    let (weight, bias) = (Some(b.f32("block.norm2.weight", &[8])), Some(b.f32("block.norm2.bias", &[8])));
    let quantize = Some(QuantizeSpec { range, ..rows });
    let h = b.op(
        "block.norm2",
        Op::LayerNorm(LayerNorm { x, weight, bias, eps: 1e-5, modulation: None, quantize, ..LayerNorm::default() }),
    );
    let weight = b.codes("block.fc1.weight", &[16, 8], (width(4), Grain::Row, true));
    let bias = Some(b.f32("block.fc1.bias", &[16]));
    let fc1 = Op::Linear(Linear { x: h, weight, bias, act: Act::GeluTanh, gate: None, residual: None });
    let h = b.op("block.fc1", fc1);
    let range = QuantizeRange::curve(b.curve("block.fc2.curve", [0.0, 0.5]), CurveAxis::StepFraction);
    let h = b
        .op("block.fc2.in", Op::Quantize(Quantize { x: h, spec: QuantizeSpec { bits: 6, range, ..rows }, turn: None }));
    let weight = b.codes("block.fc2.weight", &[8, 16], (width(3), Grain::Row, true));
    let mut x = b.linear("block.fc2", h, weight);

    for (bits, grain, int8) in codecs() {
        let name = format!("{}.{bits}", TensorKind::Codes { bits, grain, int8 }.name());
        let weight = b.codes(&format!("{name}.weight"), &[8, 8], (bits, grain, int8));
        x = b.linear(&name, x, weight);
    }
    let weight = b.f16("out.weight", &[16, 8]);
    let x = b.linear("out", x, weight);
    b.op("pixels", Op::Unpatchify(Unpatchify { x, patch: 2 }));
    b.program
}

fn decoder(writer: &mut Writer) -> Program {
    let dims = vec![Dim::Batch, Dim::Height, Dim::Width, Dim::Fixed(4)];
    let inputs = vec![Input { kind: InputKind::Sample, dims }];
    let program =
        Program { role: Role::VaeDecoder, inputs, nodes: Vec::new(), output: Value(0), phases: Default::default() };
    let mut b = Builder { writer, noise: Noise(2), program, prefix: "vae" };
    let x = b.op("scale", Op::Pointwise(Pointwise { x: Value(0), act: Act::None, mul: 5.5, add: 0.0 }));

    let (weight, bias) = (b.f16("in.weight", &[8, 3, 3, 4]), Some(b.f32("in.bias", &[8])));
    let x = b.op("in", Op::Conv2d(Conv2d { x, weight, bias, sampling: ConvStride::Same, ..Conv2d::default() }));
    let samples = QuantizeSpec { bits: 8, grain: QuantizeGrain::Sample, range: QuantizeRange::Dynamic };
    let (weight, bias) = (b.f32("norm1.weight", &[8]), b.f32("norm1.bias", &[8]));
    let quantize = Some(samples);
    let norm =
        Op::GroupNorm(GroupNorm { x, weight, bias, groups: 4, eps: 1e-6, modulation: None, act: Act::Silu, quantize });
    let h = b.op("norm1", norm);
    let weight = b.codes("conv1.weight", &[8, 3, 3, 8], (width(4), Grain::Row, true));
    let h = b.op(
        "conv1",
        Op::Conv2d(Conv2d {
            x: h,
            weight,
            bias: None,
            sampling: ConvStride::Same,
            residual: Some(x),
            ..Conv2d::default()
        }),
    );
    let (weight, bias) = (b.f32("norm2.weight", &[8]), b.f32("norm2.bias", &[8]));
    let range = QuantizeRange::curve(b.curve("norm2.curve", [0.0, 1.0]), CurveAxis::StepFraction);
    let quantize = Some(QuantizeSpec { range, ..samples });
    let h = b.op(
        "norm2",
        Op::GroupNorm(GroupNorm {
            x: h,
            weight,
            bias,
            groups: 2,
            eps: 1e-6,
            modulation: None,
            act: Act::None,
            quantize,
        }),
    );
    let weight = b.codes("up.weight", &[5, 3, 3, 8], (width(5), Grain::Tensor, true));
    let x = b.op("up", Op::Conv2d(Conv2d { x: h, weight, bias: None, sampling: ConvStride::Up, ..Conv2d::default() }));
    let (weight, bias) = (b.f32("norm3.weight", &[5]), b.f32("norm3.bias", &[5]));
    let norm = Op::GroupNorm(GroupNorm {
        x,
        weight,
        bias,
        groups: 1,
        eps: 1e-6,
        modulation: None,
        act: Act::Silu,
        quantize: None,
    });
    let x = b.op("norm3", norm);
    let (weight, bias) = (b.f32("out.weight", &[3, 3, 3, 5]), Some(b.f32("out.bias", &[3])));
    b.op("out", Op::Conv2d(Conv2d { x, weight, bias, sampling: ConvStride::Same, ..Conv2d::default() }));
    b.program
}

/// META with every field in use.
pub fn meta() -> Meta {
    let layer = LayerMeta {
        name: "block.fc1".into(),
        method: "kmeans-4".into(),
        decided_by: None,
        note: None,
        activation_bits: 8,
        error: 0.125,
        exact_error: 0.0625,
        output_error: Some(0.03125),
        nearest_output_error: Some(0.0625),
        bytes: 1024,
    };
    Meta {
        tool: "tiny 1".into(),
        pipeline: PipelineMeta {
            name: "tiny".into(),
            class: "DiTPipeline".into(),
            latent_channels: 4,
            latent_size: [4, 6],
            frames: 1,
            pixels_per_latent: 2,
            latent_multiple: 1,
            size_bins: Vec::new(),
            classes: 3,
            null_class: 3,
            class_names: BTreeMap::from([(0, "circle".into()), (2, "κύκλος".into())]),
            sampler: Default::default(),
            decided_by: Default::default(),
            steps: 4,
            guidance_scale: 1.5,
            guided_channels: None,
            text: None,
            encoder: None,
            refiner: None,
        },
        quantization: QuantizationMeta {
            config: "w4a8".into(),
            average_bits: 4.5,
            attention: None,
            calibration: Some(CalibrationMeta {
                images: 2,
                calls: vec![0, 3],
                of_calls: 4,
                sampler: "ddim".into(),
                guidance_scale: 2.5,
                seed: 1,
                xxh3: "0a".repeat(16),
            }),
            layers: vec![layer],
        },
        sources: vec![SourceMeta { file: "transformer.safetensors".into(), bytes: 7, xxh3: "0f".repeat(16) }],
        aliases: BTreeMap::from([("transformer.classes".into(), vec!["transformer.classes.again".into()])]),
        steps: BTreeMap::new(),
        made: Vec::new(),
    }
}

/// Writes the tiny file to `path`.
pub fn write(path: &Path) {
    write_with(path, &[], &meta()).expect("the tiny file is sound");
}

/// Writes the tiny file with files of bytes after its weights, and another META.
pub fn write_with(path: &Path, files: &[(&str, &[u8])], meta: &Meta) -> aquatint::Result<()> {
    let mut writer = Writer::create(path).expect("the temporary directory takes files");
    let programs = [denoiser(&mut writer), decoder(&mut writer)];
    for (name, bytes) in files {
        writer.bytes(name, bytes)?;
    }
    writer.finish(&programs, meta)
}

/// The bytes of the tiny file, written once more.
pub fn bytes() -> AlignedBytes {
    static FILES: AtomicUsize = AtomicUsize::new(0);
    let name = format!("aquatint-tiny-{}-{}.aqt", std::process::id(), FILES.fetch_add(1, Ordering::Relaxed));
    let path = std::env::temp_dir().join(name);
    write(&path);
    let bytes = std::fs::read(&path).expect("the file was just written");
    std::fs::remove_file(&path).expect("the file was just written");
    AlignedBytes::new(&bytes)
}
