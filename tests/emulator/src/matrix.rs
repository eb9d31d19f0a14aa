//! `ldmatrix` and `mma` ("Matrix multiply-accumulate operation using mma instruction").

use crate::block::Context;
use crate::fault::{FaultKind, Outcome, Trap};
use crate::float::{bits32, half_to_f32};
use crate::op::{Address, Mma, MmaType, Reg};
use crate::stats::conflicts;
use crate::sums::{self, TensorCores};
use crate::types::{SHARED_BASE, Space};
use crate::warp::Warp;

impl Warp {
    /// `.sync.aligned`: every lane of the warp must execute the instruction together.
    fn need_whole(&self, mask: u32) -> Outcome<()> {
        if mask == u32::MAX {
            return Ok(());
        }
        let message = format!("an .aligned instruction is executed by the lanes {mask:#010x} only");
        Err(Trap::new(FaultKind::PartialWarp, mask, message))
    }

    /// `ldmatrix.sync.aligned.m8n8.xN{.trans}.shared.b16`: lane 8i+r gives the address of row r of matrix i; lane l
    /// receives of each matrix the elements 2(l%4) and the next of row l/4, of the transpose with `.trans`.
    pub fn load_matrix(
        &mut self,
        ctx: &mut Context,
        address: Address,
        count: u32,
        transposed: bool,
        d: [u32; 4],
        mask: u32,
    ) -> Outcome<()> {
        self.need_whole(mask)?;
        let senders = if count == 4 { u32::MAX } else { (1 << (count * 8)) - 1 };
        let offset = address.offset as u64;
        let base = match address.base {
            Some(reg) => self.need(ctx, reg, senders)?,
            None => [0; 32],
        };
        let narrow = matches!(address.base, Some(Reg::W(_)));
        for (matrix, &d) in d[..count as usize].iter().enumerate() {
            let mut rows = [[0; 16]; 8];
            let mut starts = [0; 8];
            for (row, bytes) in rows.iter_mut().enumerate() {
                let lane = matrix * 8 + row;
                let mut at = base[lane].wrapping_add(offset);
                if narrow {
                    at &= 0xffff_ffff;
                }
                if address.space == Space::Generic {
                    at = at.wrapping_sub(SHARED_BASE);
                }
                if at % 16 != 0 {
                    let message = "a matrix row must start at a multiple of 16 bytes";
                    return Err(Trap::at(FaultKind::Misaligned, 1 << lane, at, message));
                }
                starts[row] = at;
                *bytes = ctx.shared.load_row(at, &ctx.order, self.index as u32).map_err(|mut trap| {
                    trap.lanes = 1 << lane;
                    trap
                })?;
            }
            ctx.stats.matrix_loads.actual += u64::from(conflicts(starts.into_iter(), 16));
            ctx.stats.matrix_loads.ideal += 1;
            let half = |row: usize, column: usize| {
                u32::from(u16::from_le_bytes([rows[row][column * 2], rows[row][column * 2 + 1]]))
            };
            let out = std::array::from_fn(|lane| {
                let (row, column) = (lane / 4, lane % 4 * 2);
                if transposed {
                    half(column, row) | half(column + 1, row) << 16
                } else {
                    half(row, column) | half(row, column + 1) << 16
                }
            });
            self.put_w(d, mask, &out);
        }
        Ok(())
    }

    /// `mma.sync.aligned.m16n8kK.row.col`. Register r of A holds, for lane 4g+t and E elements per register, row
    /// g + 8(r%2) and columns 4E(r/2) + tE onwards; register r of B rows 4Er + tE onwards of column g; registers of C
    /// and D the columns 2t and 2t+1 of rows g and g+8.
    ///
    /// Floats are added as tensor cores add them (`sums.rs`).
    pub fn multiply_matrix(&mut self, ctx: &mut Context, product: u32, mask: u32) -> Outcome<()> {
        self.need_whole(mask)?;
        let mma = ctx.program.products[product as usize];
        let mut c = [[0; 32]; 4];
        for (values, &slot) in c.iter_mut().zip(&mma.c) {
            *values = *self.need_w(ctx, slot, mask)?;
        }
        let (a, b) = self.fragments(ctx, &mma, mask)?;
        // Results by row and column.
        let mut results = [[0u32; 8]; 16];
        for (element, at) in (0..128).map(|index| (index % 4, index / 4)) {
            results[at / 4 + element / 2 * 8][at % 4 * 2 + element % 2] = c[element][at];
        }
        match mma.ty {
            MmaType::Int8 { a_signed, b_signed, saturate } => {
                let widen =
                    |bytes: &[u8; 32], signed| bytes.map(|byte| if signed { byte as i8 as i16 } else { byte.into() });
                let b = b.map(|bytes| widen(&bytes, b_signed));
                for (row, results) in a.iter().zip(&mut results) {
                    let row = widen(row, a_signed);
                    for (column, result) in b.iter().zip(results) {
                        let sum: i32 = row.iter().zip(column).map(|(&a, &b)| i32::from(a) * i32::from(b)).sum();
                        let exact = i64::from(*result as i32) + i64::from(sum);
                        let clamped = exact.clamp(i32::MIN.into(), i32::MAX.into());
                        *result = (if saturate { clamped } else { exact }) as u32;
                    }
                }
            }
            MmaType::F16 => {
                let (a, b) = (a.map(|row| halves(&row)), b.map(|column| halves(&column)));
                add_floats(ctx.cores, (8, -14), [&a, &b], mma.k, &mut results);
            }
            MmaType::Tf32 => {
                let (a, b) = (a.map(|row| truncated(&row)), b.map(|column| truncated(&column)));
                add_floats(ctx.cores, (4, -126), [&a, &b], mma.k, &mut results);
            }
        }
        let mut d = [[0; 32]; 4];
        for (element, at) in (0..128).map(|index| (index % 4, index / 4)) {
            d[element][at] = results[at / 4 + element / 2 * 8][at % 4 * 2 + element % 2];
        }
        for (values, &slot) in d.iter().zip(&mma.d) {
            self.put_w(slot, mask, values);
        }
        Ok(())
    }

    /// The bytes of the rows of A and of the columns of B, zero beyond K: a register is 4 bytes of a row, whatever the
    /// element type.
    #[allow(clippy::type_complexity)]
    fn fragments(&self, ctx: &Context, mma: &Mma, mask: u32) -> Outcome<([[u8; 32]; 16], [[u8; 32]; 8])> {
        let (mut a, mut b) = ([[0; 32]; 16], [[0; 32]; 8]);
        for register in 0..mma.registers() * 2 {
            let words = self.need_w(ctx, mma.a[register], mask)?;
            for (lane, word) in words.iter().enumerate() {
                let start = register / 2 * 16 + lane % 4 * 4;
                a[lane / 4 + register % 2 * 8][start..start + 4].copy_from_slice(&word.to_le_bytes());
            }
        }
        for register in 0..mma.registers() {
            let words = self.need_w(ctx, mma.b[register], mask)?;
            for (lane, word) in words.iter().enumerate() {
                let start = register * 16 + lane % 4 * 4;
                b[lane / 4][start..start + 4].copy_from_slice(&word.to_le_bytes());
            }
        }
        Ok((a, b))
    }
}

fn halves(bytes: &[u8; 32]) -> [f32; 16] {
    std::array::from_fn(|k| half_to_f32(u16::from_le_bytes([bytes[k * 2], bytes[k * 2 + 1]])))
}

/// tf32 operands: the low 13 bits of the f32 are ignored.
fn truncated(bytes: &[u8; 32]) -> [f32; 16] {
    std::array::from_fn(|k| match bytes.get(k * 4..k * 4 + 4) {
        Some(word) => f32::from_bits(u32::from_le_bytes([word[0], word[1], word[2], word[3]]) & 0xffff_e000),
        None => 0.0,
    })
}

/// Adds products to results; a group of so many, of a type with no exponent below `least`.
fn add_floats(
    cores: TensorCores,
    (group, least): (usize, i16),
    factors: [&[[f32; 16]]; 2],
    k: u32,
    results: &mut [[u32; 8]; 16],
) {
    let mut sums = results.map(|row| row.map(f32::from_bits));
    sums::multiply(cores, group, least, factors, k as usize, &mut sums);
    *results = sums.map(|row| row.map(bits32));
}
