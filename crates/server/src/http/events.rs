//! Answers that come in pieces, as server-sent events.

use axum::http::{HeaderName, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_core::Stream;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::mpsc;

/// How often a client hears that the server is still there.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// Events that wait for a slow client.
const AHEAD: usize = 16;

/// Sends events of an answer.
#[derive(Clone)]
pub struct Sender(mpsc::Sender<Event>);

/// The client has gone.
pub struct Gone;

impl Sender {
    /// Sends an event of this name with data in JSON.
    ///
    /// # Errors
    /// The client has gone.
    pub async fn send(&self, name: &str, data: &serde_json::Value) -> Result<(), Gone> {
        self.0.send(Event::default().event(name).data(data.to_string())).await.map_err(|_| Gone)
    }
}

struct Receiver(mpsc::Receiver<Event>);

impl Stream for Receiver {
    type Item = Result<Event, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(context).map(|event| event.map(Ok))
    }
}

/// An answer whose events `tell` sends. It is dropped where it waits when the client goes away.
pub fn answer<F: Future<Output = Result<(), Gone>> + Send + 'static>(tell: impl FnOnce(Sender) -> F) -> Response {
    let (sender, receiver) = mpsc::channel(AHEAD);
    let gone = sender.clone();
    let work = tell(Sender(sender));
    tokio::spawn(async move {
        tokio::select! {
            _ = work => {}
            _ = gone.closed() => {}
        }
    });
    let events = Sse::new(Receiver(receiver)).keep_alive(KeepAlive::new().interval(HEARTBEAT));
    // Proxies must not gather them.
    let headers = [(header::CACHE_CONTROL, "no-store"), (HeaderName::from_static("x-accel-buffering"), "no")];
    (headers, events).into_response()
}
