//! Programs that are told to end, or lose the file that they read: exit codes, messages, and that nothing half-written
//! stays. What happens inside one process is tried in a child, an ignored test of this module.
#![cfg(target_os = "linux")]

use aquatint::raw::mmap::{self, Interrupt};
use aquatint::raw::whole_file::{WholeDirectory, WholeFile, abandon, check_target};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::symlink;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;
use std::{env, thread};

const SIGHUP: i32 = 1;
const SIGINT: i32 = 2;
const SIGKILL: i32 = 9;
const SIGBUS: i32 = 7;
const SIGTERM: i32 = 15;

/// An empty directory for one test.
fn directory(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("interrupted").join(name);
    let _ = fs::remove_dir_all(&path);
    fs::create_dir_all(&path).expect("a directory");
    path
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).expect("a directory").map(|e| e.expect("an entry").file_name());
    let mut names: Vec<_> = entries.map(|name| name.into_string().expect("text")).collect();
    names.sort();
    names
}

fn send(signal: i32, process: u32) {
    let done = Command::new("sh").args(["-c", &format!("kill -{signal} {process}")]).status();
    assert!(done.expect("a shell").success());
}

/// Starts `command` and waits for a line on its standard output that holds `word`.
fn start(command: &mut Command, word: &str) -> Child {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
    let mut reader = BufReader::new(child.stdout.take().expect("a pipe"));
    let (mut line, mut seen) = (String::new(), String::new());
    while !line.contains(word) {
        line.clear();
        assert!(reader.read_line(&mut line).expect("text") > 0, "no {word:?} in {seen:?}");
        seen += &line;
    }
    // Nothing more is read, and the rest must find room.
    thread::spawn(move || std::io::copy(&mut reader, &mut std::io::sink()));
    child
}

/// How a child ended, and what it said on standard error.
fn end(mut child: Child) -> (ExitStatus, String) {
    let mut err = String::new();
    child.stderr.take().expect("a pipe").read_to_string(&mut err).expect("text");
    (child.wait().expect("it ends"), err)
}

/// The ignored test `name` of this module, working in `dir`.
fn ignored(name: &str, dir: &Path) -> Command {
    let mut command = Command::new(env::current_exe().expect("this test"));
    command
        .args(["--exact", &format!("interrupted::{name}"), "--ignored", "--nocapture", "--test-threads=1"])
        .current_dir(dir);
    command
}

/// As the programs do it.
fn guard() {
    let done = mmap::guard(|interrupt| {
        let _abandoned = abandon();
        eprintln!("told: {interrupt}");
        std::process::exit(interrupt.exit_code());
    });
    done.expect("the first call");
    assert!(mmap::guard(|_| ()).is_err(), "a second call");
}

/// Longer than any signal takes.
fn wait() -> ! {
    println!("ready");
    thread::sleep(Duration::from_secs(60));
    panic!("nobody ended this process");
}

#[test]
#[ignore = "run by other tests"]
fn writes() {
    guard();
    let mut file = WholeFile::create("file".as_ref()).expect("a free name");
    file.write_all(&[1; 5000]).expect("room");
    let directory = WholeDirectory::create("directory".as_ref()).expect("a free name");
    fs::create_dir(directory.temporary().join("below")).expect("a directory");
    fs::write(directory.temporary().join("below/a"), "a").expect("room");
    wait();
}

#[test]
fn signals_remove_temporary_files() {
    for signal in [SIGHUP, SIGINT, SIGTERM] {
        let dir = directory(&format!("signal-{signal}"));
        fs::write(dir.join("file"), "older").expect("room");
        let child = start(&mut ignored("writes", &dir), "ready");
        assert_eq!(names(&dir).len(), 3, "{:?}", names(&dir));
        send(signal, child.id());
        let (status, err) = end(child);
        assert_eq!(status.code(), Some(128 + signal), "{err}");
        assert!(err.contains(&format!("told: ended by signal {signal}\n")), "{err}");
        assert_eq!(names(&dir), ["file"]);
        assert_eq!(fs::read(dir.join("file")).expect("it is there"), b"older");
    }
}

#[test]
fn what_a_killed_process_left_is_removed_by_the_next() {
    let dir = directory("killed");
    let child = start(&mut ignored("writes", &dir), "ready");
    // While it lives, its files are its own.
    let own = names(&dir);
    assert_eq!(own.len(), 2, "{own:?}");
    let file = || WholeFile::create(&dir.join("file")).expect("a free name");
    let folder = || WholeDirectory::create(&dir.join("directory")).expect("a free name");
    drop((file(), folder()));
    assert_eq!(names(&dir), own);
    send(SIGKILL, child.id());
    assert_eq!(end(child).0.signal(), Some(SIGKILL));
    assert_eq!(names(&dir), own);
    // Names that only look alike, and other targets' files, stay.
    let others = ["file.aquatint-part", "file.0-1-1.aquatint-part", "files.00000000-1-1.aquatint-part"];
    others.iter().for_each(|name| fs::write(dir.join(name), "").expect("room"));
    // So does what another machine made a moment ago; what it made days ago goes.
    let (young, old) = (dir.join("file.00000000-1-1.aquatint-part"), dir.join("file.00000000-1-2.aquatint-part"));
    fs::write(&young, "").expect("room");
    let days_ago = std::time::SystemTime::now() - Duration::from_secs(3 * 24 * 60 * 60);
    File::create(&old).and_then(|file| file.set_modified(days_ago)).expect("a file of its own");
    file().commit().expect("room");
    assert!(young.exists() && !old.exists());
    fs::remove_file(young).expect("it is there");
    folder().commit().expect("room");
    let mut left = others.map(String::from).to_vec();
    left.extend(["directory".into(), "file".into()]);
    left.sort();
    assert_eq!(names(&dir), left);
}

#[test]
#[ignore = "run by ignored_signals_stay_ignored"]
fn waits() {
    guard();
    wait();
}

#[test]
fn ignored_signals_stay_ignored() {
    let dir = directory("ignored");
    let child = ignored("waits", &dir);
    let mut shell = Command::new("sh");
    shell.args(["-c", "trap '' HUP; exec \"$0\" \"$@\""]).arg(child.get_program()).args(child.get_args());
    let child = start(&mut shell, "ready");
    send(SIGHUP, child.id());
    thread::sleep(Duration::from_millis(100));
    send(SIGTERM, child.id());
    let (status, err) = end(child);
    assert_eq!(status.code(), Some(128 + SIGTERM), "{status}: {err}");
}

#[test]
#[ignore = "run by a_file_that_shrinks_ends_the_process"]
fn reads_what_is_lost() {
    guard();
    fs::write("model", vec![7; 1 << 20]).expect("room");
    fs::write("other", vec![7; 1 << 20]).expect("room");
    let (model, other) = (mmap::open("model".as_ref()).expect("a file"), mmap::open("other".as_ref()).expect("a file"));
    assert!(model[500_000] == 7 && format!("{model:?}").ends_with("mapped"));
    File::options().write(true).open("model").and_then(|file| file.set_len(4096)).expect("a file");
    assert_eq!((model[0], model[4095], other[500_000]), (7, 7, 7), "what is left can be read");
    println!("{}", model[500_000]);
    println!("went on");
}

#[test]
fn a_file_that_shrinks_ends_the_process() {
    let dir = directory("shrinks");
    let output = ignored("reads_what_is_lost", &dir).output().expect("it starts");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(2), "{out}\n{err}");
    let told = format!("told: {}\n", Interrupt::Shortened("model".into()));
    assert!(err.ends_with(&told) && told.contains("model: the file became shorter"), "{err}");
    assert!(!out.contains("went on"), "{out}");
}

#[test]
#[ignore = "run by other_bus_errors_are_left_alone"]
fn is_sent_a_bus_error() {
    guard();
    send(SIGBUS, std::process::id());
    wait();
}

#[test]
fn other_bus_errors_are_left_alone() {
    let output = ignored("is_sent_a_bus_error", &directory("bus")).output().expect("it starts");
    assert_eq!(output.status.signal(), Some(SIGBUS), "{output:?}");
}

#[test]
fn targets_are_files_and_no_inputs() {
    let dir = directory("targets");
    let path = |name: &str| dir.join(name);
    let told = |name: &str, inputs: &[&Path]| check_target(&path(name), inputs).expect_err(name).to_string();
    fs::create_dir_all(path("folder/below")).expect("a directory");
    fs::write(path("folder/below/input"), "").expect("room");
    fs::write(path("input"), "").expect("room");
    symlink("input", path("link")).expect("a link");
    symlink("nowhere", path("dangling")).expect("a link");
    symlink(path("folder"), path("folder/below/circle")).expect("a link");
    fs::hard_link(path("input"), path("twin")).expect("a link");
    assert!(Command::new("mkfifo").arg(path("pipe")).status().expect("mkfifo").success());
    let _socket = std::os::unix::net::UnixListener::bind(path("socket")).expect("a socket");
    for (name, got) in [
        ("folder", "a directory"),
        ("none/file", "no directory"),
        ("pipe", "a pipe"),
        ("socket", "a socket"),
        ("/dev/null", "a device"),
        ("..", "a directory"),
        ("", "a directory"),
    ] {
        let (expected, message) = ("expected a file in a directory that exists, got ", told(name, &[]));
        assert!(message.contains(&format!("{expected}{got}")), "{message}");
        assert!(WholeFile::create(&path(name)).err().is_some_and(|e| e.to_string() == message));
    }
    assert!(check_target("".as_ref(), &[]).is_err_and(|e| e.to_string().contains("names no file")));
    let inputs = [&*path("absent"), &*path("input"), &*path("folder")];
    for name in ["input", "link", "twin", "folder/below/input"] {
        assert!(told(name, &inputs).contains("expected a file that is not an input, got the input "), "{name}");
    }
    fs::write(path("other"), "").expect("room");
    for name in ["other", "dangling", "free", "absent"] {
        check_target(&path(name), &inputs).expect(name);
    }
}

fn aquatint(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aquatint"));
    command.current_dir(dir).args(args);
    command
}

/// A copy of the letter model in `dir`, and the arguments of a run of it that takes far longer than any test.
fn long_run(dir: &Path) -> [&'static str; 9] {
    let model = common::repository("models/glyphs-w4a8.aqt");
    fs::copy(model, dir.join("letters.aqt")).expect("room");
    ["run", "letters.aqt", "-s", "1000", "--n-imgs", "40", "-v", "--device", "cpu"]
}

#[test]
fn a_run_that_is_told_to_end_leaves_nothing() {
    for signal in [SIGHUP, SIGINT, SIGTERM] {
        let dir = directory(&format!("run-{signal}"));
        let child = start(&mut aquatint(&dir, &long_run(&dir)), "memory");
        send(signal, child.id());
        let (status, err) = end(child);
        assert_eq!((status.code(), err.as_str()), (Some(128 + signal), ""));
        assert_eq!(names(&dir), ["letters.aqt"]);
    }
}

#[test]
fn a_run_whose_model_shrinks_says_so() {
    let dir = directory("run-shrinks");
    let child = start(&mut aquatint(&dir, &long_run(&dir)), "memory");
    File::options().write(true).open(dir.join("letters.aqt")).and_then(|f| f.set_len(8192)).expect("a file");
    let (status, err) = end(child);
    assert_eq!(status.code(), Some(2), "{err}");
    assert_eq!(err, format!("error: {}\n", Interrupt::Shortened("letters.aqt".into())));
    assert_eq!(names(&dir), ["letters.aqt"]);
}

#[test]
fn a_run_never_replaces_what_it_reads() {
    let dir = directory("run-inputs");
    let model = common::repository("models/glyphs-w4a8.aqt");
    fs::copy(&model, dir.join("letters.aqt")).expect("room");
    symlink("letters.aqt", dir.join("link.png")).expect("a link");
    assert!(Command::new("mkfifo").arg(dir.join("pipe")).status().expect("mkfifo").success());
    let first = ["run", "letters.aqt", "-s", "2", "--class-labels", "A"];
    let done = aquatint(&dir, &[&first[..], &["-o", "a.png", "--outputs", "a.safetensors"]].concat()).output();
    assert!(done.expect("it starts").status.success());
    let before = fs::read(dir.join("a.safetensors")).expect("it was written");
    for (more, words) in [
        (&["-o", "letters.aqt"][..], "got the input letters.aqt"),
        (&["-o", "link.png"], "output link.png: expected a file that is not an input, got the input letters.aqt"),
        (&["-o", "pipe"], "output pipe: expected a file in a directory that exists, got a pipe"),
        (&["-o", "/dev/null"], "got a device"),
        (&["-o", "."], "got a directory"),
        (&["-o", "a.png", "--init-image", "a.png"], "got the input a.png"),
        (&["-o", "b.png", "--outputs", "letters.aqt"], "got the input letters.aqt"),
    ] {
        let output = aquatint(&dir, &[&first[..], more].concat()).output().expect("it starts");
        let err = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && err.contains(words) && err.lines().count() == 1, "{more:?}: {err}");
    }
    assert_eq!(fs::read(dir.join("a.safetensors")).expect("it was written"), before);
    assert_eq!(fs::read(dir.join("letters.aqt")).expect("it is there"), fs::read(model).expect("it is there"));
    assert_eq!(names(&dir), ["a.png", "a.safetensors", "letters.aqt", "link.png", "pipe"]);
}
