//! Changes of META as JSON: every number, text, list and key of it, each to what a hostile file might say there.

use serde_json::{Value, json};

/// Texts that mean something in one field or another of a pipeline's settings.
const WORDS: [&str; 44] = [
    "ddim",
    "ddpm",
    "pndm",
    "euler",
    "euler-a",
    "heun",
    "dpm++2m",
    "dpm++2m-sde",
    "dpm++3m",
    "dpm++3m-sde",
    "dpm++2s",
    "lms",
    "unipc",
    "lcm",
    "tcd",
    "deis",
    "dpm++sde",
    "linear",
    "scaled_linear",
    "squaredcos_cap_v2",
    "epsilon",
    "sample",
    "v_prediction",
    "leading",
    "linspace",
    "trailing",
    "uniform",
    "quad",
    "fixed_small",
    "fixed_large",
    "learned_range",
    "midpoint",
    "heun",
    "zero",
    "sigma_min",
    "int8",
    "original_height",
    "crop_left",
    "target_width",
    "aesthetic_score",
    "tokenizer/tokenizer.json",
    "tokenizer_2/tokenizer.json",
    "f16",
    "-4",
];
/// Entries of a list whose entries are alike that stand for all, beside the last.
const FIRST: usize = 2;

/// A change of one place of META.
#[derive(Clone, Debug)]
pub enum Change {
    /// The value becomes another.
    Set(Value),
    /// The key, or the entry of a list, goes.
    Remove,
    /// The object gets a key.
    Insert(&'static str, Value),
}

impl Change {
    /// Makes the change at `at`, a JSON pointer to a value that is there.
    pub fn apply(&self, meta: &mut Value, at: &str) {
        match self {
            Change::Set(value) => *meta.pointer_mut(at).expect("a place of META") = value.clone(),
            Change::Insert(key, value) => {
                let object = meta.pointer_mut(at).and_then(Value::as_object_mut).expect("an object of META");
                object.insert((*key).into(), value.clone());
            }
            Change::Remove => {
                let (parent, key) = at.rsplit_once('/').expect("not the whole of META");
                match meta.pointer_mut(parent).expect("a place of META") {
                    Value::Object(object) => drop(object.remove(&unescaped(key))),
                    Value::Array(list) => drop(list.remove(key.parse().expect("the index of an entry"))),
                    other => panic!("{other} has no parts"),
                }
            }
        }
    }
}

/// The change, cut short, for messages.
impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = match self {
            Change::Set(value) => format!("= {value}"),
            Change::Remove => "removed".into(),
            Change::Insert(key, value) => format!("+ {key}: {value}"),
        };
        f.write_str(&text.chars().take(80).collect::<String>())
    }
}

/// The places of `meta`, as JSON pointers. Of lists and maps of things that are alike (layers, sources, classes, aliases)
/// the first two and the last stand for all, unless `all`.
pub fn places(meta: &Value, all: bool) -> Vec<String> {
    let mut found = Vec::new();
    collect(meta, String::new(), all, &mut found);
    found
}

fn collect(value: &Value, at: String, all: bool, found: &mut Vec<String>) {
    let parts: Vec<(String, &Value)> = match value {
        Value::Object(object) => object.iter().map(|(key, part)| (escaped(key), part)).collect(),
        Value::Array(list) => list.iter().enumerate().map(|(i, part)| (i.to_string(), part)).collect(),
        _ => Vec::new(),
    };
    let alike = !all && (value.is_array() || at.ends_with("/class_names") || at.ends_with("/aliases"));
    let n = parts.len();
    found.push(at.clone());
    for (_, (key, part)) in parts.into_iter().enumerate().filter(|(i, _)| !alike || *i < FIRST || i + 1 == n) {
        collect(part, format!("{at}/{key}"), all, found);
    }
}

/// A key as a part of a JSON pointer.
fn escaped(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}

fn unescaped(key: &str) -> String {
    key.replace("~1", "/").replace("~0", "~")
}

/// The changes of what lies at `at`.
pub fn changes(meta: &Value, at: &str) -> Vec<Change> {
    let value = meta.pointer(at).expect("a place of META");
    let mut made: Vec<Value> = vec![Value::Null];
    let mut changes = Vec::new();
    match value {
        Value::Number(n) => {
            made.extend([json!(0), json!(1), json!(-1), json!(u32::MAX), json!(u64::MAX), json!(1e300), json!(0.5)]);
            match (n.as_i64(), n.as_f64()) {
                (Some(n), _) => made.extend([json!(n + 1), json!(n - 1), json!(n * 2)]),
                (None, Some(n)) => made.extend([json!(n + 1.0), json!(n - 1.0), json!(n * 2.0), json!(-n)]),
                _ => {}
            }
            made.extend([json!("NaN"), json!([]), json!(true)]);
        }
        Value::String(_) => {
            made.extend([json!(""), json!("x"), json!("NaN"), json!("x".repeat(70_000)), json!("\u{0}\n"), json!(0)]);
            if at.starts_with("/pipeline/") && !at.contains("/class_names") || at == "/quantization/attention" {
                made.extend(WORDS.map(Value::from));
            }
        }
        Value::Bool(flag) => made.extend([json!(!flag), json!(0), json!("false")]),
        Value::Null => made.extend([json!(0), json!({}), json!([])]),
        Value::Array(list) => {
            made.extend([json!([]), json!({}), json!(list.iter().rev().collect::<Vec<_>>())]);
            let longer = |last: &Value| json!(list.iter().chain([last]).collect::<Vec<_>>());
            made.extend(list.last().map(longer));
            made.extend([json!(0), json!("x"), json!("crop_top"), json!({})].iter().map(longer));
            made.extend(list.len().checked_sub(1).map(|n| json!(list[..n])));
        }
        Value::Object(object) => {
            made.extend([json!({}), json!([])]);
            let added = known_keys().into_iter().filter(|(key, _)| !object.contains_key(*key));
            changes.extend(added.flat_map(|(key, values)| values.into_iter().map(move |v| Change::Insert(key, v))));
        }
    }
    changes.extend(made.into_iter().filter(|new| new != value).map(Change::Set));
    if !at.is_empty() {
        changes.push(Change::Remove);
    }
    changes
}

/// Keys that objects of META may have beside those they must, and one that none has, with values.
fn known_keys() -> Vec<(&'static str, Vec<Value>)> {
    let text = json!({"context": [0]});
    vec![
        ("unknown", vec![json!(0)]),
        ("7", vec![json!("x")]),
        ("guided_channels", vec![json!(0), json!(1), json!(4), json!(5), json!(u32::MAX)]),
        ("latent_multiple", vec![json!(0), json!(1), json!(2), json!(3), json!(4), json!(4096), json!(u32::MAX)]),
        ("class_names", vec![json!({"0": "x"}), json!({"-1": "x"}), json!({"4294967295": "x"})]),
        ("text", vec![json!({"encoders": [], "zero_negative": false, "denoiser": text})]),
        ("encoder", vec![json!({"scale": 1.0, "shift": 0.0}), json!({"scale": 0.0, "shift": 0.0})]),
        ("refiner", vec![text, json!({"context": []})]),
        ("length", vec![json!("padded"), json!("masked"), json!("own"), json!("x")]),
        ("lower_case", vec![json!(true), json!(false)]),
        ("pooled", vec![json!(0), json!(1), json!(u32::MAX)]),
        ("sizes", vec![json!(["crop_top"]), json!([])]),
        ("attention", vec![json!("int8"), json!("")]),
        ("aliases", vec![json!({"x": ["y"]}), json!({})]),
        ("spacing", vec![json!("trailing"), json!("quad")]),
        ("set_alpha_to_one", vec![json!(false), json!(true)]),
        ("clip_sample", vec![json!(false), json!(true)]),
        ("variance", vec![json!("learned_range"), json!("fixed_large")]),
        ("use_exponential_sigmas", vec![json!(true)]),
        ("use_beta_sigmas", vec![json!(true)]),
        ("use_lu_lambdas", vec![json!(true)]),
        ("lambda_min_clipped", vec![json!(-5.1), json!(1e300), json!(-1e300)]),
        ("rescale_betas_zero_snr", vec![json!(true)]),
        ("trained_betas", vec![json!([]), json!([0.5]), json!(vec![0.01; 1000]), json!(vec![1.0; 1000])]),
        ("thresholding", vec![json!(true)]),
        ("dynamic_thresholding_ratio", vec![json!(0.5), json!(-1), json!(1e300)]),
        ("sample_max_value", vec![json!(2.0), json!(0), json!(1e300)]),
        ("replaces", vec![json!("x"), json!("")]),
        ("original_inference_steps", vec![json!(0), json!(1), json!(u64::MAX)]),
        ("timestep_scaling", vec![json!(0.0), json!(1e300), json!(-1)]),
    ]
}

/// The places where `a` and `b` differ.
pub fn differences(a: &Value, b: &Value) -> Vec<String> {
    let mut found = Vec::new();
    compare(a, b, String::new(), &mut found);
    found
}

fn compare(a: &Value, b: &Value, at: String, found: &mut Vec<String>) {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            for key in a.keys().chain(b.keys().filter(|key| !a.contains_key(*key))) {
                let none = &Value::Null;
                compare(
                    a.get(key).unwrap_or(none),
                    b.get(key).unwrap_or(none),
                    format!("{at}/{}", escaped(key)),
                    found,
                );
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            a.iter().zip(b).enumerate().for_each(|(i, (a, b))| compare(a, b, format!("{at}/{i}"), found));
        }
        (a, b) if a != b => found.push(at),
        _ => {}
    }
}

/// Whether a change at `at` may make another picture of a sound file, since nothing in the programs tells what is right:
/// the settings of the sampler and of guidance, what "no class" and "no text" mean, which tokens begin and end a text, which
/// encoder's features come first, what the numbers beside a prompt are, and how the encoder's result is scaled.
pub fn may_change_pictures(at: &str) -> bool {
    let settings =
        ["sampler", "steps", "guidance_scale", "guided_channels", "null_class", "encoder", "refiner", "text/denoiser"];
    let Some(field) = at.strip_prefix("/pipeline/") else { return false };
    let within = |prefix: &str| field.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    let of_encoder = || {
        let rest = field.strip_prefix("text/encoders/")?;
        rest.split_once('/').map(|(_, field)| ["tokenizer", "lower_case", "begin", "end", "pad"].contains(&field))
    };
    field == "text/zero_negative" || settings.into_iter().any(within) || of_encoder().unwrap_or(false)
}

/// Whether a change at `at` may have a sound file refuse a request that it took before: what may make another picture may,
/// and so may the number of classes and what sizes are multiples of.
pub fn may_refuse_requests(at: &str) -> bool {
    may_change_pictures(at) || ["/pipeline/classes", "/pipeline/latent_multiple"].contains(&at)
}
