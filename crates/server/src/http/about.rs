//! What the server says of itself: whether it works, what it has done, and what a request would take.

use super::{App, Shared, body};
use crate::job::Order;
use crate::refusal::Refusal;
use crate::wish::{Ask, Wish};
use aquatint::sampler::SamplerKind;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::json;
use std::fmt::Write;

pub fn routes() -> Router<Shared> {
    Router::new()
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .route("/v1/capabilities", get(capabilities))
        .route("/v1/estimate", post(estimate))
}

/// Whether the server works. Everybody may know, so it says nothing else.
async fn health(State(app): State<Shared>) -> Response {
    Json(json!({ "status": "ok", "waiting": app.queue.waiting() })).into_response()
}

/// What it has done, in Prometheus' text format.
async fn metrics(State(app): State<Shared>) -> Response {
    let counts = app.queue.counts();
    let mut text = String::new();
    let mut tell = |name: &str, kind: &str, help: &str, values: &[(&str, f64)]| {
        let _ = writeln!(text, "# HELP aquatint_{name} {help}\n# TYPE aquatint_{name} {kind}");
        for (labels, value) in values {
            let _ = writeln!(text, "aquatint_{name}{labels} {value}");
        }
    };
    let ended = [
        ("{end=\"done\"}", counts.done as f64),
        ("{end=\"failed\"}", counts.failed as f64),
        ("{end=\"cancelled\"}", counts.cancelled as f64),
        ("{end=\"rejected\"}", counts.rejected as f64),
    ];
    tell("jobs_total", "counter", "Jobs by how they ended; rejected ones found no place in the queue.", &ended);
    tell("pictures_total", "counter", "Pictures made.", &[("", counts.pictures as f64)]);
    tell("steps_total", "counter", "Calls of denoisers.", &[("", counts.steps as f64)]);
    tell("busy_seconds_total", "counter", "Seconds at work.", &[("", counts.seconds)]);
    tell("waited_seconds_total", "counter", "Seconds that jobs waited for their turn.", &[("", counts.waited)]);
    tell("jobs_waiting", "gauge", "Jobs that wait.", &[("", app.queue.waiting() as f64)]);
    tell("jobs_at_work", "gauge", "Jobs at work, 0 or 1.", &[("", f64::from(u8::from(app.queue.at_work().is_some())))]);
    tell("uptime_seconds", "gauge", "Seconds since the start.", &[("", app.started.elapsed().as_secs_f64())]);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

/// What can be asked for.
async fn capabilities(State(app): State<Shared>) -> Response {
    let models: Vec<_> = app
        .catalogue
        .models()
        .iter()
        .map(|model| {
            json!({
                "id": model.id,
                "hash": model.hash,
                "reads_prompts": model.reads_prompts,
                "reads_pictures": model.reads_pictures,
                "classes": model.classes,
                "width": model.size[1],
                "height": model.size[0],
                "multiple": model.multiple,
                "steps": model.steps,
                "guidance_scale": model.guidance_scale,
                "sampler": model.sampler,
            })
        })
        .collect();
    let samplers: Vec<_> =
        SamplerKind::ALL.iter().map(|kind| json!({ "name": kind.name(), "title": kind.title() })).collect();
    let limits = &app.settings.limits;
    let limits =
        json!({ "side": limits.side, "steps": limits.steps, "images": limits.images, "prompt_bytes": limits.prompt });
    let version = env!("CARGO_PKG_VERSION");
    Json(json!({ "version": version, "models": models, "samplers": samplers, "limits": limits })).into_response()
}

/// What a job would take, without making it wait for its turn.
async fn estimate(State(app): State<Shared>, request: Request) -> Result<Response, Refusal> {
    let ask: Ask = body::typed(request, app.settings.limits.body).await?;
    let order = app.order(move |limits| ask.wish(limits)).await?;
    let seconds = app.queue.seconds(&order);
    let [height, width] = order.size();
    let memory = order.parts.iter().map(|part| part.plan.memory).max();
    let answer = json!({
        "model": app.catalogue.models()[order.model].id,
        "images": order.images(),
        "width": width,
        "height": height,
        "steps": order.steps(),
        "memory_bytes": memory,
        "seconds": seconds,
        "waiting": app.queue.waiting(),
    });
    Ok(Json(answer).into_response())
}

impl App {
    /// The order of a wish, which `make` reads from what a client sent; off the thread that serves connections, because pictures are
    /// decoded and memory is planned.
    pub async fn order(
        self: &Shared,
        make: impl FnOnce(&crate::settings::Limits) -> Result<Wish, Refusal> + Send + 'static,
    ) -> Result<Order, Refusal> {
        let app = self.clone();
        let work = move || {
            let limits = &app.settings.limits;
            let wish = make(limits)?;
            let (index, model) = app.catalogue.find(wish.model.as_deref())?;
            model.order(index, &wish, limits)
        };
        tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| Err(Refusal::fault(e.to_string())))
    }
}

/// The answer of something that cannot be done here, though others can.
pub fn unsupported(param: &str, message: &str) -> Refusal {
    let refusal = Refusal::new(StatusCode::BAD_REQUEST, "unsupported", format!("{param}: {message}"));
    Refusal { param: Some(param.to_owned()), ..refusal }
}
