//! A weight on its way into the packed file: where it comes from, and what is done to it.
//!
//! A [`Weight`] has an [`Origin`] (a tensor of a checkpoint, or numbers that the packer made) and a list of [`Step`]s
//! that are applied to it in order, one weight at a time, when the file is written. Steps are recorded in META, and
//! [`unpack`](crate::unpack) inverts them from the file alone. Builders make weights; passes get the whole list,
//! [`Weights`], beside the programs: they may append steps, add weights of their own, and point ops to them.
//!
//! The walk of one weight: [`emit`](crate::emit) reads it from its origin -> [`step::apply`] -> quantize -> file; back:
//! file -> dequantize -> [`step::restore`] -> safetensors.
//!
//! What else a weight may become, and how it comes in:
//!
//! * *Smoothing* ([`pass::fold`](crate::pass::fold)) divides a channel of activations and multiplies the weight's input: a made
//!   vector of factors, a [`Step::Scale`] on what makes the activations (`divide`) and one on the layer.
//! * *Ranges of activations* by timestep are made tensors `(rows, 3)` that a `Quantize` attribute points to.
//! * *A low-rank branch*, `W = U V + rest` with the rest quantized, is two made weights `U` and `V`, two more linear
//!   layers in the program, and a step `LowRank { up, down }` that subtracts `U V` here and adds it in `unpack`. `U` and
//!   `V` follow from `W`, so making them needs an origin that is computed from another weight's elements.
//! * *An adapter merged when packing* is the same step with the other sign, its factors read from a second checkpoint.

mod list;
mod order;
mod rotate;
mod scale;
pub mod step;

pub use aquatint::raw::format::meta::{Channels, Rotation, Step};
pub use list::Weights;
pub use rotate::{signs, turn};
pub use step::{Elements, Misfit};

/// What follows the name of a layer that was split in the name of its second half, in configurations and in the file.
pub const SECOND_HALF: &str = ".weight_quantizer_0";

/// How a weight may be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// Always plain f32: biases, norm parameters, the vectors of a vector quantizer, and parameters of steps.
    Vector,
    /// Plain f16 or f32: lookup tables.
    Table,
    /// A linear layer's matrix: quantizable.
    Linear,
    /// A convolution's kernel: quantizable.
    Conv,
}

/// Where a weight's elements come from.
#[derive(Clone, Debug, PartialEq)]
pub enum Origin {
    /// A tensor of the component's checkpoint.
    Checkpoint {
        /// Its name there.
        key: String,
        /// Its axes there; four axes are `(o, i, h, w)`.
        dims: Vec<usize>,
    },
    /// The packer itself.
    Made {
        /// The name it gets, unique in its component.
        key: String,
        /// Its axes, outermost first.
        dims: Vec<usize>,
        /// Its elements, row-major.
        values: Vec<f32>,
    },
}

/// One weight of a program.
#[derive(Clone, Debug, PartialEq)]
pub struct Weight {
    /// The component that it belongs to: a folder of the model directory.
    pub component: &'static str,
    /// Where its elements come from.
    pub origin: Origin,
    /// What is done to them, in this order.
    pub steps: Vec<Step>,
    /// How it may be stored.
    pub storage: Storage,
    /// Names under which the checkpoint stores the same tensor again.
    pub copies: Vec<String>,
    /// The phase that it is made for, if it is the weight of a layer again, in the precision of another phase than the first.
    pub phase: Option<usize>,
}

impl Weight {
    /// A weight of axes `dims` from tensor `key` of the checkpoint of `component`. Four axes turn to the file's order.
    pub fn of_checkpoint(component: &'static str, key: String, dims: &[usize], storage: Storage) -> Self {
        let steps = if dims.len() == 4 { vec![Step::ToFileOrder] } else { Vec::new() };
        let origin = Origin::Checkpoint { key, dims: dims.to_vec() };
        Weight { component, origin, steps, storage, copies: Vec::new(), phase: None }
    }

    /// Its name in the checkpoint, or the one it was made with.
    pub fn key(&self) -> &str {
        match &self.origin {
            Origin::Checkpoint { key, .. } | Origin::Made { key, .. } => key,
        }
    }

    /// Its axes before any step.
    pub fn source_dims(&self) -> &[usize] {
        match &self.origin {
            Origin::Checkpoint { dims, .. } | Origin::Made { dims, .. } => dims,
        }
    }

    /// Its axes in the file: those after all steps.
    pub fn dims(&self) -> Vec<usize> {
        self.steps.iter().fold(self.source_dims().to_vec(), |dims, step| step::dims_after(step, dims))
    }

    /// Name in the file: `component/key`; of the second half of a split weight, with [`SECOND_HALF`], and of one that is made
    /// for a phase, with its number.
    pub fn name(&self) -> String {
        let suffix = &self.key()[layer_of(self.key()).len()..];
        format!("{}/{}{suffix}", self.component, self.layer_in_file())
    }

    /// The layer's module path as the file has it: with the number of the phase that it is made for.
    pub fn layer_in_file(&self) -> String {
        let phase = self.phase.map_or_else(String::new, |phase| format!(".phase_{phase}"));
        self.layer() + &phase
    }

    /// Name in the file that the weight has, or would have if it were not split.
    pub fn whole_name(&self) -> String {
        format!("{}/{}", self.component, self.key())
    }

    fn is_second_half(&self) -> bool {
        self.steps.iter().any(|step| matches!(step, Step::Split { first: 1.., .. }))
    }

    /// Whether the packer made it.
    pub fn is_made(&self) -> bool {
        matches!(self.origin, Origin::Made { .. })
    }

    /// Whether it belongs to a layer that can be quantized.
    pub fn quantizable(&self) -> bool {
        matches!(self.storage, Storage::Linear | Storage::Conv)
    }

    /// The layer's module path, as quantization configurations name it.
    pub fn layer(&self) -> String {
        let half = if self.is_second_half() { SECOND_HALF } else { "" };
        format!("{}{half}", layer_of(self.key()))
    }

    /// Module paths of the copies.
    pub fn copied_layers(&self) -> impl Iterator<Item = &str> {
        self.copies.iter().map(|key| layer_of(key))
    }

    /// Output channels and inputs per output channel.
    pub fn matrix(&self) -> (usize, usize) {
        let dims = self.dims();
        (dims[0], dims[1..].iter().product())
    }

    /// Number of elements in the file.
    pub fn len(&self) -> usize {
        self.dims().iter().product()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

fn layer_of(key: &str) -> &str {
    key.strip_suffix(".weight").unwrap_or(key)
}
