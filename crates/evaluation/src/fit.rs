//! Whether two files are the same model but for their numbers' precision.

use crate::run::File;
use aquatint::raw::format::Meta;
use aquatint::raw::format::meta::{LayerMeta, Step};
use aquatint::raw::program::Role;
use aquatint::{Error, Result};
use serde_json::{Value, json};

/// Refuses files that are not one model: other pipelines, other networks, or other layers in them.
pub(crate) fn check<D: AsRef<[u8]>>(reference: &File<'_, D>, other: &File<'_, D>) -> Result<()> {
    let (ours, theirs) = (traits(reference), traits(other));
    for ((what, expected), (_, got)) in ours.iter().zip(&theirs) {
        if expected != got {
            let what = format!("{}: {what}", other.name);
            return Err(Error::request(what, format!("{expected}, as in {}", reference.name), got));
        }
    }
    let [expected, got] = [reference, other].map(|file| layers(file.model.meta()));
    let differs = zip_longest(expected, got).find(|(a, b)| a.map(|l| &l.name) != b.map(|l| &l.name));
    if let Some((expected, got)) = differs {
        let name = |layer: Option<&LayerMeta>| layer.map_or("none", |l| l.name.as_str()).to_owned();
        let what = format!("{}: layers", other.name);
        return Err(Error::request(what, format!("{}, as in {}", name(expected), reference.name), name(got)));
    }
    Ok(())
}

/// The layers that the model has: without second halves of split ones, and without what the packer made again for other
/// phases.
fn layers(meta: &Meta) -> impl Iterator<Item = &LayerMeta> {
    let own = |layer: &&LayerMeta| {
        let tensor = format!("{}.weight", layer.name);
        let half = |step: &Step| matches!(step, Step::Split { first: 1.., .. });
        !meta.made.contains(&tensor) && !meta.steps.get(&tensor).is_some_and(|steps| steps.iter().any(half))
    };
    meta.quantization.layers.iter().filter(own)
}

/// What must be the same, by name.
fn traits<D: AsRef<[u8]>>(file: &File<'_, D>) -> Vec<(&'static str, Value)> {
    let pipeline = &file.model.meta().pipeline;
    let roles = file.model.packed().programs().iter().filter(|p| matches!(p.role, Role::Denoiser | Role::Refiner));
    let inputs = roles.map(|p| {
        let kinds = p.inputs.iter().map(|input| format!("{:?}", input.kind));
        format!("{} of {}", p.role.name(), kinds.collect::<Vec<_>>().join(", "))
    });
    vec![
        ("pipeline", json!(pipeline.class)),
        ("channels of latents", json!(pipeline.latent_channels)),
        ("size of latents", json!(pipeline.latent_size)),
        ("pixels per latent", json!(pipeline.pixels_per_latent)),
        ("multiple of latents", json!(pipeline.latent_multiple)),
        ("classes", json!(pipeline.classes)),
        ("label of no class", json!(pipeline.null_class)),
        ("prediction", json!(pipeline.sampler.prediction.to_string())),
        ("text", json!(pipeline.text)),
        ("refiner", json!(pipeline.refiner)),
        ("networks", json!(inputs.collect::<Vec<_>>())),
    ]
}

/// Pairs to the end of the longer.
fn zip_longest<T>(
    mut a: impl Iterator<Item = T>,
    mut b: impl Iterator<Item = T>,
) -> impl Iterator<Item = (Option<T>, Option<T>)> {
    std::iter::from_fn(move || match (a.next(), b.next()) {
        (None, None) => None,
        pair => Some(pair),
    })
}

/// What people should know of how these files go together.
pub(crate) fn notes<D: AsRef<[u8]>>(files: &[File<'_, D>]) -> Vec<String> {
    let reference = &files[0];
    let mut notes = Vec::new();
    let meta = reference.model.meta();
    if let Some(layer) = meta.quantization.layers.iter().find(|l| l.activation_bits != 32 || !l.method.starts_with('f'))
    {
        notes.push(format!(
            "{}: the reference is quantized itself ({}: {}); errors are distances from it, not from the model's own floats",
            reference.name, layer.name, layer.method
        ));
    }
    for file in &files[1..] {
        let theirs = &file.model.meta().sources;
        let other = meta
            .sources
            .iter()
            .find(|source| theirs.iter().any(|other| other.file == source.file && other.xxh3 != source.xxh3));
        if let Some(source) = other {
            notes.push(format!("{}: packed of another {} than {}", file.name, source.file, reference.name));
        }
    }
    notes
}
