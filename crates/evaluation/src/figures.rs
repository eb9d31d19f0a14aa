//! The figures of a file, resampled.

use crate::calls::BRANCHES;
use crate::measured::{Measured, summary};
use crate::pictures::psnr;
use crate::protocol::Protocol;
use crate::report::Conventional;
use crate::score::{Mark, Probabilities, SUBSET, SUBSETS, Scorer, Spread};
use crate::stats::{FEWEST, Figure};

/// Figures of a file, and how the features of its pictures are spread.
pub(crate) struct Figures {
    pub named: Vec<(&'static str, Figure)>,
    pub spread: Option<Spread>,
    pub conventional: Conventional,
}

impl Figures {
    /// The figures of what was `measured`; `range` is that of the reference's latents.
    pub fn new(measured: &Measured, range: f64, scorer: Option<&Scorer>, protocol: &Protocol) -> Self {
        let mut figures = Figures { named: Vec::new(), spread: None, conventional: Conventional::default() };
        if let Some(calls) = &measured.calls {
            let names = ["eps", "eps_conditional", "eps_unconditional", "eps_guided"];
            let branches = if calls.guided() { 1 + BRANCHES.len() } else { 1 };
            let means = calls.root_mean_square(protocol.resamples).map(Figure::from);
            figures.named.extend(names.into_iter().zip(means).take(branches));
        }
        figures.add_images(measured, range, protocol);
        if let Some(scorer) = scorer.filter(|_| !measured.marks.is_empty()) {
            figures.add_features(&measured.marks, scorer, protocol);
        }
        figures
    }

    /// Adds what is measured of each image alone.
    fn add_images(&mut self, measured: &Measured, range: f64, protocol: &Protocol) {
        let mut add = |names: [&'static str; 3], values: Option<Vec<f64>>, tail: f64| {
            if let Some(values) = values.filter(|values| !values.is_empty()) {
                let figures = summary(&values, tail, protocol.resamples).map(Figure::from);
                self.named.extend(names.into_iter().zip(figures));
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
        add(["lpips_median", "lpips_mean", "lpips_p90"], pictures.iter().map(|e| e.lpips).collect(), 0.9);
        add(["clip_median", "clip_mean", "clip_p10"], measured.marks.iter().map(|mark| mark.clip).collect(), 0.1);
    }

    /// Adds what the features of all scored pictures tell together.
    fn add_features(&mut self, marks: &[Mark], scorer: &Scorer, protocol: &Protocol) {
        let wide = |mark: &Mark| mark.features.iter().map(|&v| f64::from(v)).collect::<Vec<f64>>();
        let features: Vec<f64> = marks.iter().flat_map(wide).collect();
        if let Some(reference) = scorer.reference.as_ref().filter(|_| !features.is_empty()) {
            self.spread = Some(reference.gaussian().spread(&features, protocol.frechet_resamples));
            if let Some(kernel) = reference.kernel().filter(|_| marks.len() >= FEWEST) {
                self.named.push(("kid", kernel.distance(&features).into()));
                self.conventional.kid = kernel.subsets(&features, SUBSETS, SUBSET);
            }
        }
        if let Some(classes) = scorer.inception_classes().filter(|_| marks.len() >= FEWEST) {
            let logits: Vec<f32> = marks.iter().flat_map(|mark| &mark.logits).copied().collect();
            let probabilities = Probabilities::new(&logits, classes);
            self.named.push(("inception_score", probabilities.score().into()));
            self.conventional.inception_score = probabilities.splits();
        }
    }
}
