//! Passes over programs. They see ops and tensors' attributes, never a model.

mod assign;
mod attend;
mod fuse;

pub use assign::assign;
pub use attend::attend_in_codes;
pub use fuse::fuse;
