//! Loads, stores, atomics and asynchronous copies.

use crate::block::Context;
use crate::execute::window_of;
use crate::fault::{FaultKind, Outcome, Trap};
use crate::float::{fma16, half_from_f32, half_to_f32};
use crate::kernels::D;
use crate::memory::little;
use crate::op::{Address, AtomOp, FrameCopy, Reg};
use crate::order::bits;
use crate::stats::{sectors, wavefronts};
use crate::types::{Space, Ty, WINDOW};
use crate::warp::{Pending, Warp};

/// Names the lane in a trap that the memory raised.
fn on_lane<T>(lane: usize, result: Outcome<T>) -> Outcome<T> {
    result.map_err(|mut trap| {
        if trap.lanes == 0 {
            trap.lanes = 1 << lane;
        }
        trap
    })
}

/// `old op b`, as bits ("Parallel Synchronization and Communication Instructions: atom").
fn update(op: AtomOp, ty: Ty, old: u64, b: u64, c: u64) -> u64 {
    let f = |x: u64| f32::from_bits(x as u32);
    let signed = |x: u64| if ty == Ty::S32 { i64::from(x as i32) } else { x as i64 };
    match op {
        AtomOp::Add => match ty {
            Ty::F32 => u64::from(crate::float::bits32(f(old) + f(b))),
            Ty::F64 => (f64::from_bits(old) + f64::from_bits(b)).to_bits(),
            Ty::F16 => u64::from(half_from_f32(half_to_f32(old as u16) + half_to_f32(b as u16))),
            Ty::F16x2 => {
                let one = 0x3c00;
                let add = |shift| u64::from(fma16((old >> shift) as u16, one, (b >> shift) as u16)) << shift;
                add(0) | add(16)
            }
            _ => old.wrapping_add(b),
        },
        AtomOp::Min if ty.is_signed() => signed(old).min(signed(b)) as u64,
        AtomOp::Max if ty.is_signed() => signed(old).max(signed(b)) as u64,
        AtomOp::Min => old.min(b),
        AtomOp::Max => old.max(b),
        AtomOp::And => old & b,
        AtomOp::Or => old | b,
        AtomOp::Xor => old ^ b,
        AtomOp::Exch => b,
        AtomOp::Cas => {
            if old == b {
                c
            } else {
                old
            }
        }
        AtomOp::Inc => {
            if old >= b {
                0
            } else {
                old + 1
            }
        }
        AtomOp::Dec => {
            if old == 0 || old > b {
                b
            } else {
                old - 1
            }
        }
    }
}

impl Warp {
    /// Addresses of the lanes and their common space; generic addresses are translated.
    fn addresses(&self, ctx: &Context, address: Address, mask: u32) -> Outcome<(Space, D)> {
        let offset = address.offset as u64;
        let mut at = match address.base {
            None => [offset; 32],
            Some(Reg::D(slot)) => self.need_d(ctx, slot, mask)?.map(|base| base.wrapping_add(offset)),
            Some(Reg::W(slot) | Reg::H(slot)) => {
                self.need_w(ctx, slot, mask)?.map(|base| u64::from(base.wrapping_add(offset as u32)))
            }
        };
        if address.space != Space::Generic {
            return Ok((address.space, at));
        }
        let space = window_of(at[mask.trailing_zeros() as usize]);
        for lane in bits(mask) {
            if window_of(at[lane]) != space {
                let message = "lanes of one generic access address different state spaces";
                return Err(Trap::at(FaultKind::Undefined, 1 << lane, at[lane], message));
            }
        }
        if space != Space::Global {
            at = at.map(|at| at & (WINDOW - 1));
        }
        Ok((space, at))
    }

    /// Checks the alignment to the access width, a power of two.
    fn aligned(at: &D, len: usize, mask: u32) -> Outcome<()> {
        for lane in bits(mask) {
            if at[lane] & (len as u64 - 1) != 0 {
                let message = format!("not a multiple of the {len} bytes accessed");
                return Err(Trap::at(FaultKind::Misaligned, 1 << lane, at[lane], message));
            }
        }
        Ok(())
    }

    pub fn load(&mut self, ctx: &mut Context, access: u32, mask: u32) -> Outcome<()> {
        let access = ctx.program.accesses[access as usize];
        let (space, at) = self.addresses(ctx, access.address, mask)?;
        let len = (access.bytes * access.count) as usize;
        Warp::aligned(&at, len, mask)?;
        let mut values = [0u128; 32];
        match space {
            Space::Global | Space::Generic => {
                sectors(&mut ctx.stats.global_loads, &at, mask, len);
                for lane in bits(mask) {
                    let thread = self.thread(lane);
                    let got = ctx.memory.load(at[lane], len, &ctx.order, thread, access.read_only);
                    values[lane] = on_lane(lane, got)?;
                }
            }
            Space::Shared => {
                wavefronts(&mut ctx.stats.shared_loads, &at, mask, len);
                for lane in bits(mask) {
                    let got = ctx.shared.load(at[lane], len, &ctx.order, self.thread(lane));
                    values[lane] = on_lane(lane, got)?;
                }
            }
            Space::Local => {
                for lane in bits(mask) {
                    values[lane] = on_lane(lane, self.load_local(lane, at[lane], len))?;
                }
            }
            Space::Const | Space::Param => {
                let bytes = if space == Space::Const { ctx.constants } else { ctx.params };
                for lane in bits(mask) {
                    let end = at[lane].checked_add(len as u64).filter(|&end| end <= bytes.len() as u64);
                    if end.is_none() {
                        let message = format!("{len} bytes of a space of {}", bytes.len());
                        return Err(Trap::at(FaultKind::OutOfBounds, 1 << lane, at[lane], message));
                    }
                    values[lane] = little(&bytes[at[lane] as usize..][..len]);
                }
            }
        }
        let shift = 64 - access.bytes * 8;
        for (index, &reg) in access.regs[..access.count as usize].iter().enumerate() {
            let mut out = [0; 32];
            for (out, value) in out.iter_mut().zip(&values) {
                let bits = ((value >> (index as u32 * access.bytes * 8)) as u64) << shift;
                *out = if access.signed { (bits as i64 >> shift) as u64 } else { bits >> shift };
            }
            self.put(reg, mask, &out);
        }
        Ok(())
    }

    pub fn store(&mut self, ctx: &mut Context, access: u32, mask: u32) -> Outcome<()> {
        let access = ctx.program.accesses[access as usize];
        let (space, at) = self.addresses(ctx, access.address, mask)?;
        let len = (access.bytes * access.count) as usize;
        Warp::aligned(&at, len, mask)?;
        let mut values = [0u128; 32];
        let keep = u64::MAX >> (64 - access.bytes * 8);
        for (index, &reg) in access.regs[..access.count as usize].iter().enumerate() {
            let part = self.need(ctx, reg, mask)?;
            for (value, part) in values.iter_mut().zip(part) {
                *value |= u128::from(part & keep) << (index as u32 * access.bytes * 8);
            }
        }
        match space {
            Space::Global | Space::Generic => {
                sectors(&mut ctx.stats.global_stores, &at, mask, len);
                for lane in bits(mask) {
                    let thread = self.thread(lane);
                    on_lane(lane, ctx.memory.store(at[lane], len, values[lane], &ctx.order, thread))?;
                }
            }
            Space::Shared => {
                wavefronts(&mut ctx.stats.shared_stores, &at, mask, len);
                for lane in bits(mask) {
                    let thread = self.thread(lane);
                    on_lane(lane, ctx.shared.store(at[lane], len, values[lane], &ctx.order, thread))?;
                }
            }
            Space::Local => {
                for lane in bits(mask) {
                    on_lane(lane, self.store_local(lane, at[lane], len, values[lane]))?;
                }
            }
            Space::Const | Space::Param => {
                let address = at[mask.trailing_zeros() as usize];
                return Err(Trap::at(FaultKind::ReadOnly, 0, address, "a store to constant memory"));
            }
        }
        Ok(())
    }

    fn local_range(&self, lane: usize, at: u64, len: usize) -> Outcome<usize> {
        let size = self.local.len() / 32;
        if at.checked_add(len as u64).is_some_and(|end| end <= size as u64) {
            return Ok(lane * size + at as usize);
        }
        Err(Trap::at(FaultKind::OutOfBounds, 1 << lane, at, format!("{len} bytes of local memory of {size}")))
    }

    fn load_local(&self, lane: usize, at: u64, len: usize) -> Outcome<u128> {
        let start = self.local_range(lane, at, len)?;
        if !self.local_set[start..start + len].iter().all(|&set| set) {
            return Err(Trap::at(FaultKind::UninitialisedMemory, 1 << lane, at, "local bytes that nothing wrote"));
        }
        Ok(little(&self.local[start..start + len]))
    }

    fn store_local(&mut self, lane: usize, at: u64, len: usize, value: u128) -> Outcome<()> {
        let start = self.local_range(lane, at, len)?;
        self.local[start..start + len].copy_from_slice(&value.to_le_bytes()[..len]);
        self.local_set[start..start + len].fill(true);
        Ok(())
    }

    /// Copies frame parameters of a call; what was not written stays so.
    pub fn copy_frame(&mut self, _ctx: &Context, copies: &[FrameCopy], mask: u32) -> Outcome<()> {
        let size = self.local.len() / 32;
        for copy in copies {
            for lane in bits(mask) {
                let (from, to) = (lane * size + copy.from as usize, lane * size + copy.to as usize);
                self.local.copy_within(from..from + copy.bytes as usize, to);
                self.local_set.copy_within(from..from + copy.bytes as usize, to);
            }
        }
        Ok(())
    }

    pub fn atomic(&mut self, ctx: &mut Context, atom: u32, mask: u32) -> Outcome<()> {
        let atom = ctx.program.atoms[atom as usize];
        let (space, at) = self.addresses(ctx, atom.address, mask)?;
        let len = atom.ty.bytes() as usize;
        Warp::aligned(&at, len, mask)?;
        let (b, c) = (self.need(ctx, atom.b, mask)?, self.need(ctx, atom.c, mask)?);
        let mut old = [0; 32];
        for lane in bits(mask) {
            let act = |old| update(atom.op, atom.ty, old, b[lane], c[lane]);
            let thread = self.thread(lane);
            let got = match space {
                Space::Global | Space::Generic => ctx.memory.atomic(at[lane], len, &ctx.order, thread, act),
                Space::Shared => ctx.shared.atomic(at[lane], len, &ctx.order, thread, act),
                _ => Err(Trap::at(FaultKind::Undefined, 0, at[lane], "an atomic outside global and shared memory")),
            };
            old[lane] = on_lane(lane, got)?;
        }
        if let Some(reg) = atom.old {
            self.put(reg, mask, &old);
        }
        Ok(())
    }

    /// `cp.async`: reads the source now; the bytes land when the issuing thread waits.
    pub fn async_copy(
        &mut self,
        ctx: &mut Context,
        to: Address,
        from: Address,
        bytes: u32,
        source_bytes: Option<u32>,
        mask: u32,
    ) -> Outcome<()> {
        let len = bytes as usize;
        let (to_space, to) = self.addresses(ctx, to, mask)?;
        let (from_space, from) = self.addresses(ctx, from, mask)?;
        if to_space != Space::Shared || from_space != Space::Global {
            return Err(Trap::new(FaultKind::Undefined, 0, "cp.async copies from global to shared memory"));
        }
        Warp::aligned(&to, len, mask)?;
        Warp::aligned(&from, len, mask)?;
        let sizes = match source_bytes {
            Some(slot) => *self.need_w(ctx, slot, mask)?,
            None => [bytes; 32],
        };
        let reads = bits(mask).filter(|&lane| sizes[lane] > 0).map(|lane| 1u32 << lane).sum();
        sectors(&mut ctx.stats.global_loads, &from, reads, len);
        wavefronts(&mut ctx.stats.shared_stores, &to, mask, len);
        for lane in bits(mask) {
            let thread = self.thread(lane);
            let size = sizes[lane] as usize;
            if size > len {
                let message = format!("a source size of {size} for a copy of {len} bytes");
                return Err(Trap::new(FaultKind::Undefined, 1 << lane, message));
            }
            let mut data = [0; 16];
            if size > 0 {
                let got = ctx.memory.load(from[lane], size, &ctx.order, thread, false);
                data = on_lane(lane, got)?.to_le_bytes();
            }
            on_lane(lane, ctx.shared.begin_copy(to[lane], len, &ctx.order, thread))?;
            let group = self.commits[lane];
            self.pending[lane].push(Pending { to: to[lane] as u32, len: bytes, bytes: data, group });
        }
        Ok(())
    }

    /// Lands the copies of all but the latest `keep` commit groups, or all copies.
    pub fn async_wait(&mut self, ctx: &mut Context, keep: u32, mask: u32) {
        for lane in bits(mask) {
            let thread = self.thread(lane);
            let commits = self.commits[lane];
            self.pending[lane].retain(|copy| {
                let done = keep == u32::MAX || copy.group.saturating_add(keep) < commits;
                if done {
                    ctx.shared.end_copy(copy.to as usize, &copy.bytes[..copy.len as usize], &ctx.order, thread);
                }
                !done
            });
        }
    }
}
