//! What a request must be before anybody looks at what it asks, and what goes with every answer.
//!
//! Web pages can make a browser send requests to this machine; they are told by their `Origin` and `Sec-Fetch-Site`, and by a
//! `Host` that is not ours when a name was bound to our address (DNS rebinding).

use super::Shared;
use super::page::is_page;
use crate::refusal::{Cause, Refusal};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use subtle::ConstantTimeEq;

/// What goes with every answer.
const ALWAYS: [(HeaderName, &str); 4] = [
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
    ),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::CACHE_CONTROL, "no-store"),
];

/// Lets a request through, or answers it.
pub async fn guard(State(app): State<Shared>, request: Request, next: Next) -> Response {
    let origin = request.headers().get(header::ORIGIN).cloned();
    let allowed = origin.as_ref().filter(|origin| is_allowed_origin(&app, origin)).cloned();
    let preflight = request.method() == Method::OPTIONS && allowed.is_some();
    let path = request.uri().path().to_owned();
    let mut response = match check(&app, &request) {
        Err(refusal) => refusal.into_response(),
        Ok(()) if preflight => StatusCode::NO_CONTENT.into_response(),
        Ok(()) => next.run(request).await,
    };
    if let Some(Cause(cause)) = response.extensions_mut().remove() {
        (app.log)(&format!("{path}: {}", aquatint::error::one_line(&cause)));
    }
    let headers = response.headers_mut();
    for (name, value) in ALWAYS {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
    if let Some(origin) = allowed {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(header::VARY, HeaderValue::from_static("origin"));
        let preflight = [
            (header::ACCESS_CONTROL_ALLOW_METHODS, "GET, POST, DELETE"),
            (header::ACCESS_CONTROL_ALLOW_HEADERS, "authorization, content-type"),
        ];
        for (name, value) in preflight {
            headers.insert(name, HeaderValue::from_static(value));
        }
    }
    response
}

fn check(app: &Shared, request: &Request) -> Result<(), Refusal> {
    let headers = request.headers();
    check_host(app, headers, request.uri())?;
    check_origin(app, headers)?;
    if request.method() == Method::OPTIONS {
        return Ok(());
    }
    // Who asks whether the server is there need not be known, nor who is about to say who he is.
    let path = request.uri().path();
    if path != "/health" && !is_page(path) {
        check_token(app, headers)?;
    }
    check_content(request)
}

fn forbidden(message: impl Into<String>) -> Refusal {
    Refusal::new(StatusCode::FORBIDDEN, "forbidden", message)
}

/// The name of a host, without its port.
fn host_name(host: &str) -> &str {
    match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => host
            .rsplit_once(':')
            .filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()))
            .map_or(host, |(name, _)| name),
    }
}

/// Refuses names that are not the server's: who calls it by another may have been led here by a page.
fn check_host(app: &Shared, headers: &HeaderMap, uri: &Uri) -> Result<(), Refusal> {
    let mut all = headers.get_all(header::HOST).iter();
    let host = match (all.next(), all.next()) {
        (Some(host), None) => host.to_str().unwrap_or_default(),
        // HTTP/1.0 has none; its clients are no browsers.
        (None, _) => uri.authority().map_or("localhost", |authority| authority.as_str()),
        (Some(_), Some(_)) => "",
    };
    if is_own_host(app, host_name(host)) {
        return Ok(());
    }
    Err(Refusal::new(
        StatusCode::MISDIRECTED_REQUEST,
        "unknown_host",
        "this server is not known by that name; start it with --allow-host NAME if it should be",
    ))
}

fn is_own_host(app: &Shared, name: &str) -> bool {
    let known = ["localhost", "127.0.0.1", "::1"];
    let own = app.address.ip();
    known.iter().any(|known| name.eq_ignore_ascii_case(known))
        || (!own.is_unspecified() && name.parse().is_ok_and(|ip: std::net::IpAddr| ip == own))
        || app.settings.hosts.iter().any(|host| name.eq_ignore_ascii_case(host))
}

/// Whether pages of this origin may read answers.
fn is_allowed_origin(app: &Shared, origin: &HeaderValue) -> bool {
    origin.to_str().is_ok_and(|origin| app.settings.origins.iter().any(|allowed| allowed == origin))
}

/// Refuses requests that pages of other origins made a browser send. An origin that is `null` or none we understand is another.
fn check_origin(app: &Shared, headers: &HeaderMap) -> Result<(), Refusal> {
    let site = headers.get("sec-fetch-site").map(|site| site.as_bytes());
    let Some(origin) = headers.get(header::ORIGIN) else {
        return match site {
            Some(b"cross-site" | b"same-site") => Err(forbidden("pages of other sites may not use this server")),
            _ => Ok(()),
        };
    };
    if is_allowed_origin(app, origin) {
        return Ok(());
    }
    // Our own pages: the origin is the host that was called, which was checked.
    let called = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let own = origin.to_str().ok().and_then(|origin| origin.split_once("://")).is_some_and(|(scheme, host)| {
        ["http", "https"].contains(&scheme) && !host.is_empty() && host.eq_ignore_ascii_case(called)
    });
    if own {
        return Ok(());
    }
    Err(forbidden("pages of other origins may not use this server; start it with --allow-origin ORIGIN if they should"))
}

/// Refuses clients without the token.
fn check_token(app: &Shared, headers: &HeaderMap) -> Result<(), Refusal> {
    let Some(token) = &app.settings.token else { return Ok(()) };
    let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).and_then(|value| {
        let (scheme, rest) = value.split_once(' ')?;
        match scheme.to_ascii_lowercase().as_str() {
            "bearer" => Some(rest.trim().to_owned()),
            "basic" => {
                let plain = base64::engine::general_purpose::STANDARD.decode(rest.trim()).ok()?;
                // The user's name does not matter.
                let plain = String::from_utf8(plain).ok()?;
                Some(plain.split_once(':').map_or(plain.clone(), |(_, password)| password.to_owned()))
            }
            _ => None,
        }
    });
    let right = given.is_some_and(|given| bool::from(given.as_bytes().ct_eq(token.as_bytes())));
    if right {
        return Ok(());
    }
    let message = "the request shows no token of this server (Authorization: Bearer TOKEN)";
    Err(Refusal::new(StatusCode::UNAUTHORIZED, "invalid_api_key", message))
}

/// Refuses bodies of kinds that pages can send without being asked about: forms and plain text.
fn check_content(request: &Request) -> Result<(), Refusal> {
    let headers = request.headers();
    let length = headers.get(header::CONTENT_LENGTH).map(|length| length.as_bytes() != b"0");
    if request.method() == Method::GET || !length.unwrap_or(headers.contains_key(header::TRANSFER_ENCODING)) {
        return Ok(());
    }
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if kind == "application/json" || kind == "multipart/form-data" {
        return Ok(());
    }
    let message = format!("expected a body of application/json, got {:?}", &kind[..kind.len().min(64)]);
    Err(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message))
}
