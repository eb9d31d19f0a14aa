//! `packer evaluate` as a person meets it.

use crate::{folder, letters, packed, repository};
use safetensors::{Dtype, tensor::TensorView};
use serde_json::Value;
use std::process::{Command, Output};

pub(crate) fn evaluate(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_packer"));
    command.current_dir(folder()).arg("evaluate").args(args).output().expect("the program starts")
}

pub(crate) fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("UTF-8")
}

/// The error line of a run that is refused.
#[track_caller]
pub(crate) fn refused(args: &[&str]) -> String {
    let output = evaluate(args);
    let line = text(&output.stderr);
    assert_eq!((output.status.code(), output.stdout.len(), line.lines().count()), (Some(2), 0, 1), "{args:?}: {line}");
    line.trim_end().to_owned()
}

fn classifier() -> String {
    repository("models/glyphs/classifier.safetensors").to_str().expect("UTF-8").to_owned()
}

#[test]
fn a_table_says_which_differences_are_noise() {
    letters();
    std::fs::copy(folder().join("glyphs-w4a8.aqt"), folder().join("same.aqt")).expect("a copy");
    let features = repository("models/glyphs/reference.safetensors");
    let features = features.to_str().expect("UTF-8");
    let files = ["glyphs-f32.aqt", "glyphs-w4a8.aqt", "same.aqt", "glyphs-w2a8.aqt"];
    let options = ["--n", "3", "--steps", "4", "--calls", "2", "--score-n", "12", "--json", "out.json"];
    let scores = ["--classifier", &classifier(), "--reference-features", features];
    let output = evaluate(&[&files[..], &options[..], &scores[..]].concat());
    let table = text(&output.stdout);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let row =
        |name: &str| table.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name}:\n{table}"));
    assert!(
        table.starts_with(
            "12 images (seeds 2000000 to 2000011), ddim of 4 steps, guidance 4; reference glyphs-f32.aqt\n"
        )
    );
    assert!(table.contains("\ncompared: 3 images, at 2 of 4 network calls; scored: 12\n"), "{table}");
    for heading in
        ["file", "size", "eps error", "latents", "p90", "PSNR", "SSIM", "class right", "lost/won, p", "Fréchet"]
    {
        assert!(row("file").contains(heading), "{table}");
    }
    // The copy differs in nothing from the row above, the two-bit file in its errors.
    assert_eq!(row("same.aqt").matches('~').count(), 7, "{table}");
    assert!(!row("glyphs-w4a8.aqt").split(" dB").next().expect("a part").contains('~'), "{table}");
    assert!(!row("glyphs-w2a8.aqt").split("] ").next().expect("a part").contains('~'), "{table}");
    assert!(table.contains("\n~ ") && table.lines().all(|line| line == line.trim_end()), "{table}");

    let json: Value =
        serde_json::from_slice(&std::fs::read(folder().join("out.json")).expect("written")).expect("JSON");
    assert_eq!(json["files"][1]["name"], "glyphs-w4a8.aqt");
    assert_eq!(json["conditions"]["seeds"], serde_json::json!([2_000_000, 2_000_011]));
    assert!(json["files"][1]["figures"]["eps"]["low"].as_f64().expect("a number") > 0.0);
    assert_eq!(json["files"][2]["comparisons"][1]["figures"]["eps"]["noise"], true);
    assert_eq!(json["files"][2]["comparisons"][1]["reads"]["class"]["lost"], 0);
    assert_eq!(json["files"][1]["curve"].as_array().expect("a list").len(), 2);
}

/// Weights that the packer stored again for another part of the run are no other layers.
#[test]
fn files_with_phases_are_compared_as_the_model_that_they_are() {
    letters();
    std::fs::write(folder().join("phases.toml"), "default = \"w4a8\"\n[[phases]]\nfrom = 0.5\ndefault = \"w8a8\"\n")
        .expect("written");
    for (config, file) in [("phases.toml", "phases.aqt"), ("w4a8", "four.aqt")] {
        let mut packer = Command::new(env!("CARGO_BIN_EXE_packer"));
        let args = ["--q-config", config, "-o", file, "--quiet"];
        let packer = packer.current_dir(folder()).arg(repository("models/glyphs")).args(args);
        assert!(packer.status().expect("the program starts").success());
    }
    let output = evaluate(&["glyphs-f32.aqt", "four.aqt", "phases.aqt", "--n", "1", "--steps", "4", "--json", "-"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let json: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let error = |file: usize, call: usize| json["files"][file]["curve"][call]["eps"].as_f64().expect("a number");
    // Until then they are the same; the second half of the calls is in 8 bits.
    for call in 0..4 {
        let ratio = error(2, call) / error(1, call);
        assert!(if call < 2 { ratio == 1.0 } else { ratio < 0.6 }, "call {call}: {ratio}");
    }
}

#[test]
fn json_goes_to_standard_output_too_and_the_reference_is_named() {
    letters();
    let args = [
        "glyphs-w4a8.aqt",
        "glyphs-f32.aqt",
        "--reference",
        "glyphs-f32.aqt",
        "--n",
        "1",
        "--steps",
        "2",
        "--cfg-scale",
        "1",
    ];
    let output = evaluate(&[&args[..], &["--json", "-"]].concat());
    let json: Value = serde_json::from_slice(&output.stdout).expect("JSON alone");
    let names: Vec<_> = json["files"].as_array().expect("files").iter().map(|f| f["name"].as_str()).collect();
    assert_eq!(names, [Some("glyphs-f32.aqt"), Some("glyphs-w4a8.aqt")]);
    assert_eq!(json["files"][1]["curve"][0]["guided"], Value::Null);
    assert_eq!(json["conditions"]["scored"], 0);
}

#[test]
fn what_makes_no_comparison_is_refused_in_one_line() {
    letters();
    packed("tests/fixtures/dit/d2", "f32");
    packed("tests/fixtures/layouts/ddim.ckpt", "f32");
    let [f32, w4] = ["glyphs-f32.aqt", "glyphs-w4a8.aqt"];
    let with = |args: &[&str]| refused(&[&[f32, w4, "--steps", "2", "--n", "2"], args].concat());

    assert_eq!(refused(&[f32]), "error: files: expected a reference and at least one other, got 1");
    let other = refused(&[f32, "d2-f32.aqt"]);
    assert!(other.starts_with("error: d2-f32.aqt: ") && other.contains("as in glyphs-f32.aqt"), "{other}");
    let other = refused(&[f32, "ddim.ckpt-f32.aqt"]);
    assert!(other.starts_with("error: ddim.ckpt-f32.aqt: pipeline: expected \"DiTPipeline\""), "{other}");
    assert!(refused(&[f32, "missing.aqt"]).contains("missing.aqt"));
    assert!(refused(&[f32, w4, "--n", "0"]).starts_with("error: n: expected 1 to "));
    assert!(with(&["--batch", "0"]).starts_with("error: batch: expected 1 to "));
    assert_eq!(with(&["--at", "2"]), "error: at: expected calls 0 to 1, since a run makes 2, got 2");
    assert_eq!(with(&["--calls", "3"]), "error: calls: expected 1 to 2, the calls of a run, got 3");
    assert_eq!(
        with(&["--score-n", "5"]),
        "error: score-n: expected 0, or a network to read images (--classifier, --inception, --clip), got 5"
    );
    assert!(with(&["--classifier", "no.safetensors"]).starts_with("error: cannot read no.safetensors: "));
    assert!(with(&["--classifier", f32]).starts_with("error: glyphs-f32.aqt: expected an .npz or safetensors file"));
    let features = repository("models/glyphs/reference.safetensors");
    let wrong = with(&["--classifier", features.to_str().expect("UTF-8")]);
    assert!(wrong.ends_with("reference.safetensors: expected a tensor `conv1.weight`, got none"), "{wrong}");
    let alone = with(&[
        "--classifier",
        &classifier(),
        "--reference-features",
        features.to_str().expect("UTF-8"),
        "--score-n",
        "1",
    ]);
    assert_eq!(alone, "error: score-n: expected at least 2 images for the spread of their features, got 1");
    std::fs::write(folder().join("captions.txt"), "a red A on blue\nno letter on blue\n").expect("a file");
    assert_eq!(
        with(&["--prompts", "captions.txt"]),
        "error: prompts: expected none, since glyphs-f32.aqt reads no texts, got a file"
    );
    assert!(with(&["--json", f32]).starts_with("error: output glyphs-f32.aqt: expected a file that is not an input"));
    assert!(with(&["--sampler", "none"]).starts_with("error: "));
}

/// A classifier of 26 letters and three styles for pictures of 32 x 32 pixels, which sees them in noise.
fn write_classifier(name: &str) {
    let shapes = [
        ("conv1.weight", vec![2, 3, 3, 3]),
        ("conv1.bias", vec![2]),
        ("conv2.weight", vec![2, 2, 3, 3]),
        ("conv2.bias", vec![2]),
        ("fc1.weight", vec![5, 128]),
        ("fc1.bias", vec![5]),
        ("fc2.weight", vec![29, 5]),
        ("fc2.bias", vec![29]),
    ];
    let values =
        |n: usize| (0..n).flat_map(|i| ((i * 7919 % 101) as f32 / 50.0 - 1.0).to_le_bytes()).collect::<Vec<u8>>();
    let data = shapes.map(|(name, dims)| (name, values(dims.iter().product()), dims));
    let views = data.iter().map(|(name, bytes, dims)| {
        (*name, TensorView::new(Dtype::F32, dims.clone(), bytes).expect("bytes of these axes"))
    });
    std::fs::write(folder().join(name), safetensors::serialize(views, None).expect("tensors")).expect("a file");
}

/// Text models, whose captions say what to look for.
#[test]
fn captions_are_asked_for_and_say_what_to_look_for() {
    packed("tests/fixtures/sd/v1", "f32");
    packed("tests/fixtures/sd/v1", "w8a8");
    write_classifier("32.safetensors");
    let text = "a red A on blue\n\nbold green B on a white background\n";
    std::fs::write(folder().join("letters.txt"), text).expect("a file");
    std::fs::write(folder().join("cats.txt"), format!("{text}a red cat on blue\n")).expect("a file");
    let files = ["v1-f32.aqt", "v1-w8a8.aqt", "--n", "1", "--steps", "1"];
    let with = |args: &[&str]| refused(&[&files[..], args].concat());
    assert_eq!(with(&[]), "error: prompts: expected a file of captions, since v1-f32.aqt reads texts, got none");
    let scored = with(&["--prompts", "letters.txt", "--classifier", &classifier(), "--score-n", "2"]);
    assert!(
        scored.contains("classifier.safetensors: expected pictures that become 576 numbers before fc1"),
        "{scored}"
    );
    let cat = with(&["--prompts", "cats.txt", "--classifier", "32.safetensors", "--score-n", "2"]);
    let expected = "a letter A to Z alone, a colour, and another colour after \"on\"; or --score-n 0";
    assert_eq!(cat, format!("error: cats.txt:4: expected {expected}, got \"a red cat on blue\""));
    assert!(evaluate(&[&files[..], &["--prompts", "cats.txt", "-q"]].concat()).status.success());

    let scores =
        ["--prompts", "letters.txt", "--classifier", "32.safetensors", "--score-n", "3", "--json", "words.json"];
    let output = evaluate(&[&files[..], &scores[..]].concat());
    let table = std::str::from_utf8(&output.stdout).expect("UTF-8");
    assert!(table.contains("letter right") && table.contains("all right") && !table.contains("ink right"), "{table}");
    let json: Value =
        serde_json::from_slice(&std::fs::read(folder().join("words.json")).expect("written")).expect("JSON");
    let reads = json["files"][1]["reads"].as_object().expect("criteria");
    let mut names: Vec<_> = reads.keys().map(String::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["all", "background", "ink", "letter", "style"]);
    assert!(reads.values().all(|share| share["images"] == 3));
}
