//! Bodies of requests, as long as they may be and in as much time as they may take.

use super::fields::Fields;
use crate::refusal::Refusal;
use axum::body::Bytes;
use axum::extract::multipart::MultipartError;
use axum::extract::{FromRequest, FromRequestParts, Multipart, Path, Request};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::time::Duration;

/// How long a body may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Parts of a form.
const MOST_PARTS: usize = 64;
/// Bytes of a part's name.
const MOST_NAME: usize = 64;

/// The name in a request's path.
pub struct Name(pub String);

impl<S: Send + Sync> FromRequestParts<S> for Name {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let path = Path::<String>::from_request_parts(parts, state).await;
        path.map(|Path(name)| Name(name)).map_err(|_| Refusal::missing("there is nothing by that name"))
    }
}

/// The fields of a body in JSON, and the files of one in parts.
pub struct Form {
    /// Texts, of either.
    pub fields: Fields,
    /// Files by the names of their fields.
    pub files: Vec<(String, Bytes)>,
}

impl Form {
    /// Reads the body of a request, of either kind.
    ///
    /// # Errors
    /// It is too long, too slow, or not what its type says.
    pub async fn read(request: Request, most: usize) -> Result<Self, Refusal> {
        let kind = request.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        if kind.to_ascii_lowercase().starts_with("multipart/form-data") {
            return in_time(parts(request, most)).await;
        }
        Ok(Form { fields: Fields::new(object(request, most).await?), files: Vec::new() })
    }
}

/// The fields of a JSON body; none if there is no body.
///
/// # Errors
/// It is too long, too slow, or no JSON object.
pub async fn object(request: Request, most: usize) -> Result<Map<String, Value>, Refusal> {
    let bytes = whole(request, most).await?;
    if bytes.is_empty() {
        return Ok(Map::new());
    }
    match parse(&bytes)? {
        Value::Object(fields) => Ok(fields),
        _ => Err(Refusal::bad("expected a JSON object")),
    }
}

/// A JSON body as a type whose fields are all known.
///
/// # Errors
/// It is too long, too slow, or not of the type.
pub async fn typed<T: DeserializeOwned>(request: Request, most: usize) -> Result<T, Refusal> {
    parse(&whole(request, most).await?)
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Refusal> {
    serde_json::from_slice(bytes)
        .map_err(|e| Refusal::new(StatusCode::BAD_REQUEST, "invalid_json", format!("JSON: {e}")))
}

async fn whole(request: Request, most: usize) -> Result<Bytes, Refusal> {
    let declared = request.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    if declared.is_some_and(|length: u64| length > most as u64) {
        return Err(Refusal::too_large(most));
    }
    in_time(async { axum::body::to_bytes(request.into_body(), most).await.map_err(|_| Refusal::too_large(most)) }).await
}

async fn in_time<T>(read: impl Future<Output = Result<T, Refusal>>) -> Result<T, Refusal> {
    let slow = || Refusal::new(StatusCode::REQUEST_TIMEOUT, "too_slow", "the body did not come in time");
    tokio::time::timeout(PATIENCE, read).await.map_err(|_| slow())?
}

/// A form in parts.
async fn parts(request: Request, most: usize) -> Result<Form, Refusal> {
    let wrong = |e: MultipartError| match e.status() {
        StatusCode::PAYLOAD_TOO_LARGE => Refusal::too_large(most),
        _ => Refusal::bad(format!("multipart body: {}", e.body_text())),
    };
    let mut parts = Multipart::from_request(request, &()).await.map_err(|e| Refusal::bad(e.body_text()))?;
    let (mut fields, mut files) = (Map::new(), Vec::new());
    let mut count = 0;
    while let Some(part) = parts.next_field().await.map_err(wrong)? {
        count += 1;
        if count > MOST_PARTS {
            return Err(Refusal::bad(format!("expected at most {MOST_PARTS} parts")));
        }
        let name = part.name().unwrap_or_default().to_owned();
        if name.is_empty() || name.len() > MOST_NAME {
            return Err(Refusal::bad(format!("expected parts with names of 1 to {MOST_NAME} bytes")));
        }
        // What a file was called on the client's machine is of no use here.
        let is_file = part.file_name().is_some();
        let bytes = part.bytes().await.map_err(wrong)?;
        if is_file {
            files.push((name, bytes));
        } else {
            let text = String::from_utf8(bytes.into()).map_err(|_| Refusal::field(&name, "expected UTF-8"))?;
            fields.insert(name, Value::String(text));
        }
    }
    Ok(Form { fields: Fields::new(fields), files })
}
