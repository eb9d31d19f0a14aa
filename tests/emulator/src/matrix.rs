//! `ldmatrix` and `mma` ("Matrix multiply-accumulate operation using mma instruction").

use crate::block::Context;
use crate::fault::{FaultKind, Outcome, Trap};
use crate::float::{bits32, half_to_f32};
use crate::kernels::W;
use crate::op::{Address, Mma, MmaType, Reg};
use crate::stats::conflicts;
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
        for matrix in 0..count as usize {
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
            self.put_w(d[matrix], mask, &out);
        }
        Ok(())
    }

    /// `mma.sync.aligned.m16n8kK.row.col`. Register r of A holds, for lane 4g+t and E elements per register, row
    /// g + 8(r%2) and columns 4E(r/2) + tE onwards; register r of B rows 4Er + tE onwards of column g; registers of C
    /// and D the columns 2t and 2t+1 of rows g and g+8.
    ///
    /// Products are exact and added to the accumulator in f32 in ascending k; hardware adds in another order and
    /// precision, so that the last bits may differ.
    pub fn multiply_matrix(&mut self, ctx: &mut Context, product: u32, mask: u32) -> Outcome<()> {
        self.need_whole(mask)?;
        let mma = ctx.program.products[product as usize];
        let mut c = [[0; 32]; 4];
        for (values, &slot) in c.iter_mut().zip(&mma.c) {
            *values = *self.need_w(ctx, slot, mask)?;
        }
        let d = match mma.ty {
            MmaType::Int8 { a_signed, b_signed, saturate } => {
                let convert = |signed: bool| move |byte: u32| if signed { byte as i8 as i16 } else { byte as u8 as i16 };
                let (a, b) = self.fragments(ctx, &mma, 4, convert(a_signed), convert(b_signed), mask)?;
                accumulate(&c, |row, column, c| {
                    let mut sum = 0i32;
                    for k in 0..mma.k as usize {
                        sum += i32::from(a[row][k]) * i32::from(b[column][k]);
                    }
                    let exact = i64::from(c as i32) + i64::from(sum);
                    let clamped = exact.clamp(i32::MIN.into(), i32::MAX.into());
                    (if saturate { clamped } else { exact }) as u32
                })
            }
            MmaType::F16 => {
                let convert = |half: u32| half_to_f32(half as u16);
                let (a, b) = self.fragments(ctx, &mma, 2, convert, convert, mask)?;
                accumulate(&c, |row, column, c| dot(&a[row], &b[column], mma.k, c))
            }
            MmaType::Tf32 => {
                let convert = |word: u32| f32::from_bits(word & 0xffff_e000);
                let (a, b) = self.fragments(ctx, &mma, 1, convert, convert, mask)?;
                accumulate(&c, |row, column, c| dot(&a[row], &b[column], mma.k, c))
            }
        };
        for (values, &slot) in d.iter().zip(&mma.d) {
            self.put_w(slot, mask, values);
        }
        Ok(())
    }

    /// The rows of A and the columns of B from their fragments of `per` elements a register.
    #[allow(clippy::type_complexity)]
    fn fragments<T: Copy + Default>(
        &self,
        ctx: &Context,
        mma: &Mma,
        per: usize,
        of_a: impl Fn(u32) -> T,
        of_b: impl Fn(u32) -> T,
        mask: u32,
    ) -> Outcome<([[T; 32]; 16], [[T; 32]; 8])> {
        let (mut a, mut b) = ([[T::default(); 32]; 16], [[T::default(); 32]; 8]);
        let bits = 32 / per as u32;
        let registers = mma.k as usize / (4 * per);
        for register in 0..registers * 2 {
            let words = self.need_w(ctx, mma.a[register], mask)?;
            for (lane, &word) in words.iter().enumerate() {
                let row = &mut a[lane / 4 + register % 2 * 8];
                let start = register / 2 * 4 * per + lane % 4 * per;
                for element in 0..per {
                    row[start + element] = of_a(word >> (element as u32 * bits));
                }
            }
        }
        for register in 0..registers {
            let words = self.need_w(ctx, mma.b[register], mask)?;
            for (lane, &word) in words.iter().enumerate() {
                let start = register * 4 * per + lane % 4 * per;
                for element in 0..per {
                    b[lane / 4][start + element] = of_b(word >> (element as u32 * bits));
                }
            }
        }
        Ok((a, b))
    }
}

fn dot(a: &[f32; 32], b: &[f32; 32], k: u32, c: u32) -> u32 {
    let mut sum = f32::from_bits(c);
    for k in 0..k as usize {
        sum += a[k] * b[k];
    }
    bits32(sum)
}

/// Fills the fragments of D from those of C.
fn accumulate(c: &[W; 4], element: impl Fn(usize, usize, u32) -> u32) -> [W; 4] {
    std::array::from_fn(|register| {
        std::array::from_fn(|lane| {
            let (row, column) = (lane / 4 + register / 2 * 8, lane % 4 * 2 + register % 2);
            element(row, column, c[register][lane])
        })
    })
}
