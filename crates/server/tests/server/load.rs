//! Many clients at a time.

use crate::client::*;
use aquatint_server::{Limits, Settings};
use serde_json::json;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Every picture is that of its own request, whatever else waits; nothing is lost.
#[test]
fn pictures_do_not_depend_on_what_else_is_asked() {
    const CLIENTS: usize = 16;
    const JOBS: usize = 3;
    let server = start(Settings::default());
    let expected: Vec<_> = (0..CLIENTS * JOBS).map(|k| (["A", "B", "C", "D", "E"][k % 5], k as u64)).collect();
    let done = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (server, expected, done) = (&server, &expected, &done);
            scope.spawn(move || {
                for job in 0..JOBS {
                    let (label, seed) = expected[client * JOBS + job];
                    let ask = json!({ "prompt": label, "seed": seed, "steps": 2, "n": 1 + seed % 3 });
                    let reply = server.post("/v1/images/generations", ask).ok();
                    let png = bytes(&reply["data"][0]["b64_json"]);
                    assert!(png == crate::client::expected(label, seed, 2, |_| {}, &png), "{label} {seed}");
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    assert_eq!(done.into_inner(), CLIENTS * JOBS);
    let metrics = server.get("/metrics").text();
    assert!(metrics.contains(&format!("aquatint_jobs_total{{end=\"done\"}} {}", CLIENTS * JOBS)), "{metrics}");
}

/// More connections than there is room for wait for a place.
#[test]
fn connections_wait_for_a_place() {
    let limits = Limits { connections: 4, ..Limits::default() };
    let server = start(Settings { limits, ..Settings::default() });
    std::thread::scope(|scope| {
        for _ in 0..32 {
            scope.spawn(|| assert_eq!(server.get("/health").status, 200));
        }
    });
}

/// Told to end, the server answers what waits with an error and stops listening.
#[test]
fn told_to_end_it_ends() {
    let server = start(Settings::default());
    let address = server.address;
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    server.post("/v1/images/generations", json!({ "prompt": "A", "steps": 150, "n": 64 })).status
                })
            })
            .collect();
        while server.get("/health").ok()["waiting"] != 3 {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        server.stop.stop();
        for client in clients {
            assert!([409, 503].contains(&client.join().expect("an answer")));
        }
    });
    server.end();
    assert!(std::net::TcpStream::connect(address).is_err());
}
