//! Looking at the nodes of a call.

use super::Executor;
use super::issue::issue;
use crate::backend::Backend;
use crate::backend::args::{Codes, Element, Input, OpArgs};
use crate::error::Result;
use crate::plan::Planned;
use crate::program::Rate;
use half::f16;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

/// A node that has just run, to be looked at: for calibration, traces and profiles.
pub struct Seen<'a, 'm, B: Backend> {
    /// Index of the node in the program.
    pub node: usize,
    /// How often the node runs. One of [`Rate::Step`] works on the rows of a whole row of calls.
    pub rate: Rate,
    /// The node's op.
    pub op: &'a OpArgs<B::Weight<'m>>,
    backend: &'a B,
    arena: &'a B::Arena,
    row: usize,
}

/// Codes as an op left them, with what is needed to read them: `x = scale * (q - zero)`.
pub struct SeenCodes {
    /// One per element, row by row.
    pub codes: Vec<u8>,
    /// Per group of rows.
    pub scale: Vec<f32>,
    /// Per group of rows.
    pub zero: Vec<f32>,
}

impl<B: Backend> Seen<'_, '_, B> {
    /// The elements of an operand or of the result of [`op`](Self::op), row by row as f32; codes as what they stand for.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) if the device fails.
    pub fn values(&self, of: &Input) -> Result<Vec<f32>> {
        match of {
            Input::Floats(x) if x.element == Element::F32 => self.read(x.slot.of(self.row), x.rows * x.cols),
            Input::Floats(x) => {
                let halves: Vec<f16> = self.read(x.slot.of(self.row), x.rows * x.cols)?;
                Ok(halves.into_iter().map(f16::to_f32).collect())
            }
            Input::Codes(x) => {
                let SeenCodes { codes, scale, zero } = self.codes(x)?;
                let group = |i: usize| i / x.cols / (x.rows / x.groups);
                let value = |(i, &q): (usize, &u8)| scale[group(i)] * (f32::from(q) - zero[group(i)]);
                Ok(codes.iter().enumerate().map(value).collect())
            }
        }
    }

    /// The codes `of` an operand or result.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) if the device fails.
    pub fn codes(&self, of: &Codes) -> Result<SeenCodes> {
        let at = of.slot.of(self.row);
        let mut codes: Vec<u8> = Vec::with_capacity(of.rows * of.cols);
        let padded: Vec<u8> = self.read(at, of.rows * of.stride())?;
        padded.chunks_exact(of.stride()).for_each(|row| codes.extend_from_slice(&row[..of.cols]));
        let (scale, zero) = (self.read(at + of.scale_at(), of.groups)?, self.read(at + of.zero_at(), of.groups)?);
        Ok(SeenCodes { codes, scale, zero })
    }

    fn read<T: FromZeros + FromBytes + IntoBytes>(&self, at: usize, len: usize) -> Result<Vec<T>> {
        let mut out: Vec<T> = (0..len).map(|_| T::new_zeroed()).collect();
        self.backend.read_bytes(self.arena, at, out.as_mut_slice().as_mut_bytes())?;
        Ok(out)
    }
}

impl<'m, B: Backend> Executor<'m, B> {
    /// Like [`call`](Self::call), showing each node to `see` when it is done; on the CPU all of them with
    /// [`node_by_node`](crate::backend::cpu::Cpu::node_by_node), else without those whose codes a product makes. What a call shares with others is worked out
    /// again before it and shown too: first what depends on shapes, then what on the prompt, then the window of tables.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) if the device fails, and those of `see`, which end the call.
    pub fn observe(&mut self, call: usize, mut see: impl FnMut(Seen<'_, 'm, B>) -> Result<()>) -> Result<()> {
        let call = self.open(call)?;
        self.backend.begin(&mut self.arena, call)?;
        for (rate, ops) in
            [Rate::Bind, Rate::Prompt, Rate::Step, Rate::Loop].into_iter().zip(&self.phases[self.phase].ops)
        {
            for &Planned { node, ref op } in ops {
                issue(self.backend, &mut self.arena, op);
                self.backend.wait()?;
                // Only the loop reads one call's part of a window.
                let row = if rate == Rate::Loop { call.row } else { 0 };
                see(Seen { node, rate, op, backend: self.backend, arena: &self.arena, row })?;
            }
        }
        Ok(())
    }
}
