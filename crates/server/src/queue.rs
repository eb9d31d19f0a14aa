//! Jobs that wait, first come, first served, and those that somebody will ask for.

use crate::job::{Job, Order, Stage};
use crate::refusal::Refusal;
use axum::http::StatusCode;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

/// How long a finished job can be asked for.
const KEPT: Duration = Duration::from_secs(600);
/// Finished jobs that can be asked for at most.
const MOST_KEPT: usize = 128;
/// Bytes of their pictures at most; the last job is kept however large it is.
const MOST_BYTES: usize = 256 << 20;
/// Names of jobs that could be asked for once.
const MOST_GONE: usize = 4096;
/// Sizes whose times are remembered.
const MOST_RATES: usize = 256;

/// Jobs on their way. One is at work at a time.
pub struct Queue {
    inner: Mutex<Inner>,
    changed: Condvar,
    most: usize,
}

#[derive(Default)]
struct Inner {
    waiting: VecDeque<Arc<Job>>,
    at_work: Option<Arc<Job>>,
    /// Those that clients may ask for by name, in the order in which they came.
    named: VecDeque<Arc<Job>>,
    /// Names of those that were forgotten, the last at the end.
    gone: VecDeque<String>,
    closed: bool,
    counts: Counts,
    /// Seconds of a call and picture by model and size, as the last jobs took.
    rates: HashMap<(usize, [usize; 2]), f64>,
}

/// What happened so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Jobs by how they ended.
    pub done: u64,
    /// Jobs that failed.
    pub failed: u64,
    /// Jobs that were cancelled.
    pub cancelled: u64,
    /// Orders that found no place.
    pub rejected: u64,
    /// Pictures that were made.
    pub pictures: u64,
    /// Calls of the denoiser.
    pub steps: u64,
    /// Seconds at work.
    pub seconds: f64,
    /// Seconds that jobs waited before their turn.
    pub waited: f64,
}

impl Queue {
    /// A queue in which at most `most` jobs wait.
    pub fn new(most: usize) -> Self {
        Queue { inner: Mutex::default(), changed: Condvar::new(), most }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Nothing that is done under the lock can stop half-way.
        self.inner.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Lets an order wait its turn; `named` if clients may ask for it by name.
    ///
    /// # Errors
    /// There is no place, or the server is about to end.
    pub fn push(&self, order: Order, named: bool) -> Result<Arc<Job>, Refusal> {
        let mut inner = self.inner();
        if inner.closed {
            return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "shutting_down", "the server is about to end"));
        }
        if inner.waiting.len() >= self.most {
            inner.counts.rejected += 1;
            let message =
                format!("{} jobs are waiting, which is all that there is room for; try again later", self.most);
            return Err(Refusal::new(StatusCode::TOO_MANY_REQUESTS, "queue_full", message));
        }
        let job = Arc::new(Job::new(order));
        inner.waiting.push_back(job.clone());
        if named {
            inner.named.push_back(job.clone());
            inner.forget();
        }
        self.changed.notify_all();
        Ok(job)
    }

    /// The next job, which is at work from now on; waits for one. None once the queue is closed.
    pub fn next(&self) -> Option<Arc<Job>> {
        let mut inner = self.inner();
        loop {
            if inner.closed {
                return None;
            }
            if let Some(job) = inner.waiting.pop_front() {
                inner.counts.waited += job.came.elapsed().as_secs_f64();
                inner.at_work = Some(job.clone());
                return Some(job);
            }
            inner = self.changed.wait(inner).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
    }

    /// The job at work ends so. All is counted before anybody hears of it.
    pub fn finish(&self, job: &Job, stage: Stage) {
        let progress = job.progress();
        let seconds = progress.begun.map_or(0.0, |begun| begun.elapsed().as_secs_f64());
        let mut inner = self.inner();
        inner.at_work = None;
        inner.count(&stage);
        inner.counts.pictures += progress.pictures.len() as u64;
        inner.counts.steps += progress.step as u64;
        inner.counts.seconds += seconds;
        let whole = stage == Stage::Done && progress.pictures.len() == job.order.images();
        if whole && inner.rates.len() < MOST_RATES {
            inner.rates.insert((job.order.model, job.order.size()), seconds / job.order.work() as f64);
        }
        job.end(stage);
        inner.forget();
    }

    /// Ends a job: at once if it waits, after its step if it is at work.
    pub fn cancel(&self, job: &Job) {
        job.cancel();
        let mut inner = self.inner();
        if let Some(at) = inner.waiting.iter().position(|other| other.id == job.id) {
            inner.waiting.remove(at);
            job.end(Stage::Cancelled);
            inner.count(&Stage::Cancelled);
        }
    }

    /// The job at work.
    pub fn at_work(&self) -> Option<Arc<Job>> {
        self.inner().at_work.clone()
    }

    /// Jobs that wait.
    pub fn waiting(&self) -> usize {
        self.inner().waiting.len()
    }

    /// How many are before a job, the one at work among them; 0 once it is at work.
    pub fn position(&self, job: &Job) -> usize {
        let inner = self.inner();
        let at = inner.waiting.iter().position(|other| other.id == job.id);
        at.map_or(0, |at| at + usize::from(inner.at_work.is_some()))
    }

    /// A job that clients may ask for by name.
    ///
    /// # Errors
    /// There is none of that name, or not any more.
    pub fn named(&self, id: &str) -> Result<Arc<Job>, Refusal> {
        let mut inner = self.inner();
        inner.forget();
        if let Some(job) = inner.named.iter().find(|job| job.id == id) {
            return Ok(job.clone());
        }
        if inner.gone.iter().any(|gone| gone == id) {
            let message = format!("job {id} was finished, and is forgotten after {} seconds", KEPT.as_secs());
            return Err(Refusal::new(StatusCode::GONE, "job_expired", message));
        }
        Err(Refusal::missing(format!("there is no job {:?}", &id[..id.len().min(64)])))
    }

    /// Seconds that an order will take, if one of its model and size was seen.
    pub fn seconds(&self, order: &Order) -> Option<f64> {
        Some(self.inner().rates.get(&(order.model, order.size()))? * order.work() as f64)
    }

    /// What happened so far.
    pub fn counts(&self) -> Counts {
        self.inner().counts
    }

    /// Takes nothing more in: what waits is cancelled, and so is the job at work after its step.
    pub fn close(&self) {
        let mut inner = self.inner();
        inner.closed = true;
        for job in std::mem::take(&mut inner.waiting) {
            job.cancel();
            job.end(Stage::Cancelled);
            inner.count(&Stage::Cancelled);
        }
        if let Some(job) = &inner.at_work {
            job.cancel();
        }
        self.changed.notify_all();
    }
}

impl Inner {
    fn count(&mut self, stage: &Stage) {
        match stage {
            Stage::Failed(_) => self.counts.failed += 1,
            Stage::Cancelled => self.counts.cancelled += 1,
            _ => self.counts.done += 1,
        }
    }

    /// Forgets finished jobs: those that nobody has asked for in time, and the oldest where there are too many.
    fn forget(&mut self) {
        let (mut count, mut bytes) = (0, 0);
        let mut keep: Vec<bool> = Vec::with_capacity(self.named.len());
        for job in self.named.iter().rev() {
            let progress = job.progress();
            let Some(ended) = progress.ended else {
                keep.push(true);
                continue;
            };
            count += 1;
            bytes += progress.pictures.iter().map(|picture| picture.bytes.len()).sum::<usize>();
            keep.push(ended.elapsed() < KEPT && count <= MOST_KEPT && (count == 1 || bytes <= MOST_BYTES));
        }
        let gone = &mut self.gone;
        self.named.retain(|job| {
            let kept = keep.pop().unwrap_or(true);
            if !kept {
                gone.push_back(job.id.clone());
            }
            kept
        });
        while gone.len() > MOST_GONE {
            gone.pop_front();
        }
    }
}

/// Cancels a job when its client goes away: when this is dropped before the job has ended.
pub struct CancelOnDrop {
    queue: Arc<Queue>,
    job: Arc<Job>,
}

impl CancelOnDrop {
    /// For a job of this queue.
    pub fn new(queue: &Arc<Queue>, job: &Arc<Job>) -> Self {
        CancelOnDrop { queue: queue.clone(), job: job.clone() }
    }
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        if !self.job.progress().stage.ended() {
            self.queue.cancel(&self.job);
        }
    }
}
