//! The fields of a map, each of which is asked for by name and type.

use crate::config::entries::Raw;
use crate::config::{ConfigError, SpecFault, spec};
use std::fmt::Display;

/// Most texts of a list, and most ranges of steps: each may be looked for in every layer's name.
pub(super) const MAX_ITEMS: usize = 1000;

/// A map of a file, and where in the file it stands.
#[derive(Clone, Debug)]
pub(super) struct Fields<'a> {
    pub(super) origin: &'a str,
    /// Keys above it, each with a dot behind.
    path: String,
    map: &'a [(String, Raw)],
}

impl<'a> Fields<'a> {
    /// The whole file.
    pub(super) fn new(origin: &'a str, map: &'a [(String, Raw)]) -> Self {
        Fields { origin, path: String::new(), map }
    }

    /// The entries in the file's order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&'a str, &'a Raw)> + use<'a> {
        self.map.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// The value of `key`; none if it is not there, or is nothing, which YAML and Python write as `null` and `None`.
    pub(super) fn get(&self, key: &str) -> Option<&'a Raw> {
        let value = self.map.iter().find(|(k, _)| k == key).map(|(_, value)| value)?;
        let nothing = matches!(value, Raw::Other("nothing")) || matches!(value, Raw::Text(text) if text == "None");
        (!nothing).then_some(value)
    }

    /// Refuses keys that are none of `known`.
    pub(super) fn refuse_others(&self, known: &[&str]) -> Result<(), ConfigError> {
        match self.map.iter().find(|(key, _)| !known.contains(&key.as_str())) {
            None => Ok(()),
            Some((key, _)) => Err(self.fault(key, &format!("is not known; known here are {}", known.join(", ")))),
        }
    }

    /// Those of `keys` that have a value, each with the keys above it.
    pub(super) fn present(&self, keys: &[&str]) -> Vec<String> {
        keys.iter().filter(|key| self.get(key).is_some()).map(|key| format!("{}{key}", self.path)).collect()
    }

    /// What is wrong with `key`.
    pub(super) fn fault(&self, key: &str, reason: &str) -> ConfigError {
        let key = spec::shorten(&format!("{}{key}", self.path));
        ConfigError::Syntax { origin: self.origin.into(), reason: format!("`{key}` {reason}") }
    }

    fn wrong(&self, key: &str, expected: impl Display, got: &Raw) -> ConfigError {
        self.fault(key, &format!("must be {expected}, got {}", words(got)))
    }

    /// The map at `key`, empty if there is none.
    pub(super) fn map(&self, key: &str) -> Result<Fields<'a>, ConfigError> {
        let path = format!("{}{key}.", self.path);
        match self.get(key) {
            None => Ok(Fields { origin: self.origin, path, map: &[] }),
            Some(Raw::Map(map)) => Ok(Fields { origin: self.origin, path, map }),
            Some(other) => Err(self.wrong(key, "a map", other)),
        }
    }

    /// The truth value at `key`.
    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>, ConfigError> {
        match self.get(key) {
            None => Ok(None),
            Some(Raw::Bool(value)) => Ok(Some(*value)),
            Some(other) => Err(self.wrong(key, "true or false", other)),
        }
    }

    /// The whole number at `key`.
    pub(super) fn int(&self, key: &str) -> Result<Option<i64>, ConfigError> {
        match self.get(key) {
            None => Ok(None),
            Some(Raw::Int(value)) => Ok(Some(*value)),
            Some(other) => Err(self.wrong(key, "a whole number", other)),
        }
    }

    /// The text at `key`, which is one of `known`.
    pub(super) fn word(&self, key: &str, known: &[&'static str]) -> Result<Option<&'static str>, ConfigError> {
        let found = match self.get(key) {
            None => return Ok(None),
            Some(Raw::Text(text)) => known.iter().find(|word| *word == text),
            Some(_) => None,
        };
        let got = self.get(key).expect("it was there");
        found.map(|word| Some(*word)).ok_or_else(|| self.wrong(key, known.join(" or "), got))
    }

    /// The text at `key`.
    pub(super) fn text(&self, key: &str) -> Result<Option<&'a str>, ConfigError> {
        match self.get(key) {
            None => Ok(None),
            Some(Raw::Text(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong(key, "text", other)),
        }
    }

    /// The texts in the list at `key`; one text is a list of it.
    pub(super) fn texts(&self, key: &str) -> Result<Vec<&'a str>, ConfigError> {
        let one = |value: &'a Raw| match value {
            Raw::Text(text) => Ok(text.as_str()),
            other => Err(self.wrong(key, "a list of texts", other)),
        };
        match self.get(key) {
            None => Ok(Vec::new()),
            Some(Raw::List(list)) if list.len() > MAX_ITEMS => {
                Err(self.fault(key, &format!("must have at most {MAX_ITEMS} texts, got {}", list.len())))
            }
            Some(Raw::List(list)) => list.iter().map(one).collect(),
            Some(value) => Ok(vec![one(value)?]),
        }
    }
}

/// A value in words.
fn words(value: &Raw) -> String {
    match value {
        Raw::Text(text) => format!("`{}`", spec::shorten(text)),
        Raw::Int(n) => n.to_string(),
        Raw::Float(x) => x.to_string(),
        Raw::Bool(value) => value.to_string(),
        Raw::List(_) => "a list".into(),
        Raw::Map(_) => "a map".into(),
        Raw::Other(kind) => (*kind).into(),
    }
}

/// What is told of fields that change nothing, `ignored` by name; nothing if there are none.
pub(super) fn ignored(ignored: &[String], reason: &str) -> Option<String> {
    let verb = if ignored.len() == 1 { "changes" } else { "change" };
    (!ignored.is_empty()).then(|| format!("{} {verb} nothing: {reason}", ignored.join(", ")))
}

/// What is wrong with one part of a precision, where it is not one that is packed.
pub(super) fn width_fault(fields: &Fields, key: &str, fault: SpecFault) -> ConfigError {
    fields.fault(key, &format!("is not packed: {fault}"))
}
