//! The page that people use: files of `page/dist`, which `page/package.json` builds.

use super::Shared;
use axum::Router;
use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::get;

/// Places, types and bytes.
const FILES: [(&str, &str, &[u8]); 3] = [
    ("/", "text/html; charset=utf-8", include_bytes!("../../page/dist/index.html")),
    ("/page.js", "text/javascript; charset=utf-8", include_bytes!("../../page/dist/page.js")),
    ("/page.css", "text/css; charset=utf-8", include_bytes!("../../page/dist/page.css")),
];

pub fn routes() -> Router<Shared> {
    FILES.iter().fold(Router::new(), |router, &(place, kind, bytes)| {
        router.route(place, get(move || async move { ([(header::CONTENT_TYPE, kind)], bytes).into_response() }))
    })
}

/// Whether a place is one of the page's files, which hold nothing that a token would guard.
pub fn is_page(path: &str) -> bool {
    FILES.iter().any(|(place, _, _)| *place == path)
}
