//! The states of a run: what networks are given at the calls that are looked at later.

use super::samples;
use crate::error::Result;
use aquatint::error::Error;
use aquatint::pipeline::{Job, ModelCall, Prompts, Request, Session};
use aquatint::raw::backend::cpu::Cpu;
use aquatint::raw::exec::Moment;
use aquatint::raw::program::Role;

/// A call of an image.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Call {
    /// Its network.
    pub role: Role,
    /// When it happens.
    pub moment: Moment,
}

/// States of the images of a calibration.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct States {
    /// All calls of an image; empty before the first image is done.
    pub calls: Vec<Call>,
    /// The calls whose states are kept.
    pub chosen: Vec<usize>,
    /// Per chosen call, what the network read, `(n, h, w, c)` of the images that are done.
    pub samples: Vec<Vec<f32>>,
    /// Images that are done.
    pub done: usize,
}

/// The numbers of `st` of `total` calls: the middles of as many equal parts, or all if there are no more.
pub fn choose(total: usize, st: usize) -> Vec<usize> {
    if st >= total {
        return (0..total).collect();
    }
    (0..st).map(|i| (2 * i + 1) * total / (2 * st)).collect()
}

/// The features of the request's prompts: those of `session`'s own text encoders where they are texts.
///
/// # Errors
/// Those of the job.
pub fn encoded<D: AsRef<[u8]>>(session: &mut Session<'_, Cpu, D>, request: &Request) -> Result<(Prompts, Vec<String>)> {
    if !matches!(request.prompts, Prompts::Texts(_)) {
        return Ok((request.prompts.clone(), Vec::new()));
    }
    let mut job = session.job(request.clone())?;
    while job.upcoming()?.is_none() {
        job.next()?;
    }
    Ok((job.prompts().clone(), job.cut().to_vec()))
}

/// Runs the images `images` of `request` that are not done yet, and keeps their states. `see` is told the images done
/// after each call, in parts of images, and whether a batch is done; it may end the run by saying false.
///
/// # Errors
/// Those of the job; none if `see` ended it, with [`States::done`] less than all.
pub fn follow<D: AsRef<[u8]>>(
    session: &mut Session<'_, Cpu, D>,
    request: &Request,
    images: &[usize],
    states: &mut States,
    see: &mut dyn FnMut(&States, f64, bool) -> Result<bool>,
) -> Result<()> {
    let consecutive = |images: &[usize]| images.windows(2).all(|pair| pair[1] == pair[0] + 1);
    while states.done < images.len() {
        let rest = &images[states.done..];
        let these = if consecutive(rest) { rest } else { &rest[..1] };
        let request = samples::run_of(request, these);
        let end = states.done + these.len();
        if !run(session.job(request)?, end, states, see)? {
            return Ok(());
        }
    }
    Ok(())
}

/// Runs a job of the images up to `end`.
fn run<D: AsRef<[u8]>>(
    mut job: Job<'_, '_, Cpu, D>,
    end: usize,
    states: &mut States,
    see: &mut dyn FnMut(&States, f64, bool) -> Result<bool>,
) -> Result<bool> {
    let total = job.plans().steps();
    let mut next = 0;
    while states.done < end {
        let first = states.calls.len() == next;
        let place = states.chosen.iter().position(|&call| call == next);
        if (first || place.is_some())
            && let Some(call) = job.upcoming()?
        {
            if first {
                states.calls.push(Call { role: call.role, moment: call.moment });
            }
            if let Some(place) = place {
                keep(&mut states.samples[place], &call)?;
            }
        }
        match job.next()? {
            Some(aquatint::Event::Step { done, images, .. }) => {
                next = done % total;
                if next == 0 {
                    states.done += images.len();
                }
                let part = (images.len() * next) as f64 / total as f64;
                if !see(states, states.done as f64 + part, next == 0)? {
                    return Ok(false);
                }
            }
            Some(_) => {}
            None => break,
        }
    }
    Ok(true)
}

/// Appends what the network of `call` reads.
fn keep(samples: &mut Vec<f32>, call: &ModelCall) -> Result<()> {
    match call.sample.iter().find(|v| !v.is_finite()) {
        Some(fault) => {
            let what = format!("latents before call {} of images {:?}", call.index, call.images);
            Err(Error::request(what, "finite numbers: does the model make images?", fault).into())
        }
        None => {
            samples.extend_from_slice(&call.sample);
            Ok(())
        }
    }
}
