//! What opens must run: damaged programs that are accepted, and the slowest ones to plan.

use super::*;

/// What the shape rules accept must also run: they have proved every length to the back end.
#[test]
fn whatever_is_accepted_runs() {
    let pristine = sound();
    let mut file = sound();
    let mut noise = Noise(8);
    let mut ran = 0;
    for (section, range) in
        structure().into_iter().filter(|(s, _)| [Some(PROGRAMS), Some(NODES), Some(ARGS)].contains(s))
    {
        for at in range.flat_map(|at| [at; 4]) {
            let flip = 1u8 << noise.below(8);
            file.as_mut()[at] ^= flip;
            seal(&mut file, section);
            let run = catch_unwind(AssertUnwindSafe(|| run(&file)));
            ran += run.unwrap_or_else(|_| panic!("byte {at} ^ {flip:#x}"));
            file.as_mut()[..HEAD].copy_from_slice(&pristine.as_ref()[..HEAD]);
            file.as_mut()[at] = pristine.as_ref()[at];
        }
    }
    assert!(ran > 1000, "{ran}");
}

/// Runs each program of `file` that binds within a mebibyte; returns how many did.
fn run(file: &AlignedBytes) -> usize {
    let Ok(packed) = Packed::new(file) else { return 0 };
    let mut ran = 0;
    for role in [Role::Denoiser, Role::VaeDecoder] {
        let cpu = Cpu::new(Scalar);
        match Plan::of_role(&cpu, &packed, role, &SHAPE) {
            Ok(plan) if plan.arena < 1 << 20 => {}
            _ => continue,
        }
        let mut executor = Executor::new(&cpu, &packed, role, SHAPE).expect("it was planned");
        if executor.program().input(InputKind::ClassLabels).is_some() {
            executor.set_class_labels(&[0, 0]).expect("as many as conditions");
        }
        executor.set_timesteps([900.0, 500.0, 100.0].into_iter()).expect("as many as calls");
        if let Some(value) = executor.program().input(InputKind::Sample) {
            let channels = executor.program().inputs[value.0 as usize].dims[3];
            executor.write_sample(&vec![0.5; 2 * 4 * 6 * SHAPE.dims.resolve(channels)]).unwrap();
        }
        for call in 0..SHAPE.calls {
            executor.call(call).unwrap();
        }
        let mut out = vec![0.0; executor.plan().output_type.len()];
        executor.read_output(&mut out).unwrap();
        ran += 1;
    }
    ran
}

/// The slowest programs to plan must not hang: as many nodes as a file may have, all alive at once or forced into the
/// loop one after another.
#[test]
fn planning_the_largest_programs_ends() {
    use aquatint::raw::format::MAX_NODES;
    use aquatint::raw::program::{
        Act, Add, Dim, Input, Linear, Node, Op, Pointwise, Program, Quantize, QuantizeGrain, QuantizeRange,
        QuantizeSpec, Tensor, TimestepEmbedding, Value,
    };
    let input = |kind, dims| Input { kind, dims };
    let inputs = vec![
        input(InputKind::Sample, vec![Dim::Batch, Dim::Height, Dim::Width, Dim::Fixed(4)]),
        input(InputKind::Timestep, vec![Dim::Conditions]),
    ];
    let pointwise = |x| Op::Pointwise(Pointwise { x, act: Act::None, mul: 1.0, add: 0.0 });
    let node = |op| Node { op, path: "n".into(), wide: false };
    let program = |ops: Vec<Op>| {
        let output = Value(ops.len() as u32 + 1);
        Program {
            role: Role::Denoiser,
            inputs: inputs.clone(),
            nodes: ops.into_iter().map(node).collect(),
            output,
            phases: Default::default(),
        }
    };
    let weight = aquatint::raw::program::shape::TensorType {
        dims: vec![4, 4],
        integer: true,
        f32: false,
        codes: true,
        bytes: false,
    };

    let chain = program((1..=MAX_NODES as u32).map(|v| pointwise(Value(if v == 1 { 0 } else { v }))).collect());

    // A fan out and in again: half of the values live at the same time.
    let half = MAX_NODES as u32 / 2;
    let fan_out = (0..half).map(|_| pointwise(Value(0)));
    let fan_in = (0..half).map(|i| Op::Add(Add { a: Value(2 + i), b: Value(1 + half + i.min(1) * i) }));
    let fan = program(fan_out.chain(fan_in).collect());

    // Pairs of a quantization of the timestep and two readers. The last quantization has a reader in the loop, so it
    // and its other reader move there, which is an operand of a reader of the one before, and so on.
    let spec = QuantizeSpec { bits: 8, grain: QuantizeGrain::Row, range: QuantizeRange::Dynamic };
    let linear =
        |x, residual| Op::Linear(Linear { x, weight: Tensor(0), bias: None, act: Act::None, gate: None, residual });
    let n = MAX_NODES as u32 / 3 - 1;
    let mut ops = vec![Op::TimestepEmbedding(TimestepEmbedding { t: Value(1), dim: 4, cos_first: true, shift: 0.0 })];
    ops.extend((0..n).map(|_| Op::Quantize(Quantize { x: Value(2), spec, turn: None })));
    ops.extend((0..n).map(|i| linear(Value(3 + i), None)));
    ops.push(linear(Value(2 + n), Some(Value(0))));
    ops.extend((1..n).map(|i| linear(Value(2 + n - i), Some(Value(2 + 2 * n - i + 1)))));
    let backwards = program(ops);

    let rules = Rules { narrow: Element::F32, makes_codes: true, workspace: &|_| 64 };
    let plan = |program| aquatint::raw::plan::plan(&program, std::slice::from_ref(&weight), &SHAPE, &rules);
    let one = 2 * 4 * 6 * 4 * 4;
    assert!(plan(chain).expect("sound").arena < 8 * one);
    assert!(plan(fan).expect("sound").arena > half as usize / 2 * one);
    // The first reader in the loop has a residual of another shape, which is found after rates are known.
    assert!(matches!(plan(backwards), Err(Error::Shape { .. })));
}
