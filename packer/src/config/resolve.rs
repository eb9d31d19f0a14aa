//! Matching a configuration against the layers of a model. The rules are those of the [module](super).

use super::{Choice, ConfigError, Decider, LayerSpec, QConfig, spec::shorten};
use crate::source::layout::authors_paths;
use crate::weight::SECOND_HALF;
use globset::{Glob, GlobMatcher};
use std::collections::{HashMap, HashSet};

/// Layers named in an error.
const SHOWN: usize = 3;
/// Longest key whose distance to other names is worth computing.
const MAX_NAME: usize = 256;

/// What an entry may mean, most literal first: as it stands, then without Qua2SeDiMo's decorations.
pub(super) fn readings(key: &str) -> impl Iterator<Item = &str> {
    let tail = key.strip_suffix(".weight_quantizer").unwrap_or(key);
    let head = |name: &'_ str| name.strip_prefix("model.").map(str::len);
    let bare = &tail[tail.len() - head(tail).unwrap_or(tail.len())..];
    let mut all = vec![key, tail, &key[key.len() - head(key).unwrap_or(key.len())..], bare];
    all.dedup();
    all.into_iter()
}

struct Pattern<'a> {
    key: &'a str,
    spec: LayerSpec,
    matchers: Vec<GlobMatcher>,
    /// Characters that are not wildcards: the rank among globs.
    literal: usize,
    used: bool,
}

impl Pattern<'_> {
    fn matches(&self, name: &str) -> bool {
        self.matchers.iter().any(|m| m.is_match(name))
    }
}

/// What `config` says of `layers`; of those that it does not name, `others` says so.
pub(super) fn resolve(
    config: &QConfig,
    layers: &[&str],
    aliases: &[(&str, &str)],
    others: Option<&[Choice]>,
) -> Result<Vec<Choice>, ConfigError> {
    let origin = || config.origin.clone();
    let index: HashMap<&str, usize> = layers.iter().enumerate().map(|(i, &name)| (name, i)).collect();
    let duplicates: HashMap<&str, usize> = aliases.iter().enumerate().map(|(i, (name, _))| (*name, i)).collect();
    // What their authors call the layers; of a matrix that they have in one, several layers have the name.
    let authors: Vec<Vec<String>> = layers.iter().map(|layer| authors_paths(layer)).collect();
    let by_authors: HashSet<&str> = authors.iter().flatten().map(String::as_str).collect();
    let known = |name: &str| index.contains_key(name) || duplicates.contains_key(name) || by_authors.contains(name);

    // Exact entries by the name they mean, and globs.
    let mut exact: HashMap<&str, (&str, LayerSpec)> = HashMap::new();
    let mut globs = Vec::new();
    let mut unknown: Vec<&str> = Vec::new();
    for (key, spec) in &config.entries {
        if key.contains(['*', '?', '[', '{']) {
            globs.push(pattern(config, key, *spec)?);
            continue;
        }
        let Some(name) = readings(key).find(|name| known(name)) else {
            unknown.push(key);
            continue;
        };
        if let Some((other, was)) = exact.insert(name, (key, *spec))
            && was != *spec
        {
            let keys = [shown(other, was), shown(key, *spec)];
            return Err(ConfigError::Conflict { origin: origin(), layer: name.into(), keys });
        }
    }
    // Where a canonical layer has no entry of its own, its first duplicate with one speaks for it.
    let mut inherited: HashMap<&str, (&str, LayerSpec)> = HashMap::new();
    for (duplicate, canonical) in aliases {
        if let Some(entry) = exact.get(duplicate) {
            inherited.entry(canonical).or_insert(*entry);
        }
    }
    for glob in &mut globs {
        glob.used = aliases.iter().any(|(duplicate, _)| glob.matches(duplicate));
    }

    let mut unmatched = Vec::new();
    let mut choices = Vec::with_capacity(layers.len());
    for (i, &layer) in layers.iter().enumerate() {
        let by_authors = || authors[i].iter().find_map(|name| exact.get(&name[..]));
        let named = |name: &str| exact.get(name).or_else(|| inherited.get(name)).copied();
        let first_half = layer.strip_suffix(SECOND_HALF);
        let mut by_glob = None;
        let names: Vec<&str> = std::iter::once(layer).chain(authors[i].iter().map(String::as_str)).collect();
        for names in std::iter::once(&names[..]).chain(first_half.as_ref().map(std::slice::from_ref)) {
            let found = best_glob(&mut globs, names).map_err(|keys| ConfigError::Conflict {
                origin: origin(),
                layer: names[0].into(),
                keys,
            })?;
            by_glob = by_glob.or(found);
        }
        let entry = named(layer).or_else(|| by_authors().copied()).or_else(|| first_half.and_then(named)).or(by_glob);
        let entry = entry.map(|(key, spec)| Choice { spec, by: Decider::Entry(key.to_owned()) });
        let rule = || {
            let rule = config.rules.iter().find(|rule| rule.matches(first_half.unwrap_or(layer)))?;
            Some(Choice { spec: rule.spec, by: Decider::Entry(rule.key.clone()) })
        };
        let rest = || config.default.clone().or_else(|| Some(others?[i].clone()));
        match entry.or_else(rule).or_else(rest) {
            Some(choice) => choices.push(choice),
            None => unmatched.push(layer),
        }
    }
    unknown.extend(globs.iter().filter(|glob| !glob.used).map(|glob| glob.key));
    if let Some(&key) = unknown.first() {
        let names = layers.iter().copied().chain(aliases.iter().map(|(duplicate, _)| *duplicate));
        let nearest = nearest(readings(key).last().unwrap_or(key), names);
        return Err(ConfigError::Unknown { origin: origin(), key: shorten(key), nearest, count: unknown.len() });
    }
    if !unmatched.is_empty() {
        let count = unmatched.len();
        let layers = unmatched.into_iter().take(SHOWN).map(String::from).collect();
        return Err(ConfigError::Unmatched { origin: origin(), layers, count });
    }
    Ok(choices)
}

fn shown(key: &str, spec: LayerSpec) -> String {
    format!("`{}` = {spec}", shorten(key))
}

fn pattern<'a>(config: &QConfig, key: &'a str, spec: LayerSpec) -> Result<Pattern<'a>, ConfigError> {
    let refuse = |e: globset::Error| {
        let reason = format!("`{}` is not a glob: {}", shorten(key), e.kind());
        ConfigError::Syntax { origin: config.origin.clone(), reason }
    };
    let matchers = readings(key)
        .map(|glob| Ok(Glob::new(glob)?.compile_matcher()))
        .collect::<Result<Vec<_>, globset::Error>>()
        .map_err(refuse)?;
    let bare = readings(key).last().unwrap_or(key);
    let literal = bare.chars().filter(|c| !"*?[]{}!,".contains(*c)).count();
    Ok(Pattern { key, spec, matchers, literal, used: false })
}

/// The most literal glob that matches one of a layer's `names`, and its value; both keys if two of them disagree.
fn best_glob<'a>(globs: &mut [Pattern<'a>], names: &[&str]) -> Result<Option<(&'a str, LayerSpec)>, [String; 2]> {
    let mut best: Option<(usize, LayerSpec, &'a str)> = None;
    let mut rival = None;
    for glob in globs.iter_mut().filter(|glob| names.iter().any(|name| glob.matches(name))) {
        glob.used = true;
        match best {
            Some((literal, ..)) if literal > glob.literal => {}
            Some((literal, spec, key)) if literal == glob.literal => {
                if spec != glob.spec {
                    rival = Some([shown(key, spec), shown(glob.key, glob.spec)]);
                }
            }
            _ => {
                best = Some((glob.literal, glob.spec, glob.key));
                rival = None;
            }
        }
    }
    match rival {
        Some(keys) => Err(keys),
        None => Ok(best.map(|(_, spec, key)| (key, spec))),
    }
}

/// The names nearest to `key` by edit distance, nearest first.
fn nearest<'a>(key: &str, names: impl Iterator<Item = &'a str>) -> Vec<String> {
    let key: Vec<u8> = key.bytes().take(MAX_NAME).collect();
    let mut ranked: Vec<(usize, &str)> = names.map(|name| (distance(&key, name.as_bytes()), name)).collect();
    ranked.sort();
    ranked.into_iter().take(SHOWN).map(|(_, name)| name.into()).collect()
}

/// Insertions, deletions and replacements that turn `a` into `b` (Levenshtein), row by row.
fn distance(a: &[u8], b: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        for (a, b, d) in [("", "", 0), ("abc", "", 3), ("", "ab", 2), ("kitten", "sitting", 3), ("flaw", "lawn", 2)] {
            assert_eq!(distance(a.as_bytes(), b.as_bytes()), d, "{a} {b}");
        }
    }

    #[test]
    fn every_decoration_is_optional() {
        let read = |key| readings(key).collect::<Vec<_>>();
        assert_eq!(read("a.b"), ["a.b"]);
        assert_eq!(read("model.a.b"), ["model.a.b", "a.b"]);
        assert_eq!(read("model.a.weight_quantizer").last(), Some(&"a"));
        assert!(read("model.a.weight_quantizer").contains(&"model.a"));
        assert_eq!(read("model.a.weight_quantizer_0").last(), Some(&"a.weight_quantizer_0"));
    }
}
