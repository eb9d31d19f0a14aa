//! Jobs can be watched, looked at and left, and what is bound stays warm.

use aquatint::error::ErrorKind;
use aquatint::model::Model;
use aquatint::pipeline::{Event, MAX_IMAGES, Prompts, Request, Session};
use aquatint::raw::backend::Backend;
use aquatint::raw::backend::args::Element;
use aquatint::raw::backend::cpu::{Cpu, simd::scalar::Scalar};
use aquatint::raw::backend::cuda::Cuda;
use aquatint::raw::format::Packed;
use aquatint::raw::mmap::FileBytes;
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
    assert_eq!(job.next().unwrap(), Some(Event::Queued { steps: 3, images: 2 }));
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
    let mut wanted = vec![Event::Queued { steps: 3, images: 2 }];
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
    let cuda = Cuda::new(Emulated::new(1), packed.data(), Element::F16).unwrap();
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
