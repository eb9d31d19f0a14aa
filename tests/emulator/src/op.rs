//! Decoded instructions: operands are register slots, targets are instruction indices.

use crate::convert::Conversion;
use crate::kernels::{Kernel, Test};
use crate::types::{Space, Ty};

/// Index of a register in the file its width selects; constants and special registers have slots too.
pub(crate) type Slot = u32;

/// No instruction: the reconvergence point of a branch whose sides only meet at the end.
pub(crate) const NOWHERE: u32 = u32::MAX;

/// A predicate operand.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pred {
    pub slot: Slot,
    pub negated: bool,
}

/// A register of any width: `H` has 16 bits and lies in the 32-bit file.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Reg {
    H(Slot),
    W(Slot),
    D(Slot),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bool {
    And,
    Or,
    Xor,
}

/// Where an access goes: `register + offset` in a space.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Address {
    pub space: Space,
    pub base: Option<Reg>,
    pub offset: i64,
}

/// A load or store of `count` elements of `bytes` each.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Access {
    pub address: Address,
    pub bytes: u32,
    pub count: u32,
    /// Sign-extend to the register.
    pub signed: bool,
    /// A `.nc` load.
    pub read_only: bool,
    pub regs: [Reg; 4],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AtomOp {
    Add,
    Min,
    Max,
    And,
    Or,
    Xor,
    Exch,
    Cas,
    Inc,
    Dec,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Atom {
    pub op: AtomOp,
    pub ty: Ty,
    pub address: Address,
    /// Where the old value goes; none for `red`.
    pub old: Option<Reg>,
    pub b: Reg,
    pub c: Reg,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shuffle {
    Up,
    Down,
    Bfly,
    Idx,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Vote {
    All,
    Any,
    Uni,
    Ballot,
}

/// An instruction whose lanes meet under a member mask.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Collective {
    Shuffle {
        mode: Shuffle,
        d: Slot,
        valid: Option<Slot>,
        a: Slot,
        b: Slot,
        c: Slot,
    },
    /// `Ballot` writes the word register `d`, the others the predicate `d`.
    Vote {
        mode: Vote,
        d: Slot,
        p: Pred,
    },
    /// `match.any` or `match.all`, with the predicate of the latter.
    Match {
        all: bool,
        d: Slot,
        valid: Option<Slot>,
        a: Reg,
    },
    Redux {
        op: AtomOp,
        signed: bool,
        d: Slot,
        a: Slot,
    },
    /// `bar.warp.sync`: the only one that orders memory.
    Sync,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BarKind {
    Sync,
    Arrive,
    RedPopc,
    RedAnd,
    RedOr,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Barrier {
    pub kind: BarKind,
    pub aligned: bool,
    pub id: Slot,
    /// Threads expected; none stands for all of the block.
    pub count: Option<Slot>,
    pub p: Option<Pred>,
    pub d: Slot,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MmaType {
    /// 8-bit integers, each matrix signed or not.
    Int8 {
        a_signed: bool,
        b_signed: bool,
        saturate: bool,
    },
    F16,
    Tf32,
}

/// `mma.sync.aligned.m16n8kK.row.col` with f32 or s32 accumulators.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mma {
    pub ty: MmaType,
    pub k: u32,
    pub d: [Slot; 4],
    pub a: [Slot; 4],
    pub b: [Slot; 2],
    pub c: [Slot; 4],
}

impl Mma {
    /// Registers of the B fragment of a lane; that of A has twice as many.
    pub fn registers(&self) -> usize {
        let bytes = match self.ty {
            MmaType::Int8 { .. } => 1,
            MmaType::F16 => 2,
            MmaType::Tf32 => 4,
        };
        (self.k * bytes / 16) as usize
    }
}

/// A byte range of frame parameters copied by a call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FrameCopy {
    pub from: u32,
    pub to: u32,
    pub bytes: u32,
}

#[derive(Clone, Copy)]
pub(crate) enum Op {
    /// `d = kernel(s...)`.
    Alu {
        kernel: Kernel,
        d: Slot,
        s: [Slot; 4],
    },
    /// The same over f32 operands, with flushing and saturation around it.
    Float {
        kernel: Kernel,
        ftz: bool,
        sat: bool,
        d: Slot,
        s: [Slot; 4],
    },
    SelectW {
        d: Slot,
        a: Slot,
        b: Slot,
        p: Pred,
    },
    SelectD {
        d: Slot,
        a: Slot,
        b: Slot,
        p: Pred,
    },
    /// `setp`: `d = test(s) op p`, `other = !test(s) op p`.
    Test {
        test: Test,
        ftz: bool,
        d: Slot,
        other: Option<Slot>,
        s: [Slot; 2],
        combine: Option<(Bool, Pred)>,
    },
    /// Two f16 comparisons into two predicates.
    TestPacked {
        test: Test,
        d: Slot,
        other: Slot,
        s: [Slot; 2],
        combine: Option<(Bool, Pred)>,
    },
    /// `set`: `one` where the comparison holds, else zero.
    Set {
        test: Test,
        ftz: bool,
        one: u32,
        d: Slot,
        s: [Slot; 2],
        combine: Option<(Bool, Pred)>,
    },
    /// `testp`.
    Class {
        class: FloatClass,
        d: Slot,
        a: Reg,
    },
    Logic {
        op: Bool,
        d: Slot,
        a: Pred,
        b: Pred,
    },
    PredMov {
        d: Slot,
        a: Pred,
    },
    PredConst {
        d: Slot,
        value: bool,
    },
    Carry(Carry),
    Convert {
        conversion: Conversion,
        d: Reg,
        a: Reg,
    },
    /// `mov.b64 d, {..}` and `mov.b32 d, {..}`; parts of `bits` each.
    Pack {
        d: Reg,
        parts: [Slot; 4],
        count: u32,
        bits: u32,
    },
    Unpack {
        a: Reg,
        parts: [Slot; 4],
        count: u32,
        bits: u32,
    },
    Clock {
        d: Reg,
    },
    ActiveMask {
        d: Slot,
    },
    /// Address of a frame parameter or local variable, and other constants, are plain constants; this is `cvta`.
    Window {
        d: Reg,
        a: Reg,
        base: u64,
        to: bool,
    },
    IsSpace {
        d: Slot,
        a: Slot,
        space: Space,
    },
    Load(u32),
    Store(u32),
    Atomic(u32),
    AsyncCopy {
        to: Address,
        from: Address,
        bytes: u32,
        source_bytes: Option<Slot>,
    },
    AsyncCommit,
    /// Waits until at most this many groups are pending; `u32::MAX` stands for `wait_all`.
    AsyncWait(u32),
    /// `ldmatrix`.
    LoadMatrix {
        address: Address,
        count: u32,
        transposed: bool,
        d: [Slot; 4],
    },
    MultiplyMatrix(u32),
    Collective {
        what: u32,
        mask: Slot,
    },
    Barrier(u32),
    Branch {
        target: u32,
        meet: u32,
    },
    BranchTable {
        index: Slot,
        table: u32,
        meet: u32,
    },
    Call(u32),
    FrameCopies(u32),
    /// Returns to the instruction in the link register of the function.
    Return {
        link: Slot,
    },
    Exit,
    Trap,
    /// Fences, prefetches: nothing to do here.
    Nop,
}

/// Classes of `testp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FloatClass {
    Finite,
    Infinite,
    Number,
    NotANumber,
    Normal,
    Subnormal,
}

/// Extended-precision arithmetic ("Extended-Precision Integer Arithmetic Instructions").
#[derive(Clone, Copy, Debug)]
pub(crate) struct Carry {
    pub kind: CarryKind,
    pub wide: bool,
    pub carry_in: bool,
    pub carry_out: bool,
    pub d: Slot,
    pub s: [Slot; 3],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CarryKind {
    Add,
    Sub,
    MadLo,
    MadHi { signed: bool },
}

/// A decoded call.
#[derive(Clone, Debug)]
pub(crate) struct CallSite {
    pub target: u32,
    /// Slot, in the callee, of the return address.
    pub link: Slot,
    pub arguments: Vec<FrameCopy>,
}

#[derive(Clone, Copy)]
pub(crate) struct Inst {
    pub op: Op,
    pub guard: Option<Pred>,
}
