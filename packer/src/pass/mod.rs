//! Passes over programs and weights. They see ops and tensors' attributes, never a model.
//!
//! [`sites`] tells where weights are used, [`give_biases`] makes biases to be corrected, and [`split_layers`] makes two
//! products of one; [`smoothables`] and [`fold`] move factors from activations to weights. The other passes here give
//! integer layers their codes and need programs only. A pass that reworks weights (smoothing, a
//! rotation, a split) takes the [`Weights`](crate::weight::Weights) beside the program and runs before them, between
//! [`Packing::open`](crate::emit::Packing::open) and [`Packing::write`](crate::emit::Packing::write), while every value is
//! still a float. It appends steps that cancel each other, and adds what they need with
//! [`Weights::make`](crate::weight::Weights::make).

mod assign;
mod attend;
mod biases;
mod fuse;
mod round;
mod sites;
mod smooth;
mod split;

pub use assign::{Layer, Starts, assign};
pub use attend::attend_in_codes;
pub use biases::give_biases;
pub use fuse::fuse;
pub use round::{AttentionGrid, round_attentions};
pub use sites::{End, Site, product, sites};
pub use smooth::{Fold, Obstacle, Rows, Smoothable, fold, smoothables};
pub use split::{Halves, Split, split_layers, whole_kinds};
