//! Where weights come from.

use aquatint::Result;

/// Tensors by the names that their authors gave them.
pub trait Weights {
    /// Whether there is a tensor of this name.
    fn has(&self, name: &str) -> bool;

    /// The values, row-major and finite, of the tensor of this name, which must have these axes.
    ///
    /// # Errors
    /// [`aquatint::Error::Request`] that names file and tensor, if it is missing or another.
    fn shaped(&self, name: &str, dims: &[usize]) -> Result<Vec<f32>>;
}
