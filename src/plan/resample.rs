//! Arguments of resampling.

use super::site::{Arguments, Site};
use crate::backend::args::{OpArgs, ResampleArgs};
use crate::program::{Resample, Tensor};

impl Arguments for Resample {
    fn args(&self, at: &Site<'_>) -> OpArgs<Tensor> {
        let Resample { x, how } = *self;
        let (height, width) = at.pixels(x);
        OpArgs::Resample(ResampleArgs { x: at.floats(x), y: at.y(), samples: at.samples(), height, width, how })
    }
}
