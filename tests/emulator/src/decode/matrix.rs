//! `ldmatrix` and `mma`.

use crate::ast::Operand;
use crate::op::{Mma, MmaType, Op};
use crate::types::{Space, Ty};

use super::modifiers::Modifiers;
use super::{Body, Parsed};

impl Body<'_> {
    pub(super) fn matrix(&mut self, opcode: &str, mods: &mut Modifiers, ops: &[Operand]) -> Parsed<Op> {
        mods.need(&[("sync", ())])?;
        mods.need(&[("aligned", ())])?;
        if opcode == "mma" {
            return self.mma(mods, ops);
        }
        mods.need(&[("m8n8", ())])?;
        let count = mods.need(&[("x1", 1), ("x2", 2), ("x4", 4)])?;
        let transposed = mods.take("trans");
        let generic = mods.one_of(&[("shared", ()), ("shared::cta", ())]).is_none();
        mods.need(&[("b16", ())])?;
        let [d, address] = self.exactly(ops)?;
        let address = self.address(address, if generic { Space::Generic } else { Space::Shared })?;
        let mut slots = [0; 4];
        self.fragment(d, &mut slots[..count as usize], true)?;
        Ok(Op::LoadMatrix { address, count, transposed, d: slots })
    }

    fn fragment(&mut self, operand: &Operand, slots: &mut [u32], dest: bool) -> Parsed<()> {
        let single = std::slice::from_ref(operand);
        let list = match operand {
            Operand::Vector(list) => list.as_slice(),
            _ => single,
        };
        if list.len() != slots.len() {
            return self.fail(format!("expected a fragment of {} registers", slots.len()));
        }
        for (slot, operand) in slots.iter_mut().zip(list) {
            let known = !matches!(operand, Operand::Int(_));
            let ty = if known { Ty::B32 } else { Ty::S32 };
            *slot = if dest { self.dest(operand, ty)? } else { self.source(operand, ty)? };
        }
        Ok(())
    }

    fn mma(&mut self, mods: &mut Modifiers, ops: &[Operand]) -> Parsed<Op> {
        let k = mods.need(&[("m16n8k32", 32), ("m16n8k16", 16), ("m16n8k8", 8), ("m16n8k4", 4)])?;
        mods.need(&[("row", ())])?;
        mods.need(&[("col", ())])?;
        let saturate = mods.take("satfinite");
        let (ty, per) = if mods.take("tf32") {
            mods.need(&[("tf32", ())])?;
            self.accumulators(mods, Ty::F32)?;
            (MmaType::Tf32, 1)
        } else {
            let types = [mods.ty()?, mods.ty()?, mods.ty()?, mods.ty()?];
            match types {
                [Ty::F32, Ty::F16, Ty::F16, Ty::F32] => (MmaType::F16, 2),
                [Ty::S32, a @ (Ty::S8 | Ty::U8), b @ (Ty::S8 | Ty::U8), Ty::S32] => {
                    (MmaType::Int8 { a_signed: a.is_signed(), b_signed: b.is_signed(), saturate }, 4)
                }
                _ => return self.fail(format!("mma of the types {types:?} is not understood")),
            }
        };
        let fits = match per {
            1 => matches!(k, 4 | 8),
            2 => matches!(k, 8 | 16),
            _ => matches!(k, 16 | 32),
        };
        if !fits || saturate && per != 4 {
            return self.fail(format!("mma of {ty:?} with k = {k} is not understood"));
        }
        let [d, a, b, c] = self.exactly(ops)?;
        let mut mma = Mma { ty, k, d: [0; 4], a: [0; 4], b: [0; 2], c: [0; 4] };
        let registers = mma.registers();
        self.fragment(d, &mut mma.d, true)?;
        self.fragment(a, &mut mma.a[..registers * 2], false)?;
        self.fragment(b, &mut mma.b[..registers], false)?;
        self.fragment(c, &mut mma.c, false)?;
        self.program.products.push(mma);
        Ok(Op::MultiplyMatrix(self.program.products.len() as u32 - 1))
    }

    fn accumulators(&self, mods: &mut Modifiers, ty: Ty) -> Parsed<()> {
        for _ in 0..2 {
            if mods.ty()? != ty {
                return self.fail("mma accumulators have another type");
            }
        }
        Ok(())
    }
}
