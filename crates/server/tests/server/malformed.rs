//! Requests changed at random: JSON, forms, base64, pictures and headers. Nothing may stop the server, hang, or be refused without
//! a cause.
//!
//! `AQUATINT_MALFORMED=1000000 cargo test --release -p aquatint-server --test server malformed` sends a million.

use crate::client::*;
use aquatint_server::{Limits, Settings};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fastrand::Rng;
use serde_json::{Value, json};
use std::io::{BufReader, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// Requests in a run of all tests.
const FEW: usize = 4_000;
/// Clients at a time.
const CLIENTS: usize = 4;
/// Requests after which a client opens a new connection.
const PER_CONNECTION: usize = 50;

/// A request before it is changed.
#[derive(Clone)]
struct Sound {
    method: &'static str,
    path: &'static str,
    kind: &'static str,
    body: Vec<u8>,
}

fn sound(rng: &mut Rng, png: &[u8]) -> Sound {
    let text = STANDARD.encode(png);
    let url = format!("data:image/png;base64,{text}");
    let json =
        |path, body: Value| Sound { method: "POST", path, kind: "application/json", body: body.to_string().into() };
    match rng.u8(..12) {
        0 => json(
            "/v1/images/generations",
            json!({ "prompt": "A", "n": 1, "size": "auto", "seed": 3, "steps": 1, "model": "letters" }),
        ),
        1 => json(
            "/v1/images/generations",
            json!({ "prompt": "A", "stream": true, "partial_images": 1, "steps": 1, "output_format": "webp" }),
        ),
        2 => json(
            "/v1/images/edits",
            json!({ "model": "tiny", "prompt": "a dog", "images": [{ "image_url": url }], "steps": 1, "strength": 0.5 }),
        ),
        3 => json(
            "/sdapi/v1/txt2img",
            json!({ "prompt": "A", "steps": 1, "cfg_scale": 2.5, "sampler_name": "Euler a", "scheduler": "karras", "override_settings": {} }),
        ),
        4 => json(
            "/sdapi/v1/img2img",
            json!({ "prompt": "a dog", "init_images": [text], "mask": text, "steps": 1, "override_settings": { "sd_model_checkpoint": "tiny" } }),
        ),
        5 => json("/sdapi/v1/png-info", json!({ "image": text })),
        6 => json("/sdapi/v1/options", json!({ "sd_model_checkpoint": "letters", "CLIP_stop_at_last_layers": 1 })),
        7 => json("/v1/estimate", json!({ "prompt": "A", "width": 64, "height": 64, "n": 2, "steps": 2 })),
        8 => json(
            "/v1/jobs",
            json!({ "model": "tiny", "prompt": "a red cat", "image": url, "mask": text, "resize_mode": "crop", "format": "jpeg", "quality": 80, "steps": 1 }),
        ),
        9 => Sound { method: "GET", path: "/v1/jobs/job-1-00000000", kind: "", body: Vec::new() },
        10 => {
            let mut body = Vec::new();
            for (name, file, bytes) in [
                ("prompt", "", &b"a dog"[..]),
                ("model", "", b"tiny"),
                ("image", "; filename=\"a.png\"", png),
                ("steps", "", b"1"),
            ] {
                body.extend(format!("--edge\r\nContent-Disposition: form-data; name=\"{name}\"{file}\r\n\r\n").bytes());
                body.extend(bytes);
                body.extend(b"\r\n");
            }
            body.extend(b"--edge--\r\n");
            Sound { method: "POST", path: "/v1/images/edits", kind: "multipart/form-data; boundary=edge", body }
        }
        _ => Sound { method: "GET", path: "/sdapi/v1/progress", kind: "", body: Vec::new() },
    }
}

/// Changes a few bytes.
fn change_bytes(rng: &mut Rng, bytes: &mut Vec<u8>) {
    for _ in 0..rng.usize(1..4) {
        let at = rng.usize(..bytes.len() + 1);
        let end = (at + rng.usize(..16)).min(bytes.len());
        match rng.u8(..5) {
            0 if at < bytes.len() => bytes[at] ^= 1 << rng.u8(..8),
            1 => _ = bytes.drain(at..end),
            2 => bytes.truncate(at),
            3 => {
                let copy = bytes[at..end].to_vec();
                bytes.splice(at..at, copy);
            }
            _ => {
                let junk: Vec<u8> = (0..rng.usize(..8)).map(|_| rng.u8(..)).collect();
                bytes.splice(at..at, junk);
            }
        }
    }
}

/// Puts another value in the place of one.
fn change_value(rng: &mut Rng, value: &mut Value) {
    match value {
        Value::Object(map) if !map.is_empty() && rng.u8(..8) > 0 => {
            let at = rng.usize(..map.len());
            change_value(rng, map.values_mut().nth(at).expect("one of them"));
        }
        Value::Array(list) if !list.is_empty() && rng.u8(..4) > 0 => {
            let at = rng.usize(..list.len());
            change_value(rng, &mut list[at]);
        }
        other => {
            let values = [
                json!(null),
                json!(-1),
                json!(0),
                json!(1e308),
                json!(u64::MAX),
                json!(i64::MIN),
                json!(1.5),
                json!("0"),
                json!("-0"),
                json!("nan"),
                json!("inf"),
                json!(""),
                json!("\u{0}\u{fffe}\u{1f600}"),
                json!("a".repeat(3000)),
                json!([]),
                json!({}),
                json!(true),
                json!([[[]]]),
                json!("http://127.0.0.1:1/a"),
                json!("../../x"),
                json!("data:;base64,"),
                json!("1x1"),
                json!("9x"),
                json!("0x0"),
                json!("((((((A:1.1):9)"),
                json!("<lora:x:1>"),
                json!("DDIM"),
                json!("4294967296x4294967296"),
            ];
            *other = rng.choice(values).expect("there are some");
        }
    }
}

fn changed(rng: &mut Rng, png: &[u8]) -> (String, Vec<u8>) {
    let mut png = png.to_vec();
    if rng.u8(..4) == 0 {
        change_bytes(rng, &mut png);
    }
    let Sound { method, path, kind, mut body } = sound(rng, &png);
    match serde_json::from_slice::<Value>(&body) {
        Ok(mut value) if rng.bool() => {
            (0..rng.usize(1..3)).for_each(|_| change_value(rng, &mut value));
            body = value.to_string().into();
        }
        _ if rng.u8(..4) > 0 && !body.is_empty() => change_bytes(rng, &mut body),
        _ => {}
    }
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\n").into_bytes();
    if rng.u8(..10) == 0 {
        change_bytes(rng, &mut head);
    }
    head.extend(format!("Content-Length: {}\r\n\r\n", body.len()).bytes());
    (String::from_utf8_lossy(&head).into_owned(), [head, body].concat())
}

/// Statuses by which requests are answered here; 400 without a body is the protocol's own.
fn check(reply: &Reply, head: &str) {
    assert!(
        [200, 202, 204, 400, 403, 404, 405, 408, 409, 410, 413, 414, 415, 421, 422, 431, 501, 505]
            .contains(&reply.status),
        "{} to {head}: {}",
        reply.status,
        reply.text()
    );
    let fault_of_protocol = reply.body.is_empty() && [400, 405, 414, 431, 501, 505].contains(&reply.status);
    if reply.status >= 400 && !fault_of_protocol && !head.starts_with("HEAD") {
        let body = reply.json();
        let cause = body["error"]["message"].as_str().map(str::len).or(body["detail"].as_str().map(str::len));
        assert!(cause.is_some_and(|len| len > 0) || body["detail"].is_array(), "{} to {head}: {body}", reply.status);
    }
}

/// A few requests of a client, on one connection as long as it lasts; counts answers by the hundreds of their statuses, and, at 0, none.
fn client(server: &Running, seed: u64, count: usize, png: &[u8]) -> [usize; 6] {
    let mut rng = Rng::with_seed(seed);
    let mut seen = [0; 6];
    let mut connection: Option<(TcpStream, BufReader<TcpStream>)> = None;
    for k in 0..count {
        if k % PER_CONNECTION == 0 {
            connection = None;
        }
        let (writer, reader) = connection.get_or_insert_with(|| {
            let stream = server.open();
            (stream.try_clone().expect("a handle"), BufReader::new(stream))
        });
        let (head, bytes) = changed(&mut rng, png);
        // What was changed in the head may make the server wait for more than there is: it is told that nothing comes.
        let sure = head.starts_with("GET /") || head.starts_with("POST /");
        let whole = sure && head.contains(" HTTP/1.1\r\nHost: localhost\r\nContent-Type: ");
        let sent = writer.write_all(&bytes);
        if !whole {
            let _ = writer.shutdown(std::net::Shutdown::Write);
        }
        let reply = sent.ok().and_then(|()| try_read(reader));
        if let Some(reply) = &reply {
            check(reply, &head);
        }
        seen[reply.as_ref().map_or(0, |reply| usize::from(reply.status / 100))] += 1;
        let closes = reply.is_none_or(|reply| reply.header("connection") == Some("close"));
        if closes || !whole {
            connection = None;
        }
    }
    seen
}

#[test]
fn malformed_requests_are_answered_with_a_cause() {
    let count = std::env::var("AQUATINT_MALFORMED").map_or(FEW, |count| count.parse().expect("a number"));
    let limits = Limits { steps: 2, images: 2, side: 128, prompt: 2000, ..Limits::default() };
    let server = start(Settings { limits, ..Settings::default() });
    let first = server.post("/v1/images/generations", json!({ "model": "tiny", "prompt": "a dog", "steps": 1 })).ok();
    let png = bytes(&first["data"][0]["b64_json"]);
    let begun = Instant::now();
    let seen = std::thread::scope(|scope| {
        let (server, png) = (&server, &png);
        let clients: Vec<_> =
            (0..CLIENTS).map(|k| scope.spawn(move || client(server, k as u64, count / CLIENTS, png))).collect();
        let counts = clients.into_iter().map(|client| client.join().expect("no surprise"));
        counts.fold([0; 6], |sum, seen| std::array::from_fn(|i| sum[i] + seen[i]))
    });
    let [none, _, done, _, refused, _] = seen;
    println!("{count} requests in {:.1?}: {done} done, {refused} refused, {none} without an answer", begun.elapsed());
    // Those without are heads that broke off, or said that more was to come.
    assert!(none < count / 20 && done > count / 20 && refused > count / 5, "{seen:?}");
    // It still works, and nothing is left.
    let begun = Instant::now();
    while server.get("/health").ok()["waiting"] != 0 {
        assert!(begun.elapsed() < Duration::from_secs(60), "jobs are left");
        std::thread::sleep(Duration::from_millis(1));
    }
    server.post("/v1/images/generations", json!({ "model": "letters", "prompt": "A", "steps": 1 })).ok();
    assert!(server.log().is_empty(), "{:?}", server.log());
}
