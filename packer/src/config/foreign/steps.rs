//! ViDiT-Q's bits by step (quantization.md §4.1): `'19-15': {layer: bits}` for every range of steps, and `fp_layers`.

use super::default;
use super::fields::{Fields, MAX_ITEMS, width_fault};
use crate::config::entries::Raw;
use crate::config::rules::{Pattern, Rule};
use crate::config::{Activations, ConfigError, FLOAT, LayerSpec, Phase, QConfig, spec};
use aquatint::raw::program::CurveAxis;

/// The rule of ViDiT-Q's levels.
pub(super) const METHOD: &str = "min_max";

/// The first and the last step of a key such as `19-15`.
pub(super) fn range(key: &str) -> Option<(u32, u32)> {
    let (first, last) = key.split_once(['-', '_'])?;
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if !digits(first) || !digits(last) {
        return None;
    }
    Some((first.parse().ok()?, last.parse().ok()?)).filter(|(first, last)| first >= last)
}

/// Bits of layers during some steps of a run, counted down to 0.
#[derive(PartialEq)]
struct StepRange<'a> {
    first: u32,
    last: u32,
    /// Layers and their bits, in the order of their names.
    layers: Vec<(&'a str, u8)>,
    /// Parts of names of layers that are floats.
    kept: Vec<&'a str>,
}

/// The first range is the configuration, every later one that differs from the one before a phase.
pub(super) fn read(file: &Fields) -> Result<QConfig, ConfigError> {
    let ranges = ranges(file)?;
    let steps = ranges[0].first + 1;
    let mut config = QConfig::empty(file.origin.into());
    (config.entries, config.rules) = layers(file, &ranges[0])?;
    config.default = default(FLOAT);
    for (before, range) in ranges.iter().zip(&ranges[1..]) {
        if (&before.layers, &before.kept) == (&range.layers, &range.kept) {
            continue;
        }
        let start = (steps - 1 - range.first) as f32 / steps as f32;
        let (entries, rules) = layers(file, range)?;
        config.phases.later.push(Phase { start, default: default(FLOAT), entries, rules });
    }
    config.phases.axis = CurveAxis::StepFraction;
    config.notes.push("bits are of weights; activations stay floats without --quant-act".into());
    config.notes.push("layers that the file does not name stay f16".into());
    if !config.phases.later.is_empty() {
        config.notes.push(format!(
            "ranges are of {steps} steps; runs of other lengths change bits after the same share of them"
        ));
    }
    Ok(config)
}

/// The ranges, the first steps first: without gaps, down to step 0.
fn ranges<'a>(file: &Fields<'a>) -> Result<Vec<StepRange<'a>>, ConfigError> {
    let kept = file.map("fp_layers")?;
    if file.iter().count() > MAX_ITEMS {
        return Err(file.fault("fp_layers", &format!("and ranges must be at most {MAX_ITEMS}")));
    }
    let mut ranges = Vec::new();
    for (key, value) in file.iter().filter(|(key, _)| *key != "fp_layers") {
        let Some((first, last)) = range(key) else {
            return Err(file.fault(key, "is not known; expected ranges of steps such as 19-15, and fp_layers"));
        };
        if !matches!(value, Raw::Map(_)) {
            return Err(file.fault(key, "must be a map from layers to bits"));
        }
        let layers = file.map(key)?;
        let bits = |(layer, value): (&'a str, &Raw)| match value {
            Raw::Int(bits @ 2..=16) => Ok((layer, *bits as u8)),
            _ => Err(layers.fault(layer, "must be bits, 2 to 16")),
        };
        let mut bits = layers.iter().map(bits).collect::<Result<Vec<_>, _>>()?;
        let mut kept = kept.texts(key)?;
        bits.sort();
        kept.sort();
        ranges.push((key, StepRange { first, last, layers: bits, kept }));
    }
    if let Some((key, _)) = kept.iter().find(|(key, _)| file.get(key).is_none()) {
        return Err(kept.fault(key, "is no range of steps that has bits"));
    }
    ranges.sort_by_key(|(_, range)| std::cmp::Reverse(range.first));
    for (i, (key, range)) in ranges.iter().enumerate() {
        let next = ranges.get(i + 1).map_or(-1, |(_, next)| i64::from(next.first));
        if i64::from(range.last) - 1 != next {
            return Err(file.fault(key, "must end where the next range begins, and the last one with step 0"));
        }
    }
    Ok(ranges.into_iter().map(|(_, range)| range).collect())
}

/// Entries, and the rules after them.
type Deciders = (Vec<(String, LayerSpec)>, Vec<Rule>);

/// What decides about layers during a range.
fn layers(file: &Fields, range: &StepRange) -> Result<Deciders, ConfigError> {
    let rules = range.kept.iter().map(|part| Rule::new(part, Pattern::Part((*part).to_owned()), FLOAT)).collect();
    let entry = |(layer, bits): &(&str, u8)| {
        let spec = match bits {
            16 => FLOAT,
            bits => spec::parse_value(&format!("{METHOD}-{bits}"), Activations::Float)
                .map_err(|fault| width_fault(file, layer, fault))?,
        };
        Ok(((*layer).to_owned(), spec))
    };
    Ok((range.layers.iter().map(entry).collect::<Result<Vec<_>, _>>()?, rules))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_count_down() {
        for (key, expected) in [
            ("19-15", Some((19, 15))),
            ("4_0", Some((4, 0))),
            ("7-7", Some((7, 7))),
            ("0-4", None),
            ("a-0", None),
            ("-4", None),
            ("+4-0", None),
            ("99999999999-0", None),
            ("4", None),
        ] {
            assert_eq!(range(key), expected, "{key}");
        }
    }
}
