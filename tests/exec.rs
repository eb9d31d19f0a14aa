//! The executor: hoisting, windows of tables, curves, conditions, and independence of batch and threads.

mod common;

use aquatint::backend::cpu::Cpu;
use aquatint::backend::cpu::simd::Isa;
use aquatint::backend::cpu::simd::scalar::Scalar;
use aquatint::exec::{self, Executor};
use aquatint::plan::Shape;
use aquatint::program::{Dims, QuantizeRange, Rate, Role};
use common::naive::{self, Inputs};
use common::networks::{CHANNELS, conditioned, spatial};
use common::{Build, Model, avx512, inputs, normal, run};
use fastrand::Rng;

/// Timesteps of the calls: after, between and before the points of the curves.
const TIMESTEPS: [f32; 7] = [950.0, 800.0, 600.0, 599.0, 400.0, 200.0, 10.0];

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|v| v.to_bits()).collect()
}

/// Three samples of two conditions.
fn batch() -> Inputs {
    let mut rng = Rng::with_seed(5);
    let mut inputs = inputs([3, 2, 3, CHANNELS], || normal(&mut rng));
    inputs.dims.conditions = 2;
    inputs.labels = vec![4, 1];
    inputs.conditions = vec![1, 0, 1];
    inputs
}

/// The output of each of `calls`, with tables of at most `table_bytes`; and the window that gave.
fn sweep(model: &Model, inputs: &Inputs, table_bytes: usize, calls: &[usize]) -> (Vec<Vec<f32>>, usize) {
    let mut cpu = Cpu::new(Scalar);
    let shape = Shape { dims: inputs.dims, calls: TIMESTEPS.len(), table_bytes, reserve: 100 };
    let mut executor = Executor::bind(&mut cpu, model, Role::Denoiser, shape).unwrap();
    executor.set_conditions(&inputs.conditions).unwrap();
    executor.set_timesteps(TIMESTEPS.into_iter()).unwrap();
    executor.set_class_labels(&inputs.labels).unwrap();
    executor.write_sample(&inputs.sample).unwrap();
    let outputs = calls.iter().map(|&call| {
        executor.call(call).unwrap();
        let mut out = vec![f32::NAN; executor.plan().output_type.len()];
        executor.read_output(&mut out).unwrap();
        out
    });
    (outputs.collect(), executor.plan().window)
}

/// The least bytes of table with which `model` gets windows of `window` calls.
fn bytes_for(model: &Model, dims: Dims, window: usize) -> usize {
    let window_of = |table_bytes: usize| {
        let shape = Shape { dims, calls: TIMESTEPS.len(), table_bytes, reserve: 0 };
        exec::plan(&Cpu::new(Scalar), model, Role::Denoiser, &shape).unwrap().window
    };
    (0..).step_by(64).find(|&bytes| window_of(bytes) == window).unwrap()
}

#[test]
fn windows_do_not_change_results() {
    let inputs = batch();
    let model = conditioned(|_| QuantizeRange::Dynamic).open([2, 3]);
    let all: Vec<usize> = (0..TIMESTEPS.len()).collect();
    let (want, window) = sweep(&model, &inputs, usize::MAX, &all);
    assert_eq!(window, TIMESTEPS.len());
    assert_ne!(bits(&want[0]), bits(&want[1]), "the timestep matters");
    for window in [1, 2, 3, 5] {
        let (got, _) = sweep(&model, &inputs, bytes_for(&model, inputs.dims, window), &all);
        assert!(got.iter().zip(&want).all(|(g, w)| bits(g) == bits(w)), "window {window}");
    }
    // Calls may come in any order.
    let order = [6, 0, 5, 1, 1, 4];
    let (got, _) = sweep(&model, &inputs, bytes_for(&model, inputs.dims, 3), &order);
    assert!(order.iter().zip(&got).all(|(&call, got)| bits(got) == bits(&want[call])));
}

#[test]
fn tables_equal_single_calls() {
    let mut inputs = batch();
    let model = conditioned(|_| QuantizeRange::Dynamic).open([2, 3]);
    let all: Vec<usize> = (0..TIMESTEPS.len()).collect();
    let (got, _) = sweep(&model, &inputs, usize::MAX, &all);
    for (got, timestep) in got.iter().zip(TIMESTEPS) {
        inputs.timestep = timestep;
        assert_eq!(bits(got), bits(&run(Scalar, &model, &inputs)), "t = {timestep}");
    }
}

#[test]
fn what_does_not_depend_on_the_sample_leaves_the_loop() {
    let build = conditioned(|_| QuantizeRange::Dynamic);
    let model = build.open([2, 3]);
    let shape = Shape { dims: batch().dims, calls: 7, table_bytes: 1 << 20, reserve: 0 };
    let plan = exec::plan(&Cpu::new(Scalar), &model, Role::Denoiser, &shape).unwrap();
    let count = |rate: Rate| plan.ops[rate as usize].len();
    assert_eq!([Rate::Bind, Rate::Prompt, Rate::Step, Rate::Loop].map(count), [1, 1, 6, 4]);
}

/// Every call against the oracle, whose curve look-up is a plain scan: a wrong row is wrong by a factor.
#[test]
fn curves_follow_timestep_and_step_fraction() {
    use aquatint::program::CurveAxis::{StepFraction, Timestep};
    let mut inputs = batch();
    for axis in [Timestep, StepFraction] {
        let build = conditioned(|b: &mut Build| {
            let at = |t: f32| if axis == Timestep { t } else { t / 1000.0 };
            #[rustfmt::skip]
            let points = [at(200.0), 0.03125, 120.0, at(400.0), 0.0625, 128.0, at(600.0), 0.015625, 100.0];
            QuantizeRange::Curve(b.f32(&[3, 3], &points), axis)
        });
        let model = build.open([2, 3]);
        let all: Vec<usize> = (0..TIMESTEPS.len()).collect();
        for window in [1, 3, 7] {
            let (got, _) = sweep(&model, &inputs, bytes_for(&model, inputs.dims, window), &all);
            for (call, got) in got.iter().enumerate() {
                inputs.timestep = TIMESTEPS[call];
                inputs.fraction = call as f32 / TIMESTEPS.len() as f32;
                let values = naive::run(&build.program, &build.tensors, &inputs);
                let want = &values[build.program.output.0 as usize].data;
                let check = common::cases::Check::Step { step: 0.0625 };
                check.compare(&format!("{axis:?} call {call} window {window}"), got, want);
            }
        }
    }
}

#[test]
fn a_curve_over_the_prompt_is_resolved_in_every_call() {
    let inputs = batch();
    let build = common::networks::curve_over_prompt();
    let model = build.open([2, 3]);
    let all: Vec<usize> = (0..TIMESTEPS.len()).collect();
    let (got, _) = sweep(&model, &inputs, usize::MAX, &all);
    for (call, got) in got.iter().enumerate() {
        let inputs = Inputs { timestep: TIMESTEPS[call], ..batch() };
        let values = naive::run(&build.program, &build.tensors, &inputs);
        let want = &values[build.program.output.0 as usize].data;
        common::cases::Check::Step { step: 0.0625 }.compare(&format!("call {call}"), got, want);
    }
}

/// A sample's result is the same alone, in a batch, and wherever it stands in the batch.
fn batch_invariance<I: Isa>(isa: I) {
    let model = spatial().open([6, 10]);
    let mut rng = Rng::with_seed(9);
    let mut together = inputs([3, 6, 10, CHANNELS], || normal(&mut rng));
    together.labels = vec![2, 5, 0];
    together.conditions = vec![2, 0, 1];
    let all = run(isa, &model, &together);
    let (len, out) = (together.sample.len() / 3, all.len() / 3);
    for i in 0..3 {
        let mut alone = inputs([1, 6, 10, CHANNELS], || 0.0);
        alone.sample = together.sample[i * len..][..len].to_vec();
        alone.labels = vec![together.labels[together.conditions[i] as usize]];
        assert_eq!(bits(&run(isa, &model, &alone)), bits(&all[i * out..][..out]), "sample {i} on {}", I::NAME);
    }
}

#[test]
fn results_do_not_depend_on_the_batch() {
    batch_invariance(Scalar);
    avx512().into_iter().for_each(batch_invariance);
}

#[test]
fn results_do_not_depend_on_threads() {
    let build = spatial();
    let model = build.open([26, 30]);
    let mut rng = Rng::with_seed(11);
    let mut inputs = inputs([2, 26, 30, CHANNELS], || normal(&mut rng));
    inputs.labels = vec![3, 3];
    let results: Vec<Vec<u32>> = (1..=3)
        .map(|threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            bits(&pool.install(|| run(Scalar, &model, &inputs)))
        })
        .collect();
    assert!(results[0] == results[1] && results[0] == results[2]);
    let values = naive::run(&build.program, &build.tensors, &inputs);
    let got: Vec<f32> = results[0].iter().map(|&b| f32::from_bits(b)).collect();
    // A dozen ops in a row, each with the tolerance of its own; codes flip on ties.
    let check = common::cases::Check::Step { step: 0.25 };
    check.compare("spatial network", &got, &values[build.program.output.0 as usize].data);
}
