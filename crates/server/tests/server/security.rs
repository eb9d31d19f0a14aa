//! What other image servers were attacked with. Each test says where.

use crate::client::*;
use aquatint_server::{Limits, Settings};
use serde_json::json;
use std::io::{BufReader, Read, Write};
use std::time::{Duration, Instant};

const ASK: &str = r#"{"prompt": "A", "steps": 1}"#;
const JSON: (&str, &str) = ("Content-Type", "application/json");
const GENERATE: &str = "/v1/images/generations";

/// ComfyUI CVE-2024-10481: any page could make a browser post to this machine.
#[test]
fn pages_of_other_origins_are_refused() {
    let server = start(Settings::default());
    for headers in [
        vec![("Origin", "https://evil.example")],
        vec![("Origin", "http://127.0.0.1:1")],
        vec![("Origin", "http://localhost")],
        vec![("Sec-Fetch-Site", "cross-site")],
        vec![("Sec-Fetch-Site", "same-site")],
        vec![("Origin", "")],
        vec![("Origin", "file://")],
    ] {
        for place in [GENERATE, "/sdapi/v1/txt2img", "/sdapi/v1/interrupt", "/v1/jobs"] {
            let all: Vec<_> = headers.iter().copied().chain([JSON]).collect();
            server.send("POST", place, &all, ASK.as_bytes()).error(403);
        }
    }
    let own = format!("http://{}", server.address);
    let reply =
        server.send("POST", GENERATE, &[("Origin", &own), ("Sec-Fetch-Site", "same-origin"), JSON], ASK.as_bytes());
    assert_eq!(reply.status, 200, "{}", reply.text());
}

/// ComfyUI #13245 and CVE-2026-56674: the origin of a sandboxed frame, `null`, passed for none.
#[test]
fn an_origin_of_null_is_another() {
    let server = start_idle(Settings::default());
    server.send("POST", GENERATE, &[("Origin", "null"), JSON], ASK.as_bytes()).error(403);
    server.send("GET", "/v1/models", &[("Origin", "null")], b"").error(403);
}

/// ComfyUI #12860: a page's own name, bound to this address.
#[test]
fn names_that_are_not_ours_are_refused() {
    let server = start_idle(Settings { hosts: vec!["images.example".into()], ..Settings::default() });
    for host in [
        "evil.example",
        "evil.example:7860",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "[::2]",
        "",
        "10.0.0.1",
    ] {
        let origin = format!("http://{host}");
        server.send("POST", GENERATE, &[("Host", host), ("Origin", &origin), JSON], ASK.as_bytes()).error(421);
    }
    for host in ["localhost", "LOCALHOST:7860", "127.0.0.1:1", "[::1]:7860", "images.example"] {
        assert_eq!(server.send("GET", "/v1/models", &[("Host", host)], b"").status, 200, "{host}");
    }
    server.send("GET", "/v1/models", &[("Host", "localhost"), ("Host", "evil.example")], b"");
}

/// Simple requests need no preflight: forms and plain text are refused by their type.
#[test]
fn bodies_of_forms_are_refused() {
    let server = start_idle(Settings::default());
    for kind in ["text/plain", "application/x-www-form-urlencoded", "", "text/json", "application/jsonx"] {
        server.send("POST", GENERATE, &[("Content-Type", kind)], ASK.as_bytes()).error(415);
    }
    server.send("POST", GENERATE, &[], ASK.as_bytes()).error(415);
}

/// stable-diffusion.cpp's server lets every origin read, with credentials.
#[test]
fn no_origin_may_read_unless_it_was_named() {
    let server = start_idle(Settings { origins: vec!["https://chat.example".into()], ..Settings::default() });
    let plain = server.get("/v1/models");
    let preflight = [("Origin", "https://evil.example"), ("Access-Control-Request-Method", "POST")];
    let refused = server.send("OPTIONS", GENERATE, &preflight, b"");
    assert_eq!(refused.status, 403);
    for reply in [&plain, &refused] {
        assert!(reply.header("access-control-allow-origin").is_none());
    }
    let named = [("Origin", "https://chat.example"), ("Access-Control-Request-Method", "POST")];
    let allowed = server.send("OPTIONS", GENERATE, &named, b"");
    assert_eq!((allowed.status, allowed.header("access-control-allow-origin")), (204, Some("https://chat.example")));
    assert!(allowed.header("access-control-allow-credentials").is_none());
    let reply = server.send("GET", "/v1/models", &named[..1], b"");
    assert_eq!((reply.status, reply.header("access-control-allow-origin")), (200, Some("https://chat.example")));
}

/// ComfyUI CVE-2026-56670 to 56673: what is served was sniffed and framed.
#[test]
fn answers_are_not_sniffed_or_framed() {
    let server = start_idle(Settings::default());
    for path in ["/health", "/v1/models", "/nowhere", "/sdapi/v1/options", "/v1/images/generations"] {
        let reply = server.get(path);
        assert_eq!(reply.header("x-content-type-options"), Some("nosniff"), "{path}");
        let policy = reply.header("content-security-policy").expect("a policy");
        assert!(policy.contains("default-src 'self'") && policy.contains("frame-ancestors 'none'"), "{path}");
        assert!(reply.header("content-type").is_none_or(|kind| kind.starts_with("application/json")), "{path}");
    }
    // The page is ours alone: no script or style stands in it, and nothing is loaded from elsewhere.
    let page = server.get("/");
    assert!(page.header("content-security-policy").is_some_and(|policy| policy.contains("default-src 'self'")));
    let text = page.text();
    for fault in ["<style", "style=", "onclick", "http://", "https://", "//cdn"] {
        assert!(!text.contains(fault), "{fault}");
    }
}

/// LocalAI CVE-2024-6095, A1111's api_enable_requests: the server was made to fetch.
#[test]
fn nothing_is_fetched() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.set_nonblocking(true).expect("it can be asked");
    let url = format!("http://{}/a.png", listener.local_addr().expect("an address"));
    let server = start_idle(Settings::default());
    for url in [url.as_str(), "https://example.org/a.png", "file:///etc/passwd", "data:text/plain,x", "ftp://x/y"] {
        let message = server.post("/v1/images/edits", json!({ "prompt": "A", "image": url })).error(400);
        assert!(message.contains("nothing is fetched"), "{url}: {message}");
        let message = server.post("/v1/jobs", json!({ "prompt": "A", "image": url })).error(400);
        assert!(message.contains("nothing is fetched"), "{url}: {message}");
        let reply = server.post("/sdapi/v1/img2img", json!({ "prompt": "A", "init_images": [url] }));
        assert_eq!(reply.status, 400, "{url}");
    }
    assert!(listener.accept().is_err(), "somebody called");
    // A file's id means nothing here.
    server.post("/v1/images/edits", json!({ "prompt": "A", "images": [{ "file_id": "x" }] })).error(400);
}

/// InvokeAI CVE-2024-12029, CVE-2025-6237, A1111 CVE-2024-31462: names in requests became paths.
#[test]
fn no_field_is_a_path() {
    let server = start_idle(Settings::default());
    for name in ["/etc/passwd", "../letters", "letters/../../x", "http://x/m.safetensors", "models/glyphs-w4a8.aqt"] {
        server.post(GENERATE, json!({ "prompt": "A", "model": name })).error(404);
        assert_eq!(server.post("/sdapi/v1/options", json!({ "sd_model_checkpoint": name })).status, 404);
    }
    for path in [
        "/../../etc/passwd",
        "/..%2f..%2fetc%2fpasswd",
        "/v1/jobs/..%2f..%2fx",
        "/v1/models/%2e%2e",
        "//etc/passwd",
        "/v1/jobs/%ff",
        "/v1/models/%00",
    ] {
        server.get(path).error(404);
    }
}

/// InvokeAI CVE-2024-11043, python-multipart CVE-2026-42561, axum GHSA-m77f-652q-wwp4: bodies without an end.
#[test]
fn bodies_have_an_end() {
    let limits = Limits { body: 10_000, ..Limits::default() };
    let server = start_idle(Settings { limits, ..Settings::default() });
    let long = json!({ "prompt": "A".repeat(20_000) }).to_string();
    for place in [GENERATE, "/v1/jobs", "/sdapi/v1/txt2img", "/v1/estimate", "/sdapi/v1/png-info"] {
        assert_eq!(server.send("POST", place, &[JSON], long.as_bytes()).status, 413, "{place}");
    }
    // One that does not say how long it is.
    let mut stream = server.open();
    let head = format!(
        "POST {GENERATE} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).expect("it is read");
    for _ in 0..20 {
        let _ = stream.write_all(format!("{:x}\r\n{}\r\n", 1000, " ".repeat(1000)).as_bytes());
    }
    assert_eq!(read(&mut BufReader::new(stream)).status, 413);
    // Forms: too long, too many parts, names too long, no end, no edge.
    let kind = ("Content-Type", "multipart/form-data; boundary=edge");
    let part = |name: &str, value: &str| {
        format!("--edge\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n")
    };
    let end = "--edge--\r\n";
    let wrong = [
        (part("prompt", &"A".repeat(20_000)) + end, 413),
        ((0..70).map(|i| part(&format!("f{i}"), "")).collect::<String>() + end, 400),
        (part(&"n".repeat(100), "A") + end, 400),
        (part("prompt", "A"), 400),
        ("nonsense".into(), 400),
    ];
    for (body, status) in wrong {
        let reply = server.send("POST", "/v1/images/edits", &[kind], body.as_bytes());
        assert_eq!(reply.status, status, "{}: {}", &body[..body.len().min(80)], reply.text());
    }
    let no_edge = [("Content-Type", "multipart/form-data")];
    server.send("POST", "/v1/images/edits", &no_edge, b"x").error(400);
}

/// A small file that would be an enormous picture.
#[test]
fn image_bombs_are_not_decoded() {
    let server = start_idle(Settings::default());
    let mut bomb = Vec::new();
    let mut encoder = png::Encoder::new(&mut bomb, 30_000, 30_000);
    encoder.set_color(png::ColorType::Grayscale);
    let mut writer = encoder.write_header().expect("a header");
    writer.write_chunk(png::chunk::IDAT, &[0; 16]).expect("nothing in it");
    drop(writer);
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(&bomb);
    let begun = Instant::now();
    let message = server.post("/v1/jobs", json!({ "prompt": "A", "image": text })).error(400);
    assert!(message.contains("pixels") && message.contains("30000 x 30000"), "{message}");
    assert!(begun.elapsed() < Duration::from_secs(5));
    for junk in ["", "AAAA", "not base64!", "data:image/png;base64,", "data:image/svg+xml;base64,PHN2Zy8+"] {
        server.post("/v1/jobs", json!({ "prompt": "A", "image": junk })).error(400);
    }
}

/// koboldcpp #1833, easydiffusion #1110: enormous sizes ended the process.
#[test]
fn sizes_are_checked_before_anything_is_made() {
    let server = start_idle(Settings::default());
    for ask in [
        json!({ "prompt": "A", "width": 1u64 << 40, "height": 64 }),
        json!({ "prompt": "A", "width": u64::MAX, "height": u64::MAX }),
        json!({ "prompt": "A", "n": u64::MAX }),
        json!({ "prompt": "A", "steps": u64::MAX }),
        json!({ "prompt": "A", "width": -8 }),
        json!({ "prompt": "A", "guidance_scale": 1e300 }),
        json!({ "prompt": "A".repeat(40_000) }),
    ] {
        server.post("/v1/jobs", ask).error(400);
    }
    let nested = "[".repeat(100_000);
    server.send("POST", "/v1/jobs", &[JSON], nested.as_bytes()).error(400);
}

/// The token is compared as a whole; every place but the one that tells whether the server is there asks for it.
#[test]
fn without_the_token_nothing_is_told() {
    let server = start(Settings { token: Some("correct horse".into()), ..Settings::default() });
    use base64::Engine as _;
    let basic = |text: &str| format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(text));
    let wrong = ["Bearer correct hors", "Bearer correct horse2", "Bearer", "correct horse", "", "Digest correct horse"];
    let wrong =
        wrong.map(str::to_owned).into_iter().chain([basic("user:wrong"), basic("correct horse:"), "Basic !".into()]);
    for given in wrong {
        for place in ["/v1/models", "/metrics", "/sdapi/v1/options", "/nowhere"] {
            let reply = server.send("GET", place, &[("Authorization", &given)], b"");
            assert_eq!((reply.status, reply.header("www-authenticate").is_some()), (401, true), "{given}: {place}");
        }
    }
    server.get("/v1/models").error(401);
    // The page asks for it.
    assert_eq!(server.get("/").status, 200);
    for right in [
        "Bearer correct horse".to_owned(),
        "bearer  correct horse ".into(),
        basic("anybody:correct horse"),
        basic("correct horse"),
    ] {
        assert_eq!(server.send("GET", "/v1/models", &[("Authorization", &right)], b"").status, 200, "{right}");
    }
}

/// Clients that never finish their head, or never begin (slowloris), lose their connection.
#[test]
fn slow_heads_are_given_up() {
    let server = start_idle(Settings::default());
    let mut idle = server.open();
    let mut slow = server.open();
    slow.write_all(b"GET /health HTTP/1.1\r\nHost: loc").expect("it is read");
    let begun = Instant::now();
    for stream in [&mut slow, &mut idle] {
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
        assert!(rest.is_empty() || rest.starts_with(b"HTTP/1.1 408"), "{}", String::from_utf8_lossy(&rest));
    }
    assert!((5..30).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
    assert_eq!(server.get("/health").status, 200);
}

/// What a client sent, and where files lie, stands in no answer and in no log.
#[test]
fn answers_and_logs_keep_secrets() {
    let server = start(Settings::default());
    server.post(GENERATE, json!({ "prompt": "a secret wish" })).error(400);
    server.post(GENERATE, json!({ "prompt": "A", "steps": 1 })).ok();
    server.post("/sdapi/v1/txt2img", json!({ "prompt": "another secret" }));
    assert!(server.log().is_empty(), "{:?}", server.log());
    let models = server.get("/sdapi/v1/sd-models").ok();
    assert_eq!(models[0]["filename"], "letters.aqt");
}

/// A client that goes away wants nothing any more (koboldcpp #2318); others are served.
#[test]
fn clients_that_leave_free_their_place() {
    let server = start(Settings::default());
    for place in [GENERATE, "/sdapi/v1/txt2img"] {
        let long = json!({ "prompt": "A", "steps": 150, "n": 64, "batch_size": 64 });
        let mut long = long;
        if place == GENERATE {
            long.as_object_mut().expect("an object").remove("batch_size");
        }
        let mut stream = server.open();
        write(&mut stream, server.address, "POST", place, &[JSON], long.to_string().as_bytes());
        while server.get("/sdapi/v1/progress").ok()["state"]["sampling_step"] == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        drop(stream);
        let begun = Instant::now();
        server.post(GENERATE, json!({ "prompt": "B", "steps": 1 })).ok();
        assert!(begun.elapsed() < Duration::from_secs(30), "{place}");
    }
    let metrics = server.get("/metrics").text();
    assert!(metrics.contains("aquatint_jobs_total{end=\"cancelled\"} 2"), "{metrics}");
}
