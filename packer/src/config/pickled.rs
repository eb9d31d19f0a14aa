//! The part of a pickle that a configuration can hold.
//!
//! What is shared inside the pickle is not multiplied here: lists are cut to their first element, only one level of maps
//! is followed, and of several configurations only the one that is wanted is made.

use super::cache::{self, Sample, Wanted};
use super::entries::Raw;
use super::{ConfigError, entries::NO_MAP};
use crate::source::pickle::{Id, Pickle, Value};
use std::collections::{HashMap, HashSet};

/// The configuration that is `wanted` of a file's data.
///
/// # Errors
/// If there is no such one.
pub(super) fn read(origin: &str, pickle: &Pickle<'_>, wanted: Wanted) -> Result<Raw, ConfigError> {
    let id = match pickle.root() {
        Value::List(items) | Value::Tuple(items) => {
            if items.iter().any(|&id| !matches!(pickle.get(id), Value::Dict(_))) {
                return Err(ConfigError::Syntax { origin: origin.into(), reason: NO_MAP.into() });
            }
            items[cache::choose(origin, &samples(pickle, items), wanted)?]
        }
        _ => {
            super::entries::only(origin, wanted)?;
            pickle.root_id()
        }
    };
    Ok(map(pickle, id, &|key, value| match key {
        "config" | "layers" => map(pickle, value, &|_, value| entry(pickle, value)),
        _ => entry(pickle, value),
    }))
}

/// What was measured with each of `items`. A map that is listed many times is looked at once.
fn samples(pickle: &Pickle<'_>, items: &[Id]) -> Vec<Sample> {
    let mut known = HashMap::new();
    let mut sample = |id: Id| {
        let sample = known.entry(id).or_insert_with(|| {
            let mut sample = Sample::default();
            let Value::Dict(entries) = pickle.get(id) else { return sample };
            for &(key, value) in entries {
                if let Some((key, value)) = pickle.text(key).zip(number(pickle, value)) {
                    sample.note(key, value);
                }
            }
            sample
        });
        sample.clone()
    };
    items.iter().map(|&id| sample(id)).collect()
}

fn number(pickle: &Pickle<'_>, id: Id) -> Option<f64> {
    match pickle.scalar(id).unwrap_or_else(|| pickle.get(id).clone()) {
        Value::Float(value) => Some(value),
        Value::Int(value) => Some(value as f64),
        _ => None,
    }
}

/// A value by itself.
fn leaf(value: &Value<'_>) -> Raw {
    match value {
        Value::Str(text) => Raw::Text((*text).into()),
        Value::Text(text) => Raw::Text(text.clone()),
        Value::Int(n) => Raw::Int(*n),
        Value::Float(x) => Raw::Float(*x),
        Value::None => Raw::Other("None"),
        Value::Bool(value) => Raw::Bool(*value),
        Value::Bytes(_) => Raw::Other("bytes"),
        Value::List(_) | Value::Tuple(_) => Raw::Other("a list"),
        Value::Dict(_) => Raw::Other("a dict"),
        _ => Raw::Other("an object"),
    }
}

/// A layer's value: by itself, or as the first of a list.
fn entry(pickle: &Pickle<'_>, id: Id) -> Raw {
    if let Some(scalar) = pickle.scalar(id) {
        return leaf(&scalar);
    }
    match (pickle.first(id), pickle.get(id)) {
        (Some(first), _) => Raw::List(vec![leaf(&first)]),
        (None, Value::List(_) | Value::Tuple(_)) => Raw::List(Vec::new()),
        (None, other) => leaf(other),
    }
}

fn map(pickle: &Pickle<'_>, id: Id, convert: &dyn Fn(&str, Id) -> Raw) -> Raw {
    let Value::Dict(items) = pickle.get(id) else { return entry(pickle, id) };
    // As in Python, the last of equal keys counts.
    let mut seen = HashSet::new();
    let mut map = Vec::new();
    for &(key, value) in items.iter().rev() {
        match leaf(&pickle.scalar(key).unwrap_or_else(|| pickle.get(key).clone())) {
            Raw::Text(key) => {
                if seen.insert(key.clone()) {
                    let value = convert(&key, value);
                    map.push((key, value));
                }
            }
            _ => map.push(("a key that is not text".into(), Raw::Other("unusable"))),
        }
    }
    map.reverse();
    Raw::Map(map)
}
