//! Smoothing while packing: which values, by which factors.

use super::calibrated::Known;
use super::layers::{Layers, Matcher};
use super::pruned::Pruned;
use super::write::elements;
use super::{ActivationRanges, Options, Progress, RangeSource, decide};
use crate::config;
use crate::error::Result;
use crate::lower::Part;
use crate::pass::{Smoothable, fold, smoothables};
use crate::quantize::{Method, RangeRule, SmoothInput, SmoothLayer, SmoothRule, search};
use crate::recipe::{Recipe, Store, Treatment};
use crate::source::diffusers::Model;
use crate::weight::{Storage, Weights};
use aquatint::error::Error;
use aquatint::raw::format::meta::PipelineMeta;
use aquatint::raw::program::{Program, Tensor};
use std::collections::HashSet;

/// Inputs of layers whose covariance a search holds at most; layers with more are left as they are.
const MOST_INPUTS: usize = 6144;

/// How inputs of the denoisers' layers are smoothed.
#[derive(Clone, Debug, PartialEq)]
pub struct Smoothing {
    /// How factors are chosen.
    pub rule: SmoothRule,
    /// Which layers. What reads the same value is smoothed with a layer.
    pub layers: Layers,
}

impl Smoothing {
    /// In words, for META.
    pub(super) fn describe(&self) -> String {
        let rule = match self.rule {
            SmoothRule::SmoothQuant(alpha) => format!("SmoothQuant's rule, alpha {alpha}"),
            SmoothRule::ViditQ(alpha) => format!("ViDiT-Q's rule, alpha {alpha}"),
            SmoothRule::Search => "search".into(),
        };
        format!("smoothed by {rule}{}", self.layers.describe())
    }
}

/// What smoothing did.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Smoothed {
    /// Values that are divided by factors.
    pub(super) divided: usize,
    /// Values whose best factors are none.
    pub(super) plain: usize,
    /// Values that are divided where they become codes.
    pub(super) turned: usize,
    /// Values that integer layers read and that can be divided nowhere.
    pub(super) unfolded: Vec<Smoothable>,
}

impl Smoothed {
    /// In words, for people.
    pub(super) fn describe(&self) -> String {
        let Smoothed { divided, plain, turned, unfolded } = self;
        let mut text = format!("{divided} inputs of layers are smoothed");
        if *turned > 0 {
            text += &format!(", {turned} of them where they become codes");
        }
        if *plain > 0 {
            text += &format!(", {plain} are best as they are");
        }
        match unfolded.first().and_then(|site| site.fold.err()) {
            Some(first) => text + &format!(", {} cannot be (the first: {first})", unfolded.len()),
            None => text,
        }
    }
}

/// What is to be smoothed: as `options` say, or the configuration that made `recipe`.
///
/// # Errors
/// If there is no calibration, ranges are fixed by histograms, or weights imported; or for exponents that change over time.
pub(super) fn wanted(options: &Options, recipe: &Recipe) -> Result<Vec<Smoothing>> {
    let list = match &options.smoothing {
        Some(smoothing) => vec![smoothing.clone()],
        None => recipe.transforms.smooth.iter().map(of_config).collect::<Result<_>>()?,
    };
    if !list.is_empty() {
        check(options, recipe.activation_ranges)?;
    }
    Ok(list)
}

/// Refuses what smoothing does not go with; `fixed`: the ranges that the configuration fixes.
///
/// # Errors
/// If there is no calibration, ranges are fixed by histograms, or weights imported.
pub(super) fn check(options: &Options, fixed: Option<ActivationRanges>) -> Result<()> {
    let refuse = |expected: &str, got: &str| Err(Error::request("--smooth", expected, got).into());
    if options.calibration.is_none() {
        return refuse("--calib FILE: a calibration knows how large activations are", "none");
    }
    // Extremes are known of every channel, and so of divided ones; histograms are of all channels together.
    let ranges = options.activation_ranges.or(fixed.map(RangeSource::Calibration));
    if matches!(ranges, Some(RangeSource::Calibration(ActivationRanges { rule: RangeRule::Mse, .. }))) {
        return refuse("--act-range min-max or ema: histograms are of inputs that are not divided", "mse");
    }
    if options.import.is_some() {
        return refuse("weights that are quantized here: those of --import are what they are", "--import");
    }
    Ok(())
}

/// Smoothing as a configuration asks for it.
pub(super) fn of_config(smoothing: &config::Smoothing) -> Result<Smoothing> {
    let config::Smoothing { rule, alphas, layers } = smoothing;
    let all: Vec<f64> = alphas.iter().map(|(alpha, _)| *alpha).collect();
    if all.iter().any(|alpha| *alpha != all[0]) {
        let got = all.iter().map(f64::to_string).collect::<Vec<_>>().join(", ");
        return Err(Error::request("smoothing of the configuration", "one alpha for all timesteps", got).into());
    }
    let Some(&alpha) = all.first().filter(|alpha| (0.0..=1.0).contains(*alpha)) else {
        return Err(Error::request("alpha of the configuration", "a number from 0 to 1", format!("{all:?}")).into());
    };
    let layers = match rule {
        _ if layers.is_empty() => Layers::All,
        config::SmoothingRule::Activations => Layers::Components(layers.clone()),
        config::SmoothingRule::Weights => Layers::Regex(layers.clone()),
    };
    let rule = match rule {
        config::SmoothingRule::Activations => SmoothRule::SmoothQuant(alpha),
        config::SmoothingRule::Weights => SmoothRule::ViditQ(alpha),
    };
    Ok(Smoothing { rule, layers })
}

/// Layers that read one value, and the factors that it is to be divided by where it becomes codes.
pub(super) type Divided = (Vec<Tensor>, Vec<f32>);

/// Divides what layers read by factors, as `smoothing` says, where the layers become codes; returns, too, what is still to be
/// divided, where it becomes codes.
///
/// # Errors
/// If the layers are no glob, nothing can be smoothed, or a weight or the calibration cannot be read.
pub(super) fn smooth(
    smoothing: &Smoothing,
    (programs, weights, recipe): (&mut [Program], &mut Weights, &mut Recipe),
    (model, pipeline, pruned): (&Model, &PipelineMeta, Option<&Pruned>),
    known: &Known,
    progress: &mut dyn FnMut(Progress),
) -> Result<(Smoothed, Vec<Divided>)> {
    let matcher = smoothing.layers.compile("--smooth-layers")?;
    let mut result = Smoothed::default();
    let mut sites: Vec<(Smoothable, usize)> = Vec::new();
    // Layers whose inputs are divided where they become codes, each once.
    let mut turned: HashSet<Tensor> = HashSet::new();
    for site in smoothables(programs, weights, &decide::dims(pipeline))? {
        let mut site = site;
        if site.fold.is_err() {
            // Only what makes codes can divide its own operand, and only where each row has a scale.
            let turns = |layer: &Tensor| {
                let integer = treatment(recipe, *layer).activation_bits.is_some();
                integer && weights[*layer].storage == Storage::Linear && turned.insert(*layer)
            };
            let linear: Vec<Tensor> = site.layers.iter().copied().filter(turns).collect();
            if !linear.is_empty() {
                site.layers = linear;
            }
        }
        let Some(known) = known.first_known(&site.layers).filter(|_| is_wanted(&site, weights, recipe, &matcher))
        else {
            continue;
        };
        match site.fold {
            Ok(_) => sites.push((site, known)),
            Err(_) if site.layers.iter().all(|layer| turned.contains(layer)) => sites.push((site, known)),
            Err(_) if site.layers.iter().any(|&layer| treatment(recipe, layer).activation_bits.is_some()) => {
                result.unfolded.push(site);
            }
            Err(_) => {}
        }
    }
    let total = sites.len() as u64;
    let (mut smoothed, mut divided) = (Vec::new(), Vec::new());
    for (done, (site, first)) in sites.into_iter().enumerate() {
        progress(Progress { name: &weights[site.layers[0]].name(), done: done as u64, total });
        let input = known.smooth_input(first, weights)?;
        let layers = layers(&site.layers, (weights, recipe), (model, pruned))?;
        let (factors, note) = choose(smoothing.rule, &layers, &input);
        site.layers.iter().for_each(|&Tensor(i)| recipe.decisions[i as usize].add_note(&note));
        match factors {
            Some(factors) if site.fold.is_ok() => smoothed.push((site, factors)),
            Some(factors) => divided.push((site.layers, factors)),
            None => result.plain += 1,
        }
    }
    (result.divided, result.turned) = (smoothed.len() + divided.len(), divided.len());
    if result.divided + result.plain == 0 {
        let expected =
            "layers that become codes, whose inputs the calibration has and what makes them can be divided in";
        let got = match result.unfolded.len() {
            0 => "none".into(),
            count => format!("{count} that cannot: {}", result.describe()),
        };
        return Err(Error::request("--smooth", expected, got).into());
    }
    fold(programs, weights, &smoothed);
    recipe.extend(weights.len());
    recipe.config += &format!(", {}", smoothing.describe());
    Ok((result, divided))
}

/// Whether a value is to be smoothed, if it can be.
fn is_wanted(site: &Smoothable, weights: &Weights, recipe: &Recipe, matcher: &Matcher) -> bool {
    let mut layers = site.layers.iter().map(|&layer| (&weights[layer], treatment(recipe, layer).store));
    let first = &weights[site.layers[0]];
    // Levels that rows have in common must not have rows of other scales.
    let shares_levels = |rows: Tensor| matches!(treatment(recipe, rows).store, Store::Codes(Method::KMeansTensor, _));
    Part::of(first.component) == Part::Denoiser
        && layers.any(|(_, store)| matches!(store, Store::Codes(..)))
        && site.layers.iter().any(|&layer| matcher.is_match(&weights[layer]))
        && !site.fold.ok().and_then(|fold| fold.rows()).is_some_and(|rows| shares_levels(rows.weight))
}

fn treatment(recipe: &Recipe, layer: Tensor) -> Treatment {
    recipe.decisions[layer.0 as usize].treatment
}

/// Layers that read a value, as the search has them.
pub(super) fn layers(
    site: &[Tensor],
    (weights, recipe): (&Weights, &Recipe),
    (model, pruned): (&Model, Option<&Pruned>),
) -> Result<Vec<SmoothLayer>> {
    let layer = |&layer: &Tensor| {
        let Treatment { store, activation_bits, codebook } = treatment(recipe, layer);
        let codes = match store {
            Store::Codes(method, bits) => Some((method, bits, codebook)),
            Store::F16 | Store::F32 => None,
        };
        let weight = &weights[layer];
        let (rows, weights) = (weight.matrix().0, elements(model, weights, weight, pruned)?.values);
        Ok(SmoothLayer { weights, rows, codes, activation_bits })
    };
    site.iter().map(layer).collect()
}

/// The factors of a value, none if it is best as it is; and what to tell of its layers.
fn choose(rule: SmoothRule, layers: &[SmoothLayer], input: &SmoothInput) -> (Option<Vec<f32>>, String) {
    if rule != SmoothRule::Search {
        return (Some(rule.factors(layers, input)), "smoothed".into());
    }
    if input.moments.inputs() > MOST_INPUTS {
        return (None, format!("not smoothed: of more than {MOST_INPUTS} inputs there is no search"));
    }
    let found = search(layers, input);
    if found.error >= found.plain_error {
        return (None, "not smoothed: no factors are better than none".into());
    }
    let (alpha, beta) = found.exponents;
    let saved = 100.0 * (1.0 - found.error / found.plain_error);
    (Some(found.factors), format!("smoothed: alpha {alpha}, beta {beta}, {saved:.1} % less error expected"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configurations_have_one_exponent_of_their_project() {
        let of = |rule, alphas: &[f64], layers: &[&str]| {
            let alphas = alphas.iter().map(|&alpha| (alpha, None)).collect();
            of_config(&config::Smoothing { rule, alphas, layers: layers.iter().map(|&l| l.to_owned()).collect() })
        };
        use config::SmoothingRule::{Activations, Weights};
        let first = of(Activations, &[0.11, 0.11], &["blocks.27.mlp.fc2"]).unwrap();
        let listed = Layers::Components(vec!["blocks.27.mlp.fc2".into()]);
        assert_eq!(first, Smoothing { rule: SmoothRule::SmoothQuant(0.11), layers: listed });
        let second = of(Weights, &[0.5], &["attn"]).unwrap();
        let found = Layers::Regex(vec!["attn".into()]);
        assert_eq!(second, Smoothing { rule: SmoothRule::ViditQ(0.5), layers: found });
        assert_eq!(of(Activations, &[0.3], &[]).unwrap().layers, Layers::All);
        for (alphas, expected) in [
            (&[0.1, 0.2][..], "one alpha for all timesteps, got 0.1, 0.2"),
            (&[1.5], "from 0 to 1"),
            (&[], "from 0 to 1"),
        ] {
            let told = of(Activations, alphas, &[]).unwrap_err().to_string();
            assert!(told.contains(expected), "{told}");
        }
    }
}
