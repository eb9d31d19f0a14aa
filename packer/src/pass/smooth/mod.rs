//! Smoothing: factors per channel move from a value to the layers that read it (SmoothQuant §4).
//!
//! `x W^T = (x / s) (s W)^T`: channels of activations that are much larger than others, and spoil the codes of all, get smaller,
//! and the columns of weights that multiply them larger. Dividing costs nothing where it can be folded into what makes
//! the value:
//!
//! ```text
//! norm, affine and perhaps modulated     weight and bias of the norm, and the rows that make the shift
//! plain linear layer                     its rows and bias
//! attention of values of such a layer    the rows and bias of that layer
//! gated linear unit                      the rows and bias of values, not of gates
//! ```
//!
//! A modulated norm, `(n w + b) (1 + scale) + shift`, is divided by its own weight, so that scales stay as they are; one that has no
//! weight gets one. [`smoothables`] finds the values, [`fold`] moves the factors: everything is a step of a weight, which
//! [`unpack`](crate::unpack) undoes.

mod find;
#[cfg(test)]
mod tests;

pub use find::smoothables;

use crate::weight::{Channels, Step, Weights};
use aquatint::raw::program::{LayerNorm, Op, Program, Tensor, Value};
use std::collections::BTreeMap;
use std::fmt;

/// A value that layers multiply by their weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Smoothable {
    /// Which of the programs has it.
    pub program: usize,
    /// The value.
    pub value: Value,
    /// Its channels: inputs of the layers, or of one tap of them.
    pub channels: usize,
    /// Weights of the layers that read it, in the program's order.
    pub layers: Vec<Tensor>,
    /// Where factors go that it is to be divided by, or why there is no such place.
    pub fold: Result<Fold, Obstacle>,
}

/// What a value can be divided by factors in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fold {
    /// The norm that makes it.
    Norm {
        /// Its node.
        node: usize,
        /// The linear layer that makes its shift, and the first of the rows that do.
        shift: Option<(Rows, usize)>,
    },
    /// Rows of a layer: one per channel.
    Rows(Rows),
    /// Even rows of a gated linear layer: one per channel.
    EvenRows(Rows),
}

/// A layer whose rows are divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rows {
    /// Its weight.
    pub weight: Tensor,
    /// Its bias.
    pub bias: Option<Tensor>,
}

/// Why factors cannot be folded into what makes a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// What makes it does more than scale its channels.
    Producer(&'static str),
    /// Something else reads it, too.
    Reader(&'static str),
    /// A weight is used elsewhere, too.
    Shared,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Obstacle::Producer(op) => write!(f, "factors do not pass through {op}"),
            Obstacle::Reader(op) => write!(f, "{op} reads it, too"),
            Obstacle::Shared => f.write_str("a weight is used elsewhere, too"),
        }
    }
}

impl Fold {
    /// The layer whose rows are divided, if there is one.
    pub fn rows(&self) -> Option<Rows> {
        match *self {
            Fold::Norm { shift, .. } => shift.map(|(rows, _)| rows),
            Fold::Rows(rows) | Fold::EvenRows(rows) => Some(rows),
        }
    }
}

/// Divides values by factors, one per channel, in what makes them, and multiplies the columns of the layers that read them. What the
/// programs compute changes by rounding only.
///
/// # Panics
/// If a value has no [`Fold`], or not as many factors as channels.
pub fn fold(programs: &mut [Program], weights: &mut Weights, smoothed: &[(Smoothable, Vec<f32>)]) {
    // Several values may divide rows of one layer: all factors of its rows are one vector.
    let mut rows: BTreeMap<Tensor, (Rows, Vec<f32>)> = BTreeMap::new();
    for (site, factors) in smoothed {
        let (Ok(place), true) = (site.fold, factors.len() == site.channels) else {
            panic!("{} factors for {site:?}", factors.len());
        };
        let first = &weights[site.layers[0]];
        let (component, key) = (first.component, format!("{}.smoothing", first.layer()));
        let by = weights.make(component, key, &[site.channels], factors.clone());
        let by = weights[by].name();
        for &layer in &site.layers {
            weights[layer].steps.push(Step::Scale { channels: Channels::Input, by: by.clone(), divide: false });
        }
        if let Fold::Norm { node, .. } = place {
            for tensor in norm_tensors(&mut programs[site.program], node, weights, (component, site.channels)) {
                weights[tensor].steps.push(Step::Scale { channels: Channels::Output, by: by.clone(), divide: true });
            }
        }
        let (at, stride) = match place {
            Fold::Norm { shift, .. } => (shift.map_or(0, |(_, first)| first), 1),
            Fold::Rows(_) => (0, 1),
            Fold::EvenRows(_) => (0, 2),
        };
        if let Some(layer) = place.rows() {
            let count = weights[layer.weight].matrix().0;
            let (_, divisors) = rows.entry(layer.weight).or_insert_with(|| (layer, vec![1.0; count]));
            divisors[at..].iter_mut().step_by(stride).zip(factors).for_each(|(divisor, factor)| *divisor *= factor);
        }
    }
    for (Rows { weight, bias }, divisors) in rows.into_values() {
        let layer = &weights[weight];
        let (component, key) = (layer.component, format!("{}.smoothing_rows", layer.layer()));
        let by = weights.make(component, key, &[divisors.len()], divisors);
        let by = weights[by].name();
        for tensor in [weight].into_iter().chain(bias) {
            weights[tensor].steps.push(Step::Scale { channels: Channels::Output, by: by.clone(), divide: true });
        }
    }
}

/// Weight and bias of the norm at `node`; one that has no weight gets one of ones.
fn norm_tensors(
    program: &mut Program,
    node: usize,
    weights: &mut Weights,
    (component, channels): (&'static str, usize),
) -> Vec<Tensor> {
    let node = &mut program.nodes[node];
    match &mut node.op {
        Op::LayerNorm(LayerNorm { weight, bias, .. }) => {
            let weight = *weight.get_or_insert_with(|| {
                weights.make(component, format!("{}.weight", node.path), &[channels], vec![1.0; channels])
            });
            [weight].into_iter().chain(*bias).collect()
        }
        Op::GroupNorm(norm) => vec![norm.weight, norm.bias],
        other => panic!("{} is no norm", other.name()),
    }
}
