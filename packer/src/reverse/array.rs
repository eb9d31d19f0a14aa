//! Arrays, and derivatives that are added up.

use aquatint::raw::program::{Tensor, Value};
use ndarray::ArrayView2;
use std::collections::{BTreeMap, BTreeSet};

/// Numbers with axes, row-major; a matrix of as many columns as the last axis has.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    /// Axes, outermost first, one at least.
    pub dims: Vec<usize>,
    /// As many as the axes say.
    pub values: Vec<f32>,
}

/// Values of a program.
pub type Values = BTreeMap<Value, Array>;

impl Array {
    /// An array of these axes.
    ///
    /// # Panics
    /// If there are no axes, or not as many values as they say.
    pub fn new(dims: &[usize], values: Vec<f32>) -> Self {
        assert!(!dims.is_empty() && dims.iter().product::<usize>() == values.len(), "{dims:?} of {}", values.len());
        Array { dims: dims.to_vec(), values }
    }

    /// Zeros.
    pub fn zeros(dims: &[usize]) -> Self {
        Array::new(dims, vec![0.0; dims.iter().product()])
    }

    /// Length of the last axis.
    pub fn cols(&self) -> usize {
        self.dims[self.dims.len() - 1]
    }

    /// Product of all axes but the last.
    pub fn rows(&self) -> usize {
        self.dims[..self.dims.len() - 1].iter().product()
    }

    /// As a matrix.
    pub(super) fn view(&self) -> ArrayView2<'_, f32> {
        matrix(&self.values, self.rows(), self.cols())
    }

    /// A weight as a matrix: a row per output channel.
    pub(super) fn weight(&self) -> ArrayView2<'_, f32> {
        matrix(&self.values, self.dims[0], self.dims[1..].iter().product())
    }

    /// The same axes but for the last, which has length `cols`.
    pub(super) fn dims_with(&self, cols: usize) -> Vec<usize> {
        let mut dims = self.dims.clone();
        dims[self.dims.len() - 1] = cols;
        dims
    }

    /// Those of the samples, which the first axis counts, in this order; repetition is allowed.
    ///
    /// # Panics
    /// If there is no such sample.
    pub fn samples(&self, which: &[usize]) -> Array {
        let len = self.values.len() / self.dims[0];
        let mut dims = self.dims.clone();
        dims[0] = which.len();
        Array { dims, values: which.iter().flat_map(|&i| &self.values[i * len..(i + 1) * len]).copied().collect() }
    }
}

/// `values` as a matrix.
pub(super) fn matrix(values: &[f32], rows: usize, cols: usize) -> ArrayView2<'_, f32> {
    ArrayView2::from_shape((rows, cols), values).expect("as many values as entries")
}

/// Derivatives of a loss, by what they are with respect to.
#[derive(Debug)]
pub struct Cotangents {
    values: Values,
    tensors: BTreeMap<Tensor, Vec<f32>>,
    needed: BTreeSet<Value>,
    wanted: BTreeSet<Tensor>,
}

impl Cotangents {
    pub(super) fn new(seeds: Values, needed: BTreeSet<Value>, wanted: BTreeSet<Tensor>) -> Self {
        Cotangents { values: seeds, tensors: BTreeMap::new(), needed, wanted }
    }

    /// The derivative with respect to a tensor, in the tensor's order; none if the loss does not depend on it, or nobody
    /// wanted it.
    pub fn tensor(&self, tensor: Tensor) -> Option<&[f32]> {
        self.tensors.get(&tensor).map(Vec::as_slice)
    }

    /// The derivative with respect to a value that the run was given; as of tensors.
    pub fn value(&self, value: Value) -> Option<&Array> {
        self.values.get(&value)
    }

    /// Takes out the derivative with respect to `value`, if it is needed further on.
    pub(super) fn take(&mut self, value: Value) -> Option<Array> {
        self.values.remove(&value).filter(|_| self.needed.contains(&value))
    }

    pub(super) fn needs(&self, value: Value) -> bool {
        self.needed.contains(&value)
    }

    pub(super) fn wants(&self, tensor: Tensor) -> bool {
        self.wanted.contains(&tensor)
    }

    /// Adds a derivative with respect to `value`, if that is needed.
    pub(super) fn add(&mut self, value: Value, by: Array) {
        if !self.needs(value) {
            return;
        }
        match self.values.get_mut(&value) {
            Some(sum) => sum.values.iter_mut().zip(&by.values).for_each(|(sum, by)| *sum += by),
            None => drop(self.values.insert(value, by)),
        }
    }

    /// Adds a derivative with respect to `tensor`, if somebody wants that.
    pub(super) fn add_tensor(&mut self, tensor: Tensor, by: Vec<f32>) {
        if !self.wants(tensor) {
            return;
        }
        match self.tensors.get_mut(&tensor) {
            Some(sum) => sum.iter_mut().zip(&by).for_each(|(sum, by)| *sum += by),
            None => drop(self.tensors.insert(tensor, by)),
        }
    }
}
