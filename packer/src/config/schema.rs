//! The JSON Schema of configurations, for editors: it knows every value there is, and completes it.

use crate::quantize::{Method, Rule};
use aquatint::raw::codec::Bits;
use serde_json::{Value, json};

/// Spellings of methods that are read besides their names.
const ALIASES: [&str; 4] = ["uaq", "kmeans_c", "kmeans_a", "gauss"];
/// Bits of activations, 16 for floats.
const ACTIVATIONS: [u8; 8] = [2, 3, 4, 5, 6, 7, 8, 16];

/// The schema of a configuration file in JSON, YAML or TOML.
pub fn schema() -> Value {
    let value = json!({
        "description": "f32, f16, w<bits>a<bits> with an optional :<method>, or <method>-<bits>, which takes the file's activations",
        "enum": values(),
    });
    let activations: Vec<Value> =
        ACTIVATIONS.iter().flat_map(|bits| [json!(bits), json!(bits.to_string()), json!(format!("a{bits}"))]).collect();
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "How the layers of a model are quantized",
        "description": "Layer names, or globs over them (* crosses dots), with the precision of each; maps may be nested, and \
            spell a name in pieces then. An exact name beats every glob, and a glob with more literal characters another.",
        "type": "object",
        "properties": {
            "default": { "description": "The precision of layers that nothing else names.", "$ref": "#/$defs/value" },
            "activations": {
                "description": "Bits of activations where a value does not say; 16, the default, are floats.",
                "enum": activations,
            },
            "layers": {
                "description": "The map, if it does not stand at the top itself.",
                "$ref": "#/$defs/layers",
            },
            "phases": {
                "description": "What is other from some time of a run on.",
                "type": "array",
                "items": { "$ref": "#/$defs/phase" },
            },
        },
        "additionalProperties": { "$ref": "#/$defs/entry" },
        "$defs": {
            "value": value,
            "phase": {
                "type": "object",
                "properties": {
                    "from": {
                        "description": "Where it begins: the share of the steps that are done.",
                        "type": "number",
                        "exclusiveMinimum": 0,
                        "exclusiveMaximum": 1,
                    },
                    "from_timestep": {
                        "description": "Where it begins: the model's timestep, which falls as steps go by.",
                        "type": "number",
                        "exclusiveMinimum": 0,
                    },
                    "default": {
                        "description": "The precision of layers that the phase does not name; without one they stay as they are.",
                        "$ref": "#/$defs/value",
                    },
                    "layers": { "$ref": "#/$defs/layers" },
                },
                "oneOf": [{ "required": ["from"] }, { "required": ["from_timestep"] }],
                "additionalProperties": { "$ref": "#/$defs/entry" },
            },
            "layers": { "type": "object", "additionalProperties": { "$ref": "#/$defs/entry" } },
            "entry": {
                "anyOf": [
                    { "$ref": "#/$defs/value" },
                    { "$ref": "#/$defs/layers" },
                    {
                        "description": "As caches have it: what follows the first element does not matter.",
                        "type": "array",
                        "prefixItems": [{ "$ref": "#/$defs/value" }],
                        "minItems": 1,
                    },
                ],
            },
        },
    })
}

/// All values that a layer may have.
fn values() -> Vec<String> {
    let rules = Rule::ALL.into_iter().map(Method::Uniform);
    let others = Method::ALL.into_iter().filter(|method| !matches!(method, Method::Uniform(_)));
    let methods: Vec<&str> = rules.chain(others).map(Method::name).chain(ALIASES).collect();
    let mut values = vec!["f32".to_owned(), "f16".to_owned()];
    for (bits, activations) in Bits::ALL.into_iter().flat_map(|bits| ACTIVATIONS.map(|a| (bits, a))) {
        values.push(format!("w{bits}a{activations}"));
        values.extend(methods.iter().map(|method| format!("w{bits}a{activations}:{method}")));
    }
    values.extend(methods.iter().flat_map(|method| Bits::ALL.map(|bits| format!("{method}-{bits}"))));
    values
}

#[cfg(test)]
mod tests {
    use super::super::{Activations, spec};
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_value_is_read_and_every_method_is_there() {
        let values = values();
        for value in &values {
            assert!(spec::parse_value(value, Activations::Int(8)).is_ok(), "{value}");
        }
        let once: BTreeSet<&String> = values.iter().collect();
        assert_eq!(once.len(), values.len());
        for method in Rule::ALL.into_iter().map(Method::Uniform).chain(Method::ALL) {
            for bits in Bits::ALL {
                assert!(once.contains(&format!("{method}-{bits}")) && once.contains(&format!("w{bits}a8:{method}")));
                assert!(once.contains(&format!("w{bits}a4:{method}")));
            }
        }
        for other in ALIASES {
            assert!(Method::parse(other).is_some_and(|method| method.name() != other), "{other}");
        }
        let schema = schema();
        for activations in schema["properties"]["activations"]["enum"].as_array().unwrap() {
            let text = activations.as_str().map_or_else(|| activations.to_string(), str::to_owned);
            assert!(spec::activations(&text).is_ok(), "{text}");
        }
    }
}
