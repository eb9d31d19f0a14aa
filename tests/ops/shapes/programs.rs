//! Programs: the axes of inputs, sizes, outputs, and what no op may take.

use super::*;
use aquatint::raw::program::{
    Conv2d, ConvStride, Embedding, GatedLinear, LayerNorm, PadRows, Parameter, Patchify, TimestepEmbedding,
    VectorQuantize,
};

/// Inputs of prompts, with the ops that take them.
#[test]
fn prompts_have_tokens_features_and_numbers() {
    use Dim::*;
    let dims = Dims { tokens: 7, ..DIMS };
    let types = |inputs: &[(InputKind, &[Dim])], op: Op| {
        let inputs = inputs.iter().map(|&(kind, dims)| Input { kind, dims: dims.to_vec() }).collect::<Vec<_>>();
        let output = Value(inputs.len() as u32);
        let nodes = vec![Node { op, path: "a".into(), wide: false }];
        let program = Program { role: Role::TextEncoder, inputs, nodes, output, phases: Default::default() };
        infer(&program, &tensors(), &dims).map(|t| t[output.0 as usize].dims().to_vec()).map_err(|e| e.to_string())
    };
    let rows = Op::Embedding(Embedding { index: Value(0), table: ROWS });
    assert_eq!(types(&[(InputKind::Tokens, &[Batch, Fixed(77)])], rows), Ok(vec![2, 77, 9]));
    let got = types(&[(InputKind::Tokens, &[Conditions, Fixed(77)])], rows);
    assert_eq!(got, Err("text encoder input Tokens: axes: expected [2, tokens], got [3, 77]".into()));
    types(&[(InputKind::Tokens, &[Batch])], rows).expect_err("one axis");
    for (axis, n) in [(Conditions, 3), (Batch, 2)] {
        assert_eq!(types(&[(InputKind::Lengths, &[axis])], rows), Ok(vec![n, 9]));
    }
    let got = types(&[(InputKind::Lengths, &[Fixed(4)])], rows);
    assert_eq!(got, Err("text encoder input Lengths: axes: expected [3] or [2], got [4]".into()));
    let numbers = Op::TimestepEmbedding(TimestepEmbedding { t: Value(0), dim: 8, cos_first: true, shift: 0.0 });
    assert_eq!(types(&[(InputKind::Sizes, &[Conditions, Fixed(6)])], numbers), Ok(vec![3, 48]));
    let got = types(&[(InputKind::Sizes, &[Conditions])], numbers);
    assert_eq!(got, Err("text encoder input Sizes: axes: expected [3, features], got [3]".into()));
    let many = Op::TimestepEmbedding(TimestepEmbedding { t: Value(0), dim: u32::MAX - 1, cos_first: true, shift: 0.0 });
    types(&[(InputKind::Sizes, &[Conditions, Fixed(1 << 30)])], many).expect_err("too many features");
    let linear = linear(Value(0), W);
    let context = &[Conditions, Tokens, Fixed(8)];
    assert_eq!(types(&[(InputKind::Context, context)], linear), Ok(vec![3, 7, 5]));
    assert_eq!(types(&[(InputKind::Pooled, &[Conditions, Fixed(8)])], linear), Ok(vec![3, 5]));
    let got = types(&[(InputKind::Context, &[Conditions, Fixed(77), Fixed(8)])], linear);
    assert_eq!(got, Ok(vec![3, 77, 5]));
    let got = types(&[(InputKind::Context, &[Conditions, Conditions, Fixed(8)])], linear);
    assert_eq!(got, Err("text encoder input Context: axes: expected [3, 7, features], got [3, 3, 8]".into()));
    let got = types(&[(InputKind::Context, &[Batch, Tokens, Fixed(8)])], linear);
    assert_eq!(got, Err("text encoder input Context: axes: expected [3, 7, features], got [2, 7, 8]".into()));
    let texts: &[(InputKind, &[Dim])] =
        &[(InputKind::Context2, &[Conditions, Fixed(3), Fixed(8)]), (InputKind::Lengths2, &[Conditions])];
    let pad = |table, first| Op::PadRows(PadRows { x: Value(0), lengths: Value(1), table, first });
    assert_eq!(types(texts, pad(CODEBOOK, 1)), Ok(vec![3, 3, 8]));
    for (table, first, axes) in
        [(CODEBOOK, 2, "[4, 8]"), (CODEBOOK, u32::MAX, "[4, 8]"), (ROWS, 0, "[7, 9]"), (W_I8, 0, "[5, 8]")]
    {
        let wanted = format!("table: expected f16 or f32 [at least 3 rows from {first} on, 8], got {axes}");
        let got = types(texts, pad(table, first));
        assert!(got.as_ref().is_err_and(|e| e.ends_with(&wanted)), "{got:?} is not {wanted}");
    }
    let got = types(&[(InputKind::Context2, &[Batch, Fixed(3), Fixed(8)])], linear);
    assert_eq!(got, Err("text encoder input Context2: axes: expected [3, tokens, features], got [2, 3, 8]".into()));
    let got = types(&[(InputKind::Lengths2, &[Batch])], rows);
    assert_eq!(got, Err("text encoder input Lengths2: axes: expected [3], got [2]".into()));
    let got = types(&[(InputKind::Tokens, &[Batch, Fixed(77)])], pointwise(Value(0)));
    assert!(got.is_err_and(|e| e.ends_with("x: expected float elements, got Index")));
}

/// Types of a program without nodes.
fn declared(inputs: Vec<Input>, output: u32, dims: Dims) -> Result<Vec<Type>, String> {
    let program = Program {
        role: Role::VaeDecoder,
        inputs,
        nodes: Vec::new(),
        output: Value(output),
        phases: Default::default(),
    };
    infer(&program, &tensors(), &dims).map_err(|e| e.to_string())
}

#[test]
fn inputs_have_the_axes_of_their_kind() {
    let types = declared(inputs(), 0, DIMS).expect("sound");
    let want = [(&[2, 6, 10, 8][..], Kind::Float), (&[3], Kind::Float), (&[3], Kind::Index)];
    assert_eq!(types, want.map(|(dims, kind)| Type::new(dims, kind)));

    use Dim::*;
    let refused: [(InputKind, &[Dim], &str); 9] = [
        (InputKind::Sample, &[], "Sample: axes: expected [2, 6, 10, channels], got []"),
        (InputKind::Sample, &[Batch, Fixed(8)], "Sample: axes: expected [2, 6, 10, channels], got [2, 8]"),
        (
            InputKind::Sample,
            &[Fixed(1), Height, Width, Fixed(8)],
            "Sample: axes: expected [2, 6, 10, channels], got [1, 6, 10, 8]",
        ),
        (
            InputKind::Sample,
            &[Batch, Width, Height, Fixed(8)],
            "Sample: axes: expected [2, 6, 10, channels], got [2, 10, 6, 8]",
        ),
        (
            InputKind::Sample,
            &[Batch, Height, Width, Fixed(0)],
            "Sample: number of elements: expected 1 to 2^36, got shape [2, 6, 10, 0]",
        ),
        (
            InputKind::Sample,
            &[Batch, Height, Width, Fixed(MUCH - 1)],
            "Sample: number of elements: expected 1 to 2^36, got shape [2, 6, 10, 2147483647]",
        ),
        (InputKind::Timestep, &[Batch], "Timestep: axes: expected [3], got [2]"),
        (InputKind::Timestep, &[Conditions, Fixed(1)], "Timestep: axes: expected [3], got [3, 1]"),
        (InputKind::ClassLabels, &[Fixed(4)], "ClassLabels: axes: expected [3], got [4]"),
    ];
    for (kind, dims, message) in refused {
        let got = declared(vec![Input { kind, dims: dims.to_vec() }], 0, DIMS);
        assert_eq!(got, Err(format!("vae decoder input {message}")));
    }
    // A model of one size only says so by fixed axes; another size is refused by name.
    let fixed = vec![Input { kind: InputKind::Sample, dims: vec![Batch, Fixed(6), Fixed(10), Fixed(4)] }];
    declared(fixed.clone(), 0, DIMS).expect("its own size");
    let got = declared(fixed, 0, Dims { height: 7, ..DIMS });
    assert_eq!(got, Err("vae decoder input Sample: axes: expected [2, 7, 10, channels], got [2, 6, 10, 4]".into()));
    let twice = vec![inputs()[1].clone(), inputs()[1].clone()];
    assert_eq!(
        declared(twice, 0, DIMS),
        Err("vae decoder input Timestep: input: expected each kind once, got a second one".into())
    );
}

#[test]
fn no_axis_is_empty_and_no_size_overflows() {
    for dims in [
        Dims { batch: 0, ..DIMS },
        Dims { conditions: 0, ..DIMS },
        Dims { height: 0, ..DIMS },
        Dims { width: 0, ..DIMS },
        Dims { batch: usize::MAX, ..DIMS },
        Dims { conditions: usize::MAX, ..DIMS },
        Dims { height: 1 << 32, width: 1 << 32, ..DIMS },
        Dims {
            batch: usize::MAX,
            conditions: usize::MAX,
            height: usize::MAX,
            width: usize::MAX,
            tokens: 1,
            ..Dims::ONE
        },
    ] {
        let got = declared(inputs(), 0, dims).expect_err("refused");
        assert!(got.contains("number of elements: expected 1 to 2^36, got shape ["), "{dims:?}: {got}");
    }
    let most = Dims { batch: MAX_ELEMENTS / 8, conditions: 1, height: 1, width: 1, tokens: 1, ..Dims::ONE };
    declared(inputs(), 0, most).expect("the most that is allowed");
    declared(inputs(), 0, Dims { batch: MAX_ELEMENTS / 8 + 1, ..most }).expect_err("one more");
}

#[test]
fn the_output_is_a_float_value() {
    let got = declared(inputs(), 3, DIMS);
    assert_eq!(got, Err("vae decoder: output: expected a value below 3, got 3".into()));
    let got = declared(inputs(), 2, DIMS);
    assert_eq!(got, Err("vae decoder: output: expected float elements, got Index".into()));
}

#[test]
fn odd_sizes_pass_through() {
    for (batch, height, width) in [(1, 1, 1), (3, 5, 7), (2, 17, 33)] {
        let dims = Dims { batch, height, width, conditions: 1, tokens: 1, ..Dims::ONE };
        let ops = [
            conv(SAMPLE, CONV, None, ConvStride::Up, None),
            pointwise(Value(3)),
            Op::Patchify(Patchify { x: Value(4), patch: 2 }),
        ];
        let nodes = ops.map(|op| Node { op, path: "n".into(), wide: false }).to_vec();
        let program =
            Program { role: Role::Denoiser, inputs: inputs(), nodes, output: Value(5), phases: Default::default() };
        let types = infer(&program, &tensors(), &dims).expect("sound");
        assert_eq!(types[4].dims(), [batch, 2 * height, 2 * width, 5]);
        assert_eq!(types[5].dims(), [batch, height, width, 20]);
        assert_eq!(types[5].rows(), batch * height * width);
        assert_eq!(types[5].rows_per_sample(), height * width);
        assert_eq!(types[5].len(), batch * height * width * 20);
    }
}

#[test]
fn files_of_bytes_are_no_weights() {
    const BYTES: Tensor = Tensor(18);
    let mut tensors = tensors();
    tensors.push(TensorType { dims: vec![8], integer: false, f32: false, codes: false, bytes: true });
    let refuse = |what: &str, op: Op| {
        let embedding = Op::Embedding(Embedding { index: LABELS, table: ROWS });
        let nodes = [embedding, op].map(|op| Node { op, path: "a.b".into(), wide: false }).into();
        let program =
            Program { role: Role::Denoiser, inputs: inputs(), nodes, output: LAST, phases: Default::default() };
        let message = infer(&program, &tensors, &DIMS).expect_err(what).to_string();
        let expected = format!("{what}: expected a tensor of weights, got a file of bytes");
        assert_eq!(message, format!("a.b (denoiser node 1, {}): {expected}", op.name()));
    };
    refuse("weight", linear(TABLE, BYTES));
    refuse("weight", Op::GatedLinear(GatedLinear { x: TABLE, weight: BYTES, bias: None, act: Act::GeluErf }));
    let conv = |weight| {
        Op::Conv2d(Conv2d { x: SAMPLE, weight, bias: Some(BYTES), sampling: ConvStride::Same, ..Conv2d::default() })
    };
    refuse("weight", conv(BYTES));
    refuse("bias", conv(CONV));
    let norm = |weight, bias| {
        Op::LayerNorm(LayerNorm { x: TABLE, weight, bias, eps: 1e-5, modulation: None, ..LayerNorm::default() })
    };
    refuse("weight", norm(Some(BYTES), None));
    refuse("bias", norm(None, Some(BYTES)));
    refuse("table", Op::Embedding(Embedding { index: LABELS, table: BYTES }));
    refuse("table", Op::VectorQuantize(VectorQuantize { x: TABLE, table: BYTES }));
    refuse("tensor", Op::Parameter(Parameter { tensor: BYTES, ..Parameter::default() }));
    let range = QuantizeRange::curve(BYTES, CurveAxis::Timestep);
    refuse("curve", quantize(TABLE, spec(8, QuantizeGrain::Row, range)));
}
