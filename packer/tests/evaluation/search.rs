//! `packer search`, `archive`, `compare` and `insights`: whole configurations, measured in the file of all choices.

use crate::figures::compare;
use crate::{folder, repository};
use aquatint::options::SamplingOptions;
use aquatint_evaluation::{Calls, Protocol};
use packer::sensitivity::Record;
use serde_json::Value;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::OnceLock;

/// The model that all tests are about.
const MODEL: &str = "models/glyphs";
/// Not the model's own, and on a schedule that its name alone does not tell.
const SAMPLER: &str = "dpm++2m-karras";

/// A folder with `s.json` and `choices.aqt` of the model, made once.
fn measured() -> PathBuf {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    let own = MADE.get_or_init(|| {
        let own = folder().join("search");
        fs::create_dir_all(&own).expect("a folder");
        let model = repository(MODEL);
        let args =
            ["--n", "1", "--steps", "3", "--at", "0,1", "-g", "3", "--choices", "w2a8,w3a8:kmeans,w4a8,w4a8:kmeans"];
        let model = model.to_str().expect("UTF-8");
        let same = run(&own, &[&["sensitivity", model, "-o", "s.json", "--keep", "./s.json"], &args[..]].concat());
        assert!(
            told(&same).contains("output ./s.json: expected a file of its own, got another output"),
            "{}",
            told(&same)
        );
        let head = ["sensitivity", model, "-o", "s.json", "--keep", "choices.aqt", "-q", "--sampler", SAMPLER];
        let output = run(&own, &[&head, &args[..]].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        own
    });
    own.clone()
}

fn run(folder: &PathBuf, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_packer")).current_dir(folder).args(args).output().expect("the program starts")
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What a command prints as JSON.
fn json(args: &[&str]) -> Value {
    let output = run(&measured(), args);
    assert!(output.status.success(), "{args:?}: {}", told(&output));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// The one line with which a command is refused.
fn refused(args: &[&str]) -> String {
    let output = run(&measured(), args);
    let line = told(&output);
    assert_eq!((output.status.code(), line.lines().count()), (Some(2), 1), "{args:?}: {line}");
    line
}

/// A configuration that is measured in the file of all choices has the error of a file that is packed by it.
#[test]
fn a_trial_is_the_file_that_its_configuration_packs() {
    let own = measured();
    let found = json(&[
        "search",
        "s.json",
        "--budget",
        "3.4bit",
        "-o",
        "trial.toml",
        "--choices",
        "choices.aqt",
        "--refine",
        "5",
        "--objective",
        "all",
        "--json",
    ]);
    let expected = found["refined"]["measured"].as_f64().expect("a number");
    assert!(expected <= found["refined"]["measured_before"].as_f64().expect("a number"), "{found}");
    let model = repository(MODEL);
    let model = model.to_str().expect("UTF-8");
    for (name, config) in [("float", "f32"), ("trial", "trial.toml")] {
        // What is no layer is f32 where everything is tried: a configuration's default decides about it.
        if name == "trial" {
            let text = fs::read_to_string(own.join(config)).expect("written");
            fs::write(own.join(config), text.replace("default = \"f16\"", "default = \"f32\"")).expect("written");
        }
        let packed = run(&own, &[model, "--q-config", config, "-o", &format!("{name}.aqt"), "-q"]);
        assert!(packed.status.success(), "{}", told(&packed));
    }
    let record = Record::open(&own.join("s.json")).expect("it opens");
    let sampler = Some(SAMPLER.to_owned());
    let sampling = SamplingOptions { steps: Some(3), cfg_scale: Some(3.0), sampler, ..SamplingOptions::default() };
    let seed = record.conditions.seeds[0];
    let protocol =
        Protocol { images: 1, calls: Calls::At(vec![0, 1]), seed, sampling, resamples: 1, ..Protocol::default() };
    let report = compare(&[&own.join("float.aqt"), &own.join("trial.aqt")], &protocol, None);
    let curve = report.files[1].curve.iter().map(|call| call.guided.expect("guidance").powi(2));
    let got = curve.sum::<f64>() / 2.0;
    assert!((got - expected).abs() < 1e-9 * expected, "{got} for {expected}");
}

/// Layers keep to rules, and Qua2SeDiMo gets its dictionary.
#[test]
fn rules_bind_and_dictionaries_are_written() {
    let found = json(&[
        "search",
        "s.json",
        "--budget",
        "3.4bit",
        "-o",
        "rules.toml",
        "--fix",
        "*.0.attn1.to_q=w4a8",
        "--least",
        "*.ff.*=3",
        "--tie",
        "*.1.attn1.*",
        "--json",
    ]);
    let layers = found["layers"].as_object().expect("a map");
    let of = |part: &str| -> Vec<String> {
        let own = layers.iter().filter(|(path, _)| path.contains(part));
        own.map(|(_, spec)| spec.as_str().expect("text").to_owned()).collect()
    };
    assert!(of(".0.attn1.to_q").iter().all(|spec| spec == "w4a8:mse"));
    assert!(of(".ff.").iter().all(|spec| !spec.starts_with("w2")), "{found}");
    let tied = of(".1.attn1.");
    assert!(tied.len() == 4 && tied.iter().all(|spec| *spec == tied[0]), "{tied:?}");
    // The ends of the network and what is worked out before its steps are as a SPEC has them.
    assert!(of("proj_out_2").iter().all(|spec| spec.starts_with("w8a8")), "{found}");
    assert!(of("timestep_embedder").iter().all(|spec| spec.contains("a16:")), "{found}");

    json(&["search", "s.json", "--budget", "3.4bit", "-o", "dictionary.pkl", "--json"]);
    let model = repository(MODEL);
    let model = model.to_str().expect("UTF-8");
    let args = [model, "--q-config", "dictionary.pkl", "--quant-act", "--act-bit", "8", "-o", "dictionary.aqt", "-q"];
    let packed = run(&measured(), &args);
    assert!(packed.status.success(), "{}", told(&packed));

    let least = refused(&["search", "s.json", "--budget", "1bit", "-o", "no.toml"]);
    assert!(
        least.starts_with("error: budget: expected at least ") && least.ends_with(" got 1.000 bits a weight\n"),
        "{least}"
    );
    let none = refused(&["search", "s.json", "--budget", "4bit", "-o", "no.toml", "--tie", "conv*"]);
    assert!(none.contains("conv*, which matches none"), "{none}");
    assert!(!measured().join("no.toml").exists());
}

/// An archive goes on where it was, is refused by other models, teaches a predictor, and is what a contest needs.
#[test]
fn random_configurations_are_kept_and_learned_from() {
    let own = measured();
    let archive = |count: &str| {
        let args = ["archive", "s.json", "--choices", "choices.aqt", "-o", "cache.pkl", "--num-archs", count];
        let output = run(&own, &args);
        assert!(output.status.success(), "{}", told(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    archive("4");
    let first = fs::read(own.join("cache.pkl")).expect("written");
    fs::rename(own.join("cache.pkl"), own.join("four.pkl")).expect("moved");
    let words = archive("14");
    assert!(words.contains("14 configurations") && words.contains("rank correlation"), "{words}");
    fs::rename(own.join("cache.pkl"), own.join("whole.pkl")).expect("moved");
    fs::rename(own.join("four.pkl"), own.join("cache.pkl")).expect("moved");
    archive("14");
    assert!(fs::read(own.join("cache.pkl")).expect("written") == fs::read(own.join("whole.pkl")).expect("written"));
    assert!(first.len() < fs::metadata(own.join("whole.pkl")).expect("there").len() as usize);
    // What Qua2SeDiMo's predictor reads is there.
    let entry = &packer::search::cache::read(&own.join("whole.pkl")).expect("it opens")[0];
    let keys = ["quantized_size", "quantized_error", "avg_bits", "bops"];
    assert!(keys.iter().all(|key| entry.measure(key).is_some()), "{:?}", entry.measures);
    for part in ["0", "1"] {
        let name = format!("part-{part}.pkl");
        let shard = format!("{part}/2");
        let args = [
            "archive",
            "s.json",
            "--choices",
            "choices.aqt",
            "-o",
            &name,
            "--num-archs",
            "14",
            "--shard",
            &shard,
            "-q",
        ];
        assert!(run(&own, &args).status.success());
    }
    let joined =
        ["archive", "s.json", "--merge", "part-1.pkl", "part-0.pkl", "-o", "joined.pkl", "--num-archs", "14", "-q"];
    assert!(run(&own, &joined).status.success());
    assert!(fs::read(own.join("joined.pkl")).expect("written") == fs::read(own.join("whole.pkl")).expect("written"));
    let half = refused(&["archive", "s.json", "--merge", "part-1.pkl", "-o", "no.pkl", "--num-archs", "14"]);
    assert!(half.contains("merge: expected 14 configurations, got none of the numbers 0, 1, 2, 3, 4, 5, 6"), "{half}");
    let seed = refused(&[
        "archive",
        "s.json",
        "--choices",
        "choices.aqt",
        "-o",
        "whole.pkl",
        "--num-archs",
        "15",
        "--seed",
        "7",
    ]);
    assert!(seed.contains("whole.pkl: expected configurations of this seed, these bounds and this part"), "{seed}");

    let learned = json(&["search", "whole.pkl", "--budget", "3.4bit", "-o", "learned.toml", "--json"]);
    assert!(learned["bits"].as_f64().expect("a number") <= 3.4, "{learned}");
    assert!(learned["held_out_rank_correlation"]["high"].as_f64().expect("a number") <= 1.0, "{learned}");
    let insights = json(&["insights", "whole.pkl", "--html", "i.html", "--json"]);
    assert!(insights["kinds"].as_array().expect("a list").len() > 5, "{insights}");
    let measured = json(&["insights", "s.json", "--json"]);
    let wants = |kind: &Value| kind["preferences"]["4"].as_object().map_or(0, serde_json::Map::len);
    assert!(measured["kinds"].as_array().expect("a list").iter().any(|kind| wants(kind) > 0), "{measured}");

    let outcome = json(&[
        "compare",
        "s.json",
        "--choices",
        "choices.aqt",
        "--archive",
        "whole.pkl",
        "--at-bits",
        "2.5,3",
        "--random",
        "3",
        "--moves",
        "2",
        "--n",
        "3",
        "-o",
        "c.json",
        "--html",
        "c.html",
        "--json",
    ]);
    let entrants = outcome["entrants"].as_array().expect("a list");
    assert_eq!(entrants.len(), 12, "six ways at two sizes");
    for entrant in entrants {
        let bits = entrant["nominal_bits"].as_f64().expect("a number");
        let of = |way: &str| entrants.iter().find(|e| e["way"] == way && e["nominal_bits"] == bits).expect("there");
        let most = of("uniform")["bytes"].as_u64().expect("a number") as f64;
        assert!(entrant["bytes"].as_f64().expect("a number") <= most * 1.05, "{entrant}");
        let error = |entrant: &Value| entrant["measured"].as_f64().expect("a number");
        assert!(error(of("refined")) <= error(of("search")), "{outcome}");
        assert!(of("search")["predicted"].as_f64() <= of("uniform")["predicted"].as_f64(), "{outcome}");
    }
    assert_eq!(outcome["report"]["files"].as_array().expect("a list").len(), 13);
    assert!(fs::read_to_string(own.join("c.html")).expect("written").contains("<circle"));
    let width = refused(&["compare", "s.json", "--choices", "choices.aqt", "--at-bits", "6"]);
    assert!(width.contains("at-bits: expected bits that choices have: w2a8:mse, "), "{width}");
}

/// A cache that Python pickled as Qua2SeDiMo does: what is learned from it is better than all that it holds, by the rule that its scores
/// were made by (`make_cache.py`).
#[test]
fn published_caches_are_learned_from() {
    let file = repository("packer/tests/fixtures/cache.pkl");
    let name = file.to_str().expect("UTF-8");
    let found = json(&["search", name, "--budget", "4bit", "-o", "published.toml", "--json"]);
    assert!(found["held_out_rank_correlation"]["low"].as_f64().expect("a number") > 0.9, "{found}");
    let layers = found["layers"].as_object().expect("a map");
    let loss = |method: &str| match method {
        "kmeans-4" => 1.0,
        "kmeans_all-4" => 1.2,
        "mse-4" => 1.4,
        "kmeans-3" => 4.0,
        "kmeans_all-3" => 5.0,
        "mse-3" => 6.0,
        other => panic!("{other} is none of its methods"),
    };
    // The map is in the order of names, which is that of the script.
    let score = layers.values().enumerate();
    let score: f64 =
        score.map(|(i, method)| ((7 * i + 3) % 11 + 1) as f64 * loss(method.as_str().expect("text"))).sum();
    let entries = packer::search::cache::read(&file).expect("it opens");
    assert_eq!((entries.len(), layers.len()), (80, 9));
    let fits = |entry: &&packer::search::cache::Entry| entry.measure("avg_bits").expect("measured") <= 4.0;
    let best = entries.iter().filter(fits).map(|entry| entry.measure("FID-GT-1k").expect("measured"));
    let best = best.fold(f64::INFINITY, f64::min);
    assert!(90.0 + 0.1 * score < best, "{score}: {} for {best}", 90.0 + 0.1 * score);
    let none = refused(&["search", name, "--budget", "4bit", "-o", "no5.toml", "--target", "IS"]);
    assert!(none.contains("expected `IS` of each configuration, got "), "{none}");
    let other = repository("tests/fixtures/configs/alpha.pkl");
    let dictionary = refused(&["search", other.to_str().expect("UTF-8"), "--budget", "4bit", "-o", "no5.toml"]);
    assert!(dictionary.contains("alpha.pkl: expected a list of configurations"), "{dictionary}");
}

/// A call takes no longer than it may, as far as the times of layers tell; how long that is nobody knows beforehand.
#[test]
fn times_are_budgets_too() {
    let args = ["search", "s.json", "--choices", "choices.aqt", "-o", "time.toml", "--json", "--budget"];
    let found = json(&[&args[..], &["10s"]].concat());
    let slowest = found["seconds"]["reckoned"].as_f64().expect("a number");
    assert!(
        slowest > 0.0 && slowest < 10.0 && found["seconds"]["measured"].as_f64().expect("a number") > 0.0,
        "{found}"
    );
    let none = refused(&["search", "s.json", "--choices", "choices.aqt", "-o", "no4.toml", "--budget", "0.001ms"]);
    assert!(none.starts_with("error: budget: expected at least 0.") && none.contains(" s a call, got "), "{none}");
    let blind = refused(&["search", "s.json", "-o", "no4.toml", "--budget", "10ms"]);
    assert!(blind.starts_with("error: choices: expected the file that packer sensitivity --keep left"), "{blind}");
}

/// The smallest configuration whose pictures are good enough; and what cannot be measured.
#[test]
fn pictures_decide_where_they_are_asked() {
    let reached = |psnr: &str| {
        json(&[
            "search",
            "s.json",
            "--choices",
            "choices.aqt",
            "--target-psnr",
            psnr,
            "--n",
            "3",
            "-o",
            "psnr.toml",
            "--json",
        ])
    };
    let [low, high] = ["5", "12"].map(reached);
    let number = |found: &Value, name: &str| found[name].as_f64().expect("a number");
    assert!(number(&low, "bytes") <= number(&high, "bytes"));
    assert!(high["psnr_median"]["value"].as_f64().expect("a number") >= 12.0);
    let over = refused(&[
        "search",
        "s.json",
        "--choices",
        "choices.aqt",
        "--target-psnr",
        "200",
        "--n",
        "2",
        "-o",
        "no2.toml",
    ]);
    assert!(
        over.contains("target-psnr: expected at most ") && over.contains("which the largest choices have"),
        "{over}"
    );

    let none = refused(&["archive", "s.json", "-o", "no.pkl"]);
    assert!(none.starts_with("error: choices: expected the file that packer sensitivity --keep left"), "{none}");
    let model = repository("models/glyphs-w4a8.aqt");
    let foreign = refused(&["archive", "s.json", "--choices", model.to_str().expect("UTF-8"), "-o", "no.pkl"]);
    assert!(
        foreign.contains("glyphs-w4a8.aqt: expected the file that packer sensitivity --keep left of "),
        "{foreign}"
    );
    let nothing = refused(&["search", "s.json", "-o", "no3.toml"]);
    assert!(nothing.contains("expected --budget, --target-psnr or --pareto"), "{nothing}");
}
