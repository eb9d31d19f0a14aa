//! Instructions that only touch registers.

use crate::block::Context;
use crate::fault::{FaultKind, Outcome, Trap};
use crate::float::{flush32, saturate32};
use crate::kernels::{Kernel, Test, W};
use crate::op::{Bool, Carry, CarryKind, FloatClass, Op, Pred, Reg};
use crate::types::{CONST_BASE, LOCAL_BASE, PARAM_BASE, SHARED_BASE, Space};
use crate::warp::Warp;

fn combine(op: Bool, a: u32, b: u32) -> u32 {
    match op {
        Bool::And => a & b,
        Bool::Or => a | b,
        Bool::Xor => a ^ b,
    }
}

/// Whether a generic address lies in the window of a space.
pub(crate) fn window_of(address: u64) -> Space {
    match address & 0xff00_0000_0000_0000 {
        SHARED_BASE => Space::Shared,
        LOCAL_BASE => Space::Local,
        CONST_BASE => Space::Const,
        PARAM_BASE => Space::Param,
        _ => Space::Global,
    }
}

impl Warp {
    /// Executes one instruction that does not change the flow of control, for the lanes `mask`.
    #[inline]
    pub fn execute(&mut self, ctx: &mut Context, op: Op, mask: u32) -> Outcome<()> {
        match op {
            Op::Alu { kernel, d, s } => return self.alu(ctx, kernel, d, s, mask),
            Op::Float { kernel, ftz, sat, d, s } => return self.float(ctx, kernel, (ftz, sat), d, s, mask),
            Op::Load(access) => return self.load(ctx, access, mask),
            Op::Store(access) => return self.store(ctx, access, mask),
            Op::SelectW { d, a, b, p } => self.select_w(ctx, d, [a, b], p, mask)?,
            Op::SelectD { d, a, b, p } => self.select_d(ctx, d, [a, b], p, mask)?,
            Op::Test { test, ftz, d, other, s, combine: with } => {
                let holds = self.test(ctx, test, ftz, s, mask)?;
                self.put_tests(ctx, d, other, holds, !holds, with, mask)?;
            }
            Op::TestPacked { test, d, other, s, combine: with } => {
                let Test::W(test) = test else { unreachable!("halves lie in words") };
                let (a, b) = (*self.need_w(ctx, s[0], mask)?, *self.need_w(ctx, s[1], mask)?);
                let (low, high) = (test(&a, &b), test(&a.map(|x| x >> 16), &b.map(|x| x >> 16)));
                self.put_tests(ctx, d, Some(other), low, high, with, mask)?;
            }
            Op::Set { test, ftz, one, d, s, combine: with } => self.set(ctx, (test, ftz, s), (one, d), with, mask)?,
            Op::Class { class, d, a } => self.classify(ctx, class, d, a, mask)?,
            Op::Logic { op, d, a, b } => {
                let value = combine(op, self.need_p(ctx, a, mask)?, self.need_p(ctx, b, mask)?);
                self.put_p(d, mask, value);
            }
            Op::PredMov { d, a } => {
                let value = self.need_p(ctx, a, mask)?;
                self.put_p(d, mask, value);
            }
            Op::PredConst { d, value } => self.put_p(d, mask, if value { u32::MAX } else { 0 }),
            Op::Carry(carry) => self.carry(ctx, carry, mask)?,
            Op::Convert { conversion, d, a } => {
                let value = self.need(ctx, a, mask)?.map(|bits| conversion.apply(bits));
                self.put(d, mask, &value);
            }
            Op::Pack { d, parts, count, bits } => self.pack(ctx, d, (&parts[..count as usize], bits), mask)?,
            Op::Unpack { a, parts, count, bits } => self.unpack(ctx, a, (&parts[..count as usize], bits), mask)?,
            Op::Clock { d } => {
                let now = ctx.executed();
                self.put(d, mask, &[now; 32]);
            }
            Op::ActiveMask { d } => self.put_w(d, mask, &[mask; 32]),
            Op::Window { d, a, base, to } => {
                let value =
                    self.need(ctx, a, mask)?.map(|at| if to { at.wrapping_sub(base) } else { at.wrapping_add(base) });
                self.put(d, mask, &value);
            }
            Op::IsSpace { d, a, space } => self.is_space(ctx, d, a, space, mask)?,
            Op::Atomic(atom) => self.atomic(ctx, atom, mask)?,
            Op::AsyncCopy { to, from, bytes, source_bytes } => {
                self.async_copy(ctx, to, from, bytes, source_bytes, mask)?;
            }
            Op::AsyncCommit => {
                for lane in crate::order::bits(mask) {
                    self.commits[lane] += 1;
                }
            }
            Op::AsyncWait(pending) => self.async_wait(ctx, pending, mask),
            Op::LoadMatrix { address, count, transposed, d } => {
                self.load_matrix(ctx, address, count, transposed, d, mask)?;
            }
            Op::MultiplyMatrix(product) => self.multiply_matrix(ctx, product, mask)?,
            Op::FrameCopies(copies) => {
                let program = ctx.program;
                self.copy_frame(ctx, &program.copies[copies as usize], mask)?;
            }
            Op::Trap => return Err(Trap::new(FaultKind::Trap, mask, "trap")),
            Op::Nop => {}
            Op::Collective { .. }
            | Op::Barrier(_)
            | Op::Branch { .. }
            | Op::BranchTable { .. }
            | Op::Call(_)
            | Op::Return { .. }
            | Op::Exit => unreachable!("control instructions are executed by their groups"),
        }
        Ok(())
    }

    /// `selp` of words.
    fn select_w(&mut self, ctx: &Context, d: u32, [a, b]: [u32; 2], p: Pred, mask: u32) -> Outcome<()> {
        let (x, y) = (*self.need_w(ctx, a, mask)?, *self.need_w(ctx, b, mask)?);
        let p = self.need_p(ctx, p, mask)?;
        let mut out = [0; 32];
        for lane in 0..32 {
            out[lane] = if p >> lane & 1 != 0 { x[lane] } else { y[lane] };
        }
        self.put_w(d, mask, &out);
        Ok(())
    }

    /// `selp` of double words.
    fn select_d(&mut self, ctx: &Context, d: u32, [a, b]: [u32; 2], p: Pred, mask: u32) -> Outcome<()> {
        let (x, y) = (*self.need_d(ctx, a, mask)?, *self.need_d(ctx, b, mask)?);
        let p = self.need_p(ctx, p, mask)?;
        let mut out = [0; 32];
        for lane in 0..32 {
            out[lane] = if p >> lane & 1 != 0 { x[lane] } else { y[lane] };
        }
        self.put_d(d, mask, &out);
        Ok(())
    }

    /// `testp`.
    fn classify(&mut self, ctx: &Context, class: FloatClass, d: u32, a: Reg, mask: u32) -> Outcome<()> {
        let mut holds = 0;
        for (lane, bits) in self.need(ctx, a, mask)?.into_iter().enumerate() {
            let kind = match a {
                Reg::D(_) => f64::from_bits(bits).classify(),
                _ => f32::from_bits(bits as u32).classify(),
            };
            holds |= u32::from(is_class(class, kind)) << lane;
        }
        self.put_p(d, mask, holds);
        Ok(())
    }

    /// `mov` of a vector into one register.
    fn pack(&mut self, ctx: &Context, d: Reg, (parts, bits): (&[u32], u32), mask: u32) -> Outcome<()> {
        let mut out = [0; 32];
        for (index, &part) in parts.iter().enumerate() {
            let part = self.need_w(ctx, part, mask)?;
            for (out, &part) in out.iter_mut().zip(part) {
                *out |= u64::from(part) << (index as u32 * bits);
            }
        }
        self.put(d, mask, &out);
        Ok(())
    }

    /// `mov` of one register into a vector.
    fn unpack(&mut self, ctx: &Context, a: Reg, (parts, bits): (&[u32], u32), mask: u32) -> Outcome<()> {
        let value = self.need(ctx, a, mask)?;
        for (index, &part) in parts.iter().enumerate() {
            let keep = (1u64 << bits) - 1;
            self.put_w(part, mask, &value.map(|word| (word >> (index as u32 * bits) & keep) as u32));
        }
        Ok(())
    }

    /// `set`: a test's result as a value.
    fn set(
        &mut self,
        ctx: &Context,
        (test, ftz, s): (Test, bool, [u32; 2]),
        (one, d): (u32, u32),
        with: Option<(Bool, Pred)>,
        mask: u32,
    ) -> Outcome<()> {
        let mut holds = self.test(ctx, test, ftz, s, mask)?;
        if let Some((op, p)) = with {
            holds = combine(op, holds, self.need_p(ctx, p, mask)?);
        }
        let mut out = [0; 32];
        for (lane, out) in out.iter_mut().enumerate() {
            *out = if holds >> lane & 1 != 0 { one } else { 0 };
        }
        self.put_w(d, mask, &out);
        Ok(())
    }

    /// `isspacep`.
    fn is_space(&mut self, ctx: &Context, d: u32, a: u32, space: Space, mask: u32) -> Outcome<()> {
        let mut holds = 0;
        for (lane, &address) in self.need_d(ctx, a, mask)?.iter().enumerate() {
            holds |= u32::from(window_of(address) == space) << lane;
        }
        self.put_p(d, mask, holds);
        Ok(())
    }

    fn alu(&mut self, ctx: &Context, kernel: Kernel, d: u32, s: [u32; 4], mask: u32) -> Outcome<()> {
        macro_rules! call {
            ($f:ident, $put:ident, $($need:ident $index:literal),*) => {{
                let mut out = [0; 32];
                $f(&mut out, $(self.$need(ctx, s[$index], mask)?),*);
                self.$put(d, mask, &out);
            }};
        }
        match kernel {
            Kernel::WtoW(f) => call!(f, put_w, need_w 0),
            Kernel::DtoD(f) => call!(f, put_d, need_d 0),
            Kernel::WtoD(f) => call!(f, put_d, need_w 0),
            Kernel::DtoW(f) => call!(f, put_w, need_d 0),
            Kernel::WWtoW(f) => call!(f, put_w, need_w 0, need_w 1),
            Kernel::DDtoD(f) => call!(f, put_d, need_d 0, need_d 1),
            Kernel::WWtoD(f) => call!(f, put_d, need_w 0, need_w 1),
            Kernel::DWtoD(f) => call!(f, put_d, need_d 0, need_w 1),
            Kernel::WWWtoW(f) => call!(f, put_w, need_w 0, need_w 1, need_w 2),
            Kernel::DDDtoD(f) => call!(f, put_d, need_d 0, need_d 1, need_d 2),
            Kernel::WWDtoD(f) => call!(f, put_d, need_w 0, need_w 1, need_d 2),
            Kernel::DDWtoD(f) => call!(f, put_d, need_d 0, need_d 1, need_w 2),
            Kernel::DWWtoD(f) => call!(f, put_d, need_d 0, need_w 1, need_w 2),
            Kernel::WWWWtoW(f) => call!(f, put_w, need_w 0, need_w 1, need_w 2, need_w 3),
            Kernel::DDWWtoD(f) => call!(f, put_d, need_d 0, need_d 1, need_w 2, need_w 3),
        }
        Ok(())
    }

    /// An f32 instruction: flushes subnormal operands and results under `.ftz`, clamps results under `.sat`.
    fn float(
        &mut self,
        ctx: &Context,
        kernel: Kernel,
        (ftz, sat): (bool, bool),
        d: u32,
        s: [u32; 4],
        mask: u32,
    ) -> Outcome<()> {
        let read = |slot| -> Outcome<W> {
            let value = self.need_w(ctx, slot, mask)?;
            Ok(if ftz { value.map(flush32) } else { *value })
        };
        let mut out = [0; 32];
        match kernel {
            Kernel::WtoW(f) => f(&mut out, &read(s[0])?),
            Kernel::WWtoW(f) => f(&mut out, &read(s[0])?, &read(s[1])?),
            Kernel::WWWtoW(f) => f(&mut out, &read(s[0])?, &read(s[1])?, &read(s[2])?),
            _ => unreachable!("f32 operands are words"),
        }
        if ftz {
            out = out.map(flush32);
        }
        if sat {
            out = out.map(saturate32);
        }
        self.put_w(d, mask, &out);
        Ok(())
    }

    fn test(&self, ctx: &Context, test: Test, ftz: bool, s: [u32; 2], mask: u32) -> Outcome<u32> {
        Ok(match test {
            Test::W(test) => {
                let (a, b): (&W, &W) = (self.need_w(ctx, s[0], mask)?, self.need_w(ctx, s[1], mask)?);
                if ftz { test(&a.map(flush32), &b.map(flush32)) } else { test(a, b) }
            }
            Test::D(test) => test(self.need_d(ctx, s[0], mask)?, self.need_d(ctx, s[1], mask)?),
        })
    }

    #[allow(clippy::too_many_arguments)]
    fn put_tests(
        &mut self,
        ctx: &Context,
        d: u32,
        other: Option<u32>,
        mut first: u32,
        mut second: u32,
        with: Option<(Bool, Pred)>,
        mask: u32,
    ) -> Outcome<()> {
        if let Some((op, p)) = with {
            let p = self.need_p(ctx, p, mask)?;
            (first, second) = (combine(op, first, p), combine(op, second, p));
        }
        self.put_p(d, mask, first);
        if let Some(other) = other {
            self.put_p(other, mask, second);
        }
        Ok(())
    }

    fn carry(&mut self, ctx: &Context, carry: Carry, mask: u32) -> Outcome<()> {
        let Carry { kind, wide, carry_in, carry_out, d, s } = carry;
        if carry_in && mask & !self.carry_set != 0 {
            return Err(Trap::new(FaultKind::UninitialisedRegister, mask & !self.carry_set, "the carry flag is unset"));
        }
        let reg = |slot| if wide { Reg::D(slot) } else { Reg::W(slot) };
        let (a, b) = (self.need(ctx, reg(s[0]), mask)?, self.need(ctx, reg(s[1]), mask)?);
        let three = matches!(kind, CarryKind::MadLo | CarryKind::MadHi { .. });
        let c = if three { self.need(ctx, reg(s[2]), mask)? } else { [0; 32] };
        let bits = if wide { 64 } else { 32 };
        let limit = 1u128 << bits;
        let mut out = [0; 32];
        let mut carries = 0;
        for lane in 0..32 {
            let flag = u128::from(carry_in && self.carry >> lane & 1 != 0);
            let (a, b, c) = (u128::from(a[lane]), u128::from(b[lane]), u128::from(c[lane]));
            let total = match kind {
                CarryKind::Add => a + b + flag,
                // The flag holds the borrow of a subtraction.
                CarryKind::Sub => a.wrapping_sub(b).wrapping_sub(flag),
                CarryKind::MadLo => (a * b) % limit + c + flag,
                CarryKind::MadHi { signed: false } => ((a * b) >> bits) + c + flag,
                CarryKind::MadHi { signed: true } => {
                    let extend = |x: u128| (x << (128 - bits)) as i128 >> (128 - bits);
                    (((extend(a) * extend(b)) >> bits) as u128) % limit + c + flag
                }
            };
            out[lane] = (total % limit) as u64;
            carries |= u32::from(total >= limit) << lane;
        }
        self.put(reg(d), mask, &out);
        if carry_out {
            self.carry = self.carry & !mask | carries & mask;
            self.carry_set |= mask;
        }
        Ok(())
    }
}

fn is_class(class: FloatClass, kind: std::num::FpCategory) -> bool {
    use std::num::FpCategory::*;
    match class {
        FloatClass::Finite => matches!(kind, Zero | Subnormal | Normal),
        FloatClass::Infinite => kind == Infinite,
        FloatClass::Number => kind != Nan,
        FloatClass::NotANumber => kind == Nan,
        FloatClass::Normal => kind == Normal,
        FloatClass::Subnormal => kind == Subnormal,
    }
}
