//! UniPC of order 2 with B(h) = exp(-h) - 1, "bh2" (Zhao et al., arXiv 2302.04867), predicting x0, as diffusers'
//! scheduling_unipc_multistep.py has it.
//!
//! A step from ratio s to s' (see `dpm.rs`) has a predictor, `x' = (sigma' / sigma) x - alpha' B (-x0 + D / 2)`, with D
//! the difference to the x0 before, and a corrector that comes with the next call: knowing x0 at s', it takes the same
//! step again with weights that make it exact to one order more. So each call first corrects the latents that it was
//! given, then predicts on from the corrected ones, and both are linear in what is known.
//! States: 1 the corrected latents of the call before, 2 and 3 the x0 of the two calls before.

use super::config::Config;
use super::levels::{self, split};
use super::{COLUMNS, Table, X0};
use crate::error::Result;

/// Columns of the corrected latents and the x0 of the call before, and the x0 before that.
const LAST: usize = 1;
const BEFORE: usize = 2;
const SECOND: usize = 3;

/// The rows of UniPC of order 1 (three states) or 2 (four states), from call `begin` on.
pub(super) fn table(config: &Config, steps: usize, begin: usize) -> Result<Table> {
    let levels = levels::solver(config, steps)?;
    let sigmas = &levels.sigmas;
    let order = |i: usize| match config.lower_order_final {
        true => config.solver_order.min(steps - i).min(i - begin + 1),
        false => config.solver_order.min(i - begin + 1),
    };
    let row = |(i, &t): (usize, &f32)| {
        let mut row = levels::solver_row(config, t, sigmas[i]);
        // The corrected latents, as weights of the columns; at the first call there is nothing to correct.
        let mut latents = [0.0; COLUMNS];
        match i - begin {
            0 => latents[0] = 1.0,
            _ => correct(&mut latents, &sigmas[..=i], order(i - 1)),
        }
        let (s, next) = (sigmas[i], sigmas[i + 1]);
        let scale = split(next).1 / split(s).1;
        let b = split(next).0 * (next / s - 1.0);
        let mut predicted = latents.map(|c| c * scale);
        predicted[X0] -= b;
        if order(i) == 2 {
            let difference = b * 0.5 / ((s / sigmas[i - 1]).ln() / (s / next).ln());
            predicted[BEFORE] -= difference;
            predicted[X0] += difference;
        }
        row.next[0] = predicted.map(|c| c as f32);
        row.next[LAST] = latents.map(|c| c as f32);
        row.next[BEFORE][X0] = 1.0;
        if config.solver_order == 2 && i > begin {
            row.next[SECOND][BEFORE] = 1.0;
        }
        row
    };
    Ok(Table::new(levels.timesteps.iter().enumerate().skip(begin).map(row).collect(), config.solver_order + 2))
}

/// The weights of the latents at the last of `sigmas`, corrected with the x0 there: a step of `order` from the level
/// before.
fn correct(to: &mut [f64; COLUMNS], sigmas: &[f64], order: usize) {
    let n = sigmas.len();
    let (s, next) = (sigmas[n - 2], sigmas[n - 1]);
    let h = (s / next).ln();
    let b = next / s - 1.0;
    // -phi_2 and phi_3 of the paper times their factorials, over B.
    let first = b / -h - 1.0;
    let second = first / -h - 0.5;
    let (first, second) = (first / b, 2.0 * second / b);
    let alpha = split(next).0;
    to[LAST] = split(next).1 / split(s).1;
    to[BEFORE] = -alpha * b;
    // Weight of the newest difference, x0 - the x0 before.
    let mut newest = 0.5;
    if order == 2 {
        let r = (s / sigmas[n - 3]).ln() / h;
        let older = (first - second) / (1.0 - r);
        newest = first - older;
        to[SECOND] -= alpha * b * older / r;
        to[BEFORE] += alpha * b * older / r;
    }
    to[X0] -= alpha * b * newest;
    to[BEFORE] += alpha * b * newest;
}
