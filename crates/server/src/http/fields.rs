//! The fields of a request as clients send them: numbers as texts, whole numbers as floats, and `null` for what is absent.

use crate::refusal::Refusal;
use axum::http::StatusCode;
use serde_json::{Map, Value};

/// The fields of a request.
pub struct Fields {
    all: Map<String, Value>,
}

/// A field of another type than it should have. The web UI's clients expect another status for it.
pub const WRONG_TYPE: &str = "invalid_type";

impl Fields {
    /// Those of an object.
    pub fn new(all: Map<String, Value>) -> Self {
        Fields { all }
    }

    /// A field that is there and not null.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.all.get(name).filter(|value| !value.is_null())
    }

    /// All of them.
    pub fn all(&self) -> &Map<String, Value> {
        &self.all
    }

    /// The names of those that are neither in `known` nor null.
    pub fn unknown<'a>(&'a self, known: &'a [&str]) -> impl Iterator<Item = &'a str> {
        self.all
            .iter()
            .filter(|(name, value)| !value.is_null() && !known.contains(&name.as_str()))
            .map(|(name, _)| name.as_str())
    }

    /// A text.
    pub fn text(&self, name: &str) -> Result<Option<String>, Refusal> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(other) => Err(wrong(name, "a text", other)),
        }
    }

    /// A number.
    pub fn number(&self, name: &str) -> Result<Option<f64>, Refusal> {
        let value = match self.get(name) {
            None => return Ok(None),
            Some(Value::String(text)) if text.trim().is_empty() => return Ok(None),
            Some(Value::String(text)) => text.trim().parse().ok(),
            Some(value) => value.as_f64(),
        };
        let number = value.filter(|number: &f64| number.is_finite());
        number.map(Some).ok_or_else(|| wrong(name, "a number", self.get(name).unwrap_or(&Value::Null)))
    }

    /// A whole number.
    pub fn whole(&self, name: &str) -> Result<Option<i64>, Refusal> {
        // Beyond 2^53 a float would not do.
        if let Some(exact) = self.get(name).and_then(Value::as_i64) {
            return Ok(Some(exact));
        }
        let Some(number) = self.number(name)? else { return Ok(None) };
        if number.fract() != 0.0 || number.abs() > 9.0e18 {
            return Err(wrong(name, "a whole number", self.get(name).unwrap_or(&Value::Null)));
        }
        Ok(Some(number as i64))
    }

    /// A whole number that is not negative.
    pub fn count(&self, name: &str) -> Result<Option<usize>, Refusal> {
        let Some(number) = self.whole(name)? else { return Ok(None) };
        usize::try_from(number).map(Some).map_err(|_| Refusal::field(name, format!("expected 0 or more, got {number}")))
    }

    /// Yes or no.
    pub fn flag(&self, name: &str) -> Result<Option<bool>, Refusal> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(Value::String(text)) if text.eq_ignore_ascii_case("true") || text == "1" => Ok(Some(true)),
            Some(Value::String(text)) if text.eq_ignore_ascii_case("false") || text == "0" => Ok(Some(false)),
            Some(Value::Number(number)) if number.as_i64() == Some(1) => Ok(Some(true)),
            Some(Value::Number(number)) if number.as_i64() == Some(0) => Ok(Some(false)),
            Some(other) => Err(wrong(name, "true or false", other)),
        }
    }

    /// The first of several names that is there.
    pub fn first<'a>(&self, names: &[&'a str]) -> Option<&'a str> {
        names.iter().find(|name| self.get(name).is_some()).copied()
    }
}

fn wrong(name: &str, expected: &str, got: &Value) -> Refusal {
    // Base64 of a picture in the wrong place need not come back whole.
    let got: String = got.to_string().chars().take(80).collect();
    let refusal = Refusal::field(name, format!("expected {expected}, got {got}"));
    Refusal { code: WRONG_TYPE, status: StatusCode::BAD_REQUEST, ..refusal }
}
