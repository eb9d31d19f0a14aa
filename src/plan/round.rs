//! Arguments of rounding.

use super::site::{Arguments, Site};
use crate::backend::args::{OpArgs, RangeTable, RoundArgs};
use crate::program::{QuantizeGrain, Round, Tensor};

impl Arguments for Round {
    fn args(&self, at: &Site<'_>) -> OpArgs<Tensor> {
        let parts = self.parts.max(1) as usize;
        let y = at.y().in_parts(parts);
        let fixed = at.fixed(self.spec.range);
        OpArgs::Round(RoundArgs {
            x: at.floats(self.x).in_parts(parts),
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
