//! One batch of images: made by the reference, then by others with the same noise and prompts.

use aquatint::pipeline::ModelCall;
use aquatint::raw::backend::Backend;
use aquatint::{Event, Prompts, Request, Result, Session};

/// What the reference made of a batch.
pub(crate) struct Made {
    /// What was asked for, with features in place of texts: what all other files are asked for.
    pub request: Request,
    /// The chosen calls, with the states that they were made at.
    pub calls: Vec<ModelCall>,
    /// Final latents `(n, h, w, c)`.
    pub latents: Vec<f32>,
}

/// Lets the reference make a batch, keeping the states at the calls `chosen`; `step` is told of each call of a batch.
pub(crate) fn reference<B: Backend, D: AsRef<[u8]>>(
    session: &mut Session<'_, B, D>,
    request: Request,
    chosen: &[usize],
    step: &mut dyn FnMut(usize),
) -> Result<Made> {
    let (mut calls, mut prompts) = (Vec::new(), None);
    let mut failed = None;
    let mut made = request.clone();
    let latents = session.job(request)?.denoise(|job, event| {
        let next = match &event {
            Event::Queued { .. } | Event::Encoding => 0,
            // The next call is that, or, after the last one of a batch, the first of the next batch.
            Event::Step { done, total, images } => {
                step(images.len());
                if done == total { 0 } else { *done }
            }
            _ => return,
        };
        if matches!(event, Event::Step { .. }) && prompts.is_none() {
            prompts = Some(job.prompts().clone());
        }
        // Looking at a state waits for the device, so only those are looked at that are asked for.
        if failed.is_none() && chosen.binary_search(&next).is_ok() {
            match job.upcoming() {
                Ok(Some(call)) => calls.push(call),
                Ok(None) => {}
                Err(e) => failed = Some(e),
            }
        }
    })?;
    if let Some(e) = failed {
        return Err(e);
    }
    if let Some(prompts @ Prompts::Embeddings(_)) = prompts {
        made.prompts = prompts;
    }
    Ok(Made { request: made, calls, latents })
}

/// Final latents that another file makes of a batch.
pub(crate) fn other<B: Backend, D: AsRef<[u8]>>(
    session: &mut Session<'_, B, D>,
    made: &Made,
    step: &mut dyn FnMut(usize),
) -> Result<Vec<f32>> {
    session.job(made.request.clone())?.denoise(|_, event| {
        if let Event::Step { images, .. } = event {
            step(images.len());
        }
    })
}
