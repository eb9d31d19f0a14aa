//! Random configurations with their errors: what additivity is tested by, and predictors learn from.

use super::cache::{self, Entry, LayerEntry, blocks};
use super::layer::Layer;
use super::predict::{Samples, correlation};
use super::problem::Problem;
use super::random::Distribution;
use super::trials::Meter;
use crate::error::Result;
use aquatint::error::Error;
use aquatint_evaluation::stats::{Estimate, quantile};
use serde::Serialize;
use std::ops::Range;

/// Random configurations and what was measured of each.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Archive {
    /// The numbers of configurations in their distribution.
    pub numbers: Vec<usize>,
    /// The choices of layers.
    pub assignments: Vec<Vec<usize>>,
    /// Squared relative errors of the output.
    pub errors: Vec<f64>,
    /// Their standard errors.
    pub standard_errors: Vec<f64>,
    /// Bit operations of a call as Qua2SeDiMo counts them, in tera.
    pub bops: Vec<f64>,
}

impl Archive {
    /// What a predictor learns from: the errors themselves, since they add up.
    pub fn samples(&self, problem: &Problem) -> Samples {
        Samples {
            choices: self.assignments.clone(),
            scores: self.errors.clone(),
            blocks: blocks(problem.layers.iter().map(|layer| &*layer.path)),
        }
    }

    /// Measures configurations of `distribution` until those of these numbers are there; `keep` is shown the archive after each.
    ///
    /// # Errors
    /// If one cannot be measured, or kept.
    pub fn fill(
        &mut self,
        (problem, meter): (&Problem, &Meter<'_>),
        distribution: Distribution,
        numbers: Range<usize>,
        keep: &mut dyn FnMut(&Archive) -> Result<()>,
    ) -> Result<()> {
        for number in numbers.skip(self.errors.len()) {
            let assignment = distribution.draw(problem, number as u64);
            let errors = meter.errors(&assignment)?;
            let n = errors.len() as f64;
            let mean = errors.iter().sum::<f64>() / n;
            let variance = errors.iter().map(|e| (e - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
            self.bops.push(meter.bops(&assignment)?);
            self.numbers.push(number);
            self.assignments.push(assignment);
            self.errors.push(mean);
            self.standard_errors.push((variance / n).sqrt());
            keep(self)?;
        }
        Ok(())
    }

    /// The same as entries of a cache.
    pub fn entries(&self, problem: &Problem, weight_errors: &[Vec<f64>]) -> Vec<Entry> {
        let entry = |(i, assignment): (usize, &Vec<usize>)| {
            let mut entry = Entry::new(problem, assignment, &|layer, choice| weight_errors[layer][choice]);
            entry.measures.push(("bops".into(), self.bops[i]));
            entry.measures.push(("number".into(), self.numbers[i] as f64));
            entry.measures.push(("D".into(), self.errors[i]));
            entry.measures.push(("D_se".into(), self.standard_errors[i]));
            entry
        };
        self.assignments.iter().enumerate().map(entry).collect()
    }

    /// Refuses an archive, which is from `origin`, whose configurations are not those of `distribution`, or of other numbers than the
    /// first of `numbers`.
    ///
    /// # Errors
    /// For the first that is another.
    pub fn check(
        &self,
        origin: &str,
        problem: &Problem,
        distribution: Distribution,
        numbers: Range<usize>,
    ) -> Result<()> {
        let drawn = |(own, number): (usize, usize)| {
            self.numbers[own] == number && distribution.draw(problem, number as u64) == self.assignments[own]
        };
        let numbers: Vec<usize> = numbers.take(self.numbers.len()).collect();
        match (0..self.numbers.len()).find(|&own| numbers.get(own).is_none_or(|&number| !drawn((own, number)))) {
            None => Ok(()),
            Some(own) => {
                let expected =
                    "configurations of this seed, these bounds and this part; without the file one begins anew";
                Err(Error::request(origin, expected, format!("another as number {}", self.numbers[own])).into())
            }
        }
    }

    /// Puts parts together, in the order of numbers.
    ///
    /// # Errors
    /// If a number is there twice, or one of the first `count` is missing.
    pub fn join(parts: Vec<Archive>, count: usize) -> Result<Self> {
        let mut all: Vec<(usize, Vec<usize>, [f64; 3])> = Vec::new();
        for part in parts {
            let figures = part.errors.into_iter().zip(part.standard_errors).zip(part.bops);
            let own = part.numbers.into_iter().zip(part.assignments).zip(figures);
            all.extend(own.map(|((n, a), ((error, standard), bops))| (n, a, [error, standard, bops])));
        }
        all.sort_by_key(|own| own.0);
        if let Some(pair) = all.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(
                Error::request("merge", "each configuration once", format!("number {} twice", pair[0].0)).into()
            );
        }
        let missing: Vec<String> =
            (0..count).filter(|n| all.binary_search_by_key(n, |own| own.0).is_err()).map(|n| n.to_string()).collect();
        if !missing.is_empty() {
            let expected = format!("{count} configurations");
            return Err(Error::request("merge", expected, format!("none of the numbers {}", missing.join(", "))).into());
        }
        let mut archive = Archive::default();
        for (number, assignment, [error, standard_error, bops]) in all {
            archive.numbers.push(number);
            archive.assignments.push(assignment);
            archive.errors.push(error);
            archive.standard_errors.push(standard_error);
            archive.bops.push(bops);
        }
        Ok(archive)
    }

    /// Reads what [`entries`](Self::entries) wrote.
    ///
    /// # Errors
    /// If `entries` are of another model or of other choices; `origin` is where they are from.
    pub fn of(origin: &str, entries: &[Entry], problem: &Problem) -> Result<Self> {
        let mut archive = Archive::default();
        for (number, entry) in entries.iter().enumerate() {
            let refuse = |expected: &str, got: String| {
                crate::Error::from(Error::request(format!("{origin}, configuration {number}"), expected, got))
            };
            let same = entry.layers.len() == problem.layers.len();
            let other = entry.layers.iter().zip(&problem.layers).find(|((path, _), layer)| *path != layer.path);
            if let Some(((path, _), layer)) = other {
                return Err(refuse(&format!("the layers of this model, {} among them", layer.path), path.clone()));
            } else if !same {
                return Err(refuse("the layers of this model", format!("{} of them", entry.layers.len())));
            }
            let choice = |((path, own), layer): (&(String, LayerEntry), &Layer)| {
                let like = |&choice: &usize| {
                    layer.counted[choice] == own.quantized && cache::method(&layer.specs[choice]) == own.method
                };
                layer.allowed.iter().copied().find(like).ok_or_else(|| {
                    refuse(
                        &format!("one of this model's choices for {path}"),
                        format!("{}, {} bytes", own.method, own.quantized),
                    )
                })
            };
            let assignment = entry.layers.iter().zip(&problem.layers).map(choice).collect::<Result<_>>()?;
            let error = entry.measure("D").ok_or_else(|| refuse("a measured error `D`", "none".into()))?;
            archive.numbers.push(entry.measure("number").map_or(number, |own| own as usize));
            archive.assignments.push(assignment);
            archive.errors.push(error);
            archive.bops.push(entry.measure("bops").unwrap_or(0.0));
            archive.standard_errors.push(entry.measure("D_se").unwrap_or(0.0));
        }
        Ok(archive)
    }
}

/// How well a sum of sensitivities says what is measured.
#[derive(Clone, Debug, Serialize)]
pub struct Additivity {
    /// Predicted and measured squared errors, by configuration.
    pub points: Vec<[f64; 2]>,
    /// Their rank correlation.
    pub rank_correlation: Estimate,
    /// The median of measured over predicted.
    pub median_ratio: f64,
}

impl Additivity {
    /// That of the configurations of `archive`; none of fewer than three.
    pub fn new(problem: &Problem, archive: &Archive) -> Option<Self> {
        let predicted: Vec<f64> = archive.assignments.iter().map(|assignment| problem.error(assignment)).collect();
        if predicted.len() < 3 {
            return None;
        }
        let mut ratios: Vec<f64> = archive.errors.iter().zip(&predicted).map(|(measured, p)| measured / p).collect();
        let median_ratio = quantile(&mut ratios, 0.5);
        let points = predicted.iter().zip(&archive.errors).map(|(&p, &measured)| [p, measured]).collect();
        Some(Additivity { rank_correlation: correlation(&predicted, &archive.errors), points, median_ratio })
    }
}

#[cfg(test)]
mod tests {
    use super::super::problem::tests::problem;
    use super::*;

    #[test]
    fn an_archive_is_what_it_was() {
        let problem = problem(8);
        let distribution = Distribution { bounds: [0.0, 1.0], seed: 42 };
        let mut archive = Archive::default();
        for number in 0..5 {
            archive.numbers.push(number as usize);
            archive.assignments.push(distribution.draw(&problem, number));
            archive.errors.push(problem.error(&archive.assignments[number as usize]) * 1.1);
            archive.standard_errors.push(0.5);
            archive.bops.push(3.0);
        }
        let entries = archive.entries(&problem, &vec![vec![0.0; 3]; 8]);
        let read = Archive::of("c.pkl", &entries, &problem).unwrap();
        assert_eq!((&read.assignments, &read.errors), (&archive.assignments, &archive.errors));
        read.check("c.pkl", &problem, distribution, 0..9).unwrap();
        let other = Distribution { seed: 7, ..distribution };
        assert!(
            read.check("c.pkl", &problem, other, 0..9).is_err()
                && read.check("c.pkl", &problem, distribution, 1..9).is_err()
        );
        let part = |numbers: std::ops::Range<usize>| Archive {
            numbers: numbers.clone().collect(),
            assignments: archive.assignments[numbers.clone()].to_vec(),
            errors: archive.errors[numbers.clone()].to_vec(),
            standard_errors: archive.standard_errors[numbers.clone()].to_vec(),
            bops: archive.bops[numbers].to_vec(),
        };
        let joined = Archive::join(vec![part(3..5), part(0..3)], 5).unwrap();
        assert_eq!((joined.numbers, joined.assignments), (archive.numbers.clone(), archive.assignments.clone()));
        let told = |parts, count| Archive::join(parts, count).unwrap_err().to_string();
        assert_eq!(
            told(vec![part(0..1), part(3..5)], 6),
            "merge: expected 6 configurations, got none of the numbers 1, 2, 5"
        );
        assert_eq!(
            told(vec![part(0..2), part(1..5)], 5),
            "merge: expected each configuration once, got number 1 twice"
        );
        let additivity = Additivity::new(&problem, &read).unwrap();
        assert!((additivity.median_ratio - 1.1).abs() < 1e-12 && additivity.rank_correlation.value > 0.999);
        let told = |problem: &Problem| Archive::of("c.pkl", &entries, problem).unwrap_err().to_string();
        assert_eq!(
            told(&super::super::problem::tests::problem(9)),
            "c.pkl, configuration 0: expected the layers of this model, got 8 of them"
        );
        let mut other = problem.clone();
        other.layers[2].path = "blocks.0.gate".into();
        assert_eq!(
            told(&other),
            "c.pkl, configuration 0: expected the layers of this model, blocks.0.gate among them, got blocks.0.ff.0"
        );
    }
}
