//! The server: connections, routes, and how it ends.

mod about;
mod body;
mod events;
mod fields;
mod guard;
mod jobs;
mod openai;
mod openapi;
mod page;
mod webui;

use crate::queue::Queue;
use crate::served::Catalogue;
use crate::settings::Settings;
use axum::Router;
use axum::extract::DefaultBodyLimit;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, watch};

/// How long the head of a request may take, and a connection be idle.
const HEAD: Duration = Duration::from_secs(10);
/// How long the server waits for answers that are on their way when it ends.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// Threads that read what clients send and plan what it takes: each may hold a decoded picture.
const READERS: usize = 2;
/// Bytes of the head of a request.
const MOST_HEAD: usize = 64 << 10;

/// Takes a line of the log.
type Log = Arc<dyn Fn(&str) + Send + Sync>;

/// What every handler knows.
struct App {
    catalogue: Catalogue,
    queue: Arc<Queue>,
    settings: Settings,
    address: SocketAddr,
    /// The model that requests of the web UI's API go to when they name none.
    chosen: AtomicUsize,
    started: Instant,
    log: Log,
}

type Shared = Arc<App>;

/// A server that listens.
pub struct Server {
    queue: Arc<Queue>,
    stop: Stop,
    address: SocketAddr,
    thread: std::thread::JoinHandle<()>,
}

/// Ends a server: nothing more is taken in, what waits is cancelled, and the job at work ends after its step.
#[derive(Clone)]
pub struct Stop {
    queue: Arc<Queue>,
    sender: watch::Sender<bool>,
}

impl Stop {
    /// Ends it.
    pub fn stop(&self) {
        self.queue.close();
        self.sender.send_replace(true);
    }
}

impl Server {
    /// Answers at `listener` on a thread of its own. What is ordered waits in [`queue`](Self::queue), for an
    /// [`Engine`](crate::Engine). `log` is told what clients are not.
    ///
    /// # Errors
    /// The listener cannot be used, or the system starts no thread.
    pub fn start(
        listener: TcpListener,
        catalogue: Catalogue,
        settings: Settings,
        log: impl Fn(&str) + Send + Sync + 'static,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let queue = Arc::new(Queue::new(settings.limits.queue));
        let (sender, stopped) = watch::channel(false);
        let app = Arc::new(App {
            catalogue,
            queue: queue.clone(),
            settings,
            address,
            chosen: AtomicUsize::new(0),
            started: Instant::now(),
            log: Arc::new(log),
        });
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(READERS).build()?;
        let work = move || {
            runtime.block_on(async {
                let log = app.log.clone();
                match tokio::net::TcpListener::from_std(listener) {
                    Ok(listener) => accept(listener, app, stopped).await,
                    Err(e) => log(&format!("cannot listen: {e}")),
                }
            });
            // Work that was handed to other threads is not waited for.
            runtime.shutdown_background();
        };
        let thread = std::thread::Builder::new().name("http".into()).spawn(work)?;
        Ok(Server { stop: Stop { queue: queue.clone(), sender }, queue, address, thread })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What ends it.
    pub fn stop(&self) -> Stop {
        self.stop.clone()
    }

    /// What is ordered.
    pub fn queue(&self) -> Arc<Queue> {
        self.queue.clone()
    }

    /// Waits until it has ended.
    pub fn join(self) {
        let _ = self.thread.join();
    }
}

/// Serves connections until it is told to stop.
async fn accept(listener: tokio::net::TcpListener, app: Shared, mut stopped: watch::Receiver<bool>) {
    let slots = Arc::new(Semaphore::new(app.settings.limits.connections));
    let router = router(app.clone());
    let graceful = GracefulShutdown::new();
    loop {
        let slot = tokio::select! {
            slot = slots.clone().acquire_owned() => slot,
            _ = stopped.wait_for(|&stop| stop) => break,
        };
        let Ok(slot) = slot else { break };
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(e) => {
                    // Such as too many open files: those that are served go on.
                    (app.log)(&format!("a connection was lost: {e}"));
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
            _ = stopped.wait_for(|&stop| stop) => break,
        };
        let _ = stream.set_nodelay(true);
        let mut builder = hyper::server::conn::http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(HEAD).max_buf_size(MOST_HEAD);
        let service = TowerToHyperService::new(router.clone());
        let connection = graceful.watch(builder.serve_connection(TokioIo::new(stream), service));
        tokio::spawn(async move {
            // What goes wrong with a connection is its client's business.
            let _ = connection.await;
            drop(slot);
        });
    }
    drop(listener);
    let _ = tokio::time::timeout(LAST_WORDS, graceful.shutdown()).await;
}

/// Every route.
fn router(app: Shared) -> Router {
    let body = DefaultBodyLimit::max(app.settings.limits.body);
    Router::new()
        .merge(about::routes())
        .merge(openai::routes())
        .merge(jobs::routes())
        .merge(webui::routes())
        .merge(page::routes())
        .merge(openapi::routes())
        .fallback(|| async {
            crate::refusal::Refusal::missing("there is no such place here; GET /health tells whether the server works")
        })
        .method_not_allowed_fallback(|| async {
            let status = axum::http::StatusCode::METHOD_NOT_ALLOWED;
            crate::refusal::Refusal::new(status, "method_not_allowed", "this place takes another method")
        })
        .layer(body)
        .layer(axum::middleware::from_fn_with_state(app.clone(), guard::guard))
        .with_state(app)
}
