//! A warp: its registers, its groups of lanes that run together, and where they meet again.
//!
//! Lanes diverge into groups at branches and meet at the immediate post-dominator of the branch, as with the
//! convergence barriers of the hardware; in between each group runs on its own.

use crate::block::Context;
use crate::fault::{FaultKind, Outcome, Trap};
use crate::kernels::{D, W};
use crate::op::{NOWHERE, Op, Pred, Reg};
use crate::order::bits;
use crate::program::Program;

/// What a group of lanes waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    Ready,
    /// For the other lanes of its innermost meeting point.
    Meet,
    /// At a `.sync` instruction, for the lanes of the member mask.
    Lanes(u32),
    /// At a block barrier.
    Block,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Group {
    pub pc: u32,
    pub mask: u32,
    pub wait: Wait,
}

/// A `cp.async` that was issued but not waited for.
pub(crate) struct Pending {
    pub to: u32,
    pub len: u32,
    pub bytes: [u8; 16],
    /// Number of the commit group of the thread.
    pub group: u32,
}

/// Why a warp stopped running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// Its turn is over.
    Turn,
    /// It waits at a block barrier.
    Barrier,
    Done,
}

#[derive(Default)]
pub(crate) struct Warp {
    pub index: usize,
    /// Lanes the warp started with, and those that exited.
    pub live: u32,
    pub exited: u32,
    pub w: Vec<W>,
    pub d: Vec<D>,
    pub p: Vec<u32>,
    /// Lanes on which each register was written.
    pub w_set: Vec<u32>,
    pub d_set: Vec<u32>,
    pub p_set: Vec<u32>,
    /// The condition-code carry flag, and where it was written.
    pub carry: u32,
    pub carry_set: u32,
    pub local: Vec<u8>,
    pub local_set: Vec<bool>,
    pub groups: Vec<Group>,
    /// Meeting points, innermost last: instruction and lanes that meet there.
    pub meets: Vec<(u32, u32)>,
    pub pending: [Vec<Pending>; 32],
    /// Commit groups so far of each lane.
    pub commits: [u32; 32],
}

impl Warp {
    pub fn new(program: &Program, index: usize, live: u32) -> Warp {
        let mut warp = Warp {
            index,
            live,
            w: vec![[0; 32]; program.w_names.len()],
            d: vec![[0; 32]; program.d_names.len()],
            p: vec![0; program.p_names.len()],
            local: vec![0; program.local_bytes as usize * 32],
            ..Warp::default()
        };
        for &(slot, value) in &program.constants_w {
            warp.w[slot as usize] = [value; 32];
        }
        for &(slot, value) in &program.constants_d {
            warp.d[slot as usize] = [value; 32];
        }
        warp
    }

    /// Forgets everything but constants.
    pub fn start_block(&mut self, program: &Program) {
        self.exited = 0;
        self.w_set.clear();
        self.w_set.resize(self.w.len(), 0);
        self.d_set.clear();
        self.d_set.resize(self.d.len(), 0);
        self.p_set.clear();
        self.p_set.resize(self.p.len(), 0);
        for &(slot, _) in &program.constants_w {
            self.w_set[slot as usize] = u32::MAX;
        }
        for &(slot, _) in &program.specials {
            self.w_set[slot as usize] = u32::MAX;
        }
        for &(slot, _) in &program.constants_d {
            self.d_set[slot as usize] = u32::MAX;
        }
        for &(slot, _) in &program.global_addresses {
            self.d_set[slot as usize] = u32::MAX;
        }
        self.carry_set = 0;
        self.local_set.clear();
        self.local_set.resize(self.local.len(), false);
        self.groups.clear();
        self.groups.push(Group { pc: 0, mask: self.live, wait: Wait::Ready });
        self.meets.clear();
        self.pending.iter_mut().for_each(Vec::clear);
        self.commits = [0; 32];
    }

    #[cold]
    fn unset(names: &[String], slot: u32, lanes: u32) -> Box<Trap> {
        let name = &names[slot as usize];
        Trap::new(FaultKind::UninitialisedRegister, lanes, format!("{name} is used before it is written"))
    }

    #[inline(always)]
    pub fn need_w(&self, ctx: &Context, slot: u32, mask: u32) -> Outcome<&W> {
        let missing = mask & !self.w_set[slot as usize];
        if missing == 0 { Ok(&self.w[slot as usize]) } else { Err(Warp::unset(&ctx.program.w_names, slot, missing)) }
    }

    #[inline(always)]
    pub fn need_d(&self, ctx: &Context, slot: u32, mask: u32) -> Outcome<&D> {
        let missing = mask & !self.d_set[slot as usize];
        if missing == 0 { Ok(&self.d[slot as usize]) } else { Err(Warp::unset(&ctx.program.d_names, slot, missing)) }
    }

    /// The lanes on which a predicate operand holds.
    #[inline(always)]
    pub fn need_p(&self, ctx: &Context, pred: Pred, mask: u32) -> Outcome<u32> {
        let missing = mask & !self.p_set[pred.slot as usize];
        if missing != 0 {
            return Err(Warp::unset(&ctx.program.p_names, pred.slot, missing));
        }
        let value = self.p[pred.slot as usize];
        Ok(if pred.negated { !value } else { value })
    }

    /// The bits of a register of any width, zero-extended.
    pub fn need(&self, ctx: &Context, reg: Reg, mask: u32) -> Outcome<D> {
        Ok(match reg {
            Reg::H(slot) | Reg::W(slot) => self.need_w(ctx, slot, mask)?.map(u64::from),
            Reg::D(slot) => *self.need_d(ctx, slot, mask)?,
        })
    }

    #[inline(always)]
    pub fn put_w(&mut self, slot: u32, mask: u32, value: &W) {
        let register = &mut self.w[slot as usize];
        if mask == u32::MAX {
            *register = *value;
        } else {
            for lane in 0..32 {
                let keep = (mask >> lane & 1).wrapping_sub(1);
                register[lane] = register[lane] & keep | value[lane] & !keep;
            }
        }
        self.w_set[slot as usize] |= mask;
    }

    #[inline(always)]
    pub fn put_d(&mut self, slot: u32, mask: u32, value: &D) {
        let register = &mut self.d[slot as usize];
        if mask == u32::MAX {
            *register = *value;
        } else {
            for lane in 0..32 {
                let keep = u64::from(mask >> lane & 1).wrapping_sub(1);
                register[lane] = register[lane] & keep | value[lane] & !keep;
            }
        }
        self.d_set[slot as usize] |= mask;
    }

    #[inline(always)]
    pub fn put_p(&mut self, slot: u32, mask: u32, value: u32) {
        let register = &mut self.p[slot as usize];
        *register = *register & !mask | value & mask;
        self.p_set[slot as usize] |= mask;
    }

    /// Writes a register of any width, truncating.
    pub fn put(&mut self, reg: Reg, mask: u32, value: &D) {
        match reg {
            Reg::H(slot) => self.put_w(slot, mask, &value.map(|bits| bits as u32 & 0xffff)),
            Reg::W(slot) => self.put_w(slot, mask, &value.map(|bits| bits as u32)),
            Reg::D(slot) => self.put_d(slot, mask, value),
        }
    }

    pub fn thread(&self, lane: usize) -> u32 {
        (self.index * 32 + lane) as u32
    }

    /// The innermost meeting point of a group.
    fn meet_of(&self, mask: u32) -> Option<usize> {
        self.meets.iter().rposition(|&(_, lanes)| lanes & mask != 0)
    }

    /// Picks the ready group with the lowest instruction, joined by those that stand at the same one.
    fn pick(&mut self) -> Option<usize> {
        if let [only] = &self.groups[..] {
            return (only.wait == Wait::Ready).then_some(0);
        }
        let ready = |group: &Group| group.wait == Wait::Ready;
        let pc = self.groups.iter().filter(|group| ready(group)).map(|group| group.pc).min()?;
        let first = self.groups.iter().position(|group| ready(group) && group.pc == pc)?;
        let meet = self.meet_of(self.groups[first].mask);
        let mut other = first + 1;
        while other < self.groups.len() {
            let group = self.groups[other];
            if ready(&group) && group.pc == pc && self.meet_of(group.mask) == meet {
                self.groups[first].mask |= group.mask;
                self.groups.swap_remove(other);
            } else {
                other += 1;
            }
        }
        Some(first)
    }

    /// Runs until the turn of `turn` instructions is over or nothing can run.
    pub fn run(&mut self, ctx: &mut Context, mut turn: u32) -> Outcome<Stop> {
        loop {
            if self.groups.is_empty() {
                return Ok(Stop::Done);
            }
            let Some(index) = self.pick() else {
                if self.groups.iter().all(|group| group.wait == Wait::Block) {
                    return Ok(Stop::Barrier);
                }
                return Err(self.stuck(ctx));
            };
            let Group { mut pc, mask, .. } = self.groups[index];
            let stop = self.meet_of(mask).map_or(NOWHERE, |meet| self.meets[meet].0);
            loop {
                if pc == stop {
                    self.groups[index].pc = pc;
                    self.groups[index].wait = Wait::Meet;
                    self.complete_meets();
                    break;
                }
                if turn == 0 {
                    self.groups[index].pc = pc;
                    return Ok(Stop::Turn);
                }
                turn -= 1;
                ctx.pc = pc;
                ctx.counts[pc as usize] += 1;
                ctx.active = mask;
                let inst = ctx.program.insts[pc as usize];
                let guard = match inst.guard {
                    None => mask,
                    Some(pred) => self.need_p(ctx, pred, mask)? & mask,
                };
                match inst.op {
                    Op::Branch { .. }
                    | Op::BranchTable { .. }
                    | Op::Call(_)
                    | Op::Return { .. }
                    | Op::Exit
                    | Op::Collective { .. }
                    | Op::Barrier(_) => {
                        self.groups[index].pc = pc;
                        ctx.active = guard;
                        if self.control(ctx, index, inst.op, guard)? {
                            break;
                        }
                        pc = self.groups[index].pc;
                    }
                    _ => {
                        if guard != 0 {
                            ctx.active = guard;
                            self.execute(ctx, inst.op, guard)?;
                        }
                        pc += 1;
                    }
                }
            }
        }
    }

    /// Executes a control instruction for the lanes `guard` of a group; tells whether the groups changed.
    fn control(&mut self, ctx: &mut Context, index: usize, op: Op, guard: u32) -> Outcome<bool> {
        let Group { pc, mask, .. } = self.groups[index];
        match op {
            Op::Branch { target, meet } => {
                if guard == 0 || guard == mask {
                    self.groups[index].pc = if guard == 0 { pc + 1 } else { target };
                    return Ok(false);
                }
                self.split(index, &[(pc + 1, mask & !guard), (target, guard)], meet);
                Ok(true)
            }
            Op::BranchTable { index: slot, table, meet } => self.branch_table(ctx, index, (slot, table, meet), guard),
            Op::Call(site) => {
                let program = ctx.program;
                let site = &program.calls[site as usize];
                self.copy_frame(ctx, &site.arguments, mask)?;
                self.put_w(site.link, mask, &[pc + 1; 32]);
                self.push_meet(mask, pc + 1);
                self.groups[index].pc = site.target;
                Ok(true)
            }
            Op::Return { link } => {
                let back = self.w[link as usize];
                let mut parts: Vec<(u32, u32)> = Vec::new();
                for lane in bits(guard) {
                    match parts.iter_mut().find(|part| part.0 == back[lane]) {
                        Some(part) => part.1 |= 1 << lane,
                        None => parts.push((back[lane], 1 << lane)),
                    }
                }
                if mask != guard {
                    parts.push((pc + 1, mask & !guard));
                }
                self.split(index, &parts, NOWHERE);
                Ok(true)
            }
            Op::Exit => {
                self.exited |= guard;
                self.groups[index].mask &= !guard;
                self.groups[index].pc = pc + 1;
                if self.groups[index].mask == 0 {
                    self.groups.swap_remove(index);
                }
                for (_, lanes) in &mut self.meets {
                    *lanes &= !guard;
                }
                self.complete_meets();
                self.check_exited(ctx)?;
                Ok(true)
            }
            Op::Collective { what, mask: members } => self.collective(ctx, index, what, members, guard),
            Op::Barrier(which) => self.barrier(ctx, index, which, guard),
            _ => unreachable!("not a control instruction"),
        }
    }

    /// `brx.idx` for the lanes `guard` of a group; the others go on behind it.
    fn branch_table(
        &mut self,
        ctx: &Context,
        index: usize,
        (slot, table, meet): (u32, u32, u32),
        guard: u32,
    ) -> Outcome<bool> {
        let Group { pc, mask, .. } = self.groups[index];
        if guard == 0 {
            self.groups[index].pc = pc + 1;
            return Ok(false);
        }
        let chosen = *self.need_w(ctx, slot, guard)?;
        let targets = &ctx.program.tables[table as usize];
        let mut parts: Vec<(u32, u32)> = Vec::new();
        let mut add = |pc, lanes| match parts.iter_mut().find(|part| part.0 == pc) {
            Some(part) => part.1 |= lanes,
            None => parts.push((pc, lanes)),
        };
        for lane in bits(guard) {
            let Some(&target) = targets.get(chosen[lane] as usize) else {
                return Err(Trap::new(FaultKind::OutOfBounds, 1 << lane, "brx.idx beyond its targets"));
            };
            add(target, 1 << lane);
        }
        if guard != mask {
            add(pc + 1, mask & !guard);
        }
        if let [(target, _)] = parts[..] {
            self.groups[index].pc = target;
            return Ok(false);
        }
        self.split(index, &parts, meet);
        Ok(true)
    }

    pub fn push_meet(&mut self, mask: u32, meet: u32) {
        if meet != NOWHERE && self.meet_of(mask).is_none_or(|inner| self.meets[inner].0 != meet) {
            self.meets.push((meet, mask));
        }
    }

    /// Splits a group into parts that run on their own until `meet`.
    pub fn split(&mut self, index: usize, parts: &[(u32, u32)], meet: u32) {
        self.push_meet(self.groups[index].mask, meet);
        self.groups.swap_remove(index);
        for &(pc, mask) in parts {
            self.groups.push(Group { pc, mask, wait: Wait::Ready });
        }
    }

    /// Joins the groups of every meeting point at which all its lanes have arrived.
    fn complete_meets(&mut self) {
        let mut at = self.meets.len();
        while at > 0 {
            at -= 1;
            let (pc, lanes) = self.meets[at];
            let here = |group: &Group| group.wait == Wait::Meet && group.pc == pc && group.mask & lanes != 0;
            let arrived = self.groups.iter().filter(|group| here(group)).fold(0, |sum, group| sum | group.mask);
            // Only lanes whose innermost meeting point this is count.
            if arrived != lanes || (lanes != 0 && self.meet_of(lanes) != Some(at)) {
                continue;
            }
            self.meets.remove(at);
            if lanes != 0 {
                self.groups.retain(|group| !here(group));
                self.groups.push(Group { pc, mask: lanes, wait: Wait::Ready });
            }
        }
    }

    /// The fault of a warp in which no group can go on.
    fn stuck(&self, ctx: &mut Context) -> Box<Trap> {
        let mut kind = FaultKind::WarpSync;
        let mut waits = Vec::new();
        for group in &self.groups {
            let line = ctx.program.texts[group.pc as usize].0;
            waits.push(match group.wait {
                Wait::Ready => format!("lanes {:#010x} are ready at line {line}", group.mask),
                Wait::Meet => format!("lanes {:#010x} wait at line {line} for lanes that diverged", group.mask),
                Wait::Lanes(members) => {
                    format!("lanes {:#010x} wait at line {line} for the lanes {members:#010x}", group.mask)
                }
                Wait::Block => {
                    kind = FaultKind::BarrierDivergence;
                    format!("lanes {:#010x} wait at the barrier at line {line}", group.mask)
                }
            });
        }
        let blocked = self.groups.iter().find(|group| matches!(group.wait, Wait::Lanes(_) | Wait::Block));
        if let Some(group) = blocked {
            ctx.pc = group.pc;
            ctx.active = group.mask;
        }
        Trap::new(kind, 0, format!("the warp can never go on: {}", waits.join("; ")))
    }
}
