//! A running block: its warps take random turns and meet at barriers.

use crate::fault::{Fault, FaultKind, Outcome, Trap};
use crate::memory::Memory;
use crate::op::{BarKind, Barrier};
use crate::order::{Order, bits};
use crate::program::Program;
use crate::shared::Shared;
use crate::stats::Stats;
use crate::sums::TensorCores;
use crate::warp::{Group, Stop, Wait, Warp};

/// What the warps of a block share.
pub(crate) struct Context<'a> {
    pub program: &'a Program,
    pub memory: &'a mut Memory,
    pub shared: Shared,
    pub order: Order,
    pub params: &'a [u8],
    pub constants: &'a [u8],
    pub stats: Stats,
    /// What adds the products of `mma`.
    pub cores: TensorCores,
    /// Executions of each instruction.
    pub counts: Vec<u64>,
    /// The instruction being executed and the lanes that execute it, for faults.
    pub pc: u32,
    pub active: u32,
    /// Instructions of the turns that are over.
    pub ticks: u64,
    bars: [Bar; 16],
    /// Warps whose barrier completed, with the result of its reduction.
    released: Vec<(usize, u32)>,
    warps: usize,
}

/// One of the 16 barriers of a block.
#[derive(Default)]
struct Bar {
    /// Warps expected; 0 while nobody waits.
    expected: usize,
    /// Warps that arrived, each with the time of its arrival, and those of them that wait.
    arrived: Vec<(usize, u32)>,
    waiting: Vec<usize>,
    seen: Vec<u32>,
    /// Threads with a true predicate, threads in all, for reductions.
    trues: u32,
    threads: u32,
    kind: Option<BarKind>,
}

impl<'a> Context<'a> {
    pub fn new(
        program: &'a Program,
        memory: &'a mut Memory,
        params: &'a [u8],
        constants: &'a [u8],
        shared_bytes: usize,
        warps: usize,
    ) -> Context<'a> {
        let clock = memory.clock;
        Context {
            program,
            memory,
            shared: Shared::new(shared_bytes),
            order: Order::new(clock, warps),
            params,
            constants,
            stats: Stats::default(),
            cores: TensorCores::default(),
            counts: vec![0; program.insts.len()],
            pc: 0,
            active: 0,
            ticks: 0,
            bars: Default::default(),
            released: Vec::new(),
            warps,
        }
    }

    /// A clock for `%clock`: instructions of the launch in the turns so far.
    pub fn executed(&self) -> u64 {
        self.ticks
    }

    /// A whole warp arrives at a barrier.
    fn arrive(
        &mut self,
        warp: usize,
        barrier: &Barrier,
        id: u32,
        count: Option<u32>,
        trues: u32,
        threads: u32,
    ) -> Outcome<()> {
        let fail = |message: String| Err(Trap::new(FaultKind::BarrierDivergence, 0, message));
        if id >= 16 {
            return fail(format!("there is no barrier {id}"));
        }
        let expected = match count {
            None => self.warps,
            Some(count) if count == 0 || count % 32 != 0 || count as usize > self.warps * 32 => {
                return fail(format!("{count} threads are expected at the barrier, of {} warps", self.warps));
            }
            Some(count) => count as usize / 32,
        };
        let bar = &mut self.bars[id as usize];
        if bar.expected == 0 {
            bar.expected = expected;
            bar.seen = vec![0; self.warps];
            bar.kind = None;
            (bar.trues, bar.threads) = (0, 0);
        }
        if bar.expected != expected {
            return fail(format!("{expected} warps are expected at barrier {id}, but {} were before", bar.expected));
        }
        if bar.arrived.iter().any(|&(other, _)| other == warp) {
            return fail(format!("warp {warp} arrives twice at barrier {id}"));
        }
        if barrier.kind != BarKind::Arrive {
            if bar.kind.is_some_and(|kind| kind != barrier.kind) {
                return fail(format!("barrier {id} is used with different reductions at once"));
            }
            bar.kind = Some(barrier.kind);
            bar.waiting.push(warp);
        }
        let tick = if barrier.kind == BarKind::Arrive { self.order.tick(warp) } else { 0 };
        for (seen, known) in bar.seen.iter_mut().zip(self.order.knowledge(warp)) {
            *seen = (*seen).max(known);
        }
        bar.arrived.push((warp, tick));
        bar.trues += trues;
        bar.threads += threads;
        if bar.arrived.len() == bar.expected {
            let bar = std::mem::take(bar);
            self.order.sync_warps(&bar.arrived, &bar.waiting, bar.seen);
            let result = match bar.kind {
                Some(BarKind::RedPopc) => bar.trues,
                Some(BarKind::RedAnd) => u32::from(bar.trues == bar.threads),
                Some(BarKind::RedOr) => u32::from(bar.trues > 0),
                _ => 0,
            };
            self.released.extend(bar.waiting.iter().map(|&warp| (warp, result)));
        }
        Ok(())
    }
}

impl Warp {
    /// The lanes `lanes` of a group arrive at a block barrier; tells whether the groups changed.
    pub fn barrier(&mut self, ctx: &mut Context, index: usize, which: u32, lanes: u32) -> Outcome<bool> {
        let program = ctx.program;
        let barrier = &program.barriers[which as usize];
        let Group { pc, mask, .. } = self.groups[index];
        if lanes == 0 {
            self.groups[index].pc = pc + 1;
            return Ok(false);
        }
        if self.exited != 0 || barrier.aligned && lanes != self.live {
            let message = if self.exited != 0 {
                format!("the lanes {:#010x} of the warp have exited", self.exited)
            } else {
                format!("only the lanes {lanes:#010x} of {:#010x} are at the barrier", self.live)
            };
            return Err(Trap::new(FaultKind::BarrierDivergence, lanes, message));
        }
        if lanes != mask {
            self.push_meet(mask, pc + 1);
            self.groups[index].mask = lanes;
            self.groups.push(Group { pc: pc + 1, mask: mask & !lanes, wait: Wait::Ready });
        }
        self.groups[index].wait = Wait::Block;
        let here = |group: &&Group| group.wait == Wait::Block && group.pc == pc;
        if self.groups.iter().filter(here).fold(0, |sum, group| sum | group.mask) != self.live {
            return Ok(true);
        }
        let lanes = self.live;
        let uniform = |slot: u32| {
            let values = self.need_w(ctx, slot, lanes)?;
            let first = values[lanes.trailing_zeros() as usize];
            if bits(lanes).any(|lane| values[lane] != first) {
                let message = "lanes of a warp give different barrier operands";
                return Err(Trap::new(FaultKind::BarrierDivergence, lanes, message));
            }
            Ok(first)
        };
        let id = uniform(barrier.id)?;
        let count = barrier.count.map(uniform).transpose()?;
        let trues = match barrier.p {
            Some(p) => (self.need_p(ctx, p, lanes)? & lanes).count_ones(),
            None => 0,
        };
        ctx.arrive(self.index, barrier, id, count, trues, lanes.count_ones())?;
        if barrier.kind == BarKind::Arrive {
            self.release(program, 0);
        }
        Ok(true)
    }

    /// Goes on after a barrier, with the result of its reduction.
    fn release(&mut self, program: &Program, result: u32) {
        for group in &mut self.groups {
            if let crate::op::Op::Barrier(which) = program.insts[group.pc as usize].op
                && group.wait == Wait::Block
            {
                let barrier = &program.barriers[which as usize];
                let mask = group.mask;
                group.wait = Wait::Ready;
                group.pc += 1;
                match barrier.kind {
                    BarKind::RedPopc => {
                        self.w[barrier.d as usize] = [result; 32];
                        self.w_set[barrier.d as usize] |= mask;
                    }
                    BarKind::RedAnd | BarKind::RedOr => {
                        self.p[barrier.d as usize] = result.wrapping_neg();
                        self.p_set[barrier.d as usize] |= mask;
                    }
                    BarKind::Sync | BarKind::Arrive => {}
                }
            }
        }
    }
}

/// Runs one block to its end.
pub(crate) fn run(
    ctx: &mut Context,
    warps: &mut [Warp],
    block: [u32; 3],
    rng: &mut fastrand::Rng,
    budget: u64,
) -> Result<(), Box<Fault>> {
    ctx.shared.start_block();
    ctx.order.start_block();
    ctx.bars = Default::default();
    ctx.released.clear();
    let limit = ctx.ticks.saturating_add(budget);
    let mut runnable: Vec<usize> = (0..warps.len()).collect();
    let mut done = 0;
    while !runnable.is_empty() {
        let pick = rng.usize(..runnable.len());
        let index = runnable[pick];
        let turn = if rng.bool() { rng.u32(1..64) } else { rng.u32(64..2048) };
        let stop = warps[index].run(ctx, turn).map_err(|trap| fault(ctx, &trap, block, index))?;
        ctx.ticks += u64::from(turn);
        match stop {
            Stop::Turn if ctx.ticks > limit => {
                let message = format!("the block executed {budget} instructions and has not ended");
                let trap = Trap::new(FaultKind::Budget, 0, message);
                return Err(fault(ctx, &trap, block, index));
            }
            Stop::Turn => {}
            Stop::Barrier => {
                runnable.swap_remove(pick);
            }
            Stop::Done => {
                runnable.swap_remove(pick);
                done += 1;
            }
        }
        let program = ctx.program;
        for (warp, result) in ctx.released.drain(..) {
            warps[warp].release(program, result);
            if !runnable.contains(&warp) {
                runnable.push(warp);
            }
        }
    }
    if done == warps.len() {
        return Ok(());
    }
    let mut waits = Vec::new();
    let mut first = None;
    for warp in warps.iter() {
        for group in &warp.groups {
            first.get_or_insert((warp.index, group.pc, group.mask));
            waits.push(format!("warp {} at line {}", warp.index, ctx.program.texts[group.pc as usize].0));
        }
    }
    let (index, pc, mask) = first.unwrap_or_default();
    (ctx.pc, ctx.active) = (pc, mask);
    let message = format!("{done} warps have exited while others wait at a barrier: {}", waits.join(", "));
    Err(fault(ctx, &Trap::new(FaultKind::BarrierDivergence, 0, message), block, index))
}

/// Adds to a trap where it happened.
fn fault(ctx: &Context, trap: &Trap, block: [u32; 3], warp: usize) -> Box<Fault> {
    let (line, instruction) = ctx.program.texts[ctx.pc as usize].clone();
    let lanes = if trap.lanes == 0 { ctx.active } else { trap.lanes };
    let mut threads: Vec<u32> = bits(lanes).map(|lane| (warp * 32 + lane) as u32).collect();
    threads.extend(trap.others.iter().filter(|other| !threads.contains(other)).copied().collect::<Vec<_>>());
    Box::new(Fault {
        kind: trap.kind,
        entry: ctx.program.name.as_str().into(),
        instruction: instruction.into(),
        line,
        block,
        threads,
        address: trap.address,
        message: trap.message.clone(),
    })
}
