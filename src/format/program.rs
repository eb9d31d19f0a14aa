//! Program and node records: encode and decode side by side.
//!
//! Decoding is strict by construction: a record is accepted only if encoding what was understood gives the same bytes
//! back, so every field that an op does not use must hold its neutral value.

use super::tensor::Cursor;
use crate::error::{Error, Result};
use crate::program::{
    Act, Attend, Columns, CurveAxis, Dim, Input, InputKind, Modulation, Node, Op, Program, Quantize, QuantizeGrain,
    QuantizeRange, Resampling, Role, Sampling, Tensor, Value,
};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, little_endian::*};

/// Absent operand or tensor.
const NONE: u32 = u32::MAX;
/// Marks a symbolic axis; the low bits number it.
const SYMBOL: u32 = 1 << 31;
/// Most inputs of a program.
pub const MAX_INPUTS: usize = 5;

/// A declared input.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct InputRecord {
    /// An [`InputKind`]; 0 if the slot is unused.
    pub kind: u8,
    /// Number of axes.
    pub rank: u8,
    /// Zero.
    pub reserved: U16,
    /// Lengths, or [`SYMBOL`] and a number; 0 beyond the rank.
    pub dims: [U32; 4],
}

/// One program.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ProgramRecord {
    /// A [`Role`]; each at most once in a file.
    pub role: U32,
    /// Inputs in use.
    pub n_inputs: U32,
    /// First node in NODES; exactly where the program before ends.
    pub first_node: U32,
    /// Number of nodes.
    pub n_nodes: U32,
    /// The value that is the result.
    pub output: U32,
    /// Ranges of t with their own weights and quantization; none are defined yet, so 0.
    pub n_phases: U32,
    /// Declared inputs.
    pub inputs: [InputRecord; MAX_INPUTS],
    /// Zero.
    pub reserved: [u8; 4],
}

/// One node.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct NodeRecord {
    /// Which op.
    pub op: u8,
    /// Bit 0: the result is wide.
    pub flags: u8,
    /// An [`Act`].
    pub act: u8,
    /// Bits of the quantized result, 0 if it is float.
    pub q_bits: u8,
    /// A [`QuantizeGrain`].
    pub q_grain: u8,
    /// 0 dynamic, 1 curve over timesteps, 2 curve over the step fraction.
    pub q_range: u8,
    /// Zero.
    pub reserved: U16,
    /// The curve's tensor.
    pub q_curve: U32,
    /// Bytes of the module path in STRINGS.
    pub path_bytes: U32,
    /// Operand values.
    pub operands: [U32; 3],
    /// Tensors.
    pub tensors: [U32; 2],
    /// Integer attributes.
    pub ints: [U32; 2],
    /// Float attributes, as bits.
    pub floats: [U32; 2],
    /// Phases in which the node takes part; 0 is all.
    pub phases: U32,
    /// One more integer attribute.
    pub int2: U32,
    /// Zero.
    pub reserved2: [u8; 20],
}

const _: () = assert!(size_of::<InputRecord>() == 20);
const _: () = assert!(size_of::<ProgramRecord>() == 128);
const _: () = assert!(size_of::<NodeRecord>() == 80);

fn dim_code(dim: Dim) -> u32 {
    match dim {
        Dim::Fixed(n) => n,
        Dim::Batch => SYMBOL,
        Dim::Conditions => SYMBOL | 1,
        Dim::Height => SYMBOL | 2,
        Dim::Width => SYMBOL | 3,
        Dim::Tokens => SYMBOL | 4,
    }
}

fn dim_of(code: u32) -> Option<Dim> {
    Some(match code {
        n if n & SYMBOL == 0 => Dim::Fixed(n),
        c if c == SYMBOL => Dim::Batch,
        c if c == SYMBOL | 1 => Dim::Conditions,
        c if c == SYMBOL | 2 => Dim::Height,
        c if c == SYMBOL | 3 => Dim::Width,
        c if c == SYMBOL | 4 => Dim::Tokens,
        _ => return None,
    })
}

const ROLES: [Role; 6] =
    [Role::Denoiser, Role::VaeDecoder, Role::VaeEncoder, Role::TextEncoder, Role::TextEncoder2, Role::Refiner];
const INPUT_KINDS: [InputKind; 7] = [
    InputKind::Sample,
    InputKind::Timestep,
    InputKind::ClassLabels,
    InputKind::Tokens,
    InputKind::Context,
    InputKind::Pooled,
    InputKind::Sizes,
];
const ACTS: [Act; 5] = [Act::None, Act::Silu, Act::GeluTanh, Act::GeluErf, Act::QuickGelu];
const RESAMPLINGS: [Resampling; 2] = [Resampling::Nearest, Resampling::Mean];
const GRAINS: [QuantizeGrain; 2] = [QuantizeGrain::Row, QuantizeGrain::Sample];

fn code_in<T: PartialEq>(list: &[T], item: T) -> u8 {
    list.iter().position(|x| *x == item).map_or(u8::MAX, |i| i as u8)
}

/// The record of `program`, whose nodes start at `first_node` of NODES.
///
/// # Panics
/// If the program has more than [`MAX_INPUTS`] inputs or an input more than four axes: a bug of its builder.
pub fn encode_program(program: &Program, first_node: usize) -> ProgramRecord {
    assert!(program.inputs.len() <= MAX_INPUTS, "{} inputs", program.inputs.len());
    let unused = InputRecord { kind: 0, rank: 0, reserved: 0.into(), dims: [0.into(); 4] };
    let mut inputs = [unused; MAX_INPUTS];
    for (record, input) in inputs.iter_mut().zip(&program.inputs) {
        record.kind = code_in(&INPUT_KINDS, input.kind) + 1;
        record.rank = input.dims.len() as u8;
        for (to, &dim) in record.dims[..input.dims.len()].iter_mut().zip(&input.dims) {
            *to = dim_code(dim).into();
        }
    }
    ProgramRecord {
        role: u32::from(code_in(&ROLES, program.role)).into(),
        n_inputs: (program.inputs.len() as u32).into(),
        first_node: (first_node as u32).into(),
        n_nodes: (program.nodes.len() as u32).into(),
        output: program.output.0.into(),
        n_phases: 0.into(),
        inputs,
        reserved: [0; 4],
    }
}

/// Decodes program `index`, without its nodes; the node range is returned beside it.
pub fn decode_program(index: usize, r: &ProgramRecord) -> Result<(Program, std::ops::Range<usize>)> {
    let at = index * size_of::<ProgramRecord>();
    let err = |field: usize, what: &str, expected: &str, got: String| {
        Err(Error::format("PROGRAMS", (at + field) as u64, format!("program {index} {what}"), expected, got))
    };
    let Some(&role) = ROLES.get(r.role.get() as usize) else {
        return err(0, "role", "a known role", r.role.to_string());
    };
    let n_inputs = r.n_inputs.get() as usize;
    if n_inputs > MAX_INPUTS {
        return err(4, "input count", &format!("at most {MAX_INPUTS}"), n_inputs.to_string());
    }
    let mut inputs = Vec::with_capacity(n_inputs);
    for (i, record) in r.inputs[..n_inputs].iter().enumerate() {
        let kind = usize::from(record.kind).checked_sub(1).and_then(|k| INPUT_KINDS.get(k));
        let rank = usize::from(record.rank);
        let (Some(&kind), 1..=4) = (kind, rank) else {
            return err(
                24 + 20 * i,
                "input",
                "a known kind and 1 to 4 axes",
                format!("kind {} rank {rank}", record.kind),
            );
        };
        let dims: Option<Vec<Dim>> = record.dims[..rank].iter().map(|d| dim_of(d.get())).collect();
        let Some(dims) = dims else {
            return err(24 + 20 * i, "input axes", "known symbols", format!("{:?}", record.dims.map(|d| d.get())));
        };
        inputs.push(Input { kind, dims });
    }
    let first = r.first_node.get() as usize;
    let program = Program { role, inputs, nodes: Vec::new(), output: Value(r.output.get()) };
    let n_values = n_inputs + r.n_nodes.get() as usize;
    if r.output.get() as usize >= n_values {
        return err(16, "output", "one of its values", format!("{} of {n_values}", r.output));
    }
    let mut again = encode_program(&program, first);
    again.n_nodes = r.n_nodes;
    if again.as_bytes() != r.as_bytes() {
        return err(20, "unused fields", "zeros", "other bytes".into());
    }
    Ok((program, first..first + r.n_nodes.get() as usize))
}

/// Numbers of the ops in the file. Never reused, never reordered.
fn op_code(op: &Op) -> u8 {
    match op {
        Op::Linear { .. } => 1,
        Op::Conv2d { .. } => 2,
        Op::Attention { .. } => 3,
        Op::LayerNorm { .. } => 4,
        Op::GroupNorm { .. } => 5,
        Op::Pointwise { .. } => 6,
        Op::Add { .. } => 7,
        Op::Quantize { .. } => 8,
        Op::Embedding { .. } => 9,
        Op::TimestepEmbedding { .. } => 10,
        Op::PositionEmbedding { .. } => 11,
        Op::Patchify { .. } => 12,
        Op::Unpatchify { .. } => 13,
        Op::Concat { .. } => 14,
        Op::GatedLinear { .. } => 15,
        Op::VectorQuantize { .. } => 16,
        Op::Resample { .. } => 17,
        Op::Parameter { .. } => 18,
    }
}

/// The record of `node`.
pub fn encode_node(node: &Node) -> NodeRecord {
    let mut operands = [NONE; 3];
    let mut tensors = [NONE; 2];
    let mut ints = [0u32; 2];
    let mut int2 = 0;
    let mut floats = [0f32; 2];
    let mut act = Act::None;
    let value = |v: Option<Value>| v.map_or(NONE, |v| v.0);
    let tensor = |t: Option<Tensor>| t.map_or(NONE, |t| t.0);
    match node.op {
        Op::Linear { x, weight, bias, act: a, gate, residual } => {
            operands = [x.0, value(gate.map(|g| g.value)), value(residual)];
            tensors = [weight.0, tensor(bias)];
            ints[0] = gate.map_or(0, |g| g.offset);
            act = a;
        }
        Op::GatedLinear { x, weight, bias, act: a } => {
            operands[0] = x.0;
            tensors = [weight.0, tensor(bias)];
            act = a;
        }
        Op::Conv2d { x, weight, bias, sampling, shift, residual } => {
            operands = [x.0, value(residual), value(shift.map(|s| s.value))];
            tensors = [weight.0, tensor(bias)];
            ints = [u32::from(code_in(&Sampling::ALL, sampling)) + 1, shift.map_or(0, |s| s.offset)];
        }
        Op::Attention { q, k, v, heads, scale, attend } => {
            operands = [q.0, k.0, v.0];
            ints = [heads, attend_code(attend)];
            floats[0] = scale;
        }
        Op::LayerNorm { x, weight, bias, eps, modulation, .. } => {
            operands = [x.0, value(modulation.map(|m| m.value)), NONE];
            tensors = [tensor(weight), tensor(bias)];
            ints = modulation.map_or([0, 0], |m| [m.scale, m.shift]);
            floats[0] = eps;
        }
        Op::GroupNorm { x, weight, bias, groups, eps, modulation, act: a, .. } => {
            operands = [x.0, value(modulation.map(|m| m.value)), NONE];
            tensors = [weight.0, bias.0];
            ints = [groups, modulation.map_or(0, |m| m.scale)];
            int2 = modulation.map_or(0, |m| m.shift);
            floats[0] = eps;
            act = a;
        }
        Op::Pointwise { x, act: a, mul, add } => {
            operands[0] = x.0;
            floats = [mul, add];
            act = a;
        }
        Op::Add { a, b } | Op::Concat { a, b } => operands = [a.0, b.0, NONE],
        Op::Quantize { x, .. } => operands[0] = x.0,
        Op::VectorQuantize { x, table } => {
            operands[0] = x.0;
            tensors[0] = table.0;
        }
        Op::Resample { x, how } => {
            operands[0] = x.0;
            ints[0] = code_in(&RESAMPLINGS, how).into();
        }
        Op::Parameter { tensor } => tensors[0] = tensor.0,
        Op::Embedding { index, table } => {
            operands[0] = index.0;
            tensors[0] = table.0;
        }
        Op::TimestepEmbedding { t, dim, cos_first, shift } => {
            operands[0] = t.0;
            ints = [dim, u32::from(cos_first)];
            floats[0] = shift;
        }
        Op::PositionEmbedding { x, dim, base, interpolation } => {
            operands[0] = x.0;
            ints = [dim, base];
            floats[0] = interpolation;
        }
        Op::Patchify { x, patch } | Op::Unpatchify { x, patch } => {
            operands[0] = x.0;
            ints[0] = patch;
        }
    }
    let q = node.op.quantizes();
    let (q_range, q_curve) = match q.map(|q| q.range) {
        None | Some(QuantizeRange::Dynamic) => (0, NONE),
        Some(QuantizeRange::Curve(t, CurveAxis::Timestep)) => (1, t.0),
        Some(QuantizeRange::Curve(t, CurveAxis::StepFraction)) => (2, t.0),
    };
    NodeRecord {
        op: op_code(&node.op),
        flags: u8::from(node.wide),
        act: code_in(&ACTS, act),
        q_bits: q.map_or(0, |q| q.bits),
        q_grain: q.map_or(0, |q| code_in(&GRAINS, q.grain)),
        q_range,
        reserved: 0.into(),
        q_curve: q_curve.into(),
        path_bytes: (node.path.len() as u32).into(),
        operands: operands.map(U32::new),
        tensors: tensors.map(U32::new),
        ints: ints.map(U32::new),
        floats: floats.map(|f| U32::new(f.to_bits())),
        phases: 0.into(),
        int2: int2.into(),
        reserved2: [0; 20],
    }
}

/// [`Attend`] as bits.
fn attend_code(a: Attend) -> u32 {
    u32::from(a.causal) | u32::from(a.per_condition) << 1 | u32::from(a.int8) << 2
}

/// Decodes record `index` of NODES, which makes value `own`, taking its path from STRINGS.
pub fn decode_node(
    index: usize,
    r: &NodeRecord,
    own: usize,
    n_tensors: usize,
    strings: &[u8],
    cursor: &mut Cursor,
) -> Result<Node> {
    let at = index * size_of::<NodeRecord>();
    let err = |field: usize, what: &str, expected: String, got: String| {
        Err(Error::format("NODES", (at + field) as u64, format!("node {index} {what}"), expected, got))
    };
    let Some(&act) = ACTS.get(usize::from(r.act)) else {
        return err(2, "activation", "a known activation".into(), r.act.to_string());
    };
    let [o0, o1, o2] = r.operands.map(|o| o.get());
    let [t0, t1] = r.tensors.map(|t| t.get());
    let [i0, i1] = r.ints.map(|i| i.get());
    let [f0, f1] = r.floats.map(|f| f32::from_bits(f.get()));
    let value = |v: u32| (v != NONE).then_some(Value(v));
    let tensor = |t: u32| (t != NONE).then_some(Tensor(t));
    let quantize = if r.q_bits == 0 {
        None
    } else {
        let range = match r.q_range {
            0 => QuantizeRange::Dynamic,
            1 => QuantizeRange::Curve(Tensor(r.q_curve.get()), CurveAxis::Timestep),
            2 => QuantizeRange::Curve(Tensor(r.q_curve.get()), CurveAxis::StepFraction),
            other => return err(5, "quantize range", "0, 1 or 2".into(), other.to_string()),
        };
        let Some(&grain) = GRAINS.get(usize::from(r.q_grain)) else {
            return err(4, "quantize grain", "0 or 1".into(), r.q_grain.to_string());
        };
        Some(Quantize { bits: r.q_bits, grain, range })
    };
    // A missing required operand decodes to the number NONE and is caught by the range check below.
    let op = match r.op {
        1 => Op::Linear {
            x: Value(o0),
            weight: Tensor(t0),
            bias: tensor(t1),
            act,
            gate: value(o1).map(|value| Columns { value, offset: i0 }),
            residual: value(o2),
        },
        2 => Op::Conv2d {
            x: Value(o0),
            weight: Tensor(t0),
            bias: tensor(t1),
            sampling: match (i0 as usize).checked_sub(1).and_then(|i| Sampling::ALL.get(i)) {
                Some(&sampling) => sampling,
                None => return err(36, "sampling", format!("1 to {}", Sampling::ALL.len()), i0.to_string()),
            },
            shift: value(o2).map(|value| Columns { value, offset: i1 }),
            residual: value(o1),
        },
        3 => Op::Attention {
            q: Value(o0),
            k: Value(o1),
            v: Value(o2),
            heads: i0,
            scale: f0,
            attend: Attend { causal: i1 & 1 != 0, per_condition: i1 & 2 != 0, int8: i1 & 4 != 0 },
        },
        4 => Op::LayerNorm {
            x: Value(o0),
            weight: tensor(t0),
            bias: tensor(t1),
            eps: f0,
            modulation: value(o1).map(|value| Modulation { value, scale: i0, shift: i1 }),
            quantize,
        },
        5 => Op::GroupNorm {
            x: Value(o0),
            weight: Tensor(t0),
            bias: Tensor(t1),
            groups: i0,
            eps: f0,
            modulation: value(o1).map(|value| Modulation { value, scale: i1, shift: r.int2.get() }),
            act,
            quantize,
        },
        6 => Op::Pointwise { x: Value(o0), act, mul: f0, add: f1 },
        7 => Op::Add { a: Value(o0), b: Value(o1) },
        8 => match quantize {
            Some(spec) => Op::Quantize { x: Value(o0), spec },
            None => return err(3, "quantize bits", "6 or 8".into(), "0".into()),
        },
        9 => Op::Embedding { index: Value(o0), table: Tensor(t0) },
        10 => Op::TimestepEmbedding { t: Value(o0), dim: i0, cos_first: i1 == 1, shift: f0 },
        11 => Op::PositionEmbedding { x: Value(o0), dim: i0, base: i1, interpolation: f0 },
        12 => Op::Patchify { x: Value(o0), patch: i0 },
        13 => Op::Unpatchify { x: Value(o0), patch: i0 },
        14 => Op::Concat { a: Value(o0), b: Value(o1) },
        15 => Op::GatedLinear { x: Value(o0), weight: Tensor(t0), bias: tensor(t1), act },
        16 => Op::VectorQuantize { x: Value(o0), table: Tensor(t0) },
        17 => Op::Resample {
            x: Value(o0),
            how: match RESAMPLINGS.get(i0 as usize) {
                Some(&how) => how,
                None => return err(36, "resampling", "0 or 1".into(), i0.to_string()),
            },
        },
        18 => Op::Parameter { tensor: Tensor(t0) },
        other => return err(0, "op", "1 to 18".into(), format!("{other}; use a newer aquatint")),
    };
    let path = cursor.string(strings, r.path_bytes.get() as usize)?;
    let mut node = Node { op, path, wide: r.flags == 1 };
    if encode_node(&node).as_bytes() != r.as_bytes() {
        return err(0, "unused fields", "neutral values".into(), "other bytes".into());
    }
    if let Some(bad) = node.op.operands_mut().find(|v| v.0 as usize >= own) {
        return err(16, "operand", format!("a value below {own}"), bad.0.to_string());
    }
    if let Some(bad) = node.op.tensors().find(|t| t.0 as usize >= n_tensors) {
        return err(28, "tensor", format!("below {n_tensors}"), bad.0.to_string());
    }
    Ok(node)
}
