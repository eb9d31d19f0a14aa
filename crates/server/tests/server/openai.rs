//! OpenAI's images API.

use crate::client::*;
use aquatint::image::{Picture, ResizeMode};
use aquatint::options::InitOptions;
use aquatint_server::Settings;
use serde_json::json;

#[test]
fn pictures_are_those_of_the_command_line() {
    let server = start(Settings::default());
    let ask = json!({
        "model": "letters", "prompt": "Q", "n": 3, "size": "auto", "response_format": "b64_json", "seed": 7, "steps": 3,
        "guidance_scale": 3.0, "user": "someone", "quality": null,
    });
    let reply = server.post("/v1/images/generations", ask).ok();
    assert!(reply["created"].as_u64() > Some(1_700_000_000));
    let data = reply["data"].as_array().expect("a list");
    assert_eq!(data.len(), 3);
    for (k, datum) in data.iter().enumerate() {
        let png = bytes(&datum["b64_json"]);
        assert_eq!(datum["seed"], 7 + k as u64);
        assert!(
            png == expected("Q", 7 + k as u64, 3, |options| options.sampling.cfg_scale = Some(3.0), &png),
            "picture {k}"
        );
    }
}

/// Twenty pictures are made eight at a time; nothing shows where one part ended.
#[test]
fn many_pictures_are_each_their_own() {
    let server = start(Settings::default());
    let reply = server.post("/v1/images/generations", json!({ "prompt": "B", "n": 20, "seed": 1, "steps": 2 })).ok();
    let data = reply["data"].as_array().expect("a list");
    assert_eq!(data.len(), 20);
    for k in [0, 7, 8, 19] {
        let png = bytes(&data[k]["b64_json"]);
        assert!(png == expected("B", 1 + k as u64, 2, |_| {}, &png), "picture {k}");
    }
}

/// A negative prompt counts where there is guidance; clients send empty ones, and send them without guidance too.
#[test]
fn negative_prompts_count_with_guidance() {
    let server = start(Settings::default());
    let png = |negative: Option<&str>, scale: f32| {
        let ask = json!({
            "model": "tiny", "prompt": "a red cat", "negative_prompt": negative, "guidance_scale": scale, "seed": 2, "steps": 3,
        });
        bytes(&server.post("/v1/images/generations", ask).ok()["data"][0]["b64_json"])
    };
    let with = png(Some("fog"), 4.0);
    let change = |options: &mut aquatint::options::RequestOptions| {
        options.sampling.cfg_scale = Some(4.0);
        options.prompts.negatives = vec!["fog".into()];
    };
    assert!(with == expected_of(tiny(), "a red cat", 2, 3, change, &with));
    assert_eq!(png(Some(""), 4.0), png(None, 4.0));
    assert_ne!(png(None, 4.0), with);
    assert_eq!(png(Some("fog"), 1.0), png(None, 1.0));
}

#[test]
fn a_stream_has_an_event_for_each_picture() {
    let server = start(Settings::default());
    let ask = json!({ "prompt": "A", "n": 2, "stream": true, "partial_images": 2, "seed": 1, "steps": 2 });
    let reply = server.post("/v1/images/generations", ask);
    assert_eq!(reply.status, 200);
    assert_eq!(reply.header("content-type"), Some("text/event-stream"));
    let events = reply.events();
    assert_eq!(events.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["image_generation.completed"; 2]);
    for (name, data) in &events {
        assert_eq!(data["type"], *name);
        for key in ["b64_json", "created_at", "size", "quality", "background", "output_format", "usage"] {
            assert!(data.get(key).is_some(), "no {key}");
        }
    }
}

#[test]
fn pictures_come_as_files_of_several_kinds() {
    let server = start(Settings::default());
    for (format, magic) in [("png", &b"\x89PNG"[..]), ("jpeg", b"\xff\xd8"), ("webp", b"RIFF")] {
        let ask = json!({ "prompt": "A", "output_format": format, "output_compression": 80, "steps": 1, "response_format": "url" });
        let reply = server.post("/v1/images/generations", ask).ok();
        let url = reply["data"][0]["url"].as_str().expect("a URL").to_owned();
        let data = url.strip_prefix(&format!("data:image/{format};base64,")).expect("a data URL");
        assert!(bytes(&data.into()).starts_with(magic), "{format}");
    }
}

/// A form as OpenAI's clients send it.
fn form(parts: &[(&str, Option<&str>, &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (name, file, bytes) in parts {
        let file = file.map(|file| format!("; filename=\"{file}\"\r\nContent-Type: image/png")).unwrap_or_default();
        body.extend(format!("--edge\r\nContent-Disposition: form-data; name=\"{name}\"{file}\r\n\r\n").bytes());
        body.extend(*bytes);
        body.extend(b"\r\n");
    }
    body.extend(b"--edge--\r\n");
    body
}

/// Opacity 0 is where OpenAI's masks want something new; white is where this program's do.
#[test]
fn edits_take_a_picture_and_a_mask_by_its_opacity() {
    let server = start(Settings::default());
    let first = server
        .post("/v1/images/generations", json!({ "model": "tiny", "prompt": "a dog", "seed": 1, "steps": 4 }))
        .ok();
    let picture = bytes(&first["data"][0]["b64_json"]);
    let [h, w] = Picture::from_bytes(&picture, "it", u64::MAX).expect("a picture").size();
    let half = |clear: [u8; 4], kept: [u8; 4], channels: usize| {
        let pixels =
            (0..h * w).flat_map(|i| if i % w < w / 2 { clear } else { kept }.into_iter().take(channels)).collect();
        let image = aquatint::image::Image::new(w as u32, h as u32, channels, pixels);
        aquatint::image::to_bytes(&image, Default::default(), &[]).expect("a mask")
    };
    let mask = half([9, 9, 9, 0], [9, 9, 9, 255], 4);
    let body = form(&[
        ("model", None, b"tiny"),
        ("prompt", None, b"a red cat"),
        ("seed", None, b"5"),
        ("steps", None, b"4"),
        ("image[]", Some("../../a.png"), &picture),
        ("mask", Some("m.png"), &mask),
    ]);
    let headers = [("Content-Type", "multipart/form-data; boundary=edge")];
    let reply = server.send("POST", "/v1/images/edits", &headers, &body).ok();
    let png = bytes(&reply["data"][0]["b64_json"]);
    let white = half([255; 4], [0; 4], 3);
    let read = |bytes: &[u8]| Picture::from_bytes(bytes, "it", u64::MAX).expect("a picture");
    let init = InitOptions {
        image: read(&picture),
        mask: Some(read(&white)),
        resize: Some(ResizeMode::Stretch),
        strength: None,
    };
    assert!(png == expected_of(tiny(), "a red cat", 5, 4, |options| options.init = Some(init), &png));

    // The same as JSON.
    let url = |bytes: &[u8]| {
        use base64::Engine as _;
        format!("data:image/png;base64,{}", base64::engine::general_purpose::STANDARD.encode(bytes))
    };
    let ask = json!({
        "model": "tiny", "prompt": "a red cat", "seed": 5, "steps": 4, "images": [{ "image_url": url(&picture) }],
        "mask": { "image_url": url(&mask) },
    });
    assert_eq!(bytes(&server.post("/v1/images/edits", ask).ok()["data"][0]["b64_json"]), png);

    let letters = server.post("/v1/images/edits", json!({ "prompt": "B", "image": url(&picture) })).error(400);
    assert!(letters.contains("image encoder"), "{letters}");
    let none = server.post("/v1/images/edits", json!({ "prompt": "B" })).error(400);
    assert!(none.contains("expected one picture, got 0"), "{none}");
}

#[test]
fn models_are_listed() {
    let server = start_idle(Settings::default());
    let list = server.get("/v1/models").ok();
    assert_eq!(list["object"], "list");
    let ids: Vec<_> = list["data"].as_array().expect("a list").iter().map(|model| model["id"].clone()).collect();
    assert_eq!(ids, ["letters", "again", "tiny"]);
    for key in ["object", "created", "owned_by"] {
        assert!(list["data"][0].get(key).is_some(), "no {key}");
    }
    assert_eq!(server.get("/v1/models/again").ok()["id"], "again");
    server.get("/v1/models/other").error(404);
}

#[test]
fn what_is_wrong_is_said_in_their_shape() {
    let server = start(Settings::default());
    let cases = [
        (json!({}), 400, "prompt: expected a text"),
        (json!({ "prompt": 5 }), 400, "prompt: expected a text, got 5"),
        (json!({ "prompt": "A", "n": 0 }), 400, "n: expected 1 to 64"),
        (json!({ "prompt": "A", "n": "many" }), 400, "n: expected a number"),
        (json!({ "prompt": "A", "n": 1.5 }), 400, "n: expected a whole number"),
        (json!({ "prompt": "A", "size": "big" }), 400, "size: expected WIDTHxHEIGHT or auto"),
        (json!({ "prompt": "A", "size": "100000x100000" }), 400, "width: expected at most 2048"),
        (json!({ "prompt": "A", "size": "0x0" }), 400, "height"),
        (json!({ "prompt": "A", "steps": 1000 }), 400, "steps: expected 1 to 150"),
        (json!({ "prompt": "A", "steps": -1 }), 400, "steps: expected 0 or more"),
        (json!({ "prompt": "A", "sampler": "nothing" }), 400, "sampler"),
        (json!({ "prompt": "A", "guidance_scale": "1e999" }), 400, "guidance_scale: expected a number"),
        (json!({ "prompt": "unknown letter" }), 400, "class"),
        (json!({ "prompt": "" }), 400, "prompt: expected a class such as"),
        (json!({ "prompt": "A", "model": "sdxl" }), 404, "expected one of letters, again"),
        (json!({ "prompt": "A", "background": "transparent" }), 400, "background"),
        (json!({ "prompt": "A", "output_format": "tiff" }), 400, "output_format: expected png, jpeg or webp"),
        (json!({ "prompt": "A", "image": "x" }), 400, "/v1/images/edits"),
        (json!({ "prompt": "A", "stepps": 3 }), 400, "unknown field \"stepps\""),
    ];
    for (ask, status, expected) in cases {
        let message = server.post("/v1/images/generations", ask.clone()).error(status);
        assert!(message.contains(expected), "{ask}: {message}");
    }
    let json = [("Content-Type", "application/json")];
    for body in ["{", "[1]", "nonsense", "{\"prompt\": \"\u{0}\"}", "{\"prompt\":\"A\"} {}"] {
        server.send("POST", "/v1/images/generations", &json, body.as_bytes()).error(400);
    }
    assert!(server.log().is_empty(), "{:?}", server.log());
    // Clients that were made for OpenAI's models send their names.
    assert_eq!(
        server.post("/v1/images/generations", json!({ "prompt": "A", "model": "gpt-image-1", "steps": 1 })).status,
        200
    );
}
