//! Program and node records: the fixed heads of what lies in ARGS. Encode and decode side by side.

use super::tensor::Cursor;
use super::words::{NEWER, Run, encode_inputs, encode_op};
use super::{MAX_INPUTS, MAX_NODES};
use crate::error::{Error, Result};
use crate::program::shape::MAX_AXES;
use crate::program::{Node, Numbered, Op, Program, Role, Value};
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
    /// Words of the inputs in ARGS; they lie before those of the program's nodes.
    pub words: U32,
    /// First node in NODES; exactly where the program before ends.
    pub first_node: U32,
    /// Number of nodes.
    pub n_nodes: U32,
    /// The value that is the result.
    pub output: U32,
    /// Ranges of timesteps with weights and quantization of their own; none are defined yet, so 0.
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
    /// Phases in which the node takes part, as bits; 0 is all, and as no phases are defined yet, it is 0.
    pub phases: U32,
}

const _: () = assert!(size_of::<ProgramRecord>() == 32);
const _: () = assert!(size_of::<NodeRecord>() == 16);

/// The flag of a node whose result must be kept in 32 bits.
pub const WIDE: u16 = 1;

/// The record of `program`, whose nodes start at `first_node` of NODES, and the words of its inputs.
///
/// # Panics
/// If the program has more than [`MAX_INPUTS`] inputs or an input more than [`MAX_AXES`] axes: a bug of its builder.
pub fn encode_program(program: &Program, first_node: usize) -> (ProgramRecord, Vec<u32>) {
    assert!(program.inputs.len() <= MAX_INPUTS, "{} inputs", program.inputs.len());
    for input in &program.inputs {
        assert!(input.dims.len() <= MAX_AXES, "{:?} has {} axes", input.kind, input.dims.len());
    }
    let words = encode_inputs(&program.inputs);
    let record = ProgramRecord {
        role: program.role.number().into(),
        n_inputs: (program.inputs.len() as u32).into(),
        words: (words.len() as u32).into(),
        first_node: (first_node as u32).into(),
        n_nodes: (program.nodes.len() as u32).into(),
        output: program.output.0.into(),
        n_phases: 0.into(),
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
    if r.n_phases.get() != 0 {
        return err(24, "phases", "0".into(), format!("{}{NEWER}", r.n_phases));
    }
    if r.reserved.get() != 0 {
        return err(28, "reserved", "zeros".into(), "other bytes".into());
    }
    let first = r.first_node.get() as usize;
    let inputs = Run::take(args, r.words.get() as usize, format!("program {index}"), cursor)?.inputs(n_inputs)?;
    let program = Program { role, inputs, nodes: Vec::new(), output: Value(r.output.get()) };
    Ok((program, first..first + n_nodes))
}

/// The record of `node`, and the words of its op.
pub fn encode_node(node: &Node) -> (NodeRecord, Vec<u32>) {
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

/// Decodes record `index` of NODES, which makes value `own`, taking its op's words from ARGS and its path from STRINGS.
pub fn decode_node(
    index: usize,
    r: &NodeRecord,
    own: usize,
    n_tensors: usize,
    (args, strings): (&[U32], &[u8]),
    cursor: &mut Cursor,
) -> Result<Node> {
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
    if r.phases.get() != 0 {
        return err(12, "phases", "0".into(), format!("{}{NEWER}", r.phases));
    }
    let run = Run::take(args, r.words.get() as usize, format!("node {index} {}", blank.name()), cursor)?;
    let op = run.op(blank, own, n_tensors)?;
    let path = cursor.string(strings, r.path_bytes.get() as usize)?;
    Ok(Node { op, path, wide: r.flags.get() & WIDE != 0 })
}
