//! "Data Movement and Conversion Instructions" and atomics.

use crate::ast::Operand;
use crate::kernels::kern;
use crate::op::{Access, Address, Atom, AtomOp, Op, Reg};
use crate::types::{CONST_BASE, LOCAL_BASE, PARAM_BASE, SHARED_BASE, Space, Ty};

use super::modifiers::Modifiers;
use super::operands::Named;
use super::{Body, Parsed};

const SPACES: [(&str, Space); 8] = [
    ("global", Space::Global),
    ("shared", Space::Shared),
    ("shared::cta", Space::Shared),
    ("local", Space::Local),
    ("const", Space::Const),
    ("param", Space::Param),
    ("param::entry", Space::Param),
    ("param::func", Space::Param),
];
const HINTS: [&str; 16] = [
    "ca",
    "cg",
    "cs",
    "lu",
    "cv",
    "wb",
    "wt",
    "weak",
    "volatile",
    "L1::evict_normal",
    "L1::evict_unchanged",
    "L1::evict_first",
    "L1::evict_last",
    "L1::no_allocate",
    "L2::128B",
    "L2::256B",
];

impl Body<'_> {
    pub(super) fn data(&mut self, opcode: &str, mods: &mut Modifiers, ops: &[Operand]) -> Parsed<Op> {
        match opcode {
            "mov" => self.mov(mods, ops),
            "ld" | "ldu" | "st" => self.access(opcode, mods, ops),
            "cvta" => self.cvta(mods, ops),
            "isspacep" => {
                let space = mods.need(&SPACES)?;
                let [d, a] = self.exactly(ops)?;
                Ok(Op::IsSpace { d: self.dest(d, Ty::Pred)?, a: self.source(a, Ty::B64)?, space })
            }
            "atom" | "red" => self.atom(opcode == "atom", mods, ops),
            "cp" => self.copy(mods, ops),
            _ => {
                mods.take_all(&["global", "local", "L1", "L2", "L2::evict_last", "L2::evict_normal"]);
                let [address] = self.exactly(ops)?;
                self.address(address, Space::Generic)?;
                Ok(Op::Nop)
            }
        }
    }

    fn mov(&mut self, mods: &mut Modifiers, ops: &[Operand]) -> Parsed<Op> {
        let ty = mods.ty()?;
        let [d, a] = self.exactly(ops)?;
        if ty == Ty::Pred {
            let d = self.dest(d, ty)?;
            return Ok(match a {
                Operand::Int(value) => Op::PredConst { d, value: *value != 0 },
                _ => Op::PredMov { d, a: self.predicate(a)? },
            });
        }
        if ty.bits() < 16 {
            return self.fail("mov has no such type");
        }
        match (d, a) {
            (Operand::Vector(parts), _) => {
                let (parts, count, bits) = self.parts(parts, ty, true)?;
                let a = self.source(a, ty)?;
                return Ok(Op::Unpack { a: self.tagged(a, ty), parts, count, bits });
            }
            (_, Operand::Vector(parts)) => {
                let (parts, count, bits) = self.parts(parts, ty, false)?;
                let d = self.dest(d, ty)?;
                return Ok(Op::Pack { d: self.tagged(d, ty), parts, count, bits });
            }
            (_, Operand::Name(name)) => {
                let clock = match name.as_str() {
                    "%clock" | "%clock_hi" => Some(32),
                    "%clock64" | "%globaltimer" => Some(64),
                    _ => None,
                };
                if let Some(bits) = clock {
                    if bits != ty.bits() {
                        return self.fail(format!("{name} has {bits} bits"));
                    }
                    let d = self.dest(d, ty)?;
                    return Ok(Op::Clock { d: self.tagged(d, ty) });
                }
            }
            (_, Operand::Address(base, offset)) => {
                return self.fail(format!("mov of an address expression {base:?} + {offset}"));
            }
            _ => {}
        }
        let raw = if ty.is_float() && !matches!(a, Operand::F32(_) | Operand::F64(_)) { untyped(ty) } else { ty };
        if ty.bits() == 64 {
            self.alu(kern!(DtoD(x: u64 as u64) -> u64 as u64 { x }), ty, &[raw], ops)
        } else {
            self.alu(kern!(WtoW(x: u32 as u32) -> u32 as u32 { x }), ty, &[raw], ops)
        }
    }

    /// The parts of a packed or unpacked value, and the bits of each.
    fn parts(&mut self, parts: &[Operand], ty: Ty, dest: bool) -> Parsed<([u32; 4], u32, u32)> {
        let bits = match (ty.bits(), parts.len()) {
            (32, 2) | (64, 4) => 16,
            (64, 2) => 32,
            _ => return self.fail("a mov between these widths is not understood"),
        };
        let part = if bits == 16 { Ty::B16 } else { Ty::B32 };
        let mut slots = [0; 4];
        for (slot, operand) in slots.iter_mut().zip(parts) {
            *slot = if dest { self.dest(operand, part)? } else { self.source(operand, part)? };
        }
        Ok((slots, parts.len() as u32, bits))
    }

    fn access(&mut self, opcode: &str, mods: &mut Modifiers, ops: &[Operand]) -> Parsed<Op> {
        let load = opcode != "st";
        let space = mods.one_of(&SPACES).unwrap_or(Space::Generic);
        let read_only = load && mods.take("nc") || opcode == "ldu";
        mods.take_all(&HINTS);
        let count = mods.one_of(&[("v2", 2), ("v4", 4)]).unwrap_or(1);
        let ty = mods.ty()?;
        if matches!(ty, Ty::Pred | Ty::F16 | Ty::F16x2) || ty.bytes() * count > 16 {
            return self.fail(format!("{opcode} has no such type"));
        }
        if read_only && space != Space::Global && space != Space::Generic {
            return self.fail(".nc is for global memory");
        }
        let [first, second] = self.exactly(ops)?;
        let (value, place) = if load { (first, second) } else { (second, first) };
        let address = self.address(place, space)?;
        let single = std::slice::from_ref(value);
        let values = match value {
            Operand::Vector(values) => values.as_slice(),
            _ => single,
        };
        if values.len() != count as usize {
            return self.fail(format!("expected {count} values, found {}", values.len()));
        }
        let mut regs = [Reg::W(0); 4];
        for (reg, operand) in regs.iter_mut().zip(values) {
            *reg = self.loose(operand, ty, load)?;
        }
        self.program.accesses.push(Access {
            address,
            bytes: ty.bytes(),
            count,
            signed: load && ty.is_signed(),
            read_only,
            regs,
        });
        let index = self.program.accesses.len() as u32 - 1;
        Ok(if load { Op::Load(index) } else { Op::Store(index) })
    }

    fn cvta(&mut self, mods: &mut Modifiers, ops: &[Operand]) -> Parsed<Op> {
        let to = mods.take("to");
        let space = mods.need(&SPACES)?;
        let ty = mods.ty()?;
        if ty != Ty::U64 {
            return self.fail("addresses have 64 bits");
        }
        let [d, a] = self.exactly(ops)?;
        if let Operand::Name(name) = a
            && let Some(Named::Variable(have, _)) = self.named(name)
            && have != space
        {
            return self.fail(format!("{name} is not in this state space"));
        }
        let base = match space {
            Space::Shared => SHARED_BASE,
            Space::Local => LOCAL_BASE,
            Space::Const => CONST_BASE,
            Space::Param => PARAM_BASE,
            Space::Global | Space::Generic => 0,
        };
        let (d, a) = (self.dest(d, ty)?, self.source(a, ty)?);
        Ok(Op::Window { d: Reg::D(d), a: Reg::D(a), base, to })
    }

    fn atom(&mut self, returns: bool, mods: &mut Modifiers, ops: &[Operand]) -> Parsed<Op> {
        mods.take_all(&["relaxed", "acquire", "release", "acq_rel", "cta", "gpu", "sys", "noftz"]);
        let space = mods.one_of(&SPACES).unwrap_or(Space::Generic);
        let op = mods.need(&[
            ("add", AtomOp::Add),
            ("min", AtomOp::Min),
            ("max", AtomOp::Max),
            ("and", AtomOp::And),
            ("or", AtomOp::Or),
            ("xor", AtomOp::Xor),
            ("exch", AtomOp::Exch),
            ("cas", AtomOp::Cas),
            ("inc", AtomOp::Inc),
            ("dec", AtomOp::Dec),
        ])?;
        let ty = mods.ty()?;
        let bits = matches!(ty, Ty::B32 | Ty::B64);
        let fits = match op {
            AtomOp::Add => ty.is_int() && ty.bits() >= 32 || ty.is_float(),
            AtomOp::Min | AtomOp::Max => ty.is_int() && ty.bits() >= 32,
            AtomOp::Inc | AtomOp::Dec => ty == Ty::U32,
            AtomOp::Cas => bits || ty == Ty::B16,
            _ => bits,
        };
        if !fits {
            return self.fail(format!("{op:?} has no type {ty:?}"));
        }
        let (d, rest) =
            if returns { ops.split_first().map_or((None, ops), |(d, rest)| (Some(d), rest)) } else { (None, ops) };
        let wanted = if op == AtomOp::Cas { 3 } else { 2 };
        if rest.len() != wanted {
            return self.fail("wrong number of operands");
        }
        let address = self.address(&rest[0], space)?;
        let b = self.source(&rest[1], ty)?;
        let c = self.source(&rest[wanted - 1], ty)?;
        let (b, c) = (self.tagged(b, ty), self.tagged(c, ty));
        let old = match d {
            Some(d) => {
                let slot = self.dest(d, ty)?;
                Some(self.tagged(slot, ty))
            }
            None => None,
        };
        self.program.atoms.push(Atom { op, ty, address, old, b, c });
        Ok(Op::Atomic(self.program.atoms.len() as u32 - 1))
    }

    /// `cp.async` in its non-bulk forms.
    fn copy(&mut self, mods: &mut Modifiers, ops: &[Operand]) -> Parsed<Op> {
        if !mods.take("async") {
            return self.fail("only cp.async is understood");
        }
        if mods.take("commit_group") {
            let [] = self.exactly(ops)?;
            return Ok(Op::AsyncCommit);
        }
        if mods.take("wait_all") {
            let [] = self.exactly(ops)?;
            return Ok(Op::AsyncWait(u32::MAX));
        }
        if mods.take("wait_group") {
            let [Operand::Int(count)] = self.exactly(ops)? else { return self.fail("expected a constant") };
            return Ok(Op::AsyncWait(*count as u32));
        }
        let global_only = mods.need(&[("ca", false), ("cg", true)])?;
        mods.need(&[("shared", ()), ("shared::cta", ())])?;
        mods.need(&[("global", ())])?;
        mods.take_all(&["L2::64B", "L2::128B", "L2::256B"]);
        let (Some(Operand::Int(bytes)), 3..=4) = (ops.get(2), ops.len()) else {
            return self.fail("cp.async needs two addresses, a constant size and at most a source size");
        };
        if !matches!(bytes, 4 | 8 | 16) || global_only && *bytes != 16 {
            return self.fail(format!("cp.async cannot copy {bytes} bytes so"));
        }
        let to: Address = self.address(&ops[0], Space::Shared)?;
        let from = self.address(&ops[1], Space::Global)?;
        let source_bytes = match ops.get(3) {
            Some(size) => Some(self.source(size, Ty::U32)?),
            None => None,
        };
        Ok(Op::AsyncCopy { to, from, bytes: *bytes as u32, source_bytes })
    }
}

fn untyped(ty: Ty) -> Ty {
    match ty.bits() {
        64 => Ty::B64,
        32 => Ty::B32,
        _ => Ty::B16,
    }
}
