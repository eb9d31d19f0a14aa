//! ViDiT-Q's bits by step (quantization.md §4.1): `'19-15': {layer: bits}` for every range of steps, and `fp_layers`.

use super::default;
use super::fields::{Fields, MAX_ITEMS, width_fault};
use crate::config::entries::Raw;
use crate::config::rules::{Pattern, Rule};
use crate::config::{Activations, ConfigError, FLOAT, QConfig, StepRange, spec};

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

pub(super) fn read(file: &Fields) -> Result<QConfig, ConfigError> {
    let mut config = QConfig::empty(file.origin.into());
    let kept = file.map("fp_layers")?;
    if file.iter().count() > MAX_ITEMS {
        return Err(file.fault("fp_layers", &format!("and ranges must be at most {MAX_ITEMS}")));
    }
    for (key, value) in file.iter().filter(|(key, _)| *key != "fp_layers") {
        let Some((first, last)) = range(key) else {
            return Err(file.fault(key, "is not known; expected ranges of steps such as 19-15, and fp_layers"));
        };
        if !matches!(value, Raw::Map(_)) {
            return Err(file.fault(key, "must be a map from layers to bits"));
        }
        let layers = file.map(key)?;
        let bits = |(layer, value): (&str, &Raw)| match value {
            Raw::Int(bits @ 2..=16) => Ok((layer.to_owned(), *bits as u8)),
            _ => Err(layers.fault(layer, "must be bits, 2 to 16")),
        };
        let bits = layers.iter().map(bits).collect::<Result<Vec<_>, _>>()?;
        let kept = kept.texts(key)?.into_iter().map(str::to_owned).collect();
        config.step_ranges.push(StepRange { first, last, layers: bits, kept });
    }
    if let Some((key, _)) = kept.iter().find(|(key, _)| file.get(key).is_none()) {
        return Err(kept.fault(key, "is no range of steps that has bits"));
    }
    config.step_ranges.sort_by_key(|range| std::cmp::Reverse(range.first));
    // Where all agree, bits do not change.
    let all = &config.step_ranges[0];
    for part in &all.kept {
        config.rules.push(Rule::new(part, Pattern::Part(part.clone()), FLOAT));
    }
    for (layer, bits) in &all.layers {
        let spec = match bits {
            16 => FLOAT,
            bits => spec::parse_value(&format!("{METHOD}-{bits}"), Activations::Float)
                .map_err(|fault| width_fault(file, layer, fault))?,
        };
        config.entries.push((layer.clone(), spec));
    }
    config.default = default(FLOAT);
    config.notes.push("bits are of weights; activations stay floats without --quant-act".into());
    config.notes.push("layers that the file does not name stay f16".into());
    Ok(config)
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
