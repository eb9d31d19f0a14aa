//! Attention whose probabilities are rounded to a grid.
//!
//! The step of a grid is a part of the highest probability of a query, or is given; either way a code needs the total of all
//! weights before the first is rounded. So there are two walks over the keys: one for the highest score and the total, one
//! for codes and their sum. With weights `w = exp(score - highest)`, of which the greatest is 1, and their total `t`, a
//! probability `w / t` has the code `round(w f)`: of a step `(1 / t) / top`, the part of the highest, `f` is `top`; of a
//! step `delta` it is `1 / (t delta)`.

use super::{Head, KEYS, Rows, Sizes, Soften, complete, finish};
use crate::backend::cpu::math::{exp, lesser};
use crate::backend::cpu::quantize::{ROUND, Range};
use crate::backend::cpu::simd::{GROUP, Isa, vectorized};
use crate::backend::cpu::sink::Sink;

/// The grid of one sample.
#[derive(Clone, Copy)]
pub(super) struct Grid {
    /// The highest code.
    top: f32,
    /// The step, if it is given.
    delta: Option<f32>,
}

impl Grid {
    /// Of codes of `bits`, with the step of `range`.
    pub(super) fn new(bits: u8, range: Option<Range>) -> Self {
        Grid { top: ((1u32 << bits) - 1) as f32, delta: range.map(|range| range.scale) }
    }

    /// What weights are multiplied by before they are rounded, if they sum to `total`.
    fn factor(self, total: f32) -> f32 {
        self.delta.map_or(self.top, |delta| 1.0 / (total * delta))
    }

    /// What a code is worth.
    fn unit(self, total: f32) -> f32 {
        self.delta.unwrap_or_else(|| 1.0 / (total * self.top))
    }
}

impl<I: Isa> Head<'_, I> {
    /// Queries whose probabilities go on `grid`.
    pub(super) fn run_on_grid(&self, grid: Grid, sizes: &Sizes, memory: &mut [f32], to: Rows<'_, impl Sink>) {
        let wide = self.e.next_multiple_of(GROUP);
        let (rows, column) = (to.tile.rows.clone(), to.tile.cols.start);
        let states_of =
            |q0: usize, count: usize| (q0 - rows.start) * (wide + 2)..(q0 - rows.start + count) * (wide + 2);
        let (sums, mut work) = self.start(sizes, memory);
        self.each(rows.clone(), column, work.again(), |part| {
            let states = sums[states_of(part.q0, part.count)].chunks_exact_mut(wide + 2);
            for (query, (row, state)) in (part.q0..).zip(part.scores.chunks_exact_mut(KEYS).zip(states)) {
                // The weighted values are 0 yet and stay so.
                let seen = &mut row[..self.seen(query, part.first, part.n)];
                let bias = self.bias_of(query, part.first, seen.len());
                self.isa.run(Soften, (seen, self.scale, bias, state, wide));
            }
        });
        self.each(rows.clone(), column, work, |part| {
            let states = &mut sums[states_of(part.q0, part.count)];
            let queries = part.scores.chunks_exact_mut(KEYS).zip(states.chunks_exact(wide + 2));
            for (query, (row, state)) in (part.q0..).zip(queries) {
                let (seen, hidden) = row[..part.n].split_at_mut(self.seen(query, part.first, part.n));
                let (highest, factor) = (state[wide], grid.factor(state[wide + 1]));
                let bias = self.bias_of(query, part.first, seen.len());
                self.isa.run(Codes, (seen, [self.scale, highest, factor, grid.top], bias));
                hidden.fill(0.0);
            }
            self.weigh(part, states);
        });
        finish(to, sums, wide, |state| grid.unit(state[wide + 1]));
    }
}

vectorized! {
    /// Turns a query's scores into the codes of their probabilities, as floats.
    fn Codes<'a, I>(scores: &'a mut [f32], of_query: [f32; 4], bias: Option<&'a [f32]>) {
        let [scale, highest, factor, top] = of_query;
        complete(scores, scale, bias);
        for s in scores.iter_mut() {
            let weight = exp::<I>(*s - highest);
            *s = lesser(weight * factor, top) + ROUND - ROUND;
        }
    }
}
