//! What is seen in pictures: whether they show what was asked for, and how their features are spread.

mod captions;
mod classifier;
mod colours;
mod frechet;
mod inception_score;
mod kernel;
mod reference;
mod scorer;

pub use captions::{Attributes, Captions, STYLES};
pub use classifier::Classifier;
pub use colours::{COLOURS, Colours, read_colours};
pub use frechet::{Gaussian, Spread, bias};
pub use inception_score::Probabilities;
pub use kernel::{KernelReference, SUBSET, SUBSETS};
pub use reference::Reference;
pub use scorer::{Asked, Mark, Scorer, Texts};

/// Letters that captions name: A to Z.
const LETTERS: usize = 26;
