//! The CUDA back end as a whole: steps recorded and replayed, windows of tables, memory, lost devices, and the letter
//! model from noise to picture. In the emulator always, on a device where there is one.

use aquatint::Result;
use aquatint::model::Model;
use aquatint::pipeline::{Event, Output, Plans, Prompts, Request, Session, Texts};
use aquatint::raw::backend::Backend;
use aquatint::raw::backend::args::{Element, Guidance, ModelInputArgs, SamplerStepArgs, Slot};
use aquatint::raw::backend::cpu::Cpu;
use aquatint::raw::backend::cpu::simd::scalar::Scalar;
use aquatint::raw::backend::cuda::driver::Driver;
use aquatint::raw::backend::cuda::{Cuda, CudaSizing};
use aquatint::raw::exec::Executor;
use aquatint::raw::format::Packed;
use aquatint::raw::mmap::FileBytes;
use aquatint::raw::plan::Binding;
use aquatint::raw::program::{CurveAxis, QuantizeRange, Role};
use aquatint::raw::text::PromptStyle;
use aquatint::sampler::ROW_FLOATS;
use common::emulated::Emulated;
use common::fixture::{pack_as, relative};
use common::naive::Inputs;
use common::networks::{CHANNELS, conditioned, phased, spatial};
use common::{device, inputs, normal, repository, run_on};
use fastrand::Rng;
use packer::emit::Options;

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|v| v.to_bits()).collect()
}

/// `|a - b| / |b|`.
fn distance(a: &[f32], b: &[f32]) -> f64 {
    let square = |v: f32| f64::from(v) * f64::from(v);
    let difference: f64 = a.iter().zip(b).map(|(a, b)| square(a - b)).sum();
    (difference / b.iter().map(|&b| square(b)).sum::<f64>()).sqrt()
}

fn emulator() -> Option<Emulated> {
    Some(Emulated::new(7))
}

/// A sampler of its own: two states, the model's result a tenth of a step, with guidance.
fn sample<B: Backend>(backend: &B, model: &common::Model, table_bytes: usize, calls: usize) -> Result<Vec<f32>> {
    let mut rng = Rng::with_seed(5);
    let images = inputs([2, 2, 3, CHANNELS], || normal(&mut rng));
    let dims = aquatint::raw::program::Dims { batch: 4, conditions: 3, ..images.dims };
    let len = images.sample.len();
    let row = ROW_FLOATS * 4;
    let reserve = calls * row + 2 * len.next_multiple_of(16) * 4;
    let shape = Binding { dims, calls, table_bytes, reserve };
    let mut executor = Executor::new(backend, model, Role::Denoiser, shape)?;
    executor.set_conditions(&[0, 1, 2, 2])?;
    executor.set_class_labels(&[4, 1, 0])?;
    executor.set_timesteps((0..calls).map(|i| 950.0 - 100.0 * i as f32))?;
    let rows = Slot { at: executor.plan().reserved, stride: row };
    let state = Slot { at: rows.of(calls), stride: 0 };
    let (plan, n_states) = (executor.plan(), 2);
    let (model, sample) = (plan.output, executor.sample().unwrap());
    let input = ModelInputArgs { rows, state, len, copies: 2, sample };
    let sampler = SamplerStepArgs {
        rows,
        states: state,
        n_states,
        len,
        channels: CHANNELS,
        model,
        guidance: Some(Guidance { scale: 1.5, channels: CHANNELS }),
        noise: None,
        threshold: None,
        rescale: None,
        blend: None,
    };
    let (backend, arena) = executor.parts();
    backend.write_f32(arena, state.at, &images.sample)?;
    for call in 0..calls {
        let mut row = [0.0; ROW_FLOATS];
        // Input scale; x0 = s0 - 0.1 m, within 4; s0' = 0.5 x0 + 0.25 s0 + 0.125 s1 from the second call on; s1' = m.
        row[..4].copy_from_slice(&[0.75 + 0.01 * call as f32, 1.0, -0.1, 4.0]);
        let next = aquatint::sampler::ROW_NEXT;
        (row[next], row[next + 1], row[next + 8]) = (0.25, if call > 0 { 0.125 } else { 0.0 }, 0.5);
        row[next + 10 + 7] = 1.0;
        backend.write_f32(arena, rows.of(call), &row)?;
    }
    for call in 0..calls {
        executor.step(call, &input, &sampler)?;
    }
    let mut out = vec![0.0; len];
    let (backend, arena) = executor.parts();
    backend.read_f32(arena, state.at, &mut out)?;
    Ok(out)
}

/// Replayed steps against the CPU, with tables for all calls and in windows, in one phase and in four.
fn steps_replay<D: Driver>(open: impl Fn() -> Option<D>) {
    let phased = |hoisted| phased(CurveAxis::StepFraction, hoisted);
    for build in [conditioned(|_| QuantizeRange::Dynamic), phased(true), phased(false)] {
        replay(&open, &build.open([2, 3]));
    }
}

fn replay<D: Driver>(open: impl Fn() -> Option<D>, model: &common::Model) {
    let want = sample(&Cpu::new(Scalar), model, 1 << 20, 7).unwrap();
    let mut results = Vec::new();
    for table_bytes in [1 << 20, 4000, 0] {
        let Some(driver) = open() else { return };
        let cuda = Cuda::new(driver, model.data(), Element::F32);
        results.push(sample(&cuda, model, table_bytes, 7).unwrap());
        let far = distance(&results[0], &want);
        assert!(far < 1e-3, "{far}");
    }
    assert!(results.iter().all(|r| bits(r) == bits(&results[0])), "windows change nothing");
    let Some(driver) = open() else { return };
    let cuda = Cuda::new(driver, model.data(), Element::F16);
    let far = distance(&sample(&cuda, model, 1 << 20, 7).unwrap(), &want);
    assert!(far < 1e-2, "{far}");
}

/// A sample's result is the same alone, in a batch, and wherever it stands in the batch.
fn batch_invariance<D: Driver>(open: impl Fn() -> Option<D>) {
    let model = spatial().open([6, 10]);
    let mut rng = Rng::with_seed(9);
    let mut together = inputs([3, 6, 10, CHANNELS], || normal(&mut rng));
    together.labels = vec![2, 5, 0];
    together.conditions = vec![2, 0, 1];
    for narrow in [Element::F16, Element::F32] {
        let run = |inputs: &Inputs| -> Option<Vec<f32>> {
            let cuda = Cuda::new(open()?, model.data(), narrow);
            Some(run_on(&cuda, &model, inputs).unwrap())
        };
        let Some(all) = run(&together) else { return };
        let (len, out) = (together.sample.len() / 3, all.len() / 3);
        for i in 0..3 {
            let mut alone = inputs([1, 6, 10, CHANNELS], || 0.0);
            alone.sample = together.sample[i * len..][..len].to_vec();
            alone.labels = vec![together.labels[together.conditions[i] as usize]];
            assert_eq!(bits(&run(&alone).unwrap()), bits(&all[i * out..][..out]), "sample {i}, {narrow:?}");
        }
    }
}

/// The file of the letter model, W4A8.
fn packed_letters() -> Packed<FileBytes> {
    Packed::new(aquatint::raw::mmap::open(&repository("models/glyphs-w4a8.aqt")).unwrap()).unwrap()
}

/// The letter model against the CPU.
fn letters<D: Driver>(open: impl Fn() -> Option<D>, labels: &[u32], steps: usize) {
    if open().is_none() {
        return; // before the CPU works for nothing
    }
    let packed = packed_letters();
    let model = Model::new(&packed).unwrap();
    let mut request = Request::new(&model, Prompts::Classes(labels.to_vec()));
    request.steps = steps;
    let cpu = {
        let cpu = Cpu::best();
        Session::new(&model, &cpu).run(request.clone())
    }
    .unwrap();
    // A code on a rounding tie falls either way, and guidance multiplies what follows: the yardstick of a whole run is
    // how far the CPU's tiers are from each other (or, where there is one tier only, what such tiers have shown). One call without guidance is compared by itself.
    let portable = Session::new(&model, &Cpu::new(Scalar)).run(request.clone()).unwrap();
    let tiers = distance(&portable.latents, &cpu.latents);
    println!("letters: latents of the portable tier {tiers:.2e} from the best tier's");
    let latents = &cpu.latents[..cpu.latents.len() / labels.len()];
    let eval = |label: u32| {
        Session::new(&model, &Cpu::new(Scalar)).eval(latents, request.latent_size, Prompts::Classes(vec![label]), 500.0)
    };
    let (want, _) = eval(labels[0]).unwrap();
    for (narrow, most) in [(Element::F16, 2e-2), (Element::F32, 3e-3)] {
        let Some(driver) = open() else { return };
        let cuda = Cuda::new(driver, packed.data(), narrow);
        let (got, _) = Session::new(&model, &cuda)
            .eval(latents, request.latent_size, Prompts::Classes(labels[..1].to_vec()), 500.0)
            .unwrap();
        let call = distance(&got, &want);
        let mut steps_seen = 0;
        let mut session = Session::new(&model, &cuda);
        let Output { latents: got, images, .. } = session
            .job(request.clone())
            .unwrap()
            .finish_with(|_, event| steps_seen += usize::from(matches!(event, Event::Step { .. })))
            .unwrap();
        assert_eq!(steps_seen, steps);
        let far = distance(&got, &cpu.latents);
        let off = images.iter().zip(&cpu.images).map(|(a, b)| (a - b).abs()).sum::<f32>() / images.len() as f32;
        println!("letters, {narrow:?}: call {call:.2e}, latents {far:.2e}, pixels {off:.2e} from the CPU's");
        assert!(call < most, "{narrow:?}: one call {call}");
        assert!(far < 2.0 * tiers.max(0.05), "{narrow:?}: latents {far}, tiers of the CPU {tiers}");
        assert!(off < 0.02, "{narrow:?}: pixels {off}");
    }
}

/// Prompts, text encoder, guided loop and decoder of a tiny Stable Diffusion, all in f32, against the CPU.
fn prompts_to_pictures<D: Driver>(open: impl Fn() -> Option<D>) {
    let Some(driver) = open() else { return };
    let f32 = || Some("f32".to_owned());
    let model = repository("tests/fixtures/sd/v1");
    let packed =
        pack_as(Options { model, q_config: f32(), vae_q_config: f32(), text_q_config: f32(), ..Options::default() });
    let model = Model::new(&packed).unwrap();
    let texts =
        Texts { prompts: vec!["a red cat".into()], negatives: vec![Some("fog".into())], style: PromptStyle::Weighted };
    let mut request = Request::new(&model, Prompts::Texts(texts));
    request.steps = 3;
    let want = Session::new(&model, &Cpu::new(Scalar)).run(request.clone()).unwrap();
    let cuda = Cuda::new(driver, packed.data(), Element::F32);
    let got = Session::new(&model, &cuda).run(request).unwrap();
    let (latents, images) = (relative(&got.latents, &want.latents), relative(&got.images, &want.images));
    println!("tiny Stable Diffusion: latents {latents:.2e}, pictures {images:.2e} from the CPU's");
    // As diffusers' pipelines are compared with: rounding to f32, through a guided loop.
    assert!(latents < 1e-3 && images < 1e-3, "{latents:e}, {images:e}");
}

mod emulated {
    use super::*;

    #[test]
    fn steps_replay() {
        super::steps_replay(emulator);
    }

    #[test]
    fn batch_invariance() {
        super::batch_invariance(emulator);
    }

    #[test]
    fn letters() {
        super::letters(emulator, &[0], 3);
    }
}

mod on_device {
    use super::*;

    #[test]
    fn steps_replay() {
        super::steps_replay(device);
    }

    #[test]
    fn batch_invariance() {
        super::batch_invariance(device);
    }

    #[test]
    fn letters() {
        super::letters(device, &[0, 5, 25], 25);
    }

    #[test]
    fn prompts_to_pictures() {
        super::prompts_to_pictures(device);
    }

    /// Beside what is announced, which is what the back end allocates, a driver takes memory for graphs and rounds up:
    /// together less than what a run must leave free.
    #[test]
    fn memory_is_near_what_was_announced() {
        const BESIDE: usize = 100 << 20;
        let Some(device) = device() else { return };
        let packed = packed_letters();
        let model = Model::new(&packed).unwrap();
        let mut request = Request::new(&model, Prompts::Classes((0..26).collect()));
        (request.steps, request.batch_size) = (2, 26);
        let announced = Plans::new(&CudaSizing { narrow: Element::F16 }, &model, &request).unwrap().peak();
        let before = device.memory().unwrap().free;
        let cuda = Cuda::new(device, packed.data(), Element::F16);
        let mut session = Session::new(&model, &cuda);
        session.keep_at_most(announced);
        session.run(request).unwrap();
        let taken = before.saturating_sub(cuda.driver().memory().unwrap().free);
        println!("{announced} bytes announced, {taken} taken of the device's");
        assert!(taken <= announced + BESIDE, "{taken} bytes taken, {announced} announced");
    }
}

/// Ops are timed by marks between them: each has the time of its own kernels, and all together that of the call.
#[test]
fn ops_are_timed_by_marks() {
    let model = spatial().open([6, 10]);
    let cuda = Cuda::new(Emulated::new(1), model.data(), Element::F16);
    let images = inputs([1, 6, 10, CHANNELS], || 0.5);
    let shape = Binding { dims: images.dims, calls: 1, table_bytes: 1 << 20, reserve: 0 };
    let mut executor = Executor::new(&cuda, &model, Role::Denoiser, shape).unwrap();
    executor.set_class_labels(&[1]).unwrap();
    executor.set_timesteps([500.0].into_iter()).unwrap();
    executor.write_sample(&images.sample).unwrap();
    let launches = || cuda.driver().launches.borrow().values().sum::<usize>();
    executor.call(0).unwrap();
    let before = launches();
    executor.call(0).unwrap();
    let of_a_call = launches() - before;

    // The emulator's clock counts kernels.
    let mut times = Vec::new();
    let mark = executor.time(0, 2, || panic!("a device has its own"), |timed| times.push(timed.seconds)).unwrap();
    assert_eq!(launches() - before, 4 * of_a_call, "two calls ahead");
    assert_eq!((mark, times.iter().sum::<f64>()), (0.0, of_a_call as f64));
    assert!(times.iter().all(|&seconds| seconds >= 1.0) && times.iter().any(|&seconds| seconds > 1.0), "{times:?}");
}

/// A device that is lost in the loop is an error of that run, and of no step before.
#[test]
fn a_lost_device_is_an_error() {
    let model = conditioned(|_| QuantizeRange::Dynamic).open([2, 3]);
    let whole = Emulated::new(1);
    let cuda = Cuda::new(whole, model.data(), Element::F16);
    sample(&cuda, &model, 1 << 20, 4).unwrap();
    let launches = cuda.driver().launches.borrow().values().sum::<usize>();
    for after in [launches / 2, launches - 1] {
        let cuda = Cuda::new(Emulated::lost_after(1, after), model.data(), Element::F16);
        let e = sample(&cuda, &model, 1 << 20, 4).unwrap_err();
        assert!(e.to_string().contains("lost"), "{e}");
    }
}
