//! Qua2SeDiMo's files of configurations (quantization.md §1.5): `q_config.pkl`, a dictionary from quantizers to methods, and
//! `quant_cache.pkl`, a list of configurations with what was measured of each, from which its predictor learns.
//!
//! Names and methods are as its loader has them, protocol 4. Beside its own keys there may be others, which it leaves alone.

use super::insights::block;
use super::layer::Layer;
use super::predict::Samples;
use super::problem::Problem;
use crate::error::Result;
use crate::source::pickle::{self, Id, Pickle, Value};
use crate::weight::SECOND_HALF;
use aquatint::error::Error;
use std::collections::BTreeMap;
use std::path::Path;

/// Bits of the precision that average bits are relative to here.
const PRECISION: f64 = 16.0;

/// A configuration with what was measured.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Entry {
    /// By module path: the method, bytes before, bytes after, and the error of the weights.
    pub layers: Vec<(String, LayerEntry)>,
    /// Numbers by name: `avg_bits`, `FID-GT-1k`, `D`...
    pub measures: Vec<(String, f64)>,
}

/// A layer of a configuration.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LayerEntry {
    /// Such as `kmeans-4`.
    pub method: String,
    /// Bytes at the model's own precision.
    pub full: u64,
    /// Bytes as quantized.
    pub quantized: u64,
    /// The error of the weights.
    pub error: f64,
}

impl Entry {
    /// The number called `name`.
    pub fn measure(&self, name: &str) -> Option<f64> {
        self.measures.iter().find(|(key, _)| key == name).map(|&(_, value)| value)
    }

    /// What `problem` has as `assignment`; `error` is told of a layer and a choice.
    pub fn new(problem: &Problem, assignment: &[usize], error: &dyn Fn(usize, usize) -> f64) -> Self {
        let layers = problem.layers.iter().zip(assignment).enumerate().map(|(i, (layer, &choice))| {
            let entry = LayerEntry {
                method: method(&layer.specs[choice]),
                full: layer.full,
                quantized: layer.counted[choice],
                error: error(i, choice),
            };
            (layer.path.clone(), entry)
        });
        let layers: Vec<_> = layers.collect();
        let size = layers.iter().map(|(_, entry)| entry.quantized as f64).sum();
        let error = layers.iter().map(|(_, entry)| entry.error).sum();
        let measures = [("quantized_size", size), ("quantized_error", error), ("avg_bits", problem.bits(assignment))];
        Entry { layers, measures: measures.map(|(name, value)| (name.to_owned(), value)).into() }
    }
}

/// The configuration of an assignment as Qua2SeDiMo's dictionary. Layers that stay floats are `f16` in it, which its loader refuses: for
/// it, sensitivities are of all layers (`--named '*'`).
pub fn config(problem: &Problem, assignment: &[usize]) -> Vec<u8> {
    let mut out = Writer::new();
    out.dict(|out| {
        for (layer, &choice) in problem.layers.iter().zip(assignment) {
            out.text(&quantizer(&layer.path));
            out.text(&method(&layer.specs[choice]));
        }
    });
    out.finish()
}

/// `entries` as a `quant_cache.pkl`.
pub fn encode(entries: &[Entry]) -> Vec<u8> {
    let mut out = Writer::new();
    out.list(|out| {
        for entry in entries {
            out.dict(|out| {
                out.text("config");
                out.dict(|out| {
                    for (path, layer) in &entry.layers {
                        out.text(&quantizer(path));
                        out.list(|out| {
                            out.text(&layer.method);
                            out.int(layer.full);
                            out.int(layer.quantized);
                            out.float(layer.error);
                        });
                    }
                });
                for (name, value) in &entry.measures {
                    out.text(name);
                    match name == "quantized_size" {
                        true => out.int(*value as u64),
                        false => out.float(*value),
                    }
                }
            });
        }
    });
    out.finish()
}

/// Reads a `quant_cache.pkl`. Nothing in it is executed.
///
/// # Errors
/// If it cannot be read, or is not a list of configurations.
pub fn read(path: &Path) -> Result<Vec<Entry>> {
    let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
    let refuse = |got: String| {
        let expected = "a list of configurations, each a dict with `config` and numbers (quant_cache.pkl)";
        crate::Error::from(Error::request(path.display().to_string(), expected, got))
    };
    let pickle = pickle::read(&bytes).map_err(|e| refuse(format!("{} at byte {}", e.got, e.offset)))?;
    let Value::List(items) = pickle.root() else { return Err(refuse("something else".into())) };
    let entry = |(number, &id): (usize, &Id)| {
        entry(&pickle, id).ok_or_else(|| refuse(format!("number {number}, which is none")))
    };
    let entries = items.iter().enumerate().map(entry).collect::<Result<Vec<_>>>()?;
    match entries.is_empty() {
        true => Err(refuse("an empty list".into())),
        false => Ok(entries),
    }
}

fn entry(pickle: &Pickle<'_>, id: Id) -> Option<Entry> {
    let Value::Dict(items) = pickle.get(id) else { return None };
    let mut entry = Entry::default();
    for &(key, value) in items {
        let key = text(pickle, key)?;
        match (&*key, pickle.get(value)) {
            ("config", Value::Dict(layers)) => {
                for &(name, value) in layers {
                    entry.layers.push((module(&text(pickle, name)?), layer(pickle, value)?));
                }
            }
            // Strings such as the name of an architecture are no measurement.
            (_, _) => entry.measures.extend(number(pickle, value).map(|value| (key, value))),
        }
    }
    (!entry.layers.is_empty()).then_some(entry)
}

fn layer(pickle: &Pickle<'_>, id: Id) -> Option<LayerEntry> {
    let (Value::List(items) | Value::Tuple(items)) = pickle.get(id) else { return None };
    let [method, full, quantized, error] = items[..] else { return None };
    let bytes = |id| number(pickle, id).filter(|n| (0.0..=1e15).contains(n)).map(|n| n as u64);
    let error = number(pickle, error)?;
    Some(LayerEntry { method: text(pickle, method)?, full: bytes(full)?, quantized: bytes(quantized)?, error })
}

fn text(pickle: &Pickle<'_>, id: Id) -> Option<String> {
    match pickle.scalar(id).unwrap_or_else(|| pickle.get(id).clone()) {
        Value::Str(text) => Some(text.into()),
        Value::Text(text) => Some(text),
        _ => None,
    }
}

fn number(pickle: &Pickle<'_>, id: Id) -> Option<f64> {
    match pickle.scalar(id).unwrap_or_else(|| pickle.get(id).clone()) {
        Value::Int(n) => Some(n as f64),
        Value::Float(x) => Some(x),
        _ => None,
    }
}

/// What Qua2SeDiMo calls the quantizer of a layer.
fn quantizer(path: &str) -> String {
    match path.ends_with(SECOND_HALF) {
        true => format!("model.{path}"),
        false => format!("model.{path}.weight_quantizer"),
    }
}

/// The layer of a quantizer.
fn module(name: &str) -> String {
    let name = name.strip_prefix("model.").unwrap_or(name);
    name.strip_suffix(".weight_quantizer").unwrap_or(name).to_owned()
}

/// The method of a SPEC, as Qua2SeDiMo writes it.
pub(super) fn method(spec: &str) -> String {
    let parts = spec.strip_prefix('w').and_then(|rest| rest.split_once('a')).and_then(|(bits, rest)| {
        let (_, method) = rest.split_once(':')?;
        Some(format!("{method}-{bits}"))
    });
    parts.unwrap_or_else(|| spec.to_owned())
}

/// The problem that a cache is about, with errors of nothing yet, and what its configurations score by `target`, lower being better.
/// Layers and methods are those that its configurations have.
///
/// # Errors
/// If configurations have other layers than the first, or lack the target.
pub fn problem(origin: &str, entries: &[Entry], target: &Target) -> Result<(Problem, Samples)> {
    let refuse = |expected: String, got: String| crate::Error::from(Error::request(origin, expected, got));
    let paths: Vec<&String> = entries[0].layers.iter().map(|(path, _)| path).collect();
    let methods: BTreeMap<&str, usize> =
        entries.iter().flat_map(|entry| &entry.layers).map(|(_, layer)| (&*layer.method, 0)).collect();
    let choices: Vec<String> = methods.keys().map(|&method| method.to_owned()).collect();
    let place = |method: &str| choices.iter().position(|choice| choice == method).unwrap_or(0);
    let scale = PRECISION / precision(&entries[0]);
    let mut layers: Vec<Layer> = paths
        .iter()
        .map(|path| Layer {
            path: (*path).clone(),
            specs: choices.clone(),
            bytes: vec![0; choices.len()],
            counted: vec![0; choices.len()],
            full: 0,
            errors: vec![0.0; choices.len()],
            allowed: Vec::new(),
        })
        .collect();
    let mut samples = Samples { blocks: blocks(paths.iter().map(|path| path.as_str())), ..Samples::default() };
    for (number, entry) in entries.iter().enumerate() {
        let same = entry.layers.len() == paths.len()
            && entry.layers.iter().zip(&paths).all(|((path, _), other)| path == *other);
        if !same {
            return Err(refuse("configurations of one model".into(), format!("other layers in number {number}")));
        }
        let mut own = Vec::with_capacity(layers.len());
        for ((_, entry), layer) in entry.layers.iter().zip(&mut layers) {
            let choice = place(&entry.method);
            own.push(choice);
            (layer.bytes[choice], layer.counted[choice]) = (entry.quantized, entry.quantized);
            layer.full = (entry.full as f64 * scale) as u64;
            if !layer.allowed.contains(&choice) {
                layer.allowed.push(choice);
            }
        }
        samples.scores.push(target.of(entry).ok_or_else(|| {
            let names: Vec<&str> = entry.measures.iter().map(|(name, _)| &**name).collect();
            refuse(
                format!("`{}` of each configuration", target.name),
                format!("{} of number {number}", names.join(", ")),
            )
        })?);
        samples.choices.push(own);
    }
    layers.iter_mut().for_each(|layer| layer.allowed.sort_unstable());
    Ok((Problem::of(layers, choices), samples))
}

/// Bits of a weight before, as an entry's average bits are relative to: 16, or 32 as of Stable Diffusion 1.5.
fn precision(entry: &Entry) -> f64 {
    let full: f64 = entry.layers.iter().map(|(_, layer)| layer.full as f64).sum();
    let quantized: f64 = entry.layers.iter().map(|(_, layer)| layer.quantized as f64).sum();
    match entry.measure("avg_bits") {
        Some(bits) if quantized > 0.0 && bits * full / quantized > 24.0 => 32.0,
        _ => PRECISION,
    }
}

/// What configurations are judged by.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// The number's name.
    pub name: String,
}

impl Target {
    /// The one called `name`; or what the first of `entries` has of the error at the output, FID, and Fréchet distance.
    pub fn new(name: Option<&str>, entries: &[Entry]) -> Self {
        let known = ["D", "FID-GT-1k", "FID-FP-1k", "FD"];
        let has = |name: &&str| entries.first().is_some_and(|entry| entry.measure(name).is_some());
        let name = name.or_else(|| known.into_iter().find(has)).unwrap_or(known[0]);
        Target { name: name.to_owned() }
    }

    fn of(&self, entry: &Entry) -> Option<f64> {
        entry.measure(&self.name).filter(|value| value.is_finite())
    }
}

/// The block of each layer by number: paths up to the first number in them; a layer outside of blocks is one by itself.
pub fn blocks<'p>(paths: impl Iterator<Item = &'p str>) -> Vec<usize> {
    let mut names: Vec<String> = Vec::new();
    let mut number = |name: String| {
        names.iter().position(|other| *other == name).unwrap_or_else(|| {
            names.push(name);
            names.len() - 1
        })
    };
    paths.map(|path| number(block(path))).collect()
}

/// Writes a pickle of lists, dicts, text and numbers (protocol 4).
struct Writer(Vec<u8>);

impl Writer {
    fn new() -> Self {
        Writer(vec![0x80, 4])
    }

    fn finish(mut self) -> Vec<u8> {
        self.0.push(b'.');
        self.0
    }

    fn list(&mut self, items: impl FnOnce(&mut Self)) {
        self.0.extend(b"](");
        items(self);
        self.0.push(b'e');
    }

    fn dict(&mut self, items: impl FnOnce(&mut Self)) {
        self.0.extend(b"}(");
        items(self);
        self.0.push(b'u');
    }

    fn text(&mut self, text: &str) {
        self.0.push(b'X');
        self.0.extend((text.len() as u32).to_le_bytes());
        self.0.extend(text.as_bytes());
    }

    fn int(&mut self, n: u64) {
        match i32::try_from(n) {
            Ok(n) => {
                self.0.push(b'J');
                self.0.extend(n.to_le_bytes());
            }
            // As a long of eight bytes; sizes of files are far below its sign.
            Err(_) => {
                self.0.extend([0x8a, 8]);
                self.0.extend(n.to_le_bytes());
            }
        }
    }

    fn float(&mut self, x: f64) {
        self.0.push(b'G');
        self.0.extend(x.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::super::problem::tests::problem as some_problem;
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let problem = some_problem(8);
        let errors = |layer: usize, choice: usize| (layer + choice) as f64 * 0.5;
        let entries: Vec<Entry> = (0..3)
            .map(|i| {
                let mut entry = Entry::new(&problem, &[i; 8], &errors);
                entry.layers[0].1.full = 3_000_000_000;
                entry.measures.push(("D".into(), 0.1 * i as f64));
                entry
            })
            .collect();
        let path = std::env::temp_dir().join(format!("cache-{}.pkl", std::process::id()));
        std::fs::write(&path, encode(&entries)).unwrap();
        let read = read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(read, entries);
        let (again, samples) = super::problem("c", &read, &Target::new(None, &read)).unwrap();
        assert_eq!(again.choices, ["kmeans-2", "kmeans-3", "kmeans-4"]);
        assert_eq!((samples.scores, samples.choices), (vec![0.0, 0.1, 0.2], (0..3).map(|i| vec![i; 8]).collect()));
        assert_eq!(samples.blocks, [0, 0, 0, 0, 1, 1, 1, 1]);
        assert_eq!(entries[1].measure("quantized_size"), Some(8.0 * 37.0));
    }

    #[test]
    fn quantizers_have_their_names() {
        assert_eq!(quantizer("a.b"), "model.a.b.weight_quantizer");
        assert_eq!(quantizer(&format!("a.b{SECOND_HALF}")), "model.a.b.weight_quantizer_0");
        assert_eq!(module("model.a.b.weight_quantizer_0"), format!("a.b{SECOND_HALF}"));
        assert_eq!(["w4a8:kmeans_all", "w3a16:mse", "f16"].map(method), ["kmeans_all-4", "mse-3", "f16"]);
        assert_eq!(blocks(["pos", "b.0.q", "b.0.k", "b.1.q", "out"].into_iter()), [0, 1, 1, 2, 3]);
    }

    #[test]
    fn what_is_no_cache_is_refused() {
        let problem = some_problem(4);
        let entry = Entry::new(&problem, &[1; 4], &|_, _| 0.0);
        let target = Target { name: "FID-GT-1k".into() };
        let told = super::problem("c.pkl", std::slice::from_ref(&entry), &target).unwrap_err().to_string();
        assert_eq!(
            told,
            "c.pkl: expected `FID-GT-1k` of each configuration, got quantized_size, quantized_error, avg_bits of number 0"
        );
        let other = Entry::new(&some_problem(5), &[1; 5], &|_, _| 0.0);
        let target = Target { name: "avg_bits".into() };
        let told = super::problem("c.pkl", &[entry, other], &target).unwrap_err().to_string();
        assert_eq!(told, "c.pkl: expected configurations of one model, got other layers in number 1");
    }
}
