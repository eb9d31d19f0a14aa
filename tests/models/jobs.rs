//! Jobs can be watched, looked at and left, and what is bound stays warm.

use aquatint::error::ErrorKind;
use aquatint::model::Model;
use aquatint::pipeline::{Event, MAX_IMAGES, ModelCall, Prompts, Request, Session};
use aquatint::raw::backend::Backend;
use aquatint::raw::backend::args::Element;
use aquatint::raw::backend::cpu::{Cpu, simd::scalar::Scalar};
use aquatint::raw::backend::cuda::Cuda;
use aquatint::raw::exec::Seen;
use aquatint::raw::format::Packed;
use aquatint::raw::mmap::FileBytes;
use aquatint::raw::program::Role;
use aquatint::sampler::SamplerKind;
use common::emulated::Emulated;
use std::path::Path;

fn letters() -> Packed<FileBytes> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/glyphs-w4a8.aqt");
    Packed::new(aquatint::raw::mmap::open(&path).unwrap()).unwrap()
}

fn request(model: &Model<'_, FileBytes>, labels: &[u32]) -> Request {
    let mut request = Request::new(model, Prompts::Classes(labels.to_vec()));
    request.steps = 3;
    request
}

#[test]
fn a_second_batch_and_a_second_job_of_the_same_shape_bind_nothing() {
    let packed = letters();
    let model = Model::new(&packed).unwrap();
    {
        let cpu = Cpu::best();
        let mut session = Session::new(&model, &cpu);
        let mut four = request(&model, &[0, 1, 2, 3]);
        four.batch_size = 2;
        let together = session.run(four.clone()).unwrap();
        // One denoiser for both batches, one decoder for all images.
        assert_eq!(session.binds(), 2);
        let again = session.run(four.clone()).unwrap();
        assert_eq!(session.binds(), 2);
        assert!(again.images == together.images && again.latents == together.latents);

        // Other settings that change no shape change the images and bind nothing either.
        four.guidance_scale = 2.0;
        four.seed = 7;
        let other = session.run(four.clone()).unwrap();
        assert_eq!(session.binds(), 2);
        assert!(other.images != together.images);
        assert!(other.images == Session::new(&model, &cpu).run(four).unwrap().images, "nothing is left of other jobs");

        let three = request(&model, &[5, 6, 7]);
        session.run(three).unwrap();
        assert_eq!(session.binds(), 3, "another shape, the same decoder");
    };
}

/// Every event, once and in order; and steps that were dropped leave a session as good as new.
fn watched<B: Backend>(backend: &B) {
    let packed = letters();
    let model = Model::new(&packed).unwrap();
    let mut session = Session::new(&model, backend);
    let mut two = request(&model, &[3, 9]);
    two.batch_size = 1;

    let mut job = session.job(two.clone()).unwrap();
    assert_eq!(job.next().unwrap(), Some(Event::Queued { steps: 3, images: 2, frames: 1 }));
    assert!(job.preview().unwrap().is_none() && job.image(0).is_none());
    let step = |done, images| Some(Event::Step { done, total: 3, images });
    assert_eq!(job.next().unwrap(), step(1, 0..1));
    let first = job.preview().unwrap().expect("a step is done");
    assert_eq!((first.images.clone(), first.latents.len()), (0..1, model.latents.len(two.latent_size)));
    assert_eq!(job.next().unwrap(), step(2, 0..1));
    let second = job.preview().unwrap().expect("a step is done");
    assert!(second.latents != first.latents);
    // Leaving is dropping: no further step is made.
    drop(job);
    let left = session.binds();

    let mut job = session.job(two.clone()).unwrap();
    let mut events = Vec::new();
    let mut previews = Vec::new();
    while let Some(event) = job.next().unwrap() {
        if let Event::Image { index } = event {
            assert!(job.image(index).is_some() && job.image(index + 1).is_none());
        }
        previews.extend(job.preview().unwrap());
        events.push(event);
    }
    let images = |index| [Event::Decoding { index }, Event::Image { index }];
    let steps = [(1, 0..1), (2, 0..1), (3, 0..1), (1, 1..2), (2, 1..2), (3, 1..2)];
    let mut wanted = vec![Event::Queued { steps: 3, images: 2, frames: 1 }];
    wanted.extend(steps.map(|(done, images)| Event::Step { done, total: 3, images }));
    wanted.extend(images(0).into_iter().chain(images(1)));
    assert_eq!(events, wanted);
    // The same latents on the way as in the job that was left.
    assert!(previews[0].latents == first.latents && previews[1].latents == second.latents);
    let seen = job.finish().unwrap();
    assert!(seen.images == session.run(two).unwrap().images, "looking changes nothing");
    assert_eq!(session.binds(), left + 1, "the decoder alone was missing");
}

#[test]
fn jobs_are_watched_and_left_on_the_cpu() {
    {
        let cpu = Cpu::best();
        watched(&cpu)
    };
}

#[test]
fn jobs_are_watched_and_left_on_the_emulated_device() {
    let packed = letters();
    let cuda = Cuda::new(Emulated::new(1), packed.data(), Element::F16);
    let model = Model::new(&packed).unwrap();
    let mut session = Session::new(&model, &cuda);
    let one = request(&model, &[4]);
    let mut job = session.job(one.clone()).unwrap();
    let _ = [job.next().unwrap(), job.next().unwrap()];
    let early = job.preview().unwrap().expect("a step is done");
    drop(job);
    // A guidance scale is an argument of the recorded step, which is recorded anew.
    let mut weaker = one.clone();
    weaker.guidance_scale = 1.5;
    let other = session.run(weaker.clone()).unwrap();
    let mut job = session.job(one).unwrap();
    let _ = [job.next().unwrap(), job.next().unwrap()];
    assert!(job.preview().unwrap().expect("a step is done").latents == early.latents);
    drop(job);
    let fresh = Session::new(&model, &cuda).run(weaker).unwrap();
    assert!(fresh.latents == other.latents);
}

#[test]
fn what_is_kept_is_bounded() {
    let packed = letters();
    let model = Model::new(&packed).unwrap();
    let cpu = Cpu::new(Scalar);
    let mut session = Session::new(&model, &cpu);
    let mut one = request(&model, &[1]);
    one.steps = 1;
    session.keep_at_most(session.plans(&one).unwrap().peak());
    session.run(one.clone()).unwrap();
    session.run(one.clone()).unwrap();
    // Denoiser and decoder do not fit together, so each goes for the other.
    assert_eq!(session.binds(), 4);

    one.max_memory = Some(100);
    let Err(e) = session.job(one.clone()) else { panic!("100 bytes are enough for nothing") };
    assert_eq!(e.kind(), ErrorKind::Memory, "{e}");
    (one.max_memory, one.prompts) = (None, Prompts::Classes(vec![2000]));
    let Err(e) = session.job(one) else { panic!("there is no class 2000") };
    assert_eq!(e.kind(), ErrorKind::Class, "{e}");
}

#[test]
fn numbers_of_images_are_bounded_before_anything_is_planned() {
    let packed = letters();
    let model = Model::new(&packed).unwrap();
    let cpu = Cpu::best();
    for n in [0, MAX_IMAGES + 1, usize::MAX] {
        let request = Request::new(&model, Prompts::Unconditional(n));
        let Err(e) = Session::new(&model, &cpu).run(request) else { panic!("{n} images") };
        assert_eq!((e.kind(), e.to_string()), (ErrorKind::Request, format!("images: expected 1 to 65536, got {n}")));
    }
}

/// The calls of a run made again, one by one, are the calls of the run: whatever the part of the batch, and through an
/// observer too.
#[test]
fn a_call_of_a_run_is_made_again() {
    let packed = letters();
    let model = Model::new(&packed).unwrap();
    let cpu = Cpu::best();
    for sampler in [SamplerKind::Euler, SamplerKind::Heun, SamplerKind::Ddim] {
        let mut session = Session::new(&model, &cpu);
        let mut request = request(&model, &[3, 9, 4]);
        (request.guidance_scale, request.batch_size) = (4.0, 2);
        request.sampler = request.sampler.with_kind(sampler);
        let mut calls = Vec::new();
        let mut job = session.job(request.clone()).unwrap();
        assert!(job.upcoming().unwrap().is_none(), "nothing is announced yet");
        while job.next().unwrap().is_some() {
            calls.extend(job.upcoming().unwrap());
        }
        let steps = job.plans().steps();
        assert_eq!(calls.len(), 2 * steps, "of each batch");
        let latents = session.job(request.clone()).unwrap().denoise(|_, _| ()).unwrap();
        // Replayed: the states that the sampler's rows make of the predictions are those of the calls that follow.
        let table = request.sampler.table(3).unwrap();
        let len = model.latents.len(request.latent_size);
        for batch in calls.chunks(steps) {
            let images = batch[0].images.clone();
            let mut states = vec![vec![0.0f64; images.len() * len]; 8];
            states[0] = batch[0].sample.iter().map(|&v| f64::from(v) / f64::from(table.rows[0].input_scale)).collect();
            for (call, row) in batch.iter().zip(&table.rows) {
                assert_eq!((call.moment.timestep, call.images.clone()), (row.timestep, images.clone()));
                for (&x, s) in call.sample.iter().zip(&states[0]) {
                    assert!((f64::from(x) - s * f64::from(row.input_scale)).abs() < 2e-4, "{sampler:?} {x} {s}");
                }
                let together = session.predict(&request, call).unwrap();
                let mut seen = 0;
                let count = |_: Seen<Cpu>| {
                    seen += 1;
                    Ok(())
                };
                let again = session.observe(&request, call, count).unwrap();
                assert!(again == together && seen > 50);
                // An image alone has the rows that it has among others.
                let one = |k: usize, call: &ModelCall| {
                    let sample = call.sample[k * len..][..len].to_vec();
                    let images = images.start + k..images.start + k + 1;
                    ModelCall { images, sample, ..call.clone() }
                };
                let pixels = len / model.latents.channels;
                let (n, block) = (images.len(), pixels * together.channels);
                for k in 0..n {
                    let alone = session.predict(&request, &one(k, call)).unwrap();
                    assert_eq!(alone.values[..block], together.values[k * block..][..block]);
                    assert_eq!(alone.values[block..], together.values[(n + k) * block..][..block]);
                }
                let guided = |i: usize| {
                    let at = i / model.latents.channels * together.channels + i % model.latents.channels;
                    let [with, without] = [at, n * block + at].map(|at| f64::from(together.values[at]));
                    without + 4.0 * (with - without)
                };
                let old = states.clone();
                for i in 0..images.len() * len {
                    let (s, m) = (old[0][i], guided(i));
                    let x0 = f64::from(row.x0[0]) * s + f64::from(row.x0[1]) * m;
                    let x0 = row.clamp.map_or(x0, |c| x0.clamp(-f64::from(c), f64::from(c)));
                    for (to, next) in states.iter_mut().zip(&row.next) {
                        let kept: f64 = (0..7).map(|j| f64::from(next[j]) * old[j][i]).sum();
                        to[i] = kept + f64::from(next[7]) * m + f64::from(next[8]) * x0;
                    }
                }
            }
            let last = &latents[images.start * len..images.end * len];
            let far = last.iter().zip(&states[0]).map(|(&a, b)| (f64::from(a) - b).abs()).fold(0.0, f64::max);
            assert!(far < 2e-3, "{sampler:?}: {far}");
        }
    }
}

#[test]
fn calls_that_fit_no_request_are_refused() {
    let packed = letters();
    let model = Model::new(&packed).unwrap();
    let cpu = Cpu::best();
    let mut session = Session::new(&model, &cpu);
    let request = request(&model, &[3, 9]);
    let mut job = session.job(request.clone()).unwrap();
    job.next().unwrap();
    let call = job.upcoming().unwrap().unwrap();
    for wrong in [
        ModelCall { images: 1..3, ..call.clone() },
        ModelCall { images: 0..0, ..call.clone() },
        ModelCall { sample: call.sample[1..].to_vec(), ..call.clone() },
        ModelCall { role: Role::Refiner, ..call },
    ] {
        assert_eq!(session.predict(&request, &wrong).unwrap_err().kind(), ErrorKind::Request);
    }
}
