//! What a comparison found, as JSON has it.

use crate::batch::Made;
use crate::calls::BRANCHES;
use crate::fit;
use crate::measured::{Measured, summary};
use crate::pictures::psnr;
use crate::protocol::Protocol;
use crate::run::File;
use crate::score::{Mark, Scorer, Spread};
use crate::stats::{Bootstrapped, Estimate, mcnemar, newcombe, wilson};
use aquatint::Request;
use serde::{Serialize, Serializer};

/// What was compared, and what was found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// With which images.
    pub conditions: Conditions,
    /// The reference, then the other files in their order.
    pub files: Vec<FileReport>,
    /// What is to be known of how the files go together.
    pub notes: Vec<String>,
}

/// With which images files were compared.
#[derive(Clone, Debug, Serialize)]
pub struct Conditions {
    /// Name of the reference.
    pub reference: String,
    /// Images whose calls, latents and pixels were compared.
    pub images: usize,
    /// Images that were scored.
    pub scored: usize,
    /// Seeds of the first and the last image's noise.
    pub seeds: [u64; 2],
    /// The sampler.
    pub sampler: String,
    /// Its steps.
    pub steps: usize,
    /// Guidance scale.
    pub guidance_scale: f32,
    /// Calls of a run.
    pub calls_of_run: usize,
    /// Those of them whose errors were looked at, counted from 0.
    pub calls: Vec<usize>,
    /// Their timesteps.
    pub timesteps: Vec<f32>,
    /// Least and largest value of the reference's final latents: the range of their signal-to-noise ratio.
    pub latents_range: [f64; 2],
    /// Resamples of the bootstrap: of the Fréchet distance, and of the other figures.
    pub resamples: [usize; 2],
}

impl Conditions {
    pub(crate) fn new<D: AsRef<[u8]>>(
        reference: &File<'_, D>,
        protocol: &Protocol,
        request: &Request,
        calls: Vec<usize>,
        calls_of_run: usize,
    ) -> Self {
        Conditions {
            reference: reference.name.clone(),
            images: protocol.images,
            scored: protocol.scored,
            seeds: [protocol.seed, protocol.seed.wrapping_add(protocol.total() as u64 - 1)],
            sampler: request.sampler.kind.name().to_owned(),
            steps: request.steps,
            guidance_scale: request.guidance_scale,
            calls_of_run,
            calls,
            timesteps: Vec::new(),
            latents_range: [f64::INFINITY, f64::NEG_INFINITY],
            resamples: [protocol.frechet_resamples, protocol.resamples],
        }
    }

    /// Takes note of what the reference made.
    pub(crate) fn widen(&mut self, made: &Made) {
        if self.timesteps.is_empty() {
            self.timesteps = made.calls.iter().take(self.calls.len()).map(|call| call.moment.timestep).collect();
        }
        for &v in &made.latents {
            let [low, high] = self.latents_range;
            self.latents_range = [low.min(f64::from(v)), high.max(f64::from(v))];
        }
    }
}

/// What was found of a file. Figures are called
///
/// * `eps`: relative error of what the network predicts at states of the reference's run, the root of the mean over calls of
///   its square, of both branches of guidance together; `eps_conditional`, `eps_unconditional`, `eps_guided` of each;
/// * `latents_median`, `_mean`, `_p90`: relative error of an image's final latents; `latents_psnr_median`, `_mean`, `_p10`
///   their signal-to-noise ratio in dB;
/// * `psnr_median`.. and `ssim_median`, `_mean`, `_p10` of images decoded by the reference's decoder.
#[derive(Clone, Debug, Serialize)]
pub struct FileReport {
    /// Its name.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// Average bits of its weights, as its META counts them.
    pub average_bits: f64,
    /// Figures by name; none of the reference's.
    #[serde(serialize_with = "as_map")]
    pub figures: Vec<(&'static str, Estimate)>,
    /// Relative errors of each call; none of the reference's.
    pub curve: Vec<CallError>,
    /// Shares of images in which what was asked for is read, by criterion.
    #[serde(serialize_with = "as_map")]
    pub reads: Vec<(&'static str, Share)>,
    /// Distance of the features of its images from those of true ones.
    pub frechet: Option<Frechet>,
    /// Differences from the reference, from the file before it if that is another one, and from those that the protocol pairs it with.
    pub comparisons: Vec<Comparison>,
}

/// Relative errors of a call.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct CallError {
    /// Its number in the run.
    pub call: usize,
    /// Its timestep.
    pub timestep: f32,
    /// Of both branches of guidance together.
    pub eps: f64,
    /// Of the conditional branch.
    pub conditional: f64,
    /// Of the unconditional branch; none without guidance.
    pub unconditional: Option<f64>,
    /// Of their combination; none without guidance.
    pub guided: Option<f64>,
}

/// A share of images.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Share {
    /// Images read right.
    pub right: usize,
    /// Images.
    pub images: usize,
    /// The share with its score interval.
    pub share: Estimate,
}

/// A Fréchet distance.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Frechet {
    /// As it is.
    pub raw: f64,
    /// What it is expected to be too large by, with so few images.
    pub bias: f64,
    /// Without that.
    pub corrected: Estimate,
}

/// Differences from another file, image by image.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// The other file.
    pub with: String,
    /// Differences of figures that both have.
    #[serde(serialize_with = "as_map")]
    pub figures: Vec<(&'static str, Difference)>,
    /// Differences of what was read.
    #[serde(serialize_with = "as_map")]
    pub reads: Vec<(&'static str, PairedShare)>,
    /// Difference of corrected Fréchet distances.
    pub frechet: Option<Difference>,
}

/// A difference.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Difference {
    /// This file's figure less the other's.
    #[serde(flatten)]
    pub estimate: Estimate,
    /// Whether the interval holds zero.
    pub noise: bool,
}

/// Images that two files read differently.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct PairedShare {
    /// Images that only the other file has right.
    pub lost: usize,
    /// Images that only this file has right.
    pub won: usize,
    /// McNemar's exact test of these.
    pub p: f64,
    /// The difference of shares, with Newcombe's interval.
    #[serde(flatten)]
    pub difference: Difference,
}

impl From<Estimate> for Difference {
    fn from(estimate: Estimate) -> Self {
        Difference { estimate, noise: estimate.holds_zero() }
    }
}

fn as_map<T: Serialize, S: Serializer>(list: &[(&'static str, T)], to: S) -> Result<S::Ok, S::Error> {
    to.collect_map(list.iter().map(|(name, value)| (name, value)))
}

/// Statistics of a file, resampled.
struct Resampled {
    figures: Vec<(&'static str, Bootstrapped)>,
    spread: Option<Spread>,
}

/// Makes the report of what was measured.
pub(crate) fn report<D: AsRef<[u8]>>(
    files: &[File<'_, D>],
    conditions: Conditions,
    measured: &[Measured],
    scorer: Option<&Scorer>,
    protocol: &Protocol,
) -> Report {
    let range = conditions.latents_range[1] - conditions.latents_range[0];
    let resampled: Vec<_> = measured.iter().map(|m| Resampled::new(m, range, scorer, protocol)).collect();
    let criteria = scorer.map(|scorer| scorer.criteria(protocol)).unwrap_or_default();
    let reports = (0..files.len()).map(|i| {
        let compare = |other: usize| {
            let reads = criteria.iter().enumerate();
            Comparison {
                with: files[other].name.clone(),
                figures: differences(&resampled[i].figures, &resampled[other].figures),
                reads: reads.map(|(k, &name)| (name, paired(&measured[i].marks, &measured[other].marks, k))).collect(),
                frechet: resampled[i]
                    .spread
                    .as_ref()
                    .zip(resampled[other].spread.as_ref())
                    .map(|(a, b)| a.minus(b).into()),
            }
        };
        // The file before the second is the reference.
        let before = i.checked_sub(1).filter(|&before| before > 0);
        let paired = protocol.pairs.iter().filter(|pair| pair[0] == i).map(|pair| pair[1]);
        let others = [0].into_iter().chain(before).filter(|_| i > 0).chain(paired);
        FileReport {
            name: files[i].name.clone(),
            bytes: files[i].model.packed().as_bytes().len() as u64,
            average_bits: files[i].model.meta().quantization.average_bits,
            figures: resampled[i].figures.iter().map(|(name, figure)| (*name, figure.percentile())).collect(),
            curve: curve(&measured[i], &conditions),
            reads: criteria.iter().enumerate().map(|(k, &name)| (name, share(&measured[i].marks, k))).collect(),
            frechet: resampled[i].spread.as_ref().map(|spread| Frechet {
                raw: spread.distance.value,
                bias: spread.bias,
                corrected: spread.corrected(),
            }),
            comparisons: others.map(compare).collect(),
        }
    });
    Report { files: reports.collect(), notes: fit::notes(files), conditions }
}

impl Resampled {
    fn new(measured: &Measured, range: f64, scorer: Option<&Scorer>, protocol: &Protocol) -> Self {
        let mut figures = Vec::new();
        if let Some(calls) = &measured.calls {
            let names = ["eps", "eps_conditional", "eps_unconditional", "eps_guided"];
            let branches = if calls.guided() { 1 + BRANCHES.len() } else { 1 };
            figures.extend(names.into_iter().zip(calls.root_mean_square(protocol.resamples)).take(branches));
        }
        let mut add = |names: [&'static str; 3], values: Option<Vec<f64>>, tail: f64| {
            if let Some(values) = values.filter(|values| !values.is_empty()) {
                figures.extend(names.into_iter().zip(summary(&values, tail, protocol.resamples)));
            }
        };
        let (latents, pictures) = (&measured.latents, &measured.pictures);
        let relative = latents.iter().map(|e| e.relative).collect();
        add(["latents_median", "latents_mean", "latents_p90"], Some(relative), 0.9);
        let ratios = latents.iter().map(|e| psnr(e.mean_square, range)).collect();
        add(["latents_psnr_median", "latents_psnr_mean", "latents_psnr_p10"], Some(ratios), 0.1);
        let ratios = pictures.iter().map(|e| psnr(e.mean_square, 1.0)).collect();
        add(["psnr_median", "psnr_mean", "psnr_p10"], Some(ratios), 0.1);
        add(["ssim_median", "ssim_mean", "ssim_p10"], pictures.iter().map(|e| e.ssim).collect(), 0.1);
        let features: Vec<f32> = measured.marks.iter().flat_map(|mark| &mark.features).copied().collect();
        let spread =
            scorer.and_then(Scorer::reference).map(|true_ones| true_ones.spread(&features, protocol.frechet_resamples));
        Resampled { figures, spread }
    }
}

/// Differences of the figures of two files that both have.
fn differences(
    ours: &[(&'static str, Bootstrapped)],
    others: &[(&'static str, Bootstrapped)],
) -> Vec<(&'static str, Difference)> {
    let pairs = ours.iter().filter_map(|(name, our)| {
        let (_, other) = others.iter().find(|(other, _)| other == name)?;
        Some((*name, our.minus(other).percentile().into()))
    });
    pairs.collect()
}

/// The share of marks that are right by criterion `k`.
fn share(marks: &[Mark], k: usize) -> Share {
    let right = marks.iter().filter(|mark| mark.right[k]).count();
    Share { right, images: marks.len(), share: wilson(right, marks.len()) }
}

/// How two files' marks differ by criterion `k`.
fn paired(ours: &[Mark], others: &[Mark], k: usize) -> PairedShare {
    let mut pairs = [[0; 2]; 2];
    ours.iter().zip(others).for_each(|(our, other)| pairs[usize::from(other.right[k])][usize::from(our.right[k])] += 1);
    let [[_, won], [lost, _]] = pairs;
    PairedShare { lost, won, p: mcnemar(lost, won), difference: newcombe(pairs).into() }
}

/// The errors of each call.
fn curve(measured: &Measured, conditions: &Conditions) -> Vec<CallError> {
    let Some(errors) = &measured.calls else { return Vec::new() };
    let calls = conditions.calls.iter().zip(&conditions.timesteps).zip(errors.curve());
    let guided = |v: f64| errors.guided().then_some(v);
    calls
        .map(|((&call, &timestep), [eps, conditional, unconditional, combined])| CallError {
            call,
            timestep,
            eps,
            conditional,
            unconditional: guided(unconditional),
            guided: guided(combined),
        })
        .collect()
}
