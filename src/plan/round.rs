//! Arguments of rounding.

use super::site::{Arguments, Site};
use crate::backend::args::{Floats, OpArgs, RangeTable, RoundArgs};
use crate::program::{QuantizeGrain, Round, Tensor};

impl Arguments for Round {
    fn args(&self, at: &Site<'_>) -> OpArgs<Tensor> {
        let parts = self.parts.max(1) as usize;
        // Values have no gaps, so runs of columns of a row are rows of their own.
        let runs = |f: Floats| Floats { rows: f.rows * parts, cols: f.cols / parts, ..f };
        let y = runs(at.y());
        let fixed = at.fixed(self.spec.range);
        OpArgs::Round(RoundArgs {
            x: runs(at.floats(self.x)),
            y,
            top: self.spec.top(),
            groups: match self.spec.grain {
                QuantizeGrain::Row => y.rows,
                QuantizeGrain::Sample => at.samples(),
            },
            fixed: fixed.map(|f| RangeTable { rows_per_entry: f.rows_per_entry * parts, ..f }),
            workspace: at.workspace,
        })
    }
}
