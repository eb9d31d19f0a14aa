//! Configuration files of research projects, told apart by their keys, as what they mean here.
//!
//! * the course project's `config.yaml` ([`course`]): `QUANTISATION_PARAMS`;
//! * ViDiT-Q's first files ([`first`]): `quant: {weight, activation}`;
//! * its files of bits by step ([`steps`]): `'19-15': {layer: bits}`;
//! * its later files ([`second`]): `weight` and `act` with `n_bits`.
//!
//! An option that is not known is refused by name. One that is known and changes nothing here becomes a note.

mod course;
mod fields;
mod first;
mod second;
mod steps;

use super::entries::Raw;
use super::{Choice, ConfigError, Decider, LayerSpec, QConfig};
use std::path::Path;

/// The configuration of a file that one of these projects reads; none if the file is of no other project.
///
/// # Errors
/// For what its project would not understand, and for what is not supported.
pub(super) fn read(path: &Path, origin: &str, raw: &Raw) -> Option<Result<QConfig, ConfigError>> {
    let Raw::Map(top) = raw else { return None };
    let map = |key: &str| top.iter().find(|(k, _)| k == key).is_some_and(|(_, value)| matches!(value, Raw::Map(_)));
    let has = |outer: &str, inner: &str| {
        let value = top.iter().find(|(k, _)| k == outer).map(|(_, value)| value);
        matches!(value, Some(Raw::Map(map)) if map.iter().any(|(key, _)| key == inner))
    };
    let fields = fields::Fields::new(origin, top);
    if map("QUANTISATION_PARAMS") {
        Some(course::read(&fields))
    } else if has("quant", "weight") || has("quant", "activation") {
        Some(first::read(path, &fields))
    } else if has("weight", "n_bits") {
        Some(second::read(&fields))
    } else if top.iter().any(|(key, value)| steps::range(key).is_some() && matches!(value, Raw::Map(_))) {
        Some(steps::read(&fields))
    } else {
        None
    }
}

/// What layers get that nothing else is said of.
fn default(spec: LayerSpec) -> Option<Choice> {
    Some(Choice { spec, by: Decider::Default })
}
