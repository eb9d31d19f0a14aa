//! How long the nodes of a call take.

use super::Executor;
use super::issue::issue;
use crate::backend::args::OpArgs;
use crate::backend::{Backend, Clock};
use crate::error::Result;
use crate::plan::Planned;
use crate::program::Rate;

/// A node, and how long it took.
pub struct Timed<'a, 'm, B: Backend> {
    /// Index of the node in the program.
    pub node: usize,
    /// The node's op.
    pub op: &'a OpArgs<B::Weight<'m>>,
    /// How long it took: on a device by its own clock, with what lies between two marks of the stream.
    pub seconds: f64,
}

impl<'m, B: Backend> Executor<'m, B> {
    /// Runs [`call`](Self::call) and shows how long each node of the loop took. Nothing is waited for in between: that
    /// would take longer than most nodes on a device. `ahead` calls are issued before the one that is timed, so that a
    /// device always has work queued when a node is done. Returns the seconds between two marks with nothing between
    /// them, which are part of every node's.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) if the device fails.
    pub fn time(
        &mut self,
        call: usize,
        ahead: usize,
        clock: Clock,
        mut see: impl FnMut(Timed<'_, 'm, B>),
    ) -> Result<f64> {
        let call = self.open(call)?;
        let nodes = self.phases[self.phase].ops[Rate::Loop as usize].len();
        // Made before, because making one takes as long as issuing an op.
        let mut marks = (0..nodes + 2).map(|_| self.backend.mark(clock)).collect::<Result<Vec<_>>>()?;
        self.backend.begin(&mut self.arena, call)?;
        for _ in 0..ahead {
            self.run(Rate::Loop);
        }
        let (first, rest) = marks.split_at_mut(2);
        for mark in first {
            self.backend.move_mark(mark, clock)?;
        }
        let ops = &self.phases[self.phase].ops[Rate::Loop as usize];
        for (Planned { op, .. }, mark) in ops.iter().zip(rest) {
            issue(self.backend, &mut self.arena, op);
            self.backend.move_mark(mark, clock)?;
        }
        self.backend.wait()?;
        for (&Planned { node, ref op }, pair) in ops.iter().zip(marks[1..].windows(2)) {
            see(Timed { node, op, seconds: self.backend.between(&pair[0], &pair[1])? });
        }
        self.backend.between(&marks[0], &marks[1])
    }
}
