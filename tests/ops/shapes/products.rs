//! Products: linear layers, convolutions, attention, and the nearest rows of a table.

use super::*;
use aquatint::raw::program::{
    Attention, Conv2d, ConvStride, GatedLinear, Parameter, Patchify, Pointwise, PositionEmbedding, Resample,
    Resampling, SoftmaxGrid, TimestepEmbedding, Unpatchify, VectorQuantize,
};

#[test]
fn linear_takes_rows_of_any_shape() {
    accept(&[linear(SAMPLE, W)], &[2, 6, 10, 5], Kind::Float);
    accept(&[biased(SAMPLE, W, V5)], &[2, 6, 10, 5], Kind::Float);
    accept(&[linear(SAMPLE, W_I8)], &[2, 6, 10, 5], Kind::Float);
    accept(&[linear(SAMPLE, W_CODES)], &[2, 6, 10, 5], Kind::Float);
    accept(&[linear(SAMPLE, CONV_1)], &[2, 6, 10, 5], Kind::Float);
    accept(&[quantize(SAMPLE, ROW8), linear(LAST, W_I8)], &[2, 6, 10, 5], Kind::Float);
    accept(&[gated(SAMPLE, TABLE, 4)], &[2, 6, 10, 5], Kind::Float);
    accept(&[linear(SAMPLE, W), summed(SAMPLE, LAST)], &[2, 6, 10, 5], Kind::Float);
    // A grid of positions repeats over the samples.
    let position = Op::PositionEmbedding(PositionEmbedding {
        x: SAMPLE,
        dim: 8,
        base: 4,
        interpolation: 1.0,
        keep_ratio: false,
        grid: Default::default(),
    });
    accept(&[position, linear(LAST, W), summed(SAMPLE, Value(5))], &[2, 6, 10, 5], Kind::Float);
}

#[test]
fn linear_refuses() {
    refuse(&[linear(NO_VALUE, W)], "x: expected a value below 4, got 99");
    refuse(&[linear(SAMPLE, NO_TENSOR)], "weight: expected a tensor below 18, got 99");
    refuse(&[linear(SAMPLE, V8)], "weight: expected [o, k], got [8]");
    refuse(&[linear(SAMPLE, CUBE)], "weight: expected [o, k], got [2, 2, 2]");
    refuse(&[linear(TABLE, W)], "x: expected 8 features, as weight [5, 8], got [3, 9]");
    refuse(&[linear(SAMPLE, CONV)], "x: expected 72 features, as weight [5, 3, 3, 8], got [2, 6, 10, 8]");
    let matched = "x: expected float elements, or codes and a weight with an integer codebook, got ";
    let row8 = "Codes(QuantizeSpec { bits: 8, grain: Row, range: Dynamic })";
    refuse(&[quantize(SAMPLE, ROW8), linear(LAST, W)], &format!("{matched}{row8}"));
    refuse(&[quantize(SAMPLE, ROW8), linear(LAST, W_CODES)], &format!("{matched}{row8}"));
    refuse(&[biased(SAMPLE, W, NO_TENSOR)], "bias: expected a tensor below 18, got 99");
    refuse(&[biased(SAMPLE, W, V8)], "bias: expected f32 [5], got ([8], \"f32\")");
    refuse(&[biased(SAMPLE, TO_6, HALF_V8)], "bias: expected f32 [6], got ([8], \"not f32\")");
    refuse(&[gated(SAMPLE, TABLE, 5)], "gate: expected (3 conditions, at least 10), got [3, 9]");
    refuse(&[gated(SAMPLE, TABLE, u32::MAX)], "gate: expected (3 conditions, at least 4294967300), got [3, 9]");
    refuse(&[gated(SAMPLE, SAMPLE, 0)], "gate: expected (3 conditions, at least 5), got [2, 6, 10, 8]");
    refuse(&[gated(SAMPLE, LABELS, 0)], "gate: expected float elements, got Index");
    let on_table = Op::TimestepEmbedding(TimestepEmbedding { t: TIME, dim: 8, cos_first: true, shift: 0.0 });
    refuse(&[on_table, gated(LAST, TABLE, 0)], "gate: expected a result for each of the 2 samples, got [3, 5]");
    refuse(&[summed(SAMPLE, SAMPLE)], "residual: expected rows dividing those of [2, 6, 10, 5], got [2, 6, 10, 8]");
    refuse(&[summed(SAMPLE, NO_VALUE)], "residual: expected a value below 4, got 99");
    let odd = Op::TimestepEmbedding(TimestepEmbedding { t: TIME, dim: 8, cos_first: true, shift: 0.0 });
    let message = "residual: expected rows dividing those of [3, 5], got [2, 6, 10, 5]";
    refuse(&[linear(SAMPLE, W), odd, summed(Value(5), LAST)], message);
    refuse_size(&[linear(SAMPLE, MANY)], "[2, 6, 10, 2147483648]");
}

#[test]
fn sums_of_codes_stay_within_32_bits() {
    let cols = MAX_INTEGER_PRODUCTS as u32;
    assert!(i64::from(cols) * 255 * 128 <= i64::from(i32::MAX));
    assert!((i64::from(cols) + 1) * 255 * 128 > i64::from(i32::MAX));
    let mut program = Program {
        role: Role::Denoiser,
        inputs: inputs(),
        nodes: Vec::new(),
        output: Value(3),
        phases: Default::default(),
    };
    let mut tensors = tensors();
    for (k, fits) in [(cols, true), (cols + 1, false)] {
        program.inputs[0].dims[3] = Dim::Fixed(k);
        tensors[WIDE_I8.0 as usize].dims[1] = k as usize;
        let node = |op| Node { op, path: "a".into(), wide: false };
        program.nodes = vec![node(quantize(SAMPLE, ROW8)), node(linear(Value(3), WIDE_I8))];
        program.output = Value(4);
        match infer(&program, &tensors, &DIMS) {
            Ok(_) => assert!(fits),
            Err(e) => {
                let want =
                    "a (denoiser node 1, linear): x: expected codes summed over at most 65793 products, got 65794";
                assert_eq!((e.to_string().as_str(), fits), (want, false));
            }
        }
        // Floats have no such limit.
        program.nodes = vec![node(linear(SAMPLE, WIDE_I8))];
        program.output = Value(3);
        infer(&program, &tensors, &DIMS).expect("floats");
    }
}

#[test]
fn conv2d_keeps_or_doubles_the_pixels() {
    accept(&[conv(SAMPLE, CONV, None, ConvStride::Same, None)], &[2, 6, 10, 5], Kind::Float);
    accept(&[conv(SAMPLE, CONV, Some(V5), ConvStride::Up, None)], &[2, 12, 20, 5], Kind::Float);
    accept(&[linear(SAMPLE, W), conv(SAMPLE, CONV, None, ConvStride::Same, Some(LAST))], &[2, 6, 10, 5], Kind::Float);
    accept(
        &[quantize(SAMPLE, SAMPLE6), conv(LAST, CONV_I8, None, ConvStride::Same, None)],
        &[2, 6, 10, 5],
        Kind::Float,
    );
}

#[test]
fn conv2d_refuses() {
    refuse(&[conv(NO_VALUE, CONV, None, ConvStride::Same, None)], "x: expected a value below 4, got 99");
    refuse(&[conv(TABLE, CONV, None, ConvStride::Same, None)], "x: expected (n, h, w, c), got [3, 9]");
    refuse(&[conv(SAMPLE, NO_TENSOR, None, ConvStride::Same, None)], "weight: expected a tensor below 18, got 99");
    refuse(&[conv(SAMPLE, W, None, ConvStride::Same, None)], "weight: expected [o, 3, 3, 8], got [5, 8]");
    refuse(&[conv(SAMPLE, CONV_1, None, ConvStride::Same, None)], "weight: expected [o, 3, 3, 8], got [5, 1, 2, 4]");
    refuse(&[conv(SAMPLE, CONV_6_I8, None, ConvStride::Same, None)], "weight: expected [o, 3, 3, 8], got [5, 3, 3, 6]");
    refuse(
        &[quantize(SAMPLE, SAMPLE6), conv(LAST, CONV, None, ConvStride::Same, None)],
        "x: expected float elements, or codes and a weight with an integer codebook, got \
         Codes(QuantizeSpec { bits: 6, grain: Sample, range: Dynamic })",
    );
    let by_row = [quantize(SAMPLE, ROW8), conv(LAST, CONV_I8, None, ConvStride::Same, None)];
    refuse(&by_row, "x: expected codes with one scale per sample, got Row");
    let six = [linear(SAMPLE, TO_6), quantize(LAST, SAMPLE6), conv(Value(5), CONV_6_I8, None, ConvStride::Same, None)];
    refuse(&six, "x: expected codes with a multiple of 4 channels, got 6");
    refuse(&[conv(SAMPLE, CONV, Some(V8), ConvStride::Same, None)], "bias: expected f32 [5], got ([8], \"f32\")");
    // Upsampled to the size of a value: twice the pixels of the 3 x 5 below, or one less.
    let half = |size_of| {
        let down = Op::Resample(Resample { x: SAMPLE, how: Resampling::Mean });
        let up =
            Conv2d { x: LAST, weight: CONV, sampling: ConvStride::Up, size_of: Some(size_of), ..Conv2d::default() };
        [down, Op::Conv2d(up)]
    };
    accept(&half(SAMPLE), &[2, 6, 10, 5], Kind::Float);
    refuse(&half(LAST), "size of: expected (_, h, w, _) of [6, 10] pixels, or one less, got [2, 3, 5, 8]");
    refuse(&half(TABLE), "size of: expected (_, h, w, _) of [6, 10] pixels, or one less, got [3, 9]");
    let same = Conv2d { x: SAMPLE, weight: CONV, size_of: Some(SAMPLE), ..Conv2d::default() };
    refuse(&[Op::Conv2d(same)], "size of: expected none without upsampling, got Same");
    let doubled = [linear(SAMPLE, W), conv(SAMPLE, CONV, None, ConvStride::Up, Some(LAST))];
    refuse(&doubled, "residual: expected rows dividing those of [2, 12, 20, 5], got [2, 6, 10, 5]");
    refuse_size(&[conv(SAMPLE, MANY_CONV, None, ConvStride::Same, None)], "[2, 6, 10, 2147483648]");
}

fn attention(q: Value, k: Value, v: Value, heads: u32, scale: f32) -> Op {
    Op::Attention(Attention { q, k, v, heads, scale, attend: Default::default(), ..Attention::default() })
}

fn gated_linear(x: Value, weight: Tensor, bias: Option<Tensor>) -> Op {
    Op::GatedLinear(GatedLinear { x, weight, bias, act: Act::GeluErf })
}

#[test]
fn gated_linear_halves_the_rows_of_its_weight() {
    accept(&[gated_linear(SAMPLE, TO_6, None)], &[2, 6, 10, 3], Kind::Float);
    let narrow = Op::Pointwise(Pointwise { x: SAMPLE, act: Act::None, mul: 1.0, add: 0.0 });
    accept(&[narrow, gated_linear(LAST, TO_6, None)], &[2, 6, 10, 3], Kind::Float);
    refuse(&[gated_linear(NO_VALUE, TO_6, None)], "x: expected a value below 4, got 99");
    refuse(&[gated_linear(SAMPLE, W, None)], "weight: expected [2 o, k], got [5, 8]");
    refuse(&[gated_linear(SAMPLE, V8, None)], "weight: expected [2 o, k], got [8]");
    refuse(&[gated_linear(SAMPLE, CONV_1, None)], "weight: expected [2 o, k], got [5, 1, 2, 4]");
    refuse(&[gated_linear(TABLE, TO_6, None)], "x: expected 8 features, as weight [6, 8], got [3, 9]");
    refuse(&[gated_linear(SAMPLE, TO_6, Some(V8))], "bias: expected f32 [6], got ([8], \"f32\")");
    let codes = "x: expected float elements, or codes and a weight with an integer codebook, got \
                 Codes(QuantizeSpec { bits: 8, grain: Row, range: Dynamic })";
    refuse(&[quantize(SAMPLE, ROW8), gated_linear(LAST, TO_6, None)], codes);
    refuse_size(&[gated_linear(SAMPLE, MANY, None)], "[2, 6, 10, 1073741824]");
}

#[test]
fn attention_sees_conditions_and_only_earlier_keys() {
    let attend = |causal, per_condition| Attend { causal, per_condition, int8: false };
    let attention =
        |q, k, attend| Op::Attention(Attention { q, k, v: k, heads: 1, scale: 1.0, attend, ..Attention::default() });
    let table =
        |features| Op::TimestepEmbedding(TimestepEmbedding { t: TIME, dim: features, cos_first: true, shift: 0.0 });
    // A value of two axes is one key per condition.
    accept(&[table(8), attention(SAMPLE, LAST, attend(false, true))], &[2, 6, 10, 8], Kind::Float);
    accept(&[attention(SAMPLE, SAMPLE, attend(true, false))], &[2, 6, 10, 8], Kind::Float);
    let per_sample = [table(8), attention(SAMPLE, LAST, attend(false, false))];
    let got = "got ([2, 6, 10, 8], [3, 8], [3, 8])";
    refuse(&per_sample, &format!("q, k, v: expected q (n, .., d), k and v (2, .., d), {got}"));
    let got = "got ([2, 6, 10, 8], [2, 6, 10, 8], [2, 6, 10, 8])";
    let of_samples = attention(SAMPLE, SAMPLE, attend(false, true));
    refuse(&[of_samples], &format!("q, k, v: expected q (n, .., d), k and v (3, .., d), {got}"));
    refuse(
        &[table(8), attention(SAMPLE, LAST, attend(true, true))],
        "k: expected as many rows as [2, 6, 10, 8], got [3, 8]",
    );
}

#[test]
fn attention_takes_keys_of_another_length() {
    accept(&[attention(SAMPLE, SAMPLE, SAMPLE, 4, 0.5)], &[2, 6, 10, 8], Kind::Float);
    let smaller = Op::Unpatchify(Unpatchify { x: SAMPLE, patch: 2 });
    let patches = Op::Patchify(Patchify { x: LAST, patch: 2 });
    accept(&[smaller, patches, attention(SAMPLE, Value(5), Value(5), 8, 0.5)], &[2, 6, 10, 8], Kind::Float);
}

#[test]
fn attention_refuses() {
    refuse(&[attention(NO_VALUE, SAMPLE, SAMPLE, 1, 1.0)], "q: expected a value below 4, got 99");
    refuse(&[attention(SAMPLE, LABELS, SAMPLE, 1, 1.0)], "k: expected float elements, got Index");
    let codes = [quantize(SAMPLE, ROW8), attention(SAMPLE, SAMPLE, LAST, 1, 1.0)];
    refuse(&codes, "v: expected float elements, got Codes(QuantizeSpec { bits: 8, grain: Row, range: Dynamic })");
    let equal = "q, k, v: expected q (n, .., d), k and v (3, .., d), got ";
    let got = "([3, 9], [3, 9], [3, 9])";
    refuse(&[attention(TABLE, TABLE, TABLE, 1, 1.0)], &format!("{equal}{got}"));
    let equal = "q, k, v: expected q (n, .., d), k and v (2, .., d), got ";
    let got = "([2, 6, 10, 8], [2, 6, 10, 5], [2, 6, 10, 5])";
    refuse(&[linear(SAMPLE, W), attention(SAMPLE, LAST, LAST, 1, 1.0)], &format!("{equal}{got}"));
    let got = "([2, 6, 10, 8], [2, 6, 10, 8], [2, 6, 10, 5])";
    refuse(&[linear(SAMPLE, W), attention(SAMPLE, SAMPLE, LAST, 1, 1.0)], &format!("{equal}{got}"));
    refuse(&[attention(SAMPLE, SAMPLE, SAMPLE, 0, 1.0)], "heads: expected a divisor of 8, got 0");
    refuse(&[attention(SAMPLE, SAMPLE, SAMPLE, 3, 1.0)], "heads: expected a divisor of 8, got 3");
    refuse(&[attention(SAMPLE, SAMPLE, SAMPLE, 2, f32::NAN)], "scale: expected a finite number, got NaN");
}

#[test]
fn attention_takes_biases_of_all_scores_and_lengths_of_all_keys() {
    let of = |q, k, bias, lengths, per_condition| {
        let attend = Attend { per_condition, ..Attend::default() };
        Op::Attention(Attention { q, k, v: k, heads: 2, scale: 1.0, attend, bias, lengths, ..Attention::default() })
    };
    let masked = |q, k, bias, lengths| of(q, k, bias, lengths, false);
    let to_prompt = |lengths| of(SAMPLE, LAST, None, Some(lengths), true);
    let table = Op::TimestepEmbedding(TimestepEmbedding { t: TIME, dim: 8, cos_first: true, shift: 0.0 });
    // Two heads, 60 queries; a key of each condition, of which there are three.
    let bias = Op::PositionEmbedding(PositionEmbedding {
        x: SAMPLE,
        dim: 8,
        base: 1,
        interpolation: 1.0,
        keep_ratio: false,
        grid: Default::default(),
    });
    accept(&[table, to_prompt(LABELS)], &[2, 6, 10, 8], Kind::Float);
    refuse(&[masked(SAMPLE, SAMPLE, None, Some(LABELS))], "lengths: expected u32 [2], got ([3], Index)");
    refuse(&[table, to_prompt(TIME)], "lengths: expected u32 [3], got ([3], Float)");
    refuse(&[masked(SAMPLE, SAMPLE, None, Some(NO_VALUE))], "lengths: expected a value below 4, got 99");
    refuse(
        &[bias, masked(SAMPLE, SAMPLE, Some(LAST), None)],
        "bias: expected (heads, queries, keys) [2, 60, 60], got [6, 10, 8]",
    );
    refuse(&[masked(SAMPLE, SAMPLE, Some(LABELS), None)], "bias: expected float elements, got Index");
    // Two samples of two tokens, which are as many as heads.
    let cube = Op::Parameter(Parameter { tensor: CUBE, ..Parameter::default() });
    accept(&[cube, masked(LAST, LAST, Some(LAST), None)], &[2, 2, 2], Kind::Float);
}

#[test]
fn attention_rounds_probabilities_in_one_way() {
    let attention = |bits, range, int8| {
        let attend = Attend { int8, ..Attend::default() };
        let softmax = Some(SoftmaxGrid { bits, range });
        Op::Attention(Attention {
            q: SAMPLE,
            k: SAMPLE,
            v: SAMPLE,
            heads: 2,
            scale: 1.0,
            attend,
            softmax,
            ..Attention::default()
        })
    };
    let curve = |tensor| QuantizeRange::curve(tensor, CurveAxis::Timestep);
    for range in [QuantizeRange::Dynamic, curve(CURVE)] {
        accept(&[attention(8, range, false)], &[2, 6, 10, 8], Kind::Float);
        accept(&[attention(16, range, false)], &[2, 6, 10, 8], Kind::Float);
        refuse(&[attention(8, range, true)], "softmax bits: expected none in attention by 8-bit codes, got 8");
        refuse(&[attention(12, range, false)], "softmax bits: expected 8 or 16, got 12");
    }
    refuse(&[attention(8, curve(V8), false)], "curve: expected f32 [points, 3], got [8]");
    refuse(&[attention(8, curve(NO_TENSOR), false)], "curve: expected a tensor below 18, got 99");
}

#[test]
fn vector_quantize_takes_rows_of_the_tables_length() {
    let nearest = |x, table| Op::VectorQuantize(VectorQuantize { x, table });
    accept(&[nearest(SAMPLE, CODEBOOK)], &[2, 6, 10, 8], Kind::Float);
    refuse(&[nearest(TABLE, CODEBOOK)], "table: expected f32 [rows, 9], got [4, 8]");
    refuse(&[nearest(SAMPLE, W)], "table: expected f32 [rows, 8], got [5, 8]");
    refuse(&[nearest(SAMPLE, W_I8)], "table: expected f32 [rows, 8], got [5, 8]");
    refuse(&[nearest(SAMPLE, V8)], "table: expected f32 [rows, 8], got [8]");
    refuse(&[nearest(SAMPLE, NO_TENSOR)], "table: expected a tensor below 18, got 99");
    refuse(&[nearest(LABELS, CODEBOOK)], "x: expected float elements, got Index");
}
