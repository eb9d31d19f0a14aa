//! Jobs that wait, first come, first served, and those that somebody will ask for.

use crate::job::{Job, Order, Stage};
use crate::refusal::Refusal;
use axum::http::StatusCode;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// How long a finished job can be asked for.
const KEPT: Duration = Duration::from_secs(600);
/// Finished jobs that can be asked for at most: their pictures take memory.
const MOST_KEPT: usize = 128;
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

    /// The job at work ends so.
    pub fn finish(&self, job: &Job, stage: Stage) {
        job.end(stage);
        let progress = job.progress();
        let mut inner = self.inner();
        inner.at_work = None;
        inner.count(&progress.stage);
        if let (Stage::Done, Some(begun)) = (&progress.stage, progress.begun)
            && progress.pictures.len() == job.order.images()
            && inner.rates.len() < MOST_RATES
        {
            let rate = begun.elapsed().as_secs_f64() / job.order.work() as f64;
            inner.rates.insert((job.order.model, job.order.size()), rate);
        }
        inner.counts.pictures += progress.pictures.len() as u64;
        inner.counts.steps += progress.step as u64;
        inner.counts.seconds += progress.begun.map_or(0.0, |begun| begun.elapsed().as_secs_f64());
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

    /// Forgets finished jobs that nobody has asked for in time.
    fn forget(&mut self) {
        let ended = |job: &Arc<Job>| job.progress().ended;
        let old = |at: Instant| at.elapsed() > KEPT;
        let finished = self.named.iter().filter(|job| ended(job).is_some()).count();
        let mut surplus = finished.saturating_sub(MOST_KEPT);
        let gone = &mut self.gone;
        self.named.retain(|job| {
            let Some(at) = ended(job) else { return true };
            let keep = !old(at) && surplus == 0;
            surplus = surplus.saturating_sub(1);
            if !keep {
                gone.push_back(job.id.clone());
            }
            keep
        });
        while gone.len() > MOST_GONE {
            gone.pop_front();
        }
    }
}

/// Cancels a job when its client goes away: when this is dropped before [`keep`](Self::keep).
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
