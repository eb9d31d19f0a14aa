//! Jobs by name, and what the server says of itself.

use crate::client::*;
use aquatint_server::{Limits, Settings};
use serde_json::{Value, json};
use std::io::BufReader;
use std::time::{Duration, Instant};

fn create(server: &Running, ask: Value) -> String {
    let reply = server.post("/v1/jobs", ask);
    assert_eq!(reply.status, 202, "{}", reply.text());
    let id = reply.json()["id"].as_str().expect("an id").to_owned();
    assert_eq!(reply.header("location"), Some(&*format!("/v1/jobs/{id}")));
    id
}

fn status(server: &Running, id: &str) -> Value {
    server.get(&format!("/v1/jobs/{id}")).ok()["status"].clone()
}

#[test]
fn a_job_tells_every_step() {
    let mut server = start_idle(Settings::default());
    let first = create(&server, json!({ "prompt": "A", "steps": 1 }));
    let id = create(&server, json!({ "prompt": "R", "seed": 9, "steps": 5, "n": 2, "guidance_scale": 2 }));
    assert_eq!(status(&server, &id), "queued");
    let mut stream = server.open();
    write(&mut stream, server.address, "GET", &format!("/v1/jobs/{id}/events"), &[], b"");
    server.work();
    let events = read(&mut BufReader::new(stream)).events();
    let names: Vec<_> = events.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!((names[0], *names.last().expect("events")), ("queued", "done"));
    assert_eq!(events[0].1["position"], 1);
    let steps: Vec<_> =
        events.iter().filter(|(name, _)| name == "step").map(|(_, data)| data["step"].as_u64()).collect();
    assert!(steps.is_sorted() && !steps.is_empty(), "{steps:?}");
    let images: Vec<_> = events.iter().filter(|(name, _)| name == "image").map(|(_, data)| data).collect();
    assert_eq!(images.len(), 2);
    for (k, image) in images.iter().enumerate() {
        let png = bytes(&image["b64_json"]);
        assert!(png == expected("R", 9 + k as u64, 5, |options| options.sampling.cfg_scale = Some(2.0), &png));
        assert_eq!((&image["index"], &image["seed"]), (&json!(k), &json!(9 + k)));
    }
    let job = server.get(&format!("/v1/jobs/{id}")).ok();
    assert_eq!(
        (&job["status"], &job["step"], &job["steps"], &job["progress"]),
        (&json!("done"), &json!(5), &json!(5), &json!(1.0))
    );
    assert_eq!(job["images"][1]["b64_json"], images[1]["b64_json"]);
    assert_eq!(status(&server, &first), "done");
}

#[test]
fn jobs_are_cancelled_where_they_are() {
    let mut server = start_idle(Settings::default());
    let long = create(&server, json!({ "prompt": "A", "steps": 150, "n": 64 }));
    let waiting = create(&server, json!({ "prompt": "A", "steps": 1 }));
    let last = create(&server, json!({ "prompt": "A", "steps": 1 }));
    assert_eq!(server.delete(&format!("/v1/jobs/{waiting}")).ok()["status"], "cancelled");
    server.work();
    while status(&server, &long) != "sampling" {
        std::thread::sleep(Duration::from_millis(1));
    }
    server.delete(&format!("/v1/jobs/{long}")).ok();
    let begun = Instant::now();
    while status(&server, &last) != "done" {
        assert!(begun.elapsed() < Duration::from_secs(30), "the place was not freed");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(status(&server, &long), "cancelled");
    assert_eq!(server.delete(&format!("/v1/jobs/{last}")).ok()["status"], "done");
    server.get("/v1/jobs/job-1-none").error(404);
    server.delete("/v1/jobs/none").error(404);
    server.get("/v1/jobs/none/events").error(404);
}

#[test]
fn a_full_queue_says_when_to_come_again() {
    let limits = Limits { queue: 2, ..Limits::default() };
    let server = start_idle(Settings { limits, ..Settings::default() });
    let ids = [0, 1].map(|_| create(&server, json!({ "prompt": "A", "steps": 1 })));
    for place in ["/v1/jobs", "/v1/images/generations", "/sdapi/v1/txt2img"] {
        let reply = server.post(place, json!({ "prompt": "A", "steps": 1 }));
        assert_eq!((reply.status, reply.header("retry-after")), (429, Some("5")), "{place}");
    }
    server.delete(&format!("/v1/jobs/{}", ids[0])).ok();
    create(&server, json!({ "prompt": "A", "steps": 1 }));
    let metrics = server.get("/metrics").text();
    for line in [
        "aquatint_jobs_total{end=\"rejected\"} 3",
        "aquatint_jobs_total{end=\"cancelled\"} 1",
        "aquatint_jobs_waiting 2",
    ] {
        assert!(metrics.contains(line), "{metrics}");
    }
}

/// Finished jobs are forgotten some day, and said to be gone; only so many are kept.
#[test]
fn only_so_many_jobs_are_remembered() {
    let server = start(Settings::default());
    let ids: Vec<_> = (0..135)
        .map(|_| {
            let id = create(&server, json!({ "prompt": "A", "steps": 1 }));
            while status(&server, &id) != "done" {
                std::thread::sleep(Duration::from_millis(1));
            }
            id
        })
        .collect();
    server.get(&format!("/v1/jobs/{}", ids[0])).error(410);
    assert_eq!(status(&server, &ids[134]), "done");
}

#[test]
fn what_it_would_take_is_told_before() {
    let server = start(Settings::default());
    let ask = json!({ "prompt": "A", "steps": 4, "n": 3, "seed": 1 });
    let before = server.post("/v1/estimate", ask.clone()).ok();
    let mut options = aquatint::options::RequestOptions::default();
    (options.prompts.prompts, options.prompts.n_imgs, options.sampling.steps) = (vec!["A".into()], Some(3), Some(4));
    let request = options.request(letters(), None).expect("a request");
    let plans = aquatint::Plans::of(&aquatint::Cpu::best(), letters(), &request).expect("plans");
    assert_eq!((&before["memory_bytes"], &before["seconds"]), (&json!(plans.total()), &Value::Null));
    assert_eq!((&before["steps"], &before["images"]), (&json!(4), &json!(3)));
    server.post("/v1/images/generations", ask.clone()).ok();
    assert!(server.post("/v1/estimate", ask).ok()["seconds"].as_f64() > Some(0.0));

    let limits = Limits { memory: plans.total() - 1, ..Limits::default() };
    let small = start_idle(Settings { limits, ..Settings::default() });
    let message = small.post("/v1/images/generations", json!({ "prompt": "A", "steps": 4, "n": 3 })).error(400);
    assert!(message.contains(&format!("it takes {}", plans.total())), "{message}");
}

#[test]
fn its_health_is_told() {
    let server = start_idle(Settings { token: Some("a long token".into()), ..Settings::default() });
    assert_eq!(server.get("/health").ok()["status"], "ok");
    server.get("/metrics").error(401);
}

#[test]
fn unknown_fields_of_jobs_are_refused() {
    let server = start_idle(Settings::default());
    let message = server.post("/v1/jobs", json!({ "prompt": "A", "stepps": 1 })).error(400);
    assert!(message.contains("unknown field `stepps`") && message.contains("`steps`"), "{message}");
    server.post("/v1/jobs", json!({ "prompt": "A", "strength": 0.5 })).error(400);
    server.post("/v1/jobs", json!({ "prompt": "A", "mask": "AAAA" })).error(400);
}

#[test]
fn what_can_be_asked_for_is_told() {
    let server = start_idle(Settings::default());
    let told = server.get("/v1/capabilities").ok();
    let [letters, _, tiny] = told["models"].as_array().expect("a list").as_slice() else { panic!("{told}") };
    assert_eq!((&letters["reads_prompts"], &letters["reads_pictures"]), (&json!(false), &json!(false)));
    assert_eq!((&tiny["reads_prompts"], &tiny["reads_pictures"]), (&json!(true), &json!(true)));
    assert_eq!(letters["classes"].as_array().map(Vec::len), Some(26));
    assert!(told["samplers"].as_array().expect("a list").iter().any(|sampler| sampler["title"] == "DPM++ 2M"));
}

/// Every place of the description is there, and requests have the fields that are read.
#[test]
fn the_description_is_of_this_server() {
    let server = start_idle(Settings::default());
    let told = server.get("/openapi.json").ok();
    let paths = told["paths"].as_object().expect("paths");
    assert!(paths.len() > 15);
    for (path, methods) in paths {
        for method in methods.as_object().expect("methods").keys() {
            let reply = server.send(&method.to_uppercase(), &path.replace("{id}", "letters"), &[], b"");
            assert!(reply.status != 405 && !reply.text().contains("there is no such place"), "{method} {path}");
        }
    }
    let schema = &told["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"];
    let name = schema.as_str().and_then(|path| path.strip_prefix("#/components/schemas/")).expect("a schema");
    let fields = told["components"]["schemas"][name]["properties"].as_object().expect("fields");
    for field in ["prompt", "seed", "image", "strength", "format"] {
        assert!(
            fields[field]["description"].is_string()
                || fields[field]["$ref"].is_string()
                || fields[field].get("anyOf").is_some(),
            "{field}"
        );
    }
}
