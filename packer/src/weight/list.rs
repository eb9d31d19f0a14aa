//! The list of all weights of a model.

use super::{Misfit, Origin, Step, Storage, Weight, step::Elements};
use aquatint::raw::program::Tensor;
use std::ops::{Index, IndexMut};

/// All weights of a model's programs, in the file's order; [`Tensor`] numbers them.
#[derive(Clone, Debug, Default)]
pub struct Weights {
    list: Vec<Weight>,
}

impl Weights {
    /// An empty list.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends `weight`; returns its number.
    pub fn push(&mut self, weight: Weight) -> Tensor {
        self.list.push(weight);
        Tensor(self.list.len() as u32 - 1)
    }

    /// The number of the weight before that is `weight` but for its name, and of which `same` says so too; its copies then
    /// have the other name. Appends `weight` if there is none.
    pub fn share(&mut self, weight: Weight, same: &dyn Fn(&str, &str) -> bool) -> Tensor {
        let alike = |w: &Weight| {
            let kind = |w: &Weight| (w.component, w.storage, w.is_made());
            kind(w) == kind(&weight) && w.source_dims() == weight.source_dims() && w.steps == weight.steps
        };
        match self.list.iter().position(|w| alike(w) && same(w.key(), weight.key())) {
            Some(first) => {
                self.list[first].copies.push(weight.key().to_owned());
                Tensor(first as u32)
            }
            None => self.push(weight),
        }
    }

    /// Appends an f32 tensor that the packer makes: `values`, of axes `dims`, called `key` in `component`. Returns its
    /// number; its name in the file is `component/key`.
    pub fn make(&mut self, component: &'static str, key: String, dims: &[usize], values: Vec<f32>) -> Tensor {
        let origin = Origin::Made { key, dims: dims.to_vec(), values };
        self.push(Weight {
            component,
            origin,
            steps: Vec::new(),
            storage: Storage::Vector,
            copies: Vec::new(),
            phase: None,
        })
    }

    /// Cuts a weight's inputs in two at input `at`: `tensor` keeps those before, and a new weight, the number of which is
    /// returned, gets the others. `None`, and nothing changes, if the weight has fewer inputs or was split before.
    pub fn split(&mut self, tensor: Tensor, at: usize) -> Option<Tensor> {
        let mut first = self[tensor].clone();
        let dims = first.dims();
        let inputs = *dims.last()?;
        let is_split = first.steps.iter().any(|step| matches!(step, Step::Split { .. }));
        if is_split || dims.len() < 2 || !(1..inputs).contains(&at) {
            return None;
        }
        let mut second = first.clone();
        let whole = first.whole_name();
        let part = |first, count| Step::Split { whole: whole.clone(), first: first as u64, count: count as u64 };
        first.steps.push(part(0, at));
        second.steps.push(part(at, inputs - at));
        self[tensor] = first;
        Some(self.push(second))
    }

    /// Appends `tensor` again for a phase; returns its number.
    pub fn vary(&mut self, tensor: Tensor, phase: usize) -> Tensor {
        let again = Weight { copies: Vec::new(), phase: Some(phase), ..self[tensor].clone() };
        self.push(again)
    }

    /// The elements of the parameter of a step called `name` in the file: a made f32 tensor to which nothing is done.
    ///
    /// # Errors
    /// If there is no such tensor.
    pub fn parameter(&self, name: &str) -> Result<Elements, Misfit> {
        let plain = |w: &&Weight| w.storage == Storage::Vector && w.steps.is_empty() && w.name() == name;
        match self.list.iter().filter(plain).map(|w| &w.origin).next() {
            Some(Origin::Made { dims, values, .. }) => Ok(Elements { dims: dims.clone(), values: values.clone() }),
            _ => Err(Misfit::new("a parameter among the tensors that the packer made", name)),
        }
    }

    /// The weights in order.
    pub fn iter(&self) -> std::slice::Iter<'_, Weight> {
        self.list.iter()
    }

    /// The weights in order, to be changed.
    pub fn iter_mut(&mut self) -> std::slice::IterMut<'_, Weight> {
        self.list.iter_mut()
    }

    /// Number of weights.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }
}

impl Index<Tensor> for Weights {
    type Output = Weight;

    fn index(&self, tensor: Tensor) -> &Weight {
        &self.list[tensor.0 as usize]
    }
}

impl IndexMut<Tensor> for Weights {
    fn index_mut(&mut self, tensor: Tensor) -> &mut Weight {
        &mut self.list[tensor.0 as usize]
    }
}

impl FromIterator<Weight> for Weights {
    fn from_iter<I: IntoIterator<Item = Weight>>(weights: I) -> Self {
        Weights { list: weights.into_iter().collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_split_names_both_halves_and_what_they_were() {
        let mut weights = Weights::new();
        let conv = weights.push(Weight::of_checkpoint("unet", "up.conv.weight".into(), &[4, 5, 3, 3], Storage::Conv));
        assert_eq!((weights.split(conv, 0), weights.split(conv, 5)), (None, None));
        let second = weights.split(conv, 2).unwrap();
        assert_eq!((weights.split(conv, 1), weights.split(second, 1)), (None, None));
        let [a, b] = [&weights[conv], &weights[second]];
        assert_eq!([a.dims(), b.dims()], [[4, 3, 3, 2], [4, 3, 3, 3]]);
        assert_eq!([a.name(), b.name()], ["unet/up.conv.weight", "unet/up.conv.weight_quantizer_0.weight"]);
        assert_eq!([a.layer(), b.layer()], ["up.conv", "up.conv.weight_quantizer_0"]);
        assert_eq!(a.whole_name(), b.whole_name());
    }

    #[test]
    fn equal_weights_are_shared_and_others_are_not() {
        let weight = |key: &str, dims: &[usize]| Weight::of_checkpoint("unet", key.into(), dims, Storage::Linear);
        let mut weights = Weights::new();
        let first = weights.push(weight("a.0", &[2, 3]));
        let same = |a: &str, b: &str| a[..1] == b[..1];
        assert_eq!(weights.share(weight("a.1", &[2, 3]), &same), first);
        assert_ne!(weights.share(weight("b.1", &[2, 3]), &same), first);
        assert_ne!(weights.share(weight("a.2", &[3, 2]), &same), first);
        assert_eq!((weights[first].copies.clone(), weights.len()), (vec!["a.1".to_owned()], 3));
    }

    #[test]
    fn parameters_are_made_and_untouched() {
        let mut weights = Weights::new();
        let made = weights.make("unet", "factors".into(), &[2], vec![1.0, 2.0]);
        weights.push(Weight::of_checkpoint("unet", "norm.weight".into(), &[2], Storage::Vector));
        assert_eq!(weights.parameter("unet/factors").unwrap().values, [1.0, 2.0]);
        assert!(weights.parameter("unet/norm.weight").is_err() && weights.parameter("factors").is_err());
        weights[made].steps.push(Step::Interleave);
        assert!(weights.parameter("unet/factors").is_err());
    }
}
