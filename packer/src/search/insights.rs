//! What sensitivities say of kinds of layers and of depths: Qua2SeDiMo's questions (which layers matter, which methods they want),
//! answered from what was measured or learned.

use super::layer::{Layer, bits_of};
use super::problem::Problem;
use serde::Serialize;
use std::collections::BTreeMap;

/// Layers of one kind, or of one depth.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Group {
    /// The paths of its layers with `*` for the number of a block; or the block.
    pub name: String,
    /// Layers.
    pub layers: usize,
    /// Their share of all weights.
    pub weights: f64,
    /// By choice, their part of the error that all layers in this choice make: shares of the sum of squared errors.
    pub shares: Vec<f64>,
    /// By choice, that share over the share of weights: above 1 for layers that are more sensitive than most.
    pub per_weight: Vec<f64>,
    /// By width of weights, how many of its layers have the least error with each method.
    pub preferences: BTreeMap<u8, BTreeMap<String, usize>>,
}

/// Groups by kind, in the order of the network, and by depth.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Insights {
    /// Names of the choices.
    pub choices: Vec<String>,
    /// Layers that differ in their block's number alone.
    pub kinds: Vec<Group>,
    /// Blocks, and layers outside of blocks.
    pub depths: Vec<Group>,
    /// Everything.
    pub all: Group,
}

impl Insights {
    /// Those of `problem`.
    pub fn new(problem: &Problem) -> Self {
        let by = |name: fn(&str) -> String| {
            let mut members: Vec<(String, Vec<&Layer>)> = Vec::new();
            for layer in &problem.layers {
                let name = name(&layer.path);
                match members.iter_mut().find(|(other, _)| *other == name) {
                    Some((_, of)) => of.push(layer),
                    None => members.push((name, vec![layer])),
                }
            }
            members.into_iter().map(|(name, of)| group(problem, name, &of)).collect()
        };
        let all = group(problem, "all".into(), &problem.layers.iter().collect::<Vec<_>>());
        Insights { choices: problem.choices.clone(), kinds: by(kind), depths: by(block), all }
    }
}

impl Group {
    /// The mean over choices of its shares, the least and the largest.
    pub fn spread(&self) -> [f64; 3] {
        let mean = self.shares.iter().sum::<f64>() / self.shares.len().max(1) as f64;
        let (least, most) = self.shares.iter().fold((f64::INFINITY, 0.0_f64), |(l, m), &s| (l.min(s), m.max(s)));
        [mean, least.min(most), most]
    }
}

fn group(problem: &Problem, name: String, members: &[&Layer]) -> Group {
    let all: u64 = problem.layers.iter().map(|layer| layer.full).sum();
    let weights = members.iter().map(|layer| layer.full).sum::<u64>() as f64 / all.max(1) as f64;
    let share = |choice: usize| {
        let sum = |layers: &mut dyn Iterator<Item = &Layer>| layers.map(|layer| layer.errors[choice]).sum::<f64>();
        let total = sum(&mut problem.layers.iter());
        if total > 0.0 { sum(&mut members.iter().copied()) / total } else { 0.0 }
    };
    let shares: Vec<f64> = (0..problem.choices.len()).map(share).collect();
    let per_weight = shares.iter().map(|share| if weights > 0.0 { share / weights } else { 0.0 }).collect();
    let mut preferences: BTreeMap<u8, BTreeMap<String, usize>> = BTreeMap::new();
    for layer in members {
        for (bits, methods) in by_width(layer) {
            let best = methods.iter().min_by(|a, b| a.1.total_cmp(&b.1));
            if let Some((method, _)) = best.filter(|_| methods.len() > 1) {
                *preferences.entry(bits).or_default().entry(method.clone()).or_default() += 1;
            }
        }
    }
    Group { name, layers: members.len(), weights, shares, per_weight, preferences }
}

/// By width, the methods that a layer was tried with, each with its error.
fn by_width(layer: &Layer) -> BTreeMap<u8, Vec<(String, f64)>> {
    let mut methods: BTreeMap<u8, Vec<(String, f64)>> = BTreeMap::new();
    for &choice in &layer.allowed {
        let spec = &layer.specs[choice];
        let method = spec.rsplit_once('-').map(|(method, _)| method).or(spec.split_once(':').map(|(_, method)| method));
        if let Some(method) = method {
            let known = methods.entry(bits_of(spec)).or_default();
            if known.iter().all(|(other, _)| other != method) {
                known.push((method.to_owned(), layer.errors[choice]));
            }
        }
    }
    methods
}

/// A path with `*` in place of the number of its block.
fn kind(path: &str) -> String {
    let mut first = true;
    let parts = path.split('.').map(|part| match part.parse::<usize>() {
        Ok(_) if std::mem::take(&mut first) => "*",
        _ => part,
    });
    parts.collect::<Vec<_>>().join(".")
}

/// The block of a path: up to the first number; a layer outside of blocks by itself.
pub(super) fn block(path: &str) -> String {
    let mut parts: Vec<&str> = path.split('.').collect();
    if let Some(at) = parts.iter().position(|part| part.parse::<usize>().is_ok()) {
        parts.truncate(at + 1);
    }
    parts.join(".")
}

#[cfg(test)]
mod tests {
    use super::super::problem::tests::problem;
    use super::*;

    #[test]
    fn groups_hold_all_layers_once() {
        let mut problem = problem(12);
        // In three bits, layers of one kind want another method.
        problem.choices.push("w3a8:mse".into());
        for (i, layer) in problem.layers.iter_mut().enumerate() {
            layer.specs.push("w3a8:mse".into());
            layer.bytes.push(40);
            layer.counted.push(40);
            layer.errors.push(layer.errors[1] * if i % 4 == 0 { 0.5 } else { 2.0 });
            layer.allowed.push(3);
        }
        let insights = Insights::new(&problem);
        let names = |groups: &[Group]| groups.iter().map(|group| group.name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&insights.kinds), ["blocks.*.q", "blocks.*.k", "blocks.*.ff.0", "blocks.*.ff.2"]);
        assert_eq!(names(&insights.depths), ["blocks.0", "blocks.1", "blocks.2"]);
        for groups in [&insights.kinds, &insights.depths] {
            assert_eq!(groups.iter().map(|group| group.layers).sum::<usize>(), 12);
            for choice in 0..4 {
                let sum: f64 = groups.iter().map(|group| group.shares[choice]).sum();
                assert!((sum - 1.0).abs() < 1e-12);
            }
        }
        let wanted = |group: &Group| group.preferences[&3].clone();
        assert_eq!(wanted(&insights.kinds[0]), BTreeMap::from([("mse".into(), 3)]));
        assert_eq!(wanted(&insights.kinds[1]), BTreeMap::from([("kmeans".into(), 3)]));
        assert!(!insights.kinds[0].preferences.contains_key(&4), "one method is no choice");
    }
}
