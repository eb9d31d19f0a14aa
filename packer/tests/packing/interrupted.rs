//! A packer that is told to end, killed, or asked to write where it must not.
#![cfg(target_os = "linux")]

use crate::common::{Scratch, fixture, model};
use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

const SIGKILL: i32 = 9;

fn packer(scratch: &Scratch, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_packer"));
    command.current_dir(&scratch.0).args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn run(scratch: &Scratch, args: &[&str]) -> Output {
    packer(scratch, args).output().expect("it starts")
}

/// Starts work on `target` that takes long, and waits for its temporary file or directory.
fn start(scratch: &Scratch, args: &[&str], target: &str) -> Child {
    let mut child = packer(scratch, args).spawn().expect("it starts");
    let begin = Instant::now();
    while !scratch.entries().iter().any(|name| name.starts_with(&format!("{target}."))) {
        assert!(child.try_wait().expect("a child").is_none(), "it ended before it wrote anything");
        assert!(begin.elapsed() < Duration::from_secs(60), "nothing was written");
        sleep(Duration::from_millis(2));
    }
    child
}

fn send(signal: i32, child: &Child) {
    let done = Command::new("sh").args(["-c", &format!("kill -{signal} {}", child.id())]).status();
    assert!(done.expect("a shell").success());
}

/// Packing the letter model so that it takes long.
fn slowly() -> [String; 5] {
    let letters = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/glyphs");
    [letters.to_str().expect("text"), "--q-config", "w8a16:kmeans", "-o", "x.aqt"].map(String::from)
}

#[test]
fn signals_remove_temporary_files() {
    let scratch = Scratch::new("signals");
    let slowly = slowly();
    let pack: Vec<_> = slowly.iter().map(String::as_str).collect();
    let synth = ["synth", "sd15", "-o", "x.aqt"];
    fs::create_dir(scratch.path("empty")).expect("a directory");
    for signal in [1, 2, 15] {
        for args in [&pack[..], &synth] {
            let child = start(&scratch, args, "x.aqt");
            send(signal, &child);
            let output = child.wait_with_output().expect("it ends");
            assert_eq!(output.status.code(), Some(128 + signal), "{output:?}");
            assert!(output.stdout.is_empty() && output.stderr.is_empty(), "{output:?}");
            assert_eq!(scratch.entries(), ["empty"], "{args:?}");
        }
    }
}

#[test]
fn what_a_killed_packer_left_is_removed_by_the_next() {
    let scratch = Scratch::new("killed");
    let slowly = slowly();
    let pack: Vec<_> = slowly.iter().map(String::as_str).collect();
    let mut first = start(&scratch, &pack, "x.aqt");
    let d2 = model("d2");
    let quickly = [d2.to_str().expect("text"), "-q", "-o", "x.aqt"];
    // While it lives, what it writes is its own.
    let own = scratch.entries();
    assert!(run(&scratch, &quickly).status.success());
    assert_eq!((scratch.entries().len(), own.len()), (2, 1), "{own:?}");
    assert!(first.try_wait().expect("a child").is_none(), "it ended too soon");
    send(SIGKILL, &first);
    assert_eq!(first.wait().expect("it ends").signal(), Some(SIGKILL));
    assert_eq!(scratch.entries().len(), 2);
    assert!(run(&scratch, &quickly).status.success());
    assert_eq!(scratch.entries(), ["x.aqt"]);
}

#[test]
fn outputs_are_files_and_no_inputs() {
    let scratch = Scratch::new("outputs");
    let d2 = scratch.copy_of("d2");
    let weights = "d2/transformer/diffusion_pytorch_model.safetensors";
    assert!(scratch.path(weights).is_file());
    fs::copy(fixture("qua2sedimo.pkl"), scratch.path("config.pkl")).expect("room");
    symlink(weights, scratch.path("link")).expect("a link");
    assert!(Command::new("mkfifo").arg(scratch.path("pipe")).status().expect("mkfifo").success());
    let d2 = d2.to_str().expect("text");
    let before = fs::read(scratch.path(weights)).expect("it is there");
    let refused = |args: &[&str], word: &str| {
        let output = run(&scratch, args);
        let err = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && err.contains(word) && err.lines().count() == 1, "{args:?}: {err}");
    };
    for (target, word) in [
        ("pipe", "got a pipe"),
        ("d2", "got a directory"),
        ("/dev/null", "got a device"),
        ("none/x.aqt", "got no directory none"),
        (weights, "got the input"),
        ("link", "output link: expected a file that is not an input, got the input"),
        ("config.pkl", "got the input config.pkl"),
    ] {
        refused(&[d2, "--q-config", "config.pkl", "-o", target], word);
    }
    assert!(run(&scratch, &[d2, "-q", "-o", "x.aqt"]).status.success());
    refused(&["unpack", "x.aqt", "-o", "x.aqt"], "got the input x.aqt");
    refused(&["unpack", "x.aqt", "-o", "pipe"], "got a pipe");
    refused(&["synth", "sd15", "-o", "none/sd15"], "got no directory none");
    // Errors are one line whatever a name holds.
    refused(&["no\nsuch", "-o", "y.aqt"], "no\\nsuch");
    assert_eq!(fs::read(scratch.path(weights)).expect("it is there"), before);
    assert_eq!(scratch.entries(), ["config.pkl", "d2", "link", "pipe", "x.aqt"]);
}

#[test]
fn a_killed_calibration_is_gone_on_with() {
    let scratch = Scratch::new("calibration");
    let d2 = model("d2");
    let d2 = d2.to_str().expect("text");
    let calibrate = |output: &'static str| ["calibrate", d2, "--cali-n", "400", "--cali-batch", "1", "-o", output];
    let whole = run(&scratch, &calibrate("whole.safetensors"));
    assert!(whole.status.success(), "{whole:?}");
    // As soon as something was saved, at the end of the runs.
    let mut child = packer(&scratch, &calibrate("c.safetensors")).spawn().expect("it starts");
    let begin = Instant::now();
    while !scratch.path("c.safetensors.partial/states.safetensors").exists() {
        assert!(child.try_wait().expect("a child").is_none(), "it ended before it saved anything");
        assert!(begin.elapsed() < Duration::from_secs(60), "nothing was saved");
        sleep(Duration::from_millis(1));
    }
    send(SIGKILL, &child);
    assert_eq!(child.wait().expect("it ends").signal(), Some(SIGKILL));
    assert!(!scratch.path("c.safetensors").exists());
    // Other settings do not go on with it.
    let mut other = calibrate("c.safetensors").to_vec();
    other.extend(["--seed", "5"]);
    let refused = run(&scratch, &other);
    let err = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() == Some(2) && err.lines().count() == 1 && err.contains("other settings"), "{err}");
    let rest = run(&scratch, &calibrate("c.safetensors"));
    let err = String::from_utf8_lossy(&rest.stderr);
    assert!(rest.status.success() && err.contains("going on with the work in c.safetensors.partial"), "{err}");
    assert_eq!(scratch.entries(), ["c.safetensors", "whole.safetensors"]);
    assert!(
        fs::read(scratch.path("c.safetensors")).expect("it")
            == fs::read(scratch.path("whole.safetensors")).expect("it")
    );
}

#[test]
fn a_calibration_that_is_told_to_end_keeps_what_it_saved_and_no_copy_of_the_model() {
    let scratch = Scratch::new("told");
    let d2 = model("d2");
    let args = ["calibrate", d2.to_str().expect("text"), "--cali-n", "4000", "-o", "c.safetensors"];
    for signal in [2, 15] {
        let child = start(&scratch, &args, "c.safetensors.f32");
        send(signal, &child);
        let output = child.wait_with_output().expect("it ends");
        assert_eq!(output.status.code(), Some(128 + signal), "{output:?}");
        assert!(!scratch.entries().iter().any(|name| name.contains(".f32")), "{:?}", scratch.entries());
    }
}

#[test]
fn calibrations_are_reported_and_added_on_the_command_line() {
    let scratch = Scratch::new("reported");
    let d2 = model("d2");
    let d2 = d2.to_str().expect("text");
    let part = |shard: &'static str, output: &'static str| {
        run(
            &scratch,
            &["calibrate", d2, "--cali-n", "4", "--cali-st", "2", "--steps", "4", "--shard", shard, "-q", "-o", output],
        )
    };
    for (shard, output) in [("0/2", "a"), ("1/2", "b")] {
        let done = part(shard, output);
        assert!(done.status.success() && done.stdout.is_empty() && done.stderr.is_empty(), "{done:?}");
    }
    let merged = run(&scratch, &["calibrate", "--merge", "a", "b", "-o", "c"]);
    assert_eq!(String::from_utf8_lossy(&merged.stdout), "c: 2 of 2 shards\n", "{merged:?}");
    let twice = run(&scratch, &["calibrate", "--merge", "a", "a", "-o", "d"]);
    assert!(twice.status.code() == Some(2) && !scratch.path("d").exists(), "{twice:?}");
    let json =
        run(&scratch, &["calibrate", d2, "--cali-n", "2", "--cali-st", "2", "--steps", "4", "--json", "-o", "e"]);
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).expect("JSON");
    assert_eq!(
        (&json["summary"]["images"], &json["summary"]["calls"], &json["summary"]["sampler"]),
        (&2.into(), &serde_json::json!([1, 3]), &"ddim".into())
    );
    let hash = json["summary"]["xxh3"].as_str().expect("a hash");
    assert_eq!(
        hash,
        format!("{:032x}", xxhash_rust::xxh3::xxh3_128(&fs::read(scratch.path("e")).expect("it is there")))
    );
    for (args, word) in [
        (["--shard", "2/2"], "below N"),
        (["--cali-memory", "much"], "a number of bytes"),
        (["--cali-n", "0"], "at least 1"),
    ] {
        let mut all = vec!["calibrate", d2, "-o", "f"];
        all.extend(args);
        let refused = run(&scratch, &all);
        assert!(refused.status.code() == Some(2), "{refused:?}");
        assert!(String::from_utf8_lossy(&refused.stderr).contains(word), "{refused:?}");
    }
}
