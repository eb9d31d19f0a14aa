//! A decoded entry, ready to run.

use crate::op::{Access, Atom, Barrier, CallSite, Collective, FrameCopy, Inst, Mma, Slot};

/// Special registers whose value is fixed for a thread and a block ("Special Registers").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Special {
    Tid(usize),
    Ntid(usize),
    Ctaid(usize),
    Nctaid(usize),
    LaneId,
    WarpId,
    NWarpId,
    /// Lanes equal, below, up to, from, above.
    MaskEq,
    MaskLt,
    MaskLe,
    MaskGe,
    MaskGt,
    DynamicShared,
    TotalShared,
    /// `%smid`, `%nsmid`, `%gridid`: one multiprocessor, one grid.
    Zero,
    One,
}

#[derive(Default)]
pub(crate) struct Program {
    pub name: String,
    pub insts: Vec<Inst>,
    /// Line and text of each instruction.
    pub texts: Vec<(u32, String)>,
    /// Opcode of each instruction, modifiers included.
    pub opcodes: Vec<String>,
    /// Names of the registers of each file.
    pub w_names: Vec<String>,
    pub d_names: Vec<String>,
    pub p_names: Vec<String>,
    pub constants_w: Vec<(Slot, u32)>,
    pub constants_d: Vec<(Slot, u64)>,
    /// Registers that hold the address of a module-scope `.global` variable, by its offset in the module's image.
    pub global_addresses: Vec<(Slot, u64)>,
    pub specials: Vec<(Slot, Special)>,
    pub accesses: Vec<Access>,
    pub atoms: Vec<Atom>,
    pub products: Vec<Mma>,
    pub collectives: Vec<Collective>,
    pub barriers: Vec<Barrier>,
    pub tables: Vec<Vec<u32>>,
    pub calls: Vec<CallSite>,
    pub copies: Vec<Vec<FrameCopy>>,
    /// Static shared bytes; the dynamic ones follow.
    pub shared_bytes: u32,
    pub uses_dynamic: bool,
    /// Local bytes of a thread, frame parameters included.
    pub local_bytes: u32,
    pub param_bytes: u32,
    pub max_threads: Option<[u32; 3]>,
    pub exact_threads: bool,
}
