//! `aquatint serve` as a process: how it begins and ends.

use crate::run::*;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// A server that runs; killed if it still does in the end.
struct Serving {
    child: Child,
    address: String,
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn serve(args: &[&str]) -> Serving {
    let dir = directory("serve");
    let mut command = program(&dir, &[&["serve", "--port", "0", "--device", "cpu"], args].concat());
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("it starts");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut line).expect("a line");
    let address = line.split("http://").nth(1).and_then(|rest| rest.split(' ').next());
    let address = address.unwrap_or_else(|| panic!("no address in {line:?}")).to_owned();
    Serving { child, address }
}

/// The whole answer.
fn ask(address: &str, request: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.write_all(request.as_bytes()).expect("it reads");
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    answer
}

fn post(address: &str, body: &str) -> String {
    let head = "POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n";
    ask(address, &format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()))
}

#[test]
fn a_server_begins_at_once_and_makes_pictures() {
    let begun = Instant::now();
    let serving = serve(&[]);
    let answer = ask(&serving.address, "GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"ok\""), "{answer}");
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    let answer = post(&serving.address, r#"{"prompt": "A", "steps": 1, "seed": 1}"#);
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("b64_json"), "{answer}");
}

/// A signal lets the step at work end, cancels the rest, and is no failure.
#[cfg(unix)]
#[test]
fn a_server_that_is_told_to_end_ends_in_order() {
    let mut serving = serve(&["--threads", "1"]);
    let address = serving.address.clone();
    let waiting = std::thread::spawn(move || post(&address, r#"{"prompt": "A", "steps": 150, "n": 64}"#));
    std::thread::sleep(Duration::from_millis(500));
    let pid = serving.child.id().to_string();
    assert!(std::process::Command::new("kill").args(["-TERM", &pid]).status().expect("it starts").success());
    let begun = Instant::now();
    let status = serving.child.wait().expect("it ends");
    assert_eq!(status.code(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());
    let answer = waiting.join().expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 409") && answer.contains("cancelled"), "{answer}");
}

#[test]
fn what_would_let_others_in_is_refused() {
    let dir = directory("serve-refused");
    let expected =
        "expected a token (--token-file or AQUATINT_TOKEN) beyond this machine, or --no-auth to let everybody in";
    for host in ["0.0.0.0", "::", "192.168.0.1"] {
        let ran = finish(program(&dir, &["serve", "--host", host]).env_remove("AQUATINT_TOKEN"));
        assert_eq!(ran.code, Some(2));
        assert!(ran.err.contains(expected), "{}", ran.err);
    }
    std::fs::write(dir.join("token"), "short\n").expect("a file");
    for (args, expected) in [
        (&["serve", "--token-file", "token"][..], "at least 8 characters"),
        (&["serve", "--token-file", "none"], "none"),
        (&["serve", "none.aqt"], "none.aqt"),
        (&["serve", "--threads", "0"], "threads"),
    ] {
        let ran = finish(&mut program(&dir, args));
        assert!(
            ran.code == Some(2) && ran.err.contains(expected) && ran.err.lines().count() == 1,
            "{args:?}: {}",
            ran.err
        );
    }
}
