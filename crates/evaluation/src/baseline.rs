//! What a reference made, kept for networks that are compared with it at single calls.

use crate::batch;
use crate::calls::CallErrors;
use crate::protocol::Protocol;
use crate::run::{File, Progress};
use aquatint::pipeline::{ModelCall, Predicted};
use aquatint::raw::backend::Backend;
use aquatint::raw::exec::Moment;
use aquatint::{Request, Result, Session};

/// The chosen calls of a reference's own run, with the states that they were made at and what it predicted there.
pub struct Baseline {
    /// What was asked for of the first images, with features in place of texts.
    pub request: Request,
    /// Calls of a run.
    pub calls_of_run: usize,
    /// Those of them that are looked at, counted from 0.
    pub calls: Vec<usize>,
    /// When these happen.
    pub moments: Vec<Moment>,
    /// Images.
    pub images: usize,
    batches: Vec<Batch>,
    /// Channels of the latents.
    channels: usize,
}

/// Some of the images.
struct Batch {
    request: Request,
    calls: Vec<(ModelCall, Predicted)>,
}

impl Baseline {
    /// Lets `reference` make the images of `protocol`, whose calls and images are those of [`evaluate`](crate::evaluate); `see` is
    /// told how far it is.
    ///
    /// # Errors
    /// [`aquatint::Error::Request`] if the protocol does not fit the model; those of [`aquatint::Job::next`].
    pub fn new<'m, B: Backend, D: AsRef<[u8]>>(
        backend: &'m B,
        reference: &File<'m, D>,
        protocol: &Protocol,
        see: &mut dyn FnMut(Progress),
    ) -> Result<Self> {
        protocol.check()?;
        let mut session = Session::new(reference.model, backend);
        let request = protocol.request(reference, 0..1)?;
        let calls_of_run = session.plans(&request)?.steps();
        let calls = protocol.chosen(reference, calls_of_run)?;
        let total = (protocol.images * (calls_of_run + calls.len())) as u64;
        let mut done = 0;
        let mut step = |images: usize| {
            done += images as u64;
            see(Progress { done, total });
        };
        let (mut batches, mut moments) = (Vec::new(), Vec::new());
        for range in protocol.batches(reference) {
            let request = protocol.request(reference, range)?;
            let made = batch::reference(&mut session, request, &calls, &mut step)?;
            moments = made.calls.iter().take(calls.len()).map(|call| call.moment).collect();
            let mut predicted = Vec::with_capacity(made.calls.len());
            for call in made.calls {
                let expected = session.predict(&made.request, &call)?;
                step(call.images.len());
                predicted.push((call, expected));
            }
            batches.push(Batch { request: made.request, calls: predicted });
        }
        let (channels, images) = (reference.model.latents.channels, protocol.images);
        let request = batches.first().map_or(request, |batch: &Batch| batch.request.clone());
        Ok(Baseline { request, calls_of_run, calls, moments, images, batches, channels })
    }

    /// The squared relative error `|eps_q - eps_f|^2 / |eps_f|^2` of what the network of `session` predicts at the kept states,
    /// by call and image; with guidance of the combination of both branches. `see` is told how many images of a call were made,
    /// and ends the work by saying false, when there is no result.
    ///
    /// # Errors
    /// Those of [`Session::predict`].
    pub fn errors<B: Backend, D: AsRef<[u8]>>(
        &self,
        session: &mut Session<'_, B, D>,
        see: &mut dyn FnMut(usize) -> bool,
    ) -> Result<Option<Vec<Vec<f64>>>> {
        Ok(self.errors_of(1, session, see)?.and_then(|mut all| all.pop()))
    }

    /// The same of a network that predicts `count` times side by side, as
    /// [`Program::side_by_side`](aquatint::raw::program::Program::side_by_side) makes it: of each in turn.
    ///
    /// # Errors
    /// As [`errors`](Self::errors).
    pub fn errors_of<B: Backend, D: AsRef<[u8]>>(
        &self,
        count: usize,
        session: &mut Session<'_, B, D>,
        see: &mut dyn FnMut(usize) -> bool,
    ) -> Result<Option<Vec<Vec<Vec<f64>>>>> {
        let guided = self.request.guidance_scale > 1.0;
        let mut errors: Vec<_> = (0..count).map(|_| CallErrors::new(self.calls.len(), guided)).collect();
        for Batch { request, calls } in &self.batches {
            for (call, expected) in calls {
                let got = session.predict(request, call)?;
                let place = self.calls.binary_search(&call.index).expect("only chosen calls are kept");
                for (number, errors) in errors.iter_mut().enumerate() {
                    errors.add(place, request, self.channels, expected, &part(&got, number, expected.channels));
                }
                if !see(count * call.images.len()) {
                    return Ok(None);
                }
            }
        }
        Ok(Some(errors.iter().map(CallErrors::of_images).collect()))
    }

    /// A call of the first image alone, with what was asked for of it.
    pub fn call(&self) -> Option<(&Request, ModelCall)> {
        let Batch { request, calls } = self.batches.first()?;
        let (call, _) = calls.first()?;
        let images = call.images.start..call.images.start + 1;
        let sample = call.sample[..call.sample.len() / call.images.len()].to_vec();
        Some((request, ModelCall { images, sample, ..call.clone() }))
    }

    /// Calls of the network that one [`errors`](Self::errors) makes, times images.
    pub fn work(&self) -> usize {
        self.images * self.calls.len()
    }
}

/// What stands at place `number` of predictions of so many channels side by side.
fn part(predicted: &Predicted, number: usize, channels: usize) -> Predicted {
    let rows = predicted.values.chunks_exact(predicted.channels);
    let values = rows.flat_map(|row| &row[number * channels..][..channels]).copied().collect();
    Predicted { values, channels, samples: predicted.samples }
}
