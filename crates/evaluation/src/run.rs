//! The comparison itself: batch after batch, file after file.

use crate::batch::{self, Made};
use crate::calls::CallErrors;
use crate::fit;
use crate::measured::{LatentError, Measured, PictureError};
use crate::protocol::Protocol;
use crate::report::{self, Compared, Conditions, Report, Run, Subject};
use crate::score::{Mark, Scorer};
use aquatint::raw::backend::Backend;
use aquatint::{Error, Model, Result, Session};
use rayon::prelude::*;
use std::ops::Range;

/// A packed model under the name that the report calls it by.
pub struct File<'m, D> {
    /// Its name.
    pub name: String,
    /// The model.
    pub model: &'m Model<'m, D>,
}

/// How far a comparison is, in calls of networks times images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Done.
    pub done: u64,
    /// In all.
    pub total: u64,
}

/// Compares `files` with the first of them; `see` is told how far it is. `scorer` reads the pictures, where some are to
/// be scored.
///
/// # Errors
/// [`Error::Request`] if files are not one model, if numbers of the protocol make no comparison, or if the scorer cannot
/// read these pictures; those of [`aquatint::Job::next`].
pub fn evaluate<'m, B: Backend, D: AsRef<[u8]> + Sync>(
    backend: &'m B,
    files: &[File<'m, D>],
    protocol: &Protocol,
    scorer: Option<&Scorer>,
    see: &mut dyn FnMut(Progress),
) -> Result<Report> {
    protocol.check()?;
    let [reference, others @ ..] = files else { return Err(too_few(0)) };
    if others.is_empty() {
        return Err(too_few(1));
    }
    others.iter().try_for_each(|other| fit::check(reference, other))?;
    if protocol.scored > 0 && !scorer.is_some_and(Scorer::reads) {
        let expected = "0, or a network to read images (--classifier, --inception, --clip)";
        return Err(Error::request("score-n", expected, protocol.scored));
    }
    if let Some(scorer) = scorer {
        let size = protocol.request(reference, 0..1)?.pixels(reference.model);
        scorer.check(size, reference.model, protocol)?;
    }
    let mut sessions: Vec<_> = files.iter().map(|file| Session::new(file.model, backend)).collect();
    let first = protocol.request(reference, 0..1)?;
    let calls = sessions[0].plans(&first)?.steps();
    let chosen = protocol.chosen(reference, calls)?;
    let guided = first.guidance_scale > 1.0;

    let mut measured: Vec<_> = files.iter().map(|_| Measured::default()).collect();
    let new = || Some(CallErrors::new(chosen.len(), guided));
    measured[1..].iter_mut().for_each(|m| m.calls = new());
    let (images, scored) = (protocol.images, protocol.scored);
    let mut run = Run::new(protocol, &first, chosen, calls);
    let chosen = run.calls.len();
    let total = (files.len() * (protocol.total() * calls + images * chosen)) as u64;
    let mut done = 0;
    let mut step = |images: usize| {
        done += images as u64;
        see(Progress { done, total });
    };
    for range in protocol.batches(reference) {
        let use_of = Use { compared: range.start < images, scored: range.start < scored };
        let request = protocol.request(reference, range.clone())?;
        let wanted: &[usize] = if use_of.compared { &run.calls } else { &[] };
        let made = batch::reference(&mut sessions[0], request, wanted, &mut step)?;
        if use_of.compared {
            run.widen(&made);
            compare_calls(&mut sessions, &made, &run.calls, &mut measured, &mut step)?;
        }
        let batch = Batch { range, made, use_of, scorer, protocol };
        batch.measure(&mut sessions, &mut measured, &mut step)?;
    }
    let subject = |file: &File<'_, D>| Subject {
        name: file.name.clone(),
        bytes: file.model.packed().as_bytes().len() as u64,
        average_bits: Some(file.model.meta().quantization.average_bits),
    };
    let conditions = Conditions::new(&reference.name, protocol, scorer, Some(run));
    let compared = Compared { subjects: files.iter().map(subject).collect(), measured, pairs: true };
    let mut report = report::report(compared, conditions, scorer, protocol);
    report.notes.splice(0..0, fit::notes(files));
    Ok(report)
}

fn too_few(got: usize) -> Error {
    Error::request("files", "a reference and at least one other", got)
}

/// What images of a batch are for.
#[derive(Clone, Copy)]
struct Use {
    compared: bool,
    scored: bool,
}

/// Makes the calls of `made` with every file, and adds their errors.
fn compare_calls<B: Backend, D: AsRef<[u8]>>(
    sessions: &mut [Session<'_, B, D>],
    made: &Made,
    chosen: &[usize],
    measured: &mut [Measured],
    step: &mut dyn FnMut(usize),
) -> Result<()> {
    let channels = sessions[0].model().latents.channels;
    for call in &made.calls {
        let place = chosen.binary_search(&call.index).expect("only chosen calls are kept");
        let expected = sessions[0].predict(&made.request, call)?;
        step(call.images.len());
        for (session, measured) in sessions[1..].iter_mut().zip(&mut measured[1..]) {
            let got = session.predict(&made.request, call)?;
            let errors = measured.calls.as_mut().expect("all but the reference have them");
            errors.add(place, &made.request, channels, &expected, &got);
            step(call.images.len());
        }
    }
    Ok(())
}

/// A batch that the reference has made.
struct Batch<'a> {
    range: Range<usize>,
    made: Made,
    use_of: Use,
    scorer: Option<&'a Scorer>,
    protocol: &'a Protocol,
}

impl Batch<'_> {
    /// Lets the other files make the batch too, and measures what they made.
    fn measure<B: Backend, D: AsRef<[u8]>>(
        &self,
        sessions: &mut [Session<'_, B, D>],
        measured: &mut [Measured],
        step: &mut dyn FnMut(usize),
    ) -> Result<()> {
        let (made, n) = (&self.made, self.range.len());
        let pictures = sessions[0].decode(&made.request, &made.latents)?;
        measured[0].marks.extend(self.marks(&pictures, sessions)?);
        for file in 1..sessions.len() {
            let latents = batch::other(&mut sessions[file], made, step)?;
            let theirs = sessions[0].decode(&made.request, &latents)?;
            measured[file].marks.extend(self.marks(&theirs, sessions)?);
            if self.use_of.compared {
                let size = made.request.pixels(sessions[0].model());
                let channels = sessions[0].model().picture_channels();
                let len = latents.len() / n;
                let pairs = made.latents.chunks_exact(len).zip(latents.chunks_exact(len));
                measured[file].latents.extend(pairs.map(|(ours, theirs)| LatentError::new(ours, theirs)));
                let len = pictures.len() / n;
                let pairs = pictures.par_chunks_exact(len).zip(theirs.par_chunks_exact(len));
                let lpips = self.scorer.and_then(|scorer| scorer.lpips.as_ref());
                let errors = pairs.map(|(ours, theirs)| PictureError::new(ours, theirs, size, channels, lpips));
                measured[file].pictures.par_extend(errors);
            }
        }
        Ok(())
    }

    /// What the scorer reads in the pictures of the batch.
    fn marks<B: Backend, D: AsRef<[u8]>>(&self, pictures: &[f32], sessions: &[Session<'_, B, D>]) -> Result<Vec<Mark>> {
        let Some(scorer) = self.scorer.filter(|_| self.use_of.scored) else { return Ok(Vec::new()) };
        let model = sessions[0].model();
        let size = self.made.request.pixels(model);
        let asked: Vec<_> =
            self.range.clone().map(|image| (image, scorer.asked(image, model, self.protocol))).collect();
        let pictures = pictures.par_chunks_exact(pictures.len() / self.range.len());
        pictures.zip(asked).map(|(picture, (image, asked))| scorer.mark(image, picture, size, asked)).collect()
    }
}
