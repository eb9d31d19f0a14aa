//! The float network whose layers are quantized.

use crate::pass::give_biases;
use crate::reverse::Array;
use crate::weight::{Storage, Weight, Weights};
use aquatint::Result;
use aquatint::error::Error;
use aquatint::raw::format::{Packed, TensorKind, TensorView};
use aquatint::raw::mmap::FileBytes;
use aquatint::raw::program::shape::TensorType;
use aquatint::raw::program::{Program, Role, Tensor};
use std::collections::BTreeSet;

/// The denoiser of a packed file of floats, every layer that becomes codes with a bias.
pub(super) struct Network<'m> {
    packed: &'m Packed<FileBytes>,
    /// Its program.
    pub(super) program: Program,
    /// Its tensors, those that biases were made of included.
    weights: Weights,
    /// Per tensor, the bias that belongs to it alone.
    bias_of: Vec<Option<Tensor>>,
}

impl<'m> Network<'m> {
    /// The denoiser of `packed`, of which layers that are `coded` become codes.
    ///
    /// # Errors
    /// If the file has none.
    pub(super) fn new(packed: &'m Packed<FileBytes>, coded: &dyn Fn(&str) -> bool) -> Result<Self> {
        let mut program = packed.program(Role::Denoiser)?.clone();
        // Of the weights that packing lowers only names and sizes count here.
        let weight = |name: &str, dims: &[usize]| Weight::of_checkpoint("", name.to_owned(), dims, Storage::Vector);
        let mut weights: Weights = packed.tensors().iter().map(|t| weight(&t.name, &t.dims)).collect();
        let names: BTreeSet<usize> =
            packed.tensors().iter().enumerate().filter(|(_, t)| coded(&t.name)).map(|(i, _)| i).collect();
        let bias_of =
            give_biases(std::slice::from_mut(&mut program), &mut weights, &|Tensor(i)| names.contains(&(i as usize)));
        Ok(Network { packed, program, weights, bias_of })
    }

    /// The tensors of the program that are called so.
    pub(super) fn tensors(&self, named: &dyn Fn(&str) -> bool) -> Vec<Tensor> {
        let used: BTreeSet<Tensor> = self.program.nodes.iter().flat_map(|node| node.op.tensors()).collect();
        let of_file = used.into_iter().filter(|t| (t.0 as usize) < self.packed.tensors().len());
        of_file.filter(|&t| named(self.name(t))).collect()
    }

    /// The name of a tensor of the file.
    pub(super) fn name(&self, tensor: Tensor) -> &str {
        &self.packed.tensors()[tensor.0 as usize].name
    }

    /// The types of all tensors.
    pub(super) fn types(&self) -> Vec<TensorType> {
        let made = self.weights.iter().skip(self.packed.tensors().len());
        let made = made.map(|bias| TensorKind::F32.ty(&bias.dims()));
        self.packed.tensors().iter().map(|tensor| tensor.ty()).chain(made).collect()
    }

    /// The bias that belongs to a weight alone.
    pub(super) fn bias_of(&self, weight: Tensor) -> Option<Tensor> {
        self.bias_of.get(weight.0 as usize).copied().flatten()
    }

    /// The numbers of a tensor; zeros of a bias that there was none of.
    ///
    /// # Errors
    /// If the file has it in another form.
    pub(super) fn array(&self, tensor: Tensor) -> Result<Array> {
        let index = tensor.0 as usize;
        if index >= self.packed.tensors().len() {
            return Ok(Array::zeros(&self.weights[tensor].dims()));
        }
        match self.packed.tensor(index) {
            TensorView::F32(values) => Ok(Array::new(&self.packed.tensors()[index].dims, values.to_vec())),
            TensorView::F16(_) | TensorView::Codes(_) => Err(Error::request(self.name(tensor), "f32", "others")),
        }
    }
}
