//! OpenAI's images API. Beside its own fields it takes `seed`, `steps`, `negative_prompt`, `guidance_scale`, `guidance_rescale`,
//! `sampler`, `eta` and `strength`, which its clients can send as further ones.

use super::about::unsupported;
use super::body::{Form, Name};
use super::fields::Fields;
use super::{Shared, events};
use crate::encode::{base64, decode_bytes};
use crate::job::{Job, Order, Picture};
use crate::queue::CancelOnDrop;
use crate::refusal::Refusal;
use crate::served::Served;
use crate::settings::Limits;
use crate::wish::{Format, Wish, mask_of_opacity};
use aquatint::image::Picture as Source;
use aquatint::options::{InitOptions, SamplingOptions, SizeOptions};
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// Fields that mean something here.
pub const KNOWN: &[&str] = &[
    "prompt",
    "model",
    "n",
    "size",
    "response_format",
    "output_format",
    "output_compression",
    "stream",
    "partial_images",
    "background",
    "seed",
    "steps",
    "num_inference_steps",
    "negative_prompt",
    "guidance_scale",
    "cfg_scale",
    "guidance_rescale",
    "sampler",
    "eta",
    "strength",
    "image",
    "images",
    "mask",
    // What other models of that API do with these, none here does; no client can do without sending them.
    "quality",
    "style",
    "moderation",
    "user",
    "input_fidelity",
];

/// How OpenAI's own models are called.
const OWN: [&str; 3] = ["dall-e-", "gpt-image-", "chatgpt-image-"];

pub fn routes() -> Router<Shared> {
    Router::new()
        .route("/v1/images/generations", post(generations))
        .route("/v1/images/edits", post(edits))
        .route("/v1/models", get(models))
        .route("/v1/models/{id}", get(model))
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |passed| passed.as_secs())
}

fn describe(app: &Shared, model: &Served) -> Value {
    let created = now() - app.started.elapsed().as_secs();
    json!({ "id": model.id, "object": "model", "created": created, "owned_by": "aquatint" })
}

async fn models(State(app): State<Shared>) -> Response {
    let all: Vec<_> = app.catalogue.models().iter().map(|model| describe(&app, model)).collect();
    Json(json!({ "object": "list", "data": all })).into_response()
}

async fn model(State(app): State<Shared>, Name(id): Name) -> Result<Response, Refusal> {
    let (_, model) = app.catalogue.find(Some(&id))?;
    Ok(Json(describe(&app, model)).into_response())
}

async fn generations(State(app): State<Shared>, request: Request) -> Result<Response, Refusal> {
    let form = Form::read(request, app.settings.limits.body).await?;
    if let Some(name) = form.fields.first(&["image", "images", "mask"]) {
        return Err(unsupported(name, "pictures to begin with go to /v1/images/edits"));
    }
    answer(app, form, "image_generation").await
}

async fn edits(State(app): State<Shared>, request: Request) -> Result<Response, Refusal> {
    let form = Form::read(request, app.settings.limits.body).await?;
    answer(app, form, "image_edit").await
}

/// How the answer is to look.
struct Manner {
    stream: bool,
    /// Whether pictures come as `data:` URLs.
    url: bool,
    /// The size as it was asked for.
    size: String,
}

async fn answer(app: Shared, form: Form, what: &'static str) -> Result<Response, Refusal> {
    let manner = manner(&form.fields)?;
    let order = app.order(move |limits| wish(&form, limits, what == "image_edit")).await?;
    let job = app.queue.push(order, false)?;
    let cancel = CancelOnDrop::new(&app.queue, &job);
    if manner.stream {
        return Ok(events::answer(async move |events: events::Sender| {
            let _cancel = cancel;
            stream(&job, &manner, what, &events).await
        }));
    }
    let pictures = job.pictures().await?;
    drop(cancel);
    let data: Vec<_> = pictures.iter().map(|picture| datum(&job.order, picture, manner.url)).collect();
    let answer = json!({
        "created": now(),
        "data": data,
        "output_format": job.order.format.name(),
        "size": size_of(&job.order),
        "usage": usage(),
    });
    Ok(Json(answer).into_response())
}

fn size_of(order: &Order) -> String {
    let [height, width] = order.size();
    format!("{width}x{height}")
}

/// Nothing here is counted in tokens.
fn usage() -> Value {
    let details = json!({ "text_tokens": 0, "image_tokens": 0 });
    json!({ "total_tokens": 0, "input_tokens": 0, "output_tokens": 0, "input_tokens_details": details })
}

fn datum(order: &Order, picture: &Picture, url: bool) -> Value {
    let text = base64(&picture.bytes);
    match url {
        true => json!({ "url": format!("data:image/{};base64,{text}", order.format.name()), "seed": picture.seed }),
        false => json!({ "b64_json": text, "seed": picture.seed }),
    }
}

/// An event for every picture, as soon as it is there.
async fn stream(job: &Arc<Job>, manner: &Manner, what: &str, events: &events::Sender) -> Result<(), events::Gone> {
    let mut watch = job.watch();
    let mut sent = 0;
    let name = format!("{what}.completed");
    loop {
        let progress = watch.borrow_and_update().clone();
        for picture in progress.pictures.iter().skip(sent) {
            let data = json!({
                "type": name,
                "b64_json": base64(&picture.bytes),
                "created_at": now(),
                "size": if manner.size == "auto" { size_of(&job.order) } else { manner.size.clone() },
                "quality": "auto",
                "background": "opaque",
                "output_format": job.order.format.name(),
                "usage": usage(),
                "seed": picture.seed,
            });
            events.send(&name, &data).await?;
        }
        sent = progress.pictures.len();
        if progress.stage.ended() {
            if let Err(refusal) = job.pictures().await {
                let mut error = refusal.body();
                error["type"] = "error".into();
                events.send("error", &error).await?;
            }
            return Ok(());
        }
        if watch.changed().await.is_err() {
            return Ok(());
        }
    }
}

fn manner(fields: &Fields) -> Result<Manner, Refusal> {
    if let Some(name) = fields.unknown(KNOWN).next() {
        let message =
            format!("unknown field {:?}; known are {}", name.chars().take(64).collect::<String>(), KNOWN.join(", "));
        return Err(Refusal { param: Some(name.to_owned()), ..Refusal::bad(message) });
    }
    let url = match fields.text("response_format")?.as_deref() {
        None | Some("b64_json") => false,
        Some("url") => true,
        Some(other) => {
            return Err(Refusal::field("response_format", format!("expected b64_json or url, got {other:?}")));
        }
    };
    match fields.text("background")?.as_deref() {
        None | Some("auto" | "opaque") => {}
        Some(other) => return Err(unsupported("background", &format!("expected auto or opaque, got {other:?}"))),
    }
    if let Some(count) = fields.count("partial_images")?.filter(|&count| count > 3) {
        return Err(Refusal::field("partial_images", format!("expected 0 to 3, got {count}")));
    }
    let size = fields.text("size")?.unwrap_or_else(|| "auto".into());
    Ok(Manner { stream: fields.flag("stream")?.unwrap_or(false), url, size })
}

fn wish(form: &Form, limits: &Limits, edit: bool) -> Result<Wish, Refusal> {
    let fields = &form.fields;
    let Some(prompt) = fields.text("prompt")? else {
        return Err(Refusal::field("prompt", "expected a text, got none"));
    };
    let number = |names: &[&str]| fields.first(names).map_or(Ok(None), |name| fields.number(name));
    let steps = fields.first(&["steps", "num_inference_steps"]);
    let init = if edit { Some(init(form, limits)?) } else { None };
    let format = match fields.text("output_format")?.as_deref() {
        None | Some("png") => Format::Png,
        Some("jpeg" | "jpg") => Format::Jpeg,
        Some("webp") => Format::Webp,
        Some(other) => {
            return Err(Refusal::field("output_format", format!("expected png, jpeg or webp, got {other:?}")));
        }
    };
    let quality = fields.count("output_compression")?.map(|quality| quality.clamp(1, 100) as u8);
    Ok(Wish {
        // A name of one of OpenAI's own models is what a client sends that was never told of ours.
        model: fields.text("model")?.filter(|name| !OWN.iter().any(|own| name.starts_with(own))),
        prompt,
        negative: fields.text("negative_prompt")?,
        images: fields.count("n")?.unwrap_or(1),
        at_once: None,
        size: size(fields)?,
        sampling: SamplingOptions {
            steps: steps.map_or(Ok(None), |name| fields.count(name))?,
            cfg_scale: number(&["guidance_scale", "cfg_scale"])?.map(|scale| scale as f32),
            guidance_rescale: number(&["guidance_rescale"])?.map(|share| share as f32),
            sampler: fields.text("sampler")?,
            eta: number(&["eta"])?.map(|eta| eta as f32),
            ..SamplingOptions::default()
        },
        seed: fields.whole("seed")?,
        init,
        format,
        quality,
    })
}

/// `WxH` or `auto`.
fn size(fields: &Fields) -> Result<SizeOptions, Refusal> {
    let Some(text) = fields.text("size")?.filter(|text| text != "auto") else { return Ok(SizeOptions::default()) };
    let sides = text.split_once(['x', 'X']).and_then(|(w, h)| Some((w.trim().parse().ok()?, h.trim().parse().ok()?)));
    match sides {
        Some((width, height)) => Ok(SizeOptions { width: Some(width), height: Some(height), binning: false }),
        None => {
            let got: String = text.chars().take(40).collect();
            Err(Refusal::field("size", format!("expected WIDTHxHEIGHT or auto, got {got:?}")))
        }
    }
}

/// The picture to begin with, and its mask: as files of a form, as base64 of its fields, or as objects with `data:` URLs.
fn init(form: &Form, limits: &Limits) -> Result<InitOptions, Refusal> {
    let fields = &form.fields;
    let files = |names: &[&str]| -> Vec<Vec<u8>> {
        form.files.iter().filter(|(name, _)| names.contains(&name.as_str())).map(|(_, bytes)| bytes.to_vec()).collect()
    };
    let text = |value: &Value| -> Result<Vec<u8>, Refusal> {
        let url = value.as_str().or_else(|| value.get("image_url")?.as_str());
        decode_bytes(
            "image",
            url.ok_or_else(|| Refusal::field("image", "expected a picture or an image_url with one"))?,
        )
    };
    let mut images = files(&["image", "image[]"]);
    for name in ["image", "images"] {
        match fields.get(name) {
            Some(Value::Array(all)) => all.iter().try_for_each(|value| text(value).map(|bytes| images.push(bytes)))?,
            Some(value) => images.push(text(value)?),
            None => {}
        }
    }
    let [image] = images.as_slice() else {
        return Err(Refusal::field("image", format!("expected one picture, got {}", images.len())));
    };
    let mut masks = files(&["mask"]);
    if let Some(value) = fields.get("mask") {
        masks.push(text(value)?);
    }
    let mask = masks.first().map(|bytes| mask_of_opacity(bytes, limits)).transpose()?;
    Ok(InitOptions {
        image: Source::from_bytes(image, "image", limits.pixels)?,
        mask,
        resize: None,
        strength: fields.number("strength")?,
    })
}
