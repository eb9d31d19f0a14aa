//! The API's own description, at `/openapi.json`: places are listed here, requests are described by the types that read them.

use super::{Shared, openai};
use crate::wish::Ask;
use axum::routing::get;
use axum::{Json, Router};
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

/// What a request of a place holds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Holds {
    Nothing,
    /// A job's [`Ask`].
    Ask,
    /// OpenAI's fields, as JSON.
    OpenAi,
    /// OpenAI's fields, as JSON or a form with files.
    Form,
    /// The web UI's fields, of which unknown ones are nothing.
    WebUi,
}

/// Method, place, what it is for, and what a request holds.
const PLACES: &[(&str, &str, &str, Holds)] = &[
    ("get", "/health", "Whether the server works; asks for no token", Holds::Nothing),
    ("get", "/metrics", "What it has done, in Prometheus' text format", Holds::Nothing),
    ("get", "/openapi.json", "This description", Holds::Nothing),
    ("get", "/v1/capabilities", "Models, samplers and limits", Holds::Nothing),
    ("post", "/v1/estimate", "Memory and time that a job would take", Holds::Ask),
    ("post", "/v1/jobs", "Order pictures; answers at once with the job", Holds::Ask),
    ("get", "/v1/jobs/{id}", "What is known of a job, with its pictures", Holds::Nothing),
    ("delete", "/v1/jobs/{id}", "Cancel a job, also one at work", Holds::Nothing),
    (
        "get",
        "/v1/jobs/{id}/events",
        "Server-sent events: queued, encoding, step, decoding, image, and done, failed or cancelled",
        Holds::Nothing,
    ),
    ("post", "/v1/images/generations", "OpenAI: make pictures, and wait for them or stream them", Holds::OpenAi),
    ("post", "/v1/images/edits", "OpenAI: make pictures that begin with one", Holds::Form),
    ("get", "/v1/models", "OpenAI: the models", Holds::Nothing),
    ("get", "/v1/models/{id}", "OpenAI: a model", Holds::Nothing),
    ("post", "/sdapi/v1/txt2img", "Web UI: make pictures, and wait for them", Holds::WebUi),
    ("post", "/sdapi/v1/img2img", "Web UI: make pictures that begin with one", Holds::WebUi),
    ("get", "/sdapi/v1/options", "Web UI: the model that is chosen", Holds::Nothing),
    ("post", "/sdapi/v1/options", "Web UI: choose the model", Holds::WebUi),
    ("get", "/sdapi/v1/sd-models", "Web UI: the models", Holds::Nothing),
    ("get", "/sdapi/v1/samplers", "Web UI: the samplers", Holds::Nothing),
    ("get", "/sdapi/v1/schedulers", "Web UI: noise levels", Holds::Nothing),
    ("get", "/sdapi/v1/progress", "Web UI: where the job at work is", Holds::Nothing),
    ("post", "/sdapi/v1/interrupt", "Web UI: end the job at work with the pictures that are done", Holds::Nothing),
    ("post", "/sdapi/v1/skip", "Web UI: end the batch at work", Holds::Nothing),
    ("post", "/sdapi/v1/png-info", "Web UI: the text of a picture", Holds::WebUi),
    ("get", "/sdapi/v1/memory", "Web UI: memory of this machine", Holds::Nothing),
];

pub fn routes() -> Router<Shared> {
    Router::new().route("/openapi.json", get(|| async { Json(document()) }))
}

/// The description.
fn document() -> Value {
    let mut schemas = SchemaSettings::draft2020_12()
        .with(|settings| settings.definitions_path = "/components/schemas".into())
        .into_generator();
    let ask = schemas.subschema_for::<Ask>();
    let mut definitions = schemas.take_definitions(true);
    definitions.insert(
        "Error".into(),
        json!({ "type": "object", "properties": { "error": { "type": "object", "properties": {
            "message": { "type": "string" }, "type": { "type": "string" },
            "param": { "type": ["string", "null"] }, "code": { "type": ["string", "null"] },
        } } } }),
    );
    let known = openai::KNOWN.iter().map(|name| ((*name).to_owned(), json!({})));
    let open = json!({ "type": "object", "properties": known.collect::<Map<_, _>>(), "required": ["prompt"], "additionalProperties": false });
    let mut paths = Map::new();
    for &(method, place, summary, holds) in PLACES {
        let status = if (method, place) == ("post", "/v1/jobs") { "202" } else { "200" };
        let mut operation = json!({
            "summary": summary,
            "responses": {
                status: { "description": "Done as asked" },
                "default": { "description": "Refused; `/sdapi` says why as `detail`", "content": { "application/json": {
                    "schema": { "$ref": "#/components/schemas/Error" },
                } } },
            },
        });
        if place.contains("{id}") {
            operation["parameters"] =
                json!([{ "name": "id", "in": "path", "required": true, "schema": { "type": "string" } }]);
        }
        let content = match holds {
            Holds::Nothing => None,
            Holds::Ask => Some(json!({ "application/json": { "schema": ask } })),
            Holds::OpenAi => Some(json!({ "application/json": { "schema": open } })),
            Holds::Form => {
                Some(json!({ "application/json": { "schema": open }, "multipart/form-data": { "schema": open } }))
            }
            Holds::WebUi => Some(json!({ "application/json": { "schema": { "type": "object" } } })),
        };
        if let Some(content) = content {
            operation["requestBody"] = json!({ "required": true, "content": content });
        }
        paths.entry(place).or_insert_with(|| json!({}))[method] = operation;
    }
    json!({
        "openapi": "3.1.0",
        "info": { "title": "Aquatint", "version": env!("CARGO_PKG_VERSION") },
        "security": [{ "token": [] }, {}],
        "paths": paths,
        "components": {
            "schemas": definitions,
            "securitySchemes": { "token": { "type": "http", "scheme": "bearer" } },
        },
    })
}
