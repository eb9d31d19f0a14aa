//! What starts shards on many machines: the scripts of `tools/`, in the surroundings that their schedulers make.

use crate::run::*;
use crate::sample::unscheduled;
use common::repository;
use serde_norway::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// An empty directory with the letter model under this name.
fn with_letters(test: &str, name: &str) -> PathBuf {
    let dir = directory(test);
    fs::copy(repository("models/glyphs-w4a8.aqt"), dir.join(name)).expect("room");
    dir
}

/// Fields are those of `kubectl explain job.spec` of Kubernetes 1.33; that the API server takes the file was not tried.
#[test]
fn an_indexed_job_makes_a_shard_per_index() {
    let text = fs::read_to_string(repository("tools/kubernetes_job.yaml")).unwrap();
    let job: Value = serde_norway::from_str(&text).expect("YAML");
    let spec = &job["spec"];
    assert_eq!((&job["kind"], &job["apiVersion"]), (&"Job".into(), &"batch/v1".into()));
    assert_eq!(spec["completionMode"], Value::from("Indexed"));
    // Failures per index are counted only if pods are not restarted in place, and told apart only by a policy that names the
    // container.
    let pod = &spec["template"]["spec"];
    assert_eq!(pod["restartPolicy"], Value::from("Never"));
    assert!(spec["backoffLimitPerIndex"].as_u64().is_some());
    let container = &pod["containers"][0];
    let rules = spec["podFailurePolicy"]["rules"].as_sequence().expect("rules");
    let actions: Vec<_> = rules.iter().map(|rule| rule["action"].as_str().expect("an action")).collect();
    assert_eq!(actions, ["Ignore", "FailIndex"]);
    let codes = &rules[1]["onExitCodes"];
    assert_eq!((&codes["containerName"], &codes["values"][0]), (&container["name"], &2.into()));
    // The volume is there under its name.
    assert_eq!(container["volumeMounts"][0]["name"], pod["volumes"][0]["name"]);

    let words: Vec<&str> =
        container["command"].as_sequence().expect("words").iter().filter_map(Value::as_str).collect();
    let after = |option: &str| words[1 + words.iter().position(|word| *word == option).expect(option)];
    assert_eq!(after("--shards"), spec["completions"].as_u64().expect("a number").to_string());
    let mount = container["volumeMounts"][0]["mountPath"].as_str().expect("a path");
    assert!(after("--output").starts_with(mount) && words[2].starts_with(mount));

    // The same words on this machine, of fewer images: the model in place of the volume's.
    let dir = with_letters("engines-kubernetes", "model.aqt");
    let here = |word: &str| word.replace(mount, dir.to_str().expect("UTF-8"));
    let run = |index: &str, images: &str| {
        let mut args: Vec<String> = words[1..].iter().map(|word| here(word)).collect();
        let n = args.iter().position(|word| word == "--n-imgs").expect("images");
        args[n + 1] = images.into();
        args.extend(["--steps".into(), "1".into()]);
        let mut command = program(&dir, &args.iter().map(String::as_str).collect::<Vec<_>>());
        finish(unscheduled(&mut command).env("JOB_COMPLETION_INDEX", index))
    };
    let ran = run("499", "1000");
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), "note: shard 499/500, as JOB_COMPLETION_INDEX says\n"));
    assert!(dir.join("samples/shard-00499-of-00500.safetensors").is_file());
    // An index that is none is what the policy calls bad input.
    assert_eq!(run("500", "1000").code, Some(2));
}

#[cfg(unix)]
#[test]
fn a_slurm_array_makes_a_shard_per_task() {
    let script = repository("tools/slurm_array.sh");
    assert!(Command::new("bash").arg("-n").arg(&script).status().expect("bash").success());
    let dir = with_letters("engines-slurm", "m.aqt");
    // `aquatint` is found on the path, as on a cluster.
    let programs = Path::new(env!("CARGO_BIN_EXE_aquatint")).parent().expect("a folder");
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap_or_default());
    let task = |id: &str, more: &[&str]| {
        let mut command = Command::new("bash");
        command.arg(&script).args(["aquatint", "sample", "m.aqt", "--n-imgs", "5", "-s", "1", "-o", "out"]).args(more);
        command.current_dir(&dir).env("PATH", &path).env("SLURM_CPUS_PER_TASK", "1");
        unscheduled(&mut command).env("SLURM_ARRAY_TASK_ID", id);
        for (name, value) in [("COUNT", "3"), ("MIN", "0"), ("MAX", "2")] {
            command.env(format!("SLURM_ARRAY_TASK_{name}"), value);
        }
        finish(&mut command)
    };
    for id in ["0", "2"] {
        let ran = task(id, &[]);
        assert_eq!((ran.code, ran.err), (Some(0), format!("note: shard {id}/3, as SLURM_ARRAY_TASK_ID says\n")));
    }
    refuses(&dir, &["merge", "out", "-o", "x.npz"], &["got 2, without 1 (images 1:3)"]);
    // The rest by its number, as an array of one task.
    assert_eq!(task("1", &["--shards", "3"]).code, Some(0));
    works(&dir, &["merge", "out", "-q", "-o", "x.npz"]);
    let outside = finish(unscheduled(Command::new("bash").arg(&script).arg("true")));
    assert!(outside.code == Some(2) && outside.err.starts_with("usage: sbatch --array"), "{}", outside.err);
}
