//! The Stable Diffusion web UI's API, as far as its clients call it. Wrong types are 422, everything else that is wrong 400, in its
//! shape. What is absent is the model's own setting.

use super::Shared;
use super::about::unsupported;
use super::body;
use super::fields::{Fields, WRONG_TYPE};
use crate::encode::{base64, decode_bytes, decode_picture};
use crate::job::{Job, Stage};
use crate::queue::CancelOnDrop;
use crate::refusal::Refusal;
use crate::settings::{Limits, Memory};
use crate::wish::{Format, Wish};
use aquatint::image::{ResizeMode, text_of};
use aquatint::infotext::Infotext;
use aquatint::options::{InitOptions, SamplingOptions, SizeOptions};
use aquatint::sampler::SamplerKind;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Map, Value, json};
use std::io::Cursor;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// A refusal in the web UI's shape.
struct Detail(Refusal);

impl From<Refusal> for Detail {
    fn from(refusal: Refusal) -> Self {
        Detail(refusal)
    }
}

impl IntoResponse for Detail {
    fn into_response(self) -> Response {
        if self.0.code == WRONG_TYPE {
            let fault = json!({ "loc": ["body", self.0.param], "msg": self.0.message, "type": "value_error" });
            return (StatusCode::UNPROCESSABLE_ENTITY, Json(json!({ "detail": [fault] }))).into_response();
        }
        self.0.into_detail()
    }
}

type Answer = Result<Json<Value>, Detail>;

pub fn routes() -> Router<Shared> {
    let empty = || get(|| async { Json(json!([])) });
    let done = || post(|| async { Json(Value::Null) });
    let mut router = Router::new();
    for stub in [
        "loras",
        "upscalers",
        "sd-vae",
        "sd-modules",
        "prompt-styles",
        "hypernetworks",
        "face-restorers",
        "realesrgan-models",
    ] {
        router = router.route(&format!("/sdapi/v1/{stub}"), empty());
    }
    for stub in ["refresh-checkpoints", "refresh-loras", "refresh-vae", "unload-checkpoint", "reload-checkpoint"] {
        router = router.route(&format!("/sdapi/v1/{stub}"), done());
    }
    router
        .route("/sdapi/v1/txt2img", post(txt2img))
        .route("/sdapi/v1/img2img", post(img2img))
        .route("/sdapi/v1/options", get(options).post(set_options))
        .route("/sdapi/v1/cmd-flags", get(|| async { Json(json!({})) }))
        .route("/sdapi/v1/sd-models", get(models))
        .route("/sdapi/v1/samplers", get(|| async { Json(samplers()) }))
        .route("/sdapi/v1/schedulers", get(|| async { Json(schedulers()) }))
        .route("/sdapi/v1/latent-upscale-modes", empty())
        .route("/sdapi/v1/embeddings", get(|| async { Json(json!({ "loaded": {}, "skipped": {} })) }))
        .route("/sdapi/v1/scripts", get(|| async { Json(json!({ "txt2img": [], "img2img": [] })) }))
        .route("/sdapi/v1/progress", get(progress))
        .route("/sdapi/v1/interrupt", post(interrupt))
        .route("/sdapi/v1/skip", post(skip))
        .route("/sdapi/v1/png-info", post(png_info))
        .route("/sdapi/v1/memory", get(memory))
        .route("/internal/pending-tasks", get(pending))
        .route("/internal/ping", get(|| async { Json(json!({})) }))
}

async fn txt2img(State(app): State<Shared>, request: Request) -> Answer {
    let fields = body::object(request, app.settings.limits.body).await?;
    make(app, fields, false).await
}

async fn img2img(State(app): State<Shared>, request: Request) -> Answer {
    let fields = body::object(request, app.settings.limits.body).await?;
    make(app, fields, true).await
}

/// Makes pictures, and waits for them.
async fn make(app: Shared, fields: Map<String, Value>, begins: bool) -> Answer {
    let fields = Arc::new(Fields::new(fields));
    let chosen = app.catalogue.models()[app.chosen.load(Ordering::Relaxed)].id.clone();
    let read = fields.clone();
    let order = app.order(move |limits| wish(&read, limits, begins, chosen)).await?;
    let job = app.queue.push(order, false)?;
    let cancel = CancelOnDrop::new(&app.queue, &job);
    let pictures = job.pictures().await?;
    drop(cancel);
    let sends = fields.flag("send_images")?.unwrap_or(true);
    let images: Vec<_> = pictures.iter().filter(|_| sends).map(|picture| base64(&picture.bytes)).collect();
    let mut parameters = fields.all().clone();
    if !fields.flag("include_init_images")?.unwrap_or(false) {
        for name in ["init_images", "mask"] {
            parameters.entry(name).and_modify(|value| *value = Value::Null);
        }
    }
    let info = info(&app, &job, &fields).to_string();
    Ok(Json(json!({ "images": images, "parameters": parameters, "info": info })))
}

/// What was made, as the web UI tells it: a text of JSON in the answer.
fn info(app: &Shared, job: &Job, fields: &Fields) -> Value {
    let pictures = job.progress().pictures;
    let model = &app.catalogue.models()[job.order.model];
    let request = &job.order.parts[0].request;
    let [height, width] = job.order.size();
    let first = pictures.first().map(|picture| Infotext::parse(&picture.text)).unwrap_or_default();
    let negative = first.negative.clone().unwrap_or_default();
    let all = |text: &str| vec![text.to_owned(); pictures.len()];
    let seeds: Vec<u64> = pictures.iter().map(|picture| picture.seed).collect();
    json!({
        "prompt": first.prompt,
        "all_prompts": all(&first.prompt),
        "negative_prompt": negative,
        "all_negative_prompts": all(&negative),
        "seed": job.order.seed,
        "all_seeds": seeds,
        "subseed": job.order.seed,
        "all_subseeds": seeds,
        "subseed_strength": 0,
        "width": width,
        "height": height,
        "sampler_name": request.sampler.kind.title(),
        "cfg_scale": request.guidance_scale,
        "steps": request.steps,
        "batch_size": job.order.parts[0].texts.len(),
        "restore_faces": false,
        "face_restoration_model": null,
        "sd_model_name": model.id,
        "sd_model_hash": model.hash,
        "sd_vae_name": null,
        "sd_vae_hash": null,
        "seed_resize_from_w": -1,
        "seed_resize_from_h": -1,
        "denoising_strength": fields.get("denoising_strength"),
        "extra_generation_params": {},
        "index_of_first_image": 0,
        "infotexts": pictures.iter().map(|picture| picture.text.clone()).collect::<Vec<_>>(),
        "styles": [],
        "job_timestamp": stamp(job.created()),
        "clip_skip": 1,
        "is_using_inpainting_conditioning": false,
        "version": concat!("aquatint ", env!("CARGO_PKG_VERSION")),
    })
}

/// Seconds since 1970 as YYYYMMDDHHMMSS, of Greenwich (Hinnant, "chrono-compatible low-level date algorithms").
fn stamp(seconds: u64) -> String {
    let (days, rest) = ((seconds / 86_400) as i64, seconds % 86_400);
    let shifted = days + 719_468;
    let (era, day) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let of_year = day - (365 * year + year / 4 - year / 100);
    let turned = (5 * of_year + 2) / 153;
    let (day, month) = (of_year - (153 * turned + 2) / 5 + 1, if turned < 10 { turned + 3 } else { turned - 9 });
    let year = year + era * 400 + i64::from(month <= 2);
    format!("{year:04}{month:02}{day:02}{:02}{:02}{:02}", rest / 3600, rest / 60 % 60, rest % 60)
}

/// What a request of the web UI's asks. What would change a picture and is not done here is refused; defaults that clients always
/// send are not.
fn wish(fields: &Fields, limits: &Limits, begins: bool, chosen: String) -> Result<Wish, Refusal> {
    for (name, idle) in [("enable_hr", false), ("tiling", false), ("restore_faces", false)] {
        if fields.flag(name)?.unwrap_or(idle) != idle {
            return Err(unsupported(name, "not done here"));
        }
    }
    if fields.number("subseed_strength")?.unwrap_or(0.0) != 0.0 {
        return Err(unsupported("subseed_strength", "not done here"));
    }
    if fields.text("script_name")?.is_some_and(|name| !name.is_empty() && name != "None") {
        return Err(unsupported("script_name", "there are no scripts here"));
    }
    if fields.get("styles").and_then(Value::as_array).is_some_and(|styles| !styles.is_empty()) {
        return Err(unsupported("styles", "there are no styles here"));
    }
    let overrides = match fields.get("override_settings") {
        Some(Value::Object(overrides)) => Fields::new(overrides.clone()),
        _ => Fields::new(Map::new()),
    };
    for (fields, name) in [(fields, "clip_skip"), (&overrides, "CLIP_stop_at_last_layers")] {
        if fields.whole(name)?.is_some_and(|skip| skip > 1) {
            return Err(unsupported(name, "the text encoder is read at the layer that the model was packed with"));
        }
    }
    let (batches, batch) = (fields.count("n_iter")?.unwrap_or(1), fields.count("batch_size")?.unwrap_or(1));
    let mut sampling = SamplingOptions {
        steps: fields.count("steps")?,
        cfg_scale: fields.number("cfg_scale")?.map(|scale| scale as f32),
        ..SamplingOptions::default()
    };
    let names = ["sampler_name", "sampler_index"];
    let sampler = fields.first(&names).map_or(Ok(None), |name| fields.text(name))?.filter(|name| !name.is_empty());
    let schedule = fields.text("scheduler")?.filter(|name| !name.is_empty());
    sampling.take_web_ui(sampler.as_deref(), schedule.as_deref())?;
    let init = if begins { Some(init(fields, limits)?) } else { None };
    Ok(Wish {
        model: overrides.text("sd_model_checkpoint")?.or(Some(chosen)),
        prompt: fields.text("prompt")?.unwrap_or_default(),
        negative: fields.text("negative_prompt")?,
        images: batches.saturating_mul(batch),
        at_once: Some(batch),
        size: SizeOptions { width: fields.count("width")?, height: fields.count("height")?, binning: false },
        sampling,
        seed: fields.whole("seed")?,
        init,
        format: Format::Png,
        quality: None,
    })
}

fn init(fields: &Fields, limits: &Limits) -> Result<InitOptions, Refusal> {
    let images = fields.get("init_images").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let Some(image) = images.first() else {
        return Err(Refusal { param: Some("init_images".into()), ..Refusal::missing("Init image not found") });
    };
    let text = image.as_str().ok_or_else(|| Refusal::field("init_images", "expected pictures in base64"))?;
    let resize = match fields.whole("resize_mode")?.unwrap_or(0) {
        0 => ResizeMode::Stretch,
        1 => ResizeMode::Crop,
        2 => ResizeMode::Pad,
        other => return Err(unsupported("resize_mode", &format!("expected 0, 1 or 2, got {other}"))),
    };
    if fields.whole("inpainting_fill")?.is_some_and(|fill| fill > 1) {
        return Err(unsupported("inpainting_fill", "masked parts begin as they were"));
    }
    if fields.whole("inpainting_mask_invert")?.unwrap_or(0) != 0 {
        return Err(unsupported("inpainting_mask_invert", "invert the mask and send it"));
    }
    let mask = fields.text("mask")?.filter(|mask| !mask.is_empty());
    Ok(InitOptions {
        image: decode_picture("init_images", text, limits)?,
        mask: mask.map(|mask| decode_picture("mask", &mask, limits)).transpose()?,
        resize: Some(resize),
        strength: fields.number("denoising_strength")?,
    })
}

async fn options(State(app): State<Shared>) -> Json<Value> {
    let model = &app.catalogue.models()[app.chosen.load(Ordering::Relaxed)];
    Json(json!({
        "sd_model_checkpoint": model.title(),
        "sd_checkpoint_hash": model.hash,
        "sd_vae": "Automatic",
        "samples_format": "png",
        "CLIP_stop_at_last_layers": 1,
        "show_progress_every_n_steps": -1,
    }))
}

/// Chooses the model. Everything else that clients send back is as it was, or has no meaning here.
async fn set_options(State(app): State<Shared>, request: Request) -> Answer {
    let fields = Fields::new(body::object(request, app.settings.limits.body).await?);
    if let Some(name) = fields.text("sd_model_checkpoint")? {
        let (index, _) = app.catalogue.find(Some(&name))?;
        app.chosen.store(index, Ordering::Relaxed);
    }
    Ok(Json(Value::Null))
}

async fn models(State(app): State<Shared>) -> Json<Value> {
    let all = app.catalogue.models().iter().map(|model| {
        json!({
            "title": model.title(),
            "model_name": model.id,
            "hash": model.hash,
            "sha256": null,
            "filename": format!("{}.aqt", model.id),
            "config": null,
        })
    });
    Json(all.collect())
}

fn samplers() -> Value {
    let all = SamplerKind::ALL.iter();
    all.map(|kind| json!({ "name": kind.title(), "aliases": [kind.name()], "options": {} })).collect()
}

fn schedulers() -> Value {
    let all = [
        ("automatic", "Automatic"),
        ("uniform", "Uniform"),
        ("karras", "Karras"),
        ("exponential", "Exponential"),
        ("beta", "Beta"),
        ("sgm_uniform", "SGM Uniform"),
    ];
    let tell = |(name, label)| json!({ "name": name, "label": label, "aliases": null, "default_rho": -1, "need_inner_model": false });
    all.into_iter().map(tell).collect()
}

async fn progress(State(app): State<Shared>) -> Json<Value> {
    let at_work = app.queue.at_work().filter(|job| !job.progress().stage.ended());
    let mut state = json!({
        "skipped": false,
        "interrupted": false,
        "stopping_generation": false,
        "job": "",
        "job_count": 0,
        "job_timestamp": "0",
        "job_no": 0,
        "sampling_step": 0,
        "sampling_steps": 0,
    });
    let Some(job) = at_work else {
        return Json(
            json!({ "progress": 0.0, "eta_relative": 0.0, "state": state, "current_image": null, "textinfo": null }),
        );
    };
    let seen = job.progress();
    let calls = job.order.parts[0].plan.steps.max(1);
    state["job"] = json!(if seen.stage == Stage::Decoding { "decode" } else { "txt2img" });
    state["interrupted"] = job.is_interrupted().into();
    state["job_count"] = (job.order.steps() / calls).max(1).into();
    state["job_no"] = (seen.step.saturating_sub(1) / calls).into();
    state["job_timestamp"] = stamp(job.created()).into();
    state["sampling_step"] = (if seen.step == 0 { 0 } else { (seen.step - 1) % calls + 1 }).into();
    state["sampling_steps"] = calls.into();
    let eta = seen.remaining(&job.order).map_or(0.0, |left| left.as_secs_f64());
    let share = (0.01 + seen.share(&job.order)).min(1.0);
    Json(json!({ "progress": share, "eta_relative": eta, "state": state, "current_image": null, "textinfo": null }))
}

/// Ends the job at work after its step; its request is answered with the pictures that are done.
async fn interrupt(State(app): State<Shared>) -> Json<Value> {
    if let Some(job) = app.queue.at_work() {
        job.interrupt();
    }
    Json(json!({}))
}

/// Ends the batch at work after its step.
async fn skip(State(app): State<Shared>) -> Json<Value> {
    if let Some(job) = app.queue.at_work() {
        job.skip();
    }
    Json(Value::Null)
}

/// The text of a picture, and its settings.
async fn png_info(State(app): State<Shared>, request: Request) -> Answer {
    let fields = Fields::new(body::object(request, app.settings.limits.body).await?);
    let Some(text) = fields.text("image")? else {
        return Err(Refusal::field("image", "expected a picture in base64, got none").into());
    };
    let bytes = decode_bytes("image", &text)?;
    let info = text_of(Cursor::new(&bytes), "image", "parameters").unwrap_or_default();
    let read = Infotext::parse(&info);
    let mut parameters: Map<String, Value> =
        read.settings.into_iter().map(|(name, value)| (name, value.into())).collect();
    if !info.is_empty() {
        parameters.insert("Prompt".into(), read.prompt.into());
        parameters.insert("Negative prompt".into(), read.negative.unwrap_or_default().into());
    }
    Ok(Json(json!({ "info": info, "items": { "parameters": info }, "parameters": parameters })))
}

/// Memory of this machine, where it tells.
async fn memory() -> Json<Value> {
    let ram = match Memory::now() {
        Some(Memory { total, available }) => {
            json!({ "free": available, "used": total.saturating_sub(available), "total": total })
        }
        None => json!({ "error": "this system does not tell" }),
    };
    Json(json!({ "ram": ram, "cuda": { "error": "unavailable" } }))
}

async fn pending(State(app): State<Shared>) -> Json<Value> {
    let waiting = app.queue.waiting();
    Json(json!({ "size": waiting, "tasks": [] }))
}

#[cfg(test)]
mod tests {
    use super::stamp;

    /// Against `date -u -d @SECONDS +%Y%m%d%H%M%S`.
    #[test]
    fn stamps_are_dates_of_greenwich() {
        for (seconds, expected) in [
            (0, "19700101000000"),
            (951_782_399, "20000228235959"),
            (951_868_799, "20000229235959"),
            (4_102_444_800, "21000101000000"),
        ] {
            assert_eq!(stamp(seconds), expected);
        }
    }
}
