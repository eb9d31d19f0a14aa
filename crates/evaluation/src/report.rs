//! What a comparison found, as JSON has it.

use crate::batch::Made;
use crate::figures::Figures;
use crate::measured::Measured;
use crate::protocol::Protocol;
use crate::score::{Mark, Scorer};
use crate::stats::{Estimate, Figure, mcnemar, newcombe, wilson};
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
    /// Images whose calls, latents and pixels were compared; of folders, those of the reference.
    pub images: usize,
    /// Images that were scored.
    pub scored: usize,
    /// How images were made; none of pictures in folders.
    #[serde(flatten)]
    pub run: Option<Run>,
    /// Resamples of the bootstrap: of the Fréchet distance, and of the other figures.
    pub resamples: [usize; 2],
    /// Networks that looked at pictures, without the classifier.
    pub networks: Vec<String>,
}

/// How images were made.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
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
}

impl Conditions {
    pub(crate) fn new(reference: &str, protocol: &Protocol, scorer: Option<&Scorer>, run: Option<Run>) -> Self {
        Conditions {
            reference: reference.to_owned(),
            images: protocol.images,
            scored: protocol.scored,
            run,
            resamples: [protocol.frechet_resamples, protocol.resamples],
            networks: scorer.map(Scorer::networks).unwrap_or_default(),
        }
    }
}

impl Run {
    pub(crate) fn new(protocol: &Protocol, request: &Request, calls: Vec<usize>, calls_of_run: usize) -> Self {
        Run {
            seeds: [protocol.seed, protocol.seed.wrapping_add(protocol.total() as u64 - 1)],
            sampler: request.sampler.kind.name().to_owned(),
            steps: request.steps,
            guidance_scale: request.guidance_scale,
            calls_of_run,
            calls,
            timesteps: Vec::new(),
            latents_range: [f64::INFINITY, f64::NEG_INFINITY],
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
/// * `psnr_median`.. and `ssim_median`, `_mean`, `_p10` of images decoded by the reference's decoder;
/// * `lpips_median`, `_mean`, `_p90` of the same images;
/// * `clip_median`, `_mean`, `_p10`: how well scored images fit their captions;
/// * `kid`: squared kernel distance of features of scored images from those of true ones, as it is, not times 1000;
/// * `inception_score` of all scored images together.
#[derive(Clone, Debug, Serialize)]
pub struct FileReport {
    /// Its name.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// Average bits of its weights, as its META counts them; none of a folder.
    pub average_bits: Option<f64>,
    /// Figures by name; of the reference those that need no other file.
    #[serde(serialize_with = "as_map")]
    pub figures: Vec<(&'static str, Estimate)>,
    /// Relative errors of each call; none of the reference's.
    pub curve: Vec<CallError>,
    /// Shares of images in which what was asked for is read, by criterion.
    #[serde(serialize_with = "as_map")]
    pub reads: Vec<(&'static str, Share)>,
    /// Distance of the features of its images from those of true ones.
    pub frechet: Option<Frechet>,
    /// Figures as other programs have them.
    pub conventional: Conventional,
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

/// Figures as torch-fidelity works them out, for comparison with what was published: mean and deviation over its own draws, which
/// tell less of chance than the intervals of `kid` and `inception_score` do.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Conventional {
    /// Kernel distance over 100 subsets of 1000 images; none of fewer.
    pub kid: Option<[f64; 2]>,
    /// Inception score over 10 parts.
    pub inception_score: Option<[f64; 2]>,
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

/// What is compared: a file, or a folder.
pub(crate) struct Subject {
    pub name: String,
    pub bytes: u64,
    pub average_bits: Option<f64>,
}

/// What is compared, the reference first, and what was measured of it.
pub(crate) struct Compared {
    pub subjects: Vec<Subject>,
    pub measured: Vec<Measured>,
    /// Whether images of one number are the same of all.
    pub pairs: bool,
}

/// Makes the report of what was measured.
pub(crate) fn report(
    compared: Compared,
    conditions: Conditions,
    scorer: Option<&Scorer>,
    protocol: &Protocol,
) -> Report {
    let Compared { subjects, measured, pairs } = compared;
    let range = conditions.run.as_ref().map_or(1.0, |run| run.latents_range[1] - run.latents_range[0]);
    let figures: Vec<_> = measured.iter().map(|m| Figures::new(m, range, scorer, protocol)).collect();
    let criteria = scorer.map(|scorer| scorer.criteria(protocol)).unwrap_or_default();
    let criteria = if protocol.scored > 0 && conditions.run.is_some() { criteria } else { Vec::new() };
    let reports = subjects.iter().enumerate().map(|(i, subject)| {
        let compare = |other: usize| {
            let reads = criteria.iter().enumerate();
            Comparison {
                with: subjects[other].name.clone(),
                figures: differences(&figures[i].named, &figures[other].named),
                reads: reads.map(|(k, &name)| (name, paired(&measured[i].marks, &measured[other].marks, k))).collect(),
                frechet: figures[i].spread.as_ref().zip(figures[other].spread.as_ref()).map(|(a, b)| a.minus(b).into()),
            }
        };
        // The file before the second is the reference.
        let before = i.checked_sub(1).filter(|&before| before > 0);
        let paired = protocol.pairs.iter().filter(|pair| pair[0] == i).map(|pair| pair[1]);
        let others = [0].into_iter().chain(before).filter(|_| i > 0 && pairs).chain(paired);
        FileReport {
            name: subject.name.clone(),
            bytes: subject.bytes,
            average_bits: subject.average_bits,
            figures: figures[i].named.iter().map(|(name, figure)| (*name, figure.estimate())).collect(),
            curve: curve(&measured[i], conditions.run.as_ref()),
            reads: criteria.iter().enumerate().map(|(k, &name)| (name, share(&measured[i].marks, k))).collect(),
            conventional: figures[i].conventional,
            frechet: figures[i].spread.as_ref().map(|spread| Frechet {
                raw: spread.distance.value(),
                bias: spread.bias,
                corrected: spread.corrected(),
            }),
            comparisons: others.map(compare).collect(),
        }
    });
    let files = reports.collect();
    let fewest = measured.iter().map(|measured| measured.marks.len()).filter(|&n| n > 0).min();
    let notes = scorer.zip(fewest).map(|(scorer, n)| scorer.notes(n)).unwrap_or_default();
    Report { files, notes, conditions }
}

/// Differences of the figures of two files that both have.
fn differences(ours: &[(&'static str, Figure)], others: &[(&'static str, Figure)]) -> Vec<(&'static str, Difference)> {
    let pairs = ours.iter().filter_map(|(name, our)| {
        let (_, other) = others.iter().find(|(other, _)| other == name)?;
        Some((*name, our.minus(other).estimate().into()))
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
fn curve(measured: &Measured, run: Option<&Run>) -> Vec<CallError> {
    let Some((errors, run)) = measured.calls.as_ref().zip(run) else { return Vec::new() };
    let calls = run.calls.iter().zip(&run.timesteps).zip(errors.curve());
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
