//! The documentation shows commands that work: targets and scripts are there, arguments are understood, and what the
//! letter model can show is run.

use crate::run::*;
use common::documented::{self, Command, commands, root};
use std::fs;
use std::path::{Path, PathBuf};

/// Fails with all that `check` finds wrong with the commands of `program`, which must be shown.
fn hold(program: &str, mut check: impl FnMut(&Command) -> Result<(), String>) {
    let commands: Vec<_> = commands().into_iter().filter(|c| c.program() == program).collect();
    assert!(commands.iter().any(|c| !c.mention), "no command of {program} is shown");
    let faults: Vec<_> = commands
        .iter()
        .filter_map(|c| check(c).err().map(|fault| format!("{}: `{}`: {fault}", c.place, c.words.join(" "))))
        .collect();
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn commands_are_found_in_text() {
    let text = "Text with `aquatint run` and `X=1 cargo test\n--test a -- --ignored`, no ``.\n\n```sh\n\
                $ packer \"a b\" --x; aquatint info 'c' # && cargo\n   cargo drawn\nls | wc\n```\n\
                `cargo run -p packer -- in -o out && python a.py` and `packer/src` and `packer`.\n";
    let found = documented::of("x.md", text);
    let found: Vec<_> = found.iter().map(|c| (c.place.as_str(), c.words.join("|"), c.mention)).collect();
    let expected = [
        ("x.md:1", "aquatint|run", true),
        ("x.md:1", "cargo|test|--test|a|--|--ignored", false),
        ("x.md:5", "packer|a b|--x", false),
        ("x.md:5", "aquatint|info|c", false),
        ("x.md:9", "cargo|run|-p|packer|--|in|-o|out", false),
        ("x.md:9", "packer|in|-o|out", false),
        ("x.md:9", "python|a.py", true),
    ];
    assert_eq!(found, expected.map(|(place, words, mention)| (place, words.to_owned(), mention)));
}

/// Folders of the workspace's packages.
fn package(name: &str) -> Option<&'static str> {
    let all = [
        ("aquatint", ""),
        ("aquatint-cli", "crates/cli"),
        ("packer", "packer"),
        ("ptx-emulator", "tests/emulator"),
        ("aquatint-fuzz", "tests/fuzz"),
    ];
    all.iter().find(|(n, _)| *n == name).map(|(_, folder)| *folder)
}

/// The sources of target `name` in `folder`: `tests` or `benches`.
fn target(folder: &Path, name: &str) -> Option<Vec<PathBuf>> {
    let (file, rooms) = (folder.join(format!("{name}.rs")), folder.join(name));
    if file.is_file() {
        return Some(vec![file]);
    }
    let is_source = |path: &PathBuf| path.extension().is_some_and(|e| e == "rs");
    rooms.join("main.rs").is_file().then(|| files(&rooms).into_keys().filter(is_source).collect())
}

/// Whether cargo's subcommand has all `flags`, by its own account; nothing is asked where there is no cargo.
fn cargo_has(subcommand: &str, flags: &[&str]) -> Result<(), String> {
    let Some(cargo) = std::env::var_os("CARGO") else {
        println!("skipped: not run by cargo");
        return Ok(());
    };
    let ran = finish(std::process::Command::new(cargo).args([subcommand, "--help"]));
    let words: Vec<_> = ran.out.split(|c: char| c.is_whitespace() || ",[]=.".contains(c)).collect();
    if ran.code != Some(0) {
        return Err(format!("cargo {subcommand}: {}", ran.err));
    }
    flags.iter().try_for_each(|flag| words.contains(flag).then_some(()).ok_or(format!("cargo does not know {flag}")))
}

fn check_cargo(words: &[&str]) -> Result<(), String> {
    let end = words.iter().position(|word| *word == "--").unwrap_or(words.len());
    let (args, rest) = (&words[2.min(end)..end], &words[end..]);
    let flags: Vec<_> = args.iter().map(|arg| arg.split('=').next().unwrap_or(arg)).collect();
    cargo_has(words[1], &flags.into_iter().filter(|flag| flag.starts_with('-')).collect::<Vec<_>>())?;
    let of = |names: &[&str]| args.windows(2).filter(|p| names.contains(&p[0])).map(|p| p[1]).collect::<Vec<_>>();
    let packages = of(&["-p", "--package"]);
    for name in &packages {
        package(name).ok_or(format!("no package {name}"))?;
    }
    let package = root().join(package(packages.first().unwrap_or(&"aquatint")).expect("checked"));
    for name in of(&["--bin"]) {
        // At the top, both are built.
        let of = |folder: &str| [root().join(""), root().join(folder)].contains(&package);
        [("aquatint", "crates/cli"), ("packer", "packer")]
            .iter()
            .find(|(bin, folder)| *bin == name && of(folder))
            .ok_or(format!("no program {name}"))?;
    }
    let mut sources = Vec::new();
    for (kind, folder) in [("--test", "tests"), ("--bench", "benches")] {
        for name in of(&[kind]) {
            sources.extend(target(&package.join(folder), name).ok_or(format!("no target {kind} {name}"))?);
        }
    }
    // A filter after named targets is part of the name of a test or of its module.
    let taking = ["-p", "--package", "--bin", "--test", "--bench", "--features", "--target", "--path", "--profile"];
    let filter = (0..args.len()).find(|&i| !args[i].starts_with('-') && (i == 0 || !taking.contains(&args[i - 1])));
    if let (Some(filter), false, "test" | "bench") = (filter.map(|i| args[i]), sources.is_empty(), words[1]) {
        let last = filter.rsplit("::").next().unwrap_or(filter);
        let named = |path: &PathBuf| {
            path.file_stem().is_some_and(|stem| stem.to_string_lossy().contains(last))
                || fs::read_to_string(path).expect("a source").contains(last)
        };
        sources.iter().any(named).then_some(()).ok_or(format!("no test {filter}"))?;
    }
    let passed = ["--", "--nocapture", "--ignored", "--include-ignored", "--exact", "--test", "-D", "warnings"];
    match rest.iter().find(|word| !passed.contains(word) && !word.starts_with("--test-threads")) {
        Some(word) if ["test", "bench", "clippy"].contains(&words[1]) => Err(format!("tests do not take {word}")),
        _ => Ok(()),
    }
}

#[test]
fn cargo_commands_name_what_there_is() {
    let check = |line: &str| check_cargo(&line.split(' ').collect::<Vec<_>>());
    for line in [
        "cargo test --test cuda",
        "cargo test -p aquatint-cli --test cli",
        "cargo test -p packer --test packing torch -- --nocapture",
        "cargo run --bin packer",
    ] {
        assert_eq!(check(line), Ok(()), "{line}");
    }
    for line in [
        "cargo test --test device",
        "cargo test --test cuda nothing_of_that_name",
        "cargo test --test packing",
        "cargo bench --bench sums",
        "cargo run --bin unpacker",
        "cargo run -p packer --bin aquatint",
        "cargo build -p unpacker",
        "cargo test -- --loud",
    ] {
        assert!(check(line).is_err(), "{line}");
    }
    hold("cargo", |c| check_cargo(&c.words.iter().map(String::as_str).collect::<Vec<_>>()));
}

#[test]
fn scripts_are_there() {
    for command in commands() {
        let name = match command.program() {
            "python" | "python3" => &command.args()[0],
            program if program.starts_with(".ci/") => program,
            _ => continue,
        };
        assert!(root().join(name).is_file(), "{}: no script {name}", command.place);
    }
}

/// The tests and modules that `tests/README.md` names are there.
#[test]
fn tests_are_there() {
    let folders = ["tests", "crates/cli/tests", "crates/server/tests", "packer/tests", "packer/src", "src"];
    let sources = folders.map(|folder| files(&root().join(folder)));
    let sources: Vec<_> =
        sources.iter().flat_map(|files| files.keys()).filter(|p| p.extension().is_some_and(|e| e == "rs")).collect();
    let text: String = sources.iter().map(|path| fs::read_to_string(path).expect("a source")).collect();
    let table = fs::read_to_string(root().join("tests/README.md")).expect("the table");
    let names: Vec<&str> = table
        .lines()
        .filter(|line| line.starts_with("| "))
        .flat_map(|line| line.split('`').skip(1).step_by(2))
        .collect();
    assert!(names.len() > 30, "{names:?}");
    for name in names {
        let module = sources.iter().any(|path| {
            path.file_stem().is_some_and(|stem| stem == name) || path.parent().is_some_and(|p| p.ends_with(name))
        });
        let test = text.contains(&format!("fn {name}("));
        assert!(module || test || name == "d4own", "tests/README.md: `{name}`");
    }
}

/// Every command runs. Names of files that packing the letter model makes, and those of commands that only look at a
/// file, stand for the letter model; other files are not there, which the program must say rather than that it does not
/// understand the command.
#[test]
fn the_programs_commands_are_understood() {
    let (letters, nothing) = (directory("readme-letters"), directory("readme-nothing"));
    let model = root().join("models/glyphs-w4a8.aqt");
    let provide = |name: &str| _ = fs::copy(&model, letters.join(name)).expect("the letter model");
    for command in commands().iter().filter(|c| c.program() == "packer" && c.args()[0].starts_with("models/")) {
        command.option(&["-o", "--output"]).into_iter().for_each(provide);
    }
    let mut ran = 0;
    hold("aquatint", |command| {
        let args: Vec<_> = command.args().iter().map(String::as_str).collect();
        if command.mention && !args[0].starts_with('-') {
            let help = finish(&mut program(&nothing, &[args[0], "--help"]));
            return (help.code == Some(0)).then_some(()).ok_or(help.err);
        }
        if let ["info" | "verify", name] = args[..] {
            provide(name);
        }
        // Hundreds of letters take too long here.
        let dir = if args.contains(&"--n-imgs") { &nothing } else { &letters };
        let result = finish(&mut program(dir, &args));
        ran += usize::from(result.code == Some(0));
        refused_for_a_file(command, &result)
    });
    assert!(ran > 0, "none ran");
}

/// Whether a command ran or failed for want of what it names.
fn refused_for_a_file(command: &Command, ran: &Ran) -> Result<(), String> {
    let missing = command.args().iter().filter(|arg| !arg.starts_with('-')).any(|arg| ran.err.contains(arg.as_str()));
    let said = ran.err.starts_with("error: ") && ran.err.lines().count() == 1 && missing;
    let fine = ran.code == Some(0) || (ran.code == Some(2) && said && !ran.err.contains("--help"));
    if fine { Ok(()) } else { Err(ran.err.clone()) }
}
