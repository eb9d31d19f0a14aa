//! "Control Flow Instructions", barriers and instructions that exchange values within a warp.

use crate::ast::{Instruction, Operand};
use crate::op::{AtomOp, BarKind, Barrier, CallSite, Collective, FrameCopy, NOWHERE, Op, Shuffle, Slot, Vote};
use crate::types::{Space, Ty};

use super::modifiers::Modifiers;
use super::operands::Named;
use super::{Body, Fixup, Parsed, Place};

impl Body<'_> {
    pub(super) fn control(&mut self, ins: &Instruction, mods: &mut Modifiers, ops: &[Operand]) -> Parsed<Op> {
        match ins.opcode.as_str() {
            "bra" => {
                mods.take("uni");
                let [Operand::Name(label)] = self.exactly(ops)? else { return self.fail("expected a label") };
                self.fix(label, Place::Branch(self.program.insts.len() as u32));
                Ok(Op::Branch { target: 0, meet: NOWHERE })
            }
            "brx" => {
                mods.need(&[("idx", ())])?;
                mods.take("uni");
                let [index, Operand::Name(name)] = self.exactly(ops)? else { return self.fail("expected a table") };
                let index = self.source(index, Ty::U32)?;
                let Some(labels) = self.find(self.scope, |scope| scope.tables.get(name).cloned()) else {
                    return self.fail(format!("there are no branch targets {name}"));
                };
                let table = self.program.tables.len();
                self.program.tables.push(vec![0; labels.len()]);
                for (at, label) in labels.iter().enumerate() {
                    self.fix(label, Place::Table(table, at));
                }
                Ok(Op::BranchTable { index, table: table as u32, meet: NOWHERE })
            }
            "call" => self.call(mods, ops),
            "ret" => {
                mods.take("uni");
                Ok(self.leave())
            }
            "exit" => Ok(Op::Exit),
            "trap" => Ok(Op::Trap),
            "membar" => {
                mods.need(&[("cta", ()), ("gl", ()), ("sys", ()), ("gpu", ())])?;
                Ok(Op::Nop)
            }
            "fence" => {
                mods.take_all(&["sc", "acq_rel"]);
                mods.need(&[("cta", ()), ("gpu", ()), ("sys", ())])?;
                Ok(Op::Nop)
            }
            "nanosleep" => {
                mods.ty()?;
                Ok(Op::Nop)
            }
            "activemask" => {
                mods.ty()?;
                let [d] = self.exactly(ops)?;
                Ok(Op::ActiveMask { d: self.dest(d, Ty::B32)? })
            }
            "bar" | "barrier" => self.barrier(&ins.opcode, mods, ops),
            _ => self.exchange(&ins.opcode, mods, ops),
        }
    }

    fn fix(&mut self, label: &str, place: Place) {
        self.fixups.push(Fixup { scope: self.scope, label: label.to_string(), line: self.line, place });
    }

    /// `call (results), function, (params)`: the values lie in frame parameters.
    fn call(&mut self, mods: &mut Modifiers, ops: &[Operand]) -> Parsed<Op> {
        mods.take("uni");
        let none = Vec::new();
        let (results, name, params) = match ops {
            [Operand::List(results), Operand::Name(name), Operand::List(params)] => (results, name, params),
            [Operand::List(results), Operand::Name(name)] => (results, name, &none),
            [Operand::Name(name), Operand::List(params)] => (&none, name, params),
            [Operand::Name(name)] => (&none, name, &none),
            _ => return self.fail("call not understood"),
        };
        self.reach(name)?;
        let callee = &self.callees[name];
        let (link, into, out_of) = (callee.link, callee.params.clone(), callee.results.clone());
        let given = self.frames(params)?;
        let wanted = self.frames(results)?;
        if given.len() != into.len() || wanted.len() != out_of.len() {
            return self.fail(format!("call of {name} with the wrong number of parameters"));
        }
        let arguments = given.iter().zip(&into).map(|(&from, &(to, bytes))| FrameCopy { from, to, bytes }).collect();
        let back = wanted.iter().zip(&out_of).map(|(&to, &(from, bytes))| FrameCopy { from, to, bytes }).collect();
        self.calls.push((self.program.calls.len(), name.clone()));
        self.program.calls.push(CallSite { target: 0, link, arguments });
        self.program.copies.push(back);
        Ok(Op::Call(self.program.calls.len() as u32 - 1))
    }

    fn frames(&self, operands: &[Operand]) -> Parsed<Vec<u32>> {
        let place = |operand: &Operand| match operand {
            Operand::Name(name) => match self.named(name) {
                Some(Named::Variable(Space::Local, at)) => Ok(at as u32),
                _ => self.fail(format!("{name} is no frame parameter")),
            },
            _ => self.fail("expected a frame parameter"),
        };
        operands.iter().map(place).collect()
    }

    /// Behind a call, its results are copied into the frame of the caller.
    pub(super) fn after_call(&mut self) -> Parsed<()> {
        let copies = self.program.copies.len() as u32 - 1;
        self.push(Op::FrameCopies(copies), "call (results)", (self.line, "(results of the call)".to_string()));
        Ok(())
    }

    fn barrier(&mut self, opcode: &str, mods: &mut Modifiers, ops: &[Operand]) -> Parsed<Op> {
        if opcode == "bar" && mods.take("warp") {
            mods.need(&[("sync", ())])?;
            let [mask] = self.exactly(ops)?;
            let mask = self.source(mask, Ty::B32)?;
            return Ok(self.collective(Collective::Sync, mask));
        }
        mods.take("cta");
        let aligned = mods.take("aligned") || opcode == "bar";
        let kinds = [("sync", BarKind::Sync), ("arrive", BarKind::Arrive), ("red", BarKind::RedPopc)];
        let mut kind = mods.need(&kinds)?;
        let mut operands = ops.iter();
        let mut d = 0;
        let mut p = None;
        if kind == BarKind::RedPopc {
            kind = mods.need(&[("popc", BarKind::RedPopc), ("and", BarKind::RedAnd), ("or", BarKind::RedOr)])?;
            let ty = mods.ty()?;
            if ty.bits() != if kind == BarKind::RedPopc { 32 } else { 1 } {
                return self.fail("the reduction has no such type");
            }
            let (Some(first), Some(last)) = (operands.next(), operands.next_back()) else {
                return self.fail("a reduction needs a destination and a predicate");
            };
            d = self.dest(first, ty)?;
            p = Some(self.predicate(last)?);
        }
        let Some(id) = operands.next() else { return self.fail("a barrier needs a number") };
        let id = self.source(id, Ty::U32)?;
        let count = match operands.next() {
            Some(count) => Some(self.source(count, Ty::U32)?),
            None => None,
        };
        if operands.next().is_some() || kind == BarKind::Arrive && count.is_none() {
            return self.fail("wrong number of operands");
        }
        self.program.barriers.push(Barrier { kind, aligned, id, count, p, d });
        Ok(Op::Barrier(self.program.barriers.len() as u32 - 1))
    }

    fn collective(&mut self, what: Collective, mask: Slot) -> Op {
        self.program.collectives.push(what);
        Op::Collective { what: self.program.collectives.len() as u32 - 1, mask }
    }

    /// `d|p` or `d`.
    fn with_predicate(&mut self, operand: &Operand, ty: Ty) -> Parsed<(Slot, Option<Slot>)> {
        match operand {
            Operand::Pair(d, p) => {
                let d = self.dest(&Operand::Name(d.clone()), ty)?;
                Ok((d, Some(self.dest(&Operand::Name(p.clone()), Ty::Pred)?)))
            }
            single => Ok((self.dest(single, ty)?, None)),
        }
    }

    fn exchange(&mut self, opcode: &str, mods: &mut Modifiers, ops: &[Operand]) -> Parsed<Op> {
        mods.need(&[("sync", ())])?;
        let (what, mask) = match opcode {
            "shfl" => {
                let mode = mods.need(&[
                    ("up", Shuffle::Up),
                    ("down", Shuffle::Down),
                    ("bfly", Shuffle::Bfly),
                    ("idx", Shuffle::Idx),
                ])?;
                mods.need(&[("b32", ())])?;
                let [d, a, b, c, mask] = self.exactly(ops)?;
                let (d, valid) = self.with_predicate(d, Ty::B32)?;
                let a = self.source(a, Ty::B32)?;
                let (b, c) = (self.source(b, Ty::B32)?, self.source(c, Ty::B32)?);
                (Collective::Shuffle { mode, d, valid, a, b, c }, mask)
            }
            "vote" => {
                let mode =
                    mods.need(&[("all", Vote::All), ("any", Vote::Any), ("uni", Vote::Uni), ("ballot", Vote::Ballot)])?;
                let ty = mods.ty()?;
                if ty != if mode == Vote::Ballot { Ty::B32 } else { Ty::Pred } {
                    return self.fail("vote has no such type");
                }
                let [d, p, mask] = self.exactly(ops)?;
                (Collective::Vote { mode, d: self.dest(d, ty)?, p: self.predicate(p)? }, mask)
            }
            "match" => {
                let all = mods.need(&[("any", false), ("all", true)])?;
                let ty = mods.ty()?;
                if !matches!(ty, Ty::B32 | Ty::B64) {
                    return self.fail("match has no such type");
                }
                let [d, a, mask] = self.exactly(ops)?;
                let (d, valid) = self.with_predicate(d, Ty::B32)?;
                if valid.is_some() && !all {
                    return self.fail("match.any has no predicate");
                }
                let a = self.source(a, ty)?;
                (Collective::Match { all, d, valid, a: self.tagged(a, ty) }, mask)
            }
            _ => {
                let op = mods.need(&[
                    ("add", AtomOp::Add),
                    ("min", AtomOp::Min),
                    ("max", AtomOp::Max),
                    ("and", AtomOp::And),
                    ("or", AtomOp::Or),
                    ("xor", AtomOp::Xor),
                ])?;
                let ty = mods.ty()?;
                let logic = matches!(op, AtomOp::And | AtomOp::Or | AtomOp::Xor);
                if ty.bits() != 32 || ty.is_float() || logic != (ty == Ty::B32) {
                    return self.fail("redux has no such type");
                }
                let [d, a, mask] = self.exactly(ops)?;
                let (d, a) = (self.dest(d, ty)?, self.source(a, ty)?);
                (Collective::Redux { op, signed: ty.is_signed(), d, a }, mask)
            }
        };
        let mask = self.source(mask, Ty::B32)?;
        Ok(self.collective(what, mask))
    }
}
