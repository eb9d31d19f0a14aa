//! Every op with every attribute goes into a file and comes out of it as it was: programs of text-guided networks.

mod common;

use aquatint::format::{Packed, TensorKind, TensorSpec, Writer};
use aquatint::program::{
    Act, Attend, Dim, Input, InputKind, Modulation, Node, Op, Program, Resampling, Role, Tensor, Value,
};
use zerocopy::IntoBytes;

fn input(kind: InputKind, dims: &[Dim]) -> Input {
    Input { kind, dims: dims.to_vec() }
}

fn program(role: Role, inputs: Vec<Input>, ops: Vec<Op>) -> Program {
    let output = Value((inputs.len() + ops.len() - 1) as u32);
    let node = |(i, op)| Node { op, path: format!("node.{i}"), wide: i % 2 == 1 };
    Program { role, inputs, nodes: ops.into_iter().enumerate().map(node).collect(), output }
}

/// Tensors of the programs below, f32.
const SHAPES: [&[usize]; 6] = [&[9, 8], &[5, 8], &[8, 8], &[8], &[6, 8], &[16, 8]];
const TABLE: Tensor = Tensor(0);
const PLACES: Tensor = Tensor(1);
const SQUARE: Tensor = Tensor(2);
const VECTOR: Tensor = Tensor(3);
const CODEBOOK: Tensor = Tensor(4);
const PAIRS: Tensor = Tensor(5);

fn attention(q: u32, k: u32, heads: u32, attend: Attend) -> Op {
    Op::Attention { q: Value(q), k: Value(k), v: Value(k), heads, scale: 0.25, attend }
}

/// A text encoder of five tokens.
fn encoder(role: Role) -> Program {
    let causal = Attend { causal: true, ..Attend::default() };
    let gated = |x, bias, act| Op::GatedLinear { x: Value(x), weight: PAIRS, bias, act };
    program(
        role,
        vec![input(InputKind::Tokens, &[Dim::Batch, Dim::Fixed(5)])],
        vec![
            Op::Embedding { index: Value(0), table: TABLE },     // 1: (n, 5, 8)
            Op::Parameter { tensor: PLACES },                    // 2: (5, 8)
            Op::Add { a: Value(1), b: Value(2) },                // 3
            attention(3, 3, 2, causal),                          // 4
            gated(4, None, Act::GeluErf),                        // 5
            attention(5, 5, 4, Attend { int8: true, ..causal }), // 6
            Op::Linear {
                x: Value(6),
                weight: SQUARE,
                bias: Some(VECTOR),
                act: Act::QuickGelu,
                gate: None,
                residual: None,
            },
        ],
    )
}

/// A denoiser with all inputs but labels.
fn denoiser(role: Role) -> Program {
    let per_condition = Attend { per_condition: true, ..Attend::default() };
    let modulation = Some(Modulation { value: Value(5), scale: 1, shift: 9 });
    program(
        role,
        vec![
            input(InputKind::Sample, &[Dim::Batch, Dim::Height, Dim::Width, Dim::Fixed(8)]),
            input(InputKind::Timestep, &[Dim::Conditions]),
            input(InputKind::Context, &[Dim::Conditions, Dim::Tokens, Dim::Fixed(8)]),
            input(InputKind::Pooled, &[Dim::Conditions, Dim::Fixed(8)]),
            input(InputKind::Sizes, &[Dim::Conditions, Dim::Fixed(6)]),
        ],
        vec![
            Op::TimestepEmbedding { t: Value(4), dim: 4, cos_first: true, shift: 0.0 }, // 5: (conditions, 24)
            Op::GroupNorm {
                x: Value(0),
                weight: VECTOR,
                bias: VECTOR,
                groups: 2,
                eps: 1e-5,
                modulation,
                act: Act::Silu,
                quantize: None,
            }, // 6
            Op::Resample { x: Value(6), how: Resampling::Mean },                        // 7
            Op::Resample { x: Value(7), how: Resampling::Nearest },                     // 8
            attention(8, 2, 2, per_condition),                                          // 9
            Op::GatedLinear { x: Value(3), weight: PAIRS, bias: None, act: Act::None }, // 10: one key per condition
            attention(9, 10, 1, Attend { int8: true, ..per_condition }),                // 11
            Op::VectorQuantize { x: Value(11), table: CODEBOOK },                       // 12
        ],
    )
}

#[test]
fn programs_of_text_guided_networks_come_back_as_they_were() {
    let programs =
        [denoiser(Role::Denoiser), encoder(Role::TextEncoder), encoder(Role::TextEncoder2), denoiser(Role::Refiner)];
    let path = std::env::temp_dir().join(format!("aquatint-ops-{}.aqt", std::process::id()));
    let mut writer = Writer::create(&path).unwrap();
    for (i, dims) in SHAPES.iter().enumerate() {
        let data = vec![0.5f32; dims.iter().product()];
        let spec = TensorSpec { name: format!("t.{i}"), dims: dims.to_vec(), kind: TensorKind::F32 };
        writer.tensor(spec, data.as_bytes()).unwrap();
    }
    writer.finish(&programs, &common::meta([4, 6])).unwrap();
    let model = Packed::new(aquatint::mmap::map(&path).unwrap()).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert_eq!(model.programs(), programs);
    model.verify().unwrap();
}
