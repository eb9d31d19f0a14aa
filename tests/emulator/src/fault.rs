//! What can go wrong: parse errors and faults of a running kernel.

use std::fmt;

/// Why a text was not accepted as PTX.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseError {
    /// Line of the PTX text, from 1.
    pub line: u32,
    pub message: String,
}

impl ParseError {
    pub(crate) fn new(line: u32, message: impl Into<String>) -> ParseError {
        ParseError { line, message: message.into() }
    }
}

impl fmt::Display for ParseError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "PTX line {}: {}", self.line, self.message)
    }
}

impl std::error::Error for ParseError {}

/// The classes of programming error that stop a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FaultKind {
    /// An address outside every live allocation or state-space variable.
    OutOfBounds,
    /// An address inside an allocation that was freed.
    UseAfterFree,
    /// An address that is not a multiple of the access width, vector width included.
    Misaligned,
    /// A read of memory bytes that nothing wrote.
    UninitialisedMemory,
    /// A use of a register or predicate that this thread never wrote.
    UninitialisedRegister,
    /// Two unordered accesses to a shared-memory byte, at least one of them a write.
    SharedRace,
    /// Two unordered accesses to a global-memory byte, at least one of them a write.
    GlobalRace,
    /// An access to the destination bytes of a `cp.async` that was not waited for.
    AsyncInFlight,
    /// A non-coherent (`.nc`) load from bytes that this launch wrote.
    NonCoherent,
    /// A write to memory that is read-only.
    ReadOnly,
    /// Threads that disagree about a barrier, or a barrier that can never complete.
    BarrierDivergence,
    /// A `.sync` instruction that waits for a lane that can never arrive.
    WarpSync,
    /// An `.aligned` instruction executed by a part of a warp.
    PartialWarp,
    /// More instructions than the budget allows.
    Budget,
    /// `trap` was executed.
    Trap,
    /// The launch itself is wrong: no such entry, sizes that do not fit.
    Launch,
    /// Something PTX leaves undefined and this emulator refuses to guess.
    Undefined,
}

/// A programming error, with where it happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub kind: FaultKind,
    /// Name of the entry that ran; empty for a fault of the host's own access.
    pub entry: Box<str>,
    /// Text of the instruction, empty where there is none.
    pub instruction: Box<str>,
    /// Line of the PTX text, 0 where there is none.
    pub line: u32,
    /// Block index.
    pub block: [u32; 3],
    /// Flat indices, within the block, of the threads concerned.
    pub threads: Vec<u32>,
    /// Address within its state space, where one is concerned.
    pub address: Option<u64>,
    pub message: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:?}: {}", self.kind, self.message)?;
        if let Some(address) = self.address {
            write!(out, " (address {address:#x})")?;
        }
        if !self.entry.is_empty() {
            let [x, y, z] = self.block;
            write!(out, "\n  in {}, block ({x}, {y}, {z}), threads {:?}", self.entry, self.threads)?;
        }
        if self.line != 0 {
            write!(out, "\n  at PTX line {}: {}", self.line, self.instruction)?;
        }
        Ok(())
    }
}

impl std::error::Error for Fault {}

/// A fault without its surroundings, as the executing code raises it; the run loop adds the rest.
#[derive(Debug)]
pub(crate) struct Trap {
    pub kind: FaultKind,
    /// Lanes of the executing warp, as a mask; 0 stands for all active ones.
    pub lanes: u32,
    /// Other threads of the block that are concerned.
    pub others: Vec<u32>,
    pub address: Option<u64>,
    pub message: String,
}

pub(crate) type Outcome<T> = Result<T, Box<Trap>>;

impl Trap {
    pub fn new(kind: FaultKind, lanes: u32, message: impl Into<String>) -> Box<Trap> {
        Box::new(Trap { kind, lanes, others: Vec::new(), address: None, message: message.into() })
    }

    pub fn at(kind: FaultKind, lanes: u32, address: u64, message: impl Into<String>) -> Box<Trap> {
        Box::new(Trap { kind, lanes, others: Vec::new(), address: Some(address), message: message.into() })
    }
}
