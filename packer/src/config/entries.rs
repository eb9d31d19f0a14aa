//! Reading a configuration file of any format into one list of entries.

use super::cache::{self, Sample, Wanted};
use super::rules::{Pattern, Rule};
use super::{Activations, Choice, ConfigError, Decider, FLOAT, Phases, QConfig, SpecFault, foreign, pickled, spec};
use crate::source::{pickle, text};
use crate::weight::SECOND_HALF;
use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use std::{collections::HashSet, fmt, fs, path::Path};

/// Longest file read. The largest published configuration has 50 KB, a cache of 500 samples about 20 MB.
const MAX_BYTES: u64 = 64 << 20;

/// What follows a layer's path in Qua2SeDiMo's files.
const QUANTIZER: &str = ".weight_quantizer";
/// What makes one vector of a text in Hunyuan-DiT: its projections are no layers to Qua2SeDiMo, which multiplies none by itself.
const POOLER: &str = "time_extra_emb.pooler";

/// What is wrong with a list of anything but configurations.
pub(super) const NO_MAP: &str = "a map from layers to precisions is expected, this is a list";

/// Any format's data, in the file's order.
#[derive(Clone, Debug)]
pub(super) enum Raw {
    Text(String),
    Int(i64),
    Float(f64),
    Bool(bool),
    List(Vec<Raw>),
    Map(Vec<(String, Raw)>),
    /// Something no configuration holds, by the name of its kind.
    Other(&'static str),
}

/// Reads the configuration that is `wanted` of the file at `path`.
pub(super) fn read(path: &Path, wanted: Wanted) -> Result<QConfig, ConfigError> {
    let origin = path.display().to_string();
    let io = |source| ConfigError::Io { path: path.into(), source };
    let syntax = |reason: String| ConfigError::Syntax { origin: origin.clone(), reason };
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or("").to_ascii_lowercase();
    let length = fs::metadata(path).map_err(io)?.len();
    if length > MAX_BYTES {
        return Err(syntax(format!(
            "a configuration of at most {MAX_BYTES} bytes is expected, this file has {length}"
        )));
    }
    let bytes = fs::read(path).map_err(io)?;
    if matches!(extension.as_str(), "pkl" | "pickle") {
        if bytes.starts_with(b"PK\x03\x04") {
            return Err(syntax("a plain pickle is expected, this is a zip archive, as torch.save writes".into()));
        }
        let pickle = pickle::read(&bytes).map_err(|e| syntax(format!("not a plain pickle: {e}")))?;
        return build(origin.clone(), pickled::read(&origin, &pickle, wanted)?);
    }
    let text = text::decode(&bytes).map_err(syntax)?;
    let raw = match extension.as_str() {
        "json" => text::json::<Raw>(&text).map_err(|e| syntax(format!("not JSON: {e}")))?,
        "toml" => toml::from_str::<Raw>(&text).map_err(|e| syntax(format!("not TOML: {e}")))?,
        "yaml" | "yml" => serde_norway::from_str::<Raw>(&text).map_err(|e| syntax(format!("not YAML: {e}")))?,
        _ => {
            let reason = format!("a .json, .toml, .yaml, .yml or .pkl file is expected, got extension `{extension}`");
            return Err(syntax(reason));
        }
    };
    if let Some(config) = foreign::read(path, &origin, &raw) {
        only(&origin, wanted)?;
        return config;
    }
    let raw = pick(&origin, recipes(raw), wanted)?;
    build(origin, raw)
}

/// Apple's recipes as a list of configurations; other data as it is.
///
/// `{"recipes": {NAME: {LAYER: BITS}}, ..}`; 16 bits are f16, and what else the file holds are measurements of single layers.
fn recipes(raw: Raw) -> Raw {
    let Raw::Map(mut top) = raw else { return raw };
    let is = |(key, value): &(String, Raw)| key == "recipes" && matches!(value, Raw::Map(_));
    let Some(at) = top.iter().position(is) else { return Raw::Map(top) };
    let Raw::Map(recipes) = top.swap_remove(at).1 else { unreachable!("matched above") };
    let value = |value: Raw| match value {
        Raw::Int(16) => Raw::Text("f16".into()),
        Raw::Int(bits) => Raw::Text(format!("kmeans_all-{bits}")),
        other => other,
    };
    let recipe = |(name, layers): (String, Raw)| {
        let Raw::Map(layers) = layers else { return layers };
        let layers = layers.into_iter().map(|(layer, bits)| (layer, value(bits)));
        let config = [("default".to_owned(), Raw::Text("f16".into()))].into_iter().chain(layers).collect();
        Raw::Map(vec![("name".into(), Raw::Text(name)), ("config".into(), Raw::Map(config))])
    };
    Raw::List(recipes.into_iter().map(recipe).collect())
}

/// The configuration that is `wanted` of a file's data.
fn pick(origin: &str, raw: Raw, wanted: Wanted) -> Result<Raw, ConfigError> {
    let Raw::List(mut list) = raw else {
        only(origin, wanted)?;
        return Ok(raw);
    };
    let sample = |raw: &Raw| {
        let Raw::Map(map) = raw else { return None };
        let mut sample = Sample::default();
        for (key, value) in map {
            match value {
                Raw::Float(value) => sample.note(key, *value),
                Raw::Int(value) => sample.note(key, *value as f64),
                Raw::Text(name) if key == "name" => sample.name = Some(name.clone()),
                _ => {}
            }
        }
        Some(sample)
    };
    match list.iter().map(sample).collect::<Option<Vec<_>>>() {
        Some(samples) => Ok(list.swap_remove(cache::choose(origin, &samples, wanted)?)),
        None => Err(ConfigError::Syntax { origin: origin.into(), reason: NO_MAP.into() }),
    }
}

/// Refuses to look for one of several configurations in a file that has one.
pub(super) fn only(origin: &str, wanted: Wanted) -> Result<(), ConfigError> {
    if wanted == Wanted::Only {
        return Ok(());
    }
    let reason = "this is one configuration and no list; name it without a colon".into();
    Err(ConfigError::Syntax { origin: origin.into(), reason })
}

/// The configuration a file's data spells.
fn build(origin: String, raw: Raw) -> Result<QConfig, ConfigError> {
    let syntax = |reason: &str| ConfigError::Syntax { origin: origin.clone(), reason: reason.into() };
    let mut top = match raw {
        Raw::Map(map) => map,
        _ => return Err(syntax("a map from layers to precisions is expected")),
    };
    // One sample of a quant_cache: the measurements beside `config` do not matter here.
    if let Some(at) = top.iter().position(|(key, value)| key == "config" && matches!(value, Raw::Map(_))) {
        let Raw::Map(map) = top.swap_remove(at).1 else { unreachable!("matched above") };
        top = map;
    }
    let mut take = |name: &str| top.iter().position(|(key, _)| key == name).map(|at| top.remove(at).1);

    let activations = match take("activations") {
        None => Activations::Float,
        Some(value) => {
            let text = match value {
                Raw::Int(bits) => bits.to_string(),
                other => text_of(&origin, "activations", other)?,
            };
            spec::activations(&text).map_err(|fault| value_error(&origin, "activations", &text, fault))?
        }
    };
    let phases = match take("phases") {
        Some(list @ Raw::List(_)) => {
            Phases::read(&origin, list, &|map| entries(origin.clone(), map, activations, "default` and `from"))?
        }
        // A layer may be called so.
        Some(other) => {
            top.push(("phases".into(), other));
            Phases::default()
        }
        None => Phases::default(),
    };
    Ok(QConfig { phases, ..entries(origin, top, activations, "default`, `activations` and `phases")? })
}

/// The layers that a map has an entry for, and its default. `beside` is what else it may have held.
fn entries(
    origin: String,
    mut top: Vec<(String, Raw)>,
    activations: Activations,
    beside: &str,
) -> Result<QConfig, ConfigError> {
    let mut take = |name: &str| top.iter().position(|(key, _)| key == name).map(|at| top.remove(at).1);
    let layer = |key: &str, value: Raw| {
        let text = text_of(&origin, key, value)?;
        spec::parse_value(&text, activations).map_err(|fault| value_error(&origin, key, &text, fault))
    };
    let default = take("default").map(|value| layer("default", value)).transpose()?;
    let default = default.map(|spec| Choice { spec, by: Decider::Default });
    let map = match take("layers") {
        Some(Raw::Map(map)) => {
            if let Some((key, _)) = top.first() {
                let reason = format!("beside `layers` only `{beside}` are expected, got `{key}`");
                return Err(ConfigError::Syntax { origin, reason });
            }
            map
        }
        Some(other) => {
            let text = text_of(&origin, "layers", other)?;
            let expected = "a map from layers to precisions";
            return Err(value_error(
                &origin,
                "layers",
                &text,
                SpecFault { what: "layers", expected, got: text.clone() },
            ));
        }
        None => top,
    };
    let mut entries = Vec::with_capacity(map.len());
    flatten(String::new(), map, &mut |key, value| {
        let spec = layer(&key, value)?;
        entries.push((key, spec));
        Ok(())
    })?;
    let mut config = QConfig { default, entries, ..QConfig::empty(origin) };
    let alone = config.default.is_none() && !config.entries.is_empty();
    if alone && config.entries.iter().all(|(key, _)| of_qua2sedimo(key)) {
        let pooler = Rule::new(POOLER, Pattern::Components(POOLER.into()), FLOAT);
        config
            .rules
            .push(pooler.unwritten("layers of `pooler` stay f16: Qua2SeDiMo neither quantizes nor counts them"));
    }
    Ok(config)
}

/// Whether a key has the decorations of Qua2SeDiMo's files.
fn of_qua2sedimo(key: &str) -> bool {
    key.ends_with(QUANTIZER) || key.ends_with(SECOND_HALF)
}

fn value_error(origin: &str, key: &str, value: &str, fault: SpecFault) -> ConfigError {
    ConfigError::Value {
        origin: origin.into(),
        key: spec::shorten(key),
        value: spec::shorten(value),
        fault: fault.into(),
    }
}

/// The text of a value; of a list, its first element's: a cache has `[method, bytes, bytes, error]`.
fn text_of(origin: &str, key: &str, value: Raw) -> Result<String, ConfigError> {
    let got = match value {
        Raw::Text(text) => return Ok(text),
        Raw::List(list) => match list.into_iter().next() {
            Some(Raw::Text(text)) => return Ok(text),
            _ => "a list that does not begin with text".into(),
        },
        Raw::Int(n) => n.to_string(),
        Raw::Float(_) => "a number with a fraction".into(),
        Raw::Bool(_) => "a boolean".into(),
        Raw::Map(_) => "a map".into(),
        Raw::Other(kind) => kind.into(),
    };
    let fault = SpecFault { what: "value", expected: "text such as \"w4a8\" or \"kmeans-4\"", got: got.clone() };
    Err(value_error(origin, key, &got, fault))
}

/// Joins the keys of nested maps with dots: unquoted TOML keys and indented YAML spell paths that way.
fn flatten(
    prefix: String,
    map: Vec<(String, Raw)>,
    emit: &mut impl FnMut(String, Raw) -> Result<(), ConfigError>,
) -> Result<(), ConfigError> {
    for (key, value) in map {
        let path = if prefix.is_empty() { key } else { format!("{prefix}.{key}") };
        match value {
            // The readers bound the depth of nesting (and with it this recursion).
            Raw::Map(inner) => flatten(path, inner, emit)?,
            value => emit(path, value)?,
        }
    }
    Ok(())
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("text, a number, a list or a map")
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Raw, E> {
        Ok(Raw::Bool(value))
    }

    fn visit_i64<E: de::Error>(self, v: i64) -> Result<Raw, E> {
        Ok(Raw::Int(v))
    }

    fn visit_u64<E: de::Error>(self, v: u64) -> Result<Raw, E> {
        Ok(i64::try_from(v).map_or(Raw::Other("a very large number"), Raw::Int))
    }

    fn visit_f64<E: de::Error>(self, v: f64) -> Result<Raw, E> {
        Ok(Raw::Float(v))
    }

    fn visit_str<E: de::Error>(self, v: &str) -> Result<Raw, E> {
        Ok(Raw::Text(v.into()))
    }

    fn visit_none<E: de::Error>(self) -> Result<Raw, E> {
        self.visit_unit()
    }

    fn visit_unit<E: de::Error>(self) -> Result<Raw, E> {
        Ok(Raw::Other("nothing"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Raw, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = seq.next_element()? {
            list.push(item);
        }
        Ok(Raw::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Raw, A::Error> {
        let (mut map, mut seen) = (Vec::new(), HashSet::new());
        while let Some((key, value)) = access.next_entry::<String, Raw>()? {
            if !seen.insert(key.clone()) {
                return Err(de::Error::custom(format_args!("key `{}` appears twice", spec::shorten(&key))));
            }
            map.push((key, value));
        }
        Ok(Raw::Map(map))
    }
}
