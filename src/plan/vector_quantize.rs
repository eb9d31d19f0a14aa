//! Arguments of vector quantization.

use super::site::{Arguments, Site};
use crate::backend::args::{OpArgs, VectorQuantizeArgs};
use crate::program::{Tensor, VectorQuantize};

impl Arguments for VectorQuantize {
    fn args(&self, at: &Site<'_>) -> OpArgs<Tensor> {
        let args = VectorQuantizeArgs { x: at.floats(self.x), y: at.y() };
        OpArgs::VectorQuantize { args, table: self.table }
    }
}
