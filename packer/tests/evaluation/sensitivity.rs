//! `packer sensitivity`: what is measured, and how a person meets it.

use crate::figures::compare;
use crate::{folder, repository};
use aquatint::options::SamplingOptions;
use aquatint::shard::Shard;
use aquatint_evaluation::{Calls, Captions, Protocol};
use packer::calibrate::{self, calibrate};
use packer::emit::{Options, pack};
use packer::sensitivity::{Event, Record, Settings, merge, sensitivity};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Half a unit of the sixth digit, to which figures are rounded, and what a root and its square lose.
const DIGITS: f64 = 5.1e-6;

/// Everything of a fixture model in few calls, written to a file in a folder of its own.
fn settings(model: &str, test: &str, choices: &[&str]) -> Settings {
    let own = folder().join(test);
    fs::create_dir_all(&own).expect("a folder");
    let settings = Settings::new(repository(model), own.join("out.json"));
    let sampling = SamplingOptions { steps: Some(5), cfg_scale: Some(3.0), ..Default::default() };
    let protocol = Protocol { images: 1, calls: Calls::At(vec![1, 4]), sampling, ..settings.protocol.clone() };
    // Layers of fixtures are so small that a SPEC leaves most of them alone.
    let named = vec!["*".to_owned()];
    Settings { choices: choices.iter().map(|&choice| choice.to_owned()).collect(), named, protocol, ..settings }
}

fn measured(settings: &Settings) -> Record {
    sensitivity(settings, &mut |_| true).expect("it runs")
}

/// The squared errors at the calls of `settings` that `packer evaluate` finds of a file packed as `config` says.
fn evaluated(settings: &Settings, config: &str) -> Vec<f64> {
    let own = settings.output.parent().expect("a folder");
    let packed = |name: &str, config: &str, calibration: Option<PathBuf>| {
        let file = own.join(format!("{name}.toml"));
        fs::write(&file, config).expect("a configuration");
        let output = own.join(format!("{name}.aqt"));
        let q_config = Some(file.to_str().expect("UTF-8").to_owned());
        let options = Options {
            model: settings.model.clone(),
            q_config,
            calibration,
            output: output.clone(),
            ..Default::default()
        };
        pack(&options, &mut |_| ()).expect("it packs");
        output
    };
    let (reference, other) =
        (packed("reference", "default = \"f32\"", None), packed("other", config, settings.calibration.clone()));
    let report = compare(&[&reference, &other], &Protocol { resamples: 1, ..settings.protocol.clone() }, None);
    report.files[1].curve.iter().map(|call| call.guided.expect("guidance").powi(2)).collect()
}

/// Compares the probes of the units and groups that `which` admits with files in which only they are quantized; returns how many.
fn probes_are_files(settings: &Settings, which: &dyn Fn(&str) -> bool, around: &dyn Fn(&str) -> String) -> usize {
    let record = measured(settings);
    let mut count = 0;
    for unit in record.all().filter(|unit| which(&unit.name)) {
        for (number, (probe, choice)) in unit.choices.iter().zip(&record.choices).enumerate() {
            let spec = |layer: &String| {
                let own = record.units.iter().find(|unit| unit.layers[0] == *layer).expect("a unit");
                own.choices[number].spec.clone().expect("a SPEC")
            };
            let entries: String =
                unit.layers.iter().map(|layer| format!("\"{layer}\" = \"{}\"\n", spec(layer))).collect();
            let expected = evaluated(settings, &around(&entries));
            let got: Vec<f64> = probe.calls.iter().map(|call| call.error).collect();
            assert_eq!(got.len(), expected.len());
            for (got, expected) in got.iter().zip(&expected) {
                assert!((got - expected).abs() <= DIGITS * expected, "{} {choice}: {got} for {expected}", unit.name);
                assert!(*expected > 0.0 || choice == "f32", "{} {choice} changes nothing", unit.name);
            }
            count += 1;
        }
    }
    count
}

fn in_floats(entries: &str) -> String {
    format!("default = \"f32\"\n[layers]\n{entries}")
}

#[test]
fn a_probe_is_the_file_in_which_only_that_layer_is_quantized() {
    let mut settings = settings("tests/fixtures/dit/d2", "probe", &["w3a8:kmeans", "w4a6", "w8a16", "f16"]);
    settings.groups = vec!["*.ff.*".into()];
    // Of each block 10 layers, four before and behind them.
    assert!(probes_are_files(&settings, &|name| !name.contains("blocks.1."), &in_floats) >= 4 * 12);
    settings.calibration = Some(calibration(&settings));
    settings.choices.truncate(3);
    let some = |name: &str| name.ends_with("to_v") || name.ends_with("ff.net.2") || name.starts_with('*');
    assert_eq!(probes_are_files(&settings, &some, &in_floats), 3 * 5);
}

fn calibration(settings: &Settings) -> PathBuf {
    let output = settings.output.with_file_name("calib.safetensors");
    let mut calibration = calibrate::Settings::new(settings.model.clone(), output.clone());
    calibration.sampling = settings.protocol.sampling.clone();
    (calibration.images, calibration.calls) = (3, 3);
    calibrate(&calibration, &mut |_| true).expect("it calibrates");
    output
}

/// Convolutions, norms that make codes themselves, cross-attention, and texts.
#[test]
fn layers_of_text_models_are_measured_too() {
    let mut settings = settings("tests/fixtures/sd/v1", "texts", &["w4a8", "w2a8:kmeans"]);
    let captions = settings.output.with_file_name("captions.txt");
    fs::write(&captions, "a red A on blue\nb\n").expect("a file");
    settings.protocol.captions = Some(Captions::new("captions.txt", "a red A on blue\nb\n").expect("captions"));
    settings.prompts = Some(captions);
    let some =
        |name: &str| ["conv1", "attn2.to_k", "attn1.to_q", "conv_out", "proj_in"].iter().any(|end| name.ends_with(end));
    assert!(probes_are_files(&settings, &some, &in_floats) >= 10);
}

/// A phase that begins with the second call is an environment without the f16 of what is no layer.
#[test]
fn the_environment_is_around_the_layer() {
    let mut settings = settings("models/glyphs", "around", &["w3a8:kmeans"]);
    settings.environment = "w8a6".into();
    let around = |entries: &str| {
        format!("default = \"f32\"\n[[phases]]\nfrom = 0.1\ndefault = \"w8a6\"\n[phases.layers]\n{entries}")
    };
    let some = |name: &str| name.ends_with("blocks.2.attn1.to_k") || name.ends_with("blocks.0.ff.net.2");
    assert_eq!(probes_are_files(&settings, &some, &around), 2);
    let environment = measured(&settings).environment.expect("it is not f32");
    let expected = evaluated(&settings, "default = \"f32\"\n[[phases]]\nfrom = 0.1\ndefault = \"w8a6\"\n");
    for (got, expected) in environment.iter().zip(expected) {
        assert!((got.error - expected).abs() <= DIGITS * expected, "{got:?} for {expected}");
    }
}

/// The same with several images, and what that changes.
#[test]
fn neither_interruptions_nor_shards_nor_batches_nor_threads_change_a_byte() {
    let mut whole = settings("tests/fixtures/dit/d2", "bytes", &["w3a8:kmeans", "w8a8"]);
    whole.protocol.images = 3;
    whole.groups = vec!["*.ff.*".into()];
    whole.environment = "w6a8".into();
    let record = measured(&whole);
    let expected = fs::read(&whole.output).expect("written");
    assert!(record.units[0].choices[0].calls[0].standard_error.expect("three images") > 0.0);
    assert!(!partial(&whole.output).exists());
    let at = |name: &str| Settings { output: whole.output.with_file_name(name), ..whole.clone() };

    let batches = Settings { protocol: Protocol { batch: Some(2), ..whole.protocol.clone() }, ..at("batches.json") };
    let one_thread = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread");
    one_thread.install(|| measured(&batches));
    assert!(fs::read(&batches.output).expect("written") == expected, "batches and threads");

    let interrupted = at("interrupted.json");
    let mut times = 0;
    // Ended at the reference's run, in the first probe, and after each seventh probe.
    loop {
        let (mut saved, mut resumed) = (0, false);
        let done = sensitivity(&interrupted, &mut |event| match event {
            Event::Reference(done, _) => times > 0 || done < 4,
            Event::Done(..) => times != 1,
            Event::Resumed(_) => {
                resumed = true;
                true
            }
            Event::Saved => {
                saved += 1;
                saved < 7
            }
            Event::Packing(_) => {
                assert_eq!(times, 0, "the model is packed once");
                true
            }
            Event::Bill(_) => true,
        });
        assert_eq!(resumed, times > 2, "time {times}");
        times += 1;
        match done {
            Ok(_) => break,
            Err(e) => assert!(e.to_string().contains("the same command goes on with it"), "{e}"),
        }
        assert!(times < 100 && !interrupted.output.exists());
    }
    assert!(times > 6 && fs::read(&interrupted.output).expect("written") == expected, "{times} times");

    let parts: Vec<PathBuf> = (0..3)
        .map(|index| {
            let part = Settings { shard: Some(Shard { index, of: 3 }), ..at(&format!("{index}.json")) };
            measured(&part);
            part.output
        })
        .collect();
    let merged = whole.output.with_file_name("merged.json");
    let joined = merge(&[parts[2].clone(), parts[0].clone(), parts[1].clone()], &merged).expect("it merges");
    assert_eq!(joined.all().count(), record.all().count());
    assert!(fs::read(&merged).expect("written") == expected, "shards");
    refused_merges(&parts, &whole);
}

fn partial(output: &Path) -> PathBuf {
    let mut name = output.file_name().expect("a name").to_owned();
    name.push(".partial");
    output.with_file_name(name)
}

fn refused_merges(parts: &[PathBuf], whole: &Settings) {
    let refused = |parts: &[PathBuf]| {
        let output = whole.output.with_file_name("refused.json");
        let told = merge(parts, &output).expect_err("it is refused").to_string();
        assert!(!output.exists());
        told
    };
    assert_eq!(refused(&parts[..2]), "merge: expected all 3 shards, got none of 2");
    assert_eq!(refused(&parts[1..2]), "merge: expected all 3 shards, got none of 0, 2");
    let twice = refused(&[parts[0].clone(), parts[0].clone()]);
    assert!(twice.ends_with("0.json: expected another shard of the same number of shards, got 0/3"), "{twice}");
    assert!(refused(std::slice::from_ref(&whole.output)).ends_with("expected a part that --shard made, got a whole"));
    let mut other = Record::open(&parts[1]).expect("it opens");
    other.conditions.seeds[0] += 1;
    let path = whole.output.with_file_name("other.json");
    other.write(&path).expect("written");
    let told = refused(&[parts[0].clone(), path.clone(), parts[2].clone()]);
    assert!(told.contains("other.json: expected the conditions of ") && told.ends_with("got another"), "{told}");
    other.conditions.seeds[0] -= 1;
    other.units[0].choices.pop();
    other.write(&path).expect("written");
    let told = refused(&[parts[0].clone(), path]);
    assert!(told.contains("other.json: expected what packer sensitivity writes, got "), "{told}");
}

#[test]
fn work_of_another_command_is_refused() {
    let mut first = settings("tests/fixtures/dit/d2", "foreign", &["w4a8"]);
    let mut saved = 0;
    let stopped = sensitivity(&first, &mut |event| {
        saved += usize::from(matches!(event, Event::Saved));
        saved < 2
    });
    assert!(stopped.is_err() && partial(&first.output).exists());
    let told = |settings: &Settings| sensitivity(settings, &mut |_| true).expect_err("it is refused").to_string();
    let fits = |told: &str| {
        assert!(
            told.starts_with("unfinished sensitivity ") && told.contains("one begins anew, got that of other settings"),
            "{told}"
        );
    };
    fits(&told(&Settings { choices: vec!["w3a8".into()], ..first.clone() }));
    fits(&told(&Settings { model: repository("tests/fixtures/dit/d3odd"), ..first.clone() }));
    let seeded = Settings { protocol: Protocol { seed: 7, ..first.protocol.clone() }, ..first.clone() };
    fits(&told(&seeded));
    let damaged = partial(&first.output).join("probe-000001.json");
    fs::write(&damaged, "{\"identity\": \"x\"").expect("written");
    assert!(told(&first).ends_with("got something else"));
    // Nothing of it stays in the way once the folder is gone; a refused command leaves none behind.
    fs::remove_dir_all(partial(&first.output)).expect("removed");
    first.choices = vec!["w9a8".into()];
    assert_eq!(told(&first), "choices: expected a precision such as f32, w4a8 or w4a8:kmeans, got w9a8");
    first.choices = vec!["w4a8".into()];
    first.model = repository("tests/fixtures/dit");
    told(&first);
    assert!(!partial(&first.output).exists());
}

/// What makes this worth measuring: errors of single layers add up to that of all of them.
#[test]
fn errors_of_layers_add_up() {
    let mut settings = settings("models/glyphs", "sum", &["w4a8:kmeans"]);
    settings.groups = vec!["*".into()];
    settings.protocol.images = 4;
    settings.protocol.calls = Calls::At(vec![1, 2, 3]);
    let record = measured(&settings);
    let of = |unit: &packer::sensitivity::record::Unit| unit.choices[0].mean().expect("measured");
    let (sum, all) = (record.units.iter().map(of).sum::<f64>(), of(&record.groups[0]));
    assert_eq!(record.groups[0].layers.len(), record.units.len());
    assert!((all / sum - 1.0).abs() < 0.15, "{all} for {sum}");
    let stored: u64 = record.units.iter().map(|unit| unit.choices[0].bytes).sum();
    assert_eq!(record.groups[0].choices[0].bytes, stored);
}

fn packer(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_packer")).current_dir(folder()).args(args).output().expect("the program starts")
}

fn command(args: &[&str]) -> Output {
    packer(&[&["sensitivity"], args].concat())
}

/// What was measured becomes a configuration within a budget, which packs.
#[test]
fn a_budget_becomes_a_configuration() {
    let model = repository("tests/fixtures/dit/d2");
    let model = model.to_str().expect("UTF-8");
    let measured = command(&[
        model,
        "-o",
        "s.json",
        "-q",
        "--n",
        "1",
        "--steps",
        "3",
        "--choices",
        "w2a16,w4a16,w8a16",
        "--named",
        "*",
    ]);
    assert!(measured.status.success(), "{}", String::from_utf8_lossy(&measured.stderr));
    let record = Record::open(&folder().join("s.json")).expect("it opens");
    let stored = |choice: usize| record.units.iter().map(|unit| unit.choices[choice].bytes).sum::<u64>();
    let budget = (stored(0) + stored(2)) / 2;
    let found = packer(&["search", "s.json", "--budget", &budget.to_string(), "-o", "chosen.toml", "--json"]);
    assert!(found.status.success(), "{}", String::from_utf8_lossy(&found.stderr));
    let found: serde_json::Value = serde_json::from_slice(&found.stdout).expect("JSON");
    let number = |field: &str| found[field].as_f64().expect("a number");
    assert!(number("bytes") <= budget as f64 && number("bytes") > stored(0) as f64, "{found}");
    assert!(number("bound") <= number("squared_error"), "{found}");

    let packed = packer(&[model, "--q-config", "chosen.toml", "-o", "chosen.aqt", "--json"]);
    assert!(packed.status.success(), "{}", String::from_utf8_lossy(&packed.stderr));
    let report: serde_json::Value = serde_json::from_slice(&packed.stdout).expect("JSON");
    let layers = report["layers"].as_array().expect("a list").iter();
    let chosen: Vec<_> = layers.filter(|layer| found["layers"].get(module(layer)).is_some()).collect();
    assert_eq!(chosen.len(), record.units.len());
    let bytes: u64 = chosen.iter().map(|layer| layer["bytes"].as_u64().expect("bytes")).sum();
    assert_eq!(bytes as f64, number("bytes"), "the file has the bytes that were promised");

    let list = packer(&["search", "s.json", "--pareto"]);
    let list = String::from_utf8_lossy(&list.stdout).into_owned();
    assert!(list.lines().count() > record.units.len(), "{list}");
    let small = packer(&["search", "s.json", "--budget", "0.1bit", "-o", "no.toml"]);
    let told = String::from_utf8_lossy(&small.stderr).into_owned();
    assert!(told.starts_with("error: budget: expected at least ") && told.contains(" bits a weight, got "), "{told}");
    assert!(!folder().join("no.toml").exists());
}

/// Halves of split layers are layers: what is found for them packs into the bytes that were promised.
#[test]
fn halves_are_tried_alone() {
    let model = repository("tests/fixtures/sd/v1");
    let model = model.to_str().expect("UTF-8");
    fs::write(folder().join("halves.txt"), "a red A on blue\n").expect("a file");
    let args =
        ["--split=conv,shortcut", "--prompts", "halves.txt", "--n", "1", "--steps", "2", "--at", "0", "--named", "*"];
    let measured = command(&[&[model, "-o", "halves.json", "-q", "--choices", "w2a16,w8a16"], &args[..]].concat());
    assert!(measured.status.success(), "{}", String::from_utf8_lossy(&measured.stderr));
    let record = Record::open(&folder().join("halves.json")).expect("it opens");
    let second = |unit: &packer::sensitivity::record::Unit| unit.name.ends_with(".weight_quantizer_0");
    assert!(record.units.iter().filter(|unit| second(unit)).count() > 1, "{record:?}");
    let stored = |choice: usize| record.units.iter().map(|unit| unit.choices[choice].bytes).sum::<u64>();
    let budget = ((stored(0) + stored(1)) / 2).to_string();
    let found = packer(&["search", "halves.json", "--budget", &budget, "-o", "halves.toml", "--json"]);
    assert!(found.status.success(), "{}", String::from_utf8_lossy(&found.stderr));
    let found: serde_json::Value = serde_json::from_slice(&found.stdout).expect("JSON");
    let packed = packer(&[model, "--q-config", "halves.toml", "-o", "halves.aqt", "--json"]);
    assert!(packed.status.success(), "{}", String::from_utf8_lossy(&packed.stderr));
    let report: serde_json::Value = serde_json::from_slice(&packed.stdout).expect("JSON");
    let layers = report["layers"].as_array().expect("a list").iter();
    let own = layers.filter(|layer| layer["name"].as_str().is_some_and(|name| name.starts_with("unet/")));
    let bytes: u64 = own.map(|layer| layer["bytes"].as_u64().expect("bytes")).sum();
    assert_eq!(bytes, found["bytes"].as_u64().expect("a number"), "the file has the bytes that were promised");
}

/// The module path of a layer in a report.
fn module(layer: &serde_json::Value) -> &str {
    let name = layer["name"].as_str().expect("a name");
    name.split_once('/').map_or(name, |(_, module)| module)
}

#[test]
fn a_person_gets_a_table_a_page_and_json() {
    let model = repository("tests/fixtures/dit/d2");
    let model = model.to_str().expect("UTF-8");
    let brief = ["--n", "1", "--steps", "3", "--at", "0,2", "--choices", "w4a8,w8a8", "--group", "*.ff.*"];
    let args = [&[model, "-o", "person.json", "--html", "person.html"], &brief[..]].concat();
    let output = command(&args);
    let (table, told) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{told}");
    let heading = table.lines().next().expect("a heading").split_whitespace().collect::<Vec<_>>();
    assert_eq!(heading, ["layer", "weights", "w4a8:mse", "w8a8:mse"], "{table}");
    assert!(
        table.lines().any(|line| line.starts_with("transformer/proj_out_2 ") && line.matches(" %").count() == 2),
        "{table}"
    );
    assert!(table.lines().any(|line| line.starts_with("*.ff.* ")), "{table}");
    assert!(told.contains(" probes of 2 calls of 1 images: ") && told.contains(" ms a call of an image"), "{told}");
    let page = fs::read_to_string(folder().join("person.html")).expect("written");
    assert!(page.contains("<svg") && page.ends_with("</body></html>\n"));
    let record = Record::open(&folder().join("person.json")).expect("it opens");
    assert_eq!(record.conditions.calls.iter().map(|call| call.call).collect::<Vec<_>>(), [0, 2]);

    let refused = |args: &[&str]| {
        let output = command(args);
        let line = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!((output.status.code(), line.lines().count()), (Some(2), 1), "{args:?}: {line}");
        line
    };
    let over = refused(&[&[model, "-o", "no.json", "--html", "no.html", "--at", "3"], &brief[..4]].concat());
    assert_eq!(over, "error: at: expected calls 0 to 2, since a run makes 3, got 3\n");
    let none = refused(&[&[model, "-o", "no2.json", "--choices", "w4a8", "--group", "*.conv"], &brief[..4]].concat());
    assert!(none.ends_with("got *.conv, which matches none\n"), "{none}");
    let shard = refused(&["--merge", "person.json", "-o", "no3.json"]);
    assert!(shard.contains("person.json: expected a part that --shard made"), "{shard}");
}

#[test]
fn schedulers_say_which_shard_it_is() {
    let model = repository("tests/fixtures/dit/d2");
    let brief = ["--n", "1", "--steps", "2", "--at", "0", "--choices", "w4a8", "-o"];
    let run = |output: &str, more: &[&str], variables: &[(&str, &str)]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_packer"));
        command.arg("sensitivity").arg(&model).args(brief).arg(output).args(more).current_dir(folder());
        for name in ["SLURM_ARRAY_TASK_ID", "JOB_COMPLETION_INDEX", "AQUATINT_SHARDS"] {
            command.env_remove(name);
        }
        let ran = command.envs(variables.iter().copied()).output().expect("it starts");
        (ran.status.code(), String::from_utf8_lossy(&ran.stderr).into_owned())
    };
    assert_eq!(run("by-none.json", &["-q"], &[]), (Some(0), String::new()));
    let (code, told) = run("by-0.json", &["--shards", "2"], &[("SLURM_ARRAY_TASK_ID", "0")]);
    assert!(code == Some(0) && told.starts_with("note: shard 0/2, as SLURM_ARRAY_TASK_ID says\n"), "{told}");
    let index = [("JOB_COMPLETION_INDEX", "1"), ("AQUATINT_SHARDS", "2")];
    assert_eq!(run("by-1.json", &["-q"], &index), (Some(0), String::new()));
    assert_eq!(Record::open(&folder().join("by-1.json")).expect("it opens").shard, Some([1, 2]));
    let parts = ["by-0.json", "by-1.json"].map(|name| folder().join(name));
    merge(&parts, &folder().join("by-both.json")).expect("they belong together");
    let [both, whole] = ["by-both.json", "by-none.json"].map(|name| fs::read(folder().join(name)).unwrap());
    assert!(both == whole);
    let (code, told) = run("no4.json", &[], &index[..1]);
    assert!(code == Some(2) && told.starts_with("error: JOB_COMPLETION_INDEX: expected --shards or"), "{told}");
}
