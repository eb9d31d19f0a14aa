//! A parsed but not yet resolved module.

use crate::types::{Space, Ty};

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Operand {
    /// A register, special register, variable, label or function.
    Name(String),
    Int(u64),
    F32(u32),
    F64(u64),
    /// `{a, b}`.
    Vector(Vec<Operand>),
    /// `[base + offset]`.
    Address(Box<Operand>, i64),
    /// `!p`.
    Not(String),
    /// `p|q`: both destinations.
    Pair(String, String),
    /// `(a, b)` of a call.
    List(Vec<Operand>),
}

#[derive(Clone, Debug)]
pub(crate) struct Instruction {
    pub line: u32,
    pub text: String,
    /// Guard predicate and whether it is negated.
    pub guard: Option<(String, bool)>,
    pub opcode: String,
    pub modifiers: Vec<String>,
    pub operands: Vec<Operand>,
}

/// A variable declaration ("Variables").
#[derive(Clone, Debug)]
pub(crate) struct Variable {
    pub name: String,
    pub space: Space,
    pub align: u32,
    pub bytes: u32,
    /// `.extern` with an unsized array: the dynamic shared memory.
    pub dynamic: bool,
    /// Initial bytes; `None` stands for no initialiser.
    pub initial: Option<Vec<u8>>,
}

#[derive(Clone, Debug)]
pub(crate) enum Statement {
    Register { name: String, count: Option<u32>, ty: Ty, line: u32 },
    Variable(Variable),
    Label { name: String, line: u32 },
    Targets { name: String, labels: Vec<String> },
    Instruction(Instruction),
    Open,
    Close,
}

#[derive(Clone, Debug)]
pub(crate) struct Function {
    pub name: String,
    pub entry: bool,
    pub results: Vec<Variable>,
    pub params: Vec<Variable>,
    /// Most threads per block, from `.maxntid`, or the exact shape from `.reqntid`.
    pub max_threads: Option<[u32; 3]>,
    pub exact_threads: bool,
    pub body: Vec<Statement>,
    pub line: u32,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Unit {
    pub variables: Vec<Variable>,
    pub functions: Vec<Function>,
}
