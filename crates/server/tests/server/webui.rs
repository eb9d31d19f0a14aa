//! The Stable Diffusion web UI's API.

use crate::client::*;
use aquatint::infotext::Infotext;
use aquatint_server::Settings;
use serde_json::{Value, json};
use std::time::Duration;

#[test]
fn a_picture_comes_with_what_made_it() {
    let server = start(Settings::default());
    // What SillyTavern sends.
    let ask = json!({
        "prompt": "K", "negative_prompt": "blurry", "sampler_name": "DPM++ 2M", "scheduler": "karras", "steps": 4, "cfg_scale": 3,
        "width": 32, "height": 32, "restore_faces": false, "enable_hr": false, "hr_upscaler": null, "hr_scale": 2,
        "hr_second_pass_steps": 0, "denoising_strength": 0.7, "seed": 11,
        "override_settings": { "CLIP_stop_at_last_layers": 1, "sd_vae": null }, "clip_skip": 1, "save_images": true,
        "send_images": true, "url": "http://localhost", "auth": "",
    });
    let size = server.get("/sdapi/v1/options").ok();
    assert!(size["sd_model_checkpoint"].as_str().expect("a title").starts_with("letters.aqt ["));
    let [h, w] = crate::client::letters().latents.size.map(|n| n * crate::client::letters().latents.pixels);
    let mut ask = ask;
    (ask["width"], ask["height"]) = (w.into(), h.into());
    let reply = server.post("/sdapi/v1/txt2img", ask).ok();
    let png = bytes(&reply["images"][0]);
    let change = |options: &mut aquatint::options::RequestOptions| {
        options.sampling.cfg_scale = Some(3.0);
        options.sampling.sampler = Some("dpm++2m-karras".into());
    };
    assert!(png == expected("K", 11, 4, change, &png));
    let info: Value = serde_json::from_str(reply["info"].as_str().expect("a text")).expect("JSON in a text");
    assert_eq!((&info["seed"], &info["width"], &info["height"]), (&json!(11), &json!(w), &json!(h)));
    let text = Infotext::parse(info["infotexts"][0].as_str().expect("a text"));
    assert_eq!(
        (text.get("Sampler"), text.get("Schedule type"), text.get("Seed")),
        (Some("DPM++ 2M"), Some("Karras"), Some("11"))
    );
    assert_eq!(text.get("Model hash"), info["sd_model_hash"].as_str());
    assert_eq!(reply["parameters"]["prompt"], "K");

    // And the picture tells the same.
    let told = server.post("/sdapi/v1/png-info", json!({ "image": reply["images"][0] })).ok();
    assert_eq!(told["info"], info["infotexts"][0]);
    assert_eq!(told["parameters"]["Steps"], "4");
    assert_eq!(server.post("/sdapi/v1/png-info", json!({ "image": "AAAA" })).ok()["info"], "");
}

/// Automatic noise levels are those that the web UI has for the sampler.
#[test]
fn automatic_schedules_are_the_web_uis() {
    let server = start(Settings::default());
    for (sampler, schedule, expected) in [
        ("DPM++ 2M", json!("Automatic"), "Karras"),
        ("DPM++ 2M", json!(null), "Karras"),
        ("DPM++ 2M Karras", json!(null), "Karras"),
        ("DPM++ 2M", json!("uniform"), "Uniform"),
        ("Euler", json!("automatic"), "Uniform"),
        ("Euler", json!("SGM Uniform"), "SGM Uniform"),
        ("dpm++2m", json!("exponential"), "Exponential"),
    ] {
        let ask = json!({ "prompt": "K", "sampler_name": sampler, "scheduler": schedule, "steps": 2 });
        let info = server.post("/sdapi/v1/txt2img", ask).ok()["info"].as_str().expect("a text").to_owned();
        let info: Value = serde_json::from_str(&info).expect("JSON");
        let text = Infotext::parse(info["infotexts"][0].as_str().expect("a text"));
        assert_eq!(text.get("Schedule type"), Some(expected), "{sampler}, {schedule}");
    }
}

#[test]
fn batches_count_their_seeds() {
    let server = start(Settings::default());
    let reply = server
        .post("/sdapi/v1/txt2img", json!({ "prompt": "K", "batch_size": 2, "n_iter": 2, "seed": 3, "steps": 2 }))
        .ok();
    let info: Value = serde_json::from_str(reply["info"].as_str().expect("a text")).expect("JSON");
    assert_eq!(info["all_seeds"], json!([3, 4, 5, 6]));
    let images = reply["images"].as_array().expect("a list");
    for (k, image) in images.iter().enumerate() {
        let png = bytes(image);
        assert!(png == expected("K", 3 + k as u64, 2, |_| {}, &png), "picture {k}");
    }
    // A random seed is told.
    let reply =
        server.post("/sdapi/v1/txt2img", json!({ "prompt": "K", "seed": -1, "steps": 1, "send_images": false })).ok();
    assert_eq!(reply["images"], json!([]));
    let info: Value = serde_json::from_str(reply["info"].as_str().expect("a text")).expect("JSON");
    assert!(info["seed"].is_u64());
}

#[test]
fn a_picture_begins_with_another() {
    let server = start(Settings::default());
    server.post("/sdapi/v1/options", json!({ "sd_model_checkpoint": "tiny" })).ok();
    let first = server.post("/sdapi/v1/txt2img", json!({ "prompt": "a dog", "seed": 3, "steps": 4 })).ok();
    let ask = json!({
        "prompt": "a red cat", "init_images": [first["images"][0]], "denoising_strength": 0.5, "steps": 4, "seed": 4, "resize_mode": 1,
        "mask_blur": 4, "inpainting_fill": 0, "inpaint_full_res": true,
    });
    let reply = server.post("/sdapi/v1/img2img", ask).ok();
    let text = server.post("/sdapi/v1/png-info", json!({ "image": reply["images"][0] })).ok();
    assert_eq!(text["parameters"]["Denoising strength"], "0.5");
    assert_eq!(reply["parameters"]["init_images"], Value::Null);
    let none = server.post("/sdapi/v1/img2img", json!({ "prompt": "L" }));
    assert_eq!((none.status, none.json()["detail"].clone()), (404, json!("Init image not found")));
}

#[test]
fn places_that_clients_look_into_are_there() {
    let server = start_idle(Settings::default());
    for place in [
        "loras",
        "upscalers",
        "latent-upscale-modes",
        "sd-vae",
        "sd-modules",
        "prompt-styles",
        "hypernetworks",
        "face-restorers",
        "realesrgan-models",
    ] {
        assert_eq!(server.get(&format!("/sdapi/v1/{place}")).ok(), json!([]), "{place}");
    }
    for place in ["cmd-flags", "scripts", "embeddings", "memory", "progress", "samplers", "schedulers", "sd-models"] {
        server.get(&format!("/sdapi/v1/{place}")).ok();
    }
    let samplers = server.get("/sdapi/v1/samplers").ok();
    assert!(samplers.as_array().expect("a list").iter().any(|sampler| sampler["name"] == "Euler a"));
    let models = server.get("/sdapi/v1/sd-models").ok();
    let hash = models[0]["hash"].as_str().expect("a hash");
    assert_eq!(models[0]["title"], format!("letters.aqt [{hash}]"));
    assert_eq!(hash.len(), 10);
    let idle = server.get("/sdapi/v1/progress?skip_current_image=true").ok();
    assert_eq!((&idle["progress"], &idle["state"]["job_count"]), (&json!(0.0), &json!(0)));
}

/// Open WebUI reads all options, changes one, and sends all of them back.
#[test]
fn the_model_is_chosen_by_its_title() {
    let server = start(Settings::default());
    let mut options = server.get("/sdapi/v1/options").ok();
    let other = server.get("/sdapi/v1/sd-models").ok()[1]["title"].clone();
    options["sd_model_checkpoint"] = other.clone();
    assert_eq!(server.post("/sdapi/v1/options", options).ok(), Value::Null);
    assert_eq!(server.get("/sdapi/v1/options").ok()["sd_model_checkpoint"], other);
    let name = |ask: Value| {
        let info = server.post("/sdapi/v1/txt2img", ask).ok()["info"].as_str().expect("a text").to_owned();
        serde_json::from_str::<Value>(&info).expect("JSON")["sd_model_name"].clone()
    };
    assert_eq!(name(json!({ "prompt": "A", "steps": 1 })), "again");
    let over = json!({ "prompt": "A", "steps": 1, "override_settings": { "sd_model_checkpoint": "letters" } });
    assert_eq!(name(over), "letters");
    assert_eq!(server.post("/sdapi/v1/options", json!({ "sd_model_checkpoint": "none" })).status, 404);
}

#[test]
fn what_is_wrong_is_a_detail() {
    let server = start(Settings::default());
    let wrong = server.post("/sdapi/v1/txt2img", json!({ "prompt": "A", "steps": "many" }));
    assert_eq!(wrong.status, 422);
    assert_eq!(wrong.json()["detail"][0]["loc"], json!(["body", "steps"]));
    for (field, value) in [
        ("sampler_name", json!("Nonsense")),
        ("scheduler", json!("nonsense")),
        ("enable_hr", json!(true)),
        ("tiling", json!(true)),
        ("subseed_strength", json!(0.5)),
        ("script_name", json!("x/y/z plot")),
        ("styles", json!(["a"])),
        ("clip_skip", json!(2)),
        ("batch_size", json!(1_000_000)),
        ("n_iter", json!(i64::MAX)),
        ("width", json!(1 << 20)),
    ] {
        let mut ask = json!({ "prompt": "A", "steps": 1 });
        ask[field] = value;
        let reply = server.post("/sdapi/v1/txt2img", ask);
        assert_eq!(reply.status, 400, "{field}: {}", reply.text());
        assert!(reply.json()["detail"].is_string(), "{field}");
    }
    // Fields that nobody knows, and nulls, are nothing.
    let ask = json!({ "prompt": "A", "steps": "1", "unknown": 1, "width": null, "eta": null, "script_name": null });
    assert_eq!(server.post("/sdapi/v1/txt2img", ask).status, 200);
}

/// The answer has what is done; here the second of two batches is never begun.
#[test]
fn interrupting_answers_with_what_is_done() {
    let server = start(Settings::default());
    let reply = std::thread::scope(|scope| {
        let ask = json!({ "prompt": "K", "batch_size": 1, "n_iter": 40, "seed": 3, "steps": 20 });
        let waiting = scope.spawn(|| server.post("/sdapi/v1/txt2img", ask));
        loop {
            let seen = server.get("/sdapi/v1/progress").ok();
            if seen["state"]["job_no"].as_u64() >= Some(1) {
                assert!(seen["progress"].as_f64() > Some(0.0) && seen["eta_relative"].as_f64() > Some(0.0));
                assert_eq!(seen["state"]["sampling_steps"], 20);
                break;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        assert_eq!(server.send("POST", "/sdapi/v1/interrupt", &[], b"").ok(), json!({}));
        waiting.join().expect("an answer")
    });
    let reply = reply.ok();
    let done = reply["images"].as_array().expect("a list").len();
    assert!((1..40).contains(&done), "{done} pictures");
    assert_eq!(server.send("POST", "/sdapi/v1/skip", &[], b"").ok(), Value::Null);
}
