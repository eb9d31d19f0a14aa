//! What an import changes on the way of a weight into the file.

use crate::config::QConfig;
use crate::error::Result;
use crate::import::{Imported, ImportedWeight, RowGrid};
use crate::lower::Part;
use crate::pass::{self, Halves, Site, Split};
use crate::recipe::{Recipe, Store};
use crate::reconstruct::Reconstruction;
use crate::source::diffusers::Model;
use crate::weight::{Elements, Misfit, Step, Weight, Weights, step};
use aquatint::error::Error;
use aquatint::raw::program::{Dims, Program, Tensor};

/// What is to be split of the layers over two values side by side.
#[derive(Clone, Copy)]
pub(super) struct Wanted<'a> {
    /// All of these kinds.
    pub(super) kinds: &'a [Split],
    /// Those that have two quantizers here.
    pub(super) imported: Option<&'a Imported>,
    /// Those whose halves were trained apart.
    pub(super) trained: Option<&'a Reconstruction>,
    /// Those whose second half an entry is for.
    pub(super) config: Option<&'a QConfig>,
}

/// Splits the layers over two values side by side of the denoisers that are wanted.
///
/// # Errors
/// If there are none of a kind of which all are to be.
pub(super) fn split(
    programs: &mut [Program],
    weights: &mut Weights,
    model: &Model,
    dims: &Dims,
    Wanted { kinds, imported, trained, config }: Wanted,
) -> Result<()> {
    let wanted = |weights: &Weights, tensor: Tensor, split: Split| {
        let weight = &weights[tensor];
        let own = || &model.component(weight.component).weights;
        let named = || config.is_some_and(|config| config.splits(&weight.layer()));
        let has_two = || imported.is_some_and(|i| i.is_split(own(), weight));
        let has_half = || trained.is_some_and(|trained| trained.is_split(&weight.name(), weight.matrix().1));
        Part::of(weight.component) == Part::Denoiser && (kinds.contains(&split) || named() || has_two() || has_half())
    };
    let halves = pass::split_layers(programs, weights, dims, &wanted)?;
    check_split(kinds, &halves, programs)
}

/// Refuses kinds of layers to split of which there are none among `halves`, what was split of `programs`; tells which other
/// kinds they have.
///
/// # Errors
/// For the first of them.
pub(crate) fn check_split(kinds: &[Split], halves: &[Halves], programs: &[Program]) -> Result<()> {
    match kinds.iter().find(|kind| !halves.iter().any(|halves| halves.split == **kind)) {
        Some(kind) => {
            let option = if *kind == Split::Shortcut { "--split".into() } else { format!("--split={kind}") };
            let expected = format!("a denoiser with {}, or it has no effect", kind.layers());
            let others: Vec<String> =
                pass::whole_kinds(programs).iter().map(|kind| format!("{} (--split={kind})", kind.layers())).collect();
            let got = if others.is_empty() { "none".into() } else { format!("one with {}", others.join(", ")) };
            Err(Error::request(option, expected, got).into())
        }
        None => Ok(()),
    }
}

/// Whether `imported` has the layer with this weight.
pub(super) fn knows(imported: &Imported, model: &Model, weight: &Weight) -> bool {
    let denoiser = Part::of(weight.component) == Part::Denoiser && weight.quantizable() && !weight.is_made();
    denoiser && imported.knows(&model.component(weight.component).weights, weight)
}

/// Whether `imported` is of a whole model in which the layer with this weight is in floats.
///
/// # Errors
/// If the file is damaged.
pub(super) fn leaves(imported: &Imported, model: &Model, weight: &Weight) -> Result<bool> {
    let denoiser = Part::of(weight.component) == Part::Denoiser && weight.quantizable() && !weight.is_made();
    Ok(denoiser && imported.leaves(&model.component(weight.component).weights, weight)?)
}

/// Refuses an import from which nothing would be taken.
///
/// # Errors
/// If it has no layer of the model, or none that becomes codes.
pub(super) fn check_effect(imported: &Imported, sites: &[Site], recipe: &Recipe) -> Result<()> {
    let coded = |i: usize| matches!(recipe.decisions[i].treatment.store, Store::Codes(..));
    let known: Vec<usize> = (0..sites.len()).filter(|&i| sites[i].imported).collect();
    let (expected, got) = match known.iter().any(|&i| coded(i)) {
        true => return Ok(()),
        false if known.is_empty() => (
            "the weights of this model, under its own names",
            format!("{} layers with other names", imported.layer_count()),
        ),
        false => ("a configuration that makes codes of layers that it has, or it has no effect", "none".into()),
    };
    Err(Error::request(format!("--import {}", imported.describe()), expected, got).into())
}

/// An imported weight and its grid after the steps of `weight`, a split apart: it was made in the halves that it is in.
///
/// # Errors
/// If a step does more than move weights.
pub(super) fn in_file_order(weight: &Weight, imported: ImportedWeight) -> Result<(Elements, Option<RowGrid>)> {
    let steps: Vec<Step> = weight.steps.iter().filter(|step| !matches!(step, Step::Split { .. })).cloned().collect();
    let turn = |dims: Vec<usize>, values: Vec<f32>| {
        let misfit = |Misfit { expected, got }| Error::request(format!("steps of {}", weight.name()), expected, got);
        let refuse = |name: &str| Err(Misfit::new("steps that only move weights", name));
        step::apply(&steps, Elements { dims, values }, &refuse).map_err(misfit)
    };
    let mut rows = vec![1; imported.dims.len()];
    rows[0] = imported.dims[0];
    let grid = match imported.grid {
        Some(RowGrid { step, zero }) => {
            Some(RowGrid { step: turn(rows.clone(), step)?.values, zero: turn(rows, zero)?.values })
        }
        None => None,
    };
    Ok((turn(imported.dims, imported.values)?, grid))
}
