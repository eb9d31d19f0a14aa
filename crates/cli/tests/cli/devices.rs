//! The program where there is no driver, and with one of our own (`tests/fake`).

use std::path::Path;
use std::process::{Command, Output};

fn program(how: &str, args: &[&str]) -> Option<Output> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aquatint"));
    command.env("FAKE_CUDA_VERSION", if how == "old driver" { "11020" } else { "12020" });
    Some(
        command
            .args(args)
            .env("LD_LIBRARY_PATH", common::fake_driver(Path::new(env!("CARGO_TARGET_TMPDIR")))?)
            .env("FAKE_CUDA", how)
            .output()
            .expect("it starts"),
    )
}

#[test]
fn the_program_is_not_linked_to_a_driver() {
    let Ok(output) = Command::new("ldd").arg(env!("CARGO_BIN_EXE_aquatint")).output() else {
        return eprintln!("skipped: no ldd");
    };
    assert!(!String::from_utf8_lossy(&output.stdout).contains("cuda"));
}

#[test]
fn devices_are_listed() {
    let Some(output) = program("", &["--list-devices"]) else { return };
    let out = String::from_utf8_lossy(&output.stdout);
    assert_eq!(out.lines().last(), Some("cuda:0  Fake 0, sm_90, 3.00 GiB, driver for CUDA 12.2"));

    let output = program("", &["--list-devices", "--json"]).expect("as before");
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(json["cuda"]["reason"], serde_json::Value::Null);
    let device = serde_json::json!({
        "index": 0, "name": "Fake 0", "capability": "9.0", "memory_bytes": 3u64 << 30, "driver": "12.2", "reason": null
    });
    assert_eq!(json["cuda"]["devices"], serde_json::json!([device]));
}

#[test]
fn one_bad_device_hides_no_other() {
    let Some(output) = program("broken device", &["--list-devices"]) else { return };
    let out = String::from_utf8_lossy(&output.stdout);
    let bad = "CUDA device 0: expected a device in order; restart it, got a hardware error (CUDA error 214)";
    let good = "cuda:1  Fake 1, sm_90, 3.00 GiB, driver for CUDA 12.2";
    assert_eq!(out.lines().skip(1).collect::<Vec<_>>(), [&*format!("cuda:0  unfit: {bad}"), good]);

    let output = program("broken device", &["--list-devices", "--json"]).expect("as before");
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(json["cuda"]["devices"][0], serde_json::json!({ "index": 0, "reason": bad }));
    assert_eq!(json["cuda"]["devices"][1]["name"], "Fake 1");
}

#[test]
fn unfit_devices_are_refused() {
    let cases = [
        ("old driver", "cuda", "expected a driver of CUDA 11.4 or later; update it, got 11.2"),
        ("old device", "cuda:0", "expected compute capability 8.0 or later; use another device, or the CPU, got 7.5"),
        ("no device", "cuda:0", "expected an NVIDIA GPU that the driver can use, or the CPU instead, got none"),
        ("stub", "cuda:0", "take the toolkit's stubs off the library path, got a stub of libcuda"),
        ("new code", "cuda:0", "starting the NVIDIA driver: expected success, got an error (CUDA error 999)"),
        ("", "cuda:1", "expected 0, the only one, got 1"),
    ];
    for (how, device, expected) in cases {
        let Some(output) = program(how, &["bench", "--device", device]) else { return };
        let err = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{how}: {err}");
        assert!(err.starts_with(&format!("error: --device {device}: ")) && err.contains(expected), "{how}: {err}");
        assert_eq!(err.lines().count(), 1, "{err}");
        if device != "cuda:1" {
            let output = program(how, &["info", "--device", "auto"]).expect("as before");
            assert!(output.status.success(), "{how}: {}", String::from_utf8_lossy(&output.stderr));
        }
    }
}
