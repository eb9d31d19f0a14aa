//! Arguments of rotary position embedding.

use super::site::{Arguments, Site};
use crate::backend::args::{OpArgs, RotaryArgs};
use crate::program::{Rotary, Tensor};

impl Arguments for Rotary {
    fn args(&self, at: &Site<'_>) -> OpArgs<Tensor> {
        OpArgs::Rotary(RotaryArgs { x: at.floats(self.x), table: at.floats(self.table), y: at.y() })
    }
}
