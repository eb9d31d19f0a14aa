//! Operands to slots, with the width checks of "Operand Type Conversion".

use crate::ast::Operand;
use crate::op::{Address, Pred, Reg, Slot};
use crate::program::Special;
use crate::types::{Space, Ty};

use super::{Body, Parsed};

/// What a name stands for.
pub(super) enum Named {
    Register(Ty, Slot),
    Variable(Space, u64),
    Special(Special),
}

impl Body<'_> {
    pub(super) fn new_slot(&mut self, ty: Ty, name: &str) -> Slot {
        let names = match ty.bits() {
            1 => &mut self.program.p_names,
            64 => &mut self.program.d_names,
            _ => &mut self.program.w_names,
        };
        names.push(name.to_string());
        names.len() as Slot - 1
    }

    /// A register that holds a constant.
    pub(super) fn constant(&mut self, value: u64, wide: bool) -> Slot {
        if let Some(&slot) = self.constants.get(&(wide, value)) {
            return slot;
        }
        let slot = self.new_slot(if wide { Ty::B64 } else { Ty::B32 }, "a constant");
        if wide {
            self.program.constants_d.push((slot, value));
        } else {
            self.program.constants_w.push((slot, value as u32));
        }
        self.constants.insert((wide, value), slot);
        slot
    }

    pub(super) fn named(&self, name: &str) -> Option<Named> {
        if let Some((ty, slot)) = self.find(self.scope, |scope| scope.registers.get(name).copied()) {
            return Some(Named::Register(ty, slot));
        }
        if let Some((space, at)) = self.find(self.scope, |scope| scope.variables.get(name).copied()) {
            return Some(Named::Variable(space, at));
        }
        if let Some(&at) = self.shared.get(name) {
            return Some(Named::Variable(Space::Shared, at));
        }
        if let Some(&(space, at)) = self.layout.places.get(name) {
            return Some(Named::Variable(space, at));
        }
        special(name).map(Named::Special)
    }

    fn special(&mut self, special: Special) -> Slot {
        if let Some(&slot) = self.specials.get(&special) {
            return slot;
        }
        let slot = self.new_slot(Ty::B32, "a special register");
        self.program.specials.push((slot, special));
        self.specials.insert(special, slot);
        slot
    }

    /// The slot of a source operand of exactly this type's width.
    pub(super) fn source(&mut self, operand: &Operand, ty: Ty) -> Parsed<Slot> {
        let wide = ty.bits() == 64;
        let keep = u64::MAX >> (64 - ty.bits());
        match operand {
            Operand::Name(name) => match self.named(name) {
                Some(Named::Register(have, slot)) if have.bits() == ty.bits() => Ok(slot),
                Some(Named::Register(have, _)) => {
                    self.fail(format!("{name} has {} bits, the operand {}", have.bits(), ty.bits()))
                }
                Some(Named::Variable(Space::Global, at)) if wide => {
                    let slot = self.new_slot(Ty::B64, name);
                    self.program.global_addresses.push((slot, at));
                    Ok(slot)
                }
                Some(Named::Variable(space, at)) if space != Space::Global && ty.bits() >= 32 => {
                    Ok(self.constant(at, wide))
                }
                Some(Named::Special(special)) if ty.bits() == 32 => Ok(self.special(special)),
                None if name == "WARP_SZ" => Ok(self.constant(32, wide)),
                None => self.fail(format!("{name} is not declared")),
                _ => self.fail(format!("{name} cannot be an operand of {} bits", ty.bits())),
            },
            Operand::Int(value) if !ty.is_float() || ty == Ty::F16x2 => Ok(self.constant(value & keep, wide)),
            Operand::F32(bits) if ty.bits() == 32 => Ok(self.constant(u64::from(*bits), false)),
            Operand::F32(bits) if ty == Ty::F64 => Ok(self.constant(f64::from(f32::from_bits(*bits)).to_bits(), true)),
            Operand::F64(bits) if wide => Ok(self.constant(*bits, true)),
            Operand::F64(bits) if ty == Ty::F32 => {
                Ok(self.constant(u64::from((f64::from_bits(*bits) as f32).to_bits()), false))
            }
            _ => self.fail("operand not understood"),
        }
    }

    /// The slot of a destination of exactly this type's width; `_` gets a register of its own.
    pub(super) fn dest(&mut self, operand: &Operand, ty: Ty) -> Parsed<Slot> {
        match operand {
            Operand::Name(name) if name == "_" => Ok(self.new_slot(ty, "_")),
            Operand::Name(name) => match self.named(name) {
                Some(Named::Register(have, slot)) if have.bits() == ty.bits() => Ok(slot),
                Some(Named::Register(have, _)) => {
                    self.fail(format!("{name} has {} bits, the result {}", have.bits(), ty.bits()))
                }
                _ => self.fail(format!("{name} is no register")),
            },
            _ => self.fail("the destination must be a register"),
        }
    }

    /// A register at least as wide as the type, or a constant, for the loose rules of `ld`, `st` and `cvt`.
    pub(super) fn loose(&mut self, operand: &Operand, ty: Ty, dest: bool) -> Parsed<Reg> {
        if let Operand::Name(name) = operand
            && name != "_"
        {
            match self.named(name) {
                Some(Named::Register(have, slot)) => {
                    return match have.bits() {
                        bits if bits < ty.bits() || bits < 16 => {
                            self.fail(format!("{name} has {bits} bits, the operand {}", ty.bits()))
                        }
                        16 => Ok(Reg::H(slot)),
                        32 => Ok(Reg::W(slot)),
                        _ => Ok(Reg::D(slot)),
                    };
                }
                _ if dest => return self.fail(format!("{name} is no register")),
                _ => {}
            }
        }
        let exact = if ty.bits() == 8 { Ty::B32 } else { ty };
        let slot = if dest { self.dest(operand, exact)? } else { self.source(operand, exact)? };
        Ok(match exact.bits() {
            64 => Reg::D(slot),
            32 => Reg::W(slot),
            _ => Reg::H(slot),
        })
    }

    /// A register of exactly this type's width, tagged with it.
    pub(super) fn tagged(&self, slot: Slot, ty: Ty) -> Reg {
        match ty.bits() {
            64 => Reg::D(slot),
            32 => Reg::W(slot),
            _ => Reg::H(slot),
        }
    }

    pub(super) fn predicate(&mut self, operand: &Operand) -> Parsed<Pred> {
        let (name, negated) = match operand {
            Operand::Name(name) => (name, false),
            Operand::Not(name) => (name, true),
            _ => return self.fail("expected a predicate"),
        };
        match self.named(name) {
            Some(Named::Register(Ty::Pred, slot)) => Ok(Pred { slot, negated }),
            _ => self.fail(format!("{name} is no predicate")),
        }
    }

    /// `[register + offset]`, `[variable + offset]` or `[constant]` in a space.
    pub(super) fn address(&mut self, operand: &Operand, space: Space) -> Parsed<Address> {
        let Operand::Address(base, offset) = operand else { return self.fail("expected an address") };
        match &**base {
            Operand::Int(value) => Ok(Address { space, base: None, offset: *value as i64 + offset }),
            Operand::Name(name) => match self.named(name) {
                Some(Named::Register(ty, slot)) if ty.bits() == 64 => {
                    // The parameters of a function lie in its frame, unlike those of the entry.
                    let frame = space == Space::Param && self.link.is_some();
                    let space = if frame { Space::Local } else { space };
                    Ok(Address { space, base: Some(Reg::D(slot)), offset: *offset })
                }
                Some(Named::Register(ty, slot)) if ty.bits() == 32 && space != Space::Global => {
                    Ok(Address { space, base: Some(Reg::W(slot)), offset: *offset })
                }
                Some(Named::Variable(Space::Global, _)) if matches!(space, Space::Global | Space::Generic) => {
                    let slot = self.source(base, Ty::B64)?;
                    Ok(Address { space, base: Some(Reg::D(slot)), offset: *offset })
                }
                // Frame parameters are `.param` in the text and lie in local memory.
                Some(Named::Variable(Space::Local, at)) if matches!(space, Space::Param | Space::Local) => {
                    Ok(Address { space: Space::Local, base: None, offset: at as i64 + offset })
                }
                Some(Named::Variable(have, at)) if have == space => {
                    Ok(Address { space, base: None, offset: at as i64 + offset })
                }
                Some(_) => self.fail(format!("{name} cannot address this state space")),
                None => self.fail(format!("{name} is not declared")),
            },
            _ => self.fail("address not understood"),
        }
    }

    /// The operands, which must be exactly `N`.
    pub(super) fn exactly<'b, const N: usize>(&self, operands: &'b [Operand]) -> Parsed<&'b [Operand; N]> {
        match operands.try_into() {
            Ok(array) => Ok(array),
            Err(_) => self.fail(format!("expected {N} operands, found {}", operands.len())),
        }
    }
}

/// Special registers of 32 bits.
fn special(name: &str) -> Option<Special> {
    let axis = |name: &str| match name.rsplit_once('.') {
        Some((_, "x")) => Some(0),
        Some((_, "y")) => Some(1),
        Some((_, "z")) => Some(2),
        _ => None,
    };
    let base = name.split_once('.').map_or(name, |(base, _)| base);
    Some(match base {
        "%tid" => Special::Tid(axis(name)?),
        "%ntid" => Special::Ntid(axis(name)?),
        "%ctaid" => Special::Ctaid(axis(name)?),
        "%nctaid" => Special::Nctaid(axis(name)?),
        "%laneid" => Special::LaneId,
        "%warpid" => Special::WarpId,
        "%nwarpid" => Special::NWarpId,
        "%lanemask_eq" => Special::MaskEq,
        "%lanemask_lt" => Special::MaskLt,
        "%lanemask_le" => Special::MaskLe,
        "%lanemask_ge" => Special::MaskGe,
        "%lanemask_gt" => Special::MaskGt,
        "%dynamic_smem_size" => Special::DynamicShared,
        "%total_smem_size" => Special::TotalShared,
        "%smid" => Special::Zero,
        "%nsmid" => Special::One,
        _ => return None,
    })
}
