//! Program and node records: the fixed heads of what lies in ARGS. Encode and decode side by side.

use super::tensor::Cursor;
use super::words::{NEWER, Run, encode_inputs, encode_op, encode_phases};
use super::{MAX_INPUTS, MAX_NODES, MAX_PHASED_NODES};
use crate::error::{Error, Result};
use crate::program::shape::MAX_AXES;
use crate::program::{MAX_PHASES, Node, Numbered, Op, Phases, Program, Role, Value, Variant};
use std::ops::Range;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, little_endian::*};

/// One program.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ProgramRecord {
    /// A [`Role`]; each at most once in a file.
    pub role: U32,
    /// Declared inputs; at most [`MAX_INPUTS`].
    pub n_inputs: U32,
    /// Words of the inputs, and of where phases begin, in ARGS; they lie before those of the program's nodes.
    pub words: U32,
    /// First node in NODES; exactly where the program before ends.
    pub first_node: U32,
    /// Number of nodes, variants included.
    pub n_nodes: U32,
    /// The value that is the result.
    pub output: U32,
    /// Stretches of time with weights and quantization of their own: 0 where there is one, else 2 to [`MAX_PHASES`].
    pub n_phases: U32,
    /// Zero.
    pub reserved: U32,
}

/// One node.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct NodeRecord {
    /// Which op.
    pub op: U16,
    /// Bit 0: the result is wide. The others are zero.
    pub flags: U16,
    /// Words of the op in ARGS; each node's follow those of the node before.
    pub words: U32,
    /// Bytes of the module path in STRINGS.
    pub path_bytes: U32,
    /// 0 for a node. Else this is a variant of the node before: what it is in the phases with these bits. A variant has an op
    /// of the same number, and neither flags nor a path of its own.
    pub phases: U32,
}

const _: () = assert!(size_of::<ProgramRecord>() == 32);
const _: () = assert!(size_of::<NodeRecord>() == 16);

/// The flag of a node whose result must be kept in 32 bits.
pub const WIDE: u16 = 1;

/// The record of `program`, whose nodes start at `first_node` of NODES, and the words of its inputs and phases.
///
/// # Panics
/// If the program has more than [`MAX_INPUTS`] inputs or [`MAX_PHASES`] phases, or an input more than [`MAX_AXES`] axes: a bug
/// of its builder.
pub fn encode_program(program: &Program, first_node: usize) -> (ProgramRecord, Vec<u32>) {
    assert!(program.inputs.len() <= MAX_INPUTS, "{} inputs", program.inputs.len());
    for input in &program.inputs {
        assert!(input.dims.len() <= MAX_AXES, "{:?} has {} axes", input.kind, input.dims.len());
    }
    let Phases { axis, starts, variants } = &program.phases;
    assert!(starts.len() <= MAX_PHASES, "{} phases", starts.len());
    let mut words = encode_inputs(&program.inputs);
    words.extend(encode_phases(*axis, starts));
    let record = ProgramRecord {
        role: program.role.number().into(),
        n_inputs: (program.inputs.len() as u32).into(),
        words: (words.len() as u32).into(),
        first_node: (first_node as u32).into(),
        n_nodes: ((program.nodes.len() + variants.len()) as u32).into(),
        output: program.output.0.into(),
        n_phases: (starts.len() as u32).into(),
        reserved: 0.into(),
    };
    (record, words)
}

/// Decodes program `index`, taking its inputs from ARGS, without its nodes; the node range is returned beside it.
pub fn decode_program(
    index: usize,
    r: &ProgramRecord,
    args: &[U32],
    cursor: &mut Cursor,
) -> Result<(Program, Range<usize>)> {
    let at = index * size_of::<ProgramRecord>();
    let err = |field: usize, what: &str, expected: String, got: String| {
        Err(Error::format("PROGRAMS", (at + field) as u64, format!("program {index} {what}"), expected, got))
    };
    let Some(role) = Role::of_number(r.role.get()) else {
        return err(0, "role", format!("0 to {}", Role::ALL.len() - 1), format!("{}{NEWER}", r.role));
    };
    let n_inputs = r.n_inputs.get() as usize;
    if n_inputs > MAX_INPUTS {
        return err(4, "input count", format!("at most {MAX_INPUTS}"), n_inputs.to_string());
    }
    let n_nodes = r.n_nodes.get() as usize;
    if n_nodes > MAX_NODES {
        return err(16, "node count", format!("at most {MAX_NODES}"), n_nodes.to_string());
    }
    if r.output.get() as usize >= n_inputs + n_nodes {
        return err(20, "output", "one of its values".into(), format!("{} of {}", r.output, n_inputs + n_nodes));
    }
    let n_phases = r.n_phases.get() as usize;
    if n_phases == 1 || n_phases > MAX_PHASES {
        return err(24, "phases", format!("0, or 2 to {MAX_PHASES}"), n_phases.to_string());
    }
    if n_phases * n_nodes > MAX_PHASED_NODES {
        let expected = format!("at most {MAX_PHASED_NODES} nodes, each counted once per phase");
        return err(24, "phases", expected, format!("{n_phases} phases of {n_nodes} nodes"));
    }
    if r.reserved.get() != 0 {
        return err(28, "reserved", "zeros".into(), "other bytes".into());
    }
    let first = r.first_node.get() as usize;
    let run = Run::take(args, r.words.get() as usize, format!("program {index}"), cursor)?;
    let (inputs, phases) = run.declarations(n_inputs, n_phases)?;
    let program = Program { role, inputs, nodes: Vec::new(), output: Value(r.output.get()), phases };
    Ok((program, first..first + n_nodes))
}

/// The records of node `node` of `program` and of its variants, each with the words of its op.
pub fn encode_node(program: &Program, node: usize) -> Vec<(NodeRecord, Vec<u32>)> {
    let variants = program.phases.variants.iter().filter(|variant| variant.node == node);
    let variant = |v: &Variant| {
        let words = encode_op(&v.op);
        let (op, len, phases) = (v.op.code().into(), (words.len() as u32).into(), v.phases.into());
        (NodeRecord { op, flags: 0.into(), words: len, path_bytes: 0.into(), phases }, words)
    };
    std::iter::once(encode_first(&program.nodes[node])).chain(variants.map(variant)).collect()
}

/// The record of `node` as it is in the first phase, and the words of its op.
fn encode_first(node: &Node) -> (NodeRecord, Vec<u32>) {
    let words = encode_op(&node.op);
    let record = NodeRecord {
        op: node.op.code().into(),
        flags: if node.wide { WIDE } else { 0 }.into(),
        words: (words.len() as u32).into(),
        path_bytes: (node.path.len() as u32).into(),
        phases: 0.into(),
    };
    (record, words)
}

/// Decodes record `index` of NODES into `program`, as its next node or a variant of its last, taking the op's words from ARGS
/// and the path from STRINGS.
pub fn decode_node(
    index: usize,
    r: &NodeRecord,
    program: &mut Program,
    n_tensors: usize,
    (args, strings): (&[U32], &[u8]),
    cursor: &mut Cursor,
) -> Result<()> {
    let at = index * size_of::<NodeRecord>();
    let err = |field: usize, what: &str, expected: String, got: String| {
        Err(Error::format("NODES", (at + field) as u64, format!("node {index} {what}"), expected, got))
    };
    let Some(blank) = Op::of_code(r.op.get()) else {
        return err(0, "op", format!("1 to {}", Op::blanks().count()), format!("{}{NEWER}", r.op));
    };
    if r.flags.get() & !WIDE != 0 {
        return err(2, "flags", format!("0 or {WIDE}"), format!("{:#x}{NEWER}", r.flags));
    }
    let run = Run::take(args, r.words.get() as usize, format!("node {index} {}", blank.name()), cursor)?;
    let (phases, wide) = (r.phases.get(), r.flags.get() & WIDE != 0);
    if phases == 0 {
        let op = run.op(blank, program.n_values(), n_tensors)?;
        let path = cursor.string(strings, r.path_bytes.get() as usize)?;
        program.nodes.push(Node { op, path, wide });
        return Ok(());
    }
    // Phase 0 is what the node itself is for.
    let known = (1u64 << program.phases.starts.len()).saturating_sub(2);
    let Some(last) = program.nodes.last().filter(|_| u64::from(phases) & !known == 0) else {
        let expected = match program.nodes.is_empty() {
            true => "0, as there is no node before".into(),
            false if known == 0 => "0, as the program has one phase".into(),
            false => format!("bits of {known:#x}"),
        };
        return err(12, "phases", expected, format!("{phases:#x}"));
    };
    if last.op.code() != blank.code() {
        return err(0, "op", format!("{}, as the node that it varies", last.op.name()), blank.name().into());
    }
    if wide || r.path_bytes.get() != 0 {
        let got = format!("{:#x} and {}", r.flags, r.path_bytes);
        return err(2, "flags and path", "none, as a variant has those of its node".into(), got);
    }
    let node = program.nodes.len() - 1;
    let mut others = program.phases.variants.iter().rev().take_while(|v| v.node == node).map(|v| v.phases).peekable();
    let in_order = others.peek().is_none_or(|last| last.trailing_zeros() < phases.trailing_zeros());
    let before = others.fold(0, |bits, phases| bits | phases);
    if before & phases != 0 || !in_order {
        let expected = "variants of a node in the order of their first phases, each phase once".into();
        return err(12, "phases", expected, format!("{phases:#x} after {before:#x}"));
    }
    let op = run.op(blank, program.n_values() - 1, n_tensors)?;
    program.phases.variants.push(Variant { node, phases, op });
    Ok(())
}
