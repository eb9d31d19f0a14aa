//! Reading a `config.json`: typed fields with defaults, and refusals that name what is supported.

use crate::source::diffusers::Object;
use aquatint::error::{Error, Result};
use serde_json::Value;

/// Largest dimension that a configuration may name; far above any model, small enough that products fit 64 bits.
const MAX_DIM: u64 = 1 << 16;

/// The fields of one component's configuration. An absent or null field has its class's default.
pub struct Fields<'a> {
    component: &'a str,
    object: &'a Object,
}

impl<'a> Fields<'a> {
    /// The fields of `object`, which is `component`'s configuration.
    pub fn new(component: &'a str, object: &'a Object) -> Self {
        Fields { component, object }
    }

    fn value(&self, field: &str) -> Option<&'a Value> {
        self.object.get(field).filter(|v| !v.is_null())
    }

    /// The error of `field` being `got` where `expected` is supported.
    pub fn error(&self, field: &str, expected: impl std::fmt::Display, got: impl std::fmt::Display) -> Error {
        Error::request(format!("{}/config.json: {field}", self.component), expected, got)
    }

    /// A positive whole number; `None` if absent.
    pub fn count(&self, field: &str) -> Result<Option<u32>> {
        self.value(field).map(|v| self.number(field, v)).transpose()
    }

    /// A positive whole number.
    pub fn count_or(&self, field: &str, default: u32) -> Result<u32> {
        Ok(self.count(field)?.unwrap_or(default))
    }

    /// A list of positive whole numbers; `None` if absent.
    pub fn counts(&self, field: &str) -> Result<Option<Vec<u32>>> {
        let Some(value) = self.value(field) else { return Ok(None) };
        let Some(list) = value.as_array().filter(|l| !l.is_empty()) else {
            return Err(self.error(field, "a list of whole numbers", value));
        };
        list.iter().map(|v| self.number(field, v)).collect::<Result<Vec<_>>>().map(Some)
    }

    /// One positive whole number per level, of `levels`: a list of them, or one for all; `default` if absent.
    pub fn counts_per_level(&self, field: &str, levels: usize, default: u32) -> Result<Vec<u32>> {
        let counts = match self.value(field) {
            Some(Value::Array(_)) => self.counts(field)?.unwrap_or_default(),
            _ => vec![self.count_or(field, default)?; levels],
        };
        if counts.len() != levels {
            return Err(self.error(field, format!("one number, or one for each of {levels} levels"), counts.len()));
        }
        Ok(counts)
    }

    /// Height and width: two numbers, or one for both; `None` if absent.
    pub fn size(&self, field: &str) -> Result<Option<[u32; 2]>> {
        match self.value(field) {
            None => Ok(None),
            Some(value @ Value::Array(_)) => match self.counts(field)?.as_deref() {
                Some(&[height, width]) => Ok(Some([height, width])),
                _ => Err(self.error(field, "one number, or height and width", value)),
            },
            Some(value) => self.number(field, value).map(|n| Some([n; 2])),
        }
    }

    /// A text; `default` if absent.
    pub fn text_or(&self, field: &str, default: &'a str) -> Result<&'a str> {
        let Some(value) = self.value(field) else { return Ok(default) };
        value.as_str().ok_or_else(|| self.error(field, "a text", value))
    }

    /// Refuses any factor but 1, which is what an absent one is.
    pub fn must_be_one(&self, field: &str) -> Result<()> {
        let factor = self.float_or(field, 1.0)?;
        if factor == 1.0 { Ok(()) } else { Err(self.error(field, 1, factor)) }
    }

    /// A list of texts; `None` if absent.
    pub fn texts(&self, field: &str) -> Result<Option<Vec<&'a str>>> {
        let Some(value) = self.value(field) else { return Ok(None) };
        let texts = value.as_array().and_then(|list| list.iter().map(Value::as_str).collect::<Option<Vec<_>>>());
        texts.map(Some).ok_or_else(|| self.error(field, "a list of names", value))
    }

    fn number(&self, field: &str, value: &Value) -> Result<u32> {
        match value.as_u64() {
            Some(n @ 1..=MAX_DIM) => Ok(n as u32),
            _ => Err(self.error(field, format!("a whole number from 1 to {MAX_DIM}"), value)),
        }
    }

    /// A finite number.
    pub fn float_or(&self, field: &str, default: f64) -> Result<f64> {
        let Some(value) = self.value(field) else { return Ok(default) };
        let finite = value.as_f64().filter(|x| x.is_finite());
        finite.ok_or_else(|| self.error(field, "a finite number", value))
    }

    /// True or false.
    pub fn flag_or(&self, field: &str, default: bool) -> Result<bool> {
        let Some(value) = self.value(field) else { return Ok(default) };
        value.as_bool().ok_or_else(|| self.error(field, "true or false", value))
    }

    /// True or false, or a list of them; empty if absent.
    pub fn flags(&self, field: &str) -> Result<Vec<bool>> {
        let Some(value) = self.value(field) else { return Ok(Vec::new()) };
        let flags = match value {
            Value::Array(list) => list.iter().map(Value::as_bool).collect(),
            _ => value.as_bool().map(|flag| vec![flag]),
        };
        flags.ok_or_else(|| self.error(field, "true or false, or one of them per level", value))
    }

    /// Refuses any value of `field` but `supported`; an absent field has the value `default`.
    pub fn must_be(&self, field: &str, default: Value, supported: Value) -> Result<()> {
        let got = self.object.get(field).unwrap_or(&default);
        if *got == supported { Ok(()) } else { Err(self.error(field, supported, got)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn refusals_name_field_and_both_values() {
        let json = json!({"a": 0, "b": [1, "x"], "c": "relu", "d": null, "e": 3});
        let fields = Fields::new("vae", json.as_object().unwrap());
        let text = |e: Error| e.to_string();
        assert_eq!(fields.count_or("d", 7).unwrap(), 7);
        assert_eq!(fields.count_or("e", 7).unwrap(), 3);
        assert!(fields.count("a").map_err(text).unwrap_err().contains("vae/config.json: a: expected a whole number"));
        assert!(fields.counts("b").map_err(text).unwrap_err().contains(r#"got "x""#));
        let refused = fields.must_be("c", json!("silu"), json!("silu")).map_err(text).unwrap_err();
        assert_eq!(refused, r#"vae/config.json: c: expected "silu", got "relu""#);
        assert!(fields.must_be("absent", json!("silu"), json!("silu")).is_ok());
        assert!(fields.must_be("absent", json!("gelu"), json!("silu")).is_err());
        assert!(fields.flag_or("e", true).is_err());
        assert!(fields.float_or("c", 1.0).is_err());
    }
}
