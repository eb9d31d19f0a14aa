//! Jobs: an order on its way, which anybody may watch.

use crate::refusal::Refusal;
use crate::served::Plan;
use crate::wish::Format;
use aquatint::Request;
use aquatint::image::Encoding;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::watch;

/// What is to be made: requests of a model, one after the other.
#[derive(Clone, Debug)]
pub struct Order {
    /// The model's number.
    pub model: usize,
    /// The seed of the first picture.
    pub seed: u64,
    /// The kind of file.
    pub format: Format,
    /// How it is made.
    pub encoding: Encoding,
    /// Pictures that are made together.
    pub parts: Vec<Part>,
}

/// Pictures that are made together.
#[derive(Clone, Debug)]
pub struct Part {
    /// What is known before it runs.
    pub plan: Plan,
    /// Height and width of a picture in pixels.
    pub size: [usize; 2],
    /// The text of each picture.
    pub texts: Vec<String>,
    /// What makes them.
    pub request: Request,
}

impl Part {
    /// Calls of the denoiser.
    pub fn steps(&self) -> usize {
        self.plan.steps * self.texts.len().div_ceil(self.plan.batch.max(1))
    }
}

impl Order {
    /// Pictures in all.
    pub fn images(&self) -> usize {
        self.parts.iter().map(|part| part.texts.len()).sum()
    }

    /// Calls of the denoiser in all.
    pub fn steps(&self) -> usize {
        self.parts.iter().map(Part::steps).sum()
    }

    /// Calls of the denoiser for each picture, of all pictures.
    pub fn work(&self) -> usize {
        self.parts.iter().map(|part| part.plan.steps * part.texts.len()).sum::<usize>().max(1)
    }

    /// Height and width of its pictures.
    pub fn size(&self) -> [usize; 2] {
        self.parts[0].size
    }
}

/// Where a job is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stage {
    /// It waits.
    Queued,
    /// Prompts and the picture that it begins with are read.
    Encoding,
    /// The denoiser is called.
    Sampling,
    /// Pictures are made of latents.
    Decoding,
    /// All pictures are there; fewer if it was interrupted.
    Done,
    /// Why it failed, for people.
    Failed(String),
    /// Nobody wants it any more.
    Cancelled,
}

impl Stage {
    /// A word for programs.
    pub fn name(&self) -> &'static str {
        match self {
            Stage::Queued => "queued",
            Stage::Encoding => "encoding",
            Stage::Sampling => "sampling",
            Stage::Decoding => "decoding",
            Stage::Done => "done",
            Stage::Failed(_) => "failed",
            Stage::Cancelled => "cancelled",
        }
    }

    /// Whether nothing more will happen.
    pub fn ended(&self) -> bool {
        matches!(self, Stage::Done | Stage::Failed(_) | Stage::Cancelled)
    }
}

/// A finished picture.
#[derive(Debug)]
pub struct Picture {
    /// The file.
    pub bytes: Vec<u8>,
    /// How it was made.
    pub text: String,
    /// Its seed.
    pub seed: u64,
}

/// What is known of a job on its way.
#[derive(Clone, Debug)]
pub struct Progress {
    /// Where it is.
    pub stage: Stage,
    /// Calls of the denoiser that are done, of all parts.
    pub step: usize,
    /// Pictures that are done.
    pub pictures: Vec<Arc<Picture>>,
    /// When it was begun.
    pub begun: Option<Instant>,
    /// When it ended.
    pub ended: Option<Instant>,
}

/// An order on its way.
pub struct Job {
    /// Its name.
    pub id: String,
    /// What is to be made.
    pub order: Order,
    /// When it came.
    pub created: SystemTime,
    /// When it came, for durations.
    pub came: Instant,
    progress: watch::Sender<Progress>,
    cancelled: AtomicBool,
    interrupted: AtomicBool,
    skipped: AtomicBool,
}

impl Job {
    /// A job that waits.
    pub fn new(order: Order) -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(1);
        let progress = Progress { stage: Stage::Queued, step: 0, pictures: Vec::new(), begun: None, ended: None };
        Job {
            id: format!("job-{}-{:08x}", NUMBER.fetch_add(1, Ordering::Relaxed), fastrand::u32(..)),
            order,
            created: SystemTime::now(),
            came: Instant::now(),
            progress: watch::Sender::new(progress),
            cancelled: AtomicBool::new(false),
            interrupted: AtomicBool::new(false),
            skipped: AtomicBool::new(false),
        }
    }

    /// Seconds since 1970 at which it came.
    pub fn created(&self) -> u64 {
        self.created.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs())
    }

    /// What is known of it now.
    pub fn progress(&self) -> Progress {
        self.progress.borrow().clone()
    }

    /// Tells whenever more is known.
    pub fn watch(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// Changes what is known of it.
    pub fn update(&self, change: impl FnOnce(&mut Progress)) {
        self.progress.send_modify(change);
    }

    /// It ends so, unless it has ended.
    pub fn end(&self, stage: Stage) {
        self.progress.send_if_modified(|progress| {
            let open = !progress.stage.ended();
            if open {
                (progress.stage, progress.ended) = (stage, Some(Instant::now()));
            }
            open
        });
    }

    /// Nobody wants it any more: it ends after the step at work.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Whether [`cancel`](Self::cancel) was called.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// It ends after the step at work, with the pictures that are done.
    pub fn interrupt(&self) {
        self.interrupted.store(true, Ordering::Relaxed);
    }

    /// Whether [`interrupt`](Self::interrupt) was called.
    pub fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }

    /// The part at work ends after its step, and the next begins.
    pub fn skip(&self) {
        self.skipped.store(true, Ordering::Relaxed);
    }

    /// Whether [`skip`](Self::skip) was called since the last time.
    pub fn take_skip(&self) -> bool {
        self.skipped.swap(false, Ordering::Relaxed)
    }

    /// All its pictures, once there are all.
    ///
    /// # Errors
    /// Why there are none.
    pub async fn pictures(&self) -> Result<Vec<Arc<Picture>>, Refusal> {
        let mut watch = self.watch();
        let Ok(progress) = watch.wait_for(|progress| progress.stage.ended()).await else {
            return Err(Refusal::fault("a job was lost"));
        };
        match &progress.stage {
            Stage::Failed(why) => Err(Refusal::fault(why.clone())),
            Stage::Cancelled => Err(cancelled()),
            _ => Ok(progress.pictures.clone()),
        }
    }
}

impl Progress {
    /// The share that is done, 0 to 1, of an order; decoding counts as the last hundredth.
    pub fn share(&self, order: &Order) -> f64 {
        match self.stage {
            Stage::Done => 1.0,
            _ => 0.99 * self.step as f64 / order.steps().max(1) as f64,
        }
    }

    /// How long it will take from now on, if it goes on as it did; none before the first step.
    pub fn remaining(&self, order: &Order) -> Option<Duration> {
        let passed = self.ended.unwrap_or_else(Instant::now).duration_since(self.begun?);
        let share = self.share(order);
        (share > 0.0).then(|| passed.mul_f64((1.0 - share) / share))
    }
}

/// The answer to a request whose job was cancelled by somebody else.
pub fn cancelled() -> Refusal {
    Refusal::new(axum::http::StatusCode::CONFLICT, "cancelled", "the job was cancelled")
}
