//! Configurations in pickles as Python, numpy and Qua2SeDiMo write them, of every protocol; and pickles that would run
//! code, none of which is read.

use crate::common::{Scratch, fixture, model, pack_as};
use packer::config::QConfig;
use packer::source::pickle::{self, Value};
use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::time::Instant;

const PROTOCOLS: [u8; 6] = [0, 1, 2, 3, 4, 5];
const LAYERS: [&str; 3] = ["pos_embed.proj", "transformer_blocks.0.attn1.to_q", "proj_out_2"];

/// The pickles of `kind` by name.
fn pickles(kind: &str) -> BTreeMap<String, Vec<u8>> {
    let text = fs::read_to_string(fixture("pickles.json")).unwrap();
    let all: BTreeMap<String, BTreeMap<String, String>> = serde_json::from_str(&text).unwrap();
    let byte = |hex: &str, i: usize| u8::from_str_radix(&hex[i..i + 2], 16).unwrap();
    let bytes = |hex: &String| (0..hex.len()).step_by(2).map(|i| byte(hex, i)).collect();
    all[kind].iter().map(|(name, hex)| (name.clone(), bytes(hex))).collect()
}

/// A folder with all pickles that are data, as files.
fn files() -> Scratch {
    let scratch = Scratch::new("pickles");
    for (name, bytes) in pickles("data") {
        fs::write(scratch.path(&format!("{name}.pkl")), bytes).unwrap();
    }
    scratch
}

/// What the configuration called `name` in `files` asks for [`LAYERS`].
fn methods(files: &Scratch, name: &str) -> Result<Vec<String>, String> {
    let config = QConfig::parse(files.path(name).to_str().unwrap());
    let choices = config.and_then(|config| config.resolve(&LAYERS, &[])).map_err(|e| e.to_string())?;
    Ok(choices.iter().map(|choice| choice.spec.to_string()).collect())
}

#[track_caller]
fn refused(files: &Scratch, name: &str, words: &[&str]) {
    let message = methods(files, name).expect_err(name);
    for word in words {
        assert!(message.contains(word), "{name}: {word:?} is not in: {message}");
    }
}

#[test]
fn a_cache_gives_the_entry_that_is_named() {
    let files = files();
    for protocol in PROTOCOLS {
        let cache = format!("cache.p{protocol}.pkl");
        let all = [0, 1, 2].map(|n| methods(&files, &format!("{cache}:{n}")).unwrap());
        // The script that made it says which methods there are, and that the second has the lowest score.
        for (methods, word) in all.iter().zip(["w4a16:kmeans", "w3a16:mse", "w4a16:kmeans_all"]) {
            assert_eq!(*methods, [word; 3], "{cache}");
        }
        assert_eq!(methods(&files, &format!("{cache}:best")).unwrap(), all[1], "{cache}");
        let listed = "3 configurations; to take one, write :0 to :2 or :best behind the name; best first: \
                      1 (FID 91.50, 3.10 bits), 0 (FID 93.25, 3.90 bits), 2 (FID 97.00, 4.00 bits)";
        refused(&files, &cache, &[listed]);
        refused(&files, &format!("{cache}:3"), &["number 0 to 2", "got 3"]);
        refused(&files, &format!("{cache}:worst"), &["a number or `best`", "`worst`"]);
        refused(&files, &format!("{cache}:-1"), &["a number or `best`"]);
    }
}

#[test]
fn every_shape_of_the_same_configuration_reads_as_the_plain_one() {
    let files = files();
    for protocol in PROTOCOLS {
        for shape in ["plain", "one", "entry", "config", "ordered", "default", "texts", "arrays", "objects"] {
            let name = format!("{shape}.p{protocol}.pkl");
            let expected = ["w4a16:kmeans", "w4a16:kmeans", "w3a16:mse"].map(String::from);
            assert_eq!(methods(&files, &name), Ok(expected.to_vec()), "{name}");
        }
        assert!(methods(&files, &format!("one.p{protocol}.pkl:best")).is_ok());
        refused(&files, &format!("entry.p{protocol}.pkl:0"), &["one configuration and no list"]);
    }
}

#[test]
fn numbers_and_texts_of_numpy() {
    let all = pickles("data");
    for protocol in PROTOCOLS {
        let pickle = pickle::read(&all[&format!("numpy.p{protocol}")]).unwrap();
        let Value::List(items) = pickle.root() else { panic!("{pickle:?}") };
        let got: Vec<_> = items.iter().map(|&id| pickle.scalar(id).or_else(|| pickle.first(id))).collect();
        let text = |text: &str| Some(Value::Text(text.into()));
        let expected = [
            Some(Value::Float(93.25)),
            Some(Value::Float(-0.5)),
            Some(Value::Float(1.5)),
            Some(Value::Int(-5)),
            Some(Value::Int(250)),
            Some(Value::Bool(true)),
            text("kmeans-4 é😀"),
            Some(Value::Float(2.75)),
            Some(Value::Int(-7)),
            text("mse-3"),
            Some(Value::Float(3.5)),
            None,
        ];
        assert_eq!(got, expected, "protocol {protocol}");
    }
}

#[test]
fn pickles_that_would_run_code_are_refused() {
    let all = pickles("hostile");
    assert!(all.len() >= 120, "{} pickles", all.len());
    for (name, bytes) in &all {
        let message = pickle::read(bytes).map(|_| ()).expect_err(name).to_string();
        assert!(message.len() < 250 && message.lines().count() == 1, "{name:?}: {message}");
        let known = ["which runs code", "without a state", "to append to", "to assign to", "plain data"];
        assert!(known.iter().any(|word| message.contains(word)), "{name:?}: {message}");
    }
}

/// A call of what `name` names with `args`.
fn call(name: &str, args: &str) -> String {
    let (module, name) = name.rsplit_once('.').unwrap();
    format!("c{module}\n{name}\n({args}tR")
}

#[test]
fn names_of_data_are_called_as_their_writers_call_them_or_not_at_all() {
    let dtype = call("numpy.dtype", "Vf8\nI00\nI01\n");
    let scalar = "numpy._core.multiarray.scalar";
    for body in [
        call("builtins.list", ""),
        call("builtins.str", "Va\n"),
        call("builtins.bytes", "I1000000000\n"),
        call("builtins.bytearray", "I1000000000\n"),
        call("numpy.ndarray", "(I1000000000\nt"),
        call("numpy.dtype", "I8\n"),
        call("numpy.dtype", "N"),
        call("collections.defaultdict", "Va\n"),
        call("collections.defaultdict", "ccollections\nOrderedDict\n"),
        call("collections.OrderedDict", "(lI1\na"),
        call("_codecs.encode", "Va\nVrot13\n"),
        call("_codecs.encode", "Va\n"),
        call(scalar, &dtype),
        call(scalar, "Vf8\nVa\n"),
        call("numpy._core.multiarray._reconstruct", "cnumpy\ndtype\n(I0\ntVb\n"),
        call("numpy._core.numeric._frombuffer", &format!("N{dtype}(tVC\n")),
        format!("{dtype}I1\nb"),
        format!("{dtype}(tb(tb"),
        format!("{dtype}I1\na"),
        format!("{dtype}Va\nI1\ns"),
        format!("{}(tb", call("collections.OrderedDict", "")),
        format!("{}(tb", call(scalar, &format!("{dtype}Vabcdefgh\n"))),
        "(dp0\n(tb".to_owned(),
        "Va\n(tR".to_owned(),
        "cos\nsystem\n0N".to_owned(),
        "cbuiltins\neval\n0N".to_owned(),
        "c__builtin__\ngetattr\n0N".to_owned(),
        "ccollections\nOrderedDict.__init__\n0N".to_owned(),
        "cnumpy._core.multiarray\nscalar.__reduce__\n0N".to_owned(),
    ] {
        let bytes = format!("{body}.");
        let message = pickle::read(bytes.as_bytes()).map(|_| ()).expect_err(&body).to_string();
        assert!(message.contains("expected"), "{body:?}: {message}");
    }
    // What is sound and of no use is a value like any other.
    for element in ["f3", "O8", "U4294967295", "i9", "", "é1", "f99999999999999999999"] {
        let dtype = call("numpy.dtype", &format!("V{element}\nI00\nI01\n").replace('é', "\\u00e9"));
        let bytes = format!("{}.", call(scalar, &format!("{dtype}Vabcdefgh\n")));
        let pickle = pickle::read(bytes.as_bytes()).unwrap();
        assert_eq!(pickle.scalar(pickle.root_id()), None, "{element}");
    }
}

#[test]
fn sharing_costs_nothing() {
    // A hundred thousand numbers of numpy that are one long text, and twenty thousand configurations that are one map.
    let long = "a".repeat(1 << 20);
    let names = "cnumpy._core.multiarray\nscalar\np0\n0cnumpy\ndtype\n(VU4096\nI00\nI01\ntRp1\n0";
    let text = format!("c_codecs\nencode\n(V{long}\nVlatin1\ntRp2\n0");
    let bytes = format!("{names}{text}({}l.", "g0\n(g1\ng2\ntR".repeat(100_000));
    let pickle = pickle::read(bytes.as_bytes()).unwrap();
    let Value::List(items) = pickle.root() else { panic!("a list") };
    let begin = Instant::now();
    assert!(items.len() == 100_000 && items.iter().all(|&id| pickle.scalar(id).is_none()));
    assert!(begin.elapsed().as_secs() < 20);

    let scratch = Scratch::new("shared");
    let file = scratch.path("wide.pkl");
    let entries: String = (0..20_000).map(|n| format!("Vk{n}\nI1\n")).collect();
    fs::write(&file, format!("({entries}dp0\n0({}l.", "g0\n".repeat(20_000))).unwrap();
    let error = QConfig::from_file(&file).unwrap_err().to_string();
    assert!(error.contains("20000 configurations"), "{error}");
}

#[test]
fn depth_costs_no_stack() {
    let scratch = Scratch::new("deep");
    let file = scratch.path("deep.pkl");
    let deep = 300_000;
    let nested = |open: &[u8], close: &[u8]| [&open.repeat(deep)[..], b"N", &close.repeat(deep), b"."].concat();
    for (bytes, words) in [
        (nested(b"]", b"a"), "a map from layers"),
        (nested(b"", b"\x85"), "a map from layers"),
        (nested(b"}Va\n", b"s"), "`a`"),
        (nested(b"(", b"l"), "nesting"),
        (nested(b"(Va\n", b"d"), "nesting"),
        (nested(b"cbuiltins\nbytearray\n", b"\x85R"), "which runs code"),
        (nested(b"ccollections\ndefaultdict\n", b"\x85R"), "which runs code"),
    ] {
        fs::write(&file, bytes).unwrap();
        let error = QConfig::from_file(&file).and_then(|config| config.resolve(&LAYERS, &[])).unwrap_err().to_string();
        assert!(error.contains(words), "{words}: {error}");
    }
}

#[test]
fn the_command_line_lists_and_takes_entries() {
    let scratch = files();
    let run = |config: &str| {
        let config = scratch.path(config);
        let mut command = Command::new(env!("CARGO_BIN_EXE_packer"));
        command.arg(model("d2")).args(["-q", "--q-config"]).arg(config).arg("-o").arg(scratch.path("m.aqt"));
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, message) = run("cache.p4.pkl");
    assert_eq!((code, message.lines().count()), (Some(2), 1), "{message}");
    assert!(message.starts_with("error: ") && message.contains("3 configurations"), "{message}");
    assert_eq!(run("cache.p4.pkl:best"), (Some(0), String::new()));
    // The file is an input, whatever follows its name: it is not overwritten.
    let own = scratch.path("own.pkl");
    let bytes = fs::read(scratch.path("cache.p4.pkl")).unwrap();
    fs::write(&own, &bytes).unwrap();
    let error = pack_as(&model("d2"), Some(&format!("{}:best", own.display())), &own).unwrap_err().to_string();
    assert!(error.contains("own.pkl"), "{error}");
    assert_eq!(fs::read(&own).unwrap(), bytes);
}
