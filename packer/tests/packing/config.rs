//! Quantization configurations: every spelling, every format, every refusal.

use aquatint::raw::codec::Bits;
use packer::{
    config::{Activations, ConfigError, LayerSpec, QConfig, Weights},
    lower::pixart,
    quantize::Method,
    source::pickle,
    weight,
};
use std::path::{Path, PathBuf};

const LAYERS: [&str; 5] = [
    "pos_embed.proj",
    "transformer_blocks.0.attn1.to_q",
    "transformer_blocks.0.ff.net.2",
    "transformer_blocks.1.attn1.to_q",
    "proj_out_2",
];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name)
}

fn codes(method: Method, bits: u32, activations: Activations) -> LayerSpec {
    LayerSpec { weights: Weights::Codes { method, bits: Bits::new(bits).unwrap() }, activations }
}

fn float(weights: Weights) -> LayerSpec {
    LayerSpec { weights, activations: Activations::Float }
}

/// A file that is removed again.
struct Temporary(PathBuf);

impl Temporary {
    fn new(name: &str, contents: &[u8]) -> Self {
        let path = std::env::temp_dir().join(format!("aquatint-config-{}-{name}", std::process::id()));
        std::fs::write(&path, contents).unwrap();
        Temporary(path)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn parse(name: &str, contents: impl AsRef<[u8]>) -> Result<QConfig, ConfigError> {
    QConfig::parse(Temporary::new(name, contents.as_ref()).0.to_str().unwrap())
}

/// What `config` asks for `layers`.
fn specs(config: &QConfig, layers: &[&str]) -> Result<Vec<LayerSpec>, ConfigError> {
    Ok(config.resolve(layers, &[])?.into_iter().map(|choice| choice.spec).collect())
}

/// The specs of [`LAYERS`] as text.
fn resolve(name: &str, contents: impl AsRef<[u8]>) -> Result<Vec<String>, ConfigError> {
    Ok(specs(&parse(name, contents)?, &LAYERS)?.iter().map(LayerSpec::to_string).collect())
}

#[track_caller]
fn refused(result: Result<impl std::fmt::Debug, ConfigError>, needles: &[&str]) {
    let message = result.expect_err("this should be refused").to_string();
    for needle in needles {
        assert!(message.contains(needle), "`{needle}` is missing in: {message}");
    }
}

#[test]
fn specs_set_every_layer() {
    use Activations::{Float, Int};
    for (text, expected) in [
        ("f32", float(Weights::F32)),
        ("f16", float(Weights::F16)),
        ("w8a16", codes(Method::UAQ, 8, Float)),
        ("w8a8", codes(Method::UAQ, 8, Int(8))),
        ("w6a8", codes(Method::UAQ, 6, Int(8))),
        ("w5a8", codes(Method::UAQ, 5, Int(8))),
        ("w4a16", codes(Method::UAQ, 4, Float)),
        ("w4a6", codes(Method::UAQ, 4, Int(6))),
        ("w3a8", codes(Method::UAQ, 3, Int(8))),
        ("w2a8", codes(Method::UAQ, 2, Int(8))),
        ("w4a8:kmeans_c", codes(Method::KMeansRow, 4, Int(8))),
        ("w4a8:kmeans", codes(Method::KMeansRow, 4, Int(8))),
        ("w3a16:kmeans_all", codes(Method::KMeansTensor, 3, Float)),
        ("w4a8:mse", codes(Method::UAQ, 4, Int(8))),
        ("w3a8:lloyd", codes(Method::Lloyd, 3, Int(8))),
        ("w2a16:gauss", codes(Method::Lloyd, 2, Float)),
    ] {
        let config = QConfig::parse(text).unwrap();
        assert_eq!(specs(&config, &LAYERS).unwrap(), [expected; 5], "{text}");
        assert_eq!(specs(&QConfig::parse(&expected.to_string()).unwrap(), &["x"]).unwrap(), [expected]);
    }
}

#[test]
fn specs_that_are_none_say_what_is_accepted() {
    for (text, needles) in [
        ("w7a8", ["weight bits", "2, 3, 4, 5, 6 or 8", "`7`"]),
        ("w4a9", ["activation bits", "2 to 8, or 16", "`9`"]),
        ("w8a1", ["activation bits", "2 to 8, or 16", "`1`"]),
        ("w4a8:gptq", ["method", "kmeans_c", "`gptq`"]),
        ("w04a8", ["weight bits", "no file", "`04`"]),
        ("w+4a8", ["weight bits", "no file", "`+4`"]),
        ("w4aa8", ["precision", "f16", "w4aa8"]),
        ("q8", ["precision", "w<bits>a<bits>", "`q8`"]),
        ("", ["precision", "f32", "no file"]),
        ("missing/config.json", ["no file of that name", "w4a8", "missing/config.json"]),
    ] {
        refused(QConfig::parse(text), &needles);
    }
}

const JSON: &str = r#"{"default": "w4a8", "activations": 6, "layers": {
    "transformer_blocks.*": "kmeans-4", "transformer_blocks.*.ff.*": "f16", "transformer_blocks.1.attn1.to_q": "w3a8:kmeans_all",
    "model.proj_out_2.weight_quantizer": "mse-3"}}"#;
const YAML: &str = "default: w4a8\nactivations: a6\nlayers:\n  transformer_blocks.*: kmeans-4\n
  transformer_blocks:\n    0: {ff: {net: {2: f16}}}\n    1:\n      attn1:\n        to_q: w3a8:kmeans_a\n  proj_out_2: uaq-3\n";
const TOML: &str =
    "default = 'w4a8'\nactivations = 'a6'\n[layers]\ntransformer_blocks.1.attn1.to_q = 'w3a8:kmeans_all'\n
transformer_blocks.0.ff.net.2 = 'f16'\nproj_out_2 = 'mse-3'\n'transformer_blocks.*' = 'kmeans-4'\n";

#[test]
fn every_format_says_the_same() {
    let expected = ["w4a8:mse", "w4a6:kmeans", "f16", "w3a8:kmeans_all", "w3a6:mse"];
    assert_eq!(resolve("a.json", JSON).unwrap(), expected);
    assert_eq!(resolve("a.toml", TOML).unwrap(), expected);
    assert_eq!(resolve("a.yaml", YAML).unwrap(), expected);
    let float_input = parse("b.toml", TOML.replace("activations = 'a6'", "")).unwrap();
    assert_eq!(specs(&float_input, &LAYERS).unwrap()[1].to_string(), "w4a16:kmeans");
    let overridden = specs(&float_input.with_activations(Activations::Int(8)), &LAYERS).unwrap();
    assert_eq!(overridden[1].to_string(), "w4a8:kmeans");
    assert_eq!(overridden[2].to_string(), "f16");
}

#[test]
fn the_longer_glob_wins_in_any_order_and_an_exact_name_beats_both() {
    let long = r#""*attn1.to_q": "mse-3""#;
    let short = r#""*": "mse-4""#;
    let exact = r#""transformer_blocks.1.attn1.to_q": "mse-2""#;
    let expected = ["w4a16:mse", "w3a16:mse", "w4a16:mse", "w2a16:mse", "w4a16:mse"];
    for order in [[long, short, exact], [exact, short, long], [short, exact, long]] {
        assert_eq!(resolve("order.json", format!("{{{}}}", order.join(","))).unwrap(), expected);
    }
    // Equally literal: only a difference matters, and a more literal glob settles it.
    let same = r#"{"*": "f16", "*attn1*": "mse-3", "*.to_q": "mse-3"}"#;
    assert_eq!(resolve("tie.json", same).unwrap()[1], "w3a16:mse");
    let differ = same.replace(r#"to_q": "mse-3"#, r#"to_q": "mse-4"#);
    refused(
        resolve("tie.json", &differ),
        &["transformer_blocks.0.attn1.to_q", "set twice", "`*attn1*` = w3a16:mse", "`*.to_q` = w4a16:mse"],
    );
    let settled = differ.replace(r#""*":"#, r#""*1.to_q": "mse-2", "*":"#);
    assert_eq!(resolve("tie.json", settled).unwrap()[1], "w2a16:mse");
}

#[test]
fn a_layer_nobody_names_is_an_error_with_the_remedy() {
    let one = r#"{"proj_out_2": "f16"}"#;
    refused(
        resolve("few.json", one),
        &[
            "few.json",
            "4 of the model's layers",
            "pos_embed.proj",
            "transformer_blocks.0.ff.net.2",
            "1 more",
            "default",
        ],
    );
    refused(resolve("empty.json", "{}"), &["5 of the model's layers", "and 2 more"]);
}

#[test]
fn a_key_that_matches_nothing_suggests_names() {
    let wrong = r#"{"default": "f16", "transformer_blocks.0.attn1.to_qq": "mse-4", "zzz*": "f16"}"#;
    refused(
        resolve("typo.json", wrong),
        &["typo.json", "transformer_blocks.0.attn1.to_qq", "1 other key", "nearest: transformer_blocks.0.attn1.to_q,"],
    );
    refused(resolve("glob.json", r#"{"default": "f16", "transformer_block.*": "mse-4"}"#), &["`transformer_block.*`"]);
    let long = format!(r#"{{"default": "f16", "{}": "mse-4"}}"#, "x".repeat(100_000));
    let message = resolve("long.json", long).unwrap_err().to_string();
    assert!(message.len() < 600, "{} characters", message.len());
}

#[test]
fn values_that_are_no_precision_name_file_key_and_value() {
    for (value, needles) in [
        (r#""gptq-4""#, ["v.json", "pos_embed.proj", "gptq-4", "kmeans_c"]),
        (r#""kmeans-7""#, ["v.json", "pos_embed.proj", "kmeans-7", "2, 3, 4, 5, 6 or 8"]),
        (r#""kmeans-44""#, ["v.json", "pos_embed.proj", "kmeans-44", "2, 3, 4, 5, 6 or 8"]),
        (r#""kmeans""#, ["v.json", "pos_embed.proj", "`kmeans`", "<method>-<bits>"]),
        (r#""w4a8:""#, ["v.json", "pos_embed.proj", "method", "kmeans_c"]),
        ("4", ["v.json", "pos_embed.proj", "`4`", "text such as"]),
        ("null", ["v.json", "pos_embed.proj", "nothing", "text such as"]),
        ("true", ["v.json", "pos_embed.proj", "boolean", "text such as"]),
        ("[]", ["v.json", "pos_embed.proj", "list", "text such as"]),
    ] {
        refused(resolve("v.json", format!(r#"{{"default": "f16", "pos_embed.proj": {value}}}"#)), &needles);
    }
    refused(resolve("o.json", r#"{"default": "f17"}"#), &["`default`", "f17", "f32, f16"]);
    refused(resolve("o.json", r#"{"activations": "a10", "*": "f16"}"#), &["`activations`", "`10`", "2 to 8, or 16"]);
    refused(resolve("o.json", r#"{"layers": "f16"}"#), &["`layers`", "a map from layers"]);
    refused(resolve("o.json", r#"{"layers": {}, "defualt": "f16"}"#), &["beside `layers`", "defualt"]);
}

#[test]
fn files_that_are_not_what_they_say_are_refused() {
    refused(parse("bad.json", "{"), &["bad.json", "not JSON", "line 1"]);
    refused(parse("bad.json", r#"{"a": "f16", "a": "f32"}"#), &["key `a` appears twice"]);
    refused(parse("bad.toml", "a ="), &["bad.toml", "not TOML"]);
    refused(parse("bad.toml", [0xff]), &["bad.toml", "text in UTF-8", "byte 0xff at 0"]);
    refused(parse("bad.yaml", "a: b: c"), &["bad.yaml", "not YAML"]);
    refused(parse("bad.yaml", "a: f16\na: f32\n"), &["bad.yaml", "twice"]);
    refused(parse("bad.pkl", b"hello"), &["bad.pkl", "not a plain pickle", "byte 0"]);
    refused(parse("bad.pkl", b"PK\x03\x04x"), &["bad.pkl", "a plain pickle", "zip archive", "torch.save"]);
    refused(parse("empty.yaml", ""), &["empty.yaml", "a map from layers to precisions is expected"]);
    refused(parse("bad.txt", "{}"), &["bad.txt", ".json", "`txt`"]);
    refused(parse("list.json", "[1, 2]"), &["list.json", "a map from layers", "this is a list"]);
    refused(parse("text.json", "\"f16\""), &["text.json", "a map"]);
    refused(parse("glob.json", r#"{"[": "f16"}"#).and_then(|c| c.resolve(&LAYERS, &[])), &["glob.json", "not a glob"]);
    refused(parse("deep.json", "[".repeat(100_000)), &["not JSON"]);
    refused(parse("deep.toml", format!("a = {}", "[".repeat(100_000))), &["not TOML"]);
    refused(parse("deep.yaml", "[".repeat(20_000)), &["not YAML"]);
}

#[test]
fn marks_line_ends_and_utf16_are_no_part_of_the_text() {
    let expected = ["w4a8:mse", "w4a6:kmeans", "f16", "w3a8:kmeans_all", "w3a6:mse"];
    for (name, text) in [("m.json", JSON), ("m.toml", TOML), ("m.yaml", YAML)] {
        let text = text.replace('\n', "\r\n");
        let marked = |mark: &[u8], bytes: Vec<u8>| [mark, &bytes].concat();
        let le = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let be = text.encode_utf16().flat_map(u16::to_be_bytes).collect();
        for bytes in [
            text.clone().into_bytes(),
            marked(b"\xef\xbb\xbf", text.clone().into_bytes()),
            marked(b"\xff\xfe", le),
            marked(b"\xfe\xff", be),
        ] {
            assert_eq!(resolve(name, &bytes).unwrap(), expected, "{name} {:x?}", &bytes[..4]);
        }
    }
    refused(parse("m.json", b"\xff\xfe\0\0{\0\0\0"), &["m.json", "text in UTF-8", "UTF-32"]);
    refused(parse("m.yaml", b"\x1f\x8b\x08\0"), &["m.yaml", "gzip"]);
}

#[test]
fn one_sample_of_a_cache_is_a_configuration() {
    let config = LAYERS.map(|l| format!(r#""model.{l}.weight_quantizer": ["mse-3", 589824, 115200, 0.004]"#)).join(",");
    let sample = format!(r#"{{"config": {{{config}}}, "quantized_size": 5, "avg_bits": 3.4}}"#);
    assert_eq!(resolve("sample.json", &sample).unwrap(), ["w3a16:mse"; 5]);
    assert_eq!(resolve("cache.json", format!("[{sample}]")).unwrap(), ["w3a16:mse"; 5]);
    refused(resolve("cache.json", format!("[{sample},{sample}]")), &["2 configurations", ":0 to :1 or :best"]);
}

#[test]
fn apples_recipes_are_configurations_with_names() {
    // As the file for a published model begins; numbers of single layers are measurements.
    let recipe = |bits: [u8; 3]| {
        let [a, b, c] = bits;
        format!(
            r#"{{"pos_embed.proj": {a}, "transformer_blocks.0.attn1.to_q": {b}, "transformer_blocks.1.attn1.to_q": {c}}}"#
        )
    };
    let (one, other) = (recipe([6, 4, 16]), recipe([2, 4, 8]));
    let file = format!(
        r#"{{"model_version": "m/n", "single_layer": {{"4": {{"pos_embed.proj": [70.5]}}}}, "baselines": {{"original": 82.2}},
            "recipes": {{"recipe_4.50_bit_mixedpalette": {one}, "recipe_3.41_bit_mixedpalette": {other}}}}}"#
    );
    let kept = Temporary::new("palettization_recipe.json", file.as_bytes());
    let get = |which: &str| {
        let config = QConfig::parse(&format!("{}{which}", kept.0.display())).map_err(|e| e.to_string())?;
        let choices = config.resolve(&LAYERS, &[]).map_err(|e| e.to_string())?;
        Ok::<_, String>(choices.iter().map(|c| c.spec.to_string()).collect::<Vec<_>>())
    };
    let spec = |layer: &str, specs: &[String]| specs[LAYERS.iter().position(|l| *l == layer).unwrap()].clone();
    let specs = get(":recipe_4.50_bit_mixedpalette").unwrap();
    assert_eq!(spec("pos_embed.proj", &specs), "w6a16:kmeans_all");
    assert_eq!(spec("transformer_blocks.0.attn1.to_q", &specs), "w4a16:kmeans_all");
    assert_eq!(spec("transformer_blocks.1.attn1.to_q", &specs), "f16");
    assert_eq!(spec("proj_out_2", &specs), "f16", "it is not in the recipe");
    assert_eq!(spec("pos_embed.proj", &get(":1").unwrap()), "w2a16:kmeans_all");
    let error = get("").unwrap_err();
    assert!(error.contains("2 configurations; to take one, write :0 to :1 or its name behind the name"), "{error}");
    assert!(error.contains("0 (recipe_4.50_bit_mixedpalette)"), "{error}");
    let error = get(":recipe_5").unwrap_err();
    assert!(error.contains("one of recipe_4.50_bit_mixedpalette, recipe_3.41_bit_mixedpalette is expected"), "{error}");
    std::fs::write(&kept.0, file.replace("\"pos_embed.proj\": 6", "\"pos_embed.proj\": 1")).unwrap();
    assert!(get(":0").unwrap_err().contains("expected 2, 3, 4, 5, 6 or 8, got `1`"));
}

#[test]
fn duplicates_follow_their_canonical_layer() {
    let aliases = [
        ("transformer_blocks.1.norm.linear_1", "pos_embed.proj"),
        ("transformer_blocks.2.norm.linear_1", "pos_embed.proj"),
    ];
    let first = |json: &str| {
        let specs = parse("alias.json", json).unwrap().resolve(&LAYERS, &aliases).map_err(|e| e.to_string());
        specs.map(|s| s[0].spec.to_string())
    };
    let own = r#"{"default": "f16", "pos_embed.proj": "mse-4", "model.transformer_blocks.1.norm.linear_1.weight_quantizer": "mse-4"}"#;
    assert_eq!(first(own).unwrap(), "w4a16:mse");
    assert_eq!(first(&own.replace(r#"quantizer": "mse-4""#, r#"quantizer": "mse-2""#)).unwrap(), "w4a16:mse");
    let only = r#"{"default": "f16", "*_embed*": "f32", "transformer_blocks.2.norm.linear_1": "mse-3"}"#;
    assert_eq!(first(only).unwrap(), "w3a16:mse");
    assert_eq!(first(r#"{"default": "f16", "*.2.norm*": "mse-3"}"#).unwrap(), "f16");
    assert!(
        first(r#"{"default": "f16", "transformer_blocks.3.norm.linear_1": "mse-3"}"#).unwrap_err().contains("no layer")
    );
}

/// What Qua2SeDiMo quantizes of PixArt, by the names of its configurations: every layer of the denoiser, and each has one name.
#[test]
fn qua2sedimos_names_are_those_of_pixarts_layers() {
    let config = serde_json::json!({"caption_channels": 4096, "sample_size": 64});
    let config = pixart::Config::read("PixArtTransformer2DModel", config.as_object().unwrap(), &|_| false).unwrap();
    let mut weights = weight::Weights::new();
    pixart::lower(&config, &mut weights);
    let layers: Vec<String> = weights.iter().filter(|w| w.quantizable()).map(|w| w.layer()).collect();
    let mut names: Vec<String> = [
        "pos_embed.proj",
        "adaln_single.emb.timestep_embedder.linear_1",
        "adaln_single.emb.timestep_embedder.linear_2",
        "adaln_single.linear",
        "caption_projection.linear_1",
        "caption_projection.linear_2",
        "proj_out",
    ]
    .map(String::from)
    .to_vec();
    for block in 0..28 {
        let attention = |n| ["to_q", "to_k", "to_v", "to_out.0"].map(|name| format!("attn{n}.{name}"));
        let mlp = ["ff.net.0.proj", "ff.net.2"].map(String::from);
        let all = attention(1).into_iter().chain(attention(2)).chain(mlp);
        names.extend(all.map(|name| format!("transformer_blocks.{block}.{name}")));
    }
    assert_eq!((layers.len(), names.len()), (287, 287));
    let methods = ["mse-4", "mse-3", "kmeans-4", "kmeans-3", "kmeans_all-4", "kmeans_all-3"];
    let entry = |(i, name): (usize, &String)| (format!("model.{name}.weight_quantizer"), methods[i % 6].into());
    let entries: serde_json::Map<String, serde_json::Value> = names.iter().enumerate().map(entry).collect();
    let config = parse("pixart.json", serde_json::to_vec(&entries).unwrap()).unwrap();
    let layers: Vec<&str> = layers.iter().map(String::as_str).collect();
    for (layer, choice) in layers.iter().zip(config.resolve(&layers, &[]).unwrap()) {
        let key = format!("model.{layer}.weight_quantizer");
        assert_eq!(choice.by.to_string(), format!("`{key}`"));
        let (method, bits) = entries[&key].as_str().unwrap().rsplit_once('-').unwrap();
        assert_eq!(choice.spec.to_string(), format!("w{bits}a16:{method}"));
    }
}

#[test]
fn every_choice_says_what_made_it() {
    let json = r#"{"default": "f16", "*.attn1.*": "mse-4", "model.transformer_blocks.1.attn1.to_q": "mse-3",
        "again.proj": "mse-2"}"#;
    let by = |config: QConfig| {
        let choices = config.resolve(&LAYERS, &[("again.proj", "pos_embed.proj")]).unwrap();
        choices.iter().map(|choice| choice.by.to_string()).collect::<Vec<_>>()
    };
    let expected = ["`again.proj`", "`*.attn1.*`", "default", "`model.transformer_blocks.1.attn1.to_q`", "default"];
    assert_eq!(by(parse("by.json", json).unwrap()), expected);
    assert_eq!(by(QConfig::parse("w4a8").unwrap()), ["specification"; 5]);
}

#[test]
fn the_second_half_of_a_split_layer_has_its_own_name() {
    let layers = ["skip", "skip.weight_quantizer_0"];
    let get = |json: &str| {
        let specs = specs(&parse("split.json", json).unwrap(), &layers).unwrap();
        specs.iter().map(LayerSpec::to_string).collect::<Vec<_>>()
    };
    let both = r#"{"model.skip.weight_quantizer": "mse-4", "model.skip.weight_quantizer_0": "mse-3"}"#;
    assert_eq!(get(both), ["w4a16:mse", "w3a16:mse"]);
    assert_eq!(get(r#"{"default": "f16", "skip": "mse-4"}"#), ["w4a16:mse", "w4a16:mse"]);
    assert_eq!(get(r#"{"default": "f16", "*kip": "mse-4"}"#), ["w4a16:mse", "w4a16:mse"]);
    assert_eq!(get(r#"{"default": "f16", "*kip": "mse-4", "*_0": "mse-3"}"#), ["w4a16:mse", "w3a16:mse"]);
    assert_eq!(get(r#"{"default": "f16"}"#), ["f16", "f16"]);
}

#[test]
fn two_keys_for_one_layer_must_agree() {
    let twice = r#"{"default": "f16", "proj_out_2": "mse-4", "model.proj_out_2.weight_quantizer": "mse-4"}"#;
    assert_eq!(resolve("twice.json", twice).unwrap()[4], "w4a16:mse");
    let differ = twice.replacen("mse-4", "mse-3", 1);
    refused(resolve("twice.json", differ), &["proj_out_2 is set twice", "w3a16:mse", "w4a16:mse"]);
}

/// Qua2SeDiMo's own file, protocol 4, against the same content as JSON.
#[test]
fn a_pickle_of_the_source_project_reads_as_its_json() {
    let json = std::fs::read_to_string(fixture("qua2sedimo.json")).unwrap();
    let map: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&json).unwrap();
    let names: Vec<String> =
        map.keys().map(|k| k.trim_start_matches("model.").trim_end_matches(".weight_quantizer").to_string()).collect();
    let layers: Vec<&str> = names.iter().map(String::as_str).collect();
    assert!(layers.len() > 10);
    let from = |name: &str| specs(&QConfig::from_file(&fixture(name)).unwrap(), &layers).unwrap();
    let got = from("qua2sedimo.pkl");
    assert_eq!(got, from("qua2sedimo.json"));
    for (spec, value) in got.iter().zip(map.values()) {
        let (method, bits) = value.as_str().unwrap().rsplit_once('-').unwrap();
        let expected = codes(Method::parse(method).unwrap(), bits.parse().unwrap(), Activations::Float);
        assert_eq!(*spec, expected);
    }
}

#[test]
fn a_pickle_that_runs_code_is_refused() {
    refused(QConfig::from_file(&fixture("hostile.pkl")), &["hostile.pkl", ".system, which runs code", "byte 66"]);
}

/// `b"\x80\x02" + body + b"."`.
fn protocol_2(body: &[u8]) -> Vec<u8> {
    [b"\x80\x02", body, b"."].concat()
}

#[test]
fn every_opcode_that_only_code_needs_is_named() {
    for (op, name) in [
        (b'i', "INST"),
        (b'o', "OBJ"),
        (b'P', "PERSID"),
        (b'Q', "BINPERSID"),
        (0x81, "NEWOBJ"),
        (0x82, "EXT1"),
        (0x83, "EXT2"),
        (0x84, "EXT4"),
        (0x92, "NEWOBJ_EX"),
        (0x97, "NEXT_BUFFER"),
        (0x98, "READONLY_BUFFER"),
    ] {
        let error = pickle::read(&protocol_2(&[b')', op])).unwrap_err();
        assert_eq!((error.offset, error.what), (3, "opcode"));
        assert!(error.got.starts_with(name), "{error}");
    }
}

#[test]
fn plain_data_of_every_kind_is_read() {
    use pickle::Value;
    let leaf = |body: &[u8]| {
        let bytes = protocol_2(body);
        format!("{:?}", pickle::read(&bytes).unwrap().root())
    };
    for (body, expected) in [
        (&b"N"[..], Value::None),
        (b"\x88", Value::Bool(true)),
        (b"\x89", Value::Bool(false)),
        (b"K\xff", Value::Int(255)),
        (b"M\xff\xff", Value::Int(65535)),
        (b"J\xff\xff\xff\xff", Value::Int(-1)),
        (b"\x8a\x00", Value::Int(0)),
        (b"\x8a\x01\x80", Value::Int(-128)),
        (b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f", Value::Int(i64::MAX)),
        (b"\x8b\x02\x00\x00\x00\x00\x80", Value::Int(-32768)),
        (b"G\x3f\xf8\x00\x00\x00\x00\x00\x00", Value::Float(1.5)),
        (b"X\x02\x00\x00\x00ab", Value::Str("ab")),
        (b"U\x02ab", Value::Str("ab")),
        (b"T\x02\x00\x00\x00ab", Value::Str("ab")),
        (b"\x8c\x02ab", Value::Str("ab")),
        (b"\x8d\x02\x00\x00\x00\x00\x00\x00\x00ab", Value::Str("ab")),
        (b"C\x01\xff", Value::Bytes(&[255])),
        (b"]", Value::List(vec![])),
        (b")", Value::Tuple(vec![])),
        (b"}", Value::Dict(vec![])),
        (b"I-7\n", Value::Int(-7)),
        (b"I01\n", Value::Bool(true)),
        (b"L12345678901L\n", Value::Int(12345678901)),
        (b"F-1.5e3\n", Value::Float(-1500.0)),
        (b"S'ab'\n", Value::Str("ab")),
        (b"Vab\n", Value::Str("ab")),
        (b"V\\u00e9\xe9\\U0001f600\\x\n", Value::Text("éé\u{1f600}\\x".into())),
        (b"Np5\n0g5\n", Value::None),
        (b"NK\x070", Value::None),       // POP leaves what lies below
        (b"N(K\x07K\x081", Value::None), // and so does POP_MARK
    ] {
        assert_eq!(leaf(body), format!("{expected:?}"), "{body:02x?}");
    }
    let bytes = protocol_2(b"}q\x00(U\x01aq\x01]q\x02(K\x01K\x02eh\x01K\x01K\x02K\x03\x87u");
    let pickle = pickle::read(&bytes).unwrap();
    let Value::Dict(items) = pickle.root() else { panic!("{pickle:?}") };
    let Value::List(list) = pickle.get(items[0].1) else { panic!("{pickle:?}") };
    let Value::Tuple(tuple) = pickle.get(items[1].1) else { panic!("{pickle:?}") };
    assert_eq!((list.len(), tuple.len(), items[0].0), (2, 3, items[1].0));
    assert_eq!(pickle.get(tuple[2]), &Value::Int(3));
}

#[test]
fn malformed_pickles_are_refused_with_their_reason() {
    for (bytes, needle) in [
        (&b""[..], "first byte"),
        (b"(dp0\n", "to the end of the file"),
        (b"I1.", "a line of at most"),
        (b"Ix\n.", "digits"),
        (b"I99999999999999999999\n.", "digits of at most 64 bits"),
        (b"Fone\n.", "digits"),
        (b"S'a\\x'\n.", "no escapes"),
        (b"Sa\n.", "quotes"),
        (b"V\\u12\n.", "escapes of characters"),
        (b"V\\ud800\n.", "escapes of characters"),
        (b"Np-1\n.", "a number"),
        (b"g7\n.", "stored before"),
        (b"\x80\x01N.", "2 to 5"),
        (b"\x80\x06N.", "2 to 5"),
        (b"\x80\x04N", "to the end of the file"),
        (b"\x80\x04.", "a value"),
        (b"\x80\x04NN.", "one value on the stack"),
        (b"\x80\x04(N.", "one value on the stack"),
        (b"\x80\x04N.N", "no further bytes"),
        (b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\xffN.", "frame"),
        (b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\xffN.", "to the end of the file"),
        (b"\x80\x04X\xff\xff\xff\xffN.", "to the end of the file"),
        (b"\x80\x04\x8a\x09123456789.", "at most 8 bytes"),
        (b"\x80\x04\x8b\xff\xff\xff\xff.", "at most 8 bytes"),
        (b"\x80\x04\x8c\x01\xff.", "UTF-8"),
        (b"\x80\x04h\x00.", "stored before"),
        (b"\x80\x04NNa.", "a list to append to"),
        (b"\x80\x04NNNs.", "a dict to assign to"),
        (b"\x80\x04}(Nu.", "in pairs"),
        (b"\x80\x04(Nd.", "in pairs"),
        (b"\x80\x04u.", "a mark"),
        (b"\x80\x04N(0.", "since the last mark"),
        (b"\x80\x04\x85.", "a value"),
        (b"\x80\x04\x8f.", "0x8f"),
    ] {
        let error = pickle::read(bytes).unwrap_err().to_string();
        assert!(error.contains(needle), "`{needle}` is missing in: {error}");
    }
    let nested = protocol_2(&b"(".repeat(pickle::MAX_DEPTH + 1));
    assert!(pickle::read(&nested).unwrap_err().to_string().contains("nesting"));
    let many = protocol_2(&b"]".repeat(pickle::MAX_VALUES + 1));
    assert!(pickle::read(&many).unwrap_err().to_string().contains("at most"));
    let copies = protocol_2(&[&b"N"[..], &b"2".repeat(pickle::MAX_VALUES)].concat());
    assert!(pickle::read(&copies).unwrap_err().to_string().contains("at most"));
}

#[test]
fn sharing_and_cycles_in_a_pickle_cost_nothing() {
    // A list that contains itself, as configuration and as value.
    refused(parse("cycle.pkl", protocol_2(b"]q\x00h\x00a")), &["a map from layers", "list"]);
    refused(parse("cycle.pkl", protocol_2(b"}q\x00U\x01ah\x00s")), &["`a`", "a dict"]);
    // Each list holds the one before twice: 2^60 leaves if it were expanded.
    let mut body = b"}U\x01a]".to_vec();
    body.extend((0..60).flat_map(|_| *b"2\x86"));
    body.push(b's');
    refused(parse("bomb.pkl", protocol_2(&body)), &["`a`", "list"]);
    // Ten thousand keys that all name one dict of ten thousand entries.
    let inner = |n: u32| [b"J".to_vec(), n.to_le_bytes().to_vec()].concat();
    let mut body = b"}(".to_vec();
    (0..10_000).for_each(|n| body.extend([inner(n), b"N".to_vec()].concat()));
    body.extend(b"uq\x000}(");
    (0..10_000).for_each(|_| body.extend(b"U\x06configh\x00"));
    body.push(b'u');
    refused(parse("wide.pkl", protocol_2(&body)), &["a key that is not text"]);
}

#[test]
fn truncated_and_flipped_pickles_never_panic() {
    for name in ["qua2sedimo.pkl", "hostile.pkl"] {
        let bytes = std::fs::read(fixture(name)).unwrap();
        for len in 0..bytes.len() {
            assert!(pickle::read(&bytes[..len]).is_err(), "{name} cut to {len} bytes");
        }
        let (mut read, mut refused) = (0u32, 0u32);
        let mut flipped = bytes.clone();
        for at in 0..bytes.len() {
            for value in
                (0..8).map(|bit| bytes[at] ^ (1 << bit)).chain([0x00, 0xff, b'(', b'e', b'u', b'2', 0x94, b'h'])
            {
                flipped[at] = value;
                match pickle::read(&flipped) {
                    Ok(pickle) => {
                        let _ = format!("{:?}", pickle.root());
                        read += 1;
                    }
                    Err(error) => {
                        assert!(error.offset <= bytes.len() && error.to_string().len() < 200);
                        refused += 1;
                    }
                }
            }
            flipped[at] = bytes[at];
        }
        assert!(refused > 100, "{name}: {read} read, {refused} refused");
    }
    // The same through the whole configuration reader, byte by byte.
    let bytes = std::fs::read(fixture("qua2sedimo.pkl")).unwrap();
    let file = Temporary::new("flip.pkl", &bytes);
    let mut flipped = bytes.clone();
    for at in (0..bytes.len()).step_by(3) {
        flipped[at] ^= 0x21;
        std::fs::write(&file.0, &flipped).unwrap();
        let _ = QConfig::from_file(&file.0).map(|config| config.resolve(&LAYERS, &[]).is_ok());
        flipped[at] = bytes[at];
    }
}
