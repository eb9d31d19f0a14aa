//! The executor: hoisting, windows of tables, curves, conditions, and independence of batch and threads.

use aquatint::raw::backend::cpu::Cpu;
use aquatint::raw::backend::cpu::simd::Isa;
use aquatint::raw::backend::cpu::simd::scalar::Scalar;
use aquatint::raw::exec::{Executor, PromptInputs};
use aquatint::raw::plan::{Binding, Plan};
use aquatint::raw::program::{
    Act, Add, Attend, Attention, CurveAxis, Dim, Dims, Embedding, GroupNorm, Input, InputKind, Modulation, Op,
    Parameter, QuantizeRange, Rate, Role, TimestepEmbedding,
};
use common::cases::linear;
use common::naive::{self, Inputs};
use common::networks::{CHANNELS, conditioned, phased, spatial};
use common::{Build, LABELS, Model, SAMPLE, TIMESTEP, avx512, inputs, normal, normals, prompt, run, run_on};
use fastrand::Rng;
use std::collections::BTreeSet;

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
    let cpu = Cpu::new(Scalar);
    let shape = Binding { dims: inputs.dims, calls: TIMESTEPS.len(), table_bytes, reserve: 100 };
    let mut executor = Executor::new(&cpu, model, Role::Denoiser, shape).unwrap();
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
    (outputs.collect(), executor.plan().calls_per_fill)
}

/// The least bytes of table with which `model` gets windows of `window` calls.
fn bytes_for(model: &Model, dims: Dims, window: usize) -> usize {
    let window_of = |table_bytes: usize| {
        let shape = Binding { dims, calls: TIMESTEPS.len(), table_bytes, reserve: 0 };
        Plan::of_role(&Cpu::new(Scalar), model, Role::Denoiser, &shape).unwrap().calls_per_fill
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
    let shape = Binding { dims: batch().dims, calls: 7, table_bytes: 1 << 20, reserve: 0 };
    let plan = Plan::of_role(&Cpu::new(Scalar), &model, Role::Denoiser, &shape).unwrap();
    let count = |rate: Rate| plan.phases[0].ops[rate as usize].len();
    assert_eq!([Rate::Bind, Rate::Prompt, Rate::Step, Rate::Loop].map(count), [1, 1, 6, 4]);
}

/// Every call against the oracle, whose curve look-up is a plain scan: a wrong row is wrong by a factor.
#[test]
fn curves_follow_timestep_and_step_fraction() {
    use aquatint::raw::program::CurveAxis::{StepFraction, Timestep};
    let mut inputs = batch();
    for axis in [Timestep, StepFraction] {
        let build = conditioned(|b: &mut Build| {
            let at = |t: f32| if axis == Timestep { t } else { t / 1000.0 };
            #[rustfmt::skip]
            let points = [at(200.0), 0.03125, 120.0, at(400.0), 0.0625, 128.0, at(600.0), 0.015625, 100.0];
            QuantizeRange::curve(b.f32(&[3, 3], &points), axis)
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

/// A call is in every bit that of the phase alone, whichever calls came before and however many fill a table; and in each
/// phase it is what the oracle says.
#[test]
fn phases_run_as_programs_of_their_own() {
    let inputs = batch();
    for (axis, hoisted) in
        [CurveAxis::Timestep, CurveAxis::StepFraction].into_iter().flat_map(|a| [(a, true), (a, false)])
    {
        let build = phased(axis, hoisted);
        let model = build.open([2, 3]);
        assert_eq!(model.programs()[0], build.program, "as it was written");
        let phases = &build.program.phases;
        let fraction = |call: usize| call as f32 / TIMESTEPS.len() as f32;
        let phase = |call: usize| match axis {
            CurveAxis::Timestep => phases.at(TIMESTEPS[call]),
            CurveAxis::StepFraction => phases.at(fraction(call)),
        };
        let order = [0, 1, 2, 3, 4, 5, 6, 2, 0, 6, 3, 1];
        assert_eq!(order.map(phase).into_iter().collect::<BTreeSet<_>>().len(), 4);
        let alone: Vec<_> = (0..4)
            .map(|phase| {
                let mut one = phased(axis, hoisted);
                one.program = build.program.in_phase(phase).into_owned();
                sweep(&one.open([2, 3]), &inputs, usize::MAX, &[0, 1, 2, 3, 4, 5, 6]).0
            })
            .collect();
        // Without what is hoisted, the last is the first again.
        let other = |phase: usize| bits(&alone[phase][0]) != bits(&alone[0][0]);
        assert_eq!([1, 2, 3].map(other), [true, true, hoisted], "phases matter");
        for window in [1, 3, 7] {
            let (got, _) = sweep(&model, &inputs, bytes_for(&model, inputs.dims, window), &order);
            for (&call, got) in order.iter().zip(&got) {
                let what = format!("{axis:?} {hoisted} call {call} in phase {} window {window}", phase(call));
                assert_eq!(bits(got), bits(&alone[phase(call)][call]), "{what}");
                let inputs = Inputs { timestep: TIMESTEPS[call], fraction: fraction(call), ..batch() };
                let want = &naive::run(&build.program, &build.tensors, &inputs)[build.program.output.0 as usize].data;
                common::cases::Check::Step { step: 0.25 }.compare(&what, got, want);
            }
        }
        let plan = |build: &Build| {
            let shape = Binding { dims: inputs.dims, calls: 7, table_bytes: 1 << 20, reserve: 0 };
            Plan::of_role(&Cpu::new(Scalar), &build.open([2, 3]), Role::Denoiser, &shape).unwrap()
        };
        assert_eq!(plan(&build).alike, !hoisted);
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
        assert_eq!(bits(&run(isa, &model, &alone)), bits(&all[i * out..][..out]), "sample {i} on {}", isa.name());
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

/// A norm modulated by all that a prompt may give, and by the timestep.
fn guided() -> Build {
    let c = CHANNELS;
    let rng = &mut Rng::with_seed(21);
    let more = [
        (InputKind::Pooled, vec![Dim::Conditions, Dim::Fixed(3)]),
        (InputKind::Sizes, vec![Dim::Conditions, Dim::Fixed(2)]),
    ];
    let mut b = Build::with(c, &more);
    let dim = c as u32 * 2;
    let table = b.f32(&[5, 2 * c], &normals(rng, 10 * c));
    let class = b.op(Op::Embedding(Embedding { index: LABELS, table }));
    let weight = b.f32(&[2 * c, 3], &normals(rng, 6 * c));
    let pooled = b.op(linear(b.input(InputKind::Pooled), weight));
    let sizes = b.op(Op::TimestepEmbedding(TimestepEmbedding {
        t: b.input(InputKind::Sizes),
        dim,
        cos_first: true,
        shift: 0.0,
    }));
    let weight = b.f32(&[2 * c, 4 * c], &normals(rng, 8 * c * c));
    let sizes = b.op(linear(sizes, weight));
    let given = b.op(Op::Add(Add { a: class, b: pooled }));
    let given = b.op(Op::Add(Add { a: given, b: sizes }));
    let time = b.op(Op::TimestepEmbedding(TimestepEmbedding { t: TIMESTEP, dim, cos_first: true, shift: 0.0 }));
    let value = b.op(Op::Add(Add { a: time, b: given }));
    let (weight, bias) = (b.f32(&[c], &normals(rng, c)), b.f32(&[c], &normals(rng, c)));
    let modulation = Some(Modulation { value, scale: 0, shift: c as u32 });
    b.op(Op::GroupNorm(GroupNorm {
        x: SAMPLE,
        weight,
        bias,
        groups: 1,
        eps: 1e-6,
        modulation,
        act: Act::Silu,
        quantize: None,
    }));
    b
}

#[test]
fn a_prompt_is_set_as_a_whole() {
    let build = guided();
    let model = build.open([2, 3]);
    let mut first = batch();
    first.pooled = vec![0.5, -1.0, 2.0, 1.0, 0.0, -0.5];
    first.sizes = vec![512.0, 0.0, 768.0, 6.0];
    let mut second = batch();
    second.labels = vec![0, 2];
    second.pooled = vec![1.5, 1.0, -2.0, -1.0, 3.0, 0.25];
    second.sizes = vec![256.0, 16.0, 8.0, 2.5];
    let cpu = Cpu::new(Scalar);
    let shape = Binding { dims: first.dims, calls: TIMESTEPS.len(), table_bytes: usize::MAX, reserve: 0 };
    let mut executor = Executor::new(&cpu, &model, Role::Denoiser, shape).unwrap();
    executor.set_conditions(&first.conditions).unwrap();
    executor.set_timesteps(TIMESTEPS.into_iter()).unwrap();
    executor.write_sample(&first.sample).unwrap();
    let mut out = vec![f32::NAN; executor.plan().output_type.len()];
    // The second prompt's numbers replace all of the first one's, in the tables too.
    for inputs in [&first, &second, &first] {
        executor.set_prompt(&prompt(&build.program, inputs)).unwrap();
        for call in [0, 3] {
            executor.call(call).unwrap();
            executor.read_output(&mut out).unwrap();
            let inputs = Inputs {
                timestep: TIMESTEPS[call],
                pooled: inputs.pooled.clone(),
                sizes: inputs.sizes.clone(),
                labels: inputs.labels.clone(),
                ..batch()
            };
            let values = naive::run(&build.program, &build.tensors, &inputs);
            let want = &values[build.program.output.0 as usize].data;
            // Angles of up to 950 are rounded twice, by 2^-24 of themselves, and sums of them scale a norm.
            let check = common::cases::Check::Close { k: 4 * CHANNELS, gain: 256.0 };
            check.compare(&format!("call {call}"), &out, want);
            assert_eq!(bits(&out), bits(&run(Scalar, &model, &inputs)), "call {call}");
        }
    }

    // What is refused changes nothing.
    let good = prompt(&build.program, &first);
    let six = [1.0; 6];
    let refused = [
        (PromptInputs { class_labels: None, ..good }, "class labels: expected 2, got none"),
        (PromptInputs { pooled: None, ..good }, "pooled vectors: expected 6, got none"),
        (PromptInputs { sizes: None, ..good }, "sizes: expected 4, got none"),
        (PromptInputs { context: Some(&six), ..good }, "context: expected none, as the model takes none, got 6"),
        (PromptInputs { class_labels: Some(&[0]), ..good }, "class labels: expected 2, got 1"),
        (PromptInputs { class_labels: Some(&[0, 5]), ..good }, "class labels: expected numbers below 5, got 5"),
        (PromptInputs { pooled: Some(&six[..5]), ..good }, "pooled vectors: expected 6, got 5"),
        (PromptInputs { sizes: Some(&six), ..good }, "sizes: expected 4, got 6"),
    ];
    for (prompt, message) in refused {
        assert_eq!(executor.set_prompt(&prompt).unwrap_err().to_string(), message);
    }
    let message = "pooled vectors: expected 6, got none";
    assert_eq!(executor.set_class_labels(&[1, 1]).unwrap_err().to_string(), message);
    let message = "tokens: expected none, as the model takes none, got 2";
    assert_eq!(executor.set_tokens(&[1, 1]).unwrap_err().to_string(), message);
    let before = out.clone();
    executor.call(3).unwrap();
    executor.read_output(&mut out).unwrap();
    assert_eq!(bits(&out), bits(&before));
}

#[test]
fn lengths_of_prompts_are_checked_and_change_what_is_seen() {
    let rng = &mut Rng::with_seed(23);
    let mut b = Build::with_context(8, 8);
    b.program.inputs.push(Input { kind: InputKind::Lengths, dims: vec![Dim::Conditions] });
    let (k, lengths) = (b.input(InputKind::Context), Some(b.input(InputKind::Lengths)));
    let attend = Attend { per_condition: true, ..Attend::default() };
    b.op(Op::Attention(Attention {
        q: SAMPLE,
        k,
        v: k,
        heads: 2,
        scale: 0.5,
        attend,
        lengths,
        ..Attention::default()
    }));
    let model = b.open([2, 3]);
    let mut inputs = Inputs { context: normals(rng, 2 * 7 * 8), ..inputs([3, 2, 3, 8], || normal(rng)) };
    (inputs.dims.conditions, inputs.dims.tokens) = (2, 7);
    (inputs.labels, inputs.conditions) = (vec![0, 0], vec![1, 0, 1]);
    for lengths in [[7, 3], [1, 7], [0, 5]] {
        inputs.lengths = lengths.to_vec();
        let values = naive::run(&b.program, &b.tensors, &inputs);
        let check = common::cases::Check::Close { k: 8, gain: 6.0 };
        check.compare(&format!("{lengths:?}"), &run(Scalar, &model, &inputs), &values.last().expect("a result").data);
        // Keys beyond the length change nothing.
        let mut other = inputs.clone();
        other.context[lengths[0] as usize * 8..7 * 8].fill(f32::MAX);
        assert_eq!(bits(&run(Scalar, &model, &other)), bits(&run(Scalar, &model, &inputs)), "{lengths:?}");
    }
    for (lengths, message) in [
        (vec![7, 8], "lengths: expected at most 7 tokens, got 8"),
        (vec![u32::MAX, 0], "lengths: expected at most 7 tokens, got 4294967295"),
        (vec![7], "lengths: expected 2, got 1"),
    ] {
        inputs.lengths = lengths;
        assert_eq!(run_on(&Cpu::new(Scalar), &model, &inputs).unwrap_err().to_string(), message);
    }
}

#[test]
fn a_text_encoder_needs_tokens_alone() {
    let rng = &mut Rng::with_seed(22);
    let mut b = Build::of(vec![(InputKind::Tokens, vec![Dim::Batch, Dim::Fixed(5)])]);
    b.program.role = Role::TextEncoder;
    let index = b.input(InputKind::Tokens);
    let table = b.f32(&[9, 8], &normals(rng, 72));
    let x = b.op(Op::Embedding(Embedding { index, table }));
    let tensor = b.f16(&[5, 8], &normals(rng, 40));
    let positions = b.op(Op::Parameter(Parameter { tensor, ..Parameter::default() }));
    let x = b.op(Op::Add(Add { a: x, b: positions }));
    // A second, smaller table: tokens must have a row in both.
    let table = b.f16(&[7, 8], &normals(rng, 56));
    let y = b.op(Op::Embedding(Embedding { index, table }));
    b.op(Op::Add(Add { a: x, b: y }));
    let model = b.open([1, 1]);
    let cpu = Cpu::new(Scalar);
    let dims = Dims { batch: 2, conditions: 2, height: 1, width: 1, tokens: 1, ..Dims::ONE };
    let shape = Binding { dims, calls: 1, table_bytes: 0, reserve: 0 };
    let mut executor = Executor::new(&cpu, &model, Role::TextEncoder, shape).unwrap();
    let rate = |rate: Rate| executor.plan().phases[0].ops[rate as usize].len();
    assert_eq!([Rate::Bind, Rate::Prompt, Rate::Step, Rate::Loop].map(rate), [1, 0, 0, 4]);
    let mut out = vec![f32::NAN; executor.plan().output_type.len()];
    for tokens in [[0, 6, 3, 3, 1, 6, 5, 4, 2, 0], [6, 6, 6, 0, 0, 0, 1, 1, 2, 2]] {
        executor.set_tokens(&tokens).unwrap();
        executor.call(0).unwrap();
        executor.read_output(&mut out).unwrap();
        let inputs = Inputs { dims, tokens: tokens.to_vec(), ..inputs([2, 1, 1, 1], || 0.0) };
        let values = naive::run(&b.program, &b.tensors, &inputs);
        let check = common::cases::Check::Close { k: 1, gain: 1.0 };
        check.compare("text encoder", &out, &values[b.program.output.0 as usize].data);
    }
    let refused: [(&[u32], &str); 4] = [
        (&[0; 9], "tokens: expected 10, got 9"),
        (&[], "tokens: expected 10, got 0"),
        (&[0, 1, 2, 3, 4, 5, 6, 7, 0, 0], "tokens: expected numbers below 7, got 7"),
        (&[u32::MAX; 10], "tokens: expected numbers below 7, got 4294967295"),
    ];
    for (tokens, message) in refused {
        assert_eq!(executor.set_tokens(tokens).unwrap_err().to_string(), message);
    }
    executor.set_prompt(&PromptInputs::default()).unwrap();
    let message = "class labels: expected none, as the model takes none, got 2";
    assert_eq!(executor.set_class_labels(&[0, 0]).unwrap_err().to_string(), message);
}
