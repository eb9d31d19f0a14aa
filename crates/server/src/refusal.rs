//! Why a request is refused, in words, and as each API says it.

use aquatint::{Error, ErrorKind};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

/// Why a request is refused. As a response, OpenAI's error object.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// The status of the response.
    pub status: StatusCode,
    /// What kind it is, a word for programs.
    pub code: &'static str,
    /// What is wrong, one line for people.
    pub message: String,
    /// The field of the request that it is about.
    pub param: Option<String>,
    /// What happened, for the log alone.
    pub cause: Option<Cause>,
}

/// What happened, for the log alone; an extension of the response.
#[derive(Clone, Debug)]
pub struct Cause(pub String);

impl Refusal {
    /// A refusal with a status, a word for programs and a line for people.
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Refusal { status, code, message: message.into(), param: None, cause: None }
    }

    /// A request that is wrong in a field.
    pub fn field(param: &str, message: impl Into<String>) -> Self {
        let message = format!("{param}: {}", message.into());
        Refusal { param: Some(param.to_owned()), ..Refusal::new(StatusCode::BAD_REQUEST, "invalid_value", message) }
    }

    /// A request that is wrong.
    pub fn bad(message: impl Into<String>) -> Self {
        Refusal::new(StatusCode::BAD_REQUEST, "invalid_request", message)
    }

    /// Something that is not there.
    pub fn missing(message: impl Into<String>) -> Self {
        Refusal::new(StatusCode::NOT_FOUND, "not_found", message)
    }

    /// A body that is larger than `most` bytes.
    pub fn too_large(most: usize) -> Self {
        let message = format!("the body is longer than {most} bytes");
        Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message)
    }

    /// A fault of ours, which is told to the log alone.
    pub fn fault(cause: impl Into<String>) -> Self {
        let message = "the server failed; its log says why";
        let cause = Some(Cause(cause.into()));
        Refusal { cause, ..Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message) }
    }

    /// OpenAI's name of the kind.
    fn kind(&self) -> &'static str {
        match self.status {
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        }
    }

    /// OpenAI's error object.
    pub fn body(&self) -> serde_json::Value {
        json!({ "error": { "message": self.message, "type": self.kind(), "param": self.param, "code": self.code } })
    }

    /// What goes with some statuses.
    fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        match self.status {
            StatusCode::TOO_MANY_REQUESTS => _ = headers.insert(header::RETRY_AFTER, HeaderValue::from_static("5")),
            // Not Basic, though its password will do: browsers would ask in a way of their own, which the page does better.
            StatusCode::UNAUTHORIZED => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"aquatint\""));
            }
            _ => {}
        }
        headers
    }

    /// The same as the web UI says it.
    pub fn into_detail(self) -> Response {
        let body = json!({ "detail": self.message });
        self.with(body)
    }

    fn with(self, body: serde_json::Value) -> Response {
        let mut response = (self.status, self.headers(), axum::Json(body)).into_response();
        if let Some(cause) = self.cause {
            response.extensions_mut().insert(cause);
        }
        response
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let body = self.body();
        self.with(body)
    }
}

impl From<Error> for Refusal {
    /// What the library refuses is the request's fault, but for what fails below it.
    fn from(error: Error) -> Self {
        match error.kind() {
            ErrorKind::Request | ErrorKind::Class | ErrorKind::Memory | ErrorKind::Shape => {
                let mut message = error.to_string();
                // Words of the command line are of no use to a client.
                message = message.replace("--", "");
                let param = match &error {
                    Error::Request { what, .. } => Some(what.replace('-', "_")),
                    _ => None,
                };
                let code = if error.kind() == ErrorKind::Memory { "out_of_memory" } else { "invalid_value" };
                Refusal { param, ..Refusal::new(StatusCode::BAD_REQUEST, code, message) }
            }
            _ => Refusal::fault(error.to_string()),
        }
    }
}
