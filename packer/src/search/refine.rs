//! Moves from an assignment to better ones, measured.

use super::problem::Problem;
use super::trials::Meter;
use crate::error::Result;

/// What moves led to.
#[derive(Clone, Debug, PartialEq)]
pub struct Refined {
    /// The assignment.
    pub assignment: Vec<usize>,
    /// Its measured error.
    pub error: f64,
    /// The measured error that it began with.
    pub before: f64,
    /// Moves that were taken, and that were tried.
    pub moves: [usize; 2],
}

/// Tries `count` moves from `assignment`: one layer gets a larger choice, another one a smaller, the file stays within `budget` bytes.
/// Those that are expected to cost least go first, each once. A move is taken if the measured error falls at one half of the images and at the other.
///
/// # Errors
/// If a configuration cannot be measured.
pub fn refine(
    (problem, meter): (&Problem, &Meter<'_>),
    assignment: &[usize],
    budget: u64,
    count: usize,
    see: &mut dyn FnMut(usize),
) -> Result<Refined> {
    let mut current = assignment.to_vec();
    let mut errors = meter.errors(&current)?;
    let before = mean(&errors);
    let mut moves = [0, 0];
    let mut tried: Vec<Vec<usize>> = vec![current.clone()];
    while moves[1] < count {
        let Some(next) = best(problem, &current, budget, &tried) else { break };
        let found = meter.errors(&next)?;
        let better = halves(&found).iter().zip(halves(&errors)).all(|(new, old)| *new < old);
        tried.push(next.clone());
        moves[1] += 1;
        if better {
            (current, errors) = (next, found);
            moves[0] += 1;
        }
        see(moves[1]);
    }
    Ok(Refined { assignment: current, error: mean(&errors), before, moves })
}

/// The assignment, of those not tried, that one layer's larger choice and another's smaller lead to, of the least expected error.
fn best(problem: &Problem, from: &[usize], budget: u64, tried: &[Vec<usize>]) -> Option<Vec<usize>> {
    let spare = budget as i128 - i128::from(problem.bytes(from));
    // Of each layer, choices with what they change.
    let steps: Vec<Step> = problem
        .layers
        .iter()
        .enumerate()
        .flat_map(|(at, layer)| {
            let change = move |&to: &usize| Step {
                at,
                to,
                bytes: i128::from(layer.bytes[to]) - i128::from(layer.bytes[from[at]]),
                error: layer.errors[to] - layer.errors[from[at]],
            };
            layer.allowed.iter().filter(move |&&to| to != from[at]).map(change)
        })
        .collect();
    let mut pairs: Vec<(f64, &Step, &Step)> = Vec::new();
    for up in steps.iter().filter(|step| step.bytes > 0) {
        for down in steps.iter().filter(|step| step.bytes <= 0 && step.at != up.at) {
            if up.bytes + down.bytes <= spare {
                pairs.push((up.error + down.error, up, down));
            }
        }
    }
    pairs.sort_by(|a, b| a.0.total_cmp(&b.0));
    let moved = |(_, up, down): (f64, &Step, &Step)| {
        let mut next = from.to_vec();
        (next[up.at], next[down.at]) = (up.to, down.to);
        next
    };
    pairs.into_iter().map(moved).find(|next| !tried.contains(next))
}

/// Another choice of a layer.
struct Step {
    at: usize,
    to: usize,
    bytes: i128,
    error: f64,
}

fn mean(errors: &[f64]) -> f64 {
    errors.iter().sum::<f64>() / errors.len().max(1) as f64
}

/// The means of images by turns; of a single image twice its own.
fn halves(errors: &[f64]) -> [f64; 2] {
    let half = |first: usize| mean(&errors.iter().copied().skip(first).step_by(2).collect::<Vec<_>>());
    if errors.len() < 2 { [mean(errors); 2] } else { [half(0), half(1)] }
}
