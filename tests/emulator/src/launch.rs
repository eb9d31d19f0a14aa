//! Modules and launches.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::block::{self, Context};
use crate::decode;
use crate::fault::{Fault, FaultKind, ParseError};
use crate::memory::Memory;
use crate::program::{Program, Special};
use crate::stats::Stats;
use crate::sums::TensorCores;
use crate::warp::Warp;

/// The most shared memory a block can have.
const MAX_SHARED: u64 = 227 * 1024;
/// Warp instructions a block may execute before it counts as endless.
const BUDGET: u64 = 1 << 30;

/// A parsed PTX module.
pub struct Module {
    programs: Vec<Program>,
    /// Initial image of the `.global` variables, with the bytes that have initialisers or are zero by definition.
    globals: Vec<u8>,
    constants: Vec<u8>,
    id: u64,
    budget: u64,
    cores: TensorCores,
}

/// One kernel launch.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    pub entry: &'a str,
    pub grid: [u32; 3],
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub dynamic_shared: u32,
    /// The bytes of the parameters.
    pub params: &'a [u8],
    /// Decides the order of blocks and the turns of warps.
    pub seed: u64,
}

impl Module {
    /// Parses and decodes a PTX text. Anything not understood is an error.
    pub fn parse(text: &str) -> Result<Module, ParseError> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let decode::Decoded { programs, globals, constants } = decode::decode(text)?;
        let (id, cores) = (NEXT.fetch_add(1, Ordering::Relaxed), TensorCores::default());
        Ok(Module { programs, globals, constants, id, budget: BUDGET, cores })
    }

    /// Names of the entries.
    pub fn entries(&self) -> impl Iterator<Item = &str> {
        self.programs.iter().map(|program| program.name.as_str())
    }

    fn program(&self, entry: &str) -> Option<&Program> {
        self.programs.iter().find(|program| program.name == entry)
    }

    /// Size of the parameters of an entry.
    pub fn param_bytes(&self, entry: &str) -> Option<usize> {
        self.program(entry).map(|program| program.param_bytes as usize)
    }

    /// Most threads a block of an entry may have, from `.maxntid` or `.reqntid`.
    pub fn max_threads(&self, entry: &str) -> Option<u32> {
        self.program(entry)?.max_threads.map(|shape| shape.iter().product())
    }

    /// Static shared memory of an entry.
    pub fn shared_bytes(&self, entry: &str) -> Option<usize> {
        self.program(entry).map(|program| program.shared_bytes as usize)
    }

    /// Sets how many warp instructions a block may execute before it counts as endless.
    pub fn set_budget(&mut self, instructions: u64) {
        self.budget = instructions;
    }

    /// Sets the tensor cores that add the products of `mma`.
    pub fn set_tensor_cores(&mut self, cores: TensorCores) {
        self.cores = cores;
    }

    /// Runs a kernel over a grid.
    pub fn launch(&self, memory: &mut Memory, launch: &Launch) -> Result<Stats, Fault> {
        let program = self.check(launch).map_err(|message| Fault {
            kind: FaultKind::Launch,
            entry: launch.entry.into(),
            instruction: "".into(),
            line: 0,
            block: [0; 3],
            threads: Vec::new(),
            address: None,
            message,
        })?;
        if memory.clock > u32::MAX / 2 {
            memory.reset_clock();
        }
        let globals = self.place_globals(memory)?;
        let threads = launch.block.iter().product::<u32>() as usize;
        let count = threads.div_ceil(32);
        let mut warps: Vec<Warp> = (0..count)
            .map(|index| {
                let live = (threads - index * 32).min(32);
                Warp::new(program, index, if live == 32 { u32::MAX } else { (1 << live) - 1 })
            })
            .collect();
        for warp in &mut warps {
            for &(slot, offset) in &program.global_addresses {
                warp.d[slot as usize] = [globals + offset; 32];
            }
        }
        let shared_bytes = program.shared_bytes as usize + launch.dynamic_shared as usize;
        let mut rng = fastrand::Rng::with_seed(launch.seed);
        let [x, y, z] = launch.grid.map(u64::from);
        let mut blocks: Vec<u64> = (0..x * y * z).collect();
        rng.shuffle(&mut blocks);
        let mut ctx = Context::new(program, memory, launch.params, &self.constants, shared_bytes, count);
        ctx.cores = self.cores;
        let mut result = Ok(());
        for flat in blocks {
            let block = [(flat % x) as u32, (flat / x % y) as u32, (flat / x / y) as u32];
            for warp in &mut warps {
                warp.start_block(program);
                for &(slot, special) in &program.specials {
                    warp.w[slot as usize] = value(special, launch, program, block, warp.index);
                }
            }
            result = block::run(&mut ctx, &mut warps, block, &mut rng, self.budget);
            if result.is_err() {
                break;
            }
            assert!(ctx.order.clock < u32::MAX - (1 << 24), "one launch synchronises too often for the clock");
        }
        let (clock, counts, mut stats) = (ctx.order.clock, ctx.counts, ctx.stats);
        memory.clock = clock;
        result.map_err(|fault| *fault)?;
        for (index, &count) in counts.iter().enumerate().filter(|&(_, &count)| count > 0) {
            *stats.instructions.entry(program.opcodes[index].clone()).or_default() += count;
            *stats.lines.entry(program.texts[index].0).or_default() += count;
            stats.total_instructions += count;
        }
        Ok(stats)
    }

    fn check(&self, launch: &Launch) -> Result<&Program, String> {
        let program = self.program(launch.entry).ok_or_else(|| format!("there is no entry {}", launch.entry))?;
        let [x, y, z] = launch.block;
        let threads = u64::from(x) * u64::from(y) * u64::from(z);
        if threads == 0 || threads > 1024 || z > 64 {
            return Err(format!("a block of {x} x {y} x {z} threads"));
        }
        if let Some(limit) = program.max_threads {
            let most = limit.iter().map(|&size| u64::from(size)).product();
            if threads > most || program.exact_threads && limit != launch.block {
                return Err(format!("a block of {x} x {y} x {z} threads where the kernel allows {limit:?}"));
            }
        }
        let [x, y, z] = launch.grid;
        if x == 0 || y == 0 || z == 0 || x > i32::MAX as u32 || y > 65535 || z > 65535 {
            return Err(format!("a grid of {x} x {y} x {z} blocks"));
        }
        if launch.params.len() != program.param_bytes as usize {
            return Err(format!("{} parameter bytes where {} are declared", launch.params.len(), program.param_bytes));
        }
        let shared = u64::from(program.shared_bytes) + u64::from(launch.dynamic_shared);
        if shared > MAX_SHARED {
            return Err(format!("{shared} bytes of shared memory"));
        }
        Ok(program)
    }

    /// Address of the module's `.global` variables, placed at the first launch on a memory.
    fn place_globals(&self, memory: &mut Memory) -> Result<u64, Fault> {
        if self.globals.is_empty() {
            return Ok(0);
        }
        if let Some(&address) = memory.modules.get(&self.id) {
            return Ok(address);
        }
        let address = memory.alloc(self.globals.len());
        memory.write(address, &self.globals)?;
        memory.modules.insert(self.id, address);
        Ok(address)
    }
}

/// The value of a special register for the lanes of a warp.
fn value(special: Special, launch: &Launch, program: &Program, block: [u32; 3], warp: usize) -> [u32; 32] {
    let [x, y, _] = launch.block;
    std::array::from_fn(|lane| {
        let thread = (warp * 32 + lane) as u32;
        let own = 1u32 << lane;
        match special {
            Special::Tid(0) => thread % x,
            Special::Tid(1) => thread / x % y,
            Special::Tid(_) => thread / x / y,
            Special::Ntid(axis) => launch.block[axis],
            Special::Ctaid(axis) => block[axis],
            Special::Nctaid(axis) => launch.grid[axis],
            Special::LaneId => lane as u32,
            Special::WarpId => warp as u32,
            Special::NWarpId => launch.block.iter().product::<u32>().div_ceil(32),
            Special::MaskEq => own,
            Special::MaskLt => own - 1,
            Special::MaskLe => own | (own - 1),
            Special::MaskGe => !(own - 1),
            Special::MaskGt => !(own | (own - 1)),
            Special::DynamicShared => launch.dynamic_shared,
            Special::TotalShared => program.shared_bytes + launch.dynamic_shared,
            Special::Zero => 0,
            Special::One => 1,
        }
    })
}
