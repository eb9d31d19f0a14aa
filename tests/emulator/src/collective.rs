//! Instructions at which the lanes of a warp meet: `shfl`, `vote`, `match`, `redux`, `bar.warp.sync`.

use crate::block::Context;
use crate::fault::{FaultKind, Outcome, Trap};
use crate::op::{AtomOp, Collective, Op, Pred, Shuffle, Vote};
use crate::order::bits;
use crate::warp::{Group, Wait, Warp};

impl Warp {
    /// Faults when a member mask of the lanes `lanes` names a lane that can never arrive.
    fn check_members(&self, members: u32, lanes: u32) -> Outcome<()> {
        if lanes & !members != 0 {
            let message = format!("the member mask {members:#010x} does not name the executing lane");
            return Err(Trap::new(FaultKind::WarpSync, lanes & !members, message));
        }
        let gone = members & (!self.live | self.exited);
        if gone != 0 {
            let message = format!("the member mask {members:#010x} names lanes {gone:#010x}, which do not run");
            return Err(Trap::new(FaultKind::WarpSync, lanes, message));
        }
        Ok(())
    }

    /// After an exit: nobody may wait for a lane that is gone.
    pub fn check_exited(&self, ctx: &mut Context) -> Outcome<()> {
        for group in &self.groups {
            if let Wait::Lanes(members) = group.wait
                && members & self.exited != 0
            {
                ctx.pc = group.pc;
                return self.check_members(members, group.mask);
            }
        }
        Ok(())
    }

    /// Lets `lanes` of a group arrive at a collective; tells whether the groups changed.
    pub fn collective(&mut self, ctx: &mut Context, index: usize, what: u32, slot: u32, lanes: u32) -> Outcome<bool> {
        let Group { pc, mask, .. } = self.groups[index];
        if lanes == 0 {
            self.groups[index].pc = pc + 1;
            return Ok(false);
        }
        let members = *self.need_w(ctx, slot, lanes)?;
        let op = ctx.program.collectives[what as usize];
        let sets = sets(&members, lanes);
        for &(named, here) in &sets {
            self.check_members(named, here)?;
        }
        if sets.iter().all(|&(named, here)| named == here) {
            self.groups[index].pc = pc + 1;
            self.perform(ctx, op, lanes, &members)?;
            return Ok(false);
        }
        if lanes != mask {
            self.push_meet(mask, pc + 1);
            self.groups.push(Group { pc: pc + 1, mask: mask & !lanes, wait: Wait::Ready });
        }
        self.groups.swap_remove(index);
        for &(named, here) in &sets {
            self.groups.push(Group { pc, mask: here, wait: Wait::Lanes(named) });
        }
        for &(named, _) in &sets {
            self.complete(ctx, op, pc, named)?;
        }
        Ok(true)
    }

    /// Performs a collective once all its named lanes have arrived.
    fn complete(&mut self, ctx: &mut Context, op: Collective, pc: u32, named: u32) -> Outcome<()> {
        let sync = matches!(op, Collective::Sync);
        let insts = &ctx.program.insts;
        let is_sync = |at: u32| match insts[at as usize].op {
            Op::Collective { what, .. } => matches!(ctx.program.collectives[what as usize], Collective::Sync),
            _ => false,
        };
        let here = |group: &Group| group.wait == Wait::Lanes(named) && (group.pc == pc || sync && is_sync(group.pc));
        let arrived = self.groups.iter().filter(|group| here(group)).fold(0, |sum, group| sum | group.mask);
        if arrived != named {
            return Ok(());
        }
        for group in &mut self.groups {
            if here(group) {
                group.wait = Wait::Ready;
                group.pc += 1;
            }
        }
        ctx.active = named;
        self.perform(ctx, op, named, &[named; 32])
    }

    /// Performs a collective for lanes that have all their members among them.
    fn perform(&mut self, ctx: &mut Context, op: Collective, lanes: u32, members: &[u32; 32]) -> Outcome<()> {
        match op {
            Collective::Sync => {
                for (named, _) in sets(members, lanes) {
                    ctx.order.sync_lanes(self.index, named, self.live);
                }
            }
            Collective::Shuffle { mode, d, valid, a, b, c } => {
                let (value, b, c) =
                    (*self.need_w(ctx, a, lanes)?, *self.need_w(ctx, b, lanes)?, *self.need_w(ctx, c, lanes)?);
                let (mut out, mut set, mut inside) = ([0; 32], 0, 0);
                for lane in bits(lanes) {
                    let (from, ok) = source(mode, lane as u32, b[lane], c[lane]);
                    inside |= u32::from(ok) << lane;
                    // A lane outside the members gives an undefined value, which faults once it is used.
                    if members[lane] >> from & 1 != 0 {
                        out[lane] = value[from as usize];
                        set |= 1 << lane;
                    }
                }
                self.put_w(d, lanes, &out);
                self.w_set[d as usize] &= !(lanes & !set);
                if let Some(valid) = valid {
                    self.put_p(valid, lanes, inside);
                }
            }
            Collective::Vote { mode, d, p } => self.vote(ctx, (mode, d, p), lanes, members)?,
            Collective::Match { all, d, valid, a } => {
                let value = self.need(ctx, a, lanes)?;
                let (mut words, mut holds) = ([0; 32], 0);
                for lane in bits(lanes) {
                    let same = bits(members[lane]).filter(|&other| value[other] == value[lane]);
                    let same: u32 = same.map(|other| 1 << other).sum();
                    let whole = same == members[lane];
                    words[lane] = if all && !whole { 0 } else { same };
                    holds |= u32::from(whole) << lane;
                }
                self.put_w(d, lanes, &words);
                if let Some(valid) = valid {
                    self.put_p(valid, lanes, holds);
                }
            }
            Collective::Redux { op, signed, d, a } => self.redux(ctx, (op, signed, d, a), lanes, members)?,
        }
        Ok(())
    }

    /// `vote`: what each lane's members say together.
    fn vote(&mut self, ctx: &Context, (mode, d, p): (Vote, u32, Pred), lanes: u32, members: &[u32; 32]) -> Outcome<()> {
        let p = self.need_p(ctx, p, lanes)?;
        let (mut words, mut holds) = ([0; 32], 0);
        for lane in bits(lanes) {
            let yes = p & members[lane];
            words[lane] = yes;
            let result = match mode {
                Vote::All => yes == members[lane],
                Vote::Any => yes != 0,
                Vote::Uni => yes == 0 || yes == members[lane],
                Vote::Ballot => false,
            };
            holds |= u32::from(result) << lane;
        }
        if mode == Vote::Ballot {
            self.put_w(d, lanes, &words);
        } else {
            self.put_p(d, lanes, holds);
        }
        Ok(())
    }

    /// `redux`: one value out of those of each lane's members.
    fn redux(
        &mut self,
        ctx: &Context,
        (op, signed, d, a): (AtomOp, bool, u32, u32),
        lanes: u32,
        members: &[u32; 32],
    ) -> Outcome<()> {
        let value = *self.need_w(ctx, a, lanes)?;
        let mut out = [0; 32];
        for lane in bits(lanes) {
            out[lane] = bits(members[lane])
                .map(|other| value[other])
                .reduce(|x, y| match op {
                    AtomOp::Add => x.wrapping_add(y),
                    AtomOp::Min if signed => (x as i32).min(y as i32) as u32,
                    AtomOp::Max if signed => (x as i32).max(y as i32) as u32,
                    AtomOp::Min => x.min(y),
                    AtomOp::Max => x.max(y),
                    AtomOp::And => x & y,
                    AtomOp::Or => x | y,
                    _ => x ^ y,
                })
                .unwrap_or(0);
        }
        self.put_w(d, lanes, &out);
        Ok(())
    }
}

/// The distinct member masks and the lanes that gave each.
fn sets(members: &[u32; 32], lanes: u32) -> Vec<(u32, u32)> {
    let mut sets: Vec<(u32, u32)> = Vec::with_capacity(1);
    for lane in bits(lanes) {
        match sets.iter_mut().find(|set| set.0 == members[lane]) {
            Some(set) => set.1 |= 1 << lane,
            None => sets.push((members[lane], 1 << lane)),
        }
    }
    sets
}

/// The source lane of a shuffle and whether it is in range ("shfl.sync", Semantics).
fn source(mode: Shuffle, lane: u32, b: u32, c: u32) -> (u32, bool) {
    let b = b & 31;
    let (clamp, segment) = (c & 31, c >> 8 & 31);
    let max_lane = (lane & segment) | (clamp & !segment);
    let min_lane = lane & segment;
    let (from, inside) = match mode {
        Shuffle::Up => (lane.wrapping_sub(b), lane as i32 - b as i32 >= max_lane as i32),
        Shuffle::Down => (lane + b, lane + b <= max_lane),
        Shuffle::Bfly => (lane ^ b, lane ^ b <= max_lane),
        Shuffle::Idx => {
            let from = min_lane | (b & !segment);
            (from, from <= max_lane)
        }
    };
    if inside { (from, true) } else { (lane, false) }
}
