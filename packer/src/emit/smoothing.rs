//! Smoothing while packing: which values, by which factors.

use super::calibrated::Known;
use super::pruned::Pruned;
use super::{Options, Progress, decide, elements};
use crate::error::Result;
use crate::lower::Part;
use crate::pass::{Smoothable, fold, smoothables};
use crate::quantize::{Method, SmoothInput, SmoothLayer, SmoothRule, search};
use crate::recipe::{Recipe, Store, Treatment};
use crate::source::diffusers::Model;
use crate::weight::{Weight, Weights};
use aquatint::error::Error;
use aquatint::raw::format::meta::PipelineMeta;
use aquatint::raw::program::{Program, Tensor};
use globset::{Glob, GlobMatcher};

/// Inputs of layers whose covariance a search holds at most; layers with more are left as they are.
const MOST_INPUTS: usize = 6144;

/// How inputs of the denoisers' layers are smoothed.
#[derive(Clone, Debug, PartialEq)]
pub struct Smoothing {
    /// How factors are chosen.
    pub rule: SmoothRule,
    /// A glob of layers' paths; all layers if absent. What reads the same value is smoothed with a layer.
    pub layers: Option<String>,
}

impl Smoothing {
    /// In words, for META.
    fn describe(&self) -> String {
        let rule = match self.rule {
            SmoothRule::SmoothQuant(alpha) => format!("SmoothQuant's rule, alpha {alpha}"),
            SmoothRule::ViditQ(alpha) => format!("ViDiT-Q's rule, alpha {alpha}"),
            SmoothRule::Search => "search".into(),
        };
        let layers = self.layers.as_ref().map(|glob| format!(" at {glob}")).unwrap_or_default();
        format!("smoothed by {rule}{layers}")
    }
}

/// What smoothing did.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Smoothed {
    /// Values that are divided by factors.
    pub(super) divided: usize,
    /// Values whose best factors are none.
    pub(super) plain: usize,
    /// Values that integer layers read and that cannot be divided in what makes them.
    pub(super) unfolded: Vec<Smoothable>,
}

impl Smoothed {
    /// In words, for people.
    pub(super) fn describe(&self) -> String {
        let Smoothed { divided, plain, unfolded } = self;
        let mut text = format!("{divided} inputs of layers are smoothed");
        if *plain > 0 {
            text += &format!(", {plain} are best as they are");
        }
        match unfolded.first().and_then(|site| site.fold.err()) {
            Some(first) => text + &format!(", {} cannot be (the first: {first})", unfolded.len()),
            None => text,
        }
    }
}

/// Refuses what smoothing does not go with.
///
/// # Errors
/// If there is no calibration, ranges are fixed, or weights imported.
pub(super) fn check(options: &Options) -> Result<()> {
    if options.smoothing.is_none() {
        return Ok(());
    }
    let refuse = |expected: &str, got: &str| Err(Error::request("--smooth", expected, got).into());
    if options.calibration.is_none() {
        return refuse("--calib FILE: a calibration knows how large activations are", "none");
    }
    if options.activation_ranges.is_some() {
        return refuse(
            "--act-range dynamic: what was seen at each call is of inputs that are not divided",
            "fixed ranges",
        );
    }
    if options.import.is_some() {
        return refuse("weights that are quantized here: those of --import are what they are", "--import");
    }
    Ok(())
}

/// Divides what layers read by factors, as `smoothing` says, where the layers become codes.
///
/// # Errors
/// If the layers are no glob, nothing can be smoothed, or a weight or the calibration cannot be read.
pub(super) fn smooth(
    smoothing: &Smoothing,
    (programs, weights, recipe): (&mut [Program], &mut Weights, &mut Recipe),
    (model, pipeline, pruned): (&Model, &PipelineMeta, Option<&Pruned>),
    known: &Known,
    progress: &mut dyn FnMut(Progress),
) -> Result<Smoothed> {
    let named = |glob: &String| {
        let refuse = |e: globset::Error| Error::request("--smooth-layers", "a glob of layers' paths", e.kind());
        Glob::new(glob).map(|glob| glob.compile_matcher()).map_err(refuse)
    };
    let glob = smoothing.layers.as_ref().map(named).transpose()?;
    let mut result = Smoothed::default();
    let mut sites: Vec<(Smoothable, usize)> = Vec::new();
    for site in smoothables(programs, weights, &decide::dims(pipeline))? {
        let Some(known) = known.first_known(&site.layers).filter(|_| is_wanted(&site, weights, recipe, glob.as_ref()))
        else {
            continue;
        };
        match site.fold {
            Ok(_) => sites.push((site, known)),
            Err(_) if site.layers.iter().any(|&layer| treatment(recipe, layer).activation_bits.is_some()) => {
                result.unfolded.push(site);
            }
            Err(_) => {}
        }
    }
    let total = sites.len() as u64;
    let mut smoothed = Vec::new();
    for (done, (site, first)) in sites.into_iter().enumerate() {
        progress(Progress { name: &weights[site.layers[0]].name(), done: done as u64, total });
        let input = known.smooth_input(first, weights)?;
        let layers = layers(&site, (weights, recipe), (model, pruned))?;
        let (factors, note) = choose(smoothing.rule, &layers, &input);
        site.layers.iter().for_each(|&Tensor(i)| recipe.decisions[i as usize].add_note(&note));
        match factors {
            Some(factors) => smoothed.push((site, factors)),
            None => result.plain += 1,
        }
    }
    result.divided = smoothed.len();
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
    Ok(result)
}

/// Whether a value is to be smoothed, if it can be.
fn is_wanted(site: &Smoothable, weights: &Weights, recipe: &Recipe, glob: Option<&GlobMatcher>) -> bool {
    let named = |weight: &Weight| {
        glob.is_none_or(|glob| {
            glob.is_match(weight.layer()) || weight.copied_layers().any(|layer| glob.is_match(layer))
        })
    };
    let mut layers = site.layers.iter().map(|&layer| (&weights[layer], treatment(recipe, layer).store));
    let first = &weights[site.layers[0]];
    // Levels that rows have in common must not have rows of other scales.
    let shares_levels = |rows: Tensor| matches!(treatment(recipe, rows).store, Store::Codes(Method::KMeansTensor, _));
    Part::of(first.component) == Part::Denoiser
        && layers.any(|(_, store)| matches!(store, Store::Codes(..)))
        && site.layers.iter().any(|&layer| named(&weights[layer]))
        && !site.fold.ok().and_then(|fold| fold.rows()).is_some_and(|rows| shares_levels(rows.weight))
}

fn treatment(recipe: &Recipe, layer: Tensor) -> Treatment {
    recipe.decisions[layer.0 as usize].treatment
}

/// The layers that read a value, as the search has them.
fn layers(
    site: &Smoothable,
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
    site.layers.iter().map(layer).collect()
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
