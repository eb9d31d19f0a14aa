//! What makes pictures: one thread, one job at a time, models kept warm.

use crate::job::{Job, Part, Picture, Stage};
use crate::queue::Queue;
use aquatint::image::{Encoding, from_nhwc, to_bytes};
use aquatint::raw::backend::Backend;
use aquatint::{Error, Event, Model, Result, Session};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

/// The keyword of the text in a PNG that tells how it was made.
const TEXT: &str = "parameters";

/// Makes the pictures of jobs, on the thread that runs it.
pub struct Engine<'m, B: Backend, D> {
    models: Vec<(&'m Model<'m, D>, &'m B)>,
    sessions: Vec<Session<'m, B, D>>,
}

/// How far a part came.
enum Ended {
    All,
    Interrupted,
    Cancelled,
}

impl<'m, B: Backend, D: AsRef<[u8]>> Engine<'m, B, D> {
    /// For models in the order of the catalogue, each with its back end.
    pub fn new(models: Vec<(&'m Model<'m, D>, &'m B)>) -> Self {
        let sessions = models.iter().map(|&(model, backend)| Session::new(model, backend)).collect();
        Engine { models, sessions }
    }

    /// Works until the queue is closed. `log` is told what went wrong.
    pub fn run(mut self, queue: &Queue, log: impl Fn(&str)) {
        while let Some(job) = queue.next() {
            // A fault of ours ends one job, not the server; what it was working with is made anew.
            let done = catch_unwind(AssertUnwindSafe(|| self.make(&job)));
            let stage = match done {
                Ok(Ok(Ended::Cancelled)) => Stage::Cancelled,
                Ok(Ok(_)) => Stage::Done,
                Ok(Err(error)) => Stage::Failed(error.to_string()),
                Err(_) => {
                    let (model, backend) = self.models[job.order.model];
                    self.sessions[job.order.model] = Session::new(model, backend);
                    Stage::Failed("a fault in this program".into())
                }
            };
            if let Stage::Failed(why) = &stage {
                log(&format!("{} failed: {why}", job.id));
            }
            queue.finish(&job, stage);
        }
    }

    /// Makes all parts of a job.
    fn make(&mut self, job: &Job) -> Result<Ended> {
        job.update(|progress| progress.begun = Some(Instant::now()));
        let session = &mut self.sessions[job.order.model];
        let mut before = 0;
        for part in &job.order.parts {
            match make_part(session, job, part, before)? {
                Ended::All => {}
                ended => return Ok(ended),
            }
            before += part.steps();
        }
        Ok(Ended::All)
    }
}

/// Makes the pictures of a part, before which there were `before` steps.
fn make_part<B: Backend, D: AsRef<[u8]>>(
    session: &mut Session<'_, B, D>,
    job: &Job,
    part: &Part,
    before: usize,
) -> Result<Ended> {
    // What other sizes took is let go, so that memory stays what the largest job takes.
    session.keep_at_most(part.plan.keep);
    let [height, width] = part.size;
    let channels = session.model().picture_channels();
    let mut running = session.job(part.request.clone())?;
    job.take_skip();
    loop {
        if job.is_cancelled() {
            return Ok(Ended::Cancelled);
        }
        if job.is_interrupted() {
            return Ok(Ended::Interrupted);
        }
        if job.take_skip() {
            return Ok(Ended::All);
        }
        match running.next()? {
            None => return Ok(Ended::All),
            Some(Event::Queued { .. } | Event::Encoding) => job.update(|progress| progress.stage = Stage::Encoding),
            Some(Event::Step { done, total, images }) => job.update(|progress| {
                progress.stage = Stage::Sampling;
                progress.step = before + images.start / part.plan.batch.max(1) * total + done;
            }),
            Some(Event::Decoding { .. }) => job.update(|progress| progress.stage = Stage::Decoding),
            Some(Event::Image { index }) => {
                let values = running.image(index).expect("it was told of");
                let text = &part.texts[index];
                let image = from_nhwc(values, 1, height as u32, width as u32, channels)?.remove(0);
                let texts: &[(&str, &str)] = if job.order.encoding == Encoding::Png { &[(TEXT, text)] } else { &[] };
                let bytes = to_bytes(&image, job.order.encoding, texts)?;
                let seed = part.request.seed.wrapping_add(index as u64);
                let picture = Arc::new(Picture { bytes, text: text.clone(), seed });
                job.update(|progress| progress.pictures.push(picture));
            }
            Some(other) => return Err(Error::request("event", "one that this server knows", format!("{other:?}"))),
        }
    }
}
