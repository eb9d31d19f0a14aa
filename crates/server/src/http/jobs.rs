//! Jobs by name: ordered, watched step by step, and cancelled.

use super::body::Name;
use super::{Shared, body, events};
use crate::encode::base64;
use crate::job::{Job, Picture, Progress, Stage};
use crate::refusal::Refusal;
use crate::wish::Ask;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use std::sync::Arc;

pub fn routes() -> Router<Shared> {
    Router::new()
        .route("/v1/jobs", post(create))
        .route("/v1/jobs/{id}", get(show).delete(cancel))
        .route("/v1/jobs/{id}/events", get(watch))
}

/// Orders pictures; answers at once.
async fn create(State(app): State<Shared>, request: Request) -> Result<Response, Refusal> {
    let ask: Ask = body::typed(request, app.settings.limits.body).await?;
    let order = app.order(move |limits| ask.wish(limits)).await?;
    let job = app.queue.push(order, true)?;
    let place = [(header::LOCATION, format!("/v1/jobs/{}", job.id))];
    Ok((StatusCode::ACCEPTED, place, Json(describe(&app, &job, false))).into_response())
}

/// What is known of a job, with its pictures.
async fn show(State(app): State<Shared>, Name(id): Name) -> Result<Response, Refusal> {
    Ok(Json(describe(&app, &*app.queue.named(&id)?, true)).into_response())
}

/// Cancels a job, also one at work, which ends after its step.
async fn cancel(State(app): State<Shared>, Name(id): Name) -> Result<Response, Refusal> {
    let job = app.queue.named(&id)?;
    app.queue.cancel(&job);
    Ok(Json(describe(&app, &job, false)).into_response())
}

fn describe(app: &Shared, job: &Job, pictures: bool) -> Value {
    let progress = job.progress();
    let order = &job.order;
    let [height, width] = order.size();
    let error = match &progress.stage {
        Stage::Failed(_) => json!({ "code": "server_error", "message": "the server failed; its log says why" }),
        _ => Value::Null,
    };
    let images: Vec<Value> = match pictures {
        true => progress.pictures.iter().enumerate().map(|(i, picture)| image(job, i, picture)).collect(),
        false => Vec::new(),
    };
    json!({
        "id": job.id,
        "status": progress.stage.name(),
        "created": job.created(),
        "model": app.catalogue.models()[order.model].id,
        "seed": order.seed,
        "n": order.images(),
        "width": width,
        "height": height,
        "step": progress.step,
        "steps": order.steps(),
        "position": app.queue.position(job),
        "progress": progress.share(order),
        "eta_seconds": remaining(&progress, job),
        "error": error,
        "images": images,
    })
}

fn remaining(progress: &Progress, job: &Job) -> Option<f64> {
    if progress.stage.ended() { None } else { progress.remaining(&job.order).map(|left| left.as_secs_f64()) }
}

fn image(job: &Job, index: usize, picture: &Arc<Picture>) -> Value {
    json!({
        "index": index,
        "seed": picture.seed,
        "format": job.order.format.name(),
        "infotext": picture.text,
        "b64_json": base64(&picture.bytes),
    })
}

/// Tells what happens to a job, from now on to its end.
async fn watch(State(app): State<Shared>, Name(id): Name) -> Result<Response, Refusal> {
    let job = app.queue.named(&id)?;
    Ok(events::answer(async move |events: events::Sender| {
        let mut watch = job.watch();
        let (mut told, mut shown) = (None, 0);
        loop {
            let progress = watch.borrow_and_update().clone();
            for (index, picture) in progress.pictures.iter().enumerate().skip(shown) {
                events.send("image", &image(&job, index, picture)).await?;
            }
            shown = progress.pictures.len();
            let now = (progress.stage.clone(), progress.step);
            if told.as_ref() != Some(&now) {
                events.send(event_name(&progress.stage), &state(&app, &job, &progress)).await?;
                told = Some(now);
            }
            if progress.stage.ended() || watch.changed().await.is_err() {
                return Ok(());
            }
        }
    }))
}

fn event_name(stage: &Stage) -> &'static str {
    match stage {
        Stage::Sampling => "step",
        other => other.name(),
    }
}

fn state(app: &Shared, job: &Job, progress: &Progress) -> Value {
    let mut all = json!({
        "id": job.id,
        "status": progress.stage.name(),
        "step": progress.step,
        "steps": job.order.steps(),
        "progress": progress.share(&job.order),
        "eta_seconds": remaining(progress, job),
    });
    if progress.stage == Stage::Queued {
        all["position"] = app.queue.position(job).into();
    }
    all
}
