//! `tools/gpu_check.sh` names every test that needs a device, and none that is not there.

use common::repository;
use std::collections::BTreeSet;
use std::env;
use std::path::PathBuf;
use std::process::{Command, Output};

fn script(args: &[&str], folder: &str) -> Option<Output> {
    let place = |name: &str| PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(folder).join(name);
    let mut command = Command::new("bash");
    command.arg(repository("tools/gpu_check.sh")).args(args).env_remove("CUDA_CACHE_PATH");
    command.env("OUT", place("out")).env("WORK", place("work")).env("BIN", place("bin")).output().ok()
}

fn lines(output: &Output) -> Vec<String> {
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

#[test]
fn parts_name_every_test_of_a_device() {
    let Some(output) = script(&["--list"], "gpu-check-list") else { return eprintln!("skipped: no bash") };
    let parts = lines(&output);
    let named: BTreeSet<&str> =
        parts.iter().filter_map(|part| part.split_once(" cases ")).flat_map(|(_, names)| names.split(' ')).collect();
    let tests = Command::new(env::current_exe().unwrap()).arg("--list").output().unwrap();
    let tests = lines(&tests);
    let of_a_device = |name: &&str| name.contains("::device::") || name.contains("::on_device::");
    let there = tests.iter().filter_map(|line| line.strip_suffix(": test")).filter(of_a_device).collect();
    assert!(named.len() > 20);
    assert_eq!(named, there);
    for part in &parts {
        let words: Vec<_> = part.split(' ').collect();
        assert!(words.len() >= 3 && words[1].parse::<u32>().is_ok_and(|limit| limit <= 570), "{part}");
    }
}

/// Runs the script with programs that play a part each, and returns the summary without seconds, and the exit code.
#[cfg(unix)]
fn check(folder: &str, devices: &str, budget: &str, parts: &[&str]) -> (Vec<String>, Option<i32>) {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    let bin = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(folder).join("bin");
    fs::create_dir_all(&bin).unwrap();
    let programs = [
        ("aquatint", format!("case $1 in --list-devices) echo '{devices}' ;; *) echo 'error: no'; exit 2 ;; esac")),
        ("packer", "exit 1".into()),
        (
            "cuda-tests",
            "case $* in *modules*) echo 'test result: ok. 1 passed; 0 failed' ;; *steps*) sleep 60 ;;
             *) echo 'test result: ok. 0 passed; 0 failed' ;; esac"
                .into(),
        ),
    ];
    for (name, text) in programs {
        fs::write(bin.join(name), format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(bin.join(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    let place = |name: &str| bin.with_file_name(name);
    let mut command = Command::new("bash");
    command.arg(repository("tools/gpu_check.sh")).args(parts).env("BUDGET", budget).env("PATH", "/usr/bin:/bin");
    let output = command.env("OUT", place("out")).env("WORK", place("work")).env("BIN", &bin).output().unwrap();
    let summary = fs::read_to_string(place("out").join("summary.txt")).unwrap();
    assert_eq!(lines(&output), summary.lines().collect::<Vec<_>>());
    let ends = summary.lines().map(|line| line.split(" in ").next().unwrap().to_owned());
    (ends.collect(), output.status.code())
}

#[test]
#[cfg(unix)]
fn parts_end_each_for_itself() {
    if script(&["--list"], "gpu-check-list").is_none() {
        return eprintln!("skipped: no bash");
    }
    let fit = "cuda:0  Fake 0, sm_90, 3.00 GiB";
    let (ends, code) = check("gpu-check-run", fit, "60", &["modules", "letters", "conv", "memcheck"]);
    if std::path::Path::new("/usr/bin/compute-sanitizer").exists() {
        return eprintln!("skipped: what is said without compute-sanitizer");
    }
    let want = [
        "devices ok",
        "modules ok",
        "letters failed with 2: error: no",
        "conv failed with 1: alone: ops::device::resample failed",
        "memcheck skipped: no compute-sanitizer",
        "2 ok, 2 failed, 1 skipped",
    ];
    assert_eq!((ends, code), (want.map(String::from).to_vec(), Some(1)));

    // One that hangs is ended, and what there is no time for is said.
    let (ends, code) = check("gpu-check-hang", fit, "6", &["steps", "memory"]);
    assert!(ends[1].starts_with("steps failed: not done"), "{ends:?}");
    assert_eq!((&*ends[2], code), ("memory skipped: no time left", Some(1)));

    // Without a device, or with an unfit one, nothing is tried.
    for devices in ["cuda    none: no driver", "cuda:0  Old, sm_75; unfit: too old"] {
        let (ends, code) = check("gpu-check-none", devices, "60", &["modules"]);
        assert_eq!(ends[1..], ["modules skipped: no device", "0 ok, 1 failed, 1 skipped"]);
        assert_eq!(code, Some(2));
    }
}
