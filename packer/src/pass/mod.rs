//! Passes over programs. They see ops and tensors' attributes, never a model.

mod assign;
mod fuse;

pub use assign::assign;
pub use fuse::fuse;
