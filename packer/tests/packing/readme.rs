//! The documentation shows commands that the packer understands; those that pack the letter model are run.

use crate::common::Scratch;
use ::common::documented::{commands, root};
use std::fs;
use std::process::Command;

#[test]
fn the_packers_commands_are_understood() {
    let scratch = Scratch::new("readme");
    let (mut shown, mut packed) = (0, 0);
    for command in commands().into_iter().filter(|c| c.program() == "packer") {
        let mut args = command.args().to_vec();
        let what = format!("{}: {args:?}", command.place);
        if command.mention {
            args.push("--help".into());
        }
        for arg in &mut args {
            if arg == "SPEC" {
                *arg = "w4a8".into();
            } else if arg.starts_with("models/") {
                *arg = root().join(&arg).to_str().expect("a name in UTF-8").into();
            }
        }
        // A model of true size is not made where something is already.
        if let ("synth", Some(output)) = (args[0].as_str(), command.option(&["-o", "--output"])) {
            fs::create_dir_all(scratch.path(output).join("something")).unwrap();
        }
        let done = Command::new(env!("CARGO_BIN_EXE_packer")).args(&args).current_dir(&scratch.0).output().unwrap();
        let error = String::from_utf8(done.stderr).unwrap();
        shown += 1;
        if done.status.success() {
            packed += usize::from(!command.mention);
            continue;
        }
        // What is not there is named, rather than what is not understood.
        let named = args.iter().any(|arg| !arg.starts_with('-') && error.contains(arg.as_str()));
        assert!(done.status.code() == Some(2) && error.starts_with("error: ") && named, "{what}: {error}");
        assert!(error.trim_end().lines().count() == 1 && !error.contains("--help"), "{what}: {error}");
        assert!(!args.iter().any(|arg| arg.starts_with('/')), "the letter model packs: {what}: {error}");
    }
    assert!(shown > 0 && packed > 0, "{shown} shown, {packed} packed");
}
